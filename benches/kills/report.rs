//! PURE: from the samples of `kills` to the printed figures.

use std::fmt::Write as _;

use super::{
    losses::verdict,
    statistics::{Row, column, median, quantile},
};

/// Kills of each, at least.
pub const LEAST_KILLS: usize = 20;
/// Most seconds until a client is answered again, 95th percentile.
pub const BACK_SECONDS: f64 = 0.3;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let of = |part: &'static str| move |row: &Row<'_>| row.is("part", part);
    let figures = |name: &str, part: &'static str| column(samples, name, of(part));
    let mut text = String::from(
        "# Killed under load\n\n| what | times | back after, seconds, median | p95 | largest | clients cut | counted by the agent |\n|---|---|---|---|---|---|---|\n",
    );
    let sum = |figures: &[f64]| figures.iter().sum::<f64>();
    let mut line = |what: &str, part: &'static str| -> Result<[Vec<f64>; 3], String> {
        let [seconds, cut, counted] = [figures("seconds", part)?, figures("cut", part)?, figures("counted", part)?];
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {what} | {} | {:.3} | {:.3} | {:.3} | {:.0} | {:.0} |",
            seconds.len(),
            median(&seconds),
            quantile(&seconds, 0.95),
            seconds.iter().copied().fold(f64::NAN, f64::max),
            sum(&cut),
            sum(&counted)
        );
        Ok([seconds, cut, counted])
    };
    let [back, cut, counted] = line("PgBouncer; until a client that came afterwards is answered", "pooler")?;
    let [agents, cut_by_agents, _] = line("the agent; until another one has read the limits", "agent")?;
    let told = |enough: bool, reached: bool| if enough { verdict(reached) } else { "too few samples to tell" };
    let high = quantile(&back, 0.95);
    let _ = writeln!(
        text,
        "\nClients are answered again at most {BACK_SECONDS} s after PgBouncer is killed, p95 of {LEAST_KILLS}: {}.",
        told(back.len() >= LEAST_KILLS, high <= BACK_SECONDS)
    );
    let _ = writeln!(
        text,
        "Every client that was cut is counted, no more and no less, each time: {}.",
        told(back.len() >= LEAST_KILLS, cut == counted)
    );
    let _ = writeln!(
        text,
        "No client is cut when the agent is killed, {LEAST_KILLS} times: {}.",
        told(agents.len() >= LEAST_KILLS, sum(&cut_by_agents) == 0.0)
    );
    Ok(text)
}
