//! What a pooler writes to its log, as classes: it has no error counters of its own.

use serde::{Deserialize, Serialize};

/// What a line of the log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PoolerError {
    /// The database refused a login (`28P01`, `28000`, unknown role or database).
    ServerLoginRefused,
    /// The database asks for a client certificate, or did not accept the one it was shown.
    ServerWantsCertificate,
    /// The database refused a login in words that are not understood: it may speak another language.
    ServerRefused,
    /// The database has no connection left (`53300`).
    TooManyServerConnections,
    /// The database starts, shuts down or recovers (`57P03`).
    ServerNotReady,
    /// A server connection was told to end while it logged in, and clients were cut for want of another.
    ServerLoginInterrupted,
    /// No connection to the database: refused, reset, timed out.
    ServerUnreachable,
    /// The database's name does not resolve.
    DnsFailed,
    /// No name server gave an answer about it; one from before is used, if there is one. The agent finds that out itself.
    NameServerFailed,
    /// TLS towards the database failed.
    ServerTlsFailed,
    /// A client broke off TLS.
    ClientTlsFailed,
    /// A client gave a wrong password or user.
    ClientLoginRefused,
    /// A client asked for a startup parameter that the pooler does not pass on.
    UnsupportedStartupParameter,
    /// A client was turned away or cut by a timeout of the pooler.
    ClientTimeout,
    /// No client slot or file descriptor left.
    OutOfSlots,
    /// The configuration was not understood.
    Configuration,
    /// Some other warning or error, or one of a newer agent.
    #[serde(other)]
    Other,
}

/// Who is kept from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// The pooler from the database.
    PoolerAndDatabase,
    /// Clients from the pooler.
    ClientsAndPooler,
    /// Nobody, as far as is known.
    Nobody,
}

impl PoolerError {
    /// Every class.
    pub const ALL: [Self; 17] = [
        Self::ServerLoginRefused,
        Self::ServerWantsCertificate,
        Self::ServerRefused,
        Self::TooManyServerConnections,
        Self::ServerNotReady,
        Self::ServerLoginInterrupted,
        Self::ServerUnreachable,
        Self::DnsFailed,
        Self::NameServerFailed,
        Self::ServerTlsFailed,
        Self::ClientTlsFailed,
        Self::ClientLoginRefused,
        Self::UnsupportedStartupParameter,
        Self::ClientTimeout,
        Self::OutOfSlots,
        Self::Configuration,
        Self::Other,
    ];

    /// The value of the label `reason`, and the reason of a condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServerLoginRefused => "ServerLoginRefused",
            Self::ServerWantsCertificate => "ServerWantsCertificate",
            Self::ServerRefused => "ServerRefused",
            Self::TooManyServerConnections => "TooManyServerConnections",
            Self::ServerNotReady => "ServerNotReady",
            Self::ServerLoginInterrupted => "ServerLoginInterrupted",
            Self::ServerUnreachable => "ServerUnreachable",
            Self::DnsFailed => "DnsFailed",
            Self::NameServerFailed => "NameServerFailed",
            Self::ServerTlsFailed => "ServerTlsFailed",
            Self::ClientTlsFailed => "ClientTlsFailed",
            Self::ClientLoginRefused => "ClientLoginRefused",
            Self::UnsupportedStartupParameter => "UnsupportedStartupParameter",
            Self::ClientTimeout => "ClientTimeout",
            Self::OutOfSlots => "OutOfSlots",
            Self::Configuration => "Configuration",
            Self::Other => "Other",
        }
    }

    /// What a SQLSTATE that PostgreSQL refuses a login with tells; None: nothing of what is told apart here.
    pub fn of_sqlstate(sqlstate: &str) -> Option<Self> {
        match sqlstate {
            "53300" => Some(Self::TooManyServerConnections),
            "28P01" | "28000" | "3D000" | "42501" | "55000" => Some(Self::ServerLoginRefused),
            "57P01" | "57P02" | "57P03" => Some(Self::ServerNotReady),
            _ => None,
        }
    }

    /// Whether somebody was refused for who he is: a client by the pooler, or the pooler by the database.
    pub const fn is_refused_login(self) -> bool {
        matches!(
            self,
            Self::ServerLoginRefused | Self::ServerWantsCertificate | Self::ServerRefused | Self::ClientLoginRefused
        )
    }

    /// Between whom it stands.
    pub const fn between(self) -> Between {
        match self {
            Self::ServerLoginRefused
            | Self::ServerWantsCertificate
            | Self::ServerRefused
            | Self::TooManyServerConnections
            | Self::ServerNotReady
            | Self::ServerUnreachable
            | Self::DnsFailed
            | Self::ServerTlsFailed => Between::PoolerAndDatabase,
            Self::ClientTlsFailed
            | Self::ClientLoginRefused
            | Self::UnsupportedStartupParameter
            | Self::ClientTimeout
            | Self::OutOfSlots => Between::ClientsAndPooler,
            // a moment of our own changes; found out and told elsewhere; or nobody knows
            Self::ServerLoginInterrupted | Self::NameServerFailed | Self::Configuration | Self::Other => {
                Between::Nobody
            }
        }
    }
}

/// A class of errors that was logged lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TroubleSeen {
    /// The class.
    pub reason: PoolerError,
    /// Lines of it since the agent started.
    pub lines: u64,
    /// What was said last, without anything that could be secret; empty where that says no more than the class.
    pub words: String,
}

/// The database refuses further server connections of this pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerFull {
    /// What the pod held when the database refused another connection, or more that was let in since.
    pub refused_beyond: u32,
    /// What it opens at most until the database lets in more.
    pub at_most: u32,
    /// The database's words.
    pub words: String,
}
