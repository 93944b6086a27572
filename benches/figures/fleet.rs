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
    extract::{ConnectInfo, Path, State, connect_info::Connected},
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
use serde::Deserialize;
use serde_json::{Value, json};
use sluice::{
    agent::decide::counters::Added,
    api::ConnectionPool,
    contract::{
        Document, GrantDocument, Held, LimitsReadBack, PodGrant, PoolRevision, RevisionDocument, SlotStatus,
        StatusReport, names,
    },
    decide::effective::effective,
    inject::{InjectionSettings, PodPool, inject},
    pooler::pgbouncer::tables::Pools,
};
use tokio::{
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
};

use crate::{Failure, agents};

/// Where Prometheus reads the figures of all agents.
pub const METRICS_ADDRESS: &str = "127.0.0.1:9900";
/// Requests to the API server at once.
const AT_ONCE: usize = 16;
/// The load of a pod is at one of so many places of its wave.
const PLACES: u32 = 300;
/// Transactions per second of a pod, and how long one takes: what makes its demand.
const RATE: f64 = 40.0;
const TRANSACTION_SECONDS: f64 = 0.05;

/// Pools of one namespace.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The namespace; it is there.
    pub namespace: &'static str,
    /// How many.
    pub pools: usize,
    /// What all of them have in their spec beside the least.
    pub spec: Value,
    /// One pool of so many has a load that comes and goes; that of the others is steady.
    pub one_moves_of: usize,
}

/// How the load comes and goes.
#[derive(Clone, Copy, Debug)]
pub struct Waves {
    /// Whose they are.
    pub of: WavesOf,
    /// How long one is.
    pub period: Duration,
}

/// Whose load comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WavesOf {
    /// Pool by pool; its pods are alike.
    Pools,
    /// Pod by pod, so that shares move between the pods of a pool.
    Pods,
}

/// Some of the pods, as one target of Prometheus.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Part {
    /// Which.
    pub number: u32,
    /// Of how many.
    pub parts: u32,
}

impl Part {
    const ALL: Self = Self { number: 0, parts: 1 };

    /// Where it is scraped. Targets are scraped at different times of the interval, as single pods are.
    pub fn path(self) -> String {
        format!("/metrics/{}/{}", self.number, self.parts)
    }

    fn has(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.to_bits() % self.parts.max(1) == self.number,
            IpAddr::V6(_) => false,
        }
    }
}

/// What an agent knows of itself.
struct Agent {
    namespace: String,
    pool: String,
    pod: String,
    report: StatusReport,
    grant: PodGrant,
    /// Where in the wave its load is; none: it is steady.
    place: Option<u32>,
    /// Since when a share that was taken from it waits for its proof.
    unproven_since: Option<Instant>,
}

/// Pools and their pods.
pub struct Fleet {
    tenants: Vec<Tenant>,
    pods_of_each: usize,
    waves: Waves,
    client: Client,
    begin: Instant,
    agents: Mutex<HashMap<IpAddr, Agent>>,
    silent: Mutex<Option<&'static str>>,
    proven: Mutex<Vec<Proof>>,
    scrapes: AtomicUsize,
    changes: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
}

/// A share that was taken back.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Namespace of the pod.
    pub namespace: String,
    /// When it was taken back.
    pub since: Instant,
    /// How long it took until it was written down as proven; none: it was not yet.
    pub took: Option<Duration>,
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
    /// Creates the pools of all tenants, each with so many pods, and answers for their agents.
    pub async fn start(tenants: Vec<Tenant>, pods_of_each: usize, waves: Waves) -> Result<Arc<Self>, Failure> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fleet = Arc::new(Self {
            tenants,
            pods_of_each,
            waves,
            client: Client::try_default().await?,
            begin: Instant::now(),
            agents: Mutex::default(),
            silent: Mutex::default(),
            proven: Mutex::default(),
            scrapes: AtomicUsize::default(),
            changes: AtomicUsize::default(),
            tasks: Mutex::default(),
        });
        let agents = TcpListener::bind(("0.0.0.0", names::METRICS_PORT)).await?;
        let scraped = TcpListener::bind(METRICS_ADDRESS).await?;
        let status = Router::new().route("/status", get(status)).with_state(fleet.clone());
        let figures = Router::new()
            .route("/metrics", get(figures))
            .route("/metrics/{number}/{parts}", get(figures_of))
            .with_state(fleet.clone());
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
        let pools = fleet.pools();
        let pods = pools.iter().flat_map(|pool| (0..pods_of_each).map(move |pod| (*pool, pod)));
        stream::iter(&pools).map(|pool| fleet.create_pool(*pool)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        stream::iter(pods)
            .map(|(pool, pod)| fleet.create_pod(pool, pod))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(fleet)
    }

    /// The pools of all tenants: number, and whose.
    fn pools(&self) -> Vec<(usize, &Tenant)> {
        self.tenants.iter().flat_map(|tenant| (0..tenant.pools).map(move |_| tenant)).enumerate().collect()
    }

    /// All pods there are.
    pub fn pods(&self) -> usize {
        self.pools().len() * self.pods_of_each
    }

    fn pool(&self, (number, tenant): (usize, &Tenant)) -> Result<ConnectionPool, Failure> {
        let (name, pods) = (pool_name(number), self.pods_of_each);
        let mut spec = json!({
            "engine": "PostgreSQL", "topology": "Sidecar", "mode": "Apply",
            "workload": {"selector": {"matchLabels": {"app": name}}},
            "upstream": {"host": "pg-main-rw.db.svc", "database": "shop", "credentialsRef": {"name": "shop-db"}},
            "scaling": {"minAllowed": pods, "maxAllowed": pods * 8},
        });
        json_patch::merge(&mut spec, &tenant.spec);
        Ok(serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": name, "namespace": tenant.namespace}, "spec": spec,
        }))?)
    }

    async fn create_pool(&self, pool: (usize, &Tenant)) -> Result<(), Failure> {
        let pools: Api<ConnectionPool> = Api::namespaced(self.client.clone(), pool.1.namespace);
        pools.create(&PostParams::default(), &self.pool(pool)?).await?;
        Ok(())
    }

    async fn create_pod(&self, (pool, tenant): (usize, &Tenant), pod: usize) -> Result<(), Failure> {
        let number = pool * self.pods_of_each + pod;
        let pool = self.pool((pool, tenant))?;
        let bare: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("{}-{pod}", pool.name_any()), "namespace": tenant.namespace, "labels": {"app": pool.name_any()}},
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
            allowed: sluice::decide::allowed::PoolAllowList::default(),
        };
        let injected = inject(&bare, &PodPool { pool: &pool, effective: &merged, revision }, &settings)?;
        let mut patched = serde_json::to_value(&bare)?;
        json_patch::patch(&mut patched, &injected.patch)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), tenant.namespace);
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
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mut seen = watcher(pods, watcher::Config::default()).default_backoff().applied_objects().boxed();
        while let Some(pod) = seen.next().await {
            let Some((address, mut agent)) = pod.ok().as_ref().and_then(|pod| self.agent_of(pod)) else { continue };
            self.changes.fetch_add(1, Ordering::Relaxed);
            let mut agents = self.agents.lock();
            let now = Instant::now();
            let before = agents.get(&address).map(|before| (before.unproven_since, before.grant));
            let is_unproven = agent.grant.granted > agent.grant.share;
            match before {
                Some((since, grant)) if is_unproven && grant.share <= agent.grant.share => agent.unproven_since = since,
                Some(_) if is_unproven => agent.unproven_since = Some(now),
                Some((Some(since), _)) => {
                    let proof = Proof { namespace: agent.namespace.clone(), since, took: Some(now - since) };
                    self.proven.lock().push(proof);
                }
                _ => {}
            }
            agents.insert(address, agent);
        }
    }

    /// The agents of this tenant's pods take questions and do not answer; of nobody's: all answer.
    pub fn silence(&self, namespace: Option<&'static str>) {
        *self.silent.lock() = namespace;
    }

    /// Shares that were taken back since then.
    pub fn proofs(&self, since: Instant) -> Vec<Proof> {
        let proven = self.proven.lock().iter().filter(|proof| proof.since >= since).cloned().collect::<Vec<_>>();
        let agents = self.agents.lock();
        let waiting = agents.values().filter_map(|agent| {
            let began = agent.unproven_since.filter(|began| *began >= since)?;
            Some(Proof { namespace: agent.namespace.clone(), since: began, took: None })
        });
        proven.into_iter().chain(waiting).collect()
    }

    /// How often Prometheus has read.
    pub fn scrapes(&self) -> usize {
        self.scrapes.load(Ordering::Relaxed)
    }

    /// How often a pod with a grant was written.
    pub fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
    }

    /// Pods that may open something.
    pub fn pods_with_share(&self) -> usize {
        self.agents.lock().values().filter(|agent| agent.report.share > 0).count()
    }

    fn agent_of(&self, pod: &Pod) -> Option<(IpAddr, Agent)> {
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
            revision,
            wanted_revision: revision,
            epoch: document.epoch,
            seq: grant.seq,
            share,
            limits: Some(limits),
            held: Some(Held { held: share.min(2), active: share.min(2), leaked: Some(0), waiting: 0 }),
            slot: SlotStatus::Serving,
            ..StatusReport::beginning(pod.uid()?, pool.clone())
        };
        let (namespace, pod) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let place = self.place(&namespace, &pool, &pod);
        Some((address, Agent { namespace, pool, pod, report, grant, place, unproven_since: None }))
    }

    /// Where in the wave the load of a pod is; none: it is steady.
    fn place(&self, namespace: &str, pool: &str, pod: &str) -> Option<u32> {
        let one_of = self.tenants.iter().find(|tenant| tenant.namespace == namespace)?.one_moves_of;
        let number: usize = pool.rsplit('-').next()?.parse().ok()?;
        let who = match self.waves.of {
            WavesOf::Pools => pool,
            WavesOf::Pods => pod,
        };
        let place = who.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % PLACES;
        number.is_multiple_of(one_of.max(1)).then_some(place)
    }

    /// The figures of these agents as one page. Agents that differ in nothing but their names are rendered once.
    fn page(&self, part: Part) -> Result<String, Failure> {
        const NAMES: [&str; 3] = ["@namespace@", "@pool@", "@pod@"];
        let sample_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let seconds = self.begin.elapsed().as_secs_f64() + 1.0;
        // whoever asks an agent for its status waits for no page
        let mut alike: HashMap<(Option<u32>, u32, u64), Vec<[String; 3]>> = HashMap::new();
        for (address, Agent { namespace, pool, pod, report, place, .. }) in &*self.agents.lock() {
            if part.has(*address) {
                let names = [namespace, pool, pod].map(String::clone);
                alike.entry((*place, report.share, report.seq)).or_default().push(names);
            }
        }
        let mut page = String::new();
        for ((place, share, seq), all) in alike {
            let rendered = self.render(NAMES, place, (share, seq), seconds, sample_seconds)?;
            for names in all {
                let named =
                    NAMES.iter().zip(&names).fold(rendered.clone(), |text, (mark, name)| text.replace(mark, name));
                page.push_str(&named);
            }
        }
        Ok(page)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small numbers that are not negative
    fn render(
        &self,
        [namespace, pool, pod]: [&str; 3],
        place: Option<u32>,
        (share, seq): (u32, u64),
        seconds: f64,
        sample_seconds: f64,
    ) -> Result<String, Failure> {
        let period = self.waves.period.as_secs_f64();
        let (amplitude, place) = place.map_or((0.0, 0.0), |place| (0.8, f64::from(place) / f64::from(PLACES)));
        let phase = |seconds: f64| (seconds / period + place) * TAU;
        let load = 1.0 + amplitude * phase(seconds).sin();
        // the integral of the rate, so that the counter fits the load
        let transactions = RATE * (seconds + amplitude * period / TAU * (phase(0.0).cos() - phase(seconds).cos()));
        let active = RATE * TRANSACTION_SECONDS * load;
        let agent = agents::Agent {
            namespace,
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
            share,
            seq,
            sample_seconds,
        };
        let mut text = String::new();
        agent.render(&mut text)?;
        Ok(text)
    }

    /// Deletes all of it and answers no more.
    pub async fn delete(&self) -> Result<(), Failure> {
        self.tasks.lock().abort_all();
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        for Tenant { namespace, .. } in &self.tenants {
            let pools: Api<ConnectionPool> = Api::namespaced(self.client.clone(), namespace);
            pools.delete_collection(&at_once, &ListParams::default()).await?;
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            pods.delete_collection(&at_once, &ListParams::default()).await?;
            while !pods.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}

/// The name of a pool.
pub fn pool_name(number: usize) -> String {
    format!("pool-{number:04}")
}

async fn status(
    ConnectInfo(Asked(address)): ConnectInfo<Asked>,
    State(fleet): State<Arc<Fleet>>,
) -> Result<Json<StatusReport>, StatusCode> {
    let known = fleet.agents.lock().get(&address).map(|agent| (agent.namespace.clone(), agent.report.clone()));
    let (namespace, report) = known.ok_or(StatusCode::NOT_FOUND)?;
    if fleet.silent.lock().is_some_and(|silent| silent == namespace) {
        // until whoever asks has enough of it
        std::future::pending::<()>().await;
    }
    Ok(Json(report))
}

/// The figures of all agents as one page.
async fn figures(State(fleet): State<Arc<Fleet>>) -> Result<String, StatusCode> {
    page(fleet, Part::ALL).await
}

/// Those of some.
async fn figures_of(State(fleet): State<Arc<Fleet>>, Path(part): Path<Part>) -> Result<String, StatusCode> {
    page(fleet, part).await
}

async fn page(fleet: Arc<Fleet>, part: Part) -> Result<String, StatusCode> {
    fleet.scrapes.fetch_add(1, Ordering::Relaxed);
    // not on a thread that has answers to give
    let page = spawn_blocking(move || fleet.page(part).ok()).await;
    page.ok().flatten().ok_or(StatusCode::INTERNAL_SERVER_ERROR)
}
