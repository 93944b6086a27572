//! What has to be remembered of a rollout because pods and revisions do not say it, and how the status of the pool keeps it.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::{
    api::{
        ConnectionPoolStatus, PodReferencesStatus, PostPromotionStatus, RevisionStatus, RolloutFailureStatus,
        RolloutStatus, UndoneStatus, reasons,
    },
    contract::Settings,
    decide::{analysis::AnalysisPhase, outage::OutageSpan},
    domain::UnixSeconds,
    fingerprint::fingerprint,
};

/// Hashes of failed revisions that are remembered; the oldest are forgotten.
pub const FAILED_HASHES: usize = 10;
/// Longest words that the status has room for, in bytes.
const WORDS_BYTES: usize = 1024;

/// Which revision: its number, and the hash of what it says, because a number alone can be given to something else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RevisionId {
    /// The number.
    pub number: u64,
    /// Hash of the settings.
    pub hash: String,
}

impl RevisionId {
    /// Of a number and what it says.
    pub fn of(number: u64, settings: &Settings) -> Self {
        Self { number, hash: settings_hash(settings) }
    }
}

/// Hash of what a revision says: equal contents are the same revision, whatever its number. It is of the settings as they are
/// written, which leave out what is the default, so that an operator that knows of more settings finds the same.
pub fn settings_hash(settings: &Settings) -> String {
    fingerprint(&serde_json::to_vec(settings).unwrap_or_default(), 8)
}

/// Why a revision failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// Somebody took it back.
    Aborted,
    /// It came no further within `rollout.progressDeadlineSeconds`: it is not proven to be bad, nor to be good.
    ProgressDeadlineExceeded,
    /// The analysis found it worse.
    AnalysisFailed,
    /// The analysis could not tell in time: it is not proven to be worse, nor to be as good.
    AnalysisInconclusive,
}

impl FailureReason {
    const ALL: [Self; 4] =
        [Self::Aborted, Self::ProgressDeadlineExceeded, Self::AnalysisFailed, Self::AnalysisInconclusive];

    /// As conditions, events and the status name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => reasons::ROLLOUT_ABORTED,
            Self::ProgressDeadlineExceeded => reasons::PROGRESS_DEADLINE_EXCEEDED,
            Self::AnalysisFailed => reasons::ANALYSIS_FAILED,
            Self::AnalysisInconclusive => reasons::ANALYSIS_INCONCLUSIVE,
        }
    }
}

/// The mark of what a pod is given by reference (Secrets, bundles, certificates): of one pod it changes with that, and says nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodReferences {
    /// Uid of the pod: another one marks the same content otherwise.
    pub uid: String,
    /// The mark.
    pub mark: String,
}

/// How a revision failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RolloutFailure {
    /// Which one.
    pub revision: RevisionId,
    /// Why.
    pub reason: FailureReason,
    /// The same in words, with the numbers.
    pub message: String,
    /// When.
    pub at: UnixSeconds,
    /// When the last pod that had taken it was proven to run another one; None while one has yet to.
    pub rolled_back_at: Option<UnixSeconds>,
    /// What some pods were given by reference then: once that has changed it is tried again. Empty where no agent told.
    pub references: Vec<PodReferences>,
    /// When it was tried again because that has changed; None before.
    pub retried_at: Option<UnixSeconds>,
}

impl RolloutFailure {
    /// Of a revision, now; on the way back, and with nothing known of what pods are given.
    pub fn new(revision: RevisionId, reason: FailureReason, message: String, at: UnixSeconds) -> Self {
        Self { revision, reason, message, at, rolled_back_at: None, references: Vec::new(), retried_at: None }
    }
}

/// That somebody wants another revision than the spec says, for as long as it says that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UndoneRevision {
    /// What the spec says.
    pub spec: RevisionId,
    /// What is wanted instead.
    pub to: RevisionId,
}

/// How the analysis after a promotion ended, where the revision did not go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PostPromotionOutcome {
    /// No harm was found.
    Passed,
    /// Nothing could be known: the revision stays, for it came through its canary.
    Inconclusive,
    /// Somebody ended it by `promote`.
    Ended,
    /// It is worse, and the revision before is gone: there is no way back.
    NoWayBack,
}

impl PostPromotionOutcome {
    const ALL: [Self; 4] = [Self::Passed, Self::Inconclusive, Self::Ended, Self::NoWayBack];

    /// As the status names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "Passed",
            Self::Inconclusive => "Inconclusive",
            Self::Ended => "Ended",
            Self::NoWayBack => "NoWayBack",
        }
    }
}

/// How and when the analysis after a promotion ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PostPromotionEnd {
    /// How.
    pub outcome: PostPromotionOutcome,
    /// The same in words, with the numbers.
    pub message: String,
    /// When.
    pub at: UnixSeconds,
}

/// That a revision was promoted and is judged for a while more, or was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PostPromotion {
    /// The one that was promoted: the stable one.
    pub revision: RevisionId,
    /// The stable one before it, which it goes back to.
    pub from: RevisionId,
    /// When it was promoted.
    pub since: UnixSeconds,
    /// What its deadline counts from: later than that where nobody watched, or nothing may fail. It is not written down.
    pub counts_from: UnixSeconds,
    /// How it ended; None while it goes on.
    pub end: Option<PostPromotionEnd>,
}

/// How far a rollout has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RolloutPosition {
    /// Index of the step in course.
    pub step: usize,
    /// Of which steps; other steps begin anew.
    pub steps_hash: String,
    /// When this try of the revision began: what was found of an earlier one says nothing of it. It is not written down: 0 where another
    /// process saw it begin.
    pub begun: UnixSeconds,
    /// When that step began.
    pub since: UnixSeconds,
    /// The most pods that were proven to run the revision since then.
    pub proven: usize,
    /// Whether pods take the revision over with their restart alone.
    pub needs_restart: bool,
    /// When it came further last: what the deadline counts from. None: from the next look on.
    pub progressed: Option<UnixSeconds>,
}

/// The request that was seen last, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HandledCommand {
    /// As the annotation says it, as far as it is read.
    pub text: String,
    /// Why it was refused; None where it was done.
    pub refused: Option<String>,
}

/// What has to be remembered of a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RolloutMemory {
    /// What was promoted last, and new pods get; None before all pods of the pool have run anything.
    pub stable: Option<RevisionId>,
    /// What is rolled out; None before the first look at the pool.
    pub updated: Option<RevisionId>,
    /// Hashes of what failed and is not tried again, the newest last.
    pub failed_hashes: Vec<String>,
    /// How `updated` failed, or the last one before it.
    pub failure: Option<RolloutFailure>,
    /// What somebody wants instead of what the spec says.
    pub undone: Option<UndoneRevision>,
    /// The stable revision, where it is or was judged after its promotion.
    pub promoted: Option<PostPromotion>,
    /// How far it has come.
    pub position: RolloutPosition,
    /// The request that was seen last.
    pub command: Option<HandledCommand>,
    /// When the database was away last. It is not written down.
    pub outage: Option<OutageSpan>,
    /// Whether it was read from the status and nothing was decided since: nobody watched for a while, and no time counts as without
    /// progress in which nobody could make any.
    pub is_recalled: bool,
}

/// What the status tells of a rollout beside what is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolloutFigures {
    /// Whether steps are gone through.
    pub is_in_course: bool,
    /// Whether the deadline counts.
    pub is_counting: bool,
    /// Percent of the pods that may run the revision.
    pub set_weight: u32,
    /// Percent of them that are told to.
    pub actual_weight: u32,
    /// Pods that are told to.
    pub updated_pods: usize,
}

/// What the status says of a request that was done.
pub const COMMAND_DONE: &str = "Done";

impl RolloutMemory {
    /// Whether a revision failed and is not to be tried again.
    pub fn has_failed(&self, revision: &RevisionId) -> bool {
        self.failed_hashes.contains(&revision.hash)
    }

    /// The revision that was promoted and is being judged.
    pub fn judged_after_promotion(&self) -> Option<&PostPromotion> {
        self.promoted.as_ref().filter(|promoted| promoted.end.is_none())
    }

    /// When the try began that an analysis in this phase is of; None where nothing is judged in it.
    pub fn try_begun(&self, phase: AnalysisPhase) -> Option<UnixSeconds> {
        match phase {
            AnalysisPhase::Canary => Some(self.position.begun),
            AnalysisPhase::PostPromotion => self.promoted.as_ref().map(|promoted| promoted.since),
        }
    }

    /// Remembers a failure.
    pub(super) fn fail(&mut self, failure: RolloutFailure) {
        self.forgive(&failure.revision.hash);
        self.failed_hashes.push(failure.revision.hash.clone());
        let surplus = self.failed_hashes.len().saturating_sub(FAILED_HASHES);
        self.failed_hashes.drain(..surplus);
        self.failure = Some(failure);
    }

    /// Lets a revision be tried again that failed, and remembers that it did.
    pub(super) fn try_again(&mut self, hash: &str, now: UnixSeconds) {
        self.failed_hashes.retain(|failed| failed != hash);
        if let Some(failure) = self.failure.as_mut().filter(|failure| failure.revision.hash == hash) {
            failure.retried_at = Some(now);
        }
    }

    /// Forgets that a revision failed.
    pub(super) fn forgive(&mut self, hash: &str) {
        self.failed_hashes.retain(|failed| failed != hash);
        self.failure.take_if(|failure| failure.revision.hash == hash);
    }

    /// What a status remembers.
    pub fn from_status(status: Option<&ConnectionPoolStatus>) -> Self {
        let Some(revision) = status.and_then(|status| status.revision.as_ref()) else { return Self::default() };
        let id = |number: u64, hash: &Option<String>| RevisionId { number, hash: hash.clone().unwrap_or_default() };
        let updated = id(revision.updated, &revision.updated_hash);
        // without a hash it was never promoted, unless an operator wrote it that knew of no hashes
        let was_promoted = revision.stable_hash.is_some() || revision.stable != revision.updated;
        let rollout = status.and_then(|status| status.rollout.as_ref());
        Self {
            stable: was_promoted.then(|| id(revision.stable, &revision.stable_hash)),
            updated: Some(updated),
            failed_hashes: revision.failed_hashes.clone(),
            failure: rollout.and_then(|rollout| rollout.failure.as_ref()).and_then(failure_from),
            undone: rollout.and_then(|rollout| rollout.undone.as_ref()).map(|undone| UndoneRevision {
                spec: RevisionId { number: undone.spec, hash: undone.spec_hash.clone() },
                to: RevisionId { number: undone.to, hash: undone.to_hash.clone() },
            }),
            promoted: rollout.and_then(|rollout| rollout.post_promotion.as_ref()).map(promoted_from),
            position: RolloutPosition {
                needs_restart: revision.new_pods.is_some(),
                ..rollout.map(position_from).unwrap_or_default()
            },
            command: rollout.and_then(|rollout| {
                let outcome = rollout.last_command_outcome.clone().unwrap_or_default();
                let text = rollout.last_command.clone()?;
                Some(HandledCommand { text, refused: (outcome != COMMAND_DONE).then_some(outcome) })
            }),
            outage: None,
            is_recalled: true,
        }
    }

    /// What the status says of revisions, but for what new pods get instead of the stable one; None before there is one. `shown` is what
    /// they get before anything was promoted.
    pub fn revision_status(&self, shown: u64) -> Option<RevisionStatus> {
        let updated = self.updated.as_ref()?;
        Some(RevisionStatus {
            stable: self.stable.as_ref().map_or(shown, |stable| stable.number),
            stable_hash: self.stable.as_ref().map(|stable| stable.hash.clone()).filter(|hash| !hash.is_empty()),
            updated: updated.number,
            updated_hash: Some(updated.hash.clone()).filter(|hash| !hash.is_empty()),
            failed_hashes: self.failed_hashes.clone(),
            new_pods: None,
        })
    }

    /// What the status says of the rollout: where it is while one is in course, and since when it has come no further while the
    /// deadline counts. What changes with each look and means nothing would be a write for each.
    pub fn rollout_status(&self, figures: RolloutFigures) -> RolloutStatus {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let RolloutFigures { is_in_course, is_counting, set_weight, actual_weight, updated_pods } = figures;
        let RolloutPosition { step, steps_hash, since, proven, progressed, .. } = &self.position;
        RolloutStatus {
            current_step_index: is_in_course.then(|| count(*step)),
            current_step_hash: is_in_course.then(|| steps_hash.clone()),
            step_started_at: is_in_course.then(|| time(*since)),
            progressed_at: progressed.filter(|_| is_in_course && is_counting).map(time),
            proven_pods: is_in_course.then(|| count(*proven)),
            set_weight,
            actual_weight,
            updated_pods: count(updated_pods),
            failure: self.failure.as_ref().map(|failure| RolloutFailureStatus {
                revision: failure.revision.number,
                hash: failure.revision.hash.clone(),
                reason: failure.reason.as_str().to_owned(),
                message: words(&failure.message),
                time: time(failure.at),
                rolled_back_at: failure.rolled_back_at.map(time),
                retried_at: failure.retried_at.map(time),
                reference_marks: failure
                    .references
                    .iter()
                    .map(|PodReferences { uid, mark }| PodReferencesStatus { pod_uid: uid.clone(), mark: mark.clone() })
                    .collect(),
            }),
            post_promotion: self.promoted.as_ref().map(|PostPromotion { revision, from, since, end, .. }| {
                PostPromotionStatus {
                    revision: revision.number,
                    hash: revision.hash.clone(),
                    from: from.number,
                    from_hash: from.hash.clone(),
                    started_at: time(*since),
                    finished_at: end.as_ref().map(|end| time(end.at)),
                    outcome: end.as_ref().map(|end| end.outcome.as_str().to_owned()),
                    message: end.as_ref().map(|end| words(&end.message)),
                }
            }),
            undone: self.undone.as_ref().map(|UndoneRevision { spec, to }| UndoneStatus {
                spec: spec.number,
                spec_hash: spec.hash.clone(),
                to: to.number,
                to_hash: to.hash.clone(),
            }),
            last_command: self.command.as_ref().map(|command| command.text.clone()),
            last_command_outcome: self
                .command
                .as_ref()
                .map(|command| command.refused.clone().unwrap_or_else(|| COMMAND_DONE.to_owned())),
        }
    }
}

/// As much of a text as the status has room for.
fn words(text: &str) -> String {
    text[..text.floor_char_boundary(WORDS_BYTES)].to_owned()
}

fn time(at: UnixSeconds) -> Time {
    Time(Timestamp::from_second(at).unwrap_or_default())
}

fn position_from(rollout: &RolloutStatus) -> RolloutPosition {
    let size = |count: Option<u32>| usize::try_from(count.unwrap_or_default()).unwrap_or(usize::MAX);
    RolloutPosition {
        step: size(rollout.current_step_index),
        steps_hash: rollout.current_step_hash.clone().unwrap_or_default(),
        begun: 0,
        since: rollout.step_started_at.as_ref().map_or(0, |at| at.0.as_second()),
        proven: size(rollout.proven_pods),
        needs_restart: false,
        progressed: rollout.progressed_at.as_ref().map(|at| at.0.as_second()),
    }
}

/// An end that nobody knows is one of which nothing is known.
fn promoted_from(status: &PostPromotionStatus) -> PostPromotion {
    let known = |text: &str| PostPromotionOutcome::ALL.into_iter().find(|outcome| outcome.as_str() == text);
    let since = status.started_at.0.as_second();
    PostPromotion {
        revision: RevisionId { number: status.revision, hash: status.hash.clone() },
        from: RevisionId { number: status.from, hash: status.from_hash.clone() },
        since,
        counts_from: since,
        end: status.outcome.as_deref().map(|outcome| PostPromotionEnd {
            outcome: known(outcome).unwrap_or(PostPromotionOutcome::Inconclusive),
            message: status.message.clone().unwrap_or_default(),
            at: status.finished_at.as_ref().map_or(since, |at| at.0.as_second()),
        }),
    }
}

/// A reason that nobody knows is not followed: the hash is remembered without it.
fn failure_from(failure: &RolloutFailureStatus) -> Option<RolloutFailure> {
    Some(RolloutFailure {
        revision: RevisionId { number: failure.revision, hash: failure.hash.clone() },
        reason: FailureReason::ALL.into_iter().find(|reason| reason.as_str() == failure.reason)?,
        message: failure.message.clone(),
        at: failure.time.0.as_second(),
        rolled_back_at: failure.rolled_back_at.as_ref().map(|at| at.0.as_second()),
        references: failure
            .reference_marks
            .iter()
            .map(|PodReferencesStatus { pod_uid, mark }| PodReferences { uid: pod_uid.clone(), mark: mark.clone() })
            .collect(),
        retried_at: failure.retried_at.as_ref().map(|at| at.0.as_second()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> RevisionId {
        RevisionId { number, hash: format!("h{number}") }
    }

    #[test]
    fn what_is_remembered_comes_back_from_the_status_as_it_was() {
        let memory = RolloutMemory {
            stable: Some(id(6)),
            updated: Some(id(7)),
            failed_hashes: vec!["h3".to_owned(), "h7".to_owned()],
            failure: Some(RolloutFailure {
                revision: id(7),
                reason: FailureReason::Aborted,
                message: "somebody".to_owned(),
                at: 1000,
                rolled_back_at: Some(1002),
                references: vec![PodReferences { uid: "u0".to_owned(), mark: "5f".to_owned() }],
                retried_at: Some(1100),
            }),
            undone: Some(UndoneRevision { spec: id(7), to: id(5) }),
            promoted: Some(PostPromotion {
                revision: id(6),
                from: id(5),
                since: 800,
                counts_from: 800,
                end: Some(PostPromotionEnd {
                    outcome: PostPromotionOutcome::Inconclusive,
                    message: "no transactions".to_owned(),
                    at: 860,
                }),
            }),
            position: RolloutPosition {
                step: 2,
                steps_hash: "s".to_owned(),
                begun: 0,
                since: 900,
                proven: 1,
                needs_restart: false,
                progressed: Some(950),
            },
            command: Some(HandledCommand { text: "abort 7".to_owned(), refused: None }),
            outage: None,
            is_recalled: true,
        };
        let figures = RolloutFigures { is_in_course: true, is_counting: true, ..RolloutFigures::default() };
        let kept = |memory: &RolloutMemory| {
            let status = ConnectionPoolStatus {
                revision: memory.revision_status(1),
                rollout: Some(memory.rollout_status(figures)),
                ..ConnectionPoolStatus::default()
            };
            let text = serde_json::to_string(&status).expect("JSON");
            RolloutMemory::from_status(Some(&serde_json::from_str(&text).expect("a status")))
        };
        assert_eq!(kept(&memory), memory);
        let refused = HandledCommand { text: "undo 2".to_owned(), refused: Some("it is gone".to_owned()) };
        let never = RolloutMemory {
            stable: None,
            updated: Some(id(1)),
            failure: None,
            undone: None,
            promoted: memory.promoted.clone().map(|promoted| PostPromotion { end: None, ..promoted }),
            command: Some(refused),
            ..memory
        };
        assert_eq!(kept(&never), never);
        assert_eq!(RolloutMemory::from_status(None), RolloutMemory::default());
    }

    #[test]
    fn words_that_are_longer_than_the_status_has_room_for_are_cut_and_never_refused() {
        let mut memory = RolloutMemory { updated: Some(id(7)), ..RolloutMemory::default() };
        memory.fail(RolloutFailure::new(id(7), FailureReason::AnalysisFailed, "ü".repeat(2000), 0));
        let failure = memory.rollout_status(RolloutFigures::default()).failure.expect("told");
        assert_eq!((failure.message.len(), memory.failure.map(|failure| failure.message.len())), (1024, Some(4000)));
    }

    #[test]
    fn a_status_of_an_operator_without_hashes_keeps_its_stable_revision() {
        let of = |stable, updated| {
            let revision = RevisionStatus { stable, updated, ..RevisionStatus::default() };
            RolloutMemory::from_status(Some(&ConnectionPoolStatus {
                revision: Some(revision),
                ..ConnectionPoolStatus::default()
            }))
        };
        assert_eq!(of(5, 6).stable.map(|stable| stable.number), Some(5));
        assert_eq!(of(6, 6).stable, None, "it is promoted anew as soon as all pods are proven to run it");
    }

    #[test]
    fn the_list_of_what_failed_is_bounded_and_has_each_once() {
        let mut memory = RolloutMemory::default();
        let mut fail = |number| {
            memory.fail(RolloutFailure::new(id(number), FailureReason::AnalysisFailed, String::new(), 0));
            memory.failed_hashes.clone()
        };
        for number in 0..30 {
            fail(number);
        }
        let failed = fail(25);
        assert_eq!((failed.len(), failed.last().map(String::as_str)), (FAILED_HASHES, Some("h25")));
        memory.forgive("h25");
        assert_eq!((memory.failure, memory.failed_hashes.len()), (None, FAILED_HASHES - 1));
    }
}
