//! What holds for every course of a rollout, whatever the samples are.

use proptest::prelude::*;
use sluice::decide::analysis::{
    Analysis, AnalysisSettings, JudgedMetric, Look, Outcome, PodInterval, RolloutVerdict, SampledFigure, Track,
};

/// What one pod says in one second.
fn any_figures() -> impl Strategy<Value = (Option<f64>, Option<f64>, Option<f64>, Option<f64>)> {
    let figure = || {
        prop_oneof![
            8 => (0.0..100.0_f64).prop_map(Some),
            1 => Just(None),
            1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), Just(1e300)].prop_map(Some),
        ]
    };
    (figure(), figure(), figure(), figure())
}

fn figure(value: Option<f64>) -> SampledFigure {
    value.map_or(SampledFigure::Absent, SampledFigure::from)
}

/// Seconds of up to four pods: names may repeat, and pods come, go, change and go back.
fn any_course() -> impl Strategy<Value = Vec<Vec<PodInterval>>> {
    let pod = (0..4_u8, any::<bool>(), any_figures()).prop_map(|(name, is_canary, (count, time, wait, errors))| {
        PodInterval {
            transactions: figure(count),
            transaction_mean_ms: figure(time),
            wait_mean_ms: figure(wait),
            wait_max_ms: figure(wait),
            errors: figure(errors.map(|errors| (errors - 80.0).max(0.0).floor())),
            login_failures: figure(errors.map(|errors| (errors - 98.0).max(0.0).floor())),
            ..PodInterval::new(&format!("pod-{name}"), if is_canary { Track::Canary } else { Track::Stable })
        }
    });
    prop::collection::vec(prop::collection::vec(pod, 0..5), 1..80)
}

fn settings() -> AnalysisSettings {
    let limited = JudgedMetric { limit_count: Some(3.0), ..JudgedMetric::named("LoginFailures") };
    let metrics = ["TransactionTime", "WaitTime", "Errors"].map(JudgedMetric::named).into_iter().chain([limited]);
    AnalysisSettings {
        min_exposure_seconds: 3.0,
        planned_exposure_seconds: 8.0,
        max_exposure_seconds: 30.0,
        min_transactions: 10.0,
        ..AnalysisSettings::new(metrics.collect())
    }
}

fn run(course: &[Vec<PodInterval>]) -> Vec<RolloutVerdict> {
    let mut analysis = Analysis::new(settings()).expect("settings");
    let looks = course.iter().enumerate();
    looks.map(|(at, pods)| analysis.judge(&Look { at_seconds: at as f64, pods, measurements: &[] })).collect()
}

proptest! {
    #[test]
    fn a_fail_stays_a_fail(course in any_course()) {
        let verdicts = run(&course);
        if let Some(first) = verdicts.iter().position(|verdict| verdict.verdict == Outcome::Fail) {
            for verdict in &verdicts[first..] {
                prop_assert_eq!(verdict.verdict, Outcome::Fail);
            }
        }
    }

    #[test]
    fn the_verdict_is_the_worst_of_its_metrics_and_says_why(course in any_course()) {
        for verdict in run(&course) {
            let worst = verdict.metrics.iter().map(|metric| metric.verdict).max();
            prop_assert_eq!(Some(verdict.verdict), worst);
            prop_assert!(!verdict.message.is_empty() && verdict.metrics.iter().all(|metric| !metric.message.is_empty()));
            prop_assert!(!verdict.message.contains("NaN") || verdict.message.contains("is NaN"), "{}", verdict.message);
        }
    }

    #[test]
    fn the_same_samples_give_the_same_verdicts_in_any_order_of_the_pods(course in any_course(), seed in any::<u64>()) {
        let mut shuffled = course.clone();
        for (number, pods) in shuffled.iter_mut().enumerate() {
            let length = pods.len().max(1);
            let by = usize::try_from((seed >> (number % 60)) % 5).unwrap_or(0) % length;
            // of two that have one name neither counts, so their order does not matter either
            pods.rotate_left(by);
            if seed % 2 == 0 {
                pods.reverse();
            }
        }
        prop_assert_eq!(run(&course), run(&shuffled));
    }

    #[test]
    fn an_analysis_that_was_written_down_goes_on_as_the_one_that_was_not(course in any_course(), at in 0..80_usize) {
        let verdicts = run(&course);
        let mut analysis = Analysis::new(settings()).expect("settings");
        for (second, pods) in course.iter().enumerate() {
            if second == at {
                let kept = serde_json::to_string(&analysis).expect("written");
                analysis = serde_json::from_str(&kept).expect("read");
            }
            let verdict = analysis.judge(&Look { at_seconds: second as f64, pods, measurements: &[] });
            // a number that was written and read may differ in its last digit
            let said = |verdict: &RolloutVerdict| verdict.metrics.iter().map(|metric| (metric.verdict, metric.reason)).collect::<Vec<_>>();
            prop_assert_eq!(said(&verdict), said(&verdicts[second]));
        }
    }

    #[test]
    fn nothing_passes_without_samples_of_the_canary(course in any_course()) {
        // what is known of the canary is taken away
        let blind: Vec<Vec<PodInterval>> = course.iter().map(|pods| pods.iter().map(|pod| match pod.track {
            Track::Canary => PodInterval::new(&pod.pod, Track::Canary),
            Track::Stable => pod.clone(),
        }).collect()).collect();
        for verdict in run(&blind) {
            prop_assert_eq!(verdict.verdict, Outcome::Inconclusive);
        }
        let none: Vec<Vec<PodInterval>> = course.iter().map(|pods| {
            pods.iter().filter(|pod| pod.track == Track::Stable).cloned().collect()
        }).collect();
        for verdict in run(&none) {
            prop_assert_eq!(verdict.verdict, Outcome::Inconclusive);
        }
    }

    #[test]
    fn whoever_passes_has_had_a_usable_sample_of_each_metric_in_the_last_seconds(course in any_course()) {
        for (at, verdict) in run(&course).iter().enumerate().filter(|(_, verdict)| verdict.verdict == Outcome::Pass) {
            let fresh = &course[at.saturating_sub(4)..=at];
            let known = |of: fn(&PodInterval) -> SampledFigure| fresh.iter().flatten().any(|pod| {
                pod.track == Track::Canary && matches!(of(pod), SampledFigure::Value(_))
            });
            prop_assert!(known(|pod| pod.transaction_mean_ms) && known(|pod| pod.wait_mean_ms) && known(|pod| pod.errors), "{}", verdict.message);
        }
    }
}
