//! What one tenant, one pod or one sender of packets can do to the others.
//!
//! The operator with many pools, against a real API server and a real Prometheus; pods and agents are those of [`fleet`]. Most pools
//! are others' and are what is measured; the rest are one tenant's. Beside them a real sidecar with clients at work. One after the
//! other, and at last all at once:
//!
//! - `silent`: the agents of the tenant's pods take questions and do not answer;
//! - `override`: the query of one of the tenant's pools takes 30 s, and then returns 64 MiB;
//! - `forged`: one of the tenant's pods exports forged series, scraped as the shipped scrape configuration says;
//! - `unlimited`: the same at a Prometheus without limits;
//! - `bodies`: admission requests as large as the API server's own bound, ten a second;
//! - `idle`: connections that stand at the sidecar's agent and say nothing.
//!
//! Measured, each beside `calm`: how late the others' decisions are, from the start of the tick; how late the shares taken back from
//! the others' pods are written down as proven; how long the API server waits for a verdict on a pod; memory, within the limits that ship:
//! whoever takes more is killed, as in a cluster; what the sidecar's clients lose, and whether its agent answers the operator.
//!
//! The build before is measured first, on the same objects.

mod admission;
mod operator;
mod report;
mod sidecar;
mod signals;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use admission::{Admissions, Asking, Bodies};
use clap::Args;
use operator::Operator;
use serde_json::{Value, json};
use sidecar::{Answers, Idle, Sidecar};
use signals::Signals;
use sluice::{contract::names, signals::ServerConfiguration};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    Failure,
    cluster::{create_namespace, define, kubectl},
    fleet::{self, Fleet, Tenant, Waves, pool_name},
    machine, node,
    process::{Process, lab_program, output, product_program, wait_for},
    results::{self, Results, Samples},
    statistics,
    subject::Ground,
};

const OTHERS: &str = "others";
const TENANT: &str = "tenant";
const SYSTEM: &str = "sluice-system";
/// The real Prometheus; the operator asks what stands before it.
const PROMETHEUS: &str = "127.0.0.1:9091";
/// What a sidecar had for its memory in the build before, in MiB.
const SIDECAR_BEFORE_MEBIBYTES: u64 = 64;

/// Options of `neighbours`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Pools of all.
    #[arg(long, default_value_t = 1000)]
    pools: usize,
    /// Pods of each pool.
    #[arg(long, default_value_t = 10)]
    pods: usize,
    /// Pods of the tenant, whose agents fall silent.
    #[arg(long, default_value_t = 500)]
    silent: usize,
    /// Series that one of its pods forges.
    #[arg(long, default_value_t = 100_000)]
    forged: usize,
    /// Bytes of a large admission request.
    #[arg(long, default_value_t = 8 << 20)]
    body_bytes: usize,
    /// Large admission requests a second.
    #[arg(long, default_value_t = 10)]
    bodies: u32,
    /// Connections that stand at the agent.
    #[arg(long, default_value_t = 5000)]
    idle: usize,
    /// Seconds that each is measured for.
    #[arg(long, default_value_t = 90)]
    seconds: u64,
    /// Seconds before that, for what has just begun to take effect.
    #[arg(long, default_value_t = 30)]
    onset_seconds: u64,
    /// Seconds of quiet work before everything.
    #[arg(long, default_value_t = 180)]
    settle_seconds: u64,
    /// Seconds within which every pod must have its share.
    #[arg(long, default_value_t = 1500)]
    grant_seconds: u64,
    /// Directory with the programs of the build before.
    #[arg(long, env = "SLUICE_BEFORE_BIN", requires = "before_tree")]
    before: Option<PathBuf>,
    /// Directory with the sources of the build before.
    #[arg(long, env = "SLUICE_BEFORE_TREE")]
    before_tree: Option<PathBuf>,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// What is done to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Calm,
    Silent,
    Override,
    Forged,
    Unlimited,
    Bodies,
    Idle,
    Together,
}

impl Phase {
    const ALL: [Self; 8] = [
        Self::Calm,
        Self::Silent,
        Self::Override,
        Self::Forged,
        Self::Unlimited,
        Self::Bodies,
        Self::Idle,
        Self::Together,
    ];

    /// In samples.
    const fn label(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Silent => "silent",
            Self::Override => "override",
            Self::Forged => "forged",
            Self::Unlimited => "unlimited",
            Self::Bodies => "bodies",
            Self::Idle => "idle",
            Self::Together => "together",
        }
    }

    fn has(self, part: Self) -> bool {
        // a Prometheus without limits is not the one that ships
        self == part || self == Self::Together && !matches!(part, Self::Calm | Self::Unlimited)
    }
}

/// A build that is measured.
struct Build {
    /// In samples.
    label: &'static str,
    programs: PathBuf,
    tree: PathBuf,
    sidecar_mebibytes: Option<u64>,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut builds = Vec::new();
    if let (Some(programs), Some(tree)) = (&options.before, &options.before_tree) {
        let commit = output(Command::new("git").arg("-C").arg(tree).args(["rev-parse", "HEAD"]))?;
        setting.insert("commitBefore".into(), json!(commit.trim()));
        let (programs, tree) = (programs.clone(), tree.clone());
        builds.push(Build { label: "before", programs, tree, sidecar_mebibytes: Some(SIDECAR_BEFORE_MEBIBYTES) });
    }
    let programs = product_program("sluice")?.parent().ok_or("no directory of programs")?.to_owned();
    builds.push(Build { label: "now", programs, tree: own.to_owned(), sidecar_mebibytes: None });

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let scratch = tempfile::tempdir()?;
    define(&builds[0].tree)?;
    kubectl(&["apply", "--filename", &write(scratch.path(), "webhook.json", &webhook_configuration())?])?;
    for namespace in [OTHERS, TENANT, SYSTEM] {
        create_namespace(namespace)?;
    }
    let theirs = options.silent.div_ceil(options.pods).min(options.pools.saturating_sub(2)).max(2);
    // targets that follow the load at every tick, so that there is a decision to be late with
    let mut spec = json!({
        "scaling": {"algorithm": "TargetUtilization"},
        "behavior": {
            "scaleUp": {"tolerance": "0", "policies": [{"type": "Percent", "value": 1000, "periodSeconds": 15}]},
            "scaleDown": {"tolerance": "0", "stabilizationWindowSeconds": 0},
        },
    });
    let mut tenants = vec![
        Tenant { namespace: OTHERS, pools: options.pools - theirs, spec: spec.clone() },
        Tenant { namespace: TENANT, pools: theirs - 1, spec: spec.clone() },
    ];
    spec["scaling"]["metrics"] = json!({"overrides": [{"signal": "WaitingClients", "query": signals::OWN_SERIES}]});
    tenants.push(Tenant { namespace: TENANT, pools: 1, spec });
    let fleet = runtime.block_on(Fleet::start(tenants, options.pods, Waves::OfPods))?;
    let mut tasks = JoinSet::new();
    let signals = runtime.block_on(async { Signals::start(PROMETHEUS, &mut tasks).await })?;
    let ground = Ground::start(scratch.path())?;
    let mut samples = Samples::of("build,phase,what,value,count");
    for build in &builds {
        define(&build.tree)?;
        let bench = Bench { options, runtime: &runtime, fleet: &fleet, signals: &signals, ground: &ground, build };
        bench.measure(&scratch.path().join(build.label), &mut samples)?;
    }
    for (name, value) in [
        ("tickSeconds", json!(15)),
        ("scrapeSeconds", json!(15)),
        ("pools", json!(options.pools)),
        ("podsOfEach", json!(options.pods)),
        ("silentPods", json!(theirs * options.pods)),
        ("forgedSeries", json!(options.forged)),
        ("largeBodies", json!(format!("{} bytes, {} a second", options.body_bytes, options.bodies))),
        ("idleConnections", json!(options.idle)),
        ("secondsOfEach", json!(options.seconds)),
    ] {
        setting.insert(name.into(), value);
    }
    Ok(Results {
        name: "neighbours",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

fn write(directory: &Path, name: &str, content: &Value) -> Result<String, Failure> {
    let path = directory.join(name);
    fs::write(&path, content.to_string())?;
    Ok(path.display().to_string())
}

/// What the chart installs, for the operator to put its authority into. It asks about no pod: the bench does.
fn webhook_configuration() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "sluice"},
        "webhooks": [{
            "name": "pod.inject.sluice.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "clientConfig": {"service": {"name": "sluice-webhook", "namespace": SYSTEM, "path": "/inject"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nobody"}},
        }],
    })
}

/// The limits that the shipped scrape configuration of these sources has for agents.
fn scrape_limits(tree: &Path) -> Result<serde_json::Map<String, Value>, Failure> {
    let text = fs::read_to_string(tree.join("examples/prometheus/scrape-config.yaml"))?;
    let configuration: Value = serde_yaml::from_str(&text)?;
    let jobs = configuration["scrape_configs"].as_array().ok_or("no scrape_configs in the example")?;
    let job =
        jobs.iter().find(|job| job["job_name"] == "sluice-agents").ok_or("no job sluice-agents in the example")?;
    let limits = job.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_limit"));
    Ok(limits.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// The memory that the chart of these sources gives the operator, in KiB.
fn operator_limit(tree: &Path) -> Result<u64, Failure> {
    let values: Value = serde_yaml::from_str(&fs::read_to_string(tree.join("charts/sluice/values.yaml"))?)?;
    mebibytes(&values["resources"]["limits"]["memory"]).map(|mebibytes| mebibytes * 1024)
}

fn mebibytes(quantity: &Value) -> Result<u64, Failure> {
    let number = quantity.as_str().and_then(|text| text.strip_suffix("Mi"));
    Ok(number.ok_or_else(|| format!("{quantity} is no number of Mi"))?.parse()?)
}

/// One build at work.
struct Bench<'a> {
    options: &'a Options,
    runtime: &'a Runtime,
    fleet: &'a Arc<Fleet>,
    signals: &'a Signals,
    ground: &'a Ground,
    build: &'a Build,
}

/// All that is measured.
struct Measured {
    operator: Operator,
    sidecar: Sidecar,
    asking: Asking,
    client: reqwest::Client,
}

impl Bench<'_> {
    fn measure(&self, scratch: &Path, samples: &mut Samples) -> Result<(), Failure> {
        fs::create_dir_all(scratch)?;
        let _prometheus = self.prometheus(scratch)?;
        let servers = write(scratch, "servers.yaml", &json!({"servers": {"default": self.server()}}))?;
        let limit = operator_limit(&self.build.tree)?;
        let program = self.build.programs.join("sluice");
        let operator = Operator::start(program, servers.into(), scratch.join("operator"), limit)?;
        operator.leads(Duration::from_mins(1))?;
        self.wait_for_shares(&operator)?;
        sleep(Duration::from_secs(self.options.settle_seconds));
        let limit = self.sidecar_limit()?;
        let agent = self.build.programs.join("sluice-agent");
        let sidecar = Sidecar::start(self.ground, &scratch.join("sidecar"), agent, limit)?;
        let client = admission::client()?;
        let asking = self.runtime.block_on(async { Asking::start(client.clone(), OTHERS) });
        let measured = Measured { operator, sidecar, asking, client };
        for phase in Phase::ALL {
            self.phase(phase, &measured, samples)?;
        }
        measured.sidecar.end();
        Ok(())
    }

    /// Prometheus with the pods, and the one that forges, as the configuration of this build has it and without limits.
    fn prometheus(&self, scratch: &Path) -> Result<Process, Failure> {
        let job = |name: &str, path: &str, limits: serde_json::Map<String, Value>| {
            let mut job = json!({
                "job_name": name, "metrics_path": path,
                "static_configs": [{"targets": [signals::FORGER], "labels": {"namespace": TENANT, "pod": name}}],
            });
            if let Some(job) = job.as_object_mut() {
                job.extend(limits);
            }
            job
        };
        let configuration = json!({
            "global": {"scrape_interval": "15s", "scrape_timeout": "14s"},
            "scrape_configs": [
                {"job_name": "fleet", "honor_labels": true, "static_configs": [{"targets": [fleet::METRICS_ADDRESS]}]},
                job("forger", "/metrics", scrape_limits(&self.build.tree)?),
                job("unlimited", "/unlimited", serde_json::Map::new()),
            ],
        });
        let file = write(scratch, "prometheus.yaml", &configuration)?;
        let before = self.fleet.scrapes();
        let process = Process::start(
            Command::new(lab_program("prometheus")?)
                .arg(format!("--config.file={file}"))
                .arg(format!("--storage.tsdb.path={}", scratch.join("prometheus").display()))
                .arg(format!("--web.listen-address={PROMETHEUS}")),
            &scratch.join("prometheus.log"),
        )?;
        wait_for("the first scrape", Duration::from_mins(2), || (self.fleet.scrapes() > before).then_some(()))?;
        Ok(process)
    }

    /// The operator's configuration of its Prometheus. The tenant's own query is let in, where that can be said.
    fn server(&self) -> Value {
        let server = json!({"url": format!("http://{}", signals::FRONT)});
        let mut open = server.clone();
        open["allowedNamespaces"] = json!([TENANT]);
        let is_known = serde_json::from_value::<ServerConfiguration>(open.clone()).is_ok();
        if self.build.label == "now" && is_known { open } else { server }
    }

    fn wait_for_shares(&self, operator: &Operator) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(self.options.grant_seconds);
        while self.fleet.pods_with_share() < self.fleet.pods() {
            operator.check()?;
            if Instant::now() > deadline {
                let share = self.fleet.pods_with_share();
                return Err(format!("{share} of {} pods have a share in time", self.fleet.pods()).into());
            }
            sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    /// What the sidecar of an injected pod may take, in KiB.
    fn sidecar_limit(&self) -> Result<u64, Failure> {
        if let Some(mebibytes) = self.build.sidecar_mebibytes {
            return Ok(mebibytes * 1024);
        }
        let pod = format!("{}-0", pool_name(0));
        let pod: Value =
            serde_json::from_str(&kubectl(&["get", "pod", &pod, "--namespace", OTHERS, "--output", "json"])?)?;
        let containers = pod["spec"]["initContainers"].as_array().ok_or("the pod has no sidecar")?;
        let sidecar = containers.iter().find(|container| container["name"] == names::SIDECAR_CONTAINER);
        mebibytes(&sidecar.ok_or("the pod has no sidecar")?["resources"]["limits"]["memory"])
            .map(|mebibytes| mebibytes * 1024)
    }

    fn phase(&self, phase: Phase, measured: &Measured, samples: &mut Samples) -> Result<(), Failure> {
        let Measured { operator, sidecar, asking, client } = measured;
        self.fleet.silence(phase.has(Phase::Silent).then_some(TENANT));
        self.signals.slow(phase.has(Phase::Override));
        let count = |is_on: bool| if is_on { self.options.forged } else { 0 };
        self.signals.forge(count(phase.has(Phase::Forged)), count(phase.has(Phase::Unlimited)));
        let Options { body_bytes, bodies, idle, .. } = *self.options;
        let bodies = phase
            .has(Phase::Bodies)
            .then(|| self.runtime.block_on(async { Bodies::start(client.clone(), TENANT, body_bytes, bodies) }));
        let idle = phase.has(Phase::Idle).then(|| Idle::start(sidecar.agent(), idle));

        let (kills, ends, failures) = (operator.kills(), operator.ends(), sidecar.failures());
        sleep(Duration::from_secs(self.options.onset_seconds));
        // what took effect at once counts: memory, kills and clients from the beginning, times from here on
        let _ = (asking.seen(), sidecar.answers());
        let (from, since) = (node::unix(), Instant::now());
        sleep(Duration::from_secs(self.options.seconds));
        operator.check()?;
        let until = node::unix();
        let Admissions { milliseconds: admissions, failed } = asking.seen();
        let Answers { milliseconds: answers, none } = sidecar.answers();
        let proven = self.fleet.proven(since).into_iter().filter(|proven| proven.namespace == OTHERS);
        let proven: Vec<f64> = proven.map(|proven| proven.took.as_secs_f64() * 1e3).collect();
        let mut add = |what: &str, value: f64, count: u64| {
            samples.add(&format!("{},{},{what},{value},{count}", self.build.label, phase.label()));
        };
        add("seconds", until - from, 1);
        for (what, milliseconds) in [
            ("decision_ms", operator.decisions(OTHERS, (from, until))?),
            ("proven_ms", proven),
            ("admission_ms", admissions),
            ("agent_ms", answers),
        ] {
            for (value, count) in rounded(&milliseconds) {
                add(what, value, count);
            }
        }
        for (what, count) in [
            ("admissions_failed", failed),
            ("agent_silent", none),
            ("operator_killed", operator.kills() - kills),
            ("operator_ended", operator.ends() - ends),
            ("sidecar_killed", u64::from(sidecar.is_killed())),
            ("client_failures", sidecar.failures() - failures),
            ("idle_standing", idle.as_ref().map_or(0, Idle::standing)),
            ("operator_kib", operator.most_kibibytes()),
            ("sidecar_kib", sidecar.most_kibibytes()),
        ] {
            add(what, 0.0, count);
        }
        drop((bodies, idle));
        self.fleet.silence(None);
        self.signals.slow(false);
        self.signals.forge(0, 0);
        // what was under way ends, and what was held up goes on
        sleep(Duration::from_secs(self.options.onset_seconds));
        Ok(())
    }
}

/// How often each value was met, rounded up to two digits.
fn rounded(milliseconds: &[f64]) -> Vec<(f64, u64)> {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for value in milliseconds {
        let microseconds = u64::try_from(Duration::from_secs_f64(value.max(0.0) / 1e3).as_micros()).unwrap_or(u64::MAX);
        let unit = 10_u64.pow(microseconds.max(1).ilog10().saturating_sub(1));
        *counts.entry(microseconds.div_ceil(unit).saturating_mul(unit)).or_default() += 1;
    }
    counts.into_iter().map(|(microseconds, count)| (microseconds as f64 / 1e3, count)).collect()
}
