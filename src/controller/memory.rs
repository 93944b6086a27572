//! What the leader remembers of a pool between two looks. Losing it costs caution and nothing else: it is rebuilt from
//! annotations, status and what agents say.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::gateway::GatewayMemory;
use crate::{
    api::{ConnectionPool, ConnectionPoolStatus},
    decide::{
        effective::EffectivePool,
        load::LoadState,
        plan::{Failure, Progress, RevisionSeen, SizingSeen, Uninjected, UnixSeconds},
        shares::{PodDemand, Proof},
        sizing::Sizer,
    },
    domain::PoolKey,
};

/// What is remembered of one pool.
#[derive(Default)]
pub struct PoolMemory {
    /// Uid of the pool: another one of its name starts anew.
    pub uid: String,
    /// What its sizing has learned.
    pub sizer: Sizer,
    /// The target asked for last.
    pub target: Option<u32>,
    /// What was decided last.
    pub sizing: Option<SizingSeen>,
    /// For which spec that was.
    pub decided_for: Option<DecidedFor>,
    /// What the load asks of each pod, by its name.
    pub demands: BTreeMap<String, PodDemand>,
    /// What Prometheus says of each pod's grant, by its name: the slower way to a proof.
    pub proofs: BTreeMap<String, Proof>,
    /// What the load was made of.
    pub load: LoadState,
    /// How far a rollout has come.
    pub progress: Option<Progress>,
    /// The status as it was written last, and when.
    pub told: Option<(ConnectionPoolStatus, UnixSeconds)>,
    /// Revisions that were created and have not come back through the watch.
    pub created: Vec<RevisionSeen>,
    /// Pods without a sidecar, as they were counted last; none before the first count.
    pub uninjected: Option<Count>,
    /// Whether they are being counted.
    pub is_counting: bool,
    /// Of its gateway.
    pub gateway: GatewayMemory,
    /// The last change that failed.
    pub failure: Option<Failure>,
}

/// A count of the pods without a sidecar.
#[derive(Clone, Debug)]
pub struct Count {
    /// What was found; none while no count has succeeded.
    pub found: Option<Uninjected>,
    /// When it ended.
    pub at: Instant,
    /// For which generation of the pool.
    pub generation: i64,
}

/// The spec that a decision was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidedFor {
    generation: Option<i64>,
    class: Option<(String, Option<i64>)>,
}

impl DecidedFor {
    /// The pool as it is, merged with its class as that is.
    pub fn of(pool: &ConnectionPool, effective: &EffectivePool) -> Self {
        Self { generation: pool.metadata.generation, class: effective.class.clone() }
    }
}

/// What is remembered of all pools.
#[derive(Default)]
pub struct Memories {
    pools: Mutex<HashMap<PoolKey, Arc<Mutex<PoolMemory>>>>,
}

impl Memories {
    /// What is remembered of a pool; nothing if it is another one than before. Lock it for moments only.
    pub fn of(&self, key: &PoolKey, pool: &ConnectionPool) -> Arc<Mutex<PoolMemory>> {
        let uid = pool.uid().unwrap_or_default();
        let mut pools = self.pools.lock();
        let memory = pools.entry(key.clone()).or_default();
        if memory.lock().uid != uid {
            *memory = Arc::new(Mutex::new(PoolMemory { uid, ..PoolMemory::default() }));
        }
        memory.clone()
    }

    /// Those of which something is remembered, beside the known ones.
    pub fn beside(&self, known: &BTreeSet<PoolKey>) -> Vec<PoolKey> {
        self.pools.lock().keys().filter(|pool| !known.contains(pool)).cloned().collect()
    }

    /// Forgets a pool.
    pub fn forget(&self, key: &PoolKey) {
        self.pools.lock().remove(key);
    }
}
