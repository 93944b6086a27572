//! What may overrule the wish of a sizing algorithm. One file per guard, asked in this order:
//!
//! | guard | holds or changes | reasons |
//! |---|---|---|
//! | [`upstream`] | a database that takes no writes: the size is held | `UpstreamReadOnly` |
//! | [`circuit`] | a database that is away: the size is held | `CircuitOpen` |
//! | [`signal`] | no sample, a stale one, figures that cannot be: the size is held, never shrunk | `NoData`, `InvalidData` |
//! | [`stalled`] | nothing finishes: the size is held | `DatabaseStalled` |
//! | [`knee`] | a saturated database gets no more connections | `DatabaseSaturated` |
//! | [`rates`] | windows and policies of `behavior` | `ScaleUpStabilized` ... `ScaleDownLimit` |
//! | [`bounds`] | minimum, maximum, share: the share always wins | `MinSize`, `MaxSize`, `Share` |
//! | [`refused`] | the database lets in no more connections: the size is held at those it lets in | `ServerFull` |
//! | [`automation`] | `paused`, `mode: Recommend`: nothing changes | `Paused`, `RecommendOnly` |
//!
//! A guard returns a [`Limit`] when it changes the wish and nothing when it does not.

pub mod automation;
pub mod bounds;
pub mod circuit;
pub mod knee;
pub mod rates;
pub mod refused;
pub mod signal;
pub mod stalled;
pub mod upstream;

use serde::{Deserialize, Serialize};

use crate::domain::Reason;

/// One guard's say: the size that it leaves, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Server connections of the whole pool.
    pub size: u32,
    /// Which guard.
    pub reason: Reason,
    /// In words, with the figures.
    pub message: String,
}
