//! The pooler's figures, once a second, and what of the pod is connected to the database past it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{LATE, READING, Reporting, access::Rotating, failover::Failover, slots::Slots};
use crate::{
    agent::{
        apply::slot::{Slot, SlotReading},
        decide::{
            counters::Added,
            machine::Millis,
            peaks::{Moment, Peak},
            slot_name::SlotName,
        },
        observe::{
            bypass::{self, BypassWatch},
            sockets::Local,
        },
    },
    contract::{self, Bypass, Held, Injection},
    pooler::pgbouncer::{
        console::ConsoleError,
        tables::{Pools, Server},
    },
};

/// Between two reads of all limits although nothing changed.
const LIMITS_SWEEP: Millis = 15_000;
/// Between two looks at all clients, which cost more than a reading.
const CLIENTS_LOOK: Millis = 15_000;
/// How long the figures of the last reading are shown when the next ones do not come.
const READING_HOLDS: Millis = 3000;

/// What was read of the poolers last.
pub(super) struct Figures {
    held: Option<Held>,
    /// When `held` was read.
    held_at: Millis,
    peaks: [(&'static str, Peak, Peak); 2],
    /// The demand of a moment, and when it was looked at last.
    moment: Moment,
    moment_at: Millis,
    /// Whether a round was late since the last reading: what the next one shows is not of one second, however soon it comes.
    was_late: bool,
    /// What of the pod is connected to the database past the pooler.
    bypass: BypassWatch,
    next_reading: Millis,
    next_clients: Millis,
    next_sweep: Millis,
}

/// The figures of all processes that could be asked.
pub(super) struct Together {
    /// Their sum.
    pub(super) pools: Pools,
    pub(super) added: Added,
    /// What the active one did alone.
    pub(super) of_active: Added,
    /// How long the first client that waits at the active one has waited.
    pub(super) longest_wait_microseconds: u64,
    /// Server connections opened.
    pub(super) opens: u64,
    /// Whether one has logged in since the last reading.
    pub(super) logged_in: bool,
    /// Whether one has with what is in force.
    pub(super) in_force_works: bool,
    /// Server connections open now, of each slot.
    pub(super) servers: Vec<(SlotName, Vec<Server>)>,
    /// How long they took to come.
    took: Duration,
    /// Whether the other slot's process was asked.
    pub(super) asked_other: bool,
}

impl Together {
    /// Asks them. `leaked` are the server connections that clients were seen to hold and do nothing with.
    ///
    /// # Errors
    /// [`ConsoleError`]
    pub(super) async fn read(
        slots: &mut Slots,
        rotating: &Rotating,
        leaked: &BTreeSet<Local>,
        now: Millis,
    ) -> Result<Self, ConsoleError> {
        let asked = Instant::now();
        let asks_other = slots.can_ask_other();
        let mut active = slots.active.read(now, leaked).await?;
        let mut other = if asks_other { Some(slots.other.read(now, leaked).await?) } else { None };
        let (of_active, longest_wait_microseconds) = (active.added, active.pools.longest_wait_microseconds);
        let works = |slot: &Slot, reading: &SlotReading| reading.logged_in && !rotating.keeps_user(slot);
        // what a process keeps says nothing of what is in force
        let in_force_works =
            works(&slots.active, &active) || other.as_ref().is_some_and(|other| works(&slots.other, other));
        let mut servers = vec![(slots.active.name(), std::mem::take(&mut active.servers))];
        servers.extend(other.as_mut().map(|other| (slots.other.name(), std::mem::take(&mut other.servers))));
        let SlotReading { pools, added, opens, logged_in, .. } = match other {
            None => active,
            Some(other) => SlotReading {
                pools: active.pools + other.pools,
                added: active.added + other.added,
                opens: active.opens + other.opens,
                logged_in: active.logged_in || other.logged_in,
                ..active
            },
        };
        Ok(Self {
            pools,
            added,
            of_active,
            longest_wait_microseconds,
            opens,
            logged_in,
            in_force_works,
            servers,
            took: asked.elapsed(),
            asked_other: asks_other,
        })
    }
}

impl Figures {
    /// Nothing read yet.
    pub(super) fn new(injection: &Injection) -> Self {
        Self {
            held: None,
            held_at: 0,
            peaks: [("5s", 5000), ("30s", 30_000)].map(|(name, window)| (name, Peak::new(window), Peak::new(window))),
            moment: Moment::default(),
            moment_at: 0,
            was_late: false,
            bypass: BypassWatch::new(bypass::Endpoints {
                host: injection.upstream.host.clone(),
                port: injection.upstream.port,
                client_port: injection.client.port,
            }),
            next_reading: 0,
            next_clients: 0,
            next_sweep: 0,
        }
    }

    /// Whether a round was late.
    pub(super) fn round_began(&mut self, punctual: bool) {
        self.was_late |= !punctual;
    }

    /// Whether the next reading is due, and no check of our own is to be waited for.
    pub(super) fn take_due(&mut self, failover: &Failover, now: Millis) -> bool {
        let is_due = now >= self.next_reading && !failover.comes_first(now);
        if is_due {
            self.next_reading = now + READING;
        }
        is_due
    }

    /// Whether all limits are to be read again although nothing changed.
    pub(super) fn take_sweep(&mut self, now: Millis) -> bool {
        let is_due = now >= self.next_sweep;
        if is_due {
            self.next_sweep = now + LIMITS_SWEEP;
        }
        is_due
    }

    /// Whether these figures are of one second, as long ago as they should be.
    pub(super) fn take_punctual(&mut self, together: &Together) -> bool {
        // figures that took so long to come are not of one moment
        !std::mem::take(&mut self.was_late) && together.took < LATE
    }

    /// Takes in what is held.
    pub(super) fn see_pools(
        &mut self,
        slots: &Slots,
        rotating: &Rotating,
        leaked: Option<u32>,
        pools: Pools,
        now: Millis,
    ) {
        self.held_at = now;
        self.held = Some(Held {
            held: pools.held().saturating_add(rotating.holds()).saturating_add(slots.alias_held()),
            active: pools.active,
            leaked,
            waiting: pools.clients_waiting,
        });
    }

    /// What is held is not known.
    pub(super) fn forget_held(&mut self) {
        self.held = None;
    }

    /// The same once it was read too long ago.
    pub(super) fn expire(&mut self, now: Millis) {
        if now.saturating_sub(self.held_at) > READING_HOLDS {
            self.held = None;
        }
    }

    /// What is held, as far as it is known.
    pub(super) fn held(&self) -> Option<Held> {
        self.held
    }

    /// Counts who came: server connections of the last second, clients now and then.
    pub(super) async fn count_arrivals(
        &mut self,
        active: &mut Slot,
        failover: &mut Failover,
        report: &mut Reporting,
        opens: u64,
        now: Millis,
    ) {
        let mut logins = 0;
        if now >= self.next_clients {
            self.next_clients = now + CLIENTS_LOOK;
            match active.read_logins().await {
                Ok(count) => logins = failover.leave_out_clients(count),
                Err(error) => report.problems.reading.may_pass(now, error.to_string()),
            }
        }
        report.metrics().add_arrivals(opens, logins);
    }

    /// Tells the load in the metrics.
    pub(super) fn tell_load(
        &mut self,
        slots: &Slots,
        report: &Reporting,
        added: Added,
        pools: Pools,
        leaked: Option<u32>,
        now: Millis,
    ) {
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let metrics = report.metrics();
        metrics.observe(added, pools, leaked, slots.alias_report().as_ref(), unix_seconds);
        let seconds = f64::from(u32::try_from(now.saturating_sub(self.moment_at)).unwrap_or(u32::MAX)) / 1000.0;
        self.moment_at = now;
        let working = pools.active.saturating_sub(leaked.unwrap_or(0));
        let demand = self.moment.feed(seconds, &added, working, pools.clients_waiting);
        let waiting = f64::from(pools.clients_waiting);
        for (name, demands, waitings) in &mut self.peaks {
            metrics.set_peaks(name, demands.feed(now, demand), waitings.feed(now, waiting));
        }
    }

    /// Looks for connections past the pooler. A gateway's pod has no application.
    pub(super) async fn watch_bypass(&mut self, reach: contract::Reach, slots: &Slots, now: Millis) {
        if reach == contract::Reach::Network {
            return;
        }
        let poolers = [slots.active.pid(), slots.other.pid()];
        let processes = || {
            // the keeper is our parent
            let own = [Some(rustix::process::getpid()), rustix::process::getppid()];
            let own = own.into_iter().flatten().map(|process| process.as_raw_nonzero().get());
            own.chain(poolers.into_iter().flatten()).collect()
        };
        self.bypass.step(now, processes).await;
    }

    /// What is connected past the pooler.
    pub(super) fn bypass(&self) -> Option<&Bypass> {
        self.bypass.told()
    }
}
