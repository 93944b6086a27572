//! What the database refuses, in whatever words, and what PgBouncer refuses its clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sluice::{
    contract::{PoolerError, StatusReport},
    pooler::pgbouncer::parameters::REFUSED,
};

use super::{
    counted,
    load::{Clients, Target},
    rig::{Account, Agent, Postgres, connect, reacting, settings, until},
    switch::packets,
};

const SHARE: u32 = 20;

fn target(agent: &Agent) -> Target {
    let address = ([127, 0, 0, 1], agent.client_port()).into();
    Target { address, login: agent.client_config(), tls: None }
}

fn troubles(status: &StatusReport) -> Vec<PoolerError> {
    status.troubles.iter().map(|trouble| trouble.reason).collect()
}

/// Lines of this class that were counted; 0 where there was none.
fn lines(agent: &Agent, error: PoolerError) -> u32 {
    let reason = format!("reason=\"{}\"", error.as_str());
    let metrics = agent.metrics();
    let series = metrics.lines().find(|line| line.starts_with("sluice_pooler_errors_total{") && line.contains(&reason));
    series.map_or(0, |line| line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a count"))
}

/// Clients of which each wants a server connection nearly always.
fn crowd(agent: &Agent, clients: usize) -> Clients {
    let mut crowd = Clients::new();
    for _ in 0..clients {
        crowd.work(&target(agent), Duration::from_millis(100));
    }
    crowd
}

async fn is_held_at_three_and_follows_when_there_is_room(limit: &str, unlimit: &str) {
    let (postgres, account) = Postgres::with_shop().await;
    let admin = postgres.admin().await;
    admin.batch_execute(limit).await.unwrap();
    let agent = Agent::start(&postgres, &account, &reacting(), SHARE).await;
    let clients = crowd(&agent, 12);
    let status = agent
        .until("the refusal is told", |status| {
            status.server_full.as_ref().is_some_and(|full| full.refused_beyond == 3 && !full.words.is_empty())
        })
        .await;
    assert!(status.server_full.unwrap().words.contains("too many connections"));
    agent.until("the limit is held there", |status| status.limits.is_some_and(|limits| limits.pool_size == 3)).await;
    assert_eq!(agent.metric("sluice_server_refused_beyond{"), Some(3.0));
    let refusals = || agent.log().matches("server login failed").count();
    agent.until("one more is tried", |status| status.limits.is_some_and(|limits| limits.pool_size == 4)).await;
    agent.until("and refused", |status| status.limits.is_some_and(|limits| limits.pool_size == 3)).await;
    assert!(refusals() <= 8, "{} logins were refused", refusals());
    admin.batch_execute(unlimit).await.unwrap();
    let status = agent.until("more are let in", |status| status.held.is_some_and(|held| held.held >= 8)).await;
    // told until enough steps have gone well
    assert!(status.server_full.is_none_or(|full| full.at_most >= 8 && full.refused_beyond > 3));
    assert_eq!(agent.metric("sluice_server_refused_beyond{"), None);
    let tally = clients.stop().await;
    assert!(tally.failures().is_empty(), "{:?}", tally.failures());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_role_that_is_let_in_no_further_is_held_there_and_followed_when_it_is() {
    is_held_at_three_and_follows_when_there_is_room(
        "alter role shop connection limit 3",
        "alter role shop connection limit 40",
    )
    .await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_that_is_full_is_held_there_and_followed_when_it_is_not() {
    is_held_at_three_and_follows_when_there_is_room(
        "alter database shop connection limit 3",
        "alter database shop connection limit 40",
    )
    .await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn two_pods_of_one_role_limit_open_no_more_than_it_allows_and_neither_asks_often() {
    let (postgres, account) = Postgres::with_shop().await;
    let admin = postgres.admin().await;
    admin.batch_execute("alter role shop connection limit 6").await.unwrap();
    let pods = [
        Agent::start(&postgres, &account, &settings(), SHARE).await,
        Agent::start(&postgres, &account, &settings(), SHARE).await,
    ];
    let clients = pods.each_ref().map(|pod| crowd(pod, 6));
    for pod in &pods {
        pod.until("the refusal is told", |status| status.server_full.is_some()).await;
    }
    until("together they hold what the role may", async || {
        let held =
            pods.iter().map(|pod| pod.status()?.server_full.map(|full| full.refused_beyond)).sum::<Option<u32>>();
        (held == Some(6) && counted(&admin, &account.user).await == 6).then_some(())
    })
    .await;
    for pod in clients {
        let tally = pod.stop().await;
        assert!(tally.queries() > 0);
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn two_processes_share_what_the_database_lets_in_and_neither_asks_often() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), SHARE).await;
    let stay = [agent.client().await, agent.client().await, agent.client().await, agent.client().await];
    agent.revise(2, &packets(8192));
    agent.until("new clients go elsewhere", |status| status.revision == Some(2) && status.other.is_some()).await;
    let admin = postgres.admin().await;
    admin.batch_execute("alter role shop connection limit 3").await.unwrap();
    let clients = crowd(&agent, 4);
    let served: [Arc<AtomicU64>; 4] = Default::default();
    let stay: Vec<_> = stay
        .into_iter()
        .zip(served.clone())
        .map(|(client, served)| {
            tokio::spawn(async move {
                while client.simple_query("select pg_sleep(0.1)").await.is_ok() {
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    agent
        .until("the refusal is told", |status| status.server_full.as_ref().is_some_and(|full| full.at_most <= 4))
        .await;
    let refusals = || agent.log().matches("server login failed").count();
    let at_work = || (clients.tally.queries(), served.iter().map(|served| served.load(Ordering::Relaxed)).sum::<u64>());
    let (refused, began, worked) = (refusals(), Instant::now(), at_work());
    until("a while has passed", async || (began.elapsed() > Duration::from_secs(20)).then_some(())).await;
    let (more, works) = (refusals() - refused, at_work());
    assert!(works.0 > worked.0 + 20 && works.1 > worked.1 + 20, "both are served: {worked:?}, then {works:?}");
    assert!(more <= 6, "{more} logins were refused in 20 s");
    for task in stay {
        task.abort();
    }
    clients.stop().await;
}

/// A server that speaks German.
async fn german() -> (Postgres, Account) {
    let (postgres, account) = (Postgres::in_german().await, Account::shop());
    postgres.create(&account).await;
    (postgres, account)
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_full_server_that_speaks_another_language_is_understood_and_freezes_no_password() {
    let (postgres, account) = german().await;
    let admin = postgres.admin().await;
    admin.batch_execute("alter role shop connection limit 3").await.unwrap();
    let agent = Agent::start(&postgres, &account, &reacting(), SHARE).await;
    let clients = crowd(&agent, 12);
    let status = agent
        .until("the refusal is understood", |status| {
            status.server_full.as_ref().is_some_and(|full| full.refused_beyond == 3)
        })
        .await;
    let words = status.server_full.unwrap().words;
    assert!(words.contains("zu viele Verbindungen"), "{words}");
    assert_eq!(status.message, "", "no password was refused");
    agent.until("the limit is held there", |status| status.limits.is_some_and(|limits| limits.pool_size == 3)).await;
    // what it was found to mean holds for the next time
    agent.until("one more is tried", |status| status.limits.is_some_and(|limits| limits.pool_size == 4)).await;
    let status = agent.until("and refused", |status| status.limits.is_some_and(|limits| limits.pool_size == 3)).await;
    assert_eq!(troubles(&status), [PoolerError::TooManyServerConnections]);
    assert_eq!(lines(&agent, PoolerError::ServerLoginRefused), 0);
    assert!(lines(&agent, PoolerError::TooManyServerConnections) > 0);
    clients.stop().await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_password_refused_in_another_language_keeps_what_is_open_once_that_is_proven() {
    let (postgres, account) = german().await;
    let admin = postgres.admin().await;
    let agent = Agent::start(&postgres, &account, &reacting(), SHARE).await;
    let client = agent.client().await;
    client.batch_execute("begin").await.unwrap();
    admin.batch_execute("alter role shop password 'another'").await.unwrap();
    let second = agent.client_config();
    let second = tokio::spawn(async move { connect(&second).await.unwrap().batch_execute("select 1").await });
    let status =
        agent.until("the refusal is understood", |status| status.message.contains("refused the last login")).await;
    assert!(troubles(&status).contains(&PoolerError::ServerLoginRefused), "{status:?}");
    admin.batch_execute("alter role shop password 'secret'").await.unwrap();
    agent.until("it is over", |status| status.message.is_empty() && status.troubles.is_empty()).await;
    client.batch_execute("commit").await.unwrap();
    second.abort();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_startup_parameter_that_is_not_passed_on_is_told_by_its_name_and_its_value_nowhere() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    for options in ["-c work_mem=31337kB", "-c app.key=hunter2"] {
        let mut asking = agent.client_config();
        asking.options(options);
        let Err(refused) = connect(&asking).await else { panic!("let in with {options}") };
        let refused = refused.to_string();
        assert!(!refused.contains("hunter2"), "{refused}");
    }
    let status =
        agent.until("it is told", |status| status.troubles.iter().any(|trouble| trouble.words == "app.key")).await;
    assert_eq!(troubles(&status), [PoolerError::UnsupportedStartupParameter]);
    assert_eq!(status.message, "", "nothing of the pool's own is wrong");
    assert!(lines(&agent, PoolerError::UnsupportedStartupParameter) >= 2);
    let log = agent.log();
    assert!(!log.contains("hunter2") && !log.contains("31337"), "a value may be a secret");
    agent.client().await.batch_execute("select 1").await.unwrap();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_settings_that_are_warned_of_at_admission_are_refused_at_a_login() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    for name in REFUSED {
        let mut asking = agent.client_config();
        asking.options(format!("-c {name}=0"));
        match connect(&asking).await {
            Err(refused) => {
                let words =
                    refused.as_db_error().map_or_else(|| refused.to_string(), |error| error.message().to_owned());
                assert!(words.contains("unsupported startup parameter"), "{name}: {words}");
            }
            // from 1.26 on what the server reports is passed on
            Ok(_) => assert!(["default_transaction_read_only", "search_path"].contains(&name), "{name} is let in"),
        }
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_that_wants_a_client_certificate_is_told_in_its_words_and_keeps_what_is_open() {
    let authority = super::tls::Authority::new("first");
    let (postgres, account) = super::tls::guarded(&authority.certify("127.0.0.1")).await;
    let rules = format!(
        "host all,replication postgres samenet trust\nhostssl all {} 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n",
        account.user
    );
    postgres.reconfigure(&[("root.crt", &authority.pem), ("pg_hba.conf", &rules)]).await;
    let admin = postgres.admin().await;
    admin.batch_execute("alter system set ssl_ca_file = 'root.crt'").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let tls = sluice::contract::ServerTls {
        mode: sluice::contract::ServerTlsMode::Require,
        own_ca: false,
        own_certificate: false,
    };
    let agent = Agent::new(postgres.port, &account).with(|injection| injection.upstream.tls = tls);
    let agent = agent.started(&settings(), 4).await;
    let login = agent.client_config();
    let client = tokio::spawn(async move { connect(&login).await.map(drop) });
    let status = agent.until("it is told", |status| troubles(status) == [PoolerError::ServerWantsCertificate]).await;
    assert!(status.troubles[0].words.contains("valid client certificate"), "{status:?}");
    client.abort();
}
