//! The shell around `decide`: observe, decide, apply, prove, report.
//!
//! ```text
//! watches (a task each) ──┐                  ┌─▶ pods/status, ControllerRevisions (apply, paced)
//! agents' answers (prove) ┼─▶ queue ─▶ look ─┼─▶ agents to ask (prove)
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
mod revision;
mod sizing;
mod status;
mod tick;
mod turns;
mod watch;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum_server::Handle;
use futures::{StreamExt, channel::mpsc, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{Client, Config, ResourceExt};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use error::OperatorError;
pub use options::{Gateways, OperatorArgs, SidecarUser};

use self::{
    census::Census, observe::Stores, pods::PodIndex, queue::Queue, reconcile::Context, turns::Turns, watch::Vitals,
};
use crate::{
    api::{ConnectionPool, ConnectionPoolClass},
    contract::names::POOL_LABEL,
    domain::PoolKey,
    http::{self, Metrics, Readiness},
    signals::Servers,
    webhook::{
        certificates::{CertificateKeeper, CertificateSettings, Standing},
        lookup::ClusterLookup,
        server,
    },
};

/// Pools that are looked at at once.
const CONCURRENCY: usize = 16;
/// Time between two attempts to get a certificate.
const CERTIFICATE_RETRY: Duration = Duration::from_secs(5);
/// The gate of the webhook.
const WEBHOOK_GATE: &str = "webhook";

/// Runs the operator until SIGTERM or SIGINT, or until something that it cannot do without has ended.
///
/// # Errors
/// [`OperatorError`] names what ended.
pub async fn run(args: OperatorArgs) -> Result<(), OperatorError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signals)?;
    let stop = CancellationToken::new();
    let vitals = Vitals { metrics: Metrics::default(), readiness: Readiness::default() };
    // a file that cannot be read is told of before anything else: waiting does not mend it
    let servers = args.prometheus_config.as_deref().map(Servers::from_file).transpose()?;
    let client = client().await?;

    let (queue, requests) = queue::queue();
    let stores = watch_all(&client, &queue, &args, &vitals);
    let identity = format!("{}_{}", args.pod_name, Timestamp::now().as_millisecond());
    let candidate = leader::Candidate::new(client.clone(), &args.namespace, &args.lease_name, identity);

    let serving = http::serve(args.http_bind, vitals.readiness.clone(), vitals.metrics.clone(), stop.clone());
    let admitting = admit(&client, &stores, &args, &vitals, &stop);
    let leading = lead(&candidate, &client, &stores, (queue, requests), &args, servers, &vitals);

    let outcome = tokio::select! {
        served = serving => served.map_err(OperatorError::Http),
        admitted = admitting => admitted,
        lost = leading => Err(lost),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop.cancel();
    candidate.release().await;
    outcome
}

async fn client() -> Result<Client, OperatorError> {
    let mut config = Config::infer().await.map_err(|source| OperatorError::Config(Box::new(source)))?;
    // retries are ours: kube's own would hold a call for minutes and carry a write past the end of the lease
    config.default_retry = false;
    Client::try_from(config).map_err(|source| OperatorError::Client(Box::new(source)))
}

/// The watches that every replica has. What changes asks for a look at the pools that it concerns.
fn watch_all(client: &Client, queue: &Queue, args: &OperatorArgs, vitals: &Vitals) -> Stores {
    let asking = queue.clone();
    let mut news = watch::PoolNews::default();
    let pools = watch::into_store(client.clone(), None, "ConnectionPool", vitals.clone(), move |pool, presence| {
        let concerned = news.of(&pool, presence);
        let asking = asking.clone();
        async move {
            if let Some(pool) = concerned {
                asking.ask(&pool, "pool").await;
            }
        }
    });
    // an edit of a class is an edit of each pool that names it, or that names none
    let (asking, known) = (queue.clone(), pools.clone());
    let classes = watch::into_store(
        client.clone(),
        None,
        "ConnectionPoolClass",
        vitals.clone(),
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
    let (asking, known) = (queue.clone(), pools.clone());
    let budgets = watch::into_store(
        client.clone(),
        None,
        "ConnectionBudget",
        vitals.clone(),
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
    let asking = queue.clone();
    let revisions = watch::into_store(
        client.clone(),
        Some(POOL_LABEL),
        "ControllerRevision",
        vitals.clone(),
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
        Gateways::Enabled => Some(gateway::watch_all(client, queue, vitals)),
        Gateways::Disabled => None,
    };
    Stores { pools, classes, budgets, revisions, gateways, injection: Arc::new(args.injection()) }
}

/// Serves the webhook for ever, its certificate kept alive.
async fn admit(
    client: &Client,
    stores: &Stores,
    args: &OperatorArgs,
    vitals: &Vitals,
    stop: &CancellationToken,
) -> Result<(), OperatorError> {
    vitals.readiness.wait(WEBHOOK_GATE, "no certificate yet");
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
                vitals.readiness.wait(WEBHOOK_GATE, &format!("no certificate: {error}"));
                sleep(CERTIFICATE_RETRY).await;
            }
        }
    };
    let tls = keeper.tls();
    let (readiness, metrics) = (vitals.readiness.clone(), vitals.metrics.clone());
    let keeping = keeper.run(stop.clone(), move |standing| match standing {
        Standing::Trusted(serving) => {
            metrics.certificate_ends(serving.not_after.as_second());
            readiness.open(WEBHOOK_GATE);
        }
        Standing::Untrusted(error) => readiness.wait(WEBHOOK_GATE, &crate::causes::with_causes(error)),
    });
    let revisions = stores.revisions.clone();
    let stable = move |pool: &ConnectionPool| {
        let objects = revisions.state();
        let own = objects
            .iter()
            .map(AsRef::as_ref)
            .filter(|object: &&ControllerRevision| object.namespace() == pool.namespace());
        revision::stable(pool, own)
    };
    let lookup = ClusterLookup::new(client.clone(), stores.pools.clone(), stores.classes.clone(), stable);
    let handle: Handle<SocketAddr> = Handle::new();
    let metrics = vitals.metrics.clone();
    let serving = server::serve(
        args.webhook_bind,
        tls,
        server::router(lookup, args.injection(), move |admitted| metrics.admitted(admitted)),
        handle,
    );
    let (served, ()) = tokio::join!(serving, keeping);
    served.map_err(OperatorError::Webhook)
}

/// Waits for the lease, works while it is held, and says why it was lost.
async fn lead(
    candidate: &leader::Candidate,
    client: &Client,
    stores: &Stores,
    (queue, mut requests): (Queue, mpsc::Receiver<PoolKey>),
    args: &OperatorArgs,
    servers: Option<Servers>,
    vitals: &Vitals,
) -> OperatorError {
    let acquiring = candidate.acquire();
    tokio::pin!(acquiring);
    // whoever does not lead looks at no pool; the queue must not fill up meanwhile
    let lease = loop {
        tokio::select! {
            lease = &mut acquiring => break lease,
            _ = requests.next() => {}
        }
    };
    let leadership = candidate.leadership();
    vitals.metrics.leader(true);
    tracing::info!(lease = args.lease_name, "this process is the leader");

    // the pods are listed only now, so that what the last leader wrote is in the list
    let pods = Arc::new(PodIndex::default());
    watch::pods(client.clone(), pods.clone(), queue.clone(), vitals.clone());
    let prover = Arc::new(prove::Prover::default());
    tokio::spawn(prover.clone().run(queue.clone(), vitals.metrics.clone()));
    let context = Arc::new(Context {
        client: client.clone(),
        leadership: leadership.clone(),
        stores: stores.clone(),
        pods,
        prover,
        writer: apply::Writer::new(client.clone(), leadership, vitals.metrics.clone()),
        events: events::Events::new(client.clone(), args.pod_name.clone()),
        memories: memory::Memories::default(),
        queue,
        injection: args.injection(),
        tick: args.tick(),
        census: Arc::new(Census::new(client.clone())),
        metrics: vitals.metrics.clone(),
    });
    let working = async {
        tokio::join!(
            classes::ensure(client, &context.writer),
            budgets::run(context.clone()),
            tick::run(context.clone(), servers),
            look_at_pools(context.clone(), requests),
        )
    };
    let ended = tokio::select! {
        lost = candidate.hold(lease) => OperatorError::Leader(lost),
        _ = working => OperatorError::Idle,
    };
    vitals.metrics.leader(false);
    ended
}

/// Looks at the pools of the queue in turn, at several at once.
async fn look_at_pools(context: Arc<Context>, mut requests: mpsc::Receiver<PoolKey>) {
    // a pool that the store does not have yet would be taken for one that is gone
    if let Err(error) = context.stores.pools.wait_until_ready().await {
        tracing::error!(%error, "the watch of pools has ended");
        return;
    }
    let mut turns = Turns::default();
    let mut looks = FuturesUnordered::new();
    loop {
        while turns.served() < CONCURRENCY
            && let Some(pool) = turns.take()
        {
            let context = context.clone();
            looks.push(async move {
                let again = reconcile::look_at(&pool, &context).await;
                (pool, again)
            });
        }
        let next_due = turns.next_due();
        tokio::select! {
            asked = requests.next() => match asked {
                Some(pool) => turns.ask(pool),
                None => return,
            },
            Some((pool, again)) = looks.next() => turns.done(pool, again, Instant::now()),
            () = sleep_until(next_due.unwrap_or_else(Instant::now)), if next_due.is_some() => turns.wake(Instant::now()),
        }
    }
}
