//! How long clients wait for a server connection before PgBouncer sends them away.

use std::fs;

use super::{Slot, SlotError};
use crate::{agent::apply::files::INI_FILE, pooler::pgbouncer::ini};

/// The parameter.
const PARAMETER: &str = "query_wait_timeout";
/// The shortest that there is, in seconds.
const SHORTEST: &str = "1";

/// How long clients wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPatience {
    /// As the settings say.
    AsConfigured,
    /// For a second, while there is nothing to wait for.
    Short,
}

impl Slot {
    /// What is in force: read back where another agent may have set it.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn patience(&mut self) -> Result<ClientPatience, SlotError> {
        if let Some(known) = self.patience {
            return Ok(known);
        }
        let in_force = self.read_patience().await?;
        let is_short = in_force == SHORTEST && self.configured_patience().is_some_and(|wanted| wanted != SHORTEST);
        let patience = if is_short { ClientPatience::Short } else { ClientPatience::AsConfigured };
        Ok(*self.patience.insert(patience))
    }

    /// Has clients wait for so long from now on, read back. True where they did not before.
    ///
    /// # Errors
    /// [`SlotError`].
    pub async fn have_patience(&mut self, wanted: ClientPatience) -> Result<bool, SlotError> {
        if self.patience().await? == wanted {
            return Ok(false);
        }
        let value = match wanted {
            ClientPatience::Short => SHORTEST.to_owned(),
            // it was read before, or nothing could be short
            ClientPatience::AsConfigured => self.configured_patience().unwrap_or_else(|| SHORTEST.to_owned()),
        };
        // what fails half-way is read back before anything else is done
        self.patience = None;
        self.console.set(PARAMETER, &value).await?;
        let shown = self.read_patience().await?;
        if shown != value {
            return Err(SlotError::NotSet { name: PARAMETER, value, shown });
        }
        self.patience = Some(wanted);
        Ok(true)
    }

    async fn read_patience(&mut self) -> Result<String, SlotError> {
        Ok(self.console.config().await?.remove(PARAMETER).unwrap_or_default())
    }

    /// What the process was given to read; of one that another agent started, what stands in its file.
    fn configured_patience(&self) -> Option<String> {
        if let Some(value) = self.parameter(PARAMETER) {
            return Some(value.to_owned());
        }
        let text = fs::read_to_string(self.directory.join(INI_FILE)).ok()?;
        let entries = ini::parse(&text).ok()?;
        entries.into_iter().find(|entry| entry.key == PARAMETER).map(|entry| entry.value)
    }
}
