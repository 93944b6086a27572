//! The keeper outlives the agent, and so do the pooler and its clients.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use rustix::{
    net::{
        AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
        sockopt::{set_socket_reuseaddr, set_socket_reuseport},
    },
    process::{Pid, Signal, kill_process},
};
use sluice::contract::{SlotStatus, StatusReport};
use tempfile::TempDir;

use super::{
    faults::script_in,
    rig::{Account, Agent, Postgres, connect, program, reacting, settings, until},
    switch::{packets, switched},
    value,
};

/// What is told of a socket that is not the keeper's.
fn tells_of_a_stranger(status: &StatusReport) -> bool {
    let is_seen = status.foreign_listeners.as_ref().is_some_and(|seen| seen.sockets == 1);
    is_seen && status.message.contains("1 socket of another process listens on 127.0.0.1:")
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_process_that_a_dead_keeper_left_behind_with_the_port_is_told_of_and_nothing_is_steered_beside_it() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    // an image whose program is a script that starts the real one: that one does not end with the keeper
    let real = program("pgbouncer");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -V ] && exec {real} -V\nsh -c 'LISTEN_PID=$$ exec {real} \"$0\"' \"$1\" & wait\n",
        real = real.display()
    );
    let mut agent = Agent::new(postgres.port, &account).with_pooler(&script_in(&directory, &script));
    agent = agent.started(&settings(), 3).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    let wrapper = agent.pooler_pid().unwrap().as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{wrapper}/task/{wrapper}/children")).unwrap();
    let left_over = Pid::from_raw(children.trim().parse().unwrap()).unwrap();
    agent.crash().await;
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, agent.client_port())).is_ok(), "it holds the port still");
    agent.run();
    let status = agent.until("it is told", tells_of_a_stranger).await;
    assert_ne!(status.slot, SlotStatus::Serving);
    kill_process(left_over, Signal::KILL).unwrap();
    agent.until("the pooler serves", |status| status.slot == SlotStatus::Serving && status.message.is_empty()).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    // what this keeper's script has started does not end with it either
    let wrapper = agent.pooler_pid().unwrap().as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{wrapper}/task/{wrapper}/children")).unwrap();
    let real = Pid::from_raw(children.trim().parse().unwrap()).unwrap();
    agent.crash().await;
    kill_process(real, Signal::KILL).unwrap();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn while_somebody_else_listens_on_the_port_no_process_is_changed_and_no_client_is_lost() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 3).await;
    let stays = agent.client().await;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_reuseaddr(&socket, true).unwrap();
    set_socket_reuseport(&socket, true).unwrap();
    bind(&socket, &std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, agent.client_port()))).unwrap();
    listen(&socket, 16).unwrap();
    agent.revise(2, &packets(8192));
    let status = agent.until("it is told", tells_of_a_stranger).await;
    assert_eq!((status.revision, status.slot), (Some(1), SlotStatus::Serving));
    for _ in 0..50 {
        assert_eq!(value(&agent.client().await, "select 1").await, "1", "new clients come to the pooler");
    }
    drop(socket);
    agent.until("new clients are led to the new process", |status| status.revision == Some(2)).await;
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    drop(stays);
    switched(&agent, 2).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_agents_death_cuts_no_client_and_the_next_one_goes_on_with_the_same_pooler() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let client = agent.client().await;
    client.simple_query("begin; select 1").await.unwrap();
    let pooler = agent.pooler_pid().unwrap();
    for (seq, share) in [(2, 7), (3, 4), (4, 6)] {
        let before = until("an agent runs", async || agent.agent_pid()).await;
        kill_process(before, Signal::KILL).unwrap();
        assert_eq!(value(&agent.client().await, "select 1").await, "1", "new clients are served without it");
        until("another one runs", async || agent.agent_pid().filter(|pid| *pid != before)).await;
        agent.grant(seq, share, 7);
        let serves = |share: u32| {
            move |status: &sluice::contract::StatusReport| {
                status.slot == SlotStatus::Serving
                    && status.limits.is_some_and(|limits| limits.max_db_connections == share)
            }
        };
        let status = agent.until("the next one resumes", serves(share)).await;
        assert_eq!(status.revision, Some(1));
        assert_eq!(agent.pooler_pid(), Some(pooler));
    }
    client.simple_query("commit").await.unwrap();
    assert_eq!(value(&client, "select 'the same connection'").await, "the same connection");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_limit_that_an_agent_decided_stays_when_the_next_one_takes_the_pooler_up() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &reacting(), 20).await;
    let limit = |status: &sluice::contract::StatusReport| status.limits.map(|limits| limits.pool_size);
    // nothing comes: far less than the share is decided
    let small = |status: &sluice::contract::StatusReport| limit(status).is_some_and(|limit| limit <= 4);
    let before = limit(&agent.until("the limit has followed the load", small).await).unwrap();
    let pid = until("an agent runs", async || agent.agent_pid()).await;
    kill_process(pid, Signal::KILL).unwrap();
    until("another one runs", async || agent.agent_pid().filter(|other| *other != pid)).await;
    agent.until("the next one serves", |status| status.slot == SlotStatus::Serving && limit(status).is_some()).await;
    // and further: it is asked more often than it decides
    for _ in 0..40 {
        let status = agent.until("it answers", |_| true).await;
        assert!(limit(&status).is_none_or(|limit| limit <= before + 1), "{before} before, then {:?}", limit(&status));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_client_that_comes_while_the_pooler_is_dead_waits_and_is_served() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    for _ in 0..5 {
        let before = agent.pooler_pid().unwrap();
        kill_process(before, Signal::KILL).unwrap();
        let config = agent.client_config();
        let client = tokio::time::timeout(Duration::from_secs(10), connect(&config)).await.unwrap().unwrap();
        assert_eq!(value(&client, "select 1").await, "1");
        until("another pooler", async || agent.pooler_pid().filter(|pid| *pid != before)).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_pooler_is_told_to_give_the_buffers_of_handshakes_back() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let pooler = agent.pooler_pid().unwrap().as_raw_nonzero();
    let environment = std::fs::read(format!("/proc/{pooler}/environ")).unwrap();
    let given = |variable: &[u8]| {
        let values = environment.split(|byte| *byte == 0).filter_map(|line| line.strip_prefix(variable));
        values.map(|value| String::from_utf8_lossy(value).parse().unwrap()).collect::<Vec<u32>>()
    };
    // from a size between that of OpenSSL's records of 16 KiB and the 21,848 bytes of its handshakes
    let [bytes] = given(b"MALLOC_MMAP_THRESHOLD_=")[..] else { panic!("it is not told once") };
    assert!((17_500..=21_848).contains(&bytes), "{bytes}");
    assert_eq!(given(b"MALLOC_TOP_PAD_="), [0]);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_agent_that_cannot_start_ends_the_container() {
    let mut agent = Agent::new(1, &Account::shop());
    let _taken = std::net::TcpListener::bind(agent.http()).unwrap();
    agent.run();
    let code = tokio::time::timeout(super::rig::DEADLINE, tokio::task::spawn_blocking(move || agent.wait()));
    assert!(!code.await.unwrap().unwrap().success(), "Kubernetes sees a container that fails");
}
