//! Lines of bounded length from a stream, and what is told of those that could not be read.

use std::{
    fmt::Display,
    io::{self, BufRead},
};

use thiserror::Error;

/// Lines that could not be read; each was answered with its error.
#[derive(Debug, Error)]
#[error("{count} of the lines could not be read; the first: {first}")]
pub struct UnreadableLines {
    /// How many.
    pub count: u64,
    /// The first one's error.
    pub first: String,
}

/// The lines that could not be read so far.
#[derive(Debug, Default)]
pub struct PassedOver(Option<UnreadableLines>);

impl PassedOver {
    /// Tells of one more, by its number from 1. Returns the words that answer it.
    pub fn tell(&mut self, number: u64, error: &impl Display) -> String {
        let words = format!("line {number}: {error}");
        eprintln!("sluice: {words}");
        self.0.get_or_insert_with(|| UnreadableLines { count: 0, first: words.clone() }).count += 1;
        words
    }

    /// What the command ends with.
    ///
    /// # Errors
    /// There were some.
    pub fn end(self) -> Result<(), UnreadableLines> {
        self.0.map_or(Ok(()), Err)
    }
}

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
