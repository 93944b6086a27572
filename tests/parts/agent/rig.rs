//! A real PostgreSQL and a real agent with a real PgBouncer, on loopback.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sluice::{
    agent::apply::last_good,
    contract::{
        ClientSide, ClientTlsMode, Document, GrantDocument, Injection, LimitSource, PodGrant, PoolRevision, Reach,
        RevisionDocument, ServerTls, ServerTlsMode, Settings, StatusReport, Upstream,
    },
    pooler::pgbouncer::{
        changes::{Program, Remembered},
        version::Version,
    },
};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

/// Longest wait for any state.
pub const DEADLINE: Duration = Duration::from_secs(90);
const POOL: &str = "shop";
const FILLER: &str = "filler";

/// A program of the lab.
pub fn program(name: &str) -> PathBuf {
    let directory = env::var_os("SLUICE_LAB_BIN").expect("SLUICE_LAB_BIN is set by: eval \"$(tests/lab/lab env)\"");
    Path::new(&directory).join(name)
}

/// The version of the pooler of the lab.
pub fn pooler_version() -> Version {
    let said = Command::new(program("pgbouncer")).arg("-V").output().unwrap();
    Version::find(&String::from_utf8_lossy(&said.stdout)).expect("a version")
}

/// Whether the pooler of the lab remembers this for each client, as its version says.
pub fn pooler_remembers(what: Remembered) -> bool {
    Program { version: pooler_version(), tracks_extra: "" }.remembers(what)
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `look` finds something.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Ends a process with a signal, and kills it when that takes too long.
fn end(child: &mut Child, signal: Signal) {
    if child.try_wait().is_ok_and(|status| status.is_some()) {
        return;
    }
    let _ = kill_process(Pid::from_child(child), signal);
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().is_ok_and(|status| status.is_none()) {
        if Instant::now() > deadline {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Connects, and drives the connection until the client is dropped.
pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A file that only we can read, as PostgreSQL asks of a key.
fn write_private(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A PostgreSQL server of its own, with a superuser who needs no password.
pub struct Postgres {
    /// Where it listens.
    pub address: Ipv4Addr,
    pub port: u16,
    child: Child,
    directory: TempDir,
    origin: Origin,
    /// Where its language is.
    locales: Option<TempDir>,
}

/// How a server is started.
struct Origin {
    launcher: Vec<String>,
    address: Ipv4Addr,
    port: u16,
    settings: Vec<String>,
}

impl Origin {
    fn launch(&self, directory: &TempDir) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(directory.path().join("log")).unwrap();
        let postgres = program("postgres");
        let mut words = self.launcher.iter().map(OsStr::new).chain([postgres.as_os_str()]);
        Command::new(words.next().expect("a program"))
            .args(words)
            .arg("-D")
            .arg(directory.path().join("data"))
            .args(["-p", &self.port.to_string(), "-c", "unix_socket_directories=", "-c"])
            .arg(format!("listen_addresses={}", self.address))
            .args(["-c", "fsync=off", "-c", "max_connections=60"])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting.as_str()]))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }
}

impl Postgres {
    pub async fn start() -> Self {
        // every role but the superuser logs in with SCRAM, as in production
        Self::configured("host all all 127.0.0.1/32 scram-sha-256\n", &[], &[]).await
    }

    /// With these rules for logins, files in the data directory, and settings.
    pub async fn configured(rules: &str, files: &[(&str, &str)], settings: &[&str]) -> Self {
        Self::launched(&[], "127.0.0.1", rules, files, settings).await
    }

    /// One that speaks German. A locale of that name is all that it takes: the translations are the server's own.
    pub async fn in_german() -> Self {
        let directory = TempDir::new().unwrap();
        let plain = ["/usr/lib/locale/C.utf8", "/usr/lib/locale/C.UTF-8"].map(Path::new);
        let plain = plain.into_iter().find(|locale| locale.is_dir()).expect("the locale C.UTF-8");
        let german = directory.path().join("de_DE.utf8");
        let copied = Command::new("cp").arg("-rL").args([plain, &german]).status().unwrap();
        assert!(copied.success());
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let locales = format!("LOCPATH={}", directory.path().display());
        let rules = "host all all 127.0.0.1/32 scram-sha-256\n";
        let settings = ["lc_messages=de_DE.UTF-8"];
        let mut server = Self::launched(&["env", &locales, "LANGUAGE=de"], "127.0.0.1", rules, &[], &settings).await;
        server.locales = Some(directory);
        server
    }

    /// The same at another address, started by the words of `launcher`.
    pub async fn launched(
        launcher: &[&str],
        host: &str,
        rules: &str,
        files: &[(&str, &str)],
        settings: &[&str],
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let data = directory.path().join("data");
        let made = Command::new(program("initdb"))
            .args(["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let rules = format!("host all,replication postgres samenet trust\n{rules}");
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        for (name, content) in files {
            write_private(&data.join(name), content);
        }
        let launcher = launcher.iter().map(|word| (*word).to_owned()).collect();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let address = host.parse().unwrap();
        Self::serve(directory, Origin { launcher, address, port: free_port(), settings }).await
    }

    async fn serve(directory: TempDir, origin: Origin) -> Self {
        let child = origin.launch(&directory);
        let postgres = Self { address: origin.address, port: origin.port, child, directory, origin, locales: None };
        postgres.answers().await;
        postgres
    }

    async fn answers(&self) {
        until("PostgreSQL answers", async || connect(&self.admin_config()).await.ok()).await;
    }

    /// A standby of this server that follows it, at this address.
    pub async fn standby(&self, address: Ipv4Addr, port: u16) -> Self {
        let directory = TempDir::new().unwrap();
        let (from, data) = (self.directory.path().join("data"), directory.path().join("data"));
        let admin = self.admin().await;
        admin.simple_query("select pg_backup_start('standby', true)").await.unwrap();
        let copied = Command::new("cp").arg("-a").args([&from, &data]).output().unwrap();
        let label: String = admin.query_one("select labelfile from pg_backup_stop()", &[]).await.unwrap().get(0);
        // files of a server that runs may go while they are copied
        assert!(data.join("pg_hba.conf").is_file(), "{}", String::from_utf8_lossy(&copied.stderr));
        let _ = fs::remove_file(data.join("postmaster.pid"));
        for (name, content) in [("backup_label", label.as_str()), ("standby.signal", "")] {
            write_private(&data.join(name), content);
        }
        let primary = format!("primary_conninfo=host={} port={} user=postgres", self.address, self.port);
        Self::serve(directory, Origin { launcher: Vec::new(), address, port, settings: vec![primary] }).await
    }

    /// It takes writes from now on.
    pub async fn promote(&self) {
        assert!(self.admin().await.query_one("select pg_promote(true, 60)", &[]).await.unwrap().get::<_, bool>(0));
    }

    /// It starts anew at the same address, as a standby.
    pub async fn demote(&mut self) {
        self.stop();
        write_private(&self.directory.path().join("data/standby.signal"), "");
        self.resume().await;
    }

    /// Nobody answers at its address.
    pub fn stop(&mut self) {
        end(&mut self.child, Signal::INT);
    }

    /// Starts it again after [`Postgres::stop`].
    pub async fn resume(&mut self) {
        self.child = self.origin.launch(&self.directory);
        self.answers().await;
    }

    /// With the account [`Account::shop`].
    pub async fn with_shop() -> (Self, Account) {
        let (postgres, account) = (Self::start().await, Account::shop());
        postgres.create(&account).await;
        (postgres, account)
    }

    /// Writes files of the data directory, and has the server read its configuration again.
    pub async fn reconfigure(&self, files: &[(&str, &str)]) {
        for (name, content) in files {
            write_private(&self.directory.path().join("data").join(name), content);
        }
        self.admin().await.simple_query("select pg_reload_conf()").await.unwrap();
    }

    fn admin_config(&self) -> Config {
        let mut config = Config::new();
        config.host(self.address.to_string()).port(self.port).user("postgres").dbname("postgres");
        config
    }

    /// How an account logs in, past any pooler.
    pub fn login(&self, account: &Account) -> Config {
        let Account { user, password, database } = account;
        let mut config = Config::new();
        config.host(self.address.to_string()).port(self.port).user(user).password(password).dbname(database);
        config
    }

    pub async fn admin(&self) -> Client {
        connect(&self.admin_config()).await.unwrap()
    }

    /// Creates a role and a database of its own.
    pub async fn create(&self, account: &Account) {
        let admin = self.admin().await;
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let password = account.password.replace('\'', "''");
        let role = format!("CREATE ROLE {} LOGIN PASSWORD '{password}'", quoted(&account.user));
        admin.batch_execute(&role).await.unwrap();
        let database = format!("CREATE DATABASE {} OWNER {}", quoted(&account.database), quoted(&account.user));
        admin.batch_execute(&database).await.unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        end(&mut self.child, Signal::INT);
    }
}

/// Who logs in where.
#[derive(Clone, Debug)]
pub struct Account {
    pub user: String,
    pub password: String,
    pub database: String,
}

impl Account {
    pub fn new(user: &str, password: &str, database: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned(), database: database.to_owned() }
    }

    pub fn shop() -> Self {
        Self::new("shop", "secret", "shop")
    }
}

/// Settings as the operator resolves them, with the limit following the share.
pub fn settings() -> Settings {
    serde_json::from_str(
        r#"{"poolMode": "Transaction", "parameters": {},
            "health": {"validationQuery": "select 1", "periodSeconds": 10, "queryWaitTimeoutSeconds": 30, "leakThresholdSeconds": 300},
            "scaling": {"algorithm": "Adaptive", "limitSource": "Share",
                "objective": {"waitMilliseconds": 20, "maxWaitingPercent": 1.0}, "targetUtilizationPercent": 70,
                "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [], "tolerance": 0.0},
                    "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [], "tolerance": 0.0}}}}"#,
    )
    .unwrap()
}

/// The same, with the agent deciding each second.
pub fn reacting() -> Settings {
    let mut settings = settings();
    settings.scaling.limit_source = LimitSource::LocalReaction;
    settings
}

/// An agent with the volumes of a pod.
pub struct Agent {
    child: Option<Child>,
    directory: TempDir,
    http: SocketAddr,
    injection: Injection,
    account: Account,
    pooler: PathBuf,
    /// Whether the volumes that are written to are file systems of their own, which a test can fill.
    small_volumes: bool,
    /// Environment variables beside those of a pod.
    variables: Vec<(&'static str, PathBuf)>,
    /// Its own `/etc/resolv.conf`.
    resolver: Option<PathBuf>,
}

/// Puts a file in the place of the resolver's configuration, and becomes a program that alone sees it.
const OWN_RESOLVER: &str = r#"mount --bind "$1" /etc/resolv.conf || exit; shift; exec "$@""#;
/// Mounts a small file system in the place of each of two directories, and becomes a program that alone sees them.
const SMALL_VOLUMES: &str =
    r#"for directory in "$1" "$2"; do mount -t tmpfs -o size=128k none "$directory" || exit; done; shift 2; exec "$@""#;

impl Agent {
    /// The volumes of a pod whose annotations are not written yet.
    pub fn new(postgres_port: u16, account: &Account) -> Self {
        let directory = TempDir::new().unwrap();
        for volume in ["config/credentials", "run", "state", "cgroup"] {
            fs::create_dir_all(directory.path().join(volume)).unwrap();
        }
        let injection = Injection {
            v: 1,
            pool: POOL.to_owned(),
            namespace: "shop".to_owned(),
            upstream: Upstream {
                host: "127.0.0.1".to_owned(),
                port: postgres_port,
                database: account.database.clone(),
                tls: ServerTls { mode: ServerTlsMode::Disabled, own_ca: false, own_certificate: false },
            },
            client: ClientSide {
                port: free_port(),
                max_connections: 200,
                reach: Reach::Pod,
                tls: ClientTlsMode::Disabled,
            },
            agent_port: 9130,
            fixed_hash: String::new(),
        };
        let agent = Self {
            child: None,
            directory,
            http: SocketAddr::from(([127, 0, 0, 1], free_port())),
            injection,
            account: account.clone(),
            pooler: program("pgbouncer"),
            small_volumes: false,
            variables: Vec::new(),
            resolver: None,
        };
        agent.write("credentials/username", &account.user);
        agent.write("credentials/password", &account.password);
        agent
    }

    /// A running agent: revision 1, and a first grant.
    pub async fn start(postgres: &Postgres, account: &Account, settings: &Settings, share: u32) -> Self {
        Self::new(postgres.port, account).started(settings, share).await
    }

    /// The same of one that is prepared.
    pub async fn started(mut self, settings: &Settings, share: u32) -> Self {
        self.revise(1, settings);
        self.grant(1, share, share);
        self.run();
        self.until("the first grant is in force", |status| status.seq == 1).await;
        self
    }

    /// One of a gateway.
    pub fn for_network(mut self) -> Self {
        self.injection.client.reach = Reach::Network;
        self
    }

    /// Another program in the place of PgBouncer.
    pub fn with_pooler(mut self, pooler: &Path) -> Self {
        pooler.clone_into(&mut self.pooler);
        self
    }

    /// As where the kernel leads no client to one of two sockets.
    pub fn with_shared_listener(mut self) -> Self {
        self.variables.push(("SLUICE_SHARED_LISTENER", "true".into()));
        self
    }

    /// With volumes that can be filled: see [`Agent::fill`].
    pub fn with_small_volumes(mut self) -> Self {
        self.small_volumes = true;
        self
    }

    /// With an environment variable that names a file.
    pub fn with_variable(mut self, name: &'static str, file: &Path) -> Self {
        self.variables.push((name, file.to_owned()));
        self
    }

    /// That resolves names as this configuration says.
    pub fn with_resolver(mut self, configuration: &str) -> Self {
        let file = self.directory.path().join("resolv.conf");
        fs::write(&file, configuration).unwrap();
        self.resolver = Some(file);
        self
    }

    /// With something else fixed at injection.
    pub fn with(mut self, change: impl FnOnce(&mut Injection)) -> Self {
        change(&mut self.injection);
        self
    }

    pub fn run(&mut self) {
        self.child = Some(self.command(&self.injection.render()).spawn().unwrap());
    }

    /// What the webhook would have fixed at injection.
    pub fn injection_text(&self) -> String {
        self.injection.render()
    }

    /// Runs an agent that cannot work; what it said.
    pub fn run_to_its_end(&mut self, injection: &str) -> String {
        let mut child = self.command(injection).spawn().unwrap();
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                end(&mut child, Signal::KILL);
                panic!("it runs with {injection}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(!status.success(), "{injection}");
        self.log()
    }

    fn command(&self, injection: &str) -> Command {
        let path = |volume: &str| self.directory.path().join(volume);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let agent = env!("CARGO_BIN_EXE_sluice-agent");
        let unshared = |script: &str, arguments: &[PathBuf]| {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
            command.args(arguments).arg(agent);
            command
        };
        let mut command = match &self.resolver {
            Some(file) => unshared(OWN_RESOLVER, std::slice::from_ref(file)),
            None if self.small_volumes => unshared(SMALL_VOLUMES, &[path("run"), path("state")]),
            None => Command::new(agent),
        };
        command
            .arg("run")
            .arg("--config-dir")
            .arg(path("config"))
            .arg("--run-dir")
            .arg(path("run"))
            .arg("--state-dir")
            .arg(path("state"))
            .arg("--control-group")
            .arg(path("cgroup"))
            .args(["--listen", &self.http.to_string(), "--pod-uid", "uid-of-the-pod", "--log", "debug"])
            .arg("--pgbouncer")
            .arg(&self.pooler)
            .env("SLUICE_INJECTION", injection)
            .envs(self.variables.iter().map(|(name, file)| (name, file)))
            .stderr(log);
        command
    }

    /// Where /status and /metrics are.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Waits for the container to end by itself.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.take().expect("it runs").wait().unwrap()
    }

    /// The container ends, as the kubelet ends it; its volumes stay.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child, Signal::TERM);
        }
    }

    /// The first process of the container is killed, and the kernel ends all others of it; the volumes stay.
    pub async fn crash(&mut self) {
        let others = self.children();
        let mut keeper = self.child.take().expect("it runs");
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        for pid in &others {
            let _ = kill_process(*pid, Signal::KILL);
        }
        until("all its processes have ended", async || others.iter().all(|pid| has_ended(*pid)).then_some(())).await;
    }

    /// Where a process sees a directory.
    fn seen(&self, directory: &str) -> PathBuf {
        let path = self.directory.path().join(directory);
        match &self.child {
            Some(child) if self.small_volumes => {
                let within = path.strip_prefix("/").unwrap();
                Path::new("/proc").join(child.id().to_string()).join("root").join(within)
            }
            _ => path,
        }
    }

    /// Fills a volume to the last byte, until [`Agent::empty`].
    pub fn fill(&self, volume: &Path) {
        assert!(self.small_volumes, "{} is not a file system of its own", volume.display());
        let mut filler = fs::File::create(volume.join(FILLER)).unwrap();
        let error = loop {
            if let Err(error) = filler.write_all(&[0; 1024]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    pub fn empty(volume: &Path) {
        fs::remove_file(volume.join(FILLER)).unwrap();
    }

    /// Writes a file of the configuration volume as a whole, as the kubelet does.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.directory.path().join("config").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let aside = path.with_extension("aside");
        fs::write(&aside, content).unwrap();
        fs::rename(aside, path).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.directory.path().join("config").join(name)).unwrap();
    }

    /// The memory limit of the container, in MiB.
    pub fn limit_memory(&self, mib: u64) {
        fs::write(self.directory.path().join("cgroup/memory.max"), format!("{}\n", mib << 20)).unwrap();
    }

    /// Memory of all processes that the kernel cannot take back, in bytes.
    pub fn memory(&self) -> u64 {
        let of = |pid: Pid| {
            let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero())).unwrap();
            let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("what the kernel counts");
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        };
        self.children().into_iter().chain([self.keeper_pid()]).map(of).sum()
    }

    pub fn revise(&self, revision: u64, settings: &Settings) {
        let pool = PoolRevision { revision, settings: settings.clone() };
        self.write("revision", &RevisionDocument { v: 1, pools: [(POOL.to_owned(), pool)].into() }.render());
    }

    pub fn grant(&self, seq: u64, share: u32, granted: u32) {
        let grant = PodGrant { seq, share, granted, floor: share.min(1), least: 0, paused: false };
        self.write("grant", &GrantDocument { v: 1, epoch: 1, pools: [(POOL.to_owned(), grant)].into() }.render());
    }

    /// What the readiness probe finds.
    pub fn is_ready(&self) -> bool {
        sluice::agent::commands::probe::ready(self.http.port()).is_ok()
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.http, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    pub fn status(&self) -> Option<StatusReport> {
        serde_json::from_str(&self.get("/status")?).ok()
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics").unwrap_or_default()
    }

    /// Value of a series by the beginning of its line.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.metrics().lines().find(|line| line.starts_with(series))?.rsplit_once(' ')?.1.parse().ok()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.seen("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.seen("state")
    }

    pub fn state_file(&self) -> PathBuf {
        self.state_dir().join(last_good::FILE)
    }

    pub fn client_port(&self) -> u16 {
        self.injection.client.port
    }

    /// Waits for a state of the agent.
    pub async fn until(&self, what: &str, wanted: impl Fn(&StatusReport) -> bool) -> StatusReport {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "not in time: {what}: {status:#?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// What the application uses.
    pub fn client_config(&self) -> Config {
        let Account { user, password, database } = &self.account;
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.client_port()).user(user).password(password).dbname(database);
        config
    }

    pub async fn client(&self) -> Client {
        connect(&self.client_config()).await.unwrap()
    }

    /// Process of the pooler, a child of the keeper; of two, the older one.
    pub fn pooler_pid(&self) -> Option<Pid> {
        self.pooler_pids().first().copied()
    }

    /// Processes of the pooler, the older ones first.
    pub fn pooler_pids(&self) -> Vec<Pid> {
        self.children().into_iter().filter(|pid| !is_ours(*pid)).collect()
    }

    /// Process of the keeper.
    pub fn keeper_pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    /// Process of the agent, a child of the keeper.
    pub fn agent_pid(&self) -> Option<Pid> {
        self.children().into_iter().find(|pid| is_ours(*pid))
    }

    /// The keeper's children, those that have ended and were not waited for included.
    pub fn children(&self) -> Vec<Pid> {
        let agent = self.child.as_ref().map_or(0, Child::id);
        let children = fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }
}

/// Whether a process runs our program; a pooler does for an instant, before it becomes one.
fn is_ours(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).is_ok_and(|name| name.trim() == "sluice-agent")
}

fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')))
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}
