//! The real parts on loopback: PostgreSQL, bare PgBouncers, and sluice-agent with its PgBouncer.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sluice::{
    contract::{
        ClientSide, ClientTlsMode, Document, GrantDocument, Injection, PodGrant, PoolRevision, Reach, RevisionDocument,
        ServerTls, ServerTlsMode, Settings, Upstream,
    },
    decide::effective::effective,
};

/// Longest wait for a part to start.
const START: Duration = Duration::from_secs(30);
/// Longest wait for an agent that nobody ended: longer than its own grace, so that its pooler ends with it.
const END: Duration = Duration::from_secs(8);
/// The pool's name in every document.
pub const POOL: &str = "shop";

/// A free port of loopback.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// A process that ends with us.
pub struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::create(log).expect("a log");
        let errors = log.try_clone().expect("a log");
        Self(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("starts; run benches/run demo"))
    }

    /// Ends it and waits for that.
    pub fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.0.wait().expect("can be waited for");
    }

    /// Asks it to end, and does not wait for long.
    fn end_soon(mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + END;
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            self.signal(Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

fn until_listening(port: u16, log: &Path) {
    let deadline = Instant::now() + START;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        let said = fs::read_to_string(log).unwrap_or_default();
        assert!(Instant::now() < deadline, "nothing listens on port {port}: {said}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// PostgreSQL with one database per policy.
pub struct Postgres {
    /// Its port.
    pub port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Starts a new one in `directory`.
    pub fn start(directory: &Path) -> Self {
        let data = directory.join("postgres");
        let made = Command::new("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(&data)
            .output()
            .expect("initdb is on PATH; run benches/run demo");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let (port, log) = (free_port(), directory.join("postgres.log"));
        let settings = ["max_connections=2000", "fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories="];
        let mut command = Command::new("postgres");
        command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        let process = Process::start(&mut command, &log);
        until_listening(port, &log);
        Self { port, process: Some(process) }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.end(Signal::QUIT);
        }
    }
}

/// A bare PgBouncer with a fixed limit, as somebody would set it up by hand.
pub fn fixed(directory: &Path, server: u16, database: &str, limit: u32, idle_timeout: u32) -> (u16, Process) {
    fs::create_dir_all(directory).expect("a directory");
    let port = free_port();
    let file = directory.join("pgbouncer.ini");
    fs::write(
        &file,
        format!(
            "[databases]\n{database} = host=127.0.0.1 port={server} dbname={database} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = {limit}\nserver_idle_timeout = {idle_timeout}\n\
             max_client_conn = 200\nquery_wait_timeout = 30\nlog_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n"
        ),
    )
    .expect("written");
    let log = directory.join("pgbouncer.log");
    let process = Process::start(Command::new("pgbouncer").arg(&file), &log);
    until_listening(port, &log);
    (port, process)
}

/// An agent with its PgBouncer, and the files through which it is told what it may open.
pub struct Agent {
    /// Where clients connect.
    pub port: u16,
    /// Where /status is.
    pub http: u16,
    config: PathBuf,
    /// None once it was ended.
    process: Option<Process>,
}

/// What the pool of `examples/shop` comes to.
pub fn shop() -> (Settings, u32, u32) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop/3-connectionpool.yaml");
    let pool: sluice::api::ConnectionPool =
        serde_yaml::from_str(&fs::read_to_string(path).expect("an example")).expect("a pool");
    let merged = effective(&pool.spec, None).expect("accepted");
    (merged.settings, merged.max_allowed, merged.floor_per_pod)
}

impl Agent {
    /// Starts one with a first grant.
    pub fn start(
        directory: &Path,
        uid: &str,
        server: u16,
        database: &str,
        settings: &Settings,
        grant: PodGrant,
    ) -> Self {
        let config = directory.join("config");
        fs::create_dir_all(config.join("credentials")).expect("a directory");
        for folder in ["run", "state"] {
            fs::create_dir_all(directory.join(folder)).expect("a directory");
        }
        fs::write(config.join("credentials/username"), "postgres").expect("written");
        fs::write(config.join("credentials/password"), "trusted").expect("written");
        let (port, http) = (free_port(), free_port());
        let injection = Injection {
            v: Injection::VERSION,
            pool: POOL.to_owned(),
            namespace: "bench".to_owned(),
            upstream: Upstream {
                host: "127.0.0.1".to_owned(),
                port: server,
                database: database.to_owned(),
                tls: ServerTls { mode: ServerTlsMode::Disabled, own_ca: false, own_certificate: false },
            },
            client: ClientSide { port, max_connections: 200, reach: Reach::Pod, tls: ClientTlsMode::Disabled },
            agent_port: 9130,
            fixed_hash: String::new(),
        };
        let revision = RevisionDocument {
            v: RevisionDocument::VERSION,
            pools: [(POOL.to_owned(), PoolRevision { revision: 1, settings: settings.clone() })].into(),
        };
        fs::write(config.join("revision"), revision.render()).expect("written");
        let mut command = Command::new(std::env::var("SLUICE_AGENT").expect("SLUICE_AGENT; run benches/run demo"));
        command
            .args(["run", "--pod-uid", uid, "--pod-name", uid, "--pod-namespace", "bench", "--grace-seconds", "5"])
            .args(["--injection", &injection.render(), "--listen", &format!("127.0.0.1:{http}")]);
        for (flag, folder) in [("--config-dir", "config"), ("--run-dir", "run"), ("--state-dir", "state")] {
            command.arg(flag).arg(directory.join(folder));
        }
        let log = directory.join("agent.log");
        write_grant(&config, grant);
        let process = Process::start(&mut command, &log);
        until_listening(port, &log);
        Self { port, http, config, process: Some(process) }
    }

    /// Tells it what it may open, as the kubelet would: written aside and renamed.
    pub fn grant(&self, grant: PodGrant) {
        write_grant(&self.config, grant);
    }

    /// What it says of itself.
    pub fn status(&self) -> Option<sluice::contract::StatusReport> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.http)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        std::io::Write::write_all(&mut stream, b"GET /status HTTP/1.0\r\nHost: agent\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// Ends it as the kubelet would.
    pub fn end(mut self) {
        if let Some(process) = self.process.take() {
            process.end(Signal::TERM);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.end_soon();
        }
    }
}

fn write_grant(config: &Path, grant: PodGrant) {
    let document = GrantDocument { v: GrantDocument::VERSION, epoch: 1, pools: [(POOL.to_owned(), grant)].into() };
    let aside = config.join("grant.aside");
    fs::write(&aside, document.render()).expect("written");
    fs::rename(aside, config.join("grant")).expect("renamed");
}
