//! PURE: the rows of a figure that counts what clients lose.

use super::statistics::{Row, rows};

/// What all clients of one way met, from its last row.
pub struct Lost<'a> {
    /// Changes made.
    pub changes: f64,
    /// New connections.
    pub connections: f64,
    /// Of them per second.
    pub rate: f64,
    /// Queries of clients that stay.
    pub queries: f64,
    /// Failures of all.
    pub failures: f64,
    /// Of which kind.
    pub kinds: &'a str,
}

/// Head of the table of [`Lost::cells`].
pub const HEAD: &str = "changes | new connections | per second | queries of clients that stay | failures | which |";

impl<'a> Lost<'a> {
    /// The sum of what the last matching row says; None without such a row.
    pub fn last(samples: &'a str, of: impl Fn(&Row<'_>) -> bool) -> Result<Option<Self>, String> {
        let all = rows(samples)?;
        let Some(last) = all.iter().rfind(|row| of(row)) else { return Ok(None) };
        let connections = last.number("connections")?;
        Ok(Some(Self {
            changes: last.number("number")?,
            connections,
            rate: connections / last.number("elapsed_seconds")?,
            queries: last.number("queries")?,
            failures: last.number("failures")?,
            kinds: last.text("kinds")?,
        }))
    }

    /// The row of a table.
    pub fn cells(&self) -> String {
        let Self { changes, connections, rate, queries, failures, kinds } = self;
        format!("{changes:.0} | {connections:.0} | {rate:.0} | {queries:.0} | {failures:.0} | {kinds} |")
    }
}

/// How a demand is told.
pub fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}
