//! Requests and limits of the two containers: the same for both. The copier runs alone, before everything else, so it raises what
//! the pod asks for by nothing, and whatever a ResourceQuota or a LimitRange wants of the sidecar it has too.
//!
//! A container without a CPU request makes a HorizontalPodAutoscaler on utilisation fail outright, so both always have
//! requests. A pod of class Guaranteed stays Guaranteed: there requests equal limits in every container.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::api::{ResourceAmounts, SidecarResources};

/// CPU limit of the sidecar in a Guaranteed pod when nobody gave one: the default request of 10m as a limit would stop
/// the pooler for 99 of every 100 ms.
const GUARANTEED_CPU: &str = "250m";

/// Whether Kubernetes puts this pod into the class Guaranteed, our own containers aside.
pub fn is_guaranteed(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let init = spec.init_containers.iter().flatten().filter(|container| !super::containers::is_reserved(container));
    // With resources of the pod as a whole the containers' own do not decide.
    let whole = super::pod_level::is_guaranteed(spec);
    whole.unwrap_or_else(|| spec.containers.iter().chain(init).all(container_is_guaranteed))
}

fn container_is_guaranteed(container: &Container) -> bool {
    let Some(ResourceRequirements { requests, limits: Some(limits), .. }) = &container.resources else { return false };
    ["cpu", "memory"].iter().all(|resource| {
        limits.get(*resource).is_some_and(|limit| {
            let request = requests.as_ref().and_then(|requests| requests.get(*resource));
            limit.0 != "0" && request.is_none_or(|request| request == limit)
        })
    })
}

/// Requests and limits of the sidecar. A limit below the request, which only the merge of a class can yield, is raised to
/// it: the API server would refuse the pod.
pub fn sidecar(wanted: &SidecarResources, guaranteed: bool) -> ResourceRequirements {
    let none = ResourceAmounts::default();
    let requests = wanted.requests.as_ref().unwrap_or(&none);
    let limits = wanted.limits.as_ref().unwrap_or(&none);
    let cpu_request = requests.cpu.as_deref().unwrap_or("10m");
    let memory_request = requests.memory.as_deref().unwrap_or("32Mi");
    let memory_limit = larger(limits.memory.as_deref().unwrap_or("64Mi"), memory_request);
    let cpu_limit = limits.cpu.as_deref().map(|limit| larger(limit, cpu_request));
    if guaranteed {
        let cpu = cpu_limit.unwrap_or_else(|| larger(GUARANTEED_CPU, cpu_request));
        let both = quantities(&[("cpu", cpu), ("memory", memory_limit)]);
        return ResourceRequirements { requests: Some(both.clone()), limits: Some(both), ..Default::default() };
    }
    let mut upper = vec![("memory", memory_limit)];
    upper.extend(cpu_limit.map(|limit| ("cpu", limit)));
    ResourceRequirements {
        requests: Some(quantities(&[("cpu", cpu_request), ("memory", memory_request)])),
        limits: Some(quantities(&upper)),
        ..Default::default()
    }
}

/// Whether the CPU limit of a Guaranteed pod's sidecar is our guess.
pub fn guesses_cpu_limit(wanted: &SidecarResources, guaranteed: bool) -> bool {
    guaranteed && wanted.limits.as_ref().is_none_or(|limits| limits.cpu.is_none())
}

fn quantities(amounts: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    amounts.iter().map(|(resource, amount)| ((*resource).to_owned(), Quantity((*amount).to_owned()))).collect()
}

/// The memory limit of the sidecar, in bytes.
pub fn memory_limit(wanted: &SidecarResources, guaranteed: bool) -> u64 {
    let limits = sidecar(wanted, guaranteed).limits.unwrap_or_default();
    let bytes = limits.get("memory").map(|limit| format!("{:.0}", amount(&limit.0)));
    bytes.and_then(|bytes| bytes.parse().ok()).unwrap_or_default()
}

fn larger<'a>(left: &'a str, right: &'a str) -> &'a str {
    if amount(right) > amount(left) { right } else { left }
}

/// The number that a quantity of the schema's pattern stands for. The schema lets nothing else through; what it cannot
/// read counts as nothing.
fn amount(quantity: &str) -> f64 {
    const SUFFIXES: [(&str, f64); 9] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("m", 0.001),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
    ];
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((quantity.strip_suffix(suffix)?, *factor)))
        .unwrap_or((quantity, 1.0));
    digits.parse::<f64>().unwrap_or(0.0) * factor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(cpu: Option<&str>, memory: &str) -> ResourceAmounts {
        ResourceAmounts { cpu: cpu.map(str::to_owned), memory: Some(memory.to_owned()) }
    }

    #[test]
    fn a_limit_below_the_request_is_raised_to_it() {
        let wanted =
            SidecarResources { requests: Some(amounts(Some("1"), "1Gi")), limits: Some(amounts(Some("500m"), "64Mi")) };
        let got = sidecar(&wanted, false);
        assert_eq!(got.limits, Some(quantities(&[("cpu", "1"), ("memory", "1Gi")])));
    }

    #[test]
    fn a_guaranteed_pod_gets_requests_equal_to_limits_and_a_cpu_limit_that_can_serve() {
        let wanted =
            SidecarResources { requests: Some(amounts(Some("10m"), "32Mi")), limits: Some(amounts(None, "64Mi")) };
        let got = sidecar(&wanted, true);
        assert_eq!(got.requests, got.limits);
        assert_eq!(got.limits, Some(quantities(&[("cpu", "250m"), ("memory", "64Mi")])));
        assert!(guesses_cpu_limit(&wanted, true) && !guesses_cpu_limit(&wanted, false));
    }

    #[test]
    fn quantities_compare_by_what_they_stand_for() {
        for (small, large) in [("999m", "1"), ("1000k", "1Mi"), ("64Mi", "0.1Gi"), ("1k", "1Ki"), ("2G", "2Gi")] {
            assert_eq!(larger(small, large), large);
            assert_eq!(larger(large, small), large);
        }
    }
}
