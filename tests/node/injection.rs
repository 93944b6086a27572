//! Injection on a real node: Jobs, migrations, forged grants, a webhook that is gone.

use std::time::Duration;

use serde_json::Value;

use crate::{
    cluster::{
        RELEASE, SYSTEM, alone, apply, condition, get, helm_upgrade, kubectl, try_run, until, until_condition,
        with_operator,
    },
    shop::events,
    workload::{container, deployment, pod_spec, pool},
};

const MINUTE: Duration = Duration::from_mins(1);

#[test]
#[ignore = "needs a node: tests/run node"]
fn a_job_and_its_migration_use_the_pooler_and_the_job_ends() {
    let _operator = with_operator();
    let namespace = "migrated";
    let migrate = container("migrate", namespace, "psql -qX -v ON_ERROR_STOP=1 -c 'CREATE TABLE seen (host text)'");
    let work = container("work", namespace, "psql -qX -v ON_ERROR_STOP=1 -c \"INSERT INTO seen VALUES ('$PGHOST')\"");
    let spec = pod_spec(&work, &format!("{{{migrate}}}"), "Never");
    // All at once, as `kubectl apply -f directory/` does: the pod is admitted before any watch has told of its pool.
    apply(&format!(
        "{}apiVersion: batch/v1\nkind: Job\nmetadata: {{name: job, namespace: {namespace}}}\nspec:\n  backoffLimit: 0\n  template:\n    \
         metadata: {{labels: {{app: {namespace}, sluice.dev/inject: enabled}}}}\n    spec: {spec}\n",
        pool(namespace)
    ));
    kubectl(&format!("wait --for=condition=Complete job/job --namespace={namespace} --timeout=2m"));
    let host = try_run("psql", &["-qXAt", "-d", namespace, "-c", "SELECT host FROM seen"], "").expect("the job wrote");
    assert_eq!(host, "127.0.0.1\n", "the address of the pooler, not what the pod was given");
    let pods = get(&format!("pods --namespace={namespace} --selector=sluice.dev/pool={namespace}"));
    assert_eq!(pods["items"][0]["status"]["phase"], "Succeeded", "the sidecar ended with the work");
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn not_even_the_administrator_can_forge_a_grant() {
    let _operator = with_operator();
    let namespace = "forged";
    apply(&format!("{}{}", pool(namespace), deployment(namespace, 1)));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=2m"));
    let pods = get(&format!("pods --namespace={namespace} --selector=app={namespace}"));
    let pod = pods["items"][0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let forge = |what: &str| try_run("kubectl", &["annotate", "pod", &pod, "-n", namespace, "--overwrite", what], "");
    let refused = forge("sluice.dev/grant={}").expect_err("refused");
    assert!(refused.contains("by the operator only"), "{refused}");
    forge("example.com/mine=yes").expect("everybody's own annotations stay theirs");
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn a_secret_with_other_keys_is_told_as_what_holds_the_pods_and_naming_the_keys_ends_it() {
    let _operator = with_operator();
    let namespace = "keys";
    // as operators of databases make them, beside the one that the application itself reads
    let pool = pool(namespace).replace("credentialsRef: {name: database}", "credentialsRef: {name: made}");
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: made, namespace: {namespace}}}\nstringData: {{user: injection, pgpass: change-me}}\n"
    );
    apply(&format!("{pool}{secret}---\n{}", deployment(namespace, 1)));
    until_condition(namespace, namespace, "Ready", "False/FailedMount", 2 * MINUTE);
    let told = condition(namespace, namespace, "Proven");
    assert!(told.contains("made with the keys username and password"), "{told}");

    kubectl(&format!(
        "patch connectionpool {namespace} --namespace={namespace} --type=merge \
         --patch={{\"spec\":{{\"upstream\":{{\"credentialsRef\":{{\"usernameKey\":\"user\",\"passwordKey\":\"pgpass\"}}}}}}}}"
    ));
    // the volumes of a pod are what they were when it was created
    kubectl(&format!("rollout restart deployment/app --namespace={namespace}"));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=3m"));
    until_condition(namespace, namespace, "Proven", "True", MINUTE);
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}

/// What the kubelet says of a pod: whether it is ready, and by its containers whether its pooler is, and the application.
fn readiness(pod: &Value) -> [bool; 3] {
    let list = |field: &str| pod["status"][field].as_array().cloned().unwrap_or_default();
    let is_ready = |field: &str, name: &str| list(field).iter().any(|it| it["name"] == name && it["ready"] == true);
    let pod_is =
        list("conditions").iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    [pod_is, is_ready("initContainerStatuses", "sluice"), is_ready("containerStatuses", "app")]
}

fn until_readiness(namespace: &str, wanted: &[[bool; 3]]) {
    until(&format!("pod, pooler and application of {namespace} are ready as {wanted:?}"), 2 * MINUTE, || {
        let mut seen: Vec<_> = app_pods(namespace).iter().map(readiness).collect();
        seen.sort_unstable();
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn where_its_pool_says_so_a_pod_is_ready_only_while_it_has_a_share() {
    const WAITS: [bool; 3] = [false, false, true];
    const SERVES: [bool; 3] = [true; 3];
    let _operator = with_operator();
    let namespace = "withshare";
    let as_it_is = "scaling: {minAllowed: 1, maxAllowed: 10}";
    let pool = pool(namespace);
    assert!(pool.contains(as_it_is), "{pool}");
    let pool = pool.replace(as_it_is, "scaling: {minAllowed: 1, maxAllowed: 1}\n  sidecar: {readiness: WithShare}");
    // an application that is well without the database
    let app = deployment(namespace, 2).replace("psql -qXAtc 'SELECT 1'; ", "");
    apply(&format!("{pool}{app}"));
    until_readiness(namespace, &[WAITS, SERVES]);
    until_condition(namespace, namespace, "Ready", "False/TooManyPods", MINUTE);

    let most = |most: u32| {
        kubectl(&format!(
            "patch connectionpool {namespace} --namespace={namespace} --type=merge --patch={{\"spec\":{{\"scaling\":{{\"maxAllowed\":{most}}}}}}}"
        ))
    };
    most(4);
    until_readiness(namespace, &[SERVES; 2]);
    most(1);
    until_readiness(namespace, &[WAITS, SERVES]);
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}

/// Waits until a Deployment's new pods are refused for want of the webhook, and its ReplicaSet has said so.
fn until_refused(namespace: &str) {
    let refused = until("the new pods are refused", MINUTE, || {
        let app = get(&format!("deployment app --namespace={namespace}"));
        let conditions = app["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let failure = conditions.iter().find(|it| it["type"] == "ReplicaFailure").map(|it| it["message"].to_string());
        failure.ok_or_else(|| format!("{conditions:?}"))
    });
    assert!(refused.contains("pod.inject.sluice.dev"), "{refused}");
    let events = events(namespace, "FailedCreate");
    assert!(events.iter().any(|event| event.contains("pod.inject.sluice.dev")), "{events:?}");
}

fn app_pods(namespace: &str) -> Vec<Value> {
    let pods = get(&format!("pods --namespace={namespace} --selector=app={namespace}"));
    pods["items"].as_array().cloned().unwrap_or_default()
}

fn start_another(namespace: &str, name: &str) {
    let spec = pod_spec(&container("app", namespace, "sleep 600"), "", "Always");
    apply(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"));
    kubectl(&format!("wait --for=condition=Ready pod/{name} --namespace={namespace} --timeout=2m"));
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn while_the_webhook_or_the_operator_is_gone_injected_pods_serve_new_ones_wait_and_others_start() {
    drop(with_operator());
    let _alone = alone();
    let namespace = "gone";
    apply(&format!("{}{}", pool(namespace), deployment(namespace, 1)));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=2m"));

    // the operator works, and nobody reaches its webhook
    let select = |value: &str| {
        kubectl(&format!(
            "patch service {RELEASE}-webhook --namespace={SYSTEM} --type=merge --patch={{\"spec\":{{\"selector\":{{\"nobody\":{value}}}}}}}"
        ))
    };
    select("\"here\"");
    // the API server keeps its connection for as long as whoever is at its other end
    kubectl(&format!("rollout restart deployment/{RELEASE} --namespace={SYSTEM}"));
    kubectl(&format!("rollout status deployment/{RELEASE} --namespace={SYSTEM} --timeout=2m"));
    // those that end answer on for a while, and pods are injected by them
    until("the operators before have ended", MINUTE, || {
        let pods = get(&format!("pods --namespace={SYSTEM} --selector=app.kubernetes.io/component=operator"));
        let is_ending = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
        let ending = pods["items"].as_array().map_or(0, |pods| pods.iter().filter(|pod| is_ending(pod)).count());
        if ending == 0 { Ok(()) } else { Err(format!("{ending} pods")) }
    });
    kubectl(&format!("scale deployment/app --namespace={namespace} --replicas=2"));
    until_refused(namespace);
    start_another(namespace, "other");
    assert_eq!(app_pods(namespace).len(), 1, "the injected pod is the only one of its workload");
    kubectl(&format!(
        "patch connectionpool {namespace} --namespace={namespace} --type=merge --patch={{\"spec\":{{\"scaling\":{{\"maxAllowed\":7}}}}}}"
    ));
    until("the pod that runs is still followed", MINUTE, || {
        let share = get(&format!("connectionpool {namespace} --namespace={namespace}"))["status"]["share"].clone();
        if share.as_u64().is_some_and(|share| share <= 7) { Ok(()) } else { Err(share.to_string()) }
    });
    select("null");
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=3m"));

    // there is no operator at all
    kubectl(&format!("scale deployment/{RELEASE} --namespace={SYSTEM} --replicas=0"));
    until("no operator is left", MINUTE, || {
        let pods = get(&format!("pods --namespace={SYSTEM} --selector=app.kubernetes.io/component=operator"));
        let left = pods["items"].as_array().map_or(0, Vec::len);
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    });
    kubectl(&format!("scale deployment/app --namespace={namespace} --replicas=4"));
    until_refused(namespace);
    start_another(namespace, "another");
    let pods = app_pods(namespace);
    assert_eq!(pods.len(), 2, "the injected pods are the only ones of their workload");
    for pod in &pods {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        assert_eq!(restarts, 0, "it kept its connections: psql fails the container when it cannot log in");
    }

    helm_upgrade(&[]);
    kubectl(&format!("rollout status deployment/{RELEASE} --namespace={SYSTEM} --timeout=2m"));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=3m"));
    assert_eq!(app_pods(namespace).len(), 4, "all that waited have started");
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}
