//! `sluice-agent clients`: says who works the pooler of this pod now, as JSON.
//!
//! Who connects from where is not for everybody who reaches the agent's port. This takes the right to run a program in the pod.

use std::{fmt, path::Path, time::Duration};

use jiff::Timestamp;
use thiserror::Error;

use crate::{
    agent::{
        apply::slot::Slot,
        decide::{applications, slot_name::SlotName},
    },
    contract::{ClientsReport, Injection},
    pooler::pgbouncer::console::{Console, ConsoleError},
};

/// How long a pooler may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// Why nobody can tell.
#[derive(Debug, Error)]
pub enum ClientsError {
    /// Neither slot's pooler has told.
    #[error("no pooler of this pod says who its clients are: {}", listed(.0))]
    Silent(Vec<ConsoleError>),
}

/// What they said, one after the other.
fn listed(errors: &[ConsoleError]) -> impl fmt::Display {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Asks the poolers of both slots. One that has no process, or does not answer, is left out while the other one does.
///
/// # Errors
/// [`ClientsError`]: none of them answers.
pub async fn clients(injection: &Injection, run_dir: &Path) -> Result<ClientsReport, ClientsError> {
    let (mut clients, mut silent) = (Vec::new(), Vec::new());
    for slot in SlotName::ALL {
        let mut console = Console::new(&Slot::directory(slot, run_dir), injection.client.port, DEADLINE);
        match console.clients().await {
            Ok(of_slot) => clients.extend(of_slot),
            Err(error) => silent.push(error),
        }
    }
    if silent.len() == SlotName::ALL.len() {
        return Err(ClientsError::Silent(silent));
    }
    Ok(applications::report(&clients, Timestamp::now()))
}
