//! The agent's loop: one thread, twenty rounds a second.
//!
//! A round looks at the configuration volume and at the process; every half second it asks the console whether it lives,
//! every second it takes a reading and decides. What a round finds is published for the HTTP server.

mod alias_part;
mod anchoring;
mod apply;
mod certificate;
mod console;
mod failover;
mod memory;
mod pinning;
mod place;
mod reading;
mod recalling;
mod reconnecting;
mod refusals;
mod report;
mod rotating;
mod switching;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use certificate::CertificateWatch;
use failover::Failover;
use pinning::Pinning;
use rotating::Rotating;
use switching::Switching;
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep_until,
};

use super::{
    keeper::{Link, LinkError},
    options::RunOptions,
};
use crate::{
    agent::{
        apply::{
            last_good::{self, LastGood},
            process::{self, ProcessError},
            resolver,
            slot::Slot,
        },
        decide::{
            anchor::Anchoring,
            identity::Identity,
            machine::{self, ConsoleSeen, Machine, Millis, ProcessAction, ProcessSeen},
            peaks::{Moment, Peak},
            problems::{Problem, Problems},
            reach::Reachability,
            reaction::Reaction,
            retry::Retry,
            switch::Switch,
            troubles::{Heard, Troubles},
            vitals::Vitals,
            wish::{Granted, Wish},
        },
        observe::{
            bypass::{self, BypassWatch},
            inputs::Inputs,
            sockets::{LeakWatch, Local},
        },
        report::{
            metrics::Metrics,
            server::{self, Published},
        },
    },
    contract::{self, ClientTlsMode, ContractError, Document, Held, Injection, PoolRevision, StatusReport, names},
    decide::guard::refused::Refused,
    pooler::pgbouncer::{
        render::{self, RenderError},
        version::{Build, RECOMMENDED, Support},
    },
    serving::{Drain, HttpServer},
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
/// Between two counts of the sockets that listen on our port.
const STRANGERS_LOOK: Millis = 5000;
/// Between two looks for leaks: often enough to see each silence before keepalives disturb it.
const LEAKS_LOOK: Millis = 4000;
/// A round that begins so late means that we lack CPU.
const LATE: Duration = Duration::from_millis(250);
/// How long the figures of the last reading are shown when the next ones do not come.
const READING_HOLDS: Millis = 3000;
/// So many faults without a calm time between are told.
const FAULTS_TOLD: u32 = 3;
/// Errors of the pooler's log that may wait to be counted.
const ERROR_QUEUE: usize = 1024;

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
    /// There is no keeper, or no more.
    #[error(transparent)]
    Keeper(#[from] LinkError),
}

struct Agent {
    options: RunOptions,
    injection: Injection,
    link: Link,
    /// Addresses that clients come to.
    addresses: Vec<IpAddr>,
    /// Configuration that leads the pooler to our own name server; None: it asks the pod's.
    resolver: Option<PathBuf>,
    program: Option<PathBuf>,
    build: Option<Build>,
    inputs: Inputs,
    wish: Wish,
    /// What becomes of the process that new clients come to.
    machine: Machine,
    /// The slot that new clients are led to.
    slot: Slot,
    /// The other one.
    other: Slot,
    /// How the pod goes from the one to the other.
    switch: Switch,
    switching: Switching,
    /// Sockets of others that listen where clients come to, in a sentence.
    strangers: Option<String>,
    certificate: CertificateWatch,
    /// Which CA stands for the whole bundle.
    anchoring: Anchoring,
    handing: anchoring::Handing,
    /// What the container's memory has room for.
    room: memory::Room,
    /// What clients are shown.
    identity: Identity,
    /// What server connections are opened with, and how it changes.
    rotating: Rotating,
    /// Whether the database takes writes.
    failover: Failover,
    published: Arc<Published>,
    errors: mpsc::Receiver<Heard>,
    /// What was logged lately.
    troubles: Troubles,
    /// What the database lets this pod open, while it refuses more.
    refused: Refused,
    begin: Instant,
    problems: Problems,
    /// The revision that served last: what a process that ended is started with again.
    served: Option<PoolRevision>,
    /// Grant whose share is in force.
    in_force: Option<Granted>,
    limit: u32,
    /// Server connections of the share that are the session alias's.
    reserved: u32,
    held: Option<Held>,
    /// Server connections that were told to end for `reconnectedAt` and have a transaction to finish; None while that is not known.
    closing: Option<u32>,
    /// When `held` was read.
    held_at: Millis,
    /// What the process had done when its console answered last, and when that was.
    answered: Option<(Millis, Vitals)>,
    started_at: Millis,
    /// What the console said when it was asked last.
    heard: ConsoleSeen,
    /// Whether what is wanted may differ from what was asked of the pooler last.
    to_be_applied: bool,
    peaks: [(&'static str, Peak, Peak); 2],
    /// The demand of a moment, and when it was looked at last.
    moment: Moment,
    moment_at: Millis,
    reaction: Reaction,
    /// Whether a round was late since the last reading: what the next one shows is not of one second, however soon it comes.
    was_late: bool,
    /// Whether the database is reached.
    reach: Reachability,
    /// What of the pod is connected to the database past the pooler.
    bypass: BypassWatch,
    leaked: Option<u32>,
    /// Which ones, where they can be seen.
    leaked_connections: BTreeSet<Local>,
    leaks: LeakWatch,
    /// Server connections that clients hold while nothing is said.
    pinning: Pinning,
    leaks_visible: bool,
    stored: Option<LastGood>,
    reload_again: Retry,
    store_again: Retry,
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
    strangers: Millis,
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
    let listener = server::bind(options.listen, injection.agent_port).await.map_err(|source| RunError::Listen {
        port: options.listen.map_or(injection.agent_port, |address| address.port()),
        source,
    })?;
    let link = Link::inherited().await?;
    let gone = link.gone();
    tokio::pin!(gone);
    let mut agent = Agent::new(options, injection, link).await;
    let routes = server::router(agent.published.clone());
    let http = tokio::spawn(HttpServer::new(listener, routes, server::BOUNDS).run(Drain::default()));
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
            () = &mut gone => return Err(LinkError::Gone.into()),
        }
    }
    tracing::info!("asked to end: running transactions may finish");
    let grace = agent.options.grace();
    tokio::join!(agent.slot.end(grace), agent.other.end(grace));
    http.abort();
    Ok(())
}

impl Agent {
    async fn new(options: RunOptions, injection: Injection, link: Link) -> Self {
        let mut problems = Problems::default();
        let stored = last_good::load(&options.state_dir, &injection.pool).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            problems.state.is(error.to_string());
            None
        });
        let mut rotating = Rotating::take_up(&options, &injection);
        let mut wish = Wish::new(&injection.pool, injection.upstream.tls, stored.clone());
        if let Some(access) = rotating.in_force() {
            (wish.credentials, wish.server_ca) = (Some(access.credentials.clone()), access.server_ca.clone());
            wish.certificate.clone_from(&access.certificate);
        }
        let (report_error, errors) = mpsc::channel(ERROR_QUEUE);
        let resolver = match injection.upstream.host.parse::<IpAddr>() {
            Ok(_) => None,
            Err(_) => resolver::start(&options.run_dir, injection.client.port, report_error.clone()).await,
        };
        let left = link.state();
        let of = |name| Slot::new(name, link.clone(), &options.run_dir, &injection, report_error.clone());
        let (mut slot, other) = (of(left.steered), of(left.steered.other()));
        let taken_up = slot.is_running();
        if taken_up {
            tracing::info!(slot = slot.name().as_str(), "a pooler runs; it is taken up as it is");
            slot.runs = stored.as_ref().map(|stored| stored.revision.clone());
            rotating.slots_are_taken_up();
        }
        let identity = place::identity_before(&slot, &options.run_dir);
        let switch = Switch::resume(0, switching::left(&left, other.name()));
        let published = Arc::new(Published::new(
            Metrics::new(&injection.namespace, &injection.pool),
            StatusReport::beginning(options.pod_uid.clone(), injection.pool.clone()),
        ));
        Self {
            addresses: place::addresses(injection.client.reach),
            resolver,
            program: None,
            build: None,
            inputs: Inputs::new(&options.config_dir),
            wish,
            machine: if taken_up { Machine::taken_up(0) } else { Machine::default() },
            slot,
            other,
            switch,
            switching: Switching::default(),
            strangers: None,
            certificate: CertificateWatch::new(injection.upstream.tls.mode),
            anchoring: anchoring::take_up(&options.run_dir),
            handing: anchoring::Handing::default(),
            room: memory::Room::default(),
            identity,
            rotating,
            failover: Failover::new(&options),
            link,
            published,
            errors,
            troubles: Troubles::default(),
            refused: Refused::new(place::spread(&options.pod_uid)),
            begin: Instant::now(),
            problems,
            served: stored.as_ref().map(|stored| stored.revision.clone()),
            in_force: None,
            limit: 0,
            reserved: 0,
            held: None,
            closing: None,
            held_at: 0,
            answered: None,
            started_at: 0,
            heard: ConsoleSeen::NotAsked,
            to_be_applied: true,
            moment: Moment::default(),
            moment_at: 0,
            peaks: [("5s", 5000), ("30s", 30_000)].map(|(name, window)| (name, Peak::new(window), Peak::new(window))),
            reaction: Reaction::default(),
            was_late: false,
            reach: Reachability::default(),
            bypass: BypassWatch::new(bypass::Endpoints {
                host: injection.upstream.host.clone(),
                port: injection.upstream.port,
                client_port: injection.client.port,
            }),
            leaked: None,
            leaked_connections: BTreeSet::new(),
            leaks: LeakWatch::default(),
            pinning: Pinning::default(),
            leaks_visible: true,
            stored,
            reload_again: Retry::default(),
            store_again: Retry::default(),
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
            Ok(program) => process::version(&program).await.map(|build| (program, build)),
            Err(error) => Err(error),
        };
        match found {
            Ok((program, build)) => {
                let version = build.version;
                if version.support() == Support::Warned {
                    tracing::warn!(
                        "PgBouncer {version} is older than {RECOMMENDED}, which every test runs with; before 1.25.2 known vulnerabilities are open (CVE-2026-6664 to -6667): use an image with {RECOMMENDED} or later"
                    );
                }
                self.published.metrics.set_info(&self.options.pod_uid, &version.to_string());
                for slot in [&mut self.slot, &mut self.other] {
                    slot.version = Some(version);
                }
                (self.program, self.build, self.wish.version) = (Some(program), Some(build), Some(version));
                self.problems.program.is_over();
            }
            Err(error) => self.refuse_program(&error),
        }
    }

    fn refuse_program(&mut self, error: &ProcessError) {
        tracing::error!("{error}");
        self.problems.program.is(error.to_string());
    }

    async fn round(&mut self, punctual: bool) {
        let now = self.now();
        self.was_late |= !punctual;
        self.count_errors();
        self.read_inputs(now);
        self.know_bundle(now);
        self.look_at_certificate(now);
        let waits = self.awaits_certificate(now);
        let (console, in_time) = self.ask_console(now).await;
        let seen = ProcessSeen {
            startable: !waits
                && self.program.is_some()
                && self.wish.revision.is_some()
                && self.rotating.in_force().is_some(),
            running: self.slot.is_running(),
            console,
            punctual: punctual && in_time,
            effort: self.effort(console),
        };
        let was_serving = self.machine.is_serving();
        match self.machine.step(self.now(), seen) {
            Some(ProcessAction::Start) => self.start().await,
            Some(ProcessAction::Kill(reason)) => {
                tracing::warn!(reason = reason.as_str(), "pgbouncer does not answer; it is killed and started again");
                self.slot.kill().await;
            }
            None => {}
        }
        self.tell_faults();
        let serving = self.machine.is_serving();
        if serving && !was_serving {
            self.problems.reading.is_over();
            tracing::info!(revision = self.revision(), "pgbouncer answers");
            self.switching.look_again();
        }
        let answers = self.machine.is_serving() && self.heard == ConsoleSeen::Answered;
        self.rotate(now, answers).await;
        if answers {
            self.hand_anchor(now).await;
        }
        self.to_be_applied |= self.switch(now, punctual).await || !was_serving;
        let serving = self.machine.is_serving();
        // a console that is silent is asked for its version alone, or it would take seconds to see that it hangs
        let answering = serving && self.heard == ConsoleSeen::Answered;
        self.watch_upstream(now, answering).await;
        if answering && self.recalls() {
            self.recall(now).await;
        }
        if answering && (self.to_be_applied || self.reload_again.is_due(now)) {
            self.to_be_applied = false;
            self.apply_revision().await;
            self.apply_limits().await;
        } else if answering && self.is_moving() && now >= self.next.release {
            self.next.release = now + RELEASE_LOOK;
            self.look_at_pools(now).await;
            self.apply_limits().await;
        }
        if now >= self.next.strangers {
            self.next.strangers = now + STRANGERS_LOOK;
            self.look_for_strangers();
        }
        if answering && now >= self.next.reading && !self.failover.comes_first(now) {
            self.next.reading = now + READING;
            self.take_reading().await;
            self.watch_pins(now).await;
            self.name_pinned().await;
            if now >= self.next.sweep {
                self.next.sweep = now + LIMITS_SWEEP;
                self.room.read_limit(&self.options.control_group);
                (self.slot.limits, self.other.limits) = (None, None);
            }
            self.apply_limits().await;
        }
        if answering {
            self.close_pinned(now).await;
        }
        if !serving || self.now().saturating_sub(self.held_at) > READING_HOLDS {
            self.held = None;
        }
        self.watch_bypass(now).await;
        // counted before the status shows that their process is gone
        self.published.metrics.count_cut(self.slot.take_cut() + self.other.take_cut());
        self.publish();
    }

    /// Looks for connections past the pooler. A gateway's pod has no application.
    async fn watch_bypass(&mut self, now: Millis) {
        if self.injection.client.reach == contract::Reach::Network {
            return;
        }
        let poolers = [self.slot.pid(), self.other.pid()];
        let processes = || {
            // the keeper is our parent
            let own = [Some(rustix::process::getpid()), rustix::process::getppid()];
            let own = own.into_iter().flatten().map(|process| process.as_raw_nonzero().get());
            own.chain(poolers.into_iter().flatten()).collect()
        };
        self.bypass.step(now, processes).await;
    }

    /// Takes over what clients are shown.
    fn take_identity(&mut self, texts: &crate::agent::decide::wish::Texts) {
        if self.injection.client.tls == ClientTlsMode::Disabled {
            return;
        }
        match self.identity.take(texts.client_certificate.as_deref(), texts.client_key.as_deref()) {
            Ok(()) => self.problems.identity.is_over(),
            Err(refusal) => {
                if self.problems.identity.is(refusal.to_string()) {
                    tracing::warn!("{refusal}");
                }
            }
        }
    }

    /// A process that was started again once or twice is counted; one that does not stay up is told of until it does.
    fn tell_faults(&mut self) {
        let faults = self.machine.faults();
        if faults < FAULTS_TOLD {
            return self.problems.process.is_over();
        }
        self.problems.process.is(format!(
            "PgBouncer does not stay up: it ended or hung {faults} times with less than {} s between; its log is that of the container {}",
            machine::FORGIVEN_AFTER / 1000,
            names::SIDECAR_CONTAINER
        ));
    }

    fn read_inputs(&mut self, now: Millis) {
        match self.inputs.changed() {
            Ok(None) => self.problems.inputs.is_over(),
            Ok(Some(texts)) => {
                self.problems.inputs.is_over();
                self.take_inputs(&texts);
                self.to_be_applied = true;
            }
            Err(error) => {
                let text = format!("reading the configuration: {error}");
                if self.problems.inputs == Problem::default() {
                    tracing::warn!("{text}");
                }
                self.problems.inputs.may_pass(now, text);
            }
        }
    }

    fn take_inputs(&mut self, texts: &crate::agent::decide::wish::Texts) {
        let before = (self.wish.revision.clone(), self.wish.access());
        self.wish.take(texts);
        self.take_identity(texts);
        if before.0 != self.wish.revision {
            self.switching.another_is_wanted();
        }
        self.take_access(before.1.as_ref());
        let documents = ["revision", "grant", "credentials"];
        for (document, refusal) in documents.into_iter().zip(&self.wish.refusals) {
            if let Some(refusal) = refusal {
                tracing::warn!(document, "{refusal}");
            }
        }
        self.tell_refusals();
    }
}
