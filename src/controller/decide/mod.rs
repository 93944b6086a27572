//! What is to be done for one pool: the pure functions of [`crate::decide`], given what was observed and what is remembered.

pub mod sizing;

use jiff::Timestamp;
use parking_lot::Mutex;

use self::sizing::SizedPool;
use super::{context::Context, memory::PoolMemory, observe, report::metric_labels};
use crate::{
    api::ConnectionPool,
    decide::{
        plan::{self, Plan},
        rollout::{RevisionId, RolloutMemory},
    },
    domain::PoolKey,
};

/// Writes on pods in one look at most: between two of them a pod that has just started gets its floor.
pub const BATCH: usize = 16;

/// What is to be done for the pool, from everything that is known of it.
pub fn plan(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    epoch: u64,
    now: Timestamp,
) -> Plan {
    let mut memory = memory.lock();
    let snapshot = observe::snapshot(pool, key, context, &mut memory);
    if let Ok(effective) = &snapshot.surroundings.effective {
        sizing::follow_spec(context, SizedPool { key, pool, effective }, &mut memory, now);
    }
    // one more than is written in a look, to know whether another is needed
    let observed = snapshot.observed(pool, &memory, (epoch, now), BATCH + 1);
    let plan = plan::plan(&observed, memory.rollout.as_ref(), snapshot.surroundings.cannot_render.as_deref());
    let before = std::mem::replace(&mut memory.rollout, plan.rollout.clone());
    if let Some(after) = &plan.rollout {
        log_rollout(key, &before.unwrap_or_else(|| RolloutMemory::from_status(pool.status.as_ref())), after);
    }
    for reason in &plan.rollouts_ended {
        context.metrics.rollout_ended(reason);
    }
    let target = plan.report.recommendation.map(|recommendation| recommendation.target);
    let pods = snapshot.pods.len();
    context.metrics.pool(&metric_labels(key), target, plan.report.share, plan.report.current_size, pods);
    plan
}

/// What became of a rollout, as lines of the log: from what to what, why, and what was asked for.
fn log_rollout(key: &PoolKey, before: &RolloutMemory, after: &RolloutMemory) {
    let number = |revision: &Option<RevisionId>| revision.as_ref().map(|revision| revision.number);
    let (from, to) = (number(&before.updated), number(&after.updated));
    if from != to {
        tracing::info!(pool = %key, from, to, stable = number(&after.stable), "another revision is rolled out");
    }
    // what is found worse after its promotion goes back to the one before, and is told below
    let is_demoted = before.stable.as_ref().is_some_and(|stable| after.has_failed(stable));
    if number(&before.stable) != number(&after.stable) && !is_demoted {
        tracing::info!(pool = %key, from = number(&before.stable), to = number(&after.stable), "a revision was promoted");
    }
    if let Some(failure) =
        after.failure.as_ref().filter(|failure| before.failure.as_ref().map(|known| known.at) != Some(failure.at))
    {
        let (reason, why) = (failure.reason.as_str(), failure.message.as_str());
        tracing::warn!(pool = %key, from = failure.revision.number, to = number(&after.stable), reason, why, "a revision failed");
    }
    let tried = |memory: &RolloutMemory| memory.failure.as_ref().and_then(|failure| failure.retried_at);
    if tried(after).is_some() && tried(before) != tried(after) {
        let why = "what its pods are given by reference has changed";
        tracing::info!(pool = %key, revision = to, why, "a failed revision is tried again");
    }
    if let Some(end) = after.promoted.as_ref().and_then(|promoted| promoted.end.as_ref())
        && before.judged_after_promotion().is_some()
    {
        let (outcome, why) = (end.outcome.as_str(), end.message.as_str());
        tracing::info!(pool = %key, revision = to, outcome, why, "the analysis after a promotion ended");
    }
    if let Some(command) = after.command.as_ref().filter(|command| before.command.as_ref() != Some(command)) {
        tracing::info!(pool = %key, command = command.text, refused = command.refused, "something was asked of the rollout");
    }
}
