//! The interface behind which the algorithms stand.

use super::{adaptive::AdaptiveParameters, decision::Explanation};
use crate::domain::{Reading, Reason, Sample};

/// Sizes of the whole pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole {
    /// In force.
    pub current: u32,
    /// Asked for last.
    pub target: u32,
    pub min: u32,
    pub max: u32,
}

/// What an algorithm needs to know beside the load. Sizes are per pod unless said: every pod queues for itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizingContext<'a> {
    pub now_seconds: f64,
    /// Seconds between two decisions.
    pub interval_seconds: f64,
    pub pods: f64,
    /// Size in force.
    pub current: f64,
    /// Size asked for last.
    pub target: u32,
    pub min: u32,
    pub max: u32,
    pub tolerance_up: f64,
    pub tolerance_down: f64,
    /// Wait of the objective.
    pub wait_seconds: f64,
    /// Share of the transactions that may wait longer.
    pub violation_share: f64,
    /// The size is what the database was seen to carry: more connections would not serve those that wait.
    pub capped: bool,
    /// Desired busy share of the size.
    pub target_utilization: f64,
    pub adaptive: &'a AdaptiveParameters,
    pub pool: Whole,
}

impl SizingContext<'_> {
    /// A size of one pod as the size of all.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative; saturates
    pub fn whole(&self, per_pod: u32) -> u32 {
        (f64::from(per_pod) * self.pods) as u32
    }
}

/// What an algorithm wants, all pods together, before any guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProposedSize {
    /// Size wanted now.
    pub size: u32,
    /// Size for the load as it has been, without the clients that wait this second.
    pub base: u32,
    pub reason: Reason,
}

/// What is new since the last step.
#[derive(Clone, Copy, Debug)]
pub(super) struct News<'a> {
    /// Samples newer than the last one seen, oldest first.
    pub samples: &'a [Sample],
    /// What they say, one after the other.
    pub quick: &'a [Reading],
    /// The newest reading that [`learn`](SizingAlgorithm::learn) got in this step.
    pub slow: Option<&'a Reading>,
    /// Two slow samples in a row show that the pool has never been used: its demand is 0, not unknown.
    pub unused: bool,
    /// Too few transactions finished before clients began to wait, and since: how long one takes is not known.
    pub blind: bool,
}

/// A rule that turns load into a size.
pub(super) trait SizingAlgorithm {
    /// Takes in one reading of the slow meter. Called for each, oldest first.
    fn learn(&mut self, reading: &Reading, context: &SizingContext);

    /// The size wanted.
    fn wish(&mut self, news: News, context: &SizingContext) -> ProposedSize;

    /// Tells which size per pod the saturated database left of the wish.
    fn cap(&mut self, size: u32);

    /// Why the last wish is what it is.
    fn explain(&self, context: &SizingContext) -> Explanation;

    /// The clock was set back: nothing may lie in the future.
    fn rewind(&mut self, now_seconds: f64);
}
