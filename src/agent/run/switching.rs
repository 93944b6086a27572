//! A revision that needs a new process: the shell around [`crate::agent::decide::switch`].

mod dividing;

use std::{mem::swap, net::SocketAddr};

use tokio::task::JoinHandle;

use super::{
    PING, Reporting, ServerAccess, Sidecar, access::needs_login, failover::Failover, place, sidecar::Given,
    slots::Slots,
};
use crate::{
    agent::{
        apply::{
            process,
            slot::{DEAF, Slot, SlotError, Start, USER, When},
        },
        decide::{
            machine::{ConsoleSeen, Millis},
            slot_name::SlotName,
            switch::{
                Door, GivenUp, GreenProof, Left, OtherSeen, PROOF_DEADLINE, Placement, Promotion, START_DEADLINE,
                SlotsSeen, SwitchFailure, SwitchPhase, Way,
                division::{beside, trial},
            },
            vitals::{self, Effort, Vitals},
        },
        keeper::{self, KeeperState, Listening, Order, ProcessState, SlotState},
        report::metrics::SwitchResult,
    },
    contract::{ForeignListeners, OtherRole, OtherSlot, PodGrant, RevisionWait},
    pooler::pgbouncer::{
        console::{ConsoleError, validate},
        limits,
        render::Rendered,
        tables::Client,
    },
};

/// Between two questions to a console that was silent.
const SILENT_PING: Millis = 2000;
/// Between two attempts to keep a process from accepting clients.
const CLOSING_PAUSE: Millis = 1000;
/// A timeout that is over as soon as it begins; 0 is none.
const AT_ONCE: Millis = 1;
/// Idle clients that are closed in one go.
const CLOSED_AT_ONCE: usize = 10;

/// Between two counts of the sockets that listen on our port.
const STRANGERS_LOOK: Millis = 5000;
/// The least that a process can be given.
const LEAST: limits::WantedLimits = limits::WantedLimits { limit: 1, warm: 0, share: 1 };

/// What the loop keeps in mind of a switch.
#[derive(Default)]
pub(super) struct Switchover {
    /// Counts the configurations that were wanted.
    version: u64,
    /// Where the wanted configuration can run; None until it was looked at.
    place: Option<Placement>,
    /// Parameters that need a new process for it.
    names: Vec<String>,
    /// The active slot's part of the share, while two slots have clients.
    part: u32,
    part_since: Millis,
    steered_at: Millis,
    query: Option<JoinHandle<Result<(), ConsoleError>>>,
    proof: Option<GreenProof>,
    /// What the other slot said when it failed.
    why: Option<String>,
    /// When it answered last, or was seen to lack CPU.
    answered: Millis,
    /// What it had done when it answered last, and when that was.
    vitals: Option<(Millis, Vitals)>,
    next_ping: Millis,
    clients: Option<Vec<Client>>,
    /// Clients that had connected to the other slot and not logged in yet, just before `clients` was read.
    logging_in: u32,
    door: DoorSeen,
    /// Sockets of others that listen where clients come to: at which address, and how many.
    strangers: Option<(SocketAddr, usize)>,
    /// When those are counted next.
    next_count: Millis,
}

/// What is known of how the active slot's process was kept from accepting clients.
#[derive(Clone, Copy, Default)]
enum DoorSeen {
    #[default]
    Open,
    /// It accepts nobody, since before then.
    ClosedAt(Millis),
    /// It could not be; tried then.
    StillOpen(Millis),
}

impl Switchover {
    /// Another configuration is wanted.
    pub(super) fn another_is_wanted(&mut self) {
        self.version += 1;
        self.look_again();
    }

    /// Where it can run is to be looked at again.
    pub(super) fn look_again(&mut self) {
        self.place = None;
    }

    /// How many clients the other slot has; None while unknown.
    fn count_clients(&self) -> Option<u32> {
        let clients = u32::try_from(self.clients.as_ref()?.len()).unwrap_or(u32::MAX);
        Some(clients.saturating_add(self.logging_in))
    }

    /// Whether the process that new clients come to can take over all of this. Keeps in mind where it can run, with the user that is
    /// in force: one that has another and keeps it takes over the rest, and makes way.
    ///
    /// # Errors
    /// The console's.
    pub(super) async fn fits(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        access: &ServerAccess,
        failover: &Failover,
        rendered: &Rendered,
    ) -> Result<bool, SlotError> {
        self.names = slots.active.needs_process(rendered).await?;
        let fits = self.names.is_empty();
        // while the database takes no writes, processes stay as they are
        if access.rotating.keeps_user(&slots.active) && !failover.is_read_only() {
            self.names.push(USER.to_owned());
        }
        let place = if self.names.is_empty() {
            Placement::Active
        } else if fits_other(given, slots, access).await {
            Placement::Other
        } else if let Some(version) = fits_green(given, slots, access).await {
            self.version = version;
            Placement::New { version }
        } else {
            Placement::New { version: self.version }
        };
        self.place = Some(place);
        Ok(fits)
    }

    /// Whether the wanted configuration was given up just now.
    pub(super) fn tell_given_up(&self, given: Given<'_>, slots: &Slots, before: Option<GivenUp>, report: &Reporting) {
        let Some(given_up) = slots.switch.given_up().filter(|given_up| Some(*given_up) != before) else { return };
        report.metrics().count_switch(SwitchResult::GivenUp);
        let why = self.why.as_deref().unwrap_or_default();
        let failure = told(given_up.failure);
        tracing::warn!(
            revision = given.wish.revision.as_ref().map(|wanted| wanted.revision),
            why,
            "given up: {failure}"
        );
    }

    /// Looks at the other slot, and at how far it is. While the database is away (`is_held`) no switch begins.
    pub(super) async fn observe(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        access: &ServerAccess,
        grant: PodGrant,
        (serving, is_held): (bool, bool),
        punctual: bool,
    ) -> SlotsSeen {
        let Given { sidecar, wish, now, .. } = given;
        let running = slots.other.is_running();
        let console = if running { self.ask_other(sidecar, slots, now).await } else { ConsoleSeen::NotAsked };
        if let Some(query) = self.query.take_if(|query| query.is_finished()) {
            self.proof = Some(match query.await {
                Ok(Ok(())) => GreenProof::Given,
                Ok(Err(error)) => self.failed(&error),
                Err(error) => self.failed(&error),
            });
        }
        let door = self.look_at_door(sidecar, slots, serving, now).await;
        let rollout = wish.revision.as_ref().map(|revision| revision.settings.rollout).unwrap_or_default();
        let milliseconds = |seconds: u32| Millis::from(seconds) * 1000;
        // one proof at a time, and none of a process while nothing can log in
        let held =
            is_held || access.rotating.set_aside() > 0 || access.rotating.is_refused() || self.strangers.is_some();
        let waits = slots.phase() == SwitchPhase::Steady && held;
        let place = self.place.filter(|_| !waits);
        let wanted = match (place, slots.phase()) {
            // not looked at yet: it may be what waits already
            (None, SwitchPhase::AwaitingPromotion { version }) => Placement::New { version },
            (place, _) => place.unwrap_or(Placement::Active),
        };
        SlotsSeen {
            active: slots.active.name(),
            serving,
            door,
            room: slots.active.bound().is_some_and(|bound| bound <= beside(grant.share, grant.floor)),
            other: OtherSeen {
                running,
                console,
                proof: self.proof.unwrap_or(GreenProof::Open),
                clients: self.count_clients(),
                forlorn: running && slots.other.is_forlorn(),
                hung: running && punctual && now.saturating_sub(self.answered) > START_DEADLINE,
            },
            wanted,
            way: sidecar.way(),
            share: grant.share,
            punctual,
            // nobody promotes a Secret
            promotion: if (rollout.auto_promotion_enabled || self.names == [USER]) && place.is_some() {
                Promotion::Given
            } else {
                Promotion::Awaited
            },
            scale_down_delay: milliseconds(rollout.scale_down_delay_seconds),
            drain_timeout: if slots.active.is_refused() {
                // all clients wait for the next process, and the database refuses what this one has
                AT_ONCE
            } else {
                milliseconds(rollout.drain_timeout_seconds)
            },
        }
    }

    /// Whether the active slot's process would refuse somebody who logs in if it were told to stop listening now.
    async fn look_at_door(&mut self, sidecar: &Sidecar, slots: &mut Slots, serving: bool, now: Millis) -> Door {
        let refuses = sidecar.build.is_none_or(|build| build.version.refuses_logins_at_its_end());
        let is_taken = matches!(slots.phase(), SwitchPhase::Taking { .. }) && sidecar.way() == Way::HandOver;
        if !refuses || !is_taken || !serving {
            self.door = DoorSeen::Open;
            return Door::Clear;
        }
        match self.door {
            DoorSeen::ClosedAt(at) if now.saturating_sub(at) < DEAF => {}
            // the best that can be done
            DoorSeen::StillOpen(at) if now.saturating_sub(at) < CLOSING_PAUSE => {}
            _ => return Door::Open,
        }
        let logins = slots.active.has_logins().await;
        let now = sidecar.now();
        match (logins, self.door) {
            (_, DoorSeen::ClosedAt(at)) if now.saturating_sub(at) >= DEAF => Door::Open,
            (Ok(false), _) => Door::Clear,
            _ => Door::Closed,
        }
    }

    /// Has the active slot's process accept nobody for a while, as soon as no server connection logs in.
    pub(super) async fn close_door(&mut self, sidecar: &Sidecar, active: &mut Slot) {
        let now = sidecar.now();
        let closed = match active.is_quiet(now).await {
            Ok(true) => active.stop_accepting().await,
            Ok(false) => return,
            Err(error) => Err(error),
        };
        self.door = match closed {
            Ok(true) => DoorSeen::ClosedAt(now),
            Ok(false) | Err(_) => DoorSeen::StillOpen(sidecar.now()),
        };
        if let DoorSeen::StillOpen(_) = self.door {
            let why = closed.err().map_or_else(|| "it still accepts them".to_owned(), |error| error.to_string());
            tracing::warn!(slot = active.name().as_str(), "keeping it from accepting clients before it is left: {why}");
        }
    }

    /// Asks the other console: often while its process starts, else every half second; then for its clients too.
    async fn ask_other(&mut self, sidecar: &Sidecar, slots: &mut Slots, now: Millis) -> ConsoleSeen {
        let phase = slots.phase();
        let other = &mut slots.other;
        if other.is_mute() && !self.finds_console_again(other, now).await {
            // it ends by itself, unless somebody stopped it
            self.clients = None;
            other.forget_figures();
            let stopped = other.vitals().is_some_and(|vitals| vitals.state == vitals::RunState::Stopped);
            if !stopped {
                self.answered = now;
            }
            return ConsoleSeen::NotAsked;
        }
        let starting = matches!(phase, SwitchPhase::Starting { .. } | SwitchPhase::Taking { .. });
        if !starting && now < self.next_ping {
            return ConsoleSeen::NotAsked;
        }
        let answer = if matches!(phase, SwitchPhase::Warm { .. } | SwitchPhase::Draining { .. }) {
            self.look_at_clients(other).await
        } else {
            other.console.run("SHOW VERSION").await.map(|_| ())
        };
        let now = sidecar.now();
        if let Err(error) = answer {
            self.why = Some(error.to_string());
            self.clients = None;
            self.next_ping = now + SILENT_PING;
            if self.is_starved(other, now) {
                self.answered = now;
            }
            return ConsoleSeen::Silent;
        }
        (self.answered, self.next_ping) = (now, now + PING);
        self.vitals = other.vitals().map(|vitals| (now, vitals));
        ConsoleSeen::Answered
    }

    /// Whether the console of a process that was told to end with its last client takes us in after all: it has not heard of it, or
    /// it is one that leaves its console open.
    async fn finds_console_again(&mut self, other: &mut Slot, now: Millis) -> bool {
        if now < self.next_ping {
            return false;
        }
        self.next_ping = now + SILENT_PING;
        let found = other.console.run("SHOW VERSION").await.is_ok();
        if found {
            other.keep_sessions();
            self.next_ping = now;
        }
        found
    }

    async fn look_at_clients(&mut self, other: &mut Slot) -> Result<(), ConsoleError> {
        // first those that will be clients: in the other order one could be missed that logs in between
        let logging_in = other.console.clients_logging_in().await?;
        let clients = other.console.clients().await?;
        (self.clients, self.logging_in) = (Some(clients), logging_in);
        Ok(())
    }

    /// Whether the other process would answer if it were let.
    fn is_starved(&self, other: &Slot, now: Millis) -> bool {
        let Some((vitals, (at, before))) = other.vitals().zip(self.vitals) else { return false };
        vitals.effort_since(&before, now.saturating_sub(at)) == Effort::Starved
    }

    fn failed(&mut self, error: &dyn std::error::Error) -> GreenProof {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let said = cause.to_string();
            if !text.ends_with(&said) {
                text = format!("{text}: {said}");
            }
            source = cause.source();
        }
        self.why = Some(text);
        GreenProof::Failed
    }

    /// Starts a process in the other slot.
    pub(super) async fn start_other(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        access: &ServerAccess,
        grant: PodGrant,
        clients: bool,
    ) {
        (self.proof, self.query, self.why, self.clients) = (None, None, None, None);
        self.vitals = None;
        match start_other(given, &mut slots.other, access, grant, clients).await {
            Ok(revision) => {
                tracing::info!(
                    revision,
                    slot = slots.other.name().as_str(),
                    clients,
                    "a new process for {} proves itself before it gets clients",
                    self.names.join(", ")
                );
                self.answered = given.sidecar.now();
            }
            Err(why) => self.why = Some(why),
        }
    }

    /// The limits are as given, and a query comes back from the database.
    pub(super) async fn prove_other(&mut self, sidecar: &Sidecar, other: &mut Slot, grant: PodGrant) {
        let part = trial(grant.share, grant.floor);
        // it may have proven itself before, and the share may have changed since it started
        self.proof = None;
        other.limits = None;
        let wanted = limits::WantedLimits { limit: part, warm: 0, share: part };
        let now = sidecar.now();
        let ready = match other.converge(now, wanted, Some(0)).await {
            // clients of the alias come with the others, and its part is blue's until then
            Ok(_) => other.close_alias(now).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ready {
            self.proof = Some(self.failed(&error));
            return;
        }
        let (Some(revision), Some(credentials)) = (other.runs.as_ref(), other.credentials()) else { return };
        self.query = Some(tokio::spawn(validate(
            other.console.socket().to_owned(),
            sidecar.injection.upstream.database.clone(),
            credentials.clone(),
            revision.settings.health.validation_query.clone(),
            std::time::Duration::from_millis(PROOF_DEADLINE),
        )));
    }

    /// Kills the other slot's process, and whatever it was to prove.
    pub(super) async fn kill_other(&mut self, other: &mut Slot) {
        self.query = None;
        other.kill().await;
    }

    /// Counts who listens where clients come to, besides the keeper, now and then.
    pub(super) fn watch_for_strangers(&mut self, sidecar: &Sidecar, report: &mut Reporting, now: Millis) {
        if now >= self.next_count {
            self.next_count = now + STRANGERS_LOOK;
            self.look_for_strangers(sidecar, report);
        }
    }

    fn look_for_strangers(&mut self, sidecar: &Sidecar, report: &mut Reporting) {
        let ours = match sidecar.link.listening() {
            Listening::Steering => SlotName::ALL.len(),
            Listening::Shared { .. } => 1,
            Listening::Failed { .. } => 0,
            Listening::Closed => return,
        };
        self.strangers = place::strangers(&sidecar.addresses, sidecar.injection.client.port, ours);
        match self.strangers {
            // that nothing is opened beside it has been told
            Some((address, count)) if ours > 0 => {
                let strangers = keeper::strangers(address, count);
                let text = format!("{strangers}; until it has gone, new clients are led to no other process");
                if report.problems.listeners.is(text) {
                    tracing::error!("{strangers}");
                }
            }
            Some(_) | None => report.problems.listeners.is_over(),
        }
    }

    /// Who listens where clients come to beside the keeper, as it was counted last.
    pub(super) fn foreign_listeners(&self) -> Option<ForeignListeners> {
        self.strangers.map(|(address, sockets)| ForeignListeners {
            address: address.to_string(),
            sockets: u32::try_from(sockets).unwrap_or(u32::MAX),
        })
    }

    /// Leads new clients to the other slot: it is the active one from then on. None: that failed, or somebody else listens too.
    pub(super) async fn steer(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        grant: PodGrant,
        report: &mut Reporting,
    ) -> Option<Millis> {
        let sidecar = given.sidecar;
        let slot = slots.other.name();
        self.look_for_strangers(sidecar, report);
        if self.strangers.is_some() {
            let now = sidecar.now();
            slots.switch.not_steered(now, left(&sidecar.link.state(), slot));
            return None;
        }
        let order = match sidecar.way() {
            Way::Steer => Order::Steer { slot },
            Way::HandOver => {
                // its console takes nobody in any more after this: who is there already stays
                if let Err(error) = slots.active.lay_in_sessions().await {
                    tracing::warn!(
                        slot = slots.active.name().as_str(),
                        "it may not be asked anything any more: {error}"
                    );
                }
                let grant = given.wish.grant();
                Order::HandOver { slot, bound: slots.active.bound().unwrap_or(beside(grant.share, grant.floor)) }
            }
        };
        let steered = sidecar.link.order(&order).await;
        let now = sidecar.now();
        if !steered.is_ok_and(|state| state.steered == slot) {
            tracing::error!("clients could not be led to slot {}", slot.as_str());
            slots.switch.not_steered(now, left(&sidecar.link.state(), slot));
            return None;
        }
        swap(&mut slots.active, &mut slots.other);
        if sidecar.way() == Way::HandOver {
            slots.other.keep_sessions();
        }
        // those that are at work keep their connections; what is spare goes where new clients go
        let busy = slots.other.pools.map_or(0, |(_, pools)| pools.active.saturating_add(pools.clients_waiting));
        let kept = busy.clamp(u32::from(grant.share > 1), beside(grant.share, grant.floor).max(1)).min(grant.share);
        let kept = match sidecar.way() {
            _ if grant.share <= 1 => 0,
            Way::Steer => kept,
            Way::HandOver => kept.max(grant.share / 2).min(beside(grant.share, grant.floor)),
        };
        (self.part, self.part_since) = (grant.share - kept, now);
        (self.steered_at, self.answered, self.next_ping) = (now, now, 0);
        (self.clients, self.vitals) = (None, None);
        let back = matches!(slots.phase(), SwitchPhase::Warm { version: None, .. });
        // what was the other slot is the active one now: until that was looked at, nothing is known of where the wish can run
        self.look_again();
        report.metrics().count_switch(if back { SwitchResult::SteppedBack } else { SwitchResult::Switched });
        tracing::info!(revision = slots.revision(), slot = slot.as_str(), back, "new clients are led here");
        Some(now)
    }

    /// Closes a few clients of the other slot that hold no server connection, the oldest first.
    pub(super) async fn close_idle(&mut self, other: &mut Slot) {
        let mut idle: Vec<_> = self.clients.iter().flatten().filter(|client| !client.linked).collect();
        idle.sort_by(|a, b| a.connected.cmp(&b.connected));
        let ids: Vec<u64> = idle.into_iter().take(CLOSED_AT_ONCE).map(|client| client.id).collect();
        for id in ids {
            // it may have gone by itself
            if let Err(error) = other.console.kill_client(id).await {
                tracing::debug!("{error}");
            }
        }
        self.next_ping = 0;
    }

    /// What is told of the other slot.
    pub(super) fn other_slot(&self, slots: &Slots) -> Option<OtherSlot> {
        slots.other.pid()?;
        let role = match slots.phase() {
            SwitchPhase::Steady => return None,
            SwitchPhase::Starting { .. }
            | SwitchPhase::MakingRoom { .. }
            | SwitchPhase::Proving { .. }
            | SwitchPhase::AwaitingPromotion { .. }
            | SwitchPhase::Replacing { .. }
            | SwitchPhase::Taking { .. } => OtherRole::Green,
            SwitchPhase::Warm { .. } => OtherRole::Warm,
            SwitchPhase::Draining { .. } => OtherRole::Draining,
        };
        let clients = self.count_clients();
        Some(OtherSlot {
            role,
            revision: slots.other.runs.as_ref().map(|revision| revision.revision),
            clients,
            awaiting_promotion: matches!(slots.phase(), SwitchPhase::AwaitingPromotion { .. }),
        })
    }

    /// What the wanted revision waits for, where a process that clients still work with is in its way.
    pub(super) fn waits(&self, slots: &Slots) -> Option<RevisionWait> {
        let is_in_the_way = matches!(slots.phase(), SwitchPhase::Warm { .. } | SwitchPhase::Draining { .. });
        let needs_process = matches!(self.place, Some(Placement::New { .. }));
        (is_in_the_way && needs_process).then_some(RevisionWait::Drain)
    }

    /// Says what keeps the wanted revision from being in force.
    pub(super) fn tell(&self, given: Given<'_>, slots: &Slots, report: &mut Reporting) {
        let Some(Placement::New { version }) = self.place else {
            return report.problems.switch.is_over();
        };
        // asked for, and told by its role
        if matches!(slots.phase(), SwitchPhase::AwaitingPromotion { .. }) {
            return report.problems.switch.is_over();
        }
        let now = given.sidecar.now();
        let name =
            |number: Option<u64>| number.map_or_else(|| "what runs".to_owned(), |number| format!("revision {number}"));
        let wanted = if self.names == [USER] {
            "the new user".to_owned()
        } else {
            name(given.wish.revision.as_ref().map(|revision| revision.revision))
        };
        let runs = name(slots.revision());
        let parameters = self.names.join(", ");
        let text = match (slots.phase(), slots.switch.given_up()) {
            (SwitchPhase::Steady, Some(given_up)) if given_up.version == version => {
                let why = self.why.as_deref().unwrap_or("it gave no reason");
                let pause = given_up.until.saturating_sub(now).div_ceil(5000) * 5;
                format!(
                    "{wanted} is not in force: {}: {why}; {runs} serves on; it is tried again within {pause} s",
                    told(given_up.failure)
                )
            }
            (SwitchPhase::Steady, _) => format!("{wanted} needs a new process for {parameters}"),
            (
                SwitchPhase::Starting { .. }
                | SwitchPhase::MakingRoom { .. }
                | SwitchPhase::Proving { .. }
                | SwitchPhase::AwaitingPromotion { .. }
                | SwitchPhase::Replacing { .. }
                | SwitchPhase::Taking { .. },
                _,
            ) => {
                format!("{wanted} needs a new process for {parameters}, which has to prove itself; {runs} serves on")
            }
            (SwitchPhase::Warm { .. } | SwitchPhase::Draining { .. }, _) => {
                let count = self.count_clients().map_or_else(|| "the".to_owned(), |count| count.to_string());
                let clients = self.clients.as_deref().unwrap_or_default();
                let oldest = clients.iter().map(|client| client.connected.as_str()).min();
                let oldest = oldest.map(|since| format!(", the oldest connected since {since}")).unwrap_or_default();
                format!(
                    "WaitingForDrain: {wanted} needs a new process for {parameters}, and waits until {count} clients of {} have gone{oldest}",
                    name(slots.other.runs.as_ref().map(|revision| revision.revision)),
                )
            }
        };
        report.problems.switch.is(text);
    }
}

/// Whether the other slot's process, which clients still work with, can take over all of what is wanted now.
async fn fits_other(given: Given<'_>, slots: &mut Slots, access: &ServerAccess) -> bool {
    let kept = matches!(slots.phase(), SwitchPhase::Warm { .. } | SwitchPhase::Draining { .. });
    if !kept || !slots.other_counts() || slots.other.leaving().is_some() {
        return false;
    }
    let rendered = access.render(given, slots.other.name(), given.wish.revision.as_ref(), LEAST);
    let Some(Ok((revision, rendered))) = rendered else { return false };
    // new clients are led to it at once: it has to be as good as what runs
    if needs_login(given.sidecar, slots.other.runs.as_ref(), &revision) {
        return false;
    }
    slots.other.needs_process(&rendered).await.is_ok_and(|names| names.is_empty())
}

/// Whether green, which has been proven, can take over all of what is wanted now, so that it need not start anew: somebody
/// promotes it, or changes what needs no new process. It has taken it over then, and this is what it is called.
async fn fits_green(given: Given<'_>, slots: &mut Slots, access: &ServerAccess) -> Option<u64> {
    if access.rotating.keeps_user(&slots.other) {
        return None;
    }
    let wanted = given.wish.revision.as_ref();
    let version = match slots.phase() {
        SwitchPhase::AwaitingPromotion { version } => version,
        SwitchPhase::MakingRoom { version, .. } | SwitchPhase::Proving { version, .. }
            if slots.other.runs.as_ref() == wanted =>
        {
            return Some(version);
        }
        _ => return None,
    };
    let other = &mut slots.other;
    if other.runs.as_ref() == wanted {
        return Some(version);
    }
    // nothing is opened before it proves itself
    let (revision, rendered) = access.render(given, other.name(), wanted, LEAST).and_then(Result::ok)?;
    // what it has proven is something else
    if needs_login(given.sidecar, other.runs.as_ref(), &revision) {
        return None;
    }
    let names = other.needs_process(&rendered).await.ok()?;
    if !names.is_empty() || other.take_over(rendered, When::AtOnce).await.is_err() {
        return None;
    }
    other.goes_on_with(revision);
    Some(version)
}

/// Starts a process in the other slot; which revision it runs.
async fn start_other(
    given: Given<'_>,
    other: &mut Slot,
    access: &ServerAccess,
    grant: PodGrant,
    clients: bool,
) -> Result<u64, String> {
    let Given { sidecar, wish, .. } = given;
    let part = trial(grant.share, grant.floor);
    // nothing is opened before it is asked to prove itself
    let wanted = limits::WantedLimits { limit: part, warm: 0, share: part };
    let rendered = access.render(given, other.name(), wish.revision.as_ref(), wanted);
    let (Some(rendered), Some(program)) = (rendered, &sidecar.program) else {
        return Err("there is nothing to start".to_owned());
    };
    let (revision, rendered) = rendered.map_err(|error| error.to_string())?;
    let files = process::files_needed(sidecar.injection.client.max_connections, wish.grant().share);
    let start = Start { program, inherits_sockets: true, clients, files };
    other.start(start, rendered).await.map_err(|error| error.to_string())?;
    let number = revision.revision;
    other.runs = Some(revision);
    Ok(number)
}

/// What runs in a slot that is not the active one, as the keeper knows it.
pub(super) fn left(state: &KeeperState, slot: SlotName) -> Left {
    let is_shared = matches!(state.listening, Listening::Shared { .. });
    match state.slot(slot) {
        SlotState { process: ProcessState::Running { .. }, had_clients, leaving, .. } => match (had_clients, leaving) {
            (false, _) => Left::WithoutClients,
            (true, None) if is_shared => Left::Listening,
            (true, _) => Left::WithClients,
        },
        _ => Left::Nothing,
    }
}

fn told(failure: SwitchFailure) -> &'static str {
    match failure {
        SwitchFailure::Ended => "its process ended",
        SwitchFailure::NeverAnswered => "its process never answered",
        SwitchFailure::NoRoom => "running transactions left no server connection for its proof",
        SwitchFailure::NotProven => "it did not prove itself",
        SwitchFailure::EndedWarm => "its process ended or hung soon after it got clients",
    }
}
