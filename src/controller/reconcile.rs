//! One pool, once: observe, decide, apply, prove, report.

use std::{collections::HashSet, future::ready, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::{Api, Client, runtime::reflector::ObjectRef};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    apply::{WriteError, Writer},
    census::Census,
    events::Events,
    gateway,
    leader::{self, Leadership},
    memory::{Count, Memories, PoolMemory},
    observe::{self, Stores},
    pods::PodIndex,
    prove::Prover,
    queue::Queue,
    revision,
    sizing::{self, Subject},
    status,
    turns::Again,
};
use crate::{
    api::{ConnectionPool, ConnectionPoolStatus, Topology},
    contract::PoolRevision,
    decide::plan::{self, Failure, Observed, Plan, PodPatch},
    domain::PoolKey,
    http::{Metrics, PoolLabels},
    inject::{InjectionSettings, PodPool},
    pooler::pgbouncer::render::cannot_render,
};

/// Look again after this long when somebody else wrote first: the watch brings the news as well.
const AFTER_CONFLICT: Duration = Duration::from_millis(250);
/// Look again this long after a write if nothing else asks for it: a proof does, and usually comes before.
const AFTER_WRITE: Duration = Duration::from_secs(1);
/// Writes on pods in one look at most: between two of them a pod that has just started gets its floor.
const BATCH: usize = 16;
/// Of them under way at once.
const WRITES_AT_ONCE: usize = 8;
/// First pause after a failed change; it doubles each time.
const FIRST_BACKOFF_SECONDS: i64 = 1;
/// Longest pause after a failed change.
const LONGEST_BACKOFF_SECONDS: i64 = 300;

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
    pub prover: Arc<Prover>,
    /// The one place that writes.
    pub writer: Writer,
    /// The one place that publishes events.
    pub events: Events,
    /// What is remembered of the pools.
    pub memories: Memories,
    /// Which pools to look at next.
    pub queue: Queue,
    /// What the operator's configuration says about poolers' containers.
    pub injection: InjectionSettings,
    /// Time between two readings of Prometheus.
    pub tick: Duration,
    /// The pods without a sidecar.
    pub census: Arc<Census>,
    /// Metrics of the operator.
    pub metrics: Metrics,
}

/// Looks at the pool of this name as the store has it now, and says when to look again. One that is gone is forgotten.
pub async fn look_at(key: &PoolKey, context: &Context) -> Again {
    let Some(pool) = context.stores.pools.get(&ObjectRef::new(&key.name).within(&key.namespace)) else {
        forget(key, context);
        return Again::WhenAsked;
    };
    let started = Instant::now();
    let outcome = look(&pool, key, context).await;
    context.metrics.reconciled(started.elapsed(), outcome.as_ref().err().map(category));
    outcome.unwrap_or_else(|error| after_failure(key, &pool, &error, context))
}

/// A pool is gone: its pods keep their last grant, and nobody asks them any more.
fn forget(key: &PoolKey, context: &Context) {
    context.memories.forget(key);
    context.prover.expect(key, &[], &HashSet::new());
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

/// When to look again after a look that failed.
fn after_failure(key: &PoolKey, pool: &ConnectionPool, error: &WriteError, context: &Context) -> Again {
    if error.is_overtaken() || matches!(error, WriteError::NotLeader { .. }) {
        tracing::debug!(pool = %key, %error, "look again");
        return Again::After(AFTER_CONFLICT);
    }
    tracing::warn!(pool = %key, %error, "a change failed");
    let memory = context.memories.of(key, pool);
    let retry_at = memory.lock().failure.as_ref().map(|failure| failure.retry_at);
    let seconds =
        retry_at.map_or(1, |retry_at| retry_at - Timestamp::now().as_second()).clamp(1, LONGEST_BACKOFF_SECONDS);
    Again::After(Duration::from_secs(u64::try_from(seconds).unwrap_or(1)))
}

/// Looks at one pool. What was written before a write that fails stands, and the next look goes on from there.
async fn look(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context) -> Result<Again, WriteError> {
    if !context.pods.is_synced() {
        // counting pods now would find too few, and hand out what others have
        return Ok(Again::After(AFTER_CONFLICT));
    }
    let epoch = context.leadership.epoch_after(|| newest_epoch(context));
    let Some(epoch) = epoch else { return Ok(Again::WhenAsked) };
    if pool.metadata.deletion_timestamp.is_some() {
        return Ok(Again::WhenAsked);
    }
    let memory = context.memories.of(key, pool);
    count_uninjected(pool, key, context, &memory);

    let now = Timestamp::now();
    let plan = observe_and_plan(pool, key, context, &memory, epoch, now);
    let applied = apply(pool, key, context, &memory, &plan).await;
    prove(key, context, &plan);
    note_outcome(&memory, &applied, now.as_second());
    keep_gateway(pool, key, context, &memory).await;
    let told = tell(pool, key, context, &memory, (plan, epoch), now).await;
    let wrote = applied?;
    told?;
    Ok(match wrote {
        Wrote::Nothing => Again::WhenAsked,
        Wrote::Everything => Again::After(AFTER_WRITE),
        Wrote::Batch => Again::After(Duration::ZERO),
    })
}

/// The newest epoch that an operator has written.
fn newest_epoch(context: &Context) -> u64 {
    let pools = context.stores.pools.state();
    let in_status = pools.iter().filter_map(|pool| pool.status.as_ref()?.epoch);
    leader::newest_written(in_status, context.pods.epochs())
}

fn observe_and_plan(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    epoch: u64,
    now: Timestamp,
) -> Plan {
    let facts = context.pods.of(key);
    let mut memory = memory.lock();
    let around = context.stores.around(key, pool, &context.pods, &memory.created);
    if let Ok(effective) = &around.effective {
        sizing::follow_spec(context, Subject { key, pool, effective }, &mut memory, now);
    }
    let pods = observe::pods(facts, &context.prover.proofs(key), &memory);
    let told = memory.told.as_ref().map(|(told, _)| told).or(pool.status.as_ref());
    let gateway =
        gateway::seen(context.stores.gateways.as_ref(), key, pool, around.effective.as_ref().ok(), &memory.gateway);
    let observed = Observed {
        gateway,
        now: now.as_second(),
        epoch,
        pool,
        told,
        effective: around.effective.as_ref(),
        budget: around.budget,
        rival: around.rival,
        pods: &pods,
        uninjected: memory.uninjected.as_ref().and_then(|count| count.found.clone()),
        injection: around.injection.as_ref(),
        revisions: &around.revisions,
        taken_numbers: &around.taken_numbers,
        sizing: memory.sizing.as_ref(),
        failure: memory.failure.as_ref(),
    };
    let plan = plan::plan(&observed, memory.progress, around.cannot_render.as_deref());
    memory.progress = plan.progress;
    let target = plan.report.recommendation.map(|recommendation| recommendation.target);
    context.metrics.pool(&labels(key), target, plan.report.share, plan.report.current_size, pods.len());
    plan
}

/// What one look wrote on pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrote {
    /// There was nothing to write.
    Nothing,
    /// All that was planned.
    Everything,
    /// The most urgent; the next look goes on.
    Batch,
}

/// Carries a plan out.
async fn apply(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    plan: &Plan,
) -> Result<Wrote, WriteError> {
    if let Some(new) = &plan.create {
        let created = context.writer.create_revision(pool, new).await?;
        tracing::info!(pool = %key, revision = new.number, "revision created");
        memory.lock().created.push(revision::seen(&created));
    }
    let decision = plan.report.change.as_ref().map(|change| change.id.as_str()).unwrap_or_default();
    let batch = &plan.patches[..plan.patches.len().min(BATCH)];
    let mut conflict = None;
    // what makes room before what grows into it; within either, one slow answer holds up no other pod
    for step in batch.chunk_by(|one, next| one.makes_room() == next.makes_room()) {
        let outcomes = stream::iter(step).map(|patch| write_pod(key, context, patch, decision));
        let failures: Vec<WriteError> =
            outcomes.buffer_unordered(WRITES_AT_ONCE).filter_map(|outcome| ready(outcome.err())).collect().await;
        // a pod that has changed is looked at again and holds up nobody; a server that does not answer will not soon
        let (conflicts, others): (Vec<_>, Vec<_>) = failures.into_iter().partition(WriteError::is_overtaken);
        if let Some(failure) = others.into_iter().next() {
            return Err(failure);
        }
        conflict = conflict.or(conflicts.into_iter().next());
    }
    for name in &plan.prune {
        context.writer.delete_revision(&key.namespace, name).await?;
        memory.lock().created.retain(|created| created.name != *name);
    }
    match conflict {
        Some(conflict) => Err(conflict),
        None if batch.is_empty() => Ok(Wrote::Nothing),
        None if batch.len() == plan.patches.len() => Ok(Wrote::Everything),
        None => Ok(Wrote::Batch),
    }
}

/// Writes one pod. Its answer goes into the index at once, and so does the doubt where there is none.
async fn write_pod(key: &PoolKey, context: &Context, patch: &PodPatch, decision: &str) -> Result<(), WriteError> {
    let pod = match context.writer.pod(key, patch).await {
        Ok(pod) => pod,
        Err(error) => {
            if let WriteError::Gone { .. } = error {
                context.pods.gone(key, &patch.name, &patch.uid);
            }
            if error.is_doubtful()
                && let Some(granted) = patch.granted
            {
                context.pods.doubt(key, &patch.name, &patch.uid, &patch.resource_version, granted);
            }
            return Err(error);
        }
    };
    let grant = patch.grant.as_ref().and_then(|grant| grant.pools.get(&key.name));
    tracing::info!(
        pool = %key, pod = patch.name, decision,
        move_ = ?patch.move_, share = grant.map(|grant| grant.share), granted = grant.map(|grant| grant.granted),
        seq = grant.map(|grant| grant.seq),
        revision = patch.revision.as_ref().and_then(|document| document.pools.get(&key.name)).map(|pool| pool.revision),
        "pod written"
    );
    context.pods.answered(&pod);
    Ok(())
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
        context.queue.ask(key, "gateway").await;
    }
}

/// Sets what the pods must be seen to run: what was open, and whatever has just been written.
fn prove(key: &PoolKey, context: &Context, plan: &Plan) {
    let open = plan.expected.iter().filter(|expected| expected.is_open).map(|expected| expected.uid.as_str());
    let open: HashSet<&str> = open.chain(plan.patches.iter().map(|patch| patch.uid.as_str())).collect();
    context.prover.expect(key, &context.pods.of(key), &open);
}

/// Remembers a failure for the backoff, and forgets it after a success.
fn note_outcome(memory: &Mutex<PoolMemory>, applied: &Result<Wrote, WriteError>, now: i64) {
    let mut memory = memory.lock();
    match applied {
        Ok(Wrote::Everything | Wrote::Batch) => memory.failure = None,
        Ok(Wrote::Nothing) => {
            // nothing to write is a success only once it was time to try
            if memory.failure.as_ref().is_some_and(|failure| now >= failure.retry_at) {
                memory.failure = None;
            }
        }
        Err(WriteError::Conflict { .. } | WriteError::Gone { .. } | WriteError::NotLeader { .. }) => {}
        Err(error) => {
            let times = memory.failure.as_ref().map_or(0, |failure| failure.times) + 1;
            let pause = FIRST_BACKOFF_SECONDS << times.saturating_sub(1).min(10);
            let retry_at = now + pause.min(LONGEST_BACKOFF_SECONDS);
            memory.failure = Some(Failure { times, retry_at, error: error.to_string() });
        }
    }
}

/// Status and events, from the same plan.
async fn tell(
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
    let (told, at) = match memory.lock().told.clone() {
        Some((told, at)) => (Some(told), at),
        None => (pool.status.clone(), 0),
    };
    let status = ConnectionPoolStatus { epoch: Some(epoch), ..status::status(pool, told.as_ref(), plan.report, now) };
    if !status::is_due(told.as_ref(), &status, now.as_second() - at) {
        return Ok(());
    }
    let pools: Api<ConnectionPool> = Api::namespaced(context.client.clone(), &key.namespace);
    let body = status::body::<ConnectionPool>(&status);
    context.writer.status(&pools, &key.name, &body, format!("status of ConnectionPool {key}")).await?;
    memory.lock().told = Some((status, now.as_second()));
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
    let (census, stores, queue) = (context.census.clone(), context.stores.clone(), context.queue.clone());
    tokio::spawn(async move {
        let outcome = observe::uninjected(&census, &stores, &key, &pool, since).await;
        let is_news = {
            let mut memory = memory.lock();
            memory.is_counting = false;
            let before = memory.uninjected.take();
            let known = before.as_ref().and_then(|count| count.found.clone());
            let found = match outcome {
                Ok(found) => Some(found),
                Err(error) => {
                    tracing::warn!(pool = %key, %error, "the last count stands");
                    known.clone()
                }
            };
            let is_news = before.is_none() || found != known;
            memory.uninjected = Some(Count { found, at: Instant::now(), generation });
            is_news
        };
        if is_news {
            queue.ask(&key, "count").await;
        }
    });
}
