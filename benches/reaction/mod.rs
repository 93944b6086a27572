//! With `localReaction: Disabled`: from the start of the tick whose query first returns a sample to the limit read back.
//!
//! The chart on the lab's node, two pods whose load rises and falls every few seconds, Prometheus, everything real. When a tick
//! began stands in the operator's log at each change of the target; the limit that a pooler works with is what its agent read
//! back from PgBouncer's console, asked every 50 ms. A change is in force when the limits of all pods add up to its target. Both
//! times are of the one clock of the machine.

mod report;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use crate::{
    Failure, machine,
    node::{self, Listener, Operator, Said, Sizes},
    process::wait_for,
    results::{self, Results, Samples},
    statistics,
};

/// Seconds between two ticks: so many changes would take an hour with the 15 of the chart; what is measured begins with a tick.
const TICK_SECONDS: u32 = 5;
/// How often agents are asked what they have read back.
const ASK_EVERY: Duration = Duration::from_millis(50);
const PODS: [&str; 2] = ["shop-0", "shop-1"];
/// Clients of each pod in turn, and for how long, in seconds.
const CLIENTS: [u32; 2] = [2, 9];
const PHASE_SECONDS: u32 = 12;

/// Options of `reaction`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Changes of the target to measure.
    #[arg(long, default_value_t = 60)]
    changes: usize,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let operator = Operator::install(TICK_SECONDS, &[], scratch.path())?;
    let spec = "  scaling: {minAllowed: 4, maxAllowed: 60, algorithm: TargetUtilization, localReaction: Disabled}\n  \
                behavior:\n    \
                scaleUp: {tolerance: \"0\", policies: [{type: Percent, value: 1000, periodSeconds: 15}]}\n    \
                scaleDown: {tolerance: \"0\", stabilizationWindowSeconds: 0}\n";
    let phases = CLIENTS.map(|clients| {
        format!("pgbench -n -c {clients} -T {PHASE_SECONDS} -f $transactions > /dev/null 2>&1 || sleep 0.2")
    });
    let script = format!("while :; do\n{}\ndone", phases.join("\n"));
    let pods: String = PODS.iter().map(|pod| node::pod(pod, &script)).collect();
    node::apply(&(node::pool(spec)? + &pods))?;
    node::wait_for_condition("Proven", "True")?;
    node::wait_for_condition("ScalingActive", "True")?;

    let listener = Listener::start(&PODS, ASK_EVERY, Sizes::of)?;
    wait_for("every agent answers", node::WITHIN, || (listener.latest().len() == PODS.len()).then_some(()))?;
    let begin = node::unix();
    let deadline = Instant::now() + Duration::from_mins(1) * u32::try_from(options.changes)?;
    let changes = loop {
        sleep(Duration::from_secs(1));
        let changes: Vec<Change> = changes(&operator)?.into_iter().filter(|change| change.started > begin).collect();
        // the last one is known to be over when the next begins
        if changes.len() > options.changes {
            break changes;
        }
        if Instant::now() > deadline {
            return Err(format!("only {} changes within {} s", changes.len(), 60 * options.changes).into());
        }
    };
    let said = listener.said();
    let mut samples = Samples::of("change,decision,from,to,tick_unix,read_back_unix");
    for (number, pair) in changes.windows(2).enumerate() {
        let Change { decision, from, to, started } = &pair[0];
        // a change that the next one overtook has no time of its own
        let read_back = read_back(&said, *to, *started, pair[1].started).unwrap_or(f64::INFINITY);
        samples.add(&format!("{number},{decision},{from},{to},{started:.3},{read_back:.3}"));
    }
    setting.insert("tickSeconds".into(), json!(TICK_SECONDS));
    setting.insert("scrapeSeconds".into(), json!(std::env::var("SLUICE_SCRAPE").unwrap_or_else(|_| "15s".to_owned())));
    setting.insert("pods".into(), json!(PODS.len()));
    setting.insert("agentsAreAskedEveryMilliseconds".into(), json!(ASK_EVERY.as_millis()));
    setting.insert(
        "load".into(),
        json!(format!(
            "pgbench in every pod, {CLIENTS:?} clients in turn for {PHASE_SECONDS} s each, transactions of 50 ms"
        )),
    );
    Ok(Results {
        name: "reaction",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

/// A change of the target, as the operator logged it.
struct Change {
    decision: String,
    from: u64,
    to: u64,
    started: f64,
}

fn changes(operator: &Operator) -> Result<Vec<Change>, Failure> {
    let lines = operator.logged("target changed")?;
    let own = format!("{}/shop", node::NAMESPACE);
    lines
        .iter()
        .filter(|line| line["pool"] == own.as_str())
        .map(|line| {
            let number = |field: &str| line[field].as_u64().ok_or_else(|| format!("no {field} in {line}"));
            Ok(Change {
                decision: line["decision"].as_str().unwrap_or_default().to_owned(),
                from: number("from")?,
                to: number("to")?,
                started: node::unix_of(&line["started"])?,
            })
        })
        .collect()
}

/// When the limits of all pods added up to `target`, after `from` and before `until`.
fn read_back(said: &[Said<Sizes>], target: u64, from: f64, until: f64) -> Option<f64> {
    let mut limits = std::collections::BTreeMap::new();
    for Said { at, pod, what: Sizes { limit, .. } } in said {
        limits.insert(pod, u64::from(*limit));
        if (from..until).contains(at) && limits.len() == PODS.len() && limits.values().sum::<u64>() == target {
            return Some(*at);
        }
    }
    None
}
