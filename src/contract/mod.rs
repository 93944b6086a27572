//! PURE: what the operator and the sidecar's agent say to each other.
//!
//! The operator writes two pod annotations, [`REVISION_ANNOTATION`](names::REVISION_ANNOTATION) and
//! [`GRANT_ANNOTATION`](names::GRANT_ANNOTATION); the kubelet projects both as files; the agent reads them and answers
//! over HTTP with a [`StatusReport`]. What is fixed for a pod's whole life travels once, in the sidecar's environment, as
//! an [`Injection`]. Every document carries a version `v`; a document of a newer version is refused with
//! [`ContractError::NewerVersion`] and changes nothing.

mod by_pool;
mod clients;
mod document;
mod grant;
mod injection;
pub mod metrics;
pub mod names;
mod revision;
mod status;
mod trouble;
mod understanding;

pub use by_pool::ByPool;
pub use clients::{ApplicationClients, ClientState, ClientsReport, LongestClient};
pub use document::{ContractError, Document};
pub use grant::{EPOCHS, GrantDocument, LARGEST_SEQ, PodGrant, Stamp, is_later_epoch};
pub use injection::{ClientSide, ClientTlsMode, Injection, Reach, ServerTls, ServerTlsMode, Upstream};
pub use revision::{
    Algorithm, Behavior, HealthSettings, LimitSource, Objective, OutageAction, PoolMode, PoolRevision,
    RevisionDocument, RolloutSettings, ScalingPolicy, ScalingPolicyType, ScalingRules, ScalingSettings, SelectPolicy,
    SessionAlias, Settings, UpstreamRole,
};
pub use status::{
    Bypass, CircuitReport, CircuitState, ForeignListeners, Held, LONGEST_MARK_BYTES, LeakKinds, LimitsReadBack,
    MemoryReport, OtherRole, OtherSlot, ProofMode, Reconnected, RevisionWait, SessionAliasReport, SlotStatus,
    StatusReport, Switching, TrustReport, UpstreamSeen, UpstreamState,
};
pub use trouble::{Between, PoolerError, ServerFull, TroubleSeen};
pub use understanding::{SETTINGS_LEVEL, unknown_here, unknown_to};
