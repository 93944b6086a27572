//! Server connections that clients hold while nothing is said: the shell around [`crate::agent::decide::pins`].

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use tokio::task::JoinHandle;

use super::{READING, Reporting, access::Rotating, failover::Failover, sidecar::Given, slots::Slots};
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{
            machine::Millis,
            pins::{Leaks, LinkSeen, Need, PinAction, Pins, Session, SessionState, is_full},
            slot_name::SlotName,
            wish::Wish,
        },
        observe::sockets::{self, LeakWatch, Local},
    },
    contract::{LeakKinds, PodGrant, PoolMode, ProofMode, Settings},
    pooler::pgbouncer::{
        console::{ConsoleError, ask},
        render::Credentials,
        tables::{Client, Server, Table},
    },
};

/// How long the database may take to tell of its sessions.
const QUESTION_DEADLINE: Duration = Duration::from_secs(3);
/// How long PgBouncer is to close what is outside of a transaction: its maintenance comes three times a second.
const CLOSING: Millis = 1500;
/// Of the time that a client may wait, what a pinned connection may be silent before it is freed for one.
const PATIENCE_OF_WAIT: u32 = 3;

/// Between two looks for leaks: often enough to see each silence before keepalives disturb it.
const LEAKS_LOOK: Millis = 4000;

/// What the loop keeps in mind of it.
#[derive(Default)]
pub(super) struct Pinning {
    pins: Pins,
    /// What the database is asked about the sessions of a slot.
    question: Option<(SlotName, JoinHandle<Result<Table, ConsoleError>>)>,
    closing: Closing,
    /// Pinned connections that were freed since we began.
    freed: u64,
    /// What is held for longer than the threshold; None where that cannot be seen.
    kinds: Option<Leaks>,
    /// The client that holds the longest pinned one, and which that is.
    longest: Option<(String, Local)>,
    /// Server connections that count as leaked; None where that cannot be seen.
    leaked: Option<u32>,
    /// Which ones, where they can be seen.
    leaked_connections: BTreeSet<Local>,
    watch: LeakWatch,
    /// Whether the kernel has refused to tell.
    unseen: bool,
    next_look: Millis,
}

/// Whether a process is told to close what is outside of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Closing {
    #[default]
    No,
    /// That of this slot, as soon as none of its server connections logs in.
    Wanted(SlotName),
    /// Until then, this process; these clients held server connections before.
    Until { then: Millis, process: i32, holders: Vec<u64> },
}

impl Pinning {
    /// Server connections that count as leaked; None where that cannot be seen.
    pub(super) fn leaked(&self) -> Option<u32> {
        self.leaked
    }

    /// Which ones, where they can be seen.
    pub(super) fn leaked_connections(&self) -> &BTreeSet<Local> {
        &self.leaked_connections
    }

    /// Looks for server connections that are held while nothing is said.
    pub(super) fn look(
        &mut self,
        given: Given<'_>,
        slots: &Slots,
        report: &Reporting,
        now: Millis,
        servers: &[(SlotName, Vec<Server>)],
    ) {
        let Some(threshold) = leak_threshold(given.wish) else { return };
        if now < self.next_look {
            return;
        }
        self.next_look = now + Millis::from(threshold / 4).clamp(READING, LEAKS_LOOK);
        let all = servers.iter().flat_map(|(slot, servers)| servers.iter().map(|server| (*slot, server)));
        let linked: Vec<(SlotName, &Server)> = all.filter(|(_, server)| server.client.is_some()).collect();
        let kinds = if let Some(looks) = self.looks(given, slots, &linked) {
            self.pins.look(looks);
            self.pins.leaks(threshold)
        } else {
            self.pins.cannot_look();
            None
        };
        self.kinds = kinds;
        self.leaked = kinds.map(Leaks::count);
        self.leaked_connections = self.leaked.map(|_| self.pins.leaking(threshold)).unwrap_or_default();
        report.metrics().set_pinned(kinds.map(|kinds| kinds.pinned));
    }

    /// What the kernel says of these; None where it does not say it of all.
    fn looks(&mut self, given: Given<'_>, slots: &Slots, linked: &[(SlotName, &Server)]) -> Option<Vec<LinkSeen>> {
        if linked.is_empty() {
            return (!self.unseen).then(Vec::new);
        }
        // a server over a Unix socket has no address: whether it leaks cannot be told
        let locals: Vec<Local> = linked.iter().map(|(_, server)| sockets::local(server)).collect::<Option<_>>()?;
        let mut of_sessions = [false; 2];
        for slot in [&slots.active, &slots.other] {
            of_sessions[slot.name().index()] = gives_sessions(given.wish, slot);
        }
        match sockets::traffic_to_port(given.sidecar.injection.upstream.port) {
            Ok(traffic) => {
                let judged = self.watch.judge(&locals, &traffic)?;
                let looks = linked.iter().zip(locals).zip(judged).map(|(((slot, server), local), judged)| LinkSeen {
                    slot: *slot,
                    of_session: of_sessions[slot.index()],
                    local,
                    process: server.process,
                    silent: judged.silent,
                    last: judged.last,
                    bytes: judged.bytes,
                });
                Some(looks.collect())
            }
            Err(error) => {
                if !self.unseen {
                    tracing::warn!("leaks cannot be seen here: {error}");
                }
                self.unseen = true;
                None
            }
        }
    }

    /// Asks the database what silent sessions do, and frees those that are pinned while others wait.
    pub(super) async fn step(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        failover: &mut Failover,
        rotating: &Rotating,
        grant: PodGrant,
        report: &Reporting,
    ) {
        self.take_sessions().await;
        self.ask_about_sessions(given, slots, failover);
        let mut needs = needs(given, slots, failover, rotating, grant);
        if self.closing != Closing::No {
            // one after the other
            for need in &mut needs {
                need.may_close = [false; 2];
            }
        }
        match self.pins.step(given.now, &needs) {
            Some(PinAction::Free(pinned)) => self.free(given, slots, &pinned, report).await,
            Some(PinAction::CloseIdle(slot)) => self.closing = Closing::Wanted(slot),
            None => {}
        }
    }

    async fn take_sessions(&mut self) {
        let finished = self.question.take_if(|(_, question)| question.is_finished());
        let Some((slot, question)) = finished else { return };
        match question.await {
            Ok(Ok(table)) => self.pins.answered(slot, &sessions(&table)),
            Ok(Err(error)) => tracing::debug!(slot = slot.as_str(), "asking what silent sessions do: {error}"),
            Err(error) => tracing::debug!(slot = slot.as_str(), "asking what silent sessions do: {error}"),
        }
    }

    /// Over a server connection that is free: no client waits longer for it.
    fn ask_about_sessions(&mut self, given: Given<'_>, slots: &Slots, failover: &mut Failover) {
        let Some(threshold) = leak_threshold(given.wish) else { return };
        let may = given.wish.revision.as_ref().is_some_and(|it| it.settings.health.proof() == ProofMode::Query);
        if !may || self.question.is_some() || failover.is_asking() {
            return;
        }
        for slot in slots.to_ask().map(Slot::name) {
            let Some((door, socket, credentials)) = door_to_sessions_of(slots, slot) else { continue };
            let processes = self.pins.to_ask(given.now, threshold, slot);
            if processes.is_empty() {
                continue;
            }
            failover.asks_too(door == slots.active.name());
            let database = given.sidecar.injection.upstream.database.clone();
            let question = ask(socket, database, credentials, question(&processes), QUESTION_DEADLINE);
            self.question = Some((slot, tokio::spawn(question)));
            return;
        }
    }

    /// Cuts the clients of pinned connections, if these are what they were.
    async fn free(&mut self, given: Given<'_>, slots: &mut Slots, pinned: &[LinkSeen], report: &Reporting) {
        let upstream = &given.sidecar.injection.upstream;
        let mut freed = 0;
        for slot in slots.to_ask_mut() {
            let name = slot.name();
            let own: Vec<LinkSeen> = pinned.iter().filter(|look| look.slot == name).copied().collect();
            if !own.is_empty() && !slot.is_refused() {
                freed += free(slot, &upstream.database, upstream.port, &own).await;
            }
        }
        self.count_freed(freed, report);
    }

    /// Has a process close what clients hold outside of a transaction, while nothing else moves in it. True when what was held back
    /// for it is to come back.
    pub(super) async fn close(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        failover: &Failover,
        rotating: &Rotating,
        grant: PodGrant,
        report: &Reporting,
    ) -> bool {
        let now = given.now;
        let may_close = |slots: &Slots, slot: SlotName| {
            let needs = needs(given, slots, failover, rotating, grant);
            needs.iter().any(|need| need.waiting > 0 && need.may_close[slot.index()])
        };
        let mut comes_back = false;
        self.closing = match std::mem::take(&mut self.closing) {
            Closing::No => Closing::No,
            // nobody waits any more, or nobody would gain
            Closing::Wanted(slot) if !may_close(slots, slot) => {
                comes_back = true;
                Closing::No
            }
            Closing::Wanted(slot) if !slots.named_mut(slot).is_quiet(now).await.unwrap_or(false) => {
                Closing::Wanted(slot)
            }
            Closing::Wanted(slot) => {
                comes_back = true;
                begin_closing(given, slots, slot, may_close).await
            }
            Closing::Until { then, process, holders } if now < then => Closing::Until { then, process, holders },
            Closing::Until { then, process, holders } => match stop_closing(slots, process, &holders).await {
                Ok(freed) => {
                    self.count_freed(freed, report);
                    Closing::No
                }
                Err(_) => Closing::Until { then, process, holders },
            },
        };
        comes_back
    }

    fn count_freed(&mut self, freed: u64, report: &Reporting) {
        self.freed += freed;
        report.metrics().count_freed(freed);
    }

    /// What is told of it; None where nothing is held.
    pub(super) fn report(&self, wish: &Wish) -> Option<LeakKinds> {
        let Leaks { in_transaction, pinned, unclear } = self.kinds?;
        let threshold = leak_threshold(wish)?;
        let longest = self.pins.longest_pinned(threshold);
        let told = LeakKinds {
            in_transaction,
            pinned,
            unclear,
            longest_pinned_seconds: longest.map(|look| look.silent / 1000),
            client: self
                .longest
                .as_ref()
                .filter(|(_, local)| longest.is_some_and(|it| it.local == *local))
                .map(|(client, _)| client.clone()),
            freed: self.freed,
        };
        (told.freed > 0 || in_transaction + pinned + unclear > 0).then_some(told)
    }

    /// Finds out who holds the one that has been pinned for longest.
    pub(super) async fn name_longest(&mut self, given: Given<'_>, slots: &mut Slots) {
        let Some(threshold) = leak_threshold(given.wish) else { return };
        let Some(look) = self.pins.longest_pinned(threshold) else {
            self.longest = None;
            return;
        };
        if self.longest.as_ref().is_some_and(|(_, local)| *local == look.local) {
            return;
        }
        let Some(slot) = slots.to_ask_mut().find(|slot| slot.name() == look.slot) else { return };
        let is_it = |server: &Server| sockets::local(server).filter(|local| *local == look.local);
        let held = holders(slot, &given.sidecar.injection.upstream.database, is_it).await;
        if let Ok(held) = held
            && let Some((client, local)) = held.into_iter().next()
        {
            self.longest = Some((client.address, local));
        }
    }
}

fn leak_threshold(wish: &Wish) -> Option<u32> {
    let settings = &wish.revision.as_ref()?.settings;
    Some(settings.health.leak_threshold_seconds.saturating_mul(1000))
}

/// What the process of a slot runs; of one that another agent started, that may not be known.
fn settings_of<'a>(wish: &'a Wish, slot: &'a Slot) -> Option<&'a Settings> {
    Some(&slot.runs.as_ref().or(wish.revision.as_ref())?.settings)
}

fn gives_sessions(wish: &Wish, slot: &Slot) -> bool {
    settings_of(wish, slot).is_some_and(|settings| settings.pool_mode == PoolMode::Session)
}

/// Where the sessions of a slot can be asked about: in a process that has a free connection and works as the same role. Another role
/// is not told of them. One that leaves lets nobody in.
fn door_to_sessions_of(slots: &Slots, name: SlotName) -> Option<(SlotName, PathBuf, Credentials)> {
    let role = slots.to_ask().find(|slot| slot.name() == name)?.credentials()?.username.as_str();
    let is_open = |slot: &&Slot| {
        // one that is used again only after a check is free too
        let is_free = slot.pools.is_some_and(|(_, pools)| pools.idle + pools.used > 0 && pools.clients_waiting == 0);
        let is_same = slot.credentials().is_some_and(|credentials| credentials.username == role);
        is_free && is_same && slot.leaving().is_none()
    };
    let door = slots.to_ask().filter(is_open).min_by_key(|slot| slot.name() != name)?;
    Some((door.name(), door.console.socket().to_owned(), door.credentials()?.clone()))
}

/// What clients need, of each process in which something may be done for them.
fn needs(given: Given<'_>, slots: &Slots, failover: &Failover, rotating: &Rotating, grant: PodGrant) -> Vec<Need> {
    if rotating.is_refused() {
        // nobody would gain: what is closed could not be opened again
        return Vec::new();
    }
    // in session mode a client has its server connection by right
    let wish = given.wish;
    let helped = || slots.to_ask().filter(move |slot| !slot.is_refused() && !gives_sessions(wish, slot));
    let (mut may_free, mut may_close) = ([false; 2], [false; 2]);
    for slot in helped() {
        may_free[slot.name().index()] = true;
        may_close[slot.name().index()] = slot.alias_pools.active == 0;
    }
    let shares = slots.other_counts();
    let need = |slot: &Slot| {
        let settings = settings_of(wish, slot)?;
        // while it is held back for a moment it is not full
        let (limits, (_, pools)) = (slot.limits_to_keep()?, slot.pools?);
        // one of two is paused while the other one has its turn
        if limits.paused && !(shares && grant.share > 0) {
            return None;
        }
        let patience = settings.health.query_wait_timeout_seconds.saturating_mul(1000) / PATIENCE_OF_WAIT;
        Some(Need {
            slot: slot.name(),
            waiting: failover.waiting_in(slot.name(), pools),
            is_full: limits.paused || is_full(&pools, &limits),
            patience: patience.min(leak_threshold(wish)?),
            shares,
            may_free,
            may_close,
        })
    };
    helped().filter_map(need).collect()
}

async fn begin_closing(
    given: Given<'_>,
    slots: &mut Slots,
    name: SlotName,
    may_close: impl Fn(&Slots, SlotName) -> bool,
) -> Closing {
    let now = given.now;
    // a session of the alias may have begun since the last reading
    let seen = slots.named_mut(name).read_pools(now).await.is_ok();
    let process = slots.named(name).pid();
    let Some(process) = process.filter(|_| seen && may_close(slots, name)) else { return Closing::No };
    tracing::warn!(
        slot = name.as_str(),
        "every server connection is held by a client that is silent, and others wait: PgBouncer closes those that are \
         outside of a transaction, with their clients"
    );
    let slot = slots.named_mut(name);
    let held = holders(slot, &given.sidecar.injection.upstream.database, |_| Some(())).await.unwrap_or_default();
    if let Err(error) = slot.close_idle().await {
        tracing::warn!(slot = name.as_str(), "closing server connections that are pinned: {error}");
    }
    // even after an error: it may have been told
    Closing::Until { then: now + CLOSING, process, holders: held.into_iter().map(|(client, ())| client.id).collect() }
}

/// How many of these clients are gone. Clients may have been led to another process meanwhile.
async fn stop_closing(slots: &mut Slots, process: i32, holders: &[u64]) -> Result<u64, ConsoleError> {
    // one that has ended, or cannot be told any more, closes nothing that is asked for later
    let both = [&mut slots.active, &mut slots.other];
    let told = both.into_iter().find(|slot| slot.pid() == Some(process) && !slot.is_mute());
    let Some(slot) = told else { return Ok(0) };
    slot.stop_closing_idle().await?;
    let clients = slot.console.clients().await?;
    let gone = holders.iter().filter(|holder| clients.iter().all(|client| client.id != **holder)).count();
    Ok(u64::try_from(gone).unwrap_or_default())
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
async fn free(slot: &mut Slot, database: &str, port: u16, pinned: &[LinkSeen]) -> u64 {
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
        "select pid, state, wait_event, (extract(epoch from clock_timestamp() - state_change) * 1000)::bigint as since \
         from pg_catalog.pg_stat_activity where usename = current_user and pid in ({processes})"
    )
}

/// Reads the answer; what has another shape says nothing.
fn sessions(table: &Table) -> Vec<Session> {
    let session = |row: &Vec<Option<String>>| {
        let [process, state, wait_event, since] = row.as_slice() else { return None };
        Some(Session {
            process: process.as_deref()?.parse().ok()?,
            state: SessionState::read(state.as_deref()?, wait_event.as_deref()),
            since: since.as_deref()?.parse().ok()?,
        })
    };
    table.rows.iter().filter_map(session).collect()
}
