//! One share over two processes: the shell around [`crate::agent::decide::switch::division`].

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
        run::Agent,
    },
    contract::LimitsReadBack,
    pooler::pgbouncer::{console::ConsoleError, limits},
};

/// After a switch the loads of both slots change fast.
const SHIFTING: Millis = 5000;
/// Where two slots have one connection between them, how long each has it while both want it.
const TURN: Millis = 1000;

impl Agent {
    /// Whether limits are on their way, so that they are looked at more often than once a second.
    pub(in crate::agent::run) fn is_moving(&self) -> bool {
        let waits = |slot: &Slot| slot.pools.is_some_and(|(_, pools)| pools.clients_waiting > 0);
        let releases = self.slots.active.releasing_since.is_some() || self.slots.other.releasing_since.is_some();
        let shifts = self.now().saturating_sub(self.switching.steered_at) < SHIFTING;
        releases
            || self.access.rotating.set_aside() > 0
            || self.makes_room()
            || self.other_counts() && (shifts || waits(&self.slots.active) || waits(&self.slots.other))
    }

    /// Whether the active slot keeps no more than what green's proof leaves it.
    fn makes_room(&self) -> bool {
        matches!(
            self.slots.switch.phase(),
            SwitchPhase::MakingRoom { .. }
                | SwitchPhase::Proving { .. }
                | SwitchPhase::Replacing { .. }
                | SwitchPhase::Taking { .. }
        )
    }

    /// Reads the figures of every process that counts.
    pub(in crate::agent::run) async fn look_at_pools(&mut self, now: Millis) {
        let read = async {
            for slot in self.slots_to_ask_mut() {
                slot.read_pools(now).await?;
            }
            Ok::<(), ConsoleError>(())
        };
        if let Err(error) = read.await {
            self.report.problems.reading.may_pass(now, error.to_string());
        }
    }

    /// What each process may open: the active one, and the other one while it counts. None: not known now.
    pub(in crate::agent::run) async fn parts(
        &mut self,
    ) -> Option<(limits::WantedLimits, Option<limits::WantedLimits>)> {
        let grant = self.grant();
        let (share, floor) = (grant.share.saturating_sub(self.access.rotating.set_aside()), grant.floor);
        let alone =
            |part: u32, limit: u32| limits::WantedLimits { limit: limit.min(part), warm: floor.min(part), share: part };
        if !self.other_counts() {
            let part = if self.makes_room() { beside(share, floor) } else { share };
            return Some((alone(part, self.sizing.limit), None));
        }
        let now = self.now();
        for slot in [&mut self.slots.active, &mut self.slots.other] {
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
        let load = |slot: &Slot, in_use: bool| {
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
        };
        let loads = [load(&self.slots.active, true)?, load(&self.slots.other, false)?];
        // what one holds of that the other cannot open, and would ask for again and again
        let share = self
            .sizing
            .refused
            .ceiling()
            .filter(|_| self.shares_ceiling())
            .map_or(share, |most| share.min(most.max(2)));
        let parts = if self.makes_room() {
            [beside(share, floor), trial(share, floor)]
        } else if matches!(self.slots.switch.phase(), SwitchPhase::AwaitingPromotion { .. }) {
            [share, 0]
        } else {
            let before = self.switching.part.min(share);
            if before == 1 && share == 1 && self.slots.other.leaving().is_some() && self.slots.active.bound() == Some(0)
            {
                // its turn begins once the other one has let go: to ask that one again and again costs a connection each time
                self.switching.part_since = now;
            }
            let is_turn = match self.way() {
                // a busy one may not answer when it is paused
                _ if share == 1 && before == 0 && self.slots.other.is_nearly_mute() => false,
                _ if share == 1 => now.saturating_sub(self.switching.part_since) >= TURN,
                Way::Steer => true,
                // what blue has it may have to live with, see `is_mute`: it gives nothing away before those are served that it
                // has just accepted
                Way::HandOver => now.saturating_sub(self.switching.steered_at) >= TURN,
            };
            let part = match self.slots.other.leaving() {
                // one that cannot be told anything any more keeps what it was told last; beside it one is opened for new clients,
                // if there was one: a share that leaves none is not in force then
                Some(bound) if self.slots.other.is_mute() => share.saturating_sub(bound).max(share.min(1)),
                _ if self.access.rotating.is_refused() => {
                    keep(share, before, [&self.slots.active, &self.slots.other].map(|slot| slot.held().unwrap_or(0)))
                }
                // one that goes mute keeps what it has: a single one is not left with it for longer than it works
                Some(_) if share == 1 && loads[1].active == 0 && loads[1].waiting == 0 => 1,
                // the turn of one that can open nothing is nobody's
                _ if share == 1 && self.slots.other.is_forlorn() => 1,
                _ if is_turn => divide(share, before, loads),
                _ => before,
            };
            if part != before {
                self.switching.part_since = now;
            }
            self.switching.part = part;
            [part, share - part]
        };
        let [active, other] = allowed(share, parts, loads);
        Some((alone(active, self.sizing.limit), Some(limits::WantedLimits { limit: other, warm: 0, share: other })))
    }

    /// Whether two processes have no more between them than the database lets in. A proof has its own place, and what is closed of a
    /// user that is refused could not be opened again.
    fn shares_ceiling(&self) -> bool {
        let is_refused = self.is_refused() || self.slots.other.is_refused();
        !is_refused && !self.makes_room()
    }

    /// What a process that new clients come to is started with: not what the other one may still hold.
    pub(in crate::agent::run) fn wanted_beside(&self) -> limits::WantedLimits {
        let wanted = self.wanted();
        if !self.other_counts() {
            return wanted;
        }
        let part = self.slots.other.bound().map_or(0, |bound| wanted.share.saturating_sub(bound));
        limits::WantedLimits { limit: wanted.limit.min(part), warm: wanted.warm.min(part), share: part }
    }

    /// Whether both processes together can hold no more than the share.
    pub(in crate::agent::run) fn is_within_share(&self) -> bool {
        if self.sizing.reserved > self.configuration.wish.grant().share {
            return false;
        }
        if !self.other_counts() {
            return true;
        }
        let bounds = self.slots.active.bound().zip(self.slots.other.bound());
        bounds.is_some_and(|(active, other)| active.saturating_add(other) <= self.grant().share)
    }

    /// The limits of all processes that may hold server connections.
    pub(in crate::agent::run) fn limits_together(&self) -> Option<LimitsReadBack> {
        let active = self.slots.active.limits?;
        if !self.other_counts() {
            return Some(active);
        }
        let mute = self.slots.other.leaving().filter(|_| self.slots.other.is_mute());
        let mute =
            mute.map(|n| LimitsReadBack { pool_size: n, max_db_connections: n, min_pool_size: 0, paused: false });
        let other = mute.or(self.slots.other.limits)?;
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
