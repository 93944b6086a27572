//! Which revision each pod is to run: what is seen, told to [`rollout`](crate::decide::rollout), and its answer as objects to create and
//! annotations to write.
//!
//! A change of the settings becomes a revision: the one that says the same already, or a new one. What an object says is believed as far as
//! it is what was written: its name has its number, and its content the hash that status or annotation have of it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{
    alike::AskedOnce,
    observed::{AgentAnswer, Annotation, Observed, PodSeen, RevisionSeen, SidecarSeen},
};
use crate::{
    api::ROLLOUT_ANNOTATION,
    contract::{LONGEST_MARK_BYTES, PoolRevision, RevisionDocument, Settings, UpstreamSeen, UpstreamState, unknown_to},
    decide::{
        analysis::RolloutAnalysis,
        effective::RolloutStrategy,
        outage,
        rollout::{self, RevisionId, RolloutInput, RolloutMemory, RolloutMove, RolloutPod, settings_hash},
        shares::PodPhase,
    },
};

/// No revision of ours is ever numbered so: what is was forged, and is never followed.
const FIRST_FORGED: u64 = 1 << 52;
/// What somebody else numbered so does not make ours any larger.
const FIRST_DOUBTED: u64 = 1 << 31;
/// Annotation on a pool with why it was changed, as other kinds have it.
const CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";
/// Longest cause that is kept, in bytes.
const CAUSE_BYTES: usize = 512;

/// A revision to create.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRevision {
    /// Its number.
    pub number: u64,
    /// What it says.
    pub settings: Settings,
    /// Why there is one.
    pub cause: String,
    /// Whether there was one before that somebody deleted.
    pub is_restored: bool,
}

/// The revisions of a pool and of its pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rollout {
    /// To create before any pod is told.
    pub create: Option<NewRevision>,
    /// Names of the objects that the history limit drops.
    pub prune: Vec<String>,
    /// What to write on which pod (index).
    pub writes: Vec<(usize, Arc<PoolRevision>)>,
    /// Where it is; None while there is nothing to roll out.
    pub course: Option<RolloutMove>,
    /// Names of objects that are not what was written, and are not followed.
    pub doubted: Vec<String>,
    /// Whether it stands still because the database serves not even those that change nothing.
    pub is_held: bool,
    /// Whether it stands still because the database is away, as the circuit breakers have it.
    pub is_outage: bool,
}

/// What bounds a rollout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace<'a> {
    pub strategy: &'a RolloutStrategy,
    /// Pods that run something keep it.
    pub frozen: bool,
}

/// The revisions of which the content is known.
#[derive(Default)]
struct History {
    known: BTreeMap<u64, (RevisionId, Arc<PoolRevision>)>,
    /// Numbers of those that are objects.
    objects: HashSet<u64>,
    doubted: Vec<String>,
}

impl History {
    fn of(observed: &Observed, pool: &str, memory: &RolloutMemory) -> Self {
        let undone = memory.undone.iter().flat_map(|undone| [&undone.to, &undone.spec]);
        let way_back = memory.promoted.iter().map(|promoted| &promoted.from);
        let remembered = memory.stable.iter().chain(&memory.updated).chain(undone).chain(way_back);
        let remembered: Vec<&RevisionId> = remembered.collect();
        let remembered = || remembered.iter().filter(|known| !known.hash.is_empty());
        let mut history = Self::default();
        for RevisionSeen { name, number, settings, annotated_hash, .. } in observed.revisions {
            let Some(settings) = settings.as_ref().filter(|_| *number < FIRST_FORGED) else { continue };
            let id = RevisionId::of(*number, settings);
            let written = remembered().find(|known| known.number == *number).map(|known| &known.hash);
            let is_as_written = written.or(annotated_hash.as_ref()).is_none_or(|written| *written == id.hash);
            if is_as_written && *name == format!("{pool}-{number}") {
                history.objects.insert(*number);
                history.know(id, settings);
            } else {
                history.doubted.push(name.clone());
            }
        }
        // an object that is gone: the pods that run it have it whole
        for wanted in remembered() {
            let on_pods = || observed.pods.iter().filter_map(|pod| on_pod(pod, pool));
            let is_it = |found: &&PoolRevision| {
                found.revision == wanted.number && settings_hash(&found.settings) == wanted.hash
            };
            if !history.known.contains_key(&wanted.number)
                && let Some(found) = on_pods().find(is_it)
            {
                history.know((*wanted).clone(), &found.settings);
            }
        }
        history
    }

    fn know(&mut self, id: RevisionId, settings: &Settings) {
        let revision = PoolRevision { revision: id.number, settings: settings.clone() };
        self.known.insert(id.number, (id, Arc::new(revision)));
    }

    fn get(&self, number: u64) -> Option<&Arc<PoolRevision>> {
        self.known.get(&number).map(|(_, revision)| revision)
    }

    /// The revision that says this, if there is one: of several the one in course, then the stable one, then the newest.
    fn saying(&self, settings: &Settings, memory: &RolloutMemory) -> Option<RevisionId> {
        let is = |remembered: &Option<RevisionId>, number| {
            remembered.as_ref().is_some_and(|remembered| remembered.number == number)
        };
        let equal = self.known.values().filter(|(_, revision)| revision.settings == *settings);
        let best =
            equal.max_by_key(|(id, _)| (is(&memory.updated, id.number), is(&memory.stable, id.number), id.number));
        best.map(|(id, _)| id.clone())
    }

    /// What the spec said last, as far as it was ever rolled out, or says the newest.
    fn last(&self, memory: &RolloutMemory) -> Option<&Settings> {
        let undone = memory.undone.as_ref().map(|undone| &undone.spec);
        let updated = undone.or(memory.updated.as_ref()).and_then(|updated| self.get(updated.number));
        let newest = || self.known.values().next_back().map(|(_, revision)| revision);
        updated.or_else(newest).map(|revision| &revision.settings)
    }
}

/// Makes the plan. `wanted`: what the spec says; None where that cannot work, and what was rolled out last stays.
pub(super) fn plan(
    observed: &Observed,
    wanted: Option<&Settings>,
    pace: Pace<'_>,
    before: Option<&RolloutMemory>,
) -> Rollout {
    let name = observed.pool.metadata.name.as_deref().unwrap_or_default();
    let memory = before.cloned().unwrap_or_else(|| RolloutMemory::from_status(observed.status));
    let mut history = History::of(observed, name, &memory);
    let Some(settings) = wanted.or_else(|| history.last(&memory)).cloned() else {
        return Rollout { doubted: history.doubted, ..Rollout::default() };
    };
    let known = history.saying(&settings, &memory);
    let is_created = known.is_some();
    let wanted = known.unwrap_or_else(|| RevisionId {
        number: next_number(observed, name, &history, &memory, &settings),
        hash: settings_hash(&settings),
    });
    history.know(wanted.clone(), &settings);

    let members: Vec<usize> =
        (0..observed.pods.len()).filter(|&pod| observed.pods[pod].phase != PodPhase::Terminating).collect();
    let mut are_ours = AskedOnce::default();
    let pods: Vec<RolloutPod> =
        members.iter().map(|&pod| as_pod(&observed.pods[pod], name, &history, &mut are_ours)).collect();
    let revisions: Vec<RevisionId> = history.known.values().map(|(id, _)| id.clone()).collect();
    let strategy = pace.strategy;
    let is_held = database_fails(observed, name, &memory);
    let away_since = outage::began(observed.pods.iter().filter_map(|pod| pod.answer.heard()), observed.now);
    // what was measured while it was away says nothing
    let judged = observed.judged.filter(|judged| judged.outage == memory.outage);
    let course = rollout::step(
        &memory,
        &RolloutInput {
            now: observed.now,
            wanted: wanted.clone(),
            is_created,
            revisions: &revisions,
            pods: &pods,
            steps: &strategy.steps,
            max_unavailable: as_usize(strategy.max_unavailable),
            progress_deadline_seconds: strategy.progress_deadline_seconds,
            is_frozen: pace.frozen || is_held,
            away_since,
            command: observed
                .pool
                .metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(ROLLOUT_ANNOTATION))
                .map(String::as_str),
            post_promotion_seconds: strategy.post_promotion.as_ref().map(RolloutAnalysis::planned_exposure_seconds),
            judged: judged.map(|judged| (judged.of.clone(), judged.judgement.clone())),
        },
    );
    let writes = writes(observed, name, &history, &members, &course);

    let create = if is_created {
        restored(name, &history, &course)
    } else {
        Some(NewRevision { number: wanted.number, settings, cause: cause(observed), is_restored: false })
    };
    let in_use: HashSet<u64> = in_use(observed, name).collect();
    let undone = course.memory.undone.as_ref().map(|undone| undone.to.number);
    let way_back = course.memory.judged_after_promotion().map(|promoted| promoted.from.number);
    let is_used = |number: u64| {
        [course.stable.number, course.goal.number, wanted.number].contains(&number)
            || [undone, way_back].contains(&Some(number))
            || in_use.contains(&number)
    };
    let limit = as_usize(strategy.revision_history_limit).max(1);
    let surplus = (history.objects.len() + usize::from(create.is_some())).saturating_sub(limit);
    let unused = history.known.keys().filter(|number| history.objects.contains(*number) && !is_used(**number));
    Rollout {
        create,
        // the oldest first
        prune: unused.take(surplus).map(|number| format!("{name}-{number}")).collect(),
        writes,
        course: Some(course),
        doubted: history.doubted,
        is_held,
        is_outage: away_since.is_some(),
    }
}

/// Whether the database takes no writes or does not answer, by all pods that run the stable revision and ask it: then nothing can prove
/// itself, and that says nothing of what is rolled out.
fn database_fails(observed: &Observed, pool: &str, memory: &RolloutMemory) -> bool {
    let Some(stable) = &memory.stable else { return false };
    let unchanged = observed.pods.iter().filter(|pod| runs(pod, pool, stable.number));
    let mut seen = unchanged.filter_map(|pod| pod.answer.report()?.upstream.as_ref()).peekable();
    let fails = |upstream: &UpstreamSeen| match upstream.state {
        UpstreamState::ReadOnly => true,
        UpstreamState::Unknown => upstream.silent == Some(true),
        UpstreamState::Primary => false,
    };
    seen.peek().is_some() && seen.all(fails)
}

/// A number that nobody has.
fn next_number(observed: &Observed, pool: &str, history: &History, memory: &RolloutMemory, settings: &Settings) -> u64 {
    let of_names = observed
        .revisions
        .iter()
        .filter_map(|revision| revision.name.strip_prefix(pool)?.strip_prefix('-')?.parse::<u64>().ok());
    // what others took or pods carry may be an earlier pool's, and may be made up: it is never used, and counted from only as far as
    // ours are far from their end
    let taken: HashSet<u64> = observed
        .taken_numbers
        .iter()
        .copied()
        .chain(in_use(observed, pool))
        .chain(observed.revisions.iter().map(|revision| revision.number))
        .chain(of_names)
        .collect();
    // decided on before, and not created yet
    let decided = memory.updated.as_ref().filter(|updated| updated.hash == settings_hash(settings));
    if let Some(decided) = decided.filter(|decided| decided.number > 0 && !taken.contains(&decided.number)) {
        return decided.number;
    }
    let remembered = memory.stable.iter().chain(&memory.updated).map(|revision| revision.number);
    let own = history.known.keys().copied().chain(remembered).filter(|number| *number < FIRST_FORGED);
    let newest = own.chain(taken.iter().copied().filter(|number| *number < FIRST_DOUBTED)).max().unwrap_or(0);
    (newest + 1..=FIRST_FORGED).find(|number| !taken.contains(number)).unwrap_or(FIRST_FORGED)
}

/// What was rolled out or is stable and has no object any more, out of what the pods have of it; not in the place of an object that is not
/// what was written.
fn restored(pool: &str, history: &History, course: &RolloutMove) -> Option<NewRevision> {
    let is_gone = |number: &u64| !history.objects.contains(number);
    let number = [course.stable.number, course.goal.number].into_iter().find(is_gone)?;
    let name_is_free = !history.doubted.contains(&format!("{pool}-{number}"));
    let settings = history.get(number).filter(|_| name_is_free)?.settings.clone();
    Some(NewRevision { number, settings, cause: "it was deleted while pods ran it".to_owned(), is_restored: true })
}

fn writes(
    observed: &Observed,
    name: &str,
    history: &History,
    members: &[usize],
    course: &RolloutMove,
) -> Vec<(usize, Arc<PoolRevision>)> {
    let told =
        course.tells.iter().filter_map(|(member, number)| Some((members[*member], history.get(*number)?.clone())));
    let mut writes: Vec<(usize, Arc<PoolRevision>)> = told.collect();
    let told: HashSet<usize> = writes.iter().map(|(pod, _)| *pod).collect();
    // damaged: what it said before is what it gets again
    for &index in members.iter().filter(|index| !told.contains(*index)) {
        let pod = &observed.pods[index];
        if let (Annotation::Unreadable { .. }, Some(running)) = (&pod.revision, on_pod(pod, name)) {
            let known = history.get(running.revision).or_else(|| history.get(course.stable.number));
            writes.extend(known.map(|known| (index, known.clone())));
        }
    }
    writes
}

/// A pod as the rollout sees it.
fn as_pod<'a>(
    pod: &'a PodSeen,
    pool: &str,
    history: &History,
    are_ours: &mut AskedOnce<'a, RevisionDocument>,
) -> RolloutPod<'a> {
    // a number with other settings than its revision has: not ours
    let is_ours = |told: &PoolRevision| history.get(told.revision).is_none_or(|known| **known == *told);
    let document = pod.revision.last_known();
    let document =
        document.filter(|document| are_ours.of(document, |document| document.pools.get(pool).is_some_and(is_ours)));
    let told = document.and_then(|document| document.pools.get(pool)).filter(|told| told.revision > 0);
    let understood = |settings: &Settings| match &pod.answer {
        AgentAnswer::Report(report) if !pod.is_answer_outdated && unknown_to(report, settings).is_empty() => {
            report.revision
        }
        _ => None,
    };
    RolloutPod {
        uid: &pod.uid,
        created: pod.created,
        is_running: pod.sidecar == SidecarSeen::Running,
        told: told.map(|told| told.revision),
        reads_back: told.and_then(|told| understood(&told.settings)),
        last_read_back: pod.answer.report().and_then(|report| report.revision),
        awaits_promotion: pod
            .answer
            .report()
            .and_then(|report| report.other)
            .is_some_and(|other| other.awaiting_promotion),
        waits: pod.answer.report().and_then(|report| report.revision_waits),
        reference_mark: match &pod.answer {
            AgentAnswer::Report(report) => {
                report.reference_mark.as_deref().filter(|mark| mark.len() <= LONGEST_MARK_BYTES)
            }
            AgentAnswer::NotAsked | AgentAnswer::Unreachable { .. } => None,
        },
    }
}

/// Why there is a new revision: in the words of whoever changed the pool, else which generation of what.
fn cause(observed: &Observed) -> String {
    let said = observed.pool.metadata.annotations.as_ref().and_then(|all| all.get(CAUSE_ANNOTATION));
    if let Some(said) = said {
        return said[..said.floor_char_boundary(CAUSE_BYTES)].to_owned();
    }
    let generation = observed.pool.metadata.generation.unwrap_or_default();
    let class = observed.effective.ok().and_then(|effective| effective.class.as_ref());
    match class {
        Some((class, Some(of_class))) => {
            format!("generation {generation}, with generation {of_class} of class {class}")
        }
        _ => format!("generation {generation}"),
    }
}

/// Numbers of the revisions that the pods are told to run.
fn in_use<'a>(observed: &'a Observed, pool: &'a str) -> impl Iterator<Item = u64> + 'a {
    observed.pods.iter().filter_map(move |pod| on_pod(pod, pool)).map(|pool| pool.revision)
}

fn as_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// What the pod's annotation says of this pool.
fn on_pod<'a>(pod: &'a PodSeen, pool: &str) -> Option<&'a PoolRevision> {
    pod.revision.last_known().and_then(|document| document.pools.get(pool))
}

/// True when the pod's agent read `revision` back from its pooler, and understands all of it.
pub(super) fn runs(pod: &PodSeen, pool: &str, revision: u64) -> bool {
    let told = on_pod(pod, pool).filter(|told| told.revision == revision && !pod.is_answer_outdated);
    let Some(on_pod) = told else { return false };
    matches!(&pod.answer, AgentAnswer::Report(report) if report.revision == Some(revision) && unknown_to(report, &on_pod.settings).is_empty())
}

/// The settings that the pod's agent tells to be in force and has never heard of.
pub(super) fn unknown(pod: &PodSeen, pool: &str) -> Vec<&'static str> {
    let (Some(on_pod), AgentAnswer::Report(report)) = (on_pod(pod, pool), &pod.answer) else { return Vec::new() };
    if report.revision == Some(on_pod.revision) { unknown_to(report, &on_pod.settings) } else { Vec::new() }
}
