//! What goes wrong around a pooler that does what it should.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sluice::{
    agent::apply::last_good,
    contract::{RevisionWait, SlotStatus, StatusReport, Switching},
};
use tempfile::TempDir;

use super::{
    rig::{Agent, Postgres, connect, reacting, settings, until},
    value,
};

/// A program in the place of PgBouncer.
pub fn script_in(directory: &TempDir, script: &str) -> PathBuf {
    let program = directory.path().join("pgbouncer");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn without_socket_activation_a_setting_that_needs_a_restart_is_not_in_force_before_one_whatever_else_changes() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::new(postgres.port, &account).with_pooler(&super::rig::program("pgbouncer-plain"));
    agent.revise(1, &settings());
    agent.grant(1, 5, 5);
    agent.run();
    let status = agent.until("the first grant is in force", |status| status.seq == 1).await;
    assert_eq!(status.switching, Some(Switching::Unsupported));
    let mut changed = settings();
    changed.parameters.insert("pkt_buf".to_owned(), "8192".to_owned());
    agent.revise(2, &changed);
    let told = |message: &str| message.contains("RestartRequired") && message.contains("pkt_buf");
    agent.until("it is told", |status| told(&status.message)).await;
    agent.grant(2, 7, 7);
    let status = agent.until("the grant is in force", |status| status.seq == 2).await;
    assert!(told(&status.message), "{}", status.message);
    assert_eq!((status.revision, status.wanted_revision), (Some(1), Some(2)));
    assert_eq!(status.revision_waits, Some(RevisionWait::Restart), "which is no fault of revision 2");
    let kept = last_good::load(&agent.state_dir(), "shop").unwrap().unwrap();
    assert_eq!(kept.revision.revision, 1, "what is not in force is no last good");
    // a setting that a RELOAD takes over does not bring the other one into force
    changed.parameters.insert("server_idle_timeout".to_owned(), "44".to_owned());
    agent.revise(3, &changed);
    agent.until("it is wanted", |status| status.wanted_revision == Some(3)).await;
    let status = agent.until("it is told again", |status| told(&status.message)).await;
    assert_eq!(status.revision, Some(1));

    kill_process(agent.pooler_pid().unwrap(), Signal::KILL).unwrap();
    let status = agent.until("a new process takes it over", |status| status.revision == Some(3)).await;
    assert_eq!((status.message.as_str(), status.revision_waits), ("", None));
    until("and it is kept", async || {
        last_good::load(&agent.state_dir(), "shop").unwrap().filter(|kept| kept.revision.revision == 3)
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_state_volume_that_refuses_a_write_is_told_and_written_as_soon_as_it_can_be() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::new(postgres.port, &account);
    // a directory in the place of the file that is written aside
    let in_the_way = agent.state_dir().join(format!("{}.new", last_good::FILE));
    fs::create_dir(&in_the_way).unwrap();
    agent.revise(1, &settings());
    agent.grant(1, 5, 5);
    agent.run();
    let status = agent.until("it is told", |status| status.message.contains("last configuration that worked")).await;
    assert_eq!((status.seq, status.revision), (1, Some(1)), "and stands in nobody's way");
    assert!(last_good::load(&agent.state_dir(), "shop").unwrap().is_none());
    fs::remove_dir(&in_the_way).unwrap();
    agent.until("it is over", |status| status.message.is_empty()).await;
    assert_eq!(last_good::load(&agent.state_dir(), "shop").unwrap().unwrap().grant.share, 5);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn clients_that_wait_for_leaked_connections_get_others_within_the_share() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut settings = reacting();
    settings.health.leak_threshold_seconds = 2;
    settings.health.query_wait_timeout_seconds = 120;
    let agent = Agent::start(&postgres, &account, &settings, 20).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    let few = |limit: u32| limit <= 2;
    agent.until("few are left", |status| status.limits.is_some_and(|limits| few(limits.pool_size))).await;
    let mut leaking = Vec::new();
    for _ in 0..4 {
        let client = agent.client().await;
        leaking.push(tokio::spawn(async move {
            client.simple_query("begin; select 1").await.unwrap();
            std::future::pending::<()>().await;
            drop(client);
        }));
    }
    let through = async { value(&agent.client().await, "select 'through'").await };
    assert_eq!(tokio::time::timeout(super::rig::DEADLINE, through).await.unwrap(), "through");
    let limits = agent.status().unwrap().limits.unwrap();
    assert!(limits.pool_size > 4 && limits.max_db_connections == 20, "{limits:?}");
    leaking.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pod_that_never_serves_a_transaction_goes_to_its_floor() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &reacting(), 20).await;
    let status =
        agent.until("it is at its floor", |status| status.limits.is_some_and(|limits| limits.pool_size == 1)).await;
    assert_eq!((status.share, status.message.as_str()), (20, ""));
    let mut first = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let config = agent.client_config();
        first.spawn(async move { value(&super::connect(&config).await.unwrap(), "select 1 from pg_sleep(20)").await });
    }
    agent.until("its first clients are met", |status| status.held.is_some_and(|held| held.active == 10)).await;
    assert_eq!(agent.metric("sluice_transactions_total{"), Some(0.0), "before one transaction has ended");
    first.abort_all();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn processes_that_others_left_behind_are_reaped() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    let real = super::rig::program("pgbouncer");
    // what it starts in the background becomes an orphan when the subshell ends, and ends itself
    let script = format!("#!/bin/sh\n(sleep 0.1 & sleep 0.2 &)\nexec {} \"$@\"\n", real.display());
    let program = script_in(&directory, &script);
    let mut agent = Agent::new(postgres.port, &account).with_pooler(&program);
    agent.revise(1, &settings());
    agent.grant(1, 5, 5);
    agent.run();
    agent.until("the pooler serves", |status| status.seq == 1).await;
    until("agent and pooler are all", async || (agent.children().len() == 2).then_some(())).await;
    assert!(agent.log().contains("left behind"), "{}", agent.log());
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_configuration_that_lacks_a_database_with_clients_waits_until_they_have_gone() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    // a second entry, which the revision to come does not know
    let ini = agent.run_dir().join("a/pgbouncer.ini");
    let text = fs::read_to_string(&ini).unwrap();
    let entry = text.lines().find(|line| line.starts_with("shop = ")).unwrap();
    let two = format!("{entry}\n{}", entry.replacen("shop", "former", 1));
    fs::write(&ini, text.replacen(entry, &two, 1)).unwrap();
    kill_process(agent.pooler_pid().unwrap(), Signal::HUP).unwrap();
    let mut config = agent.client_config();
    config.dbname("former");
    let client = until("a client of it", async || connect(&config).await.ok()).await;
    client.simple_query("begin; select 1").await.unwrap();

    let mut changed = settings();
    changed.parameters.insert("server_idle_timeout".to_owned(), "33".to_owned());
    agent.revise(2, &changed);
    let status = agent.until("it is told", |status| status.message.contains("lacks database former")).await;
    assert_eq!((status.revision, status.wanted_revision), (Some(1), Some(2)));
    client.simple_query("commit").await.unwrap();
    assert_eq!(value(&client, "select 'the same connection'").await, "the same connection");
    drop(client);
    agent.until("it is in force", |status| status.revision == Some(2) && status.message.is_empty()).await;
    assert!(connect(&config).await.is_err(), "the entry is gone");
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_agent_that_is_always_late_decides_and_never_shrinks() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::new(postgres.port, &account);
    agent.revise(1, &reacting());
    agent.grant(1, 20, 20);
    agent.run();
    let decisions = || agent.log().matches("\"observation\"").count();
    until("its first decision", async || (decisions() > 0).then_some(())).await;
    let process = agent.agent_pid().unwrap();
    let most = |status: &StatusReport| status.limits.map(|limits| limits.pool_size);
    let limit = most(&agent.until("its limits are read back", |status| status.limits.is_some()).await).unwrap();
    assert!(limit > 2, "{limit}");
    // one that is on time shrinks the limit of an unused pod after fifteen seconds
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(25) {
        let before = decisions();
        kill_process(process, Signal::STOP).unwrap();
        // longer than from one reading to the next: the round that follows is late, and decides
        tokio::time::sleep(Duration::from_millis(1300)).await;
        kill_process(process, Signal::CONT).unwrap();
        until("a decision", async || (decisions() > before).then_some(())).await;
        let status = agent.until("its limits are read back", |status| status.limits.is_some()).await;
        assert_eq!(most(&status), Some(limit), "{}", agent.log());
    }
    agent.until("on time again, it shrinks", |status| most(status).is_some_and(|limit| limit <= 2)).await;
}

/// Processes that leave nothing of one core to others; they end with this value.
pub struct Crowd(Vec<Child>);

impl Crowd {
    pub fn on(core: usize) -> Self {
        let spin = || {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string(), "sh", "-c", "while :; do :; done"]);
            command.stdin(Stdio::null()).spawn().unwrap()
        };
        Self((0..32).map(|_| spin()).collect())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn tell(program: &str, words: &[&str], pid: Pid) {
    let done = Command::new(program).args(words).arg(pid.as_raw_nonzero().to_string()).output().unwrap();
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A core that this process may use.
pub fn some_core() -> usize {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    list.trim().split([',', '-']).next().unwrap().parse().unwrap()
}

/// For how long a process wanted a CPU and had none.
fn waited(pid: Pid) -> Duration {
    let schedstat = fs::read_to_string(format!("/proc/{}/schedstat", pid.as_raw_nonzero())).unwrap();
    Duration::from_nanos(schedstat.split_whitespace().nth(1).unwrap().parse().unwrap())
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pooler_that_is_starved_is_not_killed() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let client = agent.client().await;
    assert_eq!(value(&client, "select 1").await, "1");
    let pooler = agent.pooler_pid().unwrap();
    let core = some_core();
    tell("taskset", &["-c", "-p", &core.to_string()], pooler);
    // runs only when nobody else wants the core
    tell("chrt", &["--idle", "--pid", "0"], pooler);
    let crowd = Crowd::on(core);
    let (since, before) = (Instant::now(), waited(pooler));
    while since.elapsed() < Duration::from_secs(8) {
        assert_eq!(agent.pooler_pid(), Some(pooler), "{}", agent.log());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    drop(crowd);
    agent.until("it answers again", |status| status.slot == SlotStatus::Serving && status.message.is_empty()).await;
    assert_eq!(agent.pooler_pid(), Some(pooler));
    // counted when it runs again
    let starved = waited(pooler).saturating_sub(before);
    assert!(starved > Duration::from_secs(2), "it only lacked a CPU for {starved:?}");
    assert_eq!(value(&client, "select 'the same connection'").await, "the same connection");
}
