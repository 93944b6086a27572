//! The operator is killed, paused and replaced, and the API server restarts, in the middle of a change.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{MINUTE, Paused, grants::Grants, process, signal};
use crate::{
    cluster::{
        RELEASE, SYSTEM, alone, apply, get, helm_upgrade, kubectl, lab, try_evict, try_run, until, until_condition,
    },
    shop::{client_failures, data_plane, database, pool, shop_scaled, start, status},
};

/// The lease's own time, its retry period, and a start of a container on a loaded machine.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(90);

fn lease() -> Result<(String, i64), String> {
    let lease = try_run(
        "kubectl",
        &["get", "lease", &format!("{RELEASE}-operator"), "--namespace", SYSTEM, "--output=json"],
        "",
    )?;
    let lease: Value = serde_json::from_str(&lease).map_err(|error| error.to_string())?;
    let holder = lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty());
    let epoch = lease["spec"]["leaseTransitions"].as_i64().unwrap_or_default();
    Ok((holder.ok_or("nobody holds the lease")?.to_owned(), epoch))
}

/// The operator's pod that holds the lease.
fn leading() -> Value {
    until("an operator leads", MINUTE, || {
        let (holder, _) = lease()?;
        let name = holder.split('_').next().unwrap_or_default();
        let pod = try_run("kubectl", &["get", "pod", name, "--namespace", SYSTEM, "--output=json"], "")?;
        serde_json::from_str(&pod).map_err(|error| error.to_string())
    })
}

fn metrics(operator: &Value) -> Result<String, String> {
    let address = operator["status"]["podIP"].as_str().ok_or("no address")?;
    try_run("curl", &["-sSf", "-m", "2", &format!("http://{address}:8080/metrics")], "")
}

fn ticks() -> Result<u64, String> {
    let metrics = metrics(&leading())?;
    let line = metrics.lines().find(|line| line.starts_with("sluice_operator_tick_duration_seconds_count"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).ok_or_else(|| "no ticks are counted".to_owned())
}

/// Waits until the operator has decided so many times.
pub fn pass_ticks(count: u64) {
    let begun = until("the operator counts its ticks", MINUTE, ticks);
    until("the operator has looked again", 5 * MINUTE, || {
        let now = ticks()?;
        if now >= begun + count { Ok(()) } else { Err(format!("{now} after {begun}")) }
    });
}

const NAMESPACE: &str = "leader";

fn scaling(max_allowed: u32) -> String {
    format!("minAllowed: 4, maxAllowed: {max_allowed}, floorPerPod: 1")
}

/// A shop of four pods that are proven, and whoever watches their grants.
fn prepare(namespace: &str) -> Grants {
    database();
    let grants = Grants::watch(namespace);
    start(&shop_scaled(namespace, &scaling(40)), namespace);
    kubectl(&format!("scale deployment/shop --namespace={namespace} --replicas=4"));
    kubectl(&format!("rollout status deployment/shop --namespace={namespace} --timeout=3m"));
    until("four pods are proven", 2 * MINUTE, || {
        let pods = status(namespace)["pods"].clone();
        if pods["proven"] == 4 { Ok(()) } else { Err(pods.to_string()) }
    });
    until_condition(namespace, "shop", "Proven", "True", MINUTE);
    grants
}

/// Changes maxAllowed and returns as soon as the first pod of several has been told.
fn begin_change(namespace: &str, grants: &Grants, max_allowed: u32) {
    grants.mark();
    apply(&pool(namespace, &scaling(max_allowed)));
    until("the first pod is told", MINUTE, || if grants.seen().writes > 0 { Ok(()) } else { Err(String::new()) });
}

/// Waits until a change is complete; at no time was more granted than the larger of both bounds.
fn end_change(namespace: &str, grants: &Grants, from: u32, to: u32) {
    until(&format!("maxAllowed {from} -> {to} is made up for"), 3 * MINUTE, || {
        let granted = grants.seen().sum();
        let status = status(namespace);
        let is_told = status["effective"]["maxAllowed"] == to && status["share"].as_u64() == Some(granted.into());
        // floors of pods that a rolling update adds stay free
        if is_told && (to - 4..=to).contains(&granted) {
            Ok(())
        } else {
            Err(format!("granted {granted}; {}", status["summary"]))
        }
    });
    let seen = grants.seen();
    assert!(seen.most <= from.max(to), "{} were granted at once between {from} and {to}", seen.most);
    assert_eq!(seen.out_of_order, Vec::<String>::new(), "two writers");
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn a_leader_that_is_killed_paused_or_drained_is_replaced_and_what_it_had_begun_goes_on() {
    let _alone = alone();
    helm_upgrade(&[]);
    let grants = prepare(NAMESPACE);
    let before = data_plane(NAMESPACE);

    // killed: it cannot give the lease back
    let (first, epoch) = lease().expect("a lease");
    begin_change(NAMESPACE, &grants, 12);
    let killed = Instant::now();
    signal(process(&leading(), "sluice"), Signal::KILL);
    let second = until("another leads", TAKEN_OVER_WITHIN, || {
        let (holder, now) = lease()?;
        if now > epoch { Ok(holder) } else { Err(format!("{holder} in epoch {now}")) }
    });
    println!("leader killed: {second} leads {:.1} s later", killed.elapsed().as_secs_f64());
    assert_ne!(second, first);
    end_change(NAMESPACE, &grants, 40, 12);

    // paused for longer than its lease: when it wakes up it believes to be the leader
    let (_, epoch) = lease().expect("a lease");
    let paused = leading();
    let process = process(&paused, "sluice");
    begin_change(NAMESPACE, &grants, 36);
    signal(process, Signal::STOP);
    let stopped = Instant::now();
    until("another leads", TAKEN_OVER_WITHIN, || {
        let (holder, now) = lease()?;
        if now > epoch { Ok(()) } else { Err(format!("{holder} in epoch {now}")) }
    });
    println!("leader paused: another leads {:.1} s later", stopped.elapsed().as_secs_f64());
    signal(process, Signal::CONT);
    end_change(NAMESPACE, &grants, 12, 36);
    until("the one that was paused has ended and started anew", 2 * MINUTE, || {
        let name = paused["metadata"]["name"].as_str().expect("a name");
        let pod = get(&format!("pod {name} --namespace={SYSTEM}"));
        let container = &pod["status"]["containerStatuses"][0];
        if container["restartCount"].as_u64() > paused["status"]["containerStatuses"][0]["restartCount"].as_u64() {
            Ok(())
        } else {
            Err(container.to_string())
        }
    });
    // what the one that was paused had begun may have been complete: a change of its successor's own
    begin_change(NAMESPACE, &grants, 20);
    end_change(NAMESPACE, &grants, 36, 20);
    assert!(grants.seen().epochs.len() >= 3, "each leader wrote in its own epoch: {:?}", grants.seen().epochs);

    // drained: one replica at a time, and the leader gives the lease back
    kubectl(&format!("rollout status deployment/{RELEASE} --namespace={SYSTEM} --timeout=2m"));
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let leader = name(&leading());
    let operators = get(&format!("pods --namespace={SYSTEM} --selector=app.kubernetes.io/component=operator"));
    let mut names = operators["items"].as_array().expect("a list").iter().map(name);
    let other = names.find(|name| *name != leader).expect("a second replica");
    let (_, epoch) = lease().expect("a lease");
    let drained = Instant::now();
    try_evict(SYSTEM, &leader).expect("one may go");
    let refused = try_evict(SYSTEM, &other).expect_err("the other must stay");
    assert!(refused.contains("disruption budget"), "{refused}");
    until("the other leads", TAKEN_OVER_WITHIN, || {
        let (holder, now) = lease()?;
        if now > epoch { Ok(()) } else { Err(format!("{holder} in epoch {now}")) }
    });
    println!("leader drained: another leads {:.1} s later", drained.elapsed().as_secs_f64());

    assert_eq!(data_plane(NAMESPACE), before, "a pod was touched");
    assert_eq!(client_failures(NAMESPACE), Vec::<String>::new(), "clients lost something");
    kubectl(&format!("delete namespace {NAMESPACE} --wait=false"));
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn an_api_server_that_restarts_or_hangs_and_the_loss_of_every_operator_in_the_middle_of_a_change_lose_nothing() {
    let _alone = alone();
    helm_upgrade(&[]);
    let namespace = "away";
    let grants = prepare(namespace);
    let before = data_plane(namespace);

    begin_change(namespace, &grants, 12);
    lab(&["restart", "kube-apiserver"]);
    until("the API server is back", MINUTE, || try_run("kubectl", &["get", "--raw=/readyz"], ""));
    end_change(namespace, &grants, 40, 12);

    begin_change(namespace, &grants, 36);
    kubectl(&format!("delete pods --all --namespace={SYSTEM} --grace-period=0 --force"));
    end_change(namespace, &grants, 12, 36);

    // it answers nothing: the leader ends before another could believe to be the one
    let operator = leading();
    begin_change(namespace, &grants, 20);
    let paused = Paused::component("kube-apiserver");
    until("the leader has given up", MINUTE, || match metrics(&operator) {
        Ok(metrics) if metrics.lines().any(|line| line == "sluice_operator_leader 1") => Err("it leads".to_owned()),
        Ok(_) | Err(_) => Ok(()),
    });
    drop(paused);
    until("the API server is back", MINUTE, || try_run("kubectl", &["get", "--raw=/readyz"], ""));
    end_change(namespace, &grants, 36, 20);
    assert_eq!(data_plane(namespace), before, "a pod was touched");
    assert_eq!(client_failures(namespace), Vec::<String>::new(), "clients lost something");

    // pods come and go while nobody leads for a moment: what the old ones hold is counted until they are gone
    kubectl(&format!("rollout status deployment/{RELEASE} --namespace={SYSTEM} --timeout=2m"));
    grants.mark();
    kubectl(&format!("rollout restart deployment/shop --namespace={namespace}"));
    until(
        "a new pod is granted something",
        MINUTE,
        || {
            if grants.seen().writes > 1 { Ok(()) } else { Err(String::new()) }
        },
    );
    signal(process(&leading(), "sluice"), Signal::KILL);
    kubectl(&format!("rollout status deployment/shop --namespace={namespace} --timeout=3m"));
    until_condition(namespace, "shop", "Proven", "True", 2 * MINUTE);
    end_change(namespace, &grants, 20, 20);
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}
