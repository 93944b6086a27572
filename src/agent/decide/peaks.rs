//! PURE: the largest demand of the last seconds.

use std::collections::VecDeque;

use crate::agent::decide::counters::Added;

/// Service times are averaged over about so many seconds.
const SERVICE_TAU_SECONDS: f64 = 60.0;
/// A queue is to be gone after so many seconds.
const DRAIN_SECONDS: f64 = 1.0;

/// How many connections a moment asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    transactions: f64,
    busy_seconds: f64,
}

impl Moment {
    /// Takes in what was done in `seconds` and answers for those that work and wait now: the connections that work, and those that
    /// serve within a second who waits. That is one for each client only where a transaction takes a second or more.
    pub fn feed(&mut self, seconds: f64, added: &Added, working: u32, waiting: u32) -> f64 {
        let keep = (-seconds / SERVICE_TAU_SECONDS).exp();
        self.transactions = self.transactions * keep + added.transactions as f64;
        self.busy_seconds = self.busy_seconds * keep + added.busy_microseconds as f64 / 1e6;
        // while nothing has ended, nobody knows how long it takes
        let known = self.transactions >= 1.0;
        let service_seconds = if known { self.busy_seconds / self.transactions } else { DRAIN_SECONDS };
        f64::from(working) + f64::from(waiting) * (service_seconds / DRAIN_SECONDS).min(1.0)
    }
}

/// Keeps the maximum over a moving window: only values that can still become the maximum are stored.
#[derive(Clone, Debug)]
pub struct Peak {
    window_milliseconds: u64,
    candidates: VecDeque<(u64, f64)>,
}

impl Peak {
    /// Most values kept; one a second and a window of 30 s need far fewer.
    const CAPACITY: usize = 256;

    /// A peak over the last `window_milliseconds`.
    pub fn new(window_milliseconds: u64) -> Self {
        Self { window_milliseconds, candidates: VecDeque::new() }
    }

    /// Takes in a value and answers the largest of the window.
    pub fn feed(&mut self, now: u64, value: f64) -> f64 {
        while self.candidates.back().is_some_and(|&(_, last)| last <= value) {
            self.candidates.pop_back();
        }
        self.candidates.push_back((now, value));
        let begin = now.saturating_sub(self.window_milliseconds);
        while self.candidates.len() > Self::CAPACITY || self.candidates.front().is_some_and(|&(at, _)| at < begin) {
            self.candidates.pop_front();
        }
        self.candidates.front().map_or(value, |&(_, peak)| peak)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_queue_of_short_transactions_asks_for_what_drains_it_and_not_for_a_connection_each() {
        let (mut short, mut long, mut unknown) = (Moment::default(), Moment::default(), Moment::default());
        let added = |transactions, busy_microseconds| Added { transactions, busy_microseconds, ..Added::default() };
        let about = |demand: f64, expected: f64| assert!((demand - expected).abs() < 0.01, "{demand}");
        about(short.feed(1.0, &added(300, 3_000_000), 3, 400), 7.0);
        about(long.feed(1.0, &added(1, 3_000_000), 3, 400), 403.0);
        about(unknown.feed(1.0, &added(0, 3_000_000), 3, 400), 403.0);
    }

    proptest! {
        #[test]
        fn the_peak_is_the_largest_value_of_the_window(values in prop::collection::vec((1..3000u64, 0..50u8), 1..200)) {
            let mut peak = Peak::new(5000);
            let (mut now, mut all) = (0, Vec::new());
            for (pause, value) in values {
                now += pause;
                all.push((now, f64::from(value)));
                let expected = all.iter().filter(|(at, _)| *at + 5000 >= now).map(|(_, v)| *v).fold(0.0, f64::max);
                prop_assert!((peak.feed(now, f64::from(value)) - expected).abs() < f64::EPSILON);
            }
        }
    }
}
