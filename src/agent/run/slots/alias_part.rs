//! The session alias: its part of the share, and when it is open. The shell around [`crate::agent::decide::switch::alias`].

use super::Slots;
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{
            machine::Millis,
            switch::alias::{AliasLoad, divide, may_open},
        },
        run::{Reporting, sidecar::Given},
    },
    contract::SessionAliasReport,
};

impl Slots {
    /// Closes each alias that is not to be open, and answers what is not left for the pool itself. None: not known now.
    pub(in crate::agent::run) async fn divide_alias(
        &mut self,
        given: Given<'_>,
        report: &mut Reporting,
    ) -> Option<u32> {
        let now = given.sidecar.now();
        let counts = self.can_ask_other();
        // whether a process that was left answers is looked at elsewhere
        if counts && self.other.look_at_alias(now).await.is_err() {
            return None;
        }
        if let Err(error) = self.active.look_at_alias(now).await {
            report.tell_limits(given.sidecar, &error);
            return None;
        }
        let share = given.wish.grant().share;
        let [active, other] = divide(share, self.alias_loads()).open;
        if counts && !other && self.other.close_alias(now).await.is_err() {
            return None;
        }
        if !active && let Err(error) = self.active.close_alias(now).await {
            report.tell_limits(given.sidecar, &error);
            return None;
        }
        self.tell_alias(given, report, now);
        Some(divide(share, self.alias_loads()).reserved)
    }

    /// Opens each alias that is to be open, once the pool itself has given up what it needs. False: not all of them.
    pub(in crate::agent::run) async fn open_alias(&mut self, given: Given<'_>, report: &mut Reporting) -> bool {
        let share = given.wish.grant().share;
        let counts = self.other_counts();
        let mut as_wanted = true;
        for index in [0, 1] {
            let loads = self.alias_loads();
            if !divide(share, loads).open[index] || !loads[index].closed {
                continue;
            }
            let other = if counts { self.other.bound() } else { Some(0) };
            let room = self.active.bound().zip(other).is_some_and(|(a, b)| may_open(share, [a, b], loads, index));
            let slot = if index == 0 { &mut self.active } else { &mut self.other };
            as_wanted &= room;
            if room && let Err(error) = slot.open_alias().await {
                report.tell_limits(given.sidecar, &error);
                return false;
            }
        }
        as_wanted
    }

    /// What is seen of the alias in the slot that new clients come to, and in the other one.
    fn alias_loads(&self) -> [AliasLoad; 2] {
        let other = if self.other_counts() { self.other.alias_load() } else { AliasLoad::default() };
        [self.active.alias_load(), other]
    }

    /// Server connections that the alias may hold now, in both slots.
    pub(in crate::agent::run) fn alias_bound(&self) -> u32 {
        self.alias_loads().into_iter().map(AliasLoad::bound).fold(0, u32::saturating_add)
    }

    /// Server connections that the alias may hold beside the process that new clients come to.
    pub(in crate::agent::run) fn alias_bound_of_other(&self) -> u32 {
        self.alias_loads()[1].bound()
    }

    /// Server connections that the alias holds, in both slots.
    pub(in crate::agent::run) fn alias_held(&self) -> u32 {
        self.alias_loads().into_iter().map(|load| load.held).fold(0, u32::saturating_add)
    }

    /// What `/status` shows of it.
    pub(in crate::agent::run) fn alias_report(&self) -> Option<SessionAliasReport> {
        let alias = self.active.alias.as_ref()?;
        let clients = |slot: &Slot| slot.alias_pools.clients_active.saturating_add(slot.alias_pools.clients_waiting);
        let beside = if self.other_counts() { clients(&self.other) } else { 0 };
        Some(SessionAliasReport {
            database: alias.name.clone(),
            connections: alias.connections,
            held: self.alias_held(),
            clients: clients(&self.active).saturating_add(beside),
            paused: alias.paused,
        })
    }

    fn tell_alias(&self, given: Given<'_>, report: &mut Reporting, now: Millis) {
        let share = given.wish.grant().share;
        let [active, other] = self.alias_loads();
        let Some(alias) = self.active.alias.as_ref().filter(|_| !divide(share, [active, other]).open[0]) else {
            return report.problems.alias.is_over();
        };
        let beside = match other.bound() {
            0 => String::new(),
            more => format!(", {more} for the sessions of the process before"),
        };
        report.problems.alias.may_pass(
            now,
            format!(
                "the session alias {} is paused and its clients queue: {} server connections for it{beside} and at least one for \
                 {} do not fit into the share of {share}",
                alias.name, alias.connections, given.sidecar.injection.upstream.database
            ),
        );
    }
}
