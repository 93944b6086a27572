//! Whichever process of a pod is killed, at whatever step of a switch: clients of the others are served on, those of the dead one
//! are counted, and the switch ends well.

use std::{collections::BTreeMap, fs, path::PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use sluice::contract::{OtherRole, Settings, SlotStatus, StatusReport};
use tempfile::TempDir;
use tokio_postgres::Client;

use super::{
    faults::script_in,
    load::Clients,
    rig::{Account, Agent, Postgres, program, until},
    switch::{packets, switched, target},
    value,
};

const SHARE: u32 = 4;

/// How far a switch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Green's console does not answer yet.
    Starting,
    /// Running transactions hold what green needs for its proof.
    MakingRoom,
    /// The validation query is at the database.
    Proving,
    /// New clients come to green; blue is kept for a step back.
    Warm,
    /// Blue's last client has not gone.
    Draining,
}

impl Step {
    const ALL: [Self; 5] = [Self::Starting, Self::MakingRoom, Self::Proving, Self::Warm, Self::Draining];

    /// Whether clients have been led to green.
    fn is_steered(self) -> bool {
        matches!(self, Self::Warm | Self::Draining)
    }
}

/// A pod in the middle of a switch from revision 1 to revision 2.
struct Pod {
    agent: Agent,
    step: Step,
    blue: Pid,
    green: Pid,
    /// Clients of blue, in a transaction.
    stay: Vec<Client>,
    /// Clients of green, in a transaction; none before it gets any.
    came: Vec<Client>,
    /// A file that keeps green from starting.
    hold: PathBuf,
    _directory: TempDir,
}

async fn in_transactions(agent: &Agent, count: u32) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = agent.client().await;
        client.simple_query("begin; select 1").await.unwrap();
        clients.push(client);
    }
    clients
}

/// Waits until a reading has counted so many clients in transactions: those are the ones that can be told as cut.
async fn counted_busy(agent: &Agent, count: u32) {
    agent.until("they are counted", |status| status.held.is_some_and(|held| held.active == count)).await;
}

fn role(status: &StatusReport) -> Option<OtherRole> {
    status.other.map(|other| other.role)
}

fn serves(status: &StatusReport, revision: u64) -> bool {
    status.slot == SlotStatus::Serving && status.revision == Some(revision)
}

fn wanted(step: Step) -> Settings {
    let mut settings = packets(8192);
    match step {
        Step::Proving => "select pg_sleep(1)".clone_into(&mut settings.health.validation_query),
        Step::Warm => settings.rollout.scale_down_delay_seconds = 10,
        Step::Starting | Step::MakingRoom | Step::Draining => {}
    }
    settings
}

impl Pod {
    /// A pod that has come to a step and goes no further by itself, or not for a second.
    async fn at(step: Step, postgres: &Postgres, account: &Account) -> Self {
        let directory = TempDir::new().unwrap();
        let hold = directory.path().join("hold");
        let script = format!(
            "#!/bin/sh\nwhile [ -e {} ] && grep -qs 'pkt_buf = 8192' -- \"$1\"; do sleep 0.05; done\nexec {} \"$@\"\n",
            hold.display(),
            program("pgbouncer").display()
        );
        let mut agent = Agent::new(postgres.port, account).with_pooler(&script_in(&directory, &script));
        agent.revise(1, &packets(4096));
        agent.grant(1, SHARE, SHARE);
        agent.run();
        agent.until("it serves", |status| status.seq == 1).await;
        let busy = if step == Step::MakingRoom { SHARE } else { 1 };
        let stay = in_transactions(&agent, busy).await;
        counted_busy(&agent, busy).await;
        let blue = agent.pooler_pid().unwrap();
        if step == Step::Starting {
            fs::write(&hold, "").unwrap();
        }
        agent.revise(2, &wanted(step));
        let mut came = Vec::new();
        let green = |status: &StatusReport| role(status) == Some(OtherRole::Green);
        match step {
            Step::Starting => drop(agent.until("it starts", green).await),
            Step::MakingRoom => {
                let shrinks = |status: &StatusReport| status.limits.is_some_and(|limits| limits.pool_size < SHARE);
                agent.until("it waits for room", |status| green(status) && shrinks(status)).await;
            }
            Step::Proving => {
                let admin = postgres.admin().await;
                let query = "select count(*) from pg_stat_activity where usename = 'shop' and query like 'select pg_sleep%' \
                             and state = 'active'";
                until("the validation query runs", async || (value(&admin, query).await != "0").then_some(())).await;
            }
            Step::Warm | Step::Draining => {
                agent.until("it is steered", |status| serves(status, 2)).await;
                came = in_transactions(&agent, 1).await;
                counted_busy(&agent, 2).await;
                let wanted = if step == Step::Warm { OtherRole::Warm } else { OtherRole::Draining };
                agent.until("blue is left", |status| role(status) == Some(wanted)).await;
            }
        }
        let green = until("two processes", async || agent.pooler_pids().into_iter().find(|pid| *pid != blue)).await;
        Self { agent, step, blue, green, stay, came, hold, _directory: directory }
    }

    /// Nothing keeps the switch any more.
    fn let_go(&self) {
        if self.step == Step::Starting {
            fs::remove_file(&self.hold).unwrap();
        }
    }

    fn cut(&self) -> f64 {
        self.agent.metric("sluice_clients_cut_total{").unwrap_or_default()
    }
}

/// Their transactions end well, on the connections that they had.
async fn finish(clients: &[Client]) {
    for client in clients {
        client.simple_query("commit").await.unwrap();
        assert_eq!(value(client, "select 'the same connection'").await, "the same connection");
    }
}

async fn assert_cut(clients: &[Client]) {
    for client in clients {
        assert!(client.simple_query("select 1").await.is_err(), "its process is gone");
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn at_each_step_the_agents_death_cuts_nobody_and_the_switch_ends_well() {
    let (postgres, account) = Postgres::with_shop().await;
    for step in Step::ALL {
        let pod = Pod::at(step, &postgres, &account).await;
        let mut clients = Clients::new();
        clients.churn(&target(&pod.agent), 2, 20);
        kill_process(pod.agent.agent_pid().unwrap(), Signal::KILL).unwrap();
        pod.let_go();
        if step.is_steered() {
            pod.agent.until("it resumes", |status| serves(status, 2)).await;
        }
        finish(&pod.stay).await;
        finish(&pod.came).await;
        let Pod { agent, stay, came, .. } = pod;
        drop((stay, came));
        switched(&agent, 2).await;
        assert_eq!(clients.stop().await.failures(), BTreeMap::new(), "{step:?}");
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn at_each_step_the_containers_death_leaves_a_pod_that_serves_what_worked_and_the_switch_ends_well() {
    let (postgres, account) = Postgres::with_shop().await;
    for step in Step::ALL {
        let mut pod = Pod::at(step, &postgres, &account).await;
        // the keeper is the first process of the container
        pod.agent.crash().await;
        assert_cut(&pod.stay).await;
        assert_cut(&pod.came).await;
        pod.agent.run();
        let status = pod.agent.until("it serves", |status| status.slot == SlotStatus::Serving && status.seq == 1).await;
        if step == Step::Starting {
            assert_eq!(
                (status.revision, status.wanted_revision),
                (Some(1), Some(2)),
                "what has proven nothing serves nobody"
            );
        }
        assert_eq!(value(&pod.agent.client().await, "select 1").await, "1");
        pod.let_go();
        switched(&pod.agent, 2).await;
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn at_each_step_the_new_processs_death_concerns_its_own_clients_alone_and_the_switch_ends_well() {
    let (postgres, account) = Postgres::with_shop().await;
    for step in Step::ALL {
        let pod = Pod::at(step, &postgres, &account).await;
        let before = pod.cut();
        let mut clients = Clients::new();
        if !step.is_steered() {
            clients.churn(&target(&pod.agent), 2, 20);
        }
        kill_process(pod.green, Signal::KILL).unwrap();
        if step.is_steered() {
            assert_cut(&pod.came).await;
            until("those that were cut are counted", async || (pod.cut() > before).then_some(())).await;
        } else {
            let status =
                pod.agent.until("it is told", |status| status.message.contains("revision 2 is not in force")).await;
            assert!(serves(&status, 1), "{step:?}: {status:?}");
        }
        pod.let_go();
        finish(&pod.stay).await;
        let Pod { agent, stay, .. } = pod;
        assert_eq!(value(&agent.client().await, "select 1").await, "1");
        drop(stay);
        switched(&agent, 2).await;
        assert_eq!(clients.stop().await.failures(), BTreeMap::new(), "{step:?}");
    }
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn at_each_step_the_old_processs_death_concerns_its_own_clients_alone_and_the_switch_ends_well() {
    let (postgres, account) = Postgres::with_shop().await;
    for step in Step::ALL {
        let pod = Pod::at(step, &postgres, &account).await;
        let before = pod.cut();
        kill_process(pod.blue, Signal::KILL).unwrap();
        assert_cut(&pod.stay).await;
        until("those that were cut are counted", async || (pod.cut() > before).then_some(())).await;
        pod.let_go();
        // who comes now waits at most until there is a process again
        assert_eq!(value(&pod.agent.client().await, "select 1").await, "1");
        finish(&pod.came).await;
        let Pod { agent, came, .. } = pod;
        drop(came);
        switched(&agent, 2).await;
    }
}
