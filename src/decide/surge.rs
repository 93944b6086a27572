//! How many poolers of a gateway are replaced at a time, so that all of them together keep within what the pool may open.
//!
//! Whatever is chosen here, the sum of the shares never passes `maxAllowed`: a pod that surges gets its floor out of what is
//! free, and is not ready before. What is chosen is that the floors of the surging pods fit beside those of the others, so
//! that nobody's share is cut for them, and that a rollout does not wait for a share that cannot come.

use super::effective::EffectivePool;

/// The Deployment's `maxSurge` and `maxUnavailable`. Never both 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Pods that may come before old ones go.
    pub max_surge: u32,
    /// Pods that may be missing.
    pub max_unavailable: u32,
}

/// A quarter of the pods at a time, new ones first, as many as there is room for. Without room for one, an old pod goes
/// first.
pub fn replacement(replicas: u32, effective: &EffectivePool) -> Replacement {
    let most = effective.max_allowed;
    let room = match effective.fixed_limit_per_pod {
        Some(limit) => (most / limit.max(1)).saturating_sub(replicas),
        None => match (most / effective.floor_per_pod.max(1)).saturating_sub(replicas) {
            // the floors do not fit even now and are lowered, at least to 1
            0 => most.saturating_sub(replicas).min(1),
            room => room,
        },
    };
    match replicas.div_ceil(4).min(room) {
        0 => Replacement { max_surge: 0, max_unavailable: 1 },
        max_surge => Replacement { max_surge, max_unavailable: 0 },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        contract::PodGrant,
        decide::{
            effective::effective,
            shares::{Claimant, GrantProof, PodDemand, PodPhase, SharingRule, step},
        },
    };

    fn pool(floor: u32, most: u32) -> EffectivePool {
        let spec = serde_yaml::from_str(&format!(
            "topology: Gateway\nupstream: {{host: pg, database: shop, credentialsRef: {{name: shop-db}}}}\n\
             scaling: {{minAllowed: 1, maxAllowed: {most}, floorPerPod: {floor}}}"
        ));
        effective(&spec.expect("the fixture is a pool"), None).expect("accepted")
    }

    #[test]
    fn a_quarter_surges_where_its_floors_fit_and_else_what_fits_or_an_old_pod_goes_first() {
        let of = |replicas, floor, most| {
            let Replacement { max_surge, max_unavailable } = replacement(replicas, &pool(floor, most));
            (max_surge, max_unavailable)
        };
        assert_eq!(of(2, 1, 100), (1, 0));
        assert_eq!(of(8, 5, 100), (2, 0));
        assert_eq!(of(8, 5, 45), (1, 0), "only one more floor fits");
        assert_eq!(of(8, 5, 40), (1, 0), "floors are lowered rather than a pod missed");
        assert_eq!(of(8, 1, 8), (0, 1), "every connection is somebody's floor");
        assert_eq!(of(12, 1, 8), (0, 1), "more pods than connections");
        assert_eq!(of(0, 1, 8), (0, 1), "there is nothing to replace, and a Deployment takes no two zeroes");
    }

    #[test]
    fn what_runs_with_a_fixed_limit_surges_only_as_far_as_max_allowed_goes() {
        let fixed = |replicas, limit| {
            replacement(replicas, &EffectivePool { fixed_limit_per_pod: Some(limit), ..pool(1, 20) }).max_surge
        };
        assert_eq!((fixed(2, 5), fixed(3, 5), fixed(4, 5)), (1, 1, 0));
    }

    /// A pod of the gateway in a rolling update.
    struct Member {
        name: String,
        created: i64,
        is_new: bool,
        grant: PodGrant,
        proof: Option<GrantProof>,
        demand: f64,
        /// Rounds until it has ended; none while it is not being deleted.
        ends_in: Option<u32>,
    }

    /// The Deployment controller and the operator, in turns.
    struct Update {
        members: Vec<Member>,
        replicas: usize,
        floor: u32,
        most: u32,
        replacement: Replacement,
        linger: u32,
        round: i64,
    }

    impl Update {
        fn add(&mut self, is_new: bool, demand: f64) {
            let name = format!("{is_new}-{}", self.members.len() + usize::try_from(self.round).unwrap_or(0) * 100);
            let grant = PodGrant::default();
            let (created, proof, ends_in) = (self.round, None, None);
            self.members.push(Member { name, created, is_new, grant, proof, demand, ends_in });
        }

        fn count(&self, of: impl Fn(&Member) -> bool) -> usize {
            self.members.iter().filter(|member| member.ends_in.is_none() && of(member)).count()
        }

        fn share(&mut self) {
            let pods: Vec<Claimant> = self
                .members
                .iter()
                .map(|member| Claimant {
                    uid: &member.name,
                    created_seconds: member.created,
                    phase: if member.ends_in.is_some() { PodPhase::Terminating } else { PodPhase::Running },
                    grant: Some(member.grant),
                    proof: member.proof,
                    demand: Some(PodDemand { mean: member.demand, peak: member.demand }),
                    tries: 0,
                })
                .collect();
            let plan = step(&pods, self.floor, SharingRule::ByDemand { min_allowed: 0, max_allowed: self.most });
            for write in plan.writes {
                self.members[write.pod].grant = write.grant;
            }
            let granted: u32 = self.members.iter().map(|member| member.grant.granted).sum();
            assert!(granted <= self.most, "{granted} of {} are granted", self.most);
            for member in &mut self.members {
                let PodGrant { seq, share, .. } = member.grant;
                member.proof = Some(GrantProof { seq, share, held: share });
            }
        }

        /// One round of the Deployment controller: as many new pods as may be, then as few old ones as must be.
        fn replace(&mut self) {
            self.members.retain_mut(|member| {
                member.ends_in = member.ends_in.map(|left| left.saturating_sub(1));
                member.ends_in != Some(0)
            });
            let as_count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
            let is_available = |member: &Member| member.grant.share > 0;
            let surge = as_count(self.replacement.max_surge);
            while self.count(|_| true) < self.replicas + surge && self.count(|member| member.is_new) < self.replicas {
                self.add(true, 1.0);
            }
            let least = self.replicas.saturating_sub(as_count(self.replacement.max_unavailable));
            while self.count(|member| !member.is_new) > 0 && self.count(is_available) > least {
                let old = self.members.iter_mut().find(|member| !member.is_new && member.ends_in.is_none());
                old.expect("counted").ends_in = Some(self.linger + 1);
            }
        }
    }

    proptest! {
        /// Pods that end hold what they have for a while, busy ones give nothing up before they are proven: the sum
        /// keeps within the whole, as many pods serve as the Deployment promises, and the update comes to its end.
        #[test]
        fn a_rolling_update_keeps_within_the_whole_keeps_serving_and_ends(
            replicas in 1_usize..10, floor in 1_u32..5, more in 0_u32..40, linger in 0_u32..6,
            demands in prop::collection::vec(0.0_f64..20.0, 10),
        ) {
            let most = floor.max(u32::try_from(replicas).unwrap_or(1)) + more;
            let replacement = replacement(u32::try_from(replicas).unwrap_or(1), &pool(floor, most));
            let mut update =
                Update { members: Vec::new(), replicas, floor, most, replacement, linger, round: 0 };
            for demand in demands.into_iter().take(replicas) {
                update.add(false, demand);
            }
            (0..5).for_each(|_| update.share());
            prop_assert_eq!(update.count(|member| member.grant.share > 0), replicas, "all serve before");
            let least = replicas.saturating_sub(usize::try_from(replacement.max_unavailable).unwrap_or(0));
            while update.count(|member| member.is_new && member.grant.share > 0) < replicas {
                update.round += 1;
                prop_assert!(update.round < 500, "it does not end");
                update.replace();
                (0..2).for_each(|_| update.share());
                prop_assert!(update.count(|member| member.grant.share > 0) >= least, "too few serve");
            }
        }
    }
}
