//! Gateways: their objects appear, are mended, outlive an upgrade of the operator, and their pods get shares like others.

use futures::future::join_all;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::api::ConnectionPool;

use super::{
    Invariant, Shop,
    pods::FakePod,
    process::{Operator, turn},
};
use crate::cluster::{Cluster, eventually, kubectl, object, repository};

const NAME: &str = "shop-gateway";
const ENABLED: [&str; 4] = ["--tick-seconds", "1", "--gateways", "enabled"];

async fn pool_of(cluster: &Cluster, spec: Value) -> ConnectionPool {
    let mut pool = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "metadata": {"name": "shop"},
        "spec": {"topology": "Gateway", "scaling": {"maxAllowed": 100},
            "upstream": {"host": "pg-main-rw.db.svc", "database": "shop", "credentialsRef": {"name": "shop-db"}}},
    });
    let fields = spec.as_object().cloned().unwrap_or_default();
    pool["spec"].as_object_mut().expect("a spec").extend(fields);
    cluster.api().create(&PostParams::default(), &object(pool)).await.expect("a pool")
}

/// A gateway of the test's own.
async fn shop(spec: Value) -> Shop {
    let cluster = Cluster::new("gateway", &json!({})).await;
    super::released_lease(&cluster).await;
    let pool = pool_of(&cluster, spec).await;
    Shop { cluster, pool }
}

impl Shop {
    async fn deployment(&self) -> Deployment {
        let deployments: Api<Deployment> = self.cluster.api();
        eventually("the Deployment is there", || async { deployments.get_opt(NAME).await.ok()? }).await
    }

    /// Waits until a field of an object of the gateway reads so.
    async fn reads(&self, kind: &str, pointer: &str, wanted: Value) {
        let mut last = Value::Null;
        let deadline = tokio::time::Instant::now() + crate::cluster::DEADLINE;
        loop {
            let output = kubectl(&["get", kind, NAME, "-n", &self.cluster.namespace, "-o", "json"], "");
            if let Ok(object) = serde_json::from_slice::<Value>(&output.stdout) {
                last = object.pointer(pointer).cloned().unwrap_or_default();
                if last == wanted {
                    return;
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "{kind} {pointer} is {last} and not {wanted}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    async fn edit<K>(&self, patch: Value)
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = self.cluster.api();
        api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("edited");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_gateway_has_its_objects_and_what_is_changed_by_hand_is_mended() {
    let _turn = turn().await;
    let shop = shop(json!({"scaling": {"minAllowed": 2, "maxAllowed": 12}})).await;
    let operator = Operator::start(&shop.cluster, "a", &ENABLED);
    operator.leads().await;
    let deployment = shop.deployment().await;
    assert_eq!(deployment.owner_references().first().map(|owner| owner.uid.clone()), shop.pool.uid());
    shop.reads("service", "/spec/ports/0/port", json!(5432)).await;
    shop.reads("configmap", "/data/host", json!(format!("{NAME}.{}.svc", shop.cluster.namespace))).await;
    shop.reads("configmap", "/data/credentialsSecret", json!("shop-db")).await;
    shop.reads("poddisruptionbudget", "/spec/maxUnavailable", json!(1)).await;
    let status = eventually("the status tells of it", || async { shop.status().await.gateway }).await;
    assert_eq!(status.address, Some(format!("{NAME}.{}.svc:5432", shop.cluster.namespace)));
    assert!(status.selector.contains("sluice.dev/pool=shop"), "{}", status.selector);
    // nobody runs the Deployment here
    shop.condition("GatewayAvailable", "False/NoPoolerReady").await;

    let image = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()?.containers[0].image.clone());
    let containers = json!([{"name": "sluice", "image": "somebody/else:1", "command": ["/sluice/bin/sluice-agent"]}]);
    let grant = json!({"annotations": {"sluice.dev/grant": "{\"share\":1000}", "team": "a"}});
    let template = json!({"metadata": grant, "spec": {"containers": containers}});
    shop.edit::<Deployment>(json!({"spec": {"replicas": 7, "template": template}})).await;
    shop.edit::<Service>(json!({"spec": {"selector": {"app": "else"}}, "metadata": {"labels": {"team": "a"}}})).await;
    shop.edit::<ConfigMap>(json!({"data": {"host": "elsewhere", "note": "mine"}})).await;
    let budgets: Api<PodDisruptionBudget> = shop.cluster.api();
    budgets.delete(NAME, &DeleteParams::default()).await.expect("deleted");
    shop.reads("deployment", "/spec/template/spec/containers/0/image", json!(image)).await;
    shop.reads("deployment", "/spec/replicas", json!(2)).await;
    shop.reads("deployment", "/spec/template/metadata/annotations/sluice.dev~1grant", Value::Null).await;
    shop.reads("deployment", "/spec/template/metadata/annotations/team", json!("a")).await;
    shop.reads("service", "/spec/selector/app", Value::Null).await;
    shop.reads("service", "/spec/selector/sluice.dev~1pool", json!("shop")).await;
    shop.reads("service", "/metadata/labels/team", json!("a")).await;
    shop.reads("configmap", "/data/host", json!(format!("{NAME}.{}.svc", shop.cluster.namespace))).await;
    shop.reads("configmap", "/data/note", json!("mine")).await;
    shop.reads("poddisruptionbudget", "/spec/maxUnavailable", json!(1)).await;
    shop.end().await;
}

/// An autoscaler that may go down to no replica, which Kubernetes has as a beta feature since 1.37.
fn autoscaler_down_to_zero() -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": NAME},
        "spec": {
            "scaleTargetRef": {"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "name": "shop"},
            "minReplicas": 0, "maxReplicas": 6,
            "metrics": [{"type": "External", "external": {"metric": {"name": "jobs"}, "target": {"type": "AverageValue", "averageValue": "10"}}}],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_gateway_that_an_autoscaler_sets_to_zero_has_no_pooler_says_what_clients_get_and_comes_back() {
    let _turn = turn().await;
    let shop = shop(json!({"gateway": {"replicas": 2}})).await;
    let operator = Operator::start(&shop.cluster, "a", &ENABLED);
    operator.leads().await;
    shop.reads("deployment", "/spec/replicas", json!(2)).await;

    let minor = std::env::var("SLUICE_KUBERNETES_VERSION").expect("run this through tests/run api");
    let minor: u32 = minor.split('.').nth(1).and_then(|minor| minor.parse().ok()).expect("a version");
    let autoscalers: Api<HorizontalPodAutoscaler> = shop.cluster.api();
    let created = autoscalers.create(&PostParams::default(), &object(autoscaler_down_to_zero())).await;
    assert_eq!(created.is_ok(), minor >= 37, "Kubernetes 1.{minor}: {created:?}");

    // the autoscaler's controller reads and writes no more than this
    let scale = async |replicas: i32| {
        let mut scale = shop.pools().get_scale("shop").await.expect("a scale");
        let selector = scale.status.as_ref().and_then(|status| status.selector.clone());
        assert!(selector.is_some_and(|selector| selector.contains("sluice.dev/pool=shop")), "{scale:?}");
        scale.spec.get_or_insert_default().replicas = Some(replicas);
        shop.pools().replace_scale("shop", &PostParams::default(), &scale).await.expect("scaled");
    };
    eventually("the status tells of it", || async { shop.status().await.gateway }).await;
    scale(0).await;
    shop.reads("deployment", "/spec/replicas", json!(0)).await;
    let told = shop.condition("GatewayAvailable", "False/ScaledToZero").await;
    assert!(told.contains("refused at once"), "{told}");
    shop.reads("service", "/spec/ports/0/port", json!(5432)).await;
    scale(3).await;
    shop.reads("deployment", "/spec/replicas", json!(3)).await;
    shop.condition("GatewayAvailable", "False/NoPoolerReady").await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn another_version_of_the_operator_leaves_the_template_as_it_is_until_the_pool_changes() {
    let _turn = turn().await;
    let shop = shop(json!({"gateway": {"replicas": 3}})).await;
    let with = |image| [&ENABLED[..], &["--agent-image", image]].concat();
    let mut operator = Operator::start(&shop.cluster, "a", &with("sluice:1"));
    operator.leads().await;
    let before = shop.deployment().await;
    operator.kill();
    super::release(&shop).await;
    let operator = Operator::start(&shop.cluster, "b", &with("sluice:2"));
    operator.leads().await;
    // it works: kubectl scales through the pool
    let scaled = kubectl(&["scale", "connectionpool/shop", "--replicas=4", "-n", &shop.cluster.namespace], "");
    assert!(scaled.status.success(), "{}", String::from_utf8_lossy(&scaled.stderr));
    shop.reads("deployment", "/spec/replicas", json!(4)).await;
    let after = shop.deployment().await;
    let template = |deployment: &Deployment| deployment.spec.clone().map(|spec| spec.template);
    assert_eq!(template(&after), template(&before), "no pooler is replaced");
    assert_eq!(
        after.metadata.generation,
        before.metadata.generation.map(|generation| generation + 1),
        "but for the scale"
    );

    shop.change(json!({"client": {"port": 6432}})).await;
    shop.reads("deployment", "/spec/template/spec/initContainers/0/image", json!("sluice:2")).await;
    shop.reads("service", "/spec/ports/0/port", json!(6432)).await;
    shop.reads("configmap", "/data/port", json!("6432")).await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn the_pods_of_a_gateway_share_max_allowed_while_some_surge_and_others_end() {
    let _turn = turn().await;
    let shop = shop(json!({"scaling": {"minAllowed": 2, "maxAllowed": 7, "floorPerPod": 2}})).await;
    let operator = Operator::start(&shop.cluster, "a", &ENABLED);
    operator.leads().await;
    shop.deployment().await;
    let invariant = Invariant::watch(&shop);
    let mut pods = shop.pods(2).await;
    for name in ["surge-0", "surge-1"] {
        pods.push(FakePod::start(&shop.cluster, &shop.pool, name).await);
        eventually("the new pod has a share", || async {
            pods.last()?.grant("shop").await.filter(|grant| grant.share > 0)
        })
        .await;
        pods.remove(0).end().await;
    }
    eventually("those that are left have all", || async {
        let grants = join_all(pods.iter().map(|pod| pod.grant("shop"))).await;
        let sum: u32 = grants.iter().flatten().map(|grant| grant.share).sum();
        (sum >= 5).then_some(())
    })
    .await;
    shop.condition("Proven", "True/AllProven").await;
    shop.condition("PodsCurrent", "True/UpToDate").await;
    let most = invariant.most();
    assert!(most <= 7, "{most} were granted of 7");
    let status = shop.status().await;
    assert!(status.conditions.iter().all(|condition| condition.type_ != "Injected"), "there is nothing to inject");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_is_somebody_elses_is_left_alone_and_told_of() {
    let _turn = turn().await;
    let cluster = Cluster::new("gateway", &json!({})).await;
    let services: Api<Service> = cluster.api();
    let foreign = json!({"metadata": {"name": NAME}, "spec": {"selector": {"app": "old"}, "ports": [{"port": 5432}]}});
    services.create(&PostParams::default(), &object(foreign)).await.expect("a Service");
    let pool = pool_of(&cluster, json!({})).await;
    let shop = Shop { cluster, pool };
    let operator = Operator::start(&shop.cluster, "a", &ENABLED);
    operator.leads().await;
    let told = shop.condition("GatewayAvailable", "False/NameTaken").await;
    assert!(told.contains("Service") && told.contains(NAME), "{told}");
    shop.condition("Ready", "False/NameTaken").await;
    let untouched = services.get(NAME).await.expect("the Service");
    assert!(untouched.owner_references().is_empty());
    assert_eq!(untouched.spec.and_then(|spec| spec.selector), Some([("app".to_owned(), "old".to_owned())].into()));

    services.delete(NAME, &DeleteParams::default()).await.expect("deleted");
    shop.condition("GatewayAvailable", "False/NoPoolerReady").await;
    shop.reads("service", "/spec/selector/sluice.dev~1pool", json!("shop")).await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_log_level_that_is_set_beside_the_poolers_own_variables_stays_when_the_template_changes() {
    let _turn = turn().await;
    let shop = shop(json!({"gateway": {"replicas": 2}})).await;
    let operator = Operator::start(&shop.cluster, "a", &ENABLED);
    operator.leads().await;
    shop.deployment().await;
    let logs_at = async || {
        let spec = shop.deployment().await.spec.and_then(|spec| spec.template.spec).expect("pods");
        let variables = spec.containers[0].env.clone().unwrap_or_default();
        variables.into_iter().find(|variable| variable.name == "SLUICE_LOG").and_then(|variable| variable.value)
    };
    // as docs/agent.md says it
    let set = |value| {
        let workload = format!("deployment/{NAME}");
        kubectl(&["set", "env", &workload, "-c", "sluice", value, "-n", &shop.cluster.namespace], "")
    };
    let debug = set("SLUICE_LOG=debug");
    assert!(debug.status.success(), "{}", String::from_utf8_lossy(&debug.stderr));
    shop.change(json!({"client": {"port": 6432}})).await;
    shop.reads("service", "/spec/ports/0/port", json!(6432)).await;
    eventually("the template has the new port", || async {
        let spec = shop.deployment().await.spec?.template.spec?;
        let ports = spec.containers.into_iter().flat_map(|container| container.ports.unwrap_or_default());
        ports.into_iter().any(|port| port.container_port == 6432).then_some(())
    })
    .await;
    assert_eq!(logs_at().await.as_deref(), Some("debug"));
    let back = set("SLUICE_LOG-");
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    assert_eq!(logs_at().await, None);
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn an_operator_without_the_rights_says_so_and_how_it_gets_them() {
    let _turn = turn().await;
    let shop = shop(json!({})).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let told = shop.condition("GatewayAvailable", "False/GatewayDisabled").await;
    let guide = std::fs::read_to_string(repository().join("docs/gateway.md")).expect("the guide");
    let command = guide.lines().find(|line| line.starts_with("helm upgrade ")).expect("a command");
    assert!(command.contains("--namespace") && told.contains(command), "{told}");
    let deployments: Api<Deployment> = shop.cluster.api();
    assert!(deployments.get_opt(NAME).await.expect("readable").is_none());
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_gateway_to_its_own_service_is_not_accepted_and_gets_no_pods() {
    let _turn = turn().await;
    let shop = shop(json!({
        "upstream": {"host": NAME, "database": "shop", "credentialsRef": {"name": "shop-db"}},
    }))
    .await;
    let operator = Operator::start(&shop.cluster, "a", &ENABLED);
    operator.leads().await;
    let told = shop.condition("Accepted", "False/UpstreamIsThePooler").await;
    assert!(told.contains(NAME), "{told}");
    let deployments: Api<Deployment> = shop.cluster.api();
    assert!(deployments.get_opt(NAME).await.expect("readable").is_none());

    shop.change(json!({"upstream": {"host": "pg-main-rw.db.svc"}})).await;
    shop.condition("Accepted", "True/Valid").await;
    shop.deployment().await;
    shop.end().await;
}
