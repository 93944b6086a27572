//! PURE: connections of the application that the pooler's environment does not lead to the pooler, as far as the pod tells.
//!
//! What no one can read here (a Secret, a ConfigMap, a file, a name that is another one's alias) is told where its name says that it
//! may be such a thing. What really passes by, the agent sees when the pod runs.

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource};

use super::{
    PodPool, connection_string,
    warning::{Warning, WarningText},
};

/// What is in the names of variables about a database.
const DATABASE: [&str; 11] = [
    "DATABASE",
    "DATASOURCE",
    "DATA_SOURCE",
    "POSTGRES",
    "JDBC",
    "R2DBC",
    "DB",
    "PG",
    "SQL",
    "CONNECTIONSTRING",
    "CONNECTION_STRING",
];
/// What is in the names of those that hold a whole connection string.
const STRING: [&str; 7] = ["URL", "URI", "DSN", "CONNECTIONSTRING", "CONNECTION_STRING", "CONN_STR", "CONNSTR"];
/// How the names of those end that hold a host.
const HOST: [&str; 7] = ["HOST", "HOSTNAME", "HOSTADDR", "SERVER", "ADDRESS", "ADDR", "ENDPOINT"];
/// The variables of libpq that name a service; with a file of its own or the user's.
const SERVICE: &str = "PGSERVICE";
/// Sources of `envFrom` that are named.
const MOST_SOURCES: usize = 3;
/// Longest name of a source, in characters.
const LONGEST_NAME: usize = 63;

/// The warnings for one container of the application.
pub fn warnings(container: &Container, plan: &PodPool<'_>) -> Vec<WarningText> {
    let aliases = Aliases::of(plan);
    let variables = container.env.iter().flatten().filter(|variable| !plan.sets(&variable.name));
    let of_variables = variables.filter_map(|variable| of_variable(container, variable, &aliases, plan));
    let texts = [("command", &container.command), ("args", &container.args)];
    let of_texts = texts.into_iter().filter_map(|(place, texts)| {
        let texts = texts.as_deref().unwrap_or_default();
        let leads = aliases.are_in_arguments(texts);
        leads.then(|| names_database(&format!("container {}: a text in {place} ", container.name), &aliases))
    });
    of_variables.chain(of_texts).chain(of_sources(container, plan)).collect()
}

fn of_variable(
    container: &Container,
    variable: &EnvVar,
    aliases: &Aliases<'_>,
    plan: &PodPool<'_>,
) -> Option<WarningText> {
    let EnvVar { name, value, value_from } = variable;
    let before = format!("container {}: {name} ", container.name);
    if name == SERVICE && plan.sets("PGHOST") {
        let behind = " for every connection that names no other service: take the variable away, so that the environment counts, or \
                      have its host be the pooler's";
        return Some(Warning::ServiceFile.text(&before, behind));
    }
    if let Some(source) = value_from {
        let warning = unreadable(source).filter(|_| may_lead_to_a_database(name) && !is_settled(name, plan))?;
        let behind =
            "; if it names the database's host, these connections bypass the pooler: name it in client.env of the pool";
        return Some(warning.text(&before, behind));
    }
    let value = value.as_deref().unwrap_or_default();
    let may_be_host = HOST.iter().any(|end| name.to_ascii_uppercase().ends_with(end));
    let leads = !is_settled(name, plan) && aliases.are_in(value, may_be_host);
    leads.then(|| names_database(&before, aliases))
}

fn names_database(before: &str, aliases: &Aliases<'_>) -> WarningText {
    let behind = format!(
        " {}, so its connections bypass the pooler; use $(PGHOST) there, or name it in client.env of the pool",
        aliases.host
    );
    Warning::DatabaseHost.text(before, &behind)
}

/// Whether Sluice sets a variable of the application's right itself.
fn is_settled(name: &str, plan: &PodPool<'_>) -> bool {
    name == "PGHOSTADDR" && plan.sets("PGHOST")
}

/// What cannot be looked into.
fn unreadable(source: &EnvVarSource) -> Option<Warning> {
    match (&source.secret_key_ref, &source.config_map_key_ref) {
        (Some(_), _) => Some(Warning::Secret),
        (None, Some(_)) => Some(Warning::ConfigMap),
        (None, None) => None,
    }
}

fn of_sources(container: &Container, plan: &PodPool<'_>) -> Option<WarningText> {
    let sources = container.env_from.iter().flatten().filter_map(|source| {
        let secret = source.secret_ref.as_ref().map(|secret| format!("Secret {}", short(&secret.name)));
        secret.or_else(|| source.config_map_ref.as_ref().map(|map| format!("ConfigMap {}", short(&map.name))))
    });
    let all: Vec<String> = sources.collect();
    // which variables win over it depends on what the pool sets
    let set: Vec<&str> = plan.effective.pod.env.iter().map(|variable| variable.name.as_str()).collect();
    (!all.is_empty()).then(|| {
        let named = all[..all.len().min(MOST_SOURCES)].join(", ");
        let more = if all.len() > MOST_SOURCES { ", ..." } else { "" };
        Warning::EnvFrom.text(
            &format!("container {}: ", container.name),
            &format!(
                " ({named}{more}): a connection string or a host of the database in it bypasses the pooler, unless it has one of the \
                 names that the pool sets ({}); name it in client.env of the pool",
                set.join(", ")
            ),
        )
    })
}

fn short(name: &str) -> String {
    name.chars().take(LONGEST_NAME).collect()
}

/// Whether a variable is, by its name, a connection string or a host of a database.
fn may_lead_to_a_database(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let holds = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let is_string = holds(&STRING) && (holds(&DATABASE) || name.ends_with("_DSN"));
    let is_host = holds(&DATABASE) && HOST.iter().any(|end| name.ends_with(end));
    is_string || is_host
}

/// By which names the database may be called.
struct Aliases<'a> {
    /// The host of the pool.
    host: &'a str,
    /// That and its shorter forms inside the cluster, in lower case.
    all: Vec<String>,
}

impl<'a> Aliases<'a> {
    fn of(plan: &PodPool<'a>) -> Self {
        let host = plan.pool.spec.upstream.host.as_str();
        let full = host.trim_end_matches('.').to_ascii_lowercase();
        let namespace = plan.pool.metadata.namespace.as_deref().unwrap_or_default();
        let mut all = vec![full.clone()];
        let mut labels = full.split('.');
        let service = labels.next().zip(labels.next()).zip(labels.next());
        match service {
            // name, namespace, svc
            Some(((name, of), "svc")) => {
                all.push(format!("{name}.{of}"));
                all.push(format!("{name}.{of}.svc"));
                all.push(format!("{name}.{of}.svc.cluster.local"));
                if of == namespace {
                    all.push(name.to_owned());
                }
            }
            _ if !full.contains('.') => {
                all.push(format!("{full}.{namespace}"));
                all.push(format!("{full}.{namespace}.svc"));
                all.push(format!("{full}.{namespace}.svc.cluster.local"));
            }
            _ => {}
        }
        all.dedup();
        Self { host, all }
    }

    fn is_one(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        self.all.iter().any(|alias| alias.eq_ignore_ascii_case(host))
    }

    /// Whether a text leads to the database: in a connection string, by a name that is no other thing's, or, where it may be
    /// nothing but a host, as that.
    fn are_in(&self, text: &str, may_be_host: bool) -> bool {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        // one label alone may be a user or a database too
        let is_named = |word: &str| word.contains('.') && self.is_one(word);
        may_be_host && self.is_one(connection_string::without_port(text.trim()))
            || connection_string::hosts(text).iter().any(|host| self.is_one(host))
            || text.split(|c| !is_word(c)).any(is_named)
            || self.host.contains(':') && text.contains(self.host)
    }

    /// The same of a command: what follows a switch for the host may be nothing but one.
    fn are_in_arguments(&self, texts: &[String]) -> bool {
        let mut is_host = false;
        let mut words = texts.iter().flat_map(|text| text.split_whitespace());
        let is_led = words.any(|word| {
            let was_host = std::mem::replace(&mut is_host, is_switch(word));
            let behind = word.split_once('=').filter(|(switch, _)| is_switch(switch)).map(|(_, host)| host);
            let short = word.strip_prefix("-h").filter(|host| !host.is_empty());
            [was_host.then_some(word), behind, short].into_iter().flatten().any(|host| self.are_in(host, true))
        });
        is_led || texts.iter().any(|text| self.are_in(text, false))
    }
}

/// Whether what follows is a host.
fn is_switch(word: &str) -> bool {
    word == "-h" || word.starts_with('-') && word.to_ascii_lowercase().ends_with("host")
}
