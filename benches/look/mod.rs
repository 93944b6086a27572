//! Time of a whole look of the operator at one large pool: everything that it computes between two writes.
//!
//! The pods are those of a StatefulSet, whose labels no other pod has. What a look writes is not measured: that is the API server's
//! time, and it is bounded to a few pods a look.

mod report;

use std::{fs, time::Instant};

use clap::Args;
use serde_json::json;
use sluice::controller::rehearsal::{Rehearsal, Scene};

use crate::{
    Failure, machine,
    results::{self, Results, Samples},
    statistics,
};

/// Options of `look`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Numbers of pods to measure.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,20000")]
    pods: Vec<u32>,
    /// Looks at each.
    #[arg(long, default_value_t = 100)]
    looks: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    setting.insert("optimized".into(), json!(!cfg!(debug_assertions)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let mut samples = Samples::of("scene,pods,nanoseconds,cpu_nanoseconds,writes");
    for &pods in &options.pods {
        for (name, scene) in
            [("settled", Scene::Settled), ("load shifted", Scene::LoadShifted), ("all new", Scene::AllNew)]
        {
            let rehearsal = Rehearsal::new(pods, scene);
            for _ in 0..options.looks {
                let (begun, cpu_before) = (Instant::now(), cpu_nanoseconds()?);
                let writes = rehearsal.look();
                let (elapsed, cpu) = (begun.elapsed().as_nanos(), cpu_nanoseconds()? - cpu_before);
                samples.add(&format!("{name},{pods},{elapsed},{cpu},{writes}"));
            }
        }
    }
    let figures = report::report(samples.text())?;
    Ok(Results { name: "look", setting, samples, figures, keep: options.keep.then(results::committed) })
}

/// What this thread has worked: the clock also counts whoever else wants the core.
fn cpu_nanoseconds() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("no figure in /proc/thread-self/schedstat")?.parse()?)
}
