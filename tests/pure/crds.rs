//! The committed custom resource definitions are the ones that the types yield.

use std::{fs, path::Path};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use sluice::{
    api::{crds, crds_chart_template, crds_yaml},
    contract::{Algorithm, Behavior, ScalingPolicyType, ScalingRules},
    decide::behavior::default_for,
};

const REGENERATE: &str = "run `cargo run -- crd --out crds --chart charts/sluice`";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(REGENERATE)
}

fn committed(name: &str) -> String {
    read(&format!("crds/{name}"))
}

#[test]
fn the_committed_definitions_do_not_drift_from_the_types() {
    for (name, yaml) in crds_yaml().expect("renders") {
        assert!(committed(&name) == yaml, "crds/{name} is out of date: {REGENERATE}");
    }
    let template = crds_chart_template().expect("renders");
    assert!(
        read("charts/sluice/templates/crds.yaml") == template,
        "the chart's definitions are out of date: {REGENERATE}"
    );
    assert_eq!(template.matches("{{").count(), 2, "a description would be read as a template");
}

#[test]
fn every_definition_stays_far_below_what_a_client_side_apply_can_carry() {
    for (name, yaml) in crds_yaml().expect("renders") {
        assert!(yaml.len() < 200 * 1024, "crds/{name} has {} bytes", yaml.len());
    }
}

/// Kubernetes reads YAML 1.1, where a bare `on` is true and `1:20` is 80.
#[test]
fn the_committed_definitions_parse_back_to_the_types_and_hold_no_yaml_1_1_surprise() {
    for (crd, (name, _)) in crds().iter().zip(crds_yaml().expect("renders")) {
        let text = committed(&name);
        let read: CustomResourceDefinition = serde_yaml::from_str(&text).expect("valid YAML");
        assert_eq!(serde_json::to_value(&read).expect("JSON"), serde_json::to_value(crd).expect("JSON"), "{name}");
        for line in text.lines() {
            let scalar = line.trim_start().trim_start_matches("- ");
            let scalar = scalar.split_once(": ").map_or(scalar, |(_, value)| value).trim();
            let lower = scalar.to_ascii_lowercase();
            assert!(!matches!(&*lower, "on" | "off" | "yes" | "no" | "y" | "n"), "crds/{name}: bare {line:?}");
            let sexagesimal = scalar.split(':').count() > 1 && scalar.bytes().all(|b| b.is_ascii_digit() || b == b':');
            assert!(!sexagesimal, "crds/{name}: bare {line:?}");
        }
    }
}

#[test]
fn the_described_defaults_of_behavior_are_those_in_force() {
    let pools = &crds()[0];
    let schema = serde_json::to_value(pools.spec.versions[0].schema.as_ref()).expect("JSON");
    let behavior = &schema["openAPIV3Schema"]["properties"]["spec"]["properties"]["behavior"]["properties"];
    let description = |direction: &str| behavior[direction]["description"].as_str().unwrap_or_default().to_owned();
    for (direction, of) in [
        ("scaleUp", (|all: Behavior| all.scale_up) as fn(Behavior) -> ScalingRules),
        ("scaleDown", |all: Behavior| all.scale_down),
    ] {
        let description = description(direction);
        let (adaptive, others) = description.split_once("Default for TargetUtilization").expect("both are described");
        for (algorithm, text) in [(Algorithm::Adaptive, adaptive), (Algorithm::TargetUtilization, others)] {
            let rules = of(default_for(algorithm));
            let mut words = vec![format!("tolerance {}", rules.tolerance)];
            words.push(match rules.stabilization_window_seconds {
                0 => "no window".to_owned(),
                seconds => format!("window {seconds} s"),
            });
            for policy in &rules.policies {
                let unit = if policy.type_ == ScalingPolicyType::Percent { "%" } else { "connections" };
                words.push(format!("{} {unit}", policy.value));
                words.push(format!("in {} s", policy.period_seconds));
            }
            if rules.policies.is_empty() {
                words.push("no limit of the rate".to_owned());
            }
            for word in words {
                assert!(text.contains(&word), "{direction}, {algorithm:?}: {word:?} is missing in {text:?}");
            }
        }
    }
}

/// Walks a schema: `visit` sees every node with its path.
fn walk(path: &str, node: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, node);
    for (field, child) in node["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{field}"), child, visit);
    }
    for key in ["items", "additionalProperties"] {
        if node[key].is_object() {
            walk(&format!("{path}[]"), &node[key], visit);
        }
    }
}

fn schemas() -> Vec<(String, Value)> {
    let whole = crds().into_iter().map(|crd| {
        let schema = crd.spec.versions[0].schema.as_ref().expect("a schema");
        let schema = serde_json::to_value(schema.open_api_v3_schema.as_ref()).expect("JSON");
        (crd.spec.names.kind, schema)
    });
    whole.collect()
}

/// Without bounds the API server must assume the worst of every CEL rule, and a client could fill etcd.
#[test]
fn every_list_map_and_string_is_bounded() {
    let mut unbounded = Vec::new();
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, node| {
            // Condition is Kubernetes' own type: its lists are bounded by their own maxItems, its strings by the writer.
            if path.contains(".conditions[]") {
                return;
            }
            let closed = !node["enum"].is_null() || !node["format"].is_null();
            let bounded = match node["type"].as_str() {
                Some("array") => node["maxItems"].is_u64(),
                Some("string") => closed || node["maxLength"].is_u64(),
                Some("object") => !node["additionalProperties"].is_object() || node["maxProperties"].is_u64(),
                Some("integer" | "number") => {
                    path.contains(".status.") || path.ends_with("Generation") || node["maximum"].is_number()
                }
                _ => true,
            };
            if !bounded {
                unbounded.push(format!("{path}: {node}"));
            }
        });
    }
    assert!(unbounded.is_empty(), "without a bound:\n{}", unbounded.join("\n"));
}

#[test]
fn every_field_says_what_it_is() {
    let mut silent = Vec::new();
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, node| {
            let own = path.contains('.') && !path.ends_with("[]") && !path.contains(".metadata");
            if own && node["description"].as_str().is_none_or(str::is_empty) {
                silent.push(path.to_owned());
            }
        });
    }
    assert!(silent.is_empty(), "`kubectl explain` would say nothing of:\n{}", silent.join("\n"));
}

/// `kubectl explain` lists the values of an enum; what they mean stands in the description alone.
#[test]
fn every_choice_is_explained_where_it_is_offered() {
    let mut unexplained = Vec::new();
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, node| {
            let description = node["description"].as_str().unwrap_or_default();
            assert!(
                !description.replace("\n\n", "").contains('\n'),
                "{path}: a line break of the source: {description:?}"
            );
            let choices = node["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let missing: Vec<_> = choices.filter(|choice| !description.contains(*choice)).collect();
            if !missing.is_empty() && path.contains(".spec.") {
                unexplained.push(format!("{path}: {missing:?} in {description:?}"));
            }
        });
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}
