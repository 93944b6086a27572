//! PURE: counters that go on when the pooler's process does not.

use crate::pooler::pgbouncer::tables::Stats;

/// Turns the counters of changing processes into differences.
///
/// PgBouncer counts a transaction in `total_xact_count` when its first packet arrives, before it has a server connection,
/// and its time in `total_xact_time` when it ends (`handle_client_work` in `client.c`). What has finished is what has
/// begun less what waits or runs now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Differences {
    last: Option<Stats>,
    /// Transactions of this process that have finished.
    finished: u64,
}

impl Differences {
    /// A new process begins: its counters start at zero, and all they show was done by it.
    pub fn restarted(&mut self) {
        *self = Self { last: Some(Stats::default()), finished: 0 };
    }

    /// What was added since the last reading, its transactions being those that finished. `in_flight` are the clients
    /// that wait and the connections that are linked. A counter that went down belongs to a new process: its value is the
    /// difference.
    pub fn feed(&mut self, now: Stats, in_flight: u32) -> Stats {
        let last = self.last.replace(now).unwrap_or_default();
        let went_down = now.transactions < last.transactions
            || now.assignments < last.assignments
            || now.transaction_microseconds < last.transaction_microseconds
            || now.wait_microseconds < last.wait_microseconds;
        let base = if went_down { Stats::default() } else { last };
        let before = if went_down { 0 } else { self.finished };
        // both figures are read one after the other: in between transactions begin, and none may count backwards
        self.finished = now.transactions.saturating_sub(in_flight.into()).max(before);
        Stats {
            transactions: self.finished - before,
            transaction_microseconds: now.transaction_microseconds - base.transaction_microseconds,
            wait_microseconds: now.wait_microseconds - base.wait_microseconds,
            assignments: now.assignments - base.assignments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(n: u64) -> Stats {
        Stats { transactions: n, transaction_microseconds: 10 * n, wait_microseconds: n, assignments: n }
    }

    #[test]
    fn sums_go_on_over_a_restart_of_the_pooler() {
        let mut differences = Differences::default();
        let readings = [100, 150, 7, 9].map(stats);
        let total: u64 = readings.into_iter().map(|reading| differences.feed(reading, 0).transactions).sum();
        assert_eq!(total, 150 + 9);
    }

    #[test]
    fn a_restart_that_was_announced_counts_even_when_the_new_counter_is_already_higher() {
        let mut differences = Differences::default();
        differences.feed(stats(5), 0);
        differences.restarted();
        assert_eq!(differences.feed(stats(8), 0), stats(8));
    }

    #[test]
    fn a_transaction_counts_when_it_ends_although_pgbouncer_counts_its_begin() {
        let mut differences = Differences::default();
        // begun in all, waiting or running now, and how many of them have ended since
        for (begun, in_flight, ended) in [(10, 10, 0), (10, 10, 0), (14, 11, 3), (14, 0, 11), (14, 2, 0), (17, 3, 0)] {
            assert_eq!(differences.feed(stats(begun), in_flight).transactions, ended, "{begun} {in_flight}");
        }
    }
}
