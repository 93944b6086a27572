//! The end of a pod: how long the sidecar may let transactions run on, and whether that is long enough.
//!
//! Kubernetes ends the application's containers first, each after its `preStop`, and native sidecars after them, all within
//! `terminationGracePeriodSeconds`. What is still running then is killed.

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};

use super::{
    PodPool,
    warning::{Warning, WarningText},
};
use crate::contract::{Settings, names};

/// Kubernetes' default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Seconds that the sidecar needs to close its server connections in good order.
const CLOSING_SECONDS: i64 = 5;

/// Tells the agent how many seconds it may wait for running transactions: those of the pod, less what closing takes. Whatever the pod says
/// of its time, which nobody has validated yet: the agent reads a `u32`.
pub fn grace_variable(spec: &PodSpec) -> EnvVar {
    let seconds = grace_seconds(spec).saturating_sub(CLOSING_SECONDS).clamp(1, u32::MAX.into());
    EnvVar { name: names::GRACE_VARIABLE.to_owned(), value: Some(seconds.to_string()), value_from: None }
}

fn grace_seconds(spec: &PodSpec) -> i64 {
    spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS)
}

/// The warning for a pod that may be killed while its clients still wait or work.
pub fn too_short(spec: &PodSpec, plan: &PodPool<'_>) -> Option<WarningText> {
    let grace = grace_seconds(spec);
    let settings = &plan.revision.settings;
    let needs = [
        ("preStop of the application", spec.containers.iter().map(pre_stop_seconds).max().unwrap_or(0)),
        ("health.queryWaitTimeoutSeconds", i64::from(settings.health.query_wait_timeout_seconds)),
        ("pgbouncer.parameters.query_timeout", query_timeout_seconds(settings)),
    ];
    let needed = needs.iter().fold(0, |sum: i64, (_, seconds)| sum.saturating_add(*seconds)).max(CLOSING_SECONDS);
    (grace < needed).then(|| {
        let parts = needs.iter().filter(|(_, seconds)| *seconds > 0);
        let parts: Vec<_> = parts.map(|(what, seconds)| format!("{seconds} s {what}")).collect();
        Warning::GracePeriod.text(
            &format!("terminationGracePeriodSeconds {grace} "),
            &format!(" when the pod ends ({}): transactions may be cut; use at least {needed}", parts.join(" + ")),
        )
    })
}

/// The warning for a bound on queries that older versions take for more.
pub fn cuts_idle_transactions(plan: &PodPool<'_>) -> Option<WarningText> {
    (query_timeout_seconds(&plan.revision.settings) > 0)
        .then(|| Warning::QueryTimeout.text("", " it also cuts a client that is idle in a transaction for so long"))
}

/// What is known beforehand: a `sleep`. How long a command takes is not.
fn pre_stop_seconds(container: &Container) -> i64 {
    let pre_stop = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    pre_stop.and_then(|handler| handler.sleep.as_ref()).map_or(0, |sleep| sleep.seconds)
}

/// 0: PgBouncer cuts no query, and nobody knows how long one may take.
fn query_timeout_seconds(settings: &Settings) -> i64 {
    let given = settings.parameters.get("query_timeout");
    let whole = given.and_then(|value| {
        let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
        Some(whole.parse::<i64>().ok()?.saturating_add(fraction.bytes().any(|digit| digit != b'0').into()))
    });
    whole.unwrap_or(0)
}
