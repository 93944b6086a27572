//! What the two drivers share: where to connect, what a round asks for, and the lines that tell of it.

use std::{
    env, fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::io::AsyncReadExt;

pub const ROWS: usize = 2000;
pub const LARGE: usize = 1_000_000;
pub const STATEMENTS: i32 = 300;
pub const SLEEP: &str = "select pg_sleep(10)";

/// What went wrong: an SQLSTATE or a kind, and the words.
pub struct Failure {
    pub code: String,
    pub message: String,
}

impl Failure {
    pub fn wrong(found: impl fmt::Debug, wanted: impl fmt::Debug) -> Self {
        let message = format!("{found:.200?} instead of {wanted:.200?}");
        Self { code: "WRONG".to_owned(), message }
    }
}

pub type Outcome = Result<(), Failure>;

pub fn expect<T: PartialEq + fmt::Debug>(found: T, wanted: T) -> Outcome {
    if found == wanted { Ok(()) } else { Err(Failure::wrong(found, wanted)) }
}

/// Wants an error of this SQLSTATE.
pub fn refused<T, E: Into<Failure>>(answer: Result<T, E>, wanted: &str) -> Outcome {
    match answer.map_err(Into::into) {
        Ok(_) => Err(Failure::wrong("no error", wanted)),
        Err(failure) if failure.code == wanted => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// One client that stays: its way to the database, and its name in the tables.
pub struct Worker {
    pub way: &'static str,
    pub owner: String,
    pub port: u16,
    pub database: String,
    pub listening: String,
    pub round: i32,
}

impl Worker {
    fn new(driver: &str, way: &'static str, number: u32) -> Self {
        let database = env::var("DRIVERS_DATABASE").unwrap();
        Self {
            way,
            owner: format!("{driver}-{way}-{number}"),
            port: env::var(format!("DRIVERS_{}_PORT", way.to_uppercase())).unwrap().parse().unwrap(),
            listening: if way == "pool" { env::var("DRIVERS_ALIAS").unwrap() } else { database.clone() },
            database,
            round: 0,
        }
    }

    pub fn channel(&self) -> String {
        self.owner.replace('-', "_")
    }

    /// User and password of the moment.
    pub fn credentials() -> (String, String) {
        let text = std::fs::read_to_string(env::var("DRIVERS_CREDENTIALS").unwrap()).unwrap();
        let mut lines = text.lines().map(str::to_owned);
        (lines.next().unwrap(), lines.next().unwrap())
    }
}

/// A driver.
pub trait Driver: Sized {
    const VERSION: &'static str;
    const OPERATIONS: &'static [&'static str];
    async fn open(worker: &Worker) -> Result<Self, Failure>;
    async fn run(&mut self, worker: &Worker, operation: &str) -> Outcome;
}

/// Its operations, less those that the command line leaves out.
fn operations_of<D: Driver>() -> Vec<&'static str> {
    let left_out: Vec<String> = env::args().skip(2).collect();
    D::OPERATIONS.iter().copied().filter(|name| !left_out.iter().any(|other| other == name)).collect()
}

pub async fn run<D: Driver + 'static>(driver: &str) {
    println!("{}", serde_json::json!({"driver": driver, "version": D::VERSION, "operations": operations_of::<D>()}));
    let ended = Arc::new(AtomicBool::new(false));
    let workers = [("pool", 0), ("pool", 1), ("direct", 0)];
    let set = tokio::task::LocalSet::new();
    for (way, number) in workers {
        set.spawn_local(work::<D>(Worker::new(driver, way, number), ended.clone()));
    }
    let end = async {
        let mut rest = Vec::new();
        let _ = tokio::io::stdin().read_to_end(&mut rest).await;
        ended.store(true, Ordering::Relaxed);
    };
    tokio::join!(set, end);
    // the thread that reads the standard input may still wait
    std::process::exit(0);
}

async fn work<D: Driver>(mut worker: Worker, ended: Arc<AtomicBool>) {
    let mut client = None;
    let operations = operations_of::<D>();
    loop {
        for operation in &operations {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let began = Instant::now();
            let outcome = tokio::time::timeout(Duration::from_secs(35), attempt::<D>(&mut client, &worker, operation));
            let outcome = outcome.await.unwrap_or_else(|_| {
                Err(Failure { code: "DEADLINE".to_owned(), message: "no answer for 35 s".to_owned() })
            });
            let failure = outcome.err();
            let line = serde_json::json!({
                "way": worker.way,
                "worker": worker.owner,
                "operation": operation,
                "milliseconds": u64::try_from(began.elapsed().as_millis()).unwrap(),
                "code": failure.as_ref().map(|failure| &failure.code),
                "message": failure.as_ref().map(|failure| failure.message.chars().take(500).collect::<String>()),
            });
            println!("{line}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        worker.round += 1;
    }
}

async fn attempt<D: Driver>(client: &mut Option<D>, worker: &Worker, operation: &str) -> Outcome {
    let mut driver = match client.take() {
        Some(driver) => driver,
        None => D::open(worker).await?,
    };
    let outcome = driver.run(worker, operation).await;
    *client = Some(driver);
    outcome
}
