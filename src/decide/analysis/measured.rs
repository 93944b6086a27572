//! Metrics of the user's own: a measurement is exactly one series with one finite value, and conditions say what it means.
//!
//! As Argo Rollouts has it: a failure condition that holds is a failure; with a success condition alone, whatever does not fulfil it is one;
//! with both, what fulfils neither decides nothing. Unlike there, NaN, no series and several decide nothing in any of these cases.

use serde::{Deserialize, Serialize};

use super::{condition::ResultCondition, sample::MeasuredSeries, verdict::VerdictReason};

/// What one measurement said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Measured {
    Success(f64),
    Failure(f64),
    /// Between the conditions.
    Neither(f64),
    /// No measurement.
    None(VerdictReason, String),
}

/// What was measured so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Measurements {
    successes: u32,
    failures: u32,
    last: Option<Measured>,
}

impl Measurements {
    /// Takes what a query returned.
    pub(super) fn add(
        &mut self,
        success: Option<&ResultCondition>,
        failure: Option<&ResultCondition>,
        series: &[MeasuredSeries],
    ) -> &Measured {
        let measured = match series {
            [] => Measured::None(VerdictReason::NoData, "the query returned no series".to_owned()),
            [one] => match one.value.filter(|value| value.is_finite()) {
                Some(value) => judge(success, failure, value),
                None => Measured::None(VerdictReason::NotANumber, "the query returned no finite number".to_owned()),
            },
            several => {
                let labels: Vec<&str> = several.iter().take(3).map(|series| series.labels.as_str()).collect();
                let more = if several.len() > 3 { ", ..." } else { "" };
                let labels = labels.join(", ");
                Measured::None(
                    VerdictReason::SeveralSeries,
                    format!("the query returned {} series ({labels}{more}); aggregate them to one", several.len()),
                )
            }
        };
        match measured {
            Measured::Success(_) => self.successes = self.successes.saturating_add(1),
            Measured::Failure(_) => self.failures = self.failures.saturating_add(1),
            Measured::Neither(_) | Measured::None(..) => {}
        }
        self.last.insert(measured)
    }

    /// The last measurement.
    pub(super) fn last(&self) -> Option<&Measured> {
        self.last.as_ref()
    }

    pub(super) fn successes(&self) -> u32 {
        self.successes
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// In words, with values.
    pub(super) fn words(&self) -> String {
        let last = match &self.last {
            None => "not measured yet".to_owned(),
            Some(Measured::Success(value) | Measured::Failure(value) | Measured::Neither(value)) => {
                format!("last {value}")
            }
            Some(Measured::None(_, problem)) => problem.clone(),
        };
        format!("{last}; {} successes, {} failures", self.successes, self.failures)
    }
}

fn judge(success: Option<&ResultCondition>, failure: Option<&ResultCondition>, value: f64) -> Measured {
    let holds = |condition: Option<&ResultCondition>| condition.map(|condition| condition.holds(value));
    match (holds(failure), holds(success)) {
        (Some(true), _) | (None, Some(false)) => Measured::Failure(value),
        (_, Some(true)) | (Some(false), None) => Measured::Success(value),
        (Some(false), Some(false)) | (None, None) => Measured::Neither(value),
    }
}
