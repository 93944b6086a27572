//! A setting that needs a new pooler process, on a real node: no connection is lost, and no more are open than allowed.

use std::time::Duration;

use crate::{
    cluster::{kubectl, psql, run, until, until_condition, with_operator},
    shop::{agent, client_failures, data_plane, database, pods, shop_scaled, start, status},
};

const MINUTE: Duration = Duration::from_mins(1);
const NAMESPACE: &str = "switching";
const MAX_ALLOWED: u64 = 20;

/// Server connections of the shop's pods, as the database counts them.
fn open(addresses: &[String]) -> u64 {
    let list: Vec<String> = addresses.iter().map(|address| format!("inet '{address}'")).collect();
    let count = psql(&format!("SELECT count(*) FROM pg_stat_activity WHERE client_addr IN ({})", list.join(", ")));
    count.trim().parse().expect("a count")
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn a_setting_that_needs_a_new_process_reaches_every_pod_under_load_without_losing_a_connection() {
    let _operator = with_operator();
    database();
    start(&shop_scaled(NAMESPACE, &format!("minAllowed: 2, maxAllowed: {MAX_ALLOWED}")), NAMESPACE);
    until_condition(NAMESPACE, "shop", "Proven", "True", MINUTE);
    let before = data_plane(NAMESPACE);
    let address = |pod: &serde_json::Value| pod["status"]["podIP"].as_str().expect("an address").to_owned();
    let addresses: Vec<String> = pods(NAMESPACE).iter().map(address).collect();

    kubectl(&format!(
        "patch connectionpool shop --namespace={NAMESPACE} --type=merge --patch={{\"spec\":{{\"pgbouncer\":{{\"parameters\":{{\"pkt_buf\":\"8192\"}}}}}}}}"
    ));
    let mut most = 0;
    until("revision 2 runs everywhere", 3 * MINUTE, || {
        most = most.max(open(&addresses));
        let status = status(NAMESPACE);
        if status["revision"]["stable"] == 2 { Ok(()) } else { Err(status["conditions"].to_string()) }
    });
    println!("at most {most} server connections were open while two processes ran in each pod");
    assert!(most > 0 && most <= MAX_ALLOWED, "{most} of {MAX_ALLOWED}");
    until_condition(NAMESPACE, "shop", "Proven", "True", MINUTE);
    for pod in pods(NAMESPACE) {
        let metrics = agent(&pod, "metrics").expect("metrics");
        let switched = metrics.lines().find(|line| line.contains("result=\"Switched\"")).unwrap_or_default();
        assert!(switched.ends_with(" 1"), "{switched} in {metrics}");
    }
    // a client that comes now is led to the new process, and those that were there before go on
    let command = ["exec", "deployment/shop", "--namespace", NAMESPACE, "--container=orders", "--"];
    assert_eq!(run("kubectl", &[&command[..], &["psql", "-qXAtc", "SELECT 1"]].concat()), "1\n");
    assert_eq!(client_failures(NAMESPACE), Vec::<String>::new(), "clients lost something");
    assert_eq!(data_plane(NAMESPACE), before, "a container was restarted");
    kubectl(&format!("delete namespace {NAMESPACE} --wait=false"));
}
