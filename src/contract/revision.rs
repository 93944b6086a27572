//! The settings of one revision, every default and class already merged in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ByPool, ContractError, Document, ProofMode};

/// The annotation `sluice.dev/revision`: what this pod is to run, keyed by pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionDocument {
    /// Version of the document.
    pub v: u32,
    /// One revision per pool of the pod.
    pub pools: ByPool<PoolRevision>,
}

/// One numbered, immutable set of settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolRevision {
    /// Number of the revision, as in the `ControllerRevision`.
    pub revision: u64,
    /// What it says.
    pub settings: Settings,
}

/// What a revision says. Never secrets, never rendered text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// When a server connection goes back to the pool.
    pub pool_mode: PoolMode,
    /// Which role of the database server is expected. Left out while it is the default, so that revisions written before it
    /// existed stay the same.
    #[serde(default, skip_serializing_if = "is_default")]
    pub role: UpstreamRole,
    /// PgBouncer parameters from the allow-list of `spec.pgbouncer.parameters`, by their PgBouncer names.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// A second name of the database, in session mode. Left out while there is none, so that revisions written before it existed
    /// stay the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_alias: Option<SessionAlias>,
    /// Server connections that were opened before this revision are renewed, each as its transaction ends, when this time is a
    /// later one than before: UTC, as in `2026-11-28T12:00:00Z`, so that later ones sort later. Left out while it was never asked
    /// for, so that revisions written before it existed stay the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnected_at: Option<String>,
    /// Health checks and leaks.
    pub health: HealthSettings,
    /// How the limit is decided.
    pub scaling: ScalingSettings,
    /// How a pod goes from one revision to the next. Left out while it is the default, so that revisions written before it
    /// existed stay the same.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rollout: RolloutSettings,
}

/// A second name of the database for clients that need a server connection of their own while they are connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAlias {
    /// The name that they ask for.
    pub database: String,
    /// Server connections of one pod for it, out of its share.
    pub connections: u32,
}

/// How a pod goes from one revision to the next, where that takes a new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSettings {
    /// Whether a new process takes over by itself once it has proven itself. Left out while it does.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub auto_promotion_enabled: bool,
    /// Seconds that the old process stays warm after new clients were led to the new one.
    pub scale_down_delay_seconds: u32,
    /// Seconds that a further revision waits for the clients of the old process, before idle ones are closed. 0: without limit.
    pub drain_timeout_seconds: u32,
}

impl Default for RolloutSettings {
    fn default() -> Self {
        Self { auto_promotion_enabled: true, scale_down_delay_seconds: 30, drain_timeout_seconds: 0 }
    }
}

const fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks with a reference
const fn is_yes(value: &bool) -> bool {
    *value
}

/// Whether a text has the shape `2026-11-28T12:00:00Z`: such texts are ordered as the times are.
fn is_utc(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00Z";
    let fits = |(byte, shape): (u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == *shape };
    text.len() == SHAPE.len() && text.bytes().zip(SHAPE).all(fits)
}

/// For fields that are left out while they are what they would be without.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// PgBouncer's `pool_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolMode {
    /// A client keeps its server connection until it disconnects.
    Session,
    /// A client holds a server connection for one transaction.
    #[default]
    Transaction,
}

/// Which role of the database server is expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpstreamRole {
    /// It takes writes.
    #[default]
    Primary,
    /// It does not matter.
    Any,
}

/// What becomes of clients that wait while the database is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutageAction {
    /// They are told within two seconds, once it has been away for some seconds.
    #[default]
    FailFast,
    /// They wait as long as they may at any time.
    Queue,
}

/// Health checks and leaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthSettings {
    /// Sent to the database to see that it answers. Empty: nothing is sent, and a login alone is the proof.
    pub validation_query: String,
    /// Seconds between two checks whether the database has the expected role.
    pub period_seconds: u32,
    /// Seconds that a client waits for a server connection before the pooler gives up.
    pub query_wait_timeout_seconds: u32,
    /// Seconds after which a server connection counts as leaked whose client does nothing: in a transaction, or pinned.
    pub leak_threshold_seconds: u32,
    /// What becomes of clients that wait while the database is away.
    #[serde(default, skip_serializing_if = "is_default")]
    pub outage_action: OutageAction,
}

impl HealthSettings {
    /// How what is new proves itself with these settings.
    pub fn proof(&self) -> ProofMode {
        if self.validation_query.trim().is_empty() { ProofMode::ConnectOnly } else { ProofMode::Query }
    }
}

/// How the limit is decided. Sizes are server connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScalingSettings {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Where the pod's limit comes from.
    pub limit_source: LimitSource,
    /// What the clients were promised.
    pub objective: Objective,
    /// Desired busy share of the size, for [`Algorithm::TargetUtilization`].
    pub target_utilization_percent: u32,
    /// Rates, windows and tolerance.
    pub behavior: Behavior,
}

/// How the size is computed from the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Queueing demand with self-choosing windows and headroom (`docs/sizing.md`).
    #[default]
    Adaptive,
    /// The HPA's ratio rule on busy over size.
    TargetUtilization,
    /// The classic load-factor formula.
    LoadFactor,
}

/// Where the pod's limit comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitSource {
    /// The agent decides each second between floor and share.
    #[default]
    LocalReaction,
    /// The limit is the share: the operator decides alone.
    Share,
}

/// What the clients were promised: at most `max_waiting_percent` of the transactions wait longer than `wait_milliseconds`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// Wait for a server connection, in milliseconds.
    pub wait_milliseconds: u32,
    /// Share of the transactions that may wait longer, in percent.
    pub max_waiting_percent: f64,
}

/// The HPA's `behavior`, both directions resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Behavior {
    /// Growth.
    pub scale_up: ScalingRules,
    /// Shrink.
    pub scale_down: ScalingRules,
}

/// The HPA's `HPAScalingRules`, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScalingRules {
    /// Seconds over which the safest recommendation counts.
    pub stabilization_window_seconds: u32,
    /// Which policy wins.
    pub select_policy: SelectPolicy,
    /// The rates. Empty: no limit of the rate.
    pub policies: Vec<ScalingPolicy>,
    /// Relative change below which nothing changes: 0.05 is 5 %.
    pub tolerance: f64,
}

/// Which of several policies wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    #[default]
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// One rate: at most `value` within `period_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScalingPolicy {
    /// Unit of `value`.
    #[serde(rename = "type")]
    pub type_: ScalingPolicyType,
    /// How much.
    pub value: u32,
    /// Within how many seconds.
    pub period_seconds: u32,
}

/// Unit of a policy's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScalingPolicyType {
    /// Server connections.
    Connections,
    /// Percent of the size at the beginning of the period.
    Percent,
}

impl Settings {
    /// Server connections in the share of each pod that are for its session alias.
    pub fn for_sessions(&self) -> u32 {
        self.session_alias.as_ref().map_or(0, |alias| alias.connections)
    }
}

impl Document for RevisionDocument {
    const NAME: &'static str = "annotation sluice.dev/revision";
    const VERSION: u32 = 1;

    fn check(&self) -> Result<(), ContractError> {
        for (pool, PoolRevision { settings, .. }) in &self.pools {
            let wrong = |message: &str| {
                Err(ContractError::Inconsistent { document: Self::NAME, message: format!("pool {pool}: {message}") })
            };
            let percent = settings.scaling.objective.max_waiting_percent;
            if !(percent > 0.0 && percent < 100.0) {
                return wrong("objective.maxWaitingPercent must lie between 0 and 100");
            }
            if settings.scaling.objective.wait_milliseconds == 0 {
                return wrong("objective.waitMilliseconds must be at least 1");
            }
            if settings.session_alias.as_ref().is_some_and(|alias| alias.connections == 0) {
                return wrong("sessionAlias.connections must be at least 1");
            }
            if settings.reconnected_at.as_deref().is_some_and(|at| !is_utc(at)) {
                return wrong("reconnectedAt must be a time in UTC, as 2026-11-28T12:00:00Z");
            }
            if !(1..=100).contains(&settings.scaling.target_utilization_percent) {
                return wrong("targetUtilizationPercent must lie between 1 and 100");
            }
            for rules in [&settings.scaling.behavior.scale_up, &settings.scaling.behavior.scale_down] {
                if !(0.0..1.0).contains(&rules.tolerance) {
                    return wrong("behavior tolerance must be at least 0 and below 1");
                }
                if rules.policies.iter().any(|policy| policy.value == 0 || policy.period_seconds == 0) {
                    return wrong("behavior policies need a value and a period of at least 1");
                }
            }
        }
        Ok(())
    }
}
