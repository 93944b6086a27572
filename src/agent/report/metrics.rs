//! What `GET /metrics` answers. Names stand in [`crate::contract::metrics`].

use std::{fmt, sync::atomic::AtomicU64};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::by_revision::ByRevision;
use crate::{
    agent::decide::{counters::Added, slot_name::SlotName},
    contract::{CircuitState, PoolerError, SessionAliasReport, Switching, UpstreamState, metrics as names},
    pooler::pgbouncer::tables::Pools,
};

type Float = Gauge<f64, AtomicU64>;
type Seconds = Counter<f64, AtomicU64>;

/// Upper bounds of the buckets of the wait, in seconds. 0.02 is the default objective.
const WAIT_BUCKETS: [f64; 14] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// One label.
type Label = [(&'static str, &'static str); 1];
/// No label.
type Nothing = [(&'static str, &'static str); 0];

/// A histogram that takes many observations of one value at once.
#[derive(Debug, Default)]
struct WaitHistogram(Mutex<Waits>);

#[derive(Debug, Default)]
struct Waits {
    buckets: [u64; WAIT_BUCKETS.len() + 1],
    sum: f64,
    count: u64,
}

impl WaitHistogram {
    fn observe(&self, seconds: f64, times: u64) {
        let bucket = WAIT_BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(WAIT_BUCKETS.len());
        let mut waits = self.0.lock();
        waits.buckets[bucket] += times;
        waits.sum += seconds * times as f64;
        waits.count += times;
    }
}

/// Shared between the registry and the one who feeds it.
#[derive(Debug, Clone, Default)]
struct SharedWaits(std::sync::Arc<WaitHistogram>);

impl EncodeMetric for SharedWaits {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let waits = self.0.0.lock();
        // the library writes `+Inf` for infinity alone, and without that bucket no quantile is known
        let bounds = WAIT_BUCKETS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(waits.buckets).collect();
        encoder.encode_histogram::<NoLabelSet>(waits.sum, waits.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentLabels {
    pod_uid: String,
    version: &'static str,
    pooler_version: String,
}

/// How a switch to another process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchResult {
    /// New clients are led to the new process.
    Switched,
    /// They are led to the one before it again.
    SteppedBack,
    /// The new process got no client.
    GivenUp,
}

impl SwitchResult {
    const ALL: [Self; 3] = [Self::Switched, Self::SteppedBack, Self::GivenUp];

    fn as_str(self) -> &'static str {
        match self {
            Self::Switched => "Switched",
            Self::SteppedBack => "SteppedBack",
            Self::GivenUp => "GivenUp",
        }
    }
}

/// The metrics of one agent.
pub struct Metrics {
    registry: Registry,
    info: Family<AgentLabels, Gauge>,
    transactions: Counter,
    abandoned: Counter,
    busy_seconds: Seconds,
    transaction_seconds: Seconds,
    wait_seconds: Seconds,
    assignments: Counter,
    opens: Counter,
    logins: Counter,
    waits: SharedWaits,
    servers: Family<Label, Gauge>,
    held: Family<Nothing, Gauge>,
    clients: Family<Label, Gauge>,
    leaked: Family<Nothing, Gauge>,
    pinned: Family<Nothing, Gauge>,
    bypassing: Family<Nothing, Gauge>,
    freed: Counter,
    demand_peak: Family<Label, Float>,
    waiting_peak: Family<Label, Float>,
    limit: Family<Nothing, Gauge>,
    share: Gauge,
    floor: Gauge,
    revision: Family<Nothing, Gauge>,
    grant_seq: Gauge,
    sample_time: Family<Nothing, Float>,
    decisions: Family<Label, Counter>,
    restarts: Family<Label, Counter>,
    clients_cut: Counter,
    errors: Family<Label, Counter>,
    refused: Family<[(&'static str, &'static str); 2], Gauge>,
    switches: Family<Label, Counter>,
    switching: Family<Label, Gauge>,
    upstream: Upstream,
    by_revision: ByRevision,
}

/// What is known of the database.
#[derive(Default)]
struct Upstream {
    read_only: Family<Nothing, Gauge>,
    circuit: Family<Label, Gauge>,
    renewals: Counter,
    refused_beyond: Family<Nothing, Gauge>,
    memory_allows: Family<Nothing, Gauge>,
    recalled: Counter,
}

impl Upstream {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            names::UPSTREAM_READ_ONLY,
            "1 while the database takes no writes although a primary is expected; absent while that is not known",
            self.read_only.clone(),
        );
        registry.register(
            names::CIRCUIT_STATE,
            "1 for the state of the circuit breaker, 0 for the others",
            self.circuit.clone(),
        );
        registry.register(
            names::UPSTREAM_RENEWALS.trim_end_matches("_total"),
            "Times that all server connections were renewed because the database took no writes",
            self.renewals.clone(),
        );
        registry.register(
            names::REFUSED_BEYOND,
            "Server connections that were open when the database refused another; absent while it refuses none",
            self.refused_beyond.clone(),
        );
        registry.register(
            names::MEMORY_ALLOWS,
            "Server connections that the container's memory has room for; absent where it has no limit",
            self.memory_allows.clone(),
        );
        registry.register(
            names::CLIENTS_RECALLED.trim_end_matches("_total"),
            "Clients that were closed while idle, because the pooler remembered for them that the database took no writes, or did",
            self.recalled.clone(),
        );
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers everything, with the labels of the pool on every series.
    pub fn new(namespace: &str, pool: &str) -> Self {
        let labels = [(names::POOL, pool), (names::POOL_NAMESPACE, namespace)];
        let mut registry =
            Registry::with_labels(labels.map(|(name, value)| (name.into(), value.to_owned().into())).into_iter());
        let metrics = Self {
            registry: Registry::default(),
            info: Family::default(),
            transactions: Counter::default(),
            abandoned: Counter::default(),
            busy_seconds: Counter::default(),
            transaction_seconds: Counter::default(),
            wait_seconds: Counter::default(),
            assignments: Counter::default(),
            opens: Counter::default(),
            logins: Counter::default(),
            waits: SharedWaits::default(),
            servers: Family::default(),
            held: Family::default(),
            clients: Family::default(),
            leaked: Family::default(),
            pinned: Family::default(),
            bypassing: Family::default(),
            freed: Counter::default(),
            demand_peak: Family::default(),
            waiting_peak: Family::default(),
            limit: Family::default(),
            share: Gauge::default(),
            floor: Gauge::default(),
            revision: Family::default(),
            grant_seq: Gauge::default(),
            sample_time: Family::default(),
            decisions: Family::default(),
            restarts: Family::default(),
            clients_cut: Counter::default(),
            errors: Family::default(),
            refused: Family::default(),
            switches: Family::default(),
            switching: Family::default(),
            upstream: Upstream::default(),
            by_revision: ByRevision::default(),
        };
        // The library appends `_total` to the names of counters.
        let counter = |name: &'static str| name.trim_end_matches("_total");
        let m = &metrics;
        registry.register(names::AGENT_INFO, "Version and pod of the agent", m.info.clone());
        m.register_transactions(&mut registry);
        registry.register(
            counter(names::WAIT_SECONDS),
            "Seconds that clients waited for a server connection",
            m.wait_seconds.clone(),
        );
        registry.register(
            counter(names::SERVER_ASSIGNMENTS),
            "Server connections assigned to clients",
            m.assignments.clone(),
        );
        registry.register(counter(names::SERVER_OPENS), "Server connections opened", m.opens.clone());
        registry.register(counter(names::CLIENT_LOGINS), "Client connections that arrived", m.logins.clone());
        registry.register(
            names::WAIT_HISTOGRAM,
            "Wait for a server connection: means of one second, weighted with their assignments",
            m.waits.clone(),
        );
        m.register_pins(&mut registry);
        registry.register(
            names::DEMAND_PEAK,
            "Largest demand of the last seconds: connections that work, and those that would serve within a second who waits",
            m.demand_peak.clone(),
        );
        registry.register(
            names::WAITING_PEAK,
            "Most clients waiting at once in the last seconds",
            m.waiting_peak.clone(),
        );
        registry.register(names::LIMIT, "Limit that the pooler works with, read back", m.limit.clone());
        registry.register(names::SHARE, "Share in force", m.share.clone());
        registry.register(names::FLOOR, "Floor in force", m.floor.clone());
        registry.register(names::REVISION, "Revision in force", m.revision.clone());
        registry.register(names::GRANT_SEQ, "Number of the newest grant in force", m.grant_seq.clone());
        registry.register(
            names::SAMPLE_TIME,
            "Unix time of the reading that the other series come from",
            m.sample_time.clone(),
        );
        registry.register(counter(names::DECISIONS), "Decisions that changed the limit", m.decisions.clone());
        m.register_troubles(&mut registry);
        registry.register(
            names::CONFIG_REFUSED,
            "1 while a document is refused and what was in force stays",
            m.refused.clone(),
        );
        m.register_connections(&mut registry);
        m.register_switches(&mut registry);
        Self { registry, ..metrics }
    }

    fn register_troubles(&self, registry: &mut Registry) {
        let counter = |name: &'static str| name.trim_end_matches("_total");
        registry.register(counter(names::POOLER_RESTARTS), "Restarts of the pooler", self.restarts.clone());
        registry.register(
            counter(names::CLIENTS_CUT),
            "Clients whose connection ended with a process of the pooler",
            self.clients_cut.clone(),
        );
        registry.register(counter(names::POOLER_ERRORS), "Errors in the pooler's log", self.errors.clone());
        self.by_revision.register(registry);
        for state in ["Exited", "Hung", "NeverAnswered"] {
            drop(self.restarts.get_or_create(&[("reason", state)]));
        }
    }

    fn register_connections(&self, registry: &mut Registry) {
        registry.register(names::SERVER_CONNECTIONS, "Server connections by state", self.servers.clone());
        registry.register(names::HELD, "Server connections open now, of every state", self.held.clone());
        registry.register(names::CLIENT_CONNECTIONS, "Client connections by state", self.clients.clone());
        registry.register(
            names::LEAKED,
            "Server connections held past the leak threshold by clients that do nothing, in a transaction or pinned; \
             absent where it cannot be seen",
            self.leaked.clone(),
        );
        registry.register(
            names::BYPASSING,
            "Connections of the pod to the database that are not its pooler's, the most of the last minutes; absent where it cannot be \
             seen",
            self.bypassing.clone(),
        );
    }

    fn register_transactions(&self, registry: &mut Registry) {
        let counter = |name: &'static str| name.trim_end_matches("_total");
        registry.register(
            counter(names::TRANSACTIONS),
            "Transactions that got a server connection and have ended",
            self.transactions.clone(),
        );
        registry.register(
            counter(names::ABANDONED),
            "Transactions whose client went, or was sent away, before it got a server connection",
            self.abandoned.clone(),
        );
        registry.register(
            counter(names::BUSY_SECONDS),
            "Seconds that server connections worked for transactions: waits and leaks left out, those that still run counted as they run",
            self.busy_seconds.clone(),
        );
        registry.register(
            counter(names::TRANSACTION_SECONDS),
            "Seconds of transactions that have ended as PgBouncer counts them: from the first message of the client on, its wait for a server connection included",
            self.transaction_seconds.clone(),
        );
    }

    fn register_pins(&self, registry: &mut Registry) {
        registry.register(
            names::PINNED,
            "Of the leaked server connections, those that a client holds outside of a transaction; absent where it cannot be seen",
            self.pinned.clone(),
        );
        registry.register(
            names::PINNED_FREED.trim_end_matches("_total"),
            "Pinned server connections that were freed for clients that waited",
            self.freed.clone(),
        );
    }

    /// Server connections that clients hold outside of a transaction; None while unknown.
    pub fn set_pinned(&self, pinned: Option<u32>) {
        match pinned {
            Some(count) => drop(self.pinned.get_or_create(&[]).set(count.into())),
            None => self.pinned.clear(),
        }
    }

    /// Connections past the pooler; None while nobody can see them.
    pub fn set_bypass(&self, connections: Option<u32>) {
        match connections {
            Some(count) => drop(self.bypassing.get_or_create(&[]).set(count.into())),
            None => self.bypassing.clear(),
        }
    }

    /// So many were freed.
    pub fn count_freed(&self, freed: u64) {
        self.freed.inc_by(freed);
    }

    fn register_switches(&self, registry: &mut Registry) {
        self.upstream.register(registry);
        registry.register(
            names::SWITCHES.trim_end_matches("_total"),
            "Times that new clients were led to another process, and configurations given up before",
            self.switches.clone(),
        );
        registry.register(
            names::SWITCHING,
            "1 for the way in which a revision that needs a new process comes into force, 0 for the others",
            self.switching.clone(),
        );
        for result in SwitchResult::ALL {
            drop(self.switches.get_or_create(&[("result", result.as_str())]));
        }
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// [`fmt::Error`]: never, while labels can be written.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut answer = String::with_capacity(8192);
        text::encode(&mut answer, &self.registry)?;
        Ok(answer)
    }

    /// Who we are.
    pub fn set_info(&self, pod_uid: &str, pooler_version: &str) {
        self.info.clear();
        let labels = AgentLabels {
            pod_uid: pod_uid.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            pooler_version: pooler_version.to_owned(),
        };
        self.info.get_or_create(&labels).set(1);
    }

    /// Takes in what one reading added and showed, and what is connected for the session alias beside what serves the pool
    /// itself: no series without one.
    pub fn observe(
        &self,
        added: Added,
        pools: Pools,
        leaked: Option<u32>,
        alias: Option<&SessionAliasReport>,
        unix_seconds: f64,
    ) {
        self.transactions.inc_by(added.transactions);
        self.abandoned.inc_by(added.abandoned);
        self.busy_seconds.inc_by(added.busy_microseconds as f64 / 1e6);
        self.transaction_seconds.inc_by(added.transaction_microseconds as f64 / 1e6);
        self.wait_seconds.inc_by(added.wait_microseconds as f64 / 1e6);
        self.assignments.inc_by(added.assignments);
        if added.assignments > 0 {
            let mean = added.wait_microseconds as f64 / 1e6 / added.assignments as f64;
            self.waits.0.observe(mean, added.assignments);
        }
        for (state, count) in [
            ("active", pools.active),
            ("idle", pools.idle),
            ("used", pools.used),
            ("tested", pools.tested),
            ("login", pools.login),
            ("being_canceled", pools.being_canceled),
        ] {
            self.servers.get_or_create(&[(names::STATE, state)]).set(count.into());
        }
        for (state, count) in [("active", pools.clients_active), ("waiting", pools.clients_waiting)] {
            self.clients.get_or_create(&[(names::STATE, state)]).set(count.into());
        }
        let label: Label = [(names::STATE, "session")];
        for (family, count) in
            [(&self.servers, alias.map(|alias| alias.held)), (&self.clients, alias.map(|alias| alias.clients))]
        {
            match count {
                Some(count) => drop(family.get_or_create(&label).set(count.into())),
                None => drop(family.remove(&label)),
            }
        }
        let held = pools.held().saturating_add(alias.map_or(0, |alias| alias.held));
        self.held.get_or_create(&[]).set(held.into());
        match leaked {
            Some(count) => drop(self.leaked.get_or_create(&[]).set(count.into())),
            None => self.leaked.clear(),
        }
        self.sample_time.get_or_create(&[]).set(unix_seconds);
    }

    /// What the active process has done since the last reading, of the revision that it runs; None while that is not known.
    pub fn observe_active(&self, revision: Option<u64>, slot: SlotName, added: &Added, longest_wait_microseconds: u64) {
        self.by_revision.is_of(revision, slot);
        self.by_revision.observe(added, longest_wait_microseconds);
    }

    /// The peaks over one window.
    pub fn set_peaks(&self, window: &'static str, demand: f64, waiting: f64) {
        self.demand_peak.get_or_create(&[(names::WINDOW, window)]).set(demand);
        self.waiting_peak.get_or_create(&[(names::WINDOW, window)]).set(waiting);
    }

    /// Sockets that appeared since the last reading.
    pub fn add_arrivals(&self, opens: u64, logins: u64) {
        self.opens.inc_by(opens);
        self.logins.inc_by(logins);
    }

    /// The grant and revision in force, and the limit read back; None while unknown.
    pub fn set_in_force(&self, seq: u64, share: u32, floor: u32, limit: Option<u32>, revision: Option<u64>) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.grant_seq.set(gauge(seq));
        self.share.set(share.into());
        self.floor.set(floor.into());
        match limit {
            Some(limit) => drop(self.limit.get_or_create(&[]).set(limit.into())),
            None => self.limit.clear(),
        }
        match revision {
            Some(revision) => drop(self.revision.get_or_create(&[]).set(gauge(revision))),
            None => self.revision.clear(),
        }
    }

    /// Counts a decision that changed the limit.
    pub fn count_decision(&self, reason: &'static str) {
        self.decisions.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts clients whose connection ended with a process of the pooler: the active one, and the other one.
    pub fn count_cut(&self, of_active: u32, of_other: u32) {
        self.clients_cut.inc_by(u64::from(of_active) + u64::from(of_other));
        self.by_revision.count_cut(of_active);
    }

    /// Counts a restart of the pooler.
    pub fn count_restart(&self, reason: &'static str) {
        self.restarts.get_or_create(&[("reason", reason)]).inc();
    }

    /// What the circuit breaker does.
    pub fn set_circuit(&self, state: CircuitState) {
        for that in CircuitState::ALL {
            self.upstream.circuit.get_or_create(&[(names::STATE, that.as_str())]).set((state == that).into());
        }
    }

    /// How a revision that needs a new process comes into force.
    pub fn set_switching(&self, mode: Switching) {
        for (label, that) in [
            ("Steer", Switching::Steer),
            ("SharedListener", Switching::SharedListener),
            ("Unsupported", Switching::Unsupported),
        ] {
            self.switching.get_or_create(&[("mode", label)]).set((mode == that).into());
        }
    }

    /// Counts a switch to another process, or one that was given up.
    pub fn count_switch(&self, result: SwitchResult) {
        self.switches.get_or_create(&[("result", result.as_str())]).inc();
    }

    /// Whether the database takes writes; None where it is not asked.
    pub fn set_upstream(&self, state: Option<UpstreamState>) {
        match state {
            Some(UpstreamState::Primary) => drop(self.upstream.read_only.get_or_create(&[]).set(0)),
            Some(UpstreamState::ReadOnly) => drop(self.upstream.read_only.get_or_create(&[]).set(1)),
            Some(UpstreamState::Unknown) | None => self.upstream.read_only.clear(),
        }
    }

    /// Counts a renewal of all server connections.
    pub fn count_renewal(&self) {
        self.upstream.renewals.inc();
    }

    /// Counts clients that were told to connect anew.
    pub fn count_recalled(&self, clients: u64) {
        self.upstream.recalled.inc_by(clients);
    }

    /// Counts an error that the process of a slot logged, or the agent met itself.
    pub fn count_error(&self, error: PoolerError, from: Option<SlotName>) {
        self.errors.get_or_create(&[("reason", error.as_str())]).inc();
        self.by_revision.count_error(error, from);
    }

    /// What was open when the database refused another server connection; None while it refuses none.
    pub fn set_refused_beyond(&self, held: Option<u32>) {
        match held {
            Some(held) => drop(self.upstream.refused_beyond.get_or_create(&[]).set(held.into())),
            None => self.upstream.refused_beyond.clear(),
        }
    }

    /// Server connections that the container's memory has room for; None without a limit.
    pub fn set_memory_allows(&self, connections: Option<u32>) {
        match connections {
            Some(connections) => drop(self.upstream.memory_allows.get_or_create(&[]).set(connections.into())),
            None => self.upstream.memory_allows.clear(),
        }
    }

    /// Which documents are refused now, and why.
    pub fn set_refused(&self, refusals: impl Iterator<Item = (&'static str, &'static str)>) {
        self.refused.clear();
        for (document, reason) in refusals {
            self.refused.get_or_create(&[("document", document), ("reason", reason)]).set(1);
        }
    }
}
