//! The one CA that PgBouncer verifies the database with: the shell around [`crate::agent::decide::anchor`].
//!
//! Each is a file named by its content, in the volume in memory, which outlives the container: one that restarts begins with it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{ServerAccess, Verification, certificate, verifies};
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
            wish::Access,
        },
        run::{Sidecar, sidecar::Given, slots::Slots},
    },
    contract::TrustReport,
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

impl Verification {
    /// Whether the database is to be asked which CA verifies it.
    pub(super) fn wants_anchor(&self, sidecar: &Sidecar, access: Option<&Access>, now: Millis) -> bool {
        verifies(sidecar) && access.is_some() && self.anchoring.wants_look(now)
    }

    /// Another bundle may be in force. True when the slots are to be given something else.
    pub(super) fn bundle_may_differ(&mut self, sidecar: &Sidecar, access: Option<&Access>, now: Millis) -> bool {
        self.handing.knows_bundle = true;
        if !verifies(sidecar) {
            return false;
        }
        let bundle = certificate::bundle(sidecar, access).unwrap_or_default();
        self.handing.whole = size(&bundle);
        let differs = self.anchoring.bundle_is(now, &bundle);
        if differs {
            self.hand_anew(sidecar);
        }
        differs
    }

    /// The file that is written for PgBouncer; None: it reads the whole bundle.
    pub(super) fn anchor_file(&self, sidecar: &Sidecar) -> Option<PathBuf> {
        self.anchoring.anchor().filter(|_| verifies(sidecar)).map(|anchor| path(&sidecar.options.run_dir, anchor))
    }

    /// What each server connection has a copy of; None where nothing is verified.
    pub(in crate::agent::run) fn copied(&self, sidecar: &Sidecar) -> Option<Bundle> {
        // while a slot may have another file, the larger counts
        let one = self.anchoring.anchor().filter(|_| !self.handing.is_open);
        verifies(sidecar).then(|| one.map_or(self.handing.whole, |anchor| size(anchor.pem())))
    }

    /// Whether the first process waits for the database to show its certificate.
    pub(in crate::agent::run) fn awaits_certificate(&mut self, sidecar: &Sidecar, now: Millis) -> bool {
        if !verifies(sidecar) || *self.anchoring.trust() != Trust::Whole(Why::NotSeen) {
            return false;
        }
        let since = *self.handing.waits_since.get_or_insert(now);
        now.saturating_sub(since) < FIRST_LOOK && self.certificate.is_looking()
    }

    /// Each of these verifies the database. True when the slots are to be given something else.
    pub(super) fn take_anchor(&mut self, sidecar: &Sidecar, now: Millis, found: Vec<Anchor>) -> bool {
        if !verifies(sidecar) || !self.anchoring.saw(now, found) {
            return false;
        }
        match self.anchoring.trust() {
            Trust::One(anchor) => tracing::info!(
                ca = anchor.name(),
                "one CA verifies the database: PgBouncer is given that one, and not the {} of the bundle",
                self.handing.whole.certificates
            ),
            Trust::Whole(_) => {
                tracing::warn!("{}", self.report(sidecar).and_then(|told| told.whole).unwrap_or_default());
            }
        }
        self.hand_anew(sidecar);
        true
    }

    fn hand_anew(&mut self, sidecar: &Sidecar) {
        let run_dir = &sidecar.options.run_dir;
        if let Some(anchor) = self.anchoring.anchor().filter(|anchor| !path(run_dir, anchor).is_file())
            && let Err(error) = write_whole(&path(run_dir, anchor), anchor.pem())
        {
            self.lose_anchor(sidecar, &error);
        }
        self.handing.is_open = true;
        self.handing.handed.clear();
        self.handing.again.settled();
    }

    /// It cannot be written: the whole bundle stays, and it is looked for again later.
    fn lose_anchor(&mut self, sidecar: &Sidecar, error: &io::Error) {
        tracing::warn!("writing the CA that verifies the database: {error}; PgBouncer is given the whole bundle");
        self.anchoring = Anchoring::new(None);
        self.anchoring.looks(sidecar.now());
    }

    /// What verifies the database, as it is told; None where nothing does.
    pub(in crate::agent::run) fn report(&self, sidecar: &Sidecar) -> Option<TrustReport> {
        let certificates = self.copied(sidecar)?.certificates;
        let host = &sidecar.injection.upstream.host;
        let whole = match self.anchoring.trust() {
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
        Some(TrustReport { certificates, ca: self.anchoring.anchor().map(Anchor::name), whole })
    }
}

impl ServerAccess {
    /// The bundle is known once there are credentials. True when the slots are to be given something else.
    pub(in crate::agent::run) fn know_bundle(&mut self, sidecar: &Sidecar, now: Millis) -> bool {
        let access = self.rotating.in_force();
        !self.verification.handing.knows_bundle
            && access.is_some()
            && self.verification.bundle_may_differ(sidecar, access, now)
    }

    /// Has every slot that runs verify the database with what is in force, read back.
    pub(in crate::agent::run) async fn hand_anchor(&mut self, given: Given<'_>, slots: &mut Slots) {
        let now = given.now;
        if !self.verification.handing.is_open || self.verification.handing.again.is_pausing(now) {
            return;
        }
        let Some(access) = self.rotating.in_force().cloned() else { return };
        let names: Vec<SlotName> = slots.to_ask().map(Slot::name).collect();
        for name in names {
            if self.verification.handing.handed.contains(&name) {
                continue;
            }
            let given_to = self.give_to(given, slots, name, &access).await;
            let handing = &mut self.verification.handing;
            match given_to {
                Ok(Taken::Postponed) => return,
                // what is refused is given with the revision, once it may be
                Ok(Taken::Already | Taken::Now | Taken::Refused) => handing.handed.push(name),
                Err(error) => {
                    tracing::warn!(slot = name.as_str(), "another CA to verify the database with: {error}");
                    return handing.again.failed(now);
                }
            }
        }
        self.verification.handing.is_open = false;
        self.verification.handing.again.settled();
        // one that nobody can ask reads what it was given, for each server connection
        if !slots.other.is_running() || slots.can_ask_other() {
            let read = self.verification.anchor_file(given.sidecar);
            for path in laid_down(&given.sidecar.options.run_dir).filter(|path| Some(path) != read.as_ref()) {
                let _ = fs::remove_file(path);
            }
        }
    }
}
