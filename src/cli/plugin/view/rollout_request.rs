//! `rollout promote`, `abort`, `retry` and `undo`: what would be asked of the operator, and what became of it.
//!
//! A request is the annotation `sluice.dev/rollout`. What cannot be is refused here already, in the words of the pool's status; who decides
//! is the operator, which answers each request in `status.rollout`.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    NotRead,
    document::PoolDocument,
    rollout::{RevisionEntry, judged_after_promotion},
};
use crate::{
    api::{ROLLOUT_ANNOTATION, RolloutStatus, conditions},
    decide::rollout::{COMMAND_DONE, LONGEST_COMMAND_BYTES, RolloutCommand, RolloutVerb},
};

/// What somebody asks of a rollout, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutRequest {
    /// What is asked, and of which revision.
    pub command: RolloutCommand,
    /// The annotation: the command, when it was asked, and by whom.
    pub text: String,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The operator has not answered it yet.
    Open,
    /// It was done.
    Done,
    /// It was refused: why.
    Refused(String),
    /// Another one stands in its place: which. The operator may never have seen this one.
    Replaced(String),
}

impl RolloutRequest {
    /// A request that can be as things stand. `to`: the revision to go back to, for `undo`; none: the one before.
    ///
    /// # Errors
    /// Why it cannot be, and what to do.
    pub fn of(
        verb: RolloutVerb,
        to: Option<u64>,
        document: &PoolDocument,
        revisions: Result<&[RevisionEntry], &NotRead>,
        (who, now): (Option<&str>, Timestamp),
    ) -> Result<Self, String> {
        let standing = Standing::of(document)?;
        let revision = match verb {
            RolloutVerb::Promote | RolloutVerb::PromoteFull | RolloutVerb::Abort => standing.in_course()?,
            RolloutVerb::Retry => standing.to_retry()?,
            RolloutVerb::Undo => standing.to_undo(to, revisions)?,
        };
        let command = RolloutCommand { verb, revision };
        // what follows the number tells one request from the next
        let mut text = format!("{} {revision} {now:.3}", verb.as_str());
        if let Some(who) = who {
            let _ = write!(text, " by {}", who.split_whitespace().collect::<Vec<_>>().join("_"));
        }
        text.truncate(text.floor_char_boundary(LONGEST_COMMAND_BYTES));
        Ok(Self { command, text })
    }

    /// The same request as it stands, by whomever it was made.
    #[must_use]
    pub fn made(&self, document: &PoolDocument) -> Option<Self> {
        let text = annotation(document).filter(|text| RolloutCommand::parse(text) == Ok(self.command))?;
        Some(Self { command: self.command, text: text.to_owned() })
    }

    /// The same request where it stands and has not been answered: it is waited for, and not made twice.
    #[must_use]
    pub fn open(&self, document: &PoolDocument) -> Option<Self> {
        self.made(document).filter(|made| made.outcome(document) == RequestOutcome::Open)
    }

    /// What would change, before anybody is asked.
    pub fn plan(&self, document: &PoolDocument) -> String {
        let RolloutCommand { verb, revision } = self.command;
        let status = document.status();
        let way_back = judged_after_promotion(&status).map(|promoted| promoted.from);
        let stable = way_back.or(status.revision.map(|revisions| revisions.stable)).unwrap_or_default();
        let effect = match verb {
            RolloutVerb::Promote | RolloutVerb::PromoteFull if way_back.is_some() => {
                format!("revision {revision}, which all pods run, is judged no longer, and stays")
            }
            RolloutVerb::Promote => format!("revision {revision} goes on from the pause that it waits in"),
            RolloutVerb::PromoteFull => {
                format!("revision {revision} goes to all pods, without further pauses, maxUnavailable at a time")
            }
            RolloutVerb::Abort => format!(
                "revision {revision} is taken back from every pod at once, which then runs revision {stable}, and is not tried again until \
                 the settings change"
            ),
            RolloutVerb::Retry => format!("revision {revision}, which is what the spec says, is rolled out again"),
            RolloutVerb::Undo => format!(
                "every pod goes to revision {revision}, without steps, maxUnavailable at a time; it stays until the spec changes"
            ),
        };
        let open = unanswered(document).map_or_else(String::new, |text| {
            format!("\nit takes the place of a request that the operator has not answered yet: {text}")
        });
        format!("{}: {}: {effect}{open}", document.key(), self.words())
    }

    /// The change, of this very object as it was read: whoever was faster is not overwritten.
    pub fn operations(&self, document: &PoolDocument) -> Value {
        let metadata = &document.pool.metadata;
        let path = format!("/metadata/annotations/{}", ROLLOUT_ANNOTATION.replace('/', "~1"));
        let write = match metadata.annotations {
            Some(_) => json!({"op": "add", "path": path, "value": self.text}),
            None => json!({"op": "add", "path": "/metadata/annotations", "value": {ROLLOUT_ANNOTATION: self.text}}),
        };
        json!([
            {"op": "test", "path": "/metadata/uid", "value": metadata.uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata.resource_version},
            write,
        ])
    }

    /// What became of it.
    pub fn outcome(&self, document: &PoolDocument) -> RequestOutcome {
        let RolloutStatus { last_command, last_command_outcome, .. } = document.status().rollout.unwrap_or_default();
        match annotation(document) {
            _ if last_command.as_ref() == Some(&self.text) => match last_command_outcome.as_deref() {
                None => RequestOutcome::Open,
                Some(COMMAND_DONE) => RequestOutcome::Done,
                Some(why) => RequestOutcome::Refused(why.to_owned()),
            },
            Some(other) if other != self.text => RequestOutcome::Replaced(other.to_owned()),
            _ => RequestOutcome::Open,
        }
    }

    /// That it was asked, as kubectl says what was done.
    pub fn told(&self, document: &PoolDocument, is_dry_run: bool) -> String {
        let dry_run = if is_dry_run { " (server dry run)" } else { "" };
        format!("connectionpool.sluice.dev/{} asked: {}{dry_run}", document.name(), self.words())
    }

    /// What became of it, in words, and what to do next.
    pub fn told_outcome(&self, outcome: &RequestOutcome, document: &PoolDocument) -> String {
        let (key, words) = (document.key(), self.words());
        let in_namespace = document.in_namespace();
        match outcome {
            RequestOutcome::Open => format!(
                "{key}: {words}: the operator has not answered yet; it will when it looks at the pool: kubectl sluice check says whether one runs"
            ),
            RequestOutcome::Done => format!(
                "{key}: {words}: done; how far it comes: kubectl sluice rollout status {} {in_namespace}",
                document.name()
            ),
            RequestOutcome::Refused(why) => format!("{key}: {words}: the operator refused it: {why}"),
            RequestOutcome::Replaced(other) => format!(
                "{key}: {words}: somebody asked for something else before the operator had answered: {other}; whether this was done before \
                 it, kubectl sluice why {} {in_namespace} may tell",
                document.name()
            ),
        }
    }

    /// `promote 8`.
    pub fn words(&self) -> String {
        format!("{} {}", self.command.verb.as_str(), self.command.revision)
    }
}

/// Whether a pool stands as it did when it was read before, as far as a request goes: another one may be meant for what has changed.
pub fn is_unmoved(before: &PoolDocument, now: &PoolDocument) -> bool {
    let goal = |document: &PoolDocument| document.status().revision.map(|revision| (revision.updated, revision.stable));
    before.pool.metadata.uid == now.pool.metadata.uid
        && annotation(before) == annotation(now)
        && before.pool.metadata.generation == now.pool.metadata.generation
        && goal(before) == goal(now)
}

/// The request that stands.
fn annotation(document: &PoolDocument) -> Option<&str> {
    document.pool.metadata.annotations.as_ref()?.get(ROLLOUT_ANNOTATION).map(String::as_str)
}

/// The request that stands and that the operator has not answered.
fn unanswered(document: &PoolDocument) -> Option<&str> {
    let answered = document.status().rollout.and_then(|rollout| rollout.last_command);
    annotation(document).filter(|text| answered.as_deref() != Some(text))
}

/// What the status says of the rollout of a pool.
struct Standing {
    key: String,
    /// The verb that tries again, with the pool.
    retry: String,
    stable: u64,
    updated: u64,
    /// What the spec says.
    wanted: u64,
    is_in_course: bool,
    /// What it goes back to where it was promoted and is judged for a while more.
    judged_from: Option<u64>,
    has_failed: bool,
    is_undone: bool,
}

impl Standing {
    fn of(document: &PoolDocument) -> Result<Self, String> {
        let key = document.key().to_string();
        if let Some(accepted) = document.condition(conditions::ACCEPTED).filter(|accepted| accepted.status == "False") {
            return Err(format!(
                "{key}: nothing is rolled out while the spec is not accepted: {}: {}",
                accepted.reason, accepted.message
            ));
        }
        let status = document.status();
        let judged_from = judged_after_promotion(&status).map(|promoted| promoted.from);
        let Some(revision) = status.revision.filter(|revision| revision.updated > 0) else {
            return Err(format!("{key} has no revision yet: see kubectl sluice check, whether an operator runs"));
        };
        if !document.is_observed() {
            return Err(format!(
                "{key}: the operator has not looked at the spec of now yet, so which revision is meant is not known: ask again in a moment"
            ));
        }
        let rollout = status.rollout.unwrap_or_default();
        let failed_hash = revision.updated_hash.as_ref().filter(|hash| revision.failed_hashes.contains(hash));
        Ok(Self {
            key,
            retry: format!("kubectl sluice rollout retry {} {}", document.name(), document.in_namespace()),
            stable: revision.stable,
            updated: revision.updated,
            wanted: rollout.undone.as_ref().map_or(revision.updated, |undone| undone.spec),
            is_in_course: rollout.current_step_index.is_some(),
            judged_from,
            has_failed: failed_hash.is_some(),
            is_undone: rollout.undone.is_some(),
        })
    }

    /// The revision that is being rolled out, or was promoted and is judged for a while more.
    fn in_course(&self) -> Result<u64, String> {
        let Self { key, retry, stable, updated, .. } = self;
        if self.has_failed {
            return Err(format!(
                "{key}: revision {updated} has failed and is not being rolled out; to try it again: {retry}"
            ));
        }
        if !self.is_in_course && self.judged_from.is_none() {
            return Err(if stable == updated {
                format!("{key}: nothing is being rolled out: revision {updated} is the stable one")
            } else {
                format!("{key}: revision {updated} is not being rolled out by steps: see kubectl sluice rollout status")
            });
        }
        Ok(*updated)
    }

    fn to_retry(&self) -> Result<u64, String> {
        if self.has_failed || self.is_undone {
            return Ok(self.wanted);
        }
        Err(format!(
            "{}: revision {} has neither failed nor been undone: there is nothing to retry",
            self.key, self.wanted
        ))
    }

    fn to_undo(&self, to: Option<u64>, revisions: Result<&[RevisionEntry], &NotRead>) -> Result<u64, String> {
        let Self { key, retry, updated, wanted, .. } = self;
        let Some(to) = to else { return self.before(revisions) };
        if to == *updated && !self.has_failed {
            return Err(format!("{key}: revision {to} is what is rolled out already"));
        }
        if to == *wanted {
            return Err(format!("{key}: revision {to} is what the spec says; to try it again: {retry}"));
        }
        // whom rights keep from looking the operator answers
        let Ok(revisions) = revisions else { return Ok(to) };
        match find(revisions, to) {
            None => Err(format!(
                "{key}: there is no revision {to}; kept are {}; how many are says spec.rollout.revisionHistoryLimit",
                numbers(revisions)
            )),
            Some(entry) if entry.has_failed => {
                Err(format!("{key}: revision {to} has failed before; name one that has not"))
            }
            Some(_) => Ok(to),
        }
    }

    /// The revision to go back to where none is named: the stable one while another is rolled out, else the newest one before it that has
    /// not failed.
    fn before(&self, revisions: Result<&[RevisionEntry], &NotRead>) -> Result<u64, String> {
        let Self { key, retry, updated, stable, .. } = self;
        if self.has_failed {
            return Err(format!(
                "{key}: revision {updated} has failed, and what took it goes back to revision {stable} by itself; to go to another one name it"
            ));
        }
        if self.is_undone {
            return Err(format!(
                "{key}: it was undone before, to revision {updated}; to go further back name the revision, to what the spec says: \
                 {retry}"
            ));
        }
        if self.is_in_course {
            return Ok(*stable);
        }
        let revisions = revisions.map_err(|NotRead { words, .. }| {
            format!("{key}: which revision was before {updated} is not known: {words}; name it: kubectl sluice rollout undo POOL NUMBER")
        })?;
        let before = revisions
            .iter()
            .rev()
            .find(|entry| u64::try_from(entry.revision).is_ok_and(|number| number < *updated) && !entry.has_failed);
        let before = before.and_then(|entry| u64::try_from(entry.revision).ok());
        before.ok_or_else(|| {
            format!("{key}: there is no revision before {updated} to go back to; kept are {}", numbers(revisions))
        })
    }
}

fn find(revisions: &[RevisionEntry], number: u64) -> Option<&RevisionEntry> {
    revisions.iter().find(|entry| u64::try_from(entry.revision) == Ok(number))
}

fn numbers(revisions: &[RevisionEntry]) -> String {
    revisions.iter().map(|entry| entry.revision.to_string()).collect::<Vec<_>>().join(", ")
}
