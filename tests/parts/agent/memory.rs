//! What a sidecar takes of memory, and the one CA that keeps it small.

use std::{fs, sync::Arc, time::Duration};

use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use sluice::{
    contract::{ClientTlsMode, ServerTls, ServerTlsMode, StatusReport},
    decide::memory::{Bundle, Generation, Packets, SidecarLoad},
};

use super::{
    load::{Clients, Target},
    rig::{Account, Agent, Postgres, connect, pooler_version, settings, until},
    tls::{Authority, Certified, calm, reaches_anew},
    value,
};

/// Certificates of a bundle that is as large as an image's trust store.
const STORE: usize = 145;

async fn database(certified: &Certified) -> (Postgres, Account) {
    let account = Account::shop();
    let rules = "host all all 127.0.0.1/32 scram-sha-256\n";
    let settings = ["ssl=on", "max_connections=150"];
    let postgres = Postgres::configured(rules, &certified.files(), &settings).await;
    postgres.create(&account).await;
    (postgres, account)
}

/// A pod that verifies the database with this bundle.
fn verifying(postgres: &Postgres, account: &Account, bundle: &str, share: u32) -> Agent {
    let agent = Agent::new(postgres.port, account).with(|injection| {
        injection.upstream.tls = ServerTls { mode: ServerTlsMode::VerifyFull, own_ca: true, own_certificate: false };
    });
    agent.write("server-ca/ca.crt", bundle);
    agent.revise(1, &settings());
    agent.grant(1, share, share);
    agent
}

fn strangers(count: usize) -> String {
    (0..count).map(|number| Authority::new(&format!("stranger {number}")).pem).collect()
}

/// A CA whose certificate is signed by another one, and a certificate of a server by it: without what leads from it to the root.
fn from_between(root: &Issuer<'_, KeyPair>, name: &str) -> (String, Certified) {
    let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::new(Vec::new()).unwrap());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "between");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.signed_by(&key, root).unwrap().pem();
    (pem, server(&Issuer::new(params, key), name))
}

fn server(issuer: &Issuer<'_, KeyPair>, name: &str) -> Certified {
    let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec![name.to_owned()]).unwrap());
    params.use_authority_key_identifier_extension = true;
    Certified { certificate: params.signed_by(&key, issuer).unwrap().pem(), key: key.serialize_pem() }
}

/// Two certificates of one CA, for one key: what is signed by the second names it by its identifier, which the first lacks.
fn twins(name: &str) -> (String, String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let params = |identifier: u8| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_identifier_method = KeyIdMethod::PreSpecified(vec![identifier; 20]);
        params
    };
    let pem = |identifier: u8| params(identifier).self_signed(&key).unwrap().pem();
    let (first, second) = (pem(1), pem(2));
    (first, second, Issuer::new(params(2), key))
}

fn root() -> (Issuer<'static, KeyPair>, String) {
    let (first, _, issuer) = twins("the root");
    (issuer, first)
}

/// What PgBouncer verifies the database with.
fn ca_file(agent: &Agent) -> Option<String> {
    let ini = fs::read_to_string(agent.run_dir().join("a/pgbouncer.ini")).ok()?;
    fs::read_to_string(ini.lines().find_map(|line| line.strip_prefix("server_tls_ca_file = "))?).ok()
}

async fn verified_by(agent: &Agent, ca: Option<&str>) -> StatusReport {
    let is_it = |status: &StatusReport| status.trust.as_ref().is_some_and(|trust| trust.ca.as_deref() == ca);
    agent.until("the CA that is told", is_it).await
}

fn generation() -> Generation {
    match pooler_version() {
        version if (version.major, version.minor) < (1, 25) => Generation::Before1_25,
        _ => Generation::Newer,
    }
}

/// Server connections of a pod whose clients are many.
const FEW: u32 = 4;

/// A pod of few server connections that takes this many clients, with its pooler's `pkt_buf`.
async fn crowded(postgres: &Postgres, account: &Account, packet_bytes: u32) -> Agent {
    let mut agent = Agent::new(postgres.port, account).with(|injection| injection.client.max_connections = 600);
    let mut settings = settings();
    settings.health.query_wait_timeout_seconds = 300;
    settings.parameters.insert("pkt_buf".to_owned(), packet_bytes.to_string());
    agent.revise(1, &settings);
    agent.grant(1, FEW, FEW);
    agent.limit_memory(256);
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    agent
}

/// So many clients, a few of them at a time, because each logs in.
async fn connected(agent: &Agent, count: u32) -> Vec<tokio_postgres::Client> {
    let config = agent.client_config();
    let connecting = (0..count).map(|_| async { connect(&config).await.unwrap() });
    futures::stream::iter(connecting).buffer_unordered(16).collect().await
}

/// A sidecar in plain text with few server connections.
fn crowd(packet_bytes: u32, clients: u32, packets: u32) -> SidecarLoad {
    SidecarLoad {
        poolers: 1,
        generation: generation(),
        servers: FEW,
        bundle: None,
        packet_bytes,
        packets: Packets::Of(packets),
        prepared: 0,
        prepared_per_server: 0,
        clients,
        client_tls: false,
    }
}

/// The whole is what the model says within 15 %, and what has come to it within 25 %: some of that goes where logins have left room.
fn as_modelled(agent: &Agent, before: (SidecarLoad, u64), load: SidecarLoad) {
    let measured = agent.memory();
    let (model, model_before) = (load.needed(), before.0.needed());
    let (added, model_added) = (measured.saturating_sub(before.1), model - model_before);
    println!(
        "{load:?}: {} KiB by the model, {} measured; {} KiB more by the model, {} measured",
        model >> 10,
        measured >> 10,
        model_added >> 10,
        added >> 10
    );
    for (model, measured, slack) in [(model, measured, 0.15), (model_added, added, 0.25)] {
        let ratio = model as f64 / measured as f64;
        assert!((ratio - 1.0).abs() <= slack, "{load:?}: {model} bytes by the model, {measured} measured");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn clients_that_wait_take_a_packet_buffer_each_as_the_model_says_within_15_percent() {
    let account = Account::shop();
    let postgres = Postgres::start().await;
    postgres.create(&account).await;
    for (packet_bytes, waiting) in [(4096, 420), (16_384, 220)] {
        let agent = crowded(&postgres, &account, packet_bytes).await;
        let busy = connected(&agent, FEW).await;
        for client in &busy {
            client.batch_execute("begin").await.unwrap();
        }
        let clients = connected(&agent, waiting).await;
        let resting = crowd(packet_bytes, waiting + FEW, 0);
        let before = (resting, agent.memory());
        let asking: Vec<_> = clients
            .into_iter()
            .map(|client| tokio::spawn(async move { client.batch_execute("select 1").await.map(|()| client) }))
            .collect();
        agent.until("they wait", |status| status.held.is_some_and(|held| held.waiting >= waiting)).await;
        as_modelled(&agent, before, crowd(packet_bytes, waiting + FEW, waiting));
        for client in &busy {
            client.batch_execute("commit").await.unwrap();
        }
        for asked in asking {
            asked.await.unwrap().expect("each is answered in the end");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn statements_that_clients_prepare_are_counted_by_the_agent_and_take_what_the_model_says_within_15_percent() {
    const CLIENTS: u32 = 150;
    const EACH: u32 = 150;
    let account = Account::shop();
    let postgres = Postgres::start().await;
    postgres.create(&account).await;
    let agent = crowded(&postgres, &account, 4096).await;
    let clients = connected(&agent, CLIENTS).await;
    // each server connection is open before
    let busy: Vec<_> = clients.iter().take(FEW as usize).collect();
    for client in &busy {
        client.batch_execute("begin").await.unwrap();
    }
    for client in &busy {
        client.batch_execute("commit").await.unwrap();
    }
    let needed = |status: &StatusReport| status.memory.map(|memory| memory.needed_bytes);
    let told = agent.until("clients are counted", |status| needed(status).is_some()).await;
    let before = (crowd(4096, CLIENTS, 0), agent.memory());
    let preparing = clients.iter().map(|client| async move {
        let mut statements = Vec::new();
        for number in 0..EACH {
            statements.push(client.prepare(&format!("select {number}")).await.unwrap());
        }
        statements
    });
    let kept: Vec<_> = futures::stream::iter(preparing).buffer_unordered(8).collect().await;
    let (prepared, prepared_per_server) = (CLIENTS * EACH, EACH);
    as_modelled(&agent, before, SidecarLoad { prepared, prepared_per_server, ..before.0 });
    let more = u64::from(prepared) * 100;
    let counted = |status: &StatusReport| needed(status) >= needed(&told).map(|before| before + more);
    agent.until("the agent counts them", counted).await;
    drop(kept);
}

/// Opens this many server connections at once, and lets go of them.
async fn open(agent: &Agent, count: u32) {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = connect(&agent.client_config()).await.unwrap();
        client.batch_execute("begin").await.unwrap();
        clients.push(client);
    }
    for client in &clients {
        client.batch_execute("commit").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn what_a_sidecar_takes_of_memory_is_what_the_model_says_within_15_percent() {
    let (issuer, root_pem) = root();
    let (between, certified) = from_between(&issuer, "127.0.0.1");
    let (postgres, account) = database(&certified).await;
    let one = format!("{between}{root_pem}");
    let whole = format!("{one}{}", strangers(STORE - 2));
    let generation = generation();
    let shown = Authority::new("of the pooler");
    for (bundle, servers, clients, client_tls) in
        [(None, 60, 0, false), (Some(&one), 60, 0, false), (Some(&whole), 20, 0, false), (Some(&one), 40, 150, true)]
    {
        let mut agent = match bundle {
            Some(bundle) => verifying(&postgres, &account, bundle, servers),
            None => Agent::new(postgres.port, &account),
        };
        agent.revise(1, &settings());
        agent.grant(1, servers, servers);
        let tls = client_tls.then(|| {
            let certified = shown.certify("127.0.0.1");
            agent.write("client-tls/tls.crt", &certified.certificate);
            agent.write("client-tls/tls.key", &certified.key);
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(shown.pem.as_bytes()).unwrap()).unwrap();
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let config = config.with_safe_default_protocol_versions().unwrap();
            Arc::new(config.with_root_certificates(roots).with_no_client_auth())
        });
        agent = agent.with(|injection| {
            injection.client.tls = if client_tls { ClientTlsMode::Allow } else { ClientTlsMode::Disabled };
        });
        agent.run();
        agent.until("the grant is in force", |status| status.seq == 1).await;
        open(&agent, servers).await;
        let target =
            Target { address: ([127, 0, 0, 1], agent.client_port()).into(), login: agent.client_config(), tls };
        let mut others = Clients::new();
        for _ in 0..clients {
            others.stay(&target, None, Duration::from_secs(2));
        }
        until("they are connected", async || (others.tally.connections() >= clients).then_some(())).await;
        agent.until("they are open", |status| status.held.is_some_and(|held| held.held == servers)).await;
        let load = SidecarLoad {
            poolers: 1,
            generation,
            servers,
            bundle: bundle.map(|bundle| Bundle {
                certificates: u32::try_from(bundle.matches("BEGIN").count()).unwrap(),
                pem_bytes: u32::try_from(bundle.len()).unwrap(),
            }),
            packet_bytes: 4096,
            packets: Packets::Of(0),
            prepared: 0,
            prepared_per_server: 0,
            clients: u32::try_from(clients).unwrap(),
            client_tls,
        };
        let (model, measured) = (load.needed(), agent.memory());
        let ratio = model as f64 / measured as f64;
        println!("{load:?}: {} KiB by the model, {} measured, {ratio:.2}", model >> 10, measured >> 10);
        assert!((ratio - 1.0).abs() <= 0.15, "{load:?}: {model} bytes by the model, {measured} measured");
        assert!(others.stop().await.failures().is_empty());
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn pgbouncer_is_given_the_one_ca_that_verifies_the_database_and_another_one_when_that_changes() {
    let (old, new) = (Authority::new("the old one"), Authority::new("the new one"));
    let (postgres, account) = database(&old.certify("127.0.0.1")).await;
    let bundle = format!("{}{}{}", strangers(20), old.pem, new.pem);
    let mut agent = verifying(&postgres, &account, &bundle, 3);
    agent.run();
    verified_by(&agent, Some("the old one")).await;
    let is_small = |status: &StatusReport| status.trust.as_ref().is_some_and(|trust| trust.certificates == 1);
    agent.until("each server connection has a copy of that one alone", is_small).await;
    reaches_anew(&agent, &postgres).await;
    assert_eq!(ca_file(&agent).as_deref(), Some(old.pem.as_str()));
    let (pooler, stays) = (agent.pooler_pid(), agent.client().await);
    postgres.reconfigure(&new.certify("127.0.0.1").files()).await;
    reaches_anew(&agent, &postgres).await;
    verified_by(&agent, Some("the new one")).await;
    calm(&agent).await;
    until("the file is that of the new one", async || (ca_file(&agent)? == new.pem).then_some(())).await;
    assert_eq!(value(&stays, "select 'the same connection'").await, "the same connection");
    assert_eq!(agent.pooler_pid(), pooler);
    // a container that restarts begins with it
    agent.crash().await;
    agent.run();
    agent.until("it serves again", |status| status.seq == 1 && status.message.is_empty()).await;
    verified_by(&agent, Some("the new one")).await;
    assert_eq!(agent.log().matches("one CA verifies the database").count(), 2, "nothing had to be found out");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_no_root_ca_verifies_the_database_alone_pgbouncer_has_the_whole_bundle_and_that_is_told() {
    let (issuer, root_pem) = root();
    let (between, certified) = from_between(&issuer, "127.0.0.1");
    let (postgres, account) = database(&certified).await;
    let bundle = format!("{}{between}{root_pem}", strangers(5));
    let mut agent = verifying(&postgres, &account, &bundle, 3);
    agent.run();
    let whole = |status: &StatusReport| status.trust.as_ref().is_some_and(|trust| trust.whole.is_some());
    let trust = agent.until("it is told", whole).await.trust.unwrap();
    assert_eq!((trust.certificates, trust.ca), (7, None));
    let why = trust.whole.unwrap();
    assert!(why.contains("all 7 CAs") && why.contains("no root CA of the bundle alone"), "{why}");
    reaches_anew(&agent, &postgres).await;
    assert_eq!(ca_file(&agent), Some(bundle));
    calm(&agent).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_ca_that_pgbouncer_does_not_accept_gives_way_to_the_next_one() {
    let (unfit, fit, issuer) = twins("of both");
    let (postgres, account) = database(&server(&issuer, "127.0.0.1")).await;
    let mut agent = verifying(&postgres, &account, &format!("{unfit}{fit}{}", strangers(4)), 3);
    agent.run();
    agent.until("the grant is in force", |status| status.seq == 1).await;
    until("the one that it accepts", async || (ca_file(&agent)? == fit).then_some(())).await;
    reaches_anew(&agent, &postgres).await;
    calm(&agent).await;
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn the_limit_stays_within_what_the_containers_memory_has_room_for_and_grows_with_it() {
    let (issuer, root_pem) = root();
    let (between, certified) = from_between(&issuer, "127.0.0.1");
    let (postgres, account) = database(&certified).await;
    let bundle = format!("{between}{root_pem}{}", strangers(STORE - 2));
    let mut agent = verifying(&postgres, &account, &bundle, 100);
    agent.limit_memory(64);
    agent.run();
    let status = agent.until("the grant is in force", |status| status.seq == 1).await;
    let memory = agent.until("its memory is told", |status| status.memory.is_some()).await.memory.unwrap();
    assert!((20..90).contains(&memory.allows) && memory.holds_back, "{memory:?}");
    assert!(memory.needed_bytes > memory.limit_bytes && memory.limit_needed_bytes > memory.limit_bytes);
    assert!(status.limits.unwrap().pool_size <= memory.allows, "{:?} {memory:?}", status.limits);
    assert_eq!(agent.metric("sluice_memory_allows{"), Some(f64::from(memory.allows)));
    agent.limit_memory(512);
    let grown = |status: &StatusReport| status.limits.is_some_and(|limits| limits.pool_size == 100);
    let status = agent.until("the limit is the share", grown).await;
    assert!(!status.memory.unwrap().holds_back);
}
