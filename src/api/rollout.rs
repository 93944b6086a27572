//! `spec.rollout`: how a change of the settings is rolled out, in the words of Argo Rollouts.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Annotation on a pool by which people steer its rollout: a verb (promote, promote-full, abort, retry, undo), the number of a
/// revision, and whatever tells one request from the next, as `promote 7 2026-11-30T18:00:00Z`.
pub const ROLLOUT_ANNOTATION: &str = "sluice.dev/rollout";

/// How a change of the settings is rolled out.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.analysis)").message("this version supports no analysis of rollouts; leave it out").field_path(".analysis"))]
pub struct RolloutSpec {
    /// Seconds without progress after which a revision counts as failed, and is rolled back by itself on every pod that took it.
    /// Pauses do not count. Default: 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86_400))]
    pub progress_deadline_seconds: Option<u32>,
    /// Revisions kept, beside those that pods run or that are wanted. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub revision_history_limit: Option<u32>,
    /// Inside a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blue_green: Option<BlueGreen>,
    /// Over the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// What decides whether it goes on. Not supported by this version, which refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<AnalysisSpec>,
}

/// Blue/green inside a pod.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlueGreen {
    /// Whether green takes over by itself once proven. Default: true. False: in the first pod green is started and proven, holds no
    /// server connection and gets no client, `Progressing` has the reason BlueGreenPause, and the other pods wait, until this becomes true. A change that
    /// PgBouncer takes over while it runs needs no green, and takes effect at once either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_promotion_enabled: Option<bool>,
    /// Seconds that blue stays warm. Default: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub scale_down_delay_seconds: Option<u32>,
    /// Seconds after which idle clients of blue are closed; 0: never. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub drain_timeout_seconds: Option<u32>,
}

/// Canary over the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.steps) || self.steps.filter(step, has(step.setWeight)).map(step, step.setWeight).isSorted()").message("weights never fall from step to step: no step takes pods back").field_path(".steps"))]
pub struct Canary {
    /// Pods that may be in change at once, on the way forward; the next ones change once these are proven. The way back waits for
    /// nothing. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_unavailable: Option<u32>,
    /// The steps, in order; behind the last one the rest of the pods follow. Default: one pod, 10 s, then the rest. An empty list:
    /// all pods follow at once, maxUnavailable at a time. Other steps begin the rollout in course anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub steps: Option<Vec<CanaryStep>>,
}

/// One step; exactly one field is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.setWeight), has(self.pause), has(self.analysis)].filter(x, x).size() == 1").message("a step has exactly one of setWeight, pause and analysis"),
    validation = Rule::new("!has(self.analysis)").message("this version supports no analysis of rollouts; leave it out").field_path(".analysis")
)]
pub struct CanaryStep {
    /// Percent of the pods that run the new revision, rounded up to whole pods; below 100 one of several keeps the old one. The only
    /// pod of a pool takes it with the first step: it has no canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub set_weight: Option<u32>,
    /// Waits, once the pods of the weight are proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Waits for the analysis. Not supported by this version, which refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<AnalysisStep>,
}

/// A pause.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("!has(self.duration) || duration(self.duration) <= duration('168h')").message("a pause lasts a week at most; without a duration it lasts until somebody promotes").field_path(".duration"))]
pub struct Pause {
    /// How long: 30s, 2m, 1h. Without it: until somebody promotes, by the annotation sluice.dev/rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), regex(pattern = "^[1-9][0-9]{0,5}[smh]$"))]
    pub duration: Option<String>,
}

impl Pause {
    /// How long, in seconds; None: until somebody promotes, or the schema would have refused it.
    pub fn seconds(&self) -> Option<u32> {
        let (number, unit) =
            self.duration.as_deref()?.split_at_checked(self.duration.as_ref()?.len().checked_sub(1)?)?;
        let unit_seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        number.parse::<u32>().ok().map(|number| number.saturating_mul(unit_seconds))
    }
}

/// Waits for the analysis of `rollout.analysis`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct AnalysisStep {}

/// What decides whether a rollout goes on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct AnalysisSpec {
    /// The metrics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub metrics: Vec<AnalysisMetric>,
}

/// One metric of an analysis.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisMetric {
    /// Name of the metric.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Failed measurements that are allowed.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub failure_limit: u32,
}
