//! A revision that needs a new process: no client loses its connection, and none meets a configuration that does not work.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::{Signal, kill_process};
use sluice::contract::{OtherRole, ProofMode, RevisionWait, Settings, SlotStatus, StatusReport, Switching};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_postgres::NoTls;

use super::{
    counted,
    faults::script_in,
    load::{Clients, Target},
    rig::{Agent, Postgres, connect, program, settings, until},
    value,
};

/// The first word of a client that would like TLS: a length and the number of this request.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Settings that only a new process takes over, with as short a warm time as there is.
pub fn packets(size: u32) -> Settings {
    let mut settings = settings();
    settings.parameters.insert("pkt_buf".to_owned(), size.to_string());
    settings.rollout.scale_down_delay_seconds = 1;
    settings
}

pub fn target(agent: &Agent) -> Target {
    Target { address: ([127, 0, 0, 1], agent.client_port()).into(), login: agent.client_config(), tls: None }
}

pub async fn switched(agent: &Agent, revision: u64) {
    agent
        .until("the revision is in force, and nothing else runs", |status| {
            status.revision == Some(revision) && status.other.is_none() && status.message.is_empty()
        })
        .await;
}

/// Has new processes take over one after the other; the database never counts more than a share of 8.
pub async fn switch_times(agent: &Agent, postgres: &Postgres, times: u64) {
    let admin = postgres.admin().await;
    for revision in 2..2 + times {
        let before = agent.pooler_pid();
        agent.revise(revision, &packets(4096 + 512 * u32::try_from(revision).unwrap()));
        until("the revision is in force", async || {
            let open = counted(&admin, "shop").await;
            assert!(open <= 8, "{open} open of a share of 8");
            agent.status().filter(|status| status.revision == Some(revision) && status.other.is_none())
        })
        .await;
        assert_ne!(agent.pooler_pid(), before);
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_setting_that_needs_a_new_process_changes_under_load_and_no_connection_is_lost() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 8).await;
    assert_eq!(agent.status().unwrap().switching, Some(Switching::Steer));
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 4, 40);
    let (lifetime, think) = (Some(Duration::from_secs(2)), Duration::from_millis(20));
    clients.stay(&target(&agent), lifetime, think);
    clients.stay_at_work(&target(&agent), lifetime, think, Duration::from_millis(20));
    switch_times(&agent, &postgres, 4).await;
    let tally = clients.stop().await;
    assert_eq!(tally.failures(), BTreeMap::new());
    assert!(tally.connections() > 20 && tally.queries() > tally.connections(), "{tally:?}");
    assert_eq!(
        agent.metric("sluice_switches_total{pool=\"shop\",pool_namespace=\"shop\",result=\"Switched\"}"),
        Some(4.0)
    );
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn clients_that_stay_keep_their_process_and_a_further_revision_waits_for_them() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let stays = agent.client().await;
    stays.simple_query("begin; select 1").await.unwrap();
    agent.revise(2, &packets(8192));
    let status = agent.until("it is in force", |status| status.revision == Some(2)).await;
    assert_eq!(status.other.unwrap().revision, Some(1));
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    agent.revise(3, &packets(16_384));
    let status = agent.until("it waits", |status| status.message.contains("WaitingForDrain")).await;
    assert!(status.message.contains("1 clients of revision 1"), "{}", status.message);
    assert_eq!(status.revision_waits, Some(RevisionWait::Drain), "which is no fault of revision 3");
    assert_eq!(value(&stays, "select 'still here'").await, "still here");
    // told to, idle clients are closed; one with a transaction is not
    let mut impatient = packets(16_384);
    impatient.rollout.drain_timeout_seconds = 1;
    agent.revise(4, &impatient);
    agent.until("it is wanted", |status| status.wanted_revision == Some(4)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    stays.simple_query("commit").await.unwrap();
    switched(&agent, 4).await;
    assert!(stays.simple_query("select 1").await.is_err(), "it was idle");
}

/// The console shows clients that have logged in; one that is slow to say who it is is a client too.
#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_client_that_has_not_logged_in_yet_is_waited_for() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let mut line = TcpStream::connect(target(&agent).address).await.unwrap();
    line.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(line.read_u8().await.unwrap(), b'N', "it is asked who it is");
    agent.revise(2, &packets(8192));
    agent
        .until("it is waited for", |status| {
            status.other.is_some_and(|other| other.role == OtherRole::Draining && other.clients == Some(1))
        })
        .await;
    let (client, connection) = agent.client_config().connect_raw(line, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    assert_eq!(value(&client, "select 1").await, "1");
    drop(client);
    connection.await.unwrap().unwrap();
    switched(&agent, 2).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_configuration_that_does_not_work_gets_no_client_and_is_told() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    let real = program("pgbouncer");
    let real = real.display();
    let script = format!(
        "#!/bin/sh\ngrep -qs 'pkt_buf = 16384' -- \"$1\" && exit 1\ngrep -qs 'pkt_buf = 32768' -- \"$1\" && exec sleep 100\nexec {real} \"$@\"\n"
    );
    let pooler = script_in(&directory, &script);
    let mut agent = Agent::new(postgres.port, &account).with_pooler(&pooler);
    agent.revise(1, &packets(4096));
    agent.grant(1, 4, 4);
    agent.run();
    agent.until("it serves", |status| status.seq == 1).await;
    let blue = agent.pooler_pid();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    let mut query = packets(8192);
    query.health.validation_query = "select no_such_thing".to_owned();
    for (revision, settings, said) in
        [(2, query, "no_such_thing"), (3, packets(16_384), "its process ended"), (4, packets(32_768), "never answered")]
    {
        agent.revise(revision, &settings);
        let status = agent.until(said, |status| status.message.contains(said)).await;
        assert_eq!((status.revision, status.slot), (Some(1), SlotStatus::Serving), "{}", status.message);
    }
    assert_eq!(agent.pooler_pid(), blue);
    agent.revise(5, &packets(8192));
    switched(&agent, 5).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

/// Whether a proven process waits for somebody to promote it.
pub fn waits(status: &StatusReport) -> bool {
    status.other.is_some_and(|other| other.awaiting_promotion)
}

/// Asks for a revision that is promoted by hand, and waits until it is proven and the old one has its share of 4 back.
pub async fn awaits_promotion(agent: &Agent) -> (Settings, StatusReport) {
    let mut by_hand = packets(8192);
    by_hand.rollout.auto_promotion_enabled = false;
    agent.revise(2, &by_hand);
    let status = agent.until("it waits", |status| waits(status) && status.message.is_empty()).await;
    assert_eq!((status.revision, status.other.unwrap().revision), (Some(1), Some(2)));
    let status = agent.until("blue has the whole share", |s| s.limits.is_some_and(|l| l.pool_size == 4)).await;
    (by_hand, status)
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_new_process_that_nobody_has_promoted_is_proven_and_waits_without_a_connection() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let blue = agent.pooler_pid().unwrap();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 4, 40);
    let (mut by_hand, status) = awaits_promotion(&agent).await;
    assert!(waits(&status));
    let green = agent.pooler_pids().into_iter().find(|pid| *pid != blue).unwrap();
    // what needs no new process is taken over by the one that waits
    by_hand.health.query_wait_timeout_seconds = 20;
    agent.revise(3, &by_hand);
    let status = agent.until("it is", |status| status.other.is_some_and(|other| other.revision == Some(3))).await;
    assert!(waits(&status));
    let mut promoted = by_hand.clone();
    promoted.rollout.auto_promotion_enabled = true;
    agent.revise(4, &promoted);
    switched(&agent, 4).await;
    assert_eq!(agent.pooler_pids(), [green], "the one that waited took over");
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    // what is not wanted any more goes
    let mut another = packets(16_384);
    another.rollout.auto_promotion_enabled = false;
    agent.revise(5, &another);
    agent.until("it waits", waits).await;
    agent.revise(6, &promoted);
    switched(&agent, 6).await;
    assert_eq!(agent.pooler_pids(), [green]);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn without_a_validation_query_a_login_to_the_database_is_the_proof_and_that_is_shown() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    assert_eq!(agent.status().unwrap().proof, Some(ProofMode::Query));
    let of_size = |size: u32| {
        let mut settings = packets(size);
        settings.health.validation_query = String::new();
        settings
    };
    // the database lets nobody in
    let admin = postgres.admin().await;
    admin.batch_execute("alter role shop connection limit 0").await.unwrap();
    agent.revise(2, &of_size(8192));
    let status = agent.until("it is refused", |status| status.message.contains("too many connections")).await;
    assert_eq!((status.revision, status.proof), (Some(1), Some(ProofMode::Query)), "{}", status.message);
    admin.batch_execute("alter role shop connection limit -1").await.unwrap();
    switched(&agent, 2).await;
    assert_eq!(agent.status().unwrap().proof, Some(ProofMode::ConnectOnly));
    // and nothing is asked of new credentials either
    admin.batch_execute("alter role shop password 'another'").await.unwrap();
    agent.write("credentials/password", "another");
    until("they are in force", async || {
        let mut config = agent.client_config();
        connect(config.password("another")).await.ok()
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_agents_death_in_the_middle_of_a_switch_cuts_no_client_and_the_switch_ends_well() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    for (revision, role) in [(2, None), (3, Some(OtherRole::Green)), (4, Some(OtherRole::Warm))] {
        agent.revise(revision, &packets(4096 + 512 * u32::try_from(revision).unwrap()));
        if role.is_some() {
            agent
                .until("it is in the middle", |status| {
                    status.other.map(|other| other.role) == role || status.revision == Some(revision)
                })
                .await;
        }
        kill_process(until("an agent", async || agent.agent_pid()).await, Signal::KILL).unwrap();
        switched(&agent, revision).await;
    }
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_new_process_that_ends_while_the_old_one_is_warm_is_stepped_back_from() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let blue = agent.pooler_pid().unwrap();
    let stays = agent.client().await;
    let mut settings = packets(8192);
    settings.rollout.scale_down_delay_seconds = 60;
    agent.revise(2, &settings);
    agent.until("it is in force", |status| status.revision == Some(2)).await;
    let green = agent.pooler_pids().into_iter().find(|pid| *pid != blue).unwrap();
    kill_process(green, Signal::KILL).unwrap();
    let status = agent.until("the old one serves", |status| status.revision == Some(1)).await;
    assert!(status.message.is_empty() || status.message.contains("revision 2"), "{}", status.message);
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    assert_eq!(
        agent.metric("sluice_switches_total{pool=\"shop\",pool_namespace=\"shop\",result=\"SteppedBack\"}"),
        Some(1.0)
    );
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_revision_that_is_taken_back_while_the_old_process_is_warm_is_stepped_back_from_once() {
    let (postgres, account) = Postgres::with_shop().await;
    let warm = |size| {
        let mut settings = packets(size);
        settings.rollout.scale_down_delay_seconds = 60;
        settings
    };
    let agent = Agent::start(&postgres, &account, &warm(4096), 4).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    clients.stay(&target(&agent), None, Duration::from_millis(20));
    agent.revise(2, &warm(8192));
    agent.until("it is in force", |status| status.revision == Some(2)).await;
    let both = agent.pooler_pids();
    let steps = || agent.metric("sluice_switches_total{pool=\"shop\",pool_namespace=\"shop\",result=\"SteppedBack\"}");
    for (revision, size, left) in [(3, 4096, 2), (4, 8192, 3), (5, 4096, 4)] {
        agent.revise(revision, &warm(size));
        agent
            .until("it is in force where it was before", |status| {
                status.revision == Some(revision)
                    && status.other.and_then(|other| other.revision) == Some(left)
                    && status.message.is_empty()
            })
            .await;
        assert_eq!(steps(), Some(f64::from(u32::try_from(left - 1).unwrap())));
    }
    assert_eq!(agent.pooler_pids(), both);
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_share_of_one_both_processes_serve_their_clients_in_turn() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 1).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    agent.revise(2, &packets(8192));
    agent.until("it is in force", |status| status.revision == Some(2)).await;
    let admin = postgres.admin().await;
    for _ in 0..5 {
        let comes = agent.client().await;
        let both = async { tokio::join!(value(&stays, "select 'blue'"), value(&comes, "select 'green'")) };
        let both = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!(both, ("blue".to_owned(), "green".to_owned()));
        assert!(counted(&admin, "shop").await <= 1);
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_query_on_the_old_process_can_be_cancelled_through_the_new_one() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let stays = agent.client().await;
    agent.revise(2, &packets(8192));
    agent.until("it is in force", |status| status.revision == Some(2)).await;
    let token = stays.cancel_token();
    let query = tokio::spawn(async move { stays.simple_query("select pg_sleep(60)").await });
    until("it runs", async || agent.status()?.held.filter(|held| held.active >= 1)).await;
    token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), query).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
}
