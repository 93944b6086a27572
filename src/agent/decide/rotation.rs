//! PURE: when credentials are proven, and when that is tried again. State, observation and now in; the next action out. A revision
//! that a login has to prove ([`super::login_proof`]) goes the same way, with a state of its own.
//!
//! What the Secret holds takes effect once a login with it has worked: one server connection of a process that serves nobody.
//! It counts within the share, so the slots give up one connection before it is opened. While the database refuses what is in
//! force, nothing that is open is given up for it: it could not be opened again.
//!
//! ```text
//! Idle -> MakingRoom -> Proving -> Idle (taken over, or given up for a while)
//! ```
//!
//! A new version is tried at once, one that failed ever more rarely. When the database begins to refuse what is in force, the role
//! has changed: what failed before is then likely to work, and is tried without waiting. So it does not matter whether the role or
//! the Secret changes first.
//!
//! Times are milliseconds on a clock that does not jump.

use crate::agent::decide::{
    machine::Millis,
    switch::{PROOF_DEADLINE, ROOM_DEADLINE, START_DEADLINE},
};

/// First pause before a login that failed is tried again; doubled each time. Two logins of one version are never closer.
pub const FIRST_PAUSE: Millis = 1000;
/// Longest pause, without the part that differs from pod to pod.
pub const LONGEST_PAUSE: Millis = 60_000;

/// Whether the database lets in what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logins {
    /// The last one worked, or there was none.
    Work,
    /// The last one was refused.
    Refused,
}

/// What is known of the login that is being tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialOutcome {
    /// Nothing yet.
    Open,
    /// It worked.
    Passed,
    /// It did not, or not in time.
    Failed,
}

/// One observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationSeen {
    /// Which credentials are to be proven; None: those in force are wanted, and work.
    pub wanted: Option<u64>,
    /// Whether every slot answers, and none proves itself.
    pub able: bool,
    /// The share of the pod.
    pub share: u32,
    /// The most that the slots could hold now, read back; None while unknown.
    pub bound: Option<u32>,
    /// Server connections that the slots hold; None while unknown.
    pub held: Option<u32>,
    /// Whether the database lets in what is in force.
    pub logins: Logins,
    /// What is known of the login that is being tried.
    pub trial: TrialOutcome,
}

impl RotationSeen {
    /// Whether a connection may be taken from the slots.
    fn has_room(&self) -> bool {
        self.share > 0 && (self.logins == Logins::Work || self.held.is_some_and(|held| held < self.share))
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationAction {
    /// Log in with the wanted credentials.
    Try,
    /// They work: they are in force from now on.
    TakeOver,
    /// End the login that is being tried.
    Stop,
}

/// Why a login was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationFailure {
    /// The slots could not give up a connection for it.
    NoRoom,
    /// It did not work.
    NotProven,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RotationPhase {
    Idle,
    MakingRoom { since: Millis, version: u64 },
    Proving { since: Millis, version: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GivenUpLogin {
    version: u64,
    failure: RotationFailure,
    at: Millis,
    until: Millis,
    pause: Millis,
    /// What the database did with what is in force.
    logins: Logins,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    phase: RotationPhase,
    given_up: Option<GivenUpLogin>,
    spread: Millis,
}

impl Rotation {
    /// Nothing to prove yet. `spread` makes the pauses of pods differ, in percent.
    pub fn new(spread: u8) -> Self {
        Self { phase: RotationPhase::Idle, given_up: None, spread: spread.into() }
    }

    /// Whether one connection of the share is not the slots'.
    pub fn needs_room(&self) -> bool {
        self.phase != RotationPhase::Idle
    }

    /// Whether a login may be open beside the slots.
    pub fn is_trying(&self) -> bool {
        matches!(self.phase, RotationPhase::Proving { .. })
    }

    /// Why these credentials were given up, until they work or others are wanted.
    pub fn failure(&self, version: u64) -> Option<RotationFailure> {
        self.given_up.filter(|given_up| given_up.version == version).map(|given_up| given_up.failure)
    }

    /// Takes in one observation.
    pub fn step(&mut self, now: Millis, seen: &RotationSeen) -> Option<RotationAction> {
        let goes_on = |version| seen.wanted == Some(version) && seen.able && seen.share > 0;
        match self.phase {
            RotationPhase::Idle => {
                self.idle(now, seen);
                None
            }
            RotationPhase::MakingRoom { since, version } => {
                if !goes_on(version) || !seen.has_room() {
                    self.phase = RotationPhase::Idle;
                } else if seen.bound.is_some_and(|bound| bound < seen.share) {
                    self.phase = RotationPhase::Proving { since: now, version };
                    return Some(RotationAction::Try);
                } else {
                    // a share of 1 is paused meanwhile
                    let deadline = if seen.share == 1 { PROOF_DEADLINE } else { ROOM_DEADLINE };
                    if now.saturating_sub(since) >= deadline {
                        self.give_up(now, version, RotationFailure::NoRoom, seen.logins);
                    }
                }
                None
            }
            RotationPhase::Proving { version, .. } if !goes_on(version) => {
                self.phase = RotationPhase::Idle;
                Some(RotationAction::Stop)
            }
            RotationPhase::Proving { since, version } => match seen.trial {
                TrialOutcome::Passed => {
                    (self.phase, self.given_up) = (RotationPhase::Idle, None);
                    Some(RotationAction::TakeOver)
                }
                TrialOutcome::Open if now.saturating_sub(since) < START_DEADLINE => None,
                TrialOutcome::Open | TrialOutcome::Failed => {
                    self.give_up(now, version, RotationFailure::NotProven, seen.logins);
                    Some(RotationAction::Stop)
                }
            },
        }
    }

    fn idle(&mut self, now: Millis, seen: &RotationSeen) {
        let Some(version) = seen.wanted else {
            self.given_up = None;
            return;
        };
        self.given_up = self.given_up.filter(|given_up| given_up.version == version);
        if let Some(given_up) = &mut self.given_up {
            if seen.logins == Logins::Refused && given_up.logins == Logins::Work {
                given_up.until = given_up.until.min(given_up.at.saturating_add(FIRST_PAUSE));
                given_up.pause = 0;
            }
            given_up.logins = seen.logins;
            if now < given_up.until {
                return;
            }
        }
        if seen.able && seen.has_room() {
            self.phase = RotationPhase::MakingRoom { since: now, version };
        }
    }

    fn give_up(&mut self, now: Millis, version: u64, failure: RotationFailure, logins: Logins) {
        let before = self.given_up.map_or(0, |given_up| given_up.pause);
        let pause = (2 * before).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let until = now.saturating_add(pause + pause * self.spread / 100);
        self.given_up = Some(GivenUpLogin { version, failure, at: now, until, pause, logins });
        self.phase = RotationPhase::Idle;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: RotationSeen = RotationSeen {
        wanted: None,
        able: true,
        share: 4,
        bound: Some(4),
        held: Some(2),
        logins: Logins::Work,
        trial: TrialOutcome::Open,
    };

    /// A pod whose slots do as told at once, and a database that lets in one version.
    struct RotatingPod {
        rotation: Rotation,
        now: Millis,
        seen: RotationSeen,
        works: u64,
        in_force: u64,
        tries: Vec<Millis>,
    }

    impl RotatingPod {
        fn new() -> Self {
            Self { rotation: Rotation::new(0), now: 0, seen: CALM, works: 1, in_force: 1, tries: Vec::new() }
        }

        fn run(&mut self, wanted: u64, milliseconds: Millis) {
            let end = self.now + milliseconds;
            while self.now < end {
                self.seen.wanted = Some(wanted).filter(|wanted| *wanted != self.in_force);
                self.seen.bound = Some(self.seen.share - u32::from(self.rotation.needs_room()));
                match self.rotation.step(self.now, &self.seen) {
                    Some(RotationAction::Try) => {
                        self.tries.push(self.now);
                        self.seen.trial =
                            if self.works == wanted { TrialOutcome::Passed } else { TrialOutcome::Failed };
                    }
                    Some(RotationAction::TakeOver) => (self.in_force, self.seen.logins) = (wanted, Logins::Work),
                    Some(RotationAction::Stop) | None => {}
                }
                self.now += 50;
            }
        }
    }

    #[test]
    fn credentials_that_work_are_taken_over_after_one_login() {
        let mut pod = RotatingPod::new();
        pod.works = 2;
        pod.run(2, 1000);
        assert_eq!((pod.in_force, pod.tries.len()), (2, 1));
        assert!(!pod.rotation.needs_room());
    }

    #[test]
    fn credentials_that_fail_are_tried_ever_more_rarely_and_others_at_once() {
        let mut pod = RotatingPod::new();
        pod.run(2, 600_000);
        assert_eq!(pod.in_force, 1);
        assert_eq!(pod.rotation.failure(2), Some(RotationFailure::NotProven));
        let pauses: Vec<Millis> = pod.tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses[0] >= FIRST_PAUSE && pauses[0] < 2 * FIRST_PAUSE, "{pauses:?}");
        assert!(pauses.is_sorted() && pauses.last().is_some_and(|pause| *pause >= LONGEST_PAUSE), "{pauses:?}");
        assert!(pod.tries.len() < 20, "{} logins in ten minutes", pod.tries.len());
        let (before, at) = (pod.tries.len(), pod.now);
        pod.works = 3;
        pod.run(3, 500);
        assert_eq!((pod.in_force, pod.tries.len()), (3, before + 1));
        assert!(pod.tries[before] < at + 200);
    }

    #[test]
    fn when_the_database_begins_to_refuse_what_is_in_force_what_failed_is_tried_at_once() {
        let mut pod = RotatingPod::new();
        pod.run(2, 300_000);
        let (before, at) = (pod.tries.len(), pod.now);
        (pod.works, pod.seen.logins) = (2, Logins::Refused);
        pod.run(2, 2000);
        assert_eq!((pod.in_force, pod.tries.len()), (2, before + 1));
        assert!(pod.tries[before] - at <= FIRST_PAUSE);
    }

    #[test]
    fn while_logins_are_refused_no_open_connection_is_given_up() {
        let mut pod = RotatingPod::new();
        (pod.seen.held, pod.seen.logins, pod.works) = (Some(4), Logins::Refused, 2);
        pod.run(2, 100_000);
        assert_eq!((pod.in_force, pod.tries.len()), (1, 0));
        assert!(!pod.rotation.needs_room());
        pod.seen.held = Some(3);
        pod.run(2, 1000);
        assert_eq!(pod.in_force, 2, "one had ended by itself");
    }

    #[test]
    fn without_a_share_nothing_is_tried() {
        let mut pod = RotatingPod::new();
        (pod.seen.share, pod.works) = (0, 2);
        pod.run(2, 10_000);
        assert_eq!((pod.in_force, pod.tries.len()), (1, 0));
    }

    #[test]
    fn slots_that_cannot_give_up_a_connection_get_it_back() {
        let mut rotation = Rotation::new(0);
        let seen = RotationSeen { wanted: Some(2), ..CALM };
        let mut tries = 0;
        for now in (0..ROOM_DEADLINE + 1000).step_by(50) {
            tries += usize::from(rotation.step(now, &seen) == Some(RotationAction::Try));
        }
        assert_eq!((tries, rotation.failure(2)), (0, Some(RotationFailure::NoRoom)));
    }

    fn seen() -> impl Strategy<Value = RotationSeen> {
        let logins = prop_oneof![Just(Logins::Work), Just(Logins::Refused)];
        let trial = prop_oneof![3 => Just(TrialOutcome::Open), 1 => Just(TrialOutcome::Passed), 1 => Just(TrialOutcome::Failed)];
        let figures = (0..4u32, proptest::option::of(0..5u32), proptest::option::of(0..5u32));
        (proptest::option::of(0..3u64), prop::bool::weighted(0.9), figures, logins, trial).prop_map(
            |(wanted, able, (share, bound, held), logins, trial)| RotationSeen {
                wanted,
                able,
                share,
                bound,
                held,
                logins,
                trial,
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_happens_no_login_is_tried_without_room_and_none_is_taken_over_untried(
            steps in prop::collection::vec((seen(), 0..3000u64), 1..200),
        ) {
            let (mut rotation, mut now, mut trying) = (Rotation::new(30), 0, None);
            let mut last: Option<(u64, Millis)> = None;
            for (seen, pause) in steps {
                now += pause;
                let before = rotation;
                match rotation.step(now, &seen) {
                    Some(RotationAction::Try) => {
                        prop_assert!(before.needs_room() && seen.bound.is_some_and(|bound| bound < seen.share));
                        prop_assert!(seen.logins == Logins::Work || seen.held.is_some_and(|held| held < seen.share));
                        let version = seen.wanted.unwrap();
                        if let (Some(failure), Some((tried, at))) = (before.failure(version), last) {
                            prop_assert!(tried != version || failure == RotationFailure::NoRoom || now - at >= FIRST_PAUSE);
                        }
                        (trying, last) = (seen.wanted, Some((version, now)));
                    }
                    Some(RotationAction::TakeOver) => {
                        prop_assert!(seen.trial == TrialOutcome::Passed && trying.is_some() && trying == seen.wanted);
                        trying = None;
                    }
                    Some(RotationAction::Stop) => trying = None,
                    None => {}
                }
                prop_assert_eq!(trying.is_some(), rotation.is_trying());
            }
        }
    }
}
