//! PURE: from the samples of `endings` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, rows};

/// Rolling updates of each, at least.
pub const LEAST_UPDATES: usize = 5;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text = String::from(
        "# Pods are replaced under load\n\n| what | rolling updates | pods that ended | connections | queries | transactions of 2 s | failures | of pooler origin | applications that were killed | which |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let all = rows(samples)?;
    let mut verdicts = String::new();
    for (part, what) in [
        ("sidecar", "Deployment of 3, with sidecars, preStop delay 3 s"),
        ("gateway", "gateway of 2, clients elsewhere"),
    ] {
        let of: Vec<&Row<'_>> = all.iter().filter(|row| row.is("part", part)).collect();
        // the counters of a part only grow
        let last = of.last().ok_or_else(|| format!("no samples of {part}"))?;
        let [ended, connections, queries, transactions, failures, pooler, killed] =
            ["ended", "connections", "queries", "transactions", "failures", "of_pooler_origin", "killed"]
                .map(|name| last.number(name));
        let (pooler, killed) = (pooler?, killed?);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {what} | {} | {} | {} | {} | {} | {} | {pooler} | {killed} | {} |",
            of.len(),
            ended?,
            connections?,
            queries?,
            transactions?,
            failures?,
            last.text("kinds")?
        );
        let verdict = match (of.len() >= LEAST_UPDATES, pooler + killed == 0.0) {
            (_, false) => "MISSED",
            (true, true) => "reached",
            (false, true) => "too few samples to tell",
        };
        let _ =
            writeln!(verdicts, "No failure of pooler origin in {LEAST_UPDATES} rolling updates, {part}: {verdict}.");
    }
    let _ = write!(text, "\n{verdicts}");
    Ok(text)
}
