//! PURE: from the samples of `look` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, column, median, quantile, rows};

/// The longest look at a pool of 10,000 pods that is good enough, in milliseconds.
pub const MOST_MILLISECONDS: f64 = 20.0;
/// The largest pool that this is asked of.
const PODS: &str = "10000";

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut cases: Vec<(String, String)> = Vec::new();
    for row in rows(samples)? {
        let case = (row.text("scene")?.to_owned(), row.text("pods")?.to_owned());
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    let mut text = String::from(
        "# A look at one pool\n\n| pods | what there is to do | median by the clock | CPU, median | CPU, p95 | CPU per pod |\n|---|---|---|---|---|---|\n",
    );
    let mut worst: f64 = 0.0;
    for (scene, pods) in cases {
        let of = |name| column(samples, name, |row: &Row<'_>| row.is("scene", &scene) && row.is("pods", &pods));
        let cpu = of("cpu_nanoseconds")?;
        let (middle, high) = (median(&cpu) / 1e6, quantile(&cpu, 0.95) / 1e6);
        let each = middle * 1e3 / pods.parse::<f64>().map_err(|error| format!("{pods}: {error}"))?;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {pods} | {scene} | {:.2} ms | {middle:.2} ms | {high:.2} ms | {each:.2} us |",
            median(&of("nanoseconds")?) / 1e6
        );
        if pods == PODS {
            worst = worst.max(middle);
        }
    }
    if worst > 0.0 {
        let verdict = if worst <= MOST_MILLISECONDS { "reached" } else { "MISSED" };
        let _ = writeln!(
            text,
            "\nAt most {MOST_MILLISECONDS} ms of one core at {PODS} pods, whatever there is to do: {worst:.1} ms, {verdict}."
        );
    }
    text.push_str("\nOne thread; without the writes themselves.\n");
    Ok(text)
}
