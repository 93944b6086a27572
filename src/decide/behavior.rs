//! The `behavior` of the `HorizontalPodAutoscaler`, with its semantics, for numbers of server connections.
//!
//! Read in `pkg/controller/podautoscaler/horizontal.go` of Kubernetes 1.34. Two stages, in this order:
//!
//! 1. **Stabilisation.** The wish is recorded. The lowest recommendation of `scaleUp`'s window is as far as the size may
//!    grow to, the highest of `scaleDown`'s window as far as it may shrink to. The first size ever seen counts as a
//!    recommendation, so a fresh start does not shrink at once.
//! 2. **Policies.** Each policy allows the size at the beginning of its period plus or minus its value; the size at the
//!    beginning is the current one less what was added and plus what was removed within the period. `selectPolicy` takes
//!    the largest change (`Max`), the smallest (`Min`) or none (`Disabled`). Percentages round up when growing
//!    and towards fewer connections when shrinking.
//!
//! Two additions of ours: with no policy in the list the rate is not limited, and [`Urgency`] skips a window where waiting
//! would do harm. Neither skips a policy. Like the HPA, a size outside of its bounds is brought back at once.
//!
//! ```
//! use sluice::{contract::Algorithm, decide::behavior::{BehaviorState, DesiredSize, Urgency, default_for}};
//!
//! let behavior = default_for(Algorithm::TargetUtilization); // up: 100 % or 4 in 15 s; down: the highest of 300 s
//! let mut state = BehaviorState::default();
//! let wanted = DesiredSize { now_seconds: 0.0, current: 10, desired: 50, min: 5, max: 100, urgency: Urgency::None };
//! let allowed = state.limit(&behavior, &wanted);
//! assert_eq!(allowed.size, 20);
//! state.scaled(&behavior, 0.0, 10, 20); // when it has been applied
//! ```

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::contract::{Algorithm, Behavior, ScalingPolicy, ScalingPolicyType, ScalingRules, SelectPolicy};

/// The behavior of a pool that does not say: see [`ScalingRules`].
///
/// `Adaptive` holds peaks by itself: no windows, no policies, tolerances of 2 % and 5 %. The others get the HPA's
/// defaults: up at most 100 % or 4 connections in 15 s, down to the highest recommendation of 300 s, tolerance 10 %.
pub fn default_for(algorithm: Algorithm) -> Behavior {
    let policy = |type_, value| ScalingPolicy { type_, value, period_seconds: 15 };
    let rules = |stabilization_window_seconds, policies, tolerance| ScalingRules {
        stabilization_window_seconds,
        select_policy: SelectPolicy::Max,
        policies,
        tolerance,
    };
    match algorithm {
        Algorithm::Adaptive => {
            Behavior { scale_up: rules(0, Vec::new(), 0.02), scale_down: rules(0, Vec::new(), 0.05) }
        }
        Algorithm::TargetUtilization | Algorithm::LoadFactor => Behavior {
            scale_up: rules(
                0,
                vec![policy(ScalingPolicyType::Connections, 4), policy(ScalingPolicyType::Percent, 100)],
                0.1,
            ),
            scale_down: rules(300, vec![policy(ScalingPolicyType::Percent, 100)], 0.1),
        },
    }
}

/// Whether a stabilisation window would do harm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Urgency {
    /// Both windows hold.
    #[default]
    None,
    /// Clients wait now: the window of `scaleUp` is skipped.
    ClientsWait,
    /// The database is saturated: the window of `scaleDown` is skipped.
    DatabaseSaturated,
}

/// One wish to be limited. Sizes are server connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DesiredSize {
    /// The time, in seconds.
    pub now_seconds: f64,
    /// Size asked for last, as the HPA's `spec.replicas`.
    pub current: u32,
    /// The recommendation.
    pub desired: u32,
    /// Lower bound.
    pub min: u32,
    /// Upper bound.
    pub max: u32,
    /// Whether a window is skipped.
    pub urgency: Urgency,
}

/// What limited a wish. The names are those of the HPA's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    /// A recommendation within the window was lower.
    ScaleUpStabilized,
    /// A recommendation within the window was higher.
    ScaleDownStabilized,
    /// The policies of `scaleUp`.
    ScaleUpLimit,
    /// The policies of `scaleDown`.
    ScaleDownLimit,
    /// The lower bound (`TooFewReplicas`).
    TooFew,
    /// The upper bound (`TooManyReplicas`).
    TooMany,
}

/// What is allowed of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitedSize {
    /// The size to set.
    pub size: u32,
    /// After the windows, before policies and bounds.
    pub stabilized: u32,
    /// What limited it last; none when the wish was granted.
    pub limited_by: Option<LimitedBy>,
}

/// One change of the size that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct ScaleEvent {
    at_seconds: f64,
    change: u32,
}

/// Recommendations of which an extreme within a window is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Extremes {
    /// Times and sizes, oldest first. A recommendation that a later one makes irrelevant for every window is dropped.
    entries: VecDeque<(f64, u32)>,
}

impl Extremes {
    fn add(&mut self, at: f64, size: u32, longest_seconds: f64, supersedes: impl Fn(u32, u32) -> bool) {
        while self.entries.back().is_some_and(|&(_, old)| supersedes(size, old)) {
            self.entries.pop_back();
        }
        self.entries.push_back((at, size));
        while self.entries.front().is_some_and(|&(old, _)| old < at - longest_seconds) {
            self.entries.pop_front();
        }
    }

    /// The first within the window is the extreme of it.
    fn within(&self, now: f64, window_seconds: u32) -> Option<u32> {
        let cutoff = now - f64::from(window_seconds);
        self.entries.iter().find(|&&(at, _)| at > cutoff).map(|&(_, size)| size)
    }
}

/// What windows and policies remember: recommendations, and changes that were applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BehaviorState {
    lowest: Extremes,
    highest: Extremes,
    ups: VecDeque<ScaleEvent>,
    downs: VecDeque<ScaleEvent>,
}

impl BehaviorState {
    /// What windows, policies and bounds allow of a wish. Records the wish as a recommendation.
    pub fn limit(&mut self, behavior: &Behavior, wanted: &DesiredSize) -> LimitedSize {
        let &DesiredSize { now_seconds, current, desired, min, max, urgency } = wanted;
        let max = max.max(min);
        if self.lowest.entries.is_empty() {
            self.recommend(behavior, now_seconds, current);
        }
        if current > max || current < min {
            let (size, by) = if current > max { (max, LimitedBy::TooMany) } else { (min, LimitedBy::TooFew) };
            let limited_by = (size != desired).then_some(by);
            return LimitedSize { size, stabilized: size, limited_by };
        }
        let stabilized = self.stabilize(behavior, now_seconds, current, desired, urgency);
        self.recommend(behavior, now_seconds, desired);
        let stabilized_by = match stabilized.cmp(&desired) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some(LimitedBy::ScaleUpStabilized),
            std::cmp::Ordering::Greater => Some(LimitedBy::ScaleDownStabilized),
        };
        let (size, rated_by) = self.rate(behavior, now_seconds, current, stabilized, min, max);
        LimitedSize { size, stabilized, limited_by: rated_by.or(stabilized_by) }
    }

    /// Records a recommendation without asking for anything: history from before a restart.
    pub fn recommend(&mut self, behavior: &Behavior, at_seconds: f64, size: u32) {
        let longest =
            behavior.scale_up.stabilization_window_seconds.max(behavior.scale_down.stabilization_window_seconds).into();
        self.lowest.add(at_seconds, size, longest, |new, old| new <= old);
        self.highest.add(at_seconds, size, longest, |new, old| new >= old);
    }

    /// Records that the size was changed: what policies count. Call it when the change was applied, as the HPA does.
    pub fn scaled(&mut self, behavior: &Behavior, at_seconds: f64, from: u32, to: u32) {
        let periods = |rules: &ScalingRules| rules.policies.iter().map(|policy| policy.period_seconds).max();
        let longest = f64::from(periods(&behavior.scale_up).max(periods(&behavior.scale_down)).unwrap_or(0));
        let events = if to > from { &mut self.ups } else { &mut self.downs };
        if to != from {
            events.push_back(ScaleEvent { at_seconds, change: to.abs_diff(from) });
        }
        for events in [&mut self.ups, &mut self.downs] {
            while events.front().is_some_and(|event| event.at_seconds < at_seconds - longest) {
                events.pop_front();
            }
        }
    }

    /// The clock was set back: nothing may lie in the future.
    pub fn rewind(&mut self, now_seconds: f64) {
        for (at, _) in self.lowest.entries.iter_mut().chain(&mut self.highest.entries) {
            *at = at.min(now_seconds);
        }
        for event in self.ups.iter_mut().chain(&mut self.downs) {
            event.at_seconds = event.at_seconds.min(now_seconds);
        }
    }

    /// The current size, brought between the lowest recommendation of the window up and the highest of the window down.
    fn stabilize(&self, behavior: &Behavior, now: f64, current: u32, desired: u32, urgency: Urgency) -> u32 {
        let lowest = match urgency {
            Urgency::ClientsWait => None,
            _ => self.lowest.within(now, behavior.scale_up.stabilization_window_seconds),
        };
        let highest = match urgency {
            Urgency::DatabaseSaturated => None,
            _ => self.highest.within(now, behavior.scale_down.stabilization_window_seconds),
        };
        let grow_to = lowest.map_or(desired, |lowest| lowest.min(desired));
        let shrink_to = highest.map_or(desired, |highest| highest.max(desired));
        current.max(grow_to).min(shrink_to)
    }

    fn rate(
        &self,
        behavior: &Behavior,
        now: f64,
        current: u32,
        desired: u32,
        min: u32,
        max: u32,
    ) -> (u32, Option<LimitedBy>) {
        if desired > current {
            let limit = self.growth_limit(&behavior.scale_up, now, current);
            let (most, by) = if max > limit { (limit, LimitedBy::ScaleUpLimit) } else { (max, LimitedBy::TooMany) };
            if desired > most {
                return (most, Some(by));
            }
        } else if desired < current {
            let limit = self.shrink_limit(&behavior.scale_down, now, current);
            let (least, by) = if min < limit { (limit, LimitedBy::ScaleDownLimit) } else { (min, LimitedBy::TooFew) };
            if desired < least {
                return (least, Some(by));
            }
        }
        (desired, None)
    }

    /// The size at the beginning of a policy's period. May be negative when much was added by hand.
    fn at_start(&self, policy: &ScalingPolicy, now: f64, current: u32) -> i64 {
        let cutoff = now - f64::from(policy.period_seconds);
        let sum = |events: &VecDeque<ScaleEvent>| {
            events.iter().filter(|event| event.at_seconds > cutoff).map(|event| i64::from(event.change)).sum::<i64>()
        };
        i64::from(current) - sum(&self.ups) + sum(&self.downs)
    }

    #[allow(clippy::cast_possible_truncation)] // saturates
    fn growth_limit(&self, rules: &ScalingRules, now: f64, current: u32) -> u32 {
        let proposals = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, now, current);
            match policy.type_ {
                ScalingPolicyType::Connections => start + i64::from(policy.value),
                // up, or a small size could never grow
                ScalingPolicyType::Percent => scaled_by(start, 1.0 + f64::from(policy.value) / 100.0).ceil() as i64,
            }
        });
        let limit = match rules.select_policy {
            SelectPolicy::Disabled => return current,
            SelectPolicy::Max => proposals.max(),
            SelectPolicy::Min => proposals.min(),
        };
        limit.map_or(u32::MAX, |limit| size(limit).max(current))
    }

    #[allow(clippy::cast_possible_truncation)] // saturates
    fn shrink_limit(&self, rules: &ScalingRules, now: f64, current: u32) -> u32 {
        let proposals = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, now, current);
            match policy.type_ {
                ScalingPolicyType::Connections => start - i64::from(policy.value),
                ScalingPolicyType::Percent => scaled_by(start, 1.0 - f64::from(policy.value) / 100.0) as i64,
            }
        });
        let limit = match rules.select_policy {
            SelectPolicy::Disabled => return current,
            SelectPolicy::Max => proposals.min(),
            SelectPolicy::Min => proposals.max(),
        };
        limit.map_or(0, |limit| size(limit).min(current))
    }
}

fn size(limit: i64) -> u32 {
    u32::try_from(limit.clamp(0, i64::from(u32::MAX))).unwrap_or(u32::MAX)
}

/// The HPA's order of operations, so that the last bit rounds the same way.
fn scaled_by(start: i64, factor: f64) -> f64 {
    start as f64 * factor
}
