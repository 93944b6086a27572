//! `sluice-agent install`: copies this program into the volume that the sidecar runs it from.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why the copy failed.
#[derive(Debug, Error)]
#[error("{what} {path}: {source}")]
pub struct InstallError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Copies this program to a file, or under its own name into a directory. Whoever looks at the file sees it whole.
///
/// # Errors
/// [`InstallError`] names the file and what was attempted.
pub fn install(destination: &Path) -> Result<PathBuf, InstallError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| InstallError { what, path, source }
    };
    let destination = if destination.is_dir() { destination.join("sluice-agent") } else { destination.to_owned() };
    let own = Path::new("/proc/self/exe");
    let mut aside = destination.clone().into_os_string();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    fs::copy(own, &aside).map_err(failed("copying to", &aside))?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)).map_err(failed("changing the mode of", &aside))?;
    fs::File::open(&aside).and_then(|file| file.sync_all()).map_err(failed("syncing", &aside))?;
    fs::rename(&aside, &destination).map_err(failed("renaming to", &destination))?;
    Ok(destination)
}
