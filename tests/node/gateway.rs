//! A gateway on a real node: clients in pods of their own, through the Service, while its pods are replaced, scaled and evicted.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use crate::{
    cluster::{apply, evict, get, kubectl, psql, until, until_condition, with_operator},
    workload::{client, gateway},
};

const MINUTE: Duration = Duration::from_mins(1);
/// Rolling updates; `benches/run endings` has more of them.
const UPDATES: usize = 2;

/// One connection per query.
const SHORT: &str = "n=0; while :; do out=$(psql -qXAt -v ON_ERROR_STOP=1 -c 'SELECT 1' 2>&1) || echo \"lost: $out\"; \
                     n=$((n+1)); [ $((n % 20)) != 0 ] || echo \"connections: $n\"; done";
/// Connections that live three seconds.
const LONG: &str = "n=0; while :; do out=$(for i in $(seq 30); do echo 'SELECT pg_sleep(0.1);'; done \
                    | psql -qXAt -v ON_ERROR_STOP=1 2>&1) || echo \"lost: $out\"; n=$((n+1)); echo \"connections: $n\"; done";

fn logs(namespace: &str, app: &str) -> String {
    kubectl(&format!("logs --namespace={namespace} --selector=app={app} --tail=-1"))
}

/// Connections that a client has had, by its own count.
fn connections(namespace: &str, app: &str) -> usize {
    let logs = logs(namespace, app);
    let counts = logs.lines().filter_map(|line| line.strip_prefix("connections: ")?.parse().ok());
    counts.max().unwrap_or_default()
}

/// The names of its pods, those that are ending among them.
fn poolers(namespace: &str) -> BTreeSet<String> {
    let pods = get(&format!("pods --namespace={namespace} --selector=app.kubernetes.io/component=gateway"));
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    pods["items"].as_array().into_iter().flatten().map(name).collect()
}

/// Waits until there are so many, and none of those that have to go.
fn until_replaced(namespace: &str, count: usize, gone: &BTreeSet<String>) {
    until(&format!("{count} pods are left, all of them new"), 2 * MINUTE, || {
        let now = poolers(namespace);
        if now.len() == count && now.is_disjoint(gone) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    kubectl(&format!("rollout status deployment/{namespace}-gateway --namespace={namespace} --timeout=3m"));
    // what they may open together is never passed
    let status = get(&format!("connectionpool {namespace} --namespace={namespace}"))["status"].clone();
    assert!(status["share"].as_u64().is_some_and(|share| share <= 10), "{status}");
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn clients_through_the_service_lose_nothing_while_the_poolers_are_replaced_scaled_and_evicted() {
    let _operator = with_operator();
    let namespace = "shared";
    apply(&gateway(namespace));
    until_condition(namespace, namespace, "GatewayAvailable", "True/AllPoolersReady", 2 * MINUTE);
    until_condition(namespace, namespace, "Proven", "True/AllProven", MINUTE);
    apply(&format!("{}---\n{}", client(namespace, "short", SHORT), client(namespace, "long", LONG)));
    for app in ["short", "long"] {
        kubectl(&format!("rollout status deployment/{app} --namespace={namespace} --timeout=2m"));
        until("it has had a connection", MINUTE, || match connections(namespace, app) {
            0 => Err(logs(namespace, app)),
            _ => Ok(()),
        });
    }

    for _ in 0..UPDATES {
        let before = poolers(namespace);
        kubectl(&format!("rollout restart deployment/{namespace}-gateway --namespace={namespace}"));
        until_replaced(namespace, before.len(), &before);
    }
    // as the HPA does it, through the pool
    for replicas in [3, 2] {
        kubectl(&format!("scale connectionpool/{namespace} --namespace={namespace} --replicas={replicas}"));
        until_replaced(namespace, replicas, &BTreeSet::new());
    }
    let drained = poolers(namespace);
    for pod in &drained {
        evict(namespace, pod);
    }
    until_replaced(namespace, drained.len(), &drained);
    for app in ["short", "long"] {
        let before = connections(namespace, app);
        until("it goes on", MINUTE, || match connections(namespace, app) {
            now if now > before => Ok(()),
            now => Err(now.to_string()),
        });
        let logs = logs(namespace, app);
        let lost: Vec<&str> = logs.lines().filter(|line| line.starts_with("lost")).collect();
        assert!(lost.is_empty(), "{app}: {lost:?}");
        println!("{app}: {} connections, none lost", connections(namespace, app));
    }

    // nobody is trusted for where he comes from, and the console is not for the network
    let ask = |what: &str| format!("out=$({what} 2>&1) && echo \"let in: $out\" || echo \"refused: $out\"; sleep 600");
    apply(&client(namespace, "thief", &ask("PGPASSWORD=wrong psql -qXAt -c 'SELECT 1'")));
    apply(&client(namespace, "nosy", &ask("psql -qXAt -d pgbouncer -c 'SHOW POOLS'")));
    for (app, why) in [("thief", "SASL authentication failed"), ("nosy", "not allowed")] {
        let told = until("it was answered", 2 * MINUTE, || {
            kubectl(&format!("rollout status deployment/{app} --namespace={namespace} --timeout=2m"));
            let logs = logs(namespace, app);
            if logs.contains(": ") { Ok(logs) } else { Err(logs) }
        });
        assert!(told.starts_with("refused") && told.contains(why), "{app}: {told}");
    }

    // everything goes with the pool
    kubectl(&format!("delete connectionpool {namespace} --namespace={namespace}"));
    until("the objects went with the pool", 2 * MINUTE, || {
        let left = kubectl(&format!(
            "get deployments,services,configmaps,poddisruptionbudgets --namespace={namespace} --selector=sluice.dev/pool --output=name"
        ));
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    kubectl(&format!("delete namespace {namespace} --wait=false"));
    psql(&format!("DROP DATABASE IF EXISTS {namespace} WITH (FORCE)"));
}
