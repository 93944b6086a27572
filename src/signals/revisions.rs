//! What the pods of one pool did with each revision, scrape by scrape: what a canary is judged by. Asked only while a rollout is in course.

use std::collections::BTreeMap;

use super::{PoolKey, response::RangeSeries};
use crate::{
    contract::metrics as names,
    decide::analysis::{RevisionFigure, RevisionScrape, RevisionSeries, SampledFigure},
};

/// The metric that a figure is.
const fn metric(figure: RevisionFigure) -> &'static str {
    match figure {
        RevisionFigure::Transactions => names::REVISION_TRANSACTIONS,
        RevisionFigure::BusySeconds => names::REVISION_BUSY_SECONDS,
        RevisionFigure::WaitSeconds => names::REVISION_WAIT_SECONDS,
        RevisionFigure::Assignments => names::REVISION_ASSIGNMENTS,
        RevisionFigure::LongestWaitSeconds => names::REVISION_LONGEST_WAIT,
        RevisionFigure::Errors => names::REVISION_ERRORS,
        RevisionFigure::LoginFailures => names::REVISION_LOGIN_FAILURES,
        RevisionFigure::ClientsCut => names::REVISION_CLIENTS_CUT,
    }
}

/// Everything that was scraped of these pods in the last seconds.
pub(super) fn query(pool: &PoolKey, pods: &[&str], window_seconds: u32) -> String {
    let metrics = RevisionFigure::ALL.map(metric).join("|");
    // names have dots, and no other character that means anything to a regular expression
    let pods = pods.join("|").replace('.', "[.]");
    let (name, namespace) = (names::POOL, names::POOL_NAMESPACE);
    format!(
        "{{__name__=~\"{metrics}\",{name}=\"{}\",{namespace}=\"{}\",pod=~\"{pods}\"}}[{window_seconds}s]",
        pool.name, pool.namespace
    )
}

/// What identifies the target of a series beside its pod: job, instance and the other labels.
type Target<'a> = (&'a str, &'a str, &'a str);
/// Of a pod: its series by revision and slot, and in each the figures by time in milliseconds.
type Scrapes<'a> = BTreeMap<(u64, &'a str), BTreeMap<i64, [SampledFigure; RevisionFigure::ALL.len()]>>;

/// Puts the series of an answer together: what was scraped at one time of one target belongs together. Of a pod that several jobs or
/// replicas scrape, the target counts that was scraped last; of two the first by name.
pub(super) fn together(series: &[RangeSeries], pool: &PoolKey, pods: &[&str]) -> Vec<RevisionSeries> {
    let mut by_pod: BTreeMap<&str, BTreeMap<Target, Scrapes>> = BTreeMap::new();
    for RangeSeries { metric: labels, values } in series {
        let is_near = labels.namespace.is_empty() || labels.namespace == pool.namespace;
        let figure = RevisionFigure::ALL.into_iter().find(|figure| metric(*figure) == labels.name);
        let (Some(figure), Ok(revision), true) = (figure, labels.revision.parse(), is_near) else { continue };
        let Some(pod) = pods.iter().find(|pod| **pod == labels.pod) else { continue };
        let target = (&*labels.job, &*labels.instance, labels.others.as_str());
        let of_target = by_pod.entry(pod).or_default().entry(target).or_default();
        let scrapes = of_target.entry((revision, &*labels.slot)).or_default();
        for (at, value) in values {
            let value = value.parse::<f64>().map_or(SampledFigure::Unusable, SampledFigure::from);
            let figures =
                scrapes.entry(milliseconds(*at)).or_insert([SampledFigure::Absent; RevisionFigure::ALL.len()]);
            figures[figure as usize] = value;
        }
    }
    let mut all = Vec::new();
    for (pod, targets) in by_pod {
        let last = |scrapes: &Scrapes| scrapes.values().filter_map(|scrapes| scrapes.keys().next_back().copied()).max();
        // the first of those that are equal
        let chosen = targets.into_values().rev().max_by_key(|scrapes| last(scrapes));
        for ((revision, slot), scrapes) in chosen.unwrap_or_default() {
            let scrape = |(at, figures): (i64, _)| RevisionScrape { at_seconds: seconds(at), figures };
            let (pod, slot) = (pod.to_owned(), slot.to_owned());
            all.push(RevisionSeries { pod, revision, slot, scrapes: scrapes.into_iter().map(scrape).collect() });
        }
    }
    all
}

#[allow(clippy::cast_possible_truncation)] // a time; saturates
fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}

fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(series: &str) -> Vec<RevisionSeries> {
        let series: Vec<RangeSeries> = serde_json::from_str(series).expect("series");
        together(&series, &PoolKey::new("ns", "shop"), &["shop-0", "shop-1"])
    }

    fn one(name: &str, labels: &str, values: &str) -> String {
        format!(
            r#"{{"metric": {{"__name__": "{name}", "pool": "shop", "pool_namespace": "ns", {labels}}}, "values": [{values}]}}"#
        )
    }

    #[test]
    fn the_query_names_the_pool_and_its_pods_and_no_other() {
        let query = query(&PoolKey::new("ns", "shop"), &["shop-0", "shop.1"], 150);
        assert!(query.starts_with("{__name__=~\"sluice_revision_transactions_total|"), "{query}");
        assert!(query.ends_with("pool=\"shop\",pool_namespace=\"ns\",pod=~\"shop-0|shop[.]1\"}[150s]"), "{query}");
    }

    #[test]
    fn what_was_scraped_together_belongs_together_by_pod_revision_and_slot() {
        let pod = r#""namespace": "ns", "pod": "shop-0", "job": "j", "instance": "i", "revision": "7", "slot": "b""#;
        let text = [
            one("sluice_revision_transactions_total", pod, r#"[10.001, "4"], [11.001, "8"]"#),
            one("sluice_revision_errors_total", pod, r#"[10.001, "0"], [11.001, "NaN"]"#),
            one("sluice_revision_transactions_total", &pod.replace("shop-0", "other"), r#"[10, "4"]"#),
            one("sluice_revision_transactions_total", &pod.replace("\"ns\"", "\"elsewhere\""), r#"[12, "9"]"#),
            one("sluice_revision_transactions_total", &pod.replace("\"7\"", "\"seven\""), r#"[10, "4"]"#),
        ];
        let read = answer(&format!("[{}]", text.join(",")));
        assert_eq!(read.len(), 1, "{read:?}");
        assert_eq!((read[0].pod.as_str(), read[0].revision, read[0].slot.as_str()), ("shop-0", 7, "b"));
        let [first, second] = read[0].scrapes.as_slice() else { panic!("{read:?}") };
        assert_eq!((first.at_seconds, first.figures[0], first.figures[5]), (10.001, 4.0.into(), 0.0.into()));
        assert_eq!((second.figures[0], second.figures[5]), (8.0.into(), SampledFigure::Unusable));
        assert_eq!(second.figures[1], SampledFigure::Absent);
    }

    #[test]
    fn of_a_pod_that_two_jobs_scrape_the_one_counts_that_was_there_last() {
        let of = |job: &str, values: &str| {
            let labels = format!(r#""pod": "shop-0", "job": "{job}", "instance": "i", "revision": "7", "slot": "b""#);
            one("sluice_revision_transactions_total", &labels, values)
        };
        let read = answer(&format!("[{},{}]", of("a", r#"[10, "4"]"#), of("b", r#"[10, "4"], [11, "5"]"#)));
        assert_eq!((read.len(), read[0].scrapes.len()), (1, 2));
        let read = answer(&format!("[{},{}]", of("b", r#"[10, "4"]"#), of("a", r#"[10, "3"]"#)));
        assert_eq!(read[0].scrapes[0].figures[0], 3.0.into(), "the first by name");
    }
}
