//! `sluice-agent`: runs PgBouncer beside an application, within what the operator granted.

use std::{error::Error, io::Write, path::Path, process::ExitCode, time::Duration};

use clap::Parser;
use sluice::{
    agent::{
        commands::{clients, drain, install, probe},
        keeper,
        options::{Command, Options, RunOptions},
        run,
    },
    contract::{Document, Injection},
};

fn main() -> ExitCode {
    match Options::parse().command {
        Command::Run(options) => {
            let arguments = std::env::args_os().skip(2).collect();
            run(&options, keeper::keep(arguments, options.grace()))
        }
        Command::Agent(options) => {
            keeper::end_with_parent();
            let log = options.clone();
            run(&log, async { Box::pin(run::run(*options)).await.map(|()| ExitCode::SUCCESS) })
        }
        Command::Exec(options) => fail(&keeper::exec(&options)),
        Command::Install { destination } => match install::install(&destination) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Command::Drain { port, seconds } => {
            drain::drain(port, Duration::from_secs(seconds.into()));
            ExitCode::SUCCESS
        }
        Command::Clients { injection, run_dir } => match tell_clients(&injection, &run_dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&*error),
        },
        Command::Probe { port } => match probe::ready(port) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
    }
}

/// Prints who works the pooler now.
fn tell_clients(injection: &str, run_dir: &Path) -> Result<(), Box<dyn Error>> {
    let injection = Injection::parse(injection)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(clients::clients(&injection, run_dir))?;
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?)
}

/// Runs to the end, on this thread alone.
fn run<E: std::fmt::Display>(options: &RunOptions, program: impl Future<Output = Result<ExitCode, E>>) -> ExitCode {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(options.log)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(program) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "sluice-agent: {error}");
    ExitCode::FAILURE
}
