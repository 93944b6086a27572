//! The pooler and its surroundings: client side, TLS, PgBouncer, health, the sidecar container.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SecretKeyRef, SecretRef};

/// How the application reaches the pooler.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClientSpec {
    /// TCP port, with topology Sidecar on the pod's loopback addresses, with Gateway of the Service and its pods. Default:
    /// the port of the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535))]
    pub port: Option<u16>,
    /// How clients log in. Default: SameCredentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<ClientAuth>,
    /// TLS between application and pooler. Default: Disabled, which with topology Sidecar stays on the pod's loopback, and
    /// with Gateway crosses the network in plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSpec>,
    /// Most client connections of one pod. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_connections: Option<u32>,
    /// Environment of the application's containers, with topology Sidecar only; an existing variable of the name is replaced. Default: PGHOST,
    /// PGPORT and PGSSLMODE. Only what says where a database is, by its name, unless a class or the operator's configuration allows more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub env: Option<Vec<EnvTemplate>>,
}

/// How clients log in to the pooler. Default: SameCredentials, with the user name and password of
/// `upstream.credentialsRef`, as without a pooler.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ClientAuth {
    /// With the user name and password of `upstream.credentialsRef`, as without a pooler.
    SameCredentials,
}

/// TLS between application and pooler, for drivers that insist on it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.mode == 'Disabled') != has(self.certificateRef)").message("certificateRef goes with mode Allow and Require, and only there").field_path(".certificateRef"))]
pub struct ClientTlsSpec {
    /// Disabled: plain text. Allow: TLS for clients that ask for it. Require: no client without.
    pub mode: ClientTlsModeSpec,
    /// Secret of type `kubernetes.io/tls` in the pool's namespace, with the keys `tls.crt` and `tls.key`: what the pooler shows
    /// its clients. Its content is followed. With topology Gateway it names the Service's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ref: Option<SecretRef>,
}

/// TLS between application and pooler.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ClientTlsModeSpec {
    /// Plain text over the pod's loopback.
    Disabled,
    /// TLS for clients that ask for it.
    Allow,
    /// No client without TLS.
    Require,
}

/// One environment variable of the application.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct EnvTemplate {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value; `{host}`, `{port}` and `{database}` stand for the pooler's.
    #[schemars(length(max = 1024))]
    pub template: String,
}

/// TLS towards the database.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.caRef) || self.mode in ['VerifyCa', 'VerifyFull']").message("caRef is used with mode VerifyCa or VerifyFull only").field_path(".caRef"),
    validation = Rule::new("!has(self.clientCertRef) || self.mode != 'Disabled'").message("clientCertRef is used with mode Require, VerifyCa or VerifyFull only").field_path(".clientCertRef")
)]
pub struct ServerTlsSpec {
    /// How much is verified. Disabled: plain text. Require: encrypted, nothing is verified. VerifyCa: the certificate's chain.
    /// VerifyFull: chain and host name. There is no mode that falls back to plain text unasked.
    pub mode: ServerTlsModeSpec,
    /// CA bundle. Default: the trust store of the pooler's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<SecretKeyRef>,
    /// Secret of type `kubernetes.io/tls` in the pool's namespace, with the keys `tls.crt` and `tls.key`: what the pooler shows
    /// a database that asks for a client certificate. Its content is followed, once a login with it has worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_ref: Option<SecretRef>,
}

/// How much of the database's certificate is verified.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ServerTlsModeSpec {
    /// Plain text.
    Disabled,
    /// Encrypted, not verified.
    Require,
    /// The chain.
    VerifyCa,
    /// The chain and the host name.
    VerifyFull,
}

/// The pooler.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PgBouncerSpec {
    /// Image with PgBouncer 1.24.1 or later. Fixed when a pod is created. Default: the operator's. Another one is of its repository, unless
    /// a class or the operator's configuration allows more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// When a server connection goes back to the pool. Default: transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_mode: Option<PgBouncerPoolMode>,
    /// A second name of the database, in session mode, for what transaction pooling breaks: migrations, LISTEN, session-level SET,
    /// advisory locks. With server connections of its own, out of the share of each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_alias: Option<SessionAliasSpec>,
    /// Has every pod renew its server connections, each as its transaction ends, whenever this becomes a later time: any time that is later than the
    /// one before, now for example. For what server connections keep and a migration has made stale: plans of prepared statements ("cached plan must
    /// not change result type"), `ALTER ROLE ... SET`. No client is cut. Of pool and class the later one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = TIME))]
    pub reconnected_at: Option<Time>,
    /// PgBouncer settings by their own names; only those on Sluice's allow-list, with the type that they have there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = serde_json::json!({"type": "string", "maxLength": 128})))]
    pub parameters: BTreeMap<String, String>,
}

/// RFC 3339 as every reader has it, in this millennium: the API server's `date-time` lets pass what cannot be decoded.
const TIME: &str = "^2[0-9]{3}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

/// A second name of the database, in session mode: a client that asks for it keeps a server connection of its own until it leaves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("self.database != 'pgbouncer'").message("PgBouncer reserves the name pgbouncer for its console").field_path(".database"))]
pub struct SessionAliasSpec {
    /// The name that clients ask for, at the same host and port and with the same credentials. Another one than
    /// `upstream.database`, which stays what it is.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub database: String,
    /// Server connections of each pod for it, out of its share, so that `scaling.floorPerPod` has to be larger. Further clients of it wait, as
    /// long as `health.queryWaitTimeoutSeconds`.
    #[schemars(range(min = 1, max = 100))]
    pub connections: u32,
}

/// When a server connection goes back to the pool. Default: transaction. transaction: when the transaction ends. session:
/// when the client disconnects; then a client holds its server connection while it idles, and algorithm Adaptive is
/// refused.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PgBouncerPoolMode {
    /// When the client disconnects.
    Session,
    /// When the transaction ends.
    Transaction,
}

/// Health checks and leaks.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthSpec {
    /// Sent to the database to see that it answers, and as the proof of a new process, of new credentials and of itself when it changes.
    /// Default: select 1. Empty: nothing is sent, for databases where nothing may be asked; a login alone is the proof then, and
    /// status says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub validation_query: Option<String>,
    /// Seconds between two checks whether the database takes writes. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub period_seconds: Option<u32>,
    /// Seconds that a client waits for a server connection before the pooler gives up. Default: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub query_wait_timeout_seconds: Option<u32>,
    /// Seconds after which a server connection counts as leaked whose client does nothing: in a transaction, or
    /// pinned. Default: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub leak_threshold_seconds: Option<u32>,
    /// What is done about a leak. Default: Report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leak_action: Option<LeakAction>,
    /// What is done about an application that is connected to the database past its pooler, with topology Sidecar only. Default: Report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass_action: Option<BypassAction>,
    /// What becomes of clients that wait while the database is away. Default: FailFast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_action: Option<OutageActionSpec>,
}

/// What is done about a leak. Default: Report: condition, metric and event tell of it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum LeakAction {
    /// It is told: condition, metric, event.
    Report,
}

/// What becomes of clients that wait while the database is away. Default: FailFast. FailFast: once it has been away for five seconds they are
/// told within two. Queue: they wait for `queryWaitTimeoutSeconds`, as at any other time.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum OutageActionSpec {
    /// They are told.
    FailFast,
    /// They wait.
    Queue,
}

/// What is done about an application that is connected to the database past its pooler. Default: Report. Report: `ClientsPooled` tells of
/// it, and the pool is not `Ready`. Ignore: it is meant to be so, a migration or a reporting tool; `ClientsPooled` and the metric tell of
/// it, and it is not held against the pool.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum BypassAction {
    /// The pool is not ready.
    Report,
    /// It is meant to be so.
    Ignore,
}

/// The container with the pooler, with topology Gateway too.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    /// Requests and limits, of the container that copies the agent too. Default: requests 10m and 32Mi, limit 64Mi of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<SidecarResources>,
    /// TCP port of the agent, on every address of the pod: metrics, and what the operator asks. Default: 9130.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535))]
    pub agent_port: Option<u16>,
    /// Whether the pod is ready without a share. Default: Independent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<SidecarReadiness>,
}

/// Whether the pod is ready without a share, with topology Sidecar. Default: Independent. Independent: the sidecar says nothing of
/// it. WithShare: the pod is ready only while its pooler accepts clients and may open a server connection, so that no Service leads
/// to a pod whose clients would queue. The database is not asked.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum SidecarReadiness {
    /// The sidecar says nothing of it.
    Independent,
    /// Only while the pooler may open a server connection.
    WithShare,
}

/// Requests and limits of the sidecar.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(
    validation = Rule::new("!has(self.requests) || !has(self.limits) || !has(self.requests.cpu) || !has(self.limits.cpu) || quantity(self.requests.cpu).compareTo(quantity(self.limits.cpu)) <= 0").message("limits.cpu must not be below requests.cpu").field_path(".limits.cpu"),
    validation = Rule::new("!has(self.requests) || !has(self.limits) || !has(self.requests.memory) || !has(self.limits.memory) || quantity(self.requests.memory).compareTo(quantity(self.limits.memory)) <= 0").message("limits.memory must not be below requests.memory").field_path(".limits.memory")
)]
pub struct SidecarResources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,
    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
}

/// Amounts of CPU and memory.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct ResourceAmounts {
    /// CPU as a Kubernetes quantity: 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^([1-9][0-9]*(\.[0-9]+)?|0\.0*[1-9][0-9]*)m?$"))]
    pub cpu: Option<String>,
    /// Memory as a Kubernetes quantity: 64Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[1-9][0-9]*(\.[0-9]+)?([KMGT]i|[kMGT])?$"))]
    pub memory: Option<String>,
}
