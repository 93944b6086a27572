//! The subcommands of `sluice`, one file each; and under the name `kubectl-sluice` the plugin of kubectl.

pub mod backtest;
pub mod crd;
pub mod decide;
pub mod divide;
pub mod judge;
pub mod lines;
pub mod operator;
pub mod plugin;
mod schema;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

use self::plugin::PluginCli;

use crate::{causes::with_causes, controller::OperatorArgs};

/// Sizes database connection pools from live load.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Replay recorded load against the sizing, and against fixed sizes.
    Backtest(Box<backtest::BacktestArgs>),
    /// Print the custom resource definitions, or write them into a directory.
    Crd(crd::CrdArgs),
    /// Decide on observations: one JSON object per line in, one per line out.
    Decide(decide::DecideArgs),
    /// Divide a database server among pools: one JSON object per line in, shares and writes out.
    Divide(divide::DivideArgs),
    /// Judge a canary: settings and one JSON object per interval in, one verdict per line out.
    Judge(judge::JudgeArgs),
    /// Run the operator: controller, webhook, health and metrics.
    Operator(Box<OperatorArgs>),
}

/// Under which name the binary was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalledAs {
    /// `sluice`, or whatever it is called in an image.
    Sluice,
    /// `kubectl-sluice`: by kubectl, as its plugin.
    Plugin,
    /// `kubectl_complete-sluice`: by kubectl, which asks what to offer.
    Completion,
}

impl CalledAs {
    /// What the first argument of a process says.
    pub fn of(program: &Path) -> Self {
        match program.file_stem().and_then(|stem| stem.to_str()) {
            Some("kubectl-sluice") => Self::Plugin,
            Some("kubectl_complete-sluice") => Self::Completion,
            _ => Self::Sluice,
        }
    }
}

/// Runs what the command line says, the name of the program first.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let called_as = arguments.first().map_or(CalledAs::Sluice, |program| CalledAs::of(Path::new(program)));
    match called_as {
        CalledAs::Sluice => Cli::parse_from(arguments).run(),
        CalledAs::Plugin => PluginCli::read(arguments).run(),
        CalledAs::Completion => {
            let words = arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned());
            plugin::complete(&words.collect::<Vec<_>>())
        }
    }
}

impl Cli {
    /// Runs the subcommand. An error is told on standard error, in one line with its causes.
    pub fn run(self) -> ExitCode {
        let outcome: Result<(), Box<dyn std::error::Error>> = match self.command {
            Command::Backtest(args) => backtest::run(&args).map_err(Into::into),
            Command::Crd(args) => crd::run(&args).map_err(Into::into),
            Command::Decide(args) => decide::run(&args).map_err(Into::into),
            Command::Divide(args) => divide::run(&args).map_err(Into::into),
            Command::Judge(args) => judge::run(&args).map_err(Into::into),
            Command::Operator(args) => operator::run(*args).map_err(Into::into),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("sluice: {}", with_causes(error.as_ref()));
                ExitCode::FAILURE
            }
        }
    }
}
