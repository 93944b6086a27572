//! The only reader: everything that a plan is made from, out of the stores of the watches, the answers of the agents and
//! what is remembered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{ResourceExt, runtime::reflector::Store};
use tokio::time::Instant;

use super::{
    census::{ListSince, UninjectedListError, UninjectedPodLister},
    gateway::{self, GatewayStores},
    memory::PoolMemory,
    pods::PodIndex,
    prove::AgentAnswers,
    refusals::{ReplicaFailure, ReplicaFailureLister},
    revision,
};
use crate::{
    api::{ConnectionBudget, ConnectionPool, ConnectionPoolClass, pool_of_labels},
    contract::{Injection, PoolRevision, names::POOL_LABEL},
    decide::{
        effective::{EffectivePool, PoolRefusal, class_of, effective},
        plan::{BudgetSeen, PodFacts, PodSeen, PodsRefused, RevisionSeen, Rival, Uninjected},
    },
    domain::PoolKey,
    inject::{InjectionSettings, PodPool},
    pooler::pgbouncer::render::cannot_render,
};

/// Pods without a sidecar are counted anew after this long.
const COUNT_EVERY: Duration = Duration::from_mins(1);
/// And after this long while there are any: their restart should show.
const COUNT_AGAIN: Duration = Duration::from_secs(10);
/// While counts fail, the last one that did not stands for this long.
const COUNT_STANDS: Duration = Duration::from_mins(3);
/// Owners that are named.
const OWNERS: usize = 5;

/// The stores of the watches.
#[derive(Clone)]
pub struct Stores {
    /// Pools.
    pub pools: Store<ConnectionPool>,
    /// Classes.
    pub classes: Store<ConnectionPoolClass>,
    /// Budgets.
    pub budgets: Store<ConnectionBudget>,
    /// Revisions of ours.
    pub revisions: Store<ControllerRevision>,
    /// The objects of gateways; none where this operator keeps no gateways.
    pub gateways: Option<GatewayStores>,
    /// What the operator's configuration says about poolers' containers, and about what pools may say of them.
    pub injection: Arc<InjectionSettings>,
}

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
    /// What is in force for a pool.
    pub fn effective(&self, pool: &ConnectionPool) -> Result<EffectivePool, PoolRefusal> {
        if let Some(refusal) = gateway::refusal(pool) {
            return Err(refusal);
        }
        let classes = self.classes.state();
        let class = class_of(&pool.spec, classes.iter().map(AsRef::as_ref))?;
        self.injection.allowed.check(&pool.spec, class, &self.injection.pgbouncer_image)?;
        let mut merged = effective(&pool.spec, class)?;
        merged.settings = revision::normalised(&merged.settings);
        Ok(merged)
    }

    /// What belongs to a pool.
    pub fn around(
        &self,
        key: &PoolKey,
        pool: &ConnectionPool,
        pods: &PodIndex,
        created: &[RevisionSeen],
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
        for object in self.revisions.state() {
            if object.namespace().as_deref() != Some(key.namespace.as_str())
                || object.labels().get(POOL_LABEL) != Some(&key.name)
            {
                continue;
            }
            let seen = revision::seen(&object);
            if revision::is_of(&object, pool) { revisions.push(seen) } else { taken_numbers.push(seen.number) }
        }
        for created in created {
            if revisions.iter().all(|known| known.number != created.number) {
                revisions.push(created.clone());
            }
        }
        let cannot_render = effective
            .as_ref()
            .ok()
            .zip(injection.as_ref())
            .and_then(|(effective, injection)| cannot_render(&effective.settings, injection));
        let rival = self.rival(key, pool, pods);
        Surroundings { effective, budget, rival, injection, revisions, taken_numbers, cannot_render }
    }

    /// The pools of a namespace that put poolers into pods.
    fn pools_of(&self, namespace: &str) -> Vec<Arc<ConnectionPool>> {
        self.pools.state().into_iter().filter(|pool| pool.metadata.namespace.as_deref() == Some(namespace)).collect()
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

/// The pods of a pool with what their agents said and what their load asks for.
pub fn pods(facts: Vec<Arc<PodFacts>>, answers: &AgentAnswers, memory: &PoolMemory) -> Vec<PodSeen> {
    let now = Instant::now();
    let seen = |facts: Arc<PodFacts>| {
        let demand = memory.demands.get(&facts.uid).copied();
        PodSeen {
            answer: answers.of(&facts.uid),
            measured: memory.proofs.get(&facts.uid).copied(),
            reporting: demand.is_some(),
            demand,
            failure: memory.pod_failures.get(&facts.uid).map(|retry| retry.seen(now)),
            facts,
        }
    };
    facts.into_iter().map(seen).collect()
}

/// Whether the pods without a sidecar are to be counted again, and how new the news must be.
pub fn count_due(memory: &PoolMemory, generation: i64) -> Option<ListSince> {
    let since = match &memory.uninjected {
        Some(count) if count.generation == generation => {
            let changes = |found: &Uninjected| found.pods > 0 || found.refused.is_some();
            let every = if count.found.as_ref().is_none_or(changes) { COUNT_AGAIN } else { COUNT_EVERY };
            (Instant::now() - count.at >= every).then_some(ListSince::Lately)
        }
        _ => Some(ListSince::Now),
    };
    since.filter(|_| !memory.is_counting)
}

/// Why the pods without a sidecar are not known: no count has succeeded, or none for longer than the last one stands.
pub fn uncounted(memory: &PoolMemory) -> Option<&str> {
    let count = memory.uninjected.as_ref()?;
    let (since, why) = count.failing.as_ref()?;
    (count.found.is_none() || since.elapsed() >= COUNT_STANDS).then_some(why.as_str())
}

/// The pods that belong to the pool and have no sidecar, and those that cannot be created.
///
/// # Errors
/// [`UninjectedListError`].
pub async fn uninjected(
    uninjected_pods: &UninjectedPodLister,
    replica_failures: &ReplicaFailureLister,
    stores: &Stores,
    key: &PoolKey,
    pool: &ConnectionPool,
    since: ListSince,
) -> Result<Uninjected, Arc<UninjectedListError>> {
    let mut uninjected = Uninjected::default();
    if pool.selector().is_none() {
        // a gateway's pods are made with their pooler
        return Ok(uninjected);
    }
    let bare = uninjected_pods.of(&key.namespace, since).await?;
    let rivals = stores.pools_of(&key.namespace);
    for alike in bare.alike.iter().filter(|alike| pool.selects(&alike.labels)) {
        let belongs_to = pool_of_labels(&alike.labels, rivals.iter().map(AsRef::as_ref));
        if belongs_to.is_some_and(|owner| owner.name_any() != key.name) {
            continue;
        }
        uninjected.pods = uninjected.pods.saturating_add(alike.pods);
        if let Some(owner) = &alike.owner
            && uninjected.owners.len() < OWNERS
            && !uninjected.owners.contains(owner)
        {
            uninjected.owners.push(owner.clone());
        }
    }
    let refused = replica_failures.of(&key.namespace).await;
    let is_own = |refused: &&ReplicaFailure| {
        let belongs_to = pool_of_labels(&refused.labels, rivals.iter().map(AsRef::as_ref));
        belongs_to.is_some_and(|owner| owner.name_any() == key.name)
    };
    uninjected.refused = refused
        .iter()
        .find(is_own)
        .map(|refused| PodsRefused { owner: refused.owner.clone(), message: refused.message.clone() });
    // that there are none cannot be told from a part of them
    if uninjected.pods == 0 && !bare.is_whole {
        return Err(Arc::new(UninjectedListError::TooMany { namespace: key.namespace.clone() }));
    }
    Ok(uninjected)
}
