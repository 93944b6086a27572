//! PURE: the objects of a gateway: Deployment, Service, PodDisruptionBudget, and the ConfigMap that says where it is.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            ConfigMap, Container, ContainerPort, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler,
            LocalObjectReference, PodDNSConfig, PodDNSConfigOption, PodSecurityContext, PodSpec, PodTemplateSpec,
            Probe, SeccompProfile, Service, ServicePort, ServiceSpec, Toleration, TopologySpreadConstraint,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    api::{ConnectionPool, GROUP, Gateway, GatewayDnsConfig, GatewayPodSpec, GatewayToleration, VERSION},
    contract::{Document, names},
    decide::surge::replacement,
    fingerprint::fingerprint,
    inject::{InjectionSettings, PodPool, SAFE_TO_EVICT_ANNOTATION, copier, sidecar, volumes, with_our_volumes},
};

/// Poolers where nobody says how many: one may go, for whatever reason, and there is one.
const DEFAULT_REPLICAS: u32 = 2;
/// Seconds that a pod may take to end, where nobody says.
const DEFAULT_GRACE_SECONDS: u32 = 60;
/// Of them: for the transactions that still run when clients are disconnected. The agent's own time, and some to spare.
const LAST_SECONDS: u32 = 30;
/// Old ReplicaSets that are kept: `kubectl rollout undo` is not the way back, the spec of the pool is.
const HISTORY: i32 = 2;
/// Name of the port for clients.
const CLIENT_PORT_NAME: &str = "postgresql";
/// Value of the label `app.kubernetes.io/component`.
const COMPONENT: &str = "gateway";
/// On the Deployment: from what its template was made, and the template.
const TEMPLATE_ANNOTATION: &str = "sluice.dev/gateway-template";
/// What `kubectl rollout restart` writes.
const RESTARTED_ANNOTATION: &str = "kubectl.kubernetes.io/restartedAt";
/// Version of [`TemplateRecord`].
const RECORD_VERSION: u32 = 1;

/// The objects of one gateway, as they are applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// The poolers.
    pub deployment: Value,
    /// The address of all of them.
    pub service: Value,
    /// How many may be evicted at a time.
    pub disruption_budget: Value,
    /// Host and port of the Service, and the name of the Secret with the credentials.
    pub connection_info: Value,
}

/// The template that a Deployment was given, and the hash of everything in the pool that it was made from.
///
/// As long as the hash is the same, the Deployment keeps the template as it was written, whichever version of Sluice renders
/// otherwise today and whichever images it would choose: an upgrade of the operator replaces no pooler.
#[derive(Serialize, Deserialize)]
struct TemplateRecord {
    v: u32,
    hash: String,
    template: Value,
}

/// Name of all objects of a gateway.
pub fn name(pool: &str) -> String {
    format!("{pool}-gateway")
}

/// Labels of its pods that its selectors name. Frozen: a Deployment's selector cannot be changed.
pub fn selector(pool: &str) -> BTreeMap<String, String> {
    [(names::POOL_LABEL, pool), ("app.kubernetes.io/component", COMPONENT)]
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into()
}

/// Whether a Service can be named after a pool of this name: names of pools may begin with a digit and have dots.
pub fn can_name_a_service(pool: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase();
    pool.starts_with(is_letter) && pool.chars().all(|c| is_letter(c) || c.is_ascii_digit() || c == '-')
}

/// Host of the Service.
pub fn host(pool: &str, namespace: &str) -> String {
    format!("{}.{namespace}.svc", name(pool))
}

/// Whether a host name is that of the gateway's own Service, in any of its forms: the poolers would connect to themselves.
pub fn is_own_host(host: &str, pool: &str, namespace: &str) -> bool {
    let asked = host.trim_end_matches('.').to_ascii_lowercase();
    let own = [name(pool), format!("{}.{namespace}", name(pool)), self::host(pool, namespace)];
    own.contains(&asked) || asked.starts_with(&format!("{}.", self::host(pool, namespace)))
}

/// Renders the objects. `existing` is the Deployment as it is: while nothing in the pool has changed that its template was made
/// from, it keeps that template.
pub fn render(plan: &PodPool<'_>, settings: &InjectionSettings, existing: Option<&Deployment>) -> Objects {
    Objects {
        deployment: deployment(plan, settings, existing),
        service: json(&service(plan)),
        disruption_budget: json(&disruption_budget(plan)),
        connection_info: json(&connection_info(plan)),
    }
}

fn deployment(plan: &PodPool<'_>, settings: &InjectionSettings, existing: Option<&Deployment>) -> Value {
    let hash = hash(plan, existing);
    let kept = existing.and_then(record_of).filter(|record| record.v == RECORD_VERSION && record.hash == hash);
    let mut record =
        kept.unwrap_or_else(|| TemplateRecord { v: RECORD_VERSION, hash, template: json(&template(plan, settings)) });
    // whoever may edit the Deployment may edit the record: a grant in it would be each new pod's
    if let Some(annotations) = record.template.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !key.starts_with(names::PREFIX));
    }
    let replicas = gateway_of(plan).and_then(|gateway| gateway.replicas).unwrap_or(DEFAULT_REPLICAS);
    let replacement = replacement(replicas, plan.effective);
    let mut metadata = metadata(plan);
    metadata.annotations =
        Some([(TEMPLATE_ANNOTATION.to_owned(), serde_json::to_string(&record).unwrap_or_default())].into());
    let mut object = json(&Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(as_i32(replicas)),
            progress_deadline_seconds: Some(as_i32(plan.effective.rollout.progress_deadline_seconds)),
            revision_history_limit: Some(HISTORY),
            selector: label_selector(plan),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(as_i32(replacement.max_surge))),
                    max_unavailable: Some(IntOrString::Int(as_i32(replacement.max_unavailable))),
                }),
            }),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    });
    object["spec"]["template"] = record.template;
    object
}

/// Annotations of ours in the template of a Deployment. Sluice writes none there: each new pod would begin with them.
pub fn brought_along(existing: &Deployment) -> Vec<String> {
    let annotations = existing.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.annotations.as_ref());
    annotations.into_iter().flatten().map(|(key, _)| key.clone()).filter(|key| key.starts_with(names::PREFIX)).collect()
}

/// Of everything in the pool that the template is made from. What the operator brings along (images by default, pull
/// policy, user, the way that this version renders) is left out.
fn hash(plan: &PodPool<'_>, existing: Option<&Deployment>) -> String {
    let template = gateway_of(plan).and_then(|gateway| gateway.template.as_ref());
    let restarted = existing
        .and_then(|existing| existing.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref())
        .and_then(|annotations| annotations.get(RESTARTED_ANNOTATION));
    let made_from = (plan.injection().render(), template, &plan.pool.spec.budget_ref, restarted);
    fingerprint(&serde_json::to_vec(&made_from).unwrap_or_default(), 8)
}

fn record_of(existing: &Deployment) -> Option<TemplateRecord> {
    let annotation = existing.metadata.annotations.as_ref()?.get(TEMPLATE_ANNOTATION)?;
    serde_json::from_str(annotation).ok()
}

fn template(plan: &PodPool<'_>, settings: &InjectionSettings) -> PodTemplateSpec {
    let wanted = gateway_of(plan).and_then(|gateway| gateway.template.clone()).unwrap_or_default();
    let own = wanted.metadata.unwrap_or_default();
    let GatewayPodSpec {
        node_selector,
        tolerations,
        priority_class_name,
        termination_grace_period_seconds,
        dns_policy,
        dns_config,
    } = wanted.spec.unwrap_or_default();
    let mut labels = own.labels;
    labels.extend(self::labels(plan));
    // the pods have their pooler: the webhook has nothing to add
    labels.insert(names::INJECT_LABEL.to_owned(), "disabled".to_owned());
    if let Some(budget) = &plan.pool.spec.budget_ref {
        labels.insert(names::BUDGET_LABEL.to_owned(), budget.name.clone());
    }
    let mut annotations = own.annotations;
    let evictable = annotations.get(SAFE_TO_EVICT_ANNOTATION).map(String::as_str).unwrap_or_default();
    let evictable = with_our_volumes(evictable);
    annotations.insert(SAFE_TO_EVICT_ANNOTATION.to_owned(), evictable);
    let grace_seconds = termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    let pooler = pooler(plan, settings, grace_seconds);
    let secrets = settings.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            init_containers: Some(vec![copier(settings, &pooler)]),
            containers: vec![pooler],
            volumes: Some(volumes(plan)),
            image_pull_secrets: Some(secrets.collect::<Vec<_>>()).filter(|secrets| !secrets.is_empty()),
            node_selector: (!node_selector.is_empty()).then_some(node_selector),
            tolerations: Some(tolerations.into_iter().map(toleration).collect::<Vec<_>>())
                .filter(|tolerations| !tolerations.is_empty()),
            priority_class_name,
            dns_policy: dns_policy.map(|policy| format!("{policy:?}")),
            dns_config: dns_config.map(name_servers),
            termination_grace_period_seconds: Some(grace_seconds.into()),
            topology_spread_constraints: Some(
                ["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(|key| spread(plan, key)).into(),
            ),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: settings.run_as_user,
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
    }
}

/// The sidecar's container, as one of its own.
///
/// It is ready, and its pod gets clients by the Service, when its pooler accepts and may open a server connection; whether
/// the database answers is not asked, or an outage would leave clients without anybody who tells them. It is not started anew
/// while it waits for a share: the startup probe asks for the agent alone.
fn pooler(plan: &PodPool<'_>, settings: &InjectionSettings, grace_seconds: u32) -> Container {
    let ask = |path: &str| HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::String(names::METRICS_PORT_NAME.to_owned()),
        ..HTTPGetAction::default()
    };
    let mut pooler = sidecar(plan, settings, false);
    pooler.restart_policy = None;
    if let Some(startup) = &mut pooler.startup_probe {
        startup.http_get = Some(ask("/healthz"));
    }
    pooler.readiness_probe = Some(Probe {
        http_get: Some(ask("/readyz")),
        period_seconds: Some(1),
        timeout_seconds: Some(1),
        failure_threshold: Some(3),
        ..Probe::default()
    });
    let program = pooler.command.iter().flatten().next().cloned().unwrap_or_default();
    let seconds = grace_seconds.saturating_sub(LAST_SECONDS).to_string();
    let mut drain = vec![program, "drain".to_owned(), "--seconds".to_owned(), seconds];
    // left out where it is the agent's own: templates of earlier days stay as they are
    if plan.effective.pod.agent_port != names::METRICS_PORT {
        drain.extend(["--port".to_owned(), plan.effective.pod.agent_port.to_string()]);
    }
    pooler.lifecycle = Some(Lifecycle {
        pre_stop: Some(LifecycleHandler {
            exec: Some(ExecAction { command: Some(drain) }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    });
    pooler.ports.get_or_insert_default().push(ContainerPort {
        name: Some(CLIENT_PORT_NAME.to_owned()),
        container_port: plan.effective.pod.client_port.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    });
    pooler
}

fn name_servers(wanted: GatewayDnsConfig) -> PodDNSConfig {
    let GatewayDnsConfig { nameservers, searches, options } = wanted;
    let options = options.into_iter().map(|option| PodDNSConfigOption { name: Some(option.name), value: option.value });
    let options: Vec<PodDNSConfigOption> = options.collect();
    PodDNSConfig {
        nameservers: (!nameservers.is_empty()).then_some(nameservers),
        searches: (!searches.is_empty()).then_some(searches),
        options: (!options.is_empty()).then_some(options),
    }
}

fn toleration(wanted: GatewayToleration) -> Toleration {
    let GatewayToleration { key, operator, value, effect, toleration_seconds } = wanted;
    Toleration { key, operator, value, effect, toleration_seconds }
}

/// Evenly over nodes and over zones, as far as there are any; pods of another template are not counted, or the second half of an
/// update would be spread beside the first.
fn spread(plan: &PodPool<'_>, topology_key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(label_selector(plan)),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}

fn service(plan: &PodPool<'_>) -> Service {
    Service {
        metadata: metadata(plan),
        spec: Some(ServiceSpec {
            selector: Some(selector(&plan.name())),
            ports: Some(vec![ServicePort {
                name: Some(CLIENT_PORT_NAME.to_owned()),
                port: plan.effective.pod.client_port.into(),
                target_port: Some(IntOrString::String(CLIENT_PORT_NAME.to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// One at a time, so that a node can always be drained; who is not ready serves nobody and may always go.
fn disruption_budget(plan: &PodPool<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(plan),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(label_selector(plan)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

fn connection_info(plan: &PodPool<'_>) -> ConfigMap {
    let namespace = plan.pool.metadata.namespace.clone().unwrap_or_default();
    let data = [
        ("host", host(&plan.name(), &namespace)),
        ("port", plan.effective.pod.client_port.to_string()),
        ("credentialsSecret", plan.pool.spec.upstream.credentials_ref.name.clone()),
    ];
    ConfigMap {
        metadata: metadata(plan),
        data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ConfigMap::default()
    }
}

fn gateway_of<'a>(plan: &PodPool<'a>) -> Option<&'a Gateway> {
    plan.pool.spec.gateway.as_ref()
}

fn labels(plan: &PodPool<'_>) -> BTreeMap<String, String> {
    let mut labels = selector(&plan.name());
    labels.insert("app.kubernetes.io/name".to_owned(), "sluice-gateway".to_owned());
    labels.insert("app.kubernetes.io/instance".to_owned(), plan.name());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "sluice".to_owned());
    labels
}

fn label_selector(plan: &PodPool<'_>) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(&plan.name())), match_expressions: None }
}

fn metadata(plan: &PodPool<'_>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name(&plan.name())),
        namespace: plan.pool.metadata.namespace.clone(),
        labels: Some(labels(plan)),
        owner_references: Some(vec![owner(plan.pool)]),
        ..ObjectMeta::default()
    }
}

/// Everything goes with the pool.
fn owner(pool: &ConnectionPool) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "ConnectionPool".to_owned(),
        name: pool.metadata.name.clone().unwrap_or_default(),
        uid: pool.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        // blocking the owner's deletion needs a right on its finalizers, for nothing
        block_owner_deletion: None,
    }
}

/// Plain structures with string keys, which always have a JSON form.
fn json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn as_i32(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
