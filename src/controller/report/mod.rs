//! What was decided and what came of it, reported: status, conditions, events and metrics, all from the same plan.
//!
//! - [`status`]: the status of a pool, and when it is worth a write.
//! - [`events`]: events, each once.

pub mod events;
pub mod status;

use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{apply::writer::WriteError, context::Context, memory::PoolMemory};
use crate::{
    api::{ConnectionPool, ConnectionPoolStatus},
    decide::plan::Plan,
    domain::PoolKey,
    http::PoolLabels,
};

/// How metrics name a pool.
pub fn metric_labels(key: &PoolKey) -> PoolLabels {
    PoolLabels { pool_namespace: key.namespace.clone(), pool: key.name.clone() }
}

/// Status and events, from the same plan.
pub async fn report(
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
    context.metrics.conditions(&metric_labels(key), &plan.report.conditions);
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
