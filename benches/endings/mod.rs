//! Connections lost while pods are replaced, on the lab's node, everything real.
//!
//! - `sidecar`: a Deployment of three, each with an application that works all the time (`application.sh`), a `preStop` delay and a
//!   sidecar, is restarted; surge and termination as Kubernetes has them by default.
//! - `gateway`: two applications in pods of their own work through a gateway of two poolers, whose Deployment is restarted.
//!
//! Applications try nothing twice and end in good order; what they met is read from the files that they leave. A failure counts
//! as one of the pooler's unless the database has words of its own for it.

mod report;
mod tally;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use tally::Tally;

use crate::{
    Failure, machine,
    node::{self, Application, NAMESPACE, Operator, ROLE, kubectl},
    process::{lab_program, output, wait_for},
    results::{self, Results, Samples},
    statistics,
};

/// What the applications run.
const APPLICATION: &str = include_str!("application.sh");
/// Of the application that is replaced.
const REPLICAS: u32 = 3;
/// Poolers of the gateway.
const POOLERS: u32 = 2;
/// Applications that work through the gateway.
const CLIENTS: u32 = 2;
/// How long the application serves on after it was told to end.
const PRE_STOP_SECONDS: u32 = 3;
/// Before a part and after each update, so that each meets pods that work.
const PAUSE: Duration = Duration::from_secs(4);

/// Between two looks at the pods.
const LOOK: Duration = Duration::from_millis(500);

/// Options of `endings`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Rolling updates of each.
    #[arg(long, default_value_t = 5)]
    updates: u32,
    /// Seconds between two ticks of the operator.
    #[arg(long, default_value_t = 15)]
    tick_seconds: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let _operator = Operator::install(options.tick_seconds, &["gateway.enabled=true"], scratch.path())?;
    let run_dir = PathBuf::from(std::env::var("SLUICE_LAB_RUN")?);
    node::apply(&node::pool("  scaling: {minAllowed: 2, maxAllowed: 20}\n")?)?;
    output(Command::new(lab_program("psql")?).args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-d", ROLE]).args([
        "-c",
        "CREATE TABLE done (at timestamptz DEFAULT clock_timestamp())",
        "-c",
        "GRANT ALL ON done TO PUBLIC",
    ]))?;
    let mut samples = Samples::of(
        "part,update,seconds,elapsed_seconds,ended,connections,queries,transactions,failures,of_pooler_origin,killed,kinds",
    );
    let sidecar = Part { name: "sidecar", tally: directory(&run_dir, "sidecar")?, restarted: "shop", pods: "app=shop" };
    node::apply(&application("shop", REPLICAS, &sidecar.tally, true, "nowhere.invalid"))?;
    node::rolled_out("shop")?;
    node::wait_for_condition("Proven", "True")?;
    sidecar.measure(options.updates, &mut samples)?;
    kubectl(&format!("delete deployment shop -n {NAMESPACE} --wait=true"))?;

    node::apply(&gateway()?)?;
    kubectl(&format!("wait connectionpool/shared -n {NAMESPACE} --for=condition=GatewayAvailable --timeout=3m"))?;
    node::rolled_out("shared-gateway")?;
    let gateway = Part {
        name: "gateway",
        tally: directory(&run_dir, "gateway")?,
        restarted: "shared-gateway",
        pods: "app.kubernetes.io/component=gateway",
    };
    node::apply(&application("client", CLIENTS, &gateway.tally, false, "shared-gateway"))?;
    node::rolled_out("client")?;
    gateway.measure(options.updates, &mut samples)?;

    setting.insert("tickSeconds".into(), json!(options.tick_seconds));
    setting.insert("maxAllowed".into(), json!(20));
    setting.insert("preStopSeconds".into(), json!(PRE_STOP_SECONDS));
    setting.insert(
        "load".into(),
        json!(format!(
            "in each of {REPLICAS} pods with a sidecar, and in {CLIENTS} before the gateway of {POOLERS}: 2 clients that ask once per connection and pause 0.1 s, 2 whose connections live 3 s, 1 with transactions of 2 s; psql"
        )),
    );
    Ok(Results {
        name: "endings",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

/// A directory that applications can write to.
fn directory(run_dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    let directory = run_dir.join("tally").join(name);
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
    Ok(directory)
}

/// Names of the pods with a label.
fn names(label: &str) -> Result<BTreeSet<String>, Failure> {
    let pods = node::pods(label)?.into_iter();
    Ok(pods.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

struct Part {
    name: &'static str,
    tally: PathBuf,
    /// The Deployment that is restarted.
    restarted: &'static str,
    /// The label of its pods.
    pods: &'static str,
}

impl Part {
    fn measure(&self, updates: u32, samples: &mut Samples) -> Result<(), Failure> {
        wait_for("the applications work", node::WITHIN, || {
            sleep(LOOK);
            let tally = Tally::read(&self.tally).ok()?;
            (tally.transactions() >= 3).then_some(())
        })?;
        sleep(PAUSE);
        let part_began = Instant::now();
        let mut ended = 0;
        for update in 0..updates {
            let before = names(self.pods)?;
            let began = Instant::now();
            kubectl(&format!("rollout restart deployment/{} -n {NAMESPACE}", self.restarted))?;
            node::rolled_out(self.restarted)?;
            wait_for("the old pods have ended", node::WITHIN, || {
                // asking costs the CPU that the load needs
                sleep(LOOK);
                names(self.pods).ok().filter(|now| now.is_disjoint(&before)).map(drop)
            })?;
            let seconds = began.elapsed().as_secs_f64();
            ended += before.len();
            sleep(PAUSE);
            let tally = Tally::read(&self.tally)?;
            // of the gateway's part, nobody's application ends
            let running = names("application=works")?;
            let killed = tally.begun.difference(&tally.ended).filter(|pod| !running.contains(*pod)).count();
            let kinds: Vec<String> = tally.kinds().iter().map(|(kind, count)| format!("{kind}={count}")).collect();
            samples.add(&format!(
                "{},{update},{seconds:.1},{:.1},{ended},{},{},{},{},{},{killed},{}",
                self.name,
                part_began.elapsed().as_secs_f64(),
                tally.connections(),
                tally.queries(),
                tally.transactions(),
                tally.lost.len(),
                tally.of_pooler_origin(),
                kinds.join(" ")
            ));
        }
        Ok(())
    }
}

/// The pool of the gateway, on the database of the other one.
fn gateway() -> Result<String, Failure> {
    let host = std::env::var("PGHOST")?;
    Ok(format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: shared, namespace: {NAMESPACE}}}\nspec:\n  \
         topology: Gateway\n  gateway: {{replicas: {POOLERS}}}\n  \
         upstream: {{host: {host}, database: {ROLE}, credentialsRef: {{name: shop-db}}, tls: {{mode: Disabled}}}}\n  \
         scaling: {{minAllowed: 2, maxAllowed: 20}}\n"
    ))
}

/// A Deployment of the application, whose pods have a sidecar or not.
fn application(name: &str, replicas: u32, tally: &Path, has_sidecar: bool, host: &str) -> String {
    let injected = if has_sidecar { ", sluice.dev/inject: enabled" } else { "" };
    let volume = format!(
        "terminationGracePeriodSeconds: 40, volumes: [{{name: tally, hostPath: {{path: {}, type: Directory}}}}], ",
        tally.display()
    );
    node::deployment(&Application {
        name,
        replicas,
        labels: &format!(", application: works{injected}"),
        host,
        script: APPLICATION,
        pod_fields: &volume,
        container_fields: &format!(
            "volumeMounts: [{{name: tally, mountPath: /tally}}], lifecycle: {{preStop: {{sleep: {{seconds: {PRE_STOP_SECONDS}}}}}}}, "
        ),
    })
}
