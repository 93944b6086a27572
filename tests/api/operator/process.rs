//! The real operator as a process of its own: started, killed, asked.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Mutex, MutexGuard};

use crate::cluster::{Cluster, eventually};

/// One operator looks after all namespaces: the tests that start one take turns.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits for the turn of this test.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A running `sluice operator`. Killed without a chance to tidy up when dropped.
pub struct Operator {
    child: Child,
    http: String,
    log: PathBuf,
}

impl Operator {
    /// Starts one that ticks each second unless told otherwise. Those of one namespace stand for the replicas of one Deployment.
    pub fn start(cluster: &Cluster, name: &str, extra: &[&str]) -> Self {
        Self::start_with(cluster, name, extra, None)
    }

    /// Starts one that reaches the API server through this kubeconfig.
    pub fn start_with(cluster: &Cluster, name: &str, extra: &[&str], kubeconfig: Option<&Path>) -> Self {
        let [http, webhook] = [free_address(), free_address()];
        let log = std::env::temp_dir().join(format!("{}-{name}-{}.log", cluster.namespace, std::process::id()));
        let output = File::create(&log).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["operator", "--namespace", &cluster.namespace, "--pod-name", name])
            .args(["--http-bind", &http])
            .args(if extra.contains(&"--webhook-bind") { vec![] } else { vec!["--webhook-bind", &webhook] })
            .args(["--log-level", "info,sluice=debug"])
            .args(if extra.is_empty() { &["--tick-seconds", "1"] } else { extra })
            .envs(kubeconfig.map(|path| ("KUBECONFIG", path)))
            .stdout(Stdio::from(output.try_clone().expect("a log file")))
            .stderr(Stdio::from(output))
            .spawn()
            .expect("the operator starts");
        Self { child, http, log }
    }

    /// What it serves at a path.
    pub async fn get(&self, path: &str) -> Option<String> {
        let answer = reqwest::Client::new().get(format!("http://{}{path}", self.http)).send().await.ok()?;
        answer.text().await.ok()
    }

    /// A metric without labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").await?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until it leads.
    pub async fn leads(&self) {
        eventually("the operator leads", || async {
            (self.metric("sluice_operator_leader").await == Some(1.0)).then_some(())
        })
        .await;
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM: it ends in order.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("told");
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the operator's last words\n{}", last(&self.log(), 40));
        } else {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

fn last(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// An address of loopback that nobody uses.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}
