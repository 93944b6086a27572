//! Reading a versioned document: refuse what is newer, truncated or of another shape, and say which.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Why a document that came from an annotation, a file or the environment was refused.
#[derive(Debug, Error)]
pub enum ContractError {
    /// The text is not JSON of the expected shape: truncated, forged, or damaged.
    #[error("{document} is not valid: {source}; it was ignored and the last good one stays in force")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
    /// A later Sluice wrote it; reading it by guess could apply half of what it means.
    #[error(
        "{document} has version {found}, this build reads up to {supported}; restart the pod to get a newer sluice-agent"
    )]
    NewerVersion {
        /// Which document.
        document: &'static str,
        /// The version that the document names.
        found: u32,
        /// The newest version that this build reads.
        supported: u32,
    },
    /// The values contradict each other.
    #[error("{document} is inconsistent: {message}")]
    Inconsistent {
        /// Which document.
        document: &'static str,
        /// Which values, and how.
        message: String,
    },
}

/// A document of the contract: JSON with a version field `v`.
pub trait Document: Serialize + DeserializeOwned {
    /// The name used in messages.
    const NAME: &'static str;
    /// The newest version that this build reads and the one that it writes.
    const VERSION: u32;

    /// Checks what the types alone cannot say.
    fn check(&self) -> Result<(), ContractError>;

    /// Reads a document.
    ///
    /// # Errors
    /// [`ContractError`]: malformed text, a newer version, or values that contradict each other.
    fn parse(text: &str) -> Result<Self, ContractError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let malformed = |source| ContractError::Malformed { document: Self::NAME, source };
        let Version { v } = serde_json::from_str(text).map_err(malformed)?;
        if v > Self::VERSION {
            return Err(ContractError::NewerVersion { document: Self::NAME, found: v, supported: Self::VERSION });
        }
        let document: Self = serde_json::from_str(text).map_err(malformed)?;
        document.check()?;
        Ok(document)
    }

    /// The document as one line of JSON.
    fn render(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
