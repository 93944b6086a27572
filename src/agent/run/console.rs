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
        if !self.machine.is_starting() && (!self.machine.is_serving() || now < self.next.ping) {
            return (ConsoleSeen::NotAsked, true);
        }
        self.next.ping = now + PING;
        let left = self.machine.until_hung(now).filter(|left| *left > 0 && self.heard == ConsoleSeen::Silent);
        let deadline = left.map_or(CONSOLE_DEADLINE, |left| Duration::from_millis(left).min(CONSOLE_DEADLINE));
        let asked = Instant::now();
        let answer = self.slot.console.run_within("SHOW VERSION", deadline).await;
        self.heard = if answer.is_ok() { ConsoleSeen::Answered } else { ConsoleSeen::Silent };
        match answer {
            Ok(_) => {
                let vitals = self.slot.vitals();
                self.answered = vitals.map(|vitals| (self.now(), vitals));
                (ConsoleSeen::Answered, true)
            }
            Err(error) => {
                let now = self.now();
                if self.machine.until_hung(now).is_some_and(|left| left > 0) {
                    self.next.ping = now;
                }
                if self.machine.is_serving() {
                    self.problems.reading.may_pass(now, error.to_string());
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
        let Some(vitals) = self.slot.vitals() else { return Effort::Idle };
        // a process that has never answered has done all that it did since its start
        let nothing = Vitals { ran_nanoseconds: 0, waited_nanoseconds: 0, ..vitals };
        let (at, before) = self.answered.unwrap_or((self.started_at, nothing));
        vitals.effort_since(&before, self.now().saturating_sub(at))
    }
}
