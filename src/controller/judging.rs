//! Rollouts in course, and revisions that were promoted lately, are judged by live metrics: asked of Prometheus every few seconds, pool by
//! pool, and only while there is one. No pool waits for another: one whose judgement is still under way misses the next round.
//!
//! What is remembered is the analysis of one try of one revision in one phase. Another revision, the same one tried again, another stable one or
//! another spec begins anew, and so does another leader: what happened before is in Prometheus. While that cannot be asked nothing is decided, and a verdict that it is
//! worse stays. Each sample that a verdict rests on is a line of the log, as `sluice judge` reads it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    context::Context,
    memory::PoolMemory,
    observe::analysis_queries::{AnalysisQueries, OwnQueries, RevisionTurn},
};
use crate::{
    api::ConnectionPool,
    decide::{
        analysis::{AnalysisPhase, JudgeLine, LiveAnalysis, Measurement, Outcome, RolloutAnalysis},
        outage::OutageSpan,
        plan::{JudgedSeen, PodFacts},
        rollout::{JudgedTry, RevisionId, RolloutJudgement, RolloutMemory},
        shares::PodPhase,
    },
    domain::PoolKey,
    signals::{DEFAULT_SERVER, PrometheusServer, RevisionReadings, RolloutPods, Servers},
};

/// Rollouts are judged this often, or at each tick where that is more often.
const EVERY: Duration = Duration::from_secs(5);
/// The user's own queries are asked this often.
const MEASURED_EVERY: Duration = Duration::from_secs(15);
/// Pods of a pool that are looked at: canaries, and those that they are compared with. More say hardly more.
const MOST_CANARIES: usize = 20;
const MOST_OTHERS: usize = 40;
/// What is looked at first lies this far back beyond the begin of the step in course, in seconds; and no further than this in all.
const PAST_SECONDS: f64 = 600.0;
const LONGEST_WINDOW_SECONDS: f64 = 1800.0;
/// Of what is more than is read at once half as long is asked for, down to this.
const SHORTEST_WINDOW_SECONDS: f64 = 60.0;

/// What is judged: the try of a revision, the revision that it is compared with, and since when the step in course lasts or it is promoted,
/// in Unix seconds.
#[derive(Clone, Debug, PartialEq)]
struct JudgedCourse {
    of: JudgedTry,
    stable: RevisionId,
    since: i64,
    /// When the database was away: what was measured then says nothing.
    outage: Option<OutageSpan>,
}

/// The analysis of a rollout in course, or of a promoted revision.
pub struct Judging {
    stable: RevisionId,
    wanted: RolloutAnalysis,
    /// None while no pod was scraped twice.
    live: Option<LiveAnalysis>,
    /// Why nothing could be read the last time.
    failing: Option<String>,
    /// The pod of which nothing is read because it exports too much: what it does is not known.
    refused: Option<String>,
    /// Nothing is asked for that lies further back, in seconds.
    longest_window: f64,
    measured_at: Option<Instant>,
    seen: JudgedSeen,
}

impl Judging {
    fn new(of: JudgedTry, stable: RevisionId, outage: Option<OutageSpan>, wanted: RolloutAnalysis) -> Self {
        let words = "nothing was measured yet".to_owned();
        let judgement = RolloutJudgement::Inconclusive { why: words.clone(), is_final: false };
        let seen = JudgedSeen { of, outage, judgement, words, least_seconds: None };
        let (failing, refused, longest_window) = (None, None, LONGEST_WINDOW_SECONDS);
        Self { stable, wanted, live: None, failing, refused, longest_window, measured_at: None, seen }
    }

    /// Whether it is the analysis of this: what was begun before the database was away begins anew, without what was measured then.
    fn is_of(&self, of: &JudgedTry, stable: &RevisionId, wanted: &RolloutAnalysis, outage: Option<OutageSpan>) -> bool {
        (&self.seen.of, &self.stable, &self.wanted, self.seen.outage) == (of, stable, wanted, outage)
    }

    /// What is said of the revision.
    pub fn seen(&self) -> &JudgedSeen {
        &self.seen
    }

    /// Takes what was read, and says which lines of the log lead to the same verdict.
    fn take(
        &mut self,
        read: Result<&RevisionReadings, &String>,
        measured: Vec<Measurement>,
        now: f64,
    ) -> Vec<JudgeLine> {
        let mut lines = Vec::new();
        if let Ok(RevisionReadings { series, refused }) = read {
            self.refused = refused.as_ref().map(ToString::to_string);
            if self.live.is_none() {
                let JudgedTry { revision, begun, .. } = &self.seen.of;
                let revisions = (revision.number, self.stable.number);
                match LiveAnalysis::begin(&self.wanted, revisions, *begun as f64, series) {
                    Ok(begun) => self.live = begun.map(|live| live.without(self.seen.outage)),
                    Err(error) => self.failing = Some(error.to_string()),
                }
                lines.extend(self.live.as_ref().map(LiveAnalysis::first_line));
            }
            if let Some(live) = &mut self.live {
                live.measure(measured);
                lines.extend(live.take(series, now));
            }
        }
        self.conclude();
        lines
    }

    fn conclude(&mut self) {
        let verdict = self.live.as_ref().map(LiveAnalysis::verdict);
        let inconclusive = |why: &str, is_final| RolloutJudgement::Inconclusive { why: why.to_owned(), is_final };
        let (judgement, words) = match (verdict, self.failing.as_ref().or(self.refused.as_ref())) {
            (Some(verdict), _) if verdict.verdict == Outcome::Fail => {
                (RolloutJudgement::Fail { why: verdict.message.clone() }, String::new())
            }
            (_, Some(failing)) => (inconclusive(failing, false), failing.clone()),
            (None, None) => {
                let why = "Prometheus has no two scrapes of sluice_revision_transactions_total of any pod: is each agent of this version, \
                           and scraped?";
                (inconclusive(why, false), why.to_owned())
            }
            (Some(verdict), None) if verdict.verdict == Outcome::Pass => (RolloutJudgement::Pass, String::new()),
            (Some(verdict), None) => {
                let open = verdict.metrics.iter().filter(|metric| metric.verdict == Outcome::Inconclusive);
                let open: Vec<String> = open.map(|metric| format!("{} {:?}", metric.name, metric.reason)).collect();
                (inconclusive(&verdict.message, verdict.is_final), open.join(", "))
            }
        };
        let least_seconds = self.live.as_ref().map(|live| whole(live.least_seconds()));
        self.seen = JudgedSeen { judgement, words, least_seconds, ..self.seen.clone() };
    }
}

/// A rollout that is to be judged.
struct JudgedRollout {
    key: PoolKey,
    pool: Arc<ConnectionPool>,
    course: JudgedCourse,
    wanted: RolloutAnalysis,
    server: String,
}

/// Judges for ever.
pub async fn run(context: Arc<Context>, servers: Servers) {
    let queries = AnalysisQueries::default();
    let due = || {
        if !context.leadership.is_held() || !context.pods.is_synced() {
            return Vec::new();
        }
        let rollouts = in_course(&context);
        queries.keep(&rollouts.iter().map(|rollout| &rollout.key).collect::<BTreeSet<_>>());
        rollouts.into_iter().map(|rollout| (rollout.key.clone(), rollout)).collect()
    };
    judge_each(EVERY.min(context.tick), due, |rollout| judge(&context, &servers, &queries, rollout)).await;
}

/// Has each pool judged by itself, this often. One whose judgement has not ended is passed over.
async fn judge_each<T, F: Future<Output = ()>>(
    every: Duration,
    due: impl Fn() -> Vec<(PoolKey, T)>,
    judge: impl Fn(T) -> F,
) {
    let mut rounds = interval(every);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut under_way, mut judgements) = (HashSet::new(), FuturesUnordered::new());
    loop {
        tokio::select! {
            _ = rounds.tick() => {
                for (key, rollout) in due() {
                    if under_way.insert(key.clone()) {
                        let judgement = judge(rollout);
                        judgements.push(async move {
                            judgement.await;
                            key
                        });
                    }
                }
            }
            Some(key) = judgements.next() => {
                under_way.remove(&key);
            }
        }
    }
}

/// The rollouts in course and the promoted revisions that an analysis decides on. Of the other pools nothing is remembered.
fn in_course(context: &Context) -> Vec<JudgedRollout> {
    let mut rollouts = Vec::new();
    for pool in context.stores.pools.state() {
        let Some(namespace) = pool.namespace() else { continue };
        let key = PoolKey::new(namespace, pool.name_any());
        let memory = context.memories.of(&key, &pool);
        let course = memory.lock().rollout.as_ref().and_then(course);
        let asked = course.and_then(|course| {
            let effective = context.stores.effective(&pool).ok()?;
            let wanted = match course.of.phase {
                AnalysisPhase::Canary => effective.rollout.analysis?,
                AnalysisPhase::PostPromotion => effective.rollout.post_promotion?,
            };
            Some((course, wanted, effective.metrics.prometheus_ref))
        });
        match asked {
            Some((course, wanted, server)) => {
                let server = server.unwrap_or_else(|| DEFAULT_SERVER.to_owned());
                rollouts.push(JudgedRollout { key, pool, course, wanted, server });
            }
            None => memory.lock().judging = None,
        }
    }
    rollouts
}

/// The revision that is rolled out by steps, beside the stable one, or that was promoted, beside the one before it. Who goes back to what
/// ran before is not judged.
fn course(rollout: &RolloutMemory) -> Option<JudgedCourse> {
    let of = |revision: &RevisionId, phase| {
        let begun = rollout.try_begun(phase)?;
        Some(JudgedTry { revision: revision.clone(), phase, begun })
    };
    if let Some(promoted) = rollout.judged_after_promotion() {
        let of = of(&promoted.revision, AnalysisPhase::PostPromotion)?;
        return Some(JudgedCourse { of, stable: promoted.from.clone(), since: promoted.since, outage: rollout.outage });
    }
    let (stable, updated) = (rollout.stable.as_ref()?, rollout.updated.as_ref()?);
    let is_in_course = stable != updated && !rollout.has_failed(updated) && rollout.undone.is_none();
    let of = of(updated, AnalysisPhase::Canary).filter(|_| is_in_course)?;
    Some(JudgedCourse { of, stable: stable.clone(), since: rollout.position.since, outage: rollout.outage })
}

/// The names of some pods that took this revision, and of some others.
fn names<'a>(facts: &'a [Arc<PodFacts>], pool: &str, canary: u64) -> (Vec<&'a str>, Vec<&'a str>) {
    let there = facts.iter().filter(|pod| pod.phase != PodPhase::Terminating);
    let took = |pod: &&Arc<PodFacts>| {
        let told = pod.revision.last_known().and_then(|document| document.pools.get(pool));
        told.is_some_and(|told| told.revision == canary)
    };
    let (mut canaries, mut others): (Vec<_>, Vec<_>) = there.partition(took);
    for pods in [&mut canaries, &mut others] {
        pods.sort_by_key(|pod| pod.name.as_str());
    }
    let name = |pod: &'a Arc<PodFacts>| pod.name.as_str();
    // where all have taken it there are no others to look at
    let most_canaries = if others.is_empty() { MOST_CANARIES + MOST_OTHERS } else { MOST_CANARIES };
    (
        canaries.into_iter().map(name).take(most_canaries).collect(),
        others.into_iter().map(name).take(MOST_OTHERS).collect(),
    )
}

async fn judge(context: &Context, servers: &Servers, asking: &AnalysisQueries, rollout: JudgedRollout) {
    let JudgedRollout { key, pool, course: JudgedCourse { of, stable, since, outage }, wanted, server } = rollout;
    let canary = &of.revision;
    let facts = context.pods.of(&key);
    let (canaries, others) = names(&facts, &key.name, canary.number);
    let memory = context.memories.of(&key, &pool);
    let (from, longest_window, is_measured) = {
        let mut memory = memory.lock();
        let judging = memory.judging.as_deref();
        if !judging.is_some_and(|judging| judging.is_of(&of, &stable, &wanted, outage)) {
            tracing::info!(pool = %key, revision = canary.number, against = stable.number, "an analysis begins");
            memory.judging = Some(Box::new(Judging::new(of.clone(), stable.clone(), outage, wanted.clone())));
        }
        let judging = memory.judging.as_ref();
        let live = judging.and_then(|judging| judging.live.as_ref());
        let from =
            live.map_or(since as f64 - PAST_SECONDS, |live| live.looked_at() - 3.0 * live.interval_seconds() - 5.0);
        let longest_window = judging.map_or(LONGEST_WINDOW_SECONDS, |judging| judging.longest_window);
        let measured_at = judging.and_then(|judging| judging.measured_at);
        let is_measured = !canaries.is_empty() && measured_at.is_none_or(|at| at.elapsed() >= MEASURED_EVERY);
        (from, longest_window, is_measured)
    };
    let own = if is_measured { wanted.queries(canary.number, stable.number, &canaries) } else { Vec::new() };
    let pods: Vec<&str> = canaries.iter().chain(&others).copied().collect();
    let Judged { read, measured, now } = match servers.get(&server) {
        Some(server) => {
            let own = OwnQueries { pool: &key, field: wanted.phase().field(), queries: &own };
            let asked = RolloutPods { pool: &key, pods: &pods, revisions: [canary.number, stable.number] };
            ask(server, asking, (own, wanted.queries(0, 0, &[])), asked, (from, longest_window)).await
        }
        None => Judged::of_no_server(&server),
    };
    let RevisionTurn { read, is_too_much, places: _places } = read;
    let is_news = {
        let mut memory = memory.lock();
        let PoolMemory { judging: Some(judging), .. } = &mut *memory else { return };
        if !judging.is_of(&of, &stable, &wanted, outage) {
            return;
        }
        if is_measured {
            judging.measured_at = Some(Instant::now());
        }
        if is_too_much {
            judging.longest_window = ((now - from).min(longest_window) / 2.0).max(SHORTEST_WINDOW_SECONDS);
        }
        let before = judging.seen.clone();
        // of a query of the user's own what was wrong last stays until it is asked again
        match (&read, &measured) {
            (Err(why), _) | (_, Err(why)) => judging.failing = Some(why.clone()),
            (Ok(_), Ok(_)) if is_measured || wanted.queries(0, 0, &[]).is_empty() => judging.failing = None,
            (Ok(_), Ok(_)) => {}
        }
        let lines = judging.take(read.as_ref(), measured.unwrap_or_default(), now);
        tell(&key, canary, &lines);
        let after = &judging.seen;
        let is_news = before.words != after.words
            || before.least_seconds != after.least_seconds
            || told(&before.judgement) != told(&after.judgement);
        if is_news {
            tracing::info!(
                pool = %key, revision = canary.number, verdict = told(&after.judgement).0, why = why(&after.judgement), "an analysis says"
            );
        }
        is_news
    };
    if is_news {
        context.requests.ask(&key, "analysis").await;
    }
}

/// What is known of a rollout now.
struct Judged {
    read: RevisionTurn,
    measured: Result<Vec<Measurement>, String>,
    /// As of when the pods were read, in Unix seconds.
    now: f64,
}

impl Judged {
    fn of_no_server(name: &str) -> Self {
        let why = format!(
            "the operator's configuration has no Prometheus named {name:?}; correct spec.scaling.metrics.prometheusRef"
        );
        let read = RevisionTurn { read: Err(why), is_too_much: false, places: None };
        Self { read, measured: Ok(Vec::new()), now: now() }
    }
}

fn now() -> f64 {
    Timestamp::now().as_duration().as_secs_f64()
}

/// What the user's own queries yield, and what was scraped of these pods since then (Unix seconds), or for so many seconds. The queries come
/// first: what was read of the pods takes room, and does not wait for them.
async fn ask(
    server: &PrometheusServer,
    asking: &AnalysisQueries,
    (own, written): (OwnQueries<'_>, Vec<(String, String)>),
    asked: RolloutPods<'_>,
    (from, longest_window): (f64, f64),
) -> Judged {
    if asked.pods.is_empty() {
        let read = RevisionTurn { read: Ok(RevisionReadings::default()), is_too_much: false, places: None };
        return Judged { read, measured: Ok(Vec::new()), now: now() };
    }
    let measured = asking.measure(server, own, written, now()).await;
    let now = now();
    let read = asking.read(server, asked, whole((now - from).min(longest_window)), now).await;
    Judged { read, measured, now }
}

/// Writes what a verdict rests on to the log, one line for each look.
fn tell(key: &PoolKey, canary: &RevisionId, lines: &[JudgeLine]) {
    for line in lines {
        match serde_json::to_string(line) {
            Ok(judge) => tracing::info!(pool = %key, revision = canary.number, judge, "analysis sample"),
            Err(error) => tracing::warn!(pool = %key, %error, "a sample of an analysis cannot be written"),
        }
    }
}

/// What of a judgement the machine acts on.
fn told(judgement: &RolloutJudgement) -> (&'static str, bool) {
    match judgement {
        RolloutJudgement::Pass => ("Pass", true),
        RolloutJudgement::Fail { .. } => ("Fail", true),
        RolloutJudgement::Inconclusive { is_final, .. } => ("Inconclusive", *is_final),
    }
}

fn why(judgement: &RolloutJudgement) -> &str {
    match judgement {
        RolloutJudgement::Pass => "no harm was found",
        RolloutJudgement::Fail { why } | RolloutJudgement::Inconclusive { why, .. } => why,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded by its only caller; saturates
fn whole(seconds: f64) -> u32 {
    seconds.ceil().max(1.0) as u32
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::RawQuery, routing::get};
    use parking_lot::Mutex;

    use super::*;
    use crate::{
        api::AnalysisSpec,
        decide::{
            analysis::{RevisionFigure, RevisionScrape, RevisionSeries, SampledFigure},
            rollout::{PostPromotion, PostPromotionEnd, PostPromotionOutcome},
        },
        signals::{RefusedSeries, SeriesRefusal, ServerConfiguration},
    };

    fn judging() -> Judging {
        let spec: AnalysisSpec =
            serde_yaml::from_str("metrics: [{name: Errors, compare: false, limitCount: 3}]").unwrap();
        let id = |number| RevisionId { number, hash: format!("h{number}") };
        let of = JudgedTry { revision: id(7), phase: AnalysisPhase::Canary, begun: 1000 };
        Judging::new(of, id(6), None, RolloutAnalysis::of(&spec, AnalysisPhase::Canary).unwrap())
    }

    fn readings(series: &[RevisionSeries]) -> RevisionReadings {
        RevisionReadings { series: series.to_vec(), refused: None }
    }

    /// A pod with so many errors in each of 60 s.
    fn scraped(revision: u64, errors: f64) -> RevisionSeries {
        let scrape = |second: u32| {
            let second = f64::from(second);
            let mut figures = [SampledFigure::Value(0.0); RevisionFigure::ALL.len()];
            figures[RevisionFigure::Transactions as usize] = SampledFigure::Value(40.0 * second);
            figures[RevisionFigure::Errors as usize] = SampledFigure::Value(errors * second);
            RevisionScrape { at_seconds: 1000.0 + second, figures }
        };
        let (pod, slot) = (format!("shop-{revision}"), "b".to_owned());
        RevisionSeries { pod, revision, slot, scrapes: (0..60).map(scrape).collect() }
    }

    #[test]
    fn while_prometheus_cannot_be_asked_nothing_is_decided_and_what_was_found_worse_stays_so() {
        let dead = "Prometheus \"default\", no answer in 2.0 s".to_owned();
        let mut judged = judging();
        judged.failing = Some(dead.clone());
        judged.take(Err(&dead), Vec::new(), 1060.0);
        let held = RolloutJudgement::Inconclusive { why: dead.clone(), is_final: false };
        assert_eq!((&judged.seen.judgement, &judged.seen.words), (&held, &dead));
        judged.failing = None;
        let lines = judged.take(Ok(&readings(&[scraped(7, 0.0), scraped(6, 0.0)])), Vec::new(), 1061.0);
        assert_eq!(judged.seen.judgement, RolloutJudgement::Pass);
        assert!(lines[0].settings.is_some() && lines.len() > 50, "{}", lines.len());
        judged.failing = Some(dead.clone());
        judged.take(Err(&dead), Vec::new(), 1062.0);
        assert_eq!(judged.seen.judgement, held, "what passed before is not known any more");

        let mut judged = judging();
        judged.take(Ok(&readings(&[scraped(7, 1.0), scraped(6, 0.0)])), Vec::new(), 1061.0);
        assert!(why(&judged.seen.judgement).starts_with("worse on shop-7: Errors"), "{:?}", judged.seen);
        judged.failing = Some(dead.clone());
        judged.take(Err(&dead), Vec::new(), 1062.0);
        assert_eq!(told(&judged.seen.judgement), ("Fail", true));
    }

    #[tokio::test]
    async fn a_query_of_ones_own_is_asked_in_namespaces_that_the_server_allows_and_nowhere_else() {
        let (server, seen) = prometheus().await;
        let asking = AnalysisQueries::default();
        let ask_of = async |namespace: &str| {
            let pool = PoolKey::new(namespace, "shop");
            let Judged { read, measured, .. } = asked(&server, &asking, &pool, "my_own_metric").await;
            (read.read.map(|readings| readings.series.len()), measured)
        };
        let (read, measured) = ask_of("good").await;
        assert_eq!((read, measured.map(|measured| measured.len())), (Ok(0), Ok(1)));
        seen.lock().clear();
        let (read, measured) = ask_of("other").await;
        assert!(read.is_ok(), "what Sluice measures itself goes on: {read:?}");
        let why = measured.expect_err("refused");
        assert!(
            why.starts_with("pools of namespace other may not use queries of their own on Prometheus \"default\""),
            "{why}"
        );
        assert!(why.contains("spec.rollout.analysis.metrics") && why.contains("allowedNamespaces"), "{why}");
        assert!(seen.lock().iter().all(|query| query != "my_own_metric"), "it was not sent");
    }

    #[test]
    fn a_revision_that_is_tried_again_begins_another_analysis_that_counts_nothing_of_the_try_before() {
        let id = |number| RevisionId { number, hash: format!("h{number}") };
        let mut rolling = RolloutMemory { stable: Some(id(6)), updated: Some(id(7)), ..RolloutMemory::default() };
        rolling.position.begun = 1000;
        let mut judged = judging();
        let wanted = judged.wanted.clone();
        let is_of = |judged: &Judging, rolling: &RolloutMemory| {
            judged.is_of(&course(rolling).expect("in course").of, &id(6), &wanted, None)
        };
        judged.take(Ok(&readings(&[scraped(7, 1.0), scraped(6, 0.0)])), Vec::new(), 1061.0);
        assert_eq!((is_of(&judged, &rolling), told(&judged.seen.judgement)), (true, ("Fail", true)));
        rolling.position.begun = 1060;
        assert!(!is_of(&judged, &rolling), "the same revision beside the same one, and another try");
        let mut again = Judging::new(course(&rolling).expect("in course").of, id(6), None, wanted.clone());
        again.take(Ok(&readings(&[scraped(7, 1.0), scraped(6, 0.0)])), Vec::new(), 1061.0);
        assert_ne!(told(&again.seen.judgement).0, "Fail", "its process never went back in between: {:?}", again.seen);
    }

    #[test]
    fn what_a_pod_that_exports_too_much_does_is_not_known_and_what_others_do_worse_is() {
        let mut forged = readings(&[scraped(7, 0.0), scraped(6, 0.0)]);
        forged.refused = Some(RefusedSeries {
            refusal: SeriesRefusal::TooManySets,
            pool: PoolKey::new("ns", "shop"),
            pod: "shop-9".to_owned(),
            metric: "sluice_revision_errors_total",
            value: String::new(),
            count: 1,
        });
        let mut judged = judging();
        judged.take(Ok(&forged), Vec::new(), 1061.0);
        assert_eq!(told(&judged.seen.judgement), ("Inconclusive", false));
        assert!(
            judged.seen.words.starts_with("pod \"shop-9\", pool ns/shop, has more than 8 sets"),
            "{:?}",
            judged.seen
        );
        judged.take(Ok(&readings(&[])), Vec::new(), 1062.0);
        assert_eq!(told(&judged.seen.judgement), ("Pass", true), "once it has ended");

        let mut judged = judging();
        forged.series = vec![scraped(7, 1.0), scraped(6, 0.0)];
        judged.take(Ok(&forged), Vec::new(), 1061.0);
        assert_eq!(told(&judged.seen.judgement), ("Fail", true));
    }

    #[test]
    fn without_series_of_any_pod_it_says_what_to_look_at() {
        let mut judged = judging();
        judged.take(Ok(&readings(&[])), Vec::new(), 1061.0);
        assert!(judged.seen.words.contains("is each agent of this version, and scraped?"), "{:?}", judged.seen);
    }

    #[test]
    fn what_is_stable_failed_or_undone_is_not_judged() {
        let id = |number| RevisionId { number, hash: format!("h{number}") };
        let rolling = RolloutMemory { stable: Some(id(6)), updated: Some(id(7)), ..RolloutMemory::default() };
        let of = JudgedTry { revision: id(7), phase: AnalysisPhase::Canary, begun: 0 };
        assert_eq!(course(&rolling), Some(JudgedCourse { of, stable: id(6), since: 0, outage: None }));
        assert_eq!(course(&RolloutMemory { updated: Some(id(6)), ..rolling.clone() }), None);
        assert_eq!(course(&RolloutMemory { stable: None, ..rolling.clone() }), None);
        assert_eq!(course(&RolloutMemory { failed_hashes: vec!["h7".to_owned()], ..rolling }), None);
    }

    #[test]
    fn what_was_promoted_is_judged_beside_the_one_before_until_its_analysis_has_ended() {
        let id = |number| RevisionId { number, hash: format!("h{number}") };
        let promoted = PostPromotion { revision: id(7), from: id(6), since: 900, counts_from: 950, end: None };
        let through = |promoted| RolloutMemory {
            stable: Some(id(7)),
            updated: Some(id(7)),
            promoted: Some(promoted),
            ..RolloutMemory::default()
        };
        let of = JudgedTry { revision: id(7), phase: AnalysisPhase::PostPromotion, begun: 900 };
        let judged = JudgedCourse { of, stable: id(6), since: 900, outage: None };
        assert_eq!(course(&through(promoted.clone())), Some(judged));
        let end = PostPromotionEnd { outcome: PostPromotionOutcome::Passed, message: String::new(), at: 990 };
        assert_eq!(course(&through(PostPromotion { end: Some(end), ..promoted })), None);
    }

    /// Time between two rounds, where a test waits for some.
    const OFTEN: Duration = Duration::from_millis(20);

    /// A Prometheus that never answers the query `slow`, answers any other with a number, and has scraped nothing of any pod. Says which
    /// queries came.
    async fn prometheus() -> (PrometheusServer, Arc<Mutex<Vec<String>>>) {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let asked = seen.clone();
        let answer = move |RawQuery(query): RawQuery| {
            let url = reqwest::Url::parse(&format!("http://x/?{}", query.unwrap_or_default())).unwrap();
            let query = url.query_pairs().find(|(name, _)| name == "query").unwrap().1.into_owned();
            asked.lock().push(query.clone());
            async move {
                let result = match query.as_str() {
                    "slow" => std::future::pending().await,
                    query if query.starts_with('{') => r#""matrix","result":[]"#,
                    _ => r#""scalar","result":[1,"2"]"#,
                };
                format!(r#"{{"status":"success","data":{{"resultType":{result}}}}}"#)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/api/v1/query", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let allowed_namespaces = ["slow", "good"].map(str::to_owned).into();
        let configuration =
            ServerConfiguration { timeout_seconds: 3, allowed_namespaces, ..ServerConfiguration::new(url) };
        (PrometheusServer::new("default", configuration), seen)
    }

    /// Asks as a judgement of this pool does that has one query of its own.
    async fn asked(server: &PrometheusServer, asking: &AnalysisQueries, pool: &PoolKey, query: &str) -> Judged {
        let own = vec![("own".to_owned(), query.to_owned())];
        let queries = OwnQueries { pool, field: "spec.rollout.analysis", queries: &own };
        let pods = RolloutPods { pool, pods: &["a"], revisions: [7, 6] };
        ask(server, asking, (queries, own.clone()), pods, (now() - 60.0, 60.0)).await
    }

    #[tokio::test]
    async fn a_tenant_whose_queries_take_for_ever_delays_no_verdict_of_another() {
        let (server, seen) = prometheus().await;
        let asking = AnalysisQueries::default();
        let slow = (0..20).map(|number| PoolKey::new("slow", format!("slow-{number:02}")));
        let pools: Vec<PoolKey> = slow.chain([PoolKey::new("good", "shop")]).collect();
        let due = || pools.iter().map(|pool| (pool.clone(), pool.clone())).collect();
        let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
        let judge = |pool: PoolKey| {
            let (server, asking, heard) = (&server, &asking, heard.clone());
            async move {
                let query = if pool.namespace == "slow" { "slow" } else { "up" };
                let judged = asked(server, asking, &pool, query).await;
                heard.send((pool, judged.measured.map(|measured| measured.len()), judged.read.read.is_ok())).unwrap();
            }
        };
        let begun = Instant::now();
        let mut slow_ones = Vec::new();
        let hear = async {
            // each of these is a round of its own
            let mut verdicts = 0;
            while verdicts < 10 {
                let (pool, measured, is_read) = hearing.recv().await.unwrap();
                assert_eq!((pool.namespace.as_str(), measured, is_read), ("good", Ok(1), true));
                verdicts += 1;
            }
            assert!(
                begun.elapsed() < Duration::from_millis(2900),
                "{:?}: before any of the others is late",
                begun.elapsed()
            );
            // and each of the others is told why, and read all the same
            while slow_ones.len() < 20 {
                let (pool, measured, is_read) = hearing.recv().await.unwrap();
                if pool.namespace == "slow" {
                    assert!(is_read);
                    slow_ones.push(measured.unwrap_err());
                }
            }
        };
        tokio::select! {
            () = judge_each(OFTEN, due, judge) => {}
            () = hear => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("{slow_ones:?}"),
        }
        let sent = seen.lock().iter().filter(|query| *query == "slow").count();
        assert!((2..=6).contains(&sent), "the namespace has two places, and one for trials once it was late: {sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_whose_judgement_is_under_way_misses_the_round_and_no_other_does() {
        let begun = Mutex::new(Vec::new());
        let due = || ["hangs", "shop"].map(|pool| (PoolKey::new("ns", pool), pool)).to_vec();
        let judge = |pool: &'static str| {
            begun.lock().push(pool);
            async move {
                if pool == "hangs" {
                    std::future::pending::<()>().await;
                }
            }
        };
        let _ = tokio::time::timeout(EVERY * 10, judge_each(EVERY, due, judge)).await;
        let count = |pool| begun.lock().iter().filter(|begun| **begun == pool).count();
        assert_eq!(count("hangs"), 1);
        assert!((10..=11).contains(&count("shop")), "{}", count("shop"));
    }
}
