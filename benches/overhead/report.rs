//! PURE: from the samples of `overhead` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, column, median, quantile};

/// The largest median ratio that is good enough.
pub const MOST_RATIO: f64 = 1.03;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let of = |variant: &'static str| move |row: &Row<'_>| row.is("variant", variant);
    let per_million = |variant| -> Result<Vec<f64>, String> {
        let cpu = column(samples, "cpu_seconds", of(variant))?;
        let queries = column(samples, "queries", of(variant))?;
        Ok(cpu.iter().zip(queries).map(|(cpu, queries)| cpu / queries * 1e6).collect())
    };
    let (bare, injected) = (per_million("bare")?, per_million("injected")?);
    if bare.len() != injected.len() || bare.is_empty() {
        return Err(format!("{} bare and {} injected samples are not pairs", bare.len(), injected.len()));
    }
    let ratios: Vec<f64> = injected.iter().zip(&bare).map(|(injected, bare)| injected / bare).collect();
    let agent: Vec<f64> = column(samples, "agent_cpu_seconds", of("injected"))?
        .iter()
        .zip(column(samples, "wall_seconds", of("injected"))?)
        .map(|(cpu, wall)| cpu / wall * 100.0)
        .collect();
    let rates = column(samples, "queries", |_| true)?
        .iter()
        .zip(column(samples, "wall_seconds", |_| true)?)
        .map(|(queries, wall)| queries / wall)
        .collect::<Vec<_>>();
    let verdict = if median(&ratios) <= MOST_RATIO { "reached" } else { "MISSED" };
    let mut text =
        String::from("# CPU of the sidecar per million queries\n\n| | median | p10 | p90 |\n|---|---|---|---|\n");
    let mut line = |what: &str, values: &[f64], decimals: usize| {
        let [low, middle, high] = [0.1, 0.5, 0.9].map(|q| quantile(values, q));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {what} | {middle:.decimals$} | {low:.decimals$} | {high:.decimals$} |");
    };
    line("PgBouncer alone, CPU s", &bare, 2);
    line("agent and PgBouncer, CPU s", &injected, 2);
    line("ratio of a pair", &ratios, 4);
    line("agent alone, % of a core", &agent, 2);
    line("queries per second", &rates, 0);
    let _ = writeln!(text, "\n{} pairs. Median ratio at most {MOST_RATIO}: {verdict}.", ratios.len());
    Ok(text)
}
