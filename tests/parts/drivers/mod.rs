//! The drivers that applications use, as they come, through the sidecar, while everything changes. See docs/drivers.md.

mod program;
mod recorder;
mod table;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
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
const BETWEEN: u64 = 3;
/// And after another user or process.
const AFTER_PROCESS: u64 = 8;
/// Limits, revisions and passwords change for so long.
const CHANGING: Duration = Duration::from_secs(40);
/// And each of them so often at least.
const LEAST_TIMES: u32 = 3;
/// So often the programs of the drivers are started; each time they meet another user and another process.
const STARTS: u32 = 2;

/// Names of clients: each is told by the tables to have its own rows.
const CLIENTS: [&str; 3] = ["pool-0", "pool-1", "direct-0"];

/// With the session alias that drivers listen through.
fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let session_alias = Some(SessionAlias { database: ALIAS.to_owned(), connections: ALIAS_CONNECTIONS });
    let mut settings = Settings { session_alias, ..reacting() };
    // it says then which cancel requests it has dropped
    settings.parameters.insert("log_disconnections".to_owned(), "1".to_owned());
    // nothing steps back here
    settings.rollout.scale_down_delay_seconds = 1;
    change(&mut settings);
    settings
}

/// A database with what the operations ask for, and another role with the same rights.
async fn database() -> (Postgres, Account) {
    let rules = "host all all 127.0.0.1/32 scram-sha-256\n";
    let (postgres, account) = (Postgres::configured(rules, &[], &["max_connections=150"]).await, Account::shop());
    postgres.create(&account).await;
    let admin = postgres.admin().await;
    // one may cancel what the other runs, as both are at work when the user has changed
    admin
        .batch_execute(
            "create role shop_2 login password 'secret' in role shop; grant pg_signal_backend to shop, shop_2",
        )
        .await
        .unwrap();
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

/// How the program of a driver is started.
struct Launch {
    program: PathBuf,
    driver: &'static str,
    left_out: Vec<&'static str>,
    environment: BTreeMap<&'static str, String>,
}

/// The drivers under way, and what they have said.
struct Drivers {
    launches: Vec<Launch>,
    programs: Vec<Program>,
    /// Those that have not said that they have ended.
    running: usize,
    sender: Sender<Line>,
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
    async fn of(postgres: &Postgres, agent: &Agent, account: &Account, old_faults: bool) -> Self {
        let (sender, lines) = channel();
        let directory_of_files = TempDir::new().unwrap();
        let credentials = directory_of_files.path().join("credentials");
        let mut drivers = Self {
            launches: Vec::new(),
            programs: Vec::new(),
            running: 0,
            sender,
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
                drivers.launches.push(Launch { program: program.clone(), driver, left_out, environment });
                drivers.recorders.insert((*driver).to_owned(), recorder);
                drivers.ended.extend(CLIENTS.map(|client| (((*driver).to_owned(), format!("{driver}-{client}")), 0)));
            }
        }
        drivers
    }

    /// Starts their programs, and waits until they work.
    async fn start(&mut self) {
        for Launch { program, driver, left_out, environment } in &self.launches {
            self.programs.push(Program::start(program, driver, left_out, environment, self.sender.clone()));
            self.running += 1;
        }
        self.each_runs("at work after a start", |_| 1).await;
    }

    /// They end what they do, and all that they said is taken.
    async fn leave(&mut self) {
        let mut programs = std::mem::take(&mut self.programs);
        programs.iter_mut().for_each(Program::ask_to_end);
        tokio::task::spawn_blocking(move || drop(programs)).await.unwrap();
        self.until("every program has ended", |drivers| drivers.running == 0).await;
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
            Line::End { driver, errors } => {
                assert!(self.programs.is_empty(), "{driver} ended: {errors}");
                self.running -= 1;
            }
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
        // what has been said by now is no further operation
        while let Ok(line) = self.lines.try_recv() {
            self.take(line);
        }
        let goal: BTreeMap<(String, String), u64> = self.ended.clone();
        self.until("every driver has said who it is", |drivers| drivers.introduced.len() == drivers.recorders.len())
            .await;
        let of = |drivers: &Self, driver: &str| operations(&drivers.introduced[driver]);
        self.until(what, |drivers| {
            goal.iter().all(|(client, from)| drivers.ended[client] >= from + of(drivers, &client.0))
        })
        .await;
    }

    /// What each sent before it was logged in.
    fn startups(&self) -> BTreeMap<String, Startup> {
        self.recorders.iter().map(|(driver, recorder)| (driver.clone(), recorder.seen())).collect()
    }
}

/// The times that credentials came into force.
fn times_in_force(agent: &Agent) -> usize {
    agent.log().matches("credentials in force in every slot").count()
}

/// What changes in the life of a pool, with the drivers at work between two changes, and how often each kind of it has.
struct Changes<'a> {
    postgres: &'a Postgres,
    agent: &'a Agent,
    seq: u64,
    revision: u64,
    /// Those of the revision, beside what every one has.
    parameters: BTreeMap<&'static str, String>,
    user: &'static str,
    passwords: u32,
    made: BTreeMap<&'static str, u32>,
}

impl<'a> Changes<'a> {
    fn of(postgres: &'a Postgres, agent: &'a Agent) -> Self {
        let (parameters, made) = (BTreeMap::new(), BTreeMap::new());
        Self { postgres, agent, seq: 1, revision: 1, parameters, user: "shop", passwords: 0, made }
    }

    async fn at_work(&mut self, drivers: &mut Drivers, after: &'static str, operations: u64) {
        *self.made.entry(after).or_default() += 1;
        drivers.each_runs(&format!("at work after another {after}"), |_| operations).await;
    }

    async fn limit(&mut self, drivers: &mut Drivers) {
        self.seq += 1;
        let (seq, share) = (self.seq, if self.seq.is_multiple_of(2) { 12 } else { 24 });
        self.agent.grant(seq, share, 24);
        self.agent.until("another limit is in force", |status| status.seq == seq).await;
        self.at_work(drivers, "limit", BETWEEN).await;
    }

    async fn revise(&mut self, name: &'static str, value: String) {
        self.revision += 1;
        self.parameters.insert(name, value);
        let parameters = self.parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        self.agent.revise(self.revision, &settings(|settings| settings.parameters.extend(parameters)));
        let revision = self.revision;
        self.agent.until("the revision is in force", |status| status.revision == Some(revision)).await;
    }

    async fn revision(&mut self, drivers: &mut Drivers) {
        self.revise("server_idle_timeout", (70 + self.revision).to_string()).await;
        self.at_work(drivers, "revision", BETWEEN).await;
    }

    async fn process(&mut self, drivers: &mut Drivers) {
        self.revise("pkt_buf", (4096 + 1024 * self.revision).to_string()).await;
        self.at_work(drivers, "process", AFTER_PROCESS).await;
    }

    async fn password(&mut self, drivers: &mut Drivers) {
        self.passwords += 1;
        let password = format!("another-{}", self.passwords);
        let before = times_in_force(self.agent);
        self.agent.write("credentials/password", &password);
        drivers.refused_logins_since = Some(Instant::now());
        self.set_password(&password).await;
        self.in_force(drivers, before, &password).await;
        self.at_work(drivers, "password", BETWEEN).await;
        drivers.refused_logins_since = None;
    }

    /// Another user: in place, or by a new process where PgBouncer binds clients to theirs.
    async fn user(&mut self, drivers: &mut Drivers) {
        self.passwords += 1;
        self.user = if self.user == "shop" { "shop_2" } else { "shop" };
        let password = format!("another-{}", self.passwords);
        self.set_password(&password).await;
        let before = times_in_force(self.agent);
        self.agent.write("credentials/username", self.user);
        self.agent.write("credentials/password", &password);
        drivers.refused_logins_since = Some(Instant::now());
        self.in_force(drivers, before, &password).await;
        self.at_work(drivers, "user", AFTER_PROCESS).await;
        drivers.refused_logins_since = None;
    }

    async fn set_password(&self, password: &str) {
        let change = format!("alter role {} password '{password}'", self.user);
        self.postgres.admin().await.batch_execute(&change).await.unwrap();
    }

    /// Waits until other credentials are in force, and lets the drivers know them. A client that was just logging in may tell of it
    /// after its next operation at last.
    async fn in_force(&self, drivers: &Drivers, before: usize, password: &str) {
        until("the credentials are in force in every process", async || {
            (times_in_force(self.agent) > before).then_some(())
        })
        .await;
        self.agent.until("nothing is left to tell about them", |status| !status.message.contains("credentials")).await;
        drivers.log_in_as(self.user, password);
    }
}

/// Everything that changes: limits, revisions and passwords again and again, and what needs another process as often as drivers are
/// started. A further one would wait until the clients of the first have left, and their pools never do.
async fn changes(postgres: &Postgres, agent: &Agent, drivers: &mut Drivers) {
    drivers.changing = true;
    let mut changes = Changes::of(postgres, agent);
    let began = Instant::now();
    let mut times = 0;
    while times < LEAST_TIMES || began.elapsed() < CHANGING {
        changes.limit(drivers).await;
        changes.revision(drivers).await;
        changes.password(drivers).await;
        times += 1;
    }
    for start in 0..STARTS {
        if start > 0 {
            drivers.leave().await;
            drivers.start().await;
            agent.until("nothing of the process before is left", |status| status.other.is_none()).await;
        }
        if !pooler_remembers(Remembered::Role) {
            changes.process(drivers).await;
        }
        changes.user(drivers).await;
    }
    println!("what has changed, in {} s: {:?}", began.elapsed().as_secs(), changes.made);
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
    let mut drivers = Drivers::of(&postgres, &agent, &account, old_faults).await;
    drivers.start().await;
    drivers.each_runs("rounds in quiet", |driver| QUIET_ROUNDS * driver.operations.len() as u64).await;
    changes(&postgres, &agent, &mut drivers).await;
    drivers.each_runs("a round at the end", |driver| driver.operations.len() as u64).await;
    drivers.leave().await;
    let startups = drivers.startups();

    let operations: u64 = drivers.ended.values().sum();
    println!("{} cancels lost, {} dropped", drivers.lost_cancels, dropped_cancels(&agent));
    println!(
        "{operations} operations, {} logins with an old password; known: {:#?}",
        drivers.refused_logins, drivers.known
    );
    // the errors last: of a long report, the end is what is read
    assert!(drivers.unknown.is_empty(), "{}\nerrors of ours: {:#?}", agent.log(), drivers.unknown);
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
