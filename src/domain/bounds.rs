//! Between which sizes a pool may move.

use serde::{Deserialize, Serialize};

/// Between which sizes the pool may move. Clamped in this order: minimum, maximum, share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// At least this many server connections.
    pub min: u32,
    /// At most this many. Wins over `min`.
    pub max: u32,
    /// What the budget granted; none while nothing shares the server. Wins over both.
    pub share: Option<u32>,
}

impl Bounds {
    /// The largest size that no bound forbids.
    pub fn most(&self) -> u32 {
        self.share.map_or(self.max, |share| share.min(self.max))
    }

    /// The smallest size that no bound forbids.
    pub fn least(&self) -> u32 {
        self.min.min(self.most())
    }
}
