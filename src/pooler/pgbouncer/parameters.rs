//! PURE: the PgBouncer parameters that a user may set, with their types.
//!
//! What Sluice itself decides (addresses, authentication, TLS, limits, the pool mode) is not on the list. The operator
//! checks a pool with [`check`], the agent checks again before it renders.

use std::collections::BTreeMap;

use thiserror::Error;

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
    #[error("pgbouncer.parameters.{name}: not a parameter that can be set here; use one of: {known}", known = known_names())]
    Unknown {
        /// The name that was given.
        name: String,
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
    Parameter {
        name: "ignore_startup_parameters",
        kind: Kind::Names,
        effect: Effect::Reload,
        default: "extra_float_digits",
    },
    integer("listen_backlog", 16, 65_535, Effect::Restart, "4096"),
    flag("log_connections", "0"),
    flag("log_disconnections", "0"),
    flag("log_pooler_errors", "1"),
    flag("log_stats", "0"),
    integer("max_packet_size", 65_536, 2_147_483_647, Effect::Reload, "2147483647"),
    integer("max_prepared_statements", 0, 10_000, Effect::Reload, "200"),
    integer("pkt_buf", 1024, 1_048_576, Effect::Restart, "4096"),
    seconds("query_timeout", 0.0, "0"),
    integer("sbuf_loopcnt", 0, 1000, Effect::Reload, "5"),
    seconds("server_check_delay", 0.0, "30"),
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
    Parameter { name: "track_extra_parameters", kind: Kind::Names, effect: Effect::Restart, default: "IntervalStyle" },
];

fn known_names() -> String {
    PARAMETERS.iter().map(|parameter| parameter.name).collect::<Vec<_>>().join(", ")
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

/// Checks a whole map, and answers the first fault by name.
///
/// # Errors
/// [`ParameterError`] of the first parameter that is refused.
pub fn check_all(parameters: &BTreeMap<String, String>) -> Result<(), ParameterError> {
    parameters.iter().try_for_each(|(name, value)| check(name, value).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
