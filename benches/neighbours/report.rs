//! PURE: from the samples of `neighbours` to the printed figures.
//!
//! Everything is compared with the calm directly before and after it. What came together counts once: all decisions of one tick are
//! one sample, and proofs and admissions are drawn by the ticks in which they began.

use std::{collections::BTreeMap, fmt::Write as _};

use super::statistics::{Block, Ratio, Row, block_quantile, quantile_ratio, rows};

/// How late the others' decisions and proofs may be, as a multiple of how late they are without neighbours (median).
pub const LATE_TIMES: f64 = 1.1;
/// How long admission may take, 99th percentile, likewise.
pub const ADMISSION_TIMES: f64 = 1.5;
/// Fewer ticks than this tell nothing of how late decisions are.
pub const LEAST_TICKS: f64 = 20.0;
/// Fewer proofs than this tell nothing either.
pub const LEAST_PROOFS: f64 = 50.0;
/// Nor do fewer admissions of their 99th percentile.
pub const LEAST_ADMISSIONS: f64 = 1000.0;

/// What nothing is done in.
const CALM: &str = "calm";

/// One build in one stretch of time, calm or not.
struct Segment<'a> {
    build: &'a str,
    number: f64,
    phase: &'a str,
    rows: Vec<&'a Row<'a>>,
}

impl Segment<'_> {
    fn of<'r>(&'r self, what: &'r str) -> impl Iterator<Item = &'r &'r Row<'r>> {
        self.rows.iter().filter(move |row| row.is("what", what))
    }

    fn count(&self, what: &str) -> Result<f64, String> {
        // a sum of nothing would be -0
        Ok(0.0 + self.of(what).map(|row| row.number("count")).sum::<Result<f64, String>>()?)
    }

    fn value(&self, what: &str) -> Result<f64, String> {
        self.of(what).next().ok_or_else(|| format!("{}, {}: no {what}", self.build, self.phase))?.number("value")
    }

    /// What came together. The decisions of a tick are told by one row.
    fn blocks(&self, what: Timed) -> Result<Vec<Block>, String> {
        let mut blocks: BTreeMap<u64, Block> = BTreeMap::new();
        for row in self.of(what.name()) {
            let count = if what == Timed::Decision { 1.0 } else { row.number("count")? };
            blocks.entry(row.number("block")?.to_bits()).or_default().push((row.number("value")?, count));
        }
        Ok(blocks.into_values().collect())
    }
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timed {
    Decision,
    Proof,
    Admission,
}

impl Timed {
    /// In samples.
    const fn name(self) -> &'static str {
        match self {
            Self::Decision => "decision_last_ms",
            Self::Proof => "proven_ms",
            Self::Admission => "admission_ms",
        }
    }

    const fn quantile(self) -> f64 {
        match self {
            Self::Decision | Self::Proof => 0.5,
            Self::Admission => 0.99,
        }
    }

    const fn most_times(self) -> f64 {
        match self {
            Self::Decision | Self::Proof => LATE_TIMES,
            Self::Admission => ADMISSION_TIMES,
        }
    }

    const fn least(self) -> f64 {
        match self {
            Self::Decision => LEAST_TICKS,
            Self::Proof => LEAST_PROOFS,
            Self::Admission => LEAST_ADMISSIONS,
        }
    }
}

/// What is known of a demand in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Missed,
    Undecidable,
    TooFew,
    Reached,
}

impl Verdict {
    const fn words(self) -> &'static str {
        match self {
            Self::Missed => "MISSED",
            Self::Undecidable => "not decidable at this noise",
            Self::TooFew => "too few samples",
            Self::Reached => "reached",
        }
    }
}

/// A phase beside the calm before and after it.
struct Comparison {
    /// Samples in it.
    count: f64,
    /// The quantile in calm before, in it, and in calm after.
    milliseconds: [f64; 3],
    times: Ratio,
    verdict: Verdict,
}

impl Comparison {
    fn of(what: Timed, [before, during, after]: [&Segment<'_>; 3]) -> Result<Self, String> {
        let blocks = [before.blocks(what)?, during.blocks(what)?, after.blocks(what)?];
        let [before, count, after] =
            blocks.each_ref().map(|blocks| 0.0 + blocks.iter().flatten().map(|(_, n)| n).sum::<f64>());
        let times = quantile_ratio(what.quantile(), &blocks[1], &blocks[0], &blocks[2]);
        // a calm is half as long, and there are two of them
        let is_compared = before.min(after) >= what.least() / 2.0 && before > 0.0 && after > 0.0;
        let verdict = match times {
            // who is stopped has no times
            _ if is_compared && count < 1.0 => Verdict::Missed,
            _ if count < what.least() || !is_compared => Verdict::TooFew,
            times if times.high <= what.most_times() => Verdict::Reached,
            times if times.low > what.most_times() => Verdict::Missed,
            _ => Verdict::Undecidable,
        };
        let milliseconds = blocks.each_ref().map(|blocks| block_quantile(blocks, what.quantile()));
        Ok(Self { count, milliseconds, times, verdict })
    }

    fn times(&self) -> String {
        let Ratio { low, measured: times, high } = self.times;
        if times.is_nan() { "-".to_owned() } else { format!("{times:.2} ({low:.2} to {high:.2})") }
    }
}

/// What is demanded, and what came of it in each phase of this build.
struct Demand {
    what: String,
    found: Vec<(Verdict, String)>,
}

impl Demand {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), found: Vec::new() }
    }

    fn compared(&mut self, phase: &str, comparison: &Comparison) {
        self.found.push((comparison.verdict, format!("{phase} {}", comparison.times())));
    }

    fn held(&mut self, phase: &str, is_held: bool) {
        self.found.push((if is_held { Verdict::Reached } else { Verdict::Missed }, phase.to_owned()));
    }

    fn told(&self) -> String {
        if self.found.iter().all(|(verdict, _)| *verdict == Verdict::Reached) {
            return Verdict::Reached.words().to_owned();
        }
        let told = [Verdict::Missed, Verdict::Undecidable, Verdict::TooFew, Verdict::Reached].map(|verdict| {
            let phases = self.found.iter().filter(|(found, _)| *found == verdict).map(|(_, phase)| phase.as_str());
            (verdict, phases.collect::<Vec<_>>())
        });
        let told = told.iter().filter(|(_, phases)| !phases.is_empty());
        told.map(|(verdict, phases)| format!("{} in {}", verdict.words(), phases.join(", ")))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

fn segments<'a>(rows: &'a [Row<'a>]) -> Result<Vec<Segment<'a>>, String> {
    let mut segments: Vec<Segment<'a>> = Vec::new();
    for row in rows {
        let (build, number, phase) = (row.text("build")?, row.number("segment")?, row.text("phase")?);
        let is_of = |segment: &&mut Segment<'_>| segment.build == build && segment.number.total_cmp(&number).is_eq();
        match segments.iter_mut().find(is_of) {
            Some(segment) => segment.rows.push(row),
            None => segments.push(Segment { build, number, phase, rows: vec![row] }),
        }
    }
    Ok(segments)
}

const HEAD: &str = "# Neighbours\n\n\
    Each phase stands between two stretches of calm, and is compared with what lies between those: the ratio, and where it lies with 90 % \
    (bootstrap; larger than the one end and smaller than the other with 95 % each). A demand is reached where the upper end is within it, \
    missed where the lower end is beyond it, and else not decidable at this noise.\n";

const TABLES: [&str; 3] = [
    "\nDecisions of the others' pools, from the start of their tick: each tick is one sample, its last decision. Milliseconds.\n\n\
     | build | phase | ticks of those due | decisions in one | calm before | median | p95 | calm after | times calm |\n\
     |---|---|---|---|---|---|---|---|---|\n",
    "\nProofs: until a share that was taken back is written down as proven. Admission: until the verdict on a pod. Milliseconds.\n\n\
     | build | phase | proofs | calm before | median | calm after | times calm | admissions | calm before | p99 | calm after | times calm | \
     failed |\n\
     |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    "\nMemory in MiB, who was ended, what the sidecar's clients lost and whether its agent answers the operator; and the cores that were in \
     use.\n\n\
     | build | phase | operator | killed, ended | sidecar | killed | clients failed | agent silent | idle standing | cores: operator | \
     Prometheus | bench | all else |\n\
     |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
];

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let rows = rows(samples)?;
    let segments = segments(&rows)?;
    let mut tables = TABLES.map(str::to_owned);
    let mut demands = [
        format!("Others' decisions at most {LATE_TIMES} x as late as without (median of ticks)"),
        "Others decide in as many ticks as are due".to_owned(),
        format!("Others' proofs at most {LATE_TIMES} x as late as without (median)"),
        format!("Admission p99 at most {ADMISSION_TIMES} x as long as without"),
        "No admission failed".to_owned(),
        "Operator and sidecar within the memory that ships, and neither ends".to_owned(),
        "No client of another pod cut, and the agent answers the operator".to_owned(),
    ]
    .map(Demand::new);
    for (index, segment) in segments.iter().enumerate() {
        let is_calm = segment.phase == CALM;
        let phase = name(&segments, index);
        let [failed, killed, ended, sidecar_killed, clients, silent] = [
            "admissions_failed",
            "operator_killed",
            "operator_ended",
            "sidecar_killed",
            "client_failures",
            "agent_silent",
        ]
        .map(|what| segment.count(what));
        let (failed, killed, ended) = (failed?, killed?, ended?);
        let (sidecar_killed, clients, silent) = (sidecar_killed?, clients?, silent?);
        let (build, ticks, due) = (segment.build, segment.blocks(Timed::Decision)?, segment.count("ticks_due")?);
        let (decided, decisions) = (ticks.len() as f64, segment.count(Timed::Decision.name())?);
        let of_due = format!("{decided:.0} of {due:.0} | {:.0}", decisions / decided.max(1.0));
        let (median, p95) = (block_quantile(&ticks, 0.5), block_quantile(&ticks, 0.95));
        let mut add = |table: usize, cells: String| {
            // writing to a String cannot fail
            let _ = writeln!(tables[table], "| {build} | {phase} | {cells} |");
        };
        add(2, standing(segment)?);
        let comparisons = neighbours(&segments, index)?.map(|all| {
            Ok::<_, String>([
                Comparison::of(Timed::Decision, all)?,
                Comparison::of(Timed::Proof, all)?,
                Comparison::of(Timed::Admission, all)?,
            ])
        });
        if let Some(comparisons) = comparisons {
            let [decision, proof, admission] = comparisons?;
            let [before, _, after] = decision.milliseconds;
            let [before, median, p95, after] = [before, median, p95, after].map(|time| told(time, 0));
            add(0, format!("{of_due} | {before} | {median} | {p95} | {after} | {}", decision.times()));
            let cells = [(&proof, 0), (&admission, 1)].map(|(compared, digits)| {
                let [before, during, after] = compared.milliseconds.map(|time| told(time, digits));
                format!("{:.0} | {before} | {during} | {after} | {}", compared.count, compared.times())
            });
            add(1, format!("{} | {failed:.0}", cells.join(" | ")));
            if build == "now" {
                demands[0].compared(&phase, &decision);
                demands[2].compared(&phase, &proof);
                demands[3].compared(&phase, &admission);
            }
        } else {
            add(0, format!("{of_due} | | {} | {} | |", told(median, 0), told(p95, 0)));
        }
        if build == "now" {
            if !is_calm {
                demands[1].held(&phase, decided * LATE_TIMES >= due);
            }
            demands[4].held(&phase, failed < 1.0);
            demands[5].held(&phase, killed + ended + sidecar_killed < 1.0);
            demands[6].held(&phase, clients + silent < 1.0);
        }
    }
    let mut text = format!("{HEAD}{}\n", tables.concat());
    for demand in demands {
        let _ = writeln!(text, "{}: {}.", demand.what, demand.told());
    }
    Ok(text)
}

/// A time; a dash where nothing was timed.
fn told(milliseconds: f64, digits: usize) -> String {
    if milliseconds.is_nan() { "-".to_owned() } else { format!("{milliseconds:.digits$}") }
}

/// The phase, and which calm it is.
fn name(segments: &[Segment<'_>], index: usize) -> String {
    let Segment { build, phase, .. } = segments[index];
    let before = index.checked_sub(1).map(|before| &segments[before]).filter(|before| before.build == build);
    match before {
        Some(before) if phase == CALM => format!("{CALM} after {}", before.phase),
        _ => phase.to_owned(),
    }
}

/// A phase between the calm before and after it; none of calm.
fn neighbours<'a>(segments: &'a [Segment<'a>], index: usize) -> Result<Option<[&'a Segment<'a>; 3]>, String> {
    let segment = &segments[index];
    if segment.phase == CALM {
        return Ok(None);
    }
    let calm = |at: Option<usize>| {
        let found = segments.get(at?)?;
        (found.phase == CALM && found.build == segment.build).then_some(found)
    };
    match (calm(index.checked_sub(1)), calm(index.checked_add(1))) {
        (Some(before), Some(after)) => Ok(Some([before, segment, after])),
        _ => Err(format!("{}, {}: there is no calm before and after it to compare with", segment.build, segment.phase)),
    }
}

fn standing(segment: &Segment<'_>) -> Result<String, String> {
    let mebibytes = |what| segment.count(what).map(|kibibytes| kibibytes / 1024.0);
    let all = segment.value("cores_all")?;
    let [operator, prometheus, bench] =
        ["cores_operator", "cores_prometheus", "cores_bench"].map(|what| segment.value(what));
    let (operator, prometheus, bench) = (operator?, prometheus?, bench?);
    Ok(format!(
        "{:.0} | {:.0}, {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {operator:.2} | {prometheus:.2} | {bench:.2} | {:.2}",
        mebibytes("operator_kib")?,
        segment.count("operator_killed")?,
        segment.count("operator_ended")?,
        mebibytes("sidecar_kib")?,
        segment.count("sidecar_killed")?,
        segment.count("client_failures")?,
        segment.count("agent_silent")?,
        segment.count("idle_standing")?,
        (all - operator - prometheus - bench).max(0.0),
    ))
}
