//! Whether the pooler's console lives, and what keeps it when it does not answer.

use std::time::{Duration, Instant};

use super::{Agent, LATE, PING};
use crate::agent::{
    apply::slot::CONSOLE_DEADLINE,
    decide::{
        machine::{ConsoleSeen, Millis},
        vitals::{Effort, Vitals},
    },
};

impl Agent {
    /// Asks the console whether it lives: often while a process starts, else every half second. After a silence it is
    /// asked once more at once, with what is left of the time until it counts as hung.
    /// Answers too whether we ourselves were on time: a question that we heard nothing of for longer than its deadline may
    /// have been as late as we are.
    pub(super) async fn ask_console(&mut self, now: Millis) -> (ConsoleSeen, bool) {
        if !self.liveness.machine.is_starting()
            && (!self.liveness.machine.is_serving() || now < self.liveness.next_ping)
        {
            return (ConsoleSeen::NotAsked, true);
        }
        self.liveness.next_ping = now + PING;
        let left = self
            .liveness
            .machine
            .until_hung(now)
            .filter(|left| *left > 0 && self.liveness.heard == ConsoleSeen::Silent);
        let deadline = left.map_or(CONSOLE_DEADLINE, |left| Duration::from_millis(left).min(CONSOLE_DEADLINE));
        let asked = Instant::now();
        let answer = self.slots.active.console.run_within("SHOW VERSION", deadline).await;
        self.liveness.heard = if answer.is_ok() { ConsoleSeen::Answered } else { ConsoleSeen::Silent };
        match answer {
            Ok(_) => {
                let vitals = self.slots.active.vitals();
                self.liveness.answered = vitals.map(|vitals| (self.now(), vitals));
                (ConsoleSeen::Answered, true)
            }
            Err(error) => {
                let now = self.now();
                if self.liveness.machine.until_hung(now).is_some_and(|left| left > 0) {
                    self.liveness.next_ping = now;
                }
                if self.liveness.machine.is_serving() {
                    self.report.problems.reading.may_pass(now, error.to_string());
                }
                (ConsoleSeen::Silent, asked.elapsed() <= deadline + LATE)
            }
        }
    }

    /// What kept the process from answering.
    pub(super) fn effort(&self, console: ConsoleSeen) -> Effort {
        if console != ConsoleSeen::Silent {
            return Effort::Idle;
        }
        let Some(vitals) = self.slots.active.vitals() else { return Effort::Idle };
        // a process that has never answered has done all that it did since its start
        let nothing = Vitals { ran_nanoseconds: 0, waited_nanoseconds: 0, ..vitals };
        let (at, before) = self.liveness.answered.unwrap_or((self.liveness.started_at, nothing));
        vitals.effort_since(&before, self.now().saturating_sub(at))
    }
}
