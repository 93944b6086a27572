//! A TCP proxy that passes everything on, at once or late.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Serves for as long as the process lives.
pub struct Proxy {
    pub address: SocketAddr,
    delay_milliseconds: Arc<AtomicU64>,
}

impl Proxy {
    /// Between a free port of this address and a server.
    pub fn start(address: &str, server: String) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let proxy = Self { address: listener.local_addr().expect("an address"), delay_milliseconds: Arc::default() };
        let delay = proxy.delay_milliseconds.clone();
        thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
                    continue;
                }
                let (Ok(from_client), Ok(to_client)) = (client.try_clone(), client.try_clone()) else { continue };
                let (Ok(from_server), delay) = (server.try_clone(), delay.clone()) else { continue };
                thread::spawn(move || pass_on(from_client, server, || {}));
                thread::spawn(move || {
                    pass_on(from_server, to_client, || {
                        thread::sleep(Duration::from_millis(delay.load(Ordering::Relaxed)));
                    });
                });
            }
        });
        proxy
    }

    /// From now on every answer of the server comes so late.
    pub fn delay(&self, delay: Duration) {
        self.delay_milliseconds.store(u64::try_from(delay.as_millis()).expect("short"), Ordering::Relaxed);
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, before_each: impl Fn()) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 {
            break;
        }
        before_each();
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
