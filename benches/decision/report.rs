//! PURE: from the samples of `decision` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, column, quantile};

/// The longest decision that is good enough, in microseconds.
pub const MOST_MICROSECONDS: f64 = 50.0;
/// The longest round of 1,000 pools that is good enough, in milliseconds.
pub const MOST_MILLISECONDS: f64 = 50.0;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let of = |kind: &'static str| column(samples, "nanoseconds", move |row: &Row<'_>| row.is("kind", kind));
    let (learning, quick, round) = (of("learning")?, of("quick")?, of("round")?);
    let mut text = String::from("# Decisions\n\n| | median | p99 | goal |\n|---|---|---|---|\n");
    let mut line = |what: &str, values: &[f64], per: f64, unit: &str, most: f64| {
        let [middle, high] = [0.5, 0.99].map(|q| quantile(values, q) / per);
        let verdict = if high <= most { "reached" } else { "MISSED" };
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "| {what} | {middle:.2} {unit} | {high:.2} {unit} | p99 at most {most} {unit}: {verdict} |");
    };
    line("one decision that learns (every 15 s)", &learning, 1e3, "us", MOST_MICROSECONDS);
    line("one decision between (every second)", &quick, 1e3, "us", MOST_MICROSECONDS);
    line("a round of 1,000 pools, all learning", &round, 1e6, "ms", MOST_MILLISECONDS);
    let _ = writeln!(text, "\n{} decisions, {} rounds, one thread.", learning.len() + quick.len(), round.len());
    Ok(text)
}
