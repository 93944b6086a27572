//! The conditions of a pool, from what is known and what was decided. `Ready` sums up the others.

use super::{
    Figures,
    alike::AskedOnce,
    bypass, memory,
    observed::{
        AgentAnswer, Annotation, BudgetSeen, GatewaySeen, Observed, PodSeen, PodsRefused, Poolers, ROLLOUT, SidecarSeen,
    },
    progress,
    rollout::{Rollout, unknown as unknown_settings},
    troubles,
};
use crate::{
    api::{
        Mode,
        conditions::{
            ABLE_TO_SCALE, ACCEPTED, CLIENTS_ACCEPTED, CLIENTS_POOLED, ConditionStatus, GATEWAY_AVAILABLE, INJECTED,
            LEAK_DETECTED, ObservedCondition as Condition, PODS_CURRENT, PROGRESSING, PROVEN, READY, RECONNECTED,
            SCALING_ACTIVE, SCALING_LIMITED, SIDECAR_MEMORY, UPSTREAM_HEALTHY,
        },
        reasons,
    },
    contract::{
        ForeignListeners, LeakKinds, OutageAction, PoolerError, ProofMode, RevisionWait, Settings, UpstreamSeen,
        UpstreamState, names::METRICS_PORT,
    },
    decide::{
        effective::EffectivePool,
        outage,
        shares::{PodPhase, Shortage},
    },
    domain::Reason,
};

/// An agent that has not answered for so long is told of; a container takes a moment to start.
const UNREACHABLE_AFTER_SECONDS: i64 = 15;
/// A pod whose containers cannot be started is told of after so long: volumes and network take a moment.
const NOT_STARTABLE_AFTER_SECONDS: i64 = 30;
/// A time is ahead of now beyond what clocks differ by.
const CLOCKS_DIFFER_SECONDS: i64 = 60;
/// Owners of pods that are named.
const OWNERS: usize = 5;

fn condition(type_: &'static str, status: ConditionStatus, reason: &'static str, message: String) -> Condition {
    Condition { type_, status, reason, message }
}

pub(super) fn yes(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
    condition(type_, ConditionStatus::True, reason, message.into())
}

pub(super) fn no(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
    condition(type_, ConditionStatus::False, reason, message.into())
}

pub(super) fn unknown(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
    condition(type_, ConditionStatus::Unknown, reason, message.into())
}

/// All conditions, `Ready` first.
pub(super) fn all(
    observed: &Observed,
    rollout: &Rollout,
    figures: &Figures,
    cannot_render: Option<&str>,
) -> Vec<Condition> {
    let about_pods = match &observed.gateway {
        None => vec![injected(observed), pods_current(observed), bypass::clients_pooled(observed)],
        Some(gateway) => vec![gateway_available(gateway), gateway_current(observed)],
    };
    let mut all = vec![accepted(observed, cannot_render)];
    all.extend(about_pods);
    all.extend([
        proven(observed, figures),
        scaling_active(observed),
        able_to_scale(observed),
        scaling_limited(observed, figures),
        progress::progressing(observed, rollout),
        upstream_healthy(observed),
        troubles::clients_accepted(observed),
        leak_detected(observed),
        progress::paused(observed, rollout),
    ]);
    all.extend(memory::sidecar_memory(observed));
    all.extend(reconnected(observed));
    all.insert(0, ready(&all));
    all
}

/// What `Ready` sums up, in the order in which it is told.
pub(super) const SUMMED_UP: [&str; 13] = [
    ACCEPTED,
    INJECTED,
    GATEWAY_AVAILABLE,
    UPSTREAM_HEALTHY,
    SCALING_LIMITED,
    SIDECAR_MEMORY,
    PROVEN,
    CLIENTS_POOLED,
    SCALING_ACTIVE,
    PODS_CURRENT,
    PROGRESSING,
    ABLE_TO_SCALE,
    CLIENTS_ACCEPTED,
];

/// Reasons that are not held against a pool: asked for, or on its way (a share that moves would make a pool flap), or nobody can see
/// it, or not for the pool to say.
pub(super) const CALM: [&str; 12] = [
    reasons::RECOMMEND_ONLY,
    reasons::PAUSED,
    reasons::AWAITING_PROOF,
    reasons::ROLLING_OUT,
    reasons::BLUE_GREEN_PAUSE,
    reasons::ROLLOUT_PAUSED,
    reasons::NOT_OBSERVED,
    reasons::COUNT_FAILED,
    reasons::SHARE_EXCEEDS_MEMORY,
    reasons::BYPASS_IGNORED,
    PoolerError::ClientLoginRefused.as_str(),
    PoolerError::ClientTlsFailed.as_str(),
];

/// Whether it keeps a pool from being ready.
fn is_amiss(condition: &Condition) -> bool {
    match condition.type_ {
        // who has less than the load asks for is served; who has nothing at all is not
        SCALING_LIMITED => condition.reason == reasons::TOO_MANY_PODS,
        _ => condition.status != ConditionStatus::True && !CALM.contains(&condition.reason),
    }
}

/// The first thing that is not as it should be.
fn ready(others: &[Condition]) -> Condition {
    let of = |type_: &&str| others.iter().find(|condition| condition.type_ == *type_);
    let automation = of(&ABLE_TO_SCALE).map_or("", |able| able.reason);
    match SUMMED_UP.iter().filter_map(of).find(|condition| is_amiss(condition)) {
        None => yes(
            READY,
            reasons::IN_FORCE,
            match automation {
                reasons::FROZEN => "every pod runs what it should; nothing changes until its freeze ends: see Paused",
                reasons::PAUSED => "every pod runs what it should; nothing changes while spec.paused is true",
                reasons::RECOMMEND_ONLY => {
                    "every pod runs its fixed limit; the target follows the load and is recommended only"
                }
                _ => "every pod runs what it should and the target follows the load",
            },
        ),
        Some(worst) => Condition { type_: READY, status: ConditionStatus::False, ..worst.clone() },
    }
}

fn accepted(observed: &Observed, cannot_render: Option<&str>) -> Condition {
    if let Err(refusal) = observed.effective {
        return no(ACCEPTED, refusal.reason, refusal.message.clone());
    }
    if let Some(why) = cannot_render {
        return no(
            ACCEPTED,
            reasons::CANNOT_RENDER,
            format!("{why}; the last revision stays in force until the spec is mended"),
        );
    }
    if let Some(rival) = &observed.rival {
        let has = match rival.pods {
            0 => "has every pod that both select".to_owned(),
            pods => format!("has {pods} of the pods that both select"),
        };
        return no(
            ACCEPTED,
            reasons::SELECTOR_OVERLAPS,
            format!(
                "spec.workload.selector overlaps with the older ConnectionPool {}, which {has}; narrow one of the two \
                 selectors and restart the pods",
                rival.pool
            ),
        );
    }
    if let BudgetSeen::Missing(name) = &observed.budget {
        return no(
            ACCEPTED,
            reasons::BUDGET_NOT_FOUND,
            format!(
                "spec.budgetRef.name: no ConnectionBudget {name:?}; create it or correct the name; until then maxAllowed \
                 alone bounds this pool"
            ),
        );
    }
    if let Ok(effective) = observed.effective
        && !effective.not_supported.is_empty()
    {
        return no(
            ACCEPTED,
            reasons::NOT_SUPPORTED,
            format!(
                "this version does not support {}: it has no effect, remove it; everything else is in force",
                effective.not_supported.join(" and ")
            ),
        );
    }
    let counted = match &observed.budget {
        BudgetSeen::Found => "; spec.budgetRef: this version keeps no ledger, so maxAllowed alone bounds this pool",
        BudgetSeen::NotNamed | BudgetSeen::Missing(_) => "",
    };
    let moved = match observed.effective {
        Ok(effective) if effective.overrides_move_no_limit() => {
            "; scaling.metrics.overrides move the target alone: with localReaction Enabled each agent decides by what it sees itself"
        }
        _ => "",
    };
    yes(ACCEPTED, reasons::VALID, format!("spec and class make sense together{counted}{moved}"))
}

fn injected(observed: &Observed) -> Condition {
    let with = observed.pods.len();
    let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(refused) = observed.uninjected.as_ref().and_then(|uninjected| uninjected.refused.as_ref()) {
        return no(
            INJECTED,
            reasons::PODS_REFUSED,
            format!(
                "the API server refuses to create pods of {}: {}; {}",
                refused.owner,
                refused.message,
                refused.what_to_do(namespace)
            ),
        );
    }
    let are_known = observed.uninjected.as_ref().is_some_and(|without| without.pods > 0);
    if let Some(why) = observed.uncounted.filter(|_| !are_known) {
        let message = format!(
            "whether pods of this pool have no sidecar is not known: {why}; they are counted again ever more rarely, up to every \
             10 min"
        );
        return unknown(INJECTED, reasons::COUNT_FAILED, message);
    }
    match &observed.uninjected {
        None => unknown(INJECTED, reasons::STARTING, "the pods without a sidecar have not been counted yet"),
        Some(without) if without.pods > 0 => {
            let restart = restart(namespace, &without.owners);
            no(
                INJECTED,
                reasons::PODS_WITHOUT_SIDECAR,
                format!(
                    "{} of {} pods have no sidecar: they are older than this pool or were not opted in with the label \
                     sluice.dev/inject: enabled; their connections bypass the pool; {restart}",
                    without.pods,
                    with + usize::try_from(without.pods).unwrap_or_default(),
                ),
            )
        }
        Some(_) if with == 0 => unknown(
            INJECTED,
            reasons::NO_PODS,
            format!(
                "spec.workload.selector matches no pod in namespace {namespace}; compare it with \
                 `kubectl -n {namespace} get pods --show-labels`, or scale the workload up, or the API server refuses its pods: \
                 `kubectl -n {namespace} get events --field-selector reason=FailedCreate`"
            ),
        ),
        Some(_) => yes(INJECTED, reasons::ALL_INJECTED, format!("all {with} pods have a sidecar")),
    }
}

impl PodsRefused {
    /// What lets them be created, as far as the API server's words tell.
    fn what_to_do(&self, namespace: &str) -> String {
        const OF_RESOURCES: [&str; 4] = ["must specify", "per Container", "per Pod", "exceeded quota"];
        if OF_RESOURCES.iter().any(|words| self.message.contains(words)) {
            return "what the containers sluice and sluice-bin ask for is spec.sidecar.resources of the pool or its class: set requests and \
                    limits there as the namespace wants them, or change its ResourceQuota or LimitRange"
                .to_owned();
        }
        format!("`kubectl -n {namespace} describe {}` tells more", self.owner)
    }
}

/// The pods that were created with something else than a new one would get.
fn old_pods<'a>(observed: &'a Observed) -> impl Iterator<Item = &'a PodSeen> {
    let mut are_current = AskedOnce::default();
    observed.pods.iter().filter(move |pod| match (observed.injection, &pod.injection) {
        (Some(wanted), Some(has)) => !are_current.of(has, |has| has == wanted),
        _ => false,
    })
}

/// Pods that are told a revision which they take over with their restart alone.
fn waits_for_restart(pod: &PodSeen) -> bool {
    pod.answer.report().is_some_and(|report| report.revision_waits == Some(RevisionWait::Restart))
}

/// How many pods run what a new one would get, as far as that takes a restart.
pub(super) fn current_pods(observed: &Observed) -> usize {
    let old: Vec<&str> = old_pods(observed).map(|pod| &*pod.uid).collect();
    observed.pods.iter().filter(|pod| !old.contains(&&*pod.uid) && !waits_for_restart(pod)).count()
}

fn pods_current(observed: &Observed) -> Condition {
    let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
    let old: Vec<&PodSeen> = old_pods(observed).collect();
    let waiting: Vec<&PodSeen> = observed.pods.iter().filter(|pod| waits_for_restart(pod)).collect();
    if old.is_empty() && waiting.is_empty() {
        return yes(PODS_CURRENT, reasons::UP_TO_DATE, "every pod was created with what is in force now");
    }
    let restart = restart(namespace, &owners(old.iter().chain(&waiting)));
    let pods = observed.pods.len();
    let old = (!old.is_empty()).then(|| {
        format!(
            "{} of {pods} pods were created with another upstream, client side, environment, TLS, Secret, image or resources \
             of the sidecar than are in force now, which cannot change in a running pod",
            old.len()
        )
    });
    let waiting = awaiting_restart(&waiting, pods);
    let what: Vec<String> = old.into_iter().chain(waiting).collect();
    no(PODS_CURRENT, reasons::RESTART_REQUIRED, format!("{}; {restart}", what.join("; ")))
}

/// What keeps these pods.
fn owners<'a>(pods: impl Iterator<Item = &'a &'a PodSeen>) -> Vec<String> {
    let mut owners: Vec<String> = pods.filter_map(|pod| pod.owner.clone()).collect();
    owners.sort();
    owners.dedup();
    owners.truncate(OWNERS);
    owners
}

/// That pods take over what they are told with their restart alone; None where there are none of these.
fn awaiting_restart(waiting: &[&PodSeen], pods: usize) -> Option<String> {
    (!waiting.is_empty()).then(|| {
        format!(
            "{} of {pods} pods take over the revision that they are told with their restart alone (switching: Unsupported)",
            waiting.len()
        )
    })
}

fn gateway_available(gateway: &GatewaySeen) -> Condition {
    if let Some(trouble) = &gateway.trouble {
        return no(GATEWAY_AVAILABLE, trouble.reason, trouble.message.clone());
    }
    let Poolers { wanted, ready, .. } = gateway.poolers.unwrap_or_default();
    let told = format!("{ready} of {wanted} poolers at {} take clients", gateway.address);
    match gateway.poolers {
        None => no(GATEWAY_AVAILABLE, reasons::STARTING, "there is no Deployment yet"),
        Some(Poolers { wanted: 0, .. }) => no(
            GATEWAY_AVAILABLE,
            reasons::GATEWAY_SCALED_TO_ZERO,
            "spec.gateway.replicas is 0, so there is no pooler and clients are refused at once; \
             scale it up with `kubectl scale connectionpool`, unless an autoscaler that went down to 0 does",
        ),
        Some(_) if ready == 0 => no(
            GATEWAY_AVAILABLE,
            reasons::GATEWAY_NOT_READY,
            format!("{told}; `kubectl describe pods` with the selector {} says what they wait for", gateway.selector),
        ),
        Some(_) if ready < wanted => yes(GATEWAY_AVAILABLE, reasons::GATEWAY_PARTLY_READY, told),
        Some(_) => yes(GATEWAY_AVAILABLE, reasons::GATEWAY_READY, told),
    }
}

/// A gateway's Deployment replaces its pods by itself.
fn gateway_current(observed: &Observed) -> Condition {
    let waiting: Vec<&PodSeen> = observed.pods.iter().filter(|pod| waits_for_restart(pod)).collect();
    match (old_pods(observed).count(), awaiting_restart(&waiting, observed.pods.len())) {
        (0, None) => yes(PODS_CURRENT, reasons::UP_TO_DATE, "every pod was created with what is in force now"),
        (0, Some(told)) => {
            let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
            let restart = restart(namespace, &owners(waiting.iter()));
            no(PODS_CURRENT, reasons::RESTART_REQUIRED, format!("{told}; {restart}"))
        }
        (old, _) => no(
            PODS_CURRENT,
            reasons::ROLLING_OUT,
            format!("{old} of {} pods were created with other values and are being replaced", observed.pods.len()),
        ),
    }
}

/// What creates pods anew.
fn restart(namespace: &str, owners: &[String]) -> String {
    let (rollouts, others): (Vec<&str>, Vec<&str>) =
        owners.iter().map(String::as_str).partition(|owner| owner.starts_with(ROLLOUT));
    let others = (!others.is_empty()).then(|| format!("kubectl -n {namespace} rollout restart {}", others.join(" ")));
    let rollouts = rollouts.iter().filter_map(|owner| owner.strip_prefix(ROLLOUT));
    let rollouts = rollouts.map(|name| format!("kubectl argo rollouts -n {namespace} restart {name}"));
    let commands: Vec<String> = others.into_iter().chain(rollouts).collect();
    if commands.is_empty() {
        "delete them, so that their controller creates them anew".to_owned()
    } else {
        format!("run: {}", commands.join("; "))
    }
}

/// Pods of which no container can be started, told with what their sidecars need.
fn failed_mount(observed: &Observed) -> Option<Condition> {
    let stuck = observed.pods.iter().filter(|pod| pod.phase == PodPhase::Running).filter_map(|pod| match pod.sidecar {
        SidecarSeen::NotStartable { since } => Some((pod, observed.now - since)),
        SidecarSeen::NotRunning | SidecarSeen::Running => None,
    });
    let stuck: Vec<(&PodSeen, i64)> = stuck.filter(|(_, seconds)| *seconds >= NOT_STARTABLE_AFTER_SECONDS).collect();
    let (pod, seconds) = stuck.first()?;
    let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
    let credentials = &observed.pool.spec.upstream.credentials_ref;
    let (user, password) = (credentials.username_key(), credentials.password_key());
    let mut secrets = format!("{} with the keys {user} and {password}", credentials.name);
    if let Ok(effective) = observed.effective {
        let ca = effective.pod.server_ca.iter().map(|ca| format!(", {} with the key {}", ca.name, ca.key));
        let certificates = effective.pod.upstream_certificate.iter().chain(&effective.pod.client_certificate);
        let certificates = certificates.map(|secret| format!(", {} with the keys tls.crt and tls.key", secret.name));
        secrets.extend(ca.chain(certificates));
    }
    Some(no(
        PROVEN,
        reasons::FAILED_MOUNT,
        format!(
            "in {} of {} pods no container can be started, in {} for {seconds} s: a volume cannot be mounted, or there is no \
             network; the sidecar needs these Secrets in namespace {namespace}: {secrets} (other keys are named in \
             spec.upstream.credentialsRef); `kubectl -n {namespace} describe pod {}` says what is missing",
            stuck.len(),
            observed.pods.len(),
            pod.name,
            pod.name,
        ),
    ))
}

fn proven(observed: &Observed, figures: &Figures) -> Condition {
    let pods = observed.pods.len();
    if let Some(condition) = failed_mount(observed) {
        return condition;
    }
    let unreachable: Vec<(&PodSeen, &String)> = observed
        .pods
        .iter()
        .filter(|pod| pod.sidecar == SidecarSeen::Running)
        .filter_map(|pod| match &pod.answer {
            AgentAnswer::Unreachable { since, error, .. } if observed.now - since >= UNREACHABLE_AFTER_SECONDS => {
                Some((pod, error))
            }
            _ => None,
        })
        .collect();
    if let Some((pod, error)) = unreachable.first() {
        return no(
            PROVEN,
            reasons::AGENT_UNREACHABLE,
            format!(
                "the agents of {} of {pods} pods do not answer, {} among them ({error}); if a NetworkPolicy or a strict mesh \
                 stands between, allow ingress from the operator's pods to TCP port {} of the pods with the label \
                 sluice.dev/pool; nothing grows on the strength of an unproven shrink",
                unreachable.len(),
                pod.name,
                pod.injection.as_ref().map_or(METRICS_PORT, |injection| injection.agent_port),
            ),
        );
    }
    let complaint = observed.pods.iter().find_map(|pod| match &pod.answer {
        AgentAnswer::Report(report) if !report.message.is_empty() => Some((pod, report.message.as_str())),
        _ => None,
    });
    let damaged = observed.pods.iter().find_map(|pod| match (&pod.grant, &pod.revision) {
        (Annotation::Unreadable { why, .. }, _) | (_, Annotation::Unreadable { why, .. }) => Some((pod, why.as_str())),
        _ => None,
    });
    if let Some(condition) = agent_outdated(observed).or_else(|| port_shared(observed)) {
        return condition;
    }
    if let Some((pod, why)) = complaint.or(damaged) {
        return no(PROVEN, reasons::NOT_APPLIED, format!("pod {}: {why}", pod.name));
    }
    if figures.proven < pods {
        return no(
            PROVEN,
            reasons::AWAITING_PROOF,
            format!("{} of {pods} pods are proven to run what they should", figures.proven),
        );
    }
    if pods == 0 {
        return yes(PROVEN, reasons::ALL_PROVEN, "there is no pod to ask");
    }
    let all = format!("all {pods} pods run what they should, read back from their poolers");
    let by_login =
        |pod: &&PodSeen| pod.answer.report().is_some_and(|report| report.proof == Some(ProofMode::ConnectOnly));
    match observed.pods.iter().filter(by_login).count() {
        0 => yes(PROVEN, reasons::ALL_PROVEN, all),
        some => yes(
            PROVEN,
            reasons::CONNECT_ONLY,
            format!(
                "{all}; in {some} of them a new process or new credentials prove themselves by a login alone, because \
                 spec.health.validationQuery is empty: a database that lets them in and answers nothing is not noticed"
            ),
        ),
    }
}

/// An agent that tells a revision as in force without having heard of all that it says.
fn agent_outdated(observed: &Observed) -> Option<Condition> {
    let name = observed.pool.metadata.name.as_deref().unwrap_or_default();
    let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
    let outdated: Vec<(&PodSeen, Vec<&'static str>)> = observed
        .pods
        .iter()
        .map(|pod| (pod, unknown_settings(pod, name)))
        .filter(|(_, names)| !names.is_empty())
        .collect();
    let (pod, names) = outdated.first()?;
    let mut owners: Vec<String> = outdated.iter().filter_map(|(pod, _)| pod.owner.clone()).collect();
    owners.sort();
    owners.dedup();
    owners.truncate(OWNERS);
    Some(no(
        PROVEN,
        reasons::AGENT_OUTDATED,
        format!(
            "the agents of {} of {} pods, {} among them, are of a version that does not know {} of the revision: it is not in force \
             there; {}",
            outdated.len(),
            observed.pods.len(),
            pod.name,
            names.join(", "),
            restart(namespace, &owners),
        ),
    ))
}

/// Another process listens where the pooler does: clients may come to it.
fn port_shared(observed: &Observed) -> Option<Condition> {
    let shared = troubles::reports(observed)
        .filter_map(|(pod, report)| report.foreign_listeners.as_ref().map(|listeners| (pod, listeners)));
    let pods = shared.clone().count();
    let (pod, ForeignListeners { address, sockets }) = shared.max_by_key(|(_, listeners)| listeners.sockets)?;
    let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
    let sockets = if *sockets == 1 { "a socket".to_owned() } else { format!("{sockets} sockets") };
    Some(no(
        PROVEN,
        reasons::PORT_SHARED,
        format!(
            "in {pods} of {} pods another process listens on the pooler's address too, in {} with {sockets} on {address}: clients \
             may come to it, past every limit, and no process of the pooler takes another's place until it has gone; `kubectl -n {namespace} \
             delete pod {}` ends it if a container that crashed has left it behind; if the next pod has it too, the application or an \
             image starts a pooler of its own there: stop it, or set spec.client.port",
            observed.pods.len(),
            pod.name,
            pod.name,
        ),
    ))
}

fn scaling_active(observed: &Observed) -> Condition {
    if observed.effective.is_err() {
        return no(SCALING_ACTIVE, reasons::NOT_ACCEPTED, "no target without a valid spec: see Accepted");
    }
    let Some(sizing) = observed.sizing else {
        return unknown(SCALING_ACTIVE, reasons::STARTING, "nothing has been decided since the operator started");
    };
    if let Some(trouble) = &sizing.trouble {
        return no(SCALING_ACTIVE, trouble.reason, trouble.message.clone());
    }
    let decision = &sizing.decision;
    if decision.reason.is_hold() {
        return no(SCALING_ACTIVE, decision.reason.as_str(), decision.message.clone());
    }
    match &sizing.alternation {
        Some(alternation) => {
            yes(SCALING_ACTIVE, reasons::SERVERS_ALTERNATE, format!("{}; {alternation}", decision.message))
        }
        None => yes(SCALING_ACTIVE, reasons::SIGNALS_FRESH, decision.message.clone()),
    }
}

fn able_to_scale(observed: &Observed) -> Condition {
    match (&observed.failure, observed.frozen(), observed.pool.spec.mode) {
        (_, Some(frozen), _) => {
            no(ABLE_TO_SCALE, frozen.reason(), format!("{}: nothing changes meanwhile", frozen.words()))
        }
        (_, _, Mode::Recommend) => no(
            ABLE_TO_SCALE,
            reasons::RECOMMEND_ONLY,
            "spec.mode is Recommend: the target is told and not put into force; set it to Apply for that",
        ),
        (Some(failure), ..) => no(
            ABLE_TO_SCALE,
            reasons::BACKOFF_AFTER_FAILURE,
            format!("the last change failed {} times in a row and is tried again: {}", failure.times, failure.error),
        ),
        _ => match failed_writes(observed) {
            Some(message) => no(ABLE_TO_SCALE, reasons::BACKOFF_AFTER_FAILURE, message),
            None => yes(ABLE_TO_SCALE, reasons::READY_FOR_CHANGE, "the last change was put into force"),
        },
    }
}

/// That single pods could not be written, told by the one that has failed most often.
fn failed_writes(observed: &Observed) -> Option<String> {
    let failed = observed.pods.iter().filter_map(|pod| Some((pod, pod.failure.as_ref()?)));
    let count = failed.clone().count();
    let (pod, worst) = failed.max_by_key(|(_, failure)| failure.times)?;
    Some(format!(
        "{count} of {} pods could not be written and are tried again, the others go on; {} failed {} times in a row: {}",
        observed.pods.len(),
        pod.name,
        worst.times,
        worst.error
    ))
}

fn scaling_limited(observed: &Observed, figures: &Figures) -> Condition {
    let Ok(effective) = observed.effective else {
        return unknown(SCALING_LIMITED, reasons::NOT_ACCEPTED, "no target without a valid spec: see Accepted");
    };
    if let Some(exceeded) = fixed_exceeds_max(observed, effective) {
        return exceeded;
    }
    match figures.shortage {
        Shortage::TooManyPods { waiting } => {
            return yes(
                SCALING_LIMITED,
                reasons::TOO_MANY_PODS,
                format!(
                    "maxAllowed {} is less than the number of pods: the {waiting} youngest have no connection and their \
                     clients queue; raise spec.scaling.maxAllowed or run fewer pods; a rolling update whose new pods wait so does not \
                     come further: it needs room for maxSurge more pods, or maxSurge 0",
                    effective.max_allowed,
                ),
            );
        }
        Shortage::FloorLowered { floor } => {
            return yes(
                SCALING_LIMITED,
                reasons::FLOOR_LOWERED,
                format!(
                    "floorPerPod {} times the number of pods exceeds maxAllowed {}: every pod has a floor of {floor} instead",
                    effective.floor_per_pod, effective.max_allowed,
                ),
            );
        }
        Shortage::None => {}
    }
    let limits = observed.sizing.map(|sizing| sizing.decision.limits.as_slice()).unwrap_or_default();
    let limit = limits
        .iter()
        .rev()
        .find(|limit| !limit.reason.is_hold() && !matches!(limit.reason, Reason::Paused | Reason::RecommendOnly));
    match limit {
        Some(limit) => yes(SCALING_LIMITED, limit.reason.as_str(), limit.message.clone()),
        None => no(SCALING_LIMITED, reasons::WITHIN_BOUNDS, "nothing keeps the target from what the load asks for"),
    }
}

/// In mode Recommend each pod has its limit, whatever the sum: nothing keeps it below the `maxAllowed` that somebody named.
fn fixed_exceeds_max(observed: &Observed, effective: &EffectivePool) -> Option<Condition> {
    let (limit_per_pod, max_allowed) = effective.fixed_limit_per_pod.zip(effective.named_max_allowed)?;
    let pods = observed.pods.iter().filter(|pod| pod.phase == PodPhase::Running).count();
    let together = u64::from(limit_per_pod) * u64::try_from(pods).unwrap_or(u64::MAX);
    (together > u64::from(max_allowed)).then(|| {
        let message = format!(
            "in mode Recommend each pod may open fixedLimitPerPod {limit_per_pod}, whatever the sum: {pods} pods may open {together} \
             together, and maxAllowed {max_allowed} bounds the recommendation alone; lower spec.scaling.fixedLimitPerPod, or set \
             spec.mode to Apply"
        );
        yes(SCALING_LIMITED, reasons::FIXED_EXCEEDS_MAX, message)
    })
}

/// Whether the database takes writes, as the agents find through their pools, and whether it lets them in.
fn upstream_healthy(observed: &Observed) -> Condition {
    let all: Vec<(&str, &UpstreamSeen)> = observed
        .pods
        .iter()
        .filter_map(|pod| match &pod.answer {
            AgentAnswer::Report(report) => Some((pod.name.as_str(), report.upstream.as_ref()?)),
            AgentAnswer::NotAsked | AgentAnswer::Unreachable { .. } => None,
        })
        .collect();
    let of = |state| all.iter().filter(move |(_, upstream)| upstream.state == state);
    // through whose pool nobody could ask says nothing either way
    let (unasked, silent): (Vec<_>, Vec<_>) =
        of(UpstreamState::Unknown).partition(|(_, upstream)| upstream.silent == Some(false));
    let (asked, read_only) = (all.len() - unasked.len(), of(UpstreamState::ReadOnly).count());
    if let Some((pod, upstream)) = of(UpstreamState::ReadOnly).next() {
        return no(
            UPSTREAM_HEALTHY,
            reasons::UPSTREAM_READ_ONLY,
            format!(
                "on {read_only} of {asked} pods, {pod} among them, {}; see that spec.upstream.host leads to the primary, or set \
                 spec.upstream.role to Any if none is needed",
                upstream.message
            ),
        );
    }
    if let Some(condition) = circuit_open(observed) {
        return condition;
    }
    if let Some(condition) = troubles::server_full(observed).or_else(|| troubles::server(observed)) {
        return condition;
    }
    match (silent.first(), of(UpstreamState::Primary).count()) {
        (Some((pod, upstream)), 0) => unknown(
            UPSTREAM_HEALTHY,
            reasons::UPSTREAM_SILENT,
            format!(
                "on {} of {asked} pods, {pod} among them: {}; nothing is held back for that",
                silent.len(),
                upstream.message
            ),
        ),
        (None, 0) => unknown(
            UPSTREAM_HEALTHY,
            reasons::NOT_OBSERVED,
            match unasked.first() {
                Some((pod, upstream)) => {
                    format!("on {} pods, {pod} among them: {}", unasked.len(), upstream.message)
                }
                None => "no agent asks the database: spec.upstream.role is Any, no pod is there, or the agents are of an earlier \
                         version"
                    .to_owned(),
            },
        ),
        (None, writes) => yes(
            UPSTREAM_HEALTHY,
            reasons::TAKES_WRITES,
            format!("the database takes writes, asked through {writes} pods"),
        ),
        (Some((pod, upstream)), writes) => yes(
            UPSTREAM_HEALTHY,
            reasons::TAKES_WRITES,
            format!(
                "the database takes writes, asked through {writes} of {asked} pods; on {}, {pod} among them: {}",
                silent.len(),
                upstream.message
            ),
        ),
    }
}

/// The database is away, and clients were told.
fn circuit_open(observed: &Observed) -> Option<Condition> {
    let all = troubles::reports(observed);
    let mut open = all.clone().filter_map(|(pod, report)| Some((pod, outage::is_told(report)?))).peekable();
    let (pod, circuit) = open.peek().map(|(pod, circuit)| (*pod, *circuit))?;
    let (pods, all) = (open.count(), all.count());
    let action = observed.effective.map(|effective| effective.settings.health.outage_action);
    let clients = match action {
        Ok(OutageAction::Queue) => "clients wait for it, because spec.health.outageAction is Queue",
        Ok(OutageAction::FailFast) | Err(_) => "clients are told within two seconds instead of waiting for it",
    };
    let sizes = if outage::is_everywhere(observed.pods.iter().map(|pod| pod.answer.heard())) {
        "sizes and rollouts stand still until it is back, and go on by themselves"
    } else {
        "rollouts stand still until it is back; the other pods follow their load"
    };
    Some(no(
        UPSTREAM_HEALTHY,
        reasons::CIRCUIT_OPEN,
        format!(
            "on {pods} of {all} pods, {} among them, the database is away ({}): {clients}; {sizes}; see the server, spec.upstream.host \
             and port, and what stands between",
            pod.name, circuit.why
        ),
    ))
}

/// Server connections held past the threshold by clients that do nothing, as Prometheus has them; None where nobody can tell.
fn leaked(observed: &Observed) -> Option<u32> {
    observed.sizing.and_then(|sizing| sizing.load).and_then(|load| load.leaked)
}

/// What agents that answer say of the leaked ones, added up, and the pod and client with the longest pinned one.
fn leak_kinds(observed: &Observed) -> (LeakKinds, Option<String>) {
    let mut sum = LeakKinds::default();
    let mut longest: Option<(u32, String)> = None;
    for pod in observed.pods {
        let Some(kinds) = said_of_leaks(pod) else { continue };
        sum.in_transaction = sum.in_transaction.saturating_add(kinds.in_transaction);
        sum.pinned = sum.pinned.saturating_add(kinds.pinned);
        sum.unclear = sum.unclear.saturating_add(kinds.unclear);
        sum.freed = sum.freed.saturating_add(kinds.freed);
        let seconds = kinds.longest_pinned_seconds.unwrap_or(0);
        if kinds.pinned > 0 && longest.as_ref().is_none_or(|(most, _)| seconds > *most) {
            let client = kinds.client.as_deref().unwrap_or("unknown");
            longest = Some((seconds, format!("for {seconds} s by client {client} of pod {}", pod.name)));
        }
    }
    (sum, longest.map(|(_, words)| words))
}

fn said_of_leaks(pod: &PodSeen) -> Option<&LeakKinds> {
    match &pod.answer {
        AgentAnswer::Report(report) => report.leaks.as_ref(),
        AgentAnswer::NotAsked | AgentAnswer::Unreachable { .. } => None,
    }
}

/// The pods whose agents may know more than they were asked for: more is leaked than all of them have told of, and these told of none.
pub(super) fn may_know_of_leaks(observed: &Observed) -> impl Fn(&PodSeen) -> bool {
    let untold = leaked(observed).is_some_and(|leaked| leaked > leak_kinds(observed).0.count());
    move |pod| untold && said_of_leaks(pod).is_none_or(|kinds| kinds.count() == 0)
}

fn leak_detected(observed: &Observed) -> Condition {
    let threshold = observed.effective.map_or(0, |effective| effective.settings.health.leak_threshold_seconds);
    let (kinds, longest) = leak_kinds(observed);
    let freed = match kinds.freed {
        0 => String::new(),
        freed => format!(
            "; {freed} that were pinned were freed for clients that waited, and their clients cut, since the agents began"
        ),
    };
    let Some(leaked) = leaked(observed) else {
        return unknown(
            LEAK_DETECTED,
            reasons::NOT_OBSERVED,
            "no agent can tell whether connections are held by clients that do nothing",
        );
    };
    if leaked == 0 {
        return no(
            LEAK_DETECTED,
            reasons::NO_LEAK,
            format!("no server connection has been held by a client that does nothing for {threshold} s{freed}"),
        );
    }
    let LeakKinds { in_transaction, pinned, .. } = kinds;
    // Prometheus has seen it, and no agent has told of it yet, or can
    let rest = leaked.saturating_sub(in_transaction).saturating_sub(pinned);
    let mut said = Vec::new();
    if in_transaction > 0 {
        said.push(format!(
            "{in_transaction} server connections have been held in a transaction that waits for its client for {threshold} s or \
             more: the application holds them without working; they do not count as demand; find them with: select pid, state, \
             query_start, query from pg_stat_activity where state like 'idle in transaction%' or (state = 'active' and \
             wait_event in ('ClientRead', 'ClientWrite'))"
        ));
    }
    if pinned > 0 {
        said.push(format!(
            "{pinned} pinned for {threshold} s or more: linked to a client, idle outside of a transaction, the longest {}; a COPY \
             of that client went past PgBouncer's account of it, see docs/operations.md on versions of PgBouncer; they do not \
             count as demand, and are freed when others wait",
            longest.unwrap_or_default(),
        ));
    }
    if rest > 0 {
        let why = match kinds.unclear.min(rest) {
            0 => String::new(),
            some => format!(" ({some} of them since their agents have no connection to ask the database by)"),
        };
        said.push(format!(
            "{rest} server connections have been held for {threshold} s or more by clients that do nothing, and it is not known \
             yet whether they are in a transaction or pinned after a COPY{why}; they do not count as demand"
        ));
    }
    let reason = match (in_transaction, pinned) {
        (1.., _) => reasons::IDLE_IN_TRANSACTION,
        (0, 1..) => reasons::PINNED_AFTER_COPY,
        (0, 0) => reasons::HELD_WITHOUT_WORK,
    };
    yes(LEAK_DETECTED, reason, format!("{}{freed}", said.join("; besides, ")))
}

/// Whether server connections were renewed as the spec asks for; None where it does not.
fn reconnected(observed: &Observed) -> Option<Condition> {
    let effective = observed.effective.ok()?;
    let at = effective.settings.reconnected_at.as_deref()?;
    let ahead_seconds = effective.reconnected_at_seconds? - observed.now;
    let name = observed.pool.metadata.name.as_deref().unwrap_or_default();
    let asks = |settings: &Settings| settings.reconnected_at.as_deref() == Some(at);
    let asked_since = observed.revisions.iter().filter(|revision| revision.settings.as_ref().is_some_and(asks));
    let asked_since = asked_since.map(|revision| revision.created).min();
    let done = |pod: &PodSeen| {
        let told = pod.answer.report()?.reconnected.clone()?;
        (told.at.as_str() >= at && told.remaining.is_some()).then_some(told)
    };
    // whoever began after it was asked for, or has not begun, has no older connection: it counts once its agent says so
    let may_have_older =
        |pod: &PodSeen| pod.sidecar == SidecarSeen::Running && asked_since.is_none_or(|since| pod.created <= since);
    let counted = observed.pods.iter().filter(|pod| pod.phase == PodPhase::Running);
    let counted: Vec<_> = counted.map(|pod| (pod, done(pod))).collect();
    let counted = || counted.iter().filter(|(pod, done)| done.is_some() || may_have_older(pod));
    // it runs a revision that asks for it, and does not say so
    let outdated = counted().filter(|(pod, _)| {
        let asked = pod.revision.last_known().and_then(|document| document.pools.get(name));
        let asked = asked.filter(|asked| asks(&asked.settings));
        let says_nothing = pod.answer.report().filter(|report| report.reconnected.is_none());
        says_nothing.is_some_and(|report| asked.is_some_and(|asked| report.revision == Some(asked.revision)))
    });
    let (pods, outdated) = (counted().count(), outdated.count());
    let done = || counted().filter_map(|(_, done)| done.as_ref());
    let told = done().count();
    let later = || done().map(|done| done.at.as_str()).filter(|done| *done > at);
    let remaining = done().fold(0, |sum: u32, done| sum.saturating_add(done.remaining.unwrap_or(0)));
    Some(if outdated > 0 {
        no(
            RECONNECTED,
            reasons::AGENT_OUTDATED,
            format!(
                "the agents of {outdated} of {pods} pods are of a version that does not know pgbouncer.reconnectedAt {at}: restart \
                 those pods, which renews their server connections too"
            ),
        )
    } else if let Some(latest) = later().max() {
        no(
            RECONNECTED,
            reasons::NOT_LATER,
            format!(
                "{} of {pods} pods have renewed their server connections for {latest} before, so they renew none for \
                 pgbouncer.reconnectedAt {at}, which is earlier; to renew them again, set a time later than {latest}",
                later().count()
            ),
        )
    } else if told < pods {
        no(
            RECONNECTED,
            reasons::RECONNECTING,
            format!(
                "for pgbouncer.reconnectedAt {at}, {told} of {pods} pods renew their server connections as transactions end; the \
                 others follow, a few at a time (rollout.canary.maxUnavailable)"
            ),
        )
    } else if remaining > 0 {
        no(
            RECONNECTED,
            reasons::AWAITING_TRANSACTIONS,
            format!(
                "for pgbouncer.reconnectedAt {at}, all {pods} pods have renewed their server connections but {remaining}, which \
                 work in transactions that began before, and end with them"
            ),
        )
    } else {
        let ahead = if ahead_seconds > CLOCKS_DIFFER_SECONDS {
            "pgbouncer.reconnectedAt lies ahead of now: connections were renewed when it was set, and no time before it renews any; "
        } else {
            ""
        };
        yes(
            RECONNECTED,
            reasons::ALL_RECONNECTED,
            format!(
                "{ahead}no server connection of {pods} pods is older than they were told for pgbouncer.reconnectedAt {at}"
            ),
        )
    })
}
