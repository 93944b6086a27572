//! `report`: the files of a support bundle. What may hold a secret is not in it: no environment, no Secret, no annotation or label of
//! anybody else's.

use std::{collections::BTreeMap, fmt::Write as _};

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Event, Pod},
    jiff::Timestamp,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    NotRead,
    document::PoolDocument,
    exposition::figure,
    rollout::{RevisionEntry, in_force, table},
    status::{AgentSays, PoolTree, TreeInput},
    why,
};
use crate::{
    api::{FREEZE_ANNOTATION, ROLLOUT_ANNOTATION},
    contract::{metrics, names},
};

/// The file that says what the others are.
pub const README: &str = "README.txt";
/// The file with the load, for `sluice backtest`.
pub const SAMPLES: &str = "samples.csv";
/// Annotations that are kept: they are ours, or say why something was changed.
const KEPT_ANNOTATIONS: [&str; 5] = [
    ROLLOUT_ANNOTATION,
    FREEZE_ANNOTATION,
    names::CAUSE_ANNOTATION,
    names::REVISION_ANNOTATION,
    names::GRANT_ANNOTATION,
];
/// What stands in place of a value that may hold a secret.
const LEFT_OUT: &str = "(left out)";

/// What a bundle is made of.
pub struct BundleInput<'a> {
    /// The pool.
    pub document: &'a PoolDocument,
    /// Its revisions.
    pub revisions: Result<&'a [RevisionEntry], &'a NotRead>,
    /// Its events.
    pub events: Result<&'a [Event], &'a NotRead>,
    /// Its pods.
    pub pods: Result<&'a [Pod], &'a NotRead>,
    /// What their agents say, by the name of the pod.
    pub agents: &'a BTreeMap<String, AgentSays>,
    /// The load, as lines for `sluice backtest`.
    pub samples: &'a str,
    /// What else could not be read.
    pub not_read: Vec<String>,
    /// The time.
    pub now: Timestamp,
}

/// The files, by their names.
pub fn bundle(input: &BundleInput<'_>) -> BTreeMap<&'static str, String> {
    let BundleInput { document, revisions, events, pods, agents, samples, now, .. } = input;
    let mut not_read = input.not_read.clone();
    let mut read = |missing: Option<&&NotRead>| not_read.extend(missing.map(|missing| missing.words.clone()));
    read(revisions.as_ref().err());
    read(events.as_ref().err());
    read(pods.as_ref().err());
    let settings = revisions.map(in_force);
    let tree = PoolTree::new(TreeInput { document, pods: *pods, agents, not_read: Vec::new() });
    let mut files = BTreeMap::from([
        ("pool.yaml", yaml(&pool(&document.raw))),
        ("status.txt", tree.text(document, *now)),
        (
            "why.txt",
            why::text(document, settings.as_ref().map(Option::as_ref).map_err(|missing| *missing), *events, *now),
        ),
        ("agents.yaml", yaml(&agents.iter().map(|(pod, says)| (pod, said(says))).collect::<BTreeMap<_, _>>())),
        (SAMPLES, (*samples).to_owned()),
    ]);
    if let Ok(revisions) = revisions {
        files.insert("revisions.yaml", yaml(revisions));
        files.insert("revisions.txt", table(revisions, *now).text());
    }
    if let Ok(events) = events {
        files.insert("events.yaml", yaml(&events.iter().map(event).collect::<Vec<_>>()));
    }
    if let Ok(pods) = pods {
        files.insert("pods.yaml", yaml(&pods.iter().map(pod).collect::<Vec<_>>()));
    }
    files.insert(README, readme(document, &not_read, *now));
    files
}

fn readme(document: &PoolDocument, not_read: &[String], now: Timestamp) -> String {
    let status = document.status();
    let effective = status.effective.unwrap_or_default();
    // the replay counts per pod
    let pods = status.pods.map_or(1, |pods| pods.injected.max(1));
    let each = |whole: u32| (whole / pods).max(1);
    let mut text = format!(
        "ConnectionPool {} at {now}, by kubectl sluice {}\n\n\
         pool.yaml       the pool: spec and status with its conditions and the last decision\n\
         status.txt      revisions and pods: what is wanted, granted, set and read back\n\
         why.txt         the last decision in words\n\
         revisions.yaml  the settings of each revision; revisions.txt says what each has changed\n\
         events.yaml     what was told of the pool: decisions with their ids, revisions, requests\n\
         pods.yaml       the pods: state of their containers, what they were granted and told\n\
         agents.yaml     what their agents say\n\
         {SAMPLES}     the load, as the agents counted it meanwhile\n\
         range.json      the load, as Prometheus has it, where it was named\n\n\
         No Secret was read, and no environment of a container; annotations and labels of others and the values of client.env are left out.\n\n\
         The case again, with the bounds of now for each of {pods} pods, or with others:\n  sluice backtest {SAMPLES} --min {} --max {}\n",
        document.key(),
        env!("CARGO_PKG_VERSION"),
        each(effective.min_allowed),
        each(effective.max_allowed),
    );
    if !not_read.is_empty() {
        text.push_str("\nNot read:\n");
        for words in not_read {
            let _ = writeln!(text, "  {words}");
        }
    }
    text
}

fn yaml(value: &(impl Serialize + ?Sized)) -> String {
    serde_yaml::to_string(value).unwrap_or_default()
}

/// The pool without what others wrote beside it, and without what is put into environments.
fn pool(raw: &Value) -> Value {
    let mut pool = raw.clone();
    pool["metadata"] = metadata(&raw["metadata"]);
    for env in pool.pointer_mut("/spec/client/env").and_then(Value::as_array_mut).into_iter().flatten() {
        env["template"] = LEFT_OUT.into();
    }
    pool
}

fn metadata(raw: &Value) -> Value {
    let kept = ["name", "namespace", "uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp"];
    let mut metadata: serde_json::Map<String, Value> =
        kept.iter().filter_map(|field| Some(((*field).to_owned(), raw.get(field)?.clone()))).collect();
    let annotations: serde_json::Map<String, Value> = KEPT_ANNOTATIONS
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), raw.get("annotations")?.get(name)?.clone())))
        .collect();
    metadata.insert("annotations".to_owned(), annotations.into());
    metadata.into()
}

fn event(event: &Event) -> Value {
    json!({
        "type": event.type_, "reason": event.reason, "action": event.action, "message": event.message,
        "time": event.event_time.as_ref().map(|time| time.0)
            .or(event.last_timestamp.as_ref().map(|time| time.0))
            .or(event.metadata.creation_timestamp.as_ref().map(|time| time.0)),
    })
}

fn pod(pod: &Pod) -> Value {
    let status = pod.status.clone().unwrap_or_default();
    let containers =
        status.init_container_statuses.into_iter().flatten().chain(status.container_statuses.into_iter().flatten());
    json!({
        "metadata": metadata(&serde_json::to_value(&pod.metadata).unwrap_or_default()),
        "node": pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        "phase": status.phase, "conditions": status.conditions,
        "containers": containers.map(container).collect::<Vec<_>>(),
    })
}

/// Of what a container ended of is told why, and not what it wrote.
fn container(container: ContainerStatus) -> Value {
    let state = |state: Option<k8s_openapi::api::core::v1::ContainerState>| {
        let mut state = serde_json::to_value(state).unwrap_or_default();
        if let Some(terminated) = state.get_mut("terminated").and_then(Value::as_object_mut) {
            terminated.remove("message");
        }
        state
    };
    json!({"name": container.name, "image": container.image, "ready": container.ready, "restarts": container.restart_count,
        "state": state(container.state), "lastState": state(container.last_state)})
}

fn said(says: &AgentSays) -> Value {
    match says {
        AgentSays::Report(report) => serde_json::to_value(report).unwrap_or_default(),
        AgentSays::Nothing(why) => json!({"notRead": why}),
    }
}

/// One pod's load at one moment, as a line for `sluice backtest`; none where the agent has not counted yet.
pub fn sample(at: Timestamp, pod: &str, exposition: &str) -> Option<String> {
    let sum = |name, state| figure(exposition, name, state);
    let (transactions, busy) = (sum(metrics::TRANSACTIONS, None)?, sum(metrics::BUSY_SECONDS, None)?);
    let active = sum(metrics::SERVER_CONNECTIONS, Some("active"))?;
    let waiting = sum(metrics::CLIENT_CONNECTIONS, Some("waiting"))?;
    let limit = sum(metrics::LIMIT, None)?;
    let seconds = at.as_duration().as_secs_f64();
    Some(format!("{seconds:.3},{pod},{transactions},{busy},{active},{waiting},{limit}\n"))
}
