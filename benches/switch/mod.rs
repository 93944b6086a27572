//! Connections lost while the process behind an address is replaced by another one, under load.
//!
//! Twice: with clients that log in without a password, and with clients that log in by SCRAM over TLS. Each time in several ways,
//! with a PgBouncer of its own each:
//!
//! - `switch`: the sidecar changes `pkt_buf`, which needs a new process; a change follows when the one before is over.
//! - `back`: the revision before is asked for again while its process still runs, to and fro.
//! - `reload`: a bare PgBouncer takes over another file by SIGHUP. It changes no `pkt_buf`: the least that a change costs.
//! - `takeover`: `pgbouncer -R`, which 1.26 no longer has.
//! - `reuseport`: a second PgBouncer with `so_reuseport` on the same port, then SIGTERM to the first one.
//!
//! The load: clients that connect, ask and leave at a steady rate; clients that stay for 3 s, and, beside the sidecar, clients that
//! would stay for ever. Those that stay use a prepared statement. A process that was left ends with its last client, so those that
//! stay for ever cross one switch and leave: in some rounds with those of 3 s, in the others these go by themselves. Nobody tries
//! anything twice.

mod report;

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use serde_json::json;
use sluice::pooler::pgbouncer::version::Version;

use crate::{
    Failure,
    bare::{Bare, File},
    clients::{self, Load},
    load::{Clients, Target},
    losses, machine,
    pod::SHARE,
    process::wait_for,
    results::{self, Results, Samples},
    statistics,
    subject::{Ground, Login, PASSWORD, ROLE, Subject, WITHIN},
};

/// Between two changes, so that each meets a load that has settled.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two steps to the process that still runs.
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// Server connections that the pod may always hold: a new process opens them without being asked to.
const FLOOR: u32 = 4;
/// In every so many rounds the warm-up is looked at.
const LOOK_EVERY: u32 = 10;
/// How long clients that stay do so.
const STAY: Duration = Duration::from_secs(3);
/// Between two questions of a client that stays.
const THINK: Duration = Duration::from_millis(10);
/// The same over TLS: two hundred handshakes and proofs of a password a second take the clients most of the two cores.
const GUARDED_THINK: Duration = Duration::from_millis(20);
/// Since when PgBouncer has no `-R` (its NEWS).
const NO_TAKEOVER_SINCE: Version = Version { major: 1, minor: 26, patch: 0 };
/// `pkt_buf` of the revisions.
const PKT_BUF: [&str; 2] = ["4096", "4608"];

/// Options of `switch`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Changes of the sidecar that need a new process, and as many steps back. Without a password 100 see a little less than 300,000
    /// new connections.
    #[arg(long, default_value_t = 105)]
    switches: u32,
    /// Changes of each of PgBouncer's own ways.
    #[arg(long, default_value_t = 25)]
    others: u32,
    /// New connections per second without a password.
    #[arg(long, default_value_t = 1100)]
    rate: u32,
    /// New connections per second by SCRAM over TLS.
    #[arg(long, default_value_t = 215)]
    guarded_rate: u32,
    /// Clients that share this rate.
    #[arg(long, default_value_t = 48)]
    workers: u32,
    /// Clients that stay for 3 s, and as many that stay for ever.
    #[arg(long, default_value_t = 6)]
    long: u32,
    /// In one of so many rounds, those that stay for 3 s go by themselves.
    #[arg(long, default_value_t = 2)]
    patient_every: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let bench = Bench { options, ground: Ground::start(scratch.path())?, scratch: scratch.path() };
    let mut samples =
        Samples::of(&format!("login,way,number,seconds,warm_seconds,flip_microseconds,{}", clients::COLUMNS));
    for login in Login::ALL {
        bench.sidecar(login, &mut samples)?;
        bench.own_ways(login, &mut samples)?;
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "trust: {} new connections per second; scram+tls: {}; by {} clients; {} clients that stay for 3 s, and beside the sidecar {} \
             that stay for ever, each with two queries every {} ms, over TLS every {} ms",
            options.rate,
            options.guarded_rate,
            options.workers,
            options.long,
            options.long,
            THINK.as_millis(),
            GUARDED_THINK.as_millis()
        )),
    );
    Ok(Results {
        name: "switch",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

struct Bench<'a> {
    options: &'a Options,
    ground: Ground,
    scratch: &'a Path,
}

impl Bench<'_> {
    fn come(&self, load: &Load, login: Login, target: &Target) -> Clients {
        let rate = match login {
            Login::Trust => self.options.rate,
            Login::ScramTls => self.options.guarded_rate,
        };
        load.come(target, self.options.workers, rate)
    }

    fn stay(&self, load: &Load, target: &Target, lifetime: Option<Duration>) -> Clients {
        let think = if target.tls.is_some() { GUARDED_THINK } else { THINK };
        load.stay(|clients| {
            for _ in 0..self.options.long {
                clients.stay(target, lifetime, think);
            }
        })
    }

    fn sidecar(&self, login: Login, samples: &mut Samples) -> Result<(), Failure> {
        let directory = self.scratch.join(login.label());
        let mut subject = Subject::start(&self.ground, &directory, login, self.ground.pooler_for(login)?)?;
        let seq = subject.grant(SHARE, FLOOR)?;
        subject.until("the grant is in force", |status| status.seq == seq)?;
        let target = self.ground.target(subject.port, login, ROLE, PASSWORD)?;
        let load = Load::new()?;
        let comers = self.come(&load, login, &target);
        for number in 0..self.options.switches {
            let for_ever = self.stay(&load, &target, None);
            let for_a_while = self.stay(&load, &target, Some(STAY));
            sleep(PAUSE);
            let at = unix();
            let seconds = change(&mut subject, number)?;
            let warm = if number.is_multiple_of(LOOK_EVERY) { Some(self.warm(at)?) } else { None };
            load.leave(for_ever);
            if number.is_multiple_of(self.options.patient_every) {
                ended(&subject)?;
                load.leave(for_a_while);
            } else {
                load.leave(for_a_while);
                ended(&subject)?;
            }
            let warm = warm.map(|warm| format!("{warm:.2}")).unwrap_or_default();
            let flip = flip(&subject)?;
            samples.add(&format!("{},switch,{number},{seconds:.4},{warm},{flip},{}", login.label(), load.met()));
        }
        self.steps_back(login, &mut subject, &load, &target, samples)?;
        load.leave(comers);
        samples.add(&format!("{},sidecar,{},,,,{}", login.label(), self.options.switches, load.met()));
        Ok(())
    }

    /// To and fro between two processes that both have clients.
    fn steps_back(
        &self,
        login: Login,
        subject: &mut Subject,
        load: &Load,
        target: &Target,
        samples: &mut Samples,
    ) -> Result<(), Failure> {
        let blue = self.stay(load, target, None);
        sleep(PAUSE);
        let last = self.options.switches;
        change(subject, last)?;
        let green = self.stay(load, target, None);
        for number in 0..self.options.switches {
            sleep(STEP_PAUSE);
            let seconds = change(subject, last + 1 + number)?;
            let flip = flip(subject)?;
            samples.add(&format!("{},back,{number},{seconds:.4},,{flip},{}", login.label(), load.met()));
        }
        load.leave(blue);
        load.leave(green);
        ended(subject)
    }

    /// Seconds from this time until the floor of a new process is open, as the database counts it.
    fn warm(&self, since: f64) -> Result<f64, Failure> {
        let query = format!(
            "select count(*) >= {FLOOR} from pg_stat_activity where usename = '{ROLE}' and backend_start > to_timestamp({since})"
        );
        wait_for("the new process is warm", WITHIN, || {
            (self.ground.postgres.sql(&query).ok()? == "t").then(|| unix() - since)
        })
    }

    fn own_ways(&self, login: Login, samples: &mut Samples) -> Result<(), Failure> {
        for way in ["reload", "takeover", "reuseport"] {
            if way == "takeover" && machine::pgbouncer()? >= NO_TAKEOVER_SINCE {
                continue;
            }
            let file = File::first(&self.ground);
            let directory = self.scratch.join(format!("{}-{way}", login.label()));
            let mut bare = Bare::start(&self.ground, &directory, login, way == "reuseport", &file)?;
            let target = self.ground.target(bare.port, login, ROLE, PASSWORD)?;
            let load = Load::new()?;
            let comers = self.come(&load, login, &target);
            let for_a_while = self.stay(&load, &target, Some(STAY));
            for number in 0..self.options.others {
                sleep(PAUSE);
                let begin = Instant::now();
                match way {
                    "reload" => bare.reload(&File { query_wait_timeout: 20 + number % 2, ..file.clone() })?,
                    "takeover" => bare.take_over(&file)?,
                    _ => bare.stand_beside(&file)?,
                }
                let seconds = begin.elapsed().as_secs_f64();
                samples.add(&format!("{},{way},{number},{seconds:.4},,,{}", login.label(), load.met()));
            }
            load.leave(comers);
            load.leave(for_a_while);
            samples.add(&format!("{},{way},{},,,,{}", login.label(), self.options.others, load.met()));
        }
        Ok(())
    }
}

/// Asks for another `pkt_buf`; the seconds until it is in force where new clients come to.
fn change(subject: &mut Subject, number: u32) -> Result<f64, Failure> {
    let begin = Instant::now();
    let wanted = PKT_BUF[usize::from(number.is_multiple_of(2))];
    let revision = subject.revise(&[("pkt_buf", wanted)], 1)?;
    subject.until("the revision is in force", |status| status.revision == Some(revision))?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Waits until the process that was left has ended.
fn ended(subject: &Subject) -> Result<(), Failure> {
    subject.until("the old process has ended", |status| status.other.is_none()).map(drop)
}

/// Microseconds that leading clients to the other process took last.
fn flip(subject: &Subject) -> Result<String, Failure> {
    let (_, microseconds) = subject.flips()?;
    Ok(microseconds.map(|microseconds| microseconds.to_string()).unwrap_or_default())
}

/// Seconds since 1970.
fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
