//! The operator: whether it runs, leads, and is of this plugin's version.

use std::cmp::Ordering;

use k8s_openapi::{
    api::{apps::v1::Deployment, coordination::v1::Lease},
    jiff::Timestamp,
};

use super::Finding;
use crate::cli::plugin::view::{NotRead, time::span};

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
            deployments.iter().flat_map(|deployment| [replicas(deployment), version(deployment)]).collect()
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

fn replicas(deployment: &Deployment) -> Finding {
    let (namespace, name) = place(deployment);
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let words = format!("{ready} of {wanted} replicas of {namespace}/{name} are ready");
    let todo = format!(
        "see why: kubectl -n {namespace} describe deployment {name}; docs/operations.md#when-something-is-wrong"
    );
    match ready {
        0 => Finding::failed(words, todo),
        ready if ready < wanted => Finding::warning(words, todo),
        _ => Finding::ok(words),
    }
}

fn version(deployment: &Deployment) -> Finding {
    let (namespace, name) = place(deployment);
    let plugin = env!("CARGO_PKG_VERSION");
    let Some(operator) = deployment.metadata.labels.as_ref().and_then(|labels| labels.get(VERSION_LABEL)) else {
        return Finding::note(
            format!("{namespace}/{name} does not say its version: it has no label {VERSION_LABEL}"),
            "compare it by its image",
        );
    };
    match order(plugin, operator) {
        Ordering::Equal => Finding::ok(format!("the operator is {operator}, as this plugin")),
        Ordering::Greater => Finding::warning(
            format!("this plugin {plugin} is newer than the operator {operator}"),
            "it may show nothing where the operator says nothing yet: use the plugin of its version, or upgrade the release",
        ),
        Ordering::Less => Finding::warning(
            format!("this plugin {plugin} is older than the operator {operator}"),
            "it may not know what the operator says: use the plugin of its version",
        ),
    }
}

/// Which of two versions is the later one, number by number.
fn order(one: &str, other: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        let core = version.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
        core.split('.').map(|number| number.parse().unwrap_or(0)).collect()
    };
    numbers(one).cmp(&numbers(other)).then_with(|| if one == other { Ordering::Equal } else { one.cmp(other) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(order("0.10.0", "0.9.1"), Ordering::Greater);
        assert_eq!(order("0.1.0", "v0.1.0-rc1"), order("0.1.0", "v0.1.0-rc1"));
        assert_eq!(order("0.1.0", "0.2.0"), Ordering::Less);
        assert_eq!(order("0.1.0", "0.1.0"), Ordering::Equal);
    }
}
