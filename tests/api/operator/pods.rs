//! Pods as a kubelet and an agent would show them: injected by the product's own code, with an agent that reads its
//! annotations through the API and answers on loopback. What agent and pooler really do is proven on a node.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use sluice::{
    api::{ConnectionPool, Topology},
    contract::{
        Document, GrantDocument, Held, LeakKinds, LimitsReadBack, PodGrant, PoolRevision, Reconnected,
        RevisionDocument, ServerFull, SlotStatus, StatusReport, TroubleSeen, UpstreamSeen, metrics, names,
    },
    decide::effective::effective,
    inject::{InjectionSettings, PodPool, inject},
};
use tokio::{task::JoinHandle, time::sleep};

use crate::cluster::{Cluster, object};

/// Each pod has a loopback address of its own, as a pod would.
static NEXT_ADDRESS: AtomicU16 = AtomicU16::new(1);

/// What a test may change about an agent.
#[derive(Clone, Default)]
pub struct Behaviour {
    /// It does not answer.
    pub silent: bool,
    /// It answers with this uid.
    pub uid: Option<String>,
    /// It holds this many server connections, whatever its share.
    pub held: Option<u32>,
    /// What it says of the database.
    pub upstream: Option<UpstreamSeen>,
    /// What the database refuses it.
    pub server_full: Option<ServerFull>,
    /// What its pooler logged.
    pub troubles: Vec<TroubleSeen>,
    /// Of what kind the leaked ones are.
    pub leaks: Option<LeakKinds>,
    /// Settings of which no process ever proves itself, by their `queryWaitTimeoutSeconds`.
    pub dead: Option<u32>,
    /// The mark of what it is given by reference.
    pub reference_mark: Option<String>,
}

/// A pod with its agent. Both end with it.
pub struct FakePod {
    pub name: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pods: Api<Pod>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Agent {
    report: Arc<Mutex<Option<StatusReport>>>,
    behaviour: Arc<Mutex<Behaviour>>,
    began: Instant,
}

impl FakePod {
    /// Creates an injected pod of the pool, on a node, with a running sidecar.
    pub async fn start(cluster: &Cluster, pool: &ConnectionPool, name: &str) -> Self {
        Self::start_at(cluster, pool, name, &next_address()).await
    }

    /// The same at an address of this network.
    pub async fn start_at(cluster: &Cluster, pool: &ConnectionPool, name: &str, address: &str) -> Self {
        let uid = create_at(cluster, pool, name, address).await;
        let pods: Api<Pod> = cluster.api();
        let agent = Agent { report: Arc::default(), behaviour: Arc::default(), began: Instant::now() };
        let address: SocketAddr = format!("{address}:{}", names::METRICS_PORT).parse().expect("an address");
        let listener = tokio::net::TcpListener::bind(address).await.expect("the port of an agent");
        let router =
            Router::new().route("/status", get(answer)).route("/metrics", get(count)).with_state(agent.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        let (reading, pool) = ((pods.clone(), name.to_owned(), agent.clone()), pool.name_any());
        let reading = tokio::spawn(async move {
            let (pods, name, agent) = reading;
            loop {
                if let Ok(Some(pod)) = pods.get_opt(&name).await {
                    agent.read(&pod, &pool, &uid);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { name: name.to_owned(), behaviour: agent.behaviour, pods, tasks: vec![serving, reading] }
    }

    /// What the annotation grants it.
    pub async fn grant(&self, pool: &str) -> Option<PodGrant> {
        let pod = self.pods.get_opt(&self.name).await.ok()??;
        grant_of(&pod, pool)
    }

    /// The term that its annotation is of.
    pub async fn epoch(&self) -> Option<u64> {
        let pod = self.pods.get_opt(&self.name).await.ok()??;
        Some(GrantDocument::parse(pod.annotations().get(names::GRANT_ANNOTATION)?).ok()?.epoch)
    }

    /// Which revision its annotation asks for.
    pub async fn revision(&self, pool: &str) -> Option<u64> {
        let pod = self.pods.get_opt(&self.name).await.ok()??;
        let document = RevisionDocument::parse(pod.annotations().get(names::REVISION_ANNOTATION)?).ok()?;
        document.pools.get(pool).map(|pool| pool.revision)
    }

    /// Writes annotations past the operator.
    pub async fn forge(&self, annotations: serde_json::Value) {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.pods.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("forged");
    }

    /// The kubelet cannot mount a volume, since an hour ago; or it can now.
    pub async fn mounts(&self, can: bool) {
        let state = if can {
            json!({"running": {"startedAt": "2026-11-21T00:00:00Z"}})
        } else {
            json!({"waiting": {"reason": "PodInitializing"}})
        };
        let status = json!({"status": {
            "conditions": [{"type": "PodReadyToStartContainers", "status": if can { "True" } else { "False" },
                "lastTransitionTime": "2026-11-21T00:00:00Z"}],
            "initContainerStatuses": [{"name": names::SIDECAR_CONTAINER, "image": "", "imageID": "", "ready": can,
                "restartCount": 0, "state": state}],
        }});
        self.pods.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(&status)).await.expect("its status");
    }

    /// Deletes it at once, as a kubelet does at the end.
    pub async fn end(self) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods.delete(&self.name, &now).await.expect("deleted");
    }
}

impl Drop for FakePod {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Creates an injected pod of the pool, on a node, with a running sidecar that nobody plays. Returns its uid and address.
pub async fn create(cluster: &Cluster, pool: &ConnectionPool, name: &str) -> (String, String) {
    let address = next_address();
    (create_at(cluster, pool, name, &address).await, address)
}

fn next_address() -> String {
    let number = NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed);
    format!("127.1.{}.{}", number / 250, number % 250 + 1)
}

async fn create_at(cluster: &Cluster, pool: &ConnectionPool, name: &str, address: &str) -> String {
    let pods: Api<Pod> = cluster.api();
    let (pod, statuses) = match pool.spec.topology {
        Topology::Gateway => (of_gateway(cluster, pool, name).await, "containerStatuses"),
        _ => (injected(pool, name), "initContainerStatuses"),
    };
    let pod = pods.create(&PostParams::default(), &pod).await.expect("a pod");
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        statuses: [{"name": names::SIDECAR_CONTAINER, "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "state": {"running": {"startedAt": "2026-11-21T00:00:00Z"}}}],
    }});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.expect("its status");
    pod.uid().expect("a uid")
}

/// What the annotation of a pod grants it.
pub fn grant_of(pod: &Pod, pool: &str) -> Option<PodGrant> {
    let document = GrantDocument::parse(pod.annotations().get(names::GRANT_ANNOTATION)?).ok()?;
    document.pools.get(pool).copied()
}

/// A pod as the controllers make it from the gateway's Deployment.
async fn of_gateway(cluster: &Cluster, pool: &ConnectionPool, name: &str) -> Pod {
    let deployments: Api<Deployment> = cluster.api();
    let deployment = deployments.get(&format!("{}-gateway", pool.name_any())).await.expect("the gateway's Deployment");
    let template = deployment.spec.expect("a spec").template;
    let mut pod = Pod { metadata: template.metadata.unwrap_or_default(), spec: template.spec, ..Pod::default() };
    pod.metadata.name = Some(name.to_owned());
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some("none".to_owned());
    }
    pod
}

/// The pod as the webhook injects it, with the code that it runs.
pub fn injected(pool: &ConnectionPool, name: &str) -> Pod {
    let labels: BTreeMap<String, String> = pool.selector().expect("a sidecar pool").match_labels.clone();
    let pod: Pod = object(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": "none", "containers": [{"name": "app", "image": "app"}]},
    }));
    let effective = effective(&pool.spec, None).expect("the pool is accepted");
    let revision = PoolRevision { revision: 0, settings: effective.settings.clone() };
    let settings = InjectionSettings {
        agent_image: "sluice".to_owned(),
        pgbouncer_image: "pgbouncer".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        run_as_user: None,
        allowed: sluice::decide::allowed::PoolAllowList::default(),
    };
    let injected = inject(&pod, &PodPool { pool, effective: &effective, revision }, &settings).expect("injected");
    let mut value = serde_json::to_value(&pod).expect("JSON");
    json_patch::patch(&mut value, &injected.patch).expect("the patch applies");
    object(value)
}

impl Agent {
    /// Does what the annotations say, at once.
    fn read(&self, pod: &Pod, pool: &str, uid: &str) {
        let parsed = pod.annotations().get(names::GRANT_ANNOTATION).and_then(|text| GrantDocument::parse(text).ok());
        let wanted = pod.annotations().get(names::REVISION_ANNOTATION);
        let wanted = wanted.and_then(|text| RevisionDocument::parse(text).ok());
        let (Some(document), Some(wanted)) = (parsed, wanted) else { return };
        let (Some(grant), Some(wanted)) = (document.pools.get(pool), wanted.pools.get(pool)) else { return };
        let mut report = self.report.lock();
        // an old grant is not taken: the real agent refuses it too
        if report.as_ref().is_some_and(|newest| (document.epoch, grant.seq) < (newest.epoch, newest.seq)) {
            return;
        }
        let behaviour = self.behaviour.lock().clone();
        let held = behaviour.held.unwrap_or(grant.share);
        let is_dead = behaviour.dead == Some(wanted.settings.health.query_wait_timeout_seconds);
        let before = report.as_ref().and_then(|report| report.revision);
        *report = Some(StatusReport {
            revision: if is_dead { before } else { Some(wanted.revision) },
            wanted_revision: Some(wanted.revision),
            epoch: document.epoch,
            seq: grant.seq,
            share: grant.share,
            limits: Some(LimitsReadBack {
                pool_size: grant.share,
                max_db_connections: grant.share,
                min_pool_size: 0,
                paused: grant.share == 0,
            }),
            held: Some(Held { held, active: 0, leaked: None, waiting: 0 }),
            slot: SlotStatus::Serving,
            troubles: behaviour.troubles,
            server_full: behaviour.server_full,
            upstream: behaviour.upstream,
            leaks: behaviour.leaks,
            reference_mark: behaviour.reference_mark,
            reconnected: wanted.settings.reconnected_at.clone().map(|at| Reconnected { at, remaining: Some(0) }),
            ..StatusReport::beginning(uid.to_owned(), pool.to_owned())
        });
    }
}

/// Counters that go on by 50 transactions of 20 ms each second, since the first page.
async fn count(State(agent): State<Agent>) -> String {
    let seconds = agent.began.elapsed().as_secs_f64();
    let (transactions, busy) = (50.0 * seconds, seconds);
    format!(
        "{}{{pool=\"shop\"}} {transactions}\n{}{{pool=\"shop\"}} {busy}\n{}{{pool=\"shop\",state=\"active\"}} 1\n\
         {}{{pool=\"shop\",state=\"waiting\"}} 0\n{}{{pool=\"shop\"}} 3\n# EOF\n",
        metrics::TRANSACTIONS,
        metrics::BUSY_SECONDS,
        metrics::SERVER_CONNECTIONS,
        metrics::CLIENT_CONNECTIONS,
        metrics::LIMIT
    )
}

async fn answer(State(agent): State<Agent>) -> impl IntoResponse {
    let Behaviour { silent, uid, .. } = agent.behaviour.lock().clone();
    let report = agent.report.lock().clone();
    match (silent, report) {
        (false, Some(report)) => {
            let pod_uid = uid.unwrap_or_else(|| report.pod_uid.clone());
            Json(StatusReport { pod_uid, ..report }).into_response()
        }
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
