//! PURE: from the samples of `switch` to the printed figures.

use std::fmt::Write as _;

use super::{
    losses::{HEAD, Lost, verdict},
    statistics::{Row, column, median, quantile},
};

/// New connections, at least, over all switches of the sidecar, where clients need no password.
pub const LEAST_CONNECTIONS: f64 = 300_000.0;
/// Queries of clients that stay, at least.
pub const LEAST_QUERIES: f64 = 100_000.0;
/// Switches, at least.
pub const LEAST_SWITCHES: usize = 100;
/// New connections per second, at least: without a password, and by SCRAM over TLS.
pub const LEAST_RATES: [(&str, f64); 2] = [("trust", 1000.0), ("scram+tls", 200.0)];
/// Most microseconds that leading clients to the other process takes, 99th percentile.
pub const FLIP_MICROSECONDS: f64 = 1000.0;
/// Most seconds from the change of the file until new clients are led to the new process, 95th percentile.
pub const STEERED_SECONDS: f64 = 1.0;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text =
        format!("# A pooler is replaced under load\n\n| login | way | {HEAD}\n|---|---|---|---|---|---|---|---|\n");
    let mut lossless = String::new();
    let mut times =
        String::from("\n| login | of the sidecar | times | median | p95 | p99 |\n|---|---|---|---|---|---|\n");
    for (login, least_rate) in LEAST_RATES {
        let of = |way: &'static str| move |row: &Row<'_>| row.is("login", login) && row.is("way", way);
        let sidecar =
            Lost::last(samples, of("sidecar"))?.ok_or_else(|| format!("no samples of the sidecar, {login}"))?;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {login} | sidecar, and as many steps back | {}", sidecar.cells());
        for way in ["reload", "takeover", "reuseport"] {
            if let Some(lost) = Lost::last(samples, of(way))? {
                let _ = writeln!(text, "| {login} | {way} | {}", lost.cells());
            }
        }
        let seconds = column(samples, "seconds", of("switch"))?;
        let back = column(samples, "seconds", of("back"))?;
        let warm = column(samples, "warm_seconds", |row| of("switch")(row) && !row.is("warm_seconds", ""))?;
        let flips = column(samples, "flip_microseconds", |row| {
            (of("switch")(row) || of("back")(row)) && !row.is("flip_microseconds", "")
        })?;
        for (what, figures, digits) in [
            ("leading clients to the other process, microseconds", &flips, 0),
            ("from the change of the file to the new process, proven, seconds", &seconds, 2),
            ("the same, until its floor is warm", &warm, 2),
            ("from the change of the file back to the process before, seconds", &back, 2),
        ] {
            let [middle, high, highest] = [median(figures), quantile(figures, 0.95), quantile(figures, 0.99)];
            let _ = writeln!(
                times,
                "| {login} | {what} | {} | {middle:.digits$} | {high:.digits$} | {highest:.digits$} |",
                figures.len()
            );
        }
        // as many as fit into the time of the switches, where a login takes its time
        let least = if login == "trust" { LEAST_CONNECTIONS } else { 0.0 };
        let enough = sidecar.connections >= least
            && sidecar.queries >= LEAST_QUERIES
            && seconds.len().min(back.len()) >= LEAST_SWITCHES;
        let told = |reached: bool| if enough { verdict(reached) } else { "too few samples to tell" };
        for (demand, reached) in [
            (
                format!(
                    "no failure{} in {LEAST_QUERIES} queries of clients that stay, over {LEAST_SWITCHES} switches and {LEAST_SWITCHES} steps back",
                    if least > 0.0 { format!(" in {least} new connections and") } else { String::new() },
                ),
                sidecar.failures == 0.0,
            ),
            (format!("{least_rate} new connections a second"), sidecar.rate >= least_rate),
            (
                format!("new clients led within {FLIP_MICROSECONDS} microseconds, p99"),
                quantile(&flips, 0.99) <= FLIP_MICROSECONDS,
            ),
            (format!("within {STEERED_SECONDS} s of the change, p95"), quantile(&seconds, 0.95) <= STEERED_SECONDS),
        ] {
            let _ = writeln!(lossless, "- {login}: {demand}: {}.", told(reached));
        }
    }
    let _ = write!(text, "{times}\n{lossless}");
    Ok(text)
}
