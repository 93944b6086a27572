//! Busy and waiting as the poolers show them: the load of the algorithms that do not model a queue.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::decision::Explanation;
use crate::domain::Sample;

/// Seconds for which a largest load is remembered.
const WINDOW_SECONDS: f64 = 7200.0;
/// Entries kept at most.
const MOST: usize = 256;

/// The load of the newest sample and the largest of the last two hours.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LoadHistory {
    last: Option<f64>,
    /// Times and loads, the loads falling: an entry that a later one reaches can never be the largest again.
    largest: VecDeque<(f64, f64)>,
    /// Mean service time, for the explanation alone.
    pub service_seconds: f64,
}

impl LoadHistory {
    pub fn add(&mut self, sample: &Sample) {
        let load = sample.busy() + sample.waiting;
        self.last = Some(load);
        while self.largest.back().is_some_and(|&(_, lower)| lower <= load) {
            self.largest.pop_back();
        }
        if self.largest.len() < MOST {
            self.largest.push_back((sample.at_seconds, load));
        }
        while self.largest.front().is_some_and(|&(at, _)| at < sample.at_seconds - WINDOW_SECONDS) {
            self.largest.pop_front();
        }
    }

    pub fn last(&self) -> Option<f64> {
        self.last
    }

    /// The bounds: what is busy and waiting now, and what the algorithm wants for the largest load.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative; saturates
    pub fn explain(&self, size: impl Fn(f64) -> u32) -> Explanation {
        let load = self.last.unwrap_or(0.0);
        let largest = self.largest.front().map_or(load, |&(_, largest)| largest);
        Explanation {
            demand: load,
            service_seconds: self.service_seconds,
            setting: None,
            price: None,
            learned_seconds: 0.0,
            lower: load.ceil() as u32,
            upper: size(largest),
        }
    }

    pub fn rewind(&mut self, now_seconds: f64) {
        for entry in &mut self.largest {
            entry.0 = entry.0.min(now_seconds);
        }
    }
}
