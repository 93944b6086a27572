//! One pool, once: observe, decide, apply, prove, report.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, Client, runtime::reflector::ObjectRef};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    apply::{WriteError, Writer},
    carry_out::{BATCH, CarriedOut, Wrote, carry_out},
    census::UninjectedPodLister,
    events::Events,
    gateway,
    leader::{self, Leadership},
    memory::{Memories, PoolMemory, UninjectedCount},
    observe::{self, Stores},
    pods::PodIndex,
    prove::AgentPoller,
    queue::LookRequests,
    refusals::ReplicaFailureLister,
    sizing::{self, SizedPool},
    status,
    turns::Requeue,
};
use crate::{
    api::{ConnectionPool, ConnectionPoolStatus, Topology},
    contract::PoolRevision,
    decide::plan::{self, Observed, Plan},
    domain::PoolKey,
    http::{OperatorMetrics, PoolLabels},
    inject::{InjectionSettings, PodPool},
    pooler::pgbouncer::render::cannot_render,
};

/// Look again after this long when somebody else wrote first: the watch brings the news as well.
const AFTER_CONFLICT: Duration = Duration::from_millis(250);
/// Look again this long after a write if nothing else asks for it: a proof does, and usually comes before.
const AFTER_WRITE: Duration = Duration::from_secs(1);

/// Everything that the leader works with.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Whether this process may write.
    pub leadership: Leadership,
    /// The stores of the watches.
    pub stores: Stores,
    /// The injected pods.
    pub pods: Arc<PodIndex>,
    /// What agents said.
    pub poller: Arc<AgentPoller>,
    /// The one place that writes.
    pub writer: Writer,
    /// The one place that publishes events.
    pub events: Events,
    /// What is remembered of the pools.
    pub memories: Memories,
    /// Which pools to look at next.
    pub requests: LookRequests,
    /// What the operator's configuration says about poolers' containers.
    pub injection: InjectionSettings,
    /// Time between two readings of Prometheus.
    pub tick: Duration,
    /// The pods without a sidecar.
    pub uninjected_pods: Arc<UninjectedPodLister>,
    /// The pods that cannot be created.
    pub replica_failures: Arc<ReplicaFailureLister>,
    /// Metrics of the operator.
    pub metrics: OperatorMetrics,
}

/// Looks at the pool of this name as the store has it now, and says when to look again. One that is gone is forgotten.
pub async fn look_at(key: &PoolKey, context: &Context) -> Requeue {
    let Some(pool) = context.stores.pools.get(&ObjectRef::new(&key.name).within(&key.namespace)) else {
        forget(key, context);
        return Requeue::WhenAsked;
    };
    let started = Instant::now();
    let (again, error) = look(&pool, key, context).await;
    context.metrics.reconciled(started.elapsed(), error.as_ref().map(category));
    match error {
        Some(error) if error.is_told() => tracing::warn!(pool = %key, %error, "a change failed"),
        Some(error) => tracing::debug!(pool = %key, %error, "look again"),
        None => {}
    }
    again
}

/// A pool is gone: its pods keep their last grant, and nobody asks them any more.
fn forget(key: &PoolKey, context: &Context) {
    context.memories.forget(key);
    context.poller.expect(key, &[], &HashSet::new());
    context.metrics.pool_gone(&labels(key));
}

/// How metrics name a pool.
fn labels(key: &PoolKey) -> PoolLabels {
    PoolLabels { pool_namespace: key.namespace.clone(), pool: key.name.clone() }
}

/// A stable name of what failed, for metrics.
fn category(error: &WriteError) -> &'static str {
    match error {
        WriteError::Conflict { .. } => "Conflict",
        WriteError::Gone { .. } => "Gone",
        WriteError::Failed { .. } => "WriteFailed",
        WriteError::NoAnswer { .. } => "NoAnswer",
        WriteError::NotLeader { .. } => "NotLeader",
    }
}

/// Looks at one pool. What was written before a write that fails stands, and the next look goes on from there.
async fn look(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context) -> (Requeue, Option<WriteError>) {
    if !context.pods.is_synced() {
        // counting pods now would find too few, and hand out what others have
        return (Requeue::After(AFTER_CONFLICT), None);
    }
    let epoch = context.leadership.epoch_after(|| newest_epoch(context));
    let Some(epoch) = epoch else { return (Requeue::WhenAsked, None) };
    if pool.metadata.deletion_timestamp.is_some() {
        // a finalizer may keep it for as long as it likes: nothing is measured of it any more
        context.metrics.pool_gone(&labels(key));
        return (Requeue::WhenAsked, None);
    }
    let memory = context.memories.of(key, pool);
    count_uninjected(pool, key, context, &memory);

    let now = Timestamp::now();
    let plan = observe_and_plan(pool, key, context, &memory, epoch, now);
    let CarriedOut { plan, wrote, error } = carry_out(pool, key, context, &memory, plan).await;
    prove(key, context, &plan);
    keep_gateway(pool, key, context, &memory).await;
    let reported = report(pool, key, context, &memory, (plan, epoch), now).await;
    let error = error.or(reported.err());
    let retry = memory.lock().next_retry(Instant::now());
    (again(wrote, error.as_ref(), retry.map(|at| at.saturating_duration_since(Instant::now()))), error)
}

/// When to look again if nothing asks for it before; `retry`: until something that failed is tried again.
fn again(wrote: Wrote, error: Option<&WriteError>, retry: Option<Duration>) -> Requeue {
    let more = match wrote {
        Wrote::Nothing => None,
        Wrote::Everything => Some(AFTER_WRITE),
        Wrote::Batch => Some(Duration::ZERO),
    };
    let mended = error.map(|error| if error.is_told() { AFTER_WRITE } else { AFTER_CONFLICT });
    let pause = [more, mended, retry].into_iter().flatten().min();
    pause.map_or(Requeue::WhenAsked, Requeue::After)
}

/// The newest epoch that an operator has written.
fn newest_epoch(context: &Context) -> u64 {
    let pools = context.stores.pools.state();
    let in_status = pools.iter().filter_map(|pool| pool.status.as_ref()?.epoch);
    leader::newest_written(in_status, context.pods.epochs())
}

/// What is to be done for the pool, from everything that is known of it.
pub(super) fn observe_and_plan(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    epoch: u64,
    now: Timestamp,
) -> Plan {
    let facts = context.pods.of(key);
    let mut memory = memory.lock();
    memory.forget_failures_but_of(&facts);
    let failure = memory.failure.as_ref().map(|retry| retry.seen(Instant::now()));
    let around = context.stores.around(key, pool, &context.pods, &memory.created);
    if let Ok(effective) = &around.effective {
        sizing::follow_spec(context, SizedPool { key, pool, effective }, &mut memory, now);
    }
    let pods = observe::pods(facts, &context.poller.answers(key), &memory);
    let status = memory.written_status.as_ref().map(|(status, _)| status).or(pool.status.as_ref());
    let gateway =
        gateway::seen(context.stores.gateways.as_ref(), key, pool, around.effective.as_ref().ok(), &memory.gateway);
    let observed = Observed {
        gateway,
        now: now.as_second(),
        epoch,
        pool,
        status,
        effective: around.effective.as_ref(),
        budget: around.budget,
        rival: around.rival,
        pods: &pods,
        uninjected: memory.uninjected.as_ref().and_then(|count| count.found.clone()),
        uncounted: observe::uncounted(&memory),
        injection: around.injection.as_ref(),
        revisions: &around.revisions,
        taken_numbers: &around.taken_numbers,
        sizing: memory.sizing.as_ref(),
        failure: failure.as_ref(),
        // one more than is written in a look, to know whether another is needed
        most_writes: BATCH + 1,
    };
    let plan = plan::plan(&observed, memory.progress, around.cannot_render.as_deref());
    memory.progress = plan.progress;
    let target = plan.report.recommendation.map(|recommendation| recommendation.target);
    context.metrics.pool(&labels(key), target, plan.report.share, plan.report.current_size, pods.len());
    plan
}

/// Mends the objects of the pool's gateway. A pool that is not accepted keeps what it has.
async fn keep_gateway(pool: &ConnectionPool, key: &PoolKey, context: &Context, memory: &Mutex<PoolMemory>) {
    let (Topology::Gateway, Some(stores)) = (pool.spec.topology, &context.stores.gateways) else { return };
    let Ok(effective) = context.stores.effective(pool) else { return };
    let revision = PoolRevision { revision: 0, settings: effective.settings.clone() };
    let wanted = PodPool { pool, effective: &effective, revision };
    if cannot_render(&wanted.revision.settings, &wanted.injection()).is_some() {
        return;
    }
    let before = std::mem::take(&mut memory.lock().gateway);
    let had = before.trouble().cloned();
    let after = gateway::keep(&context.client, &context.writer, stores, &wanted, &context.injection, before).await;
    let is_news = after.trouble() != had.as_ref();
    memory.lock().gateway = after;
    if is_news {
        context.requests.ask(key, "gateway").await;
    }
}

/// Sets what the pods must be seen to run: what was open, and whatever has just been written.
pub(super) fn prove(key: &PoolKey, context: &Context, plan: &Plan) {
    let written = plan.patches.iter().map(|patch| patch.uid.as_str());
    let open: HashSet<&str> = plan.open.iter().map(String::as_str).chain(written).collect();
    context.poller.expect(key, &context.pods.of(key), &open);
}

/// Status and events, from the same plan.
async fn report(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    (plan, epoch): (Plan, u64),
    now: Timestamp,
) -> Result<(), WriteError> {
    if memory.lock().uninjected.is_none() {
        // a first count is under way: half a status now would turn a condition twice
        return Ok(());
    }
    context.metrics.conditions(&labels(key), &plan.report.conditions);
    for event in plan.events {
        context.events.publish(&context.writer, pool, event).await;
    }
    // what another process wrote was written long ago
    let (last, since) = match memory.lock().written_status.clone() {
        Some((last, at)) => (Some(last), at.elapsed()),
        None => (pool.status.clone(), Duration::MAX),
    };
    let status = ConnectionPoolStatus { epoch: Some(epoch), ..status::status(pool, last.as_ref(), plan.report, now) };
    if !status::is_due(last.as_ref(), &status, since) {
        return Ok(());
    }
    let pools: Api<ConnectionPool> = Api::namespaced(context.client.clone(), &key.namespace);
    let body = status::body::<ConnectionPool>(&status);
    context.writer.status(&pools, &key.name, &body, format!("status of ConnectionPool {key}")).await?;
    memory.lock().written_status = Some((status, Instant::now()));
    Ok(())
}

/// Counts the pods without a sidecar, if that is due, beside everything else: a list may take seconds, and no grant waits for it.
fn count_uninjected(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context, memory: &Arc<Mutex<PoolMemory>>) {
    let generation = pool.metadata.generation.unwrap_or_default();
    let since = {
        let mut memory = memory.lock();
        let Some(since) = observe::count_due(&memory, generation) else { return };
        memory.is_counting = true;
        since
    };
    let (pool, key, memory) = (pool.clone(), key.clone(), memory.clone());
    let (uninjected_pods, replica_failures) = (context.uninjected_pods.clone(), context.replica_failures.clone());
    let (stores, requests) = (context.stores.clone(), context.requests.clone());
    tokio::spawn(async move {
        let outcome = observe::uninjected(&uninjected_pods, &replica_failures, &stores, &key, &pool, since).await;
        let is_news = {
            let mut memory = memory.lock();
            memory.is_counting = false;
            let before = memory.uninjected.take();
            let known = before.as_ref().and_then(|count| count.found.clone());
            let failed_before = before.as_ref().and_then(|count| count.failing.clone());
            let (found, failing) = match outcome {
                Ok(found) => (Some(found), None),
                Err(error) => {
                    let since = failed_before.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                    let error = error.to_string();
                    if failed_before.is_none_or(|(_, before)| before != error) {
                        tracing::warn!(pool = %key, error, "the last count stands for a while; counting again ever more rarely");
                    }
                    (known.clone(), Some((since, error)))
                }
            };
            let is_news = before.is_none() || found != known;
            memory.uninjected = Some(UninjectedCount { found, failing, at: Instant::now(), generation });
            is_news
        };
        if is_news {
            requests.ask(&key, "count").await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_on_at_once_and_what_failed_comes_back_by_itself() {
        let refused = || WriteError::NoAnswer { what: "a pod".to_owned() };
        let conflict = || WriteError::Conflict { what: "a pod".to_owned() };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(again(Wrote::Nothing, None, None), Requeue::WhenAsked);
        assert_eq!(again(Wrote::Nothing, None, seconds(7)), Requeue::After(Duration::from_secs(7)));
        assert_eq!(again(Wrote::Everything, Some(&refused()), seconds(7)), Requeue::After(AFTER_WRITE));
        assert_eq!(
            again(Wrote::Batch, Some(&refused()), seconds(7)),
            Requeue::After(Duration::ZERO),
            "one pod holds up none"
        );
        assert_eq!(again(Wrote::Everything, Some(&conflict()), None), Requeue::After(AFTER_CONFLICT));
    }
}
