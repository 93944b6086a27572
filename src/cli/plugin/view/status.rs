//! `status`: a pool as a tree of its revisions and their pods, each with what is wanted, granted, set and read back.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use serde::Serialize;

use super::{
    NotRead,
    document::{PoolDocument, said},
    get::mode,
    in_course::RolloutInCourse,
    table::{ABSENT, TextTable, cell},
    time::{age, span},
};
use crate::{
    api::{ConnectionPoolStatus, conditions},
    contract::{
        Document, GrantDocument, OtherRole, OtherSlot, PodGrant, RevisionDocument, SlotStatus, Stamp, StatusReport,
        names, unknown_to,
    },
    decide::{freeze::Frozen, outage},
    inject::injection_of,
};

/// Conditions that are good while they are False.
const GOOD_WHEN_FALSE: [&str; 3] = [conditions::SCALING_LIMITED, conditions::LEAK_DETECTED, conditions::PAUSED];
/// The columns; what they mean stands in docs/kubectl-sluice.md.
const HEADERS: [&str; 10] =
    ["NAME", "REVISION", "WANTED", "GRANTED", "SET", "READ BACK", "HELD", "WAITING", "AGE", "STATE"];

/// What the agent of a pod said when the plugin asked it.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentSays {
    /// This.
    Report(Box<StatusReport>),
    /// Nothing, and why.
    Nothing(String),
}

impl AgentSays {
    fn report(&self) -> Option<&StatusReport> {
        match self {
            Self::Report(report) => Some(report),
            Self::Nothing(_) => None,
        }
    }
}

/// A pool, its revisions and their pods: what is shown, and what `-o json` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolTree {
    /// Namespace of the pool.
    pub namespace: String,
    /// Name of the pool.
    pub name: String,
    /// Its status, as the operator wrote it last.
    pub status: ConnectionPoolStatus,
    /// The revisions that a pod is to run, or that new pods get, the newest first.
    pub revisions: Vec<RevisionBranch>,
    /// Whether its pods could be listed.
    pub pods_are_known: bool,
    /// What could not be read, in sentences.
    pub not_read: Vec<String>,
}

/// A revision and the pods that are to run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionBranch {
    /// Its number; none for pods that have not been told any.
    pub revision: Option<u64>,
    /// Whether new pods get it.
    pub is_stable: bool,
    /// Whether it is the newest one.
    pub is_updated: bool,
    /// The pods that are to run it.
    pub pods: Vec<PodBranch>,
}

/// A pod. Figures are server connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodBranch {
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// The revision that it is to run, by its annotation.
    pub wanted_revision: Option<u64>,
    /// The revision that its pooler runs, read back.
    pub revision: Option<u64>,
    /// The process beside the one that new clients come to.
    pub other: Option<OtherSlot>,
    /// What it may open from now on: the share of its annotation.
    pub wanted: Option<u32>,
    /// What is counted for it: more than `wanted` while a shrink is not proven.
    pub granted: Option<u32>,
    /// The share that its agent has put into force.
    pub set: Option<u32>,
    /// The limit that its pooler works with, read back from its console.
    pub read_back: Option<u32>,
    /// Server connections open.
    pub held: Option<u32>,
    /// Clients that wait for one.
    pub waiting: Option<u32>,
    /// How it stands, in words.
    pub state: String,
}

/// What a tree is made of.
pub struct TreeInput<'a> {
    /// The pool.
    pub document: &'a PoolDocument,
    /// Its pods.
    pub pods: Result<&'a [Pod], &'a NotRead>,
    /// What their agents said, by name of the pod. Whoever is missing was not asked.
    pub agents: &'a BTreeMap<String, AgentSays>,
    /// What else could not be read.
    pub not_read: Vec<String>,
}

impl PoolTree {
    /// The tree of a pool.
    pub fn new(input: TreeInput) -> Self {
        let TreeInput { document, pods, agents, mut not_read } = input;
        let key = document.key();
        let status = document.status();
        let pods_are_known = pods.is_ok();
        let pods = pods.unwrap_or_else(|NotRead { words, .. }| {
            not_read.push(words.clone());
            &[]
        });
        let mut branches: BTreeMap<Option<u64>, Vec<PodBranch>> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| is_of(pod, &key.name)) {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let branch = PodBranch::new(pod, &key.name, agents.get(name));
            branches.entry(branch.wanted_revision).or_default().push(branch);
        }
        let (stable, updated) = status.revision.as_ref().map_or((None, None), |r| (Some(r.stable), Some(r.updated)));
        let numbers: BTreeSet<Option<u64>> =
            branches.keys().copied().chain([stable, updated].into_iter().flatten().map(Some)).collect();
        let revisions = numbers.into_iter().rev().map(|revision| {
            let mut pods = branches.remove(&revision).unwrap_or_default();
            pods.sort_by(|a, b| a.name.cmp(&b.name));
            let (is_stable, is_updated) = (revision.is_some() && revision == stable, revision == updated);
            RevisionBranch { revision, is_stable, is_updated: revision.is_some() && is_updated, pods }
        });
        not_read.extend(document.skew());
        Self {
            namespace: key.namespace,
            name: key.name,
            revisions: revisions.collect(),
            status,
            pods_are_known,
            not_read,
        }
    }

    fn pods(&self) -> impl Iterator<Item = &PodBranch> + Clone {
        self.revisions.iter().flat_map(|revision| &revision.pods)
    }

    /// The tree as text.
    pub fn text(&self, document: &PoolDocument, now: Timestamp) -> String {
        let mut parts = vec![heading(document, now), self.table(document, now).text(), self.conditions(document, now)];
        let without = self.status.pods.map_or(0, |pods| pods.matched.saturating_sub(pods.injected));
        if without > 0 {
            parts.push(format!("{without} more pods that the selector matches have no sidecar: see Injected\n"));
        }
        parts.extend(self.not_read.iter().map(|words| format!("{words}\n")));
        parts.retain(|part| !part.is_empty());
        parts.join("\n")
    }

    fn table(&self, document: &PoolDocument, now: Timestamp) -> TextTable {
        let mut table = TextTable::new(&HEADERS);
        let created = document.pool.metadata.creation_timestamp.as_ref().map(|created| created.0);
        let state = document.condition(conditions::READY);
        let state = state.map(|ready| format!("Ready={}/{}", ready.status, ready.reason));
        let of_pool = sums(&self.pods(), created, now);
        table.push([vec![self.name.clone(), ABSENT.to_owned()], of_pool, vec![cell(state)]].concat());
        for (at, revision) in self.revisions.iter().enumerate() {
            let is_last = at + 1 == self.revisions.len();
            let (branch, below) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let name = format!("{branch}{}", revision.name());
            let of_revision = sums(&revision.pods.iter(), None, now);
            let number = cell(revision.revision);
            let state = if self.pods_are_known { revision.state() } else { ABSENT.to_owned() };
            table.push([vec![name, number], of_revision, vec![state]].concat());
            for (at, pod) in revision.pods.iter().enumerate() {
                let branch = if at + 1 == revision.pods.len() { "└─ " } else { "├─ " };
                table.push(pod.row(&format!("{below}{branch}"), now));
            }
        }
        table
    }

    /// The conditions: a rollout that is not through and those that are not as they should be with their message, the others by name.
    fn conditions(&self, document: &PoolDocument, now: Timestamp) -> String {
        let good = |type_: &str| if GOOD_WHEN_FALSE.contains(&type_) { "False" } else { "True" };
        let in_course = RolloutInCourse::of(document, now);
        let (mut bad, mut unknown, mut calm) = (Vec::new(), Vec::new(), Vec::new());
        bad.extend(in_course.iter().map(|rollout| rollout.lines().join("\n") + "\n"));
        // that it is ready, or why not, is said first of all
        let is_said =
            |type_: &str| type_ == conditions::READY || (type_ == conditions::PROGRESSING && in_course.is_some());
        for condition in self.status.conditions.iter().filter(|condition| !is_said(&condition.type_)) {
            match condition.status.as_str() {
                "Unknown" => unknown.push(format!("{} ({})", condition.type_, condition.reason)),
                status if status == good(&condition.type_) => calm.push(format!("{}={status}", condition.type_)),
                _ => bad.push(format!("{}: {}\n", said(condition, now), condition.message)),
            }
        }
        for (what, names) in [("not known", unknown), ("as it should be", calm)] {
            if !names.is_empty() {
                bad.push(format!("{what}: {}\n", names.join(", ")));
            }
        }
        bad.concat()
    }
}

/// The first lines: what the pool is, and its figures.
fn heading(document: &PoolDocument, now: Timestamp) -> String {
    let (key, status, spec) = (document.key(), document.status(), &document.pool.spec);
    let ready = match document.condition(conditions::READY) {
        Some(ready) => format!("{}: {}", said(ready, now), ready.message),
        None => "nobody has looked at it yet: does an operator run? See kubectl sluice check".to_owned(),
    };
    let upstream = &spec.upstream;
    let class = status.effective.as_ref().and_then(|effective| effective.class.as_ref());
    let class = class.map_or_else(String::new, |class| format!(", class {class}"));
    let paused = match Frozen::of(&document.pool, now.as_second()) {
        None => String::new(),
        Some(Frozen::ByPause) => ", paused".to_owned(),
        Some(frozen) => format!(", {}", frozen.words()),
    };
    let mut lines = vec![
        format!("ConnectionPool {key}: {ready}"),
        format!(
            "mode {}{paused}, database {} at {}:{}{class}",
            mode(spec.mode),
            upstream.database,
            upstream.host,
            upstream.port
        ),
        figures(&status),
    ];
    if !document.is_observed() && status.observed_generation.is_some() {
        lines.push("the operator has not looked at the spec of now yet: what follows is of the one before".to_owned());
    }
    lines.join("\n") + "\n"
}

/// The figures of the operator, with their age.
fn figures(status: &ConnectionPoolStatus) -> String {
    let mut parts = vec![
        format!("target {}", cell(status.recommendation.map(|recommendation| recommendation.target))),
        format!("size {} of share {}", cell(status.current_size), cell(status.share)),
    ];
    if let Some(effective) = &status.effective {
        parts.push(format!("minAllowed {}, maxAllowed {}", effective.min_allowed, effective.max_allowed));
    }
    match &status.load {
        Some(load) => {
            let leaked = load.leaked.map_or_else(String::new, |leaked| format!(", leaked {leaked}"));
            parts.push(format!(
                "demand {}, held {}, active {}, waiting {}{leaked}, by samples of up to {} before the status was written",
                load.demand,
                load.held,
                load.active,
                load.waiting,
                span(i64::from(load.age_seconds))
            ));
        }
        None => parts.push("no load is known".to_owned()),
    }
    parts.join("; ")
}

/// Sums of the columns WANTED to WAITING, with the age; absent where no pod tells.
fn sums<'a>(
    pods: &(impl Iterator<Item = &'a PodBranch> + Clone),
    created: Option<Timestamp>,
    now: Timestamp,
) -> Vec<String> {
    let sum = |of: fn(&PodBranch) -> Option<u32>| {
        let known: Vec<u32> = pods.clone().filter_map(of).collect();
        cell((!known.is_empty()).then(|| known.iter().sum::<u32>()))
    };
    vec![
        sum(|pod| pod.wanted),
        sum(|pod| pod.granted),
        sum(|pod| pod.set),
        sum(|pod| pod.read_back),
        sum(|pod| pod.held),
        sum(|pod| pod.waiting),
        created.map_or_else(String::new, |created| age(created, now)),
    ]
}

impl RevisionBranch {
    fn name(&self) -> String {
        let role = match (self.is_stable, self.is_updated) {
            (true, _) => " (stable)",
            (false, true) => " (updated)",
            (false, false) => "",
        };
        self.revision.map_or_else(|| "no revision yet".to_owned(), |number| format!("revision {number}{role}"))
    }

    fn state(&self) -> String {
        let run = self.pods.iter().filter(|pod| pod.revision.is_some() && pod.revision == self.revision).count();
        let known = self.pods.iter().any(|pod| pod.revision.is_some());
        match (self.pods.len(), known) {
            (0, _) => "no pods".to_owned(),
            (all, true) => format!("{run} of {all} pods run it"),
            (all, false) => format!("{all} pods"),
        }
    }
}

impl PodBranch {
    fn new(pod: &Pod, pool: &str, agent: Option<&AgentSays>) -> Self {
        let annotation = |name: &str| pod.metadata.annotations.as_ref()?.get(name).map(String::as_str);
        let wanted = annotation(names::REVISION_ANNOTATION).map(RevisionDocument::parse);
        let granted = annotation(names::GRANT_ANNOTATION).map(GrantDocument::parse);
        let revision = wanted.as_ref().and_then(|document| document.as_ref().ok()?.pools.get(pool));
        let grant = granted.as_ref().and_then(|document| document.as_ref().ok()?.pools.get(pool)).copied();
        let stamp = granted.as_ref().and_then(|document| document.as_ref().ok()?.stamp(pool));
        let report = agent.and_then(AgentSays::report);
        let damaged =
            [wanted.as_ref().and_then(|it| it.as_ref().err()), granted.as_ref().and_then(|it| it.as_ref().err())];
        let outdated = match (report, revision) {
            (Some(report), Some(revision)) => unknown_to(report, &revision.settings),
            _ => Vec::new(),
        };
        let wanted_revision = revision.map(|revision| revision.revision);
        let state = if let Some(error) = damaged.into_iter().flatten().next() {
            error.to_string()
        } else if !outdated.is_empty() {
            format!("its agent is too old to know {}: restart the pod", outdated.join(", "))
        } else {
            state(pod, wanted_revision, grant.zip(stamp), agent)
        };
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            created: pod.metadata.creation_timestamp.as_ref().map(|created| created.0),
            wanted_revision,
            revision: report.and_then(|report| report.revision),
            other: report.and_then(|report| report.other),
            wanted: grant.map(|grant| grant.share),
            granted: grant.map(|grant| grant.granted),
            set: report.map(|report| report.share),
            read_back: report
                .and_then(|report| report.limits)
                .map(|limits| if limits.paused { 0 } else { limits.pool_size }),
            held: report.and_then(|report| report.held).map(|held| held.held),
            waiting: report.and_then(|report| report.held).map(|held| held.waiting),
            state,
        }
    }

    fn row(&self, branch: &str, now: Timestamp) -> Vec<String> {
        let revision = match (self.revision, self.wanted_revision) {
            (Some(runs), Some(wanted)) if runs != wanted => format!("{runs} -> {wanted}"),
            (runs, wanted) => cell(runs.or(wanted)),
        };
        vec![
            format!("{branch}{}", self.name),
            revision,
            cell(self.wanted),
            cell(self.granted),
            cell(self.set),
            cell(self.read_back),
            cell(self.held),
            cell(self.waiting),
            cell(self.created.map(|created| age(created, now))),
            self.state.clone(),
        ]
    }
}

/// How a pod stands, in words: what keeps it from what it should run, or that it is proven.
fn state(pod: &Pod, wanted: Option<u64>, grant: Option<(PodGrant, Stamp)>, agent: Option<&AgentSays>) -> String {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    if pod.metadata.deletion_timestamp.is_some() {
        return "ends".to_owned();
    }
    let report = match agent {
        _ if phase != "Running" => return phase.to_owned(),
        None => return "not asked".to_owned(),
        Some(AgentSays::Nothing(why)) => return why.clone(),
        Some(AgentSays::Report(report)) => report,
    };
    if let Some(circuit) = outage::of_pod(report) {
        return format!("circuit {}: the database is away ({})", circuit.state.as_str(), circuit.why);
    }
    if !report.message.is_empty() {
        return report.message.clone();
    }
    if let Some(other) = report.other {
        let clients = other.clients.map_or_else(String::new, |clients| format!(" with {clients} clients"));
        let number = cell(other.revision);
        return match other.role {
            OtherRole::Green if other.awaiting_promotion => {
                format!("green, revision {number}, is proven and waits for its promotion")
            }
            OtherRole::Green => format!("green, revision {number}, proves itself"),
            OtherRole::Warm => format!("proven; the process of revision {number} stays warm{clients}"),
            OtherRole::Draining => format!("proven; the process of revision {number} drains{clients}"),
        };
    }
    match report.slot {
        SlotStatus::Starting => return "its pooler has not started yet".to_owned(),
        SlotStatus::NotAnswering => return "the console of its pooler does not answer".to_owned(),
        SlotStatus::Down => return "its pooler has ended and will be started again".to_owned(),
        SlotStatus::Serving => {}
    }
    if report.revision != wanted {
        return "its revision is on its way".to_owned();
    }
    let applied = Stamp { epoch: report.epoch, seq: report.seq };
    match grant {
        None => "no grant yet".to_owned(),
        Some((_, stamp)) if stamp.is_after(applied) => "its share is on its way".to_owned(),
        Some((grant, _)) if grant.share == 0 => "proven; paused, its clients queue: it has no share".to_owned(),
        Some((grant, _)) if grant.granted > grant.share => {
            format!("holds {} until it is proven to need {} alone", grant.granted, grant.share)
        }
        Some(_) => "proven".to_owned(),
    }
}

/// Whether a pod has a pooler of this pool: what was fixed at admission says more than a label, which anybody may write.
pub fn is_of(pod: &Pod, pool: &str) -> bool {
    match injection_of(pod) {
        Some(Ok(injection)) => injection.pool == pool,
        Some(Err(_)) => pod
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(names::POOL_LABEL))
            .is_some_and(|name| name == pool),
        None => false,
    }
}

/// One line that says how a pool stands, for `--watch` outside of a terminal.
pub fn line(document: &PoolDocument) -> String {
    let status = document.status();
    let ready = document.condition(conditions::READY);
    let ready = ready.map_or_else(|| "Ready=-".to_owned(), |ready| format!("Ready={}/{}", ready.status, ready.reason));
    let pods = status
        .pods
        .map_or_else(|| "pods -".to_owned(), |pods| format!("pods {} of {} proven", pods.proven, pods.matched));
    let revision = status.revision.as_ref().map_or_else(String::new, |revision| {
        if revision.stable == revision.updated {
            format!(", revision {}", revision.updated)
        } else {
            format!(", revision {} -> {}", revision.stable, revision.updated)
        }
    });
    format!(
        "{} {ready}, size {}, target {}, share {}, demand {}, waiting {}, {pods}{revision}",
        document.key(),
        cell(status.current_size),
        cell(status.recommendation.map(|recommendation| recommendation.target)),
        cell(status.share),
        cell(status.load.as_ref().map(|load| load.demand.clone())),
        cell(status.load.as_ref().map(|load| load.waiting)),
    )
}
