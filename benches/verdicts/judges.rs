//! Who judges: Sluice, fixed thresholds, Kayenta's rule and Argo's conditions, each on the same seconds.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use sluice::decide::analysis::{
    Analysis, AnalysisSettings, JudgedMetric, Look, Outcome, PodInterval, SampledFigure, Track,
};

use super::model::{AFTER, BEFORE, Rollout};
use crate::Failure;

/// Seconds that the others look at, after which they have decided.
pub const PLANNED: usize = 60;
/// Seconds of one of their measurements.
pub const MEASUREMENT: usize = 10;
/// A threshold of theirs is this many times what is usual.
pub const THRESHOLD: f64 = 1.5;
/// Failed measurements that they allow.
pub const FAILURE_LIMIT: usize = 1;
/// The first seconds of the canary, which nobody counts.
const WARM_UP: usize = 2;

/// What became of a rollout, and after how many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub end: End,
    pub seconds: usize,
}

/// How a rollout ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Promoted,
    Worse,
    NotProven,
}

impl Ruling {
    /// As two fields of a row.
    pub fn fields(self) -> String {
        let end = match self.end {
            End::Promoted => "promoted",
            End::Worse => "worse",
            End::NotProven => "not proven",
        };
        format!("{end},{}", self.seconds)
    }
}

/// The metrics that a pool has by default: three are compared, so that each has a third of the false alarms.
pub fn settings() -> AnalysisSettings {
    AnalysisSettings::new(["TransactionTime", "WaitTime", "Errors"].map(JudgedMetric::named).to_vec())
}

/// The analysis of Sluice. Nobody waits and nothing fails: what it judges are the transaction times.
pub fn sluice(rollout: &Rollout) -> Result<Ruling, Failure> {
    let mut analysis = Analysis::new(settings())?;
    let names: Vec<String> = (0..rollout.pods.len()).map(|pod| format!("pod-{pod}")).collect();
    for second in 0..BEFORE + AFTER {
        let of = |(pod, name): (usize, &String)| {
            let track = if pod == 0 && second >= BEFORE { Track::Canary } else { Track::Stable };
            let said = rollout.pods[pod][second];
            PodInterval {
                transactions: SampledFigure::Value(said.transactions),
                transaction_mean_ms: SampledFigure::Value(said.mean_ms),
                wait_mean_ms: SampledFigure::Value(0.0),
                errors: SampledFigure::Value(0.0),
                ..PodInterval::new(name, track)
            }
        };
        let pods: Vec<PodInterval> = names.iter().enumerate().map(of).collect();
        let verdict = analysis.judge(&Look { at_seconds: second as f64, pods: &pods, measurements: &[] });
        if verdict.is_final {
            let end = match verdict.verdict {
                Outcome::Pass => End::Promoted,
                Outcome::Fail => End::Worse,
                Outcome::Inconclusive => End::NotProven,
            };
            return Ok(Ruling { end, seconds: second + 1 - BEFORE });
        }
    }
    Err("the analysis did not end".into())
}

/// The canary's mean of each measurement, weighted by transactions.
fn measurements(rollout: &Rollout) -> Vec<f64> {
    let start = |number: usize| BEFORE + WARM_UP + number * MEASUREMENT;
    let means = (0..PLANNED / MEASUREMENT).map(|number| mean_of(rollout, 0, start(number)..start(number + 1)));
    means.collect()
}

fn mean_of(rollout: &Rollout, pod: usize, seconds: std::ops::Range<usize>) -> f64 {
    let (sum, count) = seconds
        .map(|second| rollout.pods[pod][second])
        .fold((0.0, 0.0), |sum, said| (sum.0 + said.mean_ms * said.transactions, sum.1 + said.transactions));
    sum / count
}

/// A threshold that somebody set who knows the pool: some times its mean of two minutes before the rollout. Back at the first failed
/// measurement beyond what is allowed.
pub fn thresholds(rollout: &Rollout) -> Ruling {
    let usual: f64 = (0..rollout.pods.len()).map(|pod| mean_of(rollout, pod, 0..BEFORE)).sum::<f64>();
    let most = THRESHOLD * usual / rollout.pods.len() as f64;
    let failed = measurements(rollout).into_iter().enumerate().filter(|(_, mean)| *mean > most);
    match failed.skip(FAILURE_LIMIT).map(|(number, _)| number + 1).next() {
        Some(measured) => after(End::Worse, measured),
        None => after(End::Promoted, PLANNED / MEASUREMENT),
    }
}

/// The end after so many measurements.
fn after(end: End, measured: usize) -> Ruling {
    Ruling { end, seconds: WARM_UP + measured * MEASUREMENT }
}

/// What the queries of an Argo user return who compares: the canary's mean of each measurement by that of the other pods.
pub fn ratios(rollout: &Rollout) -> Vec<f64> {
    let start = |number: usize| BEFORE + WARM_UP + number * MEASUREMENT;
    let others = |number: usize| {
        let means = (1..rollout.pods.len()).map(|pod| mean_of(rollout, pod, start(number)..start(number + 1)));
        means.sum::<f64>() / (rollout.pods.len() - 1) as f64
    };
    measurements(rollout).into_iter().enumerate().map(|(number, mean)| mean / others(number)).collect()
}

/// Argo's conditions on these ratios, by the program that is linked with its package.
pub fn argo(program: &Path, rollouts: &[Vec<f64>]) -> Result<Vec<Ruling>, Failure> {
    let flags = [format!("-success-condition=result[0] <= {THRESHOLD}"), format!("-failure-limit={FAILURE_LIMIT}")];
    let mut child = Command::new(program).args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let lines =
        rollouts.iter().map(|ratios| ratios.iter().map(f64::to_string).collect::<Vec<String>>().join(",") + "\n");
    let lines: String = lines.collect();
    let mut input = child.stdin.take().ok_or("the program takes no input")?;
    // beside what is read: neither may wait for the other
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| "the writer has panicked")??;
    if !output.status.success() {
        return Err(format!("{} ended with {}", program.display(), output.status).into());
    }
    let ruling = |line: &str| -> Result<Ruling, Failure> {
        let (end, measured) = line.split_once(',').ok_or_else(|| format!("not a ruling: {line}"))?;
        let end = match end {
            "Successful" => End::Promoted,
            "Failed" => End::Worse,
            other => return Err(format!("a measurement ended as {other}").into()),
        };
        Ok(after(end, measured.parse()?))
    };
    let rulings: Vec<Ruling> = String::from_utf8(output.stdout)?.lines().map(ruling).collect::<Result<_, _>>()?;
    if rulings.len() == rollouts.len() { Ok(rulings) } else { Err("a rollout has no ruling".into()) }
}

/// Kayenta's rule, once at the planned end: Mann and Whitney at 98 % of the canary's seconds against the mean of the others', after outliers
/// beyond three times the distance of the quartiles are gone; worse where the lower end of the interval of the shift is beyond a quarter of the shift itself.
pub fn kayenta(rollout: &Rollout) -> Ruling {
    let seconds = BEFORE + WARM_UP..BEFORE + WARM_UP + PLANNED;
    let others = (rollout.pods.len() - 1) as f64;
    let canary: Vec<f64> = seconds.clone().map(|second| rollout.pods[0][second].mean_ms).collect();
    let baseline = seconds.map(|second| rollout.pods[1..].iter().map(|pod| pod[second].mean_ms).sum::<f64>() / others);
    let (canary, baseline) = (without_outliers(canary), without_outliers(baseline.collect()));
    let mut shifts: Vec<f64> = canary.iter().flat_map(|one| baseline.iter().map(move |other| one - other)).collect();
    shifts.sort_by(f64::total_cmp);
    let (m, n) = (canary.len() as f64, baseline.len() as f64);
    let away = 2.326 * (m * n * (m + n + 1.0) / 12.0).sqrt();
    // how many of the sorted shifts stand below the interval
    let below = shifts.len() as f64 / 2.0 - away;
    let lower = shifts.iter().enumerate().find(|(rank, _)| *rank as f64 >= below).map_or(f64::NAN, |(_, shift)| *shift);
    let estimate = super::statistics::median(&shifts);
    let end = if lower > 0.25 * estimate.abs() { End::Worse } else { End::Promoted };
    Ruling { end, seconds: WARM_UP + PLANNED }
}

fn without_outliers(values: Vec<f64>) -> Vec<f64> {
    let [low, high] = [0.25, 0.75].map(|q| super::statistics::quantile(&values, q));
    let far = 3.0 * (high - low);
    values.into_iter().filter(|value| (low - far..=high + far).contains(value)).collect()
}
