//! `sluice backtest`: what the sizing would have done on recorded load, in numbers and in a picture.

pub mod arrivals;
pub mod model;
pub mod picture;
pub mod prometheus;
pub mod random;
pub mod replay;
pub mod scenario;
pub mod table;
pub mod trace;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::{Map, Value};
use thiserror::Error;

use self::{
    picture::Picture,
    prometheus::{RANGE_HEADER, Range, RangeError},
    replay::{Cadence, Policy, Run},
    scenario::Scenario,
    table::Line,
    trace::{TRACE_HEADER, Trace, TraceError},
};
use super::decide::{DecideError, SizingArgs};

/// Replay recorded load against the sizing, and against fixed sizes.
///
/// The load is a trace (CSV t_seconds,arrival_rate_per_s,service_time_ms, with an optional sidecar NAME.json), a saved
/// answer of Prometheus' /api/v1/query_range, or a live query. Everything is computed by a queueing model of the pooler;
/// `docs/sizing.md` says what it leaves out.
#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// Trace (.csv), or saved range of Prometheus (.json, .csv).
    #[arg(required_unless_present = "prometheus", conflicts_with = "prometheus")]
    trace: Option<PathBuf>,
    /// Ask this Prometheus.
    #[arg(long, value_name = "URL", requires_all = ["pool", "start", "end"])]
    prometheus: Option<String>,
    /// Pool to ask for.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "prometheus")]
    pool: Option<String>,
    /// Beginning: RFC 3339, or Unix seconds.
    #[arg(long, value_name = "TIME", requires = "prometheus")]
    start: Option<String>,
    /// End: RFC 3339, or Unix seconds.
    #[arg(long, value_name = "TIME", requires = "prometheus")]
    end: Option<String>,
    /// Seconds that the query may take.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    deadline: u64,
    /// Keep what Prometheus answered, to replay it later.
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    save: Option<PathBuf>,
    #[command(flatten)]
    sizing: SizingArgs,
    /// Least size per pod; default: the sidecar's.
    #[arg(long)]
    min: Option<u32>,
    /// Largest size per pod; default: the sidecar's.
    #[arg(long)]
    max: Option<u32>,
    /// A fixed size per pod to compare with; default: the one that was recorded. May be repeated.
    #[arg(long)]
    fixed: Vec<u32>,
    /// Seconds after which an idle server connection is closed.
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS")]
    idle_timeout: f64,
    /// Write the picture here; default: NAME.svg in the current directory.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Why there is no backtest.
#[derive(Debug, Error)]
pub enum BacktestError {
    /// A flag that cannot be.
    #[error(transparent)]
    Sizing(#[from] DecideError),
    /// The trace cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Prometheus gave no trace.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A flag that cannot be.
    #[error("{flag}: {message}")]
    Flag {
        /// Which.
        flag: &'static str,
        /// What is wrong and what to write.
        message: String,
    },
    /// A file cannot be written.
    #[error("write {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The query cannot be run.
    #[error("start the query of Prometheus")]
    Runtime(#[source] io::Error),
}

/// Runs `sluice backtest`: the table on standard output, the picture into a file.
///
/// # Errors
/// [`BacktestError`] names the flag, file or line.
pub fn run(args: &BacktestArgs) -> Result<(), BacktestError> {
    let mut trace = load(args)?;
    trace.scenario.min_size = args.min.unwrap_or(trace.scenario.min_size);
    trace.scenario.max_size = args.max.unwrap_or(trace.scenario.max_size);
    trace.scenario.check().map_err(|message| BacktestError::Flag { flag: "--min, --max", message })?;
    if !(args.idle_timeout > 0.0 && args.idle_timeout.is_finite()) {
        let message = format!("{:?} is not a number of seconds above 0", args.idle_timeout);
        return Err(BacktestError::Flag { flag: "--idle-timeout", message });
    }
    let comparison = compare(&trace, args)?;
    let scenario = &trace.scenario;
    println!(
        "{}: {:.1} h of load on {} pod(s), size {} to {} per pod; at most {} % may wait longer than {} ms, beside the {:.2} % \
         that no size could avoid\n",
        scenario.name,
        (trace.seconds() - scenario.warmup_s) / 3600.0,
        scenario.replicas,
        scenario.min_size,
        scenario.max_size,
        100.0 * scenario.slo_target,
        scenario.slo_wait_ms,
        100.0 * comparison.unavoidable
    );
    println!("{}", table::render(scenario, comparison.unavoidable, &comparison.lines));
    let demand: Vec<f64> = trace.by_second().into_iter().map(|(rate, service)| rate * service).collect();
    let picture = Picture {
        title: &scenario.name,
        subtitle: &format!("{}: size, demand and waiting clients", comparison.lines[0].policy),
        course: &comparison.picture.course,
        demand: &demand,
        recorded: &trace.recorded,
    };
    let path = args.svg.clone().unwrap_or_else(|| PathBuf::from(file_name(&scenario.name)));
    write(&path, &picture.render())?;
    println!("picture: {}", path.display());
    Ok(())
}

/// The runs of one backtest.
struct Comparison {
    lines: Vec<Line>,
    /// Share of the transactions that waited too long whatever the size.
    unavoidable: f64,
    /// The run to draw.
    picture: Run,
}

fn compare(trace: &Trace, args: &BacktestArgs) -> Result<Comparison, BacktestError> {
    let mut settings = args.sizing.settings()?;
    let scenario = &trace.scenario;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked with the scenario
    let wait_milliseconds = (scenario.slo_wait_ms.round() as u32).max(1);
    settings.objective.wait_milliseconds = wait_milliseconds;
    settings.objective.max_waiting_percent = 100.0 * scenario.slo_target;
    let name = format!("{:?}", settings.algorithm);
    let sized = |cadence| Policy::Sized { settings: Box::new(settings.clone()), cadence };
    let drawn = replay::run(trace, &sized(Cadence::AGENT), args.idle_timeout);
    let mut lines = vec![Line { policy: format!("{name}, agent (1 s)"), score: drawn.score.clone() }];
    let mut add = |policy: String, what: &Policy, idle: f64| {
        lines.push(Line { policy, score: replay::run(trace, what, idle).score });
    };
    add(format!("{name}, operator (15 s)"), &sized(Cadence::OPERATOR), args.idle_timeout);
    let fixed = if args.fixed.is_empty() { recorded_size(trace).into_iter().collect() } else { args.fixed.clone() };
    for size in fixed {
        add(format!("fixed {size}"), &Policy::Fixed(size), args.idle_timeout);
    }
    for idle in [args.idle_timeout, 30.0, 5.0] {
        add(format!("fixed {} (maximum), idle {idle} s", scenario.max_size), &Policy::Fixed(scenario.max_size), idle);
    }
    let avoided = lines.iter().map(|line| line.score.violation_share());
    let unavoidable = avoided.fold(replay::unavoidable(trace, args.idle_timeout), f64::min);
    Ok(Comparison { lines, unavoidable, picture: drawn })
}

/// The size per pod that the pool had most of the time, where that was recorded.
fn recorded_size(trace: &Trace) -> Option<u32> {
    let mut sizes: Vec<f64> = trace.recorded.iter().map(|r| r.size).filter(|size| *size > 0.0).collect();
    sizes.sort_by(f64::total_cmp);
    let median = sizes.get(sizes.len() / 2)? / f64::from(trace.scenario.replicas);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
    Some(median.round().clamp(1.0, 10_000.0) as u32)
}

fn load(args: &BacktestArgs) -> Result<Trace, BacktestError> {
    if let Some(path) = &args.trace {
        return read(path);
    }
    let url = args.prometheus.as_deref().unwrap_or_default();
    let pool = args.pool.as_deref().unwrap_or_default();
    let (namespace, name) = pool
        .split_once('/')
        .filter(|(a, b)| !a.is_empty() && !b.is_empty())
        .ok_or_else(|| BacktestError::Flag { flag: "--pool", message: format!("{pool:?} is not NAMESPACE/NAME") })?;
    let range = Range {
        start: unix_seconds("--start", args.start.as_deref().unwrap_or_default())?,
        end: unix_seconds("--end", args.end.as_deref().unwrap_or_default())?,
    };
    if range.end <= range.start {
        let message = format!("{} does not come after --start {}", range.end, range.start);
        return Err(BacktestError::Flag { flag: "--end", message });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BacktestError::Runtime)?;
    let deadline = Duration::from_secs(args.deadline);
    let text = runtime.block_on(prometheus::fetch(url, namespace, name, range, deadline))?;
    if let Some(path) = &args.save {
        write(path, &text)?;
    }
    Ok(prometheus::from_json(&text, Path::new(url), range_scenario(pool))?)
}

/// A range of Prometheus has no warm-up: what came before is not known either, and every minute counts.
fn range_scenario(name: &str) -> Scenario {
    Scenario { name: name.to_owned(), warmup_s: 0.0, ..Scenario::default() }
}

fn read(path: &Path) -> Result<Trace, BacktestError> {
    let text = fs::read_to_string(path).map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    if text.trim_start().starts_with('{') {
        if let Some(trace) = described(path, &text) {
            let message = format!("this describes {}; give that one", trace.display());
            return Err(TraceError::Whole { path: path.to_owned(), message }.into());
        }
        return Ok(prometheus::from_json(&text, path, range_scenario(&name))?);
    }
    match text.lines().next().map(str::trim) {
        Some(RANGE_HEADER) => Ok(prometheus::from_csv(&text, path, range_scenario(&name))?),
        Some(TRACE_HEADER) => Ok(Trace::read(path)?),
        other => Err(TraceError::Line {
            path: path.to_owned(),
            line: 1,
            message: format!(
                "the header is {:?}; expected {TRACE_HEADER} for a trace or {RANGE_HEADER} for a range of Prometheus",
                other.unwrap_or_default()
            ),
        }
        .into()),
    }
}

/// The trace whose sidecar a file of JSON is.
fn described(path: &Path, text: &str) -> Option<PathBuf> {
    let json: Map<String, Value> = serde_json::from_str(text).ok()?;
    let is_answer = ["data", "status"].iter().any(|key| json.contains_key(*key));
    Some(path.with_extension("csv")).filter(|trace| !is_answer && trace.exists())
}

fn unix_seconds(flag: &'static str, text: &str) -> Result<i64, BacktestError> {
    let message = || format!("{text:?} is neither RFC 3339 (2026-11-21T09:00:00Z) nor Unix seconds");
    text.parse::<i64>()
        .ok()
        .or_else(|| text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second))
        .ok_or_else(|| BacktestError::Flag { flag, message: message() })
}

fn file_name(name: &str) -> String {
    let safe: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("{}.svg", if safe.is_empty() { "backtest" } else { &safe })
}

fn write(path: &Path, text: &str) -> Result<(), BacktestError> {
    fs::write(path, text).map_err(|source| BacktestError::Write { path: path.to_owned(), source })
}
