//! One login to the database by a PgBouncer that serves nobody: proves credentials and CA before any slot is given them, and what of a
//! revision nothing else proves ([`crate::agent::decide::login_proof`]).
//!
//! It is the pooler itself that logs in, so what counts is what counts for every server connection: its SCRAM, its TLS, its name
//! resolution, its connect query. It opens one connection at most, tries it once, and is gone before the answer is told.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{
    agent::{
        apply::files::{AUTH_FILE, FileError, write_configuration},
        decide::upstream::{QUERY, RoleAnswer},
    },
    contract::{ClientTlsMode, Injection, PoolerError, Settings, UpstreamRole},
    pooler::pgbouncer::{
        console::{ConsoleError, ask, log_in, socket, validate},
        log::{classify, essence, spoken},
        render::{self, Credentials, Limits, Presented, ProcessPlace, RenderError, RenderInput},
        version::Version,
    },
};

/// This program: it starts a pooler that ends with us.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Between two looks whether the process listens.
const LOOK: Duration = Duration::from_millis(10);
/// Longer than any trial: a login that fails is not repeated by the pooler.
const NEVER_AGAIN_MILLISECONDS: u32 = 3_600_000;
/// Of the process's log so much is read.
const LONGEST_LOG: u64 = 64 << 10;

/// Why a login did not work.
#[derive(Debug, Error)]
pub enum TrialError {
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// PgBouncer cannot be given them.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The process could not be started.
    #[error("starting {program}: {source}")]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process ended by itself.
    #[error("PgBouncer does not start with them: {said}")]
    Ended {
        /// What it logged last.
        said: String,
    },
    /// The database, or the pooler, said no.
    #[error("{said}")]
    Refused {
        /// In its words.
        said: String,
        /// Its code; None where it was not a refusal of the database or the pooler.
        sqlstate: Option<String>,
    },
    /// No login in time.
    #[error("no login within {} s: {said}", within.as_secs())]
    Deadline {
        /// How long was waited.
        within: Duration,
        /// What the pooler logged last.
        said: String,
    },
    /// The database let it in, and did not answer in time.
    #[error("no answer to {query:?} within {} s", within.as_millis().div_ceil(1000))]
    NoAnswer {
        /// What was asked.
        query: String,
        /// How long was waited.
        within: Duration,
    },
    /// The database takes no writes, and is expected to.
    #[error("the database takes no writes, and upstream.role is Primary")]
    ReadOnly,
}

/// What is tried.
pub struct TrialSetup<'a> {
    /// The pooler's program.
    pub program: &'a Path,
    /// An empty or missing directory in memory; removed afterwards.
    pub directory: PathBuf,
    /// What is fixed for the pod.
    pub injection: &'a Injection,
    /// What the slots run, or what is to prove itself.
    pub settings: &'a Settings,
    /// Which role of the database is expected to be found.
    pub role: UpstreamRole,
    /// The credentials.
    pub credentials: &'a Credentials,
    /// The CA bundle.
    pub ca_file: Option<String>,
    /// What the database is shown.
    pub presented: Option<Presented>,
    /// Configuration of the resolver; None: that of the system.
    pub resolver: Option<String>,
    /// The program's version.
    pub version: Option<Version>,
    /// How long it may take.
    pub within: Duration,
    /// How long of that an answer of the database may take.
    pub answers_within: Duration,
}

/// A login that is ready to be tried.
pub struct Login {
    program: PathBuf,
    directory: PathBuf,
    ini: PathBuf,
    socket: PathBuf,
    database: String,
    credentials: Credentials,
    query: String,
    role: UpstreamRole,
    within: Duration,
    answers_within: Duration,
}

impl Login {
    /// Writes what the process reads.
    ///
    /// # Errors
    /// [`TrialError`].
    pub fn prepare(plan: &TrialSetup<'_>) -> Result<Self, TrialError> {
        let TrialSetup { directory, injection, settings, credentials, .. } = plan;
        let mut settings = (*settings).clone();
        // without it a database that cannot be reached, or a certificate that does not fit, would not be named
        settings.parameters.insert("log_disconnections".to_owned(), "1".to_owned());
        settings.session_alias = None;
        // nobody but us comes, and over a unix socket
        let mut injection = (*injection).clone();
        injection.client.tls = ClientTlsMode::Disabled;
        let auth_file = directory.join(AUTH_FILE);
        let rendered = render::render(&RenderInput {
            injection: &injection,
            shown: None,
            settings: &settings,
            limits: Limits { pool_size: 1, min_pool_size: 0, max_db_connections: 1 },
            credentials,
            place: &ProcessPlace {
                listen_addresses: Vec::new(),
                socket_dir: directory.display().to_string(),
                auth_file: auth_file.display().to_string(),
                ca_file: plan.ca_file.clone(),
                presented: plan.presented.clone(),
                resolver: plan.resolver.clone(),
                peers: Vec::new(),
                peer: 0,
                login_retry_milliseconds: NEVER_AGAIN_MILLISECONDS,
            },
            version: plan.version,
        })?;
        // what one that was cut short left
        let _ = fs::remove_dir_all(directory);
        let ini = write_configuration(directory, &rendered)?;
        Ok(Self {
            program: plan.program.to_owned(),
            socket: socket(directory, injection.client.port),
            directory: directory.clone(),
            ini,
            database: injection.upstream.database.clone(),
            credentials: (*credentials).clone(),
            query: settings.health.validation_query,
            role: plan.role,
            within: plan.within,
            answers_within: plan.answers_within,
        })
    }

    /// Logs in, asks the validation query, and ends the process. Dropped before it is done, it kills the process.
    ///
    /// # Errors
    /// [`TrialError`].
    pub async fn run(self) -> Result<(), TrialError> {
        let log = self.directory.join("log");
        let mut command = Command::new(OWN_PROGRAM);
        command.arg("exec").arg("--parent").arg(std::process::id().to_string()).arg(&self.program).arg(&self.ini);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).map_err(FileError::of(&log))?);
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| TrialError::NotStarted { program: self.program.clone(), source })?;
        let answer = self.ask(&mut child, &log).await;
        // its connection is not counted any more once we have told
        let _ = child.kill().await;
        let _ = fs::remove_dir_all(&self.directory);
        answer
    }

    async fn ask(&self, child: &mut Child, log: &Path) -> Result<(), TrialError> {
        let deadline = Instant::now() + self.within;
        let late = || TrialError::Deadline { within: self.within, said: said(log) };
        while UnixStream::connect(&self.socket).await.is_err() {
            if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(TrialError::Ended { said: said(log) });
            }
            if Instant::now() >= deadline {
                return Err(late());
            }
            sleep(LOOK).await;
        }
        let left = || deadline.saturating_duration_since(Instant::now());
        match log_in(&self.socket, &self.database, &self.credentials, left()).await {
            Ok(()) => {}
            Err(ConsoleError::Deadline { .. }) => return Err(late()),
            Err(error) => return Err(refused(&error)),
        }
        let within = left().min(self.answers_within);
        let answered = |error| match error {
            ConsoleError::Deadline { command: query, deadline: within } => TrialError::NoAnswer { query, within },
            error => refused(&error),
        };
        let Self { socket, database, credentials, .. } = self;
        if !self.query.trim().is_empty() {
            let asked =
                validate(socket.clone(), database.clone(), credentials.clone(), self.query.clone(), within).await;
            asked.map_err(answered)?;
        }
        if self.role == UpstreamRole::Primary {
            let within = left().min(self.answers_within);
            let asked = ask(socket.clone(), database.clone(), credentials.clone(), QUERY.to_owned(), within).await;
            // a client that has just come has nothing that the pooler could remember for it
            if let Some(RoleAnswer::ReadOnly(_)) = RoleAnswer::read(&asked.map_err(answered)?, false) {
                return Err(TrialError::ReadOnly);
            }
        }
        Ok(())
    }
}

/// What the database, or the pooler, said no with.
fn refused(error: &ConsoleError) -> TrialError {
    let ConsoleError::Command { source, .. } = error else {
        return TrialError::Refused { said: error.to_string(), sqlstate: None };
    };
    let in_words = source.as_db_error();
    TrialError::Refused {
        said: in_words.map_or_else(|| source.to_string(), |error| spoken(essence(error.message()))),
        sqlstate: in_words.map(|error| error.code().code().to_owned()),
    }
}

/// The last error of a log, as [`telling`] has it.
fn said(log: &Path) -> String {
    use io::Read as _;
    let mut text = Vec::new();
    let read = fs::File::open(log).and_then(|log| log.take(LONGEST_LOG).read_to_end(&mut text));
    let text = if read.is_ok() { String::from_utf8_lossy(&text) } else { "".into() };
    telling(&text).unwrap_or_else(|| "it gave no reason".to_owned())
}

/// The last error of a log, without what differs from one time to the next. That a connection is gone is told where nothing says why:
/// it follows what does.
fn telling(log: &str) -> Option<String> {
    let is_why = |line: &&str| classify(line).is_some_and(|error| error != PoolerError::ServerUnreachable);
    let line = log.lines().rfind(is_why).or_else(|| log.lines().rfind(|line| classify(line).is_some()));
    line.map(|line| spoken(essence(line)))
}

#[cfg(test)]
mod tests {
    use super::telling;

    #[test]
    fn why_a_login_did_not_work_is_told_and_not_that_its_connection_is_gone() {
        let alert = "2026-11-21 03:36:16.000 UTC [7] WARNING tls_sbufio_recv: read failed: error:0A000418:SSL routines::tlsv1 alert unknown ca";
        let gone = "2026-11-21 03:36:16.000 UTC [7] LOG S-0x55: shop/shop@127.0.0.1:5999 closing because: server conn crashed? (age=0s)";
        let told = telling(&format!("{alert}\n{gone}\n"));
        assert_eq!(
            told.as_deref(),
            Some("tls_sbufio_recv: read failed: error:0A000418:SSL routines::tlsv1 alert unknown ca")
        );
        assert_eq!(telling(gone).as_deref(), Some("server conn crashed?"));
        assert_eq!(telling("2026-11-21 03:36:16.000 UTC [7] LOG process up: PgBouncer 1.24.1"), None);
    }
}
