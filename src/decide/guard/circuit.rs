//! A database that is away is asked for nothing: the load says what clients do without it.

use super::Limit;
use crate::domain::{Automation, Reason};

/// Holds `target` while the circuit breakers of the pods are not closed.
pub fn check(automation: Automation, target: u32) -> Option<Limit> {
    (automation == Automation::CircuitOpen).then(|| Limit {
        size: target,
        reason: Reason::CircuitOpen,
        message: format!("the database is away: holding {target}"),
    })
}
