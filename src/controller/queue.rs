//! Which pools to look at. Bounded: whoever finds it full waits, or leaves it to the next tick.

use futures::{SinkExt, channel::mpsc};

use crate::domain::PoolKey;

/// Requests that fit; behind them stands the line of [`super::turns`], with one place for each pool.
const CAPACITY: usize = 4096;

/// The way into the queue; cheap to clone.
#[derive(Clone)]
pub struct Queue {
    sender: mpsc::Sender<PoolKey>,
}

/// A queue and its end.
pub fn queue() -> (Queue, mpsc::Receiver<PoolKey>) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Queue { sender }, receiver)
}

impl Queue {
    /// Asks for a look at a pool, waiting for a place.
    pub async fn ask(&self, pool: &PoolKey, why: &'static str) {
        tracing::trace!(%pool, why, "a look is asked for");
        // the other end is gone only when the process ends
        let _ = self.sender.clone().send(pool.clone()).await;
    }
}
