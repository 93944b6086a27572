//! A database that finishes nothing says nothing about demand. Whether it is away is for the circuit breakers of the pods to say: see
//! [`circuit`](super::circuit).

use super::Limit;
use crate::domain::{Reading, Reason};

/// Holds `target` while nothing finishes although connections are busy and clients wait.
pub fn check(reading: Option<&Reading>, target: u32) -> Option<Limit> {
    let reading = reading.filter(|reading| reading.stalled)?;
    let message = format!(
        "no transaction finished in {:.0} s with {:.0} server connections busy and {:.0} clients waiting: holding {target}",
        reading.dt_seconds, reading.active, reading.waiting
    );
    Some(Limit { size: target, reason: Reason::DatabaseStalled, message })
}
