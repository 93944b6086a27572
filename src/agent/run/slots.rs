//! The two slots, and how the pod goes from the one to the other.

mod alias_part;
mod recalling;

use std::path::Path;

use tokio::sync::mpsc;

use super::{Reporting, switching};
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{
            machine::Millis,
            slot_name::SlotName,
            switch::{Switch, SwitchPhase},
            troubles::Heard,
        },
        keeper::Link,
    },
    contract::{Injection, LimitsReadBack},
    pooler::pgbouncer::{console::ConsoleError, version::Version},
};

/// The two slots.
pub(super) struct Slots {
    /// The slot that new clients are led to.
    pub(super) active: Slot,
    /// The other one.
    pub(super) other: Slot,
    /// How the pod goes from the one to the other.
    pub(super) switch: Switch,
}

impl Slots {
    /// Takes up what another agent left in them.
    pub(super) fn take_up(link: &Link, run_dir: &Path, injection: &Injection, errors: &mpsc::Sender<Heard>) -> Self {
        let left = link.state();
        let of = |name| Slot::new(name, link.clone(), run_dir, injection, errors.clone());
        let (active, other) = (of(left.steered), of(left.steered.other()));
        let switch = Switch::resume(0, switching::left(&left, other.name()));
        Self { active, other, switch }
    }

    /// What both processes run is known to be of this version.
    pub(super) fn are_of(&mut self, version: Version) {
        for slot in [&mut self.active, &mut self.other] {
            slot.version = Some(version);
        }
    }

    /// How far a switch is.
    pub(super) fn phase(&self) -> SwitchPhase {
        self.switch.phase()
    }

    /// Whether the other slot's server connections count.
    pub(super) fn other_counts(&self) -> bool {
        let counts = matches!(
            self.phase(),
            SwitchPhase::Proving { .. }
                | SwitchPhase::AwaitingPromotion { .. }
                | SwitchPhase::Replacing { .. }
                | SwitchPhase::Taking { .. }
                | SwitchPhase::Warm { .. }
                | SwitchPhase::Draining { .. }
        );
        counts && self.other.pid().is_some()
    }

    /// Whether the other slot's process counts and can be asked.
    pub(super) fn can_ask_other(&self) -> bool {
        self.other_counts() && !self.other.is_mute()
    }

    /// Whether the active slot keeps no more than what green's proof leaves it.
    pub(super) fn makes_room(&self) -> bool {
        matches!(
            self.phase(),
            SwitchPhase::MakingRoom { .. }
                | SwitchPhase::Proving { .. }
                | SwitchPhase::Replacing { .. }
                | SwitchPhase::Taking { .. }
        )
    }

    /// The slots whose processes count and can be asked, the one that new clients come to first.
    pub(super) fn to_ask(&self) -> impl Iterator<Item = &Slot> {
        [Some(&self.active), self.can_ask_other().then_some(&self.other)].into_iter().flatten()
    }

    /// The same, to be asked.
    pub(super) fn to_ask_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        let other = self.can_ask_other();
        [Some(&mut self.active), other.then_some(&mut self.other)].into_iter().flatten()
    }

    /// The slot of this name.
    pub(super) fn named(&self, name: SlotName) -> &Slot {
        if self.active.name() == name { &self.active } else { &self.other }
    }

    /// The same, to be asked.
    pub(super) fn named_mut(&mut self, name: SlotName) -> &mut Slot {
        if self.active.name() == name { &mut self.active } else { &mut self.other }
    }

    /// The revision that new clients meet.
    pub(super) fn revision(&self) -> Option<u64> {
        self.active.runs.as_ref().map(|revision| revision.revision)
    }

    /// Clients that were cut since the last call because their process ended: the active one, and the other one.
    pub(super) fn take_cut(&mut self) -> (u32, u32) {
        (self.active.take_cut(), self.other.take_cut())
    }

    /// Limits are read back before they are relied on again.
    pub(super) fn forget_limits(&mut self) {
        (self.active.limits, self.other.limits) = (None, None);
    }

    /// Reads the figures of every process that counts.
    pub(super) async fn look_at_pools(&mut self, report: &mut Reporting, now: Millis) {
        let read = async {
            for slot in self.to_ask_mut() {
                slot.read_pools(now).await?;
            }
            Ok::<(), ConsoleError>(())
        };
        if let Err(error) = read.await {
            report.problems.reading.may_pass(now, error.to_string());
        }
    }

    /// Whether no server connection logs in, and none begins to: see [`crate::agent::decide::quiet`].
    pub(super) async fn nobody_logs_in(&mut self, now: Millis) -> bool {
        let mut quiet = true;
        for slot in self.to_ask_mut() {
            // all are asked, so that they wait together
            quiet &= slot.is_quiet(now).await.unwrap_or(false);
        }
        quiet
    }

    /// Whether both processes together can hold no more than this.
    pub(super) fn are_within(&self, share: u32) -> bool {
        if !self.other_counts() {
            return true;
        }
        let bounds = self.active.bound().zip(self.other.bound());
        bounds.is_some_and(|(active, other)| active.saturating_add(other) <= share)
    }

    /// Statements that the clients of all processes had prepared, when each was asked for its clients last.
    pub(super) fn prepared_statements(&mut self) -> u32 {
        let of = |slot: &mut Slot| if slot.is_running() { slot.prepared_statements } else { 0 };
        of(&mut self.active).saturating_add(of(&mut self.other))
    }

    /// The limits of all processes that may hold server connections.
    pub(super) fn limits_together(&self) -> Option<LimitsReadBack> {
        let active = self.active.limits?;
        if !self.other_counts() {
            return Some(active);
        }
        let mute = self.other.leaving().filter(|_| self.other.is_mute());
        let mute =
            mute.map(|n| LimitsReadBack { pool_size: n, max_db_connections: n, min_pool_size: 0, paused: false });
        let other = mute.or(self.other.limits)?;
        let of = |limits: LimitsReadBack, figure: u32| if limits.paused { 0 } else { figure };
        let sum = |figure: fn(&LimitsReadBack) -> u32| of(active, figure(&active)) + of(other, figure(&other));
        Some(match (active.paused, other.paused) {
            (true, true) => active,
            _ => LimitsReadBack {
                pool_size: sum(|limits| limits.pool_size),
                max_db_connections: sum(|limits| limits.max_db_connections),
                min_pool_size: sum(|limits| limits.min_pool_size),
                paused: false,
            },
        })
    }
}
