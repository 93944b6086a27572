//! No growth into a saturated database.
//!
//! While clients queue and all connections are busy, throughput is `N / S(N)`. Past the database's knee it no longer
//! rises with `N` (Gunther's Universal Scalability Law), which shows as a longer service time (the gradient of Netflix'
//! concurrency-limits). A size that bought less than 30 % of a proportional gain is taken back and capped for three
//! minutes; afterwards the cap is raised by 10 % a minute until the wish fits under it.

use serde::{Deserialize, Serialize};

use super::Limit;
use crate::decide::sizing::{Reading, Reason};

/// Growth that bought less than this share of a proportional gain was for nothing.
const LEAST_GAIN: f64 = 0.3;
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

/// Throughput that a size reached under saturation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Reached {
    size: u32,
    throughput: f64,
}

/// The cap in force.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cap {
    size: u32,
    until_seconds: f64,
}

/// What the guard has seen. Sizes are per pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Knee {
    cap: Option<Cap>,
    reference: Option<u32>,
    last_saturated: Option<f64>,
    reached: Vec<Reached>,
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

    /// Takes in one reading.
    pub fn learn(&mut self, reading: &Reading, sizes: &Sizes) {
        let now = reading.at_seconds;
        let whole = f64::from(sizes.current) * sizes.pods;
        let saturated = reading.waiting > (0.5 * whole).max(2.0) && reading.active >= 0.9 * whole;
        if saturated && reading.done > ENOUGH_TRANSACTIONS {
            self.compare(now, reading.busy_seconds / reading.done, sizes);
        }
        if let Some(cap) = self.cap
            && now > cap.until_seconds
        {
            let size = rounded_up(PROBE_FACTOR * f64::from(cap.size));
            let free = size >= sizes.max || f64::from(sizes.wanted) < FREE_SHARE * f64::from(size);
            self.cap = (!free).then_some(Cap { size, until_seconds: now + PROBE_SECONDS });
        }
    }

    fn compare(&mut self, now: f64, service_seconds: f64, sizes: &Sizes) {
        if self.last_saturated.is_none_or(|last| now - last > EPISODE_SECONDS) {
            self.reached.clear();
            self.reference = None;
        }
        self.last_saturated = Some(now);
        let size = sizes.current;
        let throughput = f64::from(size) / service_seconds.max(1e-6);
        let first = Reached { size, throughput };
        if let Some(reached) = self.reached.iter_mut().find(|reached| reached.size == size) {
            *reached = first;
        } else {
            if self.reached.len() >= MOST_SIZES {
                self.reached.remove(0);
            }
            self.reached.push(first);
        }
        let best = self.reached.iter().fold(None::<&Reached>, |best, reached| match best {
            Some(best) if best.throughput >= reached.throughput => Some(best),
            _ => Some(reached),
        });
        let best = *best.unwrap_or(&first);
        let before = self.reference.and_then(|size| self.reached.iter().find(|r| r.size == size)).copied();
        if let Some(before) = before.filter(|before| before.size != size) {
            let gain = (throughput / before.throughput - 1.0) / (f64::from(size) / f64::from(before.size) - 1.0);
            if size > before.size && gain < LEAST_GAIN {
                let back = if gain < -0.05 { 0.8 } else { 1.0 };
                self.set(f64::from(before.size) * back, sizes.min, now);
            } else if size < before.size && self.cap.is_some() {
                if gain < -0.1 && throughput >= 0.98 * best.throughput {
                    self.set(0.75 * f64::from(size), sizes.min, now); // shrinking helped: go on
                } else if throughput < 0.97 * best.throughput {
                    self.set(f64::from(best.size), sizes.min, now); // went too far
                }
            }
        }
        self.reference = Some(size);
    }

    fn set(&mut self, size: f64, min: u32, now: f64) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a size
        let size = (size as u32).max(min).max(1);
        self.cap = Some(Cap { size, until_seconds: now + CAP_SECONDS });
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
        if let Some(cap) = &mut self.cap {
            cap.until_seconds = cap.until_seconds.min(now_seconds + CAP_SECONDS);
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative; saturates
fn rounded_up(size: f64) -> u32 {
    size.ceil() as u32
}
