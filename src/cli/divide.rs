//! `sluice divide`: the ledger of a database server on lines of JSON.

use std::io::{self, BufRead, Write};

use clap::Args;
use serde_json::json;
use thiserror::Error;

use super::lines::{self, PassedOver, UnreadableLines};
use crate::decide::budget::DivideLine;

/// A longer line is refused: 100,000 pods are 16 MiB.
const LONGEST_LINE: u64 = 32 << 20;

/// Divide a database server among pools: one JSON object per line in, shares and writes out.
///
/// Each line is a problem of its own: {"capacity": 100, "reserved": 10, "others": 5, "pools": [{"name": "shop", "weight": 100, "priority": 0, "minimum":
/// 5, "maximum": 60, "pods": [{"name": "shop-a", "floor": 1, "demand": 12.5, "granted": 10, "held": 8, "phase": "Running"}]}]}. The answer has what each pool
/// is entitled to and gets, why it is not more, what each pod gets, and the writes to be made now, in their order: the same line, the same answer. The operator of this version
/// keeps no ledger yet. A line that cannot be read is answered with an "error" that names the field; the stream goes on, and the exit code is 1.
#[derive(Debug, Args)]
pub struct DivideArgs {}

/// Why `divide` stopped, or what it passed over.
#[derive(Debug, Error)]
pub enum DivideError {
    /// Lines that could not be read; each was answered with its error.
    #[error(transparent)]
    Unreadable(#[from] UnreadableLines),
    /// Standard input or output broke.
    #[error("cannot {doing}")]
    Stream {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Runs `sluice divide` on standard input and output.
///
/// # Errors
/// [`DivideError`]: lines that cannot be read, or a stream that broke.
pub fn run(_: &DivideArgs) -> Result<(), DivideError> {
    divide_lines(io::stdin().lock(), io::stdout().lock())
}

/// Answers every line of `input`.
///
/// # Errors
/// As [`run`].
pub fn divide_lines(mut input: impl BufRead, mut output: impl Write) -> Result<(), DivideError> {
    let mut line = Vec::new();
    let mut passed_over = PassedOver::default();
    for number in 1_u64.. {
        let read = lines::read(&mut input, &mut line, LONGEST_LINE);
        if !read.map_err(|source| DivideError::Stream { doing: "read the problems", source })? {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        let answer = match DivideLine::parse(text.trim_end()) {
            Ok(line) => line.answer(),
            Err(error) => json!({ "error": passed_over.tell(number, &error) }),
        };
        writeln!(output, "{answer}")
            .and_then(|()| output.flush())
            .map_err(|source| DivideError::Stream { doing: "write the answers", source })?;
    }
    Ok(passed_over.end()?)
}
