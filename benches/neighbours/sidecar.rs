//! A real sidecar with clients at work, within the memory that a pod's sidecar has, and the connections that somebody leaves standing
//! at its agent.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::process::Signal;

use crate::{
    Failure,
    clients::Load,
    load::Clients,
    process::Memory,
    subject::{self, Ground, Login, PASSWORD, ROLE, Subject},
};

/// Clients that stay and ask again and again, and what stands between two questions: so much that they leave the cores to what is timed.
const STAYERS: u32 = 50;
const THINK: Duration = Duration::from_millis(500);
/// Clients that come, ask one thing and leave, a second.
const COMERS_PER_SECOND: u32 = 10;
/// Between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest wait of the operator for an agent's answer.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// Resident memory of a process, in KiB.
pub fn resident_kibibytes(pid: u32) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmRSS in /proc/PID/status")?.parse()?)
}

/// The sidecar, its clients, and who watches its memory.
pub struct Sidecar {
    subject: Subject,
    load: Load,
    clients: Vec<Clients>,
    watch: Arc<Watch>,
    watching: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Watch {
    most_kibibytes: AtomicU64,
    is_killed: AtomicBool,
    stop: AtomicBool,
    answers: Mutex<Answers>,
}

/// How the agent answered whoever asked for its status once a second.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Milliseconds until each answer.
    pub milliseconds: Vec<f64>,
    /// Questions without an answer in time.
    pub none: u64,
}

impl Sidecar {
    /// Starts one whose agent is this program, with clients at work.
    pub fn start(ground: &Ground, directory: &Path, agent: PathBuf, limit_kibibytes: u64) -> Result<Self, Failure> {
        let pooler = ground.pooler_for(Login::Trust)?;
        let subject = Subject::of_agent(agent, ground, directory, Login::Trust, pooler, &ground.authority.pem)?;
        let target = ground.target(subject.port, Login::Trust, ROLE, PASSWORD)?;
        let load = Load::new()?;
        let stay = load.stay(|clients| (0..STAYERS).for_each(|_| clients.stay(&target, None, THINK)));
        let clients = vec![stay, load.come(&target, 4, COMERS_PER_SECOND)];
        let watch = Arc::<Watch>::default();
        let (processes, asked) = (subject.keeper()?.pid(), SocketAddr::from(([127, 0, 0, 1], subject.agent_port)));
        let watching = {
            let watch = watch.clone();
            thread::spawn(move || watch.run(processes, asked, limit_kibibytes))
        };
        Ok(Self { subject, load, clients, watch, watching: Some(watching) })
    }

    /// Where its agent answers.
    pub fn agent(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.subject.agent_port))
    }

    /// What its clients have met so far: failures.
    pub fn failures(&self) -> u64 {
        self.load.failures()
    }

    /// The most memory that all its processes took since this was asked last, in KiB.
    pub fn most_kibibytes(&self) -> u64 {
        self.watch.most_kibibytes.swap(0, Ordering::Relaxed)
    }

    /// Whether it was killed for its memory.
    pub fn is_killed(&self) -> bool {
        self.watch.is_killed.load(Ordering::Relaxed)
    }

    /// How its agent answered since this was asked last.
    pub fn answers(&self) -> Answers {
        std::mem::take(&mut *self.watch.answers.lock())
    }

    /// Lets the clients go.
    pub fn end(mut self) {
        for clients in self.clients.drain(..) {
            self.load.leave(clients);
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.watch.stop.store(true, Ordering::Relaxed);
        if let Some(watching) = self.watching.take() {
            let _ = watching.join();
        }
    }
}

impl Watch {
    fn run(&self, keeper: u32, agent: SocketAddr, limit_kibibytes: u64) {
        let mut ask = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let processes = family(keeper);
            // those that share pages share their cost; one that ended meanwhile costs nothing
            let memory = processes.iter().filter_map(|pid| Memory::of(*pid).ok());
            let now = memory.map(|memory| memory.proportional).sum();
            self.most_kibibytes.fetch_max(now, Ordering::Relaxed);
            if now > limit_kibibytes && !self.is_killed.swap(true, Ordering::Relaxed) {
                for pid in processes {
                    // it may have ended by itself
                    let _ = subject::signal(pid, Signal::KILL);
                }
            }
            if Instant::now() >= ask {
                ask += Duration::from_secs(1);
                self.ask(agent);
            }
            sleep(LOOK_EVERY);
        }
    }

    fn ask(&self, agent: SocketAddr) {
        let begin = Instant::now();
        let answer = question(agent);
        let mut answers = self.answers.lock();
        if answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200")) {
            answers.milliseconds.push(begin.elapsed().as_secs_f64() * 1e3);
        } else {
            answers.none += 1;
        }
    }
}

fn question(agent: SocketAddr) -> Result<String, Failure> {
    let mut stream = TcpStream::connect_timeout(&agent, ASK_DEADLINE)?;
    stream.set_read_timeout(Some(ASK_DEADLINE))?;
    std::io::Write::write_all(&mut stream, b"GET /status HTTP/1.0\r\nHost: agent\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A process and all that descend from it.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.flat_map(family).chain([pid]).collect()
}

/// Connections that stand at an agent and say nothing; closed ones are made anew.
pub struct Idle {
    stop: Arc<AtomicBool>,
    standing: Arc<AtomicU64>,
    keeping: Option<JoinHandle<()>>,
}

impl Idle {
    /// Makes so many.
    pub fn start(agent: SocketAddr, connections: usize) -> Self {
        let (stop, standing) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let keeping = {
            let (stop, standing) = (stop.clone(), standing.clone());
            thread::spawn(move || keep(agent, connections, &stop, &standing))
        };
        Self { stop, standing, keeping: Some(keeping) }
    }

    /// How many the agent suffers now.
    pub fn standing(&self) -> u64 {
        self.standing.load(Ordering::Relaxed)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(keeping) = self.keeping.take() {
            let _ = keeping.join();
        }
    }
}

fn keep(agent: SocketAddr, connections: usize, stop: &AtomicBool, standing: &AtomicU64) {
    let mut streams: Vec<TcpStream> = Vec::with_capacity(connections);
    while !stop.load(Ordering::Relaxed) {
        // who is refused tries again next second
        let missing = connections - streams.len();
        for _ in 0..missing {
            let Ok(stream) = TcpStream::connect_timeout(&agent, Duration::from_millis(200)) else { break };
            if stream.set_nonblocking(true).is_err() {
                break;
            }
            streams.push(stream);
        }
        sleep(Duration::from_secs(1));
        streams.retain_mut(
            |stream| matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock),
        );
        standing.store(u64::try_from(streams.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
