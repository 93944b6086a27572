//! The admission policy of the chart: whose hands stay off `sluice.dev/*`.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::Pod,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, ForNow, chart, eventually, object};

/// The service account of a release `sluice`.
const OPERATOR: &str = "sluice";

/// The policy as the chart installs it, for the pods of one namespace alone.
async fn policy(cluster: &Cluster) -> Vec<ForNow> {
    let mut installed = Vec::new();
    for mut value in chart("templates/policy.yaml", &cluster.namespace) {
        value["metadata"]["name"] = json!(cluster.namespace);
        if value["kind"] == "ValidatingAdmissionPolicy" {
            let own = json!({"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}});
            value["spec"]["matchConstraints"]["namespaceSelector"] = own;
        } else {
            value["spec"]["policyName"] = json!(cluster.namespace);
        }
        installed.push(cluster.apply_for_now(&value).await);
    }
    // What the operator's role and a user with every right on pods may do by RBAC; impersonated users have nothing else.
    let name = format!("{}-pods", cluster.namespace);
    let role: ClusterRole = object(json!({"metadata": {"name": name}, "rules": [
        {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["get", "patch", "update"]}]}));
    let subject = |account: &str| json!({"kind": "ServiceAccount", "namespace": cluster.namespace, "name": account});
    let binding: ClusterRoleBinding = object(json!({"metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [subject(OPERATOR), subject("somebody")]}));
    for value in [with_types(&role), with_types(&binding)] {
        installed.push(cluster.apply_for_now(&value).await);
    }
    installed
}

fn with_types<K: k8s_openapi::Resource + serde::Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("JSON")
}

async fn pod(cluster: &Cluster) {
    let pod: Pod = object(json!({
        "metadata": {"name": "shop", "labels": {"app": "shop", "sluice.dev/pool": "shop"},
            "annotations": {"sluice.dev/revision": "{}", "sluice.dev/grant": "{}", "team": "a"}, "finalizers": ["example.com/a"]},
        "spec": {"containers": [{"name": "app", "image": "app"}]}}));
    cluster.api::<Pod>().create(&PostParams::default(), &pod).await.expect("a pod");
    let plain: Pod =
        object(json!({"metadata": {"name": "plain"}, "spec": {"containers": [{"name": "app", "image": "app"}]}}));
    cluster.api::<Pod>().create(&PostParams::default(), &plain).await.expect("a pod");
}

/// The policy on what the operator writes for gateways, for the objects of one namespace, and every right that it narrows.
async fn gateway_policy(cluster: &Cluster) -> Vec<ForNow> {
    let mut installed = Vec::new();
    let own_name = format!("{}-gateway", cluster.namespace);
    for mut value in chart("templates/policy-gateway.yaml", &cluster.namespace) {
        value["metadata"]["name"] = json!(own_name);
        if value["kind"] == "ValidatingAdmissionPolicy" {
            let own = json!({"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}});
            value["spec"]["matchConstraints"]["namespaceSelector"] = own;
        } else {
            value["spec"]["policyName"] = json!(own_name);
        }
        installed.push(cluster.apply_for_now(&value).await);
    }
    let role = chart("templates/rbac-gateway.yaml", &cluster.namespace);
    for mut value in role {
        value["metadata"]["name"] = json!(own_name);
        if value["kind"] == "ClusterRoleBinding" {
            value["roleRef"]["name"] = json!(own_name);
        }
        installed.push(cluster.apply_for_now(&value).await);
    }
    installed
}

fn of_pool(kind: &str, api_version: &str, spec: Value) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": "shop-gateway", "ownerReferences": [
            {"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "name": "shop", "uid": "u-1", "controller": true}]},
        "spec": spec,
    })
}

/// The smallest Deployment that the policy lets pass.
fn gateway() -> Value {
    let labels = json!({"app": "gateway"});
    of_pool(
        "Deployment",
        "apps/v1",
        json!({
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "automountServiceAccountToken": false,
                "initContainers": [{"name": "sluice-bin", "image": "sluice"}],
                "containers": [{"name": "sluice", "image": "pgbouncer"}],
                "volumes": [{"name": "sluice-bin", "emptyDir": {}}],
            }},
        }),
    )
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn the_operator_writes_only_what_a_pool_owns_and_only_poolers_into_deployments() {
    let cluster = Cluster::new("policy", &json!({})).await;
    let installed = gateway_policy(&cluster).await;
    let operator = &cluster.client_as(OPERATOR).await;
    let deployments: Api<Deployment> = Api::namespaced(operator.clone(), &cluster.namespace);
    let apply = PatchParams::apply("sluice-operator").force();
    let create = |body: Value| {
        let (deployments, apply) = (deployments.clone(), PatchParams { dry_run: true, ..apply.clone() });
        async move {
            deployments.patch("shop-gateway", &apply, &Patch::Apply(body)).await.map_err(|error| error.to_string())
        }
    };
    let with = |pointer: &str, value: Value| {
        let mut body = gateway();
        let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
        body.pointer_mut(parent).expect("the parent")[field] = value;
        body
    };
    let nobodys = || with("/metadata/ownerReferences", json!([]));
    eventually("the policy and the rights are in force", || async {
        let refused = create(nobodys()).await.err()?;
        (refused.contains("denied request") && create(gateway()).await.is_ok()).then_some(())
    })
    .await;

    let pod = "/spec/template/spec";
    let somebody =
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "x", "uid": "u-2", "controller": true}]);
    let refused = [
        ("nobody's", nobodys()),
        ("somebody else's", with("/metadata/ownerReferences", somebody)),
        ("another container", with(&format!("{pod}/containers"), json!([{"name": "app", "image": "evil"}]))),
        ("a token", with(&format!("{pod}/automountServiceAccountToken"), json!(true))),
        (
            "the host's files",
            with(&format!("{pod}/volumes"), json!([{"name": "sluice-bin", "hostPath": {"path": "/"}}])),
        ),
        ("the host's network", with(&format!("{pod}/hostNetwork"), json!(true))),
    ];
    for (what, body) in refused {
        let told = create(body).await.expect_err(what);
        assert!(told.contains("denied request"), "{what}: {told}");
    }
    // what is there and somebody else's cannot be taken either
    let theirs: Api<Deployment> = cluster.api();
    theirs.create(&PostParams::default(), &object(nobodys())).await.expect("an administrator's");
    let told = create(gateway()).await.expect_err("taken");
    assert!(told.contains("denied request"), "{told}");
    for object in installed {
        object.end().await;
    }
}

async fn patch(client: &Client, cluster: &Cluster, name: &str, status: bool, body: Value) -> Result<Pod, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &cluster.namespace);
    let (options, body) = (PatchParams::default(), Patch::Strategic(body));
    let outcome =
        if status { pods.patch_status(name, &options, &body).await } else { pods.patch(name, &options, &body).await };
    outcome.map_err(|error| error.to_string())
}

fn annotation(key: &str, value: Value) -> Value {
    json!({"metadata": {"annotations": {key: value}}})
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn nobody_but_the_operator_changes_what_is_ours_on_a_pod_and_it_changes_nothing_else() {
    let cluster = Cluster::new("policy", &json!({})).await;
    pod(&cluster).await;
    let installed = policy(&cluster).await;
    let admin = &cluster.client;
    let operator = &cluster.client_as(OPERATOR).await;
    let somebody = &cluster.client_as("somebody").await;
    // In force once it refuses; the API server learns of a policy within a moment.
    let probe = Patch::Merge(annotation("sluice.dev/probe", json!("x")));
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    let pods: Api<Pod> = cluster.api();
    eventually("the policy is in force", || async { pods.patch("shop", &dry_run, &probe).await.err() }).await;

    let grant = || annotation("sluice.dev/grant", json!("{\"share\":1000}"));
    let refused = [
        ("an administrator's grant", admin, "shop", false, grant()),
        ("an administrator's grant through the status", admin, "shop", true, grant()),
        ("a user's grant", somebody, "shop", true, grant()),
        ("a grant taken away", somebody, "shop", false, annotation("sluice.dev/grant", Value::Null)),
        ("all annotations taken away", somebody, "shop", false, json!({"metadata": {"annotations": null}})),
        ("a new annotation of ours", somebody, "shop", false, annotation("sluice.dev/other", json!("x"))),
        ("ours on a pod without any", somebody, "plain", false, annotation("sluice.dev/grant", json!("{}"))),
        ("another pool", somebody, "shop", false, json!({"metadata": {"labels": {"sluice.dev/pool": "other"}}})),
        ("no pool", somebody, "shop", false, json!({"metadata": {"labels": {"sluice.dev/pool": null}}})),
        (
            "a pool for a pod without",
            somebody,
            "plain",
            false,
            json!({"metadata": {"labels": {"sluice.dev/pool": "shop"}}}),
        ),
        ("the operator: a label", operator, "shop", true, json!({"metadata": {"labels": {"app": "other"}}})),
        (
            "the operator: our own label",
            operator,
            "shop",
            true,
            json!({"metadata": {"labels": {"sluice.dev/pool": "x"}}}),
        ),
        ("the operator: another annotation", operator, "shop", true, annotation("team", json!("b"))),
        ("the operator: an annotation taken away", operator, "shop", true, annotation("team", Value::Null)),
        ("the operator: finalizers", operator, "shop", true, json!({"metadata": {"finalizers": null}})),
        ("the operator: the status", operator, "shop", true, json!({"status": {"phase": "Succeeded"}})),
        (
            "the operator: the image",
            operator,
            "shop",
            false,
            json!({"spec": {"containers": [{"name": "app", "image": "evil"}]}}),
        ),
    ];
    let mut accepted = Vec::new();
    for (what, client, name, status, body) in refused {
        match patch(client, &cluster, name, status, body).await {
            Ok(_) => accepted.push(what),
            Err(message) => assert!(message.contains("denied request"), "{what}: {message}"),
        }
    }
    assert!(accepted.is_empty(), "must be refused: {accepted:?}");

    let allowed = [
        ("the operator's grant", operator, "shop", true, grant()),
        ("the operator's revision", operator, "shop", true, annotation("sluice.dev/revision", json!("{\"v\":1}"))),
        ("the first grant of a pod", operator, "plain", true, annotation("sluice.dev/grant", json!("{}"))),
        ("a user's own annotation", somebody, "shop", false, annotation("team", json!("b"))),
        ("a user's own label", somebody, "shop", false, json!({"metadata": {"labels": {"app": "other"}}})),
        ("the kubelet's status", somebody, "shop", true, json!({"status": {"phase": "Running"}})),
        ("the last finalizer", somebody, "shop", false, json!({"metadata": {"finalizers": null}})),
        ("a label for a pod without any", somebody, "plain", false, json!({"metadata": {"labels": {"a": "b"}}})),
    ];
    for (what, client, name, status, body) in allowed {
        let outcome = patch(client, &cluster, name, status, body).await;
        assert!(outcome.is_ok(), "{what}: {outcome:?}");
    }
    for object in installed {
        object.end().await;
    }
}
