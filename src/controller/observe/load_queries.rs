//! Asking the servers of Prometheus, each apart from the others, and the users' own queries apart from both: whoever is late keeps
//! nobody waiting but the pools that need it.
//!
//! ```text
//! begin ─▶ readings of server A ─▶ its pools ──────────────────▶ heard
//!      ├─▶ readings of server B ─▶ its pools ──────────────────▶ heard
//!      ├─▶ own queries of pool p ─▶ with the readings of its server ─▶ heard
//!      └─▶ 95th percentile of server A, once a minute ─────────▶ heard
//! ```
//! One reading of a server, and one turn of a pool's own queries, is under way at a time: who needs longer than a tick misses the next.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::overrides::{OverrideAnswers, OverrideTurn, Overrides};
use crate::{
    api::ConnectionPool,
    causes::with_causes,
    decide::effective::EffectivePool,
    domain::PoolKey,
    signals::{OverrideQuery, PrometheusServer, QUERIES_PER_READ, Readings, Roster, Servers},
};

/// Quantiles of the wait are asked for this often.
const QUANTILES_EVERY: Duration = Duration::from_mins(1);
/// What was heard and not taken up yet; who has more to say waits.
const UNHANDLED: usize = 16;

/// Names of pods, each with its pool.
pub type Pods = Vec<(Arc<PoolKey>, String)>;

/// A pool at one tick.
pub struct QueriedPool {
    /// Its key.
    pub key: PoolKey,
    /// The object.
    pub pool: Arc<ConnectionPool>,
    /// Merged with its class.
    pub effective: EffectivePool,
    /// Name of the server that has its load.
    pub server: String,
    /// Its own queries.
    pub overrides: Vec<OverrideQuery>,
}

/// One tick: everything that is asked at the same moment. The last who holds it ends it.
#[derive(Debug)]
pub struct Tick {
    /// As of when everything is asked.
    pub started: Timestamp,
    /// The same by the clock that is never set.
    pub began: Instant,
    /// How many pools there are.
    pub pools: usize,
}

/// What one server said at one tick.
#[derive(Debug)]
pub struct ServerReadings {
    /// The load of all pools, or why it could not be read.
    pub readings: Result<Readings, String>,
    /// Seconds after which a reading is too old.
    pub stale_after_seconds: f64,
    /// Where it is asked.
    pub url: String,
}

/// The load of some pools, as far as it could be read.
pub struct LoadBatch {
    /// The pools.
    pub pools: Vec<QueriedPool>,
    /// What their server said; none where the configuration has none of its name.
    pub server: Option<Arc<ServerReadings>>,
    /// What the pool's own queries yielded, where it has such: then it is one pool.
    pub overrides: OverrideAnswers,
    /// As of when.
    pub now: Timestamp,
}

/// What came of queries.
pub enum QueryOutcome {
    /// Of the load of pools.
    Load(LoadBatch),
    /// 95th percentile of the wait in seconds, by pool, or why it could not be read.
    Quantiles {
        /// Which server said it.
        server: String,
        /// What it said.
        by_pool: Result<HashMap<PoolKey, f64>, String>,
    },
}

/// What came of queries, and what they took.
pub struct QueryReport {
    /// What came of the queries.
    pub outcome: QueryOutcome,
    /// The tick, of which this is the reading of one server.
    pub tick: Option<Arc<Tick>>,
    /// How many queries were sent.
    pub queries: usize,
    /// How many of them failed.
    pub failed: usize,
}

/// What is asked, and of whom.
pub struct LoadQueries {
    servers: Servers,
    overrides: Arc<Overrides>,
    /// By name of the server: what is under way.
    in_flight: BTreeMap<String, ServerQueries>,
    tasks: JoinSet<()>,
    heard: mpsc::Sender<QueryReport>,
}

/// Pools of which nothing will be heard at a tick.
#[derive(Default)]
pub struct NotQueried {
    /// Their server is not in the configuration.
    pub of_no_server: Vec<QueriedPool>,
    /// What was asked at an earlier tick has not been answered.
    pub waiting: Vec<PoolKey>,
}

/// One server between two ticks.
struct ServerQueries {
    reading: Arc<Semaphore>,
    quantiles: Arc<Semaphore>,
    quantiles_due: Instant,
}

impl Default for ServerQueries {
    fn default() -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { reading: one(), quantiles: one(), quantiles_due: Instant::now() }
    }
}

impl LoadQueries {
    /// Asks these servers. What is heard comes out of the other end.
    pub fn new(servers: Servers) -> (Self, mpsc::Receiver<QueryReport>) {
        let (heard, hearing) = mpsc::channel(UNHANDLED);
        (Self { servers, overrides: Arc::default(), in_flight: BTreeMap::new(), tasks: JoinSet::new(), heard }, hearing)
    }

    /// Begins to ask for the load of these pools, of which there are these pods. Returns those of which nothing will be heard.
    pub fn begin(&mut self, members: Vec<QueriedPool>, pods: Pods, tick: &Arc<Tick>) -> NotQueried {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(ended) = ended
                && let Ok(panic) = ended.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
        self.overrides.keep(&members.iter().map(|member| &member.key).collect());
        let server_of: HashMap<PoolKey, String> =
            members.iter().map(|member| (member.key.clone(), member.server.clone())).collect();
        let mut by_server: BTreeMap<String, (Vec<QueriedPool>, Pods)> = BTreeMap::new();
        for member in members {
            by_server.entry(member.server.clone()).or_default().0.push(member);
        }
        // of what a server has of the pools of another nothing is read
        for pod in pods {
            if let Some((_, pods)) = server_of.get(&*pod.0).and_then(|server| by_server.get_mut(server)) {
                pods.push(pod);
            }
        }
        let mut unasked = NotQueried::default();
        for (name, (members, pods)) in by_server {
            match self.servers.get(&name).cloned() {
                Some(server) => {
                    let roster = Arc::new(pods.into_iter().collect());
                    unasked.waiting.extend(self.begin_with(&server, members, &roster, tick));
                }
                None => unasked.of_no_server.extend(members),
            }
        }
        unasked
    }

    /// Returns the pools of which an answer is still awaited.
    fn begin_with(
        &mut self,
        server: &Arc<PrometheusServer>,
        members: Vec<QueriedPool>,
        roster: &Arc<Roster>,
        tick: &Arc<Tick>,
    ) -> Vec<PoolKey> {
        let (now, began) = (tick.started, tick.began);
        let in_flight = self.in_flight.entry(server.name().to_owned()).or_default();
        if began >= in_flight.quantiles_due
            && let Ok(turn) = in_flight.quantiles.clone().try_acquire_owned()
        {
            in_flight.quantiles_due = began + QUANTILES_EVERY;
            self.tasks.spawn(quantiles(server.clone(), roster.clone(), now, self.heard.clone(), turn));
        }
        let Ok(turn) = in_flight.reading.clone().try_acquire_owned() else {
            tracing::warn!(server = server.name(), "the last reading has not ended; its pools wait for it");
            return members.into_iter().map(|member| member.key).collect();
        };
        let (mut own, others): (Vec<QueriedPool>, Vec<QueriedPool>) =
            members.into_iter().partition(|member| !member.overrides.is_empty());
        let (tell, told) = watch::channel(None);
        // whoever has waited longest comes first
        own.sort_by_key(|member| self.overrides.asked(&member.key));
        let mut waiting = Vec::new();
        for member in own {
            if self.overrides.begin(&member.key, &member.overrides) {
                let turn = own_queries(server.clone(), self.overrides.clone(), member, told.clone(), now);
                self.tasks.spawn(report_turn(turn, self.heard.clone()));
            } else {
                waiting.push(member.key);
            }
        }
        self.tasks.spawn(reading(server.clone(), roster.clone(), others, tick.clone(), self.heard.clone(), tell, turn));
        waiting
    }

    /// Soon asks this server for its quantiles again: none is known before every pod has been scraped twice.
    pub fn quantiles_again(&mut self, server: &str) {
        if let Some(in_flight) = self.in_flight.get_mut(server) {
            in_flight.quantiles_due = Instant::now();
        }
    }
}

/// Unix time in seconds.
fn seconds(now: Timestamp) -> f64 {
    now.as_duration().as_secs_f64()
}

/// Reads the load of all pools of one server, and tells of those that need nothing else.
async fn reading(
    server: Arc<PrometheusServer>,
    roster: Arc<Roster>,
    members: Vec<QueriedPool>,
    tick: Arc<Tick>,
    heard: mpsc::Sender<QueryReport>,
    tell: watch::Sender<Option<Arc<ServerReadings>>>,
    turn: OwnedSemaphorePermit,
) {
    let now = tick.started;
    let readings = server.read(seconds(now), &roster).await.map_err(|error| with_causes(&error));
    match &readings {
        Ok(readings) => {
            for problem in &readings.problems {
                tracing::warn!(server = server.name(), %problem, "series refused");
            }
        }
        Err(error) => tracing::warn!(server = server.name(), error, "reading the load; all its pools hold"),
    }
    let failed = usize::from(readings.is_err());
    let stale_after_seconds = server.configuration().stale_after_seconds();
    let said = Arc::new(ServerReadings { readings, stale_after_seconds, url: server.configuration().url.clone() });
    // pools with queries of their own may wait for it, or there may be none
    let _ = tell.send(Some(said.clone()));
    let load = LoadBatch { pools: members, server: Some(said), overrides: OverrideAnswers::new(), now };
    let report = QueryReport { outcome: QueryOutcome::Load(load), tick: Some(tick), queries: QUERIES_PER_READ, failed };
    // the other end is gone only when nobody leads any more
    let _ = heard.send(report).await;
    // not before: what is heard of a pool keeps its order
    drop(turn);
}

/// Asks a pool's own queries, and waits for the readings of its server.
async fn own_queries(
    server: Arc<PrometheusServer>,
    overrides: Arc<Overrides>,
    member: QueriedPool,
    mut told: watch::Receiver<Option<Arc<ServerReadings>>>,
    now: Timestamp,
) -> Option<(LoadBatch, usize, usize)> {
    let turn = overrides.ask(&server, &member.key, &member.overrides, seconds(now)).await;
    let OverrideTurn { own, asked, failed } = turn;
    let said = told.wait_for(Option::is_some).await.ok()?.clone();
    Some((LoadBatch { pools: vec![member], server: said, overrides: own, now }, asked, failed))
}

async fn report_turn(turn: impl Future<Output = Option<(LoadBatch, usize, usize)>>, heard: mpsc::Sender<QueryReport>) {
    if let Some((load, queries, failed)) = turn.await {
        let _ = heard.send(QueryReport { outcome: QueryOutcome::Load(load), tick: None, queries, failed }).await;
    }
}

/// Asks for the 95th percentile of the wait, of which nothing is decided.
async fn quantiles(
    server: Arc<PrometheusServer>,
    roster: Arc<Roster>,
    now: Timestamp,
    heard: mpsc::Sender<QueryReport>,
    turn: OwnedSemaphorePermit,
) {
    let by_pool = server.wait_p95_seconds(seconds(now), &roster).await.map_err(|error| with_causes(&error));
    drop(turn);
    let failed = usize::from(by_pool.is_err());
    let outcome = QueryOutcome::Quantiles { server: server.name().to_owned(), by_pool };
    let _ = heard.send(QueryReport { outcome, tick: None, queries: 1, failed }).await;
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::{Router, body::Body, extract::RawQuery, http::Response, routing::get};
    use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        api::Signal,
        decide::{effective::effective, load::NoNumber},
        signals::ServerConfiguration,
    };

    /// Longest that anything here takes which waits for nobody.
    const SOON: Duration = Duration::from_millis(900);
    /// And longest until a query is given up, with what else a busy machine needs.
    const GIVEN_UP: Duration = Duration::from_secs(20);

    fn member(namespace: &str, name: &str, server: &str, query: Option<&str>) -> QueriedPool {
        let pool: ConnectionPool = serde_yaml::from_str(
            "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {name: shop, namespace: ns}\nspec:\n  \
             workload: {selector: {matchLabels: {app: shop}}}\n  \
             upstream: {host: pg, database: shop, credentialsRef: {name: shop-db}}\n",
        )
        .unwrap();
        let key = PoolKey::new(namespace, name);
        let own =
            |query: &str| OverrideQuery { pool: key.clone(), signal: Signal::WaitingClients, query: query.to_owned() };
        QueriedPool {
            effective: effective(&pool.spec, None).unwrap(),
            pool: Arc::new(pool),
            server: server.to_owned(),
            overrides: query.map(own).into_iter().collect(),
            key,
        }
    }

    type Answer = BoxFuture<'static, Response<Body>>;

    /// A Prometheus that answers as this says, by the query.
    async fn serve(name: &str, answer: impl Fn(String) -> Answer + Clone + Send + Sync + 'static) -> PrometheusServer {
        let answer = move |RawQuery(query): RawQuery| {
            let url = reqwest::Url::parse(&format!("http://x/?{}", query.unwrap_or_default())).unwrap();
            answer(url.query_pairs().find(|(name, _)| name == "query").unwrap().1.into_owned())
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let router = Router::new().route("/api/v1/query", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let allowed_namespaces = ["ns", "slow", "good"].map(str::to_owned).into();
        let url = format!("http://{address}");
        PrometheusServer::new(
            name,
            ServerConfiguration { timeout_seconds: 1, allowed_namespaces, ..ServerConfiguration::new(url) },
        )
    }

    fn vector(series: &str) -> Answer {
        let body = format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}}}"#);
        async { Response::new(Body::from(body)) }.boxed()
    }

    fn never() -> Answer {
        std::future::pending().boxed()
    }

    fn tick() -> Arc<Tick> {
        Arc::new(Tick { started: Timestamp::UNIX_EPOCH, began: Instant::now(), pools: 1 })
    }

    fn pods() -> Pods {
        vec![(PoolKey::new("ns", "shop").into(), "shop-0".to_owned())]
    }

    fn is_of_readings(query: &str) -> bool {
        query.contains("__name__")
    }

    /// The loads that are heard of until all of these pools are, or until the time is up.
    async fn loads(hearing: &mut mpsc::Receiver<QueryReport>, pools: usize, within: Duration) -> Vec<LoadBatch> {
        let mut loads: Vec<LoadBatch> = Vec::new();
        let heard = async {
            while loads.iter().map(|load| load.pools.len()).sum::<usize>() < pools {
                if let QueryOutcome::Load(load) = hearing.recv().await.unwrap().outcome
                    && !load.pools.is_empty()
                {
                    loads.push(load);
                }
            }
        };
        let _ = timeout(within, heard).await;
        loads
    }

    fn names(loads: &[LoadBatch]) -> Vec<&str> {
        let mut names: Vec<&str> =
            loads.iter().flat_map(|load| &load.pools).map(|member| member.key.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn message(load: &LoadBatch) -> &str {
        match &load.overrides[&Signal::WaitingClients].number {
            Ok(number) => panic!("{number}"),
            Err(NoNumber::Failed(message) | NoNumber::NotAllowed(message)) => message,
        }
    }

    #[tokio::test]
    async fn the_pools_of_a_server_wait_for_no_other_server_and_of_one_that_no_pool_names_nothing_is_asked() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let idle = serve("idle", move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            never()
        });
        let (hangs, shop) = (serve("hangs", |_| never()).await, serve("shop", |_| vector("")).await);
        let servers: Servers = [idle.await, hangs, shop].into_iter().collect();
        let (mut asking, mut hearing) = LoadQueries::new(servers);
        let members = || ["shop", "hangs", "none"].map(|server| member("ns", server, server, None)).into();
        let unasked = asking.begin(members(), pods(), &tick());
        assert_eq!(unasked.of_no_server.iter().map(|member| member.key.name.as_str()).collect::<Vec<_>>(), ["none"]);
        let heard = loads(&mut hearing, 1, SOON).await;
        assert_eq!(names(&heard), ["shop"]);
        assert!(heard[0].server.as_ref().unwrap().readings.is_ok());
        // the next tick finds one of them still waiting
        let unasked = asking.begin(members(), pods(), &tick());
        assert_eq!(unasked.waiting, [PoolKey::new("ns", "hangs")]);
        let heard = loads(&mut hearing, 2, GIVEN_UP).await;
        assert_eq!(names(&heard), ["hangs", "shop"], "given up in the end, and told");
        assert!(heard.iter().any(|load| load.server.as_ref().unwrap().readings.is_err()));
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_query_that_takes_for_ever_or_yields_everything_holds_up_the_pool_that_it_is_of_and_no_other() {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        let server = serve("default", move |query| {
            if is_of_readings(&query) {
                return vector("");
            }
            let counter = counter.clone();
            match query.as_str() {
                "slow" => never(),
                "everything" => {
                    let piece = r#"{"metric":{"a":"b"},"value":[1,"4"]},"#.repeat(2000);
                    let pieces = stream::iter(0..1000).map(move |_| {
                        counter.fetch_add(piece.len(), Ordering::Relaxed);
                        Ok::<_, std::io::Error>(piece.clone())
                    });
                    let body = Body::from_stream(pieces);
                    async { Response::new(body) }.boxed()
                }
                _ => vector(r#"{"metric":{},"value":[1,"7"]}"#),
            }
        });
        let (mut asking, mut hearing) = LoadQueries::new([server.await].into_iter().collect());
        let mut members =
            vec![member("ns", "plain", "default", None), member("good", "number", "default", Some("seven"))];
        members.extend(["slow", "everything"].map(|query| member("slow", query, "default", Some(query))));
        asking.begin(members, pods(), &tick());
        let heard = loads(&mut hearing, 3, SOON).await;
        assert_eq!(names(&heard), ["everything", "number", "plain"]);
        let number = heard.iter().find(|load| load.pools[0].key.name == "number").unwrap();
        assert_eq!(number.overrides[&Signal::WaitingClients].number, Ok(7.0));
        let everything = heard.iter().find(|load| load.pools[0].key.name == "everything").unwrap();
        assert!(message(everything).contains("more than 4096 bytes"), "{}", message(everything));
        assert!(sent.load(Ordering::Relaxed) < 32 << 20, "{sent:?}: the connection holds some, and no more is taken");
        let heard = loads(&mut hearing, 1, GIVEN_UP).await;
        assert_eq!(names(&heard), ["slow"]);
        assert!(message(&heard[0]).contains("no answer in 1.0 s"), "{}", message(&heard[0]));
        assert!(
            heard[0].server.as_ref().unwrap().readings.is_ok(),
            "the readings are there, and only its own is missing"
        );
    }

    #[tokio::test]
    async fn the_slow_queries_of_one_namespace_take_not_all_places_and_are_asked_ever_more_rarely() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let server = serve("default", move |query| {
            if query != "slow" {
                return vector(if is_of_readings(&query) { "" } else { r#"{"metric":{},"value":[1,"7"]}"# });
            }
            counter.fetch_add(1, Ordering::Relaxed);
            never()
        });
        let (mut asking, mut hearing) = LoadQueries::new([server.await].into_iter().collect());
        let members = || {
            let slow = (0..20).map(|number| member("slow", &format!("slow-{number:02}"), "default", Some("slow")));
            slow.chain([member("good", "number", "default", Some("seven"))]).collect::<Vec<_>>()
        };
        asking.begin(members(), pods(), &tick());
        assert_eq!(names(&loads(&mut hearing, 1, SOON).await), ["number"]);
        let heard = loads(&mut hearing, 20, GIVEN_UP).await;
        assert_eq!(heard.len(), 20, "each is told why, within the time of a tick");
        let late: Vec<&str> = heard.iter().map(message).filter(|message| message.contains("no answer in")).collect();
        assert_eq!(late.len(), asked.load(Ordering::Relaxed));
        assert!((2..=4).contains(&late.len()), "{late:?}");
        // those that were late are not asked at the next tick, and the others of the namespace one after the other
        asking.begin(members(), pods(), &tick());
        assert!(names(&loads(&mut hearing, 1 + late.len(), SOON).await).contains(&"number"));
        loads(&mut hearing, 20 - late.len(), GIVEN_UP).await;
        assert!(asked.load(Ordering::Relaxed) <= late.len() + 2, "{asked:?}");
    }

    #[tokio::test]
    async fn a_pool_of_a_namespace_that_may_not_have_queries_of_its_own_holds_and_none_is_sent() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let server = serve("default", move |query| {
            counter.fetch_add(usize::from(query == "others"), Ordering::Relaxed);
            vector("")
        });
        let (mut asking, mut hearing) = LoadQueries::new([server.await].into_iter().collect());
        asking.begin(vec![member("tenant", "pool", "default", Some("others"))], pods(), &tick());
        let heard = loads(&mut hearing, 1, SOON).await;
        let own = heard.first().unwrap();
        assert!(matches!(own.overrides[&Signal::WaitingClients].number, Err(NoNumber::NotAllowed(_))));
        assert!(message(own).contains("add the namespace to allowedNamespaces of this server"), "{}", message(own));
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }
}
