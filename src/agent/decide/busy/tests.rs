//! The estimate beside PgBouncer's counters, played event by event.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // times of a play

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::pooler::pgbouncer::tables::{Pools, Server, Stats};

const SECOND: u64 = 1_000_000;
/// After which an idle transaction is a leak.
const THRESHOLD: u64 = 20 * SECOND;

/// One transaction. Times are microseconds.
#[derive(Clone, Debug)]
struct Transaction {
    at: u64,
    client: u64,
    service: u64,
    /// Its client goes when it has waited so long.
    patience: Option<u64>,
    ends: Ends,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    /// The database is silent until the end.
    Quietly,
    /// The database answers all the time.
    Talking,
    /// Client or server connection dies.
    CutOff,
    /// It works so long, and is idle in transaction from then on.
    Idle { works: u64 },
}

fn transaction(at: f64, client: u64, service: f64, ends: Ends) -> Transaction {
    let microseconds = |seconds: f64| (seconds * 1e6) as u64;
    Transaction { at: microseconds(at), client, service: microseconds(service).max(1), patience: None, ends }
}

#[derive(Clone, Debug)]
struct Running {
    transaction: Transaction,
    from: u64,
}

impl Running {
    fn ends(&self) -> u64 {
        self.from + self.transaction.service
    }

    /// Idle until then.
    fn idle(&self, now: u64) -> u64 {
        match self.transaction.ends {
            Ends::Idle { works } => (now - self.from).saturating_sub(works),
            _ => 0,
        }
    }
}

#[derive(Clone, Debug)]
struct ServerConnection {
    id: u64,
    running: Option<Running>,
    heard: u64,
}

/// One process of PgBouncer: a pool with a limit, its queue, and what its console shows.
struct Pooler {
    now: u64,
    limit: usize,
    servers: Vec<ServerConnection>,
    /// Used last comes first.
    idle: Vec<u64>,
    queue: VecDeque<Transaction>,
    to_come: VecDeque<Transaction>,
    stats: Stats,
    /// What transactions that are over have worked.
    worked: u64,
    numbers: u64,
}

impl Pooler {
    fn new(limit: usize, mut load: Vec<Transaction>) -> Self {
        load.sort_by_key(|transaction| transaction.at);
        Self {
            now: 0,
            limit,
            servers: Vec::new(),
            idle: Vec::new(),
            queue: VecDeque::new(),
            to_come: load.into(),
            stats: Stats::default(),
            worked: 0,
            numbers: 0,
        }
    }

    /// What server connections have worked until now.
    fn truth(&self) -> u64 {
        let runs = self.servers.iter().filter_map(|server| server.running.as_ref());
        self.worked + runs.map(|running| self.now - running.from - running.idle(self.now)).sum::<u64>()
    }

    fn linked(&self) -> usize {
        self.servers.iter().filter(|server| server.running.is_some()).count()
    }

    fn open(&mut self) -> u64 {
        self.numbers += 1;
        self.servers.push(ServerConnection { id: self.numbers, running: None, heard: self.now });
        self.numbers
    }

    fn link(&mut self, id: u64, transaction: Transaction) {
        self.stats.assignments += 1;
        let server = self.servers.iter_mut().find(|server| server.id == id).unwrap();
        server.running = Some(Running { transaction, from: self.now });
    }

    fn arrives(&mut self, transaction: Transaction) {
        self.stats.transactions += 1;
        let idle = self.idle.pop();
        match idle.or_else(|| (self.servers.len() < self.limit).then(|| self.open())) {
            Some(id) => self.link(id, transaction),
            None => self.queue.push_back(transaction),
        }
    }

    fn ends(&mut self, id: u64) {
        let server = self.servers.iter_mut().find(|server| server.id == id).unwrap();
        let running = server.running.take().unwrap();
        server.heard = self.now;
        self.worked += running.transaction.service - running.idle(self.now);
        let mut free = Some(id);
        if running.transaction.ends == Ends::CutOff {
            self.servers.retain(|server| server.id != id);
            free = (self.servers.len() < self.limit && !self.queue.is_empty()).then(|| self.open());
        } else {
            self.stats.transaction_microseconds += self.now - running.transaction.at;
        }
        let Some(free) = free else { return };
        match self.queue.pop_front() {
            Some(next) => {
                self.stats.wait_microseconds += self.now - next.at;
                self.link(free, next);
            }
            None => self.idle.push(free),
        }
    }

    fn advance(&mut self, to: u64) {
        loop {
            let ends =
                self.servers.iter().filter_map(|server| Some((server.running.as_ref()?.ends(), server.id))).min();
            let goes =
                self.queue.iter().enumerate().filter_map(|(i, waits)| Some((waits.at + waits.patience?, i))).min();
            let arrives = self.to_come.front().map(|transaction| transaction.at);
            let next = [ends.map(|(at, _)| at), goes.map(|(at, _)| at), arrives]
                .into_iter()
                .flatten()
                .min()
                .filter(|at| *at <= to);
            let Some(at) = next else { break };
            self.now = at;
            if let Some((_, id)) = ends.filter(|(end, _)| *end == at) {
                self.ends(id);
            } else if let Some((_, waits)) = goes.filter(|(goes, _)| *goes == at) {
                self.queue.remove(waits);
            } else if let Some(transaction) = self.to_come.pop_front() {
                self.arrives(transaction);
            }
        }
        self.now = to;
    }

    fn leaked(&self) -> BTreeSet<u64> {
        let leaks = |server: &&ServerConnection| {
            server.running.as_ref().is_some_and(|running| running.idle(self.now) > THRESHOLD)
        };
        self.servers.iter().filter(leaks).map(|server| server.id).collect()
    }

    fn snapshot(&self) -> Snapshot {
        let servers = self.servers.iter().map(|server| {
            let heard = match server.running.as_ref().map(|running| (running, running.transaction.ends)) {
                Some((_, Ends::Talking)) => self.now,
                Some((running, Ends::Idle { works })) => (running.from + works).min(self.now),
                _ => server.heard,
            };
            Server {
                id: server.id,
                logged_in: true,
                closing: false,
                client: server.running.as_ref().map(|running| running.transaction.client.to_string()),
                heard: (heard / SECOND).to_string(),
                process: 0,
                local_address: String::new(),
                local_port: 0,
            }
        });
        let linked = u32::try_from(self.linked()).unwrap();
        Snapshot {
            pools: Pools {
                active: linked,
                idle: u32::try_from(self.idle.len()).unwrap(),
                clients_waiting: u32::try_from(self.queue.len()).unwrap(),
                longest_wait_microseconds: self.queue.front().map_or(0, |waits| self.now - waits.at),
                ..Pools::default()
            },
            stats: self.stats,
            servers: servers.collect(),
            ..Snapshot::default()
        }
    }
}

/// What was counted and what was worked, in seconds, at each reading.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: f64,
    counted: f64,
    worked: f64,
    linked: usize,
}

/// Readings once a second, a little late now and then, until `end`.
fn observe(pooler: &mut Pooler, busy: &mut Busy, end: u64) -> Vec<Mark> {
    let mut marks: Vec<Mark> = Vec::new();
    let (mut counted, mut open) = (0, pooler.servers.len());
    while pooler.now < end {
        let before = pooler.now;
        pooler.advance(before + SECOND + (before / 7) % 20_000);
        let seen = pooler.snapshot();
        let added = busy.feed(pooler.now, &seen, &pooler.leaked());
        let most = open.max(seen.servers.len()) as u64 * (pooler.now - before);
        assert!(added <= most, "{added} of {most} at {}", pooler.now);
        open = seen.servers.len();
        counted += added;
        let seconds = |microseconds: u64| microseconds as f64 / 1e6;
        marks.push(Mark {
            at: seconds(pooler.now),
            counted: seconds(counted),
            worked: seconds(pooler.truth()),
            linked: pooler.linked(),
        });
    }
    marks
}

fn run(limit: usize, load: Vec<Transaction>, seconds: u64) -> Vec<Mark> {
    let mut busy = Busy::default();
    busy.restarted(0);
    observe(&mut Pooler::new(limit, load), &mut busy, seconds * SECOND)
}

/// Arrivals that are as uneven as those of many clients, always the same ones.
fn arrivals(from: f64, to: f64, rate: f64, service: impl Fn(f64) -> f64) -> Vec<Transaction> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut chance = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let (mut at, mut load) = (from, Vec::new());
    loop {
        at -= (1.0 - chance()).ln() / rate;
        if at > to {
            return load;
        }
        let client = (at * 1e6) as u64;
        load.push(transaction(at, client, service(-(1.0 - chance()).ln()), Ends::Quietly));
    }
}

/// Clients that come again at once: a queue of `waiting` times the pool, for a minute.
fn queue(pool: u32, waiting: f64, service: f64) -> Vec<Transaction> {
    let clients = (f64::from(pool) * (1.0 + waiting)) as u32;
    let round = service * f64::from(clients) / f64::from(pool);
    let rounds = (60.0 / round) as u32;
    let of = |client: u32| {
        let at = move |round_number: u32| f64::from(round_number) * round + f64::from(client) * 0.0001;
        (0..rounds).map(move |number| transaction(at(number), client.into(), service, Ends::Quietly))
    };
    (0..clients).flat_map(of).collect()
}

fn counted_and_worked(marks: &[Mark], from: f64, to: f64) -> (f64, f64) {
    let at = |seconds: f64| marks.iter().find(|mark| mark.at >= seconds).unwrap();
    (at(to).counted - at(from).counted, at(to).worked - at(from).worked)
}

fn all(marks: &[Mark]) -> (f64, f64) {
    let last = marks.last().unwrap();
    (last.counted, last.worked)
}

fn about((counted, worked): (f64, f64), share: f64) {
    assert!((counted - worked).abs() <= share * worked, "{counted} counted, {worked} worked");
}

#[test]
fn in_a_queue_of_any_length_what_counts_is_what_was_worked() {
    for (waiting, service) in [0.5, 1.0, 2.0, 5.0].into_iter().flat_map(|waiting| [(waiting, 0.2), (waiting, 0.013)]) {
        let marks = run(4, queue(4, waiting, service), 90);
        about(all(&marks), 1e-6);
        for from in [5.0, 20.0, 40.0] {
            about(counted_and_worked(&marks, from, from + 12.0), 0.05);
        }
    }
}

#[test]
fn a_burst_counts_while_it_is_worked_off_and_not_after() {
    let mut load = arrivals(0.0, 200.0, 5.0, |chance| 0.05 * chance);
    load.extend(arrivals(60.0, 70.0, 100.0, |chance| 0.2 * chance));
    let marks = run(3, load, 220);
    about(all(&marks), 1e-6);
    let busy: Vec<&Mark> = marks.iter().filter(|mark| mark.linked == 3).collect();
    let (begin, end) = (busy.first().unwrap().at, busy.last().unwrap().at);
    assert!((100.0..150.0).contains(&end), "{end}");
    about(counted_and_worked(&marks, begin, begin + 15.0), 0.05);
    about(counted_and_worked(&marks, end - 15.0, end), 0.05);
    about(counted_and_worked(&marks, end + 5.0, end + 35.0), 0.05);
}

#[test]
fn transactions_of_minutes_count_as_they_pass_beside_short_ones_and_in_a_queue() {
    for limit in [20, 4] {
        let mut load = arrivals(0.0, 300.0, 100.0, |chance| 0.01 * chance);
        load.extend((0..8_u32).map(|i| transaction(30.0 * f64::from(i) + 3.3, i.into(), 100.0, Ends::Quietly)));
        let marks = run(limit, load, 700);
        about(all(&marks), 1e-6);
        for mark in &marks {
            // three readings of each that runs
            assert!((mark.counted - mark.worked).abs() <= 3.1 * (mark.linked as f64).max(1.0), "{limit}: {mark:?}");
        }
    }
}

#[test]
fn transactions_that_never_fall_silent_count_as_they_pass_where_nothing_else_begins() {
    let load = (0..6_u32).map(|i| transaction(20.0 * f64::from(i) + 3.3, i.into(), 60.0, Ends::Talking)).collect();
    let marks = run(20, load, 200);
    about(all(&marks), 1e-6);
    assert!(marks.iter().all(|mark| mark.worked - mark.counted <= 3.1 * (mark.linked as f64).max(1.0)));
}

#[test]
fn beside_others_such_a_transaction_counts_after_its_end_at_its_own_pace() {
    let mut load = arrivals(0.0, 300.0, 100.0, |chance| 0.01 * chance);
    load.push(transaction(20.3, 7, 60.0, Ends::Talking));
    let marks = run(20, load, 320);
    about(all(&marks), 1e-6);
    let (counted, worked) = counted_and_worked(&marks, 85.0, 140.0);
    assert!((counted / worked - 2.0).abs() < 0.2, "one more connection than the others need: {counted} {worked}");
}

#[test]
fn a_client_with_many_transactions_is_not_taken_for_one_that_runs_long() {
    // in step with the readings: it is linked whenever we look
    let load = (0..300_u32).map(|i| transaction(f64::from(i) * 1.01 + 0.6, 1, 0.5, Ends::Quietly)).collect();
    about(all(&run(20, load, 310)), 1e-6);
    let loops = |client: u32| {
        (0..15_000_u32).map(move |i| transaction(0.1 + f64::from(i) * 0.02, client.into(), 0.019, Ends::Quietly))
    };
    about(all(&run(20, (0..3).flat_map(loops).collect(), 310)), 1e-6);
}

#[test]
fn a_leak_counts_until_it_is_known_and_its_end_brings_nothing() {
    let others = || arrivals(0.0, 400.0, 20.0, |chance| 0.02 * chance);
    for ends in [true, false] {
        let leak = |i: u32| {
            let mut leak = transaction(20.0 * f64::from(i) + 3.3, i.into(), 150.0, Ends::Idle { works: SECOND / 2 });
            if !ends {
                leak.ends = Ends::CutOff;
                leak.service = SECOND / 2;
            }
            leak
        };
        let marks = run(20, others().into_iter().chain((0..6).map(leak)).collect(), 410);
        let (counted, worked) = all(&marks);
        let until_known = if ends { 6.0 * 21.5 } else { 0.0 };
        assert!(counted - worked <= until_known && worked - counted <= 6.0, "{counted} {worked}");
        about(counted_and_worked(&marks, 290.0, 400.0), 0.01);
    }
}

#[test]
fn clients_that_do_not_wait_any_longer_change_nothing() {
    let mut load = arrivals(0.0, 300.0, 30.0, |chance| 0.2 * chance);
    for transaction in &mut load {
        transaction.patience = Some(SECOND);
    }
    let marks = run(3, load, 310);
    about(all(&marks), 1e-6);
    about(counted_and_worked(&marks, 20.0, 50.0), 0.05);
}

#[test]
fn what_is_cut_off_loses_no_more_than_its_last_reading() {
    let mut load = arrivals(0.0, 300.0, 20.0, |chance| 0.02 * chance);
    load.extend((0..6_u32).map(|i| transaction(20.0 * f64::from(i) + 3.3, i.into(), 60.0, Ends::CutOff)));
    let (counted, worked) = all(&run(20, load, 310));
    assert!((0.0..6.0 * 3.1).contains(&(worked - counted)), "{counted} {worked}");
    let mut load = arrivals(0.0, 300.0, 30.0, |chance| 0.2 * chance);
    for (i, transaction) in load.iter_mut().enumerate() {
        transaction.patience = Some(3 * SECOND);
        transaction.ends = if i % 5 == 0 { Ends::CutOff } else { Ends::Quietly };
    }
    about(all(&run(3, load, 310)), 0.02);
}

/// One connection of a pool in session mode: what it shows, second by second.
fn session(second: u64, client: &str, transactions: u64, transaction_seconds: f64, wait_seconds: f64) -> Snapshot {
    let microseconds = |seconds: f64| (seconds * 1e6) as u64;
    let server = Server {
        id: 1,
        logged_in: true,
        closing: false,
        client: Some(client.to_owned()),
        heard: second.to_string(),
        process: 0,
        local_address: String::new(),
        local_port: 0,
    };
    let stats = Stats {
        transactions,
        transaction_microseconds: microseconds(transaction_seconds),
        wait_microseconds: microseconds(wait_seconds),
        assignments: if wait_seconds > 0.0 { 2 } else { 1 },
    };
    let pools = Pools { active: 1, ..Pools::default() };
    Snapshot { pools, holds_sessions: true, stats, servers: vec![server], ..Snapshot::default() }
}

#[test]
fn in_session_mode_a_client_that_waited_long_counts_what_it_works_however_long_it_stays() {
    // of the first transaction after the wait, the reading finds the end, or finds it at work
    for works in [0.01, 2.5] {
        let mut busy = Busy::default();
        busy.restarted(0);
        let mut counted = 0;
        let mut until = |second: u64, seen: &Snapshot| {
            counted += busy.feed(second * SECOND, seen, &BTreeSet::new());
            counted as f64 / 1e6
        };
        for second in 1..=60 {
            about((until(second, &session(second, "first", 2, 0.01, 0.0)), 0.01), 1e-3);
        }
        for second in 61..=180 {
            let is_over = 60.0 + works <= second as f64;
            let transactions = 0.01 + if is_over { 60.0 + works } else { 0.0 };
            let all = until(second, &session(second, "second", 2, transactions, 60.0));
            about((all, if is_over { 0.01 + works } else { 0.01 }), 1e-3);
        }
        // it begins another one after it was idle, and works for all of that time
        for second in 181..=200 {
            until(second, &session(second, "second", 3, 0.01 + 60.0 + works + 5.0, 60.0));
        }
        about((until(201, &session(201, "third", 4, 0.01 + 60.0 + works + 5.0, 60.0)), 5.01 + works), 1e-3);
    }
}

#[test]
fn the_next_process_begins_anew_and_nothing_is_counted_twice() {
    let mut busy = Busy::default();
    busy.restarted(0);
    let mut total = (0.0, 0.0);
    for process in 0..5 {
        let mut pooler = Pooler::new(3, queue(3, 2.0, 0.2));
        pooler.now = 0;
        let marks = observe(&mut pooler, &mut busy, (10 + process) * SECOND);
        let (counted, worked) = all(&marks);
        total = (total.0 + counted, total.1 + worked);
        busy.restarted(0);
    }
    about(total, 0.05);
}

#[test]
fn a_process_that_ran_before_us_counts_from_then_on() {
    let load: Vec<Transaction> = (0..4).map(|i| transaction(1.0, i, 100.0, Ends::Talking)).collect();
    let mut pooler = Pooler::new(4, load.into_iter().chain(arrivals(0.0, 150.0, 5.0, |chance| 0.1 * chance)).collect());
    pooler.advance(60 * SECOND);
    let before = pooler.truth() as f64 / 1e6;
    let marks = observe(&mut pooler, &mut Busy::default(), 200 * SECOND);
    let (counted, worked) = all(&marks);
    assert!(counted <= 1.05 * (worked - before), "{counted} {worked} {before}");
}

fn any_load(cut_off: u32) -> impl Strategy<Value = Vec<Transaction>> {
    let ends = prop_oneof![
        8 => Just(Ends::Quietly),
        1 => Just(Ends::Talking),
        cut_off => Just(Ends::CutOff),
    ];
    let service = prop_oneof![6 => 0.001..0.3_f64, 2 => 0.3..3.0_f64, 1 => 3.0..60.0_f64];
    let one = (0.0..60.0_f64, 0..40_u64, service, ends, prop::option::weighted(0.2, 100_000..5_000_000_u64));
    prop::collection::vec(one, 0..300).prop_map(|ones| {
        // a client has one transaction at a time: those that overlap come of others
        let of = |(i, (at, client, service, ends, patience)): (usize, (f64, u64, f64, Ends, Option<u64>))| {
            Transaction { patience, ..transaction(at, client * 1000 + i as u64, service, ends) }
        };
        ones.into_iter().enumerate().map(of).collect()
    })
}

/// Seconds counted and worked in all.
fn until_nothing_runs(limit: usize, load: Vec<Transaction>) -> (f64, f64) {
    let mut pooler = Pooler::new(limit, load);
    let mut busy = Busy::default();
    busy.restarted(0);
    let mut counted = 0.0;
    // and as long again for what came late
    let mut settled = 0;
    while settled < 600 {
        let end = pooler.now + 60 * SECOND;
        counted += observe(&mut pooler, &mut busy, end).last().unwrap().counted;
        settled = if pooler.linked() > 0 || !pooler.to_come.is_empty() { 0 } else { settled + 60 };
    }
    (counted, pooler.truth() as f64 / 1e6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn once_nothing_runs_all_that_was_worked_has_counted(load in any_load(0), limit in 1..12_usize) {
        let (counted, worked) = until_nothing_runs(limit, load);
        prop_assert!((counted - worked).abs() <= 0.05 * worked + 2.0, "{} {}", counted, worked);
    }

    #[test]
    fn what_is_cut_off_loses_its_last_readings_and_in_a_queue_two_seconds_of_each_connection(
        load in any_load(1),
        limit in 1..12_usize,
    ) {
        let cut_off = load.iter().filter(|transaction| transaction.ends == Ends::CutOff).count() as f64;
        let (counted, worked) = until_nothing_runs(limit, load);
        let lost = cut_off * (3.1 + 2.0 * limit as f64) + 0.05 * worked + 2.0;
        prop_assert!((counted - worked).abs() <= lost, "{} {} {}", counted, worked, cut_off);
    }
}
