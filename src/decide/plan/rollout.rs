//! Which revision each pod is to run.
//!
//! A change of the settings becomes a new numbered revision. Pods that have none get the stable one at once; the others
//! change a few at a time (`rollout.canary.maxUnavailable`), the next only after the last was proven. Canary steps,
//! analysis and rollback decide here too, once they exist: between "who may change next" and "what counts as stable".

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::observed::{AgentAnswer, Annotation, Observed, PodSeen, RevisionSeen, SidecarSeen, UnixSeconds};
use crate::{
    contract::{PoolRevision, Settings, unknown_to},
    decide::{effective, shares::PodPhase},
};

/// No revision of ours is ever numbered so: what is was forged, and is never followed.
const FIRST_FORGED: u64 = 1 << 52;
/// What somebody else numbered so does not make ours any larger.
const FIRST_DOUBTED: u64 = 1 << 31;

/// A revision to create.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRevision {
    /// Its number.
    pub number: u64,
    /// What it says.
    pub settings: Settings,
}

/// How far a rollout has come, to be given back the next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutProgress {
    /// The revision that is rolled out.
    pub revision: u64,
    /// Pods proven to run it.
    pub proven: usize,
    /// Since when it is so many.
    pub since: UnixSeconds,
}

/// The revisions of a pool and of its pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rollout {
    /// To create before any pod is told.
    pub create: Option<NewRevision>,
    /// Names of the objects that the history limit drops.
    pub prune: Vec<String>,
    /// What new pods get.
    pub stable: u64,
    /// What all pods are to run.
    pub updated: u64,
    /// What to write on which pod (index).
    pub writes: Vec<(usize, Arc<PoolRevision>)>,
    /// Pods that are to run a revision and may be asked whether they do.
    pub members: usize,
    /// Of them: proven to run `updated`.
    pub proven: usize,
    /// Pods in which a process has proven itself and waits for somebody to promote it.
    pub awaiting_promotion: usize,
    /// True when `proven` has not risen within the deadline.
    pub is_stuck: bool,
    /// To be given back.
    pub progress: Option<RolloutProgress>,
}

/// What bounds a rollout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub strategy: effective::RolloutStrategy,
    /// Pods that run something keep it.
    pub frozen: bool,
}

pub(super) fn plan(observed: &Observed, settings: &Settings, pace: Pace, before: Option<RolloutProgress>) -> Rollout {
    let name = observed.pool.metadata.name.as_deref().unwrap_or_default();
    let Pace { strategy, frozen } = pace;
    let mut revisions: Vec<&RevisionSeen> = believable(observed.revisions).collect();
    revisions.sort_by_key(|revision| revision.number);
    let in_status = observed.status.and_then(|status| status.revision.as_ref());

    let newest = revisions.last().copied().filter(|newest| newest.settings.as_ref() == Some(settings));
    let (updated, create) = if let Some(newest) = newest {
        (newest.number, None)
    } else {
        let used = revisions.iter().map(|revision| revision.number);
        let own = used.chain(in_status.map(|revision| revision.updated)).filter(|&number| number < FIRST_FORGED);
        // what others took or pods carry may be an earlier pool's, and may be made up: it is never used, and counted from only
        // as far as ours are far from their end
        let taken: HashSet<u64> = observed.taken_numbers.iter().copied().chain(in_use(observed, name)).collect();
        let newest = own.chain(taken.iter().copied().filter(|&number| number < FIRST_DOUBTED)).max().unwrap_or(0);
        let number = (newest + 1..=FIRST_FORGED).find(|number| !taken.contains(number)).unwrap_or(FIRST_FORGED);
        (number, Some(NewRevision { number, settings: settings.clone() }))
    };
    let readable = revisions.iter().filter_map(|known| Some((known.number, known.settings.as_ref()?)));
    let known: BTreeMap<u64, Arc<PoolRevision>> = readable
        .chain([(updated, settings)])
        .map(|(number, settings)| (number, Arc::new(PoolRevision { revision: number, settings: settings.clone() })))
        .collect();
    let known = |number: u64| known.get(&number).cloned();
    let target = Arc::new(PoolRevision { revision: updated, settings: settings.clone() });

    let members: Vec<usize> =
        (0..observed.pods.len()).filter(|&pod| observed.pods[pod].phase != PodPhase::Terminating).collect();
    let proven = members.iter().filter(|&&pod| runs(&observed.pods[pod], name, updated)).count();
    let stable = if proven == members.len() {
        updated
    } else {
        let newest_running = observed.pods.iter().filter_map(|pod| on_pod(pod, name)).map(|pool| pool.revision).max();
        let before = in_status.map(|revision| revision.stable).filter(|&stable| known(stable).is_some());
        before.or(newest_running.filter(|&running| known(running).is_some())).unwrap_or(updated)
    };
    let stable_revision = known(stable).unwrap_or_else(|| target.clone());

    let mut writes = Vec::new();
    let mut waiting = Vec::new();
    let mut in_flight = 0;
    for &index in &members {
        let pod = &observed.pods[index];
        match on_pod(pod, name) {
            // nothing runs there yet, or what was in force before the first revision: there is nothing to lose
            None | Some(PoolRevision { revision: 0, .. }) => writes.push((index, stable_revision.clone())),
            // damaged: what it said before is what it gets again
            Some(running) if matches!(pod.revision, Annotation::Unreadable { .. }) => {
                writes.push((index, known(running.revision).unwrap_or_else(|| stable_revision.clone())));
            }
            Some(running) if *running == *target => {
                if pod.sidecar == SidecarSeen::Running && !runs(pod, name, updated) {
                    in_flight += 1;
                }
            }
            // a number with other settings than its revision has: not ours
            Some(running) if known(running.revision).is_some_and(|known| *known != *running) => {
                writes.push((index, stable_revision.clone()));
            }
            Some(_) if !frozen => waiting.push(index),
            Some(_) => {}
        }
    }
    waiting.sort_by_key(|&index| {
        let pod = &observed.pods[index];
        (pod.sidecar == SidecarSeen::Running, pod.created, &pod.uid)
    });
    let free = as_usize(strategy.max_unavailable).max(1).saturating_sub(in_flight);
    let mut running = 0;
    for index in waiting {
        if observed.pods[index].sidecar == SidecarSeen::Running {
            if running == free {
                break;
            }
            running += 1;
        }
        writes.push((index, target.clone()));
    }

    let awaiting_promotion =
        members.iter().filter(|&&pod| !runs(&observed.pods[pod], name, updated) && awaits(&observed.pods[pod])).count();
    let progress = match before {
        // who waits for somebody is not stuck
        Some(before) if before.revision == updated && before.proven == proven && awaiting_promotion == 0 => before,
        _ => RolloutProgress { revision: updated, proven, since: observed.now },
    };
    let deadline_seconds = i64::from(strategy.progress_deadline_seconds);
    let is_stuck = proven < members.len() && !frozen && observed.now - progress.since > deadline_seconds;
    let in_use: Vec<u64> = in_use(observed, name).collect();
    let history_limit = as_usize(strategy.revision_history_limit).max(1);
    let surplus = (revisions.len() + usize::from(create.is_some())).saturating_sub(history_limit);
    let is_used = |number: u64| number == stable || number == updated || in_use.contains(&number);
    Rollout {
        create,
        prune: oldest_unused(&revisions, is_used).take(surplus).collect(),
        stable,
        updated,
        writes,
        members: members.len(),
        proven,
        awaiting_promotion,
        is_stuck,
        progress: Some(progress),
    }
}

/// Revisions that can be ours.
pub(super) fn believable(revisions: &[RevisionSeen]) -> impl Iterator<Item = &RevisionSeen> {
    revisions.iter().filter(|revision| revision.number < FIRST_FORGED)
}

/// Numbers of the revisions that the pods are told to run.
fn in_use<'a>(observed: &'a Observed, pool: &'a str) -> impl Iterator<Item = u64> + 'a {
    observed.pods.iter().filter_map(move |pod| on_pod(pod, pool)).map(|pool| pool.revision)
}

/// Names of the revisions that nobody runs or is to run, the oldest first.
fn oldest_unused(revisions: &[&RevisionSeen], is_used: impl Fn(u64) -> bool) -> impl Iterator<Item = String> {
    let unused = revisions.iter().filter(move |revision| !is_used(revision.number));
    unused.map(|revision| revision.name.clone())
}

fn as_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// True when the pod's agent has a process that waits for somebody to promote it.
fn awaits(pod: &PodSeen) -> bool {
    pod.answer.report().and_then(|report| report.other).is_some_and(|other| other.awaiting_promotion)
}

/// What the pod's annotation says of this pool.
fn on_pod<'a>(pod: &'a PodSeen, pool: &str) -> Option<&'a PoolRevision> {
    pod.revision.last_known().and_then(|document| document.pools.get(pool))
}

/// True when the pod's agent read `revision` back from its pooler, and understands all of it.
pub(super) fn runs(pod: &PodSeen, pool: &str, revision: u64) -> bool {
    let Some(on_pod) = on_pod(pod, pool).filter(|on_pod| on_pod.revision == revision) else { return false };
    matches!(&pod.answer, AgentAnswer::Report(report) if report.revision == Some(revision) && unknown_to(report, &on_pod.settings).is_empty())
}

/// The settings that the pod's agent tells to be in force and has never heard of.
pub(super) fn unknown(pod: &PodSeen, pool: &str) -> Vec<&'static str> {
    let (Some(on_pod), AgentAnswer::Report(report)) = (on_pod(pod, pool), &pod.answer) else { return Vec::new() };
    if report.revision == Some(on_pod.revision) { unknown_to(report, &on_pod.settings) } else { Vec::new() }
}
