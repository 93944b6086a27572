//! PURE: whether the database is reached, from what PgBouncer logs of its attempts to connect.
//!
//! PgBouncer has no gauge for it: a database that is away shows in attempts that fail one after the other. One that fails says
//! nothing, and attempts are made only while somebody needs a connection. Times are milliseconds on a clock that does not jump.

use crate::agent::decide::machine::Millis;

/// Attempts that have failed for so long, none succeeding between, are told.
pub const LASTING: Millis = 3000;
/// After so long without an attempt nothing is known any more; PgBouncer makes one every few seconds while clients wait.
pub const FRESH: Millis = 15_000;

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The connection was refused, broken, or never made.
    NoAnswer,
    /// The name does not resolve.
    NoAddress,
    /// Somebody answers and lets nobody in yet, or any more.
    NotReady,
}

/// Attempts since the last one that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failing {
    first: Millis,
    last: Millis,
    why: Obstacle,
}

/// What is known of the way to the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    failing: Option<Failing>,
}

impl Reachability {
    /// An attempt failed.
    pub fn failed(&mut self, now: Millis, why: Obstacle) {
        let before = self.failing.filter(|failing| now.saturating_sub(failing.last) <= FRESH);
        self.failing = Some(Failing { first: before.map_or(now, |failing| failing.first), last: now, why });
    }

    /// One succeeded.
    pub fn succeeded(&mut self) {
        self.failing = None;
    }

    /// Why it is not reached; None while that is not known for certain.
    pub fn trouble(&self, now: Millis) -> Option<Obstacle> {
        let failing = self.failing?;
        let lasts = failing.last.saturating_sub(failing.first) >= LASTING;
        (lasts && now.saturating_sub(failing.last) <= FRESH).then_some(failing.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_fail_one_after_the_other_are_told_until_one_succeeds() {
        let mut reach = Reachability::default();
        for now in [1000, 2500] {
            reach.failed(now, Obstacle::NoAnswer);
            assert_eq!(reach.trouble(now), None);
        }
        reach.failed(4000, Obstacle::NoAddress);
        assert_eq!(reach.trouble(4500), Some(Obstacle::NoAddress));
        reach.succeeded();
        assert_eq!(reach.trouble(4600), None);
        reach.failed(4700, Obstacle::NoAnswer);
        assert_eq!(reach.trouble(9000), None, "one says nothing");
    }

    #[test]
    fn without_attempts_nothing_is_known() {
        let mut reach = Reachability::default();
        for now in [1000, 5000] {
            reach.failed(now, Obstacle::NoAnswer);
        }
        assert_eq!(reach.trouble(5000 + FRESH), Some(Obstacle::NoAnswer));
        assert_eq!(reach.trouble(5001 + FRESH), None);
        reach.failed(40_000, Obstacle::NoAnswer);
        assert_eq!(reach.trouble(40_000), None, "those of long ago do not count");
    }
}
