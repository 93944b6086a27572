//! Every manifest under `examples/` means what it says: it parses into our types (or Kubernetes') without losing a field,
//! and the parts of an example fit together.

use std::{fs, path::Path, process::Command};

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, Namespace, Secret},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sluice::{
    agent::{decide::counters::Added, report::metrics::Metrics},
    api::{ConnectionBudget, ConnectionPool, ConnectionPoolClass},
    contract::{PoolerError, Switching, UpstreamState, names},
    decide,
    domain::Reason,
    pooler::pgbouncer::tables::Pools,
};

/// Every document of every YAML file under `examples/`, with the file's name.
fn documents() -> Vec<(String, Value)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")];
    let mut documents = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("examples/ can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = fs::read_to_string(&path).expect("a text");
                for document in serde_yaml::Deserializer::from_str(&text) {
                    let value =
                        Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    documents.push((path.display().to_string(), value));
                }
            }
        }
    }
    documents
}

fn of_kind<T: DeserializeOwned>(kind: &str) -> Vec<(String, T)> {
    let parsed: Vec<_> = documents()
        .into_iter()
        .filter(|(_, document)| document["kind"] == kind)
        .map(|(file, document)| (file, serde_json::from_value(document).expect("parses; see the other test")))
        .collect();
    assert!(!parsed.is_empty(), "no example of kind {kind}");
    parsed
}

/// Asserts that everything in `written` is in `read`: what the types do not know would be missing there.
fn assert_kept(path: &str, written: &Value, read: &Value) {
    match written {
        Value::Object(fields) => {
            for (name, value) in fields {
                assert_kept(&format!("{path}.{name}"), value, &read[name]);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                assert_kept(&format!("{path}[{index}]"), item, &read[index]);
            }
        }
        scalar => assert_eq!(scalar, read, "{path}: unknown field, or read as something else"),
    }
}

fn assert_parses<T: DeserializeOwned + Serialize>(file: &str, document: &Value) {
    let parsed: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_kept(file, document, &serde_json::to_value(parsed).expect("JSON"));
}

#[test]
fn every_example_parses_without_losing_a_field() {
    for (file, document) in documents() {
        match document["kind"].as_str() {
            Some("ConnectionPool") => assert_parses::<ConnectionPool>(&file, &document),
            Some("ConnectionPoolClass") => assert_parses::<ConnectionPoolClass>(&file, &document),
            Some("ConnectionBudget") => assert_parses::<ConnectionBudget>(&file, &document),
            Some("Deployment") => assert_parses::<Deployment>(&file, &document),
            Some("HorizontalPodAutoscaler") => assert_parses::<HorizontalPodAutoscaler>(&file, &document),
            Some("Namespace") => assert_parses::<Namespace>(&file, &document),
            Some("ConfigMap") => assert_parses::<ConfigMap>(&file, &document),
            // what is written as stringData is read as it is
            Some("Secret") => assert_parses::<Secret>(&file, &document),
            Some("PodMonitor") => assert_eq!(document["apiVersion"], "monitoring.coreos.com/v1", "{file}"),
            None => {
                assert!(document["scrape_configs"].is_array(), "{file}: neither an object nor a scrape configuration");
            }
            Some(kind) => panic!("{file}: no test knows kind {kind}; add it here"),
        }
    }
}

#[test]
fn every_example_pool_makes_sense_together_with_the_built_in_values() {
    for (file, pool) in of_kind::<ConnectionPool>("ConnectionPool") {
        decide::effective::effective(&pool.spec, None).unwrap_or_else(|refusal| panic!("{file}: {}", refusal.message));
        let allowed = decide::allowed::PoolAllowList::default().check(&pool.spec, None, "pgbouncer:1.26.1");
        allowed.unwrap_or_else(|refusal| panic!("{file}: {}", refusal.message));
    }
}

#[test]
fn the_example_pool_selects_every_example_workload_of_its_namespace() {
    let pools = of_kind::<ConnectionPool>("ConnectionPool");
    let (_, pool) = pools.iter().find(|(file, _)| file.contains("/shop/")).expect("the shop's pool");
    for (file, deployment) in of_kind::<Deployment>("Deployment") {
        let template = deployment.spec.expect("a spec").template.metadata.expect("metadata");
        let labels = template.labels.unwrap_or_default();
        assert_eq!(deployment.metadata.namespace, pool.metadata.namespace, "{file}");
        for (label, value) in &pool.selector().expect("a sidecar pool").match_labels {
            assert_eq!(labels.get(label), Some(value), "{file}: not selected by the pool");
        }
    }
}

#[test]
fn the_example_namespace_is_opted_in_and_the_credentials_have_the_keys_that_a_pool_reads() {
    for (file, namespace) in of_kind::<Namespace>("Namespace") {
        let labels = namespace.metadata.labels.unwrap_or_default();
        assert_eq!(labels.get(names::INJECT_LABEL).map(String::as_str), Some(names::INJECT_ENABLED), "{file}");
    }
    for (file, secret) in of_kind::<Secret>("Secret") {
        let data = secret.string_data.unwrap_or_default();
        assert!(data.contains_key("username") && data.contains_key("password"), "{file}");
    }
}

#[test]
fn the_scrape_examples_look_for_the_port_that_the_agent_has() {
    for (file, document) in documents() {
        if document["kind"] == "PodMonitor" {
            assert_eq!(document["spec"]["podMetricsEndpoints"][0]["port"], names::METRICS_PORT_NAME, "{file}");
            assert_eq!(document["spec"]["selector"]["matchExpressions"][0]["key"], names::POOL_LABEL, "{file}");
        } else if let Some(job) = document["scrape_configs"].get(0) {
            assert_eq!(job["relabel_configs"][0]["regex"], names::METRICS_PORT_NAME, "{file}");
        }
    }
}

/// The page of an agent with every series that it can have at once, and more: each document refused for each reason.
fn largest_page() -> String {
    let pool = "p".repeat(63);
    let metrics = Metrics::new(&"n".repeat(63), &pool);
    let pools = Pools {
        clients_active: 1,
        clients_waiting: 1,
        active: 1,
        idle: 1,
        used: 1,
        tested: 1,
        login: 1,
        being_canceled: 1,
        longest_wait_microseconds: 1,
    };
    metrics.observe(Added::default(), pools, Some(1), None, 1.0);
    for window in ["5s", "30s"] {
        metrics.set_peaks(window, 1.0, 1.0);
    }
    metrics.set_in_force(1, 1, 1, Some(1), Some(1));
    metrics.set_info(&"u".repeat(36), "1.26.1");
    metrics.set_switching(Switching::Steer);
    metrics.set_upstream(Some(UpstreamState::Primary));
    metrics.set_refused_beyond(Some(1));
    metrics.set_pinned(Some(1));
    for reason in Reason::ALL {
        metrics.count_decision(reason.as_str());
    }
    for error in PoolerError::ALL {
        metrics.count_error(error, None);
    }
    let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
    metrics.set_refused(
        ["grant", "revision", "credentials"].into_iter().flat_map(|of| reasons.clone().map(move |why| (of, why))),
    );
    metrics.render().expect("a page")
}

#[test]
fn the_scrape_examples_and_the_chart_take_twice_what_an_agent_exports_and_bound_what_else_a_pod_may() {
    let rendered = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chart/snapshots/everything.yaml"));
    let rendered = rendered.expect("the snapshot");
    let of_chart =
        serde_yaml::Deserializer::from_str(&rendered).map(|object| Value::deserialize(object).expect("YAML"));
    let of_chart = of_chart.filter(|object| object["metadata"]["name"] == "sluice-agents");
    let all = documents().into_iter().chain(of_chart.map(|object| ("the chart".to_owned(), object)));
    let page = largest_page();
    let series: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(series.len() > 100, "{page}");
    let labels = |line: &str| line.matches("=\"").count();
    let most_labels = series.iter().map(|line| labels(line)).max().expect("a series");
    let mut found = 0;
    for (file, document) in all {
        let names = ["sampleLimit", "labelLimit", "labelNameLengthLimit", "labelValueLengthLimit"];
        let of_job = ["sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit"];
        let limits = if document["kind"] == "PodMonitor" {
            names.map(|name| document["spec"][name].as_u64())
        } else if document["scrape_configs"][0]["job_name"] == "sluice-agents" {
            of_job.map(|name| document["scrape_configs"][0][name].as_u64())
        } else {
            continue;
        };
        let [samples, labels, name, value] = limits
            .map(|limit| usize::try_from(limit.unwrap_or_else(|| panic!("{file}: no limits"))).expect("a number"));
        found += 1;
        assert!((2 * series.len()..1000).contains(&samples), "{file}: {samples}, an agent has {}", series.len());
        // Prometheus adds those of the target, prometheus-operator some more; a name of Kubernetes has 253 characters at most
        assert!((most_labels + 16..64).contains(&labels), "{file}: {labels}, an agent has {most_labels}");
        assert!((64..=128).contains(&name) && (2 * 253..=1024).contains(&value), "{file}: {name}, {value}");
    }
    assert_eq!(found, 3);
}

/// What the lab's Prometheus reads, for the node level and the demo.
fn configuration_of_the_lab(scrape: Option<&str>) -> Value {
    let script = r#"TOP=$0; . "$TOP/tests/lab/cluster.sh"; scrape_configuration /run/targets.json"#;
    let mut command = Command::new("bash");
    command.args(["-euc", script, env!("CARGO_MANIFEST_DIR")]).env_remove("SLUICE_SCRAPE");
    command.envs(scrape.map(|scrape| ("SLUICE_SCRAPE", scrape)));
    let output = command.output().expect("bash");
    assert!(output.status.success(), "{output:?}");
    serde_yaml::from_str(&String::from_utf8(output.stdout).expect("a text")).expect("YAML")
}

#[test]
fn the_lab_scrapes_by_the_configuration_that_ships_but_for_where_its_pods_come_from() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/prometheus/scrape-config.yaml");
    let mut shipped: Value = serde_yaml::from_str(&fs::read_to_string(path).expect("a text")).expect("YAML");
    let mut expected = |scrape: Option<&str>| {
        for job in shipped["scrape_configs"].as_array_mut().expect("jobs") {
            let job = job.as_object_mut().expect("a job");
            job.remove("kubernetes_sd_configs");
            job.insert("file_sd_configs".to_owned(), json!([{"files": ["/run/targets.json"]}]));
            job.extend(scrape.map(|scrape| ("scrape_interval".to_owned(), json!(scrape))));
        }
        shipped.clone()
    };
    assert_eq!(configuration_of_the_lab(None), expected(None));
    assert_eq!(configuration_of_the_lab(Some("5s")), expected(Some("5s")));
}

/// What Prometheus knows of a port of a pod by this name of a label.
fn discovered(label: &str, pod: &Value, port: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if label == "__meta_kubernetes_pod_container_port_name" {
        return text(&port["name"]);
    }
    let name = label.strip_prefix("__meta_kubernetes_pod_label_").expect("a label of the pod");
    let labels = pod["metadata"]["labels"].as_object().expect("labels");
    let of_name = labels.iter().find(|(label, _)| label.replace(['.', '/', '-'], "_") == name);
    of_name.map(|(_, value)| text(value)).unwrap_or_default()
}

#[test]
fn the_scrape_example_finds_the_operator_that_the_chart_installs_by_its_one_port_with_metrics() {
    let rendered = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chart/snapshots/default.yaml"));
    let rendered = rendered.expect("the snapshot");
    let objects = serde_yaml::Deserializer::from_str(&rendered).map(|object| Value::deserialize(object).expect("YAML"));
    let deployments: Vec<Value> = objects.filter(|object| object["kind"] == "Deployment").collect();
    let pod = &deployments.first().expect("the operator")["spec"]["template"];
    let jobs = documents().into_iter().filter_map(|(_, document)| document["scrape_configs"].as_array().cloned());
    let job = jobs.flatten().find(|job| job["job_name"] == "sluice-operator").expect("a job for the operator");
    let keep = &job["relabel_configs"][0];
    assert_eq!(keep["action"], "keep");
    let ports = pod["spec"]["containers"][0]["ports"].as_array().expect("ports");
    let kept = ports.iter().filter(|port| {
        let labels = keep["source_labels"].as_array().expect("labels").iter().filter_map(Value::as_str);
        let values: Vec<String> = labels.map(|label| discovered(label, pod, port)).collect();
        keep["regex"] == values.join(";")
    });
    let kept: Vec<&Value> = kept.map(|port| &port["name"]).collect();
    assert_eq!(kept, ["metrics"]);
}

#[test]
fn no_manifest_of_the_gateway_holds_the_number_that_its_autoscaler_owns() {
    let scaled = of_kind::<HorizontalPodAutoscaler>("HorizontalPodAutoscaler");
    for (file, autoscaler) in scaled {
        let pool = autoscaler.spec.expect("a spec").scale_target_ref.name;
        let folder = Path::new(&file).parent().expect("a folder");
        let (_, pool) = of_kind::<ConnectionPool>("ConnectionPool")
            .into_iter()
            .find(|(beside, found)| {
                Path::new(beside).parent() == Some(folder) && found.metadata.name.as_ref() == Some(&pool)
            })
            .expect("the pool that it scales");
        assert_eq!(pool.spec.gateway.expect("a gateway").replicas, None, "{file}: a later apply would take it back");
    }
}
