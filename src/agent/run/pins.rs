//! Server connections that clients hold while nothing is said: the shell around [`crate::agent::pins`].

use std::time::Duration;

use tokio::task::JoinHandle;

use super::{Agent, LEAKS_LOOK, READING};
use crate::{
    agent::{
        machine::Millis,
        pins::{Action, Leaks, Look, Need, Pins, Session, SessionState, is_full},
        slot::Slot,
        sockets::{self, Local},
    },
    contract::{LeakKinds, PoolMode, ProofMode},
    pooler::pgbouncer::{
        console::{ConsoleError, ask},
        tables::{Client, Server, Table},
    },
};

/// How long the database may take to tell of its sessions.
const QUESTION_DEADLINE: Duration = Duration::from_secs(3);
/// How long PgBouncer is to close what is outside of a transaction: its maintenance comes three times a second.
const CLOSING: Millis = 1500;
/// Of the time that a client may wait, what a pinned connection may be silent before it is freed for one.
const PATIENCE_OF_WAIT: u32 = 3;

/// What the loop keeps in mind of it.
#[derive(Default)]
pub(super) struct Pinning {
    pins: Pins,
    question: Option<JoinHandle<Result<Table, ConsoleError>>>,
    closing: Closing,
    /// Pinned connections that were freed since we began.
    freed: u64,
    /// What is held for longer than the threshold; None where that cannot be seen.
    kinds: Option<Leaks>,
    /// The client that holds the longest pinned one, and which that is.
    longest: Option<(String, Local)>,
}

/// Whether PgBouncer is told to close what is outside of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Closing {
    #[default]
    No,
    /// As soon as no server connection logs in.
    Wanted,
    /// Until then, this process; these clients held server connections before.
    Until { then: Millis, process: i32, holders: Vec<u64> },
}

impl Agent {
    fn leak_threshold(&self) -> Option<u32> {
        let settings = &self.wish.revision.as_ref()?.settings;
        Some(settings.health.leak_threshold_seconds.saturating_mul(1000))
    }

    /// Looks for server connections that are held while nothing is said.
    pub(super) fn look_for_leaks(&mut self, now: Millis, servers: &[Server]) {
        let Some(threshold) = self.leak_threshold() else { return };
        if now < self.next.leaks {
            return;
        }
        self.next.leaks = now + Millis::from(threshold / 4).clamp(READING, LEAKS_LOOK);
        let linked: Vec<&Server> = servers.iter().filter(|server| server.client.is_some()).collect();
        let kinds = if let Some(looks) = self.looks(&linked) {
            let runs = self.slot.runs.as_ref().or(self.wish.revision.as_ref());
            let sessions = runs.is_some_and(|revision| revision.settings.pool_mode == PoolMode::Session);
            self.pinning.pins.look(looks, sessions);
            self.pinning.pins.leaks(threshold)
        } else {
            self.pinning.pins.cannot_look();
            None
        };
        self.pinning.kinds = kinds;
        self.leaked = kinds.map(Leaks::count);
        self.leaked_connections = self.leaked.map(|_| self.pinning.pins.leaking(threshold)).unwrap_or_default();
        self.published.metrics.set_pinned(kinds.map(|kinds| kinds.pinned));
    }

    /// What the kernel says of these; None where it does not say it of all.
    fn looks(&mut self, linked: &[&Server]) -> Option<Vec<Look>> {
        if linked.is_empty() {
            return self.leaks_visible.then(Vec::new);
        }
        // a server over a Unix socket has no address: whether it leaks cannot be told
        let locals: Vec<Local> = linked.iter().map(|server| sockets::local(server)).collect::<Option<_>>()?;
        match sockets::traffic_to_port(self.injection.upstream.port) {
            Ok(traffic) => {
                let judged = self.leaks.judge(&locals, &traffic)?;
                let looks = linked.iter().zip(locals).zip(judged).map(|((server, local), judged)| Look {
                    local,
                    process: server.process,
                    silent: judged.silent,
                    last: judged.last,
                    bytes: judged.bytes,
                });
                Some(looks.collect())
            }
            Err(error) => {
                if self.leaks_visible {
                    tracing::warn!("leaks cannot be seen here: {error}");
                }
                self.leaks_visible = false;
                None
            }
        }
    }

    /// Asks the database what silent sessions do, and frees those that are pinned while others wait.
    pub(super) async fn watch_pins(&mut self, now: Millis) {
        self.take_sessions().await;
        self.ask_about_sessions(now);
        let Some(need) = self.need() else { return };
        match self.pinning.pins.step(now, need) {
            Some(Action::Free(pinned)) => self.free(&pinned).await,
            Some(Action::CloseIdle) => self.pinning.closing = Closing::Wanted,
            None => {}
        }
    }

    async fn take_sessions(&mut self) {
        let Some(question) = self.pinning.question.take_if(|question| question.is_finished()) else { return };
        match question.await {
            Ok(Ok(table)) => self.pinning.pins.answered(&sessions(&table)),
            Ok(Err(error)) => tracing::debug!("asking what silent sessions do: {error}"),
            Err(error) => tracing::debug!("asking what silent sessions do: {error}"),
        }
    }

    /// Over a server connection that is free: no client waits longer for it.
    fn ask_about_sessions(&mut self, now: Millis) {
        let Some(threshold) = self.leak_threshold() else { return };
        let may = self.wish.revision.as_ref().is_some_and(|it| it.settings.health.proof() == ProofMode::Query);
        let is_free = self.slot.pools.is_some_and(|(_, pools)| pools.idle > 0 && pools.clients_waiting == 0);
        if !may || !is_free || self.pinning.question.is_some() || self.failover.is_asking() {
            return;
        }
        let Some(credentials) = self.slot.credentials().cloned() else { return };
        let processes = self.pinning.pins.to_ask(now, threshold);
        if processes.is_empty() {
            return;
        }
        self.failover.asks_too();
        let (socket, database) = (self.slot.console.socket().to_owned(), self.injection.upstream.database.clone());
        self.pinning.question =
            Some(tokio::spawn(ask(socket, database, credentials, question(&processes), QUESTION_DEADLINE)));
    }

    /// What clients need; None where nothing may be freed for them.
    fn need(&self) -> Option<Need> {
        if self.is_refused() {
            // nobody would gain: what is closed could not be opened again
            return None;
        }
        let settings = &self.wish.revision.as_ref()?.settings;
        // while it is held back for a moment it is not full
        let (limits, (_, pools)) = (self.slot.limits_to_keep()?, self.slot.pools?);
        // in session mode a client has its server connection by right
        let is_open = settings.pool_mode == PoolMode::Transaction && !limits.paused;
        let patience = settings.health.query_wait_timeout_seconds.saturating_mul(1000) / PATIENCE_OF_WAIT;
        let waiting = self.failover.leave_out_waiting(pools).clients_waiting;
        is_open.then_some(Need {
            waiting,
            is_full: is_full(&pools, &limits),
            patience: patience.min(self.leak_threshold()?),
            may_close: self.slot.alias_pools.active == 0,
        })
    }

    /// Cuts the clients of pinned connections, if these are what they were.
    async fn free(&mut self, pinned: &[Look]) {
        let other = self.other_counts() && !self.other.is_mute();
        let upstream = &self.injection.upstream;
        let mut freed = 0;
        let slots = [Some(&mut self.slot), other.then_some(&mut self.other)].into_iter().flatten();
        for slot in slots.filter(|slot| !slot.is_refused()) {
            freed += free(slot, &upstream.database, upstream.port, pinned).await;
        }
        self.count_freed(freed);
    }

    /// Has PgBouncer close what clients hold outside of a transaction, while nothing else moves.
    pub(super) async fn close_pinned(&mut self, now: Millis) {
        let closing = std::mem::take(&mut self.pinning.closing);
        self.pinning.closing = match closing {
            Closing::No => Closing::No,
            // nobody waits any more, or nobody would gain
            Closing::Wanted if !self.may_close() => {
                self.to_be_applied = true;
                Closing::No
            }
            Closing::Wanted if !self.slot.is_quiet(now).await.unwrap_or(false) => Closing::Wanted,
            Closing::Wanted => self.begin_closing(now).await,
            Closing::Until { then, process, holders } if now < then => Closing::Until { then, process, holders },
            Closing::Until { then, process, holders } => match self.stop_closing(process, &holders).await {
                Ok(freed) => {
                    self.count_freed(freed);
                    Closing::No
                }
                Err(_) => Closing::Until { then, process, holders },
            },
        };
    }

    fn may_close(&self) -> bool {
        self.need().is_some_and(|need| need.waiting > 0 && need.may_close)
    }

    async fn begin_closing(&mut self, now: Millis) -> Closing {
        // what was held back for it comes back
        self.to_be_applied = true;
        // a session of the alias may have begun since the last reading
        let seen = self.slot.read_pools(now).await.is_ok();
        let Some(process) = self.slot.pid().filter(|_| seen && self.may_close()) else { return Closing::No };
        tracing::warn!(
            "every server connection is held by a client that is silent, and others wait: PgBouncer closes those that are \
             outside of a transaction, with their clients"
        );
        let held = holders(&mut self.slot, &self.injection.upstream.database, |_| Some(())).await.unwrap_or_default();
        if let Err(error) = self.slot.close_idle().await {
            tracing::warn!("closing server connections that are pinned: {error}");
        }
        // even after an error: it may have been told
        Closing::Until {
            then: now + CLOSING,
            process,
            holders: held.into_iter().map(|(client, ())| client.id).collect(),
        }
    }

    /// How many of these clients are gone. Clients may have been led to another process meanwhile.
    async fn stop_closing(&mut self, process: i32, holders: &[u64]) -> Result<u64, ConsoleError> {
        let slots = [&mut self.slot, &mut self.other];
        // one that has ended, or cannot be told any more, closes nothing that is asked for later
        let told = slots.into_iter().find(|slot| slot.pid() == Some(process) && !slot.is_mute());
        let Some(slot) = told else { return Ok(0) };
        slot.stop_closing_idle().await?;
        let clients = slot.console.clients().await?;
        let gone = holders.iter().filter(|holder| clients.iter().all(|client| client.id != **holder)).count();
        Ok(u64::try_from(gone).unwrap_or_default())
    }

    fn count_freed(&mut self, freed: u64) {
        self.pinning.freed += freed;
        self.published.metrics.count_freed(freed);
    }

    /// What is told of it; None where nothing is held.
    pub(super) fn leak_kinds(&self) -> Option<LeakKinds> {
        let Leaks { in_transaction, pinned, unclear } = self.pinning.kinds?;
        let threshold = self.leak_threshold()?;
        let longest = self.pinning.pins.longest_pinned(threshold);
        let told = LeakKinds {
            in_transaction,
            pinned,
            unclear,
            longest_pinned_seconds: longest.map(|look| look.silent / 1000),
            client: self
                .pinning
                .longest
                .as_ref()
                .filter(|(_, local)| longest.is_some_and(|it| it.local == *local))
                .map(|(client, _)| client.clone()),
            freed: self.pinning.freed,
        };
        (told.freed > 0 || in_transaction + pinned + unclear > 0).then_some(told)
    }

    /// Finds out who holds the one that has been pinned for longest.
    pub(super) async fn name_pinned(&mut self) {
        let Some(threshold) = self.leak_threshold() else { return };
        let Some(look) = self.pinning.pins.longest_pinned(threshold) else {
            self.pinning.longest = None;
            return;
        };
        if self.pinning.longest.as_ref().is_some_and(|(_, local)| *local == look.local) {
            return;
        }
        let other = self.other_counts() && !self.other.is_mute();
        for slot in [Some(&mut self.slot), other.then_some(&mut self.other)].into_iter().flatten() {
            let database = &self.injection.upstream.database;
            let is_it = |server: &Server| sockets::local(server).filter(|local| *local == look.local);
            if let Ok(held) = holders(slot, database, is_it).await
                && let Some((client, local)) = held.into_iter().next()
            {
                self.pinning.longest = Some((client.address, local));
            }
        }
    }
}

/// The clients that hold server connections of a kind, each with what that is.
async fn holders<Kind>(
    slot: &mut Slot,
    database: &str,
    kind: impl Fn(&Server) -> Option<Kind>,
) -> Result<Vec<(Client, Kind)>, ConsoleError> {
    let servers = slot.console.servers(database).await?;
    let clients = slot.console.clients().await?;
    let holder =
        |server: &Server| clients.iter().find(|client| server.client.as_ref() == Some(&client.socket)).cloned();
    Ok(servers.iter().filter_map(|server| holder(server).zip(kind(server))).collect())
}

/// Cuts the clients of these pinned connections; how many.
async fn free(slot: &mut Slot, database: &str, port: u16, pinned: &[Look]) -> u64 {
    let kind = |server: &Server| {
        let local = sockets::local(server)?;
        pinned.iter().find(|look| look.local == local)
    };
    let held = match holders(slot, database, kind).await {
        Ok(held) => held,
        Err(error) => {
            tracing::warn!("freeing server connections that are pinned: {error}");
            return 0;
        }
    };
    let mut freed = 0;
    for (client, look) in held {
        // asked anew for each of them, right before: a transaction may begin at any moment
        let now = sockets::traffic_to_port(port).ok().and_then(|traffic| traffic.get(&look.local).copied());
        if !now.is_some_and(|now| look.stands(now)) {
            continue;
        }
        match slot.console.kill_client(client.id).await {
            Ok(()) => {
                freed += 1;
                tracing::warn!(
                    client = client.address,
                    "a client that kept a server connection outside of a transaction was cut, for others that wait"
                );
            }
            Err(error) if error.is_refusal() => tracing::debug!("it has gone by itself: {error}"),
            Err(error) => {
                tracing::warn!("freeing server connections that are pinned: {error}");
                break;
            }
        }
    }
    freed
}

/// What these sessions of the same role do, and for how long, by the database's own account.
fn question(processes: &[u32]) -> String {
    let processes = processes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!(
        "select pid, state, (extract(epoch from clock_timestamp() - state_change) * 1000)::bigint as since from pg_catalog.pg_stat_activity \
         where usename = current_user and pid in ({processes})"
    )
}

/// Reads the answer; what has another shape says nothing.
fn sessions(table: &Table) -> Vec<Session> {
    let session = |row: &Vec<Option<String>>| {
        let [process, state, since] = row.as_slice() else { return None };
        Some(Session {
            process: process.as_deref()?.parse().ok()?,
            state: SessionState::read(state.as_deref()?),
            since: since.as_deref()?.parse().ok()?,
        })
    };
    table.rows.iter().filter_map(session).collect()
}
