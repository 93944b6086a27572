//! The printed figures below `benches/results` follow from the raw samples kept beside them.

#[path = "../../benches/agent/report.rs"]
mod agent;
#[path = "../../benches/decision/report.rs"]
mod decision;
#[path = "../../benches/memory/report.rs"]
mod memory;
#[path = "../../benches/overhead/report.rs"]
mod overhead;
#[path = "../../benches/reaction/report.rs"]
mod reaction;
#[path = "../../benches/sharing/report.rs"]
mod sharing;
#[path = "../../benches/sizing/report.rs"]
mod sizing;
#[path = "../../benches/figures/statistics.rs"]
mod statistics;
#[path = "../../benches/tick/report.rs"]
mod tick;

use std::{fs, path::Path};

/// Turns the samples of one figure into what is printed.
type Report = fn(&str) -> Result<String, String>;

const REPORTS: [(&str, Report); 8] = [
    ("agent", agent::report),
    ("decision", decision::report),
    ("memory", memory::report),
    ("overhead", overhead::report),
    ("reaction", reaction::report),
    ("sharing", sharing::report),
    ("sizing", sizing::report),
    ("tick", tick::report),
];

#[test]
fn printed_figures_follow_from_the_samples_kept_beside_them() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    for (name, report) in REPORTS {
        let directory = results.join(name);
        if !directory.exists() {
            continue; // not measured yet
        }
        let read = |file: &str| {
            let path = directory.join(file);
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert_eq!(report(&read("samples.csv")).unwrap(), read("figures.md"), "{name}");
        let setting: serde_json::Value = serde_json::from_str(&read("setting.json")).unwrap();
        assert!(setting["commit"].is_string() && setting["cpu"].is_string(), "{name}: machine and commit are kept");
    }
}

#[test]
fn the_documentation_of_the_sizing_prints_the_measured_tables() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(top.join("docs/sizing.md")).unwrap();
    for name in ["sizing", "decision"] {
        let figures = fs::read_to_string(top.join("benches/results").join(name).join("figures.md")).unwrap();
        for line in figures.lines().filter(|line| line.starts_with('|')) {
            assert!(document.contains(line), "docs/sizing.md lacks this line of benches/results/{name}: {line}");
        }
    }
}
