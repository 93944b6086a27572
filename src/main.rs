//! `sluice`: the operator and the command line, and as `kubectl-sluice` the plugin of kubectl.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice::cli::run(std::env::args_os().collect())
}
