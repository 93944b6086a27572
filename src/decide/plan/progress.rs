//! What is told of a rollout: `Progressing`, `Paused`, and the events of what happened in it.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;

use super::{
    conditions::{no, unknown, yes},
    observed::Observed,
    report::{EventKind, EventNote},
    rollout::Rollout,
};
use crate::{
    api::{
        ROLLOUT_ANNOTATION,
        conditions::{ObservedCondition as Condition, PAUSED, PROGRESSING},
        reasons,
    },
    decide::{
        analysis::AnalysisPhase,
        rollout::{
            FailureReason, HandledCommand, JudgedTry, PostPromotionEnd, PostPromotionOutcome, RolloutFailure,
            RolloutHappening, RolloutMove, RolloutState, RolloutStep, UndoneRevision,
        },
    },
    domain::UnixSeconds,
};

pub(super) fn progressing(observed: &Observed, rollout: &Rollout) -> Condition {
    let (Ok(_), Some(course)) = (observed.effective, &rollout.course) else {
        return unknown(PROGRESSING, reasons::NOT_ACCEPTED, "nothing is rolled out without a valid spec: see Accepted");
    };
    let mut condition = of_course(observed, course);
    if let Some(failure) = tried_again(course) {
        let _ = write!(
            condition.message,
            "; it failed before ({}) and is tried again, because what its pods are given by reference (Secrets, CA bundles, certificates) has \
             changed since",
            failure.reason.as_str()
        );
    }
    if rollout.is_held && course.figures.is_in_course {
        condition.message +=
            "; it waits, because the database does not serve the other pods either: see UpstreamHealthy";
    }
    if rollout.is_outage && (course.figures.is_in_course || course.memory.judged_after_promotion().is_some()) {
        condition.message += "; CircuitOpen: it waits, because the database is away; what was measured meanwhile does not count, and \
                              none of it is held against the revision: see UpstreamHealthy";
    }
    if let Some(HandledCommand { text, refused: Some(why) }) = &course.memory.command {
        let _ = write!(condition.message, "; the request {text:?} was refused: {why}");
    }
    if let Some(doubted) = rollout.doubted.first() {
        let _ = write!(
            condition.message,
            "; ControllerRevision {doubted} is not what was written, and is not followed: delete it, what is needed of it is kept anew"
        );
    }
    condition
}

/// How what is rolled out failed before, where it is tried again by itself.
fn tried_again(course: &RolloutMove) -> Option<&RolloutFailure> {
    let failure = course.memory.failure.as_ref().filter(|failure| failure.revision == course.goal)?;
    (failure.retried_at.is_some() && course.figures.is_in_course).then_some(failure)
}

/// The steps that somebody named; none where they are the built-in ones, which nobody has to know of.
fn named_steps<'a>(observed: &'a Observed) -> &'a [RolloutStep] {
    let strategy = observed.effective.map(|effective| &effective.rollout);
    strategy.ok().filter(|strategy| !strategy.are_built_in).map_or(&[], |strategy| strategy.steps.as_slice())
}

fn of_course(observed: &Observed, course: &RolloutMove) -> Condition {
    let RolloutMove { members, proven, .. } = course;
    let (goal, stable) = (course.goal.number, course.stable.number);
    let new_pods = format!("new pods get revision {}", course.new_pods.unwrap_or(stable));
    let runs = format!("revision {goal} runs on {proven} of {members} pods");
    match course.state {
        RolloutState::NoPods if goal == stable => {
            yes(PROGRESSING, reasons::ROLLOUT_COMPLETE, format!("no pod runs; {new_pods}"))
        }
        RolloutState::NoPods => yes(
            PROGRESSING,
            reasons::ROLLING_OUT,
            format!("no pod runs that could prove revision {goal}: {new_pods}, and it goes to one of them first"),
        ),
        RolloutState::Complete => complete(observed, course),
        RolloutState::PostPromotion => post_promotion(observed, course),
        RolloutState::Rolling => {
            let (at, waits) = (at_step(observed, course), waiting(course));
            yes(PROGRESSING, reasons::ROLLING_OUT, format!("{runs}{at}{waits}; {new_pods}"))
        }
        RolloutState::Analysing => yes(
            PROGRESSING,
            reasons::ANALYSING,
            format!("{runs}{}; {}; {new_pods}", at_step(observed, course), analysing(observed, course)),
        ),
        RolloutState::Pausing { until } => pausing(observed, course, until),
        RolloutState::AwaitingPromotion => unknown(
            PROGRESSING,
            reasons::BLUE_GREEN_PAUSE,
            format!(
                "revision {goal} has proven itself in {} of {members} pods, beside revision {stable}, which serves all clients; \
                 set spec.rollout.blueGreen.autoPromotionEnabled to true to promote it, or the spec back",
                course.awaiting_promotion
            ),
        ),
        RolloutState::Failed { away } => failed(observed, course, away),
        RolloutState::Stuck => no(
            PROGRESSING,
            reasons::PROGRESS_DEADLINE_EXCEEDED,
            format!(
                "{runs} and has not come further within the deadline; {new_pods}; see Proven for what the pods say"
            ),
        ),
    }
}

/// That pods only wait, and for what.
fn waiting(course: &RolloutMove) -> String {
    let RolloutMove { awaiting_drain, awaiting_restart, .. } = course;
    let mut words = String::new();
    if *awaiting_drain > 0 {
        let _ = write!(
            words,
            "; on {awaiting_drain} it waits until clients have left the process before the last one, which no deadline counts \
             (WaitingForDrain: see Proven; spec.rollout.blueGreen.drainTimeoutSeconds closes those that are idle)"
        );
    }
    if *awaiting_restart > 0 {
        let _ = write!(
            words,
            "; {awaiting_restart} that were told it take it over with their restart alone, which no deadline counts (switching: \
             Unsupported): restart the pods, see PodsCurrent"
        );
    }
    words
}

/// What the analysis waits for.
fn analysing(observed: &Observed, course: &RolloutMove) -> String {
    let lacking = lacking(observed, course, AnalysisPhase::Canary);
    let against = if course.members == 1 { "its own past, for there is no other pod" } else { "the other pods" };
    let deadline = observed.effective.map_or(0, |effective| effective.rollout.progress_deadline_seconds);
    let short = too_short(observed, deadline);
    format!(
        "its metrics are judged, against {against}: not decided so far ({lacking}); it goes back after {deadline} s if it is not proven{short}"
    )
}

/// That pods are scraped so rarely that the deadline is over before anybody can know: the spec alone does not say how often they are.
fn too_short(observed: &Observed, deadline_seconds: u32) -> String {
    let least = observed.judged.and_then(|judged| judged.least_seconds).filter(|least| *least > deadline_seconds);
    least.map_or_else(String::new, |least| {
        format!(
            ", which is over before that can be: as rarely as the pods are scraped it takes {least} s at the least; set \
             spec.rollout.progressDeadlineSeconds to {least} or more, or have them scraped more often"
        )
    })
}

/// What the analysis of a phase still lacks.
fn lacking<'a>(observed: &Observed<'a>, course: &RolloutMove, phase: AnalysisPhase) -> &'a str {
    let begun = course.memory.try_begun(phase);
    let of_it = |of: &JudgedTry| of.revision == course.goal && of.phase == phase && Some(of.begun) == begun;
    let judged = observed.judged.filter(|judged| of_it(&judged.of));
    judged.map_or("nothing was measured yet", |judged| judged.words.as_str())
}

/// Where it is promoted, and is judged for a while more.
fn post_promotion(observed: &Observed, course: &RolloutMove) -> Condition {
    let (goal, members) = (course.goal.number, course.members);
    let from = course.memory.judged_after_promotion().map_or(0, |promoted| promoted.from.number);
    let said = match lacking(observed, course, AnalysisPhase::PostPromotion) {
        "" => "no harm was found so far".to_owned(),
        lacking => format!("not decided so far ({lacking})"),
    };
    let deadline = observed.effective.map_or(0, |effective| effective.rollout.progress_deadline_seconds);
    let short = too_short(observed, deadline);
    yes(
        PROGRESSING,
        reasons::POST_PROMOTION_ANALYSING,
        format!(
            "revision {goal} runs on all {members} pods and was promoted; their metrics are judged for a while more, each against its own \
             past on revision {from}: {said}; where they are worse all go back to revision {from}, and where nothing is known within \
             {deadline} s it stays{short}; to take it back: {}",
            request(observed, &format!("abort {goal}"))
        ),
    )
}

fn complete(observed: &Observed, course: &RolloutMove) -> Condition {
    let (goal, members) = (course.goal.number, course.members);
    let end = course.memory.promoted.as_ref().and_then(|promoted| Some((promoted.from.number, promoted.end.as_ref()?)));
    let runs = format!("revision {goal} runs on all {members} pods");
    match (&course.memory.undone, end) {
        (None, Some((from, PostPromotionEnd { outcome: PostPromotionOutcome::NoWayBack, message, .. }))) => no(
            PROGRESSING,
            reasons::ANALYSIS_FAILED,
            format!("{runs} and should go back: {message}; but revision {from} is gone: change the spec"),
        ),
        (None, Some((_, PostPromotionEnd { message, .. }))) => {
            yes(PROGRESSING, reasons::ROLLOUT_COMPLETE, format!("{runs}; {message}"))
        }
        (None, None) => yes(PROGRESSING, reasons::ROLLOUT_COMPLETE, runs),
        (Some(UndoneRevision { spec, .. }), _) => yes(
            PROGRESSING,
            reasons::ROLLOUT_UNDONE,
            format!(
                "{runs} because somebody wants it instead of revision {}, which is what the \
                 spec says; it stays until the spec changes, or until: {}",
                spec.number,
                request(observed, &format!("retry {}", spec.number))
            ),
        ),
    }
}

/// In which step it is, where somebody named steps.
fn at_step(observed: &Observed, course: &RolloutMove) -> String {
    let steps = named_steps(observed).len();
    if steps == 0 || !course.figures.is_in_course {
        return String::new();
    }
    let step = course.memory.position.step;
    format!(", in step {step} of {steps} ({} % of the pods)", course.figures.set_weight)
}

fn pausing(observed: &Observed, course: &RolloutMove, until: Option<UnixSeconds>) -> Condition {
    let RolloutMove { members, figures, .. } = course;
    let (goal, stable) = (course.goal.number, course.stable.number);
    // there is nobody to compare it with
    let alone = if *members == 1 {
        ", the only one, so there is no canary: it was proven beside the process before it"
    } else {
        ""
    };
    let proved = format!(
        "revision {goal} has proven itself on {} of {members} pods{alone}{}",
        figures.updated_pods,
        at_step(observed, course)
    );
    let back = request(observed, &format!("abort {goal}"));
    let at = until.map(|until| Timestamp::from_second(until).unwrap_or_default());
    if named_steps(observed).is_empty() {
        let at = at.map(|at| format!(" at {at}")).unwrap_or_default();
        return yes(
            PROGRESSING,
            reasons::ROLLING_OUT,
            format!("{proved}; the rest follow{at}; to take it back: {back}; new pods get revision {stable}"),
        );
    }
    let go_on = request(observed, &format!("promote {goal} in step {}", course.memory.position.step));
    let waits = match at {
        Some(at) => format!("it goes on at {at}, or with"),
        None => "it goes on with".to_owned(),
    };
    unknown(
        PROGRESSING,
        reasons::ROLLOUT_PAUSED,
        format!("{proved}; {waits}: {go_on}; to take it back: {back}; new pods get revision {stable}"),
    )
}

fn failed(observed: &Observed, course: &RolloutMove, away: usize) -> Condition {
    let (goal, stable) = (course.goal.number, course.stable.number);
    let known = course.memory.failure.as_ref().filter(|failure| failure.revision == course.goal);
    let (reason, why, at) = known.map_or((reasons::ROLLOUT_ABORTED, "it failed before", 0), |failure| {
        (failure.reason.as_str(), failure.message.as_str(), failure.at)
    });
    let back = match away {
        0 => format!("every pod that took it is back on revision {stable}"),
        away => format!("{away} pods have yet to be back on revision {stable}"),
    };
    let until = match known {
        // who took it back may want it otherwise for a reason that no Secret has
        Some(failure) if failure.reason == FailureReason::Aborted => "until the settings change",
        Some(failure) if failure.references.is_empty() => {
            "until the settings change (no agent has told yet what its pods are given by reference, of which a change would count too)"
        }
        Some(_) => {
            "until the settings change, or what its pods are given by reference (Secrets, CA bundles, certificates)"
        }
        None => "until the settings change",
    };
    let again = request(observed, &format!("retry {goal} after {}", Timestamp::from_second(at).unwrap_or_default()));
    no(
        PROGRESSING,
        reason,
        format!(
            "revision {goal} was taken back: {why}; {back}, which new pods get; it is not tried again {until}, or until: {again}"
        ),
    )
}

/// The command by which somebody asks for something.
fn request(observed: &Observed, words: &str) -> String {
    let metadata = &observed.pool.metadata;
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    format!(
        "kubectl -n {} annotate connectionpool {} --overwrite {ROLLOUT_ANNOTATION}='{words}'",
        namespace.unwrap_or_default(),
        name.unwrap_or_default()
    )
}

pub(super) fn paused(observed: &Observed, rollout: &Rollout) -> Condition {
    if let Some(frozen) = observed.frozen() {
        let words = format!("{}; limits, shares and revisions stay as they are", frozen.words());
        return yes(PAUSED, frozen.reason(), words);
    }
    match &rollout.course {
        Some(course) if is_paused(observed, course) => yes(
            PAUSED,
            reasons::ROLLOUT_PAUSED,
            format!(
                "the rollout of revision {} waits in step {}, see Progressing; limits and shares follow the load",
                course.goal.number, course.memory.position.step
            ),
        ),
        _ => no(PAUSED, reasons::NOT_PAUSED, "spec.paused is false, and nobody has frozen it"),
    }
}

/// Whether it waits in a pause that somebody named.
fn is_paused(observed: &Observed, course: &RolloutMove) -> bool {
    matches!(course.state, RolloutState::Pausing { .. }) && !named_steps(observed).is_empty()
}

/// How rollouts ended, by their reasons.
pub(super) fn ended(course: &RolloutMove) -> Vec<&'static str> {
    let reasons = course.happened.iter().filter_map(|happened| match happened {
        RolloutHappening::Promoted { from: Some(_), .. } => Some(reasons::ROLLOUT_COMPLETE),
        RolloutHappening::Failed => course.memory.failure.as_ref().map(|failure| failure.reason.as_str()),
        _ => None,
    });
    reasons.collect()
}

/// The events of what happened, but for failures: `Progressing` turns with them.
pub(super) fn events(observed: &Observed, rollout: &Rollout, conditions: &[Condition]) -> Vec<EventNote> {
    let mut events: Vec<EventNote> = freeze_event(observed, conditions).into_iter().collect();
    let Some(course) = &rollout.course else { return events };
    events.extend(course.happened.iter().filter_map(|happened| event(observed, course, happened)));
    let reason = |conditions: &[Condition]| {
        conditions.iter().find(|condition| condition.type_ == PROGRESSING).map(|condition| condition.message.clone())
    };
    let before = observed.status.and_then(|status| status.conditions.iter().find(|known| known.type_ == PROGRESSING));
    let was_paused = before.is_some_and(|before| before.reason == reasons::ROLLOUT_PAUSED);
    if is_paused(observed, course) && !was_paused {
        events.push(normal(reasons::ROLLOUT_PAUSED, "Pause", reason(conditions).unwrap_or_default()));
    }
    events
}

/// The event of a pool that somebody has paused or frozen, for longer or for another reason than before, and of one that goes on.
fn freeze_event(observed: &Observed, conditions: &[Condition]) -> Option<EventNote> {
    let stands = |reason: &str| [reasons::PAUSED, reasons::FROZEN].contains(&reason);
    let now = conditions.iter().find(|condition| condition.type_ == PAUSED)?;
    let before = observed.status.and_then(|status| status.conditions.iter().find(|known| known.type_ == PAUSED));
    let before = before.map(|before| (before.reason.as_str(), before.message.as_str()));
    match (before.filter(|(reason, _)| stands(reason)), stands(now.reason)) {
        (known, true) if known != Some((now.reason, &now.message)) => {
            Some(normal(now.reason, "Freeze", now.message.clone()))
        }
        (Some(_), false) => Some(normal(reasons::NOT_PAUSED, "Resume", now.message.clone())),
        _ => None,
    }
}

fn normal(reason: &'static str, action: &'static str, note: String) -> EventNote {
    EventNote { kind: EventKind::Normal, reason: reason.to_owned(), action, note }
}

fn event(observed: &Observed, course: &RolloutMove, happened: &RolloutHappening) -> Option<EventNote> {
    let (goal, stable) = (course.goal.number, course.stable.number);
    let RolloutMove { members, figures, .. } = course;
    match happened {
        RolloutHappening::StepDone { step } => {
            let steps = named_steps(observed).len();
            let updated = figures.updated_pods;
            let note = format!(
                "step {step} of {steps} is done: revision {goal} has proven itself on {updated} of {members} pods"
            );
            (steps > 0).then(|| normal(reasons::ROLLOUT_STEP_COMPLETED, "CompleteStep", note))
        }
        RolloutHappening::Promoted { revision, from } => {
            let note =
                format!("revision {revision} runs on all {members} pods, and new pods get it in place of {}", (*from)?);
            Some(normal(reasons::ROLLOUT_COMPLETE, "Promote", note))
        }
        // `Progressing` turns with it where it failed
        RolloutHappening::PostPromotionEnded => {
            let PostPromotionEnd { outcome, message, .. } = course.memory.promoted.as_ref()?.end.as_ref()?;
            let (kind, reason) = match outcome {
                PostPromotionOutcome::Passed => (EventKind::Normal, reasons::POST_PROMOTION_PASSED),
                PostPromotionOutcome::Inconclusive => (EventKind::Warning, reasons::POST_PROMOTION_INCONCLUSIVE),
                PostPromotionOutcome::Ended | PostPromotionOutcome::NoWayBack => return None,
            };
            let note = format!("revision {goal} runs on all {members} pods: {message}");
            Some(EventNote { kind, reason: reason.to_owned(), action: "Judge", note })
        }
        RolloutHappening::Failed => None,
        RolloutHappening::RolledBack => {
            let note = format!("every pod that took revision {goal} is proven to run revision {stable} again");
            Some(normal(reasons::ROLLBACK_COMPLETE, "RollBack", note))
        }
        RolloutHappening::TriedAgain => {
            let failure = course.memory.failure.as_ref()?;
            let note = format!(
                "revision {goal}, which failed ({}), is tried again: what its pods are given by reference (Secrets, CA bundles, certificates) \
                 has changed since",
                failure.reason.as_str()
            );
            Some(normal(reasons::ROLLOUT_RETRIED, "Retry", note))
        }
        RolloutHappening::Obeyed { command } => {
            // behind verb and number stands when, and by whom
            let asked = course.memory.command.as_ref().map(|handled| handled.text.as_str()).unwrap_or_default();
            let (verb, revision) = (command.verb.as_str(), command.revision);
            let note = format!("{verb} {revision}: done, as {ROLLOUT_ANNOTATION} asks: {asked:?}");
            Some(normal(reasons::ROLLOUT_COMMAND, "Obey", note))
        }
        RolloutHappening::Refused { text, why } => Some(EventNote {
            kind: EventKind::Warning,
            reason: reasons::ROLLOUT_COMMAND_REFUSED.to_owned(),
            action: "Refuse",
            note: format!("{ROLLOUT_ANNOTATION}: {text:?} was refused: {why}"),
        }),
    }
}
