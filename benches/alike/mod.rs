//! How often pods that are all alike are told apart by the analysis of rollouts, and how much their seconds hang together.
//!
//! Real agents, each with its PgBouncer, before one PostgreSQL; each has clients of its own whose transactions take 2 ms and an exponential
//! part of 8 ms on average. Beside them others work the same database, for 20 s of every minute: that moves all pods at once. Once a second
//! the series `sluice_revision_*` of every agent are read, as Prometheus would.
//!
//! Nothing is changed in the run. What is reported follows from the samples: each pod is judged in turn as if it had taken another
//! revision at some second, by the operator's own code; then again with its transactions made twice as long from that second on.

mod report;

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use sluice::{contract::SlotStatus, decide::analysis::RevisionFigure};

use crate::{
    Failure, machine,
    pod::{self, Postgres, pgbench_command},
    process::{Process, free_port, lab_program, product_program, wait_for},
    results::{self, Results, Samples},
};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// What a client asks: some time of the database each, most short and few long.
const TRANSACTION: &str = "\\set us random_exponential(0, 80000, 10)\nselect pg_sleep(0.002 + :us / 1000000.0);\n";
/// What the others ask, which takes the database's CPU.
const NEIGHBOUR: &str = "select count(*) from generate_series(1, 20000);\n";
/// The others begin so often, and work for so long, in seconds.
const NEIGHBOUR_EVERY: u64 = 60;
const NEIGHBOUR_FOR: u64 = 20;

/// Options of `alike`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Pods.
    #[arg(long, default_value_t = 4)]
    pods: u16,
    /// Clients of each pod.
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Transactions per second of each pod.
    #[arg(long, default_value_t = 60)]
    rate: u32,
    /// Seconds of samples.
    #[arg(long, default_value_t = 900)]
    seconds: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let postgres = Postgres::start(scratch.path())?;
    let (transaction, neighbour) = (scratch.path().join("transaction.sql"), scratch.path().join("neighbour.sql"));
    std::fs::write(&transaction, TRANSACTION)?;
    std::fs::write(&neighbour, NEIGHBOUR)?;
    let mut pods = Vec::new();
    for number in 0..options.pods {
        pods.push(AlikePod::start(scratch.path(), number, postgres.port)?);
    }
    for pod in &pods {
        pod.serves()?;
    }
    let seconds = (options.seconds + 30).to_string();
    let (clients, rate) = (options.clients.to_string(), options.rate.to_string());
    let words = ["-n", "-c", &clients, "-R", &rate, "-T", &seconds, "-f"];
    let mut load = Vec::new();
    for pod in &pods {
        let mut command = pgbench_command(pod.port, &[&words[..], &[path(&transaction)?]].concat())?;
        load.push(Process::start(&mut command, &pod.directory.join("pgbench.log"))?);
    }
    let names: Vec<String> = RevisionFigure::ALL.iter().map(|figure| report::column(*figure)).collect();
    let mut samples = Samples::of(&format!("at_seconds,pod,{}", names.join(",")));
    let begin = Instant::now();
    let mut others = None;
    for second in 0..options.seconds {
        let due = Duration::from_secs(second.into());
        sleep(due.saturating_sub(begin.elapsed()));
        match u64::from(second) % NEIGHBOUR_EVERY {
            0 => {
                let words = ["-n", "-c", "2", "-R", "40", "-T", &NEIGHBOUR_FOR.to_string(), "-f", path(&neighbour)?];
                let log = scratch.path().join("neighbour.log");
                others = Some(Process::start(&mut pgbench_command(postgres.port, &words)?, &log)?);
            }
            NEIGHBOUR_FOR => drop(others.take()),
            _ => {}
        }
        for (number, pod) in pods.iter().enumerate() {
            let at = begin.elapsed().as_secs_f64();
            // an agent that does not answer is a scrape that is missing
            if let Some(figures) = pod.scrape()? {
                samples.add(&format!("{at:.3},{number},{}", figures.join(",")));
            }
        }
    }
    drop((load, others));
    setting.insert(
        "load".into(),
        json!(format!("each pod: pgbench, {} clients, {} transactions per second", options.clients, options.rate)),
    );
    setting.insert("pods".into(), json!(options.pods));
    Ok(Results {
        name: "alike",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

fn path(file: &Path) -> Result<&str, Failure> {
    Ok(file.to_str().ok_or("a path that is no text")?)
}

/// An agent with its PgBouncer.
struct AlikePod {
    directory: PathBuf,
    port: u16,
    agent_port: u16,
    _agent: Process,
}

impl AlikePod {
    fn start(scratch: &Path, number: u16, postgres_port: u16) -> Result<Self, Failure> {
        let directory = scratch.join(format!("pod-{number}"));
        let config = directory.join("config");
        pod::write_configuration(&config, "Share")?;
        let (port, agent_port) = (free_port()?, free_port()?);
        let mut command = Command::new(lab_program("unroot")?);
        pod::Sidecar {
            config: &config,
            run: &directory.join("run"),
            state: &directory.join("state"),
            postgres_port,
            port,
            agent_port,
            pgbouncer: &lab_program("pgbouncer")?,
            agent: &product_program("sluice-agent")?,
            tls: pod::Tls::Neither,
        }
        .complete(&mut command)?;
        let agent = Process::start(&mut command, &directory.join("agent.log"))?;
        Ok(Self { directory, port, agent_port, _agent: agent })
    }

    fn serves(&self) -> Result<(), Failure> {
        wait_for("the pooler serves", READY_WITHIN, || {
            let status: sluice::contract::StatusReport =
                serde_json::from_str(&pod::page(("127.0.0.1", self.agent_port), "/status").ok()?).ok()?;
            (status.slot == SlotStatus::Serving).then_some(())
        })?;
        pod::until_it_answers(self.port)
    }

    /// The figures of the revision, in their order; None where the agent does not answer.
    fn scrape(&self) -> Result<Option<Vec<String>>, Failure> {
        let Ok(page) = pod::page(("127.0.0.1", self.agent_port), "/metrics") else { return Ok(None) };
        let figure = |figure: &RevisionFigure| {
            let name = report::metric(*figure);
            let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
            let value = line.and_then(|line| line.rsplit(' ').next());
            value.map(str::to_owned).ok_or_else(|| format!("the agent exports no {name}").into())
        };
        RevisionFigure::ALL.iter().map(figure).collect::<Result<Vec<_>, Failure>>().map(Some)
    }
}
