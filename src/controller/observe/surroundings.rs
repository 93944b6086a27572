//! What belongs to a pool in the stores: its class and budget, its revisions, who else selects its pods.

use std::collections::BTreeMap;

use kube::ResourceExt;

use super::{pods::PodIndex, stores::Stores};
use crate::{
    api::ConnectionPool,
    contract::{Injection, PoolRevision},
    controller::controller_revision,
    decide::{
        effective::{EffectivePool, PoolRefusal},
        plan::{BudgetSeen, RevisionSeen, Rival},
    },
    domain::PoolKey,
    inject::PodPool,
    pooler::pgbouncer::render::cannot_render,
};

/// What belongs to a pool in the stores.
pub struct Surroundings {
    /// What is in force, or why nothing can be.
    pub effective: Result<EffectivePool, PoolRefusal>,
    /// Whether the budget that it names exists.
    pub budget: BudgetSeen,
    /// An older pool that selects the same pods.
    pub rival: Option<Rival>,
    /// What a pod that were created now would be injected with.
    pub injection: Option<Injection>,
    /// Its revisions.
    pub revisions: Vec<RevisionSeen>,
    /// Numbers taken by objects that are not its own.
    pub taken_numbers: Vec<u64>,
    /// Why the pooler's driver refuses the settings, if it does.
    pub cannot_render: Option<String>,
}

impl Stores {
    /// What belongs to a pool. `created`: revisions that the watch has yet to tell of; those that it has told of are taken out.
    pub fn around(
        &self,
        key: &PoolKey,
        pool: &ConnectionPool,
        pods: &PodIndex,
        created: &mut Vec<RevisionSeen>,
    ) -> Surroundings {
        let effective = self.effective(pool);
        let budget = match &pool.spec.budget_ref {
            None => BudgetSeen::NotNamed,
            Some(budget) if self.budgets.state().iter().any(|known| known.name_any() == budget.name) => {
                BudgetSeen::Found
            }
            Some(budget) => BudgetSeen::Missing(budget.name.clone()),
        };
        let injection = effective.as_ref().ok().map(|effective| {
            let revision = PoolRevision { revision: 0, settings: effective.settings.clone() };
            PodPool { pool, effective, revision }.injection()
        });
        let mut revisions = Vec::new();
        let mut taken_numbers = Vec::new();
        for object in self.revisions.of(&key.namespace, &key.name) {
            let seen = controller_revision::seen(&object);
            if controller_revision::is_of(&object, pool) {
                revisions.push(seen);
            } else {
                taken_numbers.push(seen.number);
            }
        }
        created.retain(|created| revisions.iter().all(|known| known.number != created.number));
        revisions.extend(created.iter().cloned());
        let cannot_render = effective
            .as_ref()
            .ok()
            .zip(injection.as_ref())
            .and_then(|(effective, injection)| cannot_render(&effective.settings, injection));
        let rival = self.rival(key, pool, pods);
        Surroundings { effective, budget, rival, injection, revisions, taken_numbers, cannot_render }
    }

    /// An older pool that has pods which this one selects too, or whose selector picks all that this one picks.
    fn rival(&self, key: &PoolKey, pool: &ConnectionPool, pods: &PodIndex) -> Option<Rival> {
        let selector = pool.selector()?;
        let others = self.pools_of(&key.namespace);
        let is_older = |other: &ConnectionPool| {
            let age = |pool: &ConnectionPool| (pool.creation_timestamp().map(|time| time.0), pool.name_any());
            other.name_any() != key.name && age(other) < age(pool)
        };
        let older: Vec<&ConnectionPool> = others.iter().map(AsRef::as_ref).filter(|other| is_older(other)).collect();
        let taken = pods.others(key, |labels| selector.matches(labels));
        let by_pods = older
            .iter()
            .filter_map(|other| taken.get(&other.name_any()).map(|pods| Rival { pool: other.name_any(), pods: *pods }))
            .max_by_key(|rival| rival.pods);
        // without any pod: a pod that has just the labels of this selector would be the other's
        by_pods.or_else(|| {
            let labels: BTreeMap<String, String> = selector.match_labels.clone();
            let other = older.iter().find(|other| selector.match_expressions.is_empty() && other.selects(&labels))?;
            Some(Rival { pool: other.name_any(), pods: 0 })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{
        memory::PoolMemory,
        rehearsal::{Rehearsal, Scene},
    };

    #[tokio::test]
    async fn a_revision_that_was_created_is_remembered_until_the_watch_tells_of_it_and_no_longer() {
        let rehearsal = Rehearsal::new(1, Scene::Settled);
        let Rehearsal { context, pool, key, memory } = &rehearsal;
        let around = |memory: &mut PoolMemory| {
            let around = context.stores.around(key, pool, &context.pods, &mut memory.created);
            around.revisions.iter().map(|revision| revision.number).collect::<Vec<_>>()
        };
        let mut memory = memory.lock();
        let known = context.stores.around(key, pool, &context.pods, &mut Vec::new()).revisions.remove(0);
        memory.created = vec![known.clone(), RevisionSeen { number: known.number + 1, ..known }];
        assert_eq!(around(&mut memory), [1, 2]);
        assert_eq!(memory.created.iter().map(|created| created.number).collect::<Vec<_>>(), [2]);
    }
}
