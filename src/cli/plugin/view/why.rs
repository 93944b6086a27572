//! `why`: the last decision in words. What it was made of, what held it, what bounds it, and what would change it.

use std::fmt::Display;

use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};

use super::{
    NotRead,
    document::{PoolDocument, said},
    recommend::patch_command,
    table::{TextTable, cell},
    time::{age, span},
};
use crate::{
    api::{
        ConnectionPoolStatus, Mode, Recommendation,
        conditions::{
            ABLE_TO_SCALE, ACCEPTED, CLIENTS_ACCEPTED, CLIENTS_POOLED, INJECTED, LEAK_DETECTED, PROGRESSING, PROVEN,
            READY, SCALING_ACTIVE, SCALING_LIMITED, SIDECAR_MEMORY, UPSTREAM_HEALTHY,
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
/// Conditions beside them that keep a pool from being ready.
const OTHERS: [&str; 6] = [INJECTED, PROVEN, PROGRESSING, CLIENTS_ACCEPTED, CLIENTS_POOLED, LEAK_DETECTED];

/// The answer to `why`. `settings` are those of the revision that all pods are to run; none before the first.
pub fn text(
    document: &PoolDocument,
    settings: Result<Option<&Settings>, &NotRead>,
    events: Result<&[Event], &NotRead>,
    now: Timestamp,
) -> String {
    let status = document.status();
    let mut parts = vec![headline(document, &status, now), decision(&status, now), inputs(&status)];
    parts.push(section("Guards", &guards(document, now)));
    parts.push(section("Bounds", &bounds(&status, settings)));
    parts.push(section("What would change the answer", &changes(document, &status, now)));
    parts.push(match events {
        Ok(events) => section("Last events", &event_lines(events, now)),
        Err(NotRead(words)) => section("Last events", std::slice::from_ref(words)),
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

fn headline(document: &PoolDocument, status: &ConnectionPoolStatus, now: Timestamp) -> String {
    let key = document.key();
    let Some(summary) = &status.summary else {
        return format!("{key}: nobody has looked at it yet: does an operator run? See kubectl sluice check\n");
    };
    let mut lines = vec![format!("{key}: {summary}")];
    if let Some(ready) = document.condition(READY) {
        lines.push(format!("{}: {}", said(ready, now), ready.message));
    }
    if !document.is_observed() {
        lines.push("The operator has not looked at the spec of now yet: all of this is of the one before".to_owned());
    }
    lines.join("\n") + "\n"
}

fn decision(status: &ConnectionPoolStatus, now: Timestamp) -> String {
    let Some(last) = &status.last_decision else {
        return section("Decision", &["none has changed the target yet".to_owned()]);
    };
    let meaning =
        Reason::ALL.iter().find(|reason| reason.as_str() == last.reason).map_or("", |reason| meaning(*reason));
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

fn inputs(status: &ConnectionPoolStatus) -> String {
    let mut table = TextTable::default();
    let mut say = |name: &str, value: String, what: &str| table.push(vec![name.to_owned(), value, what.to_owned()]);
    match &status.load {
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
    if let Some(pods) = status.pods {
        let figures = format!("{} of {}", pods.reporting, pods.injected);
        say("pods", figures, "with a sidecar, seen in Prometheus");
    }
    let lines: Vec<String> = table.text().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    section("Inputs", &lines)
}

/// The conditions that hold the decision, or that stand beside it.
fn guards(document: &PoolDocument, now: Timestamp) -> Vec<String> {
    let line = |type_: &&str| {
        let condition = document.condition(type_)?;
        Some(format!("{}: {}", said(condition, now), condition.message))
    };
    let beside = |type_: &&&str| {
        let bad = if **type_ == LEAK_DETECTED { "True" } else { "False" };
        document.condition(type_).is_some_and(|condition| condition.status == bad)
    };
    GUARDS.iter().filter_map(line).chain(OTHERS.iter().filter(beside).filter_map(line)).collect()
}

/// What bounds the target, and by which rules it moves.
fn bounds(status: &ConnectionPoolStatus, settings: Result<Option<&Settings>, &NotRead>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(effective) = &status.effective {
        let class = effective.class.as_ref().map_or_else(String::new, |class| format!(", with class {class}"));
        lines.push(format!("minAllowed {}, maxAllowed {}{class}", effective.min_allowed, effective.max_allowed));
    }
    if let Some(share) = status.share {
        lines.push(format!("share {share}: what all pods together may open now"));
    }
    match settings {
        Err(NotRead(words)) => lines.push(words.clone()),
        Ok(None) => {}
        Ok(Some(settings)) => lines.extend(rules(&settings.scaling)),
    }
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

/// What would change the answer, the nearest first.
fn changes(document: &PoolDocument, status: &ConnectionPoolStatus, now: Timestamp) -> Vec<String> {
    let is = |type_: &str, wanted: &str| {
        document
            .condition(type_)
            .filter(|condition| condition.status == wanted)
            .map(|condition| condition.reason.clone())
    };
    let mut lines = Vec::new();
    if status.summary.is_none() {
        return vec!["an operator that runs: kubectl sluice check".to_owned()];
    }
    if is(ACCEPTED, "False").is_some() {
        return vec!["a spec that is accepted: Accepted says what is wrong with this one".to_owned()];
    }
    if let Some(frozen) = Frozen::of(&document.pool, now.as_second()) {
        let (name, namespace) = (document.name(), document.in_namespace());
        lines.push(format!("kubectl sluice resume {name} {namespace}: {}", frozen.words()));
    }
    if document.pool.spec.mode == Mode::Recommend {
        lines.push("mode Apply: in mode Recommend the target is told and nothing follows it".to_owned());
    }
    if let Some(reason) = is(SCALING_ACTIVE, "False") {
        let how = "until then the target stays, and it never shrinks on what is not known";
        lines.push(format!("a load that is known: ScalingActive says what is missing ({reason}); {how}"));
    }
    if let Some(reason) = is(SCALING_LIMITED, "True") {
        lines.push(unlimited(document, status, &reason));
    }
    if is(LEAK_DETECTED, "True").is_some() {
        let leaked = status.load.as_ref().and_then(|load| load.leaked);
        lines.push(format!(
            "an end of the leaks: {} connections are occupied and count as no demand; LeakDetected says how to find them",
            cell(leaked)
        ));
    }
    if let Some(recommendation) = status.recommendation {
        lines.push(load_changes(&recommendation));
    }
    lines
}

/// What lifts the bound that a target stands at.
fn unlimited(document: &PoolDocument, status: &ConnectionPoolStatus, reason: &str) -> String {
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
        return format!("{}; where the database can spare them:\n{}", of(&more), set("maxAllowed", &uncapped));
    }
    if reason == Reason::MinSize.as_str() {
        let less = format!("a smaller minAllowed: the load asks for {uncapped}, and minAllowed is {}", cell(min));
        return format!("{}:\n{}", of(&less), set("minAllowed", &uncapped));
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
    of(words)
}

fn load_changes(recommendation: &Recommendation) -> String {
    let Recommendation { target, lower_bound, upper_bound, confidence, .. } = recommendation;
    format!(
        "another load: at {target} connections clients are served as promised; with fewer than {lower_bound} they would be expected to \
         wait, and of more than {upper_bound} some would idle (confidence {confidence:?})"
    )
}

/// The last events, the newest first.
fn event_lines(events: &[Event], now: Timestamp) -> Vec<String> {
    let at = |event: &Event| {
        let last = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
        let last = last.or_else(|| event.last_timestamp.as_ref().map(|time| time.0));
        last.or_else(|| event.event_time.as_ref().map(|time| time.0)).unwrap_or_default()
    };
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by_key(|event| std::cmp::Reverse(at(event)));
    let mut table = TextTable::new(&["AGE", "TYPE", "REASON", "MESSAGE"]);
    for event in sorted.into_iter().take(MOST_EVENTS) {
        let text = |text: &Option<String>| cell(text.as_ref());
        table.push(vec![age(at(event), now), text(&event.type_), text(&event.reason), text(&event.message)]);
    }
    if table.is_empty() { vec!["none".to_owned()] } else { table.text().lines().map(str::to_owned).collect() }
}
