//! `sluice decide`: the sizing of operator and agent on lines of JSON.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use thiserror::Error;

use super::{lines, schema};
use crate::{
    api::BehaviorSpec,
    contract::{Algorithm, Behavior, Objective},
    decide::{
        effective,
        sizing::{AdaptiveParameters, LineError, ObservationLine, Sizer, SizingSettings},
    },
};

/// A longer line is refused; no observation comes near it.
const LONGEST_LINE: u64 = 1 << 20;
/// Pools in one stream.
const MOST_POOLS: usize = 100_000;

/// Decide on observations: one JSON object per line in, one per line out.
///
/// The decisions are those of the operator and of the agent: the same code, no clock, no randomness. A line that cannot
/// be read is answered with an "error" and the size held; the stream goes on.
#[derive(Debug, Args)]
pub struct DecideArgs {
    #[command(flatten)]
    sizing: SizingArgs,
}

/// How the size is to be computed; shared by `decide` and `backtest`.
#[derive(Clone, Debug, Args)]
pub struct SizingArgs {
    /// Algorithm.
    #[arg(long, value_enum, default_value_t = AlgorithmArg::Adaptive)]
    algorithm: AlgorithmArg,
    /// Desired busy share of the size in percent, for target-utilization; default 70.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    target_utilization_percent: Option<u32>,
    /// Windows, policies and tolerance as JSON, as spec.behavior of a ConnectionPool has them, over the algorithm's defaults:
    /// '{"scaleDown":{"stabilizationWindowSeconds":300,"tolerance":"0.05"}}'.
    #[arg(long, value_name = "JSON")]
    behavior: Option<String>,
    /// Seconds after which a connection counts as leaked whose client does nothing.
    #[arg(long, value_name = "SECONDS")]
    leak_threshold_seconds: Option<f64>,
    /// Seconds between two samples that are learned.
    #[arg(long, default_value_t = 15.0, value_name = "SECONDS")]
    sample_seconds: f64,
    /// A parameter of adaptive, for instance price=20. May be repeated.
    #[arg(long = "adaptive", value_name = "NAME=VALUE")]
    adaptive: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AlgorithmArg {
    Adaptive,
    TargetUtilization,
    LoadFactor,
}

/// Why `decide` or `backtest` refused its flags, or stopped.
#[derive(Debug, Error)]
pub enum DecideError {
    /// A flag that cannot be.
    #[error("{flag}: {message}")]
    Flag {
        /// Which.
        flag: &'static str,
        /// What is wrong and what to write.
        message: String,
    },
    /// Standard input or output broke.
    #[error("cannot {doing}")]
    Stream {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SizingArgs {
    /// The settings that the flags ask for, with the objective of the built-in defaults.
    ///
    /// # Errors
    /// [`DecideError::Flag`] names the flag and what it may hold.
    pub fn settings(&self) -> Result<SizingSettings, DecideError> {
        let algorithm = match self.algorithm {
            AlgorithmArg::Adaptive => Algorithm::Adaptive,
            AlgorithmArg::TargetUtilization => Algorithm::TargetUtilization,
            AlgorithmArg::LoadFactor => Algorithm::LoadFactor,
        };
        let objective = Objective { wait_milliseconds: 20, max_waiting_percent: 1.0 };
        let mut settings = SizingSettings::new(algorithm, objective);
        let only_for = |flag, is_set: bool, wanted, name: &str| {
            if is_set && algorithm != wanted {
                return Err(DecideError::Flag { flag, message: format!("has no effect without --algorithm {name}") });
            }
            Ok(())
        };
        let percent = self.target_utilization_percent;
        only_for(
            "--target-utilization-percent",
            percent.is_some(),
            Algorithm::TargetUtilization,
            "target-utilization",
        )?;
        only_for("--adaptive", !self.adaptive.is_empty(), Algorithm::Adaptive, "adaptive")?;
        settings.target_utilization_percent = percent.unwrap_or(70);
        if let Some(text) = &self.behavior {
            settings.behavior = behavior(settings.behavior, text)?;
        }
        settings.adaptive = adaptive(&self.adaptive)?;
        let seconds = |flag, value: f64| {
            let message = format!("{value} is not a number of seconds above 0");
            if value.is_finite() && value > 0.0 { Ok(value) } else { Err(DecideError::Flag { flag, message }) }
        };
        settings.sample_seconds = seconds("--sample-seconds", self.sample_seconds)?;
        settings.leak_threshold_seconds =
            self.leak_threshold_seconds.map(|value| seconds("--leak-threshold-seconds", value)).transpose()?;
        Ok(settings)
    }
}

fn behavior(built_in: Behavior, text: &str) -> Result<Behavior, DecideError> {
    let wrong = |message| DecideError::Flag { flag: "--behavior", message };
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    schema::check("", &value, &schema::of_pool("behavior")).map_err(wrong)?;
    let spec: BehaviorSpec = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    let behavior = effective::behavior(&spec, built_in).map_err(|refusal| wrong(refusal.message))?;
    let tolerances = [("scaleUp", behavior.scale_up.tolerance), ("scaleDown", behavior.scale_down.tolerance)];
    match tolerances.into_iter().find(|(_, tolerance)| *tolerance >= 1.0) {
        Some((direction, tolerance)) => {
            Err(wrong(format!("{direction}.tolerance is {tolerance}; expected a share below 1, such as \"0.05\"")))
        }
        None => Ok(behavior),
    }
}

fn adaptive(pairs: &[String]) -> Result<AdaptiveParameters, DecideError> {
    let wrong = |message| DecideError::Flag { flag: "--adaptive", message };
    let mut parameters = serde_json::Map::new();
    for pair in pairs {
        let parsed = pair.split_once('=').and_then(|(name, value)| Some((name, value.parse::<f64>().ok()?)));
        let (name, value) = parsed
            .filter(|(_, value)| value.is_finite())
            .ok_or_else(|| wrong(format!("{pair:?} is not NAME=NUMBER, for instance price=20")))?;
        parameters.insert(name.to_owned(), json!(value));
    }
    let parameters: AdaptiveParameters =
        serde_json::from_value(Value::Object(parameters)).map_err(|error| wrong(error.to_string()))?;
    parameters.check().map_err(wrong)?;
    Ok(parameters)
}

/// Runs `sluice decide` on standard input and output.
///
/// # Errors
/// [`DecideError`]: a flag that cannot be, or a stream that broke. Never for what a line holds.
pub fn run(args: &DecideArgs) -> Result<(), DecideError> {
    let settings = args.sizing.settings()?;
    decide_lines(&settings, io::stdin().lock(), io::stdout().lock())
}

/// Answers every line of `input`.
///
/// # Errors
/// [`DecideError::Stream`] when reading or writing fails.
pub fn decide_lines(
    settings: &SizingSettings,
    mut input: impl BufRead,
    mut output: impl Write,
) -> Result<(), DecideError> {
    let mut pools: BTreeMap<Option<String>, Pool> = BTreeMap::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        let read = lines::read(&mut input, &mut line, LONGEST_LINE);
        if !read.map_err(|source| DecideError::Stream { doing: "read the observations", source })? {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        let answer = answer(settings, &mut pools, text.trim()).unwrap_or_else(|error| {
            eprintln!("sluice: line {number}: {error}");
            let held = pools.values().next().filter(|_| pools.len() == 1).map(|pool| pool.size);
            json!({"size": held, "reason": "InvalidData", "error": format!("line {number}: {error}")})
        });
        writeln!(output, "{answer}")
            .and_then(|()| output.flush())
            .map_err(|source| DecideError::Stream { doing: "write the decisions", source })?;
    }
    Ok(())
}

/// One pool of the stream.
#[derive(Default)]
struct Pool {
    sizer: Sizer,
    /// The last answer.
    size: u32,
}

fn answer(
    settings: &SizingSettings,
    pools: &mut BTreeMap<Option<String>, Pool>,
    text: &str,
) -> Result<Value, LineError> {
    let line = ObservationLine::parse(text)?;
    let settings = line.settings(settings)?;
    let observation = line.observation()?;
    if pools.len() >= MOST_POOLS && !pools.contains_key(&line.pool) {
        pools.clear(); // begin to learn anew rather than grow without end
    }
    let pool = pools.entry(line.pool.clone()).or_default();
    let answer = line.answer(&pool.sizer.decide(&settings, &observation.observation()));
    pool.size = answer.size;
    Ok(serde_json::to_value(answer)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        sizing: SizingArgs,
    }

    fn settings(flags: &[&str]) -> Result<SizingSettings, String> {
        let flags = Flags::try_parse_from([&["sluice"], flags].concat()).map_err(|error| error.to_string())?;
        flags.sizing.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn a_behavior_is_that_of_a_pool() {
        let text = r#"{"scaleDown":{"stabilizationWindowSeconds":300,"tolerance":"0.5","policies":[{"type":"Percent","value":10,"periodSeconds":60}]}}"#;
        let behavior = settings(&["--behavior", text]).expect("accepted").behavior;
        assert_eq!(
            (behavior.scale_down.stabilization_window_seconds, behavior.scale_down.policies[0].value),
            (300, 10)
        );
        assert!(
            (behavior.scale_down.tolerance - 0.5).abs() < 1e-9 && (behavior.scale_up.tolerance - 0.02).abs() < 1e-9
        );
    }

    #[test]
    fn a_flag_that_means_nothing_is_refused_with_what_is_wrong() {
        let behavior = |text: &'static str| vec!["--behavior", text];
        let adaptive = |pair: &'static str| vec!["--adaptive", pair];
        for (flags, words) in [
            (behavior(r#"{"scaleup":{}}"#), "scaleup is no field; known are scaleDown, scaleUp"),
            (behavior(r#"{"scaleDown":{"stabilization":1}}"#), "scaleDown.stabilization is no field"),
            (behavior(r#"{"scaleDown":{"stabilizationWindowSeconds":9999}}"#), "from 0 to 3600"),
            (behavior(r#"{"scaleDown":{"tolerance":0.5}}"#), "scaleDown.tolerance is 0.5; expected string"),
            (behavior(r#"{"scaleDown":{"tolerance":"2"}}"#), "scaleDown.tolerance is 2"),
            (
                behavior(r#"{"scaleUp":{"policies":[{"type":"Pods","value":1,"periodSeconds":1}]}}"#),
                "scaleUp.policies[0].type",
            ),
            (
                behavior(r#"{"scaleUp":{"policies":[{"type":"Percent","value":0,"periodSeconds":1}]}}"#),
                "scaleUp.policies[0].value",
            ),
            (
                behavior(r#"{"scaleUp":{"policies":[{"type":"Percent","value":1}]}}"#),
                "scaleUp.policies[0].periodSeconds is missing",
            ),
            (adaptive("memory_seconds=-1"), "memory_seconds is -1"),
            (adaptive("target_share=5"), "target_share is 5"),
            (adaptive("price=-5"), "price is -5"),
            (adaptive("default_window_seconds=7"), "default_window_seconds is 7"),
            (adaptive("prize=5"), "unknown field `prize`"),
            (vec!["--target-utilization-percent", "50"], "has no effect without --algorithm target-utilization"),
            (
                vec!["--algorithm", "load-factor", "--adaptive", "price=20"],
                "has no effect without --algorithm adaptive",
            ),
        ] {
            let refused = settings(&flags).expect_err(words);
            assert!(refused.contains(words), "{flags:?}: {refused}");
        }
        assert!(settings(&["--adaptive", "price=20", "--adaptive", "knee_climb=1"]).is_ok());
        assert!(settings(&["--algorithm", "target-utilization", "--target-utilization-percent", "50"]).is_ok());
    }
}
