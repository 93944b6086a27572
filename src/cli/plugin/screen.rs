//! Where answers go: a terminal, which is redrawn, or anything else, which gets lines.

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::{error::PluginError, options::OutputFormat, view::document::PoolDocument};

/// Rows of a terminal that does not tell.
const ROWS: usize = 24;
/// To the upper left.
const HOME: &str = "\x1b[H";
/// Clears the rest of a line, and all that is below.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Standard output.
pub struct Screen {
    is_terminal: bool,
}

impl Screen {
    /// Standard output, whatever it is.
    pub fn of_stdout() -> Self {
        Self { is_terminal: io::stdout().is_terminal() }
    }

    /// Whether somebody looks at it who can be shown the same place again.
    pub const fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Prints a text as it is.
    ///
    /// # Errors
    /// [`PluginError::Print`].
    pub fn print(&self, text: &str) -> Result<(), PluginError> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Shows a text in place of the one before, as much of it as there is room for.
    ///
    /// # Errors
    /// [`PluginError::Print`].
    pub fn redraw(&self, text: &str) -> Result<(), PluginError> {
        let rows = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        self.print(&redrawn(text, if rows == 0 { ROWS } else { rows }))
    }

    /// Prints a document.
    ///
    /// # Errors
    /// [`PluginError::Print`].
    pub fn document(&self, format: OutputFormat, document: &impl Serialize) -> Result<(), PluginError> {
        let text = match format {
            OutputFormat::Yaml => serde_yaml::to_string(document).map_err(io::Error::other)?,
            _ => serde_json::to_string_pretty(document).map_err(io::Error::other)? + "\n",
        };
        self.print(&text)
    }
}

/// A text over the one before, without a moment in which nothing is there.
fn redrawn(text: &str, rows: usize) -> String {
    let text = shortened(text, rows).replace('\n', &format!("{CLEAR_LINE}\n"));
    format!("{HOME}{text}{CLEAR_BELOW}")
}

/// As many lines as there are rows, the last of them for the cursor; the last but one says how many are missing.
fn shortened(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() < rows {
        return text.to_owned();
    }
    let shown = rows.saturating_sub(2);
    format!("{}\n... {} more lines\n", lines[..shown].join("\n"), lines.len() - shown)
}

/// Says something beside the answer. Where nobody listens any more, the answer still counts.
pub fn tell(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// Says beside the answer that plugin and operator are of different versions, where they are.
pub fn tell_skew(document: &PoolDocument) {
    if let Some(words) = document.skew() {
        tell(&words);
    }
}

/// Asks whether to go on; only where somebody can answer.
///
/// # Errors
/// [`PluginError::NotAgreed`]: nobody can, or the answer was no.
pub fn agree(question: &str) -> Result<(), PluginError> {
    if !io::stdin().is_terminal() {
        return Err(PluginError::NotAgreed("nobody can be asked here: agree beforehand with --yes".to_owned()));
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
        Ok(())
    } else {
        Err(PluginError::NotAgreed("not agreed".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_a_terminal_is_cut_and_counted() {
        assert_eq!(shortened("a\nb\n", 24), "a\nb\n");
        assert_eq!(shortened("a\nb\nc\nd\n", 4), "a\nb\n... 2 more lines\n");
        assert_eq!(redrawn("a\nb\n", 24), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
