//! Who works the pooler of a pod, as `sluice-agent clients` tells those who may run a program there.

use std::process::{Command, Output};

use sluice::contract::{ApplicationClients, ClientState, ClientsReport, SlotStatus};

use super::rig::{Agent, Postgres, connect, settings, until};

fn told(agent: &Agent) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-agent"));
    command.arg("clients").arg("--run-dir").arg(agent.run_dir()).env("SLUICE_INJECTION", agent.injection_text());
    command.output().unwrap()
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn who_may_run_a_program_in_the_pod_is_told_which_applications_hold_connections_and_wait_for_them() {
    let (postgres, account) = Postgres::with_shop().await;
    let agent = Agent::start(&postgres, &account, &settings(), 1).await;
    let named = async |application: &str| {
        let mut config = agent.client_config();
        connect(config.application_name(application)).await.unwrap()
    };
    let (report, web, _idle) = (named("report").await, named("web").await, named("idle").await);
    report.simple_query("begin").await.unwrap();
    let waiting = tokio::spawn(async move { web.simple_query("select 1").await.map(|_| web) });
    let of = |name: &str, holding, waiting| ApplicationClients {
        application: Some(name.to_owned()),
        clients: 1,
        holding,
        waiting,
    };
    let wanted = [of("report", 1, 0), of("web", 0, 1), of("idle", 0, 0)];
    let clients = until("all three are told, and the time that they have taken", async || {
        let output = told(&agent);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: ClientsReport = serde_json::from_slice(&output.stdout).unwrap();
        let is_seen = report.applications == wanted
            && report.longest.iter().all(|client| client.milliseconds.is_some_and(|milliseconds| milliseconds > 0));
        is_seen.then_some(report)
    })
    .await;
    let mut longest: Vec<_> =
        clients.longest.iter().map(|client| (client.application.as_str(), client.state)).collect();
    longest.sort_unstable();
    assert_eq!(longest, [("report", ClientState::Holds), ("web", ClientState::Waits)], "{clients:?}");
    assert!(clients.longest.iter().all(|client| client.address.starts_with("127.0.0.1:")), "{clients:?}");

    report.simple_query("commit").await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn where_no_pooler_answers_nobody_is_told_that_there_are_no_clients() {
    let (postgres, account) = Postgres::with_shop().await;
    let mut agent = Agent::start(&postgres, &account, &settings(), 1).await;
    agent.until("it serves", |status| status.slot == SlotStatus::Serving).await;
    agent.stop();
    let output = told(&agent);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{words}");
    assert!(words.contains("no pooler of this pod says who its clients are"), "{words}");
}
