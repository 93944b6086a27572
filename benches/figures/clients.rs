//! The clients of a figure that counts what is lost: those that come and go, and those that stay.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tokio::runtime::{Builder, Runtime};

use crate::{
    Failure,
    load::{Clients, Tally, Target},
};

/// Columns of [`Load::met`].
pub const COLUMNS: &str = "elapsed_seconds,connections,queries,failures,kinds";

/// Clients at work, and what they have met.
pub struct Load {
    runtime: Runtime,
    /// What those met that connect, ask one thing and leave.
    pub comers: Arc<Tally>,
    /// What those met that stay for a while or for ever.
    pub stayers: Arc<Tally>,
    begin: Instant,
}

impl Load {
    /// Nobody yet.
    pub fn new() -> Result<Self, Failure> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { runtime, comers: Arc::default(), stayers: Arc::default(), begin: Instant::now() })
    }

    /// `workers` clients that connect, ask one thing and leave, together `per_second` times a second.
    pub fn come(&self, target: &Target, workers: u32, per_second: u32) -> Clients {
        let _inside = self.runtime.enter();
        let mut clients = Clients::with(self.comers.clone());
        clients.churn(target, workers, per_second);
        clients
    }

    /// Clients that stay.
    pub fn stay(&self, add: impl FnOnce(&mut Clients)) -> Clients {
        let _inside = self.runtime.enter();
        let mut clients = Clients::with(self.stayers.clone());
        add(&mut clients);
        clients
    }

    /// Lets them finish what they are at, and go.
    pub fn leave(&self, clients: Clients) {
        self.runtime.block_on(clients.stop());
    }

    /// Runs something else beside them.
    pub fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    /// Since the beginning, in seconds.
    pub fn elapsed(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Failures of all.
    pub fn failures(&self) -> u64 {
        self.kinds().values().sum()
    }

    fn kinds(&self) -> BTreeMap<String, u64> {
        let mut kinds = BTreeMap::new();
        for (failure, count) in self.comers.failures().into_iter().chain(self.stayers.failures()) {
            *kinds.entry(failure.to_string().replace(',', ";")).or_default() += count;
        }
        kinds
    }

    /// So far: seconds, new connections of all, queries of those that stay, failures of all, and of which kind. See [`COLUMNS`].
    pub fn met(&self) -> String {
        let kinds = self.kinds();
        let told: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        format!(
            "{:.1},{},{},{},{}",
            self.elapsed(),
            self.comers.connections() + self.stayers.connections(),
            self.stayers.queries(),
            kinds.values().sum::<u64>(),
            told.join(" ")
        )
    }
}
