//! PURE: from the samples of `sharing` to the printed figures.

use std::fmt::Write as _;

use super::statistics::rows;

/// The share of the busy pod that is good enough, of 20.
pub const ENOUGH: f64 = 14.0;
/// Within so many ticks.
pub const TICKS: f64 = 2.0;
/// Ticks without Prometheus that say enough.
pub const DARK_TICKS: usize = 5;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let rows = rows(samples)?;
    let part = |name: &'static str| rows.iter().filter(move |row| row.is("part", name));
    let mut rounds: Vec<String> = Vec::new();
    for row in part("load") {
        let round = row.text("round")?.to_owned();
        if !rounds.contains(&round) {
            rounds.push(round);
        }
    }
    let mut text = String::from(
        "# Shares of two pods under load 9 : 1, maxAllowed 20\n\n| round | share of the busy pod after tick 1, 2, ... of the load's first sample | ticks until it is enough | after the load has changed sides |\n|---|---|---|---|\n",
    );
    let mut worst = 0.0_f64;
    for round in &rounds {
        let mut needed = f64::INFINITY;
        for row in part("load").filter(|row| row.is("round", round)) {
            if row.number("busy_share")? >= ENOUGH {
                needed = needed.min(row.number("tick")?);
            }
        }
        let shares = |name| -> Result<String, String> {
            let of = part(name).filter(|row| row.is("round", round));
            let shares: Result<Vec<String>, String> = of.map(|row| row.text("busy_share").map(str::to_owned)).collect();
            Ok(shares?.join(", "))
        };
        worst = worst.max(needed);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {round} | {} | {needed} | {} |", shares("load")?, shares("turn")?);
    }
    let verdict = if worst <= TICKS { "reached" } else { "MISSED" };
    let _ = writeln!(text, "\nAt least {ENOUGH} of 20 within {TICKS} ticks, {} rounds: {verdict}.", rounds.len());
    text.push_str("When the load changes sides, more moves only if a pod lacks it.\n");

    let mut dark = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    for row in part("dark") {
        dark.push((row.number("busy_share")?, row.number("other_share")?));
        let reason = row.text("scaling_active")?.to_owned();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    let stay = dark.windows(2).all(|pair| pair[0] == pair[1]);
    let verdict = if dark.len() >= DARK_TICKS && stay { "reached" } else { "MISSED" };
    let (busy, other) = dark.first().copied().unwrap_or((f64::NAN, f64::NAN));
    let _ = writeln!(
        text,
        "\nPrometheus stopped, {} ticks: shares {busy} and {other}; ScalingActive {}. Shares stay: {verdict}.",
        dark.len(),
        reasons.join(", then ")
    );
    Ok(text)
}
