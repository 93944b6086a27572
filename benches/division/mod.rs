//! Time to divide what a server can carry over 5,000 pods, beside the fair-share allocator of Multigres on the same demands.
//!
//! Both divide in a process of their own, in turn, on the same lists; reading a list and telling the answer is not timed. Multigres divides
//! by demands and one minimum for all. Sluice is timed twice: what everyone is entitled to (`entitled`), by weight, priority and minimum too;
//! and a whole step of the ledger (`step`), from what agents have reported to what is written on which pod, in 500 pools of 10 pods, as they
//! stand after the step before.

mod report;

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use clap::Args;
use serde_json::json;
use sluice::{
    contract::PodGrant,
    decide::{
        budget::{AskStage, LedgerPlan, LedgerPod, LedgerPool, LedgerWrite, PoolAsk, ServerLedger, entitled, step},
        shares::{Claimant, GrantProof, PodDemand, PodPhase},
    },
};

use crate::{
    Failure, machine,
    results::{self, Results, Samples},
    statistics,
};

const PODS: usize = 5000;
const PODS_OF_A_POOL: usize = 10;
/// What a pod asks for at most; half of that on average.
const MOST: u32 = 20;
/// What the program is linked with.
const MULTIGRES: &str = "multigres v0.1.0, go/services/multipooler/connpoolmanager";

/// Options of `division`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Lists of demands, each divided where there is too little and where there is enough.
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// The program that divides as Multigres does; without it it is left out.
    #[arg(long)]
    multigres: Option<PathBuf>,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
enum Room {
    /// Half of what is asked for.
    Scarce,
    /// Twice as much.
    Ample,
}

impl Room {
    const ALL: [Self; 2] = [Self::Scarce, Self::Ample];

    fn name(self) -> &'static str {
        match self {
            Self::Scarce => "scarce",
            Self::Ample => "ample",
        }
    }

    fn capacity(self) -> u32 {
        let asked = MOST / 2 * u32::try_from(PODS).unwrap_or(u32::MAX);
        match self {
            Self::Scarce => asked / 2,
            Self::Ample => asked * 2,
        }
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    setting.insert("pods".into(), json!(PODS));
    setting.insert("podsOfAPool".into(), json!(PODS_OF_A_POOL));
    setting.insert("demand".into(), json!(format!("1 to {MOST}, drawn anew for each list")));
    setting.insert("optimized".into(), json!(!cfg!(debug_assertions)));
    setting.insert("multigres".into(), json!(options.multigres.is_some().then_some(MULTIGRES)));
    let mut samples = Samples::of("who,room,round,nanoseconds,capacity,given,without,others_again");
    let mut multigres = options.multigres.as_deref().map(Multigres::start).transpose()?;
    let mut ledgers = Room::ALL.map(|_| Ledger::new());
    let mut random = Random(1);
    for round in 0..options.rounds {
        let demands: Vec<u32> = (0..PODS).map(|_| 1 + random.below(MOST)).collect();
        for (room, ledger) in Room::ALL.into_iter().zip(&mut ledgers) {
            let capacity = room.capacity();
            let mut told = |who: &str, division: Division| {
                let Division { nanoseconds, given, without, others_again } = division;
                let room = room.name();
                samples.add(&format!("{who},{room},{round},{nanoseconds},{capacity},{given},{without},{others_again}"));
            };
            told("entitled", entitle(&demands, capacity));
            told("step", ledger.step(&demands, capacity));
            if let Some(multigres) = &mut multigres {
                told("multigres", multigres.divide(&demands, capacity)?);
            }
        }
    }
    let figures = report::report(samples.text())?;
    Ok(Results { name: "division", setting, samples, figures, keep: options.keep.then(results::committed) })
}

/// One division.
struct Division {
    nanoseconds: u128,
    /// What was handed out.
    given: u64,
    /// Pods that got nothing.
    without: usize,
    /// Pods that got something else when the same was divided again.
    others_again: usize,
}

impl Division {
    fn of(nanoseconds: u128, first: &[u32], again: &[u32]) -> Self {
        Self {
            nanoseconds,
            given: first.iter().map(|&share| u64::from(share)).sum(),
            without: first.iter().filter(|share| **share == 0).count(),
            others_again: first.iter().zip(again).filter(|(first, again)| first != again).count(),
        }
    }
}

/// A weight as pools have it: from half to four times the usual one.
fn weight(number: usize) -> u32 {
    [50, 100, 100, 200, 400][number % 5]
}

/// Every tenth one comes first.
fn priority(number: usize) -> i32 {
    i32::from(number.is_multiple_of(10))
}

/// What each pod is entitled to, as if it were a pool.
fn entitle(demands: &[u32], capacity: u32) -> Division {
    let ask = |(number, &demand): (usize, &u32)| {
        let mut upto = [capacity; AskStage::COUNT];
        upto[..AskStage::Headroom as usize].copy_from_slice(&[1, 1, 1, demand, demand + demand.isqrt() * 2]);
        upto[AskStage::Headroom as usize] = upto[AskStage::Need as usize];
        PoolAsk { priority: priority(number), weight: weight(number), upto, is_capped: false }
    };
    let mut asks: Vec<PoolAsk> = demands.iter().enumerate().map(ask).collect();
    asks.sort_by_key(|ask| std::cmp::Reverse(ask.priority));
    let start = Instant::now();
    let first = entitled(&asks, capacity);
    let nanoseconds = start.elapsed().as_nanos();
    let [first, again] =
        [first, entitled(&asks, capacity)].map(|all| all.iter().map(|one| one.connections).collect::<Vec<u32>>());
    Division::of(nanoseconds, &first, &again)
}

/// 500 pools of 10 pods that do at once what they are told.
struct Ledger {
    names: Vec<String>,
    grants: Vec<Option<PodGrant>>,
    shares: Vec<Option<u32>>,
}

impl Ledger {
    fn new() -> Self {
        let names = (0..PODS).map(|pod| format!("{pod:05}")).collect();
        Self { names, grants: vec![None; PODS], shares: vec![None; PODS / PODS_OF_A_POOL] }
    }

    fn step(&mut self, demands: &[u32], capacity: u32) -> Division {
        let server = ServerLedger { capacity, reserved: 0, others: 0, sessions: None };
        let pools = self.pools(demands, capacity);
        let start = Instant::now();
        let plan = step(&server, &pools);
        let nanoseconds = start.elapsed().as_nanos();
        let [first, again] =
            [&plan, &step(&server, &pools)].map(|plan| plan.pools.iter().map(|pool| pool.share).collect::<Vec<u32>>());
        drop(pools);
        self.carry_out(&plan);
        Division::of(nanoseconds, &first, &again)
    }

    fn pools(&self, demands: &[u32], capacity: u32) -> Vec<LedgerPool<'_>> {
        let pod = |number: usize| {
            let (grant, mean) = (self.grants[number], f64::from(demands[number]));
            let proof =
                grant.map(|PodGrant { seq, share, .. }| GrantProof { seq, share, held: share.min(demands[number]) });
            let demand = Some(PodDemand { mean, peak: mean });
            let uid = &self.names[number];
            LedgerPod {
                floor: 1,
                pod: Claimant { uid, created_seconds: 0, phase: PodPhase::Running, grant, proof, demand, tries: 0 },
            }
        };
        let pool = |(number, &share): (usize, &Option<u32>)| {
            let first = number * PODS_OF_A_POOL;
            LedgerPool {
                name: &self.names[first],
                weight: weight(number),
                priority: priority(number),
                minimum: 5,
                maximum: capacity,
                share,
                borrowed_seconds_ago: None,
                pods: (first..first + PODS_OF_A_POOL).map(pod).collect(),
            }
        };
        self.shares.iter().enumerate().map(pool).collect()
    }

    fn carry_out(&mut self, plan: &LedgerPlan) {
        for LedgerWrite { pool, write } in &plan.writes {
            self.grants[pool * PODS_OF_A_POOL + write.pod] = Some(write.grant);
        }
        for (share, pool) in self.shares.iter_mut().zip(&plan.pools) {
            *share = Some(pool.share);
        }
    }
}

/// The program that divides as Multigres does.
struct Multigres {
    program: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Multigres {
    fn start(program: &Path) -> Result<Self, Failure> {
        let mut program = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = program.stdin.take().ok_or("the program takes no input")?;
        let output = BufReader::new(program.stdout.take().ok_or("the program gives no output")?);
        Ok(Self { program, input, output })
    }

    fn divide(&mut self, demands: &[u32], capacity: u32) -> Result<Division, Failure> {
        let figures = std::iter::once(&capacity).chain(demands).map(u32::to_string).collect::<Vec<String>>().join(",");
        writeln!(self.input, "{figures}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let fields: Vec<&str> = line.trim_end().split(',').collect();
        let [nanoseconds, given, without, others_again] = fields.as_slice() else {
            return Err(format!("not a division of Multigres: {line:?}").into());
        };
        Ok(Division {
            nanoseconds: nanoseconds.parse()?,
            given: given.parse()?,
            without: without.parse()?,
            others_again: others_again.parse()?,
        })
    }
}

impl Drop for Multigres {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Uniform numbers, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(bound.max(1))).unwrap_or_default()
    }
}
