//! The session alias of a process: what it may hold, and whether it may open more.

use super::{Slot, SlotError};
use crate::{
    agent::decide::{machine::Millis, switch::alias::AliasLoad},
    pooler::pgbouncer::{limits::LimitStep, render::Rendered},
};

/// What is named when a session alias needs a new process: clients of one that is gone from the file would be cut.
const SESSION_ALIAS: &str = "sessionAlias";

impl Slot {
    /// What was seen of the session alias last.
    pub fn alias_load(&self) -> AliasLoad {
        let Some(alias) = &self.alias else { return AliasLoad::default() };
        let pools = &self.alias_pools;
        AliasLoad {
            connections: alias.connections,
            held: pools.held(),
            without: pools.clients_active.saturating_add(pools.clients_waiting).saturating_sub(pools.active),
            closed: alias.paused,
        }
    }

    /// Sees to it that limits and figures of the session alias are known.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn look_at_alias(&mut self, now: Millis) -> Result<(), SlotError> {
        if self.limits.is_none() {
            self.read_limits().await?;
        }
        if self.alias.is_some() && self.pools.is_none() {
            self.read_pools(now).await?;
        }
        Ok(())
    }

    /// Has the session alias open no more connections. Those that sessions hold stay theirs.
    ///
    /// # Errors
    /// [`SlotError`].
    pub async fn close_alias(&mut self, now: Millis) -> Result<(), SlotError> {
        if self.set_alias_paused(true).await? {
            self.read_pools(now).await?;
        }
        Ok(())
    }

    /// Lets the session alias open connections.
    ///
    /// # Errors
    /// [`SlotError`].
    pub async fn open_alias(&mut self) -> Result<(), SlotError> {
        self.set_alias_paused(false).await.map(|_| ())
    }

    /// True when that changed something.
    async fn set_alias_paused(&mut self, paused: bool) -> Result<bool, SlotError> {
        let Some(name) = self.alias.as_ref().filter(|alias| alias.paused != paused).map(|alias| alias.name.clone())
        else {
            return Ok(false);
        };
        if paused {
            self.console.pause(&name).await?;
        } else {
            self.console.resume(&name).await?;
        }
        let limits = self.read_limits().await?;
        if self.alias.as_ref().is_some_and(|alias| alias.paused != paused) {
            return Err(SlotError::NotApplied {
                step: if paused { LimitStep::Pause } else { LimitStep::Resume },
                limits,
            });
        }
        Ok(true)
    }

    /// What to name where the process has another session alias than `rendered`. The limits have been read.
    pub(super) fn other_alias(&self, rendered: &Rendered) -> Option<String> {
        let has = self.alias.as_ref().map(|alias| (&alias.name, alias.connections));
        let wanted = rendered.session_alias.as_ref().map(|alias| (&alias.database, alias.connections));
        (has != wanted).then(|| SESSION_ALIAS.to_owned())
    }
}
