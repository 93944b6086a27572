//! What the active process has done since it runs its revision: what a canary is judged by.
//!
//! Another revision, or another process, begins other series, and those before it end: so a pod has one set of them, and what an old
//! process does that drains is in none.

use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    agent::decide::{counters::Added, slot_name::SlotName},
    contract::{Between, PoolerError, metrics as names},
};

type Counts = Family<RevisionLabels, Counter>;
type Seconds = Family<RevisionLabels, Counter<f64, AtomicU64>>;

/// Labels of [`names::OF_REVISION`] and [`names::SLOT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RevisionLabels {
    revision: u64,
    slot: &'static str,
}

/// The series of the revision in force.
#[derive(Default)]
pub(super) struct ByRevision {
    current: Mutex<Option<RevisionLabels>>,
    transactions: Counts,
    busy_seconds: Seconds,
    wait_seconds: Seconds,
    assignments: Counts,
    longest_wait: Family<RevisionLabels, Gauge<f64, AtomicU64>>,
    errors: Counts,
    login_failures: Counts,
    clients_cut: Counts,
}

impl ByRevision {
    pub(super) fn register(&self, registry: &mut Registry) {
        // the library appends it
        let counter = |name: &'static str| name.trim_end_matches("_total");
        let of = "since the active process runs this revision";
        for (name, help, family) in [
            (names::REVISION_TRANSACTIONS, "Transactions that have ended", &self.transactions),
            (names::REVISION_ASSIGNMENTS, "Server connections given to clients", &self.assignments),
            (names::REVISION_ERRORS, "Errors between clients, pooler and database", &self.errors),
            (names::REVISION_LOGIN_FAILURES, "Logins refused, of clients or at the database", &self.login_failures),
            (names::REVISION_CLIENTS_CUT, "Clients whose connection ended with the process", &self.clients_cut),
        ] {
            registry.register(counter(name), format!("{help}, {of}"), family.clone());
        }
        for (name, help, family) in [
            (names::REVISION_BUSY_SECONDS, "Seconds that server connections worked", &self.busy_seconds),
            (names::REVISION_WAIT_SECONDS, "Seconds that clients waited for one", &self.wait_seconds),
        ] {
            registry.register(counter(name), format!("{help}, {of}"), family.clone());
        }
        registry.register(
            names::REVISION_LONGEST_WAIT,
            "How long the first client that waits at the active process has waited",
            self.longest_wait.clone(),
        );
    }

    /// The revision that the active process runs, and its slot; None while that is not known. Counters of another one are gone.
    pub(super) fn is_of(&self, revision: Option<u64>, slot: SlotName) {
        let labels = revision.map(|revision| RevisionLabels { revision, slot: slot.as_str() });
        let mut current = self.current.lock();
        if *current == labels {
            return;
        }
        for family in [&self.transactions, &self.assignments, &self.errors, &self.login_failures, &self.clients_cut] {
            family.clear();
            if let Some(labels) = &labels {
                family.get_or_create(labels).inc_by(0);
            }
        }
        for family in [&self.busy_seconds, &self.wait_seconds] {
            family.clear();
            if let Some(labels) = &labels {
                family.get_or_create(labels).inc_by(0.0);
            }
        }
        self.longest_wait.clear();
        *current = labels;
    }

    /// What the active process did since the last reading, and how long its first waiting client has waited, in microseconds.
    pub(super) fn observe(&self, added: &Added, longest_wait_microseconds: u64) {
        let Some(labels) = self.current.lock().clone() else { return };
        self.transactions.get_or_create(&labels).inc_by(added.transactions);
        self.busy_seconds.get_or_create(&labels).inc_by(added.busy_microseconds as f64 / 1e6);
        self.wait_seconds.get_or_create(&labels).inc_by(added.wait_microseconds as f64 / 1e6);
        self.assignments.get_or_create(&labels).inc_by(added.assignments);
        self.longest_wait.get_or_create(&labels).set(longest_wait_microseconds as f64 / 1e6);
    }

    /// An error that a process logged, or that the agent met itself where no slot is named.
    pub(super) fn count_error(&self, error: PoolerError, from: Option<SlotName>) {
        let Some(labels) = self.current.lock().clone() else { return };
        let is_active = from.is_none_or(|from| from.as_str() == labels.slot);
        if !is_active || error.between() == Between::Nobody {
            return;
        }
        self.errors.get_or_create(&labels).inc();
        if error.is_refused_login() {
            self.login_failures.get_or_create(&labels).inc();
        }
    }

    /// Clients of the active process that were cut.
    pub(super) fn count_cut(&self, clients: u32) {
        if let Some(labels) = self.current.lock().clone() {
            self.clients_cut.get_or_create(&labels).inc_by(clients.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        agent::{
            decide::{counters::Added, slot_name::SlotName},
            report::metrics::Metrics,
        },
        contract::PoolerError,
    };

    fn series(metrics: &Metrics) -> Vec<String> {
        let text = metrics.render().expect("labels can be written");
        let own = text.lines().filter(|line| line.starts_with("sluice_revision_"));
        own.map(|line| line.replace("pool=\"shop\",pool_namespace=\"ns\",", "")).collect()
    }

    #[test]
    fn each_revision_has_series_of_its_own_that_begin_at_nothing_and_those_of_another_are_gone() {
        let metrics = Metrics::new("ns", "shop");
        let done = Added { transactions: 7, busy_microseconds: 500_000, ..Added::default() };
        metrics.observe_active(None, SlotName::A, &done, 0);
        assert_eq!(series(&metrics), Vec::<String>::new(), "nobody knows of which revision");
        metrics.observe_active(Some(6), SlotName::A, &done, 250_000);
        metrics.count_error(PoolerError::ServerLoginRefused, Some(SlotName::A));
        metrics.count_error(PoolerError::ClientTimeout, None);
        metrics.count_error(PoolerError::ServerLoginRefused, Some(SlotName::B));
        metrics.count_error(PoolerError::Configuration, Some(SlotName::A));
        let told = series(&metrics);
        let has = |line: &str| assert!(told.iter().any(|told| told == line), "{line}: {told:#?}");
        has("sluice_revision_transactions_total{revision=\"6\",slot=\"a\"} 7");
        has("sluice_revision_busy_seconds_total{revision=\"6\",slot=\"a\"} 0.5");
        has("sluice_revision_longest_wait_seconds{revision=\"6\",slot=\"a\"} 0.25");
        has("sluice_revision_errors_total{revision=\"6\",slot=\"a\"} 2");
        has("sluice_revision_login_failures_total{revision=\"6\",slot=\"a\"} 1");
        metrics.observe_active(Some(7), SlotName::B, &Added::default(), 0);
        let told = series(&metrics);
        assert!(told.iter().all(|line| line.contains("{revision=\"7\",slot=\"b\"}")), "{told:#?}");
        assert_eq!(told.len(), 8);
        assert!(told.iter().all(|line| line.ends_with(" 0") || line.ends_with(" 0.0")), "{told:#?}");
    }
}
