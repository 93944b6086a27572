//! What the agent says of a load while clients wait, beside what the database measured itself.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sluice::{
    contract::{PoolMode, Settings, UpstreamRole},
    decide::sizing::{Decision, ObservationLine, Sizer, SizingSettings},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_postgres::Client;

use super::{
    rig::{Agent, Postgres, reacting, settings, until},
    value,
};

/// A transaction that lasts so long. The answer is how long it did, by the clock of the database.
fn sleep(seconds: f64) -> String {
    format!("select extract(epoch from (select clock_timestamp() from pg_sleep({seconds})) - statement_timestamp())")
}

async fn works(client: &Client, seconds: f64) -> f64 {
    value(client, &sleep(seconds)).await.parse().unwrap()
}

/// The agent's counters.
#[derive(Clone, Copy, Debug)]
struct Counters {
    transactions: f64,
    busy: f64,
    with_waits: f64,
    waits: f64,
}

fn counters(agent: &Agent) -> Option<Counters> {
    Some(Counters {
        transactions: agent.metric("sluice_transactions_total{")?,
        busy: agent.metric("sluice_busy_seconds_total{")?,
        with_waits: agent.metric("sluice_transaction_seconds_total{")?,
        waits: agent.metric("sluice_wait_seconds_total{")?,
    })
}

fn within(share: f64, figure: f64, truth: f64, what: &str) {
    assert!((figure / truth - 1.0).abs() <= share, "{what}: {figure}, and by the database {truth}");
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn in_a_queue_of_half_to_five_times_the_pool_busy_seconds_are_those_that_the_database_worked() {
    const POOL: u32 = 4;
    /// So long that the way there and back on a loaded machine is little of it.
    const SERVICE: f64 = 0.5;
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), POOL).await;
    // the server connections are there before anything is measured
    let warm: JoinSet<()> = clients(&agent, POOL)
        .await
        .into_iter()
        .map(|client| async move {
            works(&client, SERVICE).await;
        })
        .collect();
    warm.join_all().await;
    let settled = async |transactions: f64| {
        until("all of them are counted", async || {
            counters(&agent).filter(|counters| (counters.transactions - transactions).abs() < 0.5)
        })
        .await
    };
    let mut before = settled(f64::from(POOL)).await;
    // half, once, twice and five times the pool wait
    for (number, rounds) in [(6, 12), (8, 12), (12, 8), (24, 5)] {
        let clients = clients(&agent, number).await;
        let load: JoinSet<(f64, f64)> = clients
            .into_iter()
            .map(|client| async move {
                let (mut worked, begin) = (0.0, Instant::now());
                for _ in 0..rounds {
                    worked += works(&client, SERVICE).await;
                }
                (worked, begin.elapsed().as_secs_f64())
            })
            .collect();
        let done = load.join_all().await;
        let (worked, passed): (f64, f64) = done.iter().fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        settled(before.transactions + f64::from(number * rounds)).await;
        // PgBouncer's own time less its waits is exact once all has ended; a pool that was full to the end is counted a reading later
        let now = until("busy seconds are PgBouncer's time less its waits", async || {
            let linked = |counters: &Counters| counters.with_waits - counters.waits;
            counters(&agent)
                .filter(|now| ((now.busy - before.busy) / (linked(now) - linked(&before)) - 1.0).abs() < 0.01)
        })
        .await;
        let (busy, ended) = (now.busy - before.busy, f64::from(number * rounds));
        // the rule that the simulator plays: a transaction's time begins with its wait, which is counted apart
        let with_waits = now.with_waits - before.with_waits;
        let linked = with_waits - (now.waits - before.waits);
        within(0.05, linked, worked, "PgBouncer's time less its waits");
        within(0.05, with_waits, passed, "PgBouncer's time, and the clients'");
        within(0.05, busy, worked, "busy seconds");
        within(0.05, busy / ended, worked / ended, "service time");
        before = now;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn in_session_mode_a_client_that_waited_until_another_left_counts_what_it_works_however_long_it_stays() {
    const LONG: f64 = 8.0;
    const SHORT: f64 = 0.5;
    let (postgres, account) = Postgres::with_shop().await;
    // nobody but the two asks for the connection
    let settings = Settings { pool_mode: PoolMode::Session, role: UpstreamRole::Any, ..settings() };
    let agent = Agent::start(&postgres, &account, &settings, 1).await;
    let (first, second) = (agent.client().await, agent.client().await);
    let leaves = tokio::spawn(async move { works(&first, LONG).await });
    agent.until("the first has the connection", |status| status.held.is_some_and(|held| held.active == 1)).await;
    let worked = works(&second, SHORT).await + leaves.await.unwrap();
    let now = until("both have ended", async || {
        counters(&agent).filter(|now| now.with_waits > worked + LONG / 2.0 && now.busy > LONG + SHORT / 2.0)
    })
    .await;
    assert!(now.waits > LONG / 2.0, "{now:?}");
    within(0.05, now.busy, worked, "busy seconds");
}

async fn clients(agent: &Agent, number: u32) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..number {
        clients.push(agent.client().await);
    }
    clients
}

/// Decisions on what the agent has logged, each with the time of its reading.
fn decisions(agent: &Agent) -> Vec<(f64, Decision)> {
    let sizing = SizingSettings::from(&reacting());
    let mut sizer = Sizer::default();
    let log = agent.log();
    let lines = log.lines().filter(|line| line.contains("\"observation\""));
    let decide = lines.map(|line| {
        let logged: serde_json::Value = serde_json::from_str(line).unwrap();
        let line = ObservationLine::parse(logged["observation"].as_str().unwrap()).unwrap();
        (line.t, sizer.decide(&sizing, &line.observation().unwrap().observation()))
    });
    decide.collect()
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_pool_at_nine_tenths_of_its_limit_shows_the_load_and_not_its_queue() {
    /// A second.
    const RATE: f64 = 9.0;
    const SERVICE: f64 = 0.3;
    const TRANSACTIONS: u32 = 360;
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &reacting(), 3).await;
    let idle = Arc::new(Mutex::new(clients(&agent, 60).await));
    let worked = Arc::new(Mutex::new(Vec::new()));
    let mut load = JoinSet::new();
    let begin = Instant::now();
    // arrivals in clusters, so that there is a queue although there is room on the whole
    for i in 0..TRANSACTIONS {
        let cluster = f64::from(i / 6 * 6) / RATE;
        sleep_until(begin + Duration::from_secs_f64(cluster)).await;
        let (idle, worked) = (idle.clone(), worked.clone());
        load.spawn(async move {
            let client = idle.lock().unwrap().pop().expect("a client that does nothing");
            let seconds = works(&client, SERVICE).await;
            worked.lock().unwrap().push(seconds);
            idle.lock().unwrap().push(client);
        });
    }
    load.join_all().await;
    let truth = worked.lock().unwrap().iter().sum::<f64>() / begin.elapsed().as_secs_f64();
    until("all of them are counted", async || {
        counters(&agent).filter(|counters| (counters.transactions - f64::from(TRANSACTIONS)).abs() < 0.5)
    })
    .await;
    let decisions = decisions(&agent);
    let busy: Vec<&Decision> = decisions
        .iter()
        .rev()
        .map(|(_, decision)| decision)
        .skip_while(|decision| decision.explanation.demand < 0.5 * truth)
        .take(20)
        .collect();
    let mean =
        |of: &dyn Fn(&Decision) -> f64| busy.iter().map(|decision| of(decision)).sum::<f64>() / busy.len() as f64;
    within(0.15, mean(&|decision| decision.explanation.demand), truth, "demand");
    within(0.1, mean(&|decision| decision.explanation.service_seconds), SERVICE, "service time");
    let size = mean(&|decision| f64::from(decision.base));
    assert!((3.0..=3.0 * truth).contains(&size), "{size} for a demand of {truth}");
}
