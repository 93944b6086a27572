//! The database's certificate: what is wrong with it when PgBouncer does not accept it, and which CA of the bundle verifies it.

use std::{fs, mem, thread};

use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{ServerAccess, Verification, rotating::ca_path};
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{anchor::Anchor, machine::Millis, wish::Access},
        observe::handshake::{HandshakeError, examine},
        run::{Reporting, Sidecar, place},
    },
    contract::ServerTlsMode,
};

/// From the start to the first look, and between two; PgBouncer itself tries every second or two.
const LOOK_PAUSE: Millis = 5000;

/// What the loop keeps in mind of it.
pub(super) struct CertificateWatch {
    /// PgBouncer could not agree on TLS with the database, or has not been seen to yet: it does not log that the database
    /// offers none.
    doubted: bool,
    /// A server connection was seen.
    proven: bool,
    verdict: Option<oneshot::Receiver<Result<Vec<Anchor>, HandshakeError>>>,
    next_look: Millis,
}

impl CertificateWatch {
    /// Before the first server connection.
    pub(super) fn new(mode: ServerTlsMode) -> Self {
        let proven = mode == ServerTlsMode::Disabled;
        Self { doubted: false, proven, verdict: None, next_look: LOOK_PAUSE }
    }

    /// Whether the database is being asked.
    pub(super) fn is_looking(&self) -> bool {
        self.verdict.is_some()
    }

    /// PgBouncer could not agree on TLS with the database.
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// In a thread of its own, which may outlive us: resolving a name cannot be given up.
    fn ask(&mut self, sidecar: &Sidecar, access: Option<&Access>) {
        let (tell, verdict) = oneshot::channel();
        let (upstream, bundle) = (sidecar.injection.upstream.clone(), bundle(sidecar, access).unwrap_or_default());
        let ask = move || mem::drop(tell.send(examine(&upstream, &bundle)));
        match thread::Builder::new().name("handshake".to_owned()).spawn(ask) {
            Ok(_) => self.verdict = Some(verdict),
            Err(error) => tracing::warn!("looking at the database's certificate: {error}"),
        }
    }
}

impl ServerAccess {
    /// Looks at the certificate while there is doubt, and tells what is wrong with it. True when the slots are to be given something
    /// else.
    pub(in crate::agent::run) fn look_at_certificate(
        &mut self,
        sidecar: &Sidecar,
        active: &Slot,
        report: &mut Reporting,
        now: Millis,
    ) -> bool {
        self.verification.look(sidecar, self.rotating.in_force(), active, report, now)
    }
}

impl Verification {
    fn look(
        &mut self,
        sidecar: &Sidecar,
        access: Option<&Access>,
        active: &Slot,
        report: &mut Reporting,
        now: Millis,
    ) -> bool {
        if !self.certificate.proven {
            let open = active.pools.is_some_and(|(_, pools)| pools.active + pools.idle + pools.used > 0);
            (self.certificate.proven, self.certificate.doubted) = (open, !open);
            if open {
                report.problems.certificate.is_over();
            }
        }
        let Some(verdict) = &mut self.certificate.verdict else {
            let is_due = self.certificate.doubted && now >= self.certificate.next_look;
            if is_due || self.wants_anchor(sidecar, access, now) {
                self.certificate.next_look = now + LOOK_PAUSE;
                self.anchoring.looks(now);
                self.certificate.ask(sidecar, access);
            }
            return false;
        };
        let verdict = match verdict.try_recv() {
            Err(TryRecvError::Empty) => return false,
            Ok(verdict) => Some(verdict),
            Err(TryRecvError::Closed) => None,
        };
        self.certificate.verdict = None;
        match verdict {
            Some(Ok(anchors)) => {
                (self.certificate.doubted, self.certificate.proven) = (false, true);
                report.problems.certificate.is_over();
                self.take_anchor(sidecar, now, anchors)
            }
            Some(Err(error)) if error.is_verdict() => {
                // it is looked at until it is mended
                self.certificate.doubted = true;
                self.anchoring.was_not_verified();
                if report.problems.certificate.is(format!("no server connection: {error}")) {
                    tracing::warn!("{error}");
                }
                false
            }
            // what was known before still holds
            Some(Err(_)) | None => false,
        }
    }
}

/// All that may verify the database's certificate: the pool's own bundle, or the image's trust store. None where there is none.
pub(super) fn bundle(sidecar: &Sidecar, access: Option<&Access>) -> Option<Vec<u8>> {
    let access = access?;
    if sidecar.injection.upstream.tls.own_ca {
        return access.server_ca.clone();
    }
    fs::read(place::bundle(&sidecar.injection, ca_path(&sidecar.options.run_dir, access))?).ok()
}
