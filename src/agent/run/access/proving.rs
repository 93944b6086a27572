//! A revision that the process that runs could take over, and that a login has to prove first: the shell around
//! [`crate::agent::decide::login_proof`].
//!
//! It is tried as credentials are, by one connection of a process that serves nobody, within the share and never beside such a login.
//! Until it has worked, what runs serves on with all that it has.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::rotating::{Rotating, ca_path, trial_directory};
use crate::{
    agent::{
        apply::trial::{Login, TrialError, TrialSetup},
        decide::{
            login_proof::{LoginConditions, expected_role},
            rotation::{Rotation, RotationAction, RotationFailure, RotationSeen, TrialOutcome},
            switch::{PROOF_DEADLINE, START_DEADLINE},
        },
        run::{Reporting, Sidecar, place, sidecar::Given, slots::Slots},
    },
    contract::PoolRevision,
};

/// What the loop keeps in mind of a revision that a login has to prove.
pub(super) struct LoginProof {
    machine: Rotation,
    /// The revision that waits for it.
    awaited: Option<PoolRevision>,
    /// Counts what was to be proven.
    version: u64,
    /// What worked last.
    proven: Option<LoginConditions>,
    trial: Option<JoinHandle<Result<(), TrialError>>>,
    outcome: TrialOutcome,
    why: Option<String>,
}

impl LoginProof {
    /// Nothing to prove yet. `spread` makes the pauses of pods differ, in percent.
    pub(super) fn new(spread: u8) -> Self {
        Self {
            machine: Rotation::new(spread),
            awaited: None,
            version: 0,
            proven: None,
            trial: None,
            outcome: TrialOutcome::Open,
            why: None,
        }
    }

    /// Whether one connection of the share is not the slots'.
    pub(super) fn needs_room(&self) -> bool {
        self.machine.needs_room()
    }

    /// Whether a login may be open beside the slots.
    pub(super) fn is_trying(&self) -> bool {
        self.machine.is_trying()
    }

    /// What a login meets has changed: what failed is tried again at once.
    pub(super) fn look_again(&mut self) {
        self.version += 1;
    }

    /// This revision waits for its proof; None: none does.
    fn wait_for(&mut self, sidecar: &Sidecar, revision: Option<&PoolRevision>) {
        if self.awaited.as_ref() == revision {
            return;
        }
        let of = |revision: &PoolRevision| conditions(sidecar, revision);
        if self.awaited.as_ref().map(of) != revision.map(of) {
            self.version += 1;
            self.why = None;
        }
        self.awaited = revision.cloned();
    }

    async fn take_outcome(&mut self) {
        let Some(trial) = self.trial.take_if(|trial| trial.is_finished()) else { return };
        self.outcome = match trial.await {
            Ok(Ok(())) => TrialOutcome::Passed,
            Ok(Err(error)) => self.failed(error.to_string()),
            Err(error) => self.failed(error.to_string()),
        };
    }

    fn failed(&mut self, why: String) -> TrialOutcome {
        self.why = Some(why);
        TrialOutcome::Failed
    }
}

fn conditions(sidecar: &Sidecar, revision: &PoolRevision) -> LoginConditions {
    LoginConditions::of(&revision.settings, sidecar.build.map(|build| build.version))
}

/// Whether `wanted` is yet to be proven by a login where `runs` works. Of a process that nothing is known of, the careful answer.
pub(in crate::agent::run) fn needs_login(
    sidecar: &Sidecar,
    runs: Option<&PoolRevision>,
    wanted: &PoolRevision,
) -> bool {
    runs.is_none_or(|runs| !conditions(sidecar, wanted).are_proven_by(&conditions(sidecar, runs)))
}

impl Rotating {
    /// Whether the process that new clients come to may take over a revision: it asks of the database what it does already, or a login
    /// has proven it. If not, that is tried from now on.
    pub(in crate::agent::run) fn is_proven(
        &mut self,
        sidecar: &Sidecar,
        slots: &Slots,
        revision: &PoolRevision,
    ) -> bool {
        let waits = needs_login(sidecar, slots.active.runs.as_ref(), revision) && !self.has_proven(sidecar, revision);
        self.login_proof.wait_for(sidecar, waits.then_some(revision));
        !waits
    }

    /// Whether a login has worked with what a revision asks of it.
    pub(in crate::agent::run) fn has_proven(&self, sidecar: &Sidecar, revision: &PoolRevision) -> bool {
        let proven = self.login_proof.proven.as_ref();
        proven.is_some_and(|proven| conditions(sidecar, revision).are_proven_by(proven))
    }

    /// No revision waits for a login.
    pub(in crate::agent::run) fn awaits_no_proof(&mut self, sidecar: &Sidecar) {
        self.login_proof.wait_for(sidecar, None);
    }

    /// Takes the next step of proving the revision that waits for it. True once it is proven.
    pub(in crate::agent::run) async fn prove_revision(
        &mut self,
        given: Given<'_>,
        slots: &Slots,
        share: u32,
        is_able: bool,
    ) -> bool {
        self.login_proof.take_outcome().await;
        let waits = self.login_proof.awaited.is_some();
        let seen = RotationSeen {
            wanted: waits.then_some(self.login_proof.version),
            trial: self.login_proof.outcome,
            ..self.observe(given.wish, slots, share, is_able && !self.is_trying_credentials())
        };
        let action = self.login_proof.machine.step(given.sidecar.now(), &seen);
        match action {
            Some(RotationAction::Try) => self.try_revision(given, slots, share),
            Some(RotationAction::Stop) => {
                if let Some(trial) = self.login_proof.trial.take() {
                    trial.abort();
                }
            }
            Some(RotationAction::TakeOver) => {
                let proof = &mut self.login_proof;
                proof.why = None;
                if let Some(revision) = proof.awaited.take() {
                    tracing::info!(revision = revision.revision, "a login to the database has proven it");
                    proof.proven = Some(conditions(given.sidecar, &revision));
                }
            }
            None => {}
        }
        action == Some(RotationAction::TakeOver)
    }

    /// Starts a process that logs in with what is in force, and asks what the revision says.
    fn try_revision(&mut self, given: Given<'_>, slots: &Slots, share: u32) {
        let sidecar = given.sidecar;
        let run_dir = &sidecar.options.run_dir;
        (self.login_proof.outcome, self.login_proof.trial) = (TrialOutcome::Open, None);
        let revision = self.login_proof.awaited.clone();
        let own = self.takes(run_dir, &slots.active);
        let (Some(revision), Some(own), Some(access), Some(program)) =
            (revision, own, self.in_force(), &sidecar.program)
        else {
            self.login_proof.outcome = self.login_proof.failed("there is nothing to try".to_owned());
            return;
        };
        let milliseconds = if share == 1 { PROOF_DEADLINE } else { START_DEADLINE - 1000 };
        let prepared = Login::prepare(&TrialSetup {
            program,
            directory: trial_directory(run_dir),
            injection: &sidecar.injection,
            settings: &revision.settings,
            role: expected_role(&revision.settings),
            credentials: own.credentials,
            ca_file: place::bundle(&sidecar.injection, ca_path(run_dir, access)).map(|file| file.display().to_string()),
            presented: own.presented,
            resolver: sidecar.resolver.as_ref().map(|file| file.display().to_string()),
            version: sidecar.build.map(|build| build.version),
            within: Duration::from_millis(milliseconds),
            answers_within: Duration::from_millis(PROOF_DEADLINE),
        });
        match prepared {
            Ok(login) => self.login_proof.trial = Some(tokio::spawn(login.run())),
            Err(error) => self.login_proof.outcome = self.login_proof.failed(error.to_string()),
        }
    }

    /// Says what keeps a revision that waits for a login from being in force.
    pub(in crate::agent::run) fn tell_login_proof(&self, given: Given<'_>, slots: &Slots, report: &mut Reporting) {
        let proof = &self.login_proof;
        let Some(wanted) = &proof.awaited else { return report.problems.login_proof.is_over() };
        let wanted = wanted.revision;
        let runs = slots.revision().map_or_else(|| "what runs".to_owned(), |number| format!("revision {number}"));
        let why = match proof.machine.failure(proof.version) {
            Some(RotationFailure::NoRoom) => "running transactions left no server connection for its proof".to_owned(),
            Some(RotationFailure::NotProven) => {
                format!("it did not prove itself: {}", proof.why.as_deref().unwrap_or("it gave no reason"))
            }
            None => {
                let until = if self.is_refused() { ", once the database lets the pool log in again" } else { "" };
                let text = format!(
                    "revision {wanted} is not in force: a login to the database has to prove it{until}; {runs} serves on"
                );
                return report.problems.login_proof.may_pass(given.sidecar.now(), text);
            }
        };
        let text = format!(
            "revision {wanted} is not in force: {why}; {runs} serves on; it is tried again within 90 s at the latest"
        );
        if report.problems.login_proof.is(text) {
            tracing::warn!(revision = wanted, "not taken over: {why}");
        }
    }
}
