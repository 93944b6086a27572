//! Command line of `sluice-agent`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use super::keeper::ExecOptions;
use crate::contract::names;

/// Runs and watches the pooler beside an application.
#[derive(Debug, Parser)]
#[command(name = "sluice-agent", version)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pooler, follow the pod's annotations, serve /status and /metrics. Starts an agent that does so, and keeps
    /// it and the pooler alive.
    Run(Box<RunOptions>),
    /// What `run` starts and keeps.
    #[command(hide = true)]
    Agent(Box<RunOptions>),
    /// Becomes a pooler that inherits its sockets.
    #[command(hide = true)]
    Exec(ExecOptions),
    /// Copy this program to a file or into a directory, for the container that runs it.
    Install {
        /// The file, or an existing directory.
        destination: PathBuf,
    },
    /// Wait until no client is connected any more, at most so long. For a gateway's preStop.
    Drain {
        /// Port of the agent.
        #[arg(long, default_value_t = names::METRICS_PORT)]
        port: u16,
        /// Longest wait.
        #[arg(long)]
        seconds: u32,
    },
    /// Say who works the pooler now, as JSON: applications, and the clients that have held a connection or waited for longest.
    Clients {
        /// What was fixed at injection, as JSON.
        #[arg(long, env = names::INJECTION_VARIABLE, hide_env_values = true)]
        injection: String,
        /// Memory-backed directory for rendered files and sockets.
        #[arg(long, default_value = names::RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Ask a running agent whether it is ready: ends with 0 or 1. For exec probes.
    Probe {
        /// Port of the agent.
        #[arg(long, default_value_t = names::METRICS_PORT)]
        port: u16,
    },
}

/// Options of `run`. The defaults are those of an injected pod.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// What was fixed at injection, as JSON.
    #[arg(long, env = names::INJECTION_VARIABLE, hide_env_values = true)]
    pub injection: String,
    /// Uid of the pod.
    #[arg(long, env = names::POD_UID_VARIABLE, default_value = "")]
    pub pod_uid: String,
    /// Name of the pod.
    #[arg(long, env = names::POD_NAME_VARIABLE, default_value = "")]
    pub pod_name: String,
    /// Namespace of the pod.
    #[arg(long, env = names::POD_NAMESPACE_VARIABLE, default_value = "")]
    pub pod_namespace: String,
    /// Directory with the projected annotations and credentials.
    #[arg(long, default_value = names::CONFIG_DIR)]
    pub config_dir: PathBuf,
    /// Memory-backed directory for rendered files and sockets.
    #[arg(long, default_value = names::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Directory that outlives a restart of the container.
    #[arg(long, default_value = names::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Directory of the container's control group: its memory limit bounds the server connections.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub control_group: PathBuf,
    /// Address of /metrics, /status, /healthz and /readyz. Default: the port of the injection, which is 9130 unless the pool says
    /// otherwise, on every address.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// The pgbouncer program. Default: looked for in PATH and where images have it.
    #[arg(long, env = "SLUICE_PGBOUNCER")]
    pub pgbouncer: Option<PathBuf>,
    /// Let both slots share one socket, as where the kernel leads no client to one of two. Otherwise that is found out by
    /// trying.
    #[arg(long, env = "SLUICE_SHARED_LISTENER")]
    pub shared_listener: bool,
    /// After SIGTERM, let running transactions finish for so many seconds.
    #[arg(long, env = names::GRACE_VARIABLE, default_value_t = 25)]
    pub grace_seconds: u32,
    /// How much is logged: error, warn, info, debug or trace.
    #[arg(long, env = "SLUICE_LOG", default_value = "info")]
    pub log: tracing::level_filters::LevelFilter,
}

impl RunOptions {
    /// How long running transactions may take after SIGTERM.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.grace_seconds))
    }
}
