//! The parser: from a pod as the API server tells it to the little that plans are made from.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    contract::{Document, names},
    decide::{
        plan::{Annotation, PodFacts, ROLLOUT, SidecarSeen, UnixSeconds},
        shares::PodPhase,
    },
    domain::PoolKey,
    inject::injection_of,
};

/// The pool that a pod has a sidecar of, and what is kept of the pod; none where it has no sidecar, or all its containers have ended: it
/// holds nothing then.
pub(super) fn read(pod: &Pod) -> Option<(PoolKey, PodFacts)> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::POOL_LABEL));
    let (pool, injection) = match (injection_of(pod), label) {
        // what was fixed at admission says more than a label, which anybody may write
        (Some(Ok(injection)), _) => (injection.pool.clone(), Some(injection)),
        (Some(Err(_)), Some(label)) => (label.clone(), None),
        _ => return None,
    };
    let status = pod.status.as_ref();
    let sidecar = status
        .and_then(|status| {
            let all = [&status.init_container_statuses, &status.container_statuses];
            all.into_iter().flatten().flatten().find(|container| container.name == names::SIDECAR_CONTAINER)
        })
        .and_then(|container| container.state.as_ref())
        .is_some_and(|state| state.running.is_some());
    let is_placed = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    let facts = PodFacts {
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
        resource_version: pod.metadata.resource_version.clone().unwrap_or_default(),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        owner: owner_of(&pod.metadata),
        phase: if pod.metadata.deletion_timestamp.is_some() {
            PodPhase::Terminating
        } else if is_placed {
            PodPhase::Running
        } else {
            PodPhase::Unscheduled
        },
        sidecar: match status.filter(|_| is_placed).and_then(not_startable_since) {
            _ if sidecar => SidecarSeen::Running,
            Some(since) => SidecarSeen::NotStartable { since },
            None => SidecarSeen::NotRunning,
        },
        address: status.and_then(|status| status.pod_ip.clone()).filter(|address| !address.is_empty()),
        injection: injection.map(Arc::new),
        revision: match annotation(pod, names::REVISION_ANNOTATION) {
            Annotation::Read(document) => Annotation::Read(Arc::new(document)),
            Annotation::Missing => Annotation::Missing,
            Annotation::Unreadable { why, .. } => Annotation::Unreadable { why, last: None },
        },
        grant: annotation(pod, names::GRANT_ANNOTATION),
        doubtful_granted: 0,
    };
    Some((PoolKey { namespace, name: pool }, facts))
}

/// Since when the kubelet has not got as far as to start containers: it mounts volumes first, then makes the network.
fn not_startable_since(status: &PodStatus) -> Option<UnixSeconds> {
    let mut conditions = status.conditions.iter().flatten();
    let startable = conditions.find(|condition| condition.type_ == "PodReadyToStartContainers")?;
    let since = startable.last_transition_time.as_ref().or(status.start_time.as_ref())?;
    (startable.status == "False").then(|| since.0.as_second())
}

fn annotation<T: Document>(pod: &Pod, name: &str) -> Annotation<T> {
    match pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(name)) {
        None => Annotation::Missing,
        Some(text) => match T::parse(text) {
            Ok(document) => Annotation::Read(document),
            Err(error) => Annotation::Unreadable { why: error.to_string(), last: None },
        },
    }
}

/// What restarts the pod, by kind and name: `deployment/shop`, `rollout/shop`. A ReplicaSet is named after what it belongs to, with
/// a hash that its pods have as a label, one label from Deployments and another from Argo Rollouts. One that nobody keeps restarts
/// nothing.
pub fn owner_of(metadata: &ObjectMeta) -> Option<String> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let named_after = |label: &str| {
        let hash = metadata.labels.as_ref()?.get(label)?;
        owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let rollout = named_after("rollouts-pod-template-hash").map(|name| format!("{ROLLOUT}{name}"));
            rollout.or_else(|| Some(format!("deployment/{}", named_after("pod-template-hash")?)))
        }
        "StatefulSet" | "DaemonSet" => Some(format!("{}/{}", owner.kind.to_lowercase(), owner.name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_restarts_a_pod_is_told_by_the_label_that_its_controller_writes() {
        let owner = |kind: &str, name: &str, labels: serde_json::Value| {
            let owner =
                serde_json::json!({"kind": kind, "name": name, "apiVersion": "x/v1", "uid": "u", "controller": true});
            let metadata = serde_json::json!({"labels": labels, "ownerReferences": [owner]});
            owner_of(&serde_json::from_value(metadata).expect("metadata"))
        };
        let of_deployment = serde_json::json!({"pod-template-hash": "7d4b9c6f5"});
        let of_rollout = serde_json::json!({"rollouts-pod-template-hash": "7d4b9c6f5"});
        assert_eq!(owner("ReplicaSet", "shop-web-7d4b9c6f5", of_deployment).as_deref(), Some("deployment/shop-web"));
        assert_eq!(owner("ReplicaSet", "shop-web-7d4b9c6f5", of_rollout).as_deref(), Some("rollout/shop-web"));
        assert_eq!(owner("ReplicaSet", "by-hand", serde_json::json!({"app": "shop"})), None, "it is nobody's");
        assert_eq!(owner("StatefulSet", "shop", serde_json::json!({})).as_deref(), Some("statefulset/shop"));
        assert_eq!(owner("Job", "migrate", serde_json::json!({})), None);
    }
}
