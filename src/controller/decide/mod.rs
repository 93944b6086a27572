//! What is to be done for one pool: the pure functions of [`crate::decide`], given what was observed and what is remembered.

pub mod sizing;

use jiff::Timestamp;
use parking_lot::Mutex;

use self::sizing::SizedPool;
use super::{context::Context, memory::PoolMemory, observe, report::metric_labels};
use crate::{
    api::ConnectionPool,
    decide::plan::{self, Plan},
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
    let plan = plan::plan(&observed, memory.progress, snapshot.surroundings.cannot_render.as_deref());
    memory.progress = plan.progress;
    let target = plan.report.recommendation.map(|recommendation| recommendation.target);
    let pods = snapshot.pods.len();
    context.metrics.pool(&metric_labels(key), target, plan.report.share, plan.report.current_size, pods);
    plan
}
