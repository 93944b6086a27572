//! Rollouts in course, and revisions that were promoted lately, are judged by live metrics: asked of Prometheus every few seconds, pool by
//! pool, and only while there is one.
//!
//! What is remembered is the analysis of one try of one revision in one phase. Another revision, the same one tried again, another stable one or
//! another spec begins anew, and so does another leader: what happened before is in Prometheus. While that cannot be asked nothing is decided, and a verdict that it is
//! worse stays. Each sample that a verdict rests on is a line of the log, as `sluice judge` reads it.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{context::Context, memory::PoolMemory};
use crate::{
    api::ConnectionPool,
    causes::with_causes,
    decide::{
        analysis::{AnalysisPhase, JudgeLine, LiveAnalysis, Measurement, Outcome, RevisionSeries, RolloutAnalysis},
        outage::OutageSpan,
        plan::{JudgedSeen, PodFacts},
        rollout::{JudgedTry, RevisionId, RolloutJudgement, RolloutMemory},
        shares::PodPhase,
    },
    domain::PoolKey,
    signals::{DEFAULT_SERVER, PrometheusServer, Servers},
};

/// Rollouts are judged this often, or at each tick where that is more often.
const EVERY: Duration = Duration::from_secs(5);
/// The user's own queries are asked this often.
const MEASURED_EVERY: Duration = Duration::from_secs(15);
/// Pools that are judged at once.
const AT_ONCE: usize = 32;
/// Pods of a pool that are looked at: canaries, and those that they are compared with. More say hardly more.
const MOST_CANARIES: usize = 20;
const MOST_OTHERS: usize = 40;
/// What is looked at first lies this far back beyond the begin of the step in course, in seconds; and no further than this in all.
const PAST_SECONDS: f64 = 600.0;
const LONGEST_WINDOW_SECONDS: f64 = 1800.0;

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
    of: JudgedTry,
    stable: RevisionId,
    wanted: RolloutAnalysis,
    /// None while no pod was scraped twice.
    live: Option<LiveAnalysis>,
    /// Why nothing could be read the last time.
    failing: Option<String>,
    measured_at: Option<Instant>,
    seen: JudgedSeen,
}

impl Judging {
    fn new(of: JudgedTry, stable: RevisionId, outage: Option<OutageSpan>, wanted: RolloutAnalysis) -> Self {
        let words = "nothing was measured yet".to_owned();
        let judgement = RolloutJudgement::Inconclusive { why: words.clone(), is_final: false };
        let seen = JudgedSeen { of: of.clone(), outage, judgement, words, least_seconds: None };
        Self { of, stable, wanted, live: None, failing: None, measured_at: None, seen }
    }

    /// Whether it is the analysis of this: what was begun before the database was away begins anew, without what was measured then.
    fn is_of(&self, of: &JudgedTry, stable: &RevisionId, wanted: &RolloutAnalysis, outage: Option<OutageSpan>) -> bool {
        (&self.of, &self.stable, &self.wanted, self.seen.outage) == (of, stable, wanted, outage)
    }

    /// What is said of the revision.
    pub fn seen(&self) -> &JudgedSeen {
        &self.seen
    }

    /// Takes what was read, and says which lines of the log lead to the same verdict.
    fn take(
        &mut self,
        read: Result<&[RevisionSeries], &String>,
        measured: Vec<Measurement>,
        now: f64,
    ) -> Vec<JudgeLine> {
        let mut lines = Vec::new();
        if let Ok(series) = read {
            if self.live.is_none() {
                let revisions = (self.of.revision.number, self.stable.number);
                match LiveAnalysis::begin(&self.wanted, revisions, self.of.begun as f64, series) {
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
        let (judgement, words) = match (verdict, &self.failing) {
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
    let mut rounds = interval(EVERY.min(context.tick));
    rounds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        rounds.tick().await;
        if context.leadership.is_held() && context.pods.is_synced() {
            let rollouts = stream::iter(in_course(&context));
            rollouts.for_each_concurrent(AT_ONCE, |rollout| judge(&context, &servers, rollout)).await;
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

async fn judge(context: &Context, servers: &Servers, rollout: JudgedRollout) {
    let JudgedRollout { key, pool, course: JudgedCourse { of, stable, since, outage }, wanted, server } = rollout;
    let canary = &of.revision;
    let facts = context.pods.of(&key);
    let (canaries, others) = names(&facts, &key.name, canary.number);
    let memory = context.memories.of(&key, &pool);
    let now = Timestamp::now().as_duration().as_secs_f64();
    let (window, is_measured) = {
        let mut memory = memory.lock();
        let judging = memory.judging.as_deref();
        if !judging.is_some_and(|judging| judging.is_of(&of, &stable, &wanted, outage)) {
            tracing::info!(pool = %key, revision = canary.number, against = stable.number, "an analysis begins");
            memory.judging = Some(Box::new(Judging::new(of.clone(), stable.clone(), outage, wanted.clone())));
        }
        let judging = memory.judging.as_ref();
        let live = judging.and_then(|judging| judging.live.as_ref());
        let window = live.map_or(now - since as f64 + PAST_SECONDS, |live| {
            now - live.looked_at() + 3.0 * live.interval_seconds() + 5.0
        });
        let measured_at = judging.and_then(|judging| judging.measured_at);
        (window, !canaries.is_empty() && measured_at.is_none_or(|at| at.elapsed() >= MEASURED_EVERY))
    };
    let queries = if is_measured { wanted.queries(canary.number, stable.number, &canaries) } else { Vec::new() };
    let pods: Vec<&str> = canaries.iter().chain(&others).copied().collect();
    let (read, measured) = match servers.get(&server) {
        Some(server) => ask(server, &key, (&pods, window), (wanted.phase().field(), &queries), now).await,
        None => (
            Err(format!(
                "the operator's configuration has no Prometheus named {server:?}; correct spec.scaling.metrics.prometheusRef"
            )),
            Ok(Vec::new()),
        ),
    };
    let is_news = {
        let mut memory = memory.lock();
        let PoolMemory { judging: Some(judging), .. } = &mut *memory else { return };
        if !judging.is_of(&of, &stable, &wanted, outage) {
            return;
        }
        if is_measured {
            judging.measured_at = Some(Instant::now());
        }
        let before = judging.seen.clone();
        // of a query of the user's own what was wrong last stays until it is asked again
        match (&read, &measured) {
            (Err(why), _) | (_, Err(why)) => judging.failing = Some(why.clone()),
            (Ok(_), Ok(_)) if is_measured || wanted.queries(0, 0, &[]).is_empty() => judging.failing = None,
            (Ok(_), Ok(_)) => {}
        }
        let lines = judging.take(read.as_deref(), measured.unwrap_or_default(), now);
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

/// What was scraped of these pods, and what the user's own queries yield; or why that cannot be known.
async fn ask(
    server: &PrometheusServer,
    key: &PoolKey,
    (pods, window): (&[&str], f64),
    (field, queries): (&str, &[(String, String)]),
    now: f64,
) -> (Result<Vec<RevisionSeries>, String>, Result<Vec<Measurement>, String>) {
    if pods.is_empty() {
        return (Ok(Vec::new()), Ok(Vec::new()));
    }
    let read = server.read_revisions(now, whole(window.min(LONGEST_WINDOW_SECONDS)), key, pods).await;
    let read = read.map_err(|error| with_causes(&error));
    if !queries.is_empty() && !server.configuration().allows_overrides_of(&key.namespace) {
        let (name, namespace) = (server.name(), &key.namespace);
        let why = format!(
            "pools of namespace {namespace} may not use queries of their own on Prometheus {name:?}; remove the query of \
             {field}.metrics, or add the namespace to its allowedNamespaces (chart: prometheus.servers.{name}.allowedNamespaces)"
        );
        return (read, Err(why));
    }
    let mut measured = Vec::with_capacity(queries.len());
    for (metric, query) in queries {
        match server.measure(now, key, metric, query).await {
            Ok(measurement) => measured.push(measurement),
            Err(error) => return (read, Err(with_causes(&error))),
        }
    }
    (read, Ok(measured))
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
    use super::*;
    use crate::{
        api::AnalysisSpec,
        decide::{
            analysis::{RevisionFigure, RevisionScrape, SampledFigure},
            rollout::{PostPromotion, PostPromotionEnd, PostPromotionOutcome},
        },
        signals::ServerConfiguration,
    };

    fn judging() -> Judging {
        let spec: AnalysisSpec =
            serde_yaml::from_str("metrics: [{name: Errors, compare: false, limitCount: 3}]").unwrap();
        let id = |number| RevisionId { number, hash: format!("h{number}") };
        let of = JudgedTry { revision: id(7), phase: AnalysisPhase::Canary, begun: 1000 };
        Judging::new(of, id(6), None, RolloutAnalysis::of(&spec, AnalysisPhase::Canary).unwrap())
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
        let lines = judged.take(Ok(&[scraped(7, 0.0), scraped(6, 0.0)]), Vec::new(), 1061.0);
        assert_eq!(judged.seen.judgement, RolloutJudgement::Pass);
        assert!(lines[0].settings.is_some() && lines.len() > 50, "{}", lines.len());
        judged.failing = Some(dead.clone());
        judged.take(Err(&dead), Vec::new(), 1062.0);
        assert_eq!(judged.seen.judgement, held, "what passed before is not known any more");

        let mut judged = judging();
        judged.take(Ok(&[scraped(7, 1.0), scraped(6, 0.0)]), Vec::new(), 1061.0);
        assert!(why(&judged.seen.judgement).starts_with("worse on shop-7: Errors"), "{:?}", judged.seen);
        judged.failing = Some(dead.clone());
        judged.take(Err(&dead), Vec::new(), 1062.0);
        assert_eq!(told(&judged.seen.judgement), ("Fail", true));
    }

    #[tokio::test]
    async fn a_query_of_ones_own_is_asked_in_namespaces_that_the_server_allows_and_nowhere_else() {
        let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = asked.clone();
        let answer = move |axum::extract::RawQuery(query): axum::extract::RawQuery| {
            let query = query.unwrap_or_default();
            let is_own = query.contains("my_own_metric");
            seen.lock().push(query);
            async move {
                let result = if is_own {
                    r#""vector","result":[{"metric":{},"value":[1,"0.5"]}]"#
                } else {
                    r#""matrix","result":[]"#
                };
                format!(r#"{{"status":"success","data":{{"resultType":{result}}}}}"#)
            }
        };
        let router = axum::Router::new().route("/api/v1/query", axum::routing::get(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let configuration = ServerConfiguration {
            allowed_namespaces: ["shop".to_owned()].into(),
            ..ServerConfiguration::new(format!("http://{address}/"))
        };
        let server = PrometheusServer::new("default", configuration);
        let queries = [("mine".to_owned(), "my_own_metric".to_owned())];
        let ask_of = async |namespace: &str| {
            let key = PoolKey::new(namespace, "shop");
            ask(&server, &key, (&["shop-7"], 60.0), ("spec.rollout.analysis", &queries), 1000.0).await
        };
        let (read, measured) = ask_of("shop").await;
        assert_eq!((read.map(|series| series.len()), measured.map(|measured| measured.len())), (Ok(0), Ok(1)));
        asked.lock().clear();
        let (read, measured) = ask_of("other").await;
        assert!(read.is_ok(), "what Sluice measures itself goes on: {read:?}");
        let why = measured.expect_err("refused");
        assert!(
            why.starts_with("pools of namespace other may not use queries of their own on Prometheus \"default\""),
            "{why}"
        );
        assert!(why.contains("spec.rollout.analysis.metrics") && why.contains("allowedNamespaces"), "{why}");
        assert!(asked.lock().iter().all(|query| !query.contains("my_own_metric")), "it was not sent");
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
        judged.take(Ok(&[scraped(7, 1.0), scraped(6, 0.0)]), Vec::new(), 1061.0);
        assert_eq!((is_of(&judged, &rolling), told(&judged.seen.judgement)), (true, ("Fail", true)));
        rolling.position.begun = 1060;
        assert!(!is_of(&judged, &rolling), "the same revision beside the same one, and another try");
        let mut again = Judging::new(course(&rolling).expect("in course").of, id(6), None, wanted.clone());
        again.take(Ok(&[scraped(7, 1.0), scraped(6, 0.0)]), Vec::new(), 1061.0);
        assert_ne!(told(&again.seen.judgement).0, "Fail", "its process never went back in between: {:?}", again.seen);
    }

    #[test]
    fn without_series_of_any_pod_it_says_what_to_look_at() {
        let mut judged = judging();
        judged.take(Ok(&[]), Vec::new(), 1061.0);
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
}
