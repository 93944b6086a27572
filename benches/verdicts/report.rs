//! PURE: from the samples of `verdicts` to the printed figures.

use std::{collections::BTreeSet, fmt::Write as _};

use super::statistics::{Row, median, quantile, rows};

/// Rollouts that a figure wants.
const LEAST_ROLLOUTS: usize = 300;
/// The largest share of wrong verdicts in percent.
const MOST_PERCENT: f64 = 5.0;
/// The change in which all transactions take twice as long: what the goal is about.
const DOUBLED: &str = "all x2";
/// Who judged, as the columns and the tables call them.
const JUDGES: [(&str, &str); 4] = [
    ("sluice", "Sluice"),
    ("thresholds", "fixed thresholds"),
    ("kayenta", "Kayenta's rule"),
    ("argo", "Argo's conditions"),
];

/// What became of the rollouts of one kind and change, by one judge.
struct Tally {
    rollouts: usize,
    worse: f64,
    not_proven: f64,
    promoted: f64,
    seconds: Vec<f64>,
}

fn tally(rows: &[&Row<'_>], judge: &str) -> Result<Tally, String> {
    let seconds = rows.iter().map(|row| row.number(&format!("{judge}_s"))).collect::<Result<Vec<f64>, String>>()?;
    let percent = |end: &str| 100.0 * rows.iter().filter(|row| row.is(judge, end)).count() as f64 / rows.len() as f64;
    Ok(Tally {
        rollouts: rows.len(),
        worse: percent("worse"),
        not_proven: percent("not proven"),
        promoted: percent("promoted"),
        seconds,
    })
}

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let all = rows(samples)?;
    let mut kinds: Vec<&str> = Vec::new();
    for row in &all {
        let kind = row.text("kind")?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let of = |kind: &str, change: &str| -> Vec<&Row<'_>> {
        all.iter().filter(|row| row.is("kind", kind) && row.is("change", change)).collect()
    };
    let judges: Vec<(&str, &str)> =
        JUDGES.into_iter().filter(|(judge, _)| all.iter().all(|row| row.text(judge).is_ok())).collect();
    let header = judges.iter().map(|(_, name)| format!("| {name} | s ")).collect::<Vec<String>>().concat();
    let line = format!("|{}\n", "---|".repeat(2 + 2 * judges.len()));
    let mut text = String::from(
        "# Verdicts\n\n\
         Rolled back though nothing changed, in percent of the rollouts (those that ended as not proven, after the +), and the median seconds to the verdict:\n\n",
    );
    // Writing to a String cannot fail.
    let _ = write!(text, "| kind | rollouts {header}|\n{line}");
    let (mut worst_false, mut worst_missed, mut fewest) = (0.0_f64, 0.0_f64, usize::MAX);
    for kind in &kinds {
        let rows = of(kind, "none");
        let _ = write!(text, "| {kind} | {} ", rows.len());
        for (judge, _) in &judges {
            let tally = tally(&rows, judge)?;
            let _ = write!(text, "| {:.1} + {:.1} | {:.0} ", tally.worse, tally.not_proven, median(&tally.seconds));
            if *judge == "sluice" {
                worst_false = worst_false.max(tally.worse + tally.not_proven);
                fewest = fewest.min(tally.rollouts);
            }
        }
        text.push_str("|\n");
    }
    let _ = write!(
        text,
        "\nPromoted though the 95 % quantile of the transactions doubled, in percent, and the median seconds to the verdict:\n\n\
         | kind | change, and what it makes of the mean {header}|\n{line}"
    );
    let changes: BTreeSet<&str> = all.iter().map(|row| row.text("change")).collect::<Result<_, String>>()?;
    for kind in &kinds {
        for change in changes.iter().filter(|change| **change != "none") {
            let rows = of(kind, change);
            let ratios = rows.iter().map(|row| row.number("mean_ratio")).collect::<Result<Vec<f64>, String>>()?;
            let _ = write!(text, "| {kind} | {change}: x{:.2} ", median(&ratios));
            for (judge, _) in &judges {
                let tally = tally(&rows, judge)?;
                let _ = write!(text, "| {:.1} | {:.0} ", tally.promoted, median(&tally.seconds));
                if *judge == "sluice" && *change == DOUBLED {
                    worst_missed = worst_missed.max(tally.promoted);
                    fewest = fewest.min(tally.rollouts);
                }
            }
            text.push_str("|\n");
        }
    }
    let seconds = |change: &str| -> Result<Vec<f64>, String> {
        all.iter().filter(|row| row.is("change", change)).map(|row| row.number("sluice_s")).collect()
    };
    let (good, bad) = (seconds("none")?, seconds(DOUBLED)?);
    let _ = writeln!(
        text,
        "\nSeconds to the verdict of Sluice, median and 95 %: {:.0} and {:.0} where nothing changed, {:.0} and {:.0} where all transactions take twice as long.\n",
        median(&good),
        quantile(&good, 0.95),
        median(&bad),
        quantile(&bad, 0.95)
    );
    let verdict = |reached: bool| match fewest {
        count if count < LEAST_ROLLOUTS => format!("too few rollouts ({count} of {LEAST_ROLLOUTS})"),
        _ if reached => "reached".to_owned(),
        _ => "MISSED".to_owned(),
    };
    let _ = writeln!(
        text,
        "- False rollbacks at most {MOST_PERCENT} % in each kind, not proven included: {worst_false:.1} %, {}",
        verdict(worst_false <= MOST_PERCENT)
    );
    let _ = writeln!(
        text,
        "- Missed regressions at most {MOST_PERCENT} % in each kind: {worst_missed:.1} %, {}",
        verdict(worst_missed <= MOST_PERCENT)
    );
    Ok(text)
}
