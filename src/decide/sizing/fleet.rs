//! The readings of several pods as one pool.
//!
//! Counters of pods are never added: a pod that restarts or goes would look like a database that went backwards. Each
//! pod's own difference gives its rates; the pool's counters grow by the sum of the rates. A pod whose reading is the
//! same as before keeps its last rates, so that a late scrape does not look like a lull. How long it does is for the caller to
//! say, who leaves it out when it counts no more: nobody else may take a pod for gone while it passes for one that reports.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::domain::{Sample, SampleError};

/// One pod's reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PodSample<'a> {
    /// What tells pods apart: the uid, or the name where there is none. A new process of the same pod may keep it.
    pub pod: &'a str,
    /// Its gauges and counters.
    pub sample: Sample,
}

/// Growth of the counters per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Rates {
    transactions: f64,
    abandoned: f64,
    busy_seconds: f64,
    wait_seconds: f64,
    assignments: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct PodRates {
    last: Sample,
    rates: Option<Rates>,
}

/// Merges the readings of the pods into one stream of samples.
///
/// ```
/// use sluice::decide::sizing::{Fleet, PodSample};
/// use sluice::domain::Sample;
///
/// let mut fleet = Fleet::default();
/// let pod = |pod, at_seconds, transactions| PodSample {
///     pod,
///     sample: Sample { at_seconds, transactions, active: 2.0, ..Sample::default() },
/// };
/// fleet.merge(&[pod("a", 1.0, 1000.0), pod("b", 3.0, 5.0)]);
/// let merged = fleet.merge(&[pod("a", 16.0, 1150.0), pod("b", 18.0, 2.0)]).unwrap().unwrap(); // b restarted
/// assert_eq!((merged.at_seconds, merged.active), (18.0, 4.0));
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fleet {
    pods: BTreeMap<String, PodRates>,
    total: Option<Sample>,
}

impl Fleet {
    /// Takes in the newest reading of every pod that counts. None when no pod's is new.
    ///
    /// # Errors
    /// [`SampleError`] when a figure cannot be; nothing is taken in then.
    pub fn merge(&mut self, samples: &[PodSample]) -> Result<Option<Sample>, SampleError> {
        samples.iter().try_for_each(|pod| pod.sample.check())?;
        let Some(newest) = samples.iter().map(|pod| pod.sample.at_seconds).max_by(f64::total_cmp) else {
            return Ok(None);
        };
        let mut any = false;
        for PodSample { pod, sample } in samples {
            any |= self.update(pod, sample);
        }
        let counted: HashSet<&str> = samples.iter().map(|sample| sample.pod).collect();
        self.pods.retain(|name, _| counted.contains(name.as_str()));
        if !any {
            return Ok(None);
        }
        let before = self.total.unwrap_or_default();
        let dt = if self.total.is_some() { newest - before.at_seconds } else { 0.0 };
        if self.total.is_some() && dt <= 0.0 {
            self.total = Some(Sample { at_seconds: newest, ..before });
            return Ok(None); // the clock was set back, or only an older reading came late
        }
        let mut total = Sample { at_seconds: newest, waiting: 0.0, active: 0.0, leaked: 0.0, ..before };
        for pod in self.pods.values() {
            total.waiting += pod.last.waiting;
            total.active += pod.last.active;
            total.leaked += pod.last.leaked;
            let rates = pod.rates.unwrap_or_default();
            total.transactions += rates.transactions * dt;
            total.abandoned += rates.abandoned * dt;
            total.busy_seconds += rates.busy_seconds * dt;
            total.wait_seconds += rates.wait_seconds * dt;
            total.assignments += rates.assignments * dt;
        }
        self.total = Some(total);
        Ok(Some(total))
    }

    /// Pods that count now.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// True when the reading was new.
    fn update(&mut self, name: &str, sample: &Sample) -> bool {
        let Some(pod) = self.pods.get_mut(name) else {
            self.pods.insert(name.to_owned(), PodRates { last: *sample, rates: None });
            return true;
        };
        let dt = sample.at_seconds - pod.last.at_seconds;
        if dt == 0.0 {
            return false;
        }
        if dt > 0.0 {
            let restarted = sample.restarted_since(&pod.last);
            let rate = |now: f64, before: f64| if restarted { now } else { (now - before).max(0.0) } / dt;
            pod.rates = Some(Rates {
                transactions: rate(sample.transactions, pod.last.transactions),
                abandoned: rate(sample.abandoned, pod.last.abandoned),
                busy_seconds: rate(sample.busy_seconds, pod.last.busy_seconds),
                wait_seconds: rate(sample.wait_seconds, pod.last.wait_seconds),
                assignments: rate(sample.assignments, pod.last.assignments),
            });
        }
        pod.last = *sample;
        true
    }
}
