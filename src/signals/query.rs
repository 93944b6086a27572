//! What is asked.

use std::fmt::Write as _;

use super::response::Labels;
use crate::contract::metrics as names;

/// Queries sent for one reading, whatever the number of pools and pods: a server works out one query on one core. Each asks for
/// everything of its pools, because two queries are not of one moment: between them pods are scraped, and behind one address several
/// servers may answer in turn.
pub const QUERIES_PER_READ: usize = 2;
/// The pools of the first query, by the last character of their names: about half of those that people give, and of numbers. The
/// second is for all others.
const FIRST_HALF: &str = ".*[0-4a-m]";
/// The window of the peaks that are read.
const PEAK_WINDOW: &str = "30s";
/// The state of the server connections that are read, and of the client connections.
const STATES: [&str; 2] = ["active", "waiting"];

/// One figure of a pod: one series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub(super) enum Figure {
    SampleTime,
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
    pub const ALL: [Self; 14] = [
        Self::SampleTime,
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
            Self::SampleTime => names::SAMPLE_TIME,
            Self::Active => names::SERVER_CONNECTIONS,
            Self::Waiting => names::CLIENT_CONNECTIONS,
            Self::Transactions => names::TRANSACTIONS,
            Self::Abandoned => names::ABANDONED,
            Self::BusySeconds => names::BUSY_SECONDS,
            Self::WaitSeconds => names::WAIT_SECONDS,
            Self::Assignments => names::SERVER_ASSIGNMENTS,
            Self::Leaked => names::LEAKED,
            Self::Held => names::HELD,
            Self::Limit => names::LIMIT,
            Self::DemandPeak => names::DEMAND_PEAK,
            Self::GrantSeq => names::GRANT_SEQ,
            Self::Share => names::SHARE,
        }
    }

    /// The figure that a series is.
    pub fn of(labels: &Labels) -> Option<Self> {
        let figure = Self::ALL.into_iter().find(|figure| figure.metric() == labels.name)?;
        let is_it = match figure {
            Self::Active => labels.state == STATES[0],
            Self::Waiting => labels.state == STATES[1],
            Self::DemandPeak => labels.window == PEAK_WINDOW,
            _ => true,
        };
        is_it.then_some(figure)
    }
}

/// The queries of a reading: every figure of every pod of every pool, as it was scraped, and each pool in one of them. To group or
/// join series would cost the server more than to send them.
pub(super) fn figures() -> [String; QUERIES_PER_READ] {
    let metrics = Figure::ALL.map(Figure::metric).join("|");
    let (state, states, window, pool) = (names::STATE, STATES.join("|"), names::WINDOW, names::POOL);
    ["=~", "!~"].map(|half| {
        format!(
            "{{__name__=~\"{metrics}\",{state}=~\"|{states}\",{window}=~\"|{PEAK_WINDOW}\",{pool}{half}\"{FIRST_HALF}\"}}"
        )
    })
}

/// The query of the wait's quantile by pool, and by the namespace of the pods that speak for it: what those of another say is apart.
/// Some servers keep classic histograms as native ones, which have no buckets by name.
pub(super) fn wait_quantile(quantile: f64) -> String {
    let (histogram, by) = (names::WAIT_HISTOGRAM, [names::POOL_NAMESPACE, names::POOL, "namespace"].join(", "));
    let mut query = String::new();
    for (or, more_by, suffix) in [("", ", le", "_bucket"), (" or ", "", "")] {
        // Writing to a String cannot fail.
        let _ =
            write!(query, "{or}histogram_quantile({quantile}, sum by ({by}{more_by}) (rate({histogram}{suffix}[2m])))");
    }
    query
}
