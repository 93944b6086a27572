//! Prometheus is slow, down, and started again.

use std::{env, time::Duration};

use serde_json::Value;

use super::{MINUTE, leader, proxy::Proxy};
use crate::{
    cluster::{alone, condition, helm_upgrade, kubectl, lab, try_run, until, until_condition},
    shop::{address, client_failures, database, events, pods, read_back, shop_scaled, start, status},
};

const UNAVAILABLE: &str = "PrometheusUnavailable";

/// A pool of the shop that reads this server; what its poolers work with is its target, so that holding can be seen.
fn scaling(server: &str) -> String {
    format!(
        "minAllowed: 2, maxAllowed: 40, algorithm: TargetUtilization, localReaction: Disabled, metrics: {{prometheusRef: {server}}}"
    )
}

/// What must not move while nothing is known: the target, every grant, and what the poolers work with.
fn sizes(namespace: &str) -> Result<(Value, Vec<Value>, u64), String> {
    let target = status(namespace)["recommendation"]["target"].clone();
    let grants = pods(namespace).into_iter().map(|pod| pod["metadata"]["annotations"]["sluice.dev/grant"].clone());
    Ok((target, grants.collect(), read_back(namespace).ok_or("an agent does not answer")?))
}

/// Waits until the pools are still, passes some ticks, and holds them to what they were.
fn hold_while(what: &str, namespaces: &[&str], ticks: u64) {
    for namespace in namespaces {
        until(&format!("{what}: {namespace} is told that nothing is known"), MINUTE, || {
            let active = condition(namespace, "shop", "ScalingActive");
            if active.starts_with(&format!("False/{UNAVAILABLE}")) { Ok(()) } else { Err(active) }
        });
        // a change that was on its way may arrive
        until_condition(namespace, "shop", "Proven", "True", MINUTE);
    }
    let before: Vec<_> = namespaces.iter().map(|namespace| sizes(namespace)).collect();
    leader::pass_ticks(ticks);
    let after: Vec<_> = namespaces.iter().map(|namespace| sizes(namespace)).collect();
    assert_eq!(after, before, "{what}: something moved");
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn while_prometheus_is_slow_or_down_every_size_holds_and_each_episode_is_told_once() {
    let _alone = alone();
    database();
    let prometheus = env::var("SLUICE_LAB_PROMETHEUS").expect("run this through tests/run node");
    let proxy = Proxy::start(&address(), prometheus.trim_start_matches("http://").to_owned());
    let slow = format!("prometheus.servers.slow.url=http://{}", proxy.address);
    helm_upgrade(&["--set", &slow, "--set", "prometheus.servers.slow.timeoutSeconds=2"]);
    for (namespace, server) in [("farprom", "slow"), ("nearprom", "default")] {
        start(&shop_scaled(namespace, &scaling(server)), namespace);
        kubectl(&format!("set env deployment/shop --namespace={namespace} ORDERS_PER_SECOND=30"));
    }
    for namespace in ["farprom", "nearprom"] {
        kubectl(&format!("rollout status deployment/shop --namespace={namespace} --timeout=3m"));
        until_condition(namespace, "shop", "ScalingActive", "True", 2 * MINUTE);
        until(&format!("the target of {namespace} is that of its load"), 2 * MINUTE, || {
            let status = status(namespace);
            let target = status["recommendation"]["target"].as_u64().unwrap_or_default();
            if target > 4 { Ok(()) } else { Err(status["summary"].to_string()) }
        });
    }

    // every answer comes after the deadline of the one server; pools of the other go on
    proxy.delay(Duration::from_secs(4));
    hold_while("slow", &["farprom"], 4);
    let told = condition("farprom", "shop", "ScalingActive");
    assert!(told.contains("no answer in") && told.contains("timeoutSeconds"), "{told}");
    let near = condition("nearprom", "shop", "ScalingActive");
    assert!(near.starts_with("True"), "another server's pools are held up: {near}");
    let of_slow = events("farprom", UNAVAILABLE);
    assert_eq!(of_slow.len(), 1, "{of_slow:?}");
    assert!(of_slow[0].starts_with("1 x") && of_slow[0].contains("no answer in"), "{of_slow:?}");
    assert_eq!(events("nearprom", UNAVAILABLE), Vec::<String>::new());
    proxy.delay(Duration::ZERO);
    until_condition("farprom", "shop", "ScalingActive", "True", MINUTE);

    // nobody listens at all
    lab(&["stop", "prometheus"]);
    hold_while("down", &["nearprom", "farprom"], 4);
    let told = condition("nearprom", "shop", "ScalingActive");
    assert!(told.contains("Connection refused") && told.contains("check its url"), "{told}");
    let of_down = events("nearprom", UNAVAILABLE);
    assert_eq!(of_down.len(), 1, "{of_down:?}");
    assert!(of_down[0].starts_with("1 x") && of_down[0].contains("Connection refused"), "{of_down:?}");
    assert!(events("farprom", UNAVAILABLE).len() <= 2, "at most one more, of the second episode");
    lab(&["start", "prometheus"]);
    for namespace in ["nearprom", "farprom"] {
        until_condition(namespace, "shop", "ScalingActive", "True", 2 * MINUTE);
    }

    // started anew, its counters and samples are what they were: nothing looks like a reset of the load
    let before = status("nearprom")["recommendation"]["target"].as_u64().expect("a target");
    lab(&["restart", "prometheus"]);
    until("Prometheus is back", MINUTE, || try_run("curl", &["-sf", "-m", "2", &format!("{prometheus}/-/ready")], ""));
    leader::pass_ticks(2);
    until_condition("nearprom", "shop", "ScalingActive", "True", MINUTE);
    let after = status("nearprom")["recommendation"]["target"].as_u64().expect("a target");
    println!("target {before} before and {after} after a restart of Prometheus");
    assert!(after * 2 >= before, "the restart looked like an end of the load: {before} -> {after}");

    for namespace in ["nearprom", "farprom"] {
        assert_eq!(client_failures(namespace), Vec::<String>::new(), "clients lost something");
        kubectl(&format!("delete namespace {namespace} --wait=false"));
    }
    helm_upgrade(&[]);
}
