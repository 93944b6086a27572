//! Every 15 s, all pools at once: what Prometheus says of their load. What is made of it: [`sizing`](super::sizing).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
    api::{self, ConnectionPool},
    causes::with_causes,
    decide::{effective::EffectivePool, load::OwnAnswer},
    domain::PoolKey,
    signals::{DEFAULT_SERVER, OverrideQuery, QUERIES_PER_READ, Roster, Server, Servers},
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
    let mut quantiles_due = Instant::now();
    let mut without_quantiles = BTreeSet::new();
    loop {
        ticks.tick().await;
        if !context.leadership.is_held() {
            continue;
        }
        let started = Instant::now();
        let now = Timestamp::now();
        let pools = context.stores.pools.state();
        let roster = Arc::new(context.pods.roster());
        let members: Vec<Member> = pools.iter().filter_map(|pool| member(&context, pool)).collect();
        let Answers { said, queries, failed, quantiles: asked } =
            ask_all(servers.as_ref(), &members, &roster, started >= quantiles_due, now).await;
        if let Some(asked) = asked {
            // none is known before every pod has been scraped twice; whom it is too much for is not asked again at once
            let is_early = asked.by_pool.is_empty() && asked.failed.is_empty();
            quantiles_due = if is_early { started } else { started + QUANTILES_EVERY };
            for (server, error) in newly_failed(&mut without_quantiles, &asked.failed) {
                tracing::warn!(server, error, "reading the 95th percentile of the wait; the status is without it");
            }
            quantiles = asked.by_pool;
        }
        for member in &members {
            let subject = Subject { key: &member.key, pool: &member.pool, effective: &member.effective };
            let quantile = quantiles.get(&member.key).copied();
            sizing::decide(&context, subject, (&member.server, said.get(&member.server)), quantile, now);
        }
        context.metrics.ticked(started.elapsed(), queries, failed);
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(started = %now, milliseconds, pools = members.len(), queries, failed, "tick");
        let known = pools.iter().filter_map(|pool| Some(PoolKey::new(pool.namespace()?, pool.name_any())));
        let known: BTreeSet<PoolKey> = known.collect();
        // those without a target too: their conditions may have changed. And those that are gone: their last event may tell no news,
        // and while a watch is broken there is none
        for pool in known.iter().chain(&context.memories.beside(&known)) {
            context.queue.ask(pool, "tick").await;
        }
    }
}

fn member(context: &Context, pool: &Arc<ConnectionPool>) -> Option<Member> {
    let effective = context.stores.effective(pool).ok()?;
    let key = PoolKey::new(pool.namespace()?, pool.name_any());
    let overrides = effective.metrics.overrides.iter();
    let overrides = overrides
        .map(|replaced| OverrideQuery { pool: key.clone(), signal: replaced.signal, query: replaced.query.clone() })
        .collect();
    let server = effective.metrics.prometheus_ref.clone().unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    Some(Member { key, pool: pool.clone(), effective, server, overrides })
}

/// What the servers said at one tick.
#[derive(Default)]
struct Answers {
    said: HashMap<String, Said>,
    /// How many queries their readings took, and how many of them failed.
    queries: u64,
    failed: u64,
    /// None where they were not asked for.
    quantiles: Option<Quantiles>,
}

/// 95th percentile of the wait in seconds, by pool; a server that does not answer has none.
#[derive(Default)]
struct Quantiles {
    by_pool: HashMap<PoolKey, f64>,
    /// Why a server did not answer, by its name.
    failed: BTreeMap<String, String>,
}

/// The servers that fail now and have not failed before, with why. Once in a while is often enough for what nothing is decided by:
/// it is told again after it has succeeded.
fn newly_failed<'a>(
    known: &mut BTreeSet<String>,
    failed: &'a BTreeMap<String, String>,
) -> Vec<(&'a String, &'a String)> {
    let new = failed.iter().filter(|(server, _)| !known.contains(*server)).collect();
    *known = failed.keys().cloned().collect();
    new
}

/// Asks every server that a pool names everything at once: none that no pool needs, and no query after another, keep decisions
/// waiting.
async fn ask_all(
    servers: Option<&Servers>,
    members: &[Member],
    roster: &Arc<Roster>,
    with_quantiles: bool,
    now: Timestamp,
) -> Answers {
    let Some(servers) = servers else { return Answers::default() };
    let mut overrides: BTreeMap<&str, Vec<OverrideQuery>> = BTreeMap::new();
    for member in members {
        overrides.entry(&member.server).or_default().extend(member.overrides.iter().cloned());
    }
    let named = overrides.iter().filter_map(|(name, overrides)| Some((servers.get(name)?, overrides)));
    let answers = join_all(named.map(|(server, overrides)| async move {
        let seconds = now.as_duration().as_secs_f64();
        let quantiles =
            async { if with_quantiles { Some(server.wait_p95_seconds(seconds, roster).await) } else { None } };
        tokio::join!(ask(server, overrides, roster, seconds), quantiles)
    }));
    let (said, asked): (Vec<_>, Vec<_>) = answers.await.into_iter().unzip();
    let quantiles = with_quantiles.then(|| {
        let mut quantiles = Quantiles::default();
        for ((server, _), answer) in said.iter().zip(asked) {
            match answer {
                Some(Ok(by_pool)) => quantiles.by_pool.extend(by_pool),
                Some(Err(error)) => {
                    quantiles.failed.insert(server.clone(), with_causes(&error));
                }
                None => {}
            }
        }
        quantiles
    });
    let of_server = QUERIES_PER_READ + usize::from(with_quantiles);
    let queries: usize = overrides.values().map(Vec::len).sum::<usize>() + said.len() * of_server;
    let failed = said.iter().filter(|(_, said)| said.readings.is_err()).count();
    let failed_overrides = said
        .iter()
        .flat_map(|(_, said)| said.overrides.values())
        .flat_map(BTreeMap::values)
        .filter(|answer| answer.number.is_err());
    let failed_quantiles = quantiles.as_ref().map_or(0, |quantiles| quantiles.failed.len());
    let failed = failed + failed_overrides.count() + failed_quantiles;
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Answers { said: said.into_iter().collect(), queries: count(queries), failed: count(failed), quantiles }
}

async fn ask(server: &Server, overrides: &[OverrideQuery], roster: &Arc<Roster>, seconds: f64) -> (String, Said) {
    let (readings, replaced) = tokio::join!(server.read(seconds, roster), server.read_overrides(seconds, overrides));
    let readings = readings.map_err(|error| with_causes(&error));
    match &readings {
        Ok(readings) => {
            for problem in &readings.problems {
                tracing::warn!(server = server.name(), %problem, "series refused");
            }
        }
        Err(error) => tracing::warn!(server = server.name(), error, "reading the load; all its pools hold"),
    }
    let mut by_pool: HashMap<PoolKey, BTreeMap<api::Signal, OwnAnswer>> = HashMap::new();
    for (OverrideQuery { pool, signal, query }, read) in overrides.iter().zip(replaced) {
        let answer = OwnAnswer { query: query.clone(), number: read.map_err(|error| with_causes(&error)) };
        by_pool.entry(pool.clone()).or_default().insert(*signal, answer);
    }
    let stale_after_seconds = server.configuration().stale_after_seconds();
    let url = server.configuration().url.clone();
    (server.name().to_owned(), Said { readings, overrides: by_pool, stale_after_seconds, url })
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use axum::{Router, extract::RawQuery, routing::get};
    use tokio::sync::Barrier;

    use super::*;
    use crate::{decide::effective::effective, signals::ServerConfiguration};

    fn member(server: &str) -> Member {
        let pool: ConnectionPool = serde_yaml::from_str(
            "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {name: shop, namespace: ns}\nspec:\n  \
             workload: {selector: {matchLabels: {app: shop}}}\n  \
             upstream: {host: pg, database: shop, credentialsRef: {name: shop-db}}\n",
        )
        .unwrap();
        Member {
            key: PoolKey::new("ns", "shop"),
            effective: effective(&pool.spec, None).unwrap(),
            pool: Arc::new(pool),
            server: server.to_owned(),
            overrides: Vec::new(),
        }
    }

    /// A Prometheus that answers no query before so many are under way, and refuses the one about quantiles on demand.
    async fn serve(together: usize, refuses: &Arc<AtomicBool>) -> (Arc<AtomicUsize>, SocketAddr) {
        let (asked, barrier) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(together)));
        let (counted, refuses) = (asked.clone(), refuses.clone());
        let answer = move |RawQuery(query): RawQuery| {
            let barrier = barrier.clone();
            counted.fetch_add(1, Ordering::Relaxed);
            let is_quantile = query.is_some_and(|query| query.contains("histogram_quantile"));
            let is_refused = is_quantile && refuses.load(Ordering::Relaxed);
            async move {
                barrier.wait().await;
                if is_refused {
                    return r#"{"status":"error","errorType":"execution","error":"too many samples"}"#.to_owned();
                }
                let quantile = r#"{"metric":{"pool_namespace":"ns","pool":"shop"},"value":[1,"0.25"]}"#;
                let series = if is_quantile { quantile } else { "" };
                format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}}}"#)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/api/v1/query", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (asked, address)
    }

    fn roster() -> Arc<Roster> {
        Arc::new([(PoolKey::new("ns", "shop"), "shop-0".to_owned())].into_iter().collect())
    }

    fn server(name: &str, address: SocketAddr) -> Server {
        Server::new(name, ServerConfiguration::new(format!("http://{address}")))
    }

    #[tokio::test]
    async fn decisions_wait_for_no_server_that_no_pool_names_and_for_no_query_after_another() {
        let (_, shop) = serve(QUERIES_PER_READ + 1, &Arc::default()).await;
        let (asked, idle) = serve(usize::MAX, &Arc::default()).await;
        let servers: Servers = [server("shop", shop), server("idle", idle)].into_iter().collect();
        let answers = ask_all(Some(&servers), &[member("shop")], &roster(), true, Timestamp::UNIX_EPOCH).await;
        assert!(answers.said["shop"].readings.is_ok(), "{:?}", answers.said["shop"].readings);
        let quantiles = answers.quantiles.expect("asked for");
        assert_eq!(
            (quantiles.by_pool, quantiles.failed),
            (HashMap::from([(PoolKey::new("ns", "shop"), 0.25)]), BTreeMap::new())
        );
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_quantile_that_cannot_be_read_counts_as_a_failed_query_and_is_told_once_until_it_can() {
        let refuses = Arc::new(AtomicBool::new(false));
        let (asked, address) = serve(1, &refuses).await;
        let servers: Servers = [server("shop", address)].into_iter().collect();
        let mut known = BTreeSet::new();
        for (refused, told) in [(false, 0), (true, 1), (true, 0), (false, 0), (true, 1)] {
            refuses.store(refused, Ordering::Relaxed);
            let before = asked.load(Ordering::Relaxed);
            let answers = ask_all(Some(&servers), &[member("shop")], &roster(), true, Timestamp::UNIX_EPOCH).await;
            assert!(answers.said["shop"].readings.is_ok(), "the load is another query");
            assert_eq!(answers.queries, u64::try_from(asked.load(Ordering::Relaxed) - before).unwrap());
            assert_eq!(answers.failed, u64::from(refused));
            let failed = answers.quantiles.expect("asked for").failed;
            let new = newly_failed(&mut known, &failed);
            assert_eq!(new.len(), told);
            assert!(
                new.iter().all(|(server, error)| *server == "shop" && error.contains("too many samples")),
                "{new:?}"
            );
        }
        let answers = ask_all(Some(&servers), &[member("shop")], &roster(), false, Timestamp::UNIX_EPOCH).await;
        assert_eq!((answers.queries, answers.failed), (u64::try_from(QUERIES_PER_READ).unwrap(), 0));
    }
}
