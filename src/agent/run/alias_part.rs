//! The session alias: its part of the share, and when it is open. The shell around [`crate::agent::decide::switch::alias`].

use super::Agent;
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{
            machine::Millis,
            switch::alias::{AliasLoad, divide, may_open},
        },
    },
    contract::{PodGrant, PoolRevision, SessionAliasReport},
};

impl Agent {
    /// What the pool itself has of the grant: all that the session alias has not.
    pub(super) fn grant(&self) -> PodGrant {
        let grant = self.configuration.wish.grant();
        let share = grant.share.saturating_sub(self.sizing.reserved);
        let floor = grant.floor.saturating_sub(self.sizing.reserved).max(grant.floor.min(1)).min(share);
        PodGrant { share, floor, ..grant }
    }

    /// Sets aside what a process may hold for its alias from its first moment on.
    pub(super) fn reserve_for(&mut self, revision: Option<&PoolRevision>) {
        let alias = revision.and_then(|revision| revision.settings.session_alias.as_ref());
        let beside = if self.other_counts() { self.slots.other.alias_load().bound() } else { 0 };
        self.sizing.reserved = alias.map_or(0, |alias| alias.connections).saturating_add(beside);
    }

    /// Closes each alias that is not to be open, and sees what is left for the pool itself. False: not known now.
    pub(super) async fn divide_alias(&mut self) -> bool {
        let now = self.now();
        let counts = self.can_ask_other();
        // whether a process that was left answers is looked at elsewhere
        if counts && self.slots.other.look_at_alias(now).await.is_err() {
            return false;
        }
        if let Err(error) = self.slots.active.look_at_alias(now).await {
            self.tell_limits(&error);
            return false;
        }
        let share = self.configuration.wish.grant().share;
        let [active, other] = divide(share, self.alias_loads()).open;
        if counts && !other && self.slots.other.close_alias(now).await.is_err() {
            return false;
        }
        if !active && let Err(error) = self.slots.active.close_alias(now).await {
            self.tell_limits(&error);
            return false;
        }
        self.sizing.reserved = divide(share, self.alias_loads()).reserved;
        self.tell_alias(now);
        true
    }

    /// Opens each alias that is to be open, once the pool itself has given up what it needs. False: not all of them.
    pub(super) async fn open_alias(&mut self) -> bool {
        let share = self.configuration.wish.grant().share;
        let counts = self.other_counts();
        let mut as_wanted = true;
        for index in [0, 1] {
            let loads = self.alias_loads();
            if !divide(share, loads).open[index] || !loads[index].closed {
                continue;
            }
            let other = if counts { self.slots.other.bound() } else { Some(0) };
            let room = self.slots.active.bound().zip(other).is_some_and(|(a, b)| may_open(share, [a, b], loads, index));
            let slot = if index == 0 { &mut self.slots.active } else { &mut self.slots.other };
            as_wanted &= room;
            if room && let Err(error) = slot.open_alias().await {
                self.tell_limits(&error);
                return false;
            }
        }
        as_wanted
    }

    /// What is seen of the alias in the slot that new clients come to, and in the other one.
    fn alias_loads(&self) -> [AliasLoad; 2] {
        let other = if self.other_counts() { self.slots.other.alias_load() } else { AliasLoad::default() };
        [self.slots.active.alias_load(), other]
    }

    /// Server connections that the alias may hold now, in both slots.
    pub(super) fn alias_bound(&self) -> u32 {
        self.alias_loads().into_iter().map(AliasLoad::bound).fold(0, u32::saturating_add)
    }

    /// Server connections that the alias holds, in both slots.
    pub(super) fn alias_held(&self) -> u32 {
        self.alias_loads().into_iter().map(|load| load.held).fold(0, u32::saturating_add)
    }

    /// What `/status` shows of it.
    pub(super) fn alias_report(&self) -> Option<SessionAliasReport> {
        let alias = self.slots.active.alias.as_ref()?;
        let clients = |slot: &Slot| slot.alias_pools.clients_active.saturating_add(slot.alias_pools.clients_waiting);
        let beside = if self.other_counts() { clients(&self.slots.other) } else { 0 };
        Some(SessionAliasReport {
            database: alias.name.clone(),
            connections: alias.connections,
            held: self.alias_held(),
            clients: clients(&self.slots.active).saturating_add(beside),
            paused: alias.paused,
        })
    }

    fn tell_alias(&mut self, now: Millis) {
        let share = self.configuration.wish.grant().share;
        let [active, other] = self.alias_loads();
        let Some(alias) = self.slots.active.alias.as_ref().filter(|_| !divide(share, [active, other]).open[0]) else {
            return self.report.problems.alias.is_over();
        };
        let beside = match other.bound() {
            0 => String::new(),
            more => format!(", {more} for the sessions of the process before"),
        };
        self.report.problems.alias.may_pass(
            now,
            format!(
                "the session alias {} is paused and its clients queue: {} server connections for it{beside} and at least one for \
                 {} do not fit into the share of {share}",
                alias.name, alias.connections, self.sidecar.injection.upstream.database
            ),
        );
    }
}
