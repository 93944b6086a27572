//! What the operator answers over HTTP: is it alive, is it ready and if not what does it wait for, and its metrics.

mod health;
mod metrics;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{net::TcpListener, time::Instant};

pub use health::{Gate, Pulse, Readiness};
pub use metrics::{Admitted, OperatorMetrics, PoolLabels, ProofOutcome, WriteKind, WriteOutcome};

use crate::serving::{HttpServer, ServingBounds};

/// What everybody may take who reaches the port.
const BOUNDS: ServingBounds = ServingBounds {
    connections: 64,
    handshake: Duration::from_secs(5),
    head: Duration::from_secs(5),
    // a page of many thousand pools, over a slow line
    request: Duration::from_secs(30),
    idle: Duration::from_mins(2),
    buffer_bytes: 8 << 10,
};
/// So long a page of metrics is given to everybody who asks: a page of many pools is megabytes, and each that is under way is held.
const PAGE_AGE: Duration = Duration::from_millis(500);

/// Why the HTTP server does not run.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The address cannot be bound.
    #[error("--http-bind {address}: {source}; choose a free address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// What the handlers read.
#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    pulse: Pulse,
    metrics: OperatorMetrics,
    page: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

impl Shared {
    /// The page of metrics, made a moment ago at most.
    fn page(&self) -> Result<Bytes, fmt::Error> {
        let mut page = self.page.lock();
        if let Some((made, text)) = page.as_ref()
            && made.elapsed() < PAGE_AGE
        {
            return Ok(text.clone());
        }
        let text = Bytes::from(self.metrics.encode()?);
        *page = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

/// Takes the address of `/healthz`, `/readyz` and `/metrics`; [`HttpServer::run`] serves them.
///
/// # Errors
/// [`HttpError`]: the address cannot be bound.
pub async fn bind(
    address: SocketAddr,
    readiness: Readiness,
    pulse: Pulse,
    metrics: OperatorMetrics,
) -> Result<HttpServer, HttpError> {
    let listener = TcpListener::bind(address).await.map_err(|source| HttpError::Bind { address, source })?;
    Ok(HttpServer::new(listener, router(readiness, pulse, metrics), BOUNDS))
}

fn router(readiness: Readiness, pulse: Pulse, metrics: OperatorMetrics) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(exposition))
        .with_state(Shared { readiness, pulse, metrics, page: Arc::default() })
}

async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.pulse.missing() {
        None => "ok\n".into_response(),
        Some((who, silent)) => {
            let why = format!("{who} has not come round for {} s\n", silent.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let gates = shared.readiness.gates();
    let ready = shared.readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "ready": ready, "gates": gates });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

async fn exposition(State(shared): State<Shared>) -> Response {
    match shared.page() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, body::to_bytes, http::Request};
    use tower::ServiceExt;

    use super::*;

    fn of(readiness: Readiness) -> Router {
        router(readiness, Pulse::default(), OperatorMetrics::default())
    }

    async fn ask(router: Router, path: &str) -> (StatusCode, String) {
        let request = Request::builder().uri(path).body(Body::empty()).expect("a request");
        let answer = router.oneshot(request).await.expect("an answer");
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn readiness_names_what_it_waits_for_and_liveness_does_not_care() {
        let readiness = Readiness::default();
        readiness.wait("watch ConnectionPool", "no list yet");
        readiness.wait("webhook", "no certificate yet");
        readiness.open("webhook");
        let (status, body) = ask(of(readiness.clone()), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("no list yet") && !body.contains("no certificate yet"), "{body}");
        assert_eq!(ask(of(readiness.clone()), "/healthz").await.0, StatusCode::OK);
        readiness.open("watch ConnectionPool");
        assert_eq!(ask(of(readiness.clone()), "/readyz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_exposition_is_open_metrics() {
        let metrics = OperatorMetrics::default();
        metrics.decided("Demand");
        let (status, body) = ask(router(Readiness::default(), Pulse::default(), metrics), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("sluice_operator_decisions_total{reason=\"Demand\"} 1"), "{body}");
        assert!(body.ends_with("# EOF\n"));
    }

    #[tokio::test]
    async fn a_replica_that_ends_is_not_ready_again_whatever_opens() {
        let readiness = Readiness::default();
        readiness.open("ending");
        assert_eq!(ask(of(readiness.clone()), "/readyz").await.0, StatusCode::OK);
        readiness.close("ending", "asked to end");
        readiness.open("ending");
        let (status, body) = ask(of(readiness.clone()), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("asked to end"), "{body}");
        assert_eq!(ask(of(readiness), "/healthz").await.0, StatusCode::OK, "it still lives");
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_hang_are_a_process_that_does_not_live() {
        let pulse = Pulse::default();
        pulse.beat("the tick");
        pulse.beat("what watches");
        let shown = || ask(router(Readiness::default(), pulse.clone(), OperatorMetrics::default()), "/healthz");
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(shown().await.0, StatusCode::OK);
        pulse.beat("what watches");
        tokio::time::advance(Duration::from_secs(2)).await;
        let (status, body) = shown().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("the tick has not come round for 31 s"), "{body}");
        pulse.beat("the tick");
        assert_eq!(shown().await.0, StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_of_metrics_is_made_once_for_all_who_ask_in_the_same_moment() {
        let metrics = OperatorMetrics::default();
        let router = router(Readiness::default(), Pulse::default(), metrics.clone());
        let before = ask(router.clone(), "/metrics").await.1;
        metrics.decided("Demand");
        assert_eq!(ask(router.clone(), "/metrics").await.1, before);
        tokio::time::advance(PAGE_AGE).await;
        assert!(ask(router, "/metrics").await.1.contains("Demand"));
    }
}
