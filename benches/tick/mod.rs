//! A whole tick of the operator for many pools: the answers of the real Prometheus fetched and parsed, the load of every pool
//! judged, every pool sized, and its shares divided.
//!
//! All of it runs on threads as the operator has them: one for the tick, and one for each answer that is taken apart. Prometheus runs
//! beside it, on the same cores, and scrapes every pod, whose series are exported by a few ports with the labels that single agents
//! would have. Its queries are counted by itself.
//!
//! Beside every tick the load is read as it was once, with one query for each figure (`before`), in turn first and second. Both ask
//! Prometheus itself, over connections that they keep, and each parses what it gets as its reader does or did.
//!
//! Every tick is measured twice: as Prometheus answers it, and again with recorded answers, after Prometheus has ended: the second
//! is what the operator itself takes, whatever the machine that Prometheus runs on. The answers are recorded in a reading of their
//! own right after both, as of the same moment: whoever stands between would lengthen what is measured.

mod before;
mod exposition;
mod recorder;
mod report;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use exposition::Fleet;
use recorder::Recorder;
use serde_json::json;
use sluice::{
    contract::{Algorithm, Objective, PodGrant},
    decide::{
        load::{ExpectedPod, Judgement, LoadInput, LoadState, Stage},
        shares::{self, Claimant, GrantProof, PodPhase, SharingRule},
        sizing::{Observation, Sizer, SizingSettings},
    },
    domain::{Automation, Bounds, PoolKey},
    signals::{PrometheusServer, Roster, ServerConfiguration},
};
use tokio::runtime;

use crate::{
    Failure, machine,
    process::{Process, free_port, lab_program, output, wait_for},
    results::{self, Results, Samples},
    statistics,
};

const MAX_ALLOWED: u32 = 100;
/// Name of the threads that stand for the operator's.
const THREADS: &str = "operator";

/// Options of `tick`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Numbers of pools to measure.
    #[arg(long, value_delimiter = ',', default_value = "10,1000")]
    pools: Vec<u32>,
    /// Pods of each pool.
    #[arg(long, default_value_t = 10)]
    pods: u32,
    /// Ticks of each number of pools.
    #[arg(long, default_value_t = 20)]
    ticks: u32,
    /// Seconds between two ticks, and between two scrapes.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(THREADS)
        // none of them ends within a tick, and takes what it has used with it
        .thread_keep_alive(Duration::from_mins(1))
        .enable_all()
        .build()?;
    let mut samples = Samples::of("source,pools,pods,tick,queries,bytes,read_ms,decide_ms,cpu_ms,judged,writes");
    for &pools in &options.pools {
        let scratch = tempfile::tempdir()?;
        let fleet = Fleet { pools, pods_per_pool: options.pods };
        let prometheus = Prometheus::start(fleet, options.seconds, scratch.path())?;
        let recorder = Recorder::start(prometheus.address)?;
        let (server, between) = (server(prometheus.address), server(recorder.address));
        let client = before::client()?;
        let mut operator = Operator::new(fleet);
        runtime.block_on(prometheus.has_scraped(&server, fleet))?;
        let mut times = Vec::new();
        let mut next = Instant::now();
        // the first tick sets the baselines
        for tick in 0..=options.ticks {
            next += Duration::from_secs(u64::from(options.seconds));
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let pods = pools * options.pods;
            let before = |samples: &mut Samples| -> Result<(), Failure> {
                let begun = Instant::now();
                let before::Reading { queries, bytes, pods: read } =
                    before::read(&runtime, &client, prometheus.address, now_seconds())?;
                if read != usize::try_from(pods)? {
                    return Err(format!("{read} of {pods} pods were read").into());
                }
                let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
                if tick > 0 {
                    samples.add(&format!("before,{pools},{pods},{tick},{queries},{bytes},{milliseconds:.2},0,0,0,0"));
                }
                Ok(())
            };
            if tick % 2 == 0 {
                before(&mut samples)?;
            }
            let queries_before = prometheus.queries()?;
            let now_seconds = now_seconds();
            times.push(now_seconds);
            let sample = runtime.block_on(operator.tick(&server, now_seconds))?;
            let queries = prometheus.queries()? - queries_before;
            if tick > 0 {
                samples.add(&format!("prometheus,{pools},{pods},{tick},{queries},{sample}"));
            }
            if tick % 2 == 1 {
                before(&mut samples)?;
            }
            runtime.block_on(between.read(now_seconds, &operator.roster))?;
        }
        drop(prometheus);
        recorder.replay()?;
        let mut operator = Operator::new(fleet);
        for (tick, now_seconds) in times.into_iter().enumerate() {
            let sample = runtime.block_on(operator.tick(&between, now_seconds))?;
            if tick > 0 {
                samples.add(&format!(
                    "recorded,{pools},{},{tick},{},{sample}",
                    pools * options.pods,
                    sluice::signals::QUERIES_PER_READ
                ));
            }
        }
    }
    setting.insert("secondsBetweenTicks".into(), json!(options.seconds));
    let version = output(Command::new(lab_program("prometheus")?).arg("--version"))?;
    setting.insert("prometheus".into(), json!(version.lines().next()));
    Ok(Results {
        name: "tick",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

/// A server of the operator at this address. A slow reading is a sample, not a failure.
fn server(address: SocketAddr) -> PrometheusServer {
    let address = format!("http://{address}");
    PrometheusServer::new("default", ServerConfiguration { timeout_seconds: 60, ..ServerConfiguration::new(address) })
}

/// What one tick took.
struct Tick {
    bytes: usize,
    read: Duration,
    decide: Duration,
    cpu: Duration,
    judged: usize,
    writes: usize,
}

impl std::fmt::Display for Tick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, read, decide, cpu, judged, writes } = self;
        let [read, decide, cpu] = [read, decide, cpu].map(|time| time.as_secs_f64() * 1e3);
        write!(f, "{bytes},{read:.2},{decide:.2},{cpu:.2},{judged},{writes}")
    }
}

/// The state that the operator keeps of every pool.
struct Operator {
    pools: Vec<Pool>,
    roster: Arc<Roster>,
    settings: SizingSettings,
}

struct Pool {
    key: PoolKey,
    pods: Vec<String>,
    grants: Vec<Option<PodGrant>>,
    load: LoadState,
    sizer: Sizer,
    target: u32,
}

impl Operator {
    fn new(fleet: Fleet) -> Self {
        let pool = |pool| {
            let (namespace, name) = Fleet::pool(pool);
            let pods: Vec<String> = (0..fleet.pods_per_pool).map(|pod| Fleet::pod(pool, pod)).collect();
            let grants = vec![None; pods.len()];
            let key = PoolKey::new(namespace, name);
            Pool { key, pods, grants, load: LoadState::default(), sizer: Sizer::default(), target: 5 }
        };
        let objective = Objective { wait_milliseconds: 20, max_waiting_percent: 1.0 };
        Self {
            pools: (0..fleet.pools).map(pool).collect(),
            roster: fleet.roster(),
            settings: SizingSettings::new(Algorithm::Adaptive, objective),
        }
    }

    async fn tick(&mut self, server: &PrometheusServer, now_seconds: f64) -> Result<Tick, Failure> {
        let cpu_before = cpu_of_operator()?;
        let begun = Instant::now();
        let readings = server.read(now_seconds, &self.roster).await?;
        let read = begun.elapsed();
        let (mut judged, mut writes) = (0, 0);
        for pool in &mut self.pools {
            let (decided, moved) = pool.tick(&self.settings, readings.pods_of(&pool.key), now_seconds);
            judged += usize::from(decided);
            writes += moved;
        }
        let decide = begun.elapsed().saturating_sub(read);
        let cpu = cpu_of_operator()?.saturating_sub(cpu_before);
        Ok(Tick { bytes: readings.bytes, read, decide, cpu, judged, writes })
    }
}

impl Pool {
    /// Judges, sizes and divides. Returns whether there was something new, and how many grants would be written.
    fn tick(
        &mut self,
        settings: &SizingSettings,
        read: &BTreeMap<String, sluice::signals::PodFigures>,
        now_seconds: f64,
    ) -> (bool, usize) {
        let expected: Vec<ExpectedPod> =
            self.pods.iter().map(|pod| ExpectedPod { name: pod, uid: pod, stage: Stage::Running }).collect();
        let load = self.load.step(&LoadInput {
            now_seconds,
            expected: &expected,
            read: Ok(read),
            overrides: &BTreeMap::new(),
            stale_after_seconds: 90.0,
        });
        let sample = match load.judgement {
            Judgement::New { sample, .. } => Some(sample),
            Judgement::Unchanged | Judgement::Hold { .. } => None,
        };
        if let Some(sample) = sample {
            let decision = self.sizer.decide(
                settings,
                &Observation {
                    now_seconds,
                    interval_seconds: 15.0,
                    pods: u32::try_from(self.pods.len()).unwrap_or(u32::MAX),
                    current: self.target,
                    target: self.target,
                    bounds: Bounds { min: 5, max: MAX_ALLOWED, share: None },
                    automation: Automation::Apply,
                    refused_beyond: None,
                    samples: &[sample],
                },
            );
            self.target = decision.size;
        }
        let pods: Vec<Claimant> = self
            .pods
            .iter()
            .zip(&self.grants)
            .map(|(pod, grant)| Claimant {
                uid: pod,
                created_seconds: 0,
                phase: PodPhase::Running,
                grant: *grant,
                proof: grant.map(|grant| GrantProof { seq: grant.seq, share: grant.share, held: 0 }),
                demand: load.demands.get(pod).copied(),
                tries: 0,
            })
            .collect();
        let plan = shares::step(&pods, 1, SharingRule::ByDemand { min_allowed: 0, max_allowed: MAX_ALLOWED });
        for write in &plan.writes {
            self.grants[write.pod] = Some(write.grant);
        }
        (sample.is_some(), plan.writes.len())
    }
}

/// The real Prometheus, scraping the fleet.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
}

impl Prometheus {
    fn start(fleet: Fleet, seconds: u32, scratch: &Path) -> Result<Self, Failure> {
        let targets: Vec<String> = fleet.export()?.iter().map(ToString::to_string).collect();
        let configuration = json!({
            "global": {"scrape_interval": format!("{seconds}s"), "scrape_timeout": format!("{seconds}s")},
            "scrape_configs": [{"job_name": "sluice-agents", "honor_labels": true, "static_configs": [{"targets": targets}]}],
        });
        let file = scratch.join("prometheus.yml");
        fs::write(&file, configuration.to_string())?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new(lab_program("prometheus")?);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", scratch.join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let process = Process::start(&mut command, &scratch.join("log"))?;
        Ok(Self { address, _process: process })
    }

    /// Waits until every pod can be read.
    async fn has_scraped(&self, server: &PrometheusServer, fleet: Fleet) -> Result<(), Failure> {
        let (deadline, roster) = (Instant::now() + Duration::from_mins(4), fleet.roster());
        loop {
            let read = server.read(now_seconds(), &roster).await;
            let pods = read.as_ref().map_or(0, |readings| readings.pools.values().map(BTreeMap::len).sum());
            if pods == usize::try_from(fleet.pools * fleet.pods_per_pool)? {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("Prometheus has {pods} pods, after four minutes: {:?}", read.err()).into());
            }
            // reading is work for Prometheus too, while it takes in its first scrape
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Queries that it has answered, by its own count.
    fn queries(&self) -> Result<u64, Failure> {
        let text = wait_for("the metrics of Prometheus", Duration::from_secs(10), || {
            output(Command::new("curl").args(["-sf", &format!("http://{}/metrics", self.address)])).ok()
        })?;
        let counts = text.lines().filter(|line| {
            line.starts_with("prometheus_http_requests_total") && line.contains("handler=\"/api/v1/query\"")
        });
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }
}

/// CPU time of this thread, and of those that stand for the operator's.
fn cpu_of_operator() -> Result<Duration, Failure> {
    let mut all = cpu_of(Path::new("/proc/thread-self"))?;
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?.path();
        // a thread may have ended meanwhile: others than the operator's do
        if fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim_end() == THREADS) {
            all += cpu_of(&thread)?;
        }
    }
    Ok(all)
}

fn cpu_of(thread: &Path) -> Result<Duration, Failure> {
    let text = fs::read_to_string(thread.join("schedstat"))?;
    let nanoseconds = text.split(' ').next().ok_or("schedstat is empty")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
