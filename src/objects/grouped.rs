//! The store of a watch, and which of its objects belong together.
//!
//! A store has all objects of a kind, of all namespaces. Whoever looked through all of them for those of one pool, at each look at each of
//! many pools and at each admission, would take time by the square of what there is: and anybody may create some.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Deref,
    sync::Arc,
};

use kube::{
    ResourceExt,
    runtime::{
        reflector::{self, Lookup, ObjectRef, Store},
        watcher::Event,
    },
};
use parking_lot::RwLock;

use super::Watched;

/// A namespace, and the group in it.
type Group = (String, String);

/// Names by group, and where each stands.
#[derive(Default)]
struct Names {
    of: HashMap<Group, BTreeSet<String>>,
    group: HashMap<(String, String), String>,
}

impl Names {
    fn put<K: Watched>(&mut self, object: &K) {
        let (namespace, name) = (ResourceExt::namespace(object).unwrap_or_default(), object.name_any());
        let group = object.group_in_namespace();
        self.take(&namespace, &name);
        self.of.entry((namespace.clone(), group.clone())).or_default().insert(name.clone());
        self.group.insert((namespace, name), group);
    }

    fn take(&mut self, namespace: &str, name: &str) {
        let Some(group) = self.group.remove(&(namespace.to_owned(), name.to_owned())) else { return };
        let key = (namespace.to_owned(), group);
        if let Some(names) = self.of.get_mut(&key) {
            names.remove(name);
            if names.is_empty() {
                self.of.remove(&key);
            }
        }
    }
}

/// A store; cheap to clone.
pub struct GroupedStore<K>
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    store: Store<K>,
    names: Arc<RwLock<Names>>,
}

impl<K> Clone for GroupedStore<K>
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), names: self.names.clone() }
    }
}

impl<K> Deref for GroupedStore<K>
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    type Target = Store<K>;

    fn deref(&self) -> &Store<K> {
        &self.store
    }
}

impl<K> GroupedStore<K>
where
    K: Watched + Lookup + Clone + 'static,
    <K as Lookup>::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    /// Of a store that somebody fills.
    pub fn new(store: Store<K>) -> Self {
        Self { store, names: Arc::default() }
    }

    /// One that has these objects, and that nobody fills: for rehearsals.
    pub fn of_these(objects: impl IntoIterator<Item = K>) -> Self {
        let (store, mut writer) = reflector::store();
        let grouped = Self::new(store);
        for object in objects {
            grouped.is_there(&object);
            writer.apply_watcher_event(&Event::Apply(object));
        }
        grouped
    }

    /// An object is there, or has changed.
    pub fn is_there(&self, object: &K) {
        self.names.write().put(object);
    }

    /// An object is gone.
    pub fn is_gone(&self, object: &K) {
        self.names.write().take(&ResourceExt::namespace(object).unwrap_or_default(), &object.name_any());
    }

    /// The objects of one group of one namespace, by their names.
    pub fn of(&self, namespace: &str, group: &str) -> Vec<Arc<K>> {
        let names: Vec<String> = {
            let names = self.names.read();
            let of_group = names.of.get(&(namespace.to_owned(), group.to_owned()));
            of_group.into_iter().flatten().cloned().collect()
        };
        names.iter().filter_map(|name| self.store.get(&ObjectRef::new(name).within(namespace))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::WatchedRevision;

    fn revision(namespace: &str, pool: &str, number: u64) -> WatchedRevision {
        let metadata =
            json!({"name": format!("{pool}-{number}"), "namespace": namespace, "labels": {"sluice.dev/pool": pool}});
        serde_json::from_value(json!({"metadata": metadata, "revision": number})).expect("a revision")
    }

    fn names(store: &GroupedStore<WatchedRevision>, namespace: &str, pool: &str) -> Vec<String> {
        store.of(namespace, pool).iter().map(|revision| revision.name_any()).collect()
    }

    #[test]
    fn what_belongs_to_one_pool_is_found_without_a_look_at_what_others_have() {
        let others = (0..50).map(|number| revision("other", "shop", number));
        let own = [revision("ns", "shop", 1), revision("ns", "shop", 2), revision("ns", "cart", 1)];
        let store = GroupedStore::of_these(others.chain(own));
        assert_eq!(names(&store, "ns", "shop"), ["shop-1", "shop-2"]);
        assert_eq!(names(&store, "ns", "cart"), ["cart-1"]);
        assert!(names(&store, "ns", "none").is_empty());
    }

    #[test]
    fn an_object_that_goes_or_comes_to_another_pool_is_found_where_it_is_and_of_what_is_gone_nothing_is_kept() {
        let store = GroupedStore::of_these([revision("ns", "shop", 1), revision("ns", "shop", 2)]);
        let mut moved = revision("ns", "shop", 1);
        moved.pool = Some("cart".to_owned());
        store.is_there(&moved);
        assert_eq!(names(&store, "ns", "shop"), ["shop-2"]);
        assert_eq!(names(&store, "ns", "cart"), ["shop-1"]);
        store.is_gone(&moved);
        store.is_gone(&revision("ns", "shop", 2));
        let kept = store.names.read();
        assert!(kept.of.is_empty() && kept.group.is_empty());
    }
}
