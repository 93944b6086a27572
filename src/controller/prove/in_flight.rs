//! How many requests may be under way at once: in all, of one namespace and of one pool, so that whoever does not answer holds up
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

const fn budget_of(responsiveness: Responsiveness) -> PollBudget {
    match responsiveness {
        Responsiveness::Answers => PollBudget { all: 32, of_namespace: 16, of_pool: 8 },
        Responsiveness::Untried => PollBudget { all: 24, of_namespace: 12, of_pool: 6 },
        Responsiveness::Silent => PollBudget { all: 16, of_namespace: 8, of_pool: 4 },
    }
}

/// Places that are taken.
#[derive(Debug, Default)]
pub(super) struct PollsInFlight {
    used: [BudgetUse; 3],
}

#[derive(Debug, Default)]
struct BudgetUse {
    all: usize,
    of_namespace: HashMap<String, usize>,
    of_pool: HashMap<PoolKey, usize>,
}

impl PollsInFlight {
    /// Whether the budget has any place left.
    pub(super) fn has_any(&self, responsiveness: Responsiveness) -> bool {
        self.used[responsiveness as usize].all < budget_of(responsiveness).all
    }

    /// Whether a pod of this pool may be asked.
    pub(super) fn has_for(&self, responsiveness: Responsiveness, pool: &PoolKey) -> bool {
        let (used, budget) = (&self.used[responsiveness as usize], budget_of(responsiveness));
        let used_by_namespace = used.of_namespace.get(&pool.namespace).copied().unwrap_or(0);
        let used_by_pool = used.of_pool.get(pool).copied().unwrap_or(0);
        used.all < budget.all && used_by_namespace < budget.of_namespace && used_by_pool < budget.of_pool
    }

    /// Takes a place.
    pub(super) fn take(&mut self, responsiveness: Responsiveness, pool: &PoolKey) {
        let used = &mut self.used[responsiveness as usize];
        used.all += 1;
        *used.of_namespace.entry(pool.namespace.clone()).or_default() += 1;
        *used.of_pool.entry(pool.clone()).or_default() += 1;
    }

    /// Gives a place back.
    pub(super) fn give_back(&mut self, responsiveness: Responsiveness, pool: &PoolKey) {
        let used = &mut self.used[responsiveness as usize];
        used.all = used.all.saturating_sub(1);
        leave(&mut used.of_namespace, &pool.namespace);
        leave(&mut used.of_pool, pool);
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
        let mut in_flight = PollsInFlight::default();
        let pool = |namespace: &str, number: usize| PoolKey::new(namespace, format!("pool-{number}"));
        let fill = |in_flight: &mut PollsInFlight, responsiveness, namespace: &str| {
            let mut taken = 0;
            for number in 0..100 {
                while in_flight.has_for(responsiveness, &pool(namespace, number)) {
                    in_flight.take(responsiveness, &pool(namespace, number));
                    taken += 1;
                }
            }
            taken
        };
        for responsiveness in Responsiveness::ALL {
            let budget = budget_of(responsiveness);
            assert_eq!(fill(&mut in_flight, responsiveness, "a"), budget.of_namespace);
            assert!(in_flight.has_for(responsiveness, &pool("b", 0)), "{responsiveness:?}: another namespace");
            assert_eq!(fill(&mut in_flight, responsiveness, "b"), budget.all - budget.of_namespace);
            assert!(!in_flight.has_any(responsiveness));
        }
        in_flight.give_back(Responsiveness::Answers, &pool("a", 0));
        assert!(
            in_flight.has_for(Responsiveness::Answers, &pool("a", 0)) && !in_flight.has_any(Responsiveness::Silent)
        );
    }
}
