//! What the agent takes beside a busy pooler, and how soon clients get answers after a start and after a fault.
//!
//! The agent is the optimised binary of the image, not root, with the lab's PgBouncer and PostgreSQL. Three parts:
//!
//! - `load`: pgbench with many clients at a steady rate; once a second the agent's resident memory, that of
//!   agent and keeper together (shared pages once), and the CPU time of both, from `/proc`.
//! - `start`: from the start of the agent's process until a query through its pooler is answered.
//! - `killed`, `stopped`: from SIGKILL or SIGSTOP of PgBouncer until a query that came after it is answered. Each fault meets
//!   an agent of its own: one that has seen others lately waits before it starts PgBouncer again.
//!
//! Who asks is pgbench, started anew every 100 ms: that, and its start of about 10 ms, is the resolution.

mod report;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use rustix::process::Signal;
use serde_json::json;
use sluice::contract::SlotStatus;

use crate::{
    Failure, machine,
    pod::{self, Postgres, pgbench_command},
    process::{Process, free_port, lab_program, product_program, wait_for},
    results::{self, Results, Samples},
    statistics, subject,
};

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Questions without an answer at one time.
const MOST_QUESTIONS: usize = 30;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Options of `agent`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Clients of the steady load.
    #[arg(long, default_value_t = 500)]
    clients: u32,
    /// Queries per second of the steady load.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds of the steady load.
    #[arg(long, default_value_t = 120)]
    seconds: u32,
    /// Times that PgBouncer is killed, and times that it is stopped. Every one has a start of its own.
    #[arg(long, default_value_t = 20)]
    faults: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let bench = Bench::start(scratch.path())?;
    let mut samples = Samples::of("part,number,seconds,resident_kib,together_kib,cpu_seconds");
    bench.load(options, &mut samples)?;
    for number in 0..options.faults {
        for (part, signal) in [("killed", Signal::KILL), ("stopped", Signal::STOP)] {
            let begin = Instant::now();
            let agent = bench.agent()?;
            let started = bench.first_answer(begin)?;
            samples.add(&format!("start,{number},{:.3},,,", started.as_secs_f64()));
            let back = bench.fault(&agent, signal)?;
            samples.add(&format!("{part},{number},{:.3},,,", back.as_secs_f64()));
        }
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "pgbench -S, {} clients, {} queries per second, {} s",
            options.clients, options.rate, options.seconds
        )),
    );
    Ok(Results {
        name: "agent",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

struct Bench {
    scratch: PathBuf,
    postgres: Postgres,
    port: u16,
    agent_port: u16,
    pgbouncer: PathBuf,
    program: PathBuf,
}

impl Bench {
    fn start(scratch: &Path) -> Result<Self, Failure> {
        pod::write_configuration(&scratch.join("config"), "LocalReaction")?;
        Ok(Self {
            scratch: scratch.to_owned(),
            postgres: Postgres::start(scratch)?,
            port: free_port()?,
            agent_port: free_port()?,
            pgbouncer: lab_program("pgbouncer")?,
            program: product_program("sluice-agent")?,
        })
    }

    fn sidecar<T>(&self, then: impl FnOnce(pod::Sidecar<'_>) -> T) -> T {
        then(pod::Sidecar {
            config: &self.scratch.join("config"),
            run: &self.scratch.join("run"),
            state: &self.scratch.join("state"),
            postgres_port: self.postgres.port,
            port: self.port,
            agent_port: self.agent_port,
            pgbouncer: &self.pgbouncer,
            agent: &self.program,
            tls: pod::Tls::Neither,
        })
    }

    fn agent(&self) -> Result<Process, Failure> {
        let mut command = Command::new(lab_program("unroot")?);
        self.sidecar(|sidecar| sidecar.complete(&mut command))?;
        Process::start(&mut command, &self.scratch.join("agent.log"))
    }

    fn load(&self, options: &Options, samples: &mut Samples) -> Result<(), Failure> {
        let agent = self.agent()?;
        self.first_answer(Instant::now())?;
        let [clients, rate, seconds] =
            [options.clients, options.rate, options.seconds].map(|number| number.to_string());
        let words = ["-S", "-n", "-j", "2", "-c", &clients, "-R", &rate, "-T", &seconds];
        let log = self.scratch.join("pgbench.log");
        let _pgbench = Process::start(&mut pgbench_command(self.port, &words)?, &log)?;
        let clients = || self.metric("sluice_client_connections{", "state=\"active\"");
        wait_for("all clients are connected", ANSWER_WITHIN, || {
            clients().ok().filter(|clients| *clients >= f64::from(options.clients))
        })?;
        let begin = Instant::now();
        // until shortly before pgbench ends
        for number in 0..options.seconds.saturating_sub(10) {
            let at = begin.elapsed().as_secs_f64();
            let (resident, together) = agent.memory_kibibytes()?;
            samples.add(&format!("load,{number},{at:.3},{resident},{together},{:.2}", agent.cpu_seconds()?));
            sleep(Duration::from_secs(u64::from(number) + 1).saturating_sub(begin.elapsed()));
        }
        Ok(())
    }

    fn metric(&self, name: &str, label: &str) -> Result<f64, Failure> {
        let page = self.sidecar(|sidecar| sidecar.get("/metrics"))?;
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(label));
        let value = line.and_then(|line| line.rsplit_once(' ')).ok_or("the series is not there")?.1;
        Ok(value.parse()?)
    }

    /// From the signal until a query that came after it is answered.
    fn fault(&self, agent: &Process, signal: Signal) -> Result<Duration, Failure> {
        wait_for("the pooler serves with its limits read back", ANSWER_WITHIN, || {
            let status = self.sidecar(|sidecar| sidecar.status()).ok()?;
            (status.slot == SlotStatus::Serving && status.limits.is_some()).then_some(())
        })?;
        let (_, others) = agent.children()?;
        subject::signal(*others.first().ok_or("no pooler runs")?, signal)?;
        self.first_answer(Instant::now())
    }

    /// Asks again and again until a question is answered; the time since `begin`.
    fn first_answer(&self, begin: Instant) -> Result<Duration, Failure> {
        let mut asked = Questions(Vec::new());
        let mut next = Instant::now();
        while begin.elapsed() < ANSWER_WITHIN {
            if Instant::now() >= next && asked.0.len() < MOST_QUESTIONS {
                next = Instant::now() + ASK_EVERY;
                let mut question = pgbench_command(self.port, &["-S", "-n", "-t", "1"])?;
                asked.0.push(question.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
            }
            if asked.is_answered()? {
                return Ok(begin.elapsed());
            }
            sleep(Duration::from_millis(1));
        }
        Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs()).into())
    }
}

/// Questions under way; they end with this value.
struct Questions(Vec<Child>);

impl Questions {
    /// Whether one was answered. Those that failed are forgotten.
    fn is_answered(&mut self) -> Result<bool, Failure> {
        let mut still = Vec::new();
        let mut answered = false;
        for mut question in self.0.drain(..) {
            match question.try_wait()? {
                Some(status) => answered |= status.success(),
                None => still.push(question),
            }
        }
        self.0 = still;
        Ok(answered)
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        for question in &mut self.0 {
            // It may have ended by itself.
            let _ = question.kill();
            let _ = question.wait();
        }
    }
}
