//! The watches: each its own task with its own backoff and its own health.
//!
//! One stream for all of them would starve: while any of them errors, none is polled.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Lookup, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;

use super::{
    lean::{self, Lean},
    pods::PodIndex,
    queue::Queue,
};
use crate::{
    contract::names::POOL_LABEL,
    http::{Metrics, Readiness},
    signals::PoolKey,
};

/// Seconds after which the API server ends a watch: load balancers drop what is silent for 240 s.
const WATCH_SECONDS: u32 = 200;

/// Objects in one page of a list: a page is held as text and decoded at once, and the memory that the first list of many pods
/// takes is kept for ever.
const PAGE: u32 = 50;

/// What a watch tells of its health.
#[derive(Clone)]
pub struct Vitals {
    /// Ages and errors.
    pub metrics: Metrics,
    /// A gate per watch, open once its first list is in.
    pub readiness: Readiness,
}

fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE)
}

/// Watches one kind into a store. `changed` is told of each object that changed; it may wait.
pub fn into_store<K, F>(
    client: Client,
    labels: Option<&str>,
    name: &'static str,
    vitals: Vitals,
    mut changed: impl FnMut(K) -> F + Send + 'static,
) -> Store<K>
where
    K: Resource + Lookup + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    <K as Resource>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send,
    <K as Lookup>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
    F: Future<Output = ()> + Send,
{
    let (reader, writer) = reflector::store::<K>();
    vitals.readiness.wait(name, "no list of the API server yet");
    let config = labels.map_or_else(config, |labels| config().labels(labels));
    tokio::spawn(async move {
        let objects = watcher::watcher(Api::<Lean<K>>::all(client), config).default_backoff().map_ok(lean::unwrapped);
        let stream = reflector::reflector(writer, objects);
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    vitals.metrics.watched(name);
                    match event {
                        Event::InitDone => vitals.readiness.open(name),
                        Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => {
                            changed(object).await;
                        }
                        Event::Init => {}
                    }
                }
                Err(error) => failed(&vitals, name, &error),
            }
        }
    });
    reader
}

/// Watches the injected pods into the index and asks for a look at the pools that they concern.
pub fn pods(client: Client, index: Arc<PodIndex>, queue: Queue, vitals: Vitals) {
    const NAME: &str = "Pod";
    tokio::spawn(async move {
        let pods = Api::<Lean<Pod>>::all(client);
        let stream = watcher::watcher(pods, config().labels(POOL_LABEL)).default_backoff().map_ok(lean::unwrapped);
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            let concerned: Vec<PoolKey> = match event {
                Ok(event) => {
                    vitals.metrics.watched(NAME);
                    match event {
                        Event::Init => {
                            index.list_begins();
                            Vec::new()
                        }
                        Event::InitApply(pod) | Event::Apply(pod) => index.apply(&pod),
                        Event::InitDone => index.list_ends(),
                        Event::Delete(pod) => index.delete(&pod).into_iter().collect(),
                    }
                }
                Err(error) => {
                    failed(&vitals, NAME, &error);
                    Vec::new()
                }
            };
            for pool in concerned {
                queue.ask(&pool, "pod").await;
            }
        }
    });
}

fn failed(vitals: &Vitals, name: &'static str, error: &watcher::Error) {
    vitals.metrics.watch_failed(name);
    vitals.readiness.wait(name, &format!("watching failed: {error}"));
    tracing::warn!(watch = name, %error, "watching failed; trying again");
}

/// The pool that a `ControllerRevision` of ours belongs to.
pub fn pool_of_revision(revision: &ControllerRevision) -> Option<PoolKey> {
    let name = revision.labels().get(POOL_LABEL)?.clone();
    Some(PoolKey { namespace: revision.metadata.namespace.clone()?, name })
}
