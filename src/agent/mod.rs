//! The sidecar's agent: runs the pooler, follows the pod's annotations, decides the limit each second, and tells.
//!
//! Pure parts: [`machine`] (what becomes of the process), [`wish`] (what the pod is asked to run), [`switch`] (how it comes to another process), [`rotation`] (when credentials are proven), [`upstream`] (whether the database takes writes),
//! [`reaction`] (the limit), [`problems`] (what is told, and when), [`troubles`] (what the pooler logs), [`vitals`], [`retry`], [`peaks`], [`counters`], [`arrivals`], and the driver's [`crate::pooler::pgbouncer`]. The rest is a shell around them: one loop on one thread
//! ([`run`]), and an HTTP server that shows what the loop has published.

pub mod arrivals;
pub mod busy;
pub mod counters;
pub mod drain;
pub mod files;
pub mod handshake;
pub mod identity;
pub mod inputs;
pub mod install;
pub mod keeper;
pub mod last_good;
pub mod machine;
pub mod metrics;
pub mod options;
pub mod peaks;
pub mod pins;
pub mod probe;
pub mod problems;
pub mod process;
pub mod quiet;
pub mod reach;
pub mod reaction;
pub mod recall;
pub mod resolver;
pub mod retry;
pub mod rotation;
pub mod run;
pub mod server;
pub mod slot;
pub mod sockets;
pub mod switch;
pub mod trial;
pub mod troubles;
pub mod upstream;
pub mod vitals;
pub mod wish;

#[cfg(test)]
pub(crate) mod tests {
    use crate::contract::PoolRevision;

    const SETTINGS: &str = r#"{"poolMode":"Transaction","parameters":{},"health":{"validationQuery":"select 1","periodSeconds":10,"queryWaitTimeoutSeconds":30,"leakThresholdSeconds":300},"scaling":{"algorithm":"Adaptive","limitSource":"Share","objective":{"waitMilliseconds":20,"maxWaitingPercent":1.0},"targetUtilizationPercent":70,"behavior":{"scaleUp":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[],"tolerance":0.0},"scaleDown":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[],"tolerance":0.05}}}}"#;

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
