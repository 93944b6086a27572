//! The operator's own metrics.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use crate::api::conditions::ObservedCondition as Condition;

/// Labels of what belongs to one pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    /// Namespace of the pool.
    pub pool_namespace: String,
    /// Name of the pool.
    pub pool: String,
}

/// Labels of one condition, as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EncodeLabelSet)]
struct ConditionLabels {
    r#type: &'static str,
    status: &'static str,
    reason: &'static str,
}

/// The conditions of each pool, as they are: one series each. A page never has two of one condition, or none.
#[derive(Debug, Default)]
struct PoolConditions {
    of: Mutex<HashMap<PoolLabels, Vec<ConditionLabels>>>,
}

impl Collector for PoolConditions {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let of = self.of.lock();
        if of.is_empty() {
            return Ok(());
        }
        let help = "1 for what a condition of a pool is now.";
        let mut family = encoder.encode_descriptor("condition", help, None, MetricType::Gauge)?;
        for (pool, conditions) in &*of {
            for condition in conditions {
                ConstGauge::new(1_i64).encode(family.encode_family(&(pool.clone(), *condition))?)?;
            }
        }
        Ok(())
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum WriteKind {
    /// Grant or revision of a pod.
    Pod,
    /// Status of a pool or budget.
    Status,
    /// A `ControllerRevision`.
    Revision,
    /// An event.
    Event,
    /// A class.
    Class,
    /// An object of a gateway.
    Gateway,
}

/// How a write or a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum WriteOutcome {
    /// As asked.
    Done,
    /// Somebody else wrote first, or the object is gone.
    Conflict,
    /// Refused or failed.
    Failed,
    /// No answer in time: it may have happened.
    NoAnswer,
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It got a pooler.
    Injected,
    /// It starts without one.
    Left,
    /// It was refused and its controller tries again.
    Denied,
}

/// How asking an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ProofOutcome {
    /// An answer of the pod that was asked.
    Answered,
    /// An answer of another pod: addresses are reused.
    OtherPod,
    /// No answer, or none that could be read.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: WriteKind,
    outcome: WriteOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProofLabels {
    outcome: ProofOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    verdict: &'static str,
}

impl AdmissionLabels {
    const fn of(admitted: Admitted) -> Self {
        let verdict = match admitted {
            Admitted::Injected => "Injected",
            Admitted::Left => "Left",
            Admitted::Denied => "Denied",
        };
        Self { verdict }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabels {
    watch: String,
}

/// The operator's own metrics; cheap to clone.
#[derive(Clone)]
pub struct OperatorMetrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    decisions: Family<ReasonLabels, Counter>,
    target: Family<PoolLabels, Gauge>,
    share: Family<PoolLabels, Gauge>,
    size: Family<PoolLabels, Gauge>,
    pods: Family<PoolLabels, Gauge>,
    conditions: Arc<PoolConditions>,
    rollouts: Family<ReasonLabels, Counter>,
    reconcile_seconds: Histogram,
    reconcile_errors: Family<ReasonLabels, Counter>,
    tick_seconds: Histogram,
    queries: Counter,
    failed_queries: Counter,
    writes: Family<WriteLabels, Counter>,
    proofs: Family<ProofLabels, Counter>,
    watch_errors: Family<WatchLabels, Counter>,
    watch_age_seconds: Family<WatchLabels, Gauge>,
    leader: Gauge,
    admissions: Family<AdmissionLabels, Counter>,
    /// Absent until a certificate is served: 0 would be one that ended long ago.
    certificate_not_after: Family<[(&'static str, &'static str); 0], Gauge>,
    watched_at: Mutex<BTreeMap<&'static str, Instant>>,
}

impl Default for OperatorMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sluice_operator");
        let conditions = Arc::<PoolConditions>::default();
        registry.register_collector(Box::new(conditions.clone()));
        let inner = Inner {
            decisions: register(&mut registry, "decisions", "Decisions that were put into force or told, by reason"),
            target: register(&mut registry, "target", "Server connections that a pool should have"),
            share: register(&mut registry, "share", "Server connections that the pods of a pool may open"),
            size: register(&mut registry, "size", "Sum of the limits of the pods of a pool"),
            pods: register(&mut registry, "pods", "Pods of a pool with a sidecar"),
            conditions,
            rollouts: register(&mut registry, "rollouts", "Rollouts that ended, by how"),
            reconcile_seconds: seconds(&mut registry, "reconcile_duration", "One pool: observe, plan, apply, report"),
            reconcile_errors: register(&mut registry, "reconcile_errors", "Reconciles that failed, by what failed"),
            tick_seconds: seconds(&mut registry, "tick_duration", "All pools: queries, load, decisions"),
            queries: register(&mut registry, "queries", "Queries sent to Prometheus"),
            failed_queries: register(
                &mut registry,
                "queries_failed",
                "Queries that Prometheus did not answer usefully",
            ),
            writes: register(&mut registry, "writes", "Writes to the API server, by what and how they ended"),
            proofs: register(&mut registry, "proof_requests", "Questions to agents, by how they ended"),
            watch_errors: register(&mut registry, "watch_errors", "Errors of a watch"),
            watch_age_seconds: register(&mut registry, "watch_age_seconds", "Time since a watch last said anything"),
            leader: register(&mut registry, "leader", "1 while this process is the one writer"),
            admissions: register(&mut registry, "admissions", "Pods that reached the webhook, by what became of them"),
            certificate_not_after: register(
                &mut registry,
                "webhook_certificate_not_after_timestamp_seconds",
                "When the certificate that the webhook serves ends",
            ),
            watched_at: Mutex::default(),
            registry,
        };
        // a rate sees no increase in a series that begins with its first event
        for admitted in [Admitted::Injected, Admitted::Left, Admitted::Denied] {
            drop(inner.admissions.get_or_create(&AdmissionLabels::of(admitted)));
        }
        Self { inner: Arc::new(inner) }
    }
}

fn register<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn seconds(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let histogram = Histogram::new([0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0]);
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

impl OperatorMetrics {
    /// Counts a decision.
    pub fn decided(&self, reason: &str) {
        self.inner.decisions.get_or_create(&ReasonLabels { reason: reason.to_owned() }).inc();
    }

    /// Sizes of a pool, in server connections, and its injected pods.
    pub fn pool(&self, pool: &PoolLabels, target: Option<u32>, share: u32, size: Option<u32>, pods: usize) {
        for (family, figure) in [(&self.inner.target, target), (&self.inner.size, size)] {
            match figure {
                Some(figure) => drop(family.get_or_create(pool).set(i64::from(figure))),
                // what is not known any more is no figure of before
                None => drop(family.remove(pool)),
            }
        }
        self.inner.share.get_or_create(pool).set(i64::from(share));
        self.inner.pods.get_or_create(pool).set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// What the conditions of a pool are now.
    pub fn conditions(&self, pool: &PoolLabels, now: &[Condition]) {
        let labels = |condition: &Condition| ConditionLabels {
            r#type: condition.type_,
            status: condition.status.as_str(),
            reason: condition.reason,
        };
        let now = now.iter().map(labels).collect();
        self.inner.conditions.of.lock().insert(pool.clone(), now);
    }

    /// Forgets a pool that is gone.
    pub fn pool_gone(&self, pool: &PoolLabels) {
        self.inner.conditions.of.lock().remove(pool);
        for family in [&self.inner.target, &self.inner.share, &self.inner.size, &self.inner.pods] {
            family.remove(pool);
        }
    }

    /// A rollout ended.
    pub fn rollout_ended(&self, reason: &str) {
        self.inner.rollouts.get_or_create(&ReasonLabels { reason: reason.to_owned() }).inc();
    }

    /// One reconcile, and what failed in it.
    pub fn reconciled(&self, took: Duration, failed: Option<&'static str>) {
        self.inner.reconcile_seconds.observe(took.as_secs_f64());
        if let Some(reason) = failed {
            self.inner.reconcile_errors.get_or_create(&ReasonLabels { reason: reason.to_owned() }).inc();
        }
    }

    /// One tick: the load of all pools was read and decided on.
    pub fn ticked(&self, took: Duration) {
        self.inner.tick_seconds.observe(took.as_secs_f64());
    }

    /// Queries that were sent to Prometheus, and those of them that were not answered usefully.
    pub fn queried(&self, queries: usize, failed: usize) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.inner.queries.inc_by(count(queries));
        self.inner.failed_queries.inc_by(count(failed));
    }

    /// One write.
    pub fn wrote(&self, kind: WriteKind, outcome: WriteOutcome) {
        self.inner.writes.get_or_create(&WriteLabels { kind, outcome }).inc();
    }

    /// One question to an agent.
    pub fn asked(&self, outcome: ProofOutcome) {
        self.inner.proofs.get_or_create(&ProofLabels { outcome }).inc();
    }

    /// A watch said something.
    pub fn watched(&self, watch: &'static str) {
        self.inner.watched_at.lock().insert(watch, Instant::now());
    }

    /// A watch failed.
    pub fn watch_failed(&self, watch: &'static str) {
        self.inner.watch_errors.get_or_create(&WatchLabels { watch: watch.to_owned() }).inc();
    }

    /// Whether this process is the one writer.
    pub fn leader(&self, leads: bool) {
        self.inner.leader.set(i64::from(leads));
    }

    /// The webhook answered.
    pub fn admitted(&self, admitted: Admitted) {
        self.inner.admissions.get_or_create(&AdmissionLabels::of(admitted)).inc();
    }

    /// When the certificate that the webhook serves ends, in seconds since 1970.
    pub fn certificate_ends(&self, not_after: i64) {
        self.inner.certificate_not_after.get_or_create(&[]).set(not_after);
    }

    /// All of it as OpenMetrics text.
    ///
    /// # Errors
    /// When the text cannot be formatted, which only happens out of memory.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        for (watch, at) in self.inner.watched_at.lock().iter() {
            let age = i64::try_from(at.elapsed().as_secs()).unwrap_or(i64::MAX);
            self.inner.watch_age_seconds.get_or_create(&WatchLabels { watch: (*watch).to_owned() }).set(age);
        }
        let mut text = String::new();
        encode(&mut text, &self.inner.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::ConditionStatus;

    /// The series of conditions on the page, in the order of their text.
    fn series(metrics: &OperatorMetrics) -> Vec<String> {
        let page = metrics.encode().expect("a page");
        let mut series: Vec<String> =
            page.lines().filter(|line| line.starts_with("sluice_operator_condition{")).map(str::to_owned).collect();
        series.sort();
        series
    }

    #[test]
    fn a_figure_that_is_not_known_any_more_has_no_series_and_a_pool_that_is_gone_has_none_at_all() {
        let metrics = OperatorMetrics::default();
        let pool = PoolLabels { pool_namespace: "ns".to_owned(), pool: "shop".to_owned() };
        let series = || {
            let page = metrics.encode().expect("a page");
            let of_pool = page.lines().filter(|line| line.contains("pool=\"shop\""));
            of_pool.map(|line| line.split('{').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        metrics.pool(&pool, Some(7), 6, Some(5), 2);
        let all = ["target", "share", "size", "pods"].map(|name| format!("sluice_operator_{name}"));
        assert_eq!(series(), all);
        metrics.pool(&pool, None, 6, None, 2);
        assert_eq!(series(), [all[1].clone(), all[3].clone()]);
        metrics.pool_gone(&pool);
        assert_eq!(series(), Vec::<String>::new());
    }

    #[test]
    fn each_condition_of_a_pool_is_one_series_for_what_it_is_now_until_the_pool_is_gone() {
        let metrics = OperatorMetrics::default();
        let pool = |name: &str| PoolLabels { pool_namespace: "ns".to_owned(), pool: name.to_owned() };
        let told = |status, reason| {
            ["Ready", "Paused"].map(|type_| Condition { type_, status, reason, message: "in words".to_owned() })
        };
        metrics.conditions(&pool("shop"), &told(ConditionStatus::True, "InForce"));
        metrics.conditions(&pool("other"), &told(ConditionStatus::True, "InForce")[..1]);
        metrics.conditions(&pool("shop"), &told(ConditionStatus::False, "UpstreamSilent"));
        let line = |pool: &str, type_: &str, now: &str| {
            format!("sluice_operator_condition{{pool_namespace=\"ns\",pool=\"{pool}\",type=\"{type_}\",{now}}} 1")
        };
        let silent = "status=\"False\",reason=\"UpstreamSilent\"";
        let other = line("other", "Ready", "status=\"True\",reason=\"InForce\"");
        let of_shop = [line("shop", "Paused", silent), line("shop", "Ready", silent)];
        assert_eq!(series(&metrics), [other.clone(), of_shop[0].clone(), of_shop[1].clone()]);
        metrics.conditions(&pool("shop"), &told(ConditionStatus::False, "UpstreamSilent")[..1]);
        assert_eq!(series(&metrics), [other.clone(), of_shop[1].clone()], "one that is told no more");
        metrics.pool_gone(&pool("shop"));
        assert_eq!(series(&metrics), [other]);
    }
}
