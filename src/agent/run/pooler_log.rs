//! What PgBouncer logged: counted, kept for `/status`, and acted upon.

use tokio::sync::mpsc;

use super::{Reporting, ServerAccess, Sidecar, sizing::Sizing, slots::Slots};
use crate::{
    agent::{
        apply::trial::TrialError,
        decide::{
            machine::Millis,
            reach::{Obstacle, Reachability},
            troubles::{Heard, Troubles},
        },
    },
    contract::{ClientTlsMode, PoolerError, TroubleSeen, Upstream},
    pooler::pgbouncer::log::Logged,
};

/// What OpenSSL says of a chain that ends in no CA of its file.
const NOT_VERIFIED: &str = "certificate verify failed";

/// What the poolers log, and what follows from it.
pub(super) struct PoolerLog {
    errors: mpsc::Receiver<Heard>,
    /// What was logged lately.
    troubles: Troubles,
    /// Whether the database is reached.
    reach: Reachability,
    /// Whether an attempt to reach it has failed since somebody asked.
    failed_attempt: bool,
}

impl PoolerLog {
    /// Hears these from now on.
    pub(super) fn new(errors: mpsc::Receiver<Heard>) -> Self {
        Self { errors, troubles: Troubles::default(), reach: Reachability::default(), failed_attempt: false }
    }

    /// Takes in what was logged since the last call, and has those know whom it concerns.
    pub(super) fn hear(
        &mut self,
        sidecar: &Sidecar,
        slots: &mut Slots,
        access: &mut ServerAccess,
        sizing: &mut Sizing,
        report: &Reporting,
    ) {
        while let Ok(Heard { from, logged }) = self.errors.try_recv() {
            let error = match self.troubles.meaning(&logged) {
                // nobody else speaks TLS to the pooler, and only a client certificate makes a database alert
                PoolerError::ClientTlsFailed if sidecar.injection.client.tls == ClientTlsMode::Disabled => {
                    PoolerError::ServerWantsCertificate
                }
                error => error,
            };
            report.metrics().count_error(error, from);
            let now = sidecar.now();
            self.troubles.logged(now, error, &logged.words);
            self.act_upon(slots, access, sizing, now, &Heard { from, logged: Logged { error, ..logged } });
        }
    }

    fn act_upon(
        &mut self,
        slots: &mut Slots,
        access: &mut ServerAccess,
        sizing: &mut Sizing,
        now: Millis,
        heard: &Heard,
    ) {
        let Heard { from, logged: Logged { error, words, is_news } } = heard;
        // PgBouncer itself logs no attempt that failed, but whom it tells of the last one
        self.failed_attempt |=
            matches!(error, PoolerError::ServerUnreachable | PoolerError::ServerNotReady | PoolerError::DnsFailed);
        match *error {
            PoolerError::ServerTlsFailed => access.verification.failed(now, words.contains(NOT_VERIFIED)),
            PoolerError::ServerLoginRefused | PoolerError::ServerWantsCertificate | PoolerError::ServerRefused
                if access.rotating.is_of_kept_user(slots, *error, *from, words) => {}
            PoolerError::ServerLoginRefused | PoolerError::ServerWantsCertificate => access.rotating.was_refused(now),
            // it may be a password, or that the server is full: a login of our own is told which
            PoolerError::ServerRefused => access.rotating.is_in_doubt(now),
            PoolerError::TooManyServerConnections if *is_news => sizing.hear_refusal(),
            PoolerError::ServerUnreachable => self.reach.failed(now, Obstacle::NoAnswer),
            PoolerError::ServerNotReady => self.reach.failed(now, Obstacle::NotReady),
            PoolerError::DnsFailed => self.reach.failed(now, Obstacle::NoAddress),
            _ => {}
        }
    }

    /// The database refused a login of our own, made with what is in force: what refusals in words that were not understood
    /// mean.
    pub(super) fn learn_from(
        &mut self,
        sidecar: &Sidecar,
        slots: &mut Slots,
        access: &mut ServerAccess,
        sizing: &mut Sizing,
        error: &TrialError,
    ) {
        let TrialError::Refused { said, sqlstate: Some(sqlstate) } = error else { return };
        let Some(meaning) = PoolerError::of_sqlstate(sqlstate) else { return };
        if !access.rotating.is_doubtful() {
            return;
        }
        tracing::info!(sqlstate, meaning = meaning.as_str(), "the database refused a login of the agent's own: {said}");
        self.troubles.learn(said, meaning);
        access.rotating.is_resolved();
        let now = sidecar.now();
        self.troubles.logged(now, meaning, said);
        let logged = Logged { error: meaning, words: said.clone(), is_news: true };
        self.act_upon(slots, access, sizing, now, &Heard { from: None, logged });
    }

    /// Whether an attempt to reach the database has failed since the last call.
    pub(super) fn take_failed_attempt(&mut self) -> bool {
        std::mem::take(&mut self.failed_attempt)
    }

    /// A reading showed whether a server connection has logged in since the one before.
    pub(super) fn read(&mut self, logged_in: bool) {
        self.troubles.read(logged_in);
    }

    /// What was said lately when this went wrong.
    pub(super) fn words(&self, error: PoolerError) -> &str {
        self.troubles.words(error)
    }

    /// What is told of it.
    pub(super) fn told(&self, now: Millis) -> Vec<TroubleSeen> {
        self.troubles.told(now)
    }

    /// Says so when the database is not reached, unless its certificate or a refused login explains it.
    pub(super) fn tell_reach(&mut self, upstream: &Upstream, report: &mut Reporting, now: Millis, logged_in: bool) {
        if logged_in {
            self.reach.succeeded();
        }
        let explained = [&report.problems.certificate, &report.problems.logins].iter().any(|it| it.told(now).is_some());
        let Some(trouble) = self.reach.trouble(now).filter(|_| !explained) else {
            return report.problems.database.is_over();
        };
        let Upstream { host, port, .. } = upstream;
        let why = match trouble {
            Obstacle::NoAddress => format!("the name {host} does not resolve"),
            Obstacle::NotReady => format!("{host} says that it starts up, recovers or shuts down"),
            Obstacle::NoAnswer => format!("{host} does not answer on port {port}"),
        };
        let text = format!("no new server connection: {why}");
        if report.problems.database.is(text.clone()) {
            tracing::warn!("{text}");
        }
    }
}
