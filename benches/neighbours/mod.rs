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
//! - `idle`: connections that stand at the sidecar's agent and say nothing;
//! - `together`: all of them but `unlimited`.
//!
//! Before the first, between them and after the last is a stretch of calm, and each is compared with the calm directly before and after
//! it: a machine drifts. Measured: how late the others' decisions are, from the start of the tick; how late the shares taken back from
//! the others' pods are written down as proven; how long the API server waits for a verdict on a pod; memory, within the limits that ship:
//! whoever takes more is killed, as in a cluster; what the sidecar's clients lose, and whether its agent answers the operator; and how
//! many cores the operator, Prometheus, the bench itself and all else use, for on few cores these are what disturbs most.
//!
//! All decisions of one tick are made of one reading, so a tick is one sample. That there are enough of them, it ticks more often here
//! than by default (which loads the machine more); the load moves slowly, and in one of five of the others' pools, so that the writes that
//! follow are not themselves as many as the operator allows itself; pods are scraped in parts, at times that do not fit the ticks.
//!
//! The build before is measured first, on the same objects, and in less time: nothing is demanded of it. With the options as they are
//! all takes about 55 minutes ([`Options::minutes`] says it beforehand).

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
use clap::{Args, ValueEnum};
use operator::{Operator, Program};
use serde_json::{Value, json};
use sidecar::{Answers, Idle, Sidecar};
use signals::Signals;
use sluice::{contract::names, signals::ServerConfiguration};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    Failure,
    cluster::{create_namespace, define, kubectl},
    fleet::{self, Fleet, Part, Tenant, Waves, WavesOf, pool_name},
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
/// Targets of Prometheus that the pods are scraped as.
const PARTS: u32 = 10;
/// One of the others' pools of so many has a load that moves.
const ONE_MOVES_OF: usize = 5;
/// What creating all objects, the first grants and starting everything take at 1,000 x 10, in seconds: at most 50 pods a second are
/// written, by either build.
const BEGINNING_SECONDS: u64 = 300;
/// Writes on pods, a second, that are the usual business of moving loads: half of what the operator allows itself.
const USUAL_WRITES: usize = 25;

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
    /// What is done to the others; by default all.
    #[arg(long, value_enum, value_delimiter = ',')]
    phases: Vec<Phase>,
    /// Seconds between two ticks.
    #[arg(long, default_value_t = 5)]
    tick_seconds: u64,
    /// Seconds between two scrapes: no multiple of the tick's.
    #[arg(long, default_value_t = 7)]
    scrape_seconds: u64,
    /// Seconds in which the load of a pod comes and goes.
    #[arg(long, default_value_t = 600)]
    wave_seconds: u64,
    /// Seconds that each phase is measured for.
    #[arg(long, default_value_t = 125)]
    seconds: u64,
    /// Seconds that each stretch of calm is measured for.
    #[arg(long, default_value_t = 75)]
    calm_seconds: u64,
    /// Seconds that each phase of the build before is measured for; its calm in proportion.
    #[arg(long, default_value_t = 40)]
    before_seconds: u64,
    /// Seconds before each stretch, for what has just begun to take effect, and what has ended to be over.
    #[arg(long, default_value_t = 15)]
    onset_seconds: u64,
    /// Seconds of quiet work before everything.
    #[arg(long, default_value_t = 60)]
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

impl Options {
    fn check(&self) -> Result<(), Failure> {
        if self.tick_seconds == 0 || self.scrape_seconds.is_multiple_of(self.tick_seconds) {
            let Self { scrape_seconds: scrape, tick_seconds: tick, .. } = self;
            return Err(format!(
                "--scrape-seconds {scrape} is a multiple of --tick-seconds {tick}: scrapes would always meet the ticks"
            )
            .into());
        }
        Ok(())
    }

    fn phases(&self) -> &[Phase] {
        if self.phases.is_empty() { Phase::value_variants() } else { &self.phases }
    }

    /// Seconds that a phase and a calm of this build are measured for.
    fn stretches(&self, build: &Build) -> (u64, u64) {
        if build.is_measured_shortly {
            (self.before_seconds, self.calm_seconds * self.before_seconds / self.seconds.max(1))
        } else {
            (self.seconds, self.calm_seconds)
        }
    }

    /// About how long all of it takes, in minutes.
    fn minutes(&self, builds: &[Build]) -> u64 {
        let phases = self.phases().len() as u64;
        let beginning = BEGINNING_SECONDS * (self.pools * self.pods) as u64 / 10_000;
        let of_build = |build: &Build| {
            let (phase, calm) = self.stretches(build);
            let onsets = self.onset_seconds * (2 * phases + 2);
            beginning + self.settle_seconds + onsets + phases * phase + (phases + 1) * calm
        };
        builds.iter().map(of_build).sum::<u64>().div_ceil(60)
    }
}

/// What is done to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    Silent,
    Override,
    Forged,
    Unlimited,
    Bodies,
    Idle,
    Together,
}

impl Phase {
    /// In samples.
    const fn label(self) -> &'static str {
        match self {
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
        self == part || self == Self::Together && part != Self::Unlimited
    }
}

/// A build that is measured.
struct Build {
    /// In samples.
    label: &'static str,
    programs: PathBuf,
    tree: PathBuf,
    sidecar_mebibytes: Option<u64>,
    /// Nothing is demanded of it.
    is_measured_shortly: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    options.check()?;
    let mut setting = machine::describe()?;
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut builds = Vec::new();
    if let (Some(programs), Some(tree)) = (&options.before, &options.before_tree) {
        let commit = output(Command::new("git").arg("-C").arg(tree).args(["rev-parse", "HEAD"]))?;
        setting.insert("commitBefore".into(), json!(commit.trim()));
        let (programs, tree) = (programs.clone(), tree.clone());
        let sidecar_mebibytes = Some(SIDECAR_BEFORE_MEBIBYTES);
        builds.push(Build { label: "before", programs, tree, sidecar_mebibytes, is_measured_shortly: true });
    }
    let programs = product_program("sluice")?.parent().ok_or("no directory of programs")?.to_owned();
    let tree = own.to_owned();
    builds.push(Build { label: "now", programs, tree, sidecar_mebibytes: None, is_measured_shortly: false });
    eprintln!("neighbours: about {} minutes", options.minutes(&builds));

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
    let tenant =
        |namespace, pools, spec: &Value, one_moves_of| Tenant { namespace, pools, spec: spec.clone(), one_moves_of };
    let mut tenants = vec![
        tenant(OTHERS, options.pools - theirs, &spec, ONE_MOVES_OF.min(options.pools.div_ceil(20))),
        tenant(TENANT, theirs - 1, &spec, 1),
    ];
    spec["scaling"]["metrics"] = json!({"overrides": [{"signal": "WaitingClients", "query": signals::OWN_SERIES}]});
    tenants.push(tenant(TENANT, 1, &spec, 1));
    let waves = Waves { of: WavesOf::Pods, period: Duration::from_secs(options.wave_seconds) };
    let fleet = runtime.block_on(Fleet::start(tenants, options.pods, waves))?;
    let mut tasks = JoinSet::new();
    let signals = runtime.block_on(async { Signals::start(PROMETHEUS, &mut tasks).await })?;
    let ground = Ground::start(scratch.path())?;
    let mut samples = Samples::of("build,segment,phase,block,what,value,count");
    for build in &builds {
        define(&build.tree)?;
        let bench = Bench { options, runtime: &runtime, fleet: &fleet, signals: &signals, ground: &ground, build };
        bench.measure(&scratch.path().join(build.label), &mut samples)?;
    }
    for (name, value) in [
        ("tickSeconds", json!(options.tick_seconds)),
        ("scrapeSeconds", json!(options.scrape_seconds)),
        ("waveSeconds", json!(options.wave_seconds)),
        ("pools", json!(options.pools)),
        ("podsOfEach", json!(options.pods)),
        ("silentPods", json!(theirs * options.pods)),
        ("forgedSeries", json!(options.forged)),
        ("largeBodies", json!(format!("{} bytes, {} a second", options.body_bytes, options.bodies))),
        ("idleConnections", json!(options.idle)),
        ("secondsOfEach", json!(options.seconds)),
        ("secondsOfCalm", json!(options.calm_seconds)),
        ("secondsOfEachBefore", json!(options.before_seconds)),
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
    prometheus: Process,
    operator: Operator,
    sidecar: Sidecar,
    asking: Asking,
    client: reqwest::Client,
}

impl Bench<'_> {
    fn measure(&self, scratch: &Path, samples: &mut Samples) -> Result<(), Failure> {
        fs::create_dir_all(scratch)?;
        let prometheus = self.prometheus(scratch)?;
        let servers = write(scratch, "servers.yaml", &json!({"servers": {"default": self.server()}}))?;
        let operator = Operator::start(Program {
            binary: self.build.programs.join("sluice"),
            servers: servers.into(),
            logs: scratch.join("operator"),
            limit_kibibytes: operator_limit(&self.build.tree)?,
            tick_seconds: self.options.tick_seconds,
        })?;
        operator.leads(Duration::from_mins(1))?;
        self.wait_for_shares(&operator)?;
        operator.decides(Duration::from_secs(self.options.grant_seconds))?;
        self.wait_for_usual_writes(&operator)?;
        sleep(Duration::from_secs(self.options.settle_seconds));
        let limit = self.sidecar_limit()?;
        let agent = self.build.programs.join("sluice-agent");
        let sidecar = Sidecar::start(self.ground, &scratch.join("sidecar"), agent, limit)?;
        let client = admission::client()?;
        let asking = self.runtime.block_on(async { Asking::start(client.clone(), OTHERS) });
        let measured = Measured { prometheus, operator, sidecar, asking, client };
        let phases = self.options.phases().iter().flat_map(|phase| [Some(*phase), None]);
        let mut stretches = Vec::new();
        for (number, phase) in std::iter::once(None).chain(phases).enumerate() {
            stretches.push(self.stretch(number, phase, &measured, samples)?);
        }
        // what is late in the last one
        sleep(Duration::from_secs(self.options.onset_seconds));
        for stretch in &stretches {
            self.add_late(stretch, &measured.operator, samples)?;
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
        let parts = (0..PARTS).map(|number| {
            let path = Part { number, parts: PARTS }.path();
            // each with a label of its own: what Prometheus says of them is by their labels
            let target = json!([{"targets": [fleet::METRICS_ADDRESS], "labels": {"instance": format!("part-{number}")}}]);
            json!({"job_name": format!("fleet-{number}"), "metrics_path": path, "honor_labels": true, "static_configs": target})
        });
        let forger = [
            job("forger", "/metrics", scrape_limits(&self.build.tree)?),
            job("unlimited", "/unlimited", serde_json::Map::new()),
        ];
        let every = self.options.scrape_seconds;
        let configuration = json!({
            "global": {"scrape_interval": format!("{every}s"), "scrape_timeout": format!("{every}s")},
            "scrape_configs": parts.chain(forger).collect::<Vec<_>>(),
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
        let all = before + PARTS as usize;
        wait_for("the first scrapes", Duration::from_mins(2), || (self.fleet.scrapes() >= all).then_some(()))?;
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

    /// Waits until no more pods are written than those whose load moves: another build may write each of them anew.
    fn wait_for_usual_writes(&self, operator: &Operator) -> Result<(), Failure> {
        const LOOK_SECONDS: usize = 3;
        let deadline = Instant::now() + Duration::from_secs(self.options.grant_seconds);
        loop {
            let before = self.fleet.changes();
            sleep(Duration::from_secs(LOOK_SECONDS as u64));
            operator.check()?;
            if self.fleet.changes() - before < USUAL_WRITES * LOOK_SECONDS {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("pods are still written as fast as they may be".into());
            }
        }
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

    /// What is done to the others for a while, and what comes of it at once; none: nothing.
    fn stretch(
        &self,
        number: usize,
        phase: Option<Phase>,
        measured: &Measured,
        samples: &mut Samples,
    ) -> Result<Stretch, Failure> {
        let Measured { operator, sidecar, asking, client, .. } = measured;
        let has = |part: Phase| phase.is_some_and(|phase| phase.has(part));
        self.fleet.silence(has(Phase::Silent).then_some(TENANT));
        self.signals.slow(has(Phase::Override));
        let count = |is_on: bool| if is_on { self.options.forged } else { 0 };
        self.signals.forge(count(has(Phase::Forged)), count(has(Phase::Unlimited)));
        let Options { body_bytes, bodies, idle, .. } = *self.options;
        let bodies = has(Phase::Bodies)
            .then(|| self.runtime.block_on(async { Bodies::start(client.clone(), TENANT, body_bytes, bodies) }));
        let idle = has(Phase::Idle).then(|| Idle::start(sidecar.agent(), idle));

        let (kills, ends, failures) = (operator.kills(), operator.ends(), sidecar.failures());
        sleep(Duration::from_secs(self.options.onset_seconds));
        // what took effect at once counts: memory, kills and clients from the beginning, times from here on
        let _ = (asking.seen(), sidecar.answers());
        let (phase_seconds, calm_seconds) = self.options.stretches(self.build);
        let seconds = if phase.is_some() { phase_seconds } else { calm_seconds };
        let (from, since, used) = (node::unix(), Instant::now(), measured.cpu_seconds()?);
        sleep(Duration::from_secs(seconds));
        operator.check()?;
        let (until, took, used_then) = (node::unix(), since.elapsed(), measured.cpu_seconds()?);
        let stretch = Stretch { number, phase, from, until, since, took };
        let Admissions { milliseconds: admissions, failed } = asking.seen();
        let Answers { milliseconds: answers, none } = sidecar.answers();
        let mut add = |what, value, count| self.add(&stretch, 0, (what, value, count), samples);
        add("seconds", until - from, 1);
        for ((who, used), then) in used.into_iter().zip(used_then) {
            // another process of the operator begins with none
            add(who, (then.1 - used).max(0.0) / took.as_secs_f64(), 1);
        }
        for (what, count) in [
            ("ticks_due", seconds / self.options.tick_seconds),
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
        for (value, count) in rounded(&answers) {
            add("agent_ms", value, count);
        }
        let admissions =
            admissions.into_iter().map(|(begin, milliseconds)| (stretch.block(begin, self.options), milliseconds));
        self.add_blocks(&stretch, "admission_ms", admissions, samples);
        drop((bodies, idle));
        self.fleet.silence(None);
        self.signals.slow(false);
        self.signals.forge(0, 0);
        Ok(stretch)
    }

    /// What began in a stretch of time, and may have ended after it.
    fn add_late(&self, stretch: &Stretch, operator: &Operator, samples: &mut Samples) -> Result<(), Failure> {
        for tick in operator.ticks(OTHERS)? {
            if (stretch.from..stretch.until).contains(&tick.started) {
                let into = Duration::try_from_secs_f64(tick.started - stretch.from)?;
                let block = stretch.block(stretch.since + into, self.options);
                let decisions = tick.decisions as u64;
                self.add(stretch, block, ("decision_median_ms", tick.median_milliseconds, decisions), samples);
                self.add(stretch, block, ("decision_last_ms", tick.last_milliseconds, decisions), samples);
            }
        }
        let proofs = self.fleet.proofs(stretch.since).into_iter();
        let proofs = proofs.filter(|proof| proof.namespace == OTHERS && proof.since - stretch.since < stretch.took);
        let proofs = proofs.map(|proof| {
            let milliseconds = proof.took.map_or(f64::INFINITY, |took| took.as_secs_f64() * 1e3);
            (stretch.block(proof.since, self.options), milliseconds)
        });
        self.add_blocks(stretch, "proven_ms", proofs, samples);
        Ok(())
    }

    fn add_blocks(
        &self,
        stretch: &Stretch,
        what: &str,
        timed: impl Iterator<Item = (u64, f64)>,
        samples: &mut Samples,
    ) {
        let mut blocks: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (block, milliseconds) in timed {
            blocks.entry(block).or_default().push(milliseconds);
        }
        for (block, milliseconds) in blocks {
            for (value, count) in rounded(&milliseconds) {
                self.add(stretch, block, (what, value, count), samples);
            }
        }
    }

    fn add(&self, stretch: &Stretch, block: u64, (what, value, count): (&str, f64, u64), samples: &mut Samples) {
        let phase = stretch.phase.map_or("calm", Phase::label);
        samples.add(&format!("{},{},{phase},{block},{what},{value},{count}", self.build.label, stretch.number));
    }
}

/// A stretch of time, calm or not.
struct Stretch {
    number: usize,
    phase: Option<Phase>,
    /// Unix seconds.
    from: f64,
    until: f64,
    since: Instant,
    took: Duration,
}

impl Stretch {
    /// The part of it, as long as a tick, that something began in.
    fn block(&self, began: Instant, options: &Options) -> u64 {
        began.saturating_duration_since(self.since).as_secs() / options.tick_seconds
    }
}

impl Measured {
    /// CPU seconds used so far, by what samples call the cores of it.
    fn cpu_seconds(&self) -> Result<[(&'static str, f64); 4], Failure> {
        Ok([
            ("cores_operator", self.operator.cpu_seconds()),
            ("cores_prometheus", self.prometheus.cpu_seconds()?),
            ("cores_bench", Process::cpu_seconds_of(std::process::id())?),
            ("cores_all", machine::cpu_seconds()?),
        ])
    }
}

/// How often each value was met, rounded up to three digits.
fn rounded(milliseconds: &[f64]) -> Vec<(f64, u64)> {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for value in milliseconds {
        let seconds = Duration::try_from_secs_f64(value.max(0.0) / 1e3);
        // what did not end took longer than all that did
        let microseconds = seconds.map_or(u64::MAX, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        let unit = 10_u64.pow(microseconds.max(1).ilog10().saturating_sub(2));
        *counts.entry(microseconds.div_ceil(unit).saturating_mul(unit)).or_default() += 1;
    }
    let milliseconds = |microseconds| if microseconds == u64::MAX { f64::INFINITY } else { microseconds as f64 / 1e3 };
    counts.into_iter().map(|(microseconds, count)| (milliseconds(microseconds), count)).collect()
}
