//! From what pools have to what they are entitled to, with few moves, and with proof before growth.

use super::{LOAN_SECONDS, entitlement::PoolAsk};
use crate::decide::{
    budget::entitlement::AskStage,
    filling::{Vessel, fill},
    shares::{give, take},
};

/// Of a pool what decides on its moves. Pools stand in the order in which they are served: by priority, then weight, then name.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub ask: PoolAsk,
    pub entitled: u32,
    /// Its share until now.
    pub now: u32,
    /// Counted for its pods.
    pub counted: u32,
    /// Since when it has what others gave up for it, in seconds. None: it has nothing of others.
    pub borrowed_seconds_ago: Option<f64>,
}

impl Standing {
    /// What it cannot do without: others give at once.
    fn base(&self) -> u32 {
        self.ask.of(AskStage::Minimum).min(self.entitled)
    }

    fn need(&self) -> u32 {
        self.ask.of(AskStage::Need)
    }

    /// Whether it lacks a twentieth or more of what it is entitled to and needs. Less is not worth what it takes: a write for each
    /// pod that gives and for each that gets, and a proof between them.
    fn is_short(&self, share: u32) -> bool {
        let needed = self.need().min(self.entitled);
        share < needed && u64::from(share) * 20 <= u64::from(needed) * 19
    }

    /// Whether what it has borrowed stays with it: two pools that need the same in turn do not swap it each tick.
    fn is_protected(&self) -> bool {
        self.borrowed_seconds_ago.is_some_and(|seconds| seconds < LOAN_SECONDS)
    }
}

/// Where the share of a pool goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShareMove {
    pub share: u32,
    /// Whether others give something up for it.
    pub borrows: bool,
    /// Whether it is short, and waits until those who have what it lacks have had it for long enough.
    pub waits_for_loans: bool,
}

/// The shares that the pools are to have: as they are, but for what somebody needs. The sum is `whole`, or all that they may have.
pub(super) fn moves(pools: &[Standing], whole: u32) -> Vec<ShareMove> {
    let whole = u64::from(whole);
    let mut shares: Vec<u32> = pools.iter().map(|pool| pool.now.min(pool.ask.of(AskStage::Spare))).collect();
    let before = shares.clone();

    // what nobody can do without, and what has to go because there is less than there was
    for (share, pool) in shares.iter_mut().zip(pools) {
        *share = (*share).max(pool.base());
    }
    let mut over = sum(&shares).saturating_sub(whole);
    let mut has_donors = over > 0;
    let urgent: Vec<bool> = shares.iter().zip(&before).map(|(share, before)| share > before).collect();
    take_needless(&mut shares, &mut over, pools, |index| !urgent[index]);
    take(&mut shares, &mut over, |index| pools[index].entitled, 1);

    // what somebody needs: out of what is free, then of what others do not need, then of what they have beyond their part
    let short: Vec<bool> = shares.iter().zip(pools).map(|(&share, pool)| pool.is_short(share)).collect();
    let lacked: u64 = (0..pools.len())
        .filter(|&index| short[index])
        .map(|index| u64::from(pools[index].entitled - shares[index]))
        .sum();
    let free = whole.saturating_sub(sum(&shares));
    let mut missing = lacked.saturating_sub(free);
    has_donors |= missing > 0;
    let gives = |index: usize| !short[index] && !pools[index].is_protected();
    take_needless(&mut shares, &mut missing, pools, gives);
    take(&mut shares, &mut missing, |index| if gives(index) { pools[index].entitled } else { u32::MAX }, 1);
    hand_out(&mut shares, pools, &short, lacked - missing);

    // what nobody has goes to those who are furthest below
    let mut left = whole.saturating_sub(sum(&shares));
    let mut takers: Vec<usize> = (0..pools.len()).filter(|&index| shares[index] < pools[index].entitled).collect();
    takers.sort_by_key(|&index| std::cmp::Reverse(pools[index].entitled - shares[index]));
    for index in takers {
        give(&mut shares[index], pools[index].entitled, &mut left);
    }
    (0..pools.len())
        .map(|index| ShareMove {
            share: shares[index],
            borrows: has_donors && (urgent[index] || short[index]) && shares[index] > before[index],
            waits_for_loans: pools[index].is_short(shares[index]),
        })
        .collect()
}

/// Takes what is `over` from those who do not need it: rather much from a few than a little from many, so that some are left with
/// less than their part of the spare.
fn take_needless(shares: &mut [u32], over: &mut u64, pools: &[Standing], gives: impl Fn(usize) -> bool) {
    let least = |index: usize| {
        let pool = &pools[index];
        if gives(index) { pool.need().max(pool.entitled / 4 * 3) } else { u32::MAX }
    };
    take(shares, over, least, 2);
}

/// Hands out `amount` to those who are short, by priority and weight, up to what they are entitled to.
fn hand_out(shares: &mut [u32], pools: &[Standing], short: &[bool], mut amount: u64) {
    let mut from = 0;
    while from < pools.len() && amount > 0 {
        let is_other = |pool: &Standing| pool.ask.priority != pools[from].ask.priority;
        let to = pools[from..].iter().position(is_other).map_or(pools.len(), |length| from + length);
        let vessel = |index: usize| {
            let (pool, share) = (&pools[index], u64::from(shares[index]));
            let to = if short[index] { u64::from(pool.entitled) } else { share };
            Vessel { weight: u64::from(pool.ask.weight.max(1)), zero: 0, from: share, to }
        };
        let filled = fill(&(from..to).map(vessel).collect::<Vec<_>>(), amount);
        for (share, filled) in shares[from..to].iter_mut().zip(filled) {
            let filled = u32::try_from(filled).unwrap_or(u32::MAX);
            amount -= u64::from(filled - *share);
            *share = filled;
        }
        from = to;
    }
}

/// What each pool may take now of what is counted for nobody: what it cannot do without first, then what it was promised before
/// this tick, then what its pods need, and room for pods to come last. `promised`: its share of the last tick.
pub(super) fn allot(pools: &[Standing], moves: &[ShareMove], promised: &[Option<u32>], mut free: u64) -> Vec<u64> {
    let mut reached: Vec<u32> = pools.iter().map(|pool| pool.counted).collect();
    let upto = |index: usize, bound: u32| bound.min(moves[index].share);
    let rounds: [&dyn Fn(usize) -> u32; 4] = [
        &|index| upto(index, pools[index].base()),
        &|index| upto(index, promised[index].unwrap_or(0)),
        &|index| upto(index, pools[index].need()),
        &|index| moves[index].share,
    ];
    for bound in rounds {
        for (index, reached) in reached.iter_mut().enumerate() {
            give(reached, bound(index), &mut free);
        }
    }
    reached.iter().zip(pools).map(|(&reached, pool)| u64::from(reached - pool.counted)).collect()
}

fn sum(shares: &[u32]) -> u64 {
    shares.iter().map(|&share| u64::from(share)).sum()
}
