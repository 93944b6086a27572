//! Clients of a process that have to connect anew.

use std::fs;

use super::Slot;
use crate::{
    agent::{files::write_whole, machine::Millis, recall::Recall},
    pooler::pgbouncer::console::ConsoleError,
};

/// Holds the number of the newest client that is to connect anew, for an agent that comes after this one.
const RECALL_FILE: &str = "recall";

impl Slot {
    /// Has all clients that are connected now connect anew. The process may not answer just now: it is asked until it does.
    pub fn begin_recall(&mut self) {
        self.recall = Some(Recall::of_all());
    }

    /// Closes the next few of them, if that is due; how many.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn recall(&mut self, now: Millis) -> Result<u64, ConsoleError> {
        let Some(recall) = self.recall.as_mut().filter(|recall| recall.is_due(now)) else { return Ok(0) };
        let clients = self.console.clients().await.inspect_err(|_| recall.had_no_answer(now))?;
        let begins = recall.newest().is_none();
        let round = recall.round(now, &clients, &self.database);
        if let Some(newest) = recall.newest().filter(|_| begins)
            && let Err(error) = write_whole(&self.directory.join(RECALL_FILE), newest.to_string().as_bytes())
        {
            tracing::warn!(slot = self.name.as_str(), "another agent would not know which clients to close: {error}");
        }
        let mut closed = 0;
        for id in round.close {
            // it may have gone by itself
            match self.console.kill_client(id).await {
                Ok(()) => closed += 1,
                Err(error) => tracing::debug!("{error}"),
            }
        }
        if !round.goes_on {
            self.forget_recall();
        }
        Ok(closed)
    }

    /// Whether clients are still to connect anew.
    pub fn is_recalling(&self) -> bool {
        self.recall.is_some()
    }

    /// What another agent had begun.
    pub(super) fn resume_recall(&mut self) {
        let noted = fs::read_to_string(self.directory.join(RECALL_FILE));
        self.recall = noted.ok().and_then(|id| id.parse().ok()).map(Recall::up_to);
    }

    /// All have, or their process has ended.
    pub(super) fn forget_recall(&mut self) {
        self.recall = None;
        // it is not there where nobody had to
        let _ = fs::remove_file(self.directory.join(RECALL_FILE));
    }
}
