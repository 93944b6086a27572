//! The webhook as the API server calls it: real pods, our server in this process, the chart's configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, routing::post};
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{LimitRange, Pod, ResourceQuota, Secret},
    },
    apimachinery::pkg::api::resource::Quantity,
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::{
    api::ConnectionPool,
    contract::{Document, GrantDocument, RevisionDocument, names},
    inject::{InjectionSettings, injection_of},
    objects::GroupedStore,
    serving::{Drain, HttpServer, TlsIdentity},
    webhook::{
        certificates::{CertificateKeeper, CertificateSettings},
        lookup::ClusterLookup,
        server,
    },
};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use crate::cluster::{Cluster, ForNow, chart, eventually, kubectl, object, parse, pool};

/// A namespace with the chart's webhooks in front of its pods.
pub struct Injected {
    pub cluster: Cluster,
    configuration: ForNow,
    /// Ends the server.
    pub drain: Drain,
    server: JoinHandle<()>,
    address: SocketAddr,
    keeper: CertificateKeeper,
    /// How often the API server has asked.
    asked: Arc<AtomicU32>,
}

fn injection_settings() -> InjectionSettings {
    InjectionSettings {
        agent_image: "registry.test/sluice:1".to_owned(),
        pgbouncer_image: "registry.test/pgbouncer:1.24.1".to_owned(),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        image_pull_secrets: Vec::new(),
        run_as_user: Some(65532),
        allowed: sluice::decide::allowed::PoolAllowList::default(),
    }
}

impl Injected {
    /// Starts the server and has the API server call it. The watches have delivered nothing yet: every answer needs a live
    /// read, as in the first second of a cluster's life.
    pub async fn new(test: &str, labels: Value) -> Self {
        let cluster = Cluster::new(test, &labels).await;
        let (listener, address) = listen().await;
        let configuration = point_webhooks_at(&cluster, address).await;
        let settings = certificates(&cluster, &["127.0.0.1"]);
        let mut keeper = CertificateKeeper::start(cluster.client.clone(), settings).await.expect("a certificate");
        keeper.look(Timestamp::now()).await.expect("trusted");
        let (pools, classes) = (GroupedStore::of_these([]), GroupedStore::of_these([]));
        let lookup = ClusterLookup::new(cluster.client.clone(), pools, classes, |_: &ConnectionPool| None);
        let asked = Arc::new(AtomicU32::new(0));
        let counted = asked.clone();
        let count = move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let router = server::router(lookup, injection_settings(), count);
        let (drain, server) = serve(listener, keeper.tls(), router);
        let injected = Self { cluster, configuration, drain, server, address, keeper, asked };
        injected.in_force().await;
        injected
    }

    /// The API server learns of a configuration within a moment: until then pods pass by it.
    async fn in_force(&self) {
        let probe = json!({"metadata": {"generateName": "probe-", "labels": {"sluice.dev/inject": "enabled", "probe": "x"}},
            "spec": restricted_spec()});
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        eventually("the webhook is called", || async {
            let outcome = self.pods().create(&dry, &object(probe.clone())).await;
            outcome.err().filter(|error| error.to_string().contains("no ConnectionPool"))
        })
        .await;
    }

    fn pods(&self) -> Api<Pod> {
        self.cluster.api()
    }

    async fn create(&self, pod: Value) -> kube::Result<Pod> {
        self.pods().create(&PostParams::default(), &object(pod)).await
    }

    pub async fn end(self) {
        self.drain.end();
        self.server.await.expect("ended");
        self.configuration.end().await;
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn serve(listener: TcpListener, tls: TlsIdentity, routes: Router) -> (Drain, JoinHandle<()>) {
    let drain = Drain::default();
    let server = HttpServer::new(listener, routes, server::BOUNDS).with_tls(tls);
    (drain.clone(), tokio::spawn(server.run(drain)))
}

fn certificates(cluster: &Cluster, names: &[&str]) -> CertificateSettings {
    CertificateSettings {
        namespace: cluster.namespace.clone(),
        secret: "sluice-webhook-tls".to_owned(),
        configuration: cluster.namespace.clone(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

async fn point_webhooks_at(cluster: &Cluster, address: SocketAddr) -> ForNow {
    let mut value = chart("templates/webhook.yaml", "sluice-system").remove(0);
    value["metadata"]["name"] = json!(cluster.namespace);
    for webhook in value["webhooks"].as_array_mut().expect("webhooks") {
        webhook["clientConfig"] = json!({"url": format!("https://{address}/inject")});
        let expressions = webhook["namespaceSelector"]["matchExpressions"].as_array_mut().expect("a list");
        expressions
            .push(json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": [cluster.namespace]}));
    }
    cluster.apply_for_now(&value).await
}

fn restricted_spec() -> Value {
    json!({
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "app", "image": "registry.test/app:1",
            "env": [{"name": "URL", "value": "postgres://$(PGHOST)/"}, {"name": "PGHOST", "value": "pg-main-rw.db.svc"}],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
        }],
        "initContainers": [{
            "name": "migrate", "image": "registry.test/app:1",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
        }]
    })
}

fn shop(name: Value, labels: Value) -> Value {
    let mut pod = json!({"metadata": {"labels": labels}, "spec": restricted_spec()});
    pod["metadata"].as_object_mut().expect("an object").extend(name.as_object().expect("an object").clone());
    pod
}

fn names_of(containers: Option<&Vec<k8s_openapi::api::core::v1::Container>>) -> Vec<String> {
    containers.into_iter().flatten().map(|container| container.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pod_that_asks_for_it_starts_with_the_pooler_under_restricted_pod_security() {
    let injected = Injected::new("inject", json!({"pod-security.kubernetes.io/enforce": "restricted"})).await;
    let mut with_ca: Value = parse(&pool("shop"));
    with_ca["spec"]["upstream"]["tls"] = json!({"mode": "VerifyFull", "caRef": {"name": "pg-ca", "key": "root.pem"}});
    with_ca["spec"]["budgetRef"] = json!({"name": "pg-main"});
    let pools: Api<ConnectionPool> = injected.cluster.api();
    pools.create(&PostParams::default(), &object(with_ca)).await.expect("a pool");
    // What a user brings along is overwritten, not merged.
    let mut pod = shop(
        json!({"generateName": "shop-"}),
        json!({"app": "shop", "sluice.dev/inject": "enabled", "sluice.dev/pool": "other"}),
    );
    pod["metadata"]["annotations"] = json!({"sluice.dev/grant": "{\"v\":1,\"epoch\":9,\"pools\":{\"shop\":{\"seq\":9,\"share\":900,\"granted\":900,\"floor\":1}}}"});
    let pod = injected.create(pod).await.expect("accepted");

    let spec = pod.spec.as_ref().expect("a spec");
    assert_eq!(names_of(spec.init_containers.as_ref()), ["sluice-bin", "sluice", "migrate"]);
    assert_eq!(names_of(Some(&spec.containers)), ["app"]);
    let sidecar = &spec.init_containers.as_ref().expect("init containers")[1];
    assert_eq!(sidecar.restart_policy.as_deref(), Some("Always"));
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    for container in &spec.init_containers.as_ref().expect("init containers")[..2] {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        let at_token: Vec<_> = mounts.iter().filter(|mount| mount.mount_path == token).collect();
        assert_eq!(at_token.len(), 1, "{}: {mounts:?}", container.name);
        assert_eq!(at_token[0].name, names::BINARY_VOLUME, "the application's token is not ours to hold");
    }
    let app = spec.containers[0].volume_mounts.as_deref().unwrap_or_default();
    assert!(app.iter().any(|mount| mount.mount_path == token), "the application keeps its token: {app:?}");
    let env: Vec<_> = spec.containers[0].env.iter().flatten().map(|variable| variable.name.as_str()).collect();
    assert_eq!(env, ["PGHOST", "PGPORT", "PGSSLMODE", "URL"]);

    assert_eq!(pod.labels()[names::POOL_LABEL], "shop");
    assert_eq!(pod.labels()[names::BUDGET_LABEL], "pg-main");
    let grant = GrantDocument::parse(&pod.annotations()[names::GRANT_ANNOTATION]).expect("a grant");
    let of_shop = grant.pools.get("shop").map(|grant| (grant.share, grant.granted));
    assert_eq!((grant.epoch, of_shop), (0, Some((0, 0))));
    RevisionDocument::parse(&pod.annotations()[names::REVISION_ANNOTATION]).expect("a revision");
    let injection = injection_of(&pod).expect("a sidecar").expect("valid");
    assert_eq!((injection.upstream.host.as_str(), injection.upstream.tls.own_ca), ("pg-main-rw.db.svc", true));

    // A copy of the running pod, as `kubectl get -o yaml | kubectl create -f -` makes it, has one pooler too.
    let mut copy = pod.clone();
    copy.metadata = object(json!({"name": "copy", "labels": pod.labels(), "annotations": pod.annotations()}));
    copy.status = None;
    let copy = injected.pods().create(&PostParams::default(), &copy).await.expect("accepted");
    assert_eq!(names_of(copy.spec.and_then(|spec| spec.init_containers).as_ref()), ["sluice-bin", "sluice", "migrate"]);
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn who_asked_decides_what_happens_to_a_pod_without_a_pool() {
    let injected = Injected::new("without", json!({"sluice.dev/inject": "enabled"})).await;
    let asking = shop(json!({"name": "asking"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let refused = injected.create(asking.clone()).await.expect_err("refused").to_string();
    assert!(refused.contains("no ConnectionPool in namespace") && refused.contains("remove the label"), "{refused}");

    let forged = json!({"app": "shop", "sluice.dev/pool": "shop"});
    let started = injected.create(shop(json!({"name": "by-namespace"}), forged)).await.expect("starts without");
    assert_eq!(names_of(started.spec.as_ref().and_then(|spec| spec.init_containers.as_ref())), ["migrate"]);
    assert!(!started.labels().contains_key(names::POOL_LABEL), "a forged label is taken off");
    let bare = json!({"metadata": {"name": "bare"}, "spec": {"containers": [{"name": "app", "image": "app"}]}});
    injected.create(bare).await.expect("a pod without any label starts");

    // The pool appears, no watch has told of it yet: one live read finds it.
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let started = injected.create(asking).await.expect("starts");
    assert_eq!(started.labels()[names::POOL_LABEL], "shop");
    let started = injected.create(shop(json!({"name": "second"}), json!({"app": "shop"}))).await.expect("starts");
    assert_eq!(started.labels()[names::POOL_LABEL], "shop", "the namespace asks for all pods that have a pool");
    let opted_out = json!({"app": "shop", "sluice.dev/inject": "disabled"});
    let out = injected.create(shop(json!({"name": "out"}), opted_out)).await.expect("starts");
    assert!(!out.labels().contains_key(names::POOL_LABEL));
    let mut host = shop(json!({"name": "host"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    host["spec"]["hostNetwork"] = json!(true);
    let host = injected.create(host).await.expect("starts without");
    assert!(injection_of(&host).is_none());
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pool_that_is_not_accepted_keeps_its_pods_waiting_and_says_why() {
    let injected = Injected::new("refused", json!({})).await;
    let mut lost: Value = parse(&pool("shop"));
    lost["spec"]["classRef"] = json!({"name": injected.cluster.namespace});
    let pools: Api<ConnectionPool> = injected.cluster.api();
    pools.create(&PostParams::default(), &object(lost)).await.expect("a class may come later");
    let pod = || shop(json!({"generateName": "shop-"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let refused = injected.create(pod()).await.expect_err("refused").to_string();
    assert!(refused.contains("ClassNotFound") && refused.contains("spec.classRef.name"), "{refused}");
    let class = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPoolClass",
        "metadata": {"name": injected.cluster.namespace}, "spec": {"client": {"port": 6000}}});
    let class = injected.cluster.apply_for_now(&class).await;
    let started = injected.create(pod()).await.expect("the class is there");
    assert_eq!(injection_of(&started).expect("a sidecar").expect("valid").client.port, 6000);
    class.end().await;
    injected.end().await;
}

/// A pod of the pool whose own containers ask for this.
fn with_resources(resources: &Value) -> Value {
    let mut pod = shop(json!({"generateName": "shop-"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    for list in ["containers", "initContainers"] {
        pod["spec"][list][0]["resources"] = resources.clone();
    }
    pod
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_a_namespace_wants_of_every_container_both_of_ours_have_once_the_pool_says_so() {
    let injected = Injected::new("bounds", json!({})).await;
    let shop: ConnectionPool = injected.cluster.create(&pool("shop")).await.expect("a pool");
    let pools: Api<ConnectionPool> = injected.cluster.api();
    let asked = json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}});
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let create = || async { injected.pods().create(&dry, &object(with_resources(&asked))).await };
    create().await.expect("nothing is wanted yet");

    let quota =
        json!({"metadata": {"name": "limits"}, "spec": {"hard": {"limits.cpu": "10", "requests.memory": "10Gi"}}});
    let limits = |limits: Value| {
        let mut limits = limits;
        limits["type"] = json!("Container");
        json!({"metadata": {"name": "limits"}, "spec": {"limits": [limits]}})
    };
    let resources = |resources: Value| json!({"spec": {"sidecar": {"resources": resources}}});
    // what the namespace wants, what its refusal says, and what mends it
    for (kind, wanted, says, mends) in [
        (
            "ResourceQuota",
            quota,
            &["must specify limits.cpu for: sluice,sluice-bin"][..],
            resources(json!({"limits": {"cpu": "200m"}})),
        ),
        (
            "LimitRange",
            limits(json!({"min": {"cpu": "50m", "memory": "64Mi"}})),
            &["minimum cpu usage per Container is 50m", "minimum memory usage per Container is 64Mi"],
            resources(json!({"requests": {"cpu": "50m", "memory": "64Mi"}})),
        ),
        (
            "LimitRange",
            limits(json!({"maxLimitRequestRatio": {"cpu": "2", "memory": "2"}})),
            &["cpu max limit to request ratio per Container is 2"],
            resources(
                json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}}),
            ),
        ),
    ] {
        if kind == "ResourceQuota" {
            let quotas: Api<ResourceQuota> = injected.cluster.api();
            quotas.create(&PostParams::default(), &object(wanted.clone())).await.expect("a quota");
            // the controller manager counts in a cluster
            let used = json!({"limits.cpu": "0", "requests.memory": "0"});
            let counted = json!({"status": {"hard": wanted["spec"]["hard"], "used": used}});
            quotas.patch_status("limits", &PatchParams::default(), &Patch::Merge(&counted)).await.expect("counted");
        } else {
            let ranges: Api<LimitRange> = injected.cluster.api();
            ranges.create(&PostParams::default(), &object(wanted)).await.expect("a range");
        }
        let refused = eventually("the namespace's wish is known", || async {
            create().await.err().map(|error| error.to_string())
        })
        .await;
        assert!(says.iter().all(|words| refused.contains(words)), "{refused}");
        pools.patch(&shop.name_any(), &PatchParams::default(), &Patch::Merge(&mends)).await.expect("changed");
        create().await.unwrap_or_else(|error| panic!("{kind}: {mends}: {error}"));
        let none = json!({"spec": {"sidecar": null}});
        pools.patch(&shop.name_any(), &PatchParams::default(), &Patch::Merge(&none)).await.expect("changed");
        let delete = DeleteParams::default();
        if kind == "ResourceQuota" {
            injected.cluster.api::<ResourceQuota>().delete("limits", &delete).await.expect("gone");
        } else {
            injected.cluster.api::<LimitRange>().delete("limits", &delete).await.expect("gone");
        }
        eventually("nothing is wanted any more", || async { create().await.ok() }).await;
    }
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pod_that_says_what_all_its_containers_may_use_gets_room_for_the_pooler_too() {
    let injected = Injected::new("whole", json!({})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let burstable =
        json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "200m", "memory": "256Mi"}});
    let guaranteed =
        json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "100m", "memory": "128Mi"}});
    for (whole, class) in [(burstable, "Burstable"), (guaranteed, "Guaranteed")] {
        let mut pod = with_resources(&whole);
        pod["spec"]["resources"] = whole.clone();
        let pod = injected.create(pod).await.unwrap_or_else(|error| panic!("{whole}: {error}"));
        let of_class = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
        assert_eq!(of_class, Some(class), "{whole}");
        let spec = pod.spec.as_ref().expect("a spec");
        let amounts = spec.resources.as_ref().expect("what the pod may use");
        let memory =
            |amounts: &Option<BTreeMap<String, Quantity>>| amounts.as_ref().expect("amounts")["memory"].0.clone();
        let of_sidecar = spec.init_containers.as_ref().expect("ours")[1].resources.as_ref().expect("amounts");
        let amount = |memory: String| memory.trim_end_matches("Mi").parse::<u32>().expect("MiB");
        let of_app = amount(memory(&spec.containers[0].resources.as_ref().expect("amounts").requests));
        assert_eq!(amount(memory(&amounts.requests)), of_app + amount(memory(&of_sidecar.requests)), "{amounts:?}");
    }
    injected.end().await;
}

/// Another's webhook, as meshes have them: adds a container and takes all images from a mirror. Asked after ours, because of
/// its name, and content with its own work.
async fn mesh(Json(review): Json<Value>) -> Json<Value> {
    let spec = &review["request"]["object"]["spec"];
    let mut patch = Vec::new();
    for list in ["containers", "initContainers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let image = container["image"].as_str().unwrap_or_default();
            if let Some(name) = image.strip_prefix("registry.test/") {
                let mirrored = format!("mirror.test/{name}");
                patch.push(json!({"op": "replace", "path": format!("/spec/{list}/{index}/image"), "value": mirrored}));
            }
        }
    }
    let mut containers = spec["containers"].as_array().into_iter().flatten();
    if !containers.any(|container| container["name"] == "mesh") {
        let container = json!({"name": "mesh", "image": "mirror.test/mesh:1", "env": [{"name": "PGHOST", "value": "elsewhere"}],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
        patch.push(json!({"op": "add", "path": "/spec/containers/-", "value": container}));
    }
    let patch = serde_json::to_vec(&patch).expect("JSON");
    let response = json!({"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch",
        "patch": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, patch)});
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_webhook_that_changes_the_pod_after_ours_has_ours_called_again_and_each_adds_its_part_once() {
    let injected = Injected::new("again", json!({"pod-security.kubernetes.io/enforce": "restricted"})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let (listener, address) = listen().await;
    let (drain, serving) = serve(listener, injected.keeper.tls(), Router::new().route("/mesh", post(mesh)));
    // trusted as ours is: the same certificate
    let mut configuration = chart("templates/webhook.yaml", "sluice-system").remove(0);
    let ours: Api<MutatingWebhookConfiguration> = Api::all(injected.cluster.client.clone());
    let ours = ours.get(&injected.cluster.namespace).await.expect("ours");
    let bundle = json!(ours.webhooks.expect("webhooks")[0].client_config.ca_bundle.clone().expect("a bundle"));
    configuration["metadata"]["name"] = json!(format!("zz-{}", injected.cluster.namespace));
    let mut webhook = configuration["webhooks"][0].clone();
    webhook["name"] = json!("mesh.example.com");
    webhook["clientConfig"] = json!({"url": format!("https://{address}/mesh"), "caBundle": bundle});
    webhook["objectSelector"] = json!({"matchLabels": {"app": "shop"}});
    let own = json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": [injected.cluster.namespace]}]);
    webhook["namespaceSelector"] = json!({"matchExpressions": own});
    configuration["webhooks"] = json!([webhook]);
    let other = injected.cluster.apply_for_now(&configuration).await;

    let pod = shop(json!({"generateName": "shop-"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the other webhook is called too", || async {
        let shown = injected.pods().create(&dry, &object(pod.clone())).await.ok()?;
        names_of(shown.spec.as_ref().map(|spec| &spec.containers)).contains(&"mesh".to_owned()).then_some(())
    })
    .await;
    let before = injected.asked.load(Ordering::Relaxed);
    let pod = injected.create(pod).await.expect("accepted");
    assert_eq!(injected.asked.load(Ordering::Relaxed) - before, 2, "asked again, and only once more");

    let spec = pod.spec.as_ref().expect("a spec");
    assert_eq!(names_of(spec.init_containers.as_ref()), ["sluice-bin", "sluice", "migrate"]);
    assert_eq!(names_of(Some(&spec.containers)), ["app", "mesh"]);
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in all() {
        let image = container.image.as_deref().unwrap_or_default();
        assert!(image.starts_with("mirror.test/"), "{}: what the other changed stays: {image}", container.name);
    }
    for container in all().filter(|container| !container.name.starts_with("sluice")) {
        let hosts: Vec<_> = container.env.iter().flatten().filter(|variable| variable.name == "PGHOST").collect();
        assert_eq!(hosts.len(), 1, "{}: {hosts:?}", container.name);
        assert_eq!(hosts[0].value.as_deref(), Some("127.0.0.1"), "{}", container.name);
    }
    let mut volumes = BTreeMap::new();
    for volume in spec.volumes.iter().flatten() {
        *volumes.entry(volume.name.as_str()).or_insert(0) += 1;
    }
    for ours in [names::BINARY_VOLUME, names::RUN_VOLUME, names::STATE_VOLUME, names::CONFIG_VOLUME] {
        assert_eq!(volumes.get(ours), Some(&1), "{ours}: {volumes:?}");
    }
    other.end().await;
    drain.end();
    serving.await.expect("ended");
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn of_two_pools_that_select_a_pod_the_older_one_has_it() {
    let injected = Injected::new("rivals", json!({})).await;
    // named so that neither the order of names nor that of a list makes it first
    injected.cluster.create::<ConnectionPool>(&pool("zebra")).await.expect("a pool");
    sleep(Duration::from_millis(1100)).await; // creation times have whole seconds
    injected
        .cluster
        .create::<ConnectionPool>(&pool("ant"))
        .await
        .expect("accepted: the condition tells, nothing refuses");
    let pod = || shop(json!({"generateName": "shop-"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let first = injected.create(pod()).await.expect("starts");
    assert_eq!(first.labels()[names::POOL_LABEL], "zebra");
    assert_eq!(
        names_of(first.spec.as_ref().and_then(|spec| spec.init_containers.as_ref())),
        ["sluice-bin", "sluice", "migrate"]
    );

    let pools: Api<ConnectionPool> = injected.cluster.api();
    pools.delete("zebra", &DeleteParams::default()).await.expect("deleted");
    let second = injected.create(pod()).await.expect("starts");
    assert_eq!(second.labels()[names::POOL_LABEL], "ant", "the other takes over with the next pod");
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_dry_run_shows_the_pooler_and_leaves_nothing_behind() {
    let injected = Injected::new("dry", json!({})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let secrets = || async { injected.cluster.api::<Secret>().list(&ListParams::default()).await.expect("listed") };
    let before: BTreeSet<_> = secrets().await.iter().map(ResourceExt::resource_version).collect();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let pod = shop(json!({"name": "shop"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let shown = injected.pods().create(&dry, &object(pod)).await.expect("accepted");
    assert!(injection_of(&shown).is_some());
    assert!(injected.pods().get_opt("shop").await.expect("read").is_none());
    let after: BTreeSet<_> = secrets().await.iter().map(ResourceExt::resource_version).collect();
    assert_eq!(before, after);
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn with_the_webhook_down_pods_that_opted_in_wait_and_all_others_start() {
    let injected = Injected::new("down", json!({})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    injected.drain.end();
    let asking = || shop(json!({"generateName": "shop-"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let refused =
        eventually("a pod that opted in is refused", || async { injected.create(asking()).await.err() }).await;
    assert!(refused.to_string().contains("pod.inject.sluice.dev"), "{refused}");
    injected.create(shop(json!({"generateName": "other-"}), json!({"app": "shop"}))).await.expect("not opted in");
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_new_certificate_is_served_without_a_restart_and_trusted() {
    let mut injected = Injected::new("rotate", json!({})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let pod = || shop(json!({"generateName": "shop-"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    injected.create(pod()).await.expect("the first certificate");
    let first = served_certificate(injected.address).await;

    // Another replica, of a release whose Service has one more name, signs a new certificate into the Secret.
    let settings = certificates(&injected.cluster, &["127.0.0.1", "webhook.svc"]);
    let mut other = CertificateKeeper::start(injected.cluster.client.clone(), settings).await.expect("starts");
    other.look(Timestamp::now()).await.expect("looks");
    injected.create(pod()).await.expect("what is still served is still trusted: the same authority signed both");
    assert_eq!(first, served_certificate(injected.address).await, "this replica has not looked yet");

    injected.keeper.look(Timestamp::now()).await.expect("looks");
    assert_ne!(first, served_certificate(injected.address).await, "exchanged while serving");
    injected.create(pod()).await.expect("the new certificate is trusted");
    injected.end().await;
}

async fn served_certificate(address: SocketAddr) -> Vec<u8> {
    let client = reqwest::Client::builder().tls_info(true).tls_danger_accept_invalid_certs(true).build();
    let answer = client.expect("a client").get(format!("https://{address}/")).send().await.expect("an answer");
    let tls: &reqwest::tls::TlsInfo = answer.extensions().get().expect("TLS");
    tls.peer_certificate().expect("a certificate").to_vec()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn kubectl_shows_what_the_user_should_know_about_a_pod() {
    let injected = Injected::new("warnings", json!({})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let mut pod = shop(json!({"name": "shop"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 5432}]);
    pod["spec"]["containers"][0]["env"] =
        json!([{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    let applied = kubectl(&["apply", "-n", &injected.cluster.namespace, "-f", "-"], &pod.to_string());
    let told = String::from_utf8_lossy(&applied.stderr).into_owned();
    assert!(applied.status.success(), "{told}");
    let warnings: Vec<_> = told.lines().filter(|line| line.starts_with("Warning: ")).collect();
    assert!(warnings.iter().any(|line| line.contains("port 5432 is the pooler's port")), "{told}");
    assert!(warnings.iter().any(|line| line.contains("DATABASE_URL comes from a Secret")), "{told}");
    assert!(warnings.iter().any(|line| line.contains("terminationGracePeriodSeconds 10 is shorter")), "{told}");
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pod_of_the_size_that_the_api_server_takes_is_injected_and_one_with_too_many_containers_told_so() {
    let injected = Injected::new("large", json!({})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let mut pod = shop(json!({"name": "large"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let variables = (0..4000).map(|number| json!({"name": format!("V{number}"), "value": "x".repeat(200)}));
    pod["spec"]["containers"][0]["env"] = variables.collect();
    let large = injected.create(pod).await.expect("accepted");
    assert_eq!(large.labels()[names::POOL_LABEL], "shop");

    let mut pod = shop(json!({"name": "many"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let containers = (0..101).map(|number| json!({"name": format!("c{number}"), "image": "registry.test/app:1"}));
    pod["spec"]["containers"] = containers.collect();
    let refused = injected.create(pod).await.expect_err("refused").to_string();
    assert!(refused.contains("the pod has 102 containers") && refused.contains("may have 100"), "{refused}");
    injected.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn no_pod_is_refused_while_one_replica_hands_over_to_another() {
    let injected = Injected::new("handover", json!({})).await;
    injected.cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let pod = || shop(json!({"generateName": "shop-"}), json!({"app": "shop", "sluice.dev/inject": "enabled"}));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let ask = || async { injected.pods().create(&dry, &object(pod())).await };
    ask().await.expect("before");

    // as a Service would: what comes anew is led to the other, what stands is not
    let (listener, other) = listen().await;
    let (pools, classes) = (GroupedStore::of_these([]), GroupedStore::of_these([]));
    let lookup = ClusterLookup::new(injected.cluster.client.clone(), pools, classes, |_: &ConnectionPool| None);
    let routes = server::router(lookup, injection_settings(), |_| {});
    let (drain, serving) = serve(listener, injected.keeper.tls(), routes);
    injected.drain.begin();
    for _ in 0..50 {
        ask().await.expect("while the first drains");
    }
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(injected.cluster.client.clone());
    let mut configuration = configurations.get(&injected.cluster.namespace).await.expect("ours");
    for webhook in configuration.webhooks.iter_mut().flatten() {
        webhook.client_config.url = Some(format!("https://{other}/inject"));
    }
    configurations.replace(&injected.cluster.namespace, &PostParams::default(), &configuration).await.expect("led on");
    let first = injected.asked.load(Ordering::Relaxed);
    eventually("the API server asks the other", || async {
        let before = injected.asked.load(Ordering::Relaxed);
        ask().await.expect("while the API server learns");
        (injected.asked.load(Ordering::Relaxed) == before).then_some(())
    })
    .await;
    assert!(injected.asked.load(Ordering::Relaxed) >= first);
    injected.drain.end();
    for _ in 0..50 {
        ask().await.expect("after the first has ended");
    }
    drain.end();
    serving.await.expect("ended");
    injected.end().await;
}
