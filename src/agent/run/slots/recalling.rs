//! Clients that have to connect anew: the shell around [`crate::agent::decide::recall`].

use super::Slots;
use crate::{
    agent::{apply::slot::Slot, decide::machine::Millis, run::Reporting},
    contract::PoolMode,
    pooler::pgbouncer::changes::Remembered,
};

impl Slots {
    /// Has every client that is connected now connect anew, where PgBouncer goes on giving it what the database was before.
    pub(in crate::agent::run) fn begin_recall(&mut self) {
        let of_sessions =
            |slot: &Slot| slot.runs.as_ref().is_some_and(|revision| revision.settings.pool_mode == PoolMode::Session);
        for slot in self.to_ask_mut() {
            // a session has its own server connection, and what the database says reaches it
            if !slot.remembers(Remembered::ReadOnly) || of_sessions(slot) {
                continue;
            }
            slot.begin_recall();
            tracing::warn!(
                slot = slot.name().as_str(),
                "clients that are connected are closed as they are idle: for them PgBouncer goes on setting \
                 default_transaction_read_only as it was when they came, or when they asked last"
            );
        }
    }

    /// Closes the next few.
    pub(in crate::agent::run) async fn recall(&mut self, report: &Reporting, now: Millis) {
        let mut closed = 0;
        for slot in self.to_ask_mut() {
            match slot.recall(now).await {
                Ok(count) => closed += count,
                Err(error) => tracing::debug!(slot = slot.name().as_str(), "telling clients to connect anew: {error}"),
            }
        }
        report.metrics().count_recalled(closed);
    }

    /// Whether clients are still to connect anew.
    pub(in crate::agent::run) fn recalls(&self) -> bool {
        self.active.is_recalling() || self.other_counts() && self.other.is_recalling()
    }
}
