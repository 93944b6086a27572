//! PURE: from the samples of `sizing` to the printed figures, as `report.py` prints them.

use std::{collections::BTreeSet, fmt::Write as _};

use super::statistics::{Row, rows};

/// Policy, cadence and idle timeout of the samples, and what the table calls it.
const POLICIES: [(&str, &str, &str, &str); 15] = [
    ("sluice", "agent", "600", "Adaptive, agent, idle timeout 600 s"),
    ("sluice", "agent", "30", "Adaptive, agent, 30 s"),
    ("sluice", "operator15", "600", "Adaptive, operator, tick 15 s"),
    ("sluice", "operator30", "600", "Adaptive, operator, tick 30 s"),
    ("sluice", "agent-dispatch", "600", "Adaptive, agent, 600 s, told what was dispatched"),
    ("sluice", "operator30-dispatch", "600", "Adaptive, operator, tick 30 s, told what was dispatched"),
    ("reference", "agent", "600", "reference, agent, 600 s"),
    ("reference", "operator30", "600", "reference, operator, tick 30 s"),
    ("sluice-target-utilization", "operator30", "600", "TargetUtilization 70 %, operator, tick 30 s"),
    ("sluice-load-factor", "operator30", "600", "LoadFactor, operator, tick 30 s"),
    ("static-maximum", "operator30", "600", "static maximum, 600 s"),
    ("static-maximum", "operator30", "30", "static maximum, 30 s"),
    ("static-maximum", "operator30", "10", "static maximum, 10 s"),
    ("static-maximum", "operator30", "5", "static maximum, 5 s"),
    ("static-best", "operator30", "600", "best static size of each trace, with hindsight"),
];

/// One policy on one trace.
struct Run {
    trace: String,
    cost: f64,
    open: f64,
    opens_per_hour: f64,
    resizes_per_hour: f64,
    excess_percent: f64,
    kept: bool,
    ticks: Option<(f64, f64)>,
}

fn run(row: &Row<'_>) -> Result<Run, String> {
    let hours = row.number("duration_s")? / 3600.0;
    let oracle = row.number("oracle_conn_s")?;
    let violated = row.number("viol_frac")?;
    let ticks = match row.text("ticks")? {
        "" => None,
        _ => Some((row.number("ticks")?, row.number("apart")?)),
    };
    Ok(Run {
        trace: row.text("trace")?.to_owned(),
        cost: row.number("cost_conn_s")? / oracle,
        open: row.number("open_conn_s")? / oracle,
        opens_per_hour: row.number("connections_opened")? / hours,
        resizes_per_hour: row.number("resizes")? / hours,
        excess_percent: 100.0 * (violated - row.number("oracle_floor")?).max(0.0),
        kept: violated <= row.number("oracle_budget")? + 1e-12,
        ticks,
    })
}

fn geometric(values: impl Iterator<Item = f64>, count: usize) -> f64 {
    (values.map(|value| value.max(1e-9).ln()).sum::<f64>() / count as f64).exp()
}

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let rows = rows(samples)?;
    let rows: Vec<&Row<'_>> = rows.iter().filter(|row| !row.is("oracle_conn_s", "")).collect();
    let of = |policy: &str, cadence: &str, idle: &str| {
        let own = rows.iter().filter(|row| row.is("policy", policy) && row.is("cadence", cadence));
        own.filter(|row| row.is("idle_timeout_s", idle)).map(|row| run(row)).collect::<Result<Vec<Run>, String>>()
    };
    let mut text = String::from(
        "# Sizing: cost, service level and churn\n\n\
         | policy | cost | open | opens/h | SLO met | mean excess % | worst excess % | resizes/h |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (policy, cadence, idle, name) in POLICIES {
        let runs = of(policy, cadence, idle)?;
        let count = runs.len();
        if count == 0 {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {name} | {:.3} | {:.3} | {:.0} | {}/{count} | {:.2} | {:.1} | {:.0} |",
            geometric(runs.iter().map(|run| run.cost), count),
            geometric(runs.iter().map(|run| run.open), count),
            geometric(runs.iter().map(|run| run.opens_per_hour), count),
            runs.iter().filter(|run| run.kept).count(),
            runs.iter().map(|run| run.excess_percent).sum::<f64>() / count as f64,
            runs.iter().map(|run| run.excess_percent).fold(0.0, f64::max),
            runs.iter().map(|run| run.resizes_per_hour).sum::<f64>() / count as f64,
        );
    }
    let all = rows.iter().map(|row| run(row)).collect::<Result<Vec<Run>, String>>()?;
    let watched = all.iter().filter_map(|run| run.ticks);
    let (ticks, apart) = watched.fold((0.0, 0.0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
    let _ = writeln!(
        text,
        "\nOn the same observations as the reference, sizes more than 1 apart: {apart} of {ticks} ticks.\n\n\
         | trace | agent: cost | excess % | operator 30 s: cost | excess % | operator 15 s: cost | excess % |\n|---|---|---|---|---|---|---|"
    );
    let cadences =
        [of("sluice", "agent", "600")?, of("sluice", "operator30", "600")?, of("sluice", "operator15", "600")?];
    let traces: BTreeSet<&str> = all.iter().map(|run| run.trace.as_str()).collect();
    for trace in traces {
        let runs = cadences.iter().filter_map(|runs| runs.iter().find(|run| run.trace == trace));
        let cells = runs.map(|run| {
            let missed = if run.kept { "" } else { " !" };
            format!("{:.2} | {:.2}{missed}", run.cost, run.excess_percent)
        });
        let _ = writeln!(text, "| {trace} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    text.push_str("\n`!`: the service level was missed.\n");
    Ok(text)
}
