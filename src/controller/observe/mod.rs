//! The only reader: everything that a plan is made from, out of the stores of the watches, the answers of the agents and
//! what is remembered.
//!
//! - [`stores`]: what the watches have delivered, and the watches themselves ([`watch`]).
//! - [`surroundings`]: what belongs to a pool in the stores.
//! - [`pods`]: the injected pods, by pool.
//! - [`load_queries`]: what Prometheus says of the load, and the users' own queries ([`overrides`]).
//! - [`analysis_queries`]: what Prometheus says of rollouts in course. Both keep those who ask for too much from holding up others by
//!   [`query_breakers`].
//! - [`uninjected_count`]: what cannot be watched, and is listed from time to time: pods without a sidecar ([`uninjected_pods`]),
//!   and pods that cannot be created ([`replica_failures`]); one list serves all pools of a namespace ([`namespace_lists`]).
//! - [`changed_by`]: who changed a pool last, asked once for each change of the spec, beside everything else.

pub mod analysis_queries;
pub mod changed_by;
pub mod load_queries;
mod namespace_lists;
pub mod overrides;
pub mod pods;
mod query_breakers;
pub mod replica_failures;
pub mod stores;
mod surroundings;
pub mod uninjected_count;
pub mod uninjected_pods;
pub mod watch;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use self::surroundings::Surroundings;
use super::{
    context::Context,
    gateway,
    memory::PoolMemory,
    prove::{AgentAnswers, HeardAnswer},
};
use crate::{
    api::ConnectionPool,
    decide::plan::{FailedWrite, GatewaySeen, Observed, PodFacts, PodSeen},
    domain::PoolKey,
};

/// What was read of one pool for one look.
pub struct PoolSnapshot {
    /// What belongs to it in the stores.
    pub surroundings: Surroundings,
    /// Its pods with a sidecar.
    pub pods: Vec<PodSeen>,
    gateway: Option<GatewaySeen>,
    failure: Option<FailedWrite>,
}

/// Reads everything of one pool that is not remembered, and lets go of what is remembered of pods that are gone, and of a status that
/// has come back.
pub fn snapshot(pool: &ConnectionPool, key: &PoolKey, context: &Context, memory: &mut PoolMemory) -> PoolSnapshot {
    let facts = context.pods.of(key);
    memory.forget_failures_but_of(&facts);
    memory.forget_status_of(pool);
    let failure = memory.failure.as_ref().map(|backoff| backoff.seen(Instant::now()));
    let surroundings = context.stores.around(key, pool, &context.pods, &mut memory.created);
    let effective = surroundings.effective.as_ref().ok();
    let gateway = gateway::seen(context.stores.gateways.as_ref(), key, pool, effective, &memory.gateway);
    let pods = pods_seen(facts, &context.poller.answers(key), memory);
    PoolSnapshot { surroundings, pods, gateway, failure }
}

impl PoolSnapshot {
    /// Everything that a plan is made from: this, what is remembered, the term and the time; and so many writes on pods are wanted at most.
    pub fn observed<'a>(
        &'a self,
        pool: &'a ConnectionPool,
        memory: &'a PoolMemory,
        (epoch, now): (u64, Timestamp),
        most_writes: usize,
    ) -> Observed<'a> {
        let Self { surroundings, pods, gateway, failure } = self;
        Observed {
            gateway: gateway.clone(),
            now: now.as_second(),
            epoch,
            pool,
            status: memory.status(pool),
            effective: surroundings.effective.as_ref(),
            budget: surroundings.budget.clone(),
            rival: surroundings.rival.clone(),
            pods,
            uninjected: memory.uninjected.as_ref().and_then(|count| count.found.clone()),
            uncounted: uninjected_count::why_unknown(memory),
            injection: surroundings.injection.as_ref(),
            revisions: &surroundings.revisions,
            taken_numbers: &surroundings.taken_numbers,
            sizing: memory.sizing.as_ref(),
            judged: memory.judging.as_ref().map(|judging| judging.seen()),
            failure: failure.as_ref(),
            most_writes,
        }
    }
}

/// The pods of a pool with what their agents said and what their load asks for.
fn pods_seen(facts: Vec<Arc<PodFacts>>, answers: &AgentAnswers, memory: &PoolMemory) -> Vec<PodSeen> {
    let now = Instant::now();
    let seen = |facts: Arc<PodFacts>| {
        let demand = memory.demands.get(&facts.uid).copied();
        let HeardAnswer { answer, is_outdated } = answers.of(&facts.uid);
        PodSeen {
            answer,
            is_answer_outdated: is_outdated,
            measured: memory.proofs.get(&facts.uid).copied(),
            reporting: demand.is_some(),
            demand,
            failure: memory.pod_failures.get(&facts.uid).map(|backoff| backoff.seen(now)),
            facts,
        }
    };
    facts.into_iter().map(seen).collect()
}
