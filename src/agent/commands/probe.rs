//! `sluice-agent probe`: asks a running agent whether it is ready.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// How long the agent may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const LONGEST: u64 = 1 << 20;

/// True when `/readyz` answers 200.
pub fn is_ready(port: u16) -> bool {
    get(port, "/readyz").is_ok_and(|answer| is_ok(&answer))
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
