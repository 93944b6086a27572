//! The load generator of the benchmarks, against servers that fail in every way.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::Config;

use super::load::{Failure, Kind, Stage, Tally, Target, visit};

const READY: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const ROW: &[u8] = b"T\0\0\0\x21\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0c\0\x01\0\0\0\x0242C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

async fn startup(stream: &mut TcpStream) {
    let length = stream.read_u32().await.unwrap();
    stream.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
}

async fn query(stream: &mut TcpStream) {
    assert_eq!(stream.read_u8().await.unwrap(), b'Q');
    let length = stream.read_u32().await.unwrap();
    stream.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
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
    Target { address, login }
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
