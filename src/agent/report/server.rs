//! `/status`, `/metrics`, `/healthz` and `/readyz`.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::{
    agent::report::metrics::Metrics,
    contract::{StatusReport, names::SHARE_PATH},
    serving::ServingBounds,
};

/// The loop counts as dead when it has not come round for so long.
const LOOP_DEADLINE: Duration = Duration::from_secs(10);
/// What everybody may take who reaches the port: it stands in a container whose memory is PgBouncer's. Whoever has reason to ask
/// (Prometheus, the operator, the kubelet) needs one connection each.
pub const BOUNDS: ServingBounds = ServingBounds {
    connections: 32,
    handshake: Duration::from_secs(5),
    head: Duration::from_secs(5),
    request: Duration::from_secs(10),
    // two of the longest scrape intervals in use: who asks again by then finds the connection open
    idle: Duration::from_mins(2),
    buffer_bytes: 8 << 10,
};
/// The type of what `/metrics` answers.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the loop publishes and the server shows.
pub struct Published {
    /// The metrics.
    pub metrics: Metrics,
    view: Mutex<View>,
}

struct View {
    status: StatusReport,
    waits_for: Option<String>,
    beat: Instant,
}

impl Published {
    /// Nothing is ready yet.
    pub fn new(metrics: Metrics, status: StatusReport) -> Self {
        let view = View { status, waits_for: Some("the first start of the pooler".to_owned()), beat: Instant::now() };
        Self { metrics, view: Mutex::new(view) }
    }

    /// Publishes the state. `waits_for` is None when the pooler accepts clients and its console answers.
    pub fn publish(&self, status: StatusReport, waits_for: Option<String>) {
        *self.view.lock() = View { status, waits_for, beat: Instant::now() };
    }
}

/// Binds the address, or the port on every address: IPv6 and IPv4 in one socket where there is IPv6.
///
/// # Errors
/// Of the system.
pub async fn bind(address: Option<SocketAddr>, port: u16) -> io::Result<TcpListener> {
    match address {
        Some(address) => TcpListener::bind(address).await,
        None => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Ok(listener) => Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
            Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        },
    }
}

/// The routes.
pub fn router(published: Arc<Published>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route(SHARE_PATH, get(share))
        .with_state(published)
}

async fn status(State(published): State<Arc<Published>>) -> Json<StatusReport> {
    Json(published.view.lock().status.clone())
}

async fn metrics(State(published): State<Arc<Published>>) -> Response {
    match published.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(published): State<Arc<Published>>) -> Response {
    let silent = published.view.lock().beat.elapsed();
    if silent < LOOP_DEADLINE {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the loop has not come round for {} s\n", silent.as_secs()))
            .into_response()
    }
}

/// The same, and whether the pooler may open a server connection.
async fn share(State(published): State<Arc<Published>>) -> Response {
    let has_none = {
        let view = published.view.lock();
        view.waits_for.is_none() && view.status.share == 0
    };
    if has_none {
        return (StatusCode::SERVICE_UNAVAILABLE, "waits for a share: the pool has none left for this pod\n")
            .into_response();
    }
    readyz(State(published)).await
}

async fn readyz(State(published): State<Arc<Published>>) -> Response {
    match &published.view.lock().waits_for {
        None => "ok\n".into_response(),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("waits for {what}\n")).into_response(),
    }
}
