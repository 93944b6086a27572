//! The whole way of a change on a real node: load on injected pods, Prometheus, target, shares, the value read back.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::cluster::{
    alone, apply, get, helm_upgrade, kubectl, lab, psql, run, try_run, until, until_condition, with_operator,
};

const MINUTE: Duration = Duration::from_mins(1);

/// The shop of the examples in a namespace of the test's own, its pool with this scaling.
fn shop(namespace: &str, scaling: &str) -> String {
    let address = std::env::var("PGHOST").expect("run this through tests/run node");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop");
    let read = |file: &str| fs::read_to_string(folder.join(file)).expect("an example");
    let pool = format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: shop, namespace: {namespace}}}\nspec:\n  \
         workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n  \
         upstream: {{host: {address}, database: shop, credentialsRef: {{name: shop-db}}, tls: {{mode: Disabled}}}}\n  \
         scaling: {{{scaling}}}\n"
    );
    [read("1-namespace.yaml"), read("2-secret.yaml"), pool, read("4-deployment.yaml")]
        .join("\n---\n")
        .replace("pg-main-rw.db.svc", &address)
        .replace("namespace: shop\n", &format!("namespace: {namespace}\n"))
        .replace(
            "kind: Namespace\nmetadata:\n  name: shop\n",
            &format!("kind: Namespace\nmetadata:\n  name: {namespace}\n"),
        )
}

fn database() {
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

fn status(namespace: &str) -> Value {
    get(&format!("connectionpool shop --namespace={namespace}"))["status"].clone()
}

/// Sum of what the poolers themselves say that they work with, asked of their agents.
fn read_back(namespace: &str) -> Option<u64> {
    let pods = get(&format!("pods --namespace={namespace} --selector=sluice.dev/pool=shop"));
    let mut sum = 0;
    for pod in pods["items"].as_array()? {
        let address = pod["status"]["podIP"].as_str()?;
        let answer = try_run("curl", &["-sf", "-m", "2", &format!("http://{address}:9130/status")], "").ok()?;
        let report: Value = serde_json::from_str(&answer).ok()?;
        sum += report["limits"]["poolSize"].as_u64()?;
    }
    Some(sum)
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn under_load_the_target_rises_and_every_pooler_is_seen_to_work_with_its_part() {
    let _operator = with_operator();
    database();
    let scaling = "minAllowed: 2, maxAllowed: 40, algorithm: TargetUtilization, localReaction: Disabled";
    apply(&shop("way", scaling));
    kubectl("rollout status deployment/shop --namespace=way --timeout=2m");
    until_condition("way", "shop", "Proven", "True", MINUTE);
    until_condition("way", "shop", "ScalingActive", "True", 2 * MINUTE);
    let before = status("way")["recommendation"]["target"].as_u64().expect("a target");

    // ten times the orders; the pods are new ones, admitted under the same pool
    let pushed = Instant::now();
    kubectl("set env deployment/shop --namespace=way ORDERS_PER_SECOND=120");
    kubectl("rollout status deployment/shop --namespace=way --timeout=2m");
    let after = until("the target rises with the load", 2 * MINUTE, || {
        let status = status("way");
        match status["recommendation"]["target"].as_u64() {
            Some(target) if target > before => Ok(target),
            _ => Err(status["summary"].to_string()),
        }
    });
    println!("target {before} -> {after} {} s after the load was changed", pushed.elapsed().as_secs());
    until("what the poolers work with is the target", MINUTE, || {
        let status = status("way");
        let target = status["recommendation"]["target"].as_u64();
        let seen = read_back("way");
        if seen == target && status["currentSize"].as_u64() == target {
            Ok(())
        } else {
            Err(format!("{seen:?} of {target:?}: {}", status["summary"]))
        }
    });
    let status = status("way");
    assert_eq!(status["lastDecision"]["to"], status["recommendation"]["target"], "{status}");
    let events = get("events --namespace=way --field-selector=reason=Resized");
    let notes: Vec<&str> = events["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|event| event["message"].as_str().or(event["note"].as_str()))
        .collect();
    assert!(notes.iter().any(|note| note.contains("(decision d-")), "{notes:?}");
    kubectl("delete namespace way --wait=false");
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn a_new_pod_is_served_at_once_and_a_change_of_the_settings_reaches_every_pooler_without_a_restart() {
    let _operator = with_operator();
    database();
    apply(&shop("settings", "minAllowed: 2, maxAllowed: 20"));
    kubectl("rollout status deployment/shop --namespace=settings --timeout=2m");
    until_condition("settings", "shop", "Proven", "True", MINUTE);
    kubectl("scale deployment shop --namespace=settings --replicas=4");
    kubectl("rollout status deployment/shop --namespace=settings --timeout=2m");
    until("four pods are proven", MINUTE, || {
        let pods = status("settings")["pods"].clone();
        if pods["proven"] == 4 { Ok(()) } else { Err(pods.to_string()) }
    });
    kubectl(
        "patch connectionpool shop --namespace=settings --type=merge --patch={\"spec\":{\"health\":{\"queryWaitTimeoutSeconds\":17}}}",
    );
    until("revision 2 runs everywhere", MINUTE, || {
        let revision = status("settings")["revision"].clone();
        if revision["stable"] == 2 { Ok(()) } else { Err(revision.to_string()) }
    });
    let pods = get("pods --namespace=settings --selector=sluice.dev/pool=shop");
    let restarts: u64 = pods["items"]
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|pod| pod["status"]["initContainerStatuses"].as_array().cloned().unwrap_or_default())
        .filter_map(|container| container["restartCount"].as_u64())
        .sum();
    assert_eq!(restarts, 0);
    kubectl("delete namespace settings --wait=false");
}

/// The cluster and the operator come and go; the poolers and their clients do not notice.
#[test]
#[ignore = "needs a node: tests/run node"]
fn neither_a_restart_of_the_api_server_nor_a_killed_operator_touches_a_client_and_both_are_made_up_for() {
    let _alone = alone();
    database();
    helm_upgrade(&[]);
    apply(&shop("away", "minAllowed: 2, maxAllowed: 20"));
    kubectl("rollout status deployment/shop --namespace=away --timeout=2m");
    until_condition("away", "shop", "Proven", "True", MINUTE);

    lab(&["restart", "kube-apiserver"]);
    until("the API server is back", MINUTE, || try_run("kubectl", &["get", "--raw=/readyz"], ""));
    kubectl("delete pods --all --namespace=sluice-system --grace-period=0 --force");
    apply(&shop("away", "minAllowed: 2, maxAllowed: 12"));
    until("the pool is followed again", 2 * MINUTE, || {
        let share = status("away")["share"].clone();
        if share.as_u64().is_some_and(|share| share <= 12) { Ok(()) } else { Err(share.to_string()) }
    });
    until_condition("away", "shop", "Proven", "True", MINUTE);
    let logs = kubectl("logs --namespace=away --selector=app=shop --container=orders --tail=-1");
    let failures: Vec<&str> = logs
        .lines()
        .filter(|line| !line.starts_with("progress:"))
        .filter(|line| line.contains("aborted") || line.contains("error") || line.contains("FATAL"))
        .collect();
    assert!(failures.is_empty(), "clients lost something: {failures:?}");
    kubectl("delete namespace away --wait=false");
}
