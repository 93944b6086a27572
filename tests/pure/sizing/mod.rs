//! The sizing of pools: edge cases, the HPA's behaviour cases, properties, recorded decisions.

mod backtest;
mod behavior;
mod decide_command;
mod edges;
mod golden;
mod guards;
mod leaks;
mod properties;

use sluice::{
    contract::{Algorithm, Objective},
    decide::sizing::{Decision, Observation, Sizer, SizingSettings},
    domain::{Automation, Bounds, Sample},
};

/// 1 % may wait longer than 20 ms.
pub const OBJECTIVE: Objective = Objective { wait_milliseconds: 20, max_waiting_percent: 1.0 };

pub fn settings(algorithm: Algorithm) -> SizingSettings {
    SizingSettings::new(algorithm, OBJECTIVE)
}

/// A pool whose load a test describes in words: it keeps the counters, the clock and the size.
pub struct Story {
    pub settings: SizingSettings,
    pub sizer: Sizer,
    pub now: f64,
    pub interval: f64,
    pub pods: u32,
    pub bounds: Bounds,
    pub automation: Automation,
    pub refused_beyond: Option<u32>,
    pub size: u32,
    pub sample: Sample,
}

/// Load that lasts for a while.
#[derive(Clone, Copy)]
pub struct Load {
    /// Transactions a second.
    pub rate: f64,
    /// Seconds each.
    pub service: f64,
    /// Clients waiting.
    pub waiting: f64,
    /// Leaked connections, on top of the busy ones.
    pub leaked: f64,
}

pub const fn load(rate: f64, service: f64) -> Load {
    Load { rate, service, waiting: 0.0, leaked: 0.0 }
}

impl Story {
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            settings: settings(algorithm),
            sizer: Sizer::default(),
            now: 0.0,
            interval: 15.0,
            pods: 1,
            bounds: Bounds { min: 2, max: 100, share: None },
            automation: Automation::Apply,
            refused_beyond: None,
            size: 5,
            sample: Sample::default(),
        }
    }

    pub fn every(mut self, seconds: f64) -> Self {
        self.interval = seconds;
        self
    }

    /// One tick with these samples; the decision is carried out.
    pub fn decide(&mut self, samples: &[Sample]) -> Decision {
        let decision = self.sizer.decide(&self.settings, &Observation { samples, ..self.observation() });
        self.size = decision.size;
        decision
    }

    /// The spec has changed between two readings; the decision is carried out.
    pub fn decide_again(&mut self) -> Decision {
        let decision = self.sizer.decide_again(&self.settings, &self.observation());
        self.size = decision.size;
        decision
    }

    fn observation(&self) -> Observation<'static> {
        Observation {
            now_seconds: self.now,
            interval_seconds: self.interval,
            pods: self.pods,
            current: self.size,
            target: self.size,
            bounds: self.bounds,
            automation: self.automation,
            refused_beyond: self.refused_beyond,
            samples: &[],
        }
    }

    /// One tick after an interval of this load.
    pub fn tick(&mut self, load: Load) -> Decision {
        self.now += self.interval;
        let busy = (load.rate * load.service).min(f64::from(self.size));
        self.sample.at_seconds = self.now;
        self.sample.transactions += load.rate * self.interval;
        self.sample.assignments += load.rate * self.interval;
        self.sample.busy_seconds += load.rate * load.service * self.interval;
        self.sample.active = busy + load.leaked;
        self.sample.leaked = load.leaked;
        self.sample.waiting = load.waiting;
        let sample = self.sample;
        self.decide(&[sample])
    }

    /// One tick in which so many connections are held and so many clients wait, and nothing finishes.
    pub fn stuck(&mut self, active: u32, leaked: u32, waiting: u32) -> Decision {
        self.now += self.interval;
        self.sample.at_seconds = self.now;
        (self.sample.active, self.sample.leaked) = (active.into(), leaked.into());
        self.sample.waiting = waiting.into();
        let sample = self.sample;
        self.decide(&[sample])
    }

    /// Many ticks of this load; the last decision.
    pub fn run(&mut self, seconds: f64, load: Load) -> Decision {
        let mut decision = self.tick(load);
        let end = self.now + seconds - self.interval;
        while self.now < end {
            decision = self.tick(load);
        }
        decision
    }

    /// A tick without a sample.
    pub fn silence(&mut self) -> Decision {
        self.now += self.interval;
        self.decide(&[])
    }
}
