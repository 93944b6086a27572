//! What the pods of one pool did with the revisions of a rollout, scrape by scrape: what a canary is judged by. Asked only while a rollout is
//! in course.
//!
//! Any pod may export any series, so of each pod a few sets of them are kept and so many scrapes, and of all pods of a pool together: who
//! exports more is left out and named. What belongs to no pod and no revision that is asked for is not kept at all.

use super::{
    PoolKey,
    collect::{MOST_SCRAPES, MOST_SETS, RefusedSeries, SeriesRefusal, Target},
    intake::Take,
    response::{Labels, Series},
};
use crate::{
    contract::metrics as names,
    decide::analysis::{RevisionFigure, RevisionScrape, RevisionSeries, SampledFigure},
};

/// Series of one set that are kept: of two revisions in two slots.
const MOST_OF_A_SET: usize = 4;
/// Longest name of a slot that is kept, in bytes.
const LONGEST_SLOT: usize = 16;
/// Scrapes that are kept of all pods together, of 136 bytes each: 60 pods for 18 minutes with one every second, for an hour with one
/// every 4 s.
pub(super) const MOST_SCRAPES_OF_ALL: usize = 65_536;

/// What was scraped of the pods of a rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RevisionReadings {
    /// What they did, of each pod by revision and slot.
    pub series: Vec<RevisionSeries>,
    /// The first pod that exports more than is kept, and how many there are: nothing of them is in the series.
    pub refused: Option<RefusedSeries>,
}

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

/// The pods of a pool, and the two revisions that are of interest of them.
#[derive(Clone, Copy, Debug)]
pub struct RolloutPods<'a> {
    /// The pool.
    pub pool: &'a PoolKey,
    /// Names of its pods.
    pub pods: &'a [&'a str],
    /// Numbers of the revisions.
    pub revisions: [u64; 2],
}

impl RolloutPods<'_> {
    /// Everything that was scraped of them in the last seconds. A pod of another namespace that names the pool and has a name in common
    /// with one of its pods is not asked for.
    pub(super) fn query(&self, window_seconds: u32) -> String {
        let metrics = RevisionFigure::ALL.map(metric).join("|");
        // names have dots, and no other character that means anything to a regular expression
        let pods = self.pods.join("|").replace('.', "[.]");
        let [one, other] = self.revisions;
        let PoolKey { namespace: of, name } = self.pool;
        let (pool, namespace, revision) = (names::POOL, names::POOL_NAMESPACE, names::OF_REVISION);
        format!(
            "{{__name__=~\"{metrics}\",{pool}=\"{name}\",{namespace}=\"{of}\",namespace=~\"{of}|\",pod=~\"{pods}\",\
             {revision}=~\"{one}|{other}\"}}[{window_seconds}s]"
        )
    }
}

/// Puts the series of an answer together, in any order: what was scraped at one time of one target belongs together.
#[derive(Debug)]
pub(super) struct RevisionCollector {
    pool: PoolKey,
    revisions: [u64; 2],
    /// By name.
    pods: Vec<(String, Sets)>,
    /// Of all pods.
    scrapes: usize,
    refused: Option<RefusedSeries>,
}

/// What was scraped of one pod.
#[derive(Debug)]
enum Sets {
    /// Of each target that it was scraped as.
    Kept(Vec<(Target, Vec<RevisionSeries>)>),
    /// More than is kept.
    TooMany,
}

/// What an answer has said.
#[derive(Debug, Default)]
pub(super) struct CollectedRevisions {
    pub readings: RevisionReadings,
    /// All pods together have more scrapes than are kept: then there are no series.
    pub is_too_much: bool,
}

impl RevisionCollector {
    /// Takes in what was scraped of these pods, and of no others.
    pub fn of(asked: RolloutPods) -> Self {
        let mut pods: Vec<_> = asked.pods.iter().map(|pod| ((*pod).to_owned(), Sets::Kept(Vec::new()))).collect();
        pods.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Self { pool: asked.pool.clone(), revisions: asked.revisions, pods, scrapes: 0, refused: None }
    }

    /// Which figure a series is, of which revision, and where its pod stands; none of what was not asked for.
    fn place(&self, labels: &Labels) -> Option<(RevisionFigure, u64, usize)> {
        let is_of_pool = labels.pool == self.pool.name && labels.pool_namespace == self.pool.namespace;
        // a configuration without the label `namespace` leaves it to the agent
        let is_near = labels.namespace.is_empty() || labels.namespace == self.pool.namespace;
        let figure = RevisionFigure::ALL.into_iter().find(|figure| metric(*figure) == labels.name)?;
        let revision = labels.revision.parse().ok().filter(|revision| self.revisions.contains(revision))?;
        let place = self.pods.binary_search_by(|(pod, _)| pod.as_str().cmp(&labels.pod)).ok()?;
        (is_of_pool && is_near).then_some((figure, revision, place))
    }

    /// Leaves a pod out, and forgets what has come of it.
    fn leave_out(&mut self, place: usize, refusal: SeriesRefusal, figure: RevisionFigure) {
        let (pod, sets) = &mut self.pods[place];
        if let Sets::Kept(sets) = std::mem::replace(sets, Sets::TooMany) {
            self.scrapes -= scrapes(&sets);
            match &mut self.refused {
                Some(refused) => refused.count += 1,
                none => *none = Some(RefusedSeries::first(refusal, self.pool.clone(), pod, metric(figure), "")),
            }
        }
    }

    fn is_too_much(&self) -> bool {
        self.scrapes > MOST_SCRAPES_OF_ALL
    }
}

impl Take for RevisionCollector {
    type Taken = CollectedRevisions;

    fn take(&mut self, series: &Series) {
        let Series { metric: labels, values, .. } = series;
        if self.is_too_much() {
            return;
        }
        let Some((figure, revision, place)) = self.place(labels) else { return };
        let (pod, Sets::Kept(sets)) = &mut self.pods[place] else { return };
        let before = scrapes(sets);
        let kept = match find(sets, labels, revision, pod) {
            Some(kept) if values.len() <= MOST_SCRAPES => kept,
            Some(_) => return self.leave_out(place, SeriesRefusal::TooManyScrapes, figure),
            None => return self.leave_out(place, SeriesRefusal::TooManySets, figure),
        };
        put(&mut kept.scrapes, figure, values);
        let after = scrapes(sets);
        self.scrapes += after - before;
        if after > MOST_SCRAPES {
            self.leave_out(place, SeriesRefusal::TooManyScrapes, figure);
        } else if self.is_too_much() {
            for (_, sets) in &mut self.pods {
                if let Sets::Kept(sets) = sets {
                    *sets = Vec::new();
                }
            }
        }
    }

    fn pass_over(&mut self, begun: &[u8]) -> bool {
        let Some(labels) = Labels::of_begun(begun) else { return false };
        if let Some((figure, _, place)) = self.place(&labels) {
            self.leave_out(place, SeriesRefusal::TooManyScrapes, figure);
        }
        true
    }

    /// Of a pod that several jobs or replicas scrape, the target counts that was scraped last; of two the first by name.
    fn taken(self) -> CollectedRevisions {
        let is_too_much = self.is_too_much();
        let last = |series: &[RevisionSeries]| {
            let last = series.iter().filter_map(|series| series.scrapes.last());
            last.map(|scrape| scrape.at_seconds).fold(f64::NEG_INFINITY, f64::max)
        };
        let mut all = Vec::new();
        for (_, sets) in self.pods {
            let Sets::Kept(sets) = sets else { continue };
            let chosen = sets.into_iter().min_by(|(one, of_one), (other, of_other)| {
                last(of_other).total_cmp(&last(of_one)).then_with(|| one.cmp(other))
            });
            let mut series = chosen.map(|(_, series)| series).unwrap_or_default();
            series.sort_by(|one, other| (one.revision, &one.slot).cmp(&(other.revision, &other.slot)));
            all.extend(series);
        }
        CollectedRevisions { readings: RevisionReadings { series: all, refused: self.refused }, is_too_much }
    }
}

/// Where the scrapes of a series belong that has these labels; none where the pod has more than are kept.
fn find<'a>(
    sets: &'a mut Vec<(Target, Vec<RevisionSeries>)>,
    labels: &Labels,
    revision: u64,
    pod: &str,
) -> Option<&'a mut RevisionSeries> {
    let at = match sets.iter().position(|(target, _)| target.has(labels)) {
        Some(at) => at,
        None if sets.len() < MOST_SETS => {
            sets.push((Target::of(labels)?, Vec::with_capacity(1)));
            sets.len() - 1
        }
        None => return None,
    };
    let (_, series) = sets.get_mut(at)?;
    let at = match series.iter().position(|series| series.revision == revision && series.slot == labels.slot) {
        Some(at) => at,
        None if series.len() < MOST_OF_A_SET && labels.slot.len() <= LONGEST_SLOT => {
            let (pod, slot) = (pod.to_owned(), labels.slot.clone().into_owned());
            series.push(RevisionSeries { pod, revision, slot, scrapes: Vec::new() });
            series.len() - 1
        }
        None => return None,
    };
    series.get_mut(at)
}

/// How many scrapes of one pod are kept.
fn scrapes(sets: &[(Target, Vec<RevisionSeries>)]) -> usize {
    sets.iter().flat_map(|(_, series)| series).map(|series| series.scrapes.len()).sum()
}

/// Puts the values of one figure beside those of the others that were scraped at the same time.
fn put(scrapes: &mut Vec<RevisionScrape>, figure: RevisionFigure, values: &[(f64, &str)]) {
    let mut merged: Vec<RevisionScrape> = Vec::with_capacity(scrapes.len().max(values.len()));
    let mut known = std::mem::take(scrapes).into_iter().peekable();
    for (at, value) in values {
        let at_seconds = to_milliseconds(*at);
        merged.extend(std::iter::from_fn(|| known.next_if(|scrape| scrape.at_seconds < at_seconds)));
        if merged.last().is_some_and(|last| last.at_seconds >= at_seconds) {
            // an order of time that is none
            continue;
        }
        let mut scrape = known
            .next_if(|scrape| scrape.at_seconds <= at_seconds)
            .unwrap_or(RevisionScrape { at_seconds, figures: [SampledFigure::Absent; RevisionFigure::ALL.len()] });
        scrape.figures[figure as usize] = value.parse::<f64>().map_or(SampledFigure::Unusable, SampledFigure::from);
        merged.push(scrape);
    }
    merged.extend(known);
    merged.shrink_to_fit();
    *scrapes = merged;
}

/// The time of a scrape, which has milliseconds: two that are the same are equal.
fn to_milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(series: &str) -> CollectedRevisions {
        let pool = PoolKey::new("ns", "shop");
        let pods = ["shop-1", "shop-0"];
        let mut collector = RevisionCollector::of(RolloutPods { pool: &pool, pods: &pods, revisions: [7, 6] });
        let series: Vec<Series> = serde_json::from_str(series).expect("series");
        for series in &series {
            collector.take(series);
        }
        collector.taken()
    }

    fn answer(series: &str) -> Vec<RevisionSeries> {
        read(series).readings.series
    }

    fn one(name: &str, labels: &str, values: &str) -> String {
        format!(
            r#"{{"metric": {{"__name__": "{name}", "pool": "shop", "pool_namespace": "ns", {labels}}}, "values": [{values}]}}"#
        )
    }

    #[test]
    fn the_query_names_the_pool_its_pods_and_both_revisions_and_no_other() {
        let pool = PoolKey::new("ns", "shop");
        let asked = RolloutPods { pool: &pool, pods: &["shop-0", "shop.1"], revisions: [7, 6] };
        let query = asked.query(150);
        assert!(query.starts_with("{__name__=~\"sluice_revision_transactions_total|"), "{query}");
        let end =
            "pool=\"shop\",pool_namespace=\"ns\",namespace=~\"ns|\",pod=~\"shop-0|shop[.]1\",revision=~\"7|6\"}[150s]";
        assert!(query.ends_with(end), "{query}");
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
            one("sluice_revision_transactions_total", &pod.replace("\"7\"", "\"5\""), r#"[10, "4"]"#),
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

    /// Values of one figure, one each second.
    fn seconds(count: usize, first: usize) -> String {
        (first..first + count).map(|second| format!(r#"[{second}, "4"]"#)).collect::<Vec<_>>().join(",")
    }

    fn of(pod: &str, more: &str) -> String {
        format!(r#""pod": "{pod}", "job": "j", "instance": "i", "revision": "7", "slot": "b"{more}"#)
    }

    #[test]
    fn a_pod_that_exports_more_sets_labels_slots_or_scrapes_than_are_kept_is_left_out_and_named_and_the_others_are_not()
    {
        let name = "sluice_revision_errors_total";
        let sets = |labels: fn(usize) -> String| -> Vec<String> {
            (0..500).map(|number| one(name, &of("shop-0", &labels(number)), r#"[10, "9"]"#)).collect()
        };
        let slot =
            |number: usize| one(name, &of("shop-0", "").replace("\"b\"", &format!("\"{number}\"")), r#"[10, "9"]"#);
        let long = "x".repeat(5000);
        let cases = [
            (sets(|number| format!(r#", "x": "{number}""#)), SeriesRefusal::TooManySets),
            ((0..5).map(slot).collect(), SeriesRefusal::TooManySets),
            (
                vec![one(name, &of("shop-0", &format!(r#", "x": "{long}""#)), r#"[10, "9"]"#)],
                SeriesRefusal::TooManySets,
            ),
            (
                vec![one(name, &of("shop-0", "").replace("\"b\"", &format!("\"{long}\"")), "")],
                SeriesRefusal::TooManySets,
            ),
            (vec![one(name, &of("shop-0", ""), &seconds(MOST_SCRAPES + 1, 0))], SeriesRefusal::TooManyScrapes),
            (
                (0..3).map(|set| one(name, &of("shop-0", &format!(r#", "x": "{set}""#)), &seconds(3000, 0))).collect(),
                SeriesRefusal::TooManyScrapes,
            ),
        ];
        for (mut forged, refusal) in cases {
            forged.insert(forged.len() / 2, one(name, &of("shop-1", ""), r#"[10, "1"], [11, "2"]"#));
            let CollectedRevisions { readings, is_too_much } = read(&format!("[{}]", forged.join(",")));
            let [series] = readings.series.as_slice() else { panic!("{refusal:?}: {:?}", readings.series.len()) };
            assert_eq!((series.pod.as_str(), series.scrapes.len(), is_too_much), ("shop-1", 2, false));
            let refused = readings.refused.expect("it is named");
            assert_eq!((refused.refusal, refused.pod.as_str(), refused.count), (refusal, "shop-0", 1));
            assert!(refused.to_string().contains("pod \"shop-0\", pool ns/shop, has more than"), "{refused}");
        }
    }

    #[test]
    fn what_two_jobs_scrape_every_second_for_half_an_hour_is_kept() {
        let sets: Vec<String> = ["a", "b"]
            .into_iter()
            .flat_map(|replica| {
                let labels = of("shop-0", &format!(r#", "x": "{replica}""#));
                RevisionFigure::ALL.map(|figure| one(metric(figure), &labels, &seconds(1800, 0)))
            })
            .collect();
        let readings = read(&format!("[{}]", sets.join(","))).readings;
        assert_eq!((readings.series.len(), readings.series[0].scrapes.len(), readings.refused), (1, 1800, None));
        assert_eq!(readings.series[0].scrapes[1799].figures, [4.0.into(); RevisionFigure::ALL.len()]);
    }

    #[test]
    fn figures_that_were_scraped_at_other_times_are_put_among_the_others() {
        let of_figure = |name: &str, values: &str| one(name, &of("shop-0", ""), values);
        let series = [
            of_figure("sluice_revision_errors_total", r#"[11, "1"], [13, "2"]"#),
            of_figure(
                "sluice_revision_transactions_total",
                r#"[10, "4"], [11, "5"], [12, "6"], [12, "7"], [3, "8"], [14, "9"]"#,
            ),
        ];
        let read = answer(&format!("[{}]", series.join(",")));
        let errors = RevisionFigure::Errors as usize;
        let seen: Vec<_> = read[0]
            .scrapes
            .iter()
            .map(|scrape| (scrape.at_seconds, scrape.figures[0], scrape.figures[errors]))
            .collect();
        let (absent, value) = (SampledFigure::Absent, SampledFigure::Value);
        assert_eq!(
            seen,
            [
                (10.0, value(4.0), absent),
                (11.0, value(5.0), value(1.0)),
                (12.0, value(6.0), absent),
                (13.0, absent, value(2.0)),
                (14.0, value(9.0), absent)
            ]
        );
    }

    #[test]
    fn of_all_pods_together_no_more_than_a_bound_is_kept() {
        let (pool, name) = (PoolKey::new("ns", "shop"), "sluice_revision_errors_total");
        let pods: Vec<String> = (0..20).map(|pod| format!("shop-{pod:02}")).collect();
        let names: Vec<&str> = pods.iter().map(String::as_str).collect();
        let mut collector = RevisionCollector::of(RolloutPods { pool: &pool, pods: &names, revisions: [7, 6] });
        for pod in &names {
            let text = one(name, &of(pod, ""), &seconds(MOST_SCRAPES, 0));
            collector.take(&serde_json::from_str(&text).expect("a series"));
            let kept: usize = collector
                .pods
                .iter()
                .map(|(_, sets)| match sets {
                    Sets::Kept(sets) => scrapes(sets),
                    Sets::TooMany => 0,
                })
                .sum();
            assert!(kept <= MOST_SCRAPES_OF_ALL, "{kept}");
        }
        let CollectedRevisions { readings, is_too_much } = collector.taken();
        assert!(is_too_much && readings.series.is_empty());
    }
}
