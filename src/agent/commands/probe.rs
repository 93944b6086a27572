//! `sluice-agent probe`: asks a running agent whether it is ready.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use thiserror::Error;

/// How long the agent may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const LONGEST: u64 = 1 << 20;

/// Why a probe fails.
#[derive(Debug, Error)]
pub enum NotReady {
    /// There is no answer.
    #[error("the agent on port {port} does not answer: {source}")]
    Silent {
        /// The port that was asked.
        port: u16,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The agent says what it waits for.
    #[error("not ready: {0}")]
    Waits(String),
}

/// Asks `/readyz`.
///
/// # Errors
/// [`NotReady`] when it does not answer 200, with what it waits for.
pub fn ready(port: u16) -> Result<(), NotReady> {
    let answer = get(port, "/readyz").map_err(|source| NotReady::Silent { port, source })?;
    if is_ok(&answer) {
        return Ok(());
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let said = [body.trim(), head.lines().next().unwrap_or_default()].into_iter().find(|said| !said.is_empty());
    Err(NotReady::Waits(said.unwrap_or("nothing was answered").to_owned()))
}

/// What the agent answers at a path, its head included.
///
/// # Errors
/// Of the system, or when it takes too long.
pub(super) fn get(port: u16, path: &str) -> std::io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether an answer is one of success.
pub(super) fn is_ok(answer: &str) -> bool {
    answer.split_whitespace().nth(1) == Some("200")
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// What a probe of an agent that answers so comes to.
    fn probed(answer: &'static str) -> Result<(), NotReady> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            let mut asked = [0; 64];
            assert_ne!(stream.read(&mut asked).expect("a request"), 0);
            stream.write_all(answer.as_bytes()).expect("answered");
        });
        let ready = ready(port);
        agent.join().expect("answered");
        ready
    }

    #[test]
    fn a_probe_that_fails_says_what_the_agent_waits_for() {
        assert!(probed("HTTP/1.0 200 OK\r\n\r\nok\n").is_ok());
        let waits = probed("HTTP/1.0 503 Service Unavailable\r\n\r\nwaits for the first start of the pooler\n");
        assert_eq!(waits.expect_err("not ready").to_string(), "not ready: waits for the first start of the pooler");
        let silent = probed("").expect_err("not ready").to_string();
        assert_eq!(silent, "not ready: nothing was answered");
    }
}
