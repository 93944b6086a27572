//! The kinds of `sluice.dev/v1alpha1`, their rules and their vocabulary.
//!
//! A field that a [`ConnectionPoolClass`] can supply is an `Option` and has no schema default: the API server would
//! write a default into the object and the class could never win. The effective value (pool, else class, else built-in)
//! is computed in `decide::effective`.

mod budget;
mod class;
pub mod conditions;
mod crd;
mod gateway;
mod pool;
mod pool_status;
mod pooler;
pub mod reasons;
mod rollout;
mod scaling;
mod selector;

pub use budget::{
    AllowedNamespaces, BudgetAdmission, BudgetCapacity, BudgetFencing, BudgetServer, CapacitySource, ConnectionBudget,
    ConnectionBudgetSpec, ConnectionBudgetStatus, NamespaceFrom, NamespacedSecretRef, Reserved,
};
pub use class::{ClassUpstream, ConnectionPoolClass, ConnectionPoolClassSpec, IS_DEFAULT_CLASS_ANNOTATION};
pub use crd::{crds, crds_chart_template, crds_yaml};
pub use gateway::{
    Gateway, GatewayDnsConfig, GatewayDnsOption, GatewayDnsPolicy, GatewayMetadata, GatewayPodSpec, GatewayTemplate,
    GatewayToleration,
};
pub use pool::{
    BudgetRef, ClassRef, ConnectionPool, ConnectionPoolSpec, CredentialsRef, Engine, FREEZE_ANNOTATION, LabelOperator,
    LabelRequirement, Mode, Role, SecretKeyRef, SecretRef, Selector, Sharing, Topology, UpstreamSpec, Workload,
};
pub use pool_status::{
    Confidence, ConnectionPoolStatus, Effective, GatewayStatus, LastDecision, Load, PodCounts, PodReferencesStatus,
    PostPromotionStatus, Recommendation, RevisionStatus, RolloutFailureStatus, RolloutStatus, UndoneStatus,
};
pub use pooler::{
    BypassAction, ClientAuth, ClientSpec, ClientTlsModeSpec, ClientTlsSpec, EnvTemplate, HealthSpec, LeakAction,
    OutageActionSpec, PgBouncerPoolMode, PgBouncerSpec, ResourceAmounts, ServerTlsModeSpec, ServerTlsSpec,
    SessionAliasSpec, SidecarReadiness, SidecarResources, SidecarSpec,
};
pub use rollout::{
    AnalysisMetric, AnalysisSpec, AnalysisStep, BlueGreen, Canary, CanaryStep, Pause, ROLLOUT_ANNOTATION, RolloutSpec,
};
pub use scaling::{
    AlgorithmSpec, BehaviorPolicy, BehaviorPolicyType, BehaviorRules, BehaviorSelectPolicy, BehaviorSpec,
    LocalReaction, MetricsSpec, ObjectiveSpec, ScalingSpec, Signal, SignalOverride,
};
pub use selector::pool_of_labels;

/// API group.
pub const GROUP: &str = "sluice.dev";
/// API version.
pub const VERSION: &str = "v1alpha1";
/// Field manager of the operator's server-side applies.
pub const FIELD_MANAGER: &str = "sluice-operator";
