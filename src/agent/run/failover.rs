//! A database that takes no writes any more: the shell around [`crate::agent::decide::upstream`].

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;

use super::{Reporting, access::Rotating, place, sidecar::Given, slots::Slots};
use crate::{
    agent::{
        apply::slot::Slot,
        decide::{
            counters::Added,
            login_proof::expected_role,
            machine::Millis,
            slot_name::SlotName,
            upstream::{QUERY, RoleAction, RoleAnswer, RoleSeen, RoleWatch},
            wish::Wish,
        },
        options::RunOptions,
    },
    contract::{OtherRole, OtherSlot, PoolRevision, UpstreamRole, UpstreamSeen},
    pooler::pgbouncer::{
        changes::Remembered,
        console::{ConsoleError, ask},
        render::Credentials,
        tables::Pools,
    },
};

/// A reading waits at most so long for a check that runs, so that its figures are those of the clients alone.
const CHECK_FIRST: Millis = 1000;
/// The same where clients wait, and the reading is more important.
const CHECK_FIRST_IN_A_QUEUE: Millis = 100;

/// What the loop keeps in mind of it.
pub(super) struct Failover {
    watch: RoleWatch,
    check: Option<JoinHandle<Checked>>,
    /// The slot that it asks in, by its number.
    asks_in: Arc<AtomicUsize>,
    /// Until when a reading waits for it.
    first_until: Millis,
    /// What the check that runs may be counted as.
    planned: OwnQuestions,
    /// What a check without an answer met.
    why: Option<String>,
    /// What is still to be left out.
    own: OwnQuestions,
}

/// What the pooler counts as a client's, and was a check.
#[derive(Clone, Copy, Default)]
struct OwnQuestions {
    transactions: u64,
    assignments: u64,
    /// Clients of the process that new clients come to.
    clients: u64,
}

impl OwnQuestions {
    /// What clients have done: checks left out.
    fn leave_out(&mut self, added: Added, linked: u32) -> Added {
        let transactions = self.transactions.min(added.transactions);
        let abandoned = (self.transactions - transactions).min(added.abandoned);
        let assignments = self.assignments.min(added.assignments);
        self.transactions -= transactions + abandoned;
        self.assignments -= assignments;
        let rest = Added {
            transactions: added.transactions - transactions,
            abandoned: added.abandoned - abandoned,
            assignments: added.assignments - assignments,
            ..added
        };
        // the time of a check is not known apart: it counts where there is more than that
        let alone = transactions > 0 && rest.transactions == 0;
        let unless = |alone: bool, microseconds| if alone { 0 } else { microseconds };
        // what is counted a reading late was worked for others
        let check = unless(!alone || linked > 0, rest.transaction_microseconds.saturating_sub(rest.wait_microseconds));
        Added {
            busy_microseconds: rest.busy_microseconds.saturating_sub(check),
            transaction_microseconds: unless(alone, rest.transaction_microseconds),
            wait_microseconds: unless(assignments > 0 && rest.assignments == 0, rest.wait_microseconds),
            ..rest
        }
    }
}

/// What came of one check.
struct Checked {
    answer: Result<RoleAnswer, String>,
    own: OwnQuestions,
}

impl Failover {
    /// Nothing known yet.
    pub(super) fn new(options: &RunOptions) -> Self {
        Self {
            watch: RoleWatch::new(place::spread(&options.pod_uid)),
            check: None,
            asks_in: Arc::default(),
            first_until: 0,
            planned: OwnQuestions::default(),
            why: None,
            own: OwnQuestions::default(),
        }
    }

    /// Whether the database takes no writes although a primary is expected.
    pub(super) fn is_read_only(&self) -> bool {
        self.watch.is_read_only()
    }

    /// Whether a reading is to wait a moment.
    pub(super) fn comes_first(&self, now: Millis) -> bool {
        self.check.is_some() && now < self.first_until
    }

    /// Whether a check runs.
    pub(super) fn is_asking(&self) -> bool {
        self.check.is_some()
    }

    /// Somebody else of ours asks the database once, as a client, perhaps of the process that new clients come to: that is left out
    /// too.
    pub(super) fn asks_too(&mut self, through_active: bool) {
        self.own.transactions += 1;
        self.own.assignments += 1;
        self.own.clients += u64::from(through_active);
    }

    /// What clients have done: checks left out.
    pub(super) fn leave_out(&mut self, added: Added, linked: u32) -> Added {
        self.own.leave_out(added, linked)
    }

    /// Clients that wait in all processes: a check left out.
    pub(super) fn leave_out_waiting(&self, pools: Pools) -> Pools {
        let waits = u32::from(self.check.is_some());
        Pools { clients_waiting: pools.clients_waiting.saturating_sub(waits), ..pools }
    }

    /// Clients that wait in the process of a slot: a check left out.
    pub(super) fn waiting_in(&self, slot: SlotName, pools: Pools) -> u32 {
        let waits = self.check.is_some() && self.asks_in.load(Ordering::Relaxed) == slot.index();
        pools.clients_waiting.saturating_sub(waits.into())
    }

    /// Clients that came: checks left out.
    pub(super) fn leave_out_clients(&mut self, arrived: u64) -> u64 {
        arrived.saturating_sub(std::mem::take(&mut self.own.clients))
    }

    /// The check has ended; what it did not come to is not left out.
    fn ended(&mut self, came_to: OwnQuestions) {
        let planned = std::mem::take(&mut self.planned);
        let less = |own: u64, planned: u64, came_to: u64| own.saturating_sub(planned.saturating_sub(came_to));
        self.own.transactions = less(self.own.transactions, planned.transactions, came_to.transactions);
        self.own.assignments = less(self.own.assignments, planned.assignments, came_to.assignments);
    }

    /// Takes the next step: asks, or renews. `other` is what is told of the other slot. True when what is wanted may differ from what
    /// was asked of the pooler.
    pub(super) async fn step(
        &mut self,
        given: Given<'_>,
        slots: &mut Slots,
        other: Option<OtherSlot>,
        rotating: &Rotating,
        report: &mut Reporting,
        answering: bool,
    ) -> bool {
        let now = given.now;
        let answer = self.take_answer().await;
        let was_read_only = self.is_read_only();
        let mut seen = observe(given.wish, rotating, answer);
        if seen.expected == UpstreamRole::Primary && self.watch.is_due(now) {
            seen.askable = answering && has_place_for_check(slots, rotating, now).await;
        }
        seen.renewable &= answering;
        let renews = matches!(answer, Some(RoleAnswer::ReadOnly(_))) || self.watch.owes_renewal();
        if renews && seen.renewable {
            seen.renewable = slots.nobody_logs_in(now).await;
        }
        let mut differs = false;
        match self.watch.step(now, &seen) {
            Some(RoleAction::Ask) => self.check(given, slots, other),
            Some(RoleAction::Renew) => {
                // what was held back for it comes back
                differs = true;
                report.metrics().count_renewal();
                renew_connections(slots).await;
            }
            None => {}
        }
        if self.watch.take_recall() {
            slots.begin_recall();
        }
        if !self.watch.is_asking()
            && let Some(check) = self.check.take()
        {
            check.abort();
        }
        if was_read_only != self.is_read_only() {
            differs = true;
            if was_read_only {
                tracing::info!("the database takes writes again, or may be of any role");
            } else {
                tracing::warn!("{}", self.watch.message(now, seen.period, None));
            }
        }
        self.tell(given, slots, report);
        differs
    }

    async fn take_answer(&mut self) -> Option<RoleAnswer> {
        let check = self.check.take_if(|check| check.is_finished())?;
        let Checked { answer, own } = match check.await {
            Ok(checked) => checked,
            Err(error) => Checked { answer: Err(error.to_string()), own: OwnQuestions::default() },
        };
        self.ended(own);
        Some(match answer {
            Ok(answer) => {
                self.why = None;
                answer
            }
            Err(why) => {
                tracing::debug!("asking whether the database takes writes: {why}");
                self.why = Some(why);
                RoleAnswer::Silent
            }
        })
    }

    /// Asks through the process that new clients come to, and through the one that others still work with.
    fn check(&mut self, given: Given<'_>, slots: &Slots, other: Option<OtherSlot>) {
        // what a process runs that another agent started may not be known
        let runs = slots.active.runs.as_ref().or(given.wish.revision.as_ref());
        let Some(runs) = runs else { return };
        // PgBouncer does not see a client leave that waits: given up before, it would stay in the queue beside the next one
        let within = Duration::from_secs(u64::from(runs.settings.health.query_wait_timeout_seconds) + 1);
        let in_use = |other: OtherSlot| {
            matches!(other.role, OtherRole::Warm | OtherRole::Draining)
                && other.clients.is_some_and(|clients| clients > 0)
        };
        // one that leaves lets no client in any more, us neither
        let asks_other = slots.other.leaving().is_none() && has_place(&slots.other);
        let asks_other = asks_other && other.is_some_and(in_use);
        let asked = [Some(&slots.active), asks_other.then_some(&slots.other)].into_iter().flatten();
        // each lets in the user that it has
        let asked: Vec<_> = asked
            .filter_map(|slot| {
                let credentials = slot.credentials()?.clone();
                let remembers = slot.remembers(Remembered::ReadOnly);
                Some(Asked { slot: slot.name(), socket: slot.console.socket().to_owned(), credentials, remembers })
            })
            .collect();
        let times = asked.len() as u64;
        let queue = slots.active.pools.is_some_and(|(_, pools)| pools.clients_waiting > 0);
        let database = given.sidecar.injection.upstream.database.clone();
        self.check = Some(tokio::spawn(check(asked, self.asks_in.clone(), database, within)));
        self.first_until = given.now + if queue { CHECK_FIRST_IN_A_QUEUE } else { CHECK_FIRST };
        self.planned = OwnQuestions { transactions: times, assignments: times, clients: 1 };
        // counted before it is: a reading in between must not take it for a client's
        self.own.transactions += times;
        self.own.assignments += times;
        self.own.clients += 1;
    }

    fn tell(&self, given: Given<'_>, slots: &Slots, report: &mut Reporting) {
        let wanted = given.wish.revision.as_ref().map(|revision| revision.revision);
        match (slots.revision(), wanted) {
            (Some(runs), Some(wanted)) if runs != wanted && self.is_read_only() => {
                report.problems.upstream.is(format!(
                    "UpstreamReadOnly: revision {wanted} is taken over when the database takes writes again; revision {runs} \
                     serves on"
                ));
            }
            _ => report.problems.upstream.is_over(),
        }
    }

    /// What is to be run: while the database takes no writes, what runs.
    pub(super) fn revision_to_run<'a>(&self, given: Given<'a>, slots: &'a Slots) -> Option<&'a PoolRevision> {
        let runs = slots.active.runs.as_ref().filter(|_| self.is_read_only());
        runs.or(given.wish.revision.as_ref())
    }

    /// What is reported of the database; None where it is not asked.
    pub(super) fn report(&self, given: Given<'_>) -> Option<UpstreamSeen> {
        let settings = &given.wish.revision.as_ref()?.settings;
        if expected_role(settings) == UpstreamRole::Any {
            return None;
        }
        let (now, period) = (given.sidecar.now(), Millis::from(settings.health.period_seconds.max(1)) * 1000);
        Some(UpstreamSeen {
            state: self.watch.state(now, period),
            message: self.watch.message(now, period, self.why.as_deref()),
            silent: Some(self.watch.is_silent(now, period)),
        })
    }
}

fn observe(wish: &Wish, rotating: &Rotating, answer: Option<RoleAnswer>) -> RoleSeen {
    let settings = wish.revision.as_ref().map(|revision| &revision.settings);
    let period = settings.map_or(1, |settings| settings.health.period_seconds.max(1));
    RoleSeen {
        // of nothing, nothing is expected
        expected: settings.map_or(UpstreamRole::Any, expected_role),
        period: Millis::from(period) * 1000,
        askable: false,
        renewable: !rotating.is_refused(),
        answer,
    }
}

async fn has_place_for_check(slots: &mut Slots, rotating: &Rotating, now: Millis) -> bool {
    // a proof needs what room there is
    rotating.set_aside() == 0 && slots.active.read_pools(now).await.is_ok() && has_place(&slots.active)
}

async fn renew_connections(slots: &mut Slots) {
    // what is closed of one whose user is refused could not be opened again
    for slot in slots.to_ask_mut().filter(|slot| !slot.is_refused()) {
        // one that does not answer is asked again the next time
        match slot.reconnect().await {
            Ok(()) => {
                tracing::info!(slot = slot.name().as_str(), "server connections are renewed as transactions end");
            }
            Err(error) => tracing::warn!(slot = slot.name().as_str(), "renewing server connections: {error}"),
        }
    }
}

/// Whether a check would be served, or wait where clients wait too: alone in a queue it would look like load.
fn has_place(slot: &Slot) -> bool {
    let (Some(limits), Some((_, pools))) = (slot.limits, slot.pools) else { return false };
    let is_free = pools.idle + pools.used > 0 || pools.held() < limits.pool_size;
    !limits.paused && (is_free || pools.clients_waiting > 0)
}

/// A process that is asked through.
struct Asked {
    slot: SlotName,
    socket: PathBuf,
    credentials: Credentials,
    /// Whether it remembers for a client whether transactions are read-only.
    remembers: bool,
}

async fn check(doors: Vec<Asked>, asks_in: Arc<AtomicUsize>, database: String, within: Duration) -> Checked {
    let mut own = OwnQuestions::default();
    let mut first = None;
    for Asked { slot, socket, credentials, remembers } in doors {
        asks_in.store(slot.index(), Ordering::Relaxed);
        let asked = ask(socket, database.clone(), credentials, QUERY.to_owned(), within).await;
        own.transactions += u64::from(asked.as_ref().map_or_else(was_sent, |_| true));
        own.assignments += u64::from(asked.is_ok());
        let answer = match asked {
            Ok(table) => {
                RoleAnswer::read(&table, remembers).ok_or_else(|| "the answer is not one that is known".to_owned())
            }
            Err(error) => Err(words(&error)),
        };
        if let Ok(RoleAnswer::ReadOnly(_)) = answer {
            return Checked { answer, own };
        }
        first.get_or_insert(answer);
    }
    Checked { answer: first.unwrap_or_else(|| Err("there is nobody to ask".to_owned())), own }
}

/// Whether the query had reached the pooler.
fn was_sent(error: &ConsoleError) -> bool {
    match error {
        ConsoleError::Connect { .. } => false,
        ConsoleError::Command { command, .. } => command != "login",
        ConsoleError::Deadline { .. } | ConsoleError::Answer(_) => true,
    }
}

/// What the pooler or the database said.
fn words(error: &ConsoleError) -> String {
    match error {
        ConsoleError::Command { source, .. } => {
            source.as_db_error().map_or_else(|| source.to_string(), |error| error.message().to_owned())
        }
        ConsoleError::Deadline { deadline, .. } => format!("no answer within {} s", deadline.as_secs()),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_for_clients_that_is_counted_a_reading_late_stays_when_a_check_is_left_out() {
        let mut own = OwnQuestions { transactions: 1, assignments: 1, clients: 0 };
        // the check worked for 1 ms after a wait of 2 ms; the rest is of clients that have ended before
        let added = Added {
            transactions: 1,
            assignments: 1,
            busy_microseconds: 1_901_000,
            transaction_microseconds: 3000,
            wait_microseconds: 2000,
            ..Added::default()
        };
        let rest = own.leave_out(added, 0);
        assert_eq!(rest, Added { busy_microseconds: 1_900_000, ..Added::default() });
    }
}
