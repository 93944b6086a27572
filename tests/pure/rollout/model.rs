//! A small world in which everything that may happen to a rollout happens in every order, and what must hold in each state of it.
//!
//! The operator looks, and is killed between any two of its writes, or its status is refused. Agents do what their pods are told, or
//! cannot, and are asked or not yet. Pods come and go, time passes, the spec changes, people ask for things, and the analysis
//! changes its mind. Whatever is left to chance a fixed number of times (`Chances`) makes the world finite, and all of it is visited.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use sluice::{
    api::{ConnectionPoolStatus, RevisionStatus},
    contract::RevisionWait,
    decide::{
        analysis::AnalysisPhase,
        rollout::{
            FailureReason, JudgedTry, PostPromotionOutcome, RevisionId, RolloutHappening, RolloutInput,
            RolloutJudgement, RolloutMemory, RolloutMove, RolloutPod, RolloutState, RolloutStep, RolloutVerb,
        },
    },
};

/// What is tried: the machine, or one with a mistake in it.
pub type Decide = fn(&RolloutMemory, &RolloutInput<'_>) -> RolloutMove;

/// Seconds without progress after which a revision fails; longer than every pause of these worlds.
const DEADLINE_SECONDS: u32 = 3;
/// Nothing depends on what is longer ago.
const HORIZON: i64 = 6;
const UIDS: [&str; 4] = ["a", "b", "c", "d"];
/// Of what pods are given by reference, by how often that has changed.
const MARKS: [&str; 4] = ["m0", "m1", "m2", "m3"];

/// What becomes of a pod that is told a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quality {
    /// It runs, and is as good as the others.
    Good,
    /// No process of it ever proves itself.
    Dead,
    /// It runs, and the analysis finds it worse.
    Worse,
    /// It runs, and the analysis never knows.
    Unproven,
    /// No process of it proves itself in a pod before that is given something else by reference.
    DeadUntilMended,
    /// It runs, and is as good as the others, once clients of a process before have left.
    WaitsForDrain,
    /// It is as good as the others, and runs only in a pod that was created with it.
    WaitsForRestart,
    /// It is as good as the others on its canary, and found worse once it was promoted.
    WorseLater,
    /// It is as good as the others on its canary, and once it was promoted the analysis never knows.
    UnprovenLater,
}

/// What may still happen by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chances {
    /// Changes of the spec.
    pub changes: u8,
    /// Requests of people.
    pub requests: u8,
    /// Pods that end or appear.
    pub churn: u8,
    /// Looks that are killed, or whose status is refused.
    pub crashes: u8,
    /// Whether the spec may be paused and go on, each once.
    pub freezes: u8,
    /// Changes of what pods are given by reference.
    pub mends: u8,
}

/// What does not change in a world.
pub struct Setting {
    /// What says each revision: numbers from 1.
    pub qualities: &'static [Quality],
    pub steps: &'static [RolloutStep],
    pub max_unavailable: usize,
    /// Seconds that a revision is judged for after its promotion; None: it is not.
    pub post_promotion_seconds: Option<u32>,
    /// Pods at the begin, all proven to run revision 1; and at most.
    pub pods: usize,
    pub chances: Chances,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Pod {
    told: u64,
    /// What its pooler really runs.
    runs: Option<u64>,
    /// What its agent said last, to this process of the operator.
    said: Option<u64>,
    /// How often what it is given by reference has changed, and what its agent said last of that.
    given: u8,
    said_given: Option<u8>,
    /// Whether it was told nothing since.
    is_fresh: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    pods: Vec<Pod>,
    wanted: u64,
    /// What the status of the pool remembers.
    saved: RolloutMemory,
    /// What it says that new pods get instead of the stable one.
    new_pods: Option<u64>,
    /// What the process remembers; none after it was killed.
    held: Option<RolloutMemory>,
    request: Option<&'static str>,
    is_frozen: bool,
    /// What the analysis says.
    judged: Option<Judged>,
    /// How often what is referenced has changed; pods are given it one after the other.
    mended: u8,
    /// How often a failed revision was tried again by itself since a process of the operator began.
    tries: u8,
    /// Revisions that were seen to have failed, by a pod that was told to leave or by the status.
    failed: BTreeSet<u64>,
    chances: Chances,
}

/// What the analysis says, of which revision and in which phase.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Judged {
    revision: u64,
    phase: AnalysisPhase,
    judgement: RolloutJudgement,
    /// Whether the revision was tried again since: nobody has looked at this try yet.
    is_of_earlier_try: bool,
}

impl World {
    /// What the analysis says of the try in course.
    fn says(&self, revision: u64, phase: AnalysisPhase) -> Option<&RolloutJudgement> {
        let judged = self.judged.as_ref().filter(|judged| (judged.revision, judged.phase) == (revision, phase));
        judged.filter(|judged| !judged.is_of_earlier_try).map(|judged| &judged.judgement)
    }

    /// A pod as it is created now: the webhook gives it what the status says.
    fn new_pod(&self) -> Pod {
        let stable = self.saved.stable.as_ref().map_or(self.wanted, |stable| stable.number);
        let told = self.new_pods.unwrap_or(stable);
        Pod { told, runs: None, said: None, given: self.mended, said_given: None, is_fresh: false }
    }

    /// What goes into the next look.
    fn memory(&self) -> &RolloutMemory {
        self.held.as_ref().unwrap_or(&self.saved)
    }
}

/// How much of a look happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Whole,
    /// Everything but the status.
    Unsaved,
    /// Killed after so many writes on pods.
    Killed(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happening {
    Begin,
    Look(Extent),
    Obeys(usize),
    Says(usize),
    Ends(usize),
    Appears,
    SecondPasses,
    Change(u64),
    Request(&'static str),
    Freeze,
    Mend,
    IsGiven(usize),
    Judged(u64, AnalysisPhase, Verdict),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Nothing,
    Pass,
    Fail,
    Inconclusive,
}

/// Requests of people: what makes sense here and what does not.
const REQUESTS: [&str; 12] = [
    "promote 2",
    "promote 3",
    "promote-full 2",
    "promote-full 3",
    "abort 1",
    "abort 2",
    "abort 3",
    "retry 2",
    "retry 3",
    "undo 1",
    "undo 2",
    "undo 9",
];

fn id(number: u64) -> RevisionId {
    RevisionId { number, hash: format!("h{number}") }
}

fn unknown() -> RolloutJudgement {
    RolloutJudgement::Inconclusive { why: "no transactions".to_owned(), is_final: false }
}

impl Setting {
    fn quality(&self, revision: u64) -> Quality {
        usize::try_from(revision)
            .ok()
            .and_then(|at| self.qualities.get(at.checked_sub(1)?))
            .copied()
            .unwrap_or(Quality::Good)
    }

    /// Pods are alike, unless what each is given by reference is known by its uid.
    fn in_order(&self, world: &mut World) {
        if self.chances.mends == 0 {
            world.pods.sort();
        }
    }

    /// The state, whatever may still happen by chance in it.
    fn calm_key(&self, world: &World) -> u64 {
        let none = Chances { changes: 0, requests: 0, churn: 0, crashes: 0, freezes: 0, mends: 0 };
        let mut calm = World { chances: none, ..world.clone() };
        self.in_order(&mut calm);
        key(&calm)
    }

    /// Whether a process of what the pod is told proves itself in it.
    fn may_run(&self, pod: &Pod) -> bool {
        match self.quality(pod.told) {
            Quality::Dead => false,
            Quality::DeadUntilMended => pod.given > 0,
            Quality::WaitsForRestart => pod.runs.is_none(),
            _ => true,
        }
    }

    /// What a pod waits for before it can run what it is told.
    fn waits(&self, pod: &Pod) -> Option<RevisionWait> {
        match self.quality(pod.told) {
            _ if pod.runs == Some(pod.told) => None,
            Quality::WaitsForDrain => Some(RevisionWait::Drain),
            Quality::WaitsForRestart if pod.runs.is_some() => Some(RevisionWait::Restart),
            _ => None,
        }
    }

    fn revisions(&self) -> u64 {
        u64::try_from(self.qualities.len()).expect("few")
    }

    fn begin(&self) -> World {
        let pod = Pod { told: 1, runs: Some(1), said: Some(1), given: 0, said_given: Some(0), is_fresh: true };
        let saved =
            RolloutMemory { stable: Some(id(1)), updated: Some(id(1)), is_recalled: true, ..RolloutMemory::default() };
        World {
            pods: vec![pod; self.pods],
            wanted: 1,
            saved,
            new_pods: None,
            held: None,
            request: None,
            is_frozen: false,
            judged: None,
            mended: 0,
            tries: 0,
            failed: BTreeSet::new(),
            chances: self.chances,
        }
    }

    /// How many pods may run what is not stable in a step, counted in another way than the machine does.
    fn allowed(&self, step: usize, pods: usize) -> usize {
        if step >= self.steps.len() {
            return pods;
        }
        let mut allowed = 0;
        for step in &self.steps[..=step] {
            allowed = match step {
                RolloutStep::OnePod => 1,
                RolloutStep::SetWeight { percent } => {
                    let percent = usize::try_from(*percent).expect("small");
                    let whole = (1..=pods).find(|count| count * 100 >= percent * pods).unwrap_or(0);
                    if percent < 100 && pods > 1 { whole.min(pods - 1) } else { whole }
                }
                RolloutStep::Pause { .. } | RolloutStep::Analysis => allowed,
            };
        }
        allowed.min(pods)
    }
}

/// A search through all states of a world.
pub struct Search {
    setting: Setting,
    decide: Decide,
    seen: HashSet<u64>,
    at_rest: HashSet<u64>,
    /// How each state was reached: from which other, by what.
    reached: Vec<(usize, Happening)>,
    pub transitions: usize,
}

/// What does not hold, and how the world came there.
#[derive(Debug)]
pub struct Violation {
    pub promise: &'static str,
    pub way: String,
}

type Outcome = Result<World, &'static str>;

impl Search {
    pub fn new(setting: Setting, decide: Decide) -> Self {
        let (seen, at_rest) = (HashSet::new(), HashSet::new());
        Self { setting, decide, seen, at_rest, reached: Vec::new(), transitions: 0 }
    }

    pub fn states(&self) -> usize {
        self.seen.len()
    }

    /// Visits every state.
    pub fn run(&mut self) -> Result<(), Violation> {
        let mut waiting = VecDeque::new();
        let begin = self.setting.begin();
        self.seen.insert(key(&begin));
        self.reached.push((0, Happening::Begin));
        waiting.push_back((begin, 0));
        while let Some((world, from)) = waiting.pop_front() {
            self.comes_to_rest(&world).map_err(|promise| self.violation(promise, from, None))?;
            for happening in self.what_may_happen(&world) {
                self.transitions += 1;
                let next = self.after(&world, happening);
                let mut next = next.map_err(|promise| self.violation(promise, from, Some(happening)))?;
                self.setting.in_order(&mut next);
                if self.seen.insert(key(&next)) {
                    self.reached.push((from, happening));
                    waiting.push_back((next, self.reached.len() - 1));
                }
            }
        }
        Ok(())
    }

    fn violation(&self, promise: &'static str, from: usize, last: Option<Happening>) -> Violation {
        let mut way: Vec<Happening> = last.into_iter().collect();
        let mut at = from;
        while at > 0 {
            let (before, happening) = self.reached[at];
            way.push(happening);
            at = before;
        }
        way.reverse();
        Violation { promise, way: format!("{way:?}") }
    }

    fn what_may_happen(&self, world: &World) -> Vec<Happening> {
        let mut all = vec![Happening::Look(Extent::Whole), Happening::SecondPasses];
        for (at, pod) in world.pods.iter().enumerate() {
            if pod.runs != Some(pod.told) && self.setting.may_run(pod) {
                all.push(Happening::Obeys(at));
            }
            if pod.said != pod.runs || !pod.is_fresh || pod.said_given != Some(pod.given) {
                all.push(Happening::Says(at));
            }
            if pod.given < world.mended {
                all.push(Happening::IsGiven(at));
            }
        }
        let Chances { changes, requests, churn, crashes, freezes, mends } = world.chances;
        if crashes > 0 {
            let writes = self.look(world).tells.len();
            all.push(Happening::Look(Extent::Unsaved));
            all.extend((0..=writes).map(|writes| Happening::Look(Extent::Killed(writes))));
        }
        if churn > 0 {
            all.extend((0..world.pods.len()).map(Happening::Ends));
            if world.pods.len() < self.setting.pods {
                all.push(Happening::Appears);
            }
        }
        if changes > 0 {
            let others = (1..=self.setting.revisions()).filter(|revision| *revision != world.wanted);
            all.extend(others.map(Happening::Change));
        }
        if requests > 0 {
            let others = REQUESTS.into_iter().filter(|request| world.request != Some(request));
            all.extend(others.map(Happening::Request));
        }
        if freezes > 0 {
            all.push(Happening::Freeze);
        }
        if mends > 0 {
            all.push(Happening::Mend);
        }
        all.extend(self.verdict(world));
        all
    }

    /// What the analysis may say next of what is rolled out, once a pod runs it; and in the next moment it may not know any more.
    fn verdict(&self, world: &World) -> Option<Happening> {
        let memory = world.memory();
        let judged = memory.updated.as_ref()?.number;
        let phase = match memory.judged_after_promotion() {
            Some(_) => AnalysisPhase::PostPromotion,
            None => AnalysisPhase::Canary,
        };
        let is_run = world.pods.iter().any(|pod| pod.runs == Some(judged));
        let is_judged = world.says(judged, phase).is_some();
        let verdict = match (self.setting.quality(judged), phase) {
            _ if is_judged => Verdict::Nothing,
            _ if !is_run => return None,
            (Quality::Worse, _) | (Quality::WorseLater, AnalysisPhase::PostPromotion) => Verdict::Fail,
            (Quality::Unproven, _) | (Quality::UnprovenLater, AnalysisPhase::PostPromotion) => Verdict::Inconclusive,
            (
                Quality::Good
                | Quality::Dead
                | Quality::DeadUntilMended
                | Quality::WaitsForDrain
                | Quality::WaitsForRestart
                | Quality::WorseLater
                | Quality::UnprovenLater,
                _,
            ) => Verdict::Pass,
        };
        Some(Happening::Judged(judged, phase, verdict))
    }

    fn look(&self, world: &World) -> RolloutMove {
        let memory = world.memory();
        let revisions: Vec<RevisionId> = (1..=self.setting.revisions()).map(id).collect();
        let pods: Vec<RolloutPod> = world
            .pods
            .iter()
            .zip(UIDS)
            .map(|(pod, uid)| RolloutPod {
                uid,
                created: 0,
                is_running: true,
                told: Some(pod.told),
                reads_back: pod.said.filter(|_| pod.is_fresh),
                last_read_back: pod.said,
                awaits_promotion: false,
                waits: self.setting.waits(pod),
                reference_mark: pod.said_given.map(|given| MARKS[usize::from(given)]),
            })
            .collect();
        let input = RolloutInput {
            now: 0,
            wanted: id(world.wanted),
            is_created: true,
            revisions: &revisions,
            pods: &pods,
            steps: self.setting.steps,
            max_unavailable: self.setting.max_unavailable,
            progress_deadline_seconds: DEADLINE_SECONDS,
            is_frozen: world.is_frozen,
            away_since: None,
            command: world.request,
            post_promotion_seconds: self.setting.post_promotion_seconds,
            judged: world.judged.clone().map(|Judged { revision, phase, judgement, is_of_earlier_try }| {
                let begun = memory.try_begun(phase).filter(|_| !is_of_earlier_try).unwrap_or(i64::MIN);
                (JudgedTry { revision: id(revision), phase, begun }, judgement)
            }),
        };
        (self.decide)(memory, &input)
    }

    fn after(&self, world: &World, happening: Happening) -> Outcome {
        let mut next = world.clone();
        match happening {
            Happening::Begin => {}
            Happening::Look(extent) => return self.after_look(world, extent),
            Happening::Obeys(at) => next.pods[at].runs = Some(next.pods[at].told),
            Happening::Says(at) => {
                let pod = &mut next.pods[at];
                (pod.said, pod.said_given, pod.is_fresh) = (pod.runs, Some(pod.given), true);
            }
            Happening::Mend => {
                next.chances.mends -= 1;
                next.mended += 1;
            }
            Happening::IsGiven(at) => next.pods[at].given = next.mended,
            Happening::Ends(at) => {
                next.chances.churn -= 1;
                next.pods.remove(at);
            }
            // the webhook gives it what the status calls stable
            Happening::Appears => {
                next.chances.churn -= 1;
                let pod = next.new_pod();
                // what is judged after its promotion is stable by the status until that says otherwise
                let is_judged = next.saved.judged_after_promotion().is_some();
                // and so is what was for new pods
                let is_not_known = next.new_pods.is_some() && !next.saved.has_failed(&id(pod.told));
                if next.failed.contains(&pod.told) && !is_judged && !is_not_known {
                    return Err("no new pod gets a failed revision");
                }
                next.pods.push(pod);
            }
            Happening::SecondPasses => {
                age(&mut next.saved);
                next.held.iter_mut().for_each(age);
            }
            Happening::Change(revision) => {
                next.chances.changes -= 1;
                next.wanted = revision;
            }
            Happening::Request(request) => {
                next.chances.requests -= 1;
                next.request = Some(request);
            }
            Happening::Freeze => {
                next.chances.freezes -= 1;
                next.is_frozen = !next.is_frozen;
            }
            Happening::Judged(revision, phase, verdict) => {
                let judgement = match verdict {
                    Verdict::Nothing => None,
                    Verdict::Pass => Some(RolloutJudgement::Pass),
                    Verdict::Fail => Some(RolloutJudgement::Fail { why: "slower".to_owned() }),
                    Verdict::Inconclusive => Some(unknown()),
                };
                next.judged =
                    judgement.map(|judgement| Judged { revision, phase, judgement, is_of_earlier_try: false });
            }
        }
        Ok(next)
    }

    fn after_look(&self, world: &World, extent: Extent) -> Outcome {
        let decided = self.look(world);
        let before = world.memory();
        self.no_step_is_skipped(world, before, &decided)?;
        self.no_analysis_is_cut_short(world, &decided)?;
        what_is_found_worse_goes_back(world, before, &decided)?;
        no_earlier_try_decides(world, before, &decided)?;
        self.who_only_waits_does_not_fail(world, &decided)?;
        let is_tried_again = decided.happened.contains(&RolloutHappening::TriedAgain);
        if is_tried_again && world.tries >= world.mended {
            return Err("what failed is tried again once for each change of what pods are given");
        }
        is_promoted_when_all_run_it(world, &decided)?;
        everybody_leaves_what_failed(world, &decided)?;

        let mut next = world.clone();
        let (writes, is_saved, survives) = match extent {
            Extent::Whole => (decided.tells.len(), true, true),
            Extent::Unsaved => (decided.tells.len(), false, true),
            Extent::Killed(writes) => (writes, decided.remember_first, false),
        };
        if extent != Extent::Whole {
            next.chances.crashes -= 1;
        }
        for happened in &decided.happened {
            if let RolloutHappening::Obeyed { command } = happened
                && command.verb == RolloutVerb::Retry
                && (is_saved || writes > 0 || survives)
            {
                next.failed.remove(&command.revision);
            }
        }
        if is_tried_again && (is_saved || writes > 0 || survives) {
            next.failed.remove(&decided.goal.number);
            next.tries += 1;
        }
        if !survives {
            // who comes after it knows the try by the status alone
            next.tries = 0;
            // it was refused in the status before: who forgets it then cannot know
            next.failed.retain(|failed| next.saved.has_failed(&id(*failed)));
        }
        let is_acted_on = is_saved || survives || writes > 0;
        let is_tried_anew = decided.memory.position.begun != before.position.begun;
        let is_promoted = decided.happened.iter().any(|happened| matches!(happened, RolloutHappening::Promoted { .. }));
        if let Some(judged) = next.judged.as_mut().filter(|_| is_acted_on) {
            judged.is_of_earlier_try |= is_promoted || (is_tried_anew && judged.phase == AnalysisPhase::Canary);
        }
        if decided.happened.contains(&RolloutHappening::Failed) && is_acted_on {
            let failure = decided.memory.failure.as_ref().ok_or("who failed is remembered")?;
            next.failed.insert(failure.revision.number);
        }
        for (at, revision) in decided.tells.iter().take(writes) {
            Self::may_be_told(&next, &decided, *at, *revision)?;
            let pod = &mut next.pods[*at];
            (pod.told, pod.is_fresh) = (*revision, false);
            self.is_within_bounds(&next, &decided, *revision)?;
        }
        if is_saved {
            next.saved = normal(&kept(&decided));
            next.new_pods = decided.new_pods;
        }
        next.held = survives.then(|| normal(&decided.memory));
        if !survives {
            for pod in &mut next.pods {
                (pod.said, pod.said_given, pod.is_fresh) = (None, None, false);
            }
        }
        Ok(next)
    }

    /// A step is passed when its pods are proven and its time is over, or when somebody says so.
    fn no_step_is_skipped(
        &self,
        world: &World,
        before: &RolloutMemory,
        decided: &RolloutMove,
    ) -> Result<(), &'static str> {
        let after = &decided.memory;
        let is_same = before.updated == after.updated && before.position.steps_hash == after.position.steps_hash;
        let asked = decided.happened.iter().any(
            |happened| matches!(happened, RolloutHappening::Obeyed { command } if command.verb != RolloutVerb::Abort),
        );
        if asked || before.stable.as_ref() == Some(&decided.goal) {
            return Ok(());
        }
        let from = if is_same { before.position.step } else { 0 };
        let since = if is_same { before.position.since } else { 0 };
        let passed = self.setting.steps.get(from..after.position.step).unwrap_or_default();
        for (at, step) in passed.iter().enumerate() {
            // only the first of several has had any time
            let waited = if at == 0 { -since } else { 0 };
            let is_due = match step {
                RolloutStep::OnePod | RolloutStep::SetWeight { .. } => true,
                RolloutStep::Pause { seconds } => seconds.is_some_and(|seconds| waited >= i64::from(seconds)),
                RolloutStep::Analysis => {
                    world.says(decided.goal.number, AnalysisPhase::Canary) == Some(&RolloutJudgement::Pass)
                }
            };
            if !is_due {
                return Err("no pause and no analysis is skipped");
            }
        }
        let goal = decided.goal.number;
        let waits = |pod: &Pod| self.setting.waits(pod) == Some(RevisionWait::Restart);
        let is_unproven = |pod: &Pod| pod.told == goal && pod.runs != Some(goal) && !waits(pod);
        if !passed.is_empty() && world.pods.iter().any(is_unproven) {
            return Err("no step is passed before its pods are proven");
        }
        Ok(())
    }

    /// No deadline counts while pods only wait.
    fn who_only_waits_does_not_fail(&self, world: &World, decided: &RolloutMove) -> Result<(), &'static str> {
        let failure = decided.memory.failure.as_ref();
        let failure = failure.filter(|failure| failure.reason == FailureReason::ProgressDeadlineExceeded);
        let Some(failure) = failure.filter(|_| decided.happened.contains(&RolloutHappening::Failed)) else {
            return Ok(());
        };
        let goal = failure.revision.number;
        let is_proven = |pod: &Pod| pod.is_fresh && pod.said == Some(goal);
        let mut unproven = world.pods.iter().filter(|pod| pod.told == goal && !is_proven(pod)).peekable();
        if unproven.peek().is_some() && unproven.all(|pod| self.setting.waits(pod).is_some()) {
            return Err("who only waits does not fail");
        }
        Ok(())
    }

    /// What is judged after its promotion passes by what is said of it then, and no sooner than was asked for, or than waiting is over.
    fn no_analysis_is_cut_short(&self, world: &World, decided: &RolloutMove) -> Result<(), &'static str> {
        let Some(promoted) = &decided.memory.promoted else { return Ok(()) };
        let has_ended = decided.happened.contains(&RolloutHappening::PostPromotionEnded);
        let has_passed = promoted.end.as_ref().is_some_and(|end| end.outcome == PostPromotionOutcome::Passed);
        if !has_ended || !has_passed {
            return Ok(());
        }
        let said = world.says(decided.goal.number, AnalysisPhase::PostPromotion);
        let is_said = said == Some(&RolloutJudgement::Pass);
        let asked = i64::from(self.setting.post_promotion_seconds.unwrap_or(0));
        let is_over = -promoted.since >= asked || -promoted.counts_from > i64::from(DEADLINE_SECONDS);
        if is_said && is_over { Ok(()) } else { Err("no analysis after a promotion is cut short") }
    }

    /// Whether this pod may be told this now.
    fn may_be_told(world: &World, decided: &RolloutMove, at: usize, revision: u64) -> Result<(), &'static str> {
        if world.failed.contains(&revision) && world.pods[at].told != revision {
            return Err("a failed revision is told to no further pod");
        }
        let is_back = revision == decided.stable.number;
        if world.is_frozen && !is_back {
            return Err("nothing goes forward while the spec is paused");
        }
        if !is_back && revision != decided.goal.number {
            return Err("pods are told what is rolled out, or what is stable");
        }
        Ok(())
    }

    /// What holds right after a pod was told something.
    fn is_within_bounds(&self, world: &World, decided: &RolloutMove, revision: u64) -> Result<(), &'static str> {
        let goal = decided.goal.number;
        if revision != goal || goal == decided.stable.number {
            return Ok(());
        }
        let took = world.pods.iter().filter(|pod| pod.told == goal).count();
        if took > self.setting.allowed(decided.memory.position.step, world.pods.len()) {
            return Err("no more pods run a revision than the step allows");
        }
        let in_change = world.pods.iter().filter(|pod| pod.told == goal && pod.runs != Some(goal)).count();
        if in_change > self.setting.max_unavailable {
            return Err("no more pods are in change than maxUnavailable");
        }
        Ok(())
    }

    /// When nothing happens by chance any more, everything comes to rest where it should.
    fn comes_to_rest(&mut self, world: &World) -> Result<(), &'static str> {
        let mut calm = world.clone();
        let mut way = HashSet::new();
        loop {
            let here = self.setting.calm_key(&calm);
            if self.at_rest.contains(&here) {
                self.at_rest.extend(way);
                return Ok(());
            }
            // it goes round and round
            if !way.insert(here) {
                return Err("every rollout ends");
            }
            let created = calm.new_pod();
            for pod in &mut calm.pods {
                pod.given = calm.mended;
                // somebody restarts what asks for it
                if self.setting.waits(pod) == Some(RevisionWait::Restart) {
                    *pod = created.clone();
                }
                if self.setting.may_run(pod) {
                    pod.runs = Some(pod.told);
                }
                (pod.said, pod.said_given, pod.is_fresh) = (pod.runs, Some(pod.given), true);
            }
            calm = self.after(&calm, Happening::SecondPasses)?;
            calm.judged = None;
            if let Some(verdict) = self.verdict(&calm) {
                calm = self.after(&calm, verdict)?;
            }
            let decided = self.look(&calm);
            let is_quiet = decided.tells.is_empty();
            calm = self.after(&calm, Happening::Look(Extent::Whole))?;
            if is_quiet && self.is_at_rest(&calm, &decided)? {
                self.at_rest.extend(way);
                return Ok(());
            }
        }
    }

    /// Whether nothing is left to do, and what that looks like.
    fn is_at_rest(&self, world: &World, decided: &RolloutMove) -> Result<bool, &'static str> {
        let (goal, stable) = (decided.goal.number, decided.stable.number);
        let all_run = |revision| world.pods.iter().all(|pod| pod.told == revision && pod.runs == Some(revision));
        let is_bad = match self.setting.quality(goal) {
            // it came through its canary
            Quality::Good | Quality::WaitsForDrain | Quality::WaitsForRestart | Quality::UnprovenLater => false,
            // where nobody said so in time nothing was known
            Quality::WorseLater => {
                let end = decided.memory.promoted.as_ref().and_then(|promoted| promoted.end.as_ref());
                end.is_some_and(|end| end.outcome == PostPromotionOutcome::Passed)
            }
            Quality::DeadUntilMended => world.mended == 0,
            Quality::Dead => true,
            // who is wanted back is not judged, and people may end an analysis
            Quality::Worse | Quality::Unproven => self.setting.chances.requests == 0,
        };
        match decided.state {
            RolloutState::Complete if !all_run(goal) => Err("who is done runs it everywhere"),
            RolloutState::Complete if is_bad => Err("what is dead, worse or not proven is never done"),
            RolloutState::Complete | RolloutState::NoPods | RolloutState::Pausing { until: None } => Ok(true),
            // who was overtaken before keeps what it runs while the spec is paused
            RolloutState::Failed { away: 0 } if !all_run(stable) && !world.is_frozen => {
                Err("who is back runs the stable one everywhere")
            }
            RolloutState::Failed { away } => Ok(away == 0),
            _ => Ok(world.is_frozen),
        }
    }
}

/// A revision becomes the stable one when every pod really runs it.
fn is_promoted_when_all_run_it(world: &World, decided: &RolloutMove) -> Result<(), &'static str> {
    for happened in &decided.happened {
        if let RolloutHappening::Promoted { revision, .. } = happened {
            let all = world.pods.iter().all(|pod| pod.told == *revision && pod.runs == Some(*revision));
            if world.pods.is_empty() || !all {
                return Err("a revision is promoted when all pods run it");
            }
        }
    }
    Ok(())
}

/// What is found worse after its promotion fails in the same look, unless somebody wants something else of it.
fn what_is_found_worse_goes_back(
    world: &World,
    before: &RolloutMemory,
    decided: &RolloutMove,
) -> Result<(), &'static str> {
    let goal = &decided.goal;
    let is_judged = before.judged_after_promotion().is_some_and(|promoted| promoted.revision == *goal);
    let said = world.says(goal.number, AnalysisPhase::PostPromotion);
    let worse = matches!(said, Some(RolloutJudgement::Fail { .. }));
    let is_asked = decided.happened.iter().any(|happened| matches!(happened, RolloutHappening::Obeyed { .. }));
    if is_judged && worse && !is_asked && !world.is_frozen && !decided.memory.has_failed(goal) {
        return Err("what is found worse after its promotion goes back at once");
    }
    Ok(())
}

/// What is found worse was found so of the try in course.
fn no_earlier_try_decides(world: &World, before: &RolloutMemory, decided: &RolloutMove) -> Result<(), &'static str> {
    let failure = decided.memory.failure.as_ref().filter(|failure| failure.reason == FailureReason::AnalysisFailed);
    let Some(failure) = failure.filter(|_| decided.happened.contains(&RolloutHappening::Failed)) else { return Ok(()) };
    let is_new = decided.memory.position.begun != before.position.begun;
    let is_worse = |phase| matches!(world.says(failure.revision.number, phase), Some(RolloutJudgement::Fail { .. }));
    if (is_new || !is_worse(AnalysisPhase::Canary)) && !is_worse(AnalysisPhase::PostPromotion) {
        return Err("what was found of an earlier try decides nothing");
    }
    Ok(())
}

/// Whoever took what failed is told to leave it in the same look.
fn everybody_leaves_what_failed(world: &World, decided: &RolloutMove) -> Result<(), &'static str> {
    let goal = decided.goal.number;
    let leaves = |at| decided.tells.contains(&(at, decided.stable.number));
    let stays = |(at, pod): (usize, &Pod)| pod.told == goal && !leaves(at);
    if matches!(decided.state, RolloutState::Failed { .. }) && world.pods.iter().enumerate().any(stays) {
        return Err("every pod that took a failed revision is told to leave it");
    }
    Ok(())
}

/// A second later: now stays 0, and everything was longer ago.
fn age(memory: &mut RolloutMemory) {
    let older = |at: i64| (at - 1).max(-HORIZON);
    if memory.updated != memory.stable {
        memory.position.since = older(memory.position.since);
    }
    memory.position.progressed = memory.position.progressed.map(older);
    if let Some(promoted) = memory.promoted.as_mut().filter(|promoted| promoted.end.is_none()) {
        (promoted.since, promoted.counts_from) = (older(promoted.since), older(promoted.counts_from));
    }
}

/// What comes back of it from the status of the pool.
fn kept(decided: &RolloutMove) -> RolloutMemory {
    let revision = decided.memory.revision_status(decided.stable.number);
    RolloutMemory::from_status(Some(&ConnectionPoolStatus {
        revision: revision.map(|revision| RevisionStatus { new_pods: decided.new_pods, ..revision }),
        rollout: Some(decided.memory.rollout_status(decided.figures)),
        ..ConnectionPoolStatus::default()
    }))
}

/// Without what nothing depends on.
fn normal(memory: &RolloutMemory) -> RolloutMemory {
    let mut memory = memory.clone();
    memory.position.begun = 0;
    if let Some(failure) = &mut memory.failure {
        failure.at = 0;
        failure.message.clear();
        failure.retried_at = failure.retried_at.map(|_| 0);
        failure.rolled_back_at = failure.rolled_back_at.map(|_| 0);
    }
    if let Some(promoted) = &mut memory.promoted
        && let Some(end) = &mut promoted.end
    {
        (promoted.since, promoted.counts_from, end.at) = (0, 0, 0);
        end.message.clear();
    }
    if let Some(command) = &mut memory.command {
        command.refused = command.refused.as_ref().map(|_| String::new());
    }
    memory
}

fn key(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}
