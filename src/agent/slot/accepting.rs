//! A process that accepts nobody for a while and is otherwise as it was.
//!
//! From PgBouncer 1.25 on, one that is told to end refuses those that it has accepted and that have not logged in yet. Where it shares
//! its socket it accepts others until it is told, so it is kept from that first: when no descriptor is left for a client,
//! PgBouncer listens to none of its sockets for [`DEAF`], its console's included (`pool_accept` and `suspend_pooler` of its
//! `pooler.c`). The client stays in the queue, for the process that shares it. So the bound of its open files is lowered for the one
//! moment in which we knock.

use std::sync::atomic::Ordering;

use super::{Slot, SlotError};
use crate::{
    agent::{keeper::Order, machine::Millis},
    pooler::pgbouncer::console::Knock,
};

/// How long a process accepts nobody, from before it was kept from it. Its own measure is 5 s.
pub const DEAF: Millis = 4000;
/// Answers after which it has looked at all its sockets.
const ANSWERS: usize = 2;

impl Slot {
    /// Keeps the process from accepting clients, for [`DEAF`]. No server connection may be about to be opened: see
    /// [`Slot::is_quiet`]. False: it still accepts them.
    ///
    /// # Errors
    /// [`SlotError`].
    pub async fn stop_accepting(&mut self) -> Result<bool, SlotError> {
        // connections to a console that lets nobody in
        self.lay_in_sessions().await?;
        self.refusal_meant.store(true, Ordering::Relaxed);
        self.link.order(&Order::Files { slot: self.name, allowed: false }).await?;
        let knocked = self.knock().await;
        self.link.order(&Order::Files { slot: self.name, allowed: true }).await?;
        self.quiet.is_over();
        let knock = knocked?;
        self.pass_answers().await?;
        Ok(!knock.is_answered())
    }

    async fn knock(&mut self) -> Result<Knock, SlotError> {
        let knock = self.console.knock().await?;
        self.pass_answers().await?;
        Ok(knock)
    }

    async fn pass_answers(&mut self) -> Result<(), SlotError> {
        for _ in 0..ANSWERS {
            self.console.run("SHOW VERSION").await?;
        }
        Ok(())
    }

    /// Whether somebody that the process has accepted has not logged in yet. A login may wait for the first server connection too.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn has_logins(&mut self) -> Result<bool, SlotError> {
        if self.console.clients_logging_in().await? > 0 {
            return Ok(true);
        }
        let (pools, _) = self.console.pools(&self.database).await?;
        let reached = pools.held() > pools.login || self.console.snapshot(&self.database).await?.stats.assignments > 0;
        Ok(pools.clients_waiting > 0 && !reached)
    }
}
