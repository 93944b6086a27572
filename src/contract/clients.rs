//! What `sluice-agent clients` prints: who works the pooler of a pod now.

use serde::{Deserialize, Serialize};

/// The clients of a pod's pooler, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientsReport {
    /// Version of the document.
    pub v: u32,
    /// By application, those that hold most server connections first. What is beyond the most that are told is one entry without a
    /// name, the last.
    pub applications: Vec<ApplicationClients>,
    /// The clients that have held a server connection or waited for one for longest, the longest first; some of them.
    pub longest: Vec<LongestClient>,
}

/// The clients of one application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationClients {
    /// `application_name` of the clients, as much of it as is shown: empty where they set none. None: all applications that are not
    /// told apart.
    pub application: Option<String>,
    /// Clients.
    pub clients: u32,
    /// Of them: those that hold a server connection.
    pub holding: u32,
    /// Of them: those that wait for one.
    pub waiting: u32,
}

/// What a client does with server connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClientState {
    /// It holds one: a query runs, or a transaction is open between two, or a session keeps it.
    Holds,
    /// It waits for one.
    Waits,
}

/// A client that has held a server connection, or waited for one, for long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LongestClient {
    /// Its `application_name`, as much of it as is shown.
    pub application: String,
    /// Where it comes from, address and port, as the pooler sees it: in an application's own pod that is the loopback.
    pub address: String,
    /// The database that it asked for.
    pub database: String,
    /// What it does.
    pub state: ClientState,
    /// For how long, in milliseconds. Of one that holds a connection: since the last message that it sent, to a second. Its transaction
    /// is at least as old. None where the pooler's clock cannot be read.
    pub milliseconds: Option<u64>,
}
