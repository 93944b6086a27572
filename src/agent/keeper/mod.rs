//! The first process of the sidecar: holds what must outlive the agent.
//!
//! The keeper opens the sockets that clients come to, is the parent of the poolers, and starts the agent again when it ends. So
//! the agent's death, whatever its cause, cuts no client: the poolers go on, and the next agent learns from the keeper
//! what runs. The keeper decides nothing but this; when it ends, the container ends.

mod exec;
mod link;
mod listeners;
mod listening;
mod orders;
mod steering;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt, net::UnixStream as StdStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
    time::Duration,
};

pub use exec::{ExecError, ExecOptions, exec};
pub use link::{Link, LinkError};
pub use listeners::strangers;
pub use listening::count_listening;
pub use orders::{Ending, KeeperState, Launch, Listening, Order, ProcessState, SlotState};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat},
    process::{
        Pid, Resource, Rlimit, Signal, WaitOptions, getpid, getrlimit, kill_process, prlimit, set_child_subreaper,
        set_parent_process_death_signal, wait,
    },
};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Instant, sleep_until},
};

use self::listeners::Listeners;
use crate::agent::decide::slot_name::SlotName;

/// This program, should its file have been replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// First pause before the agent is started again; doubled with each death.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// An agent that lived so long starts with the first pause again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);
/// Beyond the agent's own grace, before what still runs is killed.
const SPARE_GRACE: Duration = Duration::from_secs(2);

/// Why the keeper ended with a failure.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The system refused what no sidecar can do without.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> KeeperError {
    move |source| KeeperError::System { what, source }
}

/// The agent's process.
struct AgentChild {
    pid: Pid,
    begin: Instant,
}

/// What we say to the agent.
struct Voice {
    line: OwnedWriteHalf,
    /// Orders taken from it.
    taken: u64,
    /// What has been rendered and not been written yet.
    pending: Vec<u8>,
    /// Whether the state has changed since it was rendered.
    changed: bool,
}

struct Keeper {
    program: PathBuf,
    arguments: Vec<OsString>,
    agent: Option<AgentChild>,
    voice: Option<Voice>,
    orders: Option<BufReader<OwnedReadHalf>>,
    pause: Duration,
    start_at: Option<Instant>,
    listeners: Option<Listeners>,
    listening: Listening,
    steered: SlotName,
    slots: [SlotState; 2],
    /// The bounds of those that may open no file now.
    without_files: [Option<Rlimit>; 2],
    logs: HashMap<PathBuf, File>,
    /// Set once we are asked to end: when what still runs is killed.
    ending: Option<Instant>,
}

/// Has this process end with the one that started it, whatever it is at then. That it had not ended before shows by its line.
pub fn end_with_parent() {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::warn!("asking to end with the keeper: {error}");
    }
}

/// Keeps until SIGTERM or SIGINT. `arguments` are those of the agent, which has `grace` to end.
///
/// # Errors
/// [`KeeperError`].
pub async fn keep(arguments: Vec<OsString>, grace: Duration) -> Result<ExitCode, KeeperError> {
    let listen = |kind| signal(kind).map_err(failed("receiving signals"));
    let mut ended: Signals = listen(SignalKind::child())?;
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    // as the first process of a container this is so anyway
    set_child_subreaper(Some(getpid())).map_err(|error| failed("adopting orphans")(error.into()))?;
    let program = std::env::current_exe().ok().filter(|program| program.is_file());
    let mut keeper = Keeper::new(program.unwrap_or_else(|| OWN_PROGRAM.into()), arguments);
    let mut line = Vec::new();
    loop {
        let due = keeper.start_at.or(keeper.ending);
        tokio::select! {
            _ = ended.recv() => {
                if let Some(code) = keeper.reap() {
                    return Ok(code);
                }
            }
            _ = terminate.recv() => keeper.end(grace),
            _ = interrupt.recv() => keeper.end(grace),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => keeper.due()?,
            result = next_order(&mut keeper.orders, &mut line) => keeper.take(result, &mut line),
            () = told(&mut keeper.voice, &keeper.listening, keeper.steered, &keeper.slots) => {}
        }
        if keeper.is_over() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The next line of the agent. Never ends without an agent.
async fn next_order(orders: &mut Option<BufReader<OwnedReadHalf>>, line: &mut Vec<u8>) -> io::Result<usize> {
    match orders {
        Some(orders) => orders.read_until(b'\n', line).await,
        None => std::future::pending().await,
    }
}

/// Tells the agent the state when it has changed, as far as the socket takes it. Never ends when there is nothing to tell.
async fn told(voice: &mut Option<Voice>, listening: &Listening, steered: SlotName, slots: &[SlotState; 2]) {
    let Some(voice) = voice.as_mut().filter(|voice| voice.changed || !voice.pending.is_empty()) else {
        return std::future::pending().await;
    };
    if voice.pending.is_empty() {
        let state = KeeperState { orders: voice.taken, listening: listening.clone(), steered, slots: slots.clone() };
        voice.pending = serde_json::to_vec(&state).unwrap_or_default();
        voice.pending.push(b'\n');
        voice.changed = false;
    }
    let written = match voice.line.writable().await {
        Ok(()) => voice.line.try_write(&voice.pending),
        Err(error) => Err(error),
    };
    match written {
        Ok(count) => drop(voice.pending.drain(..count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // it has gone: we are told by SIGCHLD
        Err(_) => voice.pending.clear(),
    }
}

impl Keeper {
    fn new(program: PathBuf, arguments: Vec<OsString>) -> Self {
        Self {
            program,
            arguments,
            agent: None,
            voice: None,
            orders: None,
            pause: FIRST_PAUSE,
            start_at: Some(Instant::now()),
            listeners: None,
            listening: Listening::Closed,
            steered: SlotName::A,
            slots: Default::default(),
            without_files: Default::default(),
            logs: HashMap::new(),
            ending: None,
        }
    }

    /// The time for the next start of the agent has come, or that for the end.
    fn due(&mut self) -> Result<(), KeeperError> {
        if self.ending.is_some() {
            tracing::warn!("the time to end is over: what still runs is killed");
            self.signal_all(Signal::KILL);
            // they end for certain; looked at again a second later
            self.ending = Some(Instant::now() + Duration::from_secs(1));
            return Ok(());
        }
        self.start_at = None;
        match self.start_agent() {
            Err(error) if self.has_poolers() => {
                tracing::error!("starting the agent again: {error}; the pooler goes on, and it is tried again");
                self.plan_start();
                Ok(())
            }
            result => result,
        }
    }

    fn start_agent(&mut self) -> Result<(), KeeperError> {
        let (ours, its) = StdStream::pair().map_err(failed("making the line to the agent"))?;
        ours.set_nonblocking(true).map_err(failed("making the line to the agent"))?;
        let (orders, line) = UnixStream::from_std(ours).map_err(failed("making the line to the agent"))?.into_split();
        let child = Command::new(&self.program)
            .arg("agent")
            .args(&self.arguments)
            .stdin(Stdio::from(OwnedFd::from(its)))
            .spawn()
            .map_err(failed("starting the agent"))?;
        self.agent = Some(AgentChild { pid: Pid::from_child(&child), begin: Instant::now() });
        self.voice = Some(Voice { line, taken: 0, pending: Vec::new(), changed: true });
        self.orders = Some(BufReader::new(orders));
        Ok(())
    }

    fn take(&mut self, read: io::Result<usize>, line: &mut Vec<u8>) {
        match (read, serde_json::from_slice(line)) {
            (Ok(1..), Ok(order)) => self.obey(order),
            (Ok(1..), Err(error)) => tracing::error!("an order that cannot be read: {error}"),
            // It has closed the line, so it ends, or cannot go on. Whether it has ended is told by SIGCHLD.
            _ => {
                self.orders = None;
                if let Some(agent) = &self.agent {
                    let _ = kill_process(agent.pid, Signal::KILL);
                }
            }
        }
        line.clear();
        if let Some(voice) = &mut self.voice {
            voice.taken += 1;
            voice.changed = true;
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Listen { addresses, port, may_steer } => {
                if self.listeners.is_none() {
                    match Listeners::open(&addresses, port, may_steer) {
                        Ok(listeners) => {
                            self.listening = listeners.listening();
                            self.listeners = Some(listeners);
                        }
                        Err(error) => self.listening = Listening::Failed { reason: error.to_string() },
                    }
                }
            }
            Order::Start { slot, launch } => self.start(slot, &launch),
            Order::Signal { slot, signal } => {
                let signal = match signal {
                    Ending::AfterTransactions => Signal::INT,
                    Ending::AtOnce => Signal::KILL,
                };
                self.signal(slot, signal);
            }
            Order::Steer { slot } => self.steer(slot),
            Order::Files { slot, allowed } => self.allow_files(slot, allowed),
            Order::HandOver { slot, bound } => {
                let left = slot.other();
                if self.slots[left.index()].leaving.is_none() {
                    self.signal(left, Signal::TERM);
                }
                self.slots[left.index()].leaving = Some(bound);
                self.slots[slot.index()].had_clients = true;
                if self.steered != slot {
                    tracing::info!("slot {} listens alone from now on", slot.as_str());
                }
                self.steered = slot;
            }
        }
    }

    fn allow_files(&mut self, slot: SlotName, allowed: bool) {
        let place = &mut self.without_files[slot.index()];
        let bound = match (allowed, *place) {
            (true, Some(before)) => before,
            // what it started with, but for the bound that it may go up to
            (false, None) => Rlimit { current: Some(0), ..getrlimit(Resource::Nofile) },
            (true, None) | (false, Some(_)) => return,
        };
        let ProcessState::Running { pid } = self.slots[slot.index()].process else {
            *place = None;
            return;
        };
        match prlimit(Pid::from_raw(pid), Resource::Nofile, bound) {
            Ok(before) => *place = (!allowed).then_some(before),
            Err(error) => tracing::error!(slot = slot.as_str(), "its bound of open files: {error}"),
        }
    }

    fn steer(&mut self, slot: SlotName) {
        let begin = Instant::now();
        match self.listeners.as_ref().map_or(Ok(()), |listeners| listeners.steer(slot)) {
            Ok(()) => {
                let microseconds = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                tracing::info!(microseconds, "new clients are led to slot {}", slot.as_str());
                self.steered = slot;
                self.slots[slot.index()].had_clients = true;
            }
            Err(error) => tracing::error!(slot = slot.as_str(), "steering: {error}"),
        }
    }

    fn start(&mut self, name: SlotName, launch: &Launch) {
        if let ProcessState::Running { .. } = self.slots[name.index()].process {
            tracing::error!(slot = name.as_str(), "a pooler runs there already; none was started");
            return;
        }
        let process = match self.spawn(name, launch) {
            Ok(pid) => ProcessState::Running { pid: pid.as_raw_nonzero().get() },
            Err(error) => ProcessState::NotStarted { reason: error.to_string() },
        };
        let shared = self.listeners.as_ref().is_some_and(Listeners::are_shared);
        let had_clients = self.steered == name || shared && launch.clients;
        self.slots[name.index()] = SlotState { generation: launch.generation, had_clients, leaving: None, process };
        self.without_files[name.index()] = None;
    }

    fn spawn(&mut self, name: SlotName, launch: &Launch) -> io::Result<Pid> {
        let log = match self.logs.get(&launch.log) {
            Some(log) => log.try_clone()?,
            None => self.logs.entry(launch.log.clone()).or_insert(open_pipe(&launch.log)?).try_clone()?,
        };
        let mut command = Command::new(&self.program);
        command.arg("exec").arg("--files").arg(launch.files.to_string());
        command.arg("--parent").arg(std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log));
        if let Some(console) = &launch.console {
            let listeners = self.listeners.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let sockets = if launch.clients { listeners.of(name, launch.backlog)? } else { Vec::new() };
            let mut sockets = sockets.into_iter();
            command.arg("--console").arg(console).arg("--sockets").arg(sockets.len().to_string());
            if let Some(first) = sockets.next() {
                command.stdin(Stdio::from(first));
            }
            if let Some(second) = sockets.next() {
                command.stdout(Stdio::from(second));
            }
        }
        Ok(Pid::from_child(&command.arg(&launch.program).arg(&launch.ini).spawn()?))
    }

    fn signal(&self, slot: SlotName, signal: Signal) {
        if let ProcessState::Running { pid } = self.slots[slot.index()].process
            && let Some(pid) = Pid::from_raw(pid)
        {
            // It is not reaped yet, so the number is still its own.
            let _ = kill_process(pid, signal);
        }
    }

    fn signal_all(&self, signal: Signal) {
        if let Some(agent) = &self.agent {
            let _ = kill_process(agent.pid, signal);
        }
        for slot in SlotName::ALL {
            self.signal(slot, signal);
        }
    }

    /// Takes in every process that has ended, ours and orphans. Answers how to end when there is nothing left to keep.
    fn reap(&mut self) -> Option<ExitCode> {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let status = ExitStatus::from_raw(status.as_raw());
            if let Some(agent) = self.agent.take_if(|agent| agent.pid == pid) {
                self.agent_ended(agent.begin);
                if self.ending.is_some() {
                    continue;
                }
                if !self.has_poolers() && status.code().is_some_and(|code| code != 0) {
                    // nothing to protect: Kubernetes shows better than we could that it does not start
                    return Some(ExitCode::FAILURE);
                }
                tracing::error!(%status, "the agent ended; it is started again, and the pooler goes on");
                continue;
            }
            let number = pid.as_raw_nonzero().get();
            let running = ProcessState::Running { pid: number };
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.process == running) {
                slot.process = ProcessState::Ended { status: status.to_string() };
            } else {
                tracing::debug!(pid = number, "reaped a process that was left behind");
            }
        }
        if let Some(voice) = &mut self.voice {
            voice.changed = true;
        }
        None
    }

    fn agent_ended(&mut self, begin: Instant) {
        (self.voice, self.orders) = (None, None);
        // it may have ended in the middle of it
        for slot in SlotName::ALL {
            self.allow_files(slot, true);
        }
        if self.ending.is_some() {
            // for one that leaves, a further signal would be the end of its clients
            for slot in SlotName::ALL.into_iter().filter(|slot| self.slots[slot.index()].leaving.is_none()) {
                self.signal(slot, Signal::INT);
            }
            return;
        }
        if begin.elapsed() >= FORGIVEN_AFTER {
            self.pause = FIRST_PAUSE;
        }
        self.plan_start();
    }

    fn plan_start(&mut self) {
        self.start_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn has_poolers(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.process, ProcessState::Running { .. }))
    }

    fn end(&mut self, grace: Duration) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Instant::now() + grace + SPARE_GRACE);
        self.start_at = None;
        match &self.agent {
            Some(agent) => drop(kill_process(agent.pid, Signal::TERM)),
            None => self.agent_ended(Instant::now()),
        }
    }

    fn is_over(&self) -> bool {
        self.ending.is_some() && self.agent.is_none() && !self.has_poolers()
    }
}

/// A pipe with a name, made if it is not there. We read it too, without ever doing so: a pooler neither fails nor waits for want of a
/// reader, and what does not fit is lost.
fn open_pipe(path: &Path) -> io::Result<File> {
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(error) if error != rustix::io::Errno::EXIST => return Err(error.into()),
        _ => {}
    }
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    File::options().read(true).write(true).custom_flags(nonblocking).open(path)
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use super::*;

    /// The bound of open files of a process.
    fn bound(process: &Child) -> String {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
        let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        files.split_whitespace().next().unwrap().to_owned()
    }

    #[test]
    fn an_agent_that_ends_while_a_process_may_open_no_file_does_not_leave_it_so() {
        let mut keeper = Keeper::new("agent".into(), Vec::new());
        let mut processes = SlotName::ALL.map(|slot| {
            let process = Command::new("sleep").arg("60").spawn().unwrap();
            let running = ProcessState::Running { pid: Pid::from_child(&process).as_raw_nonzero().get() };
            keeper.slots[slot.index()] = SlotState { generation: 1, process: running, ..SlotState::default() };
            process
        });
        let before = processes.each_ref().map(bound);
        for slot in SlotName::ALL {
            keeper.obey(Order::Files { slot, allowed: false });
        }
        let meanwhile = processes.each_ref().map(bound);
        keeper.agent_ended(Instant::now());
        let after = processes.each_ref().map(bound);
        for process in &mut processes {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        assert_eq!((meanwhile.each_ref().map(String::as_str), after), (["0", "0"], before));
    }
}
