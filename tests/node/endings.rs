//! The end of an application under load, on a real node: whatever ends it, it loses nothing, and the sidecar ends after it.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use sluice::contract::names::SIDECAR_CONTAINER;

use crate::{
    cluster::{apply, evict, get, kubectl, try_run, until, until_condition, with_operator},
    tally::Tally,
    workload::{container, pool},
};

const MINUTE: Duration = Duration::from_mins(1);
/// What the application runs.
const APPLICATION: &str = include_str!("../../benches/endings/application.sh");

/// A directory that applications of a namespace can write to.
fn directory(namespace: &str) -> PathBuf {
    let run = env::var("SLUICE_LAB_RUN").expect("run this through tests/run node");
    let directory = Path::new(&run).join("tally").join(namespace);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("the lab's directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("it is ours");
    directory
}

/// The pool, in a namespace whose pods may leave files on the node.
fn pool_with_table(namespace: &str) -> String {
    let manifests = pool(namespace).replace("enforce: restricted", "enforce: privileged");
    let table = "CREATE TABLE done (at timestamptz DEFAULT clock_timestamp())";
    try_run("psql", &["-qXAt", "-v", "ON_ERROR_STOP=1", "-d", namespace, "-c", table], "").expect("a table");
    manifests
}

fn pod_template(namespace: &str, directory: &Path, restart: &str, script: &str) -> String {
    format!(
        "metadata: {{labels: {{app: {namespace}, sluice.dev/inject: enabled}}}}\n    spec: {{restartPolicy: {restart}, \
         terminationGracePeriodSeconds: 40, \
         securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}, \
         volumes: [{{name: tally, hostPath: {{path: {}, type: Directory}}}}], \
         containers: [{{{}, volumeMounts: [{{name: tally, mountPath: /tally}}], \
         lifecycle: {{preStop: {{sleep: {{seconds: 3}}}}}}}}]}}\n",
        directory.display(),
        container("app", namespace, script)
    )
}

/// Keeps every state that the pods of a namespace are seen in.
struct Watch {
    watching: Child,
    file: PathBuf,
}

impl Watch {
    fn start(namespace: &str, directory: &Path) -> Self {
        let file = directory.with_extension("pods");
        let watching = Command::new("kubectl")
            .args(["get", "pods", "--namespace", namespace, "--watch", "--output-watch-events", "--output=json"])
            .stdout(fs::File::create(&file).expect("the lab's directory"))
            .stderr(Stdio::null())
            .spawn()
            .expect("kubectl");
        Self { watching, file }
    }

    /// The last state of each pod that has ended, by its name.
    fn ended(&self) -> BTreeMap<String, Value> {
        let text = fs::read_to_string(&self.file).expect("it is written");
        // the last event may be half written
        let events = serde_json::Deserializer::from_str(&text).into_iter::<Value>().map_while(Result::ok);
        let pods = events.map(|event| event["object"].clone());
        let last: BTreeMap<String, Value> =
            pods.filter_map(|pod| Some((pod["metadata"]["name"].as_str()?.to_owned(), pod))).collect();
        last.into_iter().filter(|(_, pod)| terminated(pod, "containerStatuses", "app").is_some()).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.watching.kill();
        let _ = self.watching.wait();
    }
}

/// How a container ended: its exit code, and when.
fn terminated(pod: &Value, list: &str, container: &str) -> Option<(i64, String)> {
    let statuses = pod["status"][list].as_array()?;
    let ended = &statuses.iter().find(|status| status["name"] == container)?["state"]["terminated"];
    Some((ended["exitCode"].as_i64()?, ended["finishedAt"].as_str()?.to_owned()))
}

/// Of each pod that has ended: the application did so by itself, and the sidecar after it, in good order.
fn assert_in_order(ended: &BTreeMap<String, Value>) {
    for (name, pod) in ended {
        let (code, application) = terminated(pod, "containerStatuses", "app").expect("it has ended");
        assert_eq!(code, 0, "{name}: the application was killed: {}", pod["status"]);
        let sidecar = terminated(pod, "initContainerStatuses", SIDECAR_CONTAINER);
        let (code, sidecar) = sidecar.unwrap_or_else(|| panic!("{name}: no end of the sidecar: {}", pod["status"]));
        assert_eq!(code, 0, "{name}: the sidecar was killed: {}", pod["status"]);
        assert!(application <= sidecar, "{name}: the sidecar ended at {sidecar}, the application at {application}");
    }
}

/// What all applications have met, once none of them works any more; nothing that was committed is missing, and nothing else is there.
fn assert_nothing_lost(namespace: &str, directory: &Path) -> Tally {
    let tally = Tally::read(directory).expect("the applications' files");
    assert_eq!(tally.kinds(), BTreeMap::new(), "{:?}", tally.lost);
    assert_eq!(tally.of_pooler_origin(), 0);
    assert_eq!(tally.ended, tally.begun, "every application finished what it was at");
    let count = try_run("psql", &["-qXAt", "-d", namespace, "-c", "SELECT count(*) FROM done"], "").expect("a count");
    assert_eq!(count.trim(), tally.transactions().to_string(), "transactions in the database");
    println!(
        "{namespace}: {} pods ended; {} connections, {} queries, {} transactions of 2 s, none lost",
        tally.ended.len(),
        tally.connections(),
        tally.queries(),
        tally.transactions()
    );
    tally
}

fn running(namespace: &str) -> Vec<String> {
    let pods = get(&format!("pods --namespace={namespace} --selector=app={namespace}"));
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

fn until_running(namespace: &str, count: usize, gone: &[String]) {
    until(&format!("{count} pods are left, all of them new"), 2 * MINUTE, || {
        let now = running(namespace);
        if now.len() == count && !now.iter().any(|pod| gone.contains(pod)) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=2m"));
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn an_application_that_is_replaced_scaled_down_or_evicted_loses_nothing_and_its_sidecar_ends_after_it() {
    let _operator = with_operator();
    let namespace = "endings";
    let directory = directory(namespace);
    apply(&pool_with_table(namespace));
    let watch = Watch::start(namespace, &directory);
    let template = pod_template(namespace, &directory, "Always", APPLICATION);
    apply(&format!(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: app, namespace: {namespace}}}\n\
         spec: {{maxUnavailable: 1, selector: {{matchLabels: {{app: {namespace}}}}}}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: app, namespace: {namespace}}}\nspec:\n  replicas: 3\n  \
         selector: {{matchLabels: {{app: {namespace}}}}}\n  template:\n    {template}"
    ));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=2m"));
    until_condition(namespace, namespace, "Proven", "True", MINUTE);
    until("the applications work", MINUTE, || {
        let done = Tally::read(&directory).map_err(|error| error.to_string())?;
        if done.transactions() >= 3 { Ok(()) } else { Err(format!("{done:?}")) }
    });

    let first = running(namespace);
    kubectl(&format!("rollout restart deployment/app --namespace={namespace}"));
    kubectl(&format!("rollout status deployment/app --namespace={namespace} --timeout=3m"));
    until_running(namespace, 3, &first);
    kubectl(&format!("scale deployment/app --namespace={namespace} --replicas=2"));
    until_running(namespace, 2, &first);
    let evicted = running(namespace);
    for pod in &evicted {
        evict(namespace, pod);
    }
    until_running(namespace, 2, &evicted);
    kubectl(&format!("scale deployment/app --namespace={namespace} --replicas=0"));
    until_running(namespace, 0, &[]);

    until("the ends were seen", MINUTE, || {
        let seen = watch.ended().len();
        if seen == 8 { Ok(()) } else { Err(format!("{seen} of 3 replaced, 1 scaled away, 2 evicted, 2 at last")) }
    });
    assert_in_order(&watch.ended());
    let tally = assert_nothing_lost(namespace, &directory);
    assert_eq!(tally.ended.len(), 8);
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn jobs_that_have_done_their_work_complete_and_lose_nothing() {
    let _operator = with_operator();
    let namespace = "completes";
    let directory = directory(namespace);
    apply(&pool_with_table(namespace));
    let watch = Watch::start(namespace, &directory);
    let template = pod_template(namespace, &directory, "Never", &format!("ENDS_AFTER=6\n{APPLICATION}"));
    apply(&format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: job, namespace: {namespace}}}\n\
         spec:\n  backoffLimit: 0\n  parallelism: 2\n  completions: 4\n  template:\n    {template}"
    ));
    kubectl(&format!("wait --for=condition=Complete job/job --namespace={namespace} --timeout=4m"));
    until("the ends were seen", MINUTE, || {
        let seen = watch.ended().len();
        if seen == 4 { Ok(()) } else { Err(format!("{seen} of 4")) }
    });
    assert_in_order(&watch.ended());
    let tally = assert_nothing_lost(namespace, &directory);
    assert_eq!(tally.ended.len(), 4);
    kubectl(&format!("delete namespace {namespace} --wait=false"));
}
