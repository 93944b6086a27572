//! PURE: when something that failed is tried again.

use crate::agent::decide::machine::Millis;

/// First pause.
const FIRST_PAUSE: Millis = 500;
/// Longest pause.
const LONGEST_PAUSE: Millis = 30_000;

/// Twice as long a pause after each failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    failed: Option<Failed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed {
    due: Millis,
    pause: Millis,
}

impl Retry {
    /// It failed at `now`.
    pub fn failed(&mut self, now: Millis) {
        let pause = self.failed.map_or(FIRST_PAUSE, |failed| (2 * failed.pause).min(LONGEST_PAUSE));
        self.failed = Some(Failed { due: now.saturating_add(pause), pause });
    }

    /// It worked, or is not wanted any more.
    pub fn settled(&mut self) {
        self.failed = None;
    }

    /// Whether it failed and the pause is over.
    pub fn is_due(&self, now: Millis) -> bool {
        self.failed.is_some_and(|failed| now >= failed.due)
    }

    /// Whether it failed and the pause is not over.
    pub fn is_pausing(&self, now: Millis) -> bool {
        self.failed.is_some_and(|failed| now < failed.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_failing_is_tried_ever_more_seldom_and_for_ever() {
        let mut retry = Retry::default();
        assert!(!retry.is_due(0) && !retry.is_pausing(0));
        let mut tries = Vec::new();
        retry.failed(0);
        for now in (0..300_000).step_by(50) {
            if retry.is_due(now) {
                tries.push(now);
                retry.failed(now);
            }
        }
        assert_eq!(tries[..4], [500, 1500, 3500, 7500]);
        assert!(tries.windows(2).all(|pair| pair[1] - pair[0] <= LONGEST_PAUSE));
        assert!((10..20).contains(&tries.len()), "{tries:?}");
        retry.settled();
        assert!(!retry.is_due(Millis::MAX));
    }
}
