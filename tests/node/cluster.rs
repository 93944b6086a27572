//! The lab's cluster as a test sees it: kubectl and helm, the operator's installation, the API server's audit log.
//!
//! `tests/run node` starts the tests inside the lab's network, with KUBECONFIG and PATH set.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Namespace and name of the release.
pub const SYSTEM: &str = "sluice-system";
pub const RELEASE: &str = "sluice";
/// The operator as the API server sees it.
pub const OPERATOR: &str = "system:serviceaccount:sluice-system:sluice";

/// Tests that need the operator share it; one that takes it away is alone.
static OPERATOR_IN_USE: RwLock<()> = RwLock::new(());

/// Runs a program and returns what it printed; on failure what it said.
pub fn try_run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run this through tests/run node"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the program reads its input");
    let output = child.wait_with_output().expect("the program ends");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(printed)
    } else {
        Err(format!("{program} {}: {printed}{}", args.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    try_run(program, args, "").unwrap_or_else(|error| panic!("{error}"))
}

/// `kubectl ARGS`.
pub fn kubectl(args: &str) -> String {
    run("kubectl", &args.split(' ').collect::<Vec<_>>())
}

/// `kubectl sluice ARGS`.
pub fn sluice(args: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let plugin = directory.path().join("kubectl-sluice");
    symlink(env!("CARGO_BIN_EXE_sluice"), &plugin).expect("a link");
    run(plugin.to_str().expect("text"), &args.split(' ').collect::<Vec<_>>())
}

/// `kubectl get ARGS -o json`.
pub fn get(args: &str) -> Value {
    serde_json::from_str(&kubectl(&format!("get {args} --output=json"))).expect("JSON")
}

/// `kubectl apply` of a manifest.
pub fn apply(manifest: &str) {
    try_run("kubectl", &["apply", "--filename=-"], manifest).unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until `look` sees what it looks for; fails with what it saw last.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(last) => assert!(Instant::now() < deadline, "not within {within:?}: {what}; last: {last}"),
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// The condition of a pool as `Status/Reason: message`.
pub fn condition(namespace: &str, pool: &str, type_: &str) -> String {
    let pool = get(&format!("connectionpool {pool} --namespace={namespace}"));
    let conditions = pool["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == type_).map_or_else(
        || format!("no condition {type_}"),
        |condition| {
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            format!("{}/{}: {}", text("status"), text("reason"), text("message"))
        },
    )
}

pub fn until_condition(namespace: &str, pool: &str, type_: &str, wanted: &str, within: Duration) {
    until(&format!("{type_} of {namespace}/{pool} is {wanted}"), within, || {
        let seen = condition(namespace, pool, type_);
        if seen.starts_with(wanted) { Ok(()) } else { Err(seen) }
    });
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `tests/lab/lab ARGS`.
pub fn lab(args: &[&str]) -> String {
    run(repository().join("tests/lab/lab").to_str().expect("UTF-8"), args).trim().to_owned()
}

/// Installs or upgrades the release and waits until it is ready. Returns what helm told the user.
pub fn helm_upgrade(extra: &[&str]) -> String {
    let prometheus = env::var("SLUICE_LAB_PROMETHEUS").expect("run this through tests/run node");
    let chart = repository().join("charts/sluice");
    let settings = [
        "image.repository=sluice.test/sluice".to_owned(),
        format!("image.tag={}", lab(&["image-tag"])),
        format!("pgbouncer.image={}", lab(&["pgbouncer-image"])),
        format!("prometheus.servers.default.url={prometheus}"),
        "tickSeconds=5".to_owned(),
        "gateway.enabled=true".to_owned(),
    ];
    let mut args = vec!["upgrade", RELEASE, chart.to_str().expect("UTF-8"), "--install", "--namespace", SYSTEM];
    args.extend(["--create-namespace", "--wait", "--timeout", "3m"]);
    for setting in &settings {
        args.extend(["--set", setting]);
    }
    args.extend(extra);
    run("helm", &args)
}

/// Uninstalls the release, if it is there.
pub fn uninstall() {
    run("helm", &["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--ignore-not-found"]);
}

/// Whether the release is there, with the image of these sources: a lab may be older than they are.
fn is_installed() -> bool {
    let releases = run("helm", &["list", "--namespace", SYSTEM, "--deployed", "--short"]);
    if !releases.lines().any(|release| release == RELEASE) {
        return false;
    }
    let values = run("helm", &["get", "values", RELEASE, "--namespace", SYSTEM, "--output=json"]);
    let values: Value = serde_json::from_str(&values).expect("JSON");
    values["image"]["tag"].as_str() == Some(&lab(&["image-tag"]))
}

/// The operator is installed while the guard lives, and other tests use it too.
pub fn with_operator() -> RwLockReadGuard<'static, ()> {
    if !is_installed() {
        let _alone = OPERATOR_IN_USE.write().expect("no test panicked here");
        if !is_installed() {
            helm_upgrade(&[]);
        }
    }
    OPERATOR_IN_USE.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Asks once for an eviction, as `kubectl drain` does.
pub fn try_evict(namespace: &str, pod: &str) -> Result<(), String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
    let metadata = json!({"name": pod, "namespace": namespace});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata});
    try_run("kubectl", &["create", "--raw", &path, "--filename=-"], &eviction.to_string()).map(drop)
}

/// Asks for an eviction until no budget of disruptions is in its way.
pub fn evict(namespace: &str, pod: &str) {
    until("the eviction is granted", Duration::from_mins(2), || try_evict(namespace, pod));
}

/// No other test uses the operator while the guard lives.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    OPERATOR_IN_USE.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The administrator of the database.
pub fn psql(statement: &str) -> String {
    run("psql", &["-qXAt", "-v", "ON_ERROR_STOP=1", "-c", statement])
}

fn audit_log() -> PathBuf {
    PathBuf::from(env::var("SLUICE_LAB_RUN").expect("run this through tests/run node")).join("audit.log")
}

/// How long the audit log is now, to read on from there.
pub fn audit_mark() -> u64 {
    fs::metadata(audit_log()).expect("the lab keeps an audit log").len()
}

/// The requests of a user since a mark.
pub fn audited(user: &str, mark: u64) -> Vec<Value> {
    let log = fs::read(audit_log()).expect("the lab keeps an audit log");
    let new = log.get(usize::try_from(mark).expect("fits")..).unwrap_or_default();
    String::from_utf8_lossy(new)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok()) // the last line may be half written
        .filter(|request: &Value| request["user"]["username"] == user)
        .collect()
}
