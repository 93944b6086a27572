//! The last configuration that worked, kept on a volume that outlives the container. Without secrets.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    agent::apply::files::write_whole,
    contract::{ContractError, Document, GrantDocument, PodGrant, PoolRevision, RevisionDocument},
    fingerprint::fingerprint,
};

/// Name of the file in the state directory.
pub const FILE: &str = "last-good.json";
/// Newest version that is read, and the one that is written.
const VERSION: u32 = 1;

/// What worked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastGood {
    /// Name of the pool that it belongs to.
    pub pool: String,
    /// The revision.
    pub revision: PoolRevision,
    /// Epoch of the grant.
    pub epoch: u64,
    /// The grant.
    pub grant: PodGrant,
}

/// Why the file was not used.
#[derive(Debug, Error)]
pub enum LastGoodError {
    /// It could not be read or written.
    #[error("{what} the last configuration that worked, {path}: {source}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is damaged.
    #[error("{path} is damaged: {reason}; it was ignored")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A newer agent wrote it.
    #[error("{path} has version {found}, this build reads up to {VERSION}; it was ignored")]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The version that it names.
        found: u32,
    },
    /// What it holds contradicts itself.
    #[error("{path}: {source}")]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ContractError,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u32,
    sha256: String,
    payload: String,
}

fn checksum(payload: &str) -> String {
    fingerprint(payload.as_bytes(), 32)
}

/// Writes the file.
///
/// # Errors
/// [`LastGoodError::File`].
pub fn store(state_dir: &Path, last_good: &LastGood) -> Result<(), LastGoodError> {
    let path = state_dir.join(FILE);
    let payload = serde_json::to_string(last_good).unwrap_or_default();
    let envelope = Envelope { v: VERSION, sha256: checksum(&payload), payload };
    let text = serde_json::to_string(&envelope).unwrap_or_default();
    write_whole(&path, text.as_bytes()).map_err(|source| LastGoodError::File { what: "writing", path, source })
}

/// Reads the file; None when there is none, as at the first start of a pod.
///
/// # Errors
/// [`LastGoodError`]: nothing of the file is used then.
pub fn load(state_dir: &Path, pool: &str) -> Result<Option<LastGood>, LastGoodError> {
    let path = state_dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LastGoodError::File { what: "reading", path, source }),
    };
    let damaged = |reason| LastGoodError::Damaged { path: path.clone(), reason };
    let envelope: Envelope = serde_json::from_str(&text).map_err(|_| damaged("not JSON of the expected shape"))?;
    if envelope.v > VERSION {
        return Err(LastGoodError::NewerVersion { path, found: envelope.v });
    }
    if checksum(&envelope.payload) != envelope.sha256 {
        return Err(damaged("its checksum does not fit"));
    }
    let last_good: LastGood =
        serde_json::from_str(&envelope.payload).map_err(|_| damaged("not JSON of the expected shape"))?;
    if last_good.pool != pool {
        return Err(damaged("it belongs to another pool"));
    }
    let pools = [(pool.to_owned(), last_good.revision.clone())].into();
    let grants = [(pool.to_owned(), last_good.grant)].into();
    RevisionDocument { v: 1, pools }
        .check()
        .and_then(|()| GrantDocument { v: 1, epoch: last_good.epoch, pools: grants }.check())
        .map_err(|source| LastGoodError::Inconsistent { path, source })?;
    Ok(Some(last_good))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::revision;

    fn last_good() -> LastGood {
        LastGood {
            pool: "shop".into(),
            revision: revision(3),
            epoch: 2,
            grant: PodGrant { seq: 5, share: 8, granted: 8, floor: 1, least: 0, paused: false },
        }
    }

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path(), "shop").unwrap().is_none());
        store(dir.path(), &last_good()).unwrap();
        assert_eq!(load(dir.path(), "shop").unwrap(), Some(last_good()));
    }

    #[test]
    fn a_damaged_truncated_or_newer_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), &last_good()).unwrap();
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for (changed, expected) in [
            (text.replace("\\\"share\\\":8", "\\\"share\\\":9"), "checksum"),
            (text[..text.len() / 2].to_owned(), "not JSON"),
            (text.replacen("\"v\":1", "\"v\":9", 1), "version 9"),
        ] {
            assert_ne!(changed, text);
            std::fs::write(&path, changed).unwrap();
            let error = load(dir.path(), "shop").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::write(&path, text).unwrap();
        assert!(load(dir.path(), "other").unwrap_err().to_string().contains("another pool"));
    }
}
