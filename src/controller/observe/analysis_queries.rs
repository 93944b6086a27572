//! What Prometheus says of rollouts in course: what was scraped of their pods, and what queries of the user's own yield. Both are asked
//! pool by pool, each by circuit breakers and places of its own ([`query_breakers`](super::query_breakers)): a pool whose query takes
//! long, or whose pods export too much, waits for itself and holds up no other.

use std::collections::BTreeSet;

use super::query_breakers::{QueryBreakers, QueryPlaces, QueryTurn};
use crate::{
    causes::with_causes,
    decide::analysis::Measurement,
    domain::PoolKey,
    signals::{Fault, PrometheusServer, ReadError, RevisionReadings, RolloutPods},
};

/// What is asked for the analyses of all pools.
#[derive(Default)]
pub struct AnalysisQueries {
    /// By the queries as the user wrote them.
    measuring: QueryBreakers<Vec<(String, String)>, String>,
    /// By the revisions.
    reading: QueryBreakers<[u64; 2], String>,
}

/// Queries of the user's own in an analysis of a pool.
#[derive(Clone, Copy, Debug)]
pub struct OwnQueries<'a> {
    /// The pool.
    pub pool: &'a PoolKey,
    /// The field of its rollout that has them.
    pub field: &'static str,
    /// Name of the metric and query, as they are asked now.
    pub queries: &'a [(String, String)],
}

/// What was scraped of the pods of a rollout.
#[derive(Debug)]
pub struct RevisionTurn {
    /// What they did, or why that cannot be known.
    pub read: Result<RevisionReadings, String>,
    /// It would be more than is read at once: less is to be asked for.
    pub is_too_much: bool,
    /// What was read is in memory for as long as this is kept, and others wait for its place.
    pub places: Option<QueryPlaces>,
}

impl AnalysisQueries {
    /// Forgets the pools that are not among these.
    pub fn keep(&self, pools: &BTreeSet<&PoolKey>) {
        self.measuring.keep(pools);
        self.reading.keep(pools);
    }

    /// Asks the user's own queries of one pool as of `now_seconds` (Unix time). `written` are the same as the user wrote them: others begin
    /// anew.
    ///
    /// # Errors
    /// Why they were not asked, or what the first that failed says.
    pub async fn measure(
        &self,
        server: &PrometheusServer,
        asked: OwnQueries<'_>,
        written: Vec<(String, String)>,
        now_seconds: f64,
    ) -> Result<Vec<Measurement>, String> {
        let OwnQueries { pool, field, queries } = asked;
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        if !server.configuration().allows_overrides_of(&pool.namespace) {
            let (name, namespace) = (server.name(), &pool.namespace);
            return Err(format!(
                "pools of namespace {namespace} may not use queries of their own on Prometheus {name:?}; remove the query of \
                 {field}.metrics, or add the namespace to its allowedNamespaces (chart: prometheus.servers.{name}.allowedNamespaces)"
            ));
        }
        let what = format!("pool {pool}, queries of {field}.metrics");
        let asking = server.measure(now_seconds, pool, queries);
        let (measured, _, _) = ask(&self.measuring, (server, pool, written), &what, asking, |fault| fault).await;
        measured
    }

    /// Reads what was scraped of these pods in the last seconds, as of `now_seconds` (Unix time).
    pub async fn read(
        &self,
        server: &PrometheusServer,
        asked: RolloutPods<'_>,
        window_seconds: u32,
        now_seconds: f64,
    ) -> RevisionTurn {
        let what = format!("pool {}, the pods of its rollout", asked.pool);
        let asking = server.read_revisions(now_seconds, window_seconds, asked);
        // it is no query of the user's: one that comes late once is not held against the pool
        let counted = |fault| if fault == Fault::Late { Fault::Query } else { fault };
        let (read, fault, places) =
            ask(&self.reading, (server, asked.pool, asked.revisions), &what, asking, counted).await;
        RevisionTurn { read, is_too_much: fault == Some(Fault::Query), places }
    }
}

/// Asks once it is the pool's turn. Says what was at fault, and keeps the places of what was read; `counted` is what a fault counts as.
async fn ask<Q: PartialEq, T>(
    breakers: &QueryBreakers<Q, String>,
    (server, pool, queries): (&PrometheusServer, &PoolKey, Q),
    what: &str,
    asking: impl Future<Output = Result<T, ReadError>>,
    counted: impl Fn(Fault) -> Fault,
) -> (Result<T, String>, Option<Fault>, Option<QueryPlaces>) {
    if !breakers.begin(pool, queries) {
        return (Err(format!("{what}: the last answer has not come")), None, None);
    }
    let turn = match breakers.turn(server, pool).await {
        QueryTurn::Ask(places) => {
            let read = asking.await;
            let fault = read.as_ref().err().and_then(|error| error.failure.fault());
            let read = read.map_err(|error| with_causes(&error));
            breakers.note(pool, fault.map(counted), read.as_ref().err().unwrap_or(&String::new()));
            (read, fault, Some(places))
        }
        // without the seconds: each time it said another number would be news
        QueryTurn::Wait { last, .. } => {
            (Err(format!("{last}; asked ever more rarely until it is answered")), None, None)
        }
        QueryTurn::NoPlace(waited) => {
            let seconds = waited.as_secs();
            (Err(format!("{what}: not asked within {seconds} s, because those of other pools take long")), None, None)
        }
    };
    breakers.end(pool);
    turn
}
