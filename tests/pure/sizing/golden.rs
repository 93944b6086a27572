//! The decisions of the reference implementation on recorded observations (`benches/sizing/record.py`).
//!
//! Every trace in full is compared by `benches/run sizing`; these short recordings keep each change honest.

use std::{fs, path::Path};

use sluice::{
    contract::{Algorithm, Objective},
    decide::sizing::{Observation, Sizer, SizingSettings},
    domain::{Automation, Bounds, Sample},
};

/// What the first line of a recording says.
struct Header {
    interval: f64,
    min: u32,
    max: u32,
    objective: Objective,
}

fn header(line: &str) -> Header {
    let field = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{name} in {line}")).parse::<f64>().expect("a number")
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Header {
        interval: field("interval_s"),
        min: field("min") as u32,
        max: field("max") as u32,
        objective: Objective {
            wait_milliseconds: field("wait_ms") as u32,
            max_waiting_percent: field("target") * 100.0,
        },
    }
}

/// Ticks, and ticks of which the sizes are more than 1 apart.
fn compare(text: &str) -> (u32, Vec<String>) {
    let mut lines = text.lines();
    let header = header(lines.next().expect("a header"));
    let mut settings = SizingSettings::new(Algorithm::Adaptive, header.objective);
    settings.adaptive.knee_climb = 1.0; // the reference does not search the knee
    let (mut sizer, mut samples) = (Sizer::default(), Vec::new());
    let (mut ticks, mut apart) = (0, Vec::new());
    for line in lines {
        let (kind, rest) = line.split_once(',').expect("a kind");
        let f: Vec<f64> = rest.split(',').map(|field| field.parse().expect("a number")).collect();
        if kind == "s" {
            samples.push(Sample {
                at_seconds: f[0],
                waiting: f[1],
                active: f[2],
                leaked: 0.0,
                transactions: f[3],
                abandoned: 0.0,
                busy_seconds: f[4],
                wait_seconds: f[5],
                assignments: f[6],
            });
            continue;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let whole: Vec<u32> = f[1..].iter().map(|&field| field as u32).collect();
        let [pods, current, target, expected] = whole[..] else { panic!("{line}") };
        let decision = sizer.decide(
            &settings,
            &Observation {
                now_seconds: f[0],
                interval_seconds: header.interval,
                pods,
                current: current * pods,
                target: target * pods,
                bounds: Bounds { min: header.min * pods, max: header.max * pods, share: None },
                automation: Automation::Apply,
                refused_beyond: None,
                samples: &samples,
            },
        );
        samples.clear();
        ticks += 1;
        if (decision.size / pods).abs_diff(expected) > 1 {
            apart.push(format!("t={} expected {expected} got {} {}", f[0], decision.size / pods, decision.message));
        }
    }
    (ticks, apart)
}

#[test]
fn the_decisions_are_those_of_the_reference_implementation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pure/golden");
    let mut recordings = 0;
    for entry in fs::read_dir(folder).expect("recordings") {
        let path = entry.expect("an entry").path();
        let (ticks, apart) = compare(&fs::read_to_string(&path).expect("a recording"));
        recordings += 1;
        assert!(ticks > 200, "{}: {ticks} ticks", path.display());
        let share = apart.len() as f64 / f64::from(ticks);
        assert!(share <= 0.01, "{}: {} of {ticks} ticks: {apart:#?}", path.display(), apart.len());
    }
    assert!(recordings >= 3, "{recordings} recordings");
}
