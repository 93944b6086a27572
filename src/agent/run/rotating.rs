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

use super::{Agent, place};
use crate::{
    agent::{
        apply::{
            files::{FileError, write_whole},
            slot::{CONSOLE_DEADLINE, Keep, Slot, SlotError, Taken, USER, When},
            trial::{Login, TrialError, TrialSetup},
        },
        decide::{
            machine::Millis,
            retry::Retry,
            rotation::{Logins, Rotation, RotationAction, RotationFailure, RotationSeen, TrialOutcome},
            slot_name::SlotName,
            switch::{PROOF_DEADLINE, START_DEADLINE, SwitchPhase},
            wish::Access,
        },
        options::RunOptions,
    },
    contract::{Injection, PoolerError, ServerTls, SessionAlias},
    fingerprint::fingerprint,
    pooler::pgbouncer::{
        console::{ConsoleError, log_in},
        limits::WantedLimits,
        render::{Credentials, PoolerCertificate, Presented},
    },
};

/// Where new credentials are tried, beside the slots.
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
pub(super) const AWAITS_LOGINS: &str =
    "waits until no server connection logs in to the database: PgBouncer would cut clients";

/// What is told while a RELOAD or a RECONNECT would close what could not be opened again.
pub(super) const AWAITS_USER: &str = "waits until the database lets the pool log in again";

/// What one process logs in to the database with.
pub(super) struct OwnAccess<'a> {
    pub(super) credentials: &'a Credentials,
    pub(super) presented: Option<Presented>,
}

/// What the loop keeps in mind of a rotation.
pub(super) struct Rotating {
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
}

impl Rotating {
    /// Begins with what the slots were given last.
    pub(super) fn take_up(options: &RunOptions, injection: &Injection) -> Self {
        let in_force = left(&options.run_dir, injection.upstream.tls);
        Self {
            machine: Rotation::new(place::spread(&options.pod_uid)),
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
    pub(super) fn in_force(&self) -> Option<&Access> {
        self.in_force.as_ref()
    }

    /// The slots run with what another agent gave them, perhaps not all with the same.
    pub(super) fn slots_are_taken_up(&mut self) {
        self.to_hand_over = self.in_force.is_some();
    }

    /// Server connections of the share that the slots may not open now.
    pub(super) fn set_aside(&self) -> u32 {
        self.machine.needs_room().into()
    }

    /// Server connections open beside the slots.
    pub(super) fn holds(&self) -> u32 {
        self.machine.is_trying().into()
    }

    /// Whether a server connection that ends could not be opened again.
    pub(super) fn is_refused(&self) -> bool {
        self.logins == Logins::Refused
    }

    /// A reading showed whether a slot has logged in to the database with what is in force since the one before. In the first one
    /// after a refusal that may have been earlier than the refusal.
    pub(super) fn read(&mut self, logged_in: bool) {
        if !std::mem::take(&mut self.unread) && logged_in {
            (self.logins, self.doubted) = (Logins::Work, false);
        }
    }

    /// The database has refused a slot.
    pub(super) fn was_refused(&mut self, now: Millis) {
        if now >= self.deaf_until {
            (self.logins, self.unread) = (Logins::Refused, true);
        }
    }

    /// The database has refused a slot, and nobody knows why: a login of our own finds out. Nothing is held back for that.
    pub(super) fn is_in_doubt(&mut self, now: Millis) {
        if now >= self.deaf_until {
            (self.doubted, self.unread) = (true, true);
        }
    }

    /// Whether a refusal was not understood.
    pub(super) fn is_doubtful(&self) -> bool {
        self.doubted
    }

    /// It is known why.
    pub(super) fn is_resolved(&mut self) {
        self.doubted = false;
    }
}

impl Agent {
    /// The Secret may hold something else.
    pub(super) fn take_access(&mut self, before: Option<&Access>) {
        let Some(wanted) = self.configuration.wish.access() else { return };
        let rotating = &mut self.access.rotating;
        if rotating.in_force.is_none() {
            // there is nothing that goes on when this does not work
            rotating.in_force = Some(wanted);
        } else if before != Some(&wanted) {
            rotating.version += 1;
        }
    }

    /// The newest refusals of the three documents, credentials that do not work among them.
    pub(super) fn tell_refusals(&mut self) {
        let documents = ["revision", "grant", "credentials"];
        let refused = documents.into_iter().zip(&self.configuration.wish.refusals);
        let refused = refused.filter_map(|(document, refusal)| Some((document, refusal.as_ref()?.reason())));
        let unproven = self.failure().map(|_| ("credentials", "NotProven"));
        self.report.published.metrics.set_refused(refused.chain(unproven));
    }

    /// Whether the Secret holds something else than what is in force.
    fn wants_other_access(&self) -> bool {
        self.access.rotating.in_force.as_ref().is_some_and(|in_force| self.configuration.wish.wants_other(in_force))
    }

    /// Whether server connections are kept. While new credentials are not proven the old ones may end at any moment.
    pub(super) fn keep(&self) -> Keep {
        if self.access.rotating.is_refused() {
            Keep::Always
        } else if self.wants_other_access() || self.now() < self.access.rotating.deaf_until {
            // after a login that failed with the old ones PgBouncer pauses, and cuts clients once no connection is left
            Keep::UnlessInTheWay
        } else {
            Keep::No
        }
    }

    /// What a new process is to work with: what is in force. None before the first Secret.
    pub(super) fn own(&self) -> Option<OwnAccess<'_>> {
        let access = self.access.rotating.in_force.as_ref()?;
        Some(OwnAccess {
            credentials: &access.credentials,
            presented: certificate_paths(&self.sidecar.options.run_dir, access),
        })
    }

    /// What a process is to work with: what is in force, or its own as long as it keeps another user, with the certificate that was
    /// that user's. None before the first Secret.
    pub(super) fn takes<'a>(&'a self, slot: &'a Slot) -> Option<OwnAccess<'a>> {
        if !self.keeps_user(slot) {
            return self.own();
        }
        Some(OwnAccess { credentials: slot.credentials()?, presented: slot.presented().cloned() })
    }

    /// Whether a process goes on with another user than the one in force: only a new one takes that over.
    pub(super) fn keeps_user(&self, slot: &Slot) -> bool {
        self.access.rotating.in_force.as_ref().is_some_and(|access| slot.keeps_user(&access.credentials.username))
    }

    /// Whether the database has refused a user that the process that logged it keeps although another one is in force: that is no
    /// news of the one in force, and the process is told.
    pub(super) fn is_of_kept_user(&mut self, error: PoolerError, from: Option<SlotName>, words: &str) -> bool {
        let of_active = from == Some(self.slots.active.name());
        let slot = if of_active { &self.slots.active } else { &self.slots.other };
        let kept = (from == Some(slot.name()) && self.keeps_user(slot)).then(|| slot.credentials()).flatten();
        if !kept.is_some_and(|kept| is_of_role(error, words, &kept.username)) {
            return false;
        }
        let slot = if of_active { &mut self.slots.active } else { &mut self.slots.other };
        if !slot.is_refused() {
            tracing::warn!(
                slot = slot.name().as_str(),
                "the database refuses the user before, as which clients are still connected"
            );
        }
        slot.was_refused();
        true
    }

    /// Whether the database refuses what the process that new clients come to logs in with: what is closed of it could not be opened
    /// again.
    pub(super) fn is_refused(&self) -> bool {
        self.access.rotating.is_refused() || self.slots.active.is_refused()
    }

    /// Why what the Secret holds is not in force; None while it is, or has not failed.
    fn failure(&self) -> Option<RotationFailure> {
        self.access.rotating.machine.failure(self.access.rotating.version).filter(|_| self.wants_other_access())
    }

    /// Takes the next step of a rotation.
    pub(super) async fn rotate(&mut self, now: Millis, answering: bool) {
        if let Some((_, task)) = &mut self.access.rotating.trial
            && task.is_finished()
            && self.access.rotating.outcome == TrialOutcome::Open
        {
            self.access.rotating.outcome = match task.await {
                Ok(Ok(())) => TrialOutcome::Passed,
                Ok(Err(error)) => {
                    if self.access.rotating.trial.as_ref().map(|(access, _)| access)
                        == self.access.rotating.in_force.as_ref()
                    {
                        self.learn_from(&error);
                    }
                    self.access.rotating.failed(error.to_string())
                }
                Err(error) => self.access.rotating.failed(error.to_string()),
            };
        }
        let seen = self.observe_rotation();
        let told = self.failure();
        match self.access.rotating.machine.step(self.now(), &seen) {
            Some(RotationAction::Try) => self.try_login(),
            Some(RotationAction::TakeOver) => self.take_over_access(),
            Some(RotationAction::Stop) => {
                if let Some((_, login)) = self.access.rotating.trial.take() {
                    login.abort();
                }
            }
            None => {}
        }
        // what slots may open, or close, has changed
        let bounds = (self.access.rotating.machine.needs_room(), self.access.rotating.logins);
        if std::mem::replace(&mut self.access.rotating.bounds, bounds) != bounds {
            self.applying.next_look = 0;
            self.applying.to_be_applied = true;
        }
        if self.access.rotating.to_hand_over && answering && !self.access.rotating.again.is_pausing(now) {
            self.hand_over().await;
        }
        self.tell_rotation();
        if told != self.failure() {
            self.tell_refusals();
        }
    }

    fn observe_rotation(&self) -> RotationSeen {
        let wanted = if self.wants_other_access() {
            Some(self.access.rotating.version)
        } else {
            // nothing else is wanted: whether logins work again shows by one
            (self.access.rotating.is_refused() || self.access.rotating.doubted).then_some(IN_FORCE)
        };
        let other = self.other_counts().then_some(&self.slots.other);
        let slots = || std::iter::once(&self.slots.active).chain(other);
        let proves_itself = matches!(
            self.slots.switch.phase(),
            SwitchPhase::Starting { .. }
                | SwitchPhase::MakingRoom { .. }
                | SwitchPhase::Proving { .. }
                | SwitchPhase::Replacing { .. }
                | SwitchPhase::Taking { .. }
        );
        RotationSeen {
            wanted,
            able: self.liveness.machine.is_serving() && self.sidecar.program.is_some() && !proves_itself,
            share: self.grant().share,
            bound: slots().map(Slot::bound).sum(),
            held: slots().map(Slot::held).sum(),
            // what is open is not given up to find out
            logins: if self.access.rotating.doubted { Logins::Refused } else { self.access.rotating.logins },
            trial: self.access.rotating.outcome,
        }
    }

    /// Starts a process that logs in with what is wanted.
    fn try_login(&mut self) {
        (self.access.rotating.outcome, self.access.rotating.trial) = (TrialOutcome::Open, None);
        let access = self
            .configuration
            .wish
            .access()
            .filter(|_| self.wants_other_access())
            .or_else(|| self.access.rotating.in_force.clone());
        let revision = self.slots.active.runs.as_ref().or(self.configuration.wish.revision.as_ref());
        let (Some(access), Some(revision), Some(program)) = (access, revision, &self.sidecar.program) else {
            self.access.rotating.outcome = self.access.rotating.failed("there is nothing to try".to_owned());
            return;
        };
        let milliseconds = if self.grant().share == 1 { PROOF_DEADLINE } else { START_DEADLINE - 1000 };
        if let Some(in_force) = &self.access.rotating.in_force
            && !self.access.rotating.to_hand_over
        {
            self.forget_files(in_force);
        }
        let prepared = self.lay_down(&access).and_then(|()| {
            Login::prepare(&TrialSetup {
                program,
                directory: self.sidecar.options.run_dir.join(TRIAL_DIRECTORY),
                injection: &self.sidecar.injection,
                settings: &revision.settings,
                credentials: &access.credentials,
                // all of it: what is in force may be verified by another CA of it
                ca_file: place::bundle(&self.sidecar.injection, ca_path(&self.sidecar.options.run_dir, &access))
                    .map(|file| file.display().to_string()),
                presented: certificate_paths(&self.sidecar.options.run_dir, &access),
                resolver: self.sidecar.resolver.as_ref().map(|file| file.display().to_string()),
                within: Duration::from_millis(milliseconds),
                version: self.sidecar.build.map(|build| build.version),
            })
        });
        match prepared {
            Ok(login) => self.access.rotating.trial = Some((access, tokio::spawn(login.run()))),
            Err(error) => self.access.rotating.outcome = self.access.rotating.failed(error.to_string()),
        }
    }

    fn take_over_access(&mut self) {
        let now = self.now();
        let Some((access, _)) = self.access.rotating.trial.take() else { return };
        (self.access.rotating.logins, self.access.rotating.why) = (Logins::Work, None);
        self.access.rotating.doubted = false;
        if self.access.rotating.in_force.as_ref() == Some(&access) {
            return;
        }
        tracing::info!(user = access.credentials.username, "new credentials have proven themselves");
        self.access.rotating.in_force = Some(access);
        self.bundle_may_differ(now);
        self.access.rotating.to_hand_over = true;
        self.access.rotating.handed.clear();
        self.access.rotating.again.settled();
        self.access.rotating.deaf_until = now + UNDER_WAY;
        // what could not prove itself with the old ones may now
        self.switching.another_is_wanted();
    }

    /// Has every slot that runs work with what is in force, and reads it back.
    async fn hand_over(&mut self) {
        let now = self.now();
        let Some(access) = self.access.rotating.in_force.clone() else { return };
        // one that nobody can ask anything goes on with what it has
        let names: Vec<SlotName> = self.slots_to_ask().map(Slot::name).collect();
        if let Err(error) = note(&self.sidecar.options.run_dir, &access) {
            let text = format!("the new credentials are not in force: {error}");
            if self.report.problems.credentials.is(text) {
                tracing::warn!("credentials: {error}");
            }
            self.access.rotating.again.failed(now);
            return;
        }
        for name in names {
            if self.access.rotating.handed.contains(&name) {
                continue;
            }
            let not_in_force = format!("the new credentials are not in force in slot {}", name.as_str());
            match self.hand_to(name, &access).await {
                Ok(Taken::Postponed) => {
                    return self.report.problems.credentials.may_pass(now, format!("{not_in_force}: {AWAITS_LOGINS}"));
                }
                // what is refused is taken over with the revision, once it may be
                Ok(Taken::Already | Taken::Now | Taken::Refused) => self.access.rotating.handed.push(name),
                Err(error) => {
                    if self.report.problems.credentials.is(format!("{not_in_force}: {error}")) {
                        tracing::warn!(slot = name.as_str(), "credentials: {error}");
                    }
                    self.access.rotating.again.failed(now);
                    return;
                }
            }
        }
        if self.keeps_user(&self.slots.active) {
            return self.tell_kept_user();
        }
        self.access.rotating.to_hand_over = false;
        self.access.rotating.handed.clear();
        self.access.rotating.again.settled();
        self.report.problems.credentials.is_over();
        self.access.rotating.deaf_until = self.access.rotating.deaf_until.max(self.now() + UNDER_WAY);
        self.forget_files(&access);
        tracing::info!(
            user = access.credentials.username,
            kept = self.slots_to_ask().any(|slot| self.keeps_user(slot)),
            "credentials in force in every slot that new clients come to, read back"
        );
    }

    /// Keeps what is in force for a container that restarts. A volume that is full keeps no process from starting.
    pub(super) fn note_in_force(&self) {
        if let Some(access) = &self.access.rotating.in_force
            && let Err(error) = note(&self.sidecar.options.run_dir, access)
        {
            tracing::warn!("a container that restarts will not know what was in force: {error}");
        }
    }

    /// The user in force waits for a new process.
    fn tell_kept_user(&mut self) {
        if self.may_switch() {
            // what a switch waits for is told with it
            return self.report.problems.credentials.is_over();
        }
        let version = self.sidecar.build.map(|build| format!(" {}", build.version)).unwrap_or_default();
        let text = format!(
            "RestartRequired: {USER} changes only when the pod restarts: PgBouncer{version} would cut every client that is \
             connected, and no second process can be started here; the user before serves on"
        );
        if self.report.problems.credentials.is(text) {
            tracing::warn!("another user is wanted and waits for the pod's restart");
        }
    }

    async fn hand_to(&mut self, name: SlotName, access: &Access) -> Result<Taken, SlotError> {
        let taken = match self.give_to(name, access).await? {
            nothing_yet @ (Taken::Postponed | Taken::Refused) => return Ok(nothing_yet),
            taken => taken,
        };
        let slot = if self.slots.active.name() == name { &self.slots.active } else { &self.slots.other };
        let Some(own) = self.takes(slot) else { return Ok(taken) };
        let socket = slot.console.socket();
        match log_in(socket, &self.sidecar.injection.upstream.database, own.credentials, CONSOLE_DEADLINE).await {
            Err(error) if refuses_password(&error) => Err(error.into()),
            // in, or kept waiting, or turned away because it is full: none of it speaks against the password
            _ => Ok(taken),
        }
    }

    /// Has a process that runs go on with what it runs and what is in force beside it: the credentials that it takes, and what verifies
    /// the database.
    pub(super) async fn give_to(&mut self, name: SlotName, access: &Access) -> Result<Taken, SlotError> {
        let now = self.now();
        self.lay_down(access).map_err(|error| SlotError::Access { reason: error.to_string() })?;
        let of_active = self.slots.active.name() == name;
        let slot = if of_active { &mut self.slots.active } else { &mut self.slots.other };
        let limits = match slot.limits_to_keep() {
            Some(limits) => limits,
            None => slot.read_limits().await?,
        };
        // of a process that another agent started, the alias alone is known; without it, its sessions would be cut
        let alias = slot
            .alias
            .as_ref()
            .map(|alias| SessionAlias { database: alias.name.clone(), connections: alias.connections });
        let runs = slot.runs.clone().or_else(|| {
            let mut revision = self.configuration.wish.revision.clone()?;
            revision.settings.session_alias = alias;
            Some(revision)
        });
        let wanted =
            WantedLimits { limit: limits.pool_size, warm: limits.min_pool_size, share: limits.max_db_connections.max(1) };
        let slot = if of_active { &self.slots.active } else { &self.slots.other };
        if slot.is_refused() {
            // what is open is all that its clients will ever have
            return Ok(Taken::Refused);
        }
        let Some(own) = self.takes(slot) else { return Ok(Taken::Already) };
        let rendered = match self.render_for(name, runs.as_ref(), wanted, own) {
            Some(Ok((_, rendered))) => rendered,
            Some(Err(error)) => return Err(SlotError::Access { reason: error.to_string() }),
            None => return Ok(Taken::Already),
        };
        let slot = if of_active { &mut self.slots.active } else { &mut self.slots.other };
        match slot.take_over(rendered, When::Quiet(now)).await {
            // the rest of what it runs waits for a new process; this does not
            Err(SlotError::RestartRequired { .. }) => Ok(Taken::Now),
            taken => taken,
        }
    }

    fn tell_rotation(&mut self) {
        if self.access.rotating.is_refused() {
            self.report.problems.logins.is(
                "the database refused the last login with the credentials in force: server connections that are open are kept, \
                 and none is closed before a login works"
                    .to_owned(),
            );
        } else if let Some(slot) = [&self.slots.active, &self.slots.other].into_iter().find(|slot| slot.is_refused()) {
            let name = slot.name().as_str();
            self.report.problems.logins.is(format!(
                "the database refuses the user before, as which clients of slot {name} still work: the server connections that it \
                 has are kept, and none can be opened; once none is left, those clients are closed while they are idle"
            ));
        } else {
            self.report.problems.logins.is_over();
        }
        let Some(failure) = self.failure() else {
            if !self.access.rotating.to_hand_over {
                self.report.problems.credentials.is_over();
            }
            return;
        };
        let why = match failure {
            RotationFailure::NoRoom => "running transactions left no server connection to try them with",
            RotationFailure::NotProven => {
                self.access.rotating.why.as_deref().unwrap_or("they did not prove themselves")
            }
        };
        let text = format!(
            "what the Secret holds now is not in force: {why}; what worked before stays, and the new credentials are tried again, \
             within 90 s at the latest"
        );
        if self.report.problems.credentials.is(text) {
            tracing::warn!("new credentials are not taken over: {why}");
        }
    }

    /// Writes CA bundle, certificate and key to where a pooler is told to read them. Their names are those of their content: one that
    /// changes is another file, so that none is read before it is in force.
    pub(super) fn lay_down(&self, access: &Access) -> Result<(), TrialError> {
        for (path, content) in files(&self.sidecar.options.run_dir, access) {
            write_whole(&path, content).map_err(FileError::of(&path))?;
        }
        Ok(())
    }

    /// Removes the files that no slot reads any more.
    fn forget_files(&self, access: &Access) {
        let mut read: Vec<PathBuf> =
            files(&self.sidecar.options.run_dir, access).into_iter().map(|(path, _)| path).collect();
        // a process that keeps another user keeps that one's certificate
        for presented in [&self.slots.active, &self.slots.other].into_iter().filter_map(Slot::presented) {
            read.extend([&presented.certificate_file, &presented.key_file].map(PathBuf::from));
        }
        for path in laid_down(&self.sidecar.options.run_dir).filter(|path| !read.contains(path)) {
            // it is only in the way
            let _ = fs::remove_file(path);
        }
    }
}

impl Rotating {
    fn failed(&mut self, why: String) -> TrialOutcome {
        tracing::info!("a login with the credentials that are tried did not work: {why}");
        self.why = Some(why);
        TrialOutcome::Failed
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
