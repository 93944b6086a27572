//! What the guides tell people to ask and to be woken by, against a real Prometheus that has scraped what agent and operator
//! themselves render.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use axum::{Router, extract::State, routing::get};
use serde_json::{Value, json};
use sluice::{
    api::conditions::{ConditionStatus, ObservedCondition as Condition, READY, SCALING_ACTIVE},
    http::{OperatorMetrics, PoolLabels, ProofOutcome, WriteKind, WriteOutcome},
};

use super::{
    Agents, DEADLINE, Prometheus, now_seconds,
    server::{Agent, http_get, lab_bin},
};

/// Serves what an operator renders.
async fn operator(metrics: OperatorMetrics) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = |State(metrics): State<OperatorMetrics>| {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        std::future::ready(([("content-type", kind)], metrics.encode().unwrap()))
    };
    let router = Router::new().route("/metrics", get(page)).with_state(metrics);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// The pool of the operator.
fn shop() -> PoolLabels {
    PoolLabels { pool_namespace: "shop".to_owned(), pool: "shop".to_owned() }
}

/// The conditions that alerts ask for.
fn conditions(status: ConditionStatus, reason: &'static str) -> [Condition; 2] {
    [READY, SCALING_ACTIVE].map(|type_| Condition { type_, status, reason, message: String::new() })
}

/// An operator of which every metric has a series.
fn busy_operator() -> OperatorMetrics {
    let metrics = OperatorMetrics::default();
    metrics.decided("Demand");
    metrics.pool(&shop(), Some(10), 12, Some(10), 1);
    metrics.conditions(&shop(), &conditions(ConditionStatus::True, "InForce"));
    metrics.reconciled(Duration::from_millis(1), Some("Status"));
    metrics.ticked(Duration::from_millis(1));
    metrics.queried(1, 0);
    metrics.wrote(WriteKind::Pod, WriteOutcome::Done);
    metrics.asked(ProofOutcome::Answered);
    metrics.watched("pods");
    metrics.watch_failed("pods");
    metrics.leader(true);
    metrics
}

/// Every file of the guides, the examples and the chart.
fn texts() -> Vec<(PathBuf, String)> {
    fn walk(path: &Path, into: &mut Vec<(PathBuf, String)>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), into);
            }
        } else if let Ok(text) = fs::read_to_string(path) {
            into.push((path.to_owned(), text));
        }
    }
    let mut texts = Vec::new();
    for part in ["README.md", "docs", "examples", "charts"] {
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(part), &mut texts);
    }
    texts
}

/// Looks at what came in more than half an hour; see the tests of it below.
const SLOW: &str = "SluicePodsRefused";

/// The rules of the operations guide.
fn rules_of_the_guide() -> String {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let begin = guide.find("groups:\n").unwrap();
    guide[begin..begin + guide[begin..].find("```").unwrap()].to_owned()
}

/// The same, each waiting for nothing.
fn rules() -> String {
    let rules = rules_of_the_guide();
    let rules: Vec<&str> = rules.lines().filter(|line| !line.trim_start().starts_with("for:")).collect();
    rules.join("\n")
}

fn alerts_of(rules: &str) -> BTreeSet<String> {
    rules.lines().filter_map(|line| Some(line.split_once("- alert: ")?.1.to_owned())).collect()
}

async fn api(prometheus: &Prometheus, path: &str) -> Value {
    let url = format!("http://{}/api/v1/{path}", prometheus.address);
    serde_json::from_str(&http_get(&url).await.unwrap().text().await.unwrap()).unwrap()
}

/// Which alerts fire.
async fn firing(prometheus: &Prometheus) -> BTreeSet<String> {
    let alerts = api(prometheus, "alerts").await;
    let firing = alerts["data"]["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
    firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
}

async fn until_firing(prometheus: &Prometheus, wanted: &BTreeSet<String>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let firing = firing(prometheus).await;
        if firing.is_superset(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "only {firing:?} of {wanted:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Every series of the page has been judged some times.
async fn until_judged(prometheus: &Prometheus) {
    let query = "query?query=count_over_time(sluice_operator_leader[1m])>4";
    let deadline = Instant::now() + DEADLINE;
    while api(prometheus, query).await["data"]["result"].as_array().is_none_or(Vec::is_empty) {
        assert!(Instant::now() < deadline, "it is not scraped");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn every_alert_of_the_guide_fires_in_its_condition_and_none_while_all_is_well() {
    let rules = rules();
    let mut all = alerts_of(&rules);
    assert!(all.len() >= 6 && all.remove(SLOW), "{all:?}");
    let agent = Agent::start("shop-1").await;
    agent.report(|figures| figures.leaked = Some(0));
    let metrics = busy_operator();
    let page = operator(metrics.clone()).await;
    let agents = Agents::of([&agent]).and_page("operator", page).judged_by(rules.clone());
    let prometheus = Prometheus::start(&agents).await;
    until_judged(&prometheus).await;
    assert_eq!(firing(&prometheus).await, BTreeSet::new());

    // one event of each kind is enough
    agent.report(|figures| (figures.leaked, figures.waits) = (Some(1), [0, 0, 10]));
    metrics.ticked(Duration::from_millis(1));
    metrics.queried(1, 1);
    metrics.leader(false);
    let in_a_day = jiff::Timestamp::now().as_second() + 86_400;
    metrics.certificate_ends(in_a_day);
    metrics.conditions(&shop(), &conditions(ConditionStatus::False, "PrometheusUnavailable"));
    until_firing(&prometheus, &all).await;
    let alerts = api(&prometheus, "alerts").await;
    for name in ["SluicePoolNotReady", "SluiceScalingInactive"] {
        let alerts = alerts["data"]["alerts"].as_array().unwrap();
        let told = alerts.iter().find(|alert| alert["labels"]["alertname"] == name).unwrap();
        let summary = told["annotations"]["summary"].as_str().unwrap();
        assert!(summary.contains("shop/shop") && summary.ends_with("PrometheusUnavailable"), "{summary}");
    }

    // no operator at all
    let nobody = Prometheus::start(&Agents::of([&agent]).judged_by(rules)).await;
    until_firing(&nobody, &BTreeSet::from(["SluiceNoLeader".to_owned()])).await;
}

const MINUTE: Duration = Duration::from_mins(1);

/// When a pod is tried that is refused each time, after its first refusal: as Kubernetes' controllers do, after 5 ms, then after twice as
/// long each time, 1000 s at most.
fn tries(until: Duration) -> Vec<Duration> {
    let (mut tries, mut at, mut pause) = (Vec::new(), Duration::ZERO, Duration::from_millis(5));
    while at < until {
        tries.push(at);
        at += pause;
        pause = (pause * 2).min(Duration::from_secs(1000));
    }
    tries
}

/// What each of two replicas has counted at each minute, of refusals that they answer in turn, from the first minute on.
fn counted(refusals: &[Duration], minutes: u32) -> [String; 2] {
    [0, 1].map(|replica| {
        let of_replica: Vec<&Duration> = refusals.iter().skip(replica).step_by(2).collect();
        let until = |minute: u32| of_replica.iter().filter(|&&&at| at + MINUTE <= MINUTE * minute).count().to_string();
        (0..=minutes).map(until).collect::<Vec<_>>().join(" ")
    })
}

/// Lets promtool judge the rules of the guide at each of these minutes: the slow alert fires or not.
fn judge(refusals: &[Duration], minutes: RangeInclusive<u32>, fires: bool) {
    let series: Vec<(String, String)> = counted(refusals, *minutes.end())
        .into_iter()
        .zip(["sluice-a", "sluice-b"])
        .map(|(values, pod)| (format!("sluice_operator_admissions_total{{verdict=\"Denied\",pod=\"{pod}\"}}"), values))
        .collect();
    let expected = if fires { json!([{"exp_labels": {}}]) } else { json!([]) };
    judge_series(&series, SLOW, minutes, &expected);
}

/// Lets promtool judge the rules of the guide at each of these minutes, with these series and their values of each minute: of this
/// alert these are expected.
fn judge_series(series: &[(String, String)], alert: &str, minutes: RangeInclusive<u32>, expected: &Value) {
    let directory = tempfile::TempDir::new().unwrap();
    fs::write(directory.path().join("rules.yml"), rules_of_the_guide()).unwrap();
    let series: Vec<Value> =
        series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
    let times: Vec<Value> = minutes
        .map(|minute| json!({"eval_time": format!("{minute}m"), "alertname": alert, "exp_alerts": expected}))
        .collect();
    let tests = json!({"rule_files": ["rules.yml"], "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": times}]});
    let file = directory.path().join("tests.yml");
    fs::write(&file, tests.to_string()).unwrap();
    let judged = Command::new(lab_bin().join("promtool")).args(["test", "rules"]).arg(&file).output().unwrap();
    let told = String::from_utf8_lossy(&[judged.stdout, judged.stderr].concat()).into_owned();
    assert!(judged.status.success(), "{told}");
}

#[test]
#[ignore = "needs Prometheus: tests/run parts"]
fn the_alert_of_refused_pods_stays_as_long_as_a_pod_is_refused_however_rarely_it_is_tried() {
    let refusals = tries(MINUTE * 360);
    assert!(refusals.windows(2).any(|pair| pair[0] + Duration::from_secs(1000) == pair[1]), "{refusals:?}");
    judge(&refusals, 0..=25, false);
    judge(&refusals, 28..=360, true);
    // mended after three hours
    let mended = tries(MINUTE * 180);
    judge(&mended, 222..=360, false);
}

#[test]
#[ignore = "needs Prometheus: tests/run parts"]
fn pods_that_were_created_a_moment_before_their_pool_wake_nobody() {
    let refusals = tries(Duration::from_secs(5));
    assert!(refusals.len() > 8, "{refusals:?}");
    judge(&refusals, 0..=120, false);
}

/// Condition `type_` of the pool of the operator, with this reason for an hour.
fn condition_for_an_hour(type_: &str, reason: &str) -> (String, String) {
    let of = "pool=\"shop\",pool_namespace=\"shop\"";
    (
        format!("sluice_operator_condition{{type=\"{type_}\",status=\"False\",reason=\"{reason}\",{of}}}"),
        "1x60".to_owned(),
    )
}

#[test]
#[ignore = "needs Prometheus: tests/run parts"]
fn a_workload_that_is_scaled_to_zero_wakes_nobody() {
    let series = [condition_for_an_hour("Ready", "NoPods"), condition_for_an_hour("ScalingActive", "NoPods")];
    for alert in ["SluicePoolNotReady", "SluiceScalingInactive"] {
        judge_series(&series, alert, 0..=60, &json!([]));
    }
}

/// The waits of the pool of the operator and the peak of who waits, at each minute: so many transactions a minute, of which so many
/// wait longer than the objective.
fn waits(transactions: u32, late: u32) -> [(String, String); 3] {
    let of = "pool=\"shop\",pool_namespace=\"shop\",pod=\"shop-1\"";
    [
        (format!("sluice_waiting_peak{{window=\"30s\",{of}}}"), "2x60".to_owned()),
        (format!("sluice_wait_duration_seconds_bucket{{le=\"0.02\",{of}}}"), format!("0+{}x60", transactions - late)),
        (format!("sluice_wait_duration_seconds_count{{{of}}}"), format!("0+{transactions}x60")),
    ]
}

#[test]
#[ignore = "needs Prometheus: tests/run parts"]
fn clients_that_wait_within_the_objective_wake_nobody_and_those_that_wait_longer_or_for_ever_do() {
    const ALERT: &str = "SluiceClientsWait";
    let fires = json!([{"exp_labels": {"pool": "shop", "pool_namespace": "shop"}}]);
    judge_series(&waits(30_000, 300), ALERT, 0..=60, &json!([]));
    judge_series(&waits(30_000, 3_000), ALERT, 10..=60, &fires);
    // nobody is served
    judge_series(&waits(0, 0), ALERT, 10..=60, &fires);
}

/// The parts of a text between backticks, on one line.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_of_name(c) && !c.is_ascii_uppercase() && c != '-' && c != '/' && c != '.');
    words.filter(|word| word.starts_with("sluice_") && word.chars().all(is_of_name) && !word.ends_with('_')).collect()
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn every_query_and_every_name_in_guides_examples_and_chart_finds_what_is_exported() {
    let agent = Agent::start("shop-1").await;
    agent.report(|figures| {
        (figures.leaked, figures.waits) = (Some(0), [80, 10, 10]);
    });
    let metrics = busy_operator();
    metrics.certificate_ends(jiff::Timestamp::now().as_second());
    metrics.rollout_ended("RolloutComplete");
    metrics.conditions(&shop(), &conditions(ConditionStatus::False, "PrometheusUnavailable"));
    let page = operator(metrics).await;
    let prometheus = Prometheus::start(&Agents::of([&agent]).and_page("operator", page)).await;
    until_judged(&prometheus).await;
    let known = api(&prometheus, "label/__name__/values").await;
    let known: BTreeSet<&str> = known["data"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let is_known = |name: &str| known.contains(name) || known.contains(format!("{name}_bucket").as_str());
    let (mut queries, mut asked) = (BTreeSet::new(), 0);
    for (path, text) in texts() {
        for name in names(&text) {
            assert!(is_known(name), "{}: {name} is not exported", path.display());
        }
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
        let of_functions = code(&text).filter(|code| code.contains('(') && !names(code).is_empty());
        queries.extend(lines.chain(of_functions).map(str::to_owned));
    }
    assert!(queries.len() > 10, "{queries:?}");
    for query in queries {
        // an alert without its bound, and what only a converted histogram has
        let bare = query.split(" > ").next().unwrap().split(" != ").next().unwrap().split(" < ").next().unwrap();
        let url = reqwest::Url::parse_with_params(
            "http://x/",
            [("query", bare), ("time", format!("{:.3}", now_seconds()).as_str())],
        )
        .unwrap();
        let answer = api(&prometheus, &format!("query?{}", url.query().unwrap())).await;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        asked += 1;
        if query.contains("rate(sluice_wait_duration_seconds[") {
            continue;
        }
        assert!(answer["data"]["result"].as_array().is_some_and(|series| !series.is_empty()), "{query}: nothing");
    }
    assert!(asked > 10);
}
