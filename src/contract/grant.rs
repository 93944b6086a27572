//! What a pod may open at the database.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ContractError, Document};

/// The annotation `sluice.dev/grant`: what this pod may open, keyed by pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantDocument {
    /// Version of the document.
    pub v: u32,
    /// Term of the leader that wrote it: every new leader counts on, so a late write of an old one is recognised.
    pub epoch: u64,
    /// One grant per pool of the pod.
    pub pools: BTreeMap<String, PodGrant>,
}

/// One pool's grant to one pod, in server connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodGrant {
    /// Counts the operator's writes to this pod; the agent reports the newest that it applied.
    pub seq: u64,
    /// What the pod may open from now on. 0: the pooler is paused and clients queue.
    pub share: u32,
    /// What is still counted for the pod: at least `share`, and more while a shrink is not proven.
    pub granted: u32,
    /// What the pod may always hold: the lower bound of its limit. At most `share`.
    pub floor: u32,
}

impl Document for GrantDocument {
    const NAME: &'static str = "annotation sluice.dev/grant";
    const VERSION: u32 = 1;

    fn check(&self) -> Result<(), ContractError> {
        for (pool, grant) in &self.pools {
            if grant.share > grant.granted || grant.floor > grant.share {
                return Err(ContractError::Inconsistent {
                    document: Self::NAME,
                    message: format!(
                        "pool {pool}: floor {} <= share {} <= granted {} does not hold",
                        grant.floor, grant.share, grant.granted
                    ),
                });
            }
        }
        Ok(())
    }
}
