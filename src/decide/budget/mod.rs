//! PURE: the one ledger of a database server: what it can carry, divided among its pools, and each pool's part among its pods.
//!
//! # Use
//! Call [`step`] each tick, and again as soon as a write was confirmed or a proof came in. Write every [`LedgerWrite`] of the
//! [`LedgerPlan`] in the order given, each with the pod's uid and resourceVersion, and remember [`PoolDivision::share`] and since when
//! [`PoolDivision::borrows`] was true last: both come back in the [`LedgerPool`] of the next tick. Whoever has forgotten them is as
//! safe as before, and moves a few connections more.
//!
//! # The invariant
//! At every instant, and whichever of the writes of whichever plans happened: the sum over all pods of what is counted for them is at most
//! what there is to divide ([`ServerLedger::divisible`]), or at most what it was before, where that was lowered. It holds because each
//! pool is divided by [`shares`], whose `granted` falls with proof alone, and because all pools together grow only out of
//! what is counted for nobody: what there is, less the sum of what is counted or the sessions that the server itself counts,
//! whichever is more. What `shares` asks of its caller, this asks too.
//!
//! A pool without a budget is a ledger of one pool, in which there is `maxAllowed` to divide: the same pods get the same shares. Among
//! pools as among the pods of one connections are handed out by one function (`decide/filling`), and by no other.
//!
//! # Who gets how much
//! One for each pool with pods, one for each pod, then the minimums of all; then what the load asks for ([`shares::PodDemand::mean`]), what
//! serves it, room for the floors of pods that may appear; the rest to everybody. Each of these goes from the highest priority
//! to the lowest, and within one priority by weight: whoever needs less than its part leaves it to the others (weighted max-min). Of the
//! rest, which nobody needs, a higher priority has no more. Each next connection goes to whoever stands lowest for its weight, so sums are exact,
//! the order of the input does not matter, and with more to divide nobody has less.
//!
//! # When shares move
//! A pool gets more at the expense of others only when it lacks a twentieth of what it needs and is entitled to, or what it cannot do
//! without: its minimum, the floors of its pods. Then few give, those first who do not need it. What a pool has got in this way stays with it for
//! [`LOAN_SECONDS`], but for the minimum of another. What is free is handed out at once. Growth waits for proof: what a pool gives up is
//! set aside for those to whom it was promised, and for minimums, before anybody else.
//!
//! A share of 0 means that a pod's pooler is paused and its clients queue. It is never a result of rounding: it has a [`PodReason`].
//!
//! | file | what is in it |
//! |---|---|
//! | `entitlement` | what each pool is entitled to, by the rule alone |
//! | `moves` | from what pools have to that, with few moves; who grows first |
//! | `line` | a problem and its answer as lines of JSON: `sluice divide` |

mod entitlement;
mod line;
mod moves;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use serde::Serialize;

pub use entitlement::{AskStage, Entitlement, PoolAsk, ShareLimit, entitled};
pub use line::{DivideLine, DivideLineError};

use self::moves::{Standing, allot, moves};
use super::shares::{self, Claimant, GrowthRoom, PodPhase, PoolNeeds, SharePlan, SharingRule, Write};
use crate::contract::PodGrant;

/// For how long a pool keeps what others gave up for it: two ticks of the operator.
pub const LOAN_SECONDS: f64 = 30.0;

/// What a database server can carry, in server connections, and what of it is not to be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLedger {
    /// What the server can carry.
    pub capacity: u32,
    /// What stays free for others.
    pub reserved: u32,
    /// What others hold, past Sluice.
    pub others: u32,
    /// The sessions that the server itself counts for the pods of all pools. None: it was not asked; what is granted counts alone.
    pub sessions: Option<u32>,
}

impl ServerLedger {
    /// What is divided among the pools.
    pub const fn divisible(&self) -> u32 {
        self.capacity.saturating_sub(self.reserved).saturating_sub(self.others)
    }
}

/// A pool that draws from the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerPool<'a> {
    /// Its name, which no other pool of the ledger has: the last tie.
    pub name: &'a str,
    /// Weight among pools of the same priority; at least 1 is taken.
    pub weight: u32,
    /// Higher ones are served first, above everyone's minimum.
    pub priority: i32,
    /// What it gets before any pool gets more, while a pod of it runs.
    pub minimum: u32,
    /// What all its pods together may open at most, in server connections.
    pub maximum: u32,
    /// Its share by the last plan. None: not known; what its pods may open stands for it.
    pub share: Option<u32>,
    /// How long ago [`PoolDivision::borrows`] was true last, in seconds.
    pub borrowed_seconds_ago: Option<f64>,
    /// Its pods.
    pub pods: Vec<LedgerPod<'a>>,
}

/// A pod of such a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LedgerPod<'a> {
    /// What it may always hold; at least 1 is taken.
    pub floor: u32,
    /// What is known of it.
    pub pod: Claimant<'a>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerPlan {
    /// What there is to divide.
    pub divisible: u32,
    /// What cannot be done without: the minimums and floors of all pools. Above `divisible` somebody has promised more than there is.
    pub minimums: u64,
    /// What is counted now, before the writes: for all pods, or by the server where it counts more.
    pub counted: u64,
    /// What of `divisible` is counted for nobody, before the writes.
    pub free: u64,
    /// Pools (by index) that have more counted than they are to have: their proof makes room for others.
    pub proofs_to_come: Vec<usize>,
    /// The pools, in the order in which they were passed.
    pub pools: Vec<PoolDivision>,
    /// The writes of all pools, most urgent first: floors, what makes room, the rest; among those the higher priority.
    pub writes: Vec<LedgerWrite>,
}

/// What one pool gets.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolDivision {
    /// What its load asks for, within its minimum and its maximum.
    pub wanted: u32,
    /// What it is entitled to by the rule.
    pub entitled: u32,
    /// Why that is not what it asks for.
    pub limited_by: ShareLimit,
    /// What its pods may have together from now on, room for pods that may appear in it.
    pub share: u32,
    /// Whether others give something up for it.
    pub borrows: bool,
    /// Whether it lacks what it needs because others have not had it for long enough yet.
    pub waits_for_loans: bool,
    /// Whether it has its share only once others are proven to hold less: [`LedgerPlan::proofs_to_come`], or the server's own count.
    pub waits_for_proof: bool,
    /// What its pods get; the writes among it are those of [`LedgerPlan::writes`].
    pub plan: SharePlan,
}

/// A write of one pod's grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerWrite {
    /// Index of the pool.
    pub pool: usize,
    /// The write; its `pod` is an index into the pods of that pool.
    pub write: Write,
}

/// Why a pod has the share that it has once the writes of a plan are through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PodReason {
    /// It has what it is to have, as before.
    Kept,
    /// It gets more.
    Raised,
    /// It gets less; what it had is counted until it is proven to hold no more.
    Lowered,
    /// It has got less, and is not proven to hold no more.
    AwaitsProof,
    /// It is to get more, once others are proven to hold less. With a share of 0 its clients queue until then.
    AwaitsRoom,
    /// It ends: it keeps what it has, or nothing, and gets no more.
    Ending,
    /// Share 0: it is bound to no node and can open nothing yet.
    NotScheduled,
    /// Share 0: there are more pods than connections, and older pods come first. Its clients queue.
    TooManyPods,
}

/// Decides what to write now.
///
/// Pure and deterministic: neither the order of the pools nor that of their pods matters.
pub fn step(server: &ServerLedger, pools: &[LedgerPool]) -> LedgerPlan {
    let divisible = server.divisible();
    let mut order: Vec<usize> = (0..pools.len()).collect();
    order.sort_by_key(|&pool| (Reverse(pools[pool].priority), Reverse(pools[pool].weight), pools[pool].name));
    let claimants: Vec<Vec<Claimant>> =
        order.iter().map(|&pool| pools[pool].pods.iter().map(|pod| pod.pod).collect()).collect();
    let ranked: Vec<Served> =
        order.iter().zip(&claimants).map(|(&pool, pods)| Served::new(&pools[pool], pods)).collect();

    let asks: Vec<PoolAsk> = ranked.iter().map(|ranked| ranked.ask).collect();
    let entitlements = entitled(&asks, divisible);
    let standings: Vec<Standing> = ranked
        .iter()
        .zip(&entitlements)
        .map(|(ranked, entitlement)| Standing {
            ask: ranked.ask,
            entitled: entitlement.connections,
            now: ranked.now(entitlement.connections),
            counted: ranked.needs.counted,
            borrowed_seconds_ago: ranked.pool.borrowed_seconds_ago,
        })
        .collect();
    let moves = moves(&standings, divisible);
    let granted: u64 = standings.iter().map(|pool| u64::from(pool.counted)).sum();
    let counted = granted.max(server.sessions.unwrap_or(0).into());
    let free = u64::from(divisible).saturating_sub(counted);
    let promised: Vec<Option<u32>> = ranked.iter().map(|ranked| ranked.pool.share).collect();
    let allotted = allot(&standings, &moves, &promised, free);

    let gives = |&rank: &usize| standings[rank].counted > moves[rank].share;
    let proofs_to_come: Vec<usize> = (0..order.len()).filter(gives).map(|rank| order[rank]).collect();
    let mut divisions: Vec<(usize, PoolDivision)> = Vec::with_capacity(order.len());
    let mut writes = Vec::new();
    for (rank, ranked) in ranked.iter().enumerate() {
        let share = moves[rank].share;
        let waits = u64::from(share.saturating_sub(standings[rank].counted)) > allotted[rank];
        let rule = SharingRule::ByDemand { min_allowed: ranked.pool.minimum, max_allowed: share };
        let room = GrowthRoom::Lent { free: allotted[rank], more_to_come: waits && !proofs_to_come.is_empty() };
        let plan = shares::step_within(&claimants[rank], |pod| ranked.pool.pods[pod].floor, rule, room);
        let before = |pod: usize| claimants[rank][pod].grant.map_or(0, |grant| grant.share);
        writes.extend(
            plan.writes
                .iter()
                .map(|&write| (write.urgency(before(write.pod)), rank, LedgerWrite { pool: order[rank], write })),
        );
        divisions.push((
            order[rank],
            PoolDivision {
                wanted: ranked.ask.of(AskStage::Demand),
                entitled: entitlements[rank].connections,
                limited_by: entitlements[rank].limited_by,
                share,
                borrows: moves[rank].borrows,
                waits_for_loans: moves[rank].waits_for_loans,
                waits_for_proof: waits,
                plan,
            },
        ));
    }
    divisions.sort_by_key(|&(pool, _)| pool);
    writes.sort_by_key(|&(urgency, rank, _)| (urgency, rank));
    LedgerPlan {
        divisible,
        minimums: asks.iter().map(|ask| u64::from(ask.of(AskStage::Minimum))).sum(),
        counted,
        free,
        proofs_to_come,
        pools: divisions.into_iter().map(|(_, division)| division).collect(),
        writes: writes.into_iter().map(|(.., write)| write).collect(),
    }
}

/// A pool in the order in which pools are served.
struct Served<'a> {
    pool: &'a LedgerPool<'a>,
    needs: PoolNeeds,
    ask: PoolAsk,
}

impl<'a> Served<'a> {
    fn new(pool: &'a LedgerPool<'a>, claimants: &[Claimant]) -> Self {
        let needs = shares::needs(claimants, |pod| pool.pods[pod].floor, pool.maximum);
        let is_running = needs.running > 0;
        let within = |connections: u32| connections.min(pool.maximum);
        let one_each = within(needs.one_each);
        let minimum = within(if is_running { needs.floors.max(pool.minimum) } else { needs.floors });
        let demand = within(needs.demand).max(minimum);
        let need = within(needs.need).max(demand);
        let headroom = within(need.saturating_add(needs.headroom));
        // without pods that run it has no use for more than what it has
        let kept = within(needs.share.saturating_add(needs.headroom));
        let spare = if is_running { pool.maximum } else { kept.max(headroom) };
        let ask = PoolAsk {
            priority: pool.priority,
            weight: pool.weight.max(1),
            upto: [one_each.min(1), one_each, minimum.max(one_each), demand, need, headroom, spare],
            is_capped: needs.demand > pool.maximum,
        };
        Self { pool, needs, ask }
    }

    /// Its share until now; room for pods to come is part of it, as far as it is entitled to that.
    fn now(&self, entitled: u32) -> u32 {
        let PoolNeeds { share, headroom, .. } = self.needs;
        self.pool.share.unwrap_or_else(|| share.saturating_add(headroom.min(entitled.saturating_sub(share))))
    }
}

impl PoolDivision {
    /// Of each pod, in the order passed: what it may open and what is counted for it once the writes are through, and why.
    pub fn pods(&self, pool: &LedgerPool) -> Vec<PodDivision> {
        let mut pods: Vec<PodDivision> = pool
            .pods
            .iter()
            .zip(&self.plan.shares)
            .map(|(pod, &goal)| {
                let grant = pod.pod.grant.unwrap_or_default();
                let granted = grant.granted.max(grant.share);
                PodDivision { goal, share: grant.share, granted, least: grant.least, reason: PodReason::Kept }
            })
            .collect();
        for Write { pod, grant, .. } in &self.plan.writes {
            let PodGrant { share, granted, least, .. } = *grant;
            pods[*pod] = PodDivision { share, granted, least, ..pods[*pod] };
        }
        for (pod, division) in pool.pods.iter().zip(&mut pods) {
            division.reason = division.reason_of(&pod.pod);
        }
        pods
    }
}

/// What one pod gets, in server connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodDivision {
    /// The share that it is on its way to.
    pub goal: u32,
    /// What it may open once the writes are through.
    pub share: u32,
    /// What is counted for it then.
    pub granted: u32,
    /// What its limit is never below then; 0: its floor says it.
    pub least: u32,
    /// Why.
    pub reason: PodReason,
}

impl PodDivision {
    fn reason_of(&self, pod: &Claimant) -> PodReason {
        let before = pod.grant.map_or(0, |grant| grant.share);
        match pod.phase {
            _ if self.share < before => PodReason::Lowered,
            _ if self.share > before => PodReason::Raised,
            _ if self.granted > self.share => PodReason::AwaitsProof,
            PodPhase::Terminating => PodReason::Ending,
            _ if self.goal > self.share => PodReason::AwaitsRoom,
            PodPhase::Unscheduled if self.share == 0 => PodReason::NotScheduled,
            PodPhase::Running if self.share == 0 => PodReason::TooManyPods,
            PodPhase::Unscheduled | PodPhase::Running => PodReason::Kept,
        }
    }
}
