//! What breaks while clients work: poolers, Prometheus, the operator, the API server.

mod grants;
mod leader;
#[path = "../../../benches/figures/pod_processes.rs"]
mod pod_processes;
mod pooler;
mod prometheus;
#[path = "../../../benches/figures/proxy.rs"]
mod proxy;

use std::{
    env, fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MINUTE: Duration = Duration::from_mins(1);

/// Unix time in seconds; the database beside the node has the same clock.
fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// The processes of a pod that run this program.
fn processes(pod: &Value, program: &str) -> Vec<Pid> {
    pod_processes::of_pod(pod["metadata"]["uid"].as_str().expect("a uid"), program)
}

/// The one process of a pod that runs this program.
fn process(pod: &Value, program: &str) -> Pid {
    let found = processes(pod, program);
    assert_eq!(found.len(), 1, "processes {program} of {}: {found:?}", pod["metadata"]["name"]);
    found[0]
}

/// A component of the lab that stands still for as long as this lives.
struct Paused(Pid);

impl Paused {
    fn component(name: &str) -> Self {
        let run = env::var("SLUICE_LAB_RUN").expect("run this through tests/run node");
        let file = fs::read_to_string(format!("{run}/pids/{name}")).expect("the lab keeps the pids of its components");
        let pid = file.split(' ').next().and_then(|pid| Pid::from_raw(pid.parse().ok()?)).expect("a pid");
        signal(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

/// Sends a signal. A process that has ended meanwhile is fine.
fn signal(pid: Pid, signal: Signal) {
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("{signal:?} to {pid:?}: {error}"),
    }
}
