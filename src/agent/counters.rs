//! PURE: counters that go on when the pooler's process does not.

use crate::pooler::pgbouncer::tables::Stats;

/// Turns the counters of changing processes into differences.
#[derive(Clone, Copy, Debug, Default)]
pub struct Differences {
    last: Option<Stats>,
}

impl Differences {
    /// A new process begins: its counters start at zero, and all they show was done by it.
    pub fn restarted(&mut self) {
        self.last = Some(Stats::default());
    }

    /// What was added since the last reading. A counter that went down belongs to a new process: its value is the
    /// difference.
    pub fn feed(&mut self, now: Stats) -> Stats {
        let last = self.last.replace(now).unwrap_or_default();
        let went_down = now.transactions < last.transactions
            || now.assignments < last.assignments
            || now.transaction_microseconds < last.transaction_microseconds
            || now.wait_microseconds < last.wait_microseconds;
        let base = if went_down { Stats::default() } else { last };
        Stats {
            transactions: now.transactions - base.transactions,
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
        let total: u64 = readings.into_iter().map(|reading| differences.feed(reading).transactions).sum();
        assert_eq!(total, 150 + 9);
    }

    #[test]
    fn a_restart_that_was_announced_counts_even_when_the_new_counter_is_already_higher() {
        let mut differences = Differences::default();
        differences.feed(stats(5));
        differences.restarted();
        assert_eq!(differences.feed(stats(8)), stats(8));
    }
}
