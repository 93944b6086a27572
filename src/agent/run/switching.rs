//! A revision that needs a new process: the shell around [`crate::agent::decide::switch`].

mod dividing;

use std::mem::{discriminant, swap};

use tokio::task::JoinHandle;

use super::{Agent, PING, place};
use crate::{
    agent::{
        apply::{
            process,
            slot::{DEAF, Slot, SlotError, Start, USER, When},
        },
        decide::{
            machine::{ConsoleSeen, Machine, Millis},
            slot_name::SlotName,
            switch::{
                Door, GreenProof, Left, OtherSeen, PROOF_DEADLINE, Placement, Promotion, START_DEADLINE, SlotsSeen,
                SwitchAction, SwitchFailure, SwitchPhase, Way,
                division::{beside, trial},
            },
            vitals::{self, Effort, Vitals},
        },
        keeper::{KeeperState, Listening, Order, ProcessState, SlotState},
        report::metrics::SwitchResult,
    },
    contract::{OtherRole, OtherSlot, PoolRevision, Switching as Mode},
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

/// What the loop keeps in mind of a switch.
#[derive(Default)]
pub(super) struct Switching {
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
    /// Sockets of others that listen where clients come to, in a sentence.
    strangers: Option<String>,
    /// When those are counted next.
    pub(super) next_count: Millis,
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

impl Switching {
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
}

impl Agent {
    /// Whether a second process can take over clients without losing one.
    pub(super) fn can_switch(&self) -> bool {
        self.inherits_sockets() && !matches!(self.sidecar.link.listening(), Listening::Failed { .. })
    }

    pub(super) fn switching_mode(&self) -> Mode {
        match self.way() {
            _ if !self.may_switch() => Mode::Unsupported,
            Way::Steer => Mode::Steer,
            Way::HandOver => Mode::SharedListener,
        }
    }

    /// Whether a revision may come into force by a second process now. Where the socket is shared, a session alias keeps it from
    /// that: green's would be open beside blue's as soon as green listens.
    pub(super) fn may_switch(&self) -> bool {
        let has_alias = |revision: &PoolRevision| revision.settings.session_alias.is_some();
        let alias = [&self.configuration.wish.revision, &self.applying.served].into_iter().flatten().any(has_alias);
        self.can_switch() && (self.way() == Way::Steer || !alias && self.slots.active.alias.is_none())
    }

    fn way(&self) -> Way {
        if matches!(self.sidecar.link.listening(), Listening::Shared { .. }) { Way::HandOver } else { Way::Steer }
    }

    /// Whether the other slot's server connections count.
    pub(super) fn other_counts(&self) -> bool {
        let phase = self.slots.switch.phase();
        let counts = matches!(
            phase,
            SwitchPhase::Proving { .. }
                | SwitchPhase::AwaitingPromotion { .. }
                | SwitchPhase::Replacing { .. }
                | SwitchPhase::Taking { .. }
                | SwitchPhase::Warm { .. }
                | SwitchPhase::Draining { .. }
        );
        counts && self.slots.other.pid().is_some()
    }

    /// Whether the other slot's process counts and can be asked.
    pub(super) fn can_ask_other(&self) -> bool {
        self.other_counts() && !self.slots.other.is_mute()
    }

    /// The slots whose processes count and can be asked, the one that new clients come to first.
    pub(super) fn slots_to_ask(&self) -> impl Iterator<Item = &Slot> {
        [Some(&self.slots.active), self.can_ask_other().then_some(&self.slots.other)].into_iter().flatten()
    }

    /// The same, to be asked.
    pub(super) fn slots_to_ask_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        let other = self.can_ask_other();
        [Some(&mut self.slots.active), other.then_some(&mut self.slots.other)].into_iter().flatten()
    }

    /// The slot of this name.
    pub(super) fn named_mut(&mut self, name: SlotName) -> &mut Slot {
        if self.slots.active.name() == name { &mut self.slots.active } else { &mut self.slots.other }
    }

    /// Whether the process that new clients come to can take over all of this. Keeps in mind where it can run, with the user that is
    /// in force: one that has another and keeps it takes over the rest, and makes way.
    ///
    /// # Errors
    /// The console's.
    pub(super) async fn fits(&mut self, rendered: &Rendered) -> Result<bool, SlotError> {
        self.switching.names = self.slots.active.needs_process(rendered).await?;
        let fits = self.switching.names.is_empty();
        // while the database takes no writes, processes stay as they are
        if self.keeps_user(&self.slots.active) && !self.failover.is_read_only() {
            self.switching.names.push(USER.to_owned());
        }
        let place = if self.switching.names.is_empty() {
            Placement::Active
        } else if self.fits_other().await {
            Placement::Other
        } else if let Some(version) = self.fits_green().await {
            self.switching.version = version;
            Placement::New { version }
        } else {
            Placement::New { version: self.switching.version }
        };
        self.switching.place = Some(place);
        Ok(fits)
    }

    async fn fits_other(&mut self) -> bool {
        let kept = matches!(self.slots.switch.phase(), SwitchPhase::Warm { .. } | SwitchPhase::Draining { .. });
        if !kept || !self.other_counts() || self.slots.other.leaving().is_some() {
            return false;
        }
        let wanted = limits::WantedLimits { limit: 1, warm: 0, share: 1 };
        let Some(Ok((_, rendered))) =
            self.render(self.slots.other.name(), self.configuration.wish.revision.as_ref(), wanted)
        else {
            return false;
        };
        self.slots.other.needs_process(&rendered).await.is_ok_and(|names| names.is_empty())
    }

    /// Whether green, which has been proven, can take over all of what is wanted now, so that it need not start anew: somebody
    /// promotes it, or changes what needs no new process. It has taken it over then, and this is what it is called.
    async fn fits_green(&mut self) -> Option<u64> {
        if self.keeps_user(&self.slots.other) {
            return None;
        }
        let version = match self.slots.switch.phase() {
            SwitchPhase::AwaitingPromotion { version } => version,
            SwitchPhase::MakingRoom { version, .. } | SwitchPhase::Proving { version, .. }
                if self.slots.other.runs == self.configuration.wish.revision =>
            {
                return Some(version);
            }
            _ => return None,
        };
        if self.slots.other.runs == self.configuration.wish.revision {
            return Some(version);
        }
        // nothing is opened before it proves itself
        let wanted = limits::WantedLimits { limit: 1, warm: 0, share: 1 };
        let (revision, rendered) = self
            .render(self.slots.other.name(), self.configuration.wish.revision.as_ref(), wanted)
            .and_then(Result::ok)?;
        let names = self.slots.other.needs_process(&rendered).await.ok()?;
        if !names.is_empty() || self.slots.other.take_over(rendered, When::AtOnce).await.is_err() {
            return None;
        }
        self.slots.other.goes_on_with(revision);
        Some(version)
    }

    /// Takes the next step of a switch. True when what runs where has changed.
    pub(super) async fn switch(&mut self, now: Millis, punctual: bool) -> bool {
        if !self.can_switch() {
            return false;
        }
        let (phase, given_up) = (self.slots.switch.phase(), self.slots.switch.given_up());
        let seen = self.observe_other(now, punctual).await;
        if let Some(action) = self.slots.switch.step(self.now(), &seen) {
            self.act(action).await;
        }
        if self.slots.switch.given_up().is_some() && self.slots.switch.given_up() != given_up {
            self.report.published.metrics.count_switch(SwitchResult::GivenUp);
            let why = self.switching.why.as_deref().unwrap_or_default();
            let failure = self.slots.switch.given_up().map_or("", |given_up| told(given_up.failure));
            tracing::warn!(
                revision = self.configuration.wish.revision.as_ref().map(|wanted| wanted.revision),
                why,
                "given up: {failure}"
            );
        }
        self.tell_switch();
        discriminant(&phase) != discriminant(&self.slots.switch.phase())
    }

    async fn observe_other(&mut self, now: Millis, punctual: bool) -> SlotsSeen {
        let running = self.slots.other.is_running();
        let console = if running { self.ask_other(now).await } else { ConsoleSeen::NotAsked };
        if let Some(query) = self.switching.query.take_if(|query| query.is_finished()) {
            self.switching.proof = Some(match query.await {
                Ok(Ok(())) => GreenProof::Given,
                Ok(Err(error)) => self.failed(&error),
                Err(error) => self.failed(&error),
            });
        }
        let door = self.look_at_door(now).await;
        let grant = self.grant();
        let rollout =
            self.configuration.wish.revision.as_ref().map(|revision| revision.settings.rollout).unwrap_or_default();
        let milliseconds = |seconds: u32| Millis::from(seconds) * 1000;
        // one proof at a time, and none of a process while nothing can log in
        let held = self.access.rotating.set_aside() > 0
            || self.access.rotating.is_refused()
            || self.switching.strangers.is_some();
        let waits = self.slots.switch.phase() == SwitchPhase::Steady && held;
        let place = self.switching.place.filter(|_| !waits);
        let wanted = match (place, self.slots.switch.phase()) {
            // not looked at yet: it may be what waits already
            (None, SwitchPhase::AwaitingPromotion { version }) => Placement::New { version },
            (place, _) => place.unwrap_or(Placement::Active),
        };
        SlotsSeen {
            active: self.slots.active.name(),
            serving: self.liveness.machine.is_serving(),
            door,
            room: self.slots.active.bound().is_some_and(|bound| bound <= beside(grant.share, grant.floor)),
            other: OtherSeen {
                running,
                console,
                proof: self.switching.proof.unwrap_or(GreenProof::Open),
                clients: self.switching.count_clients(),
                forlorn: running && self.slots.other.is_forlorn(),
                hung: running && punctual && now.saturating_sub(self.switching.answered) > START_DEADLINE,
            },
            wanted,
            way: self.way(),
            share: grant.share,
            punctual,
            // nobody promotes a Secret
            promotion: if (rollout.auto_promotion_enabled || self.switching.names == [USER]) && place.is_some() {
                Promotion::Given
            } else {
                Promotion::Awaited
            },
            scale_down_delay: milliseconds(rollout.scale_down_delay_seconds),
            drain_timeout: if self.slots.active.is_refused() {
                // all clients wait for the next process, and the database refuses what this one has
                AT_ONCE
            } else {
                milliseconds(rollout.drain_timeout_seconds)
            },
        }
    }

    /// Whether the active slot's process would refuse somebody who logs in if it were told to stop listening now.
    async fn look_at_door(&mut self, now: Millis) -> Door {
        let refuses = self.sidecar.build.is_none_or(|build| build.version.refuses_logins_at_its_end());
        let is_taken = matches!(self.slots.switch.phase(), SwitchPhase::Taking { .. }) && self.way() == Way::HandOver;
        if !refuses || !is_taken || !self.liveness.machine.is_serving() {
            self.switching.door = DoorSeen::Open;
            return Door::Clear;
        }
        match self.switching.door {
            DoorSeen::ClosedAt(at) if now.saturating_sub(at) < DEAF => {}
            // the best that can be done
            DoorSeen::StillOpen(at) if now.saturating_sub(at) < CLOSING_PAUSE => {}
            _ => return Door::Open,
        }
        let logins = self.slots.active.has_logins().await;
        let now = self.now();
        match (logins, self.switching.door) {
            (_, DoorSeen::ClosedAt(at)) if now.saturating_sub(at) >= DEAF => Door::Open,
            (Ok(false), _) => Door::Clear,
            _ => Door::Closed,
        }
    }

    /// Has the active slot's process accept nobody for a while, as soon as no server connection logs in.
    async fn close_door(&mut self) {
        let now = self.now();
        let closed = match self.slots.active.is_quiet(now).await {
            Ok(true) => self.slots.active.stop_accepting().await,
            Ok(false) => return,
            Err(error) => Err(error),
        };
        self.switching.door = match closed {
            Ok(true) => DoorSeen::ClosedAt(now),
            Ok(false) | Err(_) => DoorSeen::StillOpen(self.now()),
        };
        if let DoorSeen::StillOpen(_) = self.switching.door {
            let why = closed.err().map_or_else(|| "it still accepts them".to_owned(), |error| error.to_string());
            tracing::warn!(
                slot = self.slots.active.name().as_str(),
                "keeping it from accepting clients before it is left: {why}"
            );
        }
    }

    /// Asks the other console: often while its process starts, else every half second; then for its clients too.
    async fn ask_other(&mut self, now: Millis) -> ConsoleSeen {
        if self.slots.other.is_mute() && !self.finds_console_again(now).await {
            // it ends by itself, unless somebody stopped it
            self.switching.clients = None;
            self.slots.other.forget_figures();
            let stopped = self.slots.other.vitals().is_some_and(|vitals| vitals.state == vitals::RunState::Stopped);
            if !stopped {
                self.switching.answered = now;
            }
            return ConsoleSeen::NotAsked;
        }
        let starting = matches!(self.slots.switch.phase(), SwitchPhase::Starting { .. } | SwitchPhase::Taking { .. });
        if !starting && now < self.switching.next_ping {
            return ConsoleSeen::NotAsked;
        }
        let answer = if matches!(self.slots.switch.phase(), SwitchPhase::Warm { .. } | SwitchPhase::Draining { .. }) {
            self.count_clients().await
        } else {
            self.slots.other.console.run("SHOW VERSION").await.map(|_| ())
        };
        let now = self.now();
        if let Err(error) = answer {
            self.switching.why = Some(error.to_string());
            self.switching.clients = None;
            self.switching.next_ping = now + SILENT_PING;
            if self.other_is_starved(now) {
                self.switching.answered = now;
            }
            return ConsoleSeen::Silent;
        }
        (self.switching.answered, self.switching.next_ping) = (now, now + PING);
        self.switching.vitals = self.slots.other.vitals().map(|vitals| (now, vitals));
        ConsoleSeen::Answered
    }

    /// Whether the console of a process that was told to end with its last client takes us in after all: it has not heard of it, or
    /// it is one that leaves its console open.
    async fn finds_console_again(&mut self, now: Millis) -> bool {
        if now < self.switching.next_ping {
            return false;
        }
        self.switching.next_ping = now + SILENT_PING;
        let found = self.slots.other.console.run("SHOW VERSION").await.is_ok();
        if found {
            self.slots.other.keep_sessions();
            self.switching.next_ping = now;
        }
        found
    }

    async fn count_clients(&mut self) -> Result<(), ConsoleError> {
        // first those that will be clients: in the other order one could be missed that logs in between
        let logging_in = self.slots.other.console.clients_logging_in().await?;
        let clients = self.slots.other.console.clients().await?;
        (self.switching.clients, self.switching.logging_in) = (Some(clients), logging_in);
        Ok(())
    }

    /// Whether the other process would answer if it were let.
    fn other_is_starved(&self, now: Millis) -> bool {
        let Some((vitals, (at, before))) = self.slots.other.vitals().zip(self.switching.vitals) else { return false };
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
        self.switching.why = Some(text);
        GreenProof::Failed
    }

    async fn act(&mut self, action: SwitchAction) {
        match action {
            SwitchAction::Start(_) | SwitchAction::Listen(_) => {
                let clients = self.way() == Way::Steer || matches!(action, SwitchAction::Listen(_));
                if let Err(why) = self.start_other(clients).await {
                    self.switching.why = Some(why);
                }
            }
            SwitchAction::Prove(_) => self.prove_other().await,
            SwitchAction::Close(_) => self.close_door().await,
            SwitchAction::Steer(_) => self.steer().await,
            SwitchAction::CloseIdle(_) => self.close_idle().await,
            SwitchAction::Stop(_) => self.slots.other.stop().await,
            SwitchAction::Kill(_) => {
                self.switching.query = None;
                self.slots.other.kill().await;
            }
        }
    }

    async fn start_other(&mut self, clients: bool) -> Result<(), String> {
        let switching = &mut self.switching;
        (switching.proof, switching.query, switching.why, switching.clients) = (None, None, None, None);
        switching.vitals = None;
        let grant = self.grant();
        let part = trial(grant.share, grant.floor);
        // nothing is opened before it is asked to prove itself
        let wanted = limits::WantedLimits { limit: part, warm: 0, share: part };
        let rendered = self.render(self.slots.other.name(), self.configuration.wish.revision.as_ref(), wanted);
        let (Some(rendered), Some(program)) = (rendered, self.sidecar.program.clone()) else {
            return Err("there is nothing to start".to_owned());
        };
        let (revision, rendered) = rendered.map_err(|error| error.to_string())?;
        let files =
            process::files_needed(self.sidecar.injection.client.max_connections, self.configuration.wish.grant().share);
        let start = Start { program: &program, inherits_sockets: true, clients, files };
        self.slots.other.start(start, rendered).await.map_err(|error| error.to_string())?;
        tracing::info!(
            revision = revision.revision,
            slot = self.slots.other.name().as_str(),
            clients,
            "a new process for {} proves itself before it gets clients",
            self.switching.names.join(", ")
        );
        self.slots.other.runs = Some(revision);
        self.switching.answered = self.now();
        Ok(())
    }

    /// The limits are as given, and a query comes back from the database.
    async fn prove_other(&mut self) {
        let grant = self.grant();
        let part = trial(grant.share, grant.floor);
        // it may have proven itself before, and the share may have changed since it started
        self.switching.proof = None;
        self.slots.other.limits = None;
        let wanted = limits::WantedLimits { limit: part, warm: 0, share: part };
        let now = self.now();
        let ready = match self.slots.other.converge(now, wanted, Some(0)).await {
            // clients of the alias come with the others, and its part is blue's until then
            Ok(_) => self.slots.other.close_alias(now).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ready {
            self.switching.proof = Some(self.failed(&error));
            return;
        }
        let (Some(revision), Some(credentials)) = (self.slots.other.runs.as_ref(), self.slots.other.credentials())
        else {
            return;
        };
        self.switching.query = Some(tokio::spawn(validate(
            self.slots.other.console.socket().to_owned(),
            self.sidecar.injection.upstream.database.clone(),
            credentials.clone(),
            revision.settings.health.validation_query.clone(),
            std::time::Duration::from_millis(PROOF_DEADLINE),
        )));
    }

    /// Counts who listens where clients come to, besides the keeper.
    pub(super) fn look_for_strangers(&mut self) {
        let ours = match self.sidecar.link.listening() {
            Listening::Steering => SlotName::ALL.len(),
            Listening::Shared { .. } => 1,
            // a failure has been told
            Listening::Closed | Listening::Failed { .. } => return,
        };
        let strangers = place::strangers(&self.sidecar.addresses, self.sidecar.injection.client.port, ours);
        match &strangers {
            Some(strangers) => {
                let text = format!("{strangers}; until it has gone, new clients are led to no other process");
                if self.report.problems.listeners.is(text) {
                    tracing::error!("{strangers}");
                }
            }
            None => self.report.problems.listeners.is_over(),
        }
        self.switching.strangers = strangers;
    }

    async fn steer(&mut self) {
        let slot = self.slots.other.name();
        self.look_for_strangers();
        if self.switching.strangers.is_some() {
            let now = self.now();
            return self.slots.switch.not_steered(now, left(&self.sidecar.link.state(), slot));
        }
        let order = match self.way() {
            Way::Steer => Order::Steer { slot },
            Way::HandOver => {
                // its console takes nobody in any more after this: who is there already stays
                if let Err(error) = self.slots.active.lay_in_sessions().await {
                    tracing::warn!(
                        slot = self.slots.active.name().as_str(),
                        "it may not be asked anything any more: {error}"
                    );
                }
                let grant = self.configuration.wish.grant();
                Order::HandOver { slot, bound: self.slots.active.bound().unwrap_or(beside(grant.share, grant.floor)) }
            }
        };
        let steered = self.sidecar.link.order(&order).await;
        let now = self.now();
        if !steered.is_ok_and(|state| state.steered == slot) {
            tracing::error!("clients could not be led to slot {}", slot.as_str());
            self.slots.switch.not_steered(now, left(&self.sidecar.link.state(), slot));
            return;
        }
        swap(&mut self.slots.active, &mut self.slots.other);
        if self.way() == Way::HandOver {
            self.slots.other.keep_sessions();
        }
        self.liveness.machine = Machine::serving(now);
        (self.liveness.started_at, self.liveness.answered, self.liveness.heard) = (now, None, ConsoleSeen::Answered);
        if let Some(runs) = &self.slots.active.runs {
            self.applying.served = Some(runs.clone());
        }
        // those that are at work keep their connections; what is spare goes where new clients go
        let grant = self.grant();
        let busy = self.slots.other.pools.map_or(0, |(_, pools)| pools.active.saturating_add(pools.clients_waiting));
        let kept = busy.clamp(u32::from(grant.share > 1), beside(grant.share, grant.floor).max(1)).min(grant.share);
        let kept = match self.way() {
            _ if grant.share <= 1 => 0,
            Way::Steer => kept,
            Way::HandOver => kept.max(grant.share / 2).min(beside(grant.share, grant.floor)),
        };
        (self.switching.part, self.switching.part_since) = (grant.share - kept, now);
        (self.switching.steered_at, self.switching.answered, self.switching.next_ping) = (now, now, 0);
        (self.switching.clients, self.switching.vitals) = (None, None);
        let back = matches!(self.slots.switch.phase(), SwitchPhase::Warm { version: None, .. });
        // what was the other slot is the active one now: until that was looked at, nothing is known of where the wish can run
        self.switching.look_again();
        self.applying.to_be_applied = true;
        self.report.published.metrics.count_switch(if back {
            SwitchResult::SteppedBack
        } else {
            SwitchResult::Switched
        });
        tracing::info!(revision = self.revision(), slot = slot.as_str(), back, "new clients are led here");
    }

    /// Closes a few clients of the other slot that hold no server connection, the oldest first.
    async fn close_idle(&mut self) {
        let mut idle: Vec<_> = self.switching.clients.iter().flatten().filter(|client| !client.linked).collect();
        idle.sort_by(|a, b| a.connected.cmp(&b.connected));
        let ids: Vec<u64> = idle.into_iter().take(CLOSED_AT_ONCE).map(|client| client.id).collect();
        for id in ids {
            // it may have gone by itself
            if let Err(error) = self.slots.other.console.kill_client(id).await {
                tracing::debug!("{error}");
            }
        }
        self.switching.next_ping = 0;
    }

    pub(super) fn other_slot(&self) -> Option<OtherSlot> {
        self.slots.other.pid()?;
        let role = match self.slots.switch.phase() {
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
        let clients = self.switching.count_clients();
        Some(OtherSlot {
            role,
            revision: self.slots.other.runs.as_ref().map(|revision| revision.revision),
            clients,
            awaiting_promotion: matches!(self.slots.switch.phase(), SwitchPhase::AwaitingPromotion { .. }),
        })
    }

    /// Says what keeps the wanted revision from being in force.
    fn tell_switch(&mut self) {
        let Some(Placement::New { version }) = self.switching.place else {
            return self.report.problems.switch.is_over();
        };
        // asked for, and told by its role
        if matches!(self.slots.switch.phase(), SwitchPhase::AwaitingPromotion { .. }) {
            return self.report.problems.switch.is_over();
        }
        let now = self.now();
        let name =
            |number: Option<u64>| number.map_or_else(|| "what runs".to_owned(), |number| format!("revision {number}"));
        let wanted = if self.switching.names == [USER] {
            "the new user".to_owned()
        } else {
            name(self.configuration.wish.revision.as_ref().map(|revision| revision.revision))
        };
        let runs = name(self.revision());
        let parameters = self.switching.names.join(", ");
        let text = match (self.slots.switch.phase(), self.slots.switch.given_up()) {
            (SwitchPhase::Steady, Some(given_up)) if given_up.version == version => {
                let why = self.switching.why.as_deref().unwrap_or("it gave no reason");
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
                let count = self.switching.count_clients().map_or_else(|| "the".to_owned(), |count| count.to_string());
                let clients = self.switching.clients.as_deref().unwrap_or_default();
                let oldest = clients.iter().map(|client| client.connected.as_str()).min();
                let oldest = oldest.map(|since| format!(", the oldest connected since {since}")).unwrap_or_default();
                format!(
                    "WaitingForDrain: {wanted} needs a new process for {parameters}, and waits until {count} clients of {} have gone{oldest}",
                    name(self.slots.other.runs.as_ref().map(|revision| revision.revision)),
                )
            }
        };
        self.report.problems.switch.is(text);
    }
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
