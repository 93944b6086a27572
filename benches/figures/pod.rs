//! What a pod's sidecar stands on, without a pod: PostgreSQL, the configuration volume, and the agent as the image has it.

use std::{
    fs,
    io::{Read, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::json;
use sluice::contract::StatusReport;

use crate::{
    Failure,
    certificates::Certified,
    process::{Process, free_port, lab_program, output, wait_for},
};

/// Database, and user, that everyone logs in to.
pub const DATABASE: &str = "postgres";
/// User of the application and of the pooler.
pub const USER: &str = "postgres";
/// Password of the user.
pub const PASSWORD: &str = "figures";
/// Server connections granted to the pod.
pub const SHARE: u32 = 20;
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A PostgreSQL with the tables of pgbench.
pub struct Postgres {
    /// Its port on loopback.
    pub port: u16,
    data: PathBuf,
    _process: Process,
}

impl Postgres {
    /// Starts one below `scratch` that lets everyone in.
    pub fn start(scratch: &Path) -> Result<Self, Failure> {
        Self::with(scratch, |_| Ok(()), &[])
    }

    /// Starts one below `scratch` that speaks TLS with this certificate and asks every role but [`USER`] for its password.
    pub fn guarded(scratch: &Path, certified: &Certified) -> Result<Self, Failure> {
        let prepare = |data: &Path| {
            fs::write(
                data.join("pg_hba.conf"),
                format!("host all {USER} 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"),
            )?;
            show(data, certified)
        };
        Self::with(scratch, prepare, &["ssl=on", "max_connections=200"])
    }

    /// Shows another certificate from now on.
    pub fn show(&self, certified: &Certified) -> Result<(), Failure> {
        show(&self.data, certified)?;
        self.sql("select pg_reload_conf()").map(drop)
    }

    /// Runs a statement as [`USER`]; what it prints.
    pub fn sql(&self, statement: &str) -> Result<String, Failure> {
        let mut psql = Command::new(lab_program("psql")?);
        psql.args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", USER, "-d", DATABASE, "-p"]);
        Ok(output(psql.arg(self.port.to_string()).args(["-c", statement]))?.trim().to_owned())
    }

    fn with(
        scratch: &Path,
        prepare: impl FnOnce(&Path) -> Result<(), Failure>,
        settings: &[&str],
    ) -> Result<Self, Failure> {
        let data = scratch.join("postgres");
        output(Command::new(lab_program("initdb")?).arg("-D").arg(&data).args([
            "-U",
            USER,
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]))?;
        prepare(&data)?;
        let port = free_port()?;
        let process = Process::start(
            Command::new(lab_program("postgres")?)
                .arg("-D")
                .arg(&data)
                .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"])
                .args(settings.iter().flat_map(|setting| ["-c", *setting]))
                .arg("-c")
                .arg(format!("port={port}")),
            &scratch.join("postgres.log"),
        )?;
        wait_for("PostgreSQL", READY_WITHIN, || pgbench(port, &["-i", "-s", "1", "-q"]).ok())?;
        Ok(Self { port, data, _process: process })
    }
}

/// Lays down a certificate in a data directory; PostgreSQL wants its key to itself.
fn show(data: &Path, certified: &Certified) -> Result<(), Failure> {
    for (name, content) in [("server.crt", &certified.certificate), ("server.key", &certified.key)] {
        let path = data.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Runs pgbench to its end, and returns what it printed.
pub fn pgbench(port: u16, words: &[&str]) -> Result<String, Failure> {
    output(&mut pgbench_command(port, words)?)
}

/// pgbench as a command.
pub fn pgbench_command(port: u16, words: &[&str]) -> Result<Command, Failure> {
    let mut command = Command::new(lab_program("pgbench")?);
    command
        .args(["-h", "127.0.0.1", "-U", USER, "-p"])
        .arg(port.to_string())
        .args(words)
        .arg(DATABASE)
        .env("PGPASSWORD", PASSWORD);
    Ok(command)
}

/// Waits until the pooler at this port answers a query.
pub fn until_it_answers(port: u16) -> Result<(), Failure> {
    let ask = || pgbench(port, &["-S", "-n", "-t", "1"]);
    wait_for("the pooler answers", READY_WITHIN, || ask().ok()).map(drop).map_err(|error| {
        let last = ask().err().map_or_else(String::new, |error| error.to_string());
        format!("{error}: {last}").into()
    })
}

/// Writes what the kubelet would project: revision 1, a grant of [`SHARE`], and the credentials.
pub fn write_configuration(directory: &Path, limit_source: &str) -> Result<(), Failure> {
    fs::create_dir_all(directory.join("credentials"))?;
    let rules = |tolerance: f64| json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [], "tolerance": tolerance});
    let settings = json!({
        "poolMode": "Transaction",
        "health": {"validationQuery": "select 1", "periodSeconds": 10, "queryWaitTimeoutSeconds": 30, "leakThresholdSeconds": 300},
        "scaling": {
            "algorithm": "Adaptive", "limitSource": limit_source, "targetUtilizationPercent": 70,
            "objective": {"waitMilliseconds": 20, "maxWaitingPercent": 1.0},
            "behavior": {"scaleUp": rules(0.0), "scaleDown": rules(0.05)},
        },
    });
    let grant = json!({"seq": 1, "share": SHARE, "granted": SHARE, "floor": 1});
    fs::write(
        directory.join("revision"),
        json!({"v": 1, "pools": {"shop": {"revision": 1, "settings": settings}}}).to_string(),
    )?;
    fs::write(directory.join("grant"), json!({"v": 1, "epoch": 1, "pools": {"shop": grant}}).to_string())?;
    fs::write(directory.join("credentials/username"), USER)?;
    fs::write(directory.join("credentials/password"), PASSWORD)?;
    Ok(())
}

/// Where an agent finds its volumes, and who listens where.
pub struct Sidecar<'a> {
    /// The configuration volume.
    pub config: &'a Path,
    /// The memory-backed volume, made anew.
    pub run: &'a Path,
    /// The volume that outlives the container, made anew.
    pub state: &'a Path,
    /// Port of PostgreSQL.
    pub postgres_port: u16,
    /// Port of the pooler.
    pub port: u16,
    /// Port of the agent.
    pub agent_port: u16,
    /// The pooler's program.
    pub pgbouncer: &'a Path,
    /// The agent's program.
    pub agent: &'a Path,
    /// TLS on either side of the pooler.
    pub tls: Tls,
}

/// TLS on either side of the pooler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Plain text.
    Neither,
    /// Clients are met with TLS alone, and the database is verified by a CA bundle of the pool's own.
    Both,
}

impl Sidecar<'_> {
    /// Makes the volumes, and completes a command that runs the lab's `unroot`: the agent is not root, as in a pod.
    pub fn complete(&self, command: &mut Command) -> Result<(), Failure> {
        for directory in [self.run, self.state] {
            if directory.exists() {
                fs::remove_dir_all(directory)?;
            }
            fs::create_dir_all(directory)?;
        }
        let (mode, own_ca, client_tls) = match self.tls {
            Tls::Neither => ("Disabled", false, "Disabled"),
            Tls::Both => ("VerifyFull", true, "Require"),
        };
        let injection = json!({
            "v": 1, "pool": "shop", "namespace": "shop",
            "upstream": {"host": "127.0.0.1", "port": self.postgres_port, "database": DATABASE, "tls": {"mode": mode, "ownCa": own_ca}},
            "client": {"port": self.port, "maxConnections": 1000, "tls": client_tls},
        });
        command
            .arg(self.agent)
            .arg("run")
            .arg("--config-dir")
            .arg(self.config)
            .arg("--run-dir")
            .arg(self.run)
            .arg("--state-dir")
            .arg(self.state)
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.agent_port))
            .arg("--pgbouncer")
            .arg(self.pgbouncer)
            .args(["--grace-seconds", "1"])
            .env("SLUICE_INJECTION", injection.to_string())
            .env("SLUICE_POD_UID", "figures");
        Ok(())
    }

    /// What the agent says.
    pub fn status(&self) -> Result<StatusReport, Failure> {
        Ok(serde_json::from_str(&self.get("/status")?)?)
    }

    /// Asks the agent for a page.
    pub fn get(&self, path: &str) -> Result<String, Failure> {
        page(("127.0.0.1", self.agent_port), path)
    }
}

/// A page of a server that speaks HTTP/1.0.
pub fn page(server: (&str, u16), path: &str) -> Result<String, Failure> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer on {path}"))?.1;
    Ok(body.to_owned())
}
