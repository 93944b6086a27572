//! Agents of many pods on a few ports: their series as Prometheus would have them from one agent each.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use sluice::contract::metrics;

use crate::Failure;

/// Pods that one port stands for.
const PODS_PER_PORT: u32 = 500;

/// Pools and pods that are exported.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    pub pools: u32,
    pub pods_per_pool: u32,
}

impl Fleet {
    /// Namespace and name of a pool.
    pub fn pool(pool: u32) -> (String, String) {
        (format!("team-{:03}", pool / 10), format!("orders-{pool:04}"))
    }

    /// Name of a pod, as long as those of Deployments are.
    pub fn pod(pool: u32, pod: u32) -> String {
        format!("orders-{pool:04}-7d9f8b6c5d-{pod:05x}")
    }

    /// Starts threads that export the pods, for as long as the process lives. Returns their addresses.
    pub fn export(self) -> Result<Vec<SocketAddr>, Failure> {
        let pods = self.pools * self.pods_per_pool;
        let ports = pods.div_ceil(PODS_PER_PORT);
        (0..ports)
            .map(|port| {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let address = listener.local_addr()?;
                let range = port * PODS_PER_PORT..((port + 1) * PODS_PER_PORT).min(pods);
                thread::spawn(move || {
                    for connection in listener.incoming().flatten() {
                        let pods = range.clone().map(|pod| (pod / self.pods_per_pool, pod % self.pods_per_pool));
                        // a scrape that Prometheus gave up is its own matter
                        let _ = answer(connection, &exposition(pods));
                    }
                });
                Ok(address)
            })
            .collect()
    }
}

fn answer(mut connection: TcpStream, text: &str) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = connection.read(&mut request)?;
    let length = text.len();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}"
    )
}

/// The series of these pods now. Load differs between pods and is steady.
fn exposition(pods: impl Iterator<Item = (u32, u32)>) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut text = String::new();
    for (pool, pod) in pods {
        let (namespace, name) = Fleet::pool(pool);
        let labels = format!(
            "pool_namespace=\"{namespace}\",pool=\"{name}\",namespace=\"{namespace}\",pod=\"{}\",instance=\"10.{}.{}.{}:9130\"",
            Fleet::pod(pool, pod),
            pool / 250,
            pool % 250,
            pod + 1
        );
        let mut line = |name: &str, more: &str, value: f64| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}{{{labels}{more}}} {value}");
        };
        let busy = 1.0 + f64::from((pool * 7 + pod * 3) % 20) / 4.0;
        let jitter = f64::from(pod % 3);
        let uptime = seconds % 1e6;
        for (state, value) in [
            ("active", busy.floor() + jitter),
            ("idle", 2.0),
            ("used", 0.0),
            ("tested", 0.0),
            ("login", 0.0),
            ("being_canceled", 0.0),
        ] {
            line(metrics::SERVER_CONNECTIONS, &format!(",state=\"{state}\""), value);
        }
        line(metrics::HELD, "", busy.floor() + jitter + 2.0);
        line(metrics::CLIENT_CONNECTIONS, ",state=\"active\"", busy);
        line(metrics::CLIENT_CONNECTIONS, ",state=\"waiting\"", jitter);
        for window in ["5s", "30s"] {
            line(metrics::DEMAND_PEAK, &format!(",window=\"{window}\""), busy.ceil() + 3.0);
            line(metrics::WAITING_PEAK, &format!(",window=\"{window}\""), jitter);
        }
        line(metrics::TRANSACTIONS, "", (uptime * busy * 25.0).floor());
        line(metrics::BUSY_SECONDS, "", uptime * busy);
        line(metrics::WAIT_SECONDS, "", uptime * 0.01);
        line(metrics::SERVER_ASSIGNMENTS, "", (uptime * busy * 25.0).floor());
        line(metrics::LEAKED, "", 0.0);
        line(metrics::LIMIT, "", 10.0);
        line(metrics::SHARE, "", 10.0);
        line(metrics::GRANT_SEQ, "", 3.0);
        line(metrics::SAMPLE_TIME, "", seconds);
    }
    text
}
