//! Agents of many pods on a few ports: their series as Prometheus would have them from one agent each.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use sluice::{agent::decide::counters::Added, domain::PoolKey, pooler::pgbouncer::tables::Pools, signals::Roster};

use crate::{Failure, agents::Agent, pages};

/// Pods that one port stands for.
const PODS_PER_PORT: u32 = 500;

/// Pools and pods that are exported.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    pub pools: u32,
    pub pods_per_pool: u32,
}

impl Fleet {
    /// Namespace and name of a pool.
    pub fn pool(pool: u32) -> (String, String) {
        (format!("team-{:03}", pool / 10), format!("orders-{pool:04}"))
    }

    /// Name of a pod, as long as those of Deployments are.
    pub fn pod(pool: u32, pod: u32) -> String {
        format!("orders-{pool:04}-7d9f8b6c5d-{pod:05x}")
    }

    /// Who may report, and for which pool.
    pub fn roster(self) -> Arc<Roster> {
        let pods = (0..self.pools).flat_map(|pool| (0..self.pods_per_pool).map(move |pod| (pool, pod)));
        let named = pods.map(|(pool, pod)| {
            let (namespace, name) = Self::pool(pool);
            (PoolKey::new(namespace, name), Self::pod(pool, pod))
        });
        Arc::new(named.collect())
    }

    /// Starts threads that export the pods, for as long as the process lives. Returns their addresses.
    pub fn export(self) -> Result<Vec<SocketAddr>, Failure> {
        let pods = self.pools * self.pods_per_pool;
        let ports = pods.div_ceil(PODS_PER_PORT);
        (0..ports)
            .map(|port| {
                let range = port * PODS_PER_PORT..((port + 1) * PODS_PER_PORT).min(pods);
                let page =
                    move || exposition(range.clone().map(|pod| (pod / self.pods_per_pool, pod % self.pods_per_pool)));
                Ok(pages::serve(("127.0.0.1", 0), page)?)
            })
            .collect()
    }
}

/// The series of these pods now. Load differs between pods and is steady.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small numbers that are not negative
fn exposition(pods: impl Iterator<Item = (u32, u32)>) -> Result<String, Failure> {
    let sample_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut page = String::new();
    for (pool, pod) in pods {
        let (namespace, name) = Fleet::pool(pool);
        let busy = 1.0 + f64::from((pool * 7 + pod * 3) % 20) / 4.0;
        let (jitter, uptime) = (pod % 3, sample_seconds % 1e6);
        let transactions = (uptime * busy * 25.0) as u64;
        let agent = Agent {
            namespace: &namespace,
            pool: &name,
            pod: &Fleet::pod(pool, pod),
            instance: Some(&format!("10.{}.{}.{}:9130", pool / 250, pool % 250, pod + 1)),
            added: Added {
                transactions,
                busy_microseconds: (uptime * busy * 1e6) as u64,
                wait_microseconds: (uptime * 1e4) as u64,
                assignments: transactions,
                ..Added::default()
            },
            pools: Pools {
                clients_active: busy as u32,
                clients_waiting: jitter,
                active: busy as u32 + jitter,
                idle: 2,
                ..Pools::default()
            },
            demand_peak: busy.ceil() + 3.0,
            share: 10,
            seq: 3,
            sample_seconds,
        };
        agent.render(&mut page)?;
    }
    Ok(page)
}
