//! Circuit breakers and places for what users have asked of Prometheus: whoever asks for too much holds up himself.
//!
//! Whoever may write a pool may write a query that Prometheus works on for a minute, or that yields everything there is. So
//! - few are under way at once, of one namespace fewer, and each for a bounded time;
//! - a pool whose query came too late, or whose queries were wrong several times in a row, is asked ever more rarely: meanwhile it has
//!   the last answer;
//! - what is tried again, and pools of a namespace that was late lately, have places apart from all others.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::{
    domain::PoolKey,
    signals::{Fault, PrometheusServer},
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

/// The breakers of all pools, and the places. `Q` is what a pool asks, `A` what it yielded.
pub struct QueryBreakers<Q, A> {
    inner: Mutex<Inner<Q, A>>,
}

struct Inner<Q, A> {
    pools: HashMap<PoolKey, Breaker<Q, A>>,
    namespaces: HashMap<String, Namespace>,
    servers: HashMap<String, ServerPlaces>,
}

impl<Q, A> Default for QueryBreakers<Q, A> {
    fn default() -> Self {
        let inner = Inner { pools: HashMap::new(), namespaces: HashMap::new(), servers: HashMap::new() };
        Self { inner: Mutex::new(inner) }
    }
}

/// The places of one server.
#[derive(Clone)]
struct ServerPlaces {
    usual: Arc<Semaphore>,
    trials: Arc<Semaphore>,
}

/// The pools of one namespace together.
struct Namespace {
    places: Arc<Semaphore>,
    /// Until when it counts as late.
    late_until: Option<Instant>,
}

/// The places of one pool, for as long as this is kept.
#[derive(Debug)]
pub struct QueryPlaces {
    _of_namespace: OwnedSemaphorePermit,
    _of_server: OwnedSemaphorePermit,
}

/// Whether a pool's queries may be sent now.
#[derive(Debug)]
pub enum QueryTurn<A> {
    /// They may.
    Ask(QueryPlaces),
    /// They were late or wrong, and are asked again after this.
    Wait {
        /// What they yielded last.
        last: A,
        /// Until then.
        pause: Duration,
    },
    /// Others took so long that no place became free within this.
    NoPlace(Duration),
}

/// Whether a pool's queries are asked.
#[derive(Debug)]
struct Breaker<Q, A> {
    /// Whose answers these are: other queries begin anew.
    queries: Q,
    state: BreakerState<A>,
    /// The last turn has not ended.
    is_under_way: bool,
    /// When the last turn began; those that waited longest come first.
    asked: Option<Instant>,
}

#[derive(Debug)]
enum BreakerState<A> {
    /// They are asked at every turn.
    Closed {
        /// Turns in a row with one that is wrong.
        wrong: u32,
    },
    /// They are not asked before `until`, and then once.
    Open {
        until: Instant,
        pause: Duration,
        /// What they yielded last.
        last: A,
    },
}

/// What may be done with a pool's queries now.
#[derive(Debug)]
enum BreakerVerdict<A> {
    Ask,
    TryAgain,
    Wait { last: A, pause: Duration },
}

impl<Q, A: Clone> Breaker<Q, A> {
    fn new(queries: Q) -> Self {
        Self { queries, state: BreakerState::Closed { wrong: 0 }, is_under_way: false, asked: None }
    }

    fn standing(&self, now: Instant) -> BreakerVerdict<A> {
        match &self.state {
            BreakerState::Closed { .. } => BreakerVerdict::Ask,
            BreakerState::Open { until, .. } if *until <= now => BreakerVerdict::TryAgain,
            BreakerState::Open { until, last, .. } => BreakerVerdict::Wait { last: last.clone(), pause: *until - now },
        }
    }

    /// A turn has ended. `worst` is what was at fault, if anything was.
    fn note(&mut self, worst: Option<Fault>, last: &A, now: Instant) {
        let wrong = match &self.state {
            BreakerState::Closed { wrong } => *wrong,
            BreakerState::Open { .. } => WRONG_IN_A_ROW,
        };
        let pause = match &self.state {
            BreakerState::Closed { .. } => FIRST_PAUSE,
            BreakerState::Open { pause, .. } => (*pause * 2).min(LONGEST_PAUSE),
        };
        let open = |pause| BreakerState::Open { until: now + pause, pause, last: last.clone() };
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

impl<Q: PartialEq, A: Clone> QueryBreakers<Q, A> {
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

    /// Begins a turn of this pool, which [`Self::end`] ends. False while the last one has not ended.
    pub fn begin(&self, pool: &PoolKey, queries: Q) -> bool {
        let mut inner = self.inner.lock();
        let Some(breaker) = inner.pools.get_mut(pool) else {
            inner.pools.insert(pool.clone(), Breaker { is_under_way: true, ..Breaker::new(queries) });
            return true;
        };
        if breaker.is_under_way {
            return false;
        }
        if breaker.queries != queries {
            *breaker = Breaker { asked: breaker.asked, ..Breaker::new(queries) };
        }
        breaker.is_under_way = true;
        true
    }

    /// Ends the turn of this pool.
    pub fn end(&self, pool: &PoolKey) {
        if let Some(breaker) = self.inner.lock().pools.get_mut(pool) {
            breaker.is_under_way = false;
        }
    }

    /// Waits for the places that a pool needs whose turn has begun, for no longer than one query may take.
    pub async fn turn(&self, server: &PrometheusServer, pool: &PoolKey) -> QueryTurn<A> {
        let (standing, own_places, places) = self.standing(server, pool);
        let places = match standing {
            BreakerVerdict::Wait { last, pause } => return QueryTurn::Wait { last, pause },
            BreakerVerdict::TryAgain => places.trials,
            BreakerVerdict::Ask => places.usual,
        };
        let longest_wait = server.configuration().timeout();
        let waiting = async { (own_places.acquire_owned().await, places.acquire_owned().await) };
        match timeout(longest_wait, waiting).await {
            Ok((Ok(of_namespace), Ok(of_server))) => {
                QueryTurn::Ask(QueryPlaces { _of_namespace: of_namespace, _of_server: of_server })
            }
            // nobody closes them
            Ok(_) | Err(_) => QueryTurn::NoPlace(longest_wait),
        }
    }

    fn standing(&self, server: &PrometheusServer, pool: &PoolKey) -> (BreakerVerdict<A>, Arc<Semaphore>, ServerPlaces) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let places = inner.servers.entry(server.name().to_owned()).or_insert_with(|| ServerPlaces {
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
                if !matches!(standing, BreakerVerdict::Wait { .. }) {
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

    /// Notes what was at fault in a turn, if anything was, and what it yielded.
    pub fn note(&self, pool: &PoolKey, worst: Option<Fault>, last: &A) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if let Some(breaker) = inner.pools.get_mut(pool) {
            breaker.note(worst, last, now);
        }
        if worst == Some(Fault::Late)
            && let Some(namespace) = inner.namespaces.get_mut(&pool.namespace)
        {
            namespace.late_until = Some(now + LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until the queries are asked again; none where they are.
    fn pause(breaker: &Breaker<&str, &str>, now: Instant) -> Option<u64> {
        match &breaker.state {
            BreakerState::Open { until, .. } => Some((*until - now).as_secs()),
            BreakerState::Closed { .. } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_is_asked_again_after_pauses_that_double_and_then_once() {
        let mut breaker = Breaker::new("x");
        let mut now = Instant::now();
        for seconds in [30, 60, 120, 240, 300, 300] {
            assert!(!matches!(breaker.standing(now), BreakerVerdict::Wait { .. }));
            breaker.note(Some(Fault::Late), &"it takes too long", now);
            assert_eq!(pause(&breaker, now), Some(seconds));
            let BreakerVerdict::Wait { last, pause } = breaker.standing(now) else { panic!("{breaker:?}") };
            assert_eq!((last, pause.as_secs()), ("it takes too long", seconds));
            now += Duration::from_secs(seconds);
            assert!(matches!(breaker.standing(now), BreakerVerdict::TryAgain));
        }
        breaker.note(None, &"", now);
        assert!(matches!(breaker.standing(now), BreakerVerdict::Ask));
        breaker.note(Some(Fault::Late), &"", now);
        assert_eq!(pause(&breaker, now), Some(30), "from the beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_three_times_in_a_row_is_asked_more_rarely_and_what_the_server_cannot_help_is_not_held_against_it()
     {
        let (mut breaker, now) = (Breaker::new("x"), Instant::now());
        for worst in [Some(Fault::Query), Some(Fault::Query), None, Some(Fault::Query), Some(Fault::Server)] {
            breaker.note(worst, &"", now);
            assert_eq!(pause(&breaker, now), None, "{worst:?}");
        }
        breaker.note(Some(Fault::Query), &"", now);
        assert_eq!(pause(&breaker, now), None);
        breaker.note(Some(Fault::Query), &"", now);
        assert_eq!(pause(&breaker, now), Some(30));
    }

    #[test]
    fn another_query_begins_anew_and_one_that_is_under_way_is_not_asked_twice() {
        let (breakers, pool) = (QueryBreakers::<&str, &str>::default(), PoolKey::new("ns", "shop"));
        assert!(breakers.begin(&pool, "a"));
        assert!(!breakers.begin(&pool, "a"));
        breakers.note(&pool, Some(Fault::Late), &"");
        let is_open = || matches!(breakers.inner.lock().pools[&pool].state, BreakerState::Open { .. });
        breakers.end(&pool);
        assert!(breakers.begin(&pool, "a") && is_open());
        breakers.end(&pool);
        assert!(breakers.begin(&pool, "b") && !is_open());
        breakers.end(&pool);
        breakers.keep(&BTreeSet::new());
        assert!(breakers.inner.lock().pools.is_empty(), "of a pool that is gone nothing is kept");
    }
}
