//! Answers of Prometheus that cannot be believed: each holds the size, is told in a condition, and is told once.
//!
//! A real Prometheus answers; what stands between it and the operator damages the answers, one way for each pool.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, RawQuery, State},
    http::Response,
    routing::get,
};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};
use sluice::{
    api::{ConnectionPool, ConnectionPoolStatus},
    contract::metrics::SAMPLE_TIME,
};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    pods::FakePod,
    process::{Operator, turn},
    prometheus::Prometheus,
};
use crate::cluster::{Cluster, pool_with, within};

/// For what waits for readings to be too old.
const PATIENCE: Duration = Duration::from_mins(3);
const STALE_AFTER_SECONDS: u32 = 20;

/// How answers are damaged, by the name of pool and server; the reason that is told, and part of the message.
const DAMAGES: [(&str, &str, &str); 9] = [
    ("unavailable", "PrometheusUnavailable", "HTTP 503 Service Unavailable"),
    ("refused", "PrometheusUnavailable", "HTTP 422 Unprocessable Entity: execution: too many samples"),
    ("warned", "PrometheusUnavailable", "may be incomplete and is not used: a store did not answer"),
    ("matrix", "PrometheusUnavailable", "the result is a matrix, needed is a vector"),
    ("page", "PrometheusUnavailable", "the answer is not that of a Prometheus API"),
    ("empty", "StaleMetrics", "s old, more than 20 s"),
    ("nan", "StaleMetrics", "is \"NaN\", which cannot be"),
    ("infinite", "StaleMetrics", "is \"+Inf\", which cannot be"),
    ("stale", "StaleMetrics", "s old, more than 20 s"),
];
/// What must change nothing: every series twice, as from two jobs.
const DUPLICATE: &str = "duplicate";

/// Between the operator and a Prometheus: `/DAMAGE/api/v1/query`.
struct Between {
    prometheus: String,
    damages: Arc<AtomicBool>,
}

async fn pass_on(
    State(between): State<Arc<Between>>,
    Path((damage, path)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response<Body> {
    let query = query.unwrap_or_default();
    let answer = reqwest::get(format!("http://{}/{path}?{query}", between.prometheus)).await.expect("Prometheus");
    let (status, text) = (answer.status().as_u16(), answer.text().await.expect("an answer"));
    let (status, text) = match damage.as_str() {
        _ if !between.damages.load(Ordering::Relaxed) => (status, text),
        "unavailable" => (503, "<html>upstream connect error</html>".to_owned()),
        "refused" => {
            (422, json!({"status": "error", "errorType": "execution", "error": "too many samples"}).to_string())
        }
        "page" => (200, "<html>please log in</html>".to_owned()),
        _ => (status, damaged(&damage, serde_json::from_str(&text).expect("JSON")).to_string()),
    };
    Response::builder().status(status).body(Body::from(text)).expect("an answer")
}

/// The real answer with what this damage does to it.
fn damaged(damage: &str, mut answer: Value) -> Value {
    if damage == "matrix" {
        answer["data"]["resultType"] = json!("matrix");
    }
    if damage == "warned" {
        answer["warnings"] = json!(["a store did not answer"]);
    }
    let series = answer["data"]["result"].as_array_mut().expect("series");
    match damage {
        "empty" => series.clear(),
        DUPLICATE => {
            let mut copies = series.clone();
            for copy in &mut copies {
                copy["metric"]["job"] = json!("other");
            }
            series.append(&mut copies);
        }
        _ => {}
    }
    for series in series {
        let is_time = series["metric"]["__name__"] == SAMPLE_TIME;
        let value = &mut series["value"][1];
        match damage {
            "nan" if !is_time => *value = json!("NaN"),
            "infinite" if !is_time => *value = json!("+Inf"),
            "stale" if is_time => {
                let time: f64 = value.as_str().and_then(|text| text.parse().ok()).expect("a time");
                *value = json!((time - 1000.0).to_string());
            }
            _ => {}
        }
    }
    answer
}

/// Pools that each read Prometheus through a damage of their own.
struct Pools {
    cluster: Cluster,
    pods: Vec<FakePod>,
}

impl Pools {
    fn names() -> impl Iterator<Item = &'static str> {
        DAMAGES.iter().map(|(name, ..)| *name).chain([DUPLICATE])
    }

    async fn new() -> Self {
        let cluster = Cluster::new("doubtful", &json!({})).await;
        let mut pods = Vec::new();
        for name in Self::names() {
            let scaling = format!(
                "  scaling: {{minAllowed: 2, maxAllowed: 40, algorithm: TargetUtilization, localReaction: Disabled, \
                 metrics: {{prometheusRef: {name}}}}}\n"
            );
            let spec = pool_with(name, &scaling).replace("app: shop", &format!("app: {name}"));
            let pool: ConnectionPool = cluster.create(&spec).await.expect("a pool");
            pods.push(FakePod::start(&cluster, &pool, name).await);
        }
        Self { cluster, pods }
    }

    async fn status(&self, name: &str) -> ConnectionPoolStatus {
        let pools: Api<ConnectionPool> = self.cluster.api();
        pools.get_status(name).await.expect("the pool").status.unwrap_or_default()
    }

    async fn until_active(&self, name: &str, wanted: &str) -> String {
        within(PATIENCE, &format!("ScalingActive of {name} is {wanted}"), || async {
            let status = self.status(name).await;
            let active = status.conditions.into_iter().find(|condition| condition.type_ == "ScalingActive")?;
            (format!("{}/{}", active.status, active.reason) == wanted).then_some(active.message)
        })
        .await
    }

    /// Targets and grants of all.
    async fn sizes(&self) -> Vec<Value> {
        let mut sizes = Vec::new();
        for pod in &self.pods {
            let target = self.status(&pod.name).await.recommendation.map(|told| told.target);
            let grant = pod.grant(&pod.name).await.map(|grant| (grant.seq, grant.share, grant.granted));
            sizes.push(json!([pod.name, target, grant]));
        }
        sizes
    }

    /// The reasons of all warnings about a pool.
    async fn warnings(&self, name: &str) -> Vec<String> {
        let events: Api<Event> = self.cluster.api();
        let all = events.list(&ListParams::default()).await.expect("events").items.into_iter();
        let own = all.filter(|event| event.regarding.as_ref().is_some_and(|it| it.name.as_deref() == Some(name)));
        own.filter(|event| event.type_.as_deref() == Some("Warning")).filter_map(|event| event.reason).collect()
    }

    async fn end(self) {
        let pools: Api<ConnectionPool> = self.cluster.api();
        for pool in pools.list(&ListParams::default()).await.expect("pools") {
            pools.delete(&pool.name_any(), &kube::api::DeleteParams::default()).await.expect("deleted");
        }
    }
}

async fn pass_ticks(operator: &Operator, count: f64) {
    let ticks = || operator.metric("sluice_operator_tick_duration_seconds_count");
    let begun = within(PATIENCE, "ticks are counted", ticks).await;
    within(PATIENCE, "the operator has looked again", || async { ticks().await.filter(|now| *now >= begun + count) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn an_answer_of_prometheus_that_cannot_be_believed_holds_the_size_and_is_told_once() {
    let _turn = turn().await;
    let pools = Pools::new().await;
    let names: Vec<(&str, &str)> = Pools::names().map(|name| (name, name)).collect();
    let prometheus = Prometheus::of_pools(&pools.cluster.namespace, &names, "1s").await;
    let damages = Arc::new(AtomicBool::new(false));
    let between = Arc::new(Between { prometheus: prometheus.address().to_owned(), damages: damages.clone() });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = Router::new().route("/{damage}/{*path}", get(pass_on)).with_state(between);
    let serving: JoinHandle<()> = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
    let servers: serde_json::Map<String, Value> = Pools::names()
        .map(|name| {
            let url = format!("http://{address}/{name}");
            (name.to_owned(), json!({"url": url, "timeoutSeconds": 30, "staleAfterSeconds": STALE_AFTER_SECONDS}))
        })
        .collect();
    let scratch = tempfile::tempdir().expect("a directory");
    let configuration = scratch.path().join("servers.yaml");
    std::fs::write(&configuration, json!({"servers": servers}).to_string()).expect("written");
    let configuration = configuration.display().to_string();
    let operator =
        Operator::start(&pools.cluster, "a", &["--tick-seconds", "1", "--prometheus-config", &configuration]);
    operator.leads().await;
    for name in Pools::names() {
        pools.until_active(name, "True/SignalsFresh").await;
        within(PATIENCE, "the target is that of the load", || async {
            (pools.status(name).await.recommendation?.target > 4).then_some(())
        })
        .await;
    }
    pass_ticks(&operator, 3.0).await;
    let before = pools.sizes().await;
    // what came late at the start is not what this is about
    let mut told_before = Vec::new();
    for name in Pools::names() {
        told_before.push(pools.warnings(name).await);
    }

    damages.store(true, Ordering::Relaxed);
    for (name, reason, part) in DAMAGES {
        let message = pools.until_active(name, &format!("False/{reason}")).await;
        assert!(message.contains(part), "{name}: {message}");
    }
    pass_ticks(&operator, 4.0).await;
    assert_eq!(pools.sizes().await, before, "something moved");
    pools.until_active(DUPLICATE, "True/SignalsFresh").await;
    for ((name, reason, _), before) in DAMAGES.iter().zip(&told_before) {
        let told = pools.warnings(name).await;
        let of_reason = |told: &[String]| told.iter().filter(|told| told == reason).count();
        // a machine so slow that Prometheus was late at the start has been told of that within this minute
        let now = of_reason(&told) - of_reason(before);
        assert!(of_reason(&told) > 0 && now <= 1, "{name}: told {now} times more: {told:?} after {before:?}");
        assert!(told.len() - before.len() <= 1, "{name}: nothing else is told: {told:?} after {before:?}");
    }
    assert_eq!(Some(&pools.warnings(DUPLICATE).await), told_before.last(), "what is there twice is counted once");

    damages.store(false, Ordering::Relaxed);
    for name in Pools::names() {
        pools.until_active(name, "True/SignalsFresh").await;
    }
    assert_eq!(pools.sizes().await, before, "and it goes on where it was");
    pools.end().await;
    serving.abort();
}
