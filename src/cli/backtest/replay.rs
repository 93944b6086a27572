//! One policy on one trace: the model runs, the policy watches and sets the size.

use super::{
    model::{Counters, Model, Score},
    scenario::{Scenario, ScenarioEventKind},
    trace::Trace,
};
use crate::decide::sizing::{Observation, Sizer, SizingSettings};
use crate::domain::{Automation, Bounds, Sample};

/// More connections per pod than any load of a trace asks for.
const AMPLE: u32 = 10_000;

/// How often a policy looks and acts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cadence {
    /// Seconds between two decisions.
    pub interval_seconds: f64,
    /// Seconds between two readings, and when the first one is.
    pub scrape_seconds: f64,
    /// See `scrape_seconds`.
    pub scrape_phase_seconds: f64,
    /// Seconds from a decision until the pooler works with it.
    pub delay_seconds: f64,
    /// What it looks at.
    pub counters: Counters,
}

impl Cadence {
    /// Beside the pooler: once a second, in force at once.
    pub const AGENT: Self = Self {
        interval_seconds: 1.0,
        scrape_seconds: 1.0,
        scrape_phase_seconds: 0.9,
        delay_seconds: 0.1,
        counters: Counters::Pooler,
    };
    /// Through Prometheus: a tick and a scrape every 15 s, in force three seconds later.
    pub const OPERATOR: Self = Self {
        interval_seconds: 15.0,
        scrape_seconds: 15.0,
        scrape_phase_seconds: 7.0,
        delay_seconds: 3.0,
        counters: Counters::Pooler,
    };
}

/// What sets the size.
#[derive(Clone, Debug)]
pub enum Policy {
    /// The sizing of operator and agent.
    Sized {
        /// Its settings.
        settings: Box<SizingSettings>,
        /// When it looks and acts.
        cadence: Cadence,
    },
    /// One size per pod for ever.
    Fixed(u32),
}

/// One moment of a run, for the picture. Figures of all pods together, the largest since the moment before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunMoment {
    /// Seconds since the beginning.
    pub t: f64,
    /// Sum of the limits.
    pub size: f64,
    /// Busy server connections.
    pub busy: f64,
    /// Clients waiting.
    pub waiting: f64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its figures.
    pub score: Score,
    /// Its course, one moment a second.
    pub course: Vec<RunMoment>,
}

/// Lets a policy run on a trace.
pub fn run(trace: &Trace, policy: &Policy, idle_timeout_seconds: f64) -> Run {
    let mut model = Model::new(trace, initial_size(trace), idle_timeout_seconds);
    let mut course = Vec::new();
    match policy {
        Policy::Fixed(size) => {
            model.resize(*size);
            let mut t = 0.0;
            while t < model.seconds() {
                t += 1.0;
                model.advance(t);
                course.push(moment(&model, t, *size));
            }
        }
        Policy::Sized { settings, cadence } => {
            let mut driver = Driver::new(trace, settings, *cadence);
            driver.run(&mut model, &mut course);
        }
    }
    Run { score: model.finish(), course }
}

/// Share of the transactions that wait longer than the objective where connections are never short: while they are opened, while the
/// database is away. Where more connections slow the database down, at the size that it carries if that lets fewer wait.
pub fn unavoidable(trace: &Trace, idle_timeout_seconds: f64) -> f64 {
    let Scenario { db_limit, replicas, .. } = trace.scenario;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates; not negative
    let carried = (db_limit / f64::from(replicas)).ceil() as u32;
    let sizes = [Some(AMPLE), (carried > 0).then_some(carried)];
    let shares = sizes.into_iter().flatten().map(|size| {
        let fixed = run(trace, &Policy::Fixed(size), idle_timeout_seconds);
        fixed.score.violation_share()
    });
    shares.fold(1.0, f64::min)
}

fn moment(model: &Model, t: f64, size: u32) -> RunMoment {
    RunMoment {
        t,
        size: f64::from(size) * f64::from(model.alive()),
        busy: model.busy() as f64,
        waiting: model.waiting() as f64,
    }
}

fn initial_size(trace: &Trace) -> u32 {
    let scenario = &trace.scenario;
    if scenario.init_size > 0 {
        return scenario.init_size;
    }
    let first: Vec<(f64, f64)> = trace.by_second().into_iter().take(60).collect();
    let load = first.iter().map(|(rate, service)| rate * service).sum::<f64>() / first.len().max(1) as f64;
    let size = (1.2 * load / f64::from(scenario.replicas)).ceil() + 2.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
    let size = size.clamp(0.0, f64::from(scenario.max_size)) as u32;
    size.clamp(scenario.min_size, scenario.max_size)
}

/// Observes, decides, applies.
struct Driver<'a> {
    scenario: &'a Scenario,
    settings: &'a SizingSettings,
    cadence: Cadence,
    sizer: Sizer,
    /// Per pod.
    current: u32,
    target: u32,
    /// Readings since the last decision, and the last one of all.
    readings: Vec<Sample>,
    last: Option<Sample>,
    /// Sizes on their way.
    pending: Vec<(f64, u32)>,
    resets: Vec<f64>,
}

impl<'a> Driver<'a> {
    fn new(trace: &'a Trace, settings: &'a SizingSettings, cadence: Cadence) -> Self {
        let scenario = &trace.scenario;
        let mut resets: Vec<f64> = scenario
            .events
            .iter()
            .filter(|event| event.kind == ScenarioEventKind::CounterReset)
            .map(|event| event.t)
            .collect();
        resets.sort_by(|a, b| b.total_cmp(a));
        let size = initial_size(trace);
        Self {
            scenario,
            settings,
            cadence,
            sizer: Sizer::default(),
            current: size,
            target: size,
            readings: Vec::new(),
            last: None,
            pending: Vec::new(),
            resets,
        }
    }

    fn run(&mut self, model: &mut Model, course: &mut Vec<RunMoment>) {
        let (mut scrapes, mut readings) = (0_u32, 0_u32);
        let mut decisions = 1_u32;
        let mut seconds = 1_u32;
        let end = model.seconds();
        loop {
            let scrape = self.cadence.scrape_phase_seconds + f64::from(scrapes) * self.cadence.scrape_seconds;
            let decision = f64::from(decisions) * self.cadence.interval_seconds;
            let second = f64::from(seconds);
            let pending = self.pending.first().map_or(f64::INFINITY, |&(at, _)| at);
            let reset = self.resets.last().copied().unwrap_or(f64::INFINITY);
            // the agents read once a second, one of the readings just before each scrape
            let reading = match self.cadence.counters {
                Counters::Pooler => self.cadence.scrape_phase_seconds.fract() + f64::from(readings),
                Counters::Exact => f64::INFINITY,
            };
            let at = [scrape, decision, second, pending, reset, reading].into_iter().fold(f64::INFINITY, f64::min);
            if at > end {
                break;
            }
            model.advance(at);
            // what is in force first, then what is read, then what is decided on it
            if at >= pending {
                self.current = self.pending.remove(0).1;
                model.resize(self.current);
            } else if at >= reset {
                self.resets.pop();
                model.reset_counters(self.cadence.counters);
            } else if at >= reading {
                readings += 1;
                model.read();
            } else if at >= scrape {
                scrapes += 1;
                let sample = model.sample(self.cadence.counters);
                self.readings.push(sample);
            } else if at >= decision {
                decisions += 1;
                self.decide(model, at);
            } else {
                seconds += 1;
                course.push(moment(model, at, self.current));
            }
        }
    }

    fn decide(&mut self, model: &Model, now: f64) {
        let covered = |kind| self.scenario.events.iter().any(|event| event.kind == kind && event.covers(now));
        let mut readings = std::mem::take(&mut self.readings);
        if covered(ScenarioEventKind::MetricsGap) {
            readings.clear();
        } else if covered(ScenarioEventKind::StaleMetrics) {
            readings = self.last.into_iter().collect();
        }
        self.last = readings.last().copied().or(self.last);
        let pods = model.alive();
        let observation = Observation {
            now_seconds: now,
            interval_seconds: self.cadence.interval_seconds,
            pods,
            current: self.current * pods,
            target: self.target * pods,
            bounds: Bounds { min: self.scenario.min_size * pods, max: self.scenario.max_size * pods, share: None },
            automation: Automation::Apply,
            refused_beyond: None,
            samples: &readings,
        };
        let size = self.sizer.decide(self.settings, &observation).size.div_ceil(pods);
        if size != self.target {
            self.target = size;
            self.pending.push((now + self.cadence.delay_seconds, size));
        }
    }
}
