//! Whether the pooler's console lives, and what keeps it when it does not answer.

use std::time::Instant;

use super::{Agent, LATE, PING};
use crate::agent::{
    machine::{ConsoleSeen, Millis},
    slot::CONSOLE_DEADLINE,
    vitals::{Effort, Vitals},
};

impl Agent {
    /// Asks the console whether it lives: often while a process starts, else every half second.
    pub(super) async fn ask_console(&mut self, now: Millis) -> ConsoleSeen {
        if !self.machine.is_starting() && (!self.machine.is_serving() || now < self.next.ping) {
            return ConsoleSeen::NotAsked;
        }
        self.next.ping = now + PING;
        let asked = Instant::now();
        let answer = self.slot.console.run("SHOW VERSION").await;
        self.heard = if answer.is_ok() { ConsoleSeen::Answered } else { ConsoleSeen::Silent };
        match answer {
            Ok(_) => {
                let vitals = self.slot.vitals();
                self.answered = vitals.map(|vitals| (self.now(), vitals));
                ConsoleSeen::Answered
            }
            // the question may have been as late as we are
            Err(_) if asked.elapsed() > CONSOLE_DEADLINE + LATE => ConsoleSeen::NotAsked,
            Err(error) => {
                let now = self.now();
                if self.machine.is_serving() {
                    self.problems.reading.may_pass(now, error.to_string());
                }
                ConsoleSeen::Silent
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
