//! Whole connections handed out one after the other, each to whoever stands lowest for its weight.
//!
//! The next one always goes to the smallest `(has + 1/2) / weight`. That order does not depend on how many there are, so with
//! one more nobody has less: the method of the largest remainder breaks that (the Alabama paradox). The rounding is that of
//! Webster (Balinski and Young, Fair Representation, 1982). Sums are exact, and so are comparisons: there are no fractions.
//!
//! Bounded from below and above, the same order gives weighted max-min fair shares: where one is full, the level of the others rises.

/// Who may be given to. Weights stay below 2^41 and figures below 2^32, so that levels fit their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vessel {
    /// How much wider it is than others: of two with the same level the one with twice the weight has twice as much. 0: it gets nothing.
    pub weight: u64,
    /// What it may have at level 0: the level counts what it has above that. At most `from`.
    pub zero: u64,
    /// What it has.
    pub from: u64,
    /// What it may have.
    pub to: u64,
}

impl Vessel {
    /// What it may get of so much.
    fn room(&self, amount: u64) -> u64 {
        if self.weight == 0 { 0 } else { self.to.saturating_sub(self.from).min(amount) }
    }

    /// What it has where the level is so much above its zero, in its own measure.
    fn with(&self, above: u64) -> u64 {
        self.zero.saturating_add(above).clamp(self.from, self.to)
    }

    /// A level at which it is full.
    fn full_at(&self, bits: u32) -> u128 {
        let above = u128::from(self.to.saturating_sub(self.zero));
        let weight = self.weight.max(1);
        match u64::try_from(above << bits) {
            Ok(above) => u128::from(above / weight) + 1,
            Err(_) => (above << bits) / u128::from(weight) + 1,
        }
    }
}

/// All vessels at a level.
struct Filled {
    level: u128,
    has: Vec<u64>,
    /// What it took, all together.
    given: u128,
}

impl Filled {
    /// `level` counts in parts of `1 << bits`; nobody weighs more than that.
    fn new(vessels: &[Vessel], level: u128, bits: u32) -> Self {
        let half = 1_u64 << bits;
        let mut has = Vec::with_capacity(vessels.len());
        // what fits a machine word is counted in one: most levels do
        let most = (u64::MAX >> 2) >> bits;
        match u64::try_from(level).ok().filter(|level| *level <= most) {
            Some(level) => {
                has.extend(
                    vessels.iter().map(|vessel| vessel.with(((level * vessel.weight) * 2 + half) >> (bits + 1))),
                );
            }
            None => has.extend(vessels.iter().map(|vessel| {
                let above = (level * u128::from(vessel.weight) * 2 + u128::from(half)) >> (bits + 1);
                vessel.with(u64::try_from(above).unwrap_or(u64::MAX))
            })),
        }
        let given = has.iter().zip(vessels).map(|(has, vessel)| u128::from(has - vessel.from)).sum();
        Self { level, has, given }
    }

    /// Whether somebody gets more than one from here to there.
    fn is_far_below(&self, other: &Self) -> bool {
        self.has.iter().zip(&other.has).any(|(has, then)| then - has > 1)
    }
}

/// Hands out `amount`, and returns what each has then. Who stands first is first among equals.
///
/// Nothing is left over while anybody with a weight may have more. Takes `O(n log n)`: the level is guessed from the two around it, and
/// halved where a guess does not help.
pub(super) fn fill(vessels: &[Vessel], amount: u64) -> Vec<u64> {
    // nobody gets more than there is: it keeps the levels small
    let vessels: Vec<Vessel> =
        vessels.iter().map(|vessel| Vessel { to: vessel.from + vessel.room(amount), ..*vessel }).collect();
    let room: u128 = vessels.iter().map(|vessel| u128::from(vessel.to - vessel.from)).sum();
    if u128::from(amount) >= room {
        return vessels.iter().map(|vessel| vessel.to).collect();
    }
    // so fine that from one level to the next nobody gets more than one
    let bits = u64::BITS - vessels.iter().map(|vessel| vessel.weight).max().unwrap_or(0).leading_zeros();
    let filled = |level: u128| Filled::new(&vessels, level, bits);
    let mut low = Filled { level: 0, has: vessels.iter().map(|vessel| vessel.from).collect(), given: 0 };
    let may_get = vessels.iter().filter(|vessel| vessel.from < vessel.to);
    let mut high = Filled {
        level: may_get.map(|vessel| vessel.full_at(bits)).max().unwrap_or(0),
        has: vessels.iter().map(|vessel| vessel.to).collect(),
        given: room,
    };
    let mut halves = false;
    while low.is_far_below(&high) {
        let width = high.level - low.level;
        let part = width.saturating_mul(u128::from(amount) - low.given) / (high.given - low.given);
        let middle = low.level + if halves { width / 2 } else { part.clamp(1, width - 1) };
        let middle = filled(middle);
        if middle.given <= u128::from(amount) {
            low = middle;
        } else {
            high = middle;
        }
        halves = (high.level - low.level) * 2 > width;
    }
    let mut has = low.has;
    let mut next: Vec<usize> = (0..vessels.len()).filter(|&index| high.has[index] > has[index]).collect();
    // (has + 1/2) / weight, times two and both weights
    let due = |index: usize| u128::from((has[index] - vessels[index].zero) * 2 + 1);
    next.sort_by(|&one, &other| {
        (due(one) * u128::from(vessels[other].weight)).cmp(&(due(other) * u128::from(vessels[one].weight)))
    });
    next.truncate(usize::try_from(u128::from(amount) - low.given).unwrap_or(usize::MAX));
    for index in next {
        has[index] += 1;
    }
    has
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One after the other, as the first lines of this file say it.
    fn one_by_one(vessels: &[Vessel], amount: u64) -> Vec<u64> {
        let mut has: Vec<u64> = vessels.iter().map(|vessel| vessel.from).collect();
        for _ in 0..amount {
            let may = (0..vessels.len()).filter(|&index| vessels[index].weight > 0 && has[index] < vessels[index].to);
            let key = |index: usize| u128::from((has[index] - vessels[index].zero) * 2 + 1);
            let next = may.min_by(|&one, &other| {
                let (one_due, other_due) = (key(one), key(other));
                (one_due * u128::from(vessels[other].weight)).cmp(&(other_due * u128::from(vessels[one].weight)))
            });
            let Some(next) = next else { break };
            has[next] += 1;
        }
        has
    }

    fn any_vessel() -> impl Strategy<Value = Vessel> {
        let weight = prop_oneof![4 => 1..10_u64, 2 => 1..1000_u64, 1 => Just(0), 1 => (1_u64 << 30)..(1 << 41)];
        (weight, 0..4_u64, 0..6_u64, prop_oneof![4 => 0..30_u64, 1 => Just(u64::from(u32::MAX))]).prop_map(
            |(weight, zero, above, room)| Vessel { weight, zero, from: zero + above, to: zero + above + room },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn each_next_one_goes_to_the_lowest(vessels in prop::collection::vec(any_vessel(), 0..12), amount in 0..200_u64) {
            prop_assert_eq!(fill(&vessels, amount), one_by_one(&vessels, amount));
        }

        #[test]
        fn one_more_lowers_nobody(vessels in prop::collection::vec(any_vessel(), 1..12), amount in 0..200_u64) {
            let (now, then) = (fill(&vessels, amount), fill(&vessels, amount + 1));
            prop_assert!(now.iter().zip(&then).all(|(now, then)| now <= then), "{now:?} {then:?}");
        }
    }

    #[test]
    fn of_two_with_the_same_level_the_first_is_given_to() {
        let vessel = Vessel { weight: 3, zero: 0, from: 0, to: 9 };
        assert_eq!(fill(&[vessel; 3], 4), [2, 1, 1]);
    }

    #[test]
    fn where_the_largest_remainder_takes_from_one_when_there_is_one_more_nobody_loses() {
        // 6 : 6 : 2 of ten and of eleven; by the largest remainder 4, 4, 2 and then 5, 5, 1
        let vessels = [6, 6, 2].map(|weight| Vessel { weight, zero: 0, from: 0, to: 100 });
        assert_eq!((fill(&vessels, 10), fill(&vessels, 11)), (vec![5, 4, 1], vec![5, 5, 1]));
    }

    #[test]
    fn the_largest_weights_and_figures_are_divided_exactly() {
        let vessel = Vessel { weight: (1 << 41) - 1, zero: 0, from: 0, to: u64::from(u32::MAX) };
        let small = Vessel { weight: 1, ..vessel };
        let has = fill(&[vessel, small, vessel], u64::from(u32::MAX) + 1);
        assert_eq!(has, [1 << 31, 0, 1 << 31]);
    }
}
