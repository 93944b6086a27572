//! The load generator of the benchmarks, against servers that fail in every way.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::Config;
use tokio_rustls::TlsAcceptor;

use super::{
    load::{Clients, Failure, Kind, Stage, Tally, Target, visit},
    rig::until,
};

const READY: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const ROW: &[u8] = b"T\0\0\0\x21\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0c\0\x01\0\0\0\x0242C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

async fn startup(stream: &mut (impl AsyncRead + Unpin)) {
    let length = stream.read_u32().await.unwrap();
    stream.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
}

async fn query(stream: &mut (impl AsyncRead + Unpin)) {
    text_of_query(stream).await;
}

async fn text_of_query(stream: &mut (impl AsyncRead + Unpin)) -> String {
    assert_eq!(stream.read_u8().await.unwrap(), b'Q');
    let length = stream.read_u32().await.unwrap();
    let mut text = vec![0; length as usize - 4];
    stream.read_exact(&mut text).await.unwrap();
    String::from_utf8(text).unwrap().trim_end_matches('\0').to_owned()
}

fn reset(stream: &TcpStream) {
    // closing with unsent data and no linger sends RST
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

async fn met<F: Future<Output = ()> + Send + 'static>(
    server: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { server(listener.accept().await.unwrap().0).await });
    let answer = visit(&target(address), &Tally::default()).await;
    task.await.unwrap();
    answer
}

fn target(address: SocketAddr) -> Target {
    let mut login = Config::new();
    login.user("shop").dbname("shop");
    Target { address, login, tls: None }
}

fn failure(stage: Stage, kind: Kind) -> Result<(), Failure> {
    Err(Failure { stage, kind })
}

#[tokio::test]
async fn a_refused_connection_counts_as_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(visit(&target(address), &Tally::default()).await, failure(Stage::Connect, Kind::Refused));
}

#[tokio::test]
async fn resets_and_closings_are_told_apart_at_every_stage() {
    let at_startup = met(|mut stream| async move {
        startup(&mut stream).await;
        reset(&stream);
    });
    assert_eq!(at_startup.await, failure(Stage::Startup, Kind::Reset));
    let closed = met(|mut stream| async move { startup(&mut stream).await });
    assert_eq!(closed.await, failure(Stage::Startup, Kind::Closed));
    let in_query = met(|mut stream| async move {
        startup(&mut stream).await;
        stream.write_all(READY).await.unwrap();
        query(&mut stream).await;
    });
    assert_eq!(in_query.await, failure(Stage::Query, Kind::Closed));
}

#[tokio::test]
async fn a_truncated_answer_is_no_answer() {
    let truncated = met(|mut stream| async move {
        startup(&mut stream).await;
        stream.write_all(READY).await.unwrap();
        query(&mut stream).await;
        stream.write_all(&ROW[..40]).await.unwrap();
    });
    assert_eq!(truncated.await, failure(Stage::Query, Kind::Closed));
}

#[tokio::test]
async fn an_error_counts_by_its_code_and_a_right_answer_does_not_count_as_one() {
    let refused = met(|mut stream| async move {
        startup(&mut stream).await;
        stream.write_all(b"E\0\0\0\x24SFATAL\0C57P03\0Mstarting up now\0\0").await.unwrap();
    });
    assert_eq!(refused.await, failure(Stage::Startup, Kind::Error("57P03".to_owned())));
    let right = met(|mut stream| async move {
        startup(&mut stream).await;
        stream.write_all(READY).await.unwrap();
        query(&mut stream).await;
        stream.write_all(ROW).await.unwrap();
    });
    assert_eq!(right.await, Ok(()));
}

#[tokio::test]
async fn a_client_that_works_asks_until_it_fails_and_its_failures_count() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tally = Arc::<Tally>::default();
    let mut clients = Clients::with(tally.clone());
    clients.work(&target(listener.local_addr().unwrap()), Duration::from_millis(1));
    let (mut stream, _) = listener.accept().await.unwrap();
    drop(listener);
    startup(&mut stream).await;
    stream.write_all(READY).await.unwrap();
    for _ in 0..3 {
        query(&mut stream).await;
        stream.write_all(ROW).await.unwrap();
    }
    drop(stream);
    until("it has met a refusal", async || (tally.failures().len() == 2).then_some(())).await;
    let failures = clients.stop().await.failures();
    let query = |kind| failures.get(&Failure { stage: Stage::Query, kind }).copied().unwrap_or(0);
    assert_eq!((tally.connections(), tally.queries()), (1, 3));
    assert_eq!(query(Kind::Closed) + query(Kind::Reset), 1, "{failures:?}");
    assert!(failures.contains_key(&Failure { stage: Stage::Connect, kind: Kind::Refused }), "{failures:?}");
}

#[tokio::test]
async fn a_client_that_executes_what_it_prepared_by_sql_asks_for_nothing_else_and_counts_what_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tally = Arc::<Tally>::default();
    let mut clients = Clients::with(tally.clone());
    clients.execute(&target(listener.local_addr().unwrap()), Duration::ZERO);
    let (mut stream, _) = listener.accept().await.unwrap();
    startup(&mut stream).await;
    stream.write_all(READY).await.unwrap();
    assert_eq!(text_of_query(&mut stream).await, "prepare answer as select 42");
    stream.write_all(b"C\0\0\0\x0cPREPARE\0Z\0\0\0\x05I").await.unwrap();
    for _ in 0..3 {
        assert_eq!(text_of_query(&mut stream).await, "execute answer");
        stream.write_all(ROW).await.unwrap();
    }
    assert_eq!(text_of_query(&mut stream).await, "execute answer");
    stream.write_all(b"E\0\0\0\x23SERROR\0C26000\0Mdoes not exist\0\0Z\0\0\0\x05I").await.unwrap();
    let failed = Failure { stage: Stage::Query, kind: Kind::Error("26000".to_owned()) };
    until("its failure is counted", async || tally.failures().contains_key(&failed).then_some(())).await;
    drop((stream, listener));
    clients.stop().await;
    assert_eq!(tally.queries(), 3);
}

/// A client that trusts `roots` and nobody else.
fn trusting(roots: RootCertStore) -> Arc<ClientConfig> {
    let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = versions.with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

#[tokio::test]
async fn tls_that_is_refused_or_cut_counts_as_such() {
    for (answer, kind) in [(b"N", Kind::NoTls), (b"S", Kind::Closed)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wants_tls =
            Target { tls: Some(trusting(RootCertStore::empty())), ..target(listener.local_addr().unwrap()) };
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(answer).await.unwrap();
            // with what came after, so that closing is no reset
            let _ = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0; 4096])).await;
        };
        let (met, ()) = tokio::join!(visit_once(&wants_tls), server);
        assert_eq!(met, failure(Stage::Startup, kind));
    }
}

async fn visit_once(target: &Target) -> Result<(), Failure> {
    visit(target, &Tally::default()).await
}

#[tokio::test]
async fn a_right_answer_over_tls_counts_with_the_time_that_it_took() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let server = versions.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = signing_key.serialize_der().try_into().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server.with_single_cert(vec![cert.der().clone()], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let wants_tls = Target { tls: Some(trusting(roots)), ..target(listener.local_addr().unwrap()) };
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        stream.write_all(b"S").await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        startup(&mut stream).await;
        stream.write_all(READY).await.unwrap();
        query(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(ROW).await.unwrap();
        // until the client has gone
        let _ = stream.read(&mut [0; 64]).await;
    };
    let tally = Tally::default();
    let (met, ()) = tokio::join!(visit(&wants_tls, &tally), serve);
    assert_eq!((met, tally.connections(), tally.queries()), (Ok(()), 1, 1));
    let visits: Vec<(u64, u64)> = tally.visits().into_iter().collect();
    let [(microseconds, 1)] = visits[..] else { panic!("{visits:?}") };
    assert!(microseconds >= 50_000 && microseconds % 1000 == 0, "two digits: {microseconds}");
    assert_eq!(tally.failures(), BTreeMap::new());
}
