//! A real Prometheus on loopback, and the agents that it scrapes.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::State, routing::get};
use sluice::{
    agent::{
        decide::{counters::Added, slot_name::SlotName},
        report::{metrics::Metrics, server::OPENMETRICS},
    },
    contract::{CircuitState, PoolerError, Switching, UpstreamState},
    pooler::pgbouncer::tables::Pools,
    signals::{PrometheusServer, ServerConfiguration},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{DEADLINE, now_seconds};

/// What an agent has counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub active: u32,
    pub waiting: u32,
    pub transactions: u64,
    pub busy_seconds: f64,
    /// Time of the sample; none: now, at each scrape.
    pub sample_time: Option<f64>,
    /// Waits of up to 1, 10 and 100 ms.
    pub waits: [u64; 3],
    /// Where it can see them.
    pub leaked: Option<u32>,
}

/// An agent of which a test plays the counts; what is scraped is the product's own rendering of them.
pub struct Agent {
    pub pod: String,
    address: SocketAddr,
    figures: Arc<Mutex<Figures>>,
    scrapes: Arc<AtomicU32>,
    pool: String,
    task: JoinHandle<()>,
}

impl Agent {
    pub async fn start(pod: &str) -> Self {
        Self::of_pool("shop", pod).await
    }

    pub async fn of_pool(pool: &str, pod: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let figures = Arc::new(Mutex::new(Figures::default()));
        let scrapes = Arc::default();
        let task = serve(listener, pool, figures.clone(), Arc::clone(&scrapes));
        Self { pod: pod.to_owned(), address, figures, scrapes, pool: pool.to_owned(), task }
    }

    /// How often it was scraped.
    pub fn scrapes(&self) -> u32 {
        self.scrapes.load(Ordering::Relaxed)
    }

    pub fn report(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.figures.lock().unwrap());
    }

    /// Nobody answers on its port any more.
    pub async fn dies(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// It answers again, from zero.
    pub async fn is_restarted(&mut self) {
        *self.figures.lock().unwrap() = Figures::default();
        let listener = tokio::net::TcpListener::bind(self.address).await.unwrap();
        self.task = serve(listener, &self.pool, self.figures.clone(), self.scrapes.clone());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn serve(
    listener: tokio::net::TcpListener,
    pool: &str,
    figures: Arc<Mutex<Figures>>,
    scrapes: Arc<AtomicU32>,
) -> JoinHandle<()> {
    let pool = pool.to_owned();
    let exposition = move |State(figures): State<Arc<Mutex<Figures>>>| {
        scrapes.fetch_add(1, Ordering::Relaxed);
        let text = rendered(&pool, &figures.lock().unwrap());
        std::future::ready(([("content-type", OPENMETRICS)], text))
    };
    // connections end with the server: what died must not answer a kept-alive scrape
    let router = Router::new().route("/metrics", get(exposition)).with_state(figures).layer(
        axum::middleware::map_response(|mut response: axum::response::Response| async {
            response.headers_mut().insert("connection", axum::http::HeaderValue::from_static("close"));
            response
        }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}

/// What the agent itself would render of these figures.
fn rendered(pool: &str, figures: &Figures) -> String {
    let Figures { active, waiting, transactions, busy_seconds, sample_time, waits, leaked } = *figures;
    let metrics = Metrics::new("shop", pool);
    let nothing = Added::default();
    let pools = Pools {
        clients_active: active,
        clients_waiting: waiting,
        active,
        idle: 2,
        used: 0,
        tested: 0,
        login: 1,
        being_canceled: 0,
        longest_wait_microseconds: 0,
    };
    for (microseconds, assignments) in [1_000, 10_000, 100_000].into_iter().zip(waits) {
        let wait_microseconds = microseconds * assignments;
        metrics.observe(Added { wait_microseconds, assignments, ..nothing }, pools, None, None, 0.0);
    }
    let busy_microseconds = Duration::from_secs_f64(busy_seconds).as_micros().try_into().unwrap();
    let added = Added {
        transactions,
        busy_microseconds,
        wait_microseconds: 500_000,
        assignments: transactions,
        ..Added::default()
    };
    metrics.observe(added, pools, leaked, None, sample_time.unwrap_or_else(now_seconds));
    metrics.observe_active(Some(7), SlotName::A, &added, 0);
    for window in ["5s", "30s"] {
        metrics.set_peaks(window, f64::from(active + waiting), f64::from(waiting));
    }
    metrics.set_in_force(7, 12, 1, Some(10), Some(1));
    // whatever has a name has a series
    metrics.set_info("uid", "1.26.1");
    metrics.add_arrivals(1, 1);
    metrics.count_decision("Demand");
    metrics.count_error(PoolerError::ServerLoginInterrupted, None);
    metrics.set_refused([("credentials", "NotProven")].into_iter());
    metrics.set_switching(Switching::Steer);
    metrics.set_upstream(Some(UpstreamState::Primary));
    metrics.set_circuit(CircuitState::Closed);
    metrics.set_refused_beyond(Some(3));
    metrics.set_pinned(Some(0));
    metrics.set_bypass(Some(0));
    metrics.set_memory_allows(Some(100));
    metrics.render().unwrap()
}

/// The agents that a Prometheus scrapes, by job.
#[derive(Default)]
pub struct Agents {
    jobs: BTreeMap<String, Vec<(String, SocketAddr)>>,
    scrape_seconds: Option<u32>,
    rules: Option<String>,
    limited: bool,
}

/// The limits of the job that scrapes agents, as they are shipped.
fn shipped_limits() -> serde_json::Map<String, serde_json::Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/prometheus/scrape-config.yaml");
    let shipped: serde_json::Value = serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let job = shipped["scrape_configs"][0].as_object().unwrap();
    job.iter().filter(|(name, _)| name.ends_with("_limit")).map(|(name, limit)| (name.clone(), limit.clone())).collect()
}

impl Agents {
    pub fn of<'a>(agents: impl IntoIterator<Item = &'a Agent>) -> Self {
        Self::default().and("sluice-agents", agents)
    }

    pub fn and<'a>(mut self, job: &str, agents: impl IntoIterator<Item = &'a Agent>) -> Self {
        let targets = agents.into_iter().map(|agent| (agent.pod.clone(), agent.address));
        self.jobs.entry(job.to_owned()).or_default().extend(targets);
        self
    }

    /// And a page that is no agent's.
    pub fn and_page(mut self, job: &str, address: SocketAddr) -> Self {
        self.jobs.entry(job.to_owned()).or_default().push((String::new(), address));
        self
    }

    /// And a page that is said to be that of this pod.
    pub fn and_pod(mut self, job: &str, pod: &str, address: SocketAddr) -> Self {
        self.jobs.entry(job.to_owned()).or_default().push((pod.to_owned(), address));
        self
    }

    /// With the limits of the scrape configuration that is shipped.
    pub fn limited_as_shipped(self) -> Self {
        Self { limited: true, ..self }
    }

    /// Judged by these rules every second.
    pub fn judged_by(self, rules: String) -> Self {
        Self { rules: Some(rules), ..self }
    }

    /// Scraped so often; else every second.
    pub fn every(self, seconds: u32) -> Self {
        Self { scrape_seconds: Some(seconds), ..self }
    }

    /// The configuration of a Prometheus that scrapes them.
    pub fn configuration(&self) -> serde_json::Value {
        let jobs: Vec<serde_json::Value> = self
            .jobs
            .iter()
            .map(|(job, targets)| {
                let targets: Vec<serde_json::Value> = targets
                    .iter()
                    .map(|(pod, address)| serde_json::json!({"targets": [address.to_string()], "labels": {"namespace": "shop", "pod": pod}}))
                    .collect();
                let mut job = serde_json::json!({"job_name": job, "static_configs": targets});
                if self.limited {
                    job.as_object_mut().unwrap().extend(shipped_limits());
                }
                job
            })
            .collect();
        let interval = format!("{}s", self.scrape_seconds.unwrap_or(1));
        let rules: &[&str] = if self.rules.is_some() { &["rules.yml"] } else { &[] };
        serde_json::json!({"rule_files": rules, "global": {"evaluation_interval": "1s", "scrape_interval": interval, "scrape_timeout": interval}, "scrape_configs": jobs})
    }
}

/// A Prometheus of the lab.
pub struct Prometheus {
    child: Child,
    directory: TempDir,
    pub address: SocketAddr,
    web_configuration: Option<PathBuf>,
}

impl Prometheus {
    /// Starts one and waits until it answers.
    pub async fn start(agents: &Agents) -> Self {
        let mut prometheus = Self::prepared(agents, None);
        prometheus.runs().await;
        prometheus
    }

    /// Starts one with a web configuration (TLS, users) in this text; its files lie in [`directory`](Self::directory).
    pub async fn start_guarded(agents: &Agents, files: &[(&str, &str)], web_configuration: &str) -> Self {
        let mut prometheus = Self::prepared(agents, Some(web_configuration));
        for (name, text) in files {
            fs::write(prometheus.directory().join(name), text).unwrap();
        }
        prometheus.runs().await;
        prometheus
    }

    /// Starts one that scrapes nobody and remembers this: series in the OpenMetrics format, with times.
    pub async fn start_remembering(history: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("history");
        fs::write(&file, history).unwrap();
        let made = Command::new(lab_bin().join("promtool"))
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([&file, &directory.path().join("data")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut prometheus = Self::prepared_in(directory, &Agents::default(), None);
        prometheus.runs().await;
        prometheus
    }

    fn prepared(agents: &Agents, web_configuration: Option<&str>) -> Self {
        Self::prepared_in(TempDir::new().unwrap(), agents, web_configuration)
    }

    fn prepared_in(directory: TempDir, agents: &Agents, web_configuration: Option<&str>) -> Self {
        fs::write(directory.path().join("prometheus.yml"), agents.configuration().to_string()).unwrap();
        fs::write(directory.path().join("rules.yml"), agents.rules.as_deref().unwrap_or_default()).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let web_configuration = web_configuration.map(|text| {
            let path = directory.path().join("web.yml");
            fs::write(&path, text).unwrap();
            path
        });
        let child = spawn(directory.path(), address, web_configuration.as_deref());
        Self { child, directory, address, web_configuration }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How to read it, without login.
    pub fn server(&self) -> PrometheusServer {
        PrometheusServer::new("default", self.configuration())
    }

    pub fn configuration(&self) -> ServerConfiguration {
        let scheme = if self.web_configuration.is_some() { "https" } else { "http" };
        ServerConfiguration::new(format!("{scheme}://{}", self.address))
    }

    pub fn is_killed(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn is_restarted(&mut self) {
        self.child = spawn(self.directory.path(), self.address, self.web_configuration.as_deref());
        self.runs().await;
    }

    /// How many queries it has answered, by its own count.
    pub async fn queries(&self) -> u64 {
        let url = format!("http://{}/metrics", self.address);
        let text = http_get(&url).await.unwrap().text().await.unwrap();
        text.lines()
            .filter(|line| line.starts_with("prometheus_http_requests_total") && line.contains("\"/api/v1/query\""))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Why its last scrape of the target at this address failed, if it did.
    pub async fn why_down(&self, target: SocketAddr) -> Option<String> {
        let url = format!("http://{}/api/v1/targets?state=active", self.address);
        let text = http_get(&url).await.ok()?.text().await.ok()?;
        let answer: serde_json::Value = serde_json::from_str(&text).ok()?;
        let targets = answer["data"]["activeTargets"].as_array()?;
        let instance = target.to_string();
        let target = targets.iter().find(|target| target["labels"]["instance"] == instance.as_str())?;
        (target["health"] == "down").then(|| target["lastError"].as_str().unwrap_or_default().to_owned())
    }

    async fn runs(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        // it listens before it is ready, and answers 503 then
        while !self.is_ready().await {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("prometheus ended ({status}): {}", self.log());
            }
            assert!(Instant::now() < deadline, "prometheus is not ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        if self.web_configuration.is_some() {
            // its certificate is the test's own matter
            return tokio::net::TcpStream::connect(self.address).await.is_ok()
                && self.log().contains("ready to receive");
        }
        let ready = http_get(&format!("http://{}/-/ready", self.address)).await;
        ready.is_ok_and(|response| response.status().is_success())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

/// One request over plain HTTP.
pub async fn http_get(url: &str) -> reqwest::Result<reqwest::Response> {
    // reqwest wants a provider even without TLS; another test may have installed it
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?.get(url).send().await
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn lab_bin() -> PathBuf {
    env::var_os("SLUICE_LAB_BIN").expect("SLUICE_LAB_BIN is not set: eval \"$(tests/lab/lab env)\"").into()
}

fn spawn(directory: &Path, address: SocketAddr, web_configuration: Option<&Path>) -> Child {
    let log = fs::File::create(directory.join("log")).unwrap();
    let mut command = Command::new(lab_bin().join("prometheus"));
    command
        .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    if let Some(path) = web_configuration {
        command.arg(format!("--web.config.file={}", path.display()));
    }
    command.spawn().unwrap()
}
