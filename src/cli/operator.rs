//! `sluice operator`: everything that runs in the operator's pod.

use thiserror::Error;
use tokio::runtime;

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
    // for the watches; the tick and the looks at pools have threads of their own
    let workers = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let workers = workers.map_err(OperatorCliError::Runtime)?;
    let front = runtime::Builder::new_current_thread().enable_all().build().map_err(OperatorCliError::Runtime)?;
    let outcome = front.block_on(controller::run(args, workers.handle()));
    // what still runs must not hold up the end
    workers.shutdown_background();
    front.shutdown_background();
    Ok(outcome?)
}
