//! What the agent answers on `GET /status`: the proof of a change.

use serde::{Deserialize, Serialize};

use super::{PoolerError, SETTINGS_LEVEL, ServerFull, TroubleSeen};

/// `GET /status` of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// Version of the document.
    pub v: u32,
    /// Uid of the pod. Pod addresses are reused: an answer with another uid is not an answer.
    pub pod_uid: String,
    /// Name of the pool.
    pub pool: String,
    /// Revision that the pooler runs, read back from it; none before the first start.
    pub revision: Option<u64>,
    /// Revision that the annotation asks for.
    pub wanted_revision: Option<u64>,
    /// Epoch of the newest grant that was applied.
    pub epoch: u64,
    /// The newest grant whose share is in force in the pooler, read back.
    pub seq: u64,
    /// Share of that grant.
    pub share: u32,
    /// Limits read back from the pooler's console; none while it does not answer.
    pub limits: Option<LimitsReadBack>,
    /// Server connections open now; none while unknown. Never guessed.
    pub held: Option<Held>,
    /// Level of the settings that the agent understands; 0 from an agent that does not tell.
    #[serde(default)]
    pub understands: u32,
    /// Pooler process.
    pub slot: SlotStatus,
    /// Why the newest revision or grant is not in force, in a sentence; empty when it is.
    pub message: String,
    /// What the revision that the annotation asks for waits for, where nothing is known to be wrong with it. None where it does not
    /// wait, and from an agent that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_waits: Option<RevisionWait>,
    /// How a revision that needs a new process comes into force. None from an agent that knows of one way only.
    #[serde(default)]
    pub switching: Option<Switching>,
    /// The process beside the one that new clients come to, while there are two. Limits and figures above are those of both.
    #[serde(default)]
    pub other: Option<OtherSlot>,
    /// How what is new proves itself, by the revision in force. None from an agent that knows of one way only.
    #[serde(default)]
    pub proof: Option<ProofMode>,
    /// The session alias; None without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_alias: Option<SessionAliasReport>,
    /// Whether the database takes writes, where a primary is expected. None where it is not asked.
    #[serde(default)]
    pub upstream: Option<UpstreamSeen>,
    /// What the circuit breaker does; None from an agent that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<CircuitReport>,
    /// How far server connections are renewed for `reconnectedAt`; None where it was never asked for, and from an agent that does
    /// not know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnected: Option<Reconnected>,
    /// What the pooler logged lately that keeps it from the database, or clients from it; one entry for each class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<TroubleSeen>,
    /// What the database lets the pod open, while it refuses more, and while more is tried step by step since it let one in. None
    /// while it refuses nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_full: Option<ServerFull>,
    /// Of what kind the leaked ones are; None without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaks: Option<LeakKinds>,
    /// What the container's memory has room for; None where it has no limit, and from an agent that does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
    /// What verifies the database's certificate; None where nothing does, and from an agent that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustReport>,
    /// What of the pod is connected to the database past its pooler; None where that cannot be seen, and from an agent that does not
    /// look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<Bypass>,
    /// Who listens on the pooler's address beside it; None where nobody does or nobody can see, and from an agent that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_listeners: Option<ForeignListeners>,
    /// Tells one content of what the pod is given by reference (Secrets, bundles, certificates) from another, and nothing of it: the same
    /// content has another mark in another pod. None before it was read, and from an agent that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_mark: Option<String>,
}

/// Longest mark of what a pod is given by reference that counts, in bytes: ours are shorter.
pub const LONGEST_MARK_BYTES: usize = 64;
/// Longest sentence of an agent that is kept, in bytes: what is told of it is no longer.
const LONGEST_SENTENCE: usize = 1024;
/// Longest words, names and addresses that are kept, in bytes.
const LONGEST_WORDS: usize = 256;

impl StatusReport {
    /// The report with as much of its texts as is ever shown. Whatever answers at the port of a pod may say more, and the operator keeps
    /// the last answer of every pod.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.troubles.truncate(PoolerError::ALL.len());
        self.troubles.shrink_to_fit();
        let sentences = [
            Some(&mut self.message),
            self.upstream.as_mut().map(|upstream| &mut upstream.message),
            self.circuit.as_mut().map(|circuit| &mut circuit.why),
            self.trust.as_mut().and_then(|trust| trust.whole.as_mut()),
        ];
        for text in sentences.into_iter().flatten() {
            cut(text, LONGEST_SENTENCE);
        }
        let words = [
            Some(&mut self.pod_uid),
            Some(&mut self.pool),
            self.trust.as_mut().and_then(|trust| trust.ca.as_mut()),
            self.session_alias.as_mut().map(|alias| &mut alias.database),
            self.reconnected.as_mut().map(|reconnected| &mut reconnected.at),
            self.server_full.as_mut().map(|full| &mut full.words),
            self.leaks.as_mut().and_then(|leaks| leaks.client.as_mut()),
            self.bypass.as_mut().and_then(|bypass| bypass.address.as_mut()),
            self.foreign_listeners.as_mut().map(|listeners| &mut listeners.address),
            self.reference_mark.as_mut(),
        ];
        for text in words.into_iter().flatten().chain(self.troubles.iter_mut().map(|trouble| &mut trouble.words)) {
            cut(text, LONGEST_WORDS);
        }
        self
    }

    /// What an agent of this build tells before its first round: nothing is known yet.
    pub fn beginning(pod_uid: String, pool: String) -> Self {
        Self {
            v: 1,
            pod_uid,
            pool,
            revision: None,
            wanted_revision: None,
            epoch: 0,
            seq: 0,
            share: 0,
            limits: None,
            held: None,
            understands: SETTINGS_LEVEL,
            slot: SlotStatus::Starting,
            message: String::new(),
            revision_waits: None,
            switching: None,
            other: None,
            proof: None,
            session_alias: None,
            upstream: None,
            circuit: None,
            reconnected: None,
            troubles: Vec::new(),
            server_full: None,
            leaks: None,
            memory: None,
            trust: None,
            bypass: None,
            foreign_listeners: None,
            reference_mark: None,
        }
    }
}

/// Leaves so many bytes of a text.
fn cut(text: &mut String, longest: usize) {
    text.truncate(text.floor_char_boundary(longest));
    text.shrink_to_fit();
}

/// What the memory of the container has room for, by the model in `decide::memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryReport {
    /// Its limit.
    pub limit_bytes: u64,
    /// What its whole share would need, with the clients of now.
    pub needed_bytes: u64,
    /// The limit that has room for that.
    pub limit_needed_bytes: u64,
    /// Server connections that there is room for: the limit in force is never larger.
    pub allows: u32,
    /// Whether the limit in force is smaller than it would be with more memory.
    pub holds_back: bool,
}

/// What the pooler verifies the database's certificate with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustReport {
    /// CA certificates that each server connection has a copy of.
    pub certificates: u32,
    /// The one CA that stands for the whole bundle; None while the whole bundle is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Why the whole bundle is in use although the database has been seen, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// Connections of the pod to the database that are not its pooler's, as the kernel counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// The most of the last minutes.
    pub connections: u32,
    /// Where one of them goes: address and port. None while there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Sockets of other processes that listen on the pooler's address too: clients may come to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignListeners {
    /// Address and port.
    pub address: String,
    /// How many there are.
    pub sockets: u32,
}

/// Server connections that clients hold while nothing is said, by kind, for longer than the threshold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeakKinds {
    /// In a transaction, by the database's own account.
    pub in_transaction: u32,
    /// Outside of a transaction, by the database's own account: after a COPY that PgBouncer has not seen the end of.
    pub pinned: u32,
    /// One of both: the database could not be asked.
    pub unclear: u32,
    /// How long the longest pinned one has been silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_pinned_seconds: Option<u32>,
    /// The client that holds that one: its address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Pinned ones that were freed for others, since the agent began.
    pub freed: u64,
}

impl LeakKinds {
    /// Those that are held now.
    pub fn count(&self) -> u32 {
        self.in_transaction.saturating_add(self.pinned).saturating_add(self.unclear)
    }
}

/// Server connections that were renewed because the settings asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconnected {
    /// The latest `reconnectedAt` that was done. It is later than that of the settings where those were set back.
    pub at: String,
    /// Server connections that were told to end and still have a transaction to finish, of both processes; None while that is not
    /// known.
    pub remaining: Option<u32>,
}

/// The session alias of the database, read back from the pooler's console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAliasReport {
    /// The name that clients ask for.
    pub database: String,
    /// Server connections that it may hold.
    pub connections: u32,
    /// Those that it holds, of both processes while there are two.
    pub held: u32,
    /// Clients that are connected to it, of both processes.
    pub clients: u32,
    /// Whether it waits for room in the share: sessions that have a connection go on, other clients of it queue.
    pub paused: bool,
}

/// How a process, credentials or a CA bundle prove themselves before they take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProofMode {
    /// The validation query comes back from the database.
    Query,
    /// The database lets them in; it is asked nothing.
    ConnectOnly,
}

/// What checks through the pooler found of the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamSeen {
    /// What it is.
    pub state: UpstreamState,
    /// The same in a sentence; empty while it is a primary.
    pub message: String,
    /// While it is not known: true where it was asked and does not answer, false where no server connection was free to ask it by. None
    /// from an agent that does not tell these apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<bool>,
}

/// Whether the database takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpstreamState {
    /// It does.
    Primary,
    /// It does not: sizes, revisions and processes stay as they are.
    ReadOnly,
    /// It has not answered lately, which says nothing.
    Unknown,
}

/// What the circuit breaker of a pod does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CircuitReport {
    /// Its state.
    pub state: CircuitState,
    /// Seconds since the database was last seen to work; while it is closed, since it has been.
    pub since_seconds: u64,
    /// How the database is away, in words; empty while it is closed.
    pub why: String,
}

/// Whether the database is away, as the circuit breaker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CircuitState {
    /// It is there, or nobody knows better.
    Closed,
    /// It has been away for some seconds: clients wait, and sizes and revisions are held.
    Holding,
    /// It is away: clients are told within two seconds, and sizes and revisions are held.
    Open,
    /// It answers again: clients wait again, and it has to prove itself.
    HalfOpen,
}

impl CircuitState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Holding, Self::Open, Self::HalfOpen];

    /// The value of the label `state`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "Closed",
            Self::Holding => "Holding",
            Self::Open => "Open",
            Self::HalfOpen => "HalfOpen",
        }
    }
}

/// How a revision that needs a new process comes into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Switching {
    /// By a second process that proves itself first. New clients are led to it, and no connection is lost.
    Steer,
    /// By a second process that proves itself first, where clients cannot be led to one of two sockets: both share one. No
    /// connection is lost; there is no step back without a further process.
    SharedListener,
    /// With the pod's restart: the pooler takes over no sockets.
    Unsupported,
}

/// What a revision that needs a new process waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevisionWait {
    /// Clients of the process before the last one: both slots are taken until they have left it.
    Drain,
    /// The restart of the pod, or of its pooler: no second process can be started beside this one.
    Restart,
}

/// The process beside the one that new clients come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherSlot {
    /// What it is there for.
    pub role: OtherRole,
    /// The revision that it runs; None while unknown.
    pub revision: Option<u64>,
    /// Clients connected to it; None while unknown.
    pub clients: Option<u32>,
    /// Whether it has proven itself, and waits for `rollout.blueGreen.autoPromotionEnabled` to become true.
    #[serde(default)]
    pub awaiting_promotion: bool,
}

/// What a second process is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtherRole {
    /// It proves itself and has no clients yet.
    Green,
    /// It was left and stays warm for a step back.
    Warm,
    /// It was left and ends with its last client.
    Draining,
}

/// Limits read back from the pooler's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitsReadBack {
    /// `default_pool_size`: the limit that the pooler works with.
    pub pool_size: u32,
    /// `max_db_connections`: the bound that no state of the pooler passes, and with it what the session alias may hold.
    pub max_db_connections: u32,
    /// `min_pool_size`.
    pub min_pool_size: u32,
    /// True while the database is paused on the console, as it is with a share of 0.
    pub paused: bool,
}

impl LimitsReadBack {
    /// The limit in force, in server connections: `pool_size`, and 0 while the pooler is paused. PgBouncer opens none then and closes
    /// each that is released, whatever `default_pool_size` says, which cannot say 0.
    pub const fn in_force(&self) -> u32 {
        if self.paused { 0 } else { self.pool_size }
    }
}

/// Server connections by what they do. `held` is their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// All that are open, logging in or being cancelled included.
    pub held: u32,
    /// Linked to a client.
    pub active: u32,
    /// Of the active: held past the leak threshold by clients that do nothing, in a transaction or pinned. None where it cannot be seen.
    pub leaked: Option<u32>,
    /// Clients that wait for a server connection.
    pub waiting: u32,
}

/// The pooler process in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotStatus {
    /// No process yet.
    Starting,
    /// Accepts clients and its console answers.
    Serving,
    /// The process runs and its console does not answer.
    NotAnswering,
    /// The process ended and will be started again.
    Down,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_pooler_has_a_limit_of_nothing_whatever_its_pool_size_says() {
        let limits = LimitsReadBack { pool_size: 7, max_db_connections: 9, min_pool_size: 0, paused: false };
        assert_eq!(limits.in_force(), 7);
        assert_eq!(LimitsReadBack { paused: true, ..limits }.in_force(), 0);
    }

    #[test]
    fn of_what_an_agent_says_no_more_is_kept_than_an_honest_one_says() {
        let long = || "ü".repeat(10_000);
        let mut report = StatusReport::beginning("uid".to_owned(), "shop".to_owned());
        report.message = long();
        report.trust = Some(TrustReport { certificates: 1, ca: Some(long()), whole: Some(long()) });
        let trouble = TroubleSeen { reason: PoolerError::Other, lines: 1, words: long() };
        report.troubles = vec![trouble; 500];
        let cut = report.clone().cut();
        let bytes = serde_json::to_vec(&cut).expect("JSON").len();
        assert!(bytes < 12 << 10, "{bytes} bytes of {}", serde_json::to_vec(&report).expect("JSON").len());
        assert_eq!((cut.message.len(), cut.troubles[0].words.len()), (LONGEST_SENTENCE, LONGEST_WORDS));
        let honest = StatusReport {
            message: "no grant yet".to_owned(),
            ..StatusReport::beginning("u".to_owned(), "p".to_owned())
        };
        assert_eq!(honest.clone().cut(), honest);
    }
}
