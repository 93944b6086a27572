//! Memory of a sidecar when it is largest: in the middle of a switch, with keeper, agent and two PgBouncers, and at its whole share.
//!
//! - `idle`: nobody is connected.
//! - `busy`: clients by SCRAM over TLS, half of them on the process that was left and half on the new one, each of which asks
//!   once a second; the database is spoken to over TLS too, and verified by a CA bundle of the pool's own.
//! - `share`: one PgBouncer with its whole share open, to a database that is verified by a bundle as large as an image's trust store,
//!   and as many clients by SCRAM over TLS: one for each server connection is always at work, the others ask once a second.

mod report;

use std::{path::Path, thread::sleep, time::Duration};

use clap::Args;
use serde_json::json;

use crate::{
    Failure,
    certificates::Authority,
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
/// Certificates of a bundle that is as large as an image's trust store.
const STORE: usize = 145;
/// How long a client at work keeps its server connection.
const WORK: Duration = Duration::from_millis(200);
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
    /// Server connections of `share`, all of which are open.
    #[arg(long, default_value_t = 100)]
    share: u32,
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
    let mut ground = Ground::start(scratch.path())?;
    let mut samples = Samples::of("part,round,look,process,resident_kib,proportional_kib,clients");
    for round in 0..options.rounds {
        idle(options, &ground, &scratch.path().join(format!("idle-{round}")), round, &mut samples)?;
        busy(options, &ground, &scratch.path().join(format!("busy-{round}")), round, &mut samples)?;
    }
    for number in 1..STORE {
        ground.bundle.push_str(&Authority::new(&format!("stranger {number}"))?.pem);
    }
    for round in 0..options.rounds {
        share(options, &ground, &scratch.path().join(format!("share-{round}")), round, &mut samples)?;
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "busy: {0} clients by SCRAM over TLS, half on each process, two queries a second each; share: {1} server connections over \
             TLS, a bundle of {STORE} CAs, {0} clients by SCRAM over TLS, {1} of them always at work",
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

/// Everything that it may open is open.
fn share(
    options: &Options,
    ground: &Ground,
    directory: &Path,
    round: u32,
    samples: &mut Samples,
) -> Result<(), Failure> {
    let mut subject = Subject::start(ground, directory, Login::ScramTls, ground.pooler_for(Login::ScramTls)?)?;
    let seq = subject.grant(options.share, 1)?;
    subject.until("the share is in force", |status| status.seq == seq)?;
    let target = ground.target(subject.port, Login::ScramTls, ROLE, PASSWORD)?;
    let load = Load::new()?;
    let others = options.clients.saturating_sub(options.share);
    let all = load.stay(|clients| {
        (0..options.share).for_each(|_| clients.work(&target, WORK));
        (0..others).for_each(|_| clients.stay(&target, None, THINK));
    });
    let connected = u64::from(options.share + others);
    wait_for("they are connected", WITHIN, || (load.stayers.connections() >= connected).then_some(()))?;
    let held = f64::from(options.share);
    wait_for("all of the share is open", WITHIN, || (subject.metric("sluice_held{").ok()? >= held).then_some(()))?;
    look(options, &subject, "share", round, samples)?;
    load.leave(all);
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
        let wanted = if part == "share" { 1 } else { 2 };
        if poolers.len() != wanted {
            return Err(format!("{} processes of PgBouncer, not {wanted}", poolers.len()).into());
        }
        let poolers = ["blue", "green"].into_iter().zip(poolers);
        for (process, pid) in [("keeper", keeper), ("agent", subject.agent()?)].into_iter().chain(poolers) {
            let Memory { resident, proportional } = Memory::of(pid)?;
            samples.add(&format!("{part},{round},{number},{process},{resident},{proportional},{clients:.0}"));
        }
    }
    Ok(())
}
