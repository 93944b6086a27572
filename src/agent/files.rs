//! Files that must be whole or not there: written aside with mode 0600, synced, renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

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
