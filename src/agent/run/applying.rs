//! What is wanted becomes what is in force: a process, a revision, the limits; and what worked is kept.

use super::{
    Agent, FAULTS_TOLD, READING, RELEASE_PATIENCE, place,
    rotating::{self, OwnAccess, ca_path},
};
use crate::{
    agent::{
        apply::{
            last_good::{self, LastGood},
            process,
            slot::{Keep, Progress, Slot, SlotError, Start, Taken, When},
        },
        decide::{machine::Millis, slot_name::SlotName},
        keeper::{Listening, Order},
    },
    contract::{LimitSource, PoolRevision},
    pooler::pgbouncer::{
        limits::WantedLimits,
        render::{self, ProcessPlace, RenderError, RenderInput, Rendered},
    },
};

impl Agent {
    pub(super) fn wanted(&self) -> WantedLimits {
        let grant = self.grant();
        WantedLimits { limit: self.sizing.limit.min(grant.share), warm: grant.floor, share: grant.share }
    }

    /// What a process is to be started with in a slot to run a revision.
    pub(super) fn render(
        &self,
        slot: SlotName,
        revision: Option<&PoolRevision>,
        wanted: WantedLimits,
    ) -> Option<Result<(PoolRevision, Rendered), RenderError>> {
        self.render_for(slot, revision, wanted, self.own()?)
    }

    /// The same for one that runs: it may have to go on with what it has of its own.
    pub(super) fn render_for(
        &self,
        slot: SlotName,
        revision: Option<&PoolRevision>,
        wanted: WantedLimits,
        own: OwnAccess<'_>,
    ) -> Option<Result<(PoolRevision, Rendered), RenderError>> {
        let revision = revision?;
        let access = self.access.rotating.in_force()?;
        let ca = self
            .anchor_file()
            .or_else(|| place::bundle(&self.sidecar.injection, ca_path(&self.sidecar.options.run_dir, access)));
        let shown =
            self.configuration.identity.in_force().map(|shown| place::shown(shown, &self.sidecar.options, slot));
        let rendered = render::render(&RenderInput {
            injection: &self.sidecar.injection,
            settings: &revision.settings,
            limits: wanted.as_limits(),
            credentials: own.credentials,
            shown: shown.as_ref(),
            place: &ProcessPlace {
                presented: own.presented,
                ..place::place(
                    &self.sidecar.options,
                    &self.sidecar.addresses,
                    slot,
                    self.inherits_sockets(),
                    ca.as_deref(),
                    self.sidecar.resolver.as_deref(),
                )
            },
            version: self.sidecar.build.map(|build| build.version),
        });
        Some(rendered.map(|rendered| (revision.clone(), rendered)))
    }

    pub(super) async fn start(&mut self) {
        let reason = self.liveness.machine.take_restart_reason();
        if let Some(reason) = reason {
            self.report.published.metrics.count_restart(reason.as_str());
        }
        // What served before serves again; what is wanted beyond has to prove itself. Where nothing can, it is simply tried.
        let promoted = self
            .configuration
            .wish
            .revision
            .as_ref()
            .is_none_or(|wanted| wanted.settings.rollout.auto_promotion_enabled);
        let tried = promoted && self.liveness.machine.faults() >= FAULTS_TOLD;
        // before: it says whether what is wanted can come to this process later
        let listening = self.listen().await;
        let again = self.applying.served.clone().filter(|_| self.may_switch() && !tried);
        let revision = again.or_else(|| self.configuration.wish.revision.clone());
        self.reserve_for(revision.as_ref());
        self.decide_limit();
        let Some(rendered) = self.render(self.slots.active.name(), revision.as_ref(), self.wanted_beside()) else {
            return;
        };
        let Some(program) = self.sidecar.program.clone() else { return };
        (self.liveness.started_at, self.liveness.answered) = (self.now(), None);
        let (clients, share) = (self.sidecar.injection.client.max_connections, self.configuration.wish.grant().share);
        match process::too_few_files(clients, share) {
            Some(few) => drop(self.report.problems.files.is(few)),
            None => self.report.problems.files.is_over(),
        }
        let files = process::files_needed(clients, share);
        let start = Start { program: &program, inherits_sockets: self.inherits_sockets(), clients: true, files };
        let laid_down = self.access.rotating.in_force().map_or(Ok(()), |access| self.lay_down(access));
        self.note_in_force();
        let started = match (listening, laid_down, rendered) {
            (Err(error), ..) => Err(error),
            (_, Err(error), _) => Err(error.to_string()),
            (_, _, Err(error)) => Err(error.to_string()),
            (Ok(()), Ok(()), Ok((revision, rendered))) => {
                self.slots.active.start(start, rendered).await.map(|()| revision).map_err(|error| error.to_string())
            }
        };
        match started {
            Ok(revision) => {
                self.report.problems.configuration.is_over();
                self.report.problems.reload.is_over();
                self.applying.reload_again.settled();
                self.slots.active.runs = Some(revision);
            }
            Err(error) => {
                tracing::error!("{error}");
                self.report.problems.configuration.is(error);
                let now = self.now();
                self.liveness.machine.start_failed(now);
            }
        }
    }

    /// The revision that new clients meet.
    pub(super) fn revision(&self) -> Option<u64> {
        self.slots.active.runs.as_ref().map(|revision| revision.revision)
    }

    /// Whether the pooler takes over the sockets that clients come to. One that does not listens by itself.
    pub(super) fn inherits_sockets(&self) -> bool {
        self.sidecar.build.is_some_and(|build| build.inherits_sockets)
    }

    /// Opens the sockets that clients come to, once.
    async fn listen(&self) -> Result<(), String> {
        if !self.inherits_sockets() {
            return Ok(());
        }
        let order = Order::Listen {
            addresses: self.sidecar.addresses.clone(),
            port: self.sidecar.injection.client.port,
            may_steer: !self.sidecar.options.shared_listener,
        };
        match self.sidecar.link.order(&order).await.map_err(|error| error.to_string())?.listening {
            Listening::Failed { reason } => {
                Err(format!("listening for clients on port {}: {reason}", self.sidecar.injection.client.port))
            }
            Listening::Closed | Listening::Steering | Listening::Shared { .. } => Ok(()),
        }
    }

    pub(super) async fn apply_revision(&mut self) {
        if self.slots.active.taken_up {
            // what runs is not moved before it is known; what fails is asked again
            let limits = match self.slots.active.limits {
                Some(limits) => Some(limits),
                None => self.slots.active.read_limits().await.ok(),
            };
            if let Some(limits) = limits.filter(|limits| !limits.paused) {
                let both = self.limits_together().map_or(limits.pool_size, |limits| limits.pool_size);
                self.sizing.reaction.goes_on_with(both);
                self.decide_limit();
            }
        }
        // With the limits that are in force now: a RELOAD must not move them.
        let mut wanted = self.wanted();
        if let Some(limits) = self.slots.active.limits_to_keep() {
            wanted.limit = limits.pool_size.min(wanted.limit.max(1));
            wanted.share = limits.max_db_connections.min(wanted.share.max(1));
            wanted.warm = limits.min_pool_size;
        }
        let own = self.takes(&self.slots.active);
        let rendered =
            own.and_then(|own| self.render_for(self.slots.active.name(), self.revision_to_run(), wanted, own));
        let (revision, rendered) = match rendered {
            Some(Ok(rendered)) => rendered,
            Some(Err(error)) => {
                if self.report.problems.configuration.is(error.to_string()) {
                    tracing::warn!("{error}");
                }
                return;
            }
            None => return,
        };
        self.report.problems.configuration.is_over();
        if self.may_switch() {
            match self.fits(&rendered).await {
                Ok(true) => {}
                // a second process takes it over; this one goes on with all that it has
                Ok(false) => {
                    self.applying.reload_again.settled();
                    return self.report.problems.reload.is_over();
                }
                Err(error) => return self.tell_reload(revision.revision, &error),
            }
        } else {
            self.switching.look_again();
        }
        let now = self.now();
        let when = if self.slots.active.is_refused() { When::Never } else { When::Quiet(now) };
        match self.slots.active.take_over(rendered, when).await {
            Ok(Taken::Refused) => {
                let text = format!("revision {}: {}", revision.revision, rotating::AWAITS_USER);
                if self.report.problems.reload.is(text) {
                    tracing::warn!(revision = revision.revision, "{}", rotating::AWAITS_USER);
                }
                self.applying.reload_again.failed(now);
            }
            Ok(Taken::Postponed) => {
                self.applying.to_be_applied = true;
                let text = format!("revision {}: {}", revision.revision, rotating::AWAITS_LOGINS);
                self.report.problems.reload.may_pass(now, text);
            }
            Ok(taken) => {
                if taken == Taken::Now {
                    tracing::info!(revision = revision.revision, "revision in force, read back");
                }
                match self.reconnect_for(&revision, now).await {
                    Ok(true) => self.settle_revision(revision),
                    Ok(false) => {}
                    Err(error) => self.tell_reload(revision.revision, &error),
                }
            }
            Err(error) => self.tell_reload(revision.revision, &error),
        }
    }

    pub(super) fn settle_revision(&mut self, revision: PoolRevision) {
        self.applying.served = Some(revision.clone());
        self.slots.active.goes_on_with(revision);
        self.report.problems.reload.is_over();
        self.applying.reload_again.settled();
    }

    pub(super) fn tell_reload(&mut self, revision: u64, error: &SlotError) {
        let (now, text) = (self.now(), error.to_string());
        match error {
            SlotError::Console(_) => self.report.problems.reload.may_pass(now, text),
            _ => {
                if self.report.problems.reload.is(text) {
                    tracing::warn!(revision, "{error}");
                }
            }
        }
        match error {
            // asking again changes nothing
            SlotError::RestartRequired { .. } => self.applying.reload_again.settled(),
            _ => self.applying.reload_again.failed(now),
        }
    }

    /// Brings the limits of every process to what is wanted of it.
    pub(super) async fn apply_limits(&mut self) {
        if !self.divide_alias().await {
            return;
        }
        self.decide_limit();
        let keep = self.keep();
        for slot in [&mut self.slots.active, &mut self.slots.other] {
            // the user in force needs its place
            slot.keep = if slot.is_refused() { Keep::UnlessInTheWay } else { keep };
        }
        let Some((active, other)) = self.parts().await else { return };
        let in_force = self.converge_active(active).await;
        let both = match other {
            Some(other) => self.converge_other(other).await && in_force,
            None => in_force,
        };
        if !both || !self.open_alias().await || !self.is_within_share() {
            return;
        }
        if self.applying.granted != self.configuration.wish.granted {
            self.applying.granted = self.configuration.wish.granted;
            let grant = self.configuration.wish.grant();
            tracing::info!(seq = grant.seq, share = grant.share, floor = grant.floor, "grant in force, read back");
        }
        self.store_last_good();
    }

    async fn converge_active(&mut self, wanted: WantedLimits) -> bool {
        let now = self.now();
        match converge(&mut self.slots.active, wanted, now).await {
            Ok(Progress::InForce) => {
                self.report.problems.limits.is_over();
                true
            }
            Ok(Progress::Releasing { excess }) => {
                // what is set aside for a moment comes back
                if self.access.rotating.set_aside() == 0 {
                    self.report.problems.limits.is(format!(
                        "{excess} server connections more than the share are busy; they close as transactions end"
                    ));
                }
                if let (None, Some((_, pools))) = (self.slots.other.pools, self.slots.active.pools)
                    && !self.slots.other.is_mute()
                {
                    self.see_pools(pools);
                }
                false
            }
            Err(error) => {
                self.tell_limits(&error);
                false
            }
        }
    }

    async fn converge_other(&mut self, wanted: WantedLimits) -> bool {
        if self.slots.other.is_mute() {
            return self.slots.other.leaving().is_some_and(|bound| bound <= wanted.share);
        }
        let now = self.now();
        // written ahead: should we end, the next agent may have no way to ask
        self.note_bound(|noted| noted < wanted.share, wanted.share).await;
        match converge(&mut self.slots.other, wanted, now).await {
            Ok(progress) => {
                let in_force = progress == Progress::InForce;
                // one that is paused may hold more than its part for a while
                if let Some(bound) = self.slots.other.bound().filter(|_| in_force) {
                    self.note_bound(|noted| noted > bound, bound).await;
                }
                in_force
            }
            Err(error) => {
                self.tell_limits(&error);
                false
            }
        }
    }

    /// Tells the keeper what a process that is leaving may open, if what it knows is not right.
    async fn note_bound(&self, is_wrong: impl Fn(u32) -> bool, bound: u32) {
        if !self.slots.other.leaving().is_some_and(is_wrong) {
            return;
        }
        if let Err(error) = self.sidecar.link.order(&Order::HandOver { slot: self.slots.active.name(), bound }).await {
            tracing::warn!("{error}");
        }
    }

    pub(super) fn tell_limits(&mut self, error: &SlotError) {
        let text = error.to_string();
        if let SlotError::Console(_) = error {
            let now = self.now();
            self.report.problems.limits.may_pass(now, text);
        } else if self.report.problems.limits.is(text) {
            tracing::warn!("{error}");
        }
    }

    pub(super) fn decide_limit(&mut self) {
        let grant = self.grant();
        let source =
            self.configuration.wish.revision.as_ref().map_or(LimitSource::Share, |r| r.settings.scaling.limit_source);
        self.sizing.limit = if self.failover.is_read_only() && self.sizing.limit > 0 {
            // only a smaller share counts
            self.sizing.limit.clamp(grant.floor.min(grant.share), grant.share)
        } else {
            self.sizing.reaction.limit(source, grant)
        };
        if let Some(most) = self.sizing.refused.ceiling().filter(|_| grant.share > 0) {
            self.sizing.limit = self.sizing.limit.min(most);
        }
        self.expect_memory();
        self.sizing.limit = self.sizing.room.bound(self.sizing.limit, self.sizing.reserved);
        if self.is_refused() {
            // what is closed could not be opened again
            let held = [&self.slots.active, &self.slots.other].map(|slot| slot.held().unwrap_or(0));
            self.sizing.limit = self.sizing.limit.max(held[0].saturating_add(held[1])).min(grant.share);
        }
    }

    pub(super) fn store_last_good(&mut self) {
        let (Some(granted), Some(revision)) = (self.applying.granted, self.configuration.wish.revision.clone()) else {
            return;
        };
        if self.revision() != Some(revision.revision) {
            return;
        }
        let pool = self.sidecar.injection.pool.clone();
        let worked = LastGood { pool, revision, epoch: granted.epoch, grant: granted.grant };
        if self.applying.stored.as_ref() == Some(&worked) {
            return;
        }
        let now = self.now();
        if self.applying.store_again.is_pausing(now) {
            return;
        }
        match last_good::store(&self.sidecar.options.state_dir, &worked) {
            Ok(()) => {
                self.report.problems.state.is_over();
                self.applying.store_again.settled();
                self.applying.stored = Some(worked);
            }
            Err(error) => {
                if self.report.problems.state.is(error.to_string()) {
                    tracing::warn!("{error}");
                }
                self.applying.store_again.failed(now);
            }
        }
    }
}

/// One attempt to bring a process to its limits. One that is busy is helped to let go after a while.
async fn converge(slot: &mut Slot, wanted: WantedLimits, now: Millis) -> Result<Progress, SlotError> {
    let held = slot.pools.filter(|(at, _)| now.saturating_sub(*at) <= READING).map(|(_, pools)| pools.held());
    let progress = slot.converge(now, wanted, held).await?;
    if progress == Progress::InForce {
        slot.releasing_since = None;
        return Ok(progress);
    }
    let since = *slot.releasing_since.get_or_insert(now);
    slot.read_pools(now).await?;
    if now.saturating_sub(since) >= RELEASE_PATIENCE {
        slot.shorten_lifetime().await?;
    }
    Ok(progress)
}
