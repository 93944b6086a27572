//! The session alias: what transaction pooling breaks works through it, within a part of the share of its own.

use std::{future::poll_fn, time::Duration};

use rustix::process::{Signal, kill_process};
use sluice::contract::{OtherRole, SessionAlias, Settings};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use super::{
    counted,
    load::{Clients, Target},
    proven_within,
    rig::{Account, Agent, Postgres, connect, until},
    switch::{packets, switched, target},
    value,
};

/// The session alias of [`with_alias`].
pub const ALIAS: &str = "shop_session";

/// Settings with an alias; another size of packets needs another process.
pub fn with_alias(size: u32, connections: u32) -> Settings {
    let session_alias = Some(SessionAlias { database: ALIAS.to_owned(), connections });
    Settings { session_alias, ..packets(size) }
}

fn session_config(agent: &Agent) -> Config {
    let mut config = agent.client_config();
    config.dbname(ALIAS);
    config
}

pub async fn session(agent: &Agent) -> Client {
    connect(&session_config(agent)).await.unwrap()
}

async fn with_shop() -> (Postgres, Account, Client) {
    let (postgres, account) = Postgres::with_shop().await;
    let admin = postgres.admin().await;
    (postgres, account, admin)
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn what_transaction_pooling_breaks_works_through_the_alias_and_the_pool_itself_stays_in_transaction_mode() {
    let (postgres, account, _) = with_shop().await;
    let agent = Agent::start(&postgres, &account, &with_alias(4096, 2), 4).await;
    let (worker, mut connection) = session_config(&agent).connect(NoTls).await.unwrap();
    let (told, mut notifications) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = told.send(notification.payload().to_owned());
            }
        }
    });
    worker.batch_execute("listen orders; set statement_timeout = '77s'; select pg_advisory_lock(42)").await.unwrap();
    // two clients of the pool itself share a connection, one after the other
    let (first, second) = (agent.client().await, agent.client().await);
    let backend = "select pg_backend_pid()";
    let shared = value(&first, backend).await;
    assert_eq!(value(&second, backend).await, shared);
    first.batch_execute("notify orders, 'from the pool'").await.unwrap();
    let payload = tokio::time::timeout(Duration::from_secs(30), notifications.recv()).await.unwrap();
    assert_eq!(payload.as_deref(), Some("from the pool"));
    assert_eq!(value(&worker, "show statement_timeout").await, "77s");
    assert_eq!(value(&first, "show statement_timeout").await, "0");
    assert_ne!(value(&worker, backend).await, shared);
    let other = session(&agent).await;
    assert_eq!(value(&other, "select pg_try_advisory_lock(42)").await, "f");
    assert_eq!(value(&other, "show statement_timeout").await, "0");
    let status =
        agent.until("both are seen", |status| status.session_alias.as_ref().is_some_and(|a| a.held == 2)).await;
    let alias = status.session_alias.unwrap();
    assert_eq!((alias.database.as_str(), alias.connections, alias.clients, alias.paused), (ALIAS, 2, 2, false));
    let limits = status.limits.unwrap();
    assert_eq!((limits.pool_size, limits.max_db_connections), (2, 4), "the pool itself has what is left");
    assert_eq!(status.held.unwrap().active, 0, "sessions are no demand");
    let metric = "sluice_server_connections{pool=\"shop\",pool_namespace=\"shop\",state=\"session\"}";
    // the figures are those of the last reading
    until("the metric shows both", async || (agent.metric(metric) == Some(2.0)).then_some(())).await;
    drop(worker);
    until("the lock is free", async || (value(&other, "select pg_try_advisory_lock(42)").await == "t").then_some(()))
        .await;
}

/// Clients of the pool itself and of its alias, more than the share serves, until the load is dropped.
fn saturate(agent: &Agent) -> tokio::task::JoinSet<()> {
    let mut load = tokio::task::JoinSet::new();
    for client in 0..16 {
        let config = if client < 10 { agent.client_config() } else { session_config(agent) };
        load.spawn(async move {
            loop {
                let client = connect(&config).await.unwrap();
                for _ in 0..5 {
                    client.simple_query("select pg_sleep(0.004)").await.unwrap();
                }
            }
        });
    }
    load
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn under_load_on_both_the_database_never_counts_more_than_what_is_granted() {
    let (postgres, account, admin) = with_shop().await;
    let agent = Agent::start(&postgres, &account, &with_alias(4096, 2), 6).await;
    let load = saturate(&agent);
    let (mut share, mut seq) = (6, 1);
    for next in [3, 9, 2, 1, 0, 5] {
        seq += 1;
        let granted = share.max(next);
        agent.grant(seq, next, granted);
        proven_within(&agent, &admin, seq, granted).await;
        for _ in 0..20 {
            let most = counted(&admin, "shop").await;
            assert!(most <= i64::from(next), "{most} open of a share of {next}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        share = next;
    }
    let alias = agent.until("the alias is open again", |s| s.session_alias.as_ref().is_some_and(|a| !a.paused)).await;
    assert_eq!(alias.limits.unwrap().max_db_connections, 5);
    drop(load);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_alias_that_the_share_has_no_room_for_waits_and_says_so() {
    let (postgres, account, admin) = with_shop().await;
    let agent = Agent::start(&postgres, &account, &with_alias(4096, 2), 2).await;
    let status =
        agent.until("it says so", |status| status.message.contains("session alias shop_session is paused")).await;
    assert!(status.session_alias.unwrap().paused);
    assert_eq!(status.limits.unwrap().pool_size, 2, "the pool itself has all of it");
    let config = session_config(&agent);
    let waits = tokio::spawn(async move { value(&connect(&config).await.unwrap(), "select 'through'").await });
    until("it waits", async || agent.status()?.session_alias.filter(|alias| alias.clients == 1)).await;
    assert!(counted(&admin, "shop").await <= 2);
    agent.grant(2, 3, 3);
    assert_eq!(tokio::time::timeout(super::rig::DEADLINE, waits).await.unwrap().unwrap(), "through");
    agent.until("nothing is in the way", |status| status.message.is_empty() && status.seq == 2).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_switch_keeps_sessions_where_they_are_and_gives_new_ones_a_place_within_the_share() {
    let (postgres, account, admin) = with_shop().await;
    let agent = Agent::start(&postgres, &account, &with_alias(4096, 2), 6).await;
    let worker = session(&agent).await;
    worker.batch_execute("set statement_timeout = '77s'; listen orders").await.unwrap();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 4, 40);
    let sessions = Target { login: session_config(&agent), ..target(&agent) };
    clients.churn(&sessions, 1, 10);
    agent.revise(2, &with_alias(8192, 2));
    until("it is in force, and the old one drains", async || {
        let open = counted(&admin, "shop").await;
        assert!(open <= 6, "{open} open of a share of 6");
        let status = agent.status()?;
        let drains = status.other.is_some_and(|other| other.role == OtherRole::Draining && other.clients == Some(1));
        (status.revision == Some(2) && drains).then_some(())
    })
    .await;
    let comes = session(&agent).await;
    assert_eq!(value(&comes, "select 'new session'").await, "new session");
    assert_eq!(value(&worker, "show statement_timeout").await, "77s");
    assert!(counted(&admin, "shop").await <= 6);
    // a session is never idle: it holds a connection, and a further revision waits for it
    let mut third = with_alias(16_384, 2);
    third.rollout.drain_timeout_seconds = 1;
    agent.revise(3, &third);
    agent.until("it waits", |status| status.message.contains("WaitingForDrain")).await;
    drop(comes);
    drop(worker);
    switched(&agent, 3).await;
    assert_eq!(clients.stop().await.failures(), std::collections::BTreeMap::new());
    let limits = agent.until("all of it comes back", |s| s.limits.is_some_and(|l| l.pool_size == 4)).await.limits;
    assert_eq!(limits.unwrap().max_db_connections, 6);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_alias_comes_changes_and_goes_without_cutting_a_session() {
    let (postgres, account, _) = with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 6).await;
    assert!(connect(&session_config(&agent)).await.is_err(), "there is none yet");
    agent.revise(2, &with_alias(4096, 2));
    switched(&agent, 2).await;
    let worker = session(&agent).await;
    worker.batch_execute("set statement_timeout = '77s'").await.unwrap();
    agent.revise(3, &packets(4096));
    agent.until("new clients come to the one without", |status| status.revision == Some(3)).await;
    assert!(connect(&session_config(&agent)).await.is_err(), "it is gone");
    assert_eq!(value(&worker, "show statement_timeout").await, "77s");
    // another agent does not know what the old process runs, and gives it new credentials all the same
    kill_process(until("an agent", async || agent.agent_pid()).await, Signal::KILL).unwrap();
    agent.until("another agent", |status| status.other.is_some_and(|other| other.role == OtherRole::Draining)).await;
    postgres.admin().await.batch_execute("alter role shop password 'another'").await.unwrap();
    agent.write("credentials/password", "another");
    until("they are in force", async || {
        let mut config = agent.client_config();
        connect(config.password("another")).await.ok()
    })
    .await;
    assert_eq!(value(&worker, "show statement_timeout").await, "77s");
    drop(worker);
    switched(&agent, 3).await;
}
