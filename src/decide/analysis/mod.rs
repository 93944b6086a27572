//! PURE: whether a canary is worse than the pods that still run the revision before.
//!
//! An [`Analysis`] is the state of one rollout. At each look it takes what is known of the pods ([`Look`]) and returns a
//! [`RolloutVerdict`]: of each metric and of the whole **Pass**, **Fail** or **Inconclusive**, with a reason and in words. Nothing here
//! reads a clock: the same looks give the same verdicts in the operator, in `sluice judge` and in a test.
//!
//! - A Fail stays one. A Pass is one as long as samples come; it becomes a Fail when later ones are worse.
//! - Whoever has no data has no verdict: absent figures, NaN, several series and too little traffic are Inconclusive, each with its reason.
//!   They neither promote nor roll back; when the longest exposure or the deadline is over, the reason becomes `NotProven`.
//! - Fail of any metric goes before Inconclusive of any, and that before Pass.
//! - A new revision is a new [`Analysis`].
//!
//! | file | what it judges |
//! |---|---|
//! | [`comparison`] | times of the canary against those of the other pods, before and since |
//! | [`errors`] | seconds with errors against those of the other pods |
//! | [`limit`] | what may not be exceeded at all |
//! | [`measured`] | the user's own metrics, by conditions |
//!
//! [`RolloutAnalysis`] is what a pool's spec asks for, [`LiveAnalysis`] the analysis of a rollout in course, or of what was promoted, by what
//! Prometheus scraped.
//!
//! ```
//! use sluice::decide::analysis::{Analysis, AnalysisSettings, SampledFigure, JudgedMetric, Look, Outcome, PodInterval, Track};
//!
//! let mut analysis = Analysis::new(AnalysisSettings::new(vec![JudgedMetric::named("TransactionTime")]))?;
//! let mut verdict = None;
//! for second in 0..90_u32 {
//!     let pods: Vec<PodInterval> = ["a", "b", "c"].iter().enumerate().map(|(pod, name)| {
//!         let is_canary = *name == "a" && second >= 60;
//!         let quick = f64::from((second * 7 + pod as u32 * 3) % 5);
//!         PodInterval {
//!             transactions: SampledFigure::Value(100.0),
//!             transaction_mean_ms: SampledFigure::Value((8.0 + quick) * if is_canary { 2.0 } else { 1.0 }),
//!             ..PodInterval::new(name, if is_canary { Track::Canary } else { Track::Stable })
//!         }
//!     }).collect();
//!     let look = Look { at_seconds: f64::from(second), pods: &pods, measurements: &[] };
//!     verdict = Some(analysis.judge(&look));
//! }
//! let verdict = verdict.expect("looks");
//! assert_eq!(verdict.verdict, Outcome::Fail, "{}", verdict.message);
//! # Ok::<(), sluice::decide::analysis::AnalysisError>(())
//! ```

mod comparison;
mod condition;
mod errors;
mod limit;
mod line;
mod live;
mod measured;
mod metric;
mod noise;
mod sample;
mod settings;
mod spec;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use condition::{Relation, ResultCondition, ResultConditionError, Term};
pub use line::{JudgeLine, JudgeLineError, VerdictLine};
pub use live::{LiveAnalysis, RevisionFigure, RevisionScrape, RevisionSeries};
pub use sample::{Look, MeasuredSeries, Measurement, PodInterval, SampledFigure, Track};
pub use settings::{AnalysisError, AnalysisSettings, BuiltIn, JudgedMetric};
pub use spec::{AnalysisPhase, RolloutAnalysis};
pub use verdict::{Against, Estimate, MetricVerdict, Outcome, RolloutVerdict, VerdictReason};

use self::metric::{Common, MetricState, SortedLook};

/// Names of canary pods that are remembered.
const MOST_CANARIES: usize = 10_000;
/// Names of pods in a message.
const NAMED_PODS: usize = 3;

/// The state of the analysis of one rollout. It can be written down and gone on with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    settings: AnalysisSettings,
    /// Since when each pod runs the canary.
    canaries: BTreeMap<String, f64>,
    /// Since when any does.
    canary_since: Option<f64>,
    metrics: Vec<MetricState>,
}

impl Analysis {
    /// Begins an analysis.
    ///
    /// # Errors
    /// [`AnalysisError`] says what of the settings cannot be.
    pub fn new(settings: AnalysisSettings) -> Result<Self, AnalysisError> {
        let tests = settings.tests()?.into_iter();
        let metrics = tests.map(|(name, test)| MetricState::new(name, test, &settings)).collect();
        Ok(Self { settings, canaries: BTreeMap::new(), canary_since: None, metrics })
    }

    /// What is to be said before anything is known.
    pub fn before(&self) -> RolloutVerdict {
        let (verdict, reason) = (Outcome::Inconclusive, VerdictReason::WarmingUp);
        let message = "not decided: no pod runs the canary yet".to_owned();
        RolloutVerdict { verdict, reason, message, is_final: false, metrics: Vec::new() }
    }

    /// Takes what is known now, and says what follows from all that was known so far.
    pub fn judge(&mut self, look: &Look<'_>) -> RolloutVerdict {
        let now = look.at_seconds;
        let doubled = doubled(look.pods);
        let mut pods: Vec<&PodInterval> = look.pods.iter().collect();
        pods.sort_by(|left, right| left.pod.cmp(&right.pod));
        for pod in pods.iter().filter(|pod| pod.track == Track::Canary) {
            self.canary_since.get_or_insert(now);
            if self.canaries.len() < MOST_CANARIES {
                self.canaries.entry(pod.pod.clone()).or_insert(now);
            }
        }
        let warm = |pod: &&&PodInterval| {
            let since = self.canaries.get(&pod.pod);
            since.is_some_and(|since| now - since >= self.settings.warm_up_seconds - 1e-9)
        };
        let all_canaries: Vec<&PodInterval> = pods.iter().filter(|pod| pod.track == Track::Canary).copied().collect();
        let canaries: Vec<&PodInterval> = all_canaries.iter().filter(warm).copied().collect();
        // a pod that went back is no baseline: its process is new
        let is_stable = |pod: &&&PodInterval| pod.track == Track::Stable && !self.canaries.contains_key(&pod.pod);
        let stables: Vec<&PodInterval> = pods.iter().filter(is_stable).copied().collect();
        let round = SortedLook {
            now,
            has_changed: self.canary_since.is_some(),
            is_warming_up: canaries.len() < all_canaries.len(),
            canaries: &canaries,
            all_canaries: &all_canaries,
            stables: &stables,
            doubled: &doubled,
            measurements: look.measurements,
        };
        let compared = self.metrics.iter().filter(|metric| metric.is_compared()).count();
        let common = Common {
            settings: &self.settings,
            false_alarm: self.settings.false_alarm_probability / (compared.max(1) as f64),
        };
        let metrics: Vec<MetricVerdict> = self.metrics.iter_mut().map(|metric| metric.judge(&common, &round)).collect();
        self.whole(now, metrics)
    }

    /// Since when a pod runs the canary, on the clock of the looks.
    pub fn canary_since(&self) -> Option<f64> {
        self.canary_since
    }

    fn whole(&self, now: f64, metrics: Vec<MetricVerdict>) -> RolloutVerdict {
        let verdict = metrics.iter().map(|metric| metric.verdict).max().unwrap_or(Outcome::Inconclusive);
        let deciding: Vec<&MetricVerdict> = metrics.iter().filter(|metric| metric.verdict == verdict).collect();
        let is_late = self.canary_since.is_some_and(|since| now - since >= self.settings.deadline_seconds);
        let not_proven = deciding.iter().find(|metric| metric.reason == VerdictReason::NotProven);
        let first = not_proven.or(deciding.first()).map(|metric| metric.reason);
        let reason = match verdict {
            Outcome::Inconclusive if is_late => VerdictReason::NotProven,
            // no harm found is less than proven, and is what is said when one of them is no more
            Outcome::Pass if deciding.iter().any(|metric| metric.reason == VerdictReason::NoHarmFound) => {
                VerdictReason::NoHarmFound
            }
            _ => first.unwrap_or(VerdictReason::NoData),
        };
        let told: Vec<String> = deciding.iter().map(|metric| format!("{}: {}", metric.name, metric.message)).collect();
        let begun = match verdict {
            Outcome::Pass => "no harm found on",
            Outcome::Inconclusive if reason == VerdictReason::NotProven => "not proven on",
            Outcome::Inconclusive => "not decided on",
            Outcome::Fail => "worse on",
        };
        let message = format!("{begun} {}: {}", self.canaries_in_words(), told.join("; "));
        let is_final = verdict != Outcome::Inconclusive || reason == VerdictReason::NotProven;
        RolloutVerdict { verdict, reason, message, is_final, metrics }
    }

    fn canaries_in_words(&self) -> String {
        let names: Vec<&str> = self.canaries.keys().take(NAMED_PODS).map(String::as_str).collect();
        match self.canaries.len().saturating_sub(names.len()) {
            0 if names.is_empty() => "no pod".to_owned(),
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    }
}

/// The pods that occur twice: which of the two is meant, nobody knows.
fn doubled(pods: &[PodInterval]) -> BTreeSet<&str> {
    let mut seen = BTreeSet::new();
    pods.iter().map(|pod| pod.pod.as_str()).filter(|pod| !seen.insert(*pod)).collect()
}
