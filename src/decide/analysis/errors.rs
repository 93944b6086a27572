//! Seconds with errors on the canary against those on the other pods: betting against a tolerated ratio.
//!
//! Counted are **pod-seconds with at least one error**, not errors: errors come in clusters, and a cluster is one incident. Given how many
//! of all pods' seconds had one, the canary's part of them follows from its part of all seconds and from the ratio of the rates, whatever
//! the rate is and however it changes. For a ratio `r`, `theta = r c / (r c + b)` of `c` canary and `b` other pod-seconds. A bettor who stakes on
//! ratios of 2 to 100 against the tolerated one multiplies his wealth by the likelihood ratio of each second; if the canary is no worse than
//! tolerated, the wealth reaches `1 / alpha` with probability `alpha` at most, however often one looks (Ville).
//! Sources: Lindon, Malek, NeurIPS 2022, arXiv 2011.03567; Ramdas et al., "Game-theoretic statistics", arXiv 2210.01948.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    settings::AnalysisSettings,
    verdict::{Against, Estimate},
};

/// Ratios that are staked on, in equal parts.
const STAKES: [f64; 6] = [2.0, 3.0, 5.0, 10.0, 30.0, 100.0];

/// Pods of one second, and those of them with an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub pods: f64,
    pub with_error: f64,
}

impl Tally {
    /// Of the counts of errors of pods.
    pub(super) fn of(errors: impl Iterator<Item = f64>) -> Self {
        errors.fold(Self::default(), |tally, count| Self {
            pods: tally.pods + 1.0,
            with_error: tally.with_error + if count > 0.0 { 1.0 } else { 0.0 },
        })
    }
}

/// What was seen and staked so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ErrorBets {
    /// Logarithm of the wealth of each stake.
    wealth: [f64; STAKES.len()],
    canary: Tally,
    stable: Tally,
    /// Seconds compared.
    seconds: usize,
    /// Seconds before the change, for a pool that has no other pods.
    past: VecDeque<Tally>,
    is_against_past: bool,
}

impl ErrorBets {
    /// Notes a second before the change.
    pub(super) fn before(&mut self, settings: &AnalysisSettings, stable: Tally) {
        self.past.push_back(stable);
        while self.past.len() as f64 * settings.interval_seconds > settings.past_seconds {
            self.past.pop_front();
        }
    }

    /// Bets on a second; where there is no other pod, against one of the past. False if there is nothing to compare with.
    pub(super) fn bet(&mut self, settings: &AnalysisSettings, canary: Tally, beside: Tally) -> bool {
        let stable = if beside.pods > 0.0 {
            beside
        } else {
            // seconds in which no pod had a sample compare with nothing
            let past = std::iter::from_fn(|| self.past.pop_front()).find(|past| past.pods > 0.0);
            let Some(past) = past else { return false };
            self.is_against_past = true;
            past
        };
        if stable.pods <= 0.0 {
            return false;
        }
        let part = |ratio: f64| ratio * canary.pods / (ratio * canary.pods + stable.pods);
        let tolerated = part(settings.tolerated_error_ratio);
        for (wealth, stake) in self.wealth.iter_mut().zip(STAKES) {
            // a stake on less than what is tolerated would be won by a canary that is better
            let staked = part(stake.max(settings.tolerated_error_ratio));
            *wealth += canary.with_error * (staked / tolerated).ln()
                + stable.with_error * ((1.0 - staked) / (1.0 - tolerated)).ln();
        }
        for (sum, tally) in [(&mut self.canary, canary), (&mut self.stable, stable)] {
            sum.pods += tally.pods;
            sum.with_error += tally.with_error;
        }
        self.seconds += 1;
        true
    }

    /// The wealth: how many times likelier what was seen is at the ratios staked on than at the tolerated one.
    pub(super) fn evidence(&self) -> f64 {
        (self.wealth.iter().map(|wealth| wealth.exp()).sum::<f64>() / STAKES.len() as f64).min(1e12)
    }

    /// The figures of the verdict. Half an error more on each side, so that there is a ratio where none was seen.
    pub(super) fn estimate(&self, settings: &AnalysisSettings) -> Option<Estimate> {
        if self.seconds == 0 {
            return None;
        }
        let (canary, stable) = (self.canary.with_error + 0.5, self.stable.with_error + 0.5);
        let ratio = (canary / (self.canary.pods + 0.5)) / (stable / (self.stable.pods + 0.5));
        let away = (1.96 * (1.0 / canary + 1.0 / stable).sqrt()).exp();
        let against = if self.is_against_past { Against::OwnPast } else { Against::OtherPods };
        Some(Estimate {
            ratio,
            ratio_low: ratio / away,
            ratio_high: ratio * away,
            evidence: self.evidence(),
            seconds: self.seconds as f64 * settings.interval_seconds,
            against,
        })
    }

    /// In words, with values.
    pub(super) fn words(&self) -> String {
        let others = if self.is_against_past { "before the change" } else { "on the other pods" };
        format!(
            "{} of {} pod-seconds with an error, {} of {} {others}",
            self.canary.with_error, self.canary.pods, self.stable.with_error, self.stable.pods
        )
    }
}
