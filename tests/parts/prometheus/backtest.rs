//! `sluice backtest --prometheus`: the binary asks the real Prometheus for what it remembers of a pool.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, Output},
};

use sluice::contract::metrics;

use super::{now_seconds, server::Prometheus};

const HOUR_SECONDS: i64 = 3600;
const SCRAPE_SECONDS: i64 = 15;
/// Transactions per second of each pod, and how long each takes: two server connections are busy.
const RATE: f64 = 20.0;
const SERVICE_SECONDS: f64 = 0.1;

/// An hour of two pods of the pool `shop/shop`, and of one of another pool under ten times the load.
fn history(start: i64) -> String {
    let labels = |pool: &str, pod: &str| {
        format!("{}=\"shop\",{}=\"{pool}\",namespace=\"shop\",pod=\"{pod}\"", metrics::POOL_NAMESPACE, metrics::POOL)
    };
    let pods =
        [(labels("shop", "shop-1"), RATE), (labels("shop", "shop-2"), RATE), (labels("other", "other-1"), 10.0 * RATE)];
    let mut text = String::new();
    // all of one metric stand together
    let mut metric = |name: &str, kind: &str, more: &str, value: &dyn Fn(f64, f64) -> f64| {
        if !kind.is_empty() {
            writeln!(text, "# TYPE {} {kind}", name.trim_end_matches("_total")).unwrap();
        }
        for (labels, rate) in &pods {
            for step in 0..=HOUR_SECONDS / SCRAPE_SECONDS {
                let seconds = step * SCRAPE_SECONDS;
                let value = value(*rate, seconds as f64);
                writeln!(text, "{name}{{{labels}{more}}} {value} {}", start + seconds).unwrap();
            }
        }
    };
    metric(metrics::TRANSACTIONS, "counter", "", &|rate, seconds| rate * seconds);
    metric(metrics::BUSY_SECONDS, "counter", "", &|rate, seconds| rate * seconds * SERVICE_SECONDS);
    metric(metrics::SERVER_CONNECTIONS, "gauge", ",state=\"active\"", &|rate, _| rate * SERVICE_SECONDS);
    metric(metrics::CLIENT_CONNECTIONS, "gauge", ",state=\"waiting\"", &|_, _| 0.0);
    metric(metrics::LIMIT, "gauge", "", &|_, _| 7.0);
    text + "# EOF\n"
}

fn backtest(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.arg("backtest").args(args).current_dir(directory).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn what_prometheus_remembers_of_a_pool_is_replayed_and_can_be_saved_for_later() {
    #[allow(clippy::cast_possible_truncation)] // seconds since 1970
    let end = now_seconds() as i64 - 2 * HOUR_SECONDS;
    let start = end - HOUR_SECONDS;
    let prometheus = Prometheus::start_remembering(&history(start)).await;
    let directory = tempfile::tempdir().unwrap();
    let url = format!("http://{}", prometheus.address);
    let (start, end) = (start.to_string(), end.to_string());
    let range = ["--prometheus", url.as_str(), "--start", &start, "--end", &end, "--min", "1", "--max", "20"];

    let of_shop = [&range[..], &["--pool", "shop/shop", "--save", "answer.json", "--svg", "live.svg"]].concat();
    let live = backtest(directory.path(), &of_shop);
    let table = said(&live);
    assert!(live.status.success(), "{table}");
    assert!(table.starts_with("shop/shop: 1.0 h of load on 2 pod(s), size 1 to 20 per pod"), "{table}");
    assert!(table.contains("Adaptive, operator (15 s)"), "{table}");
    assert!(table.contains("fixed 7 "), "compared with what the pods had: {table}");
    let picture = std::fs::read_to_string(directory.path().join("live.svg")).unwrap();
    assert!(picture.contains("shop/shop"), "the picture names the pool");

    // the other pool's load is ten times as much and stays its own
    let saved = backtest(directory.path(), &["answer.json", "--min", "1", "--max", "20", "--svg", "saved.svg"]);
    assert!(saved.status.success(), "{}", said(&saved));
    let figures = |text: &str| text.lines().filter(|line| line.contains(" s)")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(figures(&said(&saved)), figures(&table), "the saved answer replays to the same figures");

    let nobody = [&range[..], &["--pool", "shop/nobody"]].concat();
    let nobody = backtest(directory.path(), &nobody);
    assert!(!nobody.status.success() && said(&nobody).contains("no transactions"), "{}", said(&nobody));
    drop(prometheus);
    let gone = backtest(directory.path(), &of_shop);
    assert!(!gone.status.success() && said(&gone).contains(&format!("query {url}")), "{}", said(&gone));
}
