//! The whole way of a change on a real node: load on injected pods, Prometheus, target, shares, the value read back.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    cluster::{get, kubectl, sluice, until, until_condition, with_operator},
    shop::{database, events, read_back, shop_scaled, start, status},
};

const MINUTE: Duration = Duration::from_mins(1);

#[test]
#[ignore = "needs a node: tests/run node"]
fn under_load_the_target_rises_and_every_pooler_is_seen_to_work_with_its_part() {
    let _operator = with_operator();
    database();
    let scaling = "minAllowed: 2, maxAllowed: 40, algorithm: TargetUtilization, localReaction: Disabled";
    start(&shop_scaled("way", scaling), "way");
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
    // one id leads from the status to the events and to the log
    let id = status["lastDecision"]["id"].as_str().expect("an id");
    let logs = kubectl("logs --namespace=sluice-system --selector=app.kubernetes.io/component=operator --tail=-1");
    assert!(logs.lines().any(|line| line.contains(id) && line.contains("target changed")), "{id} is not in the log");
    let notes = events("way", "TargetChanged");
    assert!(notes.iter().any(|note| note.contains("(decision d-")), "{notes:?}");
    // who it is, the sidecars tell whoever may run a program in them
    let work: Value = serde_json::from_str(&sluice("top shop --clients --namespace=way --output=json")).expect("JSON");
    let clients: u64 =
        work["applications"].as_array().into_iter().flatten().filter_map(|of| of["clients"].as_u64()).sum();
    assert!(clients > 0, "{work}");
    kubectl("delete namespace way --wait=false");
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn a_new_pod_is_served_at_once_and_a_change_of_the_settings_reaches_every_pooler_without_a_restart() {
    let _operator = with_operator();
    database();
    start(&shop_scaled("settings", "minAllowed: 2, maxAllowed: 20"), "settings");
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
