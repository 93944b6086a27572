//! Names of the metrics that the agent exports and the operator queries.
//!
//! Every series carries [`POOL`] and [`POOL_NAMESPACE`]; Prometheus adds `namespace` and `pod`. The pod's uid stands on
//! [`AGENT_INFO`] only, so that a restart does not begin new series everywhere.

/// Label: name of the pool.
pub const POOL: &str = "pool";
/// Label: namespace of the pool.
pub const POOL_NAMESPACE: &str = "pool_namespace";
/// Label: what a connection does.
pub const STATE: &str = "state";
/// Label: over how many seconds a peak was taken (`5s`, `30s`).
pub const WINDOW: &str = "window";

/// Label: number of the revision that the active process runs.
pub const OF_REVISION: &str = "revision";
/// Label: slot of the active process, `a` or `b`.
pub const SLOT: &str = "slot";

/// Gauge, always 1, labels `pod_uid` and `version`.
pub const AGENT_INFO: &str = "sluice_agent_info";
/// Counter: transactions that got a server connection and have ended.
pub const TRANSACTIONS: &str = "sluice_transactions_total";
/// Counter: transactions whose client went, or was sent away, before it got a server connection.
pub const ABANDONED: &str = "sluice_abandoned_transactions_total";
/// Counter: seconds that server connections worked for transactions, waits and leaks left out.
pub const BUSY_SECONDS: &str = "sluice_busy_seconds_total";
/// Counter: PgBouncer's own seconds of transactions that have ended: from the client's first message on, the wait for a server
/// connection included. Not what the size follows from.
pub const TRANSACTION_SECONDS: &str = "sluice_transaction_seconds_total";
/// Counter: seconds that clients waited for a server connection.
pub const WAIT_SECONDS: &str = "sluice_wait_seconds_total";
/// Counter: server connections assigned to clients; the divisor of the wait.
pub const SERVER_ASSIGNMENTS: &str = "sluice_server_assignments_total";
/// Counter: server connections opened.
pub const SERVER_OPENS: &str = "sluice_server_opens_total";
/// Counter: client logins.
pub const CLIENT_LOGINS: &str = "sluice_client_logins_total";
/// Histogram of the wait for a server connection in seconds: means of one second, weighted with its assignments.
pub const WAIT_HISTOGRAM: &str = "sluice_wait_duration_seconds";
/// Gauge by [`STATE`] `active|idle|used|tested|login|being_canceled`: server connections; their sum is what is held.
pub const SERVER_CONNECTIONS: &str = "sluice_server_connections";
/// Gauge: server connections open now, of every state: the sum of [`SERVER_CONNECTIONS`].
pub const HELD: &str = "sluice_held";
/// Gauge by [`STATE`] `active|waiting`: client connections.
pub const CLIENT_CONNECTIONS: &str = "sluice_client_connections";
/// Gauge: server connections held past the leak threshold by clients that do nothing, in a transaction or pinned; absent where it
/// cannot be seen.
pub const LEAKED: &str = "sluice_leaked_server_connections";
/// Gauge: of [`LEAKED`], those that a client holds outside of a transaction; absent where it cannot be seen.
pub const PINNED: &str = "sluice_pinned_server_connections";
/// Gauge: connections of the pod to the database that are not its pooler's, the most of the last minutes; absent where it cannot be
/// seen.
pub const BYPASSING: &str = "sluice_bypassing_connections";
/// Counter: pinned server connections that were freed for clients that waited; their clients were cut.
pub const PINNED_FREED: &str = "sluice_pinned_server_connections_freed_total";
/// Gauge by [`WINDOW`]: largest demand of the last seconds: connections that work, and those that would serve within a second who
/// waits; leaks not.
pub const DEMAND_PEAK: &str = "sluice_demand_peak";
/// Gauge by [`WINDOW`]: most clients waiting at once in the last seconds.
pub const WAITING_PEAK: &str = "sluice_waiting_peak";
/// Gauge: the limit that the pooler works with, read back.
pub const LIMIT: &str = "sluice_limit";
/// Gauge: the share in force.
pub const SHARE: &str = "sluice_share";
/// Gauge: the floor in force.
pub const FLOOR: &str = "sluice_floor";
/// Gauge: the revision in force.
pub const REVISION: &str = "sluice_revision";
/// Gauge: number of the newest grant in force.
pub const GRANT_SEQ: &str = "sluice_grant_seq";
/// Gauge: Unix time in seconds of the reading that the other series come from.
pub const SAMPLE_TIME: &str = "sluice_sample_timestamp_seconds";
/// Counter by `reason`: decisions of the agent's loop that changed the limit.
pub const DECISIONS: &str = "sluice_agent_decisions_total";
/// Counter by `reason`: restarts of the pooler.
pub const POOLER_RESTARTS: &str = "sluice_pooler_restarts_total";
/// Counter: clients whose connection ended with a process of the pooler, as they were counted last.
pub const CLIENTS_CUT: &str = "sluice_clients_cut_total";
/// Gauge by `mode` (`Steer`, `SharedListener`, `Unsupported`), 1 for how a revision that needs a new process comes into force.
pub const SWITCHING: &str = "sluice_switching";
/// Counter by `result`: switches to another process of the pooler.
pub const SWITCHES: &str = "sluice_switches_total";
/// Gauge: 1 while the database takes no writes although a primary is expected, 0 while it does; absent while that is not known.
pub const UPSTREAM_READ_ONLY: &str = "sluice_upstream_read_only";
/// Gauge by `state` (`Closed`, `Holding`, `Open`, `HalfOpen`), 1 for that of the circuit breaker.
pub const CIRCUIT_STATE: &str = "sluice_circuit_state";
/// Counter: times that all server connections were renewed because the database took no writes.
pub const UPSTREAM_RENEWALS: &str = "sluice_upstream_renewals_total";
/// Gauge: server connections that were open when the database refused another one; absent while it refuses none.
pub const REFUSED_BEYOND: &str = "sluice_server_refused_beyond";
/// Gauge: server connections that the container's memory has room for; absent where it has no limit.
pub const MEMORY_ALLOWS: &str = "sluice_memory_allows";
/// Counter: clients that were closed while they were idle, because the pooler remembered for them what the database is not any more.
pub const CLIENTS_RECALLED: &str = "sluice_clients_recalled_total";
/// Counter by `reason`: errors that the pooler wrote to its log, classified.
pub const POOLER_ERRORS: &str = "sluice_pooler_errors_total";
/// Gauge by `document` and `reason`, 1 while a document of the configuration volume is refused and the last one stays.
pub const CONFIG_REFUSED: &str = "sluice_config_refused";

/// Counter by [`OF_REVISION`] and [`SLOT`], as all of `sluice_revision_*`: what the active process has done since it runs this revision.
/// What an old process does that drains is not in it, and the series of another revision are gone. Transactions that have ended.
pub const REVISION_TRANSACTIONS: &str = "sluice_revision_transactions_total";
/// Counter: seconds that server connections worked for them.
pub const REVISION_BUSY_SECONDS: &str = "sluice_revision_busy_seconds_total";
/// Counter: seconds that clients waited for a server connection.
pub const REVISION_WAIT_SECONDS: &str = "sluice_revision_wait_seconds_total";
/// Counter: server connections given to clients.
pub const REVISION_ASSIGNMENTS: &str = "sluice_revision_server_assignments_total";
/// Gauge: how long the first client that waits has waited, in seconds.
pub const REVISION_LONGEST_WAIT: &str = "sluice_revision_longest_wait_seconds";
/// Counter: errors that the process logged and that stand between clients, pooler and database.
pub const REVISION_ERRORS: &str = "sluice_revision_errors_total";
/// Counter: of them, logins that were refused, of clients or at the database.
pub const REVISION_LOGIN_FAILURES: &str = "sluice_revision_login_failures_total";
/// Counter: clients whose connection ended with the process.
pub const REVISION_CLIENTS_CUT: &str = "sluice_revision_clients_cut_total";
