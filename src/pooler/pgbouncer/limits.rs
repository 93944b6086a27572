//! PURE: the order in which the limits of a running PgBouncer are changed.
//!
//! Growth raises the outer bound first, a shrink lowers it last, once no more is held than it allows. A share of 0 is a
//! `PAUSE`. One step is taken at a time, each is read back before the next one, and equal values are never set again.

use super::render::Limits;
use crate::contract::LimitsReadBack;

/// What the pooler is to be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedLimits {
    /// The limit: `default_pool_size`. At least 1 unless the share is 0.
    pub limit: u32,
    /// Kept open without clients: `min_pool_size`.
    pub warm: u32,
    /// The share: `max_db_connections`. 0: paused.
    pub share: u32,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitStep {
    /// Everything is as wanted.
    Done,
    /// `PAUSE` the database: no client gets a server connection, and the open ones close as transactions end.
    Pause,
    /// `RESUME` the database.
    Resume,
    /// `SET default_pool_size`.
    PoolSize(u32),
    /// `SET min_pool_size`.
    MinPoolSize(u32),
    /// `SET max_db_connections`.
    MaxDbConnections(u32),
    /// More is held than the share allows: wait until transactions end. What is busy is never cut.
    AwaitRelease {
        /// Server connections that have to go.
        excess: u32,
    },
}

impl WantedLimits {
    /// The same as bounds to start a process with, or to write into its file: never 0.
    pub fn as_limits(self) -> Limits {
        let pool_size = self.limit.min(self.share).max(1);
        Limits {
            pool_size,
            min_pool_size: if self.share == 0 { 0 } else { self.warm.min(pool_size) },
            max_db_connections: self.share.max(1),
        }
    }
}

/// The next step from what was read back to what is wanted. `held` is what is open now; without it the outer bound is
/// not lowered.
pub fn next_step(now: &LimitsReadBack, held: Option<u32>, wanted: WantedLimits) -> LimitStep {
    let target = wanted.as_limits();
    if wanted.share == 0 && !now.paused {
        // what it opens to keep some open, a PAUSE ends, as a login that failed
        return if now.min_pool_size > 0 { LimitStep::MinPoolSize(0) } else { LimitStep::Pause };
    }
    // 0 is "without limit" to PgBouncer: treated as more than anything.
    let unlimited_last = |value: u32| if value == 0 { u32::MAX } else { value };
    let outer = unlimited_last(now.max_db_connections);
    let inner = unlimited_last(now.pool_size);
    if outer < target.max_db_connections {
        return LimitStep::MaxDbConnections(target.max_db_connections);
    }
    if now.min_pool_size > target.min_pool_size {
        return LimitStep::MinPoolSize(target.min_pool_size);
    }
    if inner != target.pool_size {
        return LimitStep::PoolSize(target.pool_size);
    }
    if outer > target.max_db_connections {
        let excess = held.map_or(1, |held| held.saturating_sub(wanted.share));
        return if excess == 0 {
            LimitStep::MaxDbConnections(target.max_db_connections)
        } else {
            LimitStep::AwaitRelease { excess }
        };
    }
    if wanted.share > 0 && now.paused {
        return LimitStep::Resume;
    }
    if now.min_pool_size < target.min_pool_size {
        return LimitStep::MinPoolSize(target.min_pool_size);
    }
    LimitStep::Done
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_back() -> impl Strategy<Value = LimitsReadBack> {
        (0..50u32, 0..50u32, 0..50u32, any::<bool>()).prop_map(
            |(pool_size, max_db_connections, min_pool_size, paused)| LimitsReadBack {
                pool_size,
                max_db_connections,
                min_pool_size,
                paused,
            },
        )
    }

    fn wanted() -> impl Strategy<Value = WantedLimits> {
        (0..40u32, 0..40u32, 0..40u32).prop_map(|(limit, warm, share)| WantedLimits { limit, warm, share })
    }

    fn take(now: &mut LimitsReadBack, step: LimitStep) {
        match step {
            LimitStep::Pause => now.paused = true,
            LimitStep::Resume => now.paused = false,
            LimitStep::PoolSize(n) => now.pool_size = n,
            LimitStep::MinPoolSize(n) => now.min_pool_size = n,
            LimitStep::MaxDbConnections(n) => now.max_db_connections = n,
            LimitStep::Done | LimitStep::AwaitRelease { .. } => {}
        }
    }

    proptest! {
        #[test]
        fn every_way_ends_at_what_is_wanted_and_sets_nothing_twice(mut now in read_back(), wanted in wanted()) {
            let mut steps = Vec::new();
            loop {
                let step = next_step(&now, Some(0), wanted);
                if step == LimitStep::Done { break; }
                prop_assert!(!steps.contains(&step), "{step:?} twice in {steps:?}");
                steps.push(step);
                take(&mut now, step);
            }
            prop_assert_eq!(now.paused, wanted.share == 0);
            prop_assert_eq!(now.max_db_connections, wanted.share.max(1));
            prop_assert!(now.pool_size <= wanted.share.max(1) && now.pool_size >= 1);
            prop_assert!(now.min_pool_size <= now.pool_size);
        }

        #[test]
        fn no_step_ever_sets_a_limit_to_zero(now in read_back(), held in prop::option::of(0..60u32), wanted in wanted()) {
            let step = next_step(&now, held, wanted);
            prop_assert!(!matches!(step, LimitStep::PoolSize(0) | LimitStep::MaxDbConnections(0)), "{step:?}");
        }

        #[test]
        fn the_outer_bound_is_lowered_only_when_no_more_is_held(now in read_back(), held in 0..60u32, wanted in wanted()) {
            if let LimitStep::MaxDbConnections(n) = next_step(&now, Some(held), wanted)
                && now.max_db_connections > n
            {
                prop_assert!(held <= wanted.share);
            }
        }
    }

    #[test]
    fn while_it_is_paused_it_is_not_told_to_keep_connections_open() {
        let mut now = LimitsReadBack { pool_size: 1, max_db_connections: 1, min_pool_size: 1, paused: false };
        let mut steps = |share| {
            let mut steps = Vec::new();
            while steps.last() != Some(&LimitStep::Done) {
                steps.push(next_step(&now, Some(0), WantedLimits { limit: 1, warm: 1, share }));
                take(&mut now, steps[steps.len() - 1]);
            }
            steps
        };
        assert_eq!(steps(0), [LimitStep::MinPoolSize(0), LimitStep::Pause, LimitStep::Done]);
        assert_eq!(steps(1), [LimitStep::Resume, LimitStep::MinPoolSize(1), LimitStep::Done]);
    }

    #[test]
    fn growth_raises_the_outer_bound_first() {
        let now = LimitsReadBack { pool_size: 4, max_db_connections: 4, min_pool_size: 0, paused: false };
        let wanted = WantedLimits { limit: 10, warm: 0, share: 10 };
        assert_eq!(next_step(&now, Some(4), wanted), LimitStep::MaxDbConnections(10));
    }

    #[test]
    fn a_busy_pool_keeps_its_outer_bound_until_it_holds_less() {
        let now = LimitsReadBack { pool_size: 4, max_db_connections: 10, min_pool_size: 0, paused: false };
        let wanted = WantedLimits { limit: 4, warm: 0, share: 4 };
        assert_eq!(next_step(&now, Some(9), wanted), LimitStep::AwaitRelease { excess: 5 });
        assert_eq!(next_step(&now, None, wanted), LimitStep::AwaitRelease { excess: 1 });
        assert_eq!(next_step(&now, Some(4), wanted), LimitStep::MaxDbConnections(4));
    }
}
