//! Clients inside a pod of the lab's node: they come to the pooler over the pod's own loopback, as its application does.
//!
//! Their process is this program once more, in the network namespace of the pod. What they have met so far it prints twice a second.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::process::parent_id,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use clap::Args;

use crate::{
    Failure,
    clients::{self, Load},
    load::Target,
    node::{self, PASSWORD, ROLE},
    pod_processes,
    process::{Process, wait_for},
    statistics::rows,
};

/// Between two lines of what they have met.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// The program of the sidecar, which is in every pod.
const RESIDENT: &str = "sluice-agent";

/// Who is in a pod.
#[derive(Clone, Debug, Args)]
pub struct Crowd {
    /// Port of the pooler.
    #[arg(long)]
    pub port: u16,
    /// Clients that work for a second, leave and come again. They ask what the others do: a new process has them alone at first.
    #[arg(long)]
    pub comers: u32,
    /// Clients that stay for a while and work.
    #[arg(long)]
    pub stayers: u32,
    /// How long they stay, in seconds.
    #[arg(long)]
    pub stay_seconds: u32,
    /// How long they think between two pairs of questions, in milliseconds.
    #[arg(long)]
    pub think_milliseconds: u32,
    /// How long their second question keeps a server connection busy, in milliseconds.
    #[arg(long)]
    pub work_milliseconds: u32,
    /// Clients that prepare by SQL and stay for ever.
    #[arg(long)]
    pub executors: u32,
}

impl Default for Crowd {
    /// Four server connections at work, and little that a client itself costs.
    fn default() -> Self {
        Self {
            port: 5432,
            comers: 2,
            stayers: 4,
            stay_seconds: 40,
            think_milliseconds: 60,
            work_milliseconds: 100,
            executors: 0,
        }
    }
}

impl Crowd {
    fn arguments(&self) -> Vec<String> {
        let figures = [
            ("port", u32::from(self.port)),
            ("comers", self.comers),
            ("stayers", self.stayers),
            ("stay-seconds", self.stay_seconds),
            ("think-milliseconds", self.think_milliseconds),
            ("work-milliseconds", self.work_milliseconds),
            ("executors", self.executors),
        ];
        figures.iter().map(|(name, figure)| format!("--{name}={figure}")).collect()
    }

    /// In a sentence, for the setting of a figure.
    pub fn describe(&self) -> String {
        format!(
            "in each pod {} clients that come for a second and {} that stay for {} s, with a prepared question and one of {} ms every {} ms",
            self.comers, self.stayers, self.stay_seconds, self.work_milliseconds, self.think_milliseconds
        )
    }
}

/// Is the clients of a pod, until somebody ends this process or the one that it was started by.
pub fn be(crowd: &Crowd) -> Result<(), Failure> {
    let mut login = tokio_postgres::Config::new();
    login.user(ROLE).password(PASSWORD).dbname(ROLE);
    let target = Target { address: SocketAddr::from(([127, 0, 0, 1], crowd.port)), login, tls: None };
    let load = Load::new()?;
    let milliseconds = |figure: u32| Duration::from_millis(figure.into());
    let think = milliseconds(crowd.think_milliseconds);
    let work = milliseconds(crowd.work_milliseconds);
    let _clients = load.stay(|clients| {
        for (count, seconds) in [(crowd.comers, 1), (crowd.stayers, crowd.stay_seconds)] {
            let lifetime = Some(Duration::from_secs(seconds.into()));
            (0..count).for_each(|_| clients.stay_at_work(&target, lifetime, think, work));
        }
        (0..crowd.executors).for_each(|_| clients.execute(&target, think));
    });
    println!("unix,{}", clients::COLUMNS);
    let parent = parent_id();
    while parent_id() == parent {
        println!("{:.3},{}", node::unix(), load.met());
        sleep(TELL_EVERY);
    }
    Ok(())
}

/// What clients have met so far.
#[derive(Clone, Debug, Default)]
pub struct Met {
    /// New connections.
    pub connections: f64,
    /// Questions answered of those that stay.
    pub queries: f64,
    /// Failures.
    pub failures: f64,
    /// Of which kind.
    pub kinds: String,
}

/// The clients of one pod.
pub struct InPod {
    /// Name of the pod.
    pub pod: String,
    told: PathBuf,
    _process: Process,
}

impl InPod {
    /// Lets them into the pod of this name and uid; what they meet is kept below `scratch`.
    pub fn enter(pod: &str, uid: &str, crowd: &Crowd, scratch: &Path) -> Result<Self, Failure> {
        let resident = wait_for(&format!("the sidecar of {pod} runs"), node::WITHIN, || {
            pod_processes::of_pod(uid, RESIDENT).first().copied()
        })?;
        let told = scratch.join(format!("{pod}.met"));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", resident.as_raw_nonzero()));
        command.arg("--").arg(std::env::current_exe()?).arg("in-pod").args(crowd.arguments());
        let process = Process::start(&mut command, &told)?;
        let clients = Self { pod: pod.to_owned(), told, _process: process };
        wait_for(&format!("the clients of {pod} are there"), node::WITHIN, || clients.met().ok())?;
        Ok(clients)
    }

    /// What they have met so far.
    pub fn met(&self) -> Result<Met, Failure> {
        Met::last_of(&self.told)
    }

    /// Where it is written.
    pub fn told(&self) -> &Path {
        &self.told
    }
}

impl Met {
    /// What was met since then; None: all of it.
    pub fn since(&self, before: Option<&Self>) -> Self {
        let Some(before) = before else { return self.clone() };
        let known = before.by_kind();
        let new = self.by_kind().into_iter().map(|(kind, count)| {
            let met = count.saturating_sub(known.get(&kind).copied().unwrap_or_default());
            (kind, met)
        });
        let new: Vec<String> = new.filter(|(_, met)| *met > 0).map(|(kind, met)| format!("{kind}={met}")).collect();
        Self {
            connections: self.connections - before.connections,
            queries: self.queries - before.queries,
            failures: self.failures - before.failures,
            kinds: new.join(" "),
        }
    }

    /// Kinds of failures, and how many.
    pub fn by_kind(&self) -> BTreeMap<String, u64> {
        let (mut kinds, mut words) = (BTreeMap::new(), Vec::new());
        // the name of a kind may have blanks
        for word in self.kinds.split_whitespace() {
            match word.rsplit_once('=').and_then(|(word, count)| Some((word, count.parse().ok()?))) {
                Some((word, count)) => {
                    words.push(word);
                    kinds.insert(words.join(" "), count);
                    words.clear();
                }
                None => words.push(word),
            }
        }
        kinds
    }

    /// What was told last in a file.
    pub fn last_of(told: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(told)?;
        // the last line may be half written
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let (head, told) = whole.split_once('\n').ok_or("they have said nothing yet")?;
        let last = format!("{head}\n{}", told.rsplit('\n').next().unwrap_or_default());
        let rows = rows(&last)?;
        let last = rows.first().ok_or("they have said nothing yet")?;
        Ok(Self {
            connections: last.number("connections")?,
            queries: last.number("queries")?,
            failures: last.number("failures")?,
            kinds: last.text("kinds")?.to_owned(),
        })
    }
}
