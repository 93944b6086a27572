//! `sluice judge` on good and bad lines.

use serde_json::{Value, json};
use sluice::cli::{
    judge::{JudgeError, judge_lines},
    lines::UnreadableLines,
};

const SETTINGS: &str = r#"{"settings": {"metrics": [{"name": "TransactionTime"}, {"name": "Errors"}]}}"#;

fn judged(input: &str) -> (Vec<Value>, Result<(), JudgeError>) {
    let mut output = Vec::new();
    let ended = judge_lines(input.as_bytes(), &mut output);
    let text = String::from_utf8(output).expect("JSON is UTF-8");
    (text.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect(), ended)
}

/// A second of three pods; `a` is the canary from second 60 on, and so many times slower.
fn line(second: u32, factor: f64) -> String {
    let pods = ["a", "b", "c"].map(|pod| {
        let is_canary = pod == "a" && second >= 60;
        let jitter = f64::from((second * 7 + second * second * u32::from(pod.as_bytes()[0])) % 5);
        json!({
            "pod": pod, "track": if is_canary { "Canary" } else { "Stable" }, "transactions": 100,
            "transaction_mean_ms": (8.0 + jitter) * if is_canary { factor } else { 1.0 }, "errors": 0, "noted": "elsewhere",
        })
    });
    json!({"t_seconds": second, "pods": pods}).to_string()
}

fn stream(factor: f64, seconds: std::ops::Range<u32>) -> String {
    std::iter::once(SETTINGS.to_owned())
        .chain(seconds.map(|second| line(second, factor)))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn every_line_has_a_verdict_and_the_exit_is_good_whatever_it_says() {
    let (good, ended) = judged(&stream(1.0, 0..100));
    assert!(ended.is_ok());
    assert_eq!(good.len(), 101);
    assert_eq!((&good[0]["verdict"], &good[50]["reason"]), (&json!("Inconclusive"), &json!("WarmingUp")));
    assert_eq!((&good[100]["verdict"], &good[100]["t_seconds"]), (&json!("Pass"), &json!(99.0)), "{}", good[100]);
    assert_eq!(good[100]["metrics"][0]["estimate"]["against"], "OtherPodsAndPast");
    let (bad, ended) = judged(&stream(2.0, 0..100));
    assert!(ended.is_ok());
    assert_eq!((&bad[100]["verdict"], &bad[100]["reason"]), (&json!("Fail"), &json!("SlowerThanStable")));
}

#[test]
fn a_line_that_cannot_be_read_is_told_with_its_number_and_column_decides_nothing_and_the_exit_is_bad() {
    for (bad, words) in [
        ("{", "line 62: column 1: EOF"),
        ("null", "line 62: "),
        (r#"{"t_seconds": 60, "pods": [{"pod": "a"}]}"#, "line 62: column 39: missing field `track`"),
        (
            r#"{"t_seconds": 60, "pods": [{"pod": "a", "track": "Blue"}]}"#,
            "unknown variant `Blue`, expected `Stable` or `Canary`",
        ),
        (r#"{"t_seconds": 60, "pods": [{"pod": "a", "track": "Canary", "errors": "many"}]}"#, "a number, null, or"),
        (r#"{"t_seconds": 60, "pods": [{"pod": "", "track": "Canary"}]}"#, "pods[0].pod is \"\""),
        (r#"{"pods": []}"#, "t_seconds is missing"),
        (r#"{"t_seconds": 59}"#, "t_seconds is 59; expected more than 59"),
        (r#"{"t_seconds": 60, "settings": {"metrics": []}}"#, "lines of their own"),
        (r#"{"t_seconds": 60, "pods": [{"pod": "a", "track": "Canary", "errors": NaN}]}"#, "line 62: column"),
    ] {
        let input = format!("{}\n{bad}\n{}\n", stream(1.0, 0..60), line(60, 1.0));
        let (answers, ended) = judged(&input);
        assert_eq!(answers.len(), 63, "{bad}");
        let answer = &answers[61];
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(words)), "{bad}: {answer}");
        assert_eq!((&answer["verdict"], &answer["reason"]), (&json!("Inconclusive"), &json!("UnreadableLine")));
        assert_eq!(answers[62]["reason"], "WarmingUp", "{bad}: the stream goes on");
        assert!(matches!(ended, Err(JudgeError::Unreadable(UnreadableLines { count: 1, .. }))), "{bad}");
    }
    let failed = format!("{}\nnonsense\n", stream(3.0, 0..90));
    let (answers, _) = judged(&failed);
    assert_eq!(answers[91]["verdict"], "Fail", "a Fail stays one: {}", answers[91]);
}

#[test]
fn without_settings_nothing_is_judged() {
    for (input, words) in [
        (String::new(), "line 1: no settings yet"),
        (line(1, 1.0), "line 1: no settings yet"),
        (r#"{"settings": {"metrics": []}}"#.to_owned(), "line 1: settings.metrics is empty"),
        (r#"{"settings": {"metrics": [{"name": "Errors"}], "alpha": 1}}"#.to_owned(), "unknown field `alpha`"),
        (r#"{"settings": {"metrics": [{"name": "Errors", "limit": 1}]}}"#.to_owned(), "unknown field `limit`"),
        (
            r#"{"settings": {"metrics": [{"name": "mine", "failure_condition": "result >"}]}}"#.to_owned(),
            "at character 9",
        ),
    ] {
        let (answers, ended) = judged(&input);
        let error = ended.expect_err(words);
        assert!(answers.is_empty() && sluice_error(&error).contains(words), "{input}: {}", sluice_error(&error));
    }
}

fn sluice_error(error: &dyn std::error::Error) -> String {
    let cause = error.source().map_or(String::new(), |source| format!(" {source}"));
    format!("{error}{cause}")
}

#[test]
fn other_settings_begin_another_analysis() {
    let input = format!("{}\n{SETTINGS}\n{}\n", stream(3.0, 0..90), line(3, 1.0));
    let (answers, ended) = judged(&input);
    assert!(ended.is_ok());
    assert_eq!((&answers[90]["verdict"], &answers[92]["reason"]), (&json!("Fail"), &json!("WarmingUp")));
}

#[test]
fn figures_as_prometheus_writes_them_are_read() {
    let input = format!(
        "{SETTINGS}\n{}\n",
        r#"{"t_seconds": 1, "pods": [{"pod": "a", "track": "Canary", "transactions": 3, "transaction_mean_ms": "NaN", "errors": null}], "measurements": [{"name": "mine", "series": [{"labels": "", "value": "+Inf"}, {"value": -3}, {}]}]}"#
    );
    let (answers, ended) = judged(&input);
    assert!(ended.is_ok(), "{answers:?}");
}
