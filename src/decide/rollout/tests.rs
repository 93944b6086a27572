use super::*;

const DEADLINE_SECONDS: u32 = 60;
const HAND: [RolloutStep; 3] = [
    RolloutStep::SetWeight { percent: 10 },
    RolloutStep::Pause { seconds: None },
    RolloutStep::SetWeight { percent: 50 },
];

fn id(number: u64) -> RevisionId {
    RevisionId { number, hash: format!("h{number}") }
}

/// Pods that do what they are told, unless the revision is dead.
struct Fleet {
    /// Told, and read back.
    pods: Vec<(Option<u64>, Option<u64>)>,
    memory: RolloutMemory,
    revisions: Vec<RevisionId>,
    wanted: u64,
    steps: Vec<RolloutStep>,
    max_unavailable: usize,
    command: Option<&'static str>,
    is_frozen: bool,
    away_since: Option<UnixSeconds>,
    /// What the pods are given by reference, in their order; of the others nothing is told.
    marks: Vec<&'static str>,
    dead: Vec<u64>,
    /// Which pods take over nothing for now, and what they wait for.
    waits: Vec<(usize, RevisionWait)>,
    judged: Option<RolloutJudgement>,
    /// When the try began of which that is said; None: the one in course.
    judged_try: Option<UnixSeconds>,
    /// Seconds that a promoted revision is judged for, and what is said of it then.
    post_promotion: Option<u32>,
    judged_after: Option<RolloutJudgement>,
    now: UnixSeconds,
    happened: Vec<RolloutHappening>,
}

impl Fleet {
    /// So many pods, all proven to run revision 6, and nothing remembered but that.
    fn new(pods: usize, steps: &[RolloutStep]) -> Self {
        Self {
            pods: vec![(Some(6), Some(6)); pods],
            memory: RolloutMemory { stable: Some(id(6)), updated: Some(id(6)), ..RolloutMemory::default() },
            revisions: (5..=8).map(id).collect(),
            wanted: 6,
            steps: steps.to_vec(),
            max_unavailable: 1,
            command: None,
            is_frozen: false,
            away_since: None,
            marks: Vec::new(),
            dead: Vec::new(),
            waits: Vec::new(),
            judged: None,
            judged_try: None,
            post_promotion: None,
            judged_after: None,
            now: 1_000_000,
            happened: Vec::new(),
        }
    }

    fn judged(&self) -> Option<(JudgedTry, RolloutJudgement)> {
        let (revision, phase, judgement) = match self.memory.judged_after_promotion() {
            Some(promoted) => (promoted.revision.clone(), AnalysisPhase::PostPromotion, self.judged_after.clone()?),
            None => (id(self.wanted), AnalysisPhase::Canary, self.judged.clone()?),
        };
        let begun = self.judged_try.or_else(|| self.memory.try_begun(phase))?;
        Some((JudgedTry { revision, phase, begun }, judgement))
    }

    fn decide(&self) -> RolloutMove {
        let uids: Vec<String> = (0..self.pods.len()).map(|pod| format!("u{pod}")).collect();
        let pods: Vec<RolloutPod> = self
            .pods
            .iter()
            .zip(&uids)
            .zip(0..)
            .map(|(((told, runs), uid), number)| RolloutPod {
                uid,
                created: 0,
                is_running: true,
                told: *told,
                reads_back: *runs,
                last_read_back: *runs,
                awaits_promotion: false,
                waits: self.waiting(number),
                reference_mark: self.marks.get::<usize>(number).copied(),
            })
            .collect();
        step(
            &self.memory,
            &RolloutInput {
                now: self.now,
                wanted: id(self.wanted),
                is_created: true,
                revisions: &self.revisions,
                pods: &pods,
                steps: &self.steps,
                max_unavailable: self.max_unavailable,
                progress_deadline_seconds: DEADLINE_SECONDS,
                is_frozen: self.is_frozen,
                away_since: self.away_since,
                command: self.command,
                post_promotion_seconds: self.post_promotion,
                judged: self.judged(),
            },
        )
    }

    /// A look, and everybody does what it says.
    fn look(&mut self) -> RolloutMove {
        let decided = self.decide();
        self.memory = decided.memory.clone();
        self.happened.extend(decided.happened.clone());
        for (pod, revision) in &decided.tells {
            self.pods[*pod].0 = Some(*revision);
        }
        for pod in 0..self.pods.len() {
            let is_waiting = self.waiting(pod).is_some();
            let (told, runs) = &mut self.pods[pod];
            if told.is_some_and(|told| !self.dead.contains(&told)) && !is_waiting {
                *runs = *told;
            }
        }
        decided
    }

    fn waiting(&self, pod: usize) -> Option<RevisionWait> {
        self.waits.iter().find(|(waiting, _)| *waiting == pod).map(|(_, what)| *what)
    }

    /// Another pod takes the place of this one, created with what new pods get.
    fn restart(&mut self, pod: usize) {
        let decided = self.decide();
        let created_with = Some(decided.new_pods.unwrap_or(decided.stable.number));
        self.pods[pod] = (created_with, created_with);
    }

    /// Looks, without time passing, until there is nobody to tell and nothing happens.
    fn settle(&mut self) -> RolloutMove {
        for _ in 0..100 {
            let before = self.pods.clone();
            let decided = self.look();
            if decided.tells.is_empty() && decided.happened.is_empty() && self.pods == before {
                return decided;
            }
        }
        panic!("it does not settle: {:?}", self.memory);
    }

    fn told(&self, revision: u64) -> usize {
        self.pods.iter().filter(|(told, _)| *told == Some(revision)).count()
    }

    fn refused(&mut self, command: &'static str) -> String {
        self.command = Some(command);
        let before = (self.pods.clone(), self.memory.clone());
        let decided = self.look();
        let refused = decided.memory.command.as_ref().and_then(|command| command.refused.clone());
        assert_eq!((&self.pods, &self.memory.position), (&before.0, &before.1.position), "{command} changed something");
        refused.unwrap_or_else(|| panic!("{command} was done"))
    }
}

#[test]
fn without_steps_of_ones_own_one_pod_goes_first_and_the_rest_follow_after_the_pause() {
    let mut fleet = Fleet::new(5, &DEFAULT_STEPS);
    fleet.wanted = 7;
    let decided = fleet.settle();
    let until = Some(fleet.now + i64::from(DEFAULT_PAUSE_SECONDS));
    assert_eq!((fleet.told(7), decided.state), (1, RolloutState::Pausing { until }));
    assert_eq!(decided.look_again_seconds, Some(DEFAULT_PAUSE_SECONDS), "nobody has to ask for the next look");
    assert_eq!(decided.stable, id(6), "new pods get what is proven");
    fleet.now += i64::from(DEFAULT_PAUSE_SECONDS);
    for told in 2..=5 {
        fleet.look();
        assert_eq!(fleet.told(7), told, "the next waits for the proof of this one");
    }
    let decided = fleet.settle();
    assert_eq!((decided.state, decided.stable), (RolloutState::Complete, id(7)));
    assert!(fleet.happened.contains(&RolloutHappening::Promoted { revision: 7, from: Some(6) }));
}

#[test]
fn a_clock_that_was_set_back_makes_no_pause_and_no_deadline_longer() {
    let mut fleet = Fleet::new(3, &DEFAULT_STEPS);
    fleet.wanted = 7;
    fleet.settle();
    fleet.now -= 3600;
    fleet.settle();
    fleet.now += i64::from(DEFAULT_PAUSE_SECONDS);
    assert_eq!((fleet.settle().state, fleet.told(7)), (RolloutState::Complete, 3));

    let mut fleet = Fleet::new(3, &DEFAULT_STEPS);
    (fleet.wanted, fleet.dead) = (7, vec![7]);
    fleet.settle();
    fleet.now -= 3600;
    fleet.settle();
    fleet.now += i64::from(DEADLINE_SECONDS) + 1;
    assert_eq!((fleet.settle().state, fleet.told(6)), (RolloutState::Failed { away: 0 }, 3));
}

#[test]
fn a_pause_without_a_duration_waits_for_somebody_however_long_that_takes() {
    let mut fleet = Fleet::new(10, &HAND);
    fleet.wanted = 7;
    for _ in 0..3 {
        let decided = fleet.settle();
        assert_eq!((fleet.told(7), decided.state), (1, RolloutState::Pausing { until: None }));
        assert_eq!(decided.figures.set_weight, 10);
        fleet.now += 86_400;
    }
    fleet.command = Some("promote 7");
    let decided = fleet.settle();
    assert_eq!((decided.state, fleet.told(7)), (RolloutState::Complete, 10), "no pause is left behind this one");
    let done = fleet.happened.iter().filter(|happened| matches!(happened, RolloutHappening::Obeyed { .. }));
    assert_eq!(done.count(), 1, "one request is done once");
}

#[test]
fn what_makes_no_progress_within_the_deadline_is_taken_back_and_not_tried_again_until_its_content_changes() {
    let mut fleet = Fleet::new(3, &DEFAULT_STEPS);
    (fleet.wanted, fleet.dead) = (7, vec![7]);
    fleet.settle();
    fleet.now += i64::from(DEADLINE_SECONDS);
    assert_eq!((fleet.settle().state, fleet.told(7)), (RolloutState::Rolling, 1));
    fleet.now += 1;
    let decided = fleet.decide();
    assert!(decided.remember_first, "it is remembered before anybody is told");
    assert_eq!(decided.tells.len(), 1, "the pod that took it goes back at once");
    let decided = fleet.settle();
    assert_eq!((decided.state, fleet.told(6)), (RolloutState::Failed { away: 0 }, 3));
    let failure = fleet.memory.failure.clone().expect("it is remembered");
    assert_eq!((failure.reason, failure.rolled_back_at), (FailureReason::ProgressDeadlineExceeded, Some(fleet.now)));
    fleet.now += 100_000;
    assert_eq!(fleet.settle().state, RolloutState::Failed { away: 0 }, "time alone changes nothing");
    fleet.wanted = 8;
    fleet.settle();
    assert_eq!(fleet.told(8), 1, "what says something else is tried");
    fleet.wanted = 7;
    assert_eq!((fleet.settle().state, fleet.told(6)), (RolloutState::Failed { away: 0 }, 3), "the same content is not");
    fleet.dead.clear();
    fleet.command = Some("retry 7");
    fleet.settle();
    assert_eq!((fleet.told(7), fleet.memory.failed_hashes.len()), (1, 0), "unless somebody asks for it");
}

#[test]
fn pods_that_get_through_keep_the_deadline_away_and_pods_that_come_back_again_and_again_do_not() {
    let mut fleet = Fleet::new(4, &[]);
    fleet.wanted = 7;
    for told in 1..=4 {
        fleet.now += i64::from(DEADLINE_SECONDS) - 1;
        fleet.look();
        assert_eq!(fleet.told(7), told);
    }
    let mut fleet = Fleet::new(4, &[]);
    fleet.wanted = 7;
    fleet.look();
    // its process proves itself and dies, over and over
    for second in 0..=i64::from(DEADLINE_SECONDS) + 1 {
        fleet.now += 1;
        fleet.pods[0].1 = (second % 2 == 0).then_some(7);
        fleet.pods.truncate(2);
        let decided = fleet.decide();
        fleet.memory = decided.memory;
    }
    assert!(fleet.memory.has_failed(&id(7)), "{:?}", fleet.memory);
}

#[test]
fn who_only_waits_for_clients_that_stay_is_not_taken_back_however_long_that_takes() {
    let mut fleet = Fleet::new(3, &DEFAULT_STEPS);
    (fleet.wanted, fleet.waits) = (7, vec![(0, RevisionWait::Drain)]);
    for _ in 0..3 {
        let decided = fleet.settle();
        assert_eq!((decided.state, fleet.told(7), decided.awaiting_drain), (RolloutState::Rolling, 1, 1));
        assert!(!decided.figures.is_counting, "each look would be a write of the status");
        assert_eq!((decided.stable, decided.new_pods), (id(6), None));
        fleet.now += 100 * i64::from(DEADLINE_SECONDS);
    }
    fleet.settle();
    let mut bad = Fleet { memory: fleet.memory.clone(), pods: fleet.pods.clone(), dead: vec![7], ..Fleet::new(3, &[]) };
    (bad.wanted, bad.now, bad.steps) = (7, fleet.now, fleet.steps.clone());
    fleet.waits.clear();
    assert!(matches!(fleet.settle().state, RolloutState::Pausing { .. }), "they have left, and it goes on");

    bad.now += i64::from(DEADLINE_SECONDS);
    assert_eq!(bad.settle().state, RolloutState::Rolling, "its time begins when it waits no longer");
    bad.now += 1;
    assert_eq!(bad.settle().state, RolloutState::Failed { away: 0 });
}

#[test]
fn a_pod_that_only_waits_hides_no_other_one_that_does_not_prove_itself() {
    let mut fleet = Fleet::new(4, &[]);
    (fleet.wanted, fleet.max_unavailable, fleet.dead) = (7, 2, vec![7]);
    fleet.waits = vec![(0, RevisionWait::Drain)];
    fleet.settle();
    assert_eq!(fleet.told(7), 2);
    fleet.now += i64::from(DEADLINE_SECONDS) + 1;
    fleet.look();
    assert!(fleet.memory.has_failed(&id(7)), "{:?}", fleet.memory);
}

/// Pods that take over revision 7 with their restart alone, and one that was told it.
fn unsupported() -> Fleet {
    let mut fleet = Fleet::new(3, &DEFAULT_STEPS);
    (fleet.wanted, fleet.waits) = (7, (0..3).map(|pod| (pod, RevisionWait::Restart)).collect());
    fleet.settle();
    fleet
}

#[test]
fn what_pods_take_over_with_their_restart_alone_comes_into_force_by_restarts_and_step_by_step() {
    let mut fleet = unsupported();
    for _ in 0..3 {
        let decided = fleet.settle();
        assert_eq!((decided.state, fleet.told(7), decided.awaiting_restart), (RolloutState::Rolling, 1, 1));
        assert_eq!((decided.stable, decided.new_pods), (id(6), Some(7)));
        assert!(!decided.figures.is_counting);
        fleet.now += 100 * i64::from(DEADLINE_SECONDS);
    }
    fleet.settle();
    // another one than that which was told
    fleet.restart(1);
    let decided = fleet.settle();
    let until = Some(fleet.now + i64::from(DEFAULT_PAUSE_SECONDS));
    assert_eq!((decided.state, decided.new_pods), (RolloutState::Pausing { until }, None), "one, as the step says");
    fleet.restart(2);
    assert_eq!(fleet.told(7), 2, "the canary, and the one that waits");
    fleet.now += i64::from(DEFAULT_PAUSE_SECONDS);
    assert_eq!(fleet.settle().new_pods, Some(7));
    fleet.restart(0);
    let decided = fleet.settle();
    assert_eq!((decided.state, decided.awaiting_restart, fleet.told(7)), (RolloutState::Rolling, 1, 3));
    fleet.restart(2);
    let decided = fleet.settle();
    assert_eq!((decided.state, decided.stable, decided.new_pods), (RolloutState::Complete, id(7), None));
}

#[test]
fn new_pods_get_no_revision_that_failed_waits_for_nobody_or_is_frozen() {
    let mut fleet = unsupported();
    fleet.is_frozen = true;
    assert_eq!(fleet.settle().new_pods, None, "nothing goes forward");
    fleet.is_frozen = false;
    // created with it, and it proves nothing
    (fleet.pods[1], fleet.dead) = ((Some(7), None), vec![7]);
    fleet.waits.retain(|(pod, _)| *pod != 1);
    assert_eq!(fleet.settle().new_pods, None, "not before this one is proven");
    fleet.now += i64::from(DEADLINE_SECONDS) + 1;
    let decided = fleet.settle();
    assert_eq!((decided.state, decided.new_pods), (RolloutState::Failed { away: 0 }, None));
    let mut fleet = Fleet::new(3, &DEFAULT_STEPS);
    fleet.wanted = 7;
    assert_eq!(fleet.settle().new_pods, None);
}

#[test]
fn who_takes_a_rollout_over_does_not_count_the_time_in_which_nobody_watched() {
    let mut fleet = Fleet::new(3, &[]);
    fleet.wanted = 7;
    fleet.look();
    fleet.now += 100 * i64::from(DEADLINE_SECONDS);
    fleet.memory.is_recalled = true;
    assert_eq!(fleet.settle().state, RolloutState::Complete);
}

#[test]
fn a_change_in_mid_rollout_takes_the_place_of_the_one_before_and_nobody_keeps_that() {
    let mut fleet = Fleet::new(10, &HAND);
    (fleet.wanted, fleet.max_unavailable) = (7, 3);
    fleet.settle();
    fleet.command = Some("promote 7");
    fleet.dead = vec![7];
    fleet.look();
    assert_eq!(fleet.told(7), 4, "one from before, three in change");
    fleet.wanted = 8;
    let decided = fleet.settle();
    assert_eq!((fleet.told(8), fleet.told(7), fleet.told(6)), (1, 0, 9));
    assert_eq!(decided.state, RolloutState::Pausing { until: None }, "it begins with the first step");
    assert!(fleet.memory.failed_hashes.is_empty(), "who was overtaken has not failed");
}

#[test]
fn an_abort_takes_a_revision_back_at_once_also_while_the_spec_is_paused() {
    let mut fleet = Fleet::new(10, &HAND);
    (fleet.wanted, fleet.max_unavailable) = (7, 5);
    fleet.settle();
    fleet.command = Some("promote 7 now");
    fleet.settle();
    fleet.wanted = 8;
    fleet.settle();
    fleet.command = Some("promote 8 now");
    fleet.dead = vec![8];
    fleet.look();
    assert_eq!(fleet.told(8), 5, "as many as the step and maxUnavailable allow");
    (fleet.command, fleet.is_frozen) = (Some("abort 8"), true);
    let decided = fleet.look();
    assert_eq!((fleet.told(7), fleet.told(8)), (10, 0));
    assert_eq!(decided.memory.failure.map(|failure| failure.reason), Some(FailureReason::Aborted));
}

#[test]
fn an_undo_goes_back_without_pauses_and_lasts_until_the_spec_changes() {
    let mut fleet = Fleet::new(5, &HAND);
    fleet.wanted = 7;
    fleet.settle();
    fleet.command = Some("promote-full 7");
    assert_eq!(fleet.settle().stable, id(7));
    fleet.command = Some("undo 6");
    fleet.look();
    assert_eq!(fleet.told(6), 1, "a few at a time");
    let decided = fleet.settle();
    assert_eq!((fleet.told(6), decided.state, decided.stable), (5, RolloutState::Complete, id(6)));
    fleet.command = None;
    assert_eq!((fleet.settle().goal, fleet.told(6)), (id(6), 5), "what was asked is not forgotten with the annotation");
    fleet.wanted = 8;
    assert_eq!((fleet.settle().goal, fleet.told(8)), (id(8), 1));
    fleet.wanted = 7;
    assert_eq!(fleet.settle().goal, id(7), "whoever wants it again gets it, by its steps");
    assert_eq!(fleet.told(7), 1);
}

#[test]
fn of_what_was_undone_nothing_is_rolled_out_because_the_other_one_is_gone() {
    let mut fleet = Fleet::new(3, &[]);
    fleet.wanted = 7;
    fleet.settle();
    fleet.command = Some("undo 5");
    fleet.look();
    fleet.revisions.retain(|revision| revision.number != 5);
    let decided = fleet.settle();
    assert_eq!(decided.goal, id(7));
    assert_eq!((decided.state, fleet.told(7)), (RolloutState::Complete, 3), "where it is stable it stays");

    let mut fleet = Fleet::new(3, &HAND);
    fleet.wanted = 7;
    fleet.settle();
    fleet.command = Some("undo 5");
    fleet.look();
    fleet.revisions.retain(|revision| revision.number != 5);
    let decided = fleet.settle();
    assert_eq!(
        (decided.state, fleet.told(6)),
        (RolloutState::Failed { away: 0 }, 3),
        "where it was on its way it goes"
    );
    let failure = decided.memory.failure.expect("it says why");
    assert!(failure.message.contains("undone") && failure.message.contains("revision 5"), "{failure:?}");
}

#[test]
fn a_request_about_nothing_is_refused_with_what_to_do_and_changes_nothing() {
    let mut fleet = Fleet::new(3, &HAND);
    fleet.settle();
    for (command, said) in [
        ("promote 6", "nothing is being rolled out"),
        ("promote-full 6", "nothing is being rolled out"),
        ("abort 6", "nothing is being rolled out"),
        ("retry 6", "has neither failed nor been undone"),
        ("retry 5", "the spec says revision 6"),
        ("undo 6", "is what is rolled out already"),
        ("undo 3", "there are 5, 6, 7, 8"),
        ("stop 6", "none of promote"),
        ("promote", "needs the number"),
    ] {
        let why = fleet.refused(command);
        assert!(why.contains(said), "{command}: {why}");
    }
    fleet.command = None;
    fleet.wanted = 7;
    fleet.settle();
    for (command, said) in [
        ("promote 6", "revision 7 is being rolled out"),
        ("abort 6 quick", "revision 7 is being rolled out"),
        ("undo 7", "is what is rolled out already"),
        ("retry 7", "has neither failed"),
    ] {
        let why = fleet.refused(command);
        assert!(why.contains(said), "{command}: {why}");
    }
    fleet.command = Some("promote 7");
    fleet.dead = vec![7];
    fleet.look();
    let why = fleet.refused("promote 7 again");
    assert!(why.contains("waits for nobody") && why.contains("promote-full 7"), "{why}");
    fleet.command = Some("abort 7");
    fleet.settle();
    for (command, said) in [("promote 7", "retry 7"), ("abort 7 twice", "has failed"), ("undo 7", "retry 7")] {
        let why = fleet.refused(command);
        assert!(why.contains(said), "{command}: {why}");
    }
    fleet.wanted = 8;
    fleet.command = None;
    fleet.settle();
    let why = fleet.refused("undo 7");
    assert!(why.contains("has failed before"), "{why}");
}

#[test]
fn of_two_requests_at_once_the_one_that_stands_is_done_and_the_other_never() {
    let mut fleet = Fleet::new(3, &HAND);
    fleet.wanted = 7;
    fleet.settle();
    // an annotation has one value: whoever writes last is heard
    fleet.command = Some("promote 7");
    fleet.command = Some("abort 7");
    fleet.settle();
    assert_eq!((fleet.told(6), fleet.memory.has_failed(&id(7))), (3, true));
}

#[test]
fn a_canary_that_goes_is_replaced_before_the_next_step() {
    let mut fleet = Fleet::new(10, &HAND);
    fleet.wanted = 7;
    fleet.settle();
    let canary = fleet.pods.iter().position(|(told, _)| *told == Some(7)).expect("one took it");
    fleet.pods[canary] = (None, None);
    let decided = fleet.look();
    assert_eq!(
        (fleet.pods[canary].0, fleet.told(7)),
        (Some(6), 1),
        "the new pod gets the stable one, another the new one"
    );
    assert_eq!(decided.state, RolloutState::Rolling, "and it is no pause until that is proven");
    assert_eq!(fleet.settle().state, RolloutState::Pausing { until: None });
}

#[test]
fn a_pool_of_one_pod_has_no_canary_and_of_none_nothing_is_proven() {
    let mut fleet = Fleet::new(1, &HAND);
    fleet.wanted = 7;
    assert_eq!((fleet.settle().state, fleet.told(7)), (RolloutState::Pausing { until: None }, 1));
    let mut fleet = Fleet::new(0, &DEFAULT_STEPS);
    fleet.wanted = 7;
    fleet.settle();
    fleet.now += 10 * i64::from(DEADLINE_SECONDS);
    let decided = fleet.settle();
    assert_eq!((decided.state, decided.stable), (RolloutState::NoPods, id(6)), "nor does it fail");
}

#[test]
fn before_anything_was_promoted_pods_change_a_few_at_a_time_and_there_is_nothing_to_go_back_to() {
    let mut fleet = Fleet::new(3, &HAND);
    fleet.pods = vec![(None, None); 3];
    fleet.memory = RolloutMemory { updated: Some(id(6)), ..RolloutMemory::default() };
    let decided = fleet.look();
    assert_eq!((fleet.told(6), decided.stable), (3, id(6)), "where nothing runs there is nothing to lose");
    fleet.pods[2].1 = None;
    (fleet.wanted, fleet.dead) = (7, vec![7]);
    fleet.look();
    assert_eq!(fleet.told(7), 1);
    fleet.now += i64::from(DEADLINE_SECONDS) + 1;
    assert_eq!(fleet.look().state, RolloutState::Stuck);
    assert!(fleet.refused("abort 7").contains("no revision before 7"));
    fleet.dead.clear();
    assert_eq!(fleet.settle().stable, id(7));
}

#[test]
fn whoever_lost_the_status_goes_on_from_what_most_pods_are_told() {
    let mut fleet = Fleet::new(4, &HAND);
    (fleet.wanted, fleet.memory) = (7, RolloutMemory::default());
    fleet.pods[3] = (Some(7), Some(7));
    let decided = fleet.settle();
    assert_eq!((decided.stable, decided.state), (id(6), RolloutState::Pausing { until: None }));
    assert_eq!(fleet.told(7), 1);
}

#[test]
fn other_steps_begin_anew_and_take_no_pod_back() {
    let mut fleet = Fleet::new(10, &HAND);
    fleet.wanted = 7;
    fleet.settle();
    fleet.command = Some("promote 7");
    fleet.dead = vec![7];
    fleet.look();
    fleet.steps = vec![RolloutStep::SetWeight { percent: 10 }, RolloutStep::Pause { seconds: None }];
    fleet.dead.clear();
    let decided = fleet.settle();
    assert_eq!(decided.state, RolloutState::Pausing { until: None }, "fewer steps are not all of them done");
    assert_eq!(fleet.told(7), 2);
}

#[test]
fn while_the_spec_is_paused_nothing_goes_forward_and_nothing_fails_by_itself() {
    let mut fleet = Fleet::new(3, &DEFAULT_STEPS);
    (fleet.wanted, fleet.dead) = (7, vec![7]);
    fleet.settle();
    fleet.is_frozen = true;
    fleet.now += 10 * i64::from(DEADLINE_SECONDS);
    fleet.pods.push((None, None));
    let decided = fleet.look();
    assert_eq!((fleet.told(7), fleet.told(6)), (1, 3), "a new pod gets the stable one");
    assert_eq!((decided.state, decided.look_again_seconds), (RolloutState::Rolling, None));
    fleet.is_frozen = false;
    fleet.now += i64::from(DEADLINE_SECONDS);
    assert_eq!(fleet.look().state, RolloutState::Rolling, "its time begins anew");
}

#[test]
fn while_the_database_is_away_nothing_goes_forward_and_nothing_is_held_against_a_revision() {
    let mut fleet = Fleet::new(3, &[RolloutStep::OnePod, RolloutStep::Analysis]);
    fleet.wanted = 7;
    fleet.settle();
    assert_eq!((fleet.look().state, fleet.memory.outage), (RolloutState::Analysing, None));
    let began = fleet.now;
    fleet.away_since = Some(began);
    fleet.judged = Some(RolloutJudgement::Fail { why: "errors".to_owned() });
    for _ in 0..10 {
        fleet.now += i64::from(DEADLINE_SECONDS);
        fleet.settle();
        assert_eq!((fleet.told(7), fleet.memory.failure.is_none()), (1, true));
    }
    let outage = fleet.memory.outage.expect("it was seen");
    assert_eq!((outage.from, outage.until), (began, fleet.now));
    (fleet.away_since, fleet.judged) = (None, None);
    fleet.now += i64::from(DEADLINE_SECONDS);
    assert_eq!(fleet.settle().state, RolloutState::Analysing, "its time begins anew");
    assert_eq!(fleet.memory.outage, Some(outage), "what was measured then says nothing");
    fleet.judged = Some(RolloutJudgement::Pass);
    fleet.settle();
    assert_eq!(fleet.told(7), 3);
}

#[test]
fn a_judgement_of_another_revision_says_nothing_and_one_of_this_takes_it_back() {
    let mut fleet = Fleet::new(3, &[RolloutStep::OnePod, RolloutStep::Analysis]);
    fleet.wanted = 7;
    let pods: Vec<RolloutPod> = Vec::new();
    let input = |judged| RolloutInput {
        now: 0,
        wanted: id(7),
        is_created: true,
        revisions: &[],
        pods: &pods,
        steps: &[],
        max_unavailable: 1,
        progress_deadline_seconds: 60,
        is_frozen: false,
        away_since: None,
        command: None,
        post_promotion_seconds: None,
        judged,
    };
    let worse = || RolloutJudgement::Fail { why: "waits of 3.1 times the others'".to_owned() };
    let revisions = [id(6), id(7)];
    fleet.memory = step(&fleet.memory, &RolloutInput { revisions: &revisions, ..input(None) }).memory;
    let begun = fleet.memory.position.begun;
    let of = |number, phase| JudgedTry { revision: id(number), phase, begun };
    let failed = |judged| step(&fleet.memory, &RolloutInput { revisions: &revisions, ..input(judged) }).memory.failure;
    assert_eq!(failed(None), None);
    assert_eq!(failed(Some((of(6, AnalysisPhase::Canary), worse()))), None);
    assert_eq!(failed(Some((of(7, AnalysisPhase::PostPromotion), worse()))), None, "it is not promoted");
    let earlier = JudgedTry { begun: begun - 1, ..of(7, AnalysisPhase::Canary) };
    assert_eq!(failed(Some((earlier, worse()))), None, "of an earlier try");
    let inconclusive = RolloutJudgement::Inconclusive { why: "no transactions".to_owned(), is_final: true };
    assert_eq!(failed(Some((of(7, AnalysisPhase::Canary), inconclusive))), None, "no step waits for it");
    let failure = failed(Some((of(7, AnalysisPhase::Canary), worse()))).expect("it failed");
    assert_eq!(
        (failure.reason, failure.message.as_str()),
        (FailureReason::AnalysisFailed, "waits of 3.1 times the others'")
    );
}

#[test]
fn what_the_analysis_cannot_tell_is_held_and_goes_back_as_not_proven_when_waiting_is_over() {
    let unknown =
        |is_final| RolloutJudgement::Inconclusive { why: "the query returned no series".to_owned(), is_final };
    for (judged, seconds) in
        [(Some(unknown(false)), DEADLINE_SECONDS + 1), (Some(unknown(true)), 0), (None, DEADLINE_SECONDS + 1)]
    {
        let mut fleet = Fleet::new(3, &JUDGED_STEPS);
        (fleet.wanted, fleet.judged) = (7, Some(unknown(false)));
        assert_eq!(fleet.settle().state, RolloutState::Analysing);
        fleet.now += i64::from(DEADLINE_SECONDS);
        assert_eq!(fleet.settle().state, RolloutState::Analysing, "nothing is promoted meanwhile");
        assert_eq!(fleet.told(7), 1);
        fleet.now += i64::from(seconds) - i64::from(DEADLINE_SECONDS);
        fleet.judged = judged;
        assert_eq!(fleet.settle().state, RolloutState::Failed { away: 0 });
        let failure = fleet.memory.failure.clone().expect("it failed");
        assert_eq!((failure.reason, fleet.told(6)), (FailureReason::AnalysisInconclusive, 3));
        assert!(
            failure.message.starts_with("it is not proven, which does not say that it is worse"),
            "{}",
            failure.message
        );
    }
}

#[test]
fn what_was_found_harmless_goes_on_and_what_gets_worse_behind_the_last_step_goes_back_from_every_pod() {
    let mut fleet = Fleet::new(4, &JUDGED_STEPS);
    (fleet.wanted, fleet.judged) = (7, Some(RolloutJudgement::Pass));
    fleet.look();
    fleet.look();
    assert!(fleet.told(7) > 1 && fleet.told(7) < 4, "the rest follow one by one: {}", fleet.told(7));
    fleet.judged = Some(RolloutJudgement::Fail { why: "slower".to_owned() });
    assert_eq!(fleet.settle().state, RolloutState::Failed { away: 0 });
    assert_eq!(fleet.told(6), 4);
}

#[test]
fn what_was_found_of_an_earlier_try_decides_nothing_of_the_next_one() {
    let worse = RolloutJudgement::Fail { why: "slower".to_owned() };
    let tried_again = |request: &'static str, judgement: &RolloutJudgement| {
        let mut fleet = Fleet::new(3, &JUDGED_STEPS);
        fleet.wanted = 7;
        assert_eq!(fleet.settle().state, RolloutState::Analysing);
        (fleet.judged, fleet.judged_try) = (Some(judgement.clone()), fleet.memory.try_begun(AnalysisPhase::Canary));
        fleet.command = Some(request);
        fleet.settle();
        assert_eq!(fleet.told(6), 3, "{request}");
        // within the same second: whoever judges has not looked again
        fleet.command = Some("retry 7");
        let decided = fleet.settle();
        assert_eq!((decided.state, fleet.told(7)), (RolloutState::Analysing, 1), "{request}, {judgement:?}");
        fleet
    };
    for request in ["abort 7", "undo 6"] {
        tried_again(request, &RolloutJudgement::Pass);
        let mut fleet = tried_again(request, &worse);
        fleet.judged_try = None;
        assert_eq!(fleet.settle().state, RolloutState::Failed { away: 0 }, "what is found of this one counts");
    }
}

impl Fleet {
    /// Revision 7 runs on all of four pods and was promoted, and is judged for 20 s more.
    fn promoted() -> Self {
        let mut fleet = Self::new(4, &JUDGED_STEPS);
        (fleet.wanted, fleet.judged, fleet.post_promotion) = (7, Some(RolloutJudgement::Pass), Some(20));
        let decided = fleet.settle();
        assert_eq!((decided.state, decided.stable), (RolloutState::PostPromotion, id(7)), "new pods get it");
        assert_eq!(decided.look_again_seconds, Some(20), "nobody has to ask for the next look");
        fleet
    }

    /// What comes back of what is remembered, to an operator that comes later.
    fn taken_over(&mut self) {
        let status = crate::api::ConnectionPoolStatus {
            revision: self.memory.revision_status(0),
            rollout: Some(self.memory.rollout_status(RolloutFigures::default())),
            ..crate::api::ConnectionPoolStatus::default()
        };
        self.memory = RolloutMemory::from_status(Some(&status));
    }

    fn end(&self) -> Option<PostPromotionOutcome> {
        self.memory.promoted.as_ref()?.end.as_ref().map(|end| end.outcome)
    }
}

fn unknown(is_final: bool) -> RolloutJudgement {
    RolloutJudgement::Inconclusive { why: "no transactions".to_owned(), is_final }
}

#[test]
fn what_is_worse_after_its_promotion_goes_back_from_every_pod_at_once_and_is_not_tried_again() {
    let mut fleet = Fleet::promoted();
    fleet.taken_over();
    fleet.judged_after = Some(RolloutJudgement::Fail { why: "slower".to_owned() });
    let decided = fleet.decide();
    assert!(decided.remember_first, "it is remembered before anybody is told");
    assert_eq!((decided.tells.len(), decided.stable), (4, id(6)), "all at once, and new pods get the one before");
    let decided = fleet.settle();
    assert_eq!((decided.state, fleet.told(6)), (RolloutState::Failed { away: 0 }, 4));
    let failure = fleet.memory.failure.clone().expect("remembered");
    assert_eq!(
        (failure.reason, failure.message.as_str()),
        (FailureReason::AnalysisFailed, "after its promotion: slower")
    );
    assert!(failure.rolled_back_at.is_some() && fleet.memory.promoted.is_none());
    fleet.taken_over();
    assert_eq!((fleet.settle().state, fleet.told(6)), (RolloutState::Failed { away: 0 }, 4), "whoever operates");
}

#[test]
fn what_shows_no_harm_for_as_long_as_was_asked_stays_and_is_judged_no_longer() {
    let mut fleet = Fleet::promoted();
    fleet.judged_after = Some(RolloutJudgement::Pass);
    fleet.now += 19;
    assert_eq!(fleet.settle().state, RolloutState::PostPromotion, "however early it is proven");
    fleet.now += 1;
    assert_eq!((fleet.settle().state, fleet.end()), (RolloutState::Complete, Some(PostPromotionOutcome::Passed)));
    let ended = fleet.happened.iter().filter(|happened| **happened == RolloutHappening::PostPromotionEnded);
    assert_eq!(ended.count(), 1);
    fleet.taken_over();
    fleet.judged_after = Some(RolloutJudgement::Fail { why: "slower".to_owned() });
    assert_eq!((fleet.settle().state, fleet.told(7)), (RolloutState::Complete, 4), "it is over");
}

#[test]
fn what_nobody_can_know_after_a_promotion_stays_when_waiting_is_over_and_says_that_nothing_could_be_known() {
    let late = i64::from(DEADLINE_SECONDS) + 1;
    for (judged, seconds) in [(Some(unknown(false)), late), (Some(unknown(true)), 0), (None, late)] {
        let mut fleet = Fleet::promoted();
        fleet.judged_after = Some(unknown(false));
        fleet.now += i64::from(DEADLINE_SECONDS).min(seconds);
        assert_eq!(fleet.settle().state, RolloutState::PostPromotion);
        fleet.now += seconds - i64::from(DEADLINE_SECONDS).min(seconds);
        fleet.judged_after = judged;
        assert_eq!((fleet.settle().state, fleet.told(7)), (RolloutState::Complete, 4));
        assert_eq!(fleet.end(), Some(PostPromotionOutcome::Inconclusive));
        let end = fleet.memory.promoted.clone().and_then(|promoted| promoted.end).expect("it ended");
        assert!(end.message.starts_with("nothing could be known"), "{}", end.message);
        assert!(fleet.memory.failed_hashes.is_empty());
    }
}

#[test]
fn whoever_takes_an_analysis_after_a_promotion_over_or_was_paused_in_it_has_time_to_know() {
    let mut fleet = Fleet::promoted();
    fleet.now += 100 * i64::from(DEADLINE_SECONDS);
    fleet.taken_over();
    assert_eq!(fleet.settle().state, RolloutState::PostPromotion);
    fleet.is_frozen = true;
    fleet.now += 100 * i64::from(DEADLINE_SECONDS);
    fleet.judged_after = Some(RolloutJudgement::Fail { why: "slower".to_owned() });
    assert_eq!((fleet.settle().state, fleet.told(7)), (RolloutState::PostPromotion, 4), "nothing fails by itself");
    fleet.judged_after = None;
    fleet.is_frozen = false;
    assert_eq!(fleet.settle().state, RolloutState::PostPromotion, "its time begins anew");
    fleet.judged_after = Some(RolloutJudgement::Fail { why: "slower".to_owned() });
    assert_eq!((fleet.settle().state, fleet.told(6)), (RolloutState::Failed { away: 0 }, 4));
}

#[test]
fn another_revision_overtakes_one_that_is_judged_after_its_promotion_and_that_has_neither_passed_nor_failed() {
    let mut fleet = Fleet::promoted();
    fleet.judged = None;
    fleet.wanted = 8;
    let decided = fleet.settle();
    assert_eq!((decided.state, decided.stable, fleet.told(8)), (RolloutState::Analysing, id(7), 1));
    assert_eq!((fleet.memory.promoted.clone(), fleet.memory.failed_hashes.len()), (None, 0));
    fleet.judged = Some(RolloutJudgement::Fail { why: "slower".to_owned() });
    assert_eq!(
        (fleet.settle().state, fleet.told(7)),
        (RolloutState::Failed { away: 0 }, 4),
        "back to what was promoted"
    );

    // what the spec no longer asks for is over too
    let mut fleet = Fleet::promoted();
    fleet.post_promotion = None;
    assert_eq!((fleet.settle().state, fleet.memory.promoted.clone()), (RolloutState::Complete, None));
}

#[test]
fn people_may_end_the_analysis_after_a_promotion_or_take_the_revision_back_in_it() {
    let mut fleet = Fleet::promoted();
    assert!(fleet.refused("promote 6").contains("revision 7 was promoted and is being judged"));
    assert!(fleet.refused("abort 6").contains("revision 7 was promoted and is being judged"));
    fleet.command = Some("promote 7");
    assert_eq!((fleet.settle().state, fleet.end()), (RolloutState::Complete, Some(PostPromotionOutcome::Ended)));
    assert!(fleet.refused("abort 7").contains("nothing is being rolled out"));

    let mut fleet = Fleet::promoted();
    (fleet.command, fleet.is_frozen) = (Some("abort 7"), true);
    assert_eq!((fleet.settle().state, fleet.told(6)), (RolloutState::Failed { away: 0 }, 4), "also while it is paused");
    assert_eq!(fleet.memory.failure.as_ref().map(|failure| failure.reason), Some(FailureReason::Aborted));

    let mut fleet = Fleet::promoted();
    fleet.revisions.retain(|revision| revision.number != 6);
    assert!(fleet.refused("abort 7").contains("there is no way back"));
    fleet.judged_after = Some(RolloutJudgement::Fail { why: "slower".to_owned() });
    assert_eq!((fleet.settle().state, fleet.end()), (RolloutState::Complete, Some(PostPromotionOutcome::NoWayBack)));
    assert_eq!(fleet.told(7), 4, "nobody is told what nobody knows");
}

#[test]
fn what_somebody_wants_back_and_what_is_the_first_of_all_is_not_judged_after_its_promotion() {
    let mut fleet = Fleet::promoted();
    fleet.command = Some("undo 5");
    let decided = fleet.settle();
    assert_eq!((decided.state, decided.stable, fleet.memory.promoted.clone()), (RolloutState::Complete, id(5), None));
    let mut first = Fleet::new(3, &[]);
    (first.post_promotion, first.memory) =
        (Some(20), RolloutMemory { updated: Some(id(6)), ..RolloutMemory::default() });
    let decided = first.settle();
    assert_eq!((decided.state, decided.stable, first.memory.promoted.clone()), (RolloutState::Complete, id(6), None));
}

impl Fleet {
    /// Revision 7 failed by itself on one of three pods, which were all given the same, and all are back on 6.
    fn failed(marks: &[&'static str]) -> Self {
        let mut fleet = Self::new(3, &[RolloutStep::OnePod]);
        (fleet.wanted, fleet.dead, fleet.marks) = (7, vec![7], marks.to_vec());
        fleet.settle();
        fleet.now += i64::from(DEADLINE_SECONDS) + 1;
        assert_eq!(fleet.settle().state, RolloutState::Failed { away: 0 });
        fleet
    }

    fn tries(&self) -> usize {
        self.happened.iter().filter(|happened| **happened == RolloutHappening::TriedAgain).count()
    }
}

#[test]
fn what_failed_is_tried_again_once_for_each_change_of_what_pods_are_given_by_reference() {
    let mut fleet = Fleet::failed(&["a1", "b1", "c1"]);
    fleet.now += 100_000;
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Failed { away: 0 }, 0), "time alone is none");
    // it reaches one pod after the other, and until it has, the next try may be with what failed
    fleet.marks = vec!["a2", "b1", "c1"];
    assert_eq!(fleet.settle().state, RolloutState::Failed { away: 0 });
    fleet.taken_over();
    fleet.marks = vec!["a2", "b2", "c2"];
    let decided = fleet.settle();
    assert_eq!((decided.state, fleet.told(7), fleet.tries()), (RolloutState::Rolling, 1, 1), "whoever operates");
    assert!(fleet.memory.failure.as_ref().is_some_and(|failure| failure.retried_at == Some(fleet.now)));
    // it was not that: no further try without another change
    fleet.now += i64::from(DEADLINE_SECONDS) + 1;
    assert_eq!(fleet.settle().state, RolloutState::Failed { away: 0 });
    fleet.now += 100_000;
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Failed { away: 0 }, 1));
    fleet.dead.clear();
    fleet.marks = vec!["a3", "b3", "c3"];
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Complete, 2));
    assert_eq!((fleet.memory.failure.clone(), fleet.memory.failed_hashes.len()), (None, 0), "it is none any more");
}

#[test]
fn what_somebody_took_back_is_not_tried_again_by_itself_nor_while_the_pool_is_paused() {
    let mut fleet = Fleet::new(3, &HAND);
    (fleet.wanted, fleet.marks) = (7, vec!["a1", "b1", "c1"]);
    fleet.settle();
    fleet.command = Some("abort 7");
    fleet.settle();
    fleet.marks = vec!["a2", "b2", "c2"];
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Failed { away: 0 }, 0));

    let mut fleet = Fleet::failed(&["a1", "b1", "c1"]);
    (fleet.is_frozen, fleet.marks) = (true, vec!["a2", "b2", "c2"]);
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Failed { away: 0 }, 0));
    fleet.is_frozen = false;
    fleet.settle();
    assert_eq!(fleet.tries(), 1);
}

#[test]
fn of_pods_that_are_gone_or_do_not_tell_no_change_is_made_up() {
    // nobody told when it failed: what is told first is no change
    let mut fleet = Fleet::failed(&[]);
    fleet.marks = vec!["a1", "b1", "c1"];
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Failed { away: 0 }, 0));
    fleet.marks = vec!["a2", "b2", "c2"];
    fleet.settle();
    assert_eq!(fleet.tries(), 1, "and the next one is");

    // who does not answer now is not waited for, and says nothing
    let mut fleet = Fleet::failed(&["a1", "b1", "c1"]);
    fleet.marks.clear();
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Failed { away: 0 }, 0));
    fleet.marks = vec!["a2"];
    fleet.settle();
    assert_eq!(fleet.tries(), 1);

    // other pods have other marks of the same
    let mut fleet = Fleet::failed(&["a1"]);
    fleet.memory.failure.as_mut().expect("it failed").references[0].uid = "gone".to_owned();
    fleet.marks = vec!["x1", "y1", "z1"];
    assert_eq!((fleet.settle().state, fleet.tries()), (RolloutState::Failed { away: 0 }, 0));
    let known = fleet.memory.failure.as_ref().map(|failure| failure.references.len());
    assert_eq!(known, Some(3), "the next change is seen by them");
}
