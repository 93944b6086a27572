//! Everything that a plan is made from.

use std::{ops::Deref, sync::Arc};

use crate::{
    api::{ConnectionPool, ConnectionPoolStatus},
    contract::{
        GrantDocument, Injection, LimitsReadBack, PodGrant, RevisionDocument, ServerFull, Settings, StatusReport,
    },
    decide::{
        effective::{EffectivePool, PoolRefusal},
        freeze::Frozen,
        guard::refused::FORGOTTEN_SECONDS,
        outage::OutageSpan,
        rollout::{JudgedTry, RolloutJudgement},
        shares::{self, PodDemand, PodPhase},
        sizing::Decision,
    },
    domain::UnixSeconds,
};

/// What the owner of a pod begins with that Argo Rollouts restarts, and `kubectl rollout restart` does not know.
pub const ROLLOUT: &str = "rollout/";

/// Everything that is known of one pool at one moment.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The time.
    pub now: UnixSeconds,
    /// Term of the leader: stamped on every grant.
    pub epoch: u64,
    /// The pool.
    pub pool: &'a ConnectionPool,
    /// Its status as it was written last, which may be newer than the one in `pool`.
    pub status: Option<&'a ConnectionPoolStatus>,
    /// What is in force, or why nothing can be.
    pub effective: Result<&'a EffectivePool, &'a PoolRefusal>,
    /// Whether the budget that it names exists.
    pub budget: BudgetSeen,
    /// An older pool that selects the same pods.
    pub rival: Option<Rival>,
    /// Its pods with a sidecar, in any order. Pods whose containers have all ended are left out.
    pub pods: &'a [PodSeen],
    /// Its gateway; none with another topology.
    pub gateway: Option<GatewaySeen>,
    /// Pods that the selector matches and that have no sidecar; none while nobody has counted.
    pub uninjected: Option<Uninjected>,
    /// Why the pods without a sidecar could not be counted, where what is known of them is too old or nothing is.
    pub uncounted: Option<&'a str>,
    /// What a pod that were created now would be injected with.
    pub injection: Option<&'a Injection>,
    /// Its revisions, in any order.
    pub revisions: &'a [RevisionSeen],
    /// Numbers that are taken by objects which are not its own.
    pub taken_numbers: &'a [u64],
    /// What the sizing said last; none before the first tick.
    pub sizing: Option<&'a SizingSeen>,
    /// What the analysis says of what is rolled out; none where there is none.
    pub judged: Option<&'a JudgedSeen>,
    /// The last creation or deletion of a revision, if it failed.
    pub failure: Option<&'a FailedWrite>,
    /// So many writes on pods are wanted at most.
    pub most_writes: usize,
}

impl Observed<'_> {
    /// Why its automation is frozen; none where it is not.
    pub fn frozen(&self) -> Option<Frozen> {
        Frozen::of(self.pool, self.now)
    }
}

/// Whether the budget exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BudgetSeen {
    /// The pool names none.
    NotNamed,
    /// It exists.
    Found,
    /// It does not.
    Missing(String),
}

/// An older pool that selects the same pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Its name.
    pub pool: String,
    /// Pods that both select and that it has.
    pub pods: u32,
}

/// The gateway of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySeen {
    /// Host and port where applications find it.
    pub address: String,
    /// Selector of its pods.
    pub selector: String,
    /// Its poolers, as the Deployment tells of them; none before there is one.
    pub poolers: Option<Poolers>,
    /// Why its objects are not as they should be.
    pub trouble: Option<Trouble>,
}

/// Poolers of a gateway, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Poolers {
    /// How many there should be.
    pub wanted: u32,
    /// How many there are.
    pub exist: u32,
    /// Of them: that take clients.
    pub ready: u32,
}

/// A pod with a sidecar, as the API server tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its uid, which whoever knows something of the pod shares.
    pub uid: Arc<str>,
    /// Version of the object that was read.
    pub resource_version: String,
    /// When it was created.
    pub created: UnixSeconds,
    /// What restarts it, as `kubectl rollout restart` takes it: `deployment/shop`.
    pub owner: Option<String>,
    /// Where in its life it is.
    pub phase: PodPhase,
    /// Whether its sidecar runs.
    pub sidecar: SidecarSeen,
    /// Address of its agent.
    pub address: Option<String>,
    /// What it was injected with; none where that cannot be read.
    pub injection: Option<Arc<Injection>>,
    /// The annotation `sluice.dev/revision`.
    pub revision: Annotation<Arc<RevisionDocument>>,
    /// The annotation `sluice.dev/grant`.
    pub grant: Annotation<GrantDocument>,
    /// The most that may be counted for it, where the outcome of a write is unknown.
    pub doubtful_granted: u32,
}

impl PodFacts {
    /// What its annotation grants the pool of this name, or granted it when it could be read last.
    pub fn grant_to(&self, pool: &str) -> Option<&PodGrant> {
        self.grant.last_known()?.pools.get(pool)
    }
}

/// A pod with a sidecar: what the API server tells of it, and everything else that is known. What is shared is not copied for a look.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSeen {
    /// As the API server tells of it.
    pub facts: Arc<PodFacts>,
    /// What its agent said last.
    pub answer: AgentAnswer,
    /// Whether the pod was told another revision since: of revisions it proves nothing.
    pub is_answer_outdated: bool,
    /// What Prometheus says of its grant: slower, and all there is while the agent cannot be asked.
    pub measured: Option<shares::GrantProof>,
    /// What its load asks for.
    pub demand: Option<PodDemand>,
    /// True when Prometheus has figures of it.
    pub reporting: bool,
    /// The last write on it, if it failed.
    pub failure: Option<FailedWrite>,
}

impl Deref for PodSeen {
    type Target = PodFacts;

    fn deref(&self) -> &PodFacts {
        &self.facts
    }
}

#[cfg(test)]
impl std::ops::DerefMut for PodSeen {
    fn deref_mut(&mut self) -> &mut PodFacts {
        Arc::make_mut(&mut self.facts)
    }
}

/// Whether the sidecar runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidecarSeen {
    /// Not yet, or not now.
    NotRunning,
    /// No container of the pod can be started: its volumes or its network are not there.
    NotStartable {
        /// Since when.
        since: UnixSeconds,
    },
    /// Its container runs.
    Running,
}

/// An annotation as it was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Annotation<T> {
    /// There is none.
    Missing,
    /// It says this.
    Read(T),
    /// It cannot be read, and why. `last` is what was read before, where anybody remembers.
    Unreadable {
        /// Why.
        why: String,
        /// What was read before.
        last: Option<T>,
    },
}

impl<T> Annotation<T> {
    /// What it says, or said when it could be read last.
    pub const fn last_known(&self) -> Option<&T> {
        match self {
            Self::Read(document) | Self::Unreadable { last: Some(document), .. } => Some(document),
            Self::Missing | Self::Unreadable { last: None, .. } => None,
        }
    }
}

/// What an agent said.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentAnswer {
    /// It has not been asked yet.
    NotAsked,
    /// It answered, with the uid of this pod.
    Report(Arc<StatusReport>),
    /// It does not answer.
    Unreachable {
        /// Since when.
        since: UnixSeconds,
        /// The last error.
        error: String,
        /// What it said before that.
        last: Option<Arc<StatusReport>>,
    },
}

/// The size of a pool whose agents said this, in server connections: the sum of the limits that those who answer read back from their
/// poolers. None while none has told.
pub fn current_size<'a>(answers: impl IntoIterator<Item = &'a AgentAnswer>) -> Option<u32> {
    let limits = answers.into_iter().filter_map(|answer| match answer {
        AgentAnswer::Report(report) => report.limits.as_ref().map(LimitsReadBack::in_force),
        AgentAnswer::NotAsked | AgentAnswer::Unreachable { .. } => None,
    });
    limits.reduce(u32::saturating_add)
}

impl AgentAnswer {
    /// The newest answer, old or not. What it proved about a grant stays true until the annotation changes.
    pub fn report(&self) -> Option<&StatusReport> {
        match self {
            Self::Report(report) | Self::Unreachable { last: Some(report), .. } => Some(report),
            Self::NotAsked | Self::Unreachable { last: None, .. } => None,
        }
    }

    /// What it says now; None where it does not answer.
    pub fn heard(&self) -> Option<&StatusReport> {
        match self {
            Self::Report(report) => Some(report),
            Self::NotAsked | Self::Unreachable { .. } => None,
        }
    }

    /// What the database refused the pod, by an agent that answers. Of one that does not it counts for as long as the agent itself
    /// would remember: its node may be gone, and nobody would ever say that the database lets in more.
    pub fn server_full(&self, now: UnixSeconds) -> Option<&ServerFull> {
        match self {
            Self::Unreachable { since, .. } if (now - since) as f64 >= FORGOTTEN_SECONDS => None,
            _ => self.report()?.server_full.as_ref(),
        }
    }
}

/// Pods without a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uninjected {
    /// How many.
    pub pods: u32,
    /// What restarts some of them, by kind and name: `deployment/shop`, `rollout/shop`. At most five.
    pub owners: Vec<String>,
    /// Pods that the API server refuses to create.
    pub refused: Option<PodsRefused>,
}

/// Pods that the API server refuses to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodsRefused {
    /// What wants to create them, as `kubectl describe` takes it.
    pub owner: String,
    /// What the API server said.
    pub message: String,
}

/// A `ControllerRevision` of the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionSeen {
    /// Name of the object.
    pub name: String,
    /// Its number.
    pub number: u64,
    /// When it was created.
    pub created: UnixSeconds,
    /// What it says; none when that cannot be read.
    pub settings: Option<Settings>,
    /// The hash that its annotation says; none where there is none. What it says itself may be something else by now: objects can be
    /// deleted and made anew by hand.
    pub annotated_hash: Option<String>,
}

/// What the sizing said.
#[derive(Clone, Debug, PartialEq)]
pub struct SizingSeen {
    /// The decision of the last tick.
    pub decision: Decision,
    /// The load of the last tick; none while nobody knows.
    pub load: Option<LoadSeen>,
    /// Why the load is not known: reason and message.
    pub trouble: Option<Trouble>,
    /// The last decision that changed the target.
    pub change: Option<TargetChange>,
    /// That answers go back and forth, and what to do; None while they do not.
    pub alternation: Option<String>,
}

/// What an analysis says of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedSeen {
    /// Which analysis it is.
    pub of: JudgedTry,
    /// The time that it leaves out, because the database was away; none where it never was.
    pub outage: Option<OutageSpan>,
    /// What it says.
    pub judgement: RolloutJudgement,
    /// What is lacking while it cannot tell, in words that change only when that does: metrics and reasons.
    pub words: String,
    /// Seconds that it takes at the least until what is neither proven harmless nor worse passes, as often as pods are scraped; none while
    /// that is not known.
    pub least_seconds: Option<u32>,
}

/// The load of a whole pool.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadSeen {
    /// Busy server connections that the load asks for, by what arrives and what each takes; leaks not.
    pub demand: f64,
    /// Server connections open.
    pub held: u32,
    /// Server connections linked to a client.
    pub active: u32,
    /// Clients that wait.
    pub waiting: u32,
    /// Server connections held past the threshold by clients that do nothing, in a transaction or pinned; none
    /// where nobody can see it.
    pub leaked: Option<u32>,
    /// 95th percentile of the wait.
    pub wait_p95_milliseconds: Option<u32>,
    /// Age of the oldest sample in it.
    pub age_seconds: u32,
}

/// Why the load is not known, or a gateway not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Reason of `ScalingActive`, or of `GatewayAvailable`.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// A decision that changed the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetChange {
    /// Identifies it in logs, events and status.
    pub id: String,
    /// What decided it.
    pub reason: String,
    /// Target before.
    pub from: u32,
    /// Target after.
    pub to: u32,
    /// In words, with the numbers.
    pub message: String,
    /// When.
    pub at: UnixSeconds,
}

/// A change that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedWrite {
    /// How often in a row.
    pub times: u32,
    /// Whether it is time to try again. The shell knows it by a clock that nobody can set back.
    pub is_due: bool,
    /// What failed.
    pub error: String,
}

impl FailedWrite {
    /// Whether nothing failed, or it is time to try again.
    pub fn lets_try(failure: Option<&Self>) -> bool {
        failure.is_none_or(|failure| failure.is_due)
    }
}
