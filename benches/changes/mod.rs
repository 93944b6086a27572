//! Connections lost while something changes that PgBouncer takes over as it runs, under load.
//!
//! - `limits`: the share goes up and down while more clients work than it has server connections. Twice: with clients that log in
//!   without a password, and with clients that log in by SCRAM over TLS.
//! - `password`: of the same role. Every other time the Secret changes first, every other time the role.
//! - `role`: another role with a password of its own; then the old one may not log in any more. Where that takes a new process, those
//!   that stay cross the change as the old role, leave, and come again as the new one: the process before ends with them.
//! - `ca`: both CAs in the bundle, then another certificate of the database, then the new CA alone.
//!
//! The last three by SCRAM over TLS, with server connections that live for 2 s: each is opened anew many times with what is in force.
//! A client that connects knows one password, and the pooler one: while that changes nobody connects, and those that stay
//! go on. Beside each, with a PgBouncer of its own: `reload`, the same change by another file and SIGHUP, at the same moment as that of
//! the database. Nobody tries anything twice.

mod report;

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use serde_json::json;
use sluice::pooler::pgbouncer::{
    changes::{Change, Needs, Program},
    version::Version,
};

use crate::{
    Failure,
    bare::{Bare, File},
    certificates::Authority,
    clients::{self, Load},
    load::{Clients, Target},
    losses, machine,
    process::wait_for,
    results::{self, Results, Samples},
    statistics,
    subject::{Ground, Login, PASSWORD, ROLE, Subject, WITHIN},
};

/// Between two changes.
const PAUSE: Duration = Duration::from_millis(500);
/// How long clients that stay for a while do so.
const STAY: Duration = Duration::from_secs(3);
/// Shares, one after the other.
const SHARES: [u32; 4] = [10, 3, 8, 4];
/// Clients that work without a pause: more than the largest share.
const WORKERS: u32 = 12;
/// How long each of their questions keeps a server connection.
const WORK: Duration = Duration::from_millis(10);
/// How long the last connection of an old role may take with PgBouncer alone, before the role is revoked nevertheless.
const PATIENCE: Duration = Duration::from_secs(5);
/// Seconds that a server connection lives where it is to be opened anew with what has changed.
const LIFETIME: &str = "2";
/// Since when PgBouncer keeps what it computes for a login by SCRAM (0.3 ms instead of 4).
const LOGINS_ARE_CHEAP_SINCE: Version = Version { major: 1, minor: 25, patch: 0 };

/// Options of `changes`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Changes of each kind, at least.
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// New connections without a password, at least, over the changes of a kind.
    #[arg(long, default_value_t = 300_000)]
    connections: u64,
    /// Queries of clients that stay, at least, over the changes of each kind.
    #[arg(long, default_value_t = 100_000)]
    queries: u64,
    /// Changes of each kind by RELOAD.
    #[arg(long, default_value_t = 6)]
    others: u32,
    /// New connections per second without a password.
    #[arg(long, default_value_t = 1100)]
    rate: u32,
    /// New connections per second by SCRAM over TLS, while any may connect. Default: 260, so that 200 a second are left over all; 80
    /// with PgBouncer before 1.25, which computes 4 ms for each: of two hundred little would be left for clients that stay.
    #[arg(long)]
    guarded_rate: Option<u32>,
    /// Clients that share this rate. While clients wait for a server connection each of them takes longer.
    #[arg(long, default_value_t = 128)]
    workers: u32,
    /// Clients that stay for ever; a third as many stay for 3 s.
    #[arg(long, default_value_t = 12)]
    long: u32,
    /// Milliseconds between two questions of one that stays.
    #[arg(long, default_value_t = 8)]
    think: u32,
    /// Only this kind of change; its samples are printed, and there are no figures.
    #[arg(long, value_enum)]
    only: Option<Kind>,
    /// Keep samples and figures below benches/results.
    #[arg(long, conflicts_with = "only")]
    keep: bool,
}

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Limits,
    Password,
    Role,
    Ca,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Limits => "limits",
            Self::Password => "password",
            Self::Role => "role",
            Self::Ca => "ca",
        }
    }

    /// What the pooler has to take over.
    fn change(self) -> Change<'static> {
        match self {
            Self::Limits => Change::Limits,
            Self::Password => Change::Password,
            Self::Role => Change::User,
            Self::Ca => Change::ServerCa,
        }
    }

    /// Whether clients that connect have to know something else afterwards.
    fn concerns_comers(self) -> bool {
        matches!(self, Self::Password | Self::Role)
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let version = machine::pgbouncer()?;
    let guarded_rate = options.guarded_rate.unwrap_or(if version < LOGINS_ARE_CHEAP_SINCE { 80 } else { 260 });
    let mut samples = Samples::of(&format!("login,kind,way,number,seconds,{}", clients::COLUMNS));
    for (kind, login) in [
        (Kind::Limits, Login::Trust),
        (Kind::Limits, Login::ScramTls),
        (Kind::Password, Login::ScramTls),
        (Kind::Role, Login::ScramTls),
        (Kind::Ca, Login::ScramTls),
    ] {
        if options.only.is_some_and(|only| only != kind) {
            continue;
        }
        for way in [Way::Sidecar, Way::Reload] {
            let scratch = tempfile::tempdir()?;
            let ground = Ground::start(scratch.path())?;
            let rate = if login == Login::Trust { options.rate } else { guarded_rate };
            let needs = Program { version, tracks_extra: "" }.needs(kind.change());
            Round::start(options, &ground, scratch.path(), kind, login, way)?.run(
                rate,
                needs == Needs::NewProcess,
                &mut samples,
            )?;
        }
    }
    setting.insert(
        "load".into(),
        json!(format!(
            "trust: {} new connections per second; scram+tls: {}; by {} clients; {} clients that stay for ever and {} for 3 s, each with two \
             queries every {} ms; with the limits {WORKERS} more whose queries of {} ms follow each other",
            options.rate,
            guarded_rate,
            options.workers,
            options.long,
            options.long / 3,
            options.think,
            WORK.as_millis()
        )),
    );
    Ok(Results {
        name: "changes",
        setting,
        figures: if options.only.is_none() { report::report(samples.text())? } else { String::new() },
        samples,
        keep: options.keep.then(results::committed),
    })
}

#[derive(Clone, Copy)]
enum Way {
    Sidecar,
    Reload,
}

/// What runs in front of the database.
enum Pooler<'a> {
    Sidecar(Subject),
    Bare(Bare<'a>, File),
}

impl Pooler<'_> {
    fn port(&self) -> u16 {
        match self {
            Self::Sidecar(subject) => subject.port,
            Self::Bare(bare, _) => bare.port,
        }
    }
}

/// One kind of change in one way.
struct Round<'a> {
    options: &'a Options,
    ground: &'a Ground,
    kind: Kind,
    login: Login,
    pooler: Pooler<'a>,
    /// What clients log in with.
    account: (String, String),
    /// Who has signed what the database shows.
    authority: Option<Authority>,
    load: Load,
}

impl<'a> Round<'a> {
    fn start(
        options: &'a Options,
        ground: &'a Ground,
        scratch: &Path,
        kind: Kind,
        login: Login,
        way: Way,
    ) -> Result<Self, Failure> {
        let pooler = match way {
            Way::Sidecar => {
                let directory = scratch.join("sidecar");
                let mut subject = Subject::start(ground, &directory, login, ground.pooler_for(login)?)?;
                if kind != Kind::Limits {
                    let revision = subject.revise(&[("server_lifetime", LIFETIME)], 1)?;
                    subject.until("the revision is in force", |status| status.revision == Some(revision))?;
                }
                Pooler::Sidecar(subject)
            }
            Way::Reload => {
                let mut file = File::first(ground);
                if kind != Kind::Limits {
                    file.server_lifetime = LIFETIME.parse()?;
                }
                Pooler::Bare(Bare::start(ground, &scratch.join("bare"), login, false, &file)?, file)
            }
        };
        let account = (ROLE.to_owned(), PASSWORD.to_owned());
        Ok(Self { options, ground, kind, login, pooler, account, authority: None, load: Load::new()? })
    }

    fn target(&self) -> Result<Target, Failure> {
        self.ground.target(self.pooler.port(), self.login, &self.account.0, &self.account.1)
    }

    /// Those that connect, again and again.
    fn comers(&self, rate: u32) -> Result<Vec<Clients>, Failure> {
        let target = self.target()?;
        let for_a_while = self.load.stay(|clients| {
            for _ in 0..self.options.long.div_ceil(3) {
                clients.stay(&target, Some(STAY), Duration::from_millis(self.options.think.into()));
            }
        });
        Ok(vec![self.load.come(&target, self.options.workers, rate), for_a_while])
    }

    fn for_ever(&self) -> Result<Clients, Failure> {
        let target = self.target()?;
        Ok(self.load.stay(|clients| {
            for _ in 0..self.options.long {
                clients.stay(&target, None, Duration::from_millis(self.options.think.into()));
            }
            if self.kind == Kind::Limits {
                for _ in 0..WORKERS {
                    clients.work(&target, WORK);
                }
            }
        }))
    }

    fn run(mut self, rate: u32, by_new_process: bool, samples: &mut Samples) -> Result<(), Failure> {
        let (way, changes, queries, connections) = match self.pooler {
            Pooler::Sidecar(_) if self.login == Login::Trust => {
                ("sidecar", self.options.changes, self.options.queries, self.options.connections)
            }
            Pooler::Sidecar(_) => ("sidecar", self.options.changes, self.options.queries, 0),
            Pooler::Bare(..) => ("reload", self.options.others, 0, 0),
        };
        let head = format!("{},{},{way}", self.login.label(), self.kind.label());
        let mut for_ever = vec![self.for_ever()?];
        let mut comers = self.comers(rate)?;
        let mut number = 0;
        while number < changes || self.load.stayers.queries() < queries || self.load.comers.connections() < connections
        {
            sleep(PAUSE);
            if self.kind.concerns_comers() {
                for clients in comers.drain(..) {
                    self.load.leave(clients);
                }
            }
            let before = self.account.0.clone();
            let seconds = self.timed(number)?;
            if comers.is_empty() {
                comers = self.comers(rate)?;
            }
            if by_new_process {
                sleep(PAUSE);
                // the process before ends with them
                for clients in for_ever.drain(..) {
                    self.load.leave(clients);
                }
            }
            if before != self.account.0 {
                self.revoke(&before)?;
            }
            if for_ever.is_empty() {
                for_ever.push(self.for_ever()?);
            }
            samples.add(&format!("{head},{number},{seconds:.3},{}", self.load.met()));
            number += 1;
        }
        sleep(PAUSE);
        for clients in comers.into_iter().chain(for_ever) {
            self.load.leave(clients);
        }
        samples.add(&format!("{head},{number},,{}", self.load.met()));
        Ok(())
    }

    fn timed(&mut self, number: u32) -> Result<f64, Failure> {
        let begin = Instant::now();
        match self.kind {
            Kind::Limits => self.change_limits(number)?,
            Kind::Password => self.change_password(number)?,
            Kind::Role => self.change_role(number)?,
            Kind::Ca => self.change_ca(number)?,
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    fn change_limits(&mut self, number: u32) -> Result<(), Failure> {
        let share = SHARES.into_iter().cycle().nth(usize::try_from(number)?).ok_or("no share")?;
        match &mut self.pooler {
            Pooler::Sidecar(subject) => {
                let seq = subject.grant(share, 1)?;
                subject.until("the share is in force", |status| status.seq == seq).map(drop)
            }
            Pooler::Bare(bare, file) => {
                file.pool_size = share;
                bare.reload(file)
            }
        }
    }

    fn change_password(&mut self, number: u32) -> Result<(), Failure> {
        self.account.1 = format!("{PASSWORD}-{number}");
        let alter = format!("alter role {} password '{}'", self.account.0, self.account.1);
        let role_first = number.is_multiple_of(2);
        if role_first {
            self.ground.postgres.sql(&alter)?;
        }
        let (pooler, account) = (&mut self.pooler, &self.account);
        hand_over(pooler, account, || if role_first { Ok(()) } else { self.ground.postgres.sql(&alter).map(drop) })
    }

    fn change_role(&mut self, number: u32) -> Result<(), Failure> {
        self.account = (format!("{ROLE}_{number}"), format!("{PASSWORD}-{number}"));
        let (user, password) = &self.account;
        self.ground.postgres.sql(&format!("create role {user} login password '{password}'"))?;
        hand_over(&mut self.pooler, &self.account, || Ok(()))
    }

    /// Takes a role its login away, once nobody is logged in with it.
    fn revoke(&self, role: &str) -> Result<(), Failure> {
        let within = if matches!(self.pooler, Pooler::Sidecar(_)) { WITHIN } else { PATIENCE };
        let gone = wait_for("no connection of the old role is left", within, || {
            let left = format!("select count(*) from pg_stat_activity where usename = '{role}'");
            (self.ground.postgres.sql(&left).ok()? == "0").then_some(())
        });
        if let Pooler::Sidecar(_) = self.pooler {
            gone?;
        }
        self.ground.postgres.sql(&format!("alter role {role} nologin password null")).map(drop)
    }

    fn change_ca(&mut self, number: u32) -> Result<(), Failure> {
        let new = Authority::new(&format!("figures {number}"))?;
        let old = self.authority.as_ref().map_or(&self.ground.authority.pem, |authority| &authority.pem);
        trust(&mut self.pooler, &format!("{old}{}", new.pem))?;
        self.ground.postgres.show(&new.certify()?)?;
        trust(&mut self.pooler, &new.pem)?;
        self.authority = Some(new);
        Ok(())
    }
}

/// How often what is in the Secret has come into force in every process.
fn times_in_force(subject: &Subject) -> Result<usize, Failure> {
    Ok(subject.log()?.matches("credentials in force in every slot").count())
}

fn in_force_again(subject: &Subject, before: usize) -> Result<(), Failure> {
    wait_for("what the Secret holds is in force in every process", WITHIN, || {
        times_in_force(subject).ok().filter(|times| *times > before)
    })?;
    subject.until("nothing is left to tell", |status| status.message.is_empty()).map(drop)
}

/// Other credentials for the pooler; `then` is done once it was told.
fn hand_over(
    pooler: &mut Pooler<'_>,
    account: &(String, String),
    then: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    match pooler {
        Pooler::Sidecar(subject) => {
            let before = times_in_force(subject)?;
            subject.write("credentials/username", &account.0)?;
            subject.write("credentials/password", &account.1)?;
            then()?;
            in_force_again(subject, before)
        }
        Pooler::Bare(bare, file) => {
            file.account = account.clone();
            bare.reload(file)?;
            then()
        }
    }
}

/// Another CA bundle for the pooler.
fn trust(pooler: &mut Pooler<'_>, bundle: &str) -> Result<(), Failure> {
    match pooler {
        Pooler::Sidecar(subject) => {
            let before = times_in_force(subject)?;
            subject.write("server-ca/ca.crt", bundle)?;
            in_force_again(subject, before)
        }
        Pooler::Bare(bare, file) => {
            bundle.clone_into(&mut file.server_ca);
            bare.reload(file)
        }
    }
}
