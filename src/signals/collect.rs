//! From the series of one tick to the figures of each pod: one scrape per pod, one set of series per pod.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
};

use super::{
    PoolKey, Readings,
    query::Figure,
    response::{Labels, Series},
};
use crate::{
    contract::metrics::{BUSY_SECONDS, SAMPLE_TIME},
    decide::{load::PodFigures, shares::Proof, sizing::Sample},
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    pool_namespace: String,
    pool: String,
    pod: String,
    job: String,
    instance: String,
}

/// [`Target`], borrowed from an answer.
type TargetRef<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);

#[derive(Clone, Copy, Debug)]
struct Row {
    sample_time_seconds: f64,
    /// The sample time was the same after everything else had been read.
    whole: bool,
    /// A value that cannot be was among them.
    refused: bool,
    figures: [Option<f64>; Figure::ALL.len()],
}

/// Collects the answers of one tick, in this order: sample times, figures in any order, sample times again.
#[derive(Debug, Default)]
pub(super) struct Collector {
    rows: Vec<(Target, Row)>,
    /// Rows by their labels joined. One string hashes faster than five.
    index: HashMap<String, usize>,
    problems: BTreeMap<Refusal, Problem>,
    problems_by_pool: HashMap<PoolKey, Problem>,
    key: String,
}

impl Collector {
    /// Takes in the sample times: what has none has not reported.
    pub fn begin(&mut self, series: &[Series]) {
        self.index.reserve(series.len());
        for Series { metric, value } in series {
            let Some(value) = value else { continue };
            let pool = || PoolKey::new(metric.pool_namespace.clone(), metric.pool.clone());
            if metric.pod.is_empty() {
                self.refuse(Refusal::NoPodLabel, pool(), "", SAMPLE_TIME, "");
                continue;
            }
            if !metric.namespace.is_empty() && metric.namespace != metric.pool_namespace {
                self.refuse(Refusal::ForeignNamespace, pool(), &metric.pod, SAMPLE_TIME, &metric.namespace);
                continue;
            }
            match value.value() {
                Ok(sample_time_seconds) => {
                    let figures = [None; Figure::ALL.len()];
                    let row = Row { sample_time_seconds, whole: false, refused: false, figures };
                    join(&mut self.key, metric);
                    self.index.insert(self.key.clone(), self.rows.len());
                    self.rows.push((target(metric), row));
                }
                Err(text) => self.refuse(Refusal::Value, pool(), &metric.pod, SAMPLE_TIME, text),
            }
        }
    }

    /// Takes in one figure of all pods.
    pub fn add(&mut self, figure: Figure, series: &[Series]) {
        for Series { metric, value } in series {
            let (Some(index), Some(value)) = (self.find(metric), value) else { continue };
            match value.value() {
                Ok(value) => self.rows[index].1.figures[figure as usize] = Some(value),
                Err(text) => {
                    self.rows[index].1.refused = true;
                    let pool = PoolKey::new(metric.pool_namespace.clone(), metric.pool.clone());
                    self.refuse(Refusal::Value, pool, &metric.pod, figure.metric(), text);
                }
            }
        }
    }

    /// Takes in the sample times again: a pod whose time has moved on was scraped in between.
    pub fn end(&mut self, series: &[Series]) {
        for Series { metric, value } in series {
            if let (Some(index), Some(Ok(time))) =
                (self.find(metric), value.as_ref().map(super::response::Point::value))
            {
                let row = &mut self.rows[index].1;
                row.whole = row.sample_time_seconds.total_cmp(&time).is_eq();
            }
        }
    }

    /// The figures of every pod that reported all that is needed.
    pub fn finish(mut self, at_seconds: f64, bytes: usize) -> Readings {
        let mut pools: HashMap<PoolKey, BTreeMap<String, PodFigures>> = HashMap::new();
        let mut chosen: HashMap<TargetRef, usize> = HashMap::with_capacity(self.rows.len());
        for (index, (target, row)) in self.rows.iter().enumerate() {
            // of several targets that are the same pod, the one that was read last; of two such, the first by name
            let rank =
                |(target, row): &(Target, Row)| (row.sample_time_seconds, target.job.clone(), target.instance.clone());
            let pod: TargetRef = (&target.pool_namespace, &target.pool, &target.pod, "", "");
            chosen
                .entry(pod)
                .and_modify(|best| {
                    let (time, job, instance) = rank(&self.rows[*best]);
                    let newer = row.sample_time_seconds.total_cmp(&time);
                    if newer.then_with(|| (job, instance).cmp(&(target.job.clone(), target.instance.clone()))).is_gt() {
                        *best = index;
                    }
                })
                .or_insert(index);
        }
        let mut chosen: Vec<usize> = chosen.into_values().collect();
        chosen.sort_unstable();
        let mut incomplete = Vec::new();
        for index in chosen {
            let (target, row) = &self.rows[index];
            if !row.whole || row.refused {
                continue;
            }
            let pool = PoolKey::new(target.pool_namespace.clone(), target.pool.clone());
            match figures(row) {
                Ok(figures) => {
                    pools.entry(pool).or_default().insert(target.pod.clone(), figures);
                }
                Err(missing) => incomplete.push((pool, target.pod.clone(), missing.metric())),
            }
        }
        for (pool, pod, metric) in incomplete {
            self.refuse(Refusal::Incomplete, pool, &pod, metric, "");
        }
        let problems = self.problems.into_values().collect();
        Readings { at_seconds, pools, problems, problems_by_pool: self.problems_by_pool, bytes }
    }

    fn find(&mut self, labels: &Labels) -> Option<usize> {
        join(&mut self.key, labels);
        self.index.get(&self.key).copied()
    }

    fn refuse(&mut self, refusal: Refusal, pool: PoolKey, pod: &str, metric: &'static str, value: &str) {
        let value = value.chars().take(64).collect();
        let problem = Problem { refusal, pool, pod: pod.to_owned(), metric, value, count: 1 };
        self.problems_by_pool.entry(problem.pool.clone()).or_insert_with(|| problem.clone());
        self.problems.entry(refusal).and_modify(|problem| problem.count += 1).or_insert(problem);
    }
}

/// What a row says, or the first figure that it lacks.
fn figures(row: &Row) -> Result<PodFigures, Figure> {
    let get = |figure: Figure| row.figures[figure as usize];
    let need = |figure: Figure| get(figure).ok_or(figure);
    let transactions = need(Figure::Transactions)?;
    let leaked = get(Figure::Leaked);
    let proof = match (get(Figure::GrantSeq), get(Figure::Share), get(Figure::Held)) {
        (Some(seq), Some(share), Some(held)) => Some(Proof { seq: whole(seq), share: small(share), held: small(held) }),
        _ => None,
    };
    Ok(PodFigures {
        sample: Sample {
            at_seconds: row.sample_time_seconds,
            waiting: need(Figure::Waiting)?,
            active: need(Figure::Active)?,
            leaked: leaked.unwrap_or(0.0),
            transactions,
            abandoned: get(Figure::Abandoned).unwrap_or(0.0),
            busy_seconds: need(Figure::BusySeconds)?,
            wait_seconds: need(Figure::WaitSeconds)?,
            assignments: get(Figure::Assignments).unwrap_or(transactions),
        },
        leaked,
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

fn target(labels: &Labels) -> Target {
    Target {
        pool_namespace: labels.pool_namespace.clone().into_owned(),
        pool: labels.pool.clone().into_owned(),
        pod: labels.pod.clone().into_owned(),
        job: labels.job.clone().into_owned(),
        instance: labels.instance.clone().into_owned(),
    }
}

/// Writes the labels that identify a target into `key`. A separator inside a label value makes more of them than an
/// honest key has, so it can only ever collide with another forged one.
fn join(key: &mut String, labels: &Labels) {
    key.clear();
    let parts: [&Cow<str>; 6] =
        [&labels.pool_namespace, &labels.pool, &labels.namespace, &labels.pod, &labels.job, &labels.instance];
    for part in parts {
        key.push_str(part);
        key.push('\u{1f}');
    }
}
