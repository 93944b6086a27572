//! Why Prometheus could not be read.

use std::{fmt, path::PathBuf};

use thiserror::Error;

use super::{PoolKey, RefusedSeries};
use crate::api;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadSubject {
    /// One of Sluice's own metrics, for all pools.
    Metric(&'static str),
    /// The user's own query in place of a signal.
    Override {
        /// The pool.
        pool: PoolKey,
        /// The signal.
        signal: api::Signal,
        /// The query.
        query: String,
    },
    /// What the pods of a pool did since a rollout began.
    Rollout {
        /// The pool.
        pool: PoolKey,
    },
    /// The user's own query of a metric of an analysis.
    Measurement {
        /// The pool.
        pool: PoolKey,
        /// Name of the metric.
        metric: Box<str>,
        /// The query.
        query: Box<str>,
    },
    /// Everything of one tick.
    All,
    /// What it takes to ask at all.
    Access,
}

/// Longest query that is shown in a message.
const SHOWN_CHARACTERS: usize = 200;

impl fmt::Display for ReadSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metric(name) => f.write_str(name),
            Self::Override { pool, signal, query } => {
                let shown: String = query.chars().take(SHOWN_CHARACTERS).collect();
                let more = if shown.len() < query.len() { "..." } else { "" };
                write!(f, "pool {pool}, spec.scaling.metrics.overrides[{signal:?}].query {shown:?}{more}")
            }
            Self::Rollout { pool } => write!(f, "pool {pool}, the pods of its rollout"),
            Self::Measurement { pool, metric, query } => {
                let shown: String = query.chars().take(SHOWN_CHARACTERS).collect();
                let more = if shown.len() < query.len() { "..." } else { "" };
                write!(f, "pool {pool}, spec.rollout.analysis.metrics[{metric}].query {shown:?}{more}")
            }
            Self::All => f.write_str("all signals"),
            Self::Access => f.write_str("access"),
        }
    }
}

/// Prometheus could not be read. Everything holds then; nothing shrinks.
#[derive(Debug)]
pub struct ReadError {
    /// Name of the server in the configuration.
    pub server: String,
    /// What was asked.
    pub asked: ReadSubject,
    /// What failed.
    pub failure: Box<ReadFailure>,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prometheus {:?}, {}: {}", self.server, self.asked, self.failure)
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let mut source = self.failure.source();
        while let Some(layer) = source.filter(|source| names_the_url(*source)) {
            source = layer.source();
        }
        source
    }
}

/// True for the layers that only say that a request failed, and name its URL with the whole query.
fn names_the_url(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<reqwest::Error>() || error.is::<prometheus_http_query::Error>()
}

/// Why Prometheus could not be read, and what to do.
#[derive(Debug, Error)]
pub enum ReadFailure {
    /// A file with a token, a name, a password or a CA cannot be read.
    #[error("reading {what} from {}: {source}; check the Secret that is mounted there", path.display())]
    File {
        /// What is in the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in the file cannot be sent, or is no certificate. What it is is not told.
    #[error("{what} in {} is not valid; check the Secret that is mounted there", path.display())]
    InvalidFile {
        /// What is in the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The client cannot be built.
    #[error(
        "preparing the connection: {}; an https url needs caFile where the image has no certificates",
        chain(source)
    )]
    Client {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The URL cannot be used.
    #[error("{source}; correct its url")]
    Url {
        /// Why.
        #[source]
        source: prometheus_http_query::Error,
    },
    /// The connection failed.
    #[error("{}; check its url, its certificate and the NetworkPolicies", chain(source.as_ref()))]
    Connection {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("no answer in {seconds:.1} s; raise timeoutSeconds, or look at its load")]
    Deadline {
        /// Seconds that were waited.
        seconds: f64,
    },
    /// An answer that is not a success.
    #[error("{}{}{}", StatusText(*status), Detail(message), hint(*status))]
    Status {
        /// HTTP status.
        status: u16,
        /// What the server said about it.
        message: String,
    },
    /// A refusal in words that are not those of a Prometheus API: of a path that is not there, or of plain text where TLS is
    /// expected.
    #[error("{}, not in the words of a Prometheus API; check scheme and path of its url", StatusText(*status))]
    NotPrometheus {
        /// HTTP status.
        status: u16,
    },
    /// A larger answer than is read.
    #[error("the answer has more than {limit} bytes; raise maxResponseBytes if that many pods are right")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// More of the pods of a rollout than is read at once.
    #[error(
        "in {window_seconds} s its pods have more than {} MiB, or {scrapes} scrapes, of sluice_revision_*; {}", limit >> 20,
        Blamed(refused.as_deref())
    )]
    TooLargeRollout {
        /// Of how many seconds it was asked.
        window_seconds: u32,
        /// The limit in bytes.
        limit: usize,
        /// The limit in scrapes, each of one pod.
        scrapes: usize,
        /// The pod that was left out by then, if one was.
        refused: Option<Box<RefusedSeries>>,
    },
    /// A larger answer than one number has.
    #[error("the answer has more than {limit} bytes, needed is one number; aggregate it, for example with sum(...)")]
    LargerThanANumber {
        /// The limit in bytes.
        limit: usize,
    },
    /// An answer about all pods with more beside the series, or in one of them, than is kept.
    #[error("the answer has more than {limit} bytes that are not whole series; check its url")]
    BesideSeries {
        /// The limit in bytes.
        limit: usize,
    },
    /// An answer that is not Prometheus' JSON.
    #[error("the answer is not that of a Prometheus API ({source}); check its url")]
    Malformed {
        /// Where.
        #[from]
        source: serde_json::Error,
    },
    /// A success without a result.
    #[error("the answer has no result; check its url")]
    NoResult,
    /// An answer of another type.
    #[error("the result is a {found}, needed is a {needed}")]
    ResultType {
        /// What came.
        found: &'static str,
        /// What was needed.
        needed: &'static str,
    },
    /// An answer with warnings: it may be partial.
    #[error("the answer may be incomplete and is not used: {warning}")]
    Warning {
        /// The first warning.
        warning: String,
    },
    /// A query of the user's own that yields several series.
    #[error("it yields more than one series, needed is one number; aggregate them, for example with sum(...)")]
    SeveralSeries,
    /// A query of the user's own that yields nothing.
    #[error("it yields no series, so nothing is known; let the application export a 0 where it means zero")]
    NoSeries,
    /// A query of the user's own that yields what no count can be.
    #[error("it yields {value}; needed is a finite number of at least 0")]
    Value {
        /// What came.
        value: String,
    },
}

/// What is at fault when a query of the user's own yields no number, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The server, or how it is reached.
    Server,
    /// The query: it will yield none until it is written otherwise.
    Query,
    /// The query, which takes too long or yields too much.
    Late,
}

impl ReadFailure {
    /// What is at fault; none where there is nothing to be counted.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::NoSeries | Self::Value { .. } => None,
            Self::Deadline { .. } | Self::TooLarge { .. } | Self::LargerThanANumber { .. } => Some(Fault::Late),
            // what a server gives up by itself: Prometheus says 503, others 422
            Self::Status { status: 422 | 503, message } if message.contains("time") => Some(Fault::Late),
            Self::Status { status: 200 | 400 | 422, .. }
            | Self::SeveralSeries
            | Self::ResultType { .. }
            | Self::TooLargeRollout { .. } => Some(Fault::Query),
            _ => Some(Fault::Server),
        }
    }
}

/// What caused an error, without the layers that name the URL.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !names_the_url(cause) && !texts.iter().any(|shown| shown.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    if texts.is_empty() { "the exchange failed".to_owned() } else { texts.join(": ") }
}

/// Who sends too much.
struct Blamed<'a>(Option<&'a RefusedSeries>);

impl fmt::Display for Blamed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(refused) => write!(f, "{refused}"),
            None => f.write_str("it is asked for half as long"),
        }
    }
}

struct StatusText(u16);

impl fmt::Display for StatusText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = http::StatusCode::from_u16(self.0).ok().and_then(|status| status.canonical_reason());
        write!(f, "HTTP {} {}", self.0, reason.unwrap_or_default())
    }
}

struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

const fn hint(status: u16) -> &'static str {
    match status {
        300..=399 => "; redirects are not followed: use the address that it names",
        400 | 422 => "; correct the query",
        401 => "; check bearerTokenFile or basicAuth",
        403 => "; the account may not query",
        404 => "; check the path of its url",
        429 | 500..=599 => "; it is asked again at the next tick",
        _ => "",
    }
}
