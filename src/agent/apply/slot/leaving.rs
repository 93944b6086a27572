//! A process that was told to end with its last client. It lets nobody in any more, not even to its console.

use std::time::Duration;

use super::Slot;
use crate::{
    agent::keeper::{ProcessState, SlotState},
    pooler::pgbouncer::{
        console::{ConsoleError, Deadlines},
        tables::Pools,
    },
};

/// How long answers of a console that lets nobody in any more may take: a connection that is given up is lost for good.
const LAST_DEADLINES: Deadlines = Deadlines { answer: Duration::from_secs(2), pause: Duration::from_millis(500) };
/// Connections to such a console beside the one in use.
const SPARE_SESSIONS: usize = 8;

impl Slot {
    /// The most server connections that the process may open, once it was told to end with its last client.
    pub fn leaving(&self) -> Option<u32> {
        self.pid()?;
        self.link.slot(self.name).leaving
    }

    /// Whether the process cannot be asked anything any more: it has closed its console to all but those who were there.
    pub fn is_mute(&self) -> bool {
        self.console.connections() == 0 && self.leaving().is_some()
    }

    /// Forgets the figures of one that is mute: nobody knows how many clients end with it.
    pub fn forget_figures(&mut self) {
        (self.pools, self.alias_pools) = (None, Pools::default());
    }

    /// Whether the next answer that does not come makes it mute.
    pub fn is_nearly_mute(&self) -> bool {
        self.console.connections() <= 1 && self.leaving().is_some()
    }

    /// Makes the connections to the console that are needed once it lets nobody in any more.
    ///
    /// # Errors
    /// [`ConsoleError`]: there are fewer, perhaps none.
    pub async fn lay_in_sessions(&mut self) -> Result<(), ConsoleError> {
        self.console.run("SHOW VERSION").await?;
        self.console.lay_in(SPARE_SESSIONS).await
    }

    /// The connections to the console have to last.
    pub fn keep_sessions(&mut self) {
        self.console.set_deadlines(LAST_DEADLINES);
    }

    /// The same for one that was told to end with its last client: another signal would cut them all at once.
    pub(super) async fn end_leaving(&mut self, grace: Duration) {
        let command = format!("PAUSE \"{}\"", self.database);
        if self.is_mute() {
            let ended = |state: &SlotState| !matches!(state.process, ProcessState::Running { .. });
            self.link.until(self.name, grace, ended).await;
        } else if let Err(error) = self.console.run_within(&command, grace).await {
            tracing::warn!("transactions still run at the end of the grace period; they are cut: {error}");
        }
        self.kill().await;
    }
}
