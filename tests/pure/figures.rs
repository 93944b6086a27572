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
#[path = "../../benches/switch/report.rs"]
mod switch;
#[path = "../../benches/tick/report.rs"]
mod tick;

use std::{fs, path::Path};

/// Turns the samples of one figure into what is printed.
type Report = fn(&str) -> Result<String, String>;

const REPORTS: [(&str, Report); 9] = [
    ("agent", agent::report),
    ("decision", decision::report),
    ("memory", memory::report),
    ("overhead", overhead::report),
    ("reaction", reaction::report),
    ("sharing", sharing::report),
    ("sizing", sizing::report),
    ("switch", switch::report),
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

#[test]
fn a_change_that_was_never_read_back_counts_as_the_longest() {
    let header = "change,decision,from,to,tick_unix,read_back_unix\n";
    let of = |late: &str, count: usize| -> String {
        let good = (0..50).map(|change| format!("{change},d-1,4,9,100.000,100.800\n"));
        let late = (0..count).map(|change| format!("{change},d-2,9,4,100.000,{late}\n"));
        reaction::report(&(header.to_owned() + &good.chain(late).collect::<String>())).unwrap()
    };
    assert!(of("101.500", 9).contains("2 s: reached"));
    let missed = of("inf", 9);
    assert!(missed.contains("2 s: MISSED") && missed.contains("| inf |"), "{missed}");
}

#[test]
fn a_share_that_comes_late_and_one_that_goes_in_the_dark_are_misses() {
    let header = "part,round,tick,tick_unix,busy_share,other_share,scaling_active\n";
    let of = |second: u32, last: u32| -> String {
        let load = format!("load,0,1,100.0,10,10,True\nload,0,2,115.0,{second},4,True\nload,0,3,130.0,16,4,True\n");
        let dark = (1..=5).map(|tick| {
            let share = if tick == 5 { last } else { 16 };
            format!("dark,0,{tick},200.0,{share},4,False/PrometheusUnavailable\n")
        });
        sharing::report(&(header.to_owned() + &load + &dark.collect::<String>())).unwrap()
    };
    assert_eq!(of(14, 16).matches(": reached").count(), 2);
    assert!(of(13, 16).contains("rounds: MISSED"));
    assert!(of(14, 15).contains("Shares stay: MISSED"));
}
