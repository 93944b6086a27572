//! Whether a decision is carried out.

use serde::{Deserialize, Serialize};

/// Whether a decision is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Automation {
    /// Yes.
    #[default]
    Apply,
    /// `mode: Recommend`: never; the size stays, the recommendation tells what it would be.
    Recommend,
    /// `paused`: not now.
    Paused,
    /// The database takes no writes although a primary is expected: what the load is now says nothing about what it will be
    /// when one is there.
    UpstreamReadOnly,
    /// The database is away, as the circuit breakers have it: what the load is now says nothing about what it will be when it is back.
    CircuitOpen,
}
