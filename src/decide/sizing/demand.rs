//! Counters to arrival rate, service time and offered load: `a = rate * S` (Little 1961).

use serde::{Deserialize, Serialize};

use crate::domain::{Reading, Sample};

/// Service times are averaged over this many seconds unless they visibly change.
const SERVICE_TAU_SECONDS: f64 = 60.0;
/// Transactions in one reading before a change of the service time counts as visible.
const VISIBLE_TRANSACTIONS: f64 = 5.0;
/// No transaction is shorter.
const SHORTEST_SERVICE_SECONDS: f64 = 1e-5;

/// Turns a stream of samples into readings. The first sample only sets the baseline.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::decide) struct Meter {
    previous: Option<Sample>,
    /// Decayed number of finished transactions, and their decayed seconds.
    done: f64,
    busy_seconds: f64,
    service_seconds: Option<f64>,
}

impl Meter {
    pub(super) fn previous(&self) -> Option<&Sample> {
        self.previous.as_ref()
    }

    pub(super) fn service_seconds(&self) -> Option<f64> {
        self.service_seconds
    }

    /// Whether enough transactions have finished lately to know how long they take.
    pub(super) fn knows_service(&self) -> bool {
        self.done >= VISIBLE_TRANSACTIONS
    }

    /// True when no transaction has ever been seen to finish, and none is asked for either: between the sample before and
    /// this one nothing was busy, nobody waited, nothing finished.
    pub(super) fn is_unused(&self, sample: &Sample) -> bool {
        let idle = |sample: &Sample| sample.active <= 0.0 && sample.waiting <= 0.0;
        let previous = self.previous.filter(|previous| sample.at_seconds > previous.at_seconds);
        let between = previous.is_some_and(|before| idle(&before) && sample.transactions <= before.transactions);
        self.service_seconds.is_none() && idle(sample) && between
    }

    /// Begins at this sample instead, if nobody has ever used the pool until then: the idle time before the first load says
    /// nothing about it.
    pub(super) fn begin_at(&mut self, idle: &Sample) {
        if self.service_seconds.is_none() && self.is_unused(idle) {
            self.previous = Some(*idle);
        }
    }

    /// The difference to the sample before. None for the first sample, for one that is not newer, and while no
    /// transaction has ever finished.
    pub(in crate::decide) fn add(&mut self, sample: &Sample, leak_threshold_seconds: Option<f64>) -> Option<Reading> {
        let Some(previous) = self.previous else {
            self.previous = Some(*sample);
            return None;
        };
        let dt = sample.at_seconds - previous.at_seconds;
        if dt == 0.0 {
            return None;
        }
        self.previous = Some(*sample);
        if dt < 0.0 {
            return None; // the clock was set back: begin again from here
        }
        let restarted = sample.restarted_since(&previous);
        let since = |now: f64, before: f64| if restarted { now } else { (now - before).max(0.0) };
        let done = since(sample.transactions, previous.transactions);
        let mut busy_seconds = since(sample.busy_seconds, previous.busy_seconds);
        let abandoned = since(sample.abandoned, previous.abandoned);
        let starts = since(sample.assignments, previous.assignments);
        let wait_seconds = since(sample.wait_seconds, previous.wait_seconds);
        let backlog = if restarted { 0.0 } else { sample.waiting + sample.busy() - previous.waiting - previous.busy() };
        let rate = ((done + abandoned + backlog) / dt).max(0.0);

        if let (Some(service), Some(threshold)) = (self.service_seconds, leak_threshold_seconds)
            && ends_a_leak(sample, &previous, dt, busy_seconds, threshold)
        {
            busy_seconds = service * done; // what a forgotten transaction took says nothing about the others
        }

        let keep = (-dt / SERVICE_TAU_SECONDS).exp();
        self.done = self.done * keep + done;
        self.busy_seconds = self.busy_seconds * keep + busy_seconds;
        if self.done > 0.0 {
            self.service_seconds = Some(self.busy_seconds / self.done);
        }
        let mut service = self.service_seconds?;
        if done >= VISIBLE_TRANSACTIONS {
            let (now, noise) = (busy_seconds / done, 3.5 / done.sqrt());
            if now > service * (1.0 + noise) {
                service = now;
            } else if now < service / (1.0 + 2.0 * noise) {
                service = now;
                self.service_seconds = Some(now);
                (self.done, self.busy_seconds) = (done, busy_seconds);
            }
        }
        Some(Reading {
            at_seconds: sample.at_seconds,
            dt_seconds: dt,
            rate,
            service_seconds: service.max(SHORTEST_SERVICE_SECONDS),
            demand: rate * service,
            done,
            busy_seconds,
            abandoned,
            assigned: starts,
            mean_wait_seconds: (starts > 0.0).then(|| wait_seconds / starts),
            waiting: sample.waiting,
            active: sample.active,
            busy: sample.busy(),
            stalled: done == 0.0 && sample.busy() > 0.0 && sample.waiting > 0.0,
        })
    }
}

/// True when a transaction beyond the leak threshold ended in this reading: a leaked one is gone, or more transaction
/// time came in than all connections together can have spent since the last sample.
fn ends_a_leak(sample: &Sample, previous: &Sample, dt: f64, busy_seconds: f64, threshold: f64) -> bool {
    let connections = sample.active.max(previous.active).max(1.0);
    let older = busy_seconds - connections * dt;
    older > threshold || (sample.leaked < previous.leaked && older > 0.0)
}
