//! PURE: from the samples of `agent` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, column, median, quantile};

/// Most megabytes (10^6 bytes) that the agent may hold.
pub const MOST_MEGABYTES: f64 = 10.0;
/// Most percent of one core.
pub const MOST_CORE_PERCENT: f64 = 1.0;
/// Seconds from the start until an answer, 95th percentile.
pub const START_SECONDS: f64 = 1.0;
/// Seconds from a fault until an answer, at any time.
pub const BACK_SECONDS: f64 = 2.0;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let of = |part: &'static str| move |row: &Row<'_>| row.is("part", part);
    let mut text = String::from("# The agent\n");
    let verdict = |reached: bool| if reached { "reached" } else { "MISSED" };

    let [resident, cpu, at] = [
        column(samples, "resident_kib", of("load"))?,
        column(samples, "cpu_seconds", of("load"))?,
        column(samples, "seconds", of("load"))?,
    ];
    let megabytes = |kibibytes: &[f64]| kibibytes.iter().copied().fold(f64::NAN, f64::max) * 1024.0 / 1e6;
    let (largest, together) = (megabytes(&resident), megabytes(&column(samples, "together_kib", of("load"))?));
    let (Some((first, last)), Some((begin, end))) = (cpu.first().zip(cpu.last()), at.first().zip(at.last())) else {
        return Err("no samples of the load".to_owned());
    };
    let percent = (last - first) / (end - begin) * 100.0;
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n| under the steady load, {:.0} s | |\n|---|---|", end - begin);
    let _ = writeln!(text, "| agent, resident, largest, MB | {largest:.1} |");
    let _ = writeln!(text, "| agent and keeper, shared pages once, largest, MB | {together:.1} |");
    let _ = writeln!(text, "| CPU of both, % of one core | {percent:.2} |");

    text.push_str("\n| seconds until an answer | times | median | p95 | largest |\n|---|---|---|---|---|\n");
    let mut line = |what: &str, part: &'static str| -> Result<(f64, f64), String> {
        let seconds = column(samples, "seconds", of(part))?;
        let (high, largest) = (quantile(&seconds, 0.95), seconds.iter().copied().fold(f64::NAN, f64::max));
        let _ = writeln!(text, "| {what} | {} | {:.2} | {high:.2} | {largest:.2} |", seconds.len(), median(&seconds));
        Ok((high, largest))
    };
    let (start, _) = line("after the start of the agent", "start")?;
    let (_, killed) = line("after SIGKILL of PgBouncer", "killed")?;
    let (_, stopped) = line("after SIGSTOP of PgBouncer", "stopped")?;

    let most = verdict(largest.max(together) <= MOST_MEGABYTES);
    let _ = writeln!(text, "\nAt most {MOST_MEGABYTES} MB, the agent alone and with its keeper: {most}.");
    let _ = writeln!(text, "At most {MOST_CORE_PERCENT} % of a core: {}.", verdict(percent <= MOST_CORE_PERCENT));
    let _ =
        writeln!(text, "Answers at most {START_SECONDS} s after the start, p95: {}.", verdict(start <= START_SECONDS));
    let _ = writeln!(
        text,
        "Answers at most {BACK_SECONDS} s after PgBouncer is killed or stopped, each time: {}.",
        verdict(killed.max(stopped) <= BACK_SECONDS)
    );
    Ok(text)
}
