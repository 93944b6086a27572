//! What a trace is replayed against: the pooler, the database, the objective, and what goes wrong when.

use serde::Deserialize;

/// The sidecar of a trace (`NAME.json` beside `NAME.csv`). Every key has a default; unknown keys are ignored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Scenario {
    /// Name of the trace.
    pub name: String,
    /// Seed of every random draw.
    pub seed: u64,
    /// Least size per pod.
    pub min_size: u32,
    /// Largest size per pod.
    pub max_size: u32,
    /// Size at the beginning; 0: 1.2 times the load of the first minute, and 2.
    pub init_size: u32,
    /// Pods with a pooler.
    pub replicas: u32,
    /// Transactions that may be in a pod at once, queued ones included; 0: eight times the largest size.
    pub clients: u32,
    /// Seconds to open a server connection, in milliseconds.
    pub connect_ms: f64,
    /// Seconds after which an idle server connection is closed.
    pub server_idle_timeout_s: f64,
    /// Seconds after which a waiting client gives up.
    pub query_wait_timeout_s: f64,
    /// Coefficient of variation of the (log-normal) service times.
    pub service_cv: f64,
    /// Coefficient of variation of the rate's noise, and its correlation time in seconds.
    pub burst_cv: f64,
    /// See `burst_cv`.
    pub burst_tau_s: f64,
    /// Mean number of transactions that arrive together.
    pub batch_mean: f64,
    /// Transactions that the database runs at full speed; 0: any number.
    pub db_limit: f64,
    /// How much worse than sharing it gets beyond that.
    pub db_kappa: f64,
    /// The objective's wait in milliseconds.
    pub slo_wait_ms: f64,
    /// Share of the transactions that may wait longer.
    pub slo_target: f64,
    /// Seconds at the beginning that are not counted.
    pub warmup_s: f64,
    /// Whether the rate between two rows is interpolated or held.
    pub interpolate: bool,
    /// What happens when.
    pub events: Vec<ScenarioEvent>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: String::new(),
            seed: 1,
            min_size: 2,
            max_size: 100,
            init_size: 0,
            replicas: 1,
            clients: 0,
            connect_ms: 30.0,
            server_idle_timeout_s: 600.0,
            query_wait_timeout_s: 120.0,
            service_cv: 1.2,
            burst_cv: 0.0,
            burst_tau_s: 10.0,
            batch_mean: 1.0,
            db_limit: 0.0,
            db_kappa: 0.0,
            slo_wait_ms: 20.0,
            slo_target: 0.01,
            warmup_s: 600.0,
            interpolate: true,
            events: Vec::new(),
        }
    }
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct ScenarioEvent {
    /// When, in seconds.
    pub t: f64,
    /// What.
    #[serde(rename = "type")]
    pub kind: ScenarioEventKind,
    /// For how many seconds, where it lasts.
    #[serde(default)]
    pub dur: f64,
    /// How many pods, where it changes them.
    #[serde(default)]
    pub n: u32,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScenarioEventKind {
    /// No metrics.
    MetricsGap,
    /// The same metrics again and again.
    StaleMetrics,
    /// The database answers nothing.
    DbOutage,
    /// The poolers' counters begin again.
    CounterReset,
    /// The number of pods changes.
    Replicas,
}

impl ScenarioEvent {
    /// True while it lasts.
    pub fn covers(&self, t: f64) -> bool {
        (self.t..self.t + self.dur).contains(&t)
    }
}

impl Scenario {
    /// Refuses what cannot be replayed.
    ///
    /// # Errors
    /// The key, its value and what it may hold.
    pub fn check(&self) -> Result<(), String> {
        let numbers = [
            ("connect_ms", self.connect_ms, 60_000.0),
            ("server_idle_timeout_s", self.server_idle_timeout_s, 1e9),
            ("query_wait_timeout_s", self.query_wait_timeout_s, 1e9),
            ("service_cv", self.service_cv, 20.0),
            ("burst_cv", self.burst_cv, 20.0),
            ("burst_tau_s", self.burst_tau_s, 1e6),
            ("batch_mean", self.batch_mean, 1e4),
            ("db_limit", self.db_limit, 1e6),
            ("db_kappa", self.db_kappa, 1e3),
            ("slo_wait_ms", self.slo_wait_ms, 3.6e6),
            ("slo_target", self.slo_target, 0.999),
            ("warmup_s", self.warmup_s, 1e9),
        ];
        for (key, value, most) in numbers {
            if !(0.0..=most).contains(&value) {
                return Err(format!("{key} is {value:?}; expected 0 to {most:?}"));
            }
        }
        for (key, value) in [("slo_wait_ms", self.slo_wait_ms), ("slo_target", self.slo_target)] {
            if value <= 0.0 {
                return Err(format!("{key} is {value:?}; expected more than 0"));
            }
        }
        let sizes = [("min_size", self.min_size, 0), ("max_size", self.max_size, 1), ("replicas", self.replicas, 1)];
        for (key, value, least) in sizes {
            if !(least..=10_000).contains(&value) {
                return Err(format!("{key} is {value}; expected {least} to 10000"));
            }
        }
        if self.min_size > self.max_size {
            return Err(format!("min_size {} exceeds max_size {}", self.min_size, self.max_size));
        }
        for event in &self.events {
            let pods = event.kind != ScenarioEventKind::Replicas || (1..=1000).contains(&event.n);
            if !(event.t.is_finite() && event.dur.is_finite() && pods) {
                return Err(format!("event {event:?} needs a finite t and dur, and n from 1 to 1000 for replicas"));
            }
        }
        Ok(())
    }

    /// Transactions that may be in a pod at once.
    pub fn client_cap(&self) -> usize {
        let clients = if self.clients == 0 { 8 * self.max_size } else { self.clients };
        clients as usize
    }
}
