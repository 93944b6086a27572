//! The status of a pool: what the plan reports, with times, written only when it is worth a write.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use serde_json::{Value, json};

use crate::{
    api::{ConnectionPool, ConnectionPoolStatus, LastDecision, RolloutStatus, conditions},
    decide::plan::{PoolReport, UnixSeconds},
};

/// Figures that jitter are written at most this often.
const QUIET: Duration = Duration::from_mins(1);
/// Longest sentence in the status, in bytes.
const SENTENCE_BYTES: usize = 1024;

/// The status that a report makes. `last` is the one that was written last: what did not change keeps its time.
pub fn status(
    pool: &ConnectionPool,
    last: Option<&ConnectionPoolStatus>,
    report: PoolReport,
    now: Timestamp,
) -> ConnectionPoolStatus {
    let old = last.map(|last| last.conditions.as_slice()).unwrap_or_default();
    let last_change = report.last_change();
    ConnectionPoolStatus {
        observed_generation: pool.metadata.generation,
        summary: Some(shortened(report.summary)),
        current_size: report.current_size.or_else(|| last.and_then(|last| last.current_size)),
        share: Some(report.share),
        last_scale_time: last_change.map(time).or_else(|| last.and_then(|last| last.last_scale_time.clone())),
        recommendation: report.recommendation.or_else(|| last.and_then(|last| last.recommendation)),
        load: report.load,
        last_decision: report
            .change
            .map(|change| LastDecision {
                id: change.id,
                reason: change.reason,
                from: change.from,
                to: change.to,
                message: shortened(change.message),
                time: time(change.at),
            })
            .or_else(|| last.and_then(|last| last.last_decision.clone())),
        pods: Some(report.pods),
        revision: report.revision,
        rollout: report.rollout,
        effective: report.effective.or_else(|| last.and_then(|last| last.effective.clone())),
        capabilities: report.capabilities,
        gateway: report.gateway,
        epoch: None,
        operator_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        conditions: conditions::merge(old, report.conditions, pool.metadata.generation, now),
    }
}

fn time(at: UnixSeconds) -> Time {
    Time(Timestamp::from_second(at).unwrap_or_default())
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SENTENCE_BYTES));
    text
}

/// Whether a status is worth a write: at once when a condition, a reason, a target or a count of pods changes; for other
/// figures at most once a minute.
pub fn is_due(last: Option<&ConnectionPoolStatus>, new: &ConnectionPoolStatus, since: Duration) -> bool {
    let Some(last) = last else { return true };
    // a term alone is not worth a write: every pool would be written whenever another replica leads
    *last != ConnectionPoolStatus { epoch: last.epoch, ..new.clone() }
        && (essence(last) != essence(new) || since >= QUIET)
}

/// What may not wait.
fn essence(status: &ConnectionPoolStatus) -> Value {
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|condition| (&condition.type_, &condition.status, &condition.reason, condition.observed_generation))
        .collect();
    // who is proven or reports moves with every change of a share; the condition Proven tells of it
    let pods = status.pods.map(|pods| (pods.matched, pods.injected, pods.current));
    // where a rollout is cannot be found out again; since when it has come no further can wait
    let rollout = status.rollout.as_ref().map(|rollout| {
        let RolloutStatus { failure, undone, last_command, last_command_outcome, .. } = rollout;
        let step = (rollout.current_step_index, &rollout.current_step_hash, &rollout.step_started_at);
        json!([step, failure, undone, last_command, last_command_outcome])
    });
    json!([
        conditions,
        status.observed_generation,
        status.recommendation.map(|recommendation| recommendation.target),
        status.last_decision.as_ref().map(|decision| &decision.id),
        status.revision,
        rollout,
        status.effective,
        status.gateway,
        pods,
    ])
}

/// The body of the server-side apply.
pub fn body<K: Resource<DynamicType = ()>>(status: &impl serde::Serialize) -> Value {
    json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "status": status})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Confidence, Load, Recommendation};

    fn status(target: u32, demand: &str) -> ConnectionPoolStatus {
        ConnectionPoolStatus {
            recommendation: Some(Recommendation {
                target,
                lower_bound: 1,
                upper_bound: 9,
                uncapped_target: target,
                confidence: Confidence::Low,
            }),
            load: Some(Load { demand: demand.to_owned(), ..Load::default() }),
            ..ConnectionPoolStatus::default()
        }
    }

    #[test]
    fn a_changed_target_is_told_at_once_and_jitter_waits_for_its_minute() {
        let last = status(5, "3.1");
        let seconds = Duration::from_secs;
        assert!(is_due(None, &last, seconds(0)));
        assert!(is_due(Some(&last), &status(6, "3.1"), seconds(0)));
        assert!(!is_due(Some(&last), &status(5, "3.2"), seconds(59)));
        assert!(is_due(Some(&last), &status(5, "3.2"), seconds(60)));
        assert!(!is_due(Some(&last), &last, seconds(3600)), "nothing new is never written");
        let of_another_term = ConnectionPoolStatus { epoch: Some(7), ..last.clone() };
        assert!(!is_due(Some(&last), &of_another_term, seconds(3600)), "nor is another term alone");
    }
}
