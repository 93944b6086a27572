//! A database that takes no writes any more, or a name that leads elsewhere: the one that does is found, and no client is cut
//! for it.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use sluice::{
    contract::{Settings, StatusReport, UpstreamRole, UpstreamState},
    pooler::pgbouncer::{changes::Remembered, console::Console},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_postgres::{Client, Config, error::SqlState};

use super::{
    counted,
    names::{NameServer, Reply},
    rig::{Account, Agent, Postgres, connect, free_port, pooler_remembers, reacting, settings, until},
    switch::{packets, switched},
    value,
};

pub const RENEWALS: &str = "sluice_upstream_renewals_total{";
const RECALLED: &str = "sluice_clients_recalled_total{";
const READ_ONLY: &str = "sluice_upstream_read_only{";

/// Asked every second.
pub fn asked(mut settings: Settings) -> Settings {
    settings.health.period_seconds = 1;
    settings
}

fn is_silent(status: &StatusReport) -> bool {
    status.upstream.as_ref().and_then(|upstream| upstream.silent).expect("it is told")
}

pub fn state(status: &StatusReport) -> Option<UpstreamState> {
    status.upstream.as_ref().map(|upstream| upstream.state)
}

/// What a Service is to its clients: new connections are led to where it points, those that are open stay.
struct Service {
    port: u16,
    backend: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

impl Service {
    async fn of(postgres: &Postgres) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, backend) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU16::new(postgres.port)));
        let to = backend.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let to = to.load(Ordering::Relaxed);
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { port, backend, task }
    }

    fn lead_to(&self, postgres: &Postgres) {
        self.backend.store(postgres.port, Ordering::Relaxed);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A table, a primary that has it and a standby.
async fn pair(account: &Account, address: Ipv4Addr, port: impl Fn(&Postgres) -> u16) -> (Postgres, Postgres) {
    let primary = Postgres::start().await;
    primary.create(account).await;
    let login = |postgres: &Postgres| {
        let mut config = Config::new();
        config.host(postgres.address.to_string()).port(postgres.port).user(&account.user);
        config.password(&account.password).dbname(&account.database).to_owned()
    };
    let owner = connect(&login(&primary)).await.unwrap();
    owner.batch_execute("create table orders (id bigint generated always as identity)").await.unwrap();
    let standby = primary.standby(address, port(&primary)).await;
    until("the standby has the table", async || {
        connect(&login(&standby)).await.ok()?.simple_query("select from orders").await.ok()
    })
    .await;
    (primary, standby)
}

/// The standby has a port of its own.
async fn pair_behind_a_service(account: &Account) -> (Postgres, Postgres) {
    pair(account, Ipv4Addr::LOCALHOST, |_| free_port()).await
}

/// It refuses writes, and every connection goes on.
pub async fn fence(postgres: &Postgres) {
    let admin = postgres.admin().await;
    admin.batch_execute("alter system set default_transaction_read_only = on").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
}

/// Clients that write, each over the one connection that it has, until they are stopped.
struct Writers {
    stop: Arc<AtomicBool>,
    met: Arc<Mutex<Met>>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Clone, Debug, Default)]
struct Met {
    written: u64,
    /// Refused by the database with 25006.
    read_only: u64,
    /// Closed while idle, by a pooler that remembers what the database was. They connect anew.
    recalled: u64,
    others: Vec<String>,
}

/// Whether a connection was closed while nothing ran on it.
fn is_recalled(client: &Client, error: &tokio_postgres::Error) -> bool {
    let told = error.as_db_error().is_some_and(|error| error.message().contains("admin forced disconnect"));
    pooler_remembers(Remembered::ReadOnly) && (told || error.is_closed() || client.is_closed())
}

impl Writers {
    async fn of(agent: &Agent, count: usize) -> Self {
        let mut writers = Self { stop: Arc::default(), met: Arc::default(), tasks: Vec::new() };
        for _ in 0..count {
            writers.add(agent).await;
        }
        writers.have_written(10).await;
        writers
    }

    async fn add(&mut self, agent: &Agent) {
        let (config, mut client) = (agent.client_config(), agent.client().await);
        let (stop, met) = (self.stop.clone(), self.met.clone());
        self.tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match client.simple_query("insert into orders default values").await {
                    Ok(_) => met.lock().unwrap().written += 1,
                    Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                        met.lock().unwrap().read_only += 1;
                    }
                    Err(error) if is_recalled(&client, &error) => {
                        met.lock().unwrap().recalled += 1;
                        client = connect(&config).await.unwrap();
                    }
                    Err(error) => {
                        met.lock().unwrap().others.push(error.to_string());
                        break;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }

    fn met(&self) -> Met {
        self.met.lock().unwrap().clone()
    }

    /// Waits for so many more.
    async fn have_written(&self, more: u64) {
        let before = self.met().written;
        until("they write", async || (self.met().written >= before + more).then_some(())).await;
    }

    /// Waits until all of them write, and none is refused any more.
    async fn all_write(&self) {
        until("none is refused any more", async || {
            let before = self.met();
            self.have_written(50).await;
            (self.met().read_only == before.read_only).then_some(())
        })
        .await;
    }

    /// Waits until all of them are refused, and nothing is written any more.
    async fn all_are_refused(&self) {
        until("nothing is written any more", async || {
            let before = self.met();
            until("they are refused", async || (self.met().read_only >= before.read_only + 50).then_some(())).await;
            (self.met().written == before.written).then_some(())
        })
        .await;
    }

    async fn stop(self) -> Met {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        Arc::into_inner(self.met).unwrap().into_inner().unwrap()
    }
}

/// A running agent whose database is behind a Service.
async fn behind(service: &Service, account: &Account, settings: &Settings, share: u32) -> Agent {
    let mut agent = Agent::new(service.port, account);
    agent.revise(1, settings);
    agent.grant(1, share, share);
    agent.run();
    agent.until("the database is known", |status| state(status) == Some(UpstreamState::Primary)).await;
    agent
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn connections_to_a_demoted_primary_are_renewed_where_the_service_leads_now_and_no_client_is_cut() {
    let account = Account::shop();
    let (primary, standby) = pair_behind_a_service(&account).await;
    let service = Service::of(&primary).await;
    let agent = behind(&service, &account, &asked(settings()), 4).await;
    assert_eq!((agent.metric(READ_ONLY), agent.metric(RENEWALS)), (Some(0.0), Some(0.0)));
    let writers = Writers::of(&agent, 6).await;
    let old = primary.admin().await;
    assert!(counted(&old, "shop").await > 0);

    fence(&primary).await;
    standby.promote().await;
    service.lead_to(&standby);
    let new = standby.admin().await;
    agent
        .until("it is told", |status| {
            state(status) == Some(UpstreamState::ReadOnly)
                && status.upstream.as_ref().is_some_and(|it| it.message.contains("default_transaction_read_only"))
        })
        .await;
    until("the new primary is found", async || {
        let open = counted(&new, "shop").await;
        assert!(open <= 4, "{open} open of a share of 4");
        agent.status().filter(|status| state(status) == Some(UpstreamState::Primary))
    })
    .await;
    writers.all_write().await;
    until("nobody is left on the old one", async || (counted(&old, "shop").await == 0).then_some(())).await;
    let met = writers.stop().await;
    assert!(met.read_only > 0 && met.others.is_empty() && met.recalled <= 12, "{met:?}");
    let renewals = agent.metric(RENEWALS).unwrap();
    assert!((1.0..=2.0).contains(&renewals), "{renewals} renewals");
    assert_eq!(agent.metric(READ_ONLY), Some(0.0));
    assert_eq!(agent.metric("sluice_clients_cut_total{"), Some(0.0));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_process_that_drains_leaves_a_demoted_primary_too() {
    let account = Account::shop();
    let (primary, standby) = pair_behind_a_service(&account).await;
    let service = Service::of(&primary).await;
    let agent = behind(&service, &account, &asked(packets(4096)), 4).await;
    let mut writers = Writers::of(&agent, 1).await;
    agent.revise(2, &asked(packets(8192)));
    let drains = |status: &StatusReport| status.revision == Some(2) && status.other.is_some();
    agent.until("new clients go elsewhere", drains).await;
    writers.add(&agent).await;
    writers.have_written(10).await;

    fence(&primary).await;
    standby.promote().await;
    service.lead_to(&standby);
    let old = primary.admin().await;
    until("nobody is left on the old one", async || (counted(&old, "shop").await == 0).then_some(())).await;
    writers.all_write().await;
    let refused = writers.met().read_only;
    writers.have_written(100).await;
    let met = writers.stop().await;
    assert!(met.others.is_empty() && met.read_only == refused && met.recalled <= 4, "{met:?} after {refused}");
    switched(&agent, 2).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_fence_holds_for_all_clients_and_after_it_all_write_whenever_they_came() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asked(settings()), 3).await;
    agent.until("the database is known", |status| state(status) == Some(UpstreamState::Primary)).await;
    let idle = agent.client().await;
    idle.batch_execute("create table orders (id bigint generated always as identity)").await.unwrap();
    let works = agent.client().await;
    let mut writers = Writers::of(&agent, 5).await;

    // one that is at work while others are told to connect anew
    works.batch_execute("begin; insert into orders default values").await.unwrap();
    fence(&postgres).await;
    agent.until("it is told", |status| state(status) == Some(UpstreamState::ReadOnly)).await;
    writers.all_are_refused().await;
    works.batch_execute("insert into orders default values; commit").await.unwrap();
    // those who come meanwhile meet it too
    writers.add(&agent).await;
    writers.all_are_refused().await;
    let first = writers.met();

    let admin = postgres.admin().await;
    admin.batch_execute("alter system reset default_transaction_read_only").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    agent.until("it is over", |status| state(status) == Some(UpstreamState::Primary)).await;
    writers.all_write().await;
    let late = agent.client().await;
    late.batch_execute("insert into orders default values").await.unwrap();
    let met = writers.stop().await;
    assert_eq!(met.others, Vec::<String>::new());
    if pooler_remembers(Remembered::ReadOnly) {
        assert!(first.recalled <= 5 && met.recalled <= 11, "{first:?}, then {met:?}");
        until("all have connected anew", async || agent.metric(RECALLED).filter(|closed| *closed >= 13.0)).await;
        assert!(idle.is_closed() && works.is_closed(), "they were told");
    } else {
        assert_eq!((met.recalled, agent.metric(RECALLED)), (0, Some(0.0)));
        assert!(!idle.is_closed() && !works.is_closed());
    }
    late.batch_execute("insert into orders default values").await.unwrap();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn while_no_server_takes_writes_nothing_changes_but_a_smaller_share_and_connections_are_renewed_ever_more_seldom()
{
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asked(settings()), 6).await;
    agent.until("the database is known", |status| state(status) == Some(UpstreamState::Primary)).await;
    let stays = agent.client().await;
    assert_eq!(value(&stays, "select 1").await, "1");
    postgres.demote().await;
    let status = agent.until("it is told", |status| state(status) == Some(UpstreamState::ReadOnly)).await;
    assert!(status.upstream.unwrap().message.contains("in recovery"));
    assert_eq!(value(&stays, "select 'reads go on'").await, "reads go on");

    let mut other = asked(settings());
    other.parameters.insert("server_idle_timeout".to_owned(), "44".to_owned());
    agent.revise(2, &other);
    let status = agent.until("it waits", |status| status.message.contains("UpstreamReadOnly")).await;
    assert_eq!((status.revision, status.wanted_revision), (Some(1), Some(2)));
    let mut process = other.clone();
    process.parameters.insert("pkt_buf".to_owned(), "8192".to_owned());
    agent.revise(3, &process);
    agent.until("the next one waits too", |status| status.message.contains("revision 3")).await;
    agent.grant(2, 9, 9);
    let status = agent.until("the right to more is there", |status| status.seq == 2).await;
    assert_eq!(status.limits.unwrap().pool_size, 6, "and is not used");
    agent.grant(3, 4, 9);
    let status = agent.until("a smaller share counts", |status| status.seq == 3).await;
    assert_eq!(status.limits.unwrap().pool_size, 4);

    let mut at = Vec::new();
    for renewals in 1..=4 {
        until("it is tried again", async || agent.metric(RENEWALS).filter(|counted| *counted >= f64::from(renewals)))
            .await;
        at.push(Instant::now());
    }
    assert!(at[3] - at[2] > Duration::from_secs(5), "{at:?}");
    let status = agent.status().unwrap();
    assert_eq!((status.revision, status.other), (Some(1), None), "no other process was started");

    postgres.promote().await;
    agent.until("it is over", |status| state(status) == Some(UpstreamState::Primary)).await;
    agent.until("what waited is in force", |status| status.revision == Some(3) && status.message.is_empty()).await;
    agent.grant(4, 7, 7);
    agent.until("it grows again", |status| status.limits.is_some_and(|limits| limits.pool_size == 7)).await;
    assert_eq!(value(&stays, "select 'never cut'").await, "never cut");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_agent_decides_on_no_load_while_no_server_takes_writes() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asked(reacting()), 20).await;
    agent.until("an idle pod shrinks to few", |status| status.limits.is_some_and(|limits| limits.pool_size <= 2)).await;
    postgres.demote().await;
    let status = agent.until("it is told", |status| state(status) == Some(UpstreamState::ReadOnly)).await;
    let few = status.limits.unwrap().pool_size;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let config = agent.client_config();
        readers.spawn(async move {
            let client = connect(&config).await.unwrap();
            loop {
                client.simple_query("select pg_sleep(0.05)").await.unwrap();
            }
        });
    }
    until("it holds", async || agent.log().contains("\"reason\":\"UpstreamReadOnly\"").then_some(())).await;
    agent.until("clients wait", |status| status.held.is_some_and(|held| held.waiting > 4)).await;
    until("it has seen it for a while", async || {
        let held = agent.log().matches("\"reason\":\"UpstreamReadOnly\"").count();
        assert_eq!(agent.status()?.limits.map_or(few, |limits| limits.pool_size), few);
        (held > 5).then_some(())
    })
    .await;
    postgres.promote().await;
    agent.until("it grows", |status| status.limits.is_some_and(|limits| limits.pool_size >= 8)).await;
    readers.abort_all();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn role_any_asks_nothing_and_frees_a_pool_that_waits_for_a_primary() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asked(settings()), 4).await;
    postgres.demote().await;
    agent.until("it is told", |status| state(status) == Some(UpstreamState::ReadOnly)).await;
    let mut any = asked(settings());
    any.role = UpstreamRole::Any;
    agent.revise(2, &any);
    let status = agent.until("it is in force", |status| status.revision == Some(2) && status.upstream.is_none()).await;
    assert_eq!(status.message, "");
    assert_eq!(agent.metric(READ_ONLY), None);
    assert_eq!(value(&agent.client().await, "select pg_is_in_recovery()").await, "t");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_that_does_not_answer_is_not_taken_for_a_standby() {
    let (mut postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asked(settings()), 4).await;
    agent.until("the database is known", |status| state(status) == Some(UpstreamState::Primary)).await;
    postgres.stop();
    agent
        .until("it is told", |status| {
            let told = status.upstream.as_ref().is_some_and(|upstream| upstream.message.contains("not known"));
            state(status) == Some(UpstreamState::Unknown) && told && is_silent(status)
        })
        .await;
    assert_eq!((agent.metric(READ_ONLY), agent.metric(RENEWALS)), (None, Some(0.0)));
    let mut other = asked(settings());
    other.parameters.insert("server_idle_timeout".to_owned(), "44".to_owned());
    agent.revise(2, &other);
    agent.until("nothing is held back", |status| status.revision == Some(2)).await;
    postgres.resume().await;
    agent.until("it is known again", |status| state(status) == Some(UpstreamState::Primary)).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn what_a_client_left_behind_in_its_session_is_no_failover() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asked(settings()), 1).await;
    let client = agent.client().await;
    client.simple_query("set session characteristics as transaction read only").await.unwrap();
    let query =
        "select query_start::text from pg_stat_activity where query like '%pg_is_in_recovery%' and usename = 'shop'";
    let admin = postgres.admin().await;
    let mut checks = std::collections::BTreeSet::new();
    until("it was asked a few times", async || {
        let rows = admin.query(query, &[]).await.unwrap();
        checks.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        assert_ne!(state(&agent.status()?), Some(UpstreamState::ReadOnly));
        (checks.len() > 3).then_some(())
    })
    .await;
    assert_eq!(agent.metric(RENEWALS), Some(0.0));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn checks_take_no_more_than_the_share_and_count_as_nobodys_load() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &asked(settings()), 1).await;
    let admin = postgres.admin().await;
    let query =
        "select query_start::text from pg_stat_activity where query like '%pg_is_in_recovery%' and usename = 'shop'";
    let mut checks = std::collections::BTreeSet::new();
    until("it was asked a few times", async || {
        let open = counted(&admin, "shop").await;
        assert!(open <= 1, "{open} open of a share of 1");
        checks.extend(admin.query(query, &[]).await.unwrap().iter().map(|row| row.get::<_, String>(0)));
        (checks.len() > 5).then_some(())
    })
    .await;
    assert_eq!(agent.metric("sluice_transactions_total{"), Some(0.0));
    assert_eq!(agent.metric("sluice_server_assignments_total{"), Some(0.0));
    // the only connection is taken: a check would wait alone, and look like a client that waits
    let client = agent.client().await;
    client.simple_query("begin").await.unwrap();
    client.simple_query("select 1").await.unwrap();
    // a check that was under way made this client wait for a moment, which may have been seen
    let waiting = |status: &StatusReport| status.held.map_or(0, |held| held.waiting);
    agent.until("nobody waits", |status| waiting(status) == 0).await;
    agent
        .until("what was known is old", |status| {
            assert_eq!(waiting(status), 0, "nobody waits");
            assert!(!is_silent(status), "it was not asked");
            state(status) == Some(UpstreamState::Unknown)
        })
        .await;
    client.simple_query("commit").await.unwrap();
    agent.until("it is known again", |status| state(status) == Some(UpstreamState::Primary)).await;
}

/// Another address of loopback, where another server has the same port.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// An agent whose database has a name, and a share of 4.
async fn by_name(names: &NameServer, port: u16, account: &Account, settings: &Settings) -> Agent {
    let mut agent = Agent::new(port, account)
        .with(|injection| "db.sluice.test".clone_into(&mut injection.upstream.host))
        .with_resolver(&names.configuration());
    agent.revise(1, settings);
    agent.grant(1, 4, 4);
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    agent
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_name_that_leads_to_another_server_is_followed_when_the_first_is_demoted_and_no_client_is_cut() {
    let account = Account::shop();
    let (primary, standby) = pair(&account, ELSEWHERE, |primary| primary.port).await;
    let names = NameServer::start(Reply::Address(primary.address)).await;
    let agent = by_name(&names, primary.port, &account, &asked(settings())).await;
    agent.until("the database is known", |status| state(status) == Some(UpstreamState::Primary)).await;
    let writers = Writers::of(&agent, 6).await;
    let old = primary.admin().await;
    assert!(counted(&old, "shop").await > 0);
    fence(&primary).await;
    standby.promote().await;
    names.says(Reply::Address(standby.address));
    let moved = Instant::now();
    let new = standby.admin().await;
    until("the new primary is found", async || {
        let open = counted(&new, "shop").await;
        assert!(open <= 4, "{open} open of a share of 4");
        let is_primary = state(&agent.status()?) == Some(UpstreamState::Primary);
        (is_primary && open > 0 && counted(&old, "shop").await == 0).then_some(())
    })
    .await;
    let took = moved.elapsed();
    writers.all_write().await;
    let met = writers.stop().await;
    assert!(met.read_only > 0 && met.others.is_empty(), "{met:?}");
    println!("followed within {took:?}, {:?} renewals, {} questions", agent.metric(RENEWALS), names.questions());
}

/// Has the pooler in slot `a` open its server connections anew, as transactions end, unless one is being opened.
async fn renew(agent: &Agent) {
    let mut console = Console::new(&agent.run_dir().join("a"), agent.client_port(), Duration::from_secs(5));
    // one that logs in would be taken for one that failed
    let (pools, sessions) = console.pools("shop").await.unwrap();
    if pools.login + sessions.login == 0 {
        console.reconnect().await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn new_connections_follow_a_name_although_the_answer_said_that_it_holds_for_an_hour() {
    let account = Account::shop();
    let (primary, standby) = pair(&account, ELSEWHERE, |primary| primary.port).await;
    let names = NameServer::start(Reply::Address(primary.address)).await;
    let mut any = settings();
    any.role = UpstreamRole::Any;
    let agent = by_name(&names, primary.port, &account, &any).await;
    let client = agent.client().await;
    assert_eq!(value(&client, "select host(inet_server_addr())").await, primary.address.to_string());
    names.says(Reply::Address(standby.address));
    let moved = Instant::now();
    until("a new connection is opened there", async || {
        renew(&agent).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let there = value(&client, "select host(inet_server_addr())").await;
        (there == standby.address.to_string()).then_some(())
    })
    .await;
    // dns_max_ttl is 5 s
    assert!(moved.elapsed() < Duration::from_secs(15), "{:?}", moved.elapsed());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn while_name_servers_fail_or_say_nothing_connections_are_opened_to_where_the_name_led_last() {
    const FAILED: &str =
        "sluice_pooler_errors_total{pool=\"shop\",pool_namespace=\"shop\",reason=\"NameServerFailed\"}";
    let (postgres, account) = Postgres::with_shop().await;
    let admin = postgres.admin().await;
    let names = NameServer::start(Reply::Address(postgres.address)).await;
    let agent = by_name(&names, postgres.port, &account, &asked(settings())).await;
    agent.until("the database is known", |status| state(status) == Some(UpstreamState::Primary)).await;
    let client = agent.client().await;
    for (times, reply) in [(1, Reply::ServerFailure), (2, Reply::Silence)] {
        names.says(reply);
        let before = agent.metric(FAILED).unwrap_or(0.0);
        let mut backends = std::collections::BTreeSet::new();
        until("names were looked up, in vain", async || {
            renew(&agent).await;
            backends.insert(value(&client, "select pg_backend_pid()").await);
            tokio::time::sleep(Duration::from_millis(200)).await;
            agent.metric(FAILED).filter(|failed| *failed >= before + 2.0)
        })
        .await;
        assert!(backends.len() > 5, "{reply:?}: {} connections", backends.len());
        assert!(counted(&admin, "shop").await <= 4);
        names.says(Reply::Address(postgres.address));
        until("they answer again", async || {
            renew(&agent).await;
            let asked = names.questions();
            tokio::time::sleep(Duration::from_millis(200)).await;
            value(&client, &format!("select {times}")).await;
            (names.questions() > asked).then_some(())
        })
        .await;
    }
    // of a name that nobody has ever answered for, nothing is made up
    let nobody = NameServer::start(Reply::ServerFailure).await;
    let unknown = by_name(&nobody, postgres.port, &account, &asked(settings())).await;
    unknown
        .until("it is told", |status| {
            state(status) == Some(UpstreamState::Unknown)
                && status.upstream.as_ref().is_some_and(|upstream| upstream.message.contains("not answered"))
        })
        .await;
    nobody.says(Reply::Address(postgres.address));
    unknown.until("it is found", |status| state(status) == Some(UpstreamState::Primary)).await;
}
