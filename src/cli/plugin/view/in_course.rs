//! A rollout that is not through: what the operator says of it, and the commands by which somebody lets it go on or ends it.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{
    document::{PoolDocument, said},
    recommend::patch_command,
    rollout_request::RolloutRequest,
};
use crate::{
    api::{
        conditions::PROGRESSING,
        reasons::{
            ANALYSING, ANALYSIS_FAILED, ANALYSIS_INCONCLUSIVE, BLUE_GREEN_PAUSE, NOT_ACCEPTED,
            POST_PROMOTION_ANALYSING, PROGRESS_DEADLINE_EXCEEDED, ROLLING_OUT, ROLLOUT_ABORTED, ROLLOUT_COMPLETE,
            ROLLOUT_PAUSED, ROLLOUT_UNDONE,
        },
    },
    decide::{freeze::Frozen, rollout::RolloutVerb},
};

/// A rollout that is not through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutInCourse {
    /// The condition `Progressing` with its message.
    pub words: String,
    /// What somebody may do about it: only what would not be refused as things stand.
    pub next: Vec<NextCommand>,
}

/// A command, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NextCommand {
    /// What it is for: `to take it back`.
    pub purpose: &'static str,
    /// The command.
    pub command: String,
}

impl RolloutInCourse {
    /// The rollout of a pool; none where every pod runs what it is to run, and where nothing can be said of it yet.
    pub fn of(document: &PoolDocument, now: Timestamp) -> Option<Self> {
        let progressing = document.condition(PROGRESSING)?;
        let reason = progressing.reason.as_str();
        if [ROLLOUT_COMPLETE, NOT_ACCEPTED].contains(&reason) {
            return None;
        }
        let words = format!("{}: {}", said(progressing, now), progressing.message);
        Some(Self { words, next: next(document, reason, now) })
    }

    /// The words, and each command in a line below them.
    pub fn lines(&self) -> Vec<String> {
        let next = self.next.iter().map(|next| format!("  {}: {}", next.purpose, next.command));
        [self.words.clone()].into_iter().chain(next).collect()
    }
}

fn next(document: &PoolDocument, reason: &str, now: Timestamp) -> Vec<NextCommand> {
    let (name, namespace) = (document.name(), document.in_namespace());
    let asked = |purpose, verb: RolloutVerb| {
        // what would be refused is not offered
        RolloutRequest::of(verb, None, document, Ok(&[]), (None, now)).ok()?;
        let command = format!("kubectl sluice rollout {} {name} {namespace}", verb.as_str());
        Some(NextCommand { purpose, command })
    };
    let back = || asked("to take it back", RolloutVerb::Abort);
    let of_reason = match reason {
        ROLLOUT_PAUSED => vec![asked("to let it go on", RolloutVerb::Promote), back()],
        ANALYSING => vec![asked("to let it go on before that is known", RolloutVerb::Promote), back()],
        POST_PROMOTION_ANALYSING => vec![asked("to judge it no longer", RolloutVerb::Promote), back()],
        BLUE_GREEN_PAUSE => {
            let command = patch_command(document, r#"{"rollout":{"blueGreen":{"autoPromotionEnabled":true}}}"#);
            vec![Some(NextCommand { purpose: "to promote it", command }), back()]
        }
        ROLLING_OUT => vec![back()],
        ROLLOUT_UNDONE => vec![asked("to roll out what the spec says", RolloutVerb::Retry)],
        PROGRESS_DEADLINE_EXCEEDED | ROLLOUT_ABORTED | ANALYSIS_FAILED | ANALYSIS_INCONCLUSIVE => {
            vec![asked("to try it again", RolloutVerb::Retry)]
        }
        _ => Vec::new(),
    };
    let frozen = Frozen::of(&document.pool, now.as_second()).map(|_| NextCommand {
        purpose: "it is paused; to resume it",
        command: format!("kubectl sluice rollout resume {name} {namespace}"),
    });
    frozen.into_iter().chain(of_reason.into_iter().flatten()).collect()
}
