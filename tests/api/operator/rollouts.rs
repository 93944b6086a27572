//! How a change of the settings goes over the pods, forward and back, by itself and as people ask for it.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use sluice::api::{RevisionStatus, RolloutStatus};

use super::{Operator, SHARED, Shop, pods::FakePod, prometheus::Prometheus, release, turn};
use crate::cluster::{eventually, within};

impl Shop {
    async fn rolling(rollout: &str) -> Self {
        Self::new("operator", &format!("{SHARED}  rollout: {{{rollout}}}\n")).await
    }

    /// Waits until so many pods are proven to run the stable revision. `Proven` is true of a pool without pods, too.
    pub(super) async fn runs_stable(&self, pods: usize) {
        eventually("the first revision is stable", || async {
            let status = self.status().await;
            let proven =
                status.pods.is_some_and(|counts| usize::try_from(counts.proven).is_ok_and(|proven| proven == pods));
            (proven && status.revision?.stable_hash.is_some()).then_some(())
        })
        .await;
    }

    /// Another value of a setting, and with it another content of a revision.
    async fn set_timeout(&self, seconds: u32) {
        self.change(json!({"health": {"queryWaitTimeoutSeconds": seconds}})).await;
    }

    /// Asks something of the rollout.
    async fn ask(&self, command: &str) {
        let patch = json!({"metadata": {"annotations": {"sluice.dev/rollout": command}}});
        self.pools().patch("shop", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("annotated");
    }

    /// Waits until the pods are told these revisions, in any order.
    async fn revisions(&self, pods: &[FakePod], wanted: &[u64]) {
        eventually(&format!("the pods are told {wanted:?}"), || async {
            let mut told: Vec<u64> =
                join_all(pods.iter().map(|pod| pod.revision("shop"))).await.into_iter().flatten().collect();
            told.sort_unstable();
            (told == wanted).then_some(())
        })
        .await;
    }

    /// Waits until a pod is told this revision, and has Prometheus know what it does with it.
    async fn canary(&self, pods: &[FakePod], prometheus: &Prometheus, revision: u64, slower: u64) -> String {
        let canary = eventually("a pod is told it", || async {
            let told = join_all(pods.iter().map(|pod| pod.revision("shop"))).await;
            told.iter().position(|told| *told == Some(revision))
        })
        .await;
        prometheus.runs(&pods[canary].name, revision, slower);
        pods[canary].name.clone()
    }

    async fn rollout(&self) -> (RevisionStatus, RolloutStatus) {
        let status = self.status().await;
        (status.revision.expect("revisions"), status.rollout.expect("a rollout"))
    }

    /// The operator dies, and another takes over at once.
    async fn another(&self, operator: Operator) -> Operator {
        self.another_with(operator, &[]).await
    }

    /// The same with arguments.
    async fn another_with(&self, mut operator: Operator, arguments: &[&str]) -> Operator {
        operator.kill();
        // with it goes its log, which another of its name begins anew
        drop(operator);
        release(self).await;
        let operator = Operator::start(&self.cluster, "a", arguments);
        operator.leads().await;
        operator
    }
}

fn all_of(pods: &[FakePod], dead: Option<u32>) {
    for pod in pods {
        pod.behaviour.lock().dead = dead;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_revision_waits_on_its_canary_until_somebody_promotes_it_whoever_operates_meanwhile() {
    let _turn = turn().await;
    let shop = Shop::rolling("canary: {steps: [{setWeight: 25}, {pause: {}}]}").await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let mut pods = shop.pods(3).await;
    shop.runs_stable(3).await;
    shop.set_timeout(7).await;
    let message = shop.condition("Progressing", "Unknown/RolloutPaused").await;
    assert!(message.contains("sluice.dev/rollout='promote 2 in step 1'"), "{message}");
    shop.condition("Paused", "True/RolloutPaused").await;
    shop.revisions(&pods, &[1, 1, 2]).await;
    let (revision, rollout) = shop.rollout().await;
    assert_eq!((revision.stable, revision.updated, rollout.current_step_index), (1, 2, Some(1)));

    let operator = shop.another(operator).await;
    pods.push(shop.pod("late").await);
    shop.revisions(&pods, &[1, 1, 1, 2]).await;
    shop.condition("Proven", "True/AllProven").await;
    shop.revisions(&pods, &[1, 1, 1, 2]).await;
    shop.ask("promote 1").await;
    let refused = eventually("it is refused", || async { shop.rollout().await.1.last_command_outcome }).await;
    assert!(refused.contains("revision 2 is being rolled out"), "{refused}");
    shop.ask("promote 2").await;
    shop.revisions(&pods, &[2, 2, 2, 2]).await;
    shop.condition("Progressing", "True/RolloutComplete").await;
    let (revision, rollout) = shop.rollout().await;
    assert_eq!((revision.stable, rollout.last_command_outcome.as_deref()), (2, Some("Done")));
    for reason in ["RolloutPaused", "RolloutCommand", "RolloutCommandRefused", "RolloutComplete"] {
        eventually(reason, || async { shop.events(reason).await.pop() }).await;
    }
    let metrics = operator.get("/metrics").await.expect("metrics");
    assert!(metrics.contains("sluice_operator_rollouts_total{reason=\"RolloutComplete\"} 1"), "counted once");
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_comes_no_further_goes_back_by_itself_and_is_not_tried_again_until_it_is_asked_for() {
    let _turn = turn().await;
    let shop = Shop::rolling("progressDeadlineSeconds: 10, canary: {maxUnavailable: 2, steps: []}").await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.runs_stable(3).await;
    all_of(&pods, Some(7));
    shop.set_timeout(7).await;
    shop.revisions(&pods, &[1, 2, 2]).await;
    let message = shop.condition("Progressing", "False/ProgressDeadlineExceeded").await;
    assert!(message.contains("0 of 3 pods"), "{message}");
    shop.revisions(&pods, &[1, 1, 1]).await;
    let failure = eventually("the last pod is back", || async {
        shop.rollout().await.1.failure.filter(|failure| failure.rolled_back_at.is_some())
    })
    .await;
    assert_eq!(failure.revision, 2);
    let (revision, _) = shop.rollout().await;
    assert_eq!(revision.failed_hashes, [revision.updated_hash.expect("a hash")]);
    for reason in ["ProgressDeadlineExceeded", "RollbackComplete"] {
        eventually(reason, || async { shop.events(reason).await.pop() }).await;
    }

    // neither another operator tries it, nor a change of what is no setting, nor a change there and back
    let operator = shop.another(operator).await;
    shop.change(json!({"scaling": {"minAllowed": 7}})).await;
    eventually("the change is seen", || async { (shop.status().await.observed_generation == Some(3)).then_some(()) })
        .await;
    shop.revisions(&pods, &[1, 1, 1]).await;
    shop.set_timeout(8).await;
    shop.revisions(&pods, &[3, 3, 3]).await;
    shop.condition("Progressing", "True/RolloutComplete").await;
    shop.set_timeout(7).await;
    let message = shop.condition("Progressing", "False/ProgressDeadlineExceeded").await;
    assert!(message.contains("retry 2"), "{message}");
    shop.revisions(&pods, &[3, 3, 3]).await;
    all_of(&pods, None);
    shop.ask("retry 2").await;
    shop.revisions(&pods, &[2, 2, 2]).await;
    shop.condition("Progressing", "True/RolloutComplete").await;
    assert!(shop.rollout().await.0.failed_hashes.is_empty());
    drop(operator);
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_failed_is_tried_again_once_when_all_pods_are_given_another_secret_whoever_operates_then() {
    let _turn = turn().await;
    let shop = Shop::rolling("progressDeadlineSeconds: 10, canary: {steps: []}").await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    let give = |pods: &[FakePod], mark: &str| {
        for pod in pods {
            pod.behaviour.lock().reference_mark = Some(format!("{mark}-{}", pod.name));
        }
    };
    give(&pods, "old");
    shop.runs_stable(2).await;
    all_of(&pods, Some(7));
    shop.set_timeout(7).await;
    shop.revisions(&pods, &[1, 2]).await;
    let message = shop.condition("Progressing", "False/ProgressDeadlineExceeded").await;
    assert!(message.contains("or what its pods are given by reference"), "{message}");
    shop.revisions(&pods, &[1, 1]).await;
    let failure = eventually("the last pod is back", || async {
        shop.rollout().await.1.failure.filter(|failure| failure.rolled_back_at.is_some())
    })
    .await;
    assert_eq!(failure.reference_marks.len(), 2, "{failure:?}");

    // the Secret was mended, and has reached one pod alone; another operator takes over meanwhile
    give(&pods[..1], "new");
    let operator = shop.another(operator).await;
    shop.condition("Progressing", "False/ProgressDeadlineExceeded").await;
    assert!(shop.events("RolloutRetried").await.is_empty(), "half of the pods would fail by the old one");
    all_of(&pods, None);
    give(&pods, "new");
    // agents of which nothing is awaited are asked once a minute
    let told = within(Duration::from_secs(150), "it is tried again", || async {
        let told = join_all(pods.iter().map(|pod| pod.revision("shop"))).await;
        told.iter().all(|told| *told == Some(2)).then_some(())
    });
    told.await;
    shop.condition("Progressing", "True/RolloutComplete").await;
    let note = eventually("an event", || async { shop.events("RolloutRetried").await.pop() }).await;
    assert!(note.contains("which failed (ProgressDeadlineExceeded)") && !note.contains("new-"), "{note}");
    let (revision, rollout) = shop.rollout().await;
    assert_eq!((revision.stable, revision.failed_hashes.len(), rollout.failure), (2, 0, None));
    drop(operator);
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_change_in_mid_rollout_takes_the_place_of_the_one_before_and_an_abort_takes_it_back() {
    let _turn = turn().await;
    let shop = Shop::rolling("canary: {maxUnavailable: 2, steps: [{setWeight: 60}, {pause: {}}]}").await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.runs_stable(3).await;
    all_of(&pods, Some(7));
    shop.set_timeout(7).await;
    shop.revisions(&pods, &[1, 2, 2]).await;
    shop.set_timeout(8).await;
    shop.revisions(&pods, &[1, 3, 3]).await;
    shop.condition("Progressing", "Unknown/RolloutPaused").await;
    let (revision, _) = shop.rollout().await;
    assert_eq!((revision.stable, revision.updated), (1, 3));
    assert!(revision.failed_hashes.is_empty(), "who was overtaken has not failed");

    shop.ask("abort 3").await;
    shop.revisions(&pods, &[1, 1, 1]).await;
    let message = shop.condition("Progressing", "False/RolloutAborted").await;
    assert!(message.contains("retry 3"), "{message}");
    // back to what runs is no rollout, and nothing new
    shop.change(json!({"health": null})).await;
    shop.condition("Progressing", "True/RolloutComplete").await;
    let objects: Api<ControllerRevision> = shop.cluster.api();
    assert_eq!(objects.list(&ListParams::default()).await.expect("revisions").items.len(), 3);
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn an_undo_lasts_until_the_spec_changes_and_revisions_that_people_change_by_hand_are_mended_or_left_aside() {
    let _turn = turn().await;
    let shop = Shop::rolling("revisionHistoryLimit: 2, canary: {steps: []}").await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    shop.runs_stable(2).await;
    for (timeout, number) in [(7, 2), (8, 3)] {
        shop.set_timeout(timeout).await;
        shop.revisions(&pods, &[number, number]).await;
        shop.condition("Progressing", "True/RolloutComplete").await;
    }
    shop.ask("undo 1").await;
    let refused = eventually("it is refused", || async { shop.rollout().await.1.last_command_outcome }).await;
    assert!(refused.contains("there are 2, 3"), "the history has an end: {refused}");
    shop.ask("undo 2").await;
    shop.revisions(&pods, &[2, 2]).await;
    let message = shop.condition("Progressing", "True/RolloutUndone").await;
    assert!(message.contains("instead of revision 3"), "{message}");

    let objects: Api<ControllerRevision> = shop.cluster.api();
    let other = json!({"data": {"settings": {"poolMode": "Session"}}});
    let refused = objects.patch("shop-2", &PatchParams::default(), &Patch::Merge(&other)).await;
    assert!(refused.is_err(), "what a revision says cannot be changed");
    objects.delete("shop-2", &DeleteParams::default()).await.expect("deleted");
    let kept = eventually("it is kept again", || async { objects.get_opt("shop-2").await.ok()? }).await;
    assert_eq!(kept.revision, 2);
    objects.patch("shop-2", &PatchParams::default(), &Patch::Merge(&json!({"revision": 9}))).await.expect("renumbered");
    // a status of which words alone have changed is written after a minute
    within(Duration::from_secs(150), "it is told of", || async {
        let condition = shop.condition("Progressing", "True/RolloutUndone").await;
        condition.contains("ControllerRevision shop-2 is not what was written").then_some(())
    })
    .await;
    shop.revisions(&pods, &[2, 2]).await;
    shop.set_timeout(9).await;
    shop.revisions(&pods, &[10, 10]).await;
    shop.condition("Progressing", "True/RolloutComplete").await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_canary_is_judged_by_what_prometheus_scraped_and_goes_back_where_it_is_worse_or_where_nobody_can_know() {
    let _turn = turn().await;
    let judged =
        "progressDeadlineSeconds: 60, analysis: {metrics: [{name: TransactionTime}, {name: Errors, limitCount: 3}]}";
    let shop = Shop::rolling(judged).await;
    let names = ["shop-0", "shop-1", "shop-2"];
    let mut prometheus = Prometheus::start(&shop.cluster.namespace, &names, "1s").await;
    let configuration = prometheus.configuration();
    let operator = Operator::start(&shop.cluster, "a", &["--tick-seconds", "1", "--prometheus-config", &configuration]);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.runs_stable(3).await;

    shop.set_timeout(7).await;
    let canary = shop.canary(&pods, &prometheus, 2, 3).await;
    let message = shop.condition("Progressing", "True/Analysing").await;
    assert!(message.contains("against the other pods: not decided so far"), "{message}");
    let message = shop.condition("Progressing", "False/AnalysisFailed").await;
    assert!(
        message.contains(&format!("worse on {canary}: TransactionTime: ")),
        "which metric, on which pods: {message}"
    );
    shop.revisions(&pods, &[1, 1, 1]).await;
    prometheus.runs(&canary, 1, 1);
    let note = eventually("an event", || async { shop.events("AnalysisFailed").await.pop() }).await;
    assert!(note.contains("TransactionTime"), "{note}");
    assert!(operator.log().contains(r#"\"track\":\"Canary\""#), "what it rests on is in the log");

    // another one that is as good goes over all pods, by itself
    shop.set_timeout(8).await;
    shop.canary(&pods, &prometheus, 3, 1).await;
    shop.revisions(&pods, &[3, 3, 3]).await;
    shop.condition("Progressing", "True/RolloutComplete").await;
    assert_eq!(shop.rollout().await.0.stable, 3);

    // and what nobody can know is held on its canary, and goes back when the time is over
    for name in names {
        prometheus.runs(name, 3, 1);
    }
    prometheus.end();
    shop.set_timeout(9).await;
    shop.revisions(&pods, &[3, 3, 4]).await;
    let message = shop.condition("Progressing", "True/Analysing").await;
    assert!(message.contains("not decided so far"), "{message}");
    let message = within(Duration::from_mins(2), "it goes back", || async {
        let condition =
            shop.status().await.conditions.into_iter().find(|condition| condition.type_ == "Progressing")?;
        (condition.reason == "AnalysisInconclusive").then_some(condition.message)
    })
    .await;
    assert!(message.contains("does not say that it is worse") && message.contains("Prometheus"), "{message}");
    shop.revisions(&pods, &[3, 3, 3]).await;
    shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn what_was_promoted_and_is_worse_afterwards_goes_back_from_every_pod_and_what_nobody_can_know_stays() {
    let _turn = turn().await;
    // in the pause the pods that keep revision 1 make the past that they are compared with
    let judged = "progressDeadlineSeconds: 60, postPromotionAnalysis: {metrics: [{name: TransactionTime}]}, \
                  canary: {maxUnavailable: 3, steps: [{setWeight: 30}, {pause: {}}]}";
    let shop = Shop::rolling(judged).await;
    let names = ["shop-0", "shop-1", "shop-2"];
    let mut prometheus = Prometheus::start(&shop.cluster.namespace, &names, "1s").await;
    let configuration = prometheus.configuration();
    let arguments = ["--tick-seconds", "1", "--prometheus-config", &configuration];
    let operator = Operator::start(&shop.cluster, "a", &arguments);
    operator.leads().await;
    let pods = shop.pods(3).await;
    shop.runs_stable(3).await;
    let objects: Api<ControllerRevision> = shop.cluster.api();

    shop.set_timeout(7).await;
    let canary = shop.canary(&pods, &prometheus, 2, 1).await;
    for name in names.iter().filter(|name| **name != canary) {
        prometheus.has_scraped(name, 1, 40).await;
    }
    shop.ask("promote 2").await;
    within(Duration::from_mins(1), "all pods take it", || async {
        let told = join_all(pods.iter().map(|pod| pod.revision("shop"))).await;
        told.iter().all(|told| *told == Some(2)).then_some(())
    })
    .await;
    for name in names {
        prometheus.runs(name, 2, 3);
    }
    let message = shop.condition("Progressing", "True/PostPromotionAnalysing").await;
    assert!(message.contains("each against its own past on revision 1"), "{message}");
    let (revision, rollout) = shop.rollout().await;
    let promoted = rollout.post_promotion.expect("it is remembered");
    assert_eq!((revision.stable, promoted.revision, promoted.from, promoted.outcome), (2, 2, 1, None));
    eventually("it was promoted", || async { shop.events("RolloutComplete").await.pop() }).await;

    // whoever takes it over in the middle of it goes on from the status, and finds the past in Prometheus
    let operator = shop.another_with(operator, &arguments).await;
    let message = within(Duration::from_mins(1), "it goes back", || async {
        let condition =
            shop.status().await.conditions.into_iter().find(|condition| condition.type_ == "Progressing")?;
        (condition.reason == "AnalysisFailed").then_some(condition.message)
    })
    .await;
    assert!(
        message.contains("after its promotion: worse on shop-0, shop-1, shop-2: TransactionTime: "),
        "which metric, on which pods: {message}"
    );
    shop.revisions(&pods, &[1, 1, 1]).await;
    for name in names {
        prometheus.runs(name, 1, 1);
    }
    let (revision, rollout) = shop.rollout().await;
    assert_eq!((revision.stable, rollout.post_promotion), (1, None), "new pods get the one before");
    assert_eq!(revision.failed_hashes, [revision.updated_hash.expect("a hash")]);
    let note = eventually("an event", || async { shop.events("AnalysisFailed").await.pop() }).await;
    assert!(note.contains("TransactionTime"), "{note}");
    eventually("the last pod is back", || async { shop.events("RollbackComplete").await.pop() }).await;
    assert!(operator.log().contains(r#"\"track\":\"Canary\""#), "what it rests on is in the log");

    // and what nobody can know stays, and says so
    prometheus.end();
    shop.set_timeout(8).await;
    shop.condition("Progressing", "Unknown/RolloutPaused").await;
    shop.ask("promote 3").await;
    let message = within(Duration::from_mins(3), "it is judged no longer", || async {
        let status = shop.status().await;
        let condition = status.conditions.into_iter().find(|condition| condition.type_ == "Progressing")?;
        let is_through = condition.reason == "RolloutComplete" && status.revision?.stable == 3;
        is_through.then_some(condition.message)
    })
    .await;
    assert!(message.contains("nothing could be known of it after its promotion, and it stays"), "{message}");
    shop.revisions(&pods, &[3, 3, 3]).await;
    eventually("an event", || async { shop.events("PostPromotionInconclusive").await.pop() }).await;
    let kept = objects.list(&ListParams::default()).await.expect("revisions").items.len();
    assert_eq!(kept, 3);
    drop(operator);
    shop.end().await;
}
