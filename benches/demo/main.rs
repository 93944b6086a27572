//! The demo's load against Sluice and against fixed limits, all at once: every policy gets the same orders in the same
//! seconds, through poolers of its own, from a database of its own on one server.
//!
//! Run by `benches/run demo`. What a policy is judged by: orders that waited longer than the objective, server connections
//! open at the database (counted there), and the ceiling, what its poolers were set to.
//!
//! Sluice is the real agent with the real PgBouncer beside every pod. The operator's part, dividing `maxAllowed` over the
//! pods, is done here with the same function (`decide::shares`) on what the agents report: every five seconds, as in the demo,
//! when a pod appears, and once a second while shares that were taken back are not proven (the operator asks after 0.2 s).
//! A pod that ends counts until its processes are gone.

// seconds of a run of minutes fit everywhere
#![allow(clippy::panic, clippy::cast_possible_truncation, clippy::cast_sign_loss, missing_docs)]

mod load;
mod parts;
mod report;
mod timeline;

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use sluice::{
    contract::{PodGrant, Settings, StatusReport},
    decide::shares::{Claimant, GrantProof, PodDemand, PodPhase, SharingRule, step},
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, interval, sleep_until},
};
use tokio_postgres::{Client, NoTls};

use load::Counts;
use parts::{Agent, Postgres, Process};
use report::{SLUICE, Sample};
use timeline::Pod;

/// Limits that one might choose, per pod.
const LIMITS: [u32; 5] = [4, 6, 8, 12, 20];
/// Seconds after which PgBouncer closes an idle server connection; 600 is its default.
const IDLE_TIMEOUTS: [u32; 3] = [5, 30, 600];
/// Seconds between two looks at the demand, as in the demo.
const TICK_SECONDS: u64 = 5;
/// Seconds from the start of a pod until it is ready and gets orders, with every policy.
const READY_AFTER: f64 = 2.0;

#[derive(Clone, Copy)]
enum Policy {
    Fixed { limit: u32, idle_timeout: u32 },
    Sluice,
}

impl Policy {
    fn name(self) -> String {
        match self {
            Self::Fixed { limit, idle_timeout } => format!("fixed {limit} per pod; idle {idle_timeout} s"),
            Self::Sluice => SLUICE.to_owned(),
        }
    }
}

/// The pooler of one pod.
enum Pooler {
    Fixed { process: Process, limit: u32 },
    Sluice(Box<SluicePod>),
}

struct SluicePod {
    agent: Arc<Agent>,
    uid: String,
    created: i64,
    grant: PodGrant,
    report: Option<StatusReport>,
    /// Busy and waiting of the last minute, second by second.
    demands: VecDeque<f64>,
    /// What the last tick made of it.
    demand: Option<PodDemand>,
}

impl SluicePod {
    fn as_seen(&self, phase: PodPhase) -> Claimant<'_> {
        Claimant {
            uid: &self.uid,
            created_seconds: self.created,
            phase,
            grant: Some(self.grant),
            proof: self
                .report
                .as_ref()
                .and_then(|report| Some(GrantProof { seq: report.seq, share: report.share, held: report.held?.held })),
            demand: self.demand,
            tries: 0,
        }
    }

    fn look_at_demand(&mut self) {
        self.demand = (!self.demands.is_empty()).then(|| PodDemand {
            mean: self.demands.iter().sum::<f64>() / self.demands.len() as f64,
            peak: self.demands.iter().take(30).copied().fold(0.0, f64::max),
        });
    }
}

/// A pod of Sluice that ends.
struct Leaving {
    uid: String,
    grant: PodGrant,
    gone: JoinHandle<()>,
}

struct Running {
    pooler: Pooler,
    ends: f64,
    load: JoinHandle<()>,
    leaks: JoinHandle<Vec<Client>>,
}

struct Arena {
    policy: Policy,
    name: String,
    database: String,
    directory: PathBuf,
    counts: Arc<Counts>,
    running: BTreeMap<usize, Running>,
    leaving: Vec<Leaving>,
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(into), seconds) = (arguments.next(), arguments.next()) else {
        panic!("usage: demo DIRECTORY [SECONDS]; run benches/run demo");
    };
    let seconds = seconds.map_or(timeline::SECONDS as usize, |text| text.parse().expect("a number of seconds"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let samples = runtime.block_on(run(seconds));
    let csv = report::to_csv(&samples);
    // every figure comes from what is kept
    let rows = report::rows(&report::from_csv(&csv).expect("our own CSV"));
    let into = Path::new(&into);
    fs::create_dir_all(into).expect("a directory");
    for (file, text) in
        [("samples.csv", csv), ("table.md", report::table(&rows)), ("picture.svg", report::picture(&rows))]
    {
        fs::write(into.join(file), text).expect("written");
    }
    print!("{}", report::table(&rows));
    let rivals = report::as_good_as_sluice(&rows);
    println!("As good as Sluice in all three: {}", if rivals.is_empty() { "none" } else { "see below" });
    for rival in rivals {
        println!("  {}", rival.policy);
    }
}

async fn run(seconds: usize) -> Vec<Sample> {
    let folder = tempfile::Builder::new().prefix("sluice-bench").tempdir().expect("a directory");
    let postgres = Arc::new(Postgres::start(folder.path()));
    let counter = count_client(postgres.port).await;
    let fixed =
        LIMITS.iter().flat_map(|&limit| IDLE_TIMEOUTS.map(|idle_timeout| Policy::Fixed { limit, idle_timeout }));
    let mut arenas = Vec::new();
    for (index, policy) in std::iter::once(Policy::Sluice).chain(fixed).enumerate() {
        let database = format!("shop{index}");
        counter.batch_execute(&format!("CREATE DATABASE {database}")).await.expect("a database");
        arenas.push(Arena {
            policy,
            name: policy.name(),
            directory: folder.path().join(&database),
            database,
            counts: Arc::new(Counts::new(seconds)),
            running: BTreeMap::new(),
            leaving: Vec::new(),
        });
    }
    let (settings, max_allowed, floor) = parts::shop();
    // the first pods are up before second 0
    let began = Instant::now() + Duration::from_secs(10);
    let shop = Shop { began, server: postgres.port, settings, max_allowed, floor };
    let pods = timeline::pods();
    let mut samples = Vec::new();
    for arena in &mut arenas {
        arena.pods_at(&pods, 0.0, &shop).await;
    }
    let mut ticks = interval(Duration::from_secs(1));
    sleep_until(began).await;
    for second in 1..=seconds {
        ticks.tick().await;
        sleep_until(began + Duration::from_secs(second as u64)).await;
        let open = count(&counter).await;
        for arena in &mut arenas {
            arena.pods_at(&pods, second as f64, &shop).await;
            let ceiling = arena.observe().await;
            if (second as u64).is_multiple_of(TICK_SECONDS) {
                arena.pods().for_each(SluicePod::look_at_demand);
            }
            arena.divide(&shop, None);
            let (open, opened) = open.get(&arena.database).copied().unwrap_or_default();
            let [orders, late, given_up] = arena.counts.at(second - 1);
            let policy = arena.name.clone();
            samples.push(Sample { second: second as u32, policy, ceiling, open, opened, orders, late, given_up });
        }
        if second % 10 == 0 {
            eprintln!("second {second} of {seconds}");
        }
    }
    for arena in &mut arenas {
        for (_, running) in std::mem::take(&mut arena.running) {
            running.load.abort();
        }
    }
    samples
}

async fn count_client(port: u16) -> Client {
    let mut config = tokio_postgres::Config::new();
    let config = config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
    // it listens before it takes clients
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match config.connect(NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(Instant::now() < deadline, "PostgreSQL takes no client: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Server connections open, and opened so far, by database, as the database counts them.
async fn count(client: &Client) -> BTreeMap<String, (u32, u64)> {
    let rows = client
        .query("SELECT datname::text, numbackends, sessions FROM pg_stat_database WHERE datname LIKE 'shop%'", &[])
        .await
        .expect("PostgreSQL answers");
    rows.iter()
        .map(|row| {
            let (open, opened): (i32, i64) = (row.get(1), row.get(2));
            (row.get(0), (u32::try_from(open).unwrap_or(0), u64::try_from(opened).unwrap_or(0)))
        })
        .collect()
}

impl Arena {
    /// Starts the pods whose time has come and ends those whose time is over.
    async fn pods_at(&mut self, pods: &[Pod], now: f64, shop: &Shop) {
        for (index, pod) in pods.iter().enumerate() {
            if pod.from - READY_AFTER <= now && now < pod.to && !self.running.contains_key(&index) {
                let running = self.start(index, pod, shop).await;
                self.running.insert(index, running);
            }
        }
        let over: Vec<usize> =
            self.running.iter().filter(|(_, pod)| pod.ends <= now).map(|(index, _)| *index).collect();
        for index in over {
            let Some(Running { pooler, load, leaks, .. }) = self.running.remove(&index) else { continue };
            leaks.abort();
            let granted = match &pooler {
                Pooler::Fixed { .. } => None,
                Pooler::Sluice(pod) => Some((pod.uid.clone(), pod.grant)),
            };
            let gone = tokio::spawn(async move {
                let _ = tokio::time::timeout(Duration::from_secs(5), load).await;
                let ended = spawn_blocking(move || match pooler {
                    Pooler::Fixed { process, .. } => process.end(Signal::INT),
                    Pooler::Sluice(pod) => {
                        if let Some(agent) = Arc::into_inner(pod.agent) {
                            agent.end();
                        }
                    }
                });
                let _ = ended.await;
            });
            self.leaving.extend(granted.map(|(uid, grant)| Leaving { uid, grant, gone }));
        }
        self.leaving.retain(|pod| !pod.gone.is_finished());
    }

    async fn start(&mut self, index: usize, pod: &Pod, shop: &Shop) -> Running {
        let directory = self.directory.join(format!("pod{index}"));
        let (database, policy, settings) = (self.database.clone(), self.policy, shop.settings.clone());
        let (server, created, uid) = (shop.server, pod.from as i64, format!("pod{index}"));
        let grant = match policy {
            Policy::Fixed { .. } => PodGrant::default(),
            Policy::Sluice => self.divide(shop, Some((&uid, created))),
        };
        let (port, pooler) = spawn_blocking(move || match policy {
            Policy::Fixed { limit, idle_timeout } => {
                let (port, process) = parts::fixed(&directory, server, &database, limit, idle_timeout);
                (port, Pooler::Fixed { process, limit })
            }
            Policy::Sluice => {
                let agent = Arc::new(Agent::start(&directory, &uid, server, &database, &settings, grant));
                let (port, demands) = (agent.port, VecDeque::new());
                let pod = SluicePod { agent, uid, created, grant, report: None, demands, demand: None };
                (port, Pooler::Sluice(Box::new(pod)))
            }
        })
        .await
        .expect("the pooler starts");
        // beside the run: a leak waits for its server connections like everybody else
        let leaks = tokio::spawn(load::leak(port, self.database.clone(), pod.leaks));
        let orders = timeline::orders(index, pod);
        let load = tokio::spawn(load::place(port, self.database.clone(), orders, shop.began, Arc::clone(&self.counts)));
        Running { pooler, ends: pod.to, load, leaks }
    }

    fn pods(&mut self) -> impl Iterator<Item = &mut SluicePod> {
        self.running.values_mut().filter_map(|running| match &mut running.pooler {
            Pooler::Sluice(pod) => Some(&mut **pod),
            Pooler::Fixed { .. } => None,
        })
    }

    /// Asks the agents, and says what all poolers are set to.
    async fn observe(&mut self) -> u32 {
        let mut ceiling = 0;
        for running in self.running.values_mut() {
            match &mut running.pooler {
                Pooler::Fixed { limit, .. } => ceiling += *limit,
                Pooler::Sluice(pod) => {
                    let agent = Arc::clone(&pod.agent);
                    pod.report = spawn_blocking(move || agent.status()).await.expect("asked");
                    let limits = pod.report.as_ref().and_then(|report| report.limits);
                    ceiling += limits.map_or(pod.grant.share, |limits| limits.pool_size);
                    if let Some(held) = pod.report.as_ref().and_then(|report| report.held) {
                        let busy = held.active.saturating_sub(held.leaked.unwrap_or(0)) + held.waiting;
                        pod.demands.push_front(f64::from(busy));
                        pod.demands.truncate(60);
                    }
                }
            }
        }
        ceiling
    }

    /// The operator's part: shares by demand. Returns the first grant of a pod that joins, named by uid and time of creation.
    fn divide(&mut self, shop: &Shop, joins: Option<(&str, i64)>) -> PodGrant {
        let leaving: Vec<(String, PodGrant)> = self.leaving.iter().map(|pod| (pod.uid.clone(), pod.grant)).collect();
        let mut pods: Vec<&mut SluicePod> = self.pods().collect();
        let bare = |uid, created_seconds, phase, grant| Claimant {
            uid,
            created_seconds,
            phase,
            grant,
            proof: None,
            demand: None,
            tries: 0,
        };
        let running = pods.iter().map(|pod| pod.as_seen(PodPhase::Running));
        let joining = joins.map(|(uid, created)| bare(uid, created, PodPhase::Running, None));
        let ending = leaving.iter().map(|(uid, grant)| bare(uid, 0, PodPhase::Terminating, Some(*grant)));
        let known: Vec<Claimant<'_>> = running.chain(joining).chain(ending).collect();
        let mut first = PodGrant::default();
        for write in
            step(&known, shop.floor, SharingRule::ByDemand { min_allowed: 0, max_allowed: shop.max_allowed }).writes
        {
            if let Some(pod) = pods.get_mut(write.pod) {
                pod.grant = write.grant;
                pod.agent.grant(write.grant);
            } else if joins.is_some() && write.pod == pods.len() {
                first = write.grant;
            }
        }
        first
    }
}

/// What every policy gets alike, and the pool of the example.
struct Shop {
    began: Instant,
    server: u16,
    settings: Settings,
    max_allowed: u32,
    floor: u32,
}
