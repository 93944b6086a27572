//! Every 15 s, all pools at once: what Prometheus says of their load. What is made of it: [`sizing`](super::sizing).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    reconcile::Context,
    sizing::{self, Said, Subject},
};
use crate::{
    api::{self, ConnectionPool, MetricsSpec},
    cli::with_causes,
    decide::effective::EffectivePool,
    signals::{DEFAULT_SERVER, OverrideQuery, PoolKey, QUERIES_PER_READ, Server, Servers},
};

/// Quantiles of the wait are asked for this often.
const QUANTILES_EVERY: Duration = Duration::from_mins(1);

/// A pool at one tick.
struct Member {
    key: PoolKey,
    pool: Arc<ConnectionPool>,
    effective: EffectivePool,
    server: String,
    overrides: Vec<OverrideQuery>,
}

/// Ticks for ever.
pub async fn run(context: Arc<Context>, servers: Option<Servers>) {
    // before the first whole list, a pool would look as if it had no pods
    while !context.pods.is_synced() {
        sleep(Duration::from_millis(50)).await;
    }
    let mut ticks = interval(context.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut quantiles = HashMap::new();
    let mut quantiles_at: Option<Instant> = None;
    loop {
        ticks.tick().await;
        if !context.leadership.is_held() {
            continue;
        }
        let started = Instant::now();
        let now = Timestamp::now();
        let pools = context.stores.pools.state();
        let members: Vec<Member> = pools.iter().filter_map(|pool| member(&context, pool)).collect();
        let (said, queries, failed) = ask_all(servers.as_ref(), &members, now).await;
        // none is known before every pod has been scraped twice
        if (quantiles.is_empty() || quantiles_at.is_none_or(|at| at.elapsed() >= QUANTILES_EVERY))
            && let Some(servers) = &servers
        {
            quantiles = wait_quantiles(servers, now).await;
            quantiles_at = Some(started);
        }
        for member in &members {
            let subject = Subject { key: &member.key, pool: &member.pool, effective: &member.effective };
            let quantile = quantiles.get(&member.key).copied();
            sizing::decide(&context, subject, (&member.server, said.get(&member.server)), quantile, now);
        }
        context.metrics.ticked(started.elapsed(), queries, failed);
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(started = %now, milliseconds, pools = members.len(), queries, failed, "tick");
        // those without a target too: their conditions may have changed
        for pool in &pools {
            if let Some(namespace) = pool.namespace() {
                context.queue.ask(&PoolKey::new(namespace, pool.name_any()), "tick").await;
            }
        }
    }
}

fn member(context: &Context, pool: &Arc<ConnectionPool>) -> Option<Member> {
    let effective = context.stores.effective(pool).ok()?;
    let key = PoolKey::new(pool.namespace()?, pool.name_any());
    let metrics = metrics_of(context, pool, &effective);
    let overrides = metrics
        .overrides
        .into_iter()
        .map(|replaced| OverrideQuery { pool: key.clone(), signal: replaced.signal, query: replaced.query })
        .collect();
    let server = metrics.prometheus_ref.unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    Some(Member { key, pool: pool.clone(), effective, server, overrides })
}

/// Where the load of a pool is read: the pool's own word, else its class's.
fn metrics_of(context: &Context, pool: &ConnectionPool, effective: &EffectivePool) -> MetricsSpec {
    let own = pool.spec.scaling.as_ref().and_then(|scaling| scaling.metrics.clone());
    let class = effective.class.as_ref().and_then(|(name, _)| {
        let classes = context.stores.classes.state();
        let class = classes.iter().find(|class| class.name_any() == *name)?;
        class.spec.scaling.as_ref()?.metrics.clone()
    });
    own.or(class).unwrap_or_default()
}

/// Asks every server that a pool names, all at once. Returns what they said, and how many queries it took and failed.
async fn ask_all(servers: Option<&Servers>, members: &[Member], now: Timestamp) -> (HashMap<String, Said>, u64, u64) {
    let Some(servers) = servers else { return (HashMap::new(), 0, 0) };
    let mut overrides: BTreeMap<&str, Vec<OverrideQuery>> = BTreeMap::new();
    for member in members {
        overrides.entry(&member.server).or_default().extend(member.overrides.iter().cloned());
    }
    let named = overrides.iter().filter_map(|(name, overrides)| Some((servers.get(name)?, overrides)));
    let said = join_all(named.map(|(server, overrides)| ask(server, overrides, now))).await;
    let queries: usize = overrides.values().map(Vec::len).sum::<usize>() + said.len() * QUERIES_PER_READ;
    let failed = said.iter().filter(|(_, said)| said.readings.is_err()).count();
    let failed_overrides = said
        .iter()
        .flat_map(|(_, said)| said.overrides.values())
        .flat_map(BTreeMap::values)
        .filter(|read| read.is_err());
    let failed = failed + failed_overrides.count();
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    (said.into_iter().collect(), count(queries), count(failed))
}

async fn ask(server: &Server, overrides: &[OverrideQuery], now: Timestamp) -> (String, Said) {
    let seconds = now.as_duration().as_secs_f64();
    let (readings, replaced) = tokio::join!(server.read(seconds), server.read_overrides(seconds, overrides));
    let readings = readings.map_err(|error| with_causes(&error));
    match &readings {
        Ok(readings) => {
            for problem in &readings.problems {
                tracing::warn!(server = server.name(), %problem, "series refused");
            }
        }
        Err(error) => tracing::warn!(server = server.name(), error, "reading the load; all its pools hold"),
    }
    let mut by_pool: HashMap<PoolKey, BTreeMap<api::Signal, Result<f64, String>>> = HashMap::new();
    for (query, read) in overrides.iter().zip(replaced) {
        let read = read.map_err(|error| with_causes(&error));
        by_pool.entry(query.pool.clone()).or_default().insert(query.signal, read);
    }
    let stale_after_seconds = server.configuration().stale_after_seconds();
    let url = server.configuration().url.clone();
    (server.name().to_owned(), Said { readings, overrides: by_pool, stale_after_seconds, url })
}

/// 95th percentile of the wait in seconds, by pool; a server that does not answer has none.
async fn wait_quantiles(servers: &Servers, now: Timestamp) -> HashMap<PoolKey, f64> {
    let seconds = now.as_duration().as_secs_f64();
    let asked = join_all(servers.iter().map(|server| server.wait_p95_seconds(seconds))).await;
    asked.into_iter().filter_map(Result::ok).flatten().collect()
}
