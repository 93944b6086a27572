//! Connections past the pooler: those that libpq's environment makes are led to it, and whatever is left the agent sees.

use std::{collections::BTreeMap, process::Command};

use json_patch::patch;
use k8s_openapi::api::core::v1::Pod;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use sluice::{
    api::ConnectionPool,
    contract::{Bypass, PoolRevision},
    decide::{allowed::PoolAllowList, effective::effective},
    inject::{InjectionSettings, PodPool, inject},
};

use super::rig::{Agent, Postgres, connect, program, settings, until};

const BYPASSING: &str = "sluice_bypassing_connections";

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn connections_past_the_pooler_are_counted_and_the_poolers_own_are_not_whoever_started_it() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let through = agent.client().await;
    through.simple_query("begin; select 1").await.unwrap();
    let status = agent.until("it has looked", |status| status.bypass.is_some()).await;
    assert_eq!(status.bypass, Some(Bypass::default()), "the pooler's connections are no others'");

    let mut past = Vec::new();
    for _ in 0..8 {
        past.push(connect(&postgres.login(&account)).await.unwrap());
    }
    let is_seen = |bypass: Option<&Bypass>| bypass.is_some_and(|bypass| bypass.connections == 8);
    let status = agent.until("eight are seen under a share of 4", |status| is_seen(status.bypass.as_ref())).await;
    assert_eq!(status.bypass.unwrap().address, Some(format!("127.0.0.1:{}", postgres.port)));
    assert_eq!(agent.metric(BYPASSING), Some(8.0));
    assert!(status.message.is_empty(), "it keeps nothing from being in force: {}", status.message);

    drop(past);
    // the next agent takes up the pooler that runs
    let before = agent.agent_pid().unwrap();
    kill_process(before, Signal::KILL).unwrap();
    until("another agent", async || agent.agent_pid().filter(|pid| *pid != before)).await;
    through.simple_query("select 1").await.unwrap();
    let status = agent.until("the next agent has looked", |status| status.bypass.is_some()).await;
    assert_eq!(status.bypass, Some(Bypass::default()), "a pooler that another agent started is ours too");
}

/// The environment of a container after injection, in front of a pooler at this port.
fn environment(given: &[(&str, &str)], port: u16) -> BTreeMap<String, String> {
    let pool: ConnectionPool = serde_json::from_value(json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "metadata": {"name": "shop", "namespace": "shop"},
        "spec": {
            "workload": {"selector": {"matchLabels": {"app": "shop"}}},
            "upstream": {"host": "pg-main", "database": "shop", "credentialsRef": {"name": "shop-db"}},
            "client": {"port": port},
        },
    }))
    .unwrap();
    let effective = effective(&pool.spec, None).unwrap();
    let revision = PoolRevision { revision: 1, settings: effective.settings.clone() };
    let plan = PodPool { pool: &pool, effective: &effective, revision };
    let env: Vec<Value> = given.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let mut after = json!({"metadata": {}, "spec": {"containers": [{"name": "app", "env": env}]}});
    let pod: Pod = serde_json::from_value(after.clone()).unwrap();
    let images = InjectionSettings {
        agent_image: "sluice".to_owned(),
        pgbouncer_image: "pgbouncer".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        run_as_user: None,
        allowed: PoolAllowList::default(),
    };
    patch(&mut after, &inject(&pod, &plan, &images).unwrap().patch).unwrap();
    let env = after["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    env.iter().map(|variable| (text(&variable["name"]), text(&variable["value"]))).collect()
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn libpq_comes_to_the_pooler_whatever_its_environment_said_before() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 4).await;
    let comes = |environment: &BTreeMap<String, String>| {
        let mut psql = Command::new(program("psql"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            psql.env_remove(name);
        }
        psql.args(["-XAtc", "select 'through'"]).envs(environment).env("PGCONNECT_TIMEOUT", "10");
        psql.envs([("PGUSER", "shop"), ("PGPASSWORD", "secret"), ("PGDATABASE", "shop")]);
        let output = psql.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success() && output.stdout == b"through\n").then_some(()).ok_or(said)
    };
    let version: u32 = std::env::var("SLUICE_POSTGRES_VERSION").unwrap().parse().unwrap();
    comes(&environment(&[], agent.client_port())).expect("it comes to the pooler");
    // and the libpq that knows it
    for (name, value, since) in [
        ("PGHOSTADDR", "127.0.0.2", 0),
        ("PGSSLROOTCERT", "system", 16),
        ("PGSSLNEGOTIATION", "direct", 17),
        ("PGCHANNELBINDING", "require", 13),
        ("PGSSLCERTMODE", "require", 16),
    ] {
        let after = environment(&[(name, value)], agent.client_port());
        comes(&after).unwrap_or_else(|said| panic!("{name}={value} after injection: {said}"));
        let mut before = after.clone();
        before.insert(name.to_owned(), value.to_owned());
        let refused = comes(&before);
        assert_eq!(refused.is_err(), version >= since, "{name}={value} beside the pool's variables: {refused:?}");
    }
    let status = agent.until("it has looked", |status| status.bypass.is_some()).await;
    assert_eq!(status.bypass, Some(Bypass::default()), "none of them went to the database");
}
