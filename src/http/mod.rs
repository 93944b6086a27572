//! What the operator answers over HTTP: is it alive, is it ready and if not what does it wait for, and its metrics.

mod health;
mod metrics;

use std::net::SocketAddr;

use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use health::{Gate, Readiness};
pub use metrics::{Admitted, Metrics, Outcome, PoolLabels, ProofOutcome, WriteKind};

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
    /// It stopped.
    #[error("serving HTTP: {0}")]
    Serve(#[source] std::io::Error),
}

/// What the handlers read.
#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    metrics: Metrics,
}

/// Serves `/healthz`, `/readyz` and `/metrics` until `stop`.
///
/// # Errors
/// [`HttpError`]: the address cannot be bound, or serving failed.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), HttpError> {
    let listener = TcpListener::bind(address).await.map_err(|source| HttpError::Bind { address, source })?;
    let router = router(readiness, metrics);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await.map_err(HttpError::Serve)
}

fn router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(exposition))
        .with_state(Shared { readiness, metrics })
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let gates = shared.readiness.gates();
    let ready = gates.values().all(Gate::is_open);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "ready": ready, "gates": gates });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

async fn exposition(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.metrics.encode() {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, body::to_bytes, http::Request};
    use tower::ServiceExt;

    use super::*;

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
        let (status, body) = ask(router(readiness.clone(), Metrics::default()), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("no list yet") && !body.contains("no certificate yet"), "{body}");
        assert_eq!(ask(router(readiness.clone(), Metrics::default()), "/healthz").await.0, StatusCode::OK);
        readiness.open("watch ConnectionPool");
        assert_eq!(ask(router(readiness, Metrics::default()), "/readyz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_exposition_is_open_metrics() {
        let metrics = Metrics::default();
        metrics.decided("Demand");
        let (status, body) = ask(router(Readiness::default(), metrics), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("sluice_operator_decisions_total{reason=\"Demand\"} 1"), "{body}");
        assert!(body.ends_with("# EOF\n"));
    }
}
