//! Memory of a sidecar when it is largest: in the middle of a switch, with keeper, agent and two PgBouncers.
//!
//! - `idle`: nobody is connected.
//! - `busy`: clients by SCRAM over TLS, half of them on the process that was left and half on the new one, each of which asks
//!   once a second; the database is spoken to over TLS too, and verified by a CA bundle of the pool's own.

mod report;

use std::{path::Path, thread::sleep, time::Duration};

use clap::Args;
use serde_json::json;

use crate::{
    Failure,
    clients::Load,
    losses, machine,
    process::{Memory, wait_for},
    results::{self, Results, Samples},
    statistics,
    subject::{Ground, Login, PASSWORD, ROLE, Subject, WITHIN},
};

/// How long the old process stays warm: longer than is measured.
const WARM_SECONDS: u32 = 600;
/// Between two questions of a client.
const THINK: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Options of `footprint`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Sidecars of each kind.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Clients.
    #[arg(long, default_value_t = 500)]
    clients: u32,
    /// Looks at each sidecar, one a second.
    #[arg(long, default_value_t = 6)]
    looks: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let ground = Ground::start(scratch.path())?;
    let mut samples = Samples::of("part,round,look,process,resident_kib,proportional_kib,clients");
    for round in 0..options.rounds {
        idle(options, &ground, &scratch.path().join(format!("idle-{round}")), round, &mut samples)?;
        busy(options, &ground, &scratch.path().join(format!("busy-{round}")), round, &mut samples)?;
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "busy: {} clients by SCRAM over TLS, half on each process, two queries a second each",
            options.clients
        )),
    );
    Ok(Results {
        name: "footprint",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

/// A new process takes over, and the old one stays.
fn switch(subject: &mut Subject) -> Result<(), Failure> {
    let revision = subject.revise(&[("pkt_buf", "4608")], WARM_SECONDS)?;
    subject.until("both processes run", |status| status.revision == Some(revision) && status.other.is_some()).map(drop)
}

fn idle(
    options: &Options,
    ground: &Ground,
    directory: &Path,
    round: u32,
    samples: &mut Samples,
) -> Result<(), Failure> {
    let mut subject = Subject::start(ground, directory, Login::Trust, ground.pooler_for(Login::Trust)?)?;
    switch(&mut subject)?;
    look(options, &subject, "idle", round, samples)
}

fn busy(
    options: &Options,
    ground: &Ground,
    directory: &Path,
    round: u32,
    samples: &mut Samples,
) -> Result<(), Failure> {
    let mut subject = Subject::start(ground, directory, Login::ScramTls, ground.pooler_for(Login::ScramTls)?)?;
    let target = ground.target(subject.port, Login::ScramTls, ROLE, PASSWORD)?;
    let load = Load::new()?;
    let mut all = Vec::new();
    for half in [options.clients / 2, options.clients.div_ceil(2)] {
        all.push(load.stay(|clients| (0..half).for_each(|_| clients.stay(&target, None, THINK))));
        let so_far = if all.len() == 1 { half } else { options.clients };
        wait_for("they are connected", WITHIN, || (load.stayers.connections() >= u64::from(so_far)).then_some(()))?;
        if all.len() == 1 {
            switch(&mut subject)?;
        }
    }
    look(options, &subject, "busy", round, samples)?;
    for clients in all {
        load.leave(clients);
    }
    match load.failures() {
        0 => Ok(()),
        failures => Err(format!("{failures} failures of the clients that fill the memory").into()),
    }
}

fn look(options: &Options, subject: &Subject, part: &str, round: u32, samples: &mut Samples) -> Result<(), Failure> {
    let keeper = subject.keeper()?.pid();
    for number in 0..options.looks {
        sleep(LOOK_EVERY);
        let clients = subject.metric("sluice_client_connections{")?;
        let poolers = subject.poolers()?;
        let [blue, green] = poolers[..] else {
            return Err(format!("{} processes of PgBouncer, not two", poolers.len()).into());
        };
        for (process, pid) in [("keeper", keeper), ("agent", subject.agent()?), ("blue", blue), ("green", green)] {
            let Memory { resident, proportional } = Memory::of(pid)?;
            samples.add(&format!("{part},{round},{number},{process},{resident},{proportional},{clients:.0}"));
        }
    }
    Ok(())
}
