//! The watches: each its own task with its own backoff and its own health.
//!
//! One stream for all of them would starve: while any of them errors, none is polled.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, future::ready};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::error_boundary::InvalidObject,
    runtime::{
        WatchStreamExt,
        reflector::{self, Lookup, ObjectRef, Store},
        watcher::{self, Event},
    },
};

use super::pods::PodIndex;
use crate::{
    api::{ConnectionPool, FREEZE_ANNOTATION, ROLLOUT_ANNOTATION},
    contract::names::POOL_LABEL,
    controller::look_requests::LookRequests,
    domain::PoolKey,
    http::{OperatorMetrics, Readiness},
    objects::{GroupedStore, Kept, Watched, WatchedPod, WatchedRevision},
};

/// Seconds after which the API server ends a watch: load balancers drop what is silent for 240 s.
const WATCH_SECONDS: u32 = 200;

/// Objects in one page of a list. A page is held as text, twice for a moment, and an object may have more than a megabyte of it: whoever
/// may create pods of that size may create fifty.
const PAGE: u32 = 16;

/// What a watch tells of its health.
#[derive(Clone)]
pub struct Instruments {
    /// Ages and errors.
    pub metrics: OperatorMetrics,
    /// A gate per watch, open once its first list is in.
    pub readiness: Readiness,
}

fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE)
}

/// Whether an object of which something is told is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    There,
    /// It is gone.
    Gone,
}

/// Which events of pools are news: a pool's own status comes back through its watch.
#[derive(Debug, Default)]
pub struct PoolNews {
    seen: HashMap<PoolKey, KnownPool>,
}

/// What was seen of a pool: its uid and generation, whether it goes, and what is asked of it by annotations, which are no part of the spec.
type KnownPool = (Option<String>, Option<i64>, bool, [Option<String>; 2]);

impl PoolNews {
    /// The pool that this event is news of: a new generation, another request for its rollout or another freeze, a deletion that begins, or that it is gone.
    pub fn of(&mut self, pool: &ConnectionPool, presence: Presence) -> Option<PoolKey> {
        let metadata = &pool.metadata;
        let key = PoolKey { namespace: metadata.namespace.clone().unwrap_or_default(), name: pool.name_any() };
        if presence == Presence::Gone {
            self.seen.remove(&key);
            return Some(key);
        }
        let request = [ROLLOUT_ANNOTATION, FREEZE_ANNOTATION].map(|name| pool.annotations().get(name).cloned());
        let now = (metadata.uid.clone(), metadata.generation, metadata.deletion_timestamp.is_some(), request);
        (self.seen.insert(key.clone(), now.clone()) != Some(now)).then_some(key)
    }
}

/// Watches one kind into a store. `changed` is told of each object that changed or went, also of one that went while nobody watched; it
/// may wait. An object that cannot be read is left
/// aside and named in the log: the others are followed, and of it what was read last stays until it goes.
pub fn into_store<K, F>(
    client: Client,
    labels: Option<&str>,
    name: &'static str,
    instruments: Instruments,
    mut changed: impl FnMut(K, Presence) -> F + Send + 'static,
) -> GroupedStore<K>
where
    K: Watched + Lookup + Clone + std::fmt::Debug + Send + Sync + 'static,
    <K as Resource>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send,
    <K as Lookup>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
    F: Future<Output = ()> + Send,
{
    let (store, writer) = reflector::store::<K>();
    let reader = GroupedStore::new(store.clone());
    let grouped = reader.clone();
    instruments.readiness.wait(name, "no list of the API server yet");
    let config = labels.map_or_else(config, |labels| config().labels(labels));
    let known = store.clone();
    tokio::spawn(async move {
        let objects = watcher::watcher(Api::<Kept<K>>::all(client), config).default_backoff();
        let objects = objects.try_filter_map(move |event| ready(Ok(readable(event, name, &store))));
        let stream = reflector::reflector(writer, objects);
        let mut stream = std::pin::pin!(stream);
        let mut before = Vec::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    instruments.metrics.watched(name);
                    match event {
                        Event::Init => before = known.state(),
                        Event::InitDone => {
                            instruments.readiness.open(name);
                            for gone in not_in(&known, std::mem::take(&mut before)) {
                                grouped.is_gone(&gone);
                                changed((*gone).clone(), Presence::Gone).await;
                            }
                        }
                        Event::Apply(object) | Event::InitApply(object) => {
                            grouped.is_there(&object);
                            changed(object, Presence::There).await;
                        }
                        Event::Delete(object) => {
                            grouped.is_gone(&object);
                            changed(object, Presence::Gone).await;
                        }
                    }
                }
                Err(error) => failed(&instruments, name, &error),
            }
        }
    });
    reader
}

/// Those of which a whole list has not told: they went while nobody watched.
fn not_in<K>(store: &Store<K>, objects: Vec<Arc<K>>) -> impl Iterator<Item = Arc<K>>
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    objects.into_iter().filter(move |object| store.get(&ObjectRef::from_obj(&**object)).is_none())
}

/// The event, unless it is about an object that cannot be read and that is still there.
fn readable<K>(event: Event<Kept<K>>, name: &str, store: &Store<K>) -> Option<Event<K>>
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    let read = |Kept(read): Kept<K>| {
        let left_aside = |invalid: &InvalidObject| {
            tracing::error!(
                watch = name,
                namespace = invalid.metadata.namespace,
                name = invalid.metadata.name,
                error = invalid.error,
                "an object cannot be read and is left aside; correct it"
            );
        };
        read.inspect_err(left_aside).ok()
    };
    match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(object) => read(object).map(Event::InitApply),
        Event::Apply(object) => read(object).map(Event::Apply),
        Event::Delete(Kept(Ok(object))) => Some(Event::Delete(object)),
        Event::Delete(Kept(Err(InvalidObject { metadata, .. }))) => {
            let mut gone = ObjectRef::<K>::new(&metadata.name?);
            gone.namespace = metadata.namespace;
            store.get(&gone).map(|kept| Event::Delete((*kept).clone()))
        }
    }
}

/// Watches the injected pods into the index and asks for a look at the pools that they concern.
pub fn pods(client: Client, index: Arc<PodIndex>, requests: LookRequests, instruments: Instruments) {
    const NAME: &str = "Pod";
    tokio::spawn(async move {
        let pods = Api::<WatchedPod>::all(client);
        let stream = watcher::watcher(pods, config().labels(POOL_LABEL)).default_backoff();
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            let concerned: Vec<PoolKey> = match event {
                Ok(event) => {
                    instruments.metrics.watched(NAME);
                    match event {
                        Event::Init => {
                            index.list_begins();
                            Vec::new()
                        }
                        Event::InitApply(WatchedPod(pod)) | Event::Apply(WatchedPod(pod)) => index.apply(&pod),
                        Event::InitDone => index.list_ends(),
                        Event::Delete(WatchedPod(pod)) => index.delete(&pod).into_iter().collect(),
                    }
                }
                Err(error) => {
                    failed(&instruments, NAME, &error);
                    Vec::new()
                }
            };
            for pool in concerned {
                requests.ask(&pool, "pod").await;
            }
        }
    });
}

fn failed(instruments: &Instruments, name: &'static str, error: &watcher::Error) {
    instruments.metrics.watch_failed(name);
    instruments.readiness.wait(name, &format!("watching failed: {error}"));
    tracing::warn!(watch = name, %error, "watching failed; trying again");
}

/// The pool that a `ControllerRevision` of ours belongs to.
pub fn pool_of_revision(revision: &WatchedRevision) -> Option<PoolKey> {
    Some(PoolKey { namespace: revision.meta().namespace.clone()?, name: revision.pool.clone()? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(
        of: impl Fn(Kept<ConnectionPool>) -> Event<Kept<ConnectionPool>>,
        name: &str,
        reconnected_at: &str,
    ) -> Event<Kept<ConnectionPool>> {
        of(serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": name, "namespace": "shop", "managedFields": [{"manager": "kubectl"}]},
            "spec": {
                "workload": {"selector": {"matchLabels": {"app": "shop"}}},
                "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
                "pgbouncer": {"reconnectedAt": reconnected_at},
            },
        }))
        .unwrap())
    }

    #[test]
    fn of_a_pool_news_is_a_new_generation_or_that_it_goes_and_of_one_that_is_gone_nothing_is_kept() {
        let mut pool: ConnectionPool = serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u", "generation": 1},
            "spec": {
                "workload": {"selector": {"matchLabels": {"app": "shop"}}},
                "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
            },
        }))
        .unwrap();
        let mut news = PoolNews::default();
        let key = Some(PoolKey::new("shop", "orders"));
        assert_eq!(news.of(&pool, Presence::There), key);
        assert_eq!(news.of(&pool, Presence::There), None, "its status was written");
        pool.annotations_mut().insert(ROLLOUT_ANNOTATION.to_owned(), "promote 7".to_owned());
        assert_eq!(news.of(&pool, Presence::There), key, "somebody asks something of its rollout");
        pool.annotations_mut().insert(FREEZE_ANNOTATION.to_owned(), "2026-12-01T06:00:00Z the sale".to_owned());
        assert_eq!(news.of(&pool, Presence::There), key, "somebody freezes it");
        assert_eq!(news.of(&pool, Presence::There), None);
        pool.metadata.generation = Some(2);
        assert_eq!(news.of(&pool, Presence::There), key);
        assert_eq!(news.of(&pool, Presence::Gone), key, "as it was before it went");
        assert!(news.seen.is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_stands_in_no_others_way_and_what_was_read_of_it_stays_until_it_goes() {
        const READABLE: &str = "2026-11-29T12:00:00Z";
        const NOT: &str = "9999-12-31T23:59:59Z";
        let (store, mut writer) = reflector::store::<ConnectionPool>();
        let names = || {
            let mut names: Vec<String> = store.state().iter().map(|pool| pool.name_any()).collect();
            names.sort();
            names
        };
        let mut take = |event| {
            if let Some(event) = readable(event, "ConnectionPool", &store) {
                writer.apply_watcher_event(&event);
            }
        };
        take(Event::Init);
        take(event(Event::InitApply, "odd-from-the-start", NOT));
        take(event(Event::InitApply, "orders", READABLE));
        take(event(Event::InitApply, "stock", READABLE));
        take(Event::InitDone);
        assert_eq!(names(), ["orders", "stock"]);
        take(event(Event::Apply, "stock", NOT));
        assert_eq!(names(), ["orders", "stock"], "what was read last stays");
        take(event(Event::Delete, "stock", NOT));
        take(event(Event::Delete, "odd-from-the-start", NOT));
        assert_eq!(names(), ["orders"]);
    }

    #[test]
    fn what_went_while_nobody_watched_is_what_the_next_list_does_not_tell_of() {
        let (store, mut writer) = reflector::store::<ConnectionPool>();
        let mut list = |names: &[&str]| {
            let before = store.state();
            let mut take = |event| {
                if let Some(event) = readable(event, "ConnectionPool", &store) {
                    writer.apply_watcher_event(&event);
                }
            };
            take(Event::Init);
            for name in names {
                take(event(Event::InitApply, name, "2026-11-29T12:00:00Z"));
            }
            take(Event::InitDone);
            not_in(&store, before).map(|gone| gone.name_any()).collect::<Vec<_>>()
        };
        assert_eq!(list(&["orders", "stock"]), Vec::<String>::new());
        assert_eq!(list(&["orders", "carts"]), ["stock"]);
    }
}
