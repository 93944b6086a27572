//! A database that asks for a client certificate, and a pool that names one.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, time::Duration};

use sluice::{
    contract::{PoolerError, ServerTls, ServerTlsMode, SessionAlias, StatusReport},
    pooler::pgbouncer::changes::Remembered,
};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{
    load::{Clients, Target},
    rig::{Account, Agent, Postgres, connect, pooler_remembers, settings, until},
    tls::{Authority, Certified, calm, reaches_anew, told},
    value,
};

/// What the pool's own line of `pg_hba.conf` may ask for.
const VERIFY_FULL: &str = "scram-sha-256 clientcert=verify-full";
const SHARE: u32 = 4;

/// A PostgreSQL that lets nobody but its superuser in by another way, and only with a certificate of this authority.
async fn asking(method: &str, authority: &Authority) -> (Postgres, Account) {
    asking_with(method, authority, &[]).await
}

/// The same with settings of its own.
async fn asking_with(method: &str, authority: &Authority, settings: &[&str]) -> (Postgres, Account) {
    let server = authority.certify("127.0.0.1");
    let [certificate, key] = server.files();
    let rules = format!("hostssl all all 127.0.0.1/32 {method}\n");
    let files = [certificate, key, ("clients.crt", authority.pem.as_str())];
    let settings = [&["ssl=on", "ssl_ca_file=clients.crt"], settings].concat();
    let postgres = Postgres::configured(&rules, &files, &settings).await;
    let account = Account::shop();
    postgres.create(&account).await;
    (postgres, account)
}

/// A certificate in the Secret.
fn show(agent: &Agent, certified: &Certified) {
    agent.write("upstream-tls/tls.crt", &certified.certificate);
    agent.write("upstream-tls/tls.key", &certified.key);
}

/// The volumes of a pod whose pool names a certificate.
fn pod(postgres: &Postgres, account: &Account, authority: &Authority, certified: &Certified) -> Agent {
    let tls = ServerTls { mode: ServerTlsMode::VerifyFull, own_ca: true, own_certificate: true };
    let agent = Agent::new(postgres.port, account).with(|injection| injection.upstream.tls = tls);
    agent.write("server-ca/ca.crt", &authority.pem);
    show(&agent, certified);
    agent
}

fn target(agent: &Agent, database: &str) -> Target {
    let mut login = agent.client_config();
    login.dbname(database);
    Target { address: ([127, 0, 0, 1], agent.client_port()).into(), login, tls: None }
}

/// Waits until a certificate, or the next one, is in force in every process.
async fn in_force(agent: &Agent, times: usize) {
    until("the certificate is in force in every process", async || {
        (agent.log().matches("credentials in force in every slot").count() >= times).then_some(())
    })
    .await;
    calm(agent).await;
}

/// Serial numbers of the certificates that the pool's server connections were opened with.
async fn serials(postgres: &Postgres) -> Vec<String> {
    let query = "select distinct client_serial::text from pg_stat_ssl join pg_stat_activity using (pid) where usename like 'shop%' and client_serial is not null";
    postgres.admin().await.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_that_asks_for_a_client_certificate_is_served_by_a_pool_that_names_one() {
    let authority = Authority::new("ours");
    for method in ["scram-sha-256 clientcert=verify-ca", VERIFY_FULL, "cert"] {
        let (postgres, account) = asking(method, &authority).await;
        let certified = authority.certify("shop");
        let mut settings = settings();
        settings.session_alias = Some(SessionAlias { database: "shop_session".to_owned(), connections: 1 });
        let agent = pod(&postgres, &account, &authority, &certified).started(&settings, SHARE).await;
        let shown = "select client_dn from pg_stat_ssl where pid = pg_backend_pid()";
        assert_eq!(value(&agent.client().await, shown).await, "/CN=shop", "{method}");
        let mut session = agent.client_config();
        session.dbname("shop_session");
        assert_eq!(value(&connect(&session).await.unwrap(), shown).await, "/CN=shop", "{method}");
        reaches_anew(&agent, &postgres).await;
        calm(&agent).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_key_is_in_memory_for_the_pooler_alone_and_told_nowhere() {
    let authority = Authority::new("ours");
    let (postgres, account) = asking(VERIFY_FULL, &authority).await;
    let certified = authority.certify("shop");
    let agent = pod(&postgres, &account, &authority, &certified).started(&settings(), SHARE).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
    let files = |directory| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let keys: Vec<_> = files(agent.run_dir())
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text == certified.key))
        .collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_eq!(fs::metadata(&keys[0]).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = certified.key.lines().nth(1).unwrap();
    let status = serde_json::to_string(&agent.status()).unwrap();
    let mut texts = vec![agent.log(), agent.metrics(), status];
    texts.extend(files(agent.state_dir()).map(|path| fs::read_to_string(path).unwrap()));
    texts.extend(["in-force.json", "a/pgbouncer.ini"].map(|f| fs::read_to_string(agent.run_dir().join(f)).unwrap()));
    for text in texts {
        assert!(!text.contains("PRIVATE KEY") && !text.contains(secret), "{text}");
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_renewed_certificate_reaches_every_server_connection_without_a_failed_client() {
    let authority = Authority::new("ours");
    let (postgres, account) = asking(VERIFY_FULL, &authority).await;
    let mut settings = settings();
    settings.session_alias = Some(SessionAlias { database: "shop_session".to_owned(), connections: 1 });
    let agent = pod(&postgres, &account, &authority, &authority.certify("shop")).started(&settings, SHARE).await;
    let pooler = agent.pooler_pid();
    let mut clients = Clients::new();
    for _ in 0..4 {
        clients.stay(&target(&agent, "shop"), None, Duration::from_millis(5));
    }
    clients.churn(&target(&agent, "shop"), 4, 40);
    clients.churn(&target(&agent, "shop_session"), 1, 2);
    let mut before = Vec::new();
    for times in 1..=4 {
        until("clients are at work", async || Some(serials(&postgres).await).filter(|now| !now.is_empty())).await;
        before.extend(serials(&postgres).await);
        show(&agent, &authority.certify("shop"));
        in_force(&agent, times).await;
        until("each server connection was opened with it", async || {
            let now = serials(&postgres).await;
            (now.len() == 1 && !before.contains(&now[0])).then_some(())
        })
        .await;
    }
    let tally = clients.stop().await;
    assert_eq!(tally.failures(), BTreeMap::new());
    assert!(tally.connections() > 20 && tally.queries() > 200, "{tally:?}");
    assert_eq!(agent.pooler_pid(), pooler);
    let left = fs::read_dir(agent.run_dir())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("upstream-tls-"));
    assert_eq!(left.count(), 2, "those of earlier times are gone");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_certificate_that_does_not_work_changes_nothing_and_why_is_told() {
    let (authority, alien) = (Authority::new("ours"), Authority::new("another"));
    let (postgres, account) = asking(VERIFY_FULL, &authority).await;
    let first = authority.certify("shop");
    let mut agent = pod(&postgres, &account, &authority, &first).started(&settings(), SHARE).await;
    let (pooler, stays) = (agent.pooler_pid(), agent.client().await);
    assert_eq!(value(&stays, "select 1").await, "1");
    let certify = |name| authority.certify(name);
    let with_key = |certified: Certified, key: &str| Certified { key: key.to_owned(), ..certified };
    let no_pem = Certified { certificate: "no certificate".to_owned(), ..certify("shop") };
    for (certified, words) in [
        (with_key(certify("shop"), &first.key), "does not belong to the key in upstream-tls/tls.key"),
        (with_key(certify("shop"), ""), "upstream-tls/tls.key holds no private key"),
        (no_pem, "upstream-tls/tls.crt holds no certificate"),
        (alien.certify("shop"), "alert unknown ca"),
        (authority.certify_until("shop", 2024), "alert certificate expired"),
        (certify("nobody"), "authentication failed for user \"shop\""),
    ] {
        show(&agent, &certified);
        let status = told(&agent, words).await;
        assert!(!status.message.contains("PRIVATE"), "{}", status.message);
        reaches_anew(&agent, &postgres).await;
    }
    // a container that restarts begins with what worked
    agent.stop();
    agent.run();
    told(&agent, "authentication failed for user \"shop\"").await;
    agent.until("the grant is in force", |status| status.seq == 1).await;
    reaches_anew(&agent, &postgres).await;
    let (now, renewed) = (serials(&postgres).await, certify("shop"));
    show(&agent, &renewed);
    calm(&agent).await;
    until("the right one is shown", async || {
        reaches_anew(&agent, &postgres).await;
        (serials(&postgres).await != now).then_some(())
    })
    .await;
    assert!(pooler.is_some());
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn without_a_certificate_that_fits_no_pooler_is_started() {
    let authority = Authority::new("ours");
    let (postgres, account) = asking(VERIFY_FULL, &authority).await;
    let (first, second) = (authority.certify("shop"), authority.certify("shop"));
    let mut agent = pod(&postgres, &account, &authority, &first);
    agent.write("upstream-tls/tls.key", &second.key);
    agent.revise(1, &settings());
    agent.grant(1, SHARE, SHARE);
    agent.run();
    let status = told(&agent, "does not belong to the key in upstream-tls/tls.key").await;
    assert!(status.message.contains("the pooler starts when it is there"), "{}", status.message);
    assert_eq!(agent.pooler_pid(), None);
    agent.write("upstream-tls/tls.key", &first.key);
    agent.until("the grant is in force", |status| status.seq == 1).await;
    assert_eq!(value(&agent.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_certificate_that_the_database_refuses_from_now_on_is_told_and_what_is_open_is_kept() {
    // the database's alert comes after the handshake, or as a part of it
    for version in ["TLSv1.3", "TLSv1.2"] {
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let newest = format!("ssl_max_protocol_version={version}");
        let (postgres, account) = asking_with(VERIFY_FULL, &old, &[&newest]).await;
        let agent = pod(&postgres, &account, &old, &old.certify("shop")).started(&settings(), SHARE).await;
        let (stays, waits) = (agent.client().await, agent.client().await);
        stays.simple_query("begin").await.unwrap();
        let pid = value(&stays, "select pg_backend_pid()").await;
        postgres.reconfigure(&[("clients.crt", &new.pem)]).await;
        // needs a second connection, which cannot be opened
        let waiting = tokio::spawn(async move { value(&waits, "select 'through'").await });
        let has = |status: &StatusReport, reason| status.troubles.iter().any(|trouble| trouble.reason == reason);
        let status = agent.until("it is told", |status| has(status, PoolerError::ServerWantsCertificate)).await;
        assert!(!has(&status, PoolerError::ClientTlsFailed), "{status:?}");
        assert_eq!(value(&stays, "select pg_backend_pid()").await, pid, "it is kept");
        stays.simple_query("commit").await.unwrap();
        assert_eq!(waiting.await.unwrap(), "through");
        show(&agent, &new.certify("shop"));
        in_force(&agent, 1).await;
        reaches_anew(&agent, &postgres).await;
        assert_eq!(value(&stays, "select 'the same client'").await, "the same client");
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn another_role_comes_with_its_certificate_and_who_keeps_the_role_before_keeps_that_ones() {
    let authority = Authority::new("ours");
    let (postgres, account) = asking(VERIFY_FULL, &authority).await;
    let agent = pod(&postgres, &account, &authority, &authority.certify("shop")).started(&settings(), SHARE).await;
    let stays = agent.client().await;
    let role = "select session_user::text || (select client_dn from pg_stat_ssl where pid = pg_backend_pid())";
    assert_eq!(value(&stays, role).await, "shop/CN=shop");
    postgres.admin().await.batch_execute("create role shop_2 login password 'next'").await.unwrap();
    agent.write("credentials/username", "shop_2");
    agent.write("credentials/password", "next");
    show(&agent, &authority.certify("shop_2"));
    let mut comes = agent.client_config();
    comes.user("shop_2").password("next");
    let comes = until("new clients are of the new role", async || connect(&comes).await.ok()).await;
    let before = if pooler_remembers(Remembered::Role) { "shop/CN=shop" } else { "shop_2/CN=shop_2" };
    for _ in 0..2 {
        until("both are served", async || {
            let ask = async |client: &Client| {
                let messages = client.simple_query(role).await.ok()?;
                messages.into_iter().find_map(|message| match message {
                    SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                })
            };
            let both = (ask(&comes).await?, ask(&stays).await?);
            (both == ("shop_2/CN=shop_2".to_owned(), before.to_owned())).then_some(())
        })
        .await;
        // what each opens anew it opens as its own role
        let cut = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename like 'shop%'";
        postgres.admin().await.query(cut, &[]).await.unwrap();
    }
}
