//! PURE: a pod and its pool in, a JSON patch out.
//!
//! The patch puts the copier at index 0 and the native sidecar at index 1 of the init containers, before the
//! application's own (migrations need the pooler too), and the environment into all of the application's containers. It
//! is idempotent: applied to its own result it is empty, which is what `reinvocationPolicy: IfNeeded` needs.

mod advice;
mod bypass;
mod connection_string;
mod containers;
mod ending;
mod environment;
mod libpq;
mod patch;
mod pod_level;
mod resources;
mod session_tools;
mod startup;
mod warning;

use json_patch::Patch;
use k8s_openapi::api::core::v1::{Container, LocalObjectReference, Pod, PodSpec};
use thiserror::Error;

pub(crate) use self::containers::{copier, sidecar, volumes};
use self::patch::PatchBuilder;
pub use self::warning::Warning;
use crate::{
    api::{ConnectionPool, SidecarReadiness},
    contract::{
        ClientSide, ContractError, Document, GrantDocument, Injection, PodGrant, PoolRevision, RevisionDocument,
        ServerTls, Upstream, names,
    },
    decide::{allowed::PoolAllowList, effective::EffectivePool},
    fingerprint::fingerprint,
};

/// Which local volumes the cluster autoscaler may drop with a node: without it a pod with an `emptyDir` keeps its node.
pub(crate) const SAFE_TO_EVICT_ANNOTATION: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

/// The containers for whose resources a VerticalPodAutoscaler evicts a pod, separated by a comma and a space. So far
/// it sizes no init container; once it does it would evict pods whose sidecar has what the pool says and not what it has seen of it.
const VPA_CONTAINERS_ANNOTATION: &str = "vpaObservedContainers";

/// What the operator's configuration says about injected containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectionSettings {
    /// Image that holds `/usr/local/bin/sluice-agent`.
    pub agent_image: String,
    /// Image with PgBouncer 1.24.1 or later, for pools that name none.
    pub pgbouncer_image: String,
    /// Pull policy of both; none: Kubernetes' default.
    pub image_pull_policy: Option<String>,
    /// Secrets with registry credentials, merged into the pod's; they must exist in the pod's namespace.
    pub image_pull_secrets: Vec<String>,
    /// Numeric user of both containers. None where the platform assigns one (OpenShift).
    pub run_as_user: Option<i64>,
    /// What pools may say of images and environment beyond what every pool may.
    pub allowed: PoolAllowList,
}

/// The pool of a pod, resolved.
#[derive(Clone, Debug)]
pub struct PodPool<'a> {
    /// The pool.
    pub pool: &'a ConnectionPool,
    /// What is in force for it.
    pub effective: &'a EffectivePool,
    /// The stable revision, which new pods get.
    pub revision: PoolRevision,
}

impl PodPool<'_> {
    /// Name of the pool.
    pub fn name(&self) -> String {
        self.pool.metadata.name.clone().unwrap_or_default()
    }

    /// Whether the pool sets an environment variable of this name itself, whatever the container has.
    fn sets(&self, variable: &str) -> bool {
        self.effective.pod.env.iter().any(|own| own.name == variable)
    }

    /// What is fixed for the pod's life.
    pub fn injection(&self) -> Injection {
        let upstream = &self.pool.spec.upstream;
        let pod = &self.effective.pod;
        Injection {
            v: Injection::VERSION,
            pool: self.name(),
            namespace: self.pool.metadata.namespace.clone().unwrap_or_default(),
            upstream: Upstream {
                host: upstream.host.clone(),
                port: upstream.port,
                database: upstream.database.clone(),
                tls: ServerTls {
                    mode: pod.server_tls,
                    own_ca: pod.server_ca.is_some(),
                    own_certificate: pod.upstream_certificate.is_some(),
                },
            },
            client: ClientSide {
                port: pod.client_port,
                max_connections: pod.max_client_connections,
                reach: pod.reach,
                tls: pod.client_tls,
            },
            agent_port: pod.agent_port,
            fixed_hash: self.fixed_hash(),
        }
    }

    /// Of what is fixed for the pod and not told to the agent. The operator's own settings (images by default, pull policy,
    /// user) are left out: an upgrade of Sluice asks nobody to restart.
    fn fixed_hash(&self) -> String {
        let pod = &self.effective.pod;
        let fixed =
            (&self.pool.spec.upstream.credentials_ref, &pod.server_ca, &pod.env, &pod.pgbouncer_image, &pod.resources);
        let mut text = serde_json::to_vec(&fixed).unwrap_or_default();
        if let Some(certificate) = &pod.client_certificate {
            // only where there is one: pods of earlier days keep their hash
            text.extend(serde_json::to_vec(certificate).unwrap_or_default());
        }
        if let Some(certificate) = &pod.upstream_certificate {
            text.extend(serde_json::to_vec(&("clientCertRef", certificate)).unwrap_or_default());
        }
        if pod.readiness != SidecarReadiness::Independent {
            text.extend(b"readiness");
        }
        fingerprint(&text, 6)
    }

    fn revision_document(&self) -> RevisionDocument {
        RevisionDocument { v: RevisionDocument::VERSION, pools: [(self.name(), self.revision.clone())].into() }
    }

    /// A new pod may open nothing until the operator, which alone can count, grants it something: several webhook
    /// replicas that each handed out a share at once could exceed `maxAllowed` together.
    fn grant_document(&self) -> GrantDocument {
        let pools = [(self.name(), PodGrant::default())].into();
        GrantDocument { v: GrantDocument::VERSION, epoch: 0, pools }
    }
}

/// A pod that gets a pooler.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// What to change. Empty when the pod is as it should be.
    pub patch: Patch,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why a pod of a pool cannot get a pooler.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InjectError {
    /// The application uses a name of ours.
    #[error("{what} {name:?} of the pod has a name that Sluice needs; rename it in the pod template")]
    ReservedName {
        /// Container, init container or volume.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The pod has no spec.
    #[error("the pod has no spec")]
    NoSpec,
}

/// Why a pod gets no pooler although it asked for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// It listens on the node's addresses, where the poolers of two pods would clash.
    HostNetwork,
    /// PgBouncer does not run there.
    Windows,
}

impl Unsupported {
    /// What makes injection impossible for this pod, if anything does.
    pub fn of(spec: &PodSpec) -> Option<Self> {
        let selector = spec.node_selector.as_ref().and_then(|selector| selector.get("kubernetes.io/os"));
        let windows =
            spec.os.as_ref().is_some_and(|os| os.name == "windows") || selector.is_some_and(|os| os == "windows");
        match (spec.host_network, windows) {
            (_, true) => Some(Self::Windows),
            (Some(true), false) => Some(Self::HostNetwork),
            _ => None,
        }
    }

    /// The warning that the user sees.
    pub fn warning(self) -> String {
        let text = match self {
            Self::HostNetwork => Warning::HostNetwork.text("", ", where poolers of several pods would clash"),
            Self::Windows => Warning::Windows.text("", ""),
        };
        text.into()
    }
}

/// The patch that gives the pod its pooler.
///
/// Labels and annotations of ours are overwritten, never merged: whoever creates a pod cannot bring a grant along.
///
/// # Errors
/// [`InjectError::ReservedName`] when the application uses the name of a container or volume of ours.
pub fn inject(pod: &Pod, plan: &PodPool<'_>, settings: &InjectionSettings) -> Result<Injected, InjectError> {
    let spec = pod.spec.as_ref().ok_or(InjectError::NoSpec)?;
    refuse_reserved_names(spec)?;
    let guaranteed = resources::is_guaranteed(pod);
    let mut builder = PatchBuilder::default();
    patch_metadata(&mut builder, pod, plan);

    // Environment before containers: its paths count the init containers as they came.
    let variables = environment::variables(plan);
    let with_neutral = |container: &Container| [variables.clone(), libpq::neutral(container, plan)].concat();
    for (index, container) in spec.containers.iter().enumerate() {
        environment::patch(&mut builder, "containers", index, container, &with_neutral(container));
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        if !containers::is_ours(container) {
            environment::patch(&mut builder, "initContainers", index, container, &with_neutral(container));
        }
    }
    let mut sidecar = containers::sidecar(plan, settings, guaranteed);
    sidecar.env.get_or_insert_default().push(ending::grace_variable(spec));
    let is_first = !spec.init_containers.iter().flatten().any(containers::is_ours);
    if let Some(resources) = sidecar.resources.as_ref().filter(|_| is_first) {
        pod_level::make_room(&mut builder, spec, resources);
    }
    patch_containers(&mut builder, spec, &[containers::copier(settings, &sidecar), sidecar]);
    patch_volumes(&mut builder, spec, plan);
    let known = spec.image_pull_secrets.as_deref().unwrap_or_default();
    let missing = settings.image_pull_secrets.iter().filter(|name| known.iter().all(|secret| secret.name != **name));
    let missing: Vec<_> = missing.map(|name| LocalObjectReference { name: name.clone() }).collect();
    builder.append_all(["spec", "imagePullSecrets"], spec.image_pull_secrets.is_some(), &missing);

    let warnings = advice::warnings(spec, plan, guaranteed).into_iter().map(String::from).collect();
    Ok(Injected { patch: builder.build(), warnings })
}

/// The patch that takes labels and annotations of ours off a pod that gets no pooler: they would be taken for ours.
pub fn disown(pod: &Pod) -> Patch {
    let mut builder = PatchBuilder::default();
    builder.metadata("labels", pod.metadata.labels.as_ref(), &[(names::POOL_LABEL, None), (names::BUDGET_LABEL, None)]);
    let annotations = [(names::REVISION_ANNOTATION, None), (names::GRANT_ANNOTATION, None)];
    builder.metadata("annotations", pod.metadata.annotations.as_ref(), &annotations);
    builder.build()
}

/// What was fixed for a pod when it was admitted. None: it has no pooler of ours, whatever its labels say; a label can be
/// written by anybody, a container cannot be added to a pod that exists.
///
/// # Errors
/// [`ContractError`] when another version of Sluice wrote it or it was damaged.
pub fn injection_of(pod: &Pod) -> Option<Result<Injection, ContractError>> {
    let spec = pod.spec.as_ref()?;
    // a gateway's pod has nothing beside its pooler, which is therefore no sidecar
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let sidecar = all.find(|container| container.name == names::SIDECAR_CONTAINER && containers::is_ours(container))?;
    let variable = sidecar.env.iter().flatten().find(|variable| variable.name == names::INJECTION_VARIABLE)?;
    Some(Injection::parse(&variable.value.as_ref()?.replace("$$", "$")))
}

fn refuse_reserved_names(spec: &PodSpec) -> Result<(), InjectError> {
    let refuse = |what, name: &str| Err(InjectError::ReservedName { what, name: name.to_owned() });
    if let Some(container) = spec.containers.iter().find(|container| containers::is_reserved(container)) {
        return refuse("container", &container.name);
    }
    let mut init = spec.init_containers.iter().flatten().filter(|container| containers::is_reserved(container));
    if let Some(container) = init.clone().find(|container| !containers::is_ours(container)) {
        return refuse("init container", &container.name);
    }
    if init.next().is_some() {
        return Ok(()); // The volumes came with our containers.
    }
    let reserved = [names::BINARY_VOLUME, names::RUN_VOLUME, names::STATE_VOLUME, names::CONFIG_VOLUME];
    match spec.volumes.iter().flatten().find(|volume| reserved.contains(&volume.name.as_str())) {
        Some(volume) => refuse("volume", &volume.name),
        None => Ok(()),
    }
}

fn patch_metadata(builder: &mut PatchBuilder, pod: &Pod, plan: &PodPool<'_>) {
    let budget = plan.pool.spec.budget_ref.as_ref().map(|budget| budget.name.clone());
    let labels = [(names::POOL_LABEL, Some(plan.name())), (names::BUDGET_LABEL, budget)];
    builder.metadata("labels", pod.metadata.labels.as_ref(), &labels);
    let known = pod.metadata.annotations.as_ref();
    let evictable = known.and_then(|annotations| annotations.get(SAFE_TO_EVICT_ANNOTATION)).map(String::as_str);
    let annotations = [
        (names::REVISION_ANNOTATION, Some(plan.revision_document().render())),
        (names::GRANT_ANNOTATION, Some(plan.grant_document().render())),
        (SAFE_TO_EVICT_ANNOTATION, Some(with_our_volumes(evictable.unwrap_or_default()))),
        (VPA_CONTAINERS_ANNOTATION, Some(resizable_containers(pod))),
    ];
    builder.metadata("annotations", known, &annotations);
}

/// The value of [`VPA_CONTAINERS_ANNOTATION`]: what it lists without ours, and where there is none the application's containers.
fn resizable_containers(pod: &Pod) -> String {
    let listed = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(VPA_CONTAINERS_ANNOTATION));
    let is_sidecar = |container: &&Container| container.restart_policy.is_some();
    let of_pod = || {
        let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).filter(is_sidecar);
        let all = pod.spec.iter().flat_map(|spec| &spec.containers).chain(init);
        all.map(|container| container.name.as_str()).collect()
    };
    let names: Vec<&str> = listed.map_or_else(of_pod, |listed| listed.split(',').map(str::trim).collect());
    let ours = [names::SIDECAR_CONTAINER, names::BINARY_CONTAINER];
    names.into_iter().filter(|name| !name.is_empty() && !ours.contains(name)).collect::<Vec<_>>().join(", ")
}

/// The value of [`SAFE_TO_EVICT_ANNOTATION`]: what it lists, and ours.
pub(crate) fn with_our_volumes(listed: &str) -> String {
    let mut volumes: Vec<&str> = listed.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    for ours in [names::BINARY_VOLUME, names::RUN_VOLUME, names::STATE_VOLUME] {
        if !volumes.contains(&ours) {
            volumes.push(ours);
        }
    }
    volumes.join(",")
}

fn patch_containers(builder: &mut PatchBuilder, spec: &PodSpec, wanted: &[Container; 2]) {
    let existing = spec.init_containers.as_deref().unwrap_or_default();
    let current = wanted.iter().all(|own| existing.iter().any(|container| containers::is_current(container, own)));
    if current {
        return;
    }
    if spec.init_containers.is_none() {
        return builder.add(["spec", "initContainers"], wanted);
    }
    // Ours of another pool or build, in a pod that was copied from a running one. From behind, so that no index moves.
    for (index, _) in existing.iter().enumerate().rev().filter(|(_, container)| containers::is_ours(container)) {
        builder.remove(["spec", "initContainers", &index.to_string()]);
    }
    for (index, container) in wanted.iter().enumerate() {
        builder.add(["spec", "initContainers", &index.to_string()], container);
    }
}

fn patch_volumes(builder: &mut PatchBuilder, spec: &PodSpec, plan: &PodPool<'_>) {
    let existing = spec.volumes.as_deref().unwrap_or_default();
    let mut missing = Vec::new();
    for volume in containers::volumes(plan) {
        match existing.iter().position(|known| known.name == volume.name) {
            Some(index) if existing[index] == volume => {}
            Some(index) => builder.replace(["spec", "volumes", &index.to_string()], volume),
            None => missing.push(volume),
        }
    }
    builder.append_all(["spec", "volumes"], spec.volumes.is_some(), &missing);
}
