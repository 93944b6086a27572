//! How much the figure of a pod varies from second to second, and how slowly.
//!
//! Seconds resemble those before them: the mean of `n` of them knows less than `n` independent ones would. The model is quick jitter and a slow
//! part that decays geometrically, a first-order autoregression seen through noise: the correlation at a lag of `k` seconds is `a f^k`. Jitter
//! alone is `a = 0`, an autoregression `a = 1`; one lag could not tell a slow drift below quick jitter from jitter that lasts a second.
//! The correlations are those of all pods together, corrected for what the means that were taken out make of them (Marriott and Pope 1954); `a` and
//! `f` fit them best (least squares).

/// Lags that are looked at.
const LAGS: usize = 8;
/// So many times as long has a series to be.
const SERIES_PER_LAG: usize = 4;
/// The decay is looked for in steps of this, and below this: what is slower cannot be told from levels that differ.
const DECAY_STEP: f64 = 0.02;
const SLOWEST_DECAY: f64 = 0.98;
/// The least standard deviation of a logarithm: series that repeat themselves are no proof of anything.
const LEAST_DEVIATION: f64 = 0.02;
/// Residuals count at most this many standard deviations: one second of a heavy tail is no shift.
const FAR_DEVIATIONS: f64 = 3.0;
/// But never less than this many times what is tolerated: a shift in a third of the seconds is one.
const FAR_TOLERANCES: f64 = 3.0;
/// From the median of absolute deviations to the standard deviation, of a normal distribution.
const NORMAL_PER_MEDIAN: f64 = 1.4826;

/// The variation of one pod's logarithm around what all pods do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Noise {
    /// Variance of one second.
    pub variance: f64,
    /// The part of it that is slow.
    slow: f64,
    /// What is left of the slow part after a second.
    decay: f64,
}

impl Noise {
    /// From residuals: a series per pod, a value per second. `pods` are those that vary freely (one less where the mean of all has been
    /// taken out), `seconds` likewise.
    pub(super) fn of(residuals: &[Vec<Option<f64>>], pods: f64, seconds: f64) -> Option<Self> {
        let freedom = pods * seconds;
        if freedom < 4.0 {
            return None;
        }
        let squares: f64 = residuals.iter().flatten().flatten().map(|value| value * value).sum();
        // the expectation of 1 / variance, so that few seconds are not taken as surer than they are
        let variance = (squares / (freedom - 2.0)).max(LEAST_DEVIATION * LEAST_DEVIATION);
        let longest = residuals.iter().map(Vec::len).max().unwrap_or(0);
        let lags = LAGS.min(longest / SERIES_PER_LAG);
        let correlations: Vec<f64> = (1..=lags).map(|lag| correlation(residuals, lag)).collect();
        let mut noise = Self { variance, slow: 0.0, decay: 0.0 };
        for _ in 0..3 {
            // a mean that was taken out of n seconds has taken its own variance with it
            let taken = 1.0 / noise.independent(seconds + 1.0);
            let corrected: Vec<f64> = correlations.iter().map(|raw| raw + (1.0 - raw) * taken).collect();
            (noise.slow, noise.decay) = fit(&corrected);
        }
        Some(noise)
    }

    /// So many independent seconds are `seconds` of these. Of the slow part the first is whole, and each further one knows
    /// `(1 - f) / (1 + f)` of one: so exactly in the likelihood of an autoregression.
    pub(super) fn independent(self, seconds: f64) -> f64 {
        if seconds <= 0.0 {
            return f64::MIN_POSITIVE;
        }
        let slow = 1.0 + (seconds - 1.0) * (1.0 - self.decay) / (1.0 + self.decay);
        1.0 / ((1.0 - self.slow) / seconds + self.slow / slow)
    }
}

/// The correlation at a lag, of all series together.
fn correlation(residuals: &[Vec<Option<f64>>], lag: usize) -> f64 {
    let pairs = residuals.iter().flat_map(|series| {
        series.iter().zip(series.iter().skip(lag)).filter_map(|(left, right)| Some(((*left)?, (*right)?)))
    });
    let (products, squares) = pairs.fold((0.0, 0.0), |sum, (left, right)| {
        (sum.0 + left * right, sum.1 + f64::midpoint(left * left, right * right))
    });
    if squares > 0.0 { products / squares } else { 0.0 }
}

/// The slow part and its decay that fit correlations at lags of 1, 2, ... best.
fn fit(correlations: &[f64]) -> (f64, f64) {
    let mut best = (f64::INFINITY, 0.0, 0.0);
    let mut decay = DECAY_STEP;
    while decay <= SLOWEST_DECAY {
        let powers: Vec<f64> =
            std::iter::successors(Some(decay), |power| Some(power * decay)).take(correlations.len()).collect();
        let together: f64 = correlations.iter().zip(&powers).map(|(correlation, power)| correlation * power).sum();
        let slow = (together / powers.iter().map(|power| power * power).sum::<f64>()).clamp(0.0, 1.0);
        let missed =
            correlations.iter().zip(&powers).map(|(correlation, power)| (correlation - slow * power).powi(2)).sum();
        if missed < best.0 {
            best = (missed, slow, decay);
        }
        decay += DECAY_STEP;
    }
    (best.1, best.2)
}

/// The middle value; 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), middle.checked_sub(1).and_then(|below| sorted.get(below))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(*lower, *upper),
        (Some(upper), _) => *upper,
        (None, _) => 0.0,
    }
}

/// The mean of what is within `most` of the middle value, what is further counting as that far (Winsor, Huber): a level shift moves it in
/// full, one far second hardly.
pub(super) fn clipped_mean(values: &[f64], most: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = median(values);
    middle + values.iter().map(|value| (value - middle).clamp(-most, most)).sum::<f64>() / values.len() as f64
}

/// How far from the middle a value counts in full; `tolerated` is the logarithm of what is tolerated.
pub(super) fn far(residuals: &[f64], tolerated: f64) -> f64 {
    let middle = median(residuals);
    let away: Vec<f64> = residuals.iter().map(|value| (value - middle).abs()).collect();
    let deviation = NORMAL_PER_MEDIAN * median(&away);
    (FAR_DEVIATIONS * deviation).max(FAR_TOLERANCES * tolerated)
}
