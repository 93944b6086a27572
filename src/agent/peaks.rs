//! PURE: the largest value of the last seconds.

use std::collections::VecDeque;

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
