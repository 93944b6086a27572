//! `top`: which pods work a pool now, from two looks at what their agents count.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::Serialize;

use super::{
    document::PoolDocument,
    exposition::figure,
    table::{TextTable, cell},
};
use crate::contract::{ApplicationClients, ClientState, ClientsReport, LongestClient, metrics};

/// Most clients that are named.
const MOST_CLIENTS: usize = 20;

/// What an agent has counted, at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CountedLoad {
    transactions: Option<f64>,
    busy_seconds: Option<f64>,
    wait_seconds: Option<f64>,
    held: Option<f64>,
    active: Option<f64>,
    leaked: Option<f64>,
    clients: Option<f64>,
    waiting: Option<f64>,
    limit: Option<f64>,
}

impl CountedLoad {
    /// Reads the agent's page of metrics.
    pub fn read(page: &str) -> Self {
        let of = |name, state| figure(page, name, state);
        Self {
            transactions: of(metrics::TRANSACTIONS, None),
            busy_seconds: of(metrics::BUSY_SECONDS, None),
            wait_seconds: of(metrics::WAIT_SECONDS, None),
            held: of(metrics::SERVER_CONNECTIONS, None),
            active: of(metrics::SERVER_CONNECTIONS, Some("active")),
            leaked: of(metrics::LEAKED, None),
            clients: of(metrics::CLIENT_CONNECTIONS, None),
            waiting: of(metrics::CLIENT_CONNECTIONS, Some("waiting")),
            limit: of(metrics::LIMIT, None),
        }
    }
}

/// What `top` answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolWork {
    /// The pods that run, those that work most first.
    pub pods: Vec<PodWork>,
    /// Who works them, where that was asked for and may be told.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub clients: Option<PoolClients>,
}

/// Who works the pods of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolClients {
    /// By application, over all pods that told, those that hold most server connections first.
    pub applications: Vec<ApplicationClients>,
    /// Clients that have held a server connection or waited for one for longest, the longest first.
    pub longest: Vec<ClientOfPod>,
}

/// A client, and the pod whose pooler it came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientOfPod {
    /// The pod.
    pub pod: String,
    /// The client.
    #[serde(flatten)]
    pub client: LongestClient,
}

impl PoolClients {
    /// What the pods told, together.
    pub fn of(pods: BTreeMap<String, ClientsReport>) -> Self {
        let mut by_name: BTreeMap<Option<String>, ApplicationClients> = BTreeMap::new();
        let mut longest = Vec::new();
        for (pod, report) in pods {
            for of in report.applications {
                let sum = by_name.entry(of.application.clone()).or_default();
                *sum = ApplicationClients {
                    application: of.application,
                    clients: sum.clients.saturating_add(of.clients),
                    holding: sum.holding.saturating_add(of.holding),
                    waiting: sum.waiting.saturating_add(of.waiting),
                };
            }
            longest.extend(report.longest.into_iter().map(|client| ClientOfPod { pod: pod.clone(), client }));
        }
        let mut applications: Vec<ApplicationClients> = by_name.into_values().collect();
        // those that are not told apart stand last
        applications.sort_by_key(|of| (of.application.is_none(), Reverse((of.holding, of.waiting, of.clients))));
        longest.sort_by_key(|of| Reverse(of.client.milliseconds));
        longest.truncate(MOST_CLIENTS);
        Self { applications, longest }
    }

    fn text(&self) -> String {
        let mut applications = TextTable::new(&["APPLICATION", "HOLDING", "WAITING", "CLIENTS"]);
        for of in &self.applications {
            applications.push(vec![
                application(of.application.as_deref()),
                of.holding.to_string(),
                of.waiting.to_string(),
                of.clients.to_string(),
            ]);
        }
        let mut longest = TextTable::new(&["POD", "CLIENT", "APPLICATION", "DATABASE", "DOES", "FOR"]);
        for of in &self.longest {
            let client = &of.client;
            longest.push(vec![
                of.pod.clone(),
                client.address.clone(),
                application(Some(&client.application)),
                client.database.clone(),
                does(client.state).to_owned(),
                cell(client.milliseconds.map(span)),
            ]);
        }
        if applications.is_empty() {
            return "\nno client is connected\n".to_owned();
        }
        let longest = if longest.is_empty() { String::new() } else { format!("\n{}", longest.text()) };
        format!("\n{}{longest}", applications.text())
    }
}

/// What an application calls itself.
fn application(name: Option<&str>) -> String {
    match name {
        None => "(others)".to_owned(),
        Some("") => "(no name)".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn does(state: ClientState) -> &'static str {
    match state {
        ClientState::Holds => "holds",
        ClientState::Waits => "waits",
    }
}

/// A length of time, in the two largest units.
fn span(milliseconds: u64) -> String {
    match milliseconds / 1000 {
        0 => format!("{milliseconds}ms"),
        seconds @ 1..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// What a pod does between two looks; what its agent does not count is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodWork {
    /// The pod.
    pub pod: String,
    /// Server connections that worked, on average.
    pub busy: Option<f64>,
    /// Server connections with a client, at the second look.
    pub active: Option<u64>,
    /// Of them: held by clients that do nothing.
    pub leaked: Option<u64>,
    /// Server connections that are open.
    pub held: Option<u64>,
    /// The limit that the pooler works with.
    pub limit: Option<u64>,
    /// Clients.
    pub clients: Option<u64>,
    /// Of them: that wait for a server connection.
    pub waiting: Option<u64>,
    /// Transactions that ended per second.
    pub transactions_per_second: Option<f64>,
    /// How long one of them worked, on average, in milliseconds.
    pub transaction_milliseconds: Option<f64>,
    /// How long it waited before, on average, in milliseconds.
    pub wait_milliseconds: Option<f64>,
}

/// What the pods do between two looks that are so many seconds apart, those that work most first. `None`: a pod whose agent did not answer
/// the second look. One that did not answer the first has no rates.
pub fn work(
    before: &BTreeMap<String, CountedLoad>,
    after: &BTreeMap<String, Option<CountedLoad>>,
    seconds: f64,
) -> Vec<PodWork> {
    let mut pods: Vec<PodWork> = after
        .iter()
        .map(|(pod, now)| now.as_ref().map_or_else(|| silent(pod), |now| of_pod(pod, before.get(pod), now, seconds)))
        .collect();
    let order = |work: &PodWork| (work.busy.unwrap_or(-1.0), work.active.unwrap_or(0));
    pods.sort_by(|one, other| order(other).partial_cmp(&order(one)).unwrap_or(std::cmp::Ordering::Equal));
    pods
}

fn silent(pod: &str) -> PodWork {
    PodWork { pod: pod.to_owned(), ..PodWork::default() }
}

fn of_pod(pod: &str, before: Option<&CountedLoad>, now: &CountedLoad, seconds: f64) -> PodWork {
    // a pooler that restarted counts from zero
    let grown = |of: fn(&CountedLoad) -> Option<f64>| {
        let (before, now) = (of(before?)?, of(now)?);
        Some(if now >= before { now - before } else { now })
    };
    let transactions = grown(|load| load.transactions);
    let busy_seconds = grown(|load| load.busy_seconds);
    let each = |seconds: Option<f64>| {
        let transactions = transactions.filter(|transactions| *transactions > 0.0)?;
        Some(1000.0 * seconds? / transactions)
    };
    let rate = |grown: Option<f64>| grown.filter(|_| seconds > 0.0).map(|grown| grown / seconds);
    PodWork {
        pod: pod.to_owned(),
        busy: rate(busy_seconds),
        active: now.active.map(whole),
        leaked: now.leaked.map(whole),
        held: now.held.map(whole),
        limit: now.limit.map(whole),
        clients: now.clients.map(whole),
        waiting: now.waiting.map(whole),
        transactions_per_second: rate(transactions),
        transaction_milliseconds: each(busy_seconds),
        wait_milliseconds: each(grown(|load| load.wait_seconds)),
    }
}

/// A count that travelled as a float.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
fn whole(figure: f64) -> u64 {
    figure.round() as u64
}

/// The tables, and below them how the database tells which transaction it is.
pub fn text(document: &PoolDocument, work: &PoolWork) -> String {
    let mut table = TextTable::new(&[
        "POD", "BUSY", "ACTIVE", "LEAKED", "HELD", "LIMIT", "CLIENTS", "WAITING", "TX/S", "TX MS", "WAIT MS",
    ]);
    let rounded = |value: Option<f64>| cell(value.map(|value| format!("{value:.1}")));
    for work in &work.pods {
        table.push(vec![
            work.pod.clone(),
            rounded(work.busy),
            cell(work.active),
            cell(work.leaked),
            cell(work.held),
            cell(work.limit),
            cell(work.clients),
            cell(work.waiting),
            rounded(work.transactions_per_second),
            rounded(work.transaction_milliseconds),
            rounded(work.wait_milliseconds),
        ]);
    }
    let clients = match &work.clients {
        Some(clients) => clients.text(),
        None => "\nwhich applications these are: --clients, which runs a program in the pods\n".to_owned(),
    };
    let database = document.pool.spec.upstream.database.replace('\'', "''");
    format!(
        "{}{clients}\nwhat they ask, the database tells, by the address of the pod:\n  \
         SELECT application_name, client_addr, state, now() - xact_start AS transaction_age, left(query, 60) AS query\n  \
         FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend' ORDER BY xact_start NULLS LAST;\n",
        table.text()
    )
}
