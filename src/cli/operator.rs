//! `sluice operator`: everything that runs in the operator's pod.

use thiserror::Error;

use crate::{
    controller::{self, OperatorArgs, OperatorError},
    telemetry::{self, TelemetryError},
};

/// Why the operator ended.
#[derive(Debug, Error)]
pub enum OperatorCliError {
    /// Logs could not be set up.
    #[error("setting up logs: {0}")]
    Telemetry(#[from] TelemetryError),
    /// The async runtime could not be started.
    #[error("starting the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    /// The operator itself.
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

/// Runs until SIGTERM, or until the lease is lost.
///
/// # Errors
/// [`OperatorCliError`].
pub fn run(args: OperatorArgs) -> Result<(), OperatorCliError> {
    telemetry::init(args.log_format, &args.log_level)?;
    // kube and reqwest must agree on one provider before the first client exists; a second call changes nothing
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(OperatorCliError::Runtime)?;
    let outcome = runtime.block_on(controller::run(args));
    // a lost lease must end writes now, not when the last request has been answered
    runtime.shutdown_background();
    Ok(outcome?)
}
