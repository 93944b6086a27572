//! From the series of one reading to the figures of each pod: one scrape per pod, one set of series per pod.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fmt,
    sync::Arc,
};

use super::{
    PoolKey, Readings,
    intake::Take,
    query::Figure,
    response::{Labels, Series},
    roster::{Origin, Roster},
};
use crate::{
    contract::metrics::BUSY_SECONDS,
    decide::{load::PodFigures, shares::GrantProof},
    domain::Sample,
};

/// Sets of series of one pod that are kept: of two jobs of two replicas, before and after the configuration that scrapes them was
/// changed. A pod that has more exports labels that change.
pub(super) const MOST_SETS: usize = 8;
/// Longest labels of a set that are kept, all of them together, in bytes.
const LARGEST_LABELS: usize = 4096;
/// Scrapes of one pod that are kept of what it did with the revisions of a rollout: half an hour with one every second, by two jobs of
/// two replicas.
pub(super) const MOST_SCRAPES: usize = 8192;
/// Longest text of a series that is shown.
const SHOWN_CHARACTERS: usize = 64;

/// A series that was refused: the first of its kind in a reading, and how many there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedSeries {
    /// Why.
    pub refusal: SeriesRefusal,
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
pub enum SeriesRefusal {
    /// NaN, infinite or negative. The pod is left out of this reading.
    Value,
    /// The scrape configuration adds no label `pod`.
    NoPodLabel,
    /// A pod speaks for a pool that it is not of.
    ForeignPool,
    /// A pod has more sets of series than are kept, or longer labels. It is left out of this reading.
    TooManySets,
    /// A pod has more scrapes of the revisions of a rollout than are kept. It is left out of its analysis.
    TooManyScrapes,
    /// A pod has some series and lacks others that are needed. It is left out of this reading.
    Incomplete,
}

impl fmt::Display for RefusedSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, pod, metric, value, count, .. } = self;
        match self.refusal {
            SeriesRefusal::Value => {
                write!(f, "{metric} of pod {pod:?}, pool {pool}, is {value:?}, which cannot be; the pod is left out")
            }
            SeriesRefusal::NoPodLabel => {
                write!(
                    f,
                    "{metric} of pool {pool} has no label pod; add it in the scrape configuration (examples/prometheus)"
                )
            }
            SeriesRefusal::ForeignPool => {
                write!(
                    f,
                    "pod {pod:?} in namespace {value:?} reports {metric} for pool {pool}, which it is not of; it is not counted"
                )
            }
            SeriesRefusal::TooManySets => {
                write!(
                    f,
                    "pod {pod:?}, pool {pool}, has more than {MOST_SETS} sets of {metric}, or labels of more than \
                     {LARGEST_LABELS} bytes; the pod is left out. Which of its labels change, or what else is on its port? Limit \
                     them in the scrape configuration (examples/prometheus)"
                )
            }
            SeriesRefusal::TooManyScrapes => {
                write!(
                    f,
                    "pod {pod:?}, pool {pool}, has more than {MOST_SCRAPES} scrapes of {metric} and its like; the pod is left out. \
                     What else is on its port? Let its scrape configuration be one of examples/prometheus"
                )
            }
            SeriesRefusal::Incomplete => {
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

impl RefusedSeries {
    /// The first of its kind. Of the texts no more is kept than is shown.
    pub(super) fn first(refusal: SeriesRefusal, pool: PoolKey, pod: &str, metric: &'static str, value: &str) -> Self {
        let [pod, value] = [pod, value].map(|text| text.chars().take(SHOWN_CHARACTERS).collect());
        Self { refusal, pool, pod, metric, value, count: 1 }
    }
}

/// Series of one target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// As Prometheus knows it.
    namespace: String,
    job: String,
    instance: String,
    others: String,
}

impl Target {
    /// What identifies it beside its pod; none where that is more than is kept.
    pub fn of(labels: &Labels) -> Option<Self> {
        let bytes = labels.namespace.len() + labels.job.len() + labels.instance.len() + labels.others.len();
        (bytes <= LARGEST_LABELS).then(|| Self {
            namespace: labels.namespace.clone().into_owned(),
            job: labels.job.clone().into_owned(),
            instance: labels.instance.clone().into_owned(),
            others: labels.others.clone(),
        })
    }

    /// Whether a series of the same pod with these labels is of this target.
    pub fn has(&self, labels: &Labels) -> bool {
        self.instance == labels.instance
            && self.job == labels.job
            && self.others == labels.others
            && self.namespace == labels.namespace
    }
}

/// A set of series of one target.
#[derive(Clone, Debug)]
struct Row {
    target: Target,
    /// A value that cannot be was among them.
    is_refused: bool,
    figures: [Option<f64>; Figure::ALL.len()],
}

/// What one pod reported.
#[derive(Clone, Debug)]
enum Rows {
    /// Its sets of series, in the order in which they came.
    Sets(Vec<Row>),
    /// More than are kept.
    TooMany,
}

/// Collects the series of one answer, in any order.
#[derive(Debug)]
pub(super) struct Collector {
    collected: Collected,
    roster: Arc<Roster>,
    /// Where the rows of a pod are, by its place in the roster.
    index: HashMap<usize, usize>,
    /// Where the rows of the last series are, and its set of them.
    last: (usize, usize),
    key: String,
}

/// What the answers of one reading have said.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// Of pods, by their places in the roster.
    rows: Vec<(usize, Rows)>,
    problems: BTreeMap<SeriesRefusal, RefusedSeries>,
    problems_by_pool: HashMap<PoolKey, RefusedSeries>,
}

impl Collector {
    /// Takes in the series of these pods, and of no others.
    pub fn of(roster: Arc<Roster>) -> Self {
        let index = HashMap::with_capacity(roster.len());
        Self { collected: Collected::default(), roster, index, last: (0, 0), key: String::new() }
    }

    /// Finds the set that a series belongs to, and makes it the last. The series of a target often follow one another.
    fn find(&mut self, labels: &Labels, figure: Figure) -> Option<()> {
        if self.is_of_last(labels) {
            return Some(());
        }
        let origin = self.roster.origin(labels, &mut self.key);
        let Origin::Own(place) = origin else {
            self.refuse_origin(origin, labels, figure);
            return None;
        };
        let rows = &mut self.collected.rows;
        let at = *self.index.entry(place).or_insert_with(|| {
            rows.push((place, Rows::Sets(Vec::with_capacity(1))));
            rows.len() - 1
        });
        let Rows::Sets(sets) = &mut rows[at].1 else { return None };
        if let Some(set) = sets.iter().position(|row| row.target.has(labels)) {
            self.last = (at, set);
        } else if let Some(target) = Target::of(labels).filter(|_| sets.len() < MOST_SETS) {
            sets.push(Row { target, is_refused: false, figures: [None; Figure::ALL.len()] });
            self.last = (at, sets.len() - 1);
        } else {
            rows[at].1 = Rows::TooMany;
            let pool = self.roster.pod(place).0.clone();
            self.collected.refuse(SeriesRefusal::TooManySets, pool, &labels.pod, figure.metric(), "");
            return None;
        }
        Some(())
    }

    fn is_of_last(&self, labels: &Labels) -> bool {
        let (at, set) = self.last;
        self.collected.rows.get(at).is_some_and(|(place, rows)| {
            let Rows::Sets(sets) = rows else { return false };
            self.is_of(*place, labels) && sets.get(set).is_some_and(|row| row.target.has(labels))
        })
    }

    /// The last set, and the place of its pod.
    fn last(&mut self) -> Option<(usize, &mut Row)> {
        let (at, set) = self.last;
        let (place, Rows::Sets(sets)) = self.collected.rows.get_mut(at)? else { return None };
        Some((*place, sets.get_mut(set)?))
    }

    /// Whether a series with these labels is of the pod that stands here.
    fn is_of(&self, place: usize, labels: &Labels) -> bool {
        let (pool, pod) = self.roster.pod(place);
        pod == labels.pod && pool.name == labels.pool && pool.namespace == labels.pool_namespace
    }

    /// Tells of a series of no pod that may report, once for each target.
    fn refuse_origin(&mut self, origin: Origin, labels: &Labels, figure: Figure) {
        let refusal = match origin {
            Origin::Foreign => SeriesRefusal::ForeignPool,
            Origin::NoPodLabel => SeriesRefusal::NoPodLabel,
            Origin::Own(_) | Origin::Unknown => return,
        };
        if figure == Figure::SampleTime {
            let pool = PoolKey::new(&*labels.pool_namespace, &*labels.pool);
            self.collected.refuse(refusal, pool, &labels.pod, figure.metric(), &labels.namespace);
        }
    }
}

impl Take for Collector {
    type Taken = Collected;

    fn take(&mut self, series: &Series) {
        let Series { metric: labels, value: Some(value), .. } = series else { return };
        let Some(figure) = Figure::of(labels) else { return };
        if self.find(labels, figure).is_none() {
            return;
        }
        let Some((place, row)) = self.last() else { return };
        match value.value() {
            Ok(value) => row.figures[figure as usize] = Some(value),
            Err(text) => {
                row.is_refused = true;
                let pool = self.roster.pod(place).0.clone();
                self.collected.refuse(SeriesRefusal::Value, pool, &labels.pod, figure.metric(), text);
            }
        }
    }

    fn taken(self) -> Collected {
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
    pub fn finish(mut self, roster: &Roster, at_seconds: f64, bytes: usize) -> Readings {
        let mut pools: HashMap<PoolKey, BTreeMap<String, PodFigures>> = HashMap::new();
        // in the order of the roster: which problem is the first does not depend on a hash
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by_key(|(place, _)| *place);
        for (place, rows) in rows {
            let (pool, pod) = roster.pod(place);
            let Some((row, sample_time_seconds)) = chosen(rows) else { continue };
            match figures(&row.figures, sample_time_seconds) {
                Ok(figures) if pools.contains_key(pool) => {
                    pools.entry(pool.clone()).or_default().insert(pod.to_owned(), figures);
                }
                Ok(figures) => {
                    pools.insert(pool.clone(), BTreeMap::from([(pod.to_owned(), figures)]));
                }
                Err(missing) => self.refuse(SeriesRefusal::Incomplete, pool.clone(), pod, missing.metric(), ""),
            }
        }
        let problems = self.problems.into_values().collect();
        Readings { at_seconds, pools, problems, problems_by_pool: self.problems_by_pool, bytes }
    }

    fn refuse(&mut self, refusal: SeriesRefusal, pool: PoolKey, pod: &str, metric: &'static str, value: &str) {
        let entry = self.problems.entry(refusal);
        let is_known = matches!(entry, Entry::Occupied(_)) && self.problems_by_pool.contains_key(&pool);
        if is_known {
            entry.and_modify(|problem| problem.count = problem.count.saturating_add(1));
            return;
        }
        let problem = RefusedSeries::first(refusal, pool, pod, metric, value);
        self.problems_by_pool.entry(problem.pool.clone()).or_insert_with(|| problem.clone());
        entry.and_modify(|problem| problem.count = problem.count.saturating_add(1)).or_insert(problem);
    }
}

/// Of the sets of series of a pod the one that was read last, with its sample time; of two of the same time, the first by name. None
/// where none has one, which has not reported, or where a value that cannot be is in it.
fn chosen(rows: Rows) -> Option<(Row, f64)> {
    let Rows::Sets(sets) = rows else { return None };
    let timed = sets.into_iter().filter_map(|row| {
        let time = row.figures[Figure::SampleTime as usize]?;
        Some((row, time))
    });
    let newest =
        timed.min_by(|(a, a_time), (b, b_time)| b_time.total_cmp(a_time).then_with(|| a.target.cmp(&b.target)));
    newest.filter(|(row, _)| !row.is_refused)
}

/// What a row says, or the first figure that it lacks.
fn figures(row: &[Option<f64>; Figure::ALL.len()], sample_time_seconds: f64) -> Result<PodFigures, Figure> {
    let get = |figure: Figure| row[figure as usize];
    let need = |figure: Figure| get(figure).ok_or(figure);
    let transactions = need(Figure::Transactions)?;
    let [leaked, abandoned, assignments] = [Figure::Leaked, Figure::Abandoned, Figure::Assignments].map(get);
    let proof = match (get(Figure::GrantSeq), get(Figure::Share), get(Figure::Held)) {
        (Some(seq), Some(share), Some(held)) => {
            Some(GrantProof { seq: whole(seq), share: small(share), held: small(held) })
        }
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
