//! PURE: from the samples of `reaction` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{median, quantile, rows};

/// Longest time of 95 % of the changes, in seconds.
pub const LONGEST_SECONDS: f64 = 2.0;
/// Fewest changes that say anything.
pub const FEWEST_CHANGES: usize = 50;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let (mut growth, mut shrinks) = (Vec::new(), Vec::new());
    for row in rows(samples)? {
        let seconds = row.number("read_back_unix")? - row.number("tick_unix")?;
        if row.number("to")? > row.number("from")? { growth.push(seconds) } else { shrinks.push(seconds) }
    }
    let all: Vec<f64> = growth.iter().chain(&shrinks).copied().collect();
    let mut text = String::from(
        "# From the start of a tick to the limit read back\n\n| | changes | median, s | p95, s | largest, s |\n|---|---|---|---|---|\n",
    );
    for (what, seconds) in [("growth", &growth), ("shrinks", &shrinks), ("all", &all)] {
        let (middle, high) = (median(seconds), quantile(seconds, 0.95));
        let largest = seconds.iter().copied().fold(f64::NAN, f64::max);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {what} | {} | {middle:.2} | {high:.2} | {largest:.2} |", seconds.len());
    }
    let verdict = if all.len() < FEWEST_CHANGES {
        "too few changes to say"
    } else if quantile(&all, 0.95) <= LONGEST_SECONDS {
        "reached"
    } else {
        "MISSED"
    };
    let _ = writeln!(text, "\np95 of at least {FEWEST_CHANGES} changes at most {LONGEST_SECONDS:.0} s: {verdict}.");
    Ok(text)
}
