//! Who changed a pool last, as the API server notes it. The watch leaves that out: it is larger than the pool.
//!
//! It is asked once for each change, beside everything else: no grant and no status waits for the answer. What is to be told with it, and
//! the revision that is to carry it, follow once it is there, or once it is known that it will not come.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{Api, Client, api::ListParams};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::{
    api::{ConnectionPool, FIELD_MANAGER},
    controller::{context::Context, memory::PoolMemory},
    domain::PoolKey,
};

/// Longest wait for it, that for a place included.
const DEADLINE: Duration = Duration::from_secs(2);
/// Whoever has not answered after this long never will.
const LOST: Duration = Duration::from_secs(4);
/// Questions under way at once.
const AT_ONCE: usize = 8;
/// Questions that wait for a place; of changes beyond it nobody is named.
const WAITING: usize = 1024;
/// Longest name that is kept, in bytes.
const NAME_BYTES: usize = 128;

/// Who changed a pool to what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Author {
    /// The API server is being asked; a look is asked for when that is over.
    Awaited,
    /// The field manager: `kubectl-edit`, `argocd-controller`. None where the API server did not say so in time.
    Known(Option<String>),
}

/// What is remembered of asking it of one pool.
#[derive(Clone, Debug)]
pub struct AuthorAsked {
    generation: i64,
    at: Instant,
    author: Author,
}

/// Asks it of all pools, of a few at once.
pub struct Authors {
    client: Client,
    waiting: Arc<Semaphore>,
    asking: Arc<Semaphore>,
}

impl Authors {
    /// Asks there.
    pub fn new(client: Client) -> Self {
        Self { client, waiting: Arc::new(Semaphore::new(WAITING)), asking: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The field manager that changed the pool last, its status and Sluice itself left aside.
    fn ask(&self, key: &PoolKey) -> impl Future<Output = Option<String>> + use<> {
        let pools: Api<ConnectionPool> = Api::namespaced(self.client.clone(), &key.namespace);
        // a list of one: the operator has no right to get one
        let only = ListParams::default().fields(&format!("metadata.name={}", key.name));
        let asking = self.asking.clone();
        let asked = async move {
            let _place = asking.acquire().await.ok()?;
            let found = pools.list_metadata(&only).await.ok()?;
            newest(found.items.into_iter().next()?.metadata.managed_fields?)
        };
        async move { timeout(DEADLINE, asked).await.ok().flatten() }
    }
}

/// Who changed the pool to this generation. Asked at the first call for it.
pub fn author(pool: &ConnectionPool, key: &PoolKey, context: &Context, memory: &Arc<Mutex<PoolMemory>>) -> Author {
    let generation = pool.metadata.generation.unwrap_or_default();
    let place = {
        let mut memory = memory.lock();
        if let Some(asked) = memory.author.as_ref().filter(|asked| asked.generation == generation) {
            let is_lost = asked.author == Author::Awaited && asked.at.elapsed() >= LOST;
            return if is_lost { Author::Known(None) } else { asked.author.clone() };
        }
        let place = context.authors.waiting.clone().try_acquire_owned().ok();
        let author = if place.is_some() { Author::Awaited } else { Author::Known(None) };
        memory.author = Some(AuthorAsked { generation, at: Instant::now(), author });
        place
    };
    let Some(place) = place else { return Author::Known(None) };
    let (key, memory, requests, asked) =
        (key.clone(), memory.clone(), context.requests.clone(), context.authors.ask(key));
    tokio::spawn(async move {
        let who = asked.await;
        drop(place);
        // the pool may have been changed again meanwhile
        if let Some(asked) = memory.lock().author.as_mut().filter(|asked| asked.generation == generation) {
            asked.author = Author::Known(who);
        }
        requests.ask(&key, "who changed it").await;
    });
    Author::Awaited
}

fn newest(entries: Vec<ManagedFieldsEntry>) -> Option<String> {
    let is_somebodys = |entry: &ManagedFieldsEntry| {
        entry.subresource.is_none() && entry.manager.as_ref().is_some_and(|manager| manager != FIELD_MANAGER)
    };
    let newest = entries.into_iter().filter(is_somebodys).max_by_key(|entry| entry.time.as_ref().map(|time| time.0));
    let mut manager = newest?.manager?;
    manager.truncate(manager.floor_char_boundary(NAME_BYTES));
    Some(manager)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_was_whoever_wrote_last_but_for_the_status_and_the_operator() {
        let entry = |manager: &str, subresource: Option<&str>, time: &str| json!({"manager": manager, "subresource": subresource, "time": time, "operation": "Update"});
        let entries = json!([
            entry("kubectl-create", None, "2026-11-28T10:00:00Z"),
            entry("argocd-controller", None, "2026-11-28T12:00:00Z"),
            entry("kubectl-edit", None, "2026-11-28T11:00:00Z"),
            entry("somebody", Some("status"), "2026-11-28T13:00:00Z"),
            entry(FIELD_MANAGER, None, "2026-11-28T14:00:00Z"),
        ]);
        let entries: Vec<ManagedFieldsEntry> = serde_json::from_value(entries).expect("entries");
        assert_eq!(newest(entries).as_deref(), Some("argocd-controller"));
        assert_eq!(newest(Vec::new()), None);
    }
}
