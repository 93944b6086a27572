//! Why a size is what it is.

use serde::{Deserialize, Serialize};

/// Why the size is what it is. The names appear in status, events, metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The load asks for it.
    Demand,
    /// Clients wait this second although the connections are busy.
    WaitingClients,
    /// No sample newer than the last one: the size is held.
    NoData,
    /// Figures that cannot be: the size is held.
    InvalidData,
    /// Nothing finishes while connections are busy and clients wait: the size is held.
    DatabaseStalled,
    /// The database takes no writes although a primary is expected: the size is held.
    UpstreamReadOnly,
    /// The database is away: the size is held.
    CircuitOpen,
    /// More connections brought no more throughput: the size is capped.
    DatabaseSaturated,
    /// A recommendation within the stabilisation window was lower.
    ScaleUpStabilized,
    /// A recommendation within the stabilisation window was higher.
    ScaleDownStabilized,
    /// The policies of `behavior.scaleUp` allow no more.
    ScaleUpLimit,
    /// The policies of `behavior.scaleDown` allow no less.
    ScaleDownLimit,
    /// `minAllowed`, or the floors of the pods.
    MinSize,
    /// `maxAllowed`.
    MaxSize,
    /// What the budget granted.
    Share,
    /// The database refuses further server connections.
    ServerFull,
    /// `spec.paused`: nothing changes.
    Paused,
    /// `mode: Recommend`: nothing changes.
    RecommendOnly,
}

impl Reason {
    /// Every reason, for metrics that want each series from the start.
    pub const ALL: [Self; 18] = [
        Self::Demand,
        Self::WaitingClients,
        Self::NoData,
        Self::InvalidData,
        Self::DatabaseStalled,
        Self::UpstreamReadOnly,
        Self::CircuitOpen,
        Self::DatabaseSaturated,
        Self::ScaleUpStabilized,
        Self::ScaleDownStabilized,
        Self::ScaleUpLimit,
        Self::ScaleDownLimit,
        Self::MinSize,
        Self::MaxSize,
        Self::Share,
        Self::ServerFull,
        Self::Paused,
        Self::RecommendOnly,
    ];

    /// The name as it appears to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Demand => "Demand",
            Self::WaitingClients => "WaitingClients",
            Self::NoData => "NoData",
            Self::InvalidData => "InvalidData",
            Self::DatabaseStalled => "DatabaseStalled",
            Self::UpstreamReadOnly => "UpstreamReadOnly",
            Self::CircuitOpen => "CircuitOpen",
            Self::DatabaseSaturated => "DatabaseSaturated",
            Self::ScaleUpStabilized => "ScaleUpStabilized",
            Self::ScaleDownStabilized => "ScaleDownStabilized",
            Self::ScaleUpLimit => "ScaleUpLimit",
            Self::ScaleDownLimit => "ScaleDownLimit",
            Self::MinSize => "MinSize",
            Self::MaxSize => "MaxSize",
            Self::Share => "Share",
            Self::ServerFull => "ServerFull",
            Self::Paused => "Paused",
            Self::RecommendOnly => "RecommendOnly",
        }
    }

    /// True when the load could not be judged, so that the size was held.
    pub const fn is_hold(self) -> bool {
        matches!(
            self,
            Self::NoData | Self::InvalidData | Self::DatabaseStalled | Self::UpstreamReadOnly | Self::CircuitOpen
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
