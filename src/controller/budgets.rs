//! `ConnectionBudget`s: accepted and reported on. This version keeps no ledger and says so.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    backoff::{Backoff, note},
    context::Context,
    report::status,
};
use crate::api::{
    CapacitySource, ConnectionBudget, ConnectionBudgetStatus, ConnectionPool,
    conditions::{ConditionStatus, LEDGER_ACTIVE, ObservedCondition, READY, merge},
    reasons,
};
use crate::domain::PoolKey;

/// Time between two looks at all budgets.
const EVERY: Duration = Duration::from_secs(5);

/// Reports on all budgets for ever.
pub async fn run(context: Arc<Context>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut written: HashMap<String, ConnectionBudgetStatus> = HashMap::new();
    let mut failures: HashMap<String, Option<Backoff>> = HashMap::new();
    loop {
        ticks.tick().await;
        if !context.leadership.is_held() || !context.pods.is_synced() {
            continue;
        }
        let pools = context.stores.pools.state();
        for budget in context.stores.budgets.state() {
            let uid = budget.uid().unwrap_or_default();
            let users: Vec<&ConnectionPool> = pools
                .iter()
                .map(AsRef::as_ref)
                .filter(|pool| pool.spec.budget_ref.as_ref().is_some_and(|named| named.name == budget.name_any()))
                .collect();
            let before = written.get(&uid).or(budget.status.as_ref());
            let status = status_of(&budget, &users, &context, before, Timestamp::now());
            let failure = failures.entry(uid.clone()).or_default();
            if before == Some(&status) || failure.as_ref().is_some_and(|backoff| !backoff.is_due(Instant::now())) {
                continue;
            }
            let budgets: Api<ConnectionBudget> = Api::all(context.client.clone());
            let body = status::body::<ConnectionBudget>(&status);
            let what = format!("status of ConnectionBudget {}", budget.name_any());
            let outcome = context.writer.status(&budgets, &budget.name_any(), &body, what).await;
            note(failure, outcome.as_ref().err());
            match outcome {
                Ok(_) => {
                    written.insert(uid, status);
                }
                Err(error) => tracing::warn!(%error, "writing the status of a budget"),
            }
        }
        let known: HashSet<String> = context.stores.budgets.state().iter().filter_map(|budget| budget.uid()).collect();
        written.retain(|uid, _| known.contains(uid));
        failures.retain(|uid, _| known.contains(uid));
    }
}

fn status_of(
    budget: &ConnectionBudget,
    users: &[&ConnectionPool],
    context: &Context,
    before: Option<&ConnectionBudgetStatus>,
    now: Timestamp,
) -> ConnectionBudgetStatus {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let pods: usize = users
        .iter()
        .filter_map(|pool| {
            let key = PoolKey { namespace: pool.namespace()?, name: pool.name_any() };
            Some(context.pods.of(&key).len())
        })
        .sum();
    let message = "this version divides maxAllowed of each pool over its pods and keeps no ledger of the server: the sum of \
                   the pools' maxAllowed is yours to keep below the capacity";
    let observed = [READY, LEDGER_ACTIVE].map(|type_| ObservedCondition {
        type_,
        status: ConditionStatus::False,
        reason: reasons::LEDGER_NOT_KEPT,
        message: message.to_owned(),
    });
    let old = before.map(|before| before.conditions.as_slice()).unwrap_or_default();
    ConnectionBudgetStatus {
        observed_generation: budget.metadata.generation,
        capacity: capacity(budget),
        pools: Some(count(users.len())),
        pods: Some(count(pods)),
        conditions: merge(old, observed.into(), budget.metadata.generation, now),
    }
}

/// What the server can carry less what is reserved, where it is given.
fn capacity(budget: &ConnectionBudget) -> Option<u32> {
    let connections = match budget.spec.capacity.source {
        CapacitySource::Fixed => budget.spec.capacity.connections?,
        CapacitySource::Server => return None,
    };
    let reserved = budget.spec.reserved.unwrap_or_default();
    let percent = u64::from(connections) * u64::from(reserved.percent) / 100;
    Some(connections.saturating_sub(reserved.connections.max(u32::try_from(percent).unwrap_or(u32::MAX))))
}
