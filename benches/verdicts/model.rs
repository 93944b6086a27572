//! PURE: rollouts that never were: what the poolers of some pods would have said each second, before a change and after it.
//!
//! Single transactions are drawn, and what a pooler says of them is made of them: how many there were in a second, and their mean. So a change
//! of the 95 % quantile is one of transactions, and what remains of it in means is what remains.

use super::{random::Stream, statistics::quantile};

/// Seconds before the change, and at most after it.
pub const BEFORE: usize = 120;
pub const AFTER: usize = 190;
/// Mean transaction time in milliseconds where nothing slows it.
const BASE_MS: f64 = 8.0;
/// Standard deviation of the level of the pods, as a logarithm: they differ for good.
const POD_DEVIATION: f64 = 0.15;
/// A new process is this many times slower, decaying with this many seconds.
const COLD_RATIO: f64 = 3.0;
const COLD_SECONDS: f64 = 1.5;
/// Draws that shapes of transaction times are measured with.
const DRAWS: usize = 200_000;

/// How single transaction times are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Logarithm normal with this deviation.
    LogNormal(f64),
    /// Pareto of this exponent: below 2 the variance is infinite.
    Pareto(f64),
}

/// A logarithm that wanders around 0: deviation, and correlation from second to second.
#[derive(Clone, Copy, Debug)]
pub struct Wander {
    deviation: f64,
    correlation: f64,
}

/// A kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    shape: Shape,
    /// Transactions per second and pod.
    rate: f64,
    /// Of each pod by itself.
    jitter: Wander,
    /// Of all pods together: rate and, half as much, times.
    load: Wander,
}

/// The kinds that are measured.
pub const KINDS: [Kind; 5] = [
    Kind {
        name: "30 % jitter",
        shape: Shape::LogNormal(0.7),
        rate: 60.0,
        jitter: Wander { deviation: 0.3, correlation: 0.0 },
        load: Wander { deviation: 0.1, correlation: 0.9 },
    },
    Kind {
        name: "30 % jitter that lasts",
        shape: Shape::LogNormal(0.7),
        rate: 60.0,
        jitter: Wander { deviation: 0.3, correlation: 0.8 },
        load: Wander { deviation: 0.1, correlation: 0.9 },
    },
    Kind {
        name: "heavy tails",
        shape: Shape::Pareto(1.5),
        rate: 30.0,
        jitter: Wander { deviation: 0.1, correlation: 0.5 },
        load: Wander { deviation: 0.1, correlation: 0.9 },
    },
    Kind {
        name: "autocorrelated load",
        shape: Shape::LogNormal(0.7),
        rate: 60.0,
        jitter: Wander { deviation: 0.2, correlation: 0.5 },
        load: Wander { deviation: 0.5, correlation: 0.95 },
    },
    Kind {
        name: "all of it",
        shape: Shape::Pareto(1.8),
        rate: 30.0,
        jitter: Wander { deviation: 0.3, correlation: 0.5 },
        load: Wander { deviation: 0.5, correlation: 0.95 },
    },
];

/// What the change does to transaction times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// All take twice as long.
    All,
    /// One in ten stalls, for so long that the 95 % quantile doubles.
    Stalls,
    /// The slowest tenth takes twice as long, the others as before.
    Slowest,
}

impl Change {
    pub const ALL: [Self; 4] = [Self::None, Self::All, Self::Stalls, Self::Slowest];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all x2",
            Self::Stalls => "a tenth stalls",
            Self::Slowest => "slowest tenth x2",
        }
    }
}

impl Shape {
    /// A time whose mean is 1.
    fn draw(self, random: &mut Stream) -> f64 {
        match self {
            Self::LogNormal(deviation) => (deviation * random.normal() - deviation * deviation / 2.0).exp(),
            Self::Pareto(exponent) => (random.exponential() / exponent).exp() * (exponent - 1.0) / exponent,
        }
    }
}

/// A change of transactions of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Harm {
    change: Change,
    /// The slowest tenth is above this.
    slow: f64,
    /// What a stall multiplies a time with.
    stall: f64,
    /// What became of the 95 % quantile of transactions, and of their mean.
    pub quantile_ratio: f64,
    pub mean_ratio: f64,
}

impl Harm {
    /// The change as it has to be for the 95 % quantile to double.
    pub fn of(kind: &Kind, change: Change) -> Self {
        let mut random = Stream::new(7);
        let times: Vec<f64> = (0..DRAWS).map(|_| kind.shape.draw(&mut random)).collect();
        let before = quantile(&times, 0.95);
        let mut harm = Self { change, slow: quantile(&times, 0.9), stall: 1.0, quantile_ratio: 1.0, mean_ratio: 1.0 };
        let after = |harm: &Self| {
            let mut random = Stream::new(11);
            times.iter().map(|time| harm.apply(*time, &mut random)).collect::<Vec<f64>>()
        };
        if change == Change::Stalls {
            let (mut low, mut high) = (1.0, 1000.0);
            for _ in 0..30 {
                harm.stall = f64::midpoint(low, high);
                if quantile(&after(&harm), 0.95) < 2.0 * before {
                    low = harm.stall;
                } else {
                    high = harm.stall;
                }
            }
        }
        let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
        let changed = after(&harm);
        harm.quantile_ratio = quantile(&changed, 0.95) / before;
        harm.mean_ratio = mean(&changed) / mean(&times);
        harm
    }

    fn apply(&self, time: f64, random: &mut Stream) -> f64 {
        let factor = match self.change {
            Change::All => 2.0,
            Change::Stalls if random.uniform() < 0.1 => self.stall,
            Change::Slowest if time > self.slow => 2.0,
            Change::None | Change::Stalls | Change::Slowest => 1.0,
        };
        time * factor
    }
}

/// What a pooler says of one second.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    pub transactions: f64,
    pub mean_ms: f64,
}

/// One rollout: the seconds of each pod. The first pod is the canary, from [`BEFORE`] on.
pub struct Rollout {
    pub pods: Vec<Vec<Second>>,
}

impl Rollout {
    pub fn new(kind: &Kind, harm: &Harm, pods: usize, seed: u64) -> Self {
        let mut random = Stream::new(seed);
        let seconds = BEFORE + AFTER;
        let load = kind.load.walk(seconds, &mut random);
        let one = |pod: usize| {
            let mut random = Stream::new(seed.wrapping_mul(1009).wrapping_add(pod as u64 + 1));
            let level = POD_DEVIATION * random.normal();
            let jitter = kind.jitter.walk(seconds, &mut random);
            let second = |(at, (load, jitter)): (usize, (&f64, &f64))| {
                let expected = kind.rate * load.exp();
                let transactions = (expected + expected.sqrt() * random.normal()).round().max(1.0);
                let is_canary = pod == 0 && at >= BEFORE;
                let age = at.saturating_sub(BEFORE) as f64;
                let cold = if is_canary { 1.0 + (COLD_RATIO - 1.0) * (-age / COLD_SECONDS).exp() } else { 1.0 };
                let scale = BASE_MS * (level + jitter + load / 2.0).exp() * cold;
                let (mut sum, mut drawn) = (0.0, 0.0);
                while drawn < transactions {
                    let time = kind.shape.draw(&mut random);
                    sum += if is_canary { harm.apply(time, &mut random) } else { time };
                    drawn += 1.0;
                }
                Second { transactions, mean_ms: scale * sum / transactions }
            };
            load.iter().zip(&jitter).enumerate().map(second).collect()
        };
        Self { pods: (0..pods).map(one).collect() }
    }
}

impl Wander {
    /// A first-order autoregression, in its stationary distribution from the start.
    fn walk(self, seconds: usize, random: &mut Stream) -> Vec<f64> {
        let step = (1.0 - self.correlation * self.correlation).sqrt();
        let mut at = random.normal();
        let mut walked = Vec::with_capacity(seconds);
        for _ in 0..seconds {
            walked.push(self.deviation * at);
            at = self.correlation * at + step * random.normal();
        }
        walked
    }
}
