//! PURE: containers that work with a session of the database, which a transaction pool does not give: dumps, maintenance, migrations.
//!
//! What such a tool sets for its session goes on to others or is lost, and advisory locks and temporary tables are left behind. It works
//! through the session alias, so the user is told its name.

use k8s_openapi::api::core::v1::Container;

use super::PodPool;
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

/// The warning for a container that runs such a tool and does not ask for the session alias.
pub fn warning(container: &Container, plan: &PodPool<'_>) -> Option<String> {
    let settings = &plan.revision.settings;
    let tool = (settings.pool_mode == PoolMode::Transaction).then(|| tool_of(container)).flatten()?;
    let alias = settings.session_alias.as_ref().map(|alias| alias.database.as_str());
    if alias.is_some_and(|alias| names(container, alias)) {
        return None;
    }
    let cure = alias.map_or_else(
        || {
            let database = &plan.pool.spec.upstream.database;
            format!(
                "set pgbouncer.sessionAlias of the pool, for example {{database: {database}_session, connections: 1}}, and have it connect to that: env PGDATABASE={database}_session"
            )
        },
        |alias| format!("have it connect to database {alias}, the session alias of the pool: env PGDATABASE={alias}"),
    );
    Some(format!(
        "container {}: {tool} needs a session of its own, and with transaction pooling what it sets is lost or reaches other clients; {cure}",
        container.name
    ))
}

fn texts(container: &Container) -> impl Iterator<Item = &str> {
    container.command.iter().chain(&container.args).flatten().map(String::as_str)
}

/// The tool that a container runs, as far as its command and its image tell.
fn tool_of(container: &Container) -> Option<String> {
    let is_separator = |c: char| c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')' | '"' | '\'' | '`' | '$');
    let words = texts(container).flat_map(|text| text.split(is_separator));
    let programs = words.map(|word| word.rsplit('/').next().unwrap_or(word));
    let of_command = programs.filter(|word| !word.starts_with('-')).find(|word| {
        let is_task = word.split(':').any(|part| TASKS.contains(&part));
        TOOLS.contains(word) || is_task
    });
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
