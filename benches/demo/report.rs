//! The table and the picture, from the raw samples alone.

use std::{collections::BTreeMap, fmt::Write};

/// Longest wait for a server connection that counts as kept, in milliseconds: the pool's objective.
pub const OBJECTIVE_MILLISECONDS: u32 = 20;
/// The policy that is ours.
pub const SLUICE: &str = "Sluice";

/// One policy in one second.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Second of the run.
    pub second: u32,
    /// Which policy.
    pub policy: String,
    /// What all its poolers were set to, in server connections.
    pub ceiling: u32,
    /// Server connections that the database counted.
    pub open: u32,
    /// Server connections opened so far.
    pub opened: u64,
    /// Orders that got their server connection in this second.
    pub orders: u32,
    /// Of them: later than the objective.
    pub late: u32,
    /// Orders given up.
    pub given_up: u32,
}

/// What a policy comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which policy.
    pub policy: String,
    /// Percent of the orders that waited longer than the objective, those given up included.
    pub late_percent: f64,
    /// Mean of what its poolers were set to.
    pub mean_ceiling: f64,
    /// Most that they were set to at once.
    pub peak_ceiling: u32,
    /// Connection-hours open at the database.
    pub open_hours: f64,
    /// Server connections opened.
    pub opened: u64,
}

const HEADER: &str = "second,policy,ceiling,open,opened,orders,late,given_up";

/// Samples as CSV.
pub fn to_csv(samples: &[Sample]) -> String {
    let mut csv = format!("{HEADER}\n");
    for s in samples {
        let numbers = format!("{},{},{},{},{},{}", s.ceiling, s.open, s.opened, s.orders, s.late, s.given_up);
        writeln!(csv, "{},{},{numbers}", s.second, s.policy).expect("a string takes everything");
    }
    csv
}

/// Samples from CSV; none if a line is not one.
pub fn from_csv(csv: &str) -> Option<Vec<Sample>> {
    let mut lines = csv.lines();
    (lines.next()? == HEADER).then_some(())?;
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let [second, policy, ceiling, open, opened, orders, late, given_up] = fields[..] else { return None };
            Some(Sample {
                second: second.parse().ok()?,
                policy: policy.to_owned(),
                ceiling: ceiling.parse().ok()?,
                open: open.parse().ok()?,
                opened: opened.parse().ok()?,
                orders: orders.parse().ok()?,
                late: late.parse().ok()?,
                given_up: given_up.parse().ok()?,
            })
        })
        .collect()
}

/// One row per policy: Sluice first, then in order of the ceiling.
pub fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut by_policy: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        by_policy.entry(&sample.policy).or_default().push(sample);
    }
    let mut rows: Vec<Row> = by_policy
        .into_iter()
        .map(|(policy, samples)| {
            let sum = |field: fn(&Sample) -> u32| samples.iter().map(|sample| f64::from(field(sample))).sum::<f64>();
            let (orders, late, given_up) = (sum(|s| s.orders), sum(|s| s.late), sum(|s| s.given_up));
            Row {
                policy: policy.to_owned(),
                late_percent: 100.0 * (late + given_up) / (orders + given_up).max(1.0),
                mean_ceiling: sum(|s| s.ceiling) / samples.len() as f64,
                peak_ceiling: samples.iter().map(|s| s.ceiling).max().unwrap_or(0),
                open_hours: sum(|s| s.open) / 3600.0,
                opened: samples.iter().map(|s| s.opened).max().unwrap_or(0),
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        let key = |row: &Row| (row.policy != SLUICE, row.mean_ceiling);
        key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal).then_with(|| a.policy.cmp(&b.policy))
    });
    rows
}

/// The policies that are at least as good as Sluice in all three: objective, connection-hours open and mean ceiling.
/// Two policies that both keep the objective (1 %) are equally good in it.
pub fn as_good_as_sluice(rows: &[Row]) -> Vec<&Row> {
    let Some(ours) = rows.iter().find(|row| row.policy == SLUICE) else { return Vec::new() };
    let as_good = |row: &&Row| {
        row.late_percent <= ours.late_percent.max(1.0)
            && row.open_hours <= ours.open_hours
            && row.mean_ceiling <= ours.mean_ceiling
    };
    rows.iter().filter(|row| row.policy != SLUICE).filter(as_good).collect()
}

/// The table as Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "| policy | later than {OBJECTIVE_MILLISECONDS} ms, % | mean ceiling | peak ceiling | connection-hours open | opens |\n|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let Row { policy, late_percent, mean_ceiling, peak_ceiling, open_hours, opened } = row;
        writeln!(
            text,
            "| {policy} | {late_percent:.2} | {mean_ceiling:.1} | {peak_ceiling} | {open_hours:.2} | {opened} |"
        )
        .expect("a string takes everything");
    }
    text
}

type Along = fn(&Row) -> f64;

/// Two scatter plots: lateness over the mean ceiling, and over the connection-hours open.
pub fn picture(rows: &[Row]) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 440\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>The demo's load: Sluice against fixed limits</title>\n<rect width=\"1000\" height=\"440\" fill=\"#fff\"/>\n",
    );
    let panels: [(&str, Along); 2] =
        [("mean ceiling, server connections", |row| row.mean_ceiling), ("connection-hours open", |row| row.open_hours)];
    for (panel, (label, along)) in panels.into_iter().enumerate() {
        let left = 60.0 + 490.0 * panel as f64;
        let most = rows.iter().map(along).fold(0.0, f64::max) * 1.1;
        // from 0.01 % to 100 %, logarithmic
        let y = |percent: f64| 380.0 - 340.0 * (percent.clamp(0.01, 100.0).log10() + 2.0) / 4.0;
        for percent in [0.01, 0.1, 1.0, 10.0, 100.0] {
            let (line, at) = (if (percent - 1.0_f64).abs() < 1e-9 { "#d62728" } else { "#ddd" }, y(percent));
            writeln!(
                svg,
                "<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{line}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{percent} %</text>",
                left + 400.0, left - 6.0, at + 4.0
            )
            .expect("a string takes everything");
        }
        writeln!(
            svg,
            "<text x=\"{left}\" y=\"24\">orders that waited longer than {OBJECTIVE_MILLISECONDS} ms (red: the objective)</text><text x=\"{}\" y=\"420\" text-anchor=\"end\">{label} (0 to {most:.1})</text>",
            left + 400.0
        )
        .expect("a string takes everything");
        for row in rows {
            let x = left + 400.0 * along(row) / most.max(1e-9);
            let colour = match row.policy.as_str() {
                SLUICE => "#2ca02c",
                policy if policy.ends_with(" 5 s") => "#aec7e8",
                policy if policy.ends_with(" 30 s") => "#1f77b4",
                _ => "#08306b",
            };
            let radius = if row.policy == SLUICE { 8 } else { 5 };
            let name = row.policy.trim_start_matches("fixed ").split(',').next().unwrap_or_default();
            writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{colour}\"><title>{}</title></circle><text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\" fill=\"#555\">{name}</text>",
                y(row.late_percent), row.policy, x + 8.0, y(row.late_percent) - 4.0
            )
            .expect("a string takes everything");
        }
    }
    svg.push_str("</svg>\n");
    svg
}
