//! Reasons of the operator's conditions and events. They are stable: alerts and scripts match them.
//!
//! Reasons of decisions are those of `domain::Reason`; reasons of a refused spec come with the refusal.

/// `Ready`: everything is as it should be.
pub const IN_FORCE: &str = "InForce";
/// `Injected`: the selector matches no pod.
pub const NO_PODS: &str = "NoPods";
/// `Accepted`: spec and class make sense together.
pub const VALID: &str = "Valid";
/// `Accepted`: the budget that the pool names does not exist.
pub const BUDGET_NOT_FOUND: &str = "BudgetNotFound";
/// `Accepted`: an older pool selects the same pods.
pub const SELECTOR_OVERLAPS: &str = "SelectorOverlaps";
/// `Accepted`: the spec or its class asks for what this version does not support.
pub const NOT_SUPPORTED: &str = "NotSupported";
/// `Accepted`: the settings cannot be rendered into a configuration of the pooler.
pub const CANNOT_RENDER: &str = "CannotRender";
/// Other conditions while the pool is not accepted.
pub const NOT_ACCEPTED: &str = "NotAccepted";
/// `Injected`: every pod has a sidecar.
pub const ALL_INJECTED: &str = "AllInjected";
/// `Injected`: the API server refuses to create pods.
pub const PODS_REFUSED: &str = "PodsRefused";
/// `Injected`: some pods are older than the pool or the webhook.
pub const PODS_WITHOUT_SIDECAR: &str = "PodsWithoutSidecar";
/// `PodsCurrent`: every pod was created with what is in force.
pub const UP_TO_DATE: &str = "UpToDate";
/// `PodsCurrent`: a change reaches running pods by their restart only.
pub const RESTART_REQUIRED: &str = "RestartRequired";
/// `Proven`: every pod runs what it should, read back.
pub const ALL_PROVEN: &str = "AllProven";
/// `Proven`: every pod runs what it should; what is new proves itself by a login alone.
pub const CONNECT_ONLY: &str = "ConnectOnly";
/// `Proven`: a change is on its way.
pub const AWAITING_PROOF: &str = "AwaitingProof";
/// `Proven`: an agent does not answer.
pub const AGENT_UNREACHABLE: &str = "AgentUnreachable";
/// `Proven`: no container of a pod can be started, most often for want of a Secret or a key in it.
pub const FAILED_MOUNT: &str = "FailedMount";
/// `Proven`: another process listens on the pooler's address in a pod.
pub const PORT_SHARED: &str = "PortShared";
/// `Proven`: an agent says why it cannot put a change into force.
pub const NOT_APPLIED: &str = "NotApplied";
/// `ScalingActive`: the load is known.
pub const SIGNALS_FRESH: &str = "SignalsFresh";
/// `ScalingActive`: the load is known, and several servers answer in turn behind one address.
pub const SERVERS_ALTERNATE: &str = "ServersAlternate";
/// `Injected`: the pods without a sidecar cannot be counted.
pub const COUNT_FAILED: &str = "CountFailed";
/// `Injected`, `GatewayAvailable`, `ScalingActive`: nothing has been counted, made or decided yet.
pub const STARTING: &str = "Starting";
/// `AbleToScale`: a change could be put into force.
pub const READY_FOR_CHANGE: &str = "ReadyForChange";
/// `AbleToScale`: a change failed and is tried again later.
pub const BACKOFF_AFTER_FAILURE: &str = "BackoffAfterFailure";
/// `AbleToScale`: `mode: Recommend`.
pub const RECOMMEND_ONLY: &str = "RecommendOnly";
/// `AbleToScale`, `Paused`: `paused: true`.
pub const PAUSED: &str = "Paused";
/// `AbleToScale`, `Paused`: the annotation `sluice.dev/freeze`.
pub const FROZEN: &str = "Frozen";
/// `Paused`: `paused: false`, and nobody has frozen it.
pub const NOT_PAUSED: &str = "NotPaused";
/// `ScalingLimited`: nothing limits the target.
pub const WITHIN_BOUNDS: &str = "WithinBounds";
/// `ScalingLimited`: more pods than connections.
pub const TOO_MANY_PODS: &str = "TooManyPods";
/// `ScalingLimited`: in mode Recommend the limits of all pods exceed `maxAllowed`.
pub const FIXED_EXCEEDS_MAX: &str = "FixedExceedsMax";
/// `ScalingLimited`: the floors of all pods exceed the whole.
pub const FLOOR_LOWERED: &str = "FloorLowered";
/// `Progressing`: every pod runs the newest revision.
pub const ROLLOUT_COMPLETE: &str = "RolloutComplete";
/// `Progressing`, `PodsCurrent`: the newest revision, or what is fixed when a pod is created, is being rolled out.
pub const ROLLING_OUT: &str = "RollingOut";
/// `Progressing`: the newest revision has proven itself and waits for somebody to promote it.
pub const BLUE_GREEN_PAUSE: &str = "BlueGreenPause";
/// `Progressing`, `Paused`: the rollout waits in a pause step.
pub const ROLLOUT_PAUSED: &str = "RolloutPaused";
/// `Progressing`: no progress within `rollout.progressDeadlineSeconds`: the revision was taken back, unless there is none before it.
pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
/// `Progressing`: somebody took the revision back.
pub const ROLLOUT_ABORTED: &str = "RolloutAborted";
/// `Progressing`: the analysis found the revision worse, and it was taken back.
pub const ANALYSIS_FAILED: &str = "AnalysisFailed";
/// `Progressing`: the revision runs on its canary, and its metrics are judged.
pub const ANALYSING: &str = "Analysing";
/// `Progressing`: the analysis could not tell whether the revision is worse, and it was taken back.
pub const ANALYSIS_INCONCLUSIVE: &str = "AnalysisInconclusive";
/// `Progressing`: the revision runs on all pods and was promoted, and their metrics are judged for a while more.
pub const POST_PROMOTION_ANALYSING: &str = "PostPromotionAnalysing";
/// Event: the metrics after the promotion show no harm.
pub const POST_PROMOTION_PASSED: &str = "PostPromotionPassed";
/// Event: of the metrics after the promotion nothing can be known, and the revision stays.
pub const POST_PROMOTION_INCONCLUSIVE: &str = "PostPromotionInconclusive";
/// `Progressing`: every pod runs an earlier revision than the spec says, because somebody wants it so.
pub const ROLLOUT_UNDONE: &str = "RolloutUndone";
/// `UpstreamHealthy`: it takes writes.
pub const TAKES_WRITES: &str = "TakesWrites";
/// `UpstreamHealthy`, `ScalingActive`: it takes no writes although a primary is expected.
pub const UPSTREAM_READ_ONLY: &str = "UpstreamReadOnly";
/// `UpstreamHealthy`, `ScalingActive`: it is away, by the circuit breakers of pods.
pub const CIRCUIT_OPEN: &str = "CircuitOpen";
/// `UpstreamHealthy`: it does not answer.
pub const UPSTREAM_SILENT: &str = "UpstreamSilent";
/// `UpstreamHealthy`, `LeakDetected`, `ClientsPooled`: nobody can see it.
pub const NOT_OBSERVED: &str = "NotObserved";
/// `ClientsAccepted`: no pooler turned a client away lately.
pub const NONE_REFUSED: &str = "NoneRefused";
/// `ClientsPooled`: every connection of the pods to the database is a pooler's.
pub const ALL_POOLED: &str = "AllPooled";
/// `ClientsPooled`: applications are connected to the database past their poolers.
pub const CONNECTED_PAST_POOLER: &str = "ConnectedPastPooler";
/// `ClientsPooled`: the same, and the pool says that it is meant to be so.
pub const BYPASS_IGNORED: &str = "BypassIgnored";
/// `LeakDetected`: connections are held in a transaction that waits for its client.
pub const IDLE_IN_TRANSACTION: &str = "IdleInTransaction";
/// `LeakDetected`: connections are held outside of a transaction, pinned to their clients.
pub const PINNED_AFTER_COPY: &str = "PinnedAfterCopy";
/// `LeakDetected`: connections are held by clients that do nothing, and no agent has said whether in a transaction or pinned.
pub const HELD_WITHOUT_WORK: &str = "HeldWithoutWork";
/// `LeakDetected`: none are.
pub const NO_LEAK: &str = "NoLeak";
/// `SidecarMemory`: there is room for every share.
pub const MEMORY_SUFFICES: &str = "Sufficient";
/// `SidecarMemory`: the same, although every server connection has a copy of the whole trust store.
pub const WHOLE_TRUST_STORE: &str = "WholeTrustStore";
/// `SidecarMemory`: a share is larger than the memory has room for, and the load does not need it now.
pub const SHARE_EXCEEDS_MEMORY: &str = "ShareExceedsMemory";
/// `SidecarMemory`: a limit is smaller than the load asks for, because the memory has no room for more.
pub const LIMITED_BY_MEMORY: &str = "LimitedByMemory";
/// `Reconnected`, and its event: every pod has renewed its server connections.
pub const ALL_RECONNECTED: &str = "AllReconnected";
/// `Reconnected`: some pods have yet to be told, a few at a time.
pub const RECONNECTING: &str = "Reconnecting";
/// `Reconnected`: every pod was told, and some old connections have a transaction to finish.
pub const AWAITING_TRANSACTIONS: &str = "AwaitingTransactions";
/// `Reconnected`: a later time was done before, so nothing is renewed for this one.
pub const NOT_LATER: &str = "NotLater";
/// `Proven`, `Reconnected`: agents of an earlier version do not know a setting of the revision.
pub const AGENT_OUTDATED: &str = "AgentOutdated";
/// Budget, `LedgerActive`: this version keeps no ledger.
pub const LEDGER_NOT_KEPT: &str = "NotKeptYet";
/// `GatewayAvailable`: every pooler that there should be takes clients.
pub const GATEWAY_READY: &str = "AllPoolersReady";
/// `GatewayAvailable`: some poolers take clients, not all.
pub const GATEWAY_PARTLY_READY: &str = "SomePoolersReady";
/// `GatewayAvailable`: no pooler takes clients.
pub const GATEWAY_NOT_READY: &str = "NoPoolerReady";
/// `GatewayAvailable`: `gateway.replicas` is 0.
pub const GATEWAY_SCALED_TO_ZERO: &str = "ScaledToZero";
/// `GatewayAvailable`: the operator has no rights on Deployments and Services.
pub const GATEWAY_DISABLED: &str = "GatewayDisabled";
/// `GatewayAvailable`: an object of a name that the gateway needs is somebody else's.
pub const GATEWAY_NAME_TAKEN: &str = "NameTaken";
/// `GatewayAvailable`: the API server refused an object of the gateway.
pub const GATEWAY_NOT_APPLIED: &str = "GatewayNotApplied";
/// Event: the target changed.
pub const TARGET_CHANGED: &str = "TargetChanged";
/// Event: a failed revision is tried again, because what pods are given by reference has changed.
pub const ROLLOUT_RETRIED: &str = "RolloutRetried";
/// Event: a step of a rollout is done.
pub const ROLLOUT_STEP_COMPLETED: &str = "RolloutStepCompleted";
/// Event: the last pod that had taken a failed revision is back.
pub const ROLLBACK_COMPLETE: &str = "RollbackComplete";
/// Event: what somebody asked of a rollout was done.
pub const ROLLOUT_COMMAND: &str = "RolloutCommand";
/// Event: what somebody asked of a rollout was refused.
pub const ROLLOUT_COMMAND_REFUSED: &str = "RolloutCommandRefused";
/// Event: a revision was created.
pub const REVISION_CREATED: &str = "RevisionCreated";
/// Event: somebody changed the spec.
pub const SPEC_CHANGED: &str = "SpecChanged";

/// Every reason of this module, for those who check a word that somebody else wrote.
pub static ALL: [&str; 85] = [
    IN_FORCE,
    NO_PODS,
    VALID,
    BUDGET_NOT_FOUND,
    SELECTOR_OVERLAPS,
    NOT_SUPPORTED,
    CANNOT_RENDER,
    NOT_ACCEPTED,
    ALL_INJECTED,
    PODS_REFUSED,
    PODS_WITHOUT_SIDECAR,
    UP_TO_DATE,
    RESTART_REQUIRED,
    ALL_PROVEN,
    CONNECT_ONLY,
    AWAITING_PROOF,
    AGENT_UNREACHABLE,
    FAILED_MOUNT,
    PORT_SHARED,
    NOT_APPLIED,
    SIGNALS_FRESH,
    SERVERS_ALTERNATE,
    COUNT_FAILED,
    STARTING,
    READY_FOR_CHANGE,
    BACKOFF_AFTER_FAILURE,
    RECOMMEND_ONLY,
    PAUSED,
    FROZEN,
    NOT_PAUSED,
    WITHIN_BOUNDS,
    TOO_MANY_PODS,
    FIXED_EXCEEDS_MAX,
    FLOOR_LOWERED,
    ROLLOUT_COMPLETE,
    ROLLING_OUT,
    BLUE_GREEN_PAUSE,
    ROLLOUT_PAUSED,
    PROGRESS_DEADLINE_EXCEEDED,
    ROLLOUT_ABORTED,
    ANALYSIS_FAILED,
    ANALYSING,
    ANALYSIS_INCONCLUSIVE,
    POST_PROMOTION_ANALYSING,
    POST_PROMOTION_PASSED,
    POST_PROMOTION_INCONCLUSIVE,
    ROLLOUT_UNDONE,
    TAKES_WRITES,
    UPSTREAM_READ_ONLY,
    CIRCUIT_OPEN,
    UPSTREAM_SILENT,
    NOT_OBSERVED,
    NONE_REFUSED,
    ALL_POOLED,
    CONNECTED_PAST_POOLER,
    BYPASS_IGNORED,
    IDLE_IN_TRANSACTION,
    PINNED_AFTER_COPY,
    HELD_WITHOUT_WORK,
    NO_LEAK,
    MEMORY_SUFFICES,
    WHOLE_TRUST_STORE,
    SHARE_EXCEEDS_MEMORY,
    LIMITED_BY_MEMORY,
    ALL_RECONNECTED,
    RECONNECTING,
    AWAITING_TRANSACTIONS,
    NOT_LATER,
    AGENT_OUTDATED,
    LEDGER_NOT_KEPT,
    GATEWAY_READY,
    GATEWAY_PARTLY_READY,
    GATEWAY_NOT_READY,
    GATEWAY_SCALED_TO_ZERO,
    GATEWAY_DISABLED,
    GATEWAY_NAME_TAKEN,
    GATEWAY_NOT_APPLIED,
    TARGET_CHANGED,
    ROLLOUT_RETRIED,
    ROLLOUT_STEP_COMPLETED,
    ROLLBACK_COMPLETE,
    ROLLOUT_COMMAND,
    ROLLOUT_COMMAND_REFUSED,
    REVISION_CREATED,
    SPEC_CHANGED,
];
