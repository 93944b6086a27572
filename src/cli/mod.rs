//! The subcommands of `sluice`, one file each.

pub mod crd;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sizes database connection pools from live load.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the custom resource definitions, or write them into a directory.
    Crd(crd::CrdArgs),
}

impl Cli {
    /// Runs the subcommand. An error is told on standard error, in one line with its causes.
    pub fn run(self) -> ExitCode {
        let outcome: Result<(), Box<dyn std::error::Error>> = match self.command {
            Command::Crd(args) => crd::run(&args).map_err(Into::into),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let mut line = format!("sluice: {error}");
                let mut cause = error.source();
                while let Some(inner) = cause {
                    line.push_str(&format!(": {inner}"));
                    cause = inner.source();
                }
                eprintln!("{line}");
                ExitCode::FAILURE
            }
        }
    }
}
