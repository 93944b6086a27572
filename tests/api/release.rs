//! A release of the chart, by the real helm: what somebody changed by hand is in the way of an upgrade since Helm 4.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use serde_json::json;
use tempfile::TempDir;

use crate::cluster::{Cluster, kubectl, repository};

const RELEASE: &str = "sluice";

/// The chart without the objects that all of a cluster would feel, other tests too: a release of one namespace.
fn chart_of_one_namespace() -> TempDir {
    const KEPT: [&str; 5] = ["_names.tpl", "_prometheus.tpl", "deployment.yaml", "serviceaccount.yaml", "NOTES.txt"];
    let from = repository().join("charts/sluice");
    let chart = tempfile::tempdir().expect("a directory");
    let to = chart.path();
    fs::create_dir(to.join("templates")).expect("a directory");
    let templates = KEPT.map(|name| format!("templates/{name}"));
    let files = ["Chart.yaml", "values.yaml", "values.schema.json"].map(str::to_owned);
    for file in files.iter().chain(&templates) {
        fs::copy(from.join(file), to.join(file)).expect("a file of the chart");
    }
    chart
}

/// `helm upgrade --install` of the chart in the namespace, with more of its arguments.
fn upgrade(chart: &Path, namespace: &str, more: &[&str]) -> Output {
    let mut helm = Command::new("helm");
    helm.args(["upgrade", RELEASE, "--install", "--namespace", namespace]).arg(chart);
    helm.args(["--set", "crds.install=false", "--set", "prometheus.servers.default.url=http://prometheus"]);
    helm.args(more).output().expect("helm is on the PATH of the lab")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn an_upgrade_after_kubectl_scale_goes_through_and_with_helm_4_by_the_flag_that_the_notes_name() {
    let cluster = Cluster::new("release", &json!({})).await;
    let namespace = cluster.namespace.as_str();
    let chart = chart_of_one_namespace();
    let installed = upgrade(chart.path(), namespace, &[]);
    assert!(installed.status.success(), "{}", text(&installed));
    let replicas = async || {
        let deployments: Api<Deployment> = cluster.api();
        let deployment = deployments.get(RELEASE).await.expect("the operator's Deployment");
        deployment.spec.and_then(|spec| spec.replicas)
    };
    let wanted = replicas().await;
    let scaled = kubectl(&["scale", "deployment", RELEASE, "--replicas=7", "--namespace", namespace], "");
    assert!(scaled.status.success(), "{}", text(&scaled));
    assert_eq!(replicas().await, Some(7));

    let notes = text(&installed);
    if notes.contains("--force-conflicts") {
        let refused = upgrade(chart.path(), namespace, &["--set", "replicas=3"]);
        assert!(!refused.status.success(), "the notes name a flag that nothing needs");
        assert!(text(&refused).contains("spec.replicas"), "{}", text(&refused));
        assert_eq!(replicas().await, Some(7), "refused, but done");
        let forced = upgrade(chart.path(), namespace, &["--set", "replicas=3", "--force-conflicts"]);
        assert!(forced.status.success(), "{}", text(&forced));
    } else {
        let upgraded = upgrade(chart.path(), namespace, &["--set", "replicas=3"]);
        assert!(upgraded.status.success(), "{}", text(&upgraded));
    }
    assert_eq!(replicas().await, Some(3));
    // the field is helm's again: what is as the chart has it is in nobody's way
    let again = upgrade(chart.path(), namespace, &[]);
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(replicas().await, wanted);
}
