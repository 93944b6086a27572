//! Every field that a class may set: it has effect, the pool wins over it, and no other field is lost for that. Or it is named
//! here as one without effect.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Map, Value, json};
use sluice::{
    api::{ConnectionPoolClass, ConnectionPoolSpec, crds},
    decide::effective::{EffectivePool, PoolRefusal, effective},
};

/// The fields with effect, each with two values that are not the built-in one.
fn fields() -> Vec<(&'static str, Value, Value)> {
    let policies = |value: u32| json!([{"type": "Connections", "value": value, "periodSeconds": 30}]);
    vec![
        ("upstream.tls.mode", json!("VerifyCa"), json!("Require")),
        ("upstream.tls.caRef", json!({"name": "ca", "key": "ca.crt"}), json!({"name": "own-ca", "key": "root.pem"})),
        ("upstream.tls.clientCertRef", json!({"name": "shown"}), json!({"name": "own-shown"})),
        ("client.port", json!(6432), json!(6433)),
        (
            "client.tls",
            json!({"mode": "Require", "certificateRef": {"name": "tls"}}),
            json!({"mode": "Allow", "certificateRef": {"name": "own-tls"}}),
        ),
        ("client.maxConnections", json!(77), json!(78)),
        (
            "client.env",
            json!([{"name": "DB_HOST", "template": "{host}"}]),
            json!([{"name": "DB_PORT", "template": "{port}"}]),
        ),
        ("scaling.algorithm", json!("LoadFactor"), json!("TargetUtilization")),
        ("scaling.minAllowed", json!(7), json!(8)),
        ("scaling.maxAllowed", json!(50), json!(60)),
        ("scaling.floorPerPod", json!(5), json!(6)),
        ("scaling.localReaction", json!("Disabled"), json!("Enabled")),
        ("scaling.objective.waitMilliseconds", json!(55), json!(56)),
        ("scaling.objective.maxWaitingPercent", json!("7"), json!("8")),
        ("scaling.targetUtilizationPercent", json!(61), json!(62)),
        ("scaling.metrics.prometheusRef", json!("far"), json!("near")),
        (
            "scaling.metrics.overrides",
            json!([{"signal": "WaitingClients", "query": "sum(a)"}]),
            json!([{"signal": "WaitingClients", "query": "sum(b)"}]),
        ),
        ("behavior.scaleUp.stabilizationWindowSeconds", json!(42), json!(43)),
        ("behavior.scaleUp.selectPolicy", json!("Min"), json!("Disabled")),
        ("behavior.scaleUp.policies", policies(3), policies(4)),
        ("behavior.scaleUp.tolerance", json!("0.3"), json!("0.4")),
        ("behavior.scaleDown.stabilizationWindowSeconds", json!(42), json!(43)),
        ("behavior.scaleDown.selectPolicy", json!("Min"), json!("Disabled")),
        ("behavior.scaleDown.policies", policies(3), policies(4)),
        ("behavior.scaleDown.tolerance", json!("0.3"), json!("0.4")),
        ("pgbouncer.image", json!("registry.test/pgbouncer:1"), json!("registry.test/pgbouncer:2")),
        ("pgbouncer.poolMode", json!("session"), json!("transaction")),
        (
            "pgbouncer.sessionAlias",
            json!({"database": "shop_session", "connections": 2}),
            json!({"database": "own_session", "connections": 3}),
        ),
        ("pgbouncer.reconnectedAt", json!("2026-11-28T10:00:00Z"), json!("2026-11-28T11:00:00Z")),
        ("pgbouncer.parameters", json!({"server_idle_timeout": "61"}), json!({"server_lifetime": "601"})),
        ("health.validationQuery", json!("select 2"), json!("select 3")),
        ("health.periodSeconds", json!(11), json!(12)),
        ("health.queryWaitTimeoutSeconds", json!(33), json!(34)),
        ("health.leakThresholdSeconds", json!(301), json!(302)),
        ("health.bypassAction", json!("Ignore"), json!("Report")),
        ("health.outageAction", json!("Queue"), json!("FailFast")),
        ("rollout.progressDeadlineSeconds", json!(700), json!(800)),
        ("rollout.revisionHistoryLimit", json!(5), json!(6)),
        ("rollout.blueGreen.autoPromotionEnabled", json!(false), json!(true)),
        ("rollout.blueGreen.scaleDownDelaySeconds", json!(31), json!(32)),
        ("rollout.blueGreen.drainTimeoutSeconds", json!(60), json!(61)),
        ("rollout.canary.maxUnavailable", json!(3), json!(4)),
        (
            "rollout.canary.steps",
            json!([{"setWeight": 20}, {"pause": {"duration": "30s"}}, {"analysis": {}}]),
            json!([{"setWeight": 30}]),
        ),
        (
            "rollout.analysis.metrics",
            json!([
                {"name": "Errors", "compare": false, "limitCount": 3},
                {"name": "LongestWait", "limitMilliseconds": 50, "failureLimit": 1},
                {"name": "own", "query": "up", "successCondition": "result < 1", "failureCondition": "result > 2"},
            ]),
            json!([{"name": "TransactionTime"}]),
        ),
        ("rollout.analysis.minTransactions", json!(5), json!(6)),
        ("rollout.analysis.plannedExposureSeconds", json!(40), json!(41)),
        ("rollout.analysis.maxExposureSeconds", json!(200), json!(201)),
        (
            "rollout.postPromotionAnalysis.metrics",
            json!([
                {"name": "Errors", "compare": false, "limitCount": 3},
                {"name": "LongestWait", "limitMilliseconds": 50, "failureLimit": 1},
                {"name": "own", "query": "up", "successCondition": "result < 1", "failureCondition": "result > 2"},
            ]),
            json!([{"name": "TransactionTime"}]),
        ),
        ("rollout.postPromotionAnalysis.minTransactions", json!(5), json!(6)),
        ("rollout.postPromotionAnalysis.plannedExposureSeconds", json!(40), json!(41)),
        ("rollout.postPromotionAnalysis.maxExposureSeconds", json!(200), json!(201)),
        ("sidecar.resources.requests.cpu", json!("20m"), json!("30m")),
        ("sidecar.resources.requests.memory", json!("40Mi"), json!("41Mi")),
        ("sidecar.resources.limits.cpu", json!("400m"), json!("500m")),
        ("sidecar.agentPort", json!(9131), json!(9132)),
        ("sidecar.readiness", json!("WithShare"), json!("Independent")),
        ("sidecar.resources.limits.memory", json!("96Mi"), json!("97Mi")),
    ]
}

/// Why a field has no effect.
enum Idle {
    /// There is one value, and it is the built-in one.
    OneValue,
    /// The schema refuses it in a class.
    Refused,
}

/// The fields without effect.
const IDLE: [(&str, Idle); 3] = [
    ("client.auth", Idle::OneValue),
    ("health.leakAction", Idle::OneValue),
    ("scaling.fixedLimitPerPod", Idle::Refused),
];

/// Every field that is tried here, or is known to have no effect.
pub fn paths() -> impl Iterator<Item = &'static str> {
    fields().into_iter().map(|(path, ..)| path).chain(IDLE.iter().map(|(path, _)| *path))
}

/// Taken whole: the schema lets no part of it stand alone.
const WHOLE: &str = "client.tls";

/// The schema of a class's spec.
fn schema() -> Value {
    let crds = crds();
    let class = crds.iter().find(|crd| crd.spec.names.kind == "ConnectionPoolClass").expect("the class");
    let schema = class.spec.versions[0].schema.as_ref().expect("a schema");
    let schema = serde_json::to_value(schema.open_api_v3_schema.as_ref()).expect("JSON");
    schema["properties"]["spec"].clone()
}

/// The fields of which each has a value of its own: lists, maps, and objects of which no part may be left out, are one.
fn leaves(path: &str, node: &Value, into: &mut Vec<(String, Value)>) {
    let parts = node["properties"].as_object();
    let required = node["required"].as_array().map_or(0, Vec::len);
    match parts {
        Some(parts) if path != WHOLE && required < parts.len() => {
            for (field, part) in parts {
                let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
                leaves(&path, part, into);
            }
        }
        _ => into.push((path.to_owned(), node.clone())),
    }
}

fn all_leaves() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    leaves("", &schema(), &mut all);
    all
}

/// The schema of one of them.
fn node<'a>(leaves: &'a [(String, Value)], wanted: &str) -> &'a Value {
    &leaves.iter().find(|(path, _)| path == wanted).expect("it was compared").1
}

/// One document over another: what the upper leaves out stays.
pub fn over(lower: &Value, upper: &Value) -> Value {
    let (Value::Object(lower), Value::Object(upper)) = (lower, upper) else { return upper.clone() };
    let mut both = lower.clone();
    for (field, value) in upper {
        let value = both.get(field).map_or_else(|| value.clone(), |lower| over(lower, value));
        both.insert(field.clone(), value);
    }
    Value::Object(both)
}

/// A document with one value in it, and with the mode that TLS cannot do without, and the metric that an analysis cannot.
fn said(path: &str, value: &Value) -> Value {
    let said =
        path.rsplit('.').fold(value.clone(), |inner, field| Value::Object(Map::from_iter([(field.to_owned(), inner)])));
    let metrics = json!({"metrics": [{"name": "WaitTime"}]});
    if path.starts_with("rollout.analysis.") || path == "rollout.canary.steps" {
        return over(&json!({"rollout": {"analysis": metrics}}), &said);
    }
    if path.starts_with("rollout.postPromotionAnalysis.") {
        return over(&json!({"rollout": {"postPromotionAnalysis": metrics}}), &said);
    }
    if path.starts_with("upstream.tls.") {
        return over(&json!({"upstream": {"tls": {"mode": "VerifyFull"}}}), &said);
    }
    said
}

/// What is in force for a pool that says this, with a class that says that.
fn in_force(pool: &Value, class: Option<&Value>) -> Result<EffectivePool, PoolRefusal> {
    let least = json!({
        "workload": {"selector": {"matchLabels": {"app": "shop"}}},
        "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
    });
    let pool: ConnectionPoolSpec = serde_json::from_value(over(&least, pool)).expect("a pool");
    let class: Option<ConnectionPoolClass> = class.map(|class| {
        let class = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPoolClass",
            "metadata": {"name": "common"}, "spec": class});
        serde_json::from_value(class).expect("a class")
    });
    Ok(EffectivePool { class: None, ..effective(&pool, class.as_ref())? })
}

#[test]
fn every_field_that_a_class_may_set_has_effect_or_is_named_as_one_without() {
    let fields = fields();
    let known: BTreeSet<&str> =
        fields.iter().map(|(path, ..)| *path).chain(IDLE.iter().map(|(path, _)| *path)).collect();
    let all = all_leaves();
    let of_schema: BTreeSet<&str> = all.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(of_schema, known, "the schema, and the fields of this test");

    let nothing = json!({});
    for (path, value, _) in &fields {
        let class = said(path, value);
        assert_ne!(in_force(&nothing, Some(&class)), in_force(&nothing, None), "{path} of a class has no effect");
        assert_eq!(in_force(&nothing, Some(&class)), in_force(&class, None), "{path}: class and pool differ");
        // a field of a list's items that is new has to be said here, unless the schema refuses it
        let items = &node(&all, path)["items"];
        for part in items["properties"].as_object().into_iter().flat_map(Map::keys) {
            let rules = items["x-kubernetes-validations"].as_array().into_iter().flatten();
            let is_refused = rules.into_iter().any(|rule| rule["rule"] == format!("!has(self.{part})"));
            let is_tried = value.as_array().into_iter().flatten().any(|item| item.get(part).is_some());
            assert!(is_tried || is_refused, "{path}[].{part} is not tried");
        }
    }
    for (path, why) in &IDLE {
        let node = node(&all, path);
        match why {
            Idle::OneValue => assert_eq!(node["enum"].as_array().map(Vec::len), Some(1), "{path}"),
            // by which rule is looked at in `fields`
            Idle::Refused => {}
        }
    }
}

#[test]
fn what_a_pool_leaves_out_is_as_if_it_said_what_its_class_says_whatever_else_it_says() {
    let class = fields().iter().fold(json!({}), |class, (path, value, _)| over(&said(path, value), &class));
    assert!(in_force(&json!({}), Some(&class)).is_ok(), "all fields at once are accepted");
    for (path, _, value) in fields() {
        let pool = said(path, &value);
        let expected = in_force(&over(&class, &pool), None);
        assert!(expected.is_ok(), "{path}: {expected:?}");
        assert_eq!(in_force(&pool, Some(&class)), expected, "a pool that says {path}");
    }
}

#[test]
fn queries_of_pool_and_class_for_different_signals_count_both() {
    let of = |signal: &str| said("scaling.metrics.overrides", &json!([{"signal": signal, "query": "sum(a)"}]));
    let both = in_force(&of("WaitingClients"), Some(&of("ActiveConnections"))).expect("accepted");
    assert_eq!(both.metrics.overrides.len(), 2);
}

/// The sources, without their tests.
pub fn sources(path: &Path, into: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(path).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.file_name().is_some_and(|name| name != "tests.rs") {
            let text = fs::read_to_string(&path).expect("a text");
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            into.push((path.display().to_string(), code));
        }
    }
}

#[test]
fn what_a_class_may_set_is_read_where_it_is_merged_and_nowhere_else() {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    assert!(all.len() > 100, "the sources were not found");
    let schema = schema();
    let groups = schema["properties"].as_object().expect("groups").keys().filter(|group| *group != "upstream");
    let groups: Vec<String> =
        groups.map(|group| format!(".spec.{group}")).chain([".upstream.tls.as_ref".to_owned()]).collect();
    let merges = |path: &str| path.ends_with("/decide/effective.rs") || path.contains("/src/api/");
    for (path, code) in all.iter().filter(|(path, _)| !merges(path)) {
        let read: Vec<&str> =
            code.lines().filter(|line| groups.iter().any(|group| line.contains(group.as_str()))).collect();
        assert!(read.is_empty(), "{path} passes by the class, see decide::effective: {read:?}");
    }
}
