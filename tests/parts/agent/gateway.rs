//! The agent as a gateway: clients of other pods come to it, and go elsewhere before it ends.

use std::time::{Duration, Instant};

use sluice::pooler::pgbouncer::console::Console;

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
async fn pgbouncer_runs_with_the_guard_against_its_hang_before_a_login_and_lets_in_who_asks_for_what_is_ignored() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 3).await;
    let mut console = Console::new(&agent.run_dir().join("a"), agent.client_port(), Duration::from_secs(5));
    let list = console.config().await.unwrap()["ignore_startup_parameters"].clone();
    assert!(list.ends_with(','), "the end of this list is the guard, and PgBouncer runs with {list:?}");
    let mut config = agent.client_config();
    config.options("-c extra_float_digits=3");
    let client = connect(&config).await.expect("what is ignored keeps nobody out");
    assert_eq!(value(&client, "select 1").await, "1");
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
