//! PURE: the circuit breaker: whether the database is away, and what clients are told meanwhile. State, observation and now in; the
//! next action out.
//!
//! ```text
//!            a login fails, or clients wait         fails for 5 s more,
//!            for nothing, and a probe fails         and nothing works
//!   Closed ───────────────────────────────▶ Holding ────────────────▶ Open ◀─────────┐
//!     ▲                                        │                       │ a probe is   │ a probe
//!     │        anything works                  │                       │ answered, or │ fails
//!     ├────────────────────────────────────────┘                       ▼ a login works│
//!     └────────────────────────────────────────────────────────── HalfOpen ───────────┘
//!        a server connection works, or a second probe is answered
//! ```
//!
//! **Holding**: who waits goes on waiting, so that a switchover of some seconds costs those that wait nothing. **Open**: nobody waits for
//! more than a second. What is seen of the pooler raises the suspicion, and the probe of our own decides: the database is asked at the
//! address that the pooler has, up to the question for the password. It differs from what the pooler sees in that it needs no server
//! connection, and is asked in a time of its own:
//!
//! | seen | counts as |
//! |---|---|
//! | refused, reset, closed without a word, no answer in time, no address | away |
//! | it starts up, shuts down or recovers (`57P03`) | away: it serves nobody |
//! | too many connections (`53300`), a refused role or database, a rule of `pg_hba.conf`, TLS that fails | there: others have what they need, or it is told in other ways |
//! | busy, slow, read-only | there |
//! | we ourselves are late, the address is not known | nothing |
//!
//! In doubt it stays closed: whatever works, a login, a transaction, an answer, closes it before it has opened, and what has not been
//! seen to be away for [`FORGOTTEN`] closes it too. An answer that is asked for because a pool is slow is asked for ever more rarely.
//!
//! Times are milliseconds on a clock that does not jump.

use crate::{agent::decide::machine::Millis, contract::CircuitState};

/// Clients that wait are held for so long after the first sign that the database is away.
pub const HOLD: Millis = 5000;
/// After so long without a probe that failed nothing is known any more: more than a probe and the pause before it take together.
pub const FORGOTTEN: Millis = 15_000;
/// Fewer probes that failed say nothing.
const LEAST_FAILURES: u32 = 2;
/// Between two probes while it is not known whether the database is away.
const PROBE_PAUSE: Millis = 1000;
/// Longest pause between two probes, without the part that differs from pod to pod: while the database is away, and while it answers
/// and is slow.
const LONGEST_AWAY: Millis = 4000;
const LONGEST_SLOW: Millis = 10_000;

/// Whether anything is amiss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CircuitSign {
    /// Nothing is.
    #[default]
    Calm,
    /// Clients wait.
    ClientsWait,
    /// An attempt to reach the database has failed.
    AttemptFailed,
}

/// What a second showed of the pooler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitSeen {
    /// Whether a server connection has logged in.
    pub logged_in: bool,
    /// Whether a transaction has ended that had a server connection.
    pub finished: bool,
    /// Whether anything is amiss.
    pub sign: CircuitSign,
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// Somebody who would serve answered.
    Answered,
    /// Nobody did.
    Failed,
    /// It says nothing.
    Unclear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Holding { failures: u32 },
    Open,
    HalfOpen,
}

/// The state of one pod's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    phase: Phase,
    /// When it left `Closed`; of `Closed`, when it came back.
    since: Millis,
    /// When anything worked last.
    worked: Millis,
    /// When a probe failed last.
    failed: Millis,
    /// When the probe began that is on its way.
    probing: Option<Millis>,
    /// No other probe before.
    next: Millis,
    pause: Millis,
    spread: Millis,
}

impl Circuit {
    /// Closed. `spread` makes the pauses of pods differ, in percent.
    pub fn new(spread: u8) -> Self {
        let (phase, spread) = (Phase::Closed, spread.into());
        Self { phase, since: 0, worked: 0, failed: 0, probing: None, next: 0, pause: PROBE_PAUSE, spread }
    }

    /// Another agent left it open.
    pub fn was_left_open(&mut self, now: Millis) {
        (self.phase, self.since, self.failed) = (Phase::Open, now, now);
        (self.next, self.pause) = (now, PROBE_PAUSE);
    }

    /// What to report.
    pub fn state(&self) -> CircuitState {
        match self.phase {
            Phase::Closed => CircuitState::Closed,
            Phase::Holding { .. } => CircuitState::Holding,
            Phase::Open => CircuitState::Open,
            Phase::HalfOpen => CircuitState::HalfOpen,
        }
    }

    /// For how long the database has been away, or it has been closed again.
    pub fn since(&self) -> Millis {
        self.since
    }

    /// Whether clients are told at once instead of waiting. While it is half open they wait again.
    pub fn fails_fast(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the load says nothing, and what runs stays as it is.
    pub fn holds(&self) -> bool {
        self.phase != Phase::Closed
    }

    /// Whether a probe is to begin now.
    pub fn takes_probe(&mut self, now: Millis) -> bool {
        if self.phase != Phase::Closed && now.saturating_sub(self.failed) > FORGOTTEN {
            self.close(now);
        }
        let is_due = self.phase != Phase::Closed && self.is_free(now);
        if is_due {
            self.probing = Some(now);
        }
        is_due
    }

    fn is_free(&self, now: Millis) -> bool {
        self.probing.is_none() && now >= self.next
    }

    /// Takes in a second. True when a probe is to begin now.
    pub fn see(&mut self, now: Millis, seen: CircuitSeen) -> bool {
        let works = seen.logged_in || seen.finished;
        if works {
            self.worked = now;
        }
        match self.phase {
            Phase::Closed => {
                if works || seen.sign == CircuitSign::Calm {
                    self.pause = PROBE_PAUSE;
                    return false;
                }
                if seen.sign == CircuitSign::AttemptFailed && self.pause > PROBE_PAUSE {
                    // that is more than being slow
                    (self.pause, self.next) = (PROBE_PAUSE, self.next.min(now));
                }
                let begins = self.is_free(now);
                if begins {
                    self.probing = Some(now);
                }
                begins
            }
            Phase::Holding { .. } | Phase::HalfOpen if works => {
                self.close(now);
                false
            }
            // a transaction that ended may have been cut
            Phase::Open if seen.logged_in => {
                self.half_open(now);
                false
            }
            Phase::Holding { .. } | Phase::Open | Phase::HalfOpen => self.takes_probe(now),
        }
    }

    /// Takes in what came of the probe.
    pub fn probed(&mut self, now: Millis, outcome: ProbeOutcome) {
        let Some(began) = self.probing.take() else { return };
        let is_away = outcome == ProbeOutcome::Failed;
        self.next = now.saturating_add(PROBE_PAUSE);
        if is_away {
            self.failed = now;
        }
        match (self.phase, outcome) {
            (_, ProbeOutcome::Unclear) => {}
            (Phase::Closed, ProbeOutcome::Answered) => self.back_off(now, LONGEST_SLOW),
            (Phase::Closed, ProbeOutcome::Failed) => {
                let since = began.max(self.worked);
                (self.phase, self.since, self.pause) = (Phase::Holding { failures: 1 }, since, PROBE_PAUSE);
            }
            (Phase::Holding { failures }, ProbeOutcome::Failed) => {
                let failures = failures.saturating_add(1);
                let lasts = now.saturating_sub(self.since) >= HOLD && failures >= LEAST_FAILURES;
                self.phase = if lasts { Phase::Open } else { Phase::Holding { failures } };
            }
            (Phase::Holding { .. } | Phase::HalfOpen, ProbeOutcome::Answered) => self.close(now),
            (Phase::Open, ProbeOutcome::Answered) => self.half_open(now),
            (Phase::Open | Phase::HalfOpen, ProbeOutcome::Failed) => self.phase = Phase::Open,
        }
        if is_away && self.phase == Phase::Open {
            self.back_off(now, LONGEST_AWAY);
        }
    }

    /// The next probe comes after a pause that is longer than the last one, and another one in each pod.
    fn back_off(&mut self, now: Millis, longest: Millis) {
        self.next = now.saturating_add(self.pause + self.pause * self.spread / 100);
        self.pause = (2 * self.pause).min(longest);
    }

    fn half_open(&mut self, now: Millis) {
        (self.phase, self.next, self.pause) = (Phase::HalfOpen, now.saturating_add(PROBE_PAUSE), PROBE_PAUSE);
    }

    fn close(&mut self, now: Millis) {
        (self.phase, self.since, self.pause) = (Phase::Closed, now, PROBE_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: CircuitSeen = CircuitSeen { logged_in: false, finished: true, sign: CircuitSign::Calm };
    const IDLE: CircuitSeen = CircuitSeen { finished: false, ..CALM };
    const QUEUE: CircuitSeen = CircuitSeen { sign: CircuitSign::ClientsWait, ..IDLE };
    const REFUSED: CircuitSeen = CircuitSeen { sign: CircuitSign::AttemptFailed, ..IDLE };
    const LOGIN: CircuitSeen = CircuitSeen { logged_in: true, ..IDLE };

    /// One second after the other, each probe of which is answered so at once.
    fn seconds(
        circuit: &mut Circuit,
        from: Millis,
        count: u64,
        seen: CircuitSeen,
        outcome: ProbeOutcome,
    ) -> Vec<Millis> {
        let mut probes = Vec::new();
        for now in (0..count).map(|second| from + 1000 * second) {
            if circuit.see(now, seen) {
                probes.push(now);
                circuit.probed(now, outcome);
            }
        }
        probes
    }

    fn open() -> Circuit {
        let mut circuit = Circuit::new(0);
        seconds(&mut circuit, 0, 6, REFUSED, ProbeOutcome::Failed);
        assert_eq!((circuit.state(), circuit.since()), (CircuitState::Open, 0));
        circuit
    }

    #[test]
    fn who_waits_is_held_for_five_seconds_and_told_after_that() {
        let mut circuit = Circuit::new(0);
        assert!(
            seconds(&mut circuit, 0, 10, CALM, ProbeOutcome::Failed).is_empty(),
            "nobody is asked while all is well"
        );
        seconds(&mut circuit, 10_000, 5, REFUSED, ProbeOutcome::Failed);
        assert_eq!((circuit.state(), circuit.fails_fast(), circuit.holds()), (CircuitState::Holding, false, true));
        seconds(&mut circuit, 15_000, 1, REFUSED, ProbeOutcome::Failed);
        assert_eq!((circuit.state(), circuit.fails_fast(), circuit.since()), (CircuitState::Open, true, 10_000));
    }

    #[test]
    fn a_switchover_that_is_shorter_opens_nothing_by_whatever_its_end_shows() {
        for end in [CALM, LOGIN] {
            let mut circuit = Circuit::new(0);
            seconds(&mut circuit, 0, 4, REFUSED, ProbeOutcome::Failed);
            assert_eq!(circuit.state(), CircuitState::Holding);
            circuit.see(4000, end);
            assert_eq!(circuit.state(), CircuitState::Closed);
        }
        let mut circuit = Circuit::new(0);
        seconds(&mut circuit, 0, 4, REFUSED, ProbeOutcome::Failed);
        seconds(&mut circuit, 4000, 1, QUEUE, ProbeOutcome::Answered);
        assert_eq!(circuit.state(), CircuitState::Closed, "nobody has asked for a connection since");
    }

    #[test]
    fn a_database_that_answers_and_is_slow_or_full_never_opens_it_and_is_asked_ever_more_rarely() {
        for seen in [QUEUE, IDLE] {
            let mut circuit = Circuit::new(49);
            let probes = seconds(&mut circuit, 0, 600, seen, ProbeOutcome::Answered);
            assert_eq!(circuit.state(), CircuitState::Closed);
            assert!(probes.len() < 60, "{probes:?}");
        }
        // attempts that fail are more than that: it is asked again within two seconds
        let mut circuit = Circuit::new(0);
        let last = *seconds(&mut circuit, 0, 600, QUEUE, ProbeOutcome::Answered).last().unwrap();
        assert!(circuit.see(last + 1000, REFUSED));
    }

    #[test]
    fn what_says_nothing_opens_nothing() {
        let mut circuit = Circuit::new(0);
        seconds(&mut circuit, 0, 100, REFUSED, ProbeOutcome::Unclear);
        assert_eq!(circuit.state(), CircuitState::Closed);
        seconds(&mut circuit, 100_000, 2, REFUSED, ProbeOutcome::Failed);
        seconds(&mut circuit, 102_000, 10, REFUSED, ProbeOutcome::Unclear);
        assert_eq!(circuit.state(), CircuitState::Holding, "nor does it close what holds");
        seconds(&mut circuit, 112_000, 10, REFUSED, ProbeOutcome::Unclear);
        assert_eq!(circuit.state(), CircuitState::Closed, "for long");
        let mut circuit = open();
        seconds(&mut circuit, 6000, 20, REFUSED, ProbeOutcome::Unclear);
        assert_eq!(circuit.state(), CircuitState::Closed);
        // one probe alone, however long ago the first sign was
        let mut circuit = Circuit::new(0);
        assert!(circuit.see(0, REFUSED));
        circuit.probed(HOLD + 1, ProbeOutcome::Failed);
        assert_eq!(circuit.state(), CircuitState::Holding);
    }

    #[test]
    fn while_it_is_open_probes_come_at_most_every_six_seconds_and_every_pod_has_pauses_of_its_own() {
        let probes = |spread| {
            let mut circuit = open();
            circuit.spread = spread;
            (5050..305_050)
                .step_by(50)
                .filter(|now| circuit.takes_probe(*now).then(|| circuit.probed(*now, ProbeOutcome::Failed)).is_some())
                .collect::<Vec<Millis>>()
        };
        let pauses = |spread| {
            let probes: Vec<Millis> = probes(spread);
            probes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
        };
        assert_eq!(pauses(0), LONGEST_AWAY);
        assert!((5900..=6000).contains(&pauses(49)), "{}", pauses(49));
        assert!(probes(0).len() <= 300 / 4 + 3);
    }

    #[test]
    fn it_closes_once_something_works_after_an_answer_and_opens_again_if_nothing_does() {
        for (seen, state) in [(LOGIN, CircuitState::Closed), (CALM, CircuitState::Closed)] {
            let mut circuit = open();
            assert!(circuit.takes_probe(20_000));
            circuit.probed(20_100, ProbeOutcome::Answered);
            assert_eq!((circuit.state(), circuit.fails_fast(), circuit.holds()), (CircuitState::HalfOpen, false, true));
            circuit.see(21_000, seen);
            assert_eq!((circuit.state(), circuit.since()), (state, 21_000));
        }
        let mut circuit = open();
        circuit.see(10_000, LOGIN);
        assert_eq!(circuit.state(), CircuitState::HalfOpen, "clients were served before anybody probed");
        assert!(circuit.takes_probe(11_000));
        circuit.probed(11_000, ProbeOutcome::Answered);
        assert_eq!(circuit.state(), CircuitState::Closed, "nobody needs a connection");
        let mut circuit = open();
        circuit.see(10_000, LOGIN);
        circuit.takes_probe(11_000);
        circuit.probed(11_000, ProbeOutcome::Failed);
        assert_eq!((circuit.state(), circuit.since()), (CircuitState::Open, 0), "the same time away goes on");
    }

    #[test]
    fn transactions_that_are_cut_while_it_is_open_are_no_sign_of_life() {
        let mut circuit = open();
        circuit.see(15_000, CALM);
        assert_eq!(circuit.state(), CircuitState::Open);
    }

    #[test]
    fn what_another_agent_left_open_is_open_and_is_asked_about_at_once() {
        let mut circuit = Circuit::new(20);
        circuit.was_left_open(300);
        assert!(circuit.fails_fast() && circuit.takes_probe(300));
        circuit.probed(350, ProbeOutcome::Answered);
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
    }

    #[test]
    fn a_database_that_comes_and_goes_is_held_each_time_anew() {
        let mut circuit = Circuit::new(0);
        for flap in 0..20 {
            let begin = flap * 10_000;
            seconds(&mut circuit, begin, 4, REFUSED, ProbeOutcome::Failed);
            assert_eq!(circuit.state(), CircuitState::Holding, "{flap}");
            seconds(&mut circuit, begin + 4000, 6, CALM, ProbeOutcome::Answered);
            assert_eq!(circuit.state(), CircuitState::Closed);
        }
    }

    fn second() -> impl Strategy<Value = (CircuitSeen, bool, Millis)> {
        let signs = [CircuitSign::Calm, CircuitSign::ClientsWait, CircuitSign::AttemptFailed];
        let flags = (any::<bool>(), any::<bool>(), prop::sample::select(signs.to_vec()));
        (flags, any::<bool>(), 0..3000_u64).prop_map(|((logged_in, finished, sign), answers, takes)| {
            (CircuitSeen { logged_in, finished, sign }, answers, takes)
        })
    }

    proptest! {
        #[test]
        fn whatever_is_seen_nothing_opens_while_anything_has_worked_in_the_last_five_seconds(
            seconds in prop::collection::vec(second(), 1..200)
        ) {
            let mut circuit = Circuit::new(0);
            let (mut on_its_way, mut worked, mut probes) = (None, 0, 0_u64);
            for (second, (seen, answers, takes)) in seconds.iter().enumerate() {
                let now = 1000 * second as Millis;
                if let Some((at, outcome)) = on_its_way.filter(|(at, _)| *at <= now) {
                    circuit.probed(at, outcome);
                    if outcome == ProbeOutcome::Answered {
                        worked = at;
                    }
                    on_its_way = None;
                }
                if circuit.see(now, *seen) {
                    prop_assert!(on_its_way.is_none(), "one probe at a time");
                    probes += 1;
                    let outcome = if *answers { ProbeOutcome::Answered } else { ProbeOutcome::Failed };
                    on_its_way = Some((now + takes, outcome));
                }
                if seen.logged_in || seen.finished && circuit.state() != CircuitState::Open {
                    worked = now;
                }
                if circuit.state() == CircuitState::Open {
                    let is_again = circuit.since() < worked;
                    prop_assert!(is_again || now >= worked + HOLD, "{now} {worked} {circuit:?}");
                }
            }
            prop_assert!(probes <= seconds.len() as u64 + 1);
        }

        #[test]
        fn when_the_database_is_back_it_is_closed_within_eight_seconds(
            before in prop::collection::vec(second(), 0..200),
            spread in 0..50_u8,
        ) {
            let mut circuit = Circuit::new(spread);
            let mut now = 0;
            for (seen, answers, _) in before {
                now += 1000;
                if circuit.see(now, seen) {
                    circuit.probed(now, if answers { ProbeOutcome::Answered } else { ProbeOutcome::Failed });
                }
            }
            let back = now;
            while circuit.state() != CircuitState::Closed {
                now += 50;
                prop_assert!(now <= back + 8000, "{circuit:?}");
                if circuit.takes_probe(now) {
                    circuit.probed(now, ProbeOutcome::Answered);
                }
            }
        }
    }
}
