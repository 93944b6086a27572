//! The load of the benches that count what is lost: clients that never try anything twice. Whatever fails is counted, by the
//! stage that it failed at and by how.

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

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A client that hears nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The message by which a client asks for TLS.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How far a client had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// TCP.
    Connect,
    /// TLS, startup message and login.
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
    /// TLS was refused.
    NoTls,
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
    visits: Mutex<BTreeMap<u64, u64>>,
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

    /// How long visits took, from the first packet until the answer: microseconds, rounded up to two digits, and how many.
    pub fn visits(&self) -> BTreeMap<u64, u64> {
        self.visits.lock().expect("no one panics with it").clone()
    }

    fn visited(&self, took: Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let unit = 10_u64.pow(microseconds.max(1).ilog10().saturating_sub(1));
        let rounded = microseconds.div_ceil(unit).saturating_mul(unit);
        *self.visits.lock().expect("no one panics with it").entry(rounded).or_default() += 1;
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
    /// What a client trusts that insists on TLS; None: it speaks plain text.
    pub tls: Option<Arc<ClientConfig>>,
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
        Self { tally: Arc::default(), stop: Arc::default(), tasks: JoinSet::new() }
    }

    /// Nobody yet; what they meet is counted together with what others have met.
    pub fn with(tally: Arc<Tally>) -> Self {
        Self { tally, ..Self::new() }
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
        self.dwell(target, lifetime, think, "select 42".to_owned());
    }

    /// The same; its second question each time keeps a server connection busy for `work`.
    pub fn stay_at_work(&mut self, target: &Target, lifetime: Option<Duration>, think: Duration, work: Duration) {
        self.dwell(target, lifetime, think, busy(work));
    }

    fn dwell(&mut self, target: &Target, lifetime: Option<Duration>, think: Duration, text: String) {
        let (target, tally, stop) = (target.clone(), self.tally.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Err(failure) = dwell(&target, &tally, &stop, lifetime, think, &text).await {
                    tally.fail(failure);
                    // a failure is one failure, not as many as fit into a second
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }

    /// Adds a client that stays for ever, prepares its question by SQL and executes it every `think`: that needs a server connection of
    /// its own, whatever the pooler knows of prepared statements.
    pub fn execute(&mut self, target: &Target, think: Duration) {
        let (target, tally, stop) = (target.clone(), self.tally.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Err(failure) = execute(&target, &tally, &stop, think).await {
                    tally.fail(failure);
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }

    /// Adds a client that stays for ever, and whose questions keep a server connection busy for `work` each, without a pause.
    pub fn work(&mut self, target: &Target, work: Duration) {
        let (target, tally, stop) = (target.clone(), self.tally.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Err(failure) = toil(&target, &tally, &stop, work).await {
                    tally.fail(failure);
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

/// What a client asks; the answer is 42.
#[derive(Clone, Copy)]
enum Question<'a> {
    /// By a prepared statement, with the parameter 41.
    Prepared(&'a tokio_postgres::Statement),
    /// By a text.
    Simple(&'a str),
}

const SIMPLE: Question<'static> = Question::Simple("select 42");

async fn in_time<T>(stage: Stage, what: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(PATIENCE, what).await.unwrap_or(Err(Failure { stage, kind: Kind::Deadline }))
}

async fn connect(target: &Target, tally: &Tally) -> Result<Client, Failure> {
    let stream = in_time(Stage::Connect, async {
        let stream = TcpStream::connect(target.address).await;
        // as drivers do
        stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream)).map_err(of_system(Stage::Connect))
    })
    .await?;
    // boxed: the state of a handshake is large
    let logged_in = Box::pin(async {
        match &target.tls {
            None => log_in(stream, &target.login).await,
            Some(trusted) => log_in(encrypt(stream, target, trusted.clone()).await?, &target.login).await,
        }
    });
    let client = in_time(Stage::Startup, logged_in).await?;
    tally.connections.fetch_add(1, Ordering::Relaxed);
    Ok(client)
}

async fn encrypt(
    mut stream: TcpStream,
    target: &Target,
    trusted: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Failure> {
    let failed = of_system(Stage::Startup);
    stream.write_all(&TLS_REQUEST).await.map_err(&failed)?;
    if stream.read_u8().await.map_err(&failed)? != b'S' {
        return Err(Failure { stage: Stage::Startup, kind: Kind::NoTls });
    }
    let name = ServerName::IpAddress(target.address.ip().into());
    TlsConnector::from(trusted).connect(name, stream).await.map_err(failed)
}

async fn log_in<S>(stream: S, login: &Config) -> Result<Client, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error: tokio_postgres::Error| Failure { stage: Stage::Startup, kind: of_client(&error) };
    let (client, connection) = login.connect_raw(stream, NoTls).await.map_err(failed)?;
    tokio::spawn(connection);
    Ok(client)
}

async fn ask(client: &Client, question: Question<'_>, tally: &Tally) -> Result<(), Failure> {
    let failed = |error: tokio_postgres::Error| Failure { stage: Stage::Query, kind: of_client(&error) };
    let right = in_time(Stage::Query, async {
        let text = match question {
            Question::Prepared(statement) => {
                let row = client.query_one(statement, &[&41_i32]).await.map_err(failed)?;
                return Ok(row.try_get::<_, i32>(0).is_ok_and(|answer| answer == 42));
            }
            Question::Simple(text) => text,
        };
        let messages = client.simple_query(text).await.map_err(failed)?;
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
    let begin = Instant::now();
    let client = connect(target, tally).await?;
    ask(&client, SIMPLE, tally).await?;
    tally.visited(begin.elapsed());
    Ok(())
}

async fn dwell(
    target: &Target,
    tally: &Tally,
    stop: &AtomicBool,
    lifetime: Option<Duration>,
    think: Duration,
    text: &str,
) -> Result<(), Failure> {
    let client = connect(target, tally).await?;
    let failed = |error: tokio_postgres::Error| Failure { stage: Stage::Query, kind: of_client(&error) };
    let statement =
        in_time(Stage::Query, async { client.prepare("select $1::int4 + 1").await.map_err(failed) }).await?;
    let end = lifetime.map(|lifetime| Instant::now() + lifetime);
    while !stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
        ask(&client, Question::Prepared(&statement), tally).await?;
        ask(&client, Question::Simple(text), tally).await?;
        sleep(think).await;
    }
    Ok(())
}

async fn execute(target: &Target, tally: &Tally, stop: &AtomicBool, think: Duration) -> Result<(), Failure> {
    let client = connect(target, tally).await?;
    let failed = |error: tokio_postgres::Error| Failure { stage: Stage::Query, kind: of_client(&error) };
    let prepared = client.batch_execute("prepare answer as select 42");
    in_time(Stage::Query, async { prepared.await.map_err(failed) }).await?;
    while !stop.load(Ordering::Relaxed) {
        ask(&client, Question::Simple("execute answer"), tally).await?;
        sleep(think).await;
    }
    Ok(())
}

/// A question that keeps a server connection busy for so long.
fn busy(work: Duration) -> String {
    format!("select 42 from pg_sleep({})", work.as_secs_f64())
}

async fn toil(target: &Target, tally: &Tally, stop: &AtomicBool, work: Duration) -> Result<(), Failure> {
    let client = connect(target, tally).await?;
    let text = busy(work);
    while !stop.load(Ordering::Relaxed) {
        ask(&client, Question::Simple(&text), tally).await?;
    }
    Ok(())
}

fn of_system(stage: Stage) -> impl Fn(io::Error) -> Failure {
    move |error| Failure { stage, kind: of_io(&error) }
}

fn of_io(error: &io::Error) -> Kind {
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
            return of_io(error);
        }
        cause = error.source();
    }
    Kind::Other(error.to_string())
}
