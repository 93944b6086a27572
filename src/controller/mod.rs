//! The shell around `decide`: observe, decide, apply, prove, report.
//!
//! Every replica watches, serves the webhook and answers for its health. Only the leader writes.

mod error;
mod leader;

use jiff::Timestamp;
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use error::OperatorError;

use crate::{
    cli::operator::OperatorArgs,
    http::{self, Metrics, Readiness},
};

/// Runs the operator until SIGTERM or SIGINT, or until something that it cannot do without has ended.
///
/// # Errors
/// [`OperatorError`] names what ended.
pub async fn run(args: OperatorArgs) -> Result<(), OperatorError> {
    let stop = CancellationToken::new();
    let metrics = Metrics::default();
    let readiness = Readiness::default();

    let mut config = Config::infer().await.map_err(|source| OperatorError::Config(Box::new(source)))?;
    // retries are ours: kube's own would hold a call for minutes and carry a write past the end of the lease
    config.default_retry = false;
    let client = Client::try_from(config).map_err(|source| OperatorError::Client(Box::new(source)))?;

    let identity = format!("{}_{}", args.pod_name, Timestamp::now().as_millisecond());
    let candidate = leader::Candidate::new(client.clone(), &args.namespace, &args.lease_name, identity);

    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signals)?;
    let serving = http::serve(args.http_bind, readiness.clone(), metrics.clone(), stop.clone());
    let leading = lead(&candidate, &metrics);

    let outcome = tokio::select! {
        served = serving => served.map_err(OperatorError::Http),
        ended = leading => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop.cancel();
    candidate.release().await;
    outcome
}

/// Waits for the lease and holds it. Returns only when it is lost.
async fn lead(candidate: &leader::Candidate, metrics: &Metrics) -> Result<(), OperatorError> {
    let lease = candidate.acquire().await;
    metrics.leader(true);
    tracing::info!(epoch = candidate.leadership().epoch(), "this process is the leader");
    let lost = candidate.hold(lease).await;
    metrics.leader(false);
    Err(OperatorError::Leader(lost))
}
