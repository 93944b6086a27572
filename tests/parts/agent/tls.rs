//! TLS towards the real PostgreSQL, and of the clients with the pooler.

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
    sign::CertifiedKey,
};
use sluice::contract::{ClientTlsMode, ServerTls, ServerTlsMode, StatusReport};
use tempfile::TempDir;

use super::{
    counted,
    rig::{Account, Agent, Postgres, program, settings, until},
    value,
};

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key.
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For a host or an address; a database takes it for that of a role of the name.
    pub fn certify(&self, name: &str) -> Certified {
        self.certify_until(name, 2100)
    }

    /// Valid until the beginning of a year.
    pub fn certify_until(&self, name: &str, year: i32) -> Certified {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        Certified { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Certified {
    pub fn files(&self) -> [(&str, &str); 2] {
        [("server.crt", &self.certificate), ("server.key", &self.key)]
    }
}

/// A PostgreSQL that lets nobody but its superuser in without TLS.
pub async fn guarded(certified: &Certified) -> (Postgres, Account) {
    let account = Account::shop();
    let postgres =
        Postgres::configured("hostssl all all 127.0.0.1/32 scram-sha-256\n", &certified.files(), &["ssl=on"]).await;
    postgres.create(&account).await;
    (postgres, account)
}

/// The volumes of a pod with this mode and, where one is given, this bundle.
fn pod(postgres: &Postgres, account: &Account, mode: ServerTlsMode, bundle: Option<&str>) -> Agent {
    let agent = Agent::new(postgres.port, account).with(|injection| {
        injection.upstream.tls = ServerTls { mode, own_ca: bundle.is_some(), own_certificate: false }
    });
    if let Some(bundle) = bundle {
        agent.write("server-ca/ca.crt", bundle);
    }
    agent.revise(1, &settings());
    agent.grant(1, 3, 3);
    agent
}

pub async fn told(agent: &Agent, words: &str) -> StatusReport {
    agent.until(words, |status| status.message.contains(words)).await
}

/// Waits until nothing stands in the way.
pub async fn calm(agent: &Agent) {
    agent.until("nothing stands in the way", |status| status.message.is_empty()).await;
}

/// Ends every server connection, so that the next query needs a new one.
async fn drop_server_connections(postgres: &Postgres) {
    let admin = postgres.admin().await;
    let query = "select pid, pg_terminate_backend(pid) from pg_stat_activity where usename = 'shop'";
    let ended: Vec<i32> = admin.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    until("they are gone", async || {
        let left = admin.query("select 1 from pg_stat_activity where pid = any($1)", &[&ended]).await.unwrap();
        left.is_empty().then_some(())
    })
    .await;
}

/// A query that needs a new server connection comes back.
pub async fn reaches_anew(agent: &Agent, postgres: &Postgres) {
    drop_server_connections(postgres).await;
    let encrypted = "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()";
    until("a client is served over TLS", async || {
        // the first query after the cut may meet a connection that is being closed
        let client = super::connect(&agent.client_config()).await.ok()?;
        let rows = client.simple_query(encrypted).await.ok()?;
        (!rows.is_empty()).then_some(())
    })
    .await;
    assert_eq!(value(&agent.client().await, encrypted).await, "true");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_is_reached_over_tls_in_every_mode_that_its_certificate_satisfies() {
    let authority = Authority::new("ours");
    let (postgres, account) = guarded(&authority.certify("127.0.0.1")).await;
    let bundle = Some(authority.pem.as_str());
    for (mode, bundle) in
        [(ServerTlsMode::Require, None), (ServerTlsMode::VerifyCa, bundle), (ServerTlsMode::VerifyFull, bundle)]
    {
        let mut agent = pod(&postgres, &account, mode, bundle);
        agent.run();
        agent.until("the grant is in force", |status| status.seq == 1).await;
        reaches_anew(&agent, &postgres).await;
        calm(&agent).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_certificate_that_does_not_fit_gets_no_connection_and_what_is_wrong_is_told() {
    let (authority, other) = (Authority::new("ours"), Authority::new("another"));
    let cases = [
        (other.certify("127.0.0.1"), "is not signed by a CA of the bundle"),
        (authority.certify("pg.example.com"), "is not for this name, but for"),
        (authority.certify_until("127.0.0.1", 2024), "expired at 2024-01-01T00:00:00Z"),
    ];
    let (postgres, account) = guarded(&cases[0].0).await;
    let mut agent = pod(&postgres, &account, ServerTlsMode::VerifyFull, Some(&authority.pem));
    agent.run();
    let admin = postgres.admin().await;
    for (certified, words) in &cases {
        postgres.reconfigure(&certified.files()).await;
        let status = told(&agent, words).await;
        assert!(status.message.contains("certificate of 127.0.0.1"), "{}", status.message);
        assert_eq!(counted(&admin, "shop").await, 0, "no login, and none in plain text");
    }
    assert!(
        agent
            .metric("sluice_pooler_errors_total{pool=\"shop\",pool_namespace=\"shop\",reason=\"ServerTlsFailed\"")
            .unwrap()
            > 0.0
    );
    postgres.reconfigure(&authority.certify("127.0.0.1").files()).await;
    reaches_anew(&agent, &postgres).await;
    calm(&agent).await;
    // another name is no fault where only the chain is asked for
    postgres.reconfigure(&cases[1].0.files()).await;
    let mut lenient = pod(&postgres, &account, ServerTlsMode::VerifyCa, Some(&authority.pem));
    lenient.run();
    lenient.until("the grant is in force", |status| status.seq == 1).await;
    reaches_anew(&lenient, &postgres).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_database_without_tls_is_never_spoken_to_in_plain_text_unless_asked_for() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = pod(&postgres, &account, ServerTlsMode::Require, None);
    agent.run();
    told(&agent, "offers no TLS").await;
    assert_eq!(counted(&postgres.admin().await, "shop").await, 0);
    let mut plain = pod(&postgres, &account, ServerTlsMode::Disabled, None);
    plain.run();
    plain.until("the grant is in force", |status| status.seq == 1).await;
    assert_eq!(value(&plain.client().await, "select 1").await, "1");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn another_ca_bundle_takes_effect_once_the_database_has_proven_itself_with_it() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (postgres, account) = guarded(&old.certify("127.0.0.1")).await;
    let mut agent = pod(&postgres, &account, ServerTlsMode::VerifyFull, Some(&old.pem));
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    let (pooler, stays) = (agent.pooler_pid(), agent.client().await);
    assert_eq!(value(&stays, "select 1").await, "1");
    for bundle in [new.pem.as_str(), "no certificate"] {
        agent.write("server-ca/ca.crt", bundle);
        told(&agent, "what the Secret holds now is not in force").await;
        reaches_anew(&agent, &postgres).await;
    }
    // as CAs are rotated: both, then another certificate, then the old one goes
    agent.write("server-ca/ca.crt", &format!("{}{}", old.pem, new.pem));
    calm(&agent).await;
    postgres.reconfigure(&new.certify("127.0.0.1").files()).await;
    reaches_anew(&agent, &postgres).await;
    agent.write("server-ca/ca.crt", &new.pem);
    until("the old one is trusted by no process", async || {
        let ini = fs::read_to_string(agent.run_dir().join("a/pgbouncer.ini")).ok()?;
        let bundle = ini.lines().find_map(|line| line.strip_prefix("server_tls_ca_file = "))?;
        (fs::read_to_string(bundle).ok()? == new.pem).then_some(())
    })
    .await;
    reaches_anew(&agent, &postgres).await;
    calm(&agent).await;
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    assert_eq!(agent.pooler_pid(), pooler);
}

/// A pod whose pooler shows this certificate to its clients.
fn showing(postgres: &Postgres, account: &Account, tls: ClientTlsMode, certified: &Certified) -> Agent {
    let agent = Agent::new(postgres.port, account).with(|injection| injection.client.tls = tls);
    agent.write("client-tls/tls.crt", &certified.certificate);
    agent.write("client-tls/tls.key", &certified.key);
    agent.revise(1, &settings());
    agent.grant(1, 3, 3);
    agent
}

/// psql before the pooler, trusting a bundle of CAs.
fn psql(agent: &Agent, account: &Account, mode: &str, root: &Path) -> Command {
    let port = agent.client_port().to_string();
    let connection = [("PGHOST", "127.0.0.1"), ("PGPORT", port.as_str()), ("PGUSER", account.user.as_str())];
    let secrets = [("PGPASSWORD", account.password.as_str()), ("PGDATABASE", account.database.as_str())];
    let mut command = Command::new(program("psql"));
    command.envs(connection).envs(secrets).env("PGSSLMODE", mode).env("PGSSLROOTCERT", root);
    command
}

/// What libpq reads of the pooler in this `sslmode`, trusting this CA; or why it does not.
fn read_by_libpq(agent: &Agent, account: &Account, mode: &str, authority: &Authority) -> Result<String, String> {
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("root.crt");
    fs::write(&root, &authority.pem).unwrap();
    let output = psql(agent, account, mode, &root).args(["-XAtc", "select 'served'"]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn clients_are_met_with_tls_where_the_pool_says_so() {
    let (postgres, account) = Postgres::with_shop().await;
    let (authority, other) = (Authority::new("ours"), Authority::new("another"));
    let certified = authority.certify("127.0.0.1");
    for (tls, plain_is_served) in [(ClientTlsMode::Require, false), (ClientTlsMode::Allow, true)] {
        let mut agent = showing(&postgres, &account, tls, &certified);
        agent.run();
        agent.until("the grant is in force", |status| status.seq == 1).await;
        assert_eq!(read_by_libpq(&agent, &account, "verify-full", &authority), Ok("served".to_owned()));
        let plain = read_by_libpq(&agent, &account, "disable", &authority);
        assert_eq!(plain.is_ok(), plain_is_served, "{tls:?}: {plain:?}");
        let error = read_by_libpq(&agent, &account, "verify-full", &other).unwrap_err();
        assert!(error.contains("certificate verify failed"), "{error}");
        calm(&agent).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_certificate_that_is_not_of_its_key_changes_nothing_and_a_renewed_pair_is_shown_without_a_cut() {
    let (postgres, account) = Postgres::with_shop().await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let mut agent = showing(&postgres, &account, ClientTlsMode::Allow, &old.certify("127.0.0.1"));
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    let (pooler, stays) = (agent.pooler_pid(), agent.client().await);
    assert_eq!(value(&stays, "select 1").await, "1");
    let renewed = new.certify("127.0.0.1");
    agent.write("client-tls/tls.crt", &renewed.certificate);
    let status = told(&agent, "does not belong to the key").await;
    assert!(status.message.contains("the certificate in force stays"), "{}", status.message);
    // another revision does not bring it into force either
    let mut settings = settings();
    settings.parameters.insert("server_idle_timeout".to_owned(), "60".to_owned());
    agent.revise(2, &settings);
    agent.until("the revision is in force", |status| status.revision == Some(2)).await;
    assert_eq!(read_by_libpq(&agent, &account, "verify-full", &old), Ok("served".to_owned()));
    agent.write("client-tls/tls.key", &renewed.key);
    until("the renewed certificate is shown", async || {
        read_by_libpq(&agent, &account, "verify-full", &new).is_ok().then_some(())
    })
    .await;
    calm(&agent).await;
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    assert_eq!(agent.pooler_pid(), pooler);
    assert!(!agent.log().contains("PRIVATE KEY"));
}

/// A client without a certificate, and the CAs that it was told to have one of.
#[derive(Debug, Default)]
struct Asked(Mutex<Option<usize>>);

impl ResolvesClientCert for Asked {
    fn resolve(&self, authorities: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        *self.0.lock().unwrap() = Some(authorities.len());
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn no_handshake_carries_the_names_of_all_cas_that_the_image_trusts() {
    let (postgres, account) = Postgres::with_shop().await;
    let authority = Authority::new("ours");
    let mut agent = showing(&postgres, &account, ClientTlsMode::Require, &authority.certify("127.0.0.1"));
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let asked = Arc::new(Asked::default());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(asked.clone());
    let mut connection = ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let (mut stream, mut answer) = (TcpStream::connect(("127.0.0.1", agent.client_port())).unwrap(), [0]);
    // PostgreSQL's SSLRequest
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    // one for each certificate that the pooler shows
    assert_eq!(*asked.0.lock().unwrap(), Some(1));
}

/// A psql that stays connected and is asked one thing after the other.
struct Session {
    process: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Session {
    /// Over TLS, verifying that this CA signed for the pooler.
    fn start(agent: &Agent, account: &Account, authority: &Authority, directory: &TempDir) -> Self {
        let root = directory.path().join("root.crt");
        fs::write(&root, &authority.pem).unwrap();
        let mut process = psql(agent, account, "verify-full", &root)
            .arg("-XAtq")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, answers }
    }

    fn ask(&mut self, question: &str) -> String {
        let asked = writeln!(self.process.stdin.as_mut().unwrap(), "{question};");
        let answer = asked.ok().and_then(|()| self.answers.next()?.ok());
        answer.expect("psql ends when its connection is lost")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn an_encrypted_client_goes_on_while_the_certificate_is_renewed() {
    let (postgres, account) = Postgres::with_shop().await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let mut agent = showing(&postgres, &account, ClientTlsMode::Require, &old.certify("127.0.0.1"));
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    let directory = TempDir::new().unwrap();
    let (mut idle, mut busy) =
        (Session::start(&agent, &account, &old, &directory), Session::start(&agent, &account, &old, &directory));
    assert_eq!(idle.ask("select 'before'"), "before");
    assert_eq!(busy.ask("begin; select pg_backend_pid() is not null"), "t");
    let pooler = agent.pooler_pid();
    let renewed = new.certify("127.0.0.1");
    agent.write("client-tls/tls.crt", &renewed.certificate);
    agent.write("client-tls/tls.key", &renewed.key);
    until("the renewed certificate is shown", async || {
        read_by_libpq(&agent, &account, "verify-full", &new).is_ok().then_some(())
    })
    .await;
    assert_eq!(busy.ask("select 'in its transaction'"), "in its transaction");
    assert_eq!(busy.ask("commit; select 'after'"), "after");
    assert_eq!(idle.ask("select 'after'"), "after");
    calm(&agent).await;
    assert_eq!(agent.pooler_pid(), pooler);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn without_a_certificate_that_fits_no_client_is_met_and_a_restarted_pod_shows_what_worked() {
    let (postgres, account) = Postgres::with_shop().await;
    let authority = Authority::new("ours");
    let (first, second) = (authority.certify("127.0.0.1"), authority.certify("127.0.0.1"));
    let mut agent = showing(&postgres, &account, ClientTlsMode::Require, &first);
    agent.write("client-tls/tls.key", &second.key);
    agent.run();
    told(&agent, "does not belong to the key").await;
    assert_eq!(agent.pooler_pid(), None);
    agent.write("client-tls/tls.key", &first.key);
    agent.until("the grant is in force", |status| status.seq == 1).await;
    assert_eq!(read_by_libpq(&agent, &account, "verify-full", &authority), Ok("served".to_owned()));
    agent.stop();
    agent.write("client-tls/tls.key", &second.key);
    agent.run();
    told(&agent, "does not belong to the key").await;
    agent.until("the grant is in force", |status| status.seq == 1).await;
    assert_eq!(read_by_libpq(&agent, &account, "verify-full", &authority), Ok("served".to_owned()));
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_password_changes_where_clients_are_met_with_tls_alone() {
    let (postgres, mut account) = Postgres::with_shop().await;
    let authority = Authority::new("ours");
    let mut agent = showing(&postgres, &account, ClientTlsMode::Require, &authority.certify("127.0.0.1"));
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    postgres.admin().await.batch_execute("alter role shop password 'renewed'").await.unwrap();
    agent.write("credentials/password", "renewed");
    account.password = "renewed".to_owned();
    until("clients log in with the new one", async || {
        read_by_libpq(&agent, &account, "verify-full", &authority).is_ok().then_some(())
    })
    .await;
    calm(&agent).await;
}
