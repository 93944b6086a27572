//! The environment by which the application finds the pooler.

use k8s_openapi::api::core::v1::{Container, EnvVar};

use super::{PodPool, patch::PatchBuilder};

/// Name of the pooler as the application sees it. An address and no name: it needs no resolver, and `localhost` may mean
/// `::1` where the pod has no IPv6.
const CLIENT_HOST: &str = "127.0.0.1";

/// The variables that every container of the application gets.
pub fn variables(plan: &PodPool<'_>) -> Vec<EnvVar> {
    let port = plan.effective.pod.client_port.to_string();
    // The kubelet turns `$$` into `$` and `$(NAME)` into a variable; a database name is neither.
    let database = plan.pool.spec.upstream.database.replace('$', "$$");
    let filled = plan.effective.pod.env.iter().map(|variable| EnvVar {
        name: variable.name.clone(),
        value: Some(fill(&variable.template, &[("{host}", CLIENT_HOST), ("{port}", &port), ("{database}", &database)])),
        value_from: None,
    });
    filled.collect()
}

/// Replaces the placeholders in one pass, so that a value which looks like a placeholder stays as it is.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    'next: while let Some(character) = rest.chars().next() {
        for (placeholder, value) in values {
            if let Some(after) = rest.strip_prefix(placeholder) {
                text.push_str(value);
                rest = after;
                continue 'next;
            }
        }
        text.push(character);
        rest = &rest[character.len_utf8()..];
    }
    text
}

/// Puts the variables into one container: each replaces whatever was there under its name, and stands there once.
///
/// A plain value goes to the front, so that a `$(PGHOST)` in the application's own variables means the pooler even where
/// the old value came from `envFrom`. A value that itself refers to other variables keeps the place of the variable that
/// it replaces, or goes to the end, so that what it refers to stands before it.
pub fn patch(builder: &mut PatchBuilder, list: &str, index: usize, container: &Container, variables: &[EnvVar]) {
    if variables.is_empty() {
        return;
    }
    let index = index.to_string();
    let existing = container.env.as_deref().unwrap_or_default();
    let wanted = merged(existing, variables);
    if wanted == existing {
        return;
    }
    if container.env.is_none() {
        return builder.add(["spec", list, &index, "env"], wanted);
    }
    let ours = |variable: &EnvVar| variables.iter().any(|own| own.name == variable.name);
    // From behind, so that no index moves before it is used.
    for (position, _) in existing.iter().enumerate().rev().filter(|(_, variable)| ours(variable)) {
        builder.remove(["spec", list, &index, "env", &position.to_string()]);
    }
    for (position, variable) in wanted.iter().enumerate().filter(|(_, variable)| ours(variable)) {
        builder.add(["spec", list, &index, "env", &position.to_string()], variable);
    }
}

fn merged(existing: &[EnvVar], variables: &[EnvVar]) -> Vec<EnvVar> {
    let (referring, plain): (Vec<&EnvVar>, Vec<&EnvVar>) =
        variables.iter().partition(|variable| variable.value.as_deref().is_some_and(|value| value.contains("$(")));
    let mut wanted: Vec<EnvVar> = plain.iter().map(|variable| (*variable).clone()).collect();
    for (position, variable) in existing.iter().enumerate() {
        if plain.iter().any(|own| own.name == variable.name) {
            continue;
        }
        match referring.iter().find(|own| own.name == variable.name) {
            None => wanted.push(variable.clone()),
            // The last of several is the one that counted.
            Some(own) if existing[position + 1..].iter().all(|later| later.name != own.name) => {
                wanted.push((*own).clone());
            }
            Some(_) => {}
        }
    }
    for own in referring {
        if existing.iter().all(|variable| variable.name != own.name) {
            wanted.push(own.clone());
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
    }

    #[test]
    fn placeholders_are_filled_once_and_a_value_is_never_read_as_a_template() {
        let values = [("{host}", "127.0.0.1"), ("{port}", "5432"), ("{database}", "{port}$$x")];
        assert_eq!(
            fill("pg://{host}:{port}/{database}?x={other}ü", &values),
            "pg://127.0.0.1:5432/{port}$$x?x={other}ü"
        );
    }

    #[test]
    fn a_plain_value_stands_before_everything_that_may_refer_to_it() {
        let existing = [variable("URL", "pg://$(PGHOST)/"), variable("PGHOST", "old"), variable("PGHOST", "older")];
        let names = |list: &[EnvVar]| list.iter().map(|v| v.name.clone()).collect::<Vec<_>>();
        let wanted = merged(&existing, &[variable("PGHOST", "127.0.0.1")]);
        assert_eq!(names(&wanted), ["PGHOST", "URL"]);
        assert_eq!(wanted[0].value.as_deref(), Some("127.0.0.1"));
        assert_eq!(merged(&wanted, &[variable("PGHOST", "127.0.0.1")]), wanted, "a second time changes nothing");
    }

    #[test]
    fn a_value_that_refers_to_others_stands_behind_them() {
        let existing =
            [variable("URL", "old"), variable("PGPASSWORD", "s"), variable("URL", "older"), variable("Z", "z")];
        let wanted = merged(&existing, &[variable("URL", "pg://$(PGPASSWORD)@{host}")]);
        let names: Vec<_> = wanted.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["PGPASSWORD", "URL", "Z"]);
        let fresh = merged(&existing[1..2], &[variable("URL", "pg://$(PGPASSWORD)@{host}")]);
        assert_eq!(fresh.last().map(|v| v.name.as_str()), Some("URL"));
    }
}
