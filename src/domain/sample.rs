//! What was read from the poolers at one instant.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One reading of a pool, all its pods together: gauges as they stood, counters since the start of the pooler.
///
/// Counters may restart from zero (a pooler that restarted); the next difference is then the new value. Readings of
/// several pods are merged with [`Fleet`](super::Fleet), never by adding counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When the poolers were read, in seconds on any clock that does not jump.
    pub at_seconds: f64,
    /// Clients that wait for a server connection (`cl_waiting`).
    pub waiting: f64,
    /// Server connections linked to a client (`sv_active`), leaked ones included.
    pub active: f64,
    /// Of the active ones: held past the leak threshold by clients that do nothing. 0 where it cannot be seen.
    pub leaked: f64,
    /// Counter: transactions that got a server connection and have ended.
    pub transactions: f64,
    /// Counter: transactions that were given up before they got one. 0 where it is not known.
    pub abandoned: f64,
    /// Counter: seconds that server connections worked for transactions, without the waits that `total_xact_time` holds.
    pub busy_seconds: f64,
    /// Counter: seconds that clients waited for a server connection (`total_wait_time`).
    pub wait_seconds: f64,
    /// Counter: server connections assigned to clients (`total_server_assignment_count`; `total_xact_count` where a
    /// pooler lacks it).
    pub assignments: f64,
}

/// Why a sample says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum SampleError {
    /// NaN or an infinity.
    #[error("{signal} is {value}, which is not a finite number")]
    NotFinite {
        /// Field of [`Sample`].
        signal: &'static str,
        /// What it held.
        value: f64,
    },
    /// Below zero: none of these figures can be.
    #[error("{signal} is {value}, and cannot be negative")]
    Negative {
        /// Field of [`Sample`].
        signal: &'static str,
        /// What it held.
        value: f64,
    },
}

impl Sample {
    /// Server connections that work for a client: the active ones without the leaked ones.
    pub fn busy(&self) -> f64 {
        (self.active - self.leaked).max(0.0)
    }

    /// Refuses figures that cannot be.
    ///
    /// # Errors
    /// [`SampleError`] names the first figure that is not finite, or negative.
    pub fn check(&self) -> Result<(), SampleError> {
        let signals = [
            ("waiting", self.waiting),
            ("active", self.active),
            ("leaked", self.leaked),
            ("transactions", self.transactions),
            ("abandoned", self.abandoned),
            ("busy_seconds", self.busy_seconds),
            ("wait_seconds", self.wait_seconds),
            ("assignments", self.assignments),
        ];
        if !self.at_seconds.is_finite() {
            return Err(SampleError::NotFinite { signal: "at_seconds", value: self.at_seconds });
        }
        for (signal, value) in signals {
            if !value.is_finite() {
                return Err(SampleError::NotFinite { signal, value });
            }
            if value < 0.0 {
                return Err(SampleError::Negative { signal, value });
            }
        }
        Ok(())
    }

    /// True when connections are busy but not one figure moved since `earlier`: a reading that the poolers repeat, or
    /// transactions that last longer than the readings are apart. Neither says what the load is.
    pub(crate) fn repeats(&self, earlier: &Self) -> bool {
        let still = Self { at_seconds: earlier.at_seconds, ..*self } == *earlier;
        still && self.busy() > 0.0 && self.waiting == 0.0
    }

    /// True when a counter is below what it was: the pooler restarted.
    pub(crate) fn restarted_since(&self, earlier: &Self) -> bool {
        // seconds are sums of floats on their way through a text format: the last digit may wobble
        const WOBBLE_SECONDS: f64 = 1e-6;
        self.transactions < earlier.transactions
            || self.abandoned < earlier.abandoned
            || self.assignments < earlier.assignments
            || self.busy_seconds < earlier.busy_seconds - WOBBLE_SECONDS
            || self.wait_seconds < earlier.wait_seconds - WOBBLE_SECONDS
    }
}
