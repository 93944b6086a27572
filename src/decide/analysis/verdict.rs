//! What an analysis says: of each metric and of the whole, with a reason from one vocabulary and in words with values.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The three answers. Ordered by precedence: the largest of all metrics is that of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// No harm was found with enough exposure.
    Pass,
    /// Nothing is decided: hold, and say why.
    Inconclusive,
    /// Worse: go back.
    Fail,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VerdictReason {
    /// Pass: proven to be no worse than the harmful ratio.
    ProvenHarmless,
    /// Pass: the planned exposure is over and the figure is within what is tolerated. No proof that the two are equal.
    NoHarmFound,
    /// Fail: the canary is slower than the other pods, or than it was before where it is the only pod.
    SlowerThanStable,
    /// Fail: more seconds with errors than on the other pods.
    MoreErrorsThanStable,
    /// Fail: a limit is exceeded on the canary and not on the other pods.
    LimitExceeded,
    /// Fail: the failure condition held, or the success condition did not, more often than is allowed.
    ConditionFailed,
    /// Inconclusive: no pod runs the canary yet, or only since a moment.
    WarmingUp,
    /// Inconclusive: no sample, or none for too long.
    NoData,
    /// Inconclusive: NaN, an infinity, or a figure below zero.
    NotANumber,
    /// Inconclusive: a pod occurs twice, or a query returned several series.
    SeveralSeries,
    /// Inconclusive: the canary has no transactions.
    NoTraffic,
    /// Inconclusive: nothing to compare with.
    NoBaseline,
    /// Inconclusive: too few seconds or transactions so far.
    TooLittleExposure,
    /// Inconclusive: enough exposure to pass, but neither proven harmless nor proven worse so far.
    Undecided,
    /// Inconclusive: a limit is exceeded, on the other pods too: not the canary's doing.
    StableExceedsToo,
    /// Inconclusive: the line of samples cannot be read; `sluice judge` alone.
    UnreadableLine,
    /// Inconclusive for good: the longest exposure, or the deadline, is over.
    NotProven,
}

/// What the figures of a comparison are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Against {
    /// The other pods at the same seconds, and how each differed from the others before the change.
    OtherPodsAndPast,
    /// The other pods at the same seconds; how the pods differ anyway is estimated. Weaker.
    OtherPods,
    /// The canary's own past: no other pod runs the revision before. Weaker, because load changes too.
    OwnPast,
}

/// How much worse, and how sure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The canary's figure as a ratio to what it would be without the change.
    pub ratio: f64,
    /// Lower end of the 95 % interval of the ratio at this moment.
    pub ratio_low: f64,
    /// Upper end.
    pub ratio_high: f64,
    /// How many times likelier what was seen is if the canary is worse than if nothing changed. Fails at 1 / false alarm probability of the metric.
    pub evidence: f64,
    /// Seconds compared.
    pub seconds: f64,
    /// With what.
    pub against: Against,
}

/// Of one metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricVerdict {
    /// Name of the metric.
    pub name: String,
    /// The answer.
    pub verdict: Outcome,
    /// Why.
    pub reason: VerdictReason,
    /// In words, with values.
    pub message: String,
    /// Where something was compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

/// Of the whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutVerdict {
    /// The answer: Fail of any metric, else Inconclusive of any, else Pass.
    pub verdict: Outcome,
    /// Why: that of the metric which decides.
    pub reason: VerdictReason,
    /// In words, with values.
    pub message: String,
    /// Whether waiting cannot change it for the better: Pass, Fail, and Inconclusive at the end.
    pub is_final: bool,
    /// Of each metric, in the order of the settings; of one that is compared and limited, both.
    pub metrics: Vec<MetricVerdict>,
}
