//! The keeper outlives the agent, and so do the pooler and its clients.

use std::time::Duration;

use rustix::process::{Signal, kill_process};
use sluice::contract::SlotStatus;

use super::{
    rig::{Account, Agent, Postgres, connect, reacting, settings, until},
    value,
};

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
