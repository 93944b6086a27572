//! What `/status` and the metrics tell.

use super::Agent;
use crate::contract::{self, LimitsReadBack, Reach, SlotStatus, StatusReport};

impl Agent {
    pub(super) fn message(&self) -> String {
        let problems = self.report.problems.told(self.now()).map(str::to_owned);
        let refusals = self.configuration.wish.refusals.iter().flatten().map(ToString::to_string);
        problems.chain(refusals).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn publish(&mut self) {
        let slot = self.liveness.machine.status(self.now());
        let limits: Option<LimitsReadBack> = self.limits_together().filter(|_| slot == SlotStatus::Serving);
        let limits = limits.map(|limits| LimitsReadBack {
            max_db_connections: limits.max_db_connections.saturating_add(self.alias_bound()),
            ..limits
        });
        let in_force = self.applying.granted;
        let seq = in_force.map_or(0, |granted| granted.grant.seq);
        let share = in_force.map_or(0, |granted| granted.grant.share);
        let report = StatusReport {
            v: 1,
            pod_uid: self.sidecar.options.pod_uid.clone(),
            pool: self.sidecar.injection.pool.clone(),
            revision: self.revision().filter(|_| self.liveness.machine.is_serving()),
            wanted_revision: self.configuration.wish.revision.as_ref().map(|revision| revision.revision),
            epoch: in_force.map_or(0, |granted| granted.epoch),
            seq,
            share,
            limits,
            held: self.figures.held,
            understands: contract::SETTINGS_LEVEL,
            slot,
            message: self.message(),
            switching: self.sidecar.program.is_some().then(|| self.switching_mode()),
            other: self.other_slot(),
            proof: self.slots.active.runs.as_ref().map(|revision| revision.settings.health.proof()),
            session_alias: self.alias_report(),
            upstream: self.upstream_seen(),
            reconnected: self.reconnected(),
            troubles: self.log.troubles.told(self.now()),
            server_full: self.server_full(),
            leaks: self.leak_kinds(),
            memory: self.sizing.room.report(self.grant().share),
            trust: self.trust_report(),
            bypass: self.figures.bypass.told().cloned(),
        };
        self.report.published.metrics.set_bypass(report.bypass.as_ref().map(|bypass| bypass.connections));
        self.report.published.metrics.set_upstream(report.upstream.as_ref().map(|upstream| upstream.state));
        if let Some(mode) = report.switching {
            self.report.published.metrics.set_switching(mode);
        }
        let floor = in_force.map_or(0, |granted| granted.grant.floor);
        let limit = report.limits.map(|limits| if limits.paused { 0 } else { limits.pool_size });
        self.report.published.metrics.set_in_force(seq, share, floor, limit, report.revision);
        let waits_for = (slot != SlotStatus::Serving).then(|| {
            if report.message.is_empty() { "the pooler's console to answer".to_owned() } else { report.message.clone() }
        });
        // clients that could go elsewhere must not queue here; an application has nowhere else to go
        let has_nothing = self.sidecar.injection.client.reach == Reach::Network && share == 0;
        let waits_for = waits_for.or_else(|| has_nothing.then(|| "a share: nothing has been granted yet".to_owned()));
        self.report.published.publish(report, waits_for);
    }
}
