//! PURE: what becomes of the pooler's process. State, observation and now in; the next action out.
//!
//! A process whose console is silent is killed when it is hung, never because the machine is short of CPU. What decides:
//!
//! - **Stopped** (by a signal or a debugger): hung after [`HUNG_AFTER`].
//! - **Idle**, asleep although a question waits: hung after [`HUNG_AFTER`] in which we ourselves ran on time. When we were late,
//!   so may the question have been.
//! - **Busy**, on the CPU all the time: hung after [`BUSY_AFTER`]; a storm of logins keeps PgBouncer busy for less.
//! - **Starved**, wanting to run and not let: never hung.
//!
//! [`Effort`] tells these apart. Until [`SILENT_AFTER`] the silence is not reported either.
//! Times are milliseconds on a clock that does not jump.

use crate::{agent::decide::vitals::Effort, contract::SlotStatus};

/// Milliseconds on a clock that does not jump.
pub type Millis = u64;

/// A process that has not answered its console for so long, and could have, is hung.
pub const HUNG_AFTER: Millis = 1000;
/// A process that has been on the CPU for so long without answering its console is hung.
pub const BUSY_AFTER: Millis = 5000;
/// A console that has been silent for so long is reported as not answering.
pub const SILENT_AFTER: Millis = 3000;
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
pub struct ProcessSeen {
    /// Whether there is a configuration to start with.
    pub startable: bool,
    /// Whether the process runs.
    pub running: bool,
    /// What the console said, if it was asked.
    pub console: ConsoleSeen,
    /// Whether we ourselves ran on time. When not, silence of the console says little: both are short of CPU.
    pub punctual: bool,
    /// What kept the process from answering; looked at when the console is silent.
    pub effort: Effort,
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
pub enum ProcessAction {
    /// Start a process.
    Start,
    /// Kill the process at once: it does not answer.
    Kill(RestartReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProcessPhase {
    Down {
        until: Millis,
    },
    Starting {
        since: Millis,
    },
    /// `quiet_since`: since when silence speaks against the process.
    Serving {
        answered: Millis,
        quiet_since: Millis,
        since: Millis,
    },
    Killed {
        reason: RestartReason,
    },
}

/// The state of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    phase: ProcessPhase,
    faults: u32,
    restart_reason: Option<RestartReason>,
}

impl Default for Machine {
    fn default() -> Self {
        Self { phase: ProcessPhase::Down { until: 0 }, faults: 0, restart_reason: None }
    }
}

impl Machine {
    /// The state for a process that runs already, and was started by somebody else.
    pub fn taken_up(now: Millis) -> Self {
        Self { phase: ProcessPhase::Starting { since: now }, ..Self::default() }
    }

    /// The state for a process that answers already, and takes the place of the one before.
    pub fn serving(now: Millis) -> Self {
        Self { phase: ProcessPhase::Serving { answered: now, quiet_since: now, since: now }, ..Self::default() }
    }

    /// Takes in one observation.
    pub fn step(&mut self, now: Millis, seen: ProcessSeen) -> Option<ProcessAction> {
        match self.phase {
            ProcessPhase::Down { until } => {
                if now < until || !seen.startable {
                    return None;
                }
                self.phase = ProcessPhase::Starting { since: now };
                Some(ProcessAction::Start)
            }
            ProcessPhase::Starting { since } => {
                if !seen.running {
                    self.ended(now, RestartReason::Exited);
                    return None;
                }
                if seen.console == ConsoleSeen::Answered {
                    self.phase = ProcessPhase::Serving { answered: now, quiet_since: now, since: now };
                    return None;
                }
                let given_up = now.saturating_sub(since) >= START_DEADLINE && seen.effort != Effort::Starved;
                given_up.then(|| self.kill(RestartReason::NeverAnswered))
            }
            ProcessPhase::Serving { answered, quiet_since, since } => {
                if !seen.running {
                    self.ended(now, RestartReason::Exited);
                    return None;
                }
                if seen.console == ConsoleSeen::Answered {
                    self.phase = ProcessPhase::Serving { answered: now, quiet_since: now, since };
                    if now.saturating_sub(since) >= FORGIVEN_AFTER {
                        self.faults = 0;
                    }
                    return None;
                }
                let silent = seen.console == ConsoleSeen::Silent;
                let excused = match seen.effort {
                    Effort::Stopped => false,
                    Effort::Idle | Effort::Busy => !seen.punctual,
                    Effort::Starved => silent,
                };
                if excused {
                    self.phase = ProcessPhase::Serving { answered, quiet_since: now, since };
                    return None;
                }
                let patience = if seen.effort == Effort::Busy { BUSY_AFTER } else { HUNG_AFTER };
                let hung = silent && now.saturating_sub(quiet_since) >= patience;
                hung.then(|| self.kill(RestartReason::Hung))
            }
            ProcessPhase::Killed { reason } => {
                if !seen.running {
                    self.ended(now, reason);
                }
                None
            }
        }
    }

    /// Why the start that [`ProcessAction::Start`] just asked for is a restart; None for the first one.
    pub fn take_restart_reason(&mut self) -> Option<RestartReason> {
        self.restart_reason.take()
    }

    /// How often the process ended or hung without a calm time between.
    pub fn faults(&self) -> u32 {
        self.faults
    }

    /// The process could not even be started.
    pub fn start_failed(&mut self, now: Millis) {
        self.ended(now, RestartReason::Exited);
    }

    /// What to report.
    pub fn status(&self, now: Millis) -> SlotStatus {
        match self.phase {
            ProcessPhase::Down { .. } if self.restart_reason.is_none() => SlotStatus::Starting,
            ProcessPhase::Down { .. } => SlotStatus::Down,
            ProcessPhase::Starting { .. } => SlotStatus::Starting,
            ProcessPhase::Serving { answered, .. } if now.saturating_sub(answered) < SILENT_AFTER => {
                SlotStatus::Serving
            }
            ProcessPhase::Serving { .. } | ProcessPhase::Killed { .. } => SlotStatus::NotAnswering,
        }
    }

    /// Whether the process has answered since its start, so that its limits may be changed.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, ProcessPhase::Serving { .. })
    }

    /// Whether a process was started and has not answered yet.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, ProcessPhase::Starting { .. })
    }

    /// Milliseconds of further silence after which a process that could have answered is hung; None unless one serves.
    pub fn until_hung(&self, now: Millis) -> Option<Millis> {
        match self.phase {
            ProcessPhase::Serving { quiet_since, .. } => {
                Some(HUNG_AFTER.saturating_sub(now.saturating_sub(quiet_since)))
            }
            _ => None,
        }
    }

    fn kill(&mut self, reason: RestartReason) -> ProcessAction {
        self.phase = ProcessPhase::Killed { reason };
        ProcessAction::Kill(reason)
    }

    fn ended(&mut self, now: Millis, reason: RestartReason) {
        let pause = match self.faults {
            0 => 0,
            faults => FIRST_PAUSE.saturating_mul(1 << (faults - 1).min(16)).min(LONGEST_PAUSE),
        };
        self.faults = self.faults.saturating_add(1);
        self.restart_reason = Some(reason);
        self.phase = ProcessPhase::Down { until: now.saturating_add(pause) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: ProcessSeen = ProcessSeen {
        startable: true,
        running: true,
        console: ConsoleSeen::Answered,
        punctual: true,
        effort: Effort::Idle,
    };

    fn serving() -> Machine {
        let mut machine = Machine::default();
        assert_eq!(machine.step(0, ProcessSeen { running: false, ..CALM }), Some(ProcessAction::Start));
        assert_eq!(machine.step(10, CALM), None);
        assert_eq!(machine.status(10), SlotStatus::Serving);
        machine
    }

    #[test]
    fn nothing_starts_without_a_configuration() {
        let mut machine = Machine::default();
        assert_eq!(machine.step(0, ProcessSeen { startable: false, running: false, ..CALM }), None);
        assert_eq!(machine.status(0), SlotStatus::Starting);
    }

    #[test]
    fn a_process_that_ends_is_started_again_at_once() {
        let mut machine = serving();
        assert_eq!(machine.step(1000, ProcessSeen { running: false, ..CALM }), None);
        assert_eq!(machine.step(1050, ProcessSeen { running: false, ..CALM }), Some(ProcessAction::Start));
        assert_eq!(machine.take_restart_reason(), Some(RestartReason::Exited));
    }

    #[test]
    fn a_process_that_keeps_ending_is_started_ever_more_slowly() {
        let mut machine = Machine::default();
        let down = ProcessSeen { running: false, console: ConsoleSeen::NotAsked, ..CALM };
        let mut starts = Vec::new();
        for now in (0..120_000).step_by(50) {
            if machine.step(now, down) == Some(ProcessAction::Start) {
                starts.push(now);
            }
        }
        assert!(starts.len() < 25, "{starts:?}");
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] <= LONGEST_PAUSE + 200));
    }

    #[test]
    fn a_console_silent_for_a_second_means_hung() {
        let mut machine = serving();
        let silent = ProcessSeen { console: ConsoleSeen::Silent, ..CALM };
        assert_eq!(machine.step(510, silent), None);
        assert_eq!(machine.step(1010, silent), Some(ProcessAction::Kill(RestartReason::Hung)));
        assert_eq!(machine.step(1020, ProcessSeen { running: false, ..silent }), None);
        assert_eq!(machine.step(1030, ProcessSeen { running: false, ..silent }), Some(ProcessAction::Start));
        assert_eq!(machine.take_restart_reason(), Some(RestartReason::Hung));
    }

    #[test]
    fn the_time_until_the_verdict_counts_from_the_last_answer() {
        let mut machine = serving();
        assert_eq!(machine.until_hung(10), Some(1000));
        machine.step(910, ProcessSeen { console: ConsoleSeen::Silent, ..CALM });
        assert_eq!((machine.until_hung(910), machine.until_hung(5000)), (Some(100), Some(0)));
        machine.step(950, CALM);
        assert_eq!(machine.until_hung(950), Some(1000));
        assert_eq!(Machine::default().until_hung(0), None);
    }

    #[test]
    fn when_we_ourselves_run_late_silence_says_nothing() {
        let mut machine = serving();
        let late = ProcessSeen { console: ConsoleSeen::Silent, punctual: false, ..CALM };
        for now in (500..60_000).step_by(500) {
            assert_eq!(machine.step(now, late), None);
        }
    }

    /// When a process that answers no more is killed, asked every half second; None: not within a minute.
    fn killed_after(effort: Effort, punctual: bool) -> Option<Millis> {
        let mut machine = serving();
        let silent = ProcessSeen { console: ConsoleSeen::Silent, effort, punctual, ..CALM };
        (510..60_000)
            .step_by(500)
            .find(|now| machine.step(*now, silent) == Some(ProcessAction::Kill(RestartReason::Hung)))
    }

    #[test]
    fn a_starved_process_is_never_killed_and_a_stopped_one_is_however_late_we_are() {
        assert_eq!(killed_after(Effort::Starved, true), None);
        assert_eq!(killed_after(Effort::Starved, false), None);
        assert_eq!(killed_after(Effort::Idle, false), None);
        for (effort, punctual) in [(Effort::Idle, true), (Effort::Stopped, true), (Effort::Stopped, false)] {
            assert_eq!(killed_after(effort, punctual), Some(1010), "{effort:?}");
        }
    }

    #[test]
    fn a_process_that_turns_in_a_circle_is_killed_after_five_seconds() {
        assert_eq!(killed_after(Effort::Busy, true), Some(5010));
    }

    #[test]
    fn one_silence_changes_nothing_and_three_seconds_of_it_are_reported() {
        let mut machine = serving();
        let silent = ProcessSeen { console: ConsoleSeen::Silent, effort: Effort::Starved, ..CALM };
        machine.step(510, silent);
        assert_eq!(machine.status(1400), SlotStatus::Serving);
        machine.step(1500, CALM);
        for now in [2000, 2500, 3000, 3500, 4000] {
            machine.step(now, silent);
            assert_eq!(machine.status(now), SlotStatus::Serving, "{now}");
        }
        assert_eq!(machine.status(4500), SlotStatus::NotAnswering);
        machine.step(4600, CALM);
        assert_eq!(machine.status(4600), SlotStatus::Serving);
    }

    #[test]
    fn a_process_that_is_starved_while_it_starts_is_waited_for() {
        let mut machine = Machine::default();
        machine.step(0, ProcessSeen { running: false, ..CALM });
        let starved = ProcessSeen { console: ConsoleSeen::Silent, effort: Effort::Starved, ..CALM };
        assert_eq!(machine.step(START_DEADLINE + 1, starved), None);
        let idle = ProcessSeen { effort: Effort::Idle, ..starved };
        assert_eq!(machine.step(START_DEADLINE + 2, idle), Some(ProcessAction::Kill(RestartReason::NeverAnswered)));
    }

    proptest! {
        #[test]
        fn a_healthy_world_always_ends_in_serving(
            seen in prop::collection::vec((any::<bool>(), any::<bool>(), 0..3u8, any::<bool>(), 0..4u8, 1..2000u64), 0..200),
        ) {
            let mut machine = Machine::default();
            let mut now = 0;
            let mut running = false;
            for (startable, dies, console, punctual, effort, pause) in seen {
                let effort = [Effort::Idle, Effort::Stopped, Effort::Busy, Effort::Starved][usize::from(effort)];
                now += pause;
                let console = [ConsoleSeen::NotAsked, ConsoleSeen::Answered, ConsoleSeen::Silent][usize::from(console)];
                running = running && !dies;
                match machine.step(now, ProcessSeen { startable, running, console, punctual, effort }) {
                    Some(ProcessAction::Start) => { prop_assert!(!running && startable); running = true; }
                    Some(ProcessAction::Kill(_)) => { prop_assert!(running); running = false; }
                    None => {}
                }
            }
            for _ in 0..20 {
                now += LONGEST_PAUSE;
                if let Some(action) = machine.step(now, ProcessSeen { running, ..CALM }) {
                    running = action == ProcessAction::Start;
                }
            }
            prop_assert!(machine.is_serving());
        }
    }
}
