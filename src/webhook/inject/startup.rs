//! Startup parameters that a pod's environment makes its clients ask for, and that PgBouncer refuses.

use k8s_openapi::api::core::v1::{Container, EnvVar};

use super::PodPool;
use crate::pooler::pgbouncer::{
    parameters::{self, IGNORED, TRACKED},
    version::OLDEST,
};

/// Passed on by every version: what PostgreSQL has always reported of a session.
const PASSED_ON: [&str; 5] =
    ["application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"];
/// How a connection string begins.
const CONNECTION_STRINGS: [&str; 3] = ["postgres://", "postgresql://", "jdbc:postgresql:"];
/// Names that are told of one variable.
const MOST_NAMES: usize = 5;

/// The warnings for one container of the application.
pub fn refused(container: &Container, plan: &PodPool<'_>) -> Vec<String> {
    let replaced = |variable: &EnvVar| plan.effective.pod.env.iter().any(|own| own.name == variable.name);
    let variables = container.env.iter().flatten().filter(|variable| !replaced(variable));
    variables
        .filter_map(|variable| {
            let asked = asked_for(variable, plan)?;
            Some(format!(
                "container {}: {} asks for {asked}, which PgBouncer may refuse: clients would fail with \"unsupported startup \
                 parameter\"; set it for the role instead (ALTER ROLE ... SET), or name it in \
                 pgbouncer.parameters.ignore_startup_parameters of the pool if it may be ignored",
                container.name, variable.name
            ))
        })
        .collect()
}

/// What a variable asks for that is not passed on, in words; None: nothing.
fn asked_for(variable: &EnvVar, plan: &PodPool<'_>) -> Option<String> {
    let (name, value) = (variable.name.as_str(), variable.value.as_deref());
    if name == "PGGEQO" && !is_settled("geqo", plan) {
        return Some("the startup parameter geqo".to_owned());
    }
    if is_settled("options", plan) {
        return None;
    }
    if name == "PGOPTIONS" {
        return match value.filter(|value| !value.contains("$(")) {
            Some(value) => named(value, plan),
            None => Some("what it holds".to_owned()),
        };
    }
    // its options are encoded in many ways
    let is_string = value.is_some_and(|value| CONNECTION_STRINGS.iter().any(|start| value.starts_with(start)));
    (is_string && value.is_some_and(|value| value.contains("?options=") || value.contains("&options=")))
        .then(|| "options".to_owned())
}

/// The settings in a value of `PGOPTIONS` that are not passed on. Other switches of the server never are.
fn named(value: &str, plan: &PodPool<'_>) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    let mut words = value.split_whitespace();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next().unwrap_or(word),
            Some(setting) => setting,
            None => word.strip_prefix("--").unwrap_or(word),
        };
        let name = setting.split('=').next().unwrap_or(setting);
        // a name and nothing that could be a secret
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let name = if is_name { name } else { "another option" };
        if !is_settled(name, plan) && !names.contains(&name) && names.len() < MOST_NAMES {
            names.push(name);
        }
    }
    (!names.is_empty()).then(|| format!("the startup parameter {}", names.join(", ")))
}

/// Whether PgBouncer passes a parameter on, or ignores it.
fn is_settled(name: &str, plan: &PodPool<'_>) -> bool {
    let given = &plan.effective.settings.parameters;
    let is_listed = |parameter: &parameters::Parameter| {
        let names = parameters::in_force(parameter, given, OLDEST);
        names.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(name))
    };
    PASSED_ON.iter().any(|passed| passed.eq_ignore_ascii_case(name))
        || [IGNORED, TRACKED].into_iter().filter_map(parameters::find).any(is_listed)
}
