//! Pods that export what is not theirs, and queries that ask for too much, against the real Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use sluice::{
    agent::report::server::OPENMETRICS,
    api,
    contract::metrics,
    signals::{OverrideQuery, PrometheusServer, ReadFailure, RolloutPods, SeriesRefusal, ServerConfiguration},
};

use super::{Agents, DEADLINE, Prometheus, now_seconds, read, read_until, server::Agent, shop};

/// Series of a page that is no agent's: of a pool and a pod that there are, and of pools that there are none of.
const FORGED: u32 = 100_000;
/// The same where nothing keeps Prometheus from scraping them and this build, which is not optimised, from reading them.
const FORGED_AND_READ: u32 = 20_000;
/// Between two scrapes, which is also how long one may take: so many series take seconds where other tests run beside.
const SCRAPE_SECONDS: u32 = 20;

fn forged(series: u32) -> String {
    let mut page = String::new();
    let _ = writeln!(page, "# TYPE {} gauge", metrics::SAMPLE_TIME);
    for number in 0..series {
        let pool = if number % 2 == 0 { "shop".to_owned() } else { format!("forged-{number}") };
        let name = metrics::SAMPLE_TIME;
        // the pod and the namespace of a series are what Prometheus says, whatever the page says
        let _ = writeln!(
            page,
            "{name}{{pool_namespace=\"shop\",pool=\"{pool}\",pod=\"shop-1\",namespace=\"shop\",x=\"{number}\"}} 9e9"
        );
    }
    page.push_str("# EOF\n");
    page
}

async fn serve_forged(series: u32) -> SocketAddr {
    serve_page(forged(series)).await
}

async fn serve_page(page: String) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = axum::body::Bytes::from(page);
    let page = move || std::future::ready(([("content-type", OPENMETRICS)], page.clone()));
    let router = Router::new().route("/metrics", get(page));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// How many series Prometheus has of the metric that is forged.
async fn series(prometheus: &Prometheus) -> f64 {
    let query = OverrideQuery {
        pool: shop(),
        signal: api::Signal::WaitingClients,
        query: format!("count({})", metrics::SAMPLE_TIME),
    };
    let read = prometheus.server().read_overrides(now_seconds(), &[query]).await.remove(0);
    read.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus: tests/run parts"]
async fn a_pod_with_hundred_thousand_series_is_not_scraped_under_the_shipped_limits_and_all_others_are() {
    let agents = [Agent::start("shop-1").await, Agent::start("shop-2").await];
    let forger = serve_forged(FORGED).await;
    let all = Agents::of(&agents).and_pod("sluice-agents", "pool-0-pod", forger).limited_as_shipped();
    let prometheus = Prometheus::start(&all).await;
    let readings = read_until(&prometheus.server(), |pods| pods.len() == 2).await;
    assert!(readings.problems.is_empty(), "{:?}", readings.problems);
    let deadline = Instant::now() + DEADLINE;
    loop {
        // not for another reason
        let why_down = prometheus.why_down(forger).await;
        if why_down.as_deref().is_some_and(|why| why.contains("limit")) {
            break;
        }
        assert!(Instant::now() < deadline, "{why_down:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(series(&prometheus).await.to_bits(), 2.0_f64.to_bits());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus: tests/run parts"]
async fn of_thousands_of_series_that_a_pod_forged_nothing_is_kept_and_every_other_pod_is_read() {
    let agents = [Agent::start("shop-1").await, Agent::start("shop-2").await];
    agents[0].report(|figures| figures.active = 9);
    let forger = serve_forged(FORGED_AND_READ).await;
    let all = Agents::of(&agents).and_pod("sluice-agents", "pool-0-pod", forger).every(SCRAPE_SECONDS);
    let prometheus = Prometheus::start(&all).await;
    let deadline = Instant::now() + DEADLINE;
    // and the two that are no forgery: each of the three is scraped at a moment of its own within the interval
    while series(&prometheus).await < f64::from(FORGED_AND_READ + 2) {
        assert!(Instant::now() < deadline, "without limits all are scraped: {:?}", prometheus.why_down(forger).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // this build of the reader is not optimised
    let configuration = ServerConfiguration { timeout_seconds: 30, ..prometheus.configuration() };
    let readings = read(&PrometheusServer::new("default", configuration)).await.unwrap();
    assert!(readings.bytes > 2 << 20, "they were sent: {} bytes", readings.bytes);
    let active: BTreeMap<&str, f64> =
        readings.pods_of(&shop()).iter().map(|(pod, figures)| (pod.as_str(), figures.sample.active)).collect();
    assert_eq!(active, BTreeMap::from([("shop-1", 9.0), ("shop-2", 0.0)]));
    assert_eq!(readings.pools.len(), 1, "of pools that there are none of nothing is kept");
    let problems: Vec<_> = readings.problems.iter().map(|problem| (problem.refusal, problem.count)).collect();
    assert_eq!(problems, [(SeriesRefusal::ForeignPool, FORGED_AND_READ / 2)]);
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn a_query_that_asks_for_everything_is_told_as_that_and_costs_a_few_kilobytes() {
    let agents = [Agent::start("shop-1").await, Agent::start("shop-2").await];
    let prometheus = Prometheus::start(&Agents::of(&agents)).await;
    let server = prometheus.server();
    read_until(&server, |pods| pods.len() == 2).await;
    let everything = OverrideQuery {
        pool: shop(),
        signal: api::Signal::WaitingClients,
        query: "{__name__=~\"sluice_.+\"}".to_owned(),
    };
    let error = server.read_overrides(now_seconds(), &[everything]).await.remove(0).unwrap_err();
    // one that knows the limit sends two and a warning, one that does not is not read to its end
    assert!(
        matches!(*error.failure, ReadFailure::SeveralSeries | ReadFailure::LargerThanANumber { limit: 4096 }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus: tests/run parts"]
async fn a_pod_that_forges_series_of_a_revision_within_the_shipped_limits_is_left_out_of_its_rollout_and_no_other_is() {
    const NAME: &str = metrics::REVISION_TRANSACTIONS;
    let agents = [Agent::start("shop-1").await, Agent::start("shop-2").await];
    let mut page = format!("# TYPE {} counter\n", NAME.trim_end_matches("_total"));
    for number in 0..400 {
        let labels = format!("pool_namespace=\"shop\",pool=\"shop\",revision=\"7\",slot=\"a\",x=\"{number}\"");
        let _ = writeln!(page, "{NAME}{{{labels}}} {number}");
    }
    page.push_str("# EOF\n");
    let forger = serve_page(page).await;
    let all = Agents::of(&agents).and_pod("sluice-agents", "shop-3", forger).limited_as_shipped();
    let prometheus = Prometheus::start(&all).await;
    let (server, pool) = (prometheus.server(), shop());
    let asked = RolloutPods { pool: &pool, pods: &["shop-1", "shop-2", "shop-3"], revisions: [7, 6] };
    let deadline = Instant::now() + DEADLINE;
    loop {
        let readings = server.read_revisions(now_seconds(), 600, asked).await.unwrap();
        let scrapes = |pod: &str| {
            let of_pod = readings.series.iter().filter(|series| series.pod == pod);
            of_pod.map(|series| series.scrapes.len()).max()
        };
        let is_read = |pod: &str| scrapes(pod).is_some_and(|scrapes| scrapes > 2);
        if let Some(refused) = &readings.refused
            && is_read("shop-1")
            && is_read("shop-2")
        {
            assert_eq!((refused.refusal, refused.pod.as_str()), (SeriesRefusal::TooManySets, "shop-3"), "{refused}");
            assert_eq!(scrapes("shop-3"), None);
            return;
        }
        assert!(Instant::now() < deadline, "{readings:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
