//! What is wanted becomes what is in force: a process, a revision, the limits; and what worked is kept.

mod reconnecting;

use super::{
    READING, Reporting, ServerAccess, Sidecar,
    access::{AWAITS_LOGINS, AWAITS_USER, needs_login},
    sidecar::Given,
    slots::Slots,
};
use crate::{
    agent::{
        apply::{
            last_good::{self, LastGood},
            process,
            slot::{Keep, Progress, Slot, SlotError, Start, Taken, When},
        },
        decide::{machine::Millis, retry::Retry, switch::Way, wish::Granted},
        keeper::Order,
    },
    contract::{PoolRevision, RevisionWait, Settings, Switching as Mode},
    pooler::pgbouncer::{
        changes::is_fixed,
        limits::WantedLimits,
        render::{RenderError, Rendered},
    },
};

/// A shrink that waits longer than this for a busy pool shortens the lifetime of its server connections.
const RELEASE_PATIENCE: Millis = 1000;
/// Between two looks at a shrink that waits for transactions to end.
const RELEASE_LOOK: Millis = 100;

/// How far what is wanted is in force.
pub(super) struct Applying {
    /// Whether what is wanted may differ from what was asked of the pooler last.
    to_be_applied: bool,
    /// When limits that are on their way are looked at next.
    next_look: Millis,
    reload_again: Retry,
    /// Whether the pooler takes the wanted revision over at its start alone.
    needs_restart: bool,
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

impl Applying {
    /// Begins with what worked last.
    pub(super) fn new(stored: Option<LastGood>) -> Self {
        Self {
            to_be_applied: true,
            next_look: 0,
            reload_again: Retry::default(),
            needs_restart: false,
            served: stored.as_ref().map(|stored| stored.revision.clone()),
            granted: None,
            closing: None,
            stored,
            store_again: Retry::default(),
        }
    }

    /// What is wanted may differ from what was asked of the pooler, if this is so.
    pub(super) fn again_if(&mut self, differs: bool) {
        self.to_be_applied |= differs;
    }

    /// What is wanted may differ from what was asked of the pooler.
    pub(super) fn again(&mut self) {
        self.to_be_applied = true;
    }

    /// The same, and limits that are on their way are looked at at once.
    pub(super) fn again_at_once(&mut self) {
        (self.to_be_applied, self.next_look) = (true, 0);
    }

    /// Whether all that is wanted is to be asked of the pooler now.
    pub(super) fn take_due(&mut self, now: Millis) -> bool {
        let is_due = self.to_be_applied || self.reload_again.is_due(now);
        self.to_be_applied &= !is_due;
        is_due
    }

    /// Whether limits that are on their way are to be looked at now.
    pub(super) fn take_look(&mut self, now: Millis) -> bool {
        let is_due = now >= self.next_look;
        if is_due {
            self.next_look = now + RELEASE_LOOK;
        }
        is_due
    }

    /// Whether a revision may come into force by a second process now. Where the socket is shared, a session alias keeps it from
    /// that: green's would be open beside blue's as soon as green listens.
    pub(super) fn may_switch(&self, given: Given<'_>, slots: &Slots) -> bool {
        let has_alias = |revision: &PoolRevision| revision.settings.session_alias.is_some();
        let alias = [&given.wish.revision, &self.served].into_iter().flatten().any(has_alias);
        given.sidecar.can_switch() && (given.sidecar.way() == Way::Steer || !alias && slots.active.alias.is_none())
    }

    /// How a revision that needs a new process comes into force.
    pub(super) fn switching_mode(&self, given: Given<'_>, slots: &Slots) -> Mode {
        match given.sidecar.way() {
            _ if !self.may_switch(given, slots) => Mode::Unsupported,
            Way::Steer => Mode::Steer,
            Way::HandOver => Mode::SharedListener,
        }
    }

    /// What the wanted revision waits for, where the process that runs cannot take it over and no other one can be started.
    pub(super) fn waits(&self, given: Given<'_>, slots: &Slots) -> Option<RevisionWait> {
        (self.needs_restart && !self.may_switch(given, slots)).then_some(RevisionWait::Restart)
    }

    /// The grant whose share is in force.
    pub(super) fn granted(&self) -> Option<Granted> {
        self.granted
    }

    /// New clients come to another process, which runs this, if that is known.
    pub(super) fn serves(&mut self, revision: Option<&PoolRevision>) {
        if let Some(revision) = revision {
            self.served = Some(revision.clone());
        }
        self.to_be_applied = true;
    }

    /// What a process is started with: what served before serves again; what is wanted beyond has to prove itself. Where nothing can,
    /// or what served does not stay up, it is simply tried.
    pub(super) fn revision_to_start(
        &self,
        given: Given<'_>,
        slots: &Slots,
        access: &ServerAccess,
        is_faulty: bool,
    ) -> Option<PoolRevision> {
        let wanted = &given.wish.revision;
        let promoted = wanted.as_ref().is_none_or(|wanted| wanted.settings.rollout.auto_promotion_enabled);
        let tried = promoted && is_faulty;
        let can_be_proven = |served: &PoolRevision| {
            self.may_switch(given, slots)
                || wanted.as_ref().is_some_and(|wanted| {
                    let sidecar = given.sidecar;
                    needs_login(sidecar, Some(served), wanted)
                        && !access.rotating.has_proven(sidecar, wanted)
                        && !needs_restart(&served.settings, &wanted.settings)
                })
        };
        let again = self.served.clone().filter(|served| !tried && can_be_proven(served));
        again.or_else(|| wanted.clone())
    }

    /// Starts a process that new clients come to. False: it could not be.
    pub(super) async fn start(
        &mut self,
        slots: &mut Slots,
        start: Start<'_>,
        rendered: Result<(PoolRevision, Rendered), String>,
        report: &mut Reporting,
    ) -> bool {
        let started = match rendered {
            Err(error) => Err(error),
            Ok((revision, rendered)) => {
                slots.active.start(start, rendered).await.map(|()| revision).map_err(|error| error.to_string())
            }
        };
        match started {
            Ok(revision) => {
                report.problems.configuration.is_over();
                self.settle_reload(report);
                slots.active.runs = Some(revision);
                true
            }
            Err(error) => {
                tracing::error!("{error}");
                report.problems.configuration.is(error);
                false
            }
        }
    }

    /// Has the process that new clients come to take over a revision.
    pub(super) async fn take_over(
        &mut self,
        sidecar: &Sidecar,
        slots: &mut Slots,
        access: &ServerAccess,
        (revision, rendered): (PoolRevision, Rendered),
        report: &mut Reporting,
    ) {
        let now = sidecar.now();
        let when = if slots.active.is_refused() { When::Never } else { When::Quiet(now) };
        match slots.active.take_over(rendered, when).await {
            Ok(Taken::Refused) => {
                let text = format!("revision {}: {AWAITS_USER}", revision.revision);
                if report.problems.reload.is(text) {
                    tracing::warn!(revision = revision.revision, "{AWAITS_USER}");
                }
                self.reload_again.failed(now);
            }
            Ok(Taken::Postponed) => {
                self.to_be_applied = true;
                let text = format!("revision {}: {AWAITS_LOGINS}", revision.revision);
                report.problems.reload.may_pass(now, text);
            }
            Ok(taken) => {
                if taken == Taken::Now {
                    tracing::info!(revision = revision.revision, "revision in force, read back");
                }
                match self.reconnect_for(slots, access, report, &revision, now).await {
                    Ok(true) => {
                        self.served = Some(revision.clone());
                        slots.active.goes_on_with(revision);
                        self.settle_reload(report);
                    }
                    Ok(false) => {}
                    Err(error) => self.tell_reload(sidecar, report, revision.revision, &error),
                }
            }
            Err(error) => self.tell_reload(sidecar, report, revision.revision, &error),
        }
    }

    /// Nothing is to be taken over by the process that runs.
    pub(super) fn settle_reload(&mut self, report: &mut Reporting) {
        report.problems.reload.is_over();
        self.reload_again.settled();
        self.needs_restart = false;
    }

    /// A revision could not be taken over.
    pub(super) fn tell_reload(&mut self, sidecar: &Sidecar, report: &mut Reporting, revision: u64, error: &SlotError) {
        let (now, text) = (sidecar.now(), error.to_string());
        self.needs_restart = matches!(error, SlotError::RestartRequired { .. });
        match error {
            SlotError::Console(_) => report.problems.reload.may_pass(now, text),
            _ => {
                if report.problems.reload.is(text) {
                    tracing::warn!(revision, "{error}");
                }
            }
        }
        match error {
            // asking again changes nothing
            SlotError::RestartRequired { .. } => self.reload_again.settled(),
            _ => self.reload_again.failed(now),
        }
    }

    /// The limits are as the grant wants them, read back.
    pub(super) fn settle_limits(&mut self, given: Given<'_>, slots: &Slots, report: &mut Reporting) {
        if self.granted != given.wish.granted {
            self.granted = given.wish.granted;
            let grant = given.wish.grant();
            tracing::info!(seq = grant.seq, share = grant.share, floor = grant.floor, "grant in force, read back");
        }
        self.store_last_good(given, slots, report);
    }

    fn store_last_good(&mut self, Given { sidecar, wish, .. }: Given<'_>, slots: &Slots, report: &mut Reporting) {
        let (Some(granted), Some(revision)) = (self.granted, wish.revision.clone()) else { return };
        if slots.revision() != Some(revision.revision) {
            return;
        }
        let pool = sidecar.injection.pool.clone();
        let worked = LastGood { pool, revision, epoch: granted.epoch, grant: granted.grant };
        if self.stored.as_ref() == Some(&worked) {
            return;
        }
        let now = sidecar.now();
        if self.store_again.is_pausing(now) {
            return;
        }
        match last_good::store(&sidecar.options.state_dir, &worked) {
            Ok(()) => {
                report.problems.state.is_over();
                self.store_again.settled();
                self.stored = Some(worked);
            }
            Err(error) => {
                if report.problems.state.is(error.to_string()) {
                    tracing::warn!("{error}");
                }
                self.store_again.failed(now);
            }
        }
    }
}

/// Whether one revision differs from another one in what only a new process takes over.
fn needs_restart(one: &Settings, other: &Settings) -> bool {
    let fixed = |settings: &Settings| -> Vec<(String, String)> {
        settings.parameters.clone().into_iter().filter(|(name, _)| is_fixed(name)).collect()
    };
    one.session_alias != other.session_alias || fixed(one) != fixed(other)
}

/// What a process that new clients come to is started with, beside its files. None: its program is not known.
pub(super) fn start_of<'a>(given: Given<'a>, report: &mut Reporting) -> Option<Start<'a>> {
    let program = given.sidecar.program.as_deref()?;
    let (clients, share) = (given.sidecar.injection.client.max_connections, given.wish.grant().share);
    match process::too_few_files(clients, share) {
        Some(few) => drop(report.problems.files.is(few)),
        None => report.problems.files.is_over(),
    }
    let files = process::files_needed(clients, share);
    Some(Start { program, inherits_sockets: given.sidecar.inherits_sockets(), clients: true, files })
}

/// What the process that new clients come to is to run, its limits as they are now: a RELOAD must not move them.
pub(super) fn render_in_place(
    given: Given<'_>,
    slots: &Slots,
    access: &ServerAccess,
    revision: Option<&PoolRevision>,
    mut wanted: WantedLimits,
) -> Option<Result<(PoolRevision, Rendered), RenderError>> {
    if let Some(limits) = slots.active.limits_to_keep() {
        wanted.limit = limits.pool_size.min(wanted.limit.max(1));
        wanted.share = limits.max_db_connections.min(wanted.share.max(1));
        wanted.warm = limits.min_pool_size;
    }
    let own = access.rotating.takes(&given.sidecar.options.run_dir, &slots.active)?;
    access.render_for(given, slots.active.name(), revision, wanted, own)
}

impl Slots {
    /// The limit that a pooler which was taken up goes on with, until something is decided. What runs is not moved before it is known;
    /// what fails is asked again.
    pub(super) async fn limit_taken_up(&mut self) -> Option<u32> {
        if !self.active.taken_up {
            return None;
        }
        let limits = match self.active.limits {
            Some(limits) => Some(limits),
            None => self.active.read_limits().await.ok(),
        };
        let limits = limits.filter(|limits| !limits.paused)?;
        Some(self.limits_together().map_or(limits.pool_size, |limits| limits.pool_size))
    }

    /// Whether server connections of each process are kept although their time is over.
    pub(super) fn keep(&mut self, keep: Keep) {
        for slot in [&mut self.active, &mut self.other] {
            // the user in force needs its place
            slot.keep = if slot.is_refused() { Keep::UnlessInTheWay } else { keep };
        }
    }

    /// Brings the active process to its limits. None: it does not follow, which is told.
    pub(super) async fn converge_active(
        &mut self,
        sidecar: &Sidecar,
        wanted: WantedLimits,
        report: &mut Reporting,
    ) -> Option<Progress> {
        match converge(&mut self.active, wanted, sidecar.now()).await {
            Ok(progress) => Some(progress),
            Err(error) => {
                report.tell_limits(sidecar, &error);
                None
            }
        }
    }

    /// Brings the other process to its limits. False: not yet.
    pub(super) async fn converge_other(
        &mut self,
        sidecar: &Sidecar,
        wanted: WantedLimits,
        report: &mut Reporting,
    ) -> bool {
        if self.other.is_mute() {
            return self.other.leaving().is_some_and(|bound| bound <= wanted.share);
        }
        let now = sidecar.now();
        // written ahead: should we end, the next agent may have no way to ask
        self.note_bound(sidecar, |noted| noted < wanted.share, wanted.share).await;
        match converge(&mut self.other, wanted, now).await {
            Ok(progress) => {
                let in_force = progress == Progress::InForce;
                // one that is paused may hold more than its part for a while
                if let Some(bound) = self.other.bound().filter(|_| in_force) {
                    self.note_bound(sidecar, |noted| noted > bound, bound).await;
                }
                in_force
            }
            Err(error) => {
                report.tell_limits(sidecar, &error);
                false
            }
        }
    }

    /// Tells the keeper what a process that is leaving may open, if what it knows is not right.
    async fn note_bound(&self, sidecar: &Sidecar, is_wrong: impl Fn(u32) -> bool, bound: u32) {
        if !self.other.leaving().is_some_and(is_wrong) {
            return;
        }
        if let Err(error) = sidecar.link.order(&Order::HandOver { slot: self.active.name(), bound }).await {
            tracing::warn!("{error}");
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
