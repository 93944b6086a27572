//! The users' own queries in place of signals, asked apart from everything else: only the pool that they are of waits for them, by a
//! circuit breaker and places of its own ([`query_breakers`](super::query_breakers)).

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::query_breakers::{QueryBreakers, QueryTurn};
use crate::{
    api,
    causes::with_causes,
    decide::load::{NoNumber, OverrideAnswer},
    domain::PoolKey,
    signals::{OverrideQuery, PrometheusServer},
};

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

/// The queries of all pools.
#[derive(Default)]
pub struct Overrides {
    breakers: QueryBreakers<Vec<(api::Signal, String)>, OverrideAnswers>,
}

impl Overrides {
    /// Forgets the pools that are not among these.
    pub fn keep(&self, pools: &BTreeSet<&PoolKey>) {
        self.breakers.keep(pools);
    }

    /// When the queries of this pool were asked last; none: never.
    pub fn asked(&self, pool: &PoolKey) -> Option<Instant> {
        self.breakers.asked(pool)
    }

    /// Begins a turn of this pool. False while the last one has not ended.
    pub fn begin(&self, pool: &PoolKey, queries: &[OverrideQuery]) -> bool {
        self.breakers.begin(pool, queries.iter().map(|query| (query.signal, query.query.clone())).collect())
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
        self.breakers.end(pool);
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
        let _places = match self.breakers.turn(server, pool).await {
            QueryTurn::Ask(places) => places,
            QueryTurn::Wait { last, pause } => {
                let seconds = pause.as_secs_f64().ceil();
                let own = last.into_iter().map(|(signal, mut answer)| {
                    if let Err(NoNumber::Failed(message)) = &mut answer.number {
                        *message = format!("{message}; asked again in {seconds:.0} s");
                    }
                    (signal, answer)
                });
                return OverrideTurn { own: own.collect(), ..OverrideTurn::default() };
            }
            QueryTurn::NoPlace(waited) => {
                let message = format!(
                    "pool {pool}, spec.scaling.metrics.overrides: not asked within {} s, because queries of other pools take long; \
                     at the next tick it is",
                    waited.as_secs()
                );
                return OverrideTurn {
                    own: all(queries, |_| Err(NoNumber::Failed(message.clone()))),
                    ..OverrideTurn::default()
                };
            }
        };
        let read = server.read_overrides(now_seconds, queries).await;
        let worst = read.iter().filter_map(|read| read.as_ref().err()?.failure.fault()).max();
        let failed = read.iter().filter(|read| read.is_err()).count();
        let mut read = read.into_iter().map(|read| read.map_err(|error| NoNumber::Failed(with_causes(&error))));
        let own = all(queries, |_| read.next().unwrap_or_else(|| Err(NoNumber::Failed("not asked".to_owned()))));
        self.breakers.note(pool, worst, &own);
        OverrideTurn { own, asked: queries.len(), failed }
    }
}

/// An answer to each query.
fn all(queries: &[OverrideQuery], mut number: impl FnMut(&OverrideQuery) -> Result<f64, NoNumber>) -> OverrideAnswers {
    queries
        .iter()
        .map(|query| (query.signal, OverrideAnswer { query: query.query.clone(), number: number(query) }))
        .collect()
}
