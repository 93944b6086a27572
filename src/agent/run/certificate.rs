//! The database's certificate: what is wrong with it when PgBouncer does not accept it, and which CA of the bundle verifies it.

use std::{fs, mem, thread};

use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{Agent, place, rotating::ca_path};
use crate::{
    agent::{
        decide::{anchor::Anchor, machine::Millis},
        observe::handshake::{HandshakeError, examine},
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
}

impl Agent {
    /// Looks at the certificate while there is doubt, and tells what is wrong with it.
    pub(super) fn look_at_certificate(&mut self, now: Millis) {
        if !self.access.verification.certificate.proven {
            let open = self.slots.active.pools.is_some_and(|(_, pools)| pools.active + pools.idle + pools.used > 0);
            (self.access.verification.certificate.proven, self.access.verification.certificate.doubted) = (open, !open);
            if open {
                self.report.problems.certificate.is_over();
            }
        }
        let Some(verdict) = &mut self.access.verification.certificate.verdict else {
            let is_due =
                self.access.verification.certificate.doubted && now >= self.access.verification.certificate.next_look;
            if is_due || self.wants_anchor(now) {
                self.access.verification.certificate.next_look = now + LOOK_PAUSE;
                self.access.verification.anchoring.looks(now);
                self.ask_for_certificate();
            }
            return;
        };
        let verdict = match verdict.try_recv() {
            Err(TryRecvError::Empty) => return,
            Ok(verdict) => Some(verdict),
            Err(TryRecvError::Closed) => None,
        };
        self.access.verification.certificate.verdict = None;
        match verdict {
            Some(Ok(anchors)) => {
                (self.access.verification.certificate.doubted, self.access.verification.certificate.proven) =
                    (false, true);
                self.report.problems.certificate.is_over();
                self.take_anchor(now, anchors);
            }
            Some(Err(error)) if error.is_verdict() => {
                // it is looked at until it is mended
                self.access.verification.certificate.doubted = true;
                self.access.verification.anchoring.was_not_verified();
                if self.report.problems.certificate.is(format!("no server connection: {error}")) {
                    tracing::warn!("{error}");
                }
            }
            // what was known before still holds
            Some(Err(_)) | None => {}
        }
    }

    /// In a thread of its own, which may outlive us: resolving a name cannot be given up.
    fn ask_for_certificate(&mut self) {
        let (tell, verdict) = oneshot::channel();
        let (upstream, bundle) = (self.sidecar.injection.upstream.clone(), self.bundle().unwrap_or_default());
        let ask = move || mem::drop(tell.send(examine(&upstream, &bundle)));
        match thread::Builder::new().name("handshake".to_owned()).spawn(ask) {
            Ok(_) => self.access.verification.certificate.verdict = Some(verdict),
            Err(error) => tracing::warn!("looking at the database's certificate: {error}"),
        }
    }

    /// All that may verify the database's certificate: the pool's own bundle, or the image's trust store. None where there is none.
    pub(super) fn bundle(&self) -> Option<Vec<u8>> {
        let access = self.access.rotating.in_force()?;
        if self.sidecar.injection.upstream.tls.own_ca {
            return access.server_ca.clone();
        }
        fs::read(place::bundle(&self.sidecar.injection, ca_path(&self.sidecar.options.run_dir, access))?).ok()
    }
}
