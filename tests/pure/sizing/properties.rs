//! What holds for every course of observations.

use proptest::prelude::*;
use sluice::{
    contract::Algorithm,
    decide::sizing::{Decision, Observation, Sizer},
    domain::{Automation, Bounds, Reason, Sample},
};

use super::settings;

fn any_algorithm() -> impl Strategy<Value = Algorithm> {
    prop_oneof![Just(Algorithm::Adaptive), Just(Algorithm::TargetUtilization), Just(Algorithm::LoadFactor)]
}

/// One step: pause, load, queue, and now and then nonsense.
#[derive(Clone, Debug)]
struct Step {
    pause: f64,
    rate: f64,
    service: f64,
    waiting: f64,
    leaked: f64,
    restart: bool,
    sample: bool,
    pods: u32,
}

fn any_step() -> impl Strategy<Value = Step> {
    (0.5..60.0_f64, 0.0..3000.0_f64, 0.0005..5.0_f64, 0.0..500.0_f64, 0.0..5.0_f64, 0..20_u32, 0..8_u32, 1..6_u32)
        .prop_map(|(pause, rate, service, waiting, leaked, restart, sample, pods)| Step {
            pause,
            rate,
            service,
            waiting: if waiting < 300.0 { 0.0 } else { waiting },
            leaked: leaked.floor(),
            restart: restart == 0,
            sample: sample > 0,
            pods,
        })
}

fn any_bounds() -> impl Strategy<Value = Bounds> {
    (0..50_u32, 0..300_u32, prop::option::of(0..300_u32)).prop_map(|(min, max, share)| Bounds { min, max, share })
}

fn run(algorithm: Algorithm, bounds: Bounds, interval: f64, steps: &[Step]) -> Vec<(u32, bool, Decision)> {
    let settings = settings(algorithm);
    let mut sizer = Sizer::default();
    let (mut now, mut size, mut sample) = (0.0, 10_u32, Sample::default());
    let mut decisions = Vec::new();
    for step in steps {
        now += step.pause;
        if step.restart {
            sample = Sample::default();
        }
        let done = (step.rate * step.pause).floor();
        sample.at_seconds = now;
        sample.transactions += done;
        sample.assignments += done;
        sample.busy_seconds += done * step.service;
        sample.active = (step.rate * step.service).min(f64::from(size)).floor() + step.leaked;
        sample.leaked = step.leaked;
        sample.waiting = step.waiting.floor();
        let samples = [sample];
        let observation = Observation {
            now_seconds: now,
            interval_seconds: interval,
            pods: step.pods,
            current: size,
            target: size,
            bounds,
            automation: Automation::Apply,
            refused_beyond: None,
            samples: if step.sample { &samples } else { &[] },
        };
        let before = size;
        let decision = sizer.decide(&settings, &observation);
        size = decision.size;
        decisions.push((before, step.sample, decision));
    }
    decisions
}

/// Any 64 bits as a number, the odd ones more often than chance would have them.
fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        0.0..1e4_f64,
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(-1.0),
        Just(0.0),
        Just(f64::MAX),
        Just(f64::MIN_POSITIVE),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_size_never_leaves_its_bounds(
        algorithm in any_algorithm(), bounds in any_bounds(), steps in prop::collection::vec(any_step(), 1..120),
    ) {
        for (_, _, decision) in run(algorithm, bounds, 15.0, &steps) {
            prop_assert!((bounds.least()..=bounds.most()).contains(&decision.size), "{:?} in {:?}", decision, bounds);
            let recommendation = decision.recommendation;
            prop_assert!(recommendation.lower_bound <= recommendation.target);
            prop_assert!(recommendation.target <= recommendation.upper_bound);
            prop_assert!(!decision.message.is_empty());
        }
    }

    #[test]
    fn without_data_the_size_stays(
        algorithm in any_algorithm(), steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let bounds = Bounds { min: 2, max: 200, share: None };
        for (before, sampled, decision) in run(algorithm, bounds, 1.0, &steps) {
            if !sampled {
                prop_assert_eq!(decision.reason, Reason::NoData);
                prop_assert_eq!(decision.size, before.clamp(2, 200));
            }
        }
    }

    #[test]
    fn the_same_observations_give_the_same_decisions(
        algorithm in any_algorithm(), bounds in any_bounds(), steps in prop::collection::vec(any_step(), 1..80),
    ) {
        prop_assert_eq!(run(algorithm, bounds, 15.0, &steps), run(algorithm, bounds, 15.0, &steps));
    }

    /// A larger maximum or share never makes a single decision smaller; a larger minimum never larger than needed.
    #[test]
    fn wider_bounds_never_shrink_a_wish(
        wish in 0..500_u32, bounds in any_bounds(), more in 0..100_u32,
    ) {
        let clamp = |bounds: Bounds| sluice::decide::guard::bounds::check(wish, &bounds).map_or(wish, |limit| limit.size);
        let size = clamp(bounds);
        let wider = [
            Bounds { max: bounds.max + more, ..bounds },
            Bounds { share: bounds.share.map(|share| share + more), ..bounds },
            Bounds { min: bounds.min + more, ..bounds },
        ];
        for wider in wider {
            prop_assert!(clamp(wider) >= size, "{:?}", wider);
        }
        prop_assert!(size <= bounds.max && bounds.share.is_none_or(|share| size <= share), "the share always wins");
    }

    #[test]
    fn no_figures_whatever_make_it_panic_or_leave_the_bounds(
        algorithm in any_algorithm(),
        bounds in any_bounds(),
        now in any_number(),
        interval in any_number(),
        (pods, current, target) in (any::<u32>(), any::<u32>(), any::<u32>()),
        figures in prop::collection::vec(prop::collection::vec(any_number(), 9), 0..12),
    ) {
        let settings = settings(algorithm);
        let mut sizer = Sizer::default();
        let samples: Vec<Sample> = figures
            .iter()
            .map(|f| Sample {
                at_seconds: f[0], waiting: f[1], active: f[2], leaked: f[3],
                transactions: f[4], busy_seconds: f[5], wait_seconds: f[6], assignments: f[7], abandoned: f[8],
            })
            .collect();
        for samples in [&samples[..], &samples[..samples.len() / 2], &[]] {
            let observation = Observation {
                now_seconds: now, interval_seconds: interval, pods, current, target, bounds,
                automation: Automation::Apply, refused_beyond: None, samples,
            };
            let decision = sizer.decide(&settings, &observation);
            prop_assert!((bounds.least()..=bounds.most()).contains(&decision.size));
        }
    }
}
