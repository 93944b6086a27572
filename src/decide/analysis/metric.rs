//! One metric of an analysis: what it has seen, and what follows.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    comparison::{Comparison, Unassessed},
    condition::ResultCondition,
    errors::{ErrorBets, Tally},
    limit::{EachLimit, Limited, QuantileLimit, SumLimit},
    measured::{Measured, Measurements},
    sample::{MeasuredSeries, Measurement, PodInterval, SampledFigure},
    settings::{AnalysisSettings, BuiltIn, Test},
    verdict::{Estimate, MetricVerdict, Outcome, VerdictReason},
};

/// What all metrics have in common.
pub(super) struct Common<'a> {
    pub settings: &'a AnalysisSettings,
    /// The probability with which an unchanged canary may fail by one comparison.
    pub false_alarm: f64,
}

/// What is known at one look.
pub(super) struct SortedLook<'a> {
    pub now: f64,
    /// Whether any pod runs the canary, a cold one too.
    pub has_changed: bool,
    /// Whether a pod runs the canary that is still cold.
    pub is_warming_up: bool,
    /// The canaries that are warm, by name.
    pub canaries: &'a [&'a PodInterval],
    /// All canaries, by name: what exceeds a limit does so in a cold process too.
    pub all_canaries: &'a [&'a PodInterval],
    /// The pods on the revision before, by name.
    pub stables: &'a [&'a PodInterval],
    /// Pods that occur twice.
    pub doubled: &'a BTreeSet<&'a str>,
    pub measurements: &'a [Measurement],
}

impl SortedLook<'_> {
    /// The figure of a pod, or why there is none.
    fn figure(&self, pod: &PodInterval, metric: BuiltIn) -> Result<f64, VerdictReason> {
        if self.doubled.contains(pod.pod.as_str()) {
            return Err(VerdictReason::SeveralSeries);
        }
        let is_of_traffic = matches!(metric, BuiltIn::TransactionTime | BuiltIn::WaitTime | BuiltIn::Errors);
        match pod.figure(metric) {
            SampledFigure::Unusable => Err(VerdictReason::NotANumber),
            SampledFigure::Value(0.0) | SampledFigure::Absent if is_of_traffic && pod.is_idle() => {
                Err(VerdictReason::NoTraffic)
            }
            SampledFigure::Absent => Err(VerdictReason::NoData),
            SampledFigure::Value(value) => Ok(value),
        }
    }

    /// The figures of pods that have one, with their pods.
    fn figures<'b>(&'b self, pods: &'b [&'b PodInterval], metric: BuiltIn) -> Vec<(&'b PodInterval, f64)> {
        pods.iter().filter_map(|pod| Some((*pod, self.figure(pod, metric).ok()?))).collect()
    }

    /// Whether any of these canaries has a figure; why not.
    fn usable(&self, canaries: &[&PodInterval], metric: BuiltIn) -> Result<bool, Trouble> {
        let mut figures = canaries.iter().map(|pod| (&pod.pod, self.figure(pod, metric)));
        if figures.clone().any(|(_, figure)| figure.is_ok()) {
            return Ok(true);
        }
        let field = metric.field();
        Err(match figures.next() {
            Some((pod, Err(reason))) => {
                let words = match reason {
                    VerdictReason::SeveralSeries => format!("{pod} occurs several times in one look"),
                    VerdictReason::NotANumber => format!("{field} of {pod} is NaN, infinite or below zero"),
                    VerdictReason::NoTraffic => format!("{pod} has no transactions"),
                    _ => format!("{field} of {pod} is missing"),
                };
                Trouble { reason, words }
            }
            _ if self.is_warming_up => Trouble::new(VerdictReason::WarmingUp, "the canary has just started"),
            _ if self.has_changed => Trouble::new(VerdictReason::NoData, "no canary pod has a sample"),
            _ => Trouble::new(VerdictReason::WarmingUp, "no pod runs the canary yet"),
        })
    }
}

/// Why a look says nothing of the canary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Trouble {
    reason: VerdictReason,
    words: String,
}

impl Trouble {
    fn new(reason: VerdictReason, words: &str) -> Self {
        Self { reason, words: words.to_owned() }
    }
}

/// What a metric is put to, with what it has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Evidence {
    Compared {
        metric: BuiltIn,
        comparison: Comparison,
    },
    Errors {
        bets: ErrorBets,
    },
    Quantile {
        metric: BuiltIn,
        most: f64,
        limit: QuantileLimit,
    },
    Each {
        metric: BuiltIn,
        most: f64,
        failure_limit: u32,
        limit: EachLimit,
    },
    Sum {
        metric: BuiltIn,
        most: f64,
        limit: SumLimit,
    },
    Own {
        success: Option<ResultCondition>,
        failure: Option<ResultCondition>,
        failure_limit: u32,
        min_measurements: u32,
        seen: Measurements,
    },
}

/// What a look says of a metric, before exposure and freshness.
struct Finding {
    outcome: Outcome,
    reason: VerdictReason,
    words: String,
    estimate: Option<Estimate>,
}

impl Finding {
    fn new(outcome: Outcome, reason: VerdictReason, words: String) -> Self {
        Self { outcome, reason, words, estimate: None }
    }

    fn undecided(reason: VerdictReason, words: String) -> Self {
        Self::new(Outcome::Inconclusive, reason, words)
    }
}

/// One metric: what it is put to, its exposure, and what it has come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MetricState {
    name: String,
    evidence: Evidence,
    /// Looks with a usable sample of the canary, and when the last one was.
    looks: usize,
    last_usable: Option<f64>,
    /// Transactions that the canary has finished; none where no sample has said.
    transactions: Option<f64>,
    /// The last reason why a look said nothing.
    trouble: Option<Trouble>,
    /// The Fail that stays, or the Pass.
    settled: Option<MetricVerdict>,
}

impl MetricState {
    pub(super) fn new(name: String, test: Test, settings: &AnalysisSettings) -> Self {
        let evidence = match test {
            Test::Compared(metric) => {
                let negligible_ms = if metric == BuiltIn::WaitTime {
                    settings.negligible_wait_ms
                } else {
                    settings.negligible_transaction_ms
                };
                Evidence::Compared { metric, comparison: Comparison::new(negligible_ms) }
            }
            Test::ErrorsCompared => Evidence::Errors { bets: ErrorBets::default() },
            Test::QuantileAtMost(metric, most) => Evidence::Quantile { metric, most, limit: QuantileLimit::default() },
            Test::EachAtMost(metric, most, failure_limit) => {
                Evidence::Each { metric, most, failure_limit, limit: EachLimit::default() }
            }
            Test::SumAtMost(metric, most) => Evidence::Sum { metric, most, limit: SumLimit::default() },
            Test::Conditions { success, failure, failure_limit, min_measurements } => {
                Evidence::Own { success, failure, failure_limit, min_measurements, seen: Measurements::default() }
            }
        };
        let (looks, last_usable, transactions, trouble, settled) = (0, None, None, None, None);
        Self { name, evidence, looks, last_usable, transactions, trouble, settled }
    }

    /// Whether the canary is compared with others: these share the probability of a false alarm.
    pub(super) fn is_compared(&self) -> bool {
        matches!(self.evidence, Evidence::Compared { .. } | Evidence::Errors { .. })
    }

    /// Takes a look and says what follows.
    pub(super) fn judge(&mut self, common: &Common<'_>, round: &SortedLook<'_>) -> MetricVerdict {
        if let Some(failed) = self.settled.as_ref().filter(|settled| settled.verdict == Outcome::Fail) {
            return failed.clone();
        }
        match self.evidence.take(&self.name, common.settings, round) {
            Err(trouble) => self.trouble = Some(trouble),
            Ok(false) => {}
            Ok(true) => {
                self.looks += 1;
                self.last_usable = Some(round.now);
                self.trouble = None;
                let single = round.all_canaries.iter().filter(|pod| !round.doubled.contains(pod.pod.as_str()));
                let finished = single.filter_map(|pod| pod.transactions.value());
                if let Some(sum) = finished.reduce(|sum, count| sum + count) {
                    self.transactions = Some(self.transactions.unwrap_or(0.0) + sum);
                }
            }
        }
        let Finding { outcome, reason, words, estimate } = self.finding(common, round.now);
        let verdict = MetricVerdict { name: self.name.clone(), verdict: outcome, reason, message: words, estimate };
        if outcome != Outcome::Inconclusive {
            self.settled = Some(verdict.clone());
        }
        verdict
    }

    /// What follows from all looks so far: a Fail needs evidence, a Pass needs exposure and a sample that is fresh.
    fn finding(&self, common: &Common<'_>, now: f64) -> Finding {
        let settings = common.settings;
        let exposure = self.looks as f64 * settings.interval_seconds;
        let found = self.evidence.finding(common, exposure);
        if found.outcome == Outcome::Fail {
            return found;
        }
        if let Some(stale) = self.stale(settings, now) {
            return stale;
        }
        let is_own = matches!(self.evidence, Evidence::Own { .. });
        if is_own || matches!(found.reason, VerdictReason::NoBaseline | VerdictReason::StableExceedsToo) {
            return found;
        }
        let transactions = self.transactions.unwrap_or(0.0);
        let is_enough = exposure >= settings.min_exposure_seconds && transactions >= settings.min_transactions;
        let is_over = exposure >= settings.max_exposure_seconds;
        let inconclusive = |reason, words| Finding { estimate: found.estimate, ..Finding::undecided(reason, words) };
        if !is_enough {
            let reason = if is_over { VerdictReason::NotProven } else { VerdictReason::TooLittleExposure };
            let finished = self.transactions.map_or("an unknown number of".to_owned(), |count| count.to_string());
            let (seconds, needed) = (settings.min_exposure_seconds, settings.min_transactions);
            let words = format!(
                "{exposure:.0} s and {finished} transactions of the canary so far, {seconds:.0} s and {needed} are needed"
            );
            return inconclusive(reason, format!("{words}; {}", found.words));
        }
        match &self.settled {
            Some(passed) if found.outcome == Outcome::Inconclusive => {
                Finding { outcome: Outcome::Pass, reason: passed.reason, ..found }
            }
            None if found.outcome == Outcome::Inconclusive && is_over => {
                inconclusive(VerdictReason::NotProven, format!("undecided after {exposure:.0} s: {}", found.words))
            }
            _ => found,
        }
    }

    /// Why there is nothing that anybody could go by, if there has been nothing for too long.
    fn stale(&self, settings: &AnalysisSettings, now: f64) -> Option<Finding> {
        let most = match self.evidence {
            Evidence::Own { .. } => settings.measurement_stale_seconds,
            _ => settings.stale_seconds.max(3.0 * settings.interval_seconds),
        };
        let Some(last) = self.last_usable else {
            let trouble =
                self.trouble.clone().unwrap_or_else(|| Trouble::new(VerdictReason::NoData, "not measured yet"));
            return Some(Finding::undecided(trouble.reason, trouble.words));
        };
        let age = now - last;
        if age < most {
            return None;
        }
        let trouble = self.trouble.clone().unwrap_or_else(|| Trouble::new(VerdictReason::NoData, "not measured"));
        Some(Finding::undecided(trouble.reason, format!("{}, since {age:.0} s", trouble.words)))
    }
}

impl Evidence {
    /// Takes a look. True if it says something of the canary, false if nothing was to be expected.
    fn take(&mut self, name: &str, settings: &AnalysisSettings, round: &SortedLook<'_>) -> Result<bool, Trouble> {
        let of = |pods, metric| round.figures(pods, metric).into_iter().map(|(_, value)| value).collect::<Vec<f64>>();
        match self {
            Self::Compared { metric, comparison } => {
                let pods = [round.figures(round.canaries, *metric), round.figures(round.stables, *metric)].concat();
                let times = pods.iter().map(|(pod, value)| (pod.pod.as_str(), pod.track, *value));
                comparison.add(settings, round.has_changed, times);
                round.usable(round.canaries, *metric)
            }
            Self::Errors { bets } => {
                let [canary, stable] =
                    [round.canaries, round.stables].map(|pods| Tally::of(of(pods, BuiltIn::Errors).into_iter()));
                if !round.has_changed {
                    bets.before(settings, stable);
                }
                round.usable(round.canaries, BuiltIn::Errors)?;
                if bets.bet(settings, canary, stable) {
                    return Ok(true);
                }
                Err(Trouble::new(
                    VerdictReason::NoBaseline,
                    "no other pod has a sample, and there is no past to compare with",
                ))
            }
            Self::Quantile { metric, limit, .. } => {
                for (pods, times) in [(round.canaries, &mut limit.canary), (round.stables, &mut limit.stable)] {
                    for (pod, value) in round.figures(pods, *metric).into_iter().filter(|_| round.has_changed) {
                        times.add(value, pod.transactions.value().unwrap_or(1.0));
                    }
                }
                round.usable(round.canaries, *metric)
            }
            Self::Each { metric, most, limit, .. } => {
                limit.add(*most, &of(round.all_canaries, *metric), &of(round.stables, *metric));
                round.usable(round.all_canaries, *metric)
            }
            Self::Sum { metric, limit, .. } => {
                if round.has_changed {
                    limit.add(&of(round.all_canaries, *metric), &of(round.stables, *metric));
                }
                round.usable(round.all_canaries, *metric)
            }
            Self::Own { success, failure, seen, .. } => {
                let mut own = round.measurements.iter().filter(|measurement| measurement.name == name).peekable();
                if own.peek().is_none() || round.canaries.is_empty() {
                    return Ok(false);
                }
                let series: Vec<MeasuredSeries> = own.flat_map(|measurement| measurement.series.clone()).collect();
                match seen.add(success.as_ref(), failure.as_ref(), &series) {
                    Measured::None(reason, words) => Err(Trouble { reason: *reason, words: words.clone() }),
                    _ => Ok(true),
                }
            }
        }
    }

    /// What follows from all that was taken, whatever the exposure and the age of it.
    fn finding(&self, common: &Common<'_>, exposure: f64) -> Finding {
        let settings = common.settings;
        let is_planned = exposure >= settings.planned_exposure_seconds;
        let by_limit = |stands: Limited, words: String| match stands {
            Limited::Exceeded => Finding::new(Outcome::Fail, VerdictReason::LimitExceeded, words),
            Limited::ByAll => Finding::undecided(VerdictReason::StableExceedsToo, words),
            Limited::Within if is_planned => Finding::new(Outcome::Pass, VerdictReason::NoHarmFound, words),
            Limited::Within => Finding::undecided(VerdictReason::Undecided, words),
        };
        match self {
            Self::Compared { comparison, .. } => compared(common, comparison, is_planned),
            Self::Errors { bets } => {
                let (evidence, words) = (bets.evidence(), bets.words());
                let found = if evidence >= 1.0 / common.false_alarm {
                    Finding::new(Outcome::Fail, VerdictReason::MoreErrorsThanStable, words)
                } else if is_planned && evidence < common.false_alarm.powf(-0.5) {
                    Finding::new(Outcome::Pass, VerdictReason::NoHarmFound, words)
                } else {
                    Finding::undecided(VerdictReason::Undecided, words)
                };
                Finding { estimate: bets.estimate(settings), ..found }
            }
            Self::Quantile { most, limit, .. } if exposure < settings.min_exposure_seconds => {
                Finding::undecided(VerdictReason::TooLittleExposure, limit.words(*most))
            }
            Self::Quantile { most, limit, .. } => by_limit(limit.stands(*most), limit.words(*most)),
            Self::Each { most, failure_limit, limit, .. } => {
                by_limit(limit.stands(*most, *failure_limit), limit.words(*most, *failure_limit))
            }
            Self::Sum { most, limit, .. } => by_limit(limit.stands(*most), limit.words(*most)),
            Self::Own { failure_limit, min_measurements, seen, .. } => {
                let words = seen.words();
                match seen.last() {
                    _ if seen.failures() > *failure_limit => {
                        Finding::new(Outcome::Fail, VerdictReason::ConditionFailed, words)
                    }
                    Some(Measured::Success(_)) if seen.successes() >= *min_measurements => {
                        Finding::new(Outcome::Pass, VerdictReason::NoHarmFound, words)
                    }
                    Some(Measured::Success(_)) => Finding::undecided(VerdictReason::TooLittleExposure, words),
                    Some(Measured::None(reason, _)) => Finding::undecided(*reason, words),
                    Some(Measured::Failure(_) | Measured::Neither(_)) | None => {
                        Finding::undecided(VerdictReason::Undecided, words)
                    }
                }
            }
        }
    }
}

fn compared(common: &Common<'_>, comparison: &Comparison, is_planned: bool) -> Finding {
    let settings = common.settings;
    let assessed = match comparison.assess(settings) {
        Ok(assessed) => assessed,
        Err(Unassessed::NoBaseline) => {
            let words = "no other pod has a sample, and the canary has no past to compare with".to_owned();
            return Finding::undecided(VerdictReason::NoBaseline, words);
        }
        Err(Unassessed::TooFew) => {
            return Finding::undecided(VerdictReason::TooLittleExposure, "too few seconds to compare".to_owned());
        }
    };
    let words = assessed.words(settings);
    let found = if assessed.is_worse(settings, common.false_alarm) {
        Finding::new(Outcome::Fail, VerdictReason::SlowerThanStable, words)
    } else if assessed.is_harmless(settings) {
        Finding::new(Outcome::Pass, VerdictReason::ProvenHarmless, words)
    } else if is_planned && assessed.is_acceptable(settings) {
        Finding::new(Outcome::Pass, VerdictReason::NoHarmFound, words)
    } else {
        Finding::undecided(VerdictReason::Undecided, words)
    };
    Finding { estimate: Some(assessed.estimate(settings)), ..found }
}
