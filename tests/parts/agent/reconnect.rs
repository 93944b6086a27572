//! Server connections are renewed because the spec asks for it: what they keep after a migration is stale, for new clients too.

use rustix::process::{Signal, kill_process};
use sluice::contract::{Reconnected, Settings, StatusReport};
use tokio_postgres::{Client, error::SqlState};

use super::{
    rig::{Account, Agent, Postgres, connect, settings, until},
    value,
};

/// What every client prepares, with a result that the migration changes.
const QUERY: &str = "select * from items";
const CLIENTS: u32 = 20;

fn asked(at: &str) -> Settings {
    Settings { reconnected_at: Some(at.to_owned()), ..settings() }
}

fn done(at: &str) -> impl Fn(&StatusReport) -> bool {
    let done = Some(Reconnected { at: at.to_owned(), remaining: Some(0) });
    move |status| status.reconnected == done && status.message.is_empty()
}

/// How many of [`CLIENTS`] that come now fail with "cached plan must not change result type".
async fn failing(agent: &Agent) -> u32 {
    let mut failing = 0;
    for _ in 0..CLIENTS {
        let client = agent.client().await;
        let failed = match client.prepare(QUERY).await {
            Ok(statement) => client.query(&statement, &[]).await.err(),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{error}");
            failing += 1;
        }
    }
    failing
}

/// A table whose plans every server connection of the pool holds, and its owner, who is connected to the database itself.
async fn with_plans(postgres: &Postgres, account: &Account, agent: &Agent, share: usize) -> Client {
    let mut owner = tokio_postgres::Config::new();
    owner
        .host("127.0.0.1")
        .port(postgres.port)
        .user(&account.user)
        .password(&account.password)
        .dbname(&account.database);
    let owner = connect(&owner).await.unwrap();
    owner.batch_execute("create table items (id int); insert into items values (1)").await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..share {
        let client = agent.client().await;
        client.batch_execute("begin").await.unwrap();
        let statement = client.prepare(QUERY).await.unwrap();
        client.query(&statement, &[]).await.unwrap();
        clients.push(client);
    }
    for client in &clients {
        client.batch_execute("commit").await.unwrap();
    }
    owner
}

async fn migrate(owner: &Client) {
    owner.batch_execute("alter table items alter column id type bigint").await.unwrap();
}

/// Processes of PostgreSQL that serve the pool.
async fn backends(postgres: &Postgres) -> Vec<i32> {
    let query = "select pid from pg_stat_activity where usename = 'shop' order by pid";
    postgres.admin().await.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn after_a_migration_a_reconnect_has_new_clients_served_again_and_cuts_nobody() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let owner = with_plans(&postgres, &account, &agent, 4).await;
    assert_eq!(failing(&agent).await, 0);
    migrate(&owner).await;
    assert_eq!(failing(&agent).await, CLIENTS, "what server connections keep is stale, for new clients too");

    // those that are connected stay, whatever they do: wait, work, or hold a transaction open
    let (waiting, holding) = (agent.client().await, agent.client().await);
    assert_eq!(value(&waiting, "select 1").await, "1");
    holding.batch_execute("begin; select 1").await.unwrap();
    let mut working = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = agent.client().await;
        working.spawn(async move {
            for _ in 0..400 {
                assert_eq!(value(&client, "select 1 from pg_sleep(0.01)").await, "1");
            }
        });
    }
    agent.revise(2, &asked("2026-11-28T12:00:00Z"));
    let remains = |status: &StatusReport| status.reconnected.as_ref().is_some_and(|it| it.remaining == Some(1));
    let status = agent.until("the transaction keeps its connection", remains).await;
    assert_eq!(status.revision, Some(2));
    assert!(status.held.is_none_or(|held| held.held <= 4), "{:?}", status.held);
    assert_eq!(failing(&agent).await, 0, "none is served by an old connection");
    holding.batch_execute("commit").await.unwrap();
    agent.until("the last one has gone too", done("2026-11-28T12:00:00Z")).await;
    assert_eq!(value(&holding, "select 'still here'").await, "still here");
    assert_eq!(value(&waiting, "select 'still here'").await, "still here");
    while let Some(worked) = working.join_next().await {
        worked.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_reconnect_is_done_once_whatever_restarts_and_never_for_an_earlier_time() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::start(&postgres, &account, &settings(), 3).await;
    drop(with_plans(&postgres, &account, &agent, 3).await);
    until("the owner has gone", async || (backends(&postgres).await.len() <= 3).then_some(())).await;
    let before = backends(&postgres).await;
    agent.revise(2, &asked("2026-11-28T12:00:00Z"));
    agent.until("it is done", done("2026-11-28T12:00:00Z")).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    let renewed = backends(&postgres).await;
    assert!(!renewed.is_empty() && renewed.iter().all(|pid| !before.contains(pid)), "{before:?} {renewed:?}");

    // the next agent, another revision with the same time, and one with an earlier: all leave what is open
    let is_kept = || std::fs::read_to_string(agent.state_file()).ok().filter(|kept| kept.contains("T12:00:00Z"));
    until("it is kept", async || is_kept()).await;
    let first = agent.agent_pid().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    until("another agent", async || agent.agent_pid().filter(|pid| *pid != first)).await;
    agent.until("it knows that it was done", done("2026-11-28T12:00:00Z")).await;
    let mut again = asked("2026-11-28T12:00:00Z");
    again.health.query_wait_timeout_seconds = 31;
    agent.revise(3, &again);
    agent.until("the same time", |status| status.revision == Some(3)).await;
    agent.revise(4, &asked("2026-11-28T11:59:59Z"));
    let status = agent.until("an earlier time", |status| status.revision == Some(4)).await;
    assert_eq!(
        status.reconnected.map(|told| told.at).as_deref(),
        Some("2026-11-28T12:00:00Z"),
        "what was done is told"
    );
    assert_eq!(backends(&postgres).await, renewed);

    // a container that starts anew has no old connections
    agent.stop();
    agent.run();
    agent.until("it serves again", |status| status.revision == Some(4) && status.limits.is_some()).await;
    let told = agent.log().matches("server connections are renewed as transactions end").count();
    assert_eq!(told, 1);
}
