//! The machine of rollouts, through every state of small worlds: what it promises holds in all of them, and a machine with a mistake
//! in it is found.

mod model;

use std::io::Write;

use sluice::decide::{
    analysis::AnalysisPhase,
    rollout::{
        RolloutHappening, RolloutInput, RolloutJudgement, RolloutMemory, RolloutMove, RolloutState, RolloutStep, step,
    },
};

use self::model::{Chances, Decide, Quality, Search, Setting, Violation};

const ONE_THEN_REST: [RolloutStep; 2] = [RolloutStep::OnePod, RolloutStep::Pause { seconds: Some(1) }];
const BY_HAND: [RolloutStep; 4] = [
    RolloutStep::SetWeight { percent: 34 },
    RolloutStep::Pause { seconds: None },
    RolloutStep::SetWeight { percent: 67 },
    RolloutStep::Pause { seconds: Some(1) },
];
const JUDGED: [RolloutStep; 2] = [RolloutStep::SetWeight { percent: 1 }, RolloutStep::Analysis];
const GOOD_GOOD_DEAD: [Quality; 3] = [Quality::Good, Quality::Good, Quality::Dead];
const GOOD_WORSE_GOOD: [Quality; 3] = [Quality::Good, Quality::Worse, Quality::Good];
const GOOD_WORSE: [Quality; 2] = [Quality::Good, Quality::Worse];
const GOOD_UNPROVEN_GOOD: [Quality; 3] = [Quality::Good, Quality::Unproven, Quality::Good];
const GOOD_DEAD_UNTIL_MENDED: [Quality; 2] = [Quality::Good, Quality::DeadUntilMended];
const GOOD_WAITS_DEAD: [Quality; 3] = [Quality::Good, Quality::WaitsForDrain, Quality::Dead];
const GOOD_RESTART: [Quality; 2] = [Quality::Good, Quality::WaitsForRestart];
const GOOD_DEAD: [Quality; 2] = [Quality::Good, Quality::Dead];
const GOOD_WORSE_LATER: [Quality; 2] = [Quality::Good, Quality::WorseLater];
const GOOD_WORSE_LATER_GOOD: [Quality; 3] = [Quality::Good, Quality::WorseLater, Quality::Good];
const GOOD_UNPROVEN_LATER_GOOD: [Quality; 3] = [Quality::Good, Quality::UnprovenLater, Quality::Good];

/// More may happen where there is time for it.
const fn more(release: u8, debug: u8) -> u8 {
    if cfg!(debug_assertions) { debug } else { release }
}

const CALM: Chances = Chances { changes: 1, requests: 0, churn: 0, crashes: 0, freezes: 0, mends: 0 };

fn search(name: &str, setting: Setting, decide: Decide) -> Result<(), Violation> {
    let mut search = Search::new(setting, decide);
    let found = search.run();
    // past the capture of the test harness: how much was looked at is part of the proof
    let _ = writeln!(
        std::io::stderr(),
        "rollout model, {name}: {} states, {} transitions{}",
        search.states(),
        search.transitions,
        found.as_ref().err().map(|violation| format!(", found: {}", violation.promise)).unwrap_or_default()
    );
    found
}

fn holds(name: &str, setting: Setting) {
    if let Err(Violation { promise, way }) = search(name, setting, step) {
        panic!("{name}: it does not hold that {promise}: {way}");
    }
}

fn small(qualities: &'static [Quality], steps: &'static [RolloutStep], chances: Chances) -> Setting {
    Setting { qualities, steps, max_unavailable: 1, post_promotion_seconds: None, pods: 3, chances }
}

/// With as many pods as there is time for.
fn world(qualities: &'static [Quality], steps: &'static [RolloutStep], chances: Chances) -> Setting {
    Setting { pods: usize::from(more(3, 2)), ..small(qualities, steps, chances) }
}

#[test]
fn rollout_keeps_its_promises_while_the_operator_is_killed_anywhere() {
    let chances = Chances { changes: more(2, 1), crashes: more(2, 1), ..CALM };
    holds("killed anywhere", world(&GOOD_GOOD_DEAD, &ONE_THEN_REST, chances));
}

#[test]
fn rollout_keeps_its_promises_while_pods_come_and_go() {
    let chances = Chances { churn: more(3, 1), crashes: more(1, 0), ..CALM };
    holds("churn", world(&GOOD_GOOD_DEAD, &ONE_THEN_REST, chances));
}

#[test]
fn rollout_keeps_its_promises_whatever_people_ask_for() {
    let chances = Chances { changes: more(2, 1), requests: more(2, 1), crashes: more(1, 0), ..CALM };
    holds("requests", world(&GOOD_GOOD_DEAD, &BY_HAND, chances));
}

#[test]
fn rollout_keeps_its_promises_whatever_the_analysis_says_and_forgets() {
    let chances = Chances { changes: more(2, 1), crashes: more(2, 1), ..CALM };
    holds("analysis", world(&GOOD_WORSE_GOOD, &JUDGED, chances));
    holds("analysis that never knows", world(&GOOD_UNPROVEN_GOOD, &JUDGED, chances));
    let chances = Chances { requests: more(2, 1), crashes: more(1, 0), ..CALM };
    holds("analysis, with requests", Setting { pods: 2, ..world(&GOOD_WORSE, &JUDGED, chances) });
}

/// With an analysis after the promotion, of two seconds.
fn judged_later(qualities: &'static [Quality], chances: Chances) -> Setting {
    Setting { post_promotion_seconds: Some(2), ..world(qualities, &JUDGED, chances) }
}

#[test]
fn rollout_keeps_its_promises_whatever_is_found_after_a_promotion() {
    let chances = Chances { crashes: more(2, 1), churn: more(1, 0), ..CALM };
    holds("worse after its promotion", judged_later(&GOOD_WORSE_LATER, chances));
    let chances = Chances { changes: more(2, 1), crashes: 1, ..CALM };
    holds("worse after its promotion, and overtaken", judged_later(&GOOD_WORSE_LATER_GOOD, chances));
    holds("unproven after its promotion", judged_later(&GOOD_UNPROVEN_LATER_GOOD, chances));
    let chances = Chances { changes: 1, requests: 1, freezes: more(2, 0), crashes: more(1, 0), ..CALM };
    holds("after its promotion, with requests", judged_later(&GOOD_WORSE_LATER_GOOD, chances));
}

#[test]
fn rollout_keeps_its_promises_while_what_pods_are_given_is_mended() {
    let chances = Chances { mends: more(2, 1), crashes: more(1, 0), ..CALM };
    let small_world = |qualities| Setting { pods: 2, ..world(qualities, &ONE_THEN_REST, chances) };
    holds("mended", small_world(&GOOD_DEAD_UNTIL_MENDED));
    holds("mended, and that was not it", small_world(&GOOD_DEAD));
}

#[test]
fn rollout_keeps_its_promises_while_pods_wait_for_clients_that_stay_or_for_their_restart() {
    let chances = Chances { changes: more(2, 1), crashes: more(1, 0), ..CALM };
    holds("waits for clients", world(&GOOD_WAITS_DEAD, &ONE_THEN_REST, chances));
    let chances = Chances { churn: 2, crashes: more(1, 0), ..CALM };
    holds("waits for a restart", Setting { pods: 2, ..world(&GOOD_RESTART, &ONE_THEN_REST, chances) });
    let chances = Chances { changes: more(2, 1), churn: more(1, 0), requests: 1, ..CALM };
    holds("waits for a restart, with requests", Setting { pods: 2, ..world(&GOOD_RESTART, &ONE_THEN_REST, chances) });
}

#[test]
fn rollout_keeps_its_promises_while_the_spec_is_paused_and_goes_on() {
    let chances = Chances { changes: more(2, 1), requests: more(1, 0), freezes: 2, ..CALM };
    holds("paused", world(&GOOD_GOOD_DEAD, &ONE_THEN_REST, chances));
}

#[test]
fn rollout_keeps_its_promises_with_several_pods_in_change_and_with_a_single_pod() {
    let chances = Chances { changes: more(2, 1), crashes: more(1, 0), churn: more(1, 0), ..CALM };
    holds("two in change", Setting { max_unavailable: 2, ..world(&GOOD_GOOD_DEAD, &BY_HAND, chances) });
    holds("without steps", Setting { max_unavailable: 2, ..world(&GOOD_GOOD_DEAD, &[], chances) });
    let chances = Chances { changes: more(2, 1), requests: 1, crashes: more(1, 0), churn: more(2, 1), ..CALM };
    holds("a single pod", Setting { pods: 1, ..world(&GOOD_GOOD_DEAD, &BY_HAND, chances) });
}

/// A machine with a mistake in it, and the promise that it breaks.
fn finds(name: &str, setting: Setting, decide: Decide, promises: &[&str]) {
    let violation = search(name, setting, decide).expect_err(name);
    assert!(promises.contains(&violation.promise), "{name}: {violation:?}");
}

fn one_pod_too_many(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut decided = step(memory, input);
    let goal = decided.goal.number;
    let told: Vec<usize> = decided.tells.iter().map(|(pod, _)| *pod).collect();
    let stays = |pod: &usize| !told.contains(pod) && input.pods[*pod].told != Some(goal);
    if matches!(decided.state, RolloutState::Pausing { .. })
        && let Some(pod) = (0..input.pods.len()).find(stays)
    {
        decided.tells.push((pod, goal));
    }
    decided
}

fn two_in_change(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    step(memory, &RolloutInput { max_unavailable: 2, ..input.clone() })
}

fn forgets_what_failed(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut decided = step(memory, input);
    if decided.state == (RolloutState::Failed { away: 0 }) {
        decided.memory.failed_hashes.clear();
    }
    decided
}

fn leaves_one_behind(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut decided = step(memory, input);
    if matches!(decided.state, RolloutState::Failed { .. }) {
        decided.tells.pop();
    }
    decided
}

fn promotes_what_one_pod_proved(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut decided = step(memory, input);
    if matches!(decided.state, RolloutState::Pausing { .. }) {
        decided.memory.stable = Some(decided.goal.clone());
        let promoted = RolloutHappening::Promoted { revision: decided.goal.number, from: Some(1) };
        decided.happened.push(promoted);
    }
    decided
}

fn never_gives_up(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    step(memory, &RolloutInput { progress_deadline_seconds: u32::MAX, ..input.clone() })
}

fn remembers_a_failure_last(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    RolloutMove { remember_first: false, ..step(memory, input) }
}

fn does_not_wait(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let steps = [RolloutStep::OnePod, RolloutStep::Pause { seconds: Some(0) }];
    step(memory, &RolloutInput { steps: &steps, ..input.clone() })
}

fn believes_what_was_said_before(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut pods = input.pods.to_vec();
    for pod in &mut pods {
        pod.reads_back = pod.told;
    }
    step(memory, &RolloutInput { pods: &pods, ..input.clone() })
}

fn goes_forward_while_paused(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    step(memory, &RolloutInput { is_frozen: false, ..input.clone() })
}

fn promotes_what_is_not_proven(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut input = input.clone();
    if let Some((_, judgement @ RolloutJudgement::Inconclusive { .. })) = &mut input.judged {
        *judgement = RolloutJudgement::Pass;
    }
    step(memory, &input)
}

fn takes_the_word_of_the_canary(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut input = input.clone();
    if let Some((judged, _)) = &mut input.judged
        && let Some(promoted) = memory.judged_after_promotion()
    {
        (judged.phase, judged.begun) = (AnalysisPhase::PostPromotion, promoted.since);
    }
    step(memory, &input)
}

fn takes_the_word_of_the_try_before(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut input = input.clone();
    if let Some((judged, _)) = &mut input.judged {
        judged.begun = memory.try_begun(judged.phase).unwrap_or(judged.begun);
    }
    step(memory, &input)
}

fn counts_who_only_waits(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut pods = input.pods.to_vec();
    for pod in &mut pods {
        pod.waits = None;
    }
    step(memory, &RolloutInput { pods: &pods, ..input.clone() })
}

fn passes_what_was_just_promoted(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    step(memory, &RolloutInput { post_promotion_seconds: Some(0), ..input.clone() })
}

fn keeps_what_is_worse_later(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut input = input.clone();
    if let Some((judged, judgement)) = &mut input.judged
        && judged.phase == AnalysisPhase::PostPromotion
    {
        *judgement = RolloutJudgement::Inconclusive { why: String::new(), is_final: true };
    }
    step(memory, &input)
}

fn tries_again_for_ever(memory: &RolloutMemory, input: &RolloutInput<'_>) -> RolloutMove {
    let mut memory = memory.clone();
    for references in memory.failure.iter_mut().flat_map(|failure| &mut failure.references) {
        "another".clone_into(&mut references.mark);
    }
    step(&memory, input)
}

#[test]
fn rollout_with_a_planted_mistake_is_found() {
    let dead = |chances| small(&GOOD_GOOD_DEAD, &ONE_THEN_REST, chances);
    finds("one pod too many", dead(CALM), one_pod_too_many, &["no more pods run a revision than the step allows"]);
    finds("two in change", dead(CALM), two_in_change, &["no more pods are in change than maxUnavailable"]);
    finds(
        "forgets what failed",
        dead(CALM),
        forgets_what_failed,
        &["a failed revision is told to no further pod", "every rollout ends"],
    );
    let everybody = "every pod that took a failed revision is told to leave it";
    finds("leaves one behind", dead(CALM), leaves_one_behind, &[everybody]);
    let promoted = ["a revision is promoted when all pods run it"];
    finds("promotes what one pod proved", dead(CALM), promotes_what_one_pod_proved, &promoted);
    finds("never gives up", dead(CALM), never_gives_up, &["every rollout ends"]);
    finds("does not wait", dead(CALM), does_not_wait, &["no pause and no analysis is skipped"]);
    let before = ["no step is passed before its pods are proven", promoted[0]];
    finds("believes what was said before", dead(CALM), believes_what_was_said_before, &before);
    let unproven = small(&GOOD_UNPROVEN_GOOD, &JUDGED, CALM);
    let skipped = ["no pause and no analysis is skipped", "what is dead, worse or not proven is never done"];
    finds("promotes what is not proven", unproven, promotes_what_is_not_proven, &skipped);
    let later = || Setting { post_promotion_seconds: Some(2), ..small(&GOOD_WORSE_LATER, &JUDGED, CALM) };
    let unproven = || Setting { qualities: &GOOD_UNPROVEN_LATER_GOOD, ..later() };
    let good = || Setting { qualities: &[Quality::Good, Quality::Good], ..later() };
    let short = ["no analysis after a promotion is cut short"];
    finds("takes the word of the canary", unproven(), takes_the_word_of_the_canary, &short);
    let retried = Setting { pods: 2, ..small(&GOOD_WORSE, &JUDGED, Chances { requests: 2, ..CALM }) };
    let earlier = ["what was found of an earlier try decides nothing"];
    finds("takes the word of the try before", retried, takes_the_word_of_the_try_before, &earlier);
    let waits = small(&GOOD_WAITS_DEAD, &ONE_THEN_REST, CALM);
    let patient = ["who only waits does not fail"];
    finds("counts who only waits", waits, counts_who_only_waits, &patient);
    finds("passes what was just promoted", good(), passes_what_was_just_promoted, &short);
    let worse = ["what is found worse after its promotion goes back at once"];
    finds("keeps what is worse later", later(), keeps_what_is_worse_later, &worse);
    finds("leaves one behind after its promotion", later(), leaves_one_behind, &[everybody]);
    let once = ["what failed is tried again once for each change of what pods are given"];
    finds("tries again for ever", dead(CALM), tries_again_for_ever, &once);
    let killed = small(&GOOD_WORSE_GOOD, &JUDGED, Chances { crashes: 1, ..CALM });
    finds(
        "remembers a failure last",
        killed,
        remembers_a_failure_last,
        &["a failed revision is told to no further pod"],
    );
    let paused = dead(Chances { freezes: 1, ..CALM });
    finds(
        "goes forward while paused",
        paused,
        goes_forward_while_paused,
        &["nothing goes forward while the spec is paused"],
    );
}
