//! Time of a decision: one pool as the agent decides it each second, and 1,000 pools as the operator does each tick.
//!
//! The pools have learned for two hours; their load varies, so that neither sizes nor settings stand still.

mod report;

use std::time::Instant;

use clap::Args;
use serde_json::json;
use sluice::{
    contract::{Algorithm, Objective},
    decide::sizing::{Observation, Sizer, SizingSettings},
    domain::{Automation, Bounds, Sample},
};

use crate::{
    Failure, machine,
    results::{self, Results, Samples},
    statistics,
};

const POOLS: u32 = 1000;
const LEARN_SECONDS: f64 = 7200.0;
const MAX: u32 = 200;

/// Options of `decision`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Rounds of 1,000 pools.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Decisions of one pool.
    #[arg(long, default_value_t = 3000)]
    decisions: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// A pool under a load that rises and falls, with some noise of its own.
struct Pool {
    sizer: Sizer,
    sample: Sample,
    size: u32,
    noise: u64,
}

impl Pool {
    fn new(seed: u32) -> Self {
        Self {
            sizer: Sizer::default(),
            sample: Sample::default(),
            size: 20,
            noise: u64::from(seed) * 2_654_435_761 + 1,
        }
    }

    /// Uniform in 0 to 1.
    fn random(&mut self) -> f64 {
        self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.noise >> 40) as f64 / f64::from(1 << 24)
    }

    /// Lets `interval` seconds of load pass and decides; the nanoseconds of the decision.
    fn step(&mut self, settings: &SizingSettings, interval: f64) -> u128 {
        let now = self.sample.at_seconds + interval;
        let rate = (600.0 + 400.0 * (now / 900.0).sin()) * (0.8 + 0.4 * self.random());
        let service = 0.08 + 0.04 * self.random();
        let busy = (rate * service).min(f64::from(self.size));
        self.sample.at_seconds = now;
        self.sample.transactions += (rate * interval).floor();
        self.sample.assignments += (rate * interval).floor();
        self.sample.busy_seconds += rate * interval * service;
        self.sample.wait_seconds += 0.01 * self.random();
        self.sample.active = busy.floor();
        self.sample.waiting = (rate * service - busy).floor().max(0.0);
        let samples = [self.sample];
        let observation = Observation {
            now_seconds: now,
            interval_seconds: interval,
            pods: 1,
            current: self.size,
            target: self.size,
            bounds: Bounds { min: 5, max: MAX, share: None },
            automation: Automation::Apply,
            refused_beyond: None,
            samples: &samples,
        };
        let start = Instant::now();
        let decision = self.sizer.decide(settings, &observation);
        let nanoseconds = start.elapsed().as_nanos();
        self.size = decision.size;
        nanoseconds
    }

    fn learned(settings: &SizingSettings, seed: u32) -> Self {
        let mut pool = Self::new(seed);
        while pool.sample.at_seconds < LEARN_SECONDS {
            pool.step(settings, 15.0);
        }
        pool
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    setting.insert("pools".into(), json!(POOLS));
    setting.insert("optimized".into(), json!(!cfg!(debug_assertions)));
    let settings =
        SizingSettings::new(Algorithm::Adaptive, Objective { wait_milliseconds: 20, max_waiting_percent: 1.0 });
    let mut samples = Samples::of("kind,pools,nanoseconds");
    let mut one = Pool::learned(&settings, 0);
    for _ in 0..options.decisions {
        samples.add(&format!("learning,1,{}", one.step(&settings, 15.0)));
    }
    let mut one = Pool::learned(&settings, 1);
    for second in 1..=options.decisions {
        let nanoseconds = one.step(&settings, 1.0);
        if second % 15 != 0 {
            samples.add(&format!("quick,1,{nanoseconds}"));
        }
    }
    let mut pools: Vec<Pool> = (0..POOLS).map(|seed| Pool::learned(&settings, seed)).collect();
    for _ in 0..options.rounds {
        let nanoseconds: u128 = pools.iter_mut().map(|pool| pool.step(&settings, 15.0)).sum();
        samples.add(&format!("round,{POOLS},{nanoseconds}"));
    }
    let figures = report::report(samples.text())?;
    Ok(Results { name: "decision", setting, samples, figures, keep: options.keep.then(results::committed) })
}
