//! The key by which the pod marks what it is given by reference, made once and kept on the volume that outlives the container: with
//! another one a restarted agent would tell of a change that there was not.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::agent::{apply::files::write_whole, decide::reference_mark::ReferenceKey};

/// Name of the file in the state directory.
pub const FILE: &str = "reference-key";
/// Where random bytes come from.
const RANDOM: &str = "/dev/urandom";

/// Why there is no key.
#[derive(Debug, Error)]
#[error(
    "{what} {path}: {source}; the operator is not told when a Secret of this pod has changed, until the container restarts"
)]
pub struct ReferenceKeyError {
    /// What was attempted.
    what: &'static str,
    /// The file.
    path: PathBuf,
    /// What the system said.
    #[source]
    source: io::Error,
}

/// The key of this pod: the one that is kept, or a new one. What is no key is replaced.
///
/// # Errors
/// [`ReferenceKeyError`]: none can be read, or made and kept.
pub fn load(state_dir: &Path) -> Result<ReferenceKey, ReferenceKeyError> {
    let path = state_dir.join(FILE);
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| ReferenceKeyError { what, path, source }
    };
    match fs::read(&path) {
        Ok(kept) => {
            if let Some(kept) = std::str::from_utf8(&kept).ok().and_then(ReferenceKey::parse) {
                return Ok(kept);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("reading", &path)(error)),
    }
    let mut random = [0; ReferenceKey::BYTES];
    let source = Path::new(RANDOM);
    File::open(source).and_then(|mut source| source.read_exact(&mut random)).map_err(failed("reading", source))?;
    let key = ReferenceKey::of_random(&random);
    write_whole(&path, key.as_str().as_bytes()).map_err(failed("writing", &path))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pod_keeps_its_key_and_two_pods_have_two() {
        let [one, other] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let key = load(one.path()).unwrap();
        assert_eq!(load(one.path()).unwrap(), key, "after a restart of the container");
        assert_ne!(load(other.path()).unwrap(), key);
        let mode = fs::metadata(one.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(one.path().join(FILE), "short").unwrap();
        assert_ne!(load(one.path()).unwrap(), key, "what is no key is replaced");
        let error = load(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("writing /nowhere/reference-key: "), "{error}");
    }
}
