//! `sluice backtest`: the model against the simulator, ranges of Prometheus, the picture, bad input.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use sluice::{
    cli::backtest::{
        model::{Counters, Model, Score},
        picture::Picture,
        prometheus::{self, RANGE_HEADER, Range},
        replay::{self, Cadence, Policy},
        scenario::Scenario,
        table::{self, Line},
        trace::Trace,
    },
    contract::Algorithm,
    domain::Sample,
};

use super::settings;

fn example(name: &str) -> Trace {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/traces").join(name);
    Trace::read(&path).expect("a bundled trace")
}

fn adaptive(cadence: Cadence) -> Policy {
    Policy::Sized { settings: Box::new(settings(Algorithm::Adaptive)), cadence }
}

/// Ceiling, open and busy in connection-hours, and the share that waited too long in percent.
fn figures(score: &Score) -> [f64; 4] {
    let hours = |seconds: f64| seconds / 3600.0;
    [
        hours(score.ceiling_seconds),
        hours(score.open_seconds),
        hours(score.busy_seconds),
        100.0 * score.violation_share(),
    ]
}

/// What `benches/sizing/sim.py` says, with the counters of the pooler, about the same traces and policies.
#[test]
fn the_model_agrees_with_the_simulator() {
    let cases: [(&str, Policy, [f64; 4]); 4] = [
        ("syn_spike.csv", adaptive(Cadence::AGENT), [18.1, 18.1, 9.0, 1.02]),
        ("syn_spike.csv", Policy::Fixed(60), [110.0, 43.7, 9.0, 0.04]),
        ("syn_onoff.csv", adaptive(Cadence::AGENT), [37.4, 37.3, 14.9, 0.92]),
        ("syn_onoff.csv", Policy::Fixed(40), [73.3, 62.2, 14.9, 0.00]),
    ];
    for (name, policy, simulated) in cases {
        let run = replay::run(&example(name), &policy, 600.0);
        for (ours, theirs) in figures(&run.score).into_iter().zip(simulated) {
            assert!((ours - theirs).abs() <= 0.05 + 0.01 * theirs, "{name}: {ours} and {theirs}");
        }
    }
}

#[test]
fn a_replay_is_reproducible() {
    let trace = example("syn_spike.csv");
    let run = || replay::run(&trace, &adaptive(Cadence::OPERATOR), 600.0);
    let (one, other) = (run(), run());
    assert_eq!(one.score, other.score);
    assert_eq!(one.course, other.course);
}

#[test]
fn what_poolers_count_leads_to_the_sizes_that_what_happened_would() {
    for name in ["syn_spike.csv", "syn_step10.csv", "syn_onoff.csv"] {
        let trace = example(name);
        for cadence in [Cadence::AGENT, Cadence::OPERATOR] {
            let of = |counters| replay::run(&trace, &adaptive(Cadence { counters, ..cadence }), 600.0).score;
            let (pooler, exact) = (of(Counters::Pooler), of(Counters::Exact));
            let cost = pooler.ceiling_seconds / exact.ceiling_seconds;
            assert!((0.95..=1.05).contains(&cost), "{name}, every {} s: {cost}", cadence.interval_seconds);
            let waited = pooler.violation_share() - exact.violation_share();
            assert!(waited.abs() <= 0.005, "{name}, every {} s: {waited}", cadence.interval_seconds);
        }
    }
}

#[test]
fn behind_a_queue_of_any_length_the_model_counts_what_was_worked() {
    // of a load of 8 connections, between a half and five times the pool waits
    let trace = example("syn_step10.csv");
    for size in [2, 4, 8, 16] {
        let mut model = Model::new(&trace, size, 600.0);
        let mut before: Option<(Sample, Sample)> = None;
        for second in 1..600_u32 {
            model.advance(f64::from(second));
            model.read();
            if second % 60 == 0 {
                let now = (model.sample(Counters::Pooler), model.sample(Counters::Exact));
                if let Some(before) = before.filter(|before| now.1.busy_seconds > before.1.busy_seconds + 30.0) {
                    let pooler = now.0.busy_seconds - before.0.busy_seconds;
                    let exact = now.1.busy_seconds - before.1.busy_seconds;
                    assert!((pooler / exact - 1.0).abs() < 0.05, "{size} at {second} s: {pooler} of {exact}");
                }
                before = Some(now);
            }
        }
    }
}

/// Two pods with 30 transactions a second of 100 ms each; the second one restarts and is then gone for good.
fn answer() -> Value {
    let series = |name: &str, pod: &str, state: Option<&str>, value: &dyn Fn(f64) -> Option<f64>| {
        let mut metric =
            json!({"__name__": name, "namespace": "shop", "pod": pod, "pool": "shop", "pool_namespace": "shop"});
        if let Some(state) = state {
            metric["state"] = state.into();
        }
        let points = (0..80_u32).map(|i| f64::from(i) * 15.0);
        let values: Vec<Value> =
            points.filter_map(|t| Some(json!([1_800_000_000.0 + t, value(t)?.to_string()]))).collect();
        json!({"metric": metric, "values": values})
    };
    let mut result = Vec::new();
    for (pod, born, gone) in [("a", 0.0, 1e9), ("b", 0.0, 300.0), ("b", 300.0, 900.0)] {
        let alive = move |t: f64| (born..gone).contains(&t);
        let count = move |t: f64| alive(t).then_some((t - born) * 30.0);
        let seconds = move |t: f64| alive(t).then_some((t - born) * 3.0);
        result.push(series("sluice_transactions_total", pod, None, &count));
        result.push(series("sluice_busy_seconds_total", pod, None, &seconds));
        result.push(series("sluice_server_connections", pod, Some("active"), &|t| alive(t).then_some(3.0)));
        result.push(series("sluice_server_connections", pod, Some("idle"), &|t| alive(t).then_some(7.0)));
        result.push(series("sluice_client_connections", pod, Some("waiting"), &|t| alive(t).then_some(1.0)));
        result.push(series("sluice_limit", pod, None, &|t| alive(t).then_some(10.0)));
    }
    json!({"status": "success", "data": {"resultType": "matrix", "result": result}})
}

fn open_ended() -> Scenario {
    Scenario { name: "shop/shop".to_owned(), warmup_s: 0.0, ..Scenario::default() }
}

#[test]
fn a_range_of_prometheus_becomes_the_load_that_it_shows() {
    let trace = prometheus::from_json(&answer().to_string(), Path::new("saved.json"), open_ended()).expect("a range");
    for row in &trace.rows {
        assert!((row.service_seconds - 0.1).abs() < 1e-9, "{row:?}");
        let pods = if row.t < 870.0 { 2.0 } else { 1.0 };
        if !(285.0..=315.0).contains(&row.t) && !(870.0..=1000.0).contains(&row.t) {
            assert!((row.rate - 30.0 * pods).abs() < 1.0, "{row:?}");
        }
        assert!(row.rate <= 61.0, "a restart is no burst: {row:?}");
    }
    let first = trace.recorded[0];
    assert_eq!((first.size.round(), first.waiting.round()), (20.0, 2.0));
    assert_eq!(trace.scenario.replicas, 2);
    let run = replay::run(&trace, &adaptive(Cadence::OPERATOR), 600.0);
    assert!(run.score.arrived > 40_000, "{}", run.score.arrived);
}

#[test]
fn what_older_agents_counted_is_replayed_without_the_waits_in_it() {
    let mut answer = answer();
    let Value::Array(result) = &mut answer["data"]["result"] else { panic!("{answer}") };
    let mut waits = Vec::new();
    for series in result.iter_mut().filter(|series| series["metric"]["__name__"] == "sluice_busy_seconds_total") {
        // of three seconds a second with another twelve of waits
        let scaled = |series: &Value, name: &str, factor: f64| {
            let mut series = series.clone();
            series["metric"]["__name__"] = name.into();
            let Value::Array(values) = &mut series["values"] else { panic!("{series}") };
            for value in values {
                let seconds: f64 = value[1].as_str().expect("text").parse().expect("a number");
                value[1] = (seconds * factor).to_string().into();
            }
            series
        };
        waits.push(scaled(series, "sluice_wait_seconds_total", 4.0));
        *series = scaled(series, "sluice_transaction_seconds_total", 5.0);
    }
    result.extend(waits);
    let trace = prometheus::from_json(&answer.to_string(), Path::new("saved.json"), open_ended()).expect("a range");
    assert!(trace.rows.iter().all(|row| (row.service_seconds - 0.1).abs() < 1e-9), "{:?}", trace.rows);
}

#[test]
fn a_range_saved_as_csv_is_the_same_load() {
    let mut text = format!("{RANGE_HEADER}\n");
    for i in 0..80_u32 {
        let t = f64::from(i) * 15.0;
        for pod in ["a", "b"] {
            let _ = writeln!(text, "{},{pod},{},{},3,1,10", 1_800_000_000.0 + t, t * 30.0, t * 3.0);
        }
    }
    let trace = prometheus::from_csv(&text, Path::new("saved.csv"), open_ended()).expect("a range");
    assert!(trace.rows.iter().all(|row| (row.rate - 60.0).abs() < 0.5), "{:?}", trace.rows);
}

#[test]
fn the_query_is_one_and_quotes_what_it_is_given() {
    let query = prometheus::query("a\"b", "c\\d");
    assert_eq!(query.matches('{').count(), 1);
    assert!(query.contains("pool_namespace=\"a\\\"b\"") && query.contains("pool=\"c\\\\d\""), "{query}");
    assert!((Range { start: 0, end: 3600 }.step_seconds() - 15.0).abs() < 1e-9);
    assert!(Range { start: 0, end: 30 * 86_400 }.step_seconds() * 11_000.0 > 30.0 * 86_400.0);
}

#[test]
fn a_partial_answer_is_refused_and_notes_about_the_query_are_none() {
    let read = |name: &str, value: Value| {
        let mut answer = answer();
        answer[name] = value;
        prometheus::from_json(&answer.to_string(), Path::new("saved.json"), open_ended())
    };
    let refused = |name, value| read(name, value).expect_err("partial").to_string();
    let warning = refused("warnings", json!(["PromQL info: metric might not be a counter", "store b: no answer"]));
    assert!(warning.contains("saved.json: the answer may be incomplete") && warning.contains("store b"), "{warning}");
    let partial = refused("isPartial", json!(true));
    assert!(partial.contains("isPartial"), "{partial}");
    for (name, value) in [
        ("warnings", json!(["PromQL info: metric might not be a counter"])),
        ("infos", json!(["anything"])),
        ("isPartial", json!(false)),
    ] {
        assert_eq!(read(name, value).expect("whole").scenario.replicas, 2, "{name}");
    }
}

#[test]
fn a_server_is_asked_for_what_it_stores_and_not_for_what_it_has_kept_of_other_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("asked");
        let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let lines: Vec<String> = lines.collect();
        (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").expect("answered");
        lines
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asked = prometheus::fetch(&url, "shop", "shop", Range { start: 0, end: 3600 }, Duration::from_secs(10));
    assert_eq!(runtime.block_on(asked).expect("an answer"), "{}");
    let lines = server.join().expect("served");
    assert!(lines[0].contains("/api/v1/query_range?") && lines[0].contains("nocache=1"), "{lines:?}");
}

#[test]
fn a_prometheus_that_does_not_answer_ends_at_the_deadline() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let range = Range { start: 0, end: 3600 };
    let asked = prometheus::fetch(&url, "shop", "shop", range, Duration::from_millis(200));
    let error = runtime.block_on(asked).expect_err("nobody accepts");
    assert!(error.to_string().contains(&url), "{error}");
}

#[test]
fn bad_traces_are_refused_with_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        path
    };
    let header = "t_seconds,arrival_rate_per_s,service_time_ms\n";
    let cases = [
        ("empty.csv", String::new(), "fewer than two rows"),
        ("header.csv", "time,rate\n0,1\n".to_owned(), "line 1"),
        ("words.csv", format!("{header}0,1,1\nten,1,1\n"), "line 3"),
        ("nan.csv", format!("{header}0,NaN,1\n1,1,1\n"), "line 2"),
        ("negative.csv", format!("{header}0,-1,1\n1,1,1\n"), "line 2"),
        ("backwards.csv", format!("{header}0,1,1\n60,1,1\n30,1,1\n"), "line 4"),
        ("short.csv", format!("{header}0,1,1\n30,1,1\n"), "warmup_s"),
        ("endless.csv", format!("{header}0,1,1\n1e12,1,1\n"), "at most"),
        ("huge.csv", format!("{header}0,1e7,1\n86400,1e7,1\n"), "transactions"),
    ];
    for (name, text, expected) in cases {
        let error = Trace::read(&write(name, &text)).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
    let good = format!("{header}0,1,1\n3600,1,1\n");
    write("pool.csv", &good);
    for sidecar in [
        "{",
        "{\"max_size\": 0}",
        "{\"seed\": -1}",
        "{\"service_cv\": 1e9}",
        "{\"events\": [{\"t\": 1, \"type\": \"flood\"}]}",
    ] {
        write("pool.json", sidecar);
        let error = Trace::read(&folder.path().join("pool.csv")).expect_err(sidecar).to_string();
        assert!(error.contains("pool.json") || error.contains("pool.csv"), "{error}");
    }
}

#[test]
fn bad_ranges_are_refused_and_say_what_is_missing() {
    let read =
        |text: &str| prometheus::from_json(text, Path::new("saved.json"), open_ended()).expect_err(text).to_string();
    assert!(read("{").contains("query_range"));
    assert!(read("{\"status\":\"error\",\"error\":\"too many\"}").contains("query_range"));
    assert!(read("{\"data\":{\"result\":[]}}").contains("sluice_transactions_total"));
    let mut strange = answer();
    for series in strange["data"]["result"].as_array_mut().expect("series") {
        series["values"] = json!([[1.0, "NaN"], [2.0, "Inf"], [3.0, "-4"], [1e300, "1"]]);
    }
    assert!(read(&strange.to_string()).contains("sluice_transactions_total"));
    let csv = |line: &str| {
        let text = format!("{RANGE_HEADER}\n{line}\n");
        prometheus::from_csv(&text, Path::new("saved.csv"), open_ended()).expect_err(line).to_string()
    };
    for line in ["1,a,1", "x,a,1,1,1,1,1", "1,a,NaN,1,1,1,1", "1,a,-1,1,1,1,1"] {
        assert!(csv(line).contains("line 2"), "{line}");
    }
}

#[test]
fn the_picture_is_well_formed_and_escapes_its_title() {
    let trace = example("syn_spike.csv");
    let run = replay::run(&trace, &adaptive(Cadence::AGENT), 600.0);
    let demand: Vec<f64> = trace.by_second().into_iter().map(|(rate, service)| rate * service).collect();
    let picture =
        Picture { title: "<a & b>", subtitle: "s", course: &run.course, demand: &demand, recorded: &[] }.render();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert!(picture.contains("&lt;a &amp; b&gt;") && !picture.contains("NaN") && !picture.contains("inf"));
    assert!(picture.len() < 200_000, "{} bytes", picture.len());
    let empty = Picture { title: "", subtitle: "", course: &[], demand: &[], recorded: &[] }.render();
    assert!(!empty.contains("NaN"), "{empty}");
}

#[test]
fn the_table_names_every_figure() {
    let trace = example("syn_spike.csv");
    let lines = [("fixed 60", 60), ("fixed 4", 4)].map(|(policy, size)| Line {
        policy: policy.to_owned(),
        score: replay::run(&trace, &Policy::Fixed(size), 600.0).score,
    });
    insta::assert_snapshot!(table::render(&trace.scenario, replay::unavoidable(&trace, 600.0), &lines));
}

/// As `benches/sizing/oracle` has it for `syn_spike` (0.037 %) and `syn_onoff` (0); the database of `syn_slowquery_knee` is past its
/// knee, and even a clairvoyant lets some wait.
#[test]
fn what_no_size_could_avoid_is_held_against_none_and_no_bound_makes_more_of_it() {
    let of = |name: &str| replay::unavoidable(&example(name), 600.0);
    assert!((0.0002..0.0005).contains(&of("syn_spike.csv")), "{}", of("syn_spike.csv"));
    assert!(of("syn_onoff.csv") < 0.0001, "{}", of("syn_onoff.csv"));
    assert!((0.02..0.2).contains(&of("syn_slowquery_knee.csv")), "{}", of("syn_slowquery_knee.csv"));
    let mut narrow = example("syn_spike.csv");
    narrow.scenario.clients = narrow.scenario.client_cap().try_into().expect("few");
    narrow.scenario.max_size = 4;
    let unavoidable = replay::unavoidable(&narrow, 600.0);
    assert!(unavoidable < 0.0005, "{unavoidable}");
    let four = Line { policy: "fixed 4".to_owned(), score: replay::run(&narrow, &Policy::Fixed(4), 600.0).score };
    assert!(table::render(&narrow.scenario, unavoidable, &[four]).contains(" NO "), "4 are too few");
}

#[test]
fn the_sidecar_of_a_trace_is_told_from_an_answer_of_prometheus() {
    let sidecar = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/traces/syn_spike.json");
    let told = Command::new(env!("CARGO_BIN_EXE_sluice")).arg("backtest").arg(sidecar).output().expect("runs");
    assert!(!told.status.success());
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("this describes") && told.contains("syn_spike.csv; give that one"), "{told}");
}
