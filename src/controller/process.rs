//! The process of the operator, from its first line to its last.

use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube::{Client, Config};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use super::{
    admit::admit,
    error::OperatorError,
    lead::lead,
    leader, look_requests,
    observe::{stores::watch_all, watch::Instruments},
    options::OperatorArgs,
    workers::{Workers, beat},
};
use crate::{
    http::{self, OperatorMetrics, Pulse, Readiness},
    serving::Drain,
    signals::Servers,
};

/// The gate that closes when the process ends.
const ENDING_GATE: &str = "ending";
/// Longest time for those who write to end, before the lease is given back.
const WRITES_END: Duration = Duration::from_secs(1);
/// Longest time for what is being answered when the ports are closed.
const ANSWERS_END: Duration = Duration::from_secs(5);

/// Runs the operator until SIGTERM or SIGINT, or until something that it cannot do without has ended.
///
/// What answers others (the webhook, health, metrics) and the lease run here, on the thread of the caller. Everything whose work grows
/// with pools and pods has threads of its own, those of `workers`, and connections to the API server of its own: it holds up no
/// admission and no renewal.
///
/// It ends in order: first what writes, then the lease is given back, and only when the cluster has had time to lead new requests
/// elsewhere the ports are closed.
///
/// # Errors
/// [`OperatorError`] names what ended.
pub async fn run(args: OperatorArgs, workers: &Handle) -> Result<(), OperatorError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signals)?;
    let drain = Drain::default();
    let instruments = Instruments { metrics: OperatorMetrics::default(), readiness: Readiness::default() };
    // a file that cannot be read is told of before anything else: waiting does not mend it
    let servers = args.prometheus_config.as_deref().map(Servers::from_file).transpose()?;
    let config = config().await?;
    let client = client(config.clone())?;

    let pulse = Pulse::default();
    let (requests, requested) = look_requests::requests();
    let (mut workers, stores) = {
        let _there = workers.enter();
        tokio::spawn(beat("what watches", pulse.clone()));
        let workers = Workers::new(workers.clone(), self::client(config)?, pulse.clone());
        let stores = watch_all(&workers.client, &requests, &args, &instruments);
        (workers, stores)
    };
    let identity = format!("{}_{}", args.pod_name, Timestamp::now().as_millisecond());
    let candidate = leader::Candidate::new(client.clone(), &args.namespace, &args.lease_name, identity);

    let http = http::bind(args.http_bind, instruments.readiness.clone(), pulse, instruments.metrics.clone()).await?;
    let mut serving = tokio::spawn(http.run(drain.clone()));
    let mut admitting = tokio::spawn(admit(client, stores.clone(), args.clone(), instruments.clone(), drain.clone()));
    let outcome = {
        let leading = lead(&candidate, &stores, (requests, requested), &args, servers, &instruments, &mut workers);
        tokio::select! {
            ended = &mut serving => Err(OperatorError::ended("the server of health and metrics", &ended)),
            ended = &mut admitting => Err(OperatorError::ended("the webhook", &ended)),
            lost = leading => Err(lost),
            _ = terminate.recv() => Ok(Ending::Asked),
            _ = interrupt.recv() => Ok(Ending::Interrupted),
        }
    };
    // a replica that was not ready is asked by nobody
    let was_ready = instruments.readiness.is_ready();
    instruments.readiness.close(ENDING_GATE, "this process ends");
    instruments.metrics.leader(false);
    let _ = timeout(WRITES_END, workers.end()).await;
    drain.begin();
    let draining = async {
        if was_ready && !matches!(outcome, Ok(Ending::Interrupted)) {
            tracing::info!(seconds = args.drain_seconds, "ending: requests are answered until they are led elsewhere");
            tokio::select! {
                () = sleep(args.drain()) => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
    };
    tokio::join!(candidate.release(), draining);
    drain.end();
    let answering = [serving, admitting].into_iter().filter(|task| !task.is_finished());
    let _ = timeout(ANSWERS_END, join_all(answering)).await;
    outcome.map(|_| ())
}

/// Why the operator ends although nothing failed.
enum Ending {
    /// Its pod ends.
    Asked,
    /// Somebody at a terminal has had enough.
    Interrupted,
}

async fn config() -> Result<Config, OperatorError> {
    let mut config = Config::infer().await.map_err(|source| OperatorError::Config(Box::new(source)))?;
    // retries are ours: kube's own would hold a call for minutes and carry a write past the end of the lease
    config.default_retry = false;
    Ok(config)
}

/// A client whose connections live where this is called.
fn client(config: Config) -> Result<Client, OperatorError> {
    Client::try_from(config).map_err(|source| OperatorError::Client(Box::new(source)))
}
