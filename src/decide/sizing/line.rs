//! An observation as one line of JSON: what `sluice decide` reads, and what operator and agent write to their logs, so
//! that a decision can be repeated anywhere.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Automation, Bounds, Decision, Observation, Reason, Sample, SizingSettings};

/// Where sizes are above this, a line is refused.
const LARGEST_SIZE: f64 = 1_000_000.0;

/// Of what the sizes of a line are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SizesOf {
    /// Of one replica; the pool's are these times `replicas`.
    #[default]
    Replica,
    /// Of the whole pool.
    Pool,
}

/// One observation. Counters and gauges are of the whole pool; times are seconds on one clock. Fields of other names are passed over: who
/// records lines may note more in them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservationLine {
    /// Keeps several pools in one stream apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The time of the decision.
    pub t: f64,
    /// Seconds between two decisions.
    pub interval_s: f64,
    /// Pods that hold poolers.
    pub replicas: u32,
    /// Of what the sizes are.
    #[serde(default)]
    pub sizes_of: SizesOf,
    /// Lower bound.
    pub min_size: f64,
    /// Upper bound.
    pub max_size: f64,
    /// What the budget granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Size in force.
    pub current_size: f64,
    /// Size asked for last.
    pub target_size: f64,
    /// The objective's wait in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub slo_wait_ms: f64,
    /// Share of the transactions that may wait longer.
    #[serde(default = "default_target")]
    pub slo_target: f64,
    /// Whether the decision is carried out.
    #[serde(default)]
    pub automation: Automation,
    /// The most that the database was seen to let in, while it refuses more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_beyond: Option<f64>,
    /// Every reading since the last decision, oldest first; absent or empty when there is none.
    #[serde(default)]
    pub samples: Option<Vec<SampleLine>>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks
fn is_zero(figure: &f64) -> bool {
    figure.abs() < f64::EPSILON
}

fn default_wait_ms() -> f64 {
    20.0
}

fn default_target() -> f64 {
    0.01
}

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// When the poolers were read.
    pub t: f64,
    /// Clients waiting.
    pub cl_waiting: f64,
    /// Server connections linked to a client.
    pub sv_active: f64,
    /// Of these: leaked.
    #[serde(default)]
    pub sv_leaked: f64,
    /// Counter: transactions finished.
    pub xact_count_total: f64,
    /// Counter: transactions given up before they got a server connection.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub xact_abandoned_total: f64,
    /// Counter: seconds that server connections worked for transactions: PgBouncer's `total_xact_time` less its
    /// `total_wait_time`, as the agent exports it.
    pub xact_time_total_s: f64,
    /// Counter: seconds waited for a server connection.
    pub wait_time_total_s: f64,
    /// Counter: server connections assigned; the transactions where a pooler does not count it.
    #[serde(default)]
    pub server_assignments_total: Option<f64>,
}

/// Why a line cannot be decided on.
#[derive(Debug, Error)]
pub enum LineError {
    /// Not JSON of the expected shape.
    #[error("not an observation: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A figure that cannot be.
    #[error("{field} is {value:?}; expected {expected}")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: f64,
        /// What it may hold.
        expected: &'static str,
    },
}

/// An observation of which the samples are owned.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedObservation {
    samples: Vec<Sample>,
    now_seconds: f64,
    interval_seconds: f64,
    pods: u32,
    current: u32,
    target: u32,
    bounds: Bounds,
    automation: Automation,
    refused_beyond: Option<u32>,
}

impl OwnedObservation {
    /// What [`Sizer::decide`](super::Sizer::decide) takes.
    pub fn observation(&self) -> Observation<'_> {
        Observation {
            now_seconds: self.now_seconds,
            interval_seconds: self.interval_seconds,
            pods: self.pods,
            current: self.current,
            target: self.target,
            bounds: self.bounds,
            automation: self.automation,
            refused_beyond: self.refused_beyond,
            samples: &self.samples,
        }
    }
}

impl ObservationLine {
    /// Reads one line.
    ///
    /// # Errors
    /// [`LineError::Malformed`] with what the JSON reader says.
    pub fn parse(line: &str) -> Result<Self, LineError> {
        Ok(serde_json::from_str(line)?)
    }

    /// An observation as a line, sizes of the whole pool.
    pub fn new(pool: Option<String>, settings: &SizingSettings, observation: &Observation) -> Self {
        let samples = observation.samples.iter().map(|sample| SampleLine {
            t: sample.at_seconds,
            cl_waiting: sample.waiting,
            sv_active: sample.active,
            sv_leaked: sample.leaked,
            xact_count_total: sample.transactions,
            xact_abandoned_total: sample.abandoned,
            xact_time_total_s: sample.busy_seconds,
            wait_time_total_s: sample.wait_seconds,
            server_assignments_total: Some(sample.assignments),
        });
        Self {
            pool,
            t: observation.now_seconds,
            interval_s: observation.interval_seconds,
            replicas: observation.pods,
            sizes_of: SizesOf::Pool,
            min_size: observation.bounds.min.into(),
            max_size: observation.bounds.max.into(),
            share: observation.bounds.share.map(f64::from),
            current_size: observation.current.into(),
            target_size: observation.target.into(),
            slo_wait_ms: settings.objective.wait_milliseconds.into(),
            slo_target: settings.objective.max_waiting_percent / 100.0,
            automation: observation.automation,
            refused_beyond: observation.refused_beyond.map(f64::from),
            samples: Some(samples.collect()),
        }
    }

    /// Factor from the line's sizes to those of the whole pool.
    fn factor(&self) -> u32 {
        match self.sizes_of {
            SizesOf::Replica => self.replicas.max(1),
            SizesOf::Pool => 1,
        }
    }

    /// The observation, sizes of the whole pool.
    ///
    /// # Errors
    /// [`LineError::OutOfRange`] names the first figure that cannot be. Samples are judged by the sizing itself.
    pub fn observation(&self) -> Result<OwnedObservation, LineError> {
        let size =
            |field, value: f64| {
                let value_is_size = value.is_finite() && (0.0..=LARGEST_SIZE).contains(&value);
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the range
                value_is_size
                    .then(|| (value.ceil() as u32).saturating_mul(self.factor()))
                    .ok_or(LineError::OutOfRange { field, value, expected: "a number of server connections" })
            };
        if !self.t.is_finite() {
            return Err(LineError::OutOfRange { field: "t", value: self.t, expected: "a time in seconds" });
        }
        if !(self.interval_s > 0.0 && self.interval_s.is_finite()) {
            let value = self.interval_s;
            return Err(LineError::OutOfRange { field: "interval_s", value, expected: "seconds above 0" });
        }
        if self.min_size > self.max_size {
            let value = self.min_size;
            return Err(LineError::OutOfRange { field: "min_size", value, expected: "no more than max_size" });
        }
        let samples = self.samples.iter().flatten().map(|sample| Sample {
            at_seconds: sample.t,
            waiting: sample.cl_waiting,
            active: sample.sv_active,
            leaked: sample.sv_leaked,
            transactions: sample.xact_count_total,
            abandoned: sample.xact_abandoned_total,
            busy_seconds: sample.xact_time_total_s,
            wait_seconds: sample.wait_time_total_s,
            assignments: sample.server_assignments_total.unwrap_or(sample.xact_count_total),
        });
        Ok(OwnedObservation {
            samples: samples.collect(),
            now_seconds: self.t,
            interval_seconds: self.interval_s,
            pods: self.replicas,
            current: size("current_size", self.current_size)?,
            target: size("target_size", self.target_size)?,
            bounds: Bounds {
                min: size("min_size", self.min_size)?,
                max: size("max_size", self.max_size)?,
                share: self.share.map(|share| size("share", share)).transpose()?,
            },
            automation: self.automation,
            refused_beyond: self.refused_beyond.map(|size_| size("refused_beyond", size_)).transpose()?,
        })
    }

    /// The settings with the objective of this line.
    ///
    /// # Errors
    /// [`LineError::OutOfRange`] when the objective cannot be.
    pub fn settings(&self, settings: &SizingSettings) -> Result<SizingSettings, LineError> {
        let mut settings = settings.clone();
        if !(0.001..=3_600_000.0).contains(&self.slo_wait_ms) {
            let value = self.slo_wait_ms;
            return Err(LineError::OutOfRange { field: "slo_wait_ms", value, expected: "0.001 ms to an hour" });
        }
        if !(self.slo_target > 0.0 && self.slo_target < 1.0) {
            let value = self.slo_target;
            return Err(LineError::OutOfRange { field: "slo_target", value, expected: "a share between 0 and 1" });
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the range
        let wait_milliseconds = (self.slo_wait_ms.round() as u32).max(1);
        settings.objective.wait_milliseconds = wait_milliseconds;
        settings.objective.max_waiting_percent = self.slo_target * 100.0;
        Ok(settings)
    }

    /// The decision as the line's answer: `size` is of what the line's sizes are.
    pub fn answer(&self, decision: &Decision) -> AnswerLine {
        let own = |size: u32| size.div_ceil(self.factor());
        AnswerLine {
            pool: self.pool.clone(),
            size: own(decision.size),
            reason: decision.reason,
            message: decision.message.clone(),
            target: own(decision.recommendation.target),
            lower_bound: own(decision.recommendation.lower_bound),
            upper_bound: own(decision.recommendation.upper_bound),
            uncapped_target: own(decision.recommendation.uncapped_target),
            confidence: decision.recommendation.confidence,
            base: own(decision.base),
            demand: decision.explanation.demand,
            service_s: decision.explanation.service_seconds,
            window_s: decision.explanation.setting.map(|setting| setting.window_seconds),
            headroom: decision.explanation.setting.map(|setting| setting.headroom),
            price: decision.explanation.price,
            limits: decision.limits.iter().map(|limit| limit.reason).collect(),
        }
    }
}

/// One answer of `sluice decide`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnswerLine {
    /// Of the observation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The size to set.
    pub size: u32,
    /// What decided it.
    pub reason: Reason,
    /// In words.
    pub message: String,
    /// The recommendation: the same as `size` unless paused or only recommending.
    pub target: u32,
    /// Below this the objective is missed at the load as it is now.
    pub lower_bound: u32,
    /// Enough for the largest load of the last two hours.
    pub upper_bound: u32,
    /// Before any guard or bound.
    pub uncapped_target: u32,
    /// What the recommendation is worth.
    pub confidence: crate::api::Confidence,
    /// Size for the load as it has been.
    pub base: u32,
    /// Busy server connections that the load asks for.
    pub demand: f64,
    /// Mean service time in seconds.
    pub service_s: f64,
    /// Window of the setting followed.
    pub window_s: Option<f64>,
    /// Headroom of the setting followed.
    pub headroom: Option<f64>,
    /// Factor of the error budget.
    pub price: Option<f64>,
    /// Every guard that changed the wish, in order.
    pub limits: Vec<Reason>,
}
