//! The transactions of a trace, one after the other.

use super::{random::Stream, scenario::Scenario};

/// One transaction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transaction {
    /// When it arrives, in seconds.
    pub at: f64,
    /// Seconds that it takes on an unhurried database.
    pub service_seconds: f64,
    /// Uniform in (0, 1): which pod it comes to.
    pub pod: f64,
}

/// Poisson arrivals around the trace's rate (in batches where the scenario says so), log-normal service times.
#[derive(Clone, Debug)]
pub struct TraceArrivals {
    /// Rate and mean service time of every second.
    seconds: Vec<(f64, f64)>,
    stream: Stream,
    batch_mean: f64,
    sigma: f64,
    several_pods: bool,
    at: f64,
    left_in_batch: u32,
}

impl TraceArrivals {
    /// The arrivals of a trace. `several_pods`: whether a pod is drawn for each.
    pub fn new(mut seconds: Vec<(f64, f64)>, scenario: &Scenario, several_pods: bool) -> Self {
        add_noise(&mut seconds, scenario);
        Self {
            seconds,
            stream: Stream::new(scenario.seed),
            batch_mean: scenario.batch_mean.max(1.0),
            sigma: (1.0 + scenario.service_cv * scenario.service_cv).ln().sqrt(),
            several_pods,
            at: 0.0,
            left_in_batch: 0,
        }
    }

    /// The time of the next batch: the rate is constant within a second.
    fn next_batch(&mut self) -> Option<()> {
        let mut left = self.stream.exponential();
        loop {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
            let second = self.at as usize;
            let rate = self.seconds.get(second)?.0 / self.batch_mean;
            let until = second as f64 + 1.0;
            let here = (until - self.at) * rate;
            if left < here {
                self.at += left / rate;
                return Some(());
            }
            left -= here;
            self.at = until;
        }
    }
}

impl Iterator for TraceArrivals {
    type Item = Transaction;

    fn next(&mut self) -> Option<Transaction> {
        if self.left_in_batch == 0 {
            self.next_batch()?;
            self.left_in_batch = 1;
            if self.batch_mean > 1.0 {
                let more = (self.stream.uniform().ln() / (1.0 - 1.0 / self.batch_mean).ln()).min(1e6);
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded and not negative
                let more = more as u32;
                self.left_in_batch += more;
            }
        }
        self.left_in_batch -= 1;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the trace
        let mean = self.seconds[self.at as usize].1;
        let factor = (self.sigma * self.stream.normal() - 0.5 * self.sigma * self.sigma).exp();
        let pod = if self.several_pods { self.stream.uniform() } else { 0.0 };
        Some(Transaction { at: self.at, service_seconds: mean * factor, pod })
    }
}

/// Multiplies the rate with log-normal noise that forgets itself with a time constant (AR(1)).
fn add_noise(seconds: &mut [(f64, f64)], scenario: &Scenario) {
    if scenario.burst_cv <= 0.0 {
        return;
    }
    let sigma = (1.0 + scenario.burst_cv * scenario.burst_cv).ln().sqrt();
    let keep = (-1.0 / scenario.burst_tau_s.max(1e-3)).exp();
    let fresh = (1.0 - keep * keep).sqrt();
    let mut stream = Stream::new(scenario.seed.wrapping_add(7));
    let mut x = stream.normal();
    for (i, (rate, _)) in seconds.iter_mut().enumerate() {
        if i > 0 {
            x = keep * x + fresh * stream.normal();
        }
        *rate *= (sigma * x - 0.5 * sigma * sigma).exp();
    }
}
