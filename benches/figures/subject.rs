//! A sidecar whose configuration a figure changes while clients are at work, and what it stands on.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sluice::contract::StatusReport;

use crate::{
    Failure,
    certificates::{Authority, Certified},
    load::Target,
    pod::{self, DATABASE, Postgres, SHARE, Tls},
    process::{Process, free_port, lab_program, product_program, wait_for},
};

/// Longest wait for any state.
pub const WITHIN: Duration = Duration::from_mins(1);
/// Role of the application in the database.
pub const ROLE: &str = "shop";
/// Its password.
pub const PASSWORD: &str = "figures";

/// How clients log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// Without a password and in plain text, so that a thousand logins a second fit on two cores: what stands before
    /// PgBouncer puts `auth_type = trust` into its file. The database asks for a password nevertheless.
    Trust,
    /// By SCRAM over TLS, each time with a whole handshake; the database is spoken to over TLS too.
    ScramTls,
}

impl Login {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Trust, Self::ScramTls];

    /// In samples.
    pub fn label(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::ScramTls => "scram+tls",
        }
    }
}

/// What the sidecars of a figure stand on.
pub struct Ground {
    /// The database.
    pub postgres: Postgres,
    /// Who has signed the certificates of database and pooler.
    pub authority: Authority,
    /// What both show.
    pub certified: Certified,
    scratch: PathBuf,
}

impl Ground {
    /// PostgreSQL with the role of the application.
    pub fn start(scratch: &Path) -> Result<Self, Failure> {
        let authority = Authority::new("figures")?;
        let certified = authority.certify()?;
        let postgres = Postgres::guarded(scratch, &certified)?;
        postgres.sql(&format!("create role {ROLE} login password '{PASSWORD}'"))?;
        Ok(Self { postgres, authority, certified, scratch: scratch.to_owned() })
    }

    /// What stands before PgBouncer; `changes` are lines of shell that see its file as `$1`, and start it as `$real`.
    pub fn pooler(&self, name: &str, changes: &str) -> Result<PathBuf, Failure> {
        let (program, real) = (self.scratch.join(name), lab_program("pgbouncer")?);
        let real = real.display();
        fs::write(
            &program,
            format!("#!/bin/sh\nreal={real}\n[ \"$1\" != -V ] || exec $real -V\n{changes}\nexec $real \"$1\"\n"),
        )?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(program)
    }

    /// The PgBouncer that lets clients log in like this.
    pub fn pooler_for(&self, login: Login) -> Result<PathBuf, Failure> {
        let trust =
            "sed 's/^auth_type = .*/auth_type = trust/' \"$1\" > \"$1.trust\" && exec $real \"$1.trust\"\nexit 1";
        match login {
            Login::Trust => self.pooler("pgbouncer-trust", trust),
            Login::ScramTls => lab_program("pgbouncer"),
        }
    }

    /// Where a pooler is, and how clients log in there.
    pub fn target(&self, port: u16, login: Login, user: &str, password: &str) -> Result<Target, Failure> {
        let mut config = tokio_postgres::Config::new();
        config.user(user).password(password).dbname(DATABASE);
        let tls = match login {
            Login::Trust => None,
            Login::ScramTls => Some(self.authority.trusted()?),
        };
        Ok(Target { address: SocketAddr::from(([127, 0, 0, 1], port)), login: config, tls })
    }
}

/// A sidecar.
pub struct Subject {
    directory: PathBuf,
    login: Login,
    postgres_port: u16,
    /// Where clients come to.
    pub port: u16,
    /// Where the agent answers.
    pub agent_port: u16,
    pooler: PathBuf,
    agent: PathBuf,
    process: Option<Process>,
    revision: u64,
    seq: u64,
    share: u32,
}

impl Subject {
    /// A running one below `directory`, with revision 1 and a grant of [`SHARE`].
    pub fn start(ground: &Ground, directory: &Path, login: Login, pooler: PathBuf) -> Result<Self, Failure> {
        Self::of_agent(product_program("sluice-agent")?, ground, directory, login, pooler, &ground.authority.pem)
    }

    /// The same with this program as its agent, and this CA bundle to verify the database with.
    pub fn of_agent(
        agent: PathBuf,
        ground: &Ground,
        directory: &Path,
        login: Login,
        pooler: PathBuf,
        bundle: &str,
    ) -> Result<Self, Failure> {
        let config = directory.join("config");
        pod::write_configuration(&config, "Share")?;
        let mut subject = Self {
            directory: directory.to_owned(),
            login,
            postgres_port: ground.postgres.port,
            port: free_port()?,
            agent_port: free_port()?,
            pooler,
            agent,
            process: None,
            revision: 1,
            seq: 1,
            share: SHARE,
        };
        for (file, content) in [
            ("credentials/username", ROLE),
            ("credentials/password", PASSWORD),
            ("server-ca/ca.crt", bundle),
            ("client-tls/tls.crt", ground.certified.certificate.as_str()),
            ("client-tls/tls.key", ground.certified.key.as_str()),
        ] {
            subject.write(file, content)?;
        }
        let mut command = Command::new(lab_program("unroot")?);
        subject.paths(|sidecar| sidecar.complete(&mut command))?;
        subject.process = Some(Process::start(&mut command, &directory.join("agent.log"))?);
        subject.until("the sidecar serves", |status| status.seq == 1)?;
        Ok(subject)
    }

    fn paths<T>(&self, then: impl FnOnce(pod::Sidecar<'_>) -> T) -> T {
        let path = |volume: &str| self.directory.join(volume);
        then(pod::Sidecar {
            config: &path("config"),
            run: &path("run"),
            state: &path("state"),
            postgres_port: self.postgres_port,
            port: self.port,
            agent_port: self.agent_port,
            pgbouncer: &self.pooler,
            agent: &self.agent,
            tls: if self.login == Login::Trust { Tls::Neither } else { Tls::Both },
        })
    }

    /// Writes a file of the configuration volume as a whole.
    pub fn write(&self, file: &str, content: &str) -> Result<(), Failure> {
        let path = self.directory.join("config").join(file);
        fs::create_dir_all(path.parent().ok_or("no directory")?)?;
        let aside = path.with_extension("aside");
        fs::write(&aside, content)?;
        Ok(fs::rename(aside, path)?)
    }

    /// Asks for the next revision, with these parameters of PgBouncer and this warm time of the old process. Its number.
    pub fn revise(&mut self, parameters: &[(&str, &str)], scale_down_delay_seconds: u32) -> Result<u64, Failure> {
        self.revision += 1;
        let mut document: Value =
            serde_json::from_str(&fs::read_to_string(self.directory.join("config").join("revision"))?)?;
        let pool = &mut document["pools"]["shop"];
        pool["revision"] = json!(self.revision);
        let parameters: serde_json::Map<_, _> =
            parameters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        pool["settings"]["parameters"] = json!(parameters);
        pool["settings"]["rollout"] =
            json!({"scaleDownDelaySeconds": scale_down_delay_seconds, "drainTimeoutSeconds": 0});
        self.write("revision", &document.to_string())?;
        Ok(self.revision)
    }

    /// Grants another share, `floor` of it for ever. Its number.
    pub fn grant(&mut self, share: u32, floor: u32) -> Result<u64, Failure> {
        self.seq += 1;
        let granted = share.max(self.share);
        self.share = share;
        let grant = json!({"seq": self.seq, "share": share, "granted": granted, "floor": floor.min(share)});
        self.write("grant", &json!({"v": 1, "epoch": 1, "pools": {"shop": grant}}).to_string())?;
        Ok(self.seq)
    }

    /// What the agent says.
    pub fn status(&self) -> Result<StatusReport, Failure> {
        self.paths(|sidecar| sidecar.status())
    }

    /// Waits until the agent says what is wanted.
    pub fn until(&self, what: &str, wanted: impl Fn(&StatusReport) -> bool) -> Result<StatusReport, Failure> {
        wait_for(what, WITHIN, || self.status().ok().filter(&wanted)).map_err(|error| {
            let said = self.status().map_or_else(|error| error.to_string(), |status| format!("{status:?}"));
            format!("{error}; {said}").into()
        })
    }

    /// The sum of the series that begin with this.
    pub fn metric(&self, beginning: &str) -> Result<f64, Failure> {
        let page = self.paths(|sidecar| sidecar.get("/metrics"))?;
        let values = page.lines().filter(|line| line.starts_with(beginning));
        Ok(values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    /// What keeper and agent have logged.
    pub fn log(&self) -> Result<String, Failure> {
        Ok(fs::read_to_string(self.directory.join("agent.log"))?)
    }

    /// Times that new clients were led to another process, and the microseconds that it took last.
    pub fn flips(&self) -> Result<(usize, Option<u64>), Failure> {
        let log = self.log()?;
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("clients are led to slot")).collect();
        let last = lines.last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        Ok((lines.len(), last.and_then(|line| line["microseconds"].as_u64())))
    }

    /// The keeper.
    pub fn keeper(&self) -> Result<&Process, Failure> {
        self.process.as_ref().ok_or_else(|| "it does not run".into())
    }

    /// The agent's process.
    pub fn agent(&self) -> Result<u32, Failure> {
        Ok(*self.keeper()?.children()?.0.first().ok_or("no agent runs")?)
    }

    /// The processes of PgBouncer.
    pub fn poolers(&self) -> Result<Vec<u32>, Failure> {
        Ok(self.keeper()?.children()?.1)
    }
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: Signal) -> Result<(), Failure> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no process")?;
    Ok(kill_process(pid, signal)?)
}
