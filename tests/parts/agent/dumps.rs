//! A tool that sets things for its whole session, beside clients that share their connections: the real pg_dump.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sluice::pooler::pgbouncer::version::Version;
use tokio::task::{JoinSet, spawn_blocking};

use super::{
    rig::{Agent, Postgres, pooler_version, program},
    sessions::{ALIAS, with_alias},
};

/// From this version on PgBouncer gives every client its own `search_path`, as far as the database reports it.
const TRACKS: Version = Version { major: 1, minor: 26, patch: 0 };
const DUMPS: usize = 8;

/// How many dumps of the database by this name worked, and what clients of the pool met meanwhile.
async fn dumps(agent: &Agent, database: &'static str) -> (usize, Vec<String>) {
    agent.client().await.batch_execute("create table items as select generate_series(1, 100) id").await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..3 {
        let (client, over) = (agent.client().await, over.clone());
        clients.spawn(async move {
            let mut met = Vec::new();
            while !over.load(Ordering::Relaxed) {
                met.extend(
                    client.simple_query("select count(*) from items").await.err().map(|error| format!("{error:?}")),
                );
            }
            met
        });
    }
    let port = agent.client_port().to_string();
    let dumped = spawn_blocking(move || {
        let mut command = Command::new(program("pg_dump"));
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "shop", database]).env("PGPASSWORD", "secret");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        (0..DUMPS).filter(|_| command.status().unwrap().success()).count()
    });
    let worked = dumped.await.unwrap();
    over.store(true, Ordering::Relaxed);
    (worked, clients.join_all().await.concat())
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_dump_through_the_session_alias_works_and_no_other_client_notices() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &with_alias(4096, 2), 4).await;
    assert_eq!(dumps(&agent, ALIAS).await, (DUMPS, Vec::new()), "{}", agent.log());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn what_a_dump_through_the_pool_itself_leaves_reaches_nobody() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &with_alias(4096, 1), 4).await;
    let (worked, met) = dumps(&agent, "shop").await;
    assert_eq!(met, Vec::<String>::new(), "{}", agent.log());
    if pooler_version() < TRACKS {
        assert_eq!(worked, DUMPS);
    }
}
