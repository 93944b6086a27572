//! The plugin of kubectl speaks the words of the rest, and its guide says what the code says.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use axum::{Json, Router, http::StatusCode, routing::get};
use serde_json::{Value, json};
use sluice::{
    api::{conditions, reasons},
    cli::{
        CalledAs,
        plugin::view::{
            check::{
                policies::{GATEWAY_POLICY, POLICIES},
                rights::{self, INSTALLATION, OPERATOR, Right, RightScope},
            },
            vocabulary,
        },
    },
};

use crate::source::sources;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn text(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The string constants of a file.
fn constants(source: &str) -> BTreeSet<String> {
    let lines = source.lines().filter(|line| line.starts_with("pub const "));
    lines.filter_map(|line| line.split('"').nth(1).map(str::to_owned)).collect()
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_lists_of_conditions_and_reasons_are_all_of_them() {
    assert_eq!(set(conditions::ALL), constants(&text("src/api/conditions.rs")), "conditions::ALL");
    assert_eq!(set(reasons::ALL), constants(&text("src/api/reasons.rs")), "reasons::ALL");
}

/// What stands between quotes behind a word in the code that is built into the product.
fn quoted_after(word: &str, places: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in places.iter().flat_map(|place| sources(&root().join(place))) {
        if file.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        let source = fs::read_to_string(&file).expect("a file");
        let product = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        found.extend(product.split(word).skip(1).filter_map(|rest| {
            let reason = rest.split('"').next()?;
            reason.chars().next().filter(char::is_ascii_uppercase)?;
            reason.chars().all(|c| c.is_ascii_alphanumeric()).then(|| reason.to_owned())
        }));
    }
    found
}

#[test]
fn the_plugin_knows_every_reason_that_the_operator_sets_and_the_guide_explains_it() {
    let known = set(vocabulary::reasons());
    let mut written = quoted_after("reason: \"", &["src/decide", "src/controller"]);
    written.extend(quoted_after("refuse(\"", &["src/decide"]));
    written.extend(quoted_after("=> \"", &["src/decide/load.rs", "src/controller/decide/sizing.rs"]));
    assert!(written.len() > 15, "the reasons were not found: {written:?}");
    let unknown: Vec<&String> = written.difference(&known).collect();
    assert!(unknown.is_empty(), "add to src/cli/plugin/view/vocabulary.rs: {unknown:?}");
    let guide = text("docs/operations.md");
    // what nobody is kept from anything by is counted, and is no condition
    let silent = set(["ServerLoginInterrupted", "NameServerFailed", "Configuration", "Other"]);
    let missing: Vec<&String> =
        known.iter().filter(|word| !silent.contains(*word) && !guide.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md does not explain {missing:?}");
}

/// The words in CamelCase that stand between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    let words = text.split('`').skip(1).step_by(2);
    let is_word = |word: &&str| {
        let mut letters = word.chars();
        letters.next().is_some_and(|c| c.is_ascii_uppercase())
            && word.len() > 1
            && letters.all(|c| c.is_ascii_alphanumeric())
    };
    words.filter(is_word).map(str::to_owned).collect()
}

/// The variants of an enum, by their names in the source.
fn variants(file: &str, name: &str) -> BTreeSet<String> {
    let source = text(file);
    let body = source.split(&format!("pub enum {name} {{")).nth(1).expect("the enum").split("\n}").next();
    let lines = body.expect("a body").lines().map(str::trim).filter(|line| !line.starts_with("//"));
    lines.filter_map(|line| line.strip_suffix(',')).map(str::to_owned).collect()
}

/// The part of a guide below a heading.
fn section<'a>(guide: &'a str, heading: &str) -> &'a str {
    let begin = guide.find(heading).unwrap_or_else(|| panic!("no {heading}"));
    let rest = &guide[begin + heading.len()..];
    rest.find("\n## ").map_or(rest, |end| &rest[..end])
}

#[test]
fn the_guides_name_no_condition_and_no_reason_that_the_code_does_not_have() {
    let known = set(vocabulary::reasons());
    let types = set(conditions::ALL);
    let guide = text("docs/operations.md");
    let section = section(&guide, "## Conditions and reasons");
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let mut counted = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, of, reasons, ..] = cells.as_slice() else { panic!("{row}") };
        for type_ in quoted(of) {
            assert!(types.contains(&type_), "docs/operations.md: no condition is called {type_}");
        }
        for reason in quoted(reasons) {
            counted += 1;
            assert!(known.contains(&reason), "docs/operations.md: no code says {reason}: {row}");
        }
    }
    assert!(counted > 80, "the reasons were not found: {counted}");
    let rollouts = text("docs/rollouts.md");
    for (file, line) in
        guide.lines().map(|line| ("operations", line)).chain(rollouts.lines().map(|line| ("rollouts", line)))
    {
        if !line.starts_with("Events: ") {
            continue;
        }
        for word in quoted(line).difference(&set(["Unknown"])) {
            assert!(known.contains(word) || types.contains(word), "docs/{file}.md: no event is called {word}");
        }
    }
    // `Proven=False/NotApplied`, wherever it stands
    for entry in fs::read_dir(root().join("docs")).expect("guides") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let guide = fs::read_to_string(&path).expect("a guide");
        for status in ["=True/", "=False/", "=Unknown/"] {
            for (at, _) in guide.match_indices(status) {
                let letters = |c: &char| c.is_ascii_alphanumeric();
                let condition: String = guide[..at].chars().rev().take_while(letters).collect();
                let condition: String = condition.chars().rev().collect();
                let reason: String = guide[at + status.len()..].chars().take_while(letters).collect();
                let said = format!("{}: {condition}{status}{reason}", path.display());
                // what a HorizontalPodAutoscaler says of itself is Kubernetes' word
                if reason == "ScalingDisabled" && path.ends_with("gateway.md") {
                    continue;
                }
                assert!(types.contains(&condition), "{said}: no such condition");
                assert!(known.contains(&reason), "{said}: no such reason");
            }
        }
    }
}

#[test]
fn what_verdicts_outcomes_and_metrics_say_stands_in_the_guides_and_the_guides_say_nothing_else() {
    let analysis = text("docs/analysis.md");
    let table = analysis.split("| reason | answer | means |").nth(1).expect("the table");
    let table: String = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect::<Vec<_>>().join("\n");
    let told: BTreeSet<String> =
        table.lines().flat_map(|row| quoted(row.split('|').nth(1).unwrap_or_default())).collect();
    assert_eq!(variants("src/decide/analysis/verdict.rs", "VerdictReason"), told, "docs/analysis.md");

    let rollouts = text("docs/rollouts.md");
    let outcome = rollouts.split("`outcome` is ").nth(1).expect("outcomes").split("is gone)").next();
    let outcomes = variants("src/decide/rollout/memory.rs", "PostPromotionOutcome");
    assert_eq!(outcomes, quoted(outcome.expect("outcomes")), "docs/rollouts.md");

    let row = |guide: &str, metric: &str| {
        let row = guide.lines().find(|line| line.contains(metric)).unwrap_or_else(|| panic!("no {metric}")).to_owned();
        row.split(metric).nth(1).unwrap_or_default().to_owned()
    };
    let operator = text("docs/operator.md");
    let written = quoted_after("=> \"", &["src/controller/reconcile.rs"]);
    assert_eq!(written, quoted(&row(&operator, "reconcile_errors_total{reason}`")), "docs/operator.md");
    let known = set(reasons::ALL);
    for reason in quoted(&row(&operator, "rollouts_total{reason}`")) {
        assert!(known.contains(&reason), "docs/operator.md: no rollout ends by {reason}");
    }
}

/// The headings of a guide, as links name them.
fn anchors(guide: &str) -> BTreeSet<String> {
    let headings = guide.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_place_in_a_guide_that_the_plugin_names_exists() {
    let mut links = BTreeSet::new();
    for file in sources(&root().join("src/cli/plugin")) {
        let source = fs::read_to_string(&file).expect("a file");
        for link in source.split("docs/").skip(1).filter(|rest| rest.contains(".md#")) {
            let link: String = link.chars().take_while(|c| c.is_ascii_alphanumeric() || ".#-_".contains(*c)).collect();
            links.extend(link.contains(".md#").then_some(link));
        }
    }
    assert!(links.len() > 5, "the links were not found: {links:?}");
    for link in links {
        let (guide, anchor) = link.split_once('#').expect("a place");
        assert!(anchors(&text(&format!("docs/{guide}"))).contains(anchor), "docs/{link} does not exist");
    }
}

#[test]
fn the_guide_has_the_table_of_rights_that_the_code_has() {
    assert!(
        text("docs/kubectl-sluice.md").contains(&rights::guide()),
        "docs/kubectl-sluice.md needs:\n{}",
        rights::guide()
    );
}

/// A template of the chart as YAML: lines of the template language are left out, and what it inserts is one word.
fn template(path: &str) -> Vec<serde_yaml::Value> {
    let mut source = text(path);
    while let (Some(from), Some(to)) = (source.find("{{- /*"), source.find("*/")) {
        source.replace_range(from..to + 2, "{{-");
    }
    let mut yaml = String::new();
    for line in source.lines() {
        let mut line = line.to_owned();
        while let Some((from, to)) = line.find("{{").and_then(|from| Some((from, from + line[from..].find("}}")? + 2)))
        {
            line.replace_range(from..to, if line[..from].trim().is_empty() { "" } else { "x" });
        }
        if !line.trim().is_empty() && !line.contains("{{") {
            yaml.push_str(&line);
            yaml.push('\n');
        }
    }
    let documents = serde_yaml::Deserializer::from_str(&yaml);
    documents
        .map(|document| {
            serde::Deserialize::deserialize(document).unwrap_or_else(|error| panic!("{path}: {error}\n{yaml}"))
        })
        .collect()
}

/// Verb, group and resource of every rule.
fn rules(documents: &[serde_yaml::Value]) -> BTreeSet<(String, String, String)> {
    let list = |value: &serde_yaml::Value| -> Vec<String> {
        let items = value.as_sequence().cloned().unwrap_or_default();
        items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let rules = documents.iter().flat_map(|document| document["rules"].as_sequence().cloned().unwrap_or_default());
    let mut found = BTreeSet::new();
    for rule in rules {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                for verb in list(&rule["verbs"]) {
                    found.insert((verb, group.clone(), resource.clone()));
                }
            }
        }
    }
    found
}

#[test]
fn the_rights_that_check_asks_of_the_operator_are_those_of_the_chart() {
    let chart = rules(&template("charts/sluice/templates/rbac-operator.yaml"));
    assert!(chart.len() > 15, "the rules were not found: {chart:?}");
    let triple = |right: &Right| (right.verb.to_owned(), right.group.to_owned(), right.resource.to_owned());
    let asked: BTreeSet<_> = OPERATOR.iter().map(triple).collect();
    let beyond: Vec<_> = asked.difference(&chart).collect();
    assert!(beyond.is_empty(), "the chart does not give {beyond:?}");
    // of what is the operator's own one verb stands for all
    let own = ["mutatingwebhookconfigurations", "leases", "secrets"];
    let missing: Vec<_> =
        chart.difference(&asked).filter(|(_, _, resource)| !own.contains(&resource.as_str())).collect();
    assert!(missing.is_empty(), "check does not ask for {missing:?}");
}

#[test]
fn what_check_asks_before_an_installation_is_every_kind_of_the_chart() {
    let folder = root().join("charts/sluice/templates");
    let mut kinds = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("templates") {
        let source = fs::read_to_string(entry.expect("an entry").path()).expect("a template");
        kinds.extend(source.lines().filter_map(|line| line.strip_prefix("kind: ")).map(str::to_lowercase));
    }
    // prometheus-operator's, which only those have who ask for it; of gateways, where one of two is chosen
    kinds.retain(|kind| kind != "podmonitor" && !kind.contains("{{"));
    let asked: BTreeSet<String> = INSTALLATION.iter().map(|right| right.resource.to_owned()).collect();
    let singular = |plural: &String| {
        plural.strip_suffix("ies").map_or_else(|| plural.trim_end_matches('s').to_owned(), |stem| format!("{stem}y"))
    };
    assert_eq!(asked.iter().map(singular).collect::<BTreeSet<_>>(), kinds);
    assert!(INSTALLATION.iter().all(|right| right.verb == "create"));
    let cluster = INSTALLATION.iter().filter(|right| right.scope == RightScope::Cluster).count();
    assert_eq!(cluster, 6, "the others are of the release's namespace");
}

#[test]
fn the_policies_that_check_looks_for_are_those_of_the_chart() {
    let names = |path: &str| -> BTreeSet<String> {
        let source = text(path);
        let mut found = BTreeSet::new();
        let mut lines = source.lines();
        while let Some(line) = lines.next() {
            if line == "kind: ValidatingAdmissionPolicy" {
                let name = lines.find_map(|line| line.trim().strip_prefix("name: ")).expect("a name");
                found.insert(name.rsplit("}}").next().unwrap_or_default().to_owned());
            }
        }
        found
    };
    assert_eq!(names("charts/sluice/templates/policy.yaml"), set(POLICIES.map(|(suffix, _)| suffix)));
    assert_eq!(names("charts/sluice/templates/policy-gateway.yaml"), set([GATEWAY_POLICY.0]));
}

#[test]
fn the_name_that_the_binary_is_called_by_chooses_what_it_is() {
    let called = |name: &str| CalledAs::of(Path::new(name));
    assert_eq!(called("/usr/local/bin/sluice"), CalledAs::Sluice);
    assert_eq!(called("/home/eve/.krew/bin/kubectl-sluice"), CalledAs::Plugin);
    assert_eq!(called("kubectl-sluice.exe"), CalledAs::Plugin);
    assert_eq!(called("kubectl_complete-sluice"), CalledAs::Completion);
    assert_eq!(called("operator"), CalledAs::Sluice);
}

/// An API server that serves these versions of the group and no objects.
async fn api_server(versions: &[&str]) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"version": version, "groupVersion": format!("sluice.dev/{version}")}))
        .collect();
    let mut groups = vec![json!({"name": "apps", "versions": [{"version": "v1", "groupVersion": "apps/v1"}]})];
    if !versions.is_empty() {
        groups.push(json!({"name": "sluice.dev", "versions": versions}));
    }
    let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
    let router = Router::new()
        .route("/apis", get(move || async move { Json(list) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") });
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// What `kubectl-sluice get` says of this API server, and its exit code.
async fn get_from(server: String) -> (Option<i32>, String) {
    let asked = tokio::task::spawn_blocking(move || {
        let directory = tempfile::tempdir().expect("a directory");
        let plugin = directory.path().join("kubectl-sluice");
        symlink(env!("CARGO_BIN_EXE_sluice"), &plugin).expect("a link");
        let kubeconfig = directory.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "users": [{"name": "lab", "user": {}}],
        });
        fs::write(&kubeconfig, config.to_string()).expect("written");
        let mut command = Command::new(plugin);
        command.args(["get", "--kubeconfig"]).arg(kubeconfig).stdin(Stdio::null()).output().expect("it runs")
    });
    let output = asked.await.expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_sluice_or_with_another_version_of_it_is_told_as_such() {
    let (code, said) = get_from(api_server(&[]).await).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the API server serves no sluice.dev: Sluice is not installed there"), "{said}");
    let (code, said) = get_from(api_server(&["v1", "v1beta1"]).await).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("serves sluice.dev/v1, v1beta1 and not sluice.dev/v1alpha1"), "{said}");
    assert!(said.contains("use the plugin of the operator's version"), "{said}");
}
