//! What people ask of a rollout, as the annotation `sluice.dev/rollout` of a pool says it: a verb, the number of the revision that
//! is meant, and whatever tells one request from the next, as `promote 7 2026-11-30T18:00:00Z`.
//!
//! The number is a guard: who promotes 7 does not mean the 8 that has come meanwhile.

use thiserror::Error;

/// Longest annotation that is read, in bytes.
pub const LONGEST_COMMAND_BYTES: usize = 128;

/// What is asked for, in the words of Argo Rollouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RolloutVerb {
    /// Ends the pause, or the analysis, that the revision waits in.
    Promote,
    /// Ends all of them: the rest of the pods follow, a few at a time.
    PromoteFull,
    /// Takes the revision back from every pod, and remembers it as failed.
    Abort,
    /// Tries a revision again that failed or was undone.
    Retry,
    /// Rolls an earlier revision out, until the spec changes.
    Undo,
}

impl RolloutVerb {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Promote, Self::PromoteFull, Self::Abort, Self::Retry, Self::Undo];

    /// As the annotation says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::PromoteFull => "promote-full",
            Self::Abort => "abort",
            Self::Retry => "retry",
            Self::Undo => "undo",
        }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RolloutCommand {
    /// What is asked for.
    pub verb: RolloutVerb,
    /// Number of the revision that it is asked of.
    pub revision: u64,
}

/// Why an annotation is no request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// The first word is none of the verbs.
    #[error(
        "{word:?} is none of promote, promote-full, abort, retry, undo; write a verb and the number of a revision, as: promote 7"
    )]
    UnknownVerb {
        /// That word.
        word: String,
    },
    /// The second word is no number.
    #[error("{verb} needs the number of a revision behind it, as: {verb} 7; status.revision has the numbers")]
    NoRevision {
        /// The verb.
        verb: &'static str,
    },
    /// It is longer than any request.
    #[error(
        "it is longer than {LONGEST_COMMAND_BYTES} bytes; write a verb and the number of a revision, as: promote 7"
    )]
    TooLong,
}

impl RolloutCommand {
    /// Reads an annotation.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn parse(text: &str) -> Result<Self, CommandError> {
        if text.len() > LONGEST_COMMAND_BYTES {
            return Err(CommandError::TooLong);
        }
        let mut words = text.split_whitespace();
        let word = words.next().unwrap_or_default();
        let verb = RolloutVerb::ALL.into_iter().find(|verb| verb.as_str() == word);
        let verb = verb.ok_or_else(|| CommandError::UnknownVerb { word: word.to_owned() })?;
        let revision = words.next().and_then(|number| number.parse().ok());
        Ok(Self { verb, revision: revision.ok_or(CommandError::NoRevision { verb: verb.as_str() })? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_verb_and_a_number_and_what_follows_only_tells_it_from_others() {
        for verb in RolloutVerb::ALL {
            let wanted = Ok(RolloutCommand { verb, revision: 7 });
            assert_eq!(RolloutCommand::parse(&format!("{} 7", verb.as_str())), wanted);
            assert_eq!(RolloutCommand::parse(&format!(" {}\t7 2026-11-30T18:00:00Z by anna", verb.as_str())), wanted);
        }
    }

    #[test]
    fn what_is_no_request_says_what_one_is() {
        for (text, said) in [
            ("", "\"\" is none of promote"),
            ("pause 7", "\"pause\" is none of"),
            ("Promote 7", "\"Promote\" is none of"),
            ("promote", "promote needs the number"),
            ("abort seven", "abort needs the number"),
            ("undo -1", "undo needs the number"),
            ("undo 99999999999999999999999", "undo needs the number"),
            (&"promote 7 ".repeat(13), "longer than 128 bytes"),
        ] {
            let error = RolloutCommand::parse(text).expect_err(text).to_string();
            assert!(error.contains(said) && error.contains("as: "), "{text}: {error}");
        }
    }
}
