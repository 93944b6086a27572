//! The shell around `decide`: observe, decide, apply, prove, report.
//!
//! ```text
//! watches (a task each) ──┐                  ┌─▶ pods/status, ControllerRevisions (apply, paced)
//! agents' answers (prove) ┼─▶ requests ─▶ look ─┼─▶ agents to ask (prove)
//! tick: load, sizing ─────┘   plan = decide  └─▶ status, events (told only when something is new)
//! ```
//!
//! Every replica watches pools, classes and revisions, serves the webhook and answers for its health. Only the leader
//! watches pods and writes. Nothing is remembered that cannot be rebuilt from annotations, status and the agents.

mod apply;
mod asking;
mod boot_time;
mod budgets;
mod carry_out;
mod census;
mod classes;
mod error;
mod events;
mod gateway;
mod leader;
mod lean;
mod memory;
mod observe;
mod options;
mod overrides;
mod pods;
mod prove;
mod queue;
mod reconcile;
mod refusals;
pub mod rehearsal;
mod revision;
mod sizing;
mod status;
mod tick;
mod turns;
mod watch;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::{StreamExt, channel::mpsc, future::join_all, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{Client, Config, ResourceExt};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

pub use error::OperatorError;
pub use options::{Gateways, OperatorArgs, SidecarUser};

use self::{
    census::UninjectedPodLister, observe::Stores, pods::PodIndex, queue::LookRequests, reconcile::Context,
    refusals::ReplicaFailureLister, turns::WorkQueue, watch::Instruments,
};
use crate::{
    api::{ConnectionPool, ConnectionPoolClass},
    contract::names::POOL_LABEL,
    domain::PoolKey,
    http::{self, OperatorMetrics, Pulse, Readiness},
    serving::{Drain, HttpServer},
    signals::Servers,
    webhook::{
        certificates::{CertificateKeeper, CertificateSettings, CertificateTrust},
        lookup::ClusterLookup,
        server,
    },
};

/// Pools that are looked at at once.
const CONCURRENCY: usize = 16;
/// Time between two attempts to get a certificate.
const CERTIFICATE_RETRY: Duration = Duration::from_secs(5);
/// The gate of the webhook's certificate.
const CERTIFICATE_GATE: &str = "webhook";
/// The gate of the webhook's port.
const LISTENER_GATE: &str = "webhook port";
/// The gate that closes when the process ends.
const ENDING_GATE: &str = "ending";
/// First pause before the webhook's address is tried again; it doubles each time.
const SHORTEST_LISTEN_RETRY: Duration = Duration::from_secs(1);
/// Longest pause before the webhook's address is tried again.
const LONGEST_LISTEN_RETRY: Duration = Duration::from_secs(15);
/// Time between two signs of life of the workers.
const BEAT: Duration = Duration::from_secs(1);
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
    let (requests, requested) = queue::requests();
    let (mut workers, stores) = {
        let _there = workers.enter();
        tokio::spawn(beat("what watches", pulse.clone()));
        let workers = Workers {
            client: self::client(config)?,
            handle: workers.clone(),
            pulse: pulse.clone(),
            stop: CancellationToken::new(),
            threads: JoinSet::new(),
        };
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

/// Where the work is done whose amount grows with pools and pods.
struct Workers {
    /// Where watches and connections live.
    handle: Handle,
    /// Whose connections live there.
    client: Client,
    pulse: Pulse,
    stop: CancellationToken,
    threads: JoinSet<()>,
}

impl Workers {
    /// Has a thread of its own do this, until it is done or [`Self::end`] is called.
    fn begin<F>(&mut self, who: &'static str, work: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()>,
    {
        let (handle, pulse, stop) = (self.handle.clone(), self.pulse.clone(), self.stop.clone());
        let thread = move || {
            handle.block_on(async {
                tokio::select! {
                    biased; // nothing more is begun once it is to end
                    () = stop.cancelled() => {}
                    () = beat(who, pulse) => {}
                    () = work() => {}
                }
            });
        };
        self.threads.spawn_blocking_on(thread, &self.handle);
    }

    /// Ends everything that was begun, and waits until it has.
    async fn end(&mut self) {
        self.stop.cancel();
        while self.threads.join_next().await.is_some() {}
    }
}

/// Shows for ever that whoever shares a thread with it comes round.
async fn beat(who: &'static str, pulse: Pulse) {
    loop {
        pulse.beat(who);
        sleep(BEAT).await;
    }
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

/// The watches that every replica has. What changes asks for a look at the pools that it concerns.
fn watch_all(client: &Client, requests: &LookRequests, args: &OperatorArgs, instruments: &Instruments) -> Stores {
    let asking = requests.clone();
    let mut news = watch::PoolNews::default();
    let pools =
        watch::into_store(client.clone(), None, "ConnectionPool", instruments.clone(), move |pool, presence| {
            let concerned = news.of(&pool, presence);
            let asking = asking.clone();
            async move {
                if let Some(pool) = concerned {
                    asking.ask(&pool, "pool").await;
                }
            }
        });
    // an edit of a class is an edit of each pool that names it, or that names none
    let (asking, known) = (requests.clone(), pools.clone());
    let classes = watch::into_store(
        client.clone(),
        None,
        "ConnectionPoolClass",
        instruments.clone(),
        move |class: ConnectionPoolClass, _| {
            let concerned: Vec<PoolKey> = known
                .state()
                .into_iter()
                .filter(|pool| pool.spec.class_ref.as_ref().is_none_or(|named| named.name == class.name_any()))
                .filter_map(|pool| Some(PoolKey { namespace: pool.namespace()?, name: pool.name_any() }))
                .collect();
            let asking = asking.clone();
            async move {
                for pool in concerned {
                    asking.ask(&pool, "class").await;
                }
            }
        },
    );
    let (asking, known) = (requests.clone(), pools.clone());
    let budgets = watch::into_store(
        client.clone(),
        None,
        "ConnectionBudget",
        instruments.clone(),
        move |budget: crate::api::ConnectionBudget, _| {
            let concerned: Vec<PoolKey> = known
                .state()
                .into_iter()
                .filter(|pool| pool.spec.budget_ref.as_ref().is_some_and(|named| named.name == budget.name_any()))
                .filter_map(|pool| Some(PoolKey { namespace: pool.namespace()?, name: pool.name_any() }))
                .collect();
            let asking = asking.clone();
            async move {
                for pool in concerned {
                    asking.ask(&pool, "budget").await;
                }
            }
        },
    );
    let asking = requests.clone();
    let revisions = watch::into_store(
        client.clone(),
        Some(POOL_LABEL),
        "ControllerRevision",
        instruments.clone(),
        move |revision: ControllerRevision, _| {
            let concerned = watch::pool_of_revision(&revision);
            let asking = asking.clone();
            async move {
                if let Some(pool) = concerned {
                    asking.ask(&pool, "revision").await;
                }
            }
        },
    );
    let gateways = match args.gateways {
        Gateways::Enabled => Some(gateway::watch_all(client, requests, instruments)),
        Gateways::Disabled => None,
    };
    Stores { pools, classes, budgets, revisions, gateways, injection: Arc::new(args.injection()) }
}

/// Serves the webhook until the drain is over.
async fn admit(client: Client, stores: Stores, args: OperatorArgs, instruments: Instruments, drain: Drain) {
    tokio::select! {
        (server, _keeping) = webhook(client, stores, args, instruments) => server.run(drain).await,
        () = drain.over() => {}
    }
}

/// The webhook, as soon as it can be served, and the task that keeps its certificate alive.
async fn webhook(
    client: Client,
    stores: Stores,
    args: OperatorArgs,
    instruments: Instruments,
) -> (HttpServer, JoinSet<()>) {
    instruments.readiness.wait(CERTIFICATE_GATE, "no certificate yet");
    instruments.readiness.wait(LISTENER_GATE, "no certificate yet");
    let settings = CertificateSettings::for_service(
        &args.namespace,
        &args.webhook_service,
        &args.webhook_secret,
        &args.webhook_configuration,
    );
    let keeper = loop {
        match CertificateKeeper::start(client.clone(), settings.clone()).await {
            Ok(keeper) => break keeper,
            Err(error) => {
                let error = crate::causes::with_causes(&error);
                tracing::warn!(error, "no certificate for the webhook; trying again");
                instruments.readiness.wait(CERTIFICATE_GATE, &format!("no certificate: {error}"));
                sleep(CERTIFICATE_RETRY).await;
            }
        }
    };
    let tls = keeper.tls();
    let (readiness, metrics) = (instruments.readiness.clone(), instruments.metrics.clone());
    let mut keeping = JoinSet::new();
    keeping.spawn(keeper.run(move |standing| match standing {
        CertificateTrust::Trusted(serving) => {
            metrics.certificate_ends(serving.not_after.as_second());
            readiness.open(CERTIFICATE_GATE);
        }
        CertificateTrust::Untrusted(error) => readiness.wait(CERTIFICATE_GATE, &crate::causes::with_causes(error)),
    }));
    let revisions = stores.revisions.clone();
    let stable = move |pool: &ConnectionPool| revision::stable(pool, &revisions.state());
    let lookup = ClusterLookup::new(client, stores.pools, stores.classes, stable);
    let metrics = instruments.metrics.clone();
    let routes = server::router(lookup, args.injection(), move |admitted| metrics.admitted(admitted));
    let listener = listen(args.webhook_bind, &instruments.readiness).await;
    (HttpServer::new(listener, routes, server::BOUNDS).with_tls(tls), keeping)
}

/// Takes the webhook's address. While it cannot be had this replica is not ready, so that pods are sent to others.
async fn listen(address: SocketAddr, readiness: &Readiness) -> TcpListener {
    let mut retry = SHORTEST_LISTEN_RETRY;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                readiness.open(LISTENER_GATE);
                return listener;
            }
            Err(error) => {
                let why = format!(
                    "the webhook cannot listen on {address} (--webhook-bind): {error}; free the address or choose another"
                );
                tracing::error!("{why}; trying again");
                readiness.wait(LISTENER_GATE, &why);
                sleep(retry).await;
                retry = (retry * 2).min(LONGEST_LISTEN_RETRY);
            }
        }
    }
}

/// Waits for the lease, has the workers work while it is held, and says why it was lost.
async fn lead(
    candidate: &leader::Candidate,
    stores: &Stores,
    (requests, mut requested): (LookRequests, mpsc::Receiver<PoolKey>),
    args: &OperatorArgs,
    servers: Option<Servers>,
    instruments: &Instruments,
    workers: &mut Workers,
) -> OperatorError {
    let acquiring = candidate.acquire();
    tokio::pin!(acquiring);
    // whoever does not lead looks at no pool; they must not fill up meanwhile
    let lease = loop {
        tokio::select! {
            lease = &mut acquiring => break lease,
            _ = requested.next() => {}
        }
    };
    let leadership = candidate.leadership();
    instruments.metrics.leader(true);
    tracing::info!(lease = args.lease_name, "this process is the leader");

    let (client, handle) = (workers.client.clone(), workers.handle.clone());
    let pods = Arc::new(PodIndex::default());
    let poller = Arc::new(prove::AgentPoller::default());
    let context = Arc::new(Context {
        client: client.clone(),
        leadership: leadership.clone(),
        stores: stores.clone(),
        pods: pods.clone(),
        poller: poller.clone(),
        writer: apply::Writer::new(client.clone(), leadership, instruments.metrics.clone()),
        events: events::Events::new(client.clone(), args.pod_name.clone()),
        memories: memory::Memories::default(),
        requests: requests.clone(),
        injection: args.injection(),
        tick: args.tick(),
        uninjected_pods: Arc::new(UninjectedPodLister::new(client.clone())),
        replica_failures: Arc::new(ReplicaFailureLister::new(client.clone())),
        metrics: instruments.metrics.clone(),
    });
    {
        let _there = handle.enter();
        // the pods are listed only now, so that what the last leader wrote is in the list
        watch::pods(client, pods, requests.clone(), instruments.clone());
    }
    handle.spawn(poller.run(requests.clone(), instruments.metrics.clone()));
    let of = context.clone();
    workers.begin("the tick", move || tick::run(of, servers));
    workers.begin("what looks at pools", move || async move {
        let budgets = budgets::run(context.clone());
        let classes = classes::ensure(&context.client, &context.writer);
        tokio::join!(classes, budgets, look_at_pools(context.clone(), requested));
    });
    tokio::select! {
        lost = candidate.hold(lease) => OperatorError::Leader(lost),
        _ = workers.threads.join_next() => OperatorError::Idle,
    }
}

/// Looks at the pools that a look is asked for, in turn, at several at once.
async fn look_at_pools(context: Arc<Context>, mut requested: mpsc::Receiver<PoolKey>) {
    // a pool that the store does not have yet would be taken for one that is gone
    if let Err(error) = context.stores.pools.wait_until_ready().await {
        tracing::error!(%error, "the watch of pools has ended");
        return;
    }
    let mut queue = WorkQueue::default();
    let mut looks = FuturesUnordered::new();
    loop {
        while queue.served() < CONCURRENCY
            && let Some(pool) = queue.take()
        {
            let context = context.clone();
            looks.push(async move {
                let again = reconcile::look_at(&pool, &context).await;
                (pool, again)
            });
        }
        let next_due = queue.next_due();
        tokio::select! {
            asked = requested.next() => match asked {
                Some(pool) => queue.ask(pool),
                None => return,
            },
            Some((pool, again)) = looks.next() => queue.done(pool, again, Instant::now()),
            () = sleep_until(next_due.unwrap_or_else(Instant::now)), if next_due.is_some() => queue.wake(Instant::now()),
        }
    }
}
