//! The operator of one build, within the memory that its chart gives it: it is killed beyond that, and started again whenever it has
//! ended, as by a kubelet.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::Value;

use super::{SYSTEM, sidecar::resident_kibibytes};
use crate::{
    Failure, node,
    process::{Process, wait_for},
    statistics, subject,
};

/// Where the webhook is.
pub const WEBHOOK: &str = "127.0.0.1:9443";
/// Where its health and metrics are.
const HTTP: &str = "127.0.0.1:8081";
/// Between two looks at its memory: the kernel kills at once, this after so long.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Who ends more often than this does not work at all.
const MOST_ENDS: u64 = 20;
/// A kubelet waits ten seconds before it starts a container again that has ended once.
const BACK_OFF: Duration = Duration::from_secs(10);

/// How it is started.
pub struct Program {
    /// The program.
    pub binary: PathBuf,
    /// Its servers of Prometheus.
    pub servers: PathBuf,
    /// Where its logs go.
    pub logs: PathBuf,
    /// What it may take.
    pub limit_kibibytes: u64,
    /// Between two ticks.
    pub tick_seconds: u64,
}

/// What was seen of it.
#[derive(Default)]
struct Seen {
    /// The most memory since somebody last asked.
    most_kibibytes: AtomicU64,
    kills: AtomicU64,
    /// Times that it ended by itself, as it does when it cannot renew its lease.
    ends: AtomicU64,
    /// Its logs so far: one for each start.
    starts: AtomicU64,
    pid: AtomicU32,
    failure: Mutex<Option<String>>,
}

/// A running operator.
pub struct Operator {
    program: Arc<Program>,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

impl Operator {
    /// Starts it.
    pub fn start(program: Program) -> Result<Self, Failure> {
        fs::create_dir_all(&program.logs)?;
        let program = Arc::new(program);
        let (seen, stop) = (Arc::<Seen>::default(), Arc::<AtomicBool>::default());
        let watching = {
            let (program, seen, stop) = (program.clone(), seen.clone(), stop.clone());
            thread::spawn(move || {
                if let Err(error) = keep_running(&program, &seen, &stop) {
                    *seen.failure.lock() = Some(error.to_string());
                }
            })
        };
        Ok(Self { program, seen, stop, watching: Some(watching) })
    }

    /// Waits until it leads.
    pub fn leads(&self, within: Duration) -> Result<(), Failure> {
        wait_for("the operator leads", within, || (!self.logged("this process is the leader").is_empty()).then_some(()))
    }

    /// Waits until it decides: one that finds its grants there may not have read anything yet.
    pub fn decides(&self, within: Duration) -> Result<(), Failure> {
        wait_for("the operator decides", within, || (!self.logged("target changed").is_empty()).then_some(()))
    }

    /// The most memory that it took since this was asked last, in KiB.
    pub fn most_kibibytes(&self) -> u64 {
        self.seen.most_kibibytes.swap(0, Ordering::Relaxed)
    }

    /// How often it was killed for its memory.
    pub fn kills(&self) -> u64 {
        self.seen.kills.load(Ordering::Relaxed)
    }

    /// How often it ended by itself.
    pub fn ends(&self) -> u64 {
        self.seen.ends.load(Ordering::Relaxed)
    }

    /// An error if it is not started any more.
    pub fn check(&self) -> Result<(), Failure> {
        self.seen.failure.lock().as_ref().map_or(Ok(()), |error| Err(error.clone().into()))
    }

    /// What all its processes have logged with this message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        for start in 0..self.seen.starts.load(Ordering::Relaxed) {
            let text = fs::read_to_string(self.program.log(start)).unwrap_or_default();
            // the last line may be half written
            let parsed = text.lines().filter(|line| line.contains(message));
            lines.extend(parsed.filter_map(|line| serde_json::from_str::<Value>(line).ok()));
        }
        lines.retain(|line| line["message"] == message);
        lines
    }

    /// CPU seconds of the process that runs now.
    pub fn cpu_seconds(&self) -> f64 {
        // one that has just ended has used nothing since
        Process::cpu_seconds_of(self.seen.pid.load(Ordering::Relaxed)).unwrap_or(0.0)
    }

    /// All ticks so far, in which pools of this namespace got another target, by their start.
    pub fn ticks(&self, namespace: &str) -> Result<Vec<DecidedTick>, Failure> {
        let mut ticks: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let beginning = format!("{namespace}/");
        for line in self.logged("target changed") {
            if let (Some(pool), Some(started)) = (line["pool"].as_str(), line["started"].as_str())
                && pool.starts_with(&beginning)
            {
                ticks.entry(started.to_owned()).or_default().push(node::unix_of(&line["timestamp"])?);
            }
        }
        let tick = |(started, decided): (String, Vec<f64>)| {
            let started = node::unix_of(&Value::from(started))?;
            let late = |decided: f64| (decided - started) * 1e3;
            Ok(DecidedTick {
                started,
                median_milliseconds: late(statistics::median(&decided)),
                last_milliseconds: late(decided.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
                decisions: decided.len(),
            })
        };
        ticks.into_iter().map(tick).collect()
    }
}

/// A tick that brought pools another target.
#[derive(Clone, Copy, Debug)]
pub struct DecidedTick {
    /// When it began, in Unix seconds.
    pub started: f64,
    /// From then until the middle one of its decisions.
    pub median_milliseconds: f64,
    /// And until the last one.
    pub last_milliseconds: f64,
    /// How many there were.
    pub decisions: usize,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watching) = self.watching.take() {
            let _ = watching.join();
        }
    }
}

impl Program {
    fn log(&self, start: u64) -> PathBuf {
        self.logs.join(format!("operator-{start}.log"))
    }

    fn run(&self, log: &Path) -> Result<Process, Failure> {
        let mut command = Command::new(&self.binary);
        command
            .args(["operator", "--namespace", SYSTEM, "--http-bind", HTTP, "--webhook-bind", WEBHOOK])
            .arg("--prometheus-config")
            .arg(&self.servers)
            .args(["--tick-seconds", &self.tick_seconds.to_string()]);
        Process::start(&mut command, log)
    }
}

fn keep_running(program: &Program, seen: &Seen, stop: &AtomicBool) -> Result<(), Failure> {
    while !stop.load(Ordering::Relaxed) {
        let log = program.log(seen.starts.load(Ordering::Relaxed));
        let process = program.run(&log)?;
        seen.pid.store(process.pid(), Ordering::Relaxed);
        seen.starts.fetch_add(1, Ordering::Relaxed);
        let end = watch(program, seen, stop, &process)?;
        drop(process);
        match end {
            End::Asked => return Ok(()),
            End::Killed => seen.kills.fetch_add(1, Ordering::Relaxed),
            End::ByItself if seen.ends.load(Ordering::Relaxed) >= MOST_ENDS => {
                return Err(format!("the operator ends again and again: {}", last_lines(&log)).into());
            }
            End::ByItself => seen.ends.fetch_add(1, Ordering::Relaxed),
        };
        thread::sleep(BACK_OFF);
    }
    Ok(())
}

/// How it came to its end.
enum End {
    /// It was to stop.
    Asked,
    /// It had more memory than it may.
    Killed,
    /// Nobody ended it.
    ByItself,
}

/// Looks at its memory until it ends, is to stop, or has more than its limit.
fn watch(program: &Program, seen: &Seen, stop: &AtomicBool, process: &Process) -> Result<End, Failure> {
    while !stop.load(Ordering::Relaxed) {
        // a process that has ended and was not waited for has no memory
        let Ok(now) = resident_kibibytes(process.pid()) else { return Ok(End::ByItself) };
        seen.most_kibibytes.fetch_max(now, Ordering::Relaxed);
        if now > program.limit_kibibytes {
            subject::signal(process.pid(), Signal::KILL)?;
            return Ok(End::Killed);
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(End::Asked)
}

/// The end of a log.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// The address of the webhook.
pub fn webhook() -> SocketAddr {
    WEBHOOK.parse().expect("an address")
}
