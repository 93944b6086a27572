//! PURE: how a revision goes over the pods of a pool. What is remembered, what is seen and now in; whom to tell what, and what to
//! remember, out.
//!
//! ```text
//!                      every step done, every pod proven
//!  wanted ──▶ step 0 ──▶ step 1 ──▶ ... ──▶ all ──▶ stable ──▶ judged for a while more
//!     ▲          │          │                │                    │
//!     │          └──────────┴────────────────┴────────────────────┴──▶ failed: back to stable at once, on every pod that took it
//!     └── other settings, `retry`                                      (deadline, analysis, `abort`)
//! ```
//!
//! - **Stable** is what was promoted last: what new pods get, and where a failure goes back to. Before anything was promoted
//!   there is no way back and nothing to compare with: pods change a few at a time, without steps.
//! - **Forward** at most as many pods as the step in course allows, and at most `maxUnavailable` of them in change: told and
//!   not proven. **Back** at once: the old process is warm, and what is known to be bad is left by everybody.
//! - A pod that **waits** (for clients that stay with the process before the last, or for its own restart) says nothing of a revision: while
//!   nobody does more than that, no deadline counts. Where pods take a revision over with their restart alone, new pods get it, as many as
//!   the step in course allows.
//! - A revision that **failed** is remembered by the hash of what it says, and is not tried again until that changes, or what the pods
//!   are given by reference (a Secret that was mended): once for each change, and not where somebody took it back.
//! - A revision that is judged **after its promotion** is the stable one meanwhile: new pods get it. Where it is worse, the stable one
//!   before it is stable again, and everybody goes back. Where nothing can be known, it stays: it came through its canary.
//! - Another revision **supersedes** one in course: its pods are the first to take the new one, as far as the first step allows,
//!   and the others go back.
//!
//! Everything but [`RolloutMemory`] is derived anew each time from pods and revisions, so whoever dies between two writes is
//! followed by somebody who goes on from what is there. Only that a revision failed cannot be derived again: it is remembered
//! before anybody is told ([`RolloutMove::remember_first`]).

mod command;
mod memory;
mod steps;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

pub use command::{CommandError, LONGEST_COMMAND_BYTES, RolloutCommand, RolloutVerb};
pub use memory::{
    COMMAND_DONE, FAILED_HASHES, FailureReason, HandledCommand, PodReferences, PostPromotion, PostPromotionEnd,
    PostPromotionOutcome, RevisionId, RolloutFailure, RolloutFigures, RolloutMemory, RolloutPosition, UndoneRevision,
    settings_hash,
};
pub use steps::{
    DEFAULT_PAUSE_SECONDS, DEFAULT_STEPS, JUDGED_STEPS, RolloutStep, allowed_pods, percent_of, steps_hash,
    weight_percent,
};

use crate::{
    contract::RevisionWait,
    decide::{analysis::AnalysisPhase, outage::OutageSpan},
    domain::UnixSeconds,
};

/// Pods of which is remembered what they were given when a revision failed.
const MOST_REFERENCES: usize = 10;
/// At least so long whoever takes a rollout over watches it before it counts as without progress.
const RECALL_SECONDS: i64 = 30;

/// A pod that is there and is not going.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutPod<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// When it was created.
    pub created: UnixSeconds,
    /// Whether its sidecar runs.
    pub is_running: bool,
    /// The revision that it is told to run; None before it was told any that is worth keeping.
    pub told: Option<u64>,
    /// The revision that its agent reads back from the pooler, understood whole; None while it does not answer.
    pub reads_back: Option<u64>,
    /// The same as it was known last.
    pub last_read_back: Option<u64>,
    /// Whether a process has proven itself in it and waits for `blueGreen.autoPromotionEnabled`.
    pub awaits_promotion: bool,
    /// What it waits for before it can take over what it is told.
    pub waits: Option<RevisionWait>,
    /// The mark of what it is given by reference; None while its agent does not answer, or does not tell.
    pub reference_mark: Option<&'a str>,
}

impl RolloutPod<'_> {
    /// Whether the pod is told this revision and reads it back.
    pub fn is_proven(&self, revision: u64) -> bool {
        self.told == Some(revision) && self.reads_back == Some(revision)
    }

    /// Whether it waits for this before it can prove a revision.
    fn waits_for(&self, what: RevisionWait, revision: u64) -> bool {
        self.waits == Some(what) && !self.is_proven(revision)
    }

    /// Whether it is on its way from one revision to another, as far as anybody knows.
    fn is_in_change(&self) -> bool {
        self.told.is_some() && self.last_read_back.is_some_and(|last| self.told != Some(last))
    }
}

/// Which analysis: that of one revision, in one phase, of one try. Whoever tries a revision again begins another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedTry {
    /// Of which revision.
    pub revision: RevisionId,
    /// While it is rolled out, or after its promotion.
    pub phase: AnalysisPhase,
    /// When the try began, or when it was promoted.
    pub begun: UnixSeconds,
}

/// What an analysis says of a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RolloutJudgement {
    /// It cannot be told yet, or at all.
    Inconclusive {
        /// What is lacking.
        why: String,
        /// Whether waiting makes it no better.
        is_final: bool,
    },
    /// It is as good as the stable one.
    Pass,
    /// It is worse.
    Fail {
        /// By which figures.
        why: String,
    },
}

/// Everything that a rollout is decided by.
#[derive(Clone, Debug)]
pub struct RolloutInput<'a> {
    /// The time.
    pub now: UnixSeconds,
    /// The revision of what the spec says.
    pub wanted: RevisionId,
    /// Whether that one exists as an object.
    pub is_created: bool,
    /// The revisions of which the content is known, the wanted one among them.
    pub revisions: &'a [RevisionId],
    /// The pods, in any order.
    pub pods: &'a [RolloutPod<'a>],
    /// The steps of `rollout.canary.steps`, or the built-in ones.
    pub steps: &'a [RolloutStep],
    /// Pods that may be in change at once; at least 1.
    pub max_unavailable: usize,
    /// Seconds without progress after which the revision counts as failed.
    pub progress_deadline_seconds: u32,
    /// Whether automation is frozen: nothing goes forward, and nothing fails by itself.
    pub is_frozen: bool,
    /// Since when the database is away, while it is: nothing goes forward and nothing fails by itself, and what was measured meanwhile says
    /// nothing.
    pub away_since: Option<UnixSeconds>,
    /// The annotation `sluice.dev/rollout` of the pool.
    pub command: Option<&'a str>,
    /// Seconds that a revision is judged for after its promotion at least, unless it is found worse; None: it is not.
    pub post_promotion_seconds: Option<u32>,
    /// What the analysis says, and which one: of another revision than that in course, in another phase, or of an earlier try it says
    /// nothing. None: nobody judges.
    pub judged: Option<(JudgedTry, RolloutJudgement)>,
}

impl RolloutInput<'_> {
    /// Whether nothing goes forward, and nothing fails by itself.
    fn stands_still(&self) -> bool {
        self.is_frozen || self.away_since.is_some()
    }
}

/// Where a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RolloutState {
    /// No pod runs: there is nobody to prove anything.
    NoPods,
    /// Every pod is proven to run what is wanted.
    Complete,
    /// The same, and it was promoted lately and is judged for a while more.
    PostPromotion,
    /// Pods are being told, or have yet to prove it.
    Rolling,
    /// It waits in a pause.
    Pausing {
        /// Until then; None: until somebody promotes.
        until: Option<UnixSeconds>,
    },
    /// It waits for the judgement.
    Analysing,
    /// A process has proven itself in a pod, and waits for `blueGreen.autoPromotionEnabled`.
    AwaitingPromotion,
    /// What is wanted failed.
    Failed {
        /// Pods that have yet to leave it.
        away: usize,
    },
    /// It has come no further within the deadline, and there is nothing to go back to.
    Stuck,
}

/// What happened in a look, once each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolloutHappening {
    /// A step is done.
    StepDone {
        /// Its index.
        step: usize,
    },
    /// A revision became the stable one.
    Promoted {
        /// Its number.
        revision: u64,
        /// The stable one before it; None where it is the first.
        from: Option<u64>,
    },
    /// The analysis after the promotion ended, and the revision stays; how is in the memory.
    PostPromotionEnded,
    /// A revision failed; how is in the memory.
    Failed,
    /// The last pod that had taken it is back.
    RolledBack,
    /// It is tried again, because what pods are given by reference has changed.
    TriedAgain,
    /// Somebody's request was done.
    Obeyed {
        /// The request.
        command: RolloutCommand,
    },
    /// Somebody's request was refused.
    Refused {
        /// The annotation.
        text: String,
        /// Why, and what to do.
        why: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutMove {
    /// To be remembered, and given back the next time.
    pub memory: RolloutMemory,
    /// Whether that has to be written down before any pod is told anything.
    pub remember_first: bool,
    /// Where it is.
    pub state: RolloutState,
    /// What is rolled out, or was.
    pub goal: RevisionId,
    /// What was promoted last: new pods get it, unless they get the goal.
    pub stable: RevisionId,
    /// The number of the goal, where new pods get that: pods take it over with their restart alone, and the step in course allows it.
    pub new_pods: Option<u64>,
    /// Which pod (index) to tell which revision.
    pub tells: Vec<(usize, u64)>,
    /// Pods that count: those that run, and those that were told the goal.
    pub members: usize,
    /// Of them: proven to run the goal, or where that failed the stable one.
    pub proven: usize,
    /// Pods in which a process waits for its promotion.
    pub awaiting_promotion: usize,
    /// Pods that were told the goal and wait until clients have left the process before the last one.
    pub awaiting_drain: usize,
    /// Pods that were told the goal and take it over with their restart alone.
    pub awaiting_restart: usize,
    /// What the status tells of it.
    pub figures: RolloutFigures,
    /// What happened.
    pub happened: Vec<RolloutHappening>,
    /// When to look again if nothing else asks for it.
    pub look_again_seconds: Option<u32>,
}

/// Decides what to do next.
pub fn step(before: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut machine = Machine::new(before, input);
    machine.try_again_if_mended();
    machine.obey();
    machine.note_restarts();
    machine.advance();
    machine.fail_if_due();
    machine.judge_promoted();
    machine.note_way_back();
    machine.decide()
}

/// One look at a rollout.
struct Machine<'a> {
    input: &'a RolloutInput<'a>,
    memory: RolloutMemory,
    goal: RevisionId,
    /// Where a failure goes back to, if its content is known.
    stable: Option<RevisionId>,
    happened: Vec<RolloutHappening>,
}

impl<'a> Machine<'a> {
    fn new(before: &RolloutMemory, input: &'a RolloutInput<'a>) -> Self {
        let mut memory = before.clone();
        if memory.updated.is_none() {
            memory.stable = most_told(input);
        }
        if let Some(since) = input.away_since {
            memory.outage = Some(OutageSpan::with(memory.outage, since, input.now));
        }
        if std::mem::take(&mut memory.is_recalled) {
            let earliest = earliest_begin(input);
            for begun in memory.position.progressed.iter_mut().chain(memory.promoted.iter_mut().map(counted)) {
                *begun = (*begun).max(earliest);
            }
        }
        not_ahead(&mut memory, input.now);
        let stable = memory.stable.as_ref().and_then(|stable| known(input, stable));
        if let Some(stable) = &stable {
            memory.stable = Some(stable.clone());
        }
        let mut machine = Self { input, memory, goal: input.wanted.clone(), stable, happened: Vec::new() };
        machine.find_goal();
        machine
    }

    /// What is to be rolled out: what the spec says, or what somebody wants instead while it says that.
    fn find_goal(&mut self) {
        let wanted = &self.input.wanted;
        self.memory.undone.take_if(|undone| undone.spec.hash != wanted.hash);
        self.goal = wanted.clone();
        if let Some(undone) = &self.memory.undone {
            if let Some(to) = known(self.input, &undone.to) {
                self.goal = to;
            } else {
                let message = format!("it was undone, and revision {}, wanted instead, is gone", undone.to.number);
                self.memory.undone = None;
                // what was undone is not rolled out again only because the other one is gone; where it is stable it stays
                if self.stable.as_ref() != Some(wanted) {
                    self.fail(wanted.clone(), FailureReason::Aborted, message);
                }
            }
        }
        // what is not stable any more, or is not rolled out any more, was overtaken: it has neither passed nor failed
        let (goal, stable) = (&self.goal, self.memory.stable.as_ref());
        self.memory.promoted.take_if(|promoted| {
            let is_wanted = promoted.end.is_some() || self.input.post_promotion_seconds.is_some();
            promoted.revision != *goal || stable != Some(&promoted.revision) || !is_wanted
        });
        let steps_hash = steps_hash(self.input.steps);
        if self.memory.updated.as_ref() != Some(&self.goal) {
            self.memory.updated = Some(self.goal.clone());
            self.begin(steps_hash);
        } else if self.memory.position.steps_hash != steps_hash {
            self.begin(steps_hash);
        }
    }

    fn begin(&mut self, steps_hash: String) {
        let now = self.input.now;
        // two tries are never the same, whatever the clock says
        let begun = now.max(self.memory.position.begun + 1);
        self.memory.position =
            RolloutPosition { steps_hash, begun, since: now, progressed: Some(now), ..RolloutPosition::default() };
    }

    fn is_failed(&self) -> bool {
        self.memory.has_failed(&self.goal)
    }

    /// Whether the goal goes over the pods by steps: there is something to go back to, and it has not.
    fn is_rollout(&self) -> bool {
        self.stable.as_ref().is_some_and(|stable| *stable != self.goal) && !self.is_failed()
    }

    /// What new pods get.
    fn stable_or_goal(&self) -> &RevisionId {
        self.stable.as_ref().unwrap_or(&self.goal)
    }

    fn members(&self) -> impl Iterator<Item = &'a RolloutPod<'a>> {
        let goal = self.goal.number;
        self.input.pods.iter().filter(move |pod| pod.is_running || pod.told == Some(goal))
    }

    fn took(&self) -> impl Iterator<Item = &'a RolloutPod<'a>> {
        let goal = self.goal.number;
        self.input.pods.iter().filter(move |pod| pod.told == Some(goal))
    }

    /// The same, but for those that wait for their restart: nothing of the goal runs there, or has been tried.
    fn tries(&self) -> impl Iterator<Item = &'a RolloutPod<'a>> {
        let goal = self.goal.number;
        self.took().filter(move |pod| !pod.waits_for(RevisionWait::Restart, goal))
    }

    /// How many pods that took the goal wait for this.
    fn waiting(&self, what: RevisionWait) -> usize {
        self.took().filter(|pod| pod.waits_for(what, self.goal.number)).count()
    }

    /// Whether whoever took the goal and has not proven it does nothing but wait, and the step in course waits for that.
    fn only_waits(&self) -> bool {
        let mut unproven = self.took().filter(|pod| !pod.is_proven(self.goal.number)).peekable();
        unproven.peek().is_some() && unproven.all(|pod| pod.waits.is_some()) && !self.is_settled()
    }

    /// How many pods may run the goal in the step in course.
    fn allowed(&self) -> usize {
        allowed_pods(self.input.steps, self.memory.position.step, self.members().count())
    }

    /// Whether as many pods as the step allows are told the goal, and all of them are proven, but for those that wait for their restart.
    fn is_settled(&self) -> bool {
        let goal = self.goal.number;
        self.members().next().is_some()
            && self.tries().count() >= self.allowed()
            && self.tries().all(|pod| pod.is_proven(goal))
    }

    /// What is said of this try of the goal, in this phase.
    fn judgement(&self, phase: AnalysisPhase) -> Option<&'a RolloutJudgement> {
        let begun = self.memory.try_begun(phase)?;
        let of_it = |judged: &JudgedTry| judged.revision == self.goal && judged.phase == phase && judged.begun == begun;
        let judged = self.input.judged.as_ref().filter(|(judged, _)| of_it(judged));
        judged.map(|(_, judgement)| judgement)
    }

    // --- what was mended

    /// Lets a revision be tried again that failed by itself, once all pods that were given something then, are still there and answer are
    /// given something else: where one still is given the same, that would be what it is tried with.
    fn try_again_if_mended(&mut self) {
        let input = self.input;
        if input.stands_still() || !self.is_failed() {
            return;
        }
        let goal = self.goal.clone();
        let failure = self.memory.failure.as_mut().filter(|failure| {
            failure.revision == goal && failure.reason != FailureReason::Aborted && failure.rolled_back_at.is_some()
        });
        let Some(failure) = failure else { return };
        // of who is gone nothing can be said any more; where nobody is left, the next change is seen by who is there now
        failure.references.retain(|known| input.pods.iter().any(|pod| pod.uid == known.uid));
        if failure.references.is_empty() {
            failure.references = references(input, goal.number);
            return;
        }
        let now = |known: &PodReferences| input.pods.iter().find(|pod| pod.uid == known.uid)?.reference_mark;
        let changes: Vec<bool> =
            failure.references.iter().filter_map(|known| Some(now(known)? != known.mark)).collect();
        if changes.contains(&true) && !changes.contains(&false) {
            self.memory.try_again(&goal.hash, input.now);
            self.memory.updated = None;
            self.find_goal();
            self.happened.push(RolloutHappening::TriedAgain);
        }
    }

    // --- what people ask for

    fn obey(&mut self) {
        let Some(text) = self.input.command else {
            self.memory.command = None;
            return;
        };
        let kept = &text[..text.floor_char_boundary(LONGEST_COMMAND_BYTES)];
        if self.memory.command.as_ref().is_some_and(|handled| handled.text == kept) {
            return;
        }
        let outcome = RolloutCommand::parse(text).map_err(|error| error.to_string());
        let outcome = outcome.and_then(|command| self.carry_out(command).map(|()| command));
        self.memory.command = Some(HandledCommand { text: kept.to_owned(), refused: outcome.as_ref().err().cloned() });
        self.happened.push(match outcome {
            Ok(command) => RolloutHappening::Obeyed { command },
            Err(why) => RolloutHappening::Refused { text: kept.to_owned(), why },
        });
    }

    fn carry_out(&mut self, RolloutCommand { verb, revision }: RolloutCommand) -> Result<(), String> {
        match verb {
            RolloutVerb::Promote | RolloutVerb::PromoteFull if self.memory.judged_after_promotion().is_some() => {
                self.is_judged(revision)?;
                let message = "somebody ended its analysis by promote".to_owned();
                self.end_analysis(PostPromotionOutcome::Ended, message);
                Ok(())
            }
            RolloutVerb::Abort if self.memory.judged_after_promotion().is_some() => {
                self.is_judged(revision)?;
                if self.demote(FailureReason::Aborted, "somebody took it back by abort, after its promotion".to_owned())
                {
                    Ok(())
                } else {
                    Err(format!("the revision before {revision} is gone, so there is no way back; change the spec"))
                }
            }
            RolloutVerb::Promote => self.promote(revision),
            RolloutVerb::PromoteFull => {
                self.in_course(revision)?;
                self.go_to(self.input.steps.len());
                Ok(())
            }
            RolloutVerb::Abort => {
                self.in_course(revision)?;
                let message = "somebody took it back by abort".to_owned();
                self.fail(self.goal.clone(), FailureReason::Aborted, message);
                Ok(())
            }
            RolloutVerb::Retry => self.retry(revision),
            RolloutVerb::Undo => self.undo(revision),
        }
    }

    /// Whether this revision is being rolled out.
    fn in_course(&self, revision: u64) -> Result<(), String> {
        let goal = self.goal.number;
        if self.is_failed() {
            return Err(format!(
                "revision {goal} has failed and is not being rolled out; to try it again: retry {goal}"
            ));
        }
        if !self.is_rollout() {
            return Err(match &self.stable {
                Some(_) => format!("nothing is being rolled out: revision {goal} is the stable one"),
                None => format!("there is no revision before {goal}, so its pods change without steps"),
            });
        }
        if revision != goal {
            return Err(format!("it names revision {revision}, and revision {goal} is being rolled out"));
        }
        Ok(())
    }

    /// Whether this is the revision that is judged after its promotion.
    fn is_judged(&self, revision: u64) -> Result<(), String> {
        let goal = self.goal.number;
        if revision == goal {
            return Ok(());
        }
        Err(format!("it names revision {revision}, and revision {goal} was promoted and is being judged"))
    }

    fn promote(&mut self, revision: u64) -> Result<(), String> {
        self.in_course(revision)?;
        let at = self.memory.position.step;
        match self.input.steps.get(at) {
            Some(RolloutStep::Pause { .. } | RolloutStep::Analysis) => {
                self.go_to(at + 1);
                Ok(())
            }
            Some(RolloutStep::OnePod | RolloutStep::SetWeight { .. }) | None => Err(format!(
                "revision {revision} waits for nobody: pods are taking it (step {at}); promote it in its next pause, or all of \
                 it with: promote-full {revision}"
            )),
        }
    }

    fn retry(&mut self, revision: u64) -> Result<(), String> {
        let wanted = &self.input.wanted;
        if revision != wanted.number {
            return Err(format!("it names revision {revision}, and the spec says revision {}", wanted.number));
        }
        if !self.memory.has_failed(wanted) && self.memory.undone.is_none() {
            return Err(format!("revision {revision} has neither failed nor been undone"));
        }
        self.memory.forgive(&wanted.hash);
        self.memory.undone = None;
        self.memory.updated = None;
        self.find_goal();
        Ok(())
    }

    fn undo(&mut self, revision: u64) -> Result<(), String> {
        let wanted = self.input.wanted.clone();
        if revision == self.goal.number && !self.is_failed() {
            return Err(format!("revision {revision} is what is rolled out already"));
        }
        if revision == wanted.number {
            return Err(format!("revision {revision} is what the spec says; to try it again: retry {revision}"));
        }
        let to = self.input.revisions.iter().find(|known| known.number == revision).cloned();
        let Some(to) = to else {
            let mut there: Vec<u64> = self.input.revisions.iter().map(|known| known.number).collect();
            there.sort_unstable();
            let there: Vec<String> = there.iter().map(u64::to_string).collect();
            return Err(format!(
                "there is no revision {revision} that could be read: there are {}; how many are kept says \
                 spec.rollout.revisionHistoryLimit",
                there.join(", ")
            ));
        };
        if self.memory.has_failed(&to) {
            return Err(format!("revision {revision} has failed before; name one that has not"));
        }
        self.memory.undone = Some(UndoneRevision { spec: wanted, to });
        self.find_goal();
        // whoever goes back wants to be there: it ran before, and each pod proves it again
        self.go_to(self.input.steps.len());
        Ok(())
    }

    // --- by itself

    /// Remembers that pods take the goal over with their restart alone: those that tell it are gone when they have.
    fn note_restarts(&mut self) {
        self.memory.position.needs_restart |= self.waiting(RevisionWait::Restart) > 0;
    }

    /// Whether a new pod gets the goal: where nothing but a new pod can run it, as many as the step allows, and one after the other as
    /// others are told.
    fn is_for_new_pods(&self) -> bool {
        let unproven = self.tries().filter(|pod| !pod.is_proven(self.goal.number)).count();
        self.is_rollout()
            && self.memory.position.needs_restart
            && self.input.is_created
            && !self.input.stands_still()
            && self.tries().count() < self.allowed()
            && unproven < self.input.max_unavailable.max(1)
    }

    /// Goes on as far as what was seen allows, and promotes what all pods are proven to run.
    fn advance(&mut self) {
        let input = self.input;
        if self.is_rollout() && !input.stands_still() && input.is_created {
            while let Some(step) = input.steps.get(self.memory.position.step) {
                let waited = input.now - self.memory.position.since;
                let is_done = self.is_settled()
                    && match step {
                        RolloutStep::OnePod | RolloutStep::SetWeight { .. } => true,
                        RolloutStep::Pause { seconds } => seconds.is_some_and(|seconds| waited >= i64::from(seconds)),
                        RolloutStep::Analysis => self.judgement(AnalysisPhase::Canary) == Some(&RolloutJudgement::Pass),
                    };
                if !is_done {
                    break;
                }
                self.happened.push(RolloutHappening::StepDone { step: self.memory.position.step });
                self.go_to(self.memory.position.step + 1);
            }
        }
        let is_last = !self.is_rollout() || self.memory.position.step >= input.steps.len();
        let is_new = self.memory.stable.as_ref() != Some(&self.goal);
        if is_last && is_new && !self.is_failed() && self.is_everywhere() {
            self.memory.failure.take_if(|failure| failure.revision == self.goal);
            let from = self.memory.stable.replace(self.goal.clone());
            self.stable = Some(self.goal.clone());
            let revision = self.goal.number;
            self.happened.push(RolloutHappening::Promoted { revision, from: from.as_ref().map(|from| from.number) });
            // who goes back to what ran before wants to be there
            self.memory.promoted =
                from.filter(|_| input.post_promotion_seconds.is_some() && self.memory.undone.is_none()).map(|from| {
                    let (since, counts_from) = (input.now, input.now);
                    PostPromotion { revision: self.goal.clone(), from, since, counts_from, end: None }
                });
        }
    }

    /// What becomes of a revision that was promoted and is judged for a while more: back, or an end, or it goes on.
    fn judge_promoted(&mut self) {
        let input = self.input;
        let Some(promoted) = self.memory.promoted.as_mut().filter(|promoted| promoted.end.is_none()) else { return };
        if input.stands_still() {
            // nothing fails by itself, and no time counts in which nothing may
            promoted.counts_from = promoted.counts_from.max(earliest_begin(input));
            return;
        }
        let is_late = input.now - promoted.counts_from > i64::from(input.progress_deadline_seconds);
        let least = i64::from(input.post_promotion_seconds.unwrap_or(0));
        let is_long_enough = is_late || input.now - promoted.since >= least;
        let stays = "nothing could be known of it after its promotion, and it stays, for it came through its canary";
        match self.judgement(AnalysisPhase::PostPromotion) {
            Some(RolloutJudgement::Fail { why }) => {
                let message = format!("after its promotion: {why}");
                if !self.demote(FailureReason::AnalysisFailed, message.clone()) {
                    self.end_analysis(PostPromotionOutcome::NoWayBack, message);
                }
            }
            Some(RolloutJudgement::Pass) if is_long_enough => {
                self.end_analysis(PostPromotionOutcome::Passed, "no harm was found after its promotion".to_owned());
            }
            Some(RolloutJudgement::Inconclusive { why, is_final }) if *is_final || is_late => {
                self.end_analysis(PostPromotionOutcome::Inconclusive, format!("{stays}: {why}"));
            }
            None if is_late => {
                self.end_analysis(PostPromotionOutcome::Inconclusive, format!("{stays}: nothing was measured"));
            }
            _ => {}
        }
    }

    fn end_analysis(&mut self, outcome: PostPromotionOutcome, message: String) {
        if let Some(promoted) = &mut self.memory.promoted {
            promoted.end = Some(PostPromotionEnd { outcome, message, at: self.input.now });
            self.happened.push(RolloutHappening::PostPromotionEnded);
        }
    }

    /// Makes the stable revision of before the stable one again, and remembers the promoted one as failed. False where that is gone.
    fn demote(&mut self, reason: FailureReason, message: String) -> bool {
        let from = self.memory.promoted.as_ref().and_then(|promoted| known(self.input, &promoted.from));
        let Some(from) = from else { return false };
        self.memory.promoted = None;
        self.memory.stable = Some(from.clone());
        self.stable = Some(from);
        self.fail(self.goal.clone(), reason, message);
        true
    }

    fn go_to(&mut self, step: usize) {
        let position = &mut self.memory.position;
        (position.step, position.since, position.progressed) = (step, self.input.now, Some(self.input.now));
    }

    /// Whether every pod that runs is proven to run the goal, and some do.
    fn is_everywhere(&self) -> bool {
        self.members().next().is_some() && self.members().all(|pod| pod.is_proven(self.goal.number))
    }

    /// What it waits for, where that is nothing that could fail.
    fn pause(&self) -> Option<RolloutState> {
        if !self.is_rollout() || !self.is_settled() {
            return None;
        }
        match self.input.steps.get(self.memory.position.step)? {
            RolloutStep::Pause { seconds } => Some(RolloutState::Pausing {
                until: seconds.map(|seconds| self.memory.position.since + i64::from(seconds)),
            }),
            RolloutStep::OnePod | RolloutStep::SetWeight { .. } | RolloutStep::Analysis => None,
        }
    }

    fn awaiting_promotion(&self) -> usize {
        let goal = self.goal.number;
        self.members().filter(|pod| pod.awaits_promotion && !pod.is_proven(goal)).count()
    }

    /// Counts progress, and gives the revision up that is worse, or has made none for too long.
    fn fail_if_due(&mut self) {
        let input = self.input;
        let (proven, took) = (self.took().filter(|pod| pod.is_proven(self.goal.number)).count(), self.took().count());
        // who waits for somebody is not stuck
        let may_wait = input.stands_still()
            || !input.is_created
            || self.is_everywhere()
            || self.is_failed()
            || self.members().next().is_none()
            || self.awaiting_promotion() > 0
            || self.only_waits()
            || self.pause().is_some();
        let position = &mut self.memory.position;
        // pods that went have to be replaced first
        position.proven = position.proven.min(took);
        if may_wait || proven > position.proven || position.progressed.is_none() {
            (position.proven, position.progressed) = (proven, Some(input.now));
        }
        if input.stands_still() || !self.is_rollout() {
            return;
        }
        if let Some(RolloutJudgement::Fail { why }) = self.judgement(AnalysisPhase::Canary) {
            self.fail(self.goal.clone(), FailureReason::AnalysisFailed, why.clone());
        } else if let Some(lacking) = self.unproven() {
            self.fail(self.goal.clone(), FailureReason::AnalysisInconclusive, lacking);
        } else if self.is_late() {
            let members = self.members().count();
            let message = format!(
                "it was proven on {proven} of {members} pods and came no further for {} s, which does not prove it to be bad, nor \
                 to be good",
                input.progress_deadline_seconds
            );
            self.fail(self.goal.clone(), FailureReason::ProgressDeadlineExceeded, message);
        }
    }

    /// Why it is not proven by the analysis that it waits for, once waiting is over: which does not say that it is worse.
    fn unproven(&self) -> Option<String> {
        let waits =
            self.is_settled() && self.input.steps.get(self.memory.position.step) == Some(&RolloutStep::Analysis);
        match self.judgement(AnalysisPhase::Canary) {
            Some(RolloutJudgement::Inconclusive { why, is_final }) if waits && (*is_final || self.is_late()) => {
                Some(format!("it is not proven, which does not say that it is worse: {why}"))
            }
            None if waits && self.is_late() => {
                Some("it is not proven, which does not say that it is worse: nothing was measured".to_owned())
            }
            _ => None,
        }
    }

    /// Seconds since it came further last.
    fn without_progress(&self) -> i64 {
        self.input.now - self.memory.position.progressed.unwrap_or(self.input.now)
    }

    /// Seconds until the analysis after the promotion is long enough to pass, or its deadline is over.
    fn until_analysed(&self) -> Option<i64> {
        let promoted = self.memory.judged_after_promotion()?;
        let long_enough = promoted.since + i64::from(self.input.post_promotion_seconds.unwrap_or(0));
        let late = promoted.counts_from + i64::from(self.input.progress_deadline_seconds) + 1;
        [long_enough, late].map(|at| at - self.input.now).into_iter().filter(|seconds| *seconds > 0).min()
    }

    fn is_late(&self) -> bool {
        self.without_progress() > i64::from(self.input.progress_deadline_seconds)
    }

    fn fail(&mut self, revision: RevisionId, reason: FailureReason, message: String) {
        let references = references(self.input, revision.number);
        self.memory
            .fail(RolloutFailure { references, ..RolloutFailure::new(revision, reason, message, self.input.now) });
        self.happened.push(RolloutHappening::Failed);
    }

    /// Pods that were told the goal, or have yet to be read back with another one.
    fn away(&self) -> usize {
        let goal = Some(self.goal.number);
        let pods = self.input.pods.iter();
        pods.filter(|pod| pod.told == goal || (pod.is_running && pod.last_read_back == goal)).count()
    }

    fn note_way_back(&mut self) {
        let is_back = self.is_failed() && self.away() == 0;
        let now = self.input.now;
        if let Some(failure) = self.memory.failure.as_mut().filter(|failure| failure.revision == self.goal)
            && is_back
            && failure.rolled_back_at.is_none()
        {
            failure.rolled_back_at = Some(now);
            self.happened.push(RolloutHappening::RolledBack);
        }
    }

    // --- whom to tell

    fn decide(self) -> RolloutMove {
        let state = self.state();
        let tells = if self.is_rollout() || self.stable.is_none() { self.forward() } else { self.back() };
        let members = self.members().count();
        let reported = if self.is_failed() { self.stable_or_goal().number } else { self.goal.number };
        let look_again = match state {
            RolloutState::Pausing { until } => until.map(|until| until - self.input.now),
            RolloutState::Rolling | RolloutState::Analysing => {
                Some(i64::from(self.input.progress_deadline_seconds) + 1 - self.without_progress())
            }
            _ => None,
        };
        let look_again = look_again.into_iter().chain(self.until_analysed()).min();
        let look_again = look_again.map(|seconds| u32::try_from(seconds).unwrap_or(0).max(1));
        RolloutMove {
            remember_first: self.happened.contains(&RolloutHappening::Failed),
            state,
            stable: self.stable_or_goal().clone(),
            new_pods: self.is_for_new_pods().then_some(self.goal.number),
            tells,
            members,
            proven: self.members().filter(|pod| pod.is_proven(reported)).count(),
            awaiting_promotion: self.awaiting_promotion(),
            awaiting_drain: self.waiting(RevisionWait::Drain),
            awaiting_restart: self.waiting(RevisionWait::Restart),
            figures: RolloutFigures {
                is_in_course: self.is_rollout(),
                is_counting: matches!(state, RolloutState::Rolling | RolloutState::Analysing)
                    && !self.input.stands_still()
                    && !self.only_waits(),
                set_weight: match (self.is_rollout(), self.is_failed()) {
                    (true, _) => weight_percent(self.input.steps, self.memory.position.step, members),
                    (false, true) => 0,
                    (false, false) => 100,
                },
                actual_weight: percent_of(self.took().count(), members),
                updated_pods: self.took().count(),
            },
            look_again_seconds: look_again.filter(|_| !self.input.stands_still()),
            goal: self.goal,
            happened: self.happened,
            memory: self.memory,
        }
    }

    fn state(&self) -> RolloutState {
        if self.is_failed() && self.stable.is_some() {
            RolloutState::Failed { away: self.away() }
        } else if self.members().next().is_none() {
            RolloutState::NoPods
        } else if !self.is_rollout() && self.is_everywhere() {
            let is_judged = self.memory.judged_after_promotion().is_some();
            if is_judged { RolloutState::PostPromotion } else { RolloutState::Complete }
        } else if self.awaiting_promotion() > 0 {
            RolloutState::AwaitingPromotion
        } else if let Some(pause) = self.pause() {
            pause
        } else if self.is_late() && !self.input.stands_still() {
            RolloutState::Stuck
        } else if self.is_rollout() && self.is_settled() {
            match self.input.steps.get(self.memory.position.step) {
                Some(RolloutStep::Analysis) => RolloutState::Analysing,
                _ => RolloutState::Rolling,
            }
        } else {
            RolloutState::Rolling
        }
    }

    /// Everybody is to run the stable revision. While frozen, what runs something keeps it, unless that was taken back.
    fn back(&self) -> Vec<(usize, u64)> {
        let stable = self.stable_or_goal().number;
        let failed = self.is_failed().then_some(self.goal.number);
        let may_change = |pod: &RolloutPod| !self.input.stands_still() || pod.told.is_none() || pod.told == failed;
        let pods = self.input.pods.iter().enumerate();
        let others = pods.filter(|(_, pod)| pod.told != Some(stable) && may_change(pod));
        others.map(|(index, _)| (index, stable)).collect()
    }

    /// As many as may be told the goal next are; who runs neither it nor the stable one goes back, and so does who is new.
    fn forward(&self) -> Vec<(usize, u64)> {
        let (goal, stable) = (self.goal.number, self.stable_or_goal().number);
        let input = self.input;
        let mut tells = Vec::new();
        let mut others = Vec::new();
        for (index, pod) in input.pods.iter().enumerate() {
            match pod.told {
                None => tells.push((index, stable)),
                Some(told) if told == goal || input.stands_still() => {}
                // nothing runs there: there is nothing to lose, nor to prove
                Some(told) if !pod.is_running => tells.extend((told != stable).then_some((index, stable))),
                Some(told) => others.push((index, pod, told == stable)),
            }
        }
        let most = input.max_unavailable.max(1);
        let unproven = |pod: &RolloutPod| pod.told == Some(goal) && !pod.is_proven(goal);
        let going_back = |pod: &RolloutPod| !unproven(pod) && pod.is_in_change();
        let count = |which: &dyn Fn(&RolloutPod) -> bool| input.pods.iter().filter(|pod| which(pod)).count();
        let mut forward = most.saturating_sub(count(&unproven));
        // who goes back takes a place too; the way back itself waits for none
        let mut free = forward.saturating_sub(count(&going_back));
        // before anything was promoted there are no steps
        let allowed = if self.is_rollout() { self.allowed() } else { usize::MAX };
        let mut wanted = allowed.saturating_sub(self.took().count());
        // first who leaves another one anyhow, then who can prove it, the older before the younger
        others.sort_by_key(|(_, pod, is_stable)| {
            let can_prove = pod.told.is_some_and(|told| pod.is_proven(told));
            (*is_stable && self.is_rollout(), Reverse(can_prove), pod.created, pod.uid)
        });
        for (index, pod, is_stable) in others {
            let has_room = forward > 0 && (free > 0 || going_back(pod));
            if wanted > 0 && has_room {
                free = free.saturating_sub(usize::from(!going_back(pod)));
                (forward, wanted) = (forward - 1, wanted - 1);
                tells.push((index, goal));
            } else if !is_stable && self.is_rollout() {
                tells.push((index, stable));
            }
        }
        tells
    }
}

/// What pods are given by reference now: those that took this revision first.
fn references(input: &RolloutInput<'_>, revision: u64) -> Vec<PodReferences> {
    let mut told: Vec<(bool, PodReferences)> = input
        .pods
        .iter()
        .filter_map(|pod| {
            let (uid, mark) = (pod.uid.to_owned(), pod.reference_mark?.to_owned());
            Some((pod.told != Some(revision), PodReferences { uid, mark }))
        })
        .collect();
    told.sort_by(|(is_other, left), (is_other_too, right)| (is_other, &left.uid).cmp(&(is_other_too, &right.uid)));
    told.into_iter().map(|(_, references)| references).take(MOST_REFERENCES).collect()
}

/// Where the clock was set back, what began "later" begins now: no pause and no deadline takes longer than it should, and then some.
fn not_ahead(memory: &mut RolloutMemory, now: UnixSeconds) {
    let position = &mut memory.position;
    let promoted = memory.promoted.iter_mut().flat_map(|promoted| [&mut promoted.since, &mut promoted.counts_from]);
    for begun in [&mut position.since].into_iter().chain(position.progressed.iter_mut()).chain(promoted) {
        *begun = (*begun).min(now);
    }
}

/// What a deadline counts from at the earliest where nobody watched, or nothing may fail.
fn earliest_begin(input: &RolloutInput<'_>) -> UnixSeconds {
    let deadline = i64::from(input.progress_deadline_seconds);
    input.now - deadline + deadline.min(RECALL_SECONDS)
}

fn counted(promoted: &mut PostPromotion) -> &mut UnixSeconds {
    &mut promoted.counts_from
}

/// What most pods are told, where nothing is remembered: whoever lost the status goes on from there.
fn most_told(input: &RolloutInput<'_>) -> Option<RevisionId> {
    let count = |revision: &RevisionId| input.pods.iter().filter(|pod| pod.told == Some(revision.number)).count();
    let others = input.revisions.iter().filter(|known| **known != input.wanted);
    let told = others.map(|revision| (count(revision), revision)).filter(|(pods, _)| *pods > 0);
    told.max_by_key(|(pods, revision)| (*pods, revision.number)).map(|(_, revision)| revision.clone())
}

/// The revision as it is known now, where what is remembered of it is the same.
fn known(input: &RolloutInput<'_>, remembered: &RevisionId) -> Option<RevisionId> {
    let same = |known: &&RevisionId| {
        known.number == remembered.number && (remembered.hash.is_empty() || known.hash == remembered.hash)
    };
    input.revisions.iter().find(same).cloned()
}
