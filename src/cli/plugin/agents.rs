//! The agents of a pool, asked through the proxy of the API server.

use std::{collections::BTreeMap, time::Duration};

use futures::{AsyncReadExt as _, StreamExt, stream};
use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use kube::api::{AttachParams, ListParams};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use super::{
    cluster::ClusterAccess,
    error::PluginError,
    view::{
        document::PoolDocument,
        status::{AgentSays, is_of},
    },
};
use crate::{
    contract::{ClientsReport, StatusReport, names},
    inject::injection_of,
};

/// Agents of a pool that are asked.
const MOST_ASKED: usize = 200;
/// How many are asked at once.
pub const ASKED_AT_ONCE: usize = 8;
/// Longest that one agent may take: it is a pod of the cluster, and there are others.
const AGENT_DEADLINE: Duration = Duration::from_secs(3);
/// Longest answer that is read.
const LARGEST_ANSWER_BYTES: u64 = 256 << 10;

/// The pods of a pool.
///
/// # Errors
/// [`PluginError`]: they cannot be listed.
pub async fn pods(cluster: &ClusterAccess, document: &PoolDocument) -> Result<Vec<Pod>, PluginError> {
    let key = document.key();
    let what = format!("list pods in {}", key.namespace);
    let params = ListParams::default().labels(&format!("{}={}", names::POOL_LABEL, key.name));
    cluster.list(&what, &cluster.of(&key.namespace), params).await
}

/// Those that run, as many as are asked. How many are not is added to what was not read.
pub fn asked<'a>(pods: &'a [Pod], pool: &str, not_read: &mut Vec<String>) -> Vec<&'a Pod> {
    let mut running: Vec<&Pod> = pods.iter().filter(|pod| is_of(pod, pool) && is_running(pod)).collect();
    if running.len() > MOST_ASKED {
        not_read.push(format!("of {} pods that run {MOST_ASKED} were asked", running.len()));
        running.truncate(MOST_ASKED);
    }
    running
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// The name of a pod.
pub fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

/// What the agents of these pods say. Who may not ask the first one asks no other.
pub async fn ask_all(
    cluster: &ClusterAccess,
    pods: &[&Pod],
    not_read: &mut Vec<String>,
) -> BTreeMap<String, AgentSays> {
    let Some((first, others)) = pods.split_first() else { return BTreeMap::new() };
    let answer = match status(cluster, first).await {
        Err(PluginError::NotAllowed { what, words }) => {
            not_read.push(format!("not allowed to {what}, so what the poolers say is not shown: {words}"));
            return BTreeMap::new();
        }
        answer => says(answer),
    };
    let others = stream::iter(others).map(|pod| async move { (name(pod), says(status(cluster, pod).await)) });
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

/// What the agent of a pod says of itself: `GET /status`.
async fn status(cluster: &ClusterAccess, pod: &Pod) -> Result<StatusReport, PluginError> {
    let text = ask(cluster, pod, "status").await?;
    let report: StatusReport = serde_json::from_str(&text).map_err(|error| {
        PluginError::Unreadable(format!("its answer is not understood, so it is of another version: {error}"))
    })?;
    // addresses are reused
    if Some(&report.pod_uid) != pod.metadata.uid.as_ref() {
        return Err(PluginError::Unreadable("another pod answers at its address".to_owned()));
    }
    Ok(report)
}

/// Asks the agent of a pod for one of its pages: `status` or `metrics`.
///
/// # Errors
/// [`PluginError`]: not allowed, no answer in time, or an error for an answer.
pub async fn ask(cluster: &ClusterAccess, pod: &Pod, page: &str) -> Result<String, PluginError> {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    let what = format!("get pods/proxy in {namespace}");
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{}/proxy/{page}", port(pod));
    let request = http::Request::get(path).body(Vec::new());
    let request = request.map_err(|error| PluginError::Unreadable(format!("{what}: {error}")))?;
    let asked = async {
        let answer = cluster.ask(&what, cluster.client().request_stream(request)).await?;
        let mut text = String::new();
        let read = Box::pin(answer).take(LARGEST_ANSWER_BYTES).read_to_string(&mut text).await;
        read.map_err(|error| PluginError::Unreadable(format!("its answer breaks off: {error}")))?;
        Ok(text)
    };
    let deadline = AGENT_DEADLINE;
    timeout(deadline, asked).await.map_err(|_| PluginError::Deadline { what: what.clone(), deadline })?
}

/// Who works the pooler of this pod now: what `sluice-agent clients` prints, run in its sidecar.
///
/// # Errors
/// [`PluginError`]: not allowed, no answer in time, or the program failed, which one of a version before this does.
pub async fn clients(cluster: &ClusterAccess, pod: &Pod) -> Result<ClientsReport, PluginError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let what = format!("get and create pods/exec in {namespace}");
    let params = AttachParams::default().container(names::SIDECAR_CONTAINER).stdin(false).stdout(true).stderr(true);
    let asked = async {
        let pods = cluster.of::<Pod>(namespace);
        let mut process = cluster.ask(&what, pods.exec(&name(pod), [names::AGENT_PROGRAM, "clients"], &params)).await?;
        let (out, err) = tokio::join!(read(process.stdout()), read(process.stderr()));
        let report = out.map_err(|error| PluginError::Unreadable(format!("its answer breaks off: {error}")))?;
        if report.is_empty() {
            return Err(PluginError::Unreadable(not_told(&err.unwrap_or_default())));
        }
        serde_json::from_str(&report).map_err(|error| {
            PluginError::Unreadable(format!("its answer is not understood, so it is of another version: {error}"))
        })
    };
    let deadline = AGENT_DEADLINE;
    timeout(deadline, asked).await.map_err(|_| PluginError::Deadline { what: what.clone(), deadline })?
}

/// Why an agent has not told who its clients are, by what it wrote.
fn not_told(words: &str) -> String {
    match words.trim() {
        older if older.contains("unrecognized subcommand") => {
            "it is of an older version, which does not tell; restart the pod to get a newer one".to_owned()
        }
        "" => "it was ended before it told".to_owned(),
        words => words.to_owned(),
    }
}

/// What a program writes, as much of it as is read.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut text = String::new();
    if let Some(stream) = stream {
        AsyncReadExt::take(stream, LARGEST_ANSWER_BYTES).read_to_string(&mut text).await?;
    }
    Ok(text)
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
