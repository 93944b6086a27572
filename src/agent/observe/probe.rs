//! A look whether the database serves anybody: a login up to the question for the password.
//!
//! It is asked as PgBouncer asks, at an address that PgBouncer has. What is answered before the password occupies none of the server's
//! connections and none of the role's, so it needs no place in the share, and can be asked while the pool is full.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::handshake::client_config;
use crate::{
    contract::{PoolerError, ServerTlsMode, Upstream},
    pooler::pgbouncer::console::SSL_REQUEST,
};

/// How long it may take: as long as PgBouncer waits for a connection.
const DEADLINE: Duration = Duration::from_secs(3);
/// What took so much longer was late for want of CPU.
const LATE: Duration = Duration::from_millis(500);
/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 196_608;
/// Longest answer that is read.
const LONGEST: usize = 16 << 10;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeFinding {
    /// Somebody who serves, or refuses somebody for who he is.
    Answered,
    /// Nobody, or somebody who serves nobody, in words.
    Away(String),
    /// Nothing, in words.
    Unclear(String),
}

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct DatabaseProbe {
    /// Where PgBouncer finds the database.
    pub addresses: Vec<IpAddr>,
    /// What is fixed for the pod.
    pub upstream: Upstream,
    /// All that may verify its certificate.
    pub bundle: Vec<u8>,
    /// The role.
    pub user: String,
}

impl DatabaseProbe {
    /// Asks at all addresses at once: one that answers is enough.
    pub async fn ask(self) -> ProbeFinding {
        let began = Instant::now();
        if self.addresses.is_empty() {
            return ProbeFinding::Away(format!("the name {} does not resolve", self.upstream.host));
        }
        let mut asked: FuturesUnordered<_> = self.addresses.iter().map(|address| self.ask_at(*address)).collect();
        let mut met = Vec::new();
        let mut found = None;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(answered) => {
                    found = Some(answered);
                    break;
                }
                Err(why) => met.push(why),
            }
        }
        // the same one each time, whoever was faster
        met.sort();
        match found.unwrap_or_else(|| ProbeFinding::Away(met.into_iter().next().unwrap_or_default())) {
            ProbeFinding::Away(why) if began.elapsed() > DEADLINE + LATE => {
                ProbeFinding::Unclear(format!("{why}, asked by an agent that lacks CPU"))
            }
            found => found,
        }
    }

    async fn ask_at(&self, address: IpAddr) -> Result<ProbeFinding, String> {
        let socket = SocketAddr::new(address, self.upstream.port);
        match timeout(DEADLINE, self.meet(socket)).await {
            Ok(Ok(ProbeFinding::Away(why))) => Err(format!("{socket}: {why}")),
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(format!("{socket}: {error}")),
            Err(_) => Err(format!("{socket}: no answer within {} s", DEADLINE.as_secs())),
        }
    }

    async fn meet(&self, socket: SocketAddr) -> io::Result<ProbeFinding> {
        let mut stream = TcpStream::connect(socket).await?;
        if self.upstream.tls.mode == ServerTlsMode::Disabled {
            return self.knock(&mut stream).await;
        }
        stream.write_all(&SSL_REQUEST).await?;
        match stream.read_u8().await {
            Ok(b'S') => {}
            // what is wrong with its TLS is told elsewhere
            Ok(b'N') => return Ok(ProbeFinding::Answered),
            Ok(b'E') => return read_error(&mut stream).await,
            Ok(_) => return Ok(ProbeFinding::Unclear("it does not answer as PostgreSQL does".to_owned())),
            Err(error) => return without_a_word(error),
        }
        let name = ServerName::try_from(self.upstream.host.clone());
        let (Ok(config), Ok(name)) = (client_config(&self.upstream, &self.bundle), name) else {
            return Ok(ProbeFinding::Answered);
        };
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(mut stream) => self.knock(&mut stream).await,
            Err(error) if error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>) => {
                Ok(ProbeFinding::Answered)
            }
            Err(error) => without_a_word(error),
        }
    }

    /// Says who wants to log in where, and leaves at the question for the password.
    async fn knock(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<ProbeFinding> {
        stream.write_all(&startup(&self.user, &self.upstream.database)).await?;
        let found = loop {
            match stream.read_u8().await {
                Ok(b'E') => break read_error(stream).await?,
                // a notice may come first
                Ok(b'N') => drop(read_body(stream).await?),
                Ok(b'R' | b'v') => {
                    read_body(stream).await?;
                    break ProbeFinding::Answered;
                }
                Ok(_) => break ProbeFinding::Unclear("it does not answer as PostgreSQL does".to_owned()),
                Err(error) => return without_a_word(error),
            }
        };
        // or the server would log a broken connection
        let _ = stream.shutdown().await;
        Ok(found)
    }
}

/// Who accepts a connection and closes it is a proxy without anybody behind it.
fn without_a_word(error: io::Error) -> io::Result<ProbeFinding> {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Ok(ProbeFinding::Away("the connection is accepted and closed without an answer".to_owned()));
    }
    Err(error)
}

/// What a client begins with.
fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for text in ["user", user, "database", database, "application_name", "sluice-agent"] {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), body.as_slice()].concat()
}

async fn read_body(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX).saturating_sub(4);
    if length > LONGEST {
        return Err(io::Error::other("it does not answer as PostgreSQL does"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn read_error(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<ProbeFinding> {
    Ok(meaning(&read_body(stream).await?))
}

/// What a refusal means: who says that it serves nobody now is away, and who refuses us is there.
fn meaning(error: &[u8]) -> ProbeFinding {
    let mut fields = error.split(|byte| *byte == 0).filter_map(|field| field.split_first());
    let mut field =
        |wanted: u8| fields.find(|(kind, _)| **kind == wanted).map(|(_, text)| String::from_utf8_lossy(text));
    // the code comes before the message
    let code = field(b'C').unwrap_or_default();
    if PoolerError::of_sqlstate(&code) != Some(PoolerError::ServerNotReady) {
        return ProbeFinding::Answered;
    }
    let said = field(b'M').unwrap_or_default();
    ProbeFinding::Away(said.chars().filter(|c| !c.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::ServerTls;
    use tokio::net::TcpListener;

    fn probe(port: u16, addresses: &[&str]) -> DatabaseProbe {
        let tls = ServerTls { mode: ServerTlsMode::Disabled, own_ca: false, own_certificate: false };
        DatabaseProbe {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            upstream: Upstream { host: "db".into(), port, database: "shop".into(), tls },
            bundle: Vec::new(),
            user: "shop".to_owned(),
        }
    }

    /// A server that says this to whoever has begun to log in, and closes.
    async fn saying(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut read = [0; 512];
                let _ = client.read(&mut read).await;
                let _ = client.write_all(answer).await;
            }
        });
        port
    }

    async fn found(answer: &'static [u8]) -> ProbeFinding {
        probe(saying(answer).await, &["127.0.0.1"]).ask().await
    }

    #[tokio::test]
    async fn who_asks_for_a_password_or_refuses_us_is_there() {
        assert_eq!(found(b"R\0\0\0\x08\0\0\0\x0a").await, ProbeFinding::Answered);
        let full = b"E\0\0\0\x22SFATAL\0C53300\0Mtoo many of you\0\0";
        assert_eq!(found(full).await, ProbeFinding::Answered);
        assert_eq!(found(b"N\0\0\0\x06M\0R\0\0\0\x08\0\0\0\x0a").await, ProbeFinding::Answered);
    }

    #[tokio::test]
    async fn who_starts_up_or_says_nothing_is_away_and_where_nobody_listens_nobody_is() {
        let ProbeFinding::Away(why) = found(b"E\0\0\0\x1eSFATAL\0C57P03\0Mstarts up\0\0").await else {
            panic!("it serves nobody")
        };
        assert!(why.contains("starts up"), "{why}");
        let ProbeFinding::Away(why) = found(b"").await else { panic!("it said nothing") };
        assert!(why.contains("without an answer"), "{why}");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert!(matches!(probe(closed, &["127.0.0.1"]).ask().await, ProbeFinding::Away(_)));
        let ProbeFinding::Away(why) = probe(closed, &[]).ask().await else { panic!("it has no address") };
        assert!(why.contains("db does not resolve"), "{why}");
    }

    #[tokio::test]
    async fn one_address_that_answers_is_enough() {
        let port = saying(b"R\0\0\0\x08\0\0\0\x0a").await;
        // nobody listens at the other one
        assert_eq!(probe(port, &["127.0.0.2", "127.0.0.1"]).ask().await, ProbeFinding::Answered);
    }

    #[tokio::test]
    async fn who_is_no_database_says_nothing() {
        assert!(matches!(found(b"HTTP/1.1 400 Bad Request").await, ProbeFinding::Unclear(_)));
    }
}
