//! Errors as people read them: in one line, with what caused them.

use std::fmt::Write;

/// An error and its causes in one line. Some errors tell their cause themselves: it is not told twice.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !line.contains(&text) {
            let _ = write!(line, ": {text}");
        }
        cause = inner.source();
    }
    line
}
