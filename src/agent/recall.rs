//! PURE: clients that have to connect anew, because PgBouncer goes on giving them what is not so any more, and nothing makes it forget
//! ([`Remembered`](crate::pooler::pgbouncer::changes::Remembered)).
//!
//! A connection is closed while it is idle, so that hardly anybody waits for an answer on it: one after each look, because a client that
//! is busy may ask again at any moment, and few in a second, so that those who come back do not all come at once. Who came after the recall began knows how it is, and stays.
//!
//! Times are milliseconds on a clock that does not jump.

use super::machine::Millis;
use crate::pooler::pgbouncer::tables::Client;

/// Clients that are closed in one go.
pub const CLOSED_AT_ONCE: usize = 1;
/// Between two rounds.
pub const PACE: Millis = 40;

/// Clients of one process that have to connect anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Number of the newest one.
    up_to: u64,
    next: Millis,
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
    /// Of all clients up to this number.
    pub fn up_to(id: u64) -> Self {
        Self { up_to: id, next: 0 }
    }

    /// Number of the newest one.
    pub fn newest(&self) -> u64 {
        self.up_to
    }

    /// Whether a round is due.
    pub fn is_due(&self, now: Millis) -> bool {
        now >= self.next
    }

    /// Takes in the clients of the process. Those of `database` count: a session has its server connection for itself.
    pub fn round(&mut self, now: Millis, clients: &[Client], database: &str) -> Round {
        self.next = now.saturating_add(PACE);
        let old = |client: &&Client| client.id <= self.up_to && client.database == database;
        let idle = clients.iter().filter(old).filter(|client| !client.linked && !client.waits);
        let close: Vec<u64> = idle.map(|client| client.id).take(CLOSED_AT_ONCE).collect();
        Round { goes_on: clients.iter().filter(old).count() > close.len(), close }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: u64) -> Client {
        Client {
            id,
            linked: false,
            waits: false,
            database: "shop".to_owned(),
            connected: String::new(),
            socket: String::new(),
            address: String::new(),
        }
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
