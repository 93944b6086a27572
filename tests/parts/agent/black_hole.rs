//! A database behind a network that drops every packet: nobody is told that it is gone, and everything waits.
//!
//! Each test runs in a network of its own, and the database in another one at the far end of a cable that can be pulled.

use std::{
    collections::BTreeMap,
    env, fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sluice::contract::{Settings, SlotStatus};

use super::{
    load::Clients,
    outage::{SERVED_WITHIN, closed, is_told, opened, patience, patient, served},
    rig::{Account, Agent, Postgres, until},
    switch::{packets, switched, target},
    value,
};

/// Set in the run that has a network of its own.
const ALONE: &str = "SLUICE_TEST_HAS_A_NETWORK";
const NEAR: &str = "192.0.2.1";
const FAR: &str = "192.0.2.2";
/// Of the far end, so that nobody has to ask for it.
const FAR_HARDWARE: &str = "02:00:00:00:00:02";

fn run(words: &[&str]) {
    let done = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Whether this is the run of a test in a network of its own; if not, that run is done here.
fn has_own_network(test: &str) -> bool {
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", &format!("agent::black_hole::{test}"), "--include-ignored", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let printed = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}{}", printed(&done.stdout), printed(&done.stderr));
    assert!(printed(&done.stdout).contains("1 passed"), "{}", printed(&done.stdout));
    false
}

/// A network at the far end of a cable.
struct FarNetwork {
    /// Keeps it there.
    holder: Child,
}

impl FarNetwork {
    async fn open() -> Self {
        run(&["ip", "link", "set", "lo", "up"]);
        let holder = Command::new("unshare").args(["--net", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
        let far = Self { holder };
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let pid = far.pid();
        until("another network", async || (network(&pid)? != network("self")?).then_some(())).await;
        run(&[
            "ip",
            "link",
            "add",
            "near",
            "type",
            "veth",
            "peer",
            "name",
            "far",
            "address",
            FAR_HARDWARE,
            "netns",
            &pid,
        ]);
        run(&["ip", "address", "add", &format!("{NEAR}/30"), "dev", "near"]);
        run(&["ip", "link", "set", "near", "up"]);
        far.within(&["ip", "link", "set", "lo", "up"]);
        far.within(&["ip", "address", "add", &format!("{FAR}/30"), "dev", "far"]);
        far.plug();
        // or the kernel would notice at once that nobody answers
        run(&["ip", "neighbour", "replace", FAR, "lladdr", FAR_HARDWARE, "dev", "near", "nud", "permanent"]);
        far
    }

    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    fn within(&self, words: &[&str]) {
        run(&[&["nsenter", "--net", "--target", &self.pid()][..], words].concat());
    }

    fn plug(&self) {
        self.within(&["ip", "link", "set", "far", "up"]);
    }

    /// From now on, nothing arrives.
    fn pull(&self) {
        self.within(&["ip", "link", "set", "far", "down"]);
    }

    async fn postgres(&self) -> (Postgres, Account) {
        let launcher = ["nsenter", "--net", "--target", &self.pid(), "--"];
        let postgres = Postgres::launched(&launcher, FAR, "host all all samenet scram-sha-256\n", &[], &[]).await;
        let account = Account::shop();
        postgres.create(&account).await;
        (postgres, account)
    }
}

impl Drop for FarNetwork {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

async fn agent(postgres: &Postgres, account: &Account, settings: &Settings) -> Agent {
    let agent = Agent::new(postgres.port, account).with(|injection| FAR.clone_into(&mut injection.upstream.host));
    agent.started(settings, 4).await
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn in_service_a_black_hole_is_told_every_client_hears_something_and_all_is_well_when_it_ends() {
    if !has_own_network("in_service_a_black_hole_is_told_every_client_hears_something_and_all_is_well_when_it_ends") {
        return;
    }
    let far = FarNetwork::open().await;
    let (postgres, account) = far.postgres().await;
    let mut settings = packets(4096);
    settings.health.query_wait_timeout_seconds = 5;
    let agent = agent(&postgres, &account, &settings).await;
    let (idle, working) = (agent.client().await, agent.client().await);
    assert_eq!(value(&idle, "select 1").await, "1");
    working.simple_query("begin; select 1").await.unwrap();
    let pooler = agent.pooler_pid();

    far.pull();
    let begin = Instant::now();
    // who works and who comes now is told within the bounds that there are: tcp_user_timeout, query_wait_timeout
    let config = agent.client_config();
    let comes = async {
        match super::connect(&config).await {
            Ok(client) => client.simple_query("select 1").await.map(drop),
            Err(error) => Err(error),
        }
    };
    let patience = Duration::from_secs(40);
    let all = async { tokio::join!(working.simple_query("select 1"), idle.simple_query("select 1"), comes) };
    let (working, waiting, come) = tokio::time::timeout(patience, all).await.expect("everybody hears something");
    assert!(working.is_err() && waiting.is_err() && come.is_err(), "{working:?} {waiting:?} {come:?}");
    println!("everybody heard of it after {:.1} s", begin.elapsed().as_secs_f64());
    // somebody goes on asking
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 1, 5);
    let status = agent.until("it is told", |status| status.message.contains(FAR)).await;
    println!("told after {:.1} s: {}", begin.elapsed().as_secs_f64(), status.message);
    assert!(status.message.contains("does not answer"), "{}", status.message);
    assert_eq!((status.slot, agent.pooler_pid()), (SlotStatus::Serving, pooler), "nothing is wrong with the pooler");
    let failures = clients.stop().await.failures();
    assert!(failures.values().sum::<u64>() > 0);
    println!("classified: {failures:?}");

    far.plug();
    until("clients are served", async || {
        let client = super::connect(&agent.client_config()).await.ok()?;
        client.simple_query("select 1").await.ok().map(drop)
    })
    .await;
    agent.until("it is over", |status| status.message.is_empty()).await;
    assert_eq!(agent.pooler_pid(), pooler);
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    agent.revise(2, &packets(8192));
    switched(&agent, 2).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn in_the_middle_of_a_switch_a_black_hole_leaves_clients_where_they_are_and_the_switch_ends_well_after_it() {
    if !has_own_network(
        "in_the_middle_of_a_switch_a_black_hole_leaves_clients_where_they_are_and_the_switch_ends_well_after_it",
    ) {
        return;
    }
    let far = FarNetwork::open().await;
    let (postgres, account) = far.postgres().await;
    let agent = agent(&postgres, &account, &packets(4096)).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    let blue = agent.pooler_pid();
    far.pull();
    agent.revise(2, &packets(8192));
    let status = agent.until("it is given up", |status| status.message.contains("did not prove itself")).await;
    assert_eq!((status.slot, status.revision), (SlotStatus::Serving, Some(1)));
    assert_eq!(agent.pooler_pid(), blue);
    far.plug();
    // nothing was asked meanwhile, so its connection to the pooler knows of nothing
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    drop(stays);
    switched(&agent, 2).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn in_a_black_hole_clients_are_told_within_two_seconds_once_it_is_known_and_are_served_again_when_it_ends() {
    if !has_own_network(
        "in_a_black_hole_clients_are_told_within_two_seconds_once_it_is_known_and_are_served_again_when_it_ends",
    ) {
        return;
    }
    let far = FarNetwork::open().await;
    let (postgres, account) = far.postgres().await;
    let agent = agent(&postgres, &account, &patient(packets(4096))).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    let pooler = agent.pooler_pid();
    let mut clients = Clients::new();
    clients.stay(&target(&agent), None, Duration::from_millis(5));
    clients.churn(&target(&agent), 8, 20);
    far.pull();
    let begin = Instant::now();
    let why = opened(&agent).await;
    println!("open after {:.1} s: {why}", begin.elapsed().as_secs_f64());
    assert!(why.contains(FAR) && begin.elapsed() < Duration::from_secs(15), "{why}");
    for _ in 0..5 {
        let (told, within) = is_told(&agent).await;
        println!("told after {:.1} s: {told}", within.as_secs_f64());
        assert!(within <= Duration::from_secs(2), "{told} after {within:?}");
    }
    far.plug();
    let after = served(&agent).await;
    println!("served after {:.1} s", after.as_secs_f64());
    assert!(after <= SERVED_WITHIN);
    closed(&agent).await;
    until("clients wait as they may", async || (patience(&agent, "a").await == "120").then_some(())).await;
    assert_eq!(agent.pooler_pid(), pooler);
    drop(clients.stop().await);
}
