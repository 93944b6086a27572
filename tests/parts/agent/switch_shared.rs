//! The same promises where the kernel leads no client to one of two sockets, and both processes share one.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::{Signal, kill_process};
use sluice::{
    contract::{OtherRole, SlotStatus, StatusReport, Switching, UpstreamState},
    pooler::pgbouncer::console::SSL_REQUEST,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};
use tokio_postgres::NoTls;

use super::{
    counted,
    failover::{RENEWALS, asked, fence, state},
    faults::script_in,
    load::{Clients, Target},
    rig::{Agent, Postgres, pooler_version, program, until},
    sessions::{session, with_alias},
    switch::{awaits_promotion, packets, switch_times, switched, target, waits},
    value,
};

async fn sharing(agent: Agent, share: u32) -> Agent {
    let agent = agent.with_shared_listener().started(&packets(4096), share).await;
    assert_eq!(agent.status().unwrap().switching, Some(Switching::SharedListener));
    agent
}

/// The next agent cannot ask a process that leaves anything.
async fn the_agent_dies(agent: &Agent) {
    kill_process(until("an agent", async || agent.agent_pid()).await, Signal::KILL).unwrap();
}

fn is_draining(status: &StatusReport) -> bool {
    status.other.is_some_and(|other| other.role == OtherRole::Draining)
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_no_connection_is_lost_either() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = sharing(Agent::new(postgres.port, &account), 8).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 8, 100);
    clients.stay(&target(&agent), Some(Duration::from_secs(1)), Duration::from_millis(20));
    switch_times(&agent, &postgres, 8).await;
    let tally = clients.stop().await;
    assert_eq!(tally.failures(), BTreeMap::new(), "{tally:?}\n{}", agent.log());
    assert!(tally.connections() > 100 && tally.queries() > tally.connections(), "{tally:?}");
    let series = |name: &str, label: &str| format!("{name}{{pool=\"shop\",pool_namespace=\"shop\",{label}}}");
    assert_eq!(agent.metric(&series("sluice_switches_total", "result=\"Switched\"")), Some(8.0));
    assert_eq!(agent.metric(&series("sluice_switching", "mode=\"SharedListener\"")), Some(1.0));
}

/// One that the pooler has accepted and that takes its time to log in.
async fn hesitates(target: Target, hesitation: Duration) -> Result<(), String> {
    let mut stream = TcpStream::connect(target.address).await.map_err(|error| error.to_string())?;
    // nobody is accepted before the first packet
    let asked = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    asked.await.map_err(|error| format!("{error:?}"))?;
    sleep(hesitation).await;
    let (client, connection) = target.login.connect_raw(stream, NoTls).await.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    client.simple_query("select 1").await.map(|_| ()).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_one_that_is_slow_to_log_in_is_let_in_whenever_processes_change() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = sharing(Agent::new(postgres.port, &account), 8).await;
    let mut slow = JoinSet::new();
    for number in 0..24_u32 {
        let target = target(&agent);
        slow.spawn(async move {
            let mut failures = Vec::new();
            for _ in 0..6 {
                failures
                    .extend(hesitates(target.clone(), Duration::from_millis(100 + 60 * u64::from(number))).await.err());
            }
            failures
        });
    }
    switch_times(&agent, &postgres, 3).await;
    assert_eq!(slow.join_all().await.concat(), Vec::<String>::new(), "{}", agent.log());
    let slots = "sluice_pooler_errors_total{pool=\"shop\",pool_namespace=\"shop\",reason=\"OutOfSlots\"}";
    assert_eq!(agent.metric(slots), None, "that a process was kept from accepting clients is no error");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_a_configuration_that_does_not_work_gets_no_client_either() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    let real = program("pgbouncer");
    let script = format!("#!/bin/sh\ngrep -qs 'pkt_buf = 16384' -- \"$1\" && exit 1\nexec {} \"$@\"\n", real.display());
    let agent = Agent::new(postgres.port, &account).with_pooler(&script_in(&directory, &script));
    let agent = sharing(agent, 4).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 4, 50);
    let mut query = packets(8192);
    query.health.validation_query = "select no_such_thing".to_owned();
    for (revision, settings, said) in [(2, query, "no_such_thing"), (3, packets(16_384), "its process ended")] {
        agent.revise(revision, &settings);
        let status = agent.until(said, |status| status.message.contains(said)).await;
        assert_eq!((status.revision, status.slot), (Some(1), SlotStatus::Serving), "{}", agent.log());
    }
    agent.write("credentials/password", "wrong");
    agent.revise(4, &packets(8192));
    agent.until("refused", |status| status.message.contains("password authentication failed")).await;
    agent.write("credentials/password", "secret");
    switched(&agent, 4).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new(), "{}", agent.log());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_the_agent_may_die_at_any_step_and_those_who_stay_are_served_on() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = sharing(Agent::new(postgres.port, &account), 4).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 4, 50);
    for (revision, milliseconds) in [(2, 0), (3, 60), (4, 120), (5, 200), (6, 300)] {
        agent.revise(revision, &packets(4096 + 512 * u32::try_from(revision).unwrap()));
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        the_agent_dies(&agent).await;
        switched(&agent, revision).await;
    }
    // one that stays, on a process that before PgBouncer 1.25 nobody can ask anything any more
    let stays = agent.client().await;
    stays.simple_query("begin; select 1").await.unwrap();
    agent.revise(7, &packets(16_384));
    agent.until("it drains", |status| status.revision == Some(7) && is_draining(status)).await;
    the_agent_dies(&agent).await;
    let told = pooler_version().refuses_logins_at_its_end().then_some(1);
    agent.until("another agent", |status| status.other.is_some_and(|other| other.clients == told)).await;
    agent.revise(8, &packets(32_768));
    agent.until("it waits", |status| status.message.contains("WaitingForDrain")).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    stays.simple_query("commit").await.unwrap();
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    assert!(counted(&postgres.admin().await, "shop").await <= 4);
    drop(stays);
    switched(&agent, 8).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new(), "{}", agent.log());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_a_pod_that_ends_lets_transactions_of_both_processes_finish() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = sharing(Agent::new(postgres.port, &account), 4).await;
    let (stays, idle) = (agent.client().await, agent.client().await);
    stays.simple_query("select 1").await.unwrap();
    agent.revise(2, &packets(8192));
    agent.until("it is in force", |status| status.revision == Some(2)).await;
    let running = tokio::spawn(async move { value(&stays, "select 'finished' from pg_sleep(5)").await });
    // longer than the second between two readings, however late they are
    agent.until("it runs", |status| status.held.is_some_and(|held| held.active == 1)).await;
    let begin = std::time::Instant::now();
    tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(9), "one that is idle is not waited for");
    assert_eq!(tokio::time::timeout(Duration::from_secs(9), running).await.unwrap().unwrap(), "finished");
    drop(idle);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_and_a_share_of_one_both_processes_serve_their_clients_in_turn() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = sharing(Agent::new(postgres.port, &account), 1).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    agent.revise(2, &packets(8192));
    agent.until("it is in force", |status| status.revision == Some(2)).await;
    let admin = postgres.admin().await;
    for _ in 0..3 {
        let comes = agent.client().await;
        // longer than a turn, and than the answer to PAUSE is waited for
        let blue = value(&stays, "select 'blue' from pg_sleep(5)");
        let green = async {
            agent.until("it is at work", |status| status.held.is_some_and(|held| held.active == 1)).await;
            value(&comes, "select 'green'").await
        };
        let both = async { tokio::join!(blue, green) };
        let both = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!(both, ("blue".to_owned(), "green".to_owned()));
        assert!(counted(&admin, "shop").await <= 1);
    }
    agent.until("it is still asked", |status| status.other.is_some_and(|other| other.clients == Some(1))).await;
    drop(stays);
    switched(&agent, 2).await;
    assert_eq!(agent.metric("sluice_clients_cut_total{"), Some(0.0));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_and_a_share_of_one_the_new_process_has_its_turns_however_busy_the_old_one_is() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = sharing(Agent::new(postgres.port, &account), 1).await;
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let stays = agent.client().await;
        busy.spawn(async move {
            loop {
                stays.simple_query("select pg_sleep(0.7)").await.unwrap();
            }
        });
    }
    agent.revise(2, &packets(8192));
    agent.until("it is in force", |status| status.revision == Some(2)).await;
    let comes = agent.client().await;
    for _ in 0..6 {
        agent.until("the old one is at work", |status| status.held.is_some_and(|held| held.active == 1)).await;
        let served = tokio::time::timeout(Duration::from_secs(20), value(&comes, "select 'green'")).await;
        assert_eq!(served.expect("a turn"), "green");
    }
    agent.until("it is still asked", |status| status.other.is_some_and(|other| other.clients == Some(3))).await;
    busy.shutdown().await;
    switched(&agent, 2).await;
    assert_eq!(agent.metric("sluice_clients_cut_total{"), Some(0.0));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_a_new_process_that_nobody_has_promoted_gets_no_client_either() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = sharing(Agent::new(postgres.port, &account), 4).await;
    let blue = agent.pooler_pid();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 4, 40);
    let (by_hand, status) = awaits_promotion(&agent).await;
    assert!(waits(&status) && agent.pooler_pid() == blue);
    // the next agent does not know that it was proven
    the_agent_dies(&agent).await;
    agent.until("another one waits", |status| status.revision == Some(1) && waits(status)).await;
    assert_eq!(agent.pooler_pid(), blue);
    let mut promoted = by_hand.clone();
    promoted.rollout.auto_promotion_enabled = true;
    agent.revise(3, &promoted);
    switched(&agent, 3).await;
    let serves = agent.pooler_pids();
    // what is not wanted any more goes
    let mut another = packets(16_384);
    another.rollout.auto_promotion_enabled = false;
    agent.revise(4, &another);
    agent.until("it waits", waits).await;
    agent.revise(5, &promoted);
    switched(&agent, 5).await;
    assert_eq!(agent.pooler_pids(), serves);
    assert_eq!(clients.stop().await.failures(), BTreeMap::new(), "{}", agent.log());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_shared_socket_and_a_session_alias_what_needs_a_new_process_waits_until_one_starts() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::new(postgres.port, &account).with_shared_listener().started(&with_alias(4096, 2), 6).await;
    assert_eq!(agent.status().unwrap().switching, Some(Switching::Unsupported));
    let worker = session(&agent).await;
    worker.batch_execute("set statement_timeout = '77s'").await.unwrap();
    agent.revise(2, &with_alias(8192, 2));
    let status = agent.until("it is told", |status| status.message.contains("RestartRequired: pkt_buf")).await;
    assert_eq!((status.revision, status.other), (Some(1), None));
    assert_eq!(value(&worker, "show statement_timeout").await, "77s");
    assert_eq!(value(&agent.client().await, "select 'the pool itself'").await, "the pool itself");
    let taken_over = |revision: u64| {
        kill_process(agent.pooler_pid().unwrap(), Signal::KILL).unwrap();
        switched(&agent, revision)
    };
    taken_over(2).await;
    assert_eq!(value(&session(&agent).await, "select 'a session'").await, "a session");
    agent.revise(3, &packets(8192));
    agent.until("it is told", |status| status.message.contains("RestartRequired: sessionAlias")).await;
    taken_over(3).await;
    assert_eq!(agent.status().unwrap().switching, Some(Switching::SharedListener));
    agent.revise(4, &packets(16_384));
    switched(&agent, 4).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_process_that_nobody_can_ask_does_not_keep_the_other_one_with_a_demoted_primary() {
    let (postgres, account) = Postgres::with_shop().await;
    let shared = Agent::new(postgres.port, &account).with_shared_listener();
    let agent = shared.started(&asked(packets(4096)), 4).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    agent.revise(2, &asked(packets(8192)));
    agent.until("it drains", |status| status.revision == Some(2) && is_draining(status)).await;
    the_agent_dies(&agent).await;
    let known = |status: &StatusReport| status.revision == Some(2) && state(status) == Some(UpstreamState::Primary);
    agent.until("the database is known", |status| known(status) && is_draining(status)).await;
    fence(&postgres).await;
    until("connections are renewed", async || agent.metric(RENEWALS).filter(|renewals| *renewals >= 1.0)).await;
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    drop(stays);
    switched(&agent, 2).await;
}
