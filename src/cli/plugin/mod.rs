//! `kubectl sluice`: what pools do, why, and how to steer them. The same binary as `sluice`, found by kubectl under the name
//! `kubectl-sluice`.
//!
//! One file per verb. A verb reads ([`cluster`], [`follow`]), makes text of what was read ([`view`], pure), and prints it ([`screen`]).
//! What it may not read it says in words, and shows the rest.

pub mod agents;
pub mod check;
pub mod cluster;
mod complete;
pub mod error;
pub mod follow;
pub mod freeze;
pub mod get;
pub mod options;
pub mod pause;
pub mod recommend;
pub mod report;
pub mod resume;
pub mod rollout;
pub mod rollout_request;
pub mod screen;
pub mod status;
pub mod top;
pub mod view;
pub mod wait;
pub mod why;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime;

use self::{
    error::{Conclusion, PluginError},
    options::ClusterOptions,
    screen::tell,
};
use crate::causes::with_causes;

/// How exit codes are to be read, below the help of every verb.
const EXIT_CODES: &str =
    "Exit codes: 0 it is so, or it is done; 1 it is not so, or nothing was changed; 2 nobody can tell";

/// Connection pools that Sluice sizes: what they do, why, and how to steer them.
#[derive(Debug, Parser)]
#[command(name = "kubectl-sluice", bin_name = "kubectl sluice", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct PluginCli {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(subcommand)]
    verb: PluginVerb,
}

#[derive(Debug, Subcommand)]
enum PluginVerb {
    /// List pools: size, target, share, load, and why some are not ready.
    Get(get::GetArgs),
    /// Show a pool as a tree: its revisions, and their pods with what is wanted, granted, set and read back. Exits with 1 while it is not ready.
    Status(status::StatusArgs),
    /// Show which pods work a pool now: busy connections, clients, waits, transactions.
    Top(top::TopArgs),
    /// Say why a pool has its size: the last decision, its inputs, what holds it, what bounds it, and what would change it.
    Why(why::WhyArgs),
    /// Wait until a condition of a pool is so.
    Wait(wait::WaitArgs),
    /// Freeze the automation of pools. Traffic goes on.
    Pause(pause::PauseArgs),
    /// Freeze the automation of pools until a time, and say why. Traffic goes on.
    Freeze(freeze::FreezeArgs),
    /// Let the automation of pools go on, paused or frozen.
    #[command(visible_alias = "unfreeze")]
    Resume(resume::ResumeArgs),
    /// Show what the load asks for beside what there is, and the patch that follows it.
    Recommend(recommend::RecommendArgs),
    /// Show how far a change of the settings has come, and steer it: promote it, take it back, try it again.
    Rollout(rollout::RolloutArgs),
    /// Write a support bundle of a pool, without secrets, from which `sluice backtest` replays the case.
    Report(report::ReportArgs),
    /// Look at an installation part by part, and say what to do about what is wrong.
    Check(check::CheckArgs),
}

impl PluginCli {
    /// Reads the command line. Flags that are wrong end the process with 2.
    pub fn read(arguments: Vec<OsString>) -> Self {
        Self::parse_from(arguments)
    }

    /// Runs the verb.
    pub fn run(self) -> ExitCode {
        let outcome = in_runtime(async {
            let Self { cluster, verb } = self;
            match verb {
                PluginVerb::Get(args) => get::run(args, &cluster).await,
                PluginVerb::Status(args) => status::run(args, &cluster).await,
                PluginVerb::Top(args) => top::run(args, &cluster).await,
                PluginVerb::Why(args) => why::run(args, &cluster).await,
                PluginVerb::Wait(args) => wait::run(args, &cluster).await,
                PluginVerb::Pause(args) => pause::run(args, &cluster).await,
                PluginVerb::Freeze(args) => freeze::run(args, &cluster).await,
                PluginVerb::Resume(args) => resume::run(args, &cluster).await,
                PluginVerb::Recommend(args) => recommend::run(args, &cluster).await,
                PluginVerb::Rollout(args) => rollout::run(args, &cluster).await,
                PluginVerb::Report(args) => report::run(args, &cluster).await,
                PluginVerb::Check(args) => check::run(args, &cluster).await,
            }
        });
        match outcome {
            Ok(conclusion) => conclusion.into(),
            // whoever reads has had enough
            Err(PluginError::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Conclusion::Yes.into(),
            Err(error) => {
                tell(&format!("kubectl sluice: {}", with_causes(&error)));
                error.conclusion().into()
            }
        }
    }
}

/// Answers kubectl's question what to offer for the words that were typed.
pub fn complete(words: &[String]) -> ExitCode {
    let offered = in_runtime(async { Ok(complete::answer(&PluginCli::command(), words).await) });
    match offered.and_then(|text| screen::Screen::of_stdout().print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn in_runtime<T>(work: impl Future<Output = Result<T, PluginError>>) -> Result<T, PluginError> {
    // kube and reqwest must agree on one provider before the first client exists; a second call changes nothing
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(PluginError::Runtime)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}
