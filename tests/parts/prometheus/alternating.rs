//! Two Prometheus behind one address that leads each request to the other one than the last time, as a Service without affinity may.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::State, http::Response};
use sluice::{
    decide::load::{Judgement, LoadState},
    signals::{PrometheusServer, ServerConfiguration},
};

use super::{
    Agents, DEADLINE, Prometheus, now_seconds,
    server::{Agent, http_get},
    tick,
};

/// Server connections that every pod keeps busy.
const BUSY: u32 = 3;
/// Transactions per second of every pod.
const RATE: u64 = 20;
const PODS: [&str; 3] = ["shop-1", "shop-2", "shop-3"];

/// How often each query was asked.
type Asked = Arc<Mutex<HashMap<String, usize>>>;

/// An address behind which these answer each query in turn.
async fn in_turn(servers: [SocketAddr; 2]) -> SocketAddr {
    async fn forward(State((servers, asked)): State<([SocketAddr; 2], Asked)>, uri: axum::http::Uri) -> Response<Body> {
        let query = uri.query().unwrap().split('&').find(|part| part.starts_with("query=")).unwrap();
        let times = {
            let mut asked = asked.lock().unwrap();
            let times = asked.entry(query.to_owned()).or_default();
            *times += 1;
            *times
        };
        let server = servers[times % 2];
        let path = uri.path_and_query().unwrap().as_str();
        Response::new(Body::from(http_get(&format!("http://{server}{path}")).await.unwrap().bytes().await.unwrap()))
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(forward).with_state((servers, Asked::default()));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn two_prometheus_that_answer_in_turn_make_no_wrong_demand_and_are_told() {
    let mut agents = Vec::new();
    for pod in PODS {
        agents.push(Agent::start(pod).await);
    }
    let servers =
        [Prometheus::start(&Agents::of(&agents)).await, Prometheus::start(&Agents::of(&agents).every(5)).await];
    let address = in_turn([servers[0].address, servers[1].address]).await;
    let server = PrometheusServer::new("default", ServerConfiguration::new(format!("http://{address}")));
    let begin = Instant::now();
    let work = || {
        for agent in &agents {
            agent.report(|figures| {
                let worked = begin.elapsed();
                figures.active = BUSY;
                figures.transactions = u64::try_from(worked.as_millis()).unwrap() * RATE / 1000;
                figures.busy_seconds = worked.as_secs_f64() * f64::from(BUSY);
                figures.sample_time = Some(now_seconds());
            });
        }
    };
    let mut state = LoadState::default();
    let (mut judged, mut told, mut last, mut first) = (0, None, None, None);
    while told.is_none() || judged < 15 {
        assert!(begin.elapsed() < DEADLINE, "not in time: {judged} times, {told:?}");
        for _ in 0..10 {
            work();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let load = tick(&mut state, &server, &PODS, 90.0).await;
        told = load.alternation.or(told);
        let Judgement::New { sample, .. } = load.judgement else { continue };
        judged += 1;
        let before = last.replace(sample).unwrap_or(sample);
        let seconds = sample.at_seconds - before.at_seconds;
        // the first readings are baselines
        if judged > 4 && seconds > 0.0 {
            let baseline = *first.get_or_insert(before);
            let passed = sample.at_seconds - baseline.at_seconds;
            let rate = (sample.transactions - baseline.transactions) / passed;
            let truth = f64::from(u32::try_from(RATE).unwrap()) * 3.0;
            // a pod that is scraped late brings its part with the next reading
            let late = if passed < 10.0 { 0.5 } else { 0.2 };
            let near = (1.0 - late) * truth..(1.0 + late) * truth;
            assert!(near.contains(&rate), "{rate} instead of {truth} transactions a second in {passed} s");
            for demand in load.demands.values() {
                assert!((demand.mean - f64::from(BUSY)).abs() < 0.3 * f64::from(BUSY), "{:?}", load.demands);
            }
        }
    }
    assert!(told.is_some_and(|told| told.pods > 0 && told.behind_seconds > Some(0.0)), "{told:?}");
    assert!(agents.iter().all(|agent| agent.scrapes() > 2), "both scrape every agent");
}
