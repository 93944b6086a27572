//! Injection on a real node: Jobs, migrations, forged grants, a webhook that is gone.

use std::{env, time::Duration};

use crate::cluster::{RELEASE, SYSTEM, alone, apply, get, helm_upgrade, kubectl, psql, try_run, until, with_operator};

const MINUTE: Duration = Duration::from_mins(1);

/// A namespace with credentials and a pool for pods labelled `app: NAMESPACE`, and a database of that name.
fn pool(namespace: &str) -> String {
    if psql("SELECT count(*) FROM pg_roles WHERE rolname = 'injection'") == "0\n" {
        psql("CREATE ROLE injection LOGIN SUPERUSER PASSWORD 'change-me'");
    }
    psql(&format!("DROP DATABASE IF EXISTS {namespace} WITH (FORCE)"));
    psql(&format!("CREATE DATABASE {namespace}"));
    let address = env::var("PGHOST").expect("run this through tests/run node");
    format!(
        r"
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: database, namespace: {namespace}}}
stringData: {{username: injection, password: change-me}}
---
apiVersion: sluice.dev/v1alpha1
kind: ConnectionPool
metadata: {{name: {namespace}, namespace: {namespace}}}
spec:
  workload: {{selector: {{matchLabels: {{app: {namespace}}}}}}}
  upstream: {{host: {address}, database: {namespace}, credentialsRef: {{name: database}}, tls: {{mode: Disabled}}}}
  scaling: {{minAllowed: 1, maxAllowed: 10}}
---
"
    )
}

/// A container with a shell and psql, told of the database as applications are: by name, user and password, and by a host that
/// injection replaces.
fn container(name: &str, namespace: &str, script: &str) -> String {
    format!(
        "name: {name}, image: 'sluice.test/shop:1', imagePullPolicy: IfNotPresent, command: [sh, -ec, {script:?}], \
         env: [{{name: PGHOST, value: nowhere.invalid}}, {{name: PGDATABASE, value: {namespace}}}, \
         {{name: PGUSER, valueFrom: {{secretKeyRef: {{name: database, key: username}}}}}}, \
         {{name: PGPASSWORD, valueFrom: {{secretKeyRef: {{name: database, key: password}}}}}}], \
         resources: {{requests: {{cpu: 10m, memory: 16Mi}}, limits: {{memory: 64Mi}}}}, \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}"
    )
}

fn pod_spec(containers: &str, init: &str, restart: &str) -> String {
    format!(
        "{{restartPolicy: {restart}, terminationGracePeriodSeconds: 5, automountServiceAccountToken: true, \
         securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}, \
         initContainers: [{init}], containers: [{{{containers}}}]}}"
    )
}

fn deployment(namespace: &str, replicas: u32) -> String {
    let spec =
        pod_spec(&container("app", namespace, "while :; do psql -qXAtc 'SELECT 1'; sleep 0.2; done"), "", "Always");
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: app, namespace: {namespace}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {namespace}}}}}\n  template:\n    \
         metadata: {{labels: {{app: {namespace}, sluice.dev/inject: enabled}}}}\n    spec: {spec}\n"
    )
}

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
fn while_the_operator_is_gone_injected_pods_serve_new_ones_wait_and_others_start() {
    drop(with_operator());
    let _alone = alone();
    let namespace = "gone";
    apply(&format!("{}{}", pool(namespace), deployment(namespace, 1)));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=2m"));
    kubectl(&format!("scale deployment/{RELEASE} --namespace={SYSTEM} --replicas=0"));
    until("no operator is left", MINUTE, || {
        let pods = get(&format!("pods --namespace={SYSTEM} --selector=app.kubernetes.io/component=operator"));
        let left = pods["items"].as_array().map_or(0, Vec::len);
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    });

    kubectl(&format!("scale deployment/app --namespace={namespace} --replicas=3"));
    let refused = until("the new pods are refused", MINUTE, || {
        let app = get(&format!("deployment app --namespace={namespace}"));
        let conditions = app["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let failure = conditions.iter().find(|it| it["type"] == "ReplicaFailure").map(|it| it["message"].to_string());
        failure.ok_or_else(|| format!("{conditions:?}"))
    });
    assert!(refused.contains("pod.inject.sluice.dev"), "{refused}");
    let spec = pod_spec(&container("app", namespace, "sleep 600"), "", "Always");
    apply(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: other, namespace: {namespace}}}\nspec: {spec}\n"));
    kubectl(&format!("wait --for=condition=Ready pod/other --namespace={namespace} --timeout=1m"));
    let pods = get(&format!("pods --namespace={namespace} --selector=app={namespace}"));
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    assert_eq!(pods.len(), 1, "the injected pod is the only one of its workload");
    let restarts = &pods[0]["status"]["containerStatuses"][0]["restartCount"];
    assert_eq!(restarts, 0, "it kept its connections: psql fails the container when it cannot log in");

    helm_upgrade(&[]);
    kubectl(&format!("rollout status deployment/{RELEASE} --namespace={SYSTEM} --timeout=2m"));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=3m"));
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}
