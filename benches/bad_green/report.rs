//! PURE: from the samples of `bad_green` to the printed figures.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    losses::verdict,
    statistics::{Row, median, rows},
};

/// Attempts of each kind, at least.
pub const LEAST_ATTEMPTS: usize = 20;
/// What is wrong with the new process.
const KINDS: [&str; 4] = ["wrong password", "dead port", "does not parse", "hangs"];

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text = String::from(
        "# A new process that cannot work\n\n| what is wrong | attempts | given up after, seconds, median | largest | told | connections meanwhile | failed | led to it |\n|---|---|---|---|---|---|---|---|\n",
    );
    let all = rows(samples)?;
    let mut enough = true;
    let (mut failed, mut led) = (0.0, 0.0);
    for kind in KINDS {
        let of = |row: &&Row<'_>| row.is("kind", kind);
        let attempts: Vec<f64> = all
            .iter()
            .filter(of)
            .filter(|row| !row.is("seconds", ""))
            .map(|row| row.number("seconds"))
            .collect::<Result<_, _>>()?;
        let told: BTreeSet<&str> = all.iter().filter(of).filter_map(|row| row.text("told").ok()).collect();
        let told: Vec<&str> = told.into_iter().filter(|told| !told.is_empty()).collect();
        let last: Vec<&Row<'_>> = all.iter().filter(of).filter(|row| row.is("seconds", "")).collect();
        let sum = |name: &str| last.iter().map(|row| row.number(name)).sum::<Result<f64, _>>();
        let (connections, failures, flips) = (sum("connections")?, sum("failures")?, sum("flips")?);
        let largest = attempts.iter().copied().fold(f64::NAN, f64::max);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {kind} | {} | {:.2} | {largest:.2} | {} | {connections:.0} | {failures:.0} | {flips:.0} |",
            attempts.len(),
            median(&attempts),
            told.join("; "),
        );
        enough &= attempts.len() >= LEAST_ATTEMPTS;
        failed += failures;
        led += flips;
    }
    let _ = writeln!(
        text,
        "\nNo client on a process that cannot work, {LEAST_ATTEMPTS} attempts each: {}.",
        if enough { verdict(failed == 0.0 && led == 0.0) } else { "too few samples to tell" }
    );
    Ok(text)
}
