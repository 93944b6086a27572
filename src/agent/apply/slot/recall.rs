//! Clients of a process that have to connect anew.

use std::fs;

use super::Slot;
use crate::{
    agent::{
        apply::files::write_whole,
        decide::{machine::Millis, recall::Recall},
    },
    pooler::pgbouncer::console::ConsoleError,
};

/// Holds which clients are to connect anew, for an agent that comes after this one: all, or those up to a number.
const RECALL_FILE: &str = "recall";

impl Slot {
    /// Has all clients that are connected now connect anew. The process may not answer just now: it is asked until it does.
    pub fn begin_recall(&mut self) {
        // before it is asked: we may end until it answers
        self.note_recall(Recall::of_all());
    }

    fn note_recall(&mut self, recall: Recall) {
        if let Err(error) = write_whole(&self.directory.join(RECALL_FILE), recall.note().as_bytes()) {
            tracing::warn!(slot = self.name.as_str(), "another agent would not know which clients to close: {error}");
        }
        self.recall = Some(recall);
    }

    /// Closes the next few of them, if that is due; how many.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn recall(&mut self, now: Millis) -> Result<u64, ConsoleError> {
        let Some(recall) = self.recall.as_mut().filter(|recall| recall.is_due(now)) else { return Ok(0) };
        let clients = self.console.clients().await.inspect_err(|_| recall.had_no_answer(now))?;
        let begins = recall.is_of_all();
        let round = recall.round(now, &clients, &self.database);
        let recall = *recall;
        if begins {
            self.note_recall(recall);
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
        self.recall = noted.ok().and_then(|note| Recall::noted(&note));
    }

    /// All have, or their process has ended.
    pub(super) fn forget_recall(&mut self) {
        self.recall = None;
        // it is not there where nobody had to
        let _ = fs::remove_file(self.directory.join(RECALL_FILE));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        agent::{
            decide::slot_name::SlotName,
            keeper::{KeeperState, Link, Listening, ProcessState, SlotState},
        },
        contract::{ClientSide, ClientTlsMode, Injection, Reach, ServerTls, ServerTlsMode, Upstream},
    };

    /// The slot of a process that runs, as an agent finds it when it begins.
    async fn found(run_dir: &Path) -> Slot {
        let process = ProcessState::Running { pid: 1 };
        let left = SlotState { generation: 1, had_clients: true, leaving: None, process };
        let slots = [left, SlotState::default()];
        let state = KeeperState { orders: 0, listening: Listening::Closed, steered: SlotName::A, slots };
        let tls = ServerTls { mode: ServerTlsMode::Disabled, own_ca: false, own_certificate: false };
        let (host, database) = ("db".to_owned(), "shop".to_owned());
        let injection = Injection {
            v: 1,
            pool: "shop".to_owned(),
            namespace: "ns".to_owned(),
            upstream: Upstream { host, port: 5432, database, tls },
            client: ClientSide { port: 6432, max_connections: 10, reach: Reach::Pod, tls: ClientTlsMode::Disabled },
            agent_port: 9130,
            fixed_hash: String::new(),
        };
        let (link, _keeper) = Link::played(&state).await;
        Slot::new(SlotName::A, link, run_dir, &injection, mpsc::channel(1).0)
    }

    #[tokio::test]
    async fn an_agent_that_ends_before_the_process_has_said_who_its_clients_are_leaves_the_recall_to_the_next_one() {
        let run_dir = tempfile::tempdir().unwrap();
        fs::create_dir(run_dir.path().join("a")).unwrap();
        let mut slot = found(run_dir.path()).await;
        assert!(!slot.is_recalling());
        slot.begin_recall();
        let mut slot = found(run_dir.path()).await;
        assert_eq!(slot.recall, Some(Recall::of_all()));
        // those who come after the first look stay
        slot.note_recall(Recall::up_to(7));
        let mut slot = found(run_dir.path()).await;
        assert_eq!(slot.recall, Some(Recall::up_to(7)));
        // a further one while the first goes on
        slot.begin_recall();
        let mut slot = found(run_dir.path()).await;
        assert_eq!(slot.recall, Some(Recall::of_all()));
        slot.forget_recall();
        assert!(!found(run_dir.path()).await.is_recalling());
    }
}
