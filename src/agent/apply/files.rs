//! Files that must be whole or not there: written aside with mode 0600, synced, renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::pooler::pgbouncer::render::Rendered;

/// Name of the auth file in the directory of a process.
pub const AUTH_FILE: &str = "users.txt";
/// Name of the configuration there.
pub const INI_FILE: &str = "pgbouncer.ini";

/// A file could not be written.
#[derive(Debug, Error)]
#[error("writing {path}: {source}")]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: what failed on this path.
    pub fn of(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self { path: path.to_owned(), source }
    }
}

/// Writes all that a process of PgBouncer reads; its directory is made if need be. Returns the path of the configuration.
///
/// # Errors
/// [`FileError`]; what was written before stays.
pub fn write_configuration(directory: &Path, rendered: &Rendered) -> Result<PathBuf, FileError> {
    fs::create_dir_all(directory).map_err(FileError::of(directory))?;
    for (path, content) in &rendered.certificates {
        let path = Path::new(path);
        write_whole(path, content).map_err(FileError::of(path))?;
    }
    let (auth_file, ini) = (directory.join(AUTH_FILE), directory.join(INI_FILE));
    for (path, text) in [(&auth_file, &rendered.auth_file), (&ini, &rendered.ini)] {
        write_whole(path, text.as_bytes()).map_err(FileError::of(path))?;
    }
    Ok(ini)
}

/// Writes a file of mode 0600. Whoever reads the path sees the old text or the new one, never a part. A file that holds the
/// text already is left as it is, so that a full volume keeps nobody from starting with what is there.
///
/// # Errors
/// Of the file system; the old file stays then.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = Path::new(&aside);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(aside)?;
    let written = file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| fs::rename(aside, path));
    if written.is_err() {
        // Nothing refers to it; a left-over is overwritten next time.
        let _ = fs::remove_file(aside);
        return written;
    }
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}
