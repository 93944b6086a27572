//! Nothing is accepted that does nothing: every field of every kind is named with where it takes effect, or is refused by the schema.
//! What a class may set too is tried in `class`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use sluice::{
    api::{ConnectionPool, crds},
    contract::{Document, PoolRevision, names::POOL_LABEL},
    decide::effective::effective,
    inject::{InjectionSettings, PodPool, inject},
};

use crate::class;

/// Where a field takes effect.
enum Effect {
    /// A pool that says this is put into force, selects or injects otherwise than one that does not.
    Changes(Value),
    /// It is read here: a folder or file of the sources, and the words.
    ReadIn(&'static str, &'static str),
    /// There is one value, and it is the built-in one.
    OneValue,
    /// The schema refuses it.
    Refused,
    /// The kind says of itself that it is not kept, and so does its condition `LedgerActive`.
    NotKept,
}
use Effect::{Changes, NotKept, OneValue, ReadIn, Refused};

const RENDER: &str = "src/controller/gateway/render.rs";

/// The fields that a pool has and no class.
fn of_pool() -> Vec<(&'static str, Effect)> {
    let upstream = |field: &str, value: Value| Changes(json!({"upstream": {field: value}}));
    let credentials = |field: &str| Changes(json!({"upstream": {"credentialsRef": {field: "another"}}}));
    let expression = |key: &str, operator: &str, values: Value| {
        let requirement = json!([{"key": key, "operator": operator, "values": values}]);
        Changes(json!({"workload": {"selector": {"matchExpressions": requirement}}}))
    };
    vec![
        ("classRef.name", ReadIn("src/decide", "&pool.class_ref")),
        ("engine", OneValue),
        ("topology", Changes(json!({"topology": "Gateway"}))),
        ("mode", Changes(json!({"mode": "Recommend", "scaling": {"fixedLimitPerPod": 8}}))),
        ("paused", ReadIn("src/decide", "pool.spec.paused")),
        ("workload.selector.matchLabels", Changes(json!({"workload": {"selector": {"matchLabels": {"tier": "web"}}}}))),
        ("workload.selector.matchExpressions[].key", expression("tier", "Exists", json!([]))),
        ("workload.selector.matchExpressions[].operator", expression("app", "NotIn", json!(["shop"]))),
        ("workload.selector.matchExpressions[].values", expression("app", "In", json!(["cart"]))),
        ("upstream.host", upstream("host", json!("another"))),
        ("upstream.port", upstream("port", json!(6543))),
        ("upstream.database", upstream("database", json!("another"))),
        ("upstream.role", upstream("role", json!("Any"))),
        ("upstream.credentialsRef.name", credentials("name")),
        ("upstream.credentialsRef.usernameKey", credentials("usernameKey")),
        ("upstream.credentialsRef.passwordKey", credentials("passwordKey")),
        ("budgetRef.name", Changes(json!({"budgetRef": {"name": "pg-main"}}))),
        ("sharing.weight", Refused),
        ("sharing.priority", Refused),
        ("scaling.fixedLimitPerPod", Changes(json!({"mode": "Recommend", "scaling": {"fixedLimitPerPod": 9}}))),
        ("gateway.replicas", ReadIn(RENDER, "gateway.replicas")),
        ("gateway.template.metadata.labels", ReadIn(RENDER, "own.labels")),
        ("gateway.template.metadata.annotations", ReadIn(RENDER, "own.annotations")),
        ("gateway.template.spec.nodeSelector", ReadIn(RENDER, "node_selector: ")),
        ("gateway.template.spec.tolerations[].key", ReadIn(RENDER, "Toleration { key,")),
        ("gateway.template.spec.tolerations[].operator", ReadIn(RENDER, "operator,")),
        ("gateway.template.spec.tolerations[].value", ReadIn(RENDER, "value,")),
        ("gateway.template.spec.tolerations[].effect", ReadIn(RENDER, "effect,")),
        ("gateway.template.spec.tolerations[].tolerationSeconds", ReadIn(RENDER, "toleration_seconds }")),
        ("gateway.template.spec.priorityClassName", ReadIn(RENDER, "priority_class_name,")),
        ("gateway.template.spec.dnsPolicy", ReadIn(RENDER, "dns_policy.map(")),
        ("gateway.template.spec.dnsConfig.nameservers", ReadIn(RENDER, "then_some(nameservers)")),
        ("gateway.template.spec.dnsConfig.searches", ReadIn(RENDER, "then_some(searches)")),
        ("gateway.template.spec.dnsConfig.options[].name", ReadIn(RENDER, "Some(option.name)")),
        ("gateway.template.spec.dnsConfig.options[].value", ReadIn(RENDER, "value: option.value")),
        ("gateway.template.spec.terminationGracePeriodSeconds", ReadIn(RENDER, "Some(grace_seconds.into())")),
    ]
}

/// The fields of a budget.
fn of_budget() -> Vec<(&'static str, Effect)> {
    const BUDGETS: &str = "src/controller/budgets.rs";
    vec![
        ("server.engine", OneValue),
        ("server.hosts", NotKept),
        ("server.port", NotKept),
        ("capacity.source", ReadIn(BUDGETS, "spec.capacity.source")),
        ("capacity.connections", ReadIn(BUDGETS, "spec.capacity.connections")),
        ("capacity.credentialsRef.namespace", Refused),
        ("capacity.credentialsRef.name", Refused),
        ("reserved.connections", ReadIn(BUDGETS, "reserved.connections")),
        ("reserved.percent", ReadIn(BUDGETS, "reserved.percent")),
        ("allowedNamespaces.from", Refused),
        ("allowedNamespaces.selector.matchLabels", Refused),
        ("allowedNamespaces.selector.matchExpressions[].key", Refused),
        ("allowedNamespaces.selector.matchExpressions[].operator", Refused),
        ("allowedNamespaces.selector.matchExpressions[].values", Refused),
        ("admission", Refused),
        ("fencing.nodeLostSeconds", Refused),
    ]
}

/// The schema of a kind's spec, and what is said of the kind.
fn schema(kind: &str) -> (Value, String) {
    let crds = crds();
    let crd = crds.iter().find(|crd| crd.spec.names.kind == kind).expect("the kind");
    let schema = crd.spec.versions[0].schema.as_ref().expect("a schema");
    let schema = serde_json::to_value(schema.open_api_v3_schema.as_ref()).expect("JSON");
    (schema["properties"]["spec"].clone(), schema["description"].as_str().unwrap_or_default().to_owned())
}

/// Every field that holds a value, with the rules that are checked on its way, each with the path that it stands at.
fn leaves(path: &str, node: &Value, above: &[String], into: &mut BTreeMap<String, (Value, Vec<String>)>) {
    let rules = node["x-kubernetes-validations"].as_array().into_iter().flatten();
    let mut all = above.to_vec();
    all.extend(rules.map(|rule| {
        let of = rule["fieldPath"].as_str().map_or_else(|| path.to_owned(), |field| format!("{path}{field}"));
        of.trim_start_matches('.').to_owned() + " " + rule["rule"].as_str().unwrap_or_default()
    }));
    let below = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    if let Some(fields) = node["properties"].as_object().filter(|fields| !fields.is_empty()) {
        fields.iter().for_each(|(field, node)| leaves(&below(field), node, &all, into));
    } else if node["items"]["properties"].is_object() {
        leaves(&format!("{path}[]"), &node["items"], &all, into);
    } else {
        into.insert(path.to_owned(), (node.clone(), all));
    }
}

fn leaves_of(kind: &str) -> BTreeMap<String, (Value, Vec<String>)> {
    let mut all = BTreeMap::new();
    leaves("", &schema(kind).0, &[], &mut all);
    all
}

/// Whether a rule on the way refuses the field, or what it is a part of, wherever it is set.
fn is_refused(path: &str, rules: &[String]) -> bool {
    rules.iter().any(|rule| {
        let Some((of, rule)) = rule.split_once(' ') else { return false };
        let name = of.rsplit('.').next().unwrap_or(of);
        let is_part = path == of || path.starts_with(&format!("{of}.")) || path.starts_with(&format!("{of}[]"));
        is_part && rule == format!("!has(self.{name})")
    })
}

/// What comes of a pool, in words that differ where anything does.
fn outcome(spec: &Value) -> String {
    let least = json!({
        "workload": {"selector": {"matchLabels": {"app": "shop"}}},
        "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
    });
    let pool: ConnectionPool = serde_json::from_value(json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
        "metadata": {"name": "shop", "namespace": "shop"}, "spec": class::over(&least, spec),
    }))
    .expect("a pool");
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let selected = [labels(&[("app", "shop")]), labels(&[("app", "shop"), ("tier", "web")])];
    let selected = selected.map(|labels: BTreeMap<String, String>| pool.selects(&labels));
    let effective = effective(&pool.spec, None).expect("accepted");
    let plan = PodPool {
        pool: &pool,
        revision: PoolRevision { revision: 1, settings: effective.settings.clone() },
        effective: &effective,
    };
    let settings = InjectionSettings {
        agent_image: "sluice".to_owned(),
        pgbouncer_image: "pgbouncer".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        run_as_user: None,
        allowed: sluice::decide::allowed::PoolAllowList::default(),
    };
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [{"name": "app"}]}})).expect("a pod");
    let patch = inject(&pod, &plan, &settings).expect("injected").patch;
    format!("{selected:?} {effective:?} {} {}", plan.injection().render(), json!(patch))
}

/// All of the sources below a path, without their tests.
fn sources(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let mut all = Vec::new();
    if path.is_dir() {
        class::sources(&path, &mut all);
    } else {
        all.push((String::new(), fs::read_to_string(&path).expect("a source")));
    }
    all.into_iter().map(|(_, code)| code).collect()
}

fn check(kind: &str, fields: &[(&'static str, Effect)], others: impl Fn(&str) -> bool) {
    let all = leaves_of(kind);
    let known: BTreeSet<&str> = fields.iter().map(|(path, _)| *path).collect();
    let of_schema: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    let unknown: Vec<_> = of_schema.difference(&known).filter(|path| !others(path)).collect();
    assert!(unknown.is_empty(), "{kind}: where do these take effect? {unknown:?}");
    let gone: Vec<_> = known.difference(&of_schema).collect();
    assert!(gone.is_empty(), "{kind}: the schema does not have {gone:?}");
    for (path, effect) in fields {
        let (node, rules) = &all[*path];
        match effect {
            Changes(spec) => assert_ne!(outcome(spec), outcome(&json!({})), "{kind}: {path} has no effect"),
            ReadIn(place, words) => {
                assert!(sources(place).contains(words), "{kind}: {path} is not read in {place}: {words}");
            }
            OneValue => assert_eq!(node["enum"].as_array().map(Vec::len), Some(1), "{kind}: {path}"),
            Refused => assert!(is_refused(path, rules), "{kind}: {path} is not refused: {rules:?}"),
            NotKept => assert!(schema(kind).1.contains("keeps no ledger"), "{kind}: {path}: nobody is told"),
        }
    }
}

#[test]
fn every_field_of_a_pool_and_a_budget_takes_effect_or_is_refused_or_is_told_to_do_nothing() {
    let of_class: BTreeSet<&str> = class::paths().collect();
    let is_tried_in_class = |path: &str| {
        let parts = path.match_indices(['.', '[']).map(|(at, _)| &path[..at]);
        parts.chain([path]).any(|part| of_class.contains(part))
    };
    check("ConnectionPool", &of_pool(), is_tried_in_class);
    check("ConnectionBudget", &of_budget(), |_| false);
    // who is told, and by what
    assert!(sources("src/controller").contains("LEDGER_NOT_KEPT"));
    assert_eq!(POOL_LABEL, "sluice.dev/pool");
}

#[test]
fn what_is_not_built_yet_is_refused_wherever_it_may_be_set() {
    let (source, rules) = &leaves_of("ConnectionBudget")["capacity.source"];
    assert!(rules.iter().any(|rule| rule == "capacity.source self.source != 'Server'"), "{source}: {rules:?}");
    let (topology, rules) = &leaves_of("ConnectionPool")["topology"];
    assert!(rules.iter().any(|rule| rule == "topology self != 'External'"), "{topology}");
}

#[test]
fn a_column_of_kubectl_shows_what_somebody_writes() {
    let written = sources("src/controller/budgets.rs");
    let crds = crds();
    let budget = crds.iter().find(|crd| crd.spec.names.kind == "ConnectionBudget").expect("the kind");
    for column in budget.spec.versions[0].additional_printer_columns.iter().flatten() {
        if let Some(field) = column.json_path.strip_prefix(".status.") {
            assert!(written.contains(&format!("        {field}")), "column {}: nobody writes {field}", column.name);
        }
    }
}
