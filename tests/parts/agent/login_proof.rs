//! A revision that the process that runs could take over, and that nothing but a login to the database proves.

use std::collections::BTreeMap;

use rustix::process::{Signal, kill_process};
use sluice::contract::{SessionAlias, Settings, SlotStatus, StatusReport, Switching, UpstreamRole};

use super::{
    counted,
    load::Clients,
    rig::{Agent, Postgres, settings, until},
    switch::{awaits_promotion, packets, switched, target, waits},
    value,
};

/// Settings whose validation query is this.
fn asking(query: &str) -> Settings {
    let mut settings = settings();
    query.clone_into(&mut settings.health.validation_query);
    settings
}

/// Waits until a revision is told not to be in force for this reason; the one before serves all the time.
async fn is_held(agent: &Agent, revision: u64, why: &str, serves: u64) -> StatusReport {
    let status = agent
        .until(why, |status| {
            assert_ne!(status.revision, Some(revision), "{}", status.message);
            status.message.contains(&format!("revision {revision} is not in force")) && status.message.contains(why)
        })
        .await;
    assert_eq!((status.revision, status.slot), (Some(serves), SlotStatus::Serving), "{}", status.message);
    assert!(status.message.contains(&format!("revision {serves} serves on")), "{}", status.message);
    status
}

/// Waits until a revision is in force, by the same process as before.
async fn is_taken_over(agent: &Agent, revision: u64) {
    let before = agent.pooler_pid();
    switched(agent, revision).await;
    assert_eq!(agent.pooler_pid(), before, "it needs no new process");
}

/// A validation query that fails on the database, and then one that does not, under load; the database never counts more than the
/// share.
async fn a_failing_query_is_held_and_a_good_one_taken_over(agent: Agent, postgres: &Postgres, share: u32) {
    let agent = agent.started(&settings(), share).await;
    let admin = postgres.admin().await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent), 2, 20);
    let stays = agent.client().await;
    let blue = agent.pooler_pid();
    agent.revise(2, &asking("select no_such_thing"));
    is_held(&agent, 2, "it did not prove itself: column \"no_such_thing\" does not exist", 1).await;
    for (revision, query) in [(3, "select 3"), (4, "")] {
        agent.revise(revision, &asking(query));
        until("it is in force", async || {
            let open = counted(&admin, "shop").await;
            assert!(open <= i64::from(share), "{open} open of a share of {share}");
            agent.status().filter(|status| status.revision == Some(revision) && status.message.is_empty())
        })
        .await;
    }
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    assert_eq!(agent.pooler_pid(), blue, "none needs a new process");
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    assert!(agent.metric("sluice_clients_cut_total{").is_none_or(|cut| cut < 1.0), "{}", agent.metrics());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_validation_query_alone_that_fails_is_not_in_force_and_the_next_good_one_is() {
    let (postgres, account) = Postgres::with_shop().await;
    a_failing_query_is_held_and_a_good_one_taken_over(Agent::new(postgres.port, &account), &postgres, 4).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_share_of_one_a_validation_query_has_its_turn_between_clients() {
    let (postgres, account) = Postgres::with_shop().await;
    a_failing_query_is_held_and_a_good_one_taken_over(Agent::new(postgres.port, &account), &postgres, 1).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn in_a_gateway_a_validation_query_is_proven_too() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::new(postgres.port, &account).for_network();
    a_failing_query_is_held_and_a_good_one_taken_over(agent, &postgres, 3).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_validation_query_that_never_comes_back_is_not_in_force_and_leaves_nothing_at_work() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    agent.revise(2, &asking("select pg_sleep(600)"));
    is_held(&agent, 2, "no answer to \"select pg_sleep(600)\" within 3 s", 1).await;
    agent.revise(3, &asking("select 3"));
    is_taken_over(&agent, 3).await;
    let admin = postgres.admin().await;
    until("the database works on none", async || {
        let query =
            "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid()";
        (value(&admin, query).await == "0").then_some(())
    })
    .await;
}

/// Running transactions are waited for as they are for a new process.
#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn while_every_connection_is_at_work_it_waits_and_nobody_is_cut() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 2).await;
    let clients = [agent.client().await, agent.client().await];
    for client in &clients {
        client.simple_query("begin; select 1").await.unwrap();
    }
    agent.revise(2, &asking("select 2"));
    is_held(&agent, 2, "a login to the database has to prove it", 1).await;
    for client in &clients {
        client.simple_query("commit").await.unwrap();
    }
    is_taken_over(&agent, 2).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn while_the_database_is_away_it_is_held_and_in_force_once_it_is_back() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    postgres.stop();
    agent.revise(2, &asking("select 2"));
    is_held(&agent, 2, "it did not prove itself", 1).await;
    postgres.resume().await;
    is_taken_over(&agent, 2).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_bound_of_every_query_that_the_database_does_not_meet_is_not_in_force() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asking("select pg_sleep(0.5)"), 4).await;
    let mut strict = asking("select pg_sleep(0.5)");
    strict.parameters.insert("query_timeout".to_owned(), "0.1".to_owned());
    agent.revise(2, &strict);
    is_held(&agent, 2, "query timeout", 1).await;
    strict.parameters.insert("query_timeout".to_owned(), "20".to_owned());
    agent.revise(3, &strict);
    is_taken_over(&agent, 3).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_primary_that_is_expected_from_now_on_is_looked_for_before_that_is_in_force() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let mut any = settings();
    any.role = UpstreamRole::Any;
    let agent = Agent::start(&postgres, &account, &any, 4).await;
    postgres.demote().await;
    agent.revise(2, &settings());
    let told =
        |status: &StatusReport| ["takes no writes", "takes writes again"].iter().any(|it| status.message.contains(it));
    let status = agent
        .until("it is told", |status| {
            assert_ne!(status.revision, Some(2), "{}", status.message);
            told(status)
        })
        .await;
    assert_eq!(status.revision, Some(1), "{}", status.message);
    postgres.promote().await;
    is_taken_over(&agent, 2).await;
}

/// Where a process ends it is started with what served, whether another one could have proven the rest or not.
async fn a_process_that_ends_comes_back_with_what_was_proven(agent: Agent, settings: &Settings, mode: Switching) {
    let agent = agent.started(settings, 4).await;
    assert_eq!(agent.status().unwrap().switching, Some(mode));
    let with = |query: &str| {
        let mut settings = settings.clone();
        query.clone_into(&mut settings.health.validation_query);
        settings
    };
    agent.revise(2, &with("select no_such_thing"));
    is_held(&agent, 2, "no_such_thing", 1).await;
    let before = agent.pooler_pid().unwrap();
    kill_process(before, Signal::KILL).unwrap();
    until("another process", async || agent.pooler_pid().filter(|pid| *pid != before)).await;
    agent.until("it serves", |status| status.slot == SlotStatus::Serving && status.revision.is_some()).await;
    is_held(&agent, 2, "no_such_thing", 1).await;
    agent.revise(3, &with("select 3"));
    is_taken_over(&agent, 3).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_process_that_ends_meanwhile_comes_back_with_the_query_that_was_proven() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::new(postgres.port, &account);
    a_process_that_ends_comes_back_with_what_was_proven(agent, &settings(), Switching::Steer).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_no_second_process_can_be_started_a_validation_query_is_proven_all_the_same() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::new(postgres.port, &account).with_shared_listener();
    let mut with_alias = settings();
    with_alias.session_alias = Some(SessionAlias { database: "shop_session".to_owned(), connections: 1 });
    a_process_that_ends_comes_back_with_what_was_proven(agent, &with_alias, Switching::Unsupported).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_new_process_that_waits_for_its_promotion_does_not_stand_for_a_query_that_it_never_sent() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &packets(4096), 4).await;
    let (by_hand, _) = awaits_promotion(&agent).await;
    let mut failing = by_hand.clone();
    "select no_such_thing".clone_into(&mut failing.health.validation_query);
    agent.revise(3, &failing);
    let status = agent
        .until("it is told", |status| {
            let stands_for_it = waits(status) && status.other.is_some_and(|other| other.revision == Some(3));
            assert!(!stands_for_it, "{status:?}");
            status.message.contains("no_such_thing")
        })
        .await;
    assert_eq!(status.revision, Some(1), "{}", status.message);
    // one that works is proven anew and waits
    let mut good = by_hand.clone();
    "select 4".clone_into(&mut good.health.validation_query);
    agent.revise(4, &good);
    agent.until("it waits", |status| waits(status) && status.other.is_some_and(|it| it.revision == Some(4))).await;
    good.rollout.auto_promotion_enabled = true;
    agent.revise(5, &good);
    switched(&agent, 5).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_next_agent_proves_a_query_that_the_one_before_could_not() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::start(&postgres, &account, &settings(), 4).await;
    until("it is kept", async || agent.state_file().exists().then_some(())).await;
    agent.revise(2, &asking("select no_such_thing"));
    is_held(&agent, 2, "no_such_thing", 1).await;
    agent.crash().await;
    agent.run();
    agent.until("it serves", |status| status.slot == SlotStatus::Serving && status.seq == 1).await;
    is_held(&agent, 2, "no_such_thing", 1).await;
}
