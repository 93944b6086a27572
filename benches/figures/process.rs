//! Processes, ports and cgroups that a figure needs; all of them end with the value that stands for them.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::Failure;

/// A process that ends with this value, by SIGTERM and after five seconds by SIGKILL.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command; what it prints goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self, Failure> {
        let log = fs::File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self { child: child.map_err(|error| format!("starting {}: {error}", command.get_program().display()))? })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU seconds that this process has used, and its children that run the same program.
    pub fn cpu_seconds(&self) -> Result<f64, Failure> {
        let (same, _) = self.children()?;
        same.into_iter().chain([self.pid()]).map(Self::cpu_seconds_of).sum()
    }

    /// KiB of memory of this process and of its children that run the same program: resident in the largest of them, and
    /// of all together, pages that they share counted once.
    pub fn memory_kibibytes(&self) -> Result<(u64, u64), Failure> {
        let (same, _) = self.children()?;
        let (mut largest, mut together) = (0, 0);
        for pid in same.into_iter().chain([self.pid()]) {
            let memory = Memory::of(pid)?;
            largest = largest.max(memory.resident);
            together += memory.proportional;
        }
        Ok((largest, together))
    }

    /// Its children: those that run the same program, and the others.
    pub fn children(&self) -> Result<(Vec<u32>, Vec<u32>), Failure> {
        let own = self.pid();
        let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        Ok(children.partition(|pid| name(*pid) == name(own)))
    }

    /// CPU seconds that a process has used, its threads included.
    pub fn cpu_seconds_of(pid: u32) -> Result<f64, Failure> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?.1;
        let field = |index: usize| -> Result<f64, Failure> {
            Ok(after_name.split_whitespace().nth(index).ok_or("short /proc/PID/stat")?.parse::<f64>()?)
        };
        // USER_HZ is 100 on every Linux that we build for
        Ok((field(11)? + field(12)?) / 100.0)
    }
}

/// Memory of one process, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident.
    pub resident: u64,
    /// Resident, each page divided by the processes that share it.
    pub proportional: u64,
}

impl Memory {
    /// What it takes now.
    pub fn of(pid: u32) -> Result<Self, Failure> {
        let figure = |file: &str, name: &str| -> Result<u64, Failure> {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            Ok(number.ok_or_else(|| format!("no {name} in /proc/PID/{file}"))?.parse()?)
        };
        Ok(Self { resident: figure("status", "VmRSS:")?, proportional: figure("smaps_rollup", "Pss:")? })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = Command::new("kill").arg(self.pid().to_string()).stderr(Stdio::null()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end and returns what it printed; an error tells what it said.
pub fn output(command: &mut Command) -> Result<String, Failure> {
    let ended = command.stdin(Stdio::null()).output();
    let name = command.get_program().display().to_string();
    let ended = ended.map_err(|error| format!("starting {name}: {error}"))?;
    if !ended.status.success() {
        return Err(format!("{name}: {}: {}", ended.status, String::from_utf8_lossy(&ended.stderr).trim()).into());
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Asks again until there is an answer, at most so long.
pub fn wait_for<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(format!("not within {} s: {what}", within.as_secs()).into());
        }
        sleep(Duration::from_millis(20));
    }
}

/// A TCP port of loopback that nobody uses.
pub fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A program of the lab.
pub fn lab_program(name: &str) -> Result<PathBuf, Failure> {
    let bin = std::env::var_os("SLUICE_LAB_BIN").ok_or("SLUICE_LAB_BIN is not set: start this by benches/run")?;
    Ok(PathBuf::from(bin).join(name))
}

/// A program of the product, optimised.
pub fn product_program(name: &str) -> Result<PathBuf, Failure> {
    let bin = std::env::var_os("SLUICE_BENCH_BIN").ok_or("SLUICE_BENCH_BIN is not set: start this by benches/run")?;
    Ok(PathBuf::from(bin).join(name))
}

/// A cgroup that counts the CPU time of what runs in it.
pub struct Cgroup {
    directory: PathBuf,
    usage: Usage,
}

enum Usage {
    V1,
    V2,
}

impl Cgroup {
    /// A new cgroup. Needs root.
    pub fn new(name: &str) -> Result<Self, Failure> {
        let (parent, usage) = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", Usage::V2)
        } else {
            ("/sys/fs/cgroup/cpuacct", Usage::V1)
        };
        let directory = Path::new(parent).join(format!("sluice-bench-{}-{name}", std::process::id()));
        fs::create_dir(&directory)
            .map_err(|error| format!("making the cgroup {}: {error}; this figure needs root", directory.display()))?;
        Ok(Self { directory, usage })
    }

    /// Which hierarchy counts.
    pub fn hierarchy(&self) -> &'static str {
        match self.usage {
            Usage::V1 => "cgroup v1 (cpuacct.usage)",
            Usage::V2 => "cgroup v2 (cpu.stat)",
        }
    }

    /// A command that will run in this cgroup from its first instruction.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.directory.join("cgroup.procs")).arg(program);
        command
    }

    /// CPU seconds used in it.
    pub fn cpu_seconds(&self) -> Result<f64, Failure> {
        match self.usage {
            Usage::V1 => Ok(fs::read_to_string(self.directory.join("cpuacct.usage"))?.trim().parse::<f64>()? / 1e9),
            Usage::V2 => {
                let stat = fs::read_to_string(self.directory.join("cpu.stat"))?;
                let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
                Ok(usage.ok_or("no usage_usec in cpu.stat")?.parse::<f64>()? / 1e6)
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just ended may still be counted in it.
        let _ = wait_for("an empty cgroup", Duration::from_secs(5), || fs::remove_dir(&self.directory).ok());
    }
}
