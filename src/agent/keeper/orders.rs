//! What the agent and the keeper say to each other: one JSON document a line, over a socket that the agent inherits.
//!
//! The agent sends [`Order`]s. The keeper answers each, and everything that happens by itself, with its whole [`KeeperState`]: an
//! agent that starts anew knows from the first line what runs.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::agent::decide::slot_name::SlotName;

/// What the agent asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Open the sockets that clients come to. Nothing happens when they are open.
    Listen {
        /// The addresses, at most one of each family.
        addresses: Vec<IpAddr>,
        /// The port.
        port: u16,
        /// Whether to try to give each slot a socket of its own.
        may_steer: bool,
    },
    /// Start a pooler in a slot that has none.
    Start {
        /// The slot.
        slot: SlotName,
        /// What to start.
        launch: Launch,
    },
    /// Signal the pooler of a slot.
    Signal {
        /// The slot.
        slot: SlotName,
        /// The signal.
        signal: Ending,
    },
    /// Lead every new client to a slot.
    Steer {
        /// The slot.
        slot: SlotName,
    },
    /// Let the pooler of a slot open files, or none, not even those of clients that it accepts. Files that are open stay, and an agent
    /// that ends leaves no pooler without.
    Files {
        /// The slot.
        slot: SlotName,
        /// Whether it may open any.
        allowed: bool,
    },
    /// Where both slots share one socket: the other slot's pooler stops listening, for good, and ends with its last client;
    /// SIGTERM, PgBouncer's `SHUTDOWN WAIT_FOR_CLIENTS`.
    HandOver {
        /// The slot that listens from now on alone.
        slot: SlotName,
        /// The most server connections that the other one may open until it ends.
        bound: u32,
    },
}

/// How a pooler is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// When the running transactions have ended: SIGINT, PgBouncer's `SHUTDOWN WAIT_FOR_SERVERS`.
    AfterTransactions,
    /// At once: SIGKILL.
    AtOnce,
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Counts the processes of a slot; chosen by the agent.
    pub generation: u64,
    /// The pooler's program.
    pub program: PathBuf,
    /// Its configuration.
    pub ini: PathBuf,
    /// Where its console listens. Some: it inherits this socket. None: it listens by itself.
    pub console: Option<PathBuf>,
    /// Whether it inherits the sockets of its slot too.
    pub clients: bool,
    /// A pipe with a name, for what the pooler writes to standard error.
    pub log: PathBuf,
    /// Connections that may wait to be accepted.
    pub backlog: u32,
    /// Files that it needs to be able to open.
    pub files: u64,
}

/// What the keeper holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperState {
    /// Orders taken from this agent. What was asked before is in this state once it counts it.
    pub orders: u64,
    /// The sockets that clients come to.
    pub listening: Listening,
    /// The slot that new clients are led to.
    pub steered: SlotName,
    /// The slots.
    pub slots: [SlotState; 2],
}

impl KeeperState {
    /// One slot.
    pub fn slot(&self, name: SlotName) -> &SlotState {
        &self.slots[name.index()]
    }
}

/// The sockets that clients come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listening {
    /// Nobody asked for them.
    Closed,
    /// One for each slot; new clients come to the one that is steered to.
    Steering,
    /// One for both slots: steering is not permitted here.
    Shared {
        /// What the system said.
        reason: String,
    },
    /// They could not be opened.
    Failed {
        /// What the system said.
        reason: String,
    },
}

/// One slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Generation of its last process; 0 before the first one.
    pub generation: u64,
    /// Whether new clients were led to it since its process started.
    pub had_clients: bool,
    /// Some: it was told to end with its last client, and listens no more; the most server connections that it may open.
    #[serde(default)]
    pub leaving: Option<u32>,
    /// What became of the process.
    pub process: ProcessState,
}

/// A pooler's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// There was none.
    #[default]
    None,
    /// It runs.
    Running {
        /// Its process id.
        pid: i32,
    },
    /// It ended.
    Ended {
        /// How, in words.
        status: String,
    },
    /// It could not be started.
    NotStarted {
        /// What the system said.
        reason: String,
    },
}
