//! Asking agents what they run: `GET http://POD:9130/status`.
//!
//! Pods with something unproven are asked often, all others in a slow sweep. An answer with another uid is not an
//! answer: addresses are reused.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};

use super::{pods::PodFacts, queue::Queue};
use crate::{
    causes::with_causes,
    contract::{StatusReport, UpstreamState, names::METRICS_PORT},
    decide::plan::{Expectation, Proof, SidecarSeen},
    domain::PoolKey,
    http::{Metrics, ProofOutcome},
};

/// Longest that one question may take.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const LARGEST_ANSWER_BYTES: usize = 64 << 10;
/// Questions at once.
const CONCURRENCY: usize = 32;
/// First pause before an unproven pod is asked again; it grows by half each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before an unproven pod is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// All pods are asked this often.
const SWEEP: Duration = Duration::from_mins(1);
/// Never idle for longer, whatever is due.
const LONGEST_IDLE: Duration = Duration::from_secs(1);

/// One pod as the prover sees it.
struct Subject {
    pool: PoolKey,
    address: String,
    /// The annotations that it was last asked about, by the version of the object.
    version: String,
    is_open: bool,
    due: Instant,
    pause: Duration,
    proof: Proof,
}

/// What agents said, and the task that asks them.
#[derive(Default)]
pub struct Prover {
    subjects: Mutex<HashMap<String, Subject>>,
    wake: Notify,
}

impl Prover {
    /// What the agent of a pod said last.
    pub fn proof(&self, uid: &str) -> Proof {
        self.subjects.lock().get(uid).map_or(Proof::NotAsked, |subject| subject.proof.clone())
    }

    /// Sets what the pods of a pool must be seen to run. Pods that are not mentioned are forgotten.
    pub fn expect(&self, pool: &PoolKey, pods: &[PodFacts], expected: &[Expectation]) {
        let now = Instant::now();
        let mut subjects = self.subjects.lock();
        let mut mentioned = HashSet::new();
        for pod in pods {
            let Some(address) = &pod.address else { continue };
            if pod.sidecar != SidecarSeen::Running {
                continue;
            }
            mentioned.insert(pod.uid.as_str());
            let is_open = expected.iter().any(|expected| expected.uid == pod.uid && expected.is_open);
            let subject = subjects.entry(pod.uid.clone()).or_insert_with(|| Subject {
                pool: pool.clone(),
                address: address.clone(),
                version: String::new(),
                is_open,
                due: now,
                pause: FIRST_PAUSE,
                proof: Proof::NotAsked,
            });
            subject.address.clone_from(address);
            // something new to prove: be quick again
            if is_open && (subject.version != pod.resource_version || !subject.is_open) {
                subject.pause = FIRST_PAUSE;
                subject.due = subject.due.min(now + FIRST_PAUSE);
            }
            subject.version.clone_from(&pod.resource_version);
            subject.is_open = is_open;
        }
        subjects.retain(|uid, subject| subject.pool != *pool || mentioned.contains(uid.as_str()));
        drop(subjects);
        self.wake.notify_one();
    }

    /// Asks for ever. A pool whose pods said something new is looked at.
    pub async fn run(self: Arc<Self>, queue: Queue, metrics: Metrics) {
        let client = match reqwest::Client::builder()
            .timeout(ASK_DEADLINE)
            // a kept connection takes 17 KB, and most pods are asked once a minute
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // agents are asked in plain text, and an image without certificates has none to load
            .tls_certs_only([])
            .build()
        {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(error = with_causes(&error), "building the client that asks agents");
                return;
            }
        };
        let places = Arc::new(Semaphore::new(CONCURRENCY));
        loop {
            let (due, next) = self.due(Instant::now());
            for (uid, address) in due {
                // a pod that does not answer holds its own place, and nobody else up
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let (prover, client, metrics, queue) = (self.clone(), client.clone(), metrics.clone(), queue.clone());
                tokio::spawn(async move {
                    let answer = ask(&client, &address, &uid).await;
                    drop(place);
                    metrics.asked(match &answer {
                        Ok(_) => ProofOutcome::Answered,
                        Err(AskError::OtherPod) => ProofOutcome::OtherPod,
                        Err(AskError::Unreachable(_)) => ProofOutcome::Unreachable,
                    });
                    if let Some(pool) = prover.answered(&uid, answer) {
                        queue.ask(&pool, "proof").await;
                    }
                });
            }
            let pause = next.saturating_duration_since(Instant::now()).min(LONGEST_IDLE);
            let _ = timeout(pause.max(Duration::from_millis(20)), self.wake.notified()).await;
        }
    }

    /// Who is to be asked now, and when somebody is due next.
    fn due(&self, now: Instant) -> (Vec<(String, String)>, Instant) {
        let mut subjects = self.subjects.lock();
        let mut due = Vec::new();
        for (uid, subject) in subjects.iter_mut().filter(|(_, subject)| subject.due <= now) {
            due.push((uid.clone(), subject.address.clone()));
            // not again before it has answered, or should have
            subject.due = now + ASK_DEADLINE * 2;
        }
        let next = subjects.values().map(|subject| subject.due).filter(|due| *due > now).min();
        (due, next.unwrap_or(now + LONGEST_IDLE))
    }

    /// Takes in an answer. Returns the pool when it says something new.
    fn answered(&self, uid: &str, answer: Result<StatusReport, AskError>) -> Option<PoolKey> {
        let mut subjects = self.subjects.lock();
        let subject = subjects.get_mut(uid)?;
        let now = Instant::now();
        let proof = match answer {
            Ok(report) => Proof::Report(Box::new(report)),
            Err(AskError::OtherPod) => {
                unreachable_since(&subject.proof, "another pod answers at its address".to_owned())
            }
            Err(AskError::Unreachable(error)) => unreachable_since(&subject.proof, error),
        };
        let is_new = differs(&subject.proof, &proof);
        subject.proof = proof;
        // while the question was under way there may have come something new to prove: it is due already
        let overtaken = subject.due <= now + FIRST_PAUSE;
        if overtaken {
            return is_new.then(|| subject.pool.clone());
        }
        // who complains is asked whether it still does
        let complains = match &subject.proof {
            Proof::Report(report) => {
                let upstream = report.upstream.as_ref().map(|upstream| upstream.state);
                let troubled = report.server_full.is_some() || !report.troubles.is_empty();
                let leaks = report.leaks.as_ref().is_some_and(|kinds| kinds.count() > 0);
                // old connections have transactions to finish
                let renews =
                    report.reconnected.as_ref().is_some_and(|told| told.remaining.is_some_and(|count| count > 0));
                let is_primary = upstream.is_none_or(|state| state == UpstreamState::Primary);
                troubled || leaks || renews || !report.message.is_empty() || !is_primary
            }
            Proof::Unreachable { .. } => true,
            Proof::NotAsked => false,
        };
        if subject.is_open || complains {
            subject.due = now + subject.pause;
            subject.pause = (subject.pause * 3 / 2).min(LONGEST_PAUSE);
        } else {
            subject.due = now + spread(uid);
            subject.pause = FIRST_PAUSE;
        }
        is_new.then(|| subject.pool.clone())
    }
}

/// The sweep, spread so that pods which started together are not asked together for ever.
fn spread(uid: &str) -> Duration {
    let sum: u32 = uid.bytes().fold(0, |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    SWEEP.saturating_sub(Duration::from_millis(u64::from(sum % 15_000)))
}

fn unreachable_since(before: &Proof, error: String) -> Proof {
    let (since, last) = match before {
        Proof::Unreachable { since, last, .. } => (*since, last.clone()),
        Proof::Report(report) => (Timestamp::now().as_second(), Some(report.clone())),
        Proof::NotAsked => (Timestamp::now().as_second(), None),
    };
    Proof::Unreachable { since, error, last }
}

/// Whether a plan could come out otherwise. Who is busy changes every second and does not matter.
fn differs(before: &Proof, after: &Proof) -> bool {
    std::mem::discriminant(before) != std::mem::discriminant(after) || essence(before) != essence(after)
}

/// What of an answer a plan may depend on.
fn essence(proof: &Proof) -> Option<impl PartialEq + '_> {
    proof.report().map(|report| {
        let held = report.held.map(|held| held.held);
        let upstream = report.upstream.as_ref().map(|upstream| (upstream.state, upstream.silent));
        let in_force = (report.revision, report.epoch, report.seq, report.share, report.limits);
        let full = report.server_full.as_ref().map(|full| (full.refused_beyond, full.at_most));
        let troubles: Vec<_> = report.troubles.iter().map(|trouble| (trouble.reason, &trouble.words)).collect();
        // for how long one has been pinned changes every second too
        let leaks = report.leaks.as_ref();
        let leaks = leaks
            .map(|kinds| (kinds.in_transaction, kinds.pinned, kinds.unclear, kinds.freed, kinds.client.as_deref()));
        let proof = (report.proof, report.other.is_some_and(|other| other.awaiting_promotion));
        (in_force, held, upstream, full, troubles, &report.message, leaks, &report.reconnected, proof)
    })
}

enum AskError {
    OtherPod,
    Unreachable(String),
}

async fn ask(client: &reqwest::Client, address: &str, uid: &str) -> Result<StatusReport, AskError> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let unreachable = |error: &dyn std::error::Error| AskError::Unreachable(with_causes(error));
    let asked = async {
        let answer = client.get(format!("http://{host}:{METRICS_PORT}/status")).send().await;
        let mut answer = answer.and_then(reqwest::Response::error_for_status).map_err(|error| unreachable(&error))?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST_ANSWER_BYTES {
                return Err(AskError::Unreachable(format!("its answer is longer than {LARGEST_ANSWER_BYTES} bytes")));
            }
        }
        serde_json::from_slice::<StatusReport>(&body)
            .map_err(|error| AskError::Unreachable(format!("its answer is not a status report: {error}")))
    };
    let report = timeout(ASK_DEADLINE, asked)
        .await
        .unwrap_or_else(|_| Err(AskError::Unreachable(format!("no answer within {} s", ASK_DEADLINE.as_secs()))))?;
    if report.pod_uid == uid { Ok(report) } else { Err(AskError::OtherPod) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const UID: &str = "uid-0";

    /// A prover that is to ask one pod, of which nothing is open.
    fn prover() -> Prover {
        let prover = Prover::default();
        let subject = Subject {
            pool: PoolKey::new("ns", "shop"),
            address: "10.0.0.1".to_owned(),
            version: "1".to_owned(),
            is_open: false,
            due: Instant::now(),
            pause: FIRST_PAUSE,
            proof: Proof::NotAsked,
        };
        prover.subjects.lock().insert(UID.to_owned(), subject);
        prover
    }

    /// The agent answers with this beside what every agent says: whether its pool is looked at, and whether it is asked again soon.
    fn answers(prover: &Prover, says: &Value) -> (bool, bool) {
        let mut report = json!({
            "v": 1, "podUid": UID, "pool": "shop", "revision": 1, "wantedRevision": 1, "epoch": 1, "seq": 1, "share": 5,
            "limits": null, "held": null, "slot": "Serving", "message": "",
        });
        if let (Some(report), Some(says)) = (report.as_object_mut(), says.as_object()) {
            report.extend(says.clone());
        }
        // it is asked whenever it is due
        let (due, _) = prover.due(Instant::now() + SWEEP);
        assert_eq!(due.len(), 1);
        let is_new = prover.answered(UID, Ok(serde_json::from_value(report).expect("a status report"))).is_some();
        (is_new, prover.subjects.lock()[UID].due <= Instant::now() + LONGEST_PAUSE)
    }

    #[test]
    fn who_tells_of_a_leak_is_asked_again_soon_and_its_pool_is_looked_at_when_the_kinds_change() {
        let prover = prover();
        let leaks = |in_transaction: u32, pinned: u32, seconds: Option<u32>, freed: u32| {
            json!({"leaks": {"inTransaction": in_transaction, "pinned": pinned, "unclear": 0, "longestPinnedSeconds": seconds,
                "freed": freed}})
        };
        assert_eq!(answers(&prover, &json!({})), (true, false), "the first answer");
        assert_eq!(answers(&prover, &json!({})), (false, false));
        assert_eq!(answers(&prover, &leaks(0, 1, Some(300), 0)), (true, true));
        assert_eq!(answers(&prover, &leaks(0, 1, Some(305), 0)), (false, true), "seconds alone are no news");
        assert_eq!(answers(&prover, &leaks(1, 1, Some(310), 0)), (true, true));
        assert_eq!(answers(&prover, &leaks(0, 0, None, 1)), (true, false), "it was freed, and that is told on");
        assert_eq!(answers(&prover, &leaks(0, 0, None, 1)), (false, false));
    }

    #[test]
    fn who_renews_connections_is_asked_again_soon_until_none_is_left() {
        let prover = prover();
        let renewed =
            |remaining: Option<u32>| json!({"reconnected": {"at": "2026-11-28T12:00:00Z", "remaining": remaining}});
        assert_eq!(answers(&prover, &renewed(None)), (true, false));
        assert_eq!(answers(&prover, &renewed(Some(2))), (true, true));
        assert_eq!(answers(&prover, &renewed(Some(2))), (false, true));
        assert_eq!(answers(&prover, &renewed(Some(0))), (true, false));
    }
}
