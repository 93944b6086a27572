//! The shop of the examples on the node: its database, its objects in a namespace of the test's own, and what can be seen of it.

use std::{collections::BTreeSet, env, fs, path::Path, time::Duration};

use serde_json::Value;

use crate::cluster::{get, kubectl, psql, run, try_run, until};

/// The shop of the examples in a namespace of the test's own.
pub fn shop(namespace: &str) -> String {
    manifests(namespace, &example("3-connectionpool.yaml"))
}

/// The same, its pool with this scaling and no class.
pub fn shop_scaled(namespace: &str, scaling: &str) -> String {
    manifests(namespace, &pool(namespace, scaling))
}

/// The pool of [`shop_scaled`] alone.
pub fn pool(namespace: &str, scaling: &str) -> String {
    let address = address();
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: shop, namespace: {namespace}}}\nspec:\n  \
         workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n  \
         upstream: {{host: {address}, database: shop, credentialsRef: {{name: shop-db}}, tls: {{mode: Disabled}}}}\n  \
         scaling: {{{scaling}}}\n"
    )
}

fn manifests(namespace: &str, pool: &str) -> String {
    [&example("1-namespace.yaml"), &example("2-secret.yaml"), pool, &example("4-deployment.yaml")]
        .join("\n---\n")
        .replace("pg-main-rw.db.svc", &address())
        .replace("namespace: shop\n", &format!("namespace: {namespace}\n"))
        .replace(
            "kind: Namespace\nmetadata:\n  name: shop\n",
            &format!("kind: Namespace\nmetadata:\n  name: {namespace}\n"),
        )
}

fn example(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop").join(file)).expect("an example")
}

/// The node's address, where the database and Prometheus are.
pub fn address() -> String {
    env::var("PGHOST").expect("run this through tests/run node")
}

/// The shop's role, database and schema; idempotent.
pub fn database() {
    if psql("SELECT count(*) FROM pg_roles WHERE rolname = 'shop'") == "0\n" {
        psql("CREATE ROLE shop LOGIN PASSWORD 'change-me'");
        psql("CREATE DATABASE shop OWNER shop");
    }
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop/schema.sql");
    let schema = schema.to_str().expect("UTF-8");
    run(
        "env",
        &["PGUSER=shop", "PGPASSWORD=change-me", "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", "shop", "-f", schema],
    );
}

/// Starts the shop and waits until its pods run.
pub fn start(manifests: &str, namespace: &str) {
    crate::cluster::apply(manifests);
    kubectl(&format!("rollout status deployment/shop --namespace={namespace} --timeout=3m"));
}

pub fn status(namespace: &str) -> Value {
    get(&format!("connectionpool shop --namespace={namespace}"))["status"].clone()
}

/// The shop's pods that have a sidecar.
pub fn pods(namespace: &str) -> Vec<Value> {
    let pods = get(&format!("pods --namespace={namespace} --selector=sluice.dev/pool"));
    pods["items"].as_array().expect("a list").clone()
}

/// What must not change while everything around it does: pods, their containers, and how often those were started.
pub fn data_plane(namespace: &str) -> BTreeSet<String> {
    let containers = pods(namespace).into_iter().flat_map(|pod| {
        let status = &pod["status"];
        let all = [&status["containerStatuses"], &status["initContainerStatuses"]];
        let all: Vec<Value> = all.into_iter().filter_map(Value::as_array).flatten().cloned().collect();
        all.into_iter().map(move |container| {
            let (name, count) = (&container["name"], &container["restartCount"]);
            format!("{} {name} {} restarts {count}", pod["metadata"]["uid"], container["containerID"])
        })
    });
    containers.collect()
}

/// The logs of the shop's clients, which pgbench writes to every ten seconds.
fn client_logs(namespace: &str) -> String {
    kubectl(&format!("logs --namespace={namespace} --selector=app=shop --container=orders --tail=-1"))
}

/// What pgbench says of every client that lost its connection or its transaction, up to a report that is still to come.
pub fn client_failures(namespace: &str) -> Vec<String> {
    let is_report = |line: &&str| line.starts_with("progress:");
    let before = client_logs(namespace).lines().filter(is_report).count();
    let logs = until("pgbench reports again", Duration::from_mins(1), || {
        let logs = client_logs(namespace);
        if logs.lines().filter(is_report).count() > before { Ok(logs) } else { Err(logs) }
    });
    logs.lines()
        .filter(|line| line.contains("aborted") || line.contains("error") || line.contains("FATAL"))
        .filter(|line| !is_report(line))
        .map(str::to_owned)
        .collect()
}

/// What the agent of a pod says of itself.
pub fn agent(pod: &Value, path: &str) -> Result<String, String> {
    let address = pod["status"]["podIP"].as_str().ok_or("the pod has no address yet")?;
    try_run("curl", &["-sSf", "-m", "2", &format!("http://{address}:9130/{path}")], "")
}

/// Sum of what the poolers themselves say that they work with, asked of their agents.
pub fn read_back(namespace: &str) -> Option<u64> {
    let mut sum = 0;
    for pod in pods(namespace) {
        let report: Value = serde_json::from_str(&agent(&pod, "status").ok()?).ok()?;
        sum += report["limits"]["poolSize"].as_u64()?;
    }
    Some(sum)
}

/// The notes of a namespace's events of this reason, and how often each was told.
pub fn events(namespace: &str, reason: &str) -> Vec<String> {
    let events = get(&format!("events --namespace={namespace} --field-selector=reason={reason}"));
    let events = events["items"].as_array().expect("a list").clone();
    let notes = events.iter().map(|event| {
        let note = event["message"].as_str().or(event["note"].as_str()).unwrap_or_default();
        let times = event["series"]["count"].as_u64().or(event["count"].as_u64()).unwrap_or(1).max(1);
        format!("{times} x {note}")
    });
    notes.collect()
}
