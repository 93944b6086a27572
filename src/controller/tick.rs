//! Every 15 s, all pools at once: what Prometheus says of their load, and what the sizing makes of it.

use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{pods::PodFacts, reconcile::Context};
use crate::{
    api::{self, ConnectionPool, MetricsSpec, Mode},
    cli::with_causes,
    decide::{
        effective::EffectivePool,
        load::{Completeness, ExpectedPod, HoldReason, Judgement, Load, LoadFigures, LoadInput, PodFigures, Stage},
        plan::{Change, LoadSeen, Proof, SidecarSeen, SizingSeen, Trouble},
        shares::PodPhase,
        sizing::{Automation, Bounds, Decision, Observation, Sample, SizingSettings},
    },
    signals::{DEFAULT_SERVER, OverrideQuery, PoolKey, QUERIES_PER_READ, Readings, Server, Servers},
};

/// A sidecar that started less than this ago need not report yet, in seconds.
const MAY_BE_SILENT_SECONDS: i64 = 60;
/// Quantiles of the wait are asked for this often.
const QUANTILES_EVERY: Duration = Duration::from_mins(1);
/// Readings are too old after this many seconds where no server says otherwise.
const STALE_AFTER_SECONDS: f64 = 90.0;

/// What one server said at one tick.
struct Said {
    readings: Result<Readings, String>,
    overrides: HashMap<PoolKey, BTreeMap<api::Signal, Result<f64, String>>>,
    stale_after_seconds: f64,
}

/// A pool at one tick.
struct Member {
    key: PoolKey,
    pool: Arc<ConnectionPool>,
    effective: EffectivePool,
    server: String,
    overrides: Vec<OverrideQuery>,
}

/// Ticks for ever.
pub async fn run(context: Arc<Context>, servers: Option<Servers>, every: Duration) {
    // before the first whole list, a pool would look as if it had no pods
    while !context.pods.is_synced() {
        sleep(Duration::from_millis(50)).await;
    }
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut quantiles = HashMap::new();
    let mut quantiles_at: Option<Instant> = None;
    loop {
        ticks.tick().await;
        if context.leadership.epoch().is_none() {
            continue;
        }
        let started = Instant::now();
        let now = Timestamp::now();
        let pools = context.stores.pools.state();
        let members: Vec<Member> = pools.iter().filter_map(|pool| member(&context, pool)).collect();
        let (said, queries, failed) = ask_all(servers.as_ref(), &members, now).await;
        if quantiles_at.is_none_or(|at| at.elapsed() >= QUANTILES_EVERY)
            && let Some(servers) = &servers
        {
            quantiles = wait_quantiles(servers, now).await;
            quantiles_at = Some(started);
        }
        for member in &members {
            decide(&context, member, said.get(&member.server), quantiles.get(&member.key).copied(), every, now);
        }
        context.metrics.ticked(started.elapsed(), queries, failed);
        // those without a target too: their conditions may have changed
        for pool in &pools {
            if let Some(namespace) = pool.namespace() {
                context.queue.ask(&PoolKey::new(namespace, pool.name_any()), "tick").await;
            }
        }
    }
}

fn member(context: &Context, pool: &Arc<ConnectionPool>) -> Option<Member> {
    let effective = context.stores.effective(pool).ok()?;
    let key = PoolKey::new(pool.namespace()?, pool.name_any());
    let metrics = metrics_of(context, pool, &effective);
    let overrides = metrics
        .overrides
        .into_iter()
        .map(|replaced| OverrideQuery { pool: key.clone(), signal: replaced.signal, query: replaced.query })
        .collect();
    let server = metrics.prometheus_ref.unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    Some(Member { key, pool: pool.clone(), effective, server, overrides })
}

/// Where the load of a pool is read: the pool's own word, else its class's.
fn metrics_of(context: &Context, pool: &ConnectionPool, effective: &EffectivePool) -> MetricsSpec {
    let own = pool.spec.scaling.as_ref().and_then(|scaling| scaling.metrics.clone());
    let class = effective.class.as_ref().and_then(|(name, _)| {
        let classes = context.stores.classes.state();
        let class = classes.iter().find(|class| class.name_any() == *name)?;
        class.spec.scaling.as_ref()?.metrics.clone()
    });
    own.or(class).unwrap_or_default()
}

/// Asks every server that a pool names, all at once. Returns what they said, and how many queries it took and failed.
async fn ask_all(servers: Option<&Servers>, members: &[Member], now: Timestamp) -> (HashMap<String, Said>, u64, u64) {
    let Some(servers) = servers else { return (HashMap::new(), 0, 0) };
    let mut overrides: BTreeMap<&str, Vec<OverrideQuery>> = BTreeMap::new();
    for member in members {
        overrides.entry(&member.server).or_default().extend(member.overrides.iter().cloned());
    }
    let named = overrides.iter().filter_map(|(name, overrides)| Some((servers.get(name)?, overrides)));
    let said = join_all(named.map(|(server, overrides)| ask(server, overrides, now))).await;
    let queries: usize = overrides.values().map(Vec::len).sum::<usize>() + said.len() * QUERIES_PER_READ;
    let failed = said.iter().filter(|(_, said)| said.readings.is_err()).count();
    let failed_overrides = said
        .iter()
        .flat_map(|(_, said)| said.overrides.values())
        .flat_map(BTreeMap::values)
        .filter(|read| read.is_err());
    let failed = failed + failed_overrides.count();
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    (said.into_iter().collect(), count(queries), count(failed))
}

async fn ask(server: &Server, overrides: &[OverrideQuery], now: Timestamp) -> (String, Said) {
    let seconds = now.as_duration().as_secs_f64();
    let (readings, replaced) = tokio::join!(server.read(seconds), server.read_overrides(seconds, overrides));
    let readings = readings.map_err(|error| with_causes(&error));
    match &readings {
        Ok(readings) => {
            for problem in &readings.problems {
                tracing::warn!(server = server.name(), %problem, "series refused");
            }
        }
        Err(error) => tracing::warn!(server = server.name(), error, "reading the load; all its pools hold"),
    }
    let mut by_pool: HashMap<PoolKey, BTreeMap<api::Signal, Result<f64, String>>> = HashMap::new();
    for (query, read) in overrides.iter().zip(replaced) {
        let read = read.map_err(|error| with_causes(&error));
        by_pool.entry(query.pool.clone()).or_default().insert(query.signal, read);
    }
    let stale_after_seconds = server.configuration().stale_after_seconds();
    (server.name().to_owned(), Said { readings, overrides: by_pool, stale_after_seconds })
}

/// 95th percentile of the wait in seconds, by pool; a server that does not answer has none.
async fn wait_quantiles(servers: &Servers, now: Timestamp) -> HashMap<PoolKey, f64> {
    let seconds = now.as_duration().as_secs_f64();
    let asked = join_all(servers.iter().map(|server| server.wait_p95_seconds(seconds))).await;
    asked.into_iter().filter_map(Result::ok).flatten().collect()
}

/// Judges the load of one pool and sizes it.
fn decide(
    context: &Context,
    member: &Member,
    said: Option<&Said>,
    wait_p95_seconds: Option<f64>,
    every: Duration,
    now: Timestamp,
) {
    let Member { key, pool, effective, server, .. } = member;
    let facts = context.pods.of(key);
    let memory = context.memories.of(key, pool);
    let mut memory = memory.lock();
    let target = memory.target.unwrap_or_else(|| target_before(pool, key, &facts, effective));
    let load = judge(&mut memory.load, key, &facts, said, server, now);
    let (samples, trouble, completeness) = match &load.judgement {
        Judgement::New { sample, completeness } => (vec![*sample], None, *completeness),
        // no pod was scraped since the last tick: the last decision stands
        Judgement::Unchanged if memory.sizing.is_some() => {
            if let Some(sizing) = memory.sizing.as_mut() {
                sizing.load = load.figures.map(|figures| seen(&figures, wait_p95_seconds));
            }
            return;
        }
        Judgement::Unchanged => (Vec::new(), None, Completeness::Complete),
        Judgement::Hold { reason, message } => {
            let reason = match reason {
                HoldReason::PrometheusUnavailable if said.is_none() => "PrometheusNotConfigured",
                reason => reason.as_str(),
            };
            (Vec::new(), Some(Trouble { reason, message: message.clone() }), Completeness::Complete)
        }
    };
    let decision = size(context, member, &facts, &mut memory.sizer, &samples, target, every, now);
    let (decision, trouble) = never_shrink_in_the_dark(decision, trouble, completeness, target);
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
            why = change.message, demand = decision.explanation.demand, "target changed"
        );
        Some(change)
    };
    memory.target = Some(decision.size);
    let load_seen = load.figures.map(|figures| seen(&figures, wait_p95_seconds));
    memory.demands = load.demands;
    memory.proofs = load.proofs;
    memory.sizing = Some(SizingSeen { decision, load: load_seen, trouble, change });
}

/// What was read of one pool, judged.
fn judge(
    state: &mut crate::decide::load::LoadState,
    key: &PoolKey,
    facts: &[PodFacts],
    said: Option<&Said>,
    server: &str,
    now: Timestamp,
) -> Load {
    let expected: Vec<ExpectedPod> = facts
        .iter()
        .map(|pod| ExpectedPod {
            name: &pod.name,
            uid: &pod.uid,
            stage: match pod.phase {
                PodPhase::Terminating => Stage::Ending,
                _ if pod.sidecar == SidecarSeen::NotRunning => Stage::Starting,
                _ if now.as_second() - pod.created < MAY_BE_SILENT_SECONDS => Stage::Starting,
                _ => Stage::Running,
            },
        })
        .collect();
    let not_configured = format!(
        "the operator's configuration has no Prometheus named {server:?}; add it to --prometheus-config (chart: \
         prometheus.servers), or correct spec.scaling.metrics.prometheusRef"
    );
    let nothing = BTreeMap::new();
    // a pod of the same name may be gone: what was measured before this one existed is not its own
    let own = said.and_then(|said| said.readings.as_ref().ok()).map(|readings| -> BTreeMap<String, PodFigures> {
        let pods = readings.pods_of(key).iter();
        let is_own = |name: &str, figures: &PodFigures| {
            let created = facts.iter().find(|pod| pod.name == name).map(|pod| pod.created);
            created.is_some_and(|created| figures.sample.at_seconds >= seconds_of(created))
        };
        pods.filter(|(name, figures)| is_own(name, figures)).map(|(name, figures)| (name.clone(), *figures)).collect()
    });
    let read = match (said, &own) {
        (None, _) => Err(not_configured.as_str()),
        (Some(_), Some(own)) => Ok(own),
        (Some(said), None) => Err(said.readings.as_ref().err().map_or("nothing was read", String::as_str)),
    };
    state.step(&LoadInput {
        now_seconds: now.as_duration().as_secs_f64(),
        expected: &expected,
        read,
        overrides: said.and_then(|said| said.overrides.get(key)).unwrap_or(&nothing),
        stale_after_seconds: said.map_or(STALE_AFTER_SECONDS, |said| said.stale_after_seconds),
    })
}

#[allow(clippy::too_many_arguments)] // one call, all of it needed
fn size(
    context: &Context,
    member: &Member,
    facts: &[PodFacts],
    sizer: &mut crate::decide::sizing::Sizer,
    samples: &[Sample],
    target: u32,
    every: Duration,
    now: Timestamp,
) -> Decision {
    let Member { pool, effective, .. } = member;
    let running = facts.iter().filter(|pod| pod.sidecar == SidecarSeen::Running).count();
    let observation = Observation {
        now_seconds: now.as_duration().as_secs_f64(),
        interval_seconds: every.as_secs_f64(),
        pods: u32::try_from(running).unwrap_or(u32::MAX),
        current: current_size(context, facts).unwrap_or(target),
        target,
        bounds: Bounds { min: effective.min_allowed, max: effective.max_allowed, share: None },
        automation: match (pool.spec.paused, pool.spec.mode) {
            (true, _) => Automation::Paused,
            (false, Mode::Recommend) => Automation::Recommend,
            (false, Mode::Apply) => Automation::Apply,
        },
        samples,
    };
    sizer.decide(&SizingSettings::from(&effective.settings), &observation)
}

/// While pods are missing in the figures the load is at least what was seen: the target may grow and not shrink.
fn never_shrink_in_the_dark(
    mut decision: Decision,
    trouble: Option<Trouble>,
    completeness: Completeness,
    target: u32,
) -> (Decision, Option<Trouble>) {
    let Completeness::LowerBound { missing } = completeness else { return (decision, trouble) };
    if decision.recommendation.target >= target {
        return (decision, trouble);
    }
    let message = format!(
        "{missing} pods are missing in Prometheus: the load is at least what was seen, so the target stays at {target} \
         instead of {}; check the targets of the scrape job",
        decision.recommendation.target
    );
    decision.size = decision.size.max(target);
    decision.recommendation.target = target;
    decision.recommendation.upper_bound = decision.recommendation.upper_bound.max(target);
    decision.message.clone_from(&message);
    (decision, Some(Trouble { reason: "PodsNotReporting", message }))
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

fn seen(figures: &LoadFigures, wait_p95_seconds: Option<f64>) -> LoadSeen {
    LoadSeen {
        demand: figures.demand,
        held: whole(figures.held),
        active: whole(figures.active),
        waiting: whole(figures.waiting),
        leaked: figures.leaked.map(whole),
        wait_p95_milliseconds: wait_p95_seconds
            .filter(|seconds| seconds.is_finite())
            .map(|seconds| whole(seconds * 1000.0)),
        age_seconds: whole(figures.oldest_age_seconds),
    }
}

/// A count that travelled as a float.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates; NaN becomes 0
fn whole(figure: f64) -> u32 {
    figure.round() as u32
}

fn seconds_of(unix: i64) -> f64 {
    unix as f64
}

/// Short enough to be said aloud, and different each time.
fn decision_id(pool: &ConnectionPool, now: Timestamp, from: u32, to: u32) -> String {
    let mut hasher = DefaultHasher::new();
    (pool.uid(), now.as_nanosecond(), from, to).hash(&mut hasher);
    format!("d-{:06x}", hasher.finish() & 0x00ff_ffff)
}
