//! Pages for Prometheus to scrape.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use crate::Failure;

/// Starts a thread that answers every request at this address with what `page` says then, for as long as the process lives. Port 0: any
/// that is free. Returns where it listens. A page that cannot be written is no answer.
pub fn serve(
    address: (&str, u16),
    page: impl Fn() -> Result<String, Failure> + Send + 'static,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // a scrape that Prometheus gave up is its own matter
            let _ = page().map(|page| answer(connection, &page));
        }
    });
    Ok(address)
}

fn answer(mut connection: TcpStream, text: &str) -> io::Result<()> {
    let mut request = [0; 4096];
    let _ = connection.read(&mut request)?;
    let length = text.len();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}"
    )
}
