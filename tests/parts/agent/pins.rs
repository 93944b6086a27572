//! Server connections that PgBouncer leaves with a client after a COPY: told as what they are, and freed for those who wait.

use sluice::{
    contract::{LeakKinds, OtherRole, PoolMode, SessionAlias, Settings, StatusReport, UpstreamState},
    pooler::pgbouncer::{changes::Remembered, console::Console},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional, duplex},
    net::TcpStream,
};
use tokio_postgres::NoTls;

use super::{
    failover::{asked, state},
    rig::{Account, Agent, Postgres, connect, pooler_remembers, settings, until},
    rotation::change_role,
    sessions::{ALIAS, session},
    value,
};

/// A client that writes and reads messages of the protocol by itself, as drivers do that do not wait for answers.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], length.to_be_bytes().as_slice(), body].concat()
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &[text.as_bytes(), b"\0"].concat())
}

impl Raw {
    async fn of(agent: &Agent) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.client_port())).await.unwrap();
        let (ours, mut theirs) = duplex(64 * 1024);
        let login = agent.client_config();
        tokio::select! {
            logged_in = login.connect_raw(ours, NoTls) => drop(logged_in.unwrap()),
            ended = copy_bidirectional(&mut theirs, &mut stream) => panic!("it ended: {ended:?}"),
        }
        Self { stream, read: Vec::new() }
    }

    fn address(&self) -> String {
        self.stream.local_addr().unwrap().to_string()
    }

    async fn send(&mut self, messages: &[Vec<u8>]) {
        self.stream.write_all(&messages.concat()).await.unwrap();
    }

    /// The next message; None at the end.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if self.read.len() >= 5 {
                let end = 1 + usize::try_from(u32::from_be_bytes(self.read[1..5].try_into().unwrap())).unwrap();
                if self.read.len() >= end {
                    let rest = self.read.split_off(end);
                    let whole = std::mem::replace(&mut self.read, rest);
                    return Some((whole[0], whole[5..].to_vec()));
                }
            }
            if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Until the server is ready; the kinds of what it said.
    async fn until_ready(&mut self) -> String {
        let mut kinds = String::new();
        while let Some((kind, _)) = self.next().await {
            kinds.push(kind.into());
            if kind == b'Z' {
                return kinds;
            }
        }
        panic!("the connection ended after {kinds}");
    }

    /// What it does before its server connection stays with it: on PgBouncer up to 1.25 the first, from 1.26 on the second.
    async fn pin(&mut self) {
        let copy = query("copy items from stdin");
        let (bad, good, done) = (message(b'd', b"bad\n"), message(b'd', b"1\n"), message(b'c', b""));
        self.send(&[copy.clone(), bad]).await;
        assert!(self.until_ready().await.ends_with("EZ"), "it fails");
        self.send(&[good.clone(), done.clone(), query("select 1")]).await;
        self.until_ready().await;
        self.send(&[copy, good, done]).await;
        assert_eq!(self.until_ready().await.replace(['S', 'N'], ""), "GCZ");
    }
}

async fn with_items(share: u32, settings: &Settings) -> (Postgres, Account, Agent) {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, settings, share).await;
    agent.client().await.batch_execute("create table items (id int)").await.unwrap();
    (postgres, account, agent)
}

fn leaks(status: &StatusReport) -> LeakKinds {
    status.leaks.clone().unwrap_or_default()
}

/// Clients are told to go after 12 s of waiting, so that a third of it is soon over.
fn impatient() -> Settings {
    let mut settings = settings();
    settings.health.query_wait_timeout_seconds = 12;
    settings
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_every_connection_is_pinned_or_in_a_transaction_those_who_wait_are_served_and_no_transaction_is_cut() {
    let (_postgres, _account, agent) = with_items(3, &asked(impatient())).await;
    agent.until("the database is asked", |status| state(status) == Some(UpstreamState::Primary)).await;
    let (mut first, mut second, holding) = (Raw::of(&agent).await, Raw::of(&agent).await, agent.client().await);
    holding.batch_execute("begin; insert into items values (9)").await.unwrap();
    first.pin().await;
    second.pin().await;
    let status = agent.until("all are held", |status| status.held.is_some_and(|held| held.active == 3)).await;
    assert_eq!(status.held.unwrap().waiting, 0, "our own questions are no load");

    // nobody could be served for good, were they not freed
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let config = agent.client_config();
        waiting.spawn(async move { value(&connect(&config).await.unwrap(), "select 'served'").await });
    }
    while let Some(served) = waiting.join_next().await {
        assert_eq!(served.unwrap(), "served");
    }
    for pinned in [&mut first, &mut second] {
        let (kind, text) = pinned.next().await.expect("it is told");
        assert_eq!((kind, pinned.next().await), (b'E', None), "{}", String::from_utf8_lossy(&text));
    }
    holding.batch_execute("commit").await.unwrap();
    assert_eq!(
        value(&holding, "select count(*)::text from items where id = 9").await,
        "1",
        "what it had begun is there"
    );
    let status = agent.until("it is told", |status| leaks(status).freed == 2).await;
    assert_eq!(agent.metric("sluice_pinned_server_connections_freed_total{"), Some(2.0));
    assert_ne!(state(&status), Some(UpstreamState::ReadOnly));
    agent.until("our own question is answered again", |status| state(status) == Some(UpstreamState::Primary)).await;
    // nothing of it stays on
    agent.until("limits as before", |status| status.limits.is_some_and(|limits| limits.pool_size == 3)).await;
    closing_is_over(&agent, "0").await;
}

/// Waits until PgBouncer closes what is idle as configured.
async fn closing_is_over(agent: &Agent, configured: &str) {
    until("closing is over", async || {
        let (directory, deadline) = (agent.run_dir().join("a"), std::time::Duration::from_secs(2));
        let mut console = Console::new(&directory, agent.client_port(), deadline);
        console.config().await.ok()?.get("server_fast_close").filter(|value| *value == configured).map(|_| ())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_session_of_the_alias_is_not_closed_with_what_is_pinned_and_once_it_has_ended_those_who_wait_are_served() {
    let mut settings = impatient();
    settings.session_alias = Some(SessionAlias { database: ALIAS.to_owned(), connections: 1 });
    settings.parameters.insert("server_fast_close".to_owned(), "1".to_owned());
    let (_postgres, _account, agent) = with_items(2, &settings).await;
    let (mut pinned, worker, waiting) = (Raw::of(&agent).await, session(&agent).await, agent.client().await);
    worker.batch_execute("listen orders").await.unwrap();
    pinned.pin().await;
    let told = waiting.simple_query("select 1").await.expect_err("it waits for longer than what is pinned is let be");
    assert!(told.to_string().contains("db error"), "{told}");
    assert_eq!(value(&worker, "select 'still here'").await, "still here");
    drop(worker);
    assert_eq!(value(&agent.client().await, "select 'served'").await, "served");
    let (kind, _) = pinned.next().await.expect("it is told");
    assert_eq!((kind, pinned.next().await), (b'E', None));
    agent.until("it is counted", |status| leaks(status).freed == 1).await;
    closing_is_over(&agent, "1").await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pinned_connection_is_told_by_its_kind_and_client_is_no_demand_and_stays_until_others_need_it() {
    let mut settings = impatient();
    settings.health.leak_threshold_seconds = 7;
    let (_postgres, _account, agent) = with_items(3, &settings).await;
    let (mut pinned, holding) = (Raw::of(&agent).await, agent.client().await);
    pinned.pin().await;
    holding.batch_execute("begin; select 1").await.unwrap();
    let told = |status: &StatusReport| {
        let LeakKinds { in_transaction, pinned, unclear, .. } = leaks(status);
        (in_transaction, pinned, unclear) == (1, 1, 0) && leaks(status).client.is_some()
    };
    let status = agent.until("both are told by their kind", told).await;
    let kinds = leaks(&status);
    assert_eq!((kinds.client, kinds.freed), (Some(pinned.address()), 0));
    assert!(kinds.longest_pinned_seconds.is_some_and(|seconds| seconds >= 7));
    assert_eq!(status.held.unwrap().leaked, Some(2));
    assert_eq!(agent.metric("sluice_pinned_server_connections{"), Some(1.0));
    assert_eq!(agent.metric("sluice_leaked_server_connections{"), Some(2.0));
    until("it is no demand", async || agent.metric("sluice_demand_peak{").filter(|demand| *demand == 0.0)).await;

    // nobody waits: it stays with its client
    pinned.send(&[query("select 1")]).await;
    pinned.until_ready().await;
    agent.until("told again", told).await;
    // the third connection is taken too, and somebody waits
    let third = agent.client().await;
    third.batch_execute("begin; select 1").await.unwrap();
    let config = agent.client_config();
    let waiting = tokio::spawn(async move { value(&connect(&config).await.unwrap(), "select 'served'").await });
    assert_eq!(waiting.await.unwrap(), "served");
    let (kind, _) = pinned.next().await.expect("it is told");
    assert_eq!((kind, pinned.next().await), (b'E', None));
    for client in [&holding, &third] {
        client.batch_execute("commit").await.unwrap();
    }
    agent.until("freed by name", |status| leaks(status).freed == 1).await;
    assert!(agent.log().contains(&pinned.address()), "the log names it");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_copy_whose_client_sends_nothing_or_no_more_is_told_as_a_transaction_and_not_cut_for_clients_that_wait() {
    let mut settings = impatient();
    settings.health.leak_threshold_seconds = 7;
    let (_postgres, _account, agent) = with_items(3, &settings).await;
    let (mut nothing, mut no_more) = (Raw::of(&agent).await, Raw::of(&agent).await);
    nothing.send(&[query("copy items from stdin")]).await;
    no_more.send(&[query("copy items from stdin")]).await;
    let begun = [nothing.next().await.map(|it| it.0), no_more.next().await.map(|it| it.0)];
    assert_eq!(begun, [Some(b'G'); 2]);
    no_more.send(&[message(b'd', b"1\n")]).await;
    // a third one is free to ask by
    assert_eq!(value(&agent.client().await, "select 'served'").await, "served");
    let told = |status: &StatusReport| {
        let LeakKinds { in_transaction, pinned, unclear, .. } = leaks(status);
        (in_transaction, pinned, unclear) == (2, 0, 0)
    };
    agent.until("both are told by their kind", told).await;
    let third = agent.client().await;
    third.batch_execute("begin; select 1").await.unwrap();
    let config = agent.client_config();
    let waits = tokio::spawn(async move { connect(&config).await.unwrap().batch_execute("select 1").await });
    assert!(waits.await.unwrap().is_err(), "nothing is freed for it");
    for copy in [&mut nothing, &mut no_more] {
        copy.send(&[message(b'd', b"2\n"), message(b'c', b"")]).await;
        assert_eq!(copy.until_ready().await.replace(['S', 'N'], ""), "CZ");
    }
    third.batch_execute("commit").await.unwrap();
    assert_eq!(value(&third, "select count(*)::text from items").await, "3");
}

/// Leaves the clients that are connected with the process before: as the role before, where PgBouncer binds them to it.
async fn leave_behind(postgres: &Postgres, agent: &Agent, mut settings: Settings) {
    if pooler_remembers(Remembered::Role) {
        change_role(postgres, agent, "shop_2", "").await;
    } else {
        settings.parameters.insert("pkt_buf".to_owned(), "8192".to_owned());
        agent.revise(2, &settings);
    }
    let is_left = |role| matches!(role, OtherRole::Warm | OtherRole::Draining);
    agent.until("new clients come to another one", |status| status.other.is_some_and(|it| is_left(it.role))).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pinned_connection_of_a_process_that_drains_is_told_by_its_kind_and_freed_for_clients_that_wait_there() {
    let mut settings = impatient();
    settings.health.leak_threshold_seconds = 7;
    let (postgres, _account, agent) = with_items(3, &settings).await;
    let (mut pinned, works, waits) = (Raw::of(&agent).await, agent.client().await, agent.client().await);
    leave_behind(&postgres, &agent, settings).await;
    pinned.pin().await;
    // what the new process can spare comes first, and is there to ask by
    assert_eq!(value(&works, "select current_user").await, "shop");
    let told = |status: &StatusReport| {
        let LeakKinds { in_transaction, pinned, unclear, .. } = leaks(status);
        (in_transaction, pinned, unclear) == (0, 1, 0) && leaks(status).client.is_some()
    };
    let status = agent.until("it is told by its kind", told).await;
    assert_eq!((leaks(&status).client, leaks(&status).freed), (Some(pinned.address()), 0));

    works.batch_execute("begin; insert into items values (9)").await.unwrap();
    assert_eq!(value(&waits, "select 'served'").await, "served");
    let (kind, _) = pinned.next().await.expect("it is told");
    assert_eq!((kind, pinned.next().await), (b'E', None));
    works.batch_execute("commit").await.unwrap();
    assert_eq!(value(&works, "select count(*)::text from items where id = 9").await, "1");
    agent.until("freed by name", |status| leaks(status).freed == 1).await;
    assert!(agent.log().contains(&pinned.address()), "the log names it");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_every_connection_of_a_process_that_drains_is_pinned_those_of_its_clients_who_wait_are_served() {
    let (postgres, _account, agent) = with_items(2, &impatient()).await;
    let (mut pinned, waits) = (Raw::of(&agent).await, agent.client().await);
    leave_behind(&postgres, &agent, impatient()).await;
    pinned.pin().await;
    assert_eq!(value(&waits, "select 'served'").await, "served");
    let (kind, _) = pinned.next().await.expect("it is told");
    assert_eq!((kind, pinned.next().await), (b'E', None));
    agent.until("it is counted", |status| leaks(status).freed == 1).await;
    closing_is_over(&agent, "0").await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn in_session_mode_an_idle_session_is_no_leak_and_one_in_a_transaction_is() {
    let mut settings = Settings { pool_mode: PoolMode::Session, ..settings() };
    settings.health.leak_threshold_seconds = 7;
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings, 3).await;
    let (idle, open, leaves) = (agent.client().await, agent.client().await, agent.client().await);
    for (client, does) in [(&idle, "select 1"), (&leaves, "select 1"), (&open, "begin; select 1")] {
        client.batch_execute(does).await.unwrap();
    }
    drop(leaves);
    let status = agent.until("the transaction is told", |status| leaks(status).in_transaction == 1).await;
    let LeakKinds { pinned, unclear, .. } = leaks(&status);
    assert_eq!(
        (pinned, unclear, status.held.unwrap().leaked),
        (0, 0, Some(1)),
        "the idle one has been silent for longer"
    );
    assert_eq!(agent.metric("sluice_pinned_server_connections{"), Some(0.0));
    open.batch_execute("commit").await.unwrap();
    agent.until("nothing is told any more", |status| status.held.is_some_and(|held| held.leaked == Some(0))).await;
    assert_eq!(value(&idle, "select 'still here'").await, "still here");
}
