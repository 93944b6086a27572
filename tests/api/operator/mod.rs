//! The real operator on a real API server: shares, revisions, proof, status, and that there is one writer whatever dies.

mod doubtful;
mod ending;
mod far;
mod gateway;
pub mod pods;
pub mod process;
mod prometheus;
mod rollouts;
mod steering;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use k8s_openapi::api::{apps::v1::ControllerRevision, coordination::v1::Lease, core::v1::Pod, events::v1::Event};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::{
    api::{ConnectionBudget, ConnectionPool, ConnectionPoolClass, ConnectionPoolStatus},
    contract::{LeakKinds, PoolerError, ServerFull, TroubleSeen, UpstreamSeen, UpstreamState},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use self::{
    far::Far,
    pods::{FakePod, create, grant_of},
    process::{Operator, turn},
    prometheus::Prometheus,
};
use crate::cluster::{Cluster, eventually, object, parse, pool, pool_with};

/// A pool of the test's own; deleted at its end, or the next operator would look after it too.
struct Shop {
    cluster: Cluster,
    pool: ConnectionPool,
}

impl Shop {
    async fn new(test: &str, spec: &str) -> Self {
        let cluster = Cluster::new(test, &json!({})).await;
        released_lease(&cluster).await;
        let pool: ConnectionPool = cluster.create(&pool_with("shop", spec)).await.expect("a pool");
        Self { cluster, pool }
    }

    fn pools(&self) -> Api<ConnectionPool> {
        self.cluster.api()
    }

    async fn pod(&self, name: &str) -> FakePod {
        FakePod::start(&self.cluster, &self.pool, name).await
    }

    async fn pods(&self, count: usize) -> Vec<FakePod> {
        let names: Vec<String> = (0..count).map(|number| format!("shop-{number}")).collect();
        join_all(names.iter().map(|name| self.pod(name))).await
    }

    async fn status(&self) -> ConnectionPoolStatus {
        self.pools().get_status("shop").await.expect("the pool").status.unwrap_or_default()
    }

    async fn change(&self, spec: Value) {
        let patch = json!({ "spec": spec });
        self.pools().patch("shop", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("changed");
    }

    /// Waits until a condition reads `Status/Reason`; returns its message.
    async fn condition(&self, type_: &str, wanted: &str) -> String {
        eventually(&format!("{type_} is {wanted}"), || async {
            let status = self.status().await;
            let condition = status.conditions.into_iter().find(|condition| condition.type_ == type_)?;
            (format!("{}/{}", condition.status, condition.reason) == wanted).then_some(condition.message)
        })
        .await
    }

    /// Waits until the pods have these shares, in their order.
    async fn shares(&self, pods: &[FakePod], wanted: &[u32]) {
        eventually(&format!("the shares are {wanted:?}"), || async {
            let grants = join_all(pods.iter().map(|pod| pod.grant("shop"))).await;
            let shares: Vec<u32> = grants.iter().flatten().map(|grant| grant.share).collect();
            (shares == wanted).then_some(())
        })
        .await;
    }

    async fn events(&self, reason: &str) -> Vec<String> {
        let events: Api<Event> = self.cluster.api();
        let all = events.list(&ListParams::default()).await.expect("events");
        let own = all.items.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
        own.filter_map(|event| event.note).collect()
    }

    async fn end(self) {
        self.pools().delete("shop", &DeleteParams::default()).await.expect("deleted");
    }
}

/// Watches the sum of what is granted in a namespace, all the time.
struct Invariant {
    most: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Invariant {
    fn watch(shop: &Shop) -> Self {
        let pods: Api<Pod> = shop.cluster.api();
        let most = Arc::new(AtomicU32::new(0));
        let seen = most.clone();
        let task = tokio::spawn(async move {
            loop {
                // one list is one consistent moment
                if let Ok(list) = pods.list(&ListParams::default()).await {
                    let granted = list.items.iter().filter_map(|pod| grant_of(pod, "shop")).map(|grant| grant.granted);
                    seen.fetch_max(granted.sum(), Ordering::Relaxed);
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        Self { most, task }
    }

    /// The largest sum that was seen.
    fn most(self) -> u32 {
        self.task.abort();
        self.most.load(Ordering::Relaxed)
    }
}

/// The operator decides alone: limit and share are the target divided.
const SHARED: &str =
    "  scaling: {minAllowed: 6, maxAllowed: 12, algorithm: TargetUtilization, localReaction: Disabled}\n";
/// The agents decide within shares of all that is allowed.
const LOCAL: &str = "  scaling: {minAllowed: 2, maxAllowed: 12}\n";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn every_pod_gets_its_share_and_its_revision_and_both_are_read_back() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.shares(&pods, &[2, 2, 2]).await;
    shop.condition("Proven", "True/AllProven").await;
    shop.condition("Injected", "True/AllInjected").await;
    let status = eventually("the status tells the size", || async {
        let status = shop.status().await;
        let proven = status.pods.is_some_and(|pods| pods.proven == 3);
        (status.current_size == Some(6) && status.share == Some(6) && proven).then_some(status)
    })
    .await;
    assert_eq!(status.recommendation.map(|told| told.target), Some(6), "{:?}", status.summary);
    assert_eq!(status.pods.map(|pods| (pods.matched, pods.injected)), Some((3, 3)));
    for pod in &pods {
        assert_eq!(pod.revision("shop").await, Some(1));
    }
    let revisions: Api<ControllerRevision> = shop.cluster.api();
    let revision = revisions.get("shop-1").await.expect("the revision");
    assert_eq!(revision.owner_references().first().map(|owner| owner.uid.clone()), shop.pool.uid());
    shop.condition("ScalingActive", "False/PrometheusNotConfigured").await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_new_pod_gets_its_grant_within_a_second_of_appearing() {
    let _turn = turn().await;
    let shop = Shop::new("operator", LOCAL).await;
    let operator = Operator::start(&shop.cluster, "a", &["--tick-seconds", "60"]);
    operator.leads().await;
    let first = shop.pods(2).await;
    eventually("the first pods have shares", || async {
        let grants = join_all(first.iter().map(|pod| pod.grant("shop"))).await;
        grants.iter().all(|grant| grant.is_some_and(|grant| grant.share > 0)).then_some(())
    })
    .await;
    let appeared = Instant::now();
    let late = shop.pod("late").await;
    eventually("the new pod has a share", || async { late.grant("shop").await.filter(|grant| grant.share > 0) }).await;
    let took = appeared.elapsed();
    println!("a new pod had its grant {} ms after it was created", took.as_millis());
    assert!(took < Duration::from_secs(5), "no tick was waited for: {took:?}");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn an_api_server_that_takes_its_time_is_asked_for_several_pods_at_once() {
    const PODS: usize = 60;
    let _turn = turn().await;
    let shop = Shop::new("operator", "  scaling: {minAllowed: 2, maxAllowed: 400}\n").await;
    // one after the other they would take 36 s
    let far = Far::start(Duration::from_millis(600)).await;
    stream::iter(0..PODS)
        .for_each_concurrent(8, |number| {
            let (shop, name) = (&shop, format!("shop-{number}"));
            async move { drop(create(&shop.cluster, &shop.pool, &name).await) }
        })
        .await;
    let operator = Operator::start_with(&shop.cluster, "a", &[], Some(&far.kubeconfig()));
    operator.leads().await;
    let pods: Api<Pod> = shop.cluster.api();
    eventually("every pod has a share", || async {
        let all = pods.list(&ListParams::default()).await.ok()?.items;
        let granted = all.iter().filter(|pod| grant_of(pod, "shop").is_some_and(|grant| grant.share > 0)).count();
        (granted == PODS).then_some(())
    })
    .await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_is_granted_never_exceeds_max_allowed_while_pods_come_and_go_and_the_operator_is_killed() {
    let _turn = turn().await;
    let shop = Shop::new("operator", LOCAL).await;
    let mut operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let invariant = Invariant::watch(&shop);
    let mut pods = shop.pods(2).await;
    for round in 0..6_u64 {
        pods.push(shop.pod(&format!("surge-{round}")).await);
        // somewhere between two lines of what it does about the new pod
        sleep(Duration::from_millis(37 * (round + 1))).await;
        operator.kill();
        release(&shop).await;
        operator = Operator::start(&shop.cluster, "a", &[]);
        operator.leads().await;
        if round % 2 == 1 {
            pods.remove(0).end().await;
        }
    }
    eventually("every pod has a share", || async {
        let grants = join_all(pods.iter().map(|pod| pod.grant("shop"))).await;
        grants.iter().all(|grant| grant.is_some_and(|grant| grant.share > 0)).then_some(())
    })
    .await;
    shop.condition("Proven", "True/AllProven").await;
    let most = invariant.most();
    assert!(most <= 12, "{most} were granted of 12");
    shop.end().await;
}

/// A Lease as if an operator had just ended: where there is none, the first one waits as long as one would last.
async fn released_lease(cluster: &Cluster) {
    let spec = json!({"holderIdentity": "", "leaseTransitions": 0});
    let lease: Lease = object(json!({"metadata": {"name": "sluice-operator"}, "spec": spec}));
    cluster.api::<Lease>().create(&PostParams::default(), &lease).await.expect("a lease");
}

/// Takes the lease from a killed operator, as its end would after 15 s.
async fn release(shop: &Shop) {
    let leases: Api<Lease> = shop.cluster.api();
    let patch = json!({"spec": {"holderIdentity": ""}});
    leases.patch("sluice-operator", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("released");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn of_two_operators_one_writes_and_the_other_takes_over_with_a_new_epoch() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let mut first = Operator::start(&shop.cluster, "a", &[]);
    first.leads().await;
    let second = Operator::start(&shop.cluster, "b", &[]);
    let pods = shop.pods(2).await;
    shop.shares(&pods, &[3, 3]).await;
    assert_eq!(second.metric("sluice_operator_leader").await, Some(0.0));
    assert!(second.get("/readyz").await.is_some_and(|text| !text.contains("ConnectionPool\":{\"waitingFor")));
    let leases: Api<Lease> = shop.cluster.api();
    let epoch = || async { leases.get("sluice-operator").await.expect("the lease").spec?.lease_transitions };
    let before = epoch().await;
    first.kill();
    let died = Instant::now();
    while second.metric("sluice_operator_leader").await != Some(1.0) {
        assert!(died.elapsed() < Duration::from_secs(30), "nobody took over");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(died.elapsed() > Duration::from_secs(10), "a lease that may still be held is not taken");
    assert!(epoch().await > before);
    shop.change(json!({"scaling": {"minAllowed": 8}})).await;
    shop.shares(&pods, &[4, 4]).await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_leader_whose_lease_is_taken_ends() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let mut operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let leases: Api<Lease> = shop.cluster.api();
    let patch = json!({"spec": {"holderIdentity": "somebody-else"}});
    leases.patch("sluice-operator", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("taken");
    let deadline = Instant::now() + Duration::from_secs(10);
    while operator.is_running() {
        assert!(Instant::now() < deadline, "it goes on without the lease");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(operator.log().contains("lost the lease"), "it says why");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_deleted_lease_costs_no_term_and_grants_of_the_next_one_are_newer_than_all_before() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let leases: Api<Lease> = shop.cluster.api();
    let mut operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    shop.shares(&pods, &[3, 3]).await;
    // two terms more
    for _ in 0..2 {
        operator.kill();
        release(&shop).await;
        operator = Operator::start(&shop.cluster, "a", &[]);
        operator.leads().await;
    }
    shop.change(json!({"scaling": {"minAllowed": 8}})).await;
    shop.shares(&pods, &[4, 4]).await;
    let third = epochs(&pods).await;
    assert!(third.len() == 2 && third[0] >= 3 && third[0] == third[1], "{third:?}");
    // the lease is told with the next renewal, where pods of other namespaces carry later terms
    let transitions =
        || async { u64::try_from(leases.get_opt("sluice-operator").await.ok()??.spec?.lease_transitions?).ok() };
    let told = async |epoch: u64| (transitions().await == Some(epoch)).then_some(());
    eventually("the lease tells the epoch", || told(third[0])).await;

    // under a leader: it creates it anew, with its count
    leases.delete("sluice-operator", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(eventually("the lease is back", transitions).await, third[0]);
    assert!(operator.is_running());
    shop.change(json!({"scaling": {"minAllowed": 10}})).await;
    shop.shares(&pods, &[5, 5]).await;
    assert_eq!(epochs(&pods).await, third);

    // under nobody that the next one knows of: it waits as long as a Lease lasts, and its grants must be newer all the same,
    // but not by what a pod made up
    operator.kill();
    leases.delete("sluice-operator", &DeleteParams::default()).await.expect("deleted");
    create(&shop.cluster, &shop.pool, "forged").await;
    let patch = json!({"metadata": {"annotations": {"sluice.dev/grant":
        r#"{"v":1,"epoch":2147483647,"pools":{"shop":{"seq":9007199254740991,"share":1000,"granted":1000,"floor":0}}}"#}}});
    let pods_api: Api<Pod> = shop.cluster.api();
    pods_api.patch("forged", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("forged");
    let started = Instant::now();
    let next = Operator::start(&shop.cluster, "b", &[]);
    next.leads().await;
    println!("without a Lease the next one led after {:.1} s", started.elapsed().as_secs_f64());
    assert!(started.elapsed() > Duration::from_secs(15), "a holder whose Lease was deleted may still write");
    let counted = eventually("the lease counts again", transitions).await;
    assert!(counted > third[0] && counted < third[0] + 100, "{counted} after {third:?}");
    pods_api.delete("forged", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    shop.change(json!({"scaling": {"minAllowed": 12}})).await;
    shop.shares(&pods, &[6, 6]).await;
    shop.condition("Proven", "True/AllProven").await;
    let fourth = epochs(&pods).await;
    assert!(fourth.iter().all(|epoch| *epoch == counted), "{fourth:?} after {third:?}");
    eventually("the lease tells the new epoch", || told(fourth[0])).await;
    shop.end().await;
}

/// The terms that granted what the pods have.
async fn epochs(pods: &[FakePod]) -> Vec<u64> {
    join_all(pods.iter().map(FakePod::epoch)).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_changed_setting_becomes_a_revision_that_reaches_all_pods_a_few_at_a_time() {
    let _turn = turn().await;
    let shop = Shop::new("operator", &format!("{SHARED}  rollout: {{canary: {{steps: []}}}}\n")).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.runs_stable(3).await;
    // an agent that does not confirm holds the others back
    for pod in &pods {
        pod.behaviour.lock().silent = true;
    }
    shop.change(json!({"health": {"queryWaitTimeoutSeconds": 7}})).await;
    shop.condition("Progressing", "True/RollingOut").await;
    eventually("one pod is told", || async {
        let revisions = join_all(pods.iter().map(|pod| pod.revision("shop"))).await;
        (revisions.iter().filter(|revision| **revision == Some(2)).count() == 1).then_some(())
    })
    .await;
    sleep(Duration::from_secs(2)).await; // two ticks more, and still one
    let revisions = join_all(pods.iter().map(|pod| pod.revision("shop"))).await;
    assert_eq!(revisions.iter().filter(|revision| **revision == Some(2)).count(), 1, "{revisions:?}");
    let stable = shop.status().await.revision.expect("revisions");
    assert_eq!((stable.stable, stable.updated), (1, 2), "new pods get what is proven");
    for pod in &pods {
        pod.behaviour.lock().silent = false;
    }
    shop.condition("Progressing", "True/RolloutComplete").await;
    let stable = shop.status().await.revision.expect("revisions");
    assert_eq!((stable.stable, stable.updated), (2, 2));
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_reconnect_that_is_asked_for_reaches_all_pods_once_and_its_end_is_a_condition_and_an_event() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.condition("Proven", "True/AllProven").await;
    assert!(shop.status().await.conditions.iter().all(|told| told.type_ != "Reconnected"), "nobody asked for it");
    // the last three pass for a date-time with the API server, and whoever decodes them fails
    let (no_time, no_day) = ("after the migration", "2026-02-30T12:00:00Z");
    let odd = ["9999-12-31T23:59:59Z", "2026-11-28T12:00:00+99:00", "2026-11-28T12:00:00x5Z"];
    for at in [no_time, no_day].into_iter().chain(odd) {
        let patch = json!({"spec": {"pgbouncer": {"reconnectedAt": at}}});
        let refused = shop.pools().patch("shop", &PatchParams::default(), &Patch::Merge(&patch)).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("reconnectedAt")), "{at}");
    }

    shop.change(json!({"pgbouncer": {"reconnectedAt": "2026-11-28T13:00:00+01:00"}})).await;
    let told = shop.condition("Reconnected", "True/AllReconnected").await;
    assert!(told.contains("2026-11-28T12:00:00Z"), "{told}");
    for pod in &pods {
        assert_eq!(pod.revision("shop").await, Some(2));
    }
    shop.condition("Progressing", "True/RolloutComplete").await;
    let event = eventually("one event", || async { shop.events("AllReconnected").await.into_iter().next() }).await;
    assert!(event.contains("3 pods"), "{event}");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn annotations_that_are_gone_damaged_or_forged_are_mended_and_never_add_up_to_more() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.shares(&pods, &[2, 2, 2]).await;
    let newer = json!({"v": 99, "epoch": 1, "pools": {}}).to_string();
    let greedy = json!({"v": 1, "epoch": 1, "pools": {"shop": {"seq": 900, "share": 500, "granted": 500, "floor": 1}}});
    for damaged in [Value::Null, json!("{\"v\":1,\"epo"), json!(newer), json!(greedy.to_string())] {
        pods[0].forge(json!({"sluice.dev/grant": damaged, "sluice.dev/revision": "[]"})).await;
        shop.shares(&pods, &[2, 2, 2]).await;
        eventually("the revision is back", || async { pods[0].revision("shop").await.filter(|found| *found == 1) })
            .await;
    }
    shop.condition("Proven", "True/AllProven").await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn an_agent_that_cannot_be_asked_is_told_of_with_the_network_policy_to_add() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    shop.condition("Proven", "True/AllProven").await;
    pods[0].behaviour.lock().uid = Some("of-another-pod".to_owned());
    shop.change(json!({"scaling": {"minAllowed": 8}})).await;
    let message = eventually("AgentUnreachable is told", || async {
        let status = shop.status().await;
        let condition = status.conditions.into_iter().find(|condition| condition.type_ == "Proven")?;
        (condition.reason == "AgentUnreachable").then_some(condition.message)
    });
    let message = message.await;
    assert!(message.contains("another pod answers") && message.contains("NetworkPolicy"), "{message}");
    assert!(message.contains("9130"), "{message}");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn recommend_and_paused_change_nothing_and_tell_everything() {
    let _turn = turn().await;
    let shop =
        Shop::new("operator", "  mode: Recommend\n  scaling: {minAllowed: 6, maxAllowed: 12, fixedLimitPerPod: 3}\n")
            .await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    shop.shares(&pods, &[3, 3]).await;
    shop.condition("AbleToScale", "False/RecommendOnly").await;
    eventually("the target is told", || async {
        let target = shop.status().await.recommendation.map(|told| told.target);
        (target == Some(6)).then_some(())
    })
    .await;

    shop.change(json!({"paused": true})).await;
    shop.condition("Paused", "True/Paused").await;
    let grants = join_all(pods.iter().map(|pod| pod.grant("shop"))).await;
    shop.change(json!({"scaling": {"fixedLimitPerPod": 5}})).await;
    eventually("the change is seen", || async {
        let pool = shop.pools().get("shop").await.ok()?;
        (pool.status?.observed_generation == pool.metadata.generation).then_some(())
    })
    .await;
    assert_eq!(grants, join_all(pods.iter().map(|pod| pod.grant("shop"))).await, "paused: nothing moves");
    shop.change(json!({"paused": false})).await;
    shop.shares(&pods, &[5, 5]).await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_status_that_names_a_generation_speaks_of_that_spec_even_between_two_scrapes() {
    let _turn = turn().await;
    let recommend = "  mode: Recommend\n  scaling: {minAllowed: 2, maxAllowed: 40, fixedLimitPerPod: 3}\n";
    let shop = Shop::new("operator", recommend).await;
    let prometheus = Prometheus::start(&shop.cluster.namespace, &["shop-0", "shop-1"], "5s").await;
    let configuration = prometheus.configuration();
    let operator = Operator::start(&shop.cluster, "a", &["--tick-seconds", "1", "--prometheus-config", &configuration]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    shop.shares(&pods, &[3, 3]).await;
    shop.condition("ScalingActive", "True/SignalsFresh").await;
    let summary = eventually("it says that it only recommends", || async {
        shop.status().await.summary.filter(|summary| summary.contains("Recommend"))
    })
    .await;
    assert!(summary.contains("recommended only"), "{summary}");
    eventually("the wait's p95 is told", || async {
        shop.status().await.load.and_then(|load| load.wait_p95_milliseconds)
    })
    .await;

    for (spec, says, says_not) in [
        (json!({"mode": "Apply", "scaling": {"fixedLimitPerPod": null}}), "target", "Recommend"),
        (json!({"paused": true}), "(paused)", "Recommend"),
        (json!({"paused": false}), "target", "paused"),
    ] {
        shop.change(spec).await;
        let status = eventually("the change is told", || async {
            let pool = shop.pools().get("shop").await.ok()?;
            pool.status.filter(|status| status.observed_generation == pool.metadata.generation)
        })
        .await;
        let summary = status.summary.unwrap_or_default();
        assert!(summary.contains(says) && !summary.contains(says_not), "{says}, not {says_not}: {summary}");
    }
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pool_with_a_query_of_its_own_holds_where_the_server_of_prometheus_does_not_allow_its_namespace() {
    let _turn = turn().await;
    let own = "  scaling: {minAllowed: 2, maxAllowed: 40, metrics: {overrides: [{signal: WaitingClients, query: vector(1)}]}}\n";
    let shop = Shop::new("operator", own).await;
    let prometheus = Prometheus::start(&shop.cluster.namespace, &["shop-0"], "1s").await;
    let configuration = prometheus.configuration();
    let operator = Operator::start(&shop.cluster, "a", &["--tick-seconds", "1", "--prometheus-config", &configuration]);
    operator.leads().await;
    let _pods = shop.pods(1).await;
    shop.condition("ScalingActive", "False/OverrideNotAllowed").await;
    shop.change(json!({"scaling": {"metrics": null}})).await;
    shop.condition("ScalingActive", "True/SignalsFresh").await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_database_that_takes_no_writes_or_answers_nobody_is_told_once_with_the_pod_that_saw_it_and_until_it_is_over()
{
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    let seen = |state, message: &str| {
        let silent = Some(state == UpstreamState::Unknown);
        Some(UpstreamSeen { state, message: message.to_owned(), silent })
    };
    for pod in &pods {
        pod.behaviour.lock().upstream = seen(UpstreamState::Unknown, "no answer within 31 s");
    }
    shop.condition("UpstreamHealthy", "Unknown/UpstreamSilent").await;
    let message = shop.condition("Ready", "False/UpstreamSilent").await;
    assert!(message.contains("among them: no answer within 31 s"), "{message}");
    let namespace = shop.cluster.namespace.clone();
    let series = || async {
        let page = operator.get("/metrics").await?;
        let pool = format!("sluice_operator_condition{{pool_namespace=\"{namespace}\",pool=\"shop\",");
        Some(page.lines().filter_map(|line| line.strip_prefix(&pool)).map(str::to_owned).collect::<Vec<_>>())
    };
    eventually("the metric has the reason, and no other", || async {
        let ready: Vec<_> = series().await?.into_iter().filter(|line| line.contains("type=\"Ready\"")).collect();
        (ready == ["type=\"Ready\",status=\"False\",reason=\"UpstreamSilent\"} 1"]).then_some(())
    })
    .await;

    pods[0].behaviour.lock().upstream = seen(UpstreamState::Primary, "");
    pods[1].behaviour.lock().upstream = seen(UpstreamState::ReadOnly, "pg_is_in_recovery() is true");
    let message = shop.condition("UpstreamHealthy", "False/UpstreamReadOnly").await;
    assert!(message.contains("shop-1") && message.contains("pg_is_in_recovery() is true"), "{message}");
    shop.shares(&pods, &[3, 3]).await;

    pods[1].behaviour.lock().upstream = seen(UpstreamState::Primary, "");
    shop.condition("UpstreamHealthy", "True/TakesWrites").await;
    for reason in ["UpstreamReadOnly", "UpstreamSilent"] {
        let warnings = eventually("it is told in an event", || async {
            let events = shop.events(reason).await;
            (!events.is_empty()).then_some(events)
        })
        .await;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }
    shop.end().await;
    eventually("the series go with the pool", || async { series().await?.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_pod_that_cannot_mount_its_secret_is_told_with_the_keys_that_are_needed_until_it_can() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let keys = json!({"upstream": {"credentialsRef": {"usernameKey": "user", "passwordKey": "pgpass"}}});
    shop.change(keys).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(1).await;
    pods[0].mounts(false).await;
    let message = shop.condition("Proven", "False/FailedMount").await;
    assert!(message.contains("with the keys user and pgpass") && message.contains("describe pod shop-0"), "{message}");
    shop.condition("Ready", "False/FailedMount").await;
    pods[0].mounts(true).await;
    shop.condition("Proven", "True/AllProven").await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_database_that_refuses_more_and_clients_that_are_refused_are_told_once_each_until_it_is_over() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    let words = "too many connections for role \"shop\"".to_owned();
    pods[1].behaviour.lock().server_full = Some(ServerFull { refused_beyond: 2, at_most: 2, words });
    let message = shop.condition("UpstreamHealthy", "False/TooManyServerConnections").await;
    assert!(message.contains("shop-1") && message.contains("too many connections for role"), "{message}");
    shop.condition("Ready", "False/TooManyServerConnections").await;
    let reason = PoolerError::UnsupportedStartupParameter;
    // by the same pod, which is asked again soon: who had nothing to say is asked once a minute
    {
        let mut behaviour = pods[1].behaviour.lock();
        behaviour.server_full = None;
        behaviour.troubles = vec![TroubleSeen { reason, lines: 2, words: "search_path".to_owned() }];
    }
    shop.condition("UpstreamHealthy", "Unknown/NotObserved").await;
    let message = shop.condition("ClientsAccepted", "False/UnsupportedStartupParameter").await;
    assert!(message.contains("shop-1") && message.contains("(search_path)"), "{message}");
    pods[1].behaviour.lock().troubles.clear();
    shop.condition("ClientsAccepted", "True/NoneRefused").await;
    for reason in ["TooManyServerConnections", "UnsupportedStartupParameter"] {
        let events = eventually("it is told in an event", || async {
            let events = shop.events(reason).await;
            (!events.is_empty()).then_some(events)
        })
        .await;
        assert_eq!(events.len(), 1, "{events:?}");
    }
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_leak_is_told_as_what_the_agent_says_of_it_soon_after_prometheus_has_it_and_as_nothing_else_before() {
    let _turn = turn().await;
    let shop = Shop::new("operator", SHARED).await;
    let prometheus = Prometheus::start(&shop.cluster.namespace, &["shop-0"], "1s").await;
    let configuration = prometheus.configuration();
    let operator = Operator::start(&shop.cluster, "a", &["--tick-seconds", "1", "--prometheus-config", &configuration]);
    operator.leads().await;
    let pods = shop.pods(1).await;
    shop.condition("Proven", "True/AllProven").await;
    shop.condition("LeakDetected", "False/NoLeak").await;
    prometheus.leaked.store(1, Ordering::Relaxed);
    let message = shop.condition("LeakDetected", "True/HeldWithoutWork").await;
    assert!(message.contains("not known yet"), "{message}");

    let client = Some("10.1.2.3:4567".to_owned());
    pods[0].behaviour.lock().leaks = Some(LeakKinds { pinned: 1, client, ..LeakKinds::default() });
    let message = shop.condition("LeakDetected", "True/PinnedAfterCopy").await;
    assert!(message.contains("10.1.2.3:4567 of pod shop-0"), "{message}");
    pods[0].behaviour.lock().leaks = Some(LeakKinds { in_transaction: 1, ..LeakKinds::default() });
    let message = shop.condition("LeakDetected", "True/IdleInTransaction").await;
    assert!(!message.contains("pinned"), "{message}");
    prometheus.leaked.store(0, Ordering::Relaxed);
    pods[0].behaviour.lock().leaks = None;
    shop.condition("LeakDetected", "False/NoLeak").await;
    assert_eq!(shop.events("PinnedAfterCopy").await.len(), 1);
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_cannot_be_put_into_force_is_told_and_leaves_everything_as_it_is() {
    let _turn = turn().await;
    let shop = Shop::new("operator", "").await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    shop.condition("Injected", "Unknown/NoPods").await;

    shop.change(json!({"classRef": {"name": "gone"}})).await;
    let message = shop.condition("Accepted", "False/ClassNotFound").await;
    assert!(message.contains("spec.classRef.name"), "{message}");
    // what bounds the pool is its own before the class's
    shop.change(json!({"classRef": {"name": "production"}, "scaling": null})).await;
    shop.condition("Accepted", "True/Valid").await;
    let effective = shop.status().await.effective.expect("what is in force");
    assert_eq!((effective.min_allowed, effective.max_allowed), (20, 50), "the class came with the operator");

    shop.change(json!({"scaling": {"maxAllowed": 10}})).await;
    shop.condition("Accepted", "False/InvalidBounds").await;
    shop.change(json!({"scaling": {"maxAllowed": 60}, "budgetRef": {"name": "gone"}})).await;
    let message = shop.condition("Accepted", "False/BudgetNotFound").await;
    assert!(message.contains("spec.budgetRef.name"), "{message}");
    shop.change(json!({"budgetRef": null})).await;
    shop.condition("Accepted", "True/Valid").await;

    sleep(Duration::from_millis(1100)).await; // creation times have whole seconds
    let younger = pool("younger").replace("  workload", "  mode: Apply\n  workload");
    let younger: ConnectionPool = shop.cluster.create(&younger).await.expect("a second pool");
    eventually("the younger pool is told of the older", || async {
        let told = shop.pools().get_status(&younger.name_any()).await.ok()?.status?;
        let condition = told.conditions.into_iter().find(|condition| condition.type_ == "Accepted")?;
        (condition.reason == "SelectorOverlaps" && condition.message.contains("shop")).then_some(())
    })
    .await;
    shop.condition("Accepted", "True/Valid").await;
    shop.pools().delete("younger", &DeleteParams::default()).await.expect("deleted");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn pods_without_a_sidecar_are_counted_with_the_command_that_mends_it() {
    let _turn = turn().await;
    let shop = Shop::new("operator", "").await;
    let pods: Api<Pod> = shop.cluster.api();
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-5d4f", "uid": "u", "controller": true}]);
    let plain: Pod = object(json!({
        "metadata": {"name": "plain", "labels": {"app": "shop", "pod-template-hash": "5d4f"}, "ownerReferences": owner},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }));
    pods.create(&PostParams::default(), &plain).await.expect("a pod");
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let message = shop.condition("Injected", "False/PodsWithoutSidecar").await;
    assert!(message.contains("1 of 1 pods") && message.contains("rollout restart deployment/shop"), "{message}");
    assert_eq!(shop.events("PodsWithoutSidecar").await.len(), 1, "told once");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_cannot_change_in_a_running_pod_is_told_until_the_pods_are_new() {
    let _turn = turn().await;
    let mut shop = Shop::new("operator", SHARED).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let old = shop.pod("shop-old").await;
    shop.condition("PodsCurrent", "True/UpToDate").await;
    shop.change(json!({"sidecar": {"resources": {"limits": {"memory": "96Mi"}}}})).await;
    let message = shop.condition("PodsCurrent", "False/RestartRequired").await;
    assert!(message.contains("1 of 1 pods") && message.contains("delete them"), "{message}");
    shop.pool = shop.pools().get("shop").await.expect("the pool");
    let new = shop.pod("shop-new").await;
    eventually("the new pod is current", || async {
        shop.condition("PodsCurrent", "False/RestartRequired").await.contains("1 of 2 pods").then_some(())
    })
    .await;
    old.end().await;
    shop.condition("PodsCurrent", "True/UpToDate").await;
    new.end().await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn more_pods_than_connections_are_told_and_the_youngest_wait() {
    let _turn = turn().await;
    let shop = Shop::new("operator", "  scaling: {minAllowed: 1, maxAllowed: 2}\n").await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.condition("ScalingLimited", "True/TooManyPods").await;
    let message = shop.condition("Ready", "False/TooManyPods").await;
    assert!(message.contains("the 1 youngest have no connection"), "{message}");
    eventually("both connections are granted", || async {
        let grants = join_all(pods.iter().map(|pod| pod.grant("shop"))).await;
        let granted: u32 = grants.iter().flatten().map(|grant| grant.share).sum();
        (granted == 2).then_some(())
    })
    .await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn classes_that_were_edited_are_left_alone_and_budgets_say_that_no_ledger_is_kept() {
    let _turn = turn().await;
    let shop = Shop::new("operator", "").await;
    let classes: Api<ConnectionPoolClass> = Api::all(shop.cluster.client.clone());
    let edited = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPoolClass", "metadata": {"name": "staging"},
        "spec": {"scaling": {"minAllowed": 11}}});
    classes.patch("staging", &PatchParams::apply("tests").force(), &Patch::Apply(&edited)).await.expect("edited");
    let budgets: Api<ConnectionBudget> = Api::all(shop.cluster.client.clone());
    let name = shop.cluster.namespace.clone();
    let budget: ConnectionBudget = parse(&format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionBudget\nmetadata: {{name: {name}}}\n\
         spec: {{server: {{hosts: [pg], port: 5432}}, capacity: {{source: Fixed, connections: 200}}, reserved: {{connections: 3, percent: 5}}}}"
    ));
    budgets.create(&PostParams::default(), &budget).await.expect("a budget");
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let status = eventually("the budget is told of", || async { budgets.get_status(&name).await.ok()?.status }).await;
    assert_eq!(status.capacity, Some(190));
    let ledger = status.conditions.iter().find(|condition| condition.type_ == "LedgerActive").expect("the condition");
    assert_eq!(ledger.status, "False");
    for class in ["development", "production"] {
        eventually(class, || async { classes.get_opt(class).await.ok()? }).await;
    }
    let staging = classes.get("staging").await.expect("staging");
    assert_eq!(staging.spec.scaling.and_then(|scaling| scaling.min_allowed), Some(11), "never overwritten");
    budgets.delete(&name, &DeleteParams::default()).await.expect("deleted");
    classes.delete("staging", &DeleteParams::default()).await.expect("deleted");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn every_pod_of_ten_pools_of_a_hundred_gets_its_grant() {
    const POOLS: usize = 10;
    const PODS: usize = 100;
    let _turn = turn().await;
    let cluster = Cluster::new("operator", &json!({})).await;
    let mut all = Vec::new();
    for number in 0..POOLS {
        let yaml = pool_with(&format!("pool-{number}"), "  scaling: {maxAllowed: 400}\n");
        let yaml = yaml.replace("app: shop", &format!("app: shop-{number}"));
        let pool: ConnectionPool = cluster.create(&yaml).await.expect("a pool");
        all.push(pool);
    }
    stream::iter(all.iter().flat_map(|pool| (0..PODS).map(move |number| (pool, number))))
        .for_each_concurrent(8, |(pool, number)| {
            let (cluster, name) = (&cluster, format!("{}-{number}", pool.name_any()));
            async move {
                create(cluster, pool, &name).await;
            }
        })
        .await;
    // they are all there before anybody counts: without agents no share would ever be proven to have shrunk
    let operator = Operator::start(&cluster, "a", &["--tick-seconds", "5"]);
    operator.leads().await;
    let deadline = Instant::now() + Duration::from_mins(2);
    let pods: Api<Pod> = cluster.api();
    loop {
        let list = pods.list(&ListParams::default()).await.expect("pods");
        let granted = |pod: &Pod| {
            let pool = pod.labels().get("sluice.dev/pool").cloned().unwrap_or_default();
            grant_of(pod, &pool).is_some_and(|grant| grant.share > 0)
        };
        let waiting = list.items.iter().filter(|pod| !granted(pod)).count();
        if waiting == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{waiting} pods wait for their grants");
        sleep(Duration::from_millis(500)).await;
    }
    drop(operator);
    for pool in all {
        cluster.api::<ConnectionPool>().delete(&pool.name_any(), &DeleteParams::default()).await.expect("deleted");
    }
}
