//! The objects of a pool's gateway, mended with each look.

use parking_lot::Mutex;

use crate::{
    api::{ConnectionPool, Topology},
    contract::PoolRevision,
    controller::{context::Context, gateway, memory::PoolMemory},
    domain::PoolKey,
    inject::PodPool,
    pooler::pgbouncer::render::cannot_render,
};

/// Mends the objects of the pool's gateway. A pool that is not accepted keeps what it has.
pub async fn mend(pool: &ConnectionPool, key: &PoolKey, context: &Context, memory: &Mutex<PoolMemory>) {
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
