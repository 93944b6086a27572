//! A pooler and its database as a queueing model: what a size would have done to a load.
//!
//! Discrete events, exact in time. Each pod has a FIFO queue of clients, a limit, and server connections that are opened
//! one at a time, as `PgBouncer` does, when a client waits and all open ones are busy. A limit that falls closes idle
//! connections at once and busy ones when their transaction ends. Connections idle beyond the timeout are closed.
//! Beyond its knee the database shares its speed among the transactions, and loses some.
//!
//! What a policy is told of it are the counters that PgBouncer has, read once a second and turned into busy seconds by the agent's
//! own code ([`Counters::Pooler`]): a transaction counts with its first message, its wait when it gets a connection, its time with the
//! wait in it when it ends.
//!
//! Not modelled: CPU of the pooler, several users of one database, errors of the network, statements within a
//! transaction, prepared statements, clients that leave, sessions.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, BinaryHeap, VecDeque},
};

use super::{
    arrivals::{TraceArrivals, Transaction},
    scenario::{Scenario, ScenarioEventKind},
    trace::Trace,
};
use crate::{
    agent::decide::counters::{Added, Differences},
    domain::Sample,
    pooler::pgbouncer::tables::{Pools, Server, Snapshot, Stats},
};

/// Buckets of the wait histogram: 20 per decade from 10 microseconds.
const BUCKETS: usize = 160;

/// Whose counters a policy is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counters {
    /// Those of the pooler, through the agent.
    Pooler,
    /// What happened, exactly: transactions and their time from when they got a connection, when they end.
    Exact,
}

/// A transaction that runs: it ends when the database has done this much work.
#[derive(Clone, Copy, Debug)]
struct Running {
    ends_at_work: f64,
    started: f64,
    arrived: f64,
    pod: usize,
    /// The server connection, and when the database was heard on it before.
    server: (u64, f64),
}

impl PartialEq for Running {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Running {}
impl PartialOrd for Running {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Running {
    /// The heap gives its largest first: the earliest end is the largest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.ends_at_work.total_cmp(&self.ends_at_work)
    }
}

#[derive(Clone, Debug, Default)]
struct SimulatedPod {
    limit: usize,
    open: usize,
    busy: usize,
    /// When the connection being opened will be there.
    opens_at: Option<f64>,
    queue: VecDeque<Transaction>,
    /// Last use of each open connection; the busy ones come first.
    last_used: Vec<f64>,
    /// Server connections that are free, and when the database was heard on them: used last comes first.
    free: Vec<(u64, f64)>,
    servers: u64,
    counted: Counted,
    agent: Differences,
}

/// The counters of a pooler.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    begun: u64,
    assigned: u64,
    waited_seconds: f64,
    /// With the waits.
    transaction_seconds: f64,
}

impl SimulatedPod {
    /// A free server connection, or a new one.
    fn take_server(&mut self, t: f64) -> (u64, f64) {
        // those that were closed are the ones not used for longest
        let closed = self.free.len().saturating_sub(self.open.saturating_sub(self.busy));
        self.free.drain(..closed);
        self.free.pop().unwrap_or_else(|| {
            self.servers += 1;
            (self.servers, t)
        })
    }

    fn use_at(&mut self, place: usize, t: f64) {
        if self.last_used.len() <= place {
            self.last_used.resize(place + 1, t);
        }
        self.last_used[place] = t;
    }
}

/// What has been counted since the warm-up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// Seconds counted.
    pub seconds: f64,
    /// Integral of the ceiling held: the limit, or what is open where that is more.
    pub ceiling_seconds: f64,
    /// Integral of the connections open.
    pub open_seconds: f64,
    /// Integral of the busy connections.
    pub busy_seconds: f64,
    /// Transactions that arrived.
    pub arrived: u64,
    /// Of these: waited longer than the objective, gave up, or were refused.
    pub violated: u64,
    /// Connections opened.
    pub opened: u64,
    /// Changes of the limit.
    pub resizes: u64,
    /// Transactions by wait; the last bucket holds those refused and given up too.
    waits: Vec<u64>,
}

impl Score {
    /// Share of the transactions that waited too long.
    pub fn violation_share(&self) -> f64 {
        self.violated as f64 / self.arrived.max(1) as f64
    }

    /// A quantile of the wait in milliseconds, to 12 %; infinite when it falls among those who were refused or gave up.
    pub fn wait_quantile_ms(&self, quantile: f64) -> f64 {
        let total: u64 = self.waits.iter().sum();
        let mut seen = 0;
        for (i, count) in self.waits.iter().enumerate() {
            seen += count;
            if seen as f64 >= quantile * total as f64 {
                return match i {
                    0 => 0.0,
                    _ if i + 1 == BUCKETS => f64::INFINITY,
                    _ => 1000.0 * 10_f64.powf(i as f64 / 20.0 - 5.0),
                };
            }
        }
        0.0
    }

    /// Per hour.
    pub fn per_hour(&self, count: u64) -> f64 {
        count as f64 / (self.seconds / 3600.0)
    }
}

/// The model in the course of time.
pub struct Model {
    t: f64,
    /// Work that the database has done per running transaction, in unhurried seconds.
    work: f64,
    /// Speed of the database: 0 during an outage.
    speed: Vec<bool>,
    pods_by_second: Vec<usize>,
    pods: Vec<SimulatedPod>,
    alive: usize,
    running: BinaryHeap<Running>,
    arrivals: TraceArrivals,
    next: Option<Transaction>,
    next_second: f64,
    scenario: Scenario,
    warm: f64,
    idle_timeout: f64,
    /// Since the beginning; counters of the poolers.
    done: f64,
    done_seconds: f64,
    wait_seconds: f64,
    starts: f64,
    counters_from: Sample,
    /// What the agents have exported.
    exported: Added,
    score: Score,
}

impl Model {
    /// The model of a trace, with this limit per pod and this idle timeout in seconds.
    pub fn new(trace: &Trace, size: u32, idle_timeout: f64) -> Self {
        let scenario = trace.scenario.clone();
        let seconds = trace.by_second();
        let mut speed = vec![true; seconds.len()];
        let mut pods_by_second = vec![scenario.replicas as usize; seconds.len()];
        for event in &scenario.events {
            match event.kind {
                ScenarioEventKind::DbOutage => {
                    for (second, up) in speed.iter_mut().enumerate() {
                        *up &= !event.covers(second as f64);
                    }
                }
                ScenarioEventKind::Replicas => {
                    for (second, pods) in pods_by_second.iter_mut().enumerate() {
                        if second as f64 >= event.t.floor() {
                            *pods = event.n as usize;
                        }
                    }
                }
                ScenarioEventKind::MetricsGap | ScenarioEventKind::StaleMetrics | ScenarioEventKind::CounterReset => {}
            }
        }
        let most = pods_by_second.iter().copied().max().unwrap_or(1);
        let alive = pods_by_second.first().copied().unwrap_or(1);
        let mut arrivals = TraceArrivals::new(seconds, &scenario, most > 1);
        let next = arrivals.next();
        let limit = size as usize;
        let pods = (0..most)
            .map(|pod| SimulatedPod {
                agent: Differences::since_its_start(),
                limit,
                open: if pod < alive { limit } else { 0 },
                last_used: vec![0.0; limit],
                ..SimulatedPod::default()
            })
            .collect();
        Self {
            t: 0.0,
            work: 0.0,
            speed,
            pods_by_second,
            pods,
            alive,
            running: BinaryHeap::new(),
            arrivals,
            next,
            next_second: 0.0,
            warm: scenario.warmup_s,
            scenario,
            idle_timeout,
            done: 0.0,
            done_seconds: 0.0,
            wait_seconds: 0.0,
            starts: 0.0,
            counters_from: Sample::default(),
            exported: Added::default(),
            score: Score { waits: vec![0; BUCKETS], ..Score::default() },
        }
    }

    /// Seconds of the trace.
    pub fn seconds(&self) -> f64 {
        self.speed.len() as f64
    }

    /// Pods now.
    pub fn alive(&self) -> u32 {
        u32::try_from(self.alive).unwrap_or(u32::MAX)
    }

    /// Busy connections now, all pods together.
    pub fn busy(&self) -> usize {
        self.running.len()
    }

    /// Clients waiting now, all pods together.
    pub fn waiting(&self) -> usize {
        self.pods.iter().map(|pod| pod.queue.len()).sum()
    }

    /// What a scrape reads now; of [`Counters::Pooler`] the counters of the last [`read`](Self::read).
    pub fn sample(&self, counters: Counters) -> Sample {
        let (total, from) = (self.counted(counters), &self.counters_from);
        Sample {
            at_seconds: self.t,
            waiting: self.waiting() as f64,
            active: self.running.len() as f64,
            leaked: 0.0,
            transactions: total.transactions - from.transactions,
            abandoned: total.abandoned - from.abandoned,
            busy_seconds: total.busy_seconds - from.busy_seconds,
            wait_seconds: total.wait_seconds - from.wait_seconds,
            assignments: total.assignments - from.assignments,
        }
    }

    fn counted(&self, counters: Counters) -> Sample {
        match counters {
            Counters::Exact => Sample {
                transactions: self.done,
                busy_seconds: self.done_seconds,
                wait_seconds: self.wait_seconds,
                assignments: self.starts,
                ..Sample::default()
            },
            Counters::Pooler => Sample {
                transactions: self.exported.transactions as f64,
                abandoned: self.exported.abandoned as f64,
                busy_seconds: self.exported.busy_microseconds as f64 / 1e6,
                wait_seconds: self.exported.wait_microseconds as f64 / 1e6,
                assignments: self.exported.assignments as f64,
                ..Sample::default()
            },
        }
    }

    /// The counters begin again.
    pub fn reset_counters(&mut self, counters: Counters) {
        self.counters_from = self.counted(counters);
    }

    /// The agents read their poolers.
    pub fn read(&mut self) {
        for pod in 0..self.pods.len() {
            let seen = self.snapshot(pod);
            let added = self.pods[pod].agent.feed(microseconds(self.t), &seen, &BTreeSet::new());
            self.exported = self.exported + added;
        }
    }

    /// What the console of a pod shows.
    fn snapshot(&self, pod: usize) -> Snapshot {
        let state = &self.pods[pod];
        let server = |(id, heard): (u64, f64), client| Server {
            process: 0,
            id,
            logged_in: true,
            client,
            closing: false,
            heard: heard.floor().to_string(),
            local_address: String::new(),
            local_port: 0,
        };
        let linked = self.running.iter().filter(|running| running.pod == pod);
        let mut servers: Vec<Server> =
            linked.map(|running| server(running.server, Some(running.arrived.to_string()))).collect();
        let idle = state.open.saturating_sub(state.busy);
        servers.extend(state.free.iter().rev().take(idle).map(|free| server(*free, None)));
        // what was opened before anybody came has no number yet
        servers.extend((servers.len()..state.open).map(|place| server((u64::MAX - place as u64, 0.0), None)));
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let longest_wait = state.queue.front().map_or(0.0, |first| self.t - first.at);
        Snapshot {
            pools: Pools {
                active: number(state.busy),
                idle: number(idle),
                clients_waiting: number(state.queue.len()),
                longest_wait_microseconds: microseconds(longest_wait),
                ..Pools::default()
            },
            stats: Stats {
                transactions: state.counted.begun,
                transaction_microseconds: microseconds(state.counted.transaction_seconds),
                wait_microseconds: microseconds(state.counted.waited_seconds),
                assignments: state.counted.assigned,
            },
            servers,
            ..Snapshot::default()
        }
    }

    /// Sets the limit of every pod.
    pub fn resize(&mut self, size: u32) {
        for pod in 0..self.pods.len() {
            let state = &mut self.pods[pod];
            if state.limit != size as usize && self.t >= self.warm && pod == 0 {
                self.score.resizes += 1;
            }
            state.limit = size as usize;
            state.open = state.open.min(state.limit.max(state.busy));
            if pod < self.alive {
                self.dispatch(pod);
            }
        }
    }

    /// Ends the run: whoever still waits too long is counted.
    pub fn finish(mut self) -> Score {
        let (end, slo) = (self.seconds(), self.scenario.slo_wait_ms / 1000.0);
        for pod in &self.pods {
            for waiting in &pod.queue {
                if end - waiting.at > slo && waiting.at >= self.warm {
                    self.score.violated += 1;
                }
            }
        }
        self.score.seconds = end - self.warm;
        self.score
    }

    /// Speed per running transaction.
    fn rate(&self) -> f64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
        let up = self.speed.get((self.next_second as usize).saturating_sub(1)).copied().unwrap_or(true);
        let (busy, knee) = (self.running.len() as f64, self.scenario.db_limit);
        if !up {
            0.0
        } else if knee > 0.0 && busy > knee {
            (knee / busy) / (1.0 + self.scenario.db_kappa * (busy - knee) / knee)
        } else {
            1.0
        }
    }

    /// Lets time pass until `stop`.
    pub fn advance(&mut self, stop: f64) {
        loop {
            let rate = self.rate();
            let (mut at, mut event) = (stop, Next::Stop);
            let mut earlier = |time: f64, what: Next| {
                if time < at {
                    (at, event) = (time, what);
                }
            };
            earlier(self.next_second, Next::Second);
            if let Some(next) = &self.next {
                earlier(next.at, Next::Arrival);
            }
            for (pod, state) in self.pods.iter().enumerate() {
                if let Some(opens_at) = state.opens_at {
                    earlier(opens_at, Next::Opened(pod));
                }
            }
            if let Some(first) = self.running.peek()
                && rate > 0.0
            {
                let ends = (self.t + (first.ends_at_work - self.work) / rate).max(self.t);
                if ends <= at {
                    (at, event) = (ends, Next::Done);
                }
            }
            self.pass(at - self.t, rate);
            self.t = at;
            match event {
                Next::Stop => return,
                Next::Done => self.end_transaction(),
                Next::Opened(pod) => self.opened(pod),
                Next::Arrival => self.arrive(),
                Next::Second => self.second(),
            }
        }
    }

    fn pass(&mut self, dt: f64, rate: f64) {
        if dt <= 0.0 {
            return;
        }
        self.work += rate * dt;
        if self.t < self.warm {
            return;
        }
        for (pod, state) in self.pods.iter().enumerate() {
            let ceiling = if pod < self.alive { state.limit.max(state.open) } else { state.open };
            self.score.ceiling_seconds += ceiling as f64 * dt;
            self.score.open_seconds += state.open as f64 * dt;
        }
        self.score.busy_seconds += self.running.len() as f64 * dt;
    }

    fn end_transaction(&mut self) {
        let Some(Running { started, arrived, pod, server, .. }) = self.running.pop() else { return };
        self.done += 1.0;
        self.done_seconds += self.t - started;
        let (t, alive) = (self.t, pod < self.alive);
        let state = &mut self.pods[pod];
        state.busy -= 1;
        state.counted.transaction_seconds += t - arrived;
        state.free.push((server.0, t));
        state.use_at(state.busy, t);
        if state.open > state.limit || !alive {
            state.open -= 1;
        }
        self.dispatch(pod);
    }

    fn opened(&mut self, pod: usize) {
        if self.rate() <= 0.0 {
            self.pods[pod].opens_at = Some(self.t + 1.0); // the database is away: try again
            return;
        }
        let (t, alive) = (self.t, pod < self.alive);
        let state = &mut self.pods[pod];
        state.opens_at = None;
        if state.open < state.limit && alive {
            state.open += 1;
            state.use_at(state.open - 1, t);
            self.score.opened += 1;
            self.dispatch(pod);
        }
    }

    fn arrive(&mut self) {
        let Some(transaction) = self.next.take() else { return };
        self.next = self.arrivals.next();
        let counted = transaction.at >= self.warm;
        self.score.arrived += u64::from(counted);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // below the number of pods
        let pod = ((transaction.pod * self.alive as f64) as usize).min(self.alive - 1);
        let state = &mut self.pods[pod];
        if state.busy + state.queue.len() >= self.scenario.client_cap() {
            self.give_up(&transaction);
        } else {
            state.counted.begun += 1;
            state.queue.push_back(transaction);
            self.dispatch(pod);
        }
    }

    fn give_up(&mut self, transaction: &Transaction) {
        if transaction.at >= self.warm {
            self.score.violated += 1;
            self.score.waits[BUCKETS - 1] += 1;
        }
    }

    /// What happens once a second: outages, pods that come and go, clients that give up, idle connections.
    fn second(&mut self) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
        let second = (self.t + 1e-9) as usize;
        self.next_second = second as f64 + 1.0;
        if let Some(&pods) = self.pods_by_second.get(second)
            && pods != self.alive
        {
            self.rescale(pods);
        }
        for pod in 0..self.pods.len() {
            while let Some(first) = self.pods[pod].queue.front().copied()
                && self.t - first.at > self.scenario.query_wait_timeout_s
            {
                self.pods[pod].queue.pop_front();
                self.give_up(&first);
            }
            let (t, timeout) = (self.t, self.idle_timeout);
            let state = &mut self.pods[pod];
            while state.open > state.busy && t - state.last_used.get(state.open - 1).copied().unwrap_or(t) > timeout {
                state.open -= 1;
            }
        }
    }

    /// Pods come or go; the clients of those that go connect elsewhere.
    fn rescale(&mut self, pods: usize) {
        let before = std::mem::replace(&mut self.alive, pods);
        for pod in pods..before {
            let queue = std::mem::take(&mut self.pods[pod].queue);
            self.pods[pod].opens_at = None;
            self.pods[pod].open = self.pods[pod].busy;
            let mut left = queue.len();
            for transaction in queue {
                let to = &mut self.pods[left % pods];
                left -= 1;
                if to.busy + to.queue.len() < self.scenario.client_cap() {
                    to.counted.begun += 1;
                    to.queue.push_back(transaction);
                } else {
                    self.give_up(&transaction);
                }
            }
        }
        for pod in 0..self.alive {
            self.dispatch(pod);
        }
    }

    /// Gives free connections to waiting clients, and opens one more where none is left.
    fn dispatch(&mut self, pod: usize) {
        let t = self.t;
        let slo = self.scenario.slo_wait_ms / 1000.0;
        let state = &mut self.pods[pod];
        while state.busy < state.open {
            let Some(transaction) = state.queue.pop_front() else { return };
            let wait = (t - transaction.at).max(0.0);
            self.starts += 1.0;
            self.wait_seconds += wait;
            if transaction.at >= self.warm {
                self.score.violated += u64::from(wait > slo);
                self.score.waits[bucket(wait)] += 1;
            }
            let server = state.take_server(t);
            state.counted.assigned += 1;
            state.counted.waited_seconds += wait;
            state.busy += 1;
            state.use_at(state.busy - 1, t);
            let ends_at_work = self.work + transaction.service_seconds;
            self.running.push(Running { ends_at_work, started: t, arrived: transaction.at, pod, server });
        }
        if !state.queue.is_empty() && state.opens_at.is_none() && state.open < state.limit {
            state.opens_at = Some(t + self.scenario.connect_ms / 1000.0);
        }
    }
}

#[derive(Clone, Copy)]
enum Next {
    Stop,
    Second,
    Arrival,
    Opened(usize),
    Done,
}

fn microseconds(seconds: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative; saturates
    let microseconds = (seconds * 1e6) as u64;
    microseconds
}

fn bucket(wait_seconds: f64) -> usize {
    if wait_seconds < 1e-5 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
    let bucket = 1 + ((wait_seconds.log10() + 5.0) * 20.0).max(0.0) as usize;
    bucket.min(BUCKETS - 1)
}
