//! The demo's load as numbers: which pods there are when, how many orders each gets, how long one takes.
//!
//! At half the demo's pace: half the orders, each twice as long, so that as many server connections are busy while the
//! machine, which carries all policies at once, has half the work.
//!
//! It is drawn once and given to every policy alike, so that the policies differ in nothing else.

/// Seconds of the whole run.
pub const SECONDS: f64 = 215.0;
/// Longest time that an order may wait for a client connection before it is given up, in seconds.
pub const LATENCY_LIMIT: f64 = 2.0;
/// Client connections of one pod.
pub const CLIENTS: usize = 30;

/// One pod of the Deployment, or of the report that forgets to commit.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// When it starts, in seconds.
    pub from: f64,
    /// When it ends.
    pub to: f64,
    /// Orders a second.
    pub rate: f64,
    /// Transactions left open from the start.
    pub leaks: usize,
}

/// One order: when it comes in, and how long the database works on it, both in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// When.
    pub at: f64,
    /// How long.
    pub work: f64,
}

/// All pods of the run: two, six, a rolling update that replaces them two at a time, two again, and the report.
pub fn pods() -> Vec<Pod> {
    let pod = |from, to, rate| Pod { from, to, rate, leaks: 0 };
    let mut pods = Vec::new();
    for index in 0..6_u8 {
        let step = 4.0 * f64::from(index / 2);
        let begin = if index < 2 { 0.0 } else { 40.0 };
        pods.push(pod(begin, 74.0 + step, 4.0));
        let end = if index < 2 { 159.0 } else { 155.0 };
        pods.push(pod(70.0 + step, end, 12.0));
    }
    pods.extend([pod(155.0, SECONDS, 4.0); 2]);
    pods.push(Pod { from: 155.0, to: SECONDS, rate: 0.0, leaks: 3 });
    pods
}

/// Mean time of one order at a given second.
fn pace(at: f64) -> f64 {
    if (115.0..155.0).contains(&at) { 0.4 } else { 0.2 }
}

/// The orders of a pod: Poisson arrivals, exponential work cut off at five times the mean, as the demo's `work()`.
pub fn orders(index: usize, pod: &Pod) -> Vec<Order> {
    let mut random = SplitMix(0x51C3_u64.wrapping_mul(index as u64 + 1));
    let mut orders = Vec::new();
    let mut at = pod.from;
    loop {
        at += random.exponential() / pod.rate;
        if at >= pod.to || pod.rate == 0.0 {
            return orders;
        }
        orders.push(Order { at, work: random.exponential().min(5.0) * pace(at) });
    }
}

/// Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn exponential(&mut self) -> f64 {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        -(1.0 - uniform).ln()
    }
}
