//! What can go wrong in the shell.

use thiserror::Error;

use super::leader::LeaderError;
use crate::http::HttpError;

/// Why the operator ended.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// Neither a kubeconfig nor a service account was found.
    #[error("finding the API server: {0}; run inside a cluster, or set KUBECONFIG")]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The client could not be built.
    #[error("building the client of the API server: {0}")]
    Client(#[source] Box<kube::Error>),
    /// Signals could not be awaited.
    #[error("waiting for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The HTTP server ended.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The lease was lost.
    #[error(transparent)]
    Leader(#[from] LeaderError),
}
