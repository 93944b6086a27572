//! The pooler of a pod is killed, or hangs, under its clients.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::{MINUTE, now_seconds, process, processes, signal};
use crate::{
    cluster::{apply, condition, get, kubectl, until, until_condition, with_operator},
    shop::{agent, data_plane},
    workload::{container, pod_spec, pool},
};

const NAMESPACE: &str = "poolerfaults";

/// What a loaded machine may take; on an idle one it is 2 s, as the agent's own tests hold it to.
const BACK_WITHIN_SECONDS: f64 = 10.0;

/// One pod: `app` asks for the time on a new connection again and again; `load` keeps eight clients busy and starts
/// again when they are cut off.
fn workload() -> String {
    let app = container(
        "app",
        NAMESPACE,
        "export PGCONNECT_TIMEOUT=2; while :; do psql -qXAtc 'SELECT extract(epoch FROM clock_timestamp())' || :; done",
    );
    let load = container(
        "load",
        NAMESPACE,
        "echo 'SELECT pg_sleep(0.01);' > /tmp/work.sql; \
         while :; do pgbench --no-vacuum --client=8 --rate=50 --time=86400 --file=/tmp/work.sql || :; done",
    );
    let spec = pod_spec(&format!("{app}}}, {{{load}"), "", "Always");
    format!(
        "{}apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: app, namespace: {NAMESPACE}}}\nspec:\n  \
         selector: {{matchLabels: {{app: {NAMESPACE}}}}}\n  template:\n    \
         metadata: {{labels: {{app: {NAMESPACE}, sluice.dev/inject: enabled}}}}\n    spec: {spec}\n",
        pool(NAMESPACE)
    )
}

fn pod() -> Value {
    get(&format!("pods --namespace={NAMESPACE} --selector=app={NAMESPACE}"))["items"][0].clone()
}

/// When the client in the pod had answers, in Unix seconds.
fn answers() -> Vec<f64> {
    let log = kubectl(&format!("logs deployment/app --namespace={NAMESPACE} --container=app --tail=-1"));
    log.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Seconds from a fault until the client had answers again: the end of the longest silence after it.
fn back_after_seconds(fault: f64) -> f64 {
    until("the client has answers again", MINUTE, || {
        let answers = answers();
        match answers.last() {
            // it goes on for a while: what was silence is over
            Some(last) if *last > fault + 5.0 => Ok(()),
            last => Err(format!("{last:?} after the fault at {fault}")),
        }
    });
    let answers = answers();
    let after = answers.windows(2).filter(|pair| pair[1] > fault);
    let silence = after.max_by(|one, other| (one[1] - one[0]).total_cmp(&(other[1] - other[0])));
    silence.map_or(f64::INFINITY, |pair| pair[1] - fault)
}

fn is_first_of_its_container(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|numbers| numbers.split_whitespace().last()) == Some("1")
}

fn restarts(pod: &Value, reason: &str) -> Result<u64, String> {
    let metrics = agent(pod, "metrics")?;
    let series = format!("reason=\"{reason}\"");
    let line = metrics.lines().find(|line| line.starts_with("sluice_pooler_restarts_total") && line.contains(&series));
    let count = line.and_then(|line| line.rsplit(' ').next()).and_then(|count| count.parse().ok());
    count.ok_or_else(|| format!("no restarts with {series} in {metrics}"))
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn a_pooler_that_was_killed_or_hangs_serves_again_within_seconds_and_one_that_stays_down_is_told_of() {
    let _operator = with_operator();
    apply(&workload());
    kubectl(&format!("rollout status deployment/app --namespace={NAMESPACE} --timeout=2m"));
    until_condition(NAMESPACE, NAMESPACE, "Proven", "True", MINUTE);
    until("the client has answers", MINUTE, || {
        let answers = answers().len();
        if answers > 20 { Ok(()) } else { Err(format!("{answers}")) }
    });
    let pod = pod();
    let before = data_plane(NAMESPACE);

    // the agent alone: its keeper, the container's first process, starts another, and no client notices
    let agents = || processes(&pod, "sluice-agent");
    let first = agents().into_iter().find(|pid| !is_first_of_its_container(*pid)).expect("keeper and agent");
    signal(first, Signal::KILL);
    until("another agent speaks of the same pooler", MINUTE, || {
        let another = agents().into_iter().any(|pid| pid != first && !is_first_of_its_container(pid));
        let status = agent(&pod, "status")?;
        if another && status.contains("\"Serving\"") { Ok(()) } else { Err(status) }
    });
    let load = kubectl(&format!("logs deployment/app --namespace={NAMESPACE} --container=load --tail=-1"));
    let cut: Vec<_> = load.lines().filter(|line| line.contains("aborted") || line.contains("FATAL")).collect();
    assert!(cut.is_empty(), "the agent's death cut clients: {cut:?}");

    for (what, fault, reason) in [("killed", Signal::KILL, "Exited"), ("hung", Signal::STOP, "Hung")] {
        let pooler = process(&pod, "pgbouncer");
        let at = now_seconds();
        signal(pooler, fault);
        let back = back_after_seconds(at);
        println!("PgBouncer {what}: clients had answers again {back:.2} s after the fault");
        assert!(back <= BACK_WITHIN_SECONDS, "{what}: {back:.2} s");
        assert_ne!(process(&pod, "pgbouncer"), pooler, "{what}: another process serves");
        assert_eq!(restarts(&pod, reason), Ok(1), "{what}");
    }
    assert_eq!(data_plane(NAMESPACE), before, "no container was restarted for it");

    // one that does not stay up: the operator says so as soon as it wants something of it
    let stop = Arc::new(AtomicBool::new(false));
    let killing = {
        let (stop, pod) = (stop.clone(), pod.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for pid in processes(&pod, "pgbouncer") {
                    signal(pid, Signal::KILL);
                }
                thread::sleep(Duration::from_millis(20));
            }
        })
    };
    kubectl(&format!(
        "patch connectionpool {NAMESPACE} --namespace={NAMESPACE} --type=merge --patch={{\"spec\":{{\"health\":{{\"queryWaitTimeoutSeconds\":17}}}}}}"
    ));
    let told = until("the operator tells of the pooler", MINUTE, || {
        let proven = condition(NAMESPACE, NAMESPACE, "Proven");
        if proven.starts_with("False/NotApplied") { Ok(proven) } else { Err(proven) }
    });
    assert!(told.contains("does not stay up"), "{told}");
    stop.store(true, Ordering::Relaxed);
    killing.join().expect("no process was beyond reach");
    until_condition(NAMESPACE, NAMESPACE, "Proven", "True", 3 * MINUTE);
    kubectl(&format!("delete namespace {NAMESPACE} --wait=false"));
}
