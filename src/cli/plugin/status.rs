//! `kubectl sluice status`: a pool as a tree of its revisions and pods.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use futures::{AsyncReadExt, StreamExt, stream};
use k8s_openapi::{
    api::core::v1::{ContainerPort, Pod},
    jiff::Timestamp,
};
use kube::api::ListParams;
use tokio::time::timeout;

use super::{
    cluster::{ClusterAccess, PoolScope, beside},
    error::{Conclusion, PluginError},
    follow::{FollowedPools, PoolChange},
    options::{ClusterOptions, OutputOptions, WatchOptions},
    screen::{Screen, tell},
    view::{
        document::PoolDocument,
        status::{AgentSays, PoolTree, TreeInput, is_of, line},
    },
};
use crate::{
    api::conditions,
    contract::{StatusReport, names},
    inject::injection_of,
};

/// Agents that are asked, and how many at once.
const MOST_ASKED: usize = 200;
const ASKED_AT_ONCE: usize = 8;
/// Longest that one agent may take: it is a pod of the cluster, and there are others.
const AGENT_DEADLINE: Duration = Duration::from_secs(3);
/// Longest answer that is read.
const LARGEST_ANSWER_BYTES: u64 = 64 << 10;
/// What agents say moves without any change of the pool.
const REDRAWN_EVERY: Duration = Duration::from_secs(2);

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    watch: WatchOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: StatusArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let StatusArgs { pool, output, watch } = args;
    if watch.watch && output.document().is_some() {
        return Err(PluginError::Usage("--watch shows text: leave -o json or -o yaml out, or --watch".to_owned()));
    }
    let cluster = ClusterAccess::connect(options).await?;
    let document = cluster.pool(&pool).await?;
    if watch.watch {
        let followed = FollowedPools::new(&cluster, &PoolScope::default(), Some(&pool), watch.timeout);
        return follow(&cluster, document, followed).await;
    }
    let tree = gather(&cluster, &document).await;
    let screen = Screen::of_stdout();
    match output.document() {
        Some(format) => screen.document(format, &tree)?,
        None => screen.print(&tree.text(&document, Timestamp::now()))?,
    }
    Ok(conclusion(&document))
}

/// Ready, not ready, or nobody can tell.
fn conclusion(document: &PoolDocument) -> Conclusion {
    let ready = document.condition(conditions::READY).filter(|_| document.is_observed());
    match ready.map(|ready| ready.status.as_str()) {
        Some("True") => Conclusion::Yes,
        Some("False") => Conclusion::No,
        _ => Conclusion::CannotTell,
    }
}

/// Shows the tree again and again, or a line whenever it reads otherwise.
async fn follow(
    cluster: &ClusterAccess,
    mut document: PoolDocument,
    mut followed: FollowedPools,
) -> Result<Conclusion, PluginError> {
    let screen = Screen::of_stdout();
    let mut said = String::new();
    loop {
        if screen.is_terminal() {
            let tree = gather(cluster, &document).await;
            screen.redraw(&tree.text(&document, Timestamp::now()))?;
        } else {
            let says = line(&document);
            if says != said {
                let now = Timestamp::now();
                let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
                screen.print(&format!("{now} {says}\n"))?;
                said = says;
            }
        }
        match followed.next_within(REDRAWN_EVERY).await {
            Some(PoolChange::TimeOver) => return Ok(conclusion(&document)),
            Some(PoolChange::Deleted(key)) => {
                screen.print(&format!("{key} deleted\n"))?;
                return Ok(Conclusion::No);
            }
            Some(PoolChange::Trouble(words)) => tell(&words),
            Some(PoolChange::Unreadable(pool)) => return Err(PluginError::Unreadable(pool.words)),
            Some(PoolChange::Listed | PoolChange::Changed(_)) => match followed.pools.values().next() {
                Some(pool) => document = pool.clone(),
                None => return Ok(Conclusion::No),
            },
            None => {}
        }
    }
}

/// Reads what the tree is made of.
async fn gather(cluster: &ClusterAccess, document: &PoolDocument) -> PoolTree {
    let key = document.key();
    let what = format!("list pods in {}", key.namespace);
    let params = ListParams::default().labels(&format!("{}={}", names::POOL_LABEL, key.name));
    let pods = beside(cluster.list::<Pod>(&what, &cluster.of(&key.namespace), params).await);
    let mut not_read = Vec::new();
    let mut agents = BTreeMap::new();
    if let Ok(pods) = &pods {
        let running: Vec<&Pod> = pods.iter().filter(|pod| is_of(pod, &key.name) && is_running(pod)).collect();
        let (asked, others) = running.split_at(running.len().min(MOST_ASKED));
        if !others.is_empty() {
            not_read.push(format!("of {} pods that run {MOST_ASKED} were asked", running.len()));
        }
        agents = ask_agents(cluster, asked, &mut not_read).await;
    }
    PoolTree::new(TreeInput { document, pods: pods.as_deref(), agents: &agents, not_read })
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// What the agents of these pods say, through the proxy of the API server. Who may not ask the first one asks no other.
async fn ask_agents(cluster: &ClusterAccess, pods: &[&Pod], not_read: &mut Vec<String>) -> BTreeMap<String, AgentSays> {
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    let Some((first, others)) = pods.split_first() else { return BTreeMap::new() };
    let answer = match ask(cluster, first).await {
        Err(PluginError::NotAllowed { what, words }) => {
            not_read.push(format!("not allowed to {what}, so what the poolers say is not shown: {words}"));
            return BTreeMap::new();
        }
        answer => says(answer),
    };
    let others = stream::iter(others).map(|pod| async move { (name(pod), says(ask(cluster, pod).await)) });
    let mut all: BTreeMap<String, AgentSays> = others.buffer_unordered(ASKED_AT_ONCE).collect().await;
    all.insert(name(first), answer);
    all
}

fn says(answer: Result<StatusReport, PluginError>) -> AgentSays {
    match answer {
        Ok(report) => AgentSays::Report(Box::new(report)),
        Err(PluginError::Refused { words, .. } | PluginError::Unreadable(words)) => {
            AgentSays::Nothing(format!("its agent: {words}"))
        }
        Err(PluginError::Deadline { .. }) => {
            AgentSays::Nothing(format!("its agent does not answer within {} s", AGENT_DEADLINE.as_secs()))
        }
        Err(error) => AgentSays::Nothing(format!("its agent: {error}")),
    }
}

/// Asks the agent of a pod: `GET /status`.
async fn ask(cluster: &ClusterAccess, pod: &Pod) -> Result<StatusReport, PluginError> {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    let what = format!("get pods/proxy in {namespace}");
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{}/proxy/status", port(pod));
    let request = http::Request::get(path).body(Vec::new());
    let request = request.map_err(|error| PluginError::Unreadable(format!("{what}: {error}")))?;
    let asked = async {
        let answer = cluster.ask(&what, cluster.client().request_stream(request)).await?;
        let mut text = String::new();
        let read = Box::pin(answer).take(LARGEST_ANSWER_BYTES).read_to_string(&mut text).await;
        read.map_err(|error| PluginError::Unreadable(format!("its answer breaks off: {error}")))?;
        Ok::<String, PluginError>(text)
    };
    let text = timeout(AGENT_DEADLINE, asked)
        .await
        .map_err(|_| PluginError::Deadline { what: what.clone(), deadline: AGENT_DEADLINE })??;
    let report: StatusReport = serde_json::from_str(&text).map_err(|error| {
        PluginError::Unreadable(format!("its answer is not understood, so it is of another version: {error}"))
    })?;
    // addresses are reused
    if Some(&report.pod_uid) != pod.metadata.uid.as_ref() {
        return Err(PluginError::Unreadable("another pod answers at its address".to_owned()));
    }
    Ok(report)
}

/// Where the agent listens: what the sidecar says, or what was fixed at admission.
fn port(pod: &Pod) -> u16 {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let mut ports =
        init.chain(spec.into_iter().flat_map(|spec| &spec.containers)).flat_map(|container| &container.ports).flatten();
    let named = ports.find(|port: &&ContainerPort| port.name.as_deref() == Some(names::METRICS_PORT_NAME));
    let named = named.and_then(|port| u16::try_from(port.container_port).ok());
    named.or_else(|| injection_of(pod)?.ok().map(|injection| injection.agent_port)).unwrap_or(names::METRICS_PORT)
}
