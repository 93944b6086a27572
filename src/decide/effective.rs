//! What is in force for a pool: the pool's own value, else its class's, else the built-in one.
//!
//! The schema has no defaults for these fields (`api`), so this is the only place where they are decided. What one object
//! alone makes wrong, the schema refuses; what the merge makes wrong is a [`PoolRefusal`], shown as `Accepted=False`.

use std::collections::BTreeMap;

use crate::{
    api::{
        AlgorithmSpec, AnalysisSpec, BehaviorPolicyType, BehaviorRules, BehaviorSelectPolicy, BehaviorSpec, BlueGreen,
        BypassAction, CanaryStep, ClientSpec, ClientTlsModeSpec, ConnectionPoolClass, ConnectionPoolClassSpec,
        ConnectionPoolSpec, EnvTemplate, HealthSpec, IS_DEFAULT_CLASS_ANNOTATION, LocalReaction, MetricsSpec, Mode,
        OutageActionSpec, PgBouncerPoolMode, PgBouncerSpec, ResourceAmounts, Role, RolloutSpec, ScalingSpec,
        SecretKeyRef, SecretRef, ServerTlsModeSpec, ServerTlsSpec, SidecarReadiness, SidecarResources, Topology,
        reasons,
    },
    contract::{
        Algorithm, Behavior, ClientTlsMode, HealthSettings, LimitSource, Objective, OutageAction, PoolMode, Reach,
        RolloutSettings, ScalingPolicy, ScalingPolicyType, ScalingRules, ScalingSettings, SelectPolicy, ServerTlsMode,
        SessionAlias, Settings, UpstreamRole, names::METRICS_PORT,
    },
    decide::{
        analysis::{AnalysisPhase, RolloutAnalysis},
        behavior::default_for,
        rollout::{DEFAULT_STEPS, JUDGED_STEPS, RolloutStep},
    },
};

/// Classes that a refusal names.
const NAMED_CLASSES: usize = 10;

/// What is in force for a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectivePool {
    /// Name and generation of the class that was merged in.
    pub class: Option<(String, Option<i64>)>,
    /// Least target of the whole pool, in server connections.
    pub min_allowed: u32,
    /// Greatest target of the whole pool, in server connections.
    pub max_allowed: u32,
    /// The same where pool or class name it; the built-in one promises nothing in mode Recommend, which it does not bound.
    pub named_max_allowed: Option<u32>,
    /// What every pod may always hold, in server connections.
    pub floor_per_pod: u32,
    /// The limit of every pod: `Some` in mode Recommend, and only there.
    pub fixed_limit_per_pod: Option<u32>,
    /// What a revision says.
    pub settings: Settings,
    /// `reconnectedAt` of the settings, in Unix seconds.
    pub reconnected_at_seconds: Option<i64>,
    /// How a revision goes over the pods.
    pub rollout: RolloutStrategy,
    /// What is done about applications that are connected past their poolers.
    pub bypass: BypassAction,
    /// Where the load is read.
    pub metrics: MetricsSpec,
    /// What is fixed when a pod is created.
    pub pod: PodBound,
    /// Fields that are set and have no effect in this version, and where they are set. The schema refuses them; these were stored
    /// before it did.
    pub not_supported: Vec<String>,
}

impl EffectivePool {
    /// The target before the first decision of this process, in server connections of the whole pool: what was recommended last, else the
    /// sum of the shares that the pods have, else the least.
    pub fn target_before(&self, recommended: Option<u32>, shares: u32) -> u32 {
        let before = recommended.or((shares > 0).then_some(shares)).unwrap_or(self.min_allowed);
        before.clamp(self.min_allowed, self.max_allowed)
    }

    /// Whether the pool has queries of its own and each agent sees to its limit itself, so that they move the recommendation alone.
    pub fn overrides_move_no_limit(&self) -> bool {
        !self.metrics.overrides.is_empty() && self.settings.scaling.limit_source == LimitSource::LocalReaction
    }
}

/// How a revision goes over the pods.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutStrategy {
    /// The steps; the built-in ones where none are named. With an analysis at least one waits for it.
    pub steps: Vec<RolloutStep>,
    /// Whether these are the built-in ones, which nobody has to know of.
    pub are_built_in: bool,
    /// What decides whether it goes on; None: that the pods prove it.
    pub analysis: Option<RolloutAnalysis>,
    /// What decides whether it stays once it was promoted; None: that it was.
    pub post_promotion: Option<RolloutAnalysis>,
    /// Running pods that may be in change at once.
    pub max_unavailable: u32,
    /// Seconds without progress after which a revision counts as failed.
    pub progress_deadline_seconds: u32,
    /// Revisions that are kept.
    pub revision_history_limit: u32,
}

/// What is fixed when a pod is created: a change reaches running pods by their restart only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodBound {
    /// From where clients reach the pooler.
    pub reach: Reach,
    /// TCP port of the pooler.
    pub client_port: u16,
    /// Most client connections of one pod.
    pub max_client_connections: u32,
    /// Environment of the application's containers.
    pub env: Vec<EnvTemplate>,
    /// TLS towards the database.
    pub server_tls: ServerTlsMode,
    /// CA bundle for it.
    pub server_ca: Option<SecretKeyRef>,
    /// Certificate and key that the database is shown.
    pub upstream_certificate: Option<SecretRef>,
    /// Image of the pooler; none: the operator's default.
    pub pgbouncer_image: Option<String>,
    /// TLS between application and pooler.
    pub client_tls: ClientTlsMode,
    /// Certificate and key for it.
    pub client_certificate: Option<SecretRef>,
    /// Requests and limits of the sidecar.
    pub resources: SidecarResources,
    /// TCP port of the agent.
    pub agent_port: u16,
    /// Whether the pod is ready without a share.
    pub readiness: SidecarReadiness,
}

/// Why a pool cannot be put into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRefusal {
    /// Reason of the condition `Accepted`.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
}

/// The class of a pool: the one that it names, else the default class; of several default classes the oldest.
///
/// # Errors
/// [`PoolRefusal`] `ClassNotFound` when the pool names a class that does not exist.
pub fn class_of<'a>(
    pool: &ConnectionPoolSpec,
    classes: impl IntoIterator<Item = &'a ConnectionPoolClass>,
) -> Result<Option<&'a ConnectionPoolClass>, PoolRefusal> {
    let name_of = |class: &ConnectionPoolClass| class.metadata.name.clone().unwrap_or_default();
    if let Some(wanted) = &pool.class_ref {
        let classes: Vec<&ConnectionPoolClass> = classes.into_iter().collect();
        let found = classes.iter().find(|class| name_of(class) == wanted.name);
        return found.map(|class| Some(*class)).ok_or_else(|| PoolRefusal {
            reason: "ClassNotFound",
            message: format!(
                "spec.classRef.name: no ConnectionPoolClass {:?}; {}",
                wanted.name,
                instead_of(classes.iter().map(|class| name_of(class)).collect())
            ),
        });
    }
    Ok(classes
        .into_iter()
        .filter(|class| {
            let annotations = class.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(IS_DEFAULT_CLASS_ANNOTATION)).is_some_and(|value| value == "true")
        })
        .min_by_key(|class| (class.metadata.creation_timestamp.clone().map(|time| time.0), name_of(class))))
}

/// What to do where a class does not exist. The names of those that do are said: classes are the cluster's, and who may write a
/// pool in his namespace need not be allowed to list them.
fn instead_of(mut classes: Vec<String>) -> String {
    if classes.is_empty() {
        return "there is no class in this cluster: leave it out, or let the administrator create it".to_owned();
    }
    classes.sort();
    let more = match classes.len().saturating_sub(NAMED_CLASSES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    classes.truncate(NAMED_CLASSES);
    format!("name one of {}{more}, or let the administrator create it", classes.join(", "))
}

/// Merges a pool, its class and the built-in values.
///
/// # Errors
/// [`PoolRefusal`] when the merged values contradict each other.
pub fn effective(pool: &ConnectionPoolSpec, class: Option<&ConnectionPoolClass>) -> Result<EffectivePool, PoolRefusal> {
    let none = ConnectionPoolClassSpec::default();
    let class_spec = class.map_or(&none, |class| &class.spec);

    let scaling = Layers::new(pool.scaling.as_ref(), class_spec.scaling.as_ref());
    let min_allowed = scaling.get(|s| s.min_allowed).unwrap_or(5);
    let max_allowed = scaling.get(|s| s.max_allowed).unwrap_or(100);
    let pgbouncer = Layers::new(pool.pgbouncer.as_ref(), class_spec.pgbouncer.as_ref());
    let session_alias = session_alias(&pgbouncer);
    let for_sessions = session_alias.as_ref().map_or(0, |alias| alias.connections);
    let floor_per_pod = scaling.get(|s| s.floor_per_pod).unwrap_or(for_sessions + 1);
    if min_allowed > max_allowed {
        return Err(PoolRefusal {
            reason: "InvalidBounds",
            message: format!(
                "minAllowed {min_allowed} ({}) exceeds maxAllowed {max_allowed} ({}); raise spec.scaling.maxAllowed or lower spec.scaling.minAllowed",
                scaling.origin(|s| s.min_allowed),
                scaling.origin(|s| s.max_allowed),
            ),
        });
    }
    if floor_per_pod > max_allowed {
        return Err(PoolRefusal {
            reason: "InvalidBounds",
            message: format!(
                "floorPerPod {floor_per_pod} exceeds maxAllowed {max_allowed}: not even one pod could have its floor; lower spec.scaling.floorPerPod"
            ),
        });
    }
    let fixed_limit_per_pod = scaling.get(|s| s.fixed_limit_per_pod).filter(|_| pool.mode == Mode::Recommend);
    let of_pod = [("floorPerPod", Some(floor_per_pod)), ("fixedLimitPerPod", fixed_limit_per_pod)];
    if let Some((field, of_pod)) = of_pod.into_iter().find(|(_, of_pod)| of_pod.is_some_and(|n| n <= for_sessions)) {
        return Err(nothing_beside_sessions(field, of_pod.unwrap_or_default(), for_sessions, &pgbouncer));
    }
    let (reconnected_at_seconds, reconnected_at) = reconnected_at(&pgbouncer).unzip();
    let rollout = Layers::new(pool.rollout.as_ref(), class_spec.rollout.as_ref());
    let health = Layers::new(pool.health.as_ref(), class_spec.health.as_ref());
    let settings = Settings {
        session_alias,
        pool_mode: pool_mode(&pgbouncer),
        role: match pool.upstream.role {
            Role::Primary => UpstreamRole::Primary,
            Role::Any => UpstreamRole::Any,
        },
        parameters: parameters(&pgbouncer),
        reconnected_at,
        health: health_settings(&health),
        scaling: scaling_settings(
            pool.mode,
            &scaling,
            &Layers::new(pool.behavior.as_ref(), class_spec.behavior.as_ref()),
        )?,
        rollout: blue_green(&rollout.within(|rollout| rollout.blue_green.as_ref())),
    };
    if settings.pool_mode == PoolMode::Session && settings.scaling.algorithm == Algorithm::Adaptive {
        return Err(PoolRefusal {
            reason: "AdaptiveNeedsTransactionMode",
            message:
                "pgbouncer.poolMode session keeps a server connection for an idle client, so transaction time says \
                      nothing about demand; set spec.scaling.algorithm to TargetUtilization, or poolMode to transaction"
                    .to_owned(),
        });
    }
    if pool.topology == Topology::External {
        return Err(PoolRefusal {
            reason: reasons::NOT_SUPPORTED,
            message: "spec.topology: this version does not support External; create the pool with topology Sidecar or Gateway"
                .to_owned(),
        });
    }
    let pod = pod_bound(pool, class_spec, &pgbouncer);
    refuse_clashes(pool, &pod)?;
    Ok(EffectivePool {
        class: class.map(|class| (class.metadata.name.clone().unwrap_or_default(), class.metadata.generation)),
        min_allowed,
        max_allowed,
        named_max_allowed: scaling.get(|s| s.max_allowed),
        floor_per_pod,
        fixed_limit_per_pod,
        settings,
        reconnected_at_seconds,
        rollout: rollout_strategy(&rollout)?,
        bypass: health.get(|health| health.bypass_action).unwrap_or(BypassAction::Report),
        metrics: metrics(&scaling),
        pod,
        not_supported: not_supported(pool),
    })
}

/// Addresses at which two would meet.
fn refuse_clashes(pool: &ConnectionPoolSpec, pod: &PodBound) -> Result<(), PoolRefusal> {
    let refuse = |reason: &'static str, message: String| Err(PoolRefusal { reason, message });
    let (host, port) = (&pool.upstream.host, pool.upstream.port);
    if pool.topology == Topology::Gateway && is_loopback(host) {
        let message = "means the pooler's own pod, where no database is; name the database's address";
        return refuse("UpstreamIsThePooler", format!("spec.upstream.host {host} {message}"));
    }
    if pod.client_port == pod.agent_port {
        let message = "is the port of the agent too; set spec.sidecar.agentPort or spec.client.port to another";
        return refuse("PortTaken", format!("spec.client.port {} {message}", pod.client_port));
    }
    if pod.client_port == port && is_loopback(host) {
        let message =
            "is the address at which the pooler itself listens in the pod; set spec.client.port to another port";
        return refuse("UpstreamIsThePooler", format!("spec.upstream {host}:{port} {message}"));
    }
    Ok(())
}

/// The fields that are set and do nothing.
fn not_supported(pool: &ConnectionPoolSpec) -> Vec<String> {
    pool.sharing.iter().map(|_| "spec.sharing (from the pool)".to_owned()).collect()
}

/// A database behind the pod's own loopback: a proxy beside the application.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.starts_with("127.")
}

/// The two places that a value can come from.
struct Layers<'a, T> {
    pool: Option<&'a T>,
    class: Option<&'a T>,
}

impl<'a, T> Layers<'a, T> {
    const fn new(pool: Option<&'a T>, class: Option<&'a T>) -> Self {
        Self { pool, class }
    }

    fn get<V>(&self, field: impl Fn(&'a T) -> Option<V>) -> Option<V> {
        self.pool.and_then(&field).or_else(|| self.class.and_then(&field))
    }

    fn origin<V>(&self, field: impl Fn(&'a T) -> Option<V>) -> &'static str {
        if self.pool.and_then(&field).is_some() {
            "from the pool"
        } else if self.class.and_then(&field).is_some() {
            "from its class"
        } else {
            "built in"
        }
    }

    fn within<U>(&self, group: impl Fn(&'a T) -> Option<&'a U>) -> Layers<'a, U> {
        Layers { pool: self.pool.and_then(&group), class: self.class.and_then(&group) }
    }
}

fn pool_mode(pgbouncer: &Layers<'_, PgBouncerSpec>) -> PoolMode {
    match pgbouncer.get(|p| p.pool_mode) {
        Some(PgBouncerPoolMode::Session) => PoolMode::Session,
        Some(PgBouncerPoolMode::Transaction) | None => PoolMode::Transaction,
    }
}

fn nothing_beside_sessions(
    field: &str,
    of_pod: u32,
    for_sessions: u32,
    pgbouncer: &Layers<'_, PgBouncerSpec>,
) -> PoolRefusal {
    PoolRefusal {
        reason: "InvalidBounds",
        message: format!(
            "scaling.{field} {of_pod} leaves a pod nothing beside the {for_sessions} server connections of \
             pgbouncer.sessionAlias ({}); raise spec.scaling.{field} to {} or more",
            pgbouncer.origin(|p| p.session_alias.as_ref()),
            for_sessions + 1
        ),
    }
}

fn session_alias(pgbouncer: &Layers<'_, PgBouncerSpec>) -> Option<SessionAlias> {
    let alias = pgbouncer.get(|p| p.session_alias.as_ref())?;
    Some(SessionAlias { database: alias.database.clone(), connections: alias.connections })
}

/// The later of both, so that neither takes back what the other asked for.
fn reconnected_at(pgbouncer: &Layers<'_, PgBouncerSpec>) -> Option<(i64, String)> {
    let at = |spec: Option<&PgBouncerSpec>| {
        let time = &spec?.reconnected_at.as_ref()?.0;
        Some((time.as_second(), time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()))
    };
    at(pgbouncer.pool).max(at(pgbouncer.class))
}

fn parameters(pgbouncer: &Layers<'_, PgBouncerSpec>) -> BTreeMap<String, String> {
    let layer = |spec: Option<&PgBouncerSpec>| spec.map(|p| p.parameters.clone()).unwrap_or_default();
    let mut merged = layer(pgbouncer.class);
    merged.extend(layer(pgbouncer.pool));
    merged
}

fn health_settings(health: &Layers<'_, HealthSpec>) -> HealthSettings {
    HealthSettings {
        validation_query: health.get(|h| h.validation_query.clone()).unwrap_or_else(|| "select 1".to_owned()),
        period_seconds: health.get(|h| h.period_seconds).unwrap_or(10),
        query_wait_timeout_seconds: health.get(|h| h.query_wait_timeout_seconds).unwrap_or(30),
        leak_threshold_seconds: health.get(|h| h.leak_threshold_seconds).unwrap_or(300),
        outage_action: match health.get(|h| h.outage_action) {
            None | Some(OutageActionSpec::FailFast) => OutageAction::FailFast,
            Some(OutageActionSpec::Queue) => OutageAction::Queue,
        },
    }
}

fn rollout_strategy(rollout: &Layers<'_, RolloutSpec>) -> Result<RolloutStrategy, PoolRefusal> {
    let canary = rollout.within(|rollout| rollout.canary.as_ref());
    let refuse = |message: String| PoolRefusal { reason: "InvalidAnalysis", message };
    let asked = rollout.within(|rollout| rollout.analysis.as_ref());
    let analysis = rollout_analysis(&asked, AnalysisPhase::Canary).map_err(refuse)?;
    let asked = rollout.within(|rollout| rollout.post_promotion_analysis.as_ref());
    let post_promotion = rollout_analysis(&asked, AnalysisPhase::PostPromotion).map_err(refuse)?;
    let named = canary.get(|canary| canary.steps.as_ref());
    let mut steps: Vec<RolloutStep> = match named {
        Some(named) => named.iter().flat_map(rollout_steps).collect(),
        None if analysis.is_some() => JUDGED_STEPS.to_vec(),
        None => DEFAULT_STEPS.to_vec(),
    };
    let weighs = |step: &RolloutStep| matches!(step, RolloutStep::OnePod | RolloutStep::SetWeight { .. });
    let first_weight = steps.iter().position(weighs);
    let origin = || canary.origin(|canary| canary.steps.as_ref().map(drop));
    match (&analysis, steps.iter().position(|step| *step == RolloutStep::Analysis)) {
        (None, Some(_)) => {
            return Err(refuse(format!(
                "spec.rollout.canary.steps ({}) wait for an analysis, and there is none: set spec.rollout.analysis.metrics, or take a pause{}",
                origin(),
                if post_promotion.is_some() { "; postPromotionAnalysis judges behind the last step" } else { "" }
            )));
        }
        (Some(_), Some(first)) if first_weight.is_none_or(|weight| first < weight) => {
            return Err(refuse(format!(
                "spec.rollout.canary.steps[{first}] ({}) waits for an analysis before any pod runs the revision, and would never end: put a \
                 setWeight before it",
                origin()
            )));
        }
        // nothing is promoted that was not proven
        (Some(_), None) => {
            steps.extend(first_weight.is_none().then_some(RolloutStep::SetWeight { percent: 100 }));
            steps.push(RolloutStep::Analysis);
        }
        _ => {}
    }
    let progress_deadline_seconds = rollout.get(|rollout| rollout.progress_deadline_seconds).unwrap_or(600);
    let origin = rollout.origin(|rollout| rollout.progress_deadline_seconds);
    for (analysis, judged_before) in [(&analysis, judged_pauses(&steps)), (&post_promotion, 0)] {
        let Some(analysis) = analysis else { continue };
        let least = analysis.least_seconds().saturating_sub(judged_before);
        if progress_deadline_seconds < least {
            let pauses = if judged_before > 0 {
                format!(", less the {judged_before} s of pauses before")
            } else {
                String::new()
            };
            return Err(refuse(format!(
                "spec.rollout.progressDeadlineSeconds {progress_deadline_seconds} ({origin}) is over before {} can know: that takes {least} s \
                 at the least ({}{pauses}), and every revision would go back undecided or stay unknown; set it to {least} or more",
                analysis.phase().field(),
                analysis.least_words(),
            )));
        }
    }
    Ok(RolloutStrategy {
        steps,
        are_built_in: named.is_none(),
        analysis,
        post_promotion,
        max_unavailable: canary.get(|canary| canary.max_unavailable).unwrap_or(1),
        progress_deadline_seconds,
        revision_history_limit: rollout.get(|rollout| rollout.revision_history_limit).unwrap_or(10),
    })
}

/// Seconds of pauses in which a revision is judged before a step waits for that; a pause that somebody ends may be none.
fn judged_pauses(steps: &[RolloutStep]) -> u32 {
    let is_weight = |step: &&RolloutStep| matches!(step, RolloutStep::OnePod | RolloutStep::SetWeight { .. });
    let judged = steps.iter().skip_while(|step| !is_weight(step)).take_while(|step| **step != RolloutStep::Analysis);
    let seconds = judged.filter_map(|step| match step {
        RolloutStep::Pause { seconds } => *seconds,
        _ => None,
    });
    seconds.fold(0, u32::saturating_add)
}

/// The analysis of a phase that pool or class ask for.
fn rollout_analysis(asked: &Layers<'_, AnalysisSpec>, phase: AnalysisPhase) -> Result<Option<RolloutAnalysis>, String> {
    let metrics = |analysis: &AnalysisSpec| (!analysis.metrics.is_empty()).then(|| analysis.metrics.clone());
    if asked.pool.is_none() && asked.class.is_none() {
        return Ok(None);
    }
    let spec = AnalysisSpec {
        metrics: asked.get(metrics).unwrap_or_default(),
        min_transactions: asked.get(|analysis| analysis.min_transactions),
        planned_exposure_seconds: asked.get(|analysis| analysis.planned_exposure_seconds),
        max_exposure_seconds: asked.get(|analysis| analysis.max_exposure_seconds),
    };
    let analysis = RolloutAnalysis::of(&spec, phase);
    analysis.map(Some).map_err(|problem| format!("{problem} ({})", asked.origin(metrics)))
}

/// What one step of the spec says, in the order in which it holds.
fn rollout_steps(step: &CanaryStep) -> impl Iterator<Item = RolloutStep> {
    let weight = step.set_weight.map(|percent| RolloutStep::SetWeight { percent });
    let pause = step.pause.as_ref().map(|pause| RolloutStep::Pause { seconds: pause.seconds() });
    weight.into_iter().chain(pause).chain(step.analysis.map(|_| RolloutStep::Analysis))
}

/// Of the queries of both, the pool's for a signal that it names too.
fn metrics(scaling: &Layers<'_, ScalingSpec>) -> MetricsSpec {
    let metrics = scaling.within(|scaling| scaling.metrics.as_ref());
    let layers = [metrics.class, metrics.pool].into_iter().flatten();
    let by_signal: BTreeMap<_, _> =
        layers.flat_map(|metrics| &metrics.overrides).map(|replaced| (replaced.signal, replaced.clone())).collect();
    MetricsSpec {
        prometheus_ref: metrics.get(|metrics| metrics.prometheus_ref.clone()),
        overrides: by_signal.into_values().collect(),
    }
}

fn blue_green(blue_green: &Layers<'_, BlueGreen>) -> RolloutSettings {
    let default = RolloutSettings::default();
    RolloutSettings {
        auto_promotion_enabled: blue_green.get(|b| b.auto_promotion_enabled).unwrap_or(default.auto_promotion_enabled),
        scale_down_delay_seconds: blue_green
            .get(|b| b.scale_down_delay_seconds)
            .unwrap_or(default.scale_down_delay_seconds),
        drain_timeout_seconds: blue_green.get(|b| b.drain_timeout_seconds).unwrap_or(default.drain_timeout_seconds),
    }
}

fn scaling_settings(
    mode: Mode,
    scaling: &Layers<'_, ScalingSpec>,
    behavior: &Layers<'_, BehaviorSpec>,
) -> Result<ScalingSettings, PoolRefusal> {
    let algorithm = match scaling.get(|s| s.algorithm) {
        Some(AlgorithmSpec::Adaptive) | None => Algorithm::Adaptive,
        Some(AlgorithmSpec::TargetUtilization) => Algorithm::TargetUtilization,
        Some(AlgorithmSpec::LoadFactor) => Algorithm::LoadFactor,
    };
    let built_in = default_for(algorithm);
    let objective = scaling.within(|s| s.objective.as_ref());
    let percent = objective.get(|o| o.max_waiting_percent.as_deref()).unwrap_or("1");
    Ok(ScalingSettings {
        algorithm,
        limit_source: match (mode, scaling.get(|s| s.local_reaction)) {
            (Mode::Recommend, _) | (Mode::Apply, Some(LocalReaction::Disabled)) => LimitSource::Share,
            (Mode::Apply, Some(LocalReaction::Enabled) | None) => LimitSource::LocalReaction,
        },
        objective: Objective {
            wait_milliseconds: objective.get(|o| o.wait_milliseconds).unwrap_or(20),
            max_waiting_percent: decimal("scaling.objective.maxWaitingPercent", percent)?,
        },
        target_utilization_percent: scaling.get(|s| s.target_utilization_percent).unwrap_or(70),
        behavior: merged_behavior(behavior, built_in)?,
    })
}

/// What a `behavior` says, over the algorithm's own.
///
/// # Errors
/// [`PoolRefusal`] names what is no number.
pub fn behavior(spec: &BehaviorSpec, built_in: Behavior) -> Result<Behavior, PoolRefusal> {
    merged_behavior(&Layers::new(Some(spec), None), built_in)
}

fn merged_behavior(behavior: &Layers<'_, BehaviorSpec>, built_in: Behavior) -> Result<Behavior, PoolRefusal> {
    Ok(Behavior {
        scale_up: rules("scaleUp", &behavior.within(|b| b.scale_up.as_ref()), built_in.scale_up)?,
        scale_down: rules("scaleDown", &behavior.within(|b| b.scale_down.as_ref()), built_in.scale_down)?,
    })
}

fn rules(
    direction: &str,
    layers: &Layers<'_, BehaviorRules>,
    built_in: ScalingRules,
) -> Result<ScalingRules, PoolRefusal> {
    let policies = layers.get(|r| r.policies.as_ref()).map(|policies| {
        let resolved = policies.iter().map(|policy| ScalingPolicy {
            type_: match policy.type_ {
                BehaviorPolicyType::Connections => ScalingPolicyType::Connections,
                BehaviorPolicyType::Percent => ScalingPolicyType::Percent,
            },
            value: policy.value,
            period_seconds: policy.period_seconds,
        });
        resolved.collect()
    });
    let tolerance = layers.get(|r| r.tolerance.as_deref());
    Ok(ScalingRules {
        stabilization_window_seconds: layers
            .get(|r| r.stabilization_window_seconds)
            .unwrap_or(built_in.stabilization_window_seconds),
        select_policy: match layers.get(|r| r.select_policy) {
            Some(BehaviorSelectPolicy::Max) => SelectPolicy::Max,
            Some(BehaviorSelectPolicy::Min) => SelectPolicy::Min,
            Some(BehaviorSelectPolicy::Disabled) => SelectPolicy::Disabled,
            None => built_in.select_policy,
        },
        policies: policies.unwrap_or(built_in.policies),
        tolerance: match tolerance {
            Some(text) => decimal(&format!("behavior.{direction}.tolerance"), text)?,
            None => built_in.tolerance,
        },
    })
}

/// A decimal that the API carries as a string, because the API conventions forbid floating point.
fn decimal(field: &str, text: &str) -> Result<f64, PoolRefusal> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0).ok_or_else(|| PoolRefusal {
        reason: "InvalidNumber",
        message: format!("spec.{field}: {text:?} is not a decimal number; write it like \"0.05\""),
    })
}

fn pod_bound(
    pool: &ConnectionPoolSpec,
    class: &ConnectionPoolClassSpec,
    pgbouncer: &Layers<'_, PgBouncerSpec>,
) -> PodBound {
    let client: Layers<'_, ClientSpec> = Layers::new(pool.client.as_ref(), class.client.as_ref());
    let class_tls = class.upstream.as_ref().and_then(|upstream| upstream.tls.as_ref());
    let tls: Layers<'_, ServerTlsSpec> = Layers::new(pool.upstream.tls.as_ref(), class_tls);
    let server_tls = match tls.get(|tls| Some(tls.mode)) {
        Some(ServerTlsModeSpec::Disabled) => ServerTlsMode::Disabled,
        Some(ServerTlsModeSpec::Require) => ServerTlsMode::Require,
        Some(ServerTlsModeSpec::VerifyCa) => ServerTlsMode::VerifyCa,
        Some(ServerTlsModeSpec::VerifyFull) | None => ServerTlsMode::VerifyFull,
    };
    let sidecar = Layers::new(pool.sidecar.as_ref(), class.sidecar.as_ref());
    let resources = sidecar.within(|sidecar| sidecar.resources.as_ref());
    let amounts = |layers: Layers<'_, ResourceAmounts>, cpu: Option<&str>, memory: &str| ResourceAmounts {
        cpu: layers.get(|a| a.cpu.clone()).or_else(|| cpu.map(str::to_owned)),
        memory: Some(layers.get(|a| a.memory.clone()).unwrap_or_else(|| memory.to_owned())),
    };
    let reach = if pool.topology == Topology::Gateway { Reach::Network } else { Reach::Pod };
    let client_tls = client.get(|c| c.tls.as_ref());
    let client_tls_mode = match client_tls.map(|tls| tls.mode) {
        Some(ClientTlsModeSpec::Allow) => ClientTlsMode::Allow,
        Some(ClientTlsModeSpec::Require) => ClientTlsMode::Require,
        Some(ClientTlsModeSpec::Disabled) | None => ClientTlsMode::Disabled,
    };
    PodBound {
        reach,
        client_port: client.get(|c| c.port).unwrap_or(pool.upstream.port),
        max_client_connections: client.get(|c| c.max_connections).unwrap_or(1000),
        // a gateway's pods hold no application
        env: match reach {
            Reach::Pod => client.get(|c| c.env.clone()).unwrap_or_else(|| default_env(client_tls_mode)),
            Reach::Network => Vec::new(),
        },
        server_tls,
        // what the class names may have no use in the mode of the pool
        server_ca: tls
            .get(|tls| tls.ca_ref.clone())
            .filter(|_| matches!(server_tls, ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull)),
        upstream_certificate: tls
            .get(|tls| tls.client_cert_ref.clone())
            .filter(|_| server_tls != ServerTlsMode::Disabled),
        pgbouncer_image: pgbouncer.get(|p| p.image.clone()).filter(|image| !image.is_empty()),
        client_tls: client_tls_mode,
        client_certificate: client_tls.and_then(|tls| tls.certificate_ref.clone()),
        resources: SidecarResources {
            requests: Some(amounts(resources.within(|r| r.requests.as_ref()), Some("10m"), "32Mi")),
            limits: Some(amounts(resources.within(|r| r.limits.as_ref()), None, "64Mi")),
        },
        agent_port: sidecar.get(|sidecar| sidecar.agent_port).unwrap_or(METRICS_PORT),
        readiness: match reach {
            Reach::Pod => sidecar.get(|sidecar| sidecar.readiness).unwrap_or(SidecarReadiness::Independent),
            // its pods are ready with a share alone, whatever the class says
            Reach::Network => SidecarReadiness::Independent,
        },
    }
}

/// What libpq reads: the application finds the pooler without a change of its code.
fn default_env(tls: ClientTlsMode) -> Vec<EnvTemplate> {
    let ssl_mode = match tls {
        ClientTlsMode::Disabled => "disable",
        ClientTlsMode::Allow => "prefer",
        ClientTlsMode::Require => "require",
    };
    [("PGHOST", "{host}"), ("PGPORT", "{port}"), ("PGSSLMODE", ssl_mode)]
        .map(|(name, template)| EnvTemplate { name: name.to_owned(), template: template.to_owned() })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::rollout::settings_hash;

    fn pool(extra: &str) -> ConnectionPoolSpec {
        serde_yaml::from_str(&format!(
            "workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n\
             upstream: {{host: pg, database: shop, credentialsRef: {{name: shop-db}}}}\n{extra}"
        ))
        .expect("the fixture is a pool")
    }

    fn class(spec: &str) -> ConnectionPoolClass {
        serde_yaml::from_str(&format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPoolClass\nmetadata: {{name: production, generation: 2}}\nspec: {spec}"
        ))
        .expect("the fixture is a class")
    }

    #[test]
    fn a_pool_alone_gets_the_built_in_values() {
        let merged = effective(&pool("mode: Apply"), None).expect("accepted");
        assert_eq!((merged.min_allowed, merged.max_allowed, merged.floor_per_pod), (5, 100, 1));
        assert_eq!(merged.settings.scaling.algorithm, Algorithm::Adaptive);
        assert_eq!(merged.settings.scaling.limit_source, LimitSource::LocalReaction);
        assert_eq!(merged.pod.server_tls, ServerTlsMode::VerifyFull, "nothing falls back to plain text unasked");
        assert_eq!(merged.pod.client_port, 5432);
    }

    /// Where this snapshot changes, the next version makes a new revision of every pool of every user as soon as its operator starts, and
    /// that goes over all their pods although nobody asked for it. So it must not change: a built-in value that is to be another one
    /// keeps the old meaning in revisions that are there (a new field that is left out while it is the default, as `role` in
    /// [`Settings`]; another default for new pools is the business of a class). If it has to be, say in the CHANGELOG under "Changed" that
    /// an upgrade rolls every pod and why, and only then take over the new snapshot.
    #[test]
    fn an_upgrade_of_the_operator_makes_no_revision_because_what_is_built_in_is_as_it_was() {
        let gateway = "topology: Gateway\nupstream: {host: pg, database: shop, credentialsRef: {name: shop-db}}";
        let minimal = [
            ("a sidecar", pool("mode: Apply")),
            ("mode Recommend", pool("mode: Recommend")),
            ("a gateway", serde_yaml::from_str(gateway).expect("the fixture is a pool")),
        ];
        let told = minimal.map(|(what, pool)| {
            let settings = effective(&pool, None).expect("accepted").settings;
            let text = serde_json::to_string_pretty(&settings).expect("JSON");
            let stored = serde_json::from_str(&text).expect("what is stored is read again");
            let hash = settings_hash(&settings);
            assert_eq!(settings_hash(&stored), hash, "{what}");
            format!("{what}: {hash}\n{text}")
        });
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn the_pool_wins_over_its_class_and_the_class_over_the_built_in_value() {
        let class = class("{scaling: {minAllowed: 20, maxAllowed: 50}, pgbouncer: {parameters: {a: '1', b: '1'}}}");
        let merged = effective(&pool("scaling: {maxAllowed: 60}\npgbouncer: {parameters: {b: '2'}}"), Some(&class));
        let merged = merged.expect("accepted");
        assert_eq!((merged.min_allowed, merged.max_allowed), (20, 60));
        assert_eq!(merged.settings.parameters, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
        assert_eq!(merged.class, Some(("production".to_owned(), Some(2))));
    }

    #[test]
    fn of_pool_and_class_the_later_reconnect_counts_in_utc_and_none_is_none() {
        let at = |spec: &str, class: Option<&ConnectionPoolClass>| {
            effective(&pool(spec), class).expect("accepted").settings.reconnected_at
        };
        assert_eq!(at("mode: Apply", None), None);
        let earlier = class("{pgbouncer: {reconnectedAt: '2026-11-28T10:00:00Z'}}");
        let spec = "pgbouncer: {reconnectedAt: '2026-11-28T12:30:00.5+02:00'}";
        assert_eq!(at(spec, None).as_deref(), Some("2026-11-28T10:30:00Z"));
        assert_eq!(at(spec, Some(&earlier)).as_deref(), Some("2026-11-28T10:30:00Z"));
        assert_eq!(at("mode: Apply", Some(&earlier)).as_deref(), Some("2026-11-28T10:00:00Z"));
        let later = class("{pgbouncer: {reconnectedAt: '2026-11-29T00:00:00Z'}}");
        assert_eq!(at(spec, Some(&later)).as_deref(), Some("2026-11-29T00:00:00Z"));
    }

    #[test]
    fn bounds_that_only_the_merge_makes_wrong_are_refused_and_say_where_each_comes_from() {
        let refusal = effective(&pool("scaling: {maxAllowed: 10}"), Some(&class("{scaling: {minAllowed: 20}}")));
        let refusal = refusal.expect_err("refused");
        assert_eq!(refusal.reason, "InvalidBounds");
        assert!(refusal.message.contains("20 (from its class)") && refusal.message.contains("10 (from the pool)"));
    }

    #[test]
    fn an_unknown_class_is_refused_with_the_names_of_those_that_there_are() {
        let refused = |names: &[&str]| {
            let named = |name: &&str| {
                let mut class = class("{}");
                class.metadata.name = Some((*name).to_owned());
                class
            };
            let classes: Vec<_> = names.iter().map(named).collect();
            let refusal = class_of(&pool("classRef: {name: gone}"), &classes).expect_err("refused");
            assert_eq!(refusal.reason, "ClassNotFound");
            refusal.message
        };
        assert!(refused(&["production", "batch"]).contains("name one of batch, production, or"));
        assert!(refused(&[]).contains("there is no class in this cluster"));
        let many = ["l", "k", "j", "i", "h", "g", "f", "e", "d", "c", "b", "a"];
        assert!(refused(&many).contains("i, j and 2 more, or"), "{}", refused(&many));
    }

    #[test]
    fn the_default_class_is_used_when_the_pool_names_none() {
        let mut default = class("{}");
        default.metadata.annotations = Some(BTreeMap::from([(IS_DEFAULT_CLASS_ANNOTATION.into(), "true".into())]));
        let classes = [class("{}"), default.clone()];
        assert_eq!(class_of(&pool("mode: Apply"), &classes).expect("accepted"), Some(&default));
    }

    #[test]
    fn what_this_version_does_not_support_is_named_with_where_it_is_set_and_a_pool_of_nothing_else_is_refused() {
        let merged = effective(&pool("sharing: {weight: 5}"), None).expect("what was stored goes on");
        assert_eq!(merged.not_supported, ["spec.sharing (from the pool)"]);
        let refusal = effective(&pool("topology: External"), None).expect_err("refused");
        assert_eq!(refusal.reason, reasons::NOT_SUPPORTED);
        assert!(refusal.message.contains("spec.topology"), "{}", refusal.message);
    }

    #[test]
    fn an_analysis_is_waited_for_whatever_steps_there_are_and_steps_that_could_never_end_are_refused() {
        let weight = |percent| RolloutStep::SetWeight { percent };
        let pause = RolloutStep::Pause { seconds: None };
        let metrics = "analysis: {metrics: [{name: TransactionTime}]}";
        for (canary, expected) in [
            ("", JUDGED_STEPS.to_vec()),
            ("canary: {steps: []}, ", vec![weight(100), RolloutStep::Analysis]),
            ("canary: {steps: [{pause: {}}]}, ", vec![pause, weight(100), RolloutStep::Analysis]),
            ("canary: {steps: [{setWeight: 5}, {pause: {}}]}, ", vec![weight(5), pause, RolloutStep::Analysis]),
            (
                "canary: {steps: [{setWeight: 5}, {analysis: {}}, {setWeight: 50}]}, ",
                vec![weight(5), RolloutStep::Analysis, weight(50)],
            ),
        ] {
            let merged = effective(&pool(&format!("rollout: {{{canary}{metrics}}}")), None).expect("accepted");
            assert_eq!(merged.rollout.steps, expected, "{canary}");
        }
        let of_class = class(&format!("{{rollout: {{{metrics}}}}}"));
        let steps = "rollout: {canary: {steps: [{setWeight: 5}, {analysis: {}}]}}";
        assert!(effective(&pool(steps), Some(&of_class)).expect("accepted").rollout.analysis.is_some());
        let refused = |spec: &str, class: Option<&ConnectionPoolClass>| {
            let refusal = effective(&pool(spec), class).expect_err("refused");
            assert_eq!(refusal.reason, "InvalidAnalysis");
            refusal.message
        };
        let message = refused(steps, None);
        assert!(message.contains("steps (from the pool) wait for an analysis, and there is none"), "{message}");
        let never = "rollout: {canary: {steps: [{pause: {}}, {analysis: {}}, {setWeight: 5}]}}";
        let message = refused(never, Some(&of_class));
        assert!(message.contains("steps[1] (from the pool)") && message.contains("never end"), "{message}");
        let message = refused("mode: Apply", Some(&class("{rollout: {analysis: {metrics: [{name: errors}]}}}")));
        assert!(message.contains("(errors): unknown metric") && message.ends_with("(from its class)"), "{message}");
        // the API server bounds length and characters alone: the position is the operator's to tell
        let of = |condition: &str| {
            refused(
                &format!(
                    "rollout: {{analysis: {{metrics: [{{name: mine, query: up, failureCondition: '{condition}'}}]}}}}"
                ),
                None,
            )
        };
        for (condition, words) in [
            ("result < 1 and result > 2", "(mine): failureCondition: at character 12: expected && or || or the end"),
            ("result << 1", "(mine): failureCondition: at character 9: expected result or a number"),
            ("(result < 1", "(mine): failureCondition: at character 12: expected )"),
        ] {
            let message = of(condition);
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_deadline_that_is_over_before_an_analysis_can_know_is_refused_with_the_sum_and_the_least_that_works() {
        let rollout = |rollout: &str| {
            effective(&pool(&format!("rollout: {{{rollout}}}")), None).map_err(|refusal| {
                assert_eq!(refusal.reason, "InvalidAnalysis");
                refusal.message
            })
        };
        let metrics = "metrics: [{name: TransactionTime}]";
        let short = |least: u32, rest: &str| {
            let told = rollout(&format!("progressDeadlineSeconds: {}, {rest}", least - 1)).expect_err("too short");
            assert!(told.contains(&format!("takes {least} s")), "{told}");
            assert!(told.ends_with(&format!("set it to {least} or more")), "{told}");
            rollout(&format!("progressDeadlineSeconds: {least}, {rest}")).expect("long enough");
            told
        };
        let told = short(45, &format!("analysis: {{{metrics}}}"));
        let sum = "progressDeadlineSeconds 44 (from the pool) is over before spec.rollout.analysis can know";
        assert!(told.contains(sum) && told.contains("plannedExposureSeconds 30, and 10 s until"), "{told}");
        short(135, &format!("analysis: {{{metrics}, plannedExposureSeconds: 120}}"));
        let told = short(135, &format!("postPromotionAnalysis: {{{metrics}, plannedExposureSeconds: 120}}"));
        assert!(told.contains("before spec.rollout.postPromotionAnalysis can know"), "{told}");
        // it is judged in pauses, too, but not before a pod runs it, nor in one that somebody may end at once
        let steps = "canary: {steps: [{pause: {duration: 9m}}, {setWeight: 5}, {pause: {}}, {pause: {duration: 20s}}, {analysis: {}}, \
                     {pause: {duration: 9m}}]}";
        let told = short(25, &format!("{steps}, analysis: {{{metrics}}}"));
        assert!(told.contains("less the 20 s of pauses before"), "{told}");
        let long = format!("analysis: {{{metrics}, plannedExposureSeconds: 900, maxExposureSeconds: 900}}");
        let told = rollout(&long).expect_err("the built-in deadline is too short");
        assert!(told.contains("progressDeadlineSeconds 600 (built in)") && told.contains("915 or more"), "{told}");
        let of_class = class(&format!("{{rollout: {{{long}}}}}"));
        let refusal =
            effective(&pool("rollout: {progressDeadlineSeconds: 700}"), Some(&of_class)).expect_err("together");
        assert!(refusal.message.contains("700 (from the pool)"), "{}", refusal.message);
    }

    #[test]
    fn what_is_judged_after_the_promotion_is_no_step_and_needs_a_metric_as_the_analysis_before_it_does() {
        let after = "postPromotionAnalysis: {metrics: [{name: Errors}], plannedExposureSeconds: 120}";
        let rollout = effective(&pool(&format!("rollout: {{{after}}}")), None).expect("accepted").rollout;
        assert_eq!((rollout.steps.as_slice(), rollout.analysis), (DEFAULT_STEPS.as_slice(), None));
        assert_eq!(rollout.post_promotion.map(|analysis| analysis.planned_exposure_seconds()), Some(120));
        let of_class = class(&format!("{{rollout: {{{after}}}}}"));
        let own = "rollout: {postPromotionAnalysis: {plannedExposureSeconds: 60}}";
        let merged = effective(&pool(own), Some(&of_class)).expect("accepted").rollout.post_promotion;
        assert_eq!(merged.map(|analysis| analysis.planned_exposure_seconds()), Some(60), "field by field");
        let refused = |spec: &str| {
            let refusal = effective(&pool(spec), None).expect_err("refused");
            assert_eq!(refusal.reason, "InvalidAnalysis");
            refusal.message
        };
        let message = refused(own);
        assert!(message.starts_with("spec.rollout.postPromotionAnalysis.metrics is empty"), "{message}");
        let waits = format!("rollout: {{canary: {{steps: [{{setWeight: 5}}, {{analysis: {{}}}}]}}, {after}}}");
        let message = refused(&waits);
        assert!(message.contains("postPromotionAnalysis judges behind the last step"), "{message}");
    }

    #[test]
    fn steps_are_those_of_the_pool_else_of_its_class_and_an_empty_list_is_one_too() {
        let steps = |pool_spec: &str, class: Option<&ConnectionPoolClass>| {
            effective(&pool(pool_spec), class).expect("accepted").rollout.steps
        };
        let of_class =
            class("{rollout: {canary: {steps: [{setWeight: 5}, {pause: {duration: 2m}}, {pause: {duration: 168h}}]}}}");
        let pause = |seconds| RolloutStep::Pause { seconds };
        let expected = [RolloutStep::SetWeight { percent: 5 }, pause(Some(120)), pause(Some(604_800))];
        assert_eq!(steps("mode: Apply", Some(&of_class)), expected);
        let own = "rollout: {canary: {steps: [{setWeight: 50}, {pause: {}}]}}";
        assert_eq!(steps(own, Some(&of_class)), [RolloutStep::SetWeight { percent: 50 }, pause(None)]);
        assert_eq!(steps("rollout: {canary: {steps: []}}", Some(&of_class)), []);
        assert_eq!(steps("mode: Apply", None), DEFAULT_STEPS);
    }

    #[test]
    fn session_mode_refuses_adaptive_and_takes_target_utilization() {
        let session = "pgbouncer: {poolMode: session}\n";
        let refusal = effective(&pool(session), None).expect_err("refused");
        assert_eq!(refusal.reason, "AdaptiveNeedsTransactionMode");
        let merged = effective(&pool(&format!("{session}scaling: {{algorithm: TargetUtilization}}")), None);
        assert_eq!(merged.expect("accepted").settings.scaling.behavior.scale_down.stabilization_window_seconds, 300);
    }

    #[test]
    fn libpq_is_told_to_speak_as_the_pooler_expects_it() {
        for (mode, ssl_mode) in [("Disabled", "disable"), ("Allow", "prefer"), ("Require", "require")] {
            let reference = if mode == "Disabled" { "" } else { ", certificateRef: {name: shop-tls}" };
            let merged =
                effective(&pool(&format!("client: {{tls: {{mode: {mode}{reference}}}}}")), None).expect("accepted");
            assert_eq!(merged.pod.env[2].template, ssl_mode);
            assert_eq!(merged.pod.client_certificate.is_some(), mode != "Disabled");
        }
    }

    #[test]
    fn a_proxy_on_loopback_needs_a_port_other_than_the_poolers() {
        let mut beside = pool("mode: Apply");
        beside.upstream.host = "127.0.0.1".to_owned();
        assert_eq!(effective(&beside, None).expect_err("refused").reason, "UpstreamIsThePooler");
        beside.upstream.port = 5433;
        assert_eq!(effective(&beside, Some(&class("{client: {port: 5432}}"))).expect("accepted").pod.client_port, 5432);
    }

    #[test]
    fn a_session_alias_raises_the_floor_and_a_floor_that_leaves_nothing_beside_it_is_refused() {
        let alias = "pgbouncer: {sessionAlias: {database: shop_session, connections: 2}}\n";
        let merged = effective(&pool(alias), None).expect("accepted");
        assert_eq!((merged.floor_per_pod, merged.settings.session_alias.map(|alias| alias.connections)), (3, Some(2)));
        let small = "scaling: {floorPerPod: 2}";
        let from_class = class("{pgbouncer: {sessionAlias: {database: shop_session, connections: 2}}}");
        for (pool, class) in [(pool(&format!("{alias}{small}")), None), (pool(small), Some(&from_class))] {
            let refusal = effective(&pool, class).expect_err("refused");
            assert_eq!(refusal.reason, "InvalidBounds");
            assert!(refusal.message.contains("floorPerPod to 3"), "{}", refusal.message);
        }
        let fixed = format!("{alias}mode: Recommend\nscaling: {{fixedLimitPerPod: 2}}");
        assert!(effective(&pool(&fixed), None).expect_err("refused").message.contains("fixedLimitPerPod"));
    }

    #[test]
    fn recommend_keeps_every_pod_at_its_fixed_limit() {
        let merged = effective(&pool("mode: Recommend\nscaling: {fixedLimitPerPod: 8}"), None).expect("accepted");
        assert_eq!(merged.fixed_limit_per_pod, Some(8));
        assert_eq!(merged.settings.scaling.limit_source, LimitSource::Share);
    }
}
