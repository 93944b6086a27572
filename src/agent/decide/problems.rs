//! PURE: what stands in the way, and from when on it is told.
//!
//! What a machine short of CPU does for a moment is not told: a silent reading would turn a pod unready and its change
//! unproven, and be over before anyone looks. What is said for certain (a refusal, a setting that was not taken over) is
//! told at once.

use crate::agent::decide::machine::Millis;

/// What may pass by itself is told when it has lasted for so long.
pub const LASTING: Millis = 3000;

/// One place where something can stand in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    found: Option<Found>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    text: String,
    /// When it was seen first, while it may pass; None when it is certain.
    since: Option<Millis>,
}

impl Problem {
    /// It is there, and will not pass by itself. True when it is news.
    pub fn is(&mut self, text: String) -> bool {
        let found = Some(Found { text, since: None });
        let is_news = self.found != found;
        self.found = found;
        is_news
    }

    /// It is there, and may be over soon.
    pub fn may_pass(&mut self, now: Millis, text: String) {
        let since = self.found.as_ref().and_then(|found| found.since).unwrap_or(now);
        self.found = Some(Found { text, since: Some(since) });
    }

    /// It is over.
    pub fn is_over(&mut self) {
        self.found = None;
    }

    /// The sentence to tell.
    pub fn told(&self, now: Millis) -> Option<&str> {
        let found = self.found.as_ref()?;
        let told = found.since.is_none_or(|since| now.saturating_sub(since) >= LASTING);
        told.then_some(found.text.as_str())
    }
}

/// What stands in the way of the newest revision or grant, one place for each thing that can.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    /// Reading the configuration volume.
    pub inputs: Problem,
    /// The pooler's program.
    pub program: Problem,
    /// A process that does not stay up.
    pub process: Problem,
    /// Rendering, and starting a process.
    pub configuration: Problem,
    /// Taking over a revision.
    pub reload: Problem,
    /// A revision that a login has to prove.
    pub login_proof: Problem,
    /// A revision that needs a new process.
    pub switch: Problem,
    /// Somebody else who listens where clients come to.
    pub listeners: Problem,
    /// A new certificate to show to clients.
    pub identity: Problem,
    /// The database's certificate.
    pub certificate: Problem,
    /// Bringing the limits to the grant.
    pub limits: Problem,
    /// How long clients wait while the database is away.
    pub patience: Problem,
    /// A session alias that the share has no room for.
    pub alias: Problem,
    /// Reading the pooler's figures.
    pub reading: Problem,
    /// Credentials that do not work, or not yet.
    pub credentials: Problem,
    /// A database that refuses the credentials in force.
    pub logins: Problem,
    /// A database that is not reached.
    pub database: Problem,
    /// A revision that waits for a database that takes writes.
    pub upstream: Problem,
    /// Open files.
    pub files: Problem,
    /// The configuration that worked last.
    pub state: Problem,
}

impl Problems {
    /// Everything that is told now.
    pub fn told(&self, now: Millis) -> impl Iterator<Item = &str> {
        let Self { inputs, program, process, configuration, credentials, logins, database, reload, .. } = self;
        let Self { login_proof, listeners, switch, upstream, identity, certificate, limits, patience, .. } = self;
        let Self { alias, reading, files, state, .. } = self;
        let first = [inputs, program, process, configuration, credentials, logins, database, reload];
        let then = [
            login_proof,
            listeners,
            switch,
            upstream,
            identity,
            certificate,
            limits,
            patience,
            alias,
            reading,
            files,
            state,
        ];
        first.into_iter().chain(then).filter_map(move |p| p.told(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_silence_is_never_told_and_one_that_lasts_is() {
        let mut problem = Problem::default();
        problem.may_pass(1000, "SHOW SERVERS: no answer".to_owned());
        assert_eq!(problem.told(1000), None);
        problem.is_over();
        problem.may_pass(2000, "SHOW SERVERS: no answer".to_owned());
        for now in [3000, 4000] {
            problem.may_pass(now, "SHOW STATS: no answer".to_owned());
            assert_eq!(problem.told(now), None);
        }
        problem.may_pass(5000, "SHOW POOLS: no answer".to_owned());
        assert_eq!(problem.told(5000), Some("SHOW POOLS: no answer"));
        problem.is_over();
        assert_eq!(problem.told(9000), None);
    }

    #[test]
    fn what_is_certain_is_told_at_once_and_is_news_once() {
        let mut problem = Problem::default();
        problem.may_pass(1000, "silent".to_owned());
        assert!(problem.is("not in force".to_owned()));
        assert_eq!(problem.told(1000), Some("not in force"));
        assert!(!problem.is("not in force".to_owned()));
    }
}
