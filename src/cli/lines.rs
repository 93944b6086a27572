//! Lines of bounded length from a stream.

use std::io::{self, BufRead};

/// Reads one line; false at the end. The rest of one that is longer than `longest` bytes is skipped, and what is kept of it is unreadable.
///
/// # Errors
/// Those of the stream.
pub fn read(input: &mut impl BufRead, line: &mut Vec<u8>, longest: u64) -> io::Result<bool> {
    line.clear();
    let read = io::Read::take(&mut *input, longest).read_until(b'\n', line)?;
    if read as u64 == longest && line.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
        line.truncate(64);
    }
    Ok(read > 0)
}
