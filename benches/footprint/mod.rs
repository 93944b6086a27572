//! Memory of a sidecar when it is largest.
//!
//! In the middle of a switch, with keeper, agent and two PgBouncers:
//! - `idle`: nobody is connected.
//! - `busy`: clients by SCRAM over TLS, half of them on the process that was left and half on the new one, each of which asks
//!   once a second; the database is spoken to over TLS too, and verified by a CA bundle of the pool's own.
//!
//! With a whole share of server connections, each of them at work, by clients over TLS, and a CA bundle as large as those of Linux
//! distributions:
//! - `full`: this build.
//! - `full before`: the agent of the build before (`SLUICE_BEFORE_BIN`), which is not killed here for what it takes.

mod report;

use std::{
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use clap::Args;
use serde_json::json;

use crate::{
    Failure,
    certificates::Authority,
    clients::Load,
    losses, machine,
    process::{Memory, product_program, wait_for},
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
/// Server connections of a whole share: what a pool may open where it says nothing.
const FULL_SHARE: u32 = 100;
/// Certificates in the CA bundle of a Linux distribution.
const BUNDLE: usize = 145;
/// How long a question keeps its server connection busy.
const WORK: Duration = Duration::from_millis(500);

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
    /// Server connections of the whole share.
    #[arg(long, default_value_t = FULL_SHARE)]
    share: u32,
    /// Directory with the programs of the build before.
    #[arg(long, env = "SLUICE_BEFORE_BIN")]
    before: Option<PathBuf>,
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
        let own = product_program("sluice-agent")?;
        let before = options.before.as_ref().map(|programs| ("full before", programs.join("sluice-agent")));
        for (part, agent) in [("full", own)].into_iter().chain(before) {
            let directory = scratch.path().join(format!("{}-{round}", part.replace(' ', "-")));
            full(options, &ground, &directory, (part, agent), round, &mut samples)?;
        }
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "busy: {} clients by SCRAM over TLS, half on each process, two queries a second each",
            options.clients
        )),
    );
    setting.insert(
        "full".into(),
        json!(format!(
            "{} clients by SCRAM over TLS, {} server connections at work, {BUNDLE} certificates in the CA bundle",
            options.clients, options.share
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

/// All server connections of a share at work.
fn full(
    options: &Options,
    ground: &Ground,
    directory: &Path,
    (part, agent): (&str, PathBuf),
    round: u32,
    samples: &mut Samples,
) -> Result<(), Failure> {
    let pooler = ground.pooler_for(Login::ScramTls)?;
    let mut bundle = ground.authority.pem.clone();
    for number in 1..BUNDLE {
        bundle.push_str(&Authority::new(&format!("authority {number} that signed nothing here"))?.pem);
    }
    let mut subject = Subject::of_agent(agent, ground, directory, Login::ScramTls, pooler, &bundle)?;
    let granted = subject.grant(options.share, 1)?;
    subject.until("the whole share is in force", |status| {
        status.seq == granted && status.limits.is_some_and(|limits| limits.pool_size == options.share)
    })?;
    let target = ground.target(subject.port, Login::ScramTls, ROLE, PASSWORD)?;
    let load = Load::new()?;
    let clients = load.stay(|clients| {
        (0..options.share).for_each(|_| clients.work(&target, WORK));
        (options.share..options.clients).for_each(|_| clients.stay(&target, None, THINK));
    });
    wait_for("every server connection is open", WITHIN, || {
        let held = subject.status().ok()?.held?.held;
        (held >= options.share && load.stayers.connections() >= u64::from(options.clients)).then_some(())
    })?;
    look(options, &subject, part, round, samples)?;
    load.leave(clients);
    match load.failures() {
        0 => Ok(()),
        failures => Err(format!("{part}: {failures} failures of the clients that fill the memory").into()),
    }
}

fn look(options: &Options, subject: &Subject, part: &str, round: u32, samples: &mut Samples) -> Result<(), Failure> {
    let keeper = subject.keeper()?.pid();
    for number in 0..options.looks {
        sleep(LOOK_EVERY);
        let clients = subject.metric("sluice_client_connections{")?;
        let poolers = subject.poolers()?;
        let of_switch = usize::from(!part.starts_with("full"));
        if poolers.len() != 1 + of_switch {
            return Err(format!("{} processes of PgBouncer in part {part}", poolers.len()).into());
        }
        let poolers = ["blue", "green"].into_iter().zip(poolers);
        for (process, pid) in [("keeper", keeper), ("agent", subject.agent()?)].into_iter().chain(poolers) {
            let Memory { resident, proportional } = Memory::of(pid)?;
            samples.add(&format!("{part},{round},{number},{process},{resident},{proportional},{clients:.0}"));
        }
    }
    Ok(())
}
