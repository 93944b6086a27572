//! In a failover writes fail at once and clients try again: the load says nothing about what a primary will be asked.

use super::Limit;
use crate::domain::{Automation, Reason};

/// Holds `target` while the database takes no writes.
pub fn check(automation: Automation, target: u32) -> Option<Limit> {
    (automation == Automation::UpstreamReadOnly).then(|| Limit {
        size: target,
        reason: Reason::UpstreamReadOnly,
        message: format!("the database takes no writes: holding {target}"),
    })
}
