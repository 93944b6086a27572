//! `ConnectionPoolClass`: what pools have in common.

#![allow(clippy::duplicated_attributes)] // the printcolumns of one kind share their type

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BehaviorSpec, ClientSpec, HealthSpec, PgBouncerSpec, RolloutSpec, ScalingSpec, ServerTlsSpec, SidecarSpec,
};

/// Annotation on a class: the value `true` makes it the class of every pool that names none.
pub const IS_DEFAULT_CLASS_ANNOTATION: &str = "sluice.dev/is-default-class";

/// What pools have in common. An edit of a class is an edit of each pool that names it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "ConnectionPoolClass",
    plural = "connectionpoolclasses",
    shortname = "cpclass",
    category = "sluice",
    derive = "PartialEq",
    doc = "What pools have in common: every group of a pool that another team should not have to know, all optional.",
    printcolumn(name = "Default", type_ = "string", json_path = ".metadata.annotations.sluice\\.dev/is-default-class"),
    printcolumn(name = "Min", type_ = "integer", json_path = ".spec.scaling.minAllowed"),
    printcolumn(name = "Max", type_ = "integer", json_path = ".spec.scaling.maxAllowed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.scaling) || !has(self.scaling.fixedLimitPerPod)").message("fixedLimitPerPod belongs to one pool in mode Recommend, not to a class").field_path(".scaling.fixedLimitPerPod"))]
pub struct ConnectionPoolClassSpec {
    /// The database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<ClassUpstream>,
    /// How the application reaches the pooler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientSpec>,
    /// How the size follows the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingSpec>,
    /// How fast the size may change. With localReaction Enabled its rules hold for the limit of each pod (4 Connections in 15 s are 40
    /// in ten pods), and for the target of the pool, which is the one that status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<BehaviorSpec>,
    /// The pooler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgbouncer: Option<PgBouncerSpec>,
    /// Health checks and leaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// How a change of the settings is rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
    /// The sidecar container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarSpec>,
}

/// What a class may say of the database.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct ClassUpstream {
    /// TLS towards the database. What has no use in the mode of a pool is left out there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTlsSpec>,
}
