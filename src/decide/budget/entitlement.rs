//! What each pool is entitled to: by what it asks for and by the rule, whatever it has now.

use serde::Serialize;

use crate::decide::filling::{Vessel, fill};

/// What all pools get in turn, each stage of all of them before the next of any. What was given stays: each stage is at least the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AskStage {
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
    pub const COUNT: usize = 7;
    pub const ALL: [Self; Self::COUNT] =
        [Self::First, Self::OneEach, Self::Minimum, Self::Demand, Self::Need, Self::Headroom, Self::Spare];
}

/// What a pool asks for, in server connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolAsk {
    pub priority: i32,
    /// At least 1.
    pub weight: u32,
    /// By [`AskStage`], each at least the one before.
    pub upto: [u32; AskStage::COUNT],
    /// Whether its load asks for more than its own maximum.
    pub is_capped: bool,
}

impl PoolAsk {
    pub fn of(&self, stage: AskStage) -> u32 {
        self.upto[stage as usize]
    }
}

/// What a pool is entitled to, and why it is not more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entitlement {
    pub connections: u32,
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
pub(super) fn entitled(asks: &[PoolAsk], whole: u32) -> Vec<Entitlement> {
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
            give(&asks[from..to], &mut has[from..to], stage, &mut left);
            from = to;
        }
    }
    asks.iter()
        .zip(has)
        .map(|(ask, connections)| Entitlement { connections, limited_by: limit(asks, ask, connections, end) })
        .collect()
}

/// Gives one stage to pools of one priority.
fn give(asks: &[PoolAsk], has: &mut [u32], stage: AskStage, left: &mut u64) {
    if *left == 0 {
        return;
    }
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
    for (has, full) in has.iter_mut().zip(fill(&vessels, *left)) {
        let full = u32::try_from(full).unwrap_or(u32::MAX);
        *left -= u64::from(full - *has);
        *has = full;
    }
}

fn limit(asks: &[PoolAsk], ask: &PoolAsk, connections: u32, end: Option<Exhausted>) -> ShareLimit {
    let lacks = |stage| connections < ask.of(stage);
    let contends = |other: &&PoolAsk| other.of(AskStage::Demand) > other.of(AskStage::Minimum);
    match end {
        _ if ask.of(AskStage::OneEach) == 0 => ShareLimit::NoPods,
        _ if !lacks(AskStage::Demand) && ask.is_capped => ShareLimit::Maximum,
        _ if !lacks(AskStage::Demand) => ShareLimit::Nothing,
        _ if lacks(AskStage::OneEach) => ShareLimit::TooManyPods,
        _ if lacks(AskStage::Minimum) => ShareLimit::Minimums,
        // others have come to an end before: nobody has got more than a minimum
        Some(end) if end.stage < AskStage::Demand => ShareLimit::Minimums,
        Some(end) if ask.priority < end.priority => ShareLimit::Priority,
        _ if asks.iter().filter(|other| other.priority == ask.priority).filter(contends).count() > 1 => {
            ShareLimit::Weight
        }
        _ if asks.iter().filter(|other| other.priority > ask.priority).any(|other| contends(&other)) => {
            ShareLimit::Priority
        }
        _ => ShareLimit::Capacity,
    }
}
