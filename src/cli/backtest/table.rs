//! The figures of several runs, side by side.

use std::fmt::Write;

use super::{model::Score, scenario::Scenario};

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// What set the size.
    pub policy: String,
    /// What it came to.
    pub score: Score,
}

/// The table as text. Ceiling, open and busy are connection-hours of all pods. Whether the objective was kept is judged by the excess:
/// what waited too long beyond the share that no size could have avoided.
pub fn render(scenario: &Scenario, unavoidable: f64, lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.policy.chars().count()).max().unwrap_or(0).max(6);
    let waited = format!("> {} ms %", scenario.slo_wait_ms);
    let mut out = format!(
        "{:width$}  {:>9}  {:>9}  {:>9}  {:>8}  {:>10}  {:>8}  {:>4}  {:>8}  {:>9}\n",
        "policy", "ceiling h", "open h", "busy h", "opens/h", waited, "excess %", "SLO", "p99 ms", "resizes/h"
    );
    for Line { policy, score } in lines {
        let hours = |seconds: f64| seconds / 3600.0;
        let wait = score.wait_quantile_ms(0.99);
        let wait = if wait.is_finite() { format!("{wait:.0}") } else { "gave up".to_owned() };
        let excess = (score.violation_share() - unavoidable).max(0.0);
        let kept = excess <= scenario.slo_target;
        let _ = writeln!(
            out,
            "{policy:width$}  {:>9.1}  {:>9.1}  {:>9.1}  {:>8.0}  {:>10.2}  {:>8.2}  {:>4}  {:>8}  {:>9.0}",
            hours(score.ceiling_seconds),
            hours(score.open_seconds),
            hours(score.busy_seconds),
            score.per_hour(score.opened),
            100.0 * score.violation_share(),
            100.0 * excess,
            if kept { "yes" } else { "NO" },
            wait,
            score.per_hour(score.resizes),
        );
    }
    out
}
