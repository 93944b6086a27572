//! `kubectl sluice`, run by the real kubectl against a real API server: what it shows, what it changes, and how it ends.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Output, Stdio},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{Event, Pod, Secret},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::api::ConnectionPool;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader, Lines},
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};

use crate::{
    cluster::{Cluster, DEADLINE, chart, eventually, object, pool, pool_with},
    operator::{
        pods::FakePod,
        process::{Operator, turn},
    },
    webhook::Injected,
};

/// Addresses that the API server's proxy takes for pods, and that lead back here.
const PODS: &str = "198.18.8.0/24";

/// A directory on the PATH in which kubectl finds the plugin.
pub struct Plugin(TempDir);

/// What came of a verb.
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Asserts how it ended, and gives what it said.
    pub fn ended(self, code: i32) -> String {
        assert_eq!(self.code, code, "out:\n{}\nerr:\n{}", self.out, self.err);
        self.out + &self.err
    }

    pub fn json(self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).expect("JSON")
    }
}

impl Plugin {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["kubectl-sluice", "kubectl_complete-sluice"] {
            symlink(env!("CARGO_BIN_EXE_sluice"), directory.path().join(name)).expect("a link");
        }
        Self(directory)
    }

    fn command(&self, words: &[&str]) -> Command {
        let path = env::var("PATH").expect("a PATH");
        let mut command = Command::new("kubectl");
        command.args(words).env("PATH", format!("{}:{path}", self.0.path().display())).stdin(Stdio::null());
        command
    }

    /// `kubectl sluice ...`, which goes on; what is read of it is what it answers, or what it says beside.
    pub fn start(&self, words: &[&str], beside: bool) -> Running {
        let mut command = self.command(&[&["sluice"], words].concat());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("kubectl runs");
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let read: Box<dyn AsyncRead + Unpin + Send> = if beside { Box::new(err) } else { Box::new(out) };
        Running { child, lines: BufReader::new(read).lines() }
    }

    /// `kubectl sluice ...`
    pub async fn run(&self, words: &[&str]) -> Answer {
        let mut all = vec!["sluice"];
        all.extend(words);
        Answer::of(&self.command(&all).output().await.expect("kubectl runs"))
    }
}

/// A verb that goes on.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<Box<dyn AsyncRead + Unpin + Send>>>,
}

impl Running {
    /// The next line that holds these words.
    pub async fn says(&mut self, words: &str) -> String {
        let line = async {
            loop {
                let line = self.lines.next_line().await.expect("text").expect("it goes on");
                if line.contains(words) {
                    return line;
                }
            }
        };
        timeout(DEADLINE, line).await.unwrap_or_else(|_| panic!("it never said {words}"))
    }

    /// Ends it, or waits until it has ended by itself.
    pub async fn end(mut self) -> Option<i32> {
        timeout(DEADLINE, self.child.wait()).await.expect("it ends").expect("a status").code()
    }
}

/// Writes a status as the operator does.
async fn tell(cluster: &Cluster, pool: &str, status: &Value) {
    let pools: Api<ConnectionPool> = cluster.api();
    pools.patch_status(pool, &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await.expect("told");
}

/// Takes the pools away: the next operator would look after them too.
async fn end(cluster: &Cluster) {
    let pools: Api<ConnectionPool> = cluster.api();
    pools.delete_collection(&DeleteParams::default(), &ListParams::default()).await.expect("deleted");
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
        "lastTransitionTime": "2026-11-28T11:57:30Z"})
}

fn in_force() -> Value {
    json!({
        "observedGeneration": 1, "currentSize": 13, "share": 59, "summary": "Size 13 of share 59 on 3 pods; target 12: 2.3 busy",
        "recommendation": {"target": 12, "lowerBound": 10, "upperBound": 15, "uncappedTarget": 12, "confidence": "Low"},
        "load": {"demand": "2.3", "held": 14, "active": 4, "waiting": 0, "ageSeconds": 9},
        "lastDecision": {"id": "d-1", "reason": "Demand", "from": 15, "to": 12, "message": "2.3 busy", "time": "2026-11-28T11:59:44Z"},
        "pods": {"matched": 3, "injected": 3, "current": 3, "proven": 3, "reporting": 3},
        "effective": {"minAllowed": 5, "maxAllowed": 100},
        "conditions": [
            condition("Ready", "True", "InForce", "every pod runs what it should"),
            condition("Accepted", "True", "Valid", "the spec is valid"),
        ],
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn get_lists_pools_as_kubectl_does_and_says_why_some_are_not_ready() {
    // an operator of another test would write the status too
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-get", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    let nothing = plugin.run(&["get", "-n", namespace]).await.ended(0);
    assert!(nothing.contains(&format!("there are no pools in namespace {namespace}")), "{nothing}");
    for name in ["shop", "cart"] {
        cluster.create::<ConnectionPool>(&pool(name)).await.expect("a pool");
    }
    tell(&cluster, "shop", &in_force()).await;
    let table = plugin.run(&["get", "-n", namespace]).await.ended(0);
    let kubectl =
        plugin.command(&["get", "connectionpools.sluice.dev", "-n", namespace]).output().await.expect("kubectl");
    let kubectl = String::from_utf8_lossy(&kubectl.stdout).into_owned();
    let header =
        |text: &str| text.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(header(&table), header(&kubectl), "the columns are kubectl's");
    let row = table.lines().find(|line| line.starts_with("shop")).expect("the row of shop");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..10], ["shop", "Apply", "13", "12", "59", "2.3", "0", "3", "True", "InForce"]);
    assert!(table.contains(&format!("{namespace}/cart: nobody has looked at it yet")), "{table}");
    let wide = plugin.run(&["get", "shop", "-n", namespace, "-o", "wide"]).await.ended(0);
    assert!(wide.contains("UNCAPPED"), "{wide}");

    let one = plugin.run(&["get", "shop", "-n", namespace, "-o", "json"]).await.json();
    assert_eq!(one["kind"], "ConnectionPool");
    assert_eq!(one["status"]["currentSize"], 13);
    let all = plugin.run(&["get", "-A", "-o", "json"]).await.json();
    let items = all["items"].as_array().expect("a list");
    assert!(items.iter().filter(|item| item["metadata"]["namespace"] == namespace).count() == 2, "{all}");
    let yaml = plugin.run(&["get", "shop", "-n", namespace, "-o", "yaml"]).await.ended(0);
    assert!(yaml.contains("kind: ConnectionPool"), "{yaml}");

    let missing = plugin.run(&["get", "shpo", "-n", namespace]).await.ended(2);
    assert!(missing.contains("there is none; there are cart, shop"), "{missing}");
    let wrong = plugin.run(&["get", "-n", namespace, "-w", "-o", "json"]).await.ended(2);
    assert!(wrong.contains("--watch shows a table"), "{wrong}");
    end(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn outside_of_a_terminal_a_watch_is_lines_of_what_changes() {
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-watch", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let mut table = plugin.start(&["get", "-n", namespace, "--watch"], false);
    let mut status = plugin.start(&["status", "shop", "-n", namespace, "--watch"], false);
    assert!(table.says("NAME").await.starts_with("NAME"), "no terminal, no escapes");
    table.says("shop").await;
    status.says("Ready=-").await;
    tell(&cluster, "shop", &in_force()).await;
    table.says("InForce").await;
    status.says("Ready=True/InForce, size 13, target 12").await;
    let pools: Api<ConnectionPool> = cluster.api();
    pools.delete("shop", &DeleteParams::default()).await.expect("deleted");
    table.says(&format!("{namespace}/shop deleted")).await;
    status.says("deleted").await;
    assert_eq!(status.end().await, Some(1));
    plugin.run(&["get", "-n", namespace, "--watch", "--timeout", "1s"]).await.ended(0);
}

/// Lets addresses of pods lead back to this process.
fn pods_lead_here() {
    let routed = std::process::Command::new("ip").args(["route", "replace", "local", PODS, "dev", "lo"]).output();
    let routed = routed.expect("ip, of iproute2");
    assert!(routed.status.success(), "{}", String::from_utf8_lossy(&routed.stderr));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn status_shows_of_every_pod_what_is_wanted_granted_set_and_read_back() {
    pods_lead_here();
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-status", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    let spec = "  scaling: {minAllowed: 6, maxAllowed: 12, algorithm: TargetUtilization, localReaction: Disabled}\n";
    let shop: ConnectionPool = cluster.create(&pool_with("shop", spec)).await.expect("a pool");
    let operator = Operator::start(&cluster, "a", &[]);
    operator.leads().await;
    let first = FakePod::start_at(&cluster, &shop, "shop-0", "198.18.8.1").await;
    let _second = FakePod::start_at(&cluster, &shop, "shop-1", "198.18.8.2").await;
    let proven = plugin.run(&["wait", "shop", "-n", namespace, "--for", "condition=Proven", "--timeout", "20s"]).await;
    proven.ended(0);
    let through = plugin.run(&["rollout", "status", "shop", "-n", namespace, "--timeout", "20s"]).await.ended(0);
    assert!(through.contains("Progressing=True/RolloutComplete"), "{through}");

    let status = plugin.run(&["status", "shop", "-n", namespace]).await;
    // without Prometheus the load is not known, so it is not ready
    assert_eq!(status.code, 1, "{}{}", status.out, status.err);
    for pod in ["├─ shop-0", "└─ shop-1"] {
        let line =
            status.out.lines().find(|line| line.contains(pod)).unwrap_or_else(|| panic!("{pod}: {}", status.out));
        let cells: Vec<&str> = line.split_whitespace().skip_while(|cell| !cell.starts_with("shop-")).collect();
        assert_eq!(
            cells[1..7],
            ["1", "3", "3", "3", "3", "3"],
            "revision, wanted, granted, set, read back, held: {line}"
        );
        assert!(line.ends_with("proven"), "{line}");
    }
    assert!(status.out.contains("ScalingActive=False/PrometheusNotConfigured"), "{}", status.out);
    let document = plugin.run(&["status", "shop", "-n", namespace, "-o", "json"]).await;
    let document: Value = serde_json::from_str(&document.out).expect("JSON");
    assert_eq!(document["revisions"][0]["pods"][0]["readBack"], 3, "{document}");

    first.behaviour.lock().uid = Some("another".to_owned());
    let status = plugin.run(&["status", "shop", "-n", namespace]).await.ended(1);
    assert!(status.contains("another pod answers at its address"), "{status}");
    first.behaviour.lock().silent = true;
    let status = plugin.run(&["status", "shop", "-n", namespace]).await.ended(1);
    assert!(status.contains("its agent: HTTP 503"), "{status}");

    let history = plugin.run(&["rollout", "history", "shop", "-n", namespace]).await.ended(0);
    assert!(history.lines().any(|line| line.starts_with("1 ") && line.contains("stable")), "{history}");
    let settings =
        plugin.run(&["rollout", "history", "shop", "-n", namespace, "--revision", "1", "-o", "json"]).await.json();
    assert_eq!(settings["settings"]["scaling"]["algorithm"], "TargetUtilization");
    let gone = plugin.run(&["rollout", "history", "shop", "-n", namespace, "--revision", "9"]).await.ended(2);
    assert!(gone.contains("kept are 1"), "{gone}");
    let why = plugin.run(&["why", "shop", "-n", namespace]).await.ended(0);
    assert!(why.contains("a load that is known") && why.contains("RevisionCreated"), "{why}");
    end(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn pause_and_resume_ask_first_change_what_was_read_and_the_operator_takes_it() {
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-pause", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let pools: Api<ConnectionPool> = cluster.api();
    let paused = async || pools.get("shop").await.expect("the pool").spec.paused;

    let unasked = plugin.run(&["pause", "shop", "-n", namespace]).await.ended(1);
    assert!(unasked.contains("spec.paused false -> true") && unasked.contains("nothing was changed"), "{unasked}");
    assert!(!paused().await);
    let tried = plugin.run(&["pause", "shop", "-n", namespace, "--dry-run=server"]).await.ended(0);
    assert!(tried.contains("connectionpool.sluice.dev/shop paused (server dry run)"), "{tried}");
    assert!(!paused().await);
    let several = plugin.run(&["pause", "shop", "none", "-n", namespace, "--yes"]).await.ended(1);
    assert!(several.contains("there is none; there are shop; nothing was changed"), "{several}");
    assert!(!paused().await, "all that are named, or none");

    let operator = Operator::start(&cluster, "a", &[]);
    operator.leads().await;
    // two at once: both find what they asked for
    let words = ["pause", "shop", "-n", namespace, "--yes"];
    for answer in futures::future::join_all([plugin.run(&words), plugin.run(&words)]).await {
        answer.ended(0);
    }
    assert!(paused().await);
    let wait = |what: &'static str| {
        let plugin = &plugin;
        async move { plugin.run(&["wait", "shop", "-n", namespace, "--for", what, "--timeout", "20s"]).await }
    };
    assert!(wait("condition=Paused").await.ended(0).contains("Paused=True/Paused"));
    let again = plugin.run(&["pause", "shop", "-n", namespace, "--yes"]).await.ended(0);
    assert!(again.contains("is paused already: nothing was changed"), "{again}");
    let changed = plugin.run(&["resume", "shop", "-n", namespace, "--yes", "-o", "json"]).await.json();
    assert_eq!(changed["spec"]["paused"], false);
    assert!(wait("condition=Paused=False").await.ended(0).contains("Paused=False/NotPaused"));
    let managers: Vec<String> = pools
        .get("shop")
        .await
        .expect("the pool")
        .managed_fields()
        .iter()
        .filter_map(|entry| entry.manager.clone())
        .collect();
    assert!(managers.contains(&"kubectl-sluice".to_owned()), "who did it is recorded: {managers:?}");
    end(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn wait_ends_with_what_it_is_asked_for_or_says_what_stands_in_its_place() {
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-wait", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    let mut not_ready = in_force();
    not_ready["conditions"][0] = condition("Ready", "False", "NoMetrics", "Prometheus has no series of these pods");
    tell(&cluster, "shop", &not_ready).await;
    let late = plugin.run(&["wait", "shop", "-n", namespace, "--timeout", "1s"]).await.ended(1);
    assert!(late.contains("not within 1s: Ready=True") && late.contains("Ready=False/NoMetrics"), "{late}");
    let once = plugin.run(&["wait", "shop", "-n", namespace, "--timeout", "0"]).await.ended(1);
    assert!(once.contains("Ready=False/NoMetrics"), "{once}");
    let mut waiting =
        plugin.start(&["wait", "shop", "-n", namespace, "--for", "reason=inforce", "--timeout", "20s"], true);
    waiting.says("Ready=False/NoMetrics").await;
    tell(&cluster, "shop", &in_force()).await;
    assert_eq!(waiting.end().await, Some(0));
    let unknown = plugin.run(&["wait", "shop", "-n", namespace, "--for", "condition=Healthy"]).await.ended(2);
    assert!(unknown.contains("there are UpstreamHealthy"), "{unknown}");
    let mut deletion = plugin.start(&["wait", "shop", "-n", namespace, "--for", "delete", "--timeout", "20s"], true);
    deletion.says("Ready=True/InForce").await;
    let pools: Api<ConnectionPool> = cluster.api();
    pools.delete("shop", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(deletion.end().await, Some(0));
    plugin.run(&["wait", "shop", "-n", namespace, "--for", "delete"]).await.ended(0);
    plugin.run(&["wait", "shop", "-n", namespace]).await.ended(2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn who_may_only_read_is_shown_what_he_may_and_told_the_rest_in_words() {
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-rights", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    tell(&cluster, "shop", &in_force()).await;
    let role = json!({"metadata": {"name": "reader"}, "rules": [
        {"apiGroups": ["sluice.dev"], "resources": ["connectionpools"], "verbs": ["get", "list", "watch"]}]});
    let binding = json!({"metadata": {"name": "reader"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}]});
    let created = PostParams::default();
    cluster.api::<Role>().create(&created, &object(role)).await.expect("a role");
    cluster.api::<RoleBinding>().create(&created, &object(binding)).await.expect("a binding");
    let reader = format!("system:serviceaccount:{namespace}:reader");
    let run = async |words: &[&str]| plugin.run(&[words, &["-n", namespace, "--as", &reader]].concat()).await;

    let table = eventually("the role is in force", || async {
        let answer = run(&["get"]).await;
        (answer.code == 0).then_some(answer.out)
    })
    .await;
    assert!(table.contains("InForce"), "{table}");
    let status = run(&["status", "shop"]).await.ended(0);
    assert!(status.contains("Ready=True/InForce") && status.contains("not allowed to list pods in"), "{status}");
    let why = run(&["why", "shop"]).await.ended(0);
    assert!(why.contains("2.3 busy") && why.contains("not allowed to list events in"), "{why}");
    let pause = run(&["pause", "shop", "--yes"]).await.ended(1);
    assert!(pause.contains("not allowed to pause ConnectionPool") && pause.contains("nothing was changed"), "{pause}");
    let all = run(&["get", "-A"]).await.ended(2);
    assert!(all.contains("not allowed to list ConnectionPools in all namespaces"), "{all}");
    let check = run(&["check"]).await;
    let said = check.out.clone();
    assert!([1, 2].contains(&check.code), "{said}");
    for words in [
        "not allowed to read CustomResourceDefinition",
        "you may not list pods: no pods are shown",
        "you may not patch connectionpools.sluice.dev",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    end(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn why_shows_the_events_of_this_very_pool() {
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-why", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    let shop: ConnectionPool = cluster.create(&pool("shop")).await.expect("a pool");
    tell(&cluster, "shop", &in_force()).await;
    for (name, uid) in [("own", shop.uid().expect("a uid")), ("other", "an earlier pool".to_owned())] {
        let event = json!({"metadata": {"name": name}, "type": "Normal", "reason": "TargetChanged", "message": format!("of {name}"),
            "eventTime": "2026-11-28T11:59:44.000000Z", "action": "RaiseTarget", "reportingComponent": "x", "reportingInstance": "x",
            "involvedObject": {"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "namespace": namespace, "name": "shop", "uid": uid}});
        cluster.api::<Event>().create(&PostParams::default(), &object(event)).await.expect("an event");
    }
    let why = plugin.run(&["why", "shop", "-n", namespace]).await.ended(0);
    assert!(why.contains("of own") && !why.contains("of other"), "{why}");
    for words in ["d-1", "target 15 -> 12 (Demand", "minAllowed 5, maxAllowed 100", "What would change the answer"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    let document = plugin.run(&["why", "shop", "-n", namespace, "-o", "json"]).await.json();
    assert_eq!((&document["decision"]["id"], &document["limits"]["maxAllowed"]), (&json!("d-1"), &json!(100)));
    let advice = plugin.run(&["recommend", "shop", "-n", namespace]).await.ended(0);
    assert!(advice.contains("nothing to do: sizes follow the load"), "{advice}");
    end(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn check_follows_an_installation_from_nothing_to_one_that_is_as_it_should_be() {
    let (cluster, plugin) = (Cluster::new("plugin-check", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    let check = async || plugin.run(&["check", "-n", namespace, "--operator-namespace", namespace]).await;
    let before = check().await.ended(1);
    assert!(before.contains("connectionpools.sluice.dev is that of this plugin"), "{before}");
    assert!(before.contains("FAILED    there is no Deployment of the operator"), "{before}");

    let mut cluster_wide = Vec::new();
    for template in [
        "templates/webhook.yaml",
        "templates/policy.yaml",
        "templates/policy-gateway.yaml",
        "templates/rbac-operator.yaml",
    ] {
        for mut value in chart(template, namespace) {
            // no pod of anybody else is to meet this webhook, which nobody serves
            for webhook in value.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
                webhook["namespaceSelector"] = json!({"matchLabels": {"sluice-test-none": namespace}});
            }
            // nor is anybody else held to the policies of an operator that is not there
            if value["kind"] == "ValidatingAdmissionPolicy" {
                value["spec"]["matchConstraints"]["namespaceSelector"] =
                    json!({"matchLabels": {"sluice-test-none": namespace}});
            }
            if value["metadata"]["namespace"].is_null() {
                cluster_wide.push(cluster.apply_for_now(&value).await);
            } else {
                apply(&plugin, &value).await;
            }
        }
    }
    for value in chart("templates/deployment.yaml", namespace)
        .into_iter()
        .chain(chart("templates/serviceaccount.yaml", namespace))
    {
        apply(&plugin, &value).await;
    }
    let told = check().await.ended(1);
    for words in [
        "0 of 2 replicas of",
        "there is no Lease: no replica has ever led",
        "pod.inject.sluice.dev has no caBundle",
        "no replica of the operator answers for the webhook",
        &format!("the policy {namespace}-sluice-creation guards annotations of pods that are created"),
        "may do what it takes",
        "the cluster has no VerticalPodAutoscaler",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }

    let deployments: Api<Deployment> = cluster.api();
    let ready = json!({"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2}});
    deployments.patch_status("sluice", &PatchParams::default(), &Patch::Merge(ready)).await.expect("ready");
    let now = k8s_openapi::jiff::Timestamp::now();
    let lease = json!({"metadata": {"name": "sluice-operator"}, "spec": {"holderIdentity": "sluice-a", "leaseDurationSeconds": 15,
        "renewTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(now)}});
    cluster.api::<Lease>().create(&PostParams::default(), &object(lease)).await.expect("a lease");
    let told = check().await.ended(1);
    for words in [
        "2 of 2 replicas of",
        "sluice-a leads",
        &format!("the operator is {}, as this plugin", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let document = plugin.run(&["check", "-n", namespace, "--operator-namespace", namespace, "-o", "json"]).await;
    let document: Value = serde_json::from_str(&document.out).expect("JSON");
    assert_eq!(document["sections"][0]["title"], "Kubernetes");

    for object in cluster_wide {
        object.end().await;
    }
    let pre = plugin.run(&["check", "--pre", "-n", namespace, "--operator-namespace", namespace]).await.ended(0);
    assert!(
        pre.contains("connectionpools.sluice.dev exists, of no release") && pre.contains("you may do what it takes"),
        "{pre}"
    );
    end(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn check_creates_a_pod_for_trial_by_which_the_webhook_is_seen_to_work_and_leaves_none_behind() {
    let _turn = turn().await;
    let (injected, plugin) = (Injected::new("plugin-trial", json!({})).await, Plugin::new());
    let cluster = &injected.cluster;
    let namespace = cluster.namespace.as_str();
    let check = async || plugin.run(&["check", "-n", namespace, "--operator-namespace", namespace]).await.ended(1);
    cluster.create::<ConnectionPool>(&pool("shop")).await.expect("a pool");
    tell(cluster, "shop", &in_force()).await;
    let works = check().await;
    assert!(works.contains("ok        a pod of shop that was created for trial (dry run) gets its pooler"), "{works}");
    injected.drain.end();
    let gone = eventually("the server has ended", || async {
        let said = check().await;
        said.contains("the API server cannot ask the webhook").then_some(said)
    })
    .await;
    assert!(gone.contains("docs/operations.md#network-policies"), "{gone}");
    let pods: Api<Pod> = cluster.api();
    assert!(pods.list(&ListParams::default()).await.expect("pods").items.is_empty());
    end(cluster).await;
    injected.end().await;
}

async fn apply(plugin: &Plugin, value: &Value) {
    let file = plugin.0.path().join("object.json");
    std::fs::write(&file, value.to_string()).expect("written");
    let applied = plugin.command(&["apply", "-f", file.to_str().expect("a path")]).output().await.expect("kubectl");
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn kubectl_completes_verbs_flags_and_pools() {
    let (cluster, plugin) = (Cluster::new("plugin-tab", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    for name in ["shop", "cart"] {
        cluster.create::<ConnectionPool>(&pool(name)).await.expect("a pool");
    }
    let complete = async |words: &[&str]| {
        let all = [&["__complete", "sluice"], words].concat();
        let output = plugin.command(&all).output().await.expect("kubectl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(complete(&["sta"]).await.starts_with("status\t"));
    assert!(complete(&["status", "--out"]).await.starts_with("--output\t"));
    let pools = complete(&["why", "-n", namespace, "s"]).await;
    assert_eq!(pools.lines().collect::<Vec<_>>(), ["shop", ":4"], "{pools}");
    end(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn an_api_server_that_never_answers_is_waited_for_as_long_as_was_asked() {
    let plugin = Plugin::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = format!("http://{}", silent.local_addr().expect("bound"));
    let kubeconfig = plugin.0.path().join("silent");
    write_kubeconfig(&kubeconfig, &server);
    let path = kubeconfig.to_str().expect("a path");
    let slow = plugin.run(&["get", "--kubeconfig", path, "--request-timeout", "500ms"]).await.ended(2);
    assert!(slow.contains("list ConnectionPools in default: no answer within 500ms"), "{slow}");
    let context = plugin.run(&["get", "--kubeconfig", path, "--context", "none"]).await.ended(2);
    assert!(context.contains("none") && context.contains("--context"), "{context}");
    let missing = plugin.run(&["get", "--kubeconfig", "/nowhere/config"]).await.ended(2);
    assert!(missing.contains("/nowhere/config"), "{missing}");
    drop(silent);
    let refused = plugin.run(&["get", "--kubeconfig", path]).await.ended(2);
    assert!(refused.contains("the API server cannot be reached"), "{refused}");
}

fn write_kubeconfig(path: &Path, server: &str) {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "users": [{"name": "lab", "user": {}}],
    });
    std::fs::write(path, config.to_string()).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: tests/run api"]
async fn a_report_holds_no_secret_and_the_load_in_it_can_be_replayed() {
    const PASSWORD: &str = "correct-horse-battery-staple";
    pods_lead_here();
    let _turn = turn().await;
    let (cluster, plugin) = (Cluster::new("plugin-report", &json!({})).await, Plugin::new());
    let namespace = cluster.namespace.as_str();
    let secret = json!({"metadata": {"name": "shop-db"}, "stringData": {"username": "shop", "password": PASSWORD}});
    cluster.api::<Secret>().create(&PostParams::default(), &object(secret)).await.expect("a Secret");
    let spec = "  scaling: {minAllowed: 6, maxAllowed: 12, algorithm: TargetUtilization, localReaction: Disabled}\n";
    let env = format!(
        "  client: {{env: [{{name: DATABASE_URL, template: 'postgres://shop:{PASSWORD}@{{host}}:{{port}}'}}]}}\n"
    );
    let shop: ConnectionPool = cluster.create(&pool_with("shop", &format!("{spec}{env}"))).await.expect("a pool");
    let note = Patch::Merge(json!({"metadata": {"annotations": {"note": PASSWORD}, "labels": {"note": PASSWORD}}}));
    cluster.api::<ConnectionPool>().patch("shop", &PatchParams::default(), &note).await.expect("a note");
    let operator = Operator::start(&cluster, "a", &[]);
    operator.leads().await;
    let first = FakePod::start_at(&cluster, &shop, "shop-0", "198.18.8.3").await;
    plugin.run(&["wait", "shop", "-n", namespace, "--for", "condition=Proven", "--timeout", "20s"]).await.ended(0);

    let top = plugin.run(&["top", "shop", "-n", namespace]).await.ended(0);
    let row = top.lines().find(|line| line.starts_with("shop-0")).unwrap_or_else(|| panic!("{top}"));
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((cells[2], cells[5], cells[9]), ("1", "3", "20.0"), "active, limit, milliseconds of each: {row}");
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("report");
    let to = directory.to_str().expect("a path");
    let said = plugin.run(&["report", "shop", "-n", namespace, "--to", to, "--record", "11s"]).await.ended(0);
    assert!(said.contains("files without secrets"), "{said}");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let text = fs::read_to_string(entry.path()).expect("text");
        assert!(!text.contains(PASSWORD), "{}: {text}", entry.path().display());
        names.push(entry.file_name().into_string().expect("a name"));
    }
    names.sort();
    let wanted = [
        "README.txt",
        "agents.yaml",
        "events.yaml",
        "pods.yaml",
        "pool.yaml",
        "revisions.txt",
        "revisions.yaml",
        "samples.csv",
        "status.txt",
        "why.txt",
    ];
    assert_eq!(names, wanted);
    let events = fs::read_to_string(directory.join("events.yaml")).expect("events");
    assert!(events.contains("RevisionCreated"), "{events}");
    let replay = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["backtest", "samples.csv", "--min", "6", "--max", "12"])
        .current_dir(&directory)
        .output()
        .await
        .expect("it runs");
    let replay = Answer::of(&replay).ended(0);
    assert!(replay.contains("1 pod(s), size 6 to 12"), "{replay}");
    let again = plugin.run(&["report", "shop", "-n", namespace, "--to", to, "--record", "0"]).await.ended(2);
    assert!(again.contains("name another directory with --to"), "{again}");
    drop(first);
    end(&cluster).await;
}
