//! PURE: the PgBouncer parameters that a user may set, with their types.
//!
//! What Sluice itself decides (addresses, authentication, TLS, limits, the pool mode) is not on the list. The operator
//! checks a pool with [`check`], the agent checks again before it renders.

use std::collections::BTreeMap;

use thiserror::Error;

use super::version::Version;

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number within bounds, both included.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Seconds, with up to six decimals, at most `max`.
    Seconds {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// `0` or `1`.
    Flag,
    /// Names of server parameters, separated by commas.
    Names,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// With a RELOAD, without touching a client.
    Reload,
    /// Only in a new process.
    Restart,
}

/// One parameter of the list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// PgBouncer's name.
    pub name: &'static str,
    /// What a value must look like.
    pub kind: Kind,
    /// When a changed value takes effect.
    pub effect: Effect,
    /// What is rendered when nobody sets it.
    pub default: &'static str,
}

/// Why a parameter was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParameterError {
    /// Not on the list.
    #[error("pgbouncer.parameters.{name}: not a parameter that can be set here{}; use one of: {known}", removal(name), known = known_names())]
    Unknown {
        /// The name that was given.
        name: String,
    },
    /// The PgBouncer at hand does not have it.
    #[error(
        "pgbouncer.parameters.{name}: PgBouncer {version} does not have it, which came with {since}; remove it, or set pgbouncer.image to {since} or later"
    )]
    NotYet {
        /// The parameter.
        name: &'static str,
        /// The PgBouncer at hand.
        version: Version,
        /// The first that has it.
        since: Version,
    },
    /// Of the wrong type or out of bounds.
    #[error("pgbouncer.parameters.{name}: {value:?} is not {expected}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// What it must be.
        expected: String,
    },
}

/// What a version of PgBouncer did to a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is new, with this default.
    Added(&'static str),
    /// It is gone; a file that has it is not understood.
    Removed,
    /// It has this default, and another one before.
    Default(&'static str),
}

/// One change of one parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterChange {
    /// PgBouncer's name.
    pub name: &'static str,
    /// The first version that has it so.
    pub since: Version,
    /// What is so.
    pub changed: Changed,
}

const V1_25: Version = Version { major: 1, minor: 25, patch: 0 };
const V1_26: Version = Version { major: 1, minor: 26, patch: 0 };

const fn change(name: &'static str, since: Version, changed: Changed) -> ParameterChange {
    ParameterChange { name, since, changed }
}

/// All that changed about parameters since the oldest version that is started, held against `SHOW CONFIG` of real programs by the tests.
pub const HISTORY: &[ParameterChange] = &[
    change("auth_ldap_options", V1_25, Changed::Added("")),
    change("client_tls13_ciphers", V1_25, Changed::Added("")),
    change("login_notify_message", V1_26, Changed::Added("")),
    change("pool_idle_timeout", V1_26, Changed::Added("0")),
    change("query_wait_notify", V1_25, Changed::Added("5")),
    change("scram_iterations", V1_25, Changed::Added("4096")),
    change("server_check_query", V1_25, Changed::Default("<empty>")),
    change("server_tls13_ciphers", V1_25, Changed::Added("")),
    change("suspend_timeout", V1_26, Changed::Removed),
    change("track_extra_parameters", V1_26, Changed::Default("")),
    change("transaction_timeout", V1_25, Changed::Added("0")),
];

/// What is rendered although nobody can set it: versions disagree about the default, or a later one could.
///
/// A pool that is cleaned up for want of use would take its counters along; iterations decide what a login costs.
const FIXED: &[(&str, &str)] = &[("pool_idle_timeout", "0"), ("scram_iterations", "4096")];

/// What a server connection is checked with that has not been used for [`SERVER_CHECK_DELAY`]. Before 1.26 nothing else takes back a
/// `search_path` that a client has left on it, as `pg_dump` does.
const SERVER_CHECK_QUERY: &str = "server_check_query";
/// Where the check takes back what another client has left, no connection goes unchecked by default.
const SERVER_CHECK_DELAY: &str = "server_check_delay";

/// Names and values of what is rendered for a version although nobody can set it.
pub fn fixed(version: Version) -> impl Iterator<Item = (&'static str, &'static str)> {
    let check = if version < V1_26 { "reset search_path" } else { "select 1" };
    let fixed = FIXED.iter().copied().filter(move |(name, _)| exists(name, version));
    fixed.chain([(SERVER_CHECK_QUERY, check)])
}

/// Since when a parameter exists, where it did not always.
fn added(name: &str) -> Option<Version> {
    let is_addition = |change: &&ParameterChange| change.name == name && matches!(change.changed, Changed::Added(_));
    HISTORY.iter().find(is_addition).map(|change| change.since)
}

/// Since when it exists no more.
fn removed(name: &str) -> Option<Version> {
    let is_removal = |change: &&ParameterChange| change.name == name && change.changed == Changed::Removed;
    HISTORY.iter().find(is_removal).map(|change| change.since)
}

/// Whether a version has a parameter.
pub fn exists(name: &str, version: Version) -> bool {
    added(name).is_none_or(|since| since <= version) && removed(name).is_none_or(|since| version < since)
}

fn removal(name: &str) -> String {
    removed(name).map(|since| format!(" (PgBouncer {since} removed it)")).unwrap_or_default()
}

const DAY: f64 = 86_400.0;
const LONGEST_TIMEOUT: f64 = 30.0 * DAY;

const fn seconds(name: &'static str, min: f64, default: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Seconds { min, max: LONGEST_TIMEOUT }, effect: Effect::Reload, default }
}

const fn integer(name: &'static str, min: u64, max: u64, effect: Effect, default: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Integer { min, max }, effect, default }
}

const fn flag(name: &'static str, default: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Flag, effect: Effect::Reload, default }
}

/// The list, by name. Every one of them is always rendered, so that no default of a PgBouncer version decides.
pub const PARAMETERS: &[Parameter] = &[
    flag("application_name_add_host", "0"),
    seconds("cancel_wait_timeout", 0.0, "10"),
    seconds("client_idle_timeout", 0.0, "0"),
    seconds("client_login_timeout", 1.0, "60"),
    seconds("dns_max_ttl", 0.0, "5"),
    seconds("dns_nxdomain_ttl", 0.0, "5"),
    seconds("idle_transaction_timeout", 0.0, "0"),
    Parameter { name: IGNORED, kind: Kind::Names, effect: Effect::Reload, default: "extra_float_digits" },
    integer("listen_backlog", 16, 65_535, Effect::Restart, "4096"),
    flag("log_connections", "0"),
    flag("log_disconnections", "0"),
    flag("log_pooler_errors", "1"),
    flag("log_stats", "0"),
    integer("max_packet_size", 65_536, 2_147_483_647, Effect::Reload, "2147483647"),
    integer("max_prepared_statements", 0, 10_000, Effect::Reload, "200"),
    integer("pkt_buf", 1024, 1_048_576, Effect::Restart, "4096"),
    seconds("query_timeout", 0.0, "0"),
    // a client that waits is told nothing that it did not ask for, whichever version it meets
    integer("query_wait_notify", 0, 86_400, Effect::Reload, "0"),
    integer("sbuf_loopcnt", 0, 1000, Effect::Reload, "5"),
    seconds(SERVER_CHECK_DELAY, 0.0, "30"),
    seconds("server_connect_timeout", 1.0, "3"),
    flag("server_fast_close", "0"),
    seconds("server_idle_timeout", 0.0, "600"),
    seconds("server_lifetime", 1.0, "3600"),
    flag("server_reset_query_always", "0"),
    flag("server_round_robin", "0"),
    integer("stats_period", 1, 3600, Effect::Reload, "60"),
    flag("tcp_keepalive", "1"),
    integer("tcp_keepcnt", 1, 100, Effect::Reload, "3"),
    integer("tcp_keepidle", 1, 7200, Effect::Reload, "10"),
    integer("tcp_keepintvl", 1, 3600, Effect::Reload, "5"),
    integer("tcp_user_timeout", 0, 600_000, Effect::Reload, "15000"),
    Parameter { name: TRACKED, kind: Kind::Names, effect: Effect::Restart, default: "IntervalStyle" },
    seconds("transaction_timeout", 0.0, "0"),
];

/// Those of the list that decide whether a server connection that is opened next works, and that one which is open shows nothing of.
pub const OF_NEW_CONNECTIONS: [&str; 5] =
    ["query_timeout", SERVER_CHECK_DELAY, "server_connect_timeout", "tcp_user_timeout", "transaction_timeout"];

fn known_names() -> String {
    PARAMETERS.iter().map(|parameter| parameter.name).collect::<Vec<_>>().join(", ")
}

/// Startup parameters that clients may ask for in vain.
pub const IGNORED: &str = "ignore_startup_parameters";
/// Settings of a session that are kept for each client, beside those that PostgreSQL has always reported.
pub const TRACKED: &str = "track_extra_parameters";
/// Settings of a session that clients ask for at their login and that no version up to 1.25 passes on by default; later ones pass on
/// those of them that the server reports. Anything else that PostgreSQL does not report is refused as well: these are what drivers
/// are given by name.
pub const REFUSED: [&str; 13] = [
    "default_transaction_isolation",
    "default_transaction_read_only",
    "geqo",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lock_timeout",
    "role",
    "search_path",
    "statement_timeout",
    "synchronous_commit",
    "transaction_timeout",
    "work_mem",
];

/// What is in force for a parameter of the list: what was given, else its default for this version. What clients ask for in vain by
/// default they may ask for whatever else is named: pgjdbc does so at every login, and could not log in at all.
pub fn in_force(parameter: &Parameter, given: &BTreeMap<String, String>, version: Version) -> String {
    let default = if parameter.name == SERVER_CHECK_DELAY && version < V1_26 { "0" } else { parameter.default };
    let given = given.get(parameter.name).map_or(default, String::as_str);
    let names_default = || given.split(',').any(|name| name.trim().eq_ignore_ascii_case(parameter.default));
    if parameter.name == IGNORED && !names_default() {
        format!("{given},{}", parameter.default)
    } else {
        given.to_owned()
    }
}

/// Finds a parameter of the list.
pub fn find(name: &str) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|parameter| parameter.name == name)
}

impl Kind {
    fn accepts(self, value: &str) -> bool {
        match self {
            Self::Integer { min, max } => {
                is_digits(value) && value.parse::<u64>().is_ok_and(|number| (min..=max).contains(&number))
            }
            Self::Seconds { min, max } => {
                let (whole, fraction) = value.split_once('.').unwrap_or((value, "0"));
                is_digits(whole)
                    && is_digits(fraction)
                    && fraction.len() <= 6
                    && value.parse::<f64>().is_ok_and(|number| (min..=max).contains(&number))
            }
            Self::Flag => matches!(value, "0" | "1"),
            Self::Names => {
                value.len() <= 1000
                    && value.split(',').all(|name| {
                        let name = name.trim_matches(' ');
                        (1..=63).contains(&name.len())
                            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
                    })
            }
        }
    }

    fn expected(self) -> String {
        match self {
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Seconds { min, max } => format!("a number of seconds from {min} to {max}"),
            Self::Flag => "0 or 1".to_owned(),
            Self::Names => "a list of parameter names separated by commas".to_owned(),
        }
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks one parameter.
///
/// # Errors
/// [`ParameterError`]: not on the list, or of the wrong type.
pub fn check(name: &str, value: &str) -> Result<&'static Parameter, ParameterError> {
    let parameter = find(name).ok_or_else(|| ParameterError::Unknown { name: name.to_owned() })?;
    if parameter.kind.accepts(value) {
        Ok(parameter)
    } else {
        Err(ParameterError::Value {
            name: parameter.name,
            value: value.to_owned(),
            expected: parameter.kind.expected(),
        })
    }
}

/// Checks a whole map, and answers the first fault by name. None: any version may meet it.
///
/// # Errors
/// [`ParameterError`] of the first parameter that is refused.
pub fn check_all(parameters: &BTreeMap<String, String>, version: Option<Version>) -> Result<(), ParameterError> {
    parameters.iter().try_for_each(|(name, value)| {
        let parameter = check(name, value)?;
        match (version, added(parameter.name)) {
            // what is rendered where nobody sets it is what a version without it does
            (Some(version), Some(since)) if version < since && value != parameter.default => {
                Err(ParameterError::NotYet { name: parameter.name, version, since })
            }
            _ => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::version::OLDEST, *};

    #[test]
    fn the_list_is_sorted_and_its_defaults_pass_their_own_check() {
        assert!(PARAMETERS.is_sorted_by(|a, b| a.name < b.name));
        for parameter in PARAMETERS {
            assert_eq!(check(parameter.name, parameter.default), Ok(parameter));
        }
    }

    #[test]
    fn what_sluice_decides_itself_cannot_be_set() {
        for name in ["listen_addr", "auth_file", "admin_users", "default_pool_size", "max_db_connections", "pool_mode"]
        {
            assert!(matches!(check(name, "1"), Err(ParameterError::Unknown { .. })), "{name}");
        }
    }

    #[test]
    fn a_refusal_names_the_parameter_and_what_it_must_be() {
        let error = check("server_idle_timeout", "-1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "pgbouncer.parameters.server_idle_timeout: \"-1\" is not a number of seconds from 0 to 2592000"
        );
    }

    #[test]
    fn a_parameter_that_the_version_at_hand_lacks_is_refused_by_name_with_both_versions() {
        let set = |value: &str| BTreeMap::from([("transaction_timeout".to_owned(), value.to_owned())]);
        let error = check_all(&set("30"), Some(OLDEST)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pgbouncer.parameters.transaction_timeout: PgBouncer 1.24.1 does not have it, which came with 1.25.0; remove it, or set pgbouncer.image to 1.25.0 or later"
        );
        assert_eq!(check_all(&set("30"), Some(V1_25)), Ok(()));
        assert_eq!(check_all(&set("30"), None), Ok(()), "the operator does not know what its pods have");
        assert_eq!(check_all(&set("0"), Some(OLDEST)), Ok(()), "without it there is no such timeout");
        let removed = check("suspend_timeout", "1").unwrap_err().to_string();
        assert!(
            removed.contains("suspend_timeout: not a parameter that can be set here (PgBouncer 1.26.0 removed it)"),
            "{removed}"
        );
    }

    #[test]
    fn whatever_versions_disagree_about_is_rendered_or_not_set_by_any() {
        for ParameterChange { name, changed, .. } in HISTORY {
            let is_rendered = find(name).is_some() || fixed(V1_26).any(|(fixed, _)| fixed == *name);
            let is_not_set = matches!(changed, Changed::Added("") | Changed::Removed);
            assert!(is_rendered != is_not_set, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_accepted_value_can_leave_its_line(value in any::<String>()) {
            for parameter in PARAMETERS {
                if check(parameter.name, &value).is_ok() {
                    prop_assert!(!value.contains(['\n', '\r', ';', '#', '\'', '"', '\\', '%', '=']));
                }
            }
        }
    }
}
