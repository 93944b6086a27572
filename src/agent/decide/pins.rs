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
//! Two processes may have clients, perhaps as two roles. Each is asked about, and told, by itself. They live within one share, so what is freed in
//! the one may be given to the other, and what the other one can spare comes before anybody is cut.
//!
//! Times are milliseconds on a clock that does not jump.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    agent::{
        decide::{machine::Millis, slot_name::SlotName},
        observe::sockets::{Local, Traffic},
    },
    contract::LimitsReadBack,
    pooler::pgbouncer::tables::Pools,
};

/// A connection that was silent for so long is asked about.
const SUSPICIOUS: u32 = 5000;
/// What two clocks may differ in how long a session has been idle.
const TOLERANCE: u64 = 1500;
/// Between two times that a process is told to close what is outside of a transaction.
const CLOSE_AGAIN: Millis = 30_000;
/// Within this time two processes have given each other what they can spare.
const SPARED: Millis = 2000;
/// Between two questions about the sessions of a process.
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
pub struct LinkSeen {
    /// The slot whose process it is of.
    pub slot: SlotName,
    /// Whether its client has it for a session: by right, whatever it does with it.
    pub of_session: bool,
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

impl LinkSeen {
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

/// `state` and `wait_event` of `pg_stat_activity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It waits for its client, outside of a transaction.
    Idle,
    /// It waits for its client, in a transaction: between two statements, or in one (a COPY).
    InTransaction,
    /// It works, or nobody says what it does.
    Other,
}

impl SessionState {
    /// Reads the columns.
    pub fn read(state: &str, wait_event: Option<&str>) -> Self {
        match (state, wait_event) {
            ("idle", _) => Self::Idle,
            // active: a COPY whose client sends nothing, or a client that does not read what it is sent
            ("idle in transaction" | "idle in transaction (aborted)", _)
            | ("active", Some("ClientRead" | "ClientWrite")) => Self::InTransaction,
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

/// What clients of a process need, and what they may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The slot of the process.
    pub slot: SlotName,
    /// Clients that wait.
    pub waiting: u32,
    /// Whether no server connection is free, and none may be opened.
    pub is_full: bool,
    /// How long one is silent before it may be freed.
    pub patience: u32,
    /// Whether there is another process that may give what it can spare.
    pub shares: bool,
    /// By slot: whether its connections may be freed. Another one could be opened in their place.
    pub may_free: [bool; 2],
    /// By slot: whether its process may be told to close what is outside of a transaction. It closes idle sessions of the alias too.
    pub may_close: [bool; 2],
}

/// Whether no server connection is free, and none may be opened within these limits.
pub fn is_full(pools: &Pools, limits: &LimitsReadBack) -> bool {
    pools.active >= pools.held() && pools.held() >= limits.max_db_connections.min(limits.pool_size)
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinAction {
    /// Cut the clients of these, as far as each look stands.
    Free(Vec<LinkSeen>),
    /// Have the process of this slot close what a client holds outside of a transaction.
    CloseIdle(SlotName),
}

/// What is kept in mind.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// What the database said, as long as no byte moves.
    told: BTreeMap<Local, ((u64, u64), SessionState)>,
    /// The last looks.
    looks: Vec<LinkSeen>,
    /// When each process was asked about last.
    asked: BTreeMap<SlotName, Millis>,
    /// Since when clients of each process wait, and it is full.
    stuck: BTreeMap<SlotName, Millis>,
    /// When each was told last to close what is outside of a transaction.
    closed: BTreeMap<SlotName, Millis>,
}

impl Pins {
    /// Takes in one look at all that clients hold, in every process.
    pub fn look(&mut self, looks: Vec<LinkSeen>) {
        self.told.retain(|local, (bytes, _)| looks.iter().any(|look| look.local == *local && look.bytes == *bytes));
        self.looks = looks;
    }

    /// The kernel could not be asked: what was seen last may be over. What the database said is held against the next look.
    pub fn cannot_look(&mut self) {
        self.looks.clear();
    }

    /// The database's processes to ask about now, of those that serve this slot; empty: none.
    pub fn to_ask(&mut self, now: Millis, threshold: u32, slot: SlotName) -> Vec<u32> {
        if self.asked.get(&slot).is_some_and(|asked| now.saturating_sub(*asked) < ASK_AGAIN) {
            return Vec::new();
        }
        let suspicious =
            |look: &&LinkSeen| look.silent >= SUSPICIOUS.min(threshold) && !self.told.contains_key(&look.local);
        let unknown = self.of(slot).filter(suspicious).filter(|look| self.is_named(look));
        let unknown: Vec<u32> = unknown.map(|look| look.process).take(MOST_ASKED).collect();
        if !unknown.is_empty() {
            self.asked.insert(slot, now);
        }
        unknown
    }

    fn of(&self, slot: SlotName) -> impl Iterator<Item = &LinkSeen> {
        self.looks.iter().filter(move |look| look.slot == slot)
    }

    /// Whether its process is that of no other connection.
    fn is_named(&self, look: &LinkSeen) -> bool {
        let has_it = |other: &&LinkSeen| other.process == look.process;
        look.process != 0 && self.looks.iter().filter(has_it).count() == 1
    }

    /// Takes in what the database said of the connections of a slot as they were looked at last. A session that has been idle for less long than
    /// its connection is silent is another one: of another server behind the same address, say.
    pub fn answered(&mut self, slot: SlotName, sessions: &[Session]) {
        let mut told = Vec::new();
        for look in self.of(slot).filter(|look| self.is_named(look)) {
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
                (Some((_, SessionState::Idle)), _) if look.of_session => {}
                (Some((_, SessionState::Idle)), _) => leaks.pinned += 1,
                (Some((_, SessionState::InTransaction)), _) => leaks.in_transaction += 1,
                (Some((_, SessionState::Other)), LastByte::Ambiguous) | (_, LastByte::Sent) => {}
                (_, LastByte::Received) if !look.of_session => leaks.unclear += 1,
                (None, LastByte::Ambiguous) | (_, LastByte::Received) => ambiguous = true,
            }
        }
        (leaks.count() > 0 || !ambiguous).then_some(leaks)
    }

    /// Those that count as such.
    pub fn leaking(&self, threshold: u32) -> BTreeSet<Local> {
        let counts = |look: &&LinkSeen| match self.told.get(&look.local) {
            Some((_, SessionState::InTransaction)) => true,
            Some((_, SessionState::Idle)) => !look.of_session,
            Some((_, SessionState::Other)) | None => !look.of_session && look.last == LastByte::Received,
        };
        self.looks.iter().filter(|look| look.silent >= threshold).filter(counts).map(|look| look.local).collect()
    }

    /// The pinned one that has been silent for longest.
    pub fn longest_pinned(&self, threshold: u32) -> Option<LinkSeen> {
        let pinned = |look: &&LinkSeen| look.silent >= threshold && self.is_pinned(look);
        self.looks.iter().filter(pinned).max_by_key(|look| look.silent).copied()
    }

    fn is_pinned(&self, look: &LinkSeen) -> bool {
        !look.of_session && self.told.get(&look.local).is_some_and(|(_, state)| *state == SessionState::Idle)
    }

    /// What to free, for clients that wait. Slots of which nothing is known, or for which nothing may be done, have no need.
    pub fn step(&mut self, now: Millis, needs: &[Need]) -> Option<PinAction> {
        let stuck = || needs.iter().filter(|need| need.waiting > 0 && need.is_full);
        self.stuck.retain(|slot, _| stuck().any(|need| need.slot == *slot));
        for need in stuck() {
            self.stuck.entry(need.slot).or_insert(now);
        }
        let for_long = |need: &&Need| {
            let since = self.stuck.get(&need.slot).copied().unwrap_or(now);
            !need.shares || now.saturating_sub(since) >= SPARED
        };
        let stuck: Vec<&Need> = stuck().filter(for_long).collect();
        let mut freed: Vec<LinkSeen> = Vec::new();
        for need in &stuck {
            let may = |look: &&LinkSeen| need.may_free[look.slot.index()] && look.silent >= need.patience;
            let mut pinned: Vec<LinkSeen> =
                self.looks.iter().filter(may).filter(|look| self.is_pinned(look)).copied().collect();
            pinned.retain(|look| !freed.contains(look));
            pinned.sort_by_key(|look| (look.slot != need.slot, std::cmp::Reverse(look.silent)));
            freed.extend(pinned.into_iter().take(usize::try_from(need.waiting).unwrap_or(usize::MAX)));
        }
        if !freed.is_empty() {
            return Some(PinAction::Free(freed));
        }
        let mut slots = stuck.into_iter().flat_map(|need| [need.slot, need.slot.other()].map(|slot| (need, slot)));
        let (_, slot) = slots.find(|(need, slot)| self.is_to_close(now, need, *slot))?;
        self.closed.insert(slot, now);
        Some(PinAction::CloseIdle(slot))
    }

    /// Whether nothing moves in a process, and what stands there may be pinned.
    fn is_to_close(&self, now: Millis, need: &Need, slot: SlotName) -> bool {
        // what the database said to be in a transaction is not closed by that
        let unknown = |look: &LinkSeen| {
            !look.of_session && look.last == LastByte::Received && !self.told.contains_key(&look.local)
        };
        let again = self.closed.get(&slot).is_none_or(|closed| now.saturating_sub(*closed) >= CLOSE_AGAIN);
        let stands = self.of(slot).all(|look| look.silent >= need.patience) && self.of(slot).any(unknown);
        stands && again && need.may_close[slot.index()]
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::agent::decide::quiet::{self, Quiet};

    const THRESHOLD: u32 = 300_000;
    const FULL: Need = Need {
        slot: SlotName::A,
        waiting: 3,
        is_full: true,
        patience: 10_000,
        shares: false,
        may_free: [true; 2],
        may_close: [true; 2],
    };

    fn local(port: u32) -> Local {
        (IpAddr::V4(Ipv4Addr::LOCALHOST), u16::try_from(port).unwrap())
    }

    /// One whose port has the number of its process.
    fn look(process: u32, silent: u32, last: LastByte) -> LinkSeen {
        LinkSeen { slot: SlotName::A, of_session: false, local: local(process), process, silent, last, bytes: (7, 7) }
    }

    fn session(process: u32, state: SessionState, since: u64) -> Session {
        Session { process, state, since }
    }

    fn looked(looks: &[LinkSeen]) -> Pins {
        let mut pins = Pins::default();
        pins.look(looks.to_vec());
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
        assert_eq!(pins.to_ask(0, THRESHOLD, SlotName::A), [1, 2, 3, 4, 5]);
        pins.answered(
            SlotName::A,
            &[
                session(1, SessionState::Idle, 400_100),
                session(2, SessionState::InTransaction, 400_100),
                // it failed, and data came after that
                session(3, SessionState::Idle, 401_000),
                session(4, SessionState::Other, 400_000),
            ],
        );
        assert_eq!(pins.leaks(THRESHOLD).unwrap(), Leaks { in_transaction: 1, pinned: 2, unclear: 1 });
        assert_eq!(pins.leaking(THRESHOLD), BTreeSet::from([1, 2, 3, 5].map(local)));
        assert_eq!(pins.to_ask(ASK_AGAIN, THRESHOLD, SlotName::A), [5], "what is known is not asked again");
    }

    #[test]
    fn a_statement_that_waits_for_its_client_counts_as_a_transaction_and_is_never_freed() {
        for event in ["ClientRead", "ClientWrite"] {
            assert_eq!(SessionState::read("active", Some(event)), SessionState::InTransaction);
            assert_eq!(SessionState::read("idle", Some(event)), SessionState::Idle);
        }
        for event in [None, Some("DataFileRead"), Some("relation")] {
            assert_eq!(SessionState::read("active", event), SessionState::Other, "it works");
        }
        // one has sent a part of its data, the other none
        let looks = [look(1, 400_000, LastByte::Sent), look(2, 400_000, LastByte::Received)];
        let mut pins = looked(&looks);
        let state = SessionState::read("active", Some("ClientRead"));
        pins.answered(SlotName::A, &[session(1, state, 500_000), session(2, state, 400_000)]);
        assert_eq!(pins.leaks(THRESHOLD).unwrap(), Leaks { in_transaction: 2, ..Leaks::default() });
        assert_eq!(pins.leaking(THRESHOLD), BTreeSet::from([1, 2].map(local)));
        assert_eq!((pins.step(0, &[FULL]), pins.longest_pinned(THRESHOLD)), (None, None));
    }

    #[test]
    fn what_was_said_stands_until_a_byte_moves_and_another_session_of_the_number_says_nothing() {
        let mut pins = looked(&[look(1, 60_000, LastByte::Received)]);
        pins.answered(SlotName::A, &[session(1, SessionState::Idle, 2000)]);
        assert_eq!(
            pins.step(0, &[FULL]),
            Some(PinAction::CloseIdle(SlotName::A)),
            "idle for less long than silent: another one"
        );
        pins.answered(SlotName::A, &[session(1, SessionState::Idle, 60_000)]);
        pins.look(vec![look(1, 64_000, LastByte::Received)]);
        assert_eq!(pins.step(0, &[FULL]), Some(PinAction::Free(vec![look(1, 64_000, LastByte::Received)])));
        pins.look(vec![LinkSeen { bytes: (9, 7), ..look(1, 20, LastByte::Received) }]);
        assert_eq!(pins.step(0, &[FULL]), None);
    }

    #[test]
    fn a_process_that_several_connections_name_or_none_says_nothing_of_any_of_them() {
        let named =
            |port, process, silent| LinkSeen { local: local(port), ..look(process, silent, LastByte::Received) };
        let mut pins = looked(&[named(1, 0, 400_000), named(2, 0, 100), named(3, 7, 400_000), named(4, 7, 90_000)]);
        assert_eq!(pins.leaking(THRESHOLD), BTreeSet::from([1, 3].map(local)), "each is silent by itself");
        assert_eq!(pins.to_ask(0, THRESHOLD, SlotName::A), Vec::<u32>::new());
        pins.answered(SlotName::A, &[session(0, SessionState::Idle, 400_000), session(7, SessionState::Idle, 400_000)]);
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
        pins.answered(SlotName::A, &[session(1, SessionState::Idle, 60_000)]);
        pins.cannot_look();
        assert_eq!((pins.step(0, &[FULL]), pins.longest_pinned(THRESHOLD)), (None, None));
        pins.look(vec![pinned]);
        assert_eq!(pins.step(0, &[FULL]), Some(PinAction::Free(vec![pinned])), "no byte has moved");
    }

    #[test]
    fn a_process_that_is_only_held_back_while_somebody_logs_in_is_not_full() {
        let limits = LimitsReadBack { pool_size: 20, max_db_connections: 20, min_pool_size: 0, paused: false };
        let pools = Pools { active: 3, ..Pools::default() };
        let mut quiet = Quiet::default();
        let seen = quiet::LoginsSeen { logins: 1, held: pools.held(), limits };
        let quiet::Clearance::Hold(bounds) = quiet.step(0, &seen) else { panic!("it may open more") };
        let held_back = LimitsReadBack { pool_size: bounds.pool_size, ..limits };
        assert!(is_full(&pools, &held_back) && !is_full(&pools, &quiet.without(held_back)));
        assert!(is_full(&Pools { active: 20, ..pools }, &limits));
        assert!(!is_full(&Pools { active: 19, idle: 1, ..pools }, &limits), "one is free");
    }

    #[test]
    fn a_session_that_is_idle_has_its_connection_by_right_and_only_its_open_transaction_is_a_leak() {
        let mut pins = Pins::default();
        pins.look(
            [1, 2].map(|process| LinkSeen { of_session: true, ..look(process, 400_000, LastByte::Received) }).to_vec(),
        );
        assert_eq!((pins.leaks(THRESHOLD), pins.leaking(THRESHOLD)), (None, BTreeSet::new()), "nobody has said");
        pins.answered(
            SlotName::A,
            &[session(1, SessionState::Idle, 400_000), session(2, SessionState::InTransaction, 400_000)],
        );
        assert_eq!(pins.leaks(THRESHOLD).unwrap(), Leaks { in_transaction: 1, ..Leaks::default() });
        assert_eq!((pins.leaking(THRESHOLD), pins.longest_pinned(THRESHOLD)), (BTreeSet::from([local(2)]), None));
    }

    #[test]
    fn nothing_is_freed_unless_clients_wait_and_nothing_else_can_be_given_to_them() {
        let mut pins = looked(&[look(1, 60_000, LastByte::Received), look(2, 90_000, LastByte::Received)]);
        pins.answered(SlotName::A, &[session(1, SessionState::Idle, 60_000), session(2, SessionState::Idle, 90_000)]);
        assert_eq!(pins.step(0, &[Need { waiting: 0, ..FULL }]), None);
        assert_eq!(pins.step(0, &[Need { is_full: false, ..FULL }]), None);
        assert_eq!(pins.step(0, &[Need { patience: 100_000, ..FULL }]), None);
        assert_eq!(
            pins.step(0, &[Need { waiting: 1, ..FULL }]),
            Some(PinAction::Free(vec![look(2, 90_000, LastByte::Received)])),
            "the longest first"
        );
    }

    #[test]
    fn where_nobody_can_be_asked_pgbouncer_decides_once_everything_stands_and_not_for_queries_that_run() {
        let mut pins = looked(&[look(1, 60_000, LastByte::Received), look(2, 60_000, LastByte::Sent)]);
        assert_eq!(
            pins.step(0, &[Need { may_close: [false; 2], ..FULL }]),
            None,
            "sessions of the alias would end with them"
        );
        assert_eq!(pins.step(0, &[FULL]), Some(PinAction::CloseIdle(SlotName::A)));
        assert_eq!(pins.step(CLOSE_AGAIN - 1, &[FULL]), None);
        assert_eq!(pins.step(CLOSE_AGAIN, &[FULL]), Some(PinAction::CloseIdle(SlotName::A)));
        assert_eq!(looked(&[look(1, 60_000, LastByte::Sent)]).step(0, &[FULL]), None, "a slow database");
        let one_works = [look(1, 60_000, LastByte::Received), look(2, 100, LastByte::Sent)];
        assert_eq!(looked(&one_works).step(0, &[FULL]), None, "the question gets its turn");
        let mut in_transaction = looked(&[look(1, 60_000, LastByte::Received)]);
        in_transaction.answered(SlotName::A, &[session(1, SessionState::InTransaction, 60_000)]);
        assert_eq!(in_transaction.step(0, &[FULL]), None);
    }

    #[test]
    fn clients_are_freed_for_in_their_own_process_first_and_then_in_the_other_one_that_shares_with_it() {
        let in_b = |process, silent| LinkSeen { slot: SlotName::B, ..look(process, silent, LastByte::Received) };
        let in_a = look(1, 20_000, LastByte::Received);
        let mut pins = looked(&[in_b(2, 90_000), in_a, in_b(3, 60_000)]);
        let idle = [1, 2, 3].map(|process| session(process, SessionState::Idle, 90_000));
        pins.answered(SlotName::A, &idle);
        assert_eq!(pins.to_ask(0, THRESHOLD, SlotName::A), Vec::<u32>::new());
        assert_eq!(pins.to_ask(0, THRESHOLD, SlotName::B), [2, 3], "each is told of by the database for itself");
        pins.answered(SlotName::B, &idle);
        let freed = |pins: &mut Pins, needs: &[Need]| match pins.step(0, needs) {
            Some(PinAction::Free(freed)) => freed.iter().map(|look| look.process).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let waiting = |slot, waiting| Need { slot, waiting, ..FULL };
        assert_eq!(freed(&mut pins, &[waiting(SlotName::A, 2)]), [1, 2]);
        assert_eq!(freed(&mut pins, &[waiting(SlotName::B, 1)]), [2]);
        let both = [waiting(SlotName::A, 2), waiting(SlotName::B, 2)];
        assert_eq!(freed(&mut pins, &both), [1, 2, 3], "none twice");
        let may_free = [true, false];
        assert_eq!(
            freed(&mut pins, &[Need { may_free, ..waiting(SlotName::B, 3) }]),
            [1],
            "what could not be opened again"
        );
    }

    #[test]
    fn what_another_process_can_spare_comes_before_anybody_is_cut() {
        let pinned = look(1, 60_000, LastByte::Received);
        let mut pins = looked(&[pinned]);
        pins.answered(SlotName::A, &[session(1, SessionState::Idle, 60_000)]);
        let need = Need { shares: true, ..FULL };
        assert_eq!((pins.step(0, &[need]), pins.step(SPARED - 1, &[need])), (None, None));
        assert_eq!(pins.step(SPARED, &[need]), Some(PinAction::Free(vec![pinned])));
        // it was given one
        assert_eq!(pins.step(SPARED + 1, &[Need { is_full: false, ..need }]), None);
        assert_eq!(pins.step(SPARED + 2, &[need]), None);
        // nothing is known of it
        assert_eq!((pins.step(2 * SPARED + 1, &[]), pins.step(2 * SPARED + 2, &[need])), (None, None));
    }

    #[test]
    fn a_process_in_which_everything_stands_is_closed_by_itself_whatever_the_other_one_does() {
        let mut pins = looked(&[
            look(1, 60_000, LastByte::Received),
            LinkSeen { slot: SlotName::B, ..look(2, 100, LastByte::Sent) },
        ]);
        let of_b = Need { slot: SlotName::B, ..FULL };
        assert_eq!(pins.step(0, &[Need { may_close: [false, true], ..FULL }]), None);
        assert_eq!(pins.step(0, &[of_b]), Some(PinAction::CloseIdle(SlotName::A)), "they live within one share");
        assert_eq!(pins.step(1, &[FULL, of_b]), None);
        pins.look(vec![LinkSeen { slot: SlotName::B, ..look(2, 60_000, LastByte::Received) }]);
        assert_eq!(pins.step(2, &[of_b]), Some(PinAction::CloseIdle(SlotName::B)));
        pins.look(vec![LinkSeen { of_session: true, ..look(3, 60_000, LastByte::Received) }]);
        assert_eq!(pins.step(CLOSE_AGAIN, &[FULL]), None, "a session has it by right");
    }

    #[test]
    fn an_old_tie_is_no_leak_and_no_calm_until_the_database_says_which() {
        let mut pins = looked(&[look(1, 400_000, LastByte::Ambiguous)]);
        assert_eq!(pins.leaks(THRESHOLD), None);
        pins.answered(SlotName::A, &[session(1, SessionState::InTransaction, 400_000)]);
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
            let looks: Vec<LinkSeen> = (0_u32..).zip(looks).map(|(port, (process, silent, which))| LinkSeen { local: local(port), ..look(process, silent, last(which)) }).collect();
            let sessions: Vec<Session> =
                sessions.into_iter().map(|(process, which, since)| session(process, state(which), since)).collect();
            let mut pins = looked(&looks);
            pins.answered(SlotName::A, &sessions);
            if let Some(PinAction::Free(freed)) = pins.step(0, &[Need { waiting, ..FULL }]) {
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
