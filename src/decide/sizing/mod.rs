//! PURE: how many server connections a pool needs.
//!
//! A [`Sizer`] is the state of one pool (or of one pod, in the agent). Each tick it takes an [`Observation`] and returns
//! a [`Decision`] with its reason, message, recommendation and figures. Nothing here reads a clock: the same
//! observations give the same decisions in the operator, the agent, `sluice decide` and the backtest.
//!
//! | caller | observes | bounds | interval |
//! |---|---|---|---|
//! | operator | all pods of the pool, merged by [`Fleet`] | `minAllowed`, `maxAllowed`; no share | its tick, 15 s |
//! | agent | its own pod, `pods: 1` | its part of `minAllowed`, the floor at least, and the share | 1 s |
//! | `sluice decide`, backtest | what the line or the model says | the line's | the line's |
//!
//! ```
//! use sluice::contract::{Algorithm, Objective};
//! use sluice::decide::sizing::{Observation, Sizer, SizingSettings};
//! use sluice::domain::{Automation, Bounds, Reason, Sample};
//!
//! let settings = SizingSettings::new(Algorithm::Adaptive, Objective { wait_milliseconds: 20, max_waiting_percent: 1.0 });
//! let mut sizer = Sizer::default(); // one per pool; keep it, it learns
//! let mut size = 5;
//! for tick in 1..=60_u32 {
//!     let now = f64::from(tick) * 15.0;
//!     let sample = Sample {
//!         at_seconds: now - 8.0,
//!         active: 8.0,
//!         transactions: now * 100.0,         // 100 a second
//!         busy_seconds: now * 8.0,    // of 80 ms each: 8 busy connections
//!         assignments: now * 100.0,
//!         ..Sample::default()
//!     };
//!     let decision = sizer.decide(&settings, &Observation {
//!         now_seconds: now,
//!         interval_seconds: 15.0,
//!         pods: 1,
//!         current: size, // what the poolers work with now
//!         target: size,  // what was asked for last
//!         bounds: Bounds { min: 5, max: 100, share: None },
//!         automation: Automation::Apply,
//!         refused_beyond: None,
//!         samples: &[sample],
//!     });
//!     size = decision.size;
//! }
//! assert!((10..=16).contains(&size), "{size}");
//!
//! // nothing new: hold, and say so
//! let held = sizer.decide(&settings, &Observation {
//!     now_seconds: 915.0, interval_seconds: 15.0, pods: 1, current: size, target: size,
//!     bounds: Bounds { min: 5, max: 100, share: None }, automation: Automation::Apply, refused_beyond: None, samples: &[],
//! });
//! assert_eq!((held.size, held.reason), (size, Reason::NoData));
//! ```

mod adaptive;
mod algorithm;
mod decision;
mod demand;
mod fleet;
mod line;
mod load;
mod load_factor;
mod settings;
mod staffing;
mod target_utilization;

use serde::{Deserialize, Serialize};

pub use adaptive::AdaptiveParameters;
pub use decision::{Decision, Explanation, Setting};
pub(in crate::decide) use demand::Meter;
pub use fleet::{Fleet, PodSample};
pub use line::{AnswerLine, LineError, ObservationLine, OwnedObservation, SampleLine, SizesOf};
pub use settings::SizingSettings;

use self::{
    adaptive::Adaptive,
    algorithm::{News, ProposedSize, SizingAlgorithm, SizingContext, Whole},
    load_factor::LoadFactor,
    target_utilization::TargetUtilization,
};
use super::{
    behavior::{BehaviorState, DesiredSize, Urgency},
    guard::{self, Limit, knee::Knee, signal::SignalState},
};
use crate::{
    api::{Confidence, Recommendation},
    contract::Algorithm,
    domain::{Automation, Bounds, Reading, Reason, Sample},
};

/// Samples this much too early still count as `sample_seconds` apart.
const EARLY_SECONDS: f64 = 0.5;
/// Samples closer than this are the same one.
const SAME_SECONDS: f64 = 1e-3;
/// From this busy share of the size on, connections and not clients are scarce.
const SATURATED_SHARE: f64 = 0.9;
/// A wider sample is needed when transactions are longer than it: so many service times.
const SERVICE_TIMES_PER_SAMPLE: f64 = 4.0;
/// And never wider than this.
const WIDEST_SAMPLE_SECONDS: f64 = 600.0;
/// A gap counts as at most this much learning.
const LONGEST_STEP_SECONDS: f64 = 60.0;
/// Seconds of samples for [`Confidence::Medium`], and for [`Confidence::High`]: the half-life of what `Adaptive` learns.
const MEDIUM_SECONDS: f64 = 900.0;
const HIGH_SECONDS: f64 = 4.0 * 3600.0;

/// What is known at one tick. Sizes and figures are of the whole pool: all pods together.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// The time of the decision, in seconds on the clock of the samples.
    pub now_seconds: f64,
    /// Seconds between two decisions.
    pub interval_seconds: f64,
    /// Pods that hold poolers. 0 counts as 1.
    pub pods: u32,
    /// Size that the poolers work with now.
    pub current: u32,
    /// Size asked for last; the same as `current` when nothing is on its way.
    pub target: u32,
    /// Between which sizes.
    pub bounds: Bounds,
    /// Whether the decision is carried out.
    pub automation: Automation,
    /// The most that the database was seen to let in, while it refuses more; see [`guard::refused`].
    pub refused_beyond: Option<u32>,
    /// Readings since the last decision, oldest first. Repeated ones do no harm; none is no news.
    pub samples: &'a [Sample],
}

/// A change of the size that may or may not have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct PendingResize {
    at_seconds: f64,
    from: u32,
    to: u32,
}

/// The algorithm's own state.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum AlgorithmState {
    Adaptive(Box<Adaptive>),
    TargetUtilization(TargetUtilization),
    LoadFactor(LoadFactor),
}

impl AlgorithmState {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Adaptive => Self::Adaptive(Box::default()),
            Algorithm::TargetUtilization => Self::TargetUtilization(TargetUtilization::default()),
            Algorithm::LoadFactor => Self::LoadFactor(LoadFactor::default()),
        }
    }

    fn runs(&self) -> Algorithm {
        match self {
            Self::Adaptive(_) => Algorithm::Adaptive,
            Self::TargetUtilization(_) => Algorithm::TargetUtilization,
            Self::LoadFactor(_) => Algorithm::LoadFactor,
        }
    }

    fn algorithm(&mut self) -> &mut dyn SizingAlgorithm {
        match self {
            Self::Adaptive(state) => state.as_mut(),
            Self::TargetUtilization(state) => state,
            Self::LoadFactor(state) => state,
        }
    }
}

/// The sizing of one pool: a few KiB that learn. Losing them costs 15 minutes of caution and nothing else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sizer {
    slow: Meter,
    quick: Meter,
    knee: Knee,
    behavior: BehaviorState,
    state: AlgorithmState,
    last_now: Option<f64>,
    /// Recommended last, where recommendations are not carried out.
    recommended: Option<u32>,
    asked: Option<PendingResize>,
    seen_seconds: f64,
    /// Clients hide the demand: more than half the size waited at the newest reading.
    hidden: bool,
    /// When clients began to wait, too few transactions had finished lately to know how long they take.
    #[serde(default)]
    surprised: bool,
    /// Leaked connections that clients have waited for: they come on top of what the load asks for, until they end.
    #[serde(default)]
    set_aside: u32,
}

impl Default for Sizer {
    fn default() -> Self {
        Self {
            slow: Meter::default(),
            quick: Meter::default(),
            knee: Knee::default(),
            behavior: BehaviorState::default(),
            state: AlgorithmState::new(Algorithm::default()),
            last_now: None,
            recommended: None,
            asked: None,
            seen_seconds: 0.0,
            hidden: false,
            surprised: false,
            set_aside: 0,
        }
    }
}

/// What the new samples say.
struct Read {
    /// The newest slow reading.
    slow: Option<Reading>,
    /// One reading per sample.
    quick: Vec<Reading>,
    /// Seconds in which no figure moved although connections were busy.
    still_seconds: Option<f64>,
    /// A slow sample was due, and the pool has never been used.
    unused: bool,
}

/// The decision as it grows along the chain of guards.
struct Draft {
    size: u32,
    reason: Reason,
    message: String,
    limits: Vec<Limit>,
}

impl Draft {
    fn apply(&mut self, limit: Option<Limit>) {
        if let Some(limit) = limit {
            self.size = limit.size;
            self.reason = limit.reason;
            self.message.clone_from(&limit.message);
            self.limits.push(limit);
        }
    }
}

impl Sizer {
    /// Decides once. Deterministic: the same state, settings and observation give the same decision.
    pub fn decide(&mut self, settings: &SizingSettings, observation: &Observation) -> Decision {
        let (fresh, signal) = self.fresh(observation);
        self.step(settings, observation, &fresh, signal)
    }

    /// Decides again on what was decided on last: nothing new was read, and settings, bounds or mode have changed. The
    /// samples of the observation are not looked at.
    pub fn decide_again(&mut self, settings: &SizingSettings, observation: &Observation) -> Decision {
        self.step(settings, observation, &[], SignalState::Fresh)
    }

    fn step(
        &mut self,
        settings: &SizingSettings,
        observation: &Observation,
        fresh: &[Sample],
        signal: SignalState,
    ) -> Decision {
        if self.state.runs() != settings.algorithm {
            self.state = AlgorithmState::new(settings.algorithm);
        }
        let now = self.tick(observation);
        // a recommendation that nobody carries out builds on the one before
        let target = match observation.automation {
            Automation::Apply | Automation::UpstreamReadOnly | Automation::CircuitOpen => observation.target,
            Automation::Recommend | Automation::Paused => self.recommended.unwrap_or(observation.target),
        };
        self.confirm(settings, target);
        self.set_leaks_aside(fresh, observation.current);
        let bounds = &self.bounds_of_the_rest(&observation.bounds);
        let context = self.context(settings, observation, bounds, target, now);
        let begun = self.quick.previous().is_some();
        if self.quick.previous().is_none_or(|last| last.waiting <= 0.0) {
            self.surprised = !self.quick.knows_service();
        }
        let Read { slow, quick, still_seconds, unused } = self.read(settings, fresh, &context);
        let signal = still_seconds.map_or(signal, |seconds| SignalState::Still { seconds });

        let held = guard::upstream::check(observation.automation, target)
            .or_else(|| guard::circuit::check(observation.automation, target))
            .or_else(|| guard::signal::check(signal, target))
            .or_else(|| guard::stalled::check(slow.as_ref(), target));
        let (wish, mut draft) = if let Some(limit) = held {
            self.hold(limit)
        } else {
            let blind = begun && self.surprised && !self.quick.knows_service();
            let news = News { samples: fresh, quick: &quick, slow: slow.as_ref(), unused, blind };
            let (wish, draft) = self.pursue(settings, &news, &context, bounds);
            self.add_leaks(wish, draft)
        };
        let bounds = &observation.bounds;
        draft.apply(guard::bounds::check(draft.size, bounds));
        draft.apply(guard::refused::check(draft.size, observation.refused_beyond));

        let recommended = draft.size;
        self.recommended = Some(recommended);
        draft.apply(guard::automation::check(observation.automation, recommended, observation.target));
        self.asked =
            (recommended != target).then_some(PendingResize { at_seconds: now, from: target, to: recommended });

        let explanation = self.state.algorithm().explain(&context);
        let clamp = |size: u32| size.saturating_add(self.set_aside).clamp(bounds.least(), bounds.most());
        Decision {
            size: draft.size,
            reason: draft.reason,
            message: draft.message,
            recommendation: Recommendation {
                target: recommended,
                lower_bound: clamp(explanation.lower).min(recommended),
                upper_bound: clamp(explanation.upper).max(recommended),
                uncapped_target: wish.size,
                confidence: self.confidence(wish.reason),
            },
            base: wish.base,
            explanation,
            limits: draft.limits,
        }
    }

    /// The time, which never runs backwards for what is remembered.
    fn tick(&mut self, observation: &Observation) -> f64 {
        let now =
            if observation.now_seconds.is_finite() { observation.now_seconds } else { self.last_now.unwrap_or(0.0) };
        if self.last_now.is_some_and(|last| now < last) {
            self.behavior.rewind(now);
            self.knee.rewind(now);
            self.state.algorithm().rewind(now);
        }
        self.last_now = Some(now);
        now
    }

    /// A change counts for the policies once the caller shows it as asked for.
    fn confirm(&mut self, settings: &SizingSettings, target: u32) {
        if let Some(asked) = self.asked.take().filter(|asked| asked.to == target) {
            self.behavior.scaled(&settings.behavior, asked.at_seconds, asked.from, asked.to);
        }
    }

    /// A leaked connection is no demand, and no room either. Once clients wait while all connections are taken, the
    /// leaked ones are set aside until they end: what is sized is the rest.
    fn set_leaks_aside(&mut self, fresh: &[Sample], current: u32) {
        let Some(newest) = fresh.last() else { return };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: not negative; saturates
        let leaked = newest.leaked.min(newest.active) as u32;
        let in_the_way = newest.waiting > 0.0 && newest.active >= SATURATED_SHARE * f64::from(current);
        if self.set_aside > 0 || in_the_way {
            self.set_aside = leaked;
        }
    }

    /// What the bounds leave for connections that are not set aside.
    fn bounds_of_the_rest(&self, bounds: &Bounds) -> Bounds {
        let rest = |size: u32| size.saturating_sub(self.set_aside);
        Bounds { min: rest(bounds.min), max: rest(bounds.max), share: bounds.share.map(rest) }
    }

    /// The size of the whole pool: what the load asks for, and what is set aside.
    fn add_leaks(&self, wish: ProposedSize, mut draft: Draft) -> (ProposedSize, Draft) {
        if self.set_aside == 0 {
            return (wish, draft);
        }
        let whole = |size: u32| size.saturating_add(self.set_aside);
        draft.size = whole(draft.size);
        draft.message = format!("{}, and {} more that are leaked", draft.message, self.set_aside);
        (ProposedSize { size: whole(wish.size), base: whole(wish.base), ..wish }, draft)
    }

    fn context<'a>(
        &self,
        settings: &'a SizingSettings,
        observation: &Observation,
        bounds: &Bounds,
        target: u32,
        now: f64,
    ) -> SizingContext<'a> {
        let pods = observation.pods.max(1);
        let current = observation.current.max(1).saturating_sub(self.set_aside);
        let target = target.saturating_sub(self.set_aside);
        SizingContext {
            now_seconds: now,
            interval_seconds: Some(observation.interval_seconds).filter(|s| s.is_finite() && *s > 0.0).unwrap_or(1.0),
            pods: f64::from(pods),
            current: f64::from(current) / f64::from(pods),
            target: target.div_ceil(pods),
            min: (bounds.min / pods).max(1),
            max: bounds.max.div_ceil(pods).max(1),
            tolerance_up: settings.behavior.scale_up.tolerance,
            tolerance_down: settings.behavior.scale_down.tolerance,
            wait_seconds: f64::from(settings.objective.wait_milliseconds) / 1000.0,
            violation_share: settings.objective.max_waiting_percent / 100.0,
            capped: settings.adaptive.knee_climb > 1.0
                && self.knee.cap().is_some_and(|cap| f64::from(cap) * f64::from(pods) <= f64::from(current)),
            target_utilization: f64::from(settings.target_utilization_percent.max(1)) / 100.0,
            adaptive: &settings.adaptive,
            pool: Whole { current, target, min: bounds.min, max: bounds.max },
        }
    }

    /// The samples that are new and can be. When all are older than the last one seen, the clock was set back.
    fn fresh(&self, observation: &Observation) -> (Vec<Sample>, SignalState) {
        let seen = self.quick.previous().map(|last| last.at_seconds + SAME_SECONDS);
        let set_back = seen
            .is_some_and(|seen| observation.samples.iter().all(|sample| sample.at_seconds < seen - 2.0 * SAME_SECONDS));
        let mut newest = seen.filter(|_| !set_back);
        let mut fresh: Vec<Sample> = Vec::new();
        let mut signal = SignalState::Absent;
        for sample in observation.samples {
            if let Err(error) = sample.check() {
                signal = SignalState::Invalid(error);
            } else if newest.is_none_or(|newest| sample.at_seconds > newest) {
                newest = Some(sample.at_seconds + SAME_SECONDS);
                fresh.push(*sample);
            } else if signal == SignalState::Absent {
                signal = SignalState::Stale { age_seconds: observation.now_seconds - sample.at_seconds };
            }
        }
        if !fresh.is_empty() {
            signal = SignalState::Fresh;
        }
        (fresh, signal)
    }

    /// Feeds the meters and the algorithm's memory. Returns the newest slow reading and every quick one.
    fn read(&mut self, settings: &SizingSettings, fresh: &[Sample], context: &SizingContext) -> Read {
        let mut read = Read { slow: None, quick: Vec::with_capacity(fresh.len()), still_seconds: None, unused: false };
        let set_aside = f64::from(self.set_aside);
        let rest = |reading: Reading| Reading { active: (reading.active - set_aside).max(0.0), ..reading };
        for sample in fresh {
            if let Some(before) = self.quick.previous()
                && !self.slow.is_unused(sample)
            {
                self.slow.begin_at(before);
            }
            let since = self.slow.previous().map(|last| (sample.at_seconds - last.at_seconds, sample.repeats(last)));
            let due = since
                .is_none_or(|(seconds, _)| seconds >= self.sample_seconds(settings) - EARLY_SECONDS || seconds < 0.0);
            if due {
                read.still_seconds = since.and_then(|(seconds, repeats)| repeats.then_some(seconds));
            }
            if due && read.still_seconds.is_none() {
                read.unused = self.slow.is_unused(sample);
                read.slow = self.slow.add(sample, settings.leak_threshold_seconds).map(rest);
                if let Some(reading) = &read.slow {
                    self.seen_seconds += reading.dt_seconds.min(LONGEST_STEP_SECONDS);
                    self.hidden = reading.waiting > 0.5 * context.current * context.pods;
                    self.state.algorithm().learn(reading, context);
                }
            }
            read.quick.extend(self.quick.add(sample, settings.leak_threshold_seconds).map(rest));
        }
        read
    }

    /// Seconds between two samples that are learned: more than transactions take.
    fn sample_seconds(&self, settings: &SizingSettings) -> f64 {
        match self.slow.service_seconds() {
            Some(service) if service > settings.sample_seconds => {
                (SERVICE_TIMES_PER_SAMPLE * service).min(WIDEST_SAMPLE_SECONDS)
            }
            _ => settings.sample_seconds,
        }
    }

    /// The size stays: the load cannot be judged.
    fn hold(&mut self, limit: Limit) -> (ProposedSize, Draft) {
        if limit.reason == Reason::DatabaseStalled {
            self.hidden = true;
        }
        let wish = ProposedSize { size: limit.size, base: limit.size, reason: limit.reason };
        let mut draft = Draft { size: limit.size, reason: limit.reason, message: String::new(), limits: Vec::new() };
        draft.apply(Some(limit));
        (wish, draft)
    }

    /// The algorithm's wish and the guards that depend on it.
    fn pursue(
        &mut self,
        settings: &SizingSettings,
        news: &News,
        context: &SizingContext,
        bounds: &Bounds,
    ) -> (ProposedSize, Draft) {
        let wish = self.state.algorithm().wish(*news, context);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // sizes
        let per_pod = |size: u32| (f64::from(size) / context.pods).round() as u32;
        let current = per_pod(context.pool.current).max(1);
        self.knee.watch(news.quick, current);
        if let Some(reading) = news.slow {
            let sizes = guard::knee::Sizes {
                current,
                wanted: per_pod(wish.base),
                min: context.min,
                max: context.max,
                pods: context.pods,
            };
            self.knee.learn(reading, &sizes, settings.adaptive.knee_climb);
        }
        let message = self.explain(&wish, settings, context);
        let mut draft = Draft { size: wish.size, reason: wish.reason, message, limits: Vec::new() };
        let mut urgency = Urgency::None;
        if wish.reason == Reason::WaitingClients {
            urgency = Urgency::ClientsWait;
        }
        if let Some(cap) = self.knee.cap() {
            if news.slow.is_some() {
                self.state.algorithm().cap(cap);
            }
            let limit = self.knee.check(draft.size, context.pods);
            if limit.is_some() {
                urgency = Urgency::DatabaseSaturated;
            }
            draft.apply(limit);
        }
        let wanted = DesiredSize {
            now_seconds: context.now_seconds,
            current: context.pool.target,
            desired: draft.size,
            min: bounds.least(),
            max: bounds.most(),
            urgency,
        };
        draft.apply(guard::rates::check(&mut self.behavior, &settings.behavior, &wanted, bounds));
        (wish, draft)
    }

    /// The wish in words.
    fn explain(&mut self, wish: &ProposedSize, settings: &SizingSettings, context: &SizingContext) -> String {
        let why = self.state.algorithm().explain(context);
        // it takes two samples to know what happened between them
        if self.seen_seconds <= 0.0 && why.demand <= 0.0 && wish.reason != Reason::WaitingClients {
            return format!("the load is not known yet: {} until it is", wish.size);
        }
        let waiting = self.quick.previous().map_or(0.0, |sample| sample.waiting);
        let rule = match settings.algorithm {
            Algorithm::Adaptive => {
                let setting = why.setting.unwrap_or(Setting { window_seconds: 0.0, headroom: 1.0 });
                format!(
                    "{:.0} ms each; headroom {} on the largest of {:.0} s, at most {} % to wait longer than {} ms",
                    1000.0 * why.service_seconds,
                    setting.headroom,
                    setting.window_seconds,
                    settings.objective.max_waiting_percent,
                    settings.objective.wait_milliseconds,
                )
            }
            Algorithm::TargetUtilization => format!("at {} % utilization", settings.target_utilization_percent),
            Algorithm::LoadFactor => "by the load factor".to_owned(),
        };
        if wish.reason == Reason::WaitingClients {
            format!("{waiting:.0} clients wait: {} until the queue is gone, {} without them", wish.size, wish.base)
        } else {
            format!("{:.1} busy on {:.0} pods, {rule}: {}", why.demand, context.pods, wish.size)
        }
    }

    fn confidence(&self, reason: Reason) -> Confidence {
        if reason.is_hold() || self.hidden || self.seen_seconds < MEDIUM_SECONDS {
            Confidence::Low
        } else if self.seen_seconds < HIGH_SECONDS {
            Confidence::Medium
        } else {
            Confidence::High
        }
    }
}
