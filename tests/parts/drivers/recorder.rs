//! What a driver sends before it is logged in: a proxy in front of PostgreSQL that keeps the first packets of each connection.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// What was seen on the connections of one driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// Whether it asked for TLS, and for encryption by GSSAPI.
    pub requests: BTreeSet<&'static str>,
    /// Versions of the protocol that it asked for.
    pub protocols: BTreeSet<String>,
    /// Startup parameters beside user and database, with their values.
    pub parameters: BTreeSet<String>,
}

/// A proxy that records.
pub struct Recorder {
    pub address: SocketAddr,
    seen: Arc<Mutex<Startup>>,
}

impl Recorder {
    pub async fn in_front_of(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Startup>>::default());
        let record = seen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let record = record.clone();
                // a connection that breaks off is for its client to tell
                tokio::spawn(async move { pass(client, port, &record).await });
            }
        });
        Self { address, seen }
    }

    pub fn seen(&self) -> Startup {
        self.seen.lock().unwrap().clone()
    }
}

async fn pass(mut client: TcpStream, port: u16, record: &Mutex<Startup>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    loop {
        let length = client.read_u32().await?;
        let mut body = vec![0; (length as usize).saturating_sub(4)];
        client.read_exact(&mut body).await?;
        server.write_u32(length).await?;
        server.write_all(&body).await?;
        let (code, rest) = body.split_at(4);
        let code = u32::from_be_bytes(code.try_into().unwrap_or_default());
        let asks = match code {
            SSL_REQUEST => "TLS",
            GSS_REQUEST => "GSSAPI",
            CANCEL_REQUEST => break,
            version => {
                record.lock().unwrap().keep(version, rest);
                break;
            }
        };
        record.lock().unwrap().requests.insert(asks);
        client.write_u8(server.read_u8().await?).await?;
    }
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

impl Startup {
    fn keep(&mut self, version: u32, parameters: &[u8]) {
        self.protocols.insert(format!("{}.{}", version >> 16, version & 0xffff));
        let words: Vec<String> =
            parameters.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        for pair in words.chunks(2) {
            if let [name, value] = pair
                && !name.is_empty()
                && name != "user"
                && name != "database"
            {
                self.parameters.insert(format!("{name}={value}"));
            }
        }
    }
}
