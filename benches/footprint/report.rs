//! PURE: from the samples of `footprint` to the printed figures.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    losses::verdict,
    statistics::{Row, rows},
};

/// Most megabytes (10^6 bytes) of a sidecar in the middle of a switch that nobody is connected to.
pub const IDLE_MEGABYTES: f64 = 20.0;
/// Most megabytes with 500 clients by TLS.
pub const BUSY_MEGABYTES: f64 = 50.0;
/// Most MiB of a sidecar with a whole share of server connections at work.
pub const FULL_MEBIBYTES: f64 = 48.0;
/// Clients of the demands with clients.
pub const LEAST_CLIENTS: f64 = 500.0;
const PROCESSES: [&str; 4] = ["keeper", "agent", "blue", "green"];

fn megabytes(kibibytes: f64) -> f64 {
    kibibytes * 1024.0 / 1e6
}

/// The largest sum of a column over the processes of one look.
fn largest_together(rows: &[&Row<'_>], name: &str) -> Result<f64, String> {
    let mut together: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for row in rows {
        *together.entry((row.text("round")?, row.text("look")?)).or_default() += row.number(name)?;
    }
    Ok(megabytes(together.into_values().fold(f64::NAN, f64::max)))
}

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text = String::from(
        "# Memory of a sidecar\n\n`idle` and `busy`: in the middle of a switch. `full`: a whole share of server connections at work, and a large CA bundle.\n\n| largest, MB | keeper | agent | blue | green | sum of what each shows | resident together, shared pages once | clients |\n|---|---|---|---|---|---|---|---|\n",
    );
    let all = rows(samples)?;
    let mut together = Vec::new();
    let mut full = None;
    for part in ["idle", "busy", "full", "full before"] {
        let of: Vec<&Row<'_>> = all.iter().filter(|row| row.is("part", part)).collect();
        // what was not measured
        if of.is_empty() && part.starts_with("full") {
            continue;
        }
        let largest = |name: &str, keep: &dyn Fn(&Row<'_>) -> bool| -> Result<f64, String> {
            let figures = of.iter().filter(|row| keep(row)).map(|row| row.number(name));
            figures.collect::<Result<Vec<_>, _>>().map(|figures| figures.into_iter().fold(f64::NAN, f64::max))
        };
        let mut line = format!("| {part}");
        for process in PROCESSES {
            let resident = largest("resident_kib", &|row| row.is("process", process))?;
            // Writing to a String cannot fail.
            let _ = if resident.is_nan() { write!(line, " |") } else { write!(line, " | {:.1}", megabytes(resident)) };
        }
        let clients = largest("clients", &|_| true)?;
        let once = largest_together(&of, "proportional_kib")?;
        let sum = largest_together(&of, "resident_kib")?;
        let _ = writeln!(text, "{line} | {sum:.1} | {once:.1} | {clients:.0} |");
        match part {
            "full" => full = Some((once * 1e6 / f64::from(1 << 20), clients)),
            "full before" => {}
            _ => together.push((once, clients)),
        }
    }
    let [(idle, _), (busy, clients)] = together[..] else { return Err("no samples".to_owned()) };
    let _ = writeln!(text, "\nAt most {IDLE_MEGABYTES} MB idle: {}.", verdict(idle <= IDLE_MEGABYTES));
    let told =
        |clients: f64, reached| if clients >= LEAST_CLIENTS { verdict(reached) } else { "too few clients to tell" };
    let busy = told(clients, busy <= BUSY_MEGABYTES);
    let _ = writeln!(text, "At most {BUSY_MEGABYTES} MB with {LEAST_CLIENTS} clients by TLS: {busy}.");
    if let Some((mebibytes, clients)) = full {
        let full = told(clients, mebibytes <= FULL_MEBIBYTES);
        let _ = writeln!(
            text,
            "At most {FULL_MEBIBYTES} MiB with a whole share of server connections at work: {mebibytes:.1} MiB, {full}."
        );
    }
    Ok(text)
}
