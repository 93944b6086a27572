use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use super::*;

const fn grant(seq: u64, share: u32, granted: u32) -> PodGrant {
    PodGrant { seq, share, granted, floor: 1, least: 0, paused: false }
}

fn pod(uid: &str, grant: Option<PodGrant>, demand: Option<f64>) -> Claimant<'_> {
    let demand = demand.map(|demand| PodDemand { mean: demand, peak: demand });
    Claimant { uid, created_seconds: 0, phase: PodPhase::Running, grant, proof: None, demand, tries: 0 }
}

fn by_demand(max_allowed: u32) -> SharingRule {
    SharingRule::ByDemand { min_allowed: 0, max_allowed }
}

/// A small world of pods that do what they are told at once: writes land, agents apply and report.
struct Quiet<'a> {
    pods: Vec<Claimant<'a>>,
    writes: usize,
}

impl<'a> Quiet<'a> {
    fn new(pods: impl IntoIterator<Item = Claimant<'a>>) -> Self {
        Self { pods: pods.into_iter().collect(), writes: 0 }
    }

    /// One tick: plans until nothing is left to write, with proofs between.
    fn tick(&mut self, floor: u32, rule: SharingRule) -> SharePlan {
        for _ in 0..20 {
            let plan = step(&self.pods, floor, rule);
            if plan.writes.is_empty() {
                return plan;
            }
            self.writes += plan.writes.len();
            for Write { pod, grant, .. } in plan.writes {
                self.pods[pod].grant = Some(grant);
                self.pods[pod].proof = Some(GrantProof { seq: grant.seq, share: grant.share, held: grant.share });
            }
        }
        panic!("no rest after 20 rounds: {:?}", self.pods);
    }

    fn shares(&self) -> Vec<u32> {
        self.pods.iter().map(|pod| pod.grant.map_or(0, |grant| grant.share)).collect()
    }

    fn demand(&mut self, pod: usize, demand: f64) {
        self.pods[pod].demand = Some(PodDemand { mean: demand, peak: demand });
    }
}

#[test]
fn two_pods_with_load_nine_to_one_share_twenty_accordingly_within_two_ticks() {
    for scale in [0.1, 0.5, 1.0, 1.5, 2.0] {
        let even = Some(grant(1, 10, 10));
        let mut world = Quiet::new([pod("busy", even, Some(9.0 * scale)), pod("idle", even, Some(scale))]);
        // first tick: the shrink alone can be written
        let plan = step(&world.pods, 1, by_demand(20));
        assert_eq!(plan.writes.iter().map(|write| (write.pod, write.move_)).collect::<Vec<_>>(), [(1, Move::Shrink)]);
        let Write { grant, .. } = plan.writes[0];
        assert_eq!(grant.granted, 10);
        world.pods[1].grant = Some(grant);
        world.pods[1].proof = Some(GrantProof { seq: grant.seq, share: grant.share, held: 1 });
        // second tick: the proof is in
        world.tick(1, by_demand(20));
        assert!(world.shares()[0] >= 14, "load {}: {:?}", 9.0 * scale, world.shares());
    }
}

/// The least limits of the pods that run.
fn leasts(world: &Quiet<'_>) -> Vec<u32> {
    let running = world.pods.iter().filter(|pod| pod.phase == PodPhase::Running);
    running.filter_map(|pod| pod.grant).map(|grant| grant.floor.max(grant.least)).collect()
}

#[test]
fn the_limits_of_all_pods_together_are_never_below_the_least_of_the_pool() {
    let rule = |min_allowed| SharingRule::ByDemand { min_allowed, max_allowed: 60 };
    let mut world = Quiet::new(["a", "b", "c"].map(|uid| pod(uid, None, Some(0.1))));
    world.tick(1, rule(20));
    assert_eq!(leasts(&world), [7, 7, 7]);
    assert!(
        world.pods.iter().all(|pod| pod.grant.is_some_and(|grant| grant.floor == 1)),
        "no more is kept open for it"
    );
    world.tick(1, rule(60));
    assert_eq!(leasts(&world), world.shares(), "never more than the share");
    world.tick(1, rule(3));
    assert!(
        world.pods.iter().all(|pod| pod.grant.is_some_and(|grant| grant.least == 0)),
        "what the floors are is not said twice"
    );
}

#[test]
fn what_a_pod_with_a_small_share_cannot_hold_of_the_least_the_others_do() {
    let rule = SharingRule::ByDemand { min_allowed: 20, max_allowed: 24 };
    let shares = [2, 2, 20].map(|share| grant(1, share, share));
    let mut world = Quiet::new(["a", "b", "c"].into_iter().zip(shares).map(|(uid, grant)| pod(uid, Some(grant), None)));
    world.tick(1, rule);
    assert!(leasts(&world).iter().sum::<u32>() >= 20, "{:?}", world.pods);
}

#[test]
fn a_rolling_update_rewrites_the_least_of_no_pod_that_stays() {
    let uids: Vec<String> = (0..26).map(|uid| format!("{uid:02}")).collect();
    let rule = SharingRule::ByDemand { min_allowed: 50, max_allowed: 400 };
    let mut world = Quiet::new(uids[..10].iter().map(|uid| pod(uid, None, Some(2.0))));
    world.tick(1, rule);
    let of = |world: &Quiet<'_>, uid: &str| {
        let pod = world.pods.iter().find(|pod| pod.uid == uid).expect("it is there");
        pod.grant.expect("granted").least
    };
    let first = of(&world, "09");
    let mut told = BTreeMap::new();
    for (age, [new, old]) in (1..).zip((10..19).map(|new| [new, new - 10])) {
        world.pods.push(Claimant { created_seconds: age, ..pod(&uids[new], None, Some(2.0)) });
        world.tick(1, rule);
        told.entry(uids[new].clone()).or_insert_with(|| of(&world, &uids[new]));
        world.pods.retain(|pod| pod.uid != uids[old]);
        world.tick(1, rule);
        assert!(leasts(&world).iter().sum::<u32>() >= 50, "{:?}", world.pods);
    }
    assert_eq!(of(&world, "09"), first);
    for (uid, least) in told {
        assert_eq!(of(&world, &uid), least, "{uid}");
    }
}

#[test]
fn while_the_pool_is_paused_the_least_stays() {
    let mut world = Quiet::new(["a", "b"].map(|uid| pod(uid, None, Some(1.0))));
    world.tick(1, SharingRule::ByDemand { min_allowed: 20, max_allowed: 40 });
    let before = leasts(&world);
    world.tick(1, SharingRule::Kept { max_allowed: 40 });
    assert_eq!((before.iter().sum::<u32>(), leasts(&world)), (20, before));
}

#[test]
fn where_limit_and_share_are_the_same_nothing_else_bounds_the_limit_from_below() {
    let mut world = Quiet::new(["a", "b"].map(|uid| pod(uid, None, Some(1.0))));
    world.tick(1, SharingRule::ByDemand { min_allowed: 20, max_allowed: 40 });
    for rule in [SharingRule::Target { target: 20, max_allowed: 40 }, SharingRule::Fixed { limit_per_pod: 4 }] {
        world.tick(1, rule);
        assert!(world.pods.iter().all(|pod| pod.grant.is_some_and(|grant| grant.least == 0)), "{rule:?}");
    }
}

#[test]
fn when_prometheus_stops_the_shares_stay() {
    let mut world = Quiet::new([pod("busy", None, Some(9.0)), pod("idle", None, Some(1.0))]);
    world.tick(1, by_demand(20));
    let before = world.shares();
    for pod in &mut world.pods {
        pod.demand = None;
    }
    world.writes = 0;
    world.tick(1, by_demand(20));
    assert_eq!((world.shares(), world.writes), (before, 0));
}

#[test]
fn a_new_pod_gets_its_floor_out_of_the_headroom_at_once() {
    let mut world = Quiet::new(["a", "b", "c"].map(|uid| pod(uid, None, Some(2.0))));
    world.tick(1, by_demand(30));
    world.pods.push(Claimant { created_seconds: 100, ..pod("new", None, None) });
    let plan = step(&world.pods, 1, by_demand(30));
    let first = plan.writes[0];
    assert_eq!((first.pod, first.move_), (3, Move::Grow));
    assert!(first.grant.share >= 1);
    world.tick(1, by_demand(30));
    assert!(world.shares()[3] >= 5, "and then its part: {:?}", world.shares());
}

#[test]
fn a_new_pod_gets_its_part_after_proofs_when_demand_left_no_headroom() {
    let mut world = Quiet::new(["a", "b"].map(|uid| pod(uid, None, Some(30.0))));
    world.tick(1, by_demand(10));
    assert_eq!(world.shares(), [5, 5]);
    world.pods.push(Claimant { created_seconds: 100, ..pod("new", None, None) });
    world.tick(1, by_demand(10));
    assert_eq!(world.shares().iter().sum::<u32>(), 10);
    assert!(world.shares()[2] >= 3, "{:?}", world.shares());
}

#[test]
fn a_pod_that_began_with_its_floor_gets_what_others_use_before_its_own_load_is_known() {
    let mut world = Quiet::new(["a", "b", "c", "d"].map(|uid| pod(uid, None, Some(3.0))));
    world.tick(1, by_demand(40));
    // the annotation of its first moment: nothing but the floor was free
    world.pods.push(Claimant { created_seconds: 100, ..pod("new", Some(grant(1, 1, 1)), None) });
    world.tick(1, by_demand(40));
    assert!(world.shares()[4] > 3, "{:?}", world.shares());
}

#[test]
fn pods_that_begin_one_after_the_other_each_get_a_good_part_before_any_load_is_known() {
    let mut world = Quiet::new([]);
    for (age, uid) in (0..).zip(["a", "b", "c"]) {
        world.pods.push(Claimant { created_seconds: age, ..pod(uid, None, None) });
        world.tick(1, by_demand(60));
    }
    assert!(world.shares().iter().all(|&share| share >= 10), "{:?}", world.shares());
}

#[test]
fn a_rolling_update_while_prometheus_is_down_starves_no_pod() {
    let uids: Vec<String> = (0..12).map(|uid| format!("{uid:02}")).collect();
    let mut world = Quiet::new(uids[..6].iter().map(|uid| pod(uid, None, Some(3.0))));
    world.tick(1, by_demand(60));
    for pod in &mut world.pods {
        pod.demand = None;
    }
    for (age, uid) in (1..).zip(&uids[6..]) {
        world.pods.push(Claimant { created_seconds: age, ..pod(uid, None, None) });
        world.tick(1, by_demand(60));
        world.pods[0].phase = PodPhase::Terminating;
        world.tick(1, by_demand(60));
        world.pods.remove(0);
        world.tick(1, by_demand(60));
    }
    assert!(world.shares().iter().all(|&share| share >= 6), "{:?}", world.shares());
}

#[test]
fn a_pod_whose_figures_are_lost_keeps_what_it_has_and_no_more() {
    let mut world = Quiet::new(["a", "b", "c"].map(|uid| pod(uid, None, Some(5.0))));
    world.tick(1, by_demand(40));
    let before = world.shares();
    world.pods[1].demand = None;
    world.writes = 0;
    world.tick(1, by_demand(40));
    assert_eq!((world.shares(), world.writes), (before, 0));
}

#[test]
fn more_pods_than_connections_leaves_the_youngest_without_and_says_so() {
    let mut world = Quiet::new((0..5).map(|age| Claimant {
        created_seconds: 100 - age,
        ..pod(["e", "d", "c", "b", "a"][usize::try_from(age).unwrap()], None, None)
    }));
    let plan = world.tick(4, by_demand(3));
    assert_eq!(plan.shortage, Shortage::TooManyPods { waiting: 2 });
    assert_eq!(world.shares(), [0, 0, 1, 1, 1], "the oldest were passed last");
}

#[test]
fn floors_that_do_not_fit_are_lowered_for_everyone() {
    let mut world = Quiet::new(["a", "b", "c"].map(|uid| pod(uid, None, None)));
    let plan = world.tick(4, by_demand(7));
    assert_eq!(plan.shortage, Shortage::FloorLowered { floor: 2 });
    assert!(world.shares().iter().all(|&share| share >= 2));
}

#[test]
fn a_lowered_whole_shrinks_at_once_and_grows_nobody() {
    let mut world = Quiet::new([pod("a", None, Some(9.0)), pod("b", None, Some(1.0))]);
    world.tick(1, by_demand(20));
    let plan = step(&world.pods, 1, by_demand(6));
    assert!(!plan.writes.is_empty());
    assert!(plan.writes.iter().all(|write| write.move_ == Move::Shrink), "{:?}", plan.writes);
    world.tick(1, by_demand(6));
    assert_eq!(world.pods.iter().map(|pod| pod.grant.unwrap().granted).sum::<u32>(), 6);
}

#[test]
fn a_terminating_pod_is_counted_and_never_grows() {
    let mut world = Quiet::new([pod("old", None, Some(5.0)), pod("new", None, Some(5.0))]);
    world.tick(1, by_demand(12));
    let share = world.shares()[0];
    world.pods[0].phase = PodPhase::Terminating;
    world.demand(0, 50.0);
    world.demand(1, 50.0);
    world.tick(1, by_demand(12));
    assert!(world.shares()[0] <= share && world.shares()[0] >= 1);
    assert_eq!(world.shares().iter().sum::<u32>(), 12);
    world.pods.remove(0);
    world.tick(1, by_demand(12));
    assert_eq!(world.shares(), [12], "its part returns when it is gone");
}

#[test]
fn an_unscheduled_pod_gets_nothing_and_is_kept_room_for() {
    let mut world = Quiet::new([pod("a", None, Some(1.0))]);
    world.pods.extend(["b", "c", "d"].map(|uid| Claimant { phase: PodPhase::Unscheduled, ..pod(uid, None, None) }));
    let plan = world.tick(2, by_demand(20));
    assert_eq!(world.shares(), [14, 0, 0, 0]);
    assert_eq!(plan.granted, 14);
}

#[test]
fn a_proof_of_an_older_grant_or_of_more_connections_proves_nothing() {
    let shrunk = Some(grant(5, 4, 10));
    for proof in [
        GrantProof { seq: 4, share: 4, held: 1 },
        GrantProof { seq: 5, share: 4, held: 5 },
        GrantProof { seq: 6, share: 9, held: 1 },
    ] {
        let pods = [
            Claimant { proof: Some(proof), ..pod("a", shrunk, Some(4.0)) },
            pod("b", Some(grant(1, 10, 10)), Some(16.0)),
        ];
        let plan = step(&pods, 1, by_demand(20));
        assert!(plan.writes.iter().all(|write| write.move_ == Move::Shrink), "{proof:?}: {:?}", plan.writes);
        assert_eq!(plan.awaited, [0]);
    }
    let proof = Some(GrantProof { seq: 5, share: 4, held: 4 });
    let pods = [Claimant { proof, ..pod("a", shrunk, Some(4.0)) }, pod("b", Some(grant(1, 10, 10)), Some(16.0))];
    assert_eq!(step(&pods, 1, by_demand(20)).writes[0].grant, grant(6, 4, 4));
}

#[test]
fn with_the_target_divided_the_shares_sum_up_to_it() {
    let rule = |target| SharingRule::Target { target, max_allowed: 20 };
    let mut world = Quiet::new(["a", "b", "c"].map(|uid| pod(uid, None, None)));
    for (target, shares) in [(11, [4, 4, 3]), (10, [4, 3, 3]), (12, [4, 4, 4]), (1, [1, 1, 1]), (50, [7, 7, 6])] {
        world.tick(1, rule(target));
        assert_eq!(world.shares(), shares, "target {target}");
    }
}

#[test]
fn of_the_target_a_pod_that_is_refused_more_gets_first_what_it_tries_to_hold() {
    let rule = |target| SharingRule::Target { target, max_allowed: 20 };
    let mut world = Quiet::new(["a", "b", "c"].map(|uid| pod(uid, None, None)));
    world.pods[1].tries = 9;
    for (target, shares) in [(14, [3, 9, 2]), (12, [2, 9, 1]), (30, [6, 9, 5]), (5, [1, 3, 1])] {
        world.tick(1, rule(target));
        assert_eq!(world.shares(), shares, "target {target}");
    }
    world.pods[1].tries = 2;
    world.tick(1, rule(12));
    assert_eq!(world.shares(), [4, 4, 4], "no more than evenly is no less either");
}

#[test]
fn of_the_target_two_pods_that_are_refused_more_get_the_same_where_it_is_not_enough_for_both() {
    let mut world = Quiet::new(["a", "b", "c"].map(|uid| pod(uid, None, None)));
    for refused in [0, 2] {
        world.pods[refused].tries = 9;
    }
    world.tick(1, SharingRule::Target { target: 14, max_allowed: 20 });
    assert_eq!(world.shares(), [7, 1, 6]);
}

#[test]
fn a_pod_with_a_long_queue_takes_nothing_from_those_that_need_less_than_their_part() {
    let uids: Vec<String> = (0..10).map(|uid| uid.to_string()).collect();
    let mut world = Quiet::new(uids.iter().map(|uid| pod(uid, None, Some(4.0))));
    world.demand(0, 400.0);
    world.tick(1, by_demand(60));
    assert_eq!(world.shares(), [24, 4, 4, 4, 4, 4, 4, 4, 4, 4]);
}

#[test]
fn where_what_serves_the_load_does_not_fit_each_lacks_of_it_in_proportion() {
    // 16 and 4 by 1 are asked for on average, 24 and 4 by 3 serve that
    let mut world = Quiet::new(
        [("a", 16.0), ("b", 1.0), ("c", 1.0), ("d", 1.0), ("e", 1.0)].map(|(uid, demand)| pod(uid, None, Some(demand))),
    );
    world.tick(1, by_demand(28));
    assert_eq!(world.shares(), [20, 2, 2, 2, 2]);
}

// ---- what pods are entitled to

/// A way to divide: so much, over such claims, with room for pods that may appear.
type Divider = fn(u32, &[Claim], u32) -> Vec<u32>;

/// The rules that a way to divide breaks over these pods, whatever there is to divide. One of them runs; the floors differ, `floor` is the least.
fn broken_rules(pods: &[Claimant], floor: u32, divide: Divider) -> BTreeSet<&'static str> {
    let floor_of = |pod: usize| floor + [0, 1, 3][pod % 3];
    let members: Vec<Member> =
        oldest_first(pods).into_iter().map(|pod| Member::new(&pods[pod], floor_of(pod))).collect();
    let claiming = members.iter().filter(|member| member.phase == PodPhase::Running || member.share > 0).count();
    let mut broken = BTreeSet::new();
    let mut before = vec![0; members.len()];
    for whole in 0..=needs(pods, floor_of, u32::MAX).need + 25 {
        let claims = Claims::of(&members, whole);
        let headroom = claims.headroom(&members);
        let claims = claims.of_each;
        let has = divide(whole, &claims, headroom);
        let each = || members.iter().zip(&claims).zip(has.iter().copied());
        let mut rule = |rule, holds: bool| {
            if !holds {
                broken.insert(rule);
            }
        };
        let needed: u32 = claims.iter().map(|claim| claim.peak.max(claim.full_floor)).sum();
        let set_aside = whole.saturating_sub(needed).min(headroom);
        rule("sums are exact", has.iter().sum::<u32>() == whole - set_aside);
        rule("more lowers nobody", before.iter().zip(&has).all(|(before, has)| before <= has));
        rule("floors first", each().all(|((_, claim), has)| has >= claim.floor));
        rule(
            "nobody has nothing by accident",
            to_u32(claiming) > whole || each().all(|((member, _), has)| has > 0 || member.phase != PodPhase::Running),
        );
        rule(
            "who ends gets no more",
            each().all(|((member, _), has)| member.phase == PodPhase::Running || has <= member.share),
        );
        for (index, ((_, claim), had)) in each().enumerate() {
            for ((_, other), has) in each().take(index) {
                let are_equal = Claim { held: 0, ..*claim } == Claim { held: 0, ..*other };
                rule("equal ones differ by one at most", !are_equal || has.abs_diff(had) <= 1);
            }
            for ((_, other), has) in each().filter(|_| had < claim.mean) {
                rule("max-min", has <= had + 1 || has <= other.full_floor);
            }
        }
        before = has;
    }
    broken
}

/// Ways to divide that somebody could take for right, and the rule that each of them breaks.
mod wrong {
    use super::*;

    /// In proportion to the demand, by the largest remainder.
    pub fn largest_remainder(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
        let mut has: Vec<u32> = claims.iter().map(|claim| claim.floor).collect();
        let left = u64::from(whole - has.iter().sum::<u32>()).saturating_sub(headroom.into());
        let sum: u64 = claims.iter().map(|claim| claim.weight).sum();
        let exact = |claim: &Claim| left * claim.weight;
        let part = |claim| u32::try_from(exact(claim).checked_div(sum).unwrap_or(0)).expect("small");
        for (has, claim) in has.iter_mut().zip(claims) {
            *has += part(claim);
        }
        let missing = left - claims.iter().map(|claim| u64::from(part(claim))).sum::<u64>();
        let mut order: Vec<usize> = (0..claims.len()).collect();
        order.sort_by_key(|&index| Reverse(exact(&claims[index]).checked_rem(sum)));
        for index in order.into_iter().take(usize::try_from(missing).expect("small")) {
            has[index] += 1;
        }
        has
    }

    /// The right way with other claims.
    fn with(whole: u32, claims: &[Claim], headroom: u32, change: impl Fn(&mut Claim)) -> Vec<u32> {
        let mut claims = claims.to_vec();
        claims.iter_mut().for_each(change);
        divide(whole, &claims, headroom)
    }

    pub fn without_floors(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
        with(whole, claims, headroom, |claim| (claim.floor, claim.full_floor) = (0, 0))
    }

    /// Whoever asks for more gets more.
    pub fn without_parts(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
        with(whole, claims, headroom, |claim| (claim.mean, claim.peak) = (0, 0))
    }

    pub fn without_bounds(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
        with(whole, claims, headroom, |claim| {
            (claim.most, claim.weight) = (u32::MAX, claim.weight.max(1_000));
        })
    }

    /// What division leaves over goes to nobody.
    pub fn rounded_down(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
        let odd: u32 = claims.iter().map(|claim| claim.floor).sum::<u32>().abs_diff(whole) & 1;
        divide(whole - odd, claims, headroom)
    }

    /// The first gets it.
    pub fn unequal(whole: u32, claims: &[Claim], headroom: u32) -> Vec<u32> {
        let mut has = divide(whole, claims, headroom);
        for index in 1..has.len() {
            if has[index] > claims[index].floor {
                has[index] -= 1;
                has[0] += 1;
            }
        }
        has
    }
}

/// Pods in any state, as numbers: phase, share, demand, and whether their first grant is their last so far.
fn any_pods() -> impl Strategy<Value = Vec<(u8, u32, Option<u8>, bool)>> {
    let demand = proptest::option::weighted(0.8, prop_oneof![3 => 0..16_u8, 1 => 0..80_u8]);
    proptest::collection::vec((0..6_u8, prop_oneof![3 => 0..4_u32, 2 => 0..15_u32], demand, any::<bool>()), 1..9)
}

fn claimants<'a>(uids: &'a [String], numbers: &[(u8, u32, Option<u8>, bool)]) -> Vec<Claimant<'a>> {
    let pods = uids.iter().zip(numbers).enumerate();
    pods.map(|(index, (uid, &(phase, share, demand, begins)))| Claimant {
        phase: match phase {
            0 if index > 0 => PodPhase::Unscheduled,
            1 if index > 0 => PodPhase::Terminating,
            _ => PodPhase::Running,
        },
        created_seconds: i64::from(demand.unwrap_or(0) % 3),
        ..pod(uid, Some(grant(if begins { 1 } else { 2 }, share, share)), demand.map(|halves| f64::from(halves) / 2.0))
    })
    .collect()
}

fn uids() -> Vec<String> {
    (0..9).map(|uid| uid.to_string()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_of_the_division_holds_whatever_there_is(numbers in any_pods(), floor in 1..5_u32) {
        prop_assert_eq!(broken_rules(&claimants(&uids(), &numbers), floor, divide), BTreeSet::new());
    }

    #[test]
    fn a_larger_target_lowers_nobody_and_the_sum_is_exact(
        numbers in any_pods(), tries in proptest::collection::vec(0..12_u32, 9), floor in 1..5_u32, whole in 1..60_u32,
    ) {
        let uids = uids();
        let mut pods = claimants(&uids, &numbers);
        for (pod, tries) in pods.iter_mut().zip(tries) {
            (pod.phase, pod.tries) = (PodPhase::Running, tries);
        }
        let mut before = vec![0; pods.len()];
        for target in 0..=whole {
            let plan = step(&pods, floor, SharingRule::Target { target, max_allowed: whole });
            prop_assert!(before.iter().zip(&plan.shares).all(|(before, share)| before <= share), "{target} of {whole}");
            let floors: u32 = Claims::of(&pods.iter().map(|pod| Member::new(pod, floor)).collect::<Vec<_>>(), whole)
                .of_each
                .iter()
                .map(|claim| claim.floor)
                .sum();
            prop_assert_eq!(plan.shares.iter().sum::<u32>(), target.max(floors));
            before = plan.shares;
        }
    }

    #[test]
    fn where_more_becomes_to_divide_no_pod_that_has_its_part_loses_any(
        demands in proptest::collection::vec(0..60_u8, 1..9), floor in 1..4_u32, whole in 1..80_u32, more in 1..30_u32,
    ) {
        let uids = uids();
        let mut world = Quiet::new(uids.iter().zip(&demands).map(|(uid, &halves)| pod(uid, None, Some(f64::from(halves) / 2.0))));
        world.tick(floor, by_demand(whole));
        let before = world.shares();
        let plan = step(&world.pods, floor, by_demand(whole + more));
        prop_assert!(before.iter().zip(&plan.shares).all(|(before, share)| before <= share), "{before:?} {:?}", plan.shares);
        world.tick(floor, by_demand(whole + more));
        let after = world.shares();
        prop_assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "{before:?} {after:?}");
    }

    #[test]
    fn pods_give_only_to_somebody_who_is_short_or_to_room_for_newcomers(
        demands in proptest::collection::vec((0..40_u8, 0..40_u8), 1..9), floor in 1..4_u32, whole in 1..80_u32,
    ) {
        let uids = uids();
        let mut world = Quiet::new(uids.iter().zip(&demands).map(|(uid, &(halves, _))| pod(uid, None, Some(f64::from(halves) / 2.0))));
        world.tick(floor, by_demand(whole));
        for (index, &(_, halves)) in demands.iter().enumerate() {
            world.demand(index, f64::from(halves) / 2.0);
        }
        let before = world.shares();
        let SharePlan { shares, .. } = step(&world.pods, floor, by_demand(whole));
        let given: u32 = before.iter().zip(&shares).map(|(before, share)| before.saturating_sub(*share)).sum();
        let got: u32 = before.iter().zip(&shares).map(|(before, share)| share.saturating_sub(*before)).sum();
        let room = headroom(to_u32(demands.len()), 0, floor);
        prop_assert!(given <= got + room, "{before:?} {shares:?}");
        for ((pod, &before), &share) in world.pods.iter().zip(&before).zip(&shares) {
            let PodDemand { mean, .. } = pod.demand.expect("known");
            let is_pressed = mean + mean.sqrt() > f64::from(before);
            let is_far = share >= before + 3 && share * 5 >= before * 7;
            prop_assert!(given == 0 || share <= before || is_pressed || is_far || before < floor, "{before} to {share}: {pod:?}");
        }
    }
}

#[test]
fn ways_to_divide_that_break_a_rule_are_found_by_the_rules() {
    let mut runner = TestRunner::deterministic();
    let mut any_problem = || (any_pods(), 1..5_u32).new_tree(&mut runner).expect("nothing is left out").current();
    let uids = uids();
    let problems: Vec<(Vec<Claimant>, u32)> =
        (0..300).map(|_| any_problem()).map(|(numbers, floor)| (claimants(&uids, &numbers), floor)).collect();
    let wrong: [(Divider, &str); 6] = [
        (wrong::largest_remainder, "more lowers nobody"),
        (wrong::without_floors, "floors first"),
        (wrong::without_parts, "max-min"),
        (wrong::without_bounds, "who ends gets no more"),
        (wrong::rounded_down, "sums are exact"),
        (wrong::unequal, "equal ones differ by one at most"),
    ];
    for (divide, rule) in wrong {
        let found = problems.iter().filter(|(pods, floor)| broken_rules(pods, *floor, divide).contains(rule)).count();
        assert!(found > 0, "none of {} problems shows that {rule:?} is broken", problems.len());
    }
    assert!(problems.iter().all(|(pods, floor)| broken_rules(pods, *floor, divide).is_empty()));
}

#[test]
fn a_raised_target_is_granted_without_waiting_for_a_proof() {
    let mut world = Quiet::new(["a", "b"].map(|uid| pod(uid, None, None)));
    world.tick(1, SharingRule::Target { target: 8, max_allowed: 20 });
    let plan = step(&world.pods, 1, SharingRule::Target { target: 12, max_allowed: 20 });
    assert_eq!(
        plan.writes.iter().map(|write| (write.grant.share, write.grant.granted)).collect::<Vec<_>>(),
        [(6, 6); 2]
    );
}

#[test]
fn while_frozen_what_runs_keeps_its_share_and_what_starts_gets_its_floor() {
    let mut world = Quiet::new(["a", "b"].map(|uid| pod(uid, None, Some(3.0))));
    world.tick(2, by_demand(20));
    let before = world.shares();
    world.demand(0, 30.0);
    world.tick(2, SharingRule::Kept { max_allowed: 20 });
    assert_eq!(world.shares(), before, "frozen");
    for uid in ["c", "d", "e"] {
        world.pods.push(Claimant { created_seconds: 9, ..pod(uid, None, None) });
    }
    world.tick(2, SharingRule::Kept { max_allowed: 20 });
    assert_eq!(world.shares()[2..], [2, 2, 2]);
    assert_eq!(world.shares().iter().sum::<u32>(), 20);
}

#[test]
fn recommend_gives_every_pod_its_fixed_limit_as_floor_and_share() {
    let mut world = Quiet::new(["a", "b"].map(|uid| pod(uid, None, Some(90.0))));
    world.tick(1, SharingRule::Fixed { limit_per_pod: 8 });
    assert!(
        world
            .pods
            .iter()
            .all(|pod| pod.grant == Some(PodGrant { seq: 1, share: 8, granted: 8, floor: 8, least: 0, paused: false }))
    );
}

/// Uniform numbers in 0..1, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 33).unwrap()) / f64::from(1_u32 << 31)
    }

    /// Knuth's Poisson numbers.
    fn poisson(&mut self, mean: f64) -> f64 {
        let (mut product, mut count) = (self.next(), 0.0);
        while product > (-mean).exp() {
            product *= self.next();
            count += 1.0;
        }
        count
    }
}

#[test]
fn an_hour_of_steady_poisson_load_moves_shares_seldom() {
    // busy connections of each second are Poisson; transactions of 40 ms, so the mean of 15 s is good to a few percent
    let mut random = Random(1);
    let uids: Vec<String> = (0..10).map(|uid| uid.to_string()).collect();
    for (mean, whole, most_writes) in [(5.0, 100, 120), (0.5, 30, 30), (7.5, 100, 60), (9.5, 100, 60), (20.0, 100, 60)]
    {
        let mut world = Quiet::new(uids.iter().map(|uid| pod(uid, None, Some(mean))));
        world.tick(1, by_demand(whole));
        world.writes = 0;
        for _ in 0..240 {
            for pod in &mut world.pods {
                let seconds: Vec<f64> = (0..30).map(|_| random.poisson(mean)).collect();
                let gauss = (0..12).map(|_| random.next()).sum::<f64>() - 6.0;
                let near = mean + gauss * (2.0 * mean * 0.04 / 15.0).sqrt();
                pod.demand = Some(PodDemand { mean: near, peak: seconds.into_iter().fold(0.0, f64::max) });
            }
            world.tick(1, by_demand(whole));
        }
        println!("mean {mean} on each of ten pods, {whole} to divide: {} writes an hour", world.writes);
        assert!(world.writes <= most_writes, "mean {mean}: {} writes", world.writes);
    }
}

#[test]
fn a_rolling_update_costs_a_few_writes_per_pod() {
    let uids: Vec<String> = (0..40).map(|uid| format!("{uid:02}")).collect();
    let mut world = Quiet::new(uids[..20].iter().map(|uid| pod(uid, None, Some(3.0))));
    world.tick(1, by_demand(120));
    world.writes = 0;
    for (age, uid) in (1..).zip(&uids[20..]) {
        world.pods.push(Claimant { created_seconds: age, ..pod(uid, None, None) });
        world.tick(1, by_demand(120));
        let newest = world.pods.len() - 1;
        world.demand(newest, 3.0);
        world.pods[0].phase = PodPhase::Terminating;
        world.demand(0, 0.0);
        world.tick(1, by_demand(120));
        world.pods.remove(0);
        world.tick(1, by_demand(120));
    }
    println!("{} writes for 20 pods replaced", world.writes);
    // all there is is needed: what a pod begins with, others give, and get it back when the old pod has ended
    assert!(world.writes <= 20 * 14, "{} writes", world.writes);
    assert!(world.shares().iter().all(|&share| share >= 3), "{:?}", world.shares());
}

// ---- a world that misbehaves

#[derive(Clone, Debug)]
enum Happening {
    Arrives {
        unscheduled: bool,
    },
    IsScheduled(usize),
    BeginsToEnd(usize),
    Ends(usize),
    Demands(usize, Option<(u8, u8)>),
    /// The caller plans; the writes whose bit is set happen, backwards if told.
    Plans {
        written: u64,
        backwards: bool,
    },
    /// The kubelet shows the newest grant to the agent.
    Projects(usize),
    /// The agent opens or closes connections within what it was told last, and makes a report.
    Works(usize, u8),
    /// The database refuses it more than this, or at 0 no longer.
    IsRefused(usize, u8),
    /// A report arrives, maybe late; it stays under way and may arrive again.
    Reports(usize),
    LosesReports,
    LeaderRestarts,
    WholeBecomes(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => any::<bool>().prop_map(|unscheduled| Happening::Arrives { unscheduled }),
        1 => any::<usize>().prop_map(Happening::IsScheduled),
        1 => any::<usize>().prop_map(Happening::BeginsToEnd),
        1 => any::<usize>().prop_map(Happening::Ends),
        4 => (any::<usize>(), proptest::option::of((0..40_u8, 0..40_u8))).prop_map(|(pod, demand)| Happening::Demands(pod, demand)),
        8 => (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(a, b, backwards)| Happening::Plans { written: a | b, backwards }),
        6 => any::<usize>().prop_map(Happening::Projects),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(pod, held)| Happening::Works(pod, held)),
        1 => (any::<usize>(), 0..30_u8).prop_map(|(pod, tries)| Happening::IsRefused(pod, tries)),
        6 => any::<usize>().prop_map(Happening::Reports),
        1 => Just(Happening::LosesReports),
        1 => Just(Happening::LeaderRestarts),
        1 => (1..60_u8).prop_map(Happening::WholeBecomes),
    ]
}

#[derive(Clone, Debug, Default)]
struct RealPod {
    phase: Option<PodPhase>,
    created: i64,
    /// The annotation.
    grant: Option<PodGrant>,
    /// What the agent was told last and put into force.
    applied: PodGrant,
    held: u32,
    demand: Option<PodDemand>,
    tries: u32,
    /// What the leader heard last.
    proof: Option<GrantProof>,
    under_way: Vec<GrantProof>,
}

#[derive(Debug, Default)]
struct World {
    pods: BTreeMap<String, RealPod>,
    born: i64,
}

impl World {
    fn uid(&self, pod: usize) -> Option<String> {
        self.pods.keys().nth(pod.checked_rem(self.pods.len())?).cloned()
    }

    fn pod(&mut self, pod: usize) -> Option<&mut RealPod> {
        let uid = self.uid(pod)?;
        self.pods.get_mut(&uid)
    }

    fn seen(&self) -> Vec<Claimant<'_>> {
        self.pods
            .iter()
            .map(|(uid, real)| Claimant {
                uid,
                created_seconds: real.created,
                phase: real.phase.unwrap_or(PodPhase::Running),
                grant: real.grant,
                proof: real.proof,
                demand: real.demand,
                tries: real.tries,
            })
            .collect()
    }

    fn granted(&self) -> u32 {
        self.pods.values().filter_map(|pod| pod.grant).map(|grant| grant.granted).sum()
    }

    fn write(&mut self, planned_for: &[(String, Option<PodGrant>)], write: Write) {
        let (uid, read) = &planned_for[write.pod];
        let pod = self.pods.get_mut(uid).unwrap();
        assert_eq!(pod.grant, *read);
        pod.grant = Some(write.grant);
    }

    /// Everything that is under way arrives, until there is rest.
    fn settle(&mut self, floor: u32, rule: SharingRule) -> SharePlan {
        for _ in 0..50 {
            for pod in self.pods.values_mut() {
                pod.applied = pod.grant.unwrap_or_default();
                pod.held = pod.held.min(pod.applied.share);
                pod.proof = Some(GrantProof { seq: pod.applied.seq, share: pod.applied.share, held: pod.held });
            }
            let plan = step(&self.seen(), floor, rule);
            if plan.writes.is_empty() {
                return plan;
            }
            let read: Vec<_> = self.pods.iter().map(|(uid, pod)| (uid.clone(), pod.grant)).collect();
            for write in plan.writes {
                self.write(&read, write);
            }
        }
        panic!("no rest: {self:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_more_is_granted_than_there_is_and_in_the_end_all_of_it(
        happenings in proptest::collection::vec(happening(), 1..120),
        floor in 1..4_u32,
        mut whole in 1..40_u32,
        how in prop_oneof![
            3 => (0..40_u32).prop_map(|min_allowed| SharingRule::ByDemand { min_allowed, max_allowed: 0 }),
            2 => (0..60_u32).prop_map(|target| SharingRule::Target { target, max_allowed: 0 }),
            1 => Just(SharingRule::Kept { max_allowed: 0 }),
        ],
    ) {
        let rule = |max_allowed| match how {
            SharingRule::Target { target, .. } => SharingRule::Target { target, max_allowed },
            SharingRule::Kept { .. } => SharingRule::Kept { max_allowed },
            SharingRule::ByDemand { min_allowed, .. } => SharingRule::ByDemand { min_allowed, max_allowed },
            SharingRule::Fixed { .. } => how,
        };
        let mut world = World::default();
        for happening in happenings {
            let before = world.granted();
            match happening {
                Happening::Arrives { unscheduled } => {
                    let phase = if unscheduled { PodPhase::Unscheduled } else { PodPhase::Running };
                    world.born += 1;
                    let pod = RealPod { phase: Some(phase), created: world.born / 2, ..RealPod::default() };
                    world.pods.insert(format!("{:03}", (world.born * 37) % 1000), pod);
                }
                Happening::IsScheduled(pod) => if let Some(pod) = world.pod(pod) && pod.phase == Some(PodPhase::Unscheduled) {
                    pod.phase = Some(PodPhase::Running);
                },
                Happening::BeginsToEnd(pod) => if let Some(pod) = world.pod(pod) {
                    pod.phase = Some(PodPhase::Terminating);
                },
                Happening::Ends(pod) => if let Some(uid) = world.uid(pod) && world.pods[&uid].phase == Some(PodPhase::Terminating) {
                    world.pods.remove(&uid);
                },
                Happening::Demands(pod, demand) => if let Some(pod) = world.pod(pod) {
                    pod.demand = demand.map(|(mean, peak)| PodDemand { mean: f64::from(mean) / 2.0, peak: f64::from(peak) });
                },
                Happening::Plans { written, backwards } => {
                    let read: Vec<_> = world.pods.iter().map(|(uid, pod)| (uid.clone(), pod.grant)).collect();
                    let mut writes = step(&world.seen(), floor, rule(whole)).writes;
                    if backwards {
                        writes.reverse();
                    }
                    for (index, write) in writes.into_iter().enumerate() {
                        if written >> (index % 64) & 1 == 1 {
                            world.write(&read, write);
                            prop_assert!(world.granted() <= before.max(whole), "{} granted of {whole}: {world:?}", world.granted());
                        }
                    }
                }
                Happening::Projects(pod) => if let Some(pod) = world.pod(pod) {
                    pod.applied = pod.grant.unwrap_or_default();
                },
                Happening::Works(pod, wish) => if let Some(pod) = world.pod(pod) {
                    // above the share connections can only close
                    let most = pod.applied.share.max(pod.held);
                    pod.held = u32::from(wish).min(most);
                    let report = GrantProof { seq: pod.applied.seq, share: pod.applied.share, held: pod.held };
                    pod.under_way.push(report);
                },
                Happening::IsRefused(pod, tries) => if let Some(pod) = world.pod(pod) {
                    pod.tries = tries.into();
                },
                Happening::Reports(pod) => if let Some(pod) = world.pod(pod) && !pod.under_way.is_empty() {
                    let oldest = pod.under_way.len() / 2;
                    pod.proof = Some(pod.under_way[oldest]);
                },
                Happening::LosesReports => for pod in world.pods.values_mut() {
                    pod.under_way.clear();
                },
                Happening::LeaderRestarts => for pod in world.pods.values_mut() {
                    pod.proof = None;
                },
                Happening::WholeBecomes(becomes) => whole = u32::from(becomes),
            }
            for (uid, pod) in &world.pods {
                let granted = pod.grant.unwrap_or_default().granted;
                prop_assert!(pod.held.max(pod.applied.share) <= granted, "{uid} may open more than is counted: {pod:?}");
                if let Some(PodGrant { share, granted, floor, least, .. }) = pod.grant {
                    prop_assert!(floor.max(least) <= share && share <= granted);
                }
            }
        }

        let plan = world.settle(floor, rule(whole));
        let shares: Vec<u32> = plan.shares.clone();
        let running = world.pods.values().filter(|pod| pod.phase == Some(PodPhase::Running)).count();
        let unscheduled = world.pods.values().filter(|pod| pod.phase == Some(PodPhase::Unscheduled)).count();
        let sum = shares.iter().sum::<u32>();
        prop_assert!(plan.awaited.is_empty());
        prop_assert_eq!(plan.granted, sum);
        if running > 0 {
            match rule(whole) {
                SharingRule::ByDemand { min_allowed, .. } => {
                    let running_pods = || world.pods.values().filter(|pod| pod.phase == Some(PodPhase::Running));
                    let of_running = |of: fn(PodGrant) -> u32| running_pods().filter_map(|pod| pod.grant).map(of).sum::<u32>();
                    let least = of_running(|grant| grant.floor.max(grant.least));
                    prop_assert!(least >= min_allowed.min(of_running(|grant| grant.share)), "{least} of {min_allowed}: {world:?}");
                    let spared = headroom(u32::try_from(running).unwrap(), u32::try_from(unscheduled).unwrap(), floor);
                    prop_assert!(sum + spared >= whole, "{sum} of {whole}, {spared} spared: {world:?}");
                }
                SharingRule::Target { target, .. } => {
                    prop_assert!(sum >= target.min(whole) , "{sum} of target {target}, {whole}: {world:?}");
                }
                SharingRule::Kept { .. } | SharingRule::Fixed { .. } => {}
            }
            if plan.shortage == Shortage::None {
                for ((uid, pod), share) in world.pods.iter().zip(&shares) {
                    prop_assert!(pod.phase != Some(PodPhase::Running) || *share >= floor, "{uid} has {share}: {world:?}");
                }
            }
        }
    }

    #[test]
    fn the_order_in_which_pods_are_passed_does_not_matter(
        shares in proptest::collection::vec((0..20_u32, 0..5_i64, proptest::option::of(0.0..30.0_f64)), 1..12),
        whole in 1..60_u32,
        turn in 0..12_usize,
        target in proptest::option::of(0..60_u32),
    ) {
        let rule = target.map_or(by_demand(whole), |target| SharingRule::Target { target, max_allowed: whole });
        let uids: Vec<String> = (0..shares.len()).map(|uid| uid.to_string()).collect();
        let mut pods: Vec<Claimant> = uids.iter().zip(&shares).map(|(uid, &(share, created_seconds, demand))| Claimant {
            created_seconds,
            ..pod(uid, Some(grant(1, share, share)), demand)
        }).collect();
        let outcome = |pods: &[Claimant]| {
            let plan = step(pods, 1, rule);
            let writes: Vec<_> = plan.writes.iter().map(|write| (pods[write.pod].uid.to_owned(), write.grant)).collect();
            let shares: BTreeMap<_, _> = pods.iter().map(|pod| pod.uid.to_owned()).zip(plan.shares).collect();
            (writes, shares)
        };
        let first = outcome(&pods);
        let turn = turn % pods.len();
        pods.rotate_left(turn);
        prop_assert_eq!(first, outcome(&pods));
    }
}
