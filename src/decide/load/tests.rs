use proptest::prelude::*;

use super::*;

/// A pool whose pods are scraped every 15 s and judged every 15 s.
struct Pool {
    state: LoadState,
    read: BTreeMap<String, PodFigures>,
    overrides: BTreeMap<api::Signal, OverrideAnswer>,
    now: f64,
    stale_after_seconds: f64,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            state: LoadState::default(),
            read: BTreeMap::new(),
            overrides: BTreeMap::new(),
            now: 0.0,
            stale_after_seconds: 90.0,
        }
    }
}

impl Pool {
    fn tick(&mut self, expected: &[&str]) -> PoolLoad {
        self.tick_of(&expected.iter().map(|name| running(name)).collect::<Vec<_>>(), None)
    }

    fn tick_of(&mut self, expected: &[ExpectedPod], failed: Option<&str>) -> PoolLoad {
        self.now += 15.0;
        self.state.step(&LoadInput {
            now_seconds: self.now,
            expected,
            read: failed.map_or(Ok(&self.read), Err),
            overrides: &self.overrides,
            stale_after_seconds: self.stale_after_seconds,
        })
    }

    /// A query of the user's own yields this from now on.
    fn answers(&mut self, signal: api::Signal, value: f64) {
        self.overrides.insert(signal, OverrideAnswer { query: format!("{signal:?}"), number: Ok(value) });
    }

    /// A tick of a pool whose signals all come from queries of the user's own.
    fn tick_of_own(&mut self, transactions: f64) -> PoolLoad {
        for signal in OTHER_SIGNALS {
            self.answers(signal, 1.0);
        }
        self.answers(api::Signal::Transactions, transactions);
        self.tick(&[])
    }

    /// A pod reports: `busy` connections since it reported last.
    fn report(&mut self, pod: &str, busy: f64, waiting: f64) {
        let at_seconds = self.now + 10.0;
        let before = self.read.get(pod).map(|figures| figures.sample);
        let dt = before.map_or(0.0, |before| at_seconds - before.at_seconds);
        let before = before.unwrap_or_default();
        let sample = Sample {
            abandoned: 0.0,
            at_seconds,
            waiting,
            active: busy,
            leaked: 0.0,
            transactions: before.transactions + busy * dt * 20.0,
            busy_seconds: before.busy_seconds + busy * dt,
            wait_seconds: before.wait_seconds + waiting * dt,
            assignments: before.assignments + busy * dt * 20.0,
        };
        self.read.insert(pod.to_owned(), figures_of(sample));
    }
}

fn figures_of(sample: Sample) -> PodFigures {
    PodFigures {
        sample,
        leaked: Some(sample.leaked),
        abandoned: Some(sample.abandoned),
        assignments: Some(sample.assignments),
        held: Some(sample.active + 2.0),
        limit: Some(20.0),
        demand_peak: None,
        proof: None,
    }
}

fn running(name: &str) -> ExpectedPod<'_> {
    ExpectedPod { name, uid: name, stage: Stage::Running }
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-6
}

fn sample_of(load: &PoolLoad) -> Sample {
    match load.judgement {
        Judgement::New { sample, .. } => sample,
        ref other => panic!("{other:?}"),
    }
}

fn last_of(pool: &Pool) -> Sample {
    pool.state.last.expect("an observation").0
}

fn hold_of(load: &PoolLoad) -> (HoldReason, &str) {
    match &load.judgement {
        Judgement::Hold { reason, message } => (*reason, message),
        other => panic!("{other:?}"),
    }
}

/// All signals but the transactions.
const OTHER_SIGNALS: [api::Signal; 4] = [
    api::Signal::WaitingClients,
    api::Signal::ActiveConnections,
    api::Signal::TransactionSeconds,
    api::Signal::WaitSeconds,
];

#[test]
fn a_pod_whose_clock_is_far_ahead_and_hardly_moves_does_not_stop_the_time_of_its_pool() {
    let mut pool = Pool::default();
    let mut before: Option<Sample> = None;
    for tick in 0..8 {
        pool.report("a", 4.0, 0.0);
        let odd = Sample { at_seconds: 4e9 + f64::from(tick) * 0.001, active: 1.0, ..Sample::default() };
        pool.read.insert("odd".to_owned(), figures_of(odd));
        let sample = sample_of(&pool.tick(&["a", "odd"]));
        if let Some(before) = before.replace(sample) {
            let seconds = sample.at_seconds - before.at_seconds;
            let rate = (sample.transactions - before.transactions) / seconds;
            assert!(close(seconds, 15.0) && close(rate, 80.0), "{rate} a second in {seconds} s");
        }
        assert!(sample.at_seconds <= pool.now, "it lies in the future: {}", sample.at_seconds);
    }
}

#[test]
fn two_pods_make_one_pool_whose_counters_grow_by_both_rates() {
    let mut pool = Pool::default();
    pool.report("a", 9.0, 0.0);
    pool.report("b", 1.0, 0.0);
    let first = sample_of(&pool.tick(&["a", "b"]));
    pool.report("a", 9.0, 4.0);
    pool.report("b", 1.0, 0.0);
    let load = pool.tick(&["a", "b"]);
    let second = sample_of(&load);
    assert!(close(second.busy_seconds - first.busy_seconds, 150.0), "{second:?}");
    assert!(close(second.active, 10.0) && close(second.waiting, 4.0));
    assert_eq!(load.reporting, 2);
    let figures = load.figures.unwrap();
    // four more clients in 15 s, of 50 ms each, are a hundredth of a connection
    let queued = 4.0 / 15.0 * 0.05;
    assert!(
        close(figures.demand, 10.0 + queued) && close(figures.held, 14.0) && close(figures.size, 40.0),
        "{figures:?}"
    );
    assert!(close(figures.oldest_age_seconds, 5.0));
    assert!(close(load.demands["a"].mean, 9.0 + queued) && close(load.demands["b"].mean, 1.0), "{:?}", load.demands);
}

#[test]
fn a_reading_that_was_seen_is_no_news() {
    let mut pool = Pool::default();
    pool.report("a", 1.0, 0.0);
    assert!(matches!(pool.tick(&["a"]).judgement, Judgement::New { .. }));
    assert_eq!(pool.tick(&["a"]).judgement, Judgement::Unchanged);
}

#[test]
fn when_every_reading_is_old_everything_holds_and_nobody_has_a_demand() {
    let mut pool = Pool::default();
    pool.report("a", 1.0, 0.0);
    pool.tick(&["a"]);
    pool.now += 90.0;
    let load = pool.tick(&["a"]);
    assert_eq!(
        hold_of(&load),
        (
            HoldReason::StaleMetrics,
            "the newest reading of the 1 pods is 110 s old, more than 90 s; check the targets in Prometheus and the clocks of the nodes"
        )
    );
    assert!(load.demands.is_empty() && load.proofs.is_empty() && load.figures.is_none());
}

#[test]
fn an_agent_whose_clock_is_ahead_does_not_look_fresh_for_longer() {
    let mut pool = Pool::default();
    pool.report("a", 1.0, 0.0);
    pool.read.get_mut("a").unwrap().sample.at_seconds += 3600.0;
    pool.tick(&["a"]);
    pool.now += 90.0;
    assert_eq!(hold_of(&pool.tick(&["a"])).0, HoldReason::StaleMetrics);
}

#[test]
fn an_agent_whose_clock_is_behind_is_held_and_not_believed() {
    let mut pool = Pool { now: 1000.0, ..Pool::default() };
    pool.report("a", 1.0, 0.0);
    pool.read.get_mut("a").unwrap().sample.at_seconds -= 600.0;
    assert_eq!(hold_of(&pool.tick(&["a"])).0, HoldReason::StaleMetrics);
}

#[test]
fn an_older_answer_is_no_news_and_no_restart_and_is_told_once_it_came_again() {
    let mut pool = Pool { now: 1000.0, ..Pool::default() };
    pool.report("a", 2.0, 0.0);
    let first = sample_of(&pool.tick(&["a"]));
    let mut last = first;
    for round in 1..=4 {
        let behind = pool.read["a"];
        pool.report("a", 2.0, 0.0);
        let load = pool.tick(&["a"]);
        last = sample_of(&load);
        assert!(close(load.demands["a"].mean, 2.0), "round {round}: {:?}", load.demands);
        let ahead = pool.read.insert("a".to_owned(), behind).unwrap();
        let load = pool.tick(&["a"]);
        assert_eq!(load.judgement, Judgement::Unchanged, "round {round}");
        assert_eq!(load.reporting, 1);
        assert_eq!(load.alternation.map(|told| told.pods), (round >= 2).then_some(1), "round {round}: {load:?}");
        pool.read.insert("a".to_owned(), ahead);
    }
    let elapsed = last.at_seconds - first.at_seconds;
    assert!(close(last.busy_seconds - first.busy_seconds, 2.0 * elapsed), "{first:?} {last:?}");
    // nothing of it is left a while after the last time
    pool.now += 330.0;
    pool.report("a", 2.0, 0.0);
    assert_eq!(pool.tick(&["a"]).alternation, None);
}

#[test]
fn a_clock_that_was_ahead_and_is_set_back_is_believed_again_once_the_reading_of_the_future_is_stale() {
    let mut pool = Pool { now: 10_000.0, ..Pool::default() };
    pool.report("a", 1.0, 0.0);
    pool.read.get_mut("a").unwrap().sample.at_seconds += 3600.0;
    pool.tick(&["a"]);
    pool.read.clear();
    let mut ticks = 0;
    loop {
        pool.report("a", 1.0, 0.0);
        ticks += 1;
        let load = pool.tick(&["a"]);
        assert_eq!(load.alternation, None, "once is not in turn");
        if ticks > 8 {
            assert_eq!(load.reporting, 1);
            break;
        }
    }
}

#[test]
fn a_counter_of_ones_own_that_falls_a_little_and_comes_back_was_an_older_answer() {
    let mut pool = Pool { now: 1000.0, ..Pool::default() };
    let base = sample_of(&pool.tick_of_own(1000.0)).transactions;
    assert_eq!(pool.tick_of_own(990.0).judgement, Judgement::Unchanged);
    assert!(close(sample_of(&pool.tick_of_own(1100.0)).transactions - base, 100.0), "neither 110 nor 1,100");
    let load = pool.tick_of_own(1090.0);
    assert_eq!((load.judgement, load.alternation), (Judgement::Unchanged, None));
    let load = pool.tick_of_own(1200.0);
    assert!(close(sample_of(&load).transactions - base, 200.0));
    assert_eq!(load.alternation, Some(Alternation { pods: 0, behind_seconds: None }));
}

#[test]
fn a_counter_of_ones_own_that_loses_pods_goes_on_at_its_rate_and_is_no_alternation() {
    for left in [0.95, 0.7, 0.3] {
        let mut pool = Pool { now: 1000.0, ..Pool::default() };
        let mut count = 10_000.0;
        let mut last: Option<Sample> = None;
        let mut observations = 0;
        for tick in 0..30 {
            count += 150.0;
            if tick == 8 || tick == 16 {
                count *= left;
            }
            let load = pool.tick_of_own(count);
            assert_eq!(load.alternation, None, "{left} left, tick {tick}");
            let Judgement::New { sample, .. } = load.judgement else { continue };
            if let Some(last) = last {
                let rate = (sample.transactions - last.transactions) / (sample.at_seconds - last.at_seconds);
                assert!(close(rate, 10.0), "{left} left, tick {tick}: {rate}");
                observations += 1;
            }
            last = Some(sample);
        }
        assert!(observations >= 21, "{left} left: {observations}");
    }
}

#[test]
fn a_counter_of_ones_own_that_falls_before_its_rate_is_known_is_no_observation() {
    let mut pool = Pool { now: 1000.0, ..Pool::default() };
    pool.tick_of_own(1000.0);
    assert_eq!(pool.tick_of_own(30.0).judgement, Judgement::Unchanged);
    assert!(close(sample_of(&pool.tick_of_own(180.0)).transactions, 300.0), "10 a second, since the first reading");
}

#[test]
fn a_query_of_ones_own_that_comes_changes_or_goes_is_no_jump_of_the_load() {
    let mut pool = Pool { now: 1000.0, ..Pool::default() };
    let (mut last, mut observations): (Option<Sample>, u32) = (None, 0);
    for tick in 0..24_u32 {
        pool.report("a", 1.0, 0.0);
        // 20 transactions a second, like the pod; counted from elsewhere
        let own = |query: &str, begin: f64| OverrideAnswer {
            query: query.to_owned(),
            number: Ok(begin + f64::from(tick) * 15.0 * 20.0),
        };
        match tick {
            6..12 => pool.overrides.insert(api::Signal::Transactions, own("sum(a)", 9e6)),
            12..18 => pool.overrides.insert(api::Signal::Transactions, own("sum(b)", 4e6)),
            _ => pool.overrides.remove(&api::Signal::Transactions),
        };
        let Judgement::New { sample, .. } = pool.tick(&["a"]).judgement else { continue };
        if let Some(last) = last.filter(|_| tick > 1) {
            let rate = (sample.transactions - last.transactions) / (sample.at_seconds - last.at_seconds);
            assert!(close(rate, 20.0), "tick {tick}: {rate}");
            observations += 1;
        }
        last = Some(sample);
    }
    assert_eq!(observations, 20, "the first reading of either query is none");
}

#[test]
fn no_series_is_not_no_load() {
    let mut pool = Pool::default();
    let load = pool.tick(&["a", "b"]);
    assert_eq!(
        hold_of(&load),
        (
            HoldReason::NoMetrics,
            "Prometheus has no series of the 2 pods; check that it scrapes the port sluice-metrics and adds the label pod"
        )
    );
}

#[test]
fn pods_that_have_just_begun_are_waited_for_before_anybody_is_sent_to_the_scrape_configuration() {
    let mut pool = Pool::default();
    let begins = |name| ExpectedPod { stage: Stage::Starting, ..running(name) };
    let load = pool.tick_of(&[begins("a"), begins("b")], None);
    assert_eq!(hold_of(&load), (HoldReason::Starting, "the 2 pods have begun a moment ago and were not scraped yet"));
    let load = pool.tick_of(&[begins("a"), running("b")], None);
    assert_eq!(hold_of(&load).0, HoldReason::NoMetrics, "one of them should have been by now");
}

#[test]
fn a_pool_without_pods_holds() {
    assert_eq!(hold_of(&Pool::default().tick(&[])).0, HoldReason::NoPods);
}

#[test]
fn when_prometheus_fails_its_words_are_kept_and_the_demands_of_fresh_pods_too() {
    let mut pool = Pool::default();
    pool.report("a", 3.0, 0.0);
    pool.tick(&["a"]);
    let load = pool.tick_of(&[running("a")], Some("Prometheus \"default\": down"));
    assert_eq!(hold_of(&load), (HoldReason::PrometheusUnavailable, "Prometheus \"default\": down"));
    assert!(load.demands.contains_key("a"), "it is 20 s old");
}

#[test]
fn a_pod_that_is_missing_makes_a_lower_bound() {
    let mut pool = Pool::default();
    pool.report("a", 3.0, 0.0);
    pool.report("b", 3.0, 0.0);
    let load = pool.tick(&["a", "b", "c"]);
    let Judgement::New { completeness, .. } = load.judgement else { panic!("{load:?}") };
    assert_eq!(completeness, Completeness::LowerBound { missing: 1 });
}

#[test]
fn a_pod_that_falls_silent_counts_as_it_was_until_it_is_missing_in_the_figures() {
    for stale_after_seconds in [30.0, 90.0, 300.0] {
        let mut pool = Pool { stale_after_seconds, ..Pool::default() };
        let mut last: Option<Sample> = None;
        let mut is_missing = 0;
        for round in 0..30 {
            pool.report("a", 5.0, 0.0);
            if round < 4 {
                pool.report("b", 5.0, 0.0);
            }
            let load = pool.tick(&["a", "b"]);
            let Judgement::New { sample, completeness } = load.judgement else { panic!("{load:?}") };
            match completeness {
                Completeness::LowerBound { missing } => is_missing += missing,
                Completeness::Complete => {
                    assert!(close(sample.active, 10.0), "{stale_after_seconds} s, round {round}: {sample:?}");
                    let busy = last.map(|last| (sample.busy_seconds - last.busy_seconds) / 15.0);
                    assert!(
                        busy.is_none_or(|busy| close(busy, 10.0)),
                        "{stale_after_seconds} s, round {round}: {busy:?}"
                    );
                }
            }
            last = Some(sample).filter(|_| round > 0);
        }
        assert!(is_missing > 0, "it is stale after {stale_after_seconds} s");
    }
}

#[test]
fn when_fewer_than_half_of_the_pods_report_everything_holds() {
    let mut pool = Pool::default();
    pool.report("a", 3.0, 0.0);
    assert!(matches!(pool.tick(&["a", "b"]).judgement, Judgement::New { .. }), "half is enough");
    pool.report("a", 3.0, 0.0);
    let load = pool.tick(&["a", "b", "c"]);
    assert_eq!(
        hold_of(&load),
        (HoldReason::TooFewPodsReport, "1 of 3 pods report, b does not; check the targets in Prometheus")
    );
}

#[test]
fn pods_that_start_or_end_may_be_silent() {
    let mut pool = Pool::default();
    pool.report("a", 3.0, 0.0);
    let silent = |name, stage| ExpectedPod { stage, ..running(name) };
    let expected =
        [running("a"), silent("b", Stage::Starting), silent("c", Stage::Starting), silent("d", Stage::Ending)];
    let load = pool.tick_of(&expected, None);
    let Judgement::New { completeness, .. } = load.judgement else { panic!("{load:?}") };
    assert_eq!(completeness, Completeness::Complete);
}

#[test]
fn a_pod_that_left_takes_its_gauges_along_and_leaves_the_counters_growing() {
    let mut pool = Pool::default();
    for _ in 0..3 {
        pool.report("a", 5.0, 0.0);
        pool.report("b", 5.0, 0.0);
        pool.tick(&["a", "b"]);
    }
    let before = last_of(&pool);
    pool.report("a", 5.0, 0.0);
    let load = pool.tick(&["a"]); // Prometheus still has the series of b
    let after = sample_of(&load);
    assert!(close(after.active, 5.0));
    assert!(close(after.busy_seconds - before.busy_seconds, 75.0), "{before:?} {after:?}");
    assert!(!load.demands.contains_key("b"));
}

#[test]
fn a_new_pod_of_an_old_name_begins_anew() {
    let mut pool = Pool::default();
    pool.report("db-0", 5.0, 0.0);
    pool.tick(&["db-0"]);
    pool.report("db-0", 5.0, 0.0);
    pool.tick(&["db-0"]);
    let reborn = ExpectedPod { name: "db-0", uid: "other", stage: Stage::Starting };
    pool.read.clear();
    let load = pool.tick_of(&[reborn], None);
    assert_eq!(load.reporting, 0, "what the old one said is not its");
}

#[test]
fn a_restarted_agent_counts_from_zero_and_nothing_goes_backwards() {
    let mut pool = Pool::default();
    for _ in 0..3 {
        pool.report("a", 5.0, 0.0);
        pool.tick(&["a"]);
    }
    let before = last_of(&pool);
    let at_seconds = pool.now + 10.0;
    let restarted = Sample { at_seconds, active: 5.0, transactions: 100.0, busy_seconds: 60.0, ..Sample::default() };
    pool.read.insert("a".to_owned(), figures_of(restarted));
    let load = pool.tick(&["a"]);
    let after = sample_of(&load);
    assert!(close(after.transactions - before.transactions, 100.0), "{before:?} {after:?}");
    assert!(load.demands["a"].mean <= 5.0 + 1e-6);
}

#[test]
fn a_series_that_is_missing_in_one_reading_is_neither_a_restart_nor_load() {
    let mut pool = Pool::default();
    let mut last: Option<Sample> = None;
    for round in 0..8_u32 {
        pool.report("a", 5.0, 0.0);
        let figures = pool.read.get_mut("a").unwrap();
        (figures.sample.abandoned, figures.sample.assignments) = (700.0, figures.sample.transactions + 500.0);
        (figures.sample.active, figures.sample.leaked) = (8.0, 3.0);
        let whole = figures_of(figures.sample);
        *figures = whole;
        if matches!(round, 3 | 6) {
            let sample = Sample { abandoned: 0.0, leaked: 0.0, assignments: whole.sample.transactions, ..whole.sample };
            *figures = PodFigures { sample, leaked: None, abandoned: None, assignments: None, ..whole };
        }
        let load = pool.tick(&["a"]);
        pool.read.insert("a".to_owned(), whole);
        let sample = sample_of(&load);
        assert!(close(sample.leaked, 3.0) && close(sample.busy(), 5.0), "round {round}: {sample:?}");
        if let Some(last) = last {
            assert!(close(sample.transactions - last.transactions, 1500.0), "round {round}: {last:?} {sample:?}");
            assert!(close(sample.abandoned, last.abandoned), "round {round}: {last:?} {sample:?}");
        }
        assert!(close(load.demands["a"].mean, 5.0), "round {round}: {:?}", load.demands);
        last = Some(sample).filter(|_| round > 0);
    }
}

#[test]
fn who_cannot_see_leaks_any_more_has_none_from_the_second_reading_on() {
    let mut pool = Pool::default();
    let mut leaked = Vec::new();
    for round in 0..4 {
        pool.report("a", 5.0, 0.0);
        let figures = pool.read.get_mut("a").unwrap();
        (figures.leaked, figures.sample.leaked) = if round == 0 { (Some(3.0), 3.0) } else { (None, 0.0) };
        leaked.push(sample_of(&pool.tick(&["a"])).leaked);
    }
    assert_eq!(leaked, [3.0, 3.0, 0.0, 0.0]);
}

#[test]
fn a_queue_counts_by_what_arrives_in_it_and_not_by_its_length() {
    let mut pool = Pool::default();
    for waiting in [0.0, 40.0, 40.0, 40.0, 40.0] {
        pool.report("a", 2.7, waiting);
        pool.tick(&["a"]);
    }
    pool.report("a", 2.7, 40.0);
    let load = pool.tick(&["a"]);
    assert!((2.7..3.0).contains(&load.figures.unwrap().demand), "{:?}", load.figures);
    assert!((2.7..3.0).contains(&load.demands["a"].mean), "{:?}", load.demands);
}

#[test]
fn a_database_that_finishes_nothing_leaves_the_demand_as_it_was() {
    let mut pool = Pool::default();
    for _ in 0..4 {
        pool.report("a", 5.0, 0.0);
        pool.tick(&["a"]);
    }
    for _ in 0..3 {
        pool.report("a", 0.0, 50.0);
        pool.read.get_mut("a").unwrap().sample.active = 20.0;
        assert!(close(pool.tick(&["a"]).demands["a"].mean, 5.0));
    }
}

#[test]
fn a_leak_that_ends_after_hours_is_not_a_demand() {
    let mut pool = Pool::default();
    for _ in 0..3 {
        pool.report("a", 5.0, 0.0);
        pool.tick(&["a"]);
    }
    pool.report("a", 5.0, 0.0);
    pool.read.get_mut("a").unwrap().sample.busy_seconds += 7200.0;
    let load = pool.tick(&["a"]);
    assert!(load.demands["a"].mean <= 20.0, "no more than its limit could have worked: {:?}", load.demands);
}

#[test]
fn a_leaked_connection_is_no_demand() {
    let mut pool = Pool::default();
    for _ in 0..3 {
        pool.report("a", 0.0, 0.0);
        let figures = pool.read.get_mut("a").unwrap();
        (figures.sample.active, figures.sample.leaked, figures.leaked) = (4.0, 4.0, Some(4.0));
        let load = pool.tick(&["a"]);
        assert!(close(load.demands["a"].mean, 0.0), "{:?}", load.demands);
    }
}

#[test]
fn a_tenfold_load_is_taken_over_at_once_and_noise_is_smoothed() {
    let mut pool = Pool::default();
    for _ in 0..10 {
        pool.report("a", 5.0, 0.0);
        pool.tick(&["a"]);
    }
    pool.report("a", 5.4, 0.0);
    let noisy = pool.tick(&["a"]).demands["a"].mean;
    assert!((5.0..5.3).contains(&noisy), "{noisy}");
    pool.report("a", 50.0, 0.0);
    pool.read.get_mut("a").unwrap().limit = Some(60.0);
    let jumped = pool.tick(&["a"]).demands["a"].mean;
    assert!(jumped > 49.0, "{jumped}");
}

#[test]
fn an_override_takes_the_place_of_its_signal_for_the_whole_pool() {
    let mut pool = Pool::default();
    pool.report("a", 5.0, 0.0);
    pool.answers(api::Signal::WaitingClients, 12.0);
    let sample = sample_of(&pool.tick(&["a"]));
    assert!(close(sample.waiting, 12.0) && close(sample.active, 5.0));
}

#[test]
fn an_override_that_yields_nothing_holds_with_its_words() {
    let mut pool = Pool::default();
    pool.report("a", 5.0, 0.0);
    let number = Err(NoNumber::Failed("pool shop/shop, query \"x\": it yields no series".to_owned()));
    pool.overrides.insert(api::Signal::WaitingClients, OverrideAnswer { query: "x".to_owned(), number });
    let load = pool.tick(&["a"]);
    assert_eq!(hold_of(&load), (HoldReason::InvalidOverride, "pool shop/shop, query \"x\": it yields no series"));
    pool.answers(api::Signal::WaitingClients, f64::NAN);
    assert_eq!(hold_of(&pool.tick(&["a"])).0, HoldReason::InvalidOverride);
    let number = Err(NoNumber::NotAllowed("not in this namespace".to_owned()));
    pool.overrides.insert(api::Signal::WaitingClients, OverrideAnswer { query: "x".to_owned(), number });
    let load = pool.tick(&["a"]);
    assert_eq!(hold_of(&load), (HoldReason::OverrideNotAllowed, "not in this namespace"));
}

#[test]
fn with_every_signal_overridden_no_pod_has_to_report_and_counters_may_restart() {
    let mut pool = Pool::default();
    let mut tick = |transactions: f64| sample_of(&pool.tick_of_own(transactions)).transactions;
    assert!(close(tick(1000.0), 0.0));
    assert!(close(tick(1100.0), 100.0));
    assert!(close(tick(40.0), 200.0), "it was started again");
    assert!(close(tick(90.0), 250.0));
}

#[derive(Clone, Debug)]
enum Happening {
    Reports(usize, f64),
    Restarts(usize),
    Comes(usize),
    Goes(usize),
    PrometheusFails,
    SeriesVanish(usize),
    Ticks,
    TimePasses(f64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let pod = 0..5_usize;
    prop_oneof![
        6 => (pod.clone(), 0.0..50.0_f64).prop_map(|(pod, busy)| Happening::Reports(pod, busy)),
        1 => pod.clone().prop_map(Happening::Restarts),
        2 => pod.clone().prop_map(Happening::Comes),
        1 => pod.clone().prop_map(Happening::Goes),
        1 => Just(Happening::PrometheusFails),
        1 => pod.prop_map(Happening::SeriesVanish),
        8 => Just(Happening::Ticks),
        1 => (0.0..200.0_f64).prop_map(Happening::TimePasses),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_counters_never_fall_and_what_is_unknown_is_never_zero(
        happenings in proptest::collection::vec(happening(), 1..100),
    ) {
        let names: Vec<String> = (0..5).map(|pod| format!("pod-{pod}")).collect();
        let mut pool = Pool { now: 10_000.0, ..Pool::default() };
        let mut alive = [true, true, false, false, false];
        let mut last: Option<Sample> = None;
        for happening in happenings {
            let failed = matches!(happening, Happening::PrometheusFails).then_some("down");
            match happening {
                Happening::Reports(pod, busy) => pool.report(&names[pod], busy, 0.0),
                Happening::Restarts(pod) => if let Some(figures) = pool.read.get_mut(&names[pod]) {
                    figures.sample = Sample { at_seconds: figures.sample.at_seconds, ..Sample::default() };
                },
                Happening::Comes(pod) => alive[pod] = true,
                Happening::Goes(pod) => alive[pod] = false,
                Happening::SeriesVanish(pod) => { pool.read.remove(&names[pod]); }
                Happening::TimePasses(seconds) => pool.now += seconds,
                Happening::Ticks | Happening::PrometheusFails => {
                    let expected: Vec<ExpectedPod> = (0..5).filter(|&pod| alive[pod]).map(|pod| running(&names[pod])).collect();
                    let load = pool.tick_of(&expected, failed);
                    let fresh = load.demands.len();
                    prop_assert_eq!(usize::try_from(load.reporting).unwrap(), fresh);
                    prop_assert!(fresh <= expected.len());
                    prop_assert_eq!(load.figures.is_some(), fresh > 0);
                    if fresh == 0 || failed.is_some() {
                        let held = matches!(load.judgement, Judgement::Hold { .. });
                        prop_assert!(held);
                    }
                    if let Judgement::New { sample, completeness } = load.judgement {
                        prop_assert!(sample.check().is_ok());
                        prop_assert!(fresh * 2 >= expected.len());
                        prop_assert_eq!(completeness == Completeness::Complete, fresh == expected.len());
                        if let Some(last) = last {
                            prop_assert!(sample.transactions >= last.transactions);
                            prop_assert!(sample.busy_seconds >= last.busy_seconds);
                            prop_assert!(sample.wait_seconds >= last.wait_seconds);
                            prop_assert!(sample.assignments >= last.assignments);
                        }
                        last = Some(sample);
                    }
                    for demand in load.demands.values() {
                        prop_assert!(demand.mean.is_finite() && demand.mean >= 0.0 && demand.peak >= demand.mean);
                    }
                }
            }
        }
    }
}
