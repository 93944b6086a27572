//! What holds of everything that answers like Prometheus: Prometheus itself, VictoriaMetrics, and Thanos in front of two
//! Prometheus. Run by `tests/run api` and `tests/run node`, for which the lab builds them.
// fixtures are built in place
#![allow(missing_docs, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

mod backend;
// of what the parts level has, only a part is needed
#[allow(dead_code)]
#[path = "../parts/prometheus/server.rs"]
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use backend::{Backend, Kind};
use server::{Agent, Agents};
use sluice::{
    api,
    decide::load::{ExpectedPod, Judgement, LoadInput, LoadState, Stage},
    domain::PoolKey,
    signals::{OverrideQuery, PrometheusServer, ReadFailure, Roster, ServerConfiguration},
};

/// Longest wait for any state.
const DEADLINE: Duration = Duration::from_mins(1);

/// Unix time in seconds.
fn now_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The pods that the tests play, each named after its pool.
fn roster() -> Arc<Roster> {
    let pools = ["pool-0", "pool-9", "crm", "shop"];
    Arc::new(pools.iter().map(|&pool| (PoolKey::new("shop", pool), format!("{pool}-1"))).collect())
}

fn shop() -> PoolKey {
    PoolKey::new("shop", "shop")
}

/// Asks until there is an answer.
async fn until<T>(what: &str, asked: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = asked().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads again and again, until some scrapes have been seen, while every figure of the pod follows the time of its sample.
async fn readings_are_of_one_scrape(kind: Kind) {
    let agent = Agent::start("shop-1").await;
    let backend = Backend::start(kind, &Agents::of([&agent])).await;
    let server = backend.server();
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + DEADLINE;
    while seen.len() < 8 {
        assert!(Instant::now() < deadline, "{kind:?}: {seen:?}");
        agent.report(|figures| {
            // one number for all of them
            figures.transactions = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            figures.busy_seconds = u32::try_from(figures.transactions).unwrap().into();
            figures.sample_time = Some(figures.busy_seconds);
        });
        let readings = server.read(now_seconds(), &roster()).await.unwrap();
        assert!(readings.problems.is_empty(), "{kind:?}: {:?}", readings.problems);
        for figures in readings.pods_of(&shop()).values() {
            let sample = figures.sample;
            let of_one_moment = [sample.transactions, sample.busy_seconds].map(|value| value - sample.at_seconds);
            assert!(of_one_moment.iter().all(|difference| difference.abs() < 0.5), "{kind:?}: {sample:?}");
            assert_eq!((figures.held, figures.limit), (Some(3.0), Some(10.0)), "{kind:?}");
            seen.insert(sample.at_seconds.to_bits());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs VictoriaMetrics and Thanos: tests/run api"]
async fn a_reading_of_any_backend_is_of_one_scrape() {
    for kind in Kind::ALL {
        readings_are_of_one_scrape(kind).await;
    }
}

#[tokio::test]
#[ignore = "needs VictoriaMetrics and Thanos: tests/run api"]
async fn pools_of_every_name_are_read_from_any_backend() {
    let mut agents = Vec::new();
    for pool in ["pool-0", "pool-9", "crm", "shop"] {
        agents.push(Agent::of_pool(pool, &format!("{pool}-1")).await);
    }
    for kind in Kind::ALL {
        let backend = Backend::start(kind, &Agents::of(&agents)).await;
        let server = backend.server();
        let readings = until(&format!("{kind:?} has every pool"), async || {
            server.read(now_seconds(), &roster()).await.ok().filter(|readings| readings.pools.len() >= agents.len())
        })
        .await;
        for agent in &agents {
            let pods: Vec<&BTreeMap<String, _>> =
                readings.pools.values().filter(|pods| pods.contains_key(&agent.pod)).collect();
            assert_eq!(pods.len(), 1, "{kind:?}: {}", agent.pod);
        }
    }
}

#[tokio::test]
#[ignore = "needs VictoriaMetrics and Thanos: tests/run api"]
async fn a_new_pod_counts_on_any_backend_before_it_is_scraped_for_the_third_time() {
    for kind in Kind::ALL {
        let agent = Agent::start("shop-1").await;
        let backend = Backend::start(kind, &Agents::of([&agent]).every(5)).await;
        let server = backend.server();
        let state = tokio::sync::Mutex::new(LoadState::default());
        // Thanos finds its stores some seconds after it answers
        let before_first = AtomicU32::new(u32::MAX);
        let scrapes = until("the pod counts", async || {
            let now_seconds = now_seconds();
            let scraped = agent.scrapes();
            let readings = server.read(now_seconds, &roster()).await.unwrap();
            if !readings.pods_of(&shop()).is_empty() {
                before_first.fetch_min(scraped.saturating_sub(kind.scrapers()), Ordering::Relaxed);
            }
            let load = state.lock().await.step(&LoadInput {
                now_seconds,
                expected: &[ExpectedPod { name: "shop-1", uid: "uid", stage: Stage::Running }],
                read: Ok(readings.pods_of(&shop())),
                overrides: &BTreeMap::new(),
                stale_after_seconds: 90.0,
            });
            matches!(load.judgement, Judgement::New { .. }).then(|| agent.scrapes())
        })
        .await
            - before_first.into_inner();
        assert!(scrapes <= 2 * kind.scrapers(), "{kind:?}: {scrapes} scrapes");
    }
}

#[tokio::test]
#[ignore = "needs VictoriaMetrics and Thanos: tests/run api"]
async fn the_p95_of_the_wait_is_known_on_any_backend_and_with_native_histograms() {
    let mut kinds = Kind::ALL.to_vec();
    kinds.push(Kind::PrometheusNative);
    for kind in kinds {
        let agent = Agent::start("shop-1").await;
        let backend = Backend::start(kind, &Agents::of([&agent])).await;
        let server = backend.server();
        let p95 = until(&format!("{kind:?} knows the p95"), async || {
            agent.report(|figures| {
                for (waits, more) in figures.waits.iter_mut().zip([80, 10, 10]) {
                    *waits += more;
                }
            });
            server.wait_p95_seconds(now_seconds(), &roster()).await.unwrap().get(&shop()).copied()
        })
        .await;
        assert!((0.05..=0.1).contains(&p95), "{kind:?}: {p95}");
    }
}

#[tokio::test]
#[ignore = "needs VictoriaMetrics and Thanos: tests/run api"]
async fn a_query_of_ones_own_is_asked_for_now_on_any_backend_and_a_note_about_it_is_no_failure() {
    for kind in Kind::ALL {
        let agent = Agent::start("shop-1").await;
        let backend = Backend::start(kind, &Agents::of([&agent])).await;
        let server = backend.server();
        let ask = async |query: &str| {
            let query = OverrideQuery { pool: shop(), signal: api::Signal::WaitingClients, query: query.to_owned() };
            server.read_overrides(now_seconds(), &[query]).await.remove(0)
        };
        // a rate of what is no counter is noted
        until(&format!("{kind:?} has two scrapes"), async || ask("sum(rate(sluice_limit[1m]))").await.ok()).await;
        let age = ask("time() - max(sluice_sample_timestamp_seconds)").await.unwrap();
        assert!(age < 20.0, "{kind:?} answers as of {age} s ago");
        for unknown in ["sum(no_such_series)", "0/0"] {
            let error = ask(unknown).await.unwrap_err();
            assert!(
                matches!(*error.failure, ReadFailure::NoSeries | ReadFailure::Value { .. }),
                "{kind:?}, {unknown}: {error}"
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs VictoriaMetrics and Thanos: tests/run api"]
async fn a_wrong_path_is_told_as_one_and_a_wrong_query_as_one_on_any_backend() {
    for kind in Kind::ALL {
        let agent = Agent::start("shop-1").await;
        let backend = Backend::start(kind, &Agents::of([&agent])).await;
        let wrong = format!("{}/wrong", backend.server().configuration().url);
        let error = PrometheusServer::new("default", ServerConfiguration::new(wrong))
            .read(now_seconds(), &roster())
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("path of its url") || error.to_string().contains("check its url"),
            "{kind:?}: {error}"
        );
        let query = OverrideQuery { pool: shop(), signal: api::Signal::WaitingClients, query: "sum(".to_owned() };
        let error = backend.server().read_overrides(now_seconds(), &[query]).await.remove(0).unwrap_err();
        assert!(error.to_string().contains("correct the query"), "{kind:?}: {error}");
    }
}
