//! Readiness: a table of gates, each open or waiting for something that it can name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::time::Instant;

/// One thing that must be there before the operator can serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Gate {
    /// It is there.
    Ready,
    /// It is not, and why.
    WaitingFor(String),
}

impl Gate {
    /// True when it holds nothing up.
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Ready)
    }
}

/// The gates of this process. Once open a gate stays open: a cache that is old serves the webhook better than none. Only what
/// ends closes one for good ([`Readiness::close`]).
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    gates: Arc<RwLock<BTreeMap<String, Gate>>>,
    closed: Arc<RwLock<BTreeSet<String>>>,
}

impl Readiness {
    /// Closes the gate `name` unless it was opened before.
    pub fn wait(&self, name: &str, what: &str) {
        let mut gates = self.gates.write();
        match gates.get_mut(name) {
            Some(Gate::Ready) => {}
            Some(gate) => *gate = Gate::WaitingFor(what.to_owned()),
            None => {
                gates.insert(name.to_owned(), Gate::WaitingFor(what.to_owned()));
            }
        }
    }

    /// Opens the gate `name`, unless it was closed for good.
    pub fn open(&self, name: &str) {
        if !self.closed.read().contains(name) {
            self.gates.write().insert(name.to_owned(), Gate::Ready);
        }
    }

    /// Closes the gate `name` for good, open or not.
    pub fn close(&self, name: &str, why: &str) {
        self.closed.write().insert(name.to_owned());
        self.gates.write().insert(name.to_owned(), Gate::WaitingFor(why.to_owned()));
    }

    /// Whether every gate is open.
    pub fn is_ready(&self) -> bool {
        self.gates.read().values().all(Gate::is_open)
    }

    /// All gates by name.
    pub fn gates(&self) -> BTreeMap<String, Gate> {
        self.gates.read().clone()
    }
}

/// Longest silence of a worker that is taken for work.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// The signs of life of those who watch, decide and write. They have threads of their own, so whoever answers for the health of the
/// process would not notice that one hangs.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    beaten: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
}

impl Pulse {
    /// This one lives.
    pub fn beat(&self, who: &'static str) {
        self.beaten.lock().insert(who, Instant::now());
    }

    /// Who has been silent for longest, and for how long, if that is too long.
    pub fn missing(&self) -> Option<(&'static str, Duration)> {
        let beaten = self.beaten.lock();
        let (who, at) = beaten.iter().min_by_key(|(_, at)| **at)?;
        Some((*who, at.elapsed())).filter(|(_, silent)| *silent > LONGEST_SILENCE)
    }
}
