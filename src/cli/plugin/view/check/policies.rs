//! The policies by which the API server holds everybody to `sluice.dev/*`.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};

use super::Finding;
use crate::cli::plugin::view::NotRead;

/// What the names of the policies of every release end with, and what each is for.
pub const POLICIES: [(&str, &str); 4] = [
    ("", "labels and annotations of pods that run"),
    ("-creation", "annotations of pods that are created"),
    ("-templates", "annotations of pod templates"),
    ("-revisions", "revisions of other owners"),
];
/// The one of releases with gateways.
pub const GATEWAY_POLICY: (&str, &str) = ("-gateway", "objects that no pool owns");

/// What was found of the policies. `stem` begins their names; `has_gateways` says whether the release keeps gateways.
pub fn findings(
    stem: &str,
    has_gateways: bool,
    policies: Result<&[ValidatingAdmissionPolicy], &NotRead>,
    bindings: Result<&[ValidatingAdmissionPolicyBinding], &NotRead>,
) -> Vec<Finding> {
    let (policies, bindings) = match (policies, bindings) {
        (Ok(policies), Ok(bindings)) => (policies, bindings),
        (Err(not_read), _) | (_, Err(not_read)) => return vec![Finding::not_read(not_read)],
    };
    if stem.is_empty() {
        return vec![Finding::not_read(&NotRead {
            words: "no release was found whose policies could be looked for".to_owned(),
            todo: "install the chart: docs/operations.md#install",
        })];
    }
    let wanted = POLICIES.into_iter().chain(has_gateways.then_some(GATEWAY_POLICY));
    wanted.map(|(suffix, what)| finding(&format!("{stem}{suffix}"), what, policies, bindings)).collect()
}

fn finding(
    name: &str,
    what: &str,
    policies: &[ValidatingAdmissionPolicy],
    bindings: &[ValidatingAdmissionPolicyBinding],
) -> Finding {
    let todo = "upgrade the release with its own values, which brings it back: docs/architecture.md#trust";
    let Some(policy) = policies.iter().find(|policy| policy.metadata.name.as_deref() == Some(name)) else {
        return Finding::failed(format!("there is no ValidatingAdmissionPolicy {name}: nobody guards {what}"), todo);
    };
    let denies = bindings.iter().filter_map(|binding| binding.spec.as_ref()).any(|binding| {
        let actions = binding.validation_actions.iter().flatten();
        binding.policy_name.as_deref() == Some(name) && actions.into_iter().any(|action| action == "Deny")
    });
    if !denies {
        return Finding::failed(format!("nothing binds the policy {name} with Deny: nobody guards {what}"), todo);
    }
    let checking = policy.status.as_ref().and_then(|status| status.type_checking.as_ref());
    let warning = checking.and_then(|checking| checking.expression_warnings.iter().flatten().next());
    match warning {
        Some(warning) => {
            Finding::warning(format!("the policy {name} does not fit this cluster: {}", warning.warning), todo)
        }
        None => Finding::ok(format!("the policy {name} guards {what}")),
    }
}
