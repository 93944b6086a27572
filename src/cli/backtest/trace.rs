//! Recorded load: a trace file, or what Prometheus has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::scenario::Scenario;

/// Rows of a trace at most.
const MOST_ROWS: usize = 2_000_000;
/// Seconds of a trace at most: four weeks.
const LONGEST_SECONDS: f64 = 28.0 * 86_400.0;
/// Transactions of a trace at most; a day of 10,000 a second.
const MOST_TRANSACTIONS: f64 = 9e8;

/// Load from one moment on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Seconds since the beginning.
    pub t: f64,
    /// Transactions that arrive per second.
    pub rate: f64,
    /// Mean service time in seconds.
    pub service_seconds: f64,
}

/// What the pool really had, where the trace was recorded from one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recorded {
    /// Seconds since the beginning.
    pub t: f64,
    /// Size in force.
    pub size: f64,
    /// Clients waiting.
    pub waiting: f64,
}

/// Load over time, and what to replay it against.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The load.
    pub rows: Vec<Row>,
    /// The pooler, the database, the objective.
    pub scenario: Scenario,
    /// What the pool really had; empty for a trace file.
    pub recorded: Vec<Recorded>,
}

/// Why a trace cannot be used.
#[derive(Debug, Error)]
pub enum TraceError {
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The sidecar is not what it should be.
    #[error("{path}: not a sidecar of a trace")]
    Sidecar {
        /// Which file.
        path: PathBuf,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
    /// A value of the sidecar cannot be.
    #[error("{path}: {message}")]
    Scenario {
        /// Which file.
        path: PathBuf,
        /// Which key, and what it may hold.
        message: String,
    },
    /// A line of the CSV cannot be.
    #[error("{path}, line {line}: {message}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The trace as a whole cannot be replayed.
    #[error("{path}: {message}")]
    Whole {
        /// Which file, or where it came from.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// Header of a trace file.
pub const TRACE_HEADER: &str = "t_seconds,arrival_rate_per_s,service_time_ms";

impl Trace {
    /// Reads `NAME.csv` and, where there is one, `NAME.json`.
    ///
    /// # Errors
    /// [`TraceError`] with the file and the line.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let text = fs::read_to_string(path).map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
        let sidecar = path.with_extension("json");
        let scenario = if sidecar.exists() { read_scenario(&sidecar)? } else { Scenario::default() };
        let mut trace = Self { rows: rows(&text, path)?, scenario, recorded: Vec::new() };
        if trace.scenario.name.is_empty() {
            trace.scenario.name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        }
        trace.check(path)?;
        Ok(trace)
    }

    /// Refuses what would run for hours or divides by nothing.
    ///
    /// # Errors
    /// [`TraceError`] names the file and the value.
    pub fn check(&self, path: &Path) -> Result<(), TraceError> {
        self.scenario.check().map_err(|message| TraceError::Scenario { path: path.to_owned(), message })?;
        let wrong = |message: String| Err(TraceError::Whole { path: path.to_owned(), message });
        if self.rows.len() < 2 {
            return wrong("fewer than two rows; a trace needs at least a beginning and an end".to_owned());
        }
        let seconds = self.seconds();
        if seconds <= self.scenario.warmup_s {
            return wrong(format!(
                "{seconds:.0} s long, and the first {:.0} s are not counted; set a smaller warmup_s or take a longer range",
                self.scenario.warmup_s
            ));
        }
        if seconds > LONGEST_SECONDS {
            return wrong(format!("{seconds:.0} s long; at most {LONGEST_SECONDS:.0} s"));
        }
        let transactions: f64 = self.rows.windows(2).map(|two| two[0].rate * (two[1].t - two[0].t)).sum();
        if transactions > MOST_TRANSACTIONS {
            return wrong(format!("{transactions:.2e} transactions; at most {MOST_TRANSACTIONS:.0e}"));
        }
        Ok(())
    }

    /// Whole seconds of load: to the last row and one row's length on.
    pub fn seconds(&self) -> f64 {
        match self.rows[..] {
            [.., before, last] => (last.t + (last.t - before.t)).floor(),
            _ => 0.0,
        }
    }

    /// Rate and service time of every second.
    pub fn by_second(&self) -> Vec<(f64, f64)> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded by `check`
        let seconds = self.seconds() as usize;
        let mut row = 0;
        let mut out = Vec::with_capacity(seconds);
        for second in 0..seconds {
            let t = second as f64 + 0.5;
            while row + 1 < self.rows.len() && self.rows[row + 1].t <= t {
                row += 1;
            }
            let here = self.rows[row];
            let rate = match self.rows.get(row + 1) {
                Some(next) if self.scenario.interpolate && t > here.t => {
                    here.rate + (next.rate - here.rate) * (t - here.t) / (next.t - here.t)
                }
                _ => here.rate,
            };
            out.push((rate, here.service_seconds));
        }
        out
    }
}

fn read_scenario(path: &Path) -> Result<Scenario, TraceError> {
    let text = fs::read_to_string(path).map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|source| TraceError::Sidecar { path: path.to_owned(), source })
}

fn rows(text: &str, path: &Path) -> Result<Vec<Row>, TraceError> {
    let mut rows: Vec<Row> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let wrong = |message: String| TraceError::Line { path: path.to_owned(), line: i + 1, message };
        if i == 0 {
            if line.trim() != TRACE_HEADER {
                return Err(wrong(format!("the header is {line:?}; expected {TRACE_HEADER}")));
            }
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<Option<f64>> = line.split(',').map(|field| field.trim().parse().ok()).collect();
        let [Some(t), Some(rate), Some(service)] = fields[..] else {
            return Err(wrong(format!("{line:?} is not three numbers")));
        };
        if !(t.is_finite() && (0.0..=1e7).contains(&rate) && (0.0..=3.6e6).contains(&service)) {
            return Err(wrong(format!(
                "{line:?}: expected a time, a rate of 0 to 1e7 and a service time of 0 to 3.6e6 ms"
            )));
        }
        if rows.last().is_some_and(|last| t <= last.t) {
            return Err(wrong(format!("time {t} does not follow {}", rows[rows.len() - 1].t)));
        }
        if rows.len() >= MOST_ROWS {
            return Err(wrong(format!("more than {MOST_ROWS} rows")));
        }
        rows.push(Row { t, rate, service_seconds: service / 1000.0 });
    }
    Ok(rows)
}
