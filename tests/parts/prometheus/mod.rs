//! The reader of signals against the real Prometheus, which scrapes agents that the test plays.

mod alternating;
mod backtest;
mod hostile;
mod reading;
mod rules;
mod server;
mod trust;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use server::{Agents, Prometheus};
use sluice::{
    decide::load::{ExpectedPod, Judgement, LoadInput, LoadState, PoolLoad, Stage},
    domain::PoolKey,
    signals::{PodFigures, PrometheusServer, ReadError, Readings, Roster},
};

/// Longest wait for any state. Nothing here takes more than ten seconds on an idle machine; in CI both sets of parts and an API server
/// share two cores.
const DEADLINE: Duration = Duration::from_secs(90);

/// Unix time in seconds.
fn now_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn shop() -> PoolKey {
    PoolKey::new("shop", "shop")
}

/// The pods that the tests play; of other pools than `shop` each is named after its own.
fn roster() -> Arc<Roster> {
    let of_shop = (1..=3).map(|number| (shop(), format!("shop-{number}")));
    let ends = ('0'..='9').chain('a'..='z').map(|end| format!("pool-{end}"));
    let others = ends.map(|pool| (PoolKey::new("shop", pool.as_str()), format!("{pool}-pod")));
    Arc::new(of_shop.chain(others).collect())
}

async fn read(server: &PrometheusServer) -> Result<Readings, ReadError> {
    server.read(now_seconds(), &roster()).await
}

/// Reads until the pods of the pool are as wanted.
async fn read_until(server: &PrometheusServer, wanted: impl Fn(&BTreeMap<String, PodFigures>) -> bool) -> Readings {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let readings = read(server).await.unwrap();
        if wanted(readings.pods_of(&shop())) {
            return readings;
        }
        assert!(std::time::Instant::now() < deadline, "not in time: {readings:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One tick of the pool `shop` as the operator does it.
async fn tick(state: &mut LoadState, server: &PrometheusServer, pods: &[&str], stale_after_seconds: f64) -> PoolLoad {
    let now_seconds = now_seconds();
    let readings = server.read(now_seconds, &roster()).await.map_err(|error| error.to_string());
    let expected: Vec<ExpectedPod> =
        pods.iter().map(|&name| ExpectedPod { name, uid: name, stage: Stage::Running }).collect();
    state.step(&LoadInput {
        now_seconds,
        expected: &expected,
        read: readings.as_ref().map(|readings| readings.pods_of(&shop())).map_err(String::as_str),
        overrides: &BTreeMap::new(),
        stale_after_seconds,
    })
}

/// Ticks until the load is judged as wanted.
async fn tick_until(
    state: &mut LoadState,
    server: &PrometheusServer,
    pods: &[&str],
    stale_after_seconds: f64,
    wanted: impl Fn(&Judgement) -> bool,
) -> PoolLoad {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let load = tick(state, server, pods, stale_after_seconds).await;
        if wanted(&load.judgement) {
            return load;
        }
        assert!(std::time::Instant::now() < deadline, "not in time: {load:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
