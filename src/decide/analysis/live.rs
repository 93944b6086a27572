//! The analysis of a rollout in course: from what Prometheus scraped of the pods to looks, one for each scrape interval.
//!
//! Each pod exports counters of what its active process did with the revision that it runs; another revision is another series. So the
//! past of a canary is its series of the stable revision, nothing of blue counts for green, and whoever takes an analysis over finds
//! what happened before in Prometheus. What a pod did with the canary's revision before it ran the stable one is of an earlier rollout. Between two scrapes lies one interval; a counter that went down is of another agent, and its
//! interval is left out.
//!
//! Once a revision was promoted, all pods run it and none is left to compare with. Then each pod is compared with its own series of the
//! revision before, and what it did with the new one until the promotion is neither: it was judged before.

use std::collections::BTreeMap;

use super::{
    Analysis, AnalysisError, AnalysisSettings, JudgeLine, Look, Measurement, PodInterval, RolloutAnalysis,
    RolloutVerdict, SampledFigure, Track, spec::least_seconds,
};
use crate::decide::outage::OutageSpan;

/// A scrape is in Prometheus after this many seconds.
const ARRIVES_SECONDS: f64 = 1.0;
/// Intervals between scrapes that are believed, in seconds.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.5..=300.0;
/// Looks that are made up for at once, at most: what is older is left out.
const MOST_LOOKS: u32 = 4000;

/// One figure that an agent exports for each revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RevisionFigure {
    /// Transactions that have ended.
    Transactions,
    /// Seconds that server connections worked for them.
    BusySeconds,
    /// Seconds that clients waited for a server connection.
    WaitSeconds,
    /// Server connections given to clients.
    Assignments,
    /// The longest that a client waits now, in seconds. The only one that is no counter.
    LongestWaitSeconds,
    /// Errors between clients, pooler and database.
    Errors,
    /// Of them: logins that were refused.
    LoginFailures,
    /// Clients whose connection ended with their process.
    ClientsCut,
}

impl RevisionFigure {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Transactions,
        Self::BusySeconds,
        Self::WaitSeconds,
        Self::Assignments,
        Self::LongestWaitSeconds,
        Self::Errors,
        Self::LoginFailures,
        Self::ClientsCut,
    ];
}

/// What a pod had of a revision at one scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RevisionScrape {
    /// When, in Unix seconds, by the clock of Prometheus.
    pub at_seconds: f64,
    /// In the order of [`RevisionFigure::ALL`].
    pub figures: [SampledFigure; RevisionFigure::ALL.len()],
}

/// What a pod exported of one revision in one slot.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionSeries {
    /// Name of the pod.
    pub pod: String,
    /// Number of the revision.
    pub revision: u64,
    /// Name of the slot that is active.
    pub slot: String,
    /// In the order of time.
    pub scrapes: Vec<RevisionScrape>,
}

/// The analysis of one revision, fed by what was scraped.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveAnalysis {
    canary: u64,
    stable: u64,
    /// What pods did with the canary until then is left out, in Unix seconds: it is an earlier try's, or was judged before its promotion.
    counts_from: f64,
    /// What was done while the database was away is left out.
    outage: Option<OutageSpan>,
    interval_seconds: f64,
    analysis: Analysis,
    settings: AnalysisSettings,
    /// The end of the last look, in Unix seconds.
    looked_at: f64,
    /// The last scrape of each pod, revision and slot that was looked at.
    latest: BTreeMap<(String, u64, String), RevisionScrape>,
    /// What was measured by queries and is in no look yet.
    measured: Vec<Measurement>,
    verdict: RolloutVerdict,
}

impl LiveAnalysis {
    /// Begins with everything that was scraped of the pods before the change and since. None while no pod was scraped twice: how often
    /// that happens is not known then. `since`: when this try of the canary began, 0 where nobody knows, or when it was promoted, in Unix seconds.
    ///
    /// # Errors
    /// [`AnalysisError`], which [`RolloutAnalysis::of`] would have told before.
    pub fn begin(
        wanted: &RolloutAnalysis,
        (canary, stable): (u64, u64),
        since: f64,
        series: &[RevisionSeries],
    ) -> Result<Option<Self>, AnalysisError> {
        let Some(interval_seconds) = interval(series) else { return Ok(None) };
        let settings = wanted.settings(interval_seconds);
        let analysis = Analysis::new(settings.clone())?;
        let scrapes = series.iter().flat_map(|series| &series.scrapes);
        let first = scrapes.map(|scrape| scrape.at_seconds).min_by(f64::total_cmp).unwrap_or(0.0);
        let verdict = analysis.before();
        Ok(Some(Self {
            canary,
            stable,
            outage: None,
            counts_from: since,
            interval_seconds,
            analysis,
            settings,
            looked_at: first - interval_seconds,
            latest: BTreeMap::new(),
            measured: Vec::new(),
            verdict,
        }))
    }

    /// Without what was done while the database was away.
    #[must_use]
    pub fn without(self, outage: Option<OutageSpan>) -> Self {
        Self { outage, ..self }
    }

    /// The line of `sluice judge` that begins this analysis.
    pub fn first_line(&self) -> JudgeLine {
        JudgeLine { settings: Some(self.settings.clone()), ..JudgeLine::default() }
    }

    /// What it says.
    pub fn verdict(&self) -> &RolloutVerdict {
        &self.verdict
    }

    /// Until when it has looked, in Unix seconds: what was scraped later is still of use.
    pub fn looked_at(&self) -> f64 {
        self.looked_at
    }

    /// Seconds between two scrapes.
    pub fn interval_seconds(&self) -> f64 {
        self.interval_seconds
    }

    /// Seconds from the first sample of a pod on until what is neither proven harmless nor worse passes, as often as pods are scraped.
    pub fn least_seconds(&self) -> f64 {
        least_seconds(&self.settings)
    }

    /// Takes what the user's own queries returned.
    pub fn measure(&mut self, measured: Vec<Measurement>) {
        self.measured.extend(measured);
    }

    /// Takes what was scraped since the last look, and looks once for each interval that is over. Returns the lines by which `sluice judge`
    /// comes to the same verdict.
    pub fn take(&mut self, series: &[RevisionSeries], now_seconds: f64) -> Vec<JudgeLine> {
        let oldest = now_seconds - f64::from(MOST_LOOKS) * self.interval_seconds;
        self.looked_at = self.looked_at.max(oldest);
        let mut lines = Vec::new();
        let left_stable = self.left_stable(series);
        while self.looked_at + self.interval_seconds <= now_seconds - ARRIVES_SECONDS {
            self.looked_at += self.interval_seconds;
            let pods = self.intervals(series, &left_stable, self.looked_at);
            let is_last = self.looked_at + self.interval_seconds > now_seconds - ARRIVES_SECONDS;
            // what was measured is as of now
            let measurements = if is_last { std::mem::take(&mut self.measured) } else { Vec::new() };
            let line = JudgeLine { settings: None, t_seconds: Some(self.looked_at), pods, measurements };
            let look = Look { at_seconds: self.looked_at, pods: &line.pods, measurements: &line.measurements };
            self.verdict = self.analysis.judge(&look);
            lines.push(line);
        }
        lines
    }

    /// When each pod was scraped last with the stable revision. What it did with the canary's before is not this rollout's: that revision
    /// ran once, was replaced or failed, and is wanted again.
    fn left_stable<'a>(&self, series: &'a [RevisionSeries]) -> BTreeMap<&'a str, f64> {
        let mut left = BTreeMap::new();
        for RevisionSeries { pod, scrapes, .. } in series.iter().filter(|series| series.revision == self.stable) {
            let last = scrapes.last().map_or(f64::NEG_INFINITY, |scrape| scrape.at_seconds);
            let known = left.entry(pod.as_str()).or_insert(last);
            *known = known.max(last);
        }
        left
    }

    /// What each pod did until `end` since its last look.
    fn intervals(
        &mut self,
        series: &[RevisionSeries],
        left_stable: &BTreeMap<&str, f64>,
        end: f64,
    ) -> Vec<PodInterval> {
        let mut newest: BTreeMap<&str, (f64, Option<PodInterval>)> = BTreeMap::new();
        for RevisionSeries { pod, revision, slot, scrapes } in series {
            let track = match *revision {
                canary if canary == self.canary => Track::Canary,
                stable if stable == self.stable => Track::Stable,
                _ => continue,
            };
            let until = scrapes.partition_point(|scrape| scrape.at_seconds <= end);
            let Some(scrape) = until.checked_sub(1).and_then(|last| scrapes.get(last)) else { continue };
            let is_of_before = left_stable.get(pod.as_str()).is_some_and(|left| scrape.at_seconds < *left);
            if track == Track::Canary && is_of_before {
                continue;
            }
            let key = (pod.clone(), *revision, slot.clone());
            let before = self.latest.get(&key).copied();
            if before.is_some_and(|before| scrape.at_seconds <= before.at_seconds) {
                continue;
            }
            self.latest.insert(key, *scrape);
            if track == Track::Canary && end <= self.counts_from {
                continue;
            }
            let is_of_outage = |before: &RevisionScrape| {
                self.outage.is_some_and(|outage| outage.overlaps(before.at_seconds, scrape.at_seconds))
            };
            let before = before.filter(|before| !is_of_outage(before));
            let done = before.and_then(|before| between(pod, track, &before, scrape));
            // a pod that changed in between is what it was last: the other process is no more of interest
            let known = newest.entry(pod).or_insert((f64::NEG_INFINITY, None));
            if scrape.at_seconds >= known.0 {
                *known = (scrape.at_seconds, done);
            }
        }
        newest.into_values().filter_map(|(_, done)| done).collect()
    }
}

/// What was done between two scrapes; None where the counters began anew.
fn between(pod: &str, track: Track, before: &RevisionScrape, after: &RevisionScrape) -> Option<PodInterval> {
    let added = |figure: RevisionFigure| match (before.figures[figure as usize], after.figures[figure as usize]) {
        (SampledFigure::Value(before), SampledFigure::Value(after)) => Some(SampledFigure::Value(after - before)),
        (SampledFigure::Unusable, _) | (_, SampledFigure::Unusable) => Some(SampledFigure::Unusable),
        _ => Some(SampledFigure::Absent),
    };
    let counters = RevisionFigure::ALL.into_iter().filter(|figure| *figure != RevisionFigure::LongestWaitSeconds);
    let went_down = |figure| matches!(added(figure), Some(SampledFigure::Value(added)) if added < 0.0);
    if counters.into_iter().any(went_down) {
        return None;
    }
    let mean_ms = |seconds, count| match (added(seconds)?, added(count)?) {
        (SampledFigure::Value(seconds), SampledFigure::Value(count)) if count > 0.0 => {
            Some(SampledFigure::from(1000.0 * seconds / count))
        }
        (SampledFigure::Unusable, _) | (_, SampledFigure::Unusable) => Some(SampledFigure::Unusable),
        _ => Some(SampledFigure::Absent),
    };
    let longest = match after.figures[RevisionFigure::LongestWaitSeconds as usize] {
        SampledFigure::Value(seconds) => SampledFigure::Value(1000.0 * seconds),
        other => other,
    };
    Some(PodInterval {
        transactions: added(RevisionFigure::Transactions)?,
        transaction_mean_ms: mean_ms(RevisionFigure::BusySeconds, RevisionFigure::Transactions)?,
        wait_mean_ms: mean_ms(RevisionFigure::WaitSeconds, RevisionFigure::Assignments)?,
        wait_max_ms: longest,
        errors: added(RevisionFigure::Errors)?,
        login_failures: added(RevisionFigure::LoginFailures)?,
        clients_cut: added(RevisionFigure::ClientsCut)?,
        ..PodInterval::new(pod, track)
    })
}

/// Seconds between two scrapes: the median of what was seen, to a tenth.
fn interval(series: &[RevisionSeries]) -> Option<f64> {
    let pairs = series.iter().flat_map(|series| series.scrapes.windows(2));
    let mut seen: Vec<f64> = pairs.map(|pair| pair[1].at_seconds - pair[0].at_seconds).collect();
    seen.sort_by(f64::total_cmp);
    let median = seen.get(seen.len() / 2)?;
    let rounded = (median * 10.0).round() / 10.0;
    INTERVALS.contains(&rounded).then_some(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::AnalysisSpec,
        decide::analysis::{Against, AnalysisPhase, MeasuredSeries, Outcome, VerdictReason},
    };

    const BEGIN: f64 = 1_763_700_000.0;

    fn wanted(spec: &str) -> RolloutAnalysis {
        let spec: AnalysisSpec = serde_yaml::from_str(spec).expect("a spec");
        RolloutAnalysis::of(&spec, AnalysisPhase::Canary).expect("accepted")
    }

    /// Counters of a pod that does 40 transactions a second of so many milliseconds each.
    struct Played {
        pod: &'static str,
        runs: Option<u64>,
        totals: [f64; RevisionFigure::ALL.len()],
        series: Vec<RevisionSeries>,
    }

    impl Played {
        fn new(pod: &'static str) -> Self {
            Self { pod, runs: None, totals: [0.0; RevisionFigure::ALL.len()], series: Vec::new() }
        }

        fn scrape(&mut self, at: f64, revision: u64, milliseconds: f64, errors: f64) {
            if self.runs.replace(revision) != Some(revision) {
                self.totals = [0.0; RevisionFigure::ALL.len()];
            }
            let is_known = self.series.iter().any(|series| series.revision == revision);
            if !is_known {
                let slot = if revision == 6 { "a" } else { "b" };
                let (pod, slot) = (self.pod.to_owned(), slot.to_owned());
                self.series.push(RevisionSeries { pod, revision, slot, scrapes: Vec::new() });
            }
            let jitter = 1.0 + 0.1 * ((at * 7.3 + self.pod.len() as f64).sin());
            for (figure, added) in [
                (RevisionFigure::Transactions, 40.0),
                (RevisionFigure::BusySeconds, 0.04 * milliseconds * jitter),
                (RevisionFigure::Assignments, 40.0),
                (RevisionFigure::WaitSeconds, 0.001),
                (RevisionFigure::Errors, errors),
            ] {
                self.totals[figure as usize] += added;
            }
            let figures = self.totals.map(SampledFigure::Value);
            if let Some(series) = self.series.iter_mut().find(|series| series.revision == revision) {
                series.scrapes.push(RevisionScrape { at_seconds: at, figures });
            }
        }
    }

    /// Three pods, of which the first runs revision 7 from second 60 on, until second 120.
    fn fleet(slower: f64, errors: f64) -> Vec<RevisionSeries> {
        let mut pods = [Played::new("a"), Played::new("bb"), Played::new("ccc")];
        for second in 0..120_u32 {
            for (number, pod) in pods.iter_mut().enumerate() {
                let is_canary = number == 0 && second >= 60;
                let (revision, factor) = if is_canary { (7, slower) } else { (6, 1.0) };
                let at = BEGIN + f64::from(second) + 0.2 * number as f64;
                pod.scrape(at, revision, 8.0 * factor, if is_canary { errors } else { 0.0 });
            }
        }
        pods.into_iter().flat_map(|pod| pod.series).collect()
    }

    /// The verdict at the end, and every line.
    fn judged(spec: &str, series: &[RevisionSeries]) -> (RolloutVerdict, Vec<JudgeLine>) {
        let mut live = LiveAnalysis::begin(&wanted(spec), (7, 6), BEGIN, series).expect("settings").expect("scraped");
        let mut lines = vec![live.first_line()];
        let mut now = BEGIN + 70.0;
        while now <= BEGIN + 121.0 {
            lines.extend(live.take(series, now));
            now += 5.0;
        }
        (live.verdict().clone(), lines)
    }

    #[test]
    fn a_slower_canary_fails_by_what_was_scraped_and_an_equal_one_passes() {
        let spec = "metrics: [{name: TransactionTime}, {name: Errors}]";
        let (verdict, _) = judged(spec, &fleet(2.0, 0.0));
        assert_eq!((verdict.verdict, verdict.reason), (Outcome::Fail, VerdictReason::SlowerThanStable));
        assert!(verdict.message.starts_with("worse on a: TransactionTime: "), "{}", verdict.message);
        let (verdict, _) = judged(spec, &fleet(1.0, 0.0));
        assert_eq!(verdict.verdict, Outcome::Pass, "{}", verdict.message);
        let (verdict, _) = judged(spec, &fleet(1.0, 1.0));
        assert_eq!(verdict.reason, VerdictReason::MoreErrorsThanStable, "{}", verdict.message);
        let (verdict, _) = judged("metrics: [{name: Errors, compare: false, limitCount: 3}]", &fleet(1.0, 1.0));
        assert_eq!(verdict.reason, VerdictReason::LimitExceeded, "{}", verdict.message);
    }

    #[test]
    fn the_lines_that_are_kept_lead_sluice_judge_to_the_same_verdict() {
        let (verdict, lines) = judged("metrics: [{name: TransactionTime}]", &fleet(2.0, 0.0));
        let mut analysis: Option<Analysis> = None;
        let mut last = None;
        for line in lines {
            let text = serde_json::to_string(&line).expect("JSON");
            let line = JudgeLine::parse(&text).expect("it is read again");
            match (line.settings.clone(), line.look()) {
                (Some(settings), _) => analysis = Some(Analysis::new(settings).expect("settings")),
                (None, Some(look)) => last = analysis.as_mut().map(|analysis| analysis.judge(&look)),
                (None, None) => panic!("{text}"),
            }
        }
        assert_eq!(last, Some(verdict));
    }

    #[test]
    fn what_the_other_process_of_a_canary_does_and_other_revisions_count_for_nothing() {
        let mut series = fleet(1.0, 0.0);
        let mut foreign = Played::new("dddd");
        for second in 0..120_u32 {
            foreign.scrape(BEGIN + f64::from(second), 5, 900.0, 1.0);
        }
        series.extend(foreign.series);
        let (verdict, lines) = judged("metrics: [{name: TransactionTime}]", &series);
        assert_eq!(verdict.verdict, Outcome::Pass, "{}", verdict.message);
        for line in &lines {
            let names: Vec<&str> = line.pods.iter().map(|pod| pod.pod.as_str()).collect();
            assert!(names.len() <= 3 && !names.contains(&"dddd"), "{names:?}");
            let is_later = line.t_seconds.is_some_and(|at| at > BEGIN + 62.0);
            let track = line.pods.iter().find(|pod| pod.pod == "a").map(|pod| pod.track);
            assert!(!is_later || track != Some(Track::Stable), "its own past is no baseline of it");
        }
    }

    /// Three pods that all ran revision 7 until second 30, so much slower, and 6 since; the first runs 7 again from second 70 on.
    fn run_before(slower_before: f64, slower_again: f64) -> Vec<RevisionSeries> {
        let mut pods = [Played::new("a"), Played::new("bb"), Played::new("ccc")];
        for second in 0..120_u32 {
            for (number, pod) in pods.iter_mut().enumerate() {
                let (revision, factor) = match second {
                    0..30 => (7, slower_before),
                    70.. if number == 0 => (7, slower_again),
                    _ => (6, 1.0),
                };
                pod.scrape(BEGIN + f64::from(second) + 0.2 * number as f64, revision, 8.0 * factor, 0.0);
            }
        }
        pods.into_iter().flat_map(|pod| pod.series).collect()
    }

    #[test]
    fn a_revision_that_is_wanted_again_is_judged_by_what_it_does_since_and_not_by_what_it_did_before() {
        let spec = "metrics: [{name: TransactionTime}, {name: Errors}]";
        let (verdict, lines) = judged(spec, &run_before(3.0, 1.0));
        assert_eq!(verdict.verdict, Outcome::Pass, "{}", verdict.message);
        let canaries = lines.iter().flat_map(|line| line.pods.iter().map(move |pod| (line.t_seconds, pod)));
        let canaries: Vec<_> = canaries.filter(|(_, pod)| pod.track == Track::Canary).collect();
        assert!(
            canaries.iter().all(|(at, pod)| pod.pod == "a" && at.is_some_and(|at| at > BEGIN + 70.0)),
            "{canaries:?}"
        );
        let (verdict, _) = judged(spec, &run_before(1.0, 2.0));
        assert_eq!(verdict.reason, VerdictReason::SlowerThanStable, "{}", verdict.message);
    }

    #[test]
    fn what_was_done_while_the_database_was_away_counts_for_nobody() {
        // errors of the canary alone, between seconds 80 and 90
        let mut series = fleet(1.0, 0.0);
        let errors = RevisionFigure::Errors as usize;
        for scrape in series.iter_mut().filter(|series| series.revision == 7).flat_map(|series| &mut series.scrapes) {
            let failed = (scrape.at_seconds - BEGIN - 80.0).clamp(0.0, 10.0) * 40.0;
            let SampledFigure::Value(count) = scrape.figures[errors] else { panic!("it is counted") };
            scrape.figures[errors] = SampledFigure::Value(count + failed);
        }
        let spec = wanted("metrics: [{name: Errors}]");
        let verdict = |outage| {
            let live = LiveAnalysis::begin(&spec, (7, 6), BEGIN, &series).expect("settings").expect("scraped");
            let mut live = live.without(outage);
            live.take(&series, BEGIN + 121.0);
            live.verdict().verdict
        };
        assert_eq!(verdict(None), Outcome::Fail);
        let outage = OutageSpan { from: 1_763_700_080, until: 1_763_700_090 };
        assert_eq!(verdict(Some(outage)), Outcome::Inconclusive, "too little is left");
    }

    #[test]
    fn without_samples_nothing_is_decided_and_an_agent_that_began_anew_is_no_change() {
        let wanted_metrics = wanted("metrics: [{name: TransactionTime}]");
        assert_eq!(LiveAnalysis::begin(&wanted_metrics, (7, 6), BEGIN, &[]).expect("settings"), None);
        let series = fleet(1.0, 0.0);
        let mut live =
            LiveAnalysis::begin(&wanted_metrics, (7, 6), BEGIN, &series).expect("settings").expect("scraped");
        live.take(&series, BEGIN + 121.0);
        assert_eq!(live.verdict().verdict, Outcome::Pass);
        live.take(&[], BEGIN + 150.0);
        assert_eq!((live.verdict().verdict, live.verdict().reason), (Outcome::Inconclusive, VerdictReason::NoData));

        let scrape = |at_seconds: f64, count: f64| RevisionScrape {
            at_seconds,
            figures: [SampledFigure::Value(count); RevisionFigure::ALL.len()],
        };
        assert_eq!(between("a", Track::Canary, &scrape(1.0, 9.0), &scrape(2.0, 3.0)), None);
        let done = between("a", Track::Canary, &scrape(1.0, 3.0), &scrape(2.0, 5.0)).expect("it goes on");
        assert_eq!((done.transactions, done.transaction_mean_ms), (2.0.into(), 1000.0.into()));
        assert_eq!(done.wait_max_ms, 5000.0.into());
        let mut unknown = scrape(2.0, 5.0);
        unknown.figures[RevisionFigure::Errors as usize] = SampledFigure::Absent;
        unknown.figures[RevisionFigure::WaitSeconds as usize] = SampledFigure::Unusable;
        let done = between("a", Track::Canary, &scrape(1.0, 3.0), &unknown).expect("it goes on");
        assert_eq!((done.errors, done.wait_mean_ms), (SampledFigure::Absent, SampledFigure::Unusable));
    }

    /// Three pods that take revision 7 one after the other, in seconds 60, 70 and 80; it is promoted in second 90, and `slower` from there
    /// on. Until second 180.
    fn promoted(slower: f64, errors: f64) -> Vec<RevisionSeries> {
        let mut pods = [Played::new("a"), Played::new("bb"), Played::new("ccc")];
        for second in 0..180_u32 {
            for (number, pod) in pods.iter_mut().enumerate() {
                let number = u32::try_from(number).expect("small");
                let revision = if second >= 60 + 10 * number { 7 } else { 6 };
                let (factor, errors) = if second >= 90 { (slower, errors) } else { (1.0, 0.0) };
                pod.scrape(BEGIN + f64::from(second) + 0.2 * f64::from(number), revision, 8.0 * factor, errors);
            }
        }
        pods.into_iter().flat_map(|pod| pod.series).collect()
    }

    /// What is said of a promoted revision at the end, by somebody who looks from this second on.
    fn judged_after_promotion(metrics: &str, series: &[RevisionSeries], from: f64) -> (RolloutVerdict, Vec<JudgeLine>) {
        let spec: AnalysisSpec = serde_yaml::from_str(&format!("metrics: [{metrics}]")).expect("a spec");
        let wanted = RolloutAnalysis::of(&spec, AnalysisPhase::PostPromotion).expect("accepted");
        let live = LiveAnalysis::begin(&wanted, (7, 6), BEGIN + 90.0, series).expect("settings");
        let mut live = live.expect("scraped");
        let (mut now, mut lines) = (BEGIN + from, Vec::new());
        while now <= BEGIN + 181.0 {
            lines.extend(live.take(series, now));
            now += 5.0;
        }
        (live.verdict().clone(), lines)
    }

    #[test]
    fn a_promoted_revision_is_compared_with_what_the_same_pods_did_on_the_one_before() {
        let metrics = "{name: TransactionTime}, {name: Errors}";
        for (slower, errors, expected) in [
            (1.0, 0.0, VerdictReason::NoHarmFound),
            (3.0, 0.0, VerdictReason::SlowerThanStable),
            (1.0, 1.0, VerdictReason::MoreErrorsThanStable),
        ] {
            let series = promoted(slower, errors);
            let (verdict, _) = judged_after_promotion(metrics, &series, 95.0);
            let is_as_good = expected == VerdictReason::NoHarmFound && verdict.verdict == Outcome::Pass;
            assert!(is_as_good || verdict.reason == expected, "x{slower}, {errors}: {}", verdict.message);
            assert!(verdict.message.contains(" a, bb, ccc: "), "the pods: {}", verdict.message);
            let mut estimates = verdict.metrics.iter().filter_map(|metric| metric.estimate);
            assert!(estimates.all(|estimate| estimate.against == Against::OwnPast), "{verdict:?}");
            // whoever takes it over in the middle of it finds the same past in Prometheus
            let (later, _) = judged_after_promotion(metrics, &series, 150.0);
            assert_eq!(later.verdict, verdict.verdict, "{}", later.message);
        }
    }

    #[test]
    fn what_pods_did_with_a_revision_before_it_was_promoted_is_neither_its_past_nor_its_verdict() {
        let (_, lines) = judged_after_promotion("{name: TransactionTime}", &promoted(1.0, 0.0), 95.0);
        for line in lines {
            let at = line.t_seconds.expect("a look") - BEGIN;
            let tracks: Vec<Track> = line.pods.iter().map(|pod| pod.track).collect();
            let expected = if at > 90.5 { Track::Canary } else { Track::Stable };
            assert!(tracks.iter().all(|track| *track == expected), "second {at}: {tracks:?}");
            assert!(!(62.0..=90.5).contains(&at) || tracks.len() < 3, "second {at}: {tracks:?}");
        }
    }

    #[test]
    fn what_a_query_of_ones_own_returned_is_judged_once_with_the_look_that_follows() {
        let series = fleet(1.0, 0.0);
        let own = wanted("metrics: [{name: checkout, query: up, failureCondition: result > 0.1}]");
        let mut live = LiveAnalysis::begin(&own, (7, 6), BEGIN, &series).expect("settings").expect("scraped");
        live.take(&series, BEGIN + 80.0);
        let value = |value| MeasuredSeries { labels: String::new(), value: Some(value) };
        live.measure(vec![Measurement { name: "checkout".to_owned(), series: vec![value(0.2)] }]);
        let lines = live.take(&series, BEGIN + 90.0);
        assert_eq!(lines.iter().filter(|line| !line.measurements.is_empty()).count(), 1);
        assert_eq!(live.verdict().reason, VerdictReason::ConditionFailed, "{}", live.verdict().message);
    }
}
