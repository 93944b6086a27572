//! One pool's target: the load judged, sized and remembered, at each tick and whenever its spec has changed since.

use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
};

use jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    api::{ConnectionPool, Mode},
    contract::{PodGrant, UpstreamState},
    controller::{
        context::Context,
        memory::{DecidedFor, PoolMemory},
        observe::{load_queries::ServerReadings, overrides::OverrideAnswers},
    },
    decide::{
        effective::EffectivePool,
        freeze::Frozen,
        guard::refused,
        load::{
            Alternation, Completeness, ExpectedPod, HoldReason, Judgement, LoadFigures, LoadInput, PodFigures,
            PoolLoad, Stage,
        },
        outage,
        plan::{
            AgentAnswer, LoadSeen, PodFacts, SidecarSeen, SizingSeen, TargetChange, Trouble, UnixSeconds, current_size,
        },
        shares::PodPhase,
        sizing::{Decision, Observation, SizingSettings},
    },
    domain::{Automation, Bounds, PoolKey},
};

/// A sidecar that started less than this ago need not report yet, in seconds.
const MAY_BE_SILENT_SECONDS: i64 = 60;
/// Figures with a pod's name that are not younger than its creation by as much may be its predecessor's, whose node's clock was ahead.
const CLOCKS_DIFFER_SECONDS: f64 = 2.0;
/// Readings are too old after this many seconds where no server says otherwise.
const STALE_AFTER_SECONDS: f64 = 90.0;

/// The pool that is sized, and what is in force for it.
#[derive(Clone, Copy)]
pub struct SizedPool<'a> {
    /// Its key.
    pub key: &'a PoolKey,
    /// The object.
    pub pool: &'a ConnectionPool,
    /// Merged with its class.
    pub effective: &'a EffectivePool,
}

/// Judges the load of one pool by what the server of this name said, and its own queries, and sizes it.
pub fn decide(
    context: &Context,
    subject: SizedPool,
    (server, said): (&str, Option<&ServerReadings>),
    own: &OverrideAnswers,
    wait_p95_seconds: Option<f64>,
    now: Timestamp,
) {
    let SizedPool { key, pool, effective } = subject;
    let facts = context.pods.of(key);
    let memory = context.memories.of(key, pool);
    let mut memory = memory.lock();
    let target = memory.target.unwrap_or_else(|| target_before(pool, key, &facts, effective));
    let load = judge(&mut memory.load, key, &facts, (server, said, own), now);
    let alternation = load.alternation.zip(said).map(|(alternation, said)| alternation_message(&alternation, said));
    let (sample, trouble, completeness) = match &load.judgement {
        Judgement::New { sample, completeness } => (Some(*sample), None, *completeness),
        // no pod was scraped since the last tick: the last decision stands
        Judgement::Unchanged if memory.sizing.is_some() => {
            if let Some(sizing) = memory.sizing.as_mut() {
                sizing.load = load.figures.map(|figures| seen(&figures, wait_p95_seconds));
                sizing.alternation = alternation;
            }
            return;
        }
        Judgement::Unchanged => (None, None, Completeness::Complete),
        Judgement::Hold { reason, message } => {
            let reason = match reason {
                HoldReason::PrometheusUnavailable if said.is_none() => "PrometheusNotConfigured",
                reason => reason.as_str(),
            };
            // a reading may be old because what came since was refused
            let refused = said.and_then(|said| said.readings.as_ref().ok()?.problem_of(key));
            let why = refused.map(ToString::to_string).or_else(|| alternation.clone());
            let message = why.map_or_else(|| message.clone(), |why| format!("{message}; {why}"));
            (None, Some(Trouble { reason, message }), Completeness::Complete)
        }
    };
    let uids: HashMap<&str, &Arc<str>> = facts.iter().map(|pod| (pod.name.as_str(), &pod.uid)).collect();
    let observation = observation(context, subject, &facts, target, now);
    let decision = memory
        .sizer
        .decide(&SizingSettings::from(&effective.settings), &Observation { samples: sample.as_slice(), ..observation });
    let (decision, trouble) = never_shrink_in_the_dark(decision, trouble, completeness, &observation);
    let load_seen = load.figures.map(|figures| seen(&figures, wait_p95_seconds));
    // the figures go by name, and what they say of a pod by its uid: a new pod of that name is owed nothing of them
    let uid_of = |name: &str| uids.get(name).map(|uid| Arc::clone(uid));
    memory.demands = load.demands.iter().filter_map(|(name, demand)| Some((uid_of(name)?, *demand))).collect();
    memory.proofs = load.proofs.iter().filter_map(|(name, proof)| Some((uid_of(name)?, *proof))).collect();
    let known = Known { load: load_seen, trouble, alternation };
    conclude(context, subject, &mut memory, (decision, known), target, now);
}

/// Decides again, on the load as it was judged last, when the spec or its class is another than at the last decision: what
/// is told of a generation is decided for it.
pub fn follow_spec(context: &Context, subject: SizedPool, memory: &mut PoolMemory, now: Timestamp) {
    let Some(last) = memory.sizing.clone() else { return };
    if memory.decided_for == Some(DecidedFor::of(subject.pool, subject.effective)) {
        return;
    }
    let facts = context.pods.of(subject.key);
    let target = memory.target.unwrap_or_else(|| target_before(subject.pool, subject.key, &facts, subject.effective));
    let observation = observation(context, subject, &facts, target, now);
    let settings = SizingSettings::from(&subject.effective.settings);
    // what was held for lack of knowledge stays held
    let is_held = last.trouble.is_some() || last.decision.limits.iter().any(|limit| limit.reason.is_hold());
    let decision = if is_held {
        memory.sizer.decide(&settings, &observation)
    } else {
        memory.sizer.decide_again(&settings, &observation)
    };
    let known = Known { load: last.load, trouble: last.trouble, alternation: last.alternation };
    conclude(context, subject, memory, (decision, known), target, now);
}

/// What is known of the load that a decision was made on.
struct Known {
    load: Option<LoadSeen>,
    trouble: Option<Trouble>,
    alternation: Option<String>,
}

/// Remembers a decision, and tells of it when the target is another.
fn conclude(
    context: &Context,
    SizedPool { key, pool, effective }: SizedPool,
    memory: &mut PoolMemory,
    (decision, Known { load, trouble, alternation }): (Decision, Known),
    target: u32,
    now: Timestamp,
) {
    context.metrics.decided(decision.reason.as_str());
    let told_before = memory.sizing.as_ref().map_or(target, |sizing| sizing.decision.recommendation.target);
    let to = decision.recommendation.target;
    let change = if to == told_before {
        memory.sizing.as_ref().and_then(|sizing| sizing.change.clone())
    } else {
        let change = TargetChange {
            id: decision_id(pool, now, told_before, to),
            reason: decision.reason.as_str().to_owned(),
            from: told_before,
            to,
            message: decision.message.clone(),
            at: now.as_second(),
        };
        tracing::info!(
            pool = %key, decision = change.id, reason = change.reason, from = change.from, to = change.to,
            why = change.message, demand = decision.explanation.demand, started = %now, "target changed"
        );
        Some(change)
    };
    memory.target = Some(decision.size);
    memory.decided_for = Some(DecidedFor::of(pool, effective));
    memory.sizing = Some(SizingSeen { decision, load, trouble, change, alternation });
}

/// What was read of one pool, judged.
fn judge(
    state: &mut crate::decide::load::LoadState,
    key: &PoolKey,
    facts: &[Arc<PodFacts>],
    (server, said, own): (&str, Option<&ServerReadings>, &OverrideAnswers),
    now: Timestamp,
) -> PoolLoad {
    let expected: Vec<ExpectedPod> = facts
        .iter()
        .map(|pod| ExpectedPod {
            name: &pod.name,
            uid: &pod.uid,
            stage: match pod.phase {
                PodPhase::Terminating => Stage::Ending,
                _ if pod.sidecar != SidecarSeen::Running => Stage::Starting,
                _ if now.as_second() - pod.created < MAY_BE_SILENT_SECONDS => Stage::Starting,
                _ => Stage::Running,
            },
        })
        .collect();
    let not_configured = format!(
        "the operator's configuration has no Prometheus named {server:?}; add it to --prometheus-config (chart: \
         prometheus.servers), or correct spec.scaling.metrics.prometheusRef"
    );
    // a pod of the same name may be gone: what was measured before this one existed is not its own
    let created: HashMap<&str, UnixSeconds> = facts.iter().map(|pod| (pod.name.as_str(), pod.created)).collect();
    let read = said.and_then(|said| said.readings.as_ref().ok()).map(|readings| -> BTreeMap<String, PodFigures> {
        let pods = readings.pods_of(key).iter();
        let is_own = |name: &str, figures: &PodFigures| {
            let own_since = created.get(name).map(|created| seconds_of(*created) + CLOCKS_DIFFER_SECONDS);
            own_since.is_some_and(|since| figures.sample.at_seconds >= since)
        };
        pods.filter(|(name, figures)| is_own(name, figures)).map(|(name, figures)| (name.clone(), *figures)).collect()
    });
    let read = match (said, &read) {
        (None, _) => Err(not_configured.as_str()),
        (Some(_), Some(read)) => Ok(read),
        (Some(said), None) => Err(said.readings.as_ref().err().map_or("nothing was read", String::as_str)),
    };
    state.step(&LoadInput {
        now_seconds: now.as_duration().as_secs_f64(),
        expected: &expected,
        read,
        overrides: own,
        stale_after_seconds: said.map_or(STALE_AFTER_SECONDS, |said| said.stale_after_seconds),
    })
}

/// What is known of the pool beside its load.
fn observation<'a>(
    context: &Context,
    SizedPool { key, pool, effective }: SizedPool,
    facts: &[Arc<PodFacts>],
    target: u32,
    now: Timestamp,
) -> Observation<'a> {
    let running = facts.iter().filter(|pod| pod.sidecar == SidecarSeen::Running).count();
    let answers = answers(context, key, facts);
    Observation {
        now_seconds: now.as_duration().as_secs_f64(),
        interval_seconds: context.tick.as_secs_f64(),
        pods: u32::try_from(running).unwrap_or(u32::MAX),
        current: current_size(&answers).unwrap_or(target),
        target,
        bounds: Bounds { min: effective.min_allowed, max: effective.max_allowed, share: None },
        automation: match (Frozen::of(pool, now.as_second()), pool.spec.mode) {
            (Some(_), _) => Automation::Paused,
            (None, Mode::Recommend) => Automation::Recommend,
            (None, Mode::Apply) if is_read_only(&answers) => Automation::UpstreamReadOnly,
            (None, Mode::Apply) if outage::is_everywhere(answers.iter().map(AgentAnswer::heard)) => {
                Automation::CircuitOpen
            }
            (None, Mode::Apply) => Automation::Apply,
        },
        refused_beyond: refused_beyond(&answers, facts, (&key.name, effective), now.as_second()),
        samples: &[],
    }
}

/// While pods are missing in the figures the load is at least what was seen: the target may grow and not shrink below what it
/// was, as far as its bounds and the database still allow that.
fn never_shrink_in_the_dark(
    mut decision: Decision,
    trouble: Option<Trouble>,
    completeness: Completeness,
    observation: &Observation,
) -> (Decision, Option<Trouble>) {
    let Completeness::LowerBound { missing } = completeness else { return (decision, trouble) };
    let Observation { target, bounds, refused_beyond, .. } = observation;
    let kept = (*target).min(bounds.most()).min(refused_beyond.unwrap_or(u32::MAX));
    if decision.recommendation.target >= kept {
        return (decision, trouble);
    }
    let message = format!(
        "{missing} pods are missing in Prometheus: the load is at least what was seen, so the target stays at {kept} \
         instead of {}; check the targets of the scrape job",
        decision.recommendation.target
    );
    decision.size = decision.size.max(kept);
    decision.recommendation.target = kept;
    decision.recommendation.upper_bound = decision.recommendation.upper_bound.max(kept);
    decision.message.clone_from(&message);
    (decision, Some(Trouble { reason: "PodsNotReporting", message }))
}

/// The target before the first decision of this process: what was recommended last, else what the pods may open.
fn target_before(pool: &ConnectionPool, key: &PoolKey, facts: &[Arc<PodFacts>], effective: &EffectivePool) -> u32 {
    let recommended = pool.status.as_ref().and_then(|status| status.recommendation).map(|last| last.target);
    let grants = facts.iter().filter_map(|pod| pod.grant_to(&key.name));
    effective.target_before(recommended, PodGrant::sum_of_shares(grants))
}

/// What the agents of these pods said last, in their order.
fn answers(context: &Context, key: &PoolKey, facts: &[Arc<PodFacts>]) -> Vec<AgentAnswer> {
    let answers = context.poller.answers(key);
    facts.iter().map(|pod| answers.of(&pod.uid).answer).collect()
}

/// What the pods may hold together, beside their sessions, while the database refuses more to one of them.
fn refused_beyond(
    answers: &[AgentAnswer],
    facts: &[Arc<PodFacts>],
    (pool, effective): (&str, &EffectivePool),
    now: UnixSeconds,
) -> Option<u32> {
    let for_sessions = effective.settings.for_sessions();
    refused::of_pool(facts.iter().zip(answers).map(|(pod, answer)| {
        let share = pod.grant_to(pool).map_or(0, |grant| grant.share);
        refused::PodCeiling::of(answer.report(), answer.server_full(now), share, for_sessions)
    }))
}

/// Whether an agent that answers says that the database takes no writes.
fn is_read_only(answers: &[AgentAnswer]) -> bool {
    answers.iter().any(|answer| match answer {
        AgentAnswer::Report(report) => {
            report.upstream.as_ref().is_some_and(|upstream| upstream.state == UpstreamState::ReadOnly)
        }
        _ => false,
    })
}

/// That several servers answer in turn, and what to do.
fn alternation_message(alternation: &Alternation, said: &ServerReadings) -> String {
    let Alternation { pods, behind_seconds } = *alternation;
    let what = behind_seconds.map_or_else(
        || "counters of spec.scaling.metrics.overrides go back and forth".to_owned(),
        |seconds| format!("readings of {pods} pods go back and forth, by {seconds:.0} s"),
    );
    format!(
        "two servers answer alternately behind {}: {what}; what is older than what was seen is left out; name one of them, or \
         one that puts both together (Thanos Query, for example), or let the Service keep a client at one server",
        said.url
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::{Algorithm, Objective},
        decide::sizing::Sizer,
    };

    /// The target while a pod is missing in the figures, where it was 20 and the load that is seen asks for the least.
    fn with_a_pod_missing(max: u32, refused_beyond: Option<u32>) -> (Decision, Option<Trouble>) {
        let settings =
            SizingSettings::new(Algorithm::Adaptive, Objective { wait_milliseconds: 50, max_waiting_percent: 1.0 });
        let observation = Observation {
            now_seconds: 1000.0,
            interval_seconds: 15.0,
            pods: 2,
            current: 20,
            target: 20,
            bounds: Bounds { min: 2, max, share: None },
            automation: Automation::Apply,
            refused_beyond,
            samples: &[],
        };
        let mut decision = Sizer::default().decide(&settings, &observation);
        (decision.size, decision.recommendation.target) = (2, 2);
        never_shrink_in_the_dark(decision, None, Completeness::LowerBound { missing: 1 }, &observation)
    }

    #[test]
    fn with_a_pod_missing_the_target_stays_as_far_as_its_bounds_and_the_database_allow() {
        for (max, refused_beyond, kept) in [(40, None, 20), (40, Some(6), 6), (8, None, 8), (8, Some(6), 6)] {
            let (decision, trouble) = with_a_pod_missing(max, refused_beyond);
            assert_eq!((decision.size, decision.recommendation.target), (kept, kept), "{max} {refused_beyond:?}");
            let trouble = trouble.expect("it is told");
            assert_eq!(trouble.reason, "PodsNotReporting");
            assert!(
                trouble.message.contains(&format!("the target stays at {kept} instead of 2")),
                "{}",
                trouble.message
            );
        }
    }
}
