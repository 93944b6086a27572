//! The pools: how many are ready, and whether Prometheus has their load.

use k8s_openapi::jiff::Timestamp;

use super::Finding;
use crate::{
    api::{PodCounts, conditions, reasons},
    cli::plugin::view::{
        NotRead,
        document::{PoolDocument, UnreadablePool, said},
        named::named,
    },
};

/// What was found of the pools.
pub fn findings(pools: Result<(&[PoolDocument], &[UnreadablePool]), &NotRead>, now: Timestamp) -> Vec<Finding> {
    let (pools, unreadable) = match pools {
        Err(not_read) => return vec![Finding::not_read(not_read)],
        Ok(pools) => pools,
    };
    let mut findings: Vec<Finding> = unreadable
        .iter()
        .map(|pool| Finding::failed(pool.words.clone(), "use the plugin of the operator's version"))
        .collect();
    if pools.is_empty() {
        findings.push(Finding::ok("there are no pools yet"));
        return findings;
    }
    findings.push(of(pools, conditions::READY, "are ready", now));
    findings.push(of(pools, conditions::SCALING_ACTIVE, "have a load that Prometheus knows", now));
    findings.push(scraped(pools));
    findings
}

/// Whether Prometheus really has every agent, as the operator counted them last: a pool has a load as long as half of its pods report.
fn scraped(pools: &[PoolDocument]) -> Finding {
    let counts: Vec<(&PoolDocument, PodCounts)> =
        pools.iter().filter_map(|pool| Some((pool, pool.pool.status.as_ref()?.pods?))).collect();
    let sum = |of: fn(&PodCounts) -> u32| counts.iter().map(|(_, pods)| of(pods)).fold(0, u32::saturating_add);
    let (reporting, injected) = (sum(|pods| pods.reporting), sum(|pods| pods.injected));
    let words = format!("{reporting} of {injected} agents are seen in Prometheus");
    let lacking: Vec<String> = counts
        .iter()
        .filter(|(_, pods)| pods.reporting < pods.injected)
        .map(|(pool, pods)| format!("{} ({} of {})", pool.key(), pods.reporting, pods.injected))
        .collect();
    if lacking.is_empty() {
        return Finding::ok(words);
    }
    Finding::warning(
        format!("{words}: not all of {}", named(&lacking)),
        "see which targets Prometheus has and why a scrape fails; it must keep ports of init containers: docs/operations.md#prometheus",
    )
}

/// Whether a condition holds for all pools. A workload without pods has no load, and nothing is wrong with that.
fn of(pools: &[PoolDocument], type_: &str, what: &str, now: Timestamp) -> Finding {
    let calm = [reasons::NO_PODS, reasons::GATEWAY_SCALED_TO_ZERO];
    let troubled = pools.iter().filter_map(|pool| match pool.condition(type_) {
        Some(condition) if condition.status == "True" || calm.contains(&condition.reason.as_str()) => None,
        Some(condition) => Some(format!("{} {}", pool.key(), said(condition, now))),
        None => Some(format!("{} has no {type_}", pool.key())),
    });
    let troubled: Vec<String> = troubled.collect();
    let words = format!("{} of {} pools {what}", pools.len() - troubled.len(), pools.len());
    if troubled.is_empty() {
        return Finding::ok(words);
    }
    Finding::warning(
        format!("{words}: not {}", named(&troubled)),
        "kubectl sluice why POOL -n NAMESPACE; docs/operations.md#conditions-and-reasons",
    )
}
