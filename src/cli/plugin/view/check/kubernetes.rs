//! The cluster: whether Sluice runs on it.

use k8s_openapi::apimachinery::pkg::version::Info;

use super::Finding;
use crate::cli::plugin::view::NotRead;

/// The oldest minor version of Kubernetes 1 that the chart installs on.
const OLDEST_MINOR: u32 = 30;

/// What was found of the cluster. `policies` is whether it serves ValidatingAdmissionPolicy v1.
pub fn findings(version: Result<&Info, &NotRead>, policies: Result<bool, &NotRead>) -> Vec<Finding> {
    let version = match version {
        Err(not_read) => Finding::not_read(not_read),
        Ok(version) => match minor(version) {
            Some(minor) if version.major == "1" && minor < OLDEST_MINOR => Finding::failed(
                format!("Kubernetes is {}", version.git_version),
                format!(
                    "upgrade the cluster to 1.{OLDEST_MINOR} or later: Sluice needs sidecar containers and admission policies"
                ),
            ),
            _ => Finding::ok(format!("Kubernetes is {}, 1.{OLDEST_MINOR} or later", version.git_version)),
        },
    };
    let policies = match policies {
        Err(not_read) => Finding::not_read(not_read),
        Ok(true) => Finding::ok("ValidatingAdmissionPolicy is served"),
        Ok(false) => Finding::failed(
            "admissionregistration.k8s.io/v1 has no ValidatingAdmissionPolicy",
            "do not switch this API off: without its policies whoever may patch a pod could give it more connections than its pool has",
        ),
    };
    vec![version, policies]
}

/// `37` of `37+`.
fn minor(version: &Info) -> Option<u32> {
    version.minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()
}
