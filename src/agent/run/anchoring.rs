//! The one CA that PgBouncer verifies the database with: the shell around [`crate::agent::decide::anchor`].
//!
//! Each is a file named by its content, in the volume in memory, which outlives the container: one that restarts begins with it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Agent;
use crate::{
    agent::{
        apply::{
            files::write_whole,
            slot::{Slot, Taken},
        },
        decide::{
            anchor::{Anchor, Anchoring, Trust, Why, anchors, size},
            machine::Millis,
            retry::Retry,
            slot_name::SlotName,
        },
    },
    contract::{ServerTlsMode, TrustReport},
    decide::memory::Bundle,
    fingerprint::fingerprint,
};

/// Beginning of the name of its file in the run directory.
const FILE: &str = "server-anchor-";
/// Bytes of the fingerprint in it.
const NAME_BYTES: usize = 8;
/// The first process is not started before the database has shown its certificate, or for so long.
const FIRST_LOOK: Millis = 1000;

/// What the loop keeps in mind of handing it to the slots.
#[derive(Default)]
pub(super) struct Handing {
    knows_bundle: bool,
    /// Since when the first look is waited for.
    waits_since: Option<Millis>,
    /// Whether a slot may have another one.
    is_open: bool,
    /// The slots that have it already.
    handed: Vec<SlotName>,
    again: Retry,
    /// What the whole bundle holds.
    whole: Bundle,
}

/// Begins with what was laid down last.
pub(super) fn take_up(run_dir: &Path) -> Anchoring {
    let newest = laid_down(run_dir).max_by_key(|path| fs::metadata(path).and_then(|file| file.modified()).ok());
    let text = newest.and_then(|path| fs::read(path).ok()).unwrap_or_default();
    Anchoring::new(anchors(&text).into_iter().next())
}

fn laid_down(run_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(FILE)).map(|entry| entry.path())
}

fn path(run_dir: &Path, anchor: &Anchor) -> PathBuf {
    run_dir.join(format!("{FILE}{}.crt", fingerprint(anchor.pem(), NAME_BYTES)))
}

impl Agent {
    fn verifies(&self) -> bool {
        matches!(self.sidecar.injection.upstream.tls.mode, ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull)
    }

    /// Whether the database is to be asked which CA verifies it.
    pub(super) fn wants_anchor(&self, now: Millis) -> bool {
        self.verifies()
            && self.access.rotating.in_force().is_some()
            && self.access.verification.anchoring.wants_look(now)
    }

    /// The bundle is known once there are credentials.
    pub(super) fn know_bundle(&mut self, now: Millis) {
        if !self.access.verification.handing.knows_bundle && self.access.rotating.in_force().is_some() {
            self.bundle_may_differ(now);
        }
    }

    /// Another bundle may be in force.
    pub(super) fn bundle_may_differ(&mut self, now: Millis) {
        self.access.verification.handing.knows_bundle = true;
        if !self.verifies() {
            return;
        }
        let bundle = self.bundle().unwrap_or_default();
        self.access.verification.handing.whole = size(&bundle);
        if self.access.verification.anchoring.bundle_is(now, &bundle) {
            self.hand_anew();
        }
    }

    /// The file that is written for PgBouncer; None: it reads the whole bundle.
    pub(super) fn anchor_file(&self) -> Option<PathBuf> {
        self.access
            .verification
            .anchoring
            .anchor()
            .filter(|_| self.verifies())
            .map(|anchor| path(&self.sidecar.options.run_dir, anchor))
    }

    /// What each server connection has a copy of; None where nothing is verified.
    pub(super) fn copied(&self) -> Option<Bundle> {
        // while a slot may have another file, the larger counts
        let one = self.access.verification.anchoring.anchor().filter(|_| !self.access.verification.handing.is_open);
        self.verifies().then(|| one.map_or(self.access.verification.handing.whole, |anchor| size(anchor.pem())))
    }

    /// Whether the first process waits for the database to show its certificate.
    pub(super) fn awaits_certificate(&mut self, now: Millis) -> bool {
        if !self.verifies() || *self.access.verification.anchoring.trust() != Trust::Whole(Why::NotSeen) {
            return false;
        }
        let since = *self.access.verification.handing.waits_since.get_or_insert(now);
        now.saturating_sub(since) < FIRST_LOOK && self.access.verification.certificate.is_looking()
    }

    /// Each of these verifies the database.
    pub(super) fn take_anchor(&mut self, now: Millis, found: Vec<Anchor>) {
        if !self.verifies() || !self.access.verification.anchoring.saw(now, found) {
            return;
        }
        match self.access.verification.anchoring.trust() {
            Trust::One(anchor) => tracing::info!(
                ca = anchor.name(),
                "one CA verifies the database: PgBouncer is given that one, and not the {} of the bundle",
                self.access.verification.handing.whole.certificates
            ),
            Trust::Whole(_) => {
                tracing::warn!("{}", self.trust_report().and_then(|told| told.whole).unwrap_or_default());
            }
        }
        self.hand_anew();
    }

    fn hand_anew(&mut self) {
        if let Some(anchor) = self
            .access
            .verification
            .anchoring
            .anchor()
            .filter(|anchor| !path(&self.sidecar.options.run_dir, anchor).is_file())
            && let Err(error) = write_whole(&path(&self.sidecar.options.run_dir, anchor), anchor.pem())
        {
            self.lose_anchor(&error);
        }
        (self.access.verification.handing.is_open, self.applying.to_be_applied) = (true, true);
        self.access.verification.handing.handed.clear();
        self.access.verification.handing.again.settled();
    }

    /// It cannot be written: the whole bundle stays, and it is looked for again later.
    fn lose_anchor(&mut self, error: &io::Error) {
        tracing::warn!("writing the CA that verifies the database: {error}; PgBouncer is given the whole bundle");
        self.access.verification.anchoring = Anchoring::new(None);
        let now = self.now();
        self.access.verification.anchoring.looks(now);
    }

    /// Has every slot that runs verify the database with what is in force, read back.
    pub(super) async fn hand_anchor(&mut self, now: Millis) {
        if !self.access.verification.handing.is_open || self.access.verification.handing.again.is_pausing(now) {
            return;
        }
        let Some(access) = self.access.rotating.in_force().cloned() else { return };
        let names: Vec<SlotName> = self.slots_to_ask().map(Slot::name).collect();
        for name in names {
            if self.access.verification.handing.handed.contains(&name) {
                continue;
            }
            match self.give_to(name, &access).await {
                Ok(Taken::Postponed) => return,
                // what is refused is given with the revision, once it may be
                Ok(Taken::Already | Taken::Now | Taken::Refused) => self.access.verification.handing.handed.push(name),
                Err(error) => {
                    tracing::warn!(slot = name.as_str(), "another CA to verify the database with: {error}");
                    return self.access.verification.handing.again.failed(now);
                }
            }
        }
        self.access.verification.handing.is_open = false;
        self.access.verification.handing.again.settled();
        // one that nobody can ask reads what it was given, for each server connection
        if !self.slots.other.is_running() || self.can_ask_other() {
            let read = self.anchor_file();
            for path in laid_down(&self.sidecar.options.run_dir).filter(|path| Some(path) != read.as_ref()) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// What verifies the database, as it is told; None where nothing does.
    pub(super) fn trust_report(&self) -> Option<TrustReport> {
        let certificates = self.copied()?.certificates;
        let host = &self.sidecar.injection.upstream.host;
        let whole = match self.access.verification.anchoring.trust() {
            Trust::One(_) | Trust::Whole(Why::NotSeen | Why::Few) => None,
            Trust::Whole(Why::NoAnchor) => Some(format!(
                "the certificate of {host} is verified by no root CA of the bundle alone: have the server send its intermediate \
                 CAs, or name a bundle with the root CA in upstream.tls.caRef"
            )),
            Trust::Whole(Why::Refused(name)) => Some(format!(
                "PgBouncer does not accept the certificate of {host} by {name:?} alone, which verifies it for the agent: name a \
                 bundle with the CAs of this server only in upstream.tls.caRef"
            )),
        };
        let whole =
            whole.map(|why| format!("PgBouncer keeps all {certificates} CAs for each server connection: {why}"));
        Some(TrustReport { certificates, ca: self.access.verification.anchoring.anchor().map(Anchor::name), whole })
    }
}
