//! Logs: one JSON object a line by default, for machines; text for a terminal.

use std::io::IsTerminal;

use clap::ValueEnum;
use thiserror::Error;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

/// Shape of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, fields of the event and of its spans at the top level.
    #[default]
    Json,
    /// For a terminal.
    Text,
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The level is not one.
    #[error(
        "--log-level {level:?} is not a filter ({source}); write info, debug, or target=level pairs like info,sluice=debug"
    )]
    Filter {
        /// What was given.
        level: String,
        /// What the reader of filters said.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber is installed already.
    #[error("logging is set up already: {0}")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends logs to standard output from now on.
///
/// # Errors
/// [`TelemetryError`]: the level does not parse, or it was called twice.
pub fn init(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    let filter: Targets = level.parse().map_err(|source| TelemetryError::Filter { level: level.to_owned(), source })?;
    let registry = registry().with(filter);
    match format {
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false))
            .try_init()?,
        LogFormat::Text => {
            registry.with(fmt::layer().with_target(false).with_ansi(std::io::stdout().is_terminal())).try_init()?;
        }
    }
    Ok(())
}
