//! Startup parameters that a pod makes its clients ask for, and that PgBouncer refuses: in its environment, and in the connection
//! strings there and on its command line.

use k8s_openapi::api::core::v1::{Container, EnvVar};

use super::{
    PodPool, connection_string,
    warning::{Warning, WarningText},
};
use crate::pooler::pgbouncer::{
    parameters::{self, IGNORED, REFUSED, TRACKED},
    version::OLDEST,
};

/// Passed on by every version: what PostgreSQL has always reported of a session.
const PASSED_ON: [&str; 5] =
    ["application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"];
/// Parameters of connection strings that drivers turn into another one: pgjdbc.
const TURNED_INTO: [(&str, &str); 1] = [("currentSchema", "search_path")];
/// Names that are told of one variable.
const MOST_NAMES: usize = 5;
/// Names that are looked up of one text.
const MOST_LOOKED_UP: usize = 100;
/// A name that is none, or cannot be told from a value.
const UNNAMED: &str = "another option";

/// The warnings for one container of the application.
pub fn refused(container: &Container, plan: &PodPool<'_>) -> Vec<WarningText> {
    let variables = container.env.iter().flatten().filter(|variable| !plan.sets(&variable.name));
    let of_variables = variables.map(|variable| (variable.name.clone(), of_variable(variable, plan)));
    let texts = [("command", &container.command), ("args", &container.args)];
    let of_texts = texts.map(|(place, texts)| {
        let asked = in_words(texts.iter().flatten().flat_map(|text| of_strings(text, plan)), plan);
        (format!("a connection string in {place}"), asked)
    });
    of_variables
        .chain(of_texts)
        .filter_map(|(place, asked)| {
            let behind = format!(
                "{}, which PgBouncer may refuse: clients would fail with \"unsupported startup parameter\"; set it for the role \
                 instead (ALTER ROLE ... SET), or name it in pgbouncer.parameters.ignore_startup_parameters of the pool if it \
                 may be ignored",
                asked?
            );
            Some(Warning::StartupParameter.text(&format!("container {}: {place} ", container.name), &behind))
        })
        .collect()
}

/// What a variable asks for that is not passed on, in words; None: nothing.
fn of_variable(variable: &EnvVar, plan: &PodPool<'_>) -> Option<String> {
    let value = variable.value.as_deref();
    match variable.name.as_str() {
        "PGGEQO" => in_words(["geqo".to_owned()], plan),
        "PGOPTIONS" => match value.filter(|value| !is_expanded(value)) {
            Some(value) => in_words(of_options(value, plan), plan),
            None => (!is_settled("options", plan)).then(|| "s that it holds".to_owned()),
        },
        _ => in_words(of_strings(value?, plan), plan),
    }
}

/// What the connection strings of a text ask for. What else they say is for the driver.
fn of_strings(text: &str, plan: &PodPool<'_>) -> Vec<String> {
    let asked = connection_string::parameters(text).into_iter().flat_map(|(name, value)| {
        if name.eq_ignore_ascii_case("options") {
            return if is_expanded(&value) { vec![name] } else { of_options(&value, plan) };
        }
        // one by one, as sqlx has them
        if let Some(setting) = name.strip_prefix("options[").and_then(|rest| rest.strip_suffix(']')) {
            return of_options(&format!("--{setting}="), plan);
        }
        let turned = TURNED_INTO.iter().find(|(own, _)| *own == name);
        let name = turned.map_or(name.as_str(), |(_, parameter)| *parameter);
        let refused = REFUSED.iter().filter(|refused| refused.eq_ignore_ascii_case(name));
        refused.map(|refused| (*refused).to_owned()).collect()
    });
    asked.collect()
}

/// Whether the kubelet puts something into a value that is not known here.
fn is_expanded(value: &str) -> bool {
    value.contains("$(")
}

/// The settings in a value of `options`. Other switches of the server are never passed on.
fn of_options(value: &str, plan: &PodPool<'_>) -> Vec<String> {
    if is_settled("options", plan) {
        return Vec::new();
    }
    let mut is_escaped = false;
    let words = connection_string::looked_into(value).split(|c: char| {
        let is_end = c.is_whitespace() && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    let mut words = words.filter(|word| !word.is_empty());
    let mut names = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next(),
            Some(setting) => Some(setting),
            None => word.strip_prefix("--"),
        };
        let name = setting.and_then(|setting| setting.split_once('=')).map(|(name, _)| name);
        // a name and nothing that could be a secret
        let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        names.push(name.filter(is_name).unwrap_or(UNNAMED).to_owned());
    }
    names
}

/// The names that are not passed on, each once, in words; None: there is none.
fn in_words(names: impl IntoIterator<Item = String>, plan: &PodPool<'_>) -> Option<String> {
    let mut refused: Vec<String> = Vec::new();
    for name in names.into_iter().take(MOST_LOOKED_UP) {
        if !is_settled(&name, plan) && !refused.contains(&name) && refused.len() < MOST_NAMES {
            refused.push(name);
        }
    }
    (!refused.is_empty()).then(|| format!(" {}", refused.join(", ")))
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
