//! `Adaptive`: Erlang-C staffing of the measured demand, with window and headroom chosen by replay.
//!
//! The algorithm keeps 45 settings `(W, h)`. A setting's size is the staffing of `h` times the largest demand of the
//! last `W` seconds. Every sample charges each setting what it would have held and what would have waited under it; the
//! setting with the least `mean size + price * mean violations` is followed. On top comes the fast path: clients that
//! wait now raise the size at once. `docs/sizing.md` has the reasons and the figures.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    algorithm::{News, ProposedSize, SizingAlgorithm, SizingContext},
    decision::{Explanation, Setting},
    staffing::Staffing,
};
use crate::domain::{Reading, Reason, Sample};

/// Seconds for which a peak of the demand may be remembered.
const WINDOWS_SECONDS: [f64; 5] = [0.0, 120.0, 300.0, 1200.0, 7200.0];
/// Multiples of the remembered demand.
const HEADROOMS: [f64; 9] = [0.85, 0.93, 1.0, 1.07, 1.15, 1.25, 1.4, 1.6, 2.0];
const SETTINGS: usize = WINDOWS_SECONDS.len() * HEADROOMS.len();
/// The longest window.
const LONGEST_WINDOW_SECONDS: f64 = 7200.0;
/// Peaks kept at most: two hours of samples, and some.
const MOST_PEAKS: usize = 600;
/// Samples kept while a queue hides the demand.
const MOST_CENSORED: usize = 4;
/// The price stays within these factors of [`AdaptiveParameters::price`].
const PRICE_FACTORS: (f64, f64) = (0.3, 5.0);
/// A sample counts at most as this many times the violation target.
const WORST_SAMPLE: f64 = 25.0;
/// No event of the replay lies before this time.
const LONG_AGO: f64 = -1e9;
/// From this interval on the number of clients hides the true rate of arrivals.
const BLIND_INTERVAL_SECONDS: f64 = 10.0;

/// The parameters of `Adaptive`. The result is flat in most of them (`docs/sizing.md`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveParameters {
    /// Violations aimed at, as a share of the objective's `maxWaitingPercent`; the rest is margin.
    pub target_share: f64,
    /// Erlang-C probability of the settings, as a multiple of the objective's `maxWaitingPercent`.
    pub staff_factor: f64,
    /// The same for the fast path.
    pub fast_factor: f64,
    /// Half-life of the replayed means, in seconds.
    pub memory_seconds: f64,
    /// Time constant of the demand's level, in seconds; it jumps when sampling noise cannot explain a change.
    pub level_tau_seconds: f64,
    /// How fast the price follows the measured violations.
    pub gain: f64,
    /// 1 % more violations are worth this many percent more connections.
    pub price: f64,
    /// Another setting must be cheaper by this share to be followed.
    pub switch: f64,
    /// Under a saturated database: factor from one size to the next while that pays. 1: a growth that bought nothing is taken
    /// back and the knee is not searched, as in the reference implementation.
    pub knee_climb: f64,
    /// Seconds in which a queue is to be drained.
    pub drain_seconds: f64,
    /// Seconds for which a raise of the fast path is held.
    pub hold_seconds: f64,
    /// Seconds to open connections and drain, one decision interval on top.
    pub react_seconds: f64,
    /// Window of the setting used while learning, in seconds: 0, 120, 300, 1200 or 7200.
    pub default_window_seconds: f64,
    /// Headroom of the setting used while learning.
    pub default_headroom: f64,
    /// Seconds of samples before a setting is chosen.
    pub learn_seconds: f64,
}

impl AdaptiveParameters {
    /// Checks that each parameter is within what it can mean.
    ///
    /// # Errors
    /// Names the first that is not, its value, and what it may hold.
    pub fn check(&self) -> Result<(), String> {
        let positive = f64::MIN_POSITIVE..=1e9;
        let ranges = [
            ("target_share", self.target_share, 0.01..=1.0, "0.01 to 1"),
            ("staff_factor", self.staff_factor, positive.clone(), "a number above 0"),
            ("fast_factor", self.fast_factor, positive.clone(), "a number above 0"),
            ("memory_seconds", self.memory_seconds, 1.0..=1e9, "a second or more"),
            ("level_tau_seconds", self.level_tau_seconds, positive.clone(), "seconds above 0"),
            ("gain", self.gain, 0.0..=1.0, "0 to 1"),
            ("price", self.price, positive.clone(), "a number above 0"),
            ("switch", self.switch, 0.0..=1.0, "0 to 1"),
            ("knee_climb", self.knee_climb, 1.0..=10.0, "1 to 10"),
            ("drain_seconds", self.drain_seconds, positive, "seconds above 0"),
            ("hold_seconds", self.hold_seconds, 0.0..=1e9, "seconds, 0 or more"),
            ("react_seconds", self.react_seconds, 0.0..=1e9, "seconds, 0 or more"),
            ("default_headroom", self.default_headroom, 1.0..=10.0, "1 to 10"),
            ("learn_seconds", self.learn_seconds, 0.0..=1e9, "seconds, 0 or more"),
        ];
        if let Some((name, value, _, expected)) = ranges.into_iter().find(|(_, value, range, _)| !range.contains(value))
        {
            return Err(format!("{name} is {value}; expected {expected}"));
        }
        let window = self.default_window_seconds;
        if !WINDOWS_SECONDS.iter().any(|known| (known - window).abs() < f64::EPSILON) {
            return Err(format!("default_window_seconds is {window}; expected one of {WINDOWS_SECONDS:?}"));
        }
        Ok(())
    }
}

impl Default for AdaptiveParameters {
    fn default() -> Self {
        Self {
            target_share: 0.8,
            staff_factor: 2.0,
            fast_factor: 5.0,
            memory_seconds: 4.0 * 3600.0,
            level_tau_seconds: 25.0,
            gain: 0.005,
            price: 13.0,
            switch: 0.03,
            knee_climb: 1.25,
            drain_seconds: 1.0,
            hold_seconds: 30.0,
            react_seconds: 2.5,
            default_window_seconds: 300.0,
            default_headroom: 1.15,
            learn_seconds: 900.0,
        }
    }
}

fn setting(i: usize) -> Setting {
    Setting { window_seconds: WINDOWS_SECONDS[i / HEADROOMS.len()], headroom: HEADROOMS[i % HEADROOMS.len()] }
}

/// What one setting would have cost so far.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Replayed {
    size_seconds: f64,
    violation_seconds: f64,
    /// The raise by the fast path, and when it would be in force.
    floor: u32,
    floor_from: f64,
    floor_until: f64,
}

/// The largest demand of a sample, per pod.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Peak {
    at_seconds: f64,
    demand: f64,
}

/// A sample whose demand is only a lower bound, with the sizes that the settings had.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Censored {
    reading: Reading,
    sizes: Vec<u32>,
}

/// State of the algorithm. Losing it costs [`AdaptiveParameters::learn_seconds`] of learning and nothing else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Adaptive {
    replayed: Vec<Replayed>,
    weight_seconds: f64,
    /// Sizes of the settings after the last plan; empty before the first.
    sizes: Vec<u32>,
    choice: Option<usize>,
    censored: Vec<Censored>,
    first_at: Option<f64>,
    level: f64,
    service_seconds: f64,
    rate_mean: f64,
    peaks: VecDeque<Peak>,
    log_price: f64,
    base: Option<u32>,
    floors: VecDeque<(f64, u32)>,
}

impl Default for Adaptive {
    fn default() -> Self {
        let nothing = Replayed {
            size_seconds: 0.0,
            violation_seconds: 0.0,
            floor: 0,
            floor_from: LONG_AGO,
            floor_until: LONG_AGO,
        };
        Self {
            replayed: vec![nothing; SETTINGS],
            weight_seconds: 0.0,
            sizes: Vec::new(),
            choice: None,
            censored: Vec::new(),
            first_at: None,
            level: 0.0,
            service_seconds: 0.0,
            rate_mean: 0.0,
            peaks: VecDeque::new(),
            log_price: 0.0,
            base: None,
            floors: VecDeque::new(),
        }
    }
}

/// `old` unless `new` is further away than the tolerance of that direction.
fn tolerate(new: u32, old: u32, context: &SizingContext) -> u32 {
    let tolerance = if new > old { context.tolerance_up } else { context.tolerance_down };
    if f64::from(new.abs_diff(old)) <= tolerance * f64::from(old) { old } else { new }
}

impl Adaptive {
    fn staffing(context: &SizingContext) -> Staffing {
        Staffing::new(context.wait_seconds, context.max)
    }

    fn staff_target(context: &SizingContext) -> f64 {
        context.adaptive.staff_factor * context.violation_share
    }

    fn fast_target(context: &SizingContext) -> f64 {
        context.adaptive.fast_factor * context.violation_share
    }

    fn target(context: &SizingContext) -> f64 {
        context.adaptive.target_share * context.violation_share
    }

    /// Seconds from a burst to its end as the fast path would have it.
    fn delay(context: &SizingContext) -> f64 {
        context.adaptive.react_seconds + context.interval_seconds
    }

    /// EWMA that jumps when the change is larger than sampling noise explains.
    fn follow(&mut self, reading: &Reading, demand: f64, context: &SizingContext) {
        let noise =
            (self.level.max(0.3) * reading.service_seconds * 2.5 / reading.dt_seconds).sqrt() + 0.05 * self.level;
        let error = demand - self.level;
        self.level = if error.abs() > 3.0 * noise {
            demand
        } else {
            self.level + (1.0 - (-reading.dt_seconds / context.adaptive.level_tau_seconds).exp()) * error
        };
    }

    fn remember(&mut self, peak: Peak) {
        self.peaks.push_back(peak);
        while self.peaks.front().is_some_and(|old| {
            old.at_seconds < peak.at_seconds - LONGEST_WINDOW_SECONDS || self.peaks.len() > MOST_PEAKS
        }) {
            self.peaks.pop_front();
        }
    }

    /// Share of the transactions that waited too long: those that were given up, and of the others Erlang-C's exponential
    /// tail with the measured mean wait.
    fn measured(reading: &Reading, context: &SizingContext) -> f64 {
        let waited = Self::measured_of_those_served(reading, context);
        let all = reading.assigned + reading.abandoned;
        if reading.abandoned > 0.0 { (waited * reading.assigned + reading.abandoned) / all } else { waited }
    }

    fn measured_of_those_served(reading: &Reading, context: &SizingContext) -> f64 {
        let Some(wait) = reading.mean_wait_seconds else {
            return if reading.waiting > 0.0 { 1.0 } else { 0.0 };
        };
        let (n, a) = (context.current.max(1.0), reading.demand / context.pods);
        let tail = if n > a { (reading.service_seconds / (n - a)).max(wait) } else { wait };
        if tail > 0.0 { (wait / tail).min(1.0) * (-context.wait_seconds / tail).exp() } else { 0.0 }
    }

    /// Charges every setting for one sample as if it had been in force with these sizes.
    fn replay(
        &mut self,
        sizes: &[u32],
        reading: &Reading,
        load: f64,
        service: f64,
        rate: f64,
        context: &SizingContext,
    ) {
        let staffing = Self::staffing(context);
        let (at, dt, delay) = (reading.at_seconds, reading.dt_seconds, Self::delay(context));
        let traffic = rate / self.rate_mean.max(1e-6); // violations count per transaction
        let keep = 0.5_f64.powf(dt / context.adaptive.memory_seconds);
        let needed = staffing.size(load, service, Self::fast_target(context));
        let most = sizes.iter().copied().chain([needed]).max().unwrap_or(1);
        let most = self.replayed.iter().map(|r| r.floor).fold(most, u32::max);
        let violations = staffing.violations(load, service, most);
        for (replayed, &size) in self.replayed.iter_mut().zip(sizes) {
            let mut n = size;
            if (replayed.floor_from..replayed.floor_until).contains(&at) {
                n = n.max(replayed.floor);
            }
            let violated = if load > f64::from(n) - 0.5 {
                if at >= replayed.floor_from {
                    replayed.floor = needed;
                    replayed.floor_from = at + (delay - dt).max(0.0);
                    replayed.floor_until = replayed.floor_from + context.adaptive.hold_seconds;
                }
                if replayed.floor_from <= at {
                    n = needed;
                }
                (delay / dt).min(1.0)
            } else {
                violations.with(n)
            };
            replayed.violation_seconds = replayed.violation_seconds * keep + violated * traffic * dt;
            replayed.size_seconds = replayed.size_seconds * keep + f64::from(n) * dt;
        }
        self.weight_seconds = self.weight_seconds * keep + dt;
    }

    /// Largest demand of the last `W` seconds, for every window.
    fn demands(&self, now: f64) -> [f64; WINDOWS_SECONDS.len()] {
        let mut demands = [self.level; WINDOWS_SECONDS.len()];
        for peak in &self.peaks {
            for (demand, window) in demands.iter_mut().zip(WINDOWS_SECONDS).skip(1) {
                if peak.at_seconds >= now - window {
                    *demand = demand.max(peak.demand);
                }
            }
        }
        demands
    }

    fn default_setting(context: &SizingContext) -> usize {
        (0..SETTINGS)
            .find(|&i| {
                let setting = setting(i);
                setting.window_seconds.total_cmp(&context.adaptive.default_window_seconds).is_eq()
                    && setting.headroom.total_cmp(&context.adaptive.default_headroom).is_eq()
            })
            .unwrap_or(2 * HEADROOMS.len() + 4)
    }

    /// The setting to follow.
    fn choose(&mut self, service: f64, context: &SizingContext) -> usize {
        if self.weight_seconds < context.adaptive.learn_seconds {
            return Self::default_setting(context);
        }
        let mean = self.peaks.iter().map(|p| p.demand).sum::<f64>() / self.peaks.len().max(1) as f64;
        let reference = Self::staffing(context).size(mean.max(0.3), service, Self::target(context));
        let price = context.adaptive.price * self.log_price.exp() * f64::from(reference);
        let cost = |i: usize| {
            let replayed = &self.replayed[i];
            (replayed.size_seconds + price * replayed.violation_seconds) / self.weight_seconds
        };
        let cheapest = (1..SETTINGS).fold(0, |best, i| if cost(i) < cost(best) { i } else { best });
        let choice = match self.choice {
            Some(current) if cost(cheapest) > (1.0 - context.adaptive.switch) * cost(current) => current,
            _ => cheapest,
        };
        self.choice = Some(choice);
        choice
    }

    /// Size of every setting and the base that follows from the chosen one.
    fn plan(&mut self, reading: &Reading, context: &SizingContext) {
        let staffing = Self::staffing(context);
        let demands = self.demands(context.now_seconds);
        let target = Self::staff_target(context);
        let mut sizes = Vec::with_capacity(SETTINGS);
        for (w, demand) in demands.into_iter().enumerate() {
            let like = (0..w).find(|&other| demands[other].total_cmp(&demand).is_eq());
            for (h, headroom) in HEADROOMS.into_iter().enumerate() {
                let i = w * HEADROOMS.len() + h;
                // windows that remember the same peak need the same size
                let n = match like {
                    Some(other) if self.sizes.get(i) == self.sizes.get(other * HEADROOMS.len() + h) => {
                        sizes[other * HEADROOMS.len() + h]
                    }
                    _ => {
                        let n = staffing.size(demand * headroom, reading.service_seconds, target).max(context.min);
                        self.sizes.get(i).map_or(n, |&old| tolerate(n, old, context))
                    }
                };
                sizes.push(n);
            }
        }
        self.sizes = sizes;
        self.service_seconds = reading.service_seconds;
        let choice = self.choose(reading.service_seconds, context);
        let base = self.base.unwrap_or(context.target);
        self.base = Some(tolerate(self.sizes[choice], base, context));
    }

    /// The fast path of a pool that was hardly used: nobody knows how long its transactions take, and that none finishes
    /// does not mean that the database stands still. Every client that waits gets a connection, as far as the bounds
    /// allow.
    fn react_blindly(&mut self, sample: &Sample, context: &SizingContext) {
        if sample.waiting > 0.0 && sample.active >= 0.9 * context.current * context.pods {
            self.raise((sample.busy() + sample.waiting) / context.pods, context);
        }
    }

    fn raise(&mut self, floor: f64, context: &SizingContext) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to a size; saturates
        self.floors.push_back((context.now_seconds, floor.ceil().clamp(0.0, f64::from(u32::MAX)) as u32));
    }

    /// The fast path: clients wait although the connections are busy.
    fn react(&mut self, reading: &Reading, context: &SizingContext) {
        if reading.stalled || reading.waiting == 0.0 {
            return;
        }
        if reading.active < 0.9 * context.current * context.pods {
            return; // connections are still being opened: not a lack of size
        }
        let staffing = Self::staffing(context);
        let load = reading.demand / context.pods;
        let drain = (reading.waiting / context.pods * reading.service_seconds / context.adaptive.drain_seconds).ceil();
        let mut need = f64::from(staffing.size(load, reading.service_seconds, Self::fast_target(context))) + drain;
        if context.interval_seconds >= BLIND_INTERVAL_SECONDS && reading.waiting > 2.0 * context.current * context.pods
        {
            need = need.max(4.0 * context.current);
        }
        self.raise(need.min(((reading.busy + reading.waiting) / context.pods).ceil()), context);
    }
}

impl SizingAlgorithm for Adaptive {
    fn learn(&mut self, reading: &Reading, context: &SizingContext) {
        let demand = reading.demand / context.pods;
        if self.first_at.is_none() {
            (self.first_at, self.level, self.rate_mean) = (Some(reading.at_seconds), demand, reading.rate);
        }
        self.follow(reading, demand, context);
        self.remember(Peak { at_seconds: reading.at_seconds, demand });
        let seen = reading.at_seconds - self.first_at.unwrap_or(reading.at_seconds);
        let keep = (-reading.dt_seconds / seen.clamp(60.0, 14_400.0)).exp();
        self.rate_mean += (1.0 - keep) * (reading.rate - self.rate_mean);

        // error budget: the price of a violation follows the measured violations, those that a larger size could have avoided
        if !context.capped {
            let traffic = reading.rate / self.rate_mean.max(1e-6);
            let target = Self::target(context);
            let error = ((Self::measured(reading, context) * traffic - target) / target).min(WORST_SAMPLE);
            self.log_price = (self.log_price + context.adaptive.gain * (reading.dt_seconds / 15.0) * error)
                .clamp(PRICE_FACTORS.0.ln(), PRICE_FACTORS.1.ln());
        }

        // behind a queue the demand is only a lower bound: the next clean sample tells it
        let sizes = self.sizes.clone();
        let queued = reading.waiting > 0.5 * context.current * context.pods;
        if queued && self.censored.len() < MOST_CENSORED {
            self.censored.push(Censored { reading: *reading, sizes });
            return;
        }
        let mut pending = std::mem::take(&mut self.censored);
        pending.push(Censored { reading: *reading, sizes });
        for Censored { reading: past, sizes } in pending {
            let load = past.demand.max(reading.demand) / context.pods;
            let rate = past.rate.max(reading.rate);
            if !sizes.is_empty() {
                self.replay(&sizes, &past, load, reading.service_seconds, rate, context);
            }
        }
    }

    fn wish(&mut self, news: News, context: &SizingContext) -> ProposedSize {
        if let Some(reading) = news.slow {
            self.plan(reading, context);
        }
        for reading in news.quick {
            self.react(reading, context);
        }
        if news.unused {
            self.base = Some(tolerate(context.min, self.base.unwrap_or(context.target), context));
        }
        if news.blind
            && let Some(sample) = news.samples.last()
        {
            self.react_blindly(sample, context);
        }
        let expired = context.now_seconds - context.adaptive.hold_seconds;
        while self.floors.front().is_some_and(|&(at, _)| at < expired) {
            self.floors.pop_front();
        }
        let base = *self.base.get_or_insert(context.target);
        let floor = self.floors.iter().map(|&(_, floor)| floor).max().unwrap_or(0);
        let (size, reason) = if floor > base { (floor, Reason::WaitingClients) } else { (base, Reason::Demand) };
        ProposedSize { size: context.whole(size), base: context.whole(base), reason }
    }

    fn cap(&mut self, size: u32) {
        self.base = self.base.map(|base| base.min(size));
    }

    fn explain(&self, context: &SizingContext) -> Explanation {
        let staffing = Self::staffing(context);
        let peak = self.peaks.iter().map(|p| p.demand).fold(self.level, f64::max);
        let size = |load: f64, p: f64| staffing.size(load, self.service_seconds.max(1e-5), p);
        Explanation {
            demand: self.level * context.pods,
            service_seconds: self.service_seconds,
            setting: Some(setting(self.choice.unwrap_or_else(|| Self::default_setting(context)))),
            price: Some(self.log_price.exp()),
            learned_seconds: self.weight_seconds,
            lower: context.whole(size(self.level, context.violation_share)),
            upper: context.whole(size(peak * context.adaptive.default_headroom, Self::staff_target(context))),
        }
    }

    fn rewind(&mut self, now_seconds: f64) {
        for peak in &mut self.peaks {
            peak.at_seconds = peak.at_seconds.min(now_seconds);
        }
        for replayed in &mut self.replayed {
            replayed.floor_from = replayed.floor_from.min(now_seconds);
            replayed.floor_until = replayed.floor_until.min(now_seconds);
        }
        for floor in &mut self.floors {
            floor.0 = floor.0.min(now_seconds);
        }
        self.first_at = self.first_at.map(|at| at.min(now_seconds));
    }
}
