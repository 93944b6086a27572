//! PURE: from the samples of `neighbours` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{Row, rows};

/// How late the others' decisions may be, as a multiple of how late they are without neighbours.
pub const DECISION_TIMES: f64 = 1.1;
/// How long admission may take, 99th percentile, likewise.
pub const ADMISSION_TIMES: f64 = 1.5;

/// Fewer decisions, proofs or admissions than this tell nothing of how late they are.
pub const LEAST_SAMPLES: f64 = 50.0;

/// One build in one phase.
struct Cell<'a> {
    build: &'a str,
    phase: &'a str,
    rows: Vec<&'a Row<'a>>,
}

impl Cell<'_> {
    fn count(&self, what: &str) -> Result<f64, String> {
        // a sum of nothing would be -0
        let counts = self.rows.iter().filter(|row| row.is("what", what)).map(|row| row.number("count"));
        Ok(0.0 + counts.sum::<Result<f64, String>>()?)
    }

    /// The `q`-quantile of all values; infinite where there is none.
    fn quantile(&self, what: &str, q: f64) -> Result<f64, String> {
        let mut values = Vec::new();
        for row in self.rows.iter().filter(|row| row.is("what", what)) {
            values.push((row.number("value")?, row.number("count")?));
        }
        values.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let wanted = q * values.iter().map(|(_, count)| count).sum::<f64>();
        let mut seen = 0.0;
        for (value, count) in values {
            seen += count;
            if seen >= wanted {
                return Ok(value);
            }
        }
        Ok(f64::INFINITY)
    }

    fn per_minute(&self, what: &str) -> Result<f64, String> {
        let seconds = self.rows.iter().find(|row| row.is("what", "seconds")).ok_or("a phase without seconds")?;
        Ok(self.count(what)? * 60.0 / seconds.number("value")?)
    }
}

/// What is demanded, and the phases of this build that miss it.
struct Demand {
    what: String,
    /// What is timed for it, if anything.
    samples: Option<&'static str>,
    is_told: bool,
    missed: Vec<String>,
}

impl Demand {
    fn new(what: String, samples: Option<&'static str>) -> Self {
        Self { what, samples, is_told: true, missed: Vec::new() }
    }

    /// Looks at a phase; what there is too little of without neighbours cannot be compared.
    fn look(&mut self, calm: &Cell<'_>, phase: &str, is_reached: bool) -> Result<(), String> {
        if let Some(samples) = self.samples {
            self.is_told &= calm.count(samples)? >= LEAST_SAMPLES;
        }
        if !is_reached {
            self.missed.push(phase.to_owned());
        }
        Ok(())
    }

    fn verdict(&self) -> String {
        match (self.is_told, self.missed.is_empty()) {
            (false, _) => "too few samples".to_owned(),
            (true, true) => "reached".to_owned(),
            (true, false) => format!("MISSED ({})", self.missed.join(", ")),
        }
    }
}

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let rows = rows(samples)?;
    let mut cells: Vec<Cell<'_>> = Vec::new();
    for row in &rows {
        let (build, phase) = (row.text("build")?, row.text("phase")?);
        match cells.iter_mut().find(|cell| cell.build == build && cell.phase == phase) {
            Some(cell) => cell.rows.push(row),
            None => cells.push(Cell { build, phase, rows: vec![row] }),
        }
    }
    let mut text = String::from(
        "# Neighbours\n\n\
         Milliseconds: median, and 95th or 99th percentile. Decisions: from the start of the tick, of the others' pools; proofs: until \
         a share that was taken back is written down as proven. Sidecar: its clients, and whether its agent answers the operator.\n\n\
         | build | phase | decision: median, p95 | a minute | proof: median, p95 | admission: p99 | failed | operator MiB | killed, ended | \
         sidecar MiB | killed | clients failed | agent silent | idle standing |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut demands = [
        Demand::new(
            format!("Others' decisions at most {DECISION_TIMES} x as late as without (median), and as many"),
            Some("decision_ms"),
        ),
        Demand::new(
            format!("Others' proofs at most {DECISION_TIMES} x as late as without (median)"),
            Some("proven_ms"),
        ),
        Demand::new(
            format!("Admission p99 at most {ADMISSION_TIMES} x as long as without, and none failed"),
            Some("admission_ms"),
        ),
        Demand::new("Operator and sidecar within the memory that ships, and neither ends".to_owned(), None),
        Demand::new("No client of another pod cut, and the agent answers the operator".to_owned(), None),
    ];
    for cell in &cells {
        let calm = cells.iter().find(|other| other.build == cell.build && other.phase == "calm");
        let calm = calm.ok_or_else(|| format!("{}: nothing to compare with", cell.build))?;
        let [decision, proof] = ["decision_ms", "proven_ms"].map(|what| [0.5, 0.95].map(|q| cell.quantile(what, q)));
        let [decision, decision_high] = decision;
        let [proof, proof_high] = proof;
        let (decision, proof, admission) = (decision?, proof?, cell.quantile("admission_ms", 0.99)?);
        let [failed, killed, ended, sidecar_killed, clients, silent, standing] = [
            cell.count("admissions_failed")?,
            cell.count("operator_killed")?,
            cell.count("operator_ended")?,
            cell.count("sidecar_killed")?,
            cell.count("client_failures")?,
            cell.count("agent_silent")?,
            cell.count("idle_standing")?,
        ];
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {decision:.0}, {:.0} | {:.0} | {proof:.0}, {:.0} | {admission:.1} | {failed:.0} | {:.0} | {killed:.0}, {ended:.0} | {:.0} | \
             {sidecar_killed:.0} | {clients:.0} | {silent:.0} | {standing:.0} |",
            cell.build,
            cell.phase,
            decision_high?,
            cell.per_minute("decision_ms")?,
            proof_high?,
            cell.count("operator_kib")? / 1024.0,
            cell.count("sidecar_kib")? / 1024.0,
        );
        if cell.build != "now" {
            continue;
        }
        let is_as_late =
            |what: &str, now: f64| -> Result<bool, String> { Ok(now <= DECISION_TIMES * calm.quantile(what, 0.5)?) };
        let as_many = cell.per_minute("decision_ms")? * DECISION_TIMES >= calm.per_minute("decision_ms")?;
        demands[0].look(calm, cell.phase, is_as_late("decision_ms", decision)? && as_many)?;
        demands[1].look(calm, cell.phase, is_as_late("proven_ms", proof)?)?;
        let is_admitted = admission <= ADMISSION_TIMES * calm.quantile("admission_ms", 0.99)? && failed < 1.0;
        demands[2].look(calm, cell.phase, is_admitted)?;
        demands[3].look(calm, cell.phase, killed + ended + sidecar_killed < 1.0)?;
        demands[4].look(calm, cell.phase, clients < 1.0 && silent < 1.0)?;
    }
    text.push('\n');
    for demand in demands {
        let _ = writeln!(text, "{}: {}.", demand.what, demand.verdict());
    }
    Ok(text)
}
