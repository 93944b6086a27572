//! Clients that never try anything twice: whatever fails is counted, by the stage that it failed at and by how.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// A client that hears nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far a client had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// TCP.
    Connect,
    /// Startup message and login.
    Startup,
    /// A query.
    Query,
}

/// What it met.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Connection refused.
    Refused,
    /// Connection reset, or a broken pipe.
    Reset,
    /// The other side closed the connection.
    Closed,
    /// An error of the protocol, by its SQLSTATE.
    Error(String),
    /// No answer in time.
    Deadline,
    /// Another answer than the one that was asked for.
    WrongAnswer,
    /// Anything else.
    Other(String),
}

/// One way to fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// At which stage.
    pub stage: Stage,
    /// How.
    pub kind: Kind,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Error(code) => write!(f, "{:?}/{code}", self.stage),
            Kind::Other(text) => write!(f, "{:?}/{text}", self.stage),
            kind => write!(f, "{:?}/{kind:?}", self.stage),
        }
    }
}

/// What the clients have met so far.
#[derive(Debug, Default)]
pub struct Tally {
    connections: AtomicU64,
    queries: AtomicU64,
    failures: Mutex<BTreeMap<Failure, u64>>,
}

impl Tally {
    /// Connections that logged in.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Queries answered as they should be.
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// All failures.
    pub fn failures(&self) -> BTreeMap<Failure, u64> {
        self.failures.lock().expect("no one panics with it").clone()
    }

    fn fail(&self, failure: Failure) {
        *self.failures.lock().expect("no one panics with it").entry(failure).or_default() += 1;
    }
}

/// Where to, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// The pooler.
    pub address: SocketAddr,
    /// User, password and database.
    pub login: Config,
}

/// Clients at work, until [`Clients::stop`].
pub struct Clients {
    /// What they have met.
    pub tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::with(Arc::default())
    }

    /// Nobody any more, and what they have met.
    pub fn with(tally: Arc<Tally>) -> Self {
        Self { tally, stop: Arc::default(), tasks: JoinSet::new() }
    }

    /// Adds `workers` clients that connect, ask one thing and leave, together `per_second` times a second at most.
    pub fn churn(&mut self, target: &Target, workers: u32, per_second: u32) {
        let pause = Duration::from_secs_f64(f64::from(workers) / f64::from(per_second));
        for worker in 0..workers {
            let (target, tally, stop) = (target.clone(), self.tally.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                let mut due = Instant::now() + pause.mul_f64(f64::from(worker) / f64::from(workers));
                while !stop.load(Ordering::Relaxed) {
                    sleep_until(due).await;
                    if let Err(failure) = visit(&target, &tally).await {
                        tally.fail(failure);
                    }
                    // those that are late do not catch up
                    due = (due + pause).max(Instant::now());
                }
            });
        }
    }

    /// Adds a client that keeps its connection for `lifetime` (None: for ever), asks every `think`, and uses a prepared statement.
    pub fn stay(&mut self, target: &Target, lifetime: Option<Duration>, think: Duration) {
        let (target, tally, stop) = (target.clone(), self.tally.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Err(failure) = dwell(&target, &tally, &stop, lifetime, think).await {
                    tally.fail(failure);
                    // a failure is one failure, not as many as fit into a second
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }

    /// Lets everyone finish what they are at.
    pub async fn stop(mut self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.tally
    }
}

async fn in_time<T>(stage: Stage, what: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(PATIENCE, what).await.unwrap_or(Err(Failure { stage, kind: Kind::Deadline }))
}

async fn connect(target: &Target, tally: &Tally) -> Result<Client, Failure> {
    let stream = in_time(Stage::Connect, async {
        TcpStream::connect(target.address)
            .await
            .map_err(|error| Failure { stage: Stage::Connect, kind: of_system(&error) })
    })
    .await?;
    let failed = |error: tokio_postgres::Error| Failure { stage: Stage::Startup, kind: of_client(&error) };
    let (client, connection) =
        in_time(Stage::Startup, async { target.login.connect_raw(stream, NoTls).await.map_err(failed) }).await?;
    tokio::spawn(connection);
    tally.connections.fetch_add(1, Ordering::Relaxed);
    Ok(client)
}

async fn ask(client: &Client, statement: Option<&tokio_postgres::Statement>, tally: &Tally) -> Result<(), Failure> {
    let failed = |error: tokio_postgres::Error| Failure { stage: Stage::Query, kind: of_client(&error) };
    let right = in_time(Stage::Query, async {
        if let Some(statement) = statement {
            let row = client.query_one(statement, &[&41_i32]).await.map_err(failed)?;
            return Ok(row.try_get::<_, i32>(0).is_ok_and(|answer| answer == 42));
        }
        let messages = client.simple_query("select 42").await.map_err(failed)?;
        let is_right =
            |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("42"));
        Ok(messages.iter().any(is_right))
    })
    .await?;
    if !right {
        return Err(Failure { stage: Stage::Query, kind: Kind::WrongAnswer });
    }
    tally.queries.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// One client that connects, asks one thing and leaves.
pub async fn visit(target: &Target, tally: &Tally) -> Result<(), Failure> {
    let client = connect(target, tally).await?;
    ask(&client, None, tally).await
}

async fn dwell(
    target: &Target,
    tally: &Tally,
    stop: &AtomicBool,
    lifetime: Option<Duration>,
    think: Duration,
) -> Result<(), Failure> {
    let client = connect(target, tally).await?;
    let failed = |error: tokio_postgres::Error| Failure { stage: Stage::Query, kind: of_client(&error) };
    let statement =
        in_time(Stage::Query, async { client.prepare("select $1::int4 + 1").await.map_err(failed) }).await?;
    let end = lifetime.map(|lifetime| Instant::now() + lifetime);
    while !stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
        ask(&client, Some(&statement), tally).await?;
        ask(&client, None, tally).await?;
        sleep(think).await;
    }
    Ok(())
}

fn of_system(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Kind::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => Kind::Reset,
        io::ErrorKind::UnexpectedEof => Kind::Closed,
        kind => Kind::Other(format!("{kind:?}")),
    }
}

fn of_client(error: &tokio_postgres::Error) -> Kind {
    if let Some(error) = error.as_db_error() {
        return Kind::Error(error.code().code().to_owned());
    }
    if error.is_closed() {
        return Kind::Closed;
    }
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return of_system(error);
        }
        cause = error.source();
    }
    Kind::Other(error.to_string())
}
