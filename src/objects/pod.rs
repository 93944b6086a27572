//! A pod as a watch delivers it, read as far as plans are made from it.
//!
//! The API server takes pods of megabytes, and an environment variable of thirteen bytes of text takes several hundred in memory. Every pod
//! with our label is listed, whoever has put it there.

use std::borrow::Cow;

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, EnvVar, Pod, PodCondition, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use super::{metadata::KeptMetadata, only::only};
use crate::contract::names;

/// Longest `SLUICE_INJECTION` that is kept, in bytes: the longest that Sluice writes has a quarter of it. A longer one is kept empty, which
/// is none that can be read.
const LONGEST_INJECTION: usize = 8 << 10;
/// The condition of a pod that is read.
const STARTABLE: &str = "PodReadyToStartContainers";

/// A pod, of which is kept which it is, where it is, its sidecar, and what that was injected and granted.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchedPod(pub Pod);

#[derive(Deserialize)]
struct PodText {
    #[serde(default)]
    metadata: KeptMetadata,
    #[serde(default)]
    spec: SpecText,
    #[serde(default)]
    status: StatusText,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecText {
    node_name: Option<String>,
    #[serde(deserialize_with = "sidecars")]
    containers: Vec<ContainerText>,
    #[serde(deserialize_with = "sidecars")]
    init_containers: Vec<ContainerText>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerText {
    name: String,
    #[serde(deserialize_with = "injections")]
    env: Vec<VariableText>,
    command: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct VariableText {
    name: String,
    value: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StatusText {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    start_time: Option<Time>,
    #[serde(deserialize_with = "startable")]
    conditions: Vec<PodCondition>,
    #[serde(deserialize_with = "states")]
    container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "states")]
    init_container_statuses: Vec<ContainerStatus>,
}

fn sidecars<'de, D: Deserializer<'de>>(text: D) -> Result<Vec<ContainerText>, D::Error> {
    only(text, |container: &ContainerText| container.name == names::SIDECAR_CONTAINER)
}

fn injections<'de, D: Deserializer<'de>>(text: D) -> Result<Vec<VariableText>, D::Error> {
    only(text, |variable: &VariableText| variable.name == names::INJECTION_VARIABLE)
}

fn startable<'de, D: Deserializer<'de>>(text: D) -> Result<Vec<PodCondition>, D::Error> {
    only(text, |condition: &PodCondition| condition.type_ == STARTABLE)
}

fn states<'de, D: Deserializer<'de>>(text: D) -> Result<Vec<ContainerStatus>, D::Error> {
    only(text, |status: &ContainerStatus| status.name == names::SIDECAR_CONTAINER)
}

impl From<ContainerText> for Container {
    fn from(ContainerText { name, env, command }: ContainerText) -> Self {
        let env = env.into_iter().map(|VariableText { name, value }| {
            let value = value.map(|value| if value.len() <= LONGEST_INJECTION { value } else { String::new() });
            EnvVar { name, value, value_from: None }
        });
        Self { name, env: Some(env.collect()), command, ..Self::default() }
    }
}

impl From<PodText> for Pod {
    fn from(PodText { metadata, spec, status }: PodText) -> Self {
        let containers = |texts: Vec<ContainerText>| texts.into_iter().map(Container::from).collect();
        Self {
            metadata: metadata.into(),
            spec: Some(PodSpec {
                node_name: spec.node_name,
                containers: containers(spec.containers),
                init_containers: Some(containers(spec.init_containers)),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: status.phase,
                pod_ip: status.pod_ip,
                start_time: status.start_time,
                conditions: Some(status.conditions),
                container_statuses: Some(status.container_statuses),
                init_container_statuses: Some(status.init_container_statuses),
                ..PodStatus::default()
            }),
        }
    }
}

impl<'de> Deserialize<'de> for WatchedPod {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        PodText::deserialize(text).map(|text| Self(text.into()))
    }
}

impl Resource for WatchedPod {
    type DynamicType = <Pod as Resource>::DynamicType;
    type Scope = <Pod as Resource>::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        Pod::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        Pod::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        Pod::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        Pod::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod with a sidecar, as an API server tells of it.
    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "shop-1", "namespace": "ns", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-11-21T09:00:00Z",
                "labels": {"app": "shop", "pod-template-hash": "5d4f", "sluice.dev/pool": "shop"},
                "annotations": {"sluice.dev/grant": "{}", "kubernetes.io/config.seen": "x"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-5d4f", "uid": "r", "controller": true}]},
            "spec": {"nodeName": "n", "containers": [{"name": "app", "image": "app:1", "env": [{"name": "SLUICE_INJECTION", "value": "not ours"}]}],
                "initContainers": [{"name": "sluice", "command": ["/sluice/bin/sluice-agent", "run"],
                    "env": [{"name": "SLUICE_INJECTION", "value": "{}"}, {"name": "SLUICE_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "startTime": "2026-11-21T09:00:01Z",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodReadyToStartContainers", "status": "True"}],
                "initContainerStatuses": [{"name": "sluice", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}],
                "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0}]},
        })
    }

    fn read(pod: &Value) -> Pod {
        let WatchedPod(pod) = serde_json::from_str(&pod.to_string()).expect("a pod");
        pod
    }

    #[test]
    fn of_a_pod_is_kept_which_it_is_where_it_is_its_sidecar_and_what_that_was_given() {
        let kept = read(&pod());
        let whole: Pod = serde_json::from_value(pod()).expect("a pod");
        assert_eq!(kept.metadata.labels, whole.metadata.labels);
        assert_eq!(kept.metadata.owner_references, whole.metadata.owner_references);
        assert_eq!(kept.metadata.creation_timestamp, whole.metadata.creation_timestamp);
        assert_eq!(kept.metadata.annotations, Some([("sluice.dev/grant".to_owned(), "{}".to_owned())].into()));
        let spec = kept.spec.expect("a spec");
        assert_eq!((spec.node_name.as_deref(), spec.containers.len()), (Some("n"), 0));
        let sidecar = &spec.init_containers.expect("it has some")[0];
        let variables = sidecar.env.as_ref().expect("it has one");
        assert_eq!((variables.len(), variables[0].value.as_deref()), (1, Some("{}")));
        assert_eq!(sidecar.command.as_ref().expect("it has one")[0], "/sluice/bin/sluice-agent");
        let status = kept.status.expect("a status");
        assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("10.0.0.1")));
        assert_eq!(status.conditions.expect("some")[0].type_, "PodReadyToStartContainers");
        assert!(status.init_container_statuses.expect("some")[0].state.as_ref().expect("a state").running.is_some());
    }

    #[test]
    fn what_is_kept_of_a_pod_does_not_grow_with_it() {
        let mut large = pod();
        large["metadata"]["labels"] =
            (0..5000).map(|number| (format!("l{number}"), json!("x"))).collect::<serde_json::Map<_, _>>().into();
        large["metadata"]["labels"]["sluice.dev/pool"] = json!("shop");
        large["metadata"]["annotations"]["sluice.dev/revision"] = json!("x".repeat(200 << 10));
        large["spec"]["containers"][0]["env"] = vec![json!({"name": "a"}); 20_000].into();
        large["spec"]["tolerations"] = vec![json!({"operator": "Exists"}); 5000].into();
        large["spec"]["initContainers"][0]["env"][0]["value"] = json!("x".repeat(200 << 10));
        let kept = serde_json::to_vec(&read(&large)).expect("JSON").len();
        assert!(kept < 8 << 10, "{kept} bytes of {}", large.to_string().len());
        let labels = read(&large).metadata.labels.expect("some");
        assert_eq!(labels["sluice.dev/pool"], "shop");
    }
}
