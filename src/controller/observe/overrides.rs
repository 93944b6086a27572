//! The users' own queries in place of signals, asked apart from everything else: only the pool that they are of waits for them.
//!
//! Whoever may write a pool may write a query that Prometheus works on for a minute, or that yields everything there is. So
//! - few are under way at once, of one namespace fewer, and each for a bounded time;
//! - a pool whose query came too late, or whose queries were wrong several times in a row, is asked ever more rarely (a circuit
//!   breaker): meanwhile it has the last answer, which says when it is asked again;
//! - what is tried again, and pools of a namespace that was late lately, have places apart from all others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::{
    api,
    causes::with_causes,
    decide::load::{NoNumber, OverrideAnswer},
    domain::PoolKey,
    signals::{Fault, OverrideQuery, PrometheusServer},
};

/// Pools whose queries are under way at once, to one server.
const PLACES: usize = 4;
/// Beside them, of those that were late or wrong.
const PLACES_FOR_TRIALS: usize = 1;
/// Pools of one namespace whose queries are under way at once, or wait for a place.
const PLACES_OF_A_NAMESPACE: usize = 2;
/// Turns in a row with a query that is wrong, until it is asked more rarely.
const WRONG_IN_A_ROW: u32 = 3;
/// First pause; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// What the queries of one pool yielded.
pub type OverrideAnswers = BTreeMap<api::Signal, OverrideAnswer>;

/// What became of the queries of one pool.
#[derive(Debug, Default)]
pub struct OverrideTurn {
    /// What they yielded.
    pub own: OverrideAnswers,
    /// How many were sent.
    pub asked: usize,
    /// How many of them yielded no number.
    pub failed: usize,
}

/// The breakers of all pools, and the places.
#[derive(Default)]
pub struct Overrides {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pools: HashMap<PoolKey, Breaker>,
    namespaces: HashMap<String, Namespace>,
    servers: HashMap<String, OverridePlaces>,
}

/// The places of one server.
#[derive(Clone)]
struct OverridePlaces {
    usual: Arc<Semaphore>,
    trials: Arc<Semaphore>,
}

/// The pools of one namespace together.
struct Namespace {
    places: Arc<Semaphore>,
    /// Until when it counts as late.
    late_until: Option<Instant>,
}

/// Whether a pool's queries are asked.
#[derive(Debug)]
struct Breaker {
    /// Whose answers these are: other queries begin anew.
    queries: Vec<(api::Signal, String)>,
    state: BreakerState,
    /// The last turn has not ended.
    is_under_way: bool,
    /// When the last turn began; those that waited longest come first.
    asked: Option<Instant>,
}

#[derive(Debug)]
enum BreakerState {
    /// They are asked at every tick.
    Closed {
        /// Turns in a row with one that is wrong.
        wrong: u32,
    },
    /// They are not asked before `until`, and then once.
    Open {
        until: Instant,
        pause: Duration,
        /// What they yielded last.
        own: OverrideAnswers,
    },
}

/// What may be done with a pool's queries now.
#[derive(Debug)]
enum BreakerVerdict {
    Ask,
    TryAgain,
    Wait(OverrideAnswers),
}

impl Breaker {
    fn new(queries: Vec<(api::Signal, String)>) -> Self {
        Self { queries, state: BreakerState::Closed { wrong: 0 }, is_under_way: false, asked: None }
    }

    fn standing(&self, now: Instant) -> BreakerVerdict {
        match &self.state {
            BreakerState::Closed { .. } => BreakerVerdict::Ask,
            BreakerState::Open { until, .. } if *until <= now => BreakerVerdict::TryAgain,
            BreakerState::Open { until, own, .. } => {
                let seconds = (*until - now).as_secs_f64().ceil();
                let told = |answer: &OverrideAnswer| {
                    let mut answer = answer.clone();
                    if let Err(NoNumber::Failed(message)) = &mut answer.number {
                        *message = format!("{message}; asked again in {seconds:.0} s");
                    }
                    answer
                };
                BreakerVerdict::Wait(own.iter().map(|(signal, answer)| (*signal, told(answer))).collect())
            }
        }
    }

    /// A turn has ended. `worst` is what was at fault, if anything was.
    fn note(&mut self, worst: Option<Fault>, own: &OverrideAnswers, now: Instant) {
        let wrong = match &self.state {
            BreakerState::Closed { wrong } => *wrong,
            BreakerState::Open { .. } => WRONG_IN_A_ROW,
        };
        let pause = match &self.state {
            BreakerState::Closed { .. } => FIRST_PAUSE,
            BreakerState::Open { pause, .. } => (*pause * 2).min(LONGEST_PAUSE),
        };
        let open = |pause| BreakerState::Open { until: now + pause, pause, own: own.clone() };
        match worst {
            None => self.state = BreakerState::Closed { wrong: 0 },
            Some(Fault::Late) => self.state = open(pause),
            Some(Fault::Query) if wrong + 1 >= WRONG_IN_A_ROW => self.state = open(pause),
            Some(Fault::Query) => self.state = BreakerState::Closed { wrong: wrong + 1 },
            // the server's own trouble says nothing about the queries
            Some(Fault::Server) => {}
        }
    }
}

impl Overrides {
    /// Forgets the pools that are not among these.
    pub fn keep(&self, pools: &BTreeSet<&PoolKey>) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.pools.retain(|pool, breaker| breaker.is_under_way || pools.contains(pool));
        let named: BTreeSet<&str> = pools.iter().map(|pool| pool.namespace.as_str()).collect();
        inner.namespaces.retain(|name, namespace| {
            named.contains(name.as_str()) || namespace.late_until.is_some_and(|until| until > now)
        });
    }

    /// When the queries of this pool were asked last; none: never.
    pub fn asked(&self, pool: &PoolKey) -> Option<Instant> {
        self.inner.lock().pools.get(pool)?.asked
    }

    /// Begins a turn of this pool. False while the last one has not ended.
    pub fn begin(&self, pool: &PoolKey, queries: &[OverrideQuery]) -> bool {
        let queries: Vec<_> = queries.iter().map(|query| (query.signal, query.query.clone())).collect();
        let mut inner = self.inner.lock();
        let breaker = inner.pools.entry(pool.clone()).or_insert_with(|| Breaker::new(queries.clone()));
        if breaker.is_under_way {
            return false;
        }
        if breaker.queries != queries {
            *breaker = Breaker { asked: breaker.asked, ..Breaker::new(queries) };
        }
        breaker.is_under_way = true;
        true
    }

    /// Asks the queries of one pool, whose turn has begun, as of `now_seconds` (Unix time).
    pub async fn ask(
        &self,
        server: &PrometheusServer,
        pool: &PoolKey,
        queries: &[OverrideQuery],
        now_seconds: f64,
    ) -> OverrideTurn {
        let turn = self.turn(server, pool, queries, now_seconds).await;
        if let Some(breaker) = self.inner.lock().pools.get_mut(pool) {
            breaker.is_under_way = false;
        }
        turn
    }

    async fn turn(
        &self,
        server: &PrometheusServer,
        pool: &PoolKey,
        queries: &[OverrideQuery],
        now_seconds: f64,
    ) -> OverrideTurn {
        if !server.configuration().allows_overrides_of(&pool.namespace) {
            let message = format!(
                "pools of namespace {} may not use queries of their own: they would read the series of all others on Prometheus \
                 {:?} as the operator; remove spec.scaling.metrics.overrides, or add the namespace to allowedNamespaces of this \
                 server (chart: prometheus.servers.{}.allowedNamespaces)",
                pool.namespace,
                server.name(),
                server.name(),
            );
            return OverrideTurn {
                own: all(queries, |_| Err(NoNumber::NotAllowed(message.clone()))),
                ..OverrideTurn::default()
            };
        }
        let (standing, own_places, places) = self.standing(server, pool);
        let is_trial = match standing {
            BreakerVerdict::Wait(own) => return OverrideTurn { own, ..OverrideTurn::default() },
            BreakerVerdict::TryAgain => true,
            BreakerVerdict::Ask => false,
        };
        let places = if is_trial { places.trials } else { places.usual };
        let longest_wait = server.configuration().timeout();
        // nobody closes them
        let waiting = async { (own_places.acquire_owned().await, places.acquire_owned().await) };
        let Ok(_places) = timeout(longest_wait, waiting).await else {
            let message = format!(
                "pool {pool}, spec.scaling.metrics.overrides: not asked within {} s, because queries of other pools take long; at \
                 the next tick it is",
                longest_wait.as_secs()
            );
            return OverrideTurn {
                own: all(queries, |_| Err(NoNumber::Failed(message.clone()))),
                ..OverrideTurn::default()
            };
        };
        let read = server.read_overrides(now_seconds, queries).await;
        let worst = read.iter().filter_map(|read| read.as_ref().err()?.failure.fault()).max();
        let failed = read.iter().filter(|read| read.is_err()).count();
        let mut read = read.into_iter().map(|read| read.map_err(|error| NoNumber::Failed(with_causes(&error))));
        let own = all(queries, |_| read.next().unwrap_or_else(|| Err(NoNumber::Failed("not asked".to_owned()))));
        self.note(pool, worst, &own);
        OverrideTurn { own, asked: queries.len(), failed }
    }

    fn standing(&self, server: &PrometheusServer, pool: &PoolKey) -> (BreakerVerdict, Arc<Semaphore>, OverridePlaces) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let places = inner.servers.entry(server.name().to_owned()).or_insert_with(|| OverridePlaces {
            usual: Arc::new(Semaphore::new(PLACES)),
            trials: Arc::new(Semaphore::new(PLACES_FOR_TRIALS)),
        });
        let places = places.clone();
        let namespace = inner
            .namespaces
            .entry(pool.namespace.clone())
            .or_insert_with(|| Namespace { places: Arc::new(Semaphore::new(PLACES_OF_A_NAMESPACE)), late_until: None });
        let is_late = namespace.late_until.is_some_and(|until| until > now);
        let own_places = namespace.places.clone();
        let standing = match inner.pools.get_mut(pool) {
            None => BreakerVerdict::Ask,
            Some(breaker) => {
                let standing = breaker.standing(now);
                if !matches!(standing, BreakerVerdict::Wait(_)) {
                    breaker.asked = Some(now);
                }
                standing
            }
        };
        let standing = match standing {
            // one pool after the other of a namespace that writes queries which take long must not cost all others a place each
            BreakerVerdict::Ask if is_late => BreakerVerdict::TryAgain,
            standing => standing,
        };
        (standing, own_places, places)
    }

    fn note(&self, pool: &PoolKey, worst: Option<Fault>, own: &OverrideAnswers) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if let Some(breaker) = inner.pools.get_mut(pool) {
            breaker.note(worst, own, now);
        }
        if worst == Some(Fault::Late)
            && let Some(namespace) = inner.namespaces.get_mut(&pool.namespace)
        {
            namespace.late_until = Some(now + LONGEST_PAUSE);
        }
    }
}

/// An answer to each query.
fn all(queries: &[OverrideQuery], mut number: impl FnMut(&OverrideQuery) -> Result<f64, NoNumber>) -> OverrideAnswers {
    queries
        .iter()
        .map(|query| (query.signal, OverrideAnswer { query: query.query.clone(), number: number(query) }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OverrideAnswers {
        let number = Err(NoNumber::Failed("it takes too long".to_owned()));
        OverrideAnswers::from([(api::Signal::WaitingClients, OverrideAnswer { query: "x".to_owned(), number })])
    }

    /// Seconds until the queries are asked again; none where they are.
    fn pause(breaker: &Breaker, now: Instant) -> Option<u64> {
        match &breaker.state {
            BreakerState::Open { until, .. } => Some((*until - now).as_secs()),
            BreakerState::Closed { .. } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_is_asked_again_after_pauses_that_double_and_then_once() {
        let mut breaker = Breaker::new(Vec::new());
        let mut now = Instant::now();
        for seconds in [30, 60, 120, 240, 300, 300] {
            assert!(!matches!(breaker.standing(now), BreakerVerdict::Wait(_)));
            breaker.note(Some(Fault::Late), &own(), now);
            assert_eq!(pause(&breaker, now), Some(seconds));
            let BreakerVerdict::Wait(told) = breaker.standing(now) else { panic!("{breaker:?}") };
            let Err(NoNumber::Failed(message)) = &told[&api::Signal::WaitingClients].number else { panic!("{told:?}") };
            assert_eq!(*message, format!("it takes too long; asked again in {seconds} s"));
            now += Duration::from_secs(seconds);
            assert!(matches!(breaker.standing(now), BreakerVerdict::TryAgain));
        }
        breaker.note(None, &OverrideAnswers::new(), now);
        assert!(matches!(breaker.standing(now), BreakerVerdict::Ask));
        breaker.note(Some(Fault::Late), &own(), now);
        assert_eq!(pause(&breaker, now), Some(30), "from the beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_three_times_in_a_row_is_asked_more_rarely_and_what_the_server_cannot_help_is_not_held_against_it()
     {
        let (mut breaker, now) = (Breaker::new(Vec::new()), Instant::now());
        for worst in [Some(Fault::Query), Some(Fault::Query), None, Some(Fault::Query), Some(Fault::Server)] {
            breaker.note(worst, &own(), now);
            assert_eq!(pause(&breaker, now), None, "{worst:?}");
        }
        breaker.note(Some(Fault::Query), &own(), now);
        assert_eq!(pause(&breaker, now), None);
        breaker.note(Some(Fault::Query), &own(), now);
        assert_eq!(pause(&breaker, now), Some(30));
    }

    #[test]
    fn another_query_begins_anew_and_one_that_is_under_way_is_not_asked_twice() {
        let (overrides, pool) = (Overrides::default(), PoolKey::new("ns", "shop"));
        let query = |query: &str| {
            [OverrideQuery { pool: pool.clone(), signal: api::Signal::WaitingClients, query: query.to_owned() }]
        };
        assert!(overrides.begin(&pool, &query("a")));
        assert!(!overrides.begin(&pool, &query("a")));
        overrides.note(&pool, Some(Fault::Late), &own());
        let end = || overrides.inner.lock().pools.get_mut(&pool).unwrap().is_under_way = false;
        let is_open = || matches!(overrides.inner.lock().pools[&pool].state, BreakerState::Open { .. });
        end();
        assert!(overrides.begin(&pool, &query("a")) && is_open());
        end();
        assert!(overrides.begin(&pool, &query("b")) && !is_open());
        end();
        overrides.keep(&BTreeSet::new());
        assert!(overrides.inner.lock().pools.is_empty(), "of a pool that is gone nothing is kept");
    }
}
