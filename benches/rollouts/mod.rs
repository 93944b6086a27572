//! Bad revisions and good ones, one after the other, on the lab's node under load, everything real.
//!
//! A pool of four pods, each with clients that come and go, and clients that stay and work, inside of it; the database is some
//! milliseconds away. A rollout is judged by what Prometheus scraped, and by a metric of the application's own.
//!
//! - `bad`: ten kinds of change that cannot work, one of them in two ways. Where the API has it in the settings, it is a revision, and the figure waits for what
//!   becomes of it; a password goes into the Secret, which each pod follows by itself; what is fixed when a pod is created reaches
//!   running pods by their restart alone, so a user's only canary is the Deployment's: its pods have a probe that asks the database.
//! - `good`: changes of every other kind in a row, each made as soon as the one before is everywhere.
//!
//! A pod has taken a revision once its agent was told to. Nobody tries anything twice, and every failure is one of its pod. When a
//! pod is back is what its agent said; when a revision failed stands in the operator's log.

mod application;
mod changes;
mod report;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use application::Application;
use changes::{Bad, Expressed, GOOD_SECONDS, SHARE};
use clap::Args;
use serde_json::{Value, json};
use sluice::contract::StatusReport;

use crate::{
    Failure,
    in_pod::{Crowd, InPod, Met},
    losses, machine,
    node::{self, Listener, NAMESPACE, Operator, PASSWORD, Said, kubectl},
    process::wait_for,
    proxy::Proxy,
    results::{self, Results, Samples},
    statistics,
};

/// How late each answer of the database is.
const DATABASE_AWAY: Duration = Duration::from_millis(5);
/// Seconds between two ticks of the operator.
const TICK_SECONDS: u32 = 5;
/// How often agents are asked what they run.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at what became of a change.
const LOOK: Duration = Duration::from_millis(250);
/// Every so many of them one at the pool, which costs the CPU that the load needs.
const LOOKS_OF_ONE: u32 = 10;
/// Longest wait for what becomes of a revision.
const REVISION_WITHIN: Duration = Duration::from_mins(8);
/// Clients fail a little later than what makes them.
const AFTER: Duration = Duration::from_secs(3);
/// Between two changes.
const CALM: Duration = Duration::from_secs(10);
/// How long a pod that was created with something bad is watched, and pods that a Secret came to.
const WATCHED: Duration = Duration::from_secs(20);
/// The clients of an application that prepares by SQL.
const EXECUTORS: u32 = 2;
/// Longest text of a sample.
const WORDS: usize = 240;

/// Options of `rollouts`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Kinds of bad change. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Bad>,
    /// Bad changes of each kind.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// No bad change at all.
    #[arg(long, conflicts_with_all = ["kinds", "rounds"])]
    only_good: bool,
    /// Good revisions in a row, 20 at most.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=20))]
    revisions: u16,
    /// Pods.
    #[arg(long, default_value_t = 4)]
    replicas: u32,
    /// Seconds that a pool runs before anything changes: what the pods are compared by.
    #[arg(long, default_value_t = 60)]
    settle_seconds: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

impl Options {
    fn kinds(&self) -> Vec<Bad> {
        match (self.only_good, self.kinds.as_slice()) {
            (true, _) => Vec::new(),
            (false, []) => Bad::ALL.to_vec(),
            (false, some) => some.to_vec(),
        }
    }

    fn minutes(&self) -> u32 {
        let bad: u32 = self.kinds().iter().map(|kind| kind.seconds()).sum();
        (90 + self.settle_seconds + self.rounds * bad + u32::from(self.revisions) * GOOD_SECONDS).div_ceil(60)
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    eprintln!("this takes about {} minutes", options.minutes());
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let allowed = format!("prometheus.servers.default.allowedNamespaces={{{NAMESPACE}}}");
    let operator = Operator::install(TICK_SECONDS, &[&allowed], scratch.path())?;
    let host = std::env::var("PGHOST")?;
    let proxy = Proxy::start(&host, format!("{host}:5432"));
    proxy.delay(DATABASE_AWAY);
    node::apply(&node::surroundings()?)?;
    let world = World {
        options,
        operator,
        application: Application::start()?,
        host,
        proxy,
        scratch: scratch.path().to_owned(),
    };
    let mut samples = Samples::of(report::COLUMNS);
    let (of_sessions, others): (Vec<Bad>, Vec<Bad>) =
        options.kinds().into_iter().partition(|kind| *kind == Bad::PoolMode);
    if !of_sessions.is_empty() {
        let crowd = Crowd { executors: EXECUTORS, ..Crowd::default() };
        let mut stage = Stage::start(&world, true, crowd)?;
        stage.bad(&of_sessions, &mut samples)?;
        stage.end()?;
    }
    let mut stage = Stage::start(&world, false, Crowd::default())?;
    setting.insert("load".into(), json!(stage.crowd.describe()));
    stage.bad(&others, &mut samples)?;
    stage.good(&mut samples)?;
    drop(stage);
    for (name, value) in [
        ("pods", json!(options.replicas)),
        ("maxAllowed", json!(SHARE * options.replicas)),
        ("tickSeconds", json!(TICK_SECONDS)),
        ("scrapeSeconds", json!(std::env::var("SLUICE_SCRAPE").unwrap_or_else(|_| "15s".to_owned()))),
        ("databaseAnswersLaterByMilliseconds", json!(DATABASE_AWAY.as_millis())),
        ("agentsAreAskedEveryMilliseconds", json!(ASK_EVERY.as_millis())),
    ] {
        setting.insert(name.into(), value);
    }
    Ok(Results {
        name: "rollouts",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

/// What all pools of the figure stand on.
struct World<'a> {
    options: &'a Options,
    operator: Operator,
    application: Application,
    host: String,
    proxy: Proxy,
    scratch: PathBuf,
}

/// What an agent says of revisions.
#[derive(Clone, Debug, PartialEq)]
struct Runs {
    /// The one in force.
    revision: Option<u64>,
    /// The one that it is told to run.
    wanted: Option<u64>,
    /// Whether one process runs.
    is_alone: bool,
    /// Whether something is not in force that should be.
    refuses: bool,
}

impl Runs {
    #[allow(clippy::unnecessary_wraps)] // others keep nothing of some reports
    fn of(report: &StatusReport) -> Option<Self> {
        Some(Self {
            revision: report.revision,
            wanted: report.wanted_revision,
            is_alone: report.other.is_none(),
            refuses: !report.message.is_empty(),
        })
    }

    fn is_back_at(&self, revision: u64) -> bool {
        self.revision == Some(revision) && self.wanted == Some(revision)
    }
}

/// What became of a change.
#[derive(Clone, Debug)]
enum Ending {
    /// It was found bad: when, and by the words of the operator.
    Failed { at: f64, revision: u64, stable: u64, reason: String, why: String },
    /// It is everywhere.
    Promoted { at: f64, revision: u64 },
    /// The operator makes no revision of it.
    NotAccepted { words: String },
    /// Nothing of this, for as long as it was waited for.
    Nothing,
}

/// One row of the samples.
struct Row<'a> {
    part: &'static str,
    kind: &'a str,
    expressed: &'a str,
    round: u32,
    revision: Option<u64>,
    outcome: &'static str,
    caught_by: &'static str,
    /// From the change to the verdict.
    verdict_seconds: f64,
    /// From the verdict until the last pod was back; None where none had to come back.
    back_seconds: Option<f64>,
    words: String,
}

/// A pool with its pods, and the clients in them.
struct Stage<'a> {
    world: &'a World<'a>,
    pool: Value,
    crowd: Crowd,
    clients: Vec<InPod>,
    listener: Listener<Runs>,
}

impl<'a> Stage<'a> {
    fn start(world: &'a World<'a>, is_in_sessions: bool, crowd: Crowd) -> Result<Self, Failure> {
        let replicas = world.options.replicas;
        let database = (world.host.as_str(), world.proxy.address.port());
        let pool = changes::pool(database, replicas, is_in_sessions);
        node::apply(&pool.to_string())?;
        node::apply(&node::deployment(&node::Application {
            name: "shop",
            replicas,
            labels: ", sluice.dev/inject: enabled",
            host: "nowhere.invalid",
            script: "trap exit TERM; sleep 86400 & wait",
            pod_fields: "terminationGracePeriodSeconds: 5, ",
            container_fields: "readinessProbe: {exec: {command: [psql, -qXAtc, SELECT 1]}, periodSeconds: 5, timeoutSeconds: 5}, ",
        }))?;
        kubectl(&format!(
            "patch deployment shop -n {NAMESPACE} --type=merge --patch={{\"spec\":{{\"strategy\":{{\"rollingUpdate\":{{\"maxUnavailable\":0}}}}}}}}"
        ))?;
        node::rolled_out("shop")?;
        node::wait_for_condition("Proven", "True")?;
        let mut clients = Vec::new();
        for (pod, uid) in pods()? {
            clients.push(world.enter(&pod, &uid, &crowd)?);
        }
        let names: Vec<&str> = clients.iter().map(|clients| clients.pod.as_str()).collect();
        let listener = Listener::start(&names, ASK_EVERY, Runs::of)?;
        let stage = Self { world, pool, crowd, clients, listener };
        stage.until_steady()?;
        sleep(Duration::from_secs(world.options.settle_seconds.into()));
        let failed: Vec<String> =
            stage.met()?.into_values().filter(|met| met.failures > 0.0).map(|met| met.kinds).collect();
        if failed.is_empty() {
            Ok(stage)
        } else {
            Err(format!("clients fail before anything has changed: {failed:?}").into())
        }
    }

    /// Pods and pool go, so that another pool can take their place.
    fn end(self) -> Result<(), Failure> {
        self.clients.iter().for_each(|clients| self.world.application.has_not(&clients.pod));
        drop(self);
        kubectl(&format!("delete deployment shop -n {NAMESPACE} --cascade=foreground --timeout=2m"))?;
        kubectl(&format!("delete connectionpool shop -n {NAMESPACE} --timeout=1m"))?;
        Ok(())
    }

    fn bad(&mut self, kinds: &[Bad], samples: &mut Samples) -> Result<(), Failure> {
        for round in 0..self.world.options.rounds {
            for kind in kinds {
                eprintln!("# {}", kind.label());
                match kind.expressed() {
                    Expressed::Revision => self.bad_revision(*kind, round, samples)?,
                    Expressed::Secret => self.bad_secret(*kind, round, samples)?,
                    Expressed::Creation => self.bad_at_creation(*kind, round, samples)?,
                }
                self.until_steady()?;
                sleep(CALM);
            }
        }
        Ok(())
    }

    fn bad_revision(&self, kind: Bad, round: u32, samples: &mut Samples) -> Result<(), Failure> {
        let (before, begin) = (self.met()?, node::unix());
        let mut row = Row {
            part: "bad",
            kind: kind.label(),
            expressed: kind.expressed().label(),
            round,
            revision: None,
            outcome: "NeverInForce",
            caught_by: "admission",
            verdict_seconds: 0.0,
            back_seconds: None,
            words: String::new(),
        };
        match node::apply(&changes::changed(&self.pool, &kind.patch(round)).to_string()) {
            Err(refused) => {
                row.words = refused.to_string();
                row.verdict_seconds = node::unix() - begin;
            }
            Ok(()) => self.judged(begin, &mut row)?,
        }
        sleep(AFTER);
        self.add(&row, begin, &before, samples)?;
        node::apply(&self.pool.to_string())
    }

    /// Waits for what becomes of a bad revision.
    fn judged(&self, begin: f64, row: &mut Row<'_>) -> Result<(), Failure> {
        match self.ending(begin)? {
            Ending::Failed { at, revision, stable, reason, why } => {
                self.until(|runs| runs.is_back_at(stable), "the stable revision is in every pod")?;
                let took = self.took(begin, Some(revision));
                let was_in_force = self.since(begin).any(|said| said.what.revision == Some(revision));
                let last = took.iter().map(|pod| self.back_at(pod, at, stable)).fold(at, f64::max);
                row.caught_by = match (reason.as_str(), was_in_force) {
                    ("AnalysisFailed", _) => "analysis",
                    (_, false) => "proof",
                    ("AnalysisInconclusive", true) => "not proven",
                    (_, true) => "deadline",
                };
                row.outcome = "RolledBack";
                (row.revision, row.verdict_seconds, row.back_seconds) = (Some(revision), at - begin, Some(last - at));
                row.words = format!("{reason}: {why}");
            }
            Ending::Promoted { at, revision } => {
                (row.outcome, row.caught_by) = ("Promoted", "nobody");
                (row.revision, row.verdict_seconds) = (Some(revision), at - begin);
            }
            Ending::NotAccepted { words } => {
                row.caught_by = "validation";
                (row.verdict_seconds, row.words) = (node::unix() - begin, words);
            }
            Ending::Nothing => {
                (row.outcome, row.caught_by) = ("Unnoticed", "nobody");
                (row.verdict_seconds, row.words) = (node::unix() - begin, node::condition("Progressing")?);
            }
        }
        Ok(())
    }

    fn bad_secret(&self, kind: Bad, round: u32, samples: &mut Samples) -> Result<(), Failure> {
        let (before, begin) = (self.met()?, node::unix());
        node::apply(&node::credentials("wrong"))?;
        node::wait_for_condition("Proven", "False/NotApplied")?;
        let (verdict_seconds, words) = (node::unix() - begin, node::condition("Proven")?);
        // each kubelet brings it in its own time
        self.until(|runs| runs.refuses, "the password has come to every pod")?;
        sleep(WATCHED);
        node::apply(&node::credentials(PASSWORD))?;
        node::wait_for_condition("Proven", "True")?;
        self.until(|runs| !runs.refuses, "the password is right in every pod")?;
        sleep(AFTER);
        let row = Row {
            part: "bad",
            kind: kind.label(),
            expressed: kind.expressed().label(),
            round,
            revision: None,
            outcome: "NeverInForce",
            caught_by: "proof",
            verdict_seconds,
            back_seconds: None,
            words,
        };
        self.add(&row, begin, &before, samples)
    }

    /// What the pool's message tells the user to do: restart the pods; and what a Deployment makes of it.
    fn bad_at_creation(&mut self, kind: Bad, round: u32, samples: &mut Samples) -> Result<(), Failure> {
        let (before, begin) = (self.met()?, node::unix());
        node::apply(&changes::changed(&self.pool, &kind.patch(round)).to_string())?;
        node::wait_for_condition("PodsCurrent", "False/RestartRequired")?;
        let told_seconds = node::unix() - begin;
        kubectl(&format!("rollout restart deployment/shop -n {NAMESPACE}"))?;
        let known: Vec<String> = self.clients.iter().map(|clients| clients.pod.clone()).collect();
        let (pod, uid) = wait_for("a pod is created anew", node::WITHIN, || {
            pods().ok()?.into_iter().find(|(pod, _)| !known.contains(pod))
        })?;
        let crowd = self.crowd.clone();
        self.clients.push(self.world.enter(&pod, &uid, &crowd)?);
        sleep(WATCHED);
        let left = pods()?;
        let is_held = known.iter().all(|pod| left.iter().any(|(left, _)| left == pod));
        let words = node::condition("Ready")?;
        node::apply(&self.pool.to_string())?;
        kubectl(&format!("rollout undo deployment/shop -n {NAMESPACE}"))?;
        node::rolled_out("shop")?;
        let row = Row {
            part: "bad",
            kind: kind.label(),
            expressed: kind.expressed().label(),
            round,
            revision: None,
            outcome: if is_held { "HeldByDeployment" } else { "Spread" },
            caught_by: if is_held { "readiness" } else { "nobody" },
            verdict_seconds: told_seconds,
            back_seconds: None,
            words,
        };
        self.add(&row, begin, &before, samples)?;
        // it is about to end, and so are its clients
        self.world.application.has_not(&pod);
        self.clients.pop();
        wait_for("the new pod has gone", node::WITHIN, || {
            sleep(LOOK);
            let pods = pods().ok()?;
            pods.iter().all(|(left, _)| *left != pod).then_some(())
        })?;
        node::wait_for_condition("PodsCurrent", "True")
    }

    fn good(&mut self, samples: &mut Samples) -> Result<(), Failure> {
        for (kind, how, patch) in changes::good().into_iter().take(self.world.options.revisions.into()) {
            let (before, begin) = (self.met()?, node::unix());
            self.pool = changes::changed(&self.pool, &patch);
            node::apply(&self.pool.to_string())?;
            let mut row = Row {
                part: "good",
                kind: &format!("{kind} ({how})"),
                expressed: "revision",
                round: 0,
                revision: None,
                outcome: "Promoted",
                caught_by: "nobody",
                verdict_seconds: 0.0,
                back_seconds: None,
                words: String::new(),
            };
            match self.ending(begin)? {
                Ending::Promoted { at, revision } => {
                    (row.revision, row.verdict_seconds) = (Some(revision), at - begin);
                }
                Ending::Failed { at, revision, reason, why, .. } => {
                    (row.outcome, row.revision, row.verdict_seconds) = ("RolledBack", Some(revision), at - begin);
                    row.words = format!("{reason}: {why}");
                }
                Ending::NotAccepted { words } => (row.outcome, row.words) = ("NotAccepted", words),
                Ending::Nothing => (row.outcome, row.words) = ("Unnoticed", node::condition("Progressing")?),
            }
            sleep(AFTER);
            self.add(&row, begin, &before, samples)?;
        }
        Ok(())
    }

    /// Waits for what becomes of a change that was made then.
    fn ending(&self, begin: f64) -> Result<Ending, Failure> {
        let (deadline, mut looks) = (Instant::now() + REVISION_WITHIN, 0);
        while Instant::now() < deadline {
            if let Some((at, line)) = self.logged("a revision failed", begin)? {
                let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
                return Ok(Ending::Failed {
                    at,
                    revision: number(&line, "from")?,
                    stable: number(&line, "to")?,
                    reason: text("reason"),
                    why: text("why"),
                });
            }
            if let Some((at, line)) = self.logged("a revision was promoted", begin)? {
                return Ok(Ending::Promoted { at, revision: number(&line, "to")? });
            }
            looks += 1;
            if looks % LOOKS_OF_ONE == 0 {
                let words = node::condition("Accepted")?;
                if words.starts_with("False") {
                    return Ok(Ending::NotAccepted { words });
                }
            }
            sleep(LOOK);
        }
        Ok(Ending::Nothing)
    }

    /// The first line of the operator's log with this message since then.
    fn logged(&self, message: &str, since: f64) -> Result<Option<(f64, Value)>, Failure> {
        let own = format!("{NAMESPACE}/shop");
        for line in self.world.operator.logged(message)?.into_iter().filter(|line| line["pool"] == own.as_str()) {
            let at = node::unix_of(&line["timestamp"])?;
            if at >= since {
                return Ok(Some((at, line)));
            }
        }
        Ok(None)
    }

    fn since(&self, begin: f64) -> impl Iterator<Item = Said<Runs>> {
        self.listener.said().into_iter().filter(move |said| said.at >= begin)
    }

    /// The pods that were told to run a revision since then.
    fn took(&self, begin: f64, revision: Option<u64>) -> Vec<String> {
        let mut took: Vec<String> = match revision {
            Some(_) => self.since(begin).filter(|said| said.what.wanted == revision).map(|said| said.pod).collect(),
            None => Vec::new(),
        };
        took.sort_unstable();
        took.dedup();
        took
    }

    /// When a pod said first that it is back, after a verdict.
    fn back_at(&self, pod: &str, verdict: f64, stable: u64) -> f64 {
        let mut back = self.since(verdict).filter(|said| said.pod == pod && said.what.is_back_at(stable));
        back.next().map_or(verdict, |said| said.at)
    }

    /// Waits until the agents of all pods say this.
    fn until(&self, wanted: impl Fn(&Runs) -> bool, what: &str) -> Result<(), Failure> {
        wait_for(what, node::WITHIN, || {
            let latest = self.listener.latest();
            let all = latest.values().filter(|said| wanted(&said.what)).count();
            (all == usize::try_from(self.world.options.replicas).ok()?).then_some(())
        })
        .map_err(|error| format!("{error}; {:?}", self.listener.latest()).into())
    }

    /// Waits until every pod runs the stable revision, in one process, and nothing is rolled out.
    fn until_steady(&self) -> Result<(), Failure> {
        // the way back from a bad revision that was promoted is a rollout too
        wait_for("nothing is rolled out", REVISION_WITHIN, || {
            sleep(LOOK);
            node::condition("Progressing").ok().filter(|seen| seen.starts_with("True/RolloutComplete")).map(drop)
        })?;
        node::wait_for_condition("Proven", "True")?;
        self.until(
            |runs| runs.is_alone && !runs.refuses && runs.revision.is_some() && runs.revision == runs.wanted,
            "one process runs in every pod",
        )
    }

    /// What the clients of each pod have met so far.
    fn met(&self) -> Result<BTreeMap<String, Met>, Failure> {
        self.clients.iter().map(|clients| Ok((clients.pod.clone(), clients.met()?))).collect()
    }

    /// Adds a row, with what clients have met since the change.
    fn add(
        &self,
        row: &Row<'_>,
        begin: f64,
        before: &BTreeMap<String, Met>,
        samples: &mut Samples,
    ) -> Result<(), Failure> {
        let took = self.took(begin, row.revision);
        let (mut on_canary, mut elsewhere, mut connections, mut queries) = (0.0, 0.0, 0.0, 0.0);
        let mut which = BTreeMap::new();
        for (pod, after) in self.met()? {
            let met = after.since(before.get(&pod));
            // who was not there before was created with it
            let is_canary = took.contains(&pod) || !before.contains_key(&pod);
            *if is_canary { &mut on_canary } else { &mut elsewhere } += met.failures;
            (connections, queries) = (connections + met.connections, queries + met.queries);
            for (kind, count) in met.by_kind() {
                *which.entry(format!("{kind}{}", if is_canary { "" } else { " elsewhere" })).or_insert(0) += count;
            }
        }
        let created = self.clients.iter().filter(|clients| !before.contains_key(&clients.pod)).count();
        let which: Vec<String> = which.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        let Row { part, kind, expressed, round, outcome, caught_by, verdict_seconds, .. } = row;
        samples.add(&format!(
            "{part},{kind},{expressed},{round},{},{outcome},{caught_by},{verdict_seconds:.1},{},{},{},{elsewhere:.0},{on_canary:.0},{connections:.0},{queries:.0},{},{}",
            row.revision.map_or_else(|| "-".to_owned(), |number| number.to_string()),
            row.back_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}")),
            self.clients.len(),
            took.len() + created,
            plain(&which.join(" ")),
            plain(&row.words),
        ));
        Ok(())
    }
}

impl World<'_> {
    fn enter(&self, pod: &str, uid: &str, crowd: &Crowd) -> Result<InPod, Failure> {
        let clients = InPod::enter(pod, uid, crowd, &self.scratch)?;
        self.application.has(pod, clients.told());
        Ok(clients)
    }
}

/// Name and uid of the pods that are not about to end.
fn pods() -> Result<Vec<(String, String)>, Failure> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = node::pods("app=shop")?.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]))).collect())
}

fn number(line: &Value, field: &str) -> Result<u64, Failure> {
    line[field].as_u64().ok_or_else(|| format!("no {field} in {line}").into())
}

/// A text as a field of a sample, and as a cell of a table.
fn plain(text: &str) -> String {
    let plain: String = text.chars().map(|c| if matches!(c, ',' | '|' | '\n' | '\r') { ';' } else { c }).collect();
    plain.chars().take(WORDS).collect()
}
