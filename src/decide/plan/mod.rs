//! PURE: one pool at one moment: what was observed in, everything to do and to tell out.
//!
//! The shell carries the plan out in the order of its fields: the revision before the pods that are to run it, the pods
//! before the status that tells of them. It may stop between any two writes: the next plan is made from what is there.

mod alike;
mod bypass;
mod conditions;
mod grants;
mod memory;
mod observed;
mod progress;
mod report;
mod rollout;
#[cfg(test)]
mod tests;
mod troubles;

use std::{collections::BTreeMap, sync::Arc};

pub use observed::{
    AgentAnswer, Annotation, BudgetSeen, FailedWrite, GatewaySeen, JudgedSeen, LoadSeen, Observed, PodFacts, PodSeen,
    PodsRefused, Poolers, ROLLOUT, RevisionSeen, Rival, SidecarSeen, SizingSeen, TargetChange, Trouble, Uninjected,
    current_size,
};
pub use report::{EventKind, EventNote, PoolReport};
pub use rollout::NewRevision;

pub use crate::domain::UnixSeconds;

use grants::Grants;

use crate::{
    api::reasons,
    contract::{ByPool, Document, GrantDocument, PodGrant, PoolRevision, RevisionDocument},
    decide::{
        effective::EffectivePool,
        guard::refused,
        rollout::{RolloutMemory, RolloutMove},
        shares::{Move, Shortage},
    },
};

/// Pods that are asked often while a revision is judged.
const WITNESSES: usize = 3;

/// Everything to do and to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// To create first. When that fails, no pod is told of it: [`Plan::without_creation`].
    pub create: Option<NewRevision>,
    /// Writes on pods, most urgent first.
    pub patches: Vec<PodPatch>,
    /// Uids of the pods of which something is awaited: what their annotations say has not been read back, or the agent may know of what
    /// kind a leak is.
    pub open: Vec<Arc<str>>,
    /// Status and conditions.
    pub report: PoolReport,
    /// Events.
    pub events: Vec<EventNote>,
    /// Names of revisions that the history limit drops.
    pub prune: Vec<String>,
    /// What is remembered of the rollout: in the report, and to be given back the next time.
    pub rollout: Option<RolloutMemory>,
    /// Whether the report has to be written down before any pod is written.
    pub remember_first: bool,
    /// How rollouts ended in this look, by the reasons of [`reasons`].
    pub rollouts_ended: Vec<&'static str>,
    /// When to look again if nothing else asks for it.
    pub look_again_seconds: Option<u32>,
}

/// One write on one pod: a merge patch of its annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct PodPatch {
    /// Name of the pod.
    pub name: String,
    /// Its uid: another pod of the name is not meant.
    pub uid: Arc<str>,
    /// The version that the plan was made from: whoever wrote since has won.
    pub resource_version: String,
    /// The annotation `sluice.dev/revision`, if it changes.
    pub revision: Option<Arc<RevisionDocument>>,
    /// The annotation `sluice.dev/grant`, if it changes.
    pub grant: Option<GrantDocument>,
    /// What is counted for the pod of this pool once the write is through, in server connections.
    pub granted: Option<u32>,
    /// What the write of the grant does.
    pub move_: Option<Move>,
}

impl PodPatch {
    /// True when it lowers what the pod may open or what is counted for it. What grows is written after it.
    pub fn makes_room(&self) -> bool {
        matches!(self.move_, Some(Move::Shrink | Move::Settle))
    }
}

/// Figures that several parts of the report need.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Target in force, in server connections.
    target: Option<u32>,
    /// Sum of the shares in force.
    share: u32,
    /// Pods proven to run what they should.
    proven: usize,
    shortage: Shortage,
}

/// Makes the plan. `remembered` is [`Plan::rollout`] of the last plan of this pool; None: what its status says. `cannot_render` says
/// why the pooler's driver refuses the settings.
pub fn plan(observed: &Observed, remembered: Option<&RolloutMemory>, cannot_render: Option<&str>) -> Plan {
    let name = observed.pool.metadata.name.as_deref().unwrap_or_default();
    let Ok(effective) = observed.effective else { return refused(observed, name, remembered) };
    let freeze = observed.frozen();
    let frozen = freeze.is_some();
    let may_create = FailedWrite::lets_try(observed.failure);

    // settings that cannot work are never rolled out
    let wanted = cannot_render.is_none().then_some(&effective.settings);
    let pace = rollout::Pace { strategy: &effective.rollout, frozen: frozen || cannot_render.is_some() };
    let rollout = rollout::plan(observed, wanted, pace, remembered);

    let refused = refused_beyond(observed, effective, name);
    let target = target(observed, effective).min(refused.unwrap_or(u32::MAX));
    let grants = grants::plan(observed, effective, target, refused.filter(|_| !frozen && is_starved(observed)), frozen);

    let patches = patches(observed, name, &grants, &rollout);
    let proven: Vec<bool> = observed.pods.iter().map(|pod| is_proven(pod, name)).collect();
    let mut awaited = vec![false; observed.pods.len()];
    for index in &grants.awaited {
        awaited[*index] = true;
    }
    let may_know_of_leaks = conditions::may_know_of_leaks(observed);
    let witnesses = rollout.course.as_ref().map_or_else(Vec::new, |course| witnesses(observed, name, course));
    let is_open = |index: usize, pod: &PodSeen| {
        awaited[index] || !proven[index] || may_know_of_leaks(pod) || witnesses.contains(&index)
    };
    let pods = observed.pods.iter().enumerate();
    let open = pods.filter(|(index, pod)| is_open(*index, pod)).map(|(_, pod)| pod.uid.clone()).collect();
    let figures = Figures {
        target: Some(target),
        share: grants.share,
        proven: proven.iter().filter(|is_proven| **is_proven).count(),
        shortage: grants.shortage,
    };
    let report = report::report(observed, &rollout, &figures, cannot_render);
    let events = report::events(observed, &rollout, &report);
    let plan = Plan {
        create: rollout.create,
        patches,
        open,
        report,
        events,
        prune: if may_create { rollout.prune } else { Vec::new() },
        remember_first: rollout.course.as_ref().is_some_and(|course| course.remember_first),
        rollouts_ended: rollout.course.as_ref().map(progress::ended).unwrap_or_default(),
        look_again_seconds: [
            rollout.course.as_ref().and_then(|course| course.look_again_seconds),
            freeze.and_then(|freeze| freeze.ends_in_seconds(observed.now)),
        ]
        .into_iter()
        .flatten()
        .min(),
        rollout: rollout.course.map(|course| course.memory).or_else(|| remembered.cloned()),
    };
    if may_create { plan } else { plan.without_creation() }
}

/// Some pods that run what is judged, which are asked often: whether the database is away is to be known before it is judged by that.
fn witnesses(observed: &Observed, name: &str, course: &RolloutMove) -> Vec<usize> {
    if !course.figures.is_in_course && course.memory.judged_after_promotion().is_none() {
        return Vec::new();
    }
    let runs = |pod: &PodSeen| {
        let told = pod.revision.last_known().and_then(|document| document.pools.get(name));
        told.is_some_and(|told| told.revision == course.goal.number)
    };
    (0..observed.pods.len()).filter(|index| runs(&observed.pods[*index])).take(WITNESSES).collect()
}

/// The writes on pods, most urgent first, as many as are wanted now.
fn patches(observed: &Observed, name: &str, grants: &Grants, rollout: &rollout::Rollout) -> Vec<PodPatch> {
    let mut order = Vec::new();
    let mut granted = vec![None; observed.pods.len()];
    for (index, grant, move_) in &grants.writes {
        order.push(*index);
        granted[*index] = Some((*grant, *move_));
    }
    let mut told = vec![None; observed.pods.len()];
    for (index, revision) in &rollout.writes {
        if granted[*index].is_none() {
            order.push(*index);
        }
        told[*index] = Some(revision);
    }
    let mut documents = BTreeMap::new();
    // a pod that could not be written holds up no other
    let may_be_written = |index: &usize| FailedWrite::lets_try(observed.pods[*index].failure.as_ref());
    let now = order.into_iter().filter(may_be_written).take(observed.most_writes);
    now.map(|index| {
        let pod = &observed.pods[index];
        PodPatch {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            resource_version: pod.resource_version.clone(),
            revision: told[index].map(|revision| revision_document(pod, name, revision, &mut documents)),
            grant: granted[index].map(|(grant, _)| grants::document(pod, name, observed.epoch, grant)),
            granted: granted[index].map(|(grant, _)| grant.granted),
            move_: granted[index].and_then(|(_, move_)| move_),
        }
    })
    .collect()
}

/// The document that tells a pod of a revision, the entries of its other pools kept; `alike` are those of pods that have none.
fn revision_document(
    pod: &PodSeen,
    pool: &str,
    revision: &PoolRevision,
    alike: &mut BTreeMap<u64, Arc<RevisionDocument>>,
) -> Arc<RevisionDocument> {
    let with = |mut pools: ByPool<PoolRevision>| {
        pools.insert(pool.to_owned(), revision.clone());
        Arc::new(RevisionDocument { v: RevisionDocument::VERSION, pools })
    };
    match pod.revision.last_known().filter(|document| document.pools.keys().any(|other| other != pool)) {
        Some(others) => with(others.pools.clone()),
        None => alike.entry(revision.revision).or_insert_with(|| with(ByPool::default())).clone(),
    }
}

impl Plan {
    /// The same once the new revision is created, its event with who changed the pool so.
    #[must_use]
    pub fn created_by(mut self, who: Option<&str>) -> Self {
        if let Some(who) = who {
            for event in self.events.iter_mut().filter(|event| event.reason == reasons::REVISION_CREATED) {
                event.note = format!("{}, changed by {who}", event.note);
            }
        }
        self
    }

    /// What can be done while the new revision cannot be created: no pod is told of it, and all get their grants.
    #[must_use]
    pub fn without_creation(mut self) -> Self {
        if let Some(NewRevision { number, is_restored: false, .. }) = self.create.take() {
            let is_new = |document: &Arc<RevisionDocument>| document.pools.values().any(|pool| pool.revision == number);
            for patch in &mut self.patches {
                patch.revision = patch.revision.take().filter(|document| !is_new(document));
            }
            self.patches.retain(|patch| patch.revision.is_some() || patch.grant.is_some());
            self.events.retain(|event| event.reason != reasons::REVISION_CREATED);
        }
        self
    }
}

/// A pool that cannot be put into force: what runs goes on running, and the status says why.
fn refused(observed: &Observed, name: &str, remembered: Option<&RolloutMemory>) -> Plan {
    let proven = observed.pods.iter().filter(|pod| is_proven(pod, name)).count();
    let figures = Figures {
        target: None,
        share: PodGrant::sum_of_shares(observed.pods.iter().filter_map(|pod| pod.grant_to(name))),
        proven,
        shortage: Shortage::None,
    };
    let rollout = rollout::Rollout::default();
    let report = report::report(observed, &rollout, &figures, None);
    let events = report::events(observed, &rollout, &report);
    Plan {
        create: None,
        patches: Vec::new(),
        open: Vec::new(),
        report,
        events,
        prune: Vec::new(),
        rollout: remembered.cloned(),
        remember_first: false,
        rollouts_ended: Vec::new(),
        look_again_seconds: None,
    }
}

/// The target in force: what the sizing decided, and before it has, what was in force.
fn target(observed: &Observed, effective: &EffectivePool) -> u32 {
    let before = || {
        let recommended =
            observed.status.and_then(|status| status.recommendation).map(|recommendation| recommendation.target);
        let name = observed.pool.metadata.name.as_deref().unwrap_or_default();
        let grants = observed.pods.iter().filter_map(|pod| pod.grant_to(name));
        effective.target_before(recommended, PodGrant::sum_of_shares(grants))
    };
    let wanted = observed.sizing.map_or_else(before, |sizing| sizing.decision.size);
    wanted.clamp(effective.min_allowed, effective.max_allowed)
}

/// What the pods may hold together, beside their sessions, while the database refuses more to one of them.
fn refused_beyond(observed: &Observed, effective: &EffectivePool, pool: &str) -> Option<u32> {
    let for_sessions = effective.settings.for_sessions();
    refused::of_pool(observed.pods.iter().map(|pod| {
        let share = pod.grant_to(pool).map_or(0, |grant| grant.share);
        refused::PodCeiling::of(pod.answer.report(), pod.answer.server_full(observed.now), share, for_sessions)
    }))
}

/// Whether the database lets a pod open nothing at all while others have what they have.
fn is_starved(observed: &Observed) -> bool {
    let mut refusals = observed.pods.iter().filter_map(|pod| pod.answer.server_full(observed.now));
    refusals.any(|full| full.refused_beyond == 0)
}

/// True when grant and revision of the pod were read back from its pooler.
fn is_proven(pod: &PodSeen, pool: &str) -> bool {
    let wanted = pod.revision.last_known().and_then(|document| document.pools.get(pool));
    wanted.is_some_and(|wanted| rollout::runs(pod, pool, wanted.revision)) && grants::is_proven(pod, pool)
}
