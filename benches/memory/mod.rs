//! Resident memory of the operator, with many pools and with many pods.
//!
//! The API server and Prometheus are real, the pods are objects without a kubelet: created as the webhook would have made
//! them, their status written, and their agents played by [`fleet`], which answers `/status` at every pod's address with
//! what its annotations say and hands out metrics of a load that comes and goes. The operator is the optimised binary of
//! the image; its memory is read from `/proc` once a second, from its start on.

mod report;

use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use crate::{
    Failure, cluster,
    fleet::{self, Fleet, Tenant, Waves, WavesOf},
    machine,
    process::{Process, lab_program, product_program, wait_for},
    results::{self, Results, Samples},
    statistics,
};

const NAMESPACE: &str = "fleet";
const SYSTEM: &str = "sluice-system";
const PROMETHEUS: &str = "127.0.0.1:9091";

/// Every load comes and goes in five minutes.
const WAVES: Waves = Waves { of: WavesOf::Pools, period: Duration::from_mins(5) };

/// Options of `memory`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Pools and pods of each, as POOLSxPODS.
    #[arg(long, value_delimiter = ',', default_values = ["10x100", "1000x10"])]
    sizes: Vec<String>,
    /// Seconds of work after every pod has its share.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Seconds within which every pod must have its share.
    #[arg(long, default_value_t = 1500)]
    grant_seconds: u64,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let scratch = tempfile::tempdir()?;
    install(scratch.path())?;
    let mut samples = Samples::of("pools,pods_per_pool,seconds,resident_kib,peak_kib,pods_with_share");
    for size in &options.sizes {
        let (pools, pods) = size.split_once('x').ok_or_else(|| format!("--sizes: {size:?} is not POOLSxPODS"))?;
        let (pools, pods) = (pools.parse()?, pods.parse()?);
        let tenant = Tenant { namespace: NAMESPACE, pools, spec: json!({}), one_moves_of: 1 };
        let fleet = runtime.block_on(Fleet::start(vec![tenant], pods, WAVES))?;
        one_size(options, scratch.path(), &fleet, (pools, pods), &mut samples)?;
        runtime.block_on(fleet.delete())?;
    }
    setting.insert("tickSeconds".into(), json!(15));
    setting.insert("scrapeSeconds".into(), json!(15));
    setting.insert("secondsAfterAllPodsHaveTheirShare".into(), json!(options.seconds));
    Ok(Results {
        name: "memory",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

/// The definitions, the namespaces, and the configuration of both Prometheus and the operator.
fn install(scratch: &Path) -> Result<(), Failure> {
    cluster::define(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    for namespace in [NAMESPACE, SYSTEM] {
        cluster::create_namespace(namespace)?;
    }
    let scrape = json!({
        "global": {"scrape_interval": "15s", "scrape_timeout": "14s"},
        "scrape_configs": [{
            "job_name": "fleet", "honor_labels": true, "static_configs": [{"targets": [fleet::METRICS_ADDRESS]}],
        }],
    });
    fs::write(scratch.join("prometheus.yaml"), serde_yaml::to_string(&scrape)?)?;
    let servers = json!({"servers": {"default": {"url": format!("http://{PROMETHEUS}")}}});
    fs::write(scratch.join("servers.yaml"), serde_yaml::to_string(&servers)?)?;
    Ok(())
}

fn one_size(
    options: &Options,
    scratch: &Path,
    fleet: &Arc<Fleet>,
    (pools, pods): (usize, usize),
    samples: &mut Samples,
) -> Result<(), Failure> {
    let data = scratch.join(format!("prometheus-{pools}x{pods}"));
    let _prometheus = Process::start(
        Command::new(lab_program("prometheus")?)
            .arg(format!("--config.file={}", scratch.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={PROMETHEUS}")),
        &scratch.join("prometheus.log"),
    )?;
    wait_for("the first scrape", Duration::from_mins(2), || (fleet.scrapes() > 0).then_some(()))?;
    let log = scratch.join("operator.log");
    let operator = Process::start(
        Command::new(product_program("sluice")?)
            .args([
                "operator",
                "--namespace",
                SYSTEM,
                "--http-bind",
                "127.0.0.1:8081",
                "--webhook-bind",
                "127.0.0.1:9443",
            ])
            .arg("--prometheus-config")
            .arg(scratch.join("servers.yaml")),
        &log,
    )?;
    let (begin, mut all_since) = (Instant::now(), None);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let with_share = fleet.pods_with_share();
        let status = fs::read_to_string(format!("/proc/{}/status", operator.pid()))
            .map_err(|_| format!("the operator has ended: {}", last_lines(&log)))?;
        let kibibytes = |name: &str| -> Result<u64, Failure> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("the operator has ended")?;
            Ok(line.split_whitespace().next().ok_or("no figure in /proc/PID/status")?.parse()?)
        };
        let (resident, peak, at) = (kibibytes("VmRSS:")?, kibibytes("VmHWM:")?, begin.elapsed().as_secs());
        samples.add(&format!("{pools},{pods},{at},{resident},{peak},{with_share}"));
        if with_share == pools * pods {
            let since = *all_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= Duration::from_secs(options.seconds) {
                return Ok(());
            }
        } else if all_since.is_none() && at > options.grant_seconds {
            return Err(format!(
                "{with_share} of {} pods have a share after {at} s: {}",
                pools * pods,
                last_lines(&log)
            )
            .into());
        }
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
