//! PURE: server connections that a client holds while nothing is said: in a transaction, or outside of one, pinned. Looks and answers in; what
//! is held by what kind, and what is to be freed, out.
//!
//! In transaction mode a server connection goes back to the pool when its transaction ends. Two faults of PgBouncer keep it with its client for
//! as long as that is connected: since 1.26 a COPY whose data was sent before the database asked for it (`copy_mode` of a client, set by an answer
//! that comes after its end), and before, one that fails while data is still on its way (a `CopyDone` that is never answered). PostgreSQL shows
//! such a session as `idle`, and nothing that PgBouncer shows tells it from one in a transaction. So the database is asked, through the pool like any client, as
//! long as there is a connection to ask by.
//!
//! In session mode a client has its server connection by right, idle or not: only an open transaction counts, once the database has told of it.
//!
//! Freeing one cuts its client: there is no way in PgBouncer that does not. A client between its transactions meets that as it meets a database that
//! has been restarted. So it is done only while others wait and nothing else can be given to them, and for those alone that have been silent for
//! a while. Where no connection is left to ask by, PgBouncer is told to close what is outside of a transaction by its own account
//! (`server_fast_close`): it never cuts a transaction.
//!
//! Times are milliseconds on a clock that does not jump.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    machine::Millis,
    sockets::{Local, Traffic},
};
use crate::{contract::LimitsReadBack, pooler::pgbouncer::tables::Pools};

/// A connection that was silent for so long is asked about.
const SUSPICIOUS: u32 = 5000;
/// What two clocks may differ in how long a session has been idle.
const TOLERANCE: u64 = 1500;
/// Between two times that PgBouncer is told to close what is outside of a transaction.
const CLOSE_AGAIN: Millis = 30_000;
/// Between two questions.
const ASK_AGAIN: Millis = 4000;
/// Most sessions that are asked about at once.
const MOST_ASKED: usize = 100;

/// Which way the last byte went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastByte {
    /// From the database: it waits for us.
    Received,
    /// To the database: it works.
    Sent,
    /// Too close to tell.
    Ambiguous,
}

/// One look at a server connection that a client holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The connection. What is known is known of it.
    pub local: Local,
    /// Process that the database names; 0 where it names none. Behind another pooler it is made up: several connections may have the same one.
    pub process: u32,
    /// Milliseconds since anything was said.
    pub silent: u32,
    /// Who spoke last.
    pub last: LastByte,
    /// Bytes said in both directions so far.
    pub bytes: (u64, u64),
}

impl Look {
    /// Whether nothing was said since, by what the kernel shows now. A byte that the database has not acknowledged yet shows in the age alone.
    pub fn stands(&self, now: Traffic) -> bool {
        now.bytes == self.bytes && now.silent() >= self.silent
    }
}

/// What the database says of one of its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its process.
    pub process: u32,
    /// What it does.
    pub state: SessionState,
    /// Milliseconds since it does.
    pub since: u64,
}

/// `state` of `pg_stat_activity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It waits for its client, outside of a transaction.
    Idle,
    /// It waits for its client, in a transaction.
    InTransaction,
    /// It works, or nobody says what it does.
    Other,
}

impl SessionState {
    /// Reads the column.
    pub fn read(state: &str) -> Self {
        match state {
            "idle" => Self::Idle,
            "idle in transaction" | "idle in transaction (aborted)" => Self::InTransaction,
            _ => Self::Other,
        }
    }
}

/// Server connections that were silent for as long as the threshold, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaks {
    /// In a transaction.
    pub in_transaction: u32,
    /// Outside of a transaction.
    pub pinned: u32,
    /// Their client was answered last; the database has not said which of both they are.
    pub unclear: u32,
}

impl Leaks {
    /// All of them.
    pub fn count(self) -> u32 {
        self.in_transaction.saturating_add(self.pinned).saturating_add(self.unclear)
    }
}

/// What the pool has beside the connections that clients hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Clients that wait.
    pub waiting: u32,
    /// Whether no server connection is free, and none may be opened.
    pub is_full: bool,
    /// How long one is silent before it may be freed.
    pub patience: u32,
    /// Whether PgBouncer may be told to close what is outside of a transaction. It closes idle sessions of the alias too.
    pub may_close: bool,
}

/// Whether no server connection is free, and none may be opened within these limits.
pub fn is_full(pools: &Pools, limits: &LimitsReadBack) -> bool {
    pools.active >= pools.held() && pools.held() >= limits.max_db_connections.min(limits.pool_size)
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Cut the clients of these, as far as each look stands.
    Free(Vec<Look>),
    /// Have PgBouncer close what a client holds outside of a transaction.
    CloseIdle,
}

/// What is kept in mind.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// What the database said, as long as no byte moves.
    told: BTreeMap<Local, ((u64, u64), SessionState)>,
    /// The last looks.
    looks: Vec<Look>,
    /// Whether they are of sessions: a client has its connection by right, whatever it does with it.
    sessions: bool,
    asked: Option<Millis>,
    closed: Option<Millis>,
}

impl Pins {
    /// Takes in one look at all that clients hold, for a session or for a transaction.
    pub fn look(&mut self, looks: Vec<Look>, sessions: bool) {
        self.sessions = sessions;
        self.told.retain(|local, (bytes, _)| looks.iter().any(|look| look.local == *local && look.bytes == *bytes));
        self.looks = looks;
    }

    /// The kernel could not be asked: what was seen last may be over. What the database said is held against the next look.
    pub fn cannot_look(&mut self) {
        self.looks.clear();
    }

    /// The processes to ask about now; empty: none.
    pub fn to_ask(&mut self, now: Millis, threshold: u32) -> Vec<u32> {
        if self.asked.is_some_and(|asked| now.saturating_sub(asked) < ASK_AGAIN) {
            return Vec::new();
        }
        let suspicious =
            |look: &&Look| look.silent >= SUSPICIOUS.min(threshold) && !self.told.contains_key(&look.local);
        let unknown = self.looks.iter().filter(suspicious).filter(|look| self.is_named(look));
        let unknown: Vec<u32> = unknown.map(|look| look.process).take(MOST_ASKED).collect();
        if !unknown.is_empty() {
            self.asked = Some(now);
        }
        unknown
    }

    /// Whether its process is that of no other connection.
    fn is_named(&self, look: &Look) -> bool {
        let has_it = |other: &&Look| other.process == look.process;
        look.process != 0 && self.looks.iter().filter(has_it).count() == 1
    }

    /// Takes in what the database said of the connections as they were looked at last. A session that has been idle for less long than its
    /// connection is silent is another one: of another server behind the same address, say.
    pub fn answered(&mut self, sessions: &[Session]) {
        let mut told = Vec::new();
        for look in self.looks.iter().filter(|look| self.is_named(look)) {
            let Some(session) = sessions.iter().find(|session| session.process == look.process) else { continue };
            if session.state == SessionState::Other || session.since + TOLERANCE >= look.silent.into() {
                told.push((look.local, (look.bytes, session.state)));
            }
        }
        self.told.extend(told);
    }

    /// What is held for longer than the threshold. None where nobody can tell whether any is.
    pub fn leaks(&self, threshold: u32) -> Option<Leaks> {
        let (mut leaks, mut ambiguous) = (Leaks::default(), false);
        for look in self.looks.iter().filter(|look| look.silent >= threshold) {
            match (self.told.get(&look.local), look.last) {
                (Some((_, SessionState::Idle)), _) if self.sessions => {}
                (Some((_, SessionState::Idle)), _) => leaks.pinned += 1,
                (Some((_, SessionState::InTransaction)), _) => leaks.in_transaction += 1,
                (Some((_, SessionState::Other)), LastByte::Ambiguous) | (_, LastByte::Sent) => {}
                (_, LastByte::Received) if !self.sessions => leaks.unclear += 1,
                (None, LastByte::Ambiguous) | (_, LastByte::Received) => ambiguous = true,
            }
        }
        (leaks.count() > 0 || !ambiguous).then_some(leaks)
    }

    /// Those that count as such.
    pub fn leaking(&self, threshold: u32) -> BTreeSet<Local> {
        let counts = |look: &&Look| match self.told.get(&look.local) {
            Some((_, SessionState::InTransaction)) => true,
            Some((_, SessionState::Idle)) => !self.sessions,
            Some((_, SessionState::Other)) | None => !self.sessions && look.last == LastByte::Received,
        };
        self.looks.iter().filter(|look| look.silent >= threshold).filter(counts).map(|look| look.local).collect()
    }

    /// The pinned one that has been silent for longest.
    pub fn longest_pinned(&self, threshold: u32) -> Option<Look> {
        let pinned = |look: &&Look| look.silent >= threshold && self.is_pinned(look);
        self.looks.iter().filter(pinned).max_by_key(|look| look.silent).copied()
    }

    fn is_pinned(&self, look: &Look) -> bool {
        !self.sessions && self.told.get(&look.local).is_some_and(|(_, state)| *state == SessionState::Idle)
    }

    /// What to free, for clients that wait.
    pub fn step(&mut self, now: Millis, need: Need) -> Option<Action> {
        if need.waiting == 0 || !need.is_full || self.looks.is_empty() {
            return None;
        }
        let is_silent = |look: &&Look| look.silent >= need.patience;
        let mut pinned: Vec<&Look> = self.looks.iter().filter(is_silent).filter(|look| self.is_pinned(look)).collect();
        if !pinned.is_empty() {
            pinned.sort_by_key(|look| std::cmp::Reverse(look.silent));
            let most = usize::try_from(need.waiting).unwrap_or(usize::MAX);
            return Some(Action::Free(pinned.into_iter().take(most).copied().collect()));
        }
        // what the database said to be in a transaction is not closed by that
        let unknown = |look: &Look| look.last == LastByte::Received && !self.told.contains_key(&look.local);
        let stands = self.looks.iter().all(|look| look.silent >= need.patience) && self.looks.iter().any(unknown);
        let again = self.closed.is_none_or(|closed| now.saturating_sub(closed) >= CLOSE_AGAIN);
        (stands && again && need.may_close).then(|| {
            self.closed = Some(now);
            Action::CloseIdle
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::agent::quiet::{self, Quiet};

    const THRESHOLD: u32 = 300_000;
    const FULL: Need = Need { waiting: 3, is_full: true, patience: 10_000, may_close: true };

    fn local(port: u32) -> Local {
        (IpAddr::V4(Ipv4Addr::LOCALHOST), u16::try_from(port).unwrap())
    }

    /// One whose port has the number of its process.
    fn look(process: u32, silent: u32, last: LastByte) -> Look {
        Look { local: local(process), process, silent, last, bytes: (7, 7) }
    }

    fn session(process: u32, state: SessionState, since: u64) -> Session {
        Session { process, state, since }
    }

    fn looked(looks: &[Look]) -> Pins {
        let mut pins = Pins::default();
        pins.look(looks.to_vec(), false);
        pins
    }

    #[test]
    fn a_session_that_is_idle_is_pinned_and_one_in_a_transaction_is_not() {
        let mut pins = looked(&[
            look(1, 400_000, LastByte::Received),
            look(2, 400_000, LastByte::Received),
            look(3, 400_000, LastByte::Sent),
            look(4, 400_000, LastByte::Sent),
            look(5, 400_000, LastByte::Received),
            look(6, 1000, LastByte::Received),
        ]);
        assert_eq!(pins.leaks(THRESHOLD).unwrap(), Leaks { unclear: 3, ..Leaks::default() }, "nobody has said");
        assert_eq!(pins.to_ask(0, THRESHOLD), [1, 2, 3, 4, 5]);
        pins.answered(&[
            session(1, SessionState::Idle, 400_100),
            session(2, SessionState::InTransaction, 400_100),
            // it failed, and data came after that
            session(3, SessionState::Idle, 401_000),
            session(4, SessionState::Other, 400_000),
        ]);
        assert_eq!(pins.leaks(THRESHOLD).unwrap(), Leaks { in_transaction: 1, pinned: 2, unclear: 1 });
        assert_eq!(pins.leaking(THRESHOLD), BTreeSet::from([1, 2, 3, 5].map(local)));
        assert_eq!(pins.to_ask(ASK_AGAIN, THRESHOLD), [5], "what is known is not asked again");
    }

    #[test]
    fn what_was_said_stands_until_a_byte_moves_and_another_session_of_the_number_says_nothing() {
        let mut pins = looked(&[look(1, 60_000, LastByte::Received)]);
        pins.answered(&[session(1, SessionState::Idle, 2000)]);
        assert_eq!(pins.step(0, FULL), Some(Action::CloseIdle), "idle for less long than silent: another one");
        pins.answered(&[session(1, SessionState::Idle, 60_000)]);
        pins.look(vec![look(1, 64_000, LastByte::Received)], false);
        assert_eq!(pins.step(0, FULL), Some(Action::Free(vec![look(1, 64_000, LastByte::Received)])));
        pins.look(vec![Look { bytes: (9, 7), ..look(1, 20, LastByte::Received) }], false);
        assert_eq!(pins.step(0, FULL), None);
    }

    #[test]
    fn a_process_that_several_connections_name_or_none_says_nothing_of_any_of_them() {
        let named = |port, process, silent| Look { local: local(port), ..look(process, silent, LastByte::Received) };
        let mut pins = looked(&[named(1, 0, 400_000), named(2, 0, 100), named(3, 7, 400_000), named(4, 7, 90_000)]);
        assert_eq!(pins.leaking(THRESHOLD), BTreeSet::from([1, 3].map(local)), "each is silent by itself");
        assert_eq!(pins.to_ask(0, THRESHOLD), Vec::<u32>::new());
        pins.answered(&[session(0, SessionState::Idle, 400_000), session(7, SessionState::Idle, 400_000)]);
        assert_eq!(pins.leaks(THRESHOLD).unwrap(), Leaks { unclear: 2, ..Leaks::default() });
    }

    #[test]
    fn a_pinned_connection_over_which_anything_was_said_since_the_look_is_not_freed() {
        let seen = look(1, 3000, LastByte::Received);
        let now = |silent, bytes| Traffic { sent: silent, received: silent, acknowledged: silent, bytes };
        assert!(seen.stands(now(3000, (7, 7))) && seen.stands(now(6000, (7, 7))));
        // a transaction began and stands still, within the time between two looks
        assert!(!seen.stands(now(3500, (8, 8))) && !seen.stands(now(3500, (8, 7))) && !seen.stands(now(3500, (7, 8))));
        assert!(!seen.stands(now(2000, (7, 7))), "its first byte is on the way");
    }

    #[test]
    fn what_was_seen_before_a_look_that_failed_frees_nothing_until_it_is_seen_again() {
        let pinned = look(1, 60_000, LastByte::Received);
        let mut pins = looked(&[pinned]);
        pins.answered(&[session(1, SessionState::Idle, 60_000)]);
        pins.cannot_look();
        assert_eq!((pins.step(0, FULL), pins.longest_pinned(THRESHOLD)), (None, None));
        pins.look(vec![pinned], false);
        assert_eq!(pins.step(0, FULL), Some(Action::Free(vec![pinned])), "no byte has moved");
    }

    #[test]
    fn a_process_that_is_only_held_back_while_somebody_logs_in_is_not_full() {
        let limits = LimitsReadBack { pool_size: 20, max_db_connections: 20, min_pool_size: 0, paused: false };
        let pools = Pools { active: 3, ..Pools::default() };
        let mut quiet = Quiet::default();
        let seen = quiet::Observation { logins: 1, held: pools.held(), limits };
        let quiet::Action::Hold(bounds) = quiet.step(0, &seen) else { panic!("it may open more") };
        let held_back = LimitsReadBack { pool_size: bounds.pool_size, ..limits };
        assert!(is_full(&pools, &held_back) && !is_full(&pools, &quiet.without(held_back)));
        assert!(is_full(&Pools { active: 20, ..pools }, &limits));
        assert!(!is_full(&Pools { active: 19, idle: 1, ..pools }, &limits), "one is free");
    }

    #[test]
    fn a_session_that_is_idle_has_its_connection_by_right_and_only_its_open_transaction_is_a_leak() {
        let mut pins = Pins::default();
        pins.look([1, 2].map(|process| look(process, 400_000, LastByte::Received)).to_vec(), true);
        assert_eq!((pins.leaks(THRESHOLD), pins.leaking(THRESHOLD)), (None, BTreeSet::new()), "nobody has said");
        pins.answered(&[session(1, SessionState::Idle, 400_000), session(2, SessionState::InTransaction, 400_000)]);
        assert_eq!(pins.leaks(THRESHOLD).unwrap(), Leaks { in_transaction: 1, ..Leaks::default() });
        assert_eq!((pins.leaking(THRESHOLD), pins.longest_pinned(THRESHOLD)), (BTreeSet::from([local(2)]), None));
    }

    #[test]
    fn nothing_is_freed_unless_clients_wait_and_nothing_else_can_be_given_to_them() {
        let mut pins = looked(&[look(1, 60_000, LastByte::Received), look(2, 90_000, LastByte::Received)]);
        pins.answered(&[session(1, SessionState::Idle, 60_000), session(2, SessionState::Idle, 90_000)]);
        assert_eq!(pins.step(0, Need { waiting: 0, ..FULL }), None);
        assert_eq!(pins.step(0, Need { is_full: false, ..FULL }), None);
        assert_eq!(pins.step(0, Need { patience: 100_000, ..FULL }), None);
        assert_eq!(
            pins.step(0, Need { waiting: 1, ..FULL }),
            Some(Action::Free(vec![look(2, 90_000, LastByte::Received)])),
            "the longest first"
        );
    }

    #[test]
    fn where_nobody_can_be_asked_pgbouncer_decides_once_everything_stands_and_not_for_queries_that_run() {
        let mut pins = looked(&[look(1, 60_000, LastByte::Received), look(2, 60_000, LastByte::Sent)]);
        assert_eq!(pins.step(0, Need { may_close: false, ..FULL }), None, "sessions of the alias would end with them");
        assert_eq!(pins.step(0, FULL), Some(Action::CloseIdle));
        assert_eq!(pins.step(CLOSE_AGAIN - 1, FULL), None);
        assert_eq!(pins.step(CLOSE_AGAIN, FULL), Some(Action::CloseIdle));
        assert_eq!(looked(&[look(1, 60_000, LastByte::Sent)]).step(0, FULL), None, "a slow database");
        let one_works = [look(1, 60_000, LastByte::Received), look(2, 100, LastByte::Sent)];
        assert_eq!(looked(&one_works).step(0, FULL), None, "the question gets its turn");
        let mut in_transaction = looked(&[look(1, 60_000, LastByte::Received)]);
        in_transaction.answered(&[session(1, SessionState::InTransaction, 60_000)]);
        assert_eq!(in_transaction.step(0, FULL), None);
    }

    #[test]
    fn an_old_tie_is_no_leak_and_no_calm_until_the_database_says_which() {
        let mut pins = looked(&[look(1, 400_000, LastByte::Ambiguous)]);
        assert_eq!(pins.leaks(THRESHOLD), None);
        pins.answered(&[session(1, SessionState::InTransaction, 400_000)]);
        assert_eq!(pins.leaks(THRESHOLD).unwrap().in_transaction, 1);
        assert_eq!(looked(&[]).leaks(THRESHOLD), Some(Leaks::default()));
    }

    proptest! {
        #[test]
        fn only_what_the_database_called_idle_and_was_silent_for_long_is_freed_by_name(
            looks in prop::collection::vec((0..6_u32, 0..40_000_u32, 0..3_u8), 0..6),
            sessions in prop::collection::vec((0..6_u32, 0..3_u8, 0..60_000_u64), 0..6),
            waiting in 0..4_u32,
        ) {
            let last = |which| [LastByte::Received, LastByte::Sent, LastByte::Ambiguous][usize::from(which)];
            let state = |which| [SessionState::Idle, SessionState::InTransaction, SessionState::Other][usize::from(which)];
            let looks: Vec<Look> = (0_u32..).zip(looks).map(|(port, (process, silent, which))| Look { local: local(port), ..look(process, silent, last(which)) }).collect();
            let sessions: Vec<Session> =
                sessions.into_iter().map(|(process, which, since)| session(process, state(which), since)).collect();
            let mut pins = looked(&looks);
            pins.answered(&sessions);
            if let Some(Action::Free(freed)) = pins.step(0, Need { waiting, ..FULL }) {
                prop_assert!(freed.len() <= usize::try_from(waiting).unwrap());
                for freed in freed {
                    prop_assert!(looks.contains(&freed));
                    prop_assert!(freed.process > 0 && freed.silent >= FULL.patience);
                    prop_assert_eq!(looks.iter().filter(|it| it.process == freed.process).count(), 1);
                    prop_assert!(sessions.iter().any(|it| it.process == freed.process && it.state == SessionState::Idle));
                }
            }
        }
    }
}
