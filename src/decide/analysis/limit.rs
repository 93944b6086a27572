//! Limits: what no comparison is needed for. They stay beside the comparisons because a database that slows all pods alike looks like no
//! difference, and because a mean hides a tail.
//!
//! A limit that the other pods exceed too is not the canary's doing: that decides nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Buckets of times are this much wider than the one before: a quantile is exact to 1 %.
const BUCKET: f64 = 1.02;
/// Below this many milliseconds all is one bucket.
const LEAST_MS: f64 = 0.001;
/// The quantile that has a limit.
const QUANTILE: f64 = 0.95;

/// How a limit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limited {
    /// Not exceeded.
    Within,
    /// Exceeded by the canary alone.
    Exceeded,
    /// Exceeded by the other pods too.
    ByAll,
}

/// Means of intervals by their time, weighted by the transactions that they are of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Times {
    /// Weight by number of the bucket.
    buckets: BTreeMap<i16, f64>,
}

impl Times {
    pub(super) fn add(&mut self, milliseconds: f64, weight: f64) {
        let bucket = (milliseconds.max(LEAST_MS) / LEAST_MS).ln() / BUCKET.ln();
        #[allow(clippy::cast_possible_truncation)] // a million seconds are bucket 1,400
        let bucket = bucket.min(f64::from(i16::MAX)).round() as i16;
        *self.buckets.entry(bucket).or_default() += weight;
    }

    /// The weighted 95 % quantile in milliseconds; none of nothing.
    pub(super) fn quantile(&self) -> Option<f64> {
        let total: f64 = self.buckets.values().sum();
        let mut below = 0.0;
        for (bucket, weight) in &self.buckets {
            below += weight;
            if total > 0.0 && below >= QUANTILE * total {
                return Some(LEAST_MS * BUCKET.powf(f64::from(*bucket)));
            }
        }
        None
    }
}

/// The quantile of the canary's times under a limit, and of the others'.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct QuantileLimit {
    pub canary: Times,
    pub stable: Times,
}

impl QuantileLimit {
    pub(super) fn stands(&self, most: f64) -> Limited {
        let exceeds = |times: &Times| times.quantile().is_some_and(|quantile| quantile > most);
        match (exceeds(&self.canary), exceeds(&self.stable)) {
            (false, _) => Limited::Within,
            (true, false) => Limited::Exceeded,
            (true, true) => Limited::ByAll,
        }
    }

    pub(super) fn words(&self, most: f64) -> String {
        let told =
            |times: &Times| times.quantile().map_or("unknown".to_owned(), |quantile| format!("{quantile:.3} ms"));
        format!(
            "95 % quantile of the means of an interval {} (limit {most} ms), {} on the other pods",
            told(&self.canary),
            told(&self.stable)
        )
    }
}

/// A sum over the canary under a limit, and over the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SumLimit {
    canary: f64,
    canary_seconds: f64,
    stable: f64,
    stable_seconds: f64,
}

impl SumLimit {
    pub(super) fn add(&mut self, canary: &[f64], stable: &[f64]) {
        for count in canary {
            self.canary += count;
            self.canary_seconds += 1.0;
        }
        for count in stable {
            self.stable += count;
            self.stable_seconds += 1.0;
        }
    }

    pub(super) fn stands(&self, most: f64) -> Limited {
        // no fewer per pod and second than the canary
        let others_too = self.stable > 0.0 && self.stable * self.canary_seconds >= self.canary * self.stable_seconds;
        match (self.canary > most, others_too) {
            (false, _) => Limited::Within,
            (true, false) => Limited::Exceeded,
            (true, true) => Limited::ByAll,
        }
    }

    pub(super) fn words(&self, most: f64) -> String {
        format!(
            "{} in {} pod-seconds (limit {most}), {} in {} on the other pods",
            self.canary, self.canary_seconds, self.stable, self.stable_seconds
        )
    }
}

/// Each sample of the canary under a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct EachLimit {
    failures: u32,
    worst: f64,
    now: Option<f64>,
    stable_exceeds: bool,
}

impl EachLimit {
    /// Takes the samples of one look; one measurement, whatever the number of pods.
    pub(super) fn add(&mut self, most: f64, canary: &[f64], stable: &[f64]) {
        self.now = canary.iter().copied().reduce(f64::max);
        let exceeding = stable.iter().filter(|value| **value > most).count();
        self.stable_exceeds = exceeding > 0 && 2 * exceeding >= stable.len();
        if let Some(now) = self.now {
            self.worst = self.worst.max(now);
            if now > most && !self.stable_exceeds {
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    pub(super) fn stands(&self, most: f64, failure_limit: u32) -> Limited {
        if self.failures > failure_limit {
            return Limited::Exceeded;
        }
        let exceeds = self.now.is_some_and(|now| now > most);
        if exceeds && self.stable_exceeds { Limited::ByAll } else { Limited::Within }
    }

    pub(super) fn words(&self, most: f64, failure_limit: u32) -> String {
        format!(
            "{:.0} ms at worst (limit {most} ms), {} samples beyond it (allowed: {failure_limit}){}",
            self.worst,
            self.failures,
            if self.stable_exceeds { "; the other pods are beyond it too" } else { "" }
        )
    }
}
