//! Carrying a plan out: the revision first, then the pods, then what the history limit drops. What cannot be written holds up
//! itself and nothing else: a pod that is refused waits alone, and while a revision cannot be created all pods get their grants.
//!
//! - [`writer`]: the one place that writes, paced and with deadlines.
//! - [`gateway_objects`]: the objects of a pool's gateway.
//! - `pod_change`: what a write changes on a pod, for the log.

pub mod gateway_objects;
mod pod_change;
pub mod writer;

use std::sync::Arc;

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::{pod_change::PodChange, writer::WriteError};
use super::{
    backoff::note,
    context::Context,
    controller_revision,
    decide::BATCH,
    memory::PoolMemory,
    observe::changed_by::{Author, author},
};
use crate::{
    api::ConnectionPool,
    decide::plan::{NewRevision, Plan, PodPatch},
    domain::PoolKey,
};

/// Writes on pods under way at once.
const WRITES_AT_ONCE: usize = 8;

/// What one look wrote on pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// There was nothing to write.
    Nothing,
    /// All that was planned, or all that there was an answer to.
    Everything,
    /// The most urgent; the next look goes on.
    Batch,
}

/// How far it came.
pub struct CarriedOut {
    /// What could be done of the plan.
    pub plan: Plan,
    /// What was written on pods.
    pub wrote: Wrote,
    /// The first failure, a real one before one that another look mends.
    pub error: Option<WriteError>,
}

/// Carries a plan out. What failed is remembered with when to try it again.
pub async fn carry_out(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Arc<Mutex<PoolMemory>>,
    plan: Plan,
) -> CarriedOut {
    let changed_by = match &plan.create {
        Some(new) if !new.is_restored => author(pool, key, context, memory),
        _ => Author::Known(None),
    };
    let is_held = changed_by == Author::Awaited;
    let (plan, not_created) = match (&plan.create, changed_by) {
        // all else goes on, and the next look creates it
        (_, Author::Awaited) => (plan.without_creation(), None),
        (None, Author::Known(_)) => (plan, None),
        (Some(new), Author::Known(who)) => match create(pool, key, context, memory, new, who.as_deref()).await {
            Ok(()) => (plan.created_by(who.as_deref()), None),
            Err(error) => (plan.without_creation(), Some(error)),
        },
    };
    let (wrote, mut errors) = write_pods(key, context, memory, &plan).await;
    errors.splice(0..0, not_created);
    for name in &plan.prune {
        let deleted = context.writer.delete_revision(&key.namespace, name).await;
        note(&mut memory.lock().failure, deleted.as_ref().err());
        match deleted {
            Ok(()) => memory.lock().created.retain(|created| created.name != *name),
            Err(error) => errors.push(error),
        }
    }
    if plan.create.is_none() && !is_held && plan.prune.is_empty() && errors.is_empty() {
        // what could not be created or deleted is not asked for any more, once it was time to try
        let mut memory = memory.lock();
        if memory.failure.as_ref().is_some_and(|retry| retry.is_due(Instant::now())) {
            memory.failure = None;
        }
    }
    let worst = errors.iter().position(WriteError::is_told).unwrap_or(0);
    let error = errors.into_iter().nth(worst);
    CarriedOut { plan, wrote, error }
}

/// Creates a revision; who changed the pool so, as far as that is known.
async fn create(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    new: &NewRevision,
    changed_by: Option<&str>,
) -> Result<(), WriteError> {
    let created = context.writer.create_revision(pool, new, changed_by).await;
    let mut memory = memory.lock();
    note(&mut memory.failure, created.as_ref().err());
    memory.created.push(controller_revision::seen(&created?.into()));
    tracing::info!(pool = %key, revision = new.number, cause = new.cause, changed_by, "revision created");
    Ok(())
}

/// Writes the most urgent pods: what makes room before what grows into it; within either, one slow answer holds up no other pod.
async fn write_pods(
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    plan: &Plan,
) -> (Wrote, Vec<WriteError>) {
    let facts = context.pods.of(key);
    let decided = (plan.report.change.as_ref(), plan.report.conditions.as_slice());
    let batch = &plan.patches[..plan.patches.len().min(BATCH)];
    let (mut is_answered, mut errors) = (false, Vec::new());
    for step in batch.chunk_by(|one, next| one.makes_room() == next.makes_room()) {
        let facts = &facts;
        let outcomes = stream::iter(step).map(|patch| async move {
            let before = facts.iter().find(|pod| pod.uid == patch.uid);
            let change = PodChange::of(patch, before.map(Arc::as_ref), &key.name, decided);
            let outcome = write_pod(key, context, patch, &change).await;
            (patch, outcome)
        });
        let outcomes: Vec<(&PodPatch, Result<(), WriteError>)> =
            outcomes.buffer_unordered(WRITES_AT_ONCE).collect().await;
        for (patch, outcome) in outcomes {
            is_answered |= outcome.as_ref().err().is_none_or(|error| !error.is_doubtful());
            note_pod(&mut memory.lock(), patch, outcome.as_ref().err());
            errors.extend(outcome.err());
        }
        // a server that does not answer will not soon
        if !is_answered {
            break;
        }
    }
    let wrote = match batch.len() {
        0 => Wrote::Nothing,
        some if some < plan.patches.len() && is_answered => Wrote::Batch,
        _ => Wrote::Everything,
    };
    (wrote, errors)
}

/// Writes one pod. Its answer goes into the index at once, and so does the doubt where there is none.
async fn write_pod(key: &PoolKey, context: &Context, patch: &PodPatch, change: &PodChange) -> Result<(), WriteError> {
    let written = context.writer.pod(key, patch).await;
    // what its agent has said was said before; written or not, it is asked again
    if patch.revision.is_some() {
        context.poller.told(key, &patch.uid);
    }
    let pod = match written {
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
    let PodChange { from_share, share, from_granted, granted, seq, from_revision, revision, decision, why } = change;
    tracing::info!(
        pool = %key, pod = patch.name, move_ = ?patch.move_, from_share, share, from_granted, granted, seq, from_revision, revision, decision,
        why, "pod written"
    );
    context.pods.answered(&pod);
    Ok(())
}

/// Remembers how a write on a pod ended.
fn note_pod(memory: &mut PoolMemory, patch: &PodPatch, error: Option<&WriteError>) {
    let mut retry = memory.pod_failures.remove(&patch.uid);
    note(&mut retry, error);
    if let Some(retry) = retry {
        memory.pod_failures.insert(patch.uid.clone(), retry);
    }
}
