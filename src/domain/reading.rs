//! What two samples say about the time between them.

use serde::{Deserialize, Serialize};

/// What two samples say about the time between them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Time of the later sample, in seconds.
    pub at_seconds: f64,
    /// Seconds between the two.
    pub dt_seconds: f64,
    /// Transactions that arrived per second, those included that wait or were given up.
    pub rate: f64,
    /// Mean service time `S` in seconds.
    pub service_seconds: f64,
    /// Offered load `a`: server connections busy on average if nobody had to wait.
    pub demand: f64,
    /// Transactions finished.
    pub done: f64,
    /// Seconds that server connections worked for transactions.
    pub busy_seconds: f64,
    /// Transactions that were given up while they waited for a server connection.
    pub abandoned: f64,
    /// Server connections assigned.
    pub assigned: f64,
    /// Mean wait for a server connection in seconds; none when no connection was assigned.
    pub mean_wait_seconds: Option<f64>,
    /// Clients waiting at the end.
    pub waiting: f64,
    /// Server connections linked to a client at the end, leaked ones included unless they are set aside: saturation.
    pub active: f64,
    /// The same without the leaked ones: work.
    pub busy: f64,
    /// Nothing finished while connections were busy and clients waited: the database stands still.
    pub stalled: bool,
}
