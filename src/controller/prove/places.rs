//! How many questions may be under way at once: in all, of one namespace and of one pool, so that whoever does not answer holds up
//! its own kind. Pods that were silent have a small budget apart, and so have those that were never asked: one of them
//! holds its place for as long as a question may take.

use std::collections::HashMap;

use crate::domain::PoolKey;

/// What is known of a pod's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Responsiveness {
    /// It has answered the last question.
    Answers,
    /// It was not asked yet.
    Untried,
    /// It has not answered the last question; or nobody of its pool has, and it was not asked yet.
    Silent,
}

impl Responsiveness {
    pub(super) const ALL: [Self; 3] = [Self::Answers, Self::Untried, Self::Silent];
}

/// Places of one budget.
#[derive(Clone, Copy, Debug)]
struct PollBudget {
    all: usize,
    of_namespace: usize,
    of_pool: usize,
}

const fn bounds(standing: Responsiveness) -> PollBudget {
    match standing {
        Responsiveness::Answers => PollBudget { all: 32, of_namespace: 16, of_pool: 8 },
        Responsiveness::Untried => PollBudget { all: 24, of_namespace: 12, of_pool: 6 },
        Responsiveness::Silent => PollBudget { all: 16, of_namespace: 8, of_pool: 4 },
    }
}

/// Places that are taken.
#[derive(Debug, Default)]
pub(super) struct PollsInFlight {
    budgets: [BudgetUse; 3],
}

#[derive(Debug, Default)]
struct BudgetUse {
    all: usize,
    of_namespace: HashMap<String, usize>,
    of_pool: HashMap<PoolKey, usize>,
}

impl PollsInFlight {
    /// Whether the budget has any place left.
    pub(super) fn has_any(&self, standing: Responsiveness) -> bool {
        self.budgets[standing as usize].all < bounds(standing).all
    }

    /// Whether a pod of this pool may be asked.
    pub(super) fn has_for(&self, standing: Responsiveness, pool: &PoolKey) -> bool {
        let (budget, bounds) = (&self.budgets[standing as usize], bounds(standing));
        let taken_of_namespace = budget.of_namespace.get(&pool.namespace).copied().unwrap_or(0);
        let taken_of_pool = budget.of_pool.get(pool).copied().unwrap_or(0);
        budget.all < bounds.all && taken_of_namespace < bounds.of_namespace && taken_of_pool < bounds.of_pool
    }

    /// Takes a place.
    pub(super) fn take(&mut self, standing: Responsiveness, pool: &PoolKey) {
        let budget = &mut self.budgets[standing as usize];
        budget.all += 1;
        *budget.of_namespace.entry(pool.namespace.clone()).or_default() += 1;
        *budget.of_pool.entry(pool.clone()).or_default() += 1;
    }

    /// Gives a place back.
    pub(super) fn give_back(&mut self, standing: Responsiveness, pool: &PoolKey) {
        let budget = &mut self.budgets[standing as usize];
        budget.all = budget.all.saturating_sub(1);
        leave(&mut budget.of_namespace, &pool.namespace);
        leave(&mut budget.of_pool, pool);
    }
}

/// Counts one less, and forgets who has none.
fn leave<K: Eq + std::hash::Hash>(taken: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = taken.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            taken.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pool_and_no_namespace_takes_all_places_and_silent_ones_take_none_of_the_others() {
        let mut places = PollsInFlight::default();
        let pool = |namespace: &str, number: usize| PoolKey::new(namespace, format!("pool-{number}"));
        let fill = |places: &mut PollsInFlight, standing, namespace: &str| {
            let mut taken = 0;
            for number in 0..100 {
                while places.has_for(standing, &pool(namespace, number)) {
                    places.take(standing, &pool(namespace, number));
                    taken += 1;
                }
            }
            taken
        };
        for standing in Responsiveness::ALL {
            let bounds = bounds(standing);
            assert_eq!(fill(&mut places, standing, "a"), bounds.of_namespace);
            assert!(places.has_for(standing, &pool("b", 0)), "{standing:?}: another namespace");
            assert_eq!(fill(&mut places, standing, "b"), bounds.all - bounds.of_namespace);
            assert!(!places.has_any(standing));
        }
        places.give_back(Responsiveness::Answers, &pool("a", 0));
        assert!(places.has_for(Responsiveness::Answers, &pool("a", 0)) && !places.has_any(Responsiveness::Silent));
    }
}
