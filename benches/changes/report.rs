//! PURE: from the samples of `changes` to the printed figures.

use std::fmt::Write as _;

use super::{
    losses::{HEAD, Lost, verdict},
    statistics::{Row, column, median, quantile},
};

/// Queries of clients that stay, at least, over the changes of each kind.
pub const LEAST_QUERIES: f64 = 100_000.0;
/// Changes of each kind, at least.
pub const LEAST_CHANGES: f64 = 100.0;
/// New connections without a password, at least, over the changes of a kind.
pub const LEAST_CONNECTIONS: f64 = 300_000.0;
/// New connections per second, at least: without a password, and by SCRAM over TLS.
pub const LEAST_RATES: [(&str, f64); 2] = [("trust", 1000.0), ("scram+tls", 200.0)];
/// What is measured.
const KINDS: [(&str, &str); 5] = [
    ("trust", "limits"),
    ("scram+tls", "limits"),
    ("scram+tls", "password"),
    ("scram+tls", "role"),
    ("scram+tls", "ca"),
];

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text = format!(
        "# What changes in place, under load\n\n| login | what | way | {HEAD}\n|---|---|---|---|---|---|---|---|---|\n"
    );
    let mut times = String::from(
        "\n| login | of the sidecar, until in force, seconds | median | p95 | largest |\n|---|---|---|---|---|\n",
    );
    let mut lossless = String::new();
    for (login, kind) in KINDS {
        let of = |way: &'static str| {
            move |row: &Row<'_>| row.is("login", login) && row.is("kind", kind) && row.is("way", way)
        };
        for way in ["sidecar", "reload"] {
            if let Some(lost) = Lost::last(samples, of(way))? {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "| {login} | {kind} | {way} | {}", lost.cells());
            }
        }
        let seconds = column(samples, "seconds", |row| of("sidecar")(row) && !row.is("seconds", ""))?;
        let largest = seconds.iter().copied().fold(f64::NAN, f64::max);
        let _ = writeln!(
            times,
            "| {login} | {kind} | {:.2} | {:.2} | {largest:.2} |",
            median(&seconds),
            quantile(&seconds, 0.95)
        );
        let sidecar = Lost::last(samples, of("sidecar"))?.ok_or_else(|| format!("no samples of {kind}, {login}"))?;
        let least = if login == "trust" { LEAST_CONNECTIONS } else { 0.0 };
        let enough =
            sidecar.queries >= LEAST_QUERIES && sidecar.connections >= least && sidecar.changes >= LEAST_CHANGES;
        let connections = if least > 0.0 { format!(" in {least} new connections and") } else { String::new() };
        let _ = writeln!(
            lossless,
            "{kind}, {login}: no failure{connections} in {LEAST_QUERIES} queries of clients that stay, over {LEAST_CHANGES} changes: {}.",
            if enough || sidecar.failures > 0.0 { verdict(sidecar.failures == 0.0) } else { "too few samples to tell" }
        );
        for (_, least) in LEAST_RATES.iter().filter(|(of, _)| *of == login) {
            let reached = verdict(sidecar.rate >= *least);
            let _ = writeln!(lossless, "{kind}, {login}: {least} new connections a second: {reached}.");
        }
    }
    let _ = write!(text, "{times}\n{lossless}");
    Ok(text)
}
