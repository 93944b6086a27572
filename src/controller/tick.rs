//! Every 15 s, all pools at once: what Prometheus says of their load, and what the sizing makes of it.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    pods::{PodFacts, PoolKey},
    reconcile::Context,
};
use crate::{
    api::{ConnectionPool, Mode},
    decide::{
        effective::EffectivePool,
        plan::{Change, Proof, SidecarSeen, SizingSeen, Trouble},
        sizing::{Automation, Bounds, Observation, Sample, SizingSettings},
    },
};

/// Ticks for ever.
pub async fn run(context: Arc<Context>, every: Duration) {
    // before the first whole list, a pool would look as if it had no pods
    while !context.pods.is_synced() {
        sleep(Duration::from_millis(50)).await;
    }
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if context.leadership.epoch().is_none() {
            continue;
        }
        let started = Instant::now();
        for pool in context.stores.pools.state() {
            let Some(namespace) = pool.namespace() else { continue };
            let key = PoolKey { namespace, name: pool.name_any() };
            decide(&context, &key, &pool, every);
            context.queue.ask(&key, "tick").await;
        }
        context.metrics.ticked(started.elapsed(), 0, 0);
    }
}

/// Sizes one pool.
fn decide(context: &Context, key: &PoolKey, pool: &ConnectionPool, every: Duration) {
    let Ok(effective) = context.stores.effective(pool) else { return };
    let facts = context.pods.of(key);
    let memory = context.memories.of(key, pool);
    let mut memory = memory.lock();
    let target = memory.target.unwrap_or_else(|| target_before(pool, key, &facts, &effective));
    let now = Timestamp::now();
    let samples: Vec<Sample> = Vec::new();
    let observation = Observation {
        now_seconds: now.as_duration().as_secs_f64(),
        interval_seconds: every.as_secs_f64(),
        pods: u32::try_from(facts.iter().filter(|pod| pod.sidecar == SidecarSeen::Running).count()).unwrap_or(u32::MAX),
        current: current_size(context, &facts).unwrap_or(target),
        target,
        bounds: Bounds { min: effective.min_allowed, max: effective.max_allowed, share: None },
        automation: match (pool.spec.paused, pool.spec.mode) {
            (true, _) => Automation::Paused,
            (false, Mode::Recommend) => Automation::Recommend,
            (false, Mode::Apply) => Automation::Apply,
        },
        samples: &samples,
    };
    let settings = SizingSettings::from(&effective.settings);
    let decision = memory.sizer.decide(&settings, &observation);
    context.metrics.decided(decision.reason.as_str());
    let told_before = memory.sizing.as_ref().map_or(target, |sizing| sizing.decision.recommendation.target);
    let to = decision.recommendation.target;
    let change = if to == told_before {
        memory.sizing.as_ref().and_then(|sizing| sizing.change.clone())
    } else {
        let change = Change {
            id: decision_id(pool, now, told_before, to),
            reason: decision.reason.as_str().to_owned(),
            from: told_before,
            to,
            message: decision.message.clone(),
            at: now.as_second(),
        };
        tracing::info!(
            pool = %key, decision = change.id, reason = change.reason, from = change.from, to = change.to,
            message_ = change.message, demand = decision.explanation.demand, "target changed"
        );
        Some(change)
    };
    memory.target = Some(decision.size);
    let trouble = Some(Trouble {
        reason: "PrometheusNotConfigured",
        message: "the operator has no Prometheus; set --prometheus-config (chart: prometheus.url)".to_owned(),
    });
    memory.sizing = Some(SizingSeen { decision, load: None, trouble, change });
}

/// The target before the first decision of this process: what was told last, else what the pods may open.
fn target_before(pool: &ConnectionPool, key: &PoolKey, facts: &[PodFacts], effective: &EffectivePool) -> u32 {
    let told = pool.status.as_ref().and_then(|status| status.recommendation).map(|told| told.target);
    let shares = facts.iter().filter_map(|pod| pod.grant.last_known()?.pools.get(&key.name));
    let share = shares.fold(0, |sum: u32, grant| sum.saturating_add(grant.share));
    let target = told.or((share > 0).then_some(share)).unwrap_or(effective.min_allowed);
    target.clamp(effective.min_allowed, effective.max_allowed)
}

/// Sum of the limits that agents read back; none while none has.
fn current_size(context: &Context, facts: &[PodFacts]) -> Option<u32> {
    let limits: Vec<u32> = facts
        .iter()
        .filter_map(|pod| match context.prover.proof(&pod.uid) {
            Proof::Report(report) => report.limits.map(|limits| limits.pool_size),
            _ => None,
        })
        .collect();
    (!limits.is_empty()).then(|| limits.iter().sum())
}

/// Short enough to be said aloud, and different each time.
fn decision_id(pool: &ConnectionPool, now: Timestamp, from: u32, to: u32) -> String {
    let mut hasher = DefaultHasher::new();
    (pool.uid(), now.as_nanosecond(), from, to).hash(&mut hasher);
    format!("d-{:06x}", hasher.finish() & 0x00ff_ffff)
}
