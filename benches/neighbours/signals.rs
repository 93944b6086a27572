//! What stands between the operator and its load: a query that takes long and returns much, and a pod whose series are forged.

use std::{
    convert::Infallible,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use futures::{StreamExt as _, stream};
use sluice::contract::metrics;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use super::TENANT;
use crate::{Failure, fleet::pool_name};

/// Where the operator finds its Prometheus.
pub const FRONT: &str = "127.0.0.1:9092";
/// Where Prometheus reads the pod that forges.
pub const FORGER: &str = "127.0.0.1:9901";
/// The series that the user's own query is about.
pub const OWN_SERIES: &str = "tenant_waiting";
/// How long its answer takes.
const ANSWER_AFTER: Duration = Duration::from_secs(30);
/// How large it is then.
const ANSWER_MEBIBYTES: usize = 64;

/// A Prometheus that one query holds up, and a pod that forges.
pub struct Signals {
    behind: String,
    client: reqwest::Client,
    is_slow: AtomicBool,
    forged: AtomicUsize,
    unlimited: AtomicUsize,
}

impl Signals {
    /// In front of the Prometheus at this address. It serves as long as the tasks live.
    pub async fn start(behind: &str, tasks: &mut JoinSet<()>) -> Result<Arc<Self>, Failure> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let signals = Arc::new(Self {
            behind: format!("http://{behind}"),
            client: reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?,
            is_slow: AtomicBool::default(),
            forged: AtomicUsize::default(),
            unlimited: AtomicUsize::default(),
        });
        for (address, router) in [
            (FRONT, Router::new().fallback(any(forward)).with_state(signals.clone())),
            (
                FORGER,
                Router::new()
                    .route("/metrics", get(forged))
                    .route("/unlimited", get(unlimited))
                    .with_state(signals.clone()),
            ),
        ] {
            let listener = TcpListener::bind(address).await?;
            tasks.spawn(async move {
                let _ = axum::serve(listener, router).await;
            });
        }
        Ok(signals)
    }

    /// Whether the user's own query takes long and returns much.
    pub fn slow(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }

    /// How many series the pod forges where it is scraped with limits, and where it is scraped without.
    pub fn forge(&self, series: usize, unlimited: usize) {
        self.forged.store(series, Ordering::Relaxed);
        self.unlimited.store(unlimited, Ordering::Relaxed);
    }
}

async fn forward(State(signals): State<Arc<Signals>>, RawQuery(query): RawQuery, uri: Uri, body: Bytes) -> Response {
    let asked = |text: &str| text.contains(OWN_SERIES);
    let is_own = query.as_deref().is_some_and(asked) || std::str::from_utf8(&body).is_ok_and(asked);
    if is_own && signals.is_slow.load(Ordering::Relaxed) {
        sleep(ANSWER_AFTER).await;
        return ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(much())).into_response();
    }
    let url = format!("{}{}", signals.behind, uri.path_and_query().map_or("", |path| path.as_str()));
    let request = if body.is_empty() {
        signals.client.get(url)
    } else {
        signals.client.post(url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    };
    match request.send().await {
        Ok(answer) => {
            let (status, kind) = (answer.status(), answer.headers().get(header::CONTENT_TYPE).cloned());
            let pieces = stream::unfold(answer, |mut answer| async {
                let piece = answer.chunk().await;
                piece.transpose().map(|piece| (piece, answer))
            });
            let mut answer = Response::new(Body::from_stream(pieces));
            *answer.status_mut() = status;
            if let Some(kind) = kind {
                answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            answer
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// A vector of so many series that it is as large as it is said to be.
fn much() -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    const SERIES: usize = 1024;
    let mut piece = String::new();
    for number in 0..SERIES {
        // writing to a String cannot fail
        let _ = write!(piece, r#"{{"metric":{{"series":"{number:0950}"}},"value":[1,"1"]}},"#);
    }
    let piece = Bytes::from(piece);
    let head = Bytes::from_static(br#"{"status":"success","data":{"resultType":"vector","result":["#);
    let tail = Bytes::from_static(br#"{"metric":{},"value":[1,"1"]}]}}"#);
    let pieces = ANSWER_MEBIBYTES * (1 << 20) / piece.len();
    stream::iter([head]).chain(stream::repeat(piece).take(pieces)).chain(stream::iter([tail])).map(Ok)
}

async fn forged(State(signals): State<Arc<Signals>>) -> String {
    forge(signals.forged.load(Ordering::Relaxed))
}

async fn unlimited(State(signals): State<Arc<Signals>>) -> String {
    forge(signals.unlimited.load(Ordering::Relaxed))
}

/// A pod's page: series of the agent's, each of another pool or with another label; half of them for pools of another namespace.
fn forge(series: usize) -> String {
    let names = [
        metrics::SAMPLE_TIME,
        metrics::SERVER_CONNECTIONS,
        metrics::CLIENT_CONNECTIONS,
        metrics::TRANSACTIONS,
        metrics::BUSY_SECONDS,
        metrics::WAIT_SECONDS,
        metrics::LIMIT,
        metrics::SHARE,
    ];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut page = String::new();
    for number in 0..series {
        let namespace = if number % 2 == 0 { TENANT } else { super::OTHERS };
        let (name, pool) = (names[number % names.len()], pool_name(number % 1000));
        let value = if name == metrics::SAMPLE_TIME { now } else { 1e6 };
        // writing to a String cannot fail
        let _ = writeln!(
            page,
            "{name}{{pool_namespace=\"{namespace}\",pool=\"{pool}\",state=\"active\",forged=\"{number}\"}} {value}"
        );
    }
    page
}
