//! PURE: from the samples of `tick` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, quantile, rows};

/// Longest tick that is good enough, in milliseconds.
pub const MOST_MILLISECONDS: f64 = 1000.0;

/// Longest reading that is good enough, as a part of how long it took with one query for each figure.
pub const MOST_OF_BEFORE: f64 = 0.5;

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let rows = rows(samples)?;
    let mut series: Vec<(&str, &str)> = Vec::new();
    for row in &rows {
        let one = (row.text("pools")?, row.text("source")?);
        if !series.contains(&one) {
            series.push(one);
        }
    }
    let mut text = String::from(
        "# A whole tick\n\nRead, parsed, judged, sized and divided: as the real Prometheus answers on the same machine, and with the same answers \
         recorded.\n\n\
         | answers | pools | pods | ticks | queries | MB | whole ms: median | p95 | worst | of it reading | CPU ms of it: median |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let (mut worst_recorded, mut queries_of_all) = (0.0_f64, Vec::new());
    // of the largest number of pools: reading before, and now
    let (mut before, mut now) = (None, None);
    for (pools, source) in series {
        let of: Vec<&Row<'_>> = rows.iter().filter(|row| row.is("pools", pools) && row.is("source", source)).collect();
        let column = |name: &str| of.iter().map(|row| row.number(name)).collect::<Result<Vec<f64>, String>>();
        let [queries, bytes, reading, deciding, cpu] =
            [column("queries")?, column("bytes")?, column("read_ms")?, column("decide_ms")?, column("cpu_ms")?];
        let whole: Vec<f64> = reading.iter().zip(&deciding).map(|(reading, deciding)| reading + deciding).collect();
        let [middle, high, worst] = [0.5, 0.95, 1.0].map(|q| quantile(&whole, q));
        if source == "recorded" {
            worst_recorded = worst_recorded.max(worst);
        }
        let middle_reading = quantile(&reading, 0.5);
        match source {
            "before" => before = Some(middle_reading),
            "prometheus" => now = Some(middle_reading),
            _ => {}
        }
        if source != "before" {
            queries_of_all.extend(queries.iter().copied());
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {source} | {pools} | {} | {} | {} | {:.2} | {middle:.1} | {high:.1} | {worst:.1} | {:.1} | {:.1} |",
            of[0].text("pods")?,
            of.len(),
            queries[0],
            quantile(&bytes, 0.5) / 1e6,
            quantile(&reading, 0.5),
            quantile(&cpu, 0.5),
        );
    }
    let verdict = |reached| if reached { "reached" } else { "MISSED" };
    let constant = queries_of_all.windows(2).all(|pair| pair[0].total_cmp(&pair[1]).is_eq());
    let _ = writeln!(
        text,
        "\nWith recorded answers every tick at most {MOST_MILLISECONDS} ms: {}. The same number of queries in every tick, by Prometheus' own count: {}.",
        verdict(worst_recorded <= MOST_MILLISECONDS),
        verdict(constant),
    );
    if let Some((before, now)) = before.zip(now) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n`before`: the same load read in the same run as it was before, with one query for each figure. Reading now takes {:.2} of that \
             (medians of the largest fleet), at most {MOST_OF_BEFORE}: {}.",
            now / before,
            verdict(now <= MOST_OF_BEFORE * before),
        );
    }
    Ok(text)
}
