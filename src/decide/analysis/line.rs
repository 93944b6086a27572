//! An analysis as lines of JSON: what `sluice judge` reads, and what is kept of a verdict so that it can be repeated anywhere.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::{
    AnalysisError, AnalysisSettings, Look, MetricVerdict, Outcome, RolloutVerdict, VerdictReason,
    sample::{Measurement, PodInterval},
};

/// Pods in one line.
const MOST_PODS: usize = 10_000;

/// A line of input: settings, which begin an analysis, or what is known at one instant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JudgeLine {
    /// What is to be judged. The first line has it; a later one with it begins another analysis, as a new revision does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<AnalysisSettings>,
    /// When, in seconds on any clock that does not jump; later than in the line before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t_seconds: Option<f64>,
    /// What each pod did since the line before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodInterval>,
    /// What the user's own queries returned since the line before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measurements: Vec<Measurement>,
}

/// Why a line cannot be judged by.
#[derive(Debug, Error)]
pub enum JudgeLineError {
    /// Not JSON of the expected shape.
    #[error("column {column}: {problem}")]
    Malformed {
        /// Where the JSON reader stopped, from 1.
        column: usize,
        /// What it says.
        problem: String,
    },
    /// Settings that cannot be.
    #[error("{0}")]
    Settings(#[from] AnalysisError),
    /// Something is missing or cannot be.
    #[error("{0}")]
    Wrong(String),
}

impl JudgeLine {
    /// Reads one line.
    ///
    /// # Errors
    /// [`JudgeLineError`] with the field, or with the column where the JSON reader stopped.
    pub fn parse(text: &str) -> Result<Self, JudgeLineError> {
        let line: Self = serde_json::from_str(text).map_err(|error| {
            let (said, column) = (error.to_string(), error.column());
            // each text is one line: its own number would only mislead
            let problem = said.split(" at line 1 column").next().unwrap_or_default().to_owned();
            JudgeLineError::Malformed { column, problem }
        })?;
        let wrong = |problem: String| Err(JudgeLineError::Wrong(problem));
        match (&line.settings, line.t_seconds) {
            (None, None) => {
                return wrong("t_seconds is missing: each line of samples says when it was taken".to_owned());
            }
            (Some(_), Some(_)) => return wrong("settings and t_seconds are lines of their own".to_owned()),
            (None, Some(at)) if at.abs() > 1e15 => return wrong(format!("t_seconds is {at}; expected seconds")),
            _ => {}
        }
        if line.pods.len() > MOST_PODS {
            return wrong(format!("{} pods in one line; at most {MOST_PODS}", line.pods.len()));
        }
        match line.pods.iter().position(|pod| pod.pod.is_empty() || pod.pod.len() > 253) {
            Some(index) => wrong(format!(
                "pods[{index}].pod is {:?}; expected a name of 1 to 253 characters",
                line.pods[index].pod
            )),
            None => Ok(line),
        }
    }

    /// What is known at the time of this line; none of a line of settings.
    pub fn look(&self) -> Option<Look<'_>> {
        Some(Look { at_seconds: self.t_seconds?, pods: &self.pods, measurements: &self.measurements })
    }
}

/// A line of output.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct VerdictLine {
    /// Of the line of input; none of a line of settings, and of one that cannot be read.
    pub t_seconds: Option<f64>,
    /// Fail of any metric, else Inconclusive of any, else Pass.
    pub verdict: Outcome,
    /// Why.
    pub reason: VerdictReason,
    /// In words, with values.
    pub message: String,
    /// Whether waiting cannot change it for the better.
    pub is_final: bool,
    /// Of each metric.
    pub metrics: Vec<MetricVerdict>,
    /// What is wrong with the line of input, with its number and position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl VerdictLine {
    /// The verdict at the time of a line.
    pub fn new(t_seconds: Option<f64>, verdict: RolloutVerdict) -> Self {
        let RolloutVerdict { verdict, reason, message, is_final, metrics } = verdict;
        Self { t_seconds, verdict, reason, message, is_final, metrics, error: None }
    }

    /// The answer to a line that cannot be read: it decides nothing, and a Fail stays one.
    pub fn unreadable(error: String, last: Option<&RolloutVerdict>) -> Self {
        if let Some(failed) = last.filter(|last| last.verdict == Outcome::Fail) {
            return Self { error: Some(error), ..Self::new(None, failed.clone()) };
        }
        let message = "not decided: the line cannot be read".to_owned();
        let (verdict, reason) = (Outcome::Inconclusive, VerdictReason::UnreadableLine);
        Self { t_seconds: None, verdict, reason, message, is_final: false, metrics: Vec::new(), error: Some(error) }
    }

    /// JSON schemas of the lines, `input` and `output`.
    pub fn schemas() -> Value {
        serde_json::json!({ "input": schema_for!(JudgeLine), "output": schema_for!(Self) })
    }
}
