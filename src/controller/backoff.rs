//! Something that failed, and when it may be tried again: every pause is longer than the one before, up to a bound.

use std::time::Duration;

use tokio::time::Instant;

use super::apply::writer::WriteError;
use crate::decide::plan::FailedWrite;

/// First pause after a failure; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a write that was refused.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Longest pause after a write that was not answered: an API server comes back for all at once.
const LONGEST_UNANSWERED_PAUSE: Duration = Duration::from_secs(30);

/// The pause after the `times`-th failure in a row: `first` after the first one, double each time, `longest` at most.
pub fn pause_after(times: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.saturating_sub(1).min(10)).min(longest)
}

/// What failed, and when it may be tried again: by a clock that nobody can set back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// How often in a row.
    pub times: u32,
    /// Not before this.
    pub at: Instant,
    /// What failed.
    pub error: String,
}

impl Backoff {
    /// After one more failure. The pause doubles each time, up to `longest`.
    pub fn after(before: Option<&Self>, error: String, longest: Duration, now: Instant) -> Self {
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        Self { times, at: now + pause_after(times, FIRST_PAUSE, longest), error }
    }

    /// After a write that failed once more.
    pub fn after_write(before: Option<&Self>, error: &WriteError, now: Instant) -> Self {
        let longest = if error.is_doubtful() { LONGEST_UNANSWERED_PAUSE } else { LONGEST_PAUSE };
        Self::after(before, error.to_string(), longest, now)
    }

    /// Whether it is time to try again.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.at
    }

    /// As plans know it.
    pub fn seen(&self, now: Instant) -> FailedWrite {
        FailedWrite { times: self.times, is_due: self.is_due(now), error: self.error.clone() }
    }
}

/// Remembers how a write ended: a failure, until a success. Who was overtaken has neither failed nor succeeded.
pub fn note(backoff: &mut Option<Backoff>, error: Option<&WriteError>) {
    match error {
        None => *backoff = None,
        Some(error) if error.is_told() => {
            *backoff = Some(Backoff::after_write(backoff.as_ref(), error, Instant::now()));
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let now = Instant::now();
        let (mut backoff, mut pauses) = (None, Vec::new());
        for _ in 0..7 {
            let next = Backoff::after(backoff.as_ref(), "no answer".to_owned(), Duration::from_secs(30), now);
            pauses.push((next.at - now).as_secs());
            backoff = Some(next);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        let seen = backoff.expect("it failed").seen(now + Duration::from_secs(30));
        assert_eq!((seen.times, seen.is_due), (7, true));
    }
}
