//! PURE: from the samples of `acquisition` to the printed figures.

use std::fmt::Write as _;

use super::{
    losses::verdict,
    statistics::{Row, rows},
};

/// Most milliseconds through the sidecar, without a password and TLS, 99th percentile.
pub const MILLISECONDS: f64 = 20.0;
/// New connections per second, at least.
pub const LEAST_RATE: f64 = 1000.0;

/// The `q`-quantile of values with their counts, in ascending order: the smallest that so many do not exceed.
fn quantile(counted: &[(f64, f64)], q: f64) -> f64 {
    let all: f64 = counted.iter().map(|(_, count)| count).sum();
    let mut so_far = 0.0;
    let reached = counted.iter().find(|(_, count)| {
        so_far += count;
        so_far >= q * all
    });
    reached.map_or(f64::NAN, |(value, _)| *value)
}

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text = String::from(
        "# From the first packet to the first answer\n\n| login | way | connections | per second | failed | median, ms | p95 | p99 | p99.9 | largest |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let all = rows(samples)?;
    let mut first = None;
    for login in ["trust", "scram+tls"] {
        for way in ["sidecar", "direct"] {
            let of = |row: &&Row<'_>| row.is("login", login) && row.is("way", way);
            let Some(head) = all.iter().find(|row| of(row) && row.is("count", "")) else { continue };
            let counted = all
                .iter()
                .filter(of)
                .filter(|row| !row.is("count", ""))
                .map(|row| Ok::<_, String>((row.number("microseconds")? / 1000.0, row.number("count")?)));
            let counted: Vec<(f64, f64)> = counted.collect::<Result<_, _>>()?;
            let connections: f64 = counted.iter().map(|(_, count)| count).sum();
            let (rate, failed) = (connections / head.number("elapsed_seconds")?, head.number("failures")?);
            let high = quantile(&counted, 0.99);
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {login} | {way} | {connections:.0} | {rate:.0} | {failed:.0} | {:.2} | {:.2} | {high:.2} | {:.2} | {:.2} |",
                quantile(&counted, 0.5),
                quantile(&counted, 0.95),
                quantile(&counted, 0.999),
                quantile(&counted, 1.0),
            );
            first = first.or(Some((rate, high, failed)));
        }
    }
    let (rate, high, failed) = first.ok_or("no samples")?;
    let told =
        if rate > LEAST_RATE { verdict(high < MILLISECONDS && failed == 0.0) } else { "too few connections to tell" };
    let _ = writeln!(
        text,
        "\nThrough the sidecar in less than {MILLISECONDS} ms at more than {LEAST_RATE} new connections a second, p99: {told}."
    );
    Ok(text)
}
