//! Every grant that ever stood on a pod of a namespace, as the API server told it, in its order.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufReader,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Deserializer, Value};
use sluice::contract::{Document, GrantDocument, names::GRANT_ANNOTATION};

/// What was seen so far.
#[derive(Default)]
pub struct Seen {
    /// What each pod that exists is granted, by uid.
    granted: BTreeMap<String, u32>,
    /// The grant that each pod had last, also of those that are gone.
    last: BTreeMap<String, String>,
    /// The largest sum of what was granted since [`Grants::mark`].
    pub most: u32,
    /// Changes of a grant since [`Grants::mark`].
    pub writes: u32,
    /// Epochs of all grants.
    pub epochs: BTreeSet<u64>,
    /// Writes of a leader after one of its successor.
    pub out_of_order: Vec<String>,
}

impl Seen {
    /// What all pods together are granted now.
    pub fn sum(&self) -> u32 {
        self.granted.values().sum()
    }

    fn take(&mut self, event: &Value) {
        let pod = &event["object"];
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let has_ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if event["type"] == "DELETED" || has_ended {
            self.granted.remove(&uid);
            return;
        }
        let Some(text) = pod["metadata"]["annotations"][GRANT_ANNOTATION].as_str() else { return };
        let grant = GrantDocument::parse(text).expect("the operator writes what can be read");
        self.granted.insert(uid.clone(), grant.pools.values().map(|grant| grant.granted).sum());
        self.most = self.most.max(self.sum());
        if self.last.insert(uid, text.to_owned()).as_deref() == Some(text) {
            return;
        }
        let newest = self.epochs.last().copied().unwrap_or_default();
        // a pod begins with a grant of nothing, which no leader wrote
        if grant.epoch > 0 {
            self.writes += 1;
            if grant.epoch < newest {
                self.out_of_order.push(format!("{text} after epoch {newest}"));
            }
            self.epochs.insert(grant.epoch);
        }
    }
}

/// Watches until it is dropped; through restarts of the API server too.
pub struct Grants {
    seen: Arc<Mutex<Seen>>,
    watching: Arc<Mutex<Option<Child>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Grants {
    pub fn watch(namespace: &str) -> Self {
        let mut grants = Self { seen: Arc::default(), watching: Arc::default(), stop: Arc::default(), thread: None };
        let (seen, watching, stop) = (grants.seen.clone(), grants.watching.clone(), grants.stop.clone());
        let namespace = namespace.to_owned();
        let follow = move || {
            while !stop.load(Ordering::Relaxed) {
                let mut child = Command::new("kubectl")
                    .args(["get", "pods", "--namespace", &namespace, "--selector=sluice.dev/pool", "--output=json"])
                    .args(["--watch", "--output-watch-events"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("kubectl");
                let events = BufReader::new(child.stdout.take().expect("piped"));
                *lock(&watching) = Some(child);
                // a new watch begins with all that exist
                lock(&seen).granted.clear();
                for event in Deserializer::from_reader(events).into_iter::<Value>() {
                    let Ok(event) = event else { break };
                    lock(&seen).take(&event);
                }
                if let Some(mut child) = lock(&watching).take() {
                    let _ = child.wait();
                }
                thread::sleep(Duration::from_millis(100));
            }
        };
        grants.thread = Some(thread::spawn(follow));
        grants
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Forgets the largest sum and the number of writes.
    pub fn mark(&self) {
        let mut seen = self.seen();
        (seen.most, seen.writes) = (seen.sum(), 0);
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(child) = lock(&self.watching).as_mut() {
            let _ = child.kill();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
