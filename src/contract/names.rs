//! Names that are frozen once a pod has been injected, and addresses that both sides must agree on.

/// Opt-in label on a namespace or a pod template.
pub const INJECT_LABEL: &str = "sluice.dev/inject";
/// The value of [`INJECT_LABEL`] that opts in.
pub const INJECT_ENABLED: &str = "enabled";
/// Label on an injected pod: the name of its pool.
pub const POOL_LABEL: &str = "sluice.dev/pool";
/// Label on an injected pod: the name of its budget, where the pool names one.
pub const BUDGET_LABEL: &str = "sluice.dev/budget";
/// Pod annotation: the revision to run, a [`RevisionDocument`](super::RevisionDocument).
pub const REVISION_ANNOTATION: &str = "sluice.dev/revision";
/// Pod annotation: what the pod may open, a [`GrantDocument`](super::GrantDocument).
pub const GRANT_ANNOTATION: &str = "sluice.dev/grant";
/// Annotation on a revision: who changed the pool so, as the API server calls it.
pub const CHANGED_BY_ANNOTATION: &str = "sluice.dev/changed-by";
/// Annotation on a revision: the hash of its settings. Equal ones are seen at a glance, and one that was made anew by hand too.
pub const HASH_ANNOTATION: &str = "sluice.dev/settings-hash";
/// Annotation on a revision, and on a pool: why it was changed, as `kubectl rollout history` shows it of other kinds.
pub const CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";
/// Every label and annotation of ours starts with this.
pub const PREFIX: &str = "sluice.dev/";

/// The sidecar container.
pub const SIDECAR_CONTAINER: &str = "sluice";
/// The init container that copies the agent's binary.
pub const BINARY_CONTAINER: &str = "sluice-bin";
/// Volume with the agent's binary.
pub const BINARY_VOLUME: &str = "sluice-bin";
/// Memory-backed volume with everything that must not reach a disk: rendered files, sockets.
pub const RUN_VOLUME: &str = "sluice-run";
/// Volume that outlives a container restart: the last configuration that worked, without secrets.
pub const STATE_VOLUME: &str = "sluice-state";
/// Projected volume with the two annotations and the credentials.
pub const CONFIG_VOLUME: &str = "sluice-config";

/// Where [`BINARY_VOLUME`] is mounted.
pub const BINARY_DIR: &str = "/sluice/bin";
/// The agent's program in [`BINARY_DIR`].
pub const AGENT_PROGRAM: &str = "/sluice/bin/sluice-agent";
/// Where [`RUN_VOLUME`] is mounted.
pub const RUN_DIR: &str = "/sluice/run";
/// Where [`STATE_VOLUME`] is mounted.
pub const STATE_DIR: &str = "/sluice/state";
/// Where [`CONFIG_VOLUME`] is mounted.
pub const CONFIG_DIR: &str = "/sluice/config";
/// File under [`CONFIG_DIR`]: the revision annotation.
pub const REVISION_FILE: &str = "revision";
/// File under [`CONFIG_DIR`]: the grant annotation.
pub const GRANT_FILE: &str = "grant";
/// File under [`CONFIG_DIR`]: the user name of the database.
pub const USERNAME_FILE: &str = "credentials/username";
/// File under [`CONFIG_DIR`]: the password of the database.
pub const PASSWORD_FILE: &str = "credentials/password";
/// File under [`CONFIG_DIR`]: the CA bundle that verifies the database's certificate.
pub const SERVER_CA_FILE: &str = "server-ca/ca.crt";
/// File under [`CONFIG_DIR`]: the certificate that the pooler shows the database, and what leads to its CA.
pub const UPSTREAM_CERTIFICATE_FILE: &str = "upstream-tls/tls.crt";
/// File under [`CONFIG_DIR`]: the key of [`UPSTREAM_CERTIFICATE_FILE`].
pub const UPSTREAM_KEY_FILE: &str = "upstream-tls/tls.key";
/// File under [`CONFIG_DIR`]: the certificate that the pooler shows its clients, and what leads to their CA.
pub const CLIENT_CERTIFICATE_FILE: &str = "client-tls/tls.crt";
/// File under [`CONFIG_DIR`]: the key of [`CLIENT_CERTIFICATE_FILE`].
pub const CLIENT_KEY_FILE: &str = "client-tls/tls.key";

/// Environment variable of the sidecar that holds the [`Injection`](super::Injection).
pub const INJECTION_VARIABLE: &str = "SLUICE_INJECTION";
/// Environment variable of the sidecar: the pod's uid (downward API).
pub const POD_UID_VARIABLE: &str = "SLUICE_POD_UID";
/// Environment variable of the sidecar: the pod's name (downward API).
pub const POD_NAME_VARIABLE: &str = "SLUICE_POD_NAME";
/// Environment variable of the sidecar: the pod's namespace (downward API).
pub const POD_NAMESPACE_VARIABLE: &str = "SLUICE_POD_NAMESPACE";

/// Environment variable of the sidecar: the seconds for which running transactions may go on after SIGTERM.
pub const GRACE_VARIABLE: &str = "SLUICE_GRACE_SECONDS";

/// Name of the agent's HTTP port (`/metrics`, `/status`, `/healthz`, `/readyz`), by which Prometheus finds it.
pub const METRICS_PORT_NAME: &str = "sluice-metrics";
/// Path that answers with success while the pooler accepts clients and may open a server connection.
pub const SHARE_PATH: &str = "/readyz/share";
/// Number of that port, unless the pool chooses another.
pub const METRICS_PORT: u16 = 9130;
