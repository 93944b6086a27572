//! PURE: containers that work with a session of the database, which a transaction pool does not give: dumps, maintenance, migrations.
//!
//! What such a tool sets for its session goes on to others or is lost, and advisory locks and temporary tables are left behind. It works
//! through the session alias, so the user is told its name.

use k8s_openapi::api::core::v1::Container;

use super::{
    PodPool,
    warning::{Warning, WarningText},
};
use crate::contract::PoolMode;

/// Programs by their names, and what they are also called as images.
const TOOLS: [&str; 21] = [
    "alembic",
    "atlas",
    "clusterdb",
    "dbmate",
    "flyway",
    "goose",
    "graphile-migrate",
    "knex",
    "liquibase",
    "migrate",
    "node-pg-migrate",
    "pg_amcheck",
    "pg_dump",
    "pg_dumpall",
    "pg_repack",
    "pg_restore",
    "pgroll",
    "reindexdb",
    "sqitch",
    "tern",
    "vacuumdb",
];
/// What programs of many purposes are asked for: `manage.py migrate`, `rake db:migrate`, `artisan migrate:fresh`, `typeorm migration:run`.
const TASKS: [&str; 3] = ["migrate", "migration", "migrations"];

/// What a script does beside running programs.
const OF_THE_SHELL: [&str; 12] =
    ["#!/bin/sh", "#!/bin/bash", ".", "cd", "do", "done", "echo", "exit", "export", "fi", "set", "sleep"];

/// The warning for a container that runs such a tool and does not ask for the session alias.
pub fn warning(container: &Container, plan: &PodPool<'_>) -> Option<WarningText> {
    let settings = &plan.revision.settings;
    let tool = (settings.pool_mode == PoolMode::Transaction).then(|| tool_of(container)).flatten()?;
    let alias = settings.session_alias.as_ref().map(|alias| alias.database.as_str());
    if alias.is_some_and(|alias| names(container, alias)) {
        return None;
    }
    // what else the container runs would queue for the few connections of the alias
    let apart = if runs_more(container) {
        "run it in a container of its own (an init container, or a Job), because the rest of this one's command belongs to the transaction pool; "
    } else {
        ""
    };
    let cure = alias.map_or_else(
        || {
            let database = &plan.pool.spec.upstream.database;
            format!(
                "set pgbouncer.sessionAlias of the pool, for example {{database: {database}_session, connections: 1}}, and have it connect to that: env PGDATABASE={database}_session"
            )
        },
        |alias| format!("have it connect to database {alias}, the session alias of the pool: env PGDATABASE={alias}"),
    );
    Some(Warning::SessionTool.text(
        &format!("container {}: {tool} ", container.name),
        &format!(", and with transaction pooling what it sets is lost or reaches other clients; {apart}{cure}"),
    ))
}

fn texts(container: &Container) -> impl Iterator<Item = &str> {
    container.command.iter().chain(&container.args).flatten().map(String::as_str)
}

/// The tool that a text of a command names.
fn tool_in(text: &str) -> Option<&str> {
    let is_separator = |c: char| c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')' | '"' | '\'' | '`' | '$');
    let programs = text.split(is_separator).map(|word| word.rsplit('/').next().unwrap_or(word));
    programs.filter(|word| !word.starts_with('-')).find(|word| {
        let is_task = word.split(':').any(|part| TASKS.contains(&part));
        TOOLS.contains(word) || is_task
    })
}

/// Whether a script of the container runs the tool and then, or before, something that is neither such a tool nor of the shell itself.
fn runs_more(container: &Container) -> bool {
    let is_other = |command: &str| {
        let program = command.split_whitespace().next();
        program.is_some_and(|program| !OF_THE_SHELL.contains(&program)) && tool_in(command).is_none()
    };
    texts(container)
        .filter(|text| tool_in(text).is_some())
        .flat_map(|script| script.split([';', '\n']))
        .flat_map(|line| line.split("&&"))
        .flat_map(|line| line.split("||"))
        .any(is_other)
}

/// The tool that a container runs, as far as its command and its image tell.
fn tool_of(container: &Container) -> Option<String> {
    let of_command = texts(container).find_map(tool_in);
    let image = container.image.as_deref().unwrap_or_default();
    let image = image.rsplit('/').next().unwrap_or(image);
    let image = image.split(['@', ':']).next().unwrap_or(image);
    of_command.or_else(|| TOOLS.contains(&image).then_some(image)).map(str::to_owned)
}

/// Whether a container mentions the alias: in a variable or on its command line.
fn names(container: &Container, alias: &str) -> bool {
    let values = container.env.iter().flatten().filter_map(|variable| variable.value.as_deref());
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    texts(container).chain(values).any(|text| text.split(|c| !is_name(c)).any(|word| word == alias))
}
