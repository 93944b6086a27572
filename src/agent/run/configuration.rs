//! What the pod is asked to run, as the configuration volume tells it.

use super::{Reporting, Sidecar};
use crate::{
    agent::{
        apply::{last_good::LastGood, reference_key},
        decide::{
            identity::Identity,
            machine::Millis,
            problems::Problem,
            reference_mark::ReferenceKey,
            wish::{Access, Texts, Wish},
        },
        observe::inputs::Inputs,
        options::RunOptions,
    },
    contract::{ClientTlsMode, Injection, PoolRevision},
    pooler::pgbouncer::{render::PoolerCertificate, version::Version},
};

/// What the pod is asked to run.
pub(super) struct Configuration {
    inputs: Inputs,
    wish: Wish,
    /// What clients are shown.
    identity: Identity,
    /// What is given by reference is marked with it; None where none can be kept.
    key: Option<ReferenceKey>,
    /// The mark of what the volume holds; None before it was read.
    mark: Option<String>,
}

/// What was wanted before the volume changed.
pub(super) struct WantedBefore {
    pub(super) revision: Option<PoolRevision>,
    pub(super) access: Option<Access>,
}

impl Configuration {
    /// Begins with what worked last, and with what server connections are opened with.
    pub(super) fn new(
        options: &RunOptions,
        injection: &Injection,
        stored: Option<LastGood>,
        access: Option<&Access>,
        identity: Identity,
    ) -> Self {
        let mut wish = Wish::new(&injection.pool, injection.upstream.tls, stored);
        if let Some(access) = access {
            (wish.credentials, wish.server_ca) = (Some(access.credentials.clone()), access.server_ca.clone());
            wish.certificate.clone_from(&access.certificate);
        }
        let key = reference_key::load(&options.state_dir).map_err(|error| tracing::warn!("{error}")).ok();
        Self { inputs: Inputs::new(&options.config_dir), wish, identity, key, mark: None }
    }

    /// What the pod is asked to run, as far as it could be understood.
    pub(super) fn wish(&self) -> &Wish {
        &self.wish
    }

    /// What clients are shown.
    pub(super) fn shown(&self) -> Option<&PoolerCertificate> {
        self.identity.in_force()
    }

    /// The mark of what the pod is given by reference: Secrets, bundles, certificates.
    pub(super) fn reference_mark(&self) -> Option<&str> {
        self.mark.as_deref()
    }

    /// The pooler has told its version.
    pub(super) fn pooler_is(&mut self, version: Version) {
        self.wish.version = Some(version);
    }

    /// Takes over what the volume holds, if it has changed; what was wanted before.
    pub(super) fn read(&mut self, sidecar: &Sidecar, report: &mut Reporting, now: Millis) -> Option<WantedBefore> {
        match self.inputs.changed() {
            Ok(None) => {
                report.problems.inputs.is_over();
                None
            }
            Ok(Some(texts)) => {
                report.problems.inputs.is_over();
                Some(self.take(&texts, sidecar, report))
            }
            Err(error) => {
                let text = format!("reading the configuration: {error}");
                if report.problems.inputs == Problem::default() {
                    tracing::warn!("{text}");
                }
                report.problems.inputs.may_pass(now, text);
                None
            }
        }
    }

    fn take(&mut self, texts: &Texts, sidecar: &Sidecar, report: &mut Reporting) -> WantedBefore {
        let before = WantedBefore { revision: self.wish.revision.clone(), access: self.wish.access() };
        self.wish.take(texts);
        self.mark = self.key.as_ref().map(|key| key.mark(texts));
        if sidecar.injection.client.tls != ClientTlsMode::Disabled {
            self.take_identity(texts, report);
        }
        let documents = ["revision", "grant", "credentials"];
        for (document, refusal) in documents.into_iter().zip(&self.wish.refusals) {
            if let Some(refusal) = refusal {
                tracing::warn!(document, "{refusal}");
            }
        }
        before
    }

    /// Takes over what clients are shown.
    fn take_identity(&mut self, texts: &Texts, report: &mut Reporting) {
        match self.identity.take(texts.client_certificate.as_deref(), texts.client_key.as_deref()) {
            Ok(()) => report.problems.identity.is_over(),
            Err(refusal) => {
                if report.problems.identity.is(refusal.to_string()) {
                    tracing::warn!("{refusal}");
                }
            }
        }
    }
}
