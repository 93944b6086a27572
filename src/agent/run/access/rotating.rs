//! Credentials, CA and certificate that change in their Secrets: the shell around [`crate::agent::decide::rotation`].
//!
//! What is in force stands in a file of a volume in memory that outlives the container: a container that restarts begins with what
//! worked, whatever the Secret holds by then. The auth file of a slot may name the user of an earlier time: a process that only a
//! new one can relieve of it goes on with it, as long as clients are connected to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{ServerAccess, proving::LoginProof};
use crate::{
    agent::{
        apply::{
            files::{FileError, write_whole},
            slot::{CONSOLE_DEADLINE, Keep, Slot, SlotError, Taken, USER},
            trial::{Login, TrialError, TrialSetup},
        },
        decide::{
            machine::Millis,
            problems::Problem,
            retry::Retry,
            rotation::{Logins, Rotation, RotationAction, RotationFailure, RotationSeen, TrialOutcome},
            slot_name::SlotName,
            switch::{PROOF_DEADLINE, START_DEADLINE, SwitchPhase},
            wish::{Access, Wish},
        },
        options::RunOptions,
        run::{Reporting, Sidecar, applying::Applying, place, sidecar::Given, slots::Slots},
    },
    contract::{Injection, PoolerError, ServerTls, UpstreamRole},
    fingerprint::fingerprint,
    pooler::pgbouncer::{
        console::{ConsoleError, log_in},
        render::{Credentials, PoolerCertificate, Presented},
    },
};

/// Where a login is tried, beside the slots.
const TRIAL_DIRECTORY: &str = "trial";
/// Beginning of the name of a CA bundle in the run directory.
const CA_FILE: &str = "server-ca-";
/// Beginning of the names of a certificate that the database is shown, and of its key.
const CERTIFICATE_FILE: &str = "upstream-tls-";
/// What is in force stands there.
const IN_FORCE_FILE: &str = "in-force.json";
/// What is in force, as a version: that of the first Secret.
const IN_FORCE: u64 = 0;
/// After new credentials are in force, refusals of logins that were under way with the old ones are no news.
const UNDER_WAY: Millis = 4000;
/// What is told while a RELOAD waits.
pub(in crate::agent::run) const AWAITS_LOGINS: &str =
    "waits until no server connection logs in to the database: PgBouncer would cut clients";

/// What is told while a RELOAD or a RECONNECT would close what could not be opened again.
pub(in crate::agent::run) const AWAITS_USER: &str = "waits until the database lets the pool log in again";

/// What one process logs in to the database with.
pub(in crate::agent::run) struct OwnAccess<'a> {
    pub(in crate::agent::run) credentials: &'a Credentials,
    pub(in crate::agent::run) presented: Option<Presented>,
}

/// What the loop keeps in mind of a rotation.
pub(in crate::agent::run) struct Rotating {
    machine: Rotation,
    /// What server connections are opened with.
    in_force: Option<Access>,
    /// Counts what the Secret held.
    version: u64,
    logins: Logins,
    /// Whether it refused a slot in words that are not understood.
    doubted: bool,
    /// Whether there was no reading since the last refusal.
    unread: bool,
    /// Refusals before then are of the credentials before.
    deaf_until: Millis,
    trial: Option<(Access, JoinHandle<Result<(), TrialError>>)>,
    outcome: TrialOutcome,
    why: Option<String>,
    /// Whether a slot may work with something else than what is in force.
    to_hand_over: bool,
    /// The slots that work with it already.
    handed: Vec<SlotName>,
    again: Retry,
    /// Whether room is needed and logins work, when the slots were told last.
    bounds: (bool, Logins),
    /// The revision that a login has to prove, if there is one.
    pub(super) login_proof: LoginProof,
}

impl Rotating {
    /// Begins with what the slots were given last.
    pub(in crate::agent::run) fn take_up(options: &RunOptions, injection: &Injection) -> Self {
        let in_force = left(&options.run_dir, injection.upstream.tls);
        let spread = place::spread(&options.pod_uid);
        Self {
            machine: Rotation::new(spread),
            login_proof: LoginProof::new(spread),
            to_hand_over: false,
            handed: Vec::new(),
            in_force,
            version: IN_FORCE,
            logins: Logins::Work,
            doubted: false,
            unread: false,
            deaf_until: 0,
            trial: None,
            outcome: TrialOutcome::Open,
            why: None,
            again: Retry::default(),
            bounds: (false, Logins::Work),
        }
    }

    /// What server connections are opened with; None before the first Secret.
    pub(in crate::agent::run) fn in_force(&self) -> Option<&Access> {
        self.in_force.as_ref()
    }

    /// The slots run with what another agent gave them, perhaps not all with the same.
    pub(in crate::agent::run) fn slots_are_taken_up(&mut self) {
        self.to_hand_over = self.in_force.is_some();
    }

    /// Server connections of the share that the slots may not open now.
    pub(in crate::agent::run) fn set_aside(&self) -> u32 {
        (self.machine.needs_room() || self.login_proof.needs_room()).into()
    }

    /// Server connections open beside the slots.
    pub(in crate::agent::run) fn holds(&self) -> u32 {
        (self.machine.is_trying() || self.login_proof.is_trying()).into()
    }

    /// Whether new credentials have a connection of the share, or are about to have it.
    pub(super) fn is_trying_credentials(&self) -> bool {
        self.machine.needs_room()
    }

    /// Whether a server connection that ends could not be opened again.
    pub(in crate::agent::run) fn is_refused(&self) -> bool {
        self.logins == Logins::Refused
    }

    /// A reading showed whether a slot has logged in to the database with what is in force since the one before. In the first one
    /// after a refusal that may have been earlier than the refusal.
    pub(in crate::agent::run) fn read(&mut self, logged_in: bool) {
        if !std::mem::take(&mut self.unread) && logged_in {
            (self.logins, self.doubted) = (Logins::Work, false);
        }
    }

    /// The database has refused a slot.
    pub(in crate::agent::run) fn was_refused(&mut self, now: Millis) {
        if now >= self.deaf_until {
            (self.logins, self.unread) = (Logins::Refused, true);
        }
    }

    /// The database has refused a slot, and nobody knows why: a login of our own finds out. Nothing is held back for that.
    pub(in crate::agent::run) fn is_in_doubt(&mut self, now: Millis) {
        if now >= self.deaf_until {
            (self.doubted, self.unread) = (true, true);
        }
    }

    /// Whether a refusal was not understood.
    pub(in crate::agent::run) fn is_doubtful(&self) -> bool {
        self.doubted
    }

    /// It is known why.
    pub(in crate::agent::run) fn is_resolved(&mut self) {
        self.doubted = false;
    }
}

impl Rotating {
    /// The Secret may hold something else.
    pub(in crate::agent::run) fn take(&mut self, wish: &Wish, before: Option<&Access>) {
        let Some(wanted) = wish.access() else { return };
        if self.in_force.is_none() {
            // there is nothing that goes on when this does not work
            self.in_force = Some(wanted);
        } else if before != Some(&wanted) {
            self.version += 1;
        }
    }

    /// The newest refusals of the three documents, credentials that do not work among them.
    pub(in crate::agent::run) fn tell_refusals(&self, wish: &Wish, report: &Reporting) {
        let documents = ["revision", "grant", "credentials"];
        let refused = documents.into_iter().zip(&wish.refusals);
        let refused = refused.filter_map(|(document, refusal)| Some((document, refusal.as_ref()?.reason())));
        let unproven = self.failure(wish).map(|_| ("credentials", "NotProven"));
        report.metrics().set_refused(refused.chain(unproven));
    }

    /// Whether the Secret holds something else than what is in force.
    fn wants_other(&self, wish: &Wish) -> bool {
        self.in_force.as_ref().is_some_and(|in_force| wish.wants_other(in_force))
    }

    /// Whether server connections are kept. While new credentials are not proven the old ones may end at any moment.
    pub(in crate::agent::run) fn keep(&self, given: Given<'_>) -> Keep {
        if self.is_refused() {
            Keep::Always
        } else if self.wants_other(given.wish) || given.sidecar.now() < self.deaf_until {
            // after a login that failed with the old ones PgBouncer pauses, and cuts clients once no connection is left
            Keep::UnlessInTheWay
        } else {
            Keep::No
        }
    }

    /// What a new process is to work with: what is in force. None before the first Secret.
    pub(in crate::agent::run) fn own(&self, run_dir: &Path) -> Option<OwnAccess<'_>> {
        let access = self.in_force.as_ref()?;
        Some(OwnAccess { credentials: &access.credentials, presented: certificate_paths(run_dir, access) })
    }

    /// What a process is to work with: what is in force, or its own as long as it keeps another user, with the certificate that was
    /// that user's. None before the first Secret.
    pub(in crate::agent::run) fn takes<'a>(&'a self, run_dir: &Path, slot: &'a Slot) -> Option<OwnAccess<'a>> {
        if !self.keeps_user(slot) {
            return self.own(run_dir);
        }
        Some(OwnAccess { credentials: slot.credentials()?, presented: slot.presented().cloned() })
    }

    /// Whether a process goes on with another user than the one in force: only a new one takes that over.
    pub(in crate::agent::run) fn keeps_user(&self, slot: &Slot) -> bool {
        self.in_force.as_ref().is_some_and(|access| slot.keeps_user(&access.credentials.username))
    }

    /// Whether the database has refused a user that the process that logged it keeps although another one is in force: that is no
    /// news of the one in force, and the process is told.
    pub(in crate::agent::run) fn is_of_kept_user(
        &self,
        slots: &mut Slots,
        error: PoolerError,
        from: Option<SlotName>,
        words: &str,
    ) -> bool {
        let Some(slot) = from.map(|from| slots.named_mut(from)) else { return false };
        let kept = self.keeps_user(slot).then(|| slot.credentials()).flatten();
        if !kept.is_some_and(|kept| is_of_role(error, words, &kept.username)) {
            return false;
        }
        if !slot.is_refused() {
            tracing::warn!(
                slot = slot.name().as_str(),
                "the database refuses the user before, as which clients are still connected"
            );
        }
        slot.was_refused();
        true
    }

    /// Why what the Secret holds is not in force; None while it is, or has not failed.
    pub(in crate::agent::run) fn failure(&self, wish: &Wish) -> Option<RotationFailure> {
        self.machine.failure(self.version).filter(|_| self.wants_other(wish))
    }

    /// Takes in how the login that was tried has ended, if it has. What the database said when that was one with what is in force.
    pub(in crate::agent::run) async fn take_outcome(&mut self) -> Option<TrialError> {
        let (access, login) = self.trial.as_mut()?;
        if !login.is_finished() || self.outcome != TrialOutcome::Open {
            return None;
        }
        let ended = login.await;
        let is_of_in_force = Some(&*access) == self.in_force.as_ref();
        let (outcome, said) = match ended {
            Ok(Ok(())) => (TrialOutcome::Passed, None),
            Ok(Err(error)) => (self.failed(error.to_string()), Some(error)),
            Err(error) => (self.failed(error.to_string()), None),
        };
        self.outcome = outcome;
        said.filter(|_| is_of_in_force)
    }

    /// Takes the next step. `is_able`: the process that new clients come to serves, and there is a program to try a login with.
    pub(in crate::agent::run) fn step(
        &mut self,
        given: Given<'_>,
        slots: &Slots,
        share: u32,
        is_able: bool,
    ) -> Option<RotationAction> {
        // one login at a time
        let seen = self.observe(given.wish, slots, share, is_able && !self.login_proof.needs_room());
        self.machine.step(given.sidecar.now(), &seen)
    }

    /// What a login that is to be tried meets in this pod.
    pub(super) fn observe(&self, wish: &Wish, slots: &Slots, share: u32, is_able: bool) -> RotationSeen {
        let wanted = if self.wants_other(wish) {
            Some(self.version)
        } else {
            // nothing else is wanted: whether logins work again shows by one
            (self.is_refused() || self.doubted).then_some(IN_FORCE)
        };
        let other = slots.other_counts().then_some(&slots.other);
        let counted = || std::iter::once(&slots.active).chain(other);
        let proves_itself = matches!(
            slots.phase(),
            SwitchPhase::Starting { .. }
                | SwitchPhase::MakingRoom { .. }
                | SwitchPhase::Proving { .. }
                | SwitchPhase::Replacing { .. }
                | SwitchPhase::Taking { .. }
        );
        RotationSeen {
            wanted,
            able: is_able && !proves_itself,
            share,
            bound: counted().map(Slot::bound).sum(),
            held: counted().map(Slot::held).sum(),
            // what is open is not given up to find out
            logins: if self.doubted { Logins::Refused } else { self.logins },
            trial: self.outcome,
        }
    }

    /// Starts a process that logs in with what is wanted.
    pub(in crate::agent::run) fn try_login(&mut self, given: Given<'_>, slots: &Slots, share: u32) {
        let Given { sidecar, wish, .. } = given;
        (self.outcome, self.trial) = (TrialOutcome::Open, None);
        let access = wish.access().filter(|_| self.wants_other(wish)).or_else(|| self.in_force.clone());
        let revision = slots.active.runs.as_ref().or(wish.revision.as_ref());
        let (Some(access), Some(revision), Some(program)) = (access, revision, &sidecar.program) else {
            self.outcome = self.failed("there is nothing to try".to_owned());
            return;
        };
        let milliseconds = if share == 1 { PROOF_DEADLINE } else { START_DEADLINE - 1000 };
        let run_dir = &sidecar.options.run_dir;
        if let Some(in_force) = &self.in_force
            && !self.to_hand_over
        {
            forget_files(run_dir, slots, in_force);
        }
        let prepared = lay_down(run_dir, &access).and_then(|()| {
            Login::prepare(&TrialSetup {
                program,
                directory: trial_directory(run_dir),
                injection: &sidecar.injection,
                settings: &revision.settings,
                // that is told apart, and says nothing of credentials
                role: UpstreamRole::Any,
                credentials: &access.credentials,
                // all of it: what is in force may be verified by another CA of it
                ca_file: place::bundle(&sidecar.injection, ca_path(run_dir, &access))
                    .map(|file| file.display().to_string()),
                presented: certificate_paths(run_dir, &access),
                resolver: sidecar.resolver.as_ref().map(|file| file.display().to_string()),
                within: Duration::from_millis(milliseconds),
                answers_within: Duration::from_millis(milliseconds),
                version: sidecar.build.map(|build| build.version),
            })
        });
        match prepared {
            Ok(login) => self.trial = Some((access, tokio::spawn(login.run()))),
            Err(error) => self.outcome = self.failed(error.to_string()),
        }
    }

    /// Ends the login that is tried.
    pub(in crate::agent::run) fn stop(&mut self) {
        if let Some((_, login)) = self.trial.take() {
            login.abort();
        }
    }

    /// What was tried works: it is in force. False where it was before.
    fn take_over(&mut self, now: Millis) -> bool {
        let Some((access, _)) = self.trial.take() else { return false };
        (self.logins, self.why) = (Logins::Work, None);
        self.doubted = false;
        if self.in_force.as_ref() == Some(&access) {
            return false;
        }
        tracing::info!(user = access.credentials.username, "new credentials have proven themselves");
        self.in_force = Some(access);
        self.to_hand_over = true;
        self.handed.clear();
        self.again.settled();
        self.deaf_until = now + UNDER_WAY;
        // what could not prove itself with the old ones may now
        self.login_proof.look_again();
        true
    }

    /// Whether what slots may open, or close, has changed since the last call.
    pub(in crate::agent::run) fn take_changed_bounds(&mut self) -> bool {
        let bounds = (self.set_aside() > 0, self.logins);
        std::mem::replace(&mut self.bounds, bounds) != bounds
    }

    /// Whether the slots are to be given what is in force.
    pub(in crate::agent::run) fn is_due_to_hand_over(&self, now: Millis) -> bool {
        self.to_hand_over && !self.again.is_pausing(now)
    }

    /// Keeps what is in force for a container that restarts. A volume that is full keeps no process from starting.
    pub(in crate::agent::run) fn note_in_force(&self, run_dir: &Path) {
        if let Some(access) = &self.in_force
            && let Err(error) = note(run_dir, access)
        {
            tracing::warn!("a container that restarts will not know what was in force: {error}");
        }
    }

    /// Says how far it is.
    pub(in crate::agent::run) fn tell(&self, wish: &Wish, slots: &Slots, report: &mut Reporting) {
        if self.is_refused() {
            report.problems.logins.is(
                "the database refused the last login with the credentials in force: server connections that are open are kept, \
                 and none is closed before a login works"
                    .to_owned(),
            );
        } else if let Some(slot) = [&slots.active, &slots.other].into_iter().find(|slot| slot.is_refused()) {
            let name = slot.name().as_str();
            report.problems.logins.is(format!(
                "the database refuses the user before, as which clients of slot {name} still work: the server connections that it \
                 has are kept, and none can be opened; once none is left, those clients are closed while they are idle"
            ));
        } else {
            report.problems.logins.is_over();
        }
        let Some(failure) = self.failure(wish) else {
            if !self.to_hand_over {
                report.problems.credentials.is_over();
            }
            return;
        };
        let why = match failure {
            RotationFailure::NoRoom => "running transactions left no server connection to try them with",
            RotationFailure::NotProven => self.why.as_deref().unwrap_or("they did not prove themselves"),
        };
        let text = format!(
            "what the Secret holds now is not in force: {why}; what worked before stays, and the new credentials are tried again, \
             within 90 s at the latest"
        );
        if report.problems.credentials.is(text) {
            tracing::warn!("new credentials are not taken over: {why}");
        }
    }

    fn failed(&mut self, why: String) -> TrialOutcome {
        tracing::info!("a login with the credentials that are tried did not work: {why}");
        self.why = Some(why);
        TrialOutcome::Failed
    }
}

impl ServerAccess {
    /// What was tried works: it is in force from now on, and whether the slots are to be given another CA with it. None where it was
    /// before.
    pub(in crate::agent::run) fn take_over(&mut self, sidecar: &Sidecar) -> Option<bool> {
        let now = sidecar.now();
        let is_other = self.rotating.take_over(now);
        is_other.then(|| self.verification.bundle_may_differ(sidecar, self.rotating.in_force(), now))
    }

    /// Has every slot that runs work with what is in force, and reads it back. What they cannot take over waits for a new process,
    /// where `applying` has one.
    pub(in crate::agent::run) async fn hand_over(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        applying: &Applying,
        report: &mut Reporting,
    ) {
        let sidecar = given.sidecar;
        let now = sidecar.now();
        let Some(access) = self.rotating.in_force.clone() else { return };
        // one that nobody can ask anything goes on with what it has
        let names: Vec<SlotName> = slots.to_ask().map(Slot::name).collect();
        let problem = &mut report.problems.credentials;
        if let Err(error) = note(&sidecar.options.run_dir, &access) {
            let text = format!("the new credentials are not in force: {error}");
            if problem.is(text) {
                tracing::warn!("credentials: {error}");
            }
            self.rotating.again.failed(now);
            return;
        }
        for name in names {
            if self.rotating.handed.contains(&name) {
                continue;
            }
            let not_in_force = format!("the new credentials are not in force in slot {}", name.as_str());
            match self.hand_to(given, slots, name, &access).await {
                Ok(Taken::Postponed) => {
                    return problem.may_pass(now, format!("{not_in_force}: {AWAITS_LOGINS}"));
                }
                // what is refused is taken over with the revision, once it may be
                Ok(Taken::Already | Taken::Now | Taken::Refused) => self.rotating.handed.push(name),
                Err(error) => {
                    if problem.is(format!("{not_in_force}: {error}")) {
                        tracing::warn!(slot = name.as_str(), "credentials: {error}");
                    }
                    self.rotating.again.failed(now);
                    return;
                }
            }
        }
        if self.rotating.keeps_user(&slots.active) {
            return tell_kept_user(sidecar, applying.may_switch(given, slots), problem);
        }
        let rotating = &mut self.rotating;
        rotating.to_hand_over = false;
        rotating.handed.clear();
        rotating.again.settled();
        problem.is_over();
        rotating.deaf_until = rotating.deaf_until.max(sidecar.now() + UNDER_WAY);
        forget_files(&sidecar.options.run_dir, slots, &access);
        tracing::info!(
            user = access.credentials.username,
            kept = slots.to_ask().any(|slot| self.rotating.keeps_user(slot)),
            "credentials in force in every slot that new clients come to, read back"
        );
    }

    async fn hand_to(
        &self,
        given: Given<'_>,
        slots: &mut Slots,
        name: SlotName,
        access: &Access,
    ) -> Result<Taken, SlotError> {
        let taken = match self.give_to(given, slots, name, access).await? {
            nothing_yet @ (Taken::Postponed | Taken::Refused) => return Ok(nothing_yet),
            taken => taken,
        };
        let slot = slots.named(name);
        let Sidecar { options, injection, .. } = given.sidecar;
        let Some(own) = self.rotating.takes(&options.run_dir, slot) else { return Ok(taken) };
        match log_in(slot.console.socket(), &injection.upstream.database, own.credentials, CONSOLE_DEADLINE).await {
            Err(error) if refuses_password(&error) => Err(error.into()),
            // in, or kept waiting, or turned away because it is full: none of it speaks against the password
            _ => Ok(taken),
        }
    }
}

/// The user in force waits for a new process.
fn tell_kept_user(sidecar: &Sidecar, may_switch: bool, problem: &mut Problem) {
    if may_switch {
        // what a switch waits for is told with it
        return problem.is_over();
    }
    let version = sidecar.build.map(|build| format!(" {}", build.version)).unwrap_or_default();
    let text = format!(
        "RestartRequired: {USER} changes only when the pod restarts: PgBouncer{version} would cut every client that is \
         connected, and no second process can be started here; the user before serves on"
    );
    if problem.is(text) {
        tracing::warn!("another user is wanted and waits for the pod's restart");
    }
}

/// Writes CA bundle, certificate and key to where a pooler is told to read them. Their names are those of their content: one that
/// changes is another file, so that none is read before it is in force.
pub(super) fn lay_down(run_dir: &Path, access: &Access) -> Result<(), TrialError> {
    for (path, content) in files(run_dir, access) {
        write_whole(&path, content).map_err(FileError::of(&path))?;
    }
    Ok(())
}

/// Removes the files that no slot reads any more.
fn forget_files(run_dir: &Path, slots: &Slots, access: &Access) {
    let mut read: Vec<PathBuf> = files(run_dir, access).into_iter().map(|(path, _)| path).collect();
    // a process that keeps another user keeps that one's certificate
    for presented in [&slots.active, &slots.other].into_iter().filter_map(Slot::presented) {
        read.extend([&presented.certificate_file, &presented.key_file].map(PathBuf::from));
    }
    for path in laid_down(run_dir).filter(|path| !read.contains(path)) {
        // it is only in the way
        let _ = fs::remove_file(path);
    }
}

/// Whether the refusal of a login speaks of the role that logged in. Words that are not understood may speak of something else: then
/// they do not name it, however their language quotes it.
fn is_of_role(error: PoolerError, words: &str, role: &str) -> bool {
    let is_end = |character: Option<char>| character.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let names = |(at, found): (usize, &str)| {
        is_end(words[..at].chars().next_back()) && is_end(words[at + found.len()..].chars().next())
    };
    error != PoolerError::ServerRefused || words.match_indices(role).any(names)
}

fn refuses_password(error: &ConsoleError) -> bool {
    let ConsoleError::Command { source, .. } = error else { return false };
    source.as_db_error().is_some_and(|error| error.message().contains("authentication failed"))
}

/// Where a login is tried.
pub(super) fn trial_directory(run_dir: &Path) -> PathBuf {
    run_dir.join(TRIAL_DIRECTORY)
}

/// Where the CA bundle stands.
pub(super) fn ca_path(run_dir: &Path, access: &Access) -> Option<PathBuf> {
    Some(run_dir.join(format!("{CA_FILE}{}.crt", name_of(access.server_ca.as_ref()?))))
}

/// Where what the database is shown stands. The key is that of its certificate, which names it.
fn certificate_paths(run_dir: &Path, access: &Access) -> Option<Presented> {
    let name = name_of(&access.certificate.as_ref()?.chain);
    let path = |kind: &str| run_dir.join(format!("{CERTIFICATE_FILE}{name}.{kind}")).display().to_string();
    Some(Presented { certificate_file: path("crt"), key_file: path("key") })
}

fn name_of(content: &[u8]) -> String {
    fingerprint(content, 8)
}

/// What a pooler reads of it, and where.
fn files<'a>(run_dir: &Path, access: &'a Access) -> Vec<(PathBuf, &'a [u8])> {
    let bundle = ca_path(run_dir, access).zip(access.server_ca.as_deref());
    let pair = certificate_paths(run_dir, access).zip(access.certificate.as_ref());
    let pair = pair.map(|(Presented { certificate_file, key_file }, PoolerCertificate { chain, key })| {
        [(PathBuf::from(certificate_file), chain.as_slice()), (PathBuf::from(key_file), key.as_slice())]
    });
    bundle.into_iter().chain(pair.into_iter().flatten()).collect()
}

fn laid_down(run_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let is_ours = |name: &str| name.starts_with(CA_FILE) || name.starts_with(CERTIFICATE_FILE);
    entries.filter(move |entry| is_ours(&entry.file_name().to_string_lossy())).map(|entry| entry.path())
}

/// What is in force, as it is kept for a container that restarts.
#[derive(Serialize, Deserialize)]
struct Noted {
    username: String,
    password: String,
    /// Where its CA bundle stands.
    server_ca: Option<PathBuf>,
    /// Where its certificate and the key stand.
    certificate: Option<[PathBuf; 2]>,
}

/// Keeps what is in force, before any process works with it. The volume is in memory and outlives the container.
fn note(run_dir: &Path, access: &Access) -> Result<(), FileError> {
    let Credentials { username, password } = access.credentials.clone();
    let certificate = certificate_paths(run_dir, access)
        .map(|presented| [presented.certificate_file, presented.key_file].map(PathBuf::from));
    let noted = Noted { username, password, server_ca: ca_path(run_dir, access), certificate };
    let path = run_dir.join(IN_FORCE_FILE);
    let written = serde_json::to_vec(&noted).map_err(io::Error::from).and_then(|text| write_whole(&path, &text));
    written.map_err(FileError::of(&path))
}

/// What was in force in this pod last.
fn left(run_dir: &Path, tls: ServerTls) -> Option<Access> {
    let Noted { username, password, server_ca, certificate } =
        serde_json::from_slice(&fs::read(run_dir.join(IN_FORCE_FILE)).ok()?).ok()?;
    let server_ca = if tls.own_ca { Some(fs::read(server_ca?).ok()?) } else { None };
    let certificate = if tls.own_certificate {
        let [chain, key] = certificate?.map(fs::read);
        Some(PoolerCertificate { chain: chain.ok()?, key: key.ok()? })
    } else {
        None
    };
    Some(Access { credentials: Credentials { username, password }, server_ca, certificate })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::contract::ServerTlsMode;

    #[test]
    fn a_refusal_is_of_the_role_of_the_process_that_logged_it_unless_its_words_are_not_understood_and_do_not_name_it() {
        for words in
            ["permission denied for database \"shop\"", "no pg_hba.conf entry for user \"shop_2\", database \"shop\""]
        {
            for role in ["shop", "shop_2"] {
                assert!(is_of_role(PoolerError::ServerLoginRefused, words, role), "{words} {role}");
            }
        }
        let names = |words, role| is_of_role(PoolerError::ServerRefused, words, role);
        let german = "Rolle »shop« hat keine Berechtigung zum Einloggen";
        assert!(names(german, "shop"));
        assert!(!names(german, "shop_2") && !names(german, "sho") && !names(german, "hop"));
        assert!(!names("tut mir leid, schon zu viele Verbindungen", "shop"));
    }

    #[test]
    fn a_container_that_restarts_begins_with_what_was_in_force() {
        let directory = TempDir::new().unwrap();
        let with = |own_ca, own_certificate| {
            left(directory.path(), ServerTls { mode: ServerTlsMode::VerifyFull, own_ca, own_certificate })
        };
        assert_eq!(with(false, false), None);
        let credentials = Credentials { username: "new".to_owned(), password: "se\"cret\n".to_owned() };
        let access = Access { credentials, server_ca: None, certificate: None };
        note(directory.path(), &access).unwrap();
        assert_eq!(with(false, false).as_ref(), Some(&access));
        assert_eq!(with(true, false), None, "without its bundle it is nothing");
        assert_eq!(with(false, true), None, "nor without its certificate");
        let (server_ca, chain, key) = (b"-----BEGIN".to_vec(), b"chain".to_vec(), b"key".to_vec());
        let whole =
            Access { server_ca: Some(server_ca), certificate: Some(PoolerCertificate { chain, key }), ..access };
        note(directory.path(), &whole).unwrap();
        for (path, content) in files(directory.path(), &whole) {
            assert_eq!(with(true, true), None, "nor with {} that is gone", path.display());
            fs::write(path, content).unwrap();
        }
        assert_eq!(with(true, true), Some(whole));
    }
}
