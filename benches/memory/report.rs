//! PURE: from the samples of `memory` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{column, median, rows};

/// Most MiB that the operator may take at 10 pools of 100 pods.
pub const MOST_MEBIBYTES: f64 = 50.0;
/// Most MiB that it may take at 1,000 pools of 10 pods.
pub const MOST_MEBIBYTES_OF_THOUSAND: f64 = 120.0;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut sizes: Vec<(String, String)> = Vec::new();
    for row in rows(samples)? {
        let size = (row.text("pools")?.to_owned(), row.text("pods_per_pool")?.to_owned());
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    let mut text = String::from(
        "# Memory of the operator\n\n| pools | pods of each | resident at the end, MiB | largest ever, MiB | seconds until every pod had its share |\n|---|---|---|---|---|\n",
    );
    let mut verdict = String::new();
    for (pools, pods) in sizes {
        let of = |name| column(samples, name, |row| row.is("pools", &pools) && row.is("pods_per_pool", &pods));
        let (resident, peak, shared, seconds) =
            (of("resident_kib")?, of("peak_kib")?, of("pods_with_share")?, of("seconds")?);
        let end = median(&resident[resident.len().saturating_sub(30)..]) / 1024.0;
        let largest = peak.iter().copied().fold(0.0, f64::max) / 1024.0;
        let all = shared.iter().copied().fold(0.0, f64::max);
        let first = shared.iter().zip(&seconds).find(|(shared, _)| **shared >= all).map_or(f64::NAN, |(_, at)| *at);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {pools} | {pods} | {end:.1} | {largest:.1} | {first:.0} |");
        let most = match (pools.as_str(), pods.as_str()) {
            ("10", "100") => MOST_MEBIBYTES,
            ("1000", "10") => MOST_MEBIBYTES_OF_THOUSAND,
            _ => continue,
        };
        let reached = if largest <= most { "reached" } else { "MISSED" };
        let _ = writeln!(verdict, "\nAt most {most} MiB at {pools} pools of {pods} pods, at any time: {reached}.");
    }
    text.push_str(&verdict);
    Ok(text)
}
