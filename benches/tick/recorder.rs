//! Stands between the reader and Prometheus: keeps each answer, and gives the same answers again without Prometheus.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::Failure;

/// The answers to one query, in the order asked, and how many of them were given again.
#[derive(Default)]
struct Answers {
    kept: Vec<Arc<Vec<u8>>>,
    given: usize,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Answers>,
    replays: bool,
}

/// A recorder on a port of its own, for as long as the process lives.
pub struct Recorder {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Recorder {
    /// Records what this Prometheus answers.
    pub fn start(upstream: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = shared.clone();
                // a connection that ends is its client's matter
                thread::spawn(move || serve(connection, upstream, &shared));
            }
        });
        Ok(Self { address, state })
    }

    /// From now on gives what was recorded, in the same order.
    pub fn replay(&self) -> Result<(), Failure> {
        self.state.lock().map_err(|_| "the recorder broke")?.replays = true;
        Ok(())
    }
}

/// Answers the requests of one connection. None: it ended.
fn serve(connection: TcpStream, upstream: SocketAddr, state: &Mutex<State>) -> Option<()> {
    let mut requests = BufReader::new(connection.try_clone().ok()?);
    let mut connection = connection;
    // head and body are two writes: the second must not wait for an acknowledgement
    connection.set_nodelay(true).ok()?;
    loop {
        let mut path = String::new();
        requests.read_line(&mut path).ok().filter(|read| *read > 0)?;
        let path = path.split(' ').nth(1)?.to_owned();
        let mut line = String::new();
        while requests.read_line(&mut line).is_ok_and(|read| read > 0) && line != "\r\n" {
            line.clear();
        }
        let query = path.split(['?', '&']).find(|part| part.starts_with("query="))?.to_owned();
        let again = {
            let mut state = state.lock().ok()?;
            let replays = state.replays;
            let answers = state.answers.entry(query.clone()).or_default();
            answers.given += usize::from(replays);
            replays.then(|| answers.kept.get(answers.given - 1).cloned())
        };
        let body = if let Some(body) = again {
            body?
        } else {
            let body = Arc::new(ask(upstream, &path)?);
            state.lock().ok()?.answers.get_mut(&query)?.kept.push(body.clone());
            body
        };
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.write_all(head.as_bytes()).ok()?;
        connection.write_all(&body).ok()?;
    }
}

/// The body of Prometheus' answer: with HTTP/1.0 it ends with the connection.
fn ask(upstream: SocketAddr, path: &str) -> Option<Vec<u8>> {
    let mut connection = TcpStream::connect(upstream).ok()?;
    write!(connection, "GET {path} HTTP/1.0\r\nhost: {upstream}\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).ok()?;
    let end_of_head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    Some(answer.split_off(end_of_head + 4))
}
