//! How many servers a queue needs: Erlang's C formula (1917) with an exponential tail.
//!
//! With `n` servers, offered load `a < n` and mean service time `s`, the wait `W` of a Poisson arrival obeys
//! `P(W > w) = C(n, a) exp(-(n - a) w / s)`. For large `a` the least `n` is `a + beta sqrt(a)` (Halfin and Whitt 1981).

/// Loads are rounded to a grid of 2 %: neighbouring loads need the same size, and sizes do not flutter.
const LOAD_STEPS_PER_E: f64 = 50.0;
/// Service times are rounded to a grid of 8 %.
const SERVICE_STEPS_PER_E: f64 = 12.0;
/// Below this offered load one server is enough.
const NEGLIGIBLE_LOAD: f64 = 0.02;
/// No pool is larger; keeps every loop finite.
pub(super) const LARGEST_SIZE: u32 = 100_000;

/// Erlang's B formula: the share of arrivals that find all `n` servers busy when nobody queues.
///
/// Sums `1/B = 1 + n/a + n(n-1)/a^2 + ...` until the terms vanish, which takes about `8 sqrt(a)` terms near `n = a`.
fn erlang_b(n: u32, a: f64) -> f64 {
    let per_load = 1.0 / a;
    let (mut sum, mut term, mut left) = (1.0_f64, 1.0_f64, f64::from(n));
    while left > 0.0 {
        term *= left * per_load;
        sum += term;
        if term < sum * 1e-17 || sum > 1e300 {
            break;
        }
        left -= 1.0;
    }
    1.0 / sum
}

/// The C formula from the B formula of the same `n` and `a < n`.
fn c_from_b(n: f64, a: f64, b: f64) -> f64 {
    b / (1.0 - (a / n) * (1.0 - b))
}

/// The first number of servers that exceeds the load.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a is finite, positive and bounded by the callers
fn first_above(a: f64) -> u32 {
    (a.min(f64::from(LARGEST_SIZE)).floor() as u32).saturating_add(1)
}

fn grid(value: f64, steps_per_e: f64) -> f64 {
    (value.ln() * steps_per_e).round_ties_even() / steps_per_e
}

/// The objective's wait `w` and the largest size that makes sense.
#[derive(Clone, Copy, Debug)]
pub(super) struct Staffing {
    wait_seconds: f64,
    largest: u32,
}

impl Staffing {
    pub(super) fn new(wait_seconds: f64, largest: u32) -> Self {
        Self { wait_seconds: wait_seconds.max(1e-4), largest: largest.clamp(1, LARGEST_SIZE) }
    }

    /// The least number of servers with `P(W > w) <= p`, at most the largest size.
    pub(super) fn size(&self, load: f64, service_seconds: f64, p: f64) -> u32 {
        if load.is_nan() || load <= NEGLIGIBLE_LOAD {
            return 1;
        }
        if load >= f64::from(self.largest) * 1.02 {
            return self.largest;
        }
        let load = grid(load, LOAD_STEPS_PER_E).exp();
        let per_server = self.wait_seconds / grid(service_seconds.max(1e-6), SERVICE_STEPS_PER_E).exp();
        let mut n = first_above(load);
        if n >= self.largest {
            return self.largest;
        }
        let mut blocked = erlang_b(n, load);
        let mut tail = (-(f64::from(n) - load) * per_server).exp();
        let step = (-per_server).exp();
        while n < self.largest && c_from_b(f64::from(n), load, blocked) * tail > p {
            n += 1;
            blocked = load * blocked / (f64::from(n) + load * blocked);
            tail *= step;
        }
        n
    }

    /// `P(W > w)` with any number of servers at one load: the work is shared between the settings that are compared.
    /// Sizes above `most` count as never waiting.
    pub(super) fn violations(&self, load: f64, service_seconds: f64, most: u32) -> Violations {
        let a = grid(load.max(NEGLIGIBLE_LOAD), LOAD_STEPS_PER_E).exp();
        let first = first_above(a);
        let most = most.min(LARGEST_SIZE);
        let mut waiting = Vec::with_capacity(most.saturating_sub(first) as usize + 1);
        let mut b = erlang_b(first, a);
        for n in first..=most {
            if n > first {
                b = a * b / (f64::from(n) + a * b);
            }
            if b < 1e-15 {
                break; // and 0 for every larger size
            }
            waiting.push(c_from_b(f64::from(n), a, b).min(1.0));
        }
        Violations { load, per_server: self.wait_seconds / service_seconds.max(1e-6), first, waiting }
    }
}

/// `P(W > w)` at one load, by number of servers.
pub(super) struct Violations {
    load: f64,
    per_server: f64,
    first: u32,
    waiting: Vec<f64>,
}

impl Violations {
    pub(super) fn with(&self, n: u32) -> f64 {
        if f64::from(n) <= self.load {
            return 1.0;
        }
        let c = match n.checked_sub(self.first) {
            None => 1.0,
            Some(i) => self.waiting.get(i as usize).copied().unwrap_or(0.0),
        };
        c * (-(f64::from(n) - self.load) * self.per_server).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook recursion, one server at a time.
    fn erlang_c(n: u32, a: f64) -> f64 {
        let mut b = 1.0;
        for i in 1..=n {
            b = a * b / (f64::from(i) + a * b);
        }
        c_from_b(f64::from(n), a, b)
    }

    #[test]
    fn the_summed_formula_agrees_with_the_recursion() {
        for a in [0.05, 0.9, 1.0, 7.3, 40.0, 260.5, 3000.0] {
            for extra in [1, 2, 5, 20] {
                let n = first_above(a) + extra;
                let (sum, recursion) = (c_from_b(f64::from(n), a, erlang_b(n, a)), erlang_c(n, a));
                assert!((sum - recursion).abs() <= 1e-9 * recursion + 1e-15, "n={n} a={a}: {sum} and {recursion}");
            }
        }
    }

    #[test]
    fn one_server_at_half_load_lets_half_wait() {
        let staffing = Staffing::new(1e-4, 100);
        let half = staffing.violations(0.5, 1e6, 1).with(1);
        assert!((half - 0.5).abs() < 0.01, "{half}");
    }

    #[test]
    fn the_size_is_the_least_that_keeps_the_promise() {
        let staffing = Staffing::new(0.02, 500);
        for a in [0.3, 2.0, 15.0, 120.0] {
            for s in [0.005, 0.1, 1.0] {
                let n = staffing.size(a, s, 0.02);
                let grid_a = grid(a, LOAD_STEPS_PER_E).exp();
                let grid_s = grid(s, SERVICE_STEPS_PER_E).exp();
                let p = |n: u32| {
                    if f64::from(n) <= grid_a {
                        return 1.0;
                    }
                    erlang_c(n, grid_a) * (-(f64::from(n) - grid_a) * 0.02 / grid_s).exp()
                };
                assert!(p(n) <= 0.02, "a={a} s={s} n={n}");
                assert!(n == 1 || p(n - 1) > 0.02, "a={a} s={s} n={n} is not the least");
            }
        }
    }

    #[test]
    fn absurd_loads_end_at_the_largest_size() {
        let staffing = Staffing::new(0.02, 50);
        assert_eq!(staffing.size(1e18, 0.1, 0.02), 50);
        assert_eq!(staffing.size(f64::INFINITY, 0.1, 0.02), 50);
        assert_eq!(staffing.size(f64::NAN, 0.1, 0.02), 1);
    }
}
