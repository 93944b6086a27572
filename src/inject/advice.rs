//! What the user should know about a pod that is admitted: shown by `kubectl` as warnings, and nothing is refused.

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};

use super::{
    PodPool, ending, resources, session_tools, startup,
    warning::{Told, Warning},
};
use crate::{
    contract::{ClientTlsMode, names},
    decide::memory,
};

/// Endings of the names under which applications keep a whole connection string.
const CONNECTION_STRING_NAMES: [&str; 6] =
    ["DATABASE_URL", "DATABASE_URI", "DB_URL", "POSTGRES_URL", "JDBC_URL", "_DSN"];

/// The warnings for one pod.
pub fn warnings(spec: &PodSpec, plan: &PodPool<'_>, guaranteed: bool) -> Vec<Told> {
    let mut warnings = Vec::new();
    let mut application: Vec<&Container> = spec.containers.iter().collect();
    application
        .extend(spec.init_containers.iter().flatten().filter(|container| !super::containers::is_ours(container)));
    for container in &application {
        warnings.extend(port_clashes(container, plan));
        warnings.extend(connection_strings(container, plan));
        warnings.extend(startup::refused(container, plan));
        warnings.extend(session_tools::warning(container, plan));
    }
    warnings.extend(ending::too_short(spec, plan));
    warnings.extend(ending::cuts_idle_transactions(plan));
    if spec.share_process_namespace == Some(true) {
        let reads = " of the pod read the pooler's memory, its credentials included";
        warnings.push(Warning::SharedProcesses.told("", reads));
    }
    if resources::guesses_cpu_limit(&plan.effective.pod.resources, guaranteed) {
        let limit = ", by default 250m; set sidecar.resources.limits.cpu of the pool or its class to choose it";
        warnings.push(Warning::CpuLimit.told("", limit));
    }
    warnings.extend(too_little_memory(plan, guaranteed));
    warnings
}

/// The agent keeps the limit within what memory has room for, so a pod that could get a larger share would never use it.
fn too_little_memory(plan: &PodPool<'_>, guaranteed: bool) -> Option<Told> {
    let (effective, injection) = (plan.effective, plan.injection());
    let share = effective.fixed_limit_per_pod.unwrap_or(effective.max_allowed);
    let packet = plan.revision.settings.parameters.get("pkt_buf").and_then(|bytes| bytes.parse().ok());
    let load = memory::largest(&injection, share, packet.unwrap_or(memory::PACKET));
    let limit = resources::memory_limit(&effective.pod.resources, guaranteed);
    let fits = load.servers_within(limit);
    (fits < share).then(|| {
        let by_tls = if injection.client.tls == ClientTlsMode::Disabled { "" } else { " by TLS" };
        let before = format!("the sidecar's memory limit of {} MiB ", limit >> 20);
        let behind = format!(
            " {fits} of the {share} server connections that the pool may open, with client.maxConnections {}{by_tls} and a change \
             that needs a second process; set sidecar.resources.limits.memory of the pool or its class to {}Mi, or lower one of these",
            injection.client.max_connections,
            memory::in_mib(load.limit()),
        );
        Warning::MemoryLimit.told(&before, &behind)
    })
}

fn port_clashes(container: &Container, plan: &PodPool<'_>) -> Vec<Told> {
    let client_port = plan.effective.pod.client_port;
    let taken = [
        (client_port, Warning::PoolerPort, "set client.port of the pool"),
        (names::METRICS_PORT, Warning::AgentPort, "let the application listen on another"),
    ];
    let ports = container.ports.iter().flatten().filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
    ports
        .filter_map(|port| taken.iter().find(|(number, ..)| port.container_port == i32::from(*number)))
        .map(|(number, whose, cure)| {
            let before = format!("container {}: port {number} ", container.name);
            whose.told(&before, &format!("; {cure}; one of the two cannot listen"))
        })
        .collect()
}

fn connection_strings(container: &Container, plan: &PodPool<'_>) -> Vec<Told> {
    let host = &plan.pool.spec.upstream.host;
    let variables = container.env.iter().flatten().filter(|variable| !plan.sets(&variable.name));
    variables
        .filter_map(|EnvVar { name, value, value_from }| {
            let from_secret = value_from.as_ref().is_some_and(|source| source.secret_key_ref.is_some());
            let holds_string = CONNECTION_STRING_NAMES.iter().any(|ending| name.to_ascii_uppercase().ends_with(ending));
            let before = format!("container {}: {name} ", container.name);
            if from_secret && holds_string {
                let behind = "; if it names the database's host, these connections bypass the pooler: name it in client.env of the pool";
                return Some(Warning::Secret.told(&before, behind));
            }
            value.as_ref().filter(|value| value.contains(host.as_str())).map(|_| {
                let behind = format!(
                    " {host}, so its connections bypass the pooler; use $(PGHOST) there, or name it in client.env of the pool"
                );
                Warning::DatabaseHost.told(&before, &behind)
            })
        })
        .collect()
}
