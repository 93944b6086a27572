//! What people ask of a pool by the plugin, and what the operator makes of it.

use serde_json::json;

use super::{Operator, SHARED, Shop, release, turn};
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
