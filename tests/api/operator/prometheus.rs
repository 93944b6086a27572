//! A real Prometheus that reads the figures of pods which a test plays.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{Router, routing::get};
use serde_json::json;
use sluice::contract::metrics;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::process::free_address;
use crate::cluster::eventually;

/// Transactions per second of every pod, and how long each takes.
const RATE: f64 = 40.0;
const TRANSACTION_SECONDS: f64 = 0.1;

/// A Prometheus with the figures of some pods of one pool under a constant load. Both end with it.
pub struct Prometheus {
    child: Child,
    figures: JoinHandle<()>,
    scratch: TempDir,
    address: String,
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
        let labels: Vec<String> = pods
            .iter()
            .map(|(pool, pod)| {
                format!("pool=\"{pool}\",pool_namespace=\"{namespace}\",namespace=\"{namespace}\",pod=\"{pod}\"")
            })
            .collect();
        let begin = Instant::now();
        let page =
            move || std::future::ready(labels.iter().map(|labels| exposition(labels, begin)).collect::<String>());
        let router = Router::new().route("/metrics", get(page));
        let figures = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });

        let scratch = tempfile::tempdir().expect("a directory");
        let path = |name: &str| scratch.path().join(name);
        let address = free_address();
        let scrape = json!({
            "global": {"scrape_interval": every, "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "pods", "honor_labels": true, "static_configs": [{"targets": [target]}]}],
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
        Self { child, figures, scratch, address }
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one agent would export.
fn exposition(labels: &str, begin: Instant) -> String {
    let seconds = 1.0 + begin.elapsed().as_secs_f64();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let (transactions, active) = (RATE * seconds, RATE * TRANSACTION_SECONDS);
    let series = [
        (metrics::TRANSACTIONS, "", transactions),
        (metrics::BUSY_SECONDS, "", transactions * TRANSACTION_SECONDS),
        (metrics::WAIT_SECONDS, "", 0.0),
        (metrics::SERVER_ASSIGNMENTS, "", transactions),
        (metrics::SERVER_CONNECTIONS, ",state=\"active\"", active),
        (metrics::SERVER_CONNECTIONS, ",state=\"idle\"", 1.0),
        (metrics::CLIENT_CONNECTIONS, ",state=\"active\"", active),
        (metrics::CLIENT_CONNECTIONS, ",state=\"waiting\"", 0.0),
        (metrics::LEAKED, "", 0.0),
        (metrics::DEMAND_PEAK, ",window=\"30s\"", active),
        (metrics::WAITING_PEAK, ",window=\"30s\"", 0.0),
        (metrics::LIMIT, "", 3.0),
        (metrics::SHARE, "", 3.0),
        (metrics::SAMPLE_TIME, "", unix),
    ];
    series.map(|(name, more, value)| format!("{name}{{{labels}{more}}} {value}\n")).concat()
}
