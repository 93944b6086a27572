//! Whether the memory of the sidecars has room for what they may open, as a condition.

use super::{
    conditions::{no, yes},
    observed::{Observed, PodSeen},
    troubles::reports,
};
use crate::{
    api::{
        conditions::{ObservedCondition as Condition, SIDECAR_MEMORY},
        reasons,
    },
    contract::{MemoryReport, StatusReport, TrustReport},
    decide::memory::in_mib,
};

/// None where no agent tells of its memory or of what it trusts.
pub(super) fn sidecar_memory(observed: &Observed) -> Option<Condition> {
    let all = reports(observed).count();
    let known: Vec<(&PodSeen, MemoryReport, u32)> =
        reports(observed).filter_map(|(pod, report)| Some((pod, report.memory?, report.share))).collect();
    let whole: Vec<(&PodSeen, &str)> =
        reports(observed).filter_map(|(pod, report)| Some((pod, whole(report)?))).collect();
    let cure = whole.first().map_or_else(String::new, |(_, why)| format!("; {why}"));
    let held_back = |(_, memory, _): &&(&PodSeen, MemoryReport, u32)| memory.holds_back;
    let too_large = |(_, memory, share): &&(&PodSeen, MemoryReport, u32)| *share > memory.allows;
    let told = |pods: usize, (pod, memory, share): &(&PodSeen, MemoryReport, u32), what: &str| {
        format!(
            "on {pods} of {all} pods, {} among them, the sidecar's memory limit of {} MiB has room for {} server connections of its \
             share of {share}{what}; set sidecar.resources.limits.memory of the pool to {}Mi and restart the workload{cure}",
            pod.name,
            in_mib(memory.limit_bytes),
            memory.allows,
            in_mib(memory.limit_needed_bytes),
        )
    };
    if let Some(first) = known.iter().find(held_back) {
        let pods = known.iter().filter(held_back).count();
        return Some(no(SIDECAR_MEMORY, reasons::LIMITED_BY_MEMORY, told(pods, first, ", and the load asks for more")));
    }
    if let Some(first) = known.iter().find(too_large) {
        let pods = known.iter().filter(too_large).count();
        return Some(no(
            SIDECAR_MEMORY,
            reasons::SHARE_EXCEEDS_MEMORY,
            told(pods, first, "; its limit stays within that"),
        ));
    }
    if let Some((pod, why)) = whole.first() {
        let message = format!("on {} of {all} pods, {} among them, {why}", whole.len(), pod.name);
        return Some(yes(SIDECAR_MEMORY, reasons::WHOLE_TRUST_STORE, message));
    }
    let (pod, memory, _) = known.iter().min_by_key(|(_, memory, share)| memory.allows.saturating_sub(*share))?;
    let message = format!(
        "every sidecar has room for its share: {}, the closest, for {} server connections in {} MiB",
        pod.name,
        memory.allows,
        in_mib(memory.limit_bytes)
    );
    Some(yes(SIDECAR_MEMORY, reasons::MEMORY_SUFFICES, message))
}

/// Why every server connection of a pod has a copy of the whole trust store.
fn whole(report: &StatusReport) -> Option<&str> {
    report.trust.as_ref().and_then(|TrustReport { whole, .. }| whole.as_deref())
}
