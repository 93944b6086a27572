//! What is read, and what is made of it when pods, agents and Prometheus itself come and go.

use std::collections::BTreeMap;

use sluice::{
    api,
    decide::{
        load::{Completeness, HoldReason, Judgement, LoadState},
        shares::GrantProof,
    },
    signals::{OverrideQuery, QUERIES_PER_READ},
};

use super::{Agents, Prometheus, now_seconds, read, read_until, roster, server::Agent, shop, tick, tick_until};

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn every_figure_of_every_pod_is_read_as_the_agent_exports_it() {
    let agents = [Agent::start("shop-1").await, Agent::start("shop-2").await];
    agents[0].report(|figures| {
        (figures.active, figures.waiting, figures.transactions, figures.busy_seconds) = (9, 4, 1_000_000_000, 1234.5);
    });
    let prometheus = Prometheus::start(&Agents::of(&agents)).await;
    let readings = read_until(&prometheus.server(), |pods| pods.len() == 2).await;
    assert!(readings.problems.is_empty(), "{:?}", readings.problems);
    let pods = readings.pods_of(&shop());
    let figures = pods["shop-1"];
    assert_eq!((figures.sample.active, figures.sample.waiting), (9.0, 4.0));
    assert_eq!((figures.sample.transactions, figures.sample.busy_seconds), (1e9, 1234.5));
    assert_eq!((figures.sample.wait_seconds, figures.sample.assignments), (0.5, 1e9));
    assert_eq!((figures.held, figures.limit, figures.leaked), (Some(12.0), Some(10.0), None));
    assert_eq!(figures.demand_peak, Some(13.0));
    assert_eq!(figures.proof, Some(GrantProof { seq: 7, share: 12, held: 12 }));
    let age = now_seconds() - figures.sample.at_seconds;
    assert!((-1.0..10.0).contains(&age), "the sample time is the agent's: {age} s");
    assert_eq!(pods["shop-2"].sample.active.to_bits(), 0.0_f64.to_bits(), "an idle pod reports a zero");
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn the_number_of_queries_does_not_depend_on_the_number_of_pools() {
    // by the end of its name a pool is in one of the queries or in the other
    let ends: Vec<char> = ('0'..='9').chain('a'..='z').collect();
    let mut agents = Vec::new();
    for pools in [1, ends.len()] {
        while agents.len() < pools {
            let pool = format!("pool-{}", ends[agents.len()]);
            agents.push(Agent::of_pool(&pool, &format!("{pool}-pod")).await);
        }
        let prometheus = Prometheus::start(&Agents::of(&agents)).await;
        let server = prometheus.server();
        let deadline = std::time::Instant::now() + super::DEADLINE;
        while read(&server).await.unwrap().pools.len() < pools {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let before = prometheus.queries().await;
        read(&server).await.unwrap();
        assert_eq!(prometheus.queries().await - before, u64::try_from(QUERIES_PER_READ).unwrap(), "{pools} pools");
    }
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn a_pod_that_two_jobs_scrape_counts_once() {
    let agents = [Agent::start("shop-1").await];
    agents[0].report(|figures| figures.active = 9);
    let prometheus = Prometheus::start(&Agents::of(&agents).and("also", &agents)).await;
    let server = prometheus.server();
    read_until(&server, |pods| !pods.is_empty()).await;
    // both jobs have scraped
    let both = OverrideQuery {
        pool: shop(),
        signal: api::Signal::ActiveConnections,
        query: "sum(sluice_server_connections{state=\"active\"})".to_owned(),
    };
    let deadline = std::time::Instant::now() + super::DEADLINE;
    while server.read_overrides(now_seconds(), std::slice::from_ref(&both)).await[0].as_ref().unwrap() < &18.0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let load = tick(&mut LoadState::default(), &server, &["shop-1"], 90.0).await;
    assert_eq!(load.figures.unwrap().active.to_bits(), 9.0_f64.to_bits());
    assert_eq!(load.figures.unwrap().held.to_bits(), 12.0_f64.to_bits());
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn when_the_only_agent_dies_its_last_reading_ages_until_everything_holds() {
    let mut agent = Agent::start("shop-1").await;
    agent.report(|figures| figures.active = 9);
    let prometheus = Prometheus::start(&Agents::of([&agent])).await;
    let (server, mut state) = (prometheus.server(), LoadState::default());
    tick_until(&mut state, &server, &["shop-1"], 4.0, |judged| matches!(judged, Judgement::New { .. })).await;
    agent.dies().await;
    read_until(&server, BTreeMap::is_empty).await;
    let load =
        tick_until(&mut state, &server, &["shop-1"], 4.0, |judged| matches!(judged, Judgement::Hold { .. })).await;
    let Judgement::Hold { reason, .. } = load.judgement else { unreachable!() };
    assert_eq!(reason, HoldReason::StaleMetrics);
    assert!(load.demands.is_empty(), "unknown, and not zero");
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn one_agent_of_three_that_dies_makes_a_lower_bound() {
    let mut agents = [Agent::start("shop-1").await, Agent::start("shop-2").await, Agent::start("shop-3").await];
    let prometheus = Prometheus::start(&Agents::of(&agents)).await;
    let (server, mut state) = (prometheus.server(), LoadState::default());
    let pods = ["shop-1", "shop-2", "shop-3"];
    let complete = |judged: &Judgement| matches!(judged, Judgement::New { completeness: Completeness::Complete, .. });
    tick_until(&mut state, &server, &pods, 4.0, complete).await;
    agents[1].dies().await;
    let partial = |judged: &Judgement| {
        matches!(judged, Judgement::New { completeness: Completeness::LowerBound { missing: 1 }, .. })
    };
    tick_until(&mut state, &server, &pods, 4.0, partial).await;
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn a_scrape_of_an_agent_whose_pooler_hangs_is_no_news() {
    let agent = Agent::start("shop-1").await;
    let prometheus = Prometheus::start(&Agents::of([&agent])).await;
    let (server, mut state) = (prometheus.server(), LoadState::default());
    tick_until(&mut state, &server, &["shop-1"], 4.0, |judged| matches!(judged, Judgement::New { .. })).await;
    // it goes on answering scrapes with what it read last
    agent.report(|figures| figures.sample_time = Some(now_seconds()));
    let load =
        tick_until(&mut state, &server, &["shop-1"], 4.0, |judged| matches!(judged, Judgement::Hold { .. })).await;
    let Judgement::Hold { reason, message } = load.judgement else { unreachable!() };
    assert_eq!(reason, HoldReason::StaleMetrics, "{message}");
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn an_agent_that_restarts_counts_from_zero_and_the_pool_goes_on() {
    let mut agent = Agent::start("shop-1").await;
    agent.report(|figures| (figures.transactions, figures.busy_seconds) = (5000, 700.0));
    let prometheus = Prometheus::start(&Agents::of([&agent])).await;
    let (server, mut state) = (prometheus.server(), LoadState::default());
    let new = |judged: &Judgement| matches!(judged, Judgement::New { .. });
    tick_until(&mut state, &server, &["shop-1"], 90.0, new).await;
    agent.report(|figures| (figures.transactions, figures.busy_seconds) = (5100, 710.0));
    let counted = |at_least: f64| move |judged: &Judgement| matches!(judged, Judgement::New { sample, .. } if sample.transactions >= at_least);
    tick_until(&mut state, &server, &["shop-1"], 90.0, counted(50.0)).await;
    agent.dies().await;
    agent.is_restarted().await;
    agent.report(|figures| (figures.transactions, figures.busy_seconds) = (30, 3.0));
    let load = tick_until(&mut state, &server, &["shop-1"], 90.0, counted(120.0)).await;
    let Judgement::New { sample, .. } = load.judgement else { unreachable!() };
    assert!(sample.transactions < 1000.0, "the new value is the difference: {sample:?}");
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn while_prometheus_is_down_everything_holds_and_afterwards_goes_on() {
    let agent = Agent::start("shop-1").await;
    let mut prometheus = Prometheus::start(&Agents::of([&agent])).await;
    let (server, mut state) = (prometheus.server(), LoadState::default());
    let new = |judged: &Judgement| matches!(judged, Judgement::New { .. });
    tick_until(&mut state, &server, &["shop-1"], 90.0, new).await;
    prometheus.is_killed();
    let load = tick(&mut state, &server, &["shop-1"], 90.0).await;
    let Judgement::Hold { reason: HoldReason::PrometheusUnavailable, message } = load.judgement else {
        panic!("{load:?}")
    };
    assert!(message.contains("Connection refused"), "{message}");
    prometheus.is_restarted().await;
    tick_until(&mut state, &server, &["shop-1"], 90.0, new).await;
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn the_wait_of_a_pool_is_a_quantile_over_its_pods() {
    let agents = [Agent::start("shop-1").await, Agent::start("shop-2").await];
    let prometheus = Prometheus::start(&Agents::of(&agents)).await;
    let server = prometheus.server();
    let deadline = std::time::Instant::now() + super::DEADLINE;
    let p95 = loop {
        for agent in &agents {
            agent.report(|figures| {
                for (waits, more) in figures.waits.iter_mut().zip([80, 10, 10]) {
                    *waits += more;
                }
            });
        }
        if let Some(p95) = server.wait_p95_seconds(now_seconds(), &roster()).await.unwrap().get(&shop()) {
            break *p95;
        }
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    };
    assert!((0.07..0.08).contains(&p95), "in the middle of the last tenth, between 50 and 100 ms: {p95}");
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn what_prometheus_says_about_a_users_query_reaches_the_user() {
    let agents = [Agent::start("shop-1").await, Agent::start("shop-2").await];
    let prometheus = Prometheus::start(&Agents::of(&agents)).await;
    let server = prometheus.server();
    read_until(&server, |pods| pods.len() == 2).await;
    let wanted =
        |query: &str| OverrideQuery { pool: shop(), signal: api::Signal::WaitingClients, query: query.to_owned() };
    let queries = [
        "vector(3)",
        "scalar(vector(4))",
        "sum(sluice_limit)",
        "sluice_limit",
        "sluice_limit[1m]",
        "sum(no_such_series)",
        "0/0",
        "-1",
        "sum(",
        "\"text\"",
    ]
    .map(wanted);
    let results = server.read_overrides(now_seconds(), &queries).await;
    let shown: Vec<String> =
        results.iter().map(|result| result.as_ref().map_or_else(ToString::to_string, f64::to_string)).collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    3
    4
    20
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "sluice_limit": it yields more than one series, needed is one number; aggregate them, for example with sum(...)
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "sluice_limit[1m]": the result is a matrix, needed is a scalar, or vector of one element
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "sum(no_such_series)": it yields no series, so nothing is known; let the application export a 0 where it means zero
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "0/0": it yields NaN; needed is a finite number of at least 0
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "-1": it yields -1; needed is a finite number of at least 0
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "sum(": HTTP 400 Bad Request: bad_data: invalid parameter "query": 1:5: parse error: unclosed left parenthesis; correct the query
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "\"text\"": the result is a string, needed is a scalar, or vector of one element
    "#);
}

/// The query that docs/operations.md recommends for series which may go on without being scraped.
#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn a_users_query_sees_samples_of_minutes_ago_unless_it_bounds_their_age() {
    let measured = now_seconds() - 120.0;
    let history =
        format!("# TYPE app_waiting_clients gauge\napp_waiting_clients{{app=\"shop\"}} 5 {measured}\n# EOF\n");
    let prometheus = Prometheus::start_remembering(&history).await;
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let bounded = guide.lines().find(|line| line.contains("timestamp(app_waiting_clients)")).unwrap();
    let longer = bounded.replace("< 60", "< 600");
    let wanted =
        |query: &str| OverrideQuery { pool: shop(), signal: api::Signal::WaitingClients, query: query.to_owned() };
    let queries = ["sum(app_waiting_clients)", bounded, &longer].map(wanted);
    let results = prometheus.server().read_overrides(now_seconds(), &queries).await;
    let shown: Vec<String> =
        results.iter().map(|result| result.as_ref().map_or_else(ToString::to_string, f64::to_string)).collect();
    assert_eq!((shown[0].as_str(), shown[2].as_str()), ("5", "5"));
    assert!(shown[1].contains("it yields no series"), "{}", shown[1]);
}
