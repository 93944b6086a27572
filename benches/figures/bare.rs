//! PgBouncer alone, with a file of its own: what a figure of the sidecar stands beside.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{
    Failure,
    pod::{DATABASE, SHARE},
    process::{Process, free_port, lab_program, wait_for},
    subject::{Ground, Login, PASSWORD, ROLE, WITHIN, signal},
};

/// What differs from one file to the next.
#[derive(Clone, Debug)]
pub struct File {
    /// `default_pool_size`.
    pub pool_size: u32,
    /// `query_wait_timeout`.
    pub query_wait_timeout: u32,
    /// `server_lifetime`.
    pub server_lifetime: u32,
    /// User and password.
    pub account: (String, String),
    /// CA bundle for the database.
    pub server_ca: String,
}

impl File {
    /// As the sidecar begins.
    pub fn first(ground: &Ground) -> Self {
        Self {
            pool_size: SHARE,
            query_wait_timeout: 20,
            server_lifetime: 3600,
            account: (ROLE.to_owned(), PASSWORD.to_owned()),
            server_ca: ground.authority.pem.clone(),
        }
    }
}

/// PgBouncer processes that follow each other at one port.
pub struct Bare<'a> {
    ground: &'a Ground,
    directory: PathBuf,
    login: Login,
    /// Where clients come to.
    pub port: u16,
    so_reuseport: bool,
    generation: u32,
    process: Option<Process>,
}

impl<'a> Bare<'a> {
    /// A running one below `directory`.
    pub fn start(
        ground: &'a Ground,
        directory: &Path,
        login: Login,
        so_reuseport: bool,
        file: &File,
    ) -> Result<Self, Failure> {
        fs::create_dir_all(directory)?;
        for (name, content) in [("tls.crt", &ground.certified.certificate), ("tls.key", &ground.certified.key)] {
            fs::write(directory.join(name), content)?;
        }
        let directory = directory.to_owned();
        let mut bare =
            Self { ground, directory, login, port: free_port()?, so_reuseport, generation: 0, process: None };
        bare.process = Some(bare.launch(file, false)?);
        Ok(bare)
    }

    /// Another file by SIGHUP.
    pub fn reload(&self, file: &File) -> Result<(), Failure> {
        self.write(file)?;
        signal(self.process.as_ref().ok_or("it does not run")?.pid(), Signal::HUP)
    }

    /// Another process by `pgbouncer -R`. The one before ends by itself once it has handed everything over.
    pub fn take_over(&mut self, file: &File) -> Result<(), Failure> {
        let next = self.launch(file, true)?;
        drop(self.process.replace(next));
        Ok(())
    }

    /// Another process on the same port, then SIGTERM to the one before, which ends with its last client.
    pub fn stand_beside(&mut self, file: &File) -> Result<(), Failure> {
        self.generation += 1;
        let next = self.launch(file, false)?;
        drop(self.process.replace(next));
        Ok(())
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{}{kind}", self.generation))
    }

    fn write(&self, file: &File) -> Result<(), Failure> {
        let [auth_file, server_ca] = [".users", ".ca"].map(|kind| self.path(kind));
        fs::write(&auth_file, format!("\"{}\" \"{}\"\n", file.account.0, file.account.1))?;
        fs::write(&server_ca, &file.server_ca)?;
        let guard = match self.login {
            Login::Trust => "auth_type = trust\n".to_owned(),
            Login::ScramTls => format!(
                "auth_type = scram-sha-256\nclient_tls_sslmode = require\nclient_tls_cert_file = {directory}/tls.crt\n\
                 client_tls_key_file = {directory}/tls.key\nserver_tls_sslmode = verify-full\nserver_tls_ca_file = {}\n",
                server_ca.display(),
                directory = self.directory.display(),
            ),
        };
        let text = format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={} dbname={DATABASE} user={}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir = {}\nauth_file = {}\n{guard}pool_mode = transaction\n\
             default_pool_size = {}\nmax_client_conn = 1000\nmax_prepared_statements = 200\nlisten_backlog = 4096\n\
             so_reuseport = {}\nquery_wait_timeout = {}\nserver_lifetime = {}\nlog_connections = 0\nlog_disconnections = 0\n",
            self.ground.postgres.port,
            file.account.0,
            self.port,
            self.path(".sockets").display(),
            auth_file.display(),
            file.pool_size,
            u8::from(self.so_reuseport),
            file.query_wait_timeout,
            file.server_lifetime,
        );
        Ok(fs::write(self.path(".ini"), text)?)
    }

    fn launch(&self, file: &File, takes_over: bool) -> Result<Process, Failure> {
        let (sockets, log) = (self.path(".sockets"), self.path(".log"));
        fs::create_dir_all(&sockets)?;
        self.write(file)?;
        let mut command = Command::new(lab_program("pgbouncer")?);
        if takes_over {
            command.arg("-R");
        }
        let process = Process::start(command.arg(self.path(".ini")), &log)?;
        wait_for("PgBouncer is up", WITHIN, || {
            let up = fs::read_to_string(&log).unwrap_or_default().contains("process up");
            (up && UnixStream::connect(sockets.join(format!(".s.PGSQL.{}", self.port))).is_ok()).then_some(())
        })?;
        Ok(process)
    }
}
