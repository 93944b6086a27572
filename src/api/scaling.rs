//! `spec.scaling` and `spec.behavior`: how the size follows the load, and how fast.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the size follows the load. Sizes are server connections.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.minAllowed) || !has(self.maxAllowed) || self.minAllowed <= self.maxAllowed").message("minAllowed must not exceed maxAllowed").field_path(".minAllowed"),
    validation = Rule::new("!has(self.targetUtilizationPercent) || !has(self.algorithm) || self.algorithm == 'TargetUtilization'").message("targetUtilizationPercent has no effect with another algorithm than TargetUtilization").field_path(".targetUtilizationPercent")
)]
pub struct ScalingSpec {
    /// How the target is computed. Default: Adaptive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<AlgorithmSpec>,
    /// Least target of the whole pool, and what the limits of its pods together are never below. It opens no connection. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub min_allowed: Option<u32>,
    /// Greatest target of the whole pool; in mode Apply what all its pods together may open, and a pool names it, or a class that says
    /// it. In mode Recommend it bounds the recommendation alone: each pod may open fixedLimitPerPod, whatever the sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_allowed: Option<u32>,
    /// What every pod may always hold. Default: 1, and with `pgbouncer.sessionAlias` its connections and 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub floor_per_pod: Option<u32>,
    /// Whether the limit of a pod follows its load each second within its share. Default: Enabled. Disabled: limit and
    /// share are the target divided over the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_reaction: Option<LocalReaction>,
    /// The limit of every pod in mode Recommend. Required there, refused elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub fixed_limit_per_pod: Option<u32>,
    /// What the clients were promised. Default: at most 1 % wait longer than 20 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<ObjectiveSpec>,
    /// Busy share of the size that TargetUtilization aims at, in percent. Default: 70.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub target_utilization_percent: Option<u32>,
    /// Where the load is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsSpec>,
}

/// How the target is computed. Default: Adaptive. Adaptive: queueing demand, with windows and headroom that choose
/// themselves. TargetUtilization: the HorizontalPodAutoscaler's ratio rule on busy over size. LoadFactor: the classic
/// load-factor formula, which lags behind the load by construction; for comparison.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum AlgorithmSpec {
    /// Queueing demand, with windows and headroom that choose themselves.
    Adaptive,
    /// The HorizontalPodAutoscaler's ratio rule on busy over size.
    TargetUtilization,
    /// The classic load-factor formula. It lags behind the load by construction: for comparison.
    LoadFactor,
}

/// Whether the limit of a pod follows its load each second within its share. Default: Enabled. Disabled: limit and share
/// are the target divided over the pods, decided by the operator alone.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum LocalReaction {
    /// It does.
    Enabled,
    /// The operator decides alone.
    Disabled,
}

/// What the clients were promised.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectiveSpec {
    /// Longest wait for a server connection that counts as kept, in milliseconds. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60_000))]
    pub wait_milliseconds: Option<u32>,
    /// Share of the transactions that may wait longer, in percent, as a string. Default: "1".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), regex(pattern = r"^([1-9][0-9]?(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9])$"))]
    pub max_waiting_percent: Option<String>,
}

/// Where the load is read.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MetricsSpec {
    /// Name of the Prometheus of the operator's configuration. Default: default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub prometheus_ref: Option<String>,
    /// PromQL of your own in place of a signal of Sluice's. It moves the target, and so the limits with `localReaction: Disabled` alone:
    /// with Enabled they follow what each agent sees of its own pod, and the target is a recommendation. The operator asks it with its own login, so only for namespaces that
    /// the configuration of the server allows (`prometheus.servers.NAME.allowedNamespaces` of the chart).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["signal".to_string()]))]
    pub overrides: Vec<SignalOverride>,
}

/// PromQL of the user's own in place of a signal.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct SignalOverride {
    /// The signal that the query replaces. Gauges: WaitingClients, ActiveConnections. Counters, which Sluice takes the rate
    /// of: Transactions, TransactionSeconds, WaitSeconds. TransactionSeconds are those that server connections worked, the
    /// wait for one left out.
    pub signal: Signal,
    /// Instant query that yields one number for the whole pool.
    #[schemars(length(min = 1, max = 2048))]
    pub query: String,
}

/// A signal that the user may replace.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
pub enum Signal {
    /// Clients that wait for a server connection, now.
    WaitingClients,
    /// Server connections that are busy, now.
    ActiveConnections,
    /// Transactions finished: a counter.
    Transactions,
    /// Seconds that server connections worked for transactions: a counter. PgBouncer's own holds the waits: less those.
    TransactionSeconds,
    /// Seconds that clients waited: a counter.
    WaitSeconds,
}

/// How fast the size may change: the HorizontalPodAutoscaler's `behavior`. Each field that is left out has a default of its
/// own. The rules hold for each size that is decided: with localReaction Enabled for the limit of each pod, which its agent
/// decides, so that 4 Connections in 15 s are 4 in each pod and 40 in ten; and for the target of the whole pool. What status
/// says of them is of the target. With localReaction Disabled there is the target alone.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BehaviorSpec {
    /// Growth. Default for Adaptive: no window, no policies, which means no limit of the rate, tolerance 0.02. Default for
    /// TargetUtilization and LoadFactor, as for the HorizontalPodAutoscaler: no window, the larger of 100 % and 4
    /// connections in 15 s, tolerance 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<BehaviorRules>,
    /// Shrink. Default for Adaptive: no window, no policies, which means no limit of the rate, tolerance 0.05. Default for
    /// TargetUtilization and LoadFactor, as for the HorizontalPodAutoscaler: window 300 s, 100 % in 15 s, tolerance 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<BehaviorRules>,
}

/// The rules of one direction.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BehaviorRules {
    /// Seconds of past recommendations of which the safest counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: Option<u32>,
    /// Which of the policies wins. Default: Max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select_policy: Option<BehaviorSelectPolicy>,
    /// The rates: at most so much change within so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub policies: Option<Vec<BehaviorPolicy>>,
    /// Relative change below which nothing changes, as a string: "0.05" is 5 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), regex(pattern = r"^0(\.[0-9]{1,4})?$"))]
    pub tolerance: Option<String>,
}

/// Which of several policies wins. Default: Max. Max: the one that allows the largest change. Min: the smallest. Disabled:
/// no change in this direction.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum BehaviorSelectPolicy {
    /// The largest change.
    Max,
    /// The smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// One rate.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BehaviorPolicy {
    /// Unit of the value: Connections, or Percent of the size at the beginning of the period.
    #[serde(rename = "type")]
    pub type_: BehaviorPolicyType,
    /// How much.
    #[schemars(range(min = 1, max = 100_000))]
    pub value: u32,
    /// Within how many seconds.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: u32,
}

/// Unit of a policy's value.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum BehaviorPolicyType {
    /// Server connections.
    Connections,
    /// Percent of the size at the beginning of the period.
    Percent,
}
