//! What only the leader does: it watches the pods, ticks, and looks at pools, for as long as it holds the lease.

use std::sync::Arc;

use futures::{StreamExt, channel::mpsc, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{
    apply::writer::Writer,
    budgets, classes,
    context::Context,
    error::OperatorError,
    judging,
    leader::Candidate,
    look_requests::LookRequests,
    memory::Memories,
    observe::{
        changed_by::Authors,
        pods::PodIndex,
        replica_failures::ReplicaFailureLister,
        stores::Stores,
        uninjected_pods::UninjectedPodLister,
        watch::{self, Instruments},
    },
    options::OperatorArgs,
    prove::AgentPoller,
    reconcile,
    report::events::Events,
    tick,
    work_queue::WorkQueue,
    workers::Workers,
};
use crate::{domain::PoolKey, signals::Servers};

/// Pools that are looked at at once.
const CONCURRENCY: usize = 16;

/// Waits for the lease, has the workers work while it is held, and says why it was lost.
pub async fn lead(
    candidate: &Candidate,
    stores: &Stores,
    (requests, mut requested): (LookRequests, mpsc::Receiver<PoolKey>),
    args: &OperatorArgs,
    servers: Option<Servers>,
    instruments: &Instruments,
    workers: &mut Workers,
) -> OperatorError {
    let acquiring = candidate.acquire();
    tokio::pin!(acquiring);
    // whoever does not lead looks at no pool; what is asked for must not fill up the channel meanwhile
    let lease = loop {
        tokio::select! {
            acquired = &mut acquiring => match acquired {
                Ok(lease) => break lease,
                Err(error) => return OperatorError::Leader(error),
            },
            _ = requested.next() => {}
        }
    };
    let leadership = candidate.leadership();
    instruments.metrics.leader(true);
    tracing::info!(lease = args.lease_name, "this process is the leader");

    let (client, handle) = (workers.client.clone(), workers.handle.clone());
    let pods = Arc::new(PodIndex::default());
    let poller = Arc::new(AgentPoller::default());
    let context = Arc::new(Context {
        client: client.clone(),
        leadership: leadership.clone(),
        stores: stores.clone(),
        pods: pods.clone(),
        poller: poller.clone(),
        writer: Writer::new(client.clone(), leadership, instruments.metrics.clone()),
        events: Events::new(client.clone(), args.pod_name.clone()),
        memories: Memories::default(),
        requests: requests.clone(),
        injection: args.injection(),
        tick: args.tick(),
        uninjected_pods: Arc::new(UninjectedPodLister::new(client.clone())),
        replica_failures: Arc::new(ReplicaFailureLister::new(client.clone())),
        authors: Authors::new(client.clone()),
        metrics: instruments.metrics.clone(),
    });
    {
        let _there = handle.enter();
        // the pods are listed only now, so that what the last leader wrote is in the list
        watch::pods(client, pods, requests.clone(), instruments.clone());
    }
    handle.spawn(poller.run(requests.clone(), instruments.metrics.clone()));
    let of = context.clone();
    let (of_rollouts, judged_by) = (context.clone(), servers.clone().unwrap_or_default());
    workers.begin("the tick", move || tick::run(of, servers));
    workers.begin("what judges rollouts", move || judging::run(of_rollouts, judged_by));
    workers.begin("what looks at pools", move || async move {
        let budgets = budgets::run(context.clone());
        let classes = classes::ensure(&context.client, &context.writer);
        tokio::join!(classes, budgets, look_at_pools(context.clone(), requested));
    });
    tokio::select! {
        lost = candidate.hold(lease) => OperatorError::Leader(lost),
        () = workers.one_ended() => OperatorError::Idle,
    }
}

/// Looks at the pools that a look is asked for, in turn, at several at once.
async fn look_at_pools(context: Arc<Context>, mut requested: mpsc::Receiver<PoolKey>) {
    // a pool that the store does not have yet would be taken for one that is gone, and a revision for one to create anew
    let ready = async {
        context.stores.pools.wait_until_ready().await?;
        context.stores.revisions.wait_until_ready().await
    };
    let mut queue = WorkQueue::default();
    if let Err(error) = queue_until(ready, &mut requested, &mut queue).await {
        tracing::error!(%error, "the watch of pools or of revisions has ended");
        return;
    }
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

/// Takes up what is asked for until this is ready. Whoever fills the stores asks for looks meanwhile, of every pod there is, and would wait
/// for a place for ever: the stores would never be full.
async fn queue_until<T>(
    ready: impl Future<Output = T>,
    requested: &mut mpsc::Receiver<PoolKey>,
    queue: &mut WorkQueue,
) -> T {
    tokio::pin!(ready);
    loop {
        tokio::select! {
            ready = &mut ready => return ready,
            Some(pool) = requested.next() => queue.ask(pool),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::controller::look_requests;

    #[tokio::test]
    async fn the_first_lists_end_however_many_looks_they_ask_for() {
        const PODS: usize = 20_000;
        const POOLS: usize = 10;
        let (requests, mut requested) = look_requests::requests();
        let listed = async {
            for pod in 0..PODS {
                requests.ask(&PoolKey::new("shop", format!("pool-{}", pod % POOLS)), "pod").await;
            }
        };
        let mut queue = WorkQueue::default();
        let ended = timeout(Duration::from_mins(1), queue_until(listed, &mut requested, &mut queue)).await;
        assert!(ended.is_ok(), "they wait for a place that nobody makes");
        let asked = std::iter::from_fn(|| queue.take()).count();
        assert_eq!(asked, POOLS, "of each pool once");
    }
}
