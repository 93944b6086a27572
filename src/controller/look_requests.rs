//! Asking for looks at pools. Bounded: whoever finds the channel full waits, or leaves it to the next tick.

use futures::{SinkExt, channel::mpsc};

use crate::domain::PoolKey;

/// Requests that fit; behind them stands the queue of [`super::work_queue`], with one place for each pool.
const CAPACITY: usize = 4096;

/// Asks for looks at pools; cheap to clone.
#[derive(Clone)]
pub struct LookRequests {
    sender: mpsc::Sender<PoolKey>,
}

/// Where looks are asked for, and where the requests come out.
pub fn requests() -> (LookRequests, mpsc::Receiver<PoolKey>) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (LookRequests { sender }, receiver)
}

impl LookRequests {
    /// Asks for a look at a pool, waiting for a place.
    pub async fn ask(&self, pool: &PoolKey, why: &'static str) {
        tracing::trace!(%pool, why, "a look is asked for");
        // the other end is gone only when the process ends
        let _ = self.sender.clone().send(pool.clone()).await;
    }
}
