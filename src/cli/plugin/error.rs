//! Why a verb has no answer, and what its exit code is.

use std::{io, process::ExitCode, time::Duration};

use thiserror::Error;

use crate::{
    api::{GROUP, VERSION},
    causes::with_causes,
};

/// What a verb found: its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// It is so, or it is done: 0.
    Yes,
    /// It is not so, or the API server refused it: 1.
    No,
    /// Nobody can tell: 2.
    CannotTell,
}

impl From<Conclusion> for ExitCode {
    fn from(conclusion: Conclusion) -> Self {
        match conclusion {
            Conclusion::Yes => Self::SUCCESS,
            Conclusion::No => Self::from(1),
            Conclusion::CannotTell => Self::from(2),
        }
    }
}

/// Why a verb has no answer.
#[derive(Debug, Error)]
pub enum PluginError {
    /// It is not known where the cluster is, or how to log in.
    #[error("{words}: name a file with --kubeconfig or KUBECONFIG, and one of its contexts with --context")]
    Configuration {
        /// What is wrong, and in which file.
        words: String,
    },
    /// No client can be made of the configuration.
    #[error("no client for {server}: {words}")]
    Client {
        /// The API server.
        server: String,
        /// What the client said.
        words: String,
    },
    /// The runtime could not be started.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// The API server refuses for want of rights.
    #[error("not allowed to {what}: {words}")]
    NotAllowed {
        /// What was tried.
        what: String,
        /// The API server's words.
        words: String,
    },
    /// There is none of this name.
    #[error("{what}: there is none{hint}")]
    NotFound {
        /// What was tried.
        what: String,
        /// What there is instead; empty where that is not known.
        hint: String,
    },
    /// The kinds are not there, or of another version only.
    #[error("{what}: {}", no_kinds(.served))]
    NoKinds {
        /// What was tried.
        what: String,
        /// Versions of the group that are served.
        served: Vec<String>,
    },
    /// The API server refused.
    #[error("{what}: the API server refused it: {words}")]
    Refused {
        /// What was tried.
        what: String,
        /// The API server's words.
        words: String,
    },
    /// No answer in time.
    #[error("{what}: no answer within {deadline:?}; allow more with --request-timeout, or look at the API server")]
    Deadline {
        /// What was tried.
        what: String,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// The API server cannot be reached.
    #[error("{what}: the API server cannot be reached: {words}")]
    Unreachable {
        /// What was tried.
        what: String,
        /// What the client said.
        words: String,
    },
    /// An object of ours that this build cannot read.
    #[error("{0}")]
    Unreadable(String),
    /// Flags that do not go together, or a value that cannot be.
    #[error("{0}")]
    Usage(String),
    /// Nobody agreed, so nothing was asked of the API server.
    #[error("{0}; nothing was changed")]
    NotAgreed(String),
    /// What is asked for cannot be as things stand.
    #[error("{0}; nothing was changed")]
    CannotBe(String),
    /// A change that the API server refused.
    #[error("{0}; nothing was changed")]
    NotChanged(Box<Self>),
    /// The answer cannot be printed.
    #[error("write the answer")]
    Print(#[from] io::Error),
}

fn no_kinds(served: &[String]) -> String {
    let plugin = env!("CARGO_PKG_VERSION");
    if served.is_empty() {
        return format!(
            "the API server serves no {GROUP}: Sluice is not installed there; see `kubectl sluice check --pre`"
        );
    }
    format!(
        "the API server serves {GROUP}/{} and not {GROUP}/{VERSION}, which this plugin {plugin} speaks; use the plugin of the \
         operator's version",
        served.join(", ")
    )
}

impl PluginError {
    /// What the API server's answer to a request means.
    pub fn of(what: &str, error: &kube::Error) -> Self {
        let what = what.to_owned();
        match error {
            kube::Error::Api(status) if status.code == 403 || status.is_forbidden() => {
                Self::NotAllowed { what, words: status.message.clone() }
            }
            kube::Error::Api(status) if status.code == 401 => Self::NotAllowed {
                what,
                words: "the API server does not know who you are: log in again, or look at the kubeconfig".to_owned(),
            },
            kube::Error::Api(status) if status.is_not_found() => Self::NotFound { what, hint: String::new() },
            // a path that nobody serves is answered without a reason
            kube::Error::Api(status) if status.code == 404 => Self::NoKinds { what, served: Vec::new() },
            kube::Error::Api(status) => {
                let words = status.message.trim();
                let words = if words.is_empty() { format!("HTTP {}", status.code) } else { words.to_owned() };
                Self::Refused { what, words }
            }
            kube::Error::SerdeError(error) => {
                Self::Unreadable(format!("{what}: the answer is not understood: {error}"))
            }
            error => Self::Unreachable { what, words: with_causes(error) },
        }
    }

    /// The same of a request that changes something: what was refused has changed nothing.
    #[must_use]
    pub fn of_change(self) -> Self {
        match self {
            Self::NotAllowed { .. } | Self::NotFound { .. } | Self::NoKinds { .. } | Self::Refused { .. } => {
                Self::NotChanged(Box::new(self))
            }
            other => other,
        }
    }

    /// What to do where something was not read for it.
    pub const fn todo(&self) -> &'static str {
        match self {
            Self::NotAllowed { .. } => {
                "ask for the right, or let somebody run it who has it: docs/kubectl-sluice.md#rights"
            }
            Self::Deadline { .. } => "allow more with --request-timeout, or look at the API server",
            Self::Unreachable { .. } | Self::Client { .. } | Self::Configuration { .. } => {
                "see that the API server can be reached from here: kubectl cluster-info"
            }
            Self::NoKinds { .. } => "see which versions the API server serves: kubectl api-resources",
            Self::Unreadable(_) => "use the plugin of the operator's version",
            _ => "do what the API server says, and look again",
        }
    }

    /// The exit code: that nothing was changed is an answer, everything else is none.
    pub fn conclusion(&self) -> Conclusion {
        match self {
            Self::NotAgreed(_) | Self::CannotBe(_) | Self::NotChanged(_) => Conclusion::No,
            _ => Conclusion::CannotTell,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn told(status: Status) -> String {
        PluginError::of("read ConnectionPool shop/shop", &kube::Error::Api(status.boxed())).to_string()
    }

    #[test]
    fn every_answer_of_the_api_server_says_what_is_wrong_where_and_what_to_do() {
        let forbidden = Status::failure("User \"eve\" cannot get resource \"connectionpools\"", "Forbidden");
        let missing = Status::failure("connectionpools.sluice.dev \"shop\" not found", "NotFound");
        let no_path = Status::failure("404 page not found", "Failed to parse error data").with_code(404);
        let unknown = Status::failure("Unauthorized", "Unauthorized").with_code(401);
        let other = Status::failure("etcdserver: request timed out", "InternalError").with_code(500);
        let mut told: Vec<String> = [forbidden, missing, no_path, unknown, other].into_iter().map(told).collect();
        let newer = PluginError::NoKinds { what: "list ConnectionPools".to_owned(), served: vec!["v1".to_owned()] };
        let slow = PluginError::Deadline { what: "list pods in shop".to_owned(), deadline: Duration::from_secs(10) };
        let refused =
            PluginError::Refused { what: "pause ConnectionPool shop/shop".to_owned(), words: "no".to_owned() };
        assert_eq!(refused.conclusion(), Conclusion::CannotTell);
        let refused = refused.of_change();
        assert_eq!(refused.conclusion(), Conclusion::No);
        told.extend([newer.to_string(), slow.to_string(), refused.to_string()]);
        insta::assert_snapshot!(told.join("\n").replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }
}
