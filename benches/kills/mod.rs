//! PgBouncer killed under load, and the agent killed under load.
//!
//! - `pooler`: from SIGKILL of PgBouncer until a client that came after it is answered; one comes every 5 ms. Each kill meets a
//!   sidecar of its own: one that has seen others lately waits before it starts PgBouncer again. The load are clients that stay: each of
//!   them is cut once, so what they met and what `sluice_clients_cut_total` says can be compared to the last one.
//! - `agent`: from SIGKILL of the agent until another one answers. Clients come, and others stay; nobody is to be cut.

mod report;

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    Failure,
    clients::{self, Load},
    load::{Clients, Tally, Target, visit},
    losses, machine,
    process::wait_for,
    results::{self, Results, Samples},
    statistics,
    subject::{Ground, Login, PASSWORD, ROLE, Subject, WITHIN, signal},
};

/// Between two clients that come after a kill.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Kills of agents of one sidecar: its keeper waits ever longer.
const AGENTS: u32 = 4;
/// So long nobody is cut after an agent was killed.
const CALM: Duration = Duration::from_secs(1);

/// Options of `kills`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Kills of each.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Clients that stay.
    #[arg(long, default_value_t = 100)]
    clients: u32,
    /// Milliseconds between two questions of each.
    #[arg(long, default_value_t = 50)]
    think: u32,
    /// New connections per second, while agents are killed.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let ground = Ground::start(scratch.path())?;
    let bench = Bench { options, ground: &ground, scratch: scratch.path() };
    let mut samples = Samples::of(&format!("part,number,seconds,clients,cut,counted,{}", clients::COLUMNS));
    for number in 0..options.kills {
        samples.add(&bench.pooler(number)?);
    }
    for first in (0..options.kills).step_by(usize::try_from(AGENTS)?) {
        for row in bench.agents(first)? {
            samples.add(&row);
        }
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "{} clients that stay, each with two queries every {} ms; while agents are killed {} new connections per second",
            options.clients, options.think, options.rate
        )),
    );
    Ok(Results {
        name: "kills",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

struct Bench<'a> {
    options: &'a Options,
    ground: &'a Ground,
    scratch: &'a Path,
}

impl Bench<'_> {
    fn subject(&self, name: &str) -> Result<(Subject, Target), Failure> {
        let pooler = self.ground.pooler_for(Login::Trust)?;
        let subject = Subject::start(self.ground, &self.scratch.join(name), Login::Trust, pooler)?;
        let target = self.ground.target(subject.port, Login::Trust, ROLE, PASSWORD)?;
        Ok((subject, target))
    }

    /// Clients that stay, once the agent has counted them.
    fn stay(&self, subject: &Subject, load: &Load, target: &Target) -> Result<Clients, Failure> {
        let clients = load.stay(|clients| {
            for _ in 0..self.options.clients {
                clients.stay(target, None, Duration::from_millis(self.options.think.into()));
            }
        });
        wait_for("all clients are counted", WITHIN, || {
            let counted = subject.metric("sluice_client_connections{").ok()?;
            (counted >= f64::from(self.options.clients)).then_some(())
        })?;
        Ok(clients)
    }

    fn pooler(&self, number: u32) -> Result<String, Failure> {
        let (subject, target) = self.subject(&format!("pooler-{number}"))?;
        let load = Load::new()?;
        let clients = self.stay(&subject, &load, &target)?;
        let (pid, failures) = (*subject.poolers()?.first().ok_or("no pooler runs")?, load.failures());
        signal(pid, Signal::KILL)?;
        let seconds = load.run(answered(&target))?.as_secs_f64();
        let counted = wait_for("the clients that were cut are counted", WITHIN, || {
            subject.metric("sluice_clients_cut_total{").ok().filter(|counted| *counted > 0.0)
        })?;
        // everyone has noticed once everyone is there again
        wait_for("all clients are there again", WITHIN, || {
            let again = load.stayers.connections() >= u64::from(2 * self.options.clients);
            again.then_some(())
        })?;
        load.leave(clients);
        let cut = load.failures() - failures;
        Ok(format!("pooler,{number},{seconds:.4},{},{cut},{counted:.0},{}", self.options.clients, load.met()))
    }

    /// The kills of the agents of one sidecar.
    fn agents(&self, first: u32) -> Result<Vec<String>, Failure> {
        let (subject, target) = self.subject(&format!("agent-{first}"))?;
        let load = Load::new()?;
        let clients = self.stay(&subject, &load, &target)?;
        let comers = load.come(&target, 16, self.options.rate);
        let mut rows = Vec::new();
        for number in first..(first + AGENTS).min(self.options.kills) {
            let (agent, poolers, failures) = (subject.agent()?, subject.poolers()?, load.failures());
            let begin = Instant::now();
            signal(agent, Signal::KILL)?;
            wait_for("another agent serves", WITHIN, || {
                let another = subject.agent().is_ok_and(|pid| pid != agent);
                (another && subject.status().is_ok_and(|status| status.limits.is_some())).then_some(())
            })?;
            let seconds = begin.elapsed().as_secs_f64();
            sleep(CALM);
            if subject.poolers()? != poolers {
                return Err("another PgBouncer runs".into());
            }
            let counted = subject.metric("sluice_clients_cut_total{")?;
            let cut = load.failures() - failures;
            rows.push(format!(
                "agent,{number},{seconds:.4},{},{cut},{counted:.0},{}",
                self.options.clients,
                load.met()
            ));
        }
        load.leave(comers);
        load.leave(clients);
        Ok(rows)
    }
}

/// Sends one client after the other until one is answered; the time since the call.
async fn answered(target: &Target) -> Result<Duration, Failure> {
    let begin = Instant::now();
    let mut asked = JoinSet::new();
    let mut next = tokio::time::interval(ASK_EVERY);
    while begin.elapsed() < WITHIN {
        tokio::select! {
            _ = next.tick() => {
                let target = target.clone();
                asked.spawn(async move { visit(&target, &Tally::default()).await });
            }
            Some(answer) = asked.join_next() => {
                if answer?.is_ok() {
                    return Ok(begin.elapsed());
                }
            }
        }
    }
    Err(format!("no answer within {} s", WITHIN.as_secs()).into())
}
