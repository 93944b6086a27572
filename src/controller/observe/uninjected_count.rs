//! The pods of a pool that have no sidecar, counted from time to time, and those that cannot be created.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    namespace_lists::ListSince,
    replica_failures::ReplicaFailureLister,
    stores::Stores,
    uninjected_pods::{PoolUninjected, UninjectedListError, UninjectedPodLister},
};
use crate::{
    api::ConnectionPool,
    controller::{
        context::Context,
        memory::{PoolMemory, UninjectedCount},
    },
    decide::plan::Uninjected,
    domain::PoolKey,
};

/// Pods without a sidecar are counted anew after this long.
const COUNT_EVERY: Duration = Duration::from_mins(1);
/// And after this long while there are any: their restart should show.
const COUNT_AGAIN: Duration = Duration::from_secs(10);
/// While counts fail, the last one that did not stands for this long.
const COUNT_STANDS: Duration = Duration::from_mins(3);

/// Counts the pods without a sidecar, if that is due, beside everything else: a list may take seconds, and no grant waits for it.
pub fn renew(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context, memory: &Arc<Mutex<PoolMemory>>) {
    let generation = pool.metadata.generation.unwrap_or_default();
    let since = {
        let mut memory = memory.lock();
        let Some(since) = count_due(&memory, generation) else { return };
        memory.is_counting = true;
        since
    };
    let (pool, key, memory) = (pool.clone(), key.clone(), memory.clone());
    let (uninjected_pods, replica_failures) = (context.uninjected_pods.clone(), context.replica_failures.clone());
    let (stores, requests) = (context.stores.clone(), context.requests.clone());
    tokio::spawn(async move {
        let outcome = count(&uninjected_pods, &replica_failures, &stores, &key, &pool, since).await;
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

/// Whether the pods without a sidecar are to be counted again, and how new the news must be.
fn count_due(memory: &PoolMemory, generation: i64) -> Option<ListSince> {
    let since = match &memory.uninjected {
        Some(count) if count.generation == generation => {
            let changes = |found: &Uninjected| found.pods > 0 || found.refused.is_some();
            let every = if count.found.as_ref().is_none_or(changes) { COUNT_AGAIN } else { COUNT_EVERY };
            (Instant::now() - count.at >= every).then_some(ListSince::Lately)
        }
        _ => Some(ListSince::Now),
    };
    since.filter(|_| !memory.is_counting)
}

/// Why the pods without a sidecar are not known: no count has succeeded, or none for longer than the last one stands.
pub fn why_unknown(memory: &PoolMemory) -> Option<&str> {
    let count = memory.uninjected.as_ref()?;
    let (since, why) = count.failing.as_ref()?;
    (count.found.is_none() || since.elapsed() >= COUNT_STANDS).then_some(why.as_str())
}

/// The pods that belong to the pool and have no sidecar, and those that cannot be created.
///
/// # Errors
/// [`UninjectedListError`].
async fn count(
    uninjected_pods: &UninjectedPodLister,
    replica_failures: &ReplicaFailureLister,
    stores: &Stores,
    key: &PoolKey,
    pool: &ConnectionPool,
    since: ListSince,
) -> Result<Uninjected, Arc<UninjectedListError>> {
    if pool.selector().is_none() {
        // a gateway's pods are made with their pooler
        return Ok(Uninjected::default());
    }
    let bare = uninjected_pods.of(&key.namespace, since).await?;
    let rivals = stores.pools_of(&key.namespace);
    let PoolUninjected { pods, owners } = bare.of_pool(&key.name, &rivals);
    let refused = replica_failures.of(&key.namespace).await.of_pool(&key.name, &rivals);
    // that there are none cannot be told from a part of them
    if pods == 0 && !bare.is_whole {
        return Err(Arc::new(UninjectedListError::TooMany { namespace: key.namespace.clone() }));
    }
    Ok(Uninjected { pods, owners, refused })
}
