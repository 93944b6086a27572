//! What is told: the status of the pool and its events, from the same values that were decided on.

use super::{
    Figures, conditions,
    observed::{GatewaySeen, Observed, Poolers, TargetChange, current_size},
    progress,
    rollout::{NewRevision, Rollout},
};
use crate::{
    api::{
        Effective, GatewayStatus, Load, Mode, PodCounts, Recommendation, RevisionStatus, RolloutStatus,
        conditions::{
            ABLE_TO_SCALE, ACCEPTED, CLIENTS_ACCEPTED, CLIENTS_POOLED, ConditionStatus, GATEWAY_AVAILABLE, INJECTED,
            LEAK_DETECTED, ObservedCondition as Condition, PODS_CURRENT, PROGRESSING, PROVEN, RECONNECTED,
            SCALING_ACTIVE, SCALING_LIMITED, SIDECAR_MEMORY, UPSTREAM_HEALTHY,
        },
        reasons,
    },
    decide::freeze::Frozen,
    domain::UnixSeconds,
};

/// What the pooler of a sidecar can do: names of `status.capabilities`.
const CAPABILITIES: [&str; 2] = ["OnlineResize", "ClientIdleTimeout"];

/// The status of a pool, without the times that the shell adds.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolReport {
    /// All of it in one sentence.
    pub summary: String,
    /// Sum of the limits of the pods, read back; none while no pod has told.
    pub current_size: Option<u32>,
    /// Sum of the shares of the pods.
    pub share: u32,
    /// What the load asks for.
    pub recommendation: Option<Recommendation>,
    /// The load that was seen.
    pub load: Option<Load>,
    /// The last decision that changed the target.
    pub change: Option<TargetChange>,
    /// Pods, counted.
    pub pods: PodCounts,
    /// The gateway; none with another topology, and before its Deployment exists.
    pub gateway: Option<GatewayStatus>,
    /// Revisions; none before the first.
    pub revision: Option<RevisionStatus>,
    /// How one goes over the pods; none before the first.
    pub rollout: Option<RolloutStatus>,
    /// What is in force after class and built-in defaults.
    pub effective: Option<Effective>,
    /// What the pooler can do.
    pub capabilities: Vec<String>,
    /// The conditions.
    pub conditions: Vec<Condition>,
}

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It is.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventNote {
    /// Whether it is good news.
    pub kind: EventKind,
    /// Why, in CamelCase: stable.
    pub reason: String,
    /// What was done or found about what.
    pub action: &'static str,
    /// In words, with the numbers.
    pub note: String,
}

impl EventNote {
    /// Whether it tells of a condition that turned: the next look sees that too. What was done, no other look sees.
    pub fn is_of_condition(&self) -> bool {
        crate::api::conditions::ALL.contains(&self.action)
    }
}

pub(super) fn report(
    observed: &Observed,
    rollout: &Rollout,
    figures: &Figures,
    cannot_render: Option<&str>,
) -> PoolReport {
    let recommendation = observed.sizing.map(|sizing| sizing.decision.recommendation);
    let load = observed.sizing.and_then(|sizing| {
        let load = sizing.load?;
        Some(Load {
            // what no pool has, a pod made up: the API server takes a text of a bounded length
            demand: format!("{:.1}", load.demand.min(u32::MAX.into())),
            held: load.held,
            active: load.active,
            waiting: load.waiting,
            leaked: load.leaked,
            wait_p95_milliseconds: load.wait_p95_milliseconds,
            age_seconds: load.age_seconds,
        })
    });
    let current_size = current_size(observed.pods.iter().map(|pod| &pod.answer));
    let effective = observed.effective.ok().map(|effective| Effective {
        class: effective.class.as_ref().map(|(name, _)| name.clone()),
        class_generation: effective.class.as_ref().and_then(|(_, generation)| *generation),
        min_allowed: effective.min_allowed,
        max_allowed: effective.max_allowed,
    });
    let conditions = conditions::all(observed, rollout, figures, cannot_render);
    let course = rollout.course.as_ref();
    PoolReport {
        summary: summary(observed, figures, current_size, &conditions),
        current_size,
        share: figures.share,
        recommendation,
        load,
        change: observed.sizing.and_then(|sizing| sizing.change.clone()),
        pods: counts(observed, figures),
        gateway: observed.gateway.as_ref().and_then(gateway),
        revision: match course {
            Some(course) => {
                let revision = course.memory.revision_status(course.stable.number);
                revision.map(|revision| RevisionStatus { new_pods: course.new_pods, ..revision })
            }
            None => observed.status.and_then(|status| status.revision.clone()),
        },
        rollout: match course {
            Some(course) => Some(course.memory.rollout_status(course.figures)),
            None => observed.status.and_then(|status| status.rollout.clone()),
        },
        effective,
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        conditions,
    }
}

fn gateway(gateway: &GatewaySeen) -> Option<GatewayStatus> {
    let Poolers { exist, ready, .. } = gateway.poolers?;
    Some(GatewayStatus {
        replicas: exist,
        ready_replicas: Some(ready),
        selector: gateway.selector.clone(),
        address: Some(gateway.address.clone()),
    })
}

fn counts(observed: &Observed, figures: &Figures) -> PodCounts {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let injected = count(observed.pods.len());
    PodCounts {
        matched: injected + observed.uninjected.as_ref().map_or(0, |uninjected| uninjected.pods),
        injected,
        current: count(conditions::current_pods(observed)),
        proven: count(figures.proven),
        reporting: count(observed.pods.iter().filter(|pod| pod.reporting).count()),
    }
}

/// All of it in one sentence.
fn summary(observed: &Observed, figures: &Figures, size: Option<u32>, conditions: &[Condition]) -> String {
    let pods = observed.pods.len();
    let size = size.map_or_else(|| "Size unknown".to_owned(), |size| format!("Size {size}"));
    let of = format!("{size} of share {} on {pods} pods", figures.share);
    // a spec that cannot be put into force has no target: what was decided for another one says nothing about it
    let (Some(sizing), Ok(_)) = (observed.sizing, observed.effective) else {
        return match figures.target {
            Some(target) => format!("{of}; target {target} until the load is known"),
            None => format!("{of}; {}", first_problem(conditions)),
        };
    };
    let decision = &sizing.decision;
    let target = decision.recommendation.target;
    let why = match &sizing.trouble {
        Some(trouble) => format!("held: {}", trouble.message),
        None if decision.reason.is_hold() => format!("held: {}", decision.message),
        None => decision.message.clone(),
    };
    let limited = conditions
        .iter()
        .find(|condition| condition.type_ == SCALING_LIMITED && condition.status == ConditionStatus::True)
        .map_or_else(|| "nothing limits it".to_owned(), |condition| format!("limited by {}", condition.reason));
    format!("{of}; target {target}{}: {why}; {limited}", not_in_force(observed))
}

/// Why a target is only told, behind its figure; nothing where it is more.
fn not_in_force(observed: &Observed) -> &'static str {
    match (observed.frozen(), observed.pool.spec.mode) {
        (Some(Frozen::ByPause), _) => " (paused)",
        (Some(Frozen::Until(_) | Frozen::Unreadable(_)), _) => " (frozen)",
        (_, Mode::Recommend) => " (recommended only)",
        _ => "",
    }
}

fn first_problem(conditions: &[Condition]) -> String {
    conditions
        .iter()
        .find(|condition| condition.status == ConditionStatus::False)
        .map_or_else(String::new, |condition| condition.message.clone())
}

/// Events: a target that changed, a revision that was created, conditions that turned.
pub(super) fn events(observed: &Observed, rollout: &Rollout, report: &PoolReport) -> Vec<EventNote> {
    let mut events = Vec::new();
    let last_decision =
        observed.status.and_then(|status| status.last_decision.as_ref()).map(|decision| decision.id.as_str());
    if let Some(change) = &report.change
        && last_decision != Some(change.id.as_str())
    {
        let TargetChange { id, from, to, message, reason, .. } = change;
        events.push(EventNote {
            kind: EventKind::Normal,
            reason: reasons::TARGET_CHANGED.to_owned(),
            action: if to > from { "RaiseTarget" } else { "LowerTarget" },
            note: format!("target {from} -> {to}{} ({reason}): {message} (decision {id})", not_in_force(observed)),
        });
    }
    if let Some(NewRevision { number, cause, is_restored, .. }) = &rollout.create {
        events.push(EventNote {
            kind: EventKind::Normal,
            reason: reasons::REVISION_CREATED.to_owned(),
            action: "CreateRevision",
            note: if *is_restored {
                format!("revision {number} is kept again, as the pods that run it have it: {cause}")
            } else {
                format!("revision {number} holds the settings of {cause}")
            },
        });
    }
    events.extend(reconnected(observed, report));
    events.extend(progress::events(observed, rollout, &report.conditions));
    for condition in &report.conditions {
        if let Some(event) = turned(observed, condition) {
            events.push(event);
        }
    }
    events
}

/// The event of server connections that were renewed as asked for, once for each time that was asked.
fn reconnected(observed: &Observed, report: &PoolReport) -> Option<EventNote> {
    let done = |condition: &&Condition| condition.type_ == RECONNECTED && condition.status == ConditionStatus::True;
    let some_report_it =
        || observed.pods.iter().any(|pod| pod.answer.report().is_some_and(|report| report.reconnected.is_some()));
    let now = report.conditions.iter().find(done).filter(|_| some_report_it())?;
    let before = observed.status?.conditions.iter().find(|known| known.type_ == RECONNECTED);
    let at = observed.effective.ok()?.settings.reconnected_at.as_deref()?;
    let was_told = before.is_some_and(|before| before.status == now.status.as_str() && before.message.ends_with(at));
    (!was_told).then(|| EventNote {
        kind: EventKind::Normal,
        reason: reasons::ALL_RECONNECTED.to_owned(),
        action: "Reconnect",
        note: now.message.clone(),
    })
}

/// Reasons that make no event: on their way, or asked for.
pub(super) const WITHOUT_EVENT: [&str; 11] = [
    reasons::AWAITING_PROOF,
    reasons::NOT_ACCEPTED,
    reasons::NO_PODS,
    reasons::STARTING,
    reasons::ROLLING_OUT,
    reasons::GATEWAY_SCALED_TO_ZERO,
    reasons::PAUSED,
    reasons::FROZEN,
    reasons::RECOMMEND_ONLY,
    reasons::BYPASS_IGNORED,
    "MinSize",
];

/// The event of a condition that is worse than it was, or good again.
fn turned(observed: &Observed, condition: &Condition) -> Option<EventNote> {
    // which status is bad news; the others do not make events
    let bad = match condition.type_ {
        ACCEPTED | INJECTED | GATEWAY_AVAILABLE | PODS_CURRENT | PROVEN | SCALING_ACTIVE | ABLE_TO_SCALE
        | PROGRESSING | UPSTREAM_HEALTHY | SIDECAR_MEMORY | CLIENTS_ACCEPTED | CLIENTS_POOLED => ConditionStatus::False,
        SCALING_LIMITED | LEAK_DETECTED => ConditionStatus::True,
        _ => return None,
    };
    // nobody knows, but that nobody who asked had an answer
    let counts = |status: &str, reason: &str| {
        (status == bad.as_str() || reason == reasons::UPSTREAM_SILENT) && !WITHOUT_EVENT.contains(&reason)
    };
    let before =
        observed.status.and_then(|status| status.conditions.iter().find(|known| known.type_ == condition.type_));
    let was_bad = before.is_some_and(|before| counts(&before.status, &before.reason));
    let is_bad = counts(condition.status.as_str(), condition.reason);
    // a leak that is over is gone from what its agent says before it is gone from Prometheus
    let is_less_known = condition.reason == reasons::HELD_WITHOUT_WORK && was_bad;
    let same_reason = is_less_known || before.is_some_and(|before| before.reason == condition.reason);
    if is_bad && !(was_bad && same_reason) {
        return Some(EventNote {
            kind: EventKind::Warning,
            reason: condition.reason.to_owned(),
            action: condition.type_,
            note: condition.message.clone(),
        });
    }
    if was_bad && !is_bad && condition.status != ConditionStatus::Unknown && condition.reason != reasons::AWAITING_PROOF
    {
        return Some(EventNote {
            kind: EventKind::Normal,
            reason: condition.reason.to_owned(),
            action: condition.type_,
            note: condition.message.clone(),
        });
    }
    None
}

impl PoolReport {
    /// When the target changed last.
    pub fn last_change(&self) -> Option<UnixSeconds> {
        self.change.as_ref().map(|change| change.at)
    }
}
