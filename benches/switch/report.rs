//! PURE: from the samples of `switch` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, column, median, quantile, rows};

/// New connections, at least, over all switches of the sidecar.
pub const LEAST_CONNECTIONS: f64 = 300_000.0;
/// Switches, at least.
pub const LEAST_SWITCHES: usize = 100;
/// New connections per second, at least.
pub const LEAST_RATE: f64 = 1000.0;
/// Most microseconds that leading clients to the other process takes, 99th percentile.
pub const FLIP_MICROSECONDS: f64 = 1000.0;
/// Most seconds from the change of the file until new clients are led to the new process, 95th percentile.
pub const STEERED_SECONDS: f64 = 1.0;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text = String::from(
        "# A pooler is replaced under load\n\n| way | changes | new connections | per second | queries | failures | which |\n|---|---|---|---|---|---|---|\n",
    );
    let verdict = |reached: bool| if reached { "reached" } else { "MISSED" };
    let all = rows(samples)?;
    let mut sidecar = None;
    for way in ["switch", "reload", "takeover", "reuseport"] {
        let of = |row: &&Row<'_>| row.is("way", way);
        let Some(last) = all.iter().rfind(of) else { continue };
        let [changes, connections, elapsed, queries, failures] =
            ["number", "connections", "elapsed_seconds", "queries", "failures"].map(|name| last.number(name));
        let (changes, connections, elapsed, queries, failures) =
            (changes?, connections?, elapsed?, queries?, failures?);
        let rate = connections / elapsed;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {way} | {changes:.0} | {connections:.0} | {rate:.0} | {queries:.0} | {failures:.0} | {} |",
            last.text("kinds")?
        );
        if way == "switch" {
            sidecar = Some((connections, rate, failures));
        }
    }
    let (connections, rate, failures) = sidecar.ok_or("no samples of the sidecar")?;
    let changed = |row: &Row<'_>| row.is("way", "switch") && !row.is("flip_microseconds", "");
    let flips = column(samples, "flip_microseconds", changed)?;
    let seconds = column(samples, "seconds", changed)?;
    let (flip, steered) = (quantile(&flips, 0.99), quantile(&seconds, 0.95));
    let _ = writeln!(
        text,
        "\n| of the sidecar | median | p95 | p99 |\n|---|---|---|---|\n| leading clients to the other process, microseconds | {:.0} | {:.0} | {flip:.0} |\n| from the change of the file to that, seconds | {:.2} | {steered:.2} | {:.2} |",
        median(&flips),
        quantile(&flips, 0.95),
        median(&seconds),
        quantile(&seconds, 0.99),
    );
    let enough = connections >= LEAST_CONNECTIONS && rate >= LEAST_RATE && flips.len() >= LEAST_SWITCHES;
    let _ = writeln!(
        text,
        "\nNo failure in {LEAST_CONNECTIONS} connections over {LEAST_SWITCHES} switches at {LEAST_RATE} a second: {}.",
        if enough { verdict(failures == 0.0) } else { "too few samples to tell" }
    );
    let _ = writeln!(
        text,
        "Clients led within {FLIP_MICROSECONDS} microseconds, p99: {}.",
        verdict(flip <= FLIP_MICROSECONDS)
    );
    let _ = writeln!(text, "Within {STEERED_SECONDS} s of the change, p95: {}.", verdict(steered <= STEERED_SECONDS));
    Ok(text)
}
