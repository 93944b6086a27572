//! What Prometheus would scrape of many agents, on one page: rendered by the agent itself, of a load that a bench plays.

use sluice::{
    agent::{decide::counters::Added, report::metrics::Metrics},
    contract::metrics,
    pooler::pgbouncer::tables::Pools,
};

use crate::Failure;

/// What is scraped. All that an agent renders would make Prometheus several times as large, and nobody reads it here.
const SCRAPED: [&str; 15] = [
    metrics::SERVER_CONNECTIONS,
    metrics::HELD,
    metrics::CLIENT_CONNECTIONS,
    metrics::DEMAND_PEAK,
    metrics::WAITING_PEAK,
    metrics::TRANSACTIONS,
    metrics::ABANDONED,
    metrics::BUSY_SECONDS,
    metrics::WAIT_SECONDS,
    metrics::SERVER_ASSIGNMENTS,
    metrics::LEAKED,
    metrics::LIMIT,
    metrics::SHARE,
    metrics::GRANT_SEQ,
    metrics::SAMPLE_TIME,
];

/// An agent that never restarted.
#[derive(Clone, Copy, Debug)]
pub struct Agent<'a> {
    pub namespace: &'a str,
    pub pool: &'a str,
    pub pod: &'a str,
    /// The label `instance`; none: that of the whole page.
    pub instance: Option<&'a str>,
    /// All that it has counted.
    pub added: Added,
    pub pools: Pools,
    pub demand_peak: f64,
    pub share: u32,
    pub seq: u64,
    pub sample_seconds: f64,
}

impl Agent<'_> {
    /// Writes its series to the page, with the labels that a scrape configuration adds for its pod.
    pub fn render(&self, page: &mut String) -> Result<(), Failure> {
        let Self { namespace, pool, pod, share, pools, .. } = *self;
        let agent = Metrics::new(namespace, pool);
        agent.observe(self.added, pools, Some(0), None, self.sample_seconds);
        for window in ["5s", "30s"] {
            agent.set_peaks(window, self.demand_peak, pools.clients_waiting.into());
        }
        agent.set_in_force(self.seq, share, 1, Some(share), Some(1));
        let instance = self.instance.map_or_else(String::new, |instance| format!("instance=\"{instance}\","));
        let target = format!("{{namespace=\"{namespace}\",pod=\"{pod}\",{instance}");
        for line in agent.render()?.lines() {
            let Some((name, rest)) = line.split_once('{').filter(|(name, _)| SCRAPED.contains(name)) else { continue };
            for part in [name, &target, rest, "\n"] {
                page.push_str(part);
            }
        }
        Ok(())
    }
}
