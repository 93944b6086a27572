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
    agent::{
        decide::{machine::Millis, slot_name::SlotName},
        keeper::{Link, Order},
    },
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
        let (link, slot) = (self.link.clone(), self.name);
        let knock = without_files(&link, slot, self.knock()).await;
        self.quiet.is_over();
        let knock = knock?;
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

/// Does this while the process of a slot may open no file.
async fn without_files<T>(
    link: &Link,
    slot: SlotName,
    what: impl Future<Output = Result<T, SlotError>>,
) -> Result<T, SlotError> {
    let done = match link.order(&Order::Files { slot, allowed: false }).await {
        Ok(_) => what.await,
        Err(error) => Err(error.into()),
    };
    // a keeper that was late obeys the first order all the same
    link.order(&Order::Files { slot, allowed: true }).await?;
    done
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;
    use crate::agent::keeper::{KeeperState, Listening, SlotState};

    #[tokio::test]
    async fn a_keeper_that_is_late_gets_the_order_that_allows_files_after_the_one_that_forbids_them() {
        let slots = [SlotState::default(), SlotState::default()];
        let state = KeeperState { orders: 0, listening: Listening::Closed, steered: SlotName::A, slots };
        let (link, keeper) = Link::played(&state).await;
        let mut orders = BufReader::new(keeper).lines();
        tokio::time::pause();
        let done = without_files(&link, SlotName::B, std::future::ready(Ok(()))).await;
        assert!(matches!(done, Err(SlotError::Keeper(_))), "{done:?}");
        for allowed in [false, true] {
            let order = orders.next_line().await.unwrap().unwrap();
            assert_eq!(serde_json::from_str::<Order>(&order).unwrap(), Order::Files { slot: SlotName::B, allowed });
        }
    }
}
