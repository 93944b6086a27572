//! What the documents say was tested is what the lab pins, and the lab takes packages from no mirror of its own choice.

use std::{collections::BTreeMap, fs, path::Path};

const SETS: [&str; 2] = ["newest", "oldest"];

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The versions of a set by the name that the documents give the program.
fn pins(set: &str) -> BTreeMap<String, String> {
    let files = [text("tests/lab/versions/common.env"), text(&format!("tests/lab/versions/{set}.env"))];
    let words = files.iter().flat_map(|file| file.lines().filter(|line| !line.starts_with('#')));
    let assignments = words.flat_map(str::split_whitespace).filter_map(|word| word.split_once("_VERSION="));
    assignments.map(|(name, version)| (name.replace('_', "").to_lowercase(), version.to_owned())).collect()
}

/// The rows of the tables of a document, each with its cells.
fn rows(document: &str) -> Vec<Vec<String>> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.map(|row| row.split(" | ").map(|cell| cell.trim_matches('`').to_owned()).collect()).collect()
}

/// A pin is a version or what it starts with.
fn is_pinned(version: &str, pin: &str) -> bool {
    version.strip_prefix(pin).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[test]
fn the_table_of_what_was_tested_names_the_versions_that_the_lab_has_now() {
    let rows = rows(&text("README.md"));
    for (column, set) in SETS.iter().enumerate() {
        let pins = pins(set);
        for (name, pin) in &pins {
            // PostgreSQL is pinned as `postgres`; what only builds or checks is in no row
            let row =
                rows.iter().find(|row| row[0].to_lowercase().trim_end_matches("ql") == name.trim_end_matches("ql"));
            let Some(row) = row else { continue };
            let tested = &row[column + 1];
            // `-` is not run
            assert!(
                tested == "-" || is_pinned(tested, pin),
                "README.md says {} {tested} was tested, the lab's set {set} has {pin}: tests/run, then tests/versions",
                row[0],
            );
        }
        assert!(rows.iter().any(|row| row[0] == "PgBouncer" && row.len() == SETS.len() + 1), "no row for PgBouncer");
    }
}

#[test]
fn what_is_tested_is_not_called_supported_and_readme_says_from_which_kubernetes_on() {
    let readme = text("README.md");
    let header = rows(&readme).into_iter().find(|row| row[0] == "with").expect("the table");
    assert_eq!(header, ["with", "newest", "oldest tested"]);
    assert!(text("tests/versions").contains("| with | newest | oldest tested |"), "the next run writes another one");
    let chart = text("charts/sluice/Chart.yaml");
    let least = chart.split_once("kubeVersion: \">=").and_then(|(_, rest)| rest.split_once(".0-0")).expect("a bound").0;
    let minor = |version: &str| version.rsplit_once('.').expect("three numbers").0.to_owned();
    let oldest = minor(&pins("oldest")["kubernetes"]);
    let needs = format!("Kubernetes {least} or later (tested from {oldest})");
    assert!(readme.contains(&needs), "README.md does not say: {needs}");
}

#[test]
fn no_check_names_a_kubernetes_version_of_its_own_beside_those_of_the_sets() {
    for script in ["tests/chart/check", "tests/run"] {
        for set in SETS {
            let version = &pins(set)["kubernetes"];
            assert!(!text(script).contains(version.as_str()), "{script} has {version}, whatever set it runs for");
        }
    }
}

#[test]
fn the_pgbouncer_that_is_recommended_is_the_newest_that_is_tested_and_the_oldest_that_is_started_is_tested_too() {
    use sluice::pooler::pgbouncer::version::{OLDEST, RECOMMENDED};
    for (version, set) in [(RECOMMENDED, "newest"), (OLDEST, "oldest")] {
        assert_eq!(version.to_string(), pins(set)["pgbouncer"], "{set}");
    }
}

#[test]
fn the_guide_of_the_lab_names_the_versions_of_both_sets() {
    let rows = rows(&text("tests/lab/README.md"));
    let header = rows.iter().find(|row| row[0] == "set").expect("a table of the sets");
    for set in SETS {
        let pins = pins(set);
        let row = rows.iter().find(|row| row[0].starts_with(set)).expect("a row for the set");
        for (name, version) in header.iter().zip(row).skip(1) {
            if let Some(pin) = pins.get(name.to_lowercase().trim_end_matches("ql")) {
                assert_eq!(version, pin, "tests/lab/README.md, {set}, {name}");
            }
        }
    }
}
