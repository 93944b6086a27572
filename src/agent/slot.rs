//! One place that a revision runs in: its files, its process, its console, and what was read back from it.

mod alias;
mod logins;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use logins::{Seen, ends_server_connections};
use thiserror::Error;
use tokio::{net::unix::pipe, sync::mpsc, task::JoinHandle};

use super::{
    arrivals::Arrivals,
    counters::Differences,
    files::{AUTH_FILE, FileError, write_configuration},
    keeper::{Ending, Launch, Link, LinkError, Order, ProcessState, SlotName, SlotState},
    machine::Millis,
    process::{self, follow_log},
    quiet::Quiet,
    vitals::Vitals,
};
use crate::{
    contract::{Injection, LimitsReadBack, PoolRevision},
    pooler::pgbouncer::{
        console::{Console, ConsoleError, Deadlines},
        ini,
        limits::{Step, Wanted, next_step},
        log::PoolerError,
        parameters::{self, Effect},
        render::Rendered,
        tables::{Alias, Pools, Server, Stats},
    },
};

/// How long an answer of the console may take.
pub const CONSOLE_DEADLINE: Duration = Duration::from_millis(400);
/// How long answers of a console that lets nobody in any more may take: a connection that is given up is lost for good.
const LAST_DEADLINES: Deadlines = Deadlines { answer: Duration::from_secs(2), pause: Duration::from_millis(500) };
/// Connections to such a console beside the one in use.
const SPARE_SESSIONS: usize = 8;
/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted, where no parameter says so.
const DEFAULT_BACKLOG: u32 = 4096;
/// `server_lifetime` of connections that are kept: 30 days, the longest that a user may set.
const LONGEST_LIFETIME: &str = "2592000";
/// Steps taken in one go; more would mean that the console plays with us.
const MOST_STEPS: usize = 12;

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
        step: Step,
        /// What is read back.
        limits: LimitsReadBack,
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

/// How far the limits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// As wanted, read back.
    InForce,
    /// More is held than the share allows; transactions have to end first.
    Releasing {
        /// Server connections that have to go.
        excess: u32,
    },
}

/// When server connections end although nothing is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recycling {
    /// As the settings say.
    AsConfigured,
    /// As soon as their transactions end.
    Soon,
    /// Not before it can be done again.
    Never,
}

/// Whether server connections are kept although their time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// They end as the settings say.
    No,
    /// Unless the share needs their place: others may not be let in soon.
    UnlessInTheWay,
    /// No other could be opened.
    Always,
}

/// Whether the process works with what it was given to read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Follows {
    /// It started with it, or all of it was read back.
    Proven,
    /// Not read back, or other values were.
    Unproven,
    /// All but these parameters was read back; only a new process takes them over.
    NeedsRestart(Vec<String>),
}

/// What became of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was in force already.
    Already,
    /// It is now, read back.
    Now,
    /// Not before server connections that log in have done so: to be asked again in the next round.
    Postponed,
}

/// When a RELOAD that ends server connections is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once: nobody is served by the process.
    AtOnce,
    /// As soon as none logs in, seen from this time on.
    Quiet(Millis),
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

/// All figures of one process.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Gauges.
    pub pools: Pools,
    /// What was added to the counters.
    pub added: Stats,
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
    errors: mpsc::Sender<PoolerError>,
    /// What reads the log of the slot's processes.
    log_reader: Option<JoinHandle<()>>,
    /// Generation of the process that we started or took up.
    generation: Option<u64>,
    /// What was read back last; None when nothing was since the process started.
    pub limits: Option<LimitsReadBack>,
    /// What the process was given to read, and how far it was seen to follow. None after it was taken up.
    rendered: Option<Rendered>,
    follows: Follows,
    recycling: Recycling,
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
    /// The revision that the process runs.
    pub runs: Option<PoolRevision>,
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
    differences: Differences,
    arrivals: Arrivals,
    /// Clients that ended with the process, not told yet.
    cut: u32,
    /// Since when more is held than the process may hold.
    pub releasing_since: Option<Millis>,
}

impl Slot {
    /// A slot, with the process that another agent left in it.
    pub fn new(
        name: SlotName,
        link: Link,
        run_dir: &Path,
        injection: &Injection,
        errors: mpsc::Sender<PoolerError>,
    ) -> Self {
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
            generation: runs.then_some(left.generation),
            limits: None,
            rendered: None,
            follows: Follows::Unproven,
            recycling: Recycling::AsConfigured,
            quiet: Quiet::default(),
            was_open: false,
            keep: Keep::No,
            newest_login: None,
            fixed: None,
            runs: None,
            pools: None,
            alias: None,
            alias_pools: Pools::default(),
            taken_up: runs,
            logins_known: !runs,
            differences: Differences::default(),
            arrivals: Arrivals::default(),
            cut: 0,
            releasing_since: None,
        };
        if runs {
            slot.read_log();
        }
        slot
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
        self.differences.restarted();
        self.arrivals.restarted();
        self.read_log();
        self.rendered = Some(rendered);
        // it takes over the whole file or ends
        self.follows = Follows::Proven;
        Ok(())
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
                self.log_reader = Some(tokio::spawn(follow_log(log, self.errors.clone())));
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
        self.quiet = Quiet::default();
        self.was_open = false;
        self.newest_login = None;
        self.fixed = None;
        self.runs = None;
        self.pools = None;
        (self.alias, self.alias_pools) = (None, Pools::default());
        self.releasing_since = None;
        self.console.disconnect();
        self.console.set_deadlines(Deadlines::of(CONSOLE_DEADLINE));
    }

    /// The most server connections that the process may open, once it was told to end with its last client.
    pub fn leaving(&self) -> Option<u32> {
        self.pid()?;
        self.link.slot(self.name).leaving
    }

    /// Whether the process cannot be asked anything any more: it has closed its console to all but those who were there.
    pub fn is_mute(&self) -> bool {
        self.console.connections() == 0 && self.leaving().is_some()
    }

    /// Forgets the figures of one that is mute: nobody knows how many clients end with it.
    pub fn forget_figures(&mut self) {
        (self.pools, self.alias_pools) = (None, Pools::default());
    }

    /// Whether the next answer that does not come makes it mute.
    pub fn is_nearly_mute(&self) -> bool {
        self.console.connections() <= 1 && self.leaving().is_some()
    }

    /// Makes the connections to the console that are needed once it lets nobody in any more.
    ///
    /// # Errors
    /// [`ConsoleError`]: there are fewer, perhaps none.
    pub async fn lay_in_sessions(&mut self) -> Result<(), ConsoleError> {
        self.console.run("SHOW VERSION").await?;
        self.console.lay_in(SPARE_SESSIONS).await
    }

    /// The connections to the console have to last.
    pub fn keep_sessions(&mut self) {
        self.console.set_deadlines(LAST_DEADLINES);
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

    /// Reads all figures; the counters are what was added since the last reading.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn read(&mut self, now: Millis) -> Result<Reading, ConsoleError> {
        // one after the other, and none after one that failed
        let pools = self.read_pools(now).await?;
        let stats = self.console.stats(&self.database).await?;
        let servers = self.console.servers(&self.database).await?;
        let added = self.differences.feed(stats, pools.active.saturating_add(pools.clients_waiting));
        let opens = self.arrivals.opens(servers.iter().map(|server| server.id));
        let newest = servers.iter().filter(|server| server.logged_in).map(|server| server.id).max();
        let logged_in = newest > self.newest_login;
        self.newest_login = newest.max(self.newest_login);
        // what a process had done before we came was counted by another agent
        let counts = !std::mem::take(&mut self.taken_up);
        Ok(Reading {
            pools,
            added: if counts { added } else { Stats::default() },
            opens: if counts { opens } else { 0 },
            servers,
            logged_in,
        })
    }

    /// Clients that came since the last look.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn read_logins(&mut self) -> Result<u64, ConsoleError> {
        let logins = self.arrivals.clients(self.console.newest_client().await?);
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

    /// The same for one that was told to end with its last client: another signal would cut them all at once.
    async fn end_leaving(&mut self, grace: Duration) {
        let command = format!("PAUSE \"{}\"", self.database);
        if self.is_mute() {
            let ended = |state: &SlotState| !matches!(state.process, ProcessState::Running { .. });
            self.link.until(self.name, grace, ended).await;
        } else if let Err(error) = self.console.run_within(&command, grace).await {
            tracing::warn!("transactions still run at the end of the grace period; they are cut: {error}");
        }
        self.kill().await;
    }

    /// Names of the parameters that keep the process from running `rendered`, because only a new one takes them over.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn needs_process(&mut self, rendered: &Rendered) -> Result<Vec<String>, SlotError> {
        let fixed = match &mut self.fixed {
            Some(fixed) => fixed,
            unknown => {
                let config = self.console.config().await?;
                unknown.insert(config.into_iter().filter(|(name, _)| needs_restart(name)).collect())
            }
        };
        let wanted: Vec<_> = rendered.parameters.iter().filter(|(name, _)| needs_restart(name)).cloned().collect();
        let mut names = differences(&wanted, fixed);
        if self.limits.is_none() {
            self.read_limits().await?;
        }
        names.extend(self.other_alias(rendered));
        Ok(names)
    }

    /// Reads the limits back.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn read_limits(&mut self) -> Result<LimitsReadBack, SlotError> {
        let (limits, alias) = self.console.limits(&self.database).await?;
        (self.limits, self.alias) = (Some(limits), alias);
        Ok(limits)
    }

    /// Brings the limits to what is wanted, step by step, each read back. While logins are waited for, no further than that allows.
    ///
    /// # Errors
    /// [`SlotError`]; what was read back last stays in [`Slot::limits`].
    pub async fn converge(&mut self, at: Millis, wanted: Wanted, mut held: Option<u32>) -> Result<Progress, SlotError> {
        self.quiet.expire(at);
        let bounds = self.quiet.bounds();
        let wanted = bounds.map_or(wanted, |bounds| Wanted {
            limit: wanted.limit.min(bounds.pool_size),
            warm: bounds.min_pool_size,
            ..wanted
        });
        let mut now = match self.limits {
            Some(limits) => limits,
            None => self.read_limits().await?,
        };
        if self.keep == Keep::Always || self.keep == Keep::UnlessInTheWay && self.recycling != Recycling::Soon {
            self.recycle(Recycling::Never).await?;
        }
        let mut last = Step::Done;
        for _ in 0..MOST_STEPS {
            let step = next_step(&now, held, wanted);
            if step != Step::Done && step == last {
                return Err(SlotError::NotApplied { step, limits: now });
            }
            match step {
                Step::Done => {
                    self.was_open |= wanted.share > 0;
                    let kept = self.keep != Keep::No || bounds.is_some() && self.recycling == Recycling::Never;
                    self.recycle(if kept { Recycling::Never } else { Recycling::AsConfigured }).await?;
                    return Ok(Progress::InForce);
                }
                Step::AwaitRelease { excess } => {
                    return Ok(Progress::Releasing { excess });
                }
                Step::Pause => {
                    let (pools, _) = self.console.pools(&self.database).await?;
                    let is_used = pools.held() > 0 || pools.clients_active > 0 || pools.clients_waiting > 0;
                    if self.was_open && is_used && !self.is_quiet(at).await? {
                        return Ok(Progress::Releasing { excess: pools.held().max(1) });
                    }
                    self.pause().await?;
                }
                Step::Resume => self.console.resume(&self.database).await?,
                Step::PoolSize(n) => self.console.set("default_pool_size", &n.to_string()).await?,
                Step::MinPoolSize(n) => self.console.set("min_pool_size", &n.to_string()).await?,
                Step::MaxDbConnections(n) => self.console.set("max_db_connections", &n.to_string()).await?,
            }
            last = step;
            now = self.read_limits().await?;
            held = Some(self.console.pools(&self.database).await?.0.held());
        }
        Err(SlotError::NotApplied { step: last, limits: now })
    }

    /// Makes busy server connections close as their transactions end, although clients wait for them: PgBouncer closes a
    /// connection past `server_lifetime` instead of handing it on, about one per `1 s / pool size`. Not while connections are
    /// kept.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn shorten_lifetime(&mut self) -> Result<(), SlotError> {
        if self.keep == Keep::Always { Ok(()) } else { self.recycle(Recycling::Soon).await }
    }

    async fn recycle(&mut self, wanted: Recycling) -> Result<(), SlotError> {
        if self.recycling == wanted {
            return Ok(());
        }
        let configured = |name: &str| {
            let parameters = &self.rendered.as_ref()?.parameters;
            parameters.iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value.clone())
        };
        let lifetime = match wanted {
            Recycling::AsConfigured => configured("server_lifetime"),
            Recycling::Soon => Some("1".to_owned()),
            Recycling::Never => Some(LONGEST_LIFETIME.to_owned()),
        };
        let idle_timeout = match (self.recycling, wanted) {
            (_, Recycling::Never) => Some("0".to_owned()),
            (Recycling::Never, _) => configured("server_idle_timeout"),
            _ => None,
        };
        for (name, value) in [("server_lifetime", lifetime), ("server_idle_timeout", idle_timeout)] {
            if let Some(value) = value {
                self.console.set(name, &value).await?;
            }
        }
        self.recycling = wanted;
        Ok(())
    }

    /// Has the process work with `rendered`, its limits left aside (those are changed by SET). A RELOAD is asked for only
    /// when it could change something.
    ///
    /// # Errors
    /// [`SlotError`]: `RestartRequired` until a new process has taken over the rest.
    pub async fn take_over(&mut self, rendered: Rendered, when: When) -> Result<Taken, SlotError> {
        if !self.differs_from(&rendered) {
            match &self.follows {
                Follows::Proven => return Ok(Taken::Already),
                Follows::NeedsRestart(names) => return Err(SlotError::RestartRequired { names: names.clone() }),
                Follows::Unproven => {}
            }
        }
        if self.limits.is_none() {
            self.read_limits().await?;
        }
        if let Some(name) = self.other_alias(&rendered) {
            return Err(SlotError::RestartRequired { names: vec![name] });
        }
        self.keeps_databases(&rendered).await?;
        let before = self.rendered.as_ref().filter(|_| self.follows != Follows::Unproven);
        let ends_logins = ends_server_connections(before, &rendered);
        match when {
            When::Quiet(now) if ends_logins => {
                if self.look_for_logins(now).await? == Seen::SomeLogIn {
                    return Ok(Taken::Postponed);
                }
                write_configuration(&self.directory, &rendered)?;
                // writing may have taken a while
                if !self.is_quiet(now).await? {
                    return Ok(Taken::Postponed);
                }
            }
            When::AtOnce | When::Quiet(_) => {
                write_configuration(&self.directory, &rendered)?;
            }
        }
        self.follows = Follows::Unproven;
        self.reload(rendered).await?;
        self.follows = Follows::Proven;
        Ok(Taken::Now)
    }

    /// Whether the process was given something else.
    fn differs_from(&self, rendered: &Rendered) -> bool {
        let fixed = |rendered: &Rendered| -> Vec<(String, String)> {
            rendered.parameters.iter().filter(|(name, _)| !is_limit(name)).cloned().collect()
        };
        self.rendered.as_ref().is_none_or(|now| {
            now.auth_file != rendered.auth_file
                || now.certificates != rendered.certificates
                || databases_of(&now.ini) != databases_of(&rendered.ini)
                || fixed(now) != fixed(rendered)
        })
    }

    /// Refuses files that lack a database with clients: a RELOAD would cut them.
    async fn keeps_databases(&mut self, rendered: &Rendered) -> Result<(), SlotError> {
        // what was rendered has been read back once already
        let kept = ini::parse(&rendered.ini).unwrap_or_default();
        let is_kept = |name: &str| kept.iter().any(|entry| entry.section == "databases" && entry.key == name);
        match self.console.databases_in_use().await?.into_iter().find(|(database, _)| !is_kept(database)) {
            Some((database, clients)) => Err(SlotError::WouldDrop { database, clients }),
            None => Ok(()),
        }
    }

    /// Has the process take over the new files; everything is read back.
    async fn reload(&mut self, rendered: Rendered) -> Result<(), SlotError> {
        let parameters = self.rendered.insert(rendered).parameters.clone();
        self.recycling = Recycling::AsConfigured;
        self.limits = None;
        let done = self.console.reload().await;
        self.quiet.is_over();
        done?;
        let config = self.console.config().await?;
        let names = differences(&parameters, &config);
        let (restart, missed): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| needs_restart(name));
        self.read_limits().await?;
        if !missed.is_empty() {
            return Err(SlotError::NotReloaded { names: missed });
        }
        if !restart.is_empty() {
            self.follows = Follows::NeedsRestart(restart.clone());
            return Err(SlotError::RestartRequired { names: restart });
        }
        Ok(())
    }
}

fn is_limit(name: &str) -> bool {
    matches!(name, "default_pool_size" | "min_pool_size" | "max_db_connections")
}

fn needs_restart(name: &str) -> bool {
    matches!(name, "listen_addr" | "listen_port" | "unix_socket_dir" | "unix_socket_mode" | "resolv_conf")
        || parameters::find(name).is_some_and(|parameter| parameter.effect == Effect::Restart)
}

fn databases_of(ini: &str) -> Option<&str> {
    ini.split_once("[pgbouncer]").map(|(databases, _)| databases)
}

/// Names of the parameters whose value in force is not the rendered one.
fn differences(rendered: &[(String, String)], in_force: &BTreeMap<String, String>) -> Vec<String> {
    let same = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() < 1e-6,
        _ => a == b,
    };
    // SHOW CONFIG cuts long values to 255 bytes and prints the mode of the socket in its own way.
    let comparable = |name: &str, value: &str| value.len() < 250 && name != "unix_socket_mode";
    rendered
        .iter()
        .filter(|(name, value)| {
            comparable(name, value) && in_force.get(name).is_none_or(|in_force| !same(value, in_force))
        })
        .map(|(name, _)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_numbers_where_they_are_numbers() {
        let rendered = [("server_login_retry", "1.250"), ("pool_mode", "transaction"), ("pkt_buf", "4096")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let in_force = [("server_login_retry", "1.25"), ("pool_mode", "session")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(differences(&rendered, &in_force), ["pool_mode", "pkt_buf"]);
    }
}
