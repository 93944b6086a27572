//! `sluice crd`: the custom resource definitions.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use thiserror::Error;

use crate::api::crds_yaml;

/// Arguments of `sluice crd`.
#[derive(Debug, Args)]
pub struct CrdArgs {
    /// Write one file per kind into this directory instead of printing all of them.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
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

/// Prints the definitions as one YAML stream for `kubectl apply -f -`, or writes one file per kind.
///
/// # Errors
/// [`CrdError`]: a file or standard output could not be written.
pub fn run(args: &CrdArgs) -> Result<(), CrdError> {
    for (name, yaml) in crds_yaml()? {
        match &args.out {
            Some(directory) => {
                let path = directory.join(name);
                std::fs::write(&path, yaml).map_err(|source| CrdError::Write { path, source })?;
            }
            None => write!(io::stdout(), "---\n{yaml}").map_err(CrdError::Print)?,
        }
    }
    Ok(())
}
