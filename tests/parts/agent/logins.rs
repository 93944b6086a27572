//! Server connections that are just being opened when something changes that ends them all: no client is cut for it.

use std::{collections::BTreeMap, time::Duration};

use sluice::{
    contract::{LimitsReadBack, ServerTls, ServerTlsMode, SessionAlias, Settings},
    pooler::pgbouncer::{changes::Remembered, console::Console},
};

use super::{
    load::{Clients, Failure, Kind, Stage, Target},
    rig::{Agent, Postgres, pooler_remembers, settings, until},
    tls::{Authority, guarded},
};

const ALIAS: &str = "shop_session";
const SHARE: u32 = 6;
/// Of them, the session alias's.
const SESSIONS: u32 = 2;

/// Server connections live so short that one logs in nearly always.
fn restless() -> Settings {
    let mut settings = settings();
    settings.parameters.insert("server_lifetime".to_owned(), "2".to_owned());
    settings
}

/// The same with sessions beside.
fn restless_with_sessions() -> Settings {
    let mut settings = restless();
    settings.session_alias = Some(SessionAlias { database: ALIAS.to_owned(), connections: SESSIONS });
    settings
}

/// Each login takes a second from now on, once the password was accepted.
async fn slow_down(postgres: &Postgres) {
    let admin = postgres.admin().await;
    admin.batch_execute("alter system set post_auth_delay = 1").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
}

fn target(agent: &Agent, database: &str) -> Target {
    let mut login = agent.client_config();
    login.dbname(database);
    Target { address: ([127, 0, 0, 1], agent.client_port()).into(), login, tls: None }
}

/// Waits until a server connection logs in.
async fn somebody_logs_in(agent: &Agent) {
    let mut consoles =
        ["a", "b"].map(|slot| Console::new(&agent.run_dir().join(slot), agent.client_port(), Duration::from_secs(5)));
    until("a server connection logs in", async || {
        for console in &mut consoles {
            // of one slot at least a process runs
            if let Ok((pools, alias)) = console.pools("shop").await
                && pools.login + alias.login > 0
            {
                return Some(());
            }
        }
        None
    })
    .await;
}

/// Has the agent take over what `change` writes, while a server connection logs in.
async fn hand_over(agent: &Agent, change: impl AsyncFnOnce()) {
    let times = || agent.log().matches("credentials in force in every slot").count();
    somebody_logs_in(agent).await;
    let before = times();
    change().await;
    until("it is in force in every process", async || (times() > before).then_some(())).await;
    agent.until("nothing is left to tell", |status| status.message.is_empty()).await;
}

/// What the pooler is given back after it was kept from opening more.
async fn limits_come_back(agent: &Agent, pool_size: u32) {
    let in_force = LimitsReadBack { pool_size, max_db_connections: SHARE, min_pool_size: 1, paused: false };
    agent.until("the limits are as granted", |status| status.limits == Some(in_force)).await;
    let mut console = Console::new(&agent.run_dir().join("a"), agent.client_port(), Duration::from_secs(5));
    until("lifetimes are as configured", async || {
        let lifetime: f64 = console.config().await.unwrap()["server_lifetime"].parse().unwrap();
        (lifetime < 2.5).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_ca_that_changes_while_connections_are_being_opened_cuts_no_client() {
    let mut old = Authority::new("first");
    let (postgres, account) = guarded(&old.certify("127.0.0.1")).await;
    let tls = ServerTls { mode: ServerTlsMode::VerifyFull, own_ca: true, own_certificate: false };
    let agent = Agent::new(postgres.port, &account).with(|injection| injection.upstream.tls = tls);
    agent.write("server-ca/ca.crt", &old.pem);
    let agent = agent.started(&restless_with_sessions(), SHARE).await;
    slow_down(&postgres).await;
    let mut clients = Clients::new();
    for _ in 0..4 {
        clients.stay(&target(&agent, "shop"), None, Duration::from_millis(5));
    }
    clients.churn(&target(&agent, "shop"), 4, 40);
    clients.churn(&target(&agent, ALIAS), 1, 2);
    for number in 0..4 {
        let new = Authority::new(&format!("number {number}"));
        hand_over(&agent, async || agent.write("server-ca/ca.crt", &format!("{}{}", old.pem, new.pem))).await;
        postgres.reconfigure(&new.certify("127.0.0.1").files()).await;
        hand_over(&agent, async || agent.write("server-ca/ca.crt", &new.pem)).await;
        old = new;
    }
    limits_come_back(&agent, SHARE - SESSIONS).await;
    let tally = clients.stop().await;
    assert_eq!(tally.failures(), BTreeMap::new());
    assert!(tally.connections() > 50, "{tally:?}");
    assert!(!agent.log().contains("although some still log in"), "in time");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn another_role_while_connections_are_being_opened_cuts_no_client() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &restless_with_sessions(), SHARE).await;
    slow_down(&postgres).await;
    let tally = through_roles(&postgres, &agent, async |target| {
        let mut clients = Clients::new();
        for _ in 0..6 {
            clients.stay(&target("shop"), None, Duration::from_millis(5));
        }
        clients.stay(&target(ALIAS), None, Duration::from_millis(50));
        until("they are at work", async || (clients.tally.connections() == 7).then_some(())).await;
        clients
    })
    .await;
    limits_come_back(&agent, SHARE - SESSIONS).await;
    assert!(tally > 500, "{tally} queries");
}

/// Has four roles follow each other while the clients of `comes` work, none of which may meet a failure; the queries they made.
/// Clients that are bound to their role are relieved by others of the new one before the next change.
async fn through_roles(
    postgres: &Postgres,
    agent: &Agent,
    comes: impl AsyncFn(&dyn Fn(&str) -> Target) -> Clients,
) -> u64 {
    let admin = postgres.admin().await;
    let mut clients = comes(&|database| target(agent, database)).await;
    let mut queries = 0;
    let mut leave = async |clients: Clients| {
        let tally = clients.stop().await;
        assert_eq!(tally.failures(), BTreeMap::new());
        queries += tally.queries();
    };
    for number in 0..4 {
        let (role, password) = (format!("shop_{number}"), format!("password-{number}"));
        admin.batch_execute(&format!("create role {role} login password '{password}'")).await.unwrap();
        hand_over(agent, async || {
            agent.write("credentials/username", &role);
            agent.write("credentials/password", &password);
        })
        .await;
        if pooler_remembers(Remembered::Role) {
            let others = comes(&|database| {
                let mut target = target(agent, database);
                target.login.user(&role).password(&password);
                target
            })
            .await;
            leave(std::mem::replace(&mut clients, others)).await;
            agent.until("the process of the role before is gone", |status| status.other.is_none()).await;
        }
    }
    leave(clients).await;
    queries
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_share_of_one_that_is_paused_for_a_proof_while_its_connection_is_being_opened_cuts_no_client() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &restless(), 1).await;
    slow_down(&postgres).await;
    let queries = through_roles(&postgres, &agent, async |target| {
        let mut clients = Clients::new();
        for _ in 0..4 {
            clients.stay(&target("shop"), None, Duration::from_millis(5));
        }
        until("they are at work", async || (clients.tally.connections() == 4).then_some(())).await;
        clients
    })
    .await;
    assert!(queries > 200, "{queries} queries");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_demoted_primary_is_left_while_connections_are_being_opened_and_no_client_is_cut() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut asked = restless();
    asked.health.period_seconds = 1;
    let agent = Agent::start(&postgres, &account, &asked, SHARE).await;
    slow_down(&postgres).await;
    let mut clients = Clients::new();
    for _ in 0..4 {
        clients.stay(&target(&agent, "shop"), None, Duration::from_millis(5));
    }
    clients.churn(&target(&agent, "shop"), 4, 40);
    somebody_logs_in(&agent).await;
    let admin = postgres.admin().await;
    admin.batch_execute("alter system set default_transaction_read_only = on").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let renewals = "sluice_upstream_renewals_total{";
    until("connections were renewed", async || agent.metric(renewals).filter(|times| *times >= 3.0)).await;
    admin.batch_execute("alter system reset default_transaction_read_only").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    until("it is over", async || {
        let message = agent.status()?.upstream?.message;
        message.is_empty().then_some(())
    })
    .await;
    limits_come_back(&agent, SHARE).await;
    let tally = clients.stop().await;
    let mut failures = tally.failures();
    if pooler_remembers(Remembered::ReadOnly) {
        // those who were told to connect anew; one that asks at that very moment has it for an answer
        let told: u64 = [Kind::Closed, Kind::Error("08P01".to_owned())]
            .into_iter()
            .filter_map(|kind| failures.remove(&Failure { stage: Stage::Query, kind }))
            .sum();
        let closed = agent.metric("sluice_clients_recalled_total{").unwrap();
        assert!(told > 0 && f64::from(u32::try_from(told).unwrap()) <= closed, "{told} of {closed}");
    }
    assert_eq!(failures, BTreeMap::new());
    assert!(tally.connections() > 50, "{tally:?}");
}
