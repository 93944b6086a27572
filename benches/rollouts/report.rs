//! PURE: from the samples of `rollouts` to the printed figures.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    losses::verdict,
    statistics::{Row, quantile, rows},
};

/// Kinds of bad revision.
pub const LEAST_KINDS: usize = 10;
/// Of them: caught by metrics, at least.
pub const LEAST_BY_METRICS: usize = 4;
/// Good revisions in a row, at least.
pub const LEAST_GOOD: usize = 20;
/// Most seconds from the verdict until the last pod is back, 95th percentile.
pub const BACK_SECONDS: f64 = 5.0;
/// Columns of the samples.
pub const COLUMNS: &str = "part,kind,expressed,round,revision,outcome,caught_by,verdict_seconds,back_seconds,pods,canary_pods,failed_elsewhere,failed_on_canary,connections,queries,which,words";

/// Where in the API something stands.
pub const EXPRESSED: [(&str, &str); 3] = [
    ("revision", "the settings"),
    ("secret", "the Secret, which each pod follows by itself"),
    ("creation", "a field that is fixed when a pod is created"),
];

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let all = rows(samples)?;
    let part = |name: &'static str| all.iter().filter(move |row| row.is("part", name));
    let bad: Vec<&Row<'_>> = part("bad").collect();
    let good: Vec<&Row<'_>> = part("good").collect();
    Ok(format!(
        "# Revisions under load\n\n{}\n{}\n{}{}",
        bad_table(&bad)?,
        good_table(&good)?,
        of_bad(&bad)?,
        of_good(&good)?
    ))
}

fn bad_table(bad: &[&Row<'_>]) -> Result<String, String> {
    let mut text = String::from(
        "| bad revision | stands in | caught by | after, seconds | outcome | the last pod is back after, seconds | pods that took it | clients that failed there | elsewhere | in words |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in bad {
        let stands_in = EXPRESSED.iter().find(|(name, _)| row.is("expressed", name)).map_or("", |(_, where_)| where_);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {stands_in} | {} | {} | {} | {} | {} of {} | {} | {} | {} |",
            row.text("kind")?,
            row.text("caught_by")?,
            row.text("verdict_seconds")?,
            row.text("outcome")?,
            row.text("back_seconds")?,
            row.text("canary_pods")?,
            row.text("pods")?,
            row.text("failed_on_canary")?,
            row.text("failed_elsewhere")?,
            row.text("words")?,
        );
    }
    Ok(text)
}

fn good_table(good: &[&Row<'_>]) -> Result<String, String> {
    let mut text = String::from(
        "| good revision | outcome | after, seconds | new connections | questions of clients that stay | clients that failed | in words |\n|---|---|---|---|---|---|---|\n",
    );
    for row in good {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.text("kind")?,
            row.text("outcome")?,
            row.text("verdict_seconds")?,
            row.text("connections")?,
            row.text("queries")?,
            failed(row)?,
            row.text("words")?,
        );
    }
    Ok(text)
}

fn failed(row: &Row<'_>) -> Result<f64, String> {
    Ok(row.number("failed_elsewhere")? + row.number("failed_on_canary")?)
}

fn names<'a>(of: impl Iterator<Item = &'a Row<'a>>) -> BTreeSet<String> {
    of.filter_map(|row| row.text("kind").ok()).map(str::to_owned).collect()
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// What is told where not all was measured; a demand that was missed is missed all the same.
fn told(enough: bool, reached: bool) -> &'static str {
    if enough || !reached { verdict(reached) } else { "too few samples to tell" }
}

/// Whether it left by itself what it had reached, or never came into force.
fn is_undone(row: &Row<'_>) -> bool {
    row.is("outcome", "RolledBack") || row.is("outcome", "NeverInForce")
}

fn of_bad(bad: &[&Row<'_>]) -> Result<String, String> {
    let sum = |name: &str, of: &dyn Fn(&Row<'_>) -> bool| {
        bad.iter().filter(|row| of(row)).try_fold(0.0, |sum, row| Ok::<_, String>(sum + row.number(name)?))
    };
    let enough = names(bad.iter().copied()).len() >= LEAST_KINDS;
    let is_fixed = |row: &Row<'_>| row.is("expressed", "creation");
    let left = names(bad.iter().copied().filter(|row| !is_undone(row)));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "{LEAST_KINDS} kinds of bad revision, each rolled back by itself: {}",
        told(enough, left.is_empty())
    );
    if !left.is_empty() {
        let _ = write!(text, " ({})", listed(&left));
    }
    let of_revisions = names(bad.iter().copied().filter(|row| !is_fixed(row)));
    let left = names(bad.iter().copied().filter(|row| !is_fixed(row) && !is_undone(row)));
    let _ = writeln!(
        text,
        ".\nOf them the {} that are settings or a Secret: {}.",
        of_revisions.len(),
        verdict(left.is_empty() && !of_revisions.is_empty())
    );
    let fixed = names(bad.iter().copied().filter(|row| is_fixed(row)));
    if !fixed.is_empty() {
        let _ = writeln!(
            text,
            "{}: no revision, for the field is fixed when a pod is created. Running pods keep what they have; pods that are created anew have it.",
            listed(&fixed)
        );
    }
    let by_metrics = names(bad.iter().copied().filter(|row| row.is("caught_by", "analysis") && is_undone(row))).len();
    let _ = writeln!(
        text,
        "At least {LEAST_BY_METRICS} of them pass validation and are caught on the canary by metrics ({by_metrics}): {}.",
        told(enough, by_metrics >= LEAST_BY_METRICS || !enough)
    );
    let elsewhere = sum("failed_elsewhere", &|_| true)?;
    let _ = writeln!(
        text,
        "No client fails outside of the pods that took it ({elsewhere:.0} in {:.0} connections and {:.0} questions of all): {}.",
        sum("connections", &|_| true)?,
        sum("queries", &|_| true)?,
        told(enough, elsewhere == 0.0)
    );
    let unproven = sum("failed_on_canary", &|row| row.is("caught_by", "proof"))?;
    let is_unproven = bad.iter().any(|row| row.is("caught_by", "proof"));
    let _ = writeln!(
        text,
        "No client fails in pods where it could not prove itself ({unproven:.0}): {}.",
        told(enough && is_unproven, unproven == 0.0)
    );
    let back: Vec<f64> = bad
        .iter()
        .filter(|row| row.is("outcome", "RolledBack"))
        .map(|row| row.number("back_seconds"))
        .collect::<Result<_, _>>()?;
    let high = quantile(&back, 0.95);
    let _ = writeln!(
        text,
        "From the verdict until the last pod is back at most {BACK_SECONDS} s, p95 of {} ({high:.2}): {}.",
        back.len(),
        told(enough && !back.is_empty(), back.is_empty() || high <= BACK_SECONDS)
    );
    Ok(text)
}

fn of_good(good: &[&Row<'_>]) -> Result<String, String> {
    let failures = good.iter().try_fold(0.0, |sum, row| Ok::<_, String>(sum + failed(row)?))?;
    let taken_back = good.iter().filter(|row| !row.is("outcome", "Promoted")).count();
    Ok(format!(
        "{LEAST_GOOD} good revisions in a row, all promoted ({taken_back} of {} were not), and no client fails ({failures:.0}): {}.\n",
        good.len(),
        told(good.len() >= LEAST_GOOD, taken_back == 0 && failures == 0.0)
    ))
}
