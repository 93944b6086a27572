//! What `/status` and the metrics tell.

use std::sync::Arc;

use super::{Agent, Sidecar, sidecar::Given};
use crate::{
    agent::{
        apply::slot::SlotError,
        decide::{machine::Millis, problems::Problems, wish::Wish},
        report::{metrics::Metrics, server::Published},
    },
    contract::{self, LimitsReadBack, Reach, SlotStatus, StatusReport},
};

/// What is told.
pub(super) struct Reporting {
    /// What stands in the way.
    pub(super) problems: Problems,
    published: Arc<Published>,
}

impl Reporting {
    /// Tells it there.
    pub(super) fn new(problems: Problems, published: Arc<Published>) -> Self {
        Self { problems, published }
    }

    /// What the HTTP server shows.
    pub(super) fn published(&self) -> Arc<Published> {
        self.published.clone()
    }

    /// The metrics.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.published.metrics
    }

    /// Limits could not be brought to what is wanted.
    pub(super) fn tell_limits(&mut self, sidecar: &Sidecar, error: &SlotError) {
        let text = error.to_string();
        if let SlotError::Console(_) = error {
            self.problems.limits.may_pass(sidecar.now(), text);
        } else if self.problems.limits.is(text) {
            tracing::warn!("{error}");
        }
    }

    fn message(&self, wish: &Wish, now: Millis) -> String {
        let problems = self.problems.told(now).map(str::to_owned);
        let refusals = wish.refusals.iter().flatten().map(ToString::to_string);
        problems.chain(refusals).collect::<Vec<_>>().join("; ")
    }
}

impl Agent {
    /// Tells what the round has found.
    pub(super) fn publish(&self, now: Millis) {
        let Self { sidecar, slots, access, sizing, applying, report, log, .. } = self;
        let given = Given::new(sidecar, &self.configuration, now);
        let slot = self.liveness.status(sidecar.now());
        let limits: Option<LimitsReadBack> = slots.limits_together().filter(|_| slot == SlotStatus::Serving);
        let limits = limits.map(|limits| LimitsReadBack {
            max_db_connections: limits.max_db_connections.saturating_add(slots.alias_bound()),
            ..limits
        });
        let in_force = applying.granted();
        let seq = in_force.map_or(0, |granted| granted.grant.seq);
        let share = in_force.map_or(0, |granted| granted.grant.share);
        let status = StatusReport {
            v: 1,
            pod_uid: sidecar.options.pod_uid.clone(),
            pool: sidecar.injection.pool.clone(),
            revision: slots.revision().filter(|_| self.liveness.is_serving()),
            wanted_revision: given.wish.revision.as_ref().map(|revision| revision.revision),
            epoch: in_force.map_or(0, |granted| granted.epoch),
            seq,
            share,
            limits,
            held: self.figures.held(),
            understands: contract::SETTINGS_LEVEL,
            slot,
            message: report.message(given.wish, sidecar.now()),
            revision_waits: applying.waits(given, slots).or_else(|| self.switching.waits(slots)),
            switching: sidecar.program.is_some().then(|| applying.switching_mode(given, slots)),
            other: self.switching.other_slot(slots),
            proof: slots.active.runs.as_ref().map(|revision| revision.settings.health.proof()),
            session_alias: slots.alias_report(),
            upstream: self.failover.report(given),
            circuit: Some(self.breaker.report(sidecar.now())),
            reconnected: applying.reconnected(slots),
            troubles: log.told(sidecar.now()),
            server_full: sizing.server_full(log),
            leaks: self.pinning.report(given.wish),
            memory: sizing.memory_report(given.wish),
            trust: access.verification.report(sidecar),
            bypass: self.figures.bypass().cloned(),
            foreign_listeners: self.switching.foreign_listeners(),
            reference_mark: self.configuration.reference_mark().map(str::to_owned),
        };
        let metrics = report.metrics();
        metrics.set_bypass(status.bypass.as_ref().map(|bypass| bypass.connections));
        metrics.set_upstream(status.upstream.as_ref().map(|upstream| upstream.state));
        if let Some(circuit) = &status.circuit {
            metrics.set_circuit(circuit.state);
        }
        if let Some(mode) = status.switching {
            metrics.set_switching(mode);
        }
        let floor = in_force.map_or(0, |granted| granted.grant.floor);
        let limit = status.limits.as_ref().map(LimitsReadBack::in_force);
        metrics.set_in_force(seq, share, floor, limit, status.revision);
        let waits_for = (slot != SlotStatus::Serving).then(|| {
            if status.message.is_empty() { "the pooler's console to answer".to_owned() } else { status.message.clone() }
        });
        // clients that could go elsewhere must not queue here; an application has nowhere else to go
        let has_nothing = sidecar.injection.client.reach == Reach::Network && share == 0;
        let waits_for = waits_for.or_else(|| has_nothing.then(|| "a share: nothing has been granted yet".to_owned()));
        report.published.publish(status, waits_for);
    }
}
