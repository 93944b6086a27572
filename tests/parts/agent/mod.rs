//! The agent with the real PgBouncer in front of the real PostgreSQL.

mod black_hole;
mod bypass;
mod client_certificate;
mod clients;
mod clock;
mod console;
mod defaults;
mod dumps;
mod failover;
mod faults;
mod gateway;
mod generator;
mod keeper;
#[path = "../../../benches/figures/load.rs"]
mod load;
mod login_proof;
mod logins;
mod memory;
mod names;
mod outage;
mod pins;
mod queue;
mod reconnect;
mod refusals;
pub mod rig;
mod rotation;
mod sessions;
mod switch;
mod switch_deaths;
mod switch_faults;
mod switch_shared;
mod tls;

use std::time::Duration;

use rig::{Account, Agent, Postgres, connect, reacting, settings, until};
use rustix::process::{Signal, kill_process};
use sluice::{
    contract::{LimitsReadBack, SlotStatus},
    decide::sizing::{ObservationLine, Sizer, SizingSettings},
};
use tokio_postgres::SimpleQueryMessage;

/// Server connections of a role, as PostgreSQL itself counts them.
async fn counted(admin: &tokio_postgres::Client, user: &str) -> i64 {
    let query = "select count(*) from pg_stat_activity where usename = $1";
    admin.query_one(query, &[&user]).await.unwrap().get(0)
}

/// One value of a one-row answer, by the protocol that needs no prepared statement.
async fn value(client: &tokio_postgres::Client, query: &str) -> String {
    let rows = client.simple_query(query).await.unwrap();
    let row = rows.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.unwrap().get(0).unwrap().to_owned()
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_grant_is_in_force_once_it_is_read_back() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let status = agent.until("the pooler serves", |status| status.slot == SlotStatus::Serving).await;
    let in_force = LimitsReadBack { pool_size: 4, max_db_connections: 4, min_pool_size: 1, paused: false };
    assert_eq!(status.limits, Some(in_force));
    assert_eq!((status.revision, status.share, status.pod_uid.as_str()), (Some(1), 4, "uid-of-the-pod"));
    agent.grant(2, 9, 9);
    let status = agent.until("growth is read back", |status| status.seq == 2).await;
    assert_eq!(status.limits.unwrap().pool_size, 9);
    assert_eq!(agent.metric("sluice_limit{"), Some(9.0));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_share_of_zero_clients_queue_and_growth_lets_them_through() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 0).await;
    assert!(agent.status().unwrap().limits.unwrap().paused);
    let config = agent.client_config();
    let client = tokio::spawn(async move { value(&connect(&config).await.unwrap(), "select 'through'").await });
    until("the client queues", async || agent.status()?.held.filter(|held| held.waiting == 1)).await;
    assert_eq!(counted(&postgres.admin().await, "shop").await, 0, "nothing is open at the database");
    agent.grant(2, 1, 1);
    assert_eq!(tokio::time::timeout(rig::DEADLINE, client).await.unwrap().unwrap(), "through");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_shrink_is_reported_only_when_the_database_counts_no_more_than_the_share() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 8).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let client = agent.client().await;
        client.simple_query("begin; select 1").await.unwrap();
        clients.push(client);
    }
    let admin = postgres.admin().await;
    assert_eq!(counted(&admin, "shop").await, 8);
    agent.grant(2, 3, 8);
    agent.until("it says what it waits for", |status| status.message.contains("more than the share")).await;
    assert_eq!(agent.status().unwrap().seq, 1, "transactions hold more than the share: not proven");
    for client in &clients {
        client.simple_query("commit").await.unwrap();
    }
    agent
        .until("the shrink is proven", |status| status.seq == 2 && status.held.is_some_and(|held| held.held <= 3))
        .await;
    assert!(counted(&admin, "shop").await <= 3);
    let limits = agent.status().unwrap().limits.unwrap();
    assert_eq!((limits.pool_size, limits.max_db_connections), (3, 3));
}

/// Waits until a grant is proven, while the database never counts more than what is granted.
async fn proven_within(agent: &Agent, admin: &tokio_postgres::Client, seq: u64, granted: u32) {
    until("the grant is proven", async || {
        let most = counted(admin, "shop").await;
        assert!(most <= i64::from(granted), "{most} open, {granted} granted");
        agent.status().filter(|status| status.seq == seq)
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn under_load_the_database_never_counts_more_than_what_is_granted() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &reacting(), 6).await;
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let config = agent.client_config();
        load.spawn(async move {
            let client = connect(&config).await.unwrap();
            loop {
                client.simple_query("select pg_sleep(0.005)").await.unwrap();
            }
        });
    }
    let admin = postgres.admin().await;
    let (mut share, mut seq) = (6, 1);
    for next in [2, 9, 1, 5, 0, 4] {
        seq += 1;
        let granted = share.max(next);
        agent.grant(seq, next, granted);
        proven_within(&agent, &admin, seq, granted).await;
        share = next;
        assert!(counted(&admin, "shop").await <= i64::from(share));
    }
    load.abort_all();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn names_and_passwords_with_every_special_character_log_in_unchanged() {
    let postgres = Postgres::start().await;
    let hostile = [
        Account::new("o'brien", "p'w\"x;y%z=1", "a-b.c_d"),
        Account::new("ünïcode", "пароль \\ $HOME `id`", "shop1"),
        Account::new("a b", " leading and trailing ", "shop2"),
        Account::new("host=evil", "' host='127.0.0.9", "shop3"),
        Account::new("[pgbouncer]", "%include /etc/passwd", "shop4"),
        Account::new("a;b%c\"d=e'f", ";--\"' or '1'='1", "shop5"),
        Account::new("tab\tand\\", "\u{1f600}\t\u{e9}", "shop6"),
    ];
    for account in hostile {
        postgres.create(&account).await;
        let agent = Agent::start(&postgres, &account, &settings(), 2).await;
        let client = agent.client().await;
        let who = value(&client, "select current_user || ' in ' || current_database()").await;
        assert_eq!(who, format!("{} in {}", account.user, account.database));
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn credentials_that_pgbouncer_cannot_hold_are_refused_by_name_and_change_nothing() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 2).await;
    // the last is how PgBouncer writes a hash: it would not be taken as a password
    let hash = format!("md5{}", "0".repeat(32));
    for (file, content) in
        [("credentials/username", "a\nb"), ("credentials/username", ""), ("credentials/password", hash.as_str())]
    {
        let good = std::fs::read_to_string(agent.run_dir().parent().unwrap().join("config").join(file)).unwrap();
        agent.write(file, content);
        let field = file.rsplit_once('/').unwrap().1;
        let status = agent.until("it is refused", |status| status.message.contains(field)).await;
        assert!(!status.message.contains("secret"), "{}", status.message);
        assert_eq!(value(&agent.client().await, "select 1").await, "1");
        agent.write(file, &good);
        agent.until("it is good again", |status| status.message.is_empty()).await;
    }
    assert!(!agent.log().contains("secret"), "no password in the log");
    assert!(!agent.metrics().contains("secret"), "no password in the metrics");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_killed_or_hung_pooler_is_started_again_with_its_limits() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    for (signal, reason) in [(Signal::KILL, "Exited"), (Signal::STOP, "Hung")] {
        let before = agent.pooler_pid().unwrap();
        kill_process(before, signal).unwrap();
        until("another process serves", async || {
            let status = agent.status()?;
            let another = agent.pooler_pid().is_some_and(|pid| pid != before);
            (another && status.slot == SlotStatus::Serving && status.limits.is_some()).then_some(())
        })
        .await;
        assert_eq!(value(&agent.client().await, "select 1").await, "1");
        let limits = agent.status().unwrap().limits.unwrap();
        assert_eq!((limits.pool_size, limits.max_db_connections), (5, 5));
        let series =
            format!("sluice_pooler_restarts_total{{pool=\"shop\",pool_namespace=\"shop\",reason=\"{reason}\"}}");
        assert_eq!(agent.metric(&series), Some(1.0));
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pooler_that_does_not_stay_up_is_told_of() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let told = until("it is told", async || {
        if let Some(pid) = agent.pooler_pid() {
            let _ = kill_process(pid, Signal::KILL);
        }
        agent.status().map(|status| status.message).filter(|message| !message.is_empty())
    })
    .await;
    assert!(told.contains("does not stay up"), "{told}");
    // it says so until it has stayed up for a while, and serves meanwhile
    let status = agent.until("serves again", |status| status.slot == SlotStatus::Serving && status.seq == 1).await;
    assert!(status.message.contains("does not stay up"), "{}", status.message);
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn damaged_annotations_change_nothing_and_are_told() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let before = agent.status().unwrap().limits;
    for (file, content, said) in [
        ("grant", r#"{"v":1,"epoch":1,"pools":{"shop":{"seq":2,"share""#, "not valid"),
        ("grant", r#"{"v":9}"#, "version 9"),
        ("grant", r#"{"v":1,"epoch":1,"pools":{"shop":{"seq":2,"share":9,"granted":3,"floor":1}}}"#, "inconsistent"),
        ("grant", r#"{"v":1,"epoch":0,"pools":{"shop":{"seq":9,"share":9,"granted":9,"floor":1}}}"#, "older"),
        ("grant", r#"{"v":1,"epoch":1,"pools":{"shop":{"seq":1,"share":9,"granted":9,"floor":1}}}"#, "other figures"),
        ("grant", r#"{"v":1,"epoch":1,"pools":{}}"#, "does not mention pool shop"),
        ("grant", "", "missing"),
        ("revision", "{", "not valid"),
        ("revision", r#"{"v":2}"#, "version 2"),
    ] {
        agent.write(file, content);
        let status = agent.until(said, |status| status.message.contains(said)).await;
        assert_eq!((status.limits, status.seq, status.revision), (before, 1, Some(1)), "{content}");
        let refused = format!("sluice_config_refused{{pool=\"shop\",pool_namespace=\"shop\",document=\"{file}\"");
        until("the metric says so", async || agent.metric(&refused)).await;
        agent.grant(1, 5, 5);
        agent.revise(1, &settings());
        agent.until("it is good again", |status| status.message.is_empty()).await;
    }
    let mut forbidden = settings();
    forbidden.parameters.insert("auth_file".to_owned(), "/etc/passwd".to_owned());
    agent.revise(2, &forbidden);
    agent.until("a parameter off the list", |status| status.message.contains("auth_file")).await;
    assert_eq!(agent.status().unwrap().revision, Some(1));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pod_without_annotations_waits_says_for_what_and_starts_when_they_come() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::new(postgres.port, &account);
    agent.run();
    let both = |message: &str| message.contains("sluice.dev/revision") && message.contains("sluice.dev/grant");
    let status = agent.until("both are named", |status| both(&status.message)).await;
    assert_eq!((status.slot, status.revision, status.share), (SlotStatus::Starting, None, 0));
    assert!(!agent.is_ready() && agent.pooler_pid().is_none(), "nothing runs");
    agent.revise(1, &settings());
    let status = agent.until("without a grant clients wait", |status| status.slot == SlotStatus::Serving).await;
    assert!(status.message.contains("sluice.dev/grant"), "{}", status.message);
    agent.until("paused", |status| status.limits.is_some_and(|limits| limits.paused)).await;
    agent.grant(1, 2, 2);
    agent.until("the grant is in force", |status| status.seq == 1 && status.message.is_empty()).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer: tests/run parts"]
async fn an_injection_that_cannot_work_ends_the_agent_with_the_field() {
    let good = Agent::new(1, &Account::shop()).injection_text();
    for (injection, said) in [
        (String::new(), "SLUICE_INJECTION"),
        (good[..good.len() / 2].to_owned(), "SLUICE_INJECTION"),
        (good.replacen("\"v\":1", "\"v\":9", 1), "version 9"),
        (good.replacen("\"database\":\"shop\"", "\"database\":\"sh'op\"", 1), "upstream.database"),
        (good.replacen("\"database\":\"shop\"", "\"database\":\"a\\nb\"", 1), "upstream.database"),
        (good.replacen("\"host\":\"127.0.0.1\"", "\"host\":\"db host=evil\"", 1), "upstream.host"),
    ] {
        assert_ne!(injection, good, "{said}");
        let mut agent = Agent::new(1, &Account::shop());
        let log = agent.run_to_its_end(&injection);
        assert!(log.contains(said), "{said} in: {log}");
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_container_that_restarts_with_damaged_annotations_comes_back_on_what_worked_last() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let kept = until("it is kept", async || std::fs::read_to_string(agent.state_file()).ok()).await;
    assert!(!kept.contains("secret"), "no password on the disk");
    agent.stop();
    agent.write("grant", "{");
    agent.remove("revision");
    agent.run();
    let status = agent.until("it serves again", |status| status.limits.is_some() && status.seq == 1).await;
    assert_eq!((status.revision, status.share, status.limits.unwrap().pool_size), (Some(1), 5, 5));
    assert!(status.message.contains("missing") && status.message.contains("not valid"), "{}", status.message);
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_revision_is_taken_over_by_reload_without_cutting_a_client() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let client = agent.client().await;
    client.simple_query("begin; select 1").await.unwrap();
    let mut changed = settings();
    changed.parameters.insert("server_idle_timeout".to_owned(), "33".to_owned());
    changed.health.query_wait_timeout_seconds = 7;
    agent.revise(2, &changed);
    let status = agent.until("revision 2 is read back", |status| status.revision == Some(2)).await;
    assert_eq!(status.limits.unwrap().max_db_connections, 5, "a RELOAD does not move the limits");
    client.simple_query("commit").await.unwrap();
    assert_eq!(value(&client, "select 'still here'").await, "still here");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_idle_transaction_counts_as_a_leak_and_a_long_query_does_not() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut settings = settings();
    settings.health.leak_threshold_seconds = 2;
    let agent = Agent::start(&postgres, &account, &settings, 5).await;
    let (leaking, working) = (agent.client().await, agent.client().await);
    leaking.simple_query("begin; select 1").await.unwrap();
    let query = tokio::spawn(async move { working.simple_query("select pg_sleep(12)").await });
    let status = agent
        .until("the leak is seen", |status| status.held.is_some_and(|held| held.active == 2 && held.leaked == Some(1)))
        .await;
    assert_eq!(status.held.unwrap().leaked, Some(1));
    query.await.unwrap().unwrap();
    assert_eq!(agent.status().unwrap().held.unwrap().leaked, Some(1), "the query never counted");
    leaking.simple_query("rollback").await.unwrap();
    agent.until("the leak is over", |status| status.held.is_some_and(|held| held.leaked == Some(0))).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_limit_follows_the_load_of_the_pod_and_its_log_replays_to_the_same_decisions() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &reacting(), 20).await;
    agent.until("an idle pod shrinks to few", |status| status.limits.is_some_and(|limits| limits.pool_size <= 2)).await;
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let config = agent.client_config();
        load.spawn(async move {
            let client = connect(&config).await.unwrap();
            loop {
                client.simple_query("select pg_sleep(0.05)").await.unwrap();
            }
        });
    }
    let busy = |limits: LimitsReadBack| limits.pool_size >= 10 && limits.max_db_connections == 20;
    agent.until("clients that wait raise it", |status| status.limits.is_some_and(busy)).await;
    until("the counters moved", async || {
        agent.metric("sluice_transactions_total{").filter(|transactions| *transactions > 50.0)
    })
    .await;
    load.abort_all();

    let sizing = SizingSettings::from(&reacting());
    let mut sizer = Sizer::default();
    let mut replayed = 0;
    for line in agent.log().lines().filter(|line| line.contains("\"observation\"")) {
        let logged: serde_json::Value = serde_json::from_str(line).unwrap();
        let observation =
            ObservationLine::parse(logged["observation"].as_str().unwrap()).unwrap().observation().unwrap();
        let decision = sizer.decide(&sizing, &observation.observation());
        assert_eq!(u64::from(decision.size), logged["size"].as_u64().unwrap(), "{line}");
        assert_eq!(decision.reason.as_str(), logged["reason"].as_str().unwrap());
        replayed += 1;
    }
    assert!(replayed > 3, "{replayed} decisions");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pod_that_ends_lets_its_running_transaction_finish() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::start(&postgres, &account, &settings(), 5).await;
    let client = agent.client().await;
    // longer than from one reading to the next
    let running = tokio::spawn(async move { value(&client, "select 'finished' from pg_sleep(2)").await });
    until("it runs", async || agent.status()?.held.filter(|held| held.active == 1)).await;
    tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap(), "finished");
}
