//! PgBouncer's admin console over its unix socket.
//!
//! The console speaks the simple query protocol only. Every call has a deadline; after any failure the connection is
//! dropped and the next call makes a new one. Being the same user as the PgBouncer process is what logs us in.

use std::{
    collections::BTreeMap,
    iter,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::UnixStream,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::render::Credentials;
use super::tables::{self, Alias, Pools, Server, Snapshot, Table, TableError};
use crate::contract::LimitsReadBack;

/// How long the answer to `PAUSE` is waited for: it is in force before it is answered.
const PAUSE_DEADLINE: Duration = Duration::from_millis(50);
/// How long a query that did not come back may take to be cancelled.
const CANCEL_DEADLINE: Duration = Duration::from_millis(500);
/// What a client may ask first, whether there is TLS: its length, and a number that is no version of the protocol. One byte is the answer.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Why a command had no good answer.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The socket could not be opened.
    #[error("connecting to the console at {path}: {source}")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The console refused the command, or spoke another protocol.
    #[error("{command}: {source}")]
    Command {
        /// The command.
        command: String,
        /// What the client library said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("{command}: no answer within {} ms", deadline.as_millis())]
    Deadline {
        /// The command.
        command: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The answer has another shape.
    #[error(transparent)]
    Answer(#[from] TableError),
}

impl ConsoleError {
    /// Whether the console refused the command in words of its own.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Command { source, .. } if source.as_db_error().is_some())
    }
}

struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Session {
    fn is_open(&self) -> bool {
        !self.client.is_closed()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The unix socket that a PgBouncer which listens on this port puts into a directory: PostgreSQL's own name for it.
pub fn socket(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// A client of the console of one PgBouncer.
pub struct Console {
    socket: PathBuf,
    deadlines: Deadlines,
    session: Option<Session>,
    /// Connections for when that one is lost.
    spare: Vec<Session>,
}

/// How long answers may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Any answer.
    pub answer: Duration,
    /// The answer to `PAUSE`, which comes once no server connection is linked any more.
    pub pause: Duration,
}

impl Deadlines {
    /// Of a console that can be connected to again at any time.
    pub const fn of(answer: Duration) -> Self {
        Self { answer, pause: PAUSE_DEADLINE }
    }
}

/// A connection that somebody has to accept.
pub struct Knock {
    stream: UnixStream,
}

impl Knock {
    /// Whether it was accepted.
    pub fn is_answered(&self) -> bool {
        !matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

impl Console {
    /// A client that connects when it is first used. The socket's name follows from the directory and the port.
    pub fn new(socket_dir: &Path, port: u16, deadline: Duration) -> Self {
        Self { socket: socket(socket_dir, port), deadlines: Deadlines::of(deadline), session: None, spare: Vec::new() }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How many connections there are, as far as is known.
    pub fn connections(&self) -> usize {
        self.session.iter().chain(&self.spare).filter(|session| session.is_open()).count()
    }

    /// How long answers may take from now on.
    pub fn set_deadlines(&mut self, deadlines: Deadlines) {
        self.deadlines = deadlines;
    }

    /// Makes so many connections beside the one in use, for a time in which nobody is let in any more.
    ///
    /// # Errors
    /// [`ConsoleError`]: there are fewer.
    pub async fn lay_in(&mut self, spare: usize) -> Result<(), ConsoleError> {
        self.spare.retain(Session::is_open);
        let deadline = self.deadlines.answer;
        while self.spare.len() < spare {
            let late = |_| Err(ConsoleError::Deadline { command: "login".to_owned(), deadline });
            let session = timeout(deadline, connect(&self.socket, login())).await.unwrap_or_else(late)?;
            self.spare.push(session);
        }
        Ok(())
    }

    /// Connects once more, and asks for TLS: what is accepted is answered at once.
    ///
    /// # Errors
    /// [`ConsoleError::Connect`].
    pub async fn knock(&self) -> Result<Knock, ConsoleError> {
        let failed = |source| ConsoleError::Connect { path: self.socket.display().to_string(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(failed)?;
        stream.writable().await.map_err(failed)?;
        stream.try_write(&SSL_REQUEST).map_err(failed)?;
        Ok(Knock { stream })
    }

    /// Forgets the connections, because the process behind them has changed.
    pub fn disconnect(&mut self) {
        self.session = None;
        self.spare.clear();
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`ConsoleError`]; the connection is dropped then.
    pub async fn run(&mut self, command: &str) -> Result<Table, ConsoleError> {
        self.run_within(command, self.deadlines.answer).await
    }

    /// Runs one command with a deadline of its own.
    ///
    /// # Errors
    /// [`ConsoleError`]; the connection is dropped then.
    pub async fn run_within(&mut self, command: &str, deadline: Duration) -> Result<Table, ConsoleError> {
        let answer = timeout(deadline, self.ask(command))
            .await
            .unwrap_or_else(|_| Err(ConsoleError::Deadline { command: command.to_owned(), deadline }));
        if answer.is_err() {
            self.session = None;
        }
        answer
    }

    async fn ask(&mut self, command: &str) -> Result<Table, ConsoleError> {
        let failed = |source| ConsoleError::Command { command: command.to_owned(), source };
        table(&self.session().await?.client, command).await.map_err(failed)
    }

    /// The connection in use, a spare one, or a new one.
    async fn session(&mut self) -> Result<&Session, ConsoleError> {
        let session = match self.session.take().filter(Session::is_open) {
            Some(session) => session,
            None => match iter::from_fn(|| self.spare.pop()).find(Session::is_open) {
                Some(spare) => spare,
                None => connect(&self.socket, login()).await?,
            },
        };
        Ok(self.session.insert(session))
    }

    /// `SHOW POOLS` of one database, and of its session alias.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn pools(&mut self, database: &str) -> Result<(Pools, Pools), ConsoleError> {
        let table = self.run("SHOW POOLS").await?;
        Ok((tables::pools(&table, database)?, tables::pools_beside(&table, database)?))
    }

    /// The databases that have clients, and how many, by `SHOW POOLS`.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn databases_in_use(&mut self) -> Result<BTreeMap<String, u32>, ConsoleError> {
        Ok(tables::databases_in_use(&self.run("SHOW POOLS").await?)?)
    }

    /// All figures of one database. They are asked for at once: PgBouncer answers what has come together without doing anything
    /// else in between, so they are of one moment.
    ///
    /// # Errors
    /// [`ConsoleError`]; the connection is dropped then.
    pub async fn snapshot(&mut self, database: &str) -> Result<Snapshot, ConsoleError> {
        const COMMANDS: [&str; 3] = ["SHOW POOLS", "SHOW STATS", "SHOW SERVERS"];
        let deadline = self.deadlines.answer;
        let asked = async {
            let client = &self.session().await?.client;
            let ask = async |command: &str| {
                let failed = |source| ConsoleError::Command { command: command.to_owned(), source };
                table(client, command).await.map_err(failed)
            };
            let [pools, stats, servers] = COMMANDS.map(ask);
            tokio::try_join!(pools, stats, servers)
        };
        let late = |_| Err(ConsoleError::Deadline { command: COMMANDS.join(", "), deadline });
        match timeout(deadline, asked).await.unwrap_or_else(late) {
            Ok((pools, stats, servers)) => Ok(Snapshot::read(&[pools, stats, servers], database)?),
            Err(error) => {
                self.session = None;
                Err(error)
            }
        }
    }

    /// `SHOW SERVERS` of one database.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn servers(&mut self, database: &str) -> Result<Vec<Server>, ConsoleError> {
        Ok(tables::servers(&self.run("SHOW SERVERS").await?, database)?)
    }

    /// What `SHOW CLIENTS` has of all clients together.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn count_clients(&mut self) -> Result<tables::ClientCount, ConsoleError> {
        Ok(tables::count_clients(&self.run("SHOW CLIENTS").await?)?)
    }

    /// `SHOW CLIENTS`, those of the console left out.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn clients(&mut self) -> Result<Vec<tables::Client>, ConsoleError> {
        Ok(tables::clients(&self.run("SHOW CLIENTS").await?)?)
    }

    /// Clients that have connected and not logged in yet, from `SHOW LISTS`. `SHOW CLIENTS` does not have them.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn clients_logging_in(&mut self) -> Result<u32, ConsoleError> {
        Ok(tables::logging_in(&self.run("SHOW LISTS").await?)?)
    }

    /// `KILL_CLIENT`: closes the connection of one client, which is told so.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn kill_client(&mut self, id: u64) -> Result<(), ConsoleError> {
        self.run(&format!("KILL_CLIENT {id}")).await.map(|_| ())
    }

    /// `SHOW CONFIG`.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn config(&mut self) -> Result<BTreeMap<String, String>, ConsoleError> {
        Ok(tables::config(&self.run("SHOW CONFIG").await?)?)
    }

    /// The limits in force, and the session alias.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn limits(&mut self, database: &str) -> Result<(LimitsReadBack, Option<Alias>), ConsoleError> {
        let config = self.config().await?;
        let databases = self.run("SHOW DATABASES").await?;
        let limits = LimitsReadBack {
            pool_size: tables::config_number(&config, "default_pool_size")?,
            max_db_connections: tables::config_number(&config, "max_db_connections")?,
            min_pool_size: tables::config_number(&config, "min_pool_size")?,
            paused: tables::database(&databases, database)?.paused,
        };
        Ok((limits, tables::alias(&databases, database)?))
    }

    /// The addresses that PgBouncer has found for a name, by `SHOW DNS_HOSTS`; None where it has not looked.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn addresses_of_name(&mut self, name: &str) -> Result<Option<Vec<IpAddr>>, ConsoleError> {
        let found = tables::addresses_of_name(&self.run("SHOW DNS_HOSTS").await?, name)?;
        let read = |text: &String| text.parse::<SocketAddr>().map(|socket| socket.ip()).or_else(|_| text.parse()).ok();
        Ok(found.map(|found| found.iter().filter_map(read).collect()))
    }

    /// `SET` of a number. Says nothing about whether it took effect: read back.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn set(&mut self, parameter: &'static str, value: &str) -> Result<(), ConsoleError> {
        self.run(&format!("SET {parameter} = '{value}'")).await.map(|_| ())
    }

    /// `PAUSE` of a database. PgBouncer answers only when no server connection is linked any more; the pause itself is
    /// in force at once. So the wait is cut short and counts as success; whether it is paused is read back.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn pause(&mut self, database: &str) -> Result<(), ConsoleError> {
        match self.run_within(&format!("PAUSE \"{database}\""), self.deadlines.pause).await {
            Ok(_) | Err(ConsoleError::Deadline { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// `RESUME` of a database.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn resume(&mut self, database: &str) -> Result<(), ConsoleError> {
        self.run(&format!("RESUME \"{database}\"")).await.map(|_| ())
    }

    /// `RECONNECT`: all server connections close as their transactions end, or their sessions, and others are opened as they are
    /// needed. Within `max_db_connections`, old ones included.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn reconnect(&mut self) -> Result<(), ConsoleError> {
        self.run("RECONNECT").await.map(|_| ())
    }

    /// The same for the server connections of one database.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn reconnect_database(&mut self, database: &str) -> Result<(), ConsoleError> {
        self.run(&format!("RECONNECT \"{database}\"")).await.map(|_| ())
    }

    /// `RELOAD`. Before PgBouncer 1.25 errors in the file are not reported: read back.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn reload(&mut self) -> Result<(), ConsoleError> {
        self.run("RELOAD").await.map(|_| ())
    }
}

/// Sends a query through a pooler to the database, as a client on its unix socket, and waits for the answer. Without a query the
/// login is all: a pooler that has never logged in to the database lets its first client in once it has. A query that does not come
/// back is cancelled: the database would work on it, and keep its connection, long after whoever asked has gone.
///
/// # Errors
/// [`ConsoleError`]: what the pooler or the database said.
pub async fn validate(
    socket: PathBuf,
    database: String,
    credentials: Credentials,
    query: String,
    deadline: Duration,
) -> Result<(), ConsoleError> {
    let late = |command: String| ConsoleError::Deadline { command, deadline };
    let mut config = Config::new();
    config.user(&credentials.username).password(&credentials.password).dbname(&database);
    let until = Instant::now() + deadline;
    let entered = timeout_at(until, connect(&socket, config)).await;
    let session = entered.map_err(|_| late("login".to_owned()))??;
    if query.trim().is_empty() {
        return Ok(());
    }
    let mut answer = pin!(table(&session.client, &query));
    if let Ok(answered) = timeout_at(until, &mut answer).await {
        return answered.map(|_| ()).map_err(|source| ConsoleError::Command { command: query.clone(), source });
    }
    let withdrawn = async {
        cancel(&session.client, &socket).await;
        let _ = answer.await;
    };
    // whether it ended in time or not, there is nothing more to be done about it
    let _ = timeout(CANCEL_DEADLINE, withdrawn).await;
    Err(late(query.clone()))
}

/// Asks the pooler to have the database give up what a client has asked.
async fn cancel(client: &Client, socket: &Path) {
    if let Ok(stream) = UnixStream::connect(socket).await {
        // it says nothing about whether it worked: that shows by the answer
        let _ = client.cancel_token().cancel_query_raw(stream, NoTls).await;
    }
}

/// Sends a query through a pooler to the database in the same way, and answers what came back. One that does not come back is left to
/// itself: it may wait in the pooler for a server connection.
///
/// # Errors
/// [`ConsoleError`]: what the pooler or the database said.
pub async fn ask(
    socket: PathBuf,
    database: String,
    credentials: Credentials,
    query: String,
    deadline: Duration,
) -> Result<Table, ConsoleError> {
    let mut config = Config::new();
    config.user(&credentials.username).password(&credentials.password).dbname(&database);
    let asked = async {
        let session = connect(&socket, config).await?;
        if query.trim().is_empty() {
            return Ok(Table::default());
        }
        let failed = |source| ConsoleError::Command { command: query.clone(), source };
        table(&session.client, &query).await.map_err(failed)
    };
    let answer = timeout(deadline, asked).await;
    let command = if query.trim().is_empty() { "login".to_owned() } else { query };
    answer.unwrap_or(Err(ConsoleError::Deadline { command, deadline }))
}

async fn table(client: &Client, command: &str) -> Result<Table, tokio_postgres::Error> {
    let mut table = Table::default();
    for message in client.simple_query(command).await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                table.columns = columns.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|index| row.try_get(index).map(|cell| cell.map(str::to_owned)));
                table.rows.push(cells.collect::<Result<_, _>>()?);
            }
            _ => {}
        }
    }
    Ok(table)
}

/// Logs in to a pooler as a client on its unix socket: it knows a client's password from its auth file alone.
///
/// # Errors
/// [`ConsoleError`]: what the pooler said. A deadline says nothing of the password: a pooler that has never logged in to the
/// database lets its clients wait.
pub async fn log_in(
    socket: &Path,
    database: &str,
    credentials: &Credentials,
    deadline: Duration,
) -> Result<(), ConsoleError> {
    let mut config = Config::new();
    config.user(&credentials.username).password(&credentials.password).dbname(database);
    match timeout(deadline, connect(socket, config)).await {
        Ok(session) => session.map(|_| ()),
        Err(_) => Err(ConsoleError::Deadline { command: "login".to_owned(), deadline }),
    }
}

/// Who comes to the console.
fn login() -> Config {
    let mut config = Config::new();
    config.user("pgbouncer").dbname("pgbouncer");
    config
}

async fn connect(socket: &Path, mut config: Config) -> Result<Session, ConsoleError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ConsoleError::Connect { path: socket.display().to_string(), source })?;
    config.application_name("sluice-agent");
    let (client, connection) = config
        .connect_raw(stream, NoTls)
        .await
        .map_err(|source| ConsoleError::Command { command: "login".to_owned(), source })?;
    // Ends with the client or with the socket; what it says reaches the caller through the client.
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Session { client, driver })
}
