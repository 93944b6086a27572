//! What each pod may open: [`shares`](crate::decide::shares), fed with what is known, and its answer as annotations.

use super::observed::{AgentAnswer, Annotation, Observed, PodSeen};
use crate::{
    contract::{Document, GrantDocument, LimitSource, PodGrant, Stamp, StatusReport},
    decide::{
        effective::EffectivePool,
        shares::{self, Claimant, Move, PodDemand, PodPhase, SharingRule},
    },
};

/// The grants of a pool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grants {
    /// What to write on which pod (index), most urgent first.
    pub writes: Vec<(usize, PodGrant, Option<Move>)>,
    /// Sum of the shares in force.
    pub share: u32,
    /// Sum of what is counted.
    pub granted: u32,
    /// Whether the floors fit.
    pub shortage: shares::Shortage,
    /// Pods whose shrink is written and not proven (index).
    pub awaited: Vec<usize>,
}

/// What is divided, from what is in force; while frozen, what starts must have something and what runs keeps what it has.
fn rule(effective: &EffectivePool, target: u32, min_allowed: u32, max_allowed: u32, frozen: bool) -> SharingRule {
    match (effective.fixed_limit_per_pod, effective.settings.scaling.limit_source) {
        (Some(limit_per_pod), _) => SharingRule::Fixed { limit_per_pod },
        (None, _) if frozen => SharingRule::Kept { max_allowed },
        (None, LimitSource::Share) => SharingRule::Target { target, max_allowed },
        (None, LimitSource::LocalReaction) => SharingRule::ByDemand { min_allowed, max_allowed },
    }
}

/// `lets_in`: what the database lets all pods open together beside their sessions, where one of them gets nothing of it.
pub(super) fn plan(
    observed: &Observed,
    effective: &EffectivePool,
    target: u32,
    lets_in: Option<u32>,
    frozen: bool,
) -> Grants {
    let name = observed.pool.metadata.name.as_deref().unwrap_or_default();
    // bounds below, target and demand are those of the pool itself; what its session alias has in each pod comes on top
    let for_sessions = effective.settings.for_sessions();
    let running = observed.pods.iter().filter(|pod| pod.phase == PodPhase::Running).count();
    let running = u32::try_from(running).unwrap_or(u32::MAX);
    let sessions = for_sessions.saturating_mul(running);
    let wanted = target.saturating_add(sessions);
    // each its floor, out of what the others hold
    let floors = running.saturating_mul(effective.floor_per_pod.max(1));
    let most = lets_in
        .map_or(effective.max_allowed, |most| effective.max_allowed.min(most.saturating_add(sessions).max(floors)));
    let rule = rule(effective, wanted, effective.min_allowed.saturating_add(sessions), most, frozen);
    let standings: Vec<Standing> = observed.pods.iter().map(|pod| Standing::of(pod, name)).collect();
    let claimant = |(pod, standing)| as_pod(pod, standing, rule, for_sessions);
    let pods: Vec<Claimant> = observed.pods.iter().zip(&standings).map(claimant).collect();
    let plan = shares::step(&pods, effective.floor_per_pod, rule);

    let mut writes: Vec<(usize, PodGrant, Option<Move>)> = plan
        .writes
        .iter()
        // frozen: what runs changes only to make room for what starts
        .filter(|write| {
            let is_new = pods[write.pod].grant.is_none_or(|grant| grant.seq == 0);
            let makes_room = rule.most().is_some() && write.move_ != Move::Refloor;
            !frozen || is_new || makes_room || write.move_ == Move::Settle
        })
        .map(|write| (write.pod, write.grant, Some(write.move_)))
        .collect();
    for (index, grant, _) in &mut writes {
        grant.paused = frozen && reacts_itself(&observed.pods[*index], name);
    }
    // an annotation that is damaged or gone, or says something else of a pause, is mended even if nothing moves
    let mut is_written = vec![false; pods.len()];
    for (index, ..) in &writes {
        is_written[*index] = true;
    }
    for (index, (pod, standing)) in observed.pods.iter().zip(&standings).enumerate() {
        let annotated = standing.annotated.filter(|_| matches!(pod.grant, Annotation::Read(_)));
        let paused = frozen && reacts_itself(pod, name);
        if let Some(grant) = pods[index].grant.filter(|_| !is_written[index])
            && annotated.is_none_or(|annotated| annotated.paused != paused || standing.is_behind())
        {
            writes.push((index, PodGrant { paused, ..grant }, None));
        }
    }
    Grants {
        writes,
        share: PodGrant::sum_of_shares(pods.iter().filter_map(|pod| pod.grant.as_ref())),
        granted: plan.granted,
        shortage: plan.shortage,
        awaited: plan.awaited,
    }
}

/// What is known of a pod's grant to the pool.
struct Standing<'a> {
    /// What the annotation says, or said when it could be read last.
    annotated: Option<PodGrant>,
    /// Where the annotation stands.
    stamp: Option<Stamp>,
    /// What its agent said last.
    report: Option<&'a StatusReport>,
    /// Where the newest grant stands that anybody knows of: the annotation, or what its agent has seen.
    newest: Stamp,
}

impl<'a> Standing<'a> {
    fn of(pod: &'a PodSeen, pool: &str) -> Self {
        let document = pod.grant.last_known();
        let annotated = pod.grant_to(pool).copied();
        let stamp = document.zip(annotated).map(|(document, grant)| Stamp { epoch: document.epoch, seq: grant.seq });
        let report = pod.answer.report().filter(|report| report.pool == pool);
        let seen = report.map(stamp_of).filter(|seen| seen.is_after(stamp.unwrap_or_default()));
        Self { annotated, stamp, report, newest: seen.or(stamp).unwrap_or_default() }
    }

    /// Whether the agent has seen a later grant than the annotation has.
    fn is_behind(&self) -> bool {
        self.stamp.is_some_and(|annotated| self.newest != annotated)
    }
}

/// A pod as the division of shares sees it.
fn as_pod<'a>(pod: &'a PodSeen, standing: &Standing<'a>, rule: SharingRule, for_sessions: u32) -> Claimant<'a> {
    let &Standing { annotated, report, newest, .. } = standing;
    let grant = match (annotated, &pod.grant, report) {
        // an older annotation has come back, from a backup say: the agent takes it for an old one and stays with what it has, which
        // counts until a newer one was written
        (Some(grant), _, Some(report)) if standing.is_behind() => Some(PodGrant {
            share: report.share,
            granted: grant.granted.max(report.share),
            floor: 0,
            least: 0,
            ..grant
        }),
        (Some(grant), ..) => Some(grant),
        // the annotation is lost: what the agent works with is what it has
        (None, _, Some(report)) if report.seq > 0 => {
            Some(PodGrant { seq: report.seq, share: report.share, granted: report.share, ..PodGrant::default() })
        }
        // damaged, and nobody remembers: all of it may have been granted
        (None, Annotation::Unreadable { .. }, _) => {
            Some(PodGrant { granted: rule.most().unwrap_or_default(), ..PodGrant::default() })
        }
        (None, ..) => None,
    };
    // the same by what Prometheus shows, while the agent cannot be asked: it counts against the pod, and proves nothing
    let number = annotated.map_or(0, |annotated| annotated.seq);
    let shown = pod.measured.filter(|shown| report.is_none() && number > 0 && shown.seq > number);
    let shown = shown.map_or(0, |shown| shown.share);
    let grant = grant.map(|grant| PodGrant {
        // never behind what the agent has seen, or it would take the next grant for an old one
        seq: newest.seq,
        granted: grant.granted.max(pod.doubtful_granted).max(shown),
        ..grant
    });
    let grant = match grant {
        None if pod.doubtful_granted > 0 => Some(PodGrant { granted: pod.doubtful_granted, ..PodGrant::default() }),
        grant => grant,
    };
    Claimant {
        uid: &pod.uid,
        created_seconds: pod.created,
        phase: pod.phase,
        grant,
        proof: proof(pod, standing),
        demand: pod.demand.map(|demand| PodDemand {
            mean: demand.mean + f64::from(for_sessions),
            peak: demand.peak + f64::from(for_sessions),
        }),
        tries: tries(pod, standing).map_or(0, |tries| tries.saturating_add(for_sessions)),
    }
}

/// Whether the agent decides its limit itself, by the revision that it is told to run.
fn reacts_itself(pod: &PodSeen, pool: &str) -> bool {
    let revision = pod.revision.last_known().and_then(|document| document.pools.get(pool));
    revision.is_some_and(|revision| revision.settings.scaling.limit_source == LimitSource::LocalReaction)
}

/// What the agent tries to hold while the database refuses more: the next one, unless its load has gone.
fn tries(pod: &PodSeen, standing: &Standing<'_>) -> Option<u32> {
    let report = standing.report.filter(|_| matches!(pod.answer, AgentAnswer::Report(_)))?;
    let full = report.server_full.as_ref()?;
    let held = report.held.map_or(full.at_most, |held| held.held);
    Some(full.at_most.min(held.saturating_add(1)))
}

/// What the agent proved: the share in force by the console's own answer, and what is open; else what Prometheus has of it. What
/// is in force by it counts for the newest grant alone, what is open counts anyhow.
fn proof(pod: &PodSeen, &Standing { report, newest, .. }: &Standing<'_>) -> Option<shares::GrantProof> {
    let told = report.and_then(|report| {
        let held = report.held?.held;
        let seq = if newest.is_after(stamp_of(report)) { 0 } else { newest.seq };
        // the share counts as in force only as far as the pooler's own bound says so
        let bound =
            report.limits.map_or(report.share, |limits| if limits.paused { 0 } else { limits.max_db_connections });
        Some(shares::GrantProof { seq, share: report.share.max(bound), held })
    });
    // a metric has no epoch: a number beyond the newest is of an epoch before
    let measured = || {
        pod.measured
            .map(|proof| shares::GrantProof { seq: if proof.seq > newest.seq { 0 } else { proof.seq }, ..proof })
    };
    told.or_else(measured)
}

/// Where the grant stands that the agent works with.
const fn stamp_of(report: &StatusReport) -> Stamp {
    Stamp { epoch: report.epoch, seq: report.seq }
}

/// The document for a pod, the entries of its other pools kept. It comes after everything that the pod's agent may have seen.
pub(super) fn document(pod: &PodSeen, pool: &str, epoch: u64, grant: PodGrant) -> GrantDocument {
    let Stamp { epoch, seq } = Standing::of(pod, pool).newest.next(epoch);
    let mut pools = pod.grant.last_known().map(|document| document.pools.clone()).unwrap_or_default();
    pools.insert(pool.to_owned(), PodGrant { seq, ..grant });
    GrantDocument { v: GrantDocument::VERSION, epoch, pools }
}

/// True when the agent read the newest grant back from its pooler.
pub(super) fn is_proven(pod: &PodSeen, pool: &str) -> bool {
    let Some(document) = pod.grant.last_known() else { return false };
    let (Some(grant), Some(annotated)) = (document.pools.get(pool), document.stamp(pool)) else { return false };
    let AgentAnswer::Report(report) = &pod.answer else { return false };
    report.pool == pool && !annotated.is_after(stamp_of(report)) && report.share == grant.share
}
