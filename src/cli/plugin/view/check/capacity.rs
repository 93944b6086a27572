//! Capacity: what all pools together may open at each database server, and what nobody can tell of it.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::Finding;
use crate::{
    api::conditions::UPSTREAM_HEALTHY,
    cli::plugin::view::{
        NotRead,
        document::{PoolDocument, said},
        recommend::may_open,
    },
    contract::PoolerError,
};

/// Pools that are named for a server, and servers that have a line.
const MOST_NAMED: usize = 5;

/// What was found of the servers, those at which most may be opened first. Two names of one server are two servers here.
pub fn findings(pools: Result<&[PoolDocument], &NotRead>, now: Timestamp) -> Vec<Finding> {
    let pools = match pools {
        Err(not_read) => return vec![Finding::not_read(not_read)],
        Ok(pools) => pools,
    };
    let mut servers: BTreeMap<(String, u16), Vec<&PoolDocument>> = BTreeMap::new();
    for pool in pools {
        let upstream = &pool.pool.spec.upstream;
        servers.entry((upstream.host.to_lowercase(), upstream.port)).or_default().push(pool);
    }
    if servers.is_empty() {
        return vec![Finding::ok("no pool opens connections to a database yet")];
    }
    let sum = |pools: &[&PoolDocument]| pools.iter().filter_map(|pool| may_open(pool)).fold(0, u32::saturating_add);
    let mut servers: Vec<_> = servers.into_iter().collect();
    servers.sort_by_key(|(_, pools)| std::cmp::Reverse(sum(pools)));
    let more = servers.len().saturating_sub(MOST_NAMED);
    let mut findings: Vec<Finding> = servers
        .iter()
        .take(MOST_NAMED)
        .map(|((host, port), pools)| finding(&format!("{host}:{port}"), pools, sum(pools), now))
        .collect();
    if more > 0 {
        findings.push(Finding::note(
            format!("{more} further servers, at which fewer may be opened"),
            "see them with kubectl sluice recommend -A",
        ));
    }
    findings
}

fn finding(server: &str, pools: &[&PoolDocument], sum: u32, now: Timestamp) -> Finding {
    let figure = |pool: &&PoolDocument| {
        let figure = may_open(pool).map_or_else(|| "not known yet".to_owned(), |figure| figure.to_string());
        format!("{} {figure}", pool.key())
    };
    let mut named: Vec<String> = pools.iter().take(MOST_NAMED).map(figure).collect();
    if pools.len() > MOST_NAMED {
        named.push(format!("{} more", pools.len() - MOST_NAMED));
    }
    let words = format!("at {server} pools may open {sum} server connections together: {}", named.join(", "));
    let full = pools.iter().find_map(|pool| {
        let healthy = pool.condition(UPSTREAM_HEALTHY)?;
        let is_full = healthy.status == "False" && healthy.reason == PoolerError::TooManyServerConnections.as_str();
        is_full.then(|| format!("{} {}", pool.key(), said(healthy, now)))
    });
    match full {
        Some(full) => Finding::warning(
            format!("{words}; and the server refuses more: {full}"),
            "raise the limit that UpstreamHealthy names, or lower maxAllowed: docs/operations.md#conditions-and-reasons",
        ),
        // LedgerActive of every budget says NotKeptYet
        None => Finding::note(
            format!(
                "{words}; whether it has room for them is not known: this version keeps no ledger and asks no server for its max_connections"
            ),
            "compare with max_connections of the server, less what it reserves and what everybody else opens there: docs/budget.md",
        ),
    }
}
