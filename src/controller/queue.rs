//! Which pools to look at next. Bounded: whoever finds it full waits, or leaves it to the next tick.

use futures::{SinkExt, channel::mpsc};
use kube::runtime::{
    controller::{ReconcileReason, ReconcileRequest},
    reflector::ObjectRef,
};

use crate::{api::ConnectionPool, signals::PoolKey};

/// Requests that fit; the scheduler behind it keeps one per pool.
const CAPACITY: usize = 4096;

/// The way into the queue; cheap to clone.
#[derive(Clone)]
pub struct Queue {
    sender: mpsc::Sender<ReconcileRequest<ConnectionPool>>,
}

/// A queue and its end.
pub fn queue() -> (Queue, mpsc::Receiver<ReconcileRequest<ConnectionPool>>) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Queue { sender }, receiver)
}

impl Queue {
    /// Asks for a look at a pool, waiting for a place.
    pub async fn ask(&self, pool: &PoolKey, why: &'static str) {
        // the other end is gone only when the process ends
        let _ = self.sender.clone().send(request(pool, why)).await;
    }
}

fn request(pool: &PoolKey, why: &'static str) -> ReconcileRequest<ConnectionPool> {
    let reason = ReconcileReason::Custom { reason: why.to_owned() };
    ReconcileRequest { obj_ref: ObjectRef::new(&pool.name).within(&pool.namespace), reason }
}
