//! `spec.gateway`: the shared poolers of topology Gateway.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The shared poolers of topology Gateway.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct Gateway {
    /// Number of poolers. Without it there are 2, and nothing is written here, so that a HorizontalPodAutoscaler can own it
    /// through the scale subresource; that one needs a number to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: Option<u32>,
    /// What their pods get beside the pooler. A change replaces them, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<GatewayTemplate>,
}

/// What the pods of a gateway get beside the pooler.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct GatewayTemplate {
    /// Labels and annotations of the pods. Those of Sluice's own cannot be set here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<GatewayMetadata>,
    /// Where the pods may run, and how long they may take to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<GatewayPodSpec>,
}

/// Labels and annotations of the pods of a gateway.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(
    validation = Rule::new("!has(self.labels) || self.labels.all(key, !key.startsWith('sluice.dev/'))").message("labels sluice.dev/* are Sluice's own").field_path(".labels"),
    validation = Rule::new("!has(self.annotations) || self.annotations.all(key, !key.startsWith('sluice.dev/'))").message("annotations sluice.dev/* are Sluice's own").field_path(".annotations")
)]
pub struct GatewayMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = serde_json::json!({"type": "string", "maxLength": 63, "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"})))]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = serde_json::json!({"type": "string", "maxLength": 1024})))]
    pub annotations: BTreeMap<String, String>,
}

/// Where the pods of a gateway may run, how they find names, and how long they may take to end.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.dnsPolicy) || self.dnsPolicy != 'None' || (has(self.dnsConfig) && has(self.dnsConfig.nameservers) && size(self.dnsConfig.nameservers) > 0)").message("dnsPolicy None needs a name server in dnsConfig.nameservers").field_path(".dnsPolicy"))]
pub struct GatewayPodSpec {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = serde_json::json!({"type": "string", "maxLength": 63})))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<GatewayToleration>,
    /// Priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Seconds that a pod may take to end. Default: 60. New clients are led elsewhere at once; those that are connected are
    /// served until they leave, and at the latest 30 seconds before the end they are disconnected, after their
    /// transaction. Longer than the longest lifetime of a connection in the applications, nobody is disconnected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 35, max = 86_400))]
    pub termination_grace_period_seconds: Option<u32>,
    /// Where the pods look names up. Default: ClusterFirst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_policy: Option<GatewayDnsPolicy>,
    /// Name servers, search domains and options beside those of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<GatewayDnsConfig>,
}

/// Where the pods of a gateway look names up. Default: ClusterFirst. ClusterFirst: at the cluster's name server. Default: as their
/// node does. None: as `dnsConfig` says, which needs a name server then.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum GatewayDnsPolicy {
    /// At the cluster's name server.
    ClusterFirst,
    /// As their node does.
    Default,
    /// As `dnsConfig` says.
    None,
}

/// Name servers, search domains and options of the pods of a gateway; the fields are those of Kubernetes.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct GatewayDnsConfig {
    /// Addresses of name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), inner(length(min = 2, max = 45), regex(pattern = "^[0-9A-Fa-f:.]+$")))]
    pub nameservers: Vec<String>,
    /// Domains in which short names are looked up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    pub searches: Vec<String>,
    /// Options of the resolver, such as ndots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub options: Vec<GatewayDnsOption>,
}

/// An option of the resolver.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct GatewayDnsOption {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its value, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
}

/// A taint that the pods of a gateway bear; the fields are those of Kubernetes.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayToleration {
    /// The taint's key; empty with operator Exists: every taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// Exists or Equal. Default: Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = "^(Exists|Equal)$"))]
    pub operator: Option<String>,
    /// The taint's value, with operator Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// NoSchedule, PreferNoSchedule or NoExecute; without it all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = "^(NoSchedule|PreferNoSchedule|NoExecute)$"))]
    pub effect: Option<String>,
    /// Seconds that the pods stay after the taint came, with effect NoExecute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub toleration_seconds: Option<i64>,
}
