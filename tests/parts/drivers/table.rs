//! The tables of docs/drivers.md that follow from a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    program::Introduction,
    recorder::Startup,
    verdict::{Cause, KNOWN, WRONG},
};

fn row(out: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<String> = cells.into_iter().collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn joined(words: &BTreeSet<String>) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Versions, and what each sends before it is logged in; then what works.
pub fn tables(drivers: &BTreeMap<String, Introduction>, startups: &BTreeMap<String, Startup>) -> String {
    let mut out = String::new();
    row(&mut out, ["driver", "version", "asks first for", "protocol", "startup parameters"].map(str::to_owned));
    row(&mut out, ["---"; 5].map(str::to_owned));
    for (name, driver) in drivers {
        let startup = startups.get(name).cloned().unwrap_or_default();
        let requests: Vec<&str> = startup.requests.iter().copied().collect();
        let protocols: Vec<String> = startup.protocols.iter().cloned().collect();
        let cells = [requests.join(", "), protocols.join(", "), joined(&startup.parameters)];
        row(&mut out, [format!("`{name}`"), driver.version.clone()].into_iter().chain(cells));
    }
    out.push('\n');
    let operations: BTreeSet<&str> =
        drivers.values().flat_map(|driver| driver.operations.iter().map(String::as_str)).collect();
    row(&mut out, std::iter::once("operation".to_owned()).chain(drivers.keys().map(|name| format!("`{name}`"))));
    row(&mut out, std::iter::repeat_n("---".to_owned(), drivers.len() + 1));
    for operation in operations {
        let cells = drivers.iter().map(|(name, driver)| {
            if !driver.operations.iter().any(|offered| offered == operation) {
                return String::new();
            }
            let known = KNOWN.iter().find(|known| known.driver == name && known.operation == operation);
            let Some(known) = known else { return "works".to_owned() };
            let codes = known.codes.iter().map(|code| if *code == WRONG { "wrong answers" } else { *code });
            let codes = codes.collect::<Vec<_>>().join(", ");
            match known.cause {
                Cause::TransactionPooling => format!("**pooling**: {codes}"),
                Cause::Driver => format!("driver: {codes}"),
                Cause::OldPooler => "from 1.26.1 on".to_owned(),
            }
        });
        row(&mut out, std::iter::once(format!("`{operation}`")).chain(cells));
    }
    out
}
