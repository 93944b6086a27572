//! What the leader remembers of a pool between two looks. Losing it costs caution and nothing else: it is rebuilt from
//! annotations, status and what agents say.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
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
        plan::{FailedWrite, PodFacts, RevisionSeen, RolloutProgress, SizingSeen, Uninjected},
        shares::{GrantProof, PodDemand},
        sizing::Sizer,
    },
    domain::PoolKey,
};

/// First pause after a failed change; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

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
    /// What the load asks of each pod, by its uid: another pod may take its name.
    pub demands: HashMap<String, PodDemand>,
    /// What Prometheus says of each pod's grant, by its uid: the slower way to a proof.
    pub proofs: HashMap<String, GrantProof>,
    /// What the load was made of.
    pub load: LoadState,
    /// How far a rollout has come.
    pub progress: Option<RolloutProgress>,
    /// The status as it was written last, and when.
    pub written_status: Option<(ConnectionPoolStatus, Instant)>,
    /// Revisions that were created and have not come back through the watch.
    pub created: Vec<RevisionSeen>,
    /// Pods without a sidecar, as they were counted last; none before the first count.
    pub uninjected: Option<UninjectedCount>,
    /// Whether they are being counted.
    pub is_counting: bool,
    /// Of its gateway.
    pub gateway: GatewayMemory,
    /// The last creation or deletion of a revision, if it failed.
    pub failure: Option<WriteBackoff>,
    /// The last write on each pod that failed, by its uid.
    pub pod_failures: HashMap<String, WriteBackoff>,
}

/// A change that failed, and when it may be tried again: by a clock that nobody can set back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteBackoff {
    /// How often in a row.
    pub times: u32,
    /// Not before this.
    pub at: Instant,
    /// What failed.
    pub error: String,
}

impl WriteBackoff {
    /// After one more failure. The pause doubles each time, up to `longest`.
    pub fn after(before: Option<&Self>, error: String, longest: Duration, now: Instant) -> Self {
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << times.saturating_sub(1).min(10));
        Self { times, at: now + pause.min(longest), error }
    }

    /// As plans know it.
    pub fn seen(&self, now: Instant) -> FailedWrite {
        FailedWrite { times: self.times, is_due: now >= self.at, error: self.error.clone() }
    }
}

impl PoolMemory {
    /// Forgets the failed writes on pods that are gone.
    pub fn forget_failures_but_of(&mut self, pods: &[Arc<PodFacts>]) {
        if !self.pod_failures.is_empty() {
            let known: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
            self.pod_failures.retain(|uid, _| known.contains(uid.as_str()));
        }
    }

    /// When something that failed may be tried again, if it is not time yet.
    pub fn next_retry(&self, now: Instant) -> Option<Instant> {
        self.failure.iter().chain(self.pod_failures.values()).map(|retry| retry.at).filter(|at| *at > now).min()
    }
}

/// A count of the pods without a sidecar.
#[derive(Clone, Debug)]
pub struct UninjectedCount {
    /// What was found; none while no count has succeeded.
    pub found: Option<Uninjected>,
    /// Since when counts have failed, and why the last one did; none where it succeeded.
    pub failing: Option<(Instant, String)>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_what_comes_back_first_is_known() {
        let now = Instant::now();
        let longest = Duration::from_secs(30);
        let mut retry = None;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            retry = Some(WriteBackoff::after(retry.as_ref(), "no answer".to_owned(), longest, now));
            pauses.push(retry.as_ref().map(|retry| (retry.at - now).as_secs()).expect("it failed"));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        let mut memory = PoolMemory { failure: retry, ..PoolMemory::default() };
        memory.pod_failures.insert("u".to_owned(), WriteBackoff::after(None, "refused".to_owned(), longest, now));
        assert_eq!(memory.next_retry(now), Some(now + Duration::from_secs(1)));
        assert_eq!(memory.next_retry(now + Duration::from_secs(1)), Some(now + longest));
        let seen = memory.pod_failures["u"].seen(now + Duration::from_secs(1));
        assert_eq!((seen.times, seen.is_due), (1, true));
    }
}
