//! The HPA's own behaviour cases (`horizontal_test.go` of Kubernetes 1.34): the same facts, our code.

use proptest::prelude::*;
use sluice::{
    contract::{
        Behavior, ScalingPolicy,
        ScalingPolicyType::{self, Connections, Percent},
        ScalingRules, SelectPolicy,
    },
    decide::behavior::{BehaviorState, DesiredSize, LimitedBy, LimitedSize, Urgency},
};

const NOW: f64 = 10_000.0;

fn policy(type_: ScalingPolicyType, value: u32, period_seconds: u32) -> ScalingPolicy {
    ScalingPolicy { type_, value, period_seconds }
}

fn rules(window: u32, select_policy: SelectPolicy, policies: &[ScalingPolicy]) -> ScalingRules {
    ScalingRules { stabilization_window_seconds: window, select_policy, policies: policies.to_vec(), tolerance: 0.1 }
}

/// What the API server fills in where nothing is said.
fn hpa_up() -> Vec<ScalingPolicy> {
    vec![policy(Connections, 4, 15), policy(Percent, 100, 15)]
}

fn hpa_down() -> Vec<ScalingPolicy> {
    vec![policy(Percent, 100, 15)]
}

/// Changes spread over the last `period` seconds, each in the middle of its segment.
fn spread(changes: &[u32], period: f64) -> Vec<(f64, u32)> {
    let segment = period / changes.len() as f64;
    changes
        .iter()
        .zip(1_u32..)
        .map(|(&change, i)| (NOW - (period - segment * f64::from(i) + segment / 2.0), change))
        .collect()
}

#[derive(Clone)]
struct Case {
    name: &'static str,
    ups: Vec<(f64, u32)>,
    downs: Vec<(f64, u32)>,
    min: u32,
    max: u32,
    up: Vec<ScalingPolicy>,
    down: Vec<ScalingPolicy>,
    current: u32,
    desired: u32,
    expected: u32,
    by: Option<LimitedBy>,
}

fn case(name: &'static str, current: u32, desired: u32, expected: u32, by: Option<LimitedBy>) -> Case {
    Case {
        name,
        ups: Vec::new(),
        downs: Vec::new(),
        min: 1,
        max: 1000,
        up: hpa_up(),
        down: hpa_down(),
        current,
        desired,
        expected,
        by,
    }
}

impl Case {
    fn bounds(mut self, min: u32, max: u32) -> Self {
        (self.min, self.max) = (min, max);
        self
    }
    fn up(mut self, policies: &[ScalingPolicy]) -> Self {
        self.up = policies.to_vec();
        self
    }
    fn down(mut self, policies: &[ScalingPolicy]) -> Self {
        self.down = policies.to_vec();
        self
    }
    fn ups(mut self, changes: &[u32], period: f64) -> Self {
        self.ups = spread(changes, period);
        self
    }
    fn downs(mut self, changes: &[u32], period: f64) -> Self {
        self.downs = spread(changes, period);
        self
    }

    fn behavior(&self) -> Behavior {
        Behavior {
            scale_up: rules(0, SelectPolicy::Max, &self.up),
            scale_down: rules(0, SelectPolicy::Max, &self.down),
        }
    }

    fn run(&self) -> LimitedSize {
        // history is kept for as long as any policy may ask for it
        let keep = Behavior {
            scale_up: rules(0, SelectPolicy::Max, &[policy(Connections, 1, 1800)]),
            scale_down: rules(0, SelectPolicy::Max, &[policy(Connections, 1, 1800)]),
        };
        let mut state = BehaviorState::default();
        for &(at, change) in &self.ups {
            state.scaled(&keep, at, 0, change);
        }
        for &(at, change) in &self.downs {
            state.scaled(&keep, at, change, 0);
        }
        let wanted = DesiredSize {
            now_seconds: NOW,
            current: self.current,
            desired: self.desired,
            min: self.min,
            max: self.max,
            urgency: Urgency::None,
        };
        state.limit(&self.behavior(), &wanted)
    }
}

fn cases_without_history() -> Vec<Case> {
    use LimitedBy::{ScaleDownLimit, ScaleUpLimit, TooFew, TooMany};
    vec![
        case("within range", 5, 7, 7, None).bounds(3, 8),
        case("below the minimum", 3, 1, 2, Some(TooFew)).bounds(2, 8),
        case("a minimum of 0", 1, 0, 0, None).bounds(0, 10),
        case("above the maximum already", 20, 1000, 10, Some(TooMany)).bounds(1, 10),
        case("more than the maximum", 100, 1000, 150, Some(TooMany)).bounds(100, 150),
        case("1 % of 3 rounds up", 3, 1000, 4, Some(ScaleUpLimit)).bounds(1, 2000).up(&[policy(Percent, 1, 60)]),
        case("20 fewer a minute", 1000, 3, 980, Some(ScaleDownLimit)).bounds(3, 2000).down(&[policy(
            Connections,
            20,
            60,
        )]),
        case("default growth", 10, 50, 20, Some(ScaleUpLimit)),
        case("the larger of two: number", 10, 500, 110, Some(ScaleUpLimit))
            .up(&[policy(Connections, 100, 60), policy(Percent, 100, 60)]),
        case("the larger of two: percent", 10, 500, 20, Some(ScaleUpLimit))
            .up(&[policy(Connections, 2, 60), policy(Percent, 100, 60)]),
        case("a large number does not limit", 10, 50, 50, None).up(&[policy(Connections, 100, 60)]),
        case("a very large number does not limit", 10, 50, 50, None).up(&[policy(Connections, 10_000, 60)]),
        case("30 more", 10, 50, 40, Some(ScaleUpLimit)).up(&[policy(Connections, 30, 60)]),
        case("200 % more", 10, 50, 30, Some(ScaleUpLimit)).up(&[policy(Percent, 200, 60)]),
        case("down: the larger of two: number", 100, 2, 80, Some(ScaleDownLimit))
            .down(&[policy(Connections, 20, 60), policy(Percent, 1, 60)]),
        case("down: the larger of two: percent", 100, 2, 98, Some(ScaleDownLimit))
            .down(&[policy(Connections, 2, 60), policy(Percent, 1, 60)]),
        case("down: to the minimum", 10, 0, 1, Some(TooFew)).down(&[policy(Connections, 100, 60)]),
        case("down: 100 % to the minimum", 10, 2, 5, Some(TooFew)).bounds(5, 1000).down(&[policy(Percent, 100, 60)]),
        case("down: 5 fewer", 10, 2, 5, Some(ScaleDownLimit)).down(&[policy(Connections, 5, 60)]),
        case("down: 50 % fewer", 10, 5, 5, None).down(&[policy(Percent, 50, 60)]),
    ]
}

fn cases_with_history() -> Vec<Case> {
    use LimitedBy::{ScaleDownLimit, ScaleUpLimit, TooFew, TooMany};
    vec![
        case("events and a large number", 100, 500, 200, Some(TooMany))
            .bounds(1, 200)
            .ups(&[1, 5, 9], 120.0)
            .up(&[policy(Connections, 300, 60)]),
        case("events and a large percentage", 100, 500, 200, Some(TooMany))
            .bounds(1, 200)
            .ups(&[1, 5, 9], 120.0)
            .up(&[policy(Percent, 10_000, 60)]),
        case("100 - 15 + 5 lies below the current size", 100, 500, 100, Some(ScaleUpLimit))
            .ups(&[1, 5, 9], 120.0)
            .up(&[policy(Connections, 5, 120)]),
        case("100 - 15 + 150", 100, 500, 235, Some(ScaleUpLimit)).ups(&[1, 5, 9], 120.0).up(&[policy(
            Connections,
            150,
            120,
        )]),
        case("(100 - 15) and 200 %", 100, 500, 255, Some(ScaleUpLimit))
            .ups(&[1, 5, 9], 120.0)
            .up(&[policy(Percent, 200, 120)]),
        case("(6 - 4 + 2) and 300 %", 6, 24, 16, Some(ScaleUpLimit))
            .ups(&[4], 120.0)
            .downs(&[2], 120.0)
            .up(&[policy(Percent, 300, 300)]),
        case("down: the default does not limit", 10, 5, 5, None).downs(&[1, 5, 9], 120.0),
        case("down: events and a large number", 100, 0, 1, Some(TooFew)).downs(&[1, 5, 9], 120.0).down(&[policy(
            Connections,
            115,
            120,
        )]),
        case("down: events and a larger number", 100, 0, 5, Some(TooFew))
            .bounds(5, 1000)
            .downs(&[1, 5, 9], 120.0)
            .down(&[policy(Connections, 130, 120)]),
        case("down: events and 100 %", 100, 2, 5, Some(TooFew))
            .bounds(5, 1000)
            .downs(&[1, 5, 9], 120.0)
            .down(&[policy(Percent, 100, 120)]),
        case("down: 100 + 15 - 5 lies above the current size", 100, 2, 100, Some(ScaleDownLimit))
            .downs(&[1, 5, 9], 120.0)
            .down(&[policy(Connections, 5, 120)]),
        case("down: (100 + 12) less 50 %", 100, 0, 56, Some(ScaleDownLimit))
            .downs(&[2, 4, 6], 120.0)
            .down(&[policy(Percent, 50, 120)]),
        case("down: (10 - 2 + 4) less 50 %", 10, 1, 6, Some(ScaleDownLimit))
            .ups(&[2], 120.0)
            .downs(&[4], 120.0)
            .down(&[policy(Percent, 50, 180)]),
        case("down: (100 + 30) less 10 % lies above the current size", 100, 0, 100, Some(ScaleDownLimit))
            .downs(&[10, 10, 10], 120.0)
            .down(&[policy(Percent, 10, 120)]),
        case("down: 1000 % is less than nothing", 10, 5, 5, None)
            .downs(&[10, 10, 10], 120.0)
            .down(&[policy(Percent, 1000, 120)]),
        case("old events do not count: one policy", 100, 200, 200, None).ups(&[8, 12, 9, 11], 120.0).up(&[policy(
            Connections,
            1000,
            60,
        )]),
        case("old events do not count: two policies", 100, 200, 200, None)
            .ups(&[8, 12, 9, 11], 120.0)
            .up(&[policy(Connections, 1000, 120), policy(Percent, 100, 60)]),
        case("old events do not count: two policies, shorter", 100, 200, 200, None)
            .ups(&[8, 12, 9, 11], 120.0)
            .up(&[policy(Connections, 1000, 30), policy(Percent, 100, 60)]),
        case("down: old events do not count: one policy", 100, 5, 5, None)
            .downs(&[8, 12, 9, 11], 120.0)
            .down(&[policy(Connections, 1000, 60)]),
        case("down: old events do not count: two policies", 100, 5, 5, None)
            .downs(&[8, 12, 9, 11], 120.0)
            .down(&[policy(Connections, 1000, 120), policy(Percent, 100, 60)]),
        case("down: old events do not count: two policies, shorter", 100, 5, 5, None)
            .downs(&[8, 12, 9, 11], 120.0)
            .down(&[policy(Connections, 1000, 30), policy(Percent, 100, 60)]),
    ]
}

#[test]
fn policies_allow_what_the_hpa_allows() {
    for case in cases_without_history().into_iter().chain(cases_with_history()) {
        let allowed = case.run();
        assert_eq!((allowed.size, allowed.limited_by), (case.expected, case.by), "{}", case.name);
    }
}

#[test]
fn the_smallest_change_wins_where_min_is_selected() {
    let policies = [policy(Connections, 2, 60), policy(Percent, 50, 60)];
    let behavior = Behavior {
        scale_up: rules(0, SelectPolicy::Min, &policies),
        scale_down: rules(0, SelectPolicy::Min, &policies),
    };
    let ask = |current, desired| {
        let wanted = DesiredSize { now_seconds: NOW, current, desired, min: 0, max: 100, urgency: Urgency::None };
        BehaviorState::default().limit(&behavior, &wanted).size
    };
    assert_eq!(ask(1, 50), 2); // 1 + 2 and 1 * 1.5 rounded up: the smaller
    assert_eq!(ask(5, 0), 3); // 5 - 2 and 5 * 0.5: the larger remainder
}

#[test]
fn a_disabled_direction_does_not_move() {
    let behavior = Behavior {
        scale_up: rules(0, SelectPolicy::Disabled, &hpa_up()),
        scale_down: rules(0, SelectPolicy::Disabled, &hpa_down()),
    };
    for desired in [1, 50] {
        let wanted = DesiredSize { now_seconds: NOW, current: 10, desired, min: 1, max: 100, urgency: Urgency::None };
        assert_eq!(BehaviorState::default().limit(&behavior, &wanted).size, 10);
    }
}

/// name, recommendations (minutes ago, size), current, desired, window up, window down, expected
type WindowCase = (&'static str, &'static [(f64, u32)], u32, u32, u32, u32, u32);

const WINDOW_CASES: &[WindowCase] = &[
    ("nothing recommended before", &[], 100, 5, 0, 0, 5),
    ("down to the highest", &[(2.0, 4), (1.0, 5)], 100, 3, 0, 180, 5),
    ("up to the lowest", &[(2.0, 4), (1.0, 5)], 1, 7, 300, 0, 4),
    ("the window up does not hold a shrink", &[(2.0, 1), (1.0, 2)], 100, 3, 300, 0, 3),
    ("the window down does not hold a growth", &[(2.0, 4), (1.0, 5)], 1, 3, 0, 300, 3),
    ("old recommendations do not hold a shrink", &[(10.0, 10), (9.0, 9)], 100, 3, 0, 0, 3),
    ("old recommendations do not hold a growth", &[(10.0, 10), (9.0, 9)], 1, 100, 0, 0, 100),
    ("only the window counts, in any order", &[(10.0, 10), (1.0, 4), (2.0, 5), (9.0, 9)], 100, 3, 0, 180, 5),
    ("only the window up counts, in any order", &[(100.0, 10), (1.0, 6), (2.0, 5), (3.0, 9)], 1, 100, 300, 0, 5),
    ("no growth while the wish falls", &[(100.0, 2), (3.0, 3)], 2, 1, 300, 300, 2),
    ("no shrink while the wish rises", &[(100.0, 2), (3.0, 1)], 2, 3, 300, 300, 2),
];

#[test]
fn windows_hold_what_the_hpa_holds() {
    for &(name, recommendations, current, desired, up, down, expected) in WINDOW_CASES {
        let behavior =
            Behavior { scale_up: rules(up, SelectPolicy::Max, &[]), scale_down: rules(down, SelectPolicy::Max, &[]) };
        let mut history = recommendations.to_vec();
        history.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut state = BehaviorState::default();
        for (minutes, size) in history {
            state.recommend(&behavior, NOW - 60.0 * minutes, size);
        }
        let wanted = DesiredSize { now_seconds: NOW, current, desired, min: 0, max: 1000, urgency: Urgency::None };
        assert_eq!(state.limit(&behavior, &wanted).size, expected, "{name}");
    }
}

#[test]
fn the_first_size_seen_counts_as_a_recommendation() {
    let behavior =
        Behavior { scale_up: rules(0, SelectPolicy::Max, &[]), scale_down: rules(300, SelectPolicy::Max, &[]) };
    let mut state = BehaviorState::default();
    let mut ask = |now_seconds| {
        let wanted = DesiredSize { now_seconds, current: 10, desired: 3, min: 1, max: 100, urgency: Urgency::None };
        state.limit(&behavior, &wanted)
    };
    assert_eq!(ask(0.0).size, 10);
    assert_eq!(ask(299.0).limited_by, Some(LimitedBy::ScaleDownStabilized));
    assert_eq!(ask(301.0).size, 3);
}

#[test]
fn waiting_clients_skip_the_window_up_and_never_the_policies() {
    let behavior = Behavior {
        scale_up: rules(300, SelectPolicy::Max, &[policy(Percent, 100, 15)]),
        scale_down: rules(300, SelectPolicy::Max, &[]),
    };
    let ask = |urgency| {
        let wanted = DesiredSize { now_seconds: NOW, current: 10, desired: 50, min: 1, max: 100, urgency };
        BehaviorState::default().limit(&behavior, &wanted)
    };
    assert_eq!(ask(Urgency::None).size, 10);
    assert_eq!(ask(Urgency::ClientsWait).size, 20);
    assert_eq!(ask(Urgency::ClientsWait).limited_by, Some(LimitedBy::ScaleUpLimit));
}

#[test]
fn a_change_that_was_not_applied_does_not_count() {
    let behavior = Behavior {
        scale_up: rules(0, SelectPolicy::Max, &[policy(Connections, 4, 60)]),
        scale_down: rules(0, SelectPolicy::Max, &[]),
    };
    let wanted = |now_seconds, current| DesiredSize {
        now_seconds,
        current,
        desired: 50,
        min: 1,
        max: 100,
        urgency: Urgency::None,
    };
    let mut state = BehaviorState::default();
    assert_eq!(state.limit(&behavior, &wanted(0.0, 10)).size, 14);
    assert_eq!(state.limit(&behavior, &wanted(15.0, 10)).size, 14, "the write failed: nothing was used up");
    state.scaled(&behavior, 15.0, 10, 14);
    assert_eq!(state.limit(&behavior, &wanted(30.0, 14)).size, 14, "used up until the period is over");
    assert_eq!(state.limit(&behavior, &wanted(76.0, 14)).size, 18);
}

/// The HPA's algorithm without any cleverness: every recommendation and every change kept for ever.
#[derive(Default)]
struct Plain {
    recommendations: Vec<(f64, u32)>,
    changes: Vec<(f64, i64)>,
}

impl Plain {
    fn limit(&mut self, behavior: &Behavior, wanted: &DesiredSize) -> u32 {
        let DesiredSize { now_seconds: now, current, desired, min, max, .. } = *wanted;
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
        if current > max {
            return max;
        }
        if current < min {
            return min;
        }
        let window = |rules: &ScalingRules| now - f64::from(rules.stabilization_window_seconds);
        let (up, down) = (window(&behavior.scale_up), window(&behavior.scale_down));
        let grow = self.recommendations.iter().filter(|r| r.0 > up).map(|r| r.1).fold(desired, u32::min);
        let shrink = self.recommendations.iter().filter(|r| r.0 > down).map(|r| r.1).fold(desired, u32::max);
        self.recommendations.push((now, desired));
        let stabilized = current.max(grow).min(shrink);
        let start = |policy: &ScalingPolicy| {
            let since = now - f64::from(policy.period_seconds);
            i64::from(current) - self.changes.iter().filter(|c| c.0 > since).map(|c| c.1).sum::<i64>()
        };
        if stabilized > current {
            let limits = behavior.scale_up.policies.iter().map(|p| match p.type_ {
                Connections => start(p) + i64::from(p.value),
                #[allow(clippy::cast_possible_truncation)]
                Percent => (start(p) as f64 * (1.0 + f64::from(p.value) / 100.0)).ceil() as i64,
            });
            let limit = match behavior.scale_up.select_policy {
                SelectPolicy::Max => limits.max().unwrap_or(i64::MAX),
                SelectPolicy::Min => limits.min().unwrap_or(i64::MAX),
                SelectPolicy::Disabled => i64::from(current),
            };
            let limit = limit.max(i64::from(current)).min(i64::from(max));
            return u32::try_from(limit.min(i64::from(stabilized))).expect("a size");
        }
        if stabilized < current {
            let limits = behavior.scale_down.policies.iter().map(|p| match p.type_ {
                Connections => start(p) - i64::from(p.value),
                #[allow(clippy::cast_possible_truncation)]
                Percent => (start(p) as f64 * (1.0 - f64::from(p.value) / 100.0)) as i64,
            });
            let limit = match behavior.scale_down.select_policy {
                SelectPolicy::Max => limits.min().unwrap_or(i64::MIN),
                SelectPolicy::Min => limits.max().unwrap_or(i64::MIN),
                SelectPolicy::Disabled => i64::from(current),
            };
            let limit = limit.min(i64::from(current)).max(i64::from(min));
            return u32::try_from(limit.max(i64::from(stabilized))).expect("a size");
        }
        stabilized
    }
}

fn any_policy() -> impl Strategy<Value = ScalingPolicy> {
    (prop_oneof![Just(Connections), Just(Percent)], 1..200_u32, 1..300_u32).prop_map(|(t, v, p)| policy(t, v, p))
}

fn any_rules() -> impl Strategy<Value = ScalingRules> {
    let select = prop_oneof![Just(SelectPolicy::Max), Just(SelectPolicy::Min), Just(SelectPolicy::Disabled)];
    (0..600_u32, select, prop::collection::vec(any_policy(), 0..4)).prop_map(|(w, s, p)| rules(w, s, &p))
}

proptest! {
    /// Over any course of wishes, what is remembered in little space decides like the whole history would.
    #[test]
    fn the_history_in_little_space_decides_like_the_whole(
        scale_up in any_rules(),
        scale_down in any_rules(),
        steps in prop::collection::vec((1..90_u32, 0..120_u32), 1..80),
        (min, max) in (0..20_u32, 20..120_u32),
    ) {
        let behavior = Behavior { scale_up, scale_down };
        let (mut state, mut plain) = (BehaviorState::default(), Plain::default());
        let (mut now, mut current) = (0.0, 10);
        for (pause, desired) in steps {
            now += f64::from(pause);
            let wanted = DesiredSize { now_seconds: now, current, desired, min, max, urgency: Urgency::None };
            let allowed = state.limit(&behavior, &wanted).size;
            prop_assert_eq!(allowed, plain.limit(&behavior, &wanted));
            state.scaled(&behavior, now, current, allowed);
            if allowed != current {
                plain.changes.push((now, i64::from(allowed) - i64::from(current)));
            }
            current = allowed;
        }
    }

    /// Growth within a period never exceeds what its policy allows, urgent or not.
    #[test]
    fn no_urgency_grows_faster_than_the_policy(
        value in 1..30_u32,
        period in 5..120_u32,
        steps in prop::collection::vec((1..20_u32, 0..200_u32, any::<bool>()), 1..60),
    ) {
        let behavior = Behavior {
            scale_up: rules(60, SelectPolicy::Max, &[policy(Connections, value, period)]),
            scale_down: rules(0, SelectPolicy::Disabled, &[]),
        };
        let mut state = BehaviorState::default();
        let (mut now, mut current) = (0.0, 10_u32);
        let mut sizes = vec![(0.0, current)];
        for (pause, desired, urgent) in steps {
            now += f64::from(pause);
            let urgency = if urgent { Urgency::ClientsWait } else { Urgency::None };
            let wanted = DesiredSize { now_seconds: now, current, desired, min: 1, max: 1000, urgency };
            let allowed = state.limit(&behavior, &wanted).size;
            state.scaled(&behavior, now, current, allowed);
            let before = sizes.iter().rev().find(|s| s.0 <= now - f64::from(period)).map_or(10, |s| s.1);
            prop_assert!(allowed <= before + value || allowed == current);
            current = allowed;
            sizes.push((now, current));
        }
    }
}
