//! What the user should know about a pod that is admitted: shown by `kubectl` as warnings, and nothing is refused.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{
    PodPool, bypass, ending, resources, session_tools, startup,
    warning::{Warning, WarningText},
};
use crate::{contract::ClientTlsMode, decide::memory};

/// Most text of environments, commands and arguments that is looked through in one pod, in bytes: whoever may create a pod may write
/// megabytes, and every other pod waits meanwhile.
const MOST_TEXT: usize = 256 << 10;
/// Most warnings about one pod: the API server shows 4 KiB of them.
const MOST_WARNINGS: usize = 32;

/// The warnings for one pod.
pub fn warnings(spec: &PodSpec, plan: &PodPool<'_>, guaranteed: bool) -> Vec<WarningText> {
    let mut warnings = Vec::new();
    let mut application: Vec<&Container> = spec.containers.iter().collect();
    application
        .extend(spec.init_containers.iter().flatten().filter(|container| !super::containers::is_ours(container)));
    let mut left = MOST_TEXT;
    for container in &application {
        warnings.extend(port_clashes(container, plan));
        let Some(rest) = left.checked_sub(bytes_of_text(container)) else {
            let behind = ": what in it leads past the pooler, or is refused by it, is not told";
            warnings.push(Warning::TooMuchText.text(&format!("container {} ", container.name), behind));
            continue;
        };
        left = rest;
        warnings.extend(bypass::warnings(container, plan));
        warnings.extend(startup::refused(container, plan));
        warnings.extend(session_tools::warning(container, plan));
    }
    warnings.extend(ending::too_short(spec, plan));
    warnings.extend(ending::cuts_idle_transactions(plan));
    if spec.share_process_namespace == Some(true) {
        let reads = " of the pod read the pooler's memory, its credentials included";
        warnings.push(Warning::SharedProcesses.text("", reads));
    }
    if resources::guesses_cpu_limit(&plan.effective.pod.resources, guaranteed) {
        let limit = ", by default 250m; set sidecar.resources.limits.cpu of the pool or its class to choose it";
        warnings.push(Warning::CpuLimit.text("", limit));
    }
    warnings.extend(too_little_memory(plan, guaranteed));
    if plan.effective.overrides_move_no_limit() {
        let cure = ", while scaling.localReaction is Enabled; set it to Disabled to have limits follow the target, or remove them";
        warnings.push(Warning::Overrides.text("", cure));
    }
    let more = warnings.len().saturating_sub(MOST_WARNINGS);
    if more > 0 {
        warnings.truncate(MOST_WARNINGS);
        warnings.push(Warning::Others.text(&format!("{more} "), "; correct these first"));
    }
    warnings
}

/// How much there is to be looked through in a container.
fn bytes_of_text(container: &Container) -> usize {
    let variables = container.env.iter().flatten();
    let variables = variables.map(|variable| variable.name.len() + variable.value.as_ref().map_or(0, String::len));
    let texts = container.command.iter().chain(&container.args).flatten().map(String::len);
    variables.chain(texts).sum()
}

/// The agent keeps the limit within what memory has room for, so a pod that could get a larger share would never use it.
fn too_little_memory(plan: &PodPool<'_>, guaranteed: bool) -> Option<WarningText> {
    let (effective, injection) = (plan.effective, plan.injection());
    let share = effective.fixed_limit_per_pod.unwrap_or(effective.max_allowed);
    let load = memory::largest(&injection, share, &plan.revision.settings);
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
        Warning::MemoryLimit.text(&before, &behind)
    })
}

fn port_clashes(container: &Container, plan: &PodPool<'_>) -> Vec<WarningText> {
    let client_port = plan.effective.pod.client_port;
    let taken = [
        (client_port, Warning::PoolerPort, "set client.port of the pool"),
        (plan.effective.pod.agent_port, Warning::AgentPort, "set sidecar.agentPort of the pool"),
    ];
    let ports = container.ports.iter().flatten().filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
    ports
        .filter_map(|port| taken.iter().find(|(number, ..)| port.container_port == i32::from(*number)))
        .map(|(number, whose, cure)| {
            let before = format!("container {}: port {number} ", container.name);
            whose.text(&before, &format!("; {cure}; one of the two cannot listen"))
        })
        .collect()
}
