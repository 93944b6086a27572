use super::*;

/// A pool of pods whose times repeat themselves, with what is to be changed of it.
struct Fleet {
    analysis: Analysis,
    second: u32,
}

fn metric(name: &str) -> JudgedMetric {
    JudgedMetric::named(name)
}

/// A pod at its usual load, a little different each second.
fn pod(name: &str, track: Track, second: u32) -> PodInterval {
    let number = name.bytes().map(u32::from).sum::<u32>();
    let jitter = f64::from((second * 13 + number * 7 + second * second * number) % 11) / 10.0;
    PodInterval {
        transactions: SampledFigure::Value(100.0),
        transaction_mean_ms: SampledFigure::Value(8.0 + 2.0 * jitter),
        wait_mean_ms: SampledFigure::Value(jitter),
        wait_max_ms: SampledFigure::Value(4.0 * jitter),
        errors: SampledFigure::Value(0.0),
        login_failures: SampledFigure::Value(0.0),
        clients_cut: SampledFigure::Value(0.0),
        ..PodInterval::new(name, track)
    }
}

impl Fleet {
    fn new(metrics: Vec<JudgedMetric>) -> Self {
        Self::with(AnalysisSettings::new(metrics))
    }

    fn with(settings: AnalysisSettings) -> Self {
        Self { analysis: Analysis::new(settings).expect("settings"), second: 0 }
    }

    fn look(&mut self, pods: &[PodInterval], measurements: &[Measurement]) -> RolloutVerdict {
        self.second += 1;
        self.analysis.judge(&Look { at_seconds: f64::from(self.second), pods, measurements })
    }

    /// So many seconds of five pods, of which the first is the canary or not yet; what `change` makes of each.
    fn run(&mut self, seconds: u32, track: Track, change: impl Fn(&mut PodInterval)) -> RolloutVerdict {
        let mut last = None;
        for _ in 0..seconds {
            let mut pods: Vec<PodInterval> = ["a", "b", "c", "d", "e"]
                .map(|name| pod(name, if name == "a" { track } else { Track::Stable }, self.second))
                .to_vec();
            pods.iter_mut().for_each(&change);
            last = Some(self.look(&pods, &[]));
        }
        last.expect("seconds")
    }
}

/// Changes the canary alone.
fn canary(change: impl Fn(&mut PodInterval)) -> impl Fn(&mut PodInterval) {
    move |pod| {
        if pod.track == Track::Canary {
            change(pod);
        }
    }
}

fn slower(factor: f64) -> impl Fn(&mut PodInterval) {
    canary(move |pod| {
        let time = pod.transaction_mean_ms.value();
        pod.transaction_mean_ms = time.map_or(SampledFigure::Absent, |ms| (ms * factor).into());
    })
}

fn same(_: &mut PodInterval) {}

fn said(verdict: &RolloutVerdict) -> (Outcome, VerdictReason) {
    (verdict.verdict, verdict.reason)
}

#[test]
fn a_canary_like_the_others_passes_and_one_that_is_twice_as_slow_fails_within_seconds() {
    let mut fleet = Fleet::new(vec![metric("TransactionTime"), metric("Errors")]);
    assert_eq!(said(&fleet.run(60, Track::Stable, same)), (Outcome::Inconclusive, VerdictReason::WarmingUp));
    let early = fleet.run(12, Track::Canary, same);
    assert_eq!(said(&early), (Outcome::Inconclusive, VerdictReason::TooLittleExposure), "{}", early.message);
    let passed = fleet.run(25, Track::Canary, same);
    assert_eq!(said(&passed), (Outcome::Pass, VerdictReason::NoHarmFound), "{}", passed.message);
    assert!(passed.is_final && passed.message.contains("no harm found on a"), "{}", passed.message);

    let mut fleet = Fleet::new(vec![metric("TransactionTime"), metric("Errors")]);
    fleet.run(60, Track::Stable, same);
    let failed = fleet.run(11, Track::Canary, slower(2.0));
    assert_eq!(said(&failed), (Outcome::Fail, VerdictReason::SlowerThanStable), "{}", failed.message);
    assert!(failed.message.contains("worse on a: TransactionTime: x2.05"), "{}", failed.message);
    assert!(failed.message.contains("against 4 other pods"), "{}", failed.message);
}

#[test]
fn a_small_difference_is_no_failure_however_sure_it_is() {
    let mut fleet = Fleet::new(vec![metric("TransactionTime")]);
    fleet.run(60, Track::Stable, same);
    let passed = fleet.run(120, Track::Canary, slower(1.15));
    assert_eq!(passed.verdict, Outcome::Pass, "{}", passed.message);
    assert!(passed.metrics[0].estimate.expect("compared").ratio_low > 1.05);
}

#[test]
fn a_fail_stays_one_and_a_pass_becomes_one() {
    let mut fleet = Fleet::new(vec![metric("TransactionTime")]);
    fleet.run(60, Track::Stable, same);
    assert_eq!(fleet.run(40, Track::Canary, same).verdict, Outcome::Pass);
    let failed = fleet.run(60, Track::Canary, slower(3.0));
    assert_eq!(failed.verdict, Outcome::Fail, "{}", failed.message);
    assert_eq!(fleet.run(300, Track::Canary, same), failed);
}

#[test]
fn what_cannot_be_known_is_inconclusive_with_its_reason_and_a_pass_is_none_without_samples() {
    let names = ["TransactionTime", "WaitTime", "Errors"];
    for (what, reason, change) in [
        ("absent", VerdictReason::NoData, SampledFigure::Absent),
        ("NaN", VerdictReason::NotANumber, SampledFigure::from(f64::NAN)),
        ("infinite", VerdictReason::NotANumber, SampledFigure::from(f64::INFINITY)),
        ("below zero", VerdictReason::NotANumber, SampledFigure::from(-1.0)),
    ] {
        for name in names {
            let spoil = canary(move |pod| match name {
                "TransactionTime" => pod.transaction_mean_ms = change,
                "WaitTime" => pod.wait_mean_ms = change,
                _ => pod.errors = change,
            });
            let mut fleet = Fleet::new(vec![metric(name)]);
            fleet.run(60, Track::Stable, same);
            let never = fleet.run(120, Track::Canary, &spoil);
            assert_eq!(said(&never), (Outcome::Inconclusive, reason), "{name} {what}: {}", never.message);
            let late = fleet.run(600, Track::Canary, &spoil);
            assert_eq!(said(&late), (Outcome::Inconclusive, VerdictReason::NotProven), "{name} {what}");
            assert!(late.is_final && !never.is_final);

            let mut fleet = Fleet::new(vec![metric(name)]);
            fleet.run(60, Track::Stable, same);
            assert_eq!(fleet.run(60, Track::Canary, same).verdict, Outcome::Pass, "{name}");
            assert_eq!(said(&fleet.run(5, Track::Canary, &spoil)), (Outcome::Inconclusive, reason), "{name} {what}");
            assert_eq!(fleet.run(1, Track::Canary, same).verdict, Outcome::Pass, "{name}: samples are back");
        }
    }
}

#[test]
fn a_canary_without_traffic_proves_nothing_by_having_no_errors() {
    let mut fleet = Fleet::new(vec![metric("Errors")]);
    fleet.run(60, Track::Stable, same);
    let idle = canary(|pod| pod.transactions = SampledFigure::Value(0.0));
    assert_eq!(said(&fleet.run(120, Track::Canary, idle)), (Outcome::Inconclusive, VerdictReason::NoTraffic));

    let mut fleet = Fleet::new(vec![metric("Errors")]);
    fleet.run(60, Track::Stable, same);
    let few = canary(|pod| pod.transactions = SampledFigure::Value(0.1));
    let verdict = fleet.run(120, Track::Canary, few);
    assert_eq!(said(&verdict), (Outcome::Inconclusive, VerdictReason::TooLittleExposure), "{}", verdict.message);
    assert_eq!(
        fleet.run(120, Track::Canary, canary(|pod| pod.transactions = SampledFigure::Value(0.1))).reason,
        VerdictReason::NotProven
    );
}

#[test]
fn a_pod_that_occurs_twice_says_nothing() {
    let mut fleet = Fleet::new(vec![metric("TransactionTime")]);
    fleet.run(60, Track::Stable, same);
    for _ in 0..60 {
        let pods = ["a", "a", "b", "c"]
            .map(|name| pod(name, if name == "a" { Track::Canary } else { Track::Stable }, fleet.second));
        let verdict = fleet.look(&pods, &[]);
        assert_eq!(verdict.verdict, Outcome::Inconclusive);
        if fleet.second > 70 {
            assert_eq!(verdict.reason, VerdictReason::SeveralSeries, "{}", verdict.message);
        }
    }
}

#[test]
fn errors_of_the_canary_alone_fail_and_the_same_on_all_pods_do_not() {
    let second = std::cell::Cell::new(0_u32);
    let burst = |pod: &mut PodInterval, every: u32| {
        second.set(second.get() + 1);
        if second.get().is_multiple_of(every) {
            pod.errors = SampledFigure::Value(50.0);
        }
    };
    let mut fleet = Fleet::new(vec![metric("Errors")]);
    fleet.run(60, Track::Stable, same);
    let failed = fleet.run(15, Track::Canary, canary(|pod| burst(pod, 1)));
    assert_eq!(said(&failed), (Outcome::Fail, VerdictReason::MoreErrorsThanStable), "{}", failed.message);

    let mut fleet = Fleet::new(vec![metric("Errors")]);
    fleet.run(60, Track::Stable, same);
    // 5 pods, every seventh pod-second: each pod in turn
    let passed = fleet.run(60, Track::Canary, |pod| burst(pod, 7));
    assert_eq!(passed.verdict, Outcome::Pass, "{}", passed.message);
}

#[test]
fn limits_fail_at_once_unless_the_other_pods_exceed_them_too() {
    let limited =
        |name: &str, limit_ms, limit_count| JudgedMetric { compare: None, limit_ms, limit_count, ..metric(name) };
    for (metric, spoil) in [
        (
            limited("LoginFailures", None, Some(2.0)),
            (|pod| pod.login_failures = SampledFigure::Value(3.0)) as fn(&mut PodInterval),
        ),
        (limited("ClientsCut", None, Some(0.0)), |pod| pod.clients_cut = SampledFigure::Value(1.0)),
        (limited("LongestWait", Some(2000.0), None), |pod| pod.wait_max_ms = SampledFigure::Value(2001.0)),
    ] {
        let mut fleet = Fleet::new(vec![metric.clone()]);
        fleet.run(30, Track::Stable, same);
        let failed = fleet.run(1, Track::Canary, canary(spoil));
        assert_eq!(said(&failed), (Outcome::Fail, VerdictReason::LimitExceeded), "{}", failed.message);

        let mut fleet = Fleet::new(vec![metric.clone()]);
        fleet.run(30, Track::Stable, same);
        let all = fleet.run(60, Track::Canary, spoil);
        assert_eq!(said(&all), (Outcome::Inconclusive, VerdictReason::StableExceedsToo), "{}", all.message);

        let mut fleet = Fleet::new(vec![metric]);
        fleet.run(30, Track::Stable, same);
        assert_eq!(said(&fleet.run(60, Track::Canary, same)), (Outcome::Pass, VerdictReason::NoHarmFound));
    }
}

#[test]
fn a_quantile_is_weighted_by_transactions_and_judged_with_enough_exposure_only() {
    let limited = JudgedMetric { compare: Some(false), limit_ms: Some(20.0), ..metric("WaitTime") };
    let mut fleet = Fleet::new(vec![limited.clone()]);
    fleet.run(30, Track::Stable, same);
    // the second with few transactions is slow: 1 of 901
    let second = std::cell::Cell::new(0_u32);
    let rarely = canary(|pod| {
        second.set(second.get() + 1);
        if second.get().is_multiple_of(2) {
            (pod.transactions, pod.wait_mean_ms) = (SampledFigure::Value(1.0), SampledFigure::Value(500.0));
        }
    });
    assert_eq!(fleet.run(60, Track::Canary, rarely).verdict, Outcome::Pass);
    let mut fleet = Fleet::new(vec![limited]);
    fleet.run(30, Track::Stable, same);
    let waits = || canary(|pod| pod.wait_mean_ms = SampledFigure::Value(30.0));
    assert_eq!(fleet.run(14, Track::Canary, waits()).verdict, Outcome::Inconclusive);
    let failed = fleet.run(2, Track::Canary, waits());
    assert_eq!(said(&failed), (Outcome::Fail, VerdictReason::LimitExceeded), "{}", failed.message);
}

fn measured(values: &[f64]) -> Vec<Measurement> {
    let series = values.iter().map(|value| MeasuredSeries { labels: format!("pod=\"{value}\""), value: Some(*value) });
    vec![Measurement { name: "checkout".to_owned(), series: series.collect() }]
}

#[test]
fn a_metric_of_ones_own_is_judged_by_its_conditions_and_by_nothing_that_is_no_measurement() {
    let own = |success: Option<&str>, failure: Option<&str>| JudgedMetric {
        success_condition: success.map(str::to_owned),
        failure_condition: failure.map(str::to_owned),
        ..metric("checkout")
    };
    let (success, failure) = (Some("result < 0.05"), Some("result > 0.1"));
    let (pass, fail, unknown) = (Outcome::Pass, Outcome::Fail, Outcome::Inconclusive);
    for (success, failure, values, outcome, reason) in [
        (success, failure, &[0.01][..], pass, VerdictReason::NoHarmFound),
        (success, failure, &[0.2], fail, VerdictReason::ConditionFailed),
        (success, failure, &[0.07], unknown, VerdictReason::Undecided),
        (success, failure, &[], unknown, VerdictReason::NoData),
        (success, failure, &[0.01, 0.02], unknown, VerdictReason::SeveralSeries),
        (success, None, &[0.01], pass, VerdictReason::NoHarmFound),
        (success, None, &[-0.0], pass, VerdictReason::NoHarmFound),
        (success, None, &[0.06], fail, VerdictReason::ConditionFailed),
        (success, None, &[f64::NAN], unknown, VerdictReason::NotANumber),
        (success, None, &[f64::INFINITY], unknown, VerdictReason::NotANumber),
        (None, failure, &[0.06], pass, VerdictReason::NoHarmFound),
        (None, failure, &[f64::NAN], unknown, VerdictReason::NotANumber),
        (None, failure, &[f64::NEG_INFINITY], unknown, VerdictReason::NotANumber),
    ] {
        let mut fleet = Fleet::new(vec![own(success, failure)]);
        let mut verdict = None;
        for _ in 0..9 {
            let pods = [pod("a", Track::Canary, 0), pod("b", Track::Stable, 0)];
            verdict = Some(fleet.look(&pods, &measured(values)));
        }
        let verdict = verdict.expect("looks");
        assert_eq!(said(&verdict), (outcome, reason), "{success:?} {failure:?} {values:?}: {}", verdict.message);
    }
}

#[test]
fn a_metric_of_ones_own_that_is_measured_no_more_does_not_pass() {
    let own = JudgedMetric { success_condition: Some("result < 1".to_owned()), ..metric("checkout") };
    let mut fleet = Fleet::new(vec![own]);
    let pods = [pod("a", Track::Canary, 0), pod("b", Track::Stable, 0)];
    for _ in 0..9 {
        fleet.look(&pods, &measured(&[0.0]));
    }
    assert_eq!(fleet.look(&pods, &[]).verdict, Outcome::Pass);
    for _ in 0..60 {
        fleet.look(&pods, &[]);
    }
    assert_eq!(said(&fleet.look(&pods, &[])), (Outcome::Inconclusive, VerdictReason::NoData));
}

#[test]
fn a_fail_of_one_metric_goes_before_what_another_does_not_know_and_that_before_a_pass() {
    let mut fleet = Fleet::new(vec![metric("Errors"), metric("TransactionTime")]);
    fleet.run(60, Track::Stable, same);
    let unknown = |pod: &mut PodInterval| pod.errors = SampledFigure::Absent;
    let undecided = fleet.run(40, Track::Canary, canary(unknown));
    assert_eq!(undecided.verdict, Outcome::Inconclusive);
    assert_eq!((undecided.metrics[0].verdict, undecided.metrics[1].verdict), (Outcome::Inconclusive, Outcome::Pass));
    let both = |pod: &mut PodInterval| {
        unknown(pod);
        slower(3.0)(pod);
    };
    assert_eq!(fleet.run(60, Track::Canary, both).verdict, Outcome::Fail);
}

#[test]
fn the_first_seconds_of_a_process_do_not_count_and_one_that_went_back_is_no_baseline() {
    let mut fleet = Fleet::new(vec![metric("TransactionTime")]);
    fleet.run(60, Track::Stable, same);
    let cold = fleet.run(5, Track::Canary, slower(50.0));
    assert_eq!(said(&cold), (Outcome::Inconclusive, VerdictReason::WarmingUp), "{}", cold.message);
    assert_eq!(fleet.run(35, Track::Canary, same).verdict, Outcome::Pass);
    let back = fleet.run(10, Track::Stable, same);
    assert_eq!(said(&back), (Outcome::Inconclusive, VerdictReason::NoData), "{}", back.message);
}

#[test]
fn one_pod_is_judged_against_its_own_past_and_one_without_past_and_others_by_nothing() {
    let one = |fleet: &mut Fleet, seconds: u32, track: Track, factor: f64| {
        let mut last = None;
        for _ in 0..seconds {
            let mut pod = pod("a", track, fleet.second);
            pod.transaction_mean_ms =
                pod.transaction_mean_ms.value().map_or(SampledFigure::Absent, |ms| (ms * factor).into());
            last = Some(fleet.look(&[pod], &[]));
        }
        last.expect("seconds")
    };
    let mut fleet = Fleet::new(vec![metric("TransactionTime"), metric("Errors")]);
    one(&mut fleet, 60, Track::Stable, 1.0);
    let passed = one(&mut fleet, 40, Track::Canary, 1.0);
    assert_eq!(passed.verdict, Outcome::Pass, "{}", passed.message);
    assert_eq!(passed.metrics[0].estimate.expect("compared").against, Against::OwnPast);
    assert!(passed.message.contains("weaker"), "{}", passed.message);
    assert_eq!(one(&mut fleet, 60, Track::Canary, 3.0).verdict, Outcome::Fail);

    let mut fleet = Fleet::new(vec![metric("TransactionTime")]);
    assert_eq!(said(&one(&mut fleet, 60, Track::Canary, 1.0)), (Outcome::Inconclusive, VerdictReason::NoBaseline));
}

#[test]
fn without_a_past_the_spread_of_the_pods_stays_in_doubt() {
    let mut fleet = Fleet::new(vec![metric("TransactionTime")]);
    let failed = fleet.run(30, Track::Canary, slower(2.5));
    assert_eq!(said(&failed), (Outcome::Fail, VerdictReason::SlowerThanStable), "{}", failed.message);
    assert!(failed.message.contains("without a past"), "{}", failed.message);
    let mut fleet = Fleet::new(vec![metric("TransactionTime")]);
    let passed = fleet.run(60, Track::Canary, same);
    assert_eq!(passed.verdict, Outcome::Pass, "{}", passed.message);
}

#[test]
fn more_metrics_make_each_of_them_slower_to_fail() {
    let seconds = |metrics: &[&str]| {
        let mut fleet = Fleet::new(metrics.iter().map(|name| metric(name)).collect());
        fleet.run(60, Track::Stable, same);
        (1..60).find(|_| fleet.run(1, Track::Canary, slower(1.4)).verdict == Outcome::Fail)
    };
    let (one, three) = (seconds(&["TransactionTime"]), seconds(&["TransactionTime", "WaitTime", "Errors"]));
    assert!(one.is_some() && one <= three, "{one:?} {three:?}");
}

#[test]
fn settings_that_cannot_be_are_refused_with_their_place() {
    let of =
        |metrics: Vec<JudgedMetric>| Analysis::new(AnalysisSettings::new(metrics)).expect_err("refused").to_string();
    assert!(of(Vec::new()).contains("settings.metrics is empty"));
    for (metric, words) in [
        (metric("WaitP95"), "unknown metric: known are TransactionTime"),
        (metric("LongestWait"), "nothing would be judged: give it limit_ms"),
        (metric("LoginFailures"), "give it limit_count"),
        (JudgedMetric { limit_count: Some(1.0), ..metric("WaitTime") }, "write limit_ms in place"),
        (JudgedMetric { limit_ms: Some(1.0), ..metric("Errors") }, "write limit_count in place"),
        (JudgedMetric { limit_ms: Some(f64::NAN), ..metric("WaitTime") }, "expected 0 to"),
        (JudgedMetric { compare: Some(true), limit_ms: Some(1.0), ..metric("LongestWait") }, "not compared"),
        (JudgedMetric { compare: Some(false), ..metric("WaitTime") }, "nothing would be judged"),
        (JudgedMetric { failure_limit: 1, ..metric("WaitTime") }, "failure_limit"),
        (JudgedMetric { success_condition: Some("result < 1".into()), ..metric("WaitTime") }, "metric of your own"),
        (
            JudgedMetric { success_condition: Some("result << 1".into()), ..metric("mine") },
            "success_condition: at character 9",
        ),
        (
            JudgedMetric { success_condition: Some("result < 1".into()), limit_ms: Some(1.0), ..metric("mine") },
            "has conditions",
        ),
        (metric(""), "1 to 63 characters"),
    ] {
        let error = of(vec![metric]);
        assert!(error.starts_with("settings.metrics[0]") && error.contains(words), "{words}: {error}");
    }
    assert!(of(vec![metric("Errors"), metric("Errors")]).contains("settings.metrics[1] (Errors): another metric"));
    assert!(of(vec![metric("Errors"); 17]).contains("17 metrics"));
    let good = AnalysisSettings::new(vec![metric("Errors")]);
    for (settings, words) in [
        (AnalysisSettings { false_alarm_probability: 0.0, ..good.clone() }, "settings.false_alarm_probability is 0"),
        (
            AnalysisSettings { tolerated_ratio: f64::NAN, ..good.clone() },
            "settings.tolerated_ratio is NaN; expected 1 to 10",
        ),
        (
            AnalysisSettings { max_exposure_seconds: 20.0, ..good.clone() },
            "settings.max_exposure_seconds is 20; expected 30",
        ),
        (
            AnalysisSettings { min_exposure_seconds: 40.0, ..good },
            "settings.min_exposure_seconds is 40; expected 1 to 30",
        ),
    ] {
        let error = Analysis::new(settings).expect_err(words).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}
