//! `why`: the last decision in words. What it was made of, what held it, what bounds it, and what would change it.

use std::fmt::Display;

use k8s_openapi::{api::core::v1::Event, apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use serde::Serialize;

use super::{
    NotRead,
    document::{PoolDocument, said},
    in_course::RolloutInCourse,
    recommend::patch_command,
    table::{TextTable, cell},
    time::{age, span},
};
use crate::{
    api::{
        ConnectionPoolStatus, LastDecision, Load, Mode, PodCounts, Recommendation,
        conditions::{
            ABLE_TO_SCALE, ACCEPTED, CLIENTS_ACCEPTED, CLIENTS_POOLED, INJECTED, LEAK_DETECTED, PROVEN, READY,
            SCALING_ACTIVE, SCALING_LIMITED, SIDECAR_MEMORY, UPSTREAM_HEALTHY,
        },
        reasons,
    },
    contract::{Algorithm, LimitSource, Objective, ScalingRules, ScalingSettings, SelectPolicy, Settings},
    decide::freeze::Frozen,
    domain::Reason,
};

/// Events that are shown.
const MOST_EVENTS: usize = 10;
/// Conditions that guard the decision, in the order in which it meets them.
const GUARDS: [&str; 6] = [ACCEPTED, SCALING_ACTIVE, UPSTREAM_HEALTHY, SCALING_LIMITED, ABLE_TO_SCALE, SIDECAR_MEMORY];
/// Conditions beside them that keep a pool from being ready; a rollout that is not through is told with what somebody may do about it.
const OTHERS: [&str; 5] = [INJECTED, PROVEN, CLIENTS_ACCEPTED, CLIENTS_POOLED, LEAK_DETECTED];

/// Why a pool has its size: what `why -o json` says, and the text is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyAnswer {
    /// Namespace of the pool.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All of it in one sentence; none before an operator has looked at it.
    pub summary: Option<String>,
    /// Whether all of this is of the spec of now.
    pub is_observed: bool,
    /// The condition `Ready`.
    pub ready: Option<Condition>,
    /// The last decision that changed the target.
    pub decision: Option<DecisionSaid>,
    /// What was seen.
    pub inputs: DecisionInputs,
    /// Conditions that guard the decision, and those beside them that keep the pool from being ready.
    pub guards: Vec<Condition>,
    /// A rollout that is not through.
    pub rollout: Option<RolloutInCourse>,
    /// What bounds the target, and by which rules it moves.
    pub limits: DecisionLimits,
    /// What would change the answer, the nearest first.
    pub changes: Vec<WouldChange>,
    /// The last events, the newest first.
    pub events: Vec<EventSaid>,
    /// What could not be read, in sentences.
    pub not_read: Vec<String>,
}

/// The last decision.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionSaid {
    /// As the operator wrote it.
    #[serde(flatten)]
    pub decision: LastDecision,
    /// What its reason means; empty for one that this build does not know.
    pub meaning: &'static str,
}

/// What a decision is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionInputs {
    /// The load; none while it is not known: see `ScalingActive`.
    pub load: Option<Load>,
    /// Pods, counted; `reporting` of `injected` are seen in Prometheus.
    pub pods: Option<PodCounts>,
    /// What the load asks for.
    pub recommendation: Option<Recommendation>,
}

/// What bounds a target. Figures are server connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionLimits {
    /// The least, after class and built-in defaults.
    pub min_allowed: Option<u32>,
    /// The most, after class and built-in defaults.
    pub max_allowed: Option<u32>,
    /// The class that said some of it.
    pub class: Option<String>,
    /// What all pods together may open now.
    pub share: Option<u32>,
    /// By which rules it moves, class and defaults merged in; none before the first revision, and where it could not be read.
    pub scaling: Option<ScalingSettings>,
}

/// Something that would change the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WouldChange {
    /// In words.
    pub words: String,
    /// The command that does it; none where there is no single one.
    pub command: Option<String>,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventSaid {
    /// When it was seen last.
    pub time: Timestamp,
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Its reason.
    pub reason: Option<String>,
    /// In words.
    pub message: Option<String>,
}

impl WhyAnswer {
    /// The answer to `why`. `settings` are those of the revision that all pods are to run; none before the first.
    pub fn of(
        document: &PoolDocument,
        settings: Result<Option<&Settings>, &NotRead>,
        events: Result<&[Event], &NotRead>,
        now: Timestamp,
    ) -> Self {
        let (key, status) = (document.key(), document.status());
        let effective = status.effective.as_ref();
        let not_read = [settings.err(), events.err()].into_iter().flatten().map(|not_read| not_read.words.clone());
        Self {
            namespace: key.namespace,
            name: key.name,
            summary: status.summary.clone(),
            is_observed: document.is_observed(),
            ready: document.condition(READY).cloned(),
            decision: status
                .last_decision
                .clone()
                .map(|decision| DecisionSaid { meaning: meaning_of(&decision.reason), decision }),
            guards: guards(document),
            rollout: RolloutInCourse::of(document, now),
            limits: DecisionLimits {
                min_allowed: effective.map(|effective| effective.min_allowed),
                max_allowed: effective.map(|effective| effective.max_allowed),
                class: effective.and_then(|effective| effective.class.clone()),
                share: status.share,
                scaling: settings.ok().flatten().map(|settings| settings.scaling.clone()),
            },
            changes: changes(document, &status, now),
            events: last(events.unwrap_or_default()),
            not_read: not_read.chain(document.skew()).collect(),
            inputs: DecisionInputs { load: status.load, pods: status.pods, recommendation: status.recommendation },
        }
    }
}

/// The answer to `why` in words.
pub fn text(
    document: &PoolDocument,
    settings: Result<Option<&Settings>, &NotRead>,
    events: Result<&[Event], &NotRead>,
    now: Timestamp,
) -> String {
    let answer = WhyAnswer::of(document, settings, events, now);
    let mut parts = vec![headline(document, &answer, now), decision(&answer, now), inputs(&answer.inputs)];
    let guards = answer.guards.iter().map(|guard| format!("{}: {}", said(guard, now), guard.message));
    let rollout = answer.rollout.iter().flat_map(RolloutInCourse::lines);
    parts.push(section("Guards", &guards.chain(rollout).collect::<Vec<_>>()));
    parts.push(section("Bounds", &bounds(&answer.limits, settings.err())));
    let changes: Vec<String> = answer.changes.iter().map(WouldChange::lines).collect();
    parts.push(section("What would change the answer", &changes));
    parts.push(match events {
        Ok(_) => section("Last events", &event_lines(&answer.events, now)),
        Err(not_read) => section("Last events", std::slice::from_ref(&not_read.words)),
    });
    parts.extend(document.skew().map(|words| format!("{words}\n")));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// A title and its lines, indented; nothing without lines.
fn section(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines = lines.iter().flat_map(|line| line.lines()).map(|line| format!("  {line}\n"));
    format!("{title}\n{}", lines.collect::<String>())
}

fn headline(document: &PoolDocument, answer: &WhyAnswer, now: Timestamp) -> String {
    let key = document.key();
    let Some(summary) = &answer.summary else {
        return format!("{key}: nobody has looked at it yet: does an operator run? See kubectl sluice check\n");
    };
    let mut lines = vec![format!("{key}: {summary}")];
    if let Some(ready) = &answer.ready {
        lines.push(format!("{}: {}", said(ready, now), ready.message));
    }
    if !answer.is_observed {
        lines.push("The operator has not looked at the spec of now yet: all of this is of the one before".to_owned());
    }
    lines.join("\n") + "\n"
}

fn decision(answer: &WhyAnswer, now: Timestamp) -> String {
    let Some(DecisionSaid { decision: last, meaning }) = &answer.decision else {
        return section("Decision", &["none has changed the target yet".to_owned()]);
    };
    let lines = [
        format!(
            "{} {} ago: target {} -> {} ({}: {meaning})",
            last.id,
            age(last.time.0, now),
            last.from,
            last.to,
            last.reason
        ),
        last.message.clone(),
    ];
    section("Decision", &lines)
}

/// What the reason of a decision means, by its word.
fn meaning_of(reason: &str) -> &'static str {
    Reason::ALL.iter().find(|known| known.as_str() == reason).map_or("", |known| meaning(*known))
}

/// What the reason of a decision means.
const fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::Demand => "the load asks for it",
        Reason::WaitingClients => "clients wait although all connections are busy",
        Reason::NoData => "no new sample, so it is held",
        Reason::InvalidData => "figures that cannot be, so it is held",
        Reason::DatabaseStalled => "nothing finishes while clients wait, so it is held",
        Reason::UpstreamReadOnly => "the database takes no writes, so it is held",
        Reason::CircuitOpen => "the database is away, so it is held",
        Reason::DatabaseSaturated => "more connections brought no more throughput",
        Reason::ScaleUpStabilized => "a lower recommendation within the window of behavior.scaleUp counts",
        Reason::ScaleDownStabilized => "a higher recommendation within the window of behavior.scaleDown counts",
        Reason::ScaleUpLimit => "behavior.scaleUp allows no more yet",
        Reason::ScaleDownLimit => "behavior.scaleDown allows no less yet",
        Reason::MinSize => "minAllowed, or the floors of the pods",
        Reason::MaxSize => "maxAllowed",
        Reason::Share => "what the budget granted",
        Reason::ServerFull => "the database refuses further connections",
        Reason::Paused => "the pool is paused",
        Reason::RecommendOnly => "mode Recommend puts nothing into force",
    }
}

fn inputs(inputs: &DecisionInputs) -> String {
    let mut table = TextTable::default();
    let mut say = |name: &str, value: String, what: &str| table.push(vec![name.to_owned(), value, what.to_owned()]);
    match &inputs.load {
        Some(load) => {
            say("demand", load.demand.clone(), "busy server connections that the load asks for; leaks not");
            say("active", load.active.to_string(), "server connections linked to a client");
            say("held", load.held.to_string(), "server connections open");
            say("waiting", load.waiting.to_string(), "clients that wait for one");
            if let Some(leaked) = load.leaked {
                say("leaked", leaked.to_string(), "held past the threshold by clients that do nothing");
            }
            if let Some(wait) = load.wait_p95_milliseconds {
                say("wait p95", format!("{wait}ms"), "from means of one second");
            }
            let age = span(i64::from(load.age_seconds));
            say("age", age, "of the oldest of these samples when the status was written");
        }
        None => say("load", "unknown".to_owned(), "see ScalingActive"),
    }
    if let Some(pods) = inputs.pods {
        let figures = format!("{} of {}", pods.reporting, pods.injected);
        say("pods", figures, "with a sidecar, seen in Prometheus");
    }
    let lines: Vec<String> = table.text().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    section("Inputs", &lines)
}

/// The conditions that hold the decision, or that stand beside it.
fn guards(document: &PoolDocument) -> Vec<Condition> {
    let condition = |type_: &&str| document.condition(type_).cloned();
    let beside = |type_: &&&str| {
        let bad = if **type_ == LEAK_DETECTED { "True" } else { "False" };
        document.condition(type_).is_some_and(|condition| condition.status == bad)
    };
    GUARDS.iter().filter_map(condition).chain(OTHERS.iter().filter(beside).filter_map(condition)).collect()
}

/// What bounds the target, and by which rules it moves.
fn bounds(limits: &DecisionLimits, not_read: Option<&NotRead>) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(min), Some(max)) = (limits.min_allowed, limits.max_allowed) {
        let class = limits.class.as_ref().map_or_else(String::new, |class| format!(", with class {class}"));
        lines.push(format!("minAllowed {min}, maxAllowed {max}{class}"));
    }
    if let Some(share) = limits.share {
        lines.push(format!("share {share}: what all pods together may open now"));
    }
    lines.extend(not_read.map(|not_read| not_read.words.clone()));
    lines.extend(limits.scaling.iter().flat_map(rules));
    lines
}

/// The rules of a revision, class and defaults merged in.
fn rules(scaling: &ScalingSettings) -> Vec<String> {
    let Objective { wait_milliseconds, max_waiting_percent } = scaling.objective;
    let mut lines = vec![
        match scaling.algorithm {
            Algorithm::Adaptive => {
                format!("algorithm Adaptive: at most {max_waiting_percent} % wait longer than {wait_milliseconds} ms")
            }
            Algorithm::TargetUtilization => {
                format!("algorithm TargetUtilization: {} % of the size busy", scaling.target_utilization_percent)
            }
            Algorithm::LoadFactor => "algorithm LoadFactor".to_owned(),
        },
        match scaling.limit_source {
            LimitSource::LocalReaction => {
                "localReaction Enabled: within its share each pod's limit follows its own load every second".to_owned()
            }
            LimitSource::Share => "localReaction Disabled: limits are the target, divided over the pods".to_owned(),
        },
    ];
    let behavior = [("scaleUp", &scaling.behavior.scale_up), ("scaleDown", &scaling.behavior.scale_down)];
    lines.extend(behavior.map(|(direction, rules)| format!("behavior.{direction}: {}", in_words(rules))));
    lines
}

fn in_words(rules: &ScalingRules) -> String {
    if rules.select_policy == SelectPolicy::Disabled {
        return "no change in this direction".to_owned();
    }
    let rates: Vec<String> = rules
        .policies
        .iter()
        .map(|policy| format!("{} {:?} in {} s", policy.value, policy.type_, policy.period_seconds))
        .collect();
    let rates = match (rates.as_slice(), rules.select_policy) {
        ([], _) => "any rate".to_owned(),
        ([rate], _) => format!("at most {rate}"),
        (_, SelectPolicy::Min) => format!("at most the least of {}", rates.join(" and ")),
        _ => format!("at most the largest of {}", rates.join(" and ")),
    };
    format!("window {} s, {rates}, tolerance {}", rules.stabilization_window_seconds, rules.tolerance)
}

impl WouldChange {
    fn by(words: impl Into<String>, command: String) -> Self {
        Self { words: words.into(), command: Some(command) }
    }

    fn lines(&self) -> String {
        self.command.as_ref().map_or_else(|| self.words.clone(), |command| format!("{}:\n{command}", self.words))
    }
}

impl From<String> for WouldChange {
    fn from(words: String) -> Self {
        Self { words, command: None }
    }
}

impl From<&str> for WouldChange {
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

/// What would change the answer, the nearest first.
fn changes(document: &PoolDocument, status: &ConnectionPoolStatus, now: Timestamp) -> Vec<WouldChange> {
    let is = |type_: &str, wanted: &str| {
        document
            .condition(type_)
            .filter(|condition| condition.status == wanted)
            .map(|condition| condition.reason.clone())
    };
    let mut lines = Vec::new();
    if status.summary.is_none() {
        return vec![WouldChange::by("an operator that runs", "kubectl sluice check".to_owned())];
    }
    if is(ACCEPTED, "False").is_some() {
        return vec![WouldChange::from("a spec that is accepted: Accepted says what is wrong with this one")];
    }
    if let Some(frozen) = Frozen::of(&document.pool, now.as_second()) {
        let (name, namespace) = (document.name(), document.in_namespace());
        let words = format!("an end of the freeze: {}", frozen.words());
        lines.push(WouldChange::by(words, format!("kubectl sluice resume {name} {namespace}")));
    }
    if document.pool.spec.mode == Mode::Recommend {
        lines.push("mode Apply: in mode Recommend the target is told and nothing follows it".into());
    }
    if let Some(reason) = is(SCALING_ACTIVE, "False") {
        let how = "until then the target stays, and it never shrinks on what is not known";
        lines.push(format!("a load that is known: ScalingActive says what is missing ({reason}); {how}").into());
    }
    if let Some(reason) = is(SCALING_LIMITED, "True") {
        lines.push(unlimited(document, status, &reason));
    }
    if is(LEAK_DETECTED, "True").is_some() {
        let leaked = status.load.as_ref().and_then(|load| load.leaked);
        let words = format!(
            "an end of the leaks: {} connections are occupied and count as no demand; LeakDetected says how to find them",
            cell(leaked)
        );
        lines.push(words.into());
    }
    if let Some(recommendation) = status.recommendation {
        lines.push(load_changes(&recommendation).into());
    }
    lines
}

/// What lifts the bound that a target stands at.
fn unlimited(document: &PoolDocument, status: &ConnectionPoolStatus, reason: &str) -> WouldChange {
    let uncapped = status.recommendation.map_or(1, |recommendation| recommendation.uncapped_target.max(1));
    let (min, max) = status
        .effective
        .as_ref()
        .map_or((None, None), |effective| (Some(effective.min_allowed), Some(effective.max_allowed)));
    let set =
        |field: &str, value: &dyn Display| patch_command(document, &format!(r#"{{"scaling":{{"{field}":{value}}}}}"#));
    let of = |words: &str| format!("{words} (ScalingLimited={reason})");
    if reason == Reason::MaxSize.as_str() {
        let more = format!("a larger maxAllowed: the load asks for {uncapped}, and maxAllowed is {}", cell(max));
        return WouldChange::by(of(&more) + "; where the database can spare them", set("maxAllowed", &uncapped));
    }
    if reason == Reason::MinSize.as_str() {
        let less = format!("a smaller minAllowed: the load asks for {uncapped}, and minAllowed is {}", cell(min));
        return WouldChange::by(of(&less), set("minAllowed", &uncapped));
    }
    let words = if reason == reasons::TOO_MANY_PODS || reason == reasons::FLOOR_LOWERED {
        "a maxAllowed that has room for the floor of every pod, or fewer pods"
    } else if reason == reasons::FIXED_EXCEEDS_MAX {
        "a smaller fixedLimitPerPod, or mode Apply"
    } else if reason == Reason::DatabaseSaturated.as_str() {
        "a faster database, or cheaper queries: service times grow with the connections, so more of them would not help"
    } else if reason == Reason::ServerFull.as_str() {
        "a database that lets in more: UpstreamHealthy has its words"
    } else if [Reason::ScaleUpLimit, Reason::ScaleUpStabilized].iter().any(|limit| limit.as_str() == reason) {
        "time: spec.behavior.scaleUp holds the target back, and it goes on by itself"
    } else if [Reason::ScaleDownLimit, Reason::ScaleDownStabilized].iter().any(|limit| limit.as_str() == reason) {
        "time: spec.behavior.scaleDown holds the target back, and it goes on by itself"
    } else {
        "what ScalingLimited names"
    };
    of(words).into()
}

fn load_changes(recommendation: &Recommendation) -> String {
    let Recommendation { target, lower_bound, upper_bound, confidence, .. } = recommendation;
    format!(
        "another load: at {target} connections clients are served as promised; with fewer than {lower_bound} they would be expected to \
         wait, and of more than {upper_bound} some would idle (confidence {confidence:?})"
    )
}

/// The last events, the newest first.
fn last(events: &[Event]) -> Vec<EventSaid> {
    let at = |event: &Event| {
        let last = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
        let last = last.or_else(|| event.last_timestamp.as_ref().map(|time| time.0));
        last.or_else(|| event.event_time.as_ref().map(|time| time.0)).unwrap_or_default()
    };
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by_key(|event| std::cmp::Reverse(at(event)));
    let said = |event: &Event| EventSaid {
        time: at(event),
        type_: event.type_.clone(),
        reason: event.reason.clone(),
        message: event.message.clone(),
    };
    sorted.into_iter().take(MOST_EVENTS).map(said).collect()
}

fn event_lines(events: &[EventSaid], now: Timestamp) -> Vec<String> {
    let mut table = TextTable::new(&["AGE", "TYPE", "REASON", "MESSAGE"]);
    for event in events {
        let text = |text: &Option<String>| cell(text.as_ref());
        table.push(vec![age(event.time, now), text(&event.type_), text(&event.reason), text(&event.message)]);
    }
    if table.is_empty() { vec!["none".to_owned()] } else { table.text().lines().map(str::to_owned).collect() }
}
