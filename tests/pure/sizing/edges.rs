//! The edge cases of `docs/sizing.md`, one test each.

use sluice::{
    api::Confidence,
    contract::Algorithm,
    decide::sizing::{Fleet, PodSample},
    domain::{Automation, Bounds, Reason, Sample},
};

use super::{Load, Story, load};

const STEADY: Load = load(100.0, 0.08); // 8 busy

#[test]
fn no_sample_holds_the_size_and_says_so() {
    let mut story = Story::new(Algorithm::Adaptive);
    let before = story.run(1800.0, STEADY).size;
    for _ in 0..100 {
        let held = story.silence();
        assert_eq!((held.size, held.reason), (before, Reason::NoData));
        assert_eq!(held.recommendation.confidence, Confidence::Low);
    }
}

#[test]
fn a_stale_sample_holds_the_size() {
    let mut story = Story::new(Algorithm::Adaptive);
    let before = story.run(1800.0, STEADY).size;
    let stale = story.sample;
    for _ in 0..20 {
        story.now += 15.0;
        let held = story.decide(&[stale]);
        assert_eq!((held.size, held.reason), (before, Reason::NoData));
        assert!(held.message.contains("decided on already"), "{}", held.message);
    }
}

#[test]
fn a_changed_spec_is_decided_on_at_once_with_the_load_that_was_read_last() {
    for algorithm in [Algorithm::Adaptive, Algorithm::TargetUtilization] {
        let mut story = Story::new(algorithm);
        story.automation = Automation::Recommend;
        let recommended = story.run(1800.0, STEADY).recommendation.target;
        assert!(recommended > 7 && story.size == 5, "{recommended}");
        story.now += 1.0;
        story.automation = Automation::Apply;
        let applied = story.decide_again();
        // Adaptive goes there at once, TargetUtilization doubles at most
        assert!((8..=recommended).contains(&applied.size), "{} of {recommended}", applied.size);
        assert!(!applied.message.contains("Recommend"), "{}", applied.message);
        story.bounds.max = 7;
        let bounded = story.decide_again();
        assert_eq!((bounded.size, bounded.reason), (7, Reason::MaxSize), "{}", bounded.message);
    }
}

#[test]
fn a_reading_that_repeats_its_figures_under_a_new_time_holds_the_size() {
    let mut story = Story::new(Algorithm::Adaptive);
    let before = story.run(1800.0, STEADY).size;
    for _ in 0..20 {
        story.now += 15.0;
        let still = Sample { at_seconds: story.now, ..story.sample };
        let held = story.decide(&[still]);
        assert_eq!((held.size, held.reason), (before, Reason::NoData), "{}", held.message);
    }
}

#[test]
fn a_restarted_pooler_neither_shrinks_nor_explodes_the_size() {
    let mut story = Story::new(Algorithm::Adaptive);
    let before = story.run(3600.0, STEADY).size;
    story.sample = Sample::default(); // all counters begin again
    for _ in 0..20 {
        let decision = story.tick(STEADY);
        assert!(decision.size.abs_diff(before) <= 1, "{} after {before}", decision.size);
    }
}

#[test]
fn a_new_pod_does_not_bring_its_past_with_it() {
    let mut fleet = Fleet::default();
    let sample = |at_seconds, transactions: f64| Sample {
        at_seconds,
        active: 4.0,
        transactions,
        busy_seconds: transactions * 0.08,
        assignments: transactions,
        ..Sample::default()
    };
    let mut merged = Vec::new();
    for tick in 0..20_u32 {
        let now = f64::from(tick) * 15.0;
        let mut pods = vec![PodSample { pod: "a", sample: sample(now, now * 50.0) }];
        if tick >= 10 {
            pods.push(PodSample { pod: "b", sample: sample(now, 5e6 + now * 50.0) });
        }
        merged.extend(fleet.merge(&pods).expect("possible figures"));
    }
    let rates = merged.windows(2).map(|two| (two[1].transactions - two[0].transactions) / 15.0);
    let rates: Vec<f64> = rates.collect();
    assert!(rates.iter().all(|rate| *rate < 101.0), "{rates:?}");
    assert!((rates.last().expect("readings") - 100.0).abs() < 1e-6, "{rates:?}");
    assert_eq!(fleet.pods(), 2);
}

#[test]
fn a_pod_that_goes_or_restarts_does_not_look_like_a_lull_of_the_others() {
    let mut fleet = Fleet::default();
    let mut last = None;
    let mut rates = Vec::new();
    for tick in 0..30_u32 {
        let now = f64::from(tick) * 15.0;
        let count = |restarted: f64| (now - restarted) * 50.0;
        let sample = |transactions: f64| Sample { at_seconds: now, active: 4.0, transactions, ..Sample::default() };
        let mut pods = vec![PodSample { pod: "a", sample: sample(count(0.0)) }];
        pods.push(PodSample { pod: "b", sample: sample(if tick < 10 { count(0.0) } else { count(141.0) }) });
        if tick < 20 {
            pods.push(PodSample { pod: "c", sample: sample(count(0.0)) });
        }
        let merged = fleet.merge(&pods).expect("possible figures").expect("new");
        if let Some(last) = last {
            rates.push((merged.transactions - last) / 15.0);
        }
        last = Some(merged.transactions);
    }
    assert!(rates.iter().skip(1).all(|rate| (99.0..=151.0).contains(rate)), "{rates:?}");
}

#[test]
fn one_late_scrape_does_not_look_like_a_lull() {
    let mut fleet = Fleet::default();
    let sample =
        |at_seconds: f64| Sample { at_seconds, active: 4.0, transactions: at_seconds * 50.0, ..Sample::default() };
    let mut merge = |a: f64, b: f64| {
        let pods = [PodSample { pod: "a", sample: sample(a) }, PodSample { pod: "b", sample: sample(b) }];
        fleet.merge(&pods).expect("possible figures")
    };
    merge(0.0, 0.0);
    let first = merge(15.0, 15.0).expect("new");
    let late = merge(30.0, 15.0).expect("new");
    assert!((late.transactions - first.transactions - 1500.0).abs() < 1e-6);
    assert!(merge(30.0, 15.0).is_none(), "nothing new is no news");
}

#[test]
fn a_changed_number_of_pods_is_followed_in_one_sample() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.pods = 2;
    story.bounds.max = 400;
    story.run(3600.0, load(400.0, 0.08));
    story.pods = 4;
    let demand = story.tick(load(400.0, 0.08)).explanation.demand;
    assert!((demand - 32.0).abs() < 4.0, "{demand} on 4 pods");
}

#[test]
fn samples_after_a_gap_are_learned_once_and_in_order() {
    let (mut at_once, mut one_by_one) = (Story::new(Algorithm::Adaptive), Story::new(Algorithm::Adaptive));
    at_once.run(1800.0, STEADY);
    one_by_one.run(1800.0, STEADY);
    let (mut missed, mut expected) = (Vec::new(), 0.0);
    for _ in 0..10 {
        expected = one_by_one.tick(load(115.0, 0.08)).explanation.demand;
        missed.push(one_by_one.sample);
    }
    at_once.now += 150.0;
    let demand = at_once.decide(&missed).explanation.demand;
    assert!((demand - expected).abs() < 1e-9, "{demand} and {expected}");
    let repeated = at_once.decide(&missed);
    assert_eq!(repeated.reason, Reason::NoData, "the same samples again are no news");
}

#[test]
fn leaked_connections_do_not_raise_the_size() {
    let mut clean = Story::new(Algorithm::Adaptive);
    let mut leaking = Story::new(Algorithm::Adaptive);
    leaking.settings.leak_threshold_seconds = Some(300.0);
    let without = clean.run(3600.0, STEADY).size;
    for leaked in 0..6_u32 {
        leaking.run(600.0, Load { leaked: f64::from(leaked), ..STEADY });
    }
    assert!(leaking.size <= without + 1, "{} with a leak, {without} without", leaking.size);
    for algorithm in [Algorithm::TargetUtilization, Algorithm::LoadFactor] {
        let (mut clean, mut leaking) = (Story::new(algorithm), Story::new(algorithm));
        let without = clean.run(1800.0, STEADY).size;
        assert_eq!(leaking.run(1800.0, Load { leaked: 5.0, ..STEADY }).size, without, "{algorithm:?}");
    }
}

#[test]
fn a_transaction_beyond_the_leak_threshold_is_not_counted_in_the_service_time() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.settings.leak_threshold_seconds = Some(300.0);
    let rare = load(2.0, 0.05);
    let before = story.run(3600.0, rare);
    story.sample.transactions += 1.0; // a forgotten transaction of 20 minutes ends
    story.sample.busy_seconds += 1200.0;
    for _ in 0..8 {
        let after = story.tick(rare);
        assert!((after.explanation.service_seconds - 0.05).abs() < 0.005, "{}", after.explanation.service_seconds);
        assert!(after.size <= before.size + 1, "{} after {}", after.size, before.size);
    }
    let mut unaware = Story::new(Algorithm::Adaptive);
    unaware.run(3600.0, rare);
    unaware.sample.transactions += 1.0;
    unaware.sample.busy_seconds += 1200.0;
    assert!(unaware.tick(rare).explanation.service_seconds > 1.0, "without a threshold it cannot be told");
}

#[test]
fn a_leak_that_ends_before_its_threshold_is_reached_again_is_told_by_its_count() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.settings.leak_threshold_seconds = Some(300.0);
    let rare = load(2.0, 0.05);
    story.run(1800.0, Load { leaked: 1.0, ..rare });
    story.sample.transactions += 1.0;
    story.sample.busy_seconds += 310.0;
    let after = story.tick(rare);
    assert!((after.explanation.service_seconds - 0.05).abs() < 0.005, "{}", after.explanation.service_seconds);
}

#[test]
fn a_stalled_database_holds_the_size() {
    let mut story = Story::new(Algorithm::Adaptive);
    let before = story.run(1800.0, STEADY).size;
    for queue in 1..10_u32 {
        story.now += 15.0;
        story.sample.at_seconds = story.now;
        story.sample.active = f64::from(story.size);
        story.sample.waiting = f64::from(queue) * 1000.0;
        let sample = story.sample;
        let held = story.decide(&[sample]);
        assert_eq!((held.size, held.reason), (before, Reason::DatabaseStalled));
        assert!(held.message.contains("no transaction finished in 15 s"), "{}", held.message);
    }
}

#[test]
fn after_a_stall_the_queue_is_drained() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    story.run(1800.0, STEADY);
    let before = story.size;
    story.now += 1.0;
    story.sample.at_seconds = story.now;
    story.sample.active = f64::from(story.size);
    story.sample.waiting = 500.0;
    let sample = story.sample;
    story.decide(&[sample]);
    let recovered = story.tick(Load { waiting: 450.0, ..load(150.0, 0.08) });
    assert!(recovered.size > before, "{} after {before}: {}", recovered.size, recovered.message);
}

/// Connections stay in transactions that are longer than the samples are apart.
#[test]
fn long_transactions_do_not_shrink_the_pool_under_them() {
    let mut story = Story::new(Algorithm::Adaptive);
    let mut least = u32::MAX;
    for tick in 0..400_u32 {
        story.now += 15.0;
        story.sample.at_seconds = story.now;
        story.sample.active = 6.0;
        if tick % 4 == 3 {
            story.sample.transactions += 6.0; // six at once, each of 60 s
            story.sample.assignments += 6.0;
            story.sample.busy_seconds += 360.0;
        }
        let sample = story.sample;
        story.decide(&[sample]);
        if tick > 100 {
            least = least.min(story.size);
        }
    }
    assert!(least >= 6, "{least} for 6 busy");
}

#[test]
fn an_idle_pool_goes_to_its_minimum_once_its_peaks_are_old() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.run(1800.0, STEADY);
    let idle = story.run(3.0 * 3600.0, load(0.0, 0.08));
    assert_eq!(idle.size, 2);
}

#[test]
fn bounds_clamp_in_the_order_minimum_maximum_share() {
    let cases = [
        (Bounds { min: 20, max: 20, share: None }, 20, Reason::MinSize),
        (Bounds { min: 20, max: 10, share: None }, 10, Reason::MaxSize),
        (Bounds { min: 0, max: 0, share: None }, 0, Reason::MaxSize),
        (Bounds { min: 5, max: 100, share: Some(3) }, 3, Reason::Share),
        (Bounds { min: 20, max: 10, share: Some(4) }, 4, Reason::Share),
        (Bounds { min: 5, max: 100, share: Some(0) }, 0, Reason::Share),
    ];
    for (bounds, size, reason) in cases {
        let mut story = Story::new(Algorithm::Adaptive);
        story.bounds = bounds;
        story.run(60.0, STEADY);
        let decision = story.tick(STEADY);
        assert_eq!(decision.size, size, "{bounds:?}: {}", decision.message);
        story.size = 50;
        assert_eq!(story.silence().size, size.max(bounds.min.min(bounds.most())), "{bounds:?} holds too");
        story.size = 50;
        let held = story.silence();
        assert_eq!(held.reason, if reason == Reason::MinSize { Reason::MaxSize } else { reason }, "{bounds:?}");
    }
}

#[test]
fn a_cut_budget_shrinks_at_once_even_without_data() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.run(1800.0, load(400.0, 0.08));
    assert!(story.size > 32);
    story.bounds.share = Some(10);
    let cut = story.silence();
    assert_eq!((cut.size, cut.reason), (10, Reason::Share));
    let cut = story.run(60.0, load(400.0, 0.08));
    assert_eq!((cut.size, cut.reason), (10, Reason::Share));
    assert!(cut.recommendation.uncapped_target > 32, "what the load asks for stays visible");
}

#[test]
fn the_first_ticks_hold_what_is_there_and_then_follow_the_load() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.size = 7;
    assert_eq!(story.silence().size, 7);
    let first = story.tick(STEADY);
    assert_eq!(first.size, 7, "one sample is a baseline, not a load");
    assert_eq!(first.message, "the load is not known yet: 7 until it is");
    let second = story.tick(STEADY);
    assert!((9..=16).contains(&second.size), "{}", second.message);
    assert_eq!(second.recommendation.confidence, Confidence::Low);
}

#[test]
fn a_clock_that_is_set_back_costs_one_sample() {
    let mut story = Story::new(Algorithm::Adaptive);
    let before = story.run(3600.0, STEADY).size;
    story.now -= 3000.0;
    story.tick(STEADY);
    for _ in 0..20 {
        let decision = story.tick(STEADY);
        assert_eq!(decision.reason, Reason::Demand, "{}", decision.message);
        assert!(decision.size.abs_diff(before) <= 1);
    }
}

#[test]
fn samples_of_one_instant_are_one_sample() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.run(1800.0, STEADY);
    let sample = story.sample;
    assert_eq!(story.decide(&[sample, sample, sample]).reason, Reason::NoData);
}

#[test]
fn a_long_queue_seen_rarely_opens_more_than_the_rate_shows() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.bounds.max = 400;
    story.run(1800.0, STEADY);
    let before = story.size;
    let seen = story.tick(Load { waiting: f64::from(before) * 20.0, ..load(200.0, 0.08) });
    assert_eq!(seen.reason, Reason::WaitingClients);
    assert!(seen.size >= 4 * before, "{} after {before}", seen.size);
}

#[test]
fn waiting_clients_are_met_within_two_seconds_and_no_further_than_they_need() {
    let mut story = Story::new(Algorithm::Adaptive).every(1.0);
    story.run(1800.0, STEADY);
    let before = story.size;
    story.sample.active = f64::from(before);
    let burst = load(200.0, 0.08);
    let queue = Load { waiting: 30.0, ..burst };
    let first = story.tick(queue);
    assert_eq!(first.reason, Reason::WaitingClients, "{}", first.message);
    assert!(first.size > before && f64::from(first.size) <= f64::from(before) + 30.0, "{}", first.message);
    assert!(first.message.contains("30 clients wait"), "{}", first.message);
}

#[test]
fn figures_that_cannot_be_hold_the_size_and_are_named() {
    type Spoil = fn(&mut Sample);
    let spoils: [(&str, Spoil); 6] = [
        ("waiting", |s| s.waiting = f64::NAN),
        ("active", |s| s.active = -1.0),
        ("transactions", |s| s.transactions = f64::INFINITY),
        ("busy_seconds", |s| s.busy_seconds = f64::NAN),
        ("assignments", |s| s.assignments = -5.0),
        ("at_seconds", |s| s.at_seconds = f64::NAN),
    ];
    for (name, spoil) in spoils {
        let mut story = Story::new(Algorithm::Adaptive);
        let before = story.run(1800.0, STEADY).size;
        story.now += 15.0;
        let mut sample = Sample { at_seconds: story.now, ..story.sample };
        spoil(&mut sample);
        let held = story.decide(&[sample]);
        assert_eq!((held.size, held.reason), (before, Reason::InvalidData));
        assert!(held.message.contains(name), "{}", held.message);
        story.sample.transactions += 1500.0;
        let after = story.tick(STEADY);
        assert_eq!(after.reason, Reason::Demand, "one bad sample is forgotten: {}", after.message);
    }
}

#[test]
fn paused_and_recommend_change_nothing_and_tell_everything() {
    for (automation, reason) in [(Automation::Paused, Reason::Paused), (Automation::Recommend, Reason::RecommendOnly)] {
        let mut story = Story::new(Algorithm::TargetUtilization);
        story.automation = automation;
        story.size = 40;
        story.pods = 2;
        let told = story.run(3600.0, STEADY);
        assert_eq!((told.size, told.reason), (40, reason));
        assert_eq!(told.recommendation.target, 12, "8 busy at 70 %, after the window: {}", told.message);
        assert!(told.message.contains("12 is recommended"), "{}", told.message);
    }
}

#[test]
fn confidence_grows_with_what_was_seen() {
    let mut story = Story::new(Algorithm::Adaptive);
    assert_eq!(story.run(600.0, STEADY).recommendation.confidence, Confidence::Low);
    assert_eq!(story.run(600.0, STEADY).recommendation.confidence, Confidence::Medium);
    assert_eq!(story.run(4.0 * 3600.0, STEADY).recommendation.confidence, Confidence::High);
    let queued = story.tick(Load { waiting: 90.0, ..STEADY });
    assert_eq!(queued.recommendation.confidence, Confidence::Low, "a queue hides the demand");
}

#[test]
fn another_algorithm_begins_anew_and_the_readings_stay() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.run(1800.0, STEADY);
    story.settings = super::settings(Algorithm::LoadFactor);
    let decision = story.tick(STEADY);
    assert_eq!(decision.recommendation.uncapped_target, 6, "{}", decision.message);
}

#[test]
fn the_state_survives_its_way_through_json() {
    let mut story = Story::new(Algorithm::Adaptive);
    story.run(3600.0, STEADY);
    let text = serde_json::to_string(&story.sizer).expect("finite figures");
    assert!(text.len() < 32 * 1024, "{} bytes", text.len());
    let restored = serde_json::from_str(&text).expect("its own text");
    let mut copy = Story { sizer: restored, settings: story.settings.clone(), ..story };
    let next = copy.tick(load(160.0, 0.08));
    assert_eq!(next.reason, Reason::Demand);
    assert_ne!(next.recommendation.confidence, Confidence::Low);
}
