//! The two containers and four volumes that Sluice puts into a pod.

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, DownwardAPIProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource,
        EnvVar, EnvVarSource, HTTPGetAction, KeyToPath, ObjectFieldSelector, Probe, ProjectedVolumeSource,
        SeccompProfile, SecretProjection, SecurityContext, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use super::{InjectionSettings, PodPool, resources};
use crate::{
    api::SidecarReadiness,
    contract::{Document, names},
};

/// The agent in Sluice's image.
const AGENT_IN_IMAGE: &str = "/usr/local/bin/sluice-agent";
/// Where every container gets the service account's token, unless something is mounted there already.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Readable by all: the volume is mounted into the sidecar alone, whose user is not the owner of the files. The agent
/// copies what is secret into memory-backed files of mode 0600 (PgBouncer's own copy of the password).
const CONFIG_MODE: i32 = 0o444;
/// Seconds for which the pooler may take to accept clients before the kubelet starts the container anew.
const STARTUP_SECONDS: i32 = 60;

/// The names that belong to us, of containers and volumes.
pub fn is_reserved(container: &Container) -> bool {
    [names::SIDECAR_CONTAINER, names::BINARY_CONTAINER].contains(&container.name.as_str())
}

/// Whether Sluice, this build or another, put this init container there.
pub fn is_ours(container: &Container) -> bool {
    // Not the whole path: another build may keep the agent elsewhere in its image.
    let program = container.command.iter().flatten().next();
    let runs_agent = program.is_some_and(|program| program.ends_with("/sluice-agent"));
    match container.name.as_str() {
        names::SIDECAR_CONTAINER => runs_agent && injection_variable(container).is_some(),
        names::BINARY_CONTAINER => runs_agent,
        _ => false,
    }
}

/// Whether the init container is what this pool needs today. What other webhooks changed in it since (the registry of the
/// image, mounts of their own) is theirs to change, so only what makes it ours is compared.
pub fn is_current(container: &Container, wanted: &Container) -> bool {
    is_ours(container)
        && container.command == wanted.command
        && injection_variable(container) == injection_variable(wanted)
        && container.restart_policy == wanted.restart_policy
}

fn injection_variable(container: &Container) -> Option<&str> {
    let variable = container.env.iter().flatten().find(|variable| variable.name == names::INJECTION_VARIABLE)?;
    variable.value.as_deref()
}

/// The init container that copies the agent into the pod, so that the pooler's image needs to know nothing of it. It has the
/// resources of the sidecar.
pub fn copier(settings: &InjectionSettings, sidecar: &Container) -> Container {
    Container {
        name: names::BINARY_CONTAINER.to_owned(),
        image: Some(settings.agent_image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        command: Some(vec![AGENT_IN_IMAGE.to_owned(), "install".to_owned(), names::AGENT_PROGRAM.to_owned()]),
        resources: sidecar.resources.clone(),
        security_context: Some(security_context(settings)),
        volume_mounts: Some(vec![mount(names::BINARY_VOLUME, names::BINARY_DIR, false), no_token()]),
        ..Container::default()
    }
}

/// The sidecar: a native one, so that it starts before the application and ends after it, and a Job still completes.
///
/// The startup probe asks whether the pooler accepts and its console answers, never whether the database does: a database
/// that is down must not keep an application from starting. There is no readiness probe unless the pool asks for one, because it
/// would count for the pod; that one asks for a share and no more, or a database outage would empty every Service. There is no liveness probe, because the only thing that the
/// kubelet can do is to end the container and with it every client of a pooler that still serves; the agent starts a
/// pooler that died or hangs itself.
pub fn sidecar(plan: &PodPool<'_>, settings: &InjectionSettings, guaranteed: bool) -> Container {
    let image = plan.effective.pod.pgbouncer_image.clone().unwrap_or_else(|| settings.pgbouncer_image.clone());
    Container {
        name: names::SIDECAR_CONTAINER.to_owned(),
        image: Some(image),
        image_pull_policy: settings.image_pull_policy.clone(),
        restart_policy: Some("Always".to_owned()),
        command: Some(vec![names::AGENT_PROGRAM.to_owned(), "run".to_owned()]),
        env: Some(vec![
            // `$` is doubled because the kubelet expands `$(NAME)` and shortens `$$`.
            EnvVar {
                name: names::INJECTION_VARIABLE.to_owned(),
                value: Some(plan.injection().render().replace('$', "$$")),
                value_from: None,
            },
            from_pod(names::POD_UID_VARIABLE, "metadata.uid"),
            from_pod(names::POD_NAME_VARIABLE, "metadata.name"),
            from_pod(names::POD_NAMESPACE_VARIABLE, "metadata.namespace"),
        ]),
        ports: Some(vec![ContainerPort {
            name: Some(names::METRICS_PORT_NAME.to_owned()),
            container_port: plan.effective.pod.agent_port.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        startup_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/readyz".to_owned()),
                port: IntOrString::String(names::METRICS_PORT_NAME.to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(1),
            failure_threshold: Some(STARTUP_SECONDS),
            ..Probe::default()
        }),
        readiness_probe: readiness_probe(plan),
        resources: Some(resources::sidecar(&plan.effective.pod.resources, guaranteed)),
        security_context: Some(security_context(settings)),
        volume_mounts: Some(vec![
            mount(names::BINARY_VOLUME, names::BINARY_DIR, true),
            mount(names::RUN_VOLUME, names::RUN_DIR, false),
            mount(names::STATE_VOLUME, names::STATE_DIR, false),
            mount(names::CONFIG_VOLUME, names::CONFIG_DIR, true),
            no_token(),
        ]),
        ..Container::default()
    }
}

/// Asks whether the pooler may open a server connection, where the pool wants that of a pod that is ready.
fn readiness_probe(plan: &PodPool<'_>) -> Option<Probe> {
    (plan.effective.pod.readiness == SidecarReadiness::WithShare).then(|| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(names::SHARE_PATH.to_owned()),
            port: IntOrString::String(names::METRICS_PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(1),
        timeout_seconds: Some(1),
        failure_threshold: Some(3),
        ..Probe::default()
    })
}

fn from_pod(name: &str, field: &str) -> EnvVar {
    let source = EnvVarSource { field_ref: Some(field_ref(field)), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

fn field_ref(field: &str) -> ObjectFieldSelector {
    ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: field.to_owned() }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// Something harmless where the application's token would be: the pooler talks to no API server and must not hold
/// credentials for one.
fn no_token() -> VolumeMount {
    mount(names::BINARY_VOLUME, TOKEN_DIR, true)
}

/// What Pod Security `restricted` asks for, and a root file system that nobody writes.
fn security_context(settings: &InjectionSettings) -> SecurityContext {
    SecurityContext {
        run_as_non_root: Some(true),
        run_as_user: settings.run_as_user,
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

/// The volumes, every field that the API server would default written out: a second admission finds them equal.
pub fn volumes(plan: &PodPool<'_>) -> Vec<Volume> {
    let scratch = |name: &str, medium: Option<&str>, limit: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(str::to_owned),
            size_limit: Some(Quantity(limit.to_owned())),
        }),
        ..Volume::default()
    };
    vec![
        scratch(names::BINARY_VOLUME, None, "64Mi"),
        scratch(names::RUN_VOLUME, Some("Memory"), "8Mi"),
        scratch(names::STATE_VOLUME, None, "8Mi"),
        config_volume(plan),
    ]
}

/// Annotations, credentials and certificates in one projected volume, which the kubelet updates atomically.
fn config_volume(plan: &PodPool<'_>) -> Volume {
    let annotation = |file: &str, annotation: &str| DownwardAPIVolumeFile {
        path: file.to_owned(),
        field_ref: Some(field_ref(&format!("metadata.annotations['{annotation}']"))),
        ..DownwardAPIVolumeFile::default()
    };
    let key = |key: &str, file: &str| KeyToPath { key: key.to_owned(), path: file.to_owned(), mode: None };
    let secret = |name: &str, items: Vec<KeyToPath>| VolumeProjection {
        secret: Some(SecretProjection { name: name.to_owned(), items: Some(items), optional: None }),
        ..VolumeProjection::default()
    };
    let credentials = &plan.pool.spec.upstream.credentials_ref;
    let mut sources = vec![
        VolumeProjection {
            downward_api: Some(DownwardAPIProjection {
                items: Some(vec![
                    annotation(names::REVISION_FILE, names::REVISION_ANNOTATION),
                    annotation(names::GRANT_FILE, names::GRANT_ANNOTATION),
                ]),
            }),
            ..VolumeProjection::default()
        },
        secret(
            &credentials.name,
            vec![
                key(credentials.username_key(), names::USERNAME_FILE),
                key(credentials.password_key(), names::PASSWORD_FILE),
            ],
        ),
    ];
    if let Some(ca) = &plan.effective.pod.server_ca {
        sources.push(secret(&ca.name, vec![key(&ca.key, names::SERVER_CA_FILE)]));
    }
    let pod = &plan.effective.pod;
    let certificates = [
        (&pod.client_certificate, names::CLIENT_CERTIFICATE_FILE, names::CLIENT_KEY_FILE),
        (&pod.upstream_certificate, names::UPSTREAM_CERTIFICATE_FILE, names::UPSTREAM_KEY_FILE),
    ];
    for (reference, certificate_file, key_file) in certificates {
        if let Some(certificate) = reference {
            sources.push(secret(&certificate.name, vec![key("tls.crt", certificate_file), key("tls.key", key_file)]));
        }
    }
    Volume {
        name: names::CONFIG_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource { default_mode: Some(CONFIG_MODE), sources: Some(sources) }),
        ..Volume::default()
    }
}
