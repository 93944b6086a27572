//! A real Prometheus that reads the figures of pods which a test plays.

use std::{
    collections::HashMap,
    fs::File,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{Router, routing::get};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice::{
    agent::{
        decide::{counters::Added, slot_name::SlotName},
        report::{metrics::Metrics, server::OPENMETRICS},
    },
    pooler::pgbouncer::tables::Pools,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::process::free_address;
use crate::cluster::{eventually, within};

/// Transactions per second of every pod, and how long each takes.
const RATE: u64 = 40;
const TRANSACTION_MICROSECONDS: u64 = 100_000;
/// Server connections that they keep busy.
const ACTIVE: u32 = 4;

/// A Prometheus with the figures of some pods of one pool under a constant load. Both end with it.
pub struct Prometheus {
    child: Child,
    figures: JoinHandle<()>,
    scratch: TempDir,
    address: String,
    /// Server connections of each pod that are leaked.
    pub leaked: Arc<AtomicU32>,
    /// What pods run, by their names; of others revision 1 since the begin.
    runs: Arc<Mutex<HashMap<String, Running>>>,
}

/// The revision that a pod runs, since when, and how long its transactions take with it.
#[derive(Clone, Copy)]
struct Running {
    revision: u64,
    since: Instant,
    transaction_microseconds: u64,
}

impl Prometheus {
    /// Starts one that reads the figures of these pods of the pool `shop` as often as `every` says.
    pub async fn start(namespace: &str, pods: &[&str], every: &str) -> Self {
        let pods: Vec<(&str, &str)> = pods.iter().map(|pod| ("shop", *pod)).collect();
        Self::of_pools(namespace, &pods, every).await
    }

    /// The same for pods of several pools: each the name of its pool, and its own.
    pub async fn of_pools(namespace: &str, pods: &[(&str, &str)], every: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = listener.local_addr().expect("an address").to_string();
        let (begin, leaked) = (Instant::now(), Arc::new(AtomicU32::new(0)));
        let runs: Arc<Mutex<HashMap<String, Running>>> = Arc::default();
        let mut router = Router::new();
        let mut targets = Vec::new();
        for (number, (pool, pod)) in pods.iter().enumerate() {
            let (path, namespace_of, pool) = (format!("/pods/{number}"), namespace.to_owned(), (*pool).to_owned());
            let leaked = leaked.clone();
            let (runs, name) = (runs.clone(), (*pod).to_owned());
            let page = move || {
                let leaked = leaked.load(Ordering::Relaxed);
                let first = Running { revision: 1, since: begin, transaction_microseconds: TRANSACTION_MICROSECONDS };
                let running = runs.lock().get(&name).copied().unwrap_or(first);
                let text = rendered(&namespace_of, &pool, begin, leaked, running);
                std::future::ready(([("content-type", OPENMETRICS)], text))
            };
            router = router.route(&path, get(page));
            targets.push(json!({
                "targets": [target],
                "labels": {"__metrics_path__": path, "namespace": namespace, "pod": pod},
            }));
        }
        let figures = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });

        let scratch = tempfile::tempdir().expect("a directory");
        let path = |name: &str| scratch.path().join(name);
        let address = free_address();
        let scrape = json!({
            "global": {"scrape_interval": every, "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "pods", "static_configs": targets}],
        });
        std::fs::write(path("prometheus.yaml"), scrape.to_string()).expect("written");
        let servers = json!({"servers": {"default": {"url": format!("http://{address}")}}});
        std::fs::write(path("servers.yaml"), servers.to_string()).expect("written");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::from(File::create(path("log")).expect("a log file")))
            .spawn()
            .expect("prometheus is on the PATH of the lab");
        let ready = format!("http://{address}/-/ready");
        eventually("Prometheus is ready", || async { reqwest::get(&ready).await.ok()?.error_for_status().ok() }).await;
        Self { child, figures, scratch, address, leaked, runs }
    }

    /// From now on this pod runs this revision, with which transactions take so many times as long as with others.
    pub fn runs(&self, pod: &str, revision: u64, slower: u64) {
        let transaction_microseconds = slower * TRANSACTION_MICROSECONDS;
        let running = Running { revision, since: Instant::now(), transaction_microseconds };
        self.runs.lock().insert(pod.to_owned(), running);
    }

    /// Waits until it has scraped what this pod does with this revision so many times: a busy machine misses scrapes.
    pub async fn has_scraped(&self, pod: &str, revision: u64, times: u32) {
        let url = format!("http://{}/api/v1/query", self.address);
        let series = format!("sluice_revision_transactions_total{{pod=\"{pod}\",revision=\"{revision}\"}}");
        let what = format!("{times} scrapes of {pod} with revision {revision}");
        within(Duration::from_mins(3), &what, || async {
            let request = reqwest::Client::new().post(&url).header("content-type", "application/x-www-form-urlencoded");
            let request = request.body(format!("query=max(count_over_time({series}[10m]))"));
            let answer: Value = serde_json::from_slice(&request.send().await.ok()?.bytes().await.ok()?).ok()?;
            let count: f64 = answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()?;
            (count >= f64::from(times)).then_some(())
        })
        .await;
    }

    /// It ends, and nobody answers any more.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The operator's configuration that names it.
    pub fn configuration(&self) -> String {
        self.scratch.path().join("servers.yaml").display().to_string()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.figures.abort();
        self.end();
    }
}

/// What an agent itself renders under this load.
fn rendered(namespace: &str, pool: &str, begin: Instant, leaked: u32, running: Running) -> String {
    let elapsed = Duration::from_secs(1) + begin.elapsed();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let transactions = u64::try_from(elapsed.as_millis()).expect("an hour at most") * RATE / 1000;
    let active = ACTIVE;
    let added = Added {
        transactions,
        busy_microseconds: transactions * TRANSACTION_MICROSECONDS,
        assignments: transactions,
        ..Added::default()
    };
    let pools = Pools {
        clients_active: active,
        clients_waiting: 0,
        active,
        idle: 1,
        used: 0,
        tested: 0,
        login: 0,
        being_canceled: 0,
        longest_wait_microseconds: 0,
    };
    let metrics = Metrics::new(namespace, pool);
    metrics.observe(added, pools, Some(leaked), None, unix);
    for window in ["5s", "30s"] {
        metrics.set_peaks(window, f64::from(active), 0.0);
    }
    let since = running.since.elapsed();
    let transactions = u64::try_from(since.as_millis()).expect("an hour at most") * RATE / 1000;
    let of_revision = Added {
        transactions,
        busy_microseconds: transactions * running.transaction_microseconds,
        assignments: transactions,
        ..Added::default()
    };
    metrics.observe_active(Some(running.revision), SlotName::A, &of_revision, 0);
    // no grant: nothing is proven by way of Prometheus
    metrics.set_in_force(0, 3, 1, Some(3), Some(running.revision));
    metrics.render().expect("labels can be written")
}
