//! The guides know what the code says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use sluice::{
    api::conditions::{ABLE_TO_SCALE, CLIENTS_ACCEPTED, SCALING_ACTIVE, SCALING_LIMITED, UPSTREAM_HEALTHY},
    contract::{Between, PoolerError, SlotStatus, names},
    domain::Reason,
    inject::Warning,
    pooler::pgbouncer::parameters::REFUSED,
};

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The string constants of a file.
fn constants(source: &str) -> Vec<String> {
    let lines = source.lines().filter(|line| line.starts_with("pub const "));
    lines.filter_map(|line| line.split('"').nth(1).map(str::to_owned)).collect()
}

#[test]
fn every_reason_and_condition_of_the_operator_is_explained_in_the_operations_guide() {
    let guide = text("docs/operations.md");
    let reasons = constants(&text("src/api/reasons.rs"));
    let conditions = constants(&text("src/api/conditions.rs"));
    assert!(reasons.len() > 20 && conditions.len() > 10, "the constants were not found");
    let decisions = Reason::ALL.iter().map(|reason| reason.as_str().to_owned());
    let errors = PoolerError::ALL.iter().filter(|error| error.between() != Between::Nobody);
    let errors = errors.map(|error| error.as_str().to_owned());
    for word in reasons.into_iter().chain(conditions).chain(decisions).chain(errors) {
        assert!(guide.contains(&format!("`{word}`")), "docs/operations.md does not explain {word}");
    }
}

/// The parts of a text between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The string constants of a file by their names.
fn by_name(source: &str) -> BTreeMap<&str, &str> {
    let lines = source.lines().filter_map(|line| line.strip_prefix("pub const "));
    lines.filter_map(|line| Some((line.split_once(':')?.0, line.split('"').nth(1)?))).collect()
}

/// The conditions and reasons that a file of the code sets together, where it names both.
fn set_together(source: &str) -> Vec<(String, String)> {
    let source: String = source.split_whitespace().collect();
    let calls = ["yes(", "no(", "unknown("].into_iter().flat_map(|call| source.split(call).skip(1));
    let pairs = calls.filter_map(|arguments| {
        let mut arguments = arguments.split([',', ')']);
        Some((arguments.next()?.to_owned(), arguments.next()?.strip_prefix("reasons::")?.to_owned()))
    });
    pairs.filter(|(condition, _)| condition.chars().all(|c| c.is_ascii_uppercase() || c == '_')).collect()
}

/// The conditions that the comment of a reason names, before what it says of them.
fn of_comment(comment: &str) -> Vec<&str> {
    comment.split_once(": ").map(|(conditions, _)| code(conditions).collect()).unwrap_or_default()
}

#[test]
fn every_reason_stands_in_the_table_of_the_operations_guide_under_each_condition_that_has_it() {
    let (reasons, conditions) = (text("src/api/reasons.rs"), text("src/api/conditions.rs"));
    let (reason_of, condition_of) = (by_name(&reasons), by_name(&conditions));
    let mut wanted: BTreeSet<(String, String)> = BTreeSet::new();
    for file in ["conditions.rs", "memory.rs", "troubles.rs"].map(|file| format!("src/decide/plan/{file}")) {
        for (condition, reason) in set_together(&text(&file)) {
            wanted.insert((condition_of[condition.as_str()].to_owned(), reason_of[reason.as_str()].to_owned()));
        }
    }
    assert!(wanted.len() > 40, "the code was not understood: {wanted:?}");
    let lines: Vec<&str> = reasons.lines().collect();
    for pair in lines.windows(2) {
        let (Some(comment), Some(constant)) = (pair[0].strip_prefix("/// "), pair[1].strip_prefix("pub const ")) else {
            continue;
        };
        let reason = constant.split('"').nth(1).expect("a word");
        wanted.extend(of_comment(comment).into_iter().map(|condition| (condition.to_owned(), reason.to_owned())));
    }
    let errors = PoolerError::ALL.iter().filter_map(|error| match error.between() {
        Between::PoolerAndDatabase => Some((UPSTREAM_HEALTHY, error.as_str())),
        Between::ClientsAndPooler => Some((CLIENTS_ACCEPTED, error.as_str())),
        Between::Nobody => None,
    });
    let decisions = Reason::ALL.iter().filter_map(|reason| match reason {
        // no limits, and no holds
        Reason::Demand | Reason::WaitingClients | Reason::Share => None,
        Reason::Paused | Reason::RecommendOnly => Some((ABLE_TO_SCALE, reason.as_str())),
        reason if reason.is_hold() => Some((SCALING_ACTIVE, reason.as_str())),
        _ => Some((SCALING_LIMITED, reason.as_str())),
    });
    wanted.extend(errors.chain(decisions).map(|(condition, reason)| (condition.to_owned(), reason.to_owned())));

    // why the load of a pool cannot be judged
    let load = text("src/decide/load.rs");
    let holds = names_of_cases(section(&load, "impl HoldReason {", "\n}"));
    assert!(holds.len() > 5, "the reasons to hold were not found: {holds:?}");
    wanted.extend(holds.into_iter().map(|reason| (SCALING_ACTIVE.to_owned(), reason)));

    let guide = text("docs/operations.md");
    let table = guide.split_once("## Conditions and reasons").expect("the table").1;
    let mut told: BTreeSet<(String, String)> = BTreeSet::new();
    let mut condition = "";
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let mut cells = row.split('|').skip(1);
        let (first, second) = (cells.next().unwrap_or_default().trim(), cells.next().unwrap_or_default());
        if !first.is_empty() {
            condition = code(first).next().unwrap_or(first);
        }
        told.extend(code(second).map(|reason| (condition.to_owned(), reason.to_owned())));
    }
    let missing: Vec<_> = wanted
        .iter()
        .filter(|pair| !told.contains(*pair) && !told.contains(&("several".to_owned(), pair.1.clone())))
        .collect();
    assert!(missing.is_empty(), "docs/operations.md lacks in its table: {missing:?}");
}

/// The names under which a file registers metrics.
fn registered(source: &str) -> BTreeSet<&str> {
    let calls = source.split("&mut registry,").skip(1);
    calls.filter_map(|arguments| arguments.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

#[test]
fn every_metric_of_the_operator_and_what_becomes_of_a_pod_is_explained_in_its_guide() {
    let source = text("src/http/metrics.rs");
    let guide = text("docs/operator.md");
    let explained = guide.split_once("## Endpoints and metrics").expect("the table").1;
    let explained: BTreeSet<&str> = code(explained).filter_map(|word| word.split('{').next()).collect();
    let metrics = registered(&source);
    assert!(metrics.len() > 15, "the metrics were not found: {metrics:?}");
    for name in metrics {
        let forms = [name.to_owned(), format!("{name}_total"), format!("{name}_seconds")];
        assert!(forms.iter().any(|form| explained.contains(form.as_str())), "docs/operator.md does not explain {name}");
    }
    let verdicts = names_of_cases(&source);
    assert!(verdicts.len() > 2, "the verdicts were not found: {verdicts:?}");
    for verdict in verdicts {
        assert!(explained.contains(verdict.as_str()), "docs/operator.md does not explain {verdict}");
    }
}

#[test]
fn the_operations_guide_names_what_the_webhook_refuses_a_pod_for() {
    let guide = text("docs/operations.md");
    let row = guide.lines().find(|line| line.contains("`denied the request`")).expect("a row");
    let taken = [
        names::SIDECAR_CONTAINER,
        names::BINARY_CONTAINER,
        names::BINARY_VOLUME,
        names::RUN_VOLUME,
        names::STATE_VOLUME,
        names::CONFIG_VOLUME,
    ];
    for word in taken {
        assert!(code(row).any(|code| code == word), "{word} is not called taken");
    }
}

#[test]
fn the_gateway_guide_says_the_namespace_of_all_that_it_runs_and_creates_every_secret_of_its_example() {
    let guide = text("docs/gateway.md");
    let commands =
        guide.lines().chain(code(&guide)).filter(|line| line.starts_with("kubectl ") && line.contains("shop"));
    let commands: Vec<&str> = commands.collect();
    assert!(commands.len() > 6, "{commands:?}");
    for command in &commands {
        assert!(command.contains("-n shop"), "in which namespace? {command}");
    }
    let example = text("examples/gateway/connectionpool.yaml");
    let example: serde_json::Value = serde_yaml::from_str(&example).expect("YAML");
    let secrets = ["/upstream/credentialsRef", "/upstream/tls/caRef", "/client/tls/certificateRef"];
    for secret in secrets {
        let name = &example["spec"].pointer(secret).unwrap_or_else(|| panic!("{secret}"))["name"];
        let name = name.as_str().expect("a name");
        let created = |command: &&str| command.contains("create secret") && command.split(' ').any(|word| word == name);
        assert!(commands.iter().any(created), "nothing creates the Secret {name}");
    }
}

#[test]
fn the_network_policy_of_the_gateway_guide_lets_in_all_that_its_example_needs() {
    let guide = text("docs/gateway.md");
    let policy = section(&guide, "### Network policy", "## What there is");
    let policy: NetworkPolicy = serde_yaml::from_str(section(policy, "```yaml\n", "```")).expect("a NetworkPolicy");
    let spec = policy.spec.expect("a spec");
    let selected = spec.pod_selector.and_then(|selector| selector.match_labels).expect("labels");
    assert_eq!(selected.get(names::POOL_LABEL).map(String::as_str), Some("shop"));
    let ports =
        |ports: Option<Vec<NetworkPolicyPort>>| ports.unwrap_or_default().into_iter().filter_map(|port| port.port);
    let open: Vec<IntOrString> =
        spec.ingress.unwrap_or_default().into_iter().flat_map(|rule| ports(rule.ports)).collect();
    assert_eq!(open, [IntOrString::Int(5432), IntOrString::Int(names::METRICS_PORT.into())]);
    let out: Vec<IntOrString> =
        spec.egress.unwrap_or_default().into_iter().flat_map(|rule| ports(rule.ports)).collect();
    assert_eq!(out, [5432, 53, 53].map(IntOrString::Int));
}

/// The words that a `match` of a file turns its cases into.
fn names_of_cases(source: &str) -> Vec<String> {
    let quoted = source.lines().filter_map(|line| line.split_once("=> \"")?.1.split_once('"'));
    let is_name = |word: &str| word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric);
    quoted.map(|(word, _)| word.to_owned()).filter(|word| is_name(word)).collect()
}

#[test]
fn every_metric_and_reason_of_the_agent_is_explained_in_its_guide() {
    let guide = text("docs/agent.md");
    let metrics = constants(&text("src/contract/metrics.rs")).into_iter().filter(|name| name.starts_with("sluice_"));
    let reasons = ["src/agent/decide/wish.rs", "src/agent/decide/machine.rs", "src/contract/trouble.rs"].map(text);
    let reasons: Vec<String> = reasons.iter().flat_map(|source| names_of_cases(source)).collect();
    assert!(reasons.len() > 20, "the reasons were not found: {reasons:?}");
    let slots = [SlotStatus::Starting, SlotStatus::Serving, SlotStatus::NotAnswering, SlotStatus::Down];
    for word in metrics.chain(reasons).chain(slots.map(|slot| format!("{slot:?}"))) {
        assert!(guide.contains(&format!("`{word}`")), "docs/agent.md does not explain {word}");
    }
}

/// What stands in a guide between two lines.
fn section<'a>(guide: &'a str, from: &str, to: &str) -> &'a str {
    let behind = guide.split_once(from).unwrap_or_else(|| panic!("no {from}")).1;
    behind.split_once(to).unwrap_or_else(|| panic!("no {to}")).0
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn every_warning_at_admission_has_its_row_in_the_guide_to_injection() {
    let kinds = text("src/inject/warning.rs");
    let kinds = kinds.lines().filter(|line| line.trim_start().starts_with("Self::") && line.contains(" => "));
    assert_eq!(kinds.count(), Warning::ALL.len(), "Warning::ALL is not all of them");
    let guide = text("docs/injection.md");
    let rows = section(&guide, "| warning | what to do |\n|---|---|\n", "\n\n").lines().map(cells);
    let warnings: Vec<&str> = rows.map(|row| row[0]).collect();
    for kind in Warning::ALL {
        let count = warnings.iter().filter(|warning| warning.contains(kind.words())).count();
        assert_eq!(count, 1, "rows of docs/injection.md about {kind:?}: {:?}", kind.words());
    }
    assert_eq!(warnings.len(), Warning::ALL.len(), "a row of docs/injection.md is about no warning: {warnings:#?}");
}

#[test]
fn the_settings_that_pgbouncer_refuses_at_a_login_are_those_of_the_guide_to_drivers() {
    let guide = text("docs/drivers.md");
    let rows = section(&guide, "### Startup parameters", "### Cancel requests").lines().map(cells);
    let refused = rows.filter(|row| row.get(1).is_some_and(|what| what.contains("refused")));
    let names: Vec<String> =
        refused.flat_map(|row| row[0].split(", ").map(str::to_owned).collect::<Vec<_>>()).collect();
    let names: BTreeSet<&str> = names.iter().map(|name| name.trim_matches('`')).collect();
    assert_eq!(names, BTreeSet::from(REFUSED));
}

#[test]
fn every_file_that_a_guide_links_to_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guides = fs::read_dir(root.join("docs")).expect("docs/").map(|entry| entry.expect("an entry").path());
    for guide in guides.chain([root.join("README.md"), root.join("tests/lab/README.md")]) {
        if guide.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&guide).expect("a text");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let linked = guide.parent().expect("a folder").join(target);
            assert!(linked.exists(), "{} links to {target}, which does not exist", guide.display());
        }
    }
}
