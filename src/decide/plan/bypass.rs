//! Applications that are connected to the database past their poolers, as the agents see it in the kernel's account of their pods.

use super::{
    conditions::{no, unknown, yes},
    observed::{Observed, PodSeen},
};
use crate::{
    api::{
        BypassAction,
        conditions::{CLIENTS_POOLED, ObservedCondition as Condition},
        reasons,
    },
    contract::Bypass,
};

/// What such connections mean: the limit of the pool does not hold them, and the database has to carry both.
pub(super) fn clients_pooled(observed: &Observed) -> Condition {
    let told = observed.pods.iter().filter_map(|pod| Some((pod, pod.answer.report()?.bypass.as_ref()?)));
    let told: Vec<(&PodSeen, &Bypass)> = told.collect();
    let past: Vec<&(&PodSeen, &Bypass)> = told.iter().filter(|(_, bypass)| bypass.connections > 0).collect();
    let Some((pod, bypass)) = past.iter().max_by_key(|(_, bypass)| bypass.connections) else {
        return match told.len() {
            0 => unknown(
                CLIENTS_POOLED,
                reasons::NOT_OBSERVED,
                "no agent can see whether applications are connected past their poolers: no pod is there, or the agents are of an \
                 earlier version",
            ),
            pods => yes(
                CLIENTS_POOLED,
                reasons::ALL_POOLED,
                format!("every connection to the database is a pooler's, as {pods} agents see it"),
            ),
        };
    };
    let connections = past.iter().fold(0, |sum: u32, (_, bypass)| sum.saturating_add(bypass.connections));
    let where_to = bypass.address.as_deref().map(|address| format!(" to {address}")).unwrap_or_default();
    let found = format!(
        "in {} of {} pods, {} among them, the application is or was lately connected to the database past its pooler: {connections} \
         connections{where_to}, which count in no share",
        past.len(),
        told.len(),
        pod.name,
    );
    if observed.effective.is_ok_and(|effective| effective.bypass == BypassAction::Ignore) {
        let message = format!("{found}; health.bypassAction is Ignore, so it is not held against the pool");
        return no(CLIENTS_POOLED, reasons::BYPASS_IGNORED, message);
    }
    no(
        CLIENTS_POOLED,
        reasons::CONNECTED_PAST_POOLER,
        format!(
            "{found}; find the variable, file, argument or code that names the database there (`kubectl create --dry-run=server` of the \
             pod warns of what it can see) and lead it to the pooler: $(PGHOST), or spec.client.env; where it is meant to be so, set \
             spec.health.bypassAction to Ignore"
        ),
    )
}
