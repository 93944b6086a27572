//! What people ask of a pool by the plugin, and what the operator makes of it.

use futures::future::join_all;
use serde_json::json;

use super::{Operator, SHARED, Shop, pods::FakePod, release, turn};
use crate::{
    cluster::eventually,
    plugin::{Answer, Plugin},
};

/// A pool that is steered by the plugin.
struct Steered {
    shop: Shop,
    plugin: Plugin,
}

impl Steered {
    async fn new(spec: &str) -> Self {
        Self { shop: Shop::new("operator", spec).await, plugin: Plugin::new() }
    }

    /// `kubectl sluice VERB... shop ...`
    async fn run(&self, verb: &[&str], flags: &[&str]) -> Answer {
        let namespace = ["shop", "-n", self.shop.cluster.namespace.as_str()];
        self.plugin.run(&[verb, &namespace, flags].concat()).await
    }

    async fn rollout(&self, verb: &str, flags: &[&str]) -> Answer {
        self.run(&["rollout", verb], flags).await
    }

    /// The request that stands.
    async fn asked(&self) -> Option<String> {
        let pool = self.shop.pools().get("shop").await.expect("the pool");
        pool.metadata.annotations?.remove("sluice.dev/rollout")
    }
}

impl Shop {
    /// Waits until every pod is told this revision.
    async fn told_revisions(&self, pods: &[FakePod], wanted: u64) {
        eventually(&format!("every pod is told revision {wanted}"), || async {
            let told = join_all(pods.iter().map(|pod| pod.revision("shop"))).await;
            told.iter().all(|told| *told == Some(wanted)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_rollout_is_steered_by_the_plugin_and_every_request_is_answered_or_told_that_it_was_not() {
    let _turn = turn().await;
    let steered =
        Steered::new(&format!("{SHARED}  rollout: {{canary: {{steps: [{{setWeight: 30}}, {{pause: {{}}}}]}}}}\n"))
            .await;
    let shop = &steered.shop;
    let mut operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let _pods = shop.pods(3).await;
    shop.runs_stable(3).await;
    let created = eventually("a revision is told", || async { shop.events("RevisionCreated").await.pop() }).await;
    assert!(created.starts_with("revision 1 holds the settings of generation 1, changed by "), "{created}");
    for verb in ["promote", "abort"] {
        let nothing = steered.rollout(verb, &["--yes"]).await.ended(1);
        assert!(
            nothing.contains("nothing is being rolled out: revision 1 is the stable one; nothing was changed"),
            "{nothing}"
        );
    }
    let never = steered.rollout("undo", &["--yes"]).await.ended(1);
    assert!(never.contains("there is no revision before 1 to go back to; kept are 1"), "{never}");

    shop.change(json!({"health": {"queryWaitTimeoutSeconds": 7}})).await;
    shop.condition("Progressing", "Unknown/RolloutPaused").await;
    let changed = eventually("who changed what is told", || async { shop.events("SpecChanged").await.pop() }).await;
    assert!(changed.starts_with("generation 1 -> 2 by "), "{changed}");
    assert!(changed.ends_with(": health.queryWaitTimeoutSeconds unset -> 7"), "{changed}");
    let unasked = steered.rollout("promote", &[]).await.ended(1);
    assert!(unasked.contains("promote 2: revision 2 goes on") && unasked.contains("nothing was changed"), "{unasked}");
    let tried = steered.rollout("promote", &["--dry-run=server"]).await.ended(0);
    assert!(tried.contains("connectionpool.sluice.dev/shop asked: promote 2 (server dry run)"), "{tried}");
    assert_eq!(steered.asked().await, None, "nothing was written");
    let gone = steered.rollout("undo", &["9", "--yes"]).await.ended(1);
    assert!(gone.contains("there is no revision 9; kept are 1, 2") && gone.contains("nothing was changed"), "{gone}");

    // while nobody operates, requests stand and are not answered
    operator.kill();
    let late = steered.rollout("promote", &["--yes", "--timeout", "1s"]).await.ended(1);
    assert!(late.contains("not within 1s") && late.contains("the operator has not answered yet"), "{late}");
    let first = steered.asked().await.expect("asked");
    steered.rollout("promote", &["--yes", "--wait=false"]).await.ended(0);
    assert_eq!(steered.asked().await, Some(first.clone()), "the same is not asked twice");
    let words = ["rollout", "promote", "shop", "-n", shop.cluster.namespace.as_str(), "--yes", "--timeout", "30s"];
    let mut waiting = steered.plugin.start(&words, false);
    waiting.says("asked: promote 2").await;
    let other = steered.rollout("abort", &["--yes", "--wait=false"]).await.ended(0);
    assert!(other.contains(&format!("a request that the operator has not answered yet: {first}")), "{other}");
    assert_eq!(waiting.end().await, Some(1), "whoever waits for the other one is told");

    release(shop).await;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    shop.condition("Progressing", "False/RolloutAborted").await;
    let stuck = steered.rollout("status", &["--timeout", "20s"]).await.ended(1);
    assert!(stuck.contains("somebody took it back by abort"), "{stuck}");
    let event = eventually("who asked is told", || async { shop.events("RolloutCommand").await.pop() }).await;
    assert!(event.starts_with("abort 2: done") && event.contains("Z by "), "{event}");
    let history = steered.rollout("history", &[]).await.ended(0);
    assert!(history.lines().any(|line| line.starts_with("2 ") && line.contains("failed")), "{history}");
    let failed = steered.rollout("promote", &["--yes"]).await.ended(1);
    assert!(failed.contains("revision 2 has failed"), "{failed}");

    let again = steered.rollout("retry", &["--yes"]).await.ended(0);
    assert!(again.contains("retry 2: done"), "{again}");
    shop.condition("Progressing", "Unknown/RolloutPaused").await;
    steered.rollout("promote", &["--full", "--yes"]).await.ended(0);
    let through = steered.rollout("status", &["--timeout", "30s"]).await.ended(0);
    assert!(through.contains("Progressing=True/RolloutComplete"), "{through}");
    let back = steered.rollout("undo", &["--yes"]).await.ended(0);
    assert!(back.contains("undo 1: done"), "{back}");
    let through = steered.rollout("status", &["--timeout", "30s"]).await.ended(0);
    assert!(through.contains("Progressing=True/RolloutUndone"), "{through}");
    steered.shop.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_freeze_keeps_what_runs_until_its_end_and_says_until_when_why_and_by_whom() {
    let _turn = turn().await;
    let steered = Steered::new(SHARED).await;
    let shop = &steered.shop;
    let operator = Operator::start(&shop.cluster, "a", &[]);
    operator.leads().await;
    let pods = shop.pods(2).await;
    shop.runs_stable(2).await;
    shop.shares(&pods, &[3, 3]).await;
    for (flags, said) in [
        (&["--until", "1h"][..], "--reason"),
        (&["--until", "2020-01-01T00:00:00Z", "--reason", "the sale"], "is over"),
        (&["--until", "soon", "--reason", "the sale"], "write for instance"),
    ] {
        let refused = steered.run(&["freeze"], &[flags, &["--yes"]].concat()).await.ended(2);
        assert!(refused.contains(said), "{refused}");
    }
    let tried = steered.run(&["freeze"], &["--until", "1h", "--reason", "the sale", "--dry-run=server"]).await.ended(0);
    assert!(tried.contains("connectionpool.sluice.dev/shop frozen (server dry run)"), "{tried}");
    shop.condition("Paused", "False/NotPaused").await;

    let frozen = steered.run(&["freeze"], &["--until", "1h", "--reason", "the sale", "--yes"]).await.ended(0);
    assert!(frozen.contains("sluice.dev/freeze: until 20") && frozen.contains("the sale ("), "{frozen}");
    let message = shop.condition("Paused", "True/Frozen").await;
    assert!(message.contains("frozen until 20") && message.contains("the sale ("), "{message}");
    shop.condition("AbleToScale", "False/Frozen").await;
    eventually("it is told", || async { shop.events("Frozen").await.pop() }).await;
    shop.change(json!({"scaling": {"minAllowed": 8}, "health": {"queryWaitTimeoutSeconds": 7}})).await;
    eventually("the change is seen", || async {
        let pool = shop.pools().get("shop").await.ok()?;
        (pool.status?.observed_generation == pool.metadata.generation).then_some(())
    })
    .await;
    shop.shares(&pods, &[3, 3]).await;
    shop.told_revisions(&pods, 1).await;
    let why = steered.run(&["why"], &[]).await.ended(0);
    assert!(why.contains("kubectl sluice resume shop") && why.contains("the sale ("), "{why}");

    // another end takes the place of this one, and comes by itself
    let sooner = steered.run(&["freeze"], &["--until", "3s", "--reason", "the rest", "--yes"]).await.ended(0);
    assert!(sooner.contains("it takes the place of: frozen until 20"), "{sooner}");
    shop.condition("Paused", "False/NotPaused").await;
    shop.shares(&pods, &[4, 4]).await;
    shop.told_revisions(&pods, 2).await;

    steered.run(&["freeze"], &["--until", "1h", "--reason", "more", "--yes"]).await.ended(0);
    shop.condition("Paused", "True/Frozen").await;
    let thawed = steered.run(&["unfreeze"], &["--yes"]).await.ended(0);
    assert!(thawed.contains("sluice.dev/freeze is taken away (frozen until 20"), "{thawed}");
    shop.condition("Paused", "False/NotPaused").await;
    let again = steered.run(&["resume"], &["--yes"]).await.ended(0);
    assert!(again.contains("is neither paused nor frozen: nothing was changed"), "{again}");
    steered.shop.end().await;
}
