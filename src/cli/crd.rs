//! `sluice crd`: the custom resource definitions.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use thiserror::Error;

use crate::api::{crds_chart_template, crds_yaml};

/// Arguments of `sluice crd`.
#[derive(Debug, Args)]
pub struct CrdArgs {
    /// Write one file per kind into this directory instead of printing all of them.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write them as a template of the chart in this directory.
    #[arg(long, value_name = "CHART")]
    chart: Option<PathBuf>,
}

/// Why the definitions could not be written.
#[derive(Debug, Error)]
pub enum CrdError {
    /// A definition could not be rendered.
    #[error("render the custom resource definitions")]
    Render(#[from] serde_yaml::Error),
    /// A file could not be written.
    #[error("write {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Standard output was closed.
    #[error("print the custom resource definitions")]
    Print(#[source] io::Error),
}

/// Prints the definitions as one YAML stream for `kubectl apply -f -`, or writes the files that are committed.
///
/// # Errors
/// [`CrdError`]: a file or standard output could not be written.
pub fn run(args: &CrdArgs) -> Result<(), CrdError> {
    let write = |path: PathBuf, text: &str| fs::write(&path, text).map_err(|source| CrdError::Write { path, source });
    if let Some(chart) = &args.chart {
        write(chart.join("templates/crds.yaml"), &crds_chart_template()?)?;
    }
    let definitions = crds_yaml()?;
    if let Some(directory) = &args.out {
        for (name, yaml) in &definitions {
            write(directory.join(name), yaml)?;
        }
    }
    if args.chart.is_none() && args.out.is_none() {
        for (_, yaml) in &definitions {
            write!(io::stdout(), "---\n{yaml}").map_err(CrdError::Print)?;
        }
    }
    Ok(())
}
