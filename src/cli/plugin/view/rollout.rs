//! `rollout`: how far a change of the settings has come, and which revisions there are.

use k8s_openapi::{api::apps::v1::ControllerRevision, jiff::Timestamp};
use serde::Serialize;
use serde_json::Value;

use super::{
    document::{PoolDocument, said},
    in_course::{NextCommand, RolloutInCourse},
    table::{TextTable, cell},
    time::age,
};
use crate::{
    api::{ConnectionPoolStatus, PostPromotionStatus, RevisionStatus, RolloutStatus, conditions, reasons},
    contract::{
        Settings,
        names::{CAUSE_ANNOTATION, CHANGED_BY_ANNOTATION},
    },
    decide::rollout::settings_hash,
};

/// Settings of a revision that are named where it differs from the one before.
const MOST_CHANGES: usize = 6;
/// Longest value of a setting that is shown in a table, in characters.
const LONGEST_VALUE: usize = 60;

/// How far a rollout has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolloutStanding {
    /// Every pod runs what it is to run: the newest revision, or the one that somebody wants in its place.
    Complete(String),
    /// It goes on, or waits for somebody.
    UnderWay(String),
    /// It does not get through.
    Stuck(String),
}

impl RolloutStanding {
    /// How far the rollout of a pool has come.
    pub fn of(document: &PoolDocument, now: Timestamp) -> Self {
        let key = document.key();
        if !document.is_observed() {
            return Self::UnderWay(format!("{key}: the operator has not looked at the spec of now yet"));
        }
        let accepted = document.condition(conditions::ACCEPTED).filter(|accepted| accepted.status == "False");
        if let Some(accepted) = accepted {
            let words = format!("{key}: nothing is rolled out: {}: {}", said(accepted, now), accepted.message);
            return Self::Stuck(words);
        }
        let Some(progressing) = document.condition(conditions::PROGRESSING) else {
            return Self::UnderWay(format!("{key}: no revision yet"));
        };
        let words = format!("{key}: {}: {}", said(progressing, now), progressing.message);
        match (progressing.status.as_str(), progressing.reason.as_str()) {
            // what somebody wants in place of what the spec says is through too: it stays so
            ("True", reasons::ROLLOUT_COMPLETE | reasons::ROLLOUT_UNDONE) => Self::Complete(words),
            ("False", _) => Self::Stuck(words),
            _ => Self::UnderWay(words),
        }
    }

    /// The same as a document.
    pub fn answer(&self, document: &PoolDocument, now: Timestamp) -> RolloutAnswer {
        let (key, status) = (document.key(), document.status());
        let progressing = document.condition(conditions::PROGRESSING);
        RolloutAnswer {
            namespace: key.namespace,
            name: key.name,
            standing: match self {
                Self::Complete(_) => "Complete",
                Self::UnderWay(_) => "UnderWay",
                Self::Stuck(_) => "Stuck",
            },
            words: self.words().to_owned(),
            reason: progressing.map(|progressing| progressing.reason.clone()),
            since: progressing.map(|progressing| progressing.last_transition_time.0),
            revision: status.revision,
            rollout: status.rollout,
            next: RolloutInCourse::of(document, now).map(|rollout| rollout.next).unwrap_or_default(),
        }
    }

    /// The same in words.
    pub fn words(&self) -> &str {
        match self {
            Self::Complete(words) | Self::UnderWay(words) | Self::Stuck(words) => words,
        }
    }
}

/// How far a rollout has come: what `rollout status -o json` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutAnswer {
    /// Namespace of the pool.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `Complete`, `UnderWay` or `Stuck`.
    pub standing: &'static str,
    /// In a sentence.
    pub words: String,
    /// Reason of `Progressing`; none before there is one.
    pub reason: Option<String>,
    /// Since when `Progressing` has its status.
    pub since: Option<Timestamp>,
    /// Revisions, as the operator wrote them last.
    pub revision: Option<RevisionStatus>,
    /// Step, weights, failure and requests, as the operator wrote them last.
    pub rollout: Option<RolloutStatus>,
    /// What somebody may do about it.
    pub next: Vec<NextCommand>,
}

/// A revision in the history of a pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionEntry {
    /// Its number.
    pub revision: i64,
    /// Whether new pods get it.
    pub is_stable: bool,
    /// Whether it is what all pods are to run.
    pub is_updated: bool,
    /// Since when it is promoted, where it is judged for a while more.
    pub judged_since: Option<Timestamp>,
    /// Whether it failed, and is not tried again by itself.
    pub has_failed: bool,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Who changed the pool so, as the API server calls it.
    pub changed_by: Option<String>,
    /// Why there is one.
    pub cause: Option<String>,
    /// How it differs from the one before, by the paths of the settings; none for the first that is kept.
    pub changes: Option<Vec<SettingChange>>,
    /// What it says.
    pub settings: Value,
}

/// A setting that a revision has changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SettingChange {
    /// Its path.
    pub path: String,
    /// What it was; null where it was not set.
    pub from: Value,
    /// What it is; null where it is not set any more.
    pub to: Value,
}

/// The analysis after a promotion that goes on.
pub(super) fn judged_after_promotion(status: &ConnectionPoolStatus) -> Option<&PostPromotionStatus> {
    let promoted = status.rollout.as_ref()?.post_promotion.as_ref();
    promoted.filter(|promoted| promoted.outcome.is_none())
}

/// The revisions of a pool, the oldest first.
pub fn history(document: &PoolDocument, revisions: &[ControllerRevision]) -> Vec<RevisionEntry> {
    let uid = document.pool.metadata.uid.as_deref();
    let own = |revision: &&ControllerRevision| {
        let mut owners = revision.metadata.owner_references.iter().flatten();
        owners.any(|owner| owner.controller == Some(true) && Some(owner.uid.as_str()) == uid)
    };
    let mut own: Vec<&ControllerRevision> = revisions.iter().filter(own).collect();
    own.sort_by_key(|revision| revision.revision);
    let status = document.status();
    let judged = judged_after_promotion(&status).map(|promoted| (promoted.revision, promoted.started_at.0));
    let status = status.revision.unwrap_or_default();
    let is = |number: i64, wanted: u64| u64::try_from(number).is_ok_and(|number| number == wanted);
    let mut entries: Vec<RevisionEntry> = Vec::new();
    for revision in own {
        let settings = revision.data.as_ref().map_or(Value::Null, |data| data.0["settings"].clone());
        let changes = entries.last().map(|before| differences(&before.settings, &settings));
        let annotation = |name: &str| revision.metadata.annotations.as_ref()?.get(name).cloned();
        entries.push(RevisionEntry {
            revision: revision.revision,
            is_stable: is(revision.revision, status.stable),
            is_updated: is(revision.revision, status.updated),
            judged_since: judged.filter(|(judged, _)| is(revision.revision, *judged)).map(|(_, since)| since),
            has_failed: hash_of(&settings).is_some_and(|hash| status.failed_hashes.contains(&hash)),
            created: revision.metadata.creation_timestamp.as_ref().map(|created| created.0),
            changed_by: annotation(CHANGED_BY_ANNOTATION),
            cause: annotation(CAUSE_ANNOTATION),
            changes,
            settings,
        });
    }
    entries
}

/// The hash by which the status calls a revision; none where another version wrote its settings.
fn hash_of(settings: &Value) -> Option<String> {
    serde_json::from_value::<Settings>(settings.clone()).ok().map(|settings| settings_hash(&settings))
}

/// The settings that all pods are to run, class and defaults merged in; none before the first revision, and where another version wrote
/// them.
pub fn in_force(entries: &[RevisionEntry]) -> Option<Settings> {
    let updated = entries.iter().find(|entry| entry.is_updated)?;
    serde_json::from_value(updated.settings.clone()).ok()
}

/// The settings that differ, in the order of their paths.
fn differences(before: &Value, after: &Value) -> Vec<SettingChange> {
    fn walk(path: &str, before: &Value, after: &Value, found: &mut Vec<SettingChange>) {
        match (before.as_object(), after.as_object()) {
            (Some(old), Some(new)) => {
                let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for name in names {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(&path, &before[name.as_str()], &after[name.as_str()], found);
                }
            }
            _ if before != after => {
                found.push(SettingChange { path: path.to_owned(), from: before.clone(), to: after.clone() });
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk("", before, after, &mut found);
    found
}

impl RevisionEntry {
    fn state(&self) -> &'static str {
        match (self.is_stable, self.has_failed, self.is_updated) {
            (true, ..) if self.judged_since.is_some() => "stable, judged",
            (true, ..) => "stable",
            (false, true, _) => "failed",
            (false, false, true) => "updated",
            (false, false, false) => "",
        }
    }

    fn changed(&self) -> String {
        let Some(changes) = &self.changes else { return "the oldest that is kept".to_owned() };
        let (named, more) = changes.split_at(changes.len().min(MOST_CHANGES));
        let mut words: Vec<String> = named.iter().map(SettingChange::words).collect();
        if !more.is_empty() {
            words.push(format!("{} more", more.len()));
        }
        if words.is_empty() { "nothing".to_owned() } else { words.join("; ") }
    }
}

impl SettingChange {
    fn words(&self) -> String {
        format!("{} {} -> {}", self.path, shown(&self.from), shown(&self.to))
    }
}

/// A value of a setting, shortened.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => return "default".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    shortened(&text)
}

/// A text in one line, as much of it as a table has room for.
fn shortened(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= LONGEST_VALUE {
        return text;
    }
    text.chars().take(LONGEST_VALUE - 3).chain("...".chars()).collect()
}

/// The table of the history.
pub fn table(entries: &[RevisionEntry], now: Timestamp) -> TextTable {
    let mut table = TextTable::new(&["REVISION", "STATE", "AGE", "BY", "CAUSE", "CHANGED"]);
    for entry in entries {
        let created = cell(entry.created.map(|created| age(created, now)));
        table.push(vec![
            entry.revision.to_string(),
            entry.state().to_owned(),
            created,
            cell(entry.changed_by.as_ref()),
            cell(entry.cause.as_deref().map(shortened)),
            entry.changed(),
        ]);
    }
    table
}
