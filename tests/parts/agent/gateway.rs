//! The agent as a gateway: clients of other pods come to it, and go elsewhere before it ends.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    rig::{Agent, Postgres, connect, settings, until},
    value,
};

/// Another address than the one that a sidecar listens on.
const NEIGHBOUR: &str = "127.0.0.2";

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_gateway_listens_on_every_address_and_is_ready_once_it_may_open_a_connection() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::new(postgres.port, &account).for_network();
    agent.revise(1, &settings());
    agent.run();
    agent.until("the pooler serves", |status| status.slot == sluice::contract::SlotStatus::Serving).await;
    assert!(!agent.is_ready(), "clients could go to another one, which has a share");
    agent.grant(1, 3, 3);
    until("it is ready", async || agent.is_ready().then_some(())).await;

    let from_elsewhere = |user: &str, password: &str, database: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host(NEIGHBOUR).port(agent.client_port()).user(user).password(password).dbname(database);
        config
    };
    let client = connect(&from_elsewhere(&account.user, &account.password, &account.database)).await.unwrap();
    assert_eq!(value(&client, "select 1").await, "1");
    let wrong = [
        (account.user.as_str(), "wrong", account.database.as_str()),
        ("postgres", "", account.database.as_str()),
        (account.user.as_str(), account.password.as_str(), "pgbouncer"),
        ("pgbouncer", account.password.as_str(), "pgbouncer"),
    ];
    for (user, password, database) in wrong {
        let outcome = connect(&from_elsewhere(user, password, database)).await;
        assert!(outcome.is_err(), "{user} was let in to {database}");
    }

    agent.grant(2, 0, 0);
    until("without a share it is not ready", async || (!agent.is_ready()).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_sidecar_listens_on_loopback_alone() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 3).await;
    assert!(std::net::TcpStream::connect((NEIGHBOUR, agent.client_port())).is_err());
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_stranger_who_asks_for_an_option_without_a_name_holds_up_nobody() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 3).await;
    // version 3.0, then names and values, and an end
    let mut startup = vec![0, 3, 0, 0];
    for word in ["user", account.user.as_str(), "database", account.database.as_str(), "options", "-c=", ""] {
        startup.extend(word.bytes());
        startup.push(0);
    }
    let length = u32::try_from(startup.len() + 4).unwrap();
    let mut stranger = TcpStream::connect(("127.0.0.1", agent.client_port())).await.unwrap();
    stranger.write_all(&length.to_be_bytes()).await.unwrap();
    stranger.write_all(&startup).await.unwrap();
    let answer = timeout(Duration::from_secs(20), stranger.read_u8()).await;
    assert!(answer.is_ok_and(|answer| answer.is_ok()), "PgBouncer is lost in its list of parameters (CVE-2026-107349)");
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn draining_waits_for_the_last_client_and_no_longer() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 3).await;
    let client = agent.client().await;
    let port = agent.http().port();
    let draining = tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        sluice::agent::commands::drain::drain(port, Duration::from_mins(2));
        begin.elapsed()
    });
    let left_after = Duration::from_secs(9);
    let begin = Instant::now();
    while begin.elapsed() < left_after {
        assert_eq!(value(&client, "select 1").await, "1", "it is served on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!draining.is_finished(), "somebody is still there");
    drop(client);
    let took = draining.await.unwrap();
    assert!(took > left_after && took < Duration::from_secs(90), "{took:?}");

    let port = agent.http().port();
    let _stays = agent.client().await;
    let begin = Instant::now();
    let bounded =
        tokio::task::spawn_blocking(move || sluice::agent::commands::drain::drain(port, Duration::from_secs(7)));
    bounded.await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(7), "who stays is waited for as long as there is time");
}
