//! What server connections are opened with, and what verifies the database: what a process is rendered with, and given while it runs.

mod anchoring;
mod certificate;
mod proving;
mod rotating;

use std::path::Path;

use anchoring::Handing;
use certificate::CertificateWatch;
pub(super) use proving::needs_login;
pub(super) use rotating::{AWAITS_LOGINS, AWAITS_USER, OwnAccess, Rotating};
use rotating::{ca_path, lay_down};

use super::{
    place,
    sidecar::{Given, Sidecar},
    slots::Slots,
};
use crate::{
    agent::{
        apply::slot::{SlotError, Taken, When},
        decide::{anchor::Anchoring, machine::Millis, slot_name::SlotName, wish::Access},
        options::RunOptions,
    },
    contract::{Injection, PoolRevision, ServerTlsMode, SessionAlias},
    pooler::pgbouncer::{
        limits::WantedLimits,
        render::{self, ProcessPlace, RenderError, RenderInput, Rendered},
    },
};

/// What server connections are opened with, and what verifies the database.
pub(super) struct ServerAccess {
    /// User, password, CA and certificate, and how they change.
    pub(super) rotating: Rotating,
    pub(super) verification: Verification,
}

/// What verifies the database's certificate.
pub(super) struct Verification {
    certificate: CertificateWatch,
    /// Which CA stands for the whole bundle.
    anchoring: Anchoring,
    handing: Handing,
}

impl Verification {
    /// PgBouncer could not agree on TLS with the database; perhaps because it could not verify its certificate.
    pub(super) fn failed(&mut self, now: Millis, is_not_verified: bool) {
        self.certificate.doubt();
        if is_not_verified {
            self.anchoring.failed(now);
        }
    }

    /// A server connection has logged in.
    pub(super) fn succeeded(&mut self) {
        self.anchoring.verified();
    }
}

impl ServerAccess {
    /// Begins with what the slots were given last.
    pub(super) fn take_up(options: &RunOptions, injection: &Injection) -> Self {
        Self {
            rotating: Rotating::take_up(options, injection),
            verification: Verification {
                certificate: CertificateWatch::new(injection.upstream.tls.mode),
                anchoring: anchoring::take_up(&options.run_dir),
                handing: Handing::default(),
            },
        }
    }

    /// Whether the database refuses what the process that new clients come to logs in with: what is closed of it could not be opened
    /// again.
    pub(super) fn is_refused(&self, slots: &Slots) -> bool {
        self.rotating.is_refused() || slots.active.is_refused()
    }

    /// All that may verify the database's certificate; nothing where there is none.
    pub(super) fn bundle(&self, sidecar: &Sidecar) -> Vec<u8> {
        certificate::bundle(sidecar, self.rotating.in_force()).unwrap_or_default()
    }

    /// What a process is to be started with in a slot to run a revision.
    pub(super) fn render(
        &self,
        given: Given<'_>,
        slot: SlotName,
        revision: Option<&PoolRevision>,
        wanted: WantedLimits,
    ) -> Option<Result<(PoolRevision, Rendered), RenderError>> {
        self.render_for(given, slot, revision, wanted, self.rotating.own(&given.sidecar.options.run_dir)?)
    }

    /// The same for one that runs: it may have to go on with what it has of its own.
    pub(super) fn render_for(
        &self,
        Given { sidecar, shown, .. }: Given<'_>,
        slot: SlotName,
        revision: Option<&PoolRevision>,
        wanted: WantedLimits,
        own: OwnAccess<'_>,
    ) -> Option<Result<(PoolRevision, Rendered), RenderError>> {
        let Sidecar { injection, options, .. } = sidecar;
        let revision = revision?;
        let access = self.rotating.in_force()?;
        let anchor = self.verification.anchor_file(sidecar);
        let ca = anchor.or_else(|| place::bundle(injection, ca_path(&options.run_dir, access)));
        let shown = shown.map(|shown| place::shown(shown, options, slot));
        let rendered = render::render(&RenderInput {
            injection,
            settings: &revision.settings,
            limits: wanted.as_limits(),
            credentials: own.credentials,
            shown: shown.as_ref(),
            place: &ProcessPlace {
                presented: own.presented,
                ..place::place(
                    options,
                    &sidecar.addresses,
                    slot,
                    sidecar.inherits_sockets(),
                    ca.as_deref(),
                    sidecar.resolver.as_deref(),
                )
            },
            version: sidecar.build.map(|build| build.version),
        });
        Some(rendered.map(|rendered| (revision.clone(), rendered)))
    }

    /// Writes what is in force to where a process that is started reads it.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn lay_down(&self, run_dir: &Path) -> Result<(), String> {
        let laid_down = self.rotating.in_force().map_or(Ok(()), |access| lay_down(run_dir, access));
        laid_down.map_err(|error| error.to_string())
    }

    /// Has a process that runs go on with what it runs and what is in force beside it: the credentials that it takes, and what verifies
    /// the database.
    async fn give_to(
        &self,
        given: Given<'_>,
        slots: &mut Slots,
        name: SlotName,
        access: &Access,
    ) -> Result<Taken, SlotError> {
        let now = given.sidecar.now();
        let run_dir = &given.sidecar.options.run_dir;
        lay_down(run_dir, access).map_err(|error| SlotError::Access { reason: error.to_string() })?;
        let slot = slots.named_mut(name);
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
            let mut revision = given.wish.revision.clone()?;
            revision.settings.session_alias = alias;
            Some(revision)
        });
        let wanted = WantedLimits {
            limit: limits.pool_size,
            warm: limits.min_pool_size,
            share: limits.max_db_connections.max(1),
        };
        if slot.is_refused() {
            // what is open is all that its clients will ever have
            return Ok(Taken::Refused);
        }
        let Some(own) = self.rotating.takes(run_dir, slot) else { return Ok(Taken::Already) };
        let rendered = match self.render_for(given, name, runs.as_ref(), wanted, own) {
            Some(Ok((_, rendered))) => rendered,
            Some(Err(error)) => return Err(SlotError::Access { reason: error.to_string() }),
            None => return Ok(Taken::Already),
        };
        match slot.take_over(rendered, When::Quiet(now)).await {
            // the rest of what it runs waits for a new process; this does not
            Err(SlotError::RestartRequired { .. }) => Ok(Taken::Now),
            taken => taken,
        }
    }
}

/// Whether PgBouncer verifies the database's certificate.
fn verifies(sidecar: &Sidecar) -> bool {
    matches!(sidecar.injection.upstream.tls.mode, ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull)
}
