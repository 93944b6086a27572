//! Readiness: a table of gates, each open or waiting for something that it can name.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use serde::Serialize;

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

/// The gates of this process. Once open a gate stays open: a cache that is old serves the webhook better than none.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    gates: Arc<RwLock<BTreeMap<String, Gate>>>,
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

    /// Opens the gate `name`.
    pub fn open(&self, name: &str) {
        self.gates.write().insert(name.to_owned(), Gate::Ready);
    }

    /// All gates by name.
    pub fn gates(&self) -> BTreeMap<String, Gate> {
        self.gates.read().clone()
    }
}
