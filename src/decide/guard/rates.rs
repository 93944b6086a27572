//! Windows and policies of `behavior`, as a guard. The rules are [`behavior`](crate::decide::behavior)'s.

use super::Limit;
use crate::{
    contract::Behavior,
    decide::behavior::{BehaviorState, DesiredSize, LimitedBy, LimitedSize},
    domain::{Bounds, Reason},
};

/// Applies windows, policies and bounds to a wish and records it as a recommendation.
pub fn check(state: &mut BehaviorState, behavior: &Behavior, wanted: &DesiredSize, bounds: &Bounds) -> Option<Limit> {
    let LimitedSize { size, limited_by, .. } = state.limit(behavior, wanted);
    let (wish, current) = (wanted.desired, wanted.current);
    let (reason, message) = match limited_by? {
        LimitedBy::ScaleUpStabilized => (
            Reason::ScaleUpStabilized,
            format!(
                "the lowest recommendation of the last {} s counts: {size} instead of {wish}",
                behavior.scale_up.stabilization_window_seconds
            ),
        ),
        LimitedBy::ScaleDownStabilized => (
            Reason::ScaleDownStabilized,
            format!(
                "the highest recommendation of the last {} s counts: {size} instead of {wish}",
                behavior.scale_down.stabilization_window_seconds
            ),
        ),
        LimitedBy::ScaleUpLimit => {
            (Reason::ScaleUpLimit, format!("behavior.scaleUp allows {size} from {current} now: {wish} wanted"))
        }
        LimitedBy::ScaleDownLimit => {
            (Reason::ScaleDownLimit, format!("behavior.scaleDown allows {size} from {current} now: {wish} wanted"))
        }
        LimitedBy::TooFew => (Reason::MinSize, format!("at least {size}: the load asks for {wish}")),
        LimitedBy::TooMany if bounds.share.is_some_and(|share| share < bounds.max) => {
            (Reason::Share, format!("the share granted is {size}: the load asks for {wish}"))
        }
        LimitedBy::TooMany => (Reason::MaxSize, format!("at most {size}: the load asks for {wish}")),
    };
    Some(Limit { size, reason, message })
}
