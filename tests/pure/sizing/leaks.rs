//! Connections that are held and do nothing, and pools that nobody has used yet.

use sluice::{
    contract::Algorithm,
    domain::{Bounds, Reason},
};

use super::{Load, Story, load};

/// A pod with a share of 20, as its agent decides; its size has come down to a load that one connection carries.
fn calm_pod() -> Story {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    story.settings.leak_threshold_seconds = Some(300.0);
    story.bounds = Bounds { min: 1, max: 20, share: Some(20) };
    story.run(900.0, load(2.0, 0.01));
    assert!(story.size <= 2, "{}", story.size);
    story
}

#[test]
fn clients_that_wait_for_leaked_connections_get_others_within_the_share() {
    let mut story = calm_pod();
    let leaked = story.size;
    for _ in 0..3 {
        story.stuck(leaked, leaked, 3);
    }
    assert!(story.size > leaked, "{} with {leaked} leaked", story.size);
    // then they are served, and the leak stays
    for _ in 0..600 {
        let decision = story.tick(Load { leaked: f64::from(leaked), ..load(2.0, 0.01) });
        assert!((leaked + 1..=leaked + 4).contains(&decision.size), "{} with {leaked} leaked", decision.size);
        assert!(!decision.reason.is_hold(), "{}", decision.message);
    }
    let after = story.run(60.0, load(2.0, 0.01));
    assert!(after.size <= 2, "{} after the leak", after.size);
}

#[test]
fn a_share_that_is_leaked_whole_is_all_that_there_is() {
    let mut story = calm_pod();
    for leaked in 1..=20 {
        story.stuck(leaked, leaked, 1);
        story.stuck(leaked, leaked, 1);
    }
    for _ in 0..60 {
        assert_eq!(story.stuck(20, 20, 5).size, 20);
    }
}

#[test]
fn a_pool_that_only_leaks_and_serves_nobody_does_not_hold_its_size() {
    let mut story = calm_pod();
    story.run(900.0, load(300.0, 0.03));
    assert!(story.size > 9, "{}", story.size);
    for _ in 0..1200 {
        story.stuck(1, 1, 0);
    }
    assert!(story.size <= 2, "{}", story.size);
}

#[test]
fn a_database_that_stalls_beside_a_leak_is_still_a_stalled_database() {
    let mut story = calm_pod();
    story.sample.active = f64::from(story.size);
    let mut reasons = Vec::new();
    for _ in 0..31 {
        reasons.push(story.stuck(2, 1, 4).reason);
    }
    assert!(reasons.contains(&Reason::DatabaseStalled), "{reasons:?}");
}

#[test]
fn a_pool_that_was_never_used_goes_to_its_minimum() {
    for algorithm in [Algorithm::Adaptive, Algorithm::TargetUtilization, Algorithm::LoadFactor] {
        let mut story = Story::new(algorithm).every(1.0);
        (story.size, story.bounds) = (20, Bounds { min: 1, max: 20, share: Some(20) });
        assert_eq!(story.tick(load(0.0, 0.0)).size, 20, "one sample says nothing");
        assert_eq!(story.run(400.0, load(0.0, 0.0)).size, 1, "{algorithm:?}"); // longer than any default window
    }
}

#[test]
fn the_idle_time_before_the_first_load_does_not_count_as_load() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    (story.size, story.bounds) = (20, Bounds { min: 1, max: 20, share: Some(20) });
    story.run(10.0, load(0.0, 0.0));
    for _ in 0..30 {
        // 0.8 busy: 3 would leave more than the objective waiting
        let decision = story.tick(load(4.0, 0.2));
        assert!(decision.size >= 4, "{} s: {}", story.now, decision.message);
    }
    assert!(story.size < 20, "{}", story.size);
}

#[test]
fn the_window_down_holds_a_pool_that_was_never_used() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    (story.size, story.bounds) = (20, Bounds { min: 1, max: 20, share: Some(20) });
    story.settings.behavior.scale_down.stabilization_window_seconds = 120;
    assert_eq!(story.run(100.0, load(0.0, 0.0)).size, 20);
    assert_eq!(story.run(60.0, load(0.0, 0.0)).size, 1);
}

#[test]
fn the_first_clients_of_a_pool_need_not_wait_until_the_first_transaction_has_ended() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    story.bounds = Bounds { min: 1, max: 20, share: Some(20) };
    story.run(60.0, load(0.0, 0.0));
    assert_eq!(story.size, 1);
    for _ in 0..2 {
        story.stuck(story.size, 0, 10_u32.saturating_sub(story.size));
    }
    assert!(story.size >= 10, "{}", story.size);
}

#[test]
fn a_batch_of_long_transactions_after_a_quiet_time_is_no_stalled_database() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    story.bounds = Bounds { min: 1, max: 20, share: Some(20) };
    story.run(900.0, load(0.02, 0.01)); // a health check every 50 s
    assert!(story.size <= 2, "{}", story.size);
    for _ in 0..3 {
        story.stuck(story.size, 0, 10_u32.saturating_sub(story.size));
    }
    assert_eq!(story.size, 10);
}
