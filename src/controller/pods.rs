//! The injected pods, trimmed to what plans are made from, by pool.
//!
//! Fed by a watch and by the answers to our own writes, because a plan that is made from a cache which lags behind
//! them could hand out the same connections twice. An answer is newer than what the watch has delivered so far if its
//! resourceVersion is: those of one kind are compared as numbers, as client-go does. A write whose outcome is unknown
//! leaves a doubt: until the object has changed, the larger of both figures is counted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use parking_lot::RwLock;

use crate::{
    contract::{Document, GrantDocument, Injection, RevisionDocument, names},
    decide::{
        plan::{Annotation, ROLLOUT, SidecarSeen, UnixSeconds},
        shares::PodPhase,
    },
    domain::PoolKey,
    inject::injection_of,
};

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Version of the object.
    pub resource_version: String,
    /// When it was created.
    pub created: UnixSeconds,
    /// What restarts it, by kind and name.
    pub owner: Option<String>,
    /// Where in its life it is.
    pub phase: PodPhase,
    /// Whether its sidecar runs.
    pub sidecar: SidecarSeen,
    /// Address of its agent.
    pub address: Option<String>,
    /// What it was injected with, where this build can read it.
    pub injection: Option<Injection>,
    /// The annotation `sluice.dev/revision`.
    pub revision: Annotation<RevisionDocument>,
    /// The annotation `sluice.dev/grant`.
    pub grant: Annotation<GrantDocument>,
    /// The most that may be counted for it beside the annotation: a write whose outcome is unknown.
    pub doubtful_granted: u32,
}

/// A pod as the API server told it.
enum Told {
    /// It has a sidecar of this pool.
    Member(PoolKey, Box<PodFacts>),
    /// It has none, or all its containers have ended: it holds nothing.
    Nothing,
}

fn told(pod: &Pod) -> Told {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Told::Nothing;
    }
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::POOL_LABEL));
    let (pool, injection) = match (injection_of(pod), label) {
        // what was fixed at admission says more than a label, which anybody may write
        (Some(Ok(injection)), _) => (injection.pool.clone(), Some(injection)),
        (Some(Err(_)), Some(label)) => (label.clone(), None),
        _ => return Told::Nothing,
    };
    let status = pod.status.as_ref();
    let sidecar = status
        .and_then(|status| {
            let all = [&status.init_container_statuses, &status.container_statuses];
            all.into_iter().flatten().flatten().find(|container| container.name == names::SIDECAR_CONTAINER)
        })
        .and_then(|container| container.state.as_ref())
        .is_some_and(|state| state.running.is_some());
    let is_placed = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    let facts = PodFacts {
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        resource_version: pod.metadata.resource_version.clone().unwrap_or_default(),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        owner: owner_of(&pod.metadata),
        phase: if pod.metadata.deletion_timestamp.is_some() {
            PodPhase::Terminating
        } else if is_placed {
            PodPhase::Running
        } else {
            PodPhase::Unscheduled
        },
        sidecar: match status.filter(|_| is_placed).and_then(not_startable_since) {
            _ if sidecar => SidecarSeen::Running,
            Some(since) => SidecarSeen::NotStartable { since },
            None => SidecarSeen::NotRunning,
        },
        address: status.and_then(|status| status.pod_ip.clone()).filter(|address| !address.is_empty()),
        injection,
        revision: annotation(pod, names::REVISION_ANNOTATION),
        grant: annotation(pod, names::GRANT_ANNOTATION),
        doubtful_granted: 0,
    };
    Told::Member(PoolKey { namespace, name: pool }, Box::new(facts))
}

/// Since when the kubelet has not got as far as to start containers: it mounts volumes first, then makes the network.
fn not_startable_since(status: &PodStatus) -> Option<UnixSeconds> {
    let mut conditions = status.conditions.iter().flatten();
    let startable = conditions.find(|condition| condition.type_ == "PodReadyToStartContainers")?;
    let since = startable.last_transition_time.as_ref().or(status.start_time.as_ref())?;
    (startable.status == "False").then(|| since.0.as_second())
}

fn annotation<T: Document>(pod: &Pod, name: &str) -> Annotation<T> {
    match pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(name)) {
        None => Annotation::Missing,
        Some(text) => match T::parse(text) {
            Ok(document) => Annotation::Read(document),
            Err(error) => Annotation::Unreadable { why: error.to_string(), last: None },
        },
    }
}

/// What restarts the pod, by kind and name: `deployment/shop`, `rollout/shop`. A ReplicaSet is named after what it belongs to, with
/// a hash that its pods have as a label, one label from Deployments and another from Argo Rollouts. One that nobody keeps restarts
/// nothing.
pub fn owner_of(metadata: &ObjectMeta) -> Option<String> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let named_after = |label: &str| {
        let hash = metadata.labels.as_ref()?.get(label)?;
        owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let rollout = named_after("rollouts-pod-template-hash").map(|name| format!("{ROLLOUT}{name}"));
            rollout.or_else(|| Some(format!("deployment/{}", named_after("pod-template-hash")?)))
        }
        "StatefulSet" | "DaemonSet" => Some(format!("{}/{}", owner.kind.to_lowercase(), owner.name)),
        _ => None,
    }
}

/// Labels of pods: many have the same.
type Labels = Arc<BTreeMap<String, String>>;

struct Entry {
    pool: PoolKey,
    labels: Labels,
    facts: PodFacts,
}

/// The pods of one pool.
#[derive(Default)]
struct Members {
    names: BTreeSet<String>,
    /// Their labels, and how many have them: another pool may select them too.
    labels: BTreeMap<Labels, u32>,
}

#[derive(Default)]
struct Inner {
    /// By namespace and name of the pod.
    pods: HashMap<(String, String), Entry>,
    pools: HashMap<PoolKey, Members>,
    /// Pods of a list that has begun and not ended.
    listed: Option<HashSet<(String, String)>>,
    synced: bool,
}

/// The index. All methods are short and never wait.
#[derive(Default)]
pub struct PodIndex {
    inner: RwLock<Inner>,
}

impl PodIndex {
    /// A list begins: what it does not mention is gone.
    pub fn list_begins(&self) {
        self.inner.write().listed = Some(HashSet::new());
    }

    /// A list has ended. Returns the pools that lost pods by it.
    pub fn list_ends(&self) -> Vec<PoolKey> {
        let mut inner = self.inner.write();
        inner.synced = true;
        let Some(listed) = inner.listed.take() else { return Vec::new() };
        let gone: Vec<(String, String)> = inner.pods.keys().filter(|pod| !listed.contains(*pod)).cloned().collect();
        gone.iter().filter_map(|pod| inner.remove(pod)).collect()
    }

    /// True once a whole list was taken in: before, counting pods would find too few.
    pub fn is_synced(&self) -> bool {
        self.inner.read().synced
    }

    /// Takes in a pod. Returns the pools that it concerns.
    pub fn apply(&self, pod: &Pod) -> Vec<PoolKey> {
        let key = key_of(pod);
        let mut inner = self.inner.write();
        if let Some(listed) = inner.listed.as_mut() {
            listed.insert(key.clone());
        }
        let known = inner.pods.get(&key).map(|known| &known.facts);
        if let Some(known) = known
            && Some(known.uid.as_str()) == pod.metadata.uid.as_deref()
            && is_older(pod.metadata.resource_version.as_deref(), &known.resource_version)
        {
            return Vec::new();
        }
        match told(pod) {
            Told::Nothing => inner.remove(&key).into_iter().collect(),
            Told::Member(pool, mut facts) => {
                if let Some(known) = known.filter(|known| known.uid == facts.uid) {
                    remember(&mut facts.grant, &known.grant);
                    remember(&mut facts.revision, &known.revision);
                    if facts.resource_version == known.resource_version {
                        facts.doubtful_granted = known.doubtful_granted;
                    }
                }
                let mut concerned: Vec<PoolKey> =
                    inner.remove(&key).filter(|before| *before != pool).into_iter().collect();
                let labels = pod.metadata.labels.clone().unwrap_or_default();
                inner.insert(key, pool.clone(), labels, *facts);
                concerned.push(pool);
                concerned
            }
        }
    }

    /// A pod is gone. Returns the pool that it belonged to.
    pub fn delete(&self, pod: &Pod) -> Option<PoolKey> {
        let key = key_of(pod);
        let mut inner = self.inner.write();
        let same =
            inner.pods.get(&key).is_some_and(|known| Some(known.facts.uid.as_str()) == pod.metadata.uid.as_deref());
        if same { inner.remove(&key) } else { None }
    }

    /// A write that raises what is counted to `granted` has no known outcome: until the object changes, it counts.
    pub fn doubt(&self, pool: &PoolKey, name: &str, uid: &str, resource_version: &str, granted: u32) {
        let mut inner = self.inner.write();
        if let Some(Entry { facts, .. }) = inner.pods.get_mut(&(pool.namespace.clone(), name.to_owned()))
            && facts.uid == uid
            && facts.resource_version == resource_version
        {
            facts.doubtful_granted = facts.doubtful_granted.max(granted);
        }
    }

    /// The pods of a pool.
    pub fn of(&self, pool: &PoolKey) -> Vec<PodFacts> {
        let inner = self.inner.read();
        let Some(members) = inner.pools.get(pool) else { return Vec::new() };
        members
            .names
            .iter()
            .filter_map(|name| inner.pods.get(&(pool.namespace.clone(), name.clone())))
            .map(|entry| entry.facts.clone())
            .collect()
    }

    /// The epochs of all grants that say something.
    pub fn epochs(&self) -> Vec<u64> {
        let inner = self.inner.read();
        let grants = inner.pods.values().filter_map(|entry| entry.facts.grant.last_known());
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
    /// Takes in a pod that is not in the index.
    fn insert(&mut self, pod: (String, String), pool: PoolKey, labels: BTreeMap<String, String>, facts: PodFacts) {
        let members = self.pools.entry(pool.clone()).or_default();
        members.names.insert(pod.1.clone());
        let known = members.labels.get_key_value(&labels).map(|(known, _)| known.clone());
        let labels = known.unwrap_or_else(|| Arc::new(labels));
        *members.labels.entry(labels.clone()).or_default() += 1;
        self.pods.insert(pod, Entry { pool, labels, facts });
    }

    fn remove(&mut self, pod: &(String, String)) -> Option<PoolKey> {
        let Entry { pool, labels, .. } = self.pods.remove(pod)?;
        if let Some(members) = self.pools.get_mut(&pool) {
            members.names.remove(&pod.1);
            if let Some(pods) = members.labels.get_mut(&labels) {
                *pods -= 1;
                if *pods == 0 {
                    members.labels.remove(&labels);
                }
            }
            if members.names.is_empty() {
                self.pools.remove(&pool);
            }
        }
        Some(pool)
    }
}

fn key_of(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// Keeps what an annotation said before it was damaged.
fn remember<T: Clone>(now: &mut Annotation<T>, before: &Annotation<T>) {
    if let Annotation::Unreadable { last, .. } = now {
        *last = before.last_known().cloned();
    }
}

fn is_older(version: Option<&str>, than: &str) -> bool {
    match (version.and_then(|version| version.parse::<u64>().ok()), than.parse::<u64>()) {
        (Some(version), Ok(than)) => version < than,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(version: u64, uid: &str, grant: &str) -> Pod {
        let injection = r#"{"v":1,"pool":"shop","namespace":"ns","upstream":{"host":"pg","port":5432,"database":"d","tls":{"mode":"Disabled","ownCa":false}},"client":{"port":5432,"maxConnections":10}}"#;
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": uid, "resourceVersion": version.to_string(),
                "labels": {"sluice.dev/pool": "shop"}, "annotations": {"sluice.dev/grant": grant}},
            "spec": {"nodeName": "n", "containers": [], "initContainers": [{"name": "sluice", "restartPolicy": "Always",
                "command": ["/sluice/bin/sluice-agent"],
                "env": [{"name": "SLUICE_INJECTION", "value": injection}]}]},
            "status": {"podIP": "10.0.0.1", "phase": "Running"},
        }))
        .expect("the fixture is a pod")
    }

    fn grant(share: u32) -> String {
        format!(r#"{{"v":1,"epoch":1,"pools":{{"shop":{{"seq":1,"share":{share},"granted":{share},"floor":1}}}}}}"#)
    }

    fn shop() -> PoolKey {
        PoolKey { namespace: "ns".to_owned(), name: "shop".to_owned() }
    }

    fn share_of(index: &PodIndex) -> Option<u32> {
        index.of(&shop()).first()?.grant.last_known()?.pools.get("shop").map(|grant| grant.share)
    }

    #[test]
    fn an_event_that_is_older_than_our_own_write_does_not_take_it_back() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        index.apply(&pod(9, "u", &grant(7))); // the answer to our write
        assert!(index.apply(&pod(6, "u", &grant(3))).is_empty(), "the watch lags behind");
        assert_eq!(share_of(&index), Some(7));
    }

    #[test]
    fn a_pod_that_was_created_anew_under_its_name_starts_from_nothing() {
        let index = PodIndex::default();
        index.apply(&pod(9, "old", &grant(7)));
        index.apply(&pod(3, "new", &grant(1)));
        assert_eq!(share_of(&index), Some(1));
        assert_eq!(index.delete(&pod(10, "old", &grant(7))), None, "the end of the old one is old news");
        assert_eq!(index.of(&shop()).len(), 1);
    }

    #[test]
    fn a_write_of_unknown_outcome_counts_until_the_object_has_changed() {
        let index = PodIndex::default();
        index.apply(&pod(5, "u", &grant(3)));
        index.doubt(&shop(), "a", "u", "5", 12);
        index.apply(&pod(5, "u", &grant(3)));
        assert_eq!(index.of(&shop())[0].doubtful_granted, 12);
        index.apply(&pod(6, "u", &grant(3)));
        assert_eq!(index.of(&shop())[0].doubtful_granted, 0);
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
    fn what_restarts_a_pod_is_told_by_the_label_that_its_controller_writes() {
        let owner = |kind: &str, name: &str, labels: serde_json::Value| {
            let owner =
                serde_json::json!({"kind": kind, "name": name, "apiVersion": "x/v1", "uid": "u", "controller": true});
            let metadata = serde_json::json!({"labels": labels, "ownerReferences": [owner]});
            owner_of(&serde_json::from_value(metadata).expect("metadata"))
        };
        let of_deployment = serde_json::json!({"pod-template-hash": "7d4b9c6f5"});
        let of_rollout = serde_json::json!({"rollouts-pod-template-hash": "7d4b9c6f5"});
        assert_eq!(owner("ReplicaSet", "shop-web-7d4b9c6f5", of_deployment).as_deref(), Some("deployment/shop-web"));
        assert_eq!(owner("ReplicaSet", "shop-web-7d4b9c6f5", of_rollout).as_deref(), Some("rollout/shop-web"));
        assert_eq!(owner("ReplicaSet", "by-hand", serde_json::json!({"app": "shop"})), None, "it is nobody's");
        assert_eq!(owner("StatefulSet", "shop", serde_json::json!({})).as_deref(), Some("statefulset/shop"));
        assert_eq!(owner("Job", "migrate", serde_json::json!({})), None);
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
