//! From the series of one reading to the figures of each pod: one scrape per pod, one set of series per pod.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use super::{
    PoolKey, Readings,
    query::Figure,
    response::{END_OF_LABEL, Labels, Series},
};
use crate::{
    contract::metrics::BUSY_SECONDS,
    decide::{load::PodFigures, shares::Proof},
    domain::Sample,
};

/// A series that was refused: the first of its kind in a reading, and how many there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Why.
    pub refusal: Refusal,
    /// The pool that the first one names.
    pub pool: PoolKey,
    /// The pod of the first one, as Prometheus knows it; empty if it does not.
    pub pod: String,
    /// The metric of the first one.
    pub metric: &'static str,
    /// The value of the first one, as text.
    pub value: String,
    /// How many of this kind.
    pub count: u32,
}

/// Why a series was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// NaN, infinite or negative. The pod is left out of this reading.
    Value,
    /// The scrape configuration adds no label `pod`.
    NoPodLabel,
    /// A pod speaks for a pool of another namespace.
    ForeignNamespace,
    /// A pod has some series and lacks others that are needed. It is left out of this reading.
    Incomplete,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, pod, metric, value, count, .. } = self;
        match self.refusal {
            Refusal::Value => {
                write!(f, "{metric} of pod {pod:?}, pool {pool}, is {value:?}, which cannot be; the pod is left out")
            }
            Refusal::NoPodLabel => {
                write!(
                    f,
                    "{metric} of pool {pool} has no label pod; add it in the scrape configuration (examples/prometheus)"
                )
            }
            Refusal::ForeignNamespace => {
                write!(f, "pod {pod:?} in namespace {value:?} reports {metric} for pool {pool}; it is not counted")
            }
            Refusal::Incomplete => {
                let old = if *metric == BUSY_SECONDS {
                    ": its agent is older than the operator; restart the pod"
                } else {
                    ""
                };
                write!(f, "pod {pod:?}, pool {pool}, has no {metric}; the pod is left out{old}")
            }
        }?;
        if *count > 1 { write!(f, " ({count} such series)") } else { Ok(()) }
    }
}

/// Series of one target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    pool_namespace: String,
    pool: String,
    /// As Prometheus knows it, like the pod.
    namespace: String,
    pod: String,
    job: String,
    instance: String,
    others: String,
}

impl Target {
    fn of(labels: &Labels) -> Self {
        Self {
            pool_namespace: labels.pool_namespace.clone().into_owned(),
            pool: labels.pool.clone().into_owned(),
            namespace: labels.namespace.clone().into_owned(),
            pod: labels.pod.clone().into_owned(),
            job: labels.job.clone().into_owned(),
            instance: labels.instance.clone().into_owned(),
            others: labels.others.clone(),
        }
    }

    /// Whether a series with these labels is of this target. What differs most often comes first.
    fn has(&self, labels: &Labels) -> bool {
        self.pod == labels.pod
            && self.instance == labels.instance
            && self.pool == labels.pool
            && self.pool_namespace == labels.pool_namespace
            && self.namespace == labels.namespace
            && self.job == labels.job
            && self.others == labels.others
    }
}

#[derive(Clone, Debug)]
struct Row {
    target: Target,
    /// A value that cannot be was among them.
    is_refused: bool,
    figures: [Option<f64>; Figure::ALL.len()],
}

/// Collects the series of one answer, in any order.
#[derive(Debug, Default)]
pub(super) struct Collector {
    collected: Collected,
    /// Rows by their labels joined. One string hashes faster than seven.
    index: HashMap<String, usize>,
    /// The row of the last series.
    last: usize,
    key: String,
}

/// What the answers of one reading have said.
#[derive(Debug, Default)]
pub(super) struct Collected {
    rows: Vec<Row>,
    problems: BTreeMap<Refusal, Problem>,
    problems_by_pool: HashMap<PoolKey, Problem>,
}

impl Collector {
    /// Takes in one series.
    pub fn add(&mut self, series: &Series) {
        let Series { metric: labels, value: Some(value) } = series else { return };
        let Some(figure) = Figure::of(labels) else { return };
        let index = self.row_of(labels);
        let row = &mut self.collected.rows[index];
        match value.value() {
            Ok(value) => row.figures[figure as usize] = Some(value),
            Err(text) => {
                row.is_refused = true;
                let pool = PoolKey::new(row.target.pool_namespace.clone(), row.target.pool.clone());
                self.collected.refuse(Refusal::Value, pool, &labels.pod, figure.metric(), text);
            }
        }
    }

    /// Where the row of this target is. The series of a target often follow one another.
    fn row_of(&mut self, labels: &Labels) -> usize {
        let rows = &mut self.collected.rows;
        if rows.get(self.last).is_some_and(|row| row.target.has(labels)) {
            return self.last;
        }
        join(&mut self.key, labels);
        self.last = self.index.get(&self.key).copied().unwrap_or_else(|| {
            let index = rows.len();
            self.index.insert(self.key.clone(), index);
            rows.push(Row { target: Target::of(labels), is_refused: false, figures: [None; Figure::ALL.len()] });
            index
        });
        self.last
    }

    /// What has been collected.
    pub fn collected(self) -> Collected {
        self.collected
    }
}

impl Collected {
    /// Adds what another answer of the same reading has said, about other pools.
    pub fn add(&mut self, other: Self) {
        self.rows.extend(other.rows);
        for (refusal, problem) in other.problems {
            let count = problem.count;
            self.problems.entry(refusal).and_modify(|first| first.count += count).or_insert(problem);
        }
        for (pool, problem) in other.problems_by_pool {
            self.problems_by_pool.entry(pool).or_insert(problem);
        }
    }

    /// The figures of every pod that reported all that is needed.
    pub fn finish(mut self, at_seconds: f64, bytes: usize) -> Readings {
        let mut pools: HashMap<PoolKey, BTreeMap<String, PodFigures>> = HashMap::new();
        let mut incomplete = Vec::new();
        for (row, sample_time_seconds) in self.chosen() {
            let Target { pool_namespace, pool, pod, .. } = row.target;
            let pool = PoolKey::new(pool_namespace, pool);
            match figures(&row.figures, sample_time_seconds) {
                Ok(figures) => {
                    pools.entry(pool).or_default().insert(pod, figures);
                }
                Err(missing) => incomplete.push((pool, pod, missing.metric())),
            }
        }
        for (pool, pod, metric) in incomplete {
            self.refuse(Refusal::Incomplete, pool, &pod, metric, "");
        }
        let problems = self.problems.into_values().collect();
        Readings { at_seconds, pools, problems, problems_by_pool: self.problems_by_pool, bytes }
    }

    /// Of the sets of series of each pod the one that was read last, with its sample time; of two of the same time, the first by name.
    fn chosen(&mut self) -> Vec<(Row, f64)> {
        let mut rows = Vec::with_capacity(self.rows.len());
        for row in std::mem::take(&mut self.rows) {
            // what has none has not reported
            let Some(time) = row.figures[Figure::SampleTime as usize] else { continue };
            let Target { pool_namespace, pool, namespace, pod, .. } = &row.target;
            let of_pool = || PoolKey::new(pool_namespace.clone(), pool.clone());
            if pod.is_empty() {
                self.refuse(Refusal::NoPodLabel, of_pool(), "", Figure::SampleTime.metric(), "");
            } else if !namespace.is_empty() && namespace != pool_namespace {
                self.refuse(Refusal::ForeignNamespace, of_pool(), pod, Figure::SampleTime.metric(), namespace);
            } else {
                rows.push((row, time));
            }
        }
        let of_pod = |row: &Row| (row.target.pool_namespace.clone(), row.target.pool.clone(), row.target.pod.clone());
        rows.sort_by(|(a, a_time), (b, b_time)| {
            let [(a_pool, a_rest), (b_pool, b_rest)] = [a, b].map(|row| {
                let Target { pool_namespace, pool, namespace, pod, job, instance, others } = &row.target;
                ((pool_namespace, pool, pod), (namespace, job, instance, others))
            });
            a_pool.cmp(&b_pool).then(b_time.total_cmp(a_time)).then_with(|| a_rest.cmp(&b_rest))
        });
        rows.dedup_by(|(later, _), (first, _)| of_pod(later) == of_pod(first));
        rows.retain(|(row, _)| !row.is_refused);
        rows
    }

    fn refuse(&mut self, refusal: Refusal, pool: PoolKey, pod: &str, metric: &'static str, value: &str) {
        let value = value.chars().take(64).collect();
        let problem = Problem { refusal, pool, pod: pod.to_owned(), metric, value, count: 1 };
        self.problems_by_pool.entry(problem.pool.clone()).or_insert_with(|| problem.clone());
        self.problems.entry(refusal).and_modify(|problem| problem.count += 1).or_insert(problem);
    }
}

/// What a row says, or the first figure that it lacks.
fn figures(row: &[Option<f64>; Figure::ALL.len()], sample_time_seconds: f64) -> Result<PodFigures, Figure> {
    let get = |figure: Figure| row[figure as usize];
    let need = |figure: Figure| get(figure).ok_or(figure);
    let transactions = need(Figure::Transactions)?;
    let [leaked, abandoned, assignments] = [Figure::Leaked, Figure::Abandoned, Figure::Assignments].map(get);
    let proof = match (get(Figure::GrantSeq), get(Figure::Share), get(Figure::Held)) {
        (Some(seq), Some(share), Some(held)) => Some(Proof { seq: whole(seq), share: small(share), held: small(held) }),
        _ => None,
    };
    Ok(PodFigures {
        sample: Sample {
            at_seconds: sample_time_seconds,
            waiting: need(Figure::Waiting)?,
            active: need(Figure::Active)?,
            leaked: leaked.unwrap_or(0.0),
            transactions,
            abandoned: abandoned.unwrap_or(0.0),
            busy_seconds: need(Figure::BusySeconds)?,
            wait_seconds: need(Figure::WaitSeconds)?,
            assignments: assignments.unwrap_or(transactions),
        },
        leaked,
        abandoned,
        assignments,
        held: get(Figure::Held),
        limit: get(Figure::Limit),
        demand_peak: get(Figure::DemandPeak),
        proof,
    })
}

/// A count that came as a floating-point number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked to be finite and not negative; saturates
fn whole(value: f64) -> u64 {
    value as u64
}

/// A number of connections, rounded up.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked to be finite and not negative; saturates
fn small(value: f64) -> u32 {
    value.ceil() as u32
}

/// Writes the labels that identify a target into `key`.
fn join(key: &mut String, labels: &Labels) {
    key.clear();
    let parts: [&str; 7] = [
        &labels.pool_namespace,
        &labels.pool,
        &labels.namespace,
        &labels.pod,
        &labels.job,
        &labels.instance,
        &labels.others,
    ];
    for part in parts {
        key.push_str(part);
        key.push(END_OF_LABEL);
    }
}
