//! `ConnectionBudget`: the ledger of one database server.

#![allow(clippy::duplicated_attributes)] // the printcolumns of one kind share their type

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Engine, Selector};

/// The ledger of one database server.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "ConnectionBudget",
    plural = "connectionbudgets",
    shortname = "cbudget",
    category = "sluice",
    status = "ConnectionBudgetStatus",
    derive = "PartialEq",
    doc = "The ledger of one database server: what it can carry, and who may open how much of it. This version accepts it and keeps no ledger.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name is stamped on pods as a label value: at most 63 characters"),
    printcolumn(name = "Capacity", type_ = "integer", json_path = ".status.capacity"),
    printcolumn(name = "Pools", type_ = "integer", json_path = ".status.pools"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.allowedNamespaces)").message("this version keeps no ledger, and pools of every namespace may name a budget; leave it out").field_path(".allowedNamespaces"),
    validation = Rule::new("!has(self.admission)").message("this version keeps no ledger, so no pool is refused or warned of for it; leave it out").field_path(".admission"),
    validation = Rule::new("!has(self.fencing)").message("this version keeps no ledger that the share of a lost pod could return to; leave it out").field_path(".fencing")
)]
pub struct ConnectionBudgetSpec {
    /// The server.
    pub server: BudgetServer,
    /// What it can carry.
    pub capacity: BudgetCapacity,
    /// What stays free for others; the larger of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Reserved>,
    /// Which namespaces may draw from it. Not supported by this version, which refuses it: pools of every namespace may name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<AllowedNamespaces>,
    /// What happens to a pool that does not fit. Not supported by this version, which refuses it: no pool is refused or warned of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<BudgetAdmission>,
    /// When the share of a lost pod returns. Not supported by this version, which refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fencing: Option<BudgetFencing>,
}

/// The server.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct BudgetServer {
    /// What runs there. Default: PostgreSQL.
    #[serde(default)]
    pub engine: Engine,
    /// Every name by which pools reach it: aliases of one ledger.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 253)))]
    pub hosts: Vec<String>,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// What the server can carry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.source != 'Server'").message("this version asks no server what it can carry; set source Fixed and connections").field_path(".source"),
    validation = Rule::new("(self.source == 'Fixed') == has(self.connections)").message("connections goes with source Fixed, and only there").field_path(".connections"),
    validation = Rule::new("!has(self.credentialsRef)").message("this version asks no server what it can carry; leave it out").field_path(".credentialsRef")
)]
pub struct BudgetCapacity {
    /// Where the number comes from. Fixed: the number given. Server: `max_connections` of the server, less what it reserves itself; not
    /// supported by this version, which refuses it.
    pub source: CapacitySource,
    /// The number, with source Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub connections: Option<u32>,
    /// Who asks the server, with source Server. In the operator's namespace. Not supported by this version, which refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<NamespacedSecretRef>,
}

/// Where the capacity comes from.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum CapacitySource {
    /// `max_connections` of the server, less what it reserves itself.
    Server,
    /// The number given.
    Fixed,
}

/// Names a Secret in a namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct NamespacedSecretRef {
    /// Namespace of the Secret: the operator's.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What stays free for others.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct Reserved {
    /// Server connections.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub connections: u32,
    /// Percent of the capacity.
    #[serde(default)]
    #[schemars(range(min = 0, max = 90))]
    pub percent: u32,
}

/// Which namespaces may draw from a budget.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("(self.from == 'Selector') == has(self.selector)").message("selector goes with from: Selector, and only there").field_path(".selector"))]
pub struct AllowedNamespaces {
    /// All namespaces, or with Selector those that the selector matches.
    pub from: NamespaceFrom,
    /// Labels of the namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

/// Which namespaces.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum NamespaceFrom {
    /// All.
    All,
    /// Those that the selector matches.
    Selector,
}

/// What happens to a pool that does not fit. Default: Warn. Warn: it is accepted, with a warning. Enforce: it is refused.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum BudgetAdmission {
    /// It is accepted, with a warning.
    Warn,
    /// It is refused.
    Enforce,
}

/// When the share of a lost pod returns.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetFencing {
    /// Seconds after which a node that does not answer counts as gone.
    #[schemars(range(min = 30, max = 86_400))]
    pub node_lost_seconds: u32,
}

/// What is known of it: this version keeps no ledger.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionBudgetStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the server can carry less what is reserved, by `spec.capacity`. Nothing keeps the pools below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Pools that name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<u32>,
    /// Their pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<u32>,
    /// Ready and LedgerActive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
}
