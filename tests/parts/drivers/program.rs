//! A driver's program: it is told where to connect, and tells of each operation that it has run.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use serde::Deserialize;

/// Languages of the lab and their drivers.
pub const LANGUAGES: [(&str, &[&str]); 5] = [
    ("go", &["pgx"]),
    ("java", &["pgjdbc"]),
    ("node", &["node-postgres", "postgres.js"]),
    ("python", &["asyncpg", "django", "psycopg", "sqlalchemy"]),
    ("rust", &["sqlx", "tokio-postgres"]),
];

/// How a client reaches the database.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Through the sidecar.
    Pool,
    /// Without any pooler, as control.
    Direct,
}

/// The first line of a program.
#[derive(Clone, Debug, Deserialize)]
pub struct Introduction {
    pub driver: String,
    pub version: String,
    pub operations: Vec<String>,
}

/// The line of an operation that has ended.
#[derive(Clone, Debug, Deserialize)]
pub struct Told {
    pub way: Way,
    pub worker: String,
    pub operation: String,
    pub milliseconds: u64,
    pub code: Option<String>,
    pub message: Option<String>,
}

/// What a program has said, and when.
#[derive(Clone, Debug)]
pub enum Line {
    Introduction(Introduction),
    Operation {
        driver: &'static str,
        told: Told,
        at: Instant,
    },
    /// It ended, with what it wrote to its standard error.
    End {
        driver: &'static str,
        errors: String,
    },
}

/// Where the programs of the drivers are; each is named after its language.
pub fn directory() -> PathBuf {
    let directory = env::var_os("SLUICE_LAB_DRIVERS");
    directory.expect("SLUICE_LAB_DRIVERS is set by: export SLUICE_LAB_DRIVERS=$(tests/lab/lab drivers)").into()
}

/// One that runs; it ends when this is dropped.
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Program {
    /// Starts one; its lines go to `lines`.
    pub fn start(
        program: &Path,
        driver: &'static str,
        left_out: &[&str],
        environment: &BTreeMap<&str, String>,
        lines: Sender<Line>,
    ) -> Self {
        let mut command = Command::new(program);
        // what the machine has for libpq would be no default of a driver
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        let mut child = command
            .arg(driver)
            .args(left_out)
            .envs(environment)
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
        std::thread::spawn(move || {
            let mut first = true;
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let parsed = if first {
                    serde_json::from_str(&line).map(Line::Introduction)
                } else {
                    let at = Instant::now();
                    serde_json::from_str(&line).map(|told| Line::Operation { driver, told, at })
                };
                first = false;
                // nobody listens any more once the test has its verdict
                let _ = lines.send(parsed.unwrap_or_else(|error| panic!("{driver} said {line}: {error}")));
            }
            let _ = lines.send(Line::End { driver, errors: errors.join().unwrap_or_default() });
        });
        Self { child, stdin }
    }

    /// Asks it to end, once what it does has ended.
    pub fn ask_to_end(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.ask_to_end();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
