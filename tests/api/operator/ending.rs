//! How a replica begins to answer pods, and how it ends.

use std::{net::TcpListener, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::process::{Operator, free_address, turn};
use crate::cluster::{Cluster, ForNow, chart, eventually};

/// A configuration of the webhook that concerns no pod: its certificate is to be trusted, and nothing else.
async fn configuration(cluster: &Cluster) -> ForNow {
    let mut value = chart("templates/webhook.yaml", "sluice-system").remove(0);
    value["metadata"]["name"] = json!(cluster.namespace);
    for webhook in value["webhooks"].as_array_mut().expect("webhooks") {
        webhook["namespaceSelector"] = json!({"matchLabels": {"no": "namespace"}});
    }
    cluster.apply_for_now(&value).await
}

async fn gates(operator: &Operator) -> Option<Value> {
    serde_json::from_str(&operator.get("/readyz").await?).ok()
}

async fn is_ready(operator: &Operator) {
    eventually("the replica is ready", || async { (gates(operator).await?["ready"] == true).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_webhook_that_cannot_listen_is_not_ready_and_says_why_until_it_can() {
    let _turn = turn().await;
    let cluster = Cluster::new("listen", &json!({})).await;
    let configuration = configuration(&cluster).await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let extra = ["--tick-seconds", "1", "--webhook-bind", &address, "--webhook-configuration", &cluster.namespace];
    let operator = Operator::start(&cluster, "one", &extra);
    let told = eventually("it says that it cannot listen", || async {
        gates(&operator).await?["gates"]["webhook port"]["waitingFor"]
            .as_str()
            .map(str::to_owned)
            .filter(|told| told.contains("cannot listen"))
    })
    .await;
    assert!(told.contains(&address) && told.contains("--webhook-bind"), "{told}");
    eventually("all but that is there", || async {
        let gates = gates(&operator).await?["gates"].as_object()?.clone();
        gates.iter().all(|(name, gate)| (name == "webhook port") != (gate == "ready")).then_some(())
    })
    .await;
    drop(taken);
    is_ready(&operator).await;
    configuration.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_replica_that_is_told_to_end_gives_back_the_lease_and_answers_until_requests_are_led_elsewhere() {
    let _turn = turn().await;
    let cluster = Cluster::new("ending", &json!({})).await;
    let configuration = configuration(&cluster).await;
    let address = free_address();
    let extra = [
        "--tick-seconds",
        "1",
        "--webhook-bind",
        &address,
        "--webhook-configuration",
        &cluster.namespace,
        "--drain-seconds",
        "4",
    ];
    let mut operator = Operator::start(&cluster, "one", &extra);
    operator.leads().await;
    is_ready(&operator).await;
    let told = Instant::now();
    operator.terminate();
    eventually("it is not ready", || async {
        let gates = gates(&operator).await?;
        (gates["ready"] == false && gates["gates"]["ending"]["waitingFor"] == "this process ends").then_some(())
    })
    .await;
    let leases: Api<Lease> = cluster.api();
    eventually("the lease is given back", || async {
        let holder = leases.get("sluice-operator").await.ok()?.spec?.holder_identity?;
        holder.is_empty().then_some(())
    })
    .await;
    assert!(told.elapsed() < Duration::from_secs(3), "{:?}", told.elapsed());
    let mut answered = told.elapsed();
    while TcpStream::connect(&address).await.is_ok() {
        answered = told.elapsed();
        assert!(answered < Duration::from_secs(10), "it goes on for ever");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(answered > Duration::from_secs(3), "the port was closed after {answered:?}");
    eventually("it has ended", || async { (told.elapsed() > Duration::from_secs(5)).then_some(()) }).await;
    assert!(!operator.is_running());
    configuration.end().await;
}
