//! The agent's end of the line to the keeper.

use std::{
    io::{self, stdin},
    os::{fd::AsFd, unix::net::UnixStream as StdStream},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, watch},
    time::timeout,
};

use super::orders::{KeeperState, Listening, Order, SlotState};
use crate::agent::decide::slot_name::SlotName;

/// How long the keeper may take; it does nothing that waits.
const DEADLINE: Duration = Duration::from_secs(2);

/// Why the keeper did not do as asked.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Standard input leads to no keeper.
    #[error("standard input is no line to a keeper ({0}); start sluice-agent with: run")]
    NoKeeper(#[source] io::Error),
    /// It has gone, and the container with it.
    #[error("the keeper has gone")]
    Gone,
    /// It did not answer.
    #[error("the keeper did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
}

struct Orders {
    line: OwnedWriteHalf,
    sent: u64,
}

/// The line to the keeper. Clones share it.
#[derive(Clone)]
pub struct Link {
    orders: Arc<Mutex<Orders>>,
    states: watch::Receiver<KeeperState>,
}

impl Link {
    /// Takes up the line that was inherited as standard input, and waits for the keeper's first word.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn inherited() -> Result<Self, LinkError> {
        let inherit = || -> io::Result<UnixStream> {
            let stream = StdStream::from(stdin().as_fd().try_clone_to_owned()?);
            stream.peer_addr()?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        Self::over(inherit().map_err(LinkError::NoKeeper)?).await
    }

    async fn over(stream: UnixStream) -> Result<Self, LinkError> {
        let (states, line) = stream.into_split();
        let mut states = BufReader::new(states);
        let first = timeout(DEADLINE, next(&mut states)).await.map_err(|_| LinkError::Deadline)?;
        let (publish, watched) = watch::channel(first.ok_or(LinkError::Gone)?);
        // Ends with the keeper, and with the last receiver.
        tokio::spawn(async move {
            while let Some(state) = next(&mut states).await {
                if publish.send(state).is_err() {
                    return;
                }
            }
        });
        Ok(Self { orders: Arc::new(Mutex::new(Orders { line, sent: 0 })), states: watched })
    }

    /// To a keeper that a test plays, with its end of the line: it has said this, and says nothing more by itself.
    #[cfg(test)]
    pub(in crate::agent) async fn played(state: &KeeperState) -> (Self, UnixStream) {
        let (ours, mut keepers) = UnixStream::pair().unwrap();
        let line = format!("{}\n", serde_json::to_string(state).unwrap());
        keepers.write_all(line.as_bytes()).await.unwrap();
        (Self::over(ours).await.unwrap(), keepers)
    }

    /// What the keeper said last.
    pub fn state(&self) -> KeeperState {
        self.states.borrow().clone()
    }

    /// What the keeper said last about the sockets that clients come to.
    pub fn listening(&self) -> Listening {
        self.states.borrow().listening.clone()
    }

    /// What the keeper said last about a slot.
    pub fn slot(&self, name: SlotName) -> SlotState {
        self.states.borrow().slot(name).clone()
    }

    /// Sends an order and waits until it is obeyed.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn order(&self, order: &Order) -> Result<KeeperState, LinkError> {
        let mut line = serde_json::to_vec(order).unwrap_or_default();
        line.push(b'\n');
        let mut states = self.states.clone();
        let obeyed = async {
            let mut orders = self.orders.lock().await;
            orders.sent += 1;
            let sent = orders.sent;
            orders.line.write_all(&line).await.map_err(|_| LinkError::Gone)?;
            let state = states.wait_for(|state| state.orders >= sent).await.map_err(|_| LinkError::Gone)?;
            Ok(state.clone())
        };
        timeout(DEADLINE, obeyed).await.unwrap_or(Err(LinkError::Deadline))
    }

    /// Waits until a slot is as wanted, at most so long. False when it is not.
    pub async fn until(&self, name: SlotName, deadline: Duration, wanted: impl Fn(&SlotState) -> bool) -> bool {
        let mut states = self.states.clone();
        let seen = timeout(deadline, states.wait_for(|state| wanted(state.slot(name)))).await;
        seen.is_ok_and(|state| state.is_ok())
    }

    /// Ends when the keeper does.
    pub fn gone(&self) -> impl Future<Output = ()> + use<> {
        let mut states = self.states.clone();
        async move { while states.changed().await.is_ok() {} }
    }
}

async fn next(states: &mut BufReader<OwnedReadHalf>) -> Option<KeeperState> {
    let mut line = String::new();
    match states.read_line(&mut line).await {
        Ok(1..) => serde_json::from_str(&line).ok(),
        _ => None,
    }
}
