//! PURE: how two slots live within one share.
//!
//! What a slot may open is its **part**. Parts add up to the share at most, at every instant: what one slot is to get, the
//! other one gives up first, and a slot counts for what it holds until it is read back to hold less.

/// What is seen of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotLoad {
    /// What it could open now: the larger of the bound that was read back and of what it holds. 0 without a process.
    pub bound: u32,
    /// Server connections linked to clients.
    pub active: u32,
    /// Clients that wait for one.
    pub waiting: u32,
    /// Whether anybody is, or may come to be, connected to it.
    pub in_use: bool,
}

/// What green needs to prove itself, out of a share: its floor, and at least 1, but never blue's last one unless there is
/// no other.
pub fn trial(share: u32, floor: u32) -> u32 {
    floor.clamp(1, share.saturating_sub(1).max(1)).min(share)
}

/// What blue keeps beside a green that proves itself. 0: it is paused.
pub fn beside(share: u32, floor: u32) -> u32 {
    share - trial(share, floor)
}

/// The part of the first slot of `loads` after one look: connections move from the slot that can spare them to the one
/// whose clients wait. `part` is what the first slot has had so far.
pub fn divide(share: u32, part: u32, loads: [SlotLoad; 2]) -> u32 {
    let [first, second] = loads;
    let least = |load: SlotLoad| u32::from(load.in_use && share > 1);
    let part = part.clamp(least(first), share - least(second).min(share));
    let rest = share - part;
    match (first.waiting, second.waiting) {
        (0, 0) => part,
        (waiting, 0) => part + waiting.min(rest.saturating_sub(second.active.max(least(second)))),
        (0, waiting) => part - waiting.min(part.saturating_sub(first.active.max(least(first)))),
        // Both want more than there is. A single connection changes hands; more are divided as the demands are.
        (_, _) if share == 1 => rest,
        (_, _) => {
            let [a, b] = loads.map(|load| u64::from(load.active) + u64::from(load.waiting));
            let fair = u32::try_from(u64::from(share) * a / (a + b)).unwrap_or(share);
            let fair = fair.clamp(least(first), share - least(second));
            // half of the way: the figures are those of one instant
            if fair > part { part + (fair - part).div_ceil(2) } else { part - (part - fair).div_ceil(2) }
        }
    }
}

/// The part of the first slot when none can open what it would be given: both keep what they hold, as far as the share allows.
pub fn keep(share: u32, part: u32, held: [u32; 2]) -> u32 {
    let least = held[0].min(share);
    part.clamp(least, share.saturating_sub(held[1]).max(least))
}

/// What each slot may be set to now, on the way to `parts`: it shrinks at once, and grows into what the other one has given
/// up.
pub fn allowed(share: u32, parts: [u32; 2], loads: [SlotLoad; 2]) -> [u32; 2] {
    [0, 1].map(|slot| {
        let free = share.saturating_sub(loads[1 - slot].bound);
        parts[slot].min(free.max(loads[slot].bound))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load() -> impl Strategy<Value = SlotLoad> {
        (0..40u32, 0..40u32, 0..40u32, any::<bool>()).prop_map(|(bound, active, waiting, in_use)| SlotLoad {
            bound: bound.max(active),
            active,
            waiting,
            in_use: in_use || active + waiting > 0,
        })
    }

    proptest! {
        #[test]
        fn parts_never_add_up_to_more_than_the_share(share in 0..40u32, part in 0..60u32, loads in [load(), load()]) {
            let first = divide(share, part, loads);
            prop_assert!(first <= share);
            let allowed = allowed(share, [first, share - first], loads);
            let bounds = loads.map(|load| load.bound);
            // whatever takes effect first
            for after in [[allowed[0], bounds[1]], [bounds[0], allowed[1]], allowed] {
                prop_assert!(after[0] + after[1] <= share.max(bounds[0] + bounds[1]));
            }
        }

        #[test]
        fn a_slot_in_use_keeps_one_where_there_are_two(share in 2..40u32, part in 0..60u32, loads in [load(), load()]) {
            let first = divide(share, part, loads);
            prop_assert!(!loads[0].in_use || first >= 1);
            prop_assert!(!loads[1].in_use || first < share);
        }

        #[test]
        fn whoever_waits_alone_gets_all_that_is_spare(share in 2..40u32, part in 0..40u32, busy in 0..40u32) {
            let (part, busy) = (part.min(share), busy.min(share));
            let wants = SlotLoad { waiting: 1000, in_use: true, ..SlotLoad::default() };
            let calm = SlotLoad { active: busy, in_use: true, ..SlotLoad::default() };
            prop_assert!(divide(share, part, [wants, calm]) >= share - busy.max(1).min(share));
        }

        #[test]
        fn where_nothing_can_be_opened_nothing_is_closed_that_the_share_allows(
            share in 0..40u32, part in 0..60u32, held in [0..20u32, 0..20u32],
        ) {
            let first = keep(share, part, held);
            prop_assert!(first <= share);
            prop_assert!(held[0] + held[1] > share || (first >= held[0] && share - first >= held[1]));
        }

        #[test]
        fn green_gets_its_floor_and_leaves_blue_something(share in 1..40u32, floor in 0..40u32) {
            let green = trial(share, floor);
            prop_assert!(green >= 1 && green + beside(share, floor) == share);
            prop_assert!(share == 1 || beside(share, floor) >= 1);
        }
    }

    #[test]
    fn a_single_connection_changes_hands_while_both_wait() {
        let waits = SlotLoad { waiting: 3, in_use: true, ..SlotLoad::default() };
        assert_eq!(divide(1, 1, [waits, waits]), 0);
        assert_eq!(divide(1, 0, [waits, waits]), 1);
        let calm = SlotLoad { in_use: true, ..SlotLoad::default() };
        assert_eq!(divide(1, 1, [calm, waits]), 0);
        assert_eq!(divide(1, 1, [waits, calm]), 1);
    }
}
