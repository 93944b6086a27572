//! PURE: who works a pooler now, from its list of clients.

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::{
    contract::{ApplicationClients, ClientState, ClientsReport, LongestClient},
    pooler::pgbouncer::tables::Client,
};

/// Most applications that are told apart: what a client calls itself is its own affair, and may differ with each connection.
const MOST_APPLICATIONS: usize = 20;
/// Most clients that are named.
const MOST_CLIENTS: usize = 10;
/// Longest name that is shown, in characters: that of PostgreSQL's `NAMEDATALEN` less one.
const LONGEST_NAME: usize = 63;

/// Who works the poolers whose clients these are.
pub fn report(clients: &[Client], now: Timestamp) -> ClientsReport {
    ClientsReport { v: 1, applications: applications(clients), longest: longest(clients, now) }
}

fn applications(clients: &[Client]) -> Vec<ApplicationClients> {
    let mut by_name: BTreeMap<String, ApplicationClients> = BTreeMap::new();
    for client in clients {
        count(by_name.entry(shown(&client.application)).or_default(), client.linked, client.waits);
    }
    let mut all: Vec<ApplicationClients> =
        by_name.into_iter().map(|(name, counted)| ApplicationClients { application: Some(name), ..counted }).collect();
    all.sort_by_key(|of| Reverse((of.holding, of.waiting, of.clients)));
    if all.len() > MOST_APPLICATIONS {
        let others = all.split_off(MOST_APPLICATIONS - 1);
        let others = others.into_iter().fold(ApplicationClients::default(), |sum, of| ApplicationClients {
            application: None,
            clients: sum.clients.saturating_add(of.clients),
            holding: sum.holding.saturating_add(of.holding),
            waiting: sum.waiting.saturating_add(of.waiting),
        });
        all.push(others);
    }
    all
}

fn count(of: &mut ApplicationClients, holds: bool, waits: bool) {
    of.clients = of.clients.saturating_add(1);
    of.holding = of.holding.saturating_add(holds.into());
    of.waiting = of.waiting.saturating_add(waits.into());
}

fn longest(clients: &[Client], now: Timestamp) -> Vec<LongestClient> {
    let mut longest: Vec<LongestClient> = clients.iter().filter_map(|client| of_client(client, now)).collect();
    longest.sort_by_key(|client| Reverse(client.milliseconds));
    longest.truncate(MOST_CLIENTS);
    longest
}

/// None of one that neither holds a connection nor waits for one.
fn of_client(client: &Client, now: Timestamp) -> Option<LongestClient> {
    let (state, milliseconds) = if client.waits {
        (ClientState::Waits, Some(client.waited_microseconds / 1000))
    } else if client.linked {
        (ClientState::Holds, since(&client.requested, now))
    } else {
        return None;
    };
    Some(LongestClient {
        application: shown(&client.application),
        address: shown(&client.address),
        database: shown(&client.database),
        state,
        milliseconds,
    })
}

/// How long ago PgBouncer's clock showed this, in milliseconds. It prints local time and the zone's own name for it, of which only that of
/// UTC says how far that is from UTC.
fn since(printed: &str, now: Timestamp) -> Option<u64> {
    let (clock, zone) = printed.rsplit_once(' ')?;
    if !matches!(zone, "UTC" | "GMT") {
        return None;
    }
    let at = DateTime::strptime("%Y-%m-%d %H:%M:%S", clock).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    // it is printed in whole seconds, and a clock may have been set back
    u64::try_from(now.duration_since(at).as_millis()).ok().or(Some(0))
}

/// What a client calls itself, as far as it is shown: terminals obey control characters.
fn shown(text: &str) -> String {
    text.chars().take(LONGEST_NAME).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(application: &str) -> Client {
        Client {
            id: 1,
            linked: false,
            waits: false,
            waited_microseconds: 0,
            database: "shop".to_owned(),
            application: application.to_owned(),
            connected: String::new(),
            requested: "2026-12-01 10:00:00 UTC".to_owned(),
            socket: String::new(),
            address: "127.0.0.1:4001".to_owned(),
        }
    }

    fn now() -> Timestamp {
        "2026-12-01T10:00:07Z".parse().unwrap()
    }

    #[test]
    fn the_application_that_holds_most_connections_comes_first() {
        let holds = |client: Client| Client { linked: true, ..client };
        let waits = |client: Client| Client { waits: true, waited_microseconds: 2_500_000, ..client };
        let clients =
            [client("idle"), holds(client("report")), waits(client("web")), holds(client("report")), client("idle")];
        let told = report(&clients, now());
        let rows: Vec<_> = told
            .applications
            .iter()
            .map(|of| (of.application.as_deref().unwrap(), of.clients, of.holding, of.waiting))
            .collect();
        assert_eq!(rows, [("report", 2, 2, 0), ("web", 1, 0, 1), ("idle", 2, 0, 0)]);
        let longest: Vec<_> =
            told.longest.iter().map(|of| (of.application.as_str(), of.state, of.milliseconds)).collect();
        let holds = ("report", ClientState::Holds, Some(7000));
        assert_eq!(longest, [holds, holds, ("web", ClientState::Waits, Some(2500))], "who is idle is not named");
    }

    #[test]
    fn applications_beyond_the_most_that_are_told_apart_are_one_sum() {
        let clients: Vec<Client> =
            (0..50).map(|at| Client { linked: at < 30, ..client(&format!("job-{at}")) }).collect();
        let told = report(&clients, now());
        assert_eq!(told.applications.len(), MOST_APPLICATIONS);
        let others = told.applications.last().unwrap();
        assert_eq!((others.application.as_ref(), others.clients, others.holding), (None, 31, 11));
        assert_eq!(told.longest.len(), MOST_CLIENTS);
    }

    #[test]
    fn a_clock_that_cannot_be_read_says_nothing_and_one_that_was_set_back_no_time() {
        for unknown in ["", "2026-12-01 10:00:00 CET", "2026-12-01 10:00:00", "10:00:00 UTC"] {
            assert_eq!(since(unknown, now()), None, "{unknown:?}");
        }
        assert_eq!(since("2026-12-01 10:00:09 UTC", now()), Some(0));
    }

    #[test]
    fn what_a_client_calls_itself_reaches_no_terminal_as_a_command() {
        let told = report(&[client("\u{1b}[2Jx\n")], now());
        assert_eq!(told.applications[0].application.as_deref(), Some("?[2Jx?"));
        let long = report(&[client(&"x".repeat(1000))], now());
        assert_eq!(long.applications[0].application.as_ref().map(String::len), Some(LONGEST_NAME));
    }
}
