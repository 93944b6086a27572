//! PURE: what becomes of the pooler's process. State, observation and now in; the next action out.
//!
//! Times are milliseconds on a clock that does not jump.

use crate::contract::SlotStatus;

/// Milliseconds on a clock that does not jump.
pub type Millis = u64;

/// A process that has not answered its console for so long is hung.
pub const HUNG_AFTER: Millis = 1000;
/// A process that has never answered is given up after so long.
pub const START_DEADLINE: Millis = 10_000;
/// After so long without a fault, earlier faults are forgotten.
pub const FORGIVEN_AFTER: Millis = 30_000;
/// Longest pause before another start.
pub const LONGEST_PAUSE: Millis = 10_000;
/// First pause; the very first restart does not wait.
const FIRST_PAUSE: Millis = 200;

/// Why a process was started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RestartReason {
    /// It ended by itself, or somebody ended it.
    Exited,
    /// Its console stopped answering.
    Hung,
    /// It never answered after its start.
    NeverAnswered,
}

impl RestartReason {
    /// The value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "Exited",
            Self::Hung => "Hung",
            Self::NeverAnswered => "NeverAnswered",
        }
    }
}

/// What is seen of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Whether there is a configuration to start with.
    pub startable: bool,
    /// Whether the process runs.
    pub running: bool,
    /// What the console said, if it was asked.
    pub console: ConsoleSeen,
    /// Whether we ourselves ran on time. When not, silence of the console says nothing: both are short of CPU.
    pub punctual: bool,
}

/// What the console said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleSeen {
    /// It was not asked.
    NotAsked,
    /// It answered.
    Answered,
    /// It did not answer in time, or the socket was not there.
    Silent,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a process.
    Start,
    /// Kill the process at once: it does not answer.
    Kill(RestartReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Down { until: Millis },
    Starting { since: Millis },
    Serving { answered: Millis, since: Millis },
    Killed { reason: RestartReason },
}

/// The state of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    phase: Phase,
    faults: u32,
    restart_reason: Option<RestartReason>,
}

impl Default for Machine {
    fn default() -> Self {
        Self { phase: Phase::Down { until: 0 }, faults: 0, restart_reason: None }
    }
}

impl Machine {
    /// Takes in one observation.
    pub fn step(&mut self, now: Millis, seen: Observation) -> Option<Action> {
        match self.phase {
            Phase::Down { until } => {
                if now < until || !seen.startable {
                    return None;
                }
                self.phase = Phase::Starting { since: now };
                Some(Action::Start)
            }
            Phase::Starting { since } => {
                if !seen.running {
                    self.ended(now, RestartReason::Exited);
                    return None;
                }
                if seen.console == ConsoleSeen::Answered {
                    self.phase = Phase::Serving { answered: now, since: now };
                    return None;
                }
                (now.saturating_sub(since) >= START_DEADLINE).then(|| self.kill(RestartReason::NeverAnswered))
            }
            Phase::Serving { answered, since } => {
                if !seen.running {
                    self.ended(now, RestartReason::Exited);
                    return None;
                }
                if seen.console == ConsoleSeen::Answered || !seen.punctual {
                    self.phase = Phase::Serving { answered: now, since };
                    if now.saturating_sub(since) >= FORGIVEN_AFTER {
                        self.faults = 0;
                    }
                    return None;
                }
                let hung = seen.console == ConsoleSeen::Silent && now.saturating_sub(answered) >= HUNG_AFTER;
                hung.then(|| self.kill(RestartReason::Hung))
            }
            Phase::Killed { reason } => {
                if !seen.running {
                    self.ended(now, reason);
                }
                None
            }
        }
    }

    /// Why the start that [`Action::Start`] just asked for is a restart; None for the first one.
    pub fn take_restart_reason(&mut self) -> Option<RestartReason> {
        self.restart_reason.take()
    }

    /// The process could not even be started.
    pub fn start_failed(&mut self, now: Millis) {
        self.ended(now, RestartReason::Exited);
    }

    /// What to report.
    pub fn status(&self, now: Millis) -> SlotStatus {
        match self.phase {
            Phase::Down { .. } if self.restart_reason.is_none() => SlotStatus::Starting,
            Phase::Down { .. } => SlotStatus::Down,
            Phase::Starting { .. } => SlotStatus::Starting,
            Phase::Serving { answered, .. } if now.saturating_sub(answered) < HUNG_AFTER => SlotStatus::Serving,
            Phase::Serving { .. } | Phase::Killed { .. } => SlotStatus::NotAnswering,
        }
    }

    /// Whether the process has answered since its start, so that its limits may be changed.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving { .. })
    }

    /// Whether a process was started and has not answered yet.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    fn kill(&mut self, reason: RestartReason) -> Action {
        self.phase = Phase::Killed { reason };
        Action::Kill(reason)
    }

    fn ended(&mut self, now: Millis, reason: RestartReason) {
        let pause = match self.faults {
            0 => 0,
            faults => FIRST_PAUSE.saturating_mul(1 << (faults - 1).min(16)).min(LONGEST_PAUSE),
        };
        self.faults = self.faults.saturating_add(1);
        self.restart_reason = Some(reason);
        self.phase = Phase::Down { until: now.saturating_add(pause) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: Observation =
        Observation { startable: true, running: true, console: ConsoleSeen::Answered, punctual: true };

    fn serving() -> Machine {
        let mut machine = Machine::default();
        assert_eq!(machine.step(0, Observation { running: false, ..CALM }), Some(Action::Start));
        assert_eq!(machine.step(10, CALM), None);
        assert_eq!(machine.status(10), SlotStatus::Serving);
        machine
    }

    #[test]
    fn nothing_starts_without_a_configuration() {
        let mut machine = Machine::default();
        assert_eq!(machine.step(0, Observation { startable: false, running: false, ..CALM }), None);
        assert_eq!(machine.status(0), SlotStatus::Starting);
    }

    #[test]
    fn a_process_that_ends_is_started_again_at_once() {
        let mut machine = serving();
        assert_eq!(machine.step(1000, Observation { running: false, ..CALM }), None);
        assert_eq!(machine.step(1050, Observation { running: false, ..CALM }), Some(Action::Start));
        assert_eq!(machine.take_restart_reason(), Some(RestartReason::Exited));
    }

    #[test]
    fn a_process_that_keeps_ending_is_started_ever_more_slowly() {
        let mut machine = Machine::default();
        let down = Observation { running: false, console: ConsoleSeen::NotAsked, ..CALM };
        let mut starts = Vec::new();
        for now in (0..120_000).step_by(50) {
            if machine.step(now, down) == Some(Action::Start) {
                starts.push(now);
            }
        }
        assert!(starts.len() < 25, "{starts:?}");
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] <= LONGEST_PAUSE + 200));
    }

    #[test]
    fn a_console_silent_for_a_second_means_hung() {
        let mut machine = serving();
        let silent = Observation { console: ConsoleSeen::Silent, ..CALM };
        assert_eq!(machine.step(510, silent), None);
        assert_eq!(machine.step(1010, silent), Some(Action::Kill(RestartReason::Hung)));
        assert_eq!(machine.step(1020, Observation { running: false, ..silent }), None);
        assert_eq!(machine.step(1030, Observation { running: false, ..silent }), Some(Action::Start));
        assert_eq!(machine.take_restart_reason(), Some(RestartReason::Hung));
    }

    #[test]
    fn when_we_ourselves_run_late_silence_says_nothing() {
        let mut machine = serving();
        let late = Observation { console: ConsoleSeen::Silent, punctual: false, ..CALM };
        for now in (500..60_000).step_by(500) {
            assert_eq!(machine.step(now, late), None);
        }
    }

    proptest! {
        #[test]
        fn a_healthy_world_always_ends_in_serving(
            seen in prop::collection::vec((any::<bool>(), any::<bool>(), 0..3u8, any::<bool>(), 1..2000u64), 0..200),
        ) {
            let mut machine = Machine::default();
            let mut now = 0;
            let mut running = false;
            for (startable, dies, console, punctual, pause) in seen {
                now += pause;
                let console = [ConsoleSeen::NotAsked, ConsoleSeen::Answered, ConsoleSeen::Silent][usize::from(console)];
                running = running && !dies;
                match machine.step(now, Observation { startable, running, console, punctual }) {
                    Some(Action::Start) => { prop_assert!(!running && startable); running = true; }
                    Some(Action::Kill(_)) => { prop_assert!(running); running = false; }
                    None => {}
                }
            }
            for _ in 0..20 {
                now += LONGEST_PAUSE;
                if let Some(action) = machine.step(now, Observation { running, ..CALM }) {
                    running = action == Action::Start;
                }
            }
            prop_assert!(machine.is_serving());
        }
    }
}
