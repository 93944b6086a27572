//! What a step decided, and why.

use serde::{Deserialize, Serialize};

use crate::{api::Recommendation, decide::guard::Limit, domain::Reason};

/// One of the pairs that `Adaptive` chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Seconds for which the largest demand counts.
    pub window_seconds: f64,
    /// Multiple of that demand.
    pub headroom: f64,
}

/// The figures behind a wish.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Busy server connections that the load asks for, all pods together; waiting clients included, leaks not.
    pub demand: f64,
    /// Mean service time of a transaction in seconds; 0 before the first one.
    pub service_seconds: f64,
    /// The setting followed (`Adaptive`).
    pub setting: Option<Setting>,
    /// Factor that the error budget puts on the price of a violation (`Adaptive`).
    pub price: Option<f64>,
    /// Seconds of samples that the choice rests on, recent ones weighing more (`Adaptive`).
    pub learned_seconds: f64,
    /// Least size that keeps the objective at the load as it is now.
    pub lower: u32,
    /// Size for the largest load remembered.
    pub upper: u32,
}

/// The outcome of one step. Sizes are server connections of the whole pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The size to set now; the size asked for before when nothing is to change.
    pub size: u32,
    /// What decided it: the last guard that changed the wish, or what the wish came from.
    pub reason: Reason,
    /// The reason in words, with its figures.
    pub message: String,
    /// For `status.recommendation`.
    pub recommendation: Recommendation,
    /// Size for the load as it has been, before guards; clients that wait this second are not in it.
    pub base: u32,
    /// The figures behind it.
    pub explanation: Explanation,
    /// Every guard that changed the wish, in order.
    pub limits: Vec<Limit>,
}
