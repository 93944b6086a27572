//! Server connections that are renewed because the settings ask for it (`reconnectedAt`): what they keep may have become stale.
//!
//! It is done once for each later time, and a revision with one is in force only when it is done. Nothing is written down for
//! that: a process that begins with a revision has no older connections, and one that is taken up runs what worked last.

use super::Applying;
use crate::{
    agent::{
        apply::slot::{Slot, SlotError},
        decide::machine::Millis,
        run::{
            Reporting, ServerAccess,
            access::{AWAITS_LOGINS, AWAITS_USER},
            slots::Slots,
        },
    },
    contract::{PoolRevision, Reconnected},
    pooler::pgbouncer::tables::Server,
};

impl Applying {
    /// Has every process renew what is older than the revision asks for. False: not yet, to be asked again in the next round.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub(super) async fn reconnect_for(
        &mut self,
        slots: &mut Slots,
        access: &ServerAccess,
        report: &mut Reporting,
        revision: &PoolRevision,
        now: Millis,
    ) -> Result<bool, SlotError> {
        let Some(at) = revision.settings.reconnected_at.as_deref() else { return Ok(true) };
        let is_refused = access.is_refused(slots);
        let mut owing = owing(slots, at);
        if owing.is_empty() {
            return Ok(true);
        }
        // what is closed could not be opened again
        let mut may = !is_refused;
        for slot in &mut owing {
            // all are asked, so that they wait together
            may &= !is_refused && slot.is_quiet(now).await?;
        }
        if may {
            for slot in owing {
                slot.reconnect_for(at).await?;
                tracing::info!(
                    slot = slot.name().as_str(),
                    reconnected_at = at,
                    "server connections are renewed as transactions end"
                );
            }
            // what was held back for it comes back, and what remains is looked at anew
            (self.to_be_applied, self.closing) = (true, None);
            return Ok(true);
        }
        self.to_be_applied = true;
        let why = if is_refused { AWAITS_USER } else { AWAITS_LOGINS };
        let text = format!("revision {}: server connections are to be renewed, which {why}", revision.revision);
        report.problems.reload.may_pass(now, text);
        Ok(false)
    }

    /// Whether a process owes what the revision in force asked for: its user was refused then, and is not any more. It is asked again
    /// then.
    pub(in crate::agent::run) fn look_for_owing(&mut self, slots: &mut Slots) {
        let runs = slots.active.runs.as_ref().and_then(|runs| runs.settings.reconnected_at.clone());
        self.to_be_applied |= runs.is_some_and(|at| !owing(slots, &at).is_empty());
    }

    /// Counts those that were told to end and have not yet, until none is left: others are told to end for other reasons later.
    pub(in crate::agent::run) fn count_closing<'a>(&mut self, servers: impl Iterator<Item = &'a Server>) {
        if self.closing != Some(0) {
            self.closing = u32::try_from(servers.filter(|server| server.closing).count()).ok();
        }
    }

    /// What is told of it: the time that was done, which may be later than the one that is asked for.
    pub(in crate::agent::run) fn reconnected(&self, slots: &Slots) -> Option<Reconnected> {
        slots.active.runs.as_ref()?.settings.reconnected_at.as_ref()?;
        let at = slots.active.reconnected_at()?.to_owned();
        Some(Reconnected { at, remaining: self.closing })
    }
}

/// The processes that have connections older than that. What is closed of one that drains and whose user is refused could not be
/// opened again: it owes nothing until that is over.
fn owing<'a>(slots: &'a mut Slots, at: &str) -> Vec<&'a mut Slot> {
    let active = slots.active.name();
    let asked = slots.to_ask_mut().filter(|slot| slot.name() == active || !slot.is_refused());
    asked.filter(|slot| slot.owes_reconnect(at)).collect()
}
