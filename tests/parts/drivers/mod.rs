//! The drivers that applications use, as they come, through the sidecar, while everything changes. See docs/drivers.md.

mod program;
mod recorder;
mod table;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use program::{Introduction, LANGUAGES, Line, Program, Told, Way, directory};
use recorder::{Recorder, Startup};
use sluice::{
    contract::{SessionAlias, Settings},
    pooler::pgbouncer::changes::Remembered,
};
use table::tables;
use tempfile::TempDir;
use verdict::{Cause, Errors, KNOWN, cause, is_lost_cancel, is_refused_login, left_out};

use crate::agent::rig::{Account, Agent, DEADLINE, Postgres, connect, pooler_remembers, reacting, until};

const ALIAS: &str = "shop_session";
const ALIAS_CONNECTIONS: u32 = 6;
/// Rounds of all operations before anything changes, and after everything has.
const QUIET_ROUNDS: u64 = 2;
/// Operations of each client between two changes.
const BETWEEN: u64 = 8;

/// Names of clients: each is told by the tables to have its own rows.
const CLIENTS: [&str; 3] = ["pool-0", "pool-1", "direct-0"];

/// With the session alias that drivers listen through.
fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let session_alias = Some(SessionAlias { database: ALIAS.to_owned(), connections: ALIAS_CONNECTIONS });
    let mut settings = Settings { session_alias, ..reacting() };
    // it says then which cancel requests it has dropped
    settings.parameters.insert("log_disconnections".to_owned(), "1".to_owned());
    change(&mut settings);
    settings
}

fn with(name: &str, value: &str) -> Settings {
    settings(|settings| {
        settings.parameters.insert(name.to_owned(), value.to_owned());
    })
}

/// A database with what the operations ask for, and another role with the same rights.
async fn database() -> (Postgres, Account) {
    let rules = "host all all 127.0.0.1/32 scram-sha-256\n";
    let (postgres, account) = (Postgres::configured(rules, &[], &["max_connections=150"]).await, Account::shop());
    postgres.create(&account).await;
    let admin = postgres.admin().await;
    admin.batch_execute("create role shop_2 login password 'secret' in role shop").await.unwrap();
    let client = connect(&postgres.login(&account)).await.unwrap();
    client
        .batch_execute(
            "create table ledger (owner text, id int, amount int8, primary key (owner, id));
             create table copied (owner text, id int, body text);
             insert into copied select 'everybody', generate_series(1, 1000), 'x'",
        )
        .await
        .unwrap();
    for driver in LANGUAGES.iter().flat_map(|(_, drivers)| *drivers) {
        for owner in CLIENTS.map(|client| format!("{driver}-{client}")) {
            let insert = "insert into ledger select $1, generate_series(1, 2), 1000";
            client.execute(insert, &[&owner]).await.unwrap();
        }
    }
    (postgres, account)
}

/// The drivers under way, and what they have said.
struct Drivers {
    programs: Vec<Program>,
    lines: Receiver<Line>,
    recorders: BTreeMap<String, Recorder>,
    credentials: PathBuf,
    _directory: TempDir,
    introduced: BTreeMap<String, Introduction>,
    /// Operations that have ended, of each client.
    ended: BTreeMap<(String, String), u64>,
    changing: bool,
    /// While the role's password and what the drivers know of it may differ.
    refused_logins_since: Option<Instant>,
    /// Errors of a known cause, those of ours, and logins with a password that no longer was one.
    known: Errors,
    unknown: Errors,
    refused_logins: u64,
    lost_cancels: usize,
}

impl Drivers {
    async fn start(postgres: &Postgres, agent: &Agent, account: &Account, old_faults: bool) -> Self {
        let (sender, lines) = channel();
        let directory_of_files = TempDir::new().unwrap();
        let credentials = directory_of_files.path().join("credentials");
        let mut drivers = Self {
            programs: Vec::new(),
            lines,
            recorders: BTreeMap::new(),
            credentials,
            _directory: directory_of_files,
            introduced: BTreeMap::new(),
            ended: BTreeMap::new(),
            changing: false,
            refused_logins_since: None,
            known: Errors::default(),
            unknown: Errors::default(),
            refused_logins: 0,
            lost_cancels: 0,
        };
        drivers.log_in_as(&account.user, &account.password);
        for (language, names) in LANGUAGES {
            let program = directory().join(language);
            if !program.exists() {
                assert!(
                    env::var("CI").as_deref() != Ok("true"),
                    "CI tests the drivers of every language, and {language} is not built"
                );
                println!("left out, because tests/lab/lab did not build it here: {language} ({})", names.join(", "));
                continue;
            }
            for driver in names {
                let recorder = Recorder::in_front_of(postgres.port).await;
                let environment = BTreeMap::from([
                    ("DRIVERS_POOL_PORT", agent.client_port().to_string()),
                    ("DRIVERS_DIRECT_PORT", recorder.address.port().to_string()),
                    ("DRIVERS_CREDENTIALS", drivers.credentials.display().to_string()),
                    ("DRIVERS_DATABASE", account.database.clone()),
                    ("DRIVERS_ALIAS", ALIAS.to_owned()),
                ]);
                let left_out = left_out(driver, old_faults);
                drivers.programs.push(Program::start(&program, driver, &left_out, &environment, sender.clone()));
                drivers.recorders.insert((*driver).to_owned(), recorder);
                drivers.ended.extend(CLIENTS.map(|client| (((*driver).to_owned(), format!("{driver}-{client}")), 0)));
            }
        }
        drivers
    }

    /// What logins use from now on.
    fn log_in_as(&self, user: &str, password: &str) {
        let aside = self.credentials.with_extension("aside");
        fs::write(&aside, format!("{user}\n{password}\n")).unwrap();
        fs::rename(aside, &self.credentials).unwrap();
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Introduction(introduction) => {
                self.introduced.insert(introduction.driver.clone(), introduction);
            }
            Line::Operation { driver, told, at } => {
                *self.ended.get_mut(&(driver.to_owned(), told.worker.clone())).expect("a client of its own") += 1;
                self.judge(driver, &told, at);
            }
            Line::End { driver, errors } => assert!(self.programs.is_empty(), "{driver} ended: {errors}"),
        }
    }

    fn judge(&mut self, driver: &str, told: &Told, at: Instant) {
        if told.code.is_none() {
            return;
        }
        let began = at.checked_sub(Duration::from_millis(told.milliseconds));
        let between = self.refused_logins_since.is_some_and(|since| at >= since) || began.is_none();
        if between && is_refused_login(told) {
            self.refused_logins += 1;
        } else if is_lost_cancel(told) {
            self.lost_cancels += 1;
        } else if cause(driver, told).is_some() {
            self.known.add(driver, told);
        } else {
            println!("{} {driver}: {told:?}", if self.changing { "while things change" } else { "in quiet" });
            self.unknown.add(driver, told);
        }
    }

    /// Takes what has been said, until something is so.
    async fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !so(self) {
            while let Ok(line) = self.lines.try_recv() {
                self.take(line);
            }
            assert!(Instant::now() < deadline, "not in time: {what}; operations that ended: {:#?}", self.ended);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Until every client has run so many further operations, or a number that its driver says.
    async fn each_runs(&mut self, what: &str, operations: impl Fn(&Introduction) -> u64) {
        let goal: BTreeMap<(String, String), u64> = self.ended.clone();
        self.until("every driver has said who it is", |drivers| drivers.introduced.len() == drivers.recorders.len())
            .await;
        let of = |drivers: &Self, driver: &str| operations(&drivers.introduced[driver]);
        self.until(what, |drivers| {
            goal.iter().all(|(client, from)| drivers.ended[client] >= from + of(drivers, &client.0))
        })
        .await;
    }

    /// They end what they do, and all that they said is taken.
    async fn end(&mut self) -> BTreeMap<String, Startup> {
        let mut programs = std::mem::take(&mut self.programs);
        programs.iter_mut().for_each(Program::ask_to_end);
        tokio::task::spawn_blocking(move || drop(programs)).await.unwrap();
        while let Ok(line) = self.lines.try_recv() {
            self.take(line);
        }
        self.recorders.iter().map(|(driver, recorder)| (driver.clone(), recorder.seen())).collect()
    }
}

/// The times that credentials came into force.
fn times_in_force(agent: &Agent) -> usize {
    agent.log().matches("credentials in force in every slot").count()
}

async fn credentials_in_force(agent: &Agent, before: usize) {
    until("the credentials are in force in every process", async || (times_in_force(agent) > before).then_some(()))
        .await;
    agent.until("nothing is left to tell about them", |status| !status.message.contains("credentials")).await;
}

/// Everything that changes in the life of a pool, with the drivers at work between two changes.
async fn changes(postgres: &Postgres, agent: &Agent, drivers: &mut Drivers) {
    drivers.changing = true;
    for (seq, share) in [(2, 12), (3, 24)] {
        agent.grant(seq, share, 24);
        agent.until("another limit is in force", |status| status.seq == seq).await;
        drivers.each_runs("at work after another limit", |_| BETWEEN).await;
    }
    agent.revise(2, &with("server_idle_timeout", "77"));
    agent.until("the revision is in force", |status| status.revision == Some(2)).await;
    drivers.each_runs("at work after another revision", |_| BETWEEN).await;

    let before = times_in_force(agent);
    agent.write("credentials/password", "another");
    drivers.refused_logins_since = Some(Instant::now());
    postgres.admin().await.batch_execute("alter role shop password 'another'").await.unwrap();
    credentials_in_force(agent, before).await;
    drivers.log_in_as("shop", "another");
    // a client that was just logging in may tell of it after its next operation at last
    drivers.each_runs("at work after another password", |_| BETWEEN).await;
    drivers.refused_logins_since = None;

    // one new process: a further one would wait until the clients of the first have left, and these never do
    if !pooler_remembers(Remembered::Role) {
        agent.revise(3, &with("pkt_buf", "8192"));
        agent.until("another process is in force", |status| status.revision == Some(3)).await;
        drivers.each_runs("at work after another process", |_| BETWEEN).await;
    }
    another_user(agent, drivers).await;
}

/// Another user: in place, or by a new process where PgBouncer binds clients to theirs.
async fn another_user(agent: &Agent, drivers: &mut Drivers) {
    let before = times_in_force(agent);
    agent.write("credentials/username", "shop_2");
    agent.write("credentials/password", "secret");
    drivers.refused_logins_since = Some(Instant::now());
    credentials_in_force(agent, before).await;
    drivers.log_in_as("shop_2", "secret");
    drivers.each_runs("at work after another user", |_| BETWEEN).await;
    drivers.refused_logins_since = None;
}

/// Cancel requests that PgBouncer has dropped, as it says itself: the query waited for a server connection or had ended, or the
/// request waited for another process in vain.
fn dropped_cancels(agent: &Agent) -> usize {
    let log = agent.log();
    ["cancel request for idle client", "cancel_wait_timeout", "client that is now idle", "server that is setting vars"]
        .iter()
        .map(|words| log.matches(words).count())
        .sum()
}

/// The part of the guide that a run makes.
fn generated(guide: &str) -> (&str, &str, &str) {
    const BEGIN: &str = "<!-- made by tests/parts/drivers: begin -->\n\n";
    const END: &str = "\n<!-- made by tests/parts/drivers: end -->";
    let (before, rest) = guide.split_once(BEGIN).expect("where the tables begin");
    let (between, after) = rest.split_once(END).expect("where the tables end");
    (&guide[..before.len() + BEGIN.len()], between, &guide[guide.len() - after.len() - END.len()..])
}

fn compare_with_guide(found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/drivers.md");
    let guide = fs::read_to_string(&path).unwrap();
    let (before, written, after) = generated(&guide);
    if env::var_os("SLUICE_UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{found}{after}")).unwrap();
    } else {
        assert_eq!(
            written, found,
            "docs/drivers.md is not what the run gives: run this test with SLUICE_UPDATE_DOCS=1"
        );
    }
}

/// Whether a version of PgBouncer is older than this one.
fn pooler_is_before(wanted: [u32; 3]) -> bool {
    let version = env::var("SLUICE_PGBOUNCER_VERSION").expect("set by: eval \"$(tests/lab/lab env)\"");
    let numbers: Vec<u32> = version.split('.').map_while(|number| number.parse().ok()).collect();
    numbers.as_slice() < wanted.as_slice()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer, PostgreSQL and the drivers (tests/lab/lab build drivers): tests/run parts"]
async fn drivers_as_they_come_lose_nothing_while_limits_revisions_passwords_users_and_processes_change() {
    let old_faults = pooler_is_before([1, 26, 1]);
    let (postgres, account) = database().await;
    let agent = Agent::start(&postgres, &account, &settings(|_| ()), 24).await;
    let mut drivers = Drivers::start(&postgres, &agent, &account, old_faults).await;
    drivers.each_runs("rounds in quiet", |driver| QUIET_ROUNDS * driver.operations.len() as u64).await;
    changes(&postgres, &agent, &mut drivers).await;
    drivers.each_runs("a round at the end", |driver| driver.operations.len() as u64).await;
    let startups = drivers.end().await;

    let operations: u64 = drivers.ended.values().sum();
    println!("{} cancels lost, {} dropped", drivers.lost_cancels, dropped_cancels(&agent));
    println!(
        "{operations} operations, {} logins with an old password; known: {:#?}",
        drivers.refused_logins, drivers.known
    );
    assert!(drivers.unknown.is_empty(), "errors of ours: {:#?}\n{}", drivers.unknown, agent.log());
    let dropped = dropped_cancels(&agent);
    // one in a thousand overtakes its query on a loaded machine and meets an idle session, which PostgreSQL does not mind; an older
    // PgBouncer also loses some of many at once that go to a process which drains, and logs nothing (docs/drivers.md)
    let overtaking = usize::try_from(operations / 1000).unwrap();
    assert!(
        old_faults || drivers.lost_cancels <= dropped + overtaking,
        "{} cancels lost, and PgBouncer dropped {dropped}",
        drivers.lost_cancels
    );
    let breaks = KNOWN.iter().filter(|known| known.cause != Cause::OldPooler);
    let unseen: BTreeSet<(&str, &str)> = breaks
        .filter(|known| drivers.introduced.contains_key(known.driver))
        .filter(|known| !drivers.known.has(known.driver, known.operation, Way::Pool))
        .map(|known| (known.driver, known.operation))
        .collect();
    assert_eq!(unseen, BTreeSet::new(), "works now: take it out of the known ones");
    let every = LANGUAGES.iter().map(|(_, drivers)| drivers.len()).sum::<usize>();
    if !old_faults && drivers.introduced.len() == every {
        compare_with_guide(&tables(&drivers.introduced, &startups));
    }
}
