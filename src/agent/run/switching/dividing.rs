//! One share over two processes: the shell around [`crate::agent::decide::switch::division`].

use super::Switchover;
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{
            machine::Millis,
            switch::{
                SwitchPhase, Way,
                division::{SlotLoad, allowed, beside, divide, keep, trial},
            },
        },
        run::{Sidecar, access::Rotating, sidecar::Given, sizing::Sizing, slots::Slots},
    },
    pooler::pgbouncer::limits,
};

/// After a switch the loads of both slots change fast.
const SHIFTING: Millis = 5000;
/// Where two slots have one connection between them, how long each has it while both want it.
const TURN: Millis = 1000;

impl Switchover {
    /// Whether limits are on their way, so that they are looked at more often than once a second.
    pub(in crate::agent::run) fn is_moving(&self, sidecar: &Sidecar, slots: &Slots, rotating: &Rotating) -> bool {
        let waits = |slot: &Slot| slot.pools.is_some_and(|(_, pools)| pools.clients_waiting > 0);
        let releases = slots.active.releasing_since.is_some() || slots.other.releasing_since.is_some();
        let shifts = sidecar.now().saturating_sub(self.steered_at) < SHIFTING;
        releases
            || rotating.set_aside() > 0
            || slots.makes_room()
            || slots.other_counts() && (shifts || waits(&slots.active) || waits(&slots.other))
    }

    /// What each process may open: the active one, and the other one while it counts. None: not known now.
    pub(in crate::agent::run) async fn parts(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        rotating: &Rotating,
        sizing: &Sizing,
    ) -> Option<(limits::WantedLimits, Option<limits::WantedLimits>)> {
        let grant = sizing.grant(given.wish);
        let (share, floor) = (grant.share.saturating_sub(rotating.set_aside()), grant.floor);
        let alone =
            |part: u32, limit: u32| limits::WantedLimits { limit: limit.min(part), warm: floor.min(part), share: part };
        let limit = sizing.limit();
        if !slots.other_counts() {
            let part = if slots.makes_room() { beside(share, floor) } else { share };
            return Some((alone(part, limit), None));
        }
        let now = given.sidecar.now();
        for slot in [&mut slots.active, &mut slots.other] {
            if slot.is_mute() {
                continue;
            }
            if slot.limits.is_none() {
                slot.read_limits().await.ok()?;
            }
            if slot.pools.is_none() {
                slot.read_pools(now).await.ok()?;
            }
        }
        let loads = [load(&slots.active, true)?, load(&slots.other, false)?];
        // what one holds of that the other cannot open, and would ask for again and again
        let share =
            sizing.ceiling().filter(|_| shares_ceiling(slots, rotating)).map_or(share, |most| share.min(most.max(2)));
        let parts = if slots.makes_room() {
            [beside(share, floor), trial(share, floor)]
        } else if matches!(slots.phase(), SwitchPhase::AwaitingPromotion { .. }) {
            [share, 0]
        } else {
            let part = self.divide(given.sidecar, slots, rotating, share, loads, now);
            [part, share - part]
        };
        let [active, other] = allowed(share, parts, loads);
        Some((alone(active, limit), Some(limits::WantedLimits { limit: other, warm: 0, share: other })))
    }

    /// The active slot's part while both slots have clients.
    fn divide(
        &mut self,
        sidecar: &Sidecar,
        slots: &Slots,
        rotating: &Rotating,
        share: u32,
        loads: [SlotLoad; 2],
        now: Millis,
    ) -> u32 {
        let Slots { active, other, .. } = slots;
        let before = self.part.min(share);
        if before == 1 && share == 1 && other.leaving().is_some() && active.bound() == Some(0) {
            // its turn begins once the other one has let go: to ask that one again and again costs a connection each time
            self.part_since = now;
        }
        let is_turn = match sidecar.way() {
            // a busy one may not answer when it is paused
            _ if share == 1 && before == 0 && other.is_nearly_mute() => false,
            _ if share == 1 => now.saturating_sub(self.part_since) >= TURN,
            Way::Steer => true,
            // what blue has it may have to live with, see `is_mute`: it gives nothing away before those are served that it
            // has just accepted
            Way::HandOver => now.saturating_sub(self.steered_at) >= TURN,
        };
        let part = match other.leaving() {
            // one that cannot be told anything any more keeps what it was told last; beside it one is opened for new clients,
            // if there was one: a share that leaves none is not in force then
            Some(bound) if other.is_mute() => share.saturating_sub(bound).max(share.min(1)),
            _ if rotating.is_refused() => keep(share, before, [active, other].map(|slot| slot.held().unwrap_or(0))),
            // one that goes mute keeps what it has: a single one is not left with it for longer than it works
            Some(_) if share == 1 && loads[1].active == 0 && loads[1].waiting == 0 => 1,
            // the turn of one that can open nothing is nobody's
            _ if share == 1 && other.is_forlorn() => 1,
            _ if is_turn => divide(share, before, loads),
            _ => before,
        };
        if part != before {
            self.part_since = now;
        }
        self.part = part;
        part
    }
}

/// What is seen of a slot. None: not known.
fn load(slot: &Slot, in_use: bool) -> Option<SlotLoad> {
    if slot.is_mute() {
        // nobody knows how much of it is in use
        let bound = slot.bound()?;
        return Some(SlotLoad { bound, active: bound, waiting: 0, in_use: true });
    }
    let (_, pools) = slot.pools?;
    Some(SlotLoad {
        bound: slot.bound()?,
        active: pools.active,
        waiting: pools.clients_waiting,
        in_use: in_use || pools.clients_active + pools.clients_waiting > 0,
    })
}

/// Whether two processes have no more between them than the database lets in. A proof has its own place, and what is closed of a
/// user that is refused could not be opened again.
fn shares_ceiling(slots: &Slots, rotating: &Rotating) -> bool {
    let is_refused = rotating.is_refused() || slots.active.is_refused() || slots.other.is_refused();
    !is_refused && !slots.makes_room()
}
