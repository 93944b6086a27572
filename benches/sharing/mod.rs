//! Two pods of one pool, load 9 : 1: how many ticks until the busy one has its share; and what is left of the shares when
//! Prometheus is gone.
//!
//! The chart on the lab's node, PgBouncer, PostgreSQL and Prometheus real. A round begins with two new pods that have the same;
//! then the load comes (`load`), and after a while it changes sides (`turn`). The load's first sample is the first that
//! Prometheus has of its peak; ticks are counted by the operator's log from there. What a tick achieved is what the agents say
//! before the next one begins. At last Prometheus is stopped (`dark`).

mod report;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};
use sluice::contract::metrics;

use crate::{
    Failure, machine,
    node::{self, Listener, NAMESPACE, Operator, Said, Sizes, kubectl},
    process::{lab_program, output, wait_for},
    results::{self, Results, Samples},
    statistics,
};

const PODS: [&str; 2] = ["shop-0", "shop-1"];
const MAX_ALLOWED: u32 = 20;
/// How often agents are asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Ticks of a round that are kept.
const TICKS_OF_A_ROUND: usize = 3;

/// Options of `sharing`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Rounds.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Clients of the busy pod, and of the other one.
    #[arg(long, value_delimiter = ',', default_values_t = [9, 1])]
    clients: Vec<u32>,
    /// Seconds between two ticks.
    #[arg(long, default_value_t = 15)]
    tick_seconds: u32,
    /// Ticks after Prometheus has been stopped.
    #[arg(long, default_value_t = 10)]
    dark_ticks: usize,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let &[many, few] = options.clients.as_slice() else { return Err("--clients: give two numbers".into()) };
    let scratch = tempfile::tempdir()?;
    let bench = Bench::start(options, scratch.path())?;
    let mut samples = Samples::of("part,round,tick,tick_unix,busy_share,other_share,scaling_active");
    let mut listener = bench.new_pods()?;
    for round in 0..options.rounds {
        if round > 0 {
            listener = bench.new_pods()?;
        }
        let [one, other] = PODS;
        bench.load(&listener, ("load", round), [(one, many), (other, few)], &mut samples)?;
        bench.load(&listener, ("turn", round), [(other, many), (one, few)], &mut samples)?;
    }
    bench.in_the_dark(&listener, options, &mut samples)?;
    setting.insert("tickSeconds".into(), json!(options.tick_seconds));
    setting.insert("scrapeSeconds".into(), json!(std::env::var("SLUICE_SCRAPE").unwrap_or_else(|_| "15s".to_owned())));
    setting.insert("maxAllowed".into(), json!(MAX_ALLOWED));
    setting.insert("load".into(), json!(format!("pgbench, {many} and {few} clients, transactions of 50 ms")));
    Ok(Results {
        name: "sharing",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

struct Bench {
    operator: Operator,
}

impl Bench {
    fn start(options: &Options, scratch: &Path) -> Result<Self, Failure> {
        let operator = Operator::install(options.tick_seconds, &[], scratch)?;
        node::apply(&node::pool(&format!("  scaling: {{minAllowed: 2, maxAllowed: {MAX_ALLOWED}}}\n"))?)?;
        Ok(Self { operator })
    }

    /// Two pods without load, and with the same share.
    fn new_pods(&self) -> Result<Listener<Sizes>, Failure> {
        kubectl(&format!("delete pods --all -n {NAMESPACE} --wait=true"))?;
        // what the file says is read every two seconds
        let script = "while :; do\nif [ -s /tmp/clients ]\nthen pgbench -n -c $(cat /tmp/clients) -T 2 -f $transactions > /dev/null 2>&1 || sleep 0.2\nelse sleep 0.2\nfi\ndone";
        node::apply(&PODS.map(|pod| node::pod(pod, script)).concat())?;
        kubectl(&format!("wait --for=condition=Ready pods --all -n {NAMESPACE} --timeout=2m"))?;
        node::wait_for_condition("Proven", "True")?;
        let listener = Listener::start(&PODS, ASK_EVERY, Sizes::of)?;
        wait_for("the pods have the same", node::WITHIN, || {
            let shares: Vec<u32> = listener.latest().values().map(|said| said.what.share).collect();
            let same = shares.len() == PODS.len() && shares.iter().all(|share| share.abs_diff(shares[0]) <= 1);
            (same && shares[0] > 1).then_some(())
        })?;
        // so that a tick has seen them without load
        let ticks = self.operator.ticks()?.len();
        wait_for("two ticks", node::WITHIN, || (self.operator.ticks().ok()?.len() >= ticks + 2).then_some(()))?;
        node::wait_for_condition("ScalingActive", "True")?;
        Ok(listener)
    }

    fn load(
        &self,
        listener: &Listener<Sizes>,
        (part, round): (&str, usize),
        clients: [(&str, u32); 2],
        samples: &mut Samples,
    ) -> Result<(), Failure> {
        let begin = node::unix();
        for (pod, clients) in clients {
            output(
                Command::new(lab_program("kubectl")?)
                    .args(["exec", "-n", NAMESPACE, pod, "-c", "app", "--", "sh", "-c"])
                    .arg(format!("echo {clients} > /tmp/clients")),
            )?;
        }
        let [(busy, many), (other, _)] = clients;
        let first = wait_for("a sample of the load", node::WITHIN, || {
            first_sample(busy, begin, f64::from(many) / 2.0).ok().flatten()
        })?;
        let ticks = wait_for("the ticks of a round", node::WITHIN, || {
            let ticks: Vec<f64> = self.operator.ticks().ok()?.into_iter().filter(|tick| *tick > first).collect();
            (ticks.len() > TICKS_OF_A_ROUND).then_some(ticks)
        })?;
        for (number, pair) in ticks.windows(2).take(TICKS_OF_A_ROUND).enumerate() {
            let (busy, other) = shares(listener, pair[1], busy, other)?;
            samples.add(&format!("{part},{round},{},{:.3},{busy},{other},True", number + 1, pair[0]));
        }
        Ok(())
    }

    /// Prometheus ends; ticks go on.
    fn in_the_dark(&self, listener: &Listener<Sizes>, options: &Options, samples: &mut Samples) -> Result<(), Failure> {
        node::stop("prometheus")?;
        let stopped = node::unix();
        let (mut seen, deadline) = (0, Instant::now() + Duration::from_mins(15));
        while seen < options.dark_ticks {
            if Instant::now() > deadline {
                return Err(format!("only {seen} ticks after Prometheus was stopped").into());
            }
            sleep(Duration::from_secs(1));
            let ticks: Vec<f64> = self.operator.ticks()?.into_iter().filter(|tick| *tick > stopped).collect();
            // a tick is over when the next one has begun
            while seen + 1 < ticks.len() && seen < options.dark_ticks {
                let active = node::condition("ScalingActive")?;
                let active = active.split(':').next().unwrap_or_default();
                let (busy, other) = shares(listener, ticks[seen + 1], PODS[1], PODS[0])?;
                samples.add(&format!("dark,0,{},{:.3},{busy},{other},{active}", seen + 1, ticks[seen]));
                seen += 1;
            }
        }
        Ok(())
    }
}

/// The shares in force of two pods at a time.
fn shares(listener: &Listener<Sizes>, at: f64, busy: &str, other: &str) -> Result<(u32, u32), Failure> {
    let before = listener.said().into_iter().filter(|said| said.at < at);
    let shares: BTreeMap<String, u32> = before.map(|Said { pod, what, .. }| (pod, what.share)).collect();
    let share = |pod: &str| shares.get(pod).copied().ok_or("an agent has said nothing");
    Ok((share(busy)?, share(other)?))
}

/// When Prometheus scraped the first sample of a pod with this much demand, after `begin`.
fn first_sample(pod: &str, begin: f64, demand: f64) -> Result<Option<f64>, Failure> {
    let query = format!("{}{{namespace=\"{NAMESPACE}\",pod=\"{pod}\",window=\"5s\"}}[10m]", metrics::DEMAND_PEAK);
    let prometheus = std::env::var("SLUICE_LAB_PROMETHEUS")?;
    let url = format!("{prometheus}/api/v1/query");
    let answer =
        output(Command::new("curl").args(["-sfG", "-m", "5", &url, "--data-urlencode"]).arg(format!("query={query}")))?;
    let answer: Value = serde_json::from_str(&answer)?;
    let values = answer["data"]["result"].as_array().into_iter().flatten();
    let values = values.flat_map(|series| series["values"].as_array().cloned().unwrap_or_default());
    let mut times: Vec<f64> = values
        .filter_map(|point| Some((point[0].as_f64()?, point[1].as_str()?.parse::<f64>().ok()?)))
        .filter(|(at, value)| *at > begin && *value >= demand)
        .map(|(at, _)| at)
        .collect();
    times.sort_by(f64::total_cmp);
    Ok(times.first().copied())
}
