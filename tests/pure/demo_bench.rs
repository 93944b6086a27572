//! The printed figures of `benches/results/demo` are those of its raw samples.

use std::{fs, path::Path};

#[path = "../../benches/demo/report.rs"]
mod report;

use report::{as_good_as_sluice, from_csv, picture, rows, table, to_csv};

fn kept(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/demo").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_printed_figures_of_the_demo_bench_come_from_its_samples() {
    let csv = kept("samples.csv");
    let samples = from_csv(&csv).expect("samples");
    assert_eq!(to_csv(&samples), csv);
    let rows = rows(&samples);
    assert_eq!(table(&rows), kept("table.md"));
    assert_eq!(picture(&rows), kept("picture.svg"));
    let rivals: Vec<_> = as_good_as_sluice(&rows).into_iter().map(|row| row.policy.clone()).collect();
    assert_eq!(rivals, Vec::<String>::new(), "as good as Sluice in all three");
}
