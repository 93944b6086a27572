//! Where the pooler asks for the database's address: a name server on loopback that asks those of the pod, and remembers.
//!
//! PgBouncer looks a name up again after `dns_max_ttl`. On its own that goes wrong in two ways. When no name server answers, or one
//! fails, it has no address at all and opens no server connection, although the database is where it was. And c-ares, which asks for
//! it, keeps an answer for as long as the answer says, which may be an hour. So what the pooler is given is the last answer that
//! was good, with no time to live, whenever there is no fresh one.
//!
//! When nobody listens here, as for a moment while the agent is started again, the pooler asks the pod's name servers itself.

pub mod packet;

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use packet::{Question, Said};
use parking_lot::Mutex;
use tokio::{
    net::UdpSocket,
    sync::{Semaphore, mpsc},
    time::{Instant, timeout},
};

use crate::{
    agent::{apply::files::write_whole, decide::troubles::Heard},
    contract::PoolerError,
};

/// The pod's own configuration.
const SYSTEM: &str = "/etc/resolv.conf";
/// Name of the pooler's.
const FILE: &str = "resolv.conf";
/// Port of name servers.
const PORT: u16 = 53;
/// How long one name server may take.
const DEADLINE: Duration = Duration::from_secs(1);
/// Who can be given an earlier answer waits at most so long for a fresh one: c-ares asks elsewhere after 250 ms.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often each name server is asked for one answer.
const ROUNDS: usize = 2;
/// An answer is not given any more after so long (RFC 8767, 4: one to three days).
const OLDEST: Duration = Duration::from_hours(24);
/// Answers that are kept: the name with each suffix that is searched, for each family of addresses.
const MOST_KEPT: usize = 64;
/// Questions at once.
const MOST_AT_ONCE: usize = 32;
/// Longest message.
const LONGEST: usize = 4096;

struct Kept {
    answer: Vec<u8>,
    at: Instant,
}

struct Resolver {
    servers: Vec<SocketAddr>,
    kept: Mutex<HashMap<Question, Kept>>,
    errors: mpsc::Sender<Heard>,
}

/// Listens, and writes the configuration that leads the pooler here; its path. None, with a line in the log: the pooler asks as it
/// would without us.
pub async fn start(run_dir: &Path, port: u16, errors: mpsc::Sender<Heard>) -> Option<PathBuf> {
    let file = run_dir.join(FILE);
    let system = fs::read_to_string(SYSTEM).inspect_err(|error| tracing::warn!("reading {SYSTEM}: {error}")).ok()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let servers = name_servers(&system);
    if servers.is_empty() {
        tracing::warn!("{SYSTEM} names no name server");
        return None;
    }
    if let Err(error) = write_whole(&file, configuration(&system, address).as_bytes()) {
        tracing::warn!("writing {}: {error}", file.display());
        return None;
    }
    match UdpSocket::bind(address).await {
        Ok(socket) => {
            let resolver = Resolver { servers, kept: Mutex::default(), errors };
            tokio::spawn(serve(Arc::new(socket), Arc::new(resolver)));
        }
        // the pooler goes on to the pod's name servers
        Err(error) => tracing::warn!("answering names at {address}: {error}"),
    }
    Some(file)
}

/// The same with our address before those of the pod's name servers.
fn configuration(system: &str, address: SocketAddr) -> String {
    let lines = system.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
    let lines = std::iter::once(format!("nameserver {address}")).chain(lines.map(str::to_owned));
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

fn name_servers(system: &str) -> Vec<SocketAddr> {
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        let with_port = || address.parse::<SocketAddr>().ok();
        address.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT)).or_else(with_port)
    };
    system.lines().filter_map(of).collect()
}

async fn serve(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let mut packet = vec![0; LONGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(error) => {
                // of an answer that nobody waited for any more; whatever it is, it must not become a loop without a pause
                tracing::debug!("receiving a question for a name: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        // who gets no answer asks again
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (socket, resolver, query) = (socket.clone(), resolver.clone(), packet[..length].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = resolver.answer(&query).await
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::debug!("answering a question for a name: {error}");
            }
            drop(place);
        });
    }
}

impl Resolver {
    /// A fresh answer, else the last good one, else that there is none.
    async fn answer(self: Arc<Self>, query: &[u8]) -> Option<Vec<u8>> {
        let question = packet::question(query)?;
        let before = self.remembered(&question, query);
        // it goes on when nobody waits any more, so that the next one is given what it finds
        let refreshed = tokio::spawn(self.clone().refresh(question, query.to_owned()));
        match before {
            None => refreshed.await.ok()?.or_else(|| packet::failure(query)),
            Some(before) => match timeout(PATIENCE, refreshed).await {
                Ok(Ok(Some(fresh))) => Some(fresh),
                _ => Some(before),
            },
        }
    }

    fn remembered(&self, question: &Question, query: &[u8]) -> Option<Vec<u8>> {
        let kept = self.kept.lock();
        let kept = kept.get(question).filter(|kept| kept.at.elapsed() < OLDEST)?;
        Some(packet::again(&kept.answer, query))
    }

    /// Asks the pod's name servers, and keeps what they say.
    async fn refresh(self: Arc<Self>, question: Question, query: Vec<u8>) -> Option<Vec<u8>> {
        for server in (0..ROUNDS).flat_map(|_| &self.servers) {
            let said = timeout(DEADLINE, ask(*server, &query)).await;
            if let Ok(Ok(Said::Answer(answer))) = said {
                self.keep(question, &answer);
                return Some(answer);
            }
        }
        // when nobody counts, nobody misses it
        let _ = self.errors.try_send(Heard { from: None, logged: PoolerError::NameServerFailed.into() });
        None
    }

    fn keep(&self, question: Question, answer: &[u8]) {
        let mut kept = self.kept.lock();
        if kept.len() >= MOST_KEPT && !kept.contains_key(&question) {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.at).map(|(question, _)| question.clone());
            oldest.map(|oldest| kept.remove(&oldest));
        }
        kept.insert(question, Kept { answer: answer.to_owned(), at: Instant::now() });
    }
}

async fn ask(server: SocketAddr, query: &[u8]) -> std::io::Result<Said> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // a port of its own for each question, and answers of this server alone
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut message = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut message).await?;
        if let Some(said) = packet::read(query, &message[..length]) {
            return Ok(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str = "# of the kubelet\nsearch shop.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n\
                          nameserver fd00::10\nnameserver [::1]:5353\nnameserver nobody\noptions ndots:5\n";

    #[test]
    fn the_pooler_asks_us_first_and_searches_as_the_pod_does() {
        let text = configuration(SYSTEM, SocketAddr::from(([127, 0, 0, 1], 5432)));
        assert!(text.starts_with("nameserver 127.0.0.1:5432\nsearch shop.svc.cluster.local"), "{text}");
        assert!(text.contains("nameserver 10.96.0.10\n") && text.ends_with("options ndots:5\n"), "{text}");
    }

    #[test]
    fn name_servers_are_read_with_and_without_a_port() {
        let expected = ["10.96.0.10:53", "[fd00::10]:53", "[::1]:5353"].map(|address| address.parse().unwrap());
        assert_eq!(name_servers(SYSTEM), expected);
        assert!(name_servers("search nowhere\n").is_empty());
    }
}
