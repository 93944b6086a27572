//! Credentials that change in their Secret: proven before they take effect, then in force in every process.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rustix::process::{Signal, kill_process};
use sluice::{
    contract::{OtherRole, SessionAlias, Settings, SlotStatus, StatusReport, Switching},
    pooler::pgbouncer::{changes::Remembered, console::Console},
};
use tokio_postgres::{Client, Config};

use super::{
    counted,
    load::{Clients, Target},
    rig::{Agent, Postgres, connect, pooler_remembers, settings, until},
    value,
};

/// Connections live so short that each is opened anew several times within a test.
fn short_lived() -> Settings {
    let mut settings = settings();
    settings.parameters.insert("server_lifetime".to_owned(), "2".to_owned());
    settings
}

fn client_config(agent: &Agent, user: &str, password: &str) -> Config {
    let mut config = agent.client_config();
    config.user(user).password(password);
    config
}

fn target(agent: &Agent, password: &str) -> Target {
    let login = client_config(agent, "shop", password);
    Target { address: ([127, 0, 0, 1], agent.client_port()).into(), login, tls: None }
}

async fn set_password(postgres: &Postgres, password: &str) {
    postgres.admin().await.batch_execute(&format!("ALTER ROLE shop PASSWORD '{password}'")).await.unwrap();
}

/// Ends every server connection of a role, as a restart or an administrator does.
async fn cut(postgres: &Postgres, user: &str) {
    let admin = postgres.admin().await;
    let query = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = $1";
    admin.query(query, &[&user]).await.unwrap();
}

/// A time of the pooler in slot `a`, in seconds.
async fn seconds(agent: &Agent, name: &str) -> u32 {
    let mut console = Console::new(&agent.run_dir().join("a"), agent.client_port(), Duration::from_secs(5));
    // long ones are printed like 2.592e+06
    let printed: f64 = console.config().await.unwrap()[name].parse().unwrap();
    format!("{printed:.0}").parse().unwrap()
}

/// Waits until so many clients have connected, with the password of the moment, and ask.
async fn at_work(clients: &Clients, count: u64) {
    until("the clients are at work", async || {
        (clients.tally.connections() >= count && clients.tally.queries() > 4 * count).then_some(())
    })
    .await;
}

const REFUSED: &str =
    "sluice_config_refused{pool=\"shop\",pool_namespace=\"shop\",document=\"credentials\",reason=\"NotProven\"}";

async fn settled(agent: &Agent, times: usize) {
    until("the credentials are in force in every process", async || {
        let done = agent.log().matches("credentials in force in every slot").count() >= times;
        done.then_some(())
    })
    .await;
    agent.until("nothing is left to tell", |status| status.message.is_empty()).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_password_that_changes_in_the_secret_before_the_role_takes_effect_when_it_works_and_no_query_fails() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &short_lived(), 4).await;
    let mut stay = Clients::new();
    for _ in 0..3 {
        stay.stay(&target(&agent, "secret"), None, Duration::from_millis(5));
    }
    at_work(&stay, 3).await;
    agent.write("credentials/password", "next");
    let status = agent.until("it is told", |status| status.message.contains("not in force")).await;
    assert!(status.message.contains("password authentication failed"), "{}", status.message);
    assert!(!status.message.contains("next"), "{}", status.message);
    until("the metric says so", async || agent.metric(REFUSED)).await;
    assert_eq!(status.slot, SlotStatus::Serving);
    assert_eq!(value(&agent.client().await, "select 'the old one goes on'").await, "the old one goes on");
    set_password(&postgres, "next").await;
    settled(&agent, 1).await;
    assert_eq!(agent.metric(REFUSED), None);
    // every connection is opened anew by now, and again
    let mut come = Clients::new();
    come.churn(&target(&agent, "next"), 2, 20);
    let before = agent.metric("sluice_server_opens_total{").unwrap();
    until("all were opened with the new password", async || {
        agent.metric("sluice_server_opens_total{").filter(|opens| *opens > before + 8.0)
    })
    .await;
    until("clients have come", async || (come.tally.connections() > 20).then_some(())).await;
    assert_eq!(stay.stop().await.failures(), BTreeMap::new());
    assert_eq!(come.stop().await.failures(), BTreeMap::new());
    assert_eq!(seconds(&agent, "server_lifetime").await, 2);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn while_the_role_has_changed_and_the_secret_has_not_nothing_that_is_open_is_recycled() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let (works, waits) = (agent.client().await, agent.client().await);
    works.simple_query("begin").await.unwrap();
    let pid = value(&works, "select pg_backend_pid()").await;
    cut_all_but(&postgres, &pid).await;
    set_password(&postgres, "next").await;
    let waiting = tokio::spawn(async move { value(&waits, "select 'through'").await });
    agent.until("it is told", |status| status.message.contains("refused the last login")).await;
    until("connections are kept", async || (seconds(&agent, "server_lifetime").await == 2_592_000).then_some(())).await;
    assert_eq!(seconds(&agent, "server_idle_timeout").await, 0);
    // a share that becomes smaller, within what is not used, closes nothing either
    agent.grant(2, 2, 4);
    agent.until("the grant is in force", |status| status.seq == 2).await;
    assert_eq!(value(&works, "select pg_backend_pid()").await, pid);
    agent.write("credentials/password", "next");
    assert_eq!(tokio::time::timeout(super::rig::DEADLINE, waiting).await.unwrap().unwrap(), "through");
    settled(&agent, 1).await;
    assert_eq!(value(&works, "select pg_backend_pid()").await, pid, "the old connection goes on");
    works.simple_query("commit").await.unwrap();
    until("lifetimes are as configured", async || (seconds(&agent, "server_lifetime").await == 3600).then_some(()))
        .await;
    assert_eq!(seconds(&agent, "server_idle_timeout").await, 600);
}

async fn cut_all_but(postgres: &Postgres, pid: &str) {
    let admin = postgres.admin().await;
    let query = format!(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'shop' and pid <> {pid}"
    );
    admin.simple_query(&query).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_role_that_is_mended_without_a_new_secret_is_noticed() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 2).await;
    set_password(&postgres, "another").await;
    cut(&postgres, "shop").await;
    agent.until("it is told", |status| status.message.contains("refused the last login")).await;
    set_password(&postgres, "secret").await;
    agent.until("it is over", |status| status.message.is_empty()).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_wrong_password_never_takes_effect_and_a_right_one_heals_it() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &short_lived(), 4).await;
    let mut clients = Clients::new();
    clients.churn(&target(&agent, "secret"), 2, 20);
    clients.stay(&target(&agent, "secret"), None, Duration::from_millis(10));
    let mark = || agent.status().and_then(|status| status.reference_mark);
    let mut marks: BTreeSet<String> = mark().into_iter().collect();
    for wrong in ["wrong-1", "wrong-2", "wrong-3"] {
        let before = agent.log().matches("did not work").count();
        agent.write("credentials/password", wrong);
        until("it was tried", async || {
            let tried = agent.log().matches("did not work").count() > before;
            (tried && agent.metric(REFUSED).is_some()).then_some(())
        })
        .await;
        // nor with what is reloaded for another reason
        let mut other = short_lived();
        other.parameters.insert("server_idle_timeout".to_owned(), format!("3{}", &wrong[6..]));
        let revision = wrong[6..].parse::<u64>().unwrap() + 1;
        agent.revise(revision, &other);
        let status = agent.until("another revision is in force", |status| status.revision == Some(revision)).await;
        marks.extend(status.reference_mark);
        assert!(connect(&client_config(&agent, "shop", wrong)).await.is_err(), "the pooler does not know it");
    }
    assert_eq!(marks.len(), 4, "the operator is told of each change, and of nothing else: {marks:?}");
    // nor by an agent that starts anew
    let before = agent.agent_pid().unwrap();
    kill_process(before, Signal::KILL).unwrap();
    until("another agent", async || agent.agent_pid().filter(|pid| *pid != before)).await;
    let status = agent.until("it tells it too", |status| status.message.contains("not in force")).await;
    assert!(status.reference_mark.is_some_and(|mark| marks.contains(&mark)), "it has the key of the one before");
    agent.write("credentials/password", "secret");
    agent.until("it is over", |status| status.message.is_empty()).await;
    let tally = clients.stop().await;
    assert_eq!(tally.failures(), BTreeMap::new());
    assert!(tally.connections() > 5, "{tally:?}");
    assert!(!agent.log().contains("wrong-"), "no password in the log");
    assert_eq!(agent.metric(REFUSED), None);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_rotation_reaches_the_process_that_drains_too_and_never_opens_more_than_the_share() {
    let (postgres, account) = Postgres::with_shop().await;
    let packets = |size: u32| {
        let mut settings = settings();
        settings.parameters.insert("pkt_buf".to_owned(), size.to_string());
        settings.rollout.scale_down_delay_seconds = 1;
        settings
    };
    let agent = Agent::start(&postgres, &account, &packets(4096), 3).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    agent.revise(2, &packets(8192));
    agent
        .until("blue drains", |status| {
            status.revision == Some(2) && status.other.is_some_and(|other| other.role == OtherRole::Draining)
        })
        .await;
    set_password(&postgres, "next").await;
    agent.write("credentials/password", "next");
    let admin = postgres.admin().await;
    until("the credentials are in force in every process", async || {
        let open = counted(&admin, "shop").await;
        assert!(open <= 3, "{open} open of a share of 3");
        agent.log().contains("credentials in force in every slot").then_some(())
    })
    .await;
    // what was opened with the old password is gone: both have to log in
    cut(&postgres, "shop").await;
    assert_eq!(value(&stays, "select 'blue'").await, "blue");
    let comes = connect(&client_config(&agent, "shop", "next")).await.unwrap();
    assert_eq!(value(&comes, "select 'green'").await, "green");
    let status = agent.until("nothing is left to tell", |status| status.message.is_empty()).await;
    assert_eq!(status.other.map(|other| other.role), Some(OtherRole::Draining));
}

/// Creates a role that may log in, and has the Secret name it.
pub async fn change_role(postgres: &Postgres, agent: &Agent, role: &str, words: &str) {
    let admin = postgres.admin().await;
    admin.batch_execute(&format!("CREATE ROLE {role} LOGIN {words} PASSWORD 'of {role}'")).await.unwrap();
    agent.write("credentials/username", role);
    agent.write("credentials/password", &format!("of {role}"));
}

async fn client_of(agent: &Agent, role: &str) -> Client {
    connect(&client_config(agent, role, &format!("of {role}"))).await.unwrap()
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn another_role_takes_over_without_a_failed_query_and_where_clients_are_bound_to_theirs_they_keep_it() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let admin = postgres.admin().await;
    let stays = agent.client().await;
    let mut clients = Clients::new();
    for _ in 0..3 {
        clients.stay(&target(&agent, "secret"), None, Duration::from_millis(5));
    }
    at_work(&clients, 3).await;
    change_role(&postgres, &agent, "shop_2", "").await;
    settled(&agent, 1).await;
    let comes = client_of(&agent, "shop_2").await;
    assert_eq!(value(&comes, "select current_user").await, "shop_2");
    if pooler_remembers(Remembered::Role) {
        let status = agent.status().unwrap();
        assert!(status.other.is_some_and(|other| other.role != OtherRole::Green), "{status:?}");
        assert_eq!(value(&stays, "select current_user").await, "shop");
        // no connection is opened for them any more, and those that are open serve them
        admin.batch_execute("ALTER ROLE shop NOLOGIN").await.unwrap();
        assert_eq!(value(&stays, "select current_user").await, "shop");
    } else {
        until("no connection of the old role is left", async || (counted(&admin, "shop").await == 0).then_some(()))
            .await;
        admin.batch_execute("ALTER ROLE shop NOLOGIN").await.unwrap();
        assert_eq!(value(&stays, "select current_user").await, "shop_2");
    }
    assert_eq!(value(&comes, "select current_user").await, "shop_2");
    let open = counted(&admin, "shop").await + counted(&admin, "shop_2").await;
    assert!(open <= 4, "{open} open of a share of 4");
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    drop(stays);
    until("nothing of the old role is left", async || (counted(&admin, "shop").await == 0).then_some(())).await;
    agent.until("nor of its process", |status| status.other.is_none()).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn nobody_goes_on_as_the_role_before_behind_the_name_of_a_superuser() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let admin = postgres.admin().await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select current_user").await, "shop");
    change_role(&postgres, &agent, "root", "SUPERUSER").await;
    settled(&agent, 1).await;
    let comes = client_of(&agent, "root").await;
    // who the database lets in is who works, for the old ones and the new
    let query = "select usename = current_user and session_user = current_user from pg_stat_activity where pid = pg_backend_pid()";
    for _ in 0..5 {
        assert_eq!(value(&stays, query).await, "t");
        assert_eq!(value(&comes, query).await, "t");
        assert_eq!(value(&comes, "select current_user").await, "root");
    }
    let expected = if pooler_remembers(Remembered::Role) { "shop" } else { "root" };
    assert_eq!(value(&stays, "select current_user").await, expected);
    drop(stays);
    until("nothing of the old role is left", async || (counted(&admin, "shop").await == 0).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_both_processes_share_a_listener_another_role_cuts_no_client_either() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::new(postgres.port, &account).with_shared_listener().started(&settings(), 4).await;
    let admin = postgres.admin().await;
    let mut clients = Clients::new();
    for _ in 0..3 {
        clients.stay(&target(&agent, "secret"), None, Duration::from_millis(5));
    }
    at_work(&clients, 3).await;
    change_role(&postgres, &agent, "shop_2", "").await;
    until("it is in force", async || {
        let open = counted(&admin, "shop").await + counted(&admin, "shop_2").await;
        assert!(open <= 4, "{open} open of a share of 4");
        agent.log().contains("credentials in force in every slot").then_some(())
    })
    .await;
    let comes = client_of(&agent, "shop_2").await;
    assert_eq!(value(&comes, "select current_user").await, "shop_2");
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    until("nothing of the old role is left", async || (counted(&admin, "shop").await == 0).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_no_second_process_can_be_started_another_role_waits_for_the_restart_and_cuts_nobody() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut sessions = settings();
    sessions.session_alias = Some(SessionAlias { database: "shop_session".to_owned(), connections: 1 });
    let mut agent = Agent::new(postgres.port, &account).with_shared_listener().started(&sessions, 4).await;
    assert_eq!(agent.status().unwrap().switching, Some(Switching::Unsupported));
    let mut clients = Clients::new();
    clients.stay(&target(&agent, "secret"), None, Duration::from_millis(5));
    at_work(&clients, 1).await;
    change_role(&postgres, &agent, "shop_2", "").await;
    if pooler_remembers(Remembered::Role) {
        let status = agent.until("it is told", |status| status.message.contains("RestartRequired")).await;
        assert!(status.message.contains("credentials/username"), "{}", status.message);
        // what needs no other user goes on, and comes into force
        sessions.parameters.insert("server_idle_timeout".to_owned(), "44".to_owned());
        agent.revise(2, &sessions);
        agent.until("another revision is in force", |status| status.revision == Some(2)).await;
        agent.grant(2, 3, 4);
        agent.until("a smaller share is", |status| status.seq == 2).await;
        assert_eq!(value(&agent.client().await, "select current_user").await, "shop");
        assert_eq!(clients.stop().await.failures(), BTreeMap::new());
        agent.stop();
        agent.run();
    } else {
        settled(&agent, 1).await;
        assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    }
    agent.until("nothing is left to tell", |status| status.seq > 0 && status.message.is_empty()).await;
    assert_eq!(value(&client_of(&agent, "shop_2").await, "select current_user").await, "shop_2");
}

/// Settings with which every version binds clients to their role.
fn bound() -> Settings {
    let mut settings = settings();
    settings.parameters.insert("track_extra_parameters".to_owned(), "IntervalStyle,session_authorization".to_owned());
    settings
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn clients_of_a_role_that_is_revoked_go_on_with_what_is_open_and_are_closed_while_idle_when_nothing_is_left() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &bound(), 4).await;
    let (works, idle) = (agent.client().await, agent.client().await);
    assert_eq!(value(&idle, "select 1").await, "1");
    works.simple_query("begin").await.unwrap();
    let pid = value(&works, "select pg_backend_pid()").await;
    change_role(&postgres, &agent, "shop_2", "").await;
    settled(&agent, 1).await;
    let mut clients = Clients::new();
    let of_new = Target { login: client_config(&agent, "shop_2", "of shop_2"), ..target(&agent, "") };
    clients.churn(&of_new, 2, 20);
    clients.stay(&of_new, None, Duration::from_millis(5));
    at_work(&clients, 1).await;

    postgres.admin().await.batch_execute("ALTER ROLE shop NOLOGIN").await.unwrap();
    cut_all_but(&postgres, &pid).await;
    assert_eq!(value(&works, "select current_user").await, "shop");
    // another one is tried for the client that waits
    let waits = tokio::spawn(async move { (value(&idle, "select current_user").await, idle) });
    agent.until("it is told", |status| status.message.contains("refuses the user before")).await;
    works.simple_query("commit").await.unwrap();
    let (user, idle) = waits.await.unwrap();
    assert_eq!(user, "shop", "the one that is open serves them all");
    // what could not be opened again is not renewed
    let at = "2026-11-28T12:00:00Z";
    agent.revise(2, &Settings { reconnected_at: Some(at.to_owned()), ..bound() });
    let renewed = |status: &StatusReport| status.reconnected.as_ref().is_some_and(|it| it.at == at);
    agent.until("the other one's are renewed", renewed).await;
    for client in [&idle, &works, &idle] {
        assert_eq!(value(client, "select pg_backend_pid()").await, pid);
    }
    cut(&postgres, "shop").await;
    assert!(works.simple_query("select 1").await.is_err());
    agent.until("it is told", |status| status.message.contains("refuses the user before")).await;
    until("the other one need not ask", async || idle.is_closed().then_some(())).await;
    agent.until("it is over", |status| status.other.is_none() && status.message.is_empty()).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    assert!(!agent.log().contains("with the credentials in force: server"), "those work");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_login_of_the_role_before_does_not_pass_for_one_of_the_role_in_force_that_is_refused() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &bound(), 4).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select current_user").await, "shop");
    change_role(&postgres, &agent, "shop_2", "").await;
    settled(&agent, 1).await;
    let works = client_of(&agent, "shop_2").await;
    works.simple_query("begin").await.unwrap();
    let pid = value(&works, "select pg_backend_pid()").await;

    let admin = postgres.admin().await;
    admin.batch_execute("ALTER ROLE shop_2 NOLOGIN").await.unwrap();
    let others = format!(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename in ('shop', 'shop_2') and pid <> {pid}"
    );
    admin.simple_query(&others).await.unwrap();
    let waits = client_of(&agent, "shop_2").await;
    let waits = tokio::spawn(async move { waits.simple_query("select 1").await.is_ok() });
    let told = |status: &StatusReport| status.message.contains("with the credentials in force: server");
    agent.until("the refusal is told", told).await;
    assert_eq!(value(&stays, "select current_user").await, "shop", "over a connection that was opened for it");
    let read_at = || agent.metric("sluice_sample_timestamp_seconds{").unwrap_or_default();
    let opened_by = read_at();
    // shown in one of the next readings; a refusal that follows would be told again
    until("readings go on", async || {
        assert!(told(&agent.status().unwrap()), "for the role in force nothing has changed");
        (read_at() > opened_by + 2.5).then_some(())
    })
    .await;
    assert!(!agent.log().contains("refuses the user before"), "that one is let in");
    admin.batch_execute("ALTER ROLE shop_2 LOGIN").await.unwrap();
    agent.until("it is over", |status| status.message.is_empty()).await;
    works.simple_query("commit").await.unwrap();
    assert_eq!(value(&works, "select current_user").await, "shop_2");
    waits.abort();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn whichever_process_dies_on_the_way_to_another_role_clients_are_served_as_that_role() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut settings = bound();
    settings.rollout.scale_down_delay_seconds = 1;
    let agent = Agent::start(&postgres, &account, &settings, 4).await;
    let starts = || agent.log().matches("a new process for credentials/username").count();
    for (role, older) in [("shop_2", true), ("shop_3", false)] {
        let before = starts();
        change_role(&postgres, &agent, role, "").await;
        until("a second process starts", async || (starts() > before).then_some(())).await;
        let pids = agent.pooler_pids();
        let dies = if older { pids.first() } else { pids.last() };
        kill_process(*dies.expect("one runs"), Signal::KILL).unwrap();
        until("new clients are served", async || {
            let client = connect(&client_config(&agent, role, &format!("of {role}"))).await.ok()?;
            (value(&client, "select current_user").await == role).then_some(())
        })
        .await;
        agent.until("nothing is left of it", |status| status.other.is_none() && status.message.is_empty()).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_container_that_restarts_while_clients_keep_the_role_before_begins_with_the_one_in_force() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    change_role(&postgres, &agent, "shop_2", "").await;
    settled(&agent, 1).await;
    // a RELOAD of every process: the files of the one before are the newest
    let mut other = settings();
    other.parameters.insert("server_idle_timeout".to_owned(), "44".to_owned());
    agent.revise(2, &other);
    agent.until("it is in force", |status| status.revision == Some(2) && status.message.is_empty()).await;
    // an agent that starts anew leaves each process its own
    let before = agent.agent_pid().unwrap();
    kill_process(before, Signal::KILL).unwrap();
    until("another agent", async || agent.agent_pid().filter(|pid| *pid != before)).await;
    settled(&agent, 2).await;
    let expected = if pooler_remembers(Remembered::Role) { "shop" } else { "shop_2" };
    assert_eq!(value(&stays, "select current_user").await, expected);
    // what the Secret says by then does not count before it works
    agent.write("credentials/username", "nobody");
    agent.crash().await;
    postgres.admin().await.batch_execute("ALTER ROLE shop NOLOGIN").await.unwrap();
    agent.run();
    agent.until("it serves", |status| status.slot == SlotStatus::Serving && status.seq == 1).await;
    let comes = client_of(&agent, "shop_2").await;
    assert_eq!(value(&comes, "select current_user").await, "shop_2");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_secret_that_loses_a_key_changes_nothing_and_is_told() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 2).await;
    for (file, content) in [("credentials/password", "secret"), ("credentials/username", "shop")] {
        agent.remove(file);
        let status = agent.until("it is told", |status| status.message.contains(file)).await;
        assert!(status.message.contains("the credentials in force stay"), "{}", status.message);
        assert_eq!(value(&agent.client().await, "select 1").await, "1");
        agent.write(file, content);
        agent.until("it is over", |status| status.message.is_empty()).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_container_that_restarts_with_a_wrong_secret_begins_with_the_password_that_worked() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::start(&postgres, &account, &settings(), 2).await;
    agent.stop();
    agent.write("credentials/password", "wrong");
    agent.run();
    agent.until("it is told", |status| status.message.contains("not in force")).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    let kept = std::fs::read_to_string(agent.state_file()).unwrap();
    assert!(!kept.contains("secret") && !kept.contains("wrong"), "no password on the disk");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn with_a_share_of_one_the_proof_takes_the_only_connection_for_a_moment() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 1).await;
    let mut clients = Clients::new();
    clients.stay(&target(&agent, "secret"), None, Duration::from_millis(5));
    at_work(&clients, 1).await;
    let admin = postgres.admin().await;
    for (n, password) in [(1, "next"), (2, "last")] {
        set_password(&postgres, password).await;
        agent.write("credentials/password", password);
        until("it is in force", async || {
            let open = counted(&admin, "shop").await;
            assert!(open <= 1, "{open} open of a share of 1");
            (agent.log().matches("credentials in force in every slot").count() >= n).then_some(())
        })
        .await;
        let comes = connect(&client_config(&agent, "shop", password)).await.unwrap();
        assert_eq!(value(&comes, "select 1").await, "1");
    }
    agent.until("nothing is left to tell", |status| status.message.is_empty()).await;
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
}
