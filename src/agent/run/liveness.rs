//! Whether the process that new clients come to lives, and what keeps its console when it does not answer: the shell around
//! [`crate::agent::decide::machine`].

use std::time::{Duration, Instant};

use super::{LATE, PING, Reporting, Sidecar};
use crate::{
    agent::{
        apply::slot::{CONSOLE_DEADLINE, Slot},
        decide::{
            machine::{self, ConsoleSeen, Machine, Millis, ProcessAction, ProcessSeen, RestartReason},
            vitals::{Effort, Vitals},
        },
    },
    contract::{SlotStatus, names},
};

/// So many faults without a calm time between are told.
const FAULTS_TOLD: u32 = 3;

/// Whether the process that new clients come to lives.
pub(super) struct Liveness {
    /// What becomes of it.
    machine: Machine,
    /// What it had done when its console answered last, and when that was.
    answered: Option<(Millis, Vitals)>,
    started_at: Millis,
    /// What the console said when it was asked last.
    heard: ConsoleSeen,
    next_ping: Millis,
}

impl Liveness {
    /// Begins with a process that was taken up, or with none.
    pub(super) fn new(taken_up: bool) -> Self {
        Self {
            machine: if taken_up { Machine::taken_up(0) } else { Machine::default() },
            answered: None,
            started_at: 0,
            heard: ConsoleSeen::NotAsked,
            next_ping: 0,
        }
    }

    /// Looks at the process: whether it runs, and what its console says.
    pub(super) async fn observe(
        &mut self,
        sidecar: &Sidecar,
        active: &mut Slot,
        report: &mut Reporting,
        startable: bool,
        punctual: bool,
        now: Millis,
    ) -> ProcessSeen {
        let (console, in_time) = self.ask(sidecar, active, report, now).await;
        ProcessSeen {
            startable,
            running: active.is_running(),
            console,
            punctual: punctual && in_time,
            effort: self.effort(sidecar, active, console),
        }
    }

    /// Asks the console whether it lives: often while a process starts, else every half second. After a silence it is
    /// asked once more at once, with what is left of the time until it counts as hung.
    /// Answers too whether we ourselves were on time: a question that we heard nothing of for longer than its deadline may
    /// have been as late as we are.
    async fn ask(
        &mut self,
        sidecar: &Sidecar,
        active: &mut Slot,
        report: &mut Reporting,
        now: Millis,
    ) -> (ConsoleSeen, bool) {
        if !self.machine.is_starting() && (!self.machine.is_serving() || now < self.next_ping) {
            return (ConsoleSeen::NotAsked, true);
        }
        self.next_ping = now + PING;
        let left = self.machine.until_hung(now).filter(|left| *left > 0 && self.heard == ConsoleSeen::Silent);
        let deadline = left.map_or(CONSOLE_DEADLINE, |left| Duration::from_millis(left).min(CONSOLE_DEADLINE));
        let asked = Instant::now();
        let answer = active.console.run_within("SHOW VERSION", deadline).await;
        self.heard = if answer.is_ok() { ConsoleSeen::Answered } else { ConsoleSeen::Silent };
        match answer {
            Ok(_) => {
                let vitals = active.vitals();
                self.answered = vitals.map(|vitals| (sidecar.now(), vitals));
                (ConsoleSeen::Answered, true)
            }
            Err(error) => {
                let now = sidecar.now();
                if self.machine.until_hung(now).is_some_and(|left| left > 0) {
                    self.next_ping = now;
                }
                if self.machine.is_serving() {
                    report.problems.reading.may_pass(now, error.to_string());
                }
                (ConsoleSeen::Silent, asked.elapsed() <= deadline + LATE)
            }
        }
    }

    /// What kept the process from answering.
    fn effort(&self, sidecar: &Sidecar, active: &Slot, console: ConsoleSeen) -> Effort {
        if console != ConsoleSeen::Silent {
            return Effort::Idle;
        }
        let Some(vitals) = active.vitals() else { return Effort::Idle };
        // a process that has never answered has done all that it did since its start
        let nothing = Vitals { ran_nanoseconds: 0, waited_nanoseconds: 0, ..vitals };
        let (at, before) = self.answered.unwrap_or((self.started_at, nothing));
        vitals.effort_since(&before, sidecar.now().saturating_sub(at))
    }

    /// What is to be done about it.
    pub(super) fn step(&mut self, now: Millis, seen: ProcessSeen) -> Option<ProcessAction> {
        self.machine.step(now, seen)
    }

    /// A process is about to be started, at this time.
    pub(super) fn starts(&mut self, now: Millis) {
        (self.started_at, self.answered) = (now, None);
    }

    /// It could not be.
    pub(super) fn start_failed(&mut self, now: Millis) {
        self.machine.start_failed(now);
    }

    /// Why the start that is asked for is a restart; None for the first one.
    pub(super) fn take_restart_reason(&mut self) -> Option<RestartReason> {
        self.machine.take_restart_reason()
    }

    /// New clients come to another process, which answers.
    pub(super) fn is_of_another(&mut self, now: Millis) {
        self.machine = Machine::serving(now);
        (self.started_at, self.answered, self.heard) = (now, None, ConsoleSeen::Answered);
    }

    /// Whether the process has answered since its start, so that its limits may be changed.
    pub(super) fn is_serving(&self) -> bool {
        self.machine.is_serving()
    }

    /// Whether its console answered when it was asked last, too. One that is silent is asked for its version alone, or it would take
    /// seconds to see that it hangs.
    pub(super) fn is_answering(&self) -> bool {
        self.is_serving() && self.heard == ConsoleSeen::Answered
    }

    /// Whether processes have not stayed up lately.
    pub(super) fn is_faulty(&self) -> bool {
        self.machine.faults() >= FAULTS_TOLD
    }

    /// What to report.
    pub(super) fn status(&self, now: Millis) -> SlotStatus {
        self.machine.status(now)
    }

    /// A process that was started again once or twice is counted; one that does not stay up is told of until it does.
    pub(super) fn tell_faults(&self, report: &mut Reporting) {
        if !self.is_faulty() {
            return report.problems.process.is_over();
        }
        report.problems.process.is(format!(
            "PgBouncer does not stay up: it ended or hung {} times with less than {} s between; its log is that of the container {}",
            self.machine.faults(),
            machine::FORGIVEN_AFTER / 1000,
            names::SIDECAR_CONTAINER
        ));
    }
}
