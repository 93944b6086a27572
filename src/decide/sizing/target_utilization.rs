//! `TargetUtilization`: the ratio rule of the `HorizontalPodAutoscaler`.
//!
//! `size = ceil(current * utilisation / target)` with `utilisation = (busy + waiting) / current`, unless the ratio lies
//! within the tolerance of its direction. Windows and policies are `behavior`'s. Waiting clients count, leaked
//! connections do not.

use serde::{Deserialize, Serialize};

use super::{
    algorithm::{News, ProposedSize, SizingAlgorithm, SizingContext},
    decision::Explanation,
    load::LoadHistory,
};
use crate::domain::{Reading, Reason};

/// State of the algorithm: only what the recommendation's bounds need.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct TargetUtilization {
    history: LoadHistory,
}

/// A hair below whole numbers, so that 7.000000000000001 connections do not become 8.
const ROUNDING: f64 = 1e-9;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative; saturates
fn rounded_up(size: f64) -> u32 {
    (size - ROUNDING).ceil().max(0.0) as u32
}

impl SizingAlgorithm for TargetUtilization {
    fn learn(&mut self, reading: &Reading, _: &SizingContext) {
        self.history.service_seconds = reading.service_seconds;
    }

    fn wish(&mut self, news: News, context: &SizingContext) -> ProposedSize {
        news.samples.iter().for_each(|sample| self.history.add(sample));
        let pool = context.pool;
        let current = f64::from(pool.current.max(1));
        let size = self.history.last().map_or(pool.target, |load| {
            let ratio = load / current / context.target_utilization;
            let slight = (1.0 - context.tolerance_down..=1.0 + context.tolerance_up).contains(&ratio);
            if slight { pool.target } else { rounded_up(current * ratio) }
        });
        ProposedSize { size, base: size, reason: Reason::Demand }
    }

    fn cap(&mut self, _: u32) {}

    fn explain(&self, context: &SizingContext) -> Explanation {
        let target = context.target_utilization;
        self.history.explain(|load| rounded_up(load / target))
    }

    fn rewind(&mut self, now_seconds: f64) {
        self.history.rewind(now_seconds);
    }
}
