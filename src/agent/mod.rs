//! The sidecar's agent: runs the pooler, follows the pod's annotations, decides the limit each second, and tells.
//!
//! ```text
//! keeper    holds the sockets and the processes; outlives the agent
//! run       one loop on one thread, twenty rounds a second:
//!             observe   configuration volume, console, kernel
//!             decide    PURE: what becomes of the process, which slot serves, the limit, what is told
//!             apply     files, processes, SET and RELOAD, each read back
//!             report    /status and /metrics: what the loop has published
//! commands  install, drain, probe, clients
//! ```
//!
//! PgBouncer's own language is the driver's, [`crate::pooler::pgbouncer`].

pub mod apply;
pub mod commands;
pub mod decide;
pub mod keeper;
pub mod observe;
pub mod options;
pub mod report;
pub mod run;

#[cfg(test)]
pub(crate) mod tests {
    use crate::contract::PoolRevision;

    pub(crate) const SETTINGS: &str = r#"{"poolMode":"Transaction","parameters":{},"health":{"validationQuery":"select 1","periodSeconds":10,"queryWaitTimeoutSeconds":30,"leakThresholdSeconds":300},"scaling":{"algorithm":"Adaptive","limitSource":"Share","objective":{"waitMilliseconds":20,"maxWaitingPercent":1.0},"targetUtilizationPercent":70,"behavior":{"scaleUp":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[],"tolerance":0.0},"scaleDown":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[],"tolerance":0.05}}}}"#;

    pub(crate) fn revision(number: u64) -> PoolRevision {
        serde_json::from_str(&format!(r#"{{"revision":{number},"settings":{SETTINGS}}}"#)).unwrap()
    }

    pub(crate) fn revision_text(number: u64) -> String {
        format!(r#"{{"v":1,"pools":{{"shop":{{"revision":{number},"settings":{SETTINGS}}}}}}}"#)
    }

    pub(crate) fn grant_text(epoch: u64, seq: u64, share: u32) -> String {
        format!(
            r#"{{"v":1,"epoch":{epoch},"pools":{{"shop":{{"seq":{seq},"share":{share},"granted":{share},"floor":1}}}}}}"#
        )
    }
}
