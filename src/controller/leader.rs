//! One writer at a time: leader election on a `Lease`.
//!
//! As in client-go, expiry is measured from when this process saw the record change, never by comparing a remote time with
//! the local clock. Taking and renewing are a PUT with the resourceVersion that was read: of two candidates one gets 409.
//! The client has no retries of its own, every call has a deadline, and whoever cannot renew in time ends the process
//! before another may take over ([`RENEW_DEADLINE`] < [`LEASE_DURATION`]). How long a term lasts is measured by a clock that
//! goes on while the machine is suspended ([`BootTime`]); how long another has been silent by one that does not, which can only
//! wait longer.
//!
//! A Lease that somebody deletes changes nothing: its holder creates it anew, and everybody else, whoever has just started
//! included, waits as long as if it were still there. Its count of terms may be lost with it: the term is then counted from what
//! operators have written elsewhere ([`Leadership::epoch_after`]), and the Lease says so by having no count until that is done.
//!
//! The Lease is read all the time, so it is also where a cluster shows that was restored from a backup: its version goes back. A watch
//! that goes on from before is then told of nothing until the versions have caught up, without any error. Whoever sees it, leader or not,
//! ends the process and begins anew with lists ([`WentBack`]).

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

use super::{boot_time::BootTime, resource_version::is_older};
use crate::contract::{EPOCHS, is_later_epoch};

/// How long a lease that nobody renews keeps others out.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// After this long without a successful renewal the leader gives up.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two attempts.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// The holder of a Lease that is not there: whoever held it until it was deleted may still write.
const UNKNOWN_HOLDER: &str = "unknown: there is no Lease";
/// Terms that may have written grants and have ended before they wrote the status of any pool.
const UNTOLD_TERMS: u64 = 16;
/// Longest that one call to the API server may take.
const CALL_DEADLINE: Duration = Duration::from_secs(3);
// a leader stops before another may start: the same of its writes stands beside their deadline
const _: () = assert!(RENEW_DEADLINE.as_millis() + CALL_DEADLINE.as_millis() < LEASE_DURATION.as_millis());

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
    /// The cluster was restored from a backup.
    #[error(transparent)]
    WentBack(#[from] WentBack),
}

/// The Lease is older than it was: the cluster was restored from a backup.
#[derive(Debug, Error)]
#[error(
    "the lease {lease} went back from resourceVersion {from} to {to}: etcd was restored from a backup, and the watches of before would be \
     told of nothing; this process ends, to begin anew with what there is"
)]
pub struct WentBack {
    /// Name of the lease.
    lease: String,
    /// The version that it had.
    from: String,
    /// The version that it has.
    to: String,
}

/// What is known of the lease: the record as last read, and when it was first seen in this state.
#[derive(Clone, Debug)]
pub struct ObservedRecord {
    /// Identity that the record names.
    pub holder: Option<String>,
    /// How long the holder asked for.
    pub duration: Duration,
    /// The term; none: nobody knows.
    pub epoch: Option<u64>,
    /// When this process saw the record change last.
    pub changed_at: Instant,
}

impl ObservedRecord {
    /// No Lease, and nothing known of who held it.
    fn absent(now: Instant) -> Self {
        Self { holder: Some(UNKNOWN_HOLDER.to_owned()), duration: LEASE_DURATION, epoch: None, changed_at: now }
    }
}

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElectionStep {
    /// Nobody holds it, or the holder has been silent for longer than it asked for: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Somebody else holds it: look again later.
    Wait,
}

/// What to do, from what was seen. Pure.
pub fn evaluate(seen: &ObservedRecord, identity: &str, now: Instant) -> ElectionStep {
    match seen.holder.as_deref() {
        None | Some("") => ElectionStep::Take,
        Some(holder) if holder == identity => ElectionStep::Renew,
        Some(_) if now.saturating_duration_since(seen.changed_at) > seen.duration => ElectionStep::Take,
        Some(_) => ElectionStep::Wait,
    }
}

/// The term of the leader, for whoever is about to write.
#[derive(Clone)]
pub struct Leadership {
    term: Arc<RwLock<Option<Term>>>,
    clock: Arc<dyn Fn() -> BootTime + Send + Sync>,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    /// None: the Lease has lost its count, and what operators wrote elsewhere has not been asked yet.
    epoch: Option<u64>,
    valid_until: BootTime,
}

impl Default for Leadership {
    fn default() -> Self {
        Self { term: Arc::default(), clock: Arc::new(BootTime::now) }
    }
}

impl Leadership {
    /// True while this process may write; false when it is not the leader, or no longer for certain.
    pub fn is_held(&self) -> bool {
        self.term.read().is_some_and(|term| (self.clock)() < term.valid_until)
    }

    /// The epoch of this term, for grants; none when it is not held. Where the Lease has lost its count, the first call of the
    /// term counts on from `newest`, the newest epoch that an operator has written.
    pub fn epoch_after(&self, newest: impl FnOnce() -> u64) -> Option<u64> {
        let mut held = self.term.write();
        let term = held.as_mut().filter(|term| (self.clock)() < term.valid_until)?;
        Some(*term.epoch.get_or_insert_with(|| following(newest())))
    }

    fn renewed(&self, epoch: Option<u64>, asked_at: BootTime) {
        let mut held = self.term.write();
        let before = held.and_then(|term| term.epoch);
        let epoch = match (before, epoch) {
            (Some(before), Some(epoch)) if is_later_epoch(epoch, before) => Some(epoch),
            (before, epoch) => before.or(epoch),
        };
        *held = Some(Term { epoch, valid_until: asked_at + RENEW_DEADLINE });
    }

    /// The epoch as the Lease should tell it.
    fn lasting(&self, epoch: Option<u64>) -> Option<u64> {
        self.term.read().and_then(|term| term.epoch).or(epoch)
    }

    fn now(&self) -> BootTime {
        (self.clock)()
    }

    fn ended(&self) {
        *self.term.write() = None;
    }
}

#[cfg(test)]
impl Leadership {
    /// The first term, which does not end.
    pub fn held() -> Self {
        let now = BootTime::now();
        let leadership = Self { clock: Arc::new(move || now), ..Self::default() };
        leadership.renewed(Some(1), now);
        leadership
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
    ///
    /// # Errors
    /// [`LeaderError::WentBack`].
    pub async fn acquire(&self) -> Result<Lease, LeaderError> {
        let mut seen: Option<(ObservedRecord, Option<String>)> = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(Some(lease)) => return Ok(lease),
                Ok(None) => {}
                Err(AttemptError::WentBack(error)) => return Err(error.into()),
                Err(error) => tracing::warn!(lease = self.lease, %error, "leader election"),
            }
            sleep(jittered(RETRY_PERIOD, &self.identity)).await;
        }
    }

    /// Keeps the lease until it is lost. Returns only to say why.
    pub async fn hold(&self, mut lease: Lease) -> LeaderError {
        let mut renewed_at = self.leadership.now();
        let mut last = "not tried yet".to_owned();
        loop {
            sleep(RETRY_PERIOD).await;
            let asked_at = self.leadership.now();
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
                            if let Err(error) = self.follows(&current, version_of(&lease)) {
                                self.leadership.ended();
                                return error.into();
                            }
                            let holder = holder_of(&current).unwrap_or_default();
                            if holder != self.identity {
                                self.leadership.ended();
                                return LeaderError::Lost { lease: self.lease.clone(), holder };
                            }
                            lease = current;
                        }
                        // 404: somebody deleted it, and nobody has it yet; after a pause another may have had it meanwhile
                        Ok(Ok(None)) if asked_at.since(renewed_at) < RENEW_DEADLINE => {
                            match self.create(self.leadership.lasting(epoch_of(&lease))).await {
                                Ok(created) => {
                                    if let Err(error) = self.follows(&created, version_of(&lease)) {
                                        self.leadership.ended();
                                        return error.into();
                                    }
                                    tracing::warn!(lease = self.lease, "the lease was deleted; created anew");
                                    (lease, renewed_at) = (created, asked_at);
                                    self.leadership.renewed(epoch_of(&lease), asked_at);
                                }
                                Err(error) => last = error.to_string(),
                            }
                        }
                        Ok(Ok(None) | Err(_)) | Err(_) => {}
                    }
                }
            }
            if self.leadership.now().since(renewed_at) >= RENEW_DEADLINE {
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

    async fn attempt(
        &self,
        seen: &mut Option<(ObservedRecord, Option<String>)>,
    ) -> Result<Option<Lease>, AttemptError> {
        let Some(lease) = deadline(self.leases.get_opt(&self.lease)).await? else {
            // deleted under a holder who may still write, for all that this process knows
            let (known, version) = seen.get_or_insert_with(|| (ObservedRecord::absent(Instant::now()), None));
            if evaluate(known, &self.identity, Instant::now()) == ElectionStep::Wait {
                return Ok(None);
            }
            let asked_at = self.leadership.now();
            let created = self.create(known.epoch.map(following)).await?;
            self.follows(&created, version.as_deref())?;
            self.leadership.renewed(epoch_of(&created), asked_at);
            return Ok(Some(created));
        };
        self.follows(&lease, seen.as_ref().and_then(|(_, known)| known.as_deref()))?;
        let version = lease.metadata.resource_version.clone();
        let unchanged = seen.as_ref().is_some_and(|(_, known)| *known == version);
        if !unchanged {
            let epoch = epoch_of(&lease);
            let spec = lease.spec.clone().unwrap_or_default();
            let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            let duration = seconds.map_or(LEASE_DURATION, Duration::from_secs);
            let changed_at = Instant::now();
            *seen = Some((ObservedRecord { holder: spec.holder_identity, duration, epoch, changed_at }, version));
        }
        let Some((known, _)) = seen.as_ref() else { return Ok(None) };
        match evaluate(known, &self.identity, Instant::now()) {
            ElectionStep::Wait => Ok(None),
            // our own name without our own memory of it: the epoch must grow all the same
            ElectionStep::Take | ElectionStep::Renew => {
                let asked_at = self.leadership.now();
                let taken = self.record(Some(&lease), epoch_of(&lease).map(following), Timestamp::now());
                let lease = deadline(self.leases.replace(&self.lease, &PostParams::default(), &taken)).await?;
                self.leadership.renewed(epoch_of(&lease), asked_at);
                Ok(Some(lease))
            }
        }
    }

    /// Whether the Lease is of no earlier time than it was before.
    fn follows(&self, lease: &Lease, before: Option<&str>) -> Result<(), WentBack> {
        let version = version_of(lease);
        if !is_older(version, before) {
            return Ok(());
        }
        let text = |version: Option<&str>| version.unwrap_or_default().to_owned();
        Err(WentBack { lease: self.lease.clone(), from: text(before), to: text(version) })
    }

    async fn create(&self, epoch: Option<u64>) -> Result<Lease, AttemptError> {
        let fresh = self.record(None, epoch, Timestamp::now());
        deadline(self.leases.create(&PostParams::default(), &fresh)).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, AttemptError> {
        let mut renewed = lease.clone();
        let epoch = self.leadership.lasting(epoch_of(lease));
        if let Some(spec) = renewed.spec.as_mut() {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            spec.lease_transitions = as_transitions(epoch);
        }
        deadline(self.leases.replace(&self.lease, &PostParams::default(), &renewed)).await
    }

    fn record(&self, current: Option<&Lease>, epoch: Option<u64>, now: Timestamp) -> Lease {
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
                lease_transitions: as_transitions(epoch),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// One attempt that failed; the next one may succeed, but where the cluster went back.
#[derive(Debug, Error)]
enum AttemptError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer from the API server within {} s", CALL_DEADLINE.as_secs())]
    NoAnswer,
    #[error(transparent)]
    WentBack(#[from] WentBack),
}

async fn deadline<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, AttemptError> {
    match timeout(CALL_DEADLINE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(AttemptError::NoAnswer),
    }
}

fn version_of(lease: &Lease) -> Option<&str> {
    lease.metadata.resource_version.as_deref()
}

fn holder_of(lease: &Lease) -> Option<String> {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone())
}

/// The term: how often the lease has changed hands, this time included. Every grant carries it. None: nobody knows.
fn epoch_of(lease: &Lease) -> Option<u64> {
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
    transitions.and_then(|n| u64::try_from(n).ok())
}

/// The epoch after this one. After the last that a Lease can count comes the first ([`Stamp`](crate::contract::Stamp)).
const fn following(epoch: u64) -> u64 {
    (epoch % EPOCHS + 1) % EPOCHS
}

/// The newest epoch that an operator has written: in the status of pools, which nobody else may write, or on pods as far as it
/// follows that closely. What a pod has beyond it can only have been made up. Pure.
pub fn newest_written(in_status: impl IntoIterator<Item = u64>, on_pods: impl IntoIterator<Item = u64>) -> u64 {
    let later = |one, other| if is_later_epoch(other, one) { other } else { one };
    let told = in_status.into_iter().fold(0, later);
    let follows = |epoch: &u64| (epoch % EPOCHS + EPOCHS - told % EPOCHS) % EPOCHS <= UNTOLD_TERMS;
    on_pods.into_iter().filter(follows).fold(told, later)
}

fn as_transitions(epoch: Option<u64>) -> Option<i32> {
    epoch.and_then(|epoch| i32::try_from(epoch).ok())
}

/// Spreads candidates that started together, without a random source: by their names.
fn jittered(period: Duration, identity: &str) -> Duration {
    let sum: u32 = identity.bytes().map(u32::from).sum();
    period + Duration::from_millis(u64::from(sum % 400))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    fn seen(holder: Option<&str>, changed_at: Instant) -> ObservedRecord {
        ObservedRecord { holder: holder.map(str::to_owned), duration: LEASE_DURATION, epoch: Some(1), changed_at }
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken() {
        let now = Instant::now();
        assert_eq!(evaluate(&seen(None, now), "a", now), ElectionStep::Take);
        assert_eq!(evaluate(&seen(Some(""), now), "a", now), ElectionStep::Take, "released");
    }

    #[test]
    fn the_lease_of_another_is_taken_only_after_it_was_silent_for_its_whole_duration() {
        let start = Instant::now();
        let lease = seen(Some("b"), start);
        assert_eq!(evaluate(&lease, "a", start), ElectionStep::Wait);
        assert_eq!(evaluate(&lease, "a", start + LEASE_DURATION), ElectionStep::Wait);
        assert_eq!(evaluate(&lease, "a", start + LEASE_DURATION + Duration::from_millis(1)), ElectionStep::Take);
    }

    #[test]
    fn our_own_lease_is_renewed() {
        let now = Instant::now();
        assert_eq!(evaluate(&seen(Some("a"), now), "a", now), ElectionStep::Renew);
    }

    /// A leadership by a clock that the test sets.
    fn leadership() -> (Leadership, Arc<AtomicU64>) {
        let (start, passed) = (BootTime::now(), Arc::new(AtomicU64::new(0)));
        let seconds = passed.clone();
        let clock = move || start + Duration::from_secs(seconds.load(Ordering::Relaxed));
        (Leadership { clock: Arc::new(clock), ..Leadership::default() }, passed)
    }

    #[test]
    fn the_right_to_write_ends_with_the_renewal_deadline_even_if_nobody_says_so() {
        let (leadership, passed) = leadership();
        assert!(!leadership.is_held());
        leadership.renewed(Some(7), leadership.now());
        assert!(leadership.is_held());
        assert_eq!(leadership.epoch_after(|| 6), Some(7));
        passed.store(RENEW_DEADLINE.as_secs(), Ordering::Relaxed);
        assert_eq!((leadership.is_held(), leadership.epoch_after(|| 6)), (false, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_slept_through_the_end_of_its_lease_writes_nothing_when_it_wakes() {
        let (leases, (leadership, passed)) = (Leases::default(), leadership());
        let holder = candidate(leases.clone(), "a", leadership.clone());
        let lease = holder.acquire().await.expect("it is free");
        let monotonic = Instant::now();
        let holding = tokio::spawn(async move { holder.hold(lease).await });
        tokio::task::yield_now().await;
        // the machine is suspended: tokio's clock, which is the monotonic one, stands still
        passed.store(60, Ordering::Relaxed);
        assert!(!leadership.is_held());
        leases.is_down.store(true, Ordering::Relaxed);
        let ended = timeout(Duration::from_mins(1), holding).await.expect("it ends").expect("no panic");
        assert!(matches!(ended, LeaderError::Expired { .. }), "{ended}");
        assert!(monotonic.elapsed() < RENEW_DEADLINE, "by that clock it would still lead: {:?}", monotonic.elapsed());
    }

    #[test]
    fn a_term_whose_lease_lost_its_count_goes_on_after_what_operators_have_written_and_keeps_its_epoch() {
        let (leadership, _) = leadership();
        leadership.renewed(None, leadership.now()); // the Lease was deleted
        assert_eq!(leadership.lasting(None), None, "the Lease tells no count that nobody knows");
        assert_eq!(leadership.epoch_after(|| 6), Some(7));
        assert_eq!(leadership.epoch_after(|| 7), Some(7), "its own grants are no other term's");
        leadership.renewed(None, leadership.now());
        assert_eq!(leadership.epoch_after(|| 7), Some(7), "a renewal does not take it back");
        assert_eq!(leadership.lasting(None), Some(7), "the Lease is told with the next renewal");
    }

    #[test]
    fn a_term_that_the_lease_counts_believes_no_pod() {
        let (leadership, _) = leadership();
        leadership.renewed(Some(4), leadership.now());
        assert_eq!(leadership.epoch_after(|| 2_000_000_000), Some(4));
    }

    #[test]
    fn an_epoch_is_believed_of_a_status_and_of_pods_that_follow_it_closely_only() {
        assert_eq!(newest_written([], []), 0, "a new cluster");
        assert_eq!(newest_written([3, 5], [4, 5]), 5);
        assert_eq!(newest_written([5], [7]), 7, "a term that wrote a grant and died before it told");
        assert_eq!(newest_written([5], [2_000_000_000, EPOCHS - 1, 7]), 7, "what only somebody else can have written");
        assert_eq!(newest_written([EPOCHS - 1], [0]), 0, "after the last comes the first");
    }

    #[test]
    fn terms_are_counted_on_past_the_largest_number_of_a_lease() {
        assert_eq!(following(EPOCHS - 1), 0);
        assert!(is_later_epoch(following(EPOCHS - 1), EPOCHS - 1));
        assert_eq!(as_transitions(Some(EPOCHS - 1)), Some(i32::MAX));
    }

    /// The API server, as far as one Lease needs it.
    #[derive(Clone, Default)]
    struct Leases {
        lease: Arc<Mutex<Option<Lease>>>,
        /// The version that was given last, of whatever object.
        version: Arc<AtomicU64>,
        is_down: Arc<AtomicBool>,
    }

    impl Leases {
        fn holder(&self) -> Option<String> {
            self.lease.lock().as_ref().and_then(holder_of)
        }

        /// What a backup has now.
        fn backup(&self) -> (Option<Lease>, u64) {
            (self.lease.lock().clone(), self.version.load(Ordering::Relaxed))
        }

        fn restore(&self, (lease, version): (Option<Lease>, u64)) {
            *self.lease.lock() = lease;
            self.version.store(version, Ordering::Relaxed);
        }

        fn answer(&self, method: &http::Method, body: &[u8]) -> (u16, Value) {
            let mut lease = self.lease.lock();
            let version = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
            let refused = |code: u16, reason: &str| {
                (
                    code,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}),
                )
            };
            match (method.as_str(), &*lease) {
                _ if self.is_down.load(Ordering::Relaxed) => return refused(503, "ServiceUnavailable"),
                ("GET" | "PUT", None) => return refused(404, "NotFound"),
                ("POST", Some(_)) => return refused(409, "AlreadyExists"),
                ("GET", Some(lease)) => return (200, serde_json::to_value(lease).expect("JSON")),
                _ => {}
            }
            let mut written: Lease = serde_json::from_slice(body).expect("a Lease");
            if method == http::Method::PUT && written.metadata.resource_version != version {
                return refused(409, "Conflict");
            }
            let given = self.version.fetch_add(1, Ordering::Relaxed) + 1;
            written.metadata.resource_version = Some(given.to_string());
            *lease = Some(written);
            (200, serde_json::to_value(&*lease).expect("JSON"))
        }
    }

    fn candidate(leases: Leases, identity: &str, leadership: Leadership) -> Candidate {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let leases = leases.clone();
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await?;
                let (code, answer) = leases.answer(&method, &body);
                let answer = http::Response::builder()
                    .status(code)
                    .body(kube::client::Body::from(answer.to_string().into_bytes()));
                Ok::<_, tower::BoxError>(answer?)
            }
        });
        let candidate =
            Candidate::new(Client::new(service, "sluice-system"), "sluice-system", "sluice", identity.to_owned());
        Candidate { leadership, ..candidate }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_starts_without_a_lease_waits_as_long_as_one_would_last_and_counts_no_term() {
        let leases = Leases::default();
        let (leadership, _) = leadership();
        let started = Instant::now();
        let lease = candidate(leases.clone(), "b", leadership.clone()).acquire().await.expect("it is free");
        assert!(started.elapsed() > LEASE_DURATION, "{:?}", started.elapsed());
        assert!(started.elapsed() < LEASE_DURATION + 3 * RETRY_PERIOD, "{:?}", started.elapsed());
        assert_eq!(epoch_of(&lease), None);
        assert_eq!(leadership.epoch_after(|| 40), Some(41));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_starts_while_the_lease_is_deleted_leaves_it_to_its_holder() {
        let leases = Leases::default();
        let (of_holder, _) = leadership();
        let holder = candidate(leases.clone(), "a", of_holder.clone());
        let lease = holder.acquire().await.expect("it is free");
        of_holder.epoch_after(|| 0);
        let holding = tokio::spawn(async move { holder.hold(lease).await });
        *leases.lease.lock() = None;
        let (of_other, _) = leadership();
        let other = candidate(leases.clone(), "b", of_other.clone());
        assert!(timeout(Duration::from_mins(1), other.acquire()).await.is_err(), "two would lead");
        assert_eq!((leases.holder().as_deref(), of_other.is_held()), (Some("a"), false));
        assert_eq!(leases.lease.lock().as_ref().and_then(epoch_of), Some(1), "the count is not lost");
        holding.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_lease_is_taken_at_once_and_its_count_goes_on() {
        let leases = Leases::default();
        let released =
            LeaseSpec { holder_identity: Some(String::new()), lease_transitions: Some(4), ..LeaseSpec::default() };
        *leases.lease.lock() = Some(Lease { spec: Some(released), ..Lease::default() });
        let started = Instant::now();
        let (leadership, _) = leadership();
        candidate(leases, "b", leadership.clone()).acquire().await.expect("it is free");
        assert_eq!((started.elapsed(), leadership.epoch_after(|| 2_000_000_000)), (Duration::ZERO, Some(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_and_whoever_waits_begin_anew_when_the_cluster_was_restored_from_a_backup() {
        let empty = Leases::default().backup();
        for has_lease in [true, false] {
            let leases = Leases::default();
            let holder = candidate(leases.clone(), "a", leadership().0);
            let lease = holder.acquire().await.expect("it is free");
            let backup = if has_lease { leases.backup() } else { empty.clone() };
            let holding = tokio::spawn(async move { holder.hold(lease).await });
            let other = candidate(leases.clone(), "b", leadership().0);
            let waiting = tokio::spawn(async move { other.acquire().await });
            sleep(3 * RETRY_PERIOD).await;
            assert!(!holding.is_finished() && !waiting.is_finished());
            leases.restore(backup);
            let ended = timeout(Duration::from_mins(1), holding).await.expect("it ends").expect("no panic");
            assert!(matches!(ended, LeaderError::WentBack(_)), "{ended}");
            let ended = timeout(Duration::from_mins(1), waiting).await.expect("it ends").expect("no panic");
            assert!(matches!(ended, Err(LeaderError::WentBack(_))), "{ended:?}");
        }
    }
}
