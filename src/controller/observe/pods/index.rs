//! The injected pods by pool, as the watch tells of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;

use super::facts;
use crate::{
    contract::{Injection, RevisionDocument},
    controller::resource_version::is_older,
    decide::plan::{Annotation, PodFacts},
    domain::PoolKey,
};

/// Labels of pods: many have the same.
type Labels = Arc<BTreeMap<String, String>>;

/// Where a pod stands.
struct Entry {
    /// Shared by all pods of the pool.
    pool: Arc<PoolKey>,
    labels: Labels,
}

/// The pods of one pool.
#[derive(Default)]
struct Members {
    pods: BTreeMap<String, Arc<PodFacts>>,
    /// Their labels, and how many have them: another pool may select them too.
    labels: BTreeMap<Labels, u32>,
    /// What most of them have alike, kept once.
    injections: Alike<Injection>,
    revisions: Alike<RevisionDocument>,
}

/// Values that are equal for many pods, kept once for all of them: of a thousand pools they would be most of what is kept.
struct Alike<T>(Vec<Arc<T>>);

/// Different values of one pool that are shared; more of them at once than a rollout leaves are kept one by one.
const ALIKE: usize = 8;

impl<T> Default for Alike<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Alike<T> {
    /// Puts the value that is kept already in the place of one that is equal.
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.0.iter().find(|known| **known == *value) {
            *value = known.clone();
            return;
        }
        // those that no pod has any more go first
        self.0.retain(|known| Arc::strong_count(known) > 1);
        if self.0.len() < ALIKE {
            self.0.push(value.clone());
        }
    }
}

/// Namespace and name of a pod: another one may take it.
pub(super) type PodName = (String, String);

/// What has happened since a list began.
#[derive(Default)]
pub(super) struct List {
    /// The pods that it has mentioned.
    mentioned: HashSet<PodName>,
    /// Those of which our own writes have said something since.
    pub(super) answered: HashSet<PodName>,
}

#[derive(Default)]
pub(super) struct Inner {
    /// By namespace and name of the pod.
    pods: HashMap<PodName, Entry>,
    pools: HashMap<Arc<PoolKey>, Members>,
    /// A list that has begun and not ended.
    pub(super) list: Option<List>,
    synced: bool,
}

/// The index. All methods are short and never wait.
#[derive(Default)]
pub struct PodIndex {
    pub(super) inner: RwLock<Inner>,
}

impl PodIndex {
    /// A list begins: what it does not mention is gone.
    pub fn list_begins(&self) {
        self.inner.write().list = Some(List::default());
    }

    /// A list has ended. Returns the pools that lost pods by it.
    pub fn list_ends(&self) -> Vec<PoolKey> {
        let mut inner = self.inner.write();
        inner.synced = true;
        let Some(List { mentioned, .. }) = inner.list.take() else { return Vec::new() };
        let gone: Vec<PodName> = inner.pods.keys().filter(|pod| !mentioned.contains(*pod)).cloned().collect();
        gone.iter().filter_map(|pod| inner.remove(pod)).collect()
    }

    /// True once a whole list was taken in: before, counting pods would find too few.
    pub fn is_synced(&self) -> bool {
        self.inner.read().synced
    }

    /// Takes in a pod that the watch tells of. Returns the pools that it concerns.
    ///
    /// What a list says counts, whatever was known before: it was read after it. Versions would not tell, for they begin anew
    /// below those that were seen when etcd was restored from a backup. Only the answers to our own writes may be newer than a list
    /// that is being read.
    pub fn apply(&self, pod: &Pod) -> Vec<PoolKey> {
        let key = key_of(pod);
        let mut inner = self.inner.write();
        let was_answered = inner.list.as_mut().map(|list| {
            list.mentioned.insert(key.clone());
            list.answered.contains(&key)
        });
        if let Some(known) = inner.facts(&key) {
            let is_older = is_older(pod.metadata.resource_version.as_deref(), Some(&known.resource_version));
            // of another pod of this name: its predecessor's last words
            let is_the_same = Some(&*known.uid) == pod.metadata.uid.as_deref();
            let is_superseded = match was_answered {
                None => is_older,
                Some(was_answered) => is_older && is_the_same && was_answered,
            };
            if is_superseded {
                return Vec::new();
            }
        }
        inner.take_in(key, pod)
    }

    /// A pod is gone. Returns the pool that it belonged to.
    pub fn delete(&self, pod: &Pod) -> Option<PoolKey> {
        let key = key_of(pod);
        let mut inner = self.inner.write();
        let same = inner.facts(&key).is_some_and(|known| Some(&*known.uid) == pod.metadata.uid.as_deref());
        if same { inner.remove(&key) } else { None }
    }

    /// The pods of a pool.
    pub fn of(&self, pool: &PoolKey) -> Vec<Arc<PodFacts>> {
        let inner = self.inner.read();
        inner.pools.get(pool).map(|members| members.pods.values().cloned().collect()).unwrap_or_default()
    }

    /// All pods by their names, each with its pool.
    pub fn names(&self) -> Vec<(Arc<PoolKey>, String)> {
        let inner = self.inner.read();
        inner.pods.iter().map(|((_, name), entry)| (entry.pool.clone(), name.clone())).collect()
    }

    /// The epochs of all grants that say something.
    pub fn epochs(&self) -> Vec<u64> {
        let inner = self.inner.read();
        let pods = inner.pools.values().flat_map(|members| members.pods.values());
        let grants = pods.filter_map(|pod| pod.grant.last_known());
        grants.filter(|grant| grant.pools.values().any(|grant| grant.seq > 0)).map(|grant| grant.epoch).collect()
    }

    /// Which other pools of the namespace have pods with labels that `selects` picks, and how many.
    pub fn others(&self, pool: &PoolKey, selects: impl Fn(&BTreeMap<String, String>) -> bool) -> BTreeMap<String, u32> {
        let inner = self.inner.read();
        let mut others = BTreeMap::new();
        for (other, members) in &inner.pools {
            if other.namespace != pool.namespace || other.name == pool.name {
                continue;
            }
            let picked: u32 = members.labels.iter().filter(|(labels, _)| selects(labels)).map(|(_, pods)| pods).sum();
            if picked > 0 {
                others.insert(other.name.clone(), picked);
            }
        }
        others
    }
}

impl Inner {
    /// What is known of a pod.
    pub(super) fn facts(&self, pod: &PodName) -> Option<&PodFacts> {
        let members = self.pools.get(&self.pods.get(pod)?.pool)?;
        members.pods.get(&pod.1).map(AsRef::as_ref)
    }

    /// The same, to be changed.
    pub(super) fn facts_mut(&mut self, pod: &PodName) -> Option<&mut PodFacts> {
        let members = self.pools.get_mut(&self.pods.get(pod)?.pool)?;
        members.pods.get_mut(&pod.1).map(Arc::make_mut)
    }

    /// Takes in a pod as it is now, whatever was known of it. Returns the pools that it concerns.
    pub(super) fn take_in(&mut self, key: PodName, pod: &Pod) -> Vec<PoolKey> {
        let Some((pool, mut facts)) = facts::read(pod) else { return self.remove(&key).into_iter().collect() };
        if let Some(known) = self.facts(&key).filter(|known| known.uid == facts.uid) {
            facts.uid = known.uid.clone();
            remember(&mut facts.grant, &known.grant);
            remember(&mut facts.revision, &known.revision);
            if facts.resource_version == known.resource_version {
                facts.doubtful_granted = known.doubtful_granted;
            }
        }
        let mut concerned: Vec<PoolKey> = self.remove(&key).filter(|before| *before != pool).into_iter().collect();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        self.insert(key, pool.clone(), labels, facts);
        concerned.push(pool);
        concerned
    }

    /// Takes in a pod that is not in the index.
    fn insert(&mut self, pod: PodName, pool: PoolKey, labels: BTreeMap<String, String>, mut facts: PodFacts) {
        let known = self.pools.get_key_value(&pool).map(|(known, _)| known.clone());
        let pool = known.unwrap_or_else(|| Arc::new(pool));
        let members = self.pools.entry(pool.clone()).or_default();
        if let Some(injection) = &mut facts.injection {
            members.injections.share(injection);
        }
        if let Annotation::Read(document) = &mut facts.revision {
            members.revisions.share(document);
        }
        members.pods.insert(pod.1.clone(), Arc::new(facts));
        let known = members.labels.get_key_value(&labels).map(|(known, _)| known.clone());
        let labels = known.unwrap_or_else(|| Arc::new(labels));
        *members.labels.entry(labels.clone()).or_default() += 1;
        self.pods.insert(pod, Entry { pool, labels });
    }

    pub(super) fn remove(&mut self, pod: &PodName) -> Option<PoolKey> {
        let Entry { pool, labels } = self.pods.remove(pod)?;
        if let Some(members) = self.pools.get_mut(&pool) {
            members.pods.remove(&pod.1);
            if let Some(pods) = members.labels.get_mut(&labels) {
                *pods -= 1;
                if *pods == 0 {
                    members.labels.remove(&labels);
                }
            }
            if members.pods.is_empty() {
                self.pools.remove(&pool);
            }
        }
        Some(Arc::unwrap_or_clone(pool))
    }
}

pub(super) fn key_of(pod: &Pod) -> PodName {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// Keeps what an annotation said before it was damaged.
fn remember<T: Clone>(now: &mut Annotation<T>, before: &Annotation<T>) {
    if let Annotation::Unreadable { last, .. } = now {
        *last = before.last_known().cloned();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A pod of this pool that was admitted and runs; its name is its uid.
    pub fn injected(pool: &PoolKey, uid: &str, address: std::net::Ipv4Addr, version: u64) -> Pod {
        let injection = serde_json::json!({
            "v": 1, "pool": pool.name, "namespace": pool.namespace, "client": {"port": 5432, "maxConnections": 10},
            "upstream": {"host": "pg", "port": 5432, "database": "d", "tls": {"mode": "Disabled", "ownCa": false}},
        });
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": uid, "namespace": pool.namespace, "uid": uid, "resourceVersion": version.to_string(),
                "labels": {"sluice.dev/pool": pool.name}},
            "spec": {"nodeName": "n", "containers": [], "initContainers": [{"name": "sluice", "restartPolicy": "Always",
                "command": ["/sluice/bin/sluice-agent"],
                "env": [{"name": "SLUICE_INJECTION", "value": injection.to_string()}]}]},
            "status": {"podIP": address.to_string(), "phase": "Running", "initContainerStatuses": [{"name": "sluice", "image": "",
                "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]},
        }))
        .expect("the fixture is a pod")
    }

    /// The pod `a` of the pool `shop`, with this grant.
    pub fn pod(version: u64, uid: &str, grant: &str) -> Pod {
        let mut pod = injected(&shop(), uid, std::net::Ipv4Addr::new(10, 0, 0, 1), version);
        pod.metadata.name = Some("a".to_owned());
        pod.metadata.annotations = Some([("sluice.dev/grant".to_owned(), grant.to_owned())].into());
        pod
    }

    pub fn grant(share: u32) -> String {
        format!(r#"{{"v":1,"epoch":1,"pools":{{"shop":{{"seq":1,"share":{share},"granted":{share},"floor":1}}}}}}"#)
    }

    pub fn shop() -> PoolKey {
        PoolKey { namespace: "ns".to_owned(), name: "shop".to_owned() }
    }

    pub fn share_of(index: &PodIndex) -> Option<u32> {
        index.of(&shop()).first()?.grant.last_known()?.pools.get("shop").map(|grant| grant.share)
    }

    #[test]
    fn a_pod_that_was_created_anew_under_its_name_starts_from_nothing_and_hears_nothing_of_its_predecessor() {
        let index = PodIndex::default();
        index.apply(&pod(9, "old", &grant(7)));
        index.apply(&pod(12, "new", &grant(1)));
        assert_eq!(share_of(&index), Some(1));
        assert!(index.apply(&pod(10, "old", &grant(7))).is_empty(), "what the old one was is old news");
        assert_eq!(index.delete(&pod(11, "old", &grant(7))), None, "and so is its end");
        assert_eq!((share_of(&index), index.of(&shop()).len()), (Some(1), 1));
    }

    #[test]
    fn what_a_list_says_of_a_name_counts_whatever_was_there_before() {
        let index = PodIndex::default();
        index.apply(&pod(9, "old", &grant(7)));
        index.list_begins();
        assert_eq!(index.apply(&pod(3, "new", &grant(1))), vec![shop()]);
        assert!(index.list_ends().is_empty());
        assert_eq!(share_of(&index), Some(1));
    }

    #[test]
    fn a_list_of_a_cluster_that_was_restored_from_a_backup_takes_the_place_of_what_was_known_of_the_same_pods() {
        let index = PodIndex::default();
        index.apply(&pod(1000, "u", &grant(7)));
        index.list_begins();
        assert_eq!(index.apply(&pod(800, "u", &grant(3))), vec![shop()], "its version is of before");
        assert!(index.list_ends().is_empty());
        assert_eq!(share_of(&index), Some(3));
        index.apply(&pod(801, "u", &grant(4)));
        assert_eq!(share_of(&index), Some(4), "and what the watch tells after it counts again");
    }

    #[test]
    fn a_damaged_annotation_leaves_the_last_good_one_known() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        index.apply(&pod(6, "u", "{\"v\":1,\"epo"));
        assert_eq!(share_of(&index), Some(3));
        assert!(matches!(index.of(&shop())[0].grant, Annotation::Unreadable { .. }));
    }

    #[test]
    fn pods_that_another_pool_selects_are_counted_as_they_come_change_and_go() {
        let index = PodIndex::default();
        let cart = PoolKey { namespace: "ns".to_owned(), name: "cart".to_owned() };
        let selected = |app: &str| index.others(&cart, |labels| labels.get("app").is_some_and(|is| is == app));
        let labelled = |name: &str, version: u64, app: &str| {
            let mut pod = pod(version, name, &grant(1));
            pod.metadata.name = Some(name.to_owned());
            pod.metadata.labels.get_or_insert_default().insert("app".to_owned(), app.to_owned());
            pod
        };
        for name in ["a", "b", "c"] {
            index.apply(&labelled(name, 1, "shop"));
        }
        assert_eq!(selected("shop"), BTreeMap::from([("shop".to_owned(), 3)]));
        assert!(index.others(&shop(), |_| true).is_empty(), "its own pods are not another's");
        index.apply(&labelled("b", 2, "cart"));
        index.delete(&labelled("c", 2, "shop"));
        assert_eq!(selected("shop"), BTreeMap::from([("shop".to_owned(), 1)]));
        assert_eq!(selected("cart"), BTreeMap::from([("shop".to_owned(), 1)]));
    }

    #[test]
    fn what_pods_of_a_pool_have_alike_is_kept_once_and_goes_with_the_last_of_them() {
        let index = PodIndex::default();
        let address = std::net::Ipv4Addr::new(10, 0, 0, 1);
        for number in 0..20 {
            index.apply(&injected(&shop(), &format!("pod-{number}"), address, 1));
        }
        let pods = index.of(&shop());
        let first = pods[0].injection.as_ref().expect("it has one");
        assert!(pods.iter().all(|pod| pod.injection.as_ref().is_some_and(|one| Arc::ptr_eq(one, first))));
        let kept = |index: &PodIndex| index.inner.read().pools[&shop()].injections.0.len();
        for version in 2..40 {
            let mut other = injected(&shop(), "pod-0", address, version);
            let text = format!(
                r#"{{"v":1,"pool":"shop","namespace":"ns","upstream":{{"host":"pg-{version}","port":5432,"database":"d","tls":{{"mode":"Disabled","ownCa":false}}}},"client":{{"port":5432,"maxConnections":10}}}}"#
            );
            other.spec.as_mut().and_then(|spec| spec.init_containers.as_mut()).expect("it has one")[0]
                .env
                .as_mut()
                .expect("it has some")[0]
                .value = Some(text);
            index.apply(&other);
        }
        assert!(kept(&index) <= 3, "{} are kept", kept(&index));
    }

    #[test]
    fn what_a_new_list_does_not_mention_is_gone() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        index.list_begins();
        assert_eq!(index.list_ends(), vec![shop()]);
        assert!(index.is_synced() && index.of(&shop()).is_empty());
    }
}
