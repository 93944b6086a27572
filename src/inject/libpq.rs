//! PURE: variables by which libpq passes by the pooler, or refuses it, although `PGHOST` and `PGSSLMODE` lead to it.
//!
//! They count beside every setting that a client leaves out, so they are set to what libpq does without them: it then goes where
//! `PGHOST` says, and speaks as `PGSSLMODE` says. A variable of a container wins over what `envFrom` brings.

use k8s_openapi::api::core::v1::{Container, EnvVar};

use super::PodPool;

/// One such variable.
struct Variable {
    name: &'static str,
    /// The variable of the pool's that it undoes.
    undoes: &'static str,
    /// A value of that one with which it agrees.
    agrees_with: Option<&'static str>,
    /// The value that undoes it; None: every one.
    value: Option<&'static str>,
    /// What libpq does without the variable. An empty value is that where no word means it.
    neutral: &'static str,
    /// What is done where its value cannot be read.
    unread: Unread,
}

/// What is done about a value that cannot be read.
#[derive(PartialEq, Eq)]
enum Unread {
    /// Nothing: most values are harmless, and another connection may need it.
    Kept,
    /// It is replaced.
    Replaced,
    /// It is replaced, and kept out where `envFrom` may bring it: it costs server connections that nobody counts.
    KeptOut,
}

const VARIABLES: [Variable; 6] = [
    Variable {
        name: "PGHOSTADDR",
        undoes: "PGHOST",
        agrees_with: None,
        value: None,
        neutral: "",
        unread: Unread::KeptOut,
    },
    // libpq wants no less than verify-full with the CAs of the system
    Variable {
        name: "PGSSLROOTCERT",
        undoes: "PGSSLMODE",
        agrees_with: Some("verify-full"),
        value: Some("system"),
        neutral: "",
        unread: Unread::Kept,
    },
    // TLS from the first byte, which libpq refuses beside sslmode=disable
    refused("PGSSLNEGOTIATION", "direct", "postgres"),
    // PgBouncer binds no channel, with TLS neither
    refused("PGCHANNELBINDING", "require", "prefer"),
    // PgBouncer needs no certificate of a client, and speaks no GSSAPI
    refused("PGSSLCERTMODE", "require", "allow"),
    refused("PGGSSENCMODE", "require", "prefer"),
];

const fn refused(name: &'static str, value: &'static str, neutral: &'static str) -> Variable {
    Variable { name, undoes: "PGSSLMODE", agrees_with: None, value: Some(value), neutral, unread: Unread::Replaced }
}

/// What a container of the application gets beside the pool's own variables.
pub fn neutral(container: &Container, plan: &PodPool<'_>) -> Vec<EnvVar> {
    let is_due = |variable: &&Variable| {
        let set = plan.effective.pod.env.iter().find(|set| set.name == variable.undoes);
        let Some(set) = set.filter(|_| !plan.sets(variable.name)) else { return false };
        if variable.agrees_with == Some(set.template.as_str()) {
            return false;
        }
        match container.env.iter().flatten().rfind(|given| given.name == variable.name) {
            None => {
                let has_sources = container.env_from.as_ref().is_some_and(|sources| !sources.is_empty());
                has_sources && variable.unread == Unread::KeptOut
            }
            Some(EnvVar { value_from: Some(_), .. }) => variable.unread != Unread::Kept,
            Some(EnvVar { value, .. }) => {
                let value = value.as_deref().unwrap_or_default();
                let is_unread = value.contains("$(") && variable.unread != Unread::Kept;
                is_unread || variable.value.map_or(!value.is_empty(), |undoing| value == undoing)
            }
        }
    };
    VARIABLES
        .iter()
        .filter(is_due)
        .map(|variable| EnvVar {
            name: variable.name.to_owned(),
            // as the API server writes an empty one
            value: Some(variable.neutral.to_owned()).filter(|value| !value.is_empty()),
            value_from: None,
        })
        .collect()
}
