//! Looks at one large pool without an API server, for `benches/look`: everything that a look computes, and none of its writes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Config};
use parking_lot::Mutex;
use serde_json::json;

use super::{
    apply::writer::Writer,
    context::Context,
    controller_revision, decide,
    leader::Leadership,
    look_requests,
    memory::{Memories, PoolMemory},
    observe::{
        changed_by::Authors, pods::PodIndex, replica_failures::ReplicaFailureLister, stores::Stores,
        uninjected_pods::UninjectedPodLister,
    },
    prove::{self, AgentPoller},
    report::{events::Events, status},
};
use crate::{
    api::ConnectionPool,
    contract::{
        Document, GrantDocument, Held, LimitsReadBack, PodGrant, PoolRevision, RevisionDocument, SlotStatus,
        StatusReport, names,
    },
    decide::{
        allowed::PoolAllowList,
        effective::effective,
        plan::{NewRevision, Plan},
        shares::PodDemand,
    },
    domain::PoolKey,
    http::OperatorMetrics,
    inject::{InjectionSettings, PodPool},
    objects::GroupedStore,
};

/// In which state the pool is that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Every pod has its share and has proven it: there is nothing to write.
    Settled,
    /// The load of half of the pods has doubled, that of the others is gone.
    LoadShifted,
    /// No pod has anything yet.
    AllNew,
}

/// A pool and its pods.
pub struct Rehearsal {
    pub(super) context: Context,
    pub(super) pool: Arc<ConnectionPool>,
    pub(super) key: PoolKey,
    pub(super) memory: Arc<Mutex<PoolMemory>>,
}

/// Share of each pod at first, in server connections.
const SHARE: u32 = 4;

impl Rehearsal {
    /// A pool of so many pods in this state.
    ///
    /// # Panics
    /// When what is built here makes no sense.
    #[allow(clippy::expect_used, clippy::missing_panics_doc)]
    pub fn new(pods: u32, scene: Scene) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let nobody = Client::try_from(Config::new(http::Uri::from_static("http://127.0.0.1:9")));
        Self::with_client(pods, scene, &nobody.expect("a client that is never used"), Leadership::default())
    }

    /// The same before an API server, by whoever leads.
    #[allow(clippy::expect_used)]
    pub(super) fn with_client(pods: u32, scene: Scene, client: &Client, leadership: Leadership) -> Self {
        let key = PoolKey::new("fleet", "shop");
        let pool: ConnectionPool = serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": "pool-uid", "generation": 1},
            "spec": {
                "workload": {"selector": {"matchLabels": {"app": "shop"}}},
                "upstream": {"host": "pg-main-rw.db.svc", "database": "shop", "credentialsRef": {"name": "shop-db"}},
                "scaling": {"minAllowed": pods, "maxAllowed": pods * SHARE + pods.div_ceil(4)},
            },
        }))
        .expect("a pool");
        let mut merged = effective(&pool.spec, None).expect("it makes sense");
        merged.settings = controller_revision::normalised(&merged.settings);
        let revision = PoolRevision { revision: 1, settings: merged.settings.clone() };
        let injection = PodPool { pool: &pool, effective: &merged, revision: revision.clone() }.injection().render();
        let context = context(&pool, &revision, client, leadership);
        context.pods.list_begins();
        for number in 0..pods {
            let (granted, told) = match scene {
                Scene::AllNew => (PodGrant::default(), 0),
                Scene::Settled | Scene::LoadShifted => {
                    (PodGrant { seq: 2, share: SHARE, granted: SHARE, floor: 1, least: 0, paused: false }, 1)
                }
            };
            let revision = PoolRevision { revision: told, settings: revision.settings.clone() };
            context.pods.apply(&pod(&key, number, &injection, granted, revision));
        }
        context.pods.list_ends();
        let memory = context.memories.of(&key, &pool);
        let rehearsal = Self { context, pool: Arc::new(pool), key, memory };
        rehearsal.learn(scene);
        rehearsal.look();
        if scene != Scene::AllNew {
            rehearsal.context.poller.answer_all(&rehearsal.key, answer);
        }
        rehearsal
    }

    /// What the load asks of the pods.
    fn learn(&self, scene: Scene) {
        let facts = self.context.pods.of(&self.key);
        let demand = |number: usize| match scene {
            Scene::Settled => PodDemand { mean: 1.0, peak: 2.0 },
            Scene::LoadShifted if number.is_multiple_of(2) => PodDemand { mean: 5.0, peak: 8.0 },
            Scene::LoadShifted => PodDemand { mean: 0.0, peak: 0.0 },
            Scene::AllNew => PodDemand { mean: 1.0, peak: 1.0 },
        };
        let demands = facts.iter().enumerate().map(|(number, pod)| (pod.uid.clone(), demand(number)));
        self.memory.lock().demands = demands.collect::<HashMap<_, _>>();
    }

    /// One look, but for its writes. Returns how many pods it would write.
    pub fn look(&self) -> usize {
        let now = Timestamp::now();
        let plan: Plan = decide::plan(&self.pool, &self.key, &self.context, &self.memory, 7, now);
        prove::expect(&self.key, &self.context, &plan);
        let status = status::status(&self.pool, None, plan.report, now);
        status::is_due(Some(&status), &status, Duration::ZERO);
        plan.patches.len()
    }
}

fn context(pool: &ConnectionPool, revision: &PoolRevision, client: &Client, leadership: Leadership) -> Context {
    let new = NewRevision {
        number: revision.revision,
        settings: revision.settings.clone(),
        cause: "generation 1".to_owned(),
        is_restored: false,
    };
    let revisions = GroupedStore::of_these([controller_revision::object(pool, &new, None).into()]);
    let pools = GroupedStore::of_these([pool.clone()]);
    let injection = InjectionSettings {
        agent_image: "sluice:1".to_owned(),
        pgbouncer_image: "pgbouncer:1".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        run_as_user: Some(65532),
        allowed: PoolAllowList::default(),
    };
    let (classes, budgets) = (GroupedStore::of_these([]), GroupedStore::of_these([]));
    let stores = Stores { pools, classes, budgets, revisions, gateways: None, injection: Arc::new(injection.clone()) };
    let metrics = OperatorMetrics::default();
    Context {
        client: client.clone(),
        leadership: leadership.clone(),
        stores,
        pods: Arc::new(PodIndex::default()),
        poller: Arc::new(AgentPoller::default()),
        writer: Writer::new(client.clone(), leadership, metrics.clone()),
        events: Events::new(client.clone(), "rehearsal".to_owned()),
        memories: Memories::default(),
        requests: look_requests::requests().0,
        injection,
        tick: Duration::from_secs(15),
        uninjected_pods: Arc::new(UninjectedPodLister::new(client.clone())),
        replica_failures: Arc::new(ReplicaFailureLister::new(client.clone())),
        authors: Authors::new(client.clone()),
        metrics,
    }
}

/// A pod of a StatefulSet, whose labels no other has.
#[allow(clippy::expect_used)]
fn pod(key: &PoolKey, number: u32, injection: &str, grant: PodGrant, revision: PoolRevision) -> Pod {
    let name = format!("{}-{number}", key.name);
    let grant = GrantDocument { v: GrantDocument::VERSION, epoch: 7, pools: [(key.name.clone(), grant)].into() };
    let revision = RevisionDocument { v: RevisionDocument::VERSION, pools: [(key.name.clone(), revision)].into() };
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": key.namespace, "uid": format!("00000000-0000-4000-8000-{number:012}"),
            "resourceVersion": (100 + number).to_string(), "creationTimestamp": "2026-11-29T12:00:00Z",
            "labels": {"app": "shop", "statefulset.kubernetes.io/pod-name": name, names::POOL_LABEL: key.name},
            "annotations": {names::GRANT_ANNOTATION: grant.render(), names::REVISION_ANNOTATION: revision.render()},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "shop", "uid": "s", "controller": true}],
        },
        "spec": {"nodeName": "node0", "containers": [], "initContainers": [{
            "name": names::SIDECAR_CONTAINER, "restartPolicy": "Always", "command": ["/sluice/bin/sluice-agent"],
            "env": [{"name": "SLUICE_INJECTION", "value": injection}],
        }]},
        "status": {"phase": "Running", "podIP": format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255),
            "initContainerStatuses": [{"name": names::SIDECAR_CONTAINER, "image": "", "imageID": "", "ready": true,
                "restartCount": 0, "state": {"running": {}}}]},
    }))
    .expect("a pod")
}

/// What an agent answers whose pooler runs what it should.
fn answer(uid: &str) -> StatusReport {
    StatusReport {
        revision: Some(1),
        wanted_revision: Some(1),
        epoch: 7,
        seq: 2,
        share: SHARE,
        limits: Some(LimitsReadBack { pool_size: SHARE, max_db_connections: SHARE, min_pool_size: 0, paused: false }),
        held: Some(Held { held: 2, ..Held::default() }),
        slot: SlotStatus::Serving,
        ..StatusReport::beginning(uid.to_owned(), "shop".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_settled_pool_has_nothing_to_write_and_the_others_have() {
        let writes = |scene| Rehearsal::new(50, scene).look();
        assert_eq!(writes(Scene::Settled), 0);
        assert!(writes(Scene::LoadShifted) > 0 && writes(Scene::AllNew) > 0);
    }
}
