//! The webhook: whether the API server knows it, trusts it, reaches it, and gets pods with a pooler from it.

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Pod, discovery::v1::EndpointSlice},
    jiff::{SignedDuration, Timestamp},
};
use serde_json::json;

use super::Finding;
use crate::{
    api::conditions,
    cli::plugin::view::{NotRead, certificate, document::PoolDocument, time::span},
    contract::names,
    inject::injection_of,
};

/// What the names of our webhooks end with.
const WEBHOOKS: &str = ".inject.sluice.dev";
/// The operator renews an authority 243 days before it ends: one that ends so soon was not renewed.
const ENDS_SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What the API server said to a pod that was created for trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It would get a pooler.
    Injected {
        /// Of this pool.
        pool: String,
    },
    /// The webhook refused it, in its words.
    Denied(String),
    /// Nobody asked the webhook.
    NotCalled,
    /// The webhook could not be asked.
    CallFailed(String),
}

/// Where the operator is, as its webhook tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookPlace {
    /// Name of the configuration, which is the stem of the names of all objects of the release that have no namespace.
    pub configuration: String,
    /// Namespace of the release.
    pub namespace: String,
    /// Service in front of the webhook.
    pub service: String,
    /// Name of the release.
    pub release: Option<String>,
}

/// A pod that this pool would have, to be created for trial under the `restricted` standard. None: the pool is not accepted, has no pods of
/// an application, or selects them by more than labels.
pub fn trial_pod(document: &PoolDocument) -> Option<Pod> {
    let accepted = document.condition(conditions::ACCEPTED).is_some_and(|accepted| accepted.status == "True");
    let selector = document.pool.selector().filter(|selector| accepted && selector.match_expressions.is_empty())?;
    let mut labels = selector.match_labels.clone();
    labels.insert(names::INJECT_LABEL.to_owned(), names::INJECT_ENABLED.to_owned());
    let pod = json!({
        "metadata": {"generateName": "sluice-check-", "labels": labels},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "trial", "image": "registry.invalid/trial",
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    serde_json::from_value(pod).ok()
}

/// What became of a pod that was created for trial.
pub fn admission(created: &Pod) -> Admission {
    match injection_of(created) {
        Some(Ok(injection)) => Admission::Injected { pool: injection.pool },
        _ => Admission::NotCalled,
    }
}

/// What a refusal of that pod says of the webhook; none where it is not the webhook's.
pub fn refusal(words: &str) -> Option<Admission> {
    if !words.contains(WEBHOOKS) {
        return None;
    }
    if words.contains("failed calling webhook") {
        return Some(Admission::CallFailed(words.to_owned()));
    }
    let denied = words.split_once("denied the request: ").map_or(words, |(_, denied)| denied);
    Some(Admission::Denied(denied.to_owned()))
}

/// Whether a configuration is one of Sluice's, and, where a namespace is named, of the release there.
pub fn is_ours(configuration: &MutatingWebhookConfiguration, namespace: Option<&str>) -> bool {
    let mut webhooks = configuration.webhooks.iter().flatten().filter(|webhook| webhook.name.ends_with(WEBHOOKS));
    webhooks.any(|webhook| {
        let service = webhook.client_config.service.as_ref();
        namespace.is_none_or(|wanted| service.is_some_and(|service| service.namespace == wanted))
    })
}

/// Where the operator is; none where no configuration of ours has a Service.
pub fn place(configurations: &[MutatingWebhookConfiguration]) -> Option<WebhookPlace> {
    let service = |configuration: &MutatingWebhookConfiguration| {
        let mut webhooks = configuration.webhooks.iter().flatten();
        webhooks.find_map(|webhook| webhook.client_config.service.clone())
    };
    let (configuration, service) = configurations.iter().find_map(|found| Some((found, service(found)?)))?;
    let labels = configuration.metadata.labels.as_ref();
    Some(WebhookPlace {
        configuration: configuration.metadata.name.clone().unwrap_or_default(),
        namespace: service.namespace,
        service: service.name,
        release: labels.and_then(|labels| labels.get("app.kubernetes.io/instance")).cloned(),
    })
}

/// What was found of the webhook; the configurations are ours.
pub fn findings(
    configurations: Result<&[MutatingWebhookConfiguration], &NotRead>,
    endpoints: Result<&[EndpointSlice], &NotRead>,
    admission: Result<&Admission, &NotRead>,
    now: Timestamp,
) -> Vec<Finding> {
    let mut findings = match configurations {
        Err(not_read) => vec![Finding::not_read(not_read)],
        Ok(configurations) => registered(configurations, now),
    };
    findings.push(match endpoints {
        Err(not_read) => Finding::not_read(not_read),
        Ok(slices) => reachable(slices),
    });
    findings.push(match admission {
        Err(not_read) => Finding::not_read(not_read),
        Ok(admission) => admitted(admission),
    });
    findings
}

fn registered(ours: &[MutatingWebhookConfiguration], now: Timestamp) -> Vec<Finding> {
    let names: Vec<&str> = ours.iter().filter_map(|configuration| configuration.metadata.name.as_deref()).collect();
    let existence = match names.as_slice() {
        [] => Finding::failed(
            "there is no MutatingWebhookConfiguration of Sluice: no pod gets a pooler",
            "install the chart: docs/operations.md#install",
        ),
        [name] => Finding::ok(format!("MutatingWebhookConfiguration {name} is there")),
        _ => Finding::warning(
            format!("there are several configurations: {}", names.join(", ")),
            "one release serves all of a cluster: uninstall the others",
        ),
    };
    let mut findings = vec![existence];
    for configuration in ours {
        findings.push(trusted(configuration, now));
        findings.extend(lenient(configuration));
    }
    findings
}

/// Whether the API server trusts the webhook's certificate, and for how long.
fn trusted(configuration: &MutatingWebhookConfiguration, now: Timestamp) -> Finding {
    let name = configuration.metadata.name.as_deref().unwrap_or_default();
    let logs = logs(configuration);
    let mut last_ends = Vec::new();
    for webhook in configuration.webhooks.iter().flatten() {
        let Some(ByteString(bundle)) = &webhook.client_config.ca_bundle else {
            return Finding::failed(format!("{} has no caBundle: pods that opted in are refused", webhook.name), logs);
        };
        match certificate::ends(bundle) {
            Ok(ends) => last_ends.extend(ends.into_iter().max()),
            Err(why) => return Finding::failed(format!("the caBundle of {}: {why}", webhook.name), logs),
        }
    }
    let Some(end) = last_ends.into_iter().min() else {
        return Finding::failed(format!("{name} has no webhooks"), "upgrade the release: docs/operations.md#upgrade");
    };
    let left = end.duration_since(now);
    if left.is_negative() || left.is_zero() {
        return Finding::failed(
            format!("the certificate of {name} ended {} ago: pods that opted in are refused", span(-left.as_secs())),
            logs,
        );
    }
    let words = format!("the certificate of {name} holds for {}", span(left.as_secs()));
    if left < ENDS_SOON { Finding::warning(words + " and was not renewed", logs) } else { Finding::ok(words) }
}

/// Where the operator says why it keeps no certificate.
fn logs(configuration: &MutatingWebhookConfiguration) -> String {
    let mut services =
        configuration.webhooks.iter().flatten().filter_map(|webhook| webhook.client_config.service.as_ref());
    let namespace = services.next().map_or("sluice-system", |service| service.namespace.as_str());
    format!("see the log of the operator: kubectl -n {namespace} logs -l app.kubernetes.io/component=operator")
}

/// That pods would start without a pooler while the webhook is away.
fn lenient(configuration: &MutatingWebhookConfiguration) -> Option<Finding> {
    let mut webhooks = configuration.webhooks.iter().flatten();
    let webhook = webhooks.find(|webhook| webhook.failure_policy.as_deref() == Some("Ignore"))?;
    Some(Finding::warning(
        format!(
            "{} has failurePolicy Ignore: while it is away pods start without a pooler and are counted nowhere",
            webhook.name
        ),
        "set it back to Fail: upgrade the release with its own values",
    ))
}

fn reachable(slices: &[EndpointSlice]) -> Finding {
    let endpoints = || slices.iter().flat_map(|slice| &slice.endpoints);
    let is_ready = |ready: Option<bool>| ready != Some(false);
    let ready = endpoints()
        .filter(|endpoint| is_ready(endpoint.conditions.as_ref().and_then(|conditions| conditions.ready)))
        .count();
    match (ready, endpoints().count()) {
        (0, _) => Finding::failed(
            "no replica of the operator answers for the webhook: pods that opted in are refused",
            "see why its pods are not ready: docs/operations.md#when-something-is-wrong",
        ),
        (ready, all) => Finding::ok(format!("{ready} of {all} replicas of the operator answer for the webhook")),
    }
}

fn admitted(admission: &Admission) -> Finding {
    match admission {
        Admission::Injected { pool } => {
            Finding::ok(format!("a pod of {pool} that was created for trial (dry run) gets its pooler"))
        }
        Admission::Denied(words) => Finding::warning(
            format!("the webhook answers, and refuses a pod that was created for trial (dry run): {words}"),
            "do what it says: pods of this pool do not start",
        ),
        Admission::NotCalled => Finding::failed(
            "the API server does not ask the webhook: a pod that was created for trial (dry run) got no pooler",
            "see the rules and selectors of the MutatingWebhookConfiguration: upgrade the release with its own values",
        ),
        Admission::CallFailed(words) => Finding::failed(
            format!("the API server cannot ask the webhook: {words}"),
            "let it reach port 9443 of the operator: docs/operations.md#network-policies",
        ),
    }
}
