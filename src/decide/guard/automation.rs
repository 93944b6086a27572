//! `spec.paused` and `mode: Recommend`: everything is computed and told, nothing changes.

use super::Limit;
use crate::domain::{Automation, Reason};

/// Holds `current`, whatever is wanted.
pub fn check(automation: Automation, wish: u32, current: u32) -> Option<Limit> {
    let (reason, why) = match automation {
        Automation::Apply | Automation::UpstreamReadOnly | Automation::CircuitOpen => return None,
        Automation::Recommend => (Reason::RecommendOnly, "mode is Recommend"),
        Automation::Paused => (Reason::Paused, "paused"),
    };
    let message = if wish == current {
        format!("{why}: {current} stays, which is what is recommended")
    } else {
        format!("{why}: {current} stays, {wish} is recommended")
    };
    Some(Limit { size: current, reason, message })
}
