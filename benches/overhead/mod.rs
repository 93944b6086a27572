//! CPU seconds of the sidecar's cgroup per million queries: PgBouncer alone against the agent with its PgBouncer.
//!
//! Pairs of runs, in the order A B B A, each with fresh processes in a cgroup of their own; PostgreSQL and pgbench stay
//! outside. A run is a number of queries, not a time. PgBouncer alone gets the configuration that the agent rendered: it
//! differs in addresses and paths, and in that its pool size is the pod's whole share, which no agent changes.

mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use serde_json::json;

use crate::{
    Failure, machine,
    pod::{self, Postgres, SHARE, pgbench},
    process::{Cgroup, Process, free_port, lab_program, product_program},
    results::{self, Results, Samples},
    statistics,
};

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
    let mut setting = machine::describe_with_pgbouncer()?;
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
    postgres: Postgres,
    /// Port of the poolers: the same for both.
    port: u16,
    agent_port: u16,
    pgbouncer: PathBuf,
    agent: PathBuf,
    hierarchy: &'static str,
    differs: Vec<String>,
}

impl Bench {
    fn start(options: &Options, scratch: &Path) -> Result<Self, Failure> {
        let mut bench = Self {
            options: options.clone(),
            scratch: scratch.to_owned(),
            postgres: Postgres::start(scratch)?,
            port: free_port()?,
            agent_port: free_port()?,
            pgbouncer: lab_program("pgbouncer")?,
            agent: product_program("sluice-agent")?,
            hierarchy: "",
            differs: Vec::new(),
        };
        pod::write_configuration(&scratch.join("config"), &options.limit_source)?;
        bench.take_over_configuration()?;
        Ok(bench)
    }

    /// Lets the agent render once and makes the configuration of PgBouncer alone from it.
    fn take_over_configuration(&mut self) -> Result<(), Failure> {
        let bare = self.scratch.join("bare");
        fs::create_dir_all(&bare)?;
        let injected = self.start_injected("render")?;
        self.hierarchy = injected.cgroup.hierarchy();
        let run = self.scratch.join("run-render");
        fs::copy(run.join("a/users.txt"), bare.join("users.txt"))?;
        let rendered = fs::read_to_string(run.join("a/pgbouncer.ini"))?;
        drop(injected);
        let mut taken = String::new();
        for line in rendered.lines() {
            let name = line.split_once(" = ").map_or("", |(name, _)| name);
            let own = match name {
                // the agent's PgBouncer inherits its sockets
                "listen_addr" => Some("127.0.0.1".to_owned()),
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
        // the agent refuses nothing that a pod would give it: not root, a volume of its own
        let mut command = cgroup.command(&lab_program("unroot")?);
        self.volumes(name, |sidecar| sidecar.complete(&mut command))?;
        let process = Process::start(&mut command, &self.scratch.join(format!("{name}.log")))?;
        self.ready(Sidecar { process, cgroup, variant: Variant::Injected })
    }

    /// The agent's side of a run.
    fn volumes<T>(&self, name: &str, then: impl FnOnce(pod::Sidecar<'_>) -> T) -> T {
        let [run, state] = ["run", "state"].map(|kind| self.scratch.join(format!("{kind}-{name}")));
        then(pod::Sidecar {
            config: &self.scratch.join("config"),
            run: &run,
            state: &state,
            postgres_port: self.postgres.port,
            port: self.port,
            agent_port: self.agent_port,
            pgbouncer: &self.pgbouncer,
            agent: &self.agent,
            tls: pod::Tls::Neither,
        })
    }

    fn ready(&self, sidecar: Sidecar) -> Result<Sidecar, Failure> {
        pod::until_it_answers(self.port).map(|()| sidecar)
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
        let status = self.volumes("injected", |sidecar| sidecar.status())?;
        Ok(status.limits.ok_or("the agent has read no limits back")?.pool_size)
    }
}

/// What runs beside the application, in its cgroup.
struct Sidecar {
    // in this order: a cgroup goes when the last process has left it
    process: Process,
    cgroup: Cgroup,
    variant: Variant,
}
