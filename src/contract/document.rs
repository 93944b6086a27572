//! Reading a versioned document: refuse what is newer, truncated or of another shape, and say which.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Why a document that came from an annotation, a file or the environment was refused.
#[derive(Debug, Error)]
pub enum ContractError {
    /// The text is not JSON of the expected shape: truncated, forged, or damaged.
    #[error("{document} is not valid: {source}; {consequence}")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// What becomes of its reader, and what to do.
        consequence: &'static str,
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
    /// What becomes of a reader of a malformed one, and what to do: for messages.
    const WITHOUT: &'static str = "it was ignored and the last good one stays in force";
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
        let malformed = |source| ContractError::Malformed { document: Self::NAME, consequence: Self::WITHOUT, source };
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ContractError, Document};
    use crate::contract::{GrantDocument, PodGrant, RevisionDocument};

    fn grant(share: u32, granted: u32, floor: u32) -> GrantDocument {
        let grant = PodGrant { seq: 7, share, granted, floor, least: 0, paused: false };
        GrantDocument { v: 1, epoch: 3, pools: [("shop".to_owned(), grant)].into() }
    }

    #[test]
    fn a_document_of_a_newer_version_is_refused_even_where_its_shape_changed() {
        let refused = GrantDocument::parse(r#"{"v": 2, "pools": ["another", "shape"]}"#).expect_err("refused");
        assert!(matches!(refused, ContractError::NewerVersion { found: 2, supported: 1, .. }), "{refused}");
    }

    #[test]
    fn a_grant_whose_floor_or_share_exceeds_what_is_granted_is_refused() {
        for forged in [grant(9, 8, 1), grant(2, 8, 3)] {
            let refused = GrantDocument::parse(&forged.render()).expect_err("refused");
            assert!(matches!(refused, ContractError::Inconsistent { .. }), "{refused}");
        }
    }

    #[test]
    fn nonsense_in_a_revision_is_refused_with_the_name_of_the_annotation() {
        for text in ["", "{", "null", "[]", "7", "{\"v\": -1}", "{\"v\": 1}", "{\"v\": 1, \"pools\": {\"shop\": {}}}"] {
            let refused = RevisionDocument::parse(text).expect_err("refused");
            assert!(refused.to_string().contains("sluice.dev/revision"), "{refused}");
        }
    }

    #[test]
    fn a_pause_is_written_only_while_it_lasts_and_reads_back() {
        let mut document = grant(8, 8, 1);
        assert!(!document.render().contains("paused"), "{}", document.render());
        document.pools.get_mut("shop").expect("ours").paused = true;
        assert_eq!(GrantDocument::parse(&document.render()).expect("good"), document);
    }

    proptest! {
        #[test]
        fn a_grant_reads_back_as_it_was_written(floor in 0..10_u32, more in 0..10_u32, unproven in 0..10_u32) {
            let written = grant(floor + more, floor + more + unproven, floor);
            prop_assert_eq!(GrantDocument::parse(&written.render()).expect("good"), written);
        }

        #[test]
        fn a_truncated_grant_is_refused_at_every_length(cut in 0..80_usize) {
            let text = grant(4, 6, 1).render();
            prop_assume!(cut < text.len());
            prop_assert!(GrantDocument::parse(&text[..cut]).is_err());
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".*") {
            let _ = GrantDocument::parse(&text);
            let _ = RevisionDocument::parse(&text);
        }
    }
}
