//! Status of a `ConnectionPool`. `kubectl describe` sorts fields by name: shallow, with sentences in messages.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What size, why this size, what limits it, what happened last.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionPoolStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// All of it in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub summary: Option<String>,
    /// Sum of the limits of the pods, in server connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_size: Option<u32>,
    /// Sum of the shares of the pods, in server connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// When the target changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<Time>,
    /// What the load asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    /// The load that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// The last decision that changed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<LastDecision>,
    /// Pods, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCounts>,
    /// Revisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<RevisionStatus>,
    /// How a revision goes over the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// What is in force after class and built-in defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// What the pooler can do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub capabilities: Vec<String>,
    /// The shared poolers of topology Gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayStatus>,
    /// Term of the operator that wrote this, as grants carry it: terms are counted from here where the Lease is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Version of the operator that wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub operator_version: Option<String>,
    /// Ready, Accepted, Injected, PodsCurrent, Proven, ScalingActive, AbleToScale, ScalingLimited, and others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
}

/// What the load asks for, in server connections of the whole pool.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recommendation {
    /// Within every bound. Put into force with `localReaction: Disabled`; else each agent decides within its pod's part of minAllowed and its share.
    pub target: u32,
    /// Below this, clients would be expected to wait.
    pub lower_bound: u32,
    /// Above this, connections would be expected to idle.
    pub upper_bound: u32,
    /// What it would be without minAllowed, maxAllowed and share.
    pub uncapped_target: u32,
    /// How much has been seen.
    pub confidence: Confidence,
}

/// How much has been seen of the load.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Confidence {
    /// Less than the learning time, or signals are missing.
    #[default]
    Low,
    /// Some hours have not been seen yet.
    Medium,
    /// Enough.
    High,
}

/// The load that was seen, the whole pool.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Busy server connections that the load asks for, by what arrives and what each takes; leaks not.
    #[schemars(length(max = 16))]
    pub demand: String,
    /// Server connections open.
    pub held: u32,
    /// Server connections linked to a client.
    pub active: u32,
    /// Clients that wait.
    pub waiting: u32,
    /// Server connections held past the threshold by clients that do nothing, in a transaction or pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaked: Option<u32>,
    /// 95th percentile of the wait, from means of one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_p95_milliseconds: Option<u32>,
    /// Age of the oldest sample of it, in seconds.
    pub age_seconds: u32,
}

/// The last decision that changed something.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct LastDecision {
    /// Identifies it in logs, events and here.
    #[schemars(length(max = 63))]
    pub id: String,
    /// What decided it.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Target before.
    pub from: u32,
    /// Target after.
    pub to: u32,
    /// In words, with the numbers.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When.
    pub time: Time,
}

/// Pods, counted.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct PodCounts {
    /// That the selector matches.
    pub matched: u32,
    /// With a sidecar.
    pub injected: u32,
    /// Of them: created with what is in force now.
    pub current: u32,
    /// Of them: that run what they should, read back.
    pub proven: u32,
    /// Of them: seen in Prometheus.
    pub reporting: u32,
}

/// Revisions.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// That was promoted last, and that new pods get, unless newPods says otherwise.
    pub stable: u64,
    /// Hash of what that one says; absent before all pods have run any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub stable_hash: Option<String>,
    /// That is being rolled out, or failed, or stable.
    pub updated: u64,
    /// Hash of what that one says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub updated_hash: Option<String>,
    /// Hashes of those that failed, the newest last: what has one of them is not tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub failed_hashes: Vec<String>,
    /// That new pods get instead of the stable one: the updated one, while pods take it over with their restart alone and its rollout allows
    /// one more. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_pods: Option<u64>,
}

/// How a revision goes over the pods.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Index of the step in course, from 0; behind the last step, how many there are. Absent while nothing is rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_step_index: Option<u32>,
    /// Hash of the steps that it is the index of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub current_step_hash: Option<String>,
    /// When that step began: what a pause counts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_started_at: Option<Time>,
    /// When it came further last: what progressDeadlineSeconds counts from. Absent while that does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressed_at: Option<Time>,
    /// The most pods that were proven to run the revision until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_pods: Option<u32>,
    /// Percent of the pods that may run the updated revision.
    pub set_weight: u32,
    /// Percent of the pods that are told to.
    pub actual_weight: u32,
    /// Pods that are told to.
    pub updated_pods: u32,
    /// How a revision failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<RolloutFailureStatus>,
    /// What the analysis after the promotion of the stable revision says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_promotion: Option<PostPromotionStatus>,
    /// That somebody wants another revision than the spec says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<UndoneStatus>,
    /// The annotation `sluice.dev/rollout` that was seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub last_command: Option<String>,
    /// What became of it: Done, or why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_command_outcome: Option<String>,
}

/// How a revision failed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutFailureStatus {
    /// Its number.
    pub revision: u64,
    /// Hash of what it says.
    #[schemars(length(max = 64))]
    pub hash: String,
    /// Why, as the condition Progressing says it.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// In words, with the numbers.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When.
    pub time: Time,
    /// When the last pod that had taken it was proven to run another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_at: Option<Time>,
    /// When it was tried again because what pods are given by reference had changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried_at: Option<Time>,
    /// What some pods were given by reference (Secrets, CA bundles, certificates) when it failed, as marks that say nothing of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub reference_marks: Vec<PodReferencesStatus>,
}

/// What a pod was given by reference.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReferencesStatus {
    /// Uid of the pod, which alone makes marks of this kind.
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Another one where the content is another one.
    #[schemars(length(max = 64))]
    pub mark: String,
}

/// The analysis after the promotion of a revision.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostPromotionStatus {
    /// The revision that was promoted.
    pub revision: u64,
    /// Hash of what it says.
    #[schemars(length(max = 64))]
    pub hash: String,
    /// The revision before, which it goes back to where it is worse.
    pub from: u64,
    /// Hash of what that one says.
    #[schemars(length(max = 64))]
    pub from_hash: String,
    /// When it was promoted.
    pub started_at: Time,
    /// When the analysis ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// What it ended with: Passed, Inconclusive, Ended by somebody, or NoWayBack. Where the revision went back, `failure` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub outcome: Option<String>,
    /// The same in words, with the numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// That somebody wants another revision than the spec says, for as long as it says that.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UndoneStatus {
    /// The revision of what the spec says.
    pub spec: u64,
    /// Hash of it.
    #[schemars(length(max = 64))]
    pub spec_hash: String,
    /// What is wanted instead.
    pub to: u64,
    /// Hash of it.
    #[schemars(length(max = 64))]
    pub to_hash: String,
}

/// What is in force after class and built-in defaults.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// The class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub class: Option<String>,
    /// Generation of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_generation: Option<i64>,
    /// Least target.
    pub min_allowed: u32,
    /// Greatest target.
    pub max_allowed: u32,
}

/// The shared poolers of topology Gateway.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Number of poolers.
    pub replicas: u32,
    /// Of them: that take clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<u32>,
    /// Selector of their pods.
    #[schemars(length(max = 512))]
    pub selector: String,
    /// Where applications find them: host and port of the Service. The ConfigMap of the Service's name says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 263))]
    pub address: Option<String>,
}
