//! Server connections that clients hold while nothing is said: the shell around [`crate::agent::decide::pins`].

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use tokio::task::JoinHandle;

use super::{Agent, LEAKS_LOOK, READING};
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{
            machine::Millis,
            pins::{Leaks, Look, Need, PinAction, Pins, Session, SessionState, is_full},
            slot_name::SlotName,
        },
        observe::sockets::{self, LeakWatch, Local},
    },
    contract::{LeakKinds, PoolMode, ProofMode, Settings},
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
    pub(super) leaked: Option<u32>,
    /// Which ones, where they can be seen.
    pub(super) leaked_connections: BTreeSet<Local>,
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

impl Agent {
    fn leak_threshold(&self) -> Option<u32> {
        let settings = &self.configuration.wish.revision.as_ref()?.settings;
        Some(settings.health.leak_threshold_seconds.saturating_mul(1000))
    }

    /// Looks for server connections that are held while nothing is said.
    pub(super) fn look_for_leaks(&mut self, now: Millis, servers: &[(SlotName, Vec<Server>)]) {
        let Some(threshold) = self.leak_threshold() else { return };
        if now < self.pinning.next_look {
            return;
        }
        self.pinning.next_look = now + Millis::from(threshold / 4).clamp(READING, LEAKS_LOOK);
        let all = servers.iter().flat_map(|(slot, servers)| servers.iter().map(|server| (*slot, server)));
        let linked: Vec<(SlotName, &Server)> = all.filter(|(_, server)| server.client.is_some()).collect();
        let kinds = if let Some(looks) = self.looks(&linked) {
            self.pinning.pins.look(looks);
            self.pinning.pins.leaks(threshold)
        } else {
            self.pinning.pins.cannot_look();
            None
        };
        self.pinning.kinds = kinds;
        self.pinning.leaked = kinds.map(Leaks::count);
        self.pinning.leaked_connections =
            self.pinning.leaked.map(|_| self.pinning.pins.leaking(threshold)).unwrap_or_default();
        self.report.published.metrics.set_pinned(kinds.map(|kinds| kinds.pinned));
    }

    /// What the kernel says of these; None where it does not say it of all.
    fn looks(&mut self, linked: &[(SlotName, &Server)]) -> Option<Vec<Look>> {
        if linked.is_empty() {
            return (!self.pinning.unseen).then(Vec::new);
        }
        // a server over a Unix socket has no address: whether it leaks cannot be told
        let locals: Vec<Local> = linked.iter().map(|(_, server)| sockets::local(server)).collect::<Option<_>>()?;
        let mut of_sessions = [false; 2];
        for slot in [&self.slots.active, &self.slots.other] {
            of_sessions[slot.name().index()] = self.gives_sessions(slot);
        }
        match sockets::traffic_to_port(self.sidecar.injection.upstream.port) {
            Ok(traffic) => {
                let judged = self.pinning.watch.judge(&locals, &traffic)?;
                let looks = linked.iter().zip(locals).zip(judged).map(|(((slot, server), local), judged)| Look {
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
                if !self.pinning.unseen {
                    tracing::warn!("leaks cannot be seen here: {error}");
                }
                self.pinning.unseen = true;
                None
            }
        }
    }

    /// What the process of a slot runs; of one that another agent started, that may not be known.
    fn settings_of<'a>(&'a self, slot: &'a Slot) -> Option<&'a Settings> {
        Some(&slot.runs.as_ref().or(self.configuration.wish.revision.as_ref())?.settings)
    }

    fn gives_sessions(&self, slot: &Slot) -> bool {
        self.settings_of(slot).is_some_and(|settings| settings.pool_mode == PoolMode::Session)
    }

    /// Asks the database what silent sessions do, and frees those that are pinned while others wait.
    pub(super) async fn watch_pins(&mut self, now: Millis) {
        self.take_sessions().await;
        self.ask_about_sessions(now);
        let mut needs = self.needs();
        if self.pinning.closing != Closing::No {
            // one after the other
            for need in &mut needs {
                need.may_close = [false; 2];
            }
        }
        match self.pinning.pins.step(now, &needs) {
            Some(PinAction::Free(pinned)) => self.free(&pinned).await,
            Some(PinAction::CloseIdle(slot)) => self.pinning.closing = Closing::Wanted(slot),
            None => {}
        }
    }

    async fn take_sessions(&mut self) {
        let finished = self.pinning.question.take_if(|(_, question)| question.is_finished());
        let Some((slot, question)) = finished else { return };
        match question.await {
            Ok(Ok(table)) => self.pinning.pins.answered(slot, &sessions(&table)),
            Ok(Err(error)) => tracing::debug!(slot = slot.as_str(), "asking what silent sessions do: {error}"),
            Err(error) => tracing::debug!(slot = slot.as_str(), "asking what silent sessions do: {error}"),
        }
    }

    /// Over a server connection that is free: no client waits longer for it.
    fn ask_about_sessions(&mut self, now: Millis) {
        let Some(threshold) = self.leak_threshold() else { return };
        let may =
            self.configuration.wish.revision.as_ref().is_some_and(|it| it.settings.health.proof() == ProofMode::Query);
        if !may || self.pinning.question.is_some() || self.failover.is_asking() {
            return;
        }
        let slots: Vec<SlotName> = self.slots_to_ask().map(Slot::name).collect();
        for slot in slots {
            let Some((door, socket, credentials)) = self.door_to_sessions_of(slot) else { continue };
            let processes = self.pinning.pins.to_ask(now, threshold, slot);
            if processes.is_empty() {
                continue;
            }
            self.failover.asks_too(door == self.slots.active.name());
            let database = self.sidecar.injection.upstream.database.clone();
            let question = ask(socket, database, credentials, question(&processes), QUESTION_DEADLINE);
            self.pinning.question = Some((slot, tokio::spawn(question)));
            return;
        }
    }

    /// Where the sessions of a slot can be asked about: in a process that has a free connection and works as the same role. Another role
    /// is not told of them. One that leaves lets nobody in.
    fn door_to_sessions_of(&self, name: SlotName) -> Option<(SlotName, PathBuf, Credentials)> {
        let role = self.slots_to_ask().find(|slot| slot.name() == name)?.credentials()?.username.as_str();
        let is_open = |slot: &&Slot| {
            // one that is used again only after a check is free too
            let is_free =
                slot.pools.is_some_and(|(_, pools)| pools.idle + pools.used > 0 && pools.clients_waiting == 0);
            let is_same = slot.credentials().is_some_and(|credentials| credentials.username == role);
            is_free && is_same && slot.leaving().is_none()
        };
        let door = self.slots_to_ask().filter(is_open).min_by_key(|slot| slot.name() != name)?;
        Some((door.name(), door.console.socket().to_owned(), door.credentials()?.clone()))
    }

    /// What clients need, of each process in which something may be done for them.
    fn needs(&self) -> Vec<Need> {
        if self.access.rotating.is_refused() {
            // nobody would gain: what is closed could not be opened again
            return Vec::new();
        }
        // in session mode a client has its server connection by right
        let slots = || self.slots_to_ask().filter(move |slot| !slot.is_refused() && !self.gives_sessions(slot));
        let (mut may_free, mut may_close) = ([false; 2], [false; 2]);
        for slot in slots() {
            may_free[slot.name().index()] = true;
            may_close[slot.name().index()] = slot.alias_pools.active == 0;
        }
        slots().filter_map(|slot| self.need(slot, may_free, may_close)).collect()
    }

    fn need(&self, slot: &Slot, may_free: [bool; 2], may_close: [bool; 2]) -> Option<Need> {
        let settings = self.settings_of(slot)?;
        // while it is held back for a moment it is not full
        let (limits, (_, pools)) = (slot.limits_to_keep()?, slot.pools?);
        let shares = self.other_counts();
        // one of two is paused while the other one has its turn
        if limits.paused && !(shares && self.grant().share > 0) {
            return None;
        }
        let patience = settings.health.query_wait_timeout_seconds.saturating_mul(1000) / PATIENCE_OF_WAIT;
        Some(Need {
            slot: slot.name(),
            waiting: self.failover.waiting_in(slot.name(), pools),
            is_full: limits.paused || is_full(&pools, &limits),
            patience: patience.min(self.leak_threshold()?),
            shares,
            may_free,
            may_close,
        })
    }

    /// Cuts the clients of pinned connections, if these are what they were.
    async fn free(&mut self, pinned: &[Look]) {
        let upstream = &self.sidecar.injection.upstream;
        let (database, port) = (upstream.database.clone(), upstream.port);
        let mut freed = 0;
        for slot in self.slots_to_ask_mut() {
            let name = slot.name();
            let own: Vec<Look> = pinned.iter().filter(|look| look.slot == name).copied().collect();
            if !own.is_empty() && !slot.is_refused() {
                freed += free(slot, &database, port, &own).await;
            }
        }
        self.count_freed(freed);
    }

    /// Has a process close what clients hold outside of a transaction, while nothing else moves in it.
    pub(super) async fn close_pinned(&mut self, now: Millis) {
        let closing = std::mem::take(&mut self.pinning.closing);
        self.pinning.closing = match closing {
            Closing::No => Closing::No,
            // nobody waits any more, or nobody would gain
            Closing::Wanted(slot) if !self.may_close(slot) => {
                self.applying.to_be_applied = true;
                Closing::No
            }
            Closing::Wanted(slot) if !self.named_mut(slot).is_quiet(now).await.unwrap_or(false) => {
                Closing::Wanted(slot)
            }
            Closing::Wanted(slot) => self.begin_closing(slot, now).await,
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

    fn may_close(&self, slot: SlotName) -> bool {
        self.needs().iter().any(|need| need.waiting > 0 && need.may_close[slot.index()])
    }

    async fn begin_closing(&mut self, name: SlotName, now: Millis) -> Closing {
        // what was held back for it comes back
        self.applying.to_be_applied = true;
        // a session of the alias may have begun since the last reading
        let seen = self.named_mut(name).read_pools(now).await.is_ok();
        let process = self.named_mut(name).pid();
        let Some(process) = process.filter(|_| seen && self.may_close(name)) else { return Closing::No };
        tracing::warn!(
            slot = name.as_str(),
            "every server connection is held by a client that is silent, and others wait: PgBouncer closes those that are \
             outside of a transaction, with their clients"
        );
        let database = self.sidecar.injection.upstream.database.clone();
        let slot = self.named_mut(name);
        let held = holders(slot, &database, |_| Some(())).await.unwrap_or_default();
        if let Err(error) = slot.close_idle().await {
            tracing::warn!(slot = name.as_str(), "closing server connections that are pinned: {error}");
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
        let slots = [&mut self.slots.active, &mut self.slots.other];
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
        self.report.published.metrics.count_freed(freed);
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
        let database = self.sidecar.injection.upstream.database.clone();
        let Some(slot) = self.slots_to_ask_mut().find(|slot| slot.name() == look.slot) else { return };
        let is_it = |server: &Server| sockets::local(server).filter(|local| *local == look.local);
        let held = holders(slot, &database, is_it).await;
        if let Ok(held) = held
            && let Some((client, local)) = held.into_iter().next()
        {
            self.pinning.longest = Some((client.address, local));
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
