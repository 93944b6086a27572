//! What goes wrong in the middle of a switch: whatever it is, clients that are served go on being served, it is told, and the
//! pod comes to rest with the wanted revision once it is over.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sluice::contract::{OtherRole, SlotStatus, StatusReport};
use tempfile::TempDir;
use tokio_postgres::Client;

use super::{
    connect, counted,
    faults::{Crowd, script_in, some_core, tell},
    load::{Clients, Target},
    rig::{Account, Agent, Postgres, program, until},
    switch::{packets, switched, target},
    value,
};

fn role(status: &StatusReport) -> Option<OtherRole> {
    status.other.map(|other| other.role)
}

fn serves(status: &StatusReport, revision: u64) -> bool {
    status.slot == SlotStatus::Serving && status.revision == Some(revision)
}

/// A process beside another one.
async fn beside(agent: &Agent, other: Pid) -> Pid {
    until("another process", async || agent.pooler_pids().into_iter().find(|pid| *pid != other)).await
}

/// Clients that hold every server connection of the share: what blue cannot give up keeps green from its proof.
async fn busy(agent: &Agent, share: u32) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..share {
        let client = agent.client().await;
        client.simple_query("begin; select 1").await.unwrap();
        clients.push(client);
    }
    clients
}

async fn finish(clients: &[Client]) {
    for client in clients {
        client.simple_query("commit").await.unwrap();
        assert_eq!(value(client, "select 'the same connection'").await, "the same connection");
    }
}

/// Waits until the second revision serves while the first one keeps its clients.
async fn drains(agent: &Agent) {
    agent.until("it drains", |status| serves(status, 2) && role(status) == Some(OtherRole::Draining)).await;
}

/// A client that stays on the first revision's process, which drains, and that process.
async fn one_that_stays(agent: &Agent) -> (Client, Pid) {
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    let blue = agent.pooler_pid().unwrap();
    agent.revise(2, &packets(8192));
    drains(agent).await;
    (stays, blue)
}

/// An agent whose pooler is started by a script: `deviation` comes first, and may look at the configuration, `$1`.
async fn scripted(postgres: &Postgres, account: &Account, directory: &TempDir, deviation: &str) -> Agent {
    let real = program("pgbouncer");
    let script = format!("#!/bin/sh\n{deviation}\nexec {} \"$@\"\n", real.display());
    Agent::new(postgres.port, account).with_pooler(&script_in(directory, &script)).started(&packets(4096), 4).await
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_new_process_that_is_killed_or_stopped_before_its_proof_costs_no_client_anything() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 2).await;
    let clients = busy(&agent, 2).await;
    let blue = agent.pooler_pid().unwrap();
    agent.revise(2, &packets(8192));
    agent.until("it waits for room", |status| role(status) == Some(OtherRole::Green)).await;
    kill_process(beside(&agent, blue).await, Signal::KILL).unwrap();
    let status = agent.until("it is told", |status| status.message.contains("its process ended")).await;
    assert!(serves(&status, 1), "{status:?}");
    // the next one is stopped: it neither answers nor ends by itself
    agent.until("it is tried again", |status| role(status) == Some(OtherRole::Green)).await;
    let green = beside(&agent, blue).await;
    kill_process(green, Signal::STOP).unwrap();
    finish(&clients).await;
    let given_up = |message: &str| ["never answered", "did not prove itself"].iter().any(|why| message.contains(why));
    let status = agent.until("it is given up", |status| given_up(&status.message)).await;
    assert!(serves(&status, 1), "{status:?}");
    assert!(!agent.pooler_pids().contains(&green), "it is killed");
    assert_eq!(agent.pooler_pid(), Some(blue));
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    drop(clients);
    switched(&agent, 2).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_serving_process_may_die_while_another_one_proves_itself() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 2).await;
    let clients = busy(&agent, 2).await;
    // cut are those that a reading has counted
    agent.until("they are counted", |status| status.held.is_some_and(|held| held.active == 2)).await;
    let blue = agent.pooler_pid().unwrap();
    agent.revise(2, &packets(8192));
    agent.until("it waits for room", |status| role(status) == Some(OtherRole::Green)).await;
    kill_process(blue, Signal::KILL).unwrap();
    // who comes now waits in the socket's queue
    let config = agent.client_config();
    let comes = tokio::time::timeout(Duration::from_secs(20), connect(&config)).await.unwrap().unwrap();
    assert_eq!(value(&comes, "select 1").await, "1");
    for client in clients {
        assert!(client.simple_query("select 1").await.is_err(), "its process is gone");
    }
    drop(comes);
    switched(&agent, 2).await;
    assert_eq!(agent.metric("sluice_clients_cut_total{"), Some(2.0));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn of_two_processes_with_clients_either_may_die_and_the_share_holds() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let stay = busy(&agent, 3).await;
    let blue = agent.pooler_pid().unwrap();
    agent.revise(2, &packets(8192));
    drains(&agent).await;
    let admin = postgres.admin().await;
    for _ in 0..3 {
        let green = beside(&agent, blue).await;
        kill_process(green, Signal::KILL).unwrap();
        // all come at once, to a process that nobody can tell anything yet
        until("it is started again", async || agent.pooler_pids().into_iter().find(|pid| ![blue, green].contains(pid)))
            .await;
        let process = agent.agent_pid().unwrap();
        kill_process(process, Signal::STOP).unwrap();
        let mut come = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let config = agent.client_config();
            come.spawn(async move { value(&connect(&config).await.unwrap(), "select 1 from pg_sleep(0.2)").await });
        }
        while !come.is_empty() {
            let open = counted(&admin, "shop").await;
            assert!(open <= 4, "{open} open of a share of 4\n{}", agent.log());
            while let Some(done) = come.try_join_next() {
                assert_eq!(done.unwrap(), "1");
            }
        }
        kill_process(process, Signal::CONT).unwrap();
        agent.until("it serves again", |status| serves(status, 2)).await;
    }
    finish(&stay).await;
    kill_process(blue, Signal::KILL).unwrap();
    let whole = |status: &StatusReport| status.limits.is_some_and(|limits| limits.max_db_connections == 4);
    agent.until("the share is the other one's", |status| status.other.is_none() && whole(status)).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    assert!(agent.metric("sluice_clients_cut_total{").is_some_and(|cut| cut >= 3.0), "{}", agent.metrics());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_old_process_that_is_stopped_is_killed_and_everyone_else_is_served() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let (_stays, blue) = one_that_stays(&agent).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    kill_process(blue, Signal::STOP).unwrap();
    switched(&agent, 2).await;
    assert!(!agent.pooler_pids().contains(&blue));
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    assert_eq!(agent.metric("sluice_clients_cut_total{"), Some(1.0));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_old_process_without_clients_that_ignores_signals_makes_way_all_the_same() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    // the process that is started hears nothing; the real one ends with it
    let deaf = format!(
        "if grep -qs 'pkt_buf = 4096' -- \"$1\"; then trap '' INT TERM QUIT; \
         setpriv --pdeathsig KILL sh -c 'LISTEN_PID=$$ exec {} \"$0\"' \"$1\" & wait; exit; fi",
        program("pgbouncer").display()
    );
    let agent = scripted(&postgres, &account, &directory, &deaf).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    for (revision, size) in [(2, 8192), (3, 16_384)] {
        agent.revise(revision, &packets(size));
        switched(&agent, revision).await;
    }
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_container_that_dies_in_the_middle_of_a_switch_comes_back_with_what_worked_last() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    let never = "grep -qs 'pkt_buf = 16384' -- \"$1\" && exec sleep 100";
    let mut agent = scripted(&postgres, &account, &directory, never).await;
    // before its proof: the new one never answers
    agent.revise(2, &packets(16_384));
    agent.until("it proves itself", |status| role(status) == Some(OtherRole::Green)).await;
    agent.crash().await;
    agent.run();
    let status = agent.until("it serves", |status| status.slot == SlotStatus::Serving && status.seq == 1).await;
    assert_eq!((status.revision, status.wanted_revision), (Some(1), Some(2)));
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    // after it: the old one is still there
    let mut warm = packets(8192);
    warm.rollout.scale_down_delay_seconds = 60;
    agent.revise(3, &warm);
    agent.until("the old one is warm", |status| serves(status, 3) && role(status) == Some(OtherRole::Warm)).await;
    agent.crash().await;
    agent.revise(4, &packets(16_384));
    agent.run();
    let status = agent.until("it serves", |status| status.slot == SlotStatus::Serving && status.seq == 1).await;
    assert_eq!((status.revision, status.wanted_revision), (Some(3), Some(4)));
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    agent.revise(5, &packets(32_768));
    switched(&agent, 5).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn full_volumes_hold_a_switch_up_and_nothing_else() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::new(postgres.port, &account).with_small_volumes();
    agent.revise(1, &packets(4096));
    agent.grant(1, 4, 4);
    agent.run();
    agent.until("it serves", |status| status.seq == 1).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    let (run_dir, state_dir) = (agent.run_dir(), agent.state_dir());
    agent.fill(&run_dir);
    agent.revise(2, &packets(8192));
    let status = agent.until("it is told", |status| status.message.contains("No space left on device")).await;
    assert!(serves(&status, 1) && status.message.contains("revision 2 is not in force"), "{}", status.message);
    // what ends now is started with the files that it had
    let before = agent.pooler_pid();
    let cut = clients.stop().await;
    assert_eq!(cut.failures(), BTreeMap::new());
    kill_process(before.unwrap(), Signal::KILL).unwrap();
    let config = agent.client_config();
    let client = tokio::time::timeout(Duration::from_secs(20), connect(&config)).await.unwrap().unwrap();
    assert_eq!(value(&client, "select 1").await, "1");
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    agent.fill(&state_dir);
    Agent::empty(&run_dir);
    let told = "last configuration that worked";
    let status = agent.until(told, |status| serves(status, 2) && status.message.contains(told)).await;
    assert!(status.message.contains("No space left on device"), "{}", status.message);
    drop(client);
    Agent::empty(&state_dir);
    switched(&agent, 2).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

/// Sets how many files a process may open; the hard bound stays.
fn allow_files(pid: Pid, files: u64) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero())).unwrap();
    let before = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let before = before.split_whitespace().nth(3).unwrap().parse().unwrap();
    let done = Command::new("prlimit")
        .arg(format!("--pid={}", pid.as_raw_nonzero()))
        .arg(format!("--nofile={files}:"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    before
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn whoever_has_no_files_left_cuts_no_client_and_the_switch_ends_well() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    let few = "grep -qs 'pkt_buf = 16384' -- \"$1\" && ulimit -n 11";
    let agent = scripted(&postgres, &account, &directory, few).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    let blue = agent.pooler_pid();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    // the new process
    agent.revise(2, &packets(16_384));
    let status = agent.until("green", |status| status.message.contains("revision 2 is not in force")).await;
    assert!(serves(&status, 1), "{status:?}");
    // the keeper, which has none for the new process nor for a new agent
    let keeper = agent.keeper_pid();
    let before = allow_files(keeper, 4);
    agent.revise(3, &packets(8192));
    agent.until("keeper", |status| status.message.contains("Too many open files")).await;
    let first = agent.agent_pid().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    until("it is told", async || agent.log().contains("starting the agent again").then_some(())).await;
    assert_eq!(value(&stays, "select 1").await, "1");
    assert_eq!(agent.pooler_pid(), blue);
    allow_files(keeper, before);
    switched_beside(&agent, 3).await;
    // the agent, which can read nothing and ask nobody
    let process = agent.agent_pid().unwrap();
    let before = allow_files(process, 4);
    agent.revise(4, &packets(32_768));
    until("it is told", async || agent.log().contains("reading the configuration").then_some(())).await;
    assert_eq!(value(&stays, "select 1").await, "1");
    allow_files(process, before);
    drop(stays);
    switched(&agent, 4).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

/// In force, whatever the other process still has to do.
async fn switched_beside(agent: &Agent, revision: u64) {
    agent.until("the revision is in force", |status| serves(status, revision)).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn clients_of_both_families_lose_no_connection() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 8).await;
    let mut clients = Clients::new();
    let sixth =
        Target { address: ("::1".parse::<std::net::IpAddr>().unwrap(), agent.client_port()).into(), ..target(&agent) };
    for target in [&target(&agent), &sixth] {
        clients.churn(target, 2, 40);
        clients.stay(target, Some(Duration::from_secs(2)), Duration::from_millis(20));
    }
    for revision in 2..5 {
        agent.revise(revision, &packets(4096 + 512 * u32::try_from(revision).unwrap()));
        switched(&agent, revision).await;
    }
    let tally = clients.stop().await;
    assert_eq!(tally.failures(), BTreeMap::new());
    assert!(tally.connections() > 20, "{tally:?}");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_agent_that_is_kept_from_running_kills_nobody_and_takes_nothing_away() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let stay = busy(&agent, 2).await;
    agent.revise(2, &packets(8192));
    let process = agent.agent_pid().unwrap();
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    let held_up = async |longer: Duration| {
        kill_process(process, Signal::STOP).unwrap();
        tokio::time::sleep(longer).await;
        kill_process(process, Signal::CONT).unwrap();
    };
    held_up(Duration::from_secs(4)).await;
    drains(&agent).await;
    let poolers = agent.pooler_pids();
    // longer than any process may be silent
    held_up(Duration::from_secs(11)).await;
    let status = agent.until("it goes on", |status| serves(status, 2)).await;
    assert_eq!(status.limits.map(|limits| limits.max_db_connections), Some(4), "{status:?}");
    assert_eq!(agent.pooler_pids(), poolers);
    finish(&stay).await;
    drop(stay);
    switched(&agent, 2).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_old_process_that_is_starved_is_not_killed() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let (stays, blue) = one_that_stays(&agent).await;
    let core = some_core();
    tell("taskset", &["-c", "-p", &core.to_string()], blue);
    tell("chrt", &["--idle", "--pid", "0"], blue);
    let crowd = Crowd::on(core);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(16) {
        assert!(agent.pooler_pids().contains(&blue), "{}", agent.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(crowd);
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    assert!(Path::new("/proc").join(blue.as_raw_nonzero().to_string()).exists());
    drop(stays);
    switched(&agent, 2).await;
}
