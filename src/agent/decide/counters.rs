//! PURE: counters that go on when the pooler's process does not.

use std::{collections::BTreeSet, ops::Add};

use crate::{
    agent::decide::busy::Busy,
    pooler::pgbouncer::tables::{Snapshot, Stats},
};

/// What was done since the last reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Transactions that got a server connection and have ended.
    pub transactions: u64,
    /// Transactions whose client went, or was sent away, before it got a server connection.
    pub abandoned: u64,
    /// Time that server connections worked for transactions, microseconds.
    pub busy_microseconds: u64,
    /// PgBouncer's own time of the transactions that have ended, from the client's first message on, microseconds.
    pub transaction_microseconds: u64,
    /// Time that clients waited for a server connection, microseconds.
    pub wait_microseconds: u64,
    /// Server connections given to clients.
    pub assignments: u64,
}

impl Add for Added {
    type Output = Self;

    /// What two processes have done.
    fn add(self, other: Self) -> Self {
        Self {
            transactions: self.transactions + other.transactions,
            abandoned: self.abandoned + other.abandoned,
            busy_microseconds: self.busy_microseconds + other.busy_microseconds,
            transaction_microseconds: self.transaction_microseconds + other.transaction_microseconds,
            wait_microseconds: self.wait_microseconds + other.wait_microseconds,
            assignments: self.assignments + other.assignments,
        }
    }
}

/// Turns the counters of changing processes into differences.
///
/// PgBouncer counts a transaction in `total_xact_count` when its first packet arrives, before it has a server connection.
/// What has got one less what is linked has ended; what has begun, got none and does not wait was given up.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    last: Option<Stats>,
    /// Transactions of this process that have ended, and those that were given up.
    ended: u64,
    abandoned: u64,
    busy: Busy,
}

impl Differences {
    /// Of a process that begins at time zero.
    pub fn since_its_start() -> Self {
        let mut differences = Self::default();
        differences.restarted(0);
        differences
    }

    /// A new process begins: its counters start at zero, and all they show was done by it.
    pub fn restarted(&mut self, at_microseconds: u64) {
        (self.last, self.ended, self.abandoned) = (Some(Stats::default()), 0, 0);
        self.busy.restarted(at_microseconds);
    }

    /// What was done since the last reading; for the first one of a process that we did not see begin, what it has done.
    /// A counter that went down belongs to a new process: its value is the difference. `leaked` are the connections that
    /// clients hold and do nothing with.
    pub fn feed(&mut self, at_microseconds: u64, seen: &Snapshot, leaked: &BTreeSet<u64>) -> Added {
        let now = seen.stats;
        let went_down = self.last.is_some_and(|last| {
            now.transactions < last.transactions
                || now.assignments < last.assignments
                || now.transaction_microseconds < last.transaction_microseconds
                || now.wait_microseconds < last.wait_microseconds
        });
        if went_down {
            self.restarted(at_microseconds);
        }
        let last = self.last.replace(now).unwrap_or_default();
        let (ended, abandoned) = (self.ended, self.abandoned);
        let (linked, waiting) = (u64::from(seen.pools.active), u64::from(seen.pools.clients_waiting));
        // the figures may be of two moments: in between transactions begin, and none may count backwards
        let (has_ended, was_abandoned) = if seen.holds_sessions {
            (now.transactions.saturating_sub(linked + waiting), 0)
        } else {
            (now.assignments.saturating_sub(linked), now.transactions.saturating_sub(now.assignments + waiting))
        };
        (self.ended, self.abandoned) = (has_ended.max(ended), was_abandoned.max(abandoned));
        Added {
            transactions: self.ended - ended,
            abandoned: self.abandoned - abandoned,
            busy_microseconds: self.busy.feed(at_microseconds, seen, leaked),
            transaction_microseconds: now.transaction_microseconds - last.transaction_microseconds,
            wait_microseconds: now.wait_microseconds - last.wait_microseconds,
            assignments: now.assignments - last.assignments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pooler::pgbouncer::tables::Pools;

    /// `begun`, of which `assigned` got a connection; `linked` have one now and `waiting` want one.
    fn snapshot(begun: u64, assigned: u64, linked: u32, waiting: u32) -> Snapshot {
        Snapshot {
            pools: Pools { active: linked, clients_waiting: waiting, ..Pools::default() },
            stats: Stats {
                transactions: begun,
                transaction_microseconds: 10 * begun,
                wait_microseconds: begun,
                assignments: assigned,
            },
            ..Snapshot::default()
        }
    }

    fn feed(differences: &mut Differences, seen: &Snapshot) -> Added {
        differences.feed(0, seen, &BTreeSet::new())
    }

    #[test]
    fn sums_go_on_over_a_restart_of_the_pooler() {
        let mut differences = Differences::default();
        let readings = [100, 150, 7, 9].map(|n| snapshot(n, n, 0, 0));
        let total: u64 = readings.iter().map(|reading| feed(&mut differences, reading).transactions).sum();
        assert_eq!(total, 150 + 9);
    }

    #[test]
    fn a_restart_that_was_announced_counts_even_when_the_new_counter_is_already_higher() {
        let mut differences = Differences::default();
        feed(&mut differences, &snapshot(5, 5, 0, 0));
        differences.restarted(0);
        let added = feed(&mut differences, &snapshot(8, 8, 0, 0));
        assert_eq!((added.transactions, added.transaction_microseconds, added.assignments), (8, 80, 8));
    }

    #[test]
    fn a_transaction_counts_when_it_ends_although_pgbouncer_counts_its_begin() {
        let mut differences = Differences::default();
        // begun in all, assigned in all, linked and waiting now, and how many have ended since
        for (begun, assigned, linked, waiting, ended) in [
            (10, 3, 3, 7, 0),
            (10, 3, 3, 7, 0),
            (14, 6, 3, 8, 3),
            (14, 14, 0, 0, 11),
            (14, 14, 2, 0, 0),
            (17, 17, 3, 0, 0),
        ] {
            let added = feed(&mut differences, &snapshot(begun, assigned, linked, waiting));
            assert_eq!((added.transactions, added.abandoned), (ended, 0), "{begun} {assigned} {linked} {waiting}");
        }
    }

    #[test]
    fn a_client_that_goes_before_it_got_a_connection_is_no_transaction_that_ended() {
        let mut differences = Differences::default();
        feed(&mut differences, &snapshot(10, 3, 3, 7));
        let added = feed(&mut differences, &snapshot(12, 5, 3, 2));
        assert_eq!((added.transactions, added.abandoned), (2, 5));
        assert_eq!(feed(&mut differences, &snapshot(12, 7, 0, 0)).abandoned, 0);
    }
}
