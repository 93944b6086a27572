//! What a stranger who reaches a port can take of the real agent, which needs no PgBouncer to answer.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use sluice::contract::{
    ClientSide, ClientTlsMode, Document, Injection, Reach, ServerTls, ServerTlsMode, Upstream, names,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};

const DEADLINE: Duration = Duration::from_mins(1);
const STRANGERS: usize = 5000;
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
const OPERATOR: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Agent {
    keeper: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.keeper.kill(); // the agent ends with its keeper
        let _ = self.keeper.wait();
    }
}

impl Agent {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for volume in ["config", "run", "state"] {
            fs::create_dir(directory.path().join(volume)).expect("a directory");
        }
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let path = |volume: &str| directory.path().join(volume);
        let keeper = Command::new(env!("CARGO_BIN_EXE_sluice-agent"))
            .arg("run")
            .arg("--config-dir")
            .arg(path("config"))
            .arg("--run-dir")
            .arg(path("run"))
            .arg("--state-dir")
            .arg(path("state"))
            .args(["--listen", &address.to_string(), "--pod-uid", "uid-0", "--pgbouncer", "/nowhere/pgbouncer"])
            .env("SLUICE_INJECTION", injection().render())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        let agent = Self { keeper, address, _directory: directory };
        let deadline = Instant::now() + DEADLINE;
        while agent.ask().await.is_none() {
            assert!(Instant::now() < deadline, "it does not answer");
            sleep(Duration::from_millis(20)).await;
        }
        agent
    }

    async fn connect(&self, from: IpAddr) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from, 0)).expect("a local address");
        timeout(DEADLINE, socket.connect(self.address)).await.ok()?.ok()
    }

    /// Asks as the operator does: by a connection of its own.
    async fn ask(&self) -> Option<String> {
        let mut stream = self.connect(OPERATOR).await?;
        stream.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.ok()?.ok()?;
        answer.contains("uid-0").then_some(answer)
    }

    /// Memory of keeper and agent together, in KiB.
    fn resident_kib(&self) -> u64 {
        let keeper = self.keeper.id();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("children");
        let all = children.split_whitespace().map(str::to_owned).chain([keeper.to_string()]);
        let resident = all.map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        });
        resident.sum()
    }
}

fn injection() -> Injection {
    let tls = ServerTls { mode: ServerTlsMode::Disabled, own_ca: false, own_certificate: false };
    Injection {
        v: Injection::VERSION,
        pool: "shop".to_owned(),
        namespace: "shop".to_owned(),
        upstream: Upstream { host: "127.0.0.1".to_owned(), port: 5432, database: "shop".to_owned(), tls },
        client: ClientSide { port: 6432, max_connections: 100, reach: Reach::Pod, tls: ClientTlsMode::Disabled },
        agent_port: names::METRICS_PORT,
        fixed_hash: String::new(),
    }
}

#[tokio::test]
async fn five_thousand_idle_connections_cost_an_agent_a_mebibyte_and_the_operator_no_answer() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("as many files as this user may open");
    let agent = Agent::start().await;
    for _ in 0..50 {
        agent.ask().await.expect("answered");
    }
    let before = agent.resident_kib();
    let mut strangers = Vec::new();
    for number in 0..STRANGERS {
        strangers.extend(agent.connect(STRANGER).await);
        if number % 100 == 0 {
            agent.ask().await.expect("the operator is answered while strangers come");
        }
    }
    assert!(strangers.len() > STRANGERS * 9 / 10, "{} were accepted", strangers.len());
    let after = agent.resident_kib();
    println!("{STRANGERS} idle connections: {before} KiB before, {after} KiB after");
    assert!(after.saturating_sub(before) <= 1536, "{before} KiB before, {after} KiB after");
    agent.ask().await.expect("the operator is answered while they stand");
}
