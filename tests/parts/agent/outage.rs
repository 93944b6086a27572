//! A database that is away: who waits for a moment notices nothing, nobody waits for long, and all is as before once it is back.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};
use sluice::{
    contract::{CircuitState, OtherRole, OutageAction, Settings, StatusReport},
    pooler::pgbouncer::console::Console,
};
use tokio::task::JoinHandle;

use super::{
    load::Clients,
    names::{NameServer, Reply},
    rig::{Account, Agent, Postgres, connect, settings, until},
    switch::{packets, target},
    value,
};

/// Far more than any of this takes: whoever hears something before it was told by the breaker.
const LONG_WAIT_SECONDS: u32 = 120;
/// Clients are told within so long once it is open.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// They are served within so long once the database is back.
pub const SERVED_WITHIN: Duration = Duration::from_secs(30);

pub fn patient(mut settings: Settings) -> Settings {
    settings.health.query_wait_timeout_seconds = LONG_WAIT_SECONDS;
    settings
}

/// None before its first round.
fn state(status: &StatusReport) -> Option<CircuitState> {
    status.circuit.as_ref().map(|circuit| circuit.state)
}

/// Waits until it is open, and tells why.
pub async fn opened(agent: &Agent) -> String {
    let status = agent.until("it is open", |status| state(status) == Some(CircuitState::Open)).await;
    assert_eq!(metric(agent, "Open"), Some(1.0));
    status.circuit.expect("it has a breaker").why
}

fn metric(agent: &Agent, state: &str) -> Option<f64> {
    let metrics = agent.metrics();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("sluice_circuit_state{") && line.contains(&format!("\"{state}\"")));
    line?.rsplit_once(' ')?.1.parse().ok()
}

pub async fn closed(agent: &Agent) {
    agent.until("it is closed", |status| state(status) == Some(CircuitState::Closed)).await;
    assert_eq!(metric(agent, "Closed"), Some(1.0));
}

/// For how long clients of the process in this slot wait.
pub async fn patience(agent: &Agent, slot: &str) -> String {
    let mut console = Console::new(&agent.run_dir().join(slot), agent.client_port(), Duration::from_secs(5));
    console.config().await.unwrap().remove("query_wait_timeout").unwrap()
}

/// What a client that comes now is told, and within which time.
pub async fn is_told(agent: &Agent) -> (String, Duration) {
    let (config, begin) = (agent.client_config(), Instant::now());
    let comes = async {
        match connect(&config).await {
            Ok(client) => client.simple_query("select 1").await.map(drop),
            Err(error) => Err(error),
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(20), comes).await.expect("it is told something");
    let error = told.expect_err("nobody could serve it");
    (error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()), begin.elapsed())
}

/// Waits until a client is served; how long that took.
pub async fn served(agent: &Agent) -> Duration {
    let begin = Instant::now();
    until("clients are served", async || {
        let client = connect(&agent.client_config()).await.ok()?;
        client.simple_query("select 1").await.ok().map(drop)
    })
    .await;
    begin.elapsed()
}

/// Clients that wait for the only server connection, which another one holds.
async fn queue(agent: &Agent, count: usize) -> Vec<JoinHandle<Result<(), tokio_postgres::Error>>> {
    let holds = agent.client().await;
    tokio::spawn(async move { holds.simple_query("select pg_sleep(600)").await.map(drop) });
    agent.until("it is held", |status| status.held.is_some_and(|held| held.active == 1)).await;
    let mut waiting = Vec::new();
    for _ in 0..count {
        let client = agent.client().await;
        waiting.push(tokio::spawn(async move { client.simple_query("select 1").await.map(drop) }));
    }
    // and perhaps the agent, who asks whether the database takes writes
    let all_wait = |status: &StatusReport| status.held.is_some_and(|held| held.waiting as usize >= count);
    agent.until("all of them wait", all_wait).await;
    waiting
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn when_the_database_is_stopped_clients_are_told_within_two_seconds_and_are_served_again_when_it_is_back() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &patient(settings()), 1).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    closed(&agent).await;
    let waiting = queue(&agent, 3).await;
    let pooler = agent.pooler_pid();
    postgres.stop();
    let stopped = Instant::now();
    let why = opened(&agent).await;
    let open = Instant::now();
    println!("open after {:.1} s: {why}", stopped.elapsed().as_secs_f64());
    assert!(stopped.elapsed() >= Duration::from_secs(4), "who waits is held for a while");
    for client in waiting {
        client.await.unwrap().expect_err("nobody could serve it");
    }
    assert!(open.elapsed() <= TOLD_WITHIN, "{:?}", open.elapsed());
    for _ in 0..3 {
        let (told, within) = is_told(&agent).await;
        println!("told after {:.1} s: {told}", within.as_secs_f64());
        assert!(within <= TOLD_WITHIN, "{told} after {within:?}");
    }
    assert_eq!((patience(&agent, "a").await.as_str(), agent.pooler_pid()), ("1", pooler));
    let status = agent.status().unwrap();
    assert_eq!(status.limits.map(|limits| (limits.pool_size, limits.paused)), Some((1, false)), "nothing is resized");

    postgres.resume().await;
    let after = served(&agent).await;
    println!("served after {:.1} s", after.as_secs_f64());
    assert!(after <= SERVED_WITHIN);
    closed(&agent).await;
    until("clients wait as they may", async || {
        (patience(&agent, "a").await == LONG_WAIT_SECONDS.to_string()).then_some(())
    })
    .await;
    assert_eq!(agent.pooler_pid(), pooler);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_switchover_of_three_seconds_fails_no_client_that_waits() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &patient(settings()), 1).await;
    let waiting = queue(&agent, 5).await;
    postgres.stop();
    // the time that it takes is what is tried
    tokio::time::sleep(Duration::from_secs(2)).await;
    postgres.resume().await;
    for client in waiting {
        client.await.unwrap().expect("it has waited, and was served");
    }
    closed(&agent).await;
    assert!(!agent.log().contains("the database is away"), "{}", agent.log());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_agent_that_dies_while_it_is_open_is_followed_by_one_that_goes_on_and_puts_all_back() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &patient(settings()), 2).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    let mut clients = Clients::new();
    postgres.stop();
    clients.churn(&target(&agent), 1, 5);
    opened(&agent).await;
    let before = agent.agent_pid().unwrap();
    kill_process(before, Signal::KILL).unwrap();
    until("another agent", async || agent.agent_pid().filter(|pid| *pid != before)).await;
    opened(&agent).await;
    for _ in 0..5 {
        let (told, within) = is_told(&agent).await;
        assert!(within <= TOLD_WITHIN, "{told} after {within:?}");
        assert_eq!(state(&agent.status().unwrap()), Some(CircuitState::Open));
    }
    until("told again", async || (patience(&agent, "a").await == "1").then_some(())).await;
    postgres.resume().await;
    assert!(served(&agent).await <= SERVED_WITHIN);
    closed(&agent).await;
    until("clients wait as they may", async || {
        (patience(&agent, "a").await == LONG_WAIT_SECONDS.to_string()).then_some(())
    })
    .await;
    drop(clients.stop().await);
    // and one that dies after it finds nothing to mend
    let before = agent.agent_pid().unwrap();
    kill_process(before, Signal::KILL).unwrap();
    until("another agent", async || agent.agent_pid().filter(|pid| *pid != before)).await;
    closed(&agent).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn clients_of_both_processes_are_told_while_there_are_two() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let mut before = patient(packets(4096));
    before.rollout.scale_down_delay_seconds = 600;
    let agent = Agent::start(&postgres, &account, &before, 4).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    let mut after = patient(packets(8192));
    after.rollout.scale_down_delay_seconds = 600;
    agent.revise(2, &after);
    let has_two = |status: &StatusReport| {
        status.revision == Some(2) && status.other.is_some_and(|other| other.role == OtherRole::Warm)
    };
    agent.until("there are two", has_two).await;
    assert_eq!(value(&stays, "select 1").await, "1");
    postgres.stop();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 1, 5);
    opened(&agent).await;
    for slot in ["a", "b"] {
        until("its clients are told", async || (patience(&agent, slot).await == "1").then_some(())).await;
    }
    postgres.resume().await;
    assert!(served(&agent).await <= SERVED_WITHIN);
    closed(&agent).await;
    for slot in ["a", "b"] {
        until("its clients wait as they may", async || {
            (patience(&agent, slot).await == LONG_WAIT_SECONDS.to_string()).then_some(())
        })
        .await;
    }
    drop(clients.stop().await);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_that_is_busy_or_full_or_refuses_the_role_is_not_away() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &patient(settings()), 1).await;
    let stays_closed = async |seconds| {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(seconds) {
            assert_eq!(state(&agent.status().unwrap()), Some(CircuitState::Closed), "{}", agent.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waiting = queue(&agent, 3).await;
    stays_closed(8).await;
    let admin = postgres.admin().await;
    admin.simple_query("alter role shop connection limit 0").await.unwrap();
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'shop'";
    admin.simple_query(cut).await.unwrap();
    stays_closed(8).await;
    admin.simple_query("alter role shop nologin").await.unwrap();
    stays_closed(8).await;
    waiting.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_with_a_name_is_asked_where_its_pooler_finds_it() {
    let names = NameServer::start(Reply::Address(Ipv4Addr::LOCALHOST)).await;
    let mut postgres = Postgres::start().await;
    let account = Account::shop();
    postgres.create(&account).await;
    let agent = Agent::new(postgres.port, &account)
        // of which the agent's own resolver knows nothing
        .with(|injection| "db.sluice.test".clone_into(&mut injection.upstream.host))
        .with_resolver(&names.configuration())
        .started(&patient(settings()), 2)
        .await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    postgres.stop();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 1, 5);
    let why = opened(&agent).await;
    assert!(why.contains(&format!("127.0.0.1:{}", postgres.port)), "{why}");
    // names that do not resolve any more do not keep it open: the last good answer stands
    names.says(Reply::ServerFailure);
    postgres.resume().await;
    assert!(served(&agent).await <= SERVED_WITHIN);
    closed(&agent).await;
    drop(clients.stop().await);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_the_pool_says_so_clients_wait_through_it_and_are_served_when_it_is_back() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let mut queues = patient(settings());
    queues.health.outage_action = OutageAction::Queue;
    let agent = Agent::start(&postgres, &account, &queues, 1).await;
    let waiting = queue(&agent, 3).await;
    postgres.stop();
    opened(&agent).await;
    assert_eq!(patience(&agent, "a").await, LONG_WAIT_SECONDS.to_string());
    postgres.resume().await;
    for client in waiting {
        client.await.unwrap().expect("it has waited, and was served");
    }
    closed(&agent).await;
}
