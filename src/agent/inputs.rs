//! Reads the configuration volume, and sees when it changes.
//!
//! The kubelet replaces a projected volume as a whole by turning the link `..data`; looking at that link costs one
//! system call, so it is looked at several times a second. Without the link (by hand, in tests) the files' own metadata is
//! looked at.

use std::{
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::wish::Texts;
use crate::contract::names;

/// No file of the volume is larger: annotations are bounded to 256 KiB by Kubernetes, keys of a Secret to 1 MiB.
const LARGEST_FILE: u64 = 1 << 20;

/// What tells one state of the volume from another.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Signature {
    Link(PathBuf),
    Files(Vec<Option<(u64, i64, i64, u64)>>),
}

/// The configuration volume.
pub struct Inputs {
    directory: PathBuf,
    seen: Option<Signature>,
}

impl Inputs {
    /// A volume that has not been read yet.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), seen: None }
    }

    /// The texts, when they may have changed since the last call.
    pub fn changed(&mut self) -> Option<Texts> {
        let signature = self.signature();
        if self.seen.as_ref() == Some(&signature) {
            return None;
        }
        let texts = Texts {
            revision: self.text(names::REVISION_FILE),
            grant: self.text(names::GRANT_FILE),
            username: self.bytes(names::USERNAME_FILE),
            password: self.bytes(names::PASSWORD_FILE),
            server_ca: self.bytes(names::SERVER_CA_FILE),
        };
        // A swap while we read would mix two states: then the link differs and we read again next time.
        self.seen = Some(signature);
        Some(texts)
    }

    fn signature(&self) -> Signature {
        if let Ok(target) = fs::read_link(self.directory.join("..data")) {
            return Signature::Link(target);
        }
        let files = [
            names::REVISION_FILE,
            names::GRANT_FILE,
            names::USERNAME_FILE,
            names::PASSWORD_FILE,
            names::SERVER_CA_FILE,
        ];
        Signature::Files(
            files
                .iter()
                .map(|file| {
                    let metadata = fs::metadata(self.directory.join(file)).ok()?;
                    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
                })
                .collect(),
        )
    }

    fn bytes(&self, file: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let opened = fs::File::open(self.directory.join(file)).ok()?;
        opened.take(LARGEST_FILE).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn text(&self, file: &str) -> Option<String> {
        // What is not UTF-8 is no JSON either, and is refused as such.
        Some(String::from_utf8_lossy(&self.bytes(file)?).into_owned())
    }
}
