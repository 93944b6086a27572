//! PURE: what of a revision a login to the database proves, and nothing that a process shows does.
//!
//! A process that runs takes it over in silence, whatever it says: a query that nobody sends yet fails nobody, and a timeout for logins
//! closes no connection that is open. A new process is asked before it gets a client. Where none is needed, a login of its own proves
//! the same, before the revision is in force.

use crate::{
    contract::{ProofMode, Settings, UpstreamRole},
    pooler::pgbouncer::{
        parameters::{self, OF_NEW_CONNECTIONS},
        version::{OLDEST, Version},
    },
};

/// What decides whether the next server connection is opened, and whether its answer is the one that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginConditions {
    query: String,
    role: UpstreamRole,
    /// Values of [`OF_NEW_CONNECTIONS`], in their order.
    parameters: Vec<String>,
}

impl LoginConditions {
    /// Those of a revision. `version` is the pooler's; None before it has told it.
    pub fn of(settings: &Settings, version: Option<Version>) -> Self {
        let value = |name: &&str| {
            let parameter = parameters::find(name)?;
            Some(parameters::in_force(parameter, &settings.parameters, version.unwrap_or(OLDEST)))
        };
        Self {
            query: settings.health.validation_query.trim().to_owned(),
            role: expected_role(settings),
            parameters: OF_NEW_CONNECTIONS.iter().filter_map(value).collect(),
        }
    }

    /// Whether what works under `others` works under these too.
    pub fn are_proven_by(&self, others: &Self) -> bool {
        let is_as_strict = self.role == UpstreamRole::Any || others.role == UpstreamRole::Primary;
        self.query == others.query && self.parameters == others.parameters && is_as_strict
    }
}

/// Which role of the database is checked: none where it may be asked nothing.
pub fn expected_role(settings: &Settings) -> UpstreamRole {
    match settings.health.proof() {
        ProofMode::Query => settings.role,
        ProofMode::ConnectOnly => UpstreamRole::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        serde_json::from_str(crate::agent::tests::SETTINGS).expect("settings")
    }

    /// Whether a revision that differs in this needs a login before it is in force.
    fn needs_login(change: impl FnOnce(&mut Settings)) -> bool {
        let (runs, mut wanted) = (settings(), settings());
        change(&mut wanted);
        let of = |settings: &Settings| LoginConditions::of(settings, None);
        !of(&wanted).are_proven_by(&of(&runs))
    }

    fn parameter(name: &str, value: &str) -> bool {
        needs_login(|settings| drop(settings.parameters.insert(name.to_owned(), value.to_owned())))
    }

    #[test]
    fn another_query_and_what_bounds_a_login_or_its_answer_need_one() {
        assert!(needs_login(|settings| "select 2".clone_into(&mut settings.health.validation_query)));
        assert!(needs_login(|settings| settings.health.validation_query.clear()));
        for name in OF_NEW_CONNECTIONS {
            assert!(parameter(name, "7"), "{name}");
        }
    }

    #[test]
    fn what_a_login_says_nothing_about_needs_none() {
        assert!(!needs_login(|_| {}));
        assert!(!needs_login(|settings| " select 1\n".clone_into(&mut settings.health.validation_query)));
        assert!(!needs_login(|settings| settings.health.period_seconds += 1));
        assert!(!needs_login(|settings| settings.health.query_wait_timeout_seconds += 1));
        assert!(!needs_login(|settings| settings.health.leak_threshold_seconds += 1));
        assert!(!parameter("server_idle_timeout", "7"));
        assert!(!parameter("server_connect_timeout", "3"), "its default");
    }

    #[test]
    fn a_role_that_is_newly_expected_needs_one_and_one_that_is_expected_no_more_does_not() {
        let of = |role| LoginConditions { role, ..LoginConditions::of(&settings(), None) };
        let (primary, any) = (of(UpstreamRole::Primary), of(UpstreamRole::Any));
        assert!(!primary.are_proven_by(&any));
        assert!(any.are_proven_by(&primary) && any.are_proven_by(&any) && primary.are_proven_by(&primary));
        let mut silent = settings();
        (silent.role, silent.health.validation_query) = (UpstreamRole::Primary, String::new());
        assert_eq!(expected_role(&silent), UpstreamRole::Any, "a database that may be asked nothing");
    }
}
