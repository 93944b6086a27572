//! How many server connections the pod is to open at most: the shell around [`crate::agent::decide::reaction`], and what bounds it.

mod memory;

use super::{PoolerLog, Reporting, ServerAccess, sidecar::Given, slots::Slots};
use crate::{
    agent::decide::{
        reaction::{Decided, PoolerReading, Reaction},
        wish::Wish,
    },
    contract::{LimitSource, MemoryReport, PodGrant, PoolRevision, PoolerError, ServerFull},
    decide::guard::refused::Refused,
    pooler::pgbouncer::{limits::WantedLimits, tables::Pools},
};

/// The limit of the pod, and what bounds it.
pub(super) struct Sizing {
    limit: u32,
    /// Server connections of the share that are the session alias's.
    reserved: u32,
    reaction: Reaction,
    /// What the database lets this pod open, while it refuses more.
    refused: Refused,
    /// What the container's memory has room for.
    room: memory::Room,
}

impl Sizing {
    /// Nothing decided yet. `spread` makes the pauses of pods differ, in percent.
    pub(super) fn new(spread: u8) -> Self {
        Self {
            limit: 0,
            reserved: 0,
            reaction: Reaction::default(),
            refused: Refused::new(spread),
            room: memory::Room::default(),
        }
    }

    /// What the pool itself has of the grant: all that the session alias has not.
    pub(super) fn grant(&self, wish: &Wish) -> PodGrant {
        let grant = wish.grant();
        let share = grant.share.saturating_sub(self.reserved);
        let floor = grant.floor.saturating_sub(self.reserved).max(grant.floor.min(1)).min(share);
        let least = grant.least.saturating_sub(self.reserved).min(share);
        PodGrant { share, floor, least, ..grant }
    }

    /// So many server connections of the share are the session alias's.
    pub(super) fn reserve(&mut self, connections: u32) {
        self.reserved = connections;
    }

    /// Sets aside what a process may hold for its alias from its first moment on.
    pub(super) fn reserve_for(&mut self, revision: Option<&PoolRevision>, slots: &Slots) {
        let alias = revision.and_then(|revision| revision.settings.session_alias.as_ref());
        self.reserved = alias.map_or(0, |alias| alias.connections).saturating_add(slots.alias_bound_of_other());
    }

    /// Whether all that the processes could hold now is within the share.
    pub(super) fn is_within_share(&self, wish: &Wish, slots: &Slots) -> bool {
        self.reserved <= wish.grant().share && slots.are_within(self.grant(wish).share)
    }

    /// The limit that was decided last, whatever the grant is by now.
    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// The limits of one process that has all of the share.
    pub(super) fn wanted(&self, wish: &Wish) -> WantedLimits {
        let grant = self.grant(wish);
        WantedLimits { limit: self.limit.min(grant.share), warm: grant.floor, share: grant.share }
    }

    /// What a process that new clients come to is started with: not what the other one may still hold.
    pub(super) fn wanted_beside(&self, wish: &Wish, slots: &Slots) -> WantedLimits {
        let wanted = self.wanted(wish);
        if !slots.other_counts() {
            return wanted;
        }
        let part = slots.other.bound().map_or(0, |bound| wanted.share.saturating_sub(bound));
        WantedLimits { limit: wanted.limit.min(part), warm: wanted.warm.min(part), share: part }
    }

    /// The most that the database was seen to let in, while it refuses more.
    pub(super) fn ceiling(&self) -> Option<u32> {
        self.refused.ceiling()
    }

    /// The database refused a server connection because it has too many.
    pub(super) fn hear_refusal(&mut self) {
        self.refused.hear();
    }

    /// What is decided of a pooler that was taken up goes on from the limit that it has.
    pub(super) fn goes_on_with(&mut self, limit: u32) {
        self.reaction.goes_on_with(limit);
    }

    /// Decides the limit, within all that bounds it. `is_held`: it stays, because the database takes no writes or is away.
    pub(super) fn decide(&mut self, given: Given<'_>, slots: &mut Slots, access: &ServerAccess, is_held: bool) {
        let grant = self.grant(given.wish);
        let source = given.wish.revision.as_ref().map_or(LimitSource::Share, |r| r.settings.scaling.limit_source);
        self.limit = if is_held && self.limit > 0 {
            // only a smaller share counts
            self.limit.clamp(grant.floor.min(grant.share), grant.share)
        } else {
            self.reaction.limit(source, grant)
        };
        if let Some(most) = self.refused.ceiling().filter(|_| grant.share > 0) {
            self.limit = self.limit.min(most);
        }
        self.room.expect(given.sidecar, slots, access.verification.copied(given.sidecar));
        self.limit = self.room.bound(self.limit, self.reserved);
        if access.is_refused(slots) {
            // what is closed could not be opened again
            let held = [&slots.active, &slots.other].map(|slot| slot.held().unwrap_or(0));
            self.limit = self.limit.max(held[0].saturating_add(held[1])).min(grant.share);
        }
    }

    /// The agent's loop: decides the limit from this reading, and logs what `sluice decide` needs to repeat it.
    pub(super) fn react(
        &mut self,
        wish: &Wish,
        slots: &Slots,
        report: &Reporting,
        reading: &PoolerReading,
        punctual: bool,
    ) {
        let grant = self.grant(wish);
        let Some(revision) = &wish.revision else { return };
        let together = slots.limits_together().map_or(self.limit, |limits| limits.in_force());
        let current = together.min(grant.share);
        let decided = self.reaction.feed(&revision.settings, grant, current, reading, punctual);
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
            report.metrics().count_decision(decision.reason.as_str());
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

    /// What a reading shows of the database's refusals.
    pub(super) fn see_refusals(&mut self, now_seconds: f64, log: &PoolerLog, report: &Reporting, pools: Pools) {
        let open = pools.held().saturating_sub(pools.login).saturating_sub(pools.being_canceled);
        let before = self.refused.ceiling();
        self.refused.observe(now_seconds, open);
        if before.is_none() && self.refused.ceiling().is_some() {
            let words = log.words(PoolerError::TooManyServerConnections);
            tracing::warn!(
                held = open,
                "the database refuses further server connections: {words}; the limit is held there, and one more is tried \
                 from time to time"
            );
        }
        report.metrics().set_refused_beyond(self.refused.held());
    }

    /// What is told while the database refuses more.
    pub(super) fn server_full(&self, log: &PoolerLog) -> Option<ServerFull> {
        Some(ServerFull {
            refused_beyond: self.refused.let_in()?,
            at_most: self.refused.ceiling()?,
            words: log.words(PoolerError::TooManyServerConnections).to_owned(),
        })
    }

    /// Takes in how many clients there are; `pools` are those of all processes that can be asked.
    pub(super) fn count_clients(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        access: &ServerAccess,
        report: &Reporting,
        pools: Pools,
    ) {
        let alias = slots.alias_report().map_or(0, |alias| alias.clients);
        let clients = pools.clients_active.saturating_add(pools.clients_waiting).saturating_add(alias);
        self.room.count(given.sidecar, slots, access.verification.copied(given.sidecar), clients);
        report.metrics().set_memory_allows(self.room.allows());
    }

    /// Reads the container's memory limit, which may be resized while it runs.
    pub(super) fn read_memory_limit(&mut self, given: Given<'_>) {
        self.room.read_limit(&given.sidecar.options.control_group);
    }

    /// What is told of the container's memory; None without a limit.
    pub(super) fn memory_report(&self, wish: &Wish) -> Option<MemoryReport> {
        self.room.report(self.grant(wish).share)
    }
}
