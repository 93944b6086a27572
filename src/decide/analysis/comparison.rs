//! The canary's times against those of the other pods: a sequential test that may be looked at each second.
//!
//! Of each second and pod there is the logarithm of a mean. Pods differ from each other for good, all follow the same load, and seconds are
//! correlated. So for each second what the canary is above the others is taken, less what it was above them before the change (difference
//! in differences), and averaged since: `S`, with the variance `V` ([`Comparison::assess`]).
//!
//! **Fail.** `E` is the mean over ratios `r` of 1.5, 2 and 3 of `exp((ln r * S - (ln r)^2 / 2) / V)`: how many times likelier what was seen is
//! if the canary is slower than if it is not. By Ville's inequality it reaches `1 / alpha` with probability `alpha` at most, however often one
//! looks. It fails there, if `S` is also beyond the tolerated ratio: an effect too small to matter is no failure.
//! **Proven harmless** when what was seen is `1 / beta` times likelier without change than at the harmful ratio.
//! Sources: Johari, Koomen, Pekelis, Walsh, "Always valid inference"; Lindon, Sanden, Shirikian, KDD 2022.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    noise::{Noise, clipped_mean, far},
    sample::Track,
    settings::AnalysisSettings,
    verdict::{Against, Estimate},
};

/// Ratios that the evidence is a mean over.
const WORSE: [f64; 3] = [1.5, 2.0, 3.0];
/// No verdict of fewer seconds.
const LEAST_SECONDS: usize = 4;
/// And of fewer where how the pods differ anyway is not known from before.
const LEAST_SECONDS_WITHOUT_PAST: usize = 10;
/// Seconds before the change from which on a pod's own level is known.
const LEAST_PAST: usize = 20;
/// Stable pods that are compared with, and canaries: more say no more.
const MOST_PODS: usize = 100;
/// Seconds after the change that are kept.
const MOST_SECONDS: usize = 3600;
/// Where it cannot be known: the variance of the level of pods of one workload (15 %), counted as this many pods.
const ASSUMED_SPREAD: f64 = 0.15 * 0.15;
const ASSUMED_PODS: f64 = 4.0;
/// A drift of the stable pods against each other after the change makes the variance larger; as expected it counts as this many pods.
const EXPECTED_DRIFT_PODS: f64 = 8.0;
/// Figures beyond these say no more.
const MOST_EVIDENCE: f64 = 1e12;
const MOST_RATIO: f64 = 1e6;
/// The 95 % interval of a normal distribution.
const INTERVAL: f64 = 1.96;

/// A pod in one second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Cell {
    pod: usize,
    track: Track,
    /// Logarithm of the time.
    log: f64,
}

/// What is kept of one metric: the seconds before the change, and those since.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Comparison {
    /// Milliseconds below which times are alike.
    negligible_ms: f64,
    /// Numbers of the pods.
    pods: BTreeMap<String, usize>,
    past: VecDeque<Vec<Cell>>,
    since: Vec<Vec<Cell>>,
}

/// The pods of one second since the change.
#[derive(Clone, Debug)]
struct Since {
    canaries: Vec<Cell>,
    others: Vec<Cell>,
}

/// How the canary differs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Difference {
    /// Logarithm of the ratio, and its variance.
    shift: f64,
    variance: f64,
    seconds: usize,
    against: Against,
    /// Stable pods compared with.
    others: usize,
}

/// What the seconds say so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Assessment {
    difference: Difference,
    /// The canary's mean in milliseconds, geometric.
    canary_ms: f64,
    /// What it would be without the change.
    expected_ms: f64,
}

/// Why nothing can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unassessed {
    /// There is nothing to compare with.
    NoBaseline,
    /// Not yet.
    TooFew,
}

impl Comparison {
    pub(super) fn new(negligible_ms: f64) -> Self {
        Self { negligible_ms, pods: BTreeMap::new(), past: VecDeque::new(), since: Vec::new() }
    }

    /// Takes the times of one second: those of pods that have one.
    pub(super) fn add<'a>(
        &mut self,
        settings: &AnalysisSettings,
        has_changed: bool,
        times: impl Iterator<Item = (&'a str, Track, f64)>,
    ) {
        let mut cells = Vec::new();
        for (pod, track, milliseconds) in times {
            let most = if track == Track::Canary { 2 * MOST_PODS } else { MOST_PODS };
            let next = self.pods.len();
            let pod = match self.pods.get(pod) {
                Some(number) => *number,
                None if next < most => {
                    self.pods.insert(pod.to_owned(), next);
                    next
                }
                None => continue,
            };
            cells.push(Cell { pod, track, log: (milliseconds + self.negligible_ms).ln() });
        }
        if has_changed {
            let is_compared = cells.iter().any(|cell| cell.track == Track::Canary);
            if is_compared && self.since.len() < MOST_SECONDS {
                self.since.push(cells);
            }
            return;
        }
        self.past.push_back(cells);
        while self.past.len() as f64 * settings.interval_seconds > settings.past_seconds {
            self.past.pop_front();
        }
    }

    /// What the seconds say.
    ///
    /// `S` is the clipped mean over `n` seconds of `d_t`, the mean of the canaries' residuals less that of the others; a residual is the
    /// logarithm less the pod's own level before the change. `V = v (1/m + 1/k) (1/n' + 1/P')` with the variance `v` of one pod's second, `m` canaries,
    /// `k` others, and `n'`, `P'` the seconds since and before as independent ones ([`Noise::independent`]).
    pub(super) fn assess(&self, settings: &AnalysisSettings) -> Result<Assessment, Unassessed> {
        if self.since.is_empty() {
            return Err(Unassessed::NoBaseline);
        }
        let tolerated = settings.tolerated_ratio.ln();
        let own = Past::of(&self.past, self.pods.len(), tolerated);
        let rows: Vec<Since> = self.since.iter().map(|row| Since::of(row, |_| true)).collect();
        let known: Vec<Since> =
            self.since.iter().map(|row| Since::of(row, |cell| own.level(cell.pod).is_some())).collect();
        let most = |rows: &[Since], is_usable: fn(&Since) -> bool| -> Option<Vec<Since>> {
            let usable: Vec<Since> = rows.iter().filter(|row| is_usable(row)).cloned().collect();
            (2 * usable.len() > rows.len()).then_some(usable)
        };
        let difference = if let Some(paired) = most(&known, |row| !row.canaries.is_empty() && !row.others.is_empty()) {
            own.against_others(&paired)?
        } else if let Some(beside) = most(&rows, |row| !row.others.is_empty()) {
            without_past(&beside, tolerated)?
        } else {
            own.against_itself(&most(&known, |row| !row.canaries.is_empty()).unwrap_or_default())?
        };
        let canaries: Vec<f64> = rows.iter().flat_map(|row| row.canaries.iter().map(|cell| cell.log)).collect();
        let milliseconds = |log: f64| (log.exp() - self.negligible_ms).max(0.0);
        let level = mean(&canaries);
        let (canary_ms, expected_ms) = (milliseconds(level), milliseconds(level - difference.shift));
        Ok(Assessment { difference, canary_ms, expected_ms })
    }
}

impl Since {
    fn of(row: &[Cell], is_wanted: impl Fn(&Cell) -> bool) -> Self {
        let of = |track| row.iter().filter(|cell| cell.track == track && is_wanted(cell)).copied().collect();
        Self { canaries: of(Track::Canary), others: of(Track::Stable) }
    }

    /// What the variance of one pod is multiplied with: the means of both sides vary.
    fn weight(&self) -> f64 {
        1.0 / self.canaries.len() as f64 + 1.0 / self.others.len() as f64
    }
}

/// The seconds before the change: the level of each pod, and the noise around it.
struct Past {
    levels: Vec<Option<f64>>,
    /// Seconds of each pod.
    seconds: Vec<usize>,
    noise: Option<Noise>,
    /// The mean of what all pods have in common, beside which the level of each is; 0 of a single pod.
    common: f64,
    /// Where no other pod is left: the noise of what all have in common, with the load in it.
    alone: Option<Noise>,
    /// How far from the middle a value counts in full.
    far: f64,
}

impl Past {
    fn of(rows: &VecDeque<Vec<Cell>>, pods: usize, tolerated: f64) -> Self {
        let mut series: Vec<Vec<Option<f64>>> = vec![vec![None; rows.len()]; pods];
        for (second, row) in rows.iter().enumerate() {
            for cell in row {
                series[cell.pod][second] = Some(cell.log);
            }
        }
        let seconds: Vec<usize> = series.iter().map(|values| values.iter().flatten().count()).collect();
        let is_known: Vec<bool> = seconds.iter().map(|count| *count >= LEAST_PAST).collect();
        let known: Vec<usize> = (0..pods).filter(|pod| is_known[*pod]).collect();
        let mut past =
            Self { levels: vec![None; pods], seconds, noise: None, common: 0.0, alone: None, far: f64::INFINITY };
        if known.is_empty() {
            return past;
        }
        // two-way means: the level of a pod and of a second. Exact at once where no cell is missing.
        let mut levels = vec![0.0; pods];
        let mut common = vec![0.0; rows.len()];
        for _ in 0..6 {
            for (second, level) in common.iter_mut().enumerate() {
                let values: Vec<f64> =
                    known.iter().filter_map(|pod| Some(series[*pod][second]? - levels[*pod])).collect();
                *level = if known.len() > 1 { mean(&values) } else { 0.0 };
            }
            for pod in &known {
                let values = series[*pod].iter().zip(&common).filter_map(|(log, common)| Some((*log)? - common));
                levels[*pod] = mean(&values.collect::<Vec<f64>>());
            }
        }
        let residual = |pod: usize, levels: &[f64]| -> Vec<Option<f64>> {
            series[pod].iter().zip(&common).map(|(log, common)| Some((*log)? - common - levels[pod])).collect()
        };
        let all: Vec<f64> = known.iter().flat_map(|pod| residual(*pod, &levels)).flatten().collect();
        let most = far(&all, tolerated);
        past.far = most;
        let mut clipped: Vec<Vec<Option<f64>>> = Vec::new();
        for pod in &known {
            let values: Vec<f64> = residual(*pod, &levels).into_iter().flatten().collect();
            levels[*pod] += clipped_mean(&values, most);
            let values = residual(*pod, &levels);
            clipped.push(values.into_iter().map(|value| Some(value?.clamp(-most, most))).collect());
        }
        let count = known.len() as f64;
        let longest = known.iter().map(|pod| past.seconds[*pod]).max().unwrap_or(0) as f64;
        if known.len() > 1 {
            past.noise = Noise::of(&clipped, count - 1.0, longest - 1.0);
        }
        // with the common level: what a pool without other pods varies by
        let mut whole: Vec<Option<f64>> = (0..rows.len())
            .map(|second| {
                let values: Vec<f64> =
                    known.iter().filter_map(|pod| Some(series[*pod][second]? - levels[*pod])).collect();
                (!values.is_empty()).then(|| mean(&values))
            })
            .collect();
        if known.len() > 1 {
            past.common = mean(&whole.iter().flatten().copied().collect::<Vec<f64>>());
            for level in whole.iter_mut().flatten() {
                *level -= past.common;
            }
        }
        past.alone = Noise::of(&[whole], 1.0, longest - 1.0);
        for pod in known {
            past.levels[pod] = Some(levels[pod]);
        }
        past
    }

    fn level(&self, pod: usize) -> Option<f64> {
        self.levels.get(pod).copied().flatten()
    }

    fn residuals(&self, cells: &[Cell]) -> Vec<f64> {
        cells.iter().filter_map(|cell| Some(cell.log - self.level(cell.pod)?)).collect()
    }

    /// Seconds before the change, of the canaries of these seconds on average.
    fn seconds_of(&self, rows: &[Since]) -> f64 {
        let counts: Vec<f64> =
            rows.iter().flat_map(|row| &row.canaries).map(|cell| self.seconds[cell.pod] as f64).collect();
        mean(&counts)
    }

    fn against_others(&self, rows: &[Since]) -> Result<Difference, Unassessed> {
        let noise = self.noise.ok_or(Unassessed::TooFew)?;
        if rows.len() < LEAST_SECONDS {
            return Err(Unassessed::TooFew);
        }
        let level = |cells: &[Cell]| clipped_mean(&self.residuals(cells), self.far);
        let differences: Vec<f64> = rows.iter().map(|row| level(&row.canaries) - level(&row.others)).collect();
        let weight = mean(&rows.iter().map(Since::weight).collect::<Vec<f64>>());
        let (since, before) = (noise.independent(rows.len() as f64), noise.independent(self.seconds_of(rows)));
        let of_one = noise.variance * (1.0 / since + 1.0 / before);
        Ok(Difference {
            shift: clipped_mean(&differences, self.far * weight.sqrt().max(1.0)),
            variance: of_one * weight * self.drift(rows, of_one),
            seconds: rows.len(),
            against: Against::OtherPodsAndPast,
            others: rows.last().map_or(0, |row| row.others.len()),
        })
    }

    /// How much more than expected the stable pods have moved against each other since: the same test on pods that did not change.
    fn drift(&self, rows: &[Since], expected: f64) -> f64 {
        let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        for Since { others, .. } in rows.iter().filter(|row| row.others.len() > 2) {
            let common = clipped_mean(&self.residuals(others), self.far);
            for cell in others {
                if let Some(level) = self.level(cell.pod) {
                    let sum = sums.entry(cell.pod).or_default();
                    sum.0 += (cell.log - level - common).clamp(-self.far, self.far);
                    sum.1 += 1.0;
                }
            }
        }
        let pods: Vec<f64> = sums
            .values()
            .filter(|(_, count)| 2.0 * count > rows.len() as f64)
            .map(|(sum, count)| sum / count)
            .collect();
        let freedom = pods.len() as f64 - 1.0;
        if freedom < 1.0 || expected <= 0.0 {
            return 1.0;
        }
        let seen = pods.iter().map(|mean| mean * mean).sum::<f64>() / freedom / expected;
        ((freedom * seen + EXPECTED_DRIFT_PODS) / (freedom + EXPECTED_DRIFT_PODS)).max(1.0)
    }

    /// Against the canary's own past, where no other pod is left: the load changes between the two, so the noise is that of the whole level.
    fn against_itself(&self, rows: &[Since]) -> Result<Difference, Unassessed> {
        let noise = self.alone.filter(|_| !rows.is_empty()).ok_or(Unassessed::NoBaseline)?;
        if rows.len() < LEAST_SECONDS {
            return Err(Unassessed::TooFew);
        }
        let levels: Vec<f64> = rows.iter().map(|row| mean(&self.residuals(&row.canaries)) - self.common).collect();
        let (since, before) = (noise.independent(rows.len() as f64), noise.independent(self.seconds_of(rows)));
        Ok(Difference {
            shift: clipped_mean(&levels, self.far.max(3.0 * noise.variance.sqrt())),
            variance: noise.variance * (1.0 / since + 1.0 / before),
            seconds: rows.len(),
            against: Against::OwnPast,
            others: 0,
        })
    }
}

/// Against the other pods alone: nobody knows how the canary differed from them before, so that the spread of pods stays in the variance
/// however long one looks.
fn without_past(rows: &[Since], tolerated: f64) -> Result<Difference, Unassessed> {
    if rows.len() < LEAST_SECONDS_WITHOUT_PAST {
        return Err(Unassessed::TooFew);
    }
    let level = |cells: &[Cell]| mean(&cells.iter().map(|cell| cell.log).collect::<Vec<f64>>());
    let differences: Vec<f64> = rows.iter().map(|row| level(&row.canaries) - level(&row.others)).collect();
    let most = far(&differences, tolerated);
    let shift = clipped_mean(&differences, most);
    let residuals = differences.iter().map(|difference| Some((difference - shift).clamp(-most, most))).collect();
    let count = rows.len() as f64;
    let noise = Noise::of(&[residuals], 1.0, count - 1.0).ok_or(Unassessed::TooFew)?;
    let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for Since { others, .. } in rows {
        let common = level(others);
        for cell in others {
            let sum = sums.entry(cell.pod).or_default();
            *sum = (sum.0 + cell.log - common, sum.1 + 1.0);
        }
    }
    let levels: Vec<f64> = sums.values().map(|(sum, count)| sum / count).collect();
    let squares: f64 = levels.iter().map(|level| (level - mean(&levels)).powi(2)).sum();
    let spread = (squares + ASSUMED_PODS * ASSUMED_SPREAD) / (levels.len() as f64 - 1.0 + ASSUMED_PODS);
    let weight = mean(&rows.iter().map(Since::weight).collect::<Vec<f64>>());
    Ok(Difference {
        shift,
        variance: noise.variance / noise.independent(count) + spread * weight,
        seconds: rows.len(),
        against: Against::OtherPods,
        others: levels.len(),
    })
}

/// 0 of nothing.
fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

impl Assessment {
    /// How many times likelier what was seen is if the canary is slower than if it is not.
    fn evidence(&self) -> f64 {
        let of = |ratio: f64| self.likelihood(ratio.ln()).exp();
        (WORSE.into_iter().map(of).sum::<f64>() / WORSE.len() as f64).min(MOST_EVIDENCE)
    }

    /// Logarithm of the likelihood of this shift against none.
    fn likelihood(&self, shift: f64) -> f64 {
        (shift * self.difference.shift - shift * shift / 2.0) / self.difference.variance
    }

    /// Whether it is worse, with this probability of saying so of an unchanged one.
    pub(super) fn is_worse(&self, settings: &AnalysisSettings, false_alarm: f64) -> bool {
        self.evidence() >= 1.0 / false_alarm && !self.is_tolerated(settings)
    }

    /// Whether it is proven to be better than the harmful ratio.
    pub(super) fn is_harmless(&self, settings: &AnalysisSettings) -> bool {
        self.likelihood(settings.harmful_ratio.ln()) <= settings.miss_probability.ln() && self.is_tolerated(settings)
    }

    /// Whether the ratio as it stands is within what is tolerated, and most likely not beyond what is unacceptable.
    pub(super) fn is_acceptable(&self, settings: &AnalysisSettings) -> bool {
        self.is_tolerated(settings) && self.estimate(settings).ratio_high < settings.unacceptable_ratio
    }

    fn is_tolerated(&self, settings: &AnalysisSettings) -> bool {
        self.difference.shift < settings.tolerated_ratio.ln()
    }

    /// The figures of the verdict.
    pub(super) fn estimate(&self, settings: &AnalysisSettings) -> Estimate {
        let away = INTERVAL * self.difference.variance.sqrt();
        let ratio = |shift: f64| shift.exp().min(MOST_RATIO);
        Estimate {
            ratio: ratio(self.difference.shift),
            ratio_low: ratio(self.difference.shift - away),
            ratio_high: ratio(self.difference.shift + away),
            evidence: self.evidence(),
            seconds: self.difference.seconds as f64 * settings.interval_seconds,
            against: self.difference.against,
        }
    }

    /// In words, with values.
    pub(super) fn words(&self, settings: &AnalysisSettings) -> String {
        let Estimate { ratio, ratio_low, ratio_high, seconds, .. } = self.estimate(settings);
        let against = match self.difference.against {
            Against::OtherPodsAndPast => format!("{} other pods, each against its own past", self.difference.others),
            Against::OtherPods => {
                format!("{} other pods without a past to compare with, which is weaker", self.difference.others)
            }
            Against::OwnPast => "its own past, for no other pod runs the revision before, which is weaker".to_owned(),
        };
        format!(
            "x{ratio:.2} (95 %: {ratio_low:.2} to {ratio_high:.2}): {:.3} ms where {:.3} ms would be expected, in {seconds:.0} s, against {against}",
            self.canary_ms, self.expected_ms
        )
    }
}
