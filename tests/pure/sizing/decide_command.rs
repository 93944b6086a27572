//! `sluice decide` on good and bad lines.

use serde_json::{Value, json};
use sluice::{cli::decide::decide_lines, contract::Algorithm};

use super::settings;

fn answers(input: &[u8]) -> Vec<Value> {
    let mut output = Vec::new();
    decide_lines(&settings(Algorithm::Adaptive), input, &mut output).expect("the stream works");
    let text = String::from_utf8(output).expect("JSON is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect()
}

fn observation(t: f64, extra: &Value) -> String {
    let mut line = json!({
        "t": t, "tick": 4, "interval_s": 30.0, "scrape_s": 15.0, "replicas": 1, "min_size": 2, "max_size": 60,
        "current_size": 9, "target_size": 9, "slo_wait_ms": 20.0, "slo_target": 0.01,
        "cl_active": 480, "cl_waiting": 0, "sv_active": 4, "sv_idle": 5, "maxwait_s": 0,
        "samples": [
            {"t": t - 23.0, "cl_waiting": 0, "sv_active": 4, "sv_idle": 6, "xact_count_total": (t - 23.0) * 100.0,
             "xact_time_total_s": (t - 23.0) * 4.0, "wait_time_total_s": 0.4, "server_assignments_total": (t - 23.0) * 100.0,
             "xact_rate": null},
            {"t": t - 8.0, "cl_waiting": 0, "sv_active": 4, "sv_idle": 6, "xact_count_total": (t - 8.0) * 100.0,
             "xact_time_total_s": (t - 8.0) * 4.0, "wait_time_total_s": 0.4, "server_assignments_total": (t - 8.0) * 100.0}],
    });
    json_patch::merge(&mut line, extra);
    line.to_string() + "\n"
}

#[test]
fn every_line_gets_one_answer_with_size_and_reason() {
    let input: String = (1..40_u32).map(|i| observation(f64::from(i) * 30.0, &json!({}))).collect();
    let answers = answers(input.as_bytes());
    assert_eq!(answers.len(), 39);
    for answer in &answers {
        assert!(answer["size"].as_u64().is_some_and(|size| (2..=60).contains(&size)), "{answer}");
        assert_eq!(answer["reason"], "Demand");
    }
    assert!((4.0..4.5).contains(&answers[38]["demand"].as_f64().expect("a number")), "{}", answers[38]);
}

#[test]
fn a_gap_of_the_metrics_holds_the_target() {
    let gap = json!({"cl_active": null, "cl_waiting": null, "sv_active": null, "samples": [], "target_size": 11});
    let answer = &answers(observation(30.0, &gap).as_bytes())[0];
    assert_eq!((&answer["size"], &answer["reason"]), (&json!(11), &json!("NoData")));
}

#[test]
fn bad_lines_are_answered_with_an_error_and_the_size_held_and_the_stream_goes_on() {
    let good = observation(30.0, &json!({}));
    let held = answers(good.as_bytes())[0]["size"].clone();
    let huge = [b"[".repeat(3 << 20), b"\n".to_vec()].concat();
    let lines: Vec<Vec<u8>> = vec![
        b"\n".to_vec(), // not a line at all
        b"{\n".to_vec(),
        b"null\n".to_vec(),
        b"[1,2]\n".to_vec(),
        b"\xff\xfe\x00\n".to_vec(),
        observation(60.0, &json!({"t": null})).into_bytes(),
        observation(60.0, &json!({"replicas": -1})).into_bytes(),
        observation(60.0, &json!({"max_size": 1e300})).into_bytes(),
        observation(60.0, &json!({"min_size": -3})).into_bytes(),
        observation(60.0, &json!({"min_size": 61})).into_bytes(),
        observation(60.0, &json!({"interval_s": 0})).into_bytes(),
        observation(60.0, &json!({"slo_target": 7})).into_bytes(),
        observation(60.0, &json!({"slo_wait_ms": -1})).into_bytes(),
        observation(60.0, &json!({"samples": "none"})).into_bytes(),
        observation(60.0, &json!({"t": 1.0})).replace("\"t\":1.0", "\"t\":NaN").into_bytes(),
        huge,
    ];
    let bad = lines.len() - 1;
    let input = [good.clone().into_bytes(), lines.concat(), good.into_bytes()].concat();
    let answers = answers(&input);
    assert_eq!(answers.len(), bad + 2);
    for answer in &answers[1..=bad] {
        assert!(answer["error"].as_str().is_some_and(|error| error.starts_with("line ")), "{answer}");
        assert_eq!((&answer["size"], &answer["reason"]), (&held, &json!("InvalidData")));
    }
    assert_eq!(answers[bad + 1]["reason"], "NoData", "the same samples again: the stream went on");
}

#[test]
fn sizes_are_per_replica_unless_the_line_says_otherwise() {
    let lines: String = (1..20_u32).map(|i| observation(f64::from(i) * 30.0, &json!({"replicas": 4}))).collect();
    let per_replica = answers(lines.as_bytes())[18].clone();
    assert!(per_replica["size"].as_u64().is_some_and(|size| size <= 5), "4 busy on 4 replicas: {per_replica}");
    let whole = json!({"replicas": 4, "sizes_of": "Pool", "current_size": 36, "target_size": 36, "max_size": 240, "min_size": 8});
    let lines: String = (1..20_u32).map(|i| observation(f64::from(i) * 30.0, &whole)).collect();
    let pool = answers(lines.as_bytes())[18].clone();
    assert_eq!(pool["size"].as_u64(), per_replica["size"].as_u64().map(|size| 4 * size));
}

#[test]
fn pools_in_one_stream_do_not_mix() {
    let line = |i: u32, pool: &str, factor: f64| {
        let sample = |t: f64| {
            json!({"t": t, "cl_waiting": 0, "sv_active": 4, "xact_count_total": t * 100.0 * factor,
            "xact_time_total_s": t * 4.0 * factor, "wait_time_total_s": 0, "server_assignments_total": t * 100.0 * factor})
        };
        let t = f64::from(i) * 30.0;
        observation(t, &json!({"pool": pool, "samples": [sample(t - 23.0), sample(t - 8.0)]}))
    };
    let mixed: String = (1..30).flat_map(|i| [line(i, "a", 1.0), line(i, "b", 5.0)]).collect();
    let alone: String = (1..30).map(|i| line(i, "b", 5.0)).collect();
    assert_eq!(answers(mixed.as_bytes())[57], answers(alone.as_bytes())[28]);
}
