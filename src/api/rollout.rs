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
#[x_kube(
    validation = Rule::new("!has(self.progressDeadlineSeconds) || !has(self.analysis) || !has(self.analysis.plannedExposureSeconds) || (has(self.canary) && has(self.canary.steps) && self.canary.steps.exists(step, has(step.pause))) || self.progressDeadlineSeconds >= self.analysis.plannedExposureSeconds + 15").message("is over before analysis can know, which takes its plannedExposureSeconds and 15 s at the least: set it to that sum or more, or pause before the analysis in canary.steps").field_path(".progressDeadlineSeconds"),
    validation = Rule::new("!has(self.progressDeadlineSeconds) || !has(self.postPromotionAnalysis) || !has(self.postPromotionAnalysis.plannedExposureSeconds) || self.progressDeadlineSeconds >= self.postPromotionAnalysis.plannedExposureSeconds + 15").message("is over before postPromotionAnalysis can know, which takes its plannedExposureSeconds and 15 s at the least: set it to that sum or more").field_path(".progressDeadlineSeconds")
)]
pub struct RolloutSpec {
    /// Seconds without progress after which a revision counts as failed, and is rolled back by itself on every pod that took it.
    /// Pauses do not count. An analysis has to be able to know before: its `plannedExposureSeconds` and 15 s, less the pauses in which it
    /// judges already. Default: 600.
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
    /// What decides whether it goes on: the canary's live metrics. A revision that is worse goes back from every pod at once, in every
    /// step; one that is not proven goes back when the deadline is over. Where no step waits for it, it is waited for behind the last
    /// step, and without `canary.steps` on one pod, in place of the 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<AnalysisSpec>,
    /// What is judged for a while more once the revision runs on all pods and is promoted: the metrics of all pods, against their own past
    /// on the revision before. A revision that is worse goes back from every pod at once; one of which nothing can be known stays. It is
    /// judged for `plannedExposureSeconds`, and for `progressDeadlineSeconds` at most. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_promotion_analysis: Option<AnalysisSpec>,
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
    /// The steps, in order; behind the last one the rest of the pods follow. Default: one pod, 10 s or the analysis, then the rest. An
    /// empty list: all pods follow at once, maxUnavailable at a time. Other steps begin the rollout in course anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub steps: Option<Vec<CanaryStep>>,
}

/// One step; exactly one field is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.setWeight), has(self.pause), has(self.analysis)].filter(x, x).size() == 1").message("a step has exactly one of setWeight, pause and analysis"))]
pub struct CanaryStep {
    /// Percent of the pods that run the new revision, rounded up to whole pods; below 100 one of several keeps the old one. The only
    /// pod of a pool takes it with the first step: it has no canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub set_weight: Option<u32>,
    /// Waits, once the pods of the weight are proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Waits until `rollout.analysis` has found no harm.
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

/// What decides whether a rollout goes on, or whether it stays. Of `postPromotionAnalysis` the canary are all pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.metrics) && self.metrics.size() > 0").message("an analysis without a metric would promote anything; name at least one, such as TransactionTime").field_path(".metrics"))]
pub struct AnalysisSpec {
    /// The metrics: at least one. The worst of them decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub metrics: Vec<AnalysisMetric>,
    /// Transactions that the canary has to finish before anything is found harmless: no errors without traffic prove nothing. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub min_transactions: Option<u32>,
    /// Seconds of samples after which a metric that is not proven harmless passes if its figure as it stands is tolerated. Default: 30,
    /// or six scrapes of Prometheus where that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub planned_exposure_seconds: Option<u32>,
    /// Seconds of samples after which a metric that is still undecided is not proven, and the revision goes back. Default: 180, or 24 scrapes
    /// of Prometheus where that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub max_exposure_seconds: Option<u32>,
}

/// One metric of an analysis: one that Sluice measures, or one of your own by a query.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.query) || self.name in ['TransactionTime', 'WaitTime', 'Errors', 'LongestWait', 'LoginFailures', 'ClientsCut']").message("unknown metric: known are TransactionTime, WaitTime, Errors, LongestWait, LoginFailures, ClientsCut; one of your own has a query").field_path(".name"),
    validation = Rule::new("!has(self.query) || !(self.name in ['TransactionTime', 'WaitTime', 'Errors', 'LongestWait', 'LoginFailures', 'ClientsCut'])").message("a metric that Sluice measures has no query; give your own another name").field_path(".query"),
    validation = Rule::new("has(self.query) == (has(self.successCondition) || has(self.failureCondition))").message("a metric of your own has a query and a successCondition, a failureCondition or both; one that Sluice measures has neither"),
    validation = Rule::new("!has(self.query) || !(has(self.compare) || has(self.limitMilliseconds) || has(self.limitCount))").message("compare, limitMilliseconds and limitCount are for metrics that Sluice measures; one of your own has conditions")
)]
pub struct AnalysisMetric {
    /// TransactionTime, WaitTime, Errors, LongestWait, LoginFailures, ClientsCut, or a name of your own.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Whether the canary is compared with the other pods: TransactionTime, WaitTime and Errors alone. Default: true for these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<bool>,
    /// Fails above: of TransactionTime and WaitTime the 95 % quantile of the canary's means between two scrapes, of LongestWait each sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400_000))]
    pub limit_milliseconds: Option<u32>,
    /// Fails above this many on all canary pods together: Errors, LoginFailures, ClientsCut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub limit_count: Option<u32>,
    /// PromQL of your own that yields one series. `$revision` and `$stableRevision` in it are the numbers of the two revisions,
    /// `$canaryPods` is a regular expression of the names of the pods that took the new one. Only namespaces that the operator's
    /// configuration of the server allows may have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub query: Option<String>,
    /// A measurement for which this holds is a success: `result < 0.05`. Comparisons of `result` with numbers, joined by `&&`, `||`, `!` and
    /// parentheses. Where in it something is wrong, `Accepted` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[ -~]*$"))]
    pub success_condition: Option<String>,
    /// A measurement for which this holds is a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[ -~]*$"))]
    pub failure_condition: Option<String>,
    /// Failed measurements that are allowed: LongestWait and metrics of your own. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub failure_limit: Option<u32>,
}
