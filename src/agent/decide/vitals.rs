//! PURE: what the kernel tells of a process that does not answer: is it hung, or does it only lack CPU?
//!
//! The figures come from `/proc/PID/stat` and `/proc/PID/schedstat`, once when the console answered and once when it did
//! not. In between, what decides is:
//!
//! | state now | CPU since the answer | verdict |
//! |---|---|---|
//! | stopped or traced | | [`Effort::Stopped`]: it cannot answer, however busy the machine is |
//! | runnable, or waiting for a disk | at least half of the time | [`Effort::Busy`]: it turns in a circle, or has very much to do |
//! | runnable, or waiting for a disk | less | [`Effort::Starved`]: it would answer if it were let |
//! | asleep | it waited for a CPU a fifth of the time or more | [`Effort::Starved`] |
//! | asleep | else | [`Effort::Idle`]: nothing keeps it from answering |
//!
//! Killing a process that is starved makes it worse: its clients log in again, which costs more CPU than anything.

use crate::agent::decide::machine::Millis;

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;
/// `USER_HZ` is 100 on every Linux that we build for.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// What a process does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// By a signal or a debugger.
    Stopped,
    /// On a CPU or waiting for one.
    Runnable,
    /// Waiting for a disk, or for memory to be read from one.
    Uninterruptible,
    /// Waiting for anything else.
    Asleep,
}

/// What the kernel knows of a process at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// What it does.
    pub state: RunState,
    /// CPU time that it has used.
    pub ran_nanoseconds: u64,
    /// Time for which it was runnable and had no CPU; 0 where the kernel does not count it.
    pub waited_nanoseconds: u64,
}

/// What kept the process from answering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Nothing that is known.
    #[default]
    Idle,
    /// It is stopped.
    Stopped,
    /// It has used the CPU all the time.
    Busy,
    /// It wants to run and is not let.
    Starved,
}

impl Vitals {
    /// Reads both files; `schedstat` may be missing. None when `stat` is not what it should be.
    pub fn parse(stat: &str, schedstat: Option<&str>) -> Option<Self> {
        // the name stands in parentheses and may hold any
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let state = match *fields.first()? {
            "T" | "t" => RunState::Stopped,
            "R" => RunState::Runnable,
            "D" => RunState::Uninterruptible,
            _ => RunState::Asleep,
        };
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let mut times = schedstat.unwrap_or_default().split_whitespace().map(str::parse::<u64>);
        let (ran_nanoseconds, waited_nanoseconds) = match (times.next(), times.next()) {
            (Some(Ok(ran)), Some(Ok(waited))) => (ran, waited),
            _ => (ticks.saturating_mul(NANOSECONDS_PER_TICK), 0),
        };
        Some(Self { state, ran_nanoseconds, waited_nanoseconds })
    }

    /// What kept the process from answering in the `elapsed` milliseconds since `before`.
    pub fn effort_since(&self, before: &Self, elapsed: Millis) -> Effort {
        let elapsed = elapsed.saturating_mul(NANOSECONDS_PER_MILLISECOND);
        let ran = self.ran_nanoseconds.saturating_sub(before.ran_nanoseconds);
        let waited = self.waited_nanoseconds.saturating_sub(before.waited_nanoseconds);
        match self.state {
            RunState::Stopped => Effort::Stopped,
            RunState::Runnable | RunState::Uninterruptible if ran >= elapsed / 2 => Effort::Busy,
            RunState::Runnable | RunState::Uninterruptible => Effort::Starved,
            RunState::Asleep if waited > 0 && waited >= elapsed / 5 => Effort::Starved,
            RunState::Asleep => Effort::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (pg) bouncer)) S 1 42 42 0 -1 4194560 900 0 0 0 120 30 0 0 20 0 1 0 5000 9000000 800";

    fn vitals(state: &str, ran: u64, waited: u64) -> Vitals {
        let milliseconds = |n: u64| n * NANOSECONDS_PER_MILLISECOND;
        let stat = STAT.replacen(") S ", &format!(") {state} "), 1);
        let schedstat = format!("{} {} 77\n", milliseconds(ran), milliseconds(waited));
        Vitals::parse(&stat, Some(&schedstat)).expect("vitals")
    }

    #[test]
    fn both_files_are_read_and_the_second_may_be_missing() {
        let only = Vitals { state: RunState::Asleep, ran_nanoseconds: 1_500_000_000, waited_nanoseconds: 0 };
        assert_eq!(Vitals::parse(STAT, None), Some(only));
        assert_eq!(vitals("R", 7, 8).waited_nanoseconds, 8_000_000);
        assert_eq!(Vitals::parse("", None), None);
        assert_eq!(Vitals::parse("42 (pgbouncer", None), None);
    }

    #[test]
    fn what_kept_it_from_answering_is_told_apart() {
        let before = vitals("S", 1000, 500);
        for (now, effort) in [
            (vitals("T", 1000, 500), Effort::Stopped),
            (vitals("t", 1900, 1400), Effort::Stopped),
            (vitals("S", 1001, 500), Effort::Idle),
            (vitals("S", 1300, 510), Effort::Idle),
            (vitals("S", 1050, 900), Effort::Starved),
            (vitals("R", 1003, 500), Effort::Starved),
            (vitals("R", 1990, 505), Effort::Busy),
            (vitals("D", 1001, 500), Effort::Starved),
        ] {
            assert_eq!(now.effort_since(&before, 1000), effort, "{now:?}");
        }
    }

    #[test]
    fn where_the_kernel_counts_nothing_an_idle_process_is_idle() {
        let before = Vitals::parse(STAT, None).expect("vitals");
        assert_eq!(before.effort_since(&before, 0), Effort::Idle);
    }
}
