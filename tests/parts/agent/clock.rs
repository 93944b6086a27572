//! A wall clock that jumps under the whole sidecar.

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use tempfile::TempDir;

use super::{
    load::Clients,
    rig::{Agent, Postgres, until},
    switch::{packets, switched, target},
};

const HOUR: i64 = 3600;

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_wall_clock_that_jumps_hours_either_way_neither_cuts_a_client_nor_keeps_a_switch_from_its_end() {
    let (postgres, account) = Postgres::with_shop().await;
    let directory = TempDir::new().unwrap();
    let (library, clock) = (directory.path().join("clock.so"), directory.path().join("clock"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parts/agent/clock.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    fs::write(&clock, "0").unwrap();
    let mut agent = Agent::new(postgres.port, &account)
        .with_variable("LD_PRELOAD", &library)
        .with_variable("SLUICE_TEST_CLOCK", &clock);
    agent.revise(1, &packets(4096));
    agent.grant(1, 4, 4);
    agent.run();
    agent.until("it serves", |status| status.seq == 1).await;
    let told = || agent.metric("sluice_sample_timestamp_seconds{");
    let before = until("a reading", async || told()).await;

    let mut clients = Clients::new();
    for _ in 0..3 {
        clients.stay(&target(&agent), None, Duration::from_millis(20));
    }
    let pooler = agent.pooler_pid();
    for (jump, seq) in [(HOUR, 2), (-2 * HOUR, 3), (0, 4)] {
        let queries = clients.tally.queries();
        let aside = clock.with_extension("aside");
        fs::write(&aside, jump.to_string()).unwrap();
        fs::rename(&aside, &clock).unwrap();
        until("the sidecar lives in that time", async || {
            let moved = told()? - before;
            ((moved - jump as f64).abs() < 600.0).then_some(())
        })
        .await;
        // what is asked of it is done all the same
        let share = 3 + u32::try_from(seq).unwrap() % 2;
        agent.grant(seq, share, 4);
        agent.until("the grant is in force", |status| status.seq == seq).await;
        until("clients go on", async || (clients.tally.queries() > queries + 100).then_some(())).await;
    }
    assert_eq!(agent.pooler_pid(), pooler, "nobody was killed for it");
    // and in the middle of a switch: blue is warm, and does not stay so for an hour
    fs::write(&clock, HOUR.to_string()).unwrap();
    agent.revise(2, &packets(8192));
    agent.until("it is steered", |status| status.revision == Some(2)).await;
    fs::write(&clock, (-HOUR).to_string()).unwrap();
    assert_eq!(clients.stop().await.failures(), BTreeMap::new());
    switched(&agent, 2).await;
}
