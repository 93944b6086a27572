//! Where the load comes from: Prometheus, asked for all pools at once.
//!
//! # Use
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use sluice::domain::PoolKey;
//! use sluice::signals::{DEFAULT_SERVER, Roster, Servers};
//!
//! let servers = Servers::from_file("/etc/sluice/prometheus/prometheus.yaml".as_ref())?; // once
//! let server = servers.get(DEFAULT_SERVER).ok_or("no such server")?; // spec.scaling.metrics.prometheusRef
//!
//! let now_seconds = 1_763_700_000.0; // the time of the tick, in Unix seconds
//! let pool = PoolKey::new("shop", "shop");
//! let roster: Roster = [(pool.clone(), "shop-0".to_owned())].into_iter().collect(); // the pods that there are
//! let readings = server.read(now_seconds, &Arc::new(roster)).await?; // once a tick for all pools that name this server
//! for (pod, figures) in readings.pods_of(&pool) {
//!     println!("{pod}: {} busy, {} waiting", figures.sample.active, figures.sample.waiting);
//! }
//! for problem in &readings.problems {
//!     println!("{problem}"); // series that were refused, and why
//! }
//! # Ok(())
//! # }
//! ```
//! [`decide::load`](crate::decide::load) makes one observation per pool of it. What fails is an error that names the
//! server, the signal and what to do; then pass its text to `LoadInput::read` as it is: everything holds.
//!
//! # What is asked
//! Every figure of every pod of every pool. The number of queries, [`QUERIES_PER_READ`], does not depend on how many pools there
//! are; each is for some of the pools, and what is read of a pool is one moment of one server, also where several answer behind one
//! address.
//! - A pod scraped by two jobs, or by two replicas behind a querier that does not deduplicate, has two sets of series: the set
//!   with the newest sample time is used, whole, and the other not at all: never a sum.
//! - The time of a sample is the agent's own ([`SAMPLE_TIME`](crate::contract::metrics::SAMPLE_TIME)), because an instant query
//!   returns the time of its evaluation.
//! - What cannot be (NaN, infinite, negative) is refused, pod by pod.
//! - A pod speaks for the pool that it is of, by the [`Roster`], and for no other; of what belongs to no pod of it nothing is kept. Of
//!   one pod a few sets of series are kept, and one that has more is left out: what a pod exports costs no other anything.
//! - Of the pods of a rollout it is the same, with a bound on scrapes beside: of one pod, and of all that are asked for.
//! - An answer with warnings is partial, and not used at all; notes about the query are none.

mod collect;
mod configuration;
mod error;
mod intake;
mod prometheus;
mod query;
mod response;
mod revisions;
mod roster;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::{BTreeMap, HashMap};

pub use crate::decide::load::PodFigures;
use crate::domain::PoolKey;
pub use collect::{RefusedSeries, SeriesRefusal};
pub use configuration::{BasicAuthFiles, ConfigurationError, DEFAULT_SERVER, EVERY_NAMESPACE, ServerConfiguration};
pub use error::{Fault, ReadError, ReadFailure, ReadSubject};
pub use prometheus::{OverrideQuery, PrometheusServer, Servers};
pub use query::QUERIES_PER_READ;
#[cfg(feature = "operator")]
pub(crate) use response::partial;
pub use revisions::{RevisionReadings, RolloutPods};
pub use roster::Roster;
pub use trust::client as trusting_client;

/// What one server said at one instant, all pools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// When the query was evaluated, in Unix seconds.
    pub at_seconds: f64,
    /// What the pods reported, by pool and pod name.
    pub pools: HashMap<PoolKey, BTreeMap<String, PodFigures>>,
    /// Series that were refused, and why; the first of each kind.
    pub problems: Vec<RefusedSeries>,
    /// The first of the series of each pool that were refused.
    problems_by_pool: HashMap<PoolKey, RefusedSeries>,
    /// Size of the answer in bytes.
    pub bytes: usize,
}

impl Readings {
    /// What the pods of a pool reported, by pod name. Empty: nothing, which is not the same as no load.
    pub fn pods_of(&self, pool: &PoolKey) -> &BTreeMap<String, PodFigures> {
        static NONE: BTreeMap<String, PodFigures> = BTreeMap::new();
        self.pools.get(pool).unwrap_or(&NONE)
    }

    /// The first of the pool's series that were refused, and why.
    pub fn problem_of(&self, pool: &PoolKey) -> Option<&RefusedSeries> {
        self.problems_by_pool.get(pool)
    }
}
