//! What a pool's user may set about its sizing.

use super::adaptive::AdaptiveParameters;
use crate::{
    contract::{Algorithm, Behavior, Objective, ScalingSettings, Settings},
    decide::behavior,
};

/// Seconds between two samples that are learned.
const SAMPLE_SECONDS: f64 = 15.0;
/// Desired busy share for `TargetUtilization` where nothing is said.
const TARGET_UTILIZATION_PERCENT: u32 = 70;

/// The settings of one pool, every default merged in.
#[derive(Clone, Debug, PartialEq)]
pub struct SizingSettings {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// What the clients were promised.
    pub objective: Objective,
    /// Desired busy share of the size in percent, for `TargetUtilization`.
    pub target_utilization_percent: u32,
    /// Windows, policies and tolerances.
    pub behavior: Behavior,
    /// Seconds in transaction without work after which a connection counts as leaked; none where leaks cannot be told.
    pub leak_threshold_seconds: Option<f64>,
    /// Seconds between two samples that are learned.
    pub sample_seconds: f64,
    /// Parameters of `Adaptive`.
    pub adaptive: AdaptiveParameters,
}

impl SizingSettings {
    /// An algorithm with its defaults.
    pub fn new(algorithm: Algorithm, objective: Objective) -> Self {
        Self {
            algorithm,
            objective,
            target_utilization_percent: TARGET_UTILIZATION_PERCENT,
            behavior: behavior::default_for(algorithm),
            leak_threshold_seconds: None,
            sample_seconds: SAMPLE_SECONDS,
            adaptive: AdaptiveParameters::default(),
        }
    }
}

impl From<&ScalingSettings> for SizingSettings {
    fn from(scaling: &ScalingSettings) -> Self {
        Self {
            target_utilization_percent: scaling.target_utilization_percent,
            behavior: scaling.behavior.clone(),
            ..Self::new(scaling.algorithm, scaling.objective)
        }
    }
}

impl From<&Settings> for SizingSettings {
    fn from(settings: &Settings) -> Self {
        Self {
            leak_threshold_seconds: Some(f64::from(settings.health.leak_threshold_seconds)),
            ..Self::from(&settings.scaling)
        }
    }
}
