//! `sluice divide` on good and bad lines.

use serde_json::{Value, json};
use sluice::cli::{
    divide::{DivideError, divide_lines},
    lines::UnreadableLines,
};

fn divided(input: &[u8]) -> (Vec<Value>, Result<(), DivideError>) {
    let mut output = Vec::new();
    let ended = divide_lines(input, &mut output);
    let text = String::from_utf8(output).expect("JSON is UTF-8");
    (text.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect(), ended)
}

fn answer(problem: &Value) -> Value {
    let (mut answers, ended) = divided(problem.to_string().as_bytes());
    assert!(ended.is_ok(), "{answers:?}");
    answers.remove(0)
}

/// The example of the guide: reports has what checkout needs now.
fn guide() -> Value {
    json!({"capacity": 80, "reserved": 12, "others": 8, "pools": [
        {"name": "checkout", "priority": 10, "minimum": 5, "maximum": 60, "share": 10, "pods": [
            {"name": "checkout-a", "demand": 14, "granted": 5, "held": 5}, {"name": "checkout-b", "demand": 11, "granted": 5, "held": 5}]},
        {"name": "orders", "weight": 300, "minimum": 5, "maximum": 60, "share": 20, "pods": [
            {"name": "orders-a", "demand": 24.5, "granted": 20, "held": 20}]},
        {"name": "reports", "minimum": 5, "maximum": 60, "share": 30, "pods": [
            {"name": "reports-a", "demand": 50, "granted": 30, "held": 30},
            {"name": "reports-b", "phase": "Unscheduled"}]}]})
}

#[test]
fn the_answer_says_what_each_pool_and_pod_gets_and_why_and_what_to_write_now() {
    let answer = answer(&guide());
    insta::with_settings!({snapshot_path => "divide"}, {
        insta::assert_snapshot!("guide", serde_json::to_string_pretty(&answer).expect("JSON"));
    });
}

#[test]
fn what_the_guide_shows_is_what_comes_out() {
    let guide_text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/budget.md")).expect("the guide");
    // examples stand indented, over several lines each
    let blocks: Vec<Value> = guide_text
        .split("\n\n")
        .filter(|block| block.starts_with("    {"))
        .map(|block| serde_json::from_str(block).expect("JSON"))
        .collect();
    let [problem, shown] = &blocks[..] else { panic!("the guide shows a problem and its answer: {blocks:?}") };
    assert_eq!(problem, &guide());
    assert_eq!(shown, &answer(problem));
}

/// The cases of an enum in a source.
fn cases<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let (_, rest) = source.split_once(&format!("pub enum {name} {{")).expect("the enum");
    let (body, _) = rest.split_once("\n}").expect("its end");
    body.lines().filter_map(|line| line.trim().strip_suffix(',')).filter(|line| !line.starts_with('/')).collect()
}

#[test]
fn every_reason_of_a_pool_and_of_a_pod_stands_in_the_guide() {
    let text = |path: &str| {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file")
    };
    let limits = text("src/decide/budget/entitlement.rs");
    let (pods, guide) = (text("src/decide/budget/mod.rs"), text("docs/budget.md"));
    let names = [cases(&limits, "ShareLimit"), cases(&pods, "PodReason")].concat();
    assert_eq!(names.len(), 16, "{names:?}");
    for name in names {
        assert!(guide.contains(&format!("`{name}`")), "docs/budget.md does not explain {name}");
    }
}

#[test]
fn answers_that_are_carried_out_and_asked_again_lead_to_what_each_is_entitled_to() {
    let mut problem = guide();
    for _ in 0..6 {
        let answer = answer(&problem);
        let granted: u64 =
            answer["pools"].as_array().expect("pools").iter().filter_map(|pool| pool["granted"].as_u64()).sum();
        assert!(granted <= 60, "{answer}");
        for (pool, got) in
            problem["pools"].as_array_mut().expect("pools").iter_mut().zip(answer["pools"].as_array().expect("pools"))
        {
            pool["share"] = got["share"].clone();
            for (pod, got) in
                pool["pods"].as_array_mut().expect("pods").iter_mut().zip(got["pods"].as_array().expect("pods"))
            {
                pod["least"] = got["least"].clone();
                // the agent has done it and says so
                (pod["share"], pod["granted"], pod["held"]) =
                    (got["share"].clone(), got["granted"].clone(), got["share"].clone());
            }
        }
    }
    let last = answer(&problem);
    assert_eq!(last["writes"], json!([]), "{last}");
    for pool in last["pools"].as_array().expect("pools") {
        assert_eq!((&pool["share"], &pool["granted"]), (&pool["entitled"], &pool["entitled"]), "{pool}");
    }
}

#[test]
fn a_pool_alone_has_all_there_is_whatever_is_left_out() {
    let answer = answer(&json!({"id": "x-1", "capacity": 20, "pools": [{"name": "a", "pods": [{"name": "p"}]}]}));
    assert_eq!((&answer["id"], &answer["divisible"]), (&json!("x-1"), &json!(20)));
    let pool = &answer["pools"][0];
    assert_eq!(
        (&pool["entitled"], &pool["limited_by"], &pool["pods"][0]["reason"]),
        (&json!(20), &json!("Nothing"), &json!("Raised"))
    );
}

#[test]
fn the_order_of_pools_and_pods_changes_nothing_but_the_order_of_the_answer() {
    let mut turned = guide();
    turned["pools"].as_array_mut().expect("pools").reverse();
    turned["pools"][2]["pods"].as_array_mut().expect("pods").reverse();
    let (first, second) = (answer(&guide()), answer(&turned));
    assert_eq!(first["writes"], second["writes"]);
    for index in 0..3 {
        assert_eq!(first["pools"][index]["message"], second["pools"][2 - index]["message"]);
    }
}

#[test]
fn a_line_that_cannot_be_is_told_by_line_and_field_the_others_are_divided_and_the_exit_is_bad() {
    let good = guide().to_string();
    let with = |change: Value| {
        let mut line = guide();
        json_patch::merge(&mut line, &change);
        line.to_string()
    };
    let in_pool = |change: Value| {
        let mut line = guide();
        json_patch::merge(&mut line["pools"][1], &change);
        line.to_string()
    };
    let in_pod = |change: Value| {
        let mut line = guide();
        json_patch::merge(&mut line["pools"][0]["pods"][1], &change);
        line.to_string()
    };
    for (bad, words) in [
        ("{".to_owned(), "line 2: column 1: EOF"),
        ("[1, 2]".to_owned(), "line 2: the line is [1,2]; expected an object"),
        ("null".to_owned(), "line 2: the line is null"),
        ("\u{0}".to_owned(), "line 2: column 1"),
        (r#"{"capacity": NaN, "pools": []}"#.to_owned(), "line 2: column 14"),
        (with(json!({"capacity": null})), "capacity is missing"),
        (with(json!({"capacity": 0})), "capacity is 0; expected a whole number from 1 to 100000"),
        (with(json!({"capacity": -5})), "capacity is -5; expected a whole number"),
        (with(json!({"capacity": 12.5})), "capacity is 12.5; expected a whole number"),
        (with(json!({"capacity": "60"})), "capacity is \"60\"; expected a whole number"),
        (with(json!({"reserved": -1})), "reserved is -1"),
        (with(json!({"others": 1e12})), "others is 1000000000000.0"),
        (with(json!({"pools": null})), "pools is missing"),
        (with(json!({"pools": {}})), "pools is {}; expected a list"),
        (with(json!({"pools": [7]})), "pools[0] is 7; expected an object"),
        (with(json!({"capcity": 7})), "capcity is no field; known are id, capacity"),
        (in_pool(json!({"name": null})), "pools[1].name is missing"),
        (in_pool(json!({"name": ""})), "pools[1].name is \"\"; expected a name"),
        (in_pool(json!({"name": "checkout"})), "pools[1].name is \"checkout\", which one before has"),
        (in_pool(json!({"weight": 0})), "pools[1].weight is 0; expected a whole number from 1 to 1000"),
        (in_pool(json!({"priority": 5000})), "pools[1].priority is 5000; expected a whole number from -1000 to 1000"),
        (in_pool(json!({"minimum": 61})), "pools[1].minimum is 61; expected at most its maximum, 60"),
        (in_pool(json!({"maximum": 0})), "pools[1].maximum is 0"),
        (in_pool(json!({"pods": null})), "pools[1].pods is missing"),
        (in_pool(json!({"wieght": 3})), "pools[1].wieght is no field; known are name, weight"),
        (in_pool(json!({"borrowed_seconds_ago": -1})), "pools[1].borrowed_seconds_ago is -1; expected a number from 0"),
        (in_pod(json!({"name": "checkout-a"})), "pools[0].pods[1].name is \"checkout-a\", which one before has"),
        (in_pod(json!({"floor": 0})), "pools[0].pods[1].floor is 0; expected a whole number from 1 to 1000"),
        (in_pod(json!({"demand": -0.5})), "pools[0].pods[1].demand is -0.5; expected a number from 0"),
        (in_pod(json!({"demand": "NaN"})), "pools[0].pods[1].demand is \"NaN\""),
        (in_pod(json!({"granted": -3})), "pools[0].pods[1].granted is -3"),
        (in_pod(json!({"share": 6})), "pools[0].pods[1].share is 6; expected at most what is granted, 5"),
        (in_pod(json!({"held": 2.5})), "pools[0].pods[1].held is 2.5"),
        (
            in_pod(json!({"phase": "Gone"})),
            "pools[0].pods[1].phase is \"Gone\"; expected one of Running, Unscheduled, Terminating",
        ),
    ] {
        let (answers, ended) = divided(format!("{good}\n{bad}\n\n{good}\n").as_bytes());
        assert_eq!(answers.len(), 3, "{bad}");
        let error = answers[1]["error"].as_str().unwrap_or_default();
        assert!(error.starts_with("line 2: ") && error.contains(words), "{bad}: {error}");
        assert_eq!(answers[0], answers[2], "{bad}: the other lines are divided");
        assert!(matches!(ended, Err(DivideError::Unreadable(UnreadableLines { count: 1, .. }))), "{bad}");
    }
    let long = [b"[".repeat(33 << 20), b"\n".to_vec(), good.into_bytes()].concat();
    let (answers, _) = divided(&long);
    assert!(answers[0]["error"].is_string() && answers[1]["pools"].is_array(), "a line without end");
}

#[test]
fn five_thousand_pods_are_one_line() {
    let pools: Vec<Value> = (0..500)
        .map(|pool| {
            let pods: Vec<Value> = (0..10)
                .map(|pod| json!({"name": format!("pod-{pod}"), "demand": f64::from((pool * 7 + pod * 3) % 13)}))
                .collect();
            json!({"name": format!("pool-{pool}"), "weight": 1 + pool % 9, "priority": pool % 3, "minimum": 5, "maximum": 200, "pods": pods})
        })
        .collect();
    let answer = answer(&json!({"capacity": 20_000, "pools": pools}));
    let sum = |field: &str| {
        answer["pools"].as_array().expect("pools").iter().filter_map(|pool| pool[field].as_u64()).sum::<u64>()
    };
    assert_eq!((sum("entitled"), sum("share")), (20_000, 20_000));
}
