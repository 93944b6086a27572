//! The guards: which one limits, and in whose words.

use sluice::{
    contract::{Algorithm, ScalingPolicy, ScalingPolicyType},
    domain::{Automation, Reason, Sample},
};

use super::{Load, Story, load};

/// A database that finishes at most `most` transactions at once: past that more connections only make each slower.
fn saturated(story: &mut Story, service: f64, most: f64) -> sluice::decide::sizing::Decision {
    let size = f64::from(story.size);
    let slowed = service * (size / most).max(1.0);
    let sample = Sample { active: size, ..story.sample };
    story.sample = sample;
    let rate = size / slowed;
    story.tick(Load { waiting: 10.0 * size, ..load(rate, slowed) })
}

#[test]
fn a_saturated_database_gets_no_more_connections() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    story.bounds.max = 200;
    story.run(1800.0, load(200.0, 0.1)); // 20 busy
    let mut largest_when_capped = 0;
    let mut capped = 0;
    for second in 0..600 {
        let decision = saturated(&mut story, 0.4, 24.0);
        if decision.reason == Reason::DatabaseSaturated {
            capped += 1;
            largest_when_capped = largest_when_capped.max(decision.size);
            assert!(decision.recommendation.uncapped_target > decision.size);
            assert!(decision.message.contains("did no more with more connections"), "{}", decision.message);
        }
        assert!(second < 120 || decision.size < 200, "the wish is not granted for ever");
    }
    assert!(capped > 100, "{capped} of 600 s capped");
}

#[test]
fn the_cap_is_lifted_once_the_database_has_recovered() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    story.bounds.max = 200;
    story.run(1800.0, load(200.0, 0.1));
    for _ in 0..300 {
        saturated(&mut story, 0.4, 24.0);
    }
    story.run(1800.0, load(200.0, 0.1));
    let burst = story.run(900.0, load(600.0, 0.1));
    assert_ne!(burst.reason, Reason::DatabaseSaturated, "{}", burst.message);
    assert!(burst.size >= 60, "{}", burst.message);
}

#[test]
fn while_the_database_takes_no_writes_or_is_away_the_size_is_held_whatever_the_load_and_moves_again_afterwards() {
    let held_by =
        [(Automation::UpstreamReadOnly, Reason::UpstreamReadOnly), (Automation::CircuitOpen, Reason::CircuitOpen)];
    for (algorithm, (automation, reason)) in [Algorithm::Adaptive, Algorithm::TargetUtilization, Algorithm::LoadFactor]
        .into_iter()
        .flat_map(|algorithm| held_by.map(|held_by| (algorithm, held_by)))
    {
        let mut story = Story::new(algorithm);
        story.run(1800.0, load(200.0, 0.1));
        let before = story.size;
        story.automation = automation;
        for other in [load(0.0, 0.1), Load { waiting: 300.0, ..load(800.0, 0.1) }, load(5000.0, 0.001)] {
            let held = story.run(600.0, other);
            assert_eq!((held.size, held.recommendation.target), (before, before), "{}", held.message);
            assert_eq!(held.reason, reason);
        }
        story.automation = Automation::Apply;
        let after = story.run(900.0, load(700.0, 0.1));
        assert!(after.reason != reason && after.size >= before, "{algorithm:?}: {}", after.message);
    }
}

#[test]
fn a_policy_limits_growth_in_both_loops_and_the_reason_names_it() {
    for interval in [1.0, 15.0] {
        let mut story = Story::new(Algorithm::Adaptive).every(interval);
        story.settings.behavior.scale_up.policies =
            vec![ScalingPolicy { type_: ScalingPolicyType::Connections, value: 2, period_seconds: 60 }];
        story.run(1800.0, load(100.0, 0.08));
        let before = story.size;
        let mut reasons = Vec::new();
        let start = story.now;
        while story.now < start + 59.0 {
            reasons.push(story.tick(Load { waiting: 50.0, ..load(300.0, 0.08) }).reason);
            assert!(story.size <= before + 2, "{} from {before}", story.size);
        }
        assert!(reasons.contains(&Reason::ScaleUpLimit), "{reasons:?}");
    }
}

#[test]
fn the_window_down_holds_target_utilization_for_five_minutes() {
    let mut story = Story::new(Algorithm::TargetUtilization);
    story.run(900.0, load(200.0, 0.1));
    let high = story.size;
    let held = story.run(285.0, load(20.0, 0.1));
    assert_eq!((held.size, held.reason), (high, Reason::ScaleDownStabilized), "{}", held.message);
    assert!(held.message.contains("300 s"), "{}", held.message);
    assert!(story.run(120.0, load(20.0, 0.1)).size < high);
}

#[test]
fn every_guard_that_changed_the_wish_is_listed_in_order() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.settings.behavior.scale_up.policies =
        vec![ScalingPolicy { type_: ScalingPolicyType::Connections, value: 4, period_seconds: 15 }];
    story.run(600.0, load(20.0, 0.1));
    story.bounds.share = Some(5);
    let decision = story.run(60.0, load(900.0, 0.1));
    assert_eq!(decision.reason, Reason::Share);
    let reasons: Vec<_> = decision.limits.iter().map(|limit| limit.reason).collect();
    assert_eq!(reasons, [Reason::Share]);
    assert!(decision.message.contains("share granted is 5"), "{}", decision.message);
}
