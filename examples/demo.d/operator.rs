//! The operator's part of `examples/demo --quick`: its own functions between a real Prometheus and real agents, without Kubernetes.
//!
//! Every tick it does what the operator does for each pool: reads the load from Prometheus (`signals`), judges it (`decide::load`), sizes
//! the pool (`decide::sizing`), and divides it over the pods (`decide::shares`), whose agents it asks once a second for the proof that
//! what was taken back is held no more. What the kubelet does is left: a pod is a directory, and its grant a file in it instead of an
//! annotation that the kubelet makes a file of. Its metrics are the operator's own.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use futures::future::join_all;
use jiff::Timestamp;
use sluice::{
    api::ConnectionPool,
    contract::{
        ClientSide, ClientTlsMode, Document, GrantDocument, Injection, PodGrant, PoolRevision, Reach, RevisionDocument,
        ServerTls, ServerTlsMode, StatusReport, Upstream,
    },
    decide::{
        effective::{EffectivePool, effective},
        load::{ExpectedPod, Judgement, LoadInput, LoadState, PoolLoad, Stage},
        shares::{self, Claimant, GrantProof, PodDemand, PodPhase, SharingRule},
        sizing::{Observation, Sizer, SizingSettings},
    },
    domain::{Automation, Bounds, PoolKey},
    http::{self, OperatorMetrics, PoolLabels, Pulse, Readiness},
    serving::Drain,
    signals::{DEFAULT_SERVER, PrometheusServer, Roster, ServerConfiguration},
};
use tokio::time::{MissedTickBehavior, interval};

/// Seconds between two questions to the agents: they read their poolers as often.
const ASK_SECONDS: u64 = 1;
/// What keeps it from deciding is told once, when it has done so for so many ticks.
const TOLD_AT_TICK: u32 = 3;
/// Longest wait for one answer.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

type Failure = Box<dyn Error>;

/// Sizes one pool whose pods are directories.
#[derive(Parser)]
struct Options {
    /// The ConnectionPool.
    #[arg(long)]
    pool: PathBuf,
    /// Where the pods' directories are made: POD/config is what the kubelet would project, POD/injection what the webhook would have fixed.
    #[arg(long)]
    directory: PathBuf,
    /// A pod, as NAME=PORT:AGENT_PORT, of its pooler and of its agent.
    #[arg(long = "pod", required = true)]
    pods: Vec<String>,
    /// Port of the database on loopback.
    #[arg(long)]
    database_port: u16,
    /// User and password of the database, as USER:PASSWORD.
    #[arg(long)]
    login: String,
    /// Prometheus.
    #[arg(long)]
    prometheus: String,
    /// Address of the metrics.
    #[arg(long)]
    http_bind: SocketAddr,
    /// Seconds between two decisions.
    #[arg(long, default_value_t = 5)]
    tick_seconds: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut operator = Operator::new(&options)?;
    operator.divide()?;
    let metrics = OperatorMetrics::default();
    let server = http::bind(options.http_bind, Readiness::default(), Pulse::default(), metrics.clone()).await?;
    tokio::select! {
        () = server.run(Drain::default()) => Ok(()),
        ended = operator.run(&options, &metrics) => ended,
    }
}

/// A pod: its directory, what it may open, and what its agent and its load say.
struct Pod {
    name: String,
    created_seconds: i64,
    config: PathBuf,
    status: String,
    grant: Option<PodGrant>,
    report: Option<StatusReport>,
    demand: Option<PodDemand>,
}

struct Operator {
    key: PoolKey,
    effective: EffectivePool,
    server: PrometheusServer,
    roster: Arc<Roster>,
    client: reqwest::Client,
    pods: Vec<Pod>,
    load: LoadState,
    sizer: Sizer,
    target: u32,
}

impl Operator {
    /// Lays down what each pod is created with.
    fn new(options: &Options) -> Result<Self, Failure> {
        let pool: ConnectionPool = serde_yaml::from_str(&fs::read_to_string(&options.pool)?)?;
        let name = pool.metadata.name.clone().unwrap_or_default();
        let namespace = pool.metadata.namespace.clone().unwrap_or_default();
        let effective = effective(&pool.spec, None).map_err(|refusal| refusal.message)?;
        let created_seconds = Timestamp::now().as_second();
        let mut pods = Vec::new();
        for pod in &options.pods {
            let parsed = pod.split_once('=').and_then(|(name, ports)| {
                let (port, agent) = ports.split_once(':')?;
                Some((name, port.parse::<u16>().ok()?, agent.parse::<u16>().ok()?))
            });
            let (pod, port, agent_port) =
                parsed.ok_or_else(|| format!("--pod {pod:?}: write it as NAME=PORT:AGENT_PORT"))?;
            let directory = options.directory.join(pod);
            let injection = Injection {
                v: Injection::VERSION,
                pool: name.clone(),
                namespace: namespace.clone(),
                upstream: Upstream {
                    host: "127.0.0.1".to_owned(),
                    port: options.database_port,
                    database: pool.spec.upstream.database.clone(),
                    tls: ServerTls { mode: ServerTlsMode::Disabled, own_ca: false, own_certificate: false },
                },
                client: ClientSide {
                    port,
                    max_connections: effective.pod.max_client_connections,
                    reach: Reach::Pod,
                    tls: ClientTlsMode::Disabled,
                },
                agent_port,
                fixed_hash: String::new(),
            };
            let revision = RevisionDocument {
                v: RevisionDocument::VERSION,
                pools: [(name.clone(), PoolRevision { revision: 1, settings: effective.settings.clone() })].into(),
            };
            let config = directory.join("config");
            for made in ["config/credentials", "run", "state"] {
                fs::create_dir_all(directory.join(made))?;
            }
            let (user, password) = options.login.split_once(':').ok_or("--login: write it as USER:PASSWORD")?;
            fs::write(config.join("credentials/username"), user)?;
            fs::write(config.join("credentials/password"), password)?;
            fs::write(config.join("revision"), revision.render())?;
            fs::write(directory.join("injection"), injection.render())?;
            pods.push(Pod {
                name: pod.to_owned(),
                created_seconds,
                config,
                status: format!("http://127.0.0.1:{agent_port}/status"),
                grant: None,
                report: None,
                demand: None,
            });
        }
        let key = PoolKey::new(namespace, name);
        Ok(Self {
            roster: Arc::new(pods.iter().map(|pod| (key.clone(), pod.name.clone())).collect()),
            key,
            target: effective.min_allowed,
            effective,
            server: PrometheusServer::new(DEFAULT_SERVER, ServerConfiguration::new(options.prometheus.clone())),
            client: reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(ASK_DEADLINE).build()?,
            pods,
            load: LoadState::default(),
            sizer: Sizer::default(),
        })
    }

    async fn run(&mut self, options: &Options, metrics: &OperatorMetrics) -> Result<(), Failure> {
        let labels = PoolLabels { pool_namespace: self.key.namespace.clone(), pool: self.key.name.clone() };
        let asks_per_tick = u64::from(options.tick_seconds) / ASK_SECONDS;
        let mut asks = interval(Duration::from_secs(ASK_SECONDS));
        asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // of a beginning everything is late
        let mut troubles = BTreeMap::<String, u32>::new();
        for asked in 0_u64.. {
            asks.tick().await;
            self.ask().await;
            if asked.is_multiple_of(asks_per_tick)
                && let Some(trouble) = self.decide(f64::from(options.tick_seconds), metrics).await
            {
                let ticks = troubles.entry(trouble.clone()).or_default();
                *ticks += 1;
                if *ticks == TOLD_AT_TICK {
                    println!("{} {trouble}", Timestamp::now().as_second());
                }
            }
            self.divide()?;
            let share = self.pods.iter().filter_map(|pod| pod.grant).map(|grant| grant.share).sum();
            metrics.pool(&labels, Some(self.target), share, self.size(), self.pods.len());
        }
        Ok(())
    }

    /// What the agents say of themselves.
    async fn ask(&mut self) {
        let questions = self.pods.iter().map(|pod| async {
            let answer = self.client.get(&pod.status).send().await.ok()?;
            serde_json::from_slice(&answer.bytes().await.ok()?).ok()
        });
        let answers: Vec<Option<StatusReport>> = join_all(questions).await;
        for (pod, answer) in self.pods.iter_mut().zip(answers) {
            pod.report = answer.filter(|report| report.pod_uid == pod.name);
        }
    }

    /// Reads the load and sizes the pool. Returns why nothing was decided.
    async fn decide(&mut self, interval_seconds: f64, metrics: &OperatorMetrics) -> Option<String> {
        let now_seconds = Timestamp::now().as_duration().as_secs_f64();
        let readings = self.server.read(now_seconds, &self.roster).await.map_err(|error| error.to_string());
        let expected: Vec<ExpectedPod<'_>> = self
            .pods
            .iter()
            .map(|pod| ExpectedPod { name: &pod.name, uid: &pod.name, stage: Stage::Starting })
            .collect();
        let PoolLoad { judgement, demands, .. } = self.load.step(&LoadInput {
            now_seconds,
            expected: &expected,
            read: readings.as_ref().map(|readings| readings.pods_of(&self.key)).map_err(String::as_str),
            overrides: &BTreeMap::new(),
            stale_after_seconds: self.server.configuration().stale_after_seconds(),
        });
        for pod in &mut self.pods {
            pod.demand = demands.get(&pod.name).copied();
        }
        let sample = match judgement {
            Judgement::New { sample, .. } => sample,
            Judgement::Unchanged => return None,
            Judgement::Hold { message, .. } => return Some(message),
        };
        let decision = self.sizer.decide(
            &SizingSettings::from(&self.effective.settings),
            &Observation {
                now_seconds,
                interval_seconds,
                pods: u32::try_from(self.pods.len()).unwrap_or(u32::MAX),
                current: self.size().unwrap_or(self.target),
                target: self.target,
                bounds: Bounds { min: self.effective.min_allowed, max: self.effective.max_allowed, share: None },
                automation: Automation::Apply,
                refused_beyond: None,
                samples: &[sample],
            },
        );
        metrics.decided(decision.reason.as_str());
        if decision.size != self.target {
            let (at, reason, why) = (Timestamp::now().as_second(), decision.reason.as_str(), &decision.message);
            println!("{at} target {} -> {} ({reason}): {why}", self.target, decision.size);
        }
        self.target = decision.size;
        None
    }

    /// Sum of the limits that the agents read back.
    fn size(&self) -> Option<u32> {
        let limits = self.pods.iter().filter_map(|pod| Some(pod.report.as_ref()?.limits?.pool_size));
        limits.reduce(|sum, limit| sum + limit)
    }

    /// Divides what all pods may open together, and writes what changed.
    fn divide(&mut self) -> Result<(), Failure> {
        let pods: Vec<Claimant<'_>> = self
            .pods
            .iter()
            .map(|pod| Claimant {
                uid: &pod.name,
                created_seconds: pod.created_seconds,
                phase: PodPhase::Running,
                grant: pod.grant,
                proof: pod.report.as_ref().and_then(|report| {
                    Some(GrantProof { seq: report.seq, share: report.share, held: report.held?.held })
                }),
                demand: pod.demand,
                tries: 0,
            })
            .collect();
        let rule =
            SharingRule::ByDemand { min_allowed: self.effective.min_allowed, max_allowed: self.effective.max_allowed };
        for write in shares::step(&pods, self.effective.floor_per_pod, rule).writes {
            let pod = &mut self.pods[write.pod];
            write_grant(&pod.config, &self.key.name, write.grant)?;
            pod.grant = Some(write.grant);
        }
        Ok(())
    }
}

/// Beside the old one and then in its place, as the kubelet does it.
fn write_grant(config: &Path, pool: &str, grant: PodGrant) -> Result<(), Failure> {
    let document = GrantDocument { v: GrantDocument::VERSION, epoch: 1, pools: [(pool.to_owned(), grant)].into() };
    let aside = config.join("grant.aside");
    fs::write(&aside, document.render())?;
    Ok(fs::rename(aside, config.join("grant"))?)
}
