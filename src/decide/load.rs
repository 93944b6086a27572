//! PURE: from what the pods of a pool reported to one observation of the pool.
//!
//! # Use
//! Keep one [`LoadState`] per pool. Each tick, pass what was read to [`LoadState::step`], whether anything was read or
//! not, and look at [`PoolLoad::judgement`]:
//! - [`Judgement::New`]: pass its sample to the pool's `Sizer`. With [`Completeness::LowerBound`] some pods are missing, so the
//!   load is at least what was seen: let the target grow, never shrink.
//! - [`Judgement::Unchanged`]: no pod was scraped since the last tick. Decide nothing; the last decision stands.
//! - [`Judgement::Hold`]: the load cannot be judged. Pass no sample to the `Sizer` (it holds with `NoData`) and show the
//!   reason in `ScalingActive=False`.
//!
//! [`PoolLoad::demands`] and [`PoolLoad::proofs`] go to [`shares::step`](super::shares::step); [`PoolLoad::figures`] to the status.
//!
//! # What is counted
//! The counters of pods are never added: [`Fleet`] sums the rates of each pod over its own interval, so pods may come, go and
//! restart. A reading is known by its sample time, which the agent sets when it reads the pooler: a scrape of an agent
//! whose pooler hangs is not news. A reading is fresh while it is younger than `stale_after_seconds`, by its
//! sample time and by when it was first seen here, whichever is older: an agent whose clock is ahead cannot look fresh for
//! longer than one whose clock is right.
//!
//! # Readings that go back
//! Where several servers answer in turn behind one address, each with scrapes of its own, a reading may be older than the one
//! before. It is no news, and its smaller counters are no restart; [`PoolLoad::alternation`] tells of it once it has happened twice.
//! Only when nothing else has come until the newer reading is stale (a clock that was ahead was set back) is it taken as new. The
//! user's own counters have no sample time: one that fell by less than half is taken for an older answer for a while.
//!
//! # The user's own counters
//! One number for the whole pool is a sum, which falls whenever a pod leaves. What was added meanwhile cannot be known: it counts on
//! as it grew before, or grows afterwards. One that was not asked yet, or with another query, says nothing before it is read twice.
//!
//! # When pods are missing
//! Absent is never zero. A pod that should report and does not makes the sum a lower bound. When fewer than half of the
//! pods report, the sum says more about the scraping than about the load, and everything is held.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, btree_map::Entry};

use super::{
    shares::{GrantProof, PodDemand},
    sizing::{Fleet, Meter, PodSample},
};
use crate::{
    api,
    domain::{Reading, Sample},
};

/// What one pod reported, all of it out of one scrape. Numbers are finite and not negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PodFigures {
    /// Gauges and counters of the pooler; its time is the agent's own, in Unix seconds. `leaked` and `abandoned` are 0 where
    /// unknown, `assignments` are the transactions then.
    pub sample: Sample,
    /// Server connections held past the threshold by clients that do nothing, in a transaction or pinned. None
    /// where the agent cannot see them.
    pub leaked: Option<f64>,
    /// Counter: transactions given up before they got a server connection. None where the agent does not tell.
    pub abandoned: Option<f64>,
    /// Counter: server connections assigned to clients. None where the agent does not tell.
    pub assignments: Option<f64>,
    /// Server connections open.
    pub held: Option<f64>,
    /// The limit that the pooler works with.
    pub limit: Option<f64>,
    /// Largest demand of the last 30 s, second by second.
    pub demand_peak: Option<f64>,
    /// The newest grant in force, its share, and what is held: the slower way to a proof.
    pub proof: Option<GrantProof>,
}

impl PodFigures {
    /// These figures, with what they lack and those before had: a series that is not there is no counter that began again, and
    /// no end of the leaks. Where the pooler did begin again nothing of before is taken.
    fn completed(self, before: &Self) -> Self {
        let (mut sample, earlier) = (self.sample, &before.sample);
        (sample.abandoned, sample.assignments) = (earlier.abandoned, earlier.assignments);
        if sample.restarted_since(earlier) {
            return self;
        }
        let abandoned = self.abandoned.or(before.abandoned);
        let assignments = self.assignments.or(before.assignments);
        Self {
            sample: Sample {
                abandoned: abandoned.unwrap_or(self.sample.abandoned),
                assignments: assignments.unwrap_or(self.sample.assignments),
                // for one reading: who cannot see them any more says so with the next
                leaked: self.leaked.or(before.leaked).unwrap_or(0.0),
                ..self.sample
            },
            abandoned,
            assignments,
            ..self
        }
    }
}

/// A pod whose load counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedPod<'a> {
    /// Name: how Prometheus knows it.
    pub name: &'a str,
    /// Uid: a new pod may take the name of an old one.
    pub uid: &'a str,
    /// Whether it has to report.
    pub stage: Stage,
}

/// Whether a pod has to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its sidecar started less than a minute ago, or not yet: it may.
    Starting,
    /// It has to.
    Running,
    /// It is being deleted: it may.
    Ending,
}

/// What one of the user's own queries yielded for the whole pool.
#[derive(Clone, Debug, PartialEq)]
pub struct OverrideAnswer {
    /// The query: another one counts something else.
    pub query: String,
    /// The number; or why there is none.
    pub number: Result<f64, NoNumber>,
}

/// Why one of the user's own queries yields no number, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoNumber {
    /// It is not asked: pools of this namespace may have none.
    NotAllowed(String),
    /// It yielded none, or it was not asked in time.
    Failed(String),
}

/// What was read of one pool at one tick.
#[derive(Clone, Copy, Debug)]
pub struct LoadInput<'a> {
    /// Time at which the queries were evaluated, in Unix seconds.
    pub now_seconds: f64,
    /// The pods with a sidecar that exist.
    pub expected: &'a [ExpectedPod<'a>],
    /// What the pods reported, by pod name; or why nothing could be read.
    pub read: Result<&'a BTreeMap<String, PodFigures>, &'a str>,
    /// What the user's own queries yielded.
    pub overrides: &'a BTreeMap<api::Signal, OverrideAnswer>,
    /// Seconds after which a reading is too old.
    pub stale_after_seconds: f64,
}

/// What one tick says about the load of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolLoad {
    /// Whether there is something to decide on.
    pub judgement: Judgement,
    /// The figures for the status; none while no pod reports.
    pub figures: Option<LoadFigures>,
    /// Pods that report.
    pub reporting: u32,
    /// What each pod's load asks for, by pod name: fresh ones only. Whoever is missing here is unknown.
    pub demands: BTreeMap<String, PodDemand>,
    /// What each pod reported of its grant, by pod name: fresh ones only.
    pub proofs: BTreeMap<String, GrantProof>,
    /// Whether readings go back and forth.
    pub alternation: Option<Alternation>,
}

/// Whether there is something to decide on.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// A new observation.
    New {
        /// All pods together; counters only ever grow.
        sample: Sample,
        /// Whether pods are missing in it.
        completeness: Completeness,
    },
    /// Nothing new was scraped.
    Unchanged,
    /// The load cannot be judged.
    Hold {
        /// Why, as a word.
        reason: HoldReason,
        /// Why, and what to do.
        message: String,
    },
}

/// Whether pods are missing in an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// Every pod that has to report did.
    Complete,
    /// Pods are missing: the load is at least this. The target may grow, and must not shrink.
    LowerBound {
        /// How many.
        missing: u32,
    },
}

/// Answers that were older than others before them, several times within [`ALTERNATION_IS_TOLD_SECONDS`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternation {
    /// Pods whose readings went back and forth; 0 where only the user's own counters did.
    pub pods: u32,
    /// How much older the oldest of them was than what had been read before. None: not known of the user's own counters.
    pub behind_seconds: Option<f64>,
}

/// Why the load cannot be judged: reasons of `ScalingActive=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldReason {
    /// Prometheus did not answer, or not usefully.
    PrometheusUnavailable,
    /// No pod has a series, and none has been there for long enough to have one.
    Starting,
    /// No pod has a series.
    NoMetrics,
    /// Every series is too old.
    StaleMetrics,
    /// Fewer than half of the pods report.
    TooFewPodsReport,
    /// A query of the user's own yielded nothing usable.
    InvalidOverride,
    /// The pool has queries of its own, and its namespace may not.
    OverrideNotAllowed,
    /// The pool has no pod with a sidecar.
    NoPods,
}

impl HoldReason {
    /// The name as it appears to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrometheusUnavailable => "PrometheusUnavailable",
            Self::Starting => "Starting",
            Self::NoMetrics => "NoMetrics",
            Self::StaleMetrics => "StaleMetrics",
            Self::TooFewPodsReport => "TooFewPodsReport",
            Self::InvalidOverride => "InvalidOverride",
            Self::OverrideNotAllowed => "OverrideNotAllowed",
            Self::NoPods => "NoPods",
        }
    }
}

/// The load of a pool in figures, the fresh pods together. Server connections unless said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadFigures {
    /// Busy ones that the load asks for: what arrives times what each takes, so that a queue counts by what arrives in it. Leaks
    /// do not.
    pub demand: f64,
    /// Open.
    pub held: f64,
    /// Linked to a client.
    pub active: f64,
    /// Clients that wait.
    pub waiting: f64,
    /// Held past the threshold by clients that do nothing. None where no pod can see them.
    pub leaked: Option<f64>,
    /// Sum of the limits that the poolers work with.
    pub size: f64,
    /// Seconds since the oldest of these readings.
    pub oldest_age_seconds: f64,
}

/// What is remembered of a pool between ticks. Losing it costs one tick: a baseline for the counters.
#[derive(Clone, Debug, Default)]
pub struct LoadState {
    pods: BTreeMap<String, PodState>,
    fleet: Fleet,
    /// What the pods together had counted at the last observation.
    merged: Sample,
    /// The last observation, and when what it is made of was asked.
    last: Option<(Sample, f64)>,
    /// The user's own counters.
    counters: BTreeMap<api::Signal, Counter>,
}

/// Going back once may be a clock that was set back. Twice within this time it is another server that answers.
pub const ALTERNATION_IS_TOLD_SECONDS: f64 = 300.0;

/// A counter of the user's own that stays below what it was for longer has lost a part of what it counts.
const COUNTER_MAY_BE_BEHIND_SECONDS: f64 = 45.0;

/// How often what was read went back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Returns {
    /// Times that an older answer came after a newer one.
    times: u32,
    /// The last answer was an older one.
    is_back: bool,
    /// When the last of them came.
    at_seconds: f64,
    /// How much older it was.
    behind_seconds: Option<f64>,
}

impl Returns {
    fn older(&mut self, now_seconds: f64, behind_seconds: Option<f64>) {
        if !self.is_back {
            self.times = if self.is_recent(now_seconds) { self.times.saturating_add(1) } else { 1 };
        }
        *self = Self { times: self.times, is_back: true, at_seconds: now_seconds, behind_seconds };
    }

    fn newer(&mut self) {
        self.is_back = false;
    }

    fn is_recent(&self, now_seconds: f64) -> bool {
        now_seconds - self.at_seconds <= ALTERNATION_IS_TOLD_SECONDS
    }

    fn alternates(&self, now_seconds: f64) -> bool {
        self.times >= 2 && self.is_recent(now_seconds)
    }
}

/// A counter of the user's own.
#[derive(Clone, Debug)]
struct Counter {
    query: String,
    /// The largest answer that was read since it began, or fell, and when.
    highest: (f64, f64),
    /// The last answer, where it is below that and may be an older one, and when.
    lower: Option<(f64, f64)>,
    /// Growth per second when it was last known. None before it was read twice.
    rate: Option<f64>,
    returns: Returns,
}

impl Counter {
    fn new(query: &str, value: f64, at_seconds: f64) -> Self {
        let returns = Returns::default();
        Self { query: query.to_owned(), highest: (value, at_seconds), lower: None, rate: None, returns }
    }

    /// True when this value may be an older one of the same count: a counter that begins anew falls further.
    fn may_be_behind(&self, value: f64, now_seconds: f64) -> bool {
        let (highest, at_seconds) = self.highest;
        value < highest && value >= highest / 2.0 && now_seconds - at_seconds <= COUNTER_MAY_BE_BEHIND_SECONDS
    }

    /// Takes in a value. One that fell began again, or a part of what it counts is gone: it goes on as it grew before, or has
    /// grown since the fall.
    fn next(&mut self, value: f64, now_seconds: f64) {
        let growth = |(from, at_seconds): (f64, f64)| {
            let dt = now_seconds - at_seconds;
            (value >= from && dt > 0.0).then(|| (value - from) / dt)
        };
        let off = |rate: f64| self.rate.map_or(0.0, |before| (rate - before).abs());
        self.rate = match (growth(self.highest), self.lower.and_then(growth)) {
            // above where it was: either the answer between was an older one, or a little was lost and has been made up for
            (Some(back), Some(since)) if off(back) <= off(since) => {
                self.returns.older(now_seconds, None);
                self.returns.newer();
                Some(back)
            }
            (_, Some(since)) => Some(since),
            (Some(rate), None) => Some(rate),
            (None, None) => self.rate,
        };
        (self.highest, self.lower) = ((value, now_seconds), None);
    }
}

#[derive(Clone, Debug)]
struct PodState {
    uid: String,
    figures: PodFigures,
    /// When a reading with this sample time was seen first.
    seen_seconds: f64,
    /// Busy seconds that count.
    busy_seconds: f64,
    meter: Meter,
    /// Mean demand; none before the second reading, and while no transaction has ever ended.
    mean: Option<f64>,
    returns: Returns,
}

impl PodState {
    fn first(uid: &str, figures: &PodFigures, seen_seconds: f64) -> Self {
        let mut meter = Meter::default();
        meter.add(&figures.sample, None);
        let busy_seconds = figures.sample.busy_seconds;
        Self {
            uid: uid.to_owned(),
            figures: *figures,
            seen_seconds,
            busy_seconds,
            meter,
            mean: None,
            returns: Returns::default(),
        }
    }

    fn next(&self, figures: &PodFigures, seen_seconds: f64) -> Self {
        let (earlier, later) = (&self.figures.sample, &figures.sample);
        let restarted = later.restarted_since(earlier);
        let (begin, before) = if restarted { (0.0, 0.0) } else { (self.busy_seconds, earlier.busy_seconds) };
        // what comes in may have begun long before (a leak): no more counts than could work
        let most = [earlier.busy(), later.busy(), figures.limit.unwrap_or(0.0), figures.demand_peak.unwrap_or(0.0)];
        let could = (later.at_seconds - earlier.at_seconds).max(0.0) * most.into_iter().fold(0.0, f64::max);
        let busy_seconds = begin + (later.busy_seconds - before).clamp(0.0, could);
        let mut meter = self.meter.clone();
        let mean = match meter.add(&Sample { busy_seconds, ..*later }, None) {
            Some(reading) => Some(mean_demand(self.mean, &reading)),
            None => self.mean, // the node's clock was set back, or nothing has ended yet
        };
        Self {
            uid: self.uid.clone(),
            figures: *figures,
            seen_seconds,
            busy_seconds,
            meter,
            mean,
            returns: self.returns,
        }
    }

    /// The reading, no later than it was seen: the time of the pool is that of its newest reading, and a pod whose clock is far ahead
    /// and stands still would stop it for all.
    fn sample_by_our_clock(&self) -> Sample {
        let sample = self.figures.sample;
        Sample { at_seconds: sample.at_seconds.min(self.seen_seconds), ..sample }
    }

    fn age_seconds(&self, now_seconds: f64) -> f64 {
        (now_seconds - self.figures.sample.at_seconds).max(now_seconds - self.seen_seconds).max(0.0)
    }

    fn demand(&self) -> PodDemand {
        let now = self.figures.sample.busy() + self.figures.sample.waiting;
        let mean = self.mean.unwrap_or(now);
        PodDemand { mean, peak: self.figures.demand_peak.unwrap_or(now).max(mean) }
    }
}

impl LoadState {
    /// Takes in what was read at one tick.
    pub fn step(&mut self, input: &LoadInput) -> PoolLoad {
        if let Ok(read) = input.read {
            self.take_in(input, read);
        }
        let uids: HashMap<&str, &str> = input.expected.iter().map(|known| (known.name, known.uid)).collect();
        self.pods.retain(|name, pod| uids.get(name.as_str()).is_some_and(|uid| *uid == pod.uid));

        let now = input.now_seconds;
        let fresh: BTreeMap<&str, &PodState> = input
            .expected
            .iter()
            .filter_map(|known| Some((known.name, self.pods.get(known.name)?)))
            .filter(|(_, pod)| pod.age_seconds(now) <= input.stale_after_seconds)
            .collect();
        let demands = fresh.iter().map(|(&name, pod)| (name.to_owned(), pod.demand())).collect();
        let proofs = fresh.iter().filter_map(|(&name, pod)| Some((name.to_owned(), pod.figures.proof?))).collect();
        let figures = figures(&fresh, now);
        let reporting = u32::try_from(fresh.len()).unwrap_or(u32::MAX);

        let missing = if all_overridden(input) { 0 } else { missing(input, &fresh) };
        let samples: Vec<PodSample> =
            fresh.iter().map(|(&pod, state)| PodSample { pod, sample: state.sample_by_our_clock() }).collect();
        let judgement = match self.hold(input, &fresh) {
            Some((reason, message)) => Judgement::Hold { reason, message },
            None => self.observe(input, &samples, missing),
        };
        let alternation = self.alternation(now);
        PoolLoad { judgement, figures, reporting, demands, proofs, alternation }
    }

    fn alternation(&self, now_seconds: f64) -> Option<Alternation> {
        let pods = self.pods.values().map(|pod| &pod.returns).filter(|returns| returns.alternates(now_seconds));
        let behind: Vec<f64> = pods.filter_map(|returns| returns.behind_seconds).collect();
        let behind_seconds = behind.iter().copied().max_by(f64::total_cmp);
        let pods = u32::try_from(behind.len()).unwrap_or(u32::MAX);
        let counters = self.counters.values().any(|counter| counter.returns.alternates(now_seconds));
        (pods > 0 || counters).then_some(Alternation { pods, behind_seconds })
    }

    fn take_in(&mut self, input: &LoadInput, read: &BTreeMap<String, PodFigures>) {
        for known in input.expected {
            let Some(figures) = read.get(known.name) else { continue };
            let before = self.pods.get_mut(known.name).filter(|pod| pod.uid == known.uid);
            let state = match before {
                None => PodState::first(known.uid, figures, input.now_seconds),
                Some(pod) => {
                    let newer_by = figures.sample.at_seconds - pod.figures.sample.at_seconds;
                    if newer_by == 0.0 {
                        continue;
                    }
                    if newer_by < 0.0 && input.now_seconds - pod.seen_seconds <= input.stale_after_seconds {
                        pod.returns.older(input.now_seconds, Some(-newer_by));
                        continue;
                    }
                    pod.returns.newer();
                    pod.next(&figures.completed(&pod.figures), input.now_seconds)
                }
            };
            self.pods.insert(known.name.to_owned(), state);
        }
    }

    /// Why the load cannot be judged, if it cannot.
    fn hold(&self, input: &LoadInput, fresh: &BTreeMap<&str, &PodState>) -> Option<(HoldReason, String)> {
        for (signal, OverrideAnswer { number, .. }) in input.overrides {
            match number {
                Ok(value) if value.is_finite() && *value >= 0.0 => {}
                Ok(value) => {
                    let message = format!("the query for {signal:?} yielded {value}, which no count can be");
                    return Some((HoldReason::InvalidOverride, message));
                }
                Err(NoNumber::Failed(message)) => return Some((HoldReason::InvalidOverride, message.clone())),
                Err(NoNumber::NotAllowed(message)) => return Some((HoldReason::OverrideNotAllowed, message.clone())),
            }
        }
        if all_overridden(input) {
            return None;
        }
        if input.expected.is_empty() {
            let message = "no pod has a sidecar yet; pods created from now on get one, others after a restart";
            return Some((HoldReason::NoPods, message.to_owned()));
        }
        if let Err(message) = input.read {
            return Some((HoldReason::PrometheusUnavailable, message.to_owned()));
        }
        let pods = input.expected.len();
        if fresh.is_empty() {
            let ages = self.pods.values().map(|pod| pod.age_seconds(input.now_seconds));
            return Some(ages.min_by(f64::total_cmp).map_or_else(
                || {
                    // the first scrape comes when it comes
                    let is_due = |pod: &ExpectedPod| pod.stage == Stage::Running;
                    if !input.expected.iter().any(is_due) {
                        let message = format!("the {pods} pods have begun a moment ago and were not scraped yet");
                        return (HoldReason::Starting, message);
                    }
                    let message = format!(
                        "Prometheus has no series of the {pods} pods; check that it scrapes the port {} and adds the label pod",
                        crate::contract::names::METRICS_PORT_NAME
                    );
                    (HoldReason::NoMetrics, message)
                },
                |age| {
                    let message = format!(
                        "the newest reading of the {pods} pods is {age:.0} s old, more than {} s; check the targets in Prometheus and the clocks of the nodes",
                        input.stale_after_seconds
                    );
                    (HoldReason::StaleMetrics, message)
                },
            ));
        }
        let must = input.expected.iter().filter(|pod| pod.stage == Stage::Running);
        let (reports, silent): (Vec<_>, Vec<_>) = must.partition(|pod| fresh.contains_key(pod.name));
        (reports.len() < silent.len()).then(|| {
            let example = silent.first().map_or("", |pod: &&ExpectedPod| pod.name);
            let message = format!(
                "{} of {} pods report, {example} does not; check the targets in Prometheus",
                reports.len(),
                reports.len() + silent.len()
            );
            (HoldReason::TooFewPodsReport, message)
        })
    }

    /// One observation of the pool, if anything is new.
    fn observe(&mut self, input: &LoadInput, samples: &[PodSample], missing: u32) -> Judgement {
        if self.counters_are_behind(input) {
            return Judgement::Unchanged;
        }
        // a reading that cannot be was refused when it was read
        let merged = self.fleet.merge(samples).unwrap_or_default();
        let pods = merged.filter(|_| !all_overridden(input));
        if pods.is_none() && !all_overridden(input) {
            return Judgement::Unchanged;
        }
        self.count(input);
        let elapsed_seconds = match self.last {
            None => 0.0,
            // one reading more, and how fast they all grow is known
            Some(_) if self.counters.values().any(|counter| counter.rate.is_none()) => return Judgement::Unchanged,
            Some((_, asked_seconds)) => (input.now_seconds - asked_seconds).max(0.0),
        };
        let last = self.last.map_or_else(Sample::default, |(last, _)| last);
        let before = self.merged;
        self.merged = merged.unwrap_or(before);
        let mut sample = match pods {
            // not what the pods have counted since they began: a signal may have been read elsewhere until now
            Some(pods) => Sample {
                transactions: last.transactions + (pods.transactions - before.transactions),
                abandoned: last.abandoned + (pods.abandoned - before.abandoned),
                busy_seconds: last.busy_seconds + (pods.busy_seconds - before.busy_seconds),
                wait_seconds: last.wait_seconds + (pods.wait_seconds - before.wait_seconds),
                assignments: last.assignments + (pods.assignments - before.assignments),
                ..pods
            },
            None => Sample { at_seconds: input.now_seconds, ..last },
        };
        for (&signal, OverrideAnswer { number, .. }) in input.overrides {
            let Ok(value) = *number else { continue };
            let rate = self.counters.get(&signal).and_then(|counter| counter.rate).unwrap_or(0.0);
            let since = rate * elapsed_seconds;
            match signal {
                api::Signal::WaitingClients => sample.waiting = value,
                api::Signal::ActiveConnections => (sample.active, sample.leaked) = (value, 0.0),
                api::Signal::Transactions => {
                    sample.transactions = last.transactions + since;
                    sample.assignments = last.assignments + since;
                }
                api::Signal::TransactionSeconds => sample.busy_seconds = last.busy_seconds + since,
                api::Signal::WaitSeconds => sample.wait_seconds = last.wait_seconds + since,
            }
        }
        self.last = Some((sample, input.now_seconds));
        let completeness = if missing == 0 { Completeness::Complete } else { Completeness::LowerBound { missing } };
        Judgement::New { sample, completeness }
    }

    /// Whether an answer about one of the user's own counters may be older than one before it: then nothing is new.
    fn counters_are_behind(&mut self, input: &LoadInput) -> bool {
        let mut are_behind = false;
        for (signal, OverrideAnswer { query, number }) in input.overrides {
            let (Some(counter), Ok(value)) = (self.counters.get_mut(signal), number) else { continue };
            if counter.query == *query && counter.may_be_behind(*value, input.now_seconds) {
                counter.lower = Some((*value, input.now_seconds));
                are_behind = true;
            }
        }
        are_behind
    }

    /// Takes in the user's own counters.
    fn count(&mut self, input: &LoadInput) {
        let now = input.now_seconds;
        self.counters
            .retain(|signal, counter| input.overrides.get(signal).is_some_and(|answer| answer.query == counter.query));
        for (&signal, OverrideAnswer { query, number }) in input.overrides {
            let Ok(value) = *number else { continue };
            if !is_counter(signal) {
                continue;
            }
            match self.counters.entry(signal) {
                Entry::Occupied(mut counter) => counter.get_mut().next(value, now),
                Entry::Vacant(none) => {
                    none.insert(Counter::new(query, value, now));
                }
            }
        }
    }
}

/// Whether a signal counts up; the others are levels.
const fn is_counter(signal: api::Signal) -> bool {
    match signal {
        api::Signal::Transactions | api::Signal::TransactionSeconds | api::Signal::WaitSeconds => true,
        api::Signal::WaitingClients | api::Signal::ActiveConnections => false,
    }
}

/// True when every signal comes from the user's own queries: then no pod has to report.
fn all_overridden(input: &LoadInput) -> bool {
    use api::Signal::{ActiveConnections, TransactionSeconds, Transactions, WaitSeconds, WaitingClients};
    [WaitingClients, ActiveConnections, Transactions, TransactionSeconds, WaitSeconds]
        .iter()
        .all(|signal| input.overrides.contains_key(signal))
}

/// Pods that have to report and do not.
fn missing(input: &LoadInput, fresh: &BTreeMap<&str, &PodState>) -> u32 {
    let silent = input.expected.iter().filter(|pod| pod.stage == Stage::Running && !fresh.contains_key(pod.name));
    u32::try_from(silent.count()).unwrap_or(u32::MAX)
}

fn figures(fresh: &BTreeMap<&str, &PodState>, now_seconds: f64) -> Option<LoadFigures> {
    let sum = |of: fn(&PodState) -> f64| fresh.values().map(|pod| of(pod)).sum();
    (!fresh.is_empty()).then(|| LoadFigures {
        demand: sum(|pod| pod.demand().mean),
        held: sum(|pod| pod.figures.held.unwrap_or(0.0)),
        active: sum(|pod| pod.figures.sample.active),
        waiting: sum(|pod| pod.figures.sample.waiting),
        leaked: fresh.values().filter_map(|pod| pod.figures.leaked).reduce(|sum, leaked| sum + leaked),
        size: sum(|pod| pod.figures.limit.unwrap_or(0.0)),
        oldest_age_seconds: fresh.values().map(|pod| pod.age_seconds(now_seconds)).fold(0.0, f64::max),
    })
}

/// Mean demand of a pod: what arrives times what each takes, and at least what works; smoothed, but a change beyond what chance
/// explains is taken over at once (sizing.md, `level`). A queue counts by what arrives in it, not by its length: clients
/// that wait for a few short transactions need no connection each.
fn mean_demand(before: Option<f64>, reading: &Reading) -> f64 {
    /// Time constant of the smoothing.
    const TAU_SECONDS: f64 = 30.0;
    /// Variance of service times over their squared mean, plus one for the arrivals.
    const SPREAD: f64 = 2.5;
    let dt = reading.dt_seconds;
    if reading.stalled {
        return before.unwrap_or(reading.busy); // nothing is known of what it would be
    }
    let demand = reading.demand.max(reading.busy_seconds / dt);
    let Some(mean) = before else { return demand };
    let noise = (mean.max(0.3) * reading.service_seconds.min(dt) * SPREAD / dt).sqrt() + 0.05 * mean;
    if (demand - mean).abs() > 3.0 * noise {
        return demand;
    }
    mean + (1.0 - (-dt / TAU_SECONDS).exp()) * (demand - mean)
}
