//! Every 15 s, all pools: what Prometheus says of their load ([`load_queries`](super::observe::load_queries)), and what is made of it
//! ([`sizing`](super::decide::sizing)), each pool as soon as its own server has answered.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    context::Context,
    decide::sizing::{self, SizedPool},
    observe::load_queries::{LoadBatch, LoadQueries, NotQueried, QueriedPool, QueryOutcome, QueryReport, Tick},
};
use crate::{
    api::ConnectionPool,
    domain::PoolKey,
    signals::{DEFAULT_SERVER, OverrideQuery, Servers},
};

/// Ticks for ever.
pub async fn run(context: Arc<Context>, servers: Option<Servers>) {
    // before the first whole list, a pool would look as if it had no pods
    while !context.pods.is_synced() {
        sleep(Duration::from_millis(50)).await;
    }
    let (mut load_queries, mut hearing) = LoadQueries::new(servers.unwrap_or_default());
    let mut quantiles = Quantiles::default();
    let mut ticks = interval(context.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = ticks.tick() => if context.leadership.is_held() {
                tick(&context, &mut load_queries).await;
            },
            // they keep the other end
            Some(report) = hearing.recv() => if context.leadership.is_held() {
                hear(&context, &mut load_queries, &mut quantiles, report).await;
            },
        }
    }
}

/// Begins to ask for the load of all pools, and has those looked at that nothing will be heard of.
async fn tick(context: &Context, load_queries: &mut LoadQueries) {
    let pools = context.stores.pools.state();
    let members: Vec<QueriedPool> = pools.iter().filter_map(|pool| member(context, pool)).collect();
    let mut heard_of: BTreeSet<PoolKey> = members.iter().map(|member| member.key.clone()).collect();
    let now = Timestamp::now();
    let tick = Arc::new(Tick { started: now, began: Instant::now(), pools: members.len() });
    let NotQueried { of_no_server, waiting } = load_queries.begin(members, context.pods.names(), &tick);
    for pool in &waiting {
        heard_of.remove(pool);
    }
    let load = LoadBatch { pools: of_no_server, server: None, overrides: BTreeMap::new(), now };
    decide(context, load, &Quantiles::default()).await;
    end(context, tick);
    let known = pools.iter().filter_map(|pool| Some(PoolKey::new(pool.namespace()?, pool.name_any())));
    let known: BTreeSet<PoolKey> = known.collect();
    // those without a target too: their conditions may have changed. And those that are gone: while a watch is broken nobody says so
    for pool in known.difference(&heard_of).chain(&context.memories.beside(&known)) {
        context.requests.ask(pool, "tick").await;
    }
}

/// Ends a tick, if this was the last of its readings.
fn end(context: &Context, tick: Arc<Tick>) {
    if let Some(Tick { started, began, pools }) = Arc::into_inner(tick) {
        context.metrics.ticked(began.elapsed());
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(%started, milliseconds, pools, "tick");
    }
}

/// Takes up what was heard.
async fn hear(context: &Context, load_queries: &mut LoadQueries, quantiles: &mut Quantiles, report: QueryReport) {
    let QueryReport { outcome, tick, queries, failed } = report;
    context.metrics.queried(queries, failed);
    match outcome {
        QueryOutcome::Quantiles { server, by_pool } => {
            if by_pool.as_ref().is_ok_and(HashMap::is_empty) {
                load_queries.quantiles_again(&server);
            }
            if let Some(error) = quantiles.take(&server, by_pool) {
                tracing::warn!(server, error, "reading the 95th percentile of the wait; the status is without it");
            }
        }
        QueryOutcome::Load(load) => decide(context, load, quantiles).await,
    }
    if let Some(tick) = tick {
        end(context, tick);
    }
}

/// Decides on pools by what was heard of them.
async fn decide(
    context: &Context,
    LoadBatch { pools, server: readings, overrides, now }: LoadBatch,
    quantiles: &Quantiles,
) {
    for QueriedPool { key, pool, effective, server, .. } in pools {
        // one that went meanwhile would come back into memory
        let is_there = context.stores.pools.get(&ObjectRef::new(&key.name).within(&key.namespace));
        if is_there.is_some_and(|known| known.uid() == pool.uid()) {
            let subject = SizedPool { key: &key, pool: &pool, effective: &effective };
            sizing::decide(
                context,
                subject,
                (&server, readings.as_deref()),
                &overrides,
                quantiles.of(&server, &key),
                now,
            );
        }
        context.requests.ask(&key, "tick").await;
    }
}

fn member(context: &Context, pool: &Arc<ConnectionPool>) -> Option<QueriedPool> {
    let effective = context.stores.effective(pool).ok()?;
    let key = PoolKey::new(pool.namespace()?, pool.name_any());
    let overrides = effective.metrics.overrides.iter();
    let overrides = overrides
        .map(|replaced| OverrideQuery { pool: key.clone(), signal: replaced.signal, query: replaced.query.clone() })
        .collect();
    let server = effective.metrics.prometheus_ref.clone().unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    Some(QueriedPool { key, pool: pool.clone(), effective, server, overrides })
}

/// 95th percentile of the wait in seconds, by server and pool; a server that does not answer has none.
#[derive(Default)]
struct Quantiles {
    by_server: HashMap<String, HashMap<PoolKey, f64>>,
    failing: BTreeSet<String>,
}

impl Quantiles {
    fn of(&self, server: &str, pool: &PoolKey) -> Option<f64> {
        self.by_server.get(server)?.get(pool).copied()
    }

    /// Takes in what a server said. Returns why it failed where it has not failed before: once in a while is often enough for what nothing
    /// is decided by, and it is told again after it has succeeded.
    fn take(&mut self, server: &str, by_pool: Result<HashMap<PoolKey, f64>, String>) -> Option<String> {
        match by_pool {
            Ok(by_pool) => {
                self.failing.remove(server);
                self.by_server.insert(server.to_owned(), by_pool);
                None
            }
            Err(error) => {
                self.by_server.remove(server);
                self.failing.insert(server.to_owned()).then_some(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_that_cannot_be_read_is_told_once_until_it_can_and_is_not_shown_meanwhile() {
        let (mut quantiles, shop) = (Quantiles::default(), PoolKey::new("ns", "shop"));
        for (read, told) in [(true, false), (false, true), (false, false), (true, false), (false, true)] {
            let by_pool =
                if read { Ok(HashMap::from([(shop.clone(), 0.25)])) } else { Err("too many samples".to_owned()) };
            assert_eq!(quantiles.take("default", by_pool).is_some(), told);
            assert_eq!(quantiles.of("default", &shop), read.then_some(0.25));
        }
        assert_eq!(quantiles.of("another", &shop), None);
    }
}
