//! One place that a revision runs in: its files, its process, its console, and what was read back from it.

mod accepting;
mod leaving;
mod limits;
mod logins;
mod recall;
mod session_alias;
mod takeover;
mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

pub use accepting::DEAF;
use limits::Recycling;
pub use limits::{Keep, Progress};
use takeover::Follows;
pub use takeover::{Taken, USER, When};
use thiserror::Error;
use tokio::{net::unix::pipe, sync::mpsc, task::JoinHandle};
pub use waiting::ClientPatience;

use crate::{
    agent::{
        apply::{
            files::{AUTH_FILE, FileError, INI_FILE, write_configuration},
            process::{self, follow_log},
        },
        decide::{
            arrivals::Arrivals,
            counters::{Added, Differences},
            machine::Millis,
            quiet::Quiet,
            recall::Recall,
            slot_name::SlotName,
            troubles::Heard,
            vitals::Vitals,
        },
        keeper::{Ending, Launch, Link, LinkError, Order, ProcessState, SlotState},
        observe::sockets::{self, Local},
    },
    contract::{Injection, LimitsReadBack, PoolRevision},
    pooler::pgbouncer::{
        console::{Console, ConsoleError, Deadlines},
        ini,
        limits::LimitStep,
        render::{self, Credentials, Presented, Rendered},
        tables::{Alias, Pools, Server, Snapshot},
        version::Version,
    },
};

/// How long an answer of the console may take.
pub const CONSOLE_DEADLINE: Duration = Duration::from_millis(400);
/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted, where no parameter says so.
const DEFAULT_BACKLOG: u32 = 4096;

/// Why the slot is not as it should be.
#[derive(Debug, Error)]
pub enum SlotError {
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The process could not be started.
    #[error("starting {program}: {reason}")]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// New credentials, or a new CA, could not be given to it.
    #[error("{reason}")]
    Access {
        /// Why.
        reason: String,
    },
    /// The keeper did not do as asked.
    #[error(transparent)]
    Keeper(#[from] LinkError),
    /// The console did not answer as it should.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// It said yes and did nothing.
    #[error("PgBouncer answered {step:?} and still shows {limits:?}; the change is not in force")]
    NotApplied {
        /// What was asked.
        step: LimitStep,
        /// What is read back.
        limits: LimitsReadBack,
    },
    /// It said yes, and another value is in force.
    #[error("PgBouncer was told {name} = {value} and shows {shown}")]
    NotSet {
        /// The parameter.
        name: &'static str,
        /// What was asked.
        value: String,
        /// What is read back.
        shown: String,
    },
    /// After a RELOAD, values differ from the file.
    #[error("PgBouncer did not take over {names} from the new revision; it is not in force", names = names.join(", "))]
    NotReloaded {
        /// The parameters.
        names: Vec<String>,
    },
    /// PgBouncer kills the clients of a database that its new configuration lacks.
    #[error(
        "the new configuration lacks database {database}, which {clients} clients are connected to; it is not in force before they have gone"
    )]
    WouldDrop {
        /// The database.
        database: String,
        /// Its clients.
        clients: u32,
    },
    /// A change that only a new process takes over.
    #[error("RestartRequired: {names} change only when the pod restarts", names = names.join(", "))]
    RestartRequired {
        /// The parameters.
        names: Vec<String>,
    },
}

/// What a process is started with, beside its files.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The program.
    pub program: &'a Path,
    /// Whether it takes over the sockets of its slot.
    pub inherits_sockets: bool,
    /// Whether these are those that clients come to, beside the console's.
    pub clients: bool,
    /// Files that it needs to be able to open.
    pub files: u64,
}

/// Whether the database has refused the user that a process keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UserRefused {
    No,
    /// There was no reading since: a login that the next one shows may have been earlier.
    Unread,
    Yes,
}

impl UserRefused {
    /// After a reading that showed whether one has logged in since the reading before.
    fn read(self, logged_in: bool) -> Self {
        match self {
            Self::Unread => Self::Yes,
            Self::Yes if logged_in => Self::No,
            before => before,
        }
    }
}

/// All figures of one process.
#[derive(Clone, Debug)]
pub struct SlotReading {
    /// Gauges.
    pub pools: Pools,
    /// What was added to the counters.
    pub added: Added,
    /// Server connections opened.
    pub opens: u64,
    /// Server connections open now.
    pub servers: Vec<Server>,
    /// Whether one has logged in since the last reading.
    pub logged_in: bool,
}

/// One slot.
pub struct Slot {
    name: SlotName,
    link: Link,
    directory: PathBuf,
    database: String,
    /// The console.
    pub console: Console,
    errors: mpsc::Sender<Heard>,
    /// What reads the log of the slot's processes.
    log_reader: Option<JoinHandle<()>>,
    /// It will tell of a client that it did not accept, because we saw to that.
    refusal_meant: Arc<AtomicBool>,
    /// Generation of the process that we started or took up.
    generation: Option<u64>,
    /// What was read back last; None when nothing was since the process started.
    pub limits: Option<LimitsReadBack>,
    /// What the process was given to read, and how far it was seen to follow. None after it was taken up.
    rendered: Option<Rendered>,
    follows: Follows,
    recycling: Recycling,
    /// How long its clients wait; None where that is not known.
    patience: Option<ClientPatience>,
    /// What waits until no server connection logs in.
    quiet: Quiet,
    /// Whether the process has had a share since it started, or was taken up: before, nothing is to be opened that could be waited for.
    was_open: bool,
    /// Whether server connections are kept although their time is over.
    pub keep: Keep,
    /// Number of the newest server connection that had logged in at the last reading.
    newest_login: Option<u64>,
    /// The parameters of the process that never change while it lives; None until they were read.
    fixed: Option<BTreeMap<String, String>>,
    /// What the process opens server connections with, and lets clients in with.
    credentials: Option<Credentials>,
    /// What it shows the database.
    presented: Option<Presented>,
    /// Whether the database has refused the user that the process keeps although another one is in force, and let none in since.
    refused: UserRefused,
    /// The version of the pooler; None until it is known.
    pub version: Option<Version>,
    /// Clients that have to connect anew.
    recall: Option<Recall>,
    /// The revision that the process runs.
    pub runs: Option<PoolRevision>,
    /// The latest `reconnectedAt` that its server connections were renewed for; they may be newer by themselves.
    reconnected_at: Option<String>,
    /// The figures of the last reading, and when it was.
    pub pools: Option<(Millis, Pools)>,
    /// The session alias of the process, read back with the limits. It has the same name and size for the process's whole life.
    pub alias: Option<Alias>,
    /// Figures of its alias, of the same reading.
    pub alias_pools: Pools,
    /// The process was running when we began: what it had counted before was told by another agent.
    pub taken_up: bool,
    /// Whether the clients that came before were counted.
    logins_known: bool,
    /// When the slot began.
    begin: Instant,
    differences: Differences,
    arrivals: Arrivals,
    /// Statements that its clients had prepared, when it was asked for its clients last; 0 before.
    pub prepared_statements: u32,
    /// Clients that ended with the process, not told yet.
    cut: u32,
    /// Since when more is held than the process may hold.
    pub releasing_since: Option<Millis>,
}

impl Slot {
    /// A slot, with the process that another agent left in it.
    pub fn new(name: SlotName, link: Link, run_dir: &Path, injection: &Injection, errors: mpsc::Sender<Heard>) -> Self {
        let directory = Self::directory(name, run_dir);
        let left = link.slot(name);
        let runs = matches!(left.process, ProcessState::Running { .. });
        let mut slot = Self {
            name,
            link,
            console: Console::new(&directory, injection.client.port, CONSOLE_DEADLINE),
            directory,
            database: injection.upstream.database.clone(),
            errors,
            log_reader: None,
            refusal_meant: Arc::default(),
            generation: runs.then_some(left.generation),
            limits: None,
            rendered: None,
            follows: Follows::Unproven,
            recycling: Recycling::AsConfigured,
            patience: (!runs).then_some(ClientPatience::AsConfigured),
            quiet: Quiet::default(),
            was_open: false,
            keep: Keep::No,
            newest_login: None,
            fixed: None,
            credentials: None,
            presented: None,
            refused: UserRefused::No,
            version: None,
            recall: None,
            runs: None,
            reconnected_at: None,
            pools: None,
            alias: None,
            alias_pools: Pools::default(),
            taken_up: runs,
            logins_known: !runs,
            begin: Instant::now(),
            differences: Differences::default(),
            arrivals: Arrivals::default(),
            prepared_statements: 0,
            cut: 0,
            releasing_since: None,
        };
        if runs {
            slot.credentials = slot.given();
            let ini = fs::read_to_string(slot.directory.join(INI_FILE)).ok();
            slot.presented = ini.and_then(|ini| render::presented(&ini));
            slot.resume_recall();
            slot.read_log();
        }
        slot
    }

    /// What another agent gave to the process.
    fn given(&self) -> Option<Credentials> {
        let text = fs::read_to_string(self.directory.join(AUTH_FILE)).ok()?;
        let (username, password) = ini::parse_auth_file(&text).ok()?.pop()?;
        Some(Credentials { username, password })
    }

    /// What the process opens server connections with, and lets clients in with; None without one.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// What the process shows the database; None without a certificate for it.
    pub fn presented(&self) -> Option<&Presented> {
        self.presented.as_ref()
    }

    /// Where a slot's files and its console's socket are.
    pub fn directory(name: SlotName, run_dir: &Path) -> PathBuf {
        run_dir.join(name.as_str())
    }

    /// Where the auth file of a slot stands.
    pub fn auth_file(name: SlotName, run_dir: &Path) -> PathBuf {
        Self::directory(name, run_dir).join(AUTH_FILE)
    }

    /// What the process was given as a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let parameters = &self.rendered.as_ref()?.parameters;
        parameters.iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value.as_str())
    }

    /// Writes the files and starts a process.
    ///
    /// # Errors
    /// [`SlotError`].
    pub async fn start(&mut self, start: Start<'_>, rendered: Rendered) -> Result<(), SlotError> {
        self.forget();
        let ini = write_configuration(&self.directory, &rendered)?;
        let backlog = rendered.parameters.iter().find(|(name, _)| name == "listen_backlog");
        let generation = self.link.slot(self.name).generation + 1;
        let launch = Launch {
            generation,
            program: start.program.to_owned(),
            ini,
            console: start.inherits_sockets.then(|| self.console.socket().to_owned()),
            clients: start.clients,
            log: self.log(),
            backlog: backlog.and_then(|(_, backlog)| backlog.parse().ok()).unwrap_or(DEFAULT_BACKLOG),
            files: start.files,
        };
        let state = self.link.order(&Order::Start { slot: self.name, launch }).await?;
        if let ProcessState::NotStarted { reason } = &state.slot(self.name).process {
            return Err(SlotError::NotStarted { program: start.program.to_owned(), reason: reason.clone() });
        }
        self.generation = Some(generation);
        (self.taken_up, self.logins_known) = (false, true);
        self.differences.restarted(self.microseconds());
        self.arrivals.restarted();
        self.prepared_statements = 0;
        self.read_log();
        self.works_with(&rendered);
        self.rendered = Some(rendered);
        // it takes over the whole file or ends
        self.follows = Follows::Proven;
        Ok(())
    }

    /// What the process logs in to the database with from now on.
    fn works_with(&mut self, rendered: &Rendered) {
        self.credentials = Some(rendered.credentials.clone());
        self.presented = render::presented(&rendered.ini);
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Reads what the slot's processes log. The pipe outlives them.
    fn read_log(&mut self) {
        if self.log_reader.is_some() {
            return;
        }
        match pipe::OpenOptions::new().open_receiver(self.log()) {
            Ok(log) => {
                self.log_reader =
                    Some(tokio::spawn(follow_log(self.name, log, self.errors.clone(), self.refusal_meant.clone())));
            }
            Err(error) => tracing::warn!("the pooler's log cannot be read: {error}"),
        }
    }

    /// Which one it is.
    pub fn name(&self) -> SlotName {
        self.name
    }

    /// Process id; None when no process of ours runs.
    pub fn pid(&self) -> Option<i32> {
        let state = self.link.slot(self.name);
        match state.process {
            ProcessState::Running { pid } if Some(state.generation) == self.generation => Some(pid),
            _ => None,
        }
    }

    /// Whether the process runs. A process that has ended is forgotten, and how it ended is logged.
    pub fn is_running(&mut self) -> bool {
        if self.generation.is_some() && self.pid().is_none() {
            let state = self.link.slot(self.name);
            if let ProcessState::Ended { status } = state.process {
                tracing::warn!(slot = self.name.as_str(), status, "pgbouncer ended");
            }
            // before, those that it shows are we, with a query that proves it
            if state.had_clients {
                let pools = self.pools.map_or(self.alias_pools, |(_, pools)| pools + self.alias_pools);
                self.cut = self.cut.saturating_add(pools.clients_active.saturating_add(pools.clients_waiting));
            }
            self.forget();
        }
        self.generation.is_some()
    }

    /// Clients that were cut since the last call because the process ended, as the last reading counted them.
    pub fn take_cut(&mut self) -> u32 {
        std::mem::take(&mut self.cut)
    }

    /// What the kernel knows of the process; None where it does not tell.
    pub fn vitals(&self) -> Option<Vitals> {
        process::vitals(self.pid()?)
    }

    async fn signal(&mut self, signal: Ending, deadline: Duration) -> bool {
        let ended = |state: &SlotState| !matches!(state.process, ProcessState::Running { .. });
        match self.link.order(&Order::Signal { slot: self.name, signal }).await {
            Ok(_) => self.link.until(self.name, deadline, ended).await,
            Err(error) => {
                tracing::warn!("ending pgbouncer: {error}");
                false
            }
        }
    }

    /// Ends the process at once.
    pub async fn kill(&mut self) {
        if self.pid().is_some() {
            self.signal(Ending::AtOnce, KILL_DEADLINE).await;
        }
        self.is_running();
    }

    /// Asks the process to end once no transaction runs in it any more. One that was told to end with its last client ends at
    /// once. Nobody is connected to it: the last reading may say otherwise.
    pub async fn stop(&mut self) {
        for pools in self.pools.iter_mut().map(|(_, pools)| pools).chain([&mut self.alias_pools]) {
            (pools.clients_active, pools.clients_waiting) = (0, 0);
        }
        if self.pid().is_some() {
            self.signal(Ending::AfterTransactions, Duration::ZERO).await;
        }
    }

    fn forget(&mut self) {
        self.generation = None;
        self.limits = None;
        self.rendered = None;
        self.follows = Follows::Unproven;
        self.recycling = Recycling::AsConfigured;
        self.patience = Some(ClientPatience::AsConfigured);
        self.quiet = Quiet::default();
        self.was_open = false;
        self.newest_login = None;
        self.fixed = None;
        self.forget_recall();
        (self.credentials, self.presented) = (None, None);
        self.refused = UserRefused::No;
        self.runs = None;
        self.reconnected_at = None;
        self.pools = None;
        (self.alias, self.alias_pools) = (None, Pools::default());
        self.releasing_since = None;
        self.console.disconnect();
        self.console.set_deadlines(Deadlines::of(CONSOLE_DEADLINE));
    }

    /// The most that the process could hold now, its session alias left aside; None while that is unknown.
    pub fn bound(&self) -> Option<u32> {
        if self.is_mute() {
            return self.leaving();
        }
        let (limits, (_, pools)) = (self.limits?, self.pools?);
        let most = if limits.paused { 0 } else { limits.max_db_connections };
        Some(most.max(pools.held()))
    }

    /// Server connections that the process holds, as the last reading counted them; the most that it could hold where nobody
    /// can ask it. None while that is unknown.
    pub fn held(&self) -> Option<u32> {
        if self.is_mute() { self.leaving() } else { self.pools.map(|(_, pools)| pools.held()) }
    }

    /// The database has refused the user that the process keeps.
    pub fn was_refused(&mut self) {
        self.refused = UserRefused::Unread;
    }

    /// Whether a server connection of the process that ends could not be opened again, because the user that it keeps is refused.
    pub fn is_refused(&self) -> bool {
        self.refused != UserRefused::No
    }

    /// Whether its clients get nothing any more: none of its server connections is left, and none can be opened.
    pub fn is_forlorn(&self) -> bool {
        self.is_refused() && self.held() == Some(0)
    }

    /// Reads the gauges.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn read_pools(&mut self, now: Millis) -> Result<Pools, ConsoleError> {
        let (pools, alias) = self.console.pools(&self.database).await?;
        self.pools = Some((now, pools));
        self.alias_pools = alias;
        Ok(pools)
    }

    /// Reads all figures; the counters are what was added since the last reading. `leaked` are the server connections that
    /// clients were seen to hold and do nothing with.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn read(&mut self, now: Millis, leaked: &BTreeSet<Local>) -> Result<SlotReading, ConsoleError> {
        let seen = self.console.snapshot(&self.database).await?;
        let at_microseconds = self.microseconds();
        let leaked =
            seen.servers.iter().filter(|server| sockets::local(server).is_some_and(|local| leaked.contains(&local)));
        let leaked = leaked.map(|server| server.id).collect();
        let added = self.differences.feed(at_microseconds, &seen, &leaked);
        let Snapshot { pools, alias, servers, .. } = seen;
        self.pools = Some((now, pools));
        self.alias_pools = alias;
        let opens = self.arrivals.opens(servers.iter().map(|server| server.id));
        let newest = servers.iter().filter(|server| server.logged_in).map(|server| server.id).max();
        let logged_in = newest > self.newest_login;
        self.newest_login = newest.max(self.newest_login);
        self.refused = self.refused.read(logged_in);
        // what a process had done before we came was counted by another agent
        let counts = !std::mem::take(&mut self.taken_up);
        Ok(SlotReading {
            pools,
            added: if counts { added } else { Added::default() },
            opens: if counts { opens } else { 0 },
            servers,
            logged_in,
        })
    }

    /// Microseconds since the slot began.
    fn microseconds(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Looks at all clients: takes in what they have prepared, and yields how many came since the last look.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn read_logins(&mut self) -> Result<u64, ConsoleError> {
        let count = self.console.count_clients().await?;
        self.prepared_statements = count.prepared_statements;
        let logins = self.arrivals.clients(count.newest);
        Ok(if std::mem::replace(&mut self.logins_known, true) { logins } else { 0 })
    }

    /// Lets running transactions finish, at most so long, and ends the process.
    pub async fn end(&mut self, grace: Duration) {
        if self.leaving().is_some() {
            self.end_leaving(grace).await;
        } else if self.pid().is_some() && !self.signal(Ending::AfterTransactions, grace).await {
            tracing::warn!(
                seconds = grace.as_secs(),
                "transactions still run at the end of the grace period; they are cut"
            );
            self.kill().await;
        }
        self.forget();
    }
}
