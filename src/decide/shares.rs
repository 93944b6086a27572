//! What each pod of a pool may open: divided by demand, moved without ever exceeding the whole.
//!
//! # Use
//! Call [`step`] each tick, and again as soon as a write of the last plan was confirmed or a proof came in: it is cheap and
//! idle when there is nothing to do. Write every [`Write`] of the [`SharePlan`] with the pod's uid and resourceVersion, in
//! the order given, as many as the write limiter allows; what was not written comes again. Poll the pods in
//! [`SharePlan::awaited`] for their proof.
//!
//! # The invariant
//! At every instant, and whichever of the writes of whichever plans happened: the sum of `granted` over all pods is at
//! most [`SharingRule::most`]. It holds because
//! - a shrink writes the lower `share` and leaves `granted`; only a [`GrantProof`] lowers `granted`, by a write of its own;
//! - growth raises both, within what the annotations *as read* leave free, never on the strength of a write of the
//!   same plan. So any subset of a plan's writes, in any order, is safe, and a new leader needs the annotations alone.
//!
//! What the caller owes:
//! - every pod object that exists is passed, terminating ones too, until all its containers have ended;
//! - [`Claimant::grant`] is the newest grant that was read *or written*: a cache may lag behind one's own writes. While the
//!   outcome of a write is unknown, pass the larger `granted` of the two;
//! - one caller at a time (the leader).
//!
//! When the whole is lowered below what is granted, shares shrink at once, and nothing grows until proofs made room.
//!
//! # Who gets how much
//! Floors first, oldest pod first; then the mean demand, where it does not fit to whoever has least: a pod that needs less than
//! its part leaves it to the others; then what serves it (square-root staffing, or the peak of a burst), in proportion where it
//! does not fit; then room for the floors of pods that may appear ([`headroom`]); all the rest in proportion to the mean demand,
//! because a share is a right and not a reservation. Connections are handed out one after the other, as those of a server are
//! among its pools (`decide/filling`): sums are exact, and with more to divide nobody is entitled to less.
//!
//! A pod whose demand is unknown keeps what it has, and claims no less than the others use on average: most such pods have just
//! begun, and their load comes before its first figures. While no demand is known at all, pods that begin get what the others have
//! on average. Terminating pods never grow.
//!
//! Each move is an API write, a kubelet sync and a fan-out to every watcher, so shares move only when a pod is short: it
//! has no floor yet, its load presses on its share, or its share is far (40 %) from what its load deserves. Then few pods
//! give, those that need it least.
//!
//! The share bounds a pod's limit from above, [`PodGrant::least`] from below: the pods' parts of `minAllowed`, which bind no
//! connection that another pod could have.

mod divide;
mod least;
#[cfg(test)]
mod tests;

use std::cmp::{Ordering, Reverse};

use serde::Serialize;

use crate::contract::PodGrant;
use divide::{Claim, StagedDivision, divide};

/// One pod of the pool that has a sidecar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claimant<'a> {
    /// Uid of the pod: breaks ties of the age.
    pub uid: &'a str,
    /// Unix time of its creation, in seconds: older pods get their floors first.
    pub created_seconds: i64,
    /// Where in its life it is.
    pub phase: PodPhase,
    /// The newest grant that was read or written. None: no annotation yet, or one without this pool.
    pub grant: Option<PodGrant>,
    /// What the agent reported last. None: not asked, or no answer.
    pub proof: Option<GrantProof>,
    /// What the load asks of it. None: unknown, which is never zero.
    pub demand: Option<PodDemand>,
    /// What it tries to hold while the database refuses it more, which of an even division it gets first; 0 while none is refused.
    pub tries: u32,
}

/// Where in its life a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// Not bound to a node: it cannot open anything yet, and gets no share.
    Unscheduled,
    /// Bound to a node, and not being deleted.
    Running,
    /// Being deleted; its containers have not all ended. It may keep what it has, and never grows.
    Terminating,
}

/// What an agent reported, by `/status` or by its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantProof {
    /// The newest grant whose share is in force in the pooler, read back.
    pub seq: u64,
    /// Share of that grant.
    pub share: u32,
    /// Server connections open then.
    pub held: u32,
}

/// Server connections that the load asks of one pod: busy ones and waiting clients, leaks not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PodDemand {
    /// Mean of the last minute or so.
    pub mean: f64,
    /// Largest of the last half minute, second by second.
    pub peak: f64,
}

/// By which rule shares are given, and out of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharingRule {
    /// All of `max_allowed`, by demand: the agents decide the limit within the share.
    ByDemand {
        /// What the limits of all pods together are never below, as far as their shares allow.
        min_allowed: u32,
        /// What all pods together may open.
        max_allowed: u32,
    },
    /// The target, evenly but for pods that the database refuses more ([`Claimant::tries`]): limit and share are the same (`localReaction: Disabled`).
    Target {
        /// The target of the pool.
        target: u32,
        /// What all pods together may open.
        max_allowed: u32,
    },
    /// What every pod has, but floors for those that lack them: pods start and serve while automation is frozen (`paused`).
    Kept {
        /// What all pods together may open.
        max_allowed: u32,
    },
    /// The same for every pod, whatever the sum (`mode: Recommend`).
    Fixed {
        /// The limit of every pod.
        limit_per_pod: u32,
    },
}

impl SharingRule {
    /// The bound of the sum of `granted`. None with [`SharingRule::Fixed`], which bounds each pod and not the sum.
    pub const fn most(self) -> Option<u32> {
        match self {
            Self::ByDemand { max_allowed, .. } | Self::Target { max_allowed, .. } | Self::Kept { max_allowed } => {
                Some(max_allowed)
            }
            Self::Fixed { .. } => None,
        }
    }
}

/// A write of one pod's grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Index into the pods that were passed.
    pub pod: usize,
    /// What to write. Its `seq` is one more than the newest, or stays where that is the largest: whoever writes counts it on.
    pub grant: PodGrant,
    /// What the write does.
    pub move_: Move,
}

impl Write {
    /// Where it stands among other writes, of a pod whose share was `before`: floors, what makes room, the rest.
    pub(super) const fn urgency(&self, before: u32) -> u8 {
        match self.move_ {
            Move::Grow if before < self.grant.floor => 0,
            Move::Shrink | Move::Settle => 1,
            Move::Grow | Move::Refloor => 2,
        }
    }
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Move {
    /// Lowers the share. `granted` stays until the pod is proven to hold no more than the new share.
    Shrink,
    /// Lowers `granted` to the share: the pod was proven.
    Settle,
    /// Raises the share.
    Grow,
    /// Only what bounds the limit from below changes, or the first grant of a pod that has to wait.
    Refloor,
}

/// Why pods have less than their floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Every pod has its floor, or will when the plan is through.
    None,
    /// The floors of all pods exceed the whole: they were lowered so that each pod gets something.
    FloorLowered {
        /// The floor in force.
        floor: u32,
    },
    /// More pods than connections (`ScalingLimited`, reason `TooManyPods`): the youngest have none and their clients queue.
    TooManyPods {
        /// Pods without a share.
        waiting: u32,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharePlan {
    /// The writes, most urgent first.
    pub writes: Vec<Write>,
    /// The share that each pod is on its way to, in the order of the pods passed.
    pub shares: Vec<u32>,
    /// Pods whose shrink is written and not proven: their proof is awaited. Indices into the pods passed.
    pub awaited: Vec<usize>,
    /// Sum of what is counted for the pods now, before the writes.
    pub granted: u32,
    /// Whether the floors fit.
    pub shortage: Shortage,
}

/// Decides what to write now. `floor_per_pod` is what every pod may always hold; at least 1 is taken.
///
/// Pure and deterministic: the order of `pods` does not matter.
pub fn step(pods: &[Claimant], floor_per_pod: u32, rule: SharingRule) -> SharePlan {
    step_within(pods, |_| floor_per_pod, rule, GrowthRoom::Own)
}

/// Out of what the pods of a pool may grow now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrowthRoom {
    /// All that they leave themselves: the whole is theirs alone.
    Own,
    /// What a ledger has set aside for them.
    Lent {
        /// Server connections.
        free: u64,
        /// Whether more comes once pods of other pools are proven.
        more_to_come: bool,
    },
}

/// [`step`] with a floor for each pod (by index), in a pool that may share the whole with others.
pub(super) fn step_within(
    pods: &[Claimant],
    floor_of: impl Fn(usize) -> u32,
    rule: SharingRule,
    room: GrowthRoom,
) -> SharePlan {
    let order = oldest_first(pods);
    let members: Vec<Member> = order.iter().map(|&pod| Member::new(&pods[pod], floor_of(pod))).collect();
    let aim = match rule {
        SharingRule::Fixed { limit_per_pod } => Aim::fixed(&members, limit_per_pod),
        SharingRule::Target { target, max_allowed } => Aim::target(&members, max_allowed, target),
        SharingRule::Kept { max_allowed } => Aim::kept(&members, max_allowed),
        SharingRule::ByDemand { max_allowed, .. } => Aim::by_demand(&members, max_allowed),
    };
    let granted = sum(members.iter().map(|member| member.counted));
    let (free, more_to_come) = match room {
        GrowthRoom::Own => (rule.most().map_or(u64::MAX, |most| u64::from(most).saturating_sub(granted)), false),
        GrowthRoom::Lent { free, more_to_come } => (free, more_to_come),
    };

    let reached = reach(&members, &aim, free, more_to_come);
    let mut writes = writes(&members, &aim, &reached, &least::of(&members, &reached, &aim.floors, rule));
    for write in &mut writes {
        write.pod = order[write.pod];
    }
    let mut shares = vec![0; pods.len()];
    for (&pod, &share) in order.iter().zip(&aim.shares) {
        shares[pod] = share;
    }
    let mut awaited: Vec<usize> =
        order.iter().zip(&members).filter(|(_, member)| member.counted > member.share).map(|(&pod, _)| pod).collect();
    awaited.sort_unstable();
    SharePlan { writes, shares, awaited, granted: u32::try_from(granted).unwrap_or(u32::MAX), shortage: aim.shortage }
}

/// What the pods of a pool ask of a ledger, in server connections: each figure of the demand at least the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PoolNeeds {
    /// Pods that run.
    pub running: u32,
    /// One for each pod that can have any.
    pub one_each: u32,
    /// The floors.
    pub floors: u32,
    /// What the load asks for on average.
    pub demand: u32,
    /// What serves that load.
    pub need: u32,
    /// To be left free for the floors of pods that may appear.
    pub headroom: u32,
    /// What the pods may open now.
    pub share: u32,
    /// What is counted for them.
    pub counted: u32,
}

/// What the pods ask for where they may have `most` together. `floor_of`: the floor of each, by index.
pub(super) fn needs(pods: &[Claimant], floor_of: impl Fn(usize) -> u32, most: u32) -> PoolNeeds {
    let order = oldest_first(pods);
    let members: Vec<Member> = order.iter().map(|&pod| Member::new(&pods[pod], floor_of(pod))).collect();
    let claims = Claims::of(&members, most);
    let of_claims = |of: fn(&Claim) -> u32| saturated(claims.of_each.iter().map(of));
    PoolNeeds {
        running: to_u32(members.iter().filter(|member| member.phase == PodPhase::Running).count()),
        one_each: of_claims(|claim| claim.floor.min(1)),
        floors: of_claims(|claim| claim.floor),
        demand: of_claims(|claim| claim.mean),
        need: of_claims(|claim| claim.peak),
        headroom: claims.headroom(&members),
        share: saturated(members.iter().map(|member| member.share)),
        counted: saturated(members.iter().map(|member| member.counted)),
    }
}

/// The order in which pods get their floors.
fn oldest_first(pods: &[Claimant]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pods.len()).collect();
    order.sort_by_key(|&pod| (pods[pod].created_seconds, pods[pod].uid));
    order
}

/// Server connections to leave free for the floors of pods that may appear: a rolling update's default surge of 25 % of
/// the pods, rounded up as the Deployment controller does, or those that wait for a node if they are more.
pub fn headroom(running: u32, unscheduled: u32, floor: u32) -> u32 {
    running.div_ceil(4).max(unscheduled).saturating_mul(floor)
}

/// A pod with what it has. Members stand oldest first.
#[derive(Clone, Copy)]
struct Member {
    phase: PodPhase,
    /// What it may always hold, where the floors of all fit.
    floor: u32,
    demand: Option<PodDemand>,
    tries: u32,
    /// The annotation.
    grant: Option<PodGrant>,
    /// What it may open.
    share: u32,
    /// What is counted for it: the annotation, or what it was seen to hold if that is more.
    counted: u32,
    /// What would be counted once its proof is written down.
    settled: u32,
}

impl Member {
    fn new(pod: &Claimant, floor: u32) -> Self {
        let PodGrant { seq, share, granted, .. } = pod.grant.unwrap_or_default();
        let granted = granted.max(share);
        let held = pod.proof.map_or(0, |proof| proof.held);
        let proven = pod.proof.is_some_and(|proof| proof.seq >= seq && proof.share <= share && proof.held <= share);
        Self {
            phase: pod.phase,
            floor: floor.max(1),
            demand: pod.demand,
            tries: pod.tries,
            grant: pod.grant,
            share,
            counted: granted.max(held),
            settled: if proven { share } else { granted },
        }
    }

    /// True until it has got more than its floor, or something else than at first.
    fn begins(&self) -> bool {
        self.share <= self.floor && self.grant.is_none_or(|grant| grant.seq <= 1)
    }

    /// True when its load is more than its share serves: clients wait, or are about to.
    fn is_pressed(&self) -> bool {
        self.demand.is_some_and(|demand| {
            let busy = ceil(demand.mean + demand.mean.max(0.0).sqrt());
            busy.max(demand.burst().unwrap_or(0)) > self.share
        })
    }
}

impl PodDemand {
    /// What serves this load: the mean and twice its root, as for Poisson arrivals (Halfin-Whitt 1981), which, unlike the
    /// largest of a few samples, is steady; or the peak where chance does not explain it.
    fn need(self) -> u32 {
        ceil(self.mean + 2.0 * self.mean.max(0.0).sqrt()).max(self.burst().unwrap_or(0))
    }

    /// The peak, where it is further above the mean than chance takes Poisson arrivals in half a minute.
    fn burst(self) -> Option<u32> {
        let mean = self.mean.max(0.0);
        (self.peak > mean + 4.0 * mean.sqrt() + 3.0).then(|| ceil(self.peak))
    }
}

/// Where the shares are to go, member by member.
struct Aim {
    shares: Vec<u32>,
    /// The floors in force.
    floors: Vec<u32>,
    /// Left free for the floors of pods that may appear.
    reserve: u64,
    shortage: Shortage,
}

impl Aim {
    fn fixed(members: &[Member], limit: u32) -> Self {
        let share = |member: &Member| if member.phase == PodPhase::Running { limit } else { member.share };
        let floors = vec![limit; members.len()];
        Self { shares: members.iter().map(share).collect(), floors, reserve: 0, shortage: Shortage::None }
    }

    /// What each has, or its floor; who has most above its floor makes room for the floors of others.
    fn kept(members: &[Member], most: u32) -> Self {
        let Claims { of_each: claims, floors, shortage } = Claims::of(members, most);
        let mut shares: Vec<u32> =
            members.iter().zip(&claims).map(|(member, claim)| member.share.max(claim.floor)).collect();
        let mut over = sum(shares.iter().copied()).saturating_sub(u64::from(most));
        take(&mut shares, &mut over, |index| claims[index].floor, 1);
        Self { shares, floors, reserve: 0, shortage }
    }

    /// The target over the running pods, evenly; what is left over goes to those that have more already. Who is refused more by
    /// the database has what it was let in and the next one to try first: the rest is what the others hold.
    fn target(members: &[Member], whole: u32, target: u32) -> Self {
        let Claims { of_each: claims, floors, shortage } = Claims::of(members, whole);
        let mut shares: Vec<u32> = claims.iter().map(|claim| claim.floor).collect();
        let running: Vec<usize> = (0..members.len())
            .filter(|&index| members[index].phase == PodPhase::Running && claims[index].floor > 0)
            .collect();
        let floors_of_running = sum(running.iter().map(|&index| shares[index]));
        let most = u64::from(whole) + floors_of_running - sum(shares.iter().copied());
        let of_running = |of: &dyn Fn(usize) -> u32| running.iter().map(|&index| of(index)).collect::<Vec<u32>>();
        let mut division = StagedDivision::new(
            u64::from(target).clamp(floors_of_running, most),
            of_running(&|index| shares[index]),
            &of_running(&|index| members[index].share),
        );
        division.level(|pod| members[running[pod]].tries);
        division.level(|_| u32::MAX);
        let divided = division.shares;
        for (index, share) in running.into_iter().zip(divided) {
            shares[index] = share;
        }
        // what the target leaves, pods that end may keep
        let mut left = u64::from(whole) - sum(shares.iter().copied());
        for (member, share) in members.iter().zip(&mut shares) {
            if member.phase != PodPhase::Running {
                give(share, member.share, &mut left);
            }
        }
        Self { shares, floors, reserve: 0, shortage }
    }

    /// All there is, by demand; but only as many moves as somebody needs.
    fn by_demand(members: &[Member], most: u32) -> Self {
        let claims = Claims::of(members, most);
        let headroom = claims.headroom(members);
        let Claims { of_each: claims, floors, shortage } = claims;
        let ideal = divide(most, &claims, headroom);
        let (shares, reserve) = move_few(members, &claims, &ideal, most, headroom);
        Self { shares, floors, reserve, shortage }
    }
}

/// What each member claims, the floors in force, and whether the floors fit.
struct Claims {
    of_each: Vec<Claim>,
    floors: Vec<u32>,
    shortage: Shortage,
}

impl Claims {
    fn of(members: &[Member], most: u32) -> Self {
        // the oldest first, each as much as it may always hold
        let full_floor = |member: &Member| match member.phase {
            PodPhase::Running => member.floor,
            PodPhase::Unscheduled | PodPhase::Terminating => member.floor.min(member.share),
        };
        let full_floors: Vec<u32> = members.iter().map(full_floor).collect();
        let mut division = StagedDivision::new(most.into(), vec![0; members.len()], &vec![0; members.len()]);
        division.level(|index| full_floors[index]);
        let fitting = division.shares;
        let cut = fitting.iter().zip(&full_floors).filter(|(fitting, full)| fitting < full);
        let bound = cut.map(|(&fitting, _)| fitting.max(1)).min().unwrap_or(u32::MAX);
        let floors: Vec<u32> = members.iter().map(|member| member.floor.min(bound)).collect();
        let waits = |&(member, &fitting): &(&Member, &u32)| member.phase == PodPhase::Running && fitting == 0;
        let waiting = members.iter().zip(&fitting).filter(waits).count();
        let is_lowered = members.iter().any(|member| member.floor > bound);
        let shortage = match to_u32(waiting) {
            0 if is_lowered => Shortage::FloorLowered { floor: bound },
            0 => Shortage::None,
            waiting => Shortage::TooManyPods { waiting },
        };

        let typical = Typical::of(members);
        let claim = |index: usize| match fitting[index] {
            0 => Claim::default(),
            floor => claim(&members[index], [floor.min(bound), full_floors[index]], &typical),
        };
        Self { of_each: (0..members.len()).map(claim).collect(), floors, shortage }
    }

    /// Server connections to leave free for pods that may appear: with the largest of the floors, one of which they will have.
    fn headroom(&self, members: &[Member]) -> u32 {
        let count = |phase| members.iter().filter(|member| member.phase == phase).count();
        let [running, unscheduled] = [PodPhase::Running, PodPhase::Unscheduled].map(count).map(to_u32);
        headroom(running, unscheduled, self.floors.iter().copied().max().unwrap_or(0))
    }
}

/// What is known of the pods together, for those of which nothing is.
enum Typical {
    /// The mean of the demands that are known.
    Demand(PodDemand),
    /// No demand is known. What pods have stands for it.
    Share {
        /// The mean share of the pods that have begun.
        mean: f64,
        /// Whether others have yet to get their part.
        some_begin: bool,
    },
}

impl Typical {
    fn of(members: &[Member]) -> Self {
        let mean = |figures: &[f64]| figures.iter().sum::<f64>() / f64::from(to_u32(figures.len()).max(1));
        let known: Vec<f64> =
            members.iter().filter_map(|member| member.demand).map(|demand| demand.mean.max(0.0)).collect();
        if !known.is_empty() {
            return Self::Demand(PodDemand { mean: mean(&known), peak: mean(&known) });
        }
        let running = || members.iter().filter(|member| member.phase == PodPhase::Running);
        let shares: Vec<f64> = running().filter(|pod| !pod.begins()).map(|pod| pod.share.into()).collect();
        Self::Share { mean: mean(&shares).max(1.0), some_begin: running().any(Member::begins) }
    }
}

/// What a member claims, of whose floor so much fits.
fn claim(member: &Member, [floor, full_floor]: [u32; 2], typical: &Typical) -> Claim {
    let share = member.share;
    let of = |demand: PodDemand| (ceil(demand.mean), demand.need(), demand.mean);
    let (mean, peak, weight) = match (member.demand, typical) {
        (Some(demand), _) => of(demand),
        // what it has is what it is taken to need
        (None, Typical::Demand(typical)) if share >= ceil(typical.mean) => (share, share, 0.0),
        // its load will be that of the others
        (None, Typical::Demand(typical)) => (ceil(typical.mean), ceil(typical.mean), typical.mean),
        (None, Typical::Share { mean, .. }) if member.begins() => (0, 0, *mean),
        (None, Typical::Share { some_begin: true, .. }) => (0, 0, f64::from(share)),
        (None, Typical::Share { some_begin: false, .. }) => (share, share, f64::from(share)),
    };
    if member.phase == PodPhase::Running {
        Claim {
            floor,
            full_floor,
            mean: mean.max(floor),
            peak: peak.max(floor),
            weight: weigh(weight),
            held: share,
            most: u32::MAX,
        }
    } else {
        Claim {
            floor,
            full_floor,
            mean: mean.clamp(floor, share),
            peak: peak.clamp(floor, share),
            weight: 0,
            held: share,
            most: share,
        }
    }
}

/// From the shares as they are towards the ideal ones, with few moves. Returns the shares and what stays free.
fn move_few(members: &[Member], claims: &[Claim], ideal: &[u32], most: u32, headroom: u32) -> (Vec<u32>, u64) {
    let most = u64::from(most);
    let now: Vec<u32> = members.iter().map(|member| member.share).collect();

    // who is short grows to what it deserves
    let grows = |index: usize| is_short(&members[index], &claims[index], ideal[index]);
    let mut shares: Vec<u32> =
        (0..members.len()).map(|index| if grows(index) { ideal[index] } else { now[index] }).collect();
    // the room for pods to come is restored once half of it is gone
    let free = most.saturating_sub(sum(now.iter().copied()));
    let wanted = (most - sum(ideal.iter().copied())).min(u64::from(headroom));
    let restores = free * 2 < wanted && wanted * 2 >= u64::from(headroom);
    let reserve = if restores { wanted } else { free.min(wanted) };

    // a few give much of what they do not need, rather than many a little; then all down to what they deserve
    let mut over = (sum(shares.iter().copied()) + reserve).saturating_sub(most);
    take(
        &mut shares,
        &mut over,
        |index| if grows(index) { u32::MAX } else { claims[index].peak.max(ideal[index] / 4 * 3) },
        2,
    );
    take(&mut shares, &mut over, |index| ideal[index], 1);
    // what nobody has goes to those who are furthest below
    let mut left = most.saturating_sub(sum(shares.iter().copied()) + reserve);
    let mut takers: Vec<usize> = (0..members.len()).filter(|&index| shares[index] < ideal[index]).collect();
    takers.sort_by_key(|&index| Reverse(ideal[index] - shares[index]));
    for index in takers {
        give(&mut shares[index], ideal[index], &mut left);
    }
    (shares, reserve)
}

/// Takes what is `over` from those who have most above their `least`, if that is `worth` a write.
pub(super) fn take(shares: &mut [u32], over: &mut u64, least: impl Fn(usize) -> u32, worth: u32) {
    let above = |shares: &[u32], index: usize| shares[index].saturating_sub(least(index));
    let mut donors: Vec<usize> = (0..shares.len()).filter(|&index| above(shares, index) >= worth).collect();
    donors.sort_by_key(|&index| Reverse(above(shares, index)));
    for index in donors {
        let given = above(shares, index).min(u32::try_from(*over).unwrap_or(u32::MAX));
        shares[index] -= given;
        *over -= u64::from(given);
    }
}

/// True when a member's share is worth moving others for.
fn is_short(member: &Member, claim: &Claim, ideal: u32) -> bool {
    let (now, missing) = (member.share, ideal.saturating_sub(member.share));
    let far = missing >= 3 && u64::from(missing) * 5 >= u64::from(now) * 2;
    missing > 0 && (now < claim.floor || far || (member.is_pressed() && missing >= now.div_ceil(5)))
}

/// The share that each member can reach now, with `free` connections counted for nobody, and `more_to_come` from elsewhere.
fn reach(members: &[Member], aim: &Aim, mut free: u64, more_to_come: bool) -> Vec<u32> {
    // within what is counted for it anyway, growth costs nothing
    let mut shares: Vec<u32> = members
        .iter()
        .zip(&aim.shares)
        .map(|(member, &wanted)| wanted.min(member.share.max(member.counted.min(wanted))))
        .collect();
    for ((share, &wanted), &floor) in shares.iter_mut().zip(&aim.shares).zip(&aim.floors) {
        give(share, floor.min(wanted), &mut free);
    }
    let gives = |(member, &wanted): (&Member, &u32)| member.counted > member.share || wanted < member.share;
    let proofs_to_come = more_to_come || members.iter().zip(&aim.shares).any(gives);
    for pressed in [true, false] {
        for ((member, share), &wanted) in members.iter().zip(&mut shares).zip(&aim.shares) {
            if *share >= wanted || member.is_pressed() != pressed {
                continue;
            }
            let missing = u64::from(wanted - *share);
            let can = if pressed { missing.min(free) } else { missing.min(free.saturating_sub(aim.reserve)) };
            // a part is worth a write if no more is to come, or if it is a good part and clients wait
            if can == missing || !proofs_to_come || (pressed && can * 2 >= missing) {
                let mut can = can;
                free -= can;
                give(share, wanted, &mut can);
            }
        }
    }
    shares
}

/// The writes that bring the shares to `reached`, most urgent first: floors, what makes room, the rest.
fn writes(members: &[Member], aim: &Aim, reached: &[u32], least: &[u32]) -> Vec<Write> {
    let mut ranked = Vec::new();
    for (index, (member, &share)) in members.iter().zip(reached).enumerate() {
        let old = member.grant.unwrap_or_default();
        let floor = aim.floors[index].min(share);
        let least = least[index];
        let granted = if share < member.share { member.settled.max(member.share) } else { member.settled.max(share) };
        if (old.share, old.granted, old.floor, old.least) == (share, granted, floor, least) {
            continue;
        }
        let move_ = match share.cmp(&member.share) {
            Ordering::Greater => Move::Grow,
            Ordering::Less => Move::Shrink,
            Ordering::Equal if granted < old.granted => Move::Settle,
            Ordering::Equal => Move::Refloor,
        };
        let grant = PodGrant { seq: old.seq.saturating_add(1), share, granted, floor, least, paused: old.paused };
        let write = Write { pod: index, grant, move_ };
        ranked.push((write.urgency(member.share), write));
    }
    ranked.sort_by_key(|&(urgency, _)| urgency);
    ranked.into_iter().map(|(_, write)| write).collect()
}

/// Raises `share` towards `wanted` by as much as is left.
pub(super) fn give(share: &mut u32, wanted: u32, left: &mut u64) {
    let given = u64::from(wanted.saturating_sub(*share)).min(*left);
    *left -= given;
    *share += u32::try_from(given).unwrap_or(0);
}

/// Whole connections for a demand.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates; NaN becomes 0
fn ceil(demand: f64) -> u32 {
    demand.max(0.0).ceil() as u32
}

/// Weight of a mean demand in thousandths: integers divide the same everywhere. A quarter of a connection more for everyone,
/// so that an idle pod gets a little and two idle ones get the same.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates; NaN becomes 0
fn weigh(mean: f64) -> u64 {
    const IDLE: u64 = 250;
    ((mean.clamp(0.0, 1e9) * 1000.0) as u64) + IDLE
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn sum(shares: impl Iterator<Item = u32>) -> u64 {
    shares.map(u64::from).sum()
}

fn saturated(shares: impl Iterator<Item = u32>) -> u32 {
    u32::try_from(sum(shares)).unwrap_or(u32::MAX)
}
