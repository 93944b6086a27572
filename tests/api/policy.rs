//! The admission policy of the chart: whose hands stay off `sluice.dev/*`.

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment, ReplicaSet, StatefulSet},
    batch::v1::CronJob,
    core::v1::{Pod, Service},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, ForNow, chart, eventually, object, pool};

/// The service account of a release `sluice`.
const OPERATOR: &str = "sluice";

/// The policies of a template as the chart installs them, for one namespace alone.
async fn install(cluster: &Cluster, template: &str) -> Vec<ForNow> {
    let mut installed = Vec::new();
    for mut value in chart(template, &cluster.namespace) {
        if value["kind"] == "ValidatingAdmissionPolicy" {
            let own = json!({"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}});
            value["spec"]["matchConstraints"]["namespaceSelector"] = own;
        }
        installed.push(cluster.apply_for_now(&value).await);
    }
    installed
}

/// The policies for pods, their templates and revisions, and every right that they narrow.
async fn policy(cluster: &Cluster) -> Vec<ForNow> {
    let mut installed = install(cluster, "templates/policy.yaml").await;
    // What the operator's role and a user with every right on pods may do by RBAC; impersonated users have nothing else.
    let name = format!("{}-pods", cluster.namespace);
    let role: ClusterRole = object(json!({"metadata": {"name": name}, "rules": [
        {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["get", "patch", "update"]},
        {"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": ["create", "update", "delete"]}]}));
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
    let mut installed = install(cluster, "templates/policy-gateway.yaml").await;
    installed.extend(install(cluster, "templates/rbac-gateway.yaml").await);
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
    let restricted = json!({
        "runAsNonRoot": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    of_pool(
        "Deployment",
        "apps/v1",
        json!({
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "automountServiceAccountToken": false,
                "initContainers": [{"name": "sluice-bin", "image": "sluice", "securityContext": restricted}],
                "containers": [{"name": "sluice", "image": "pgbouncer", "securityContext": restricted}],
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
    let in_pooler = &format!("{pod}/containers/0/securityContext");
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
        ("the host's processes", with(&format!("{pod}/hostPID"), json!(true))),
        ("the host's memory", with(&format!("{pod}/hostIPC"), json!(true))),
        ("root", with(&format!("{pod}/securityContext"), json!({"runAsUser": 0}))),
        (
            "a token through a volume",
            with(
                &format!("{pod}/volumes"),
                json!([{"name": "sluice-config", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]),
            ),
        ),
        ("a privileged copier", with(&format!("{pod}/initContainers/0/securityContext"), json!({"privileged": true}))),
        (
            "a port of the node",
            with(&format!("{pod}/containers/0/ports"), json!([{"containerPort": 80, "hostPort": 80}])),
        ),
        ("no security context", with(&format!("{pod}/containers/0/securityContext"), Value::Null)),
        ("as whoever the image says", with(&format!("{in_pooler}/runAsNonRoot"), json!(false))),
        ("more rights than its parent", with(&format!("{in_pooler}/allowPrivilegeEscalation"), json!(true))),
        ("a capability", with(&format!("{in_pooler}/capabilities"), json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}))),
        ("all system calls", with(&format!("{in_pooler}/seccompProfile"), json!({"type": "Unconfined"}))),
        ("an owner of another name", with("/metadata/ownerReferences/0/name", json!("cart"))),
    ];
    for (what, body) in refused {
        let told = create(body).await.expect_err(what);
        assert!(told.contains("denied request"), "{what}: {told}");
    }
    // a Service leads to the pool's own poolers
    let services: Api<Service> = Api::namespaced(operator.clone(), &cluster.namespace);
    let service = |spec: Value| {
        let (services, apply) = (services.clone(), PatchParams { dry_run: true, ..apply.clone() });
        let body = of_pool("Service", "v1", spec);
        async move { services.patch("shop-gateway", &apply, &Patch::Apply(body)).await.map_err(|error| error.to_string()) }
    };
    let ports = json!([{"port": 5432}]);
    service(json!({"selector": {"sluice.dev/pool": "shop"}, "ports": ports})).await.expect("its own");
    for (what, spec) in [
        ("another's pods", json!({"selector": {"app": "cart"}, "ports": ports})),
        (
            "an address of somebody else",
            json!({"selector": {"sluice.dev/pool": "shop"}, "ports": ports, "externalIPs": ["192.0.2.7"]}),
        ),
    ] {
        let told = service(spec).await.expect_err(what);
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

/// A pod as the webhook leaves it.
fn injected() -> Value {
    let grant = r#"{"v":1,"epoch":0,"pools":{"shop":{"seq":0,"share":0,"granted":0,"floor":0}}}"#;
    json!({
        "metadata": {
            "name": "shop-new", "labels": {"app": "shop", "sluice.dev/inject": "enabled", "sluice.dev/pool": "shop"},
            "annotations": {"sluice.dev/revision": "{}", "sluice.dev/grant": grant, "team": "a"},
        },
        "spec": {
            "initContainers": [{"name": "sluice", "image": "pgbouncer", "restartPolicy": "Always"}],
            "containers": [{"name": "app", "image": "app"}],
        },
    })
}

fn changed(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    body.pointer_mut(parent).expect("the parent")[field.replace("~1", "/")] = value;
    body
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pod_brings_no_grant_along_when_it_is_created() {
    let cluster = Cluster::new("policy", &json!({})).await;
    let installed = policy(&cluster).await;
    let pods: Api<Pod> = cluster.api();
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let create = |body: Value| {
        let (pods, dry_run) = (pods.clone(), dry_run.clone());
        async move { pods.create(&dry_run, &object(body)).await.map_err(|error| error.to_string()) }
    };
    let grant = "/metadata/annotations/sluice.dev~1grant";
    let of = |epoch: u64, seq: u64, share: u64| {
        json!(format!(
            r#"{{"v":1,"epoch":{epoch},"pools":{{"shop":{{"seq":{seq},"share":{share},"granted":{share},"floor":0}}}}}}"#
        ))
    };
    eventually("the policy is in force", || async { create(changed(injected(), grant, of(0, 0, 1000))).await.err() })
        .await;
    let other_pool = changed(injected(), "/metadata/labels/sluice.dev~1pool", json!("cart"));
    let refused = [
        ("a share", changed(injected(), grant, of(0, 0, 1000))),
        ("an epoch", changed(injected(), grant, of(2_147_483_647, 0, 0))),
        ("a number", changed(injected(), grant, of(0, 9, 0))),
        ("no JSON", changed(injected(), grant, json!("{}"))),
        ("another pool's", other_pool),
        ("a revision alone", changed(injected(), "/metadata/annotations", json!({"sluice.dev/revision": "{}"}))),
        ("another annotation of ours", changed(injected(), "/metadata/annotations/sluice.dev~1other", json!("x"))),
        ("no pooler", changed(injected(), "/spec/initContainers", json!([]))),
    ];
    for (what, body) in refused {
        let told = create(body).await.expect_err(what);
        assert!(told.contains("denied request") && told.contains("take them out of the pod"), "{what}: {told}");
    }
    create(injected()).await.expect("what the webhook leaves");
    let shop = cluster.create(&pool("shop")).await.expect("a pool");
    pods.create(&dry_run, &crate::operator::pods::injected(&shop, "shop-0"))
        .await
        .expect("what the webhook writes today");
    let plain = changed(injected(), "/metadata/annotations", json!({"team": "a"}));
    create(plain).await.expect("a pod that brings nothing along, as those of gateways do");
    for object in installed {
        object.end().await;
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_binds_a_pod_to_a_node_brings_no_grant_along() {
    let cluster = Cluster::new("policy", &json!({})).await;
    pod(&cluster).await;
    let installed = policy(&cluster).await;
    let pods: Api<Pod> = cluster.api();
    let bind = |metadata: Value, dry_run: bool| {
        let (pods, options) = (pods.clone(), PostParams { dry_run, ..PostParams::default() });
        let mut binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": metadata,
            "target": {"apiVersion": "v1", "kind": "Node", "name": "nowhere"},
        });
        binding["metadata"]["name"] = json!("plain");
        async move {
            let bound = pods.create_subresource::<Value, Value>("binding", "plain", &options, &binding);
            bound.await.map_err(|error| error.to_string())
        }
    };
    let grant = || json!({"annotations": {"sluice.dev/grant": "{}", "team": "a"}});
    eventually("the policy is in force", || async { bind(grant(), true).await.err() }).await;
    for (what, metadata) in [
        ("a grant", grant()),
        ("another annotation of ours", json!({"annotations": {"sluice.dev/other": "x"}})),
        ("a label of ours", json!({"labels": {"sluice.dev/pool": "shop"}})),
    ] {
        let told = bind(metadata, false).await.expect_err(what);
        assert!(told.contains("denied request") && told.contains("take them out of the Binding"), "{what}: {told}");
    }
    bind(json!({"annotations": {"team": "b"}}), false).await.expect("as schedulers do");
    let bound = pods.get("plain").await.expect("it is there");
    assert_eq!(bound.spec.and_then(|spec| spec.node_name).as_deref(), Some("nowhere"));
    let annotations = bound.metadata.annotations.expect("that of the Binding");
    assert_eq!(annotations.into_iter().collect::<Vec<_>>(), [("team".to_owned(), "b".to_owned())], "it is copied");
    for object in installed {
        object.end().await;
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_template_with_a_grant_in_it_is_refused_where_it_is_written_and_one_that_is_there_can_still_be_changed() {
    let cluster = Cluster::new("policy", &json!({})).await;
    let template = |annotations: Value| {
        json!({
            "metadata": {"labels": {"app": "shop"}, "annotations": annotations},
            "spec": {"containers": [{"name": "app", "image": "app"}], "restartPolicy": "Always"},
        })
    };
    let workload = |name: &str, annotations: Value| {
        json!({"metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": "shop"}}, "serviceName": "x", "template": template(annotations)}})
    };
    let bad = || json!({"sluice.dev/grant": "{\"share\":1000}", "team": "a"});
    let good = || json!({"team": "a"});
    let deployments: Api<Deployment> = cluster.api();
    let deployment = |name, annotations| {
        let mut body = workload(name, annotations);
        body["spec"].as_object_mut().expect("a spec").remove("serviceName");
        body
    };
    deployments.create(&PostParams::default(), &object(deployment("before", bad()))).await.expect("before the policy");
    let installed = policy(&cluster).await;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let refused = |told: String| {
        assert!(told.contains("denied request") && told.contains("change the ConnectionPool instead"), "{told}");
    };
    eventually("the policy is in force", || async {
        deployments.create(&dry_run, &object(deployment("new", bad()))).await.err()
    })
    .await;
    refused(deployments.create(&dry_run, &object(deployment("new", bad()))).await.expect_err("refused").to_string());
    deployments.create(&dry_run, &object(deployment("new", good()))).await.expect("nothing of ours");
    let sets: Api<StatefulSet> = cluster.api();
    refused(sets.create(&dry_run, &object(workload("new", bad()))).await.expect_err("refused").to_string());
    sets.create(&dry_run, &object(workload("new", good()))).await.expect("nothing of ours");
    let jobs: Api<CronJob> = cluster.api();
    let job = |annotations: Value| {
        let mut template = template(annotations);
        template["spec"]["restartPolicy"] = json!("Never");
        json!({"metadata": {"name": "new"}, "spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": template}}}})
    };
    refused(jobs.create(&dry_run, &object(job(bad()))).await.expect_err("refused").to_string());
    jobs.create(&dry_run, &object(job(good()))).await.expect("nothing of ours");

    // what was there before can be changed in all else, and what its controller makes of it passes
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let change = |patch: Value| {
        let (deployments, params) = (deployments.clone(), params.clone());
        async move { deployments.patch("before", &params, &Patch::Merge(patch)).await }
    };
    change(json!({"spec": {"replicas": 3}})).await.expect("another field");
    change(json!({"spec": {"template": {"metadata": {"annotations": {"sluice.dev/grant": null}}}}}))
        .await
        .expect("gone");
    let more = json!({"spec": {"template": {"metadata": {"annotations": {"sluice.dev/grant": "{\"share\":2000}"}}}}});
    refused(change(more).await.expect_err("refused").to_string());
    let mut made = deployment("made", bad());
    made["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "before", "uid": "u-1", "controller": true}]);
    let replica_sets: Api<ReplicaSet> = cluster.api();
    replica_sets.create(&dry_run, &object(made)).await.expect("made by a controller");
    deployments.delete("before", &DeleteParams::default()).await.expect("deleted");
    for object in installed {
        object.end().await;
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn the_operator_creates_and_deletes_no_history_but_that_of_pools() {
    let cluster = Cluster::new("policy", &json!({})).await;
    let of = |name: &str, kind: &str, api_version: &str, owner: &str| -> ControllerRevision {
        object(json!({
            "metadata": {"name": name, "labels": {"sluice.dev/pool": "shop"}, "ownerReferences": [
                {"apiVersion": api_version, "kind": kind, "name": owner, "uid": "u-1", "controller": true}]},
            "revision": 1, "data": {"v": 1},
        }))
    };
    let of_pool = |name: &str| of(name, "ConnectionPool", "sluice.dev/v1alpha1", "shop");
    let of_set = |name: &str| of(name, "StatefulSet", "apps/v1", "shop");
    let all: Api<ControllerRevision> = cluster.api();
    for revision in [of_pool("shop-1"), of_set("shop-7d4b")] {
        all.create(&PostParams::default(), &revision).await.expect("an administrator's");
    }
    let nobodys: ControllerRevision = object(json!({"metadata": {"name": "nobodys"}, "revision": 1, "data": {}}));
    all.create(&PostParams::default(), &nobodys).await.expect("an administrator's");
    let installed = policy(&cluster).await;
    let operator: Api<ControllerRevision> = Api::namespaced(cluster.client_as(OPERATOR).await, &cluster.namespace);
    let (dry_run, deletes) = (
        PostParams { dry_run: true, ..PostParams::default() },
        DeleteParams { dry_run: true, ..DeleteParams::default() },
    );
    eventually("the policy and the rights are in force", || async {
        let refused = operator.delete("shop-7d4b", &deletes).await.err()?.to_string();
        (refused.contains("denied request") && operator.delete("shop-1", &deletes).await.is_ok()).then_some(())
    })
    .await;
    let renumbered = ControllerRevision { revision: 2, ..all.get("shop-1").await.expect("the revision") };
    let refused = [
        operator.delete("nobodys", &deletes).await.err(),
        operator.create(&dry_run, &of_set("shop-2")).await.err(),
        operator.create(&dry_run, &nobodys).await.err(),
        operator.create(&dry_run, &of_pool("cart-2")).await.err(),
        operator.replace("shop-1", &dry_run, &renumbered).await.err(),
    ];
    for (index, refused) in refused.into_iter().enumerate() {
        let told = refused.map(|error| error.to_string()).unwrap_or_default();
        assert!(told.contains("denied request"), "{index}: {told}");
    }
    operator.create(&dry_run, &of_pool("shop-2")).await.expect("a pool's");
    all.delete("nobodys", &deletes).await.expect("others are not held to it");
    for object in installed {
        object.end().await;
    }
}
