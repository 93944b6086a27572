//! What the leader remembers of a pool between two looks. Losing it costs caution and nothing else: it is rebuilt from
//! annotations, status and what agents say.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    backoff::Backoff, gateway::GatewayMemory, judging::Judging, observe::changed_by::AuthorAsked,
    report::spec_changes::Untold,
};
use crate::{
    api::{ConnectionPool, ConnectionPoolStatus},
    decide::{
        effective::EffectivePool,
        load::LoadState,
        plan::{PodFacts, RevisionSeen, SizingSeen, Uninjected},
        rollout::RolloutMemory,
        shares::{GrantProof, PodDemand},
        sizing::Sizer,
    },
    domain::PoolKey,
};

/// What is remembered of one pool.
#[derive(Default)]
pub struct PoolMemory {
    /// Uid of the pool: another one of its name starts anew.
    pub uid: String,
    /// The pool at the last look.
    pub looked_at: Option<Arc<ConnectionPool>>,
    /// Who changed it last, as far as that was asked.
    pub author: Option<AuthorAsked>,
    /// What changed of its spec and is not told yet: the answer to who did it is waited for.
    pub untold: Option<Untold>,
    /// What its sizing has learned.
    pub sizer: Sizer,
    /// The target asked for last.
    pub target: Option<u32>,
    /// What was decided last.
    pub sizing: Option<SizingSeen>,
    /// For which spec that was.
    pub decided_for: Option<DecidedFor>,
    /// What the load asks of each pod, by its uid: another pod may take its name.
    pub demands: HashMap<Arc<str>, PodDemand>,
    /// What Prometheus says of each pod's grant, by its uid: the slower way to a proof.
    pub proofs: HashMap<Arc<str>, GrantProof>,
    /// What the load was made of.
    pub load: LoadState,
    /// What is remembered of its rollout; none before the first look, which goes on from the status.
    pub rollout: Option<RolloutMemory>,
    /// What is known of how its rollout does; none while there is none that is judged.
    pub judging: Option<Box<Judging>>,
    /// The status as it was written last; none where this process has written none.
    pub written_status: Option<WrittenStatus>,
    /// Revisions that were created and have not come back through the watch.
    pub created: Vec<RevisionSeen>,
    /// Pods without a sidecar, as they were counted last; none before the first count.
    pub uninjected: Option<UninjectedCount>,
    /// Whether they are being counted.
    pub is_counting: bool,
    /// Of its gateway.
    pub gateway: GatewayMemory,
    /// The last creation or deletion of a revision, if it failed.
    pub failure: Option<Backoff>,
    /// The last write on each pod that failed, by its uid.
    pub pod_failures: HashMap<Arc<str>, Backoff>,
    /// The last write of the status, if it failed.
    pub status_failure: Option<Backoff>,
    /// Looks in a row that ended because somebody else wrote first.
    pub overtaken: u32,
}

/// A status that was written.
#[derive(Clone, Debug)]
pub struct WrittenStatus {
    /// When.
    pub at: Instant,
    /// What it says, until the watch has brought it back: from then on the pool itself says so.
    pub status: Option<Box<ConnectionPoolStatus>>,
}

impl PoolMemory {
    /// The status of the pool as it was written last, which may be newer than the one that the watch has brought.
    pub fn status<'a>(&'a self, pool: &'a ConnectionPool) -> Option<&'a ConnectionPoolStatus> {
        let written = self.written_status.as_ref().and_then(|written| written.status.as_deref());
        written.or(pool.status.as_ref())
    }

    /// Lets go of the status that was written last, where the watch has brought it back.
    pub fn forget_status_of(&mut self, pool: &ConnectionPool) {
        if let Some(written) = &mut self.written_status
            && written.status.as_deref() == pool.status.as_ref()
        {
            written.status = None;
        }
    }

    /// Forgets the failed writes on pods that are gone.
    pub fn forget_failures_but_of(&mut self, pods: &[Arc<PodFacts>]) {
        if !self.pod_failures.is_empty() {
            let known: HashSet<&str> = pods.iter().map(|pod| &*pod.uid).collect();
            self.pod_failures.retain(|uid, _| known.contains(&**uid));
        }
    }

    /// When something that failed may be tried again, if it is not time yet.
    pub fn next_retry(&self, now: Instant) -> Option<Instant> {
        let of_pool = self.failure.iter().chain(&self.status_failure).chain(self.gateway.backoff());
        of_pool.chain(self.pod_failures.values()).map(|backoff| backoff.at).filter(|at| *at > now).min()
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn of_all_that_failed_what_comes_back_first_is_known() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let failed = |seconds| Backoff { times: 1, at: after(seconds), error: "refused".to_owned() };
        let mut memory = PoolMemory { failure: Some(failed(30)), ..PoolMemory::default() };
        memory.pod_failures.insert("u".into(), failed(1));
        memory.status_failure = Some(failed(5));
        assert_eq!(memory.next_retry(now), Some(after(1)));
        assert_eq!(memory.next_retry(after(1)), Some(after(5)));
        assert_eq!(memory.next_retry(after(5)), Some(after(30)));
        assert_eq!(memory.next_retry(after(30)), None);
    }
}
