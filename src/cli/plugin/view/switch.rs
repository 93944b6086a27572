//! `pause`, `freeze` and `resume`: what would change, and what was done.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{document::PoolDocument, get::mode, table::cell};
use crate::{
    api::FREEZE_ANNOTATION,
    decide::freeze::{Frozen, LONGEST_FREEZE_BYTES, PoolFreeze},
};

/// Which way the automation of a pool is switched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseChange {
    /// It is frozen until somebody lets it go on.
    Pause,
    /// It is frozen until a time.
    Freeze(PoolFreeze),
    /// It goes on.
    Resume,
}

/// A freeze that ends, with who asked behind why.
///
/// # Errors
/// It ends before it begins, or does not say why; what to write.
pub fn freeze(until: Timestamp, reason: &str, who: Option<&str>, now: Timestamp) -> Result<PoolFreeze, String> {
    if until <= now {
        return Err(format!("--until: {until} is over; name a time to come, or so long from now: 8h"));
    }
    let mut words: Vec<&str> = reason.split_whitespace().collect();
    if words.is_empty() {
        return Err("--reason: say why; everybody who looks at the pool reads it".to_owned());
    }
    let who = who.map(|who| format!("({who})"));
    words.extend(who.as_deref());
    // whole seconds: people read it
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
    let freeze = PoolFreeze { until, reason: words.join(" ") };
    match freeze.to_string().len() {
        ..=LONGEST_FREEZE_BYTES => Ok(freeze),
        more => Err(format!("--reason: too long by {} bytes", more - LONGEST_FREEZE_BYTES)),
    }
}

impl PauseChange {
    /// The verb.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Freeze(_) => "freeze",
            Self::Resume => "resume",
        }
    }

    const fn done(&self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Freeze(_) => "frozen",
            Self::Resume => "resumed",
        }
    }

    /// Whether there is nothing to do.
    pub fn is_done(&self, document: &PoolDocument, now: Timestamp) -> bool {
        match self {
            Self::Pause => document.pool.spec.paused,
            Self::Freeze(freeze) => annotation(document) == Some(freeze.to_string().as_str()),
            Self::Resume => Frozen::of(&document.pool, now.as_second()).is_none(),
        }
    }

    /// What would change, before anybody is asked.
    pub fn plan(&self, document: &PoolDocument, now: Timestamp) -> String {
        let status = document.status();
        let figures = format!(
            "size {}, share {}, revision {}",
            cell(status.current_size),
            cell(status.share),
            cell(status.revision.map(|revision| revision.updated))
        );
        let stays = format!(
            "limits, shares and revisions stay as they are ({figures}), in the agents too; traffic goes on, and pods that start get their floor"
        );
        let freeze = standing(document, now);
        let (change, effect) = match self {
            Self::Pause => ("spec.paused false -> true".to_owned(), stays),
            Self::Freeze(PoolFreeze { until, reason }) => {
                let before = freeze.map_or_else(String::new, |words| format!("\nit takes the place of: {words}"));
                (format!("{FREEZE_ANNOTATION}: until {until}: {reason}"), stays + &before)
            }
            Self::Resume => {
                let paused = document.pool.spec.paused.then(|| "spec.paused true -> false".to_owned());
                let thawed = freeze.map(|words| format!("{FREEZE_ANNOTATION} is taken away ({words})"));
                let changes: Vec<String> = paused.into_iter().chain(thawed).collect();
                let mode = mode(document.pool.spec.mode);
                let effect =
                    format!("limits, shares and revisions follow load and spec again (now {figures}; mode {mode})");
                (changes.join(", "), effect)
            }
        };
        let owner = applied_by(&document.raw).filter(|_| !matches!(self, Self::Freeze(_)));
        let owner = owner.map_or_else(String::new, |owner| {
            format!("\n{owner} applies spec.paused of this pool and may set it back: change it there too")
        });
        format!("{}: {change}: {effect}{owner}", document.key())
    }

    /// The change, for this very object as it was read: whoever was faster is not overwritten.
    pub fn operations(&self, document: &PoolDocument) -> Value {
        let metadata = &document.pool.metadata;
        let path = format!("/metadata/annotations/{}", FREEZE_ANNOTATION.replace('/', "~1"));
        let mut operations = vec![json!({"op": "test", "path": "/metadata/uid", "value": metadata.uid})];
        let mut paused = |to: bool| {
            operations.push(json!({"op": "test", "path": "/spec/paused", "value": !to}));
            operations.push(json!({"op": "replace", "path": "/spec/paused", "value": to}));
        };
        match self {
            Self::Pause => paused(true),
            Self::Resume => {
                if document.pool.spec.paused {
                    paused(false);
                }
                if let Some(stands) = annotation(document) {
                    operations.push(json!({"op": "test", "path": path, "value": stands}));
                    operations.push(json!({"op": "remove", "path": path}));
                }
            }
            Self::Freeze(freeze) => {
                let version = &metadata.resource_version;
                operations.push(json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
                operations.push(match metadata.annotations {
                    Some(_) => json!({"op": "add", "path": path, "value": freeze.to_string()}),
                    None => {
                        json!({"op": "add", "path": "/metadata/annotations", "value": {FREEZE_ANNOTATION: freeze.to_string()}})
                    }
                });
            }
        }
        Value::Array(operations)
    }

    /// What was done, as kubectl says it.
    pub fn told(&self, document: &PoolDocument, is_dry_run: bool) -> String {
        let dry_run = if is_dry_run { " (server dry run)" } else { "" };
        let condition = match self {
            Self::Pause | Self::Freeze(_) => "Paused",
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
    pub fn told_before(&self, document: &PoolDocument) -> String {
        let standing = match self {
            Self::Pause => "is paused already",
            Self::Freeze(_) => "is frozen so already",
            Self::Resume => "is neither paused nor frozen",
        };
        format!("connectionpool.sluice.dev/{} {standing}: nothing was changed", document.name())
    }
}

/// Whether a pool is paused and frozen as it was when it was read before.
pub fn is_unmoved(before: &PoolDocument, now: &PoolDocument) -> bool {
    let of = |document: &PoolDocument| {
        (document.pool.metadata.uid.clone(), document.pool.spec.paused, annotation(document).map(str::to_owned))
    };
    of(before) == of(now)
}

/// The freeze that is written on a pool, over or not.
fn annotation(document: &PoolDocument) -> Option<&str> {
    document.pool.metadata.annotations.as_ref()?.get(FREEZE_ANNOTATION).map(String::as_str)
}

/// The freeze that stands beside `spec.paused`, in words.
fn standing(document: &PoolDocument, now: Timestamp) -> Option<String> {
    let mut pool = document.pool.clone();
    pool.spec.paused = false;
    Frozen::of(&pool, now.as_second()).map(|frozen| frozen.words())
}

/// Who applies `spec.paused` by server-side apply, and so takes it back.
fn applied_by(raw: &Value) -> Option<&str> {
    let managers = raw["metadata"]["managedFields"].as_array()?;
    let applies =
        |entry: &&Value| entry["operation"] == "Apply" && entry["fieldsV1"]["f:spec"].get("f:paused").is_some();
    managers.iter().find(applies)?["manager"].as_str()
}
