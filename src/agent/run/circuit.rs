//! A database that is away: the shell around [`crate::agent::decide::circuit`].

use std::net::IpAddr;

use tokio::task::JoinHandle;

use super::{Reporting, ServerAccess, place, sidecar::Given, slots::Slots};
use crate::{
    agent::{
        apply::slot::{ClientPatience, SlotError},
        decide::{
            circuit::{Circuit, CircuitSeen, ProbeOutcome},
            machine::Millis,
            retry::Retry,
        },
        observe::probe::{DatabaseProbe, ProbeFinding},
        options::RunOptions,
    },
    contract::{CircuitReport, CircuitState, OutageAction},
};

/// The circuit breaker of the pod.
pub(super) struct Breaker {
    circuit: Circuit,
    probe: Option<JoinHandle<ProbeFinding>>,
    /// What the last probe without an answer met.
    why: String,
    /// Whether another agent may have left it open.
    is_taken_up: bool,
    /// How long clients wait could not be changed.
    again: Retry,
}

impl Breaker {
    /// Closed, unless the pooler was taken up and shows otherwise.
    pub(super) fn new(options: &RunOptions, is_taken_up: bool) -> Self {
        Self {
            circuit: Circuit::new(place::spread(&options.pod_uid)),
            probe: None,
            why: String::new(),
            is_taken_up,
            again: Retry::default(),
        }
    }

    /// Whether the load says nothing, and what runs stays as it is.
    pub(super) fn holds(&self) -> bool {
        self.circuit.holds()
    }

    /// Takes in what came of the probe, begins another one where it is due, and has clients wait as long as is right now.
    pub(super) async fn step(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        access: &ServerAccess,
        report: &mut Reporting,
    ) {
        if self.is_taken_up && !self.take_up(given.sidecar.now(), slots).await {
            return;
        }
        let before = self.circuit.state();
        if let Some(probe) = self.probe.take_if(|probe| probe.is_finished()) {
            let found = probe.await.unwrap_or_else(|error| ProbeFinding::Unclear(error.to_string()));
            self.take(found, given.sidecar.now());
        }
        if self.circuit.takes_probe(given.sidecar.now()) {
            self.begin_probe(given, slots, access).await;
        }
        self.tell_change(before);
        self.tell_clients(given, slots, report).await;
    }

    /// Takes in a second of the pooler.
    pub(super) async fn see(&mut self, given: Given<'_>, slots: &mut Slots, access: &ServerAccess, seen: CircuitSeen) {
        let before = self.circuit.state();
        if self.circuit.see(given.sidecar.now(), seen) {
            self.begin_probe(given, slots, access).await;
        }
        self.tell_change(before);
    }

    /// Goes on with what another agent left. False: that cannot be read now.
    async fn take_up(&mut self, now: Millis, slots: &mut Slots) -> bool {
        match slots.active.patience().await {
            Ok(ClientPatience::Short) => {
                "another agent found it away".clone_into(&mut self.why);
                self.circuit.was_left_open(now);
            }
            Ok(ClientPatience::AsConfigured) => {}
            Err(_) => return false,
        }
        self.is_taken_up = false;
        true
    }

    fn take(&mut self, found: ProbeFinding, now: Millis) {
        let outcome = match found {
            ProbeFinding::Answered => ProbeOutcome::Answered,
            ProbeFinding::Away(why) => {
                self.why = why;
                ProbeOutcome::Failed
            }
            ProbeFinding::Unclear(why) => {
                tracing::debug!("whether the database answers is not known: {why}");
                ProbeOutcome::Unclear
            }
        };
        self.circuit.probed(now, outcome);
    }

    async fn begin_probe(&mut self, given: Given<'_>, slots: &mut Slots, access: &ServerAccess) {
        let upstream = given.sidecar.injection.upstream.clone();
        let addresses = match upstream.host.parse::<IpAddr>() {
            Ok(address) => Some(vec![address]),
            // whoever answers another resolver may be somebody else
            Err(_) => slots.active.console.addresses_of_name(&upstream.host).await.ok().flatten(),
        };
        let user = access.rotating.in_force().map(|access| access.credentials.username.clone());
        let (Some(addresses), Some(user)) = (addresses, user) else {
            let why = "the pooler has no address of it".to_owned();
            return self.take(ProbeFinding::Unclear(why), given.sidecar.now());
        };
        let bundle = access.bundle(given.sidecar);
        self.probe = Some(tokio::spawn(DatabaseProbe { addresses, upstream, bundle, user }.ask()));
    }

    fn tell_change(&self, before: CircuitState) {
        match (before, self.circuit.state()) {
            (before, after) if before == after => {}
            (_, CircuitState::Open) => tracing::warn!(
                "the database is away: {}; clients that wait are told within two seconds until it answers",
                self.why
            ),
            (CircuitState::Open, _) => tracing::info!("the database answers again; clients wait for it again"),
            (CircuitState::HalfOpen, _) => tracing::info!("the database works again"),
            (_, CircuitState::Holding) => tracing::info!("the database does not answer: {}; clients wait", self.why),
            (_, CircuitState::Closed | CircuitState::HalfOpen) => {}
        }
    }

    /// Has clients of every process wait as long as is right now.
    async fn tell_clients(&mut self, given: Given<'_>, slots: &mut Slots, report: &mut Reporting) {
        let now = given.sidecar.now();
        if self.again.is_pausing(now) {
            return;
        }
        let revision = slots.active.runs.as_ref().or(given.wish.revision.as_ref());
        let action = revision.map_or(OutageAction::Queue, |revision| revision.settings.health.outage_action);
        let wanted = if self.circuit.fails_fast() && action == OutageAction::FailFast {
            ClientPatience::Short
        } else {
            ClientPatience::AsConfigured
        };
        let told = async {
            for slot in slots.to_ask_mut() {
                if slot.have_patience(wanted).await? {
                    tracing::info!(slot = slot.name().as_str(), ?wanted, "how long clients wait, read back");
                }
            }
            Ok::<(), SlotError>(())
        };
        match told.await {
            Ok(()) => {
                self.again.settled();
                report.problems.patience.is_over();
            }
            Err(error) => {
                self.again.failed(now);
                report.problems.patience.may_pass(now, error.to_string());
            }
        }
    }

    /// What is told of it.
    pub(super) fn report(&self, now: Millis) -> CircuitReport {
        let state = self.circuit.state();
        CircuitReport {
            state,
            since_seconds: now.saturating_sub(self.circuit.since()) / 1000,
            why: if state == CircuitState::Closed { String::new() } else { self.why.clone() },
        }
    }
}
