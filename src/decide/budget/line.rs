//! A problem and its answer as lines of JSON: what `sluice divide` reads and writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{
    LOAN_SECONDS, LedgerPlan, LedgerPod, LedgerPool, PodDivision, PodReason, PoolDivision, ServerLedger, ShareLimit,
    step,
};
use crate::{
    contract::PodGrant,
    decide::shares::{Claimant, GrantProof, PodDemand, PodPhase, Write},
};

/// Pools in one line.
const MOST_POOLS: usize = 10_000;
/// Pods in one line, of all pools.
const MOST_PODS: usize = 100_000;
/// Server connections of a server or a pool, as in the custom resource definitions.
const CONNECTIONS: RangeInclusive<u32> = 1..=100_000;
/// What is counted: a server may hold more than anybody allows.
const COUNTS: RangeInclusive<u32> = 0..=1_000_000;
/// The largest time of a pod: the year 9999 is within it.
const MOST_SECONDS: i64 = 1 << 38;
/// Pools that a message names.
const NAMED_POOLS: usize = 3;
/// The number of a grant that a line brings along: no pod's first one, of which nothing is known yet.
const SEQ: u64 = 2;

/// One problem, with names of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct DivideLine {
    /// What the answer repeats, so that somebody can tell answers apart.
    id: Option<Value>,
    server: ServerLedger,
    pools: Vec<PoolLine>,
}

#[derive(Clone, Debug, PartialEq)]
struct PoolLine {
    name: String,
    weight: u32,
    priority: i32,
    minimum: u32,
    maximum: u32,
    share: Option<u32>,
    borrowed_seconds_ago: Option<f64>,
    pods: Vec<PodLine>,
}

#[derive(Clone, Debug, PartialEq)]
struct PodLine {
    name: String,
    floor: u32,
    created_seconds: i64,
    phase: PodPhase,
    grant: Option<PodGrant>,
    held: Option<u32>,
    demand: Option<PodDemand>,
}

/// Why a line cannot be divided.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DivideLineError {
    /// Not JSON.
    #[error("column {column}: {problem}")]
    Malformed {
        /// Where the JSON reader stopped, from 1.
        column: usize,
        /// What it says.
        problem: String,
    },
    /// A field that is missing, that nobody knows, or that cannot be.
    #[error("{field} {problem}")]
    Field {
        /// Which, with its path: `pools[2].pods[0].floor`.
        field: String,
        /// What is wrong and what may stand there.
        problem: String,
    },
}

impl DivideLine {
    /// Reads one line.
    ///
    /// # Errors
    /// [`DivideLineError`] with the field, or with the column where the JSON reader stopped.
    pub fn parse(text: &str) -> Result<Self, DivideLineError> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            let (said, column) = (error.to_string(), error.column());
            // each text is one line: its own number would only mislead
            let problem = said.split(" at line 1 column").next().unwrap_or_default().to_owned();
            DivideLineError::Malformed { column, problem }
        })?;
        let line = Fields::of("", "the line", &value)?;
        line.only(&["id", "capacity", "reserved", "others", "sessions", "pools"])?;
        let server = ServerLedger {
            capacity: line.whole("capacity", CONNECTIONS)?.ok_or_else(|| line.missing("capacity"))?,
            reserved: line.whole("reserved", COUNTS)?.unwrap_or(0),
            others: line.whole("others", COUNTS)?.unwrap_or(0),
            sessions: line.whole("sessions", COUNTS)?,
        };
        let pools = line.list("pools", MOST_POOLS)?.ok_or_else(|| line.missing("pools"))?;
        let pools = pools.iter().enumerate().map(|(index, pool)| PoolLine::read(index, pool, server.capacity));
        let pools: Vec<PoolLine> = pools.collect::<Result<_, _>>()?;
        let path = |pool: usize| format!("pools[{pool}]");
        unique(pools.iter().map(|pool| pool.name.as_str()), path)?;
        let pods: usize = pools.iter().map(|pool| pool.pods.len()).sum();
        if pods > MOST_PODS {
            return Err(line.wrong("pools", format!("have {pods} pods; expected at most {MOST_PODS}")));
        }
        Ok(Self { id: line.get("id").cloned(), server, pools })
    }

    /// Divides, and says what follows.
    pub fn answer(&self) -> Value {
        let pools: Vec<LedgerPool> = self.pools.iter().map(PoolLine::pool).collect();
        let plan = step(&self.server, &pools);
        let words = Words::new(&pools, &plan);
        let divided: Vec<Value> = (0..pools.len()).map(|index| words.answer(index)).collect();
        let writes = plan.writes.iter().map(|write| {
            let (pool, Write { pod, grant, move_ }) = (&self.pools[write.pool], write.write);
            json!({
                "pool": pool.name, "pod": pool.pods[pod].name, "move": move_,
                "share": grant.share, "granted": grant.granted, "floor": grant.floor,
                "least": grant.least,
            })
        });
        let mut answer = json!({
            "divisible": plan.divisible, "minimums": plan.minimums, "counted": plan.counted, "free": plan.free,
            "proofs_to_come": words.names(&plan.proofs_to_come), "pools": divided, "writes": writes.collect::<Vec<_>>(),
        });
        if let Some(id) = &self.id {
            answer["id"] = id.clone();
        }
        answer
    }
}

/// A plan as it is told.
struct Words<'a> {
    pools: &'a [LedgerPool<'a>],
    plan: &'a LedgerPlan,
    /// Pools that ask for more than their minimum, by priority.
    hungry: BTreeMap<i32, Vec<usize>>,
}

impl<'a> Words<'a> {
    fn new(pools: &'a [LedgerPool<'a>], plan: &'a LedgerPlan) -> Self {
        let mut hungry: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (index, (pool, division)) in pools.iter().zip(&plan.pools).enumerate() {
            if division.wanted > pool.minimum {
                hungry.entry(pool.priority).or_default().push(index);
            }
        }
        Self { pools, plan, hungry }
    }

    fn names(&self, of: &[usize]) -> Vec<&str> {
        of.iter().map(|&pool| self.pools[pool].name).collect()
    }

    /// The answer to one pool.
    fn answer(&self, index: usize) -> Value {
        let (pool, division) = (&self.pools[index], &self.plan.pools[index]);
        let pods = division.pods(pool);
        let granted: u64 = pods.iter().map(|pod| u64::from(pod.granted)).sum();
        let told = pool.pods.iter().zip(&pods).map(|(pod, division)| {
            json!({
                "name": pod.pod.uid, "goal": division.goal, "share": division.share, "granted": division.granted,
                "least": division.least, "reason": division.reason,
            })
        });
        json!({
            "name": pool.name, "wanted": division.wanted, "entitled": division.entitled, "share": division.share,
            "granted": granted, "limited_by": division.limited_by, "borrows": division.borrows,
            "waits_for_loans": division.waits_for_loans, "waits_for_proof": division.waits_for_proof,
            "message": self.message(index, &pods), "pods": told.collect::<Vec<_>>(),
        })
    }

    /// What becomes of a pool, in words.
    fn message(&self, index: usize, pods: &[PodDivision]) -> String {
        let (pool, plan) = (&self.pools[index], self.plan);
        let PoolDivision { wanted, entitled, share, .. } = plan.pools[index];
        let why = match plan.pools[index].limited_by {
            ShareLimit::Nothing => String::new(),
            ShareLimit::NoPods => ": no pod of it runs".to_owned(),
            ShareLimit::Maximum => format!(": its maximum is {}", pool.maximum),
            ShareLimit::Weight => {
                let others = self.hungry.get(&pool.priority).into_iter().flatten();
                format!(": shared by weight with {}", self.some(others.copied().filter(|&other| other != index)))
            }
            ShareLimit::Priority => {
                let first = self.hungry.range(pool.priority + 1..).rev().flat_map(|(_, pools)| pools);
                format!(": of a higher priority: {}", self.some(first.copied()))
            }
            ShareLimit::Capacity => format!(": there are {} to divide", plan.divisible),
            ShareLimit::Minimums => {
                format!(": the minimums of all pools are {}, and there are {} to divide", plan.minimums, plan.divisible)
            }
            ShareLimit::TooManyPods => format!(": there are more pods than the {} to divide", plan.divisible),
        };
        let waits = if plan.pools[index].waits_for_loans {
            format!("; what it lacks was given to others less than {LOAN_SECONDS} s ago")
        } else if plan.pools[index].waits_for_proof && plan.proofs_to_come.is_empty() {
            "; waits until the server counts fewer sessions".to_owned()
        } else if plan.pools[index].waits_for_proof {
            format!("; waits until these hold less: {}", self.some(plan.proofs_to_come.iter().copied()))
        } else {
            String::new()
        };
        let paused = match pods.iter().filter(|pod| pod.reason == PodReason::TooManyPods).count() {
            0 => String::new(),
            paused => format!("; {paused} of its pods get none"),
        };
        format!("wants {wanted}, entitled to {entitled}{why}; share {share}{waits}{paused}")
    }

    /// The first few names.
    fn some(&self, mut pools: impl Iterator<Item = usize>) -> String {
        let names: Vec<&str> = pools.by_ref().take(NAMED_POOLS).map(|pool| self.pools[pool].name).collect();
        let others = if pools.next().is_some() { " and others" } else { "" };
        names.join(", ") + others
    }
}

impl PoolLine {
    fn read(index: usize, value: &Value, capacity: u32) -> Result<Self, DivideLineError> {
        let fields = Fields::of(&format!("pools[{index}]"), "a pool", value)?;
        fields.only(&["name", "weight", "priority", "minimum", "maximum", "share", "borrowed_seconds_ago", "pods"])?;
        let maximum = fields.whole("maximum", CONNECTIONS)?.unwrap_or(capacity);
        let minimum = fields.whole("minimum", 0..=*CONNECTIONS.end())?.unwrap_or(0);
        if minimum > maximum {
            let problem = format!("is {minimum}; expected at most its maximum, {maximum}");
            return Err(fields.wrong("minimum", problem));
        }
        let pods = fields.list("pods", MOST_PODS)?.ok_or_else(|| fields.missing("pods"))?;
        let pods =
            pods.iter().enumerate().map(|(pod, value)| PodLine::read(&format!("{}.pods[{pod}]", fields.path), value));
        let pods: Vec<PodLine> = pods.collect::<Result<_, _>>()?;
        unique(pods.iter().map(|pod| pod.name.as_str()), |pod| format!("{}.pods[{pod}]", fields.path))?;
        let priority = fields.integer("priority", -1000..=1000)?.unwrap_or(0);
        Ok(Self {
            name: fields.name()?,
            weight: fields.whole("weight", 1..=1000)?.unwrap_or(100),
            priority: i32::try_from(priority).unwrap_or(0),
            minimum,
            maximum,
            share: fields.whole("share", COUNTS)?,
            borrowed_seconds_ago: fields.number("borrowed_seconds_ago", 1e9)?,
            pods,
        })
    }

    fn pool(&self) -> LedgerPool<'_> {
        LedgerPool {
            name: &self.name,
            weight: self.weight,
            priority: self.priority,
            minimum: self.minimum,
            maximum: self.maximum,
            share: self.share,
            borrowed_seconds_ago: self.borrowed_seconds_ago,
            pods: self.pods.iter().map(|pod| LedgerPod { floor: pod.floor, pod: pod.claimant() }).collect(),
        }
    }
}

impl PodLine {
    fn read(path: &str, value: &Value) -> Result<Self, DivideLineError> {
        let fields = Fields::of(path, "a pod", value)?;
        fields.only(&["name", "floor", "demand", "share", "granted", "held", "least", "phase", "created_seconds"])?;
        let floor = fields.whole("floor", 1..=1000)?.unwrap_or(1);
        let granted = fields.whole("granted", COUNTS)?;
        let share = fields.whole("share", COUNTS)?;
        let least = fields.whole("least", COUNTS)?.unwrap_or(0);
        if let Some(share) = share.filter(|share| *share > granted.unwrap_or(0)) {
            let granted = granted.unwrap_or(0);
            return Err(fields.wrong("share", format!("is {share}; expected at most what is granted, {granted}")));
        }
        let share = share.or(granted);
        let grant = share.zip(granted).map(|(share, granted)| PodGrant {
            seq: SEQ,
            share,
            granted,
            floor: floor.min(share),
            least: least.min(share),
            paused: false,
        });
        Ok(Self {
            name: fields.name()?,
            floor,
            created_seconds: fields.integer("created_seconds", -MOST_SECONDS..=MOST_SECONDS)?.unwrap_or(0),
            phase: fields.phase()?,
            grant: grant.filter(|grant| grant.granted > 0),
            held: fields.whole("held", COUNTS)?,
            demand: fields.number("demand", 1e6)?.map(|demand| PodDemand { mean: demand, peak: demand }),
        })
    }

    fn claimant(&self) -> Claimant<'_> {
        let PodGrant { seq, share, .. } = self.grant.unwrap_or_default();
        Claimant {
            uid: &self.name,
            created_seconds: self.created_seconds,
            phase: self.phase,
            grant: self.grant,
            proof: self.held.map(|held| GrantProof { seq, share, held }),
            demand: self.demand,
            tries: 0,
        }
    }
}

/// The fields of a JSON object, and where it stands.
struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(path: &str, what: &str, value: &'a Value) -> Result<Self, DivideLineError> {
        let Some(map) = value.as_object() else {
            let field = if path.is_empty() { what } else { path }.to_owned();
            return Err(DivideLineError::Field { field, problem: format!("is {}; expected an object", shown(value)) });
        };
        Ok(Self { path: path.to_owned(), map })
    }

    fn at(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn wrong(&self, field: &str, problem: String) -> DivideLineError {
        DivideLineError::Field { field: self.at(field), problem }
    }

    fn missing(&self, field: &str) -> DivideLineError {
        self.wrong(field, "is missing".to_owned())
    }

    fn expected(&self, field: &str, value: &Value, expected: &str) -> DivideLineError {
        self.wrong(field, format!("is {}; expected {expected}", shown(value)))
    }

    /// What stands there; null is like nothing.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// A field that is misspelt would silently have its default.
    fn only(&self, known: &[&str]) -> Result<(), DivideLineError> {
        match self.map.keys().find(|field| !known.contains(&field.as_str())) {
            Some(unknown) => {
                Err(self.wrong(&shortened(unknown), format!("is no field; known are {}", known.join(", "))))
            }
            None => Ok(()),
        }
    }

    fn integer(&self, field: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, DivideLineError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let number = value.as_i64().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| self.expected(field, value, &expected()))
    }

    fn whole(&self, field: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, DivideLineError> {
        let number = self.integer(field, i64::from(*range.start())..=i64::from(*range.end()))?;
        Ok(number.and_then(|number| u32::try_from(number).ok()))
    }

    fn number(&self, field: &str, most: f64) -> Result<Option<f64>, DivideLineError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64().filter(|number| (0.0..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.expected(field, value, &format!("a number from 0 to {most}"))),
        }
    }

    fn list(&self, field: &str, most: usize) -> Result<Option<&'a [Value]>, DivideLineError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_array() {
            Some(items) if items.len() <= most => Ok(Some(items)),
            Some(items) => Err(self.wrong(field, format!("has {}; expected at most {most}", items.len()))),
            None => Err(self.expected(field, value, "a list")),
        }
    }

    fn name(&self) -> Result<String, DivideLineError> {
        let value = self.get("name").ok_or_else(|| self.missing("name"))?;
        match value.as_str().filter(|name| (1..=253).contains(&name.len())) {
            Some(name) => Ok(name.to_owned()),
            None => Err(self.expected("name", value, "a name of 1 to 253 characters")),
        }
    }

    fn phase(&self) -> Result<PodPhase, DivideLineError> {
        let Some(value) = self.get("phase") else { return Ok(PodPhase::Running) };
        match value.as_str() {
            Some("Running") => Ok(PodPhase::Running),
            Some("Unscheduled") => Ok(PodPhase::Unscheduled),
            Some("Terminating") => Ok(PodPhase::Terminating),
            _ => Err(self.expected("phase", value, "one of Running, Unscheduled, Terminating")),
        }
    }
}

/// Two of the same name: which of them is meant, nobody knows.
fn unique<'a>(names: impl Iterator<Item = &'a str>, path: impl Fn(usize) -> String) -> Result<(), DivideLineError> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        if !seen.insert(name) {
            let problem = format!("is {:?}, which one before has; expected a name of its own", shortened(name));
            return Err(DivideLineError::Field { field: format!("{}.name", path(index)), problem });
        }
    }
    Ok(())
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    shortened(&value.to_string())
}

fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    let shortened: String = text.chars().take(MOST).collect();
    if shortened.len() < text.len() { shortened + "..." } else { shortened }
}
