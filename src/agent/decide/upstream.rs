//! PURE: whether the database behind the pooler takes writes, and what is done while it does not. State, observation and now
//! in; the next action out.
//!
//! A failover can leave server connections on a server that was the primary and is not any more: it answers, and refuses each
//! write (`25006`). A Service or a name that has moved since changes nothing for connections that are open. So the server is
//! asked through the pool, over a connection that counts within the share like any other. While it takes no writes, server
//! connections are renewed, each when its transaction ends, and no size, revision or process is changed. They are renewed ever
//! more seldom: the name may not have moved yet, or there is no primary.
//!
//! Silence says nothing: what was known before holds.
//!
//! Times are milliseconds on a clock that does not jump.

use crate::{
    agent::decide::machine::Millis,
    contract::{UpstreamRole, UpstreamState},
    pooler::pgbouncer::tables::Table,
};

/// What an answer may take beyond its time, before what was known is old.
const GRACE: Millis = 3000;
/// A check that was never heard of again counts as one without an answer after so long: more than any `query_wait_timeout`.
const LOST_AFTER: Millis = 7_200_000;
/// Longest time between two checks while the database takes no writes: the end of that is to be noticed soon.
const READ_ONLY_PERIOD: Millis = 2000;
/// Between two looks for a free server connection.
const PLACE_LOOK: Millis = 1000;
/// What was known is old after so many periods without an answer.
const KNOWN_PERIODS: Millis = 3;
/// Pause between the first two renewals; doubled each time.
pub const FIRST_PAUSE: Millis = 2000;
/// Longest pause between two renewals, without the part that differs from pod to pod.
pub const LONGEST_PAUSE: Millis = 60_000;

/// Asks whether the session is one that may write, and whether this transaction may. What a client has set for itself and left behind
/// says nothing of the session: another client has `SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY` for itself alone in mind.
/// The transaction is asked of since PostgreSQL 14, where PgBouncer can remember it for each client.
pub const QUERY: &str = "select case when pg_is_in_recovery() then 'InRecovery' \
     when (select reset_val from pg_settings where name = 'default_transaction_read_only') = 'on' then 'ReadOnlyByDefault' \
     else 'Primary' end, \
     case when current_setting('server_version_num')::int >= 140000 then current_setting('transaction_read_only') end";

/// Why a server takes no writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It replays what a primary writes.
    InRecovery,
    /// The server, the database or the user is set so.
    ReadOnlyByDefault,
    /// The same, and PgBouncer has this transaction write all the same, as one of a client that came before.
    WrittenThrough,
    /// It was, and is not any more: PgBouncer makes transactions of new clients read-only all the same.
    Remembered,
}

impl Cause {
    fn as_words(self) -> &'static str {
        match self {
            Self::InRecovery => "it is in recovery, as a standby is, or a primary that was demoted",
            Self::ReadOnlyByDefault => "default_transaction_read_only is on",
            Self::WrittenThrough => {
                "default_transaction_read_only is on, and clients that PgBouncer remembers from before write all the same"
            }
            Self::Remembered => "default_transaction_read_only was on, and PgBouncer still sets it for new clients",
        }
    }

    /// Whether PgBouncer may remember it for a client.
    fn is_remembered(self) -> bool {
        self != Self::InRecovery
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleAnswer {
    /// The server takes writes.
    TakesWrites,
    /// It does not.
    ReadOnly(Cause),
    /// Nothing.
    Silent,
}

impl RoleAnswer {
    /// Reads what [`QUERY`] answers; None when that is something else. `remembers`: the pooler sets what it remembers for a client,
    /// so that the transaction is as another client's would be.
    pub fn read(table: &Table, remembers: bool) -> Option<Self> {
        let row = table.rows.first()?;
        let transaction = row.get(1).and_then(Option::as_deref).filter(|_| remembers);
        match (row.first()?.as_deref()?, transaction) {
            ("Primary", Some("on")) => Some(Self::ReadOnly(Cause::Remembered)),
            ("Primary", _) => Some(Self::TakesWrites),
            ("InRecovery", _) => Some(Self::ReadOnly(Cause::InRecovery)),
            ("ReadOnlyByDefault", Some("off")) => Some(Self::ReadOnly(Cause::WrittenThrough)),
            ("ReadOnlyByDefault", _) => Some(Self::ReadOnly(Cause::ReadOnlyByDefault)),
            _ => None,
        }
    }
}

/// One observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleSeen {
    /// Which role of the server is expected.
    pub expected: UpstreamRole,
    /// Between two checks.
    pub period: Millis,
    /// Whether a check would get a server connection now, or wait for one where others wait too.
    pub askable: bool,
    /// Whether a server connection that is closed could be opened again, and none logs in.
    pub renewable: bool,
    /// What came of the check that runs; None: nothing yet.
    pub answer: Option<RoleAnswer>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleAction {
    /// Ask the database.
    Ask,
    /// Have every process close its server connections as their transactions end, and open others.
    Renew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    TakesWrites,
    ReadOnly(ReadOnly),
}

/// Clients that were connected before the database took no writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writers {
    /// There were none.
    None,
    /// They may write through it.
    Some,
    /// They were told to connect anew.
    Recalled,
}

/// A time without a server that takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReadOnly {
    cause: Cause,
    renewals: u32,
    /// When the last one was.
    renewed: Option<Millis>,
    /// No other renewal before.
    due: Millis,
    pause: Millis,
    /// The last answer asked for a renewal, which was not possible then.
    owed: bool,
    writers: Writers,
    /// Clients that were connected meanwhile may be read-only after it.
    is_remembered: bool,
}

/// What is known of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleWatch {
    known: Known,
    answered: Option<Millis>,
    /// Since when a check runs.
    asking: Option<Millis>,
    next: Millis,
    /// Checks without an answer since the last one with.
    silences: u32,
    /// Clients that are connected now are to connect anew.
    recalls: bool,
    spread: Millis,
}

impl RoleWatch {
    /// Nothing known yet. `spread` makes the pauses of pods differ, in percent.
    pub fn new(spread: u8) -> Self {
        Self {
            known: Known::Nothing,
            answered: None,
            asking: None,
            next: 0,
            silences: 0,
            recalls: false,
            spread: spread.into(),
        }
    }

    /// Whether it takes no writes, as far as it has said.
    pub fn is_read_only(&self) -> bool {
        matches!(self.known, Known::ReadOnly(_))
    }

    /// Whether all clients that are connected now are to connect anew, for a pooler that remembers for each what the database was: once,
    /// when it is asked.
    pub fn take_recall(&mut self) -> bool {
        std::mem::take(&mut self.recalls)
    }

    /// Whether a renewal waits for the moment when it is possible.
    pub fn owes_renewal(&self) -> bool {
        !self.is_asking() && matches!(self.known, Known::ReadOnly(ReadOnly { owed: true, .. }))
    }

    /// Whether a check runs.
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// Whether a check is due, if there is a server connection for it.
    pub fn is_due(&self, now: Millis) -> bool {
        !self.is_asking() && now >= self.next
    }

    /// What to report.
    pub fn state(&self, now: Millis, period: Millis) -> UpstreamState {
        let holds = KNOWN_PERIODS * period + GRACE;
        let is_known = self.answered.is_some_and(|answered| now.saturating_sub(answered) <= holds);
        match self.known {
            Known::ReadOnly(_) => UpstreamState::ReadOnly,
            Known::TakesWrites if is_known => UpstreamState::Primary,
            Known::TakesWrites | Known::Nothing => UpstreamState::Unknown,
        }
    }

    /// Whether it is not known because the database was asked and does not answer.
    pub fn is_silent(&self, now: Millis, period: Millis) -> bool {
        let waits = self.asking.is_some_and(|since| now.saturating_sub(since) > GRACE);
        self.state(now, period) == UpstreamState::Unknown && (waits || self.silences > 0)
    }

    /// The same in words, empty when all is well. `why`: what a check without an answer met.
    pub fn message(&self, now: Millis, period: Millis, why: Option<&str>) -> String {
        let why = why.unwrap_or("it could not be asked");
        match (self.state(now, period), self.known) {
            (_, Known::ReadOnly(ReadOnly { cause, renewals, due, .. })) => {
                let within = due.saturating_sub(now).div_ceil(5000).max(1) * 5;
                let silent =
                    if self.silences > 0 { format!("; the last check had no answer: {why}") } else { String::new() };
                format!(
                    "the database takes no writes: {}; server connections were renewed {renewals} times, and are again within \
                     {within} s while it is so; sizes, revision and processes stay as they are{silent}",
                    cause.as_words()
                )
            }
            (UpstreamState::Unknown, _) if self.is_asking() => {
                let seconds = self.asking.map_or(0, |since| now.saturating_sub(since) / 1000);
                format!(
                    "whether the database takes writes is not known: it was asked {seconds} s ago and has not answered"
                )
            }
            (UpstreamState::Unknown, _) if self.silences > 0 => {
                format!("whether the database takes writes is not known: {why}")
            }
            (UpstreamState::Unknown, _) => "the database has not been asked lately whether it takes writes: no server \
                 connection was free for that"
                .to_owned(),
            _ => String::new(),
        }
    }

    /// Takes in one observation.
    pub fn step(&mut self, now: Millis, seen: &RoleSeen) -> Option<RoleAction> {
        if seen.expected == UpstreamRole::Any {
            let spread = self.spread;
            *self = Self { spread, ..Self::new(0) };
            return None;
        }
        if let Some(since) = self.asking {
            let lost = (now.saturating_sub(since) >= LOST_AFTER).then_some(RoleAnswer::Silent);
            let answer = seen.answer.or(lost)?;
            self.asking = None;
            return self.take(now, answer, seen);
        }
        if let Known::ReadOnly(before) = self.known
            && before.owed
            && let Some(action) = self.renews(now, before, seen)
        {
            return Some(action);
        }
        if !self.is_due(now) {
            return None;
        }
        if !seen.askable {
            self.next = now.saturating_add(PLACE_LOOK);
            return None;
        }
        self.asking = Some(now);
        Some(RoleAction::Ask)
    }

    fn take(&mut self, now: Millis, answer: RoleAnswer, seen: &RoleSeen) -> Option<RoleAction> {
        (self.silences, self.answered) = match answer {
            RoleAnswer::Silent => (self.silences.saturating_add(1), self.answered),
            RoleAnswer::TakesWrites | RoleAnswer::ReadOnly(_) => (0, Some(now)),
        };
        let action = match answer {
            RoleAnswer::Silent => {
                if let Known::ReadOnly(before) = &mut self.known {
                    before.owed = false;
                }
                None
            }
            RoleAnswer::TakesWrites => {
                self.recalls |= matches!(self.known, Known::ReadOnly(ReadOnly { is_remembered: true, .. }));
                self.known = Known::TakesWrites;
                None
            }
            RoleAnswer::ReadOnly(cause) => {
                let before = self.read_only(now, cause);
                self.renews(now, ReadOnly { owed: now >= before.due, ..before }, seen)
            }
        };
        let period = if self.is_read_only() { seen.period.min(READ_ONLY_PERIOD) } else { seen.period };
        self.next = now.saturating_add(period);
        action
    }

    /// The time without a server that takes writes, after one more answer. Who was connected before is told to connect anew once new
    /// clients meet what the database is: after a renewal. Where that has led to a primary, nobody has to.
    fn read_only(&mut self, now: Millis, cause: Cause) -> ReadOnly {
        let mut time = match self.known {
            Known::ReadOnly(before) => before,
            Known::TakesWrites | Known::Nothing => ReadOnly {
                cause,
                renewals: 0,
                renewed: None,
                due: now,
                pause: 0,
                owed: false,
                writers: if self.known == Known::TakesWrites { Writers::Some } else { Writers::None },
                is_remembered: false,
            },
        };
        if cause == Cause::Remembered && time.cause != cause {
            // the database is as it should be: what it said before is renewed soon
            let soon = time.renewed.map_or(now, |renewed| renewed.saturating_add(FIRST_PAUSE));
            (time.due, time.pause) = (time.due.min(soon), 0);
        }
        time.cause = cause;
        if cause == Cause::WrittenThrough && time.writers == Writers::None {
            time.writers = Writers::Some;
        }
        time.is_remembered |= cause.is_remembered();
        let is_fenced = matches!(cause, Cause::ReadOnlyByDefault | Cause::WrittenThrough);
        if is_fenced && time.writers == Writers::Some && time.renewals > 0 && !time.owed {
            time.writers = Writers::Recalled;
            self.recalls = true;
        }
        time
    }

    /// Renews what is owed a renewal, if that is possible now.
    fn renews(&mut self, now: Millis, before: ReadOnly, seen: &RoleSeen) -> Option<RoleAction> {
        let renews = before.owed && seen.renewable;
        self.known = Known::ReadOnly(if renews { self.renewed(now, before) } else { before });
        renews.then_some(RoleAction::Renew)
    }

    fn renewed(&self, now: Millis, before: ReadOnly) -> ReadOnly {
        let pause = (2 * before.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let due = now.saturating_add(pause + pause * self.spread / 100);
        let (renewals, renewed) = (before.renewals.saturating_add(1), Some(now));
        ReadOnly { renewals, renewed, due, pause, owed: false, ..before }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Millis = 10_000;
    const CALM: RoleSeen =
        RoleSeen { expected: UpstreamRole::Primary, period: PERIOD, askable: true, renewable: true, answer: None };
    const STANDBY: RoleAnswer = RoleAnswer::ReadOnly(Cause::InRecovery);

    /// A pod whose database answers each check at once.
    struct AskingPod {
        upstream: RoleWatch,
        now: Millis,
        seen: RoleSeen,
        asked: Vec<Millis>,
        renewed: Vec<Millis>,
        recalled: Vec<Millis>,
    }

    impl AskingPod {
        fn new() -> Self {
            Self {
                upstream: RoleWatch::new(0),
                now: 0,
                seen: CALM,
                asked: Vec::new(),
                renewed: Vec::new(),
                recalled: Vec::new(),
            }
        }

        fn run(&mut self, database: RoleAnswer, milliseconds: Millis) {
            let end = self.now + milliseconds;
            while self.now < end {
                self.seen.answer = self.upstream.is_asking().then_some(database);
                match self.upstream.step(self.now, &self.seen) {
                    Some(RoleAction::Ask) => self.asked.push(self.now),
                    Some(RoleAction::Renew) => self.renewed.push(self.now),
                    None => {}
                }
                if self.upstream.take_recall() {
                    self.recalled.push(self.now);
                }
                self.now += 50;
            }
        }

        fn state(&self) -> UpstreamState {
            self.upstream.state(self.now, PERIOD)
        }

        fn is_silent(&self) -> bool {
            self.upstream.is_silent(self.now, PERIOD)
        }
    }

    #[test]
    fn a_primary_is_asked_once_a_period_and_nothing_else_is_done() {
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::TakesWrites, 10 * PERIOD);
        assert!((9..=11).contains(&pod.asked.len()), "{:?}", pod.asked);
        assert_eq!((pod.state(), pod.renewed.len()), (UpstreamState::Primary, 0));
        assert_eq!(pod.upstream.message(pod.now, PERIOD, None), "");
    }

    #[test]
    fn a_demoted_primary_has_connections_renewed_at_once_and_then_ever_more_seldom() {
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        let at = pod.now;
        pod.run(STANDBY, 1_800_000);
        assert_eq!(pod.state(), UpstreamState::ReadOnly);
        assert!(pod.renewed[0] < at + PERIOD + 200, "{:?}", pod.renewed);
        let pauses: Vec<Millis> = pod.renewed.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses[0] >= FIRST_PAUSE && pauses.iter().all(|pause| *pause <= LONGEST_PAUSE + 3000), "{pauses:?}");
        assert!(pod.renewed.len() < 40, "{} renewals in half an hour", pod.renewed.len());
        let told = pod.upstream.message(pod.now, PERIOD, None);
        assert!(told.contains("in recovery") && told.contains(&format!("{} times", pod.renewed.len())), "{told}");
    }

    #[test]
    fn clients_of_a_fence_connect_anew_once_it_holds_and_once_it_is_over() {
        let fenced = RoleAnswer::ReadOnly(Cause::ReadOnlyByDefault);
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        pod.run(fenced, 300_000);
        assert_eq!(pod.recalled.len(), 1, "those from before write through it: {:?}", pod.recalled);
        assert!(pod.recalled[0] > pod.renewed[0], "new ones have to meet the fence");
        let renewals = pod.renewed.len();
        pod.run(RoleAnswer::ReadOnly(Cause::Remembered), 3000);
        assert!(pod.renewed.len() > renewals, "what new clients are given is renewed at once");
        assert_eq!(pod.recalled.len(), 1);
        let at = pod.now;
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        assert_eq!(pod.recalled.len(), 2);
        assert!(pod.recalled[1] < at + READ_ONLY_PERIOD + 200);
    }

    #[test]
    fn clients_of_a_standby_or_of_a_user_that_never_writes_are_left_alone() {
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        pod.run(STANDBY, 300_000);
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        assert_eq!(pod.recalled.len(), 0, "it is nothing that PgBouncer remembers");
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::ReadOnly(Cause::ReadOnlyByDefault), 300_000);
        assert_eq!(pod.recalled.len(), 0, "nobody wrote before");
        pod.run(RoleAnswer::ReadOnly(Cause::WrittenThrough), 10_000);
        assert_eq!(pod.recalled.len(), 1, "but when somebody does");
    }

    #[test]
    fn a_fence_that_the_next_primary_ends_at_once_has_clients_connect_anew_once() {
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        pod.run(RoleAnswer::ReadOnly(Cause::ReadOnlyByDefault), READ_ONLY_PERIOD);
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        assert_eq!((pod.renewed.len(), pod.recalled.len()), (1, 1));
    }

    #[test]
    fn what_a_transaction_may_counts_where_the_pooler_sets_it_for_each_client() {
        let row = |state: &str, transaction: Option<&str>| Table {
            columns: Vec::new(),
            rows: vec![vec![Some(state.to_owned()), transaction.map(str::to_owned)]],
        };
        let cases = [
            ("Primary", Some("on"), false, RoleAnswer::TakesWrites),
            ("Primary", Some("on"), true, RoleAnswer::ReadOnly(Cause::Remembered)),
            ("Primary", Some("off"), true, RoleAnswer::TakesWrites),
            ("Primary", None, true, RoleAnswer::TakesWrites),
            ("ReadOnlyByDefault", Some("off"), false, RoleAnswer::ReadOnly(Cause::ReadOnlyByDefault)),
            ("ReadOnlyByDefault", Some("off"), true, RoleAnswer::ReadOnly(Cause::WrittenThrough)),
            ("ReadOnlyByDefault", Some("on"), true, RoleAnswer::ReadOnly(Cause::ReadOnlyByDefault)),
            ("InRecovery", Some("on"), true, STANDBY),
        ];
        for (state, transaction, remembers, answer) in cases {
            assert_eq!(RoleAnswer::read(&row(state, transaction), remembers), Some(answer), "{state} {transaction:?}");
        }
        assert_eq!(RoleAnswer::read(&row("Else", None), true), None);
    }

    #[test]
    fn the_end_of_it_is_noticed_within_seconds_and_the_next_time_begins_anew() {
        let mut pod = AskingPod::new();
        pod.run(STANDBY, 300_000);
        let many = pod.renewed.len();
        pod.run(RoleAnswer::TakesWrites, READ_ONLY_PERIOD + 200);
        assert_eq!((pod.state(), pod.upstream.is_read_only()), (UpstreamState::Primary, false));
        pod.run(STANDBY, PERIOD + 3 * FIRST_PAUSE);
        assert!(pod.renewed.len() > many + 1, "{:?}", pod.renewed);
    }

    #[test]
    fn silence_is_never_read_as_read_only_and_frees_nobody_either() {
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::Silent, 100_000);
        assert_eq!((pod.state(), pod.upstream.is_read_only()), (UpstreamState::Unknown, false));
        assert!(pod.upstream.message(pod.now, PERIOD, Some("connect failed")).contains("connect failed"));
        pod.run(STANDBY, 20_000);
        let renewed = pod.renewed.len();
        pod.run(RoleAnswer::Silent, 300_000);
        assert_eq!((pod.state(), pod.upstream.is_read_only()), (UpstreamState::ReadOnly, true));
        assert_eq!(pod.renewed.len(), renewed, "what does not answer is not renewed for it");
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        pod.run(RoleAnswer::Silent, PERIOD + 5000);
        assert_eq!(pod.state(), UpstreamState::Primary, "one silence changes nothing");
        pod.run(RoleAnswer::Silent, 5 * PERIOD);
        assert_eq!((pod.state(), pod.upstream.is_read_only()), (UpstreamState::Unknown, false));
    }

    #[test]
    fn where_any_role_will_do_nobody_is_asked_and_nothing_stays_frozen() {
        let mut pod = AskingPod::new();
        pod.run(STANDBY, PERIOD);
        assert!(pod.upstream.is_read_only());
        pod.seen.expected = UpstreamRole::Any;
        let asked = pod.asked.len();
        pod.run(STANDBY, 10 * PERIOD);
        assert_eq!((pod.asked.len(), pod.upstream.is_read_only()), (asked, false));
    }

    #[test]
    fn while_logins_are_refused_no_connection_is_renewed() {
        let mut pod = AskingPod::new();
        pod.seen.renewable = false;
        pod.run(STANDBY, 100_000);
        assert_eq!((pod.renewed.len(), pod.state()), (0, UpstreamState::ReadOnly));
        pod.seen.renewable = true;
        pod.run(STANDBY, READ_ONLY_PERIOD + 200);
        assert_eq!(pod.renewed.len(), 1);
    }

    #[test]
    fn a_renewal_that_waited_for_a_login_is_made_up_for_before_the_next_check_unless_it_is_not_wanted_any_more() {
        let mut pod = AskingPod::new();
        pod.seen.renewable = false;
        pod.run(STANDBY, 150);
        assert!(pod.upstream.owes_renewal() && pod.upstream.is_read_only());
        pod.seen.renewable = true;
        pod.run(STANDBY, 50);
        assert_eq!((pod.renewed.len(), pod.upstream.owes_renewal(), pod.asked.len()), (1, false, 1));
        pod.seen.renewable = false;
        pod.run(STANDBY, 2 * READ_ONLY_PERIOD + 500);
        assert!(pod.upstream.owes_renewal());
        pod.run(RoleAnswer::TakesWrites, READ_ONLY_PERIOD + 200);
        pod.seen.renewable = true;
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        assert_eq!(pod.renewed.len(), 1);
    }

    #[test]
    fn a_pool_without_a_free_connection_is_not_asked_and_what_was_known_grows_old() {
        let mut pod = AskingPod::new();
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        pod.seen.askable = false;
        let asked = pod.asked.len();
        pod.run(RoleAnswer::TakesWrites, 10 * PERIOD);
        assert_eq!((pod.asked.len(), pod.state(), pod.is_silent()), (asked, UpstreamState::Unknown, false));
        assert!(pod.upstream.message(pod.now, PERIOD, None).contains("no server connection was free"));
    }

    #[test]
    fn who_was_asked_is_silent_after_a_check_without_an_answer_or_a_moment_of_waiting_for_one() {
        let mut pod = AskingPod::new();
        assert_eq!((pod.state(), pod.is_silent()), (UpstreamState::Unknown, false), "nobody has asked yet");
        assert_eq!(pod.upstream.step(0, &CALM), Some(RoleAction::Ask));
        assert!(!pod.upstream.is_silent(GRACE, PERIOD) && pod.upstream.is_silent(GRACE + 1, PERIOD));
        pod.run(RoleAnswer::TakesWrites, PERIOD);
        pod.run(RoleAnswer::Silent, 2 * PERIOD);
        assert_eq!((pod.state(), pod.is_silent()), (UpstreamState::Primary, false), "what was known holds");
        pod.run(RoleAnswer::Silent, 3 * PERIOD);
        assert_eq!((pod.state(), pod.is_silent()), (UpstreamState::Unknown, true));
    }

    #[test]
    fn only_the_three_words_of_the_query_are_an_answer() {
        let cell = |text: &str| Table { columns: vec!["case".to_owned()], rows: vec![vec![Some(text.to_owned())]] };
        assert_eq!(RoleAnswer::read(&cell("Primary"), true), Some(RoleAnswer::TakesWrites));
        assert_eq!(RoleAnswer::read(&cell("InRecovery"), true), Some(STANDBY));
        assert_eq!(
            RoleAnswer::read(&cell("ReadOnlyByDefault"), true),
            Some(RoleAnswer::ReadOnly(Cause::ReadOnlyByDefault))
        );
        assert_eq!(RoleAnswer::read(&cell("on"), true), None);
        assert_eq!(RoleAnswer::read(&Table { rows: vec![vec![None]], ..Table::default() }, true), None);
        assert_eq!(RoleAnswer::read(&Table::default(), true), None);
    }

    fn seen() -> impl Strategy<Value = RoleSeen> {
        let role = prop_oneof![9 => Just(UpstreamRole::Primary), 1 => Just(UpstreamRole::Any)];
        let answer = prop_oneof![
            Just(None),
            Just(Some(RoleAnswer::TakesWrites)),
            Just(Some(STANDBY)),
            Just(Some(RoleAnswer::ReadOnly(Cause::ReadOnlyByDefault))),
            Just(Some(RoleAnswer::ReadOnly(Cause::WrittenThrough))),
            Just(Some(RoleAnswer::ReadOnly(Cause::Remembered))),
            Just(Some(RoleAnswer::Silent)),
        ];
        (role, 1..60_u64, any::<bool>(), prop::bool::weighted(0.8), answer).prop_map(
            |(expected, seconds, askable, renewable, answer)| RoleSeen {
                expected,
                period: 1000 * seconds,
                askable,
                renewable,
                answer,
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_happens_connections_are_renewed_for_a_fresh_answer_alone_and_never_without_a_pause(
            steps in prop::collection::vec((seen(), 0..20_000_u64), 1..200),
        ) {
            let (mut upstream, mut now, mut last) = (RoleWatch::new(30), 0, None);
            let mut frozen = false;
            for (seen, pause) in steps {
                now += pause;
                let before = upstream;
                let action = upstream.step(now, &seen);
                match (seen.expected, seen.answer.filter(|_| before.is_asking())) {
                    (UpstreamRole::Any, _) | (_, Some(RoleAnswer::TakesWrites)) => (frozen, last) = (false, None),
                    (_, Some(RoleAnswer::ReadOnly(_))) => frozen = true,
                    _ => {}
                }
                prop_assert_eq!(upstream.is_read_only(), frozen);
                match action {
                    Some(RoleAction::Ask) => prop_assert!(!before.is_asking() && seen.askable),
                    Some(RoleAction::Renew) => {
                        let asked_for = matches!(seen.answer, Some(RoleAnswer::ReadOnly(_))) || before.owes_renewal();
                        prop_assert!(asked_for && seen.renewable && frozen);
                        prop_assert!(last.is_none_or(|last| now - last >= FIRST_PAUSE));
                        last = Some(now);
                    }
                    None => {}
                }
            }
        }

        #[test]
        fn a_database_that_can_be_asked_is_asked_again_however_it_was_before(
            steps in prop::collection::vec((seen(), 0..20_000_u64), 0..50),
        ) {
            let (mut upstream, mut now) = (RoleWatch::new(30), 0);
            for (seen, pause) in steps {
                now += pause;
                upstream.step(now, &seen);
            }
            let end = now + 60_000 + LOST_AFTER;
            let mut asked = false;
            while now < end {
                asked |= upstream.step(now, &CALM) == Some(RoleAction::Ask);
                now += 1000;
            }
            prop_assert!(asked);
        }
    }
}
