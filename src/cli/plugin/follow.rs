//! Pools as they change: listed once, then watched.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use kube::{
    api::DynamicObject,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::time::{Instant, timeout_at};

use super::{
    cluster::{ClusterAccess, PoolScope, document},
    error::PluginError,
    screen::tell,
    view::document::{PoolDocument, UnreadablePool},
};
use crate::{causes::with_causes, domain::PoolKey};

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolChange {
    /// All of them, by a list.
    Listed,
    /// This one.
    Changed(PoolKey),
    /// This one is gone.
    Deleted(PoolKey),
    /// This one cannot be read.
    Unreadable(UnreadablePool),
    /// The watch failed and is begun again.
    Trouble(String),
    /// The time is over.
    TimeOver,
}

/// What becomes of the one pool that is followed.
#[derive(Clone, Debug)]
pub enum FollowedNext {
    /// It is so now.
    Pool(Box<PoolDocument>),
    /// It is not there.
    Deleted,
    /// The time is over.
    TimeOver,
}

/// Pools that are watched.
pub struct FollowedPools {
    stream: Pin<Box<dyn Stream<Item = watcher::Result<Event<DynamicObject>>> + Send>>,
    listing: BTreeMap<PoolKey, PoolDocument>,
    /// The pools there are.
    pub pools: BTreeMap<PoolKey, PoolDocument>,
    until: Option<Instant>,
}

impl FollowedPools {
    /// Watches the pools of a scope, or one of them; for so long, or for ever where that is zero.
    pub fn new(cluster: &ClusterAccess, scope: &PoolScope, name: Option<&str>, longest: Duration) -> Self {
        let mut config = watcher::Config::default();
        if let Some(selector) = &scope.selector {
            config = config.labels(selector);
        }
        if let Some(name) = name {
            config = config.fields(&format!("metadata.name={name}"));
        }
        let stream = watcher(cluster.pools(scope), config).default_backoff();
        let until = (!longest.is_zero()).then(|| Instant::now() + longest);
        Self { stream: Box::pin(stream), listing: BTreeMap::new(), pools: BTreeMap::new(), until }
    }

    /// What changes next, or nothing within a pause.
    pub async fn next_within(&mut self, pause: Duration) -> Option<PoolChange> {
        let pause = Instant::now() + pause;
        if self.until.is_some_and(|until| until <= pause) {
            return Some(self.next().await);
        }
        timeout_at(pause, self.next()).await.ok()
    }

    /// What changes next.
    pub async fn next(&mut self) -> PoolChange {
        loop {
            let event = match self.until {
                None => self.stream.next().await,
                Some(until) => match timeout_at(until, self.stream.next()).await {
                    Ok(event) => event,
                    Err(_) => return PoolChange::TimeOver,
                },
            };
            let Some(event) = event else { return PoolChange::TimeOver };
            if let Some(change) = self.take(event) {
                return change;
            }
        }
    }

    /// The one pool that is followed, as the next change leaves it. That the watch failed is told beside.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn next_of_one(&mut self) -> Result<FollowedNext, PluginError> {
        loop {
            match self.next().await {
                PoolChange::TimeOver => return Ok(FollowedNext::TimeOver),
                PoolChange::Trouble(words) => tell(&words),
                PoolChange::Unreadable(pool) => return Err(PluginError::Unreadable(pool.words)),
                PoolChange::Listed | PoolChange::Changed(_) | PoolChange::Deleted(_) => {
                    let pool = self.pools.values().next().cloned();
                    return Ok(pool.map_or(FollowedNext::Deleted, |pool| FollowedNext::Pool(Box::new(pool))));
                }
            }
        }
    }

    fn take(&mut self, event: watcher::Result<Event<DynamicObject>>) -> Option<PoolChange> {
        match event {
            Err(error) => Some(PoolChange::Trouble(with_causes(&error))),
            Ok(Event::Init) => {
                self.listing.clear();
                None
            }
            Ok(Event::InitApply(object)) => match document(&object) {
                Ok(pool) => {
                    self.listing.insert(pool.key(), pool);
                    None
                }
                Err(pool) => Some(PoolChange::Unreadable(pool)),
            },
            Ok(Event::InitDone) => {
                self.pools = std::mem::take(&mut self.listing);
                Some(PoolChange::Listed)
            }
            Ok(Event::Apply(object)) => Some(match document(&object) {
                Ok(pool) => {
                    let key = pool.key();
                    self.pools.insert(key.clone(), pool);
                    PoolChange::Changed(key)
                }
                Err(pool) => PoolChange::Unreadable(pool),
            }),
            Ok(Event::Delete(object)) => {
                let metadata = object.metadata;
                let key = PoolKey::new(metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
                self.pools.remove(&key);
                Some(PoolChange::Deleted(key))
            }
        }
    }
}
