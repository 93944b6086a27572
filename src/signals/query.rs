//! The queries of a tick.

use crate::contract::metrics as names;

/// Labels that the series are grouped by. `namespace`, `pod`, `job` and `instance` are Prometheus' own.
const BY: &str = "pool_namespace, pool, namespace, pod, job, instance";

/// One figure of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub(super) enum Figure {
    Active,
    Waiting,
    Transactions,
    Abandoned,
    BusySeconds,
    WaitSeconds,
    Assignments,
    Leaked,
    Held,
    Limit,
    DemandPeak,
    GrantSeq,
    Share,
}

impl Figure {
    pub const ALL: [Self; 13] = [
        Self::Active,
        Self::Waiting,
        Self::Transactions,
        Self::Abandoned,
        Self::BusySeconds,
        Self::WaitSeconds,
        Self::Assignments,
        Self::Leaked,
        Self::Held,
        Self::Limit,
        Self::DemandPeak,
        Self::GrantSeq,
        Self::Share,
    ];
    /// Name of the metric that it is.
    pub const fn metric(self) -> &'static str {
        match self {
            Self::Active | Self::Held => names::SERVER_CONNECTIONS,
            Self::Waiting => names::CLIENT_CONNECTIONS,
            Self::Transactions => names::TRANSACTIONS,
            Self::Abandoned => names::ABANDONED,
            Self::BusySeconds => names::BUSY_SECONDS,
            Self::WaitSeconds => names::WAIT_SECONDS,
            Self::Assignments => names::SERVER_ASSIGNMENTS,
            Self::Leaked => names::LEAKED,
            Self::Limit => names::LIMIT,
            Self::DemandPeak => names::DEMAND_PEAK,
            Self::GrantSeq => names::GRANT_SEQ,
            Self::Share => names::SHARE,
        }
    }

    pub fn query(self) -> String {
        let (state, window) = (names::STATE, names::WINDOW);
        let metric = self.metric();
        match self {
            Self::Active => format!("max by ({BY}) ({metric}{{{state}=\"active\"}})"),
            Self::Waiting => format!("max by ({BY}) ({metric}{{{state}=\"waiting\"}})"),
            Self::DemandPeak => format!("max by ({BY}) ({metric}{{{window}=\"30s\"}})"),
            Self::Held => format!("sum by ({BY}) (max by ({BY}, {state}) ({metric}))"),
            _ => format!("max by ({BY}) ({metric})"),
        }
    }
}

/// The query for the times of the samples.
pub(super) fn sample_time() -> String {
    format!("max by ({BY}) ({})", names::SAMPLE_TIME)
}

/// Queries sent for one reading, whatever the number of pools and pods: one per figure, and two for the times of the samples.
pub const QUERIES_PER_READ: usize = Figure::ALL.len() + 2;
