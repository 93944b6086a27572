//! What a write changes on a pod, as the log tells it: from what, to what, and why.

use crate::{
    api::conditions::{ObservedCondition, PROGRESSING},
    decide::{
        plan::{PodFacts, PodPatch, TargetChange},
        shares::Move,
    },
};

/// What a write changes on a pod. Figures are server connections; what is not changed, and what was not known, is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodChange {
    /// The share before.
    pub from_share: Option<u32>,
    /// The share that it gets.
    pub share: Option<u32>,
    /// What was counted for it before.
    pub from_granted: Option<u32>,
    /// What is counted for it from now on.
    pub granted: Option<u32>,
    /// Number of the grant.
    pub seq: Option<u64>,
    /// The revision that it was to run.
    pub from_revision: Option<u64>,
    /// The revision that it is to run.
    pub revision: Option<u64>,
    /// Id of the decision by whose target its share moves; none where no share does.
    pub decision: Option<String>,
    /// In words.
    pub why: String,
}

impl PodChange {
    /// What a patch changes on a pod of a pool. `before` is what its annotations said when the plan was made; the last decision and the
    /// conditions are those of the same plan.
    pub fn of(
        patch: &PodPatch,
        before: Option<&PodFacts>,
        pool: &str,
        (decided, conditions): (Option<&TargetChange>, &[ObservedCondition]),
    ) -> Self {
        let grant = patch.grant.as_ref().and_then(|grant| grant.pools.get(pool));
        let revision = patch.revision.as_ref().and_then(|document| document.pools.get(pool));
        // what a write leaves alone is not told
        let from_grant = before.and_then(|facts| facts.grant.last_known()?.pools.get(pool)).filter(|_| grant.is_some());
        let from_revision =
            before.and_then(|facts| facts.revision.last_known()?.pools.get(pool)).filter(|_| revision.is_some());
        let moves_share = matches!(patch.move_, Some(Move::Shrink | Move::Grow));
        let change = decided.filter(|_| moves_share);
        let parts = [grant.map(|_| why_of_grant(patch.move_, change)), revision.map(|_| why_of_revision(conditions))];
        Self {
            from_share: from_grant.map(|grant| grant.share),
            share: grant.map(|grant| grant.share),
            from_granted: from_grant.map(|grant| grant.granted),
            granted: grant.map(|grant| grant.granted),
            seq: grant.map(|grant| grant.seq),
            from_revision: from_revision.map(|revision| revision.revision),
            revision: revision.map(|revision| revision.revision),
            decision: change.map(|change| change.id.clone()),
            why: parts.into_iter().flatten().collect::<Vec<_>>().join("; "),
        }
    }
}

fn why_of_grant(move_: Option<Move>, change: Option<&TargetChange>) -> String {
    match (move_, change) {
        (Some(Move::Shrink | Move::Grow), Some(TargetChange { id, reason, message, .. })) => {
            format!("its share follows the target of decision {id} ({reason}: {message})")
        }
        (Some(Move::Shrink | Move::Grow), None) => {
            "its share follows bounds and number of pods: no decision has changed the target yet".to_owned()
        }
        (Some(Move::Settle), _) => "it is proven to need no more than its share".to_owned(),
        (Some(Move::Refloor), _) => {
            "what bounds its limit from below changes, or it has to wait for a share".to_owned()
        }
        (None, _) => "its grant is written anew".to_owned(),
    }
}

fn why_of_revision(conditions: &[ObservedCondition]) -> String {
    let progressing = conditions.iter().find(|condition| condition.type_ == PROGRESSING);
    progressing.map_or_else(String::new, |progressing| {
        format!("its revision follows the rollout ({}: {})", progressing.reason, progressing.message)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        api::{ConnectionPoolSpec, conditions::ConditionStatus},
        contract::{GrantDocument, PodGrant, PoolRevision, RevisionDocument},
        decide::{
            effective::effective,
            plan::{Annotation, SidecarSeen},
            shares::PodPhase,
        },
    };

    fn revision(number: u64) -> Arc<RevisionDocument> {
        let spec: ConnectionPoolSpec = serde_yaml::from_str(
            "{mode: Apply, workload: {selector: {matchLabels: {app: shop}}}, scaling: {maxAllowed: 20}, \
             upstream: {host: pg, database: shop, credentialsRef: {name: shop}}}",
        )
        .expect("a spec");
        let settings = effective(&spec, None).expect("accepted").settings;
        Arc::new(RevisionDocument {
            v: 1,
            pools: [("shop".to_owned(), PoolRevision { revision: number, settings })].into(),
        })
    }

    fn grant(seq: u64, share: u32, granted: u32) -> GrantDocument {
        let grant = PodGrant { seq, share, granted, ..PodGrant::default() };
        GrantDocument { v: 1, epoch: 3, pools: [("shop".to_owned(), grant)].into() }
    }

    fn before() -> PodFacts {
        PodFacts {
            name: "shop-a".to_owned(),
            owner: None,
            uid: "a".into(),
            resource_version: "1".to_owned(),
            created: 0,
            phase: PodPhase::Running,
            sidecar: SidecarSeen::Running,
            injection: None,
            revision: Annotation::Read(revision(7)),
            grant: Annotation::Read(grant(4, 5, 6)),
            doubtful_granted: 0,
            address: None,
        }
    }

    fn patch(revision: Option<Arc<RevisionDocument>>, grant: Option<GrantDocument>, move_: Option<Move>) -> PodPatch {
        let (name, uid, resource_version) = ("shop-a".to_owned(), "a".into(), "1".to_owned());
        PodPatch { name, uid, resource_version, revision, granted: None, grant, move_ }
    }

    fn change(patch: &PodPatch, before: Option<&PodFacts>) -> PodChange {
        let decided = TargetChange {
            id: "d-1".to_owned(),
            reason: "Demand".to_owned(),
            from: 15,
            to: 12,
            message: "2.3 busy".to_owned(),
            at: 0,
        };
        let progressing = ObservedCondition {
            type_: PROGRESSING,
            status: ConditionStatus::True,
            reason: "RollingOut",
            message: "revision 8 runs on 1 of 3 pods".to_owned(),
        };
        PodChange::of(patch, before, "shop", (Some(&decided), &[progressing]))
    }

    #[test]
    fn a_write_that_moves_a_share_is_told_with_what_it_was_and_the_decision_that_moves_it() {
        let told = change(&patch(None, Some(grant(5, 3, 6)), Some(Move::Shrink)), Some(&before()));
        assert_eq!(
            (told.from_share, told.share, told.from_granted, told.granted),
            (Some(5), Some(3), Some(6), Some(6))
        );
        assert_eq!((told.decision.as_deref(), told.seq), (Some("d-1"), Some(5)));
        assert_eq!(told.why, "its share follows the target of decision d-1 (Demand: 2.3 busy)");
        assert_eq!((told.from_revision, told.revision), (None, None), "no revision is written");
    }

    #[test]
    fn a_write_that_only_tells_a_revision_names_no_decision_on_the_size() {
        let told = change(&patch(Some(revision(8)), None, None), Some(&before()));
        assert_eq!((told.from_revision, told.revision, told.decision.as_deref()), (Some(7), Some(8), None));
        assert_eq!(told.why, "its revision follows the rollout (RollingOut: revision 8 runs on 1 of 3 pods)");
        assert_eq!((told.from_share, told.share), (None, None), "no share is written");
        let both = change(&patch(Some(revision(8)), Some(grant(5, 5, 5)), Some(Move::Settle)), None);
        assert_eq!(
            (both.from_share, both.from_revision, both.decision.as_deref()),
            (None, None, None),
            "nothing is known"
        );
        assert!(
            both.why.starts_with("it is proven to need no more than its share; its revision follows"),
            "{}",
            both.why
        );
    }
}
