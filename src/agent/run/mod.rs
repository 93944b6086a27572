//! The agent's loop: one thread, twenty rounds a second.
//!
//! A round looks at the configuration volume and at the process; every half second it asks the console whether it lives,
//! every second it takes a reading and decides. What a round finds is published for the HTTP server.
//!
//! `Agent` is all that lasts from one round to the next, in parts; each has a file. Who reads or changes a part is given it, and
//! what nobody changes after the round has begun is `Given`.
//!
//! ```text
//!                  part            what it knows
//! observe          configuration   what the pod is asked to run
//!                  liveness        whether the process that new clients come to lives
//!                  figures         what the poolers hold and do
//!                  log             what they log
//! decide, apply    access          credentials and trust: what is in force, what is tried
//!                  switching       how far the change to a new process is
//!                  failover        whether the database takes writes
//!                  circuit         whether it is away
//!                  sizing          the limit, and what bounds it
//!                  pinning         who holds a server connection and says nothing
//!                  slots           the two processes, and what was read back from them
//!                  applying        how far what is wanted is in force
//! report           report          what is told
//! ```
//!
//! # What a slot may hold
//!
//! New clients come to the **active** slot, whatever its process does (`machine`: down, starting, serving, killed). The process in the
//! other slot is green until it has clients, and blue once it was left. `share` is the pod's less what the session alias has of it,
//! and less one connection while credentials are proven beside the slots; `trial` is green's floor, at least 1, and leaves blue
//! something where there are two; `part` moves to where clients wait (`division`). Both slots together never hold more than the share.
//!
//! ```text
//! phase of `switch`  other slot: process    its clients  active may hold  other may hold  told as   then
//! Steady             none                   none         share            0               -         Starting
//! Starting           green, starts          none         share            0               Green     MakingRoom
//! MakingRoom         green, waits           none         share - trial    0               Green     Proving
//! Proving            green, is asked        none         share - trial    trial           Green     Warm; AwaitingPromotion; Replacing
//! AwaitingPromotion  green, waits, paused   none         share            0               Green     MakingRoom
//! Replacing          green, ends            none         share - trial    trial           Green     Taking       (shared listener)
//! Taking             green, starts again    new ones     share - trial    trial           Green     Draining     (shared listener)
//!                    -- steered: the slots change places, the other one is blue from here on; what fails before kills green --
//! Warm               blue, serves           old ones     part             share - part    Warm      Draining; Warm, steered back
//! Draining           blue, ends with them   old ones     part             share - part    Draining  Steady; Warm, steered back
//! ```
//!
//! With a share of 1, `share - trial` is 0: the active process is paused for the proof, and blue and green have the connection in turn
//! afterwards. An active process that has ended is started again with what served last, and with no more than blue leaves it.

mod access;
mod applying;
mod circuit;
mod configuration;
mod failover;
mod figures;
mod liveness;
mod pinning;
mod place;
mod pooler_log;
mod report;
mod sidecar;
mod sizing;
mod slots;
mod switching;

use std::{mem::discriminant, net::IpAddr, sync::Arc, time::Duration};

use access::ServerAccess;
use applying::Applying;
use circuit::Breaker;
use configuration::Configuration;
use failover::Failover;
use figures::{Figures, Together};
use liveness::Liveness;
use pinning::Pinning;
use pooler_log::PoolerLog;
use report::Reporting;
use sidecar::{Given, Sidecar};
use sizing::Sizing;
use slots::Slots;
use switching::Switchover;
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
        apply::{last_good, resolver, slot::Progress},
        decide::{
            circuit::{CircuitSeen, CircuitSign},
            machine::{Millis, ProcessAction},
            problems::Problems,
            reaction::PoolerReading,
            rotation::RotationAction,
            switch::{SwitchAction, Way},
        },
        report::{
            metrics::Metrics,
            server::{self, Published},
        },
    },
    contract::{ContractError, Document, Injection, StatusReport},
    domain::Automation,
    pooler::pgbouncer::render::{self, RenderError},
    serving::{Drain, HttpServer},
};

/// One round.
const ROUND: Duration = Duration::from_millis(50);
/// Between two questions whether a console lives.
const PING: Millis = 500;
/// Between two readings.
const READING: Millis = 1000;
/// A round that begins so late means that we lack CPU.
const LATE: Duration = Duration::from_millis(250);
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

/// All that lasts from one round to the next.
struct Agent {
    sidecar: Sidecar,
    configuration: Configuration,
    slots: Slots,
    liveness: Liveness,
    log: PoolerLog,
    figures: Figures,
    access: ServerAccess,
    switching: Switchover,
    failover: Failover,
    breaker: Breaker,
    sizing: Sizing,
    pinning: Pinning,
    applying: Applying,
    report: Reporting,
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
    let routes = server::router(agent.report.published());
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
        let mut access = ServerAccess::take_up(&options, &injection);
        let (report_error, errors) = mpsc::channel(ERROR_QUEUE);
        let resolver = match injection.upstream.host.parse::<IpAddr>() {
            Ok(_) => None,
            Err(_) => resolver::start(&options.run_dir, injection.client.port, report_error.clone()).await,
        };
        let mut slots = Slots::take_up(&link, &options.run_dir, &injection, &report_error);
        let taken_up = slots.active.is_running();
        if taken_up {
            tracing::info!(slot = slots.active.name().as_str(), "a pooler runs; it is taken up as it is");
            slots.active.runs = stored.as_ref().map(|stored| stored.revision.clone());
            access.rotating.slots_are_taken_up();
        }
        let identity = place::identity_before(&slots.active, &options.run_dir);
        let published = Arc::new(Published::new(
            Metrics::new(&injection.namespace, &injection.pool),
            StatusReport::beginning(options.pod_uid.clone(), injection.pool.clone()),
        ));
        Self {
            slots,
            liveness: Liveness::new(taken_up),
            log: PoolerLog::new(errors),
            figures: Figures::new(&injection),
            switching: Switchover::default(),
            failover: Failover::new(&options),
            breaker: Breaker::new(&options, taken_up),
            sizing: Sizing::new(place::spread(&options.pod_uid)),
            pinning: Pinning::default(),
            applying: Applying::new(stored.clone()),
            report: Reporting::new(problems, published),
            configuration: Configuration::new(&options, &injection, stored, access.rotating.in_force(), identity),
            access,
            sidecar: Sidecar::new(options, injection, link, resolver),
        }
    }

    async fn find_program(&mut self) {
        match self.sidecar.find_program().await {
            Ok(version) => {
                self.report.metrics().set_info(&self.sidecar.options.pod_uid, &version.to_string());
                self.slots.are_of(version);
                self.configuration.pooler_is(version);
                self.report.problems.program.is_over();
            }
            Err(error) => {
                tracing::error!("{error}");
                self.report.problems.program.is(error.to_string());
            }
        }
    }

    /// One round, in the order in which a second passes.
    async fn round(&mut self, punctual: bool) {
        // observe
        let now = self.sidecar.now();
        self.observe(now, punctual);

        // decide and do: the process that new clients come to, what it logs in with, and whether another one takes its place
        let was_serving = self.liveness.is_serving();
        self.keep_serving(now, punctual).await;
        let answers = self.liveness.is_answering();
        self.rotate(now, answers).await;
        let switched = self.switch(now, punctual).await;
        self.applying.again_if(switched || !was_serving);

        // apply what is wanted, and what the load asks for: to another process, perhaps, than before
        let (serving, answers) = (self.liveness.is_serving(), self.liveness.is_answering());
        self.watch_upstream(now, answers).await;
        if answers {
            self.watch_circuit(now).await;
            self.apply(now).await;
        }
        self.switching.watch_for_strangers(&self.sidecar, &mut self.report, now);
        if answers && self.figures.take_due(&self.failover, now) {
            self.follow_load(now).await;
        }
        if answers {
            self.close_pinned(now).await;
        }

        // report
        if !serving {
            self.figures.forget_held();
        }
        self.figures.expire(self.sidecar.now());
        self.figures.watch_bypass(self.sidecar.injection.client.reach, &self.slots, now).await;
        // counted before the status shows that their process is gone
        let (of_active, of_other) = self.slots.take_cut();
        self.report.metrics().count_cut(of_active, of_other);
        self.publish(now);
    }

    /// Observes: what was logged, what is wanted, what the database shows.
    fn observe(&mut self, now: Millis, punctual: bool) {
        let Self { sidecar, configuration, slots, log, figures, access, switching, sizing, applying, report, .. } =
            self;
        figures.round_began(punctual);
        log.hear(sidecar, slots, access, sizing, report);
        if let Some(before) = configuration.read(sidecar, report, now) {
            let wish = configuration.wish();
            if before.revision != wish.revision {
                switching.another_is_wanted();
            }
            access.rotating.take(wish, before.access.as_ref());
            access.rotating.tell_refusals(wish, report);
            applying.again();
        }
        applying.again_if(access.know_bundle(sidecar, now));
        applying.again_if(access.look_at_certificate(sidecar, &slots.active, report, now));
    }

    /// Sees to it that new clients come to a process that answers.
    async fn keep_serving(&mut self, now: Millis, punctual: bool) {
        let Self { sidecar, configuration, slots, liveness, access, report, .. } = self;
        let waits = access.verification.awaits_certificate(sidecar, now);
        let startable = !waits
            && sidecar.program.is_some()
            && configuration.wish().revision.is_some()
            && access.rotating.in_force().is_some();
        let was_serving = liveness.is_serving();
        let seen = liveness.observe(sidecar, &mut slots.active, report, startable, punctual, now).await;
        match liveness.step(sidecar.now(), seen) {
            Some(ProcessAction::Start) => self.start(now).await,
            Some(ProcessAction::Kill(reason)) => {
                tracing::warn!(reason = reason.as_str(), "pgbouncer does not answer; it is killed and started again");
                slots.active.kill().await;
            }
            None => {}
        }
        self.liveness.tell_faults(&mut self.report);
        if self.liveness.is_serving() && !was_serving {
            self.report.problems.reading.is_over();
            tracing::info!(revision = self.slots.revision(), "pgbouncer answers");
            self.switching.look_again();
        }
    }

    /// Starts the process that new clients come to.
    async fn start(&mut self, now: Millis) {
        let is_held = self.is_held();
        let Self { sidecar, configuration, slots, liveness, access, sizing, applying, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        if let Some(reason) = liveness.take_restart_reason() {
            report.metrics().count_restart(reason.as_str());
        }
        // before: it says whether what is wanted can come to this process later
        let listening = sidecar.listen().await;
        let revision = applying.revision_to_start(given, slots, access, liveness.is_faulty());
        sizing.reserve_for(revision.as_ref(), slots);
        sizing.decide(given, slots, access, is_held);
        let wanted = sizing.wanted_beside(given.wish, slots);
        let Some(rendered) = access.render(given, slots.active.name(), revision.as_ref(), wanted) else { return };
        let Some(start) = applying::start_of(given, report) else { return };
        liveness.starts(sidecar.now());
        let laid_down = access.lay_down(&sidecar.options.run_dir);
        access.rotating.note_in_force(&sidecar.options.run_dir);
        let rendered = listening.and(laid_down).and(rendered.map_err(|error| error.to_string()));
        if !applying.start(slots, start, rendered, report).await {
            liveness.start_failed(sidecar.now());
        }
    }

    /// Has what server connections are opened with follow the Secret, once it has proven itself.
    async fn rotate(&mut self, now: Millis, answers: bool) {
        let Self { sidecar, configuration, slots, liveness, log, access, sizing, applying, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        if let Some(error) = access.rotating.take_outcome().await {
            log.learn_from(sidecar, slots, access, sizing, &error);
        }
        let told = access.rotating.failure(given.wish);
        let share = sizing.grant(given.wish).share;
        let is_able = liveness.is_serving() && sidecar.program.is_some();
        match access.rotating.step(given, slots, share, is_able) {
            Some(RotationAction::Try) => access.rotating.try_login(given, slots, share),
            Some(RotationAction::TakeOver) => {
                if let Some(anchor_differs) = access.take_over(sidecar) {
                    applying.again_if(anchor_differs);
                    // what could not prove itself with the old ones may now
                    self.switching.another_is_wanted();
                }
            }
            Some(RotationAction::Stop) => access.rotating.stop(),
            None => {}
        }
        applying.again_if(access.rotating.prove_revision(given, slots, share, is_able).await);
        // what slots may open, or close, has changed
        if access.rotating.take_changed_bounds() {
            applying.again_at_once();
        }
        if answers && access.rotating.is_due_to_hand_over(now) {
            access.hand_over(given, slots, applying, report).await;
        }
        access.rotating.tell(given.wish, slots, report);
        access.rotating.tell_login_proof(given, slots, report);
        if told != access.rotating.failure(given.wish) {
            access.rotating.tell_refusals(given.wish, report);
        }
        if answers {
            access.hand_anchor(given, slots).await;
        }
    }

    /// Takes the next step of a change to a new process. True when what runs where has changed.
    async fn switch(&mut self, now: Millis, punctual: bool) -> bool {
        let is_held = self.breaker.holds();
        let Self { sidecar, configuration, slots, liveness, access, switching, sizing, applying, report, .. } = self;
        if !sidecar.can_switch() {
            return false;
        }
        let given = Given::new(sidecar, configuration, now);
        let grant = sizing.grant(given.wish);
        let (phase, given_up) = (slots.phase(), slots.switch.given_up());
        let seen = switching.observe(given, slots, access, grant, (liveness.is_serving(), is_held), punctual).await;
        match slots.switch.step(sidecar.now(), &seen) {
            Some(SwitchAction::Start(_)) => {
                let clients = sidecar.way() == Way::Steer;
                switching.start_other(given, slots, access, grant, clients).await;
            }
            Some(SwitchAction::Listen(_)) => switching.start_other(given, slots, access, grant, true).await,
            Some(SwitchAction::Prove(_)) => switching.prove_other(sidecar, &mut slots.other, grant).await,
            Some(SwitchAction::Close(_)) => switching.close_door(sidecar, &mut slots.active).await,
            Some(SwitchAction::Steer(_)) => {
                if let Some(at) = switching.steer(given, slots, grant, report).await {
                    liveness.is_of_another(at);
                    applying.serves(slots.active.runs.as_ref());
                }
            }
            Some(SwitchAction::CloseIdle(_)) => switching.close_idle(&mut slots.other).await,
            Some(SwitchAction::Stop(_)) => slots.other.stop().await,
            Some(SwitchAction::Kill(_)) => switching.kill_other(&mut slots.other).await,
            None => {}
        }
        switching.tell_given_up(given, slots, given_up, report);
        switching.tell(given, slots, report);
        discriminant(&phase) != discriminant(&slots.phase())
    }

    /// Follows a database that takes no writes any more.
    async fn watch_upstream(&mut self, now: Millis, answers: bool) {
        let Self { sidecar, configuration, slots, access, switching, failover, applying, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        let other = switching.other_slot(slots);
        let differs = failover.step(given, slots, other, &access.rotating, report, answers).await;
        applying.again_if(differs);
        if answers && slots.recalls() {
            slots.recall(report, now).await;
        }
    }

    /// Follows a database that is away, before anything is taken over: a RELOAD has clients wait as the settings say.
    async fn watch_circuit(&mut self, now: Millis) {
        let Self { sidecar, configuration, slots, access, breaker, report, .. } = self;
        breaker.step(Given::new(sidecar, configuration, now), slots, access, report).await;
    }

    /// Whether sizes and processes stay as they are, because the database takes no writes or is away.
    fn is_held(&self) -> bool {
        self.failover.is_read_only() || self.breaker.holds()
    }

    /// Brings what is in force to what is wanted, as far as that may differ, or is on its way.
    async fn apply(&mut self, now: Millis) {
        if self.applying.take_due(now) {
            self.apply_revision(now).await;
            self.apply_limits(now).await;
        } else if self.switching.is_moving(&self.sidecar, &self.slots, &self.access.rotating)
            && self.applying.take_look(now)
        {
            self.slots.look_at_pools(&mut self.report, now).await;
            self.apply_limits(now).await;
        }
    }

    /// Has the process that new clients come to take over the revision, or sees that it needs another one.
    async fn apply_revision(&mut self, now: Millis) {
        let is_held = self.is_held();
        let Self { sidecar, configuration, slots, access, switching, failover, sizing, applying, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        if let Some(both) = slots.limit_taken_up().await {
            sizing.goes_on_with(both);
            sizing.decide(given, slots, access, is_held);
        }
        let wanted = sizing.wanted(given.wish);
        let revision = failover.revision_to_run(given, slots);
        let (revision, rendered) = match applying::render_in_place(given, slots, access, revision, wanted) {
            Some(Ok(rendered)) => rendered,
            Some(Err(error)) => {
                if report.problems.configuration.is(error.to_string()) {
                    tracing::warn!("{error}");
                }
                return;
            }
            None => return,
        };
        report.problems.configuration.is_over();
        if applying.may_switch(given, slots) {
            match switching.fits(given, slots, access, failover, &rendered).await {
                Ok(true) => {}
                // a second process proves it and takes it over; this one goes on with all that it has
                Ok(false) => {
                    access.rotating.awaits_no_proof(sidecar);
                    return applying.settle_reload(report);
                }
                Err(error) => return applying.tell_reload(sidecar, report, revision.revision, &error),
            }
        } else {
            switching.look_again();
        }
        if !access.rotating.is_proven(sidecar, slots, &revision) {
            return applying.settle_reload(report);
        }
        applying.take_over(sidecar, slots, access, (revision, rendered), report).await;
    }

    /// Brings the limits of every process to what is wanted of it.
    async fn apply_limits(&mut self, now: Millis) {
        let is_held = self.is_held();
        let Self { sidecar, configuration, slots, figures, access, switching, sizing, .. } = self;
        let Self { pinning, applying, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        let Some(reserved) = slots.divide_alias(given, report).await else { return };
        sizing.reserve(reserved);
        sizing.decide(given, slots, access, is_held);
        slots.keep(access.rotating.keep(given));
        let Some((active, other)) = switching.parts(given, slots, &access.rotating, sizing).await else { return };
        let in_force = match slots.converge_active(sidecar, active, report).await {
            Some(Progress::InForce) => {
                report.problems.limits.is_over();
                true
            }
            Some(Progress::Releasing { excess }) => {
                // what is set aside for a moment comes back
                if access.rotating.set_aside() == 0 {
                    report.problems.limits.is(format!(
                        "{excess} server connections more than the share are busy; they close as transactions end"
                    ));
                }
                if let (None, Some((_, pools))) = (slots.other.pools, slots.active.pools)
                    && !slots.other.is_mute()
                {
                    figures.see_pools(slots, &access.rotating, pinning.leaked(), pools, sidecar.now());
                }
                false
            }
            None => false,
        };
        let both = match other {
            Some(other) => slots.converge_other(sidecar, other, report).await && in_force,
            None => in_force,
        };
        if both && slots.open_alias(given, report).await && sizing.is_within_share(given.wish, slots) {
            applying.settle_limits(given, slots, report);
        }
    }

    /// Reads the figures of the load, decides the limit on them, and applies it.
    async fn follow_load(&mut self, now: Millis) {
        self.observe_load(now).await;
        let Self { sidecar, configuration, slots, figures, access, failover, sizing, pinning, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        let grant = sizing.grant(given.wish);
        pinning.step(given, slots, failover, &access.rotating, grant, report).await;
        pinning.name_longest(given, slots).await;
        if figures.take_sweep(now) {
            sizing.read_memory_limit(given);
            slots.forget_limits();
        }
        self.apply_limits(now).await;
    }

    /// Takes a reading, and decides the limit on it.
    async fn observe_load(&mut self, now: Millis) {
        let Self { sidecar, configuration, slots, figures, log, access, failover, breaker, sizing, .. } = self;
        let Self { pinning, applying, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        let now = sidecar.now();
        let together = match Together::read(slots, &access.rotating, pinning.leaked_connections(), now).await {
            Ok(together) => together,
            Err(error) => return report.problems.reading.may_pass(now, error.to_string()),
        };
        report.problems.reading.is_over();
        let punctual = figures.take_punctual(&together);
        report.metrics().observe_active(
            slots.revision(),
            slots.active.name(),
            &together.of_active,
            together.longest_wait_microseconds,
        );
        let Together { pools, added, opens, logged_in, in_force_works, servers, asked_other, .. } = together;
        let seen = CircuitSeen {
            logged_in,
            finished: added.transactions > 0,
            sign: if log.take_failed_attempt() {
                CircuitSign::AttemptFailed
            } else if pools.clients_waiting > 0 && sizing.grant(given.wish).share > 0 {
                CircuitSign::ClientsWait
            } else {
                // while it is paused nothing could come of it
                CircuitSign::Calm
            },
        };
        breaker.see(given, slots, access, seen).await;
        let added = failover.leave_out(added, pools.active);
        access.rotating.read(in_force_works);
        if logged_in {
            access.verification.succeeded();
        }
        log.read(logged_in);
        sizing.see_refusals(sidecar.seconds(), log, report, pools);
        log.tell_reach(&sidecar.injection.upstream, report, now, logged_in);
        pinning.look(given, slots, report, now, &servers);
        applying.count_closing(servers.iter().flat_map(|(_, servers)| servers));
        applying.look_for_owing(slots);
        figures.count_arrivals(&mut slots.active, failover, report, opens, now).await;
        let leaked = pinning.leaked();
        figures.see_pools(slots, &access.rotating, leaked, pools, sidecar.now());
        sizing.count_clients(given, slots, access, report, pools);
        let pools = failover.leave_out_waiting(pools);
        if slots.other_counts() && !asked_other {
            // what the other one holds, and what it would need, is not known
            figures.forget_held();
        } else {
            let reading = PoolerReading {
                at_seconds: sidecar.seconds(),
                pools,
                added,
                leaked,
                automation: match (failover.is_read_only(), breaker.holds()) {
                    (_, true) => Automation::CircuitOpen,
                    (true, false) => Automation::UpstreamReadOnly,
                    (false, false) => Automation::Apply,
                },
                refused_beyond: sizing.ceiling(),
            };
            sizing.react(given.wish, slots, report, &reading, punctual);
        }
        figures.tell_load(slots, report, added, pools, leaked, now);
    }

    /// Goes on with closing what clients hold outside of a transaction.
    async fn close_pinned(&mut self, now: Millis) {
        let Self { sidecar, configuration, slots, access, failover, sizing, pinning, applying, report, .. } = self;
        let given = Given::new(sidecar, configuration, now);
        let grant = sizing.grant(given.wish);
        applying.again_if(pinning.close(given, slots, failover, &access.rotating, grant, report).await);
    }
}
