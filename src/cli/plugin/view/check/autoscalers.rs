//! VerticalPodAutoscalers: whether one sizes the pooler's container behind Sluice's back.

use serde_json::Value;

use super::Finding;
use crate::{cli::plugin::view::NotRead, contract::names::SIDECAR_CONTAINER};

/// What was found of the VerticalPodAutoscalers; none where the cluster has no such kind.
pub fn findings(autoscalers: Result<Option<&[Value]>, &NotRead>) -> Vec<Finding> {
    let autoscalers = match autoscalers {
        Err(not_read) => return vec![Finding::not_read(not_read)],
        Ok(None) => return vec![Finding::ok("the cluster has no VerticalPodAutoscaler")],
        Ok(Some(autoscalers)) => autoscalers,
    };
    let troubled: Vec<Finding> =
        autoscalers.iter().filter(|autoscaler| sizes_sidecar(autoscaler)).map(finding).collect();
    if troubled.is_empty() {
        return vec![Finding::ok(format!(
            "none of {} VerticalPodAutoscalers sizes the container {SIDECAR_CONTAINER}",
            autoscalers.len()
        ))];
    }
    troubled
}

/// Whether it has a recommendation for the sidecar, and neither its policies nor its mode keep it from following that.
fn sizes_sidecar(autoscaler: &Value) -> bool {
    let recommended = autoscaler["status"]["recommendation"]["containerRecommendations"].as_array();
    let recommended =
        recommended.into_iter().flatten().any(|container| container["containerName"] == SIDECAR_CONTAINER);
    if !recommended || autoscaler["spec"]["updatePolicy"]["updateMode"] == "Off" {
        return false;
    }
    let policies = autoscaler["spec"]["resourcePolicy"]["containerPolicies"].as_array();
    let of = |name: &str| policies.into_iter().flatten().find(|policy| policy["containerName"] == name);
    of(SIDECAR_CONTAINER).or_else(|| of("*")).is_none_or(|policy| policy["mode"] != "Off")
}

fn finding(autoscaler: &Value) -> Finding {
    let text = |field: &str| autoscaler["metadata"][field].as_str().unwrap_or_default();
    Finding::warning(
        format!(
            "the VerticalPodAutoscaler {}/{} sizes the container {SIDECAR_CONTAINER}: it evicts pods for it, and its memory is not what \
             Sluice counts with",
            text("namespace"),
            text("name")
        ),
        format!(
            "say in it resourcePolicy: {{containerPolicies: [{{containerName: {SIDECAR_CONTAINER}, mode: \"Off\"}}]}}: \
             docs/injection.md#where-the-namespace-bounds-what-containers-ask-for"
        ),
    )
}
