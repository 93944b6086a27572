//! PURE: what the pooler logged lately, and for how long it is told.
//!
//! A log says what went wrong and never that it is over. What keeps the pooler from the database is over with the next login that
//! works; attempts are made only while somebody needs a connection, so it is forgotten too when none has failed for a while. What
//! keeps clients from the pooler is told for some minutes: the operator asks an agent without troubles once a minute.

use std::collections::BTreeMap;

use crate::{
    agent::decide::{machine::Millis, slot_name::SlotName},
    contract::{Between, PoolerError, TroubleSeen},
    pooler::pgbouncer::log::Logged,
};

/// Attempts of the pooler that have failed for so long are told where a single failure says nothing.
const LASTING: Millis = 3000;
/// After so long without another line nothing is known of the database any more.
const SERVER_FRESH: Millis = 60_000;
/// For so long it is told that clients were turned away.
const CLIENT_FRESH: Millis = 300_000;
/// Sentences of the database whose meaning is kept.
const MOST_MEANINGS: usize = 16;

/// An error, and who met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Whose process logged it; None: the agent met it itself.
    pub from: Option<SlotName>,
    /// The error.
    pub logged: Logged,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Of those that follow each other.
    first: Millis,
    last: Millis,
    lines: u64,
    words: String,
    is_over: bool,
}

/// What was logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    by_class: BTreeMap<PoolerError, Seen>,
    /// What a login of our own found sentences to mean.
    meanings: Vec<(String, PoolerError)>,
    /// Whether a refusal was heard since the last reading.
    unread: bool,
}

impl Troubles {
    /// What a line tells, as far as it is known by now.
    pub fn meaning(&self, logged: &Logged) -> PoolerError {
        let known = || self.meanings.iter().find(|(words, _)| *words == logged.words).map(|(_, meaning)| *meaning);
        match logged.error {
            PoolerError::ServerRefused => known().unwrap_or(PoolerError::ServerRefused),
            error => error,
        }
    }

    /// A line of this class.
    pub fn logged(&mut self, now: Millis, error: PoolerError, words: &str) {
        let fresh = fresh(error);
        let seen = self.by_class.entry(error).or_insert_with(|| Seen {
            first: now,
            last: now,
            lines: 0,
            words: String::new(),
            is_over: false,
        });
        if seen.is_over || now.saturating_sub(seen.last) > fresh {
            seen.first = now;
        }
        (seen.last, seen.lines, seen.is_over) = (now, seen.lines.saturating_add(1), false);
        if !words.is_empty() {
            words.clone_into(&mut seen.words);
        }
        self.unread |= error.between() == Between::PoolerAndDatabase;
    }

    /// The database said the same to a login of our own, with the code of this class: what it means from now on.
    pub fn learn(&mut self, said: &str, meaning: PoolerError) {
        let Some(seen) = self.by_class.get_mut(&PoolerError::ServerRefused) else { return };
        // the severity, which comes before, may be of two words
        if said.is_empty() || !seen.words.ends_with(said) {
            return;
        }
        seen.is_over = true;
        let words = seen.words.clone();
        if self.meanings.iter().all(|(known, _)| *known != words) {
            if self.meanings.len() >= MOST_MEANINGS {
                self.meanings.remove(0);
            }
            self.meanings.push((words, meaning));
        }
    }

    /// A reading showed whether the pooler has logged in to the database since the one before. In the first one after a refusal
    /// that may have been earlier than the refusal.
    pub fn read(&mut self, logged_in: bool) {
        if !std::mem::take(&mut self.unread) && logged_in {
            let of_database = |error: &PoolerError| error.between() == Between::PoolerAndDatabase;
            for (_, seen) in self.by_class.iter_mut().filter(|(error, _)| of_database(error)) {
                seen.is_over = true;
            }
        }
    }

    /// What was said last of this class.
    pub fn words(&self, error: PoolerError) -> &str {
        self.by_class.get(&error).map_or("", |seen| seen.words.as_str())
    }

    /// What is told now.
    pub fn told(&self, now: Millis) -> Vec<TroubleSeen> {
        let told = self.by_class.iter().filter(|(error, seen)| {
            let passes = matches!(
                error,
                PoolerError::ServerUnreachable
                    | PoolerError::DnsFailed
                    | PoolerError::ServerNotReady
                    | PoolerError::ServerTlsFailed
            );
            !seen.is_over
                && error.between() != Between::Nobody
                && now.saturating_sub(seen.last) <= fresh(**error)
                && (!passes || seen.last.saturating_sub(seen.first) >= LASTING)
        });
        told.map(|(error, seen)| TroubleSeen { reason: *error, lines: seen.lines, words: seen.words.clone() }).collect()
    }
}

fn fresh(error: PoolerError) -> Millis {
    if error.between() == Between::PoolerAndDatabase { SERVER_FRESH } else { CLIENT_FRESH }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(troubles: &Troubles, now: Millis) -> Vec<PoolerError> {
        troubles.told(now).into_iter().map(|trouble| trouble.reason).collect()
    }

    #[test]
    fn what_the_database_refuses_is_told_until_a_login_works_and_a_connection_that_fails_once_is_not() {
        let mut troubles = Troubles::default();
        troubles.logged(1000, PoolerError::ServerLoginRefused, "no such role");
        troubles.logged(1000, PoolerError::ServerUnreachable, "connect failed");
        assert_eq!(reasons(&troubles, 1100), [PoolerError::ServerLoginRefused]);
        troubles.logged(4000, PoolerError::ServerUnreachable, "connect failed");
        assert_eq!(reasons(&troubles, 4100), [PoolerError::ServerLoginRefused, PoolerError::ServerUnreachable]);
        troubles.read(true);
        assert_eq!(reasons(&troubles, 4200).len(), 2, "that login may have been earlier");
        troubles.read(true);
        assert_eq!(reasons(&troubles, 4300), []);
        troubles.logged(5000, PoolerError::ServerUnreachable, "connect failed");
        assert_eq!(reasons(&troubles, 5000), [], "begins anew");
        assert_eq!(troubles.words(PoolerError::ServerUnreachable), "connect failed");
    }

    #[test]
    fn clients_that_were_turned_away_are_told_for_minutes_and_what_is_nobodys_trouble_never() {
        let mut troubles = Troubles::default();
        troubles.logged(0, PoolerError::UnsupportedStartupParameter, "search_path");
        troubles.logged(0, PoolerError::Other, "");
        troubles.read(false);
        troubles.read(true);
        let told = troubles.told(CLIENT_FRESH);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].lines, told[0].words.as_str()), (1, "search_path"));
        assert_eq!(troubles.told(CLIENT_FRESH + 1), []);
    }

    #[test]
    fn a_sentence_means_what_a_login_of_our_own_was_told_with_it() {
        let mut troubles = Troubles::default();
        let words = "(FATAL) zu viele Verbindungen";
        let logged = Logged { words: words.to_owned(), ..Logged::from(PoolerError::ServerRefused) };
        troubles.logged(0, troubles.meaning(&logged), words);
        troubles.learn("something else", PoolerError::TooManyServerConnections);
        assert_eq!(troubles.meaning(&logged), PoolerError::ServerRefused);
        troubles.learn("zu viele Verbindungen", PoolerError::TooManyServerConnections);
        assert_eq!(troubles.meaning(&logged), PoolerError::TooManyServerConnections);
        assert_eq!(reasons(&troubles, 100), [], "it is told as what it is from now on");
    }
}
