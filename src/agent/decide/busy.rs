//! PURE: how long server connections worked for transactions, from counters that hold the waits too.
//!
//! PgBouncer times a transaction from its client's first message: `total_xact_time` takes all of it when it ends, the wait
//! for a server connection included, and `total_wait_time` takes the wait when a connection is there (`client.c`,
//! `objects.c` and `server.c` of 1.24.1 and 1.26.1). The time less the waits, and the waits of what still runs added, is
//! what the transactions that have ended worked. That sum is exact whenever nothing runs, and late for what runs long. Other
//! figures of the same moment make up for it:
//!
//! - While the client that waited longest has waited since before the last reading, no server connection was free: each
//!   one that was linked worked all the time.
//! - A client that is linked to the connection that it was linked to at the last reading, of which the database was not heard
//!   in between, is in the same transaction. So it is where fewer connections were assigned than clients stayed.
//!   Its time counts as it passes, and not again when it ends.
//! - No more can work than is open. A client that stayed and was heard all the time beside others that come and go is
//!   not told from one with many transactions; its time comes when it ends, and then counts at its own pace.
//!
//! In session mode a client stays linked between its transactions, and none of this tells whether it works: what it worked counts when its
//! transaction ends, however much that is, and less by the waits of those that run.
//!
//! What is counted is never negative, never more than could work (but in session mode), and, once nothing runs, all that was worked. Until then it
//! is behind by at most three readings of each transaction that runs, by the whole of one that is heard all the time beside
//! others, and in a queue by what the waits of those that run differ. Lost is the last reading's work of a transaction that
//! is cut off. A leak counts until it is known as one, and after that no more.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::pooler::pgbouncer::tables::Snapshot;

/// After a longer pause between readings nothing is known about who was linked in between.
const LONGEST_PAUSE: i64 = 5_000_000;
/// The console's times of server connections are whole seconds.
const RESOLUTION: i64 = 1_000_000;
/// What waits differ at most among those that got their connections between two readings, as a rule.
const SPREAD: i64 = 2_000_000;
/// A client that stayed longer than this, and did not count meanwhile, brings its time late.
const LATE: i64 = 5_000_000;

/// A client and the server connection that it is linked to. Times are microseconds.
#[derive(Clone, Debug, Default)]
struct Pair {
    client: String,
    /// What its transaction waited, as the mean of those that got their connections with it.
    waited: i64,
    /// What has counted of it: its end brings that again.
    counted: i64,
    /// How long it stayed without counting: one transaction or many.
    stayed: i64,
    /// How long it was leaked: its end brings that too.
    leaked: i64,
    /// It was there when we first looked.
    inherited: bool,
}

#[derive(Clone, Debug, Default)]
struct Connection {
    /// When the database was heard last, as the console prints it, and since when it prints that.
    heard: String,
    heard_since: i64,
    pair: Option<Pair>,
}

impl Connection {
    fn stays(&mut self, client: &str) -> Option<Pair> {
        self.pair.take_if(|pair| pair.client == client)
    }
}

/// What one reading came to.
#[derive(Clone, Debug, Default)]
struct BusyLook {
    at: i64,
    /// Counters of the process.
    assignments: u64,
    wait: u64,
    /// What the transactions that have ended worked.
    ended: i64,
    /// By how much what those that run have waited may be estimated wrong.
    doubt: i64,
    linked: i64,
    connections: BTreeMap<u64, Connection>,
}

impl BusyLook {
    fn pairs(&mut self) -> impl Iterator<Item = &mut Pair> {
        self.connections.values_mut().filter_map(|connection| connection.pair.as_mut())
    }
}

/// What happened to the pairs since the last reading.
#[derive(Default)]
struct Changes {
    /// Connections whose clients are new.
    new: Vec<u64>,
    /// Connections whose clients stayed, in one transaction or many.
    unsure: Vec<u64>,
    leaked: i64,
    /// What counts of those that are in the same transaction.
    grown: i64,
}

/// The work of one process of the pooler, and of the next in its place.
#[derive(Clone, Debug, Default)]
pub struct Busy {
    last: Option<BusyLook>,
    /// Worked and not counted yet. Negative where waits were estimated too long.
    owed: i64,
    /// Work of transactions that came late, and of how many.
    late: i64,
    late_transactions: i64,
}

impl Busy {
    /// A new process begins. What is still to count of the one before counts.
    pub fn restarted(&mut self, at_microseconds: u64) {
        self.owed = self.owed.max(0);
        self.last = Some(BusyLook { at: signed(at_microseconds), ..BusyLook::default() });
    }

    /// Microseconds that server connections worked since the last reading; none for the first of a process that we did not
    /// see begin. `leaked` are the connections whose clients do nothing.
    pub fn feed(&mut self, at_microseconds: u64, seen: &Snapshot, leaked: &BTreeSet<u64>) -> u64 {
        let known = self.last.is_some();
        let mut last = self.last.take().unwrap_or_default();
        let at = signed(at_microseconds);
        let since = if known { (at - last.at).max(0) } else { 0 };
        // no server connection was free since the last reading
        let queued = known
            && !seen.holds_sessions
            && seen.pools.clients_waiting > 0
            && signed(seen.pools.longest_wait_microseconds) >= since;
        let (mut look, changes) = compare(&mut last, seen, at, since, queued, leaked);
        let gone: Vec<Pair> = last.connections.values_mut().filter_map(|connection| connection.pair.take()).collect();

        // a session stays linked when the transaction that waited has ended; until then its wait is owed
        let waits: i64 = if seen.holds_sessions { 0 } else { look.pairs().map(|pair| pair.waited).sum() };
        let spread = if seen.holds_sessions { i64::MAX } else { SPREAD };
        look.doubt = look.pairs().map(|pair| pair.waited.min(spread)).sum();
        look.ended = signed(seen.stats.transaction_microseconds) - signed(seen.stats.wait_microseconds) + waits;
        let open = last.connections.len().max(look.connections.len());
        let most = (signed(open as u64) - changes.leaked).max(0) * since;
        let mut came = if known { look.ended - last.ended } else { 0 };
        // what was counted, or is not to count, unless it was cut off and does not come; a wait that was estimated too long is
        // still owed
        let doubt = look.doubt + last.doubt;
        let at_most = doubt + self.owed.max(0);
        let leave_out = |time: i64, came: &mut i64| *came -= time.min(*came + at_most).max(0);
        leave_out(gone.iter().map(|pair| pair.counted).sum(), &mut came);
        leave_out(gone.iter().map(|pair| pair.leaked).sum(), &mut came);
        for (id, connection) in &mut look.connections {
            // a leak that is over, by a client that goes on at once: its time has come if there is too much of it
            if let Some(pair) = &mut connection.pair
                && pair.leaked > 0
                && !leaked.contains(id)
                && came - most >= pair.leaked / 2
            {
                leave_out(std::mem::take(&mut pair.leaked), &mut came);
            }
        }
        if gone.iter().any(|pair| pair.inherited) {
            came = came.min(most); // what it did before is not ours to count
        }

        let worked = if queued {
            let worked = ((last.linked + look.linked) * since / 2 - changes.leaked * since).max(0);
            let new = signed(changes.new.len() as u64);
            let begun = (worked - changes.grown - came).clamp(0, new * since);
            for id in &changes.new {
                if let Some(pair) = look.connections.get_mut(id).and_then(|connection| connection.pair.as_mut()) {
                    pair.counted = begun / new;
                }
            }
            self.owed += came + changes.grown + begun - worked;
            worked
        } else {
            let stayed: i64 = gone.iter().map(|pair| pair.stayed).filter(|stayed| *stayed >= LATE).sum();
            // as a rule it brings no more than all can have worked since, and those that are gone in two readings before
            let usual = (last.linked.max(look.linked) + 2 * signed(gone.len() as u64)) * since;
            let late = (came - usual).clamp(0, stayed);
            if late >= LATE / 2 {
                came -= late;
                self.late += late;
                self.late_transactions += 1;
            }
            self.owed += came + changes.grown;
            let most = if seen.holds_sessions { i64::MAX } else { most };
            let worked = self.owed.clamp(0, if known { most } else { 0 });
            self.owed -= worked;
            worked + self.count_late(since, most - worked)
        };
        self.owed = self.owed.max(-doubt);
        self.last = Some(look);
        worked.unsigned_abs()
    }

    /// What came late counts at the pace at which it was worked.
    fn count_late(&mut self, since: i64, most: i64) -> i64 {
        let late = self.late.min(self.late_transactions * since).min(most).max(0);
        self.late -= late;
        if self.late == 0 {
            self.late_transactions = 0;
        }
        late
    }
}

/// Who is linked to what, beside who was.
fn compare(
    last: &mut BusyLook,
    seen: &Snapshot,
    at: i64,
    since: i64,
    queued: bool,
    leaked: &BTreeSet<u64>,
) -> (BusyLook, Changes) {
    let begun = seen.stats.assignments.saturating_sub(last.assignments);
    let waited = seen.stats.wait_microseconds.saturating_sub(last.wait);
    let waited = if last.at > 0 || since > 0 { signed(waited.checked_div(begun).unwrap_or(0)) } else { 0 };
    let mut look =
        BusyLook { at, assignments: seen.stats.assignments, wait: seen.stats.wait_microseconds, ..BusyLook::default() };
    let mut changes = Changes::default();
    let follows = !seen.holds_sessions && since > 0 && since <= LONGEST_PAUSE;
    for server in seen.servers.iter().filter(|server| server.logged_in) {
        let mut before = last.connections.get_mut(&server.id);
        let same = before.as_ref().filter(|before| before.heard == server.heard);
        let heard_since = same.map_or(at, |before| before.heard_since);
        let quiet = last.at - heard_since >= RESOLUTION;
        let pair = server.client.as_ref().map(|client| {
            look.linked += 1;
            let Some(mut pair) = before.as_mut().and_then(|before| before.stays(client)) else {
                changes.new.push(server.id);
                return Pair { client: client.clone(), waited, inherited: since == 0, ..Pair::default() };
            };
            if leaked.contains(&server.id) {
                changes.leaked += 1;
                pair.leaked += since;
            } else if follows && (queued || quiet) {
                pair.counted += since;
                changes.grown += since;
            } else {
                pair.stayed += since;
                changes.unsure.push(server.id);
            }
            pair
        });
        look.connections.insert(server.id, Connection { heard: server.heard.clone(), heard_since, pair });
    }
    if follows {
        // no more of them can have begun anew than connections were assigned
        let mut stayed: Vec<&mut Pair> = look
            .connections
            .iter_mut()
            .filter(|(id, _)| changes.unsure.contains(id))
            .filter_map(|(_, connection)| connection.pair.as_mut())
            .collect();
        stayed.sort_by_key(|pair| std::cmp::Reverse(pair.counted + pair.stayed));
        let sure = stayed.len().saturating_sub(usize::try_from(begun).unwrap_or(usize::MAX));
        for pair in stayed.into_iter().take(sure) {
            pair.stayed -= since;
            pair.counted += since;
            changes.grown += since;
        }
    }
    (look, changes)
}

fn signed(microseconds: u64) -> i64 {
    i64::try_from(microseconds).unwrap_or(i64::MAX / 4)
}
