//! `pause` and `resume`: what would change, and what was done.

use serde_json::{Value, json};

use super::{document::PoolDocument, get::mode, table::cell};

/// Which way the automation of a pool is switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseChange {
    /// It is frozen.
    Pause,
    /// It goes on.
    Resume,
}

impl PauseChange {
    /// The verb.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
        }
    }

    /// What `spec.paused` becomes.
    pub const fn paused(self) -> bool {
        matches!(self, Self::Pause)
    }

    /// Whether there is nothing to do.
    pub fn is_done(self, document: &PoolDocument) -> bool {
        document.pool.spec.paused == self.paused()
    }

    /// What would change, before anybody is asked.
    pub fn plan(self, document: &PoolDocument) -> String {
        let status = document.status();
        let now = format!(
            "size {}, share {}, revision {}",
            cell(status.current_size),
            cell(status.share),
            cell(status.revision.map(|revision| revision.updated))
        );
        let effect = match self {
            Self::Pause => format!(
                "limits, shares and revisions stay as they are ({now}), in the agents too; traffic goes on, and pods that start get their floor"
            ),
            Self::Resume => format!(
                "limits, shares and revisions follow load and spec again (now {now}; mode {})",
                mode(document.pool.spec.mode)
            ),
        };
        let owner = applied_by(&document.raw).map_or_else(String::new, |owner| {
            format!("\n{owner} applies spec.paused of this pool and may set it back: change it there too")
        });
        format!("{}: spec.paused {} -> {}: {effect}{owner}", document.key(), !self.paused(), self.paused())
    }

    /// The change, for this very object as it was read: whoever was faster is not overwritten.
    pub fn operations(self, document: &PoolDocument) -> Value {
        json!([
            {"op": "test", "path": "/metadata/uid", "value": document.pool.metadata.uid},
            {"op": "test", "path": "/spec/paused", "value": !self.paused()},
            {"op": "replace", "path": "/spec/paused", "value": self.paused()},
        ])
    }

    /// What was done, as kubectl says it.
    pub fn told(self, document: &PoolDocument, is_dry_run: bool) -> String {
        let dry_run = if is_dry_run { " (server dry run)" } else { "" };
        let condition = match self {
            Self::Pause => "Paused",
            Self::Resume => "Paused=False",
        };
        let wait = format!("kubectl sluice wait {} {}", document.name(), document.in_namespace());
        let next = if is_dry_run {
            String::new()
        } else {
            format!("\nwhen the operator has taken it: {wait} --for condition={condition}")
        };
        format!("connectionpool.sluice.dev/{} {}{dry_run}{next}", document.name(), self.done())
    }

    /// That there is nothing to do.
    pub fn told_before(self, document: &PoolDocument) -> String {
        let standing = if self.paused() { "is paused already" } else { "is not paused" };
        format!("connectionpool.sluice.dev/{} {standing}: nothing was changed", document.name())
    }
}

/// Who applies `spec.paused` by server-side apply, and so takes it back.
fn applied_by(raw: &Value) -> Option<&str> {
    let managers = raw["metadata"]["managedFields"].as_array()?;
    let applies =
        |entry: &&Value| entry["operation"] == "Apply" && entry["fieldsV1"]["f:spec"].get("f:paused").is_some();
    managers.iter().find(applies)?["manager"].as_str()
}
