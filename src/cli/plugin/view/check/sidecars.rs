//! The sidecars: which agents and which poolers the pods have, by their images.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::Finding;
use crate::{
    cli::plugin::view::{
        NotRead,
        named::{MOST_NAMED, named},
    },
    contract::names::{BINARY_CONTAINER, SIDECAR_CONTAINER},
    inject::injection_of,
};

/// What was found of the pods with a sidecar. `agent` is the image from which the operator gives pods their agent; none where that is not
/// known.
pub fn findings(pods: Result<&[Pod], &NotRead>, agent: Option<&str>) -> Vec<Finding> {
    let pods = match pods {
        Err(not_read) => return vec![Finding::not_read(not_read)],
        Ok(pods) => pods,
    };
    let pods: Vec<&Pod> = pods.iter().filter(|pod| injection_of(pod).is_some()).collect();
    if pods.is_empty() {
        return vec![Finding::ok("no pod has a sidecar yet")];
    }
    vec![agents(&pods, agent), Finding::ok(format!("poolers: {}", counted(&pods, SIDECAR_CONTAINER)))]
}

fn agents(pods: &[&Pod], wanted: Option<&str>) -> Finding {
    let words = format!("agents: {}", counted(pods, BINARY_CONTAINER));
    let Some(wanted) = wanted else { return Finding::ok(words) };
    let others: Vec<String> = pods
        .iter()
        .filter(|pod| image(pod, BINARY_CONTAINER) != Some(wanted))
        .map(|pod| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
        })
        .collect();
    if others.is_empty() {
        return Finding::ok(words + ", as the operator gives them");
    }
    Finding::note(
        format!(
            "{words}; {} of {} pods have another agent than the operator gives now ({wanted}): {}",
            others.len(),
            pods.len(),
            named(&others)
        ),
        "restart their workloads when it suits you: kubectl rollout restart; Proven=False/AgentOutdated says where one lacks what it has to know",
    )
}

/// How many pods have which image, the most frequent first.
fn counted(pods: &[&Pod], container: &str) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in pods {
        *counts.entry(image(pod, container).unwrap_or("of no image")).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, pods)| std::cmp::Reverse(*pods));
    let more = counts.len().saturating_sub(MOST_NAMED);
    let mut images: Vec<String> =
        counts.iter().take(MOST_NAMED).map(|(image, pods)| format!("{image} in {pods} pods")).collect();
    if more > 0 {
        images.push(format!("{more} further images"));
    }
    images.join(", ")
}

/// The image of a container, native sidecar or not.
fn image<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.find(|of: &&Container| of.name == container)?.image.as_deref()
}
