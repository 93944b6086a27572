//! Pools, pods without a kubelet, and what their agents would say.

use std::{
    collections::HashMap,
    f64::consts::TAU,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, State, connect_info::Connected},
    http::StatusCode,
    routing::get,
    serve::IncomingStream,
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::Mutex;
use serde_json::json;
use sluice::{
    agent::decide::counters::Added,
    api::ConnectionPool,
    contract::{
        Document, GrantDocument, Held, LimitsReadBack, PoolRevision, RevisionDocument, SETTINGS_LEVEL, SlotStatus,
        StatusReport, names,
    },
    decide::effective::effective,
    inject::{InjectionSettings, PodPool, inject},
    pooler::pgbouncer::tables::Pools,
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{Failure, agents};

/// Where Prometheus reads the figures of all agents.
pub const METRICS_ADDRESS: &str = "127.0.0.1:9900";
/// Requests to the API server at once.
const AT_ONCE: usize = 16;
/// Seconds of one wave of the load.
const WAVE: f64 = 300.0;
/// Transactions per second of a pod, and how long one takes: what makes its demand.
const RATE: f64 = 40.0;
const TRANSACTION_SECONDS: f64 = 0.05;

/// What an agent knows of itself.
struct Agent {
    pool: String,
    pod: String,
    report: StatusReport,
}

/// Pools and their pods.
pub struct Fleet {
    namespace: String,
    client: Client,
    begin: Instant,
    agents: Mutex<HashMap<IpAddr, Agent>>,
    scrapes: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
}

/// The address that was connected to: which pod was meant.
#[derive(Clone, Copy)]
struct Asked(IpAddr);

impl Connected<IncomingStream<'_, TcpListener>> for Asked {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.io().local_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip()))
    }
}

/// The address of the pod with this number: loopback has sixteen million.
fn address(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 + u32::try_from(number).unwrap_or(u32::MAX >> 8)))
}

impl Fleet {
    /// Creates pools and pods, and answers for their agents.
    pub async fn start(namespace: &str, pools: usize, pods: usize) -> Result<Arc<Self>, Failure> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fleet = Arc::new(Self {
            namespace: namespace.to_owned(),
            client: Client::try_default().await?,
            begin: Instant::now(),
            agents: Mutex::default(),
            scrapes: AtomicUsize::default(),
            tasks: Mutex::default(),
        });
        let agents = TcpListener::bind(("0.0.0.0", names::METRICS_PORT)).await?;
        let scraped = TcpListener::bind(METRICS_ADDRESS).await?;
        let status = Router::new().route("/status", get(status)).with_state(fleet.clone());
        let figures = Router::new().route("/metrics", get(figures)).with_state(fleet.clone());
        {
            let mut tasks = fleet.tasks.lock();
            tasks.spawn(async move {
                let _ = axum::serve(agents, status.into_make_service_with_connect_info::<Asked>()).await;
            });
            tasks.spawn(async move {
                let _ = axum::serve(scraped, figures.into_make_service_with_connect_info::<SocketAddr>()).await;
            });
            tasks.spawn(fleet.clone().follow());
        }
        let numbers = (0..pools).flat_map(|pool| (0..pods).map(move |pod| (pool, pod)));
        stream::iter(0..pools)
            .map(|pool| fleet.create_pool(pool, pods))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        stream::iter(numbers)
            .map(|(pool, pod)| fleet.create_pod(pool, pod, pool * pods + pod, pods))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(fleet)
    }

    fn pool(&self, number: usize, pods: usize) -> Result<ConnectionPool, Failure> {
        let name = pool_name(number);
        Ok(serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "engine": "PostgreSQL", "topology": "Sidecar", "mode": "Apply",
                "workload": {"selector": {"matchLabels": {"app": name}}},
                "upstream": {"host": "pg-main-rw.db.svc", "database": "shop", "credentialsRef": {"name": "shop-db"}},
                "scaling": {"minAllowed": pods, "maxAllowed": pods * 8},
            },
        }))?)
    }

    async fn create_pool(&self, number: usize, pods: usize) -> Result<(), Failure> {
        let pools: Api<ConnectionPool> = Api::namespaced(self.client.clone(), &self.namespace);
        pools.create(&PostParams::default(), &self.pool(number, pods)?).await?;
        Ok(())
    }

    async fn create_pod(&self, pool: usize, pod: usize, number: usize, pods: usize) -> Result<(), Failure> {
        let pool = self.pool(pool, pods)?;
        let bare: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("{}-{pod}", pool.name_any()), "namespace": self.namespace, "labels": {"app": pool.name_any()}},
            "spec": {
                "nodeName": "node0",
                "containers": [{"name": "app", "image": "app:1", "env": [{"name": "PGHOST", "value": "pg-main-rw.db.svc"}]}],
            },
        }))?;
        let merged = effective(&pool.spec, None).map_err(|refusal| format!("{refusal:?}"))?;
        let revision = PoolRevision { revision: 1, settings: merged.settings.clone() };
        let settings = InjectionSettings {
            agent_image: "sluice:1".to_owned(),
            pgbouncer_image: "pgbouncer:1".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            run_as_user: Some(65532),
            allowed: sluice::decide::allowed::Allowed::default(),
        };
        let injected = inject(&bare, &PodPool { pool: &pool, effective: &merged, revision }, &settings)?;
        let mut patched = serde_json::to_value(&bare)?;
        json_patch::patch(&mut patched, &injected.patch)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        pods.create(&PostParams::default(), &serde_json::from_value(patched)?).await?;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let ran = |name: &str, image: &str| {
            json!({"name": name, "image": image, "imageID": image, "ready": true, "restartCount": 0, "started": true,
                "containerID": format!("containerd://{number:064x}"), "state": {"running": {"startedAt": now}}})
        };
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}));
        let status = json!({"status": {
            "phase": "Running", "podIP": address(number).to_string(), "podIPs": [{"ip": address(number).to_string()}],
            "hostIP": "198.18.0.1", "startTime": now,
            "conditions": conditions,
            "initContainerStatuses": [ran(names::BINARY_CONTAINER, "sluice:1"), ran(names::SIDECAR_CONTAINER, "pgbouncer:1")],
            "containerStatuses": [ran("app", "app:1")],
        }});
        let name = format!("{}-{pod}", pool.name_any());
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// Keeps what every agent would report: what the annotations of its pod say, in force at once.
    async fn follow(self: Arc<Self>) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut seen = watcher(pods, watcher::Config::default()).default_backoff().applied_objects().boxed();
        while let Some(pod) = seen.next().await {
            let Some((address, agent)) = pod.ok().as_ref().and_then(agent_of) else { continue };
            self.agents.lock().insert(address, agent);
        }
    }

    /// How often Prometheus has read.
    pub fn scrapes(&self) -> usize {
        self.scrapes.load(Ordering::Relaxed)
    }

    /// Pods that may open something.
    pub fn pods_with_share(&self) -> usize {
        self.agents.lock().values().filter(|agent| agent.report.share > 0).count()
    }

    /// Deletes all of it and answers no more.
    pub async fn delete(&self) -> Result<(), Failure> {
        self.tasks.lock().abort_all();
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let pools: Api<ConnectionPool> = Api::namespaced(self.client.clone(), &self.namespace);
        pools.delete_collection(&at_once, &ListParams::default()).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        pods.delete_collection(&at_once, &ListParams::default()).await?;
        loop {
            if pods.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn pool_name(number: usize) -> String {
    format!("pool-{number:04}")
}

fn agent_of(pod: &Pod) -> Option<(IpAddr, Agent)> {
    let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let pool = pod.labels().get(names::POOL_LABEL)?.clone();
    let document = GrantDocument::parse(pod.annotations().get(names::GRANT_ANNOTATION)?).ok()?;
    let grant = document.pools.get(&pool).copied()?;
    let revisions = RevisionDocument::parse(pod.annotations().get(names::REVISION_ANNOTATION)?).ok()?;
    let revision = revisions.pools.get(&pool).map(|pool| pool.revision);
    let share = grant.share;
    let limits = LimitsReadBack {
        pool_size: share.max(1),
        max_db_connections: share.max(1),
        min_pool_size: 0,
        paused: share == 0,
    };
    let report = StatusReport {
        v: 1,
        pod_uid: pod.uid()?,
        pool: pool.clone(),
        revision,
        wanted_revision: revision,
        epoch: document.epoch,
        seq: grant.seq,
        share,
        limits: Some(limits),
        held: Some(Held { held: share.min(2), active: share.min(2), leaked: Some(0), waiting: 0 }),
        understands: SETTINGS_LEVEL,
        slot: SlotStatus::Serving,
        message: String::new(),
        switching: None,
        other: None,
        proof: None,
        session_alias: None,
        troubles: Vec::new(),
        server_full: None,
        upstream: None,
        reconnected: None,
        leaks: None,
        memory: None,
        trust: None,
        bypass: None,
    };
    Some((address, Agent { pool, pod: pod.name_any(), report }))
}

async fn status(
    ConnectInfo(Asked(address)): ConnectInfo<Asked>,
    State(fleet): State<Arc<Fleet>>,
) -> Result<Json<StatusReport>, StatusCode> {
    fleet.agents.lock().get(&address).map(|agent| Json(agent.report.clone())).ok_or(StatusCode::NOT_FOUND)
}

/// The figures of all agents as one page. Pools are in different places of the same wave, so that targets move all the time.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small numbers that are not negative
async fn figures(State(fleet): State<Arc<Fleet>>) -> Result<String, StatusCode> {
    fleet.scrapes.fetch_add(1, Ordering::Relaxed);
    let sample_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let seconds = fleet.begin.elapsed().as_secs_f64() + 1.0;
    let mut page = String::new();
    for Agent { pool, pod, report } in fleet.agents.lock().values() {
        let place =
            f64::from(pool.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 300);
        let phase = |seconds: f64| (seconds + place) * TAU / WAVE;
        let load = 1.0 + 0.8 * phase(seconds).sin();
        // the integral of the rate, so that the counter fits the load
        let transactions = RATE * (seconds + 0.8 * WAVE / TAU * (phase(0.0).cos() - phase(seconds).cos()));
        let active = RATE * TRANSACTION_SECONDS * load;
        let agent = agents::Agent {
            namespace: &fleet.namespace,
            pool,
            pod,
            instance: None,
            added: Added {
                transactions: transactions as u64,
                busy_microseconds: (transactions * TRANSACTION_SECONDS * 1e6) as u64,
                wait_microseconds: (transactions * 1e3) as u64,
                assignments: transactions as u64,
                ..Added::default()
            },
            pools: Pools {
                clients_active: active.round() as u32,
                active: active.round() as u32,
                idle: 1,
                ..Pools::default()
            },
            demand_peak: active.ceil(),
            share: report.share,
            seq: report.seq,
            sample_seconds,
        };
        agent.render(&mut page).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    }
    Ok(page)
}
