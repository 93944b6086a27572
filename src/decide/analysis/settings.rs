//! What is to be judged, and how sure the verdict has to be.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::condition::ResultCondition;

/// Metrics of one analysis.
const MOST_METRICS: usize = 16;
/// The longest analysis, and the longest past, in seconds.
const LONGEST_SECONDS: f64 = 3600.0;
/// The latest deadline, in seconds: where somebody else sees to it.
pub(super) const LATEST_DEADLINE_SECONDS: f64 = 1e9;

/// What is to be judged. What is left out has its default; [`AnalysisSettings::check`] says what cannot be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AnalysisSettings {
    /// The metrics: at least one, for nothing is promoted without data.
    pub metrics: Vec<JudgedMetric>,
    /// The probability with which an unchanged canary may fail, over all comparisons together. Default: 0.05.
    pub false_alarm_probability: f64,
    /// The probability with which a canary that is worse by `harmful_ratio` may be called proven, for each comparison. Default: 0.05.
    pub miss_probability: f64,
    /// A canary is not worse as long as its figure is at most this many times what the other pods have. Default: 1.25.
    pub tolerated_ratio: f64,
    /// A canary passes before the planned exposure when it is proven better than this many times the others. Default: 1.5.
    pub harmful_ratio: f64,
    /// A canary passes after the planned exposure only if it is, with 95 %, better than this many times the others. Default: 2.
    pub unacceptable_ratio: f64,
    /// As `tolerated_ratio`, for the share of seconds with an error. Default: 1.5.
    pub tolerated_error_ratio: f64,
    /// Transaction times below this many milliseconds are alike: it is added to each before two are compared. Default: 0.05.
    pub negligible_transaction_ms: f64,
    /// The same of waits. Default: 0.5.
    pub negligible_wait_ms: f64,
    /// Seconds between two lines of samples. Default: 1.
    pub interval_seconds: f64,
    /// The first seconds of a canary pod do not count: its process is cold. Default: 5.
    pub warm_up_seconds: f64,
    /// Seconds before the change that are kept, to know how the pods differ anyway. Default: 120.
    pub past_seconds: f64,
    /// Nothing passes with fewer seconds of usable samples. Default: 10.
    pub min_exposure_seconds: f64,
    /// Nothing passes before the canary has finished this many transactions. Default: 100.
    pub min_transactions: f64,
    /// A metric that has neither failed nor been proven harmless passes after this many seconds of usable samples when its figure as it stands is
    /// within what is tolerated. Default: 30.
    pub planned_exposure_seconds: f64,
    /// After this many it is not proven. Default: 180.
    pub max_exposure_seconds: f64,
    /// A metric without a usable sample for this long passes no more until there is one. Default: 5.
    pub stale_seconds: f64,
    /// The same for a metric of your own, which is measured less often. Default: 60.
    pub measurement_stale_seconds: f64,
    /// Seconds after the canary's first sample when the analysis ends, whatever data are missing. Default: 600.
    pub deadline_seconds: f64,
}

impl Default for AnalysisSettings {
    /// No metric yet, which is refused.
    fn default() -> Self {
        Self {
            metrics: Vec::new(),
            false_alarm_probability: 0.05,
            miss_probability: 0.05,
            tolerated_ratio: 1.25,
            harmful_ratio: 1.5,
            unacceptable_ratio: 2.0,
            tolerated_error_ratio: 1.5,
            negligible_transaction_ms: 0.05,
            negligible_wait_ms: 0.5,
            interval_seconds: 1.0,
            warm_up_seconds: 5.0,
            past_seconds: 120.0,
            min_exposure_seconds: 10.0,
            min_transactions: 100.0,
            planned_exposure_seconds: 30.0,
            max_exposure_seconds: 180.0,
            stale_seconds: 5.0,
            measurement_stale_seconds: 60.0,
            deadline_seconds: 600.0,
        }
    }
}

/// One metric. The names of [`BuiltIn`] are read from the samples; any other name is a metric of the user's own, with conditions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgedMetric {
    /// `TransactionTime`, `WaitTime`, `Errors`, `LongestWait`, `LoginFailures`, `ClientsCut`, or a name of your own.
    pub name: String,
    /// Whether the canary is compared with the other pods: `TransactionTime`, `WaitTime` and `Errors` alone. Default: true for these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<bool>,
    /// Fails above this many milliseconds: of `TransactionTime` and `WaitTime` the 95 % quantile of the canary's means of one interval, weighted by
    /// transactions; of `LongestWait` each sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<f64>,
    /// Fails above this many on all canary pods together: `Errors`, `LoginFailures`, `ClientsCut`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_count: Option<f64>,
    /// A measurement for which this is true is a success, for instance `result < 0.05`. A metric of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_condition: Option<String>,
    /// A measurement for which this is true is a failure. A metric of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_condition: Option<String>,
    /// Failed measurements that are allowed: `LongestWait` and metrics of your own. Default: 0.
    #[serde(default)]
    pub failure_limit: u32,
    /// Successful measurements without which a metric of your own does not pass. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_measurements: Option<u32>,
}

/// The metrics that samples have figures of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BuiltIn {
    /// Mean time of the transactions of an interval, `transaction_mean_ms`.
    TransactionTime,
    /// Mean wait for a server connection, `wait_mean_ms`.
    WaitTime,
    /// Intervals with an error that the pooler gave a client, `errors`.
    Errors,
    /// The longest that a client waits now, `wait_max_ms`.
    LongestWait,
    /// Logins that failed, `login_failures`.
    LoginFailures,
    /// Clients that the pooler cut, `clients_cut`.
    ClientsCut,
}

impl BuiltIn {
    const ALL: [Self; 6] =
        [Self::TransactionTime, Self::WaitTime, Self::Errors, Self::LongestWait, Self::LoginFailures, Self::ClientsCut];

    /// As in settings and verdicts.
    pub fn name(self) -> &'static str {
        match self {
            Self::TransactionTime => "TransactionTime",
            Self::WaitTime => "WaitTime",
            Self::Errors => "Errors",
            Self::LongestWait => "LongestWait",
            Self::LoginFailures => "LoginFailures",
            Self::ClientsCut => "ClientsCut",
        }
    }

    /// The field of a sample that has it.
    pub fn field(self) -> &'static str {
        match self {
            Self::TransactionTime => "transaction_mean_ms",
            Self::WaitTime => "wait_mean_ms",
            Self::Errors => "errors",
            Self::LongestWait => "wait_max_ms",
            Self::LoginFailures => "login_failures",
            Self::ClientsCut => "clients_cut",
        }
    }

    /// The built-in metric of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }

    fn can_be_compared(self) -> bool {
        matches!(self, Self::TransactionTime | Self::WaitTime | Self::Errors)
    }

    fn is_a_time(self) -> bool {
        matches!(self, Self::TransactionTime | Self::WaitTime | Self::LongestWait)
    }
}

/// Why settings cannot be judged by.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum AnalysisError {
    /// No metric.
    #[error(
        "settings.metrics is empty: an analysis without a metric would promote anything; name at least one, such as {{\"name\": \"TransactionTime\"}}"
    )]
    NoMetric,
    /// More than can be.
    #[error("settings.metrics has {0} metrics; at most {MOST_METRICS} are judged together")]
    TooManyMetrics(usize),
    /// A figure that cannot be.
    #[error("settings.{field} is {value}; expected {expected}")]
    OutOfRange {
        /// Which field.
        field: String,
        /// What it held.
        value: f64,
        /// What it may hold.
        expected: String,
    },
    /// A metric that means nothing.
    #[error("settings.metrics[{index}] ({name}): {problem}")]
    Metric {
        /// Which, from 0.
        index: usize,
        /// Its name.
        name: String,
        /// What is wrong and what to write.
        problem: String,
    },
}

/// One test that a metric is put to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Test {
    /// A time of the canary against that of the others.
    Compared(BuiltIn),
    /// Seconds with errors of the canary against those of the others.
    ErrorsCompared,
    /// A quantile of the canary's means, in milliseconds.
    QuantileAtMost(BuiltIn, f64),
    /// Each sample, in milliseconds, and the failed measurements that are allowed.
    EachAtMost(BuiltIn, f64, u32),
    /// A sum over the canary.
    SumAtMost(BuiltIn, f64),
    /// Conditions on measurements of a query.
    Conditions {
        success: Option<ResultCondition>,
        failure: Option<ResultCondition>,
        failure_limit: u32,
        min_measurements: u32,
    },
}

impl AnalysisSettings {
    /// These metrics, and the defaults.
    pub fn new(metrics: Vec<JudgedMetric>) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// Refuses what cannot be judged by.
    ///
    /// # Errors
    /// [`AnalysisError`] names the first field, what it holds and what it may hold.
    pub fn check(&self) -> Result<(), AnalysisError> {
        self.tests().map(|_| ())
    }

    /// What each metric is put to, in order; checked.
    pub(super) fn tests(&self) -> Result<Vec<(String, Test)>, AnalysisError> {
        self.check_figures()?;
        match self.metrics.len() {
            0 => return Err(AnalysisError::NoMetric),
            1..=MOST_METRICS => {}
            count => return Err(AnalysisError::TooManyMetrics(count)),
        }
        let mut names = BTreeSet::new();
        let mut tests = Vec::new();
        for (index, metric) in self.metrics.iter().enumerate() {
            let name = metric.name.clone();
            let wrong = |problem| AnalysisError::Metric { index, name: name.clone(), problem };
            if !names.insert(&metric.name) {
                return Err(wrong("another metric has this name".to_owned()));
            }
            let own = metric.tests().map_err(wrong)?;
            tests.extend(own.into_iter().map(|test| (metric.name.clone(), test)));
        }
        Ok(tests)
    }

    fn check_figures(&self) -> Result<(), AnalysisError> {
        let seconds = [
            ("interval_seconds", self.interval_seconds, 0.1),
            ("warm_up_seconds", self.warm_up_seconds, 0.0),
            ("past_seconds", self.past_seconds, 0.0),
            ("min_exposure_seconds", self.min_exposure_seconds, 1.0),
            ("planned_exposure_seconds", self.planned_exposure_seconds, 1.0),
            ("max_exposure_seconds", self.max_exposure_seconds, 1.0),
            ("stale_seconds", self.stale_seconds, 0.1),
            ("measurement_stale_seconds", self.measurement_stale_seconds, 0.1),
        ];
        let mut ranges: Vec<(&str, f64, f64, f64)> =
            seconds.into_iter().map(|(field, value, least)| (field, value, least, LONGEST_SECONDS)).collect();
        ranges.extend([
            ("false_alarm_probability", self.false_alarm_probability, 1e-6, 0.5),
            ("miss_probability", self.miss_probability, 1e-6, 0.5),
            ("tolerated_ratio", self.tolerated_ratio, 1.0, 10.0),
            ("harmful_ratio", self.harmful_ratio, 1.05, 10.0),
            ("unacceptable_ratio", self.unacceptable_ratio, 1.05, 100.0),
            ("tolerated_error_ratio", self.tolerated_error_ratio, 1.0, 10.0),
            ("negligible_transaction_ms", self.negligible_transaction_ms, 1e-6, 1e6),
            ("negligible_wait_ms", self.negligible_wait_ms, 1e-6, 1e6),
            ("min_transactions", self.min_transactions, 0.0, 1e9),
            ("deadline_seconds", self.deadline_seconds, 1.0, LATEST_DEADLINE_SECONDS),
        ]);
        for (field, value, least, most) in ranges {
            in_range(field, value, least, most)?;
        }
        in_range("max_exposure_seconds", self.max_exposure_seconds, self.planned_exposure_seconds, LONGEST_SECONDS)?;
        in_range("min_exposure_seconds", self.min_exposure_seconds, 1.0, self.planned_exposure_seconds)
    }
}

/// The range is written so that NaN is outside of it.
fn in_range(field: &str, value: f64, least: f64, most: f64) -> Result<(), AnalysisError> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(AnalysisError::OutOfRange { field: field.to_owned(), value, expected: format!("{least} to {most}") })
}

impl JudgedMetric {
    /// A metric with nothing but its name.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn tests(&self) -> Result<Vec<Test>, String> {
        if self.name.is_empty() || self.name.len() > 63 {
            return Err("a name has 1 to 63 characters".to_owned());
        }
        match BuiltIn::of(&self.name) {
            Some(metric) => self.built_in(metric),
            None => Ok(vec![self.conditions()?]),
        }
    }

    fn built_in(&self, metric: BuiltIn) -> Result<Vec<Test>, String> {
        if self.success_condition.is_some() || self.failure_condition.is_some() || self.min_measurements.is_some() {
            return Err("conditions are for a metric of your own; give it another name, or take limit_ms, limit_count or compare".to_owned());
        }
        if self.failure_limit > 0 && metric != BuiltIn::LongestWait {
            return Err("failure_limit counts measurements: of LongestWait and of metrics of your own alone".to_owned());
        }
        if self.compare == Some(true) && !metric.can_be_compared() {
            return Err("it is not compared; leave compare out and give it a limit".to_owned());
        }
        let limit = match (metric.is_a_time(), self.limit_ms, self.limit_count) {
            (true, limit, None) | (false, None, limit) => limit,
            (true, _, Some(_)) => return Err("it is a time: write limit_ms in place of limit_count".to_owned()),
            (false, Some(_), _) => return Err("it is a count: write limit_count in place of limit_ms".to_owned()),
        };
        if let Some(limit) = limit.filter(|limit| !(0.0..=1e9).contains(limit)) {
            return Err(format!("the limit is {limit}; expected 0 to 1000000000"));
        }
        let mut tests = Vec::new();
        if metric.can_be_compared() && self.compare != Some(false) {
            tests.push(if metric == BuiltIn::Errors { Test::ErrorsCompared } else { Test::Compared(metric) });
        }
        if let Some(limit) = limit {
            tests.push(match metric {
                BuiltIn::TransactionTime | BuiltIn::WaitTime => Test::QuantileAtMost(metric, limit),
                BuiltIn::LongestWait => Test::EachAtMost(metric, limit, self.failure_limit),
                BuiltIn::Errors | BuiltIn::LoginFailures | BuiltIn::ClientsCut => Test::SumAtMost(metric, limit),
            });
        }
        if tests.is_empty() {
            let limit = if metric.is_a_time() { "limit_ms" } else { "limit_count" };
            return Err(format!("nothing would be judged: give it {limit}"));
        }
        Ok(tests)
    }

    fn conditions(&self) -> Result<Test, String> {
        let known: Vec<&str> = BuiltIn::ALL.into_iter().map(BuiltIn::name).collect();
        if self.success_condition.is_none() && self.failure_condition.is_none() {
            let known = known.join(", ");
            return Err(format!(
                "unknown metric: known are {known}; one of your own needs success_condition or failure_condition"
            ));
        }
        if self.compare.is_some() || self.limit_ms.is_some() || self.limit_count.is_some() {
            let known = known.join(", ");
            return Err(format!("compare, limit_ms and limit_count are for {known}; one of your own has conditions"));
        }
        let parsed = |field: &str, text: &Option<String>| {
            let parse = |text: &String| ResultCondition::parse(text).map_err(|error| format!("{field}: {error}"));
            text.as_ref().map(parse).transpose()
        };
        Ok(Test::Conditions {
            success: parsed("success_condition", &self.success_condition)?,
            failure: parsed("failure_condition", &self.failure_condition)?,
            failure_limit: self.failure_limit,
            min_measurements: self.min_measurements.unwrap_or(3).max(1),
        })
    }
}
