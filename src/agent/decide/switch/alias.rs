//! PURE: how the session alias lives within the share, beside the pool itself and in two slots.
//!
//! The alias of a process may hold a fixed number of server connections, which come out of the share before the pool itself gets
//! anything. A session keeps its connection until its client leaves, so nothing can be taken back: an alias is either **open**, and
//! counts with all that it may hold, or **closed** (`PAUSE`), and counts with what its sessions hold. Sessions that have a connection
//! do not notice that it is closed; the clients of a closed alias that have none queue.

/// What is seen of the alias of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AliasLoad {
    /// Server connections that it may hold; 0 without an alias.
    pub connections: u32,
    /// Those that it holds.
    pub held: u32,
    /// Clients that hold none: they wait for one, or have asked nothing yet.
    pub without: u32,
    /// Whether it is closed.
    pub closed: bool,
}

impl AliasLoad {
    /// The most that it could hold now.
    pub fn bound(self) -> u32 {
        if self.closed { self.held } else { self.most() }
    }

    /// The most that it could hold if it were open.
    fn most(self) -> u32 {
        self.connections.max(self.held)
    }
}

/// Which alias is to be open, and what both together have of the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// Whether each is to be open.
    pub open: [bool; 2],
    /// Server connections that are not the pool's own.
    pub reserved: u32,
}

/// Divides. The first slot is the one that new clients come to; it has an open alias as long as one connection remains for the pool
/// itself. The other one has for as long as a client there has no connection: without, it would be cut when it has waited too long.
pub fn divide(share: u32, loads: [AliasLoad; 2]) -> Division {
    let [active, other] = loads;
    let fits = |reserved: u32| reserved < share;
    let other_open = other.connections > 0 && other.without > 0 && fits(active.held.saturating_add(other.most()));
    let beside = if other_open { other.most() } else { other.held };
    let active_open = active.connections > 0 && fits(active.most().saturating_add(beside));
    let open = [active_open, other_open];
    let of = |slot: usize| loads[slot].bound().max(if open[slot] { loads[slot].most() } else { 0 });
    Division { open, reserved: of(0).saturating_add(of(1)) }
}

/// Whether the alias of a slot may be opened now: `pools` is the most that the pool itself could hold in each slot, read back.
pub fn may_open(share: u32, pools: [u32; 2], loads: [AliasLoad; 2], slot: usize) -> bool {
    let others = [pools[0], pools[1], loads[1 - slot].bound()];
    others.into_iter().fold(loads[slot].most(), u32::saturating_add) <= share
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load() -> impl Strategy<Value = AliasLoad> {
        (0..6u32, 0..6u32, 0..3u32, any::<bool>()).prop_map(|(connections, held, without, closed)| AliasLoad {
            connections,
            held: held.min(connections),
            without,
            closed: closed || connections == 0,
        })
    }

    proptest! {
        /// The loop around it: what is to be closed is closed, the pool shrinks, the pool grows, what is to be open is opened.
        #[test]
        fn pool_and_alias_of_both_slots_never_hold_more_than_the_share(
            shares in prop::collection::vec(0..16u32, 1..12),
            loads in [load(), load()],
            pools in [0..8u32, 0..8u32],
            sessions in prop::collection::vec((0..2usize, -2..3i32, 0..2u32), 12),
        ) {
            let (mut loads, mut pools) = (loads, pools);
            let held = |pools: [u32; 2], loads: [AliasLoad; 2]| pools[0] + pools[1] + loads[0].bound() + loads[1].bound();
            let mut before = held(pools, loads).max(shares[0]);
            for (share, (slot, change, without)) in shares.into_iter().zip(sessions) {
                // sessions come to an open alias, and end in any
                let load = &mut loads[slot];
                load.without = without;
                load.held = load.held.saturating_add_signed(change).min(if load.closed { load.held } else { load.connections });
                let wanted = divide(share, loads);
                for slot in [0, 1] {
                    loads[slot].closed |= !wanted.open[slot];
                }
                let mut main = share.saturating_sub(divide(share, loads).reserved);
                for pool in &mut pools {
                    *pool = (*pool).min(main);
                    main -= *pool;
                }
                pools[0] += main;
                for slot in [0, 1] {
                    if wanted.open[slot] && loads[slot].closed && may_open(share, pools, loads, slot) {
                        loads[slot].closed = false;
                    }
                }
                let now = held(pools, loads);
                prop_assert!(now <= share.max(before), "{now} of {share}: {pools:?} {loads:?}");
                before = share.max(loads[0].held + loads[1].held);
            }
        }

        #[test]
        fn the_pool_itself_keeps_a_connection_unless_sessions_hold_them_all(share in 1..16u32, loads in [load(), load()]) {
            let Division { open, .. } = divide(share, loads);
            let closed = [0, 1].map(|slot| AliasLoad { closed: !open[slot], ..loads[slot] });
            prop_assert!(divide(share, closed).reserved < share || loads[0].held + loads[1].held >= share);
        }
    }

    #[test]
    fn sessions_that_stay_in_the_slot_that_was_left_do_not_close_the_alias_of_the_new_one() {
        let alias = AliasLoad { connections: 2, ..AliasLoad::default() };
        let left = AliasLoad { held: 1, ..alias };
        assert_eq!(divide(8, [alias, left]), Division { open: [true, false], reserved: 4 }, "until it is closed");
        let left = AliasLoad { closed: true, ..left };
        assert_eq!(divide(8, [alias, left]), Division { open: [true, false], reserved: 3 });
        let left = AliasLoad { without: 1, ..left };
        assert_eq!(divide(8, [alias, left]), Division { open: [true, true], reserved: 4 });
        assert_eq!(divide(4, [AliasLoad { closed: true, ..alias }, left]).open, [false, true], "who came first");
    }

    #[test]
    fn an_alias_that_leaves_nothing_for_the_pool_itself_is_closed() {
        let alias = AliasLoad { connections: 2, ..AliasLoad::default() };
        assert!(divide(3, [alias, AliasLoad::default()]).open[0]);
        assert!(!divide(2, [alias, AliasLoad::default()]).open[0]);
        assert!(!divide(0, [alias, AliasLoad::default()]).open[0]);
    }
}
