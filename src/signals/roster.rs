//! Who may report: the pods that there are, and of which pool each is.
//!
//! Any pod that is scraped may export any series: of another's pool, of pools that there are none of, hundreds of thousands. What
//! Prometheus knows of a series by itself is the pod that it was scraped from; which pool that pod is of is known to who injected it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{PoolKey, response::Labels};

/// Parts the names in a key. No name of Kubernetes holds it: a key with a label that does is nobody's.
const BETWEEN: char = '\u{1f}';

/// The pods that may report.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// By namespace and name of the pod, which no other of the namespace has: where in `pods` it is.
    index: HashMap<String, usize>,
    pods: Vec<(Arc<PoolKey>, String)>,
    pools: HashSet<Arc<PoolKey>>,
}

/// What a series is to a roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// One of its pods, which speaks for its own pool: where it stands.
    Own(usize),
    /// Another pod than one of the pool that it names.
    Foreign,
    /// It names a pool, and the scrape configuration says of which pod it is in no label.
    NoPodLabel,
    /// Of a pod that is not there any more, or a pool that there is none of.
    Unknown,
}

impl<P: Into<Arc<PoolKey>>> FromIterator<(P, String)> for Roster {
    fn from_iter<I: IntoIterator<Item = (P, String)>>(pods: I) -> Self {
        let pods = pods.into_iter();
        let many = pods.size_hint().0;
        let (index, pools) = (HashMap::with_capacity(many), HashSet::new());
        let mut roster = Self { index, pods: Vec::with_capacity(many), pools };
        for (pool, pod) in pods {
            roster.add(pool.into(), pod);
        }
        roster
    }
}

impl Roster {
    /// Adds a pod of this pool.
    fn add(&mut self, pool: Arc<PoolKey>, pod: String) {
        let mut key = String::with_capacity(pool.namespace.len() + BETWEEN.len_utf8() + pod.len());
        write(&mut key, &pool.namespace, &pod);
        self.index.entry(key).or_insert(self.pods.len());
        self.pools.insert(pool.clone());
        self.pods.push((pool, pod));
    }

    /// Whether it has a pod of this pool.
    pub fn has_pool(&self, pool: &PoolKey) -> bool {
        self.pools.contains(pool)
    }

    /// How many pods may report.
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// The pod that stands here, and its pool.
    pub(super) fn pod(&self, place: usize) -> (&PoolKey, &str) {
        let (pool, pod) = &self.pods[place];
        (pool, pod)
    }

    /// What a series with these labels is; `key` is a place to write in.
    pub(super) fn origin(&self, labels: &Labels, key: &mut String) -> Origin {
        // a configuration without the label `namespace` leaves it to the agent
        let is_near = labels.namespace.is_empty() || labels.namespace == labels.pool_namespace;
        write(key, &labels.pool_namespace, &labels.pod);
        let known = self.index.get(key.as_str()).copied();
        if let Some(place) = known
            && is_near
            && self.pod(place).0.name == labels.pool
        {
            return Origin::Own(place);
        }
        if !self.has_pool(&PoolKey::new(&*labels.pool_namespace, &*labels.pool)) {
            return Origin::Unknown;
        }
        if labels.pod.is_empty() {
            return Origin::NoPodLabel;
        }
        if !is_near || known.is_some() { Origin::Foreign } else { Origin::Unknown }
    }
}

fn write(key: &mut String, namespace: &str, pod: &str) {
    key.clear();
    key.push_str(namespace);
    key.push(BETWEEN);
    key.push_str(pod);
}
