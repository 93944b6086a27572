//! Certificates on a real API server: replicas that race, a Secret that somebody damages.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use sluice::webhook::certificates::{CertificateError, CertificateKeeper, CertificateSettings};

use crate::cluster::{Cluster, ForNow, chart};

/// The configuration of the chart, for a namespace that nothing else uses: no pod ever meets it.
async fn configuration(cluster: &Cluster) -> ForNow {
    let mut value = chart("templates/webhook.yaml", &cluster.namespace).remove(0);
    value["metadata"]["name"] = json!(cluster.namespace);
    for webhook in value["webhooks"].as_array_mut().expect("webhooks") {
        webhook["namespaceSelector"] = json!({"matchLabels": {"sluice-test-none": cluster.namespace}});
    }
    cluster.apply_for_now(&value).await
}

fn settings(cluster: &Cluster) -> CertificateSettings {
    CertificateSettings::for_service(&cluster.namespace, "sluice-webhook", "sluice-webhook-tls", &cluster.namespace)
}

async fn bundles(cluster: &Cluster) -> Vec<Option<Vec<u8>>> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let found = configurations.get(&cluster.namespace).await.expect("the configuration");
    let webhooks = found.webhooks.unwrap_or_default();
    webhooks.into_iter().map(|webhook| webhook.client_config.ca_bundle.map(|ByteString(bundle)| bundle)).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn replicas_that_start_at_once_agree_on_one_certificate_and_every_webhook_trusts_it() {
    let cluster = Cluster::new("certificates", &json!({})).await;
    let configuration = configuration(&cluster).await;
    let start = || tokio::spawn(CertificateKeeper::start(cluster.client.clone(), settings(&cluster)));
    let replicas = [start(), start(), start(), start()];
    let mut ends = Vec::new();
    for replica in replicas {
        let mut keeper = replica.await.expect("runs").expect("starts");
        ends.push(keeper.look(Timestamp::now()).await.expect("looks").not_after);
    }
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
    let bundles = bundles(&cluster).await;
    assert_eq!(bundles.len(), 2);
    assert!(bundles[0].is_some() && bundles[0] == bundles[1], "both webhooks trust the same authority");

    let before = cluster.api::<Secret>().get("sluice-webhook-tls").await.expect("the Secret").metadata.resource_version;
    let mut late = CertificateKeeper::start(cluster.client.clone(), settings(&cluster)).await.expect("starts");
    late.look(Timestamp::now()).await.expect("looks");
    let after = cluster.api::<Secret>().get("sluice-webhook-tls").await.expect("the Secret").metadata.resource_version;
    assert_eq!(before, after, "nothing is written when nothing is due");
    configuration.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_deleted_or_damaged_secret_heals_and_the_bundle_follows() {
    let cluster = Cluster::new("certificates", &json!({})).await;
    let configuration = configuration(&cluster).await;
    let secrets: Api<Secret> = cluster.api();
    let mut keeper = CertificateKeeper::start(cluster.client.clone(), settings(&cluster)).await.expect("starts");
    keeper.look(Timestamp::now()).await.expect("looks");
    let first = bundles(&cluster).await;

    let garbage = json!({"data": BTreeMap::from([("certificates.json", ByteString(b"{\"authorities\":[".to_vec()))])});
    secrets.patch("sluice-webhook-tls", &PatchParams::default(), &Patch::Merge(garbage)).await.expect("damaged");
    keeper.look(Timestamp::now()).await.expect("heals");
    let second = bundles(&cluster).await;
    assert!(second[0].is_some() && first != second);

    secrets.delete("sluice-webhook-tls", &DeleteParams::default()).await.expect("deleted");
    keeper.look(Timestamp::now()).await.expect("heals");
    assert_ne!(second, bundles(&cluster).await);

    configuration.end().await;
    let error = keeper.look(Timestamp::now()).await.expect_err("no configuration");
    assert!(matches!(error, CertificateError::NoConfiguration(_)), "{error}");
}
