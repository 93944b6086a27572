//! Reads the configuration volume, and sees when it changes.
//!
//! The kubelet replaces a projected volume as a whole by turning the link `..data`; looking at that link costs one
//! system call, so it is looked at several times a second. Without the link (by hand, in tests) the files' own metadata is
//! looked at.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{agent::decide::wish::Texts, contract::names};

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
    ///
    /// # Errors
    /// Nothing can be read now, which says nothing about what is there; it is read at the next call.
    pub fn changed(&mut self) -> io::Result<Option<Texts>> {
        let signature = self.signature();
        if self.seen.as_ref() == Some(&signature) {
            return Ok(None);
        }
        let texts = Texts {
            revision: self.text(names::REVISION_FILE)?,
            grant: self.text(names::GRANT_FILE)?,
            username: self.bytes(names::USERNAME_FILE)?,
            password: self.bytes(names::PASSWORD_FILE)?,
            server_ca: self.bytes(names::SERVER_CA_FILE)?,
            upstream_certificate: self.bytes(names::UPSTREAM_CERTIFICATE_FILE)?,
            upstream_key: self.bytes(names::UPSTREAM_KEY_FILE)?,
            client_certificate: self.bytes(names::CLIENT_CERTIFICATE_FILE)?,
            client_key: self.bytes(names::CLIENT_KEY_FILE)?,
        };
        // A swap while we read would mix two states: then the link differs and we read again next time.
        self.seen = Some(signature);
        Ok(Some(texts))
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
            names::UPSTREAM_CERTIFICATE_FILE,
            names::UPSTREAM_KEY_FILE,
            names::CLIENT_CERTIFICATE_FILE,
            names::CLIENT_KEY_FILE,
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

    /// None: there is no such file for us.
    fn bytes(&self, file: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let opened = fs::File::open(self.directory.join(file));
        match opened.and_then(|opened| opened.take(LARGEST_FILE).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if is_want_of_means(&error) => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn text(&self, file: &str) -> io::Result<Option<String>> {
        // What is not UTF-8 is no JSON either, and is refused as such.
        Ok(self.bytes(file)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// Whether it is we who cannot read now.
fn is_want_of_means(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let found = Errno::from_io_error(error);
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::IO].into_iter().any(|errno| found == Some(errno))
}
