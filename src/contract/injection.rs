//! What is fixed for a pod's whole life, because it was decided when the pod was admitted.

use serde::{Deserialize, Serialize};

use super::{ContractError, Document, names};

/// The environment variable `SLUICE_INJECTION` of the sidecar.
///
/// The database's address stands here and not in an annotation, so that whoever may patch a pod cannot redirect it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Injection {
    /// Version of the document.
    pub v: u32,
    /// Name of the pool: the key in both annotations.
    pub pool: String,
    /// Namespace of the pool.
    pub namespace: String,
    /// The database.
    pub upstream: Upstream,
    /// How the application reaches the pooler.
    pub client: ClientSide,
    /// Port of the agent. Left out where it is 9130, so that documents from before it could be chosen stay the same.
    #[serde(default = "agent_port", skip_serializing_if = "is_agent_port")]
    pub agent_port: u16,
    /// Hash of what else was fixed for the pod: references to Secrets, environment, image, resources. Only compared: a pod
    /// with another one was created from other values.
    #[serde(default)]
    pub fixed_hash: String,
}

const fn agent_port() -> u16 {
    names::METRICS_PORT
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes it so
const fn is_agent_port(port: &u16) -> bool {
    *port == names::METRICS_PORT
}

/// The database behind the pooler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Name of the database, the same on both sides of the pooler.
    pub database: String,
    /// TLS towards the database.
    pub tls: ServerTls,
}

/// TLS towards the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerTls {
    /// How much is verified.
    pub mode: ServerTlsMode,
    /// True: verify against the CA bundle in the configuration volume; false: against the image's own trust store.
    pub own_ca: bool,
    /// True: the database is shown the certificate in the configuration volume. Left out where it is shown none, so that pods of
    /// earlier days stay current.
    #[serde(default, skip_serializing_if = "super::revision::is_default")]
    pub own_certificate: bool,
}

/// PostgreSQL's `sslmode`, without the modes that fall back to plain text unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerTlsMode {
    /// Plain text.
    Disabled,
    /// Encrypted, the certificate is not verified.
    Require,
    /// The certificate's chain is verified.
    VerifyCa,
    /// The chain and the host name are verified.
    VerifyFull,
}

/// How the application reaches the pooler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientSide {
    /// TCP port.
    pub port: u16,
    /// Most client connections that the pooler accepts.
    pub max_connections: u32,
    /// Whose clients they are. Left out for the pod's own, so that documents from before it existed stay the same.
    #[serde(default, skip_serializing_if = "super::revision::is_default")]
    pub reach: Reach,
    /// TLS between the application and the pooler. Left out while it is disabled, so that pods of earlier days stay current.
    #[serde(default, skip_serializing_if = "super::revision::is_default")]
    pub tls: ClientTlsMode,
}

/// From where clients reach the pooler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// From the pooler's own pod: it listens on loopback.
    #[default]
    Pod,
    /// From everywhere: it is a gateway's and listens on every address of its pod. It is ready for them once it may open a
    /// server connection.
    Network,
}

/// TLS between the application and the pooler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientTlsMode {
    /// Plain text.
    #[default]
    Disabled,
    /// TLS for the clients that ask for it.
    Allow,
    /// No client without it.
    Require,
}

impl Document for Injection {
    const NAME: &'static str = "environment variable SLUICE_INJECTION";
    const WITHOUT: &'static str = "the agent cannot start: delete the pod, so that its controller creates it anew";
    const VERSION: u32 = 1;

    fn check(&self) -> Result<(), ContractError> {
        let wrong =
            |message: &str| Err(ContractError::Inconsistent { document: Self::NAME, message: message.to_owned() });
        if self.pool.is_empty() || self.namespace.is_empty() {
            return wrong("pool and namespace must not be empty");
        }
        if self.upstream.host.is_empty() || self.upstream.database.is_empty() || self.upstream.port == 0 {
            return wrong("upstream needs a host, a port and a database");
        }
        if self.agent_port == 0 || self.agent_port == self.client.port {
            return wrong("agentPort needs a port of its own");
        }
        if self.client.port == 0 || self.client.max_connections == 0 {
            return wrong("client needs a port and at least one connection");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fixed_for_a_pod_has_no_last_good_one_and_a_damaged_one_says_what_to_do() {
        let refused = Injection::parse("{\"v\": 1, \"pool\": ").expect_err("refused").to_string();
        assert!(refused.contains("SLUICE_INJECTION") && refused.contains("cannot start: delete the pod"), "{refused}");
        assert!(!refused.contains("last good"), "{refused}");
    }
}
