//! The agent's loop: one thread, twenty rounds a second.
//!
//! A round looks at the configuration volume and at the process; every half second it asks the console whether it lives,
//! every second it takes a reading and decides. What a round finds is published for the HTTP server.

mod alias_part;
mod anchoring;
mod applying;
mod certificate;
mod failover;
mod figures;
mod liveness;
mod memory;
mod pinning;
mod place;
mod pooler_log;
mod recalling;
mod reconnecting;
mod report;
mod rotating;
mod switching;

use std::{
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

/// The agent: what each part of a round reads and changes.
struct Agent {
    sidecar: Sidecar,
    configuration: Configuration,
    slots: Slots,
    switching: Switching,
    liveness: Liveness,
    access: ServerAccess,
    /// Whether the database takes writes.
    failover: Failover,
    sizing: Sizing,
    applying: Applying,
    figures: Figures,
    /// Server connections that clients hold while nothing is said.
    pinning: Pinning,
    log: PoolerLog,
    report: Report,
}

/// What the container was given, and does not change while the agent runs.
struct Sidecar {
    options: RunOptions,
    injection: Injection,
    link: Link,
    /// Addresses that clients come to.
    addresses: Vec<IpAddr>,
    /// Configuration that leads the pooler to our own name server; None: it asks the pod's.
    resolver: Option<PathBuf>,
    program: Option<PathBuf>,
    build: Option<Build>,
    begin: Instant,
}

/// What the pod is asked to run.
struct Configuration {
    inputs: Inputs,
    wish: Wish,
    /// What clients are shown.
    identity: Identity,
}

/// The two slots, and how the pod goes from the one to the other.
struct Slots {
    /// The slot that new clients are led to.
    active: Slot,
    /// The other one.
    other: Slot,
    switch: Switch,
}

/// Whether the process that new clients come to lives.
struct Liveness {
    /// What becomes of it.
    machine: Machine,
    /// What it had done when its console answered last, and when that was.
    answered: Option<(Millis, Vitals)>,
    started_at: Millis,
    /// What the console said when it was asked last.
    heard: ConsoleSeen,
    next_ping: Millis,
}

/// What server connections are opened with, and what verifies the database.
struct ServerAccess {
    /// User, password, CA and certificate, and how they change.
    rotating: Rotating,
    verification: Verification,
}

/// What verifies the database's certificate.
struct Verification {
    certificate: CertificateWatch,
    /// Which CA stands for the whole bundle.
    anchoring: Anchoring,
    handing: anchoring::Handing,
}

/// How many server connections the pod is to open at most.
struct Sizing {
    limit: u32,
    /// Server connections of the share that are the session alias's.
    reserved: u32,
    reaction: Reaction,
    /// What the database lets this pod open, while it refuses more.
    refused: Refused,
    /// What the container's memory has room for.
    room: memory::Room,
}

/// How far what is wanted is in force.
struct Applying {
    /// Whether what is wanted may differ from what was asked of the pooler last.
    to_be_applied: bool,
    /// When limits that are on their way are looked at next.
    next_look: Millis,
    reload_again: Retry,
    /// The revision that served last: what a process that ended is started with again.
    served: Option<PoolRevision>,
    /// Grant whose share is in force.
    granted: Option<Granted>,
    /// Server connections that were told to end for `reconnectedAt` and have a transaction to finish; None while that is not known.
    closing: Option<u32>,
    /// What worked last, as it is on disk.
    stored: Option<LastGood>,
    store_again: Retry,
}

/// What was read of the poolers last.
struct Figures {
    held: Option<Held>,
    /// When `held` was read.
    held_at: Millis,
    peaks: [(&'static str, Peak, Peak); 2],
    /// The demand of a moment, and when it was looked at last.
    moment: Moment,
    moment_at: Millis,
    /// Whether a round was late since the last reading: what the next one shows is not of one second, however soon it comes.
    was_late: bool,
    /// What of the pod is connected to the database past the pooler.
    bypass: BypassWatch,
    next_reading: Millis,
    next_clients: Millis,
    next_sweep: Millis,
}

/// What the poolers log.
struct PoolerLog {
    errors: mpsc::Receiver<Heard>,
    /// What was logged lately.
    troubles: Troubles,
    /// Whether the database is reached.
    reach: Reachability,
}

/// What is told.
struct Report {
    problems: Problems,
    published: Arc<Published>,
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
    let routes = server::router(agent.report.published.clone());
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
    let grace = agent.sidecar.options.grace();
    tokio::join!(agent.slots.active.end(grace), agent.slots.other.end(grace));
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
        let (mut active, other) = (of(left.steered), of(left.steered.other()));
        let taken_up = active.is_running();
        if taken_up {
            tracing::info!(slot = active.name().as_str(), "a pooler runs; it is taken up as it is");
            active.runs = stored.as_ref().map(|stored| stored.revision.clone());
            rotating.slots_are_taken_up();
        }
        let identity = place::identity_before(&active, &options.run_dir);
        let switch = Switch::resume(0, switching::left(&left, other.name()));
        let published = Arc::new(Published::new(
            Metrics::new(&injection.namespace, &injection.pool),
            StatusReport::beginning(options.pod_uid.clone(), injection.pool.clone()),
        ));
        Self {
            slots: Slots { active, other, switch },
            switching: Switching::default(),
            liveness: Liveness {
                machine: if taken_up { Machine::taken_up(0) } else { Machine::default() },
                answered: None,
                started_at: 0,
                heard: ConsoleSeen::NotAsked,
                next_ping: 0,
            },
            access: ServerAccess {
                rotating,
                verification: Verification {
                    certificate: CertificateWatch::new(injection.upstream.tls.mode),
                    anchoring: anchoring::take_up(&options.run_dir),
                    handing: anchoring::Handing::default(),
                },
            },
            failover: Failover::new(&options),
            sizing: Sizing {
                limit: 0,
                reserved: 0,
                reaction: Reaction::default(),
                refused: Refused::new(place::spread(&options.pod_uid)),
                room: memory::Room::default(),
            },
            applying: Applying {
                to_be_applied: true,
                next_look: 0,
                reload_again: Retry::default(),
                served: stored.as_ref().map(|stored| stored.revision.clone()),
                granted: None,
                closing: None,
                stored,
                store_again: Retry::default(),
            },
            figures: Figures {
                held: None,
                held_at: 0,
                peaks: [("5s", 5000), ("30s", 30_000)]
                    .map(|(name, window)| (name, Peak::new(window), Peak::new(window))),
                moment: Moment::default(),
                moment_at: 0,
                was_late: false,
                bypass: BypassWatch::new(bypass::Endpoints {
                    host: injection.upstream.host.clone(),
                    port: injection.upstream.port,
                    client_port: injection.client.port,
                }),
                next_reading: 0,
                next_clients: 0,
                next_sweep: 0,
            },
            pinning: Pinning::default(),
            log: PoolerLog { errors, troubles: Troubles::default(), reach: Reachability::default() },
            report: Report { problems, published },
            configuration: Configuration { inputs: Inputs::new(&options.config_dir), wish, identity },
            sidecar: Sidecar {
                addresses: place::addresses(injection.client.reach),
                resolver,
                program: None,
                build: None,
                begin: Instant::now(),
                link,
                options,
                injection,
            },
        }
    }

    fn now(&self) -> Millis {
        Millis::try_from(self.sidecar.begin.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    async fn find_program(&mut self) {
        let path = std::env::var_os("PATH");
        let found = match process::find(self.sidecar.options.pgbouncer.as_deref(), path.as_deref()) {
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
                self.report.published.metrics.set_info(&self.sidecar.options.pod_uid, &version.to_string());
                for slot in [&mut self.slots.active, &mut self.slots.other] {
                    slot.version = Some(version);
                }
                (self.sidecar.program, self.sidecar.build, self.configuration.wish.version) =
                    (Some(program), Some(build), Some(version));
                self.report.problems.program.is_over();
            }
            Err(error) => self.refuse_program(&error),
        }
    }

    fn refuse_program(&mut self, error: &ProcessError) {
        tracing::error!("{error}");
        self.report.problems.program.is(error.to_string());
    }

    async fn round(&mut self, punctual: bool) {
        let now = self.now();
        self.figures.was_late |= !punctual;
        self.count_errors();
        self.read_inputs(now);
        self.know_bundle(now);
        self.look_at_certificate(now);
        let waits = self.awaits_certificate(now);
        let (console, in_time) = self.ask_console(now).await;
        let seen = ProcessSeen {
            startable: !waits
                && self.sidecar.program.is_some()
                && self.configuration.wish.revision.is_some()
                && self.access.rotating.in_force().is_some(),
            running: self.slots.active.is_running(),
            console,
            punctual: punctual && in_time,
            effort: self.effort(console),
        };
        let was_serving = self.liveness.machine.is_serving();
        match self.liveness.machine.step(self.now(), seen) {
            Some(ProcessAction::Start) => self.start().await,
            Some(ProcessAction::Kill(reason)) => {
                tracing::warn!(reason = reason.as_str(), "pgbouncer does not answer; it is killed and started again");
                self.slots.active.kill().await;
            }
            None => {}
        }
        self.tell_faults();
        let serving = self.liveness.machine.is_serving();
        if serving && !was_serving {
            self.report.problems.reading.is_over();
            tracing::info!(revision = self.revision(), "pgbouncer answers");
            self.switching.look_again();
        }
        let answers = self.liveness.machine.is_serving() && self.liveness.heard == ConsoleSeen::Answered;
        self.rotate(now, answers).await;
        if answers {
            self.hand_anchor(now).await;
        }
        self.applying.to_be_applied |= self.switch(now, punctual).await || !was_serving;
        let serving = self.liveness.machine.is_serving();
        // a console that is silent is asked for its version alone, or it would take seconds to see that it hangs
        let answering = serving && self.liveness.heard == ConsoleSeen::Answered;
        self.watch_upstream(now, answering).await;
        if answering && self.recalls() {
            self.recall(now).await;
        }
        if answering && (self.applying.to_be_applied || self.applying.reload_again.is_due(now)) {
            self.applying.to_be_applied = false;
            self.apply_revision().await;
            self.apply_limits().await;
        } else if answering && self.is_moving() && now >= self.applying.next_look {
            self.applying.next_look = now + RELEASE_LOOK;
            self.look_at_pools(now).await;
            self.apply_limits().await;
        }
        if now >= self.switching.next_count {
            self.switching.next_count = now + STRANGERS_LOOK;
            self.look_for_strangers();
        }
        if answering && now >= self.figures.next_reading && !self.failover.comes_first(now) {
            self.figures.next_reading = now + READING;
            self.take_reading().await;
            self.watch_pins(now).await;
            self.name_pinned().await;
            if now >= self.figures.next_sweep {
                self.figures.next_sweep = now + LIMITS_SWEEP;
                self.sizing.room.read_limit(&self.sidecar.options.control_group);
                (self.slots.active.limits, self.slots.other.limits) = (None, None);
            }
            self.apply_limits().await;
        }
        if answering {
            self.close_pinned(now).await;
        }
        if !serving || self.now().saturating_sub(self.figures.held_at) > READING_HOLDS {
            self.figures.held = None;
        }
        self.watch_bypass(now).await;
        // counted before the status shows that their process is gone
        self.report.published.metrics.count_cut(self.slots.active.take_cut() + self.slots.other.take_cut());
        self.publish();
    }

    /// Looks for connections past the pooler. A gateway's pod has no application.
    async fn watch_bypass(&mut self, now: Millis) {
        if self.sidecar.injection.client.reach == contract::Reach::Network {
            return;
        }
        let poolers = [self.slots.active.pid(), self.slots.other.pid()];
        let processes = || {
            // the keeper is our parent
            let own = [Some(rustix::process::getpid()), rustix::process::getppid()];
            let own = own.into_iter().flatten().map(|process| process.as_raw_nonzero().get());
            own.chain(poolers.into_iter().flatten()).collect()
        };
        self.figures.bypass.step(now, processes).await;
    }

    /// Takes over what clients are shown.
    fn take_identity(&mut self, texts: &crate::agent::decide::wish::Texts) {
        if self.sidecar.injection.client.tls == ClientTlsMode::Disabled {
            return;
        }
        match self.configuration.identity.take(texts.client_certificate.as_deref(), texts.client_key.as_deref()) {
            Ok(()) => self.report.problems.identity.is_over(),
            Err(refusal) => {
                if self.report.problems.identity.is(refusal.to_string()) {
                    tracing::warn!("{refusal}");
                }
            }
        }
    }

    /// A process that was started again once or twice is counted; one that does not stay up is told of until it does.
    fn tell_faults(&mut self) {
        let faults = self.liveness.machine.faults();
        if faults < FAULTS_TOLD {
            return self.report.problems.process.is_over();
        }
        self.report.problems.process.is(format!(
            "PgBouncer does not stay up: it ended or hung {faults} times with less than {} s between; its log is that of the container {}",
            machine::FORGIVEN_AFTER / 1000,
            names::SIDECAR_CONTAINER
        ));
    }

    fn read_inputs(&mut self, now: Millis) {
        match self.configuration.inputs.changed() {
            Ok(None) => self.report.problems.inputs.is_over(),
            Ok(Some(texts)) => {
                self.report.problems.inputs.is_over();
                self.take_inputs(&texts);
                self.applying.to_be_applied = true;
            }
            Err(error) => {
                let text = format!("reading the configuration: {error}");
                if self.report.problems.inputs == Problem::default() {
                    tracing::warn!("{text}");
                }
                self.report.problems.inputs.may_pass(now, text);
            }
        }
    }

    fn take_inputs(&mut self, texts: &crate::agent::decide::wish::Texts) {
        let before = (self.configuration.wish.revision.clone(), self.configuration.wish.access());
        self.configuration.wish.take(texts);
        self.take_identity(texts);
        if before.0 != self.configuration.wish.revision {
            self.switching.another_is_wanted();
        }
        self.take_access(before.1.as_ref());
        let documents = ["revision", "grant", "credentials"];
        for (document, refusal) in documents.into_iter().zip(&self.configuration.wish.refusals) {
            if let Some(refusal) = refusal {
                tracing::warn!(document, "{refusal}");
            }
        }
        self.tell_refusals();
    }
}
