//! The subcommands of `sluice`, one file each.

pub mod backtest;
pub mod crd;
pub mod decide;
pub mod operator;
mod schema;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Run the operator: controller, webhook, health and metrics.
    Operator(Box<OperatorArgs>),
}

impl Cli {
    /// Runs the subcommand. An error is told on standard error, in one line with its causes.
    pub fn run(self) -> ExitCode {
        let outcome: Result<(), Box<dyn std::error::Error>> = match self.command {
            Command::Backtest(args) => backtest::run(&args).map_err(Into::into),
            Command::Crd(args) => crd::run(&args).map_err(Into::into),
            Command::Decide(args) => decide::run(&args).map_err(Into::into),
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
