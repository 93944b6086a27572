//! One request to one agent: `GET http://POD:9130/status`.

use std::time::Duration;

use tokio::time::timeout;

use crate::{causes::with_causes, contract::StatusReport, http::ProofOutcome};

/// Longest that one question may take.
pub(super) const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const LARGEST_ANSWER_BYTES: usize = 64 << 10;
/// Longest words about an answer that cannot be read, in bytes: they repeat what it says.
const LONGEST_ERROR_BYTES: usize = 256;

/// Why there is no answer of the pod that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AskError {
    /// An answer with another uid is not an answer: addresses are reused.
    OtherPod,
    /// No answer, or none that could be read, and why.
    Unreachable(String),
}

/// How metrics count an answer.
pub(super) const fn outcome(answer: &Result<StatusReport, AskError>) -> ProofOutcome {
    match answer {
        Ok(_) => ProofOutcome::Answered,
        Err(AskError::OtherPod) => ProofOutcome::OtherPod,
        Err(AskError::Unreachable(_)) => ProofOutcome::Unreachable,
    }
}

/// The client that asks agents.
///
/// # Errors
/// It cannot be built.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .timeout(ASK_DEADLINE)
        // a kept connection takes 17 KB, and most pods are asked once a minute
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        // agents are asked in plain text, and an image without certificates has none to load
        .tls_certs_only([])
        .build()
}

/// Asks the agent at an address and port.
pub(super) async fn ask(client: &reqwest::Client, address: &str, uid: &str) -> Result<StatusReport, AskError> {
    let unreachable = |error: &dyn std::error::Error| AskError::Unreachable(with_causes(error));
    let asked = async {
        let answer = client.get(format!("http://{address}/status")).send().await;
        let mut answer = answer.and_then(reqwest::Response::error_for_status).map_err(|error| unreachable(&error))?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST_ANSWER_BYTES {
                return Err(AskError::Unreachable(format!("its answer is longer than {LARGEST_ANSWER_BYTES} bytes")));
            }
        }
        serde_json::from_slice(&body).map(StatusReport::cut).map_err(|error| {
            let mut error = format!("its answer is not a status report: {error}");
            error.truncate(error.floor_char_boundary(LONGEST_ERROR_BYTES));
            AskError::Unreachable(error)
        })
    };
    let report = timeout(ASK_DEADLINE, asked)
        .await
        .unwrap_or_else(|_| Err(AskError::Unreachable(format!("no answer within {} s", ASK_DEADLINE.as_secs()))))?;
    if report.pod_uid == uid { Ok(report) } else { Err(AskError::OtherPod) }
}
