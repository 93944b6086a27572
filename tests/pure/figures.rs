//! The printed figures below `benches/results` follow from the raw samples kept beside them.

#[path = "../../benches/acquisition/report.rs"]
mod acquisition;
#[path = "../../benches/agent/report.rs"]
mod agent;
#[path = "../../benches/bad_green/report.rs"]
mod bad_green;
#[path = "../../benches/changes/report.rs"]
mod changes;
#[path = "../../benches/decision/report.rs"]
mod decision;
#[path = "../../benches/division/report.rs"]
mod division;
#[path = "../../benches/endings/report.rs"]
mod endings;
#[path = "../../benches/footprint/report.rs"]
mod footprint;
#[path = "../../benches/kills/report.rs"]
mod kills;
#[path = "../../benches/look/report.rs"]
mod look;
#[path = "../../benches/figures/losses.rs"]
mod losses;
#[path = "../../benches/memory/report.rs"]
mod memory;
#[path = "../../benches/neighbours/report.rs"]
mod neighbours;
#[path = "../../benches/overhead/report.rs"]
mod overhead;
#[path = "../../benches/reaction/report.rs"]
mod reaction;
#[path = "../../benches/rollouts/report.rs"]
mod rollouts;
#[path = "../../benches/sharing/report.rs"]
mod sharing;
#[path = "../../benches/sizing/report.rs"]
mod sizing;
#[path = "../../benches/figures/statistics.rs"]
mod statistics;
#[path = "../../benches/switch/report.rs"]
mod switch;
#[path = "../../benches/endings/tally.rs"]
mod tally;
#[path = "../../benches/tick/report.rs"]
mod tick;
#[path = "../../benches/verdicts/report.rs"]
mod verdicts;

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

/// Turns the samples of one figure into what is printed.
type Report = fn(&str) -> Result<String, String>;

const REPORTS: [(&str, Report); 18] = [
    ("acquisition", acquisition::report),
    ("agent", agent::report),
    ("bad_green", bad_green::report),
    ("changes", changes::report),
    ("decision", decision::report),
    ("endings", endings::report),
    ("footprint", footprint::report),
    ("kills", kills::report),
    ("look", look::report),
    ("memory", memory::report),
    ("neighbours", neighbours::report),
    ("overhead", overhead::report),
    ("reaction", reaction::report),
    ("sharing", sharing::report),
    ("sizing", sizing::report),
    ("switch", switch::report),
    ("tick", tick::report),
    ("verdicts", verdicts::report),
];

#[test]
fn printed_figures_follow_from_the_samples_kept_beside_them() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let builds = [results.join("regressions/before"), results.join("regressions/now")];
    for (name, report) in REPORTS {
        let of_builds = builds.iter().map(|build| build.join(name)).filter(|figure| figure.exists());
        for directory in kept(&results.join(name)).into_iter().chain(of_builds.flat_map(|figure| kept(&figure))) {
            let read = |file: &str| {
                let path = directory.join(file);
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            };
            assert_eq!(report(&read("samples.csv")).unwrap(), read("figures.md"), "{name}");
            let setting: serde_json::Value = serde_json::from_str(&read("setting.json")).unwrap();
            assert!(setting["commit"].is_string() && setting["cpu"].is_string(), "{name}: machine and commit are kept");
            if let Some(version) = setting["pgbouncer"].as_str() {
                let directory = directory.file_name().unwrap().to_str().unwrap();
                assert_eq!(directory, version.to_lowercase().replace(' ', "-"), "{name}: it is kept with its version");
            }
        }
    }
}

/// Where a figure is kept: in one directory, or in one for each version of PgBouncer.
fn kept(figure: &Path) -> Vec<PathBuf> {
    if figure.join("samples.csv").exists() {
        return vec![figure.to_owned()];
    }
    let versions = fs::read_dir(figure).unwrap_or_else(|error| panic!("{}: {error}", figure.display()));
    let paths: io::Result<Vec<PathBuf>> = versions.map(|version| Ok(version?.path())).collect();
    paths.unwrap_or_else(|error| panic!("{}: {error}", figure.display()))
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

/// Rows of the switch bench: each way's last row says what all its clients met.
fn switched(connections: u32, failures: u32, seconds: &str) -> String {
    let header =
        "login,way,number,seconds,warm_seconds,flip_microseconds,elapsed_seconds,connections,queries,failures,kinds\n";
    let mut rows = header.to_owned();
    for login in ["trust", "scram+tls"] {
        for way in ["switch", "back"] {
            rows.extend((0..100).map(|number| format!("{login},{way},{number},{seconds},1.00,50,1.0,9,9,0,\n")));
        }
        let _ = writeln!(rows, "{login},sidecar,100,,,,300.0,{connections},100000,{failures},Query/Closed={failures}");
    }
    rows
}

#[test]
fn one_failure_of_a_switch_and_a_late_one_are_misses_and_too_few_connections_tell_nothing() {
    let told = |connections, failures, seconds| switch::report(&switched(connections, failures, seconds)).unwrap();
    let good = told(330_000, 0, "0.3000");
    assert_eq!((good.matches(": reached").count(), good.contains("MISSED")), (8, false), "{good}");
    assert_eq!(told(330_000, 1, "0.3000").matches("MISSED").count(), 2);
    assert_eq!(told(330_000, 0, "1.2000").matches("p95: MISSED").count(), 2);
    let few = told(290_000, 0, "0.3000");
    assert!(few.contains("- trust: no failure in 300000 new connections and in 100000 queries"), "{few}");
    assert_eq!((few.matches("too few samples").count(), few.matches(": reached").count()), (4, 4));
}

#[test]
fn a_client_that_was_cut_and_not_counted_is_a_miss() {
    let header = "part,number,seconds,clients,cut,counted,elapsed_seconds,connections,queries,failures,kinds\n";
    let of = |counted: u32, cut_by_agents: u32| -> String {
        let rows = (0..20).map(|number| {
            format!("pooler,{number},0.1500,100,100,{counted},2.0,200,900,100,\nagent,{number},0.2,100,{cut_by_agents},0,2.0,200,900,0,\n")
        });
        kills::report(&(header.to_owned() + &rows.collect::<String>())).unwrap()
    };
    assert_eq!(of(100, 0).matches(": reached").count(), 3);
    assert!(of(99, 0).contains("no less, each time: MISSED"));
    assert!(of(100, 1).contains("20 times: MISSED"));
}

#[test]
fn a_client_that_fails_or_is_led_to_a_process_that_cannot_work_is_a_miss() {
    let header = "kind,sidecar,number,seconds,told,flips,elapsed_seconds,connections,queries,failures,kinds\n";
    let of = |attempts: usize, flips: u32, failures: u32| -> String {
        let mut rows = header.to_owned();
        for kind in ["wrong password", "dead port", "does not parse", "hangs"] {
            rows.extend((0..attempts).map(|n| format!("{kind},0,{n},0.3,it did not prove itself,0,1.0,90,0,0,\n")));
            let _ = writeln!(rows, "{kind},0,{attempts},,,{flips},9.0,900,0,{failures},");
        }
        bad_green::report(&rows).unwrap()
    };
    assert!(of(20, 0, 0).contains("each: reached"));
    assert!(of(20, 1, 0).contains("each: MISSED") && of(20, 0, 1).contains("each: MISSED"));
    assert!(of(19, 0, 0).contains("too few samples"));
}

#[test]
fn slow_first_answers_are_a_miss_and_so_are_too_few_of_them() {
    let header = "login,way,elapsed_seconds,failures,microseconds,count\n";
    let of = |slow: u32, failures: u32, seconds: u32| {
        let rows = format!(
            "trust,sidecar,{seconds}.0,{failures},,\ntrust,sidecar,,,2000,{}\ntrust,sidecar,,,21000,{slow}\n",
            11_000 - slow
        );
        acquisition::report(&(header.to_owned() + &rows)).unwrap()
    };
    assert!(of(100, 0, 10).contains("p99: reached"));
    assert!(of(120, 0, 10).contains("p99: MISSED") && of(100, 1, 10).contains("p99: MISSED"));
    assert!(of(100, 0, 12).contains("too few connections"));
}

#[test]
fn memory_counts_by_what_all_processes_of_a_sidecar_take_together() {
    let header = "part,round,look,process,resident_kib,proportional_kib,clients\n";
    let of = |idle: u32, busy: u32| -> String {
        let rows = [("idle", idle, 0), ("busy", busy, 500)].into_iter().flat_map(|(part, each, clients)| {
            let processes = ["keeper", "agent", "blue", "green"].into_iter();
            processes.map(move |process| format!("{part},0,0,{process},{},{each},{clients}\n", 2 * each))
        });
        footprint::report(&(header.to_owned() + &rows.collect::<String>())).unwrap()
    };
    assert_eq!(of(4000, 12_000).matches(": reached").count(), 2);
    assert!(of(5000, 12_000).contains("idle: MISSED") && of(4000, 12_500).contains("by TLS: MISSED"));
}

#[test]
fn a_whole_share_at_work_counts_in_mebibytes_and_is_told_where_it_was_measured() {
    let header = "part,round,look,process,resident_kib,proportional_kib,clients\n";
    let of = |full: u32, clients: u32| -> String {
        let switch = ["idle", "busy"].into_iter().flat_map(|part| {
            let processes = ["keeper", "agent", "blue", "green"].into_iter();
            processes.map(move |process| format!("{part},0,0,{process},4000,2000,500\n"))
        });
        let full = ["keeper", "agent", "blue"].map(|process| format!("full,0,0,{process},{full},{full},{clients}\n"));
        footprint::report(&(header.to_owned() + &switch.chain(full).collect::<String>())).unwrap()
    };
    assert!(of(16 << 10, 500).contains("at work: 48.0 MiB, reached"), "{}", of(16 << 10, 500));
    assert!(of((16 << 10) + 1, 500).contains("MiB, MISSED"));
    assert!(of(16 << 10, 400).contains("too few clients to tell"));
}

/// Rows of one stretch of time of the neighbours bench: times of decision, proof and admission, each `spread` times as long every other
/// time, and what went wrong.
fn stretch(build: &str, number: u32, phase: &str, (times, spread): ([f64; 3], f64), bad: &[(&str, u32)]) -> String {
    let mut rows = String::new();
    let mut add = |block: u32, what: &str, value: f64, count: u32| {
        let _ = writeln!(rows, "{build},{number},{phase},{block},{what},{value},{count}");
    };
    for block in 0..24 {
        let [decision, proof, admission] = times.map(|time| if block % 2 == 0 { time } else { time * spread });
        add(block, "decision_last_ms", decision, 30);
        add(block, "proven_ms", proof, 5);
        add(block, "admission_ms", admission, 100);
    }
    add(0, "ticks_due", 0.0, 24);
    for what in ["cores_all", "cores_operator", "cores_prometheus", "cores_bench"] {
        add(0, what, 0.5, 1);
    }
    for (what, count) in bad {
        add(0, what, 0.0, *count);
    }
    rows
}

/// A phase of this build between two of calm, after the same of the build before.
fn beside_neighbours(times: ([f64; 3], f64), calm_after: f64, bad: &[(&str, u32)]) -> Result<String, String> {
    let calm = [100.0, 1000.0, 10.0];
    // what the build before did is told, and no miss
    let before = stretch("before", 0, "calm", ([1.0; 3], 1.0), &[])
        + &stretch("before", 1, "silent", ([9.0; 3], 1.0), &[("client_failures", 9)])
        + &stretch("before", 2, "calm", ([1.0; 3], 1.0), &[]);
    let now = stretch("now", 0, "calm", (calm, 1.0), &[])
        + &stretch("now", 1, "silent", times, bad)
        + &stretch("now", 2, "calm", (calm.map(|time| time * calm_after), 1.0), &[]);
    neighbours::report(&format!("build,segment,phase,block,what,value,count\n{before}{now}"))
}

#[test]
fn a_neighbour_that_slows_kills_or_cuts_the_others_is_a_miss_of_its_phase() {
    let of = |times, bad: &[(&str, u32)]| beside_neighbours((times, 1.0), 1.0, bad).unwrap();
    let good = of([110.0, 1100.0, 15.0], &[]);
    assert_eq!((good.matches(": reached.").count(), good.matches("MISSED").count()), (7, 0), "{good}");
    for (told, bad) in [
        ("(median of ticks): MISSED in silent 1.11 (1.11 to 1.11).", of([111.0, 1100.0, 15.0], &[])),
        ("without (median): MISSED in silent 1.10 (1.10 to 1.10).", of([110.0, 1101.0, 15.0], &[])),
        ("as long as without: MISSED in silent 1.60 (1.60 to 1.60).", of([110.0, 1100.0, 16.0], &[])),
        (
            "No admission failed: MISSED in silent; reached in calm, calm after silent.",
            of([1.0; 3], &[("admissions_failed", 1)]),
        ),
        ("neither ends: MISSED in silent;", of([1.0; 3], &[("operator_killed", 1)])),
        ("neither ends: MISSED in silent;", of([1.0; 3], &[("operator_ended", 1)])),
        ("answers the operator: MISSED in silent;", of([1.0; 3], &[("client_failures", 1)])),
        ("answers the operator: MISSED in silent;", of([1.0; 3], &[("agent_silent", 1)])),
        ("as many ticks as are due: MISSED in silent.", of([1.0; 3], &[("ticks_due", 3)])),
    ] {
        assert!(bad.contains(told) && bad.matches("MISSED").count() == 1, "{told}: {bad}");
    }
}

#[test]
fn what_noise_or_a_drifting_machine_hides_is_told_as_not_decidable() {
    let undecidable = "without (median of ticks): not decidable at this noise in silent";
    // half of the ticks are half as long again, so that the median may be either
    let noisy = beside_neighbours(([100.0, 1000.0, 10.0], 1.5), 1.0, &[]).unwrap();
    assert!(noisy.contains(undecidable) && !noisy.contains("MISSED"), "{noisy}");
    // twice as late, and so is the calm after it
    let drifted = beside_neighbours(([200.0, 1000.0, 10.0], 1.0), 2.0, &[]).unwrap();
    assert!(drifted.contains(undecidable), "{drifted}");
    // later than calm before and after
    let missed = beside_neighbours(([300.0, 1000.0, 10.0], 1.0), 2.0, &[]).unwrap();
    assert!(missed.contains("without (median of ticks): MISSED in silent"), "{missed}");
}

#[test]
fn of_too_few_ticks_nothing_is_told_and_without_calm_on_both_sides_nothing_is_compared() {
    let header = "build,segment,phase,block,what,value,count\n";
    let rows = |calm_after: bool| {
        let calm = |number| stretch("now", number, "calm", ([1.0; 3], 1.0), &[]);
        let phase = stretch("now", 1, "silent", ([9.0; 3], 1.0), &[]);
        let few: String = phase
            .lines()
            .filter(|row| !row.contains("decision") || row.contains(",silent,1"))
            .fold(String::new(), |rows, row| rows + row + "\n");
        format!("{header}{}{few}{}", calm(0), if calm_after { calm(2) } else { String::new() })
    };
    let told = neighbours::report(&rows(true)).unwrap();
    assert!(told.contains("without (median of ticks): too few samples in silent"), "{told}");
    assert!(neighbours::report(&rows(false)).unwrap_err().contains("no calm before and after"));
}

#[test]
fn a_failure_of_any_change_in_place_is_a_miss() {
    let header = "login,kind,way,number,seconds,elapsed_seconds,connections,queries,failures,kinds\n";
    let of = |failures: u32, queries: u32, changes: u32| -> String {
        let mut rows = header.to_owned();
        for (login, kind) in [
            ("trust", "limits"),
            ("scram+tls", "limits"),
            ("scram+tls", "password"),
            ("scram+tls", "role"),
            ("scram+tls", "ca"),
        ] {
            let _ = writeln!(rows, "{login},{kind},sidecar,0,1.5,9.0,900,900,0,");
            let _ = writeln!(rows, "{login},{kind},sidecar,{changes},,300.0,330000,{queries},{failures},");
        }
        changes::report(&rows).unwrap()
    };
    // beside those of five kinds as many rates
    assert_eq!(of(0, 100_000, 100).matches(": reached").count(), 10);
    assert_eq!(of(1, 100_000, 100).matches(": MISSED").count(), 5);
    assert_eq!(of(1, 100_000, 10).matches(": MISSED").count(), 5);
    assert_eq!(of(0, 99_999, 100).matches("too few samples").count(), 5);
    assert_eq!(of(0, 100_000, 99).matches("too few samples").count(), 5);
}

#[test]
fn a_lost_connection_and_a_killed_application_are_misses_and_what_the_database_refused_is_none() {
    let header = "part,update,seconds,elapsed_seconds,ended,connections,queries,transactions,failures,of_pooler_origin,killed,kinds\n";
    let of = |last: &str, updates: u32| -> String {
        let rows = ["sidecar", "gateway"].map(|part| {
            let good = (1..updates).map(|update| format!("{part},{update},9.0,9.0,3,70,100,7,0,0,0,\n"));
            good.collect::<String>() + &format!("{part},{updates},9.0,9.0,3,80,120,8,{last}\n")
        });
        endings::report(&(header.to_owned() + &rows.concat())).unwrap()
    };
    assert_eq!(of("0,0,0,", 5).matches(": reached").count(), 2);
    assert_eq!(of("2,0,0,short/the database system is starting up=2", 5).matches(": reached").count(), 2);
    assert_eq!(of("1,1,0,short/reset=1", 5).matches(": MISSED").count(), 2);
    assert_eq!(of("0,0,1,", 5).matches(": MISSED").count(), 2);
    assert_eq!(of("0,0,0,", 4).matches("too few").count(), 2);
}

#[test]
fn a_good_canary_that_goes_back_for_whatever_reason_is_a_miss_and_so_is_a_bad_one_that_is_promoted() {
    let header = "kind,change,quantile_ratio,mean_ratio,pods,number,sluice,sluice_s,kayenta,kayenta_s\n";
    let of = |rollouts: usize, good: &str, wrong: usize, missed: usize| -> String {
        let row = |change: &str, end: &str| format!("jitter,{change},2.0,2.0,3,0,{end},9,promoted,62\n");
        let many = |change: &str, usual: &str, other: &str, others: usize| {
            row(change, usual).repeat(rollouts - others) + &row(change, other).repeat(others)
        };
        let rows = many("none", "promoted", good, wrong) + &many("all x2", "worse", "promoted", missed);
        // what hides in a tail is told, and has no goal
        verdicts::report(&(header.to_owned() + &rows + &row("slowest tenth x2", "promoted").repeat(rollouts))).unwrap()
    };
    assert_eq!(of(300, "worse", 15, 15).matches(": 5.0 %, reached").count(), 2);
    assert!(of(300, "worse", 16, 0).contains("not proven included: 5.3 %, MISSED"));
    assert!(of(300, "not proven", 16, 0).contains("not proven included: 5.3 %, MISSED"));
    assert!(of(300, "worse", 0, 16).contains("Missed regressions at most 5 % in each kind: 5.3 %, MISSED"));
    assert_eq!(of(299, "worse", 0, 0).matches("too few rollouts").count(), 2);
}

#[test]
fn a_division_is_as_good_as_the_worse_of_what_there_is_and_judged_only_beside_multigres() {
    let of = |scarce: u32, ample: u32, with: bool| -> String {
        let row = |who: &str, room: &str, time: u32| format!("{who},{room},0,{time},1000,990,0,3\n");
        let ours = row("entitled", "scarce", scarce) + &row("entitled", "ample", ample) + &row("step", "scarce", 9000);
        let theirs = row("multigres", "scarce", 4000) + &row("multigres", "ample", 8000);
        let header = "who,room,round,nanoseconds,capacity,given,without,others_again\n";
        division::report(&(header.to_owned() + &ours + if with { &theirs } else { "" })).unwrap()
    };
    assert_eq!(of(1000, 2000, true).matches("0.25, reached").count(), 2);
    let missed = of(1040, 1000, true);
    assert!(missed.contains("0.26, MISSED") && missed.contains("0.12, reached"), "{missed}");
    assert!(missed.contains("99.00 % | 0 | 3 |"), "{missed}");
    assert!(!of(1, 1, false).contains("reached"));
}

#[test]
fn what_applications_leave_is_counted_and_their_failures_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
    write("a-1.short", "xx");
    write("a-1.long", "x");
    write("a-1.transaction", "x");
    write("a-1.ended", "");
    write("b-2.short", "x");
    write(
        "b-2.lost",
        "short psql: error: connection to server at \"127.0.0.1\", port 5432 failed: FATAL:  sorry, too many clients already\n\
         short psql: error: connection to server at \"127.0.0.1\", port 5432 failed: Connection refused \tIs the server running?\n\
         long psql: error: server closed the connection unexpectedly\nshort wrong answer: 41\n\
         transaction psql: error: ... FATAL:  query_wait_timeout, really\n",
    );
    let tally = tally::Tally::read(directory.path()).unwrap();
    assert_eq!((tally.connections(), tally.queries(), tally.transactions()), (5, 34, 1));
    assert_eq!((tally.begun.len(), tally.ended.len()), (2, 1));
    assert_eq!((tally.lost.len(), tally.of_pooler_origin()), (5, 4));
    let kinds: Vec<String> = tally.kinds().into_keys().collect();
    assert_eq!(
        kinds,
        [
            "long/closed",
            "short/refused",
            "short/sorry; too many clients already",
            "short/wrong answer",
            "transaction/query_wait_timeout; really"
        ]
    );
}

/// Rows of `rollouts`: ten bad revisions, and as many good ones as are asked for.
fn rollouts_of(bad: &[(&str, &str)], good: &[&str]) -> String {
    let kinds =
        ["mode", "ceiling", "timeout", "latency", "validation", "parameter", "password", "host", "tls", "database"];
    let mut text = format!("{}\n", rollouts::COLUMNS);
    for (number, kind) in kinds.iter().enumerate() {
        let usual = if number < 4 {
            "revision,0,7,RolledBack,analysis,20.0,1.50,4,1,0,9,100,1000,,x"
        } else {
            "revision,0,-,NeverInForce,proof,20.0,-,4,0,0,0,100,1000,,x"
        };
        let row = bad.iter().find(|(name, _)| name == kind).map_or(usual, |(_, row)| row);
        let _ = writeln!(text, "bad,{kind},{row}");
    }
    for row in good {
        let _ = writeln!(text, "good,pkt_buf,revision,0,9,{row}");
    }
    text
}

const PROMOTED: &str = "Promoted,nobody,40.0,-,4,4,0,0,200,2000,,";

#[test]
fn a_bad_revision_that_stays_and_a_client_that_fails_elsewhere_are_misses_and_are_named() {
    let told = |bad: &[(&str, &str)]| rollouts::report(&rollouts_of(bad, &[PROMOTED; 20])).unwrap();
    let good = told(&[]);
    assert!(!good.contains("MISSED") && !good.contains("too few"), "{good}");
    assert!(good.contains("p95 of 4 (1.50): reached"), "{good}");
    let stays = told(&[("latency", "revision,0,7,Promoted,nobody,60.0,-,4,4,0,0,100,1000,,x")]);
    assert!(stays.contains("each rolled back by itself: MISSED (latency)."), "{stays}");
    assert!(stays.contains("caught on the canary by metrics (3): MISSED."), "{stays}");
    let elsewhere = told(&[("ceiling", "revision,0,7,RolledBack,analysis,20.0,1.50,4,1,1,9,100,1000,,x")]);
    assert!(
        elsewhere
            .contains("outside of the pods that took it (1 in 1000 connections and 10000 questions of all): MISSED."),
        "{elsewhere}"
    );
    let unproven = told(&[("validation", "revision,0,7,RolledBack,proof,30.0,1.50,4,1,0,2,100,1000,,x")]);
    assert!(unproven.contains("could not prove itself (2): MISSED."), "{unproven}");
    let late = told(&[("mode", "revision,0,7,RolledBack,analysis,20.0,9.00,4,1,0,9,100,1000,,x")]);
    assert!(late.contains("p95 of 4 (7.87): MISSED."), "{late}");
}

#[test]
fn what_is_fixed_when_a_pod_is_created_is_no_revision_and_the_figure_says_so() {
    let held = "creation,0,-,HeldByDeployment,readiness,1.0,-,5,1,0,9,100,1000,,x";
    let told = rollouts::report(&rollouts_of(&[("host", held)], &[PROMOTED; 20])).unwrap();
    assert!(told.contains("each rolled back by itself: MISSED (host)."), "{told}");
    assert!(told.contains("Of them the 9 that are settings or a Secret: reached."), "{told}");
    assert!(told.contains("host: no revision, for the field is fixed when a pod is created."), "{told}");
}

#[test]
fn a_good_revision_that_goes_back_is_a_miss_and_fewer_than_asked_for_prove_nothing() {
    let told = |good: &[&str]| rollouts::report(&rollouts_of(&[], good)).unwrap();
    let back = [[PROMOTED; 19].as_slice(), &["RolledBack,nobody,40.0,-,4,1,0,0,200,2000,,worse"]].concat();
    assert!(told(&back).contains("all promoted (1 of 20 were not), and no client fails (0): MISSED."));
    assert!(told(&[PROMOTED; 3]).contains("no client fails (0): too few samples to tell."));
    let failed = [[PROMOTED; 19].as_slice(), &["Promoted,nobody,40.0,-,4,4,0,1,200,2000,,"]].concat();
    assert!(told(&failed).contains("and no client fails (1): MISSED."));
}
