//! On ignorance the size is held: absent is never zero.

use super::Limit;
use crate::domain::{Reason, SampleError};

/// What became of the samples of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SignalState {
    /// At least one is new.
    Fresh,
    /// None was given.
    Absent,
    /// The newest was known already.
    Stale {
        /// Seconds since it was read.
        age_seconds: f64,
    },
    /// Connections are busy, nobody waits, and no figure moved: the poolers repeat an old reading, or transactions last
    /// longer than this.
    Still {
        /// Seconds without a change.
        seconds: f64,
    },
    /// The only new ones cannot be.
    Invalid(SampleError),
}

/// Holds `target` unless a sample is fresh.
pub fn check(signal: SignalState, target: u32) -> Option<Limit> {
    let (reason, message) = match signal {
        SignalState::Fresh => return None,
        SignalState::Absent => (Reason::NoData, format!("no sample since the last decision: holding {target}")),
        SignalState::Stale { age_seconds } => (
            Reason::NoData,
            format!("the newest sample is {age_seconds:.0} s old and was decided on already: holding {target}"),
        ),
        SignalState::Still { seconds } => (
            Reason::NoData,
            format!("no figure moved in {seconds:.0} s although server connections are busy: holding {target}"),
        ),
        SignalState::Invalid(error) => (Reason::InvalidData, format!("{error}: holding {target}")),
    };
    Some(Limit { size: target, reason, message })
}
