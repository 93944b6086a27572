//! The pooler's figures, once a second, and the decision on them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{Agent, CLIENTS_LOOK, LATE};
use crate::{
    agent::{
        apply::slot::{Reading, Slot},
        decide::{
            machine::Millis,
            reach::Obstacle,
            reaction::{Decided, PoolerReading},
        },
    },
    contract::{Held, Upstream},
    domain::Automation,
    pooler::pgbouncer::{console::ConsoleError, tables::Pools},
};

impl Agent {
    /// The agent's loop: decides the limit from this reading, and logs what `sluice decide` needs to repeat it.
    pub(super) fn react(&mut self, reading: &PoolerReading, punctual: bool) {
        let grant = self.grant();
        let Some(revision) = &self.configuration.wish.revision else { return };
        let together = self.limits_together().map_or(self.sizing.limit, |limits| limits.pool_size);
        let current = together.min(grant.share);
        let decided = self.sizing.reaction.feed(&revision.settings, grant, current, reading, punctual);
        let Some(Decided { id, from, decision, line }) = decided else { return };
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Ok(observation) = serde_json::to_string(&line)
        {
            tracing::debug!(
                decision = id,
                observation,
                size = decision.size,
                reason = decision.reason.as_str(),
                "observed"
            );
        }
        if decision.size != from {
            self.report.published.metrics.count_decision(decision.reason.as_str());
            tracing::info!(
                decision = id,
                from,
                to = decision.size,
                reason = decision.reason.as_str(),
                "{}",
                decision.message
            );
        }
    }

    pub(super) fn see_pools(&mut self, pools: Pools) {
        self.figures.held_at = self.now();
        self.figures.held = Some(Held {
            held: pools.held().saturating_add(self.access.rotating.holds()).saturating_add(self.alias_held()),
            active: pools.active,
            leaked: self.pinning.leaked,
            waiting: pools.clients_waiting,
        });
    }

    pub(super) async fn take_reading(&mut self) {
        let (now, asked) = (self.now(), Instant::now());
        let counts = self.can_ask_other();
        let read: Result<_, ConsoleError> = async {
            let active = self.slots.active.read(now, &self.pinning.leaked_connections).await?;
            Ok((
                active,
                if counts { Some(self.slots.other.read(now, &self.pinning.leaked_connections).await?) } else { None },
            ))
        }
        .await;
        let (mut active, mut other) = match read {
            Ok(readings) => readings,
            Err(error) => {
                self.report.problems.reading.may_pass(now, error.to_string());
                return;
            }
        };
        let works = |slot: &Slot, reading: &Reading| reading.logged_in && !self.keeps_user(slot);
        // what a process keeps says nothing of what is in force
        let in_force_works =
            works(&self.slots.active, &active) || other.as_ref().is_some_and(|other| works(&self.slots.other, other));
        let mut servers = vec![(self.slots.active.name(), std::mem::take(&mut active.servers))];
        servers.extend(other.as_mut().map(|other| (self.slots.other.name(), std::mem::take(&mut other.servers))));
        let Reading { pools, added, opens, logged_in, .. } = match other {
            None => active,
            Some(other) => Reading {
                pools: active.pools + other.pools,
                added: active.added + other.added,
                opens: active.opens + other.opens,
                logged_in: active.logged_in || other.logged_in,
                ..active
            },
        };
        self.report.problems.reading.is_over();
        // figures that took so long to come are not of one moment
        let punctual = !std::mem::take(&mut self.figures.was_late) && asked.elapsed() < LATE;
        let added = self.failover.leave_out(added, pools.active);
        self.access.rotating.read(in_force_works);
        if logged_in {
            self.access.verification.anchoring.verified();
        }
        self.see_refusals(pools, logged_in);
        self.tell_reach(now, logged_in);
        self.look_for_leaks(now, &servers);
        self.count_closing(servers.iter().flat_map(|(_, servers)| servers));
        self.applying.to_be_applied |= self.owes_reconnect();
        self.count_arrivals(now, opens).await;
        self.see_pools(pools);
        self.count_memory(pools);
        let leaked = self.pinning.leaked;
        let automation = if self.failover.is_read_only() { Automation::UpstreamReadOnly } else { Automation::Apply };
        let pools = self.failover.leave_out_waiting(pools);
        if self.other_counts() && !counts {
            // what the other one holds, and what it would need, is not known
            self.figures.held = None;
        } else {
            let refused_beyond = self.sizing.refused.ceiling();
            let at_seconds = self.sidecar.begin.elapsed().as_secs_f64();
            self.react(&PoolerReading { at_seconds, pools, added, leaked, automation, refused_beyond }, punctual);
        }
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let metrics = &self.report.published.metrics;
        metrics.observe(added, pools, leaked, self.alias_report().as_ref(), unix_seconds);
        let seconds = f64::from(u32::try_from(now.saturating_sub(self.figures.moment_at)).unwrap_or(u32::MAX)) / 1000.0;
        self.figures.moment_at = now;
        let working = pools.active.saturating_sub(leaked.unwrap_or(0));
        let demand = self.figures.moment.feed(seconds, &added, working, pools.clients_waiting);
        let waiting = f64::from(pools.clients_waiting);
        for (name, demands, waitings) in &mut self.figures.peaks {
            metrics.set_peaks(name, demands.feed(now, demand), waitings.feed(now, waiting));
        }
    }

    /// Says so when the database is not reached, unless its certificate or a refused login explains it.
    fn tell_reach(&mut self, now: Millis, logged_in: bool) {
        if logged_in {
            self.log.reach.succeeded();
        }
        let explained =
            [&self.report.problems.certificate, &self.report.problems.logins].iter().any(|it| it.told(now).is_some());
        let Some(trouble) = self.log.reach.trouble(now).filter(|_| !explained) else {
            return self.report.problems.database.is_over();
        };
        let Upstream { host, port, .. } = &self.sidecar.injection.upstream;
        let why = match trouble {
            Obstacle::NoAddress => format!("the name {host} does not resolve"),
            Obstacle::NotReady => format!("{host} says that it starts up, recovers or shuts down"),
            Obstacle::NoAnswer => format!("{host} does not answer on port {port}"),
        };
        let text = format!("no new server connection: {why}");
        if self.report.problems.database.is(text.clone()) {
            tracing::warn!("{text}");
        }
    }

    pub(super) async fn count_arrivals(&mut self, now: Millis, opens: u64) {
        let mut logins = 0;
        if now >= self.figures.next_clients {
            self.figures.next_clients = now + CLIENTS_LOOK;
            match self.slots.active.read_logins().await {
                Ok(count) => logins = self.failover.leave_out_clients(count),
                Err(error) => self.report.problems.reading.may_pass(now, error.to_string()),
            }
        }
        self.report.published.metrics.add_arrivals(opens, logins);
    }
}
