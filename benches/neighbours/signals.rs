//! What stands between the operator and its load: a query that takes long and returns much, and a pod whose series are forged.
//!
//! All other answers go through as bytes, one connection each, and are not looked at: they are tens of megabytes a tick, and what is
//! spent on them here is missing on the cores that are measured.

use std::{
    fmt::Write as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, extract::State, routing::get};
use parking_lot::Mutex;
use sluice::contract::metrics;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_buf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use super::TENANT;
use crate::{Failure, fleet::pool_name};

/// Where the operator finds its Prometheus.
pub const FRONT: &str = "127.0.0.1:9092";
/// Where Prometheus reads the pod that forges.
pub const FORGER: &str = "127.0.0.1:9901";
/// The series that the user's own query is about.
pub const OWN_SERIES: &str = "tenant_waiting";
/// How long its answer takes.
const ANSWER_AFTER: Duration = Duration::from_secs(30);
/// How large it is then.
const ANSWER_MEBIBYTES: usize = 64;
/// Largest question of the operator that is let through, in bytes.
const LARGEST_QUESTION: usize = 1 << 20;
/// What is taken from an answer at once, in bytes.
const PIECE: usize = 256 << 10;
/// Stands for the time of the scrape on a forged page.
const NOW: &str = "@now@";

/// A Prometheus that one query holds up, and a pod that forges.
pub struct Signals {
    behind: String,
    is_slow: AtomicBool,
    forged: Mutex<Arc<str>>,
    unlimited: Mutex<Arc<str>>,
}

impl Signals {
    /// In front of the Prometheus at this address. It serves as long as the tasks live.
    pub async fn start(behind: &str, tasks: &mut JoinSet<()>) -> Result<Arc<Self>, Failure> {
        let signals = Arc::new(Self {
            behind: behind.to_owned(),
            is_slow: AtomicBool::default(),
            forged: Mutex::new(Arc::from("")),
            unlimited: Mutex::new(Arc::from("")),
        });
        let forger = TcpListener::bind(FORGER).await?;
        let pages = Router::new()
            .route("/metrics", get(forged))
            .route("/unlimited", get(unlimited))
            .with_state(signals.clone());
        tasks.spawn(async move {
            let _ = axum::serve(forger, pages).await;
        });
        let front = TcpListener::bind(FRONT).await?;
        let between = signals.clone();
        tasks.spawn(async move {
            let mut questions = JoinSet::new();
            while let Ok((asking, _)) = front.accept().await {
                while questions.try_join_next().is_some() {}
                let signals = between.clone();
                // whoever gives up has its own reasons
                questions.spawn(async move { signals.pass(asking).await.is_ok() });
            }
        });
        Ok(signals)
    }

    /// Whether the user's own query takes long and returns much.
    pub fn slow(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }

    /// How many series the pod forges where it is scraped with limits, and where it is scraped without.
    pub fn forge(&self, series: usize, unlimited: usize) {
        *self.forged.lock() = Arc::from(forge(series));
        *self.unlimited.lock() = Arc::from(forge(unlimited));
    }

    /// One question, and its answer as it comes.
    async fn pass(&self, mut asking: TcpStream) -> io::Result<()> {
        let question = question(&mut asking).await?;
        let is_own = String::from_utf8_lossy(&question).contains(OWN_SERIES);
        if is_own && self.is_slow.load(Ordering::Relaxed) {
            sleep(ANSWER_AFTER).await;
            return much(&mut asking).await;
        }
        let mut behind = TcpStream::connect(&self.behind).await?;
        behind.write_all(&question).await?;
        copy_buf(&mut BufReader::with_capacity(PIECE, behind), &mut asking).await?;
        asking.shutdown().await
    }
}

/// A question, with the wish that the connection ends with its answer: so nobody needs to know where that ends.
async fn question(asking: &mut TcpStream) -> io::Result<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut question = Vec::new();
    let body_at = loop {
        if let Some(at) = question.windows(END.len()).position(|bytes| bytes == END) {
            break at + END.len();
        }
        read(asking, &mut question).await?;
    };
    let head = String::from_utf8_lossy(&question[..body_at]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    while question.len() < body_at + length {
        read(asking, &mut question).await?;
    }
    let last_line = body_at - END.len() + 2;
    question.splice(last_line..last_line, *b"connection: close\r\n");
    Ok(question)
}

async fn read(asking: &mut TcpStream, question: &mut Vec<u8>) -> io::Result<()> {
    if asking.read_buf(question).await? == 0 || question.len() > LARGEST_QUESTION {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// A vector of so many series that it is as large as it is said to be.
async fn much(asking: &mut TcpStream) -> io::Result<()> {
    const SERIES: usize = 1024;
    let mut piece = String::new();
    for number in 0..SERIES {
        // writing to a String cannot fail
        let _ = write!(piece, r#"{{"metric":{{"series":"{number:0950}"}},"value":[1,"1"]}},"#);
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    asking.write_all(head.as_bytes()).await?;
    asking.write_all(br#"{"status":"success","data":{"resultType":"vector","result":["#).await?;
    for _ in 0..ANSWER_MEBIBYTES * (1 << 20) / piece.len() {
        asking.write_all(piece.as_bytes()).await?;
    }
    asking.write_all(br#"{"metric":{},"value":[1,"1"]}]}}"#).await?;
    asking.shutdown().await
}

async fn forged(State(signals): State<Arc<Signals>>) -> String {
    let page = signals.forged.lock().clone();
    dated(&page)
}

async fn unlimited(State(signals): State<Arc<Signals>>) -> String {
    let page = signals.unlimited.lock().clone();
    dated(&page)
}

fn dated(page: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    page.replace(NOW, &now.to_string())
}

/// A pod's page: series of the agent's, each of another pool or with another label; half of them for pools of another namespace.
fn forge(series: usize) -> String {
    let names = [
        metrics::SAMPLE_TIME,
        metrics::SERVER_CONNECTIONS,
        metrics::CLIENT_CONNECTIONS,
        metrics::TRANSACTIONS,
        metrics::BUSY_SECONDS,
        metrics::WAIT_SECONDS,
        metrics::LIMIT,
        metrics::SHARE,
    ];
    let mut page = String::new();
    for number in 0..series {
        let namespace = if number % 2 == 0 { TENANT } else { super::OTHERS };
        let (name, pool) = (names[number % names.len()], pool_name(number % 1000));
        let value = if name == metrics::SAMPLE_TIME { NOW } else { "1000000" };
        // writing to a String cannot fail
        let _ = writeln!(
            page,
            "{name}{{pool_namespace=\"{namespace}\",pool=\"{pool}\",state=\"active\",forged=\"{number}\"}} {value}"
        );
    }
    page
}
