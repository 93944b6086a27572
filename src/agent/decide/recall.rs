//! PURE: clients that have to connect anew, because PgBouncer goes on giving them what is not so any more, and nothing makes it forget
//! ([`Remembered`](crate::pooler::pgbouncer::changes::Remembered)).
//!
//! A connection is closed while it is idle, so that hardly anybody waits for an answer on it: one after each look, because a client that
//! is busy may ask again at any moment, and few in a second, so that those who come back do not all come at once. Who came after the first look knows how it is, and stays.
//! A look that has no answer is taken again.
//!
//! Times are milliseconds on a clock that does not jump.

use crate::{agent::decide::machine::Millis, pooler::pgbouncer::tables::Client};

/// Clients that are closed in one go.
pub const CLOSED_AT_ONCE: usize = 1;
/// Between two rounds.
pub const PACE: Millis = 40;
/// Longest time between two rounds: who is in a transaction may be so for hours, and a look at all clients costs more than a reading.
pub const SLOWEST: Millis = 1000;
/// After a look that had no answer.
const UNANSWERED: Millis = 1000;
/// What is noted before the first look.
const ALL: &str = "all";

/// Clients of one process that have to connect anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Number of the newest one; None before the first look.
    up_to: Option<u64>,
    next: Millis,
    /// Until the next round; doubled by each one that closes nobody.
    pause: Millis,
}

/// One round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Those that are closed now.
    pub close: Vec<u64>,
    /// Whether others are to follow.
    pub goes_on: bool,
}

impl Recall {
    /// Of all clients that the first look shows.
    pub fn of_all() -> Self {
        Self { up_to: None, next: 0, pause: PACE }
    }

    /// Of all clients up to this number.
    pub fn up_to(id: u64) -> Self {
        Self { up_to: Some(id), next: 0, pause: PACE }
    }

    /// Whether nobody has looked yet who they are.
    pub fn is_of_all(&self) -> bool {
        self.up_to.is_none()
    }

    /// For an agent that comes after this one.
    pub fn note(&self) -> String {
        self.up_to.map_or_else(|| ALL.to_owned(), |id| id.to_string())
    }

    /// What another agent noted; None where that cannot be read.
    pub fn noted(note: &str) -> Option<Self> {
        if note == ALL { Some(Self::of_all()) } else { note.parse().ok().map(Self::up_to) }
    }

    /// Whether a round is due.
    pub fn is_due(&self, now: Millis) -> bool {
        now >= self.next
    }

    /// The process did not tell who its clients are.
    pub fn had_no_answer(&mut self, now: Millis) {
        self.next = now.saturating_add(UNANSWERED);
    }

    /// Takes in the clients of the process. Those of `database` count: a session has its server connection for itself.
    pub fn round(&mut self, now: Millis, clients: &[Client], database: &str) -> Round {
        let newest = clients.iter().map(|client| client.id).max().unwrap_or(0);
        let up_to = *self.up_to.get_or_insert(newest);
        let old = |client: &&Client| client.id <= up_to && client.database == database;
        let idle = clients.iter().filter(old).filter(|client| !client.linked && !client.waits);
        let close: Vec<u64> = idle.map(|client| client.id).take(CLOSED_AT_ONCE).collect();
        self.pause = if close.is_empty() { (2 * self.pause).min(SLOWEST) } else { PACE };
        self.next = now.saturating_add(self.pause);
        Round { goes_on: clients.iter().filter(old).count() > close.len(), close }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_who_is_meant_before_the_first_look_too() {
        for recall in [Recall::of_all(), Recall::up_to(7)] {
            assert_eq!(Recall::noted(&recall.note()), Some(recall));
        }
        assert_eq!(Recall::noted(""), None);
    }

    fn client(id: u64) -> Client {
        Client {
            id,
            linked: false,
            waits: false,
            waited_microseconds: 0,
            database: "shop".to_owned(),
            application: String::new(),
            connected: String::new(),
            requested: String::new(),
            socket: String::new(),
            address: String::new(),
        }
    }

    #[test]
    fn whoever_is_there_when_the_process_answers_at_last_connects_anew() {
        let mut clients: Vec<Client> = (1..=3).map(client).collect();
        let mut recall = Recall::of_all();
        assert!(recall.is_due(0));
        recall.had_no_answer(0);
        assert!(!recall.is_due(UNANSWERED - 1) && recall.is_due(UNANSWERED) && recall.is_of_all());
        let mut closed = Vec::new();
        let mut now = UNANSWERED;
        loop {
            let round = recall.round(now, &clients, "shop");
            clients.retain(|client| !round.close.contains(&client.id));
            closed.extend(round.close);
            clients.push(client(closed.len() as u64 + 3));
            if !round.goes_on {
                break;
            }
            now += PACE;
        }
        assert_eq!((closed, recall.up_to), (vec![1, 2, 3], Some(3)));
        assert!(!Recall::of_all().round(0, &[], "shop").goes_on, "there is nobody");
    }

    #[test]
    fn where_only_those_are_left_who_work_they_are_looked_at_once_a_second_and_closed_within_one_when_they_do_not() {
        let mut clients = vec![client(1), client(2)];
        clients[0].linked = true;
        clients[1].waits = true;
        let mut recall = Recall::up_to(2);
        let mut looks = Vec::new();
        for now in (0..600_000).step_by(50) {
            if recall.is_due(now) {
                looks.push(now);
                assert_eq!(recall.round(now, &clients, "shop"), Round { close: vec![], goes_on: true });
            }
        }
        assert!((595..=610).contains(&looks.len()), "{} looks in ten minutes", looks.len());
        (clients[0].linked, clients[1].waits) = (false, false);
        assert!(recall.is_due(600_000 + SLOWEST));
        assert_eq!(recall.round(601_000, &clients, "shop").close, [1]);
        assert!(recall.is_due(601_000 + PACE), "there may be others now");
    }

    #[test]
    fn those_who_work_are_waited_for_and_those_who_came_later_stay() {
        let mut clients: Vec<Client> = (1..=25).map(client).collect();
        clients[0].linked = true;
        clients[1].waits = true;
        "sessions".clone_into(&mut clients[2].database);
        let mut recall = Recall::up_to(23);
        let mut closed = Vec::new();
        for now in (0..10_000).step_by(50) {
            if !recall.is_due(now) {
                continue;
            }
            let round = recall.round(now, &clients, "shop");
            assert!(round.close.len() <= CLOSED_AT_ONCE && round.goes_on);
            clients.retain(|client| !round.close.contains(&client.id));
            closed.extend(round.close);
        }
        assert_eq!(closed, (4..=23).collect::<Vec<_>>());
        clients[0].linked = false;
        clients[1].waits = false;
        assert_eq!(recall.round(10_000, &clients, "shop"), Round { close: vec![1], goes_on: true });
        clients.retain(|client| client.id != 1);
        assert_eq!(recall.round(11_000, &clients, "shop"), Round { close: vec![2], goes_on: false });
    }
}
