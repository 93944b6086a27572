//! What can go wrong in the shell.

use thiserror::Error;
use tokio::task::JoinError;

use super::leader::LeaderError;
use crate::{http::HttpError, signals::ConfigurationError};

/// Why the operator ended.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// Neither a kubeconfig nor a service account was found.
    #[error("finding the API server: {0}; run inside a cluster, or set KUBECONFIG")]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The client could not be built.
    #[error("building the client of the API server: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The configuration of Prometheus is wrong.
    #[error("--prometheus-config: {0}")]
    Prometheus(#[from] ConfigurationError),
    /// Signals could not be awaited.
    #[error("waiting for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The HTTP server ended.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Something that answers others ended, which it never should.
    #[error("{what} has ended: {how}; this process ends so that another takes over")]
    Ended {
        /// What it was.
        what: &'static str,
        /// How it ended.
        how: String,
    },
    /// The tasks of the leader ended, which they never should.
    #[error("the leader has nothing left to do; this process ends so that another takes over")]
    Idle,
    /// The lease was lost.
    #[error(transparent)]
    Leader(#[from] LeaderError),
}

impl OperatorError {
    /// Of a task that ended.
    pub(super) fn ended(what: &'static str, how: &Result<(), JoinError>) -> Self {
        let how = how.as_ref().err().map_or_else(|| "by itself".to_owned(), ToString::to_string);
        Self::Ended { what, how }
    }
}
