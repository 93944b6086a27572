//! `sluice-agent exec`: becomes a pooler that inherits its sockets.
//!
//! Socket activation wants the sockets as descriptors 3, 4, ... and `LISTEN_PID` to name the process itself, which nobody knows
//! before it exists. So the keeper starts us with the sockets as standard input and standard output, and we put them
//! in place, open the console's socket, and execute the pooler, which keeps our process id.

use std::{
    fs,
    io::{self, stdin, stdout},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Args;
use rustix::{
    io::{FdFlags, dup, fcntl_setfd},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
    process::{Signal, getppid, set_parent_process_death_signal},
};
use thiserror::Error;

use crate::agent::apply::process::raise_file_limit;

/// The first inherited socket (sd_listen_fds(3)).
const FIRST: i32 = 3;
/// How glibc takes memory from the system (mallopt(3)); other C libraries do not know these variables.
///
/// During its handshake, OpenSSL keeps a buffer of 21,848 bytes for a TLS client. Among small blocks that live as long as the
/// client, the buffers of hundreds that came at once would never go back. So blocks from 20 KiB on have pages of their own, which
/// go back with them, and nothing is held in reserve, for a block that fits into the reserve is put there instead. The
/// buffers of records, made and freed with each query, are smaller (16 KiB and a header) and stay where that costs nothing.
const ALLOCATION: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "20480"), ("MALLOC_TOP_PAD_", "0")];
/// Only the agent and the other slot come to a console.
const CONSOLE_BACKLOG: i32 = 64;

/// Options of `exec`.
#[derive(Clone, Debug, Args)]
pub struct ExecOptions {
    /// How many of standard input and standard output are sockets for clients.
    #[arg(long, default_value_t = 0)]
    pub sockets: u8,
    /// Where the console listens. Without it, the program opens its sockets itself.
    #[arg(long)]
    pub console: Option<PathBuf>,
    /// Files that it needs to be able to open: the bound is raised so far, if it can be.
    #[arg(long, default_value_t = 0)]
    pub files: u64,
    /// The process that started us: should it have ended by now, nothing is started.
    #[arg(long)]
    pub parent: Option<u32>,
    /// The program.
    pub program: PathBuf,
    /// Its configuration.
    pub ini: PathBuf,
}

/// Why the pooler was not executed.
#[derive(Debug, Error)]
pub enum ExecError {
    /// Who started us has ended.
    #[error("FATAL the process that starts the pooler has ended")]
    Orphan,
    /// A socket did not get its number.
    #[error("FATAL socket {number} of the pooler became {got}")]
    Place {
        /// The number that it has to have.
        number: i32,
        /// The number that it got.
        got: i32,
    },
    /// The system refused.
    #[error("FATAL {what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Becomes the pooler; returns only when that fails.
pub fn exec(options: &ExecOptions) -> ExecError {
    match become_pooler(options) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_pooler(options: &ExecOptions) -> Result<std::convert::Infallible, ExecError> {
    let failed = |what: String| move |source: io::Error| ExecError::System { what, source };
    // where the keeper is not the first process of its container, its end must end the pooler too
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| failed("asking to end with the keeper".to_owned())(error.into()))?;
    // one that ended before we asked sends no signal
    if options
        .parent
        .is_some_and(|parent| getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()) != Some(parent))
    {
        return Err(ExecError::Orphan);
    }
    raise_file_limit(options.files);
    let mut command = Command::new(&options.program);
    let mut sockets: Vec<OwnedFd> = Vec::new();
    if let Some(console) = &options.console {
        let copying = |error: rustix::io::Errno| failed("copying a socket".to_owned())(error.into());
        for number in 0..options.sockets {
            sockets.push(if number == 0 { dup(stdin()) } else { dup(stdout()) }.map_err(copying)?);
        }
        let opening = || failed(format!("opening the console's socket {}", console.display()));
        sockets.push(console_socket(console).map_err(opening())?);
        for (number, socket) in (FIRST..).zip(&sockets) {
            if socket.as_raw_fd() != number {
                return Err(ExecError::Place { number, got: socket.as_raw_fd() });
            }
        }
        command.env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDS", sockets.len().to_string());
    }
    // an image that sets them knows better
    command.envs(ALLOCATION.into_iter().filter(|(variable, _)| std::env::var_os(variable).is_none()));
    let error = command.arg(&options.ini).stdin(Stdio::null()).stdout(Stdio::null()).exec();
    Err(failed(format!("executing {}", options.program.display()))(error))
}

/// A listening socket of mode 0600 that the executed program inherits. What a process before us left is removed.
fn console_socket(path: &Path) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&socket, CONSOLE_BACKLOG)?;
    fcntl_setfd(socket.as_fd(), FdFlags::empty())?;
    Ok(socket)
}
