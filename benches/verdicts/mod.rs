//! How often a canary is judged wrongly, and how soon: simulated rollouts, judged by Sluice and, on the same seconds, by others.
//!
//! No real parts: what is measured is the analysis. Rollouts have 3, 5 or 10 pods in turn, of which one is the canary.

mod judges;
mod model;
#[path = "../../src/cli/backtest/random.rs"]
mod random;
mod report;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use self::model::{Change, Harm, KINDS, Rollout};
use crate::{
    Failure, machine,
    results::{self, Results, Samples},
    statistics,
};

/// Pods of the rollouts, in turn.
const PODS: [usize; 3] = [3, 5, 10];
/// What the program is linked with.
const ARGO: &str = "argo-rollouts v1.8.3, utils/evaluate";

/// Options of `verdicts`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Rollouts of each kind and change.
    #[arg(long, default_value_t = 300)]
    rollouts: usize,
    /// The program that evaluates Argo's conditions; without it they are left out.
    #[arg(long)]
    argo: Option<PathBuf>,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    setting.insert("analysis".into(), serde_json::to_value(judges::settings())?);
    setting.insert("podsInTurn".into(), json!(PODS));
    setting.insert(
        "thresholds".into(),
        json!({"ratio": judges::THRESHOLD, "failureLimit": judges::FAILURE_LIMIT,
        "measurementSeconds": judges::MEASUREMENT, "seconds": judges::PLANNED}),
    );
    setting.insert("argo".into(), json!(options.argo.is_some().then_some(ARGO)));
    let mut header =
        "kind,change,quantile_ratio,mean_ratio,pods,number,sluice,sluice_s,thresholds,thresholds_s,kayenta,kayenta_s"
            .to_owned();
    if options.argo.is_some() {
        header += ",argo,argo_s";
    }
    let mut samples = Samples::of(&header);
    for (kind_number, kind) in KINDS.iter().enumerate() {
        for change in Change::ALL {
            let harm = Harm::of(kind, change);
            let mut rows: Vec<String> = Vec::new();
            let mut ratios: Vec<Vec<f64>> = Vec::new();
            for number in 0..options.rollouts {
                let pods = PODS[number % PODS.len()];
                // the same seconds with and without the change
                let rollout = Rollout::new(kind, &harm, pods, (kind_number * 1_000_000 + number + 1) as u64);
                let rulings = [judges::sluice(&rollout)?, judges::thresholds(&rollout), judges::kayenta(&rollout)];
                let rulings = rulings.map(judges::Ruling::fields).join(",");
                let (quantile, mean) = (harm.quantile_ratio, harm.mean_ratio);
                rows.push(format!("{},{},{quantile:.3},{mean:.3},{pods},{number},{rulings}", kind.name, change.name()));
                ratios.push(judges::ratios(&rollout));
            }
            if let Some(program) = &options.argo {
                for (row, ruling) in rows.iter_mut().zip(judges::argo(program, &ratios)?) {
                    row.push(',');
                    row.push_str(&ruling.fields());
                }
            }
            for row in &rows {
                samples.add(row);
            }
        }
    }
    let figures = report::report(samples.text())?;
    Ok(Results { name: "verdicts", setting, samples, figures, keep: options.keep.then(results::committed) })
}
