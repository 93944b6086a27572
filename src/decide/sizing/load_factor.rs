//! `LoadFactor`: the classic formula, kept for comparison and for those who ask for it.
//!
//! ```text
//! load   = active + waiting
//! base   = max(min, floor(0.7 load))
//! growth = 1 + (load - base) / max
//! size   = min(base growth, max), rounded up
//! ```
//!
//! It cannot keep a service level by construction: the base lies below the load, and the growth vanishes for loads far
//! below the maximum. On the 17 traces of `docs/sizing.md` it met the objective on none: the bare formula let 51.6 % of the
//! transactions wait longer than 20 ms, and with the default `behavior` and its window of 300 s 13.9 %, both above what no
//! size could have avoided. Use `Adaptive`.

use serde::{Deserialize, Serialize};

use super::{
    algorithm::{News, ProposedSize, SizingAlgorithm, SizingContext},
    decision::Explanation,
    load::LoadHistory,
};
use crate::domain::{Reading, Reason};

/// Share of the load that the base covers.
const BASE_SHARE: f64 = 0.7;

/// State of the algorithm: only what the recommendation's bounds need.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LoadFactor {
    history: LoadHistory,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to 0..=max
fn size(load: f64, min: f64, max: f64) -> u32 {
    let max = max.max(1.0);
    let base = (BASE_SHARE * load).floor().max(min);
    let growth = 1.0 + (load - base) / max;
    (base * growth).min(max).ceil().max(0.0) as u32
}

impl SizingAlgorithm for LoadFactor {
    fn learn(&mut self, reading: &Reading, _: &SizingContext) {
        self.history.service_seconds = reading.service_seconds;
    }

    fn wish(&mut self, news: News, context: &SizingContext) -> ProposedSize {
        news.samples.iter().for_each(|sample| self.history.add(sample));
        let pool = context.pool;
        let size = self.history.last().map_or(pool.target, |load| {
            let size = size(load, f64::from(pool.min), f64::from(pool.max));
            let tolerance = if size > pool.target { context.tolerance_up } else { context.tolerance_down };
            let slight = f64::from(size.abs_diff(pool.target)) <= tolerance * f64::from(pool.target);
            if slight { pool.target } else { size }
        });
        ProposedSize { size, base: size, reason: Reason::Demand }
    }

    fn cap(&mut self, _: u32) {}

    fn explain(&self, context: &SizingContext) -> Explanation {
        let (min, max) = (f64::from(context.pool.min), f64::from(context.pool.max));
        self.history.explain(|load| size(load, min, max))
    }

    fn rewind(&mut self, now_seconds: f64) {
        self.history.rewind(now_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn the_formula_is_the_one_of_the_documentation() {
        assert_eq!(size(0.0, 5.0, 100.0), 5); // 5 * (1 + (0 - 5) / 100) = 4.75
        assert_eq!(size(50.0, 5.0, 100.0), 41); // 35 * (1 + 15 / 100) = 40.25
        assert_eq!(size(400.0, 5.0, 100.0), 100);
    }
}
