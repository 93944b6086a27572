//! One connection: what it is doing, since when, and how long it may.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Request, Response, header},
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use parking_lot::Mutex;
use rustix::net::sockopt::set_socket_linger;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsAcceptor;

use super::{Drain, ServingBounds, TlsIdentity};

/// Where a request comes from: an extension of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSource(pub IpAddr);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionPhase {
    /// TLS is being agreed upon.
    Handshake {
        /// Since when.
        since: Instant,
    },
    /// No request is being answered.
    Waiting {
        /// Since when.
        since: Instant,
        /// When the first byte of the next request came.
        begun: Option<Instant>,
    },
    /// A request is being answered.
    Busy {
        /// Since when.
        since: Instant,
    },
}

impl ConnectionPhase {
    /// When it began.
    pub const fn since(self) -> Instant {
        match self {
            Self::Handshake { since } | Self::Waiting { since, .. } | Self::Busy { since } => since,
        }
    }

    /// Whether somebody waits for an answer.
    pub const fn is_busy(self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// When it has taken too long.
    fn deadline(self, bounds: &ServingBounds) -> Instant {
        match self {
            Self::Handshake { since } => since + bounds.handshake,
            Self::Waiting { begun: Some(begun), .. } => begun + bounds.head,
            Self::Waiting { since, begun: None } => since + bounds.idle,
            Self::Busy { since } => since + bounds.request,
        }
    }
}

/// A connection as the server and its own task share it.
#[derive(Debug)]
pub struct ServedConnection {
    /// Where it comes from.
    pub source: IpAddr,
    /// Whether it is closed by a reset: nothing of it stays, neither here nor in the kernel.
    pub is_cut: AtomicBool,
    phase: Mutex<ConnectionPhase>,
}

impl ServedConnection {
    /// One that was accepted just now.
    pub fn new(source: IpAddr, by_tls: bool) -> Arc<Self> {
        let since = Instant::now();
        let phase =
            if by_tls { ConnectionPhase::Handshake { since } } else { ConnectionPhase::Waiting { since, begun: None } };
        Arc::new(Self { source, is_cut: AtomicBool::new(false), phase: Mutex::new(phase) })
    }

    /// What it is doing.
    pub fn phase(&self) -> ConnectionPhase {
        *self.phase.lock()
    }

    fn waits(&self) {
        *self.phase.lock() = ConnectionPhase::Waiting { since: Instant::now(), begun: None };
    }

    fn has_read(&self) {
        if let ConnectionPhase::Waiting { begun: begun @ None, .. } = &mut *self.phase.lock() {
            *begun = Some(Instant::now());
        }
    }

    /// Does this until it is done; nothing, and the connection is cut, when a phase takes longer than it may.
    async fn within<T>(&self, bounds: &ServingBounds, doing: impl Future<Output = T>) -> Option<T> {
        let mut doing = pin!(doing);
        let mut alarm = pin!(sleep_until(self.phase().deadline(bounds)));
        poll_fn(|context| {
            if let Poll::Ready(done) = doing.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            let deadline = self.phase().deadline(bounds);
            if alarm.deadline() != deadline {
                alarm.as_mut().reset(deadline);
            }
            alarm.as_mut().poll(context).map(|()| {
                self.is_cut.store(true, Ordering::Relaxed);
                None
            })
        })
        .await
    }
}

/// What the task of a connection works with.
pub struct ConnectionTask {
    /// The connection.
    pub connection: Arc<ServedConnection>,
    /// Of its server.
    pub bounds: ServingBounds,
    /// Of its server.
    pub drain: Drain,
}

impl ConnectionTask {
    /// Answers until the client has gone or has to.
    pub fn run(
        self,
        stream: TcpStream,
        tls: Option<TlsIdentity>,
        routes: Router,
    ) -> impl Future<Output = ()> + Send + 'static {
        // an answer is small and whole: nothing is gained by waiting for more of it
        let _ = stream.set_nodelay(true);
        let socket = Socket { stream, connection: self.connection.clone() };
        async move {
            let Some(tls) = tls else { return self.answer(socket, routes).await };
            let handshake = TlsAcceptor::from(tls.current()).accept(socket);
            if let Some(Ok(stream)) = self.connection.within(&self.bounds, handshake).await {
                self.connection.waits();
                self.answer(stream, routes).await;
            }
        }
    }

    async fn answer(self, io: impl AsyncRead + AsyncWrite + Unpin, routes: Router) {
        let Self { connection, bounds, drain } = self;
        let answering = connection.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let turn = AnsweringGuard::of(answering.clone());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(RequestSource(answering.source));
            let answer = TowerToHyperService::new(routes.clone()).call(request);
            let drain = drain.clone();
            async move {
                let mut answer: Response<Body> = answer.await?;
                if drain.has_begun() {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Turned { body, _turn: turn }))
            }
        });
        let mut http = http1::Builder::new();
        http.max_buf_size(bounds.buffer_bytes).header_read_timeout(None::<Duration>);
        // a client that broke off is nobody's fault here
        let _ = connection.within(&bounds, http.serve_connection(TokioIo::new(io), service)).await;
    }
}

/// A request that is being answered, until its answer has been handed over.
struct AnsweringGuard(Arc<ServedConnection>);

impl AnsweringGuard {
    fn of(connection: Arc<ServedConnection>) -> Self {
        *connection.phase.lock() = ConnectionPhase::Busy { since: Instant::now() };
        Self(connection)
    }
}

impl Drop for AnsweringGuard {
    fn drop(&mut self) {
        self.0.waits();
    }
}

/// The body of an answer, with its turn.
struct Turned {
    body: Body,
    _turn: AnsweringGuard,
}

impl HttpBody for Turned {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The socket. It tells when something came, and how it is closed.
struct Socket {
    stream: TcpStream,
    connection: Arc<ServedConnection>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.connection.is_cut.load(Ordering::Relaxed) {
            // a reset: otherwise the kernel keeps the connection until the client says something
            let _ = set_socket_linger(&self.stream, Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.connection.has_read();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
