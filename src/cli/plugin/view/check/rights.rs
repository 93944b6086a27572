//! Rights: what each verb of the plugin needs, what the operator needs, and what an installation needs.

use super::Finding;
use crate::{api::GROUP, cli::plugin::view::NotRead};

/// One right: a verb on a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// Verb of the API.
    pub verb: &'static str,
    /// Group; empty for the core group.
    pub group: &'static str,
    /// Resource, with its subresource behind a slash.
    pub resource: &'static str,
    /// Where.
    pub scope: RightScope,
}

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RightScope {
    /// In the whole cluster.
    Cluster,
    /// In the namespace of the pools.
    Pools,
    /// In the namespace of the operator, on objects of every name.
    Release,
    /// In the namespace of the operator, on its Lease alone.
    Lease,
    /// In the namespace of the operator, on the Secret with its certificates alone.
    Certificates,
    /// On the configuration of its webhook alone.
    Webhook,
}

/// A right that verbs of the plugin use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedRight {
    /// Which.
    pub right: Right,
    /// Verbs of the plugin that use it.
    pub used_by: &'static [&'static str],
    /// What is not shown or done without it.
    pub without: &'static str,
}

const fn right(verb: &'static str, group: &'static str, resource: &'static str, scope: RightScope) -> Right {
    Right { verb, group, resource, scope }
}

const READERS: &[&str] =
    &["get", "status", "top", "why", "wait", "pause", "freeze", "resume", "recommend", "rollout", "report", "check"];
const WATCHERS: &[&str] = &["get --watch", "status --watch", "wait", "rollout"];
const WRITERS: &[&str] = &[
    "pause",
    "freeze",
    "resume",
    "rollout promote",
    "rollout abort",
    "rollout retry",
    "rollout undo",
    "rollout pause",
    "rollout resume",
];
const CHECK: &[&str] = &["check"];
const EXEC: &[&str] = &["top --clients"];

/// Every right that the plugin uses. Without one that reads, a verb says so and shows the rest.
pub static USED: [UsedRight; 20] = [
    used(right("get", GROUP, "connectionpools", RightScope::Pools), READERS, "no verb works"),
    used(
        right("list", GROUP, "connectionpools", RightScope::Pools),
        &["get", "recommend", "check"],
        "pools must be named",
    ),
    used(right("watch", GROUP, "connectionpools", RightScope::Pools), WATCHERS, "nothing can be waited for"),
    used(right("patch", GROUP, "connectionpools", RightScope::Pools), WRITERS, "none of them works"),
    used(right("list", "", "pods", RightScope::Pools), &["status", "top", "report", "check"], "no pods are shown"),
    used(
        right("get", "", "pods/proxy", RightScope::Pools),
        &["status", "top", "report"],
        "what poolers say (set, read back, held) is not shown, and `top` shows nothing",
    ),
    used(right("get", "", "pods/exec", RightScope::Pools), EXEC, NO_CLIENTS),
    used(right("create", "", "pods/exec", RightScope::Pools), EXEC, NO_CLIENTS),
    used(
        right("list", "apps", "controllerrevisions", RightScope::Pools),
        &["why", "rollout history", "rollout undo", "report"],
        "there is no history, `why` does not say by which rules sizes move, and `undo` needs the number of a revision",
    ),
    used(right("list", "", "events", RightScope::Pools), &["why", "report"], "no events are shown"),
    used(right("create", "", "pods", RightScope::Pools), CHECK, "no pod is created for trial (dry run)"),
    used(right("get", "apiextensions.k8s.io", "customresourcedefinitions", RightScope::Cluster), CHECK, NOT_CHECKED),
    used(
        right("list", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", RightScope::Cluster),
        CHECK,
        NOT_CHECKED,
    ),
    used(
        right("list", "admissionregistration.k8s.io", "validatingadmissionpolicies", RightScope::Cluster),
        CHECK,
        NOT_CHECKED,
    ),
    used(
        right("list", "admissionregistration.k8s.io", "validatingadmissionpolicybindings", RightScope::Cluster),
        CHECK,
        NOT_CHECKED,
    ),
    used(right("list", "apps", "deployments", RightScope::Release), CHECK, NOT_CHECKED),
    used(right("get", "coordination.k8s.io", "leases", RightScope::Release), CHECK, NOT_CHECKED),
    used(right("list", "discovery.k8s.io", "endpointslices", RightScope::Release), CHECK, NOT_CHECKED),
    used(right("list", "autoscaling.k8s.io", "verticalpodautoscalers", RightScope::Cluster), CHECK, NOT_CHECKED),
    used(
        right("create", "authorization.k8s.io", "subjectaccessreviews", RightScope::Cluster),
        CHECK,
        "the operator's rights are not checked",
    ),
];
const NO_CLIENTS: &str = "it is not told which applications and clients work the pool";
const NOT_CHECKED: &str = "that part is not checked";

const fn used(right: Right, used_by: &'static [&'static str], without: &'static str) -> UsedRight {
    UsedRight { right, used_by, without }
}

/// The rights of the operator, as the chart gives them. tests/pure/plugin.rs holds this list and the chart to each other.
pub static OPERATOR: [Right; 21] = [
    right("list", GROUP, "connectionpools", RightScope::Cluster),
    right("watch", GROUP, "connectionpools", RightScope::Cluster),
    right("list", GROUP, "connectionpoolclasses", RightScope::Cluster),
    right("watch", GROUP, "connectionpoolclasses", RightScope::Cluster),
    right("list", GROUP, "connectionbudgets", RightScope::Cluster),
    right("watch", GROUP, "connectionbudgets", RightScope::Cluster),
    right("patch", GROUP, "connectionpools/status", RightScope::Cluster),
    right("patch", GROUP, "connectionbudgets/status", RightScope::Cluster),
    right("create", GROUP, "connectionpoolclasses", RightScope::Cluster),
    right("list", "", "pods", RightScope::Cluster),
    right("watch", "", "pods", RightScope::Cluster),
    right("patch", "", "pods/status", RightScope::Cluster),
    right("list", "apps", "replicasets", RightScope::Cluster),
    right("list", "apps", "controllerrevisions", RightScope::Cluster),
    right("watch", "apps", "controllerrevisions", RightScope::Cluster),
    right("create", "apps", "controllerrevisions", RightScope::Cluster),
    right("delete", "apps", "controllerrevisions", RightScope::Cluster),
    right("create", "events.k8s.io", "events", RightScope::Cluster),
    right("patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", RightScope::Webhook),
    right("update", "coordination.k8s.io", "leases", RightScope::Lease),
    right("update", "", "secrets", RightScope::Certificates),
];

/// What whoever installs the chart must be allowed to create.
pub static INSTALLATION: [Right; 13] = [
    right("create", "apiextensions.k8s.io", "customresourcedefinitions", RightScope::Cluster),
    right("create", "rbac.authorization.k8s.io", "clusterroles", RightScope::Cluster),
    right("create", "rbac.authorization.k8s.io", "clusterrolebindings", RightScope::Cluster),
    right("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", RightScope::Cluster),
    right("create", "admissionregistration.k8s.io", "validatingadmissionpolicies", RightScope::Cluster),
    right("create", "admissionregistration.k8s.io", "validatingadmissionpolicybindings", RightScope::Cluster),
    right("create", "rbac.authorization.k8s.io", "roles", RightScope::Release),
    right("create", "rbac.authorization.k8s.io", "rolebindings", RightScope::Release),
    right("create", "apps", "deployments", RightScope::Release),
    right("create", "", "services", RightScope::Release),
    right("create", "", "serviceaccounts", RightScope::Release),
    right("create", "policy", "poddisruptionbudgets", RightScope::Release),
    right("create", "networking.k8s.io", "networkpolicies", RightScope::Release),
];

/// A right that somebody was asked about.
#[derive(Clone, Debug)]
pub struct RightSeen<'a> {
    /// Which.
    pub right: &'a Right,
    /// Whether it is given.
    pub is_given: Result<bool, NotRead>,
}

impl Right {
    /// The resource with its group: `connectionpools.sluice.dev`.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.resource.to_owned() } else { format!("{}.{}", self.resource, self.group) }
    }

    /// `list pods`.
    pub fn words(&self) -> String {
        format!("{} {}", self.verb, self.resource())
    }
}

/// What whoever asks may do, for the verbs beside `check`.
pub fn of_yours(seen: &[RightSeen]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (used, seen) in USED.iter().zip(seen).filter(|(used, _)| used.used_by != CHECK) {
        let verbs = used.used_by.join(", ");
        findings.push(match &seen.is_given {
            Ok(true) => continue,
            Ok(false) => Finding::note(
                format!("you may not {}: {}", used.right.words(), used.without),
                format!("for {verbs} ask for the right: docs/kubectl-sluice.md#rights"),
            ),
            Err(not_read) => Finding::not_read(not_read),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok("you may do all that the verbs of this plugin do"));
    }
    findings
}

/// What the operator may do, or whoever installs it.
pub fn of_others(who: &str, seen: &[RightSeen], todo: &str) -> Vec<Finding> {
    let refused: Vec<String> =
        seen.iter().filter(|seen| seen.is_given == Ok(false)).map(|seen| seen.right.words()).collect();
    if !refused.is_empty() {
        return vec![Finding::failed(format!("{who} may not {}", refused.join(", ")), todo)];
    }
    match seen.iter().find_map(|seen| seen.is_given.as_ref().err()) {
        Some(not_read) => vec![Finding::not_read(not_read)],
        None => vec![Finding::ok(format!("{who} may do what it takes"))],
    }
}

/// The rights by verb of the plugin, as the guide shows them.
pub fn guide() -> String {
    let rows = USED.iter().map(|used| {
        let verbs: Vec<String> = used.used_by.iter().map(|verb| format!("`{verb}`")).collect();
        format!("| `{}` | {} | {} |\n", used.right.words(), verbs.join(", "), used.without)
    });
    format!("| right | used by | without it |\n|---|---|---|\n{}", rows.collect::<String>())
}
