//! The guides know what the code says.

use std::{fs, path::Path};

use sluice::{
    contract::{Between, PoolerError, SlotStatus},
    decide::sizing::Reason,
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

/// The words that a `match` of a file turns its cases into.
fn names(source: &str) -> Vec<String> {
    let quoted = source.lines().filter_map(|line| line.split_once("=> \"")?.1.split_once('"'));
    let is_name = |word: &str| word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric);
    quoted.map(|(word, _)| word.to_owned()).filter(|word| is_name(word)).collect()
}

#[test]
fn every_metric_and_reason_of_the_agent_is_explained_in_its_guide() {
    let guide = text("docs/agent.md");
    let metrics = constants(&text("src/contract/metrics.rs")).into_iter().filter(|name| name.starts_with("sluice_"));
    let reasons = ["src/agent/wish.rs", "src/agent/machine.rs", "src/contract/trouble.rs"].map(text);
    let reasons: Vec<String> = reasons.iter().flat_map(|source| names(source)).collect();
    assert!(reasons.len() > 20, "the reasons were not found: {reasons:?}");
    let slots = [SlotStatus::Starting, SlotStatus::Serving, SlotStatus::NotAnswering, SlotStatus::Down];
    for word in metrics.chain(reasons).chain(slots.map(|slot| format!("{slot:?}"))) {
        assert!(guide.contains(&format!("`{word}`")), "docs/agent.md does not explain {word}");
    }
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
