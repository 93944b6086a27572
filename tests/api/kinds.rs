//! The kinds on a real API server: what is refused, and how it reads.

use std::collections::BTreeSet;

use k8s_openapi::api::{autoscaling::v1::Scale, rbac::v1::RoleBinding};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::api::{ConnectionPool, crds};

use crate::cluster::{Cluster, ForNow, chart, eventually, examples, kubectl, object, parse, pool};

/// Sends an object as `kubectl apply --dry-run=server --validate=strict` would; the answer is what the user reads.
async fn refusal(client: &Client, namespace: Option<&str>, plural: &str, body: &Value) -> Result<(), String> {
    let scope = namespace.map(|name| format!("namespaces/{name}/")).unwrap_or_default();
    let path = format!("/apis/sluice.dev/v1alpha1/{scope}{plural}?dryRun=All&fieldValidation=Strict");
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(serde_json::to_vec(body).expect("JSON")).expect("a request");
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{error}"),
    }
}

/// Sets a field by its dotted path; numbers index lists. Null removes it.
fn set(object: &mut Value, path: &str, value: Value) {
    let pointer = format!("/{}", path.replace('.', "/"));
    let (parent, field) = pointer.rsplit_once('/').expect("a path");
    let mut node = object;
    for token in parent.split('/').skip(1) {
        node = match token.parse::<usize>() {
            Ok(index) => &mut node[index],
            Err(_) => &mut node[token],
        };
    }
    match (field.parse::<usize>(), value) {
        (Ok(index), value) => node[index] = value,
        (Err(_), Value::Null) => drop(node.as_object_mut().expect("an object").remove(field)),
        (Err(_), value) => node[field] = value,
    }
}

struct Case {
    field: &'static str,
    value: Value,
    /// What the message must hold: the path of the field, and why.
    told: &'static [&'static str],
}

fn case(field: &'static str, value: Value, told: &'static [&'static str]) -> Case {
    Case { field, value, told }
}

async fn refuses(cluster: &Cluster, plural: &str, namespaced: bool, valid: &Value, cases: Vec<Case>) {
    let namespace = namespaced.then_some(cluster.namespace.as_str());
    refusal(&cluster.client, namespace, plural, valid).await.expect("the valid object is accepted");
    let mut wrong = Vec::new();
    for Case { field, value, told } in cases {
        let mut body = valid.clone();
        set(&mut body, field, value.clone());
        match refusal(&cluster.client, namespace, plural, &body).await {
            Ok(()) => wrong.push(format!("{field} = {value}: accepted")),
            Err(message) => {
                let missing: Vec<_> = told.iter().filter(|part| !message.contains(**part)).collect();
                if !missing.is_empty() {
                    wrong.push(format!("{field} = {value}: the message lacks {missing:?}: {message}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{plural}:\n{}", wrong.join("\n"));
}

fn complete_pool() -> Value {
    let mut value: Value = parse(&pool("shop"));
    value["spec"]["scaling"] = json!({"minAllowed": 5, "maxAllowed": 100, "floorPerPod": 3, "objective": {"waitMilliseconds": 20, "maxWaitingPercent": "0.5"}});
    value["spec"]["behavior"] =
        json!({"scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}], "tolerance": "0.05"}});
    value["spec"]["client"] = json!({"port": 5432, "env": [{"name": "PGHOST", "template": "{host}"}, {"name": "PGPORT", "template": "{port}"}]});
    value["spec"]["pgbouncer"] = json!({"poolMode": "transaction", "parameters": {"server_round_robin": "0"}});
    value["spec"]["upstream"]["tls"] = json!({"mode": "VerifyFull", "caRef": {"name": "pg-ca", "key": "ca.crt"}, "clientCertRef": {"name": "shop-db-client"}});
    value["spec"]["sidecar"] =
        json!({"resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}});
    let steps =
        json!([{"pause": {}}, {"setWeight": 10}, {"pause": {"duration": "2m"}}, {"setWeight": 10}, {"setWeight": 100}]);
    value["spec"]["rollout"] = json!({"canary": {"maxUnavailable": 2, "steps": steps}});
    value
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pool_that_makes_no_sense_is_refused_with_the_field_and_what_is_wrong() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let many: serde_json::Map<String, Value> = (0..33).map(|n| (format!("p{n}"), json!("1"))).collect();
    let cases = vec![
        // bounds
        case(
            "spec.scaling.minAllowed",
            json!(101),
            &["spec.scaling.minAllowed", "minAllowed must not exceed maxAllowed"],
        ),
        case("spec.scaling.minAllowed", json!(0), &["spec.scaling.minAllowed", "greater than or equal to 1"]),
        case("spec.scaling.maxAllowed", json!(-5), &["spec.scaling.maxAllowed", "greater than or equal to 1"]),
        case("spec.scaling.maxAllowed", json!(100_001), &["spec.scaling.maxAllowed", "less than or equal to 100000"]),
        case(
            "spec.scaling.maxAllowed",
            json!(9_223_372_036_854_775_807_i64),
            &["spec.scaling.maxAllowed", "less than or equal to"],
        ),
        case(
            "spec.scaling.maxAllowed",
            Value::Null,
            &["spec.scaling.maxAllowed", "mode Apply needs scaling.maxAllowed"],
        ),
        case("spec.scaling", Value::Null, &["spec.scaling.maxAllowed", "or a class that says it"]),
        case("spec.scaling.maxAllowed", json!("100"), &["spec.scaling.maxAllowed", "must be of type integer"]),
        case("spec.scaling.maxAllowed", json!(10.5), &["spec.scaling.maxAllowed", "must be of type integer"]),
        case("spec.scaling.floorPerPod", json!(0), &["spec.scaling.floorPerPod"]),
        case("spec.scaling.targetUtilizationPercent", json!(101), &["spec.scaling.targetUtilizationPercent"]),
        case("spec.scaling.objective.waitMilliseconds", json!(0), &["spec.scaling.objective.waitMilliseconds"]),
        case("spec.scaling.objective.maxWaitingPercent", json!("0"), &["spec.scaling.objective.maxWaitingPercent"]),
        case("spec.scaling.objective.maxWaitingPercent", json!("100"), &["spec.scaling.objective.maxWaitingPercent"]),
        case("spec.scaling.objective.maxWaitingPercent", json!("NaN"), &["spec.scaling.objective.maxWaitingPercent"]),
        case("spec.scaling.algorithm", json!("adaptive"), &["spec.scaling.algorithm", "Adaptive"]),
        case("spec.behavior.scaleUp.policies", json!([]), &["spec.behavior.scaleUp.policies", "at least 1"]),
        case(
            "spec.behavior.scaleUp.policies.0.periodSeconds",
            json!(0),
            &["spec.behavior.scaleUp.policies[0].periodSeconds"],
        ),
        case(
            "spec.behavior.scaleUp.policies.0.type",
            json!("Pods"),
            &["spec.behavior.scaleUp.policies[0].type", "Connections"],
        ),
        case("spec.behavior.scaleUp.tolerance", json!("1"), &["spec.behavior.scaleUp.tolerance"]),
        // unknown fields
        case("spec.scalling", json!({}), &["unknown field \"spec.scalling\""]),
        case("spec.scaling.maxSize", json!(10), &["unknown field \"spec.scaling.maxSize\""]),
        // what does not belong together
        case("spec.mode", json!("Recommend"), &["spec.scaling.fixedLimitPerPod", "mode Recommend"]),
        case("spec.scaling.fixedLimitPerPod", json!(8), &["spec.scaling.fixedLimitPerPod", "mode Recommend only"]),
        case("spec.gateway", json!({"replicas": 2}), &["spec.gateway", "topology Gateway only"]),
        case("spec.engine", json!("MySQL"), &["spec.engine", "PostgreSQL"]),
        case("spec.upstream.tls.mode", json!("Require"), &["spec.upstream.tls.caRef", "VerifyCa or VerifyFull only"]),
        case(
            "spec.upstream.tls",
            json!({"mode": "Disabled", "clientCertRef": {"name": "shop-db-client"}}),
            &["spec.upstream.tls.clientCertRef", "Require, VerifyCa or VerifyFull only"],
        ),
        // selectors
        case("spec.workload.selector", json!({}), &["spec.workload.selector", "empty selector"]),
        case("spec.workload.selector", json!({"matchLabels": {}}), &["spec.workload.selector", "empty selector"]),
        case("spec.workload.selector.matchLabels", json!({"app": "a b"}), &["spec.workload.selector.matchLabels"]),
        case(
            "spec.workload.selector.matchExpressions",
            json!([{"key": "app", "operator": "In"}]),
            &["matchExpressions[0].values", "In and NotIn"],
        ),
        case(
            "spec.workload.selector.matchExpressions",
            json!([{"key": "app", "operator": "Exists", "values": ["x"]}]),
            &["matchExpressions[0].values", "In and NotIn"],
        ),
        case("spec.workload", Value::Null, &["spec.workload", "Required"]),
        case("spec.topology", json!("Gateway"), &["spec.workload", "not for topology Gateway"]),
        // the database
        case("spec.upstream.host", json!(""), &["spec.upstream.host"]),
        case("spec.upstream.host", json!("pg;port=1"), &["spec.upstream.host"]),
        case("spec.upstream.host", json!("pg\nuser=x"), &["spec.upstream.host"]),
        case("spec.upstream.port", json!(0), &["spec.upstream.port"]),
        case("spec.upstream.port", json!(65_536), &["spec.upstream.port"]),
        case("spec.upstream.database", json!(""), &["spec.upstream.database"]),
        case("spec.upstream.credentialsRef", Value::Null, &["spec.upstream.credentialsRef", "Required"]),
        case("spec.upstream.credentialsRef.usernameKey", json!("a key"), &["spec.upstream.credentialsRef.usernameKey"]),
        case("spec.upstream.credentialsRef.passwordKey", json!(""), &["spec.upstream.credentialsRef.passwordKey"]),
        // the application's side
        case("spec.client.port", json!(80), &["spec.client.port"]),
        case("spec.client.maxConnections", json!(0), &["spec.client.maxConnections"]),
        case("spec.client.env.0.name", json!("PG HOST"), &["spec.client.env[0].name"]),
        case("spec.client.env.1.name", json!("PGHOST"), &["spec.client.env[1]", "Duplicate"]),
        case(
            "spec.client.tls",
            json!({"mode": "Require"}),
            &["spec.client.tls.certificateRef", "certificateRef goes with mode Allow and Require"],
        ),
        case(
            "spec.client.tls",
            json!({"mode": "Disabled", "certificateRef": {"name": "shop-tls"}}),
            &["spec.client.tls.certificateRef", "only there"],
        ),
        case("spec.client.tls", json!({"mode": "Prefer"}), &["spec.client.tls.mode", "Prefer"]),
        // the pooler
        case("spec.pgbouncer.poolMode", json!("statement"), &["spec.pgbouncer.poolMode"]),
        case(
            "spec.pgbouncer.sessionAlias",
            json!({"database": "shop", "connections": 2}),
            &["spec.pgbouncer.sessionAlias.database", "another name than upstream.database"],
        ),
        case(
            "spec.pgbouncer.sessionAlias",
            json!({"database": "pgbouncer", "connections": 2}),
            &["spec.pgbouncer.sessionAlias.database", "console"],
        ),
        case(
            "spec.pgbouncer.sessionAlias",
            json!({"database": "a b", "connections": 2}),
            &["spec.pgbouncer.sessionAlias.database"],
        ),
        case(
            "spec.pgbouncer.sessionAlias",
            json!({"database": "shop_session", "connections": 0}),
            &["spec.pgbouncer.sessionAlias.connections", "greater than or equal to 1"],
        ),
        case(
            "spec.pgbouncer.sessionAlias",
            json!({"database": "shop_session", "connections": 3}),
            &["spec.scaling.floorPerPod", "larger than pgbouncer.sessionAlias.connections"],
        ),
        case("spec.pgbouncer.parameters", Value::Object(many), &["spec.pgbouncer.parameters", "at most 32"]),
        case(
            "spec.pgbouncer.parameters.server_round_robin",
            json!("x".repeat(129)),
            &["spec.pgbouncer.parameters.server_round_robin"],
        ),
        case("spec.sidecar.resources.requests.cpu", json!("10 m"), &["spec.sidecar.resources.requests.cpu"]),
        case("spec.sidecar.resources.requests.cpu", json!("0"), &["spec.sidecar.resources.requests.cpu"]),
        case("spec.sidecar.resources.limits.memory", json!("64K"), &["spec.sidecar.resources.limits.memory"]),
        case(
            "spec.sidecar.resources.requests.memory",
            json!("128Mi"),
            &["spec.sidecar.resources.limits.memory", "below requests.memory"],
        ),
        case(
            "spec.sidecar.resources.limits.cpu",
            json!("5m"),
            &["spec.sidecar.resources.limits.cpu", "below requests.cpu"],
        ),
        // rollout
        case(
            "spec.rollout.canary.steps",
            json!([{"setWeight": 10, "pause": {}}]),
            &["spec.rollout.canary.steps[0]", "exactly one"],
        ),
        case(
            "spec.rollout.canary.steps",
            json!([{"pause": {"duration": "2 minutes"}}]),
            &["spec.rollout.canary.steps[0].pause.duration"],
        ),
        case(
            "spec.rollout.canary.steps",
            json!([{"pause": {"duration": "0s"}}]),
            &["spec.rollout.canary.steps[0].pause.duration"],
        ),
        // steps that never end, or take back what a step before gave
        case(
            "spec.rollout.canary.steps",
            json!([{"setWeight": 10}, {"pause": {"duration": "999999h"}}]),
            &["spec.rollout.canary.steps[1].pause.duration", "a week at most"],
        ),
        case(
            "spec.rollout.canary.steps",
            json!([{"setWeight": 50}, {"pause": {}}, {"setWeight": 20}]),
            &["spec.rollout.canary.steps", "weights never fall"],
        ),
        case("spec.rollout.canary.steps", json!([{"setWeight": 0}]), &["spec.rollout.canary.steps[0].setWeight"]),
        case("spec.rollout.canary.steps", json!([{"setWeight": 101}]), &["spec.rollout.canary.steps[0].setWeight"]),
        case("spec.rollout.revisionHistoryLimit", json!(0), &["spec.rollout.revisionHistoryLimit"]),
        case("spec.rollout.progressDeadlineSeconds", json!(0), &["spec.rollout.progressDeadlineSeconds"]),
        case("spec.rollout.canary.maxUnavailable", json!(0), &["spec.rollout.canary.maxUnavailable"]),
        // an analysis that nothing can be judged by
        case("spec.rollout.analysis", json!({}), &["spec.rollout.analysis.metrics", "without a metric"]),
        case("spec.rollout.analysis", json!({"metrics": []}), &["spec.rollout.analysis.metrics", "without a metric"]),
        case(
            "spec.rollout.analysis",
            json!({"metrics": [{"name": "errors"}]}),
            &["spec.rollout.analysis.metrics[0].name", "unknown metric: known are TransactionTime"],
        ),
        case(
            "spec.rollout.analysis",
            json!({"metrics": [{"name": "Errors", "query": "up", "successCondition": "result < 1"}]}),
            &["spec.rollout.analysis.metrics[0].query", "give your own another name"],
        ),
        case(
            "spec.rollout.analysis",
            json!({"metrics": [{"name": "mine", "query": "up"}]}),
            &["spec.rollout.analysis.metrics[0]", "a query and a successCondition"],
        ),
        case(
            "spec.rollout.analysis",
            json!({"metrics": [{"name": "mine", "query": "up", "successCondition": "result \u{2264} 1"}]}),
            &["spec.rollout.analysis.metrics[0].successCondition", "should match"],
        ),
        case(
            "spec.rollout.analysis",
            json!({"metrics": [{"name": "mine", "query": "up", "failureCondition": "result < 1".repeat(30)}]}),
            &["spec.rollout.analysis.metrics[0].failureCondition", "may not be more than 256"],
        ),
        // a deadline that is over before anybody can know
        case(
            "spec.rollout",
            json!({"progressDeadlineSeconds": 74, "analysis": {"metrics": [{"name": "Errors"}], "plannedExposureSeconds": 60}}),
            &["spec.rollout.progressDeadlineSeconds", "before analysis can know", "set it to that sum or more"],
        ),
        case(
            "spec.rollout",
            json!({"progressDeadlineSeconds": 74, "postPromotionAnalysis": {"metrics": [{"name": "Errors"}], "plannedExposureSeconds": 60}}),
            &[
                "spec.rollout.progressDeadlineSeconds",
                "before postPromotionAnalysis can know",
                "set it to that sum or more",
            ],
        ),
        // the same of one after the promotion
        case(
            "spec.rollout.postPromotionAnalysis",
            json!({"plannedExposureSeconds": 60}),
            &["spec.rollout.postPromotionAnalysis.metrics", "without a metric"],
        ),
        case(
            "spec.rollout.postPromotionAnalysis",
            json!({"metrics": [{"name": "errors"}]}),
            &["spec.rollout.postPromotionAnalysis.metrics[0].name", "unknown metric: known are TransactionTime"],
        ),
        case(
            "spec.rollout.postPromotionAnalysis",
            json!({"metrics": [{"name": "mine", "query": "up", "failureCondition": "result \u{2265} 1"}]}),
            &["spec.rollout.postPromotionAnalysis.metrics[0].failureCondition", "should match"],
        ),
        case(
            "spec.rollout.canary.steps",
            json!([{"setWeight": 10}, {"pause": {}, "analysis": {}}]),
            &["spec.rollout.canary.steps[1]", "exactly one of setWeight, pause and analysis"],
        ),
        // what is not built yet
        case("spec.sharing", json!({"weight": 50}), &["spec.sharing", "keeps no ledger"]),
        case("spec.topology", json!("External"), &["spec.topology", "does not support topology External"]),
        // what has no effect
        case(
            "spec.scaling",
            json!({"algorithm": "Adaptive", "targetUtilizationPercent": 80}),
            &["spec.scaling.targetUtilizationPercent", "no effect"],
        ),
        // the object itself
        case("metadata.name", json!("a".repeat(64)), &["metadata.name", "63"]),
        case("spec", Value::Null, &["spec", "Required"]),
    ];
    refuses(&cluster, "connectionpools", true, &complete_pool(), cases).await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_gateway_that_makes_no_sense_is_refused_with_the_field_and_what_is_wrong() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let mut gateway = complete_pool();
    set(&mut gateway, "spec.workload", Value::Null);
    set(&mut gateway, "spec.client.env", Value::Null);
    set(&mut gateway, "spec.topology", json!("Gateway"));
    let spec = json!({"nodeSelector": {"a": "b"}, "tolerations": [{"key": "db", "operator": "Exists"}],
        "priorityClassName": "high", "terminationGracePeriodSeconds": 1900});
    let template = json!({"metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}}, "spec": spec});
    set(&mut gateway, "spec.gateway", json!({"replicas": 2, "template": template}));
    let ours = || json!({"sluice.dev/pool": "other"});
    let cases = vec![
        case(
            "spec.workload",
            json!({"selector": {"matchLabels": {"a": "b"}}}),
            &["spec.workload", "not for topology Gateway"],
        ),
        case("spec.topology", json!("Sidecar"), &["spec.gateway", "topology Gateway only"]),
        case("spec.gateway.replicas", json!(101), &["spec.gateway.replicas", "100"]),
        case("spec.gateway.replicas", json!(-1), &["spec.gateway.replicas"]),
        case("spec.gateway.template.metadata.labels", ours(), &["template.metadata.labels", "Sluice's own"]),
        case("spec.gateway.template.metadata.annotations", ours(), &["template.metadata.annotations", "Sluice's own"]),
        case(
            "spec.gateway.template.spec.terminationGracePeriodSeconds",
            json!(34),
            &["terminationGracePeriodSeconds", "35"],
        ),
        case("spec.gateway.template.spec.tolerations.0.operator", json!("exists"), &["tolerations[0].operator"]),
        case("spec.gateway.template.spec.containers", json!([]), &["unknown field"]),
        case(
            "spec.client.env",
            json!([{"name": "PGHOST", "template": "{host}"}]),
            &["spec.client.env", "not for topology Gateway"],
        ),
        case("spec.health.bypassAction", json!("Ignore"), &["spec.health.bypassAction", "not for topology Gateway"]),
        case("metadata.name", json!("a".repeat(56)), &["metadata.name", "55"]),
        // names of pools and of no Services
        case("metadata.name", json!("1shop"), &["metadata.name", "begins with a letter"]),
        case("metadata.name", json!("shop.v2"), &["metadata.name", "no dots"]),
    ];
    refuses(&cluster, "connectionpools", true, &gateway, cases).await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_budget_or_class_that_makes_no_sense_is_refused_with_the_field_and_what_is_wrong() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let budget: Value = parse(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionBudget\nmetadata: {name: kinds-budget}\nspec:\n  \
         server: {hosts: [pg-main-rw.db.svc], port: 5432}\n  capacity: {source: Fixed, connections: 200}\n  \
         reserved: {connections: 10, percent: 5}\n",
    );
    let secret = json!({"namespace": "sluice-system", "name": "pg-main-monitor"});
    refuses(
        &cluster,
        "connectionbudgets",
        false,
        &budget,
        vec![
            case("spec.capacity.connections", Value::Null, &["spec.capacity.connections", "source Fixed"]),
            case("spec.capacity.connections", json!(0), &["spec.capacity.connections"]),
            case("spec.capacity.source", json!("Server"), &["spec.capacity.source", "this version asks no server"]),
            case(
                "spec.capacity.credentialsRef",
                secret,
                &["spec.capacity.credentialsRef", "this version asks no server"],
            ),
            case("spec.server.hosts", json!([]), &["spec.server.hosts", "at least 1"]),
            case("spec.server.port", json!(0), &["spec.server.port"]),
            case("spec.reserved.percent", json!(91), &["spec.reserved.percent"]),
            case("spec.reserved.connections", json!(-1), &["spec.reserved.connections"]),
            // what needs a ledger
            case("spec.allowedNamespaces", json!({"from": "All"}), &["spec.allowedNamespaces", "keeps no ledger"]),
            case("spec.admission", json!("Enforce"), &["spec.admission", "keeps no ledger"]),
            case("spec.fencing", json!({"nodeLostSeconds": 300}), &["spec.fencing", "keeps no ledger"]),
            case("metadata.name", json!("a".repeat(64)), &["metadata.name", "63"]),
        ],
    )
    .await;

    let class: Value = parse(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPoolClass\nmetadata: {name: kinds-class}\nspec: {scaling: {minAllowed: 20, maxAllowed: 50}}\n",
    );
    refuses(
        &cluster,
        "connectionpoolclasses",
        false,
        &class,
        vec![
            case(
                "spec.scaling.minAllowed",
                json!(51),
                &["spec.scaling.minAllowed", "minAllowed must not exceed maxAllowed"],
            ),
            case("spec.scaling.fixedLimitPerPod", json!(8), &["spec.scaling.fixedLimitPerPod", "not to a class"]),
            case("spec.pgbouncer.reconnectedAt", json!("2026-11-28T12:00:00+99:00"), &["spec.pgbouncer.reconnectedAt"]),
            case("spec.workload", json!({}), &["unknown field \"spec.workload\""]),
        ],
    )
    .await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_a_class_may_supply_is_never_written_into_a_pool() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let created: ConnectionPool = cluster.create(&pool("shop")).await.expect("accepted");
    let stored = serde_json::to_value(&created.spec).expect("JSON");
    assert_eq!(stored["scaling"], json!({"maxAllowed": 100}), "the API server wrote more than the pool says");
    for group in ["client", "behavior", "pgbouncer", "health", "rollout", "sidecar", "gateway"] {
        assert!(stored.get(group).is_none(), "the API server wrote {group}: {stored}");
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn engine_and_topology_of_a_pool_cannot_be_changed() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let pools: Api<ConnectionPool> = cluster.api();
    cluster.create::<ConnectionPool>(&pool("shop")).await.expect("accepted");
    let patch = Patch::Merge(json!({"spec": {"topology": "External"}}));
    let refused = pools.patch("shop", &PatchParams::default(), &patch).await.expect_err("refused").to_string();
    assert!(refused.contains("spec.topology") && refused.contains("topology cannot be changed"), "{refused}");
    let patch = Patch::Merge(json!({"spec": {"engine": "MySQL"}}));
    let refused = pools.patch("shop", &PatchParams::default(), &patch).await.expect_err("refused").to_string();
    assert!(refused.contains("spec.engine"), "{refused}");
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn names_that_are_hostile_to_configuration_files_are_stored_as_they_are() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    for (index, database) in
        ["sh'op", "sh\"op", "sh;op", "sh%op", "a=b", "größe", "a\nb", "$(PATH)", "$$"].iter().enumerate()
    {
        let mut body: Value = parse(&pool(&format!("shop-{index}")));
        body["spec"]["upstream"]["database"] = json!(database);
        let stored = cluster.api::<ConnectionPool>().create(&PostParams::default(), &object(body)).await;
        assert_eq!(stored.expect("accepted").spec.upstream.database, *database);
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn kubectl_get_shows_the_columns_with_their_values() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let pools: Api<ConnectionPool> = cluster.api();
    let mut body: Value = parse(&pool("shop"));
    body["spec"]["budgetRef"] = json!({"name": "pg-main"});
    pools.create(&PostParams::default(), &object(body)).await.expect("accepted");
    let status = json!({"status": {
        "currentSize": 37, "share": 60, "lastScaleTime": "2026-11-21T00:00:00Z",
        "recommendation": {"target": 41, "lowerBound": 33, "upperBound": 58, "uncappedTarget": 43, "confidence": "High"},
        "load": {"demand": "29.4", "held": 35, "active": 29, "waiting": 2, "ageSeconds": 9},
        "pods": {"matched": 6, "injected": 6, "current": 6, "proven": 6, "reporting": 6},
        "revision": {"stable": 7, "updated": 8},
        "effective": {"class": "production", "minAllowed": 20, "maxAllowed": 50},
        "conditions": [{"type": "Ready", "status": "False", "reason": "Learning", "message": "m", "lastTransitionTime": "2026-11-21T00:00:00Z"}],
    }});
    pools.patch_status("shop", &PatchParams::default(), &Patch::Merge(status)).await.expect("accepted");
    let table = |wide: &[&str]| {
        let output = kubectl(&[&["get", "cpool", "-n", &cluster.namespace], wide].concat(), "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let rows = table(&[]);
    let columns = "NAME MODE SIZE TARGET SHARE DEMAND WAITING PODS READY REASON AGE";
    assert_eq!(rows[0].join(" "), columns);
    assert_eq!(rows[1][..10].join(" "), "shop Apply 37 41 60 29.4 2 6 False Learning");
    let rows = table(&["-o", "wide"]);
    assert_eq!(rows[0].join(" "), format!("{columns} MIN MAX UNCAPPED REVISION BUDGET CLASS LASTSCALE"));
    assert_eq!(rows[1][11..17].join(" "), "20 50 43 8 pg-main production");
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn kubectl_explain_says_something_of_every_field() {
    let _cluster = Cluster::new("kinds", &json!({})).await;
    let mut silent = Vec::new();
    for crd in crds() {
        let schema =
            crd.spec.versions[0].schema.clone().and_then(|schema| schema.open_api_v3_schema).expect("a schema");
        let spec = serde_json::to_value(&schema).expect("JSON")["properties"]["spec"].clone();
        for path in objects(&format!("{}.spec", crd.spec.names.plural), &spec) {
            let output = kubectl(&["explain", &path], "");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
            if text.contains("<no description>") || !text.contains("DESCRIPTION:") {
                silent.push(format!("{path}:\n{text}"));
            }
        }
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

fn objects(path: &str, node: &Value) -> Vec<String> {
    let node = if node["items"].is_object() { &node["items"] } else { node };
    let Some(properties) = node["properties"].as_object() else { return Vec::new() };
    let below = properties.iter().flat_map(|(field, child)| objects(&format!("{path}.{field}"), child));
    std::iter::once(path.to_owned()).chain(below).collect()
}

/// Somebody who may edit what is in the namespace, and somebody who may look: by the roles that the chart adds to the cluster's
/// own, which a cluster's controller puts together and here nobody does.
async fn editor_and_viewer(cluster: &Cluster) -> Vec<ForNow> {
    let mut installed = Vec::new();
    for mut role in chart("templates/rbac-users.yaml", &cluster.namespace) {
        let own = role["metadata"]["name"].as_str().expect("a name").to_owned();
        role["metadata"].as_object_mut().expect("metadata").remove("labels");
        installed.push(cluster.apply_for_now(&role).await);
        // whoever may edit may look
        let who: &[&str] = if own.ends_with("-view") { &["editor", "viewer"] } else { &["editor"] };
        let subjects: Vec<Value> = who
            .iter()
            .map(|name| json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}))
            .collect();
        let binding: RoleBinding = object(json!({"metadata": {"name": own}, "subjects": subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": own}}));
        cluster.api().create(&PostParams::default(), &binding).await.expect("bound");
    }
    installed
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn kubectl_scale_fails_on_a_sidecar_pool_and_works_on_a_gateway_for_whoever_may_edit_the_namespace() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let pools: Api<ConnectionPool> = cluster.api();
    cluster.create::<ConnectionPool>(&pool("shop")).await.expect("accepted");
    let roles = editor_and_viewer(&cluster).await;
    let run_as = |who, args: &[&str]| kubectl(&[args, &["-n", &cluster.namespace, "--as", who]].concat(), "");
    for who in ["editor", "viewer"] {
        eventually("the roles are in force", || async {
            run_as(who, &["get", "connectionpool/shop"]).status.success().then_some(())
        })
        .await;
    }
    let scaled = run_as("editor", &["scale", "connectionpool/shop", "--replicas=3"]);
    let told = String::from_utf8_lossy(&scaled.stderr).into_owned();
    assert!(!scaled.status.success() && told.contains("gateway is for topology Gateway only"), "{told}");

    let mut gateway: Value = parse(&pool("shared"));
    gateway["spec"]["topology"] = json!("Gateway");
    gateway["spec"].as_object_mut().expect("a spec").remove("workload");
    gateway["spec"]["gateway"] = json!({"replicas": 2});
    pools.create(&PostParams::default(), &object(gateway)).await.expect("accepted");
    let status = json!({"status": {"gateway": {"replicas": 2, "selector": "app=shared"}}});
    pools.patch_status("shared", &PatchParams::default(), &Patch::Merge(status)).await.expect("accepted");
    let scaled = run_as("editor", &["scale", "connectionpool/shared", "--replicas=3"]);
    assert!(scaled.status.success(), "{}", String::from_utf8_lossy(&scaled.stderr));
    let path = format!("/apis/sluice.dev/v1alpha1/namespaces/{}/connectionpools/shared/scale", cluster.namespace);
    let seen = run_as("viewer", &["get", "--raw", &path]);
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
    let refused = run_as("viewer", &["scale", "connectionpool/shared", "--replicas=5"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("connectionpools/scale"), "{told}");
    let scale: Scale = pools.get_scale("shared").await.expect("a scale");
    assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(3));
    assert_eq!(scale.status.and_then(|status| status.selector).as_deref(), Some("app=shared"));
    for role in roles {
        role.end().await;
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn the_examples_are_accepted_as_strictly_as_kubectl_can() {
    let cluster = Cluster::new("kinds", &json!({})).await;
    let mut kinds = BTreeSet::new();
    for (path, mut example) in examples() {
        example["metadata"].as_object_mut().expect("metadata").remove("namespace");
        kinds.insert(example["kind"].to_string());
        let args = ["apply", "--dry-run=server", "--validate=strict", "-n", &cluster.namespace, "-f", "-"];
        let output = kubectl(&args, &example.to_string());
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(kinds.len(), 3, "an example of every kind: {kinds:?}");
}
