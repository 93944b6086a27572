//! `sluice`: the operator and the command line.

use std::process::ExitCode;

use clap::Parser;
use sluice::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
