//! Types and reasons of the conditions, and how one is set.
//!
//! A condition is an observation. `Ready` sums up the others. Reasons are what `kubectl get` shows and what alerts match:
//! they are stable.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Every other condition is as it should be.
pub const READY: &str = "Ready";
/// The spec, merged with its class, makes sense.
pub const ACCEPTED: &str = "Accepted";
/// Every pod that the selector matches has a sidecar.
pub const INJECTED: &str = "Injected";
/// Of a gateway: its poolers take clients.
pub const GATEWAY_AVAILABLE: &str = "GatewayAvailable";
/// Every pod was created with what is fixed at creation now.
pub const PODS_CURRENT: &str = "PodsCurrent";
/// Every pod runs what it should, read back from its pooler.
pub const PROVEN: &str = "Proven";
/// The target follows the load.
pub const SCALING_ACTIVE: &str = "ScalingActive";
/// A change of size could be put into force.
pub const ABLE_TO_SCALE: &str = "AbleToScale";
/// A bound keeps the target from what the load asks for.
pub const SCALING_LIMITED: &str = "ScalingLimited";
/// A change is being rolled out, or has been.
pub const PROGRESSING: &str = "Progressing";
/// The database has the role that is expected of it, and lets the poolers in.
pub const UPSTREAM_HEALTHY: &str = "UpstreamHealthy";
/// Server connections were renewed for `pgbouncer.reconnectedAt`. Absent where it is not set.
pub const RECONNECTED: &str = "Reconnected";
/// No pooler turned a client away lately.
pub const CLIENTS_ACCEPTED: &str = "ClientsAccepted";
/// Of no pod an application is connected to the database past its pooler.
pub const CLIENTS_POOLED: &str = "ClientsPooled";
/// Server connections are held past the threshold by clients that do nothing.
pub const LEAK_DETECTED: &str = "LeakDetected";
/// The memory of the sidecars has room for what they may open. Absent where none of them tells.
pub const SIDECAR_MEMORY: &str = "SidecarMemory";
/// Automation is frozen, or a rollout waits in a pause step.
pub const PAUSED: &str = "Paused";
/// On a budget: the ledger is kept.
pub const LEDGER_ACTIVE: &str = "LedgerActive";

/// Every type of condition.
pub static ALL: [&str; 18] = [
    READY,
    ACCEPTED,
    INJECTED,
    GATEWAY_AVAILABLE,
    PODS_CURRENT,
    PROVEN,
    SCALING_ACTIVE,
    ABLE_TO_SCALE,
    SCALING_LIMITED,
    PROGRESSING,
    UPSTREAM_HEALTHY,
    RECONNECTED,
    CLIENTS_ACCEPTED,
    CLIENTS_POOLED,
    LEAK_DETECTED,
    SIDECAR_MEMORY,
    PAUSED,
    LEDGER_ACTIVE,
];

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody can say.
    Unknown,
}

impl ConditionStatus {
    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition as it is observed, before it is merged into a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedCondition {
    /// Type: one of the constants of this module.
    pub type_: &'static str,
    /// Status.
    pub status: ConditionStatus,
    /// Reason in CamelCase: stable.
    pub reason: &'static str,
    /// What is so, with numbers, and what to do about it.
    pub message: String,
}

/// Longest message that a condition may carry, in bytes (the API allows 32,768; a describe page should stay readable).
const MESSAGE_BYTES: usize = 1024;

/// Merges what was observed into the conditions of a status: the transition time of a condition whose status did not
/// change is kept, conditions that were not observed are dropped, `Ready` comes first.
pub fn merge(
    old: &[Condition],
    observed: Vec<ObservedCondition>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut merged: Vec<Condition> = observed
        .into_iter()
        .map(|ObservedCondition { type_, status, reason, mut message }| {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
            let since = old
                .iter()
                .find(|condition| condition.type_ == type_ && condition.status == status.as_str())
                .map_or(Time(now), |condition| condition.last_transition_time.clone());
            Condition {
                type_: type_.to_owned(),
                status: status.as_str().to_owned(),
                reason: reason.to_owned(),
                message,
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect();
    merged.sort_by_key(|condition| (condition.type_ != READY, condition.type_ == PAUSED));
    merged
}
