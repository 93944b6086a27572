//! The only reader: everything that a plan is made from, out of the stores of the watches, the answers of the agents and
//! what is remembered.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PartialObjectMeta},
    core::Selector as KubeSelector,
    runtime::reflector::Store,
};
use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::{
    gateway::GatewayStores,
    memory::{Count, PoolMemory},
    pods::{PodFacts, PodIndex, owner_of},
    prove::Prover,
    revision,
};
use crate::{
    api::{ConnectionBudget, ConnectionPool, ConnectionPoolClass, pool_of_labels},
    contract::{Injection, PoolRevision, names::POOL_LABEL},
    decide::{
        effective::{EffectivePool, Refusal, class_of, effective},
        plan::{BudgetSeen, PodSeen, RevisionSeen, Rival, Uninjected},
    },
    pooler::pgbouncer::render::cannot_render,
    signals::PoolKey,
    webhook::inject::PodPool,
};

/// Pods without a sidecar are counted anew after this long.
const COUNT_EVERY: Duration = Duration::from_mins(1);
/// And after this long while there are any: their restart should show.
const COUNT_AGAIN: Duration = Duration::from_secs(10);
/// Longest that counting may take.
const COUNT_DEADLINE: Duration = Duration::from_secs(5);
/// Pods in one page, and pages that are read: beyond that nobody wants the exact number.
const PAGE: u32 = 500;
const PAGES: usize = 20;
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
}

/// Why something could not be read.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// The pods without a sidecar could not be counted.
    #[error("counting the pods without a sidecar: {0}")]
    Count(#[source] Box<kube::Error>),
    /// No answer in time.
    #[error("counting the pods without a sidecar: no answer within {} s", COUNT_DEADLINE.as_secs())]
    CountDeadline,
    /// The selector of the pool cannot be sent.
    #[error("spec.workload.selector: {0}")]
    Selector(String),
}

/// What belongs to a pool in the stores.
pub struct Surroundings {
    /// What is in force, or why nothing can be.
    pub effective: Result<EffectivePool, Refusal>,
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
    pub fn effective(&self, pool: &ConnectionPool) -> Result<EffectivePool, Refusal> {
        let classes = self.classes.state();
        let class = class_of(&pool.spec, classes.iter().map(AsRef::as_ref))?;
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
    fn pools_of(&self, namespace: &str) -> Vec<std::sync::Arc<ConnectionPool>> {
        self.pools.state().into_iter().filter(|pool| pool.namespace().as_deref() == Some(namespace)).collect()
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
pub fn pods(facts: Vec<PodFacts>, prover: &Prover, memory: &PoolMemory) -> Vec<PodSeen> {
    facts
        .into_iter()
        .map(|facts| {
            let demand = memory.demands.get(&facts.name).copied();
            PodSeen {
                proof: prover.proof(&facts.uid),
                reporting: demand.is_some(),
                demand,
                uid: facts.uid,
                resource_version: facts.resource_version,
                created: facts.created,
                phase: facts.phase,
                sidecar: facts.sidecar,
                injection: facts.injection,
                revision: facts.revision,
                grant: facts.grant,
                doubtful_granted: facts.doubtful_granted,
                measured: memory.proofs.get(&facts.name).copied(),
                name: facts.name,
                owner: facts.owner,
            }
        })
        .collect()
}

/// Whether the pods without a sidecar are to be counted again.
pub fn is_count_due(memory: &PoolMemory, generation: i64) -> bool {
    let is_old = |count: &Count| {
        let every = if count.found.as_ref().is_none_or(|found| found.pods > 0) { COUNT_AGAIN } else { COUNT_EVERY };
        count.generation != generation || Instant::now() - count.at >= every
    };
    !memory.is_counting && memory.uninjected.as_ref().is_none_or(is_old)
}

/// Counts the pods that belong to the pool and have no sidecar, from their metadata alone.
///
/// # Errors
/// [`ObserveError`].
pub async fn count_uninjected(
    client: &Client,
    stores: &Stores,
    key: &PoolKey,
    pool: &ConnectionPool,
) -> Result<Uninjected, ObserveError> {
    // a gateway's pods are made with their pooler
    let Some(selector) = pool.selector() else { return Ok(Uninjected::default()) };
    let selector: KubeSelector = k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector::from(selector)
        .try_into()
        .map_err(|error: kube::core::ParseExpressionError| ObserveError::Selector(error.to_string()))?;
    let pods: Api<PartialObjectMeta<Pod>> = Api::namespaced(client.clone(), &key.namespace);
    let mut params = ListParams::default()
        .labels(&format!("{selector},!{POOL_LABEL}"))
        .fields("status.phase!=Succeeded,status.phase!=Failed")
        .limit(PAGE);
    let rivals = stores.pools_of(&key.namespace);
    let counted = async {
        let mut uninjected = Uninjected::default();
        for _ in 0..PAGES {
            let page = pods.list(&params).await.map_err(|source| ObserveError::Count(Box::new(source)))?;
            for pod in &page.items {
                let belongs_to = pool_of_labels(pod.labels(), rivals.iter().map(AsRef::as_ref));
                let is_ours = belongs_to.is_none_or(|owner| owner.name_any() == key.name);
                if pod.metadata.deletion_timestamp.is_none() && is_ours {
                    uninjected.pods += 1;
                    if let Some(owner) = owner_of(&pod.metadata)
                        && uninjected.owners.len() < OWNERS
                        && !uninjected.owners.contains(&owner)
                    {
                        uninjected.owners.push(owner);
                    }
                }
            }
            params.continue_token = page.metadata.continue_;
            if params.continue_token.as_ref().is_none_or(String::is_empty) {
                break;
            }
        }
        Ok(uninjected)
    };
    timeout(COUNT_DEADLINE, counted).await.unwrap_or(Err(ObserveError::CountDeadline))
}
