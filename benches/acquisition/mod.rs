//! How long a client takes through the sidecar from its first packet until its first question is answered: TCP, TLS and login
//! where there are any, a server connection, and the answer.
//!
//! Without a password and TLS, and with both, whose cost is mostly the client's. Beside each the same with the database
//! itself, which starts a process for every client.

mod report;

use std::{thread::sleep, time::Duration};

use clap::Args;
use serde_json::json;

use crate::{
    Failure,
    clients::Load,
    load::Target,
    losses, machine,
    pod::USER,
    results::{self, Results, Samples},
    statistics,
    subject::{Ground, Login, PASSWORD, ROLE, Subject},
};

/// Clients at work before anything counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// Options of `acquisition`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// New connections per second without a password.
    #[arg(long, default_value_t = 1100)]
    rate: u32,
    /// New connections per second by SCRAM over TLS.
    #[arg(long, default_value_t = 100)]
    guarded_rate: u32,
    /// New connections per second to the database itself.
    #[arg(long, default_value_t = 100)]
    direct_rate: u32,
    /// Clients that share this rate.
    #[arg(long, default_value_t = 32)]
    workers: u32,
    /// Seconds of each.
    #[arg(long, default_value_t = 40)]
    seconds: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let ground = Ground::start(scratch.path())?;
    let mut samples = Samples::of("login,way,elapsed_seconds,failures,microseconds,count");
    for login in Login::ALL {
        let directory = scratch.path().join(login.label());
        let subject = Subject::start(&ground, &directory, login, ground.pooler_for(login)?)?;
        let rate = if login == Login::Trust { options.rate } else { options.guarded_rate };
        let user = if login == Login::Trust { USER } else { ROLE };
        let through = ground.target(subject.port, login, ROLE, PASSWORD)?;
        let directly = ground.target(ground.postgres.port, login, user, PASSWORD)?;
        for (way, target, rate) in [("sidecar", through, rate), ("direct", directly, options.direct_rate)] {
            take(options, &target, rate, &format!("{},{way}", login.label()), &mut samples)?;
        }
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "{} clients; new connections per second: trust {}, scram+tls {}, to the database itself {}; {} s each",
            options.workers, options.rate, options.guarded_rate, options.direct_rate, options.seconds
        )),
    );
    Ok(Results {
        name: "acquisition",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

fn take(options: &Options, target: &Target, rate: u32, head: &str, samples: &mut Samples) -> Result<(), Failure> {
    let warm_up = Load::new()?;
    let clients = warm_up.come(target, options.workers, rate);
    sleep(WARM_UP);
    warm_up.leave(clients);
    let load = Load::new()?;
    let clients = load.come(target, options.workers, rate);
    sleep(Duration::from_secs(options.seconds.into()));
    let elapsed = load.elapsed();
    load.leave(clients);
    samples.add(&format!("{head},{elapsed:.1},{},,", load.failures()));
    for (microseconds, count) in load.comers.visits() {
        samples.add(&format!("{head},,,{microseconds},{count}"));
    }
    Ok(())
}
