//! No growth into a saturated database.
//!
//! While clients queue and all connections are busy, throughput is `N / S(N)`. Past the database's knee it no longer
//! rises with `N` (Gunther's Universal Scalability Law), which shows as a longer service time (the gradient of Netflix'
//! concurrency-limits). A size that bought less than 30 % of a proportional gain is taken back.
//!
//! Then the knee is searched, a step with each reading. More connections make no transaction shorter: what was measured at
//! another size and says so belongs to another load and is forgotten. By Little's law the best throughput that was seen
//! needs no more connections than it has transactions in flight that nothing slows down: it times the shortest service
//! time. From there the size climbs while that pays. Where it ends is capped for three minutes; afterwards the cap is raised
//! by 10 % a minute until the wish fits under it.
//!
//! A reading counts from the moment on at which all that ends has begun at the size in force.

use serde::{Deserialize, Serialize};

use super::Limit;
use crate::domain::{Reading, Reason};

/// Growth that bought less than this share of a proportional gain was for nothing.
const LEAST_GAIN: f64 = 0.3;
/// Growth that lost more than this share of a proportional gain made the database slower.
const HARMFUL_GAIN: f64 = -0.05;
/// Shrinking that won more than this share of a proportional loss helped.
const HELPFUL_LOSS: f64 = -0.1;
/// A throughput of this share of the best is as good.
const AS_GOOD: f64 = 0.97;
/// Standard errors, of times that vary as service times do, beyond which two of them differ.
const VISIBLE_ERRORS: f64 = 3.5;
/// Factor to a size below the one that was for nothing, of which no smaller one is known.
const BELOW: f64 = 0.8;
/// Factor to a size that shows whether fewer connections do better.
const FEWER: f64 = 0.75;
/// Transactions of more than this many times what they took before a queue may be slowed down by each other.
const SLOWED: f64 = 1.5;
/// A size is not climbed to when one up to this much larger than it is known.
const KNOWN: f64 = 1.08;
/// Sizes of an episode are forgotten after this long without saturation.
const EPISODE_SECONDS: f64 = 300.0;
/// A cap is first questioned after this long.
const CAP_SECONDS: f64 = 180.0;
/// And then each time after this long.
const PROBE_SECONDS: f64 = 60.0;
/// Factor by which a cap is raised to probe.
const PROBE_FACTOR: f64 = 1.1;
/// A wish below this share of the cap needs no cap.
const FREE_SHARE: f64 = 0.7;
/// Transactions in a reading that tell a service time.
const ENOUGH_TRANSACTIONS: f64 = 10.0;
/// Sizes remembered in an episode.
const MOST_SIZES: usize = 64;

/// How long transactions took at a size, under saturation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Reached {
    size: u32,
    service_seconds: f64,
    transactions: f64,
}

impl Reached {
    fn throughput(&self) -> f64 {
        f64::from(self.size) / self.service_seconds.max(1e-6)
    }

    /// Gained throughput, as a share of what the sizes would make it in proportion.
    fn gain_over(&self, other: &Self) -> f64 {
        (self.throughput() / other.throughput() - 1.0) / (f64::from(self.size) / f64::from(other.size) - 1.0)
    }

    /// The factor up to which another service time may be the same.
    fn visible(&self) -> f64 {
        1.0 + VISIBLE_ERRORS / self.transactions.sqrt()
    }

    /// Whether the other was measured under another load: more connections make no transaction shorter.
    fn contradicts(&self, other: &Self) -> bool {
        let longer = |one: &Self, than: &Self| one.service_seconds > than.service_seconds * self.visible();
        (other.size > self.size && longer(self, other)) || (other.size < self.size && longer(other, self))
    }
}

/// What ended since the reading before, of that what began at the size in force.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Settled {
    size: u32,
    since_seconds: f64,
    busy_seconds: f64,
    transactions: f64,
}

impl Settled {
    fn add(&mut self, reading: &Reading, size: u32) {
        let begin = reading.at_seconds - reading.dt_seconds;
        if size != self.size {
            *self = Self { size, since_seconds: begin, ..Self::default() };
        }
        if begin >= self.since_seconds + reading.service_seconds {
            self.busy_seconds += reading.busy_seconds;
            self.transactions += reading.done;
        }
    }

    fn take(&mut self) -> Option<Reached> {
        let (busy_seconds, transactions) =
            (std::mem::take(&mut self.busy_seconds), std::mem::take(&mut self.transactions));
        (transactions > ENOUGH_TRANSACTIONS).then(|| Reached {
            size: self.size,
            service_seconds: busy_seconds / transactions,
            transactions,
        })
    }
}

/// The cap in force.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cap {
    size: u32,
    until_seconds: f64,
}

/// What the guard has seen. Sizes are per pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Knee {
    cap: Option<Cap>,
    /// Size of the last saturated reading.
    reference: Option<u32>,
    last_saturated: Option<f64>,
    reached: Vec<Reached>,
    settled: Settled,
    /// Service time of the last reading at which nobody waited and nothing was capped.
    quiet_seconds: Option<f64>,
    /// Fewer connections were tried in this episode.
    tried_fewer: bool,
}

/// The sizes that the guard judges by, per pod.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// In force.
    pub current: u32,
    /// Wanted for the load, without the clients that wait this second.
    pub wanted: u32,
    /// Lower bound.
    pub min: u32,
    /// Upper bound.
    pub max: u32,
    /// Pods.
    pub pods: f64,
}

impl Knee {
    /// The largest size per pod that the database is believed to carry.
    pub fn cap(&self) -> Option<u32> {
        self.cap.map(|cap| cap.size)
    }

    /// Takes in what was read since the last decision, at this size per pod.
    pub fn watch(&mut self, quick: &[Reading], size: u32) {
        for reading in quick {
            self.settled.add(reading, size);
        }
    }

    /// Takes in one reading. `climb` is the factor from one size to the next while that pays; at 1 nothing is searched, as in
    /// the reference implementation.
    pub fn learn(&mut self, reading: &Reading, sizes: &Sizes, climb: f64) {
        let now = reading.at_seconds;
        let searches = climb > 1.0;
        let whole_reading = Reached {
            size: sizes.current,
            service_seconds: reading.busy_seconds / reading.done.max(1.0),
            transactions: reading.done,
        };
        let here = self.settled.take();
        let here = if searches { here } else { Some(whole_reading) };
        if reading.waiting <= 0.0 && self.cap.is_none() && reading.done > ENOUGH_TRANSACTIONS {
            self.quiet_seconds = Some(whole_reading.service_seconds);
        }
        let whole = f64::from(sizes.current) * sizes.pods;
        let saturated = reading.waiting > (0.5 * whole).max(2.0) && reading.active >= 0.9 * whole;
        if saturated
            && reading.done > ENOUGH_TRANSACTIONS
            && let Some(here) = here
        {
            let before = self.record(now, here, searches);
            if searches {
                self.search(now, here, before, climb, sizes.min);
            } else {
                self.take_back(now, here, before, sizes.min);
            }
            self.reference = Some(here.size);
        }
        if let Some(cap) = self.cap
            && now > cap.until_seconds
        {
            let size = rounded_up(PROBE_FACTOR * f64::from(cap.size));
            let free = size >= sizes.max || f64::from(sizes.wanted) < FREE_SHARE * f64::from(size);
            self.cap = (!free).then_some(Cap { size, until_seconds: now + PROBE_SECONDS });
        }
    }

    /// Remembers what was reached, and returns what was before it in this episode.
    fn record(&mut self, now: f64, here: Reached, searches: bool) -> Option<Reached> {
        if self.last_saturated.is_none_or(|last| now - last > EPISODE_SECONDS) {
            self.reached.clear();
            (self.reference, self.tried_fewer) = (None, false);
        }
        self.last_saturated = Some(now);
        if searches {
            self.reached.retain(|reached| !here.contradicts(reached));
        }
        let before = self.reference.and_then(|size| self.reached.iter().find(|reached| reached.size == size)).copied();
        if let Some(reached) = self.reached.iter_mut().find(|reached| reached.size == here.size) {
            *reached = here;
        } else {
            if self.reached.len() >= MOST_SIZES {
                self.reached.remove(0);
            }
            self.reached.push(here);
        }
        before
    }

    /// The best throughput of the episode.
    fn best(&self, here: Reached) -> Reached {
        self.reached
            .iter()
            .fold(here, |best, reached| if reached.throughput() > best.throughput() { *reached } else { best })
    }

    /// One step towards the largest size that the database carries.
    fn search(&mut self, now: f64, here: Reached, before: Option<Reached>, climb: f64, min: u32) {
        let change = before.filter(|before| before.size != here.size).map(|before| (before, here.gain_over(&before)));
        if let Some((before, gain)) = change
            && here.size > before.size
            && gain < HARMFUL_GAIN
        {
            // it does not rise again beyond
            self.reached.retain(|r| r.size <= here.size || r.throughput() <= here.throughput());
        }
        let best = self.best(here);
        let carried = rounded_up(best.throughput() * self.unhindered_seconds(&best) - 1e-9);
        let smallest = |size: u32| self.reached.iter().all(|reached| reached.size >= size);
        let to = match change {
            Some((before, gain)) if here.size > before.size && gain < LEAST_GAIN => {
                if gain < HARMFUL_GAIN && smallest(before.size) {
                    part(BELOW, before.size)
                } else {
                    carried.min(before.size)
                }
            }
            _ if self.cap.is_none() => {
                let stays = before.is_some_and(|before| before.size == here.size) && smallest(here.size);
                let slowed = self.quiet_seconds.is_some_and(|quiet| here.service_seconds > SLOWED * quiet);
                if self.tried_fewer || !stays || !slowed {
                    return;
                }
                self.tried_fewer = true;
                part(FEWER, here.size)
            }
            Some((before, gain)) if here.size < before.size && gain < HELPFUL_LOSS && smallest(here.size) => {
                part(FEWER, here.size)
            }
            _ if here.throughput() >= AS_GOOD * best.throughput() => self.climbed(here.size, climb),
            _ if here.size < carried || here.size > best.size => carried,
            _ => self.climbed(here.size, climb).min(best.size),
        };
        if self.cap() != Some(to.max(min).max(1)) {
            self.set(to, min, now);
        }
    }

    /// How long transactions take that do not slow each other down: of all sizes at which they took as short as at the best.
    fn unhindered_seconds(&self, best: &Reached) -> f64 {
        let shortest = self.reached.iter().map(|reached| reached.service_seconds).fold(best.service_seconds, f64::min);
        let alike = self.reached.iter().filter(|reached| reached.service_seconds <= shortest * reached.visible());
        let (seconds, transactions) = alike.fold((0.0, 0.0), |(seconds, transactions), reached| {
            (seconds + reached.service_seconds * reached.transactions, transactions + reached.transactions)
        });
        if transactions > 0.0 { best.service_seconds.min(seconds / transactions) } else { best.service_seconds }
    }

    /// The next larger size, unless one about there is known.
    fn climbed(&self, size: u32, climb: f64) -> u32 {
        let next = climb * f64::from(size);
        let is_known =
            self.reached.iter().any(|reached| reached.size > size && f64::from(reached.size) <= KNOWN * next);
        if is_known { size } else { rounded_up(next) }
    }

    /// Takes back a growth that bought nothing, as the reference implementation does.
    fn take_back(&mut self, now: f64, here: Reached, before: Option<Reached>, min: u32) {
        let Some(before) = before.filter(|before| before.size != here.size) else { return };
        let (best, gain) = (self.best(here), here.gain_over(&before));
        if here.size > before.size && gain < LEAST_GAIN {
            self.set(if gain < HARMFUL_GAIN { part(BELOW, before.size) } else { before.size }, min, now);
        } else if here.size < before.size && self.cap.is_some() {
            if gain < HELPFUL_LOSS && here.throughput() >= 0.98 * best.throughput() {
                self.set(part(FEWER, here.size), min, now); // shrinking helped: go on
            } else if here.throughput() < AS_GOOD * best.throughput() {
                self.set(best.size, min, now); // went too far
            }
        }
    }

    fn set(&mut self, size: u32, min: u32, now: f64) {
        self.cap = Some(Cap { size: size.max(min).max(1), until_seconds: now + CAP_SECONDS });
    }

    /// Takes a wish back to the cap. `wish` and `pods` are of the whole pool.
    pub fn check(&self, wish: u32, pods: f64) -> Option<Limit> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative; saturates
        let cap = (f64::from(self.cap()?) * pods) as u32;
        (wish > cap).then(|| Limit {
            size: cap,
            reason: Reason::DatabaseSaturated,
            message: format!(
                "the database did no more with more connections: {cap} instead of {wish}; the cap is questioned every minute"
            ),
        })
    }

    /// The clock was set back: nothing may lie in the future.
    pub fn rewind(&mut self, now_seconds: f64) {
        self.last_saturated = self.last_saturated.map(|at| at.min(now_seconds));
        self.settled = Settled::default();
        if let Some(cap) = &mut self.cap {
            cap.until_seconds = cap.until_seconds.min(now_seconds + CAP_SECONDS);
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a size
fn part(share: f64, size: u32) -> u32 {
    (share * f64::from(size)) as u32
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative; saturates
fn rounded_up(size: f64) -> u32 {
    size.ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: f64 = 15.0;

    /// A database whose transactions share its speed beyond the knee, and lose some of it.
    struct Database {
        service_seconds: f64,
        knee: f64,
        loss: f64,
    }

    impl Database {
        fn service_seconds(&self, size: u32) -> f64 {
            let beyond = (f64::from(size) / self.knee).max(1.0);
            self.service_seconds * beyond * (1.0 + self.loss * (beyond - 1.0))
        }

        fn throughput(&self, size: u32) -> f64 {
            f64::from(size) / self.service_seconds(size)
        }
    }

    fn reading(at_seconds: f64, dt_seconds: f64, size: u32, service_seconds: f64) -> Reading {
        let busy_seconds = f64::from(size) * dt_seconds;
        let done = busy_seconds / service_seconds;
        Reading {
            at_seconds,
            dt_seconds,
            rate: 2.0 * done / dt_seconds,
            service_seconds,
            demand: 2.0 * f64::from(size),
            done,
            busy_seconds,
            abandoned: 0.0,
            assigned: done,
            mean_wait_seconds: Some(1.0),
            waiting: 8.0 * f64::from(size),
            active: f64::from(size),
            busy: f64::from(size),
            stalled: false,
        }
    }

    /// The guard of a pool in which more clients wait than any size serves.
    struct Overload {
        knee: Knee,
        size: u32,
        now: f64,
        climb: f64,
    }

    const MAX: u32 = 80;

    impl Overload {
        fn new() -> Self {
            Self { knee: Knee::default(), size: 10, now: 1000.0, climb: 1.25 }
        }

        fn read(&mut self, database: &Database) {
            let service = database.service_seconds(self.size);
            let quick: Vec<Reading> =
                (1..=15).map(|second| reading(self.now + f64::from(second), 1.0, self.size, service)).collect();
            self.now += SECONDS;
            let sizes = Sizes { current: self.size, wanted: MAX, min: 2, max: MAX, pods: 1.0 };
            self.knee.watch(&quick, self.size);
            self.knee.learn(&reading(self.now, SECONDS, self.size, service), &sizes, self.climb);
            self.size = self.knee.cap().unwrap_or(MAX).min(MAX);
        }

        /// Mean throughput of the readings, as a share of the best that the database can.
        fn share_of_the_best(&mut self, database: &Database, readings: u32) -> f64 {
            let best = (1..=MAX).map(|size| database.throughput(size)).fold(0.0, f64::max);
            let mut sum = 0.0;
            for _ in 0..readings {
                self.read(database);
                sum += database.throughput(self.size) / best;
            }
            sum / f64::from(readings)
        }
    }

    const FAST: Database = Database { service_seconds: 0.04, knee: 24.0, loss: 0.3 };

    #[test]
    fn the_knee_is_found_when_transactions_have_become_longer_while_the_pool_grew() {
        for (knee, loss) in [(24.0, 0.3), (24.0, 0.0), (24.0, 1.0), (12.0, 0.3), (40.0, 0.3)] {
            let mut overload = Overload::new();
            overload.read(&FAST); // a short queue, before they became longer
            let slow = Database { service_seconds: 0.16, knee, loss };
            overload.share_of_the_best(&slow, 10);
            let later = overload.share_of_the_best(&slow, 30);
            assert!(later > 0.95, "knee {knee}, loss {loss}: {later:.2} of the best throughput at {}", overload.size);
        }
    }

    #[test]
    fn a_pool_that_was_at_its_maximum_before_a_reading_tries_fewer_connections_once() {
        let slow = Database { service_seconds: 0.16, knee: 24.0, loss: 0.3 };
        let mut overload = Overload::new();
        let quiet = Reading { waiting: 0.0, ..reading(overload.now, SECONDS, 10, 0.04) };
        let sizes = Sizes { current: 10, wanted: 10, min: 2, max: MAX, pods: 1.0 };
        overload.knee.learn(&quiet, &sizes, overload.climb);
        overload.size = MAX;
        overload.share_of_the_best(&slow, 12);
        let later = overload.share_of_the_best(&slow, 30);
        assert!(later > 0.95, "{later:.2} of the best throughput at {}", overload.size);

        // without a knee the maximum is right, and fewer are tried once in an episode
        let wide = Database { service_seconds: 0.16, knee: 1000.0, loss: 0.0 };
        let mut overload = Overload::new();
        overload.knee.learn(&quiet, &sizes, overload.climb);
        overload.size = MAX;
        let share = overload.share_of_the_best(&wide, 40);
        assert!(share > 0.97 && overload.size == MAX, "{share:.2} of the best throughput at {}", overload.size);
    }

    #[test]
    fn what_was_measured_at_another_load_does_not_hold_the_size_down() {
        let mut overload = Overload::new();
        overload.share_of_the_best(&Database { service_seconds: 0.16, knee: 12.0, loss: 0.3 }, 20);
        let wider = Database { service_seconds: 0.16, knee: 40.0, loss: 0.3 };
        overload.share_of_the_best(&wider, 40);
        let later = overload.share_of_the_best(&wider, 20);
        assert!(later > 0.9, "{later:.2} of the best throughput at {}", overload.size);
    }

    #[test]
    fn without_a_climb_a_growth_that_bought_nothing_is_taken_back_as_in_the_reference() {
        let mut overload = Overload { climb: 1.0, ..Overload::new() };
        overload.read(&FAST);
        overload.read(&Database { service_seconds: 0.16, ..FAST });
        assert_eq!(overload.size, 8);
    }
}
