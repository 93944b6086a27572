//! CPU seconds of the sidecar's cgroup per million queries: PgBouncer alone against the agent with its PgBouncer.
//!
//! Pairs of runs, in the order A B B A, each with fresh processes in a cgroup of their own; PostgreSQL and pgbench stay
//! outside. A run is a number of queries, not a time. PgBouncer alone gets the configuration that the agent rendered: it
//! differs in addresses and paths, and in that its pool size is the pod's whole share, which no agent changes.

mod report;

use std::{
    fs,
    io::{Read, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use crate::{
    Failure, machine,
    process::{Cgroup, Process, free_port, lab_program, output, product_program, wait_for},
    results::{self, Results, Samples},
    statistics,
};

const DATABASE: &str = "postgres";
const USER: &str = "postgres";
const PASSWORD: &str = "overhead";
const SHARE: u32 = 20;
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Options of `overhead`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Pairs of runs.
    #[arg(long, default_value_t = 24)]
    pairs: u32,
    /// Queries of each client in a run.
    #[arg(long, default_value_t = 25_000)]
    queries: u32,
    /// Clients of pgbench.
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Where the pod's limit comes from: LocalReaction (the agent decides each second) or Share.
    #[arg(long, default_value = "LocalReaction")]
    limit_source: String,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    let scratch = tempfile::tempdir()?;
    let bench = Bench::start(options, scratch.path())?;
    let mut samples = Samples::of("pair,position,variant,queries,wall_seconds,cpu_seconds,agent_cpu_seconds,limit");
    for pair in 0..options.pairs {
        let order = if pair % 2 == 0 { [Variant::Bare, Variant::Injected] } else { [Variant::Injected, Variant::Bare] };
        for (position, variant) in order.into_iter().enumerate() {
            samples.add(&format!("{pair},{position},{}", bench.measure(variant)?));
        }
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "pgbench -S, {} clients, {} queries each, after {} each to warm up",
            options.clients,
            options.queries,
            options.queries / 5
        )),
    );
    setting.insert("limitSource".into(), json!(options.limit_source));
    setting.insert("counted".into(), json!(bench.hierarchy));
    setting
        .insert("pgbouncer".into(), json!(output(Command::new(lab_program("pgbouncer")?).arg("-V"))?.lines().next()));
    setting.insert("configurationsDifferIn".into(), json!(bench.differs));
    Ok(Results {
        name: "overhead",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

#[derive(Clone, Copy)]
enum Variant {
    Bare,
    Injected,
}

struct Bench {
    options: Options,
    scratch: PathBuf,
    _postgres: Process,
    postgres_port: u16,
    /// Port of the poolers: the same for both.
    port: u16,
    agent_port: u16,
    hierarchy: &'static str,
    differs: Vec<String>,
}

impl Bench {
    fn start(options: &Options, scratch: &Path) -> Result<Self, Failure> {
        let data = scratch.join("postgres");
        output(Command::new(lab_program("initdb")?).arg("-D").arg(&data).args([
            "-U",
            USER,
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]))?;
        let postgres_port = free_port()?;
        let postgres = Process::start(
            Command::new(lab_program("postgres")?)
                .arg("-D")
                .arg(&data)
                .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"])
                .arg("-c")
                .arg(format!("port={postgres_port}")),
            &scratch.join("postgres.log"),
        )?;
        let mut bench = Self {
            options: options.clone(),
            scratch: scratch.to_owned(),
            _postgres: postgres,
            postgres_port,
            port: free_port()?,
            agent_port: free_port()?,
            hierarchy: "",
            differs: Vec::new(),
        };
        wait_for("PostgreSQL", READY_WITHIN, || pgbench(postgres_port, &["-i", "-s", "1", "-q"]).ok())?;
        bench.write_configuration()?;
        bench.take_over_configuration()?;
        Ok(bench)
    }

    fn config_dir(&self) -> PathBuf {
        self.scratch.join("config")
    }

    /// What the kubelet would project.
    fn write_configuration(&self) -> Result<(), Failure> {
        let directory = self.config_dir();
        fs::create_dir_all(directory.join("credentials"))?;
        let rules = |tolerance: f64| json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [], "tolerance": tolerance});
        let settings = json!({
            "poolMode": "Transaction",
            "health": {"validationQuery": "select 1", "periodSeconds": 10, "queryWaitTimeoutSeconds": 30, "leakThresholdSeconds": 300},
            "scaling": {
                "algorithm": "Adaptive", "limitSource": self.options.limit_source, "targetUtilizationPercent": 70,
                "objective": {"waitMilliseconds": 20, "maxWaitingPercent": 1.0},
                "behavior": {"scaleUp": rules(0.0), "scaleDown": rules(0.05)},
            },
        });
        let grant = json!({"seq": 1, "share": SHARE, "granted": SHARE, "floor": 1});
        fs::write(
            directory.join("revision"),
            json!({"v": 1, "pools": {"shop": {"revision": 1, "settings": settings}}}).to_string(),
        )?;
        fs::write(directory.join("grant"), json!({"v": 1, "epoch": 1, "pools": {"shop": grant}}).to_string())?;
        fs::write(directory.join("credentials/username"), USER)?;
        fs::write(directory.join("credentials/password"), PASSWORD)?;
        Ok(())
    }

    /// Lets the agent render once and makes the configuration of PgBouncer alone from it.
    fn take_over_configuration(&mut self) -> Result<(), Failure> {
        let bare = self.scratch.join("bare");
        fs::create_dir_all(&bare)?;
        let injected = self.start_injected("render")?;
        self.hierarchy = injected.cgroup.hierarchy();
        let run = self.scratch.join("run-render");
        fs::copy(run.join("users.txt"), bare.join("users.txt"))?;
        let rendered = fs::read_to_string(run.join("pgbouncer.ini"))?;
        drop(injected);
        let mut taken = String::new();
        for line in rendered.lines() {
            let name = line.split_once(" = ").map_or("", |(name, _)| name);
            let own = match name {
                "unix_socket_dir" => Some(bare.display().to_string()),
                "auth_file" => Some(bare.join("users.txt").display().to_string()),
                "default_pool_size" => Some(SHARE.to_string()),
                _ => None,
            };
            let own = own.map_or_else(|| line.to_owned(), |value| format!("{name} = {value}"));
            if own != line {
                self.differs.push(name.to_owned());
            }
            taken.push_str(&own);
            taken.push('\n');
        }
        fs::write(bare.join("pgbouncer.ini"), taken)?;
        Ok(())
    }

    fn start_bare(&self) -> Result<Sidecar, Failure> {
        let cgroup = Cgroup::new("bare")?;
        let mut command = cgroup.command(&lab_program("pgbouncer")?);
        command.arg(self.scratch.join("bare/pgbouncer.ini"));
        let process = Process::start(&mut command, &self.scratch.join("bare.log"))?;
        self.ready(Sidecar { process, cgroup, variant: Variant::Bare })
    }

    fn start_injected(&self, name: &str) -> Result<Sidecar, Failure> {
        let cgroup = Cgroup::new(name)?;
        let [run, state] = ["run", "state"].map(|kind| self.scratch.join(format!("{kind}-{name}")));
        for directory in [&run, &state] {
            if directory.exists() {
                fs::remove_dir_all(directory)?;
            }
            fs::create_dir_all(directory)?;
        }
        let injection = json!({
            "v": 1, "pool": "shop", "namespace": "shop",
            "upstream": {"host": "127.0.0.1", "port": self.postgres_port, "database": DATABASE, "tls": {"mode": "Disabled", "ownCa": false}},
            "client": {"port": self.port, "maxConnections": 1000},
        });
        // the agent refuses nothing that a pod would give it: not root, a volume of its own
        let mut command = cgroup.command(&lab_program("unroot")?);
        command
            .arg(product_program("sluice-agent")?)
            .arg("run")
            .arg("--config-dir")
            .arg(self.config_dir())
            .arg("--run-dir")
            .arg(run)
            .arg("--state-dir")
            .arg(state)
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.agent_port))
            .arg("--pgbouncer")
            .arg(lab_program("pgbouncer")?)
            .args(["--grace-seconds", "1"])
            .env("SLUICE_INJECTION", injection.to_string())
            .env("SLUICE_POD_UID", "overhead");
        let process = Process::start(&mut command, &self.scratch.join(format!("{name}.log")))?;
        self.ready(Sidecar { process, cgroup, variant: Variant::Injected })
    }

    fn ready(&self, sidecar: Sidecar) -> Result<Sidecar, Failure> {
        let answers = || pgbench(self.port, &["-S", "-n", "-t", "1"]).ok();
        match wait_for("the pooler answers", READY_WITHIN, answers) {
            Ok(_) => Ok(sidecar),
            Err(error) => {
                let last = pgbench(self.port, &["-S", "-n", "-t", "1"])
                    .err()
                    .map_or_else(String::new, |error| error.to_string());
                Err(format!("{error}: {last}").into())
            }
        }
    }

    fn queries(&self, each: u32) -> Result<(), Failure> {
        let [clients, each] = [self.options.clients, each].map(|number| number.to_string());
        let told = pgbench(self.port, &["-S", "-n", "-c", &clients, "-t", &each])?;
        let failed = told.lines().find_map(|line| line.strip_prefix("number of failed transactions: "));
        match failed {
            Some(failed) if failed.starts_with("0 ") => Ok(()),
            _ => Err(format!("pgbench: not every query succeeded:\n{told}").into()),
        }
    }

    /// One run: the line of a sample without pair and position.
    fn measure(&self, variant: Variant) -> Result<String, Failure> {
        let sidecar = match variant {
            Variant::Bare => self.start_bare()?,
            Variant::Injected => self.start_injected("injected")?,
        };
        self.queries(self.options.queries / 5)?;
        let (cpu, own, begin) = (sidecar.cgroup.cpu_seconds()?, sidecar.process.cpu_seconds()?, Instant::now());
        self.queries(self.options.queries)?;
        let wall = begin.elapsed().as_secs_f64();
        let (cpu, own) = (sidecar.cgroup.cpu_seconds()? - cpu, sidecar.process.cpu_seconds()? - own);
        let queries = u64::from(self.options.queries) * u64::from(self.options.clients);
        let (name, agent, limit) = match sidecar.variant {
            Variant::Bare => ("bare", 0.0, SHARE),
            Variant::Injected => ("injected", own, self.limit()?),
        };
        Ok(format!("{name},{queries},{wall:.3},{cpu:.4},{agent:.2},{limit}"))
    }

    /// The limit that the agent has read back from its PgBouncer.
    fn limit(&self) -> Result<u32, Failure> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.agent_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").ok_or("no answer on /status")?.1;
        let status: sluice::contract::StatusReport = serde_json::from_str(body)?;
        Ok(status.limits.ok_or("the agent has read no limits back")?.pool_size)
    }
}

fn pgbench(port: u16, words: &[&str]) -> Result<String, Failure> {
    output(
        Command::new(lab_program("pgbench")?)
            .args(["-h", "127.0.0.1", "-U", USER, "-p"])
            .arg(port.to_string())
            .args(words)
            .arg(DATABASE)
            .env("PGPASSWORD", PASSWORD),
    )
}

/// What runs beside the application, in its cgroup.
struct Sidecar {
    // in this order: a cgroup goes when the last process has left it
    process: Process,
    cgroup: Cgroup,
    variant: Variant,
}
