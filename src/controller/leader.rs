//! One writer at a time: leader election on a `Lease`.
//!
//! As in client-go, expiry is measured from when this process saw the record change, never by comparing a remote time with
//! the local clock. Taking and renewing are a PUT with the resourceVersion that was read: of two candidates one gets 409.
//! The client has no retries of its own, every call has a deadline, and whoever cannot renew in time ends the process
//! before another may take over ([`RENEW_DEADLINE`] < [`LEASE_DURATION`]).
//!
//! A Lease that somebody deletes changes nothing: its holder creates it anew, and whoever has seen it held waits as long as if
//! it were still there. Its count of terms may be lost with it; agents take no grant of an earlier term than they have seen, so
//! a term's epoch also passes every one that a pod carries ([`Leadership::epoch_after`]).

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use parking_lot::RwLock;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

/// How long a lease that nobody renews keeps others out.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// After this long without a successful renewal the leader gives up.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two attempts.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Longest that one call to the API server may take.
const CALL_DEADLINE: Duration = Duration::from_secs(3);

/// Why leadership ended or could not be sought.
#[derive(Debug, Error)]
pub enum LeaderError {
    /// Someone else holds the lease now.
    #[error("lost the lease {lease} to {holder}; this process ends so that there is one writer")]
    Lost {
        /// Name of the lease.
        lease: String,
        /// Who holds it.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error(
        "could not renew the lease {lease} for {} s ({last}); this process ends so that there is one writer",
        RENEW_DEADLINE.as_secs()
    )]
    Expired {
        /// Name of the lease.
        lease: String,
        /// What the last attempt said.
        last: String,
    },
}

/// What is known of the lease: the record as last read, and when it was first seen in this state.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Identity that the record names.
    pub holder: Option<String>,
    /// How long the holder asked for.
    pub duration: Duration,
    /// When this process saw the record change last.
    pub changed_at: Instant,
}

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nobody holds it, or the holder has been silent for longer than it asked for: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Somebody else holds it: look again later.
    Wait,
}

/// What to do, from what was seen. Pure.
pub fn evaluate(seen: &Seen, identity: &str, now: Instant) -> Step {
    match seen.holder.as_deref() {
        None | Some("") => Step::Take,
        Some(holder) if holder == identity => Step::Renew,
        Some(_) if now.saturating_duration_since(seen.changed_at) > seen.duration => Step::Take,
        Some(_) => Step::Wait,
    }
}

/// The term of the leader, for whoever is about to write.
#[derive(Clone, Debug, Default)]
pub struct Leadership {
    term: Arc<RwLock<Option<Term>>>,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    epoch: u64,
    /// Whether the epoch was held against those that the pods carry.
    is_established: bool,
    valid_until: Instant,
}

impl Leadership {
    /// True while this process may write; false when it is not the leader, or no longer for certain.
    pub fn is_held(&self) -> bool {
        self.term.read().is_some_and(|term| Instant::now() < term.valid_until)
    }

    /// The epoch of this term, for grants; none when it is not held. The first call of a term lifts it above the `newest` one
    /// that any pod carries.
    pub fn epoch_after(&self, newest: impl FnOnce() -> u64) -> Option<u64> {
        let mut held = self.term.write();
        let term = held.as_mut().filter(|term| Instant::now() < term.valid_until)?;
        if !term.is_established {
            term.epoch = term.epoch.max(newest().saturating_add(1));
            term.is_established = true;
        }
        Some(term.epoch)
    }

    fn renewed(&self, epoch: u64, asked_at: Instant) {
        let mut held = self.term.write();
        let before = held.unwrap_or(Term { epoch, is_established: false, valid_until: asked_at });
        *held = Some(Term { epoch: before.epoch.max(epoch), valid_until: asked_at + RENEW_DEADLINE, ..before });
    }

    /// The epoch as the Lease should tell it.
    fn lasting(&self, epoch: u64) -> u64 {
        self.term.read().map_or(epoch, |term| term.epoch.max(epoch))
    }

    fn ended(&self) {
        *self.term.write() = None;
    }
}

/// Takes part in the election of one lease.
#[derive(Clone)]
pub struct Candidate {
    leases: Api<Lease>,
    lease: String,
    identity: String,
    leadership: Leadership,
}

impl Candidate {
    /// A candidate under the name `identity`, which must differ between processes, restarts included.
    pub fn new(client: Client, namespace: &str, lease: &str, identity: String) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            lease: lease.to_owned(),
            identity,
            leadership: Leadership::default(),
        }
    }

    /// The term of this process.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Waits until this process is the leader.
    pub async fn acquire(&self) -> Lease {
        let mut seen: Option<(Seen, Option<String>)> = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(Some(lease)) => return lease,
                Ok(None) => {}
                Err(error) => tracing::warn!(lease = self.lease, %error, "leader election"),
            }
            sleep(jittered(RETRY_PERIOD, &self.identity)).await;
        }
    }

    /// Keeps the lease until it is lost. Returns only to say why.
    pub async fn hold(&self, mut lease: Lease) -> LeaderError {
        let mut renewed_at = Instant::now();
        let mut last = "not tried yet".to_owned();
        loop {
            sleep(RETRY_PERIOD).await;
            let asked_at = Instant::now();
            match self.renew(&lease).await {
                Ok(renewed) => {
                    lease = renewed;
                    renewed_at = asked_at;
                    self.leadership.renewed(epoch_of(&lease), asked_at);
                }
                Err(error) => {
                    tracing::warn!(lease = self.lease, %error, "renewing the lease");
                    last = error.to_string();
                    match timeout(CALL_DEADLINE, self.leases.get_opt(&self.lease)).await {
                        // 409: somebody wrote it. If it is still ours (an edit of a label, say) go on from what stands there.
                        Ok(Ok(Some(current))) => {
                            let holder = holder_of(&current).unwrap_or_default();
                            if holder != self.identity {
                                self.leadership.ended();
                                return LeaderError::Lost { lease: self.lease.clone(), holder };
                            }
                            lease = current;
                        }
                        // 404: somebody deleted it, and nobody has it yet
                        Ok(Ok(None)) => match self.create(epoch_of(&lease)).await {
                            Ok(created) => {
                                tracing::warn!(lease = self.lease, "the lease was deleted; created anew");
                                (lease, renewed_at) = (created, asked_at);
                                self.leadership.renewed(epoch_of(&lease), asked_at);
                            }
                            Err(error) => last = error.to_string(),
                        },
                        Ok(Err(_)) | Err(_) => {}
                    }
                }
            }
            if renewed_at.elapsed() >= RENEW_DEADLINE {
                self.leadership.ended();
                return LeaderError::Expired { lease: self.lease.clone(), last };
            }
        }
    }

    /// Gives the lease back, so that another need not wait for its end.
    pub async fn release(&self) {
        if !self.leadership.is_held() {
            return;
        }
        self.leadership.ended();
        let released = async {
            let mut lease = self.leases.get(&self.lease).await?;
            if holder_of(&lease).as_deref() == Some(self.identity.as_str())
                && let Some(spec) = lease.spec.as_mut()
            {
                spec.holder_identity = Some(String::new());
                self.leases.replace(&self.lease, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(CALL_DEADLINE, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(lease = self.lease, %error, "releasing the lease"),
            Err(_) => tracing::warn!(lease = self.lease, "releasing the lease: no answer in time"),
        }
    }

    async fn attempt(&self, seen: &mut Option<(Seen, Option<String>)>) -> Result<Option<Lease>, AttemptError> {
        let Some(lease) = deadline(self.leases.get_opt(&self.lease)).await? else {
            // deleted under a holder who may still write
            let is_held = |known: &Seen| evaluate(known, &self.identity, Instant::now()) == Step::Wait;
            if seen.as_ref().is_some_and(|(known, _)| is_held(known)) {
                return Ok(None);
            }
            let asked_at = Instant::now();
            let created = self.create(1).await?;
            self.leadership.renewed(epoch_of(&created), asked_at);
            return Ok(Some(created));
        };
        let version = lease.metadata.resource_version.clone();
        let unchanged = seen.as_ref().is_some_and(|(_, known)| *known == version);
        if !unchanged {
            let spec = lease.spec.clone().unwrap_or_default();
            let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            let duration = seconds.map_or(LEASE_DURATION, Duration::from_secs);
            *seen = Some((Seen { holder: spec.holder_identity, duration, changed_at: Instant::now() }, version));
        }
        let Some((known, _)) = seen.as_ref() else { return Ok(None) };
        match evaluate(known, &self.identity, Instant::now()) {
            Step::Wait => Ok(None),
            // our own name without our own memory of it: the epoch must grow all the same
            Step::Take | Step::Renew => {
                let asked_at = Instant::now();
                let taken = self.record(Some(&lease), epoch_of(&lease) + 1, Timestamp::now());
                let lease = deadline(self.leases.replace(&self.lease, &PostParams::default(), &taken)).await?;
                self.leadership.renewed(epoch_of(&lease), asked_at);
                Ok(Some(lease))
            }
        }
    }

    async fn create(&self, epoch: u64) -> Result<Lease, AttemptError> {
        let fresh = self.record(None, epoch, Timestamp::now());
        deadline(self.leases.create(&PostParams::default(), &fresh)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, AttemptError> {
        let mut renewed = lease.clone();
        let epoch = self.leadership.lasting(epoch_of(lease));
        if let Some(spec) = renewed.spec.as_mut() {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            spec.lease_transitions = i32::try_from(epoch).ok().or(spec.lease_transitions);
        }
        deadline(self.leases.replace(&self.lease, &PostParams::default(), &renewed)).await
    }

    fn record(&self, current: Option<&Lease>, epoch: u64, now: Timestamp) -> Lease {
        let metadata = current.map_or_else(
            || ObjectMeta { name: Some(self.lease.clone()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
                acquire_time: Some(MicroTime(now)),
                renew_time: Some(MicroTime(now)),
                lease_transitions: i32::try_from(epoch).ok(),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// One attempt that failed; the next one may succeed.
#[derive(Debug, Error)]
enum AttemptError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer from the API server within {} s", CALL_DEADLINE.as_secs())]
    NoAnswer,
}

async fn deadline<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, AttemptError> {
    match timeout(CALL_DEADLINE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(AttemptError::NoAnswer),
    }
}

fn holder_of(lease: &Lease) -> Option<String> {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone())
}

/// The term: how often the lease has changed hands, this time included. Every grant carries it.
fn epoch_of(lease: &Lease) -> u64 {
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
    transitions.and_then(|n| u64::try_from(n).ok()).unwrap_or_default()
}

/// Spreads candidates that started together, without a random source: by their names.
fn jittered(period: Duration, identity: &str) -> Duration {
    let sum: u32 = identity.bytes().map(u32::from).sum();
    period + Duration::from_millis(u64::from(sum % 400))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: Option<&str>, changed_at: Instant) -> Seen {
        Seen { holder: holder.map(str::to_owned), duration: LEASE_DURATION, changed_at }
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken() {
        let now = Instant::now();
        assert_eq!(evaluate(&seen(None, now), "a", now), Step::Take);
        assert_eq!(evaluate(&seen(Some(""), now), "a", now), Step::Take, "released");
    }

    #[test]
    fn the_lease_of_another_is_taken_only_after_it_was_silent_for_its_whole_duration() {
        let start = Instant::now();
        let lease = seen(Some("b"), start);
        assert_eq!(evaluate(&lease, "a", start), Step::Wait);
        assert_eq!(evaluate(&lease, "a", start + LEASE_DURATION), Step::Wait);
        assert_eq!(evaluate(&lease, "a", start + LEASE_DURATION + Duration::from_millis(1)), Step::Take);
    }

    #[test]
    fn our_own_lease_is_renewed() {
        let now = Instant::now();
        assert_eq!(evaluate(&seen(Some("a"), now), "a", now), Step::Renew);
    }

    #[test]
    fn a_leader_stops_before_another_may_start() {
        assert!(RENEW_DEADLINE + CALL_DEADLINE < LEASE_DURATION);
    }

    #[tokio::test(start_paused = true)]
    async fn the_right_to_write_ends_with_the_renewal_deadline_even_if_nobody_says_so() {
        let leadership = Leadership::default();
        assert!(!leadership.is_held());
        leadership.renewed(7, Instant::now());
        assert!(leadership.is_held());
        assert_eq!(leadership.epoch_after(|| 6), Some(7));
        tokio::time::advance(RENEW_DEADLINE).await;
        assert_eq!((leadership.is_held(), leadership.epoch_after(|| 6)), (false, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_epoch_of_a_term_passes_every_one_that_a_pod_carries_and_stays_for_the_term() {
        let leadership = Leadership::default();
        leadership.renewed(1, Instant::now()); // the Lease was deleted: it counts from 1 again
        assert_eq!(leadership.epoch_after(|| 6), Some(7));
        assert_eq!(leadership.epoch_after(|| 7), Some(7), "its own grants are no other term's");
        leadership.renewed(1, Instant::now());
        assert_eq!(leadership.epoch_after(|| 7), Some(7), "a renewal does not take it back");
        assert_eq!(leadership.lasting(1), 7, "the Lease is told with the next renewal");
    }
}
