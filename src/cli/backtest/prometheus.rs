//! What Prometheus has about a pool, as a trace.
//!
//! One range query for all signals, live or saved (`GET /api/v1/query_range`, the answer as it is), or the same as CSV.
//! The arrival rate and the service time of every step come from the poolers' counters, so the trace is the load
//! and not what the size of that day made of it: clients that queued count as arrived.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error;

use super::{
    scenario::Scenario,
    trace::{Recorded, Row, Trace, TraceError},
};
use crate::{
    contract::metrics,
    decide::sizing::{Fleet, PodSample},
    domain::Sample,
    signals::{partial, trusting_client},
};

/// Header of a range saved as CSV: one line per pod and step.
pub const RANGE_HEADER: &str = "time_seconds,pod,transactions_total,busy_seconds_total,active,waiting,limit";
/// Prometheus refuses more points of a series.
const MOST_STEPS: f64 = 10_000.0;
/// No finer than the counters are scraped.
const LEAST_STEP_SECONDS: f64 = 15.0;
/// An answer is refused beyond this.
const LARGEST_ANSWER: usize = 256 << 20;
/// Longest text of a server that is repeated, in characters.
const KEPT_CHARACTERS: usize = 300;
/// A pod's gap up to this many steps does not end its series.
const LONGEST_PAUSE_SECONDS: f64 = 300.0;

/// Why Prometheus gave no trace.
#[derive(Debug, Error)]
pub enum RangeError {
    /// The query failed, or took longer than its deadline.
    #[error("query {url}")]
    Query {
        /// Where Prometheus is.
        url: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Prometheus answered something else than 200.
    #[error("query {url}: answered {status}: {body}")]
    Refused {
        /// Where Prometheus is.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of what it said.
        body: String,
    },
    /// The answer is not a range of these series.
    #[error("{origin}: not an answer of /api/v1/query_range")]
    Malformed {
        /// File or URL.
        origin: PathBuf,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
    /// The answer says that something is missing in it: the load of some pods, or of some time.
    #[error("{origin}: the answer may be incomplete and is not replayed: {warning}; ask again, or for a shorter range")]
    Partial {
        /// File or URL.
        origin: PathBuf,
        /// The first warning.
        warning: String,
    },
    /// The answer can be read and holds no load.
    #[error("{origin}: {message}")]
    NoLoad {
        /// File or URL.
        origin: PathBuf,
        /// What is missing.
        message: String,
    },
    /// The trace in it cannot be replayed.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// The one query: every signal of a pool.
pub fn query(namespace: &str, pool: &str) -> String {
    let names = [
        metrics::TRANSACTIONS,
        metrics::ABANDONED,
        metrics::BUSY_SECONDS,
        metrics::TRANSACTION_SECONDS,
        metrics::WAIT_SECONDS,
        metrics::SERVER_CONNECTIONS,
        metrics::CLIENT_CONNECTIONS,
        metrics::LIMIT,
    ];
    format!(
        "{{__name__=~\"{}\",{}=\"{}\",{}=\"{}\"}}",
        names.join("|"),
        metrics::POOL_NAMESPACE,
        quoted(namespace),
        metrics::POOL,
        quoted(pool)
    )
}

fn quoted(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A range of time in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Beginning.
    pub start: i64,
    /// End.
    pub end: i64,
}

impl Range {
    /// Seconds between two points.
    pub fn step_seconds(&self) -> f64 {
        ((self.end - self.start) as f64 / MOST_STEPS).ceil().max(LEAST_STEP_SECONDS)
    }
}

/// Asks Prometheus, with a deadline on the whole of it.
///
/// # Errors
/// [`RangeError::Query`] when it cannot be reached or is too slow, [`RangeError::Refused`] with what it said.
pub async fn fetch(
    url: &str,
    namespace: &str,
    pool: &str,
    range: Range,
    deadline: Duration,
) -> Result<String, RangeError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| RangeError::Query { url: url.to_owned(), source };
    let _ = rustls::crypto::ring::default_provider().install_default(); // an error says that it is there already
    let builder = || reqwest::Client::builder().timeout(deadline);
    let http = trusting_client(builder).map_err(|error| failed(error.into()))?;
    let client = prometheus_http_query::Client::from(http, url).map_err(|error| failed(error.into()))?;
    let answer = client
        .query_range(query(namespace, pool), range.start, range.end, range.step_seconds())
        // VictoriaMetrics would take what it has kept of earlier queries; others do not know it
        .query("nocache", "1")
        .get_raw()
        .await
        .map_err(|error| failed(error.into()))?;
    let status = answer.status();
    let mut answer = answer;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| failed(error.into()))? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(failed(format!("the answer exceeds {LARGEST_ANSWER} bytes; take a shorter range").into()));
        }
        body.extend_from_slice(&chunk);
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        let body = body.chars().take(KEPT_CHARACTERS).collect();
        return Err(RangeError::Refused { url: url.to_owned(), status: status.as_u16(), body });
    }
    Ok(body)
}

#[derive(Deserialize)]
struct Answer {
    data: AnswerData,
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(default, rename = "isPartial")]
    is_partial: bool,
}

#[derive(Deserialize)]
struct AnswerData {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: HashMap<String, String>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

/// One pod at one step.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    transactions: Option<f64>,
    abandoned: f64,
    busy_seconds: Option<f64>,
    /// Of an agent that does not count busy seconds: time in transactions with the waits, and the waits.
    transaction_seconds: Option<f64>,
    wait_seconds: f64,
    active: f64,
    waiting: f64,
    limit: f64,
}

/// Steps (in milliseconds, to be a key) to pods to figures.
type Points = BTreeMap<i64, BTreeMap<String, Point>>;

/// Reads an answer of `/api/v1/query_range`.
///
/// # Errors
/// [`RangeError`] when it is something else, is partial, or holds no load.
pub fn from_json(text: &str, origin: &Path, scenario: Scenario) -> Result<Trace, RangeError> {
    let answer: Answer =
        serde_json::from_str(text).map_err(|source| RangeError::Malformed { origin: origin.to_owned(), source })?;
    if let Some(warning) = partial(answer.is_partial, &answer.warnings) {
        let warning = warning.chars().take(KEPT_CHARACTERS).collect();
        return Err(RangeError::Partial { origin: origin.to_owned(), warning });
    }
    let mut points = Points::new();
    for series in answer.data.result {
        let label = |name: &str| series.metric.get(name).map_or("", String::as_str);
        let name = label("__name__").to_owned();
        let state = label(metrics::STATE).to_owned();
        let pod = format!("{}/{}", label("namespace"), label("pod"));
        for (time, value) in &series.values {
            let Some(value) = value.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0) else {
                continue; // NaN marks a series that ended
            };
            let Some(key) = step(*time) else { continue };
            let point = points.entry(key).or_default().entry(pod.clone()).or_default();
            match (name.as_str(), state.as_str()) {
                (metrics::TRANSACTIONS, _) => point.transactions = Some(value),
                (metrics::ABANDONED, _) => point.abandoned = value,
                (metrics::BUSY_SECONDS, _) => point.busy_seconds = Some(value),
                (metrics::WAIT_SECONDS, _) => point.wait_seconds = value,
                (metrics::TRANSACTION_SECONDS, _) => point.transaction_seconds = Some(value),
                (metrics::SERVER_CONNECTIONS, "active") => point.active = value,
                (metrics::CLIENT_CONNECTIONS, "waiting") => point.waiting = value,
                (metrics::LIMIT, _) => point.limit = value,
                _ => {}
            }
        }
    }
    trace(&points, origin, scenario)
}

/// Reads a range saved as CSV, header [`RANGE_HEADER`].
///
/// # Errors
/// [`RangeError`] with the line.
pub fn from_csv(text: &str, origin: &Path, scenario: Scenario) -> Result<Trace, RangeError> {
    let mut points = Points::new();
    for (i, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |message| TraceError::Line { path: origin.to_owned(), line: i + 1, message };
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [time, pod, figures @ ..] = &fields[..] else {
            return Err(wrong(format!("expected {RANGE_HEADER}")).into());
        };
        let figures: Vec<f64> = figures
            .iter()
            .filter_map(|field| field.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0))
            .collect();
        let (Some(key), [transactions, busy_seconds, active, waiting, limit]) =
            (time.parse().ok().and_then(step), &figures[..])
        else {
            return Err(wrong(format!("{line:?}: expected {RANGE_HEADER}, numbers of at least 0")).into());
        };
        let point = Point {
            transactions: Some(*transactions),
            busy_seconds: Some(*busy_seconds),
            active: *active,
            waiting: *waiting,
            limit: *limit,
            ..Point::default()
        };
        points.entry(key).or_default().insert((*pod).to_owned(), point);
    }
    trace(&points, origin, scenario)
}

fn step(seconds: f64) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation)] // within the range
    ((0.0..1e11).contains(&seconds)).then(|| (seconds * 1000.0).round() as i64)
}

/// Busy seconds of an agent that counted PgBouncer's time in transactions as it is, with the waits in it: the time less the
/// waits. Exact over time; what runs has waited already and has not brought its time.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_field_names)] // the unit stands in the name
struct WithoutWaits {
    transaction_seconds: f64,
    wait_seconds: f64,
    owed_seconds: f64,
    busy_seconds: f64,
}

impl WithoutWaits {
    fn add(&mut self, transaction_seconds: f64, wait_seconds: f64) -> f64 {
        if transaction_seconds < self.transaction_seconds || wait_seconds < self.wait_seconds {
            *self = Self::default(); // the pooler restarted: so does what is made of its counters
        }
        self.owed_seconds += (transaction_seconds - self.transaction_seconds) - (wait_seconds - self.wait_seconds);
        (self.transaction_seconds, self.wait_seconds) = (transaction_seconds, wait_seconds);
        let busy = self.owed_seconds.max(0.0);
        self.owed_seconds -= busy;
        self.busy_seconds += busy;
        self.busy_seconds
    }
}

/// Rates from counters, pod by pod; gauges summed.
fn trace(points: &Points, origin: &Path, mut scenario: Scenario) -> Result<Trace, RangeError> {
    let mut fleet = Fleet::default();
    let mut without_waits: HashMap<&str, WithoutWaits> = HashMap::new();
    let mut before: Option<Sample> = None;
    let mut rows: Vec<Row> = Vec::new();
    let mut recorded = Vec::new();
    let mut most_pods = 1;
    let mut service_seconds = 0.0;
    let begin = points.keys().next().map_or(0.0, |&first| first as f64 / 1000.0);
    for (&key, pods) in points {
        let t = key as f64 / 1000.0 - begin;
        let samples: Vec<PodSample> = pods
            .iter()
            .filter_map(|(pod, point)| {
                let estimated = point
                    .transaction_seconds
                    .map(|seconds| without_waits.entry(pod).or_default().add(seconds, point.wait_seconds));
                let sample = Sample {
                    at_seconds: t,
                    waiting: point.waiting,
                    active: point.active,
                    transactions: point.transactions?,
                    abandoned: point.abandoned,
                    busy_seconds: point.busy_seconds.or(estimated)?,
                    ..Sample::default()
                };
                Some(PodSample { pod, sample })
            })
            .collect();
        most_pods = most_pods.max(samples.len());
        let size: f64 = pods.values().map(|point| point.limit).sum();
        let waiting: f64 = pods.values().map(|point| point.waiting).sum();
        recorded.push(Recorded { t, size, waiting });
        let Ok(Some(sample)) = fleet.merge(&samples) else { continue };
        if let Some(last) = before {
            let dt = sample.at_seconds - last.at_seconds;
            let done = sample.transactions - last.transactions;
            if done > 0.0 {
                service_seconds = (sample.busy_seconds - last.busy_seconds) / done;
            }
            if dt > 0.0 && dt <= LONGEST_PAUSE_SECONDS {
                let queued = sample.waiting + sample.active - last.waiting - last.active;
                let abandoned = sample.abandoned - last.abandoned;
                let rate = ((done + abandoned + queued) / dt).max(0.0);
                rows.push(Row { t: last.at_seconds, rate, service_seconds });
            }
        }
        before = Some(sample);
    }
    if rows.iter().all(|row| row.rate <= 0.0) {
        return Err(RangeError::NoLoad {
            origin: origin.to_owned(),
            message: format!(
                "no transactions; it needs at least two points of {} and {} with labels {} and pod",
                metrics::TRANSACTIONS,
                metrics::BUSY_SECONDS,
                metrics::POOL
            ),
        });
    }
    // before the first transaction ended, the service time is that of the first one that did
    if let Some(first) = rows.iter().map(|row| row.service_seconds).find(|service| *service > 0.0) {
        rows.iter_mut().filter(|row| row.service_seconds <= 0.0).for_each(|row| row.service_seconds = first);
    }
    scenario.interpolate = false;
    scenario.replicas = u32::try_from(most_pods).unwrap_or(u32::MAX);
    let trace = Trace { rows, scenario, recorded };
    trace.check(origin)?;
    Ok(trace)
}
