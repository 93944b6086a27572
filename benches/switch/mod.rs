//! Connections lost while the process behind an address is replaced by another one, under load.
//!
//! Four ways, one after the other, each with a PgBouncer of its own and the same load: clients that connect, ask and leave at a
//! steady rate, and clients that stay for 3 s and use a prepared statement. Nobody tries anything twice.
//!
//! - `switch`: the sidecar changes `pkt_buf`, which needs a new process; a change follows when the one before is over.
//! - `reload`: a bare PgBouncer takes over another file by SIGHUP. It changes no `pkt_buf`: the least that a change costs.
//! - `takeover`: `pgbouncer -R`.
//! - `reuseport`: a second PgBouncer with `so_reuseport` on the same port, then SIGTERM to the first one.
//!
//! Clients log in without a password, so that 1,000 logins a second fit on two cores: what stands before PgBouncer puts
//! `auth_type = trust` into its file.

mod report;

use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    Failure,
    load::{Clients, Target},
    machine,
    pod::{self, DATABASE, Postgres, USER},
    process::{Process, free_port, lab_program, wait_for},
    results::{self, Results, Samples},
    statistics,
};

const WITHIN: Duration = Duration::from_mins(1);
/// Between two changes, so that each meets a load that has settled.
const PAUSE: Duration = Duration::from_millis(500);

/// Options of `switch`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Changes of the sidecar.
    #[arg(long, default_value_t = 100)]
    switches: u32,
    /// Changes of each of PgBouncer's own ways.
    #[arg(long, default_value_t = 25)]
    others: u32,
    /// New connections per second.
    #[arg(long, default_value_t = 1100)]
    rate: u32,
    /// Clients that share this rate.
    #[arg(long, default_value_t = 16)]
    workers: u32,
    /// Clients that stay for 3 s.
    #[arg(long, default_value_t = 8)]
    long: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let bench = Bench { options: options.clone(), scratch: scratch.path(), postgres: Postgres::start(scratch.path())? };
    let mut samples =
        Samples::of("way,number,seconds,flip_microseconds,elapsed_seconds,connections,queries,failures,kinds");
    bench.switches(&mut samples)?;
    bench.own_ways(&mut samples)?;
    setting.insert(
        "load".into(),
        json!(format!(
            "{} new connections per second by {} clients; {} clients that stay for 3 s and ask every 10 ms; no password, no TLS",
            options.rate, options.workers, options.long
        )),
    );
    Ok(Results {
        name: "switch",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

struct Bench<'a> {
    options: Options,
    scratch: &'a Path,
    postgres: Postgres,
}

/// Clients at work, and what they have met.
struct Load {
    runtime: tokio::runtime::Runtime,
    clients: Clients,
    begin: Instant,
}

impl Load {
    fn start(options: &Options, port: u16) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut login = tokio_postgres::Config::new();
        login.user(USER).dbname(DATABASE);
        let target = Target { address: SocketAddr::from(([127, 0, 0, 1], port)), login, tls: None };
        let mut clients = Clients::new();
        let guard = runtime.enter();
        clients.churn(&target, options.workers, options.rate);
        for _ in 0..options.long {
            clients.stay(&target, Some(Duration::from_secs(3)), Duration::from_millis(10));
        }
        drop(guard);
        Ok(Self { runtime, clients, begin: Instant::now() })
    }

    fn sample(&self, samples: &mut Samples, way: &str, number: u32, seconds: f64, flip: Option<u64>) {
        let tally = &self.clients.tally;
        let failures = tally.failures();
        let kinds: Vec<String> = failures.iter().map(|(failure, count)| format!("{failure}={count}")).collect();
        let flip = flip.map(|flip| flip.to_string()).unwrap_or_default();
        samples.add(&format!(
            "{way},{number},{seconds:.4},{flip},{:.1},{},{},{},{}",
            self.begin.elapsed().as_secs_f64(),
            tally.connections(),
            tally.queries(),
            failures.values().sum::<u64>(),
            kinds.join(" ")
        ));
    }

    /// Lets everyone finish; the last row says what became of all.
    fn end(self, samples: &mut Samples, way: &str, number: u32) {
        let Self { runtime, clients, begin } = self;
        let tally = clients.tally.clone();
        runtime.block_on(clients.stop());
        let ended = Self { runtime, clients: Clients::with(tally), begin };
        ended.sample(samples, way, number, 0.0, None);
    }
}

impl Bench<'_> {
    /// PgBouncer that lets everyone in.
    fn trusting(&self) -> Result<PathBuf, Failure> {
        let (program, real) = (self.scratch.join("pgbouncer"), lab_program("pgbouncer")?);
        let real = real.display();
        let script = format!(
            "#!/bin/sh\n[ \"$1\" != -V ] || exec {real} -V\n\
             sed 's/^auth_type = .*/auth_type = trust/' \"$1\" > \"$1.trust\" && exec {real} \"$1.trust\"\n"
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(program)
    }

    fn switches(&self, samples: &mut Samples) -> Result<(), Failure> {
        let (config, run, state) = (self.scratch.join("config"), self.scratch.join("run"), self.scratch.join("state"));
        pod::write_configuration(&config, "Share")?;
        let (port, agent_port) = (free_port()?, free_port()?);
        let sidecar = pod::Sidecar {
            config: &config,
            run: &run,
            state: &state,
            postgres_port: self.postgres.port,
            port,
            agent_port,
            pgbouncer: &self.trusting()?,
        };
        let mut command = Command::new(lab_program("unroot")?);
        sidecar.complete(&mut command)?;
        let log = self.scratch.join("agent.log");
        let _agent = Process::start(&mut command, &log)?;
        wait_for("the sidecar serves", WITHIN, || sidecar.status().ok().filter(|status| status.seq == 1))?;
        let load = Load::start(&self.options, port)?;
        for number in 0..self.options.switches {
            sleep(PAUSE);
            let revision = u64::from(number) + 2;
            let begin = Instant::now();
            write_revision(&config, revision)?;
            wait_for("the revision is in force", WITHIN, || {
                sidecar.status().ok().filter(|status| status.revision == Some(revision))
            })?;
            let seconds = begin.elapsed().as_secs_f64();
            wait_for("the old process has ended", WITHIN, || {
                sidecar.status().ok().filter(|status| status.other.is_none())
            })?;
            load.sample(samples, "switch", number, seconds, last_flip(&log)?);
        }
        load.end(samples, "switch", self.options.switches);
        Ok(())
    }

    fn own_ways(&self, samples: &mut Samples) -> Result<(), Failure> {
        for way in ["reload", "takeover", "reuseport"] {
            let port = free_port()?;
            let mut pooler = self.bare(way, port, 0, false)?;
            let load = Load::start(&self.options, port)?;
            for number in 0..self.options.others {
                sleep(PAUSE);
                let begin = Instant::now();
                match way {
                    "reload" => {
                        fs::write(self.ini(way, 0), self.file(way, port, 0, 20 + number % 2))?;
                        signal(&pooler, Signal::HUP)?;
                    }
                    "takeover" => {
                        let next = self.bare(way, port, 0, true)?;
                        // the one before ends by itself once it has handed everything over
                        drop(std::mem::replace(&mut pooler, next));
                    }
                    _ => {
                        let next = self.bare(way, port, number + 1, false)?;
                        // SIGTERM: it ends with its last client
                        drop(std::mem::replace(&mut pooler, next));
                    }
                }
                load.sample(samples, way, number, begin.elapsed().as_secs_f64(), None);
            }
            load.end(samples, way, self.options.others);
        }
        Ok(())
    }

    fn ini(&self, way: &str, generation: u32) -> PathBuf {
        self.scratch.join(format!("{way}-{generation}.ini"))
    }

    fn socket_dir(&self, way: &str, generation: u32) -> PathBuf {
        self.scratch.join(format!("{way}-{generation}"))
    }

    fn file(&self, way: &str, port: u16, generation: u32, wait: u32) -> String {
        format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={} dbname={DATABASE} user={USER}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir = {}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 20\n\
             max_client_conn = 1000\nmax_prepared_statements = 200\nlisten_backlog = 4096\nso_reuseport = {}\nquery_wait_timeout = {wait}\n\
             log_connections = 0\nlog_disconnections = 0\n",
            self.postgres.port,
            self.socket_dir(way, generation).display(),
            u8::from(way == "reuseport"),
        )
    }

    fn bare(&self, way: &str, port: u16, generation: u32, takes_over: bool) -> Result<Process, Failure> {
        let (ini, sockets) = (self.ini(way, generation), self.socket_dir(way, generation));
        fs::create_dir_all(&sockets)?;
        fs::write(&ini, self.file(way, port, generation, 20))?;
        let log = self.scratch.join(format!("{way}-{generation}.log"));
        let mut command = Command::new(lab_program("pgbouncer")?);
        if takes_over {
            command.arg("-R");
        }
        let pooler = Process::start(command.arg(&ini), &log)?;
        wait_for("PgBouncer is up", WITHIN, || {
            let up = fs::read_to_string(&log).unwrap_or_default().contains("process up");
            (up && UnixStream::connect(sockets.join(format!(".s.PGSQL.{port}"))).is_ok()).then_some(())
        })?;
        Ok(pooler)
    }
}

fn signal(process: &Process, signal: Signal) -> Result<(), Failure> {
    let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw).ok_or("no process")?;
    Ok(kill_process(pid, signal)?)
}

/// Another `pkt_buf` each time, and no longer a warm time than there has to be.
fn write_revision(config: &Path, revision: u64) -> Result<(), Failure> {
    let path = config.join("revision");
    let mut document: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let pool = &mut document["pools"]["shop"];
    pool["revision"] = json!(revision);
    pool["settings"]["parameters"] = json!({"pkt_buf": (4608 - 512 * (revision % 2)).to_string()});
    pool["settings"]["rollout"] = json!({"scaleDownDelaySeconds": 1, "drainTimeoutSeconds": 0});
    let aside = config.join("revision.aside");
    fs::write(&aside, document.to_string())?;
    Ok(fs::rename(aside, path)?)
}

/// Microseconds that the last steering took, from the keeper's log.
fn last_flip(log: &Path) -> Result<Option<u64>, Failure> {
    let text = fs::read_to_string(log)?;
    let line = text.lines().rev().find(|line| line.contains("clients are led to"));
    Ok(line.and_then(|line| serde_json::from_str::<Value>(line).ok()).and_then(|line| line["microseconds"].as_u64()))
}
