//! The operator on the lab's node: installed by the chart, its log as JSON, what the agents of a pool say once asked.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use sluice::contract::{StatusReport, names};

use crate::{
    Failure, cluster,
    pod::page,
    process::{Process, lab_program, output, wait_for},
};

/// Namespace and name of the release.
const SYSTEM: &str = "sluice-system";
const RELEASE: &str = "sluice";
/// The application's namespace and the role of its pool.
pub const NAMESPACE: &str = "figure";
pub const ROLE: &str = "figure";
/// The password of the role.
pub const PASSWORD: &str = "change-me";
/// Longest wait for any state of the cluster.
pub const WITHIN: Duration = Duration::from_mins(3);
/// How long the webhook of a new installation may take to be reached.
const WEBHOOK_WITHIN: Duration = Duration::from_secs(30);

/// Seconds since 1970.
pub fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A time of a log line in seconds since 1970.
pub fn unix_of(time: &Value) -> Result<f64, Failure> {
    let time: jiff::Timestamp = time.as_str().ok_or("no time in a log line")?.parse()?;
    Ok(time.as_duration().as_secs_f64())
}

/// `kubectl`, its arguments by spaces.
pub fn kubectl(words: &str) -> Result<String, Failure> {
    cluster::kubectl(&words.split(' ').collect::<Vec<_>>())
}

fn lab(words: &[&str]) -> Result<String, Failure> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/lab");
    Ok(output(Command::new(lab).args(words))?.trim().to_owned())
}

/// Stops a component of the lab.
pub fn stop(component: &str) -> Result<(), Failure> {
    lab(&["stop", component]).map(drop)
}

/// `kubectl apply` of manifests. Pods may be refused until the node's proxy knows where the webhook of a chart that has just
/// been installed listens: asked again for a while.
pub fn apply(manifests: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + WEBHOOK_WITHIN;
    loop {
        match apply_once(manifests) {
            Err(error) if Instant::now() < deadline && error.to_string().contains("failed to call webhook") => {
                sleep(Duration::from_millis(200));
            }
            ended => return ended,
        }
    }
}

fn apply_once(manifests: &str) -> Result<(), Failure> {
    let mut child = Command::new(lab_program("kubectl")?)
        .args(["apply", "--filename=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no standard input")?.write_all(manifests.as_bytes())?;
    let ended = child.wait_with_output()?;
    if ended.status.success() {
        return Ok(());
    }
    Err(format!("kubectl apply: {}", String::from_utf8_lossy(&ended.stderr)).into())
}

/// The condition of the pool `shop` as `Status/Reason: message`.
pub fn condition(type_: &str) -> Result<String, Failure> {
    let pool: Value = serde_json::from_str(&kubectl(&format!("get connectionpool shop -n {NAMESPACE} -o json"))?)?;
    let conditions = pool["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok(format!("{}/{}: {}", text("status"), text("reason"), text("message")))
}

/// Waits until a condition of the pool `shop` begins with this.
pub fn wait_for_condition(type_: &str, wanted: &str) -> Result<(), Failure> {
    wait_for(&format!("{type_} is {wanted}"), WITHIN, || {
        condition(type_).ok().filter(|seen| seen.starts_with(wanted)).map(drop)
    })
}

/// An installed operator whose log is read along.
pub struct Operator {
    log: PathBuf,
    _reading: Process,
}

impl Operator {
    /// Installs the release with one replica, and with these values beside.
    pub fn install(tick_seconds: u32, values: &[&str], scratch: &Path) -> Result<Self, Failure> {
        let prometheus = std::env::var("SLUICE_LAB_PROMETHEUS")?;
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/sluice");
        let settings = [
            "image.repository=sluice.test/sluice".to_owned(),
            format!("image.tag={}", lab(&["image-tag"])?),
            format!("pgbouncer.image={}", lab(&["pgbouncer-image"])?),
            format!("prometheus.servers.default.url={prometheus}"),
            format!("tickSeconds={tick_seconds}"),
            "replicas=1".to_owned(),
            "log.level=info\\,sluice::controller::tick=debug".to_owned(),
        ];
        let mut helm = Command::new(lab_program("helm")?);
        helm.args(["upgrade", RELEASE]).arg(chart);
        helm.args(["--install", "--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "3m"]);
        for setting in settings.iter().map(String::as_str).chain(values.iter().copied()) {
            helm.args(["--set", setting]);
        }
        output(&mut helm)?;
        let log = scratch.join("operator.log");
        let selector = format!("--selector=app.kubernetes.io/instance={RELEASE}");
        let reading = Process::start(
            Command::new(lab_program("kubectl")?).args([
                "logs",
                "--namespace",
                SYSTEM,
                &selector,
                "--follow",
                "--tail=-1",
            ]),
            &log,
        )?;
        Ok(Self { log, _reading: reading })
    }

    /// What it has logged with this message, oldest first.
    pub fn logged(&self, message: &str) -> Result<Vec<Value>, Failure> {
        let text = fs::read_to_string(&self.log)?;
        // most lines are others, and the last one may be half written
        let lines = text.lines().filter(|line| line.contains(message));
        let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(|line| line["message"] == message).collect())
    }

    /// When its ticks began, in seconds since 1970.
    pub fn ticks(&self) -> Result<Vec<f64>, Failure> {
        self.logged("tick")?.iter().map(|tick| unix_of(&tick["started"])).collect()
    }
}

/// Namespace, credentials, and the role in a database of its own.
pub fn surroundings() -> Result<String, Failure> {
    let psql = |statement: &str| {
        output(Command::new(lab_program("psql")?).args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-c", statement]))
    };
    psql(&format!("DROP DATABASE IF EXISTS {ROLE} WITH (FORCE)"))?;
    psql(&format!("DROP ROLE IF EXISTS {ROLE}"))?;
    psql(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'"))?;
    psql(&format!("CREATE DATABASE {ROLE} OWNER {ROLE}"))?;
    let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n---\n");
    Ok(namespace + &credentials(PASSWORD))
}

/// The Secret of the pool, with this password.
pub fn credentials(password: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: shop-db, namespace: {NAMESPACE}}}\n\
         stringData: {{username: {ROLE}, password: {password}}}\n---\n"
    )
}

/// [`surroundings`], and the pool `shop` with this in its spec.
pub fn pool(spec: &str) -> Result<String, Failure> {
    let (surroundings, host) = (surroundings()?, std::env::var("PGHOST")?);
    Ok(format!(
        "{surroundings}apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: shop, namespace: {NAMESPACE}}}\nspec:\n  \
         workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n  \
         upstream: {{host: {host}, database: {ROLE}, credentialsRef: {{name: shop-db}}, tls: {{mode: Disabled}}}}\n{spec}\n---\n"
    ))
}

/// An application and its Deployment.
#[derive(Clone, Copy, Debug)]
pub struct Application<'a> {
    /// Of the Deployment, and the value of the label `app` of its pods.
    pub name: &'a str,
    /// Pods.
    pub replicas: u32,
    /// Labels of its pods beside `app`, each with a comma before it.
    pub labels: &'a str,
    /// What its environment says of the database; injection says something else.
    pub host: &'a str,
    /// What its container runs.
    pub script: &'a str,
    /// Further fields of the pod's spec, in the style of JSON, each with a comma behind it.
    pub pod_fields: &'a str,
    /// Further fields of its container, the same.
    pub container_fields: &'a str,
}

/// The manifest of an application.
pub fn deployment(application: &Application<'_>) -> String {
    let Application { name, replicas, labels, host, script, pod_fields, container_fields } = application;
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}{labels}}}}}\n    spec: {{{pod_fields}\
         securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}, \
         containers: [{{name: app, image: 'sluice.test/shop:1', imagePullPolicy: IfNotPresent, \
         command: [sh, -c, {script:?}], {container_fields}\
         env: [{{name: PGHOST, value: {host}}}, {{name: PGDATABASE, value: {ROLE}}}, {{name: PGUSER, value: {ROLE}}}, \
         {{name: PGPASSWORD, value: {PASSWORD}}}], \
         resources: {{requests: {{cpu: 10m, memory: 32Mi}}, limits: {{memory: 128Mi}}}}, \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]}}\n"
    )
}

/// Waits until a Deployment has the pods that it wants.
pub fn rolled_out(deployment: &str) -> Result<(), Failure> {
    kubectl(&format!("rollout status deployment/{deployment} -n {NAMESPACE} --timeout=5m")).map(drop)
}

/// The pods with a label.
pub fn pods(label: &str) -> Result<Vec<Value>, Failure> {
    let pods: Value = serde_json::from_str(&kubectl(&format!("get pods -n {NAMESPACE} -l {label} -o json"))?)?;
    Ok(pods["items"].as_array().cloned().unwrap_or_default())
}

/// A pod of the pool whose application runs a script; `transactions` in it is a file for pgbench with a transaction of 50 ms.
pub fn pod(name: &str, script: &str) -> String {
    let script = format!("transactions=/tmp/transactions\necho 'SELECT pg_sleep(0.05);' > $transactions\n{script}\n");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: shop, sluice.dev/inject: enabled}}}}\n\
         spec:\n  terminationGracePeriodSeconds: 1\n  \
         securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}\n  \
         volumes: [{{name: tmp, emptyDir: {{}}}}]\n  \
         containers:\n    - name: app\n      image: sluice.test/shop:1\n      imagePullPolicy: IfNotPresent\n      \
         command: [sh, -c, {script:?}]\n      \
         volumeMounts: [{{name: tmp, mountPath: /tmp}}]\n      \
         env: [{{name: PGHOST, value: nowhere.invalid}}, {{name: PGDATABASE, value: {ROLE}}}, {{name: PGUSER, value: {ROLE}}}, \
         {{name: PGPASSWORD, value: {PASSWORD}}}]\n      \
         resources: {{requests: {{cpu: 10m, memory: 16Mi}}, limits: {{memory: 64Mi}}}}\n      \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}\n---\n"
    )
}

/// What an agent said, each time that it said something else.
#[derive(Clone, Debug)]
pub struct Said<T> {
    /// When the answer was here, in seconds since 1970.
    pub at: f64,
    /// Name of the pod.
    pub pod: String,
    /// What is listened for.
    pub what: T,
}

/// What is in force in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Share in force.
    pub share: u32,
    /// The limit that its pooler works with, read back.
    pub limit: u32,
}

impl Sizes {
    /// What a report says of it.
    pub fn of(report: &StatusReport) -> Option<Self> {
        Some(Self { share: report.share, limit: report.limits?.pool_size })
    }
}

/// Asks agents all the time.
pub struct Listener<T> {
    said: Arc<Mutex<Vec<Said<T>>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl<T: Clone + PartialEq + Send + 'static> Listener<T> {
    /// Asks the agents of these pods, each so often, and keeps this of what they say; None: nothing to keep.
    pub fn start(pods: &[&str], every: Duration, of: fn(&StatusReport) -> Option<T>) -> Result<Self, Failure> {
        let said = Arc::new(Mutex::new(Vec::new()));
        let (stop, mut tasks) = (Arc::<AtomicBool>::default(), Vec::new());
        for pod in pods {
            let pod = (*pod).to_owned();
            let address = kubectl(&format!("get pod {pod} -n {NAMESPACE} -o jsonpath={{.status.podIP}}"))?;
            let (said, stop) = (said.clone(), stop.clone());
            tasks.push(thread::spawn(move || {
                let mut last = None;
                while !stop.load(Ordering::Relaxed) {
                    if let Some(now) = ask(&address).ok().and_then(|report| of(&report))
                        && last.as_ref() != Some(&now)
                    {
                        last = Some(now.clone());
                        let new = Said { at: unix(), pod: pod.clone(), what: now };
                        said.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(new);
                    }
                    sleep(every);
                }
            }));
        }
        Ok(Self { said, stop, tasks })
    }

    /// Everything so far, oldest first.
    pub fn said(&self) -> Vec<Said<T>> {
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        said.sort_by(|one, other| one.at.total_cmp(&other.at));
        said
    }

    /// What each pod said last.
    pub fn latest(&self) -> BTreeMap<String, Said<T>> {
        self.said().into_iter().map(|said| (said.pod.clone(), said)).collect()
    }
}

impl<T> Drop for Listener<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            let _ = task.join();
        }
    }
}

fn ask(address: &str) -> Result<StatusReport, Failure> {
    Ok(serde_json::from_str(&page((address, names::METRICS_PORT), "/status")?)?)
}
