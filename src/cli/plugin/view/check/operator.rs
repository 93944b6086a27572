//! The operator: whether it runs, leads, and is of this plugin's version.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentCondition},
        coordination::v1::Lease,
    },
    jiff::Timestamp,
};

use super::Finding;
use crate::cli::plugin::view::{
    NotRead,
    time::{age, span},
    version::skew,
};

/// A leader renews every two seconds; clocks may differ by half a minute.
const SILENT_SECONDS: i64 = 60;
/// Label with the version of the chart's app.
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// What was found of the operator. `lease` is named where it was looked for.
pub fn findings(
    deployments: Result<&[Deployment], &NotRead>,
    lease: Result<Option<&Lease>, &NotRead>,
    now: Timestamp,
) -> Vec<Finding> {
    let mut findings = match deployments {
        Err(not_read) => vec![Finding::not_read(not_read)],
        Ok([]) => vec![Finding::failed(
            "there is no Deployment of the operator",
            "install the chart, or name its namespace with --operator-namespace: docs/operations.md#install",
        )],
        Ok(deployments) => {
            deployments.iter().flat_map(|deployment| [replicas(deployment, now), version(deployment)]).collect()
        }
    };
    findings.push(match lease {
        Err(not_read) => Finding::not_read(not_read),
        Ok(lease) => leads(lease, now),
    });
    findings
}

/// The value of a flag in the arguments of the operator.
pub fn flag(deployment: &Deployment, name: &str) -> Option<String> {
    let containers = &deployment.spec.as_ref()?.template.spec.as_ref()?.containers;
    let mut arguments = containers.iter().flat_map(|container| container.args.iter().flatten());
    let prefix = format!("--{name}=");
    arguments.find_map(|argument| argument.strip_prefix(&prefix)).map(str::to_owned)
}

fn place(deployment: &Deployment) -> (&str, &str) {
    let metadata = &deployment.metadata;
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// Why a Deployment has too few replicas, and for how long: ` (Available=False/MinimumReplicasUnavailable for 5m)`.
fn why_not(deployment: &Deployment, now: Timestamp) -> String {
    let conditions = deployment.status.as_ref().and_then(|status| status.conditions.as_ref());
    let told = |condition: &&DeploymentCondition| match condition.type_.as_str() {
        "ReplicaFailure" => condition.status == "True",
        _ => condition.status == "False",
    };
    let told: Vec<String> = conditions
        .into_iter()
        .flatten()
        .filter(told)
        .map(|condition| {
            let reason = condition.reason.as_deref().unwrap_or_default();
            let since = condition.last_transition_time.as_ref();
            let since = since.map_or_else(String::new, |since| format!(" for {}", age(since.0, now)));
            format!("{}={}/{reason}{since}", condition.type_, condition.status)
        })
        .collect();
    if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) }
}

fn replicas(deployment: &Deployment, now: Timestamp) -> Finding {
    let (namespace, name) = place(deployment);
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let words = format!("{ready} of {wanted} replicas of {namespace}/{name} are ready");
    let todo = format!(
        "see why: kubectl -n {namespace} describe deployment {name}; docs/operations.md#when-something-is-wrong"
    );
    match ready {
        0 => Finding::failed(words + &why_not(deployment, now), todo),
        ready if ready < wanted => Finding::warning(words + &why_not(deployment, now), todo),
        _ => Finding::ok(words),
    }
}

fn version(deployment: &Deployment) -> Finding {
    let (namespace, name) = place(deployment);
    let Some(operator) = deployment.metadata.labels.as_ref().and_then(|labels| labels.get(VERSION_LABEL)) else {
        return Finding::note(
            format!("{namespace}/{name} does not say its version: it has no label {VERSION_LABEL}"),
            "compare it by its image",
        );
    };
    match skew(operator) {
        None => Finding::ok(format!("the operator is {operator}, as this plugin")),
        Some((words, todo)) => Finding::warning(words, todo),
    }
}

fn leads(lease: Option<&Lease>, now: Timestamp) -> Finding {
    let todo = "no target and no share moves until one leads: docs/operations.md#when-a-part-fails";
    let Some(lease) = lease else { return Finding::failed("there is no Lease: no replica has ever led", todo) };
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    let Some(holder) = holder else { return Finding::failed("nobody holds the Lease", todo) };
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.as_second());
    match renewed.map(|renewed| now.as_second() - renewed) {
        Some(ago) if ago <= SILENT_SECONDS => Finding::ok(format!("{holder} leads")),
        Some(ago) => Finding::failed(format!("{holder} held the Lease and has not renewed it for {}", span(ago)), todo),
        None => Finding::failed(format!("{holder} holds the Lease and has never renewed it"), todo),
    }
}
