//! What the samples were taken on.

use std::{env, fs, process::Command};

use serde_json::{Map, Value, json};
use sluice::pooler::pgbouncer::version::Version;

use crate::{
    Failure,
    process::{lab_program, output},
};

/// The machine and the sources, as they are when the measurement begins. `SLUICE_MEASURED_TREE`: the sources of another build that is
/// measured.
pub fn describe() -> Result<Map<String, Value>, Failure> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).map(|text| text.trim_matches([':', ' ', '\t']));
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kibibytes =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).and_then(|text| text.split_whitespace().next());
    let own = || env!("CARGO_MANIFEST_DIR").into();
    let top = env::var_os("SLUICE_MEASURED_TREE").unwrap_or_else(own);
    let git = |words: &[&str]| output(Command::new("git").arg("-C").arg(&top).args(words));
    let changed = !git(&["status", "--porcelain", "--", "src", "Cargo.lock"])?.trim().is_empty();
    let mut described = Map::new();
    described.insert("time".into(), json!(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
    described.insert("commit".into(), json!(git(&["rev-parse", "HEAD"])?.trim()));
    described.insert("uncommittedChanges".into(), json!(changed));
    described.insert("cpu".into(), json!(model));
    described.insert("cores".into(), json!(std::thread::available_parallelism()?.get()));
    described.insert("memoryMebibytes".into(), json!(kibibytes.map_or(Ok(0), str::parse::<u64>)? / 1024));
    described.insert("kernel".into(), json!(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()));
    described.insert("loadAverageAtStart".into(), json!(fs::read_to_string("/proc/loadavg")?.split(' ').next()));
    Ok(described)
}

/// CPU seconds that all processes of the machine have used, and the kernel for them.
pub fn cpu_seconds() -> Result<f64, Failure> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).ok_or("no line cpu in /proc/stat")?;
    let ticks = line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    // user, nice, system; idle and waiting; interrupts
    let used = ticks.iter().enumerate().filter(|(index, _)| matches!(index, 0..=2 | 5..=6)).map(|(_, ticks)| ticks);
    // USER_HZ is 100 on every Linux that we build for
    Ok(used.sum::<f64>() / 100.0)
}

/// The same, with the version of the lab's PgBouncer.
pub fn describe_with_pgbouncer() -> Result<Map<String, Value>, Failure> {
    let mut described = describe()?;
    described.insert("pgbouncer".into(), json!(format!("PgBouncer {}", pgbouncer()?)));
    Ok(described)
}

/// The version of the lab's PgBouncer.
pub fn pgbouncer() -> Result<Version, Failure> {
    let said = output(Command::new(lab_program("pgbouncer")?).arg("-V"))?;
    Version::find(&said).ok_or_else(|| format!("pgbouncer -V names no version: {said}").into())
}
