//! HTTP/1.1 for whoever reaches the port, within bounds.
//!
//! A connection costs memory before anybody has proven who he is. So the number of connections is bounded, and so is the time of each
//! step: the TLS handshake, the head of a request, a whole request, the pause between two. When every place is taken, the source
//! that has most of them gives one up to the newcomer ([`places`]): what a thousand idle connections of one pod hold is less than
//! one page of metrics, and whoever comes from elsewhere is answered.
//!
//! A server ends in two steps ([`Drain`]). While it drains it still accepts and answers, and tells each client to come back by a
//! new connection, which leads to a server that stays. Only when the drain is over does it close its port.

mod connection;
mod places;
#[cfg(test)]
mod tests;
mod tls;

use std::{io, time::Duration};

use axum::Router;
use tokio::{
    net::TcpListener,
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    connection::RequestSource,
    tls::{TlsIdentity, TlsIdentityError},
};
use self::{
    connection::{ConnectionTask, ServedConnection},
    places::ConnectionPlaces,
};

/// Pause after the system gave no connection, because the process has no file descriptor left, say.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// Shortest time between two messages that connections were closed for others.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// What the clients of one port may take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingBounds {
    /// Connections at once.
    pub connections: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest time from the first byte of a request to the end of its head.
    pub head: Duration,
    /// Longest time from the end of the head to the last byte of the answer.
    pub request: Duration,
    /// Longest time without a request.
    pub idle: Duration,
    /// Bytes that are read ahead, and most bytes of a head. At least 8 KiB.
    pub buffer_bytes: usize,
}

/// How a server is told to end; cheap to clone. Dropping it ends nothing.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    over: CancellationToken,
}

impl Drain {
    /// From now on answers tell the client to come back by a new connection.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// The port is closed. What is being answered is answered to its end.
    pub fn end(&self) {
        self.begun.cancel();
        self.over.cancel();
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Waits for its end.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
}

/// A server of one port.
pub struct HttpServer {
    listener: TcpListener,
    routes: Router,
    bounds: ServingBounds,
    tls: Option<TlsIdentity>,
}

impl HttpServer {
    /// One that answers in plain text.
    pub const fn new(listener: TcpListener, routes: Router, bounds: ServingBounds) -> Self {
        Self { listener, routes, bounds, tls: None }
    }

    /// One that answers by TLS alone. What it proves itself with may be exchanged at any time.
    #[must_use]
    pub fn with_tls(self, identity: TlsIdentity) -> Self {
        Self { tls: Some(identity), ..self }
    }

    /// Serves until the drain is over and what was being answered then is answered.
    pub async fn run(self, drain: Drain) {
        let mut places = ConnectionPlaces::new(self.bounds.connections);
        let mut given_up = GivenUp::default();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = drain.over() => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_client(&error) => continue,
                Err(error) => {
                    tracing::error!(%error, "accepting a connection; trying again");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let source = address.ip().to_canonical();
            let connection = ServedConnection::new(source, self.tls.is_some());
            let served = ConnectionTask { connection: connection.clone(), bounds: self.bounds, drain: drain.clone() };
            let doing = served.run(stream, self.tls.clone(), self.routes.clone());
            let room = places.take(connection, doing);
            if let Some(closed) = room.closed() {
                given_up.tell(closed, self.bounds.connections);
                // what was closed gives back its memory before the next one comes
                yield_now().await;
            }
        }
        drop(self.listener);
        places.end(self.bounds.request).await;
    }
}

/// Whether the client went away before it was accepted: that says nothing about the next one.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Connections that were closed for others, told once in a while.
#[derive(Default)]
struct GivenUp {
    count: u64,
    told_at: Option<Instant>,
}

impl GivenUp {
    fn tell(&mut self, source: std::net::IpAddr, places: usize) {
        self.count += 1;
        if self.told_at.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            tracing::warn!(
                closed = self.count,
                %source,
                "all {places} places for connections are taken; those of the source that has most are closed for new ones"
            );
            (self.count, self.told_at) = (0, Some(Instant::now()));
        }
    }
}
