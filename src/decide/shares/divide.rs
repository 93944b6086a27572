//! What there is, handed out among the pods of a pool in stages: each stage by [`fill`], as a server is among its pools.

use std::cmp::Reverse;

use crate::decide::filling::{Vessel, fill};

/// What a pod claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// What it may always hold, as far as the floors of all fit. 0: it gets nothing.
    pub floor: u32,
    /// What it could always hold if there were enough for that.
    pub full_floor: u32,
    /// What its load needs on average.
    pub mean: u32,
    /// What its load needed at most.
    pub peak: u32,
    /// Its part of what nobody needs.
    pub weight: u64,
    /// What it has: of two equal claims the one that has more keeps it.
    pub held: u32,
    /// What it may get at most.
    pub most: u32,
}

/// Divides `whole`: floors; means, whoever needs less than its part leaving it to the others; what serves them, in proportion to what
/// each lacks of it; then `headroom` is set aside; the rest by weight.
///
/// The floors must fit. The sum of the result is `whole` less what was set aside, if any claim has a weight. With more to divide nobody gets less.
pub(super) fn divide(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
    let of = |of: fn(&Claim) -> u32| claims.iter().map(of).collect::<Vec<u32>>();
    let mut division = StagedDivision::new(whole.into(), of(|claim| claim.floor), &of(|claim| claim.held));
    division.level(|index| claims[index].full_floor);
    division.level(|index| claims[index].mean);
    let lacks = |claim: &Claim| claim.peak.saturating_sub(claim.mean);
    division.add(|index| claims[index].peak, |index| lacks(&claims[index]).into());
    division.set_aside(headroom);
    division.add(|index| claims[index].most, |index| claims[index].weight);
    division.shares
}

/// A division under way. Of equals the one that has held more gets the next connection, then the one that stands first: it does not wander.
pub(super) struct StagedDivision {
    /// What each has got so far.
    pub shares: Vec<u32>,
    order: Vec<usize>,
    left: u64,
}

impl StagedDivision {
    /// Each has got its floor, which must fit.
    pub fn new(whole: u64, floors: Vec<u32>, held: &[u32]) -> Self {
        let left = whole.saturating_sub(floors.iter().map(|&floor| u64::from(floor)).sum());
        let mut order: Vec<usize> = (0..floors.len()).collect();
        order.sort_by_key(|&index| Reverse(held[index]));
        Self { shares: floors, order, left }
    }

    /// To whoever has least, up to what is wanted.
    pub fn level(&mut self, upto: impl Fn(usize) -> u32) {
        self.fill(|index, has| Vessel { weight: 1, zero: 0, from: has, to: upto(index).into() });
    }

    /// On top of what each has, by weight, up to what is wanted.
    fn add(&mut self, upto: impl Fn(usize) -> u32, weight: impl Fn(usize) -> u64) {
        self.fill(|index, has| Vessel { weight: weight(index), zero: has, from: has, to: upto(index).into() });
    }

    /// Keeps back as much of what is left.
    fn set_aside(&mut self, headroom: u32) {
        self.left = self.left.saturating_sub(headroom.into());
    }

    fn fill(&mut self, vessel: impl Fn(usize, u64) -> Vessel) {
        if self.left == 0 {
            return;
        }
        let vessels: Vec<Vessel> = self.order.iter().map(|&index| vessel(index, self.shares[index].into())).collect();
        for (&index, full) in self.order.iter().zip(fill(&vessels, self.left)) {
            let share = u32::try_from(full).unwrap_or(u32::MAX);
            self.left -= u64::from(share - self.shares[index]);
            self.shares[index] = share;
        }
    }
}
