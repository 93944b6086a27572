//! What the user should know about a pod that is admitted: shown by `kubectl` as warnings, and nothing is refused.

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};

use super::{PodPool, ending, resources, session_tools, startup};
use crate::contract::names;

/// Endings of the names under which applications keep a whole connection string.
const CONNECTION_STRING_NAMES: [&str; 6] =
    ["DATABASE_URL", "DATABASE_URI", "DB_URL", "POSTGRES_URL", "JDBC_URL", "_DSN"];

/// The warnings for one pod.
pub fn warnings(spec: &PodSpec, plan: &PodPool<'_>, guaranteed: bool) -> Vec<String> {
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
        warnings.push(
            "shareProcessNamespace lets every container of the pod read the pooler's memory, its credentials included"
                .to_owned(),
        );
    }
    if resources::guesses_cpu_limit(&plan.effective.pod.resources, guaranteed) {
        warnings.push(
            "the pod is Guaranteed, so the container sluice gets a CPU limit, by default 250m; set sidecar.resources.limits.cpu of the pool or its class to choose it"
                .to_owned(),
        );
    }
    warnings
}

fn port_clashes(container: &Container, plan: &PodPool<'_>) -> Vec<String> {
    let client_port = plan.effective.pod.client_port;
    let taken =
        [(client_port, "the pooler's port; set client.port of the pool"), (names::METRICS_PORT, "the agent's port")];
    let ports = container.ports.iter().flatten().filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
    ports
        .filter_map(|port| taken.iter().find(|(number, _)| port.container_port == i32::from(*number)))
        .map(|(number, whose)| {
            format!("container {}: port {number} is {whose}; one of the two cannot listen", container.name)
        })
        .collect()
}

fn connection_strings(container: &Container, plan: &PodPool<'_>) -> Vec<String> {
    let replaced = |variable: &EnvVar| plan.effective.pod.env.iter().any(|own| own.name == variable.name);
    let host = &plan.pool.spec.upstream.host;
    let variables = container.env.iter().flatten().filter(|variable| !replaced(variable));
    variables
        .filter_map(|EnvVar { name, value, value_from }| {
            let from_secret = value_from.as_ref().is_some_and(|source| source.secret_key_ref.is_some());
            let holds_string = CONNECTION_STRING_NAMES.iter().any(|ending| name.to_ascii_uppercase().ends_with(ending));
            if from_secret && holds_string {
                return Some(format!(
                    "container {}: {name} comes from a Secret and cannot be rewritten; if it names the database's host, these connections bypass the pooler: name it in client.env of the pool",
                    container.name
                ));
            }
            value.as_ref().filter(|value| value.contains(host.as_str())).map(|_| {
                format!(
                    "container {}: {name} names the database's host {host}, so its connections bypass the pooler; use $(PGHOST) there, or name it in client.env of the pool",
                    container.name
                )
            })
        })
        .collect()
}
