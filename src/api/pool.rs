//! `ConnectionPool`: which workload talks to which database, and within which bounds.

#![allow(clippy::duplicated_attributes)] // the printcolumns of one kind share their type

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BehaviorSpec, ClientSpec, ConnectionPoolStatus, Gateway, HealthSpec, PgBouncerSpec, RolloutSpec, ScalingSpec,
    ServerTlsSpec, SidecarSpec,
};

/// Annotation on a pool that freezes its automation until a time, and says why: `2026-12-01T06:00:00Z the sale`.
pub const FREEZE_ANNOTATION: &str = "sluice.dev/freeze";

/// A pool of server connections for one workload: Sluice puts a pooler beside every pod that the selector matches,
/// reads the live load, works out how many server connections are needed and sets every pooler accordingly.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "ConnectionPool",
    plural = "connectionpools",
    shortname = "cpool",
    category = "sluice",
    namespaced,
    status = "ConnectionPoolStatus",
    derive = "PartialEq",
    scale(spec_replicas_path = ".spec.gateway.replicas", status_replicas_path = ".status.gateway.replicas", label_selector_path = ".status.gateway.selector"),
    doc = "A pool of server connections for one workload: sized from live load, shared out over its pods, explained in status.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name is stamped on pods as a label value: at most 63 characters"),
    validation = Rule::new("self.spec.topology != 'Gateway' || self.metadata.name.size() <= 55").message("the Service of a gateway is named after the pool, with -gateway: metadata.name may have at most 55 characters"),
    // asked at creation alone: neither can change, and what was stored before must still take a status that says so
    validation = Rule::new("oldSelf.hasValue() || self.spec.topology != 'Gateway' || self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").optional_old_self(true).message("the Service of a gateway is named after the pool, with -gateway: metadata.name begins with a letter and has letters, digits and hyphens after it, no dots"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.currentSize"),
    printcolumn(name = "Target", type_ = "integer", json_path = ".status.recommendation.target"),
    printcolumn(name = "Share", type_ = "integer", json_path = ".status.share"),
    printcolumn(name = "Demand", type_ = "string", json_path = ".status.load.demand"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.load.waiting"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods.matched"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Min", type_ = "integer", json_path = ".status.effective.minAllowed", priority = 1),
    printcolumn(name = "Max", type_ = "integer", json_path = ".status.effective.maxAllowed", priority = 1),
    printcolumn(name = "Uncapped", type_ = "integer", json_path = ".status.recommendation.uncappedTarget", priority = 1),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision.updated", priority = 1),
    printcolumn(name = "Budget", type_ = "string", json_path = ".spec.budgetRef.name", priority = 1),
    printcolumn(name = "Class", type_ = "string", json_path = ".status.effective.class", priority = 1),
    printcolumn(name = "LastScale", type_ = "date", json_path = ".status.lastScaleTime", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Recommend' || (has(self.scaling) && has(self.scaling.fixedLimitPerPod))").message("mode Recommend changes nothing, so every pod needs scaling.fixedLimitPerPod, the limit that its pooler runs with").field_path(".scaling.fixedLimitPerPod"),
    validation = Rule::new("self.mode != 'Apply' || has(self.classRef) || (has(self.scaling) && has(self.scaling.maxAllowed))").message("mode Apply needs scaling.maxAllowed, or a class that says it: the most server connections that all pods together may open, out of what the database can spare").field_path(".scaling.maxAllowed"),
    validation = Rule::new("self.mode == 'Recommend' || !has(self.scaling) || !has(self.scaling.fixedLimitPerPod)").message("scaling.fixedLimitPerPod is for mode Recommend only; with mode Apply use minAllowed and maxAllowed").field_path(".scaling.fixedLimitPerPod"),
    validation = Rule::new("self.topology == 'Gateway' || !has(self.gateway)").message("gateway is for topology Gateway only").field_path(".gateway"),
    validation = Rule::new("self.topology == 'Gateway' || has(self.workload)").message("Required value: name the pods of the application, or set topology Gateway for poolers of their own").field_path(".workload"),
    validation = Rule::new("self.topology != 'Gateway' || !has(self.workload)").message("workload is not for topology Gateway, whose poolers stand in no pod of an application; applications find them by the Service").field_path(".workload"),
    validation = Rule::new("!has(self.sharing)").message("this version keeps no ledger to share out; leave it out").field_path(".sharing"),
    validation = Rule::new("self.topology != 'Gateway' || !has(self.client) || !has(self.client.env)").message("client.env is not for topology Gateway, whose poolers stand in no pod of an application; applications take the address from the ConfigMap").field_path(".client.env"),
    validation = Rule::new("self.topology != 'Gateway' || !has(self.health) || !has(self.health.bypassAction)").message("health.bypassAction is not for topology Gateway, whose poolers stand in no pod of an application").field_path(".health.bypassAction"),
    validation = Rule::new("!has(self.pgbouncer) || !has(self.pgbouncer.sessionAlias) || self.pgbouncer.sessionAlias.database != self.upstream.database").message("sessionAlias needs another name than upstream.database").field_path(".pgbouncer.sessionAlias.database"),
    validation = Rule::new("!has(self.pgbouncer) || !has(self.pgbouncer.sessionAlias) || !has(self.scaling) || !has(self.scaling.floorPerPod) || self.scaling.floorPerPod > self.pgbouncer.sessionAlias.connections").message("floorPerPod must be larger than pgbouncer.sessionAlias.connections, which come out of it").field_path(".scaling.floorPerPod")
)]
pub struct ConnectionPoolSpec {
    /// The class that supplies what this pool leaves out, field by field; `pgbouncer.parameters` name by name,
    /// `scaling.metrics.overrides` signal by signal. The lists `client.env` and `policies`, and `client.tls`, are taken whole.
    /// Without it: the class annotated `sluice.dev/is-default-class: "true"`, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_ref: Option<ClassRef>,
    /// What is pooled. Default: PostgreSQL, behind PgBouncer. Cannot be changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("engine cannot be changed; create another pool"))]
    pub engine: Engine,
    /// Where the pooler runs. Default: Sidecar. Sidecar: beside every pod of the workload. Gateway: shared poolers of their
    /// own, a Deployment behind a Service that both are named after the pool, with `-gateway`. External: no pooler of Sluice's, recommendations only; not supported by this version, which refuses it. Cannot be changed.
    #[serde(default)]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("topology cannot be changed; create another pool"),
        validation = Rule::new("self != 'External'").message("this version does not support topology External; set Sidecar or Gateway")
    )]
    pub topology: Topology,
    /// Whether targets are put into force. Default: Apply. Recommend: everything is computed and told, nothing changes, and
    /// every pod runs with `scaling.fixedLimitPerPod`.
    #[serde(default)]
    pub mode: Mode,
    /// True freezes automation: limits, shares and revisions stay as they are, in the agents too. Traffic never stops, and pods that
    /// start get their floor.
    #[serde(default)]
    pub paused: bool,
    /// Whose pods get a pooler. They opt in by the label `sluice.dev/inject: enabled` on the pod template or the namespace.
    /// Required, but with topology Gateway, whose poolers stand in no pod of an application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// The database: where it is, how to log in, how to verify it.
    pub upstream: UpstreamSpec,
    /// How the application reaches the pooler. Fixed when a pod is created: a change needs a restart of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientSpec>,
    /// The ledger of the database server that this pool draws from: it counts the pool and its pods. This version keeps no ledger:
    /// maxAllowed alone bounds the pool, and `Accepted` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_ref: Option<BudgetRef>,
    /// Who gets what when a budget is contended. Not supported by this version, which refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,
    /// How the size follows the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingSpec>,
    /// How fast the size may change: the HorizontalPodAutoscaler's `behavior`. With localReaction Enabled its rules hold for the limit
    /// of each pod (4 Connections in 15 s are 40 in ten pods), and for the target of the pool, which is the one that status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<BehaviorSpec>,
    /// The pooler: its image, its mode, its parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgbouncer: Option<PgBouncerSpec>,
    /// Health checks and leaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// How a change of the settings is rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
    /// The container with the pooler, with topology Gateway too. Fixed when a pod is created: a change needs a restart of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarSpec>,
    /// The shared poolers of topology Gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
}

/// Names a `ConnectionPoolClass`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ClassRef {
    /// Name of the class.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Names a `ConnectionBudget`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct BudgetRef {
    /// Name of the budget.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What is pooled.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Engine {
    /// PostgreSQL behind PgBouncer.
    #[default]
    PostgreSQL,
}

/// Where the pooler runs.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Topology {
    /// One pooler beside every pod of the workload.
    #[default]
    Sidecar,
    /// Shared poolers of their own.
    Gateway,
    /// No pooler of ours: recommendations only.
    External,
}

/// Whether targets are put into force.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Mode {
    /// Targets are put into force.
    #[default]
    Apply,
    /// Targets are computed and told; every pod runs with `scaling.fixedLimitPerPod`.
    Recommend,
}

/// Whose pods get a pooler.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Workload {
    /// Labels of the pods, in the pool's namespace. Of two pools that match one pod, the older has it.
    pub selector: Selector,
}

/// A label selector that selects something.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)").message("an empty selector would match every pod of the namespace; name at least one label"))]
pub struct Selector {
    /// Labels that must all have these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = serde_json::json!({"type": "string", "maxLength": 63, "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"})))]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements that must all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One requirement of a label selector.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)").message("values go with operators In and NotIn, and only there").field_path(".values"))]
pub struct LabelRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How it is compared: In or NotIn the values, Exists, DoesNotExist.
    pub operator: LabelOperator,
    /// With what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum LabelOperator {
    /// One of the values.
    In,
    /// None of the values.
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

impl From<&Selector> for LabelSelector {
    fn from(selector: &Selector) -> Self {
        let requirements = selector.match_expressions.iter().map(|requirement| LabelSelectorRequirement {
            key: requirement.key.clone(),
            operator: match requirement.operator {
                LabelOperator::In => "In",
                LabelOperator::NotIn => "NotIn",
                LabelOperator::Exists => "Exists",
                LabelOperator::DoesNotExist => "DoesNotExist",
            }
            .to_owned(),
            values: (!requirement.values.is_empty()).then(|| requirement.values.clone()),
        });
        Self {
            match_labels: (!selector.match_labels.is_empty()).then(|| selector.match_labels.clone()),
            match_expressions: (!selector.match_expressions.is_empty()).then(|| requirements.collect()),
        }
    }
}

/// The database.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamSpec {
    /// Host name or address of the database server. Fixed when a pod is created.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?$"))]
    pub host: String,
    /// TCP port of the database server. Default: 5432. Fixed when a pod is created.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of the database, on the server and for the clients of the pooler. Fixed when a pod is created.
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// Which role of the server is expected. Default: Primary, one that takes writes; whether it does is asked through the
    /// pool every health.periodSeconds. Any: it does not matter.
    #[serde(default)]
    pub role: Role,
    /// Secret in the pool's namespace with user name and password. Fixed when a pod is created; its content is followed.
    pub credentials_ref: CredentialsRef,
    /// TLS towards the database. Default: mode VerifyFull against the trust store of the pooler's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTlsSpec>,
}

const fn default_port() -> u16 {
    5432
}

/// Which role of the server is expected.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Role {
    /// It takes writes.
    #[default]
    Primary,
    /// It does not matter.
    Any,
}

/// Names a Secret with user name and password in the same namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the user name. Default: `username`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub username_key: Option<String>,
    /// Key of the password. Default: `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub password_key: Option<String>,
}

impl CredentialsRef {
    /// The key of the user name.
    pub fn username_key(&self) -> &str {
        self.username_key.as_deref().unwrap_or("username")
    }

    /// The key of the password.
    pub fn password_key(&self) -> &str {
        self.password_key.as_deref().unwrap_or("password")
    }
}

/// Names a Secret in the same namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Names a key of a Secret in the same namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Who gets what when a budget is contended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub struct Sharing {
    /// Weight of the pool among pools of the same priority.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
    /// Higher priorities are served first, above everyone's minimum.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
}

const fn default_weight() -> u32 {
    100
}
