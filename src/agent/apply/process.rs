//! The pooler's process: finding the program, starting, stopping, and its log.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
    process::Command,
    sync::mpsc,
    time::timeout,
};

use crate::{
    agent::decide::{slot_name::SlotName, troubles::Heard, vitals::Vitals},
    pooler::pgbouncer::{
        log::{is_refused_accept, read, redacted},
        version::{Build, OLDEST, Support, Version, inherits_sockets},
    },
};

/// Where images keep the program when it is not in PATH.
const PLACES: &[&str] = &[
    "/usr/sbin/pgbouncer",
    "/usr/bin/pgbouncer",
    "/usr/local/bin/pgbouncer",
    "/usr/local/sbin/pgbouncer",
    "/opt/bitnami/pgbouncer/bin/pgbouncer",
    "/opt/pgbouncer/bin/pgbouncer",
    "/opt/pgbouncer/pgbouncer",
    "/bin/pgbouncer",
];
/// File descriptors beside clients and servers: sockets, log, console, name resolution.
const SPARE_DESCRIPTORS: u64 = 64;

/// Why the pooler cannot be run.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The program is nowhere.
    #[error("no pgbouncer program in PATH or in {}; use an image with PgBouncer {OLDEST} or later, or set SLUICE_PGBOUNCER", PLACES.join(", "))]
    NotFound,
    /// It could not be started.
    #[error("starting {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It did not tell its version.
    #[error("{program} -V tells no version of PgBouncer; use an image with PgBouncer {OLDEST} or later")]
    NoVersion {
        /// The program.
        program: PathBuf,
    },
    /// It is too old.
    #[error("{program} is PgBouncer {version}, and Sluice needs {OLDEST} or later; set pgbouncer.image to a newer one")]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: Version,
    },
    /// Its version could not be asked for.
    #[error("{program} -V did not end within {} s", deadline.as_secs())]
    VersionDeadline {
        /// The program.
        program: PathBuf,
        /// How long was waited.
        deadline: Duration,
    },
}

/// Finds the program.
///
/// # Errors
/// [`ProcessError::NotFound`].
pub fn find(given: Option<&Path>, path: Option<&OsStr>) -> Result<PathBuf, ProcessError> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let in_path = path.into_iter().flat_map(std::env::split_paths).map(|directory| directory.join("pgbouncer"));
    in_path.chain(PLACES.iter().map(PathBuf::from)).find(|file| file.is_file()).ok_or(ProcessError::NotFound)
}

/// Asks the program for its version, and refuses one that is too old.
///
/// # Errors
/// [`ProcessError`].
pub async fn version(program: &Path) -> Result<Build, ProcessError> {
    let deadline = Duration::from_secs(5);
    let output = Command::new(program).arg("-V").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(deadline, output)
        .await
        .map_err(|_| ProcessError::VersionDeadline { program: program.to_owned(), deadline })?
        .map_err(|source| ProcessError::Start { program: program.to_owned(), source })?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = Version::find(&said).ok_or_else(|| ProcessError::NoVersion { program: program.to_owned() })?;
    match version.support() {
        Support::Refused => Err(ProcessError::TooOld { program: program.to_owned(), version }),
        Support::Warned | Support::Full => Ok(Build { version, inherits_sockets: inherits_sockets(&said) }),
    }
}

/// Files that a pooler opens for so many clients and server connections.
pub fn files_needed(clients: u32, servers: u32) -> u64 {
    u64::from(clients) + u64::from(servers) + SPARE_DESCRIPTORS
}

/// Raises the bound of open files of this process, and of those that it starts, as far as the system allows.
pub fn raise_file_limit(needed: u64) {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_some_and(|soft| soft < needed) {
        let raised = Rlimit { current: now.maximum.map(|hard| hard.max(1)), maximum: now.maximum };
        // Refused only above the hard bound, which is not asked for.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// Raises the bound of open files to what the system allows. Answers a sentence when that is too few.
pub fn too_few_files(clients: u32, servers: u32) -> Option<String> {
    let needed = files_needed(clients, servers);
    raise_file_limit(needed);
    let allowed = getrlimit(Resource::Nofile).current?;
    (allowed < needed).then(|| {
        format!(
            "the container may open {allowed} files and {clients} clients need {needed}; lower client.maxConnections or raise the limit"
        )
    })
}

/// What the kernel knows of a process now; None where it does not tell.
pub fn vitals(pid: i32) -> Option<Vitals> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let stat = std::fs::read_to_string(directory.join("stat")).ok()?;
    Vitals::parse(&stat, std::fs::read_to_string(directory.join("schedstat")).ok().as_deref())
}

/// Longest line of the log that is looked at; the rest of a longer one is read and dropped with it.
const LONGEST_LINE: usize = 4096;
/// Lines repeated in our own log per second; the counters count all.
const LINES_PER_SECOND: u32 = 5;

/// Reads the log of a slot's poolers line by line, counts its errors and repeats them in ours, until it is closed. One client that was not accepted
/// is no error where that was `meant`.
pub async fn follow_log(slot: SlotName, log: pipe::Receiver, errors: mpsc::Sender<Heard>, meant: Arc<AtomicBool>) {
    let mut reader = BufReader::with_capacity(LONGEST_LINE, log);
    let mut line = Vec::new();
    let (mut window, mut told) = (tokio::time::Instant::now(), 0);
    loop {
        let Ok(chunk) = reader.fill_buf().await else { return };
        if chunk.is_empty() {
            return;
        }
        let newline = chunk.iter().position(|&byte| byte == b'\n');
        let used = newline.map_or(chunk.len(), |at| at + 1);
        let room = LONGEST_LINE.saturating_sub(line.len());
        line.extend_from_slice(&chunk[..newline.unwrap_or(used).min(room)]);
        reader.consume(used);
        if newline.is_none() {
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        let as_meant = is_refused_accept(&text) && meant.swap(false, Ordering::Relaxed);
        let logged = read(&text).filter(|_| !as_meant);
        if logged.is_some() && window.elapsed() >= Duration::from_secs(1) {
            (window, told) = (tokio::time::Instant::now(), 0);
        }
        match (&logged, redacted(&text)) {
            (Some(logged), Some(text)) if told < LINES_PER_SECOND => {
                told += 1;
                tracing::warn!(reason = logged.error.as_str(), "pgbouncer: {text}");
            }
            (None, Some(text)) => tracing::debug!("pgbouncer: {text}"),
            _ => {}
        }
        if let Some(logged) = logged {
            // A full queue drops the count of a flood, never the process.
            let _ = errors.try_send(Heard { from: Some(slot), logged });
        }
        line.clear();
    }
}
