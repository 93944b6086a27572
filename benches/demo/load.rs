//! The application of one pod: clients that place the orders of the timeline, and measure how long each waits for a server
//! connection. In transaction mode that is how long `BEGIN` takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_postgres::{Client, NoTls};

use crate::{
    report::OBJECTIVE_MILLISECONDS,
    timeline::{CLIENTS, LATENCY_LIMIT, Order},
};

/// Orders of one policy by the second in which they got their server connection.
pub struct Counts {
    seconds: Vec<[AtomicU32; 3]>,
}

impl Counts {
    /// Nothing counted yet.
    pub fn new(seconds: usize) -> Self {
        Self { seconds: (0..=seconds).map(|_| Default::default()).collect() }
    }

    fn add(&self, second: f64, what: usize) {
        let last = self.seconds.len() - 1;
        self.seconds[(second.max(0.0) as usize).min(last)][what].fetch_add(1, Ordering::Relaxed);
    }

    /// Orders, those that were late, those given up.
    pub fn at(&self, second: usize) -> [u32; 3] {
        self.seconds.get(second).map_or([0; 3], |counts| counts.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }
}

async fn connect(port: u16, database: &str) -> Client {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password("trusted")
        .dbname(database)
        .connect_timeout(Duration::from_secs(10));
    let (client, connection) = config.connect(NoTls).await.expect("the pooler takes a client");
    tokio::spawn(connection);
    client
}

/// Places orders through the pooler on `port` until they are all placed. `began` is second 0 of the timeline.
pub async fn place(port: u16, database: String, orders: Vec<Order>, began: Instant, counts: Arc<Counts>) {
    let (give_back, mut idle) = mpsc::channel(CLIENTS);
    for _ in 0..CLIENTS {
        give_back.send(connect(port, &database).await).await.expect("room for every client");
    }
    let mut placed = JoinSet::new();
    for order in orders {
        let due = began + Duration::from_secs_f64(order.at);
        sleep_until(due).await;
        let patience = Duration::from_secs_f64(LATENCY_LIMIT).saturating_sub(due.elapsed());
        let Ok(Some(client)) = timeout(patience, idle.recv()).await else {
            counts.add(began.elapsed().as_secs_f64(), 2);
            continue;
        };
        let (give_back, counts) = (give_back.clone(), Arc::clone(&counts));
        placed.spawn(async move {
            if client.batch_execute("BEGIN").await.is_ok() {
                let late = due.elapsed() > Duration::from_millis(u64::from(OBJECTIVE_MILLISECONDS));
                let second = began.elapsed().as_secs_f64();
                counts.add(second, 0);
                if late {
                    counts.add(second, 1);
                }
                let _ = client.batch_execute(&format!("SELECT pg_sleep({:.4}); COMMIT", order.work)).await;
                let _ = give_back.send(client).await;
            } else {
                counts.add(began.elapsed().as_secs_f64(), 2);
            }
        });
    }
    while placed.join_next().await.is_some() {}
}

/// Clients that open a transaction and forget it, until this is dropped.
pub async fn leak(port: u16, database: String, clients: usize) -> Vec<Client> {
    let mut open = Vec::new();
    for _ in 0..clients {
        let client = connect(port, &database).await;
        if client.batch_execute("BEGIN; SELECT 1").await.is_ok() {
            open.push(client);
        }
    }
    open
}
