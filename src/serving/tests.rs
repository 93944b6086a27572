//! Real sockets of loopback.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

use super::*;

/// Nothing here may take longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than any test.
const LONG: Duration = Duration::from_mins(2);
const PATIENT: ServingBounds =
    ServingBounds { connections: 8, handshake: LONG, head: LONG, request: LONG, idle: LONG, buffer_bytes: 8 << 10 };
const SHORT: Duration = Duration::from_millis(100);

const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
const FRIEND: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Served {
    address: SocketAddr,
    drain: Drain,
    task: JoinHandle<()>,
    /// `/slow` answers when this is told.
    answer: Arc<Notify>,
    /// Told when `/slow` was asked.
    asked: Arc<Notify>,
}

async fn serve(bounds: ServingBounds) -> Served {
    serve_by(bounds, None).await
}

async fn serve_by(bounds: ServingBounds, tls: Option<TlsIdentity>) -> Served {
    let (answer, asked) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (answered, heard) = (answer.clone(), asked.clone());
    let slow = move || async move {
        heard.notify_one();
        answered.notified().await;
        "late\n"
    };
    let routes = Router::new().route("/", get(|| async { "ok\n" })).route("/slow", get(slow));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let drain = Drain::default();
    let server = HttpServer::new(listener, routes, bounds);
    let server = if let Some(tls) = tls { server.with_tls(tls) } else { server };
    let task = tokio::spawn(server.run(drain.clone()));
    Served { address, drain, task, answer, asked }
}

impl Served {
    async fn connect(&self, from: IpAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from, 0)).expect("a local address");
        let connected = timeout(DEADLINE, socket.connect(self.address)).await.expect("in time");
        connected.expect("connected")
    }
}

/// Sends this and reads until the answer is whole or the connection ends; what came.
async fn say(stream: &mut TcpStream, text: &str) -> String {
    let _ = stream.write_all(text.as_bytes()).await;
    heard(stream).await
}

async fn heard(stream: &mut TcpStream) -> String {
    let mut came = Vec::new();
    let mut part = [0; 1024];
    while !came.ends_with(b"ok\n") && !came.ends_with(b"late\n") {
        match timeout(DEADLINE, stream.read(&mut part)).await.expect("in time") {
            Ok(0) | Err(_) => break,
            Ok(length) => came.extend_from_slice(&part[..length]),
        }
    }
    String::from_utf8(came).expect("text")
}

/// Waits until the other side closes; for how long that took.
async fn closed(stream: &mut TcpStream) -> Duration {
    let began = Instant::now();
    let mut part = [0; 1024];
    while !matches!(timeout(DEADLINE, stream.read(&mut part)).await.expect("in time"), Ok(0) | Err(_)) {}
    began.elapsed()
}

fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

const ASK: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const ASK_SLOWLY: &str = "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn any_number_of_idle_connections_of_one_source_take_the_places_there_are_and_nobody_elses() {
    let served = serve(PATIENT).await;
    let mut friend = served.connect(FRIEND).await;
    assert!(say(&mut friend, ASK).await.ends_with("ok\n"));
    let mut strangers = Vec::new();
    for number in 0..200 {
        let mut stream = served.connect(STRANGER).await;
        if number % 3 == 0 {
            stream.write_all(b"GET / HT").await.expect("written"); // some never end what they began to ask
        }
        strangers.push(stream);
    }
    assert!(say(&mut friend, ASK).await.ends_with("ok\n"), "the connection that stood before still stands");
    let mut other = served.connect(FRIEND).await;
    assert!(say(&mut other, ASK).await.ends_with("ok\n"), "and there is a place for another");
    for closed_one in &mut strangers[..150] {
        closed(closed_one).await;
    }
    let left = strangers.iter().filter(|stream| is_open(stream)).count();
    assert!(left <= PATIENT.connections - 2, "{left} idle connections");
}

#[tokio::test]
async fn a_stranger_that_is_answered_on_every_place_gives_one_up_to_another_source() {
    let served = serve(PATIENT).await;
    let mut strangers = Vec::new();
    for _ in 0..PATIENT.connections {
        let mut stream = served.connect(STRANGER).await;
        stream.write_all(ASK_SLOWLY.as_bytes()).await.expect("written");
        timeout(DEADLINE, served.asked.notified()).await.expect("asked");
        strangers.push(stream);
    }
    let mut one_more = served.connect(STRANGER).await;
    closed(&mut one_more).await;
    let mut friend = served.connect(FRIEND).await;
    assert!(say(&mut friend, ASK).await.ends_with("ok\n"));
    assert_eq!(strangers.iter().filter(|stream| is_open(stream)).count(), PATIENT.connections - 1);
}

#[tokio::test]
async fn each_step_of_a_connection_has_its_time() {
    let served = serve(ServingBounds { idle: SHORT, ..PATIENT }).await;
    let mut idle = served.connect(FRIEND).await;
    assert!(closed(&mut idle).await >= SHORT / 2, "nothing was asked");
    let mut asked = served.connect(FRIEND).await;
    assert!(say(&mut asked, ASK).await.ends_with("ok\n"));
    closed(&mut asked).await; // nothing more was asked

    let served = serve(ServingBounds { head: SHORT, ..PATIENT }).await;
    let mut slow = served.connect(FRIEND).await;
    assert_eq!(say(&mut slow, "GET / HTTP/1.1\r\nho").await, "", "a head that does not end");
    let mut second = served.connect(FRIEND).await;
    assert!(say(&mut second, ASK).await.ends_with("ok\n"));
    assert_eq!(say(&mut second, "GET").await, "", "nor does the second one");

    let served = serve(ServingBounds { request: SHORT, ..PATIENT }).await;
    let mut slow = served.connect(FRIEND).await;
    assert_eq!(say(&mut slow, ASK_SLOWLY).await, "", "an answer that does not come");

    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let identity = TlsIdentity::from_pem(&key.cert.pem(), &key.signing_key.serialize_pem()).expect("a pair");
    let served = serve_by(ServingBounds { handshake: SHORT, ..PATIENT }, Some(identity)).await;
    let mut silent = served.connect(FRIEND).await;
    assert!(closed(&mut silent).await >= SHORT / 2, "no handshake");
}

#[tokio::test]
async fn a_head_has_a_length() {
    let served = serve(PATIENT).await;
    let mut stream = served.connect(FRIEND).await;
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(32 << 10));
    let answer = say(&mut stream, &long).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn a_server_that_drains_answers_whoever_comes_and_sends_each_on_and_ends_with_the_last_answer() {
    let Served { address, drain, task, answer, asked } = serve(PATIENT).await;
    let served = Served { address, drain: drain.clone(), task: tokio::spawn(async {}), answer, asked };
    let mut kept = served.connect(FRIEND).await;
    let before = say(&mut kept, ASK).await;
    assert!(!before.contains("connection: close"), "{before}");
    let mut idle = served.connect(FRIEND).await;
    drain.begin();
    let answer = say(&mut kept, ASK).await;
    assert!(answer.contains("connection: close") && answer.ends_with("ok\n"), "{answer}");
    closed(&mut kept).await;
    let mut new = served.connect(FRIEND).await;
    assert!(say(&mut new, ASK).await.ends_with("ok\n"), "it still accepts");
    let mut slow = served.connect(FRIEND).await;
    slow.write_all(ASK_SLOWLY.as_bytes()).await.expect("written");
    timeout(DEADLINE, served.asked.notified()).await.expect("asked");
    drain.end();
    closed(&mut idle).await;
    let refused = timeout(DEADLINE, TcpStream::connect(address)).await.expect("in time");
    assert!(refused.is_err(), "the port is closed");
    assert!(!task.is_finished(), "somebody is being answered");
    served.answer.notify_one();
    assert!(heard(&mut slow).await.ends_with("late\n"));
    timeout(DEADLINE, task).await.expect("in time").expect("ended");
}
