//! What PgBouncer logged: counted, kept for `/status`, and acted upon.

use super::Agent;
use crate::{
    agent::{
        apply::trial::TrialError,
        decide::{machine::Millis, reach::Obstacle, slot_name::SlotName, troubles::Heard},
    },
    contract::{ClientTlsMode, PoolerError, ServerFull},
    pooler::pgbouncer::{log::Logged, tables::Pools},
};

/// What OpenSSL says of a chain that ends in no CA of its file.
const NOT_VERIFIED: &str = "certificate verify failed";

impl Agent {
    pub(super) fn count_errors(&mut self) {
        while let Ok(Heard { from, logged }) = self.log.errors.try_recv() {
            let error = match self.log.troubles.meaning(&logged) {
                // nobody else speaks TLS to the pooler, and only a client certificate makes a database alert
                PoolerError::ClientTlsFailed if self.sidecar.injection.client.tls == ClientTlsMode::Disabled => {
                    PoolerError::ServerWantsCertificate
                }
                error => error,
            };
            self.report.published.metrics.count_error(error.as_str());
            let now = self.now();
            self.log.troubles.logged(now, error, &logged.words);
            self.act_upon(now, error, from, &logged);
        }
    }

    fn act_upon(&mut self, now: Millis, error: PoolerError, from: Option<SlotName>, logged: &Logged) {
        match error {
            PoolerError::ServerTlsFailed => {
                self.access.verification.certificate.doubt();
                if logged.words.contains(NOT_VERIFIED) {
                    self.access.verification.anchoring.failed(now);
                }
            }
            PoolerError::ServerLoginRefused | PoolerError::ServerWantsCertificate | PoolerError::ServerRefused
                if self.is_of_kept_user(error, from, &logged.words) => {}
            PoolerError::ServerLoginRefused | PoolerError::ServerWantsCertificate => {
                self.access.rotating.was_refused(now)
            }
            // it may be a password, or that the server is full: a login of our own is told which
            PoolerError::ServerRefused => self.access.rotating.is_in_doubt(now),
            PoolerError::TooManyServerConnections if logged.is_news => self.sizing.refused.hear(),
            PoolerError::ServerUnreachable => self.log.reach.failed(now, Obstacle::NoAnswer),
            PoolerError::ServerNotReady => self.log.reach.failed(now, Obstacle::NotReady),
            PoolerError::DnsFailed => self.log.reach.failed(now, Obstacle::NoAddress),
            _ => {}
        }
    }

    /// The database refused a login of our own, made with what is in force: what refusals in words that were not understood
    /// mean.
    pub(super) fn learn_from(&mut self, error: &TrialError) {
        let TrialError::Refused { said, sqlstate: Some(sqlstate) } = error else { return };
        let Some(meaning) = PoolerError::of_sqlstate(sqlstate) else { return };
        if !self.access.rotating.is_doubtful() {
            return;
        }
        tracing::info!(sqlstate, meaning = meaning.as_str(), "the database refused a login of the agent's own: {said}");
        self.log.troubles.learn(said, meaning);
        self.access.rotating.is_resolved();
        let now = self.now();
        self.log.troubles.logged(now, meaning, said);
        self.act_upon(now, meaning, None, &Logged { error: meaning, words: said.clone(), is_news: true });
    }

    /// What a reading shows of the database's refusals.
    pub(super) fn see_refusals(&mut self, pools: Pools, logged_in: bool) {
        self.log.troubles.read(logged_in);
        let now_seconds = self.sidecar.begin.elapsed().as_secs_f64();
        let open = pools.held().saturating_sub(pools.login).saturating_sub(pools.being_canceled);
        let before = self.sizing.refused.ceiling();
        self.sizing.refused.observe(now_seconds, open);
        if before.is_none() && self.sizing.refused.ceiling().is_some() {
            let words = self.log.troubles.words(PoolerError::TooManyServerConnections);
            tracing::warn!(
                held = open,
                "the database refuses further server connections: {words}; the limit is held there, and one more is tried \
                 from time to time"
            );
        }
        self.report.published.metrics.set_refused_beyond(self.sizing.refused.held());
    }

    pub(super) fn server_full(&self) -> Option<ServerFull> {
        Some(ServerFull {
            refused_beyond: self.sizing.refused.let_in()?,
            at_most: self.sizing.refused.ceiling()?,
            words: self.log.troubles.words(PoolerError::TooManyServerConnections).to_owned(),
        })
    }
}
