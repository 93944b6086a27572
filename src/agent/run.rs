//! The agent's loop: one thread, twenty rounds a second.
//!
//! A round looks at the configuration volume and at the process; every half second it asks the console whether it lives,
//! every second it takes a reading and decides. What a round finds is published for the HTTP server.

use std::{
    net::{IpAddr, Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep_until,
};

use super::{
    arrivals::Arrivals,
    counters::Differences,
    inputs::Inputs,
    last_good::{self, LastGood},
    machine::{Action, ConsoleSeen, Machine, Millis, Observation},
    metrics::Metrics,
    options::RunOptions,
    peaks::Peak,
    process::{self, ProcessError},
    reaction::{Decided, PoolerReading, Reaction},
    server::{self, Published},
    slot::{Progress, Slot, SlotError},
    sockets::{self, LeakWatch},
    wish::{Granted, Wish},
};
use crate::{
    contract::{
        ContractError, Document, Held, Injection, LimitSource, LimitsReadBack, SlotStatus, StatusReport, names,
    },
    pooler::pgbouncer::{
        limits::Wanted,
        log::PoolerError,
        render::{self, Place, RenderError, RenderInput, Rendered},
        tables::{Pools, Server},
        version::{RECOMMENDED, Support, Version},
    },
};

/// One round.
const ROUND: Duration = Duration::from_millis(50);
/// Between two questions whether the console lives.
const PING: Millis = 500;
/// Between two readings.
const READING: Millis = 1000;
/// Between two looks at a shrink that waits for transactions to end.
const RELEASE_LOOK: Millis = 100;
/// A shrink that waits longer than this for a busy pool shortens the lifetime of its server connections.
const RELEASE_PATIENCE: Millis = 1000;
/// Between two reads of all limits although nothing changed.
const LIMITS_SWEEP: Millis = 15_000;
/// Between two looks at all clients, which cost more than a reading.
const CLIENTS_LOOK: Millis = 15_000;
/// Between two looks for leaks: often enough to see each silence before keepalives disturb it.
const LEAKS_LOOK: Millis = 4000;
/// A round that begins so late means that we lack CPU.
const LATE: Duration = Duration::from_millis(250);
/// Errors of the pooler's log that may wait to be counted.
const ERROR_QUEUE: usize = 1024;
/// Trust stores of common images.
const TRUST_STORES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why the agent ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// What was fixed at injection cannot be read.
    #[error(transparent)]
    Injection(#[from] ContractError),
    /// What was fixed at injection cannot be represented by the pooler.
    #[error("environment variable SLUICE_INJECTION: {0}")]
    Unrepresentable(#[from] RenderError),
    /// The port is not free.
    #[error("listening on port {port}: {source}")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("receiving signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// What stands in the way of the newest revision or grant.
#[derive(Default)]
struct Problems {
    program: Option<String>,
    configuration: Option<String>,
    reload: Option<String>,
    limits: Option<String>,
    reading: Option<String>,
    files: Option<String>,
    state: Option<String>,
}

struct Agent {
    options: RunOptions,
    injection: Injection,
    place: Place,
    program: Option<PathBuf>,
    version: Option<Version>,
    inputs: Inputs,
    wish: Wish,
    machine: Machine,
    slot: Slot,
    published: Arc<Published>,
    errors: (mpsc::Sender<PoolerError>, mpsc::Receiver<PoolerError>),
    begin: Instant,
    problems: Problems,
    /// Revision that the process runs.
    revision: Option<u64>,
    /// Grant whose share is in force.
    in_force: Option<Granted>,
    limit: u32,
    held: Option<Held>,
    differences: Differences,
    peaks: [(&'static str, Peak, Peak); 2],
    reaction: Reaction,
    arrivals: Arrivals,
    leaked: Option<u32>,
    leaks: LeakWatch,
    leaks_visible: bool,
    releasing_since: Option<Millis>,
    stored: Option<LastGood>,
    next: Schedule,
}

#[derive(Default)]
struct Schedule {
    ping: Millis,
    reading: Millis,
    release: Millis,
    sweep: Millis,
    leaks: Millis,
    clients: Millis,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`]: what was fixed at injection cannot work, or the port is taken.
pub async fn run(options: RunOptions) -> Result<(), RunError> {
    let injection = Injection::parse(&options.injection)?;
    render::check_database(&injection.upstream.database)?;
    render::check_host(&injection.upstream.host)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let listener = server::bind(options.listen, names::METRICS_PORT).await.map_err(|source| RunError::Listen {
        port: options.listen.map_or(names::METRICS_PORT, |address| address.port()),
        source,
    })?;
    let mut agent = Agent::new(options, injection);
    let routes = server::router(agent.published.clone());
    let http = tokio::spawn(async move { axum::serve(listener, routes).await });
    agent.find_program().await;

    let mut due = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(due) => {
                let punctual = due.elapsed() < LATE;
                agent.round(punctual).await;
                due = (due + ROUND).max(tokio::time::Instant::now());
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("asked to end: running transactions may finish");
    agent.slot.end(agent.options.grace()).await;
    http.abort();
    Ok(())
}

impl Agent {
    fn new(options: RunOptions, injection: Injection) -> Self {
        let mut problems = Problems::default();
        let stored = last_good::load(&options.state_dir, &injection.pool).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            problems.state = Some(error.to_string());
            None
        });
        let wish = Wish::new(&injection.pool, stored.clone());
        let published = Arc::new(Published::new(Metrics::new(&injection), empty_report(&options, &injection)));
        Self {
            place: place(&options, &injection),
            program: None,
            version: None,
            inputs: Inputs::new(&options.config_dir),
            wish,
            machine: Machine::default(),
            slot: Slot::new(&options.run_dir, injection.client.port, &injection.upstream.database),
            published,
            errors: mpsc::channel(ERROR_QUEUE),
            begin: Instant::now(),
            problems,
            revision: None,
            in_force: None,
            limit: 0,
            held: None,
            differences: Differences::default(),
            peaks: [("5s", 5000), ("30s", 30_000)].map(|(name, window)| (name, Peak::new(window), Peak::new(window))),
            reaction: Reaction::default(),
            arrivals: Arrivals::default(),
            leaked: None,
            leaks: LeakWatch::default(),
            leaks_visible: true,
            releasing_since: None,
            stored,
            next: Schedule::default(),
            options,
            injection,
        }
    }

    fn now(&self) -> Millis {
        Millis::try_from(self.begin.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    async fn find_program(&mut self) {
        let path = std::env::var_os("PATH");
        let found = match process::find(self.options.pgbouncer.as_deref(), path.as_deref()) {
            Ok(program) => process::version(&program).await.map(|version| (program, version)),
            Err(error) => Err(error),
        };
        match found {
            Ok((program, version)) => {
                if version.support() == Support::Warned {
                    tracing::warn!(
                        "PgBouncer {version} has known vulnerabilities (CVE-2026-6664 to -6667); use an image with {RECOMMENDED} or later"
                    );
                }
                self.published.metrics.set_info(&self.options.pod_uid, &version.to_string());
                (self.program, self.version) = (Some(program), Some(version));
                self.problems.program = None;
            }
            Err(error) => self.refuse_program(&error),
        }
    }

    fn refuse_program(&mut self, error: &ProcessError) {
        tracing::error!("{error}");
        self.problems.program = Some(error.to_string());
    }

    async fn round(&mut self, punctual: bool) {
        let now = self.now();
        self.count_errors();
        let changed = self.inputs.changed();
        let inputs_changed = changed.is_some();
        if let Some(texts) = changed {
            self.take_inputs(&texts);
        }
        let console = self.ask_console(now).await;
        let seen = Observation {
            startable: self.program.is_some() && self.wish.revision.is_some() && self.wish.credentials.is_some(),
            running: self.slot.is_running(),
            console,
            punctual,
        };
        let was_serving = self.machine.is_serving();
        match self.machine.step(self.now(), seen) {
            Some(Action::Start) => self.start(),
            Some(Action::Kill(reason)) => {
                tracing::warn!(reason = reason.as_str(), "pgbouncer does not answer; it is killed and started again");
                self.slot.kill().await;
            }
            None => {}
        }
        let serving = self.machine.is_serving();
        if serving && !was_serving {
            self.differences.restarted();
            self.arrivals.restarted();
            tracing::info!(revision = self.revision, "pgbouncer answers");
        }
        if serving && (inputs_changed || !was_serving) {
            self.apply_revision().await;
            self.apply_limits().await;
        } else if serving && self.releasing_since.is_some() && now >= self.next.release {
            self.next.release = now + RELEASE_LOOK;
            self.apply_limits().await;
        }
        if serving && now >= self.next.reading {
            self.next.reading = now + READING;
            self.take_reading(punctual).await;
            if now >= self.next.sweep {
                self.next.sweep = now + LIMITS_SWEEP;
                self.slot.limits = None;
            }
            self.apply_limits().await;
        }
        if !serving {
            self.held = None;
        }
        self.publish();
    }

    fn count_errors(&mut self) {
        while let Ok(error) = self.errors.1.try_recv() {
            self.published.metrics.count_error(error.as_str());
        }
    }

    fn take_inputs(&mut self, texts: &super::wish::Texts) {
        self.wish.take(texts);
        let documents = ["revision", "grant", "credentials"];
        for (document, refusal) in documents.iter().zip(&self.wish.refusals) {
            if let Some(refusal) = refusal {
                tracing::warn!(document, "{refusal}");
            }
        }
        let refused = documents.into_iter().zip(&self.wish.refusals);
        self.published
            .metrics
            .set_refused(refused.filter_map(|(document, refusal)| Some((document, refusal.as_ref()?.reason()))));
    }

    /// Asks the console whether it lives: often while a process starts, else every half second.
    async fn ask_console(&mut self, now: Millis) -> ConsoleSeen {
        if !self.machine.is_starting() && (!self.machine.is_serving() || now < self.next.ping) {
            return ConsoleSeen::NotAsked;
        }
        self.next.ping = now + PING;
        match self.slot.console.run("SHOW VERSION").await {
            Ok(_) => ConsoleSeen::Answered,
            Err(_) => ConsoleSeen::Silent,
        }
    }

    fn wanted(&self) -> Wanted {
        let grant = self.wish.grant();
        Wanted { limit: self.limit.min(grant.share), warm: grant.floor, share: grant.share }
    }

    fn render(&self, wanted: Wanted) -> Option<Result<(u64, Rendered), RenderError>> {
        let revision = self.wish.revision.as_ref()?;
        let credentials = self.wish.credentials.as_ref()?;
        let rendered = render::render(&RenderInput {
            injection: &self.injection,
            settings: &revision.settings,
            limits: wanted.as_limits(),
            credentials,
            place: &self.place,
        });
        Some(rendered.map(|rendered| (revision.revision, rendered)))
    }

    fn start(&mut self) {
        let reason = self.machine.take_restart_reason();
        if let Some(reason) = reason {
            self.published.metrics.count_restart(reason.as_str());
        }
        self.decide_limit();
        let Some(rendered) = self.render(self.wanted()) else { return };
        let Some(program) = self.program.clone() else { return };
        let started = rendered.map_err(|error| error.to_string()).and_then(|(revision, rendered)| {
            self.problems.files =
                process::raise_file_limit(self.injection.client.max_connections, self.wish.grant().share);
            self.slot
                .start(&program, rendered, self.errors.0.clone())
                .map(|()| revision)
                .map_err(|error| error.to_string())
        });
        match started {
            Ok(revision) => {
                self.problems.configuration = None;
                self.problems.reload = None;
                self.revision = Some(revision);
            }
            Err(error) => {
                tracing::error!("{error}");
                self.problems.configuration = Some(error);
                let now = self.now();
                self.machine.start_failed(now);
            }
        }
    }

    async fn apply_revision(&mut self) {
        // With the limits that are in force now: a RELOAD must not move them.
        let mut wanted = self.wanted();
        if let Some(limits) = self.slot.limits {
            wanted.limit = limits.pool_size.min(wanted.limit.max(1));
        }
        let (revision, rendered) = match self.render(wanted) {
            Some(Ok(rendered)) => rendered,
            Some(Err(error)) => {
                tracing::warn!("{error}");
                self.problems.configuration = Some(error.to_string());
                return;
            }
            None => return,
        };
        self.problems.configuration = None;
        if !self.slot.differs_from(&rendered) {
            self.revision = Some(revision);
            self.problems.reload = None;
            return;
        }
        match self.slot.reload(rendered).await {
            Ok(()) => {
                tracing::info!(revision, "revision in force, read back");
                self.revision = Some(revision);
                self.problems.reload = None;
            }
            Err(error) => {
                tracing::warn!(revision, "{error}");
                self.problems.reload = Some(error.to_string());
            }
        }
    }

    async fn apply_limits(&mut self) {
        self.decide_limit();
        let wanted = self.wanted();
        let held = self.held.map(|held| held.held);
        match self.slot.converge(wanted, held).await {
            Ok(Progress::InForce) => {
                self.releasing_since = None;
                self.problems.limits = None;
                if self.in_force != self.wish.granted {
                    self.in_force = self.wish.granted;
                    let grant = self.wish.grant();
                    tracing::info!(
                        seq = grant.seq,
                        share = grant.share,
                        floor = grant.floor,
                        "grant in force, read back"
                    );
                }
                self.store_last_good();
            }
            Ok(Progress::Releasing { excess }) => {
                let now = self.now();
                let since = *self.releasing_since.get_or_insert(now);
                self.problems.limits = Some(format!(
                    "{excess} server connections more than the share are busy; they close as transactions end"
                ));
                if let Ok(pools) = self.slot.console.pools(&self.injection.upstream.database).await {
                    self.see_pools(pools);
                }
                if now.saturating_sub(since) >= RELEASE_PATIENCE
                    && let Err(error) = self.slot.shorten_lifetime().await
                {
                    self.tell_limits(&error);
                }
            }
            Err(error) => self.tell_limits(&error),
        }
    }

    fn tell_limits(&mut self, error: &SlotError) {
        let text = error.to_string();
        if self.problems.limits.as_ref() != Some(&text) {
            tracing::warn!("{text}");
        }
        self.problems.limits = Some(text);
    }

    fn decide_limit(&mut self) {
        let grant = self.wish.grant();
        let source = self.wish.revision.as_ref().map_or(LimitSource::Share, |r| r.settings.scaling.limit_source);
        self.limit = self.reaction.limit(source, grant);
    }

    /// The agent's loop: decides the limit from this reading, and logs what `sluice decide` needs to repeat it.
    fn react(&mut self, reading: &PoolerReading, punctual: bool) {
        let Some(revision) = &self.wish.revision else { return };
        let current = self.slot.limits.map_or(self.limit, |limits| limits.pool_size);
        let decided = self.reaction.feed(&revision.settings, self.wish.grant(), current, reading, punctual);
        let Some(Decided { id, from, decision, line }) = decided else { return };
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Ok(observation) = serde_json::to_string(&line)
        {
            tracing::debug!(
                decision = id,
                observation,
                size = decision.size,
                reason = decision.reason.as_str(),
                "observed"
            );
        }
        if decision.size != from {
            self.published.metrics.count_decision(decision.reason.as_str());
            tracing::info!(
                decision = id,
                from,
                to = decision.size,
                reason = decision.reason.as_str(),
                "{}",
                decision.message
            );
        }
    }

    fn see_pools(&mut self, pools: Pools) {
        self.held = Some(Held {
            held: pools.held(),
            active: pools.active,
            leaked: self.leaked,
            waiting: pools.clients_waiting,
        });
    }

    async fn take_reading(&mut self, punctual: bool) {
        let database = &self.injection.upstream.database;
        let pools = self.slot.console.pools(database).await;
        let stats = self.slot.console.stats(database).await;
        let servers = self.slot.console.servers(database).await;
        let (pools, stats, servers) = match (pools, stats, servers) {
            (Ok(pools), Ok(stats), Ok(servers)) => (pools, stats, servers),
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
                self.problems.reading = Some(error.to_string());
                self.held = None;
                return;
            }
        };
        self.problems.reading = None;
        let now = self.now();
        let added = self.differences.feed(stats);
        self.look_for_leaks(now, &servers);
        self.count_arrivals(now, &servers).await;
        self.see_pools(pools);
        let leaked = self.leaked;
        let at_seconds = self.begin.elapsed().as_secs_f64();
        self.react(&PoolerReading { at_seconds, pools, added, leaked }, punctual);
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let metrics = &self.published.metrics;
        metrics.observe(added, pools, leaked, unix_seconds);
        let waiting = f64::from(pools.clients_waiting);
        let demand = f64::from(pools.active.saturating_sub(leaked.unwrap_or(0))) + waiting;
        for (name, demands, waitings) in &mut self.peaks {
            metrics.set_peaks(name, demands.feed(now, demand), waitings.feed(now, waiting));
        }
    }

    /// Looks for server connections that are idle in transaction.
    fn look_for_leaks(&mut self, now: Millis, servers: &[Server]) {
        let Some(revision) = &self.wish.revision else { return };
        if now < self.next.leaks {
            return;
        }
        let threshold = revision.settings.health.leak_threshold_seconds.saturating_mul(1000);
        self.next.leaks = now + Millis::from(threshold / 4).clamp(READING, LEAKS_LOOK);
        let linked = servers.iter().filter(|server| server.linked).map(|server| {
            let address: Option<IpAddr> = server.local_address.parse().ok();
            Some((address?.to_canonical(), server.local_port))
        });
        // A server over a Unix socket has no address: whether it leaks cannot be told.
        let Some(linked) = linked.collect::<Option<Vec<_>>>() else {
            self.leaked = None;
            return;
        };
        if linked.is_empty() {
            self.leaked = Some(0).filter(|_| self.leaks_visible);
            return;
        }
        self.leaked = match sockets::traffic_to_port(self.injection.upstream.port) {
            Ok(traffic) => self.leaks.count(&linked, &traffic, threshold),
            Err(error) => {
                if self.leaks_visible {
                    tracing::warn!("leaks cannot be seen here: {error}");
                }
                self.leaks_visible = false;
                None
            }
        };
    }

    async fn count_arrivals(&mut self, now: Millis, servers: &[Server]) {
        let opens = self.arrivals.opens(servers.iter().map(|server| server.id));
        let mut logins = 0;
        if now >= self.next.clients {
            self.next.clients = now + CLIENTS_LOOK;
            match self.slot.console.newest_client().await {
                Ok(newest) => logins = self.arrivals.clients(newest),
                Err(error) => self.problems.reading = Some(error.to_string()),
            }
        }
        self.published.metrics.add_arrivals(opens, logins);
    }

    fn store_last_good(&mut self) {
        let (Some(granted), Some(revision)) = (self.in_force, self.wish.revision.clone()) else { return };
        if self.revision != Some(revision.revision) {
            return;
        }
        let pool = self.injection.pool.clone();
        let worked = LastGood { pool, revision, epoch: granted.epoch, grant: granted.grant };
        if self.stored.as_ref() == Some(&worked) {
            return;
        }
        match last_good::store(&self.options.state_dir, &worked) {
            Ok(()) => self.problems.state = None,
            Err(error) => {
                tracing::warn!("{error}");
                self.problems.state = Some(error.to_string());
            }
        }
        self.stored = Some(worked);
    }

    fn message(&self) -> String {
        let Problems { program, configuration, reload, limits, reading, files, state } = &self.problems;
        let refusals = self.wish.refusals.iter().flatten().map(ToString::to_string);
        let problems = [program, configuration, reload, limits, reading, files, state].into_iter().flatten().cloned();
        problems.chain(refusals).collect::<Vec<_>>().join("; ")
    }

    fn publish(&mut self) {
        let slot = self.machine.status(self.now());
        let limits: Option<LimitsReadBack> = self.slot.limits.filter(|_| slot == SlotStatus::Serving);
        let in_force = self.in_force;
        let seq = in_force.map_or(0, |granted| granted.grant.seq);
        let share = in_force.map_or(0, |granted| granted.grant.share);
        let report = StatusReport {
            v: 1,
            pod_uid: self.options.pod_uid.clone(),
            pool: self.injection.pool.clone(),
            revision: self.revision.filter(|_| self.machine.is_serving()),
            wanted_revision: self.wish.revision.as_ref().map(|revision| revision.revision),
            epoch: in_force.map_or(0, |granted| granted.epoch),
            seq,
            share,
            limits,
            held: self.held,
            slot,
            message: self.message(),
        };
        let floor = in_force.map_or(0, |granted| granted.grant.floor);
        let limit = report.limits.map(|limits| if limits.paused { 0 } else { limits.pool_size });
        self.published.metrics.set_in_force(seq, share, floor, limit, report.revision);
        let waits_for = (slot != SlotStatus::Serving).then(|| {
            if report.message.is_empty() { "the pooler's console to answer".to_owned() } else { report.message.clone() }
        });
        self.published.publish(report, waits_for);
    }
}

fn empty_report(options: &RunOptions, injection: &Injection) -> StatusReport {
    StatusReport {
        v: 1,
        pod_uid: options.pod_uid.clone(),
        pool: injection.pool.clone(),
        revision: None,
        wanted_revision: None,
        epoch: 0,
        seq: 0,
        share: 0,
        limits: None,
        held: None,
        slot: SlotStatus::Starting,
        message: String::new(),
    }
}

fn place(options: &RunOptions, injection: &Injection) -> Place {
    let mut listen_addresses = vec!["127.0.0.1".to_owned()];
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        listen_addresses.push("::1".to_owned());
    }
    let ca_file = if injection.upstream.tls.own_ca {
        Some(options.config_dir.join(names::SERVER_CA_FILE))
    } else {
        TRUST_STORES.iter().map(PathBuf::from).find(|store| store.is_file())
    };
    let text = |path: &Path| path.display().to_string();
    Place {
        listen_addresses,
        socket_dir: text(&options.run_dir),
        auth_file: text(&Slot::auth_file(&options.run_dir)),
        ca_file: ca_file.as_deref().map(text),
        login_retry_milliseconds: login_retry(&options.pod_uid),
    }
}

/// 1 to 2 s, another one in each pod, so that the pods of a pool do not log in to a returning database together.
fn login_retry(pod_uid: &str) -> u32 {
    1000 + pod_uid.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) % 1000
}
