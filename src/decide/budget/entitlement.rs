//! What each pool is entitled to: by what it asks for and by the rule, whatever it has now.

use serde::Serialize;

use crate::decide::filling::{Vessel, fill};

/// What all pools get in turn, each stage of all of them before the next of any. What was given stays: each stage is at least the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AskStage {
    /// One for a pool that has pods: it is not paused while others have two.
    First,
    /// One for each pod.
    OneEach,
    /// The pool's minimum, and the floors of its pods.
    Minimum,
    /// What its load asks for on average.
    Demand,
    /// What serves that load.
    Need,
    /// Room for the floors of pods that may appear.
    Headroom,
    /// All that it may have: what nobody needs is handed out.
    Spare,
}

impl AskStage {
    /// How many there are.
    pub const COUNT: usize = 7;
    /// All of them, in their order.
    pub const ALL: [Self; Self::COUNT] =
        [Self::First, Self::OneEach, Self::Minimum, Self::Demand, Self::Need, Self::Headroom, Self::Spare];
}

/// What a pool asks for, in server connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolAsk {
    /// Higher ones are served first in each stage, but for the last.
    pub priority: i32,
    /// Weight among pools of the same priority; at least 1.
    pub weight: u32,
    /// By [`AskStage`], each at least the one before.
    pub upto: [u32; AskStage::COUNT],
    /// Whether its load asks for more than its own maximum.
    pub is_capped: bool,
}

impl PoolAsk {
    /// What it asks for up to a stage.
    pub const fn of(&self, stage: AskStage) -> u32 {
        self.upto[stage as usize]
    }

    /// Whether it asks for more than its minimum.
    fn contends(&self) -> bool {
        self.of(AskStage::Demand) > self.of(AskStage::Minimum)
    }
}

/// What a pool is entitled to, and why it is not more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// In server connections.
    pub connections: u32,
    /// Why it is not more.
    pub limited_by: ShareLimit,
}

/// Why a pool is not entitled to what its load asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ShareLimit {
    /// It is.
    Nothing,
    /// No pod of it runs.
    NoPods,
    /// Its own maximum.
    Maximum,
    /// Other pools of the same priority ask for more than there is, too: it has its part by weight.
    Weight,
    /// Pools of a higher priority ask for it.
    Priority,
    /// Nobody else: the server carries no more.
    Capacity,
    /// Not even the minimums of all pools fit. Somebody has promised more than there is.
    Minimums,
    /// There are more pods than connections: some of them get none, and their clients queue.
    TooManyPods,
}

/// Where what there is came to an end.
#[derive(Clone, Copy)]
struct Exhausted {
    stage: AskStage,
    priority: i32,
}

/// Divides `whole` over the pools: stage by stage, and in each from the highest priority to the lowest, by weights among those of one
/// priority. Of the spare priorities have no more than others.
///
/// `asks` stand by priority, the highest first; who stands first is first among equals. The sum is `whole`, or all that is asked for.
pub fn entitled(asks: &[PoolAsk], whole: u32) -> Vec<Entitlement> {
    let mut has = vec![0_u32; asks.len()];
    let mut left = u64::from(whole);
    let mut end: Option<Exhausted> = None;
    for stage in AskStage::ALL {
        let mut from = 0;
        while from < asks.len() {
            let priority = asks[from].priority;
            let is_apart = |ask: &PoolAsk| stage != AskStage::Spare && ask.priority != priority;
            let to = asks[from..].iter().position(is_apart).map_or(asks.len(), |length| from + length);
            let wanted: u64 = (from..to).map(|pool| u64::from(asks[pool].of(stage) - has[pool])).sum();
            if wanted > left && end.is_none() {
                end = Some(Exhausted { stage, priority });
            }
            if wanted <= left {
                has[from..to].iter_mut().zip(&asks[from..to]).for_each(|(has, ask)| *has = ask.of(stage));
                left -= wanted;
            } else if left > 0 {
                give(&asks[from..to], &mut has[from..to], stage, left);
                left = 0;
            }
            from = to;
        }
    }
    let mut entitlements = Vec::with_capacity(asks.len());
    let mut above = 0;
    for of_one in asks.chunk_by(|one, next| one.priority == next.priority) {
        let contending = Contending { above, alike: of_one.iter().filter(|ask| ask.contends()).count() };
        for ask in of_one {
            let connections = has[entitlements.len()];
            entitlements.push(Entitlement { connections, limited_by: limit(ask, connections, end, contending) });
        }
        above += contending.alike;
    }
    entitlements
}

/// How many pools ask for more than their minimum.
#[derive(Clone, Copy)]
struct Contending {
    /// Of higher priorities.
    above: usize,
    /// Of the same.
    alike: usize,
}

/// Gives what is `left` to pools of one priority: not all of them get what they ask for in this stage.
fn give(asks: &[PoolAsk], has: &mut [u32], stage: AskStage, left: u64) {
    let vessels: Vec<Vessel> = asks
        .iter()
        .zip(&*has)
        .map(|(ask, &has)| Vessel {
            weight: u64::from(ask.weight.max(1)),
            // what nobody needs comes on top of what each needs
            zero: if stage == AskStage::Spare { u64::from(has) } else { 0 },
            from: u64::from(has),
            to: u64::from(ask.of(stage)),
        })
        .collect();
    for (has, full) in has.iter_mut().zip(fill(&vessels, left)) {
        *has = u32::try_from(full).unwrap_or(u32::MAX);
    }
}

fn limit(ask: &PoolAsk, connections: u32, end: Option<Exhausted>, contending: Contending) -> ShareLimit {
    let lacks = |stage| connections < ask.of(stage);
    match end {
        _ if ask.of(AskStage::OneEach) == 0 => ShareLimit::NoPods,
        _ if !lacks(AskStage::Demand) && ask.is_capped => ShareLimit::Maximum,
        _ if !lacks(AskStage::Demand) => ShareLimit::Nothing,
        _ if lacks(AskStage::OneEach) => ShareLimit::TooManyPods,
        _ if lacks(AskStage::Minimum) => ShareLimit::Minimums,
        // others have come to an end before: nobody has got more than a minimum
        Some(end) if end.stage < AskStage::Demand => ShareLimit::Minimums,
        Some(end) if ask.priority < end.priority => ShareLimit::Priority,
        _ if contending.alike > 1 => ShareLimit::Weight,
        _ if contending.above > 0 => ShareLimit::Priority,
        _ => ShareLimit::Capacity,
    }
}
