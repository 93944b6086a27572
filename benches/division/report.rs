//! PURE: from the samples of `division` to the printed figures.

use std::fmt::Write as _;

use super::statistics::{column, median, quantile, rows};

/// The most that our division may take of the time of Multigres.
const MOST_OF_MULTIGRES: f64 = 0.25;
/// Who divided, as the column and the table call them.
const WHO: [(&str, &str); 3] = [
    ("entitled", "Sluice, what everyone is entitled to"),
    ("step", "Sluice, a whole step of the ledger"),
    ("multigres", "Multigres' allocator"),
];
/// How much there was, as the column and the table call it.
const ROOMS: [(&str, &str); 2] = [("scarce", "half of the demand"), ("ample", "twice the demand")];

/// The printed figures.
pub fn report(samples: &str) -> Result<String, String> {
    let mut text = String::from(
        "# Division\n\n5,000 pods. Handed out: of what there is. Again: pods that get something else when the same is divided a second time.\n\n\
         | there is | who | median | p99 | handed out | pods with nothing | again |\n|---|---|---|---|---|---|---|\n",
    );
    let all = rows(samples)?;
    let mut goals = String::new();
    for (room, room_in_words) in ROOMS {
        let mut medians = Vec::new();
        for (who, name) in WHO {
            if !all.iter().any(|row| row.is("who", who)) {
                continue;
            }
            let of = |figure: &str| column(samples, figure, |row| row.is("who", who) && row.is("room", room));
            let times = of("nanoseconds")?;
            if times.is_empty() {
                continue;
            }
            let [given, capacity, without, others] = ["given", "capacity", "without", "others_again"].map(of);
            let part = 100.0 * given?.iter().sum::<f64>() / capacity?.iter().sum::<f64>();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {room_in_words} | {name} | {:.3} ms | {:.3} ms | {part:.2} % | {:.0} | {:.0} |",
                median(&times) / 1e6,
                quantile(&times, 0.99) / 1e6,
                median(&without?),
                median(&others?),
            );
            medians.push((who, median(&times)));
        }
        let of = |wanted: &str| medians.iter().find(|(who, _)| *who == wanted).map(|(_, median)| *median);
        if let (Some(ours), Some(theirs)) = (of("entitled"), of("multigres")) {
            let part = ours / theirs;
            let verdict = if part <= MOST_OF_MULTIGRES { "reached" } else { "MISSED" };
            let _ = writeln!(
                goals,
                "- At most {MOST_OF_MULTIGRES} of the time of Multigres, of {room_in_words}, by weight, priority and minimum: {part:.2}, {verdict}"
            );
        }
    }
    if !goals.is_empty() {
        let _ = write!(text, "\n{goals}");
    }
    let count = column(samples, "round", |row| row.is("who", "entitled") && row.is("room", "scarce"))?.len();
    let _ = writeln!(text, "\n{count} lists of demands, one thread, in turn.");
    Ok(text)
}
